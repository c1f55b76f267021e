"""Files that are never half-written, files that are read safely, and a stop that never cuts a
training step in half.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import threading
import tomllib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from . import locks
from .errors import DISK_FULL, UserError, printable


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside, saved its checkpoint, and goes on from there when called
    again.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the sentence, which is no mistake's."""
        return [str(self)]


class OutOfTime(Interrupted):
    """The time that was given to this call is over; what was trained is saved, as when stopped."""


# --- writing --------------------------------------------------------------------------------------

DAY = 24 * 3600  # seconds
# What locks.part_of makes of a name; earlier versions knew no random id, and before that no place.
PART = re.compile(
    r"(?P<name>.+?)(\.(?P<place>[0-9a-f]{8}))?\.(?P<process>\d+)(\.(?P<id>[0-9a-f]{8}))?\.part"
)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write(file)`` fill a file such that ``path`` is at any moment either the old file or
    the new one.

    UserError, a sentence that says so, if the disk is full, or if ``path`` is a folder. locks.Lost
    if this process was to be alone in a folder that ``path`` is in, and is not any more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, and the file to write was wanted: name one in it")
    remove_left_parts(path.parent, path.name)
    # others may write the same file, on this machine or on another that shares the disk
    temporary = locks.part_of(path)
    try:
        write(temporary)
        locks.ask(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"{path}: could not be written, no space is left for it ({error.strerror}); what was "
            "there before stays as it was: free some disk space, and start again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_left_parts(folder: Path, name: str | None = None) -> None:
    """Remove what processes that were killed have left of files in ``folder``: of the file
    ``name``, or of any.

    A file stays that a process of this machine may be writing, or for a day one of another machine.
    """
    for path in folder.glob("*.part"):
        found = PART.fullmatch(path.name)
        if found is None or name not in (None, found["name"]):
            continue
        try:
            if is_left(path):
                path.unlink()
        except OSError:  # another process was quicker, or the folder cannot be written
            continue


def is_left(part: Path) -> bool:
    """Has the process ended whose ``part_of`` a file is? One of another machine, after a day."""
    found = PART.fullmatch(part.name)
    if found is None:
        return False
    age = locks.age_of(part)
    here = found["place"] == locks.place()
    alive = here and locks.runs_for(int(found["process"]), age)
    return not alive and (here or age > DAY)


def write_text(text: str, path: Path) -> None:
    """``text`` in UTF-8; never half-written."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(values: Mapping, path: Path) -> None:
    """A JSON file, indented; never half-written."""
    write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", path)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A table, numbers with six digits; never half-written. Texts that a spreadsheet would compute
    are ``guarded``; ``read_csv`` gives them back as they were.
    """
    table = frame.copy()
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column):
            continue
        cells = [guarded(cell) if isinstance(cell, str) else cell for cell in column]
        table[name] = pd.Series(cells, column.index, dtype=object)
    write_atomically(path, lambda file: table.to_csv(file, index=False, float_format="%.6g"))


# How a text begins that a spreadsheet computes, in letters of full width, too. Where the semicolon
# stands between cells, as in much of Europe, it computes what follows one, or a line break.
BORDER, FORMULA = r"^|[;\t\r\n]", r"\s*[=+\-@＝＋－＠]"


def guarded(text: str) -> str:
    """``text`` with an apostrophe before what a spreadsheet would compute: "=1" becomes "'=1"."""
    return re.sub(f"({BORDER})({FORMULA})", r"\1'\2", text)


def _unguarded(text: str) -> str:
    return re.sub(f"({BORDER})'({FORMULA})", r"\1\2", text)


def write_tensors(values: object, path: Path) -> None:
    """Tensors, numbers and texts in dicts and lists, for ``load_tensors``; never half-written.

    Through memory: of a full disk PyTorch's own writer says only that something failed.
    """
    content = io.BytesIO()
    torch.save(values, content)
    write_atomically(path, lambda file: file.write_bytes(content.getbuffer()))


def write_checkpoint(state: Mapping, path: Path) -> None:
    """``state`` for ``last_checkpoint``; the one before stays beside it, in case this one is
    damaged.
    """
    if path.is_file():
        write_atomically(one_before(path), partial(link, path))
    write_tensors(state, path)


def one_before(path: Path) -> Path:
    """Where the checkpoint stays that was written before the one at ``path``."""
    return path.with_name(f"{path.stem}.before{path.suffix}")


def link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# --- reading --------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """What a JSON file holds; UserError, a sentence that names the file, if it is not valid.

    A byte-order mark, which some editors write, is no mistake.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({_briefly(str(error))})") from error


