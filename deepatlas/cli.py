"""The command ``deepatlas``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
import yaml

from . import datasets, evidence, exercises, experiments, machine, reporting, weights
from .checkpoints import Interrupted, write_atomically
from .parameters import parse

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn, teach and explore DeepAtlas: joint registration and segmentation.",
)


@app.command()
def doctor() -> None:
    """Say what this machine can do, and what to do next."""
    for line in machine.doctor():
        typer.echo(line)


@app.command()
def data(
    name: Annotated[
        str | None, typer.Argument(help="a cohort to fetch and check; without it, list them")
    ] = None,
    size: str = "class",
    dims: int | None = None,
) -> None:
    """List the data sets, or load one (downloading it if need be) and say what is in it."""
    if name is None:
        for key, entry in datasets.manifest().items():
            typer.echo(f"{key}: {entry['title']}. {entry['licence']}")
        return
    cohort = datasets.load_cohort(name, size=size, dims=dims)
    typer.echo(
        f"{len(cohort.train)} training, {len(cohort.validation)} validation and {len(cohort.test)} test scans "
        f"of {' x '.join(map(str, cohort.shape))} voxels of {cohort.spacing} mm"
    )
    typer.echo(f"structures: {', '.join(cohort.structures[1:])}")


@app.command()
def run(
    parameters: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE, as in dataset=oasis35")
    ] = None,
    no_notebook: Annotated[
        bool, typer.Option("--no-notebook", help="train and score only")
    ] = False,
    root: Annotated[Path | None, typer.Option(help="where run folders are kept")] = None,
) -> None:
    """Train every regime, score it on the test scans, and show the result in a notebook."""
    experiment = parse(_assignments(parameters or []))
    with _stoppable():
        folder = experiments.run(experiment, root)
    _print_table(folder)
    if not no_notebook:
        html = reporting.report(folder)
        typer.echo(f"report:   {html}\nnotebook: {folder / 'experiment.ipynb'}")
    typer.echo(f"scores:   {folder / 'scores.csv'}")


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(help="TOML with [[sweep]] tables; a list stands for all its values")
    ],
    only: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE: leave out other experiments")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="where run folders are kept")] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="where the tables of results are kept; by default the "
            "folder results, beside the run folders"
        ),
    ] = None,
) -> None:
    """Run many experiments, one after the other, and collect their rows; finished ones are not
    repeated.
    """
    results = results or (root or experiments.runs_folder()) / "results"
    todo = evidence.read_sweep(file, _assignments(only or []))
    if not todo:
        typer.echo(f"{file}: no experiment in it has {' '.join(only or [])}: nothing to do")
        return
    for i, experiment in enumerate(todo, 1):
        typer.echo(f"experiment {i} of {len(todo)}: {experiment.name}")
        with _stoppable():
            folder = experiments.run(experiment, root)
        arms, _ = evidence.collect([folder], results)
    typer.echo(f"{len(arms)} rows of {arms['run'].nunique()} runs: {results / 'arms.csv'}")


@app.command()
def table(folder: Path) -> None:
    """Print the tables of a finished run."""
    _print_table(folder)
    for task in ("segmentation", "registration"):
        typer.echo(
            f"\nDice % of each structure, {task}\n{reporting.structure_table(folder, task).to_string()}"
        )


@app.command()
def gains(
    results: Annotated[
        Path, typer.Argument(help="where the tables of results are kept")
    ] = evidence.RESULTS,
) -> None:
    """Print what joint training gains in the collected results, with intervals over runs and
    subjects; draw Dice against N into dice_against_n.png beside them; fill the tables of the
    project's pages."""
    from . import plots  # here: a machine that only trains lacks IPython

    rows = evidence.load_results(results)
    typer.echo(evidence.gains(rows).to_string(index=False, float_format="{:.1f}".format))
    shown = {
        key: title
        for key, title in reporting.TITLES.items()
        if not key.startswith("semi") and key != "identity"
    }
    try:
        curves = evidence.curves(rows)
    except ValueError as error:
        typer.echo(f"no figure: {error}")
    else:
        plots.curves_figure(curves, shown).savefig(results / "dice_against_n.png", dpi=110)
    if results.resolve() == evidence.RESULTS:
        for page in evidence.PAGES:
            filled = evidence.fill_tables(page.read_text(encoding="utf-8"))
            write_atomically(
                page, lambda file, filled=filled: file.write_text(filled, encoding="utf-8")
            )


