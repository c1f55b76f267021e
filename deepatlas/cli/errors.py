"""How a command ends that does not end well."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import typer

from ..checkpoints import Interrupted
from ..errors import UserError

shown = SimpleNamespace(tracebacks=False)  # set by the option --debug

# What the user can mend: by other words, other files, another learning rate.
OF_THE_USER = (UserError, OSError, FloatingPointError)


@contextmanager
def as_one_line() -> Iterator[None]:
    """A mistake of the user becomes one line; a bug, ours or a library's, keeps its traceback."""
    try:
        yield
    except OF_THE_USER as error:
        if shown.tracebacks:
            raise
        sys.exit(f"deepatlas: {error}")
    except torch.OutOfMemoryError:
        if shown.tracebacks:
            raise
        sys.exit(
            "deepatlas: the GPU has too little memory: lower batch_size, or take profile=class"
        )


@contextmanager
def stoppable() -> Iterator[None]:
    """A training that is stopped from outside ends the command with its sentence."""
    try:
        yield
    except Interrupted as stop:
        typer.echo(f"deepatlas: {stop}", err=True)
        raise typer.Exit(130) from stop
