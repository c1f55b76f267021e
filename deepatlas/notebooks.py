"""Notebooks executed from outside: papermill, and what a page made of one may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Options of nbconvert's HTML exporter: a page asks no server for anything.
OFFLINE = {"mathjax_url": "", "require_js_url": "", "jquery_url": "", "mermaid_js_url": ""}


def execute(
    path: Path, parameters: Mapping[str, object], to: Path | None = None, **environment: str
) -> NotebookNode:
    """The notebook with its outputs, run with ``parameters`` in a kernel with these environment
    variables.

    As far as it gets it is kept in the file ``to``. Raises UserError naming the file, and the cell
    if a cell stops.
    """
    import papermill  # here: a machine that only trains lacks it

    with _environment(environment):
        try:
            return papermill.execute_notebook(
                str(path), to and str(to), parameters=parameters, cwd=str(path.parent)
            )
        except papermill.PapermillExecutionError as error:
            raise UserError(
                f"{to or path}: cell {error.cell_index} stopped ({error.ename}: {error.evalue})"
            ) from error
        except (RuntimeError, KeyError) as error:
            # nbclient's DeadKernelError, jupyter_client's NoSuchKernel
            raise UserError(f"{to or path}: no kernel ran it to its end ({error})") from error


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
