"""One process at a time in a folder: a lock file that everybody who shares the disk can see.

The file says who holds it, and its time is renewed every minute. A lock is left, and anybody's,
when its process has ended on this machine, or when it was not renewed for ``SILENT`` seconds. Who
was silent that long and goes on finds its lock lost, and writes nothing more.

All times are compared by the clock of the disk, since those of machines differ. Every change of a
lock that is there, its release included, takes another lock beside it, whose name has the random
token of the one to be changed: so of all that want a lock that is left, one gets it, and it is the
one that they all saw.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

from .errors import DISK_FULL, NOT_YOURS, UserError, shortened

RENEWED = 60.0  # seconds from one sign of life to the next
SILENT = 15 * 60.0  # seconds without any
COARSE = 3.0  # seconds: so far may the times of a file and of a process be off
JOBS = {"SLURM_JOB_ID": "Slurm", "PBS_JOBID": "PBS", "LSB_JOBID": "LSF", "JOB_ID": "Grid Engine"}


class Held(UserError):
    """Another process holds the lock."""


class Lost(UserError):
    """The lock is another process's now, or gone: nothing more may be written."""


# --- who ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """What a lock file says of the process that holds it."""

    token: str = "unknown"  # random, of this lock alone
    host: str = "an unknown machine"
    place: str = ""
    process: int = 0
    job: str = ""
    since: str = "an unknown time"

    @classmethod
    def here(cls) -> Holder:
        """This process, with a new token."""
        return cls(
            secrets.token_hex(8),
            platform.node(),
            place(),
            os.getpid(),
            _job(),
            time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    @classmethod
    def of(cls, said: dict) -> Holder:
        """What stands in a lock file; ValueError if it is not what a process writes there."""
        known = {name: said[name] for name in cls.__dataclass_fields__}
        right = isinstance(known["process"], int) and re.fullmatch("[0-9a-f]{16}", known["token"])
        if not right:
            raise ValueError("neither the number of a process nor a token")
        return cls(**known)

    def __str__(self) -> str:
        job = f" ({self.job})" if self.job else ""
        return f"process {self.process} on {self.host}{job} since {self.since}"


def _job() -> str:
    """The job of a cluster's queue that this process is part of: "Slurm 77"; else nothing."""
    found = [f"{queue} {os.environ[name]}" for name, queue in JOBS.items() if os.environ.get(name)]
    return ", ".join(found)


@cache
def place() -> str:
    """Where numbers of processes mean the same, as eight hexadecimal digits: this machine, or the
    container.
    """
    told = [platform.node()]
    with suppress(OSError):  # two machines of a cloud may have one name
        told.append(Path("/etc/machine-id").read_text(encoding="utf-8", errors="replace"))
    with suppress(OSError):  # a container's processes are not seen from outside
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(told).encode()).hexdigest()[:8]


_PROCESS = secrets.token_hex(4)  # beside its number, which another may have in another container


def part_of(path: Path) -> Path:
    """The file beside ``path`` that this process fills before it takes that name."""
    return path.with_name(f"{path.name}.{place()}.{os.getpid()}.{_PROCESS}.part")


def runs_for(process: int, seconds: float) -> bool:
    """Does a process of that number run here that began ``seconds`` ago, or before? Numbers are
    used again. One that has ended and that nobody has asked about does not run.
    """
    try:
        found = psutil.Process(process)
        began = found.create_time()
        ended = found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return not ended and time.time() - began >= seconds - COARSE


def age_of(path: Path) -> float:
    """Seconds since ``path`` was written or renewed, by the clock of the disk that it is on.

    FileNotFoundError if it is gone.
    """
    clock = part_of(path.with_name(f"clock-{secrets.token_hex(4)}"))
    try:
        clock.touch(exist_ok=False)
        now = clock.stat().st_mtime
    except OSError:  # nothing can be written there: no better clock is left than this machine's
        now = time.time()
    finally:
        with suppress(OSError):
            clock.unlink(missing_ok=True)
    return now - path.stat().st_mtime


