"""One process at a time in a folder, whoever dies, sleeps or comes at the same moment."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict

from deepatlas import checkpoints, locks
from deepatlas.errors import UserError

import psutil
import pytest

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="no fork, signals or links to files")

HOLDS = """
import sys
from pathlib import Path
from deepatlas import locks
lock = locks.Lock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def start(code, *arguments, environment=None):
    """Another process, which goes on when its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "run.lock"


@pytest.fixture
def other(path):
    """Another process that holds the lock."""
    process = start(HOLDS, path, environment={"SLURM_JOB_ID": "77"})
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def planted(path, minutes=0, **changes):
    """A lock as another machine would leave it, silent for so many minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = asdict(locks.Holder.here()) | {"host": "far", "place": "0" * 8} | changes
    path.write_text(json.dumps(holder))
    silent(path, minutes)


def silent(path, minutes):
    then = time.time() - 60 * minutes
    os.utime(path, (then, then))


def files(path):
    return sorted(file.name for file in path.parent.iterdir())


# --- held and free --------------------------------------------------------------------------------


def test_a_lock_says_who_holds_it_and_leaves_nothing(path):
    with locks.Lock(path) as lock:
        said = json.loads(path.read_text())
        assert said["token"] == lock.token and said["process"] == os.getpid()
        assert files(path) == ["run.lock"]
        lock.check()
    assert files(path) == []
    with pytest.raises(locks.Lost, match=r"run\.lock: .* its lock is gone"):
        lock.check()
    with lock:
        lock.check()


def test_who_comes_second_is_told_who_works_there_and_what_to_do(path, other):
    with pytest.raises(locks.Held) as caught:
        locks.Lock(path).acquire()
    assert re.fullmatch(
        rf"{re.escape(str(path))}: this folder is being worked in by process {other.pid} on .+ "
        r"\(Slurm 77\) since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, last heard of \d+ s ago\. Wait until "
        r"it has ended, or end it; once it has been silent for 15 minutes the same command takes "
        r"over\. If you know that it has ended, remove this file",
        str(caught.value),
    )
    assert isinstance(caught.value, UserError)
    other.communicate("")
    locks.Lock(path).acquire()
    locks.Lock(path).release()  # that of nobody: nothing happens
    assert files(path) == ["run.lock"]


def test_another_part_of_this_process_comes_second_too(path):
    with locks.Lock(path):
        for _ in range(2):
            with pytest.raises(locks.Held, match=f"process {os.getpid()} on"):
                locks.Lock(path).acquire()
        assert path.exists()
    with locks.Lock(path):
        pass


def test_what_this_process_has_forgotten_is_left(path):
    """As after an interrupt in the very moment in which the lock was made."""
    planted(path, place=locks.place())
    with locks.Lock(path) as lock:
        lock.check()


def test_of_threads_one_gets_the_lock(path):
    got = []

    def want():
        lock = locks.Lock(path)
        try:
            lock.acquire()
            got.append(lock)
        except locks.Held:
            pass

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lock,) = got
    lock.release()
    assert files(path) == []


def test_a_lock_is_waited_for_until_it_is_free(path, other, capsys):
    late = time.monotonic() + 0.3
    assert locks.Lock(path).wait(poll=0.1, until=late) is False and time.monotonic() >= late
    assert locks.Lock(path).wait(poll=0.1, stopped=lambda: True) is False
    assert capsys.readouterr().out.count("waiting for another process: ") == 2
    assert locks.Lock(path).wait(poll=0.1, stopped=lambda: True, quiet=True) is False
    assert capsys.readouterr().out == ""
    closing = threading.Timer(0.3, other.stdin.close)
    closing.start()
    lock = locks.Lock(path)
    assert lock.wait(poll=0.05) is True
    lock.release()
    said = capsys.readouterr().out
    assert said.count("waiting for another process: ") == 1 and f"process {other.pid} on" in said
    closing.join()


def test_locks_load_nothing_heavy():
    code = "import sys; from deepatlas import locks; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


# --- who has ended --------------------------------------------------------------------------------


@pytest.mark.parametrize("buried", [True, False], ids=["buried", "a zombie"])
def test_a_killed_process_leaves_its_lock_at_once(path, other, buried):
    other.kill()
    if buried:
        other.wait()
    else:  # its parent, as a scheduler may be, has not asked about it yet
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    with locks.Lock(path) as lock:
        lock.check()
        assert files(path) == ["run.lock"]


def test_a_number_that_another_process_has_now_holds_nothing(path, other):
    planted(path, minutes=5, place=locks.place(), process=other.pid)  # it has just begun
    with locks.Lock(path):
        pass
    planted(path, place=locks.place(), process=os.getppid())
    with pytest.raises(locks.Held):
        locks.Lock(path).acquire()


def test_another_machine_holds_its_lock_until_it_was_silent_for_15_minutes(path):
    planted(path, minutes=14.5, process=os.getpid())
    with pytest.raises(locks.Held, match=r"on far .* last heard of 870 s ago"):
        locks.Lock(path).acquire()
    silent(path, 15.1)
    with locks.Lock(path):
        pass


