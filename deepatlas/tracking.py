"""Trackers: programs that show a training as it goes, fed with the rows of its history.

``history.csv`` and the checkpoints stay the truth: what a tracker keeps is written anew from them
whenever a training is begun or gone on with, so that no step is there twice.
"""

from __future__ import annotations

import importlib.util
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from .errors import UserError, brief, meant

Watch = Callable[[Mapping[str, Any]], None]  # sees each row of a history


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Watch]:
    """Event files in ``folder``, a curve for each number of a row, over the steps of the training.

    The time of a step is what the training took, pauses left out: TensorBoard's relative axis.
    """
    from torch.utils.tensorboard import SummaryWriter  # here: it takes a second to load

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    began = time.time()
    # a TensorBoard that is looking on drops what it has from this step on
    writer = SummaryWriter(folder, purge_step=1, flush_secs=20)

    def watch(row: Mapping[str, Any]) -> None:
        for name, number in curves(row).items():
            writer.add_scalar(name, number, row["step"], walltime=began + row["seconds"])

    try:
        yield watch
    finally:
        writer.close()


@dataclass(frozen=True)
class Tracker:
    """A program that shows trainings."""

    package: str  # that writes what the program reads
    open: Callable[[Path], AbstractContextManager[Watch]]  # folder -> what sees each row


TRACKERS = {"tensorboard": Tracker("tensorboard", _tensorboard)}


def check(names: Collection[str]) -> None:
    """UserError now, not after a training, if a tracker is unknown or its package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"there is no tracker {brief(name)}{meant(name, TRACKERS)}")
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"to log for {name} the package {package} is wanted, not installed here: install "
                "it by pip, or log without: history.csv has the same rows"
            )


@contextmanager
def tracked(names: Collection[str], run: Path, key: str) -> Iterator[Watch | None]:
    """What the trackers ``names`` do with each row of the regime ``key`` of the run in that folder,
    to be given on as ``training.Settings(watch=...)``; None without any.

    It wants all rows, from the first step: those of before are written anew, into the folder
    RUN/TRACKER/KEY.
    """
    check(names)
    with ExitStack() as open_trackers:
        watches = []
        for name in names:
            tracker = TRACKERS[name].open(Path(run) / name / key)
            watches.append(open_trackers.enter_context(tracker))

        def watch(row: Mapping[str, object]) -> None:
            for of_tracker in watches:
                of_tracker(row)

        yield watch if watches else None


def catch_up(names: Collection[str], run: Path) -> None:
    """Show those of the trackers that know nothing of it the finished run in that folder, by its
    ``history.csv``.
    """
    from .checkpoints import read_csv  # here: `check` is asked before PyTorch is loaded

    check(names)
    unknowing = [name for name in names if not (Path(run) / name).is_dir()]
    if not unknowing:
        return
    history = read_csv(Path(run) / "history.csv", ("turn", "regime"), ("step", "turn", "regime"))
    for key, rows in history.groupby("regime", sort=False):
        if not key.isidentifier():  # a folder is named after it
            raise UserError(f"{run}: its history.csv is damaged, it names a regime {brief(key)}")
        with tracked(unknowing, run, key) as watch:
            for row in rows.drop(columns="regime").to_dict("records"):
                if watch is not None:
                    watch(row)


def curves(row: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a row of the history by the names of their curves: "reg/similarity" of a turn
    of the registration network, "validation/reg", "kept/reg" and "teacher/reg" of either.
    """
    found = {}
    for name, value in row.items():
        of_step = name in ("step", "turn", "seconds")
        if of_step or not isinstance(value, Real) or math.isnan(value):
            continue
        of_network = re.fullmatch(r"(validation|kept|teacher)_(seg|reg)", name)
        curve = "/".join(of_network.groups()) if of_network else f"{row['turn']}/{name}"
        found[curve] = float(value)
    return found
