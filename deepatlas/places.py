"""Where things are: what comes with the kit, and what a user keeps.

The lessons and the data that the project brings along stand beside the package in a checkout, and
inside it in an installed wheel. No other file knows which.
"""

from __future__ import annotations

import os
from pathlib import Path

import pooch

PACKAGE = Path(__file__).resolve().parent
_BESIDE = PACKAGE.parent
CHECKOUT = (_BESIDE / "pyproject.toml").is_file() and (_BESIDE / "tutorials_data").is_dir()
_SHARED = _BESIDE if CHECKOUT else PACKAGE / "shared"

# --- what comes with the kit; read, never written by a wheel's user -------------------------------

NOTEBOOKS = _SHARED / "notebooks"
TUTORIALS_DATA = _SHARED / "tutorials_data"
MANIFEST = TUTORIALS_DATA / "datasets.toml"  # every data set the kit knows
LESSON_COSTS = TUTORIALS_DATA / "lessons.csv"
RESULTS = TUTORIALS_DATA / "results"  # the evidence: tables, and the records of their runs
WEIGHTS = TUTORIALS_DATA / "weights"
EXPERIMENT = NOTEBOOKS / "experiment.ipynb"  # the notebook that papermill parameterises
README = _SHARED / "README.md"

# --- what a user keeps ----------------------------------------------------------------------------


def home() -> Path:
    """Where a user's own things go, unless a variable says otherwise: checkout or ~/deepatlas."""
    return _BESIDE if CHECKOUT else Path.home() / "deepatlas"


def _named_by(variable: str, otherwise: Path) -> Path:
    return Path(os.environ.get(variable) or otherwise).expanduser()


def runs_folder() -> Path:
    """Where runs are kept: ``DEEPATLAS_RUNS``, or ``runs`` in ``home``."""
    return _named_by("DEEPATLAS_RUNS", home() / "runs")


def answers_file() -> Path:
    """Where answers are kept: ``DEEPATLAS_ANSWERS``, or ``answers.json`` in ``home``."""
    return _named_by("DEEPATLAS_ANSWERS", home() / "answers.json")


def cache_folder() -> Path:
    """Where downloads are kept: ``DEEPATLAS_CACHE``, or the user's cache."""
    return _named_by("DEEPATLAS_CACHE", Path(pooch.os_cache("deepatlas")))


def data_folder() -> Path | None:
    """The folder of scans that ``DEEPATLAS_DATA`` names, or None."""
    named = os.environ.get("DEEPATLAS_DATA")
    return Path(named).expanduser() if named else None
