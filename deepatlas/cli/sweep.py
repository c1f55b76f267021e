"""Commands about many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, printable
from ..places import CHECKOUT, RESULTS, runs_folder
from .arguments import Root, assignments, check_file, check_folder, check_runs
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
    repeated. A file that says which table of the paper it fills ends with that table.
    """
    from .. import evidence, experiments, sweeps

    results = results or (root or runs_folder()) / "results"
    todo = sweeps.read_sweep(file, assignments(only))
    of_the_paper = sweeps.read_paper_table(file)
    if of_the_paper is not None:
        evidence.check_paper_table(of_the_paper)
    sweeps.check_results(results)
    if not todo:
        wanted = " ".join(only or [])
        typer.echo(printable(f"{file}: no experiment in it has {wanted}: nothing to do"))
        return
    check_runs(root, *todo)
    check_folder(results / "runs")
    folders = []
    for i, experiment in enumerate(todo, 1):
        typer.echo(printable(f"experiment {i} of {len(todo)}: {experiment.name}"))
        with stoppable():
            folder = experiments.run(experiment, root)
        folders.append(folder)
        rows, _ = sweeps.collect([folder], results)
    table = printable(str(results / "regimes.csv"))
    typer.echo(f"{len(rows)} rows of {rows['run'].nunique()} runs: {table}")
    if of_the_paper is not None:
        _print_paper_table(of_the_paper, folders)


def _print_paper_table(name: str, folders: list[Path]) -> None:
    from .. import evidence

    of_the_paper = evidence.PAPER[name]
    typer.echo(f"\n{of_the_paper.title}; Dice %, mean (SD) over test subjects")
    typer.echo(evidence.paper_table(name, folders).to_string())
    typer.echo("What is not known of the paper's runs, and what is therefore different here:")
    for sentence in of_the_paper.differences:
        typer.echo(f"- {sentence}")


def gains(
    results: Annotated[Path, typer.Argument(help="where the tables of results are kept")] = RESULTS,
) -> None:
    """Print what joint training gains in the collected results, with intervals over runs and
    subjects; draw Dice against N into dice_against_n.png beside them; fill the tables of the
    project's pages. What came in a wheel is not written to: its figure goes to the current folder.
    """
    from .. import evidence, plots
    from ..checkpoints import write_atomically, write_text

    ours = results.resolve() == RESULTS
    in_wheel = ours and not CHECKOUT
    picture = (Path.cwd() if in_wheel else results) / "dice_against_n.png"
    rows = evidence.load_results(results)
    table = evidence.gains(rows).to_string(index=False, float_format="{:.1f}".format)
    typer.echo(printable(table))
    try:
        curves = evidence.dice_against_n(rows)
    except UserError as error:
        typer.echo(printable(f"no figure: {error}"))
    else:
        check_file(picture)
        figure = plots.dice_against_n_figure(curves, plots.drawn_against_n())
        write_atomically(picture, lambda file: figure.savefig(file, dpi=110, format="png"))
    if ours and not in_wheel:
        for page in evidence.PAGES:
            filled = evidence.fill_tables(page.read_text(encoding="utf-8"))
            write_text(filled, page)
