"""Files that are never half-written, files that are read safely, and a stop that never cuts a
training step in half.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from .errors import UserError


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside, saved its checkpoint, and goes on from there when called
    again.
    """


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write(file)`` fill a file such that ``path`` is at any moment either the old file or
    the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")  # others may write the same file
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """``text`` in UTF-8; never half-written."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(values: Mapping, path: Path) -> None:
    """A JSON file, indented; never half-written."""
    write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", path)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """A table, numbers with six digits; never half-written."""
    write_atomically(path, lambda file: frame.to_csv(file, index=False, float_format="%.6g"))


def read_json(path: Path) -> object:
    """What a JSON file holds; UserError, a sentence that names the file, if it is not valid.

    A byte-order mark, which some editors write, is no mistake.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def read_csv(path: Path, text: Collection[str] = ()) -> pd.DataFrame:
    """A table; the columns ``text`` are strings as they stand: a structure may be named "NA".

    In all other columns an empty cell is NaN. UserError, a sentence that names the file, if it is
    damaged.
    """
    try:
        names = pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns
        missing = {name: [""] for name in names if name not in text}
        return pd.read_csv(
            path,
            encoding="utf-8-sig",
            dtype={name: str for name in names if name in text},
            keep_default_na=False,
            na_values=missing,
        )
    except ValueError as error:  # pandas' own errors are of this kind
        raise UserError(f"{path}: not a valid table ({error})") from error


def load_tensors(path: Path, device: torch.device | str = "cpu") -> object:
    """What ``torch.save`` wrote: tensors, numbers and texts, never code; UserError, a sentence that
    names the file, if it is damaged.

    Such a file is a zip archive, and PyTorch does not look at the checksums that are in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, torch.OutOfMemoryError):  # nothing is wrong with the file
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({reason}); unless memory is short the file is damaged"
        ) from error


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict:
    """What ``train`` saved; UserError if the file is damaged (or memory too short for it: PyTorch
    tells no more).
    """
    again = "remove it, and this regime is trained again"
    try:
        state = load_tensors(path, device)
    except UserError as error:
        raise UserError(f"{error}: {again}") from error
    if not isinstance(state, dict) or not {"networks", "best", "of"} <= state.keys():
        raise UserError(f"{path}: is not a checkpoint of this kit: {again}")
    return state


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C, a kernel interrupt or SIGTERM arrives, so that a step is never
    cut in half.
    """
    received: list[int] = []
    # only the main thread may handle signals
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