def read_csv(
    path: Path,
    text: Collection[str] = (),
    required: Collection[str] = (),
    separator: str = ",",
    *,
    own: bool = True,
) -> pd.DataFrame:
    """A table; the columns ``text`` are strings as they stand: a structure may be named "NA".

    In all other columns an empty cell is NaN. ``own``: the table is one of ``write_csv``, whose
    apostrophes are taken away. UserError, a sentence that names the file, if it is damaged, or if a
    column of ``required`` is not there, or neither text nor numbers.
    """
    try:
        names = _columns(path, separator)
        missing = {name: [""] for name in names if name not in text}
        table = pd.read_csv(
            path,
            sep=separator,
            encoding="utf-8-sig",
            dtype={name: str for name in names if name in text},
            keep_default_na=False,
            na_values=missing,
        )
    except (ValueError, csv.Error) as error:  # pandas' own errors are of the first kind
        raise UserError(f"{path}: not a valid table ({_briefly(str(error))})") from error
    if absent := [name for name in required if name not in names]:
        raise UserError(
            f"{path}: not the table that was wanted, it has no column {', '.join(absent)}, only "
            f"{_briefly(', '.join(names))}"
        )
    for name in names:
        if own and name in text:
            table[name] = table[name].map(_unguarded)
    for name in required:
        if name in text:
            continue
        if table.empty:
            table[name] = table[name].astype(float)
        elif not pd.api.types.is_numeric_dtype(table[name]):
            raise UserError(f"{path}: damaged, not every value of its column {name!r} is a number")
    return table


def _columns(path: Path, separator: str) -> list[str]:
    """The names in a table's first line; ValueError unless every line has as many cells.

    Where a line was cut, pandas fills it up, and says nothing.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = csv.reader(stream, strict=True, delimiter=separator)
        names = next(lines, [])
        for cells in lines:
            if cells and len(cells) != len(names):  # an empty line, as editors add one, is none
                raise ValueError(f"{len(cells)} of {len(names)} cells in line {lines.line_num}")
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"its columns are not told apart by their names: {', '.join(names)}")
    return names


MOST_DOTS = 1000  # in a line of TOML


def parsed_toml(text: str) -> dict[str, Any]:
    """What a text in TOML says; ValueError or RecursionError if it is not valid.

    Of a key of n parts, as a.b.c has three, Python keeps every beginning: n^2 / 2 words, for which
    a short file is enough to fill any memory.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise ValueError(f"more than {MOST_DOTS} dots in line {number}")
    return tomllib.loads(text)


def load_tensors(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors, on the CPU wherever they were, numbers and texts, never
    code; UserError, a sentence that names the file, if it is damaged.

    Such a file is a zip archive, and PyTorch does not look at the checksums that are in it. Nothing
    in it is compressed, so that it takes no more memory than it is long.
    """
    content = io.BytesIO(path.read_bytes())  # an OSError from here on is damage
    try:
        with zipfile.ZipFile(content) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
            if unpacked > len(content.getbuffer()):
                raise ValueError(f"it unpacks to {unpacked} bytes, more than it has itself")
            damaged = archive.testzip()
            # of what is marked as a folder PyTorch reads nothing, and leaves what memory holds
            folders = [item.filename for item in archive.infolist() if item.external_attr & 0x10]
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        if folders:
            raise ValueError(f"{folders[0]} is marked as a folder")
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except torch.OutOfMemoryError:  # nothing is wrong with the file
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        reason = _briefly(str(error)) or type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({reason}); unless memory is short the file is damaged"
        ) from error


def _briefly(text: str) -> str:
    """The first line of ``text``, at most 200 characters: what is damaged may hold anything."""
    line = printable(text.strip().partition("\n")[0])
    return line if len(line) <= 200 else f"{line[:200]}..."


def load_weights(net: nn.Module, weights: Any, path: Path) -> None:
    """Give ``net`` the ``weights`` that stood in the file ``path``; UserError if they are those of
    another network, as of another number of structures.
    """
    try:
        net.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        first, _, second = str(error).partition("\n")
        reason = second.strip().partition("\n")[0] or first
        raise UserError(
            f"{path}: its weights are not those of the network that was wanted ({reason})"
        ) from error


# What to do about a checkpoint that is none.
TRAINED_AGAIN = "remove it, and the same command trains this regime again"


def read_checkpoint(path: Path) -> dict:
    """What ``train`` saved, on the CPU: a tensor of an optimiser's that belongs there would make a
    GPU wait in every step. UserError if the file is damaged (or memory too short for it: PyTorch
    tells no more).
    """
    try:
        state = load_tensors(path)
    except UserError as error:
        raise UserError(f"{error}: {TRAINED_AGAIN}") from error
    if not isinstance(state, dict) or not {"best", "of"} <= state.keys():
        raise UserError(f"{path}: is not a checkpoint of this kit: {TRAINED_AGAIN}")
    return state


def last_checkpoint(path: Path) -> dict:
    """What ``write_checkpoint`` wrote last, or before that, if the last one is damaged: then that
    stands in its place. UserError if neither can be read.
    """
    try:
        return read_checkpoint(path)
    except UserError as error:
        before = one_before(path)
        if not before.is_file():
            raise
        try:
            state = read_checkpoint(before)
        except UserError:
            raise error from None
        os.replace(before, path)
        said = f"{path}: was damaged; it goes on from the checkpoint that was saved before it"
        tqdm.write(printable(said))
        return state


# --- stopping -------------------------------------------------------------------------------------


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C, a kernel interrupt or SIGTERM arrives, or the terminal is
    closed, so that a step is never cut in half.

    What was started with nohup goes on when its terminal is closed.
    """
    received: list[int] = []
    # only the main thread may handle signals
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    stopping = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        stopping.append(hangup)
    previous = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in stopping
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