# --- the file -------------------------------------------------------------------------------------


def _read(path: Path) -> Holder | None:
    """Who holds the lock ``path``; None if there is none. A file that says nothing, since its
    process was killed as it wrote it, is held by somebody unknown.
    """
    for _ in range(20):  # it may be written just now; Windows bars files that are being replaced
        try:
            return Holder.of(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError):
            time.sleep(0.02)
    path.stat()  # an OSError of the disk is told
    return Holder()


def _write(holder: Holder, file: int) -> None:
    with os.fdopen(file, "w", encoding="utf-8") as stream:
        json.dump(asdict(holder), stream, indent=1)


def _create(path: Path, holder: Holder) -> bool:
    """Make a lock that is not there; False if there is one."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except PermissionError:  # so says Windows, too, of a file that is just being removed
        if path.exists():
            return False
        raise
    try:
        _write(holder, file)
    except BaseException:
        path.unlink()
        raise
    return True


def _is_left(path: Path, holder: Holder) -> bool:
    """Has the process ended that holds a lock, or been silent for too long?"""
    try:
        silent = age_of(path)
    except FileNotFoundError:  # released meanwhile
        return False
    if silent > SILENT:
        return True
    if holder.place != place():
        return False
    # what this process holds it knows of: see Lock.acquire
    return holder.process == os.getpid() or not runs_for(holder.process, silent)


def _exchange(path: Path, old: str, new: Holder | None) -> bool:
    """Put the lock ``new`` in the place of that with the token ``old``, or nothing; False if that
    is not there any more, or another process is changing it.
    """
    guard = path.with_name(f"{path.name}.{old}.change")
    guardian = Holder.here()
    if not _create(guard, guardian):
        left = _read(guard)
        if left is None or not _is_left(guard, left) or not _exchange(guard, left.token, guardian):
            return False
    try:
        found = _read(path)
        if found is None or found.token != old:
            return False
        if new is None:
            _insist(path.unlink)
            return True
        ready = part_of(path)
        ready.unlink(missing_ok=True)
        try:
            _create(ready, new)
            _insist(lambda: os.replace(ready, path))
        finally:
            ready.unlink(missing_ok=True)
        return True
    finally:
        with suppress(FileNotFoundError):
            _insist(guard.unlink)


def _insist(change: Callable[[], object]) -> None:
    """Change a file, though another process may just be reading it: Windows refuses meanwhile."""
    for _ in range(50):
        try:
            change()
            return
        except PermissionError:
            time.sleep(0.02)
    change()


# --- the lock -------------------------------------------------------------------------------------

# Of this process, by their files: those that it holds, and those of its parent that it works under.
_HELD: dict[Path, Lock] = {}
# Its threads make and release locks one after the other, so that each lock with this process's
# number that is not among these is a forgotten one.
_ONE_BY_ONE = threading.RLock()


class Lock:
    """The lock ``path`` on the folder that it stands in: a context manager, or ``acquire`` and
    ``release``.

    As long as this process holds it, ``checkpoints.write_atomically`` asks it before it changes any
    file in the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).resolve()
        self.token = ""  # empty: not held
        self._renewing = threading.Event()
        self._owner: int | None = None  # the process that renews and releases it

    def acquire(self) -> None:
        """Make the lock, or take over one that is left; Held if another process has it, or another
        part of this one.
        """
        with _ONE_BY_ONE:
            try:
                self._make(Holder.here())
            except OSError as error:
                if error.errno in NOT_YOURS:
                    raise UserError(
                        f"{self.path.parent}: cannot be written ({error.strerror}): name another "
                        "folder to work in, where it is for runs by DEEPATLAS_RUNS"
                    ) from error
                if error.errno not in DISK_FULL:
                    raise
                raise UserError(
                    f"{self.path}: could not be written, no space is left for it "
                    f"({error.strerror}): free some disk space, and start again"
                ) from error
        self._owner = os.getpid()
        self._renewing = threading.Event()
        threading.Thread(target=self._renew, args=(self._renewing,), daemon=True).start()

    def _make(self, own: Holder) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        patience = time.monotonic() + 5
        while not _create(self.path, own):
            found = _read(self.path)
            if found is None:  # released meanwhile
                continue
            left = self.path not in _HELD and _is_left(self.path, found)
            if left and _exchange(self.path, found.token, own):
                break
            # where another process takes it over just now, it will soon be told who
            if not left or time.monotonic() > patience:
                raise Held(self._held_by(found))
            time.sleep(0.02)
        self._hold(own.token)
        for guard in self.path.parent.glob(f"{self.path.name}.*.change"):  # of killed processes
            if not guard.name.startswith(f"{self.path.name}.{own.token}."):
                with suppress(OSError):
                    guard.unlink()

    def wait(
        self,
        poll: float = 5.0,
        until: float | None = None,
        stopped: Callable[[], bool] | None = None,
        quiet: bool = False,
    ) -> bool:
        """Acquire the lock as soon as it is free, asking every ``poll`` seconds; it is said once
        for whom, unless ``quiet``. False if before that the time ``until``, of time.monotonic(),
        came, or ``stopped()`` said so.
        """
        told = quiet
        while True:
            try:
                self.acquire()
                return True
            except Held as held:
                if not told:
                    print(f"waiting for another process: {held}", flush=True)
                told = True
            late = until is not None and time.monotonic() >= until
            if late or (stopped is not None and stopped()):
                return False
            rest = poll if until is None else min(poll, max(until - time.monotonic(), 0))
            time.sleep(rest)

    def check(self) -> None:
        """Lost unless the lock is still this process's, or its parent's that it works under."""
        found = _read(self.path)
        if found is not None and found.token == self.token:
            return
        now = "is gone" if found is None else f"is that of {shortened(str(found))} now"
        raise Lost(
            f"{self.path}: this process was to be alone in this folder, but its lock {now}. It was "
            f"silent for more than {SILENT / 60:.0f} minutes (was the machine asleep?), or the "
            "file was removed: nothing more was written; start again, and what the other process "
            "made is found"
        )

    def release(self) -> None:
        """Give the lock back; nothing happens if it was lost, or if it is the parent's."""
        self._renewing.set()
        token, self.token = self.token, ""
        with _ONE_BY_ONE:
            if _HELD.get(self.path) is not self:
                return
            del _HELD[self.path]
            if self._owner == os.getpid():
                with suppress(OSError):  # then it is left once this process has ended
                    _exchange(self.path, token, None)

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _hold(self, token: str) -> None:
        self.token = token
        self.check()
        _HELD[self.path] = self

    def _renew(self, ended: threading.Event) -> None:
        """Show every minute that this process lives, until it ``ended`` its work."""
        token = self.token
        while not ended.wait(RENEWED):
            with suppress(OSError):  # a disk may be away for a while
                found = _read(self.path)
                if found is not None and found.token == token:
                    os.utime(self.path)

    def _held_by(self, found: Holder) -> str:
        """The sentence of Held."""
        try:
            heard = f", last heard of {max(age_of(self.path), 0):.0f} s ago"
        except FileNotFoundError:
            heard = ""
        return (
            f"{self.path}: this folder is being worked in by {shortened(str(found))}{heard}. Wait "
            f"until it has ended, or end it; once it has been silent for {SILENT / 60:.0f} minutes "
            "the same command takes over. If you know that it has ended, remove this file"
        )


def adopt(path: Path, token: str) -> Lock:
    """The lock of the parent of this process, which works for it: it is asked before every write,
    never renewed or released from here. Lost if it is not there.
    """
    lock = Lock(path)
    lock._hold(token)
    return lock


def ask(path: Path) -> None:
    """Lost if ``path`` is in a folder whose lock this process had, and has lost."""
    if not _HELD:
        return
    folder = path.parent.resolve()  # what is replaced is in it, were it a link to elsewhere
    folders = (folder, *folder.parents)
    for lock in list(_HELD.values()):
        if lock.path.parent in folders:
            lock.check()
