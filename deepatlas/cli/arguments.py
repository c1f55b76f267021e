"""Arguments that several commands share, and what is tried before a long work begins."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..errors import UserError, brief, shortened
from ..places import runs_folder

if TYPE_CHECKING:
    from ..parameters import Experiment

PARAMETERS = (
    "dataset=cohort.toml, as `deepatlas data check` wrote it, or a name of `deepatlas data list`; "
    "profile=smoke, class or full: for a test, a laptop, a GPU; dims=2 or 3; labelled=5: how many "
    "training scans may show their labels; regimes=joint: joint training without its rivals; "
    "seed=1; all others are in deepatlas/parameters.py"
)
Parameters = Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE", help=PARAMETERS)]
Configs = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        "-f",
        metavar="FILE",
        help="parameters in YAML, as papermill takes them: a line `NAME: VALUE` for each; "
        "NAME=VALUE on the command line wins, and of several files the last",
    ),
]
Root = Annotated[Path | None, typer.Option(help="where run folders are kept")]

LONGEST_NAME = 200  # bytes; systems allow 255, and a file that is being written has a longer name


def spread(command: Callable) -> Callable:
    """``command`` as typer can read it where some of its parameters are dataclasses of options:
    each field is an option of its own, under its own name.
    """
    groups: dict[str, type] = {}
    names: dict[str, list[str]] = {}
    parameters = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if not is_dataclass(hints[name]):
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        groups[name] = hints[name]
        fields = inspect.signature(hints[name]).parameters
        of_fields = get_type_hints(hints[name], include_extras=True)
        names[name] = list(fields)
        parameters += [fields[key].replace(annotation=of_fields[key]) for key in fields]

    def gather(**values: object) -> None:
        for name, group in groups.items():
            values[name] = group(**{key: values.pop(key) for key in names[name]})
        command(**values)

    gathered: Any = functools.wraps(command)(gather)
    # typer looks at both; what has no default must not stand behind what has one
    given = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    gathered.__signature__ = inspect.Signature(given)
    gathered.__annotations__ = {parameter.name: parameter.annotation for parameter in given}
    return gathered


def assignments(
    texts: list[str] | None, configs: Sequence[Path] | None = None
) -> dict[str, object]:
    """NAME=VALUE texts as a dictionary, on top of what the files ``configs`` say; values as
    ``parameters.plain`` reads them.

    NAME.KEY=VALUE is an entry of the dictionary NAME, as in term_weights.similarity=0.5.
    """
    from ..parameters import plain

    values: dict[str, object] = {}
    for config in configs or []:
        values |= read_config(config)
    for text in texts or []:
        name, equals, value = text.partition("=")
        name, dot, key = name.partition(".")
        if not equals or not name.isidentifier() or (dot and not key.isidentifier()):
            raise UserError(
                f"parameters are written NAME=VALUE, e.g. labelled=5, got {brief(text)}"
            )
        if not value:
            raise UserError(
                f"parameter {brief(name)} has no value: write one after the =, or leave it out"
            )
        try:
            read = plain(value)
        except UserError as error:
            raise UserError(f"parameter {brief(name)}: {error}") from error
        if not dot:
            values[name] = read
            continue
        entries = values.setdefault(name, {})
        if not isinstance(entries, dict):
            raise UserError(f"parameter {brief(name)} = {brief(entries)} has no entry {brief(key)}")
        entries[key] = read
    return values


def read_config(file: Path) -> dict[str, object]:
    """Parameters by their names from a file of YAML, read as papermill reads its ``-f``; UserError,
    a sentence that names the file, if it is none.

    Aliases are refused: a few lines of them may stand for more values than any memory holds.
    """
    import yaml

    class WithoutAliases(yaml.SafeLoader):
        def compose_node(self, *place: object) -> yaml.Node:
            if self.check_event(yaml.AliasEvent):
                name = self.peek_event().anchor
                raise ValueError(f"*{name}: the value itself was wanted, not an alias")
            return super().compose_node(*place)

    try:
        values = yaml.load(file.read_text(encoding="utf-8-sig"), Loader=WithoutAliases)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid YAML ({shortened(str(error))})") from error
    named = isinstance(values, dict) and all(isinstance(name, str) for name in values)
    if values is not None and not named:
        raise UserError(
            f"{file}: parameters by their names were wanted, a line `labelled: 5` for each, got "
            f"{brief(values)}"
        )
    return values or {}


def check_file(file: Path) -> None:
    """UserError now, not after the work, if ``file`` could not be written; nothing is left."""
    if len(os.fsencode(file.name)) > LONGEST_NAME:
        raise UserError(f"{shortened(file.name)}: too long a name for a file: choose a shorter one")
    if file.is_dir():
        raise UserError(f"{file}: is a folder, and the file to write was wanted: name one in it")
    if file.exists() and not file.is_file():
        raise UserError(f"{file}: is no plain file, and would be replaced by one: name another")
    check_folder(file.parent)


def check_runs(root: Path | None, *experiments: Experiment) -> None:
    """UserError now, not after a training, if runs could not be kept; those that are begun are
    where they are, and a finished one may be in a folder that can only be read.
    """
    folder = root or runs_folder()
    if not all((folder / experiment.name / "run.json").is_file() for experiment in experiments):
        check_folder(folder)


def check_folder(folder: Path) -> None:
    """UserError now, not after the work, if nothing could be written into ``folder``, which need
    not be there yet; nothing is left there.
    """
    there = folder.absolute()
    while not os.path.lexists(there):  # a link that leads nowhere is in the way, too
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{there}: is not a folder, so {folder} cannot be one: name another place")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(
            f"{there}: nothing can be written there ({error.strerror}): name another folder"
        ) from error
