"""Where the runs of a sweep stand, as a table that changes: in the terminal, in a log, or in a
notebook.
"""

from __future__ import annotations

import html
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..checkpoints import read_json
from ..errors import UserError, printable
from ..parameters import Experiment
from ..trainings import RUN_LOCK

STATES = ("finished", "running", "failed", "waiting")


@dataclass
class Run:
    """A run of a sweep, and where it stands."""

    planned: Experiment
    experiment: Experiment  # the planned one, or with a smaller batch
    folder: Path
    state: str = "waiting"  # then "running", "finished" or "failed"
    trained: int = 0  # regimes
    note: str = ""
    output: str = ""  # of a failed one: what it said last
    killed: bool = False


Show = Callable[[Sequence[Run], str], None]


def look_at(runs: Sequence[Run]) -> None:
    """Note which of the runs that have not ended are being worked on, and how far they are: all
    workers write to one disk.
    """
    for run in runs:
        if run.state == "waiting" and (run.folder / RUN_LOCK).exists():
            run.state = "running"
        if run.state == "running":
            run.trained = _trained(run.folder)


def _trained(folder: Path) -> int:
    """Regimes of a run that have ended."""
    try:
        record = read_json(folder / "run.json")
    except (OSError, UserError):  # not begun, or damaged: its process tells
        return 0
    steps = record.get("steps") if isinstance(record, dict) else None
    return len(steps) if isinstance(steps, dict) else 0


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each run: what it is, its state, the regimes that it has trained, and a note."""
    rows = []
    for run in runs:
        rows.append(
            {
                "run": run.folder.name,
                "state": run.state,
                "regimes": f"{run.trained} of {len(run.experiment.table)}",
                "note": run.note,
            }
        )
    return pd.DataFrame(rows, columns=["run", "state", "regimes", "note"])


def summary(runs: Sequence[Run], where: str) -> str:
    """As in "24 runs, 2 at once: 3 finished, 2 running, 19 waiting"."""
    counts = Counter(run.state for run in runs)
    told = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    return f"{len(runs)} runs, {where}: {', '.join(told)}"


def shown_here() -> Show:
    """What shows the runs where this process speaks to: a table in a notebook or on a terminal that
    is drawn again and again, or a line in a log for each change.
    """
    if "IPython" in sys.modules:
        from IPython import get_ipython

        shell = get_ipython()
        if shell is not None and hasattr(shell, "kernel"):
            return _Notebook()
    return _Terminal() if sys.stdout.isatty() else _Log()


class _Notebook:
    """One output that is replaced."""

    def __init__(self) -> None:
        self.output = None

    def __call__(self, runs: Sequence[Run], where: str) -> None:
        from IPython.display import display

        shown = table(runs).style.hide(axis="index").format(escape="html")
        shown.set_caption(html.escape(summary(runs, where)))
        if self.output is None:
            self.output = display(shown, display_id=True)
        else:
            self.output.update(shown)


class _Terminal:
    """Lines that are written over: what runs, what has failed, and how many wait or have ended."""

    def __init__(self) -> None:
        self.lines = 0
        self.began = time.monotonic()

    def __call__(self, runs: Sequence[Run], where: str) -> None:
        size = shutil.get_terminal_size()
        told = [run for run in runs if run.state in ("running", "failed")]
        told.sort(key=lambda run: run.state == "failed")  # where there is no room for all of them
        minutes = (time.monotonic() - self.began) / 60
        lines = [f"{summary(runs, where)}; {minutes:.0f} min"]
        if told:
            lines += table(told).to_string(index=False, header=False).splitlines()
        lines = lines[: max(1, size.lines - 2)]
        up = f"\x1b[{self.lines}A" * bool(self.lines)
        shown = [f"{printable(line)[: size.columns - 1]}\x1b[K" for line in lines]
        print(f"{up}\x1b[J" + "\n".join(shown), flush=True)
        self.lines = len(lines)


class _Log:
    """A line for each run whose state has changed."""

    def __init__(self) -> None:
        self.before: dict[int, tuple[str, str]] = {}

    def __call__(self, runs: Sequence[Run], where: str) -> None:
        for number, run in enumerate(runs, 1):
            now = (run.state, run.note)
            before = self.before.get(number, ("waiting", ""))
            self.before[number] = now
            if now != before:
                note = f" ({run.note})" if run.note else ""
                place = f"experiment {number} of {len(runs)}: {run.folder.name}"
                print(printable(f"{place}: {run.state}{note}"), flush=True)
