"""Where the files of a data set are: in the user's folder, in the cache, or downloaded once."""

from __future__ import annotations

import errno
import lzma
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

import pooch

from ..errors import UserError
from ..places import cache_folder, data_folder
from .entries import Entry, describe

# what an archive may unpack to: so many times its own size (label maps shrink as much), or bytes
MOST_TIMES, SMALL = 200, 10**8


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

    Nothing is left half-written: the archive must have the checksum ``sha256``, and hold nothing
    but files and folders that stay inside and are not too large (UserError), and the folder appears
    when it is complete. Without network, ConnectionError says what to do.
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
        archive = Path(temporary) / "archive"
        _fetch(url, archive, folder.name)
        if pooch.file_hash(archive) != sha256:
            raise UserError(
                f"{url}: the download is damaged, its checksum is not {sha256}: try again"
            )
        unpacked = Path(temporary) / "unpacked"
        _unpack(archive, unpacked, url)
        found = [path for path in sorted(unpacked.glob("**/dataset.json")) if path.is_file()]
        if not found:
            raise UserError(f"{url}: the archive holds no dataset.json; is it the right one?")
        if not (folder / "dataset.json").is_file():  # another run was not faster
            found[0].parent.rename(folder)
    return folder


def _fetch(url: str, archive: Path, name: str) -> None:
    """Download ``url`` as the file ``archive``; ``name`` is for the error, a ConnectionError."""
    transfer = pooch.HTTPDownloader(progressbar=True)
    advice = "check the connection and try again"
    try:
        transfer(url, archive, None)
        return
    except OSError as error:
        # a full disk or a forbidden folder; requests' own errors have no number
        if error.errno is not None:
            raise
        cause = error
        answer = getattr(error, "response", None)
        if answer is not None:
            reason = f"the server answers {answer.status_code} {answer.reason}"
        elif isinstance(error, ValueError):
            # an address that is none, or a proxy of a kind that requests cannot use
            reason = str(error)
            advice = "check the address and the settings of the proxy"
        else:
            reason = type(error).__name__
    except ValueError as error:  # the server's answer makes no sense
        cause, reason = error, str(error)
    raise ConnectionError(
        f"{url} cannot be downloaded ({reason}): {advice}, or fetch it elsewhere and set "
        f"DEEPATLAS_DATA to the folder that holds {name}/"
    ) from cause


# --- archives -------------------------------------------------------------------------------------


def _unpack(archive: Path, folder: Path, url: str) -> None:
    """The members of a tar archive as files in ``folder``; UserError, before anything is written,
    if one is a link or a device, or if they are too large together; or if one would land outside.
    """
    try:
        with tarfile.open(archive) as tar:
            size = _checked_size(tar, max(SMALL, MOST_TIMES * archive.stat().st_size))
            room = shutil.disk_usage(archive.parent).free
            if size > room:
                raise OSError(errno.ENOSPC, f"{size} bytes are to be unpacked, free are {room}")
            tar.extractall(folder, filter=_inside)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _unsafe(url, error) from error
    except OSError as error:
        # gzip's and bz2's own errors have no number
        of_the_archive = (FileExistsError, IsADirectoryError, NotADirectoryError)
        if error.errno is not None and not isinstance(error, of_the_archive):
            raise
        raise _unsafe(url, error) from error


def _unsafe(url: str, reason: Exception) -> UserError:
    return UserError(f"{url}: not a safe and complete tar archive ({reason})")


def _checked_size(tar: tarfile.TarFile, most: int) -> int:
    """Bytes that the files of an archive will take; TarError if they are more than ``most``, or if
    one is not a plain file or folder.

    Links are refused wherever they point: through a link to a link, files have left their folder in
    spite of tarfile's own filter.
    """
    size = 0
    for member in tar:
        if not member.isreg() and not member.isdir():
            raise tarfile.SpecialFileError(member)
        if "\0" in member.name:
            raise tarfile.TarError(f"{member.name!r} is no name of a file")
        size += tarfile.BLOCKSIZE + member.size
        if size > most:
            raise tarfile.TarError(f"it unpacks to more than {MOST_TIMES} times its own size")
    return size


def _inside(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    if member.name.startswith("/"):  # tarfile's own filter would strip the slash and go on
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, path)