@app.command("weights")
def keep_weights(
    parameters: Annotated[list[str] | None, typer.Argument(help="NAME=VALUE, as for run")] = None,
    to: Annotated[
        Path | None, typer.Option(help="the file; by default among the project's")
    ] = None,
) -> None:
    """Keep the networks that joint training leaves in one small file; the run is found, or done
    first.
    """
    experiment = parse(_assignments(parameters or []))
    if to is None and experiment != parse({"dataset": experiment.dataset}):
        raise ValueError(
            "the project's weights are those of the default experiment: name another file with --to"
        )
    path = to or weights.WEIGHTS / f"{experiment.dataset}.pt"
    with _stoppable():
        folder = experiments.run(experiment)
    weights.keep(folder, path)
    typer.echo(f"weights: {path}")


@app.command("site")
def build_site(
    parameters: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE, as in profile=smoke")
    ] = None,
    to: Annotated[Path, typer.Option(help="where the pages go")] = experiments.PROJECT / "site",
) -> None:
    """Execute the lessons and write them as pages that work from disk, with slides; begin with
    index.html.
    """
    from . import site  # here: a machine that only trains lacks nbformat

    for page in site.build(to, _assignments(parameters or [])):
        typer.echo(str(page))


@app.command()
def measure(
    names: Annotated[
        list[str] | None, typer.Argument(help="lessons, as in 05_joint_training")
    ] = None,
) -> None:
    """Run the lessons, each from an empty folder of runs and again, and write into their headers
    what that costs.
    """
    from . import lessons

    paths = {path.stem: path for path in lessons.paths()}
    if unknown := set(names or []) - set(paths):
        raise ValueError(
            f"there is no lesson {', '.join(sorted(unknown))}: choose from {', '.join(paths)}"
        )
    costs = pd.read_csv(lessons.COSTS).to_dict("records") if lessons.COSTS.is_file() else []
    kept = {row["lesson"]: row for row in costs if row["lesson"] in paths}
    for name in names or paths:
        kept[name] = row = lessons.measure(paths[name])
        experiments.write_csv(pd.DataFrame([kept[key] for key in sorted(kept)]), lessons.COSTS)
        lessons.write_header(paths[name], row)
        typer.echo(f"{name}: {lessons.cost(row)}")


@app.command()
def warm(
    parameters: Annotated[list[str] | None, typer.Argument(help="NAME=VALUE, as for run")] = None,
) -> None:
    """Train before class what the lessons train; they find it in the folder of runs
    (DEEPATLAS_RUNS, to share it).
    """
    experiment = parse({"dims": 2, **_assignments(parameters or [])})
    with _stoppable():
        experiments.train_or_load(
            experiment, "seg_baseline", "seg_control", "semi_seg", "deepatlas"
        )
    typer.echo(f"warm: {experiments.runs_folder() / experiment.name}")


@app.command()
def collect(
    files: Annotated[
        list[Path], typer.Argument(help="answers of students, named after them: ada.json")
    ],
    to: Annotated[Path, typer.Option(help="the table to write")] = Path("answers.csv"),
) -> None:
    """Gather the answers of a class in one table, for the teacher."""
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: no such file; files of answers (answers.json) were wanted"
        )
    rows = exercises.gather(files)
    experiments.write_csv(pd.DataFrame(rows), to)
    typer.echo(f"{len(rows)} answers of {len(files)} students: {to}")


@app.command()
def handout(folder: Annotated[Path, typer.Argument(help="where the copies go")]) -> None:
    """Copy the lessons without their solutions, for a class."""
    from . import lessons

    copies = exercises.hand_out([*lessons.paths(), reporting.NOTEBOOK], folder)
    typer.echo("\n".join(str(copy) for copy in copies))


@contextmanager
def _stoppable() -> Iterator[None]:
    """A training that is stopped from outside ends the command with its sentence."""
    try:
        yield
    except Interrupted as stop:
        typer.echo(f"deepatlas: {stop}", err=True)
        raise typer.Exit(130) from stop


def _print_table(folder: Path) -> None:
    record = reporting.load_record(folder)
    typer.echo(
        f"\n{record['experiment']['dataset']}: N = {record['labelled_training_scans']} of "
        f"{record['training_scans']} training scans labelled, V = {record['labelled_validation_scans']} "
        f"labelled validation scans, {record['test_scans']} test scans"
    )
    typer.echo(reporting.results_table(folder).to_string(float_format="{:.2f}".format))
    typer.echo(
        f"\nGain of DeepAtlas in points of Dice\n{reporting.comparison_table(folder).to_string(index=False)}"
    )


def _assignments(texts: list[str]) -> dict[str, object]:
    """NAME=VALUE texts as a dictionary; values as YAML reads them."""
    values: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"parameters are written NAME=VALUE, e.g. labelled=5, got {text!r}")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"parameter {name!r}: {value!r} is not a plain value") from error
    return values


def main() -> None:
    """Run the command; mistakes of the user end with one line, not a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"deepatlas: {error}")
    except torch.OutOfMemoryError:
        sys.exit(
            "deepatlas: the GPU has too little memory: lower batch_size, or take profile=class"
        )


if __name__ == "__main__":
    main()
