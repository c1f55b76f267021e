"""A file of sweeps: ``[[sweep]]`` tables of parameters, in which a list stands for each of its
values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..checkpoints import parsed_toml
from ..datasets.entries import describe, settled
from ..errors import UserError, brief
from ..parameters import Experiment, parse

WANTED = "[[sweep]] tables of parameters were wanted"
MOST = 10_000  # experiments in a file


def read_sweep(path: Path, only: Mapping[str, object] | None = None) -> list[Experiment]:
    """The experiments of a TOML file, each once, in its order.

    A cohort file's path begins in the folder of the TOML file. ``only`` leaves those whose
    parameters have these values; a path there begins in the current folder. Raises
    FileNotFoundError or UserError naming the file, or the parameter, and the mistake.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; {WANTED}, as in tutorials_data/results/evidence.toml"
        )
    sweeps = _tables(Path(path))
    count = sum(_count(sweep, path) for sweep in sweeps)
    if count > MOST:
        raise UserError(
            f"{path}: it asks for {count:,} experiments, every combination of its values, and at "
            f"most {MOST:,} are planned at once: leave out some values"
        )
    try:
        planned = []
        for sweep in sweeps:
            for values in _combinations(sweep):
                dataset = values.get("dataset")
                if isinstance(dataset, str):
                    values["dataset"] = settled(dataset, Path(path).parent)
                planned.append(parse(values))
    except UserError as error:
        raise UserError(f"{path}: {WANTED}: {error}") from error
    wanted = _conditions(only or {})
    found: dict[str, Experiment] = {}
    for experiment in planned:
        if all(getattr(experiment, name) == value for name, value in wanted.items()):
            found[experiment.model_dump_json()] = experiment
    return list(found.values())


def read_paper_table(path: Path) -> str | None:
    """Which table of the paper the file's runs fill, as in ``[paper] table = "knee"``, if any;
    UserError unless it is written so.
    """
    said = _content(Path(path)).get("paper")
    if said is None:
        return None
    name = said.get("table") if isinstance(said, dict) else None
    if not isinstance(name, str):
        raise UserError(
            f'{path}: [paper] wants the name of a table, as in table = "knee", got {brief(said)}'
        )
    return name


def _content(path: Path) -> dict[str, object]:
    try:
        return parsed_toml(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {WANTED}: {error}") from error


def _tables(path: Path) -> list[dict[str, object]]:
    """The tables ``[[sweep]]`` of a TOML file; UserError if they are not there."""
    content = _content(path)
    sweeps = content.get("sweep")
    if not isinstance(sweeps, list) or not all(isinstance(sweep, dict) for sweep in sweeps):
        found = ", ".join(content) or "nothing"
        raise UserError(f"{path}: {WANTED}, and {found} is in it")
    return sweeps


def _count(sweep: Mapping[str, object], path: Path) -> int:
    """How many experiments a table asks for."""
    count = 1
    for name, value in sweep.items():
        if value == []:
            raise UserError(f"{path}: {WANTED}: the list of {name!r} is empty")
        count *= len(value) if isinstance(value, list) else 1
    return count


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
    dataset = wanted.get("dataset")
    if isinstance(dataset, str):
        describe(dataset)  # raises if there is none
        wanted["dataset"] = settled(dataset)
    return wanted


def _value(name: str, value: object) -> object:
    """``value`` as the parameter ``name`` has it; one sentence if it cannot be."""
    kind: Any = Experiment.model_fields[name].annotation
    if isinstance(value, bool) and kind is not bool:
        raise UserError(
            f"parameter {name!r} = {value!r}: a number or a word was wanted, not true or false"
        )
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise UserError(f"parameter {name!r} = {value!r}: {said[0].lower()}{said[1:]}") from None
