"""Commands about many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import evidence, experiments, sweeps
from ..checkpoints import write_text
from ..errors import UserError
from ..places import CHECKOUT, RESULTS, runs_folder
from .arguments import Root, assignments
from .errors import stoppable


def sweep(
    file: Annotated[
        Path, typer.Argument(help="TOML with [[sweep]] tables; a list stands for all its values")
    ],
    only: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE: leave out other experiments")
    ] = None,
    root: Root = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="where the tables of results are kept; by default the folder results, "
            "beside the run folders"
        ),
    ] = None,
) -> None:
    """Run many experiments, one after the other, and collect their rows; finished ones are not
    repeated.
    """
    results = results or (root or runs_folder()) / "results"
    todo = sweeps.read_sweep(file, assignments(only))
    sweeps.refuse_older(results)
    if not todo:
        typer.echo(f"{file}: no experiment in it has {' '.join(only or [])}: nothing to do")
        return
    for i, experiment in enumerate(todo, 1):
        typer.echo(f"experiment {i} of {len(todo)}: {experiment.name}")
        with stoppable():
            folder = experiments.run(experiment, root)
        rows, _ = sweeps.collect([folder], results)
    typer.echo(f"{len(rows)} rows of {rows['run'].nunique()} runs: {results / 'regimes.csv'}")


def gains(
    results: Annotated[Path, typer.Argument(help="where the tables of results are kept")] = RESULTS,
) -> None:
    """Print what joint training gains in the collected results, with intervals over runs and
    subjects; draw Dice against N into dice_against_n.png beside them; fill the tables of the
    project's pages. What came in a wheel is not written to: its figure goes to the current folder.
    """
    from .. import plots  # here: a machine that only trains lacks IPython

    ours = results.resolve() == RESULTS
    in_wheel = ours and not CHECKOUT
    rows = evidence.load_results(results)
    typer.echo(evidence.gains(rows).to_string(index=False, float_format="{:.1f}".format))
    try:
        curves = evidence.dice_against_n(rows)
    except UserError as error:
        typer.echo(f"no figure: {error}")
    else:
        figure = plots.dice_against_n_figure(curves, plots.drawn_against_n())
        figure.savefig((Path.cwd() if in_wheel else results) / "dice_against_n.png", dpi=110)
    if ours and not in_wheel:
        for page in evidence.PAGES:
            filled = evidence.fill_tables(page.read_text(encoding="utf-8"))
            write_text(filled, page)
