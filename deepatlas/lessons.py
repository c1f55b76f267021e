"""The lessons as files: run from top to bottom, and what that costs, as it stands in the header of
each.
"""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
import torch
from nbformat import NotebookNode

from . import reporting
from .checkpoints import write_atomically
from .experiments import PROJECT

NOTEBOOKS = PROJECT / "notebooks"
COSTS = PROJECT / "tutorials_data" / "lessons.csv"
HEADER = re.compile(r"(\*\*Time:\*\* [^.;]*? to read(?: and to try)?, )(.*?)( of memory)")


def paths() -> list[Path]:
    """The notebooks of the series, in order."""
    return sorted(NOTEBOOKS.glob("0*.ipynb"))


def execute(path: Path, parameters: Mapping[str, object], **environment: str) -> NotebookNode:
    """The notebook with its outputs, run with ``parameters`` by somebody who has not answered
    anything before.

    Raises ValueError naming the lesson and the cell if a cell stops.
    """
    with tempfile.TemporaryDirectory() as nobody:
        return reporting.execute(
            path, parameters, DEEPATLAS_ANSWERS=f"{nobody}/answers.json", **environment
        )


def measure(path: Path) -> dict[str, object]:
    """What a lesson costs here: seconds from an empty folder of runs and again, and the most memory
    of its kernel.
    """
    with tempfile.TemporaryDirectory() as empty:
        asked = Path(empty) / path.name
        lesson = nbformat.read(path, 4)
        lesson.cells.append(
            nbformat.v4.new_code_cell(
                "from deepatlas import machine\nmachine.peak_memory_gib('cpu')"
            )
        )
        nbformat.write(lesson, asked)
        seconds, memory = zip(*(_timed(asked, empty) for _ in range(2)), strict=True)
    return {
        "lesson": path.stem,
        "code": code_hash(path),
        "cores": torch.get_num_threads(),
        "first_seconds": round(seconds[0], 1),
        "again_seconds": round(seconds[1], 1),
        "memory_gib": max(memory),
    }


def _timed(path: Path, runs: str) -> tuple[float, float]:
    start = time.perf_counter()
    executed = execute(path, {"display": "static"}, DEEPATLAS_RUNS=runs)
    return time.perf_counter() - start, float(executed.cells[-1].outputs[-1].data["text/plain"])


def code_hash(path: Path) -> str:
    """Of the code of a lesson: when it changes, the lesson is to be measured again."""
    code = "\0".join(
        cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"
    )
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def cost(row: Mapping[str, object]) -> str:
    """The words of the header for a row of ``COSTS``."""
    first, again = (float(row[f"{which}_seconds"]) for which in ("first", "again"))
    words = f"{_duration(first)} to run on {row['cores']} processor cores"
    if again < first / 2:
        words += f" the first time, {_duration(again)} afterwards"
    return f"{words}; {row['memory_gib']:.1f} GiB"


def _duration(seconds: float) -> str:
    """In steps of five seconds, or of one minute, upwards."""
    return (
        f"{5 * math.ceil(seconds / 5)} seconds"
        if seconds <= 90
        else f"{math.ceil(seconds / 60)} minutes"
    )


def write_header(path: Path, row: Mapping[str, object]) -> None:
    """Put what a lesson costs into its header; ValueError if it has none."""
    text, count = HEADER.subn(
        lambda found: found[1] + cost(row) + found[3], path.read_text(encoding="utf-8")
    )
    if count != 1:
        raise ValueError(
            f"{path}: one sentence '**Time:** ... to read, ... of memory' was wanted, found {count}"
        )
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
