"""Where the files of a data set are: in the user's folder, in the cache, or downloaded once."""

from __future__ import annotations

import errno
import hashlib
import lzma
import re
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Self

import requests
from tqdm import tqdm

from ..checkpoints import is_left
from ..errors import UserError, shortened
from ..locks import part_of
from ..places import cache_folder, data_folder
from .entries import Entry, describe
from .layouts import marker_of

# what an archive may unpack to: so many times its own size (label maps shrink as much), or bytes
MOST_TIMES, SMALL = 200, 10**8
MOST_OF_HEADERS = 2**20  # bytes of what an archive may say of one file, as a long name
PATIENCE = 60  # seconds without a byte, after which a transfer counts as broken
CHUNK = 2**16  # bytes that are written at once; fewer are lost when a transfer breaks off
_ALONE = threading.Lock()  # a process downloads one archive at a time


def local(entry: Entry | str) -> Path | None:
    """The folder of a data set, under ``DEEPATLAS_DATA`` or in the cache, if it is there; that of
    its file, for a cohort file.
    """
    if isinstance(entry, str):
        entry = describe(entry)
    if entry.home is not None:
        return entry.home
    for home in (data_folder(), cache_folder()):
        if home is not None and _holds(home / entry.folder_name, marker_of(entry)):
            return (home / entry.folder_name).resolve()
    return None


def _holds(folder: Path, marker: str) -> bool:
    return any(True for _ in folder.glob(marker))


def find(entry: Entry | str) -> Path:
    """The folder of a data set of files: found, or else downloaded into the cache."""
    if isinstance(entry, str):
        entry = describe(entry)
    found = local(entry)
    if found is not None:
        return found
    marker = marker_of(entry)
    url, checksum = entry.url, entry.checksum
    if url is None or checksum is None:  # an entry with a url has a checksum
        home = data_folder()
        if home is None:
            looked = "the folder that DEEPATLAS_DATA would name (it is not set)"
        else:
            looked = f"{home} (DEEPATLAS_DATA)"
        raise FileNotFoundError(
            f"{entry.name}: no folder {entry.folder_name} with a {marker} in {looked}, and it "
            "has no public address: set DEEPATLAS_DATA to the folder that holds it"
        )
    return download(url, checksum, cache_folder() / entry.folder_name, marker)


def download(url: str, checksum: str, folder: Path, marker: str = "dataset.json") -> Path:
    """Fetch the tar archive at ``url``, check it, and unpack the folder in it that holds ``marker``
    (a pattern of paths) as ``folder``, once.

    A transfer that breaks off leaves what came beside ``folder``, and the next one goes on from
    there, if the server can and the file is still the same. The archive must have the ``checksum``,
    SHA-256 or MD5 by its length, and hold nothing but files and folders that stay inside and are
    not too large (UserError), and the folder appears when it is complete. Without network,
    ConnectionError says what to do.
    """
    if _holds(folder, marker):
        return folder
    if folder.exists():
        raise UserError(
            f"{folder}: is there, but holds no {marker}: remove it, and the data are fetched again"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _ALONE, _Transfer(url, folder) as transfer:
        archive = transfer.run()
        algorithm = "md5" if len(checksum) == 32 else "sha256"
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, algorithm).hexdigest()
        if digest != checksum:
            raise UserError(
                f"{url}: the download is damaged, its checksum is not {checksum}: try again"
            )
        # private: several runs may start at once
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            unpacked = Path(temporary) / "unpacked"
            _unpack(archive, unpacked, url)
            home = _home_of(unpacked, marker)
            if home is None:
                raise UserError(f"{url}: the archive holds no {marker}; is it the right one?")
            if not _holds(folder, marker):  # another run was not faster
                home.rename(folder)
        transfer.remove()
    return folder


def _home_of(unpacked: Path, marker: str) -> Path | None:
    """The folder from which a path fits ``marker``, the outermost."""
    found = [path for path in unpacked.glob(f"**/{marker}") if "__MACOSX" not in path.parts]
    if not found:
        return None
    home = min(found, key=lambda path: (len(path.parts), path))
    for _ in PurePosixPath(marker).parts:
        home = home.parent
    return home


# --- transfers ------------------------------------------------------------------------------------


