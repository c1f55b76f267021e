"""Where the files of a data set are: in the user's folder, in the cache, or downloaded once."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import pooch

from ..errors import UserError
from ..places import cache_folder, data_folder
from .entries import Entry, describe


def local(entry: Entry | str) -> Path | None:
    """The folder of a data set, under ``DEEPATLAS_DATA`` or in the cache, if it is there."""
    if isinstance(entry, str):
        entry = describe(entry)
    for home in (data_folder(), cache_folder()):
        if home is not None and (home / entry.folder_name / "dataset.json").is_file():
            return (home / entry.folder_name).resolve()
    return None


def find(entry: Entry | str) -> Path:
    """The folder of a data set of files: found, or else downloaded into the cache."""
    if isinstance(entry, str):
        entry = describe(entry)
    found = local(entry)
    if found is not None:
        return found
    if entry.url is None:
        home = data_folder()
        if home is None:
            looked = "the folder that DEEPATLAS_DATA would name (it is not set)"
        else:
            looked = f"{home} (DEEPATLAS_DATA)"
        raise FileNotFoundError(
            f"{entry.name}: no folder {entry.folder_name} with a dataset.json in {looked}, and it "
            "has no public address: set DEEPATLAS_DATA to the folder that holds it"
        )
    return download(entry.url, entry.sha256, cache_folder() / entry.folder_name)


def download(url: str, sha256: str, folder: Path) -> Path:
    """Fetch the tar archive at ``url``, check it, and unpack the folder of its ``dataset.json`` as
    ``folder``, once.

    Nothing is left half-written: the archive must have the checksum ``sha256``, members that would
    land outside are refused (UserError), and the folder appears when it is complete. Without
    network, ConnectionError says what to do.
    """
    if (folder / "dataset.json").is_file():
        return folder
    if folder.exists():
        raise UserError(
            f"{folder}: is there, but holds no dataset.json: remove it, and the data are fetched "
            "again"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # private: several runs may start at once
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive = _fetch(url, sha256, Path(temporary), folder.name)
        unpacked = Path(temporary) / "unpacked"
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter=_inside)
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{url}: not a safe and complete tar archive ({error})") from error
        found = sorted(unpacked.glob("**/dataset.json"))
        if not found:
            raise UserError(f"{url}: the archive holds no dataset.json; is it the right one?")
        if not (folder / "dataset.json").is_file():  # another run was not faster
            found[0].parent.rename(folder)
    return folder


def _fetch(url: str, sha256: str, home: Path, name: str) -> Path:
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", "archive", home, progressbar=True))
    except ValueError as error:
        raise UserError(
            f"{url}: the download is damaged, its checksum is not {sha256}: try again"
        ) from error
    except OSError as error:
        # a full disk or a forbidden folder; requests' own errors have no number
        if error.errno is not None:
            raise
        answer = getattr(error, "response", None)
        if answer is None:
            reason = type(error).__name__
        else:
            reason = f"the server answers {answer.status_code} {answer.reason}"
        raise ConnectionError(
            f"{url} cannot be downloaded ({reason}): check the connection and try again, or fetch "
            f"it elsewhere and set DEEPATLAS_DATA to the folder that holds {name}/"
        ) from error


def _inside(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    if member.name.startswith("/"):  # tarfile's own filter would strip the slash and go on
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, path)
