"""Commands about one run, and about the machine that it runs on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from ..errors import FAILED, UserError, brief, printable
from ..places import CHECKOUT, WEIGHTS
from ..regimes import JOINT
from .arguments import (
    Configs,
    Parameters,
    Root,
    assignments,
    check_file,
    check_runs,
    spread,
)
from .errors import stoppable

if TYPE_CHECKING:
    from ..distributed import Ranks


def doctor() -> None:
    """Say what this machine can do, and what to do next."""
    from ..doctor import examine

    for line in examine():
        typer.echo(printable(line))


class Options(TypedDict):
    """What ``experiments.run`` takes of a ``Call``."""

    until: float | None
    workers: int | None
    log: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """How long this call of a run may take, on what, and who follows it: nothing that its result
    depends on.
    """

    minutes: Annotated[
        float | None,
        typer.Option(
            help="stop when so many are over, saved: the exit code is then 75, and the same "
            "command goes on, until it ends with 0"
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="trainings side by side, where they do not wait for each other; by default as "
            "many as cores and memory allow",
        ),
    ] = None
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="tensorboard: show what history.csv holds as it grows, to `tensorboard --logdir "
            "RUN_FOLDER/tensorboard`",
        ),
    ] = None

    def options(self) -> Options:
        """The same for ``experiments.run``; UserError, before any work, if they mean nothing."""
        from .. import tracking

        tracking.check(self.log or ())
        until = None
        if self.minutes is not None:
            if not 0 < self.minutes < math.inf:
                raise UserError(f"--minutes: a number above 0 was wanted, got {self.minutes}")
            until = time.monotonic() + 60 * self.minutes
        return {"until": until, "workers": self.workers, "log": tuple(self.log or ())}

    def refuse_in(self, values: Mapping[str, object]) -> None:
        """UserError if one of these options stands among the parameters, as papermill takes it."""
        for name in values.keys() & {field.name for field in fields(self)}:
            raise UserError(
                f"{name} is no parameter of the experiment, but an option of the command: write "
                f"--{name} {brief(values[name])}"
            )


@spread
def run(
    call: Call,
    parameters: Parameters = None,
    config: Configs = None,
    no_notebook: Annotated[
        bool, typer.Option("--no-notebook", help="train and score only")
    ] = False,
    root: Root = None,
) -> None:
    """Train every regime, score it on the test scans, and show the result in a notebook.

    Parameters are given as NAME=VALUE, or in a file, of which many are ready in notebooks/configs:

        deepatlas run -f notebooks/configs/oasis35-class.yaml seed=3

    It is the run that `papermill notebooks/experiment.ipynb OUT.ipynb -f FILE -p seed 3` does,
    executed in its notebook. An interrupted run goes on where it was, a finished one is only found
    again. On several GPUs:

        torchrun --standalone --nproc-per-node 2 -m deepatlas.cli run --no-notebook profile=full
    """
    options = call.options()  # first: the clock runs while PyTorch is loaded
    from .. import experiments, notebooks, reporting
    from ..distributed import joined
    from ..parameters import parse

    with joined() as ranks:
        if not ranks.first:
            _follow(ranks)
            return
        values = assignments(parameters, config)
        call.refuse_in(values)
        experiment = parse(values)
        check_runs(root, experiment)
        if not no_notebook:
            notebooks.check_installed()
        with stoppable():
            folder = experiments.run(experiment, root, ranks=ranks, **options)
        ranks.say(None)  # the others have nothing more to do
    _print_table(folder)
    if not no_notebook:
        html = reporting.report(folder)
        typer.echo(printable(f"report:   {html}\nnotebook: {folder / 'experiment.ipynb'}"))
    typer.echo(printable(f"scores:   {folder / 'scores.csv'}"))
    typer.echo(printable(f"use it:   deepatlas segment IMAGE --model {folder} -o DIR"))


def _follow(ranks: Ranks) -> None:
    """Train with the first process, which tells of all that both see; this one tells only what went
    wrong with itself.
    """
    from .. import experiments
    from ..checkpoints import Interrupted
    from ..distributed import Left

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            experiments.follow(ranks)
        except (Interrupted, Left, FloatingPointError) as error:
            ranks.await_first()
            raise typer.Exit(FAILED) from error


def table(folder: Path) -> None:
    """Print the tables of a finished run."""
    from .. import reporting
    from ..records import scored_tasks

    _print_table(folder)
    for task in scored_tasks(reporting.load_record(folder)):
        structures = reporting.structure_table(folder, task).to_string()
        typer.echo(printable(f"\nDice % of each structure, {task}\n{structures}"))


def keep_weights(
    parameters: Parameters = None,
    config: Configs = None,
    to: Annotated[
        Path | None, typer.Option(help="the file; by default among the project's")
    ] = None,
    lessons: Annotated[
        bool, typer.Option("--lessons", help="instead, those that lessons 03, 05 and 06 load")
    ] = False,
) -> None:
    """Keep the networks that joint training leaves in one small file; the run is found, or done
    first.
    """
    from .. import experiments, models
    from ..parameters import parse

    if lessons:
        if parameters or config or to:
            raise UserError(
                "--lessons: these networks are of one run, and nothing else is taken: leave out "
                "parameters, --config and --to"
            )
        _refuse_to_replace("take a checkout")
        with stoppable():
            for path in experiments.keep_ready_made():
                typer.echo(printable(f"weights: {path}"))
        return
    experiment = parse(assignments(parameters, config))
    own = experiment.entry.scans is not None
    if to is None and (own or experiment != parse({"dataset": experiment.dataset})):
        raise UserError(
            "the project's weights are those of the default experiment: name another file with --to"
        )
    if to is None:
        _refuse_to_replace("name a file with --to")
    path = to or WEIGHTS / f"{experiment.dataset}.pt"
    check_file(path)
    check_runs(None, experiment)
    if to is not None and to.exists():
        _refuse_other_than_weights(to)
    with stoppable():
        folder = experiments.run(experiment)
    record = experiments.read_record(folder)
    models.keep(experiments.load_networks(folder, JOINT), record, path)
    typer.echo(printable(f"weights: {path}"))


def _refuse_to_replace(instead: str) -> None:
    if not CHECKOUT:
        raise UserError(f"weights that came with the kit are not replaced: {instead}")


def _refuse_other_than_weights(file: Path) -> None:
    from .. import models

    try:
        models.load(file)
    except UserError as error:
        raise UserError(
            f"{file}: is there already, and holds no weights that this version of the kit reads: "
            "name another file, or move this one away"
        ) from error


def _print_table(folder: Path) -> None:
    from .. import reporting
    from ..records import notes, recorded_experiment, scored_tasks

    record = reporting.load_record(folder)
    name = printable(recorded_experiment(record).entry.name)
    typer.echo(
        f"\n{name}: N = {record['labelled_training_scans']} of "
        f"{record['training_scans']} training scans labelled, "
        f"V = {record['labelled_validation_scans']} labelled validation scans, "
        f"{record['test_scans']} test scans"
    )
    for note in notes(record):
        typer.echo(note)
    if not scored_tasks(record):
        return
    typer.echo(reporting.results_table(folder).to_string(float_format="{:.2f}".format))
    comparison = reporting.comparison_table(folder).to_string(index=False)
    typer.echo(f"\nGain of DeepAtlas in points of Dice\n{comparison}")