class _Transfer:
    """One download into a file of this process, which begins with what an earlier one has left.

    The name of the file has the address and the version, as the server tells it, so a file that
    changed meanwhile is not glued to what came before.
    """

    def __init__(self, url: str, folder: Path):
        self.url = url
        self.folder = folder
        address = hashlib.sha256(url.encode()).hexdigest()[:8]
        self.prefix = f"{folder.name}-{address}"
        self.part: Path | None = None
        self.version: str | None = None

    def __enter__(self) -> _Transfer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        # what is damaged is of no use, nor what cannot be gone on with
        of_no_use = isinstance(error, UserError) or self.version is None
        if of_no_use or (self.part is not None and not self._came()):
            self.remove()

    def remove(self) -> None:
        """Forget what came."""
        if self.part is not None:
            self.part.unlink(missing_ok=True)

    def run(self) -> Path:
        """The file, complete; ConnectionError, a sentence, if it does not come."""
        with self._told(), requests.Session() as session:
            session.headers["Accept-Encoding"] = "identity"  # the bytes of the archive itself
            answer = self._ask(session)
            total = _length(answer)
            self.version = _version(answer)
            part = self.part = self._begun()
            have = self._came()
            if self.version is not None and total is not None and 0 < have <= total:
                answer.close()
                if have == total:
                    return part
                answer = self._ask(session, {"Range": f"bytes={have}-", "If-Range": self.version})
                if not self._goes_on(answer, have):
                    have = 0
                    if answer.status_code != 200:
                        answer.close()
                        answer = self._ask(session)
            else:
                have = 0
            self._receive(answer, part, have, total)
        if total is not None and self._came() < total:
            raise self._error(f"it broke off after {self._came()} of {total} bytes")
        return part

    def _ask(self, session: requests.Session, headers: dict | None = None) -> requests.Response:
        answer = session.get(self.url, headers=headers, stream=True, timeout=PATIENCE)
        if self.url.startswith("https:") and not answer.url.startswith("https:"):
            answer.close()
            raise ValueError(f"it leads to {shortened(answer.url)}, which is not https")
        if headers is None or answer.status_code != 416:  # nothing is there from that byte on
            answer.raise_for_status()
        return answer

    def _begun(self) -> Path:
        """The file to fill: what this process left, or takes over from one that has ended; what is
        left of other versions is removed.
        """
        name = hashlib.sha256(repr(self.version).encode()).hexdigest()[:8]
        own = part_of(self.folder.with_name(f"{self.prefix}-{name}"))
        for left in self.folder.parent.glob(f"{self.prefix}-*.part"):
            try:
                if left == own or not is_left(left):
                    continue
                if left.name.startswith(f"{self.prefix}-{name}.") and not own.exists():
                    left.rename(own)
                else:
                    left.unlink()
            except FileNotFoundError:  # another process was quicker
                continue
        return own

    def _came(self) -> int:
        """Bytes that are there."""
        if self.part is None or not self.part.is_file():
            return 0
        return self.part.stat().st_size

    def _goes_on(self, answer: requests.Response, have: int) -> bool:
        """Does an answer go on at byte ``have`` of the same version?"""
        begins = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        return answer.status_code == 206 and begins and _version(answer) == self.version

    def _receive(self, answer: requests.Response, part: Path, have: int, total: int | None) -> None:
        bar = tqdm(total=total, initial=have, desc=self.folder.name, unit="B", unit_scale=True)
        with answer, bar, part.open("ab" if have else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))

    # --- what went wrong ---

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The errors of the network as sentences."""
        advice = "check the connection and try again"
        cause: Exception
        try:
            yield
            return
        except requests.RequestException as error:
            cause = error
            answer = error.response
            text = str(error)
            if answer is not None and not answer.ok:
                reason = f"the server answers {answer.status_code} {answer.reason}"
            elif isinstance(error, requests.exceptions.ProxyError):
                reason = f"the proxy refuses, or is not there: {shortened(text)}"
                advice = "check the settings of the proxy"
            elif isinstance(error, requests.Timeout) or "timed out" in text:
                reason = f"no byte came for {PATIENCE:g} seconds"
            elif isinstance(error, ValueError):
                # an address that is none, or a proxy of a kind that requests cannot use
                reason = text
                advice = "check the address and the settings of the proxy"
            elif self._came():
                reason = f"it broke off after {self._came()} bytes"
            else:
                reason = f"{type(error).__name__}: {shortened(text)}"
        except ValueError as error:  # the server's answer makes no sense
            cause, reason = error, str(error)
        raise self._error(reason, advice) from cause

    def _error(
        self, reason: str, advice: str = "check the connection and try again"
    ) -> ConnectionError:
        kept = ""
        if self.version is not None and self._came():
            kept = ", which goes on from where it was"
        return ConnectionError(
            f"{self.url} cannot be downloaded ({reason}): {advice}{kept}, or fetch it elsewhere "
            f"and set DEEPATLAS_DATA to the folder that holds {self.folder.name}/"
        )


def _length(answer: requests.Response) -> int | None:
    """Bytes of the whole file, if the server says so."""
    said = answer.headers.get("Content-Length", "")
    return int(said) if re.fullmatch("[0-9]{1,18}", said) else None


def _version(answer: requests.Response) -> str | None:
    """What changes with the file: its strong ETag, or the time of its last change; None if the
    server tells neither.
    """
    tag = answer.headers.get("ETag", "")
    if tag.startswith('"'):
        return tag
    return answer.headers.get("Last-Modified")


# --- archives -------------------------------------------------------------------------------------


def _unpack(archive: Path, folder: Path, url: str) -> None:
    """The members of a tar archive as files in ``folder``; UserError, before anything is written,
    if one is a link or a device, or if they are too large together; or if one would land outside.
    """
    try:
        with tarfile.open(archive, tarinfo=_Member) as tar:
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


class _Member(tarfile.TarInfo):
    """What stands before a file in an archive. What is said of one file, as a long name or the
    holes in it, tarfile holds in memory, however much it is.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As tarfile has it; ReadError if too much is said of a file, or where its holes are."""
        member = super().frombuf(buf, encoding, errors)
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{member.name!r} is a file with holes")
        if not member.isreg() and not member.isdir() and member.size > MOST_OF_HEADERS:
            raise tarfile.ReadError(f"{member.size} bytes are said of one file")
        return member


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
