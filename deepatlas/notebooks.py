"""Notebooks executed from outside: papermill, and what a page made of one may ask for."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Until a kernel answers; papermill's own limit, a minute, is too short for a busy machine.
SECONDS_TO_START = 600

# Options of nbconvert's HTML exporter: a page asks no server for anything.
OFFLINE = {"mathjax_url": "", "require_js_url": "", "jquery_url": "", "mermaid_js_url": ""}


def execute(
    path: Path, parameters: Mapping[str, object], to: Path | None = None, **environment: str
) -> NotebookNode:
    """The notebook with its outputs, run with ``parameters`` in a kernel with these environment
    variables, which shares no files with kernels beside it.

    As far as it gets it is kept in the file ``to``. Raises UserError naming the file, and the cell
    if a cell stops.
    """
    import papermill  # here: a machine that only trains lacks it

    where = to or path
    with _private_folders() as private, _environment(environment | private):
        try:
            return papermill.execute_notebook(
                _literally(path),
                to and _literally(to),
                parameters=parameters,
                cwd=str(path.parent),
                start_timeout=SECONDS_TO_START,
            )
        except papermill.PapermillExecutionError as error:
            raise UserError(
                f"{where}: cell {error.cell_index} stopped ({error.ename}: {error.evalue})"
            ) from error
        except (RuntimeError, KeyError) as error:
            # of nbclient and jupyter_client, told by their words: others are bugs
            if not str(error).startswith(("Kernel ", "No such kernel")):
                raise
            raise UserError(f"{where}: no kernel ran it to its end ({error})") from error


def _literally(path: Path) -> str:
    """``path`` for papermill, which formats what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def check_installed() -> None:
    """UserError if a package is missing that executes a notebook or makes a page of it."""
    missing = [
        name
        for name in ("papermill", "nbconvert", "ipykernel")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UserError(
            f"a notebook needs {' and '.join(missing)}, not installed here: install that "
            "(`deepatlas run` trains and scores without it, with --no-notebook)"
        )


@contextmanager
def _private_folders() -> Iterator[dict[str, str]]:
    """Variables that give a kernel a history and connection files of its own for a while: kernels
    side by side would wait for one database.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield {
            "IPYTHONDIR": str(Path(folder) / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(Path(folder) / "jupyter"),
        }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while; a kernel inherits them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
