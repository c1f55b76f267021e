"""Commands about data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import datasets


def data(
    name: Annotated[
        str | None, typer.Argument(help="a cohort to fetch and check; without it, list them")
    ] = None,
    profile: str = "class",
    dims: int | None = None,
) -> None:
    """List the data sets, or load one (downloading it if need be) and say what is in it."""
    if name is None:
        for key, entry in datasets.manifest().items():
            typer.echo(f"{key}: {entry.title}. {entry.licence}")
        return
    cohort = datasets.load_cohort(name, profile=profile, dims=dims)
    typer.echo(
        f"{len(cohort.train)} training, {len(cohort.validation)} validation and {len(cohort.test)} "
        f"test scans of {' x '.join(map(str, cohort.shape))} voxels of {cohort.spacing} mm, of "
        f"{len({scan.subject for scan in cohort.scans})} persons"
    )
    typer.echo(f"structures: {', '.join(cohort.structures[1:])}")
