"""Files that are never half-written, read with their own words, and swept up behind a kill."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from deepatlas import checkpoints, locks
from deepatlas.errors import UserError

import numpy as np
import pandas as pd
import pytest
import torch

TENSORS = {"a": torch.arange(1000.0), "text": "words"}


# --- what killed processes leave ------------------------------------------------------------------


def part(path, process, place=None, hours=0, random=".0123abcd"):
    """A half-written file such as a killed ``process`` leaves, so many hours ago."""
    left = path.with_name(f"{path.name}.{place or locks.place()}.{process}{random}.part")
    left.write_text("half")
    os.utime(left, (time.time() - 3600 * hours,) * 2)
    return left


@pytest.fixture
def gone():
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_removed_when_its_file_is_written(tmp_path, gone):
    path = tmp_path / "run.json"
    left = [part(path, gone), part(path, gone, random="")]  # as earlier versions named it, too
    another = part(tmp_path / "scores.csv", gone)
    checkpoints.write_text("new", path)
    assert not any(file.exists() for file in left)
    assert another.exists() and path.read_text() == "new"
    checkpoints.remove_left_parts(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_what_a_live_process_writes_stays(tmp_path):
    path = tmp_path / "run.json"
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        time.sleep(0.1)
        left = part(path, other.pid)
        checkpoints.write_text("new", path)
        assert left.read_text() == "half"
    finally:
        other.kill()
        other.wait()
    checkpoints.write_text("newer", path)
    assert not left.exists()


def test_what_is_being_written_is_named_by_place_process_and_chance(tmp_path):
    """Two containers may have the same name, and the same numbers of processes."""
    path = tmp_path / "run.json"
    seen = []
    checkpoints.write_atomically(path, lambda file: (seen.append(file), file.write_text("new")))
    found = checkpoints.PART.fullmatch(seen[0].name)
    assert found["name"] == "run.json" and found["place"] == locks.place()
    assert int(found["process"]) == os.getpid() and re.fullmatch("[0-9a-f]{8}", found["id"])
    assert not checkpoints.is_left(part(path, os.getpid()))
    code = "from pathlib import Path; from deepatlas import locks; print(locks.part_of(Path('a')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found["id"] not in done.stdout


def test_a_number_that_another_process_has_now_protects_nothing(tmp_path):
    """This process began after the file was left: it is not the one that left it."""
    left = part(tmp_path / "run.json", os.getppid(), hours=24 * 365 * 20)
    checkpoints.remove_left_parts(tmp_path)
    assert not left.exists()


def test_another_machines_file_stays_for_a_day(tmp_path, gone):
    young = part(tmp_path / "a", gone, place="0" * 8, hours=23)
    old = part(tmp_path / "b", gone, place="0" * 8, hours=25)
    of_an_earlier_version = tmp_path / f"c.{gone}.part"
    of_an_earlier_version.write_text("half")
    of_the_user = tmp_path / "film.part"
    of_the_user.write_text("half")
    os.utime(of_the_user, (0, 0))
    checkpoints.remove_left_parts(tmp_path)
    assert young.exists() and of_an_earlier_version.exists() and of_the_user.exists()
    assert not old.exists()


# --- a full disk ----------------------------------------------------------------------------------

FULL = "could not be written, no space is left for it .* stays as it was: free some disk space"


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")

    def full(file):
        file.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with pytest.raises(UserError, match=f"scores.csv: {FULL}"):
        checkpoints.write_atomically(path, full)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")
def test_tensors_that_a_disk_cannot_hold_are_said_so(tmp_path):
    """PyTorch's own writer only says that it failed."""
    path = tmp_path / "checkpoint.pt"
    checkpoints.write_tensors({"a": 1}, path)
    code = (
        "import resource, sys, torch; from pathlib import Path; from deepatlas import checkpoints\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "checkpoints.write_tensors({'a': torch.arange(1000.0)}, Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "UserError" in done.stderr and "no space is left for it (File too large)" in done.stderr
    assert checkpoints.load_tensors(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_another_error_of_the_disk_keeps_its_own_words(tmp_path):
    def forbidden(file):
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        checkpoints.write_atomically(tmp_path / "run.json", forbidden)


# --- tensors --------------------------------------------------------------------------------------


def test_a_bit_of_a_tensor_that_turned_over_is_told(tmp_path):
    path = tmp_path / "tensors.pt"
    checkpoints.write_tensors(TENSORS, path)
    content = bytearray(path.read_bytes())
    content[content.index(TENSORS["a"].numpy().tobytes()) + 2002] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["a"], TENSORS["a"])
    with pytest.raises(UserError, match=r"tensors\.pt: cannot be read \(the checksum of .* wrong"):
        checkpoints.load_tensors(path)


def test_no_bit_of_an_archives_own_lines_stops_with_another_error(tmp_path):
    """The list at its end, which says where everything begins."""
    path = tmp_path / "tensors.pt"
    checkpoints.write_tensors({"a": torch.arange(4.0)}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    for bit in range(8 * start, 8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found = checkpoints.load_tensors(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert torch.equal(found["a"], torch.arange(4.0)) and len(found) == 1


# --- tables ---------------------------------------------------------------------------------------

NAMES = ["NA", "null", "nan", "None", "", "007", "1e5", " x ", "a,b", 'a "b"', "a\nb", "#", "é"]


def test_names_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "table.csv"
    numbers = np.where(np.arange(len(NAMES)) % 3 == 0, np.arange(len(NAMES)) / 7, np.nan)
    checkpoints.write_csv(pd.DataFrame({"name": NAMES, "number": numbers}), path)
    table = checkpoints.read_csv(path, text=("name", "elsewhere"), required=("name", "number"))
    assert table["name"].tolist() == NAMES
    np.testing.assert_allclose(table["number"], numbers, rtol=1e-5)


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "not a valid table"),
        (bytes(200), "not the table that was wanted, it has no column name, number"),
        (b"name,number\nNA,1\nnull", r"not a valid table \(1 of 2 cells in line 3\)"),
        (b"name,number\nNA,1,2\n", r"not a valid table \(3 of 2 cells in line 2\)"),
        (b"name,number\nNA,one\n", "not every value of its column 'number' is a number"),
        (b"name,name\nNA,one\n", "its columns are not told apart by their names"),
        (b'name,number\n"NA,1\n', "not a valid table"),
        (b"name,number\nN\xe9A,1\n", "not a valid table"),
        (b"name,other\nNA,1\n", "it has no column number, only name, other"),
    ],
)
def test_what_is_no_table_is_told_in_a_sentence(tmp_path, content, text):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"table\.csv: .*{text}") as caught:
        checkpoints.read_csv(path, text=("name",), required=("name", "number"))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_mark_at_the_beginning_that_editors_write_is_no_name(tmp_path):
    (tmp_path / "table.csv").write_bytes("\ufeffname,number\r\nNA,1\r\n".encode())
    table = checkpoints.read_csv(tmp_path / "table.csv", ("name",), ("name", "number"))
    assert table.to_dict("records") == [{"name": "NA", "number": 1}]


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", bytes(50), b"'a'"])
def test_what_is_no_json_is_told_in_a_sentence(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        checkpoints.read_json(tmp_path / "a.json")


# --- a terminal that is closed --------------------------------------------------------------------

TRAINS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from deepatlas import checkpoints
with checkpoints.stop_requests() as stopped:
    print("ready", flush=True)
    for _ in range(200):
        time.sleep(0.05)
        if stopped:
            break
    # in here, as a checkpoint is saved: a shell that ends sends the signal again
    open(sys.argv[2], "w").write(f"{set(map(int, stopped))}")
"""


@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="Windows has no terminals of this kind")
def test_a_closed_terminal_is_a_request_to_stop(tmp_path):
    said = tmp_path / "said"
    arguments = [sys.executable, "-c", TRAINS, str(Path(__file__).parent), str(said)]
    process, terminal = os.forkpty()
    if process == 0:
        os.execv(sys.executable, arguments)
    shown = b""
    while b"ready\r\n" not in shown:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    os.waitpid(process, 0)
    assert said.read_text() == f"{{{int(signal.SIGHUP)}}}"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")
def test_what_was_started_with_nohup_goes_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with checkpoints.stop_requests() as stopped:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopped == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_empty_line_at_the_end_of_a_table_is_none(tmp_path):
    """Editors add one."""
    path = tmp_path / "a.csv"
    path.write_text("name,number\nNA,1\n\n")
    assert checkpoints.read_csv(path, text=("name",)).values.tolist() == [["NA", 1]]
