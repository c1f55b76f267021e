"""Where things are: what comes with the kit, and what a user keeps.

The lessons and the data that the project brings along stand beside the package in a checkout, and
inside it in an installed wheel. No other file knows which.
"""

from __future__ import annotations

import os
from pathlib import Path

import pooch

from .errors import UserError

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
FIRST_RESULTS = RESULTS / "first"  # those of the first protocol, which the lessons quote
WEIGHTS = TUTORIALS_DATA / "weights"
LESSON_WEIGHTS = WEIGHTS / "lessons"  # a file for each regime that a lesson shows
EXPERIMENT = NOTEBOOKS / "experiment.ipynb"  # the notebook that papermill parameterises
README = _SHARED / "README.md"

# --- what a user keeps ----------------------------------------------------------------------------


def home() -> Path:
    """Where a user's own things go, unless a variable says otherwise: checkout or ~/deepatlas."""
    return _BESIDE if CHECKOUT else Path.home() / "deepatlas"


VARIABLES = ("DEEPATLAS_RUNS", "DEEPATLAS_ANSWERS", "DEEPATLAS_CACHE", "DEEPATLAS_DATA")


def settle() -> None:
    """Make the paths in ``VARIABLES`` absolute, seen from the current folder, for this process and
    those that it starts: the command does so first.
    """
    for variable in VARIABLES:
        path = _expanded(variable)
        if path is not None:
            os.environ[variable] = os.path.abspath(path)


def _expanded(variable: str) -> Path | None:
    """The path that an environment variable names, ~ written out; None if it is not set."""
    named = os.environ.get(variable)
    if not named:
        return None
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise UserError(f"{variable}={named}: {error}: write the path without ~") from error


def _named_by(variable: str) -> Path | None:
    """The absolute path that an environment variable names, or None; UserError if it is relative: a
    notebook, which runs in its own folder, would find another than the command.
    """
    path = _expanded(variable)
    if path is not None and not path.is_absolute():
        raise UserError(
            f"{variable} must be an absolute path, got {str(path)!r}: write "
            f"{variable}={Path.cwd() / path} if that is the one that was meant"
        )
    return path


def runs_folder() -> Path:
    """Where runs are kept: ``DEEPATLAS_RUNS``, or ``runs`` in ``home``."""
    return _named_by("DEEPATLAS_RUNS") or home() / "runs"


def answers_file() -> Path:
    """Where answers are kept: ``DEEPATLAS_ANSWERS``, or ``answers.json`` in ``home``."""
    return _named_by("DEEPATLAS_ANSWERS") or home() / "answers.json"


def cache_folder() -> Path:
    """Where downloads are kept: ``DEEPATLAS_CACHE``, or the user's cache."""
    return _named_by("DEEPATLAS_CACHE") or Path(pooch.os_cache("deepatlas"))


def data_folder() -> Path | None:
    """The folder of scans that ``DEEPATLAS_DATA`` names, or None."""
    return _named_by("DEEPATLAS_DATA")