@pytest.mark.parametrize("hours", [-3, 3])
def test_the_clock_of_this_machine_does_not_matter(path, monkeypatch, hours):
    """That of a network disk, or of the other machine, is another."""
    planted(path)
    now = time.time
    part = locks.part_of(path).with_name(f"a.csv.{'0' * 8}.1.part")
    part.touch()
    os.utime(part, (now() - 23 * 3600,) * 2)
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    with pytest.raises(locks.Held):
        locks.Lock(path).acquire()
    assert not checkpoints.is_left(part)
    then = now() - 16 * 60
    os.utime(path, (then, then))
    with locks.Lock(path):
        pass


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"token": "../../a"}', json.dumps(asdict(locks.Holder()))],
)
def test_a_lock_that_says_nothing_is_somebodys_for_15_minutes(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(locks.Held, match="process 0 on an unknown machine since an unknown time"):
        locks.Lock(path).acquire()
    silent(path, 16)
    with locks.Lock(path) as lock:
        lock.check()
    assert files(path) == []


def test_what_stands_in_a_lock_steers_no_terminal(path):
    planted(path, host="\x1b[2Jfar\n" + 1000 * "x")
    with pytest.raises(locks.Held) as caught:
        locks.Lock(path).acquire()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 800


# --- who was silent -------------------------------------------------------------------------------

WRITES = """
import sys
from pathlib import Path
from deepatlas import checkpoints, locks
path = Path(sys.argv[1])
lock = locks.Lock(path)
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
try:
    checkpoints.write_text("of the sleeper", path.parent / "deep" / "a.txt")
except locks.Lost as lost:
    print(lost, flush=True)
lock.release()
"""


@POSIX
def test_who_slept_while_another_took_over_writes_nothing(path):
    sleeper = start(WRITES, path)
    assert sleeper.stdout.readline() == "held\n"
    sleeper.send_signal(signal.SIGSTOP)
    with pytest.raises(locks.Held):
        locks.Lock(path).acquire()
    silent(path, 16)
    file = path.parent / "deep" / "a.txt"
    with locks.Lock(path) as lock:
        checkpoints.write_text("of the heir", file)
        sleeper.send_signal(signal.SIGCONT)
        said, errors = sleeper.communicate("go on\n")
        assert sleeper.returncode == 0, errors
        assert f"its lock is that of process {os.getpid()} on" in said
        assert "start again, and what the other process made is found" in said
        lock.check()  # nor did it take the heir's lock away as it ended
        checkpoints.write_text("of the heir again", file)
    assert file.read_text() == "of the heir again"
    assert files(path) == ["deep"] and files(file) == ["a.txt"]


def test_a_lock_shows_that_its_process_lives(path, monkeypatch):
    monkeypatch.setattr(locks, "RENEWED", 0.05)
    lock = locks.Lock(path)
    lock.acquire()
    silent(path, 14)
    deadline = time.monotonic() + 10
    while locks.age_of(path) > 60 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert locks.age_of(path) < 60
    planted(path, minutes=14)  # another's is not renewed
    time.sleep(0.3)
    assert locks.age_of(path) > 13 * 60
    lock.release()
    assert path.exists()


@POSIX
def test_a_file_is_asked_for_in_every_folder_that_is_locked(path, tmp_path):
    outer = locks.Lock(tmp_path / "sweep.lock")
    with outer, locks.Lock(path) as inner:
        checkpoints.write_text("1", path.parent / "a.txt")
        path.unlink()  # by hand
        with pytest.raises(locks.Lost, match=r"run\.lock: .* is gone.*or the file was removed"):
            checkpoints.write_text("2", path.parent / "a.txt")
        (path.parent / "link.txt").symlink_to(tmp_path / "b.txt")
        with pytest.raises(locks.Lost):
            checkpoints.write_text("2", path.parent / "link.txt")
        checkpoints.write_text("3", tmp_path / "b.txt")
        inner.release()
        outer.path.unlink()
        for file in (path.parent / "a.txt", tmp_path / "b.txt"):
            with pytest.raises(locks.Lost, match=r"sweep\.lock"):
                checkpoints.write_text("4", file)
    checkpoints.write_text("5", tmp_path / "b.txt")
    assert (path.parent / "a.txt").read_text() == "1" and (tmp_path / "b.txt").read_text() == "5"


# --- processes that work for the holder -----------------------------------------------------------

ADOPTS = """
import sys
from pathlib import Path
from deepatlas import locks
path = Path(sys.argv[1])
lock = locks.adopt(path, sys.argv[2])
for line in sys.stdin:
    try:
        locks.ask(path.parent / "a.txt")
        print("may be written", flush=True)
    except locks.Lost as lost:
        print("lost", flush=True)
lock.release()
"""


def test_a_worker_of_the_holder_asks_and_never_releases(path):
    with locks.Lock(path) as lock:
        worker = start(ADOPTS, path, lock.token)
        print("1", file=worker.stdin, flush=True)
        assert worker.stdout.readline() == "may be written\n"
        planted(path)
        print("2", file=worker.stdin, flush=True)
        assert worker.stdout.readline() == "lost\n"
        worker.communicate()
    assert path.exists()
    path.unlink()
    with pytest.raises(locks.Lost):
        locks.adopt(path, "0" * 16)
    checkpoints.write_text("3", path.parent / "a.txt")  # what was not adopted bars nothing


@POSIX
def test_a_fork_of_the_holder_does_not_release_its_lock(path):
    code = """
import os, sys
from pathlib import Path
from deepatlas import locks
with locks.Lock(Path(sys.argv[1])) as lock:
    child = os.fork()
    if child == 0:
        lock.check()
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    lock.check()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, path], check=True)
    assert files(path) == []


# --- a disk that takes nothing --------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_only_be_read_is_said(path, monkeypatch, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.os, "open", refused)
    with pytest.raises(UserError, match=r"cannot be written .*DEEPATLAS_RUNS"):
        locks.Lock(path).acquire()


def test_a_full_disk_is_said_and_leaves_no_lock(path, monkeypatch):
    def full(holder, file):
        os.close(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(locks, "_write", full)
        with pytest.raises(UserError, match=r"run\.lock: could not be written, no space is left"):
            locks.Lock(path).acquire()
        assert files(path) == []
    lock = locks.Lock(path)
    lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(locks, "_write", full)
        lock.release()  # without an error that would hide what went wrong
    with locks.Lock(path):
        pass
    assert files(path) == []


# --- many at once ---------------------------------------------------------------------------------

# Every process tries each round's lock at its time; a pause may come before any change of a file.
RACES = """
import json, random, sys, time
from pathlib import Path
from deepatlas import locks
folder, begin, rounds, seed = Path(sys.argv[1]), *map(float, sys.argv[2:])
pauses = random.Random(seed)
racing = False

def pause(event, arguments):
    if racing and event in ("open", "os.rename", "os.remove") and pauses.random() < 0.2:
        time.sleep(0.004 * pauses.random())

sys.addaudithook(pause)
won, kept = [], []
for i in range(int(rounds)):
    time.sleep(max(0.0, begin + 0.03 * i - time.time()))
    lock = locks.Lock(folder / str(i) / "run.lock")
    racing = True
    try:
        lock.acquire()
        won.append(i)
        kept.append(lock)
    except locks.Held:
        pass
    racing = False
print(json.dumps(won), flush=True)
sys.stdin.read()
for lock in kept:
    lock.check()
    lock.release()
"""


@pytest.fixture
def gone():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("left_by", ["a dead process", "a silent machine", "nobody"])
def test_of_those_that_come_at_once_one_gets_the_lock(tmp_path, gone, left_by):
    rounds = 100 if left_by == "a dead process" else 30
    for i in range(rounds):
        if left_by == "a dead process":
            planted(tmp_path / str(i) / "run.lock", place=locks.place(), process=gone)
        elif left_by == "a silent machine":
            planted(tmp_path / str(i) / "run.lock", minutes=16)
    begin = time.time() + 1.5
    racers = [start(RACES, tmp_path, begin, rounds, seed) for seed in range(3)]
    won = []
    for racer in racers:
        won += json.loads(racer.stdout.readline())
    assert sorted(won) == list(range(rounds))
    for racer in racers:
        _, errors = racer.communicate("")
        assert racer.returncode == 0, errors
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


# Processes that take over a lock, the first killed before it opens, renames or removes its first
# file, the second before its second, until one lives; what each leaves is kept.
DIES = """
import os, shutil, signal, sys
from pathlib import Path
from deepatlas import locks
path = Path(sys.argv[1]).resolve()
folder = path.parent.parent
left = 0  # files until it dies; 0: it does not

def die(event, arguments):
    global left
    if left and event in ("open", "os.rename", "os.remove") and str(folder) in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
for moment in range(1, 40):
    shutil.copytree(folder / "planted", path.parent)
    child = os.fork()
    if child == 0:
        left = moment
        with locks.Lock(path):
            pass
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    path.parent.rename(folder / str(moment))
print(moment)
"""


@POSIX
def test_whenever_a_process_dies_that_takes_over_the_next_one_can(path, gone):
    """At whatever moment: the lock, or that on its change, is left then."""
    planted(path, place=locks.place(), process=gone)
    path.parent.rename(path.parent.parent / "planted")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIES, path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    moments = int(done.stdout)
    assert 10 < moments < 39
    for moment in range(1, moments):
        place = path.parent.parent / str(moment)
        lock = locks.Lock(place / "run.lock")
        try:
            lock.acquire()
        except locks.Held:  # it had no time to say who it was
            unknown = [file for file in place.iterdir() if file.stat().st_size == 0]
            assert unknown
            for file in place.iterdir():
                silent(file, 16)
            lock.acquire()
        lock.release()
        checkpoints.remove_left_parts(place)
        assert [file.name for file in place.iterdir()] == [], moment
