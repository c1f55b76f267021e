"""Files that are never half-written, and a stop that never cuts a training step in half."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
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


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict:
    """What ``train`` saved; UserError if the file is damaged (or memory too short for it: PyTorch
    tells no more).
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, torch.OutOfMemoryError):  # nothing is wrong with the file
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({reason}); unless memory is short the file is damaged: "
            "remove it, and this regime is trained again"
        ) from error
    if not isinstance(state, dict) or not {"networks", "best", "of"} <= state.keys():
        raise UserError(
            f"{path}: is not a checkpoint of this kit: remove it, and this regime is trained again"
        )
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
