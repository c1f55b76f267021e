"""Rows of rivals on disk: what was scored is found again, and never scored twice.

A file has a row for each subject that a rival was scored on, in the columns of ``subjects.csv``,
with what is told of experiments beside. It is written whole or not at all, and by one process at a
time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from deepatlas.checkpoints import read_csv, write_csv
from deepatlas.locks import Lock

import pandas as pd

# as in subjects.csv
FIRST = ["run", "task", "regime", "subject", "dice"]
# what tells the rows of one rival and experiment from others
KEY = ["regime", "dataset", "profile", "dims", "labelled", "seed", "label_seed", "part"]
MEASURED = [
    "nsd",
    "folds_percent",
    "endpoint_voxels",
    "endpoint_boundary_voxels",
    "seconds",
    "training_seconds",
]
TOLD = ["settings", "program", "processor"]
COLUMNS = [*FIRST, *MEASURED, *[name for name in KEY if name not in FIRST], *TOLD]
TEXT = ("run", "task", "regime", "subject", "dataset", "profile", "part", *TOLD)


@dataclass(frozen=True)
class Run:
    """A rival, and the experiment in whose place it was scored."""

    regime: str  # the rival's name
    dataset: str
    profile: str
    dims: int
    labelled: int  # training scans whose labels it sees
    seed: int
    label_seed: int
    part: str  # of the cohort: "test" or "validation"

    @property
    def name(self) -> str:
        """For readers, as in "oasis35-class-2d-N1-seed0"."""
        name = f"{self.dataset}-{self.profile}-{self.dims}d-N{self.labelled}-seed{self.seed}"
        if self.label_seed != self.seed:
            name += f"-labels{self.label_seed}"
        return name


def read(path: Path) -> pd.DataFrame:
    """The rows of a file; none if there is no file. UserError if it is another table."""
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    return read_csv(path, TEXT, COLUMNS)


def rows_of(run: Run, path: Path) -> pd.DataFrame:
    """The rows of ``run`` in the file."""
    rows = read(path)
    return rows[_of(run, rows)]


def _of(run: Run, rows: pd.DataFrame) -> pd.Series:
    """Which rows are those of ``run``."""
    same = pd.Series(True, index=rows.index)
    for name, value in asdict(run).items():
        same &= rows[name] == value
    return same


def add(run: Run, rows: pd.DataFrame, path: Path) -> None:
    """Put the rows of ``run`` into the file, in the place of earlier ones; others stay.

    Whoever else adds rows just now is waited for.
    """
    told = {name: value for name, value in asdict(run).items() if name not in FIRST}
    rows = rows.assign(run=run.name, **told)
    for name in COLUMNS:
        if name not in rows:
            rows[name] = float("nan")
    lock = Lock(path.parent / f"{path.name}.lock")
    lock.wait(0.2, quiet=True)
    try:
        earlier = read(path)
        kept = earlier[~_of(run, earlier)]
        parts = [part for part in (kept, rows[COLUMNS]) if not part.empty]
        table = pd.concat(parts).sort_values([*KEY, "subject"], kind="stable")
        write_csv(table, path)
    finally:
        lock.release()


# --- settings as text -----------------------------------------------------------------------------


def as_text(settings: Mapping[str, object]) -> str:
    """Settings in a cell of a table, the same text for the same settings."""
    return json.dumps(dict(settings), sort_keys=True)


def as_settings(text: str) -> dict[str, object]:
    """The settings that ``as_text`` wrote."""
    return json.loads(text)
