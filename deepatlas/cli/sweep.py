"""Commands about many runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import FAILED, UserError, printable
from ..places import CHECKOUT, FIRST_RESULTS, RESULTS, runs_folder
from .arguments import Root, assignments, check_file, check_folder, check_runs, spread
from .errors import stoppable

if TYPE_CHECKING:
    import pandas as pd

    from ..parameters import Experiment
    from ..sweeps.pools import Pool
    from ..sweeps.progress import Run


@dataclass(frozen=True)
class Places:
    """Options of where the runs are carried out."""

    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="how many runs at once, by default as many as memory and cores allow, and one "
            "after the other without dask.distributed; or how many jobs of Slurm, by default one "
            "for each run",
        ),
    ] = None
    per_gpu: Annotated[int, typer.Option(min=1, help="how many runs at once on each GPU")] = 1
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="of Dask, whose workers do it, as tcp://node7:8786"),
    ] = None
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="PARTITION...",
            help='jobs of Slurm do it; options of sbatch may follow, as in "gpu --gres=gpu:1 '
            '--time=4:00:00"',
        ),
    ] = None

    def check(self) -> None:
        """UserError if they do not go together."""
        if self.scheduler is not None and self.slurm is not None:
            raise UserError("--scheduler and --slurm: one of them was wanted, not both")
        if self.scheduler is not None and (self.workers is not None or self.per_gpu > 1):
            raise UserError(
                "--scheduler: its workers are there already, and take as many runs at once as they "
                "have threads: leave out --workers and --per-gpu"
            )

    def jobs(self, todo: list[Experiment]) -> int:
        """How many jobs of Slurm."""
        from .. import sweeps

        return self.workers or min(len(todo), sweeps.MOST_JOBS)


@spread
def sweep(
    file: Annotated[
        Path, typer.Argument(help="TOML with [[sweep]] tables; a list stands for all its values")
    ],
    places: Places,
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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="print the runs, or the script for Slurm; begin nothing"),
    ] = False,
) -> None:
    """Run many experiments, several at once, and collect their rows; finished ones are not
    repeated. A run that fails is told, and the others go on. A file that says which table of the
    paper it fills ends with that table.
    """
    from .. import evidence, sweeps

    places.check()
    root = root or runs_folder()
    results = results or root / "results"
    todo = sweeps.read_sweep(file, assignments(only))
    of_the_paper = sweeps.read_paper_table(file)
    if of_the_paper is not None:
        evidence.check_paper_table(of_the_paper)
    sweeps.check_results(results)
    if not todo:
        wanted = " ".join(only or [])
        typer.echo(printable(f"{file}: no experiment in it has {wanted}: nothing to do"))
        return
    if dry_run:
        _print_plan(todo, places)
        return
    check_runs(root, *todo)
    check_folder(results / "runs")
    with stoppable():
        runs = sweeps.carry_out_all(todo, root, results, lambda: _pool(todo, places))
    failed = [run for run in runs if run.state == "failed"]
    if len(failed) < len(runs):
        rows = sweeps.read_table(results, "regimes")
        table = printable(str(results / "regimes.csv"))
        typer.echo(f"{len(rows)} rows of {rows['run'].nunique()} runs: {table}")
    _tell_of(runs)
    if of_the_paper is not None and not failed:
        _print_paper_table(of_the_paper, [run.folder for run in runs])
    if failed:
        raise typer.Exit(FAILED)


def _pool(todo: list[Experiment], places: Places) -> Pool:
    """What carries out the runs."""
    from .. import sweeps

    if places.scheduler is not None:
        sweeps.check_installed()
        return sweeps.Workers(places.scheduler, f"by {places.scheduler}")
    if places.slurm is not None:
        sweeps.check_installed()
        return sweeps.JobsOfSlurm(places.slurm, places.jobs(todo), places.per_gpu)
    at_once = places.workers
    if at_once is None and sweeps.several_at_once():
        at_once = sweeps.most_at_once(todo, places.per_gpu)
    if at_once is None or at_once == 1:
        return sweeps.OneByOne()
    sweeps.check_installed()
    return sweeps.on_this_machine(at_once, sweeps.gpus_for(todo), places.per_gpu)


def _print_plan(todo: list[Experiment], places: Places) -> None:
    from .. import sweeps

    if places.slurm is not None:
        jobs = places.jobs(todo)
        typer.echo(sweeps.slurm_script(places.slurm, "tcp://HOST:PORT", jobs, places.per_gpu))
        return
    for experiment in todo:
        changed = sweeps.changed(experiment)
        typer.echo(printable(f"{experiment.name} {changed}".strip()))


def _tell_of(runs: list[Run]) -> None:
    """Which runs are other experiments than were planned, and which have failed."""
    for run in runs:
        if run.state == "failed":
            typer.echo(printable(f"failed: {run.folder.name}: {run.note}"), err=True)
            if "Traceback" in run.output:
                typer.echo(printable(run.output), err=True)
        elif run.experiment is not run.planned:
            typer.echo(printable(f"not as planned: {run.folder.name}: {run.note}"))


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
    subjects, and what becomes of the claims in claims.toml beside them; draw the gains run by run
    (gains.png), and where the teacher is strong (map.png); fill the tables of the project's pages.
    What came in a wheel is not written to: its figures go to the current folder.
    """
    from .. import evidence
    from ..checkpoints import write_text

    ours = results.resolve().is_relative_to(RESULTS)
    in_wheel = ours and not CHECKOUT
    try:
        rows = evidence.load_results(results)
    except FileNotFoundError:
        if results.resolve() != RESULTS:
            raise
        typer.echo(f"no rows of the second protocol yet; of the first: {FIRST_RESULTS}")
    else:
        table = evidence.gains(rows)
        digits = {"float_format": "{:.2f}".format, "formatters": {"p": "{:.4f}".format}}
        typer.echo(printable(table.to_string(index=False, **digits)))
        _print_claims(results)
        every = evidence.with_those_of_a_gpu(rows, results)
        _draw_evidence(rows, every, Path.cwd() if in_wheel else results)
    if ours and not in_wheel:
        for page in evidence.PAGES:
            filled = evidence.fill_tables(page.read_text(encoding="utf-8"))
            write_text(filled, page)


def _print_claims(results: Path) -> None:
    """What was claimed beforehand, if anything was, and what has become of it."""
    from .. import evidence

    path = results / evidence.CLAIMS
    if not path.is_file():
        return
    judged = evidence.judge(evidence.read_claims(path), results)
    typer.echo(
        "\nClaims. p: two-sided t test over the runs' means, the largest of a claim's cohorts;"
    )
    typer.echo("p_holm: corrected over all claims, of which those that lack runs count as p = 1.")
    typer.echo(printable(judged.to_string(index=False, float_format="{:.3g}".format)))


def _draw_evidence(rows: pd.DataFrame, every: pd.DataFrame, folder: Path) -> None:
    """gains.png of ``rows`` and map.png of ``every`` row in ``folder``, or why there is none."""
    from .. import evidence, evidence_plots
    from ..checkpoints import write_atomically

    drawn = {
        "gains.png": lambda: evidence_plots.gains_figure(*evidence.decisive_gains(rows)),
        "map.png": lambda: evidence_plots.teacher_map_figure(evidence.teacher_map(every)),
    }
    for name, draw in drawn.items():
        try:
            figure = draw()
        except UserError as error:
            typer.echo(printable(f"no {name}: {error}"))
            continue
        check_file(folder / name)
        write_atomically(folder / name, partial(figure.savefig, dpi=110, format="png"))
