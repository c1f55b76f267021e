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
from typing import Any

import nbformat
import torch
from nbformat import NotebookNode

from . import notebooks
from .checkpoints import write_text
from .errors import UserError
from .places import NOTEBOOKS

HEADER = re.compile(r"(\*\*Time:\*\* [^.;]*? to read(?: and to try)?, )(.*?)( of memory)")
MEMORY_CELL = "from deepatlas import machine\nmachine.peak_memory_gib('cpu')"


def paths() -> list[Path]:
    """The notebooks of the series, in order."""
    return sorted(NOTEBOOKS.glob("0*.ipynb"))


def execute(path: Path, parameters: Mapping[str, object], **environment: str) -> NotebookNode:
    """The notebook with its outputs, run with ``parameters`` by somebody who has not answered
    anything before.

    Raises UserError naming the lesson and the cell if a cell stops.
    """
    with tempfile.TemporaryDirectory() as nobody:
        environment["DEEPATLAS_ANSWERS"] = f"{nobody}/answers.json"
        return notebooks.execute(path, parameters, None, **environment)


# --- what a lesson costs --------------------------------------------------------------------------


def measure(path: Path) -> dict[str, object]:
    """What a lesson costs here, a row of ``places.LESSON_COSTS``: seconds from an empty folder of
    runs and again, and the most memory of its kernel.
    """
    with tempfile.TemporaryDirectory() as empty:
        asked = Path(empty) / path.name  # the lesson, and at its end what memory it took
        lesson = nbformat.read(path, 4)
        lesson.cells.append(nbformat.v4.new_code_cell(MEMORY_CELL))
        nbformat.write(lesson, asked)
        first_seconds, first_memory = _timed(asked, empty)
        again_seconds, again_memory = _timed(asked, empty)
    return {
        "lesson": path.stem,
        "code": code_hash(path),
        "cores": torch.get_num_threads(),
        "first_seconds": round(first_seconds, 1),
        "again_seconds": round(again_seconds, 1),
        "memory_gib": max(first_memory, again_memory),
    }


def _timed(path: Path, runs: str) -> tuple[float, float]:
    """Seconds, and GiB of memory, with the folder ``runs`` as it is."""
    start = time.perf_counter()
    executed = execute(path, {"display": "static"}, DEEPATLAS_RUNS=runs)
    seconds = time.perf_counter() - start
    memory = executed.cells[-1].outputs[-1].data["text/plain"]
    return seconds, float(memory)


def code_hash(path: Path) -> str:
    """Of the code of a lesson: when it changes, the lesson is to be measured again."""
    cells = nbformat.read(path, 4).cells
    code = "\0".join(cell.source for cell in cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


# --- in its header --------------------------------------------------------------------------------


def cost(row: Mapping[str, Any]) -> str:
    """The words of the header for a row of ``places.LESSON_COSTS``."""
    first, again = float(row["first_seconds"]), float(row["again_seconds"])
    words = f"{_duration(first)} to run on {row['cores']} processor cores"
    if again < first / 2:
        words += f" the first time, {_duration(again)} afterwards"
    return f"{words}; {row['memory_gib']:.1f} GiB"


def _duration(seconds: float) -> str:
    """In steps of five seconds, or of one minute, upwards."""
    if seconds <= 90:
        return f"{5 * math.ceil(seconds / 5)} seconds"
    return f"{math.ceil(seconds / 60)} minutes"


def write_header(path: Path, row: Mapping[str, object]) -> None:
    """Put what a lesson costs into its header; UserError if it has none."""
    text = path.read_text(encoding="utf-8")
    text, count = HEADER.subn(lambda found: found[1] + cost(row) + found[3], text)
    if count != 1:
        raise UserError(
            f"{path}: one sentence '**Time:** ... to read, ... of memory' was wanted, found {count}"
        )
    write_text(text, path)
