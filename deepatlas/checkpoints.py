"""Files that are never half-written, and a stop that never cuts a training step in half."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


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


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict:
    """What ``train`` saved; ValueError if the file is damaged (or memory too short for it: PyTorch
    tells no more).
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, torch.OutOfMemoryError):  # nothing is wrong with the file
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ValueError(
            f"{path}: cannot be read ({str(error).partition(chr(10))[0] or type(error).__name__}); unless "
            "memory is short the file is damaged: remove it, and this regime is trained again"
        ) from error
    if not isinstance(state, dict) or not {"networks", "best", "of"} <= state.keys():
        raise ValueError(
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
