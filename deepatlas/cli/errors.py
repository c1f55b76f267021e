"""How a command ends that does not end well."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import typer
from tqdm import tqdm

from ..errors import (
    CALL_AGAIN,
    DISK_FULL,
    NO_MEMORY,
    STOPPED,
    UserError,
    memory_is_short,
    shortened,
)

shown = SimpleNamespace(tracebacks=False)  # set by the option --debug

# What the user can mend: by other words, other files, another learning rate, more memory.
OF_THE_USER = (UserError, OSError, FloatingPointError, MemoryError)
LONGEST = 2000  # characters of a sentence
# What typer raises of words that it does not understand; it hands on no name of this class.
Misunderstood: Any = typer.BadParameter.__base__


@contextmanager
def as_one_line() -> Iterator[None]:
    """A mistake of the user becomes one line; a bug, ours or a library's, keeps its traceback. A
    warning, as of a file whose header tells of two places, is one line, too.

    Nothing is said if the reader of the output has gone (``deepatlas data | head -1``), or of
    Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            try:
                yield
            finally:
                _flush()
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Misunderstood as error:
        command = error.ctx.command_path if error.ctx else "deepatlas"
        line = f"{error.format_message().rstrip('.')}: see {command} --help"
        print(f"deepatlas: {shortened(line, LONGEST)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        sentence = told(error)
        if sentence is None:
            raise
        line = f"deepatlas: {sentence}"
        if not memory_is_short(error):
            sys.exit(line)
        print(line, file=sys.stderr)
        sys.exit(NO_MEMORY)


def told(error: Exception) -> str | None:
    """The one line that a mistake of the user is; None of a bug, and of all with ``--debug``."""
    if shown.tracebacks:
        return None
    if _memory_of_gpu_is_short(error):
        return "the GPU has too little memory: lower batch_size, or take profile=class"
    if memory_is_short(error) and not isinstance(error, MemoryError):
        error = MemoryError()
    if not isinstance(error, OF_THE_USER):
        return None
    return shortened(_sentence(error), LONGEST)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    # between the bars of progress, if there are any
    line = f"deepatlas: warning: {shortened(str(message), LONGEST)}"
    tqdm.write(line, file=sys.stderr)


def _flush() -> None:
    """Write what waits to be written; what cannot be is given up, or Python would complain of it
    at its end.
    """
    if sys.stdout is None:  # closed by who has called the command
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _sentence(error: BaseException) -> str:
    """What happened, and what to do."""
    if isinstance(error, MemoryError):
        what = f" ({error})" if str(error) else ""
        return (
            f"there is too little memory{what}: lower batch_size, take profile=class or dims=2, or "
            "close other programs"
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}no space is left on the disk: free some, and start again"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error) or type(error).__name__


def _memory_of_gpu_is_short(error: Exception) -> bool:
    """Is it PyTorch's error? Where PyTorch was not imported, nobody has raised it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


@contextmanager
def stoppable() -> Iterator[None]:
    """A training that is stopped, from outside or by its time, or that another process holds, ends
    the command with its sentence; by the exit code a queue knows whether to call it again.
    """
    from ..checkpoints import Interrupted, OutOfTime
    from ..locks import Held

    try:
        yield
    except (Interrupted, Held) as stop:
        typer.echo(f"deepatlas: {shortened(str(stop), LONGEST)}", err=True)
        later = isinstance(stop, (OutOfTime, Held))
        raise typer.Exit(CALL_AGAIN if later else STOPPED) from stop
