"""The command ``deepatlas``: one file for each kind of work, errors in one place."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import places
from . import data, errors, run, sweep, teach

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn, teach and explore DeepAtlas: joint registration and segmentation.",
)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="show where an error arose, not its sentence alone")
    ] = False,
) -> None:
    """Options of every command; they stand before its name."""
    errors.shown.tracebacks = debug
    places.settle()


app.command()(run.doctor)
app.command()(data.data)
app.command()(run.run)
app.command()(run.table)
app.command("weights")(run.keep_weights)
app.command()(sweep.sweep)
app.command()(sweep.gains)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(teach.lab)
app.command("site")(teach.build_site)
app.command()(teach.measure)
app.command()(teach.warm)
app.command()(teach.handout)
app.command()(teach.collect)


def main() -> None:
    """Run the command; a mistake of the user ends with one line, a bug with its traceback."""
    with errors.as_one_line():
        words = sys.argv[1:] or ["--help"]
        # by itself typer prints its errors raw, with the control characters of a file's name
        sys.exit(app(words, prog_name="deepatlas", standalone_mode=False))
