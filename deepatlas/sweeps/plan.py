"""A file of sweeps: ``[[sweep]]`` tables of parameters, in which a list stands for each of its
values.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ..datasets.entries import describe
from ..errors import UserError
from ..parameters import Experiment, parse

WANTED = "[[sweep]] tables of parameters were wanted"


def read_sweep(path: Path, only: Mapping[str, object] | None = None) -> list[Experiment]:
    """The experiments of a TOML file, each once, in its order.

    ``only`` leaves those whose parameters have these values. Raises FileNotFoundError or UserError
    naming the file, or the parameter, and the mistake.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; {WANTED}, as in tutorials_data/results/evidence.toml"
        )
    try:
        sweeps = tomllib.loads(Path(path).read_text(encoding="utf-8"))["sweep"]
        planned = [parse(values) for sweep in sweeps for values in _combinations(sweep)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {WANTED}: {error}") from error
    wanted = _conditions(only or {})
    found: dict[str, Experiment] = {}
    for experiment in planned:
        if all(getattr(experiment, name) == value for name, value in wanted.items()):
            found[experiment.name] = experiment
    return list(found.values())


def _combinations(sweep: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Each choice of one value from every list."""
    choices = [value if isinstance(value, list) else [value] for value in sweep.values()]
    for values in itertools.product(*choices):
        yield dict(zip(sweep, values, strict=True))


def _conditions(only: Mapping[str, object]) -> dict[str, object]:
    """The values of ``only`` as their parameters have them; UserError if they cannot be."""
    for name in only:
        if name not in Experiment.model_fields:
            parse({name: 0})  # raises: it knows what may have been meant
    wanted = {name: _value(name, value) for name, value in only.items()}
    if "dataset" in wanted:
        describe(wanted["dataset"])  # raises if there is none
    return wanted


def _value(name: str, value: object) -> object:
    """``value`` as the parameter ``name`` has it; one sentence if it cannot be."""
    kind = Experiment.model_fields[name].annotation
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise UserError(f"parameter {name!r} = {value!r}: {said[0].lower()}{said[1:]}") from None
