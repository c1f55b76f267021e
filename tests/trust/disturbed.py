"""The command, disturbed once: ``python disturbed.py KIND MOMENT LOG WORDS...``.

KIND says what happens at the turn or write of number MOMENT, see ``DISTURBANCES``; LOG gets a line
for each turn, the folder of its regime and its step, before it is taken.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from deepatlas import cli, training


def killed(*_: object) -> None:
    """As by a scheduler that is out of patience, or a machine that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_a_write(source: os.PathLike, *_: object) -> None:
    """When half of a file is written: a new one, since ``source`` may be another name of a file
    that is whole.
    """
    path = Path(source)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    killed()


def terminated(*_: object) -> None:
    """As by a scheduler that lets a run save itself."""
    os.kill(os.getpid(), signal.SIGTERM)


def full_disk(*_: object) -> None:
    """No room for the file that is just being written."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def bug(*_: object) -> None:
    """A mistake of ours in a step."""
    raise RuntimeError("planted by a test")


def no_memory(*_: object) -> None:
    """An allocation that fails."""
    raise MemoryError("planted by a test")


# name -> (what it strikes, what happens there)
DISTURBANCES: dict[str, tuple[str, Callable]] = {
    "SIGKILL": ("turn", killed),
    "SIGKILL while writing": ("write", killed_in_a_write),
    "SIGTERM": ("turn", terminated),
    "full disk": ("write", full_disk),
    "exception": ("turn", bug),
    "no memory": ("turn", no_memory),
    "none": ("turn", lambda *_: None),
}


def at(moment: int, happens: Callable, original: Callable) -> Callable:
    """``original``, before whose call of number ``moment`` something happens."""
    calls = itertools.count()

    def disturbed(*arguments, **options):
        if next(calls) == moment:
            happens(*arguments)
        return original(*arguments, **options)

    return disturbed


def logged(take_turn: Callable, log: Path) -> Callable:
    """``Trainer.take_turn``, which first writes which turn of which regime it is."""

    def turn(trainer):
        with log.open("a") as file:
            file.write(f"{trainer.regime.title}|{'+'.join(trainer.regime.trains)}|{trainer.step}\n")
        return take_turn(trainer)

    return turn


def main(kind: str, moment: str, log: str, *words: str) -> None:
    """See above."""
    struck, happens = DISTURBANCES[kind]
    trainer = training.Trainer
    trainer.take_turn = logged(trainer.take_turn, Path(log))
    if struck == "turn":
        trainer.take_turn = at(int(moment), happens, trainer.take_turn)
    else:
        os.replace = at(int(moment), happens, os.replace)
    sys.argv = ["deepatlas", *words]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
