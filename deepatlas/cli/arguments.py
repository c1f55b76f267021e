"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from ..errors import UserError

Parameters = Annotated[list[str] | None, typer.Argument(help="NAME=VALUE, as in dataset=oasis35")]
Root = Annotated[Path | None, typer.Option(help="where run folders are kept")]


def assignments(texts: list[str] | None) -> dict[str, object]:
    """NAME=VALUE texts as a dictionary; values as YAML reads them.

    NAME.KEY=VALUE is an entry of the dictionary NAME, as in term_weights.similarity=0.5.
    """
    values: dict[str, object] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        name, dot, key = name.partition(".")
        if not equals or not name.isidentifier() or (dot and not key.isidentifier()):
            raise UserError(f"parameters are written NAME=VALUE, e.g. labelled=5, got {text!r}")
        try:
            plain = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"parameter {name!r}: {value!r} is not a plain value") from error
        if not dot:
            values[name] = plain
        elif isinstance(values.setdefault(name, {}), dict):
            values[name][key] = plain
        else:
            raise UserError(f"parameter {name!r} = {values[name]!r} has no entry {key!r}")
    return values
