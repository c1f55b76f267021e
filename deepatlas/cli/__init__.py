"""The command ``deepatlas``: one file for each kind of work, errors in one place.

What a command works with is imported inside it: PyTorch alone takes a second, for which nobody is
to wait who asks for help or has mistyped a word.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from typer.core import TyperGroup

from .. import places
from . import apply, data, errors, run, sweep, teach


class _Ordered(TyperGroup):
    """Commands in the order of ``COMMANDS``; typer puts those with commands of their own last."""

    def list_commands(self, ctx: object) -> list[str]:
        """Their names."""
        return [name for commands in COMMANDS.values() for name in commands]


app = typer.Typer(
    cls=_Ordered,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Learn, teach and use DeepAtlas: registration and segmentation, trained together.

With scans of your own, some of them labelled:

    deepatlas data check my_scans --to study    (writes study/cohort.toml)
    deepatlas run dataset=study/cohort.toml     (trains, prints a run folder)
    deepatlas segment new.nii.gz --model RUN_FOLDER -o results

To learn the method, `deepatlas lab` opens the lessons. COMMAND --help says more of each.""",
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


# What a newcomer wants first stands first; `deepatlas --help` shows them in this order.
COMMANDS: dict[str, dict[str, Callable | typer.Typer]] = {
    "From scans to results": {
        "data": data.app,
        "run": run.run,
        "segment": apply.segment,
        "register": apply.register,
        "apply": apply.apply,
        "evaluate": apply.evaluate,
        "export": apply.export,
    },
    "Many runs, and what they show": {
        "table": run.table,
        "sweep": sweep.sweep,
        "gains": sweep.gains,
        "weights": run.keep_weights,
    },
    "Lessons and teaching": {
        "lab": teach.lab,
        "site": teach.build_site,
        "measure": teach.measure,
        "warm": teach.warm,
        "handout": teach.handout,
        "collect": teach.collect,
    },
    "This machine": {
        "doctor": run.doctor,
    },
}
HANDS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # to another program


def _help(command: Callable) -> str:
    """The docstring of a command, each paragraph one line, which the terminal breaks."""
    text = inspect.cleandoc(command.__doc__ or "")
    paragraphs = []
    for paragraph in text.split("\n\n"):
        example = paragraph.startswith(" ")
        paragraphs.append(paragraph if example else " ".join(paragraph.split()))
    return "\n\n".join(paragraphs)


for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):  # several commands below one name
            app.add_typer(command, name=name, rich_help_panel=panel)
            continue
        app.command(
            name,
            help=_help(command),
            context_settings=HANDS_ON if command is teach.lab else None,
            rich_help_panel=panel,
        )(command)


def main() -> None:
    """Run the command; a mistake of the user ends with one line, a bug with its traceback."""
    with errors.as_one_line():
        words = sys.argv[1:] or ["--help"]
        # by itself typer prints its errors raw, with the control characters of a file's name
        sys.exit(app(words, prog_name="deepatlas", standalone_mode=False))
