"""Commands for learners and teachers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError, printable
from ..places import CHECKOUT, EXPERIMENT, LESSON_COSTS, NOTEBOOKS, home, runs_folder
from ..regimes import BASELINES, TAUGHT
from .arguments import Parameters, assignments, check_file, check_folder, check_runs
from .errors import stoppable


def lab(
    context: typer.Context,
    folder: Annotated[
        Path | None, typer.Option(help="copies of the lessons, made where they are missing")
    ] = None,
) -> None:
    """Open JupyterLab on the lessons; further options go to it, as in --no-browser."""
    from ..checkpoints import write_text

    if folder is None:
        folder = NOTEBOOKS if CHECKOUT else home() / "notebooks"
    if importlib.util.find_spec("jupyterlab") is None:
        raise UserError(
            "JupyterLab is not installed here: install the package jupyterlab, or open the lessons "
            f"in {NOTEBOOKS} with another program"
        )
    if folder.resolve() != NOTEBOOKS:
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
            if not (folder / notebook.name).exists():  # what a learner has written stays
                text = notebook.read_text(encoding="utf-8")
                write_text(text, folder / notebook.name)
    command = [sys.executable, "-m", "jupyter", "lab", f"--notebook-dir={folder}", *context.args]
    raise typer.Exit(subprocess.run(command).returncode)


def build_site(
    parameters: Parameters = None,
    to: Annotated[Path | None, typer.Option(help="where the pages go")] = None,
) -> None:
    """Execute the lessons and write them as pages that work from disk, with slides; begin with
    index.html.
    """
    from .. import notebooks

    values = assignments(parameters)
    folder = to or home() / "site"
    check_folder(folder)
    notebooks.check_installed()
    from .. import site  # here: only now is it known that nbformat is installed

    for page in site.build(folder, values):
        typer.echo(printable(str(page)))


def measure(
    names: Annotated[
        list[str] | None, typer.Argument(help="lessons, as in 05_joint_training")
    ] = None,
) -> None:
    """Run the lessons, each from an empty folder of runs and again, and write into their headers
    what that costs.
    """
    import pandas as pd

    from .. import notebooks
    from ..checkpoints import read_csv, write_csv

    if not CHECKOUT:
        raise UserError("the lessons that came with the kit are not written to: take a checkout")
    notebooks.check_installed()
    from .. import lessons

    paths = {path.stem: path for path in lessons.paths()}
    if unknown := set(names or []) - set(paths):
        raise UserError(
            f"there is no lesson {', '.join(sorted(unknown))}: choose from {', '.join(paths)}"
        )
    check_file(LESSON_COSTS)
    there = LESSON_COSTS.is_file()
    costs = read_csv(LESSON_COSTS, text=("lesson", "code")).to_dict("records") if there else []
    kept = {row["lesson"]: row for row in costs if row["lesson"] in paths}
    for name in names or paths:
        kept[name] = lessons.measure(paths[name])
        rows = [kept[key] for key in sorted(kept)]
        write_csv(pd.DataFrame(rows), LESSON_COSTS)
        lessons.write_header(paths[name], kept[name])
        typer.echo(f"{name}: {lessons.cost(kept[name])}")


def warm(parameters: Parameters = None) -> None:
    """Train before class what the lessons train, of another cohort also what they load; they find
    it in the folder of runs (DEEPATLAS_RUNS, to share it).
    """
    from .. import experiments

    experiment = experiments.of_lessons(**assignments(parameters))
    check_runs(None, experiment)
    with stoppable():
        experiments.ready_made(experiment, *TAUGHT)
        experiments.train_or_load(experiment, BASELINES["seg"])  # lesson 03 trains it in any case
    typer.echo(printable(f"warm: {runs_folder() / experiment.name}"))


def collect(
    files: Annotated[
        list[Path], typer.Argument(help="answers of students, named after them: ada.json")
    ],
    to: Annotated[Path, typer.Option(help="the table to write")] = Path("answers.csv"),
) -> None:
    """Gather the answers of a class in one table, for the teacher."""
    import pandas as pd

    from .. import exercises
    from ..checkpoints import write_csv

    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: no such file; files of answers (answers.json) were wanted"
        )
    check_file(to)
    _refuse_other_than_a_table(to, files)
    rows = exercises.collect_answers(files)
    write_csv(pd.DataFrame(rows, columns=exercises.COLUMNS), to)
    typer.echo(printable(f"{len(rows)} answers of {len(files)} students: {to}"))


def _refuse_other_than_a_table(to: Path, files: list[Path]) -> None:
    """UserError rather than replace answers, or anything else that this command has not written."""
    from .. import exercises

    if not to.exists():
        return
    if any(os.path.samefile(file, to) for file in files):
        raise UserError(f"{to}: are answers of a student: name another file with --to")
    with to.open(encoding="utf-8-sig", errors="replace") as stream:
        first = stream.readline(1000).strip()
    if first not in ("", ",".join(exercises.COLUMNS)):
        raise UserError(
            f"{to}: is there already, and is no table of answers: name another file with --to"
        )


def handout(folder: Annotated[Path, typer.Argument(help="where the copies go")]) -> None:
    """Copy the lessons without their solutions, for a class."""
    from .. import exercises, lessons

    check_folder(folder)
    copies = exercises.hand_out([*lessons.paths(), EXPERIMENT], folder)
    typer.echo(printable("\n".join(str(copy) for copy in copies)))
