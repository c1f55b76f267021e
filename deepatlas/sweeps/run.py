"""The runs of a sweep, carried out: what fails is told, and the others go on; the rows of a run are
in the tables as soon as it ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from ..checkpoints import Interrupted, stop_requests
from ..children import Outcome, Task
from ..errors import NO_MEMORY, STOPPED, UserError, shortened
from ..experiments import is_finished
from ..parameters import Experiment, parse
from ..places import VARIABLES
from ..trainings import RUN_LOCK
from . import progress
from .collect import collect
from .pools import OneByOne, Pool
from .progress import Run

LOOK = 0.5  # seconds between two looks at the runs
ENDED = ("finished", "failed")
KILLED = -9  # the exit code of a process that Linux ends where memory is short


def carry_out_all(
    todo: Sequence[Experiment],
    root: Path,
    results: Path,
    pool: Callable[[], Pool] = OneByOne,
    show: progress.Show | None = None,
) -> list[Run]:
    """Do the runs ``todo`` in ``root`` that are not finished, and keep their rows in ``results``;
    where each of them stands in the end.

    ``pool()`` says who carries them out, by default one after the other; if all are finished it is
    not asked.
    ``show(runs, where)`` is called twice a second, and at the end; by default it is a table in the
    notebook, or in the terminal. A run that is killed goes on from its checkpoint, once. One
    whose memory does not suffice, or which is killed again, is done with half the batch, once: that
    is another experiment, and its rows say so. Ctrl-C or SIGTERM stops what runs, saved; the same
    call goes on. Raises Interrupted then.
    """
    show = show or progress.shown_here()
    root = root.absolute()
    runs = [Run(experiment, experiment, root / experiment.name) for experiment in todo]
    for run in runs:
        if _finished_before(run):
            run.note = "finished before"
            _finish(run, results)
    received: list[int] = []
    if any(run.state not in ENDED for run in runs):
        with stop_requests() as received, closing(pool()) as carrying_out:
            _carry_out(runs, results, carrying_out, show, received)
    left = sum(run.state not in ENDED for run in runs)
    show(runs, "stopped" if left else "all ended")
    if left:
        raise Interrupted(
            f"stopped, and {left} of {len(runs)} runs are left: what was trained of them is saved, "
            "and the same command goes on"
        )
    return runs


def _carry_out(
    runs: Sequence[Run], results: Path, pool: Pool, show: progress.Show, received: Sequence[int]
) -> None:
    """Until all have ended, or a signal was ``received``."""
    for run in runs:
        if run.state not in ENDED:
            _begin(run, pool)
    while not received and any(run.state not in ENDED for run in runs):
        for task, outcome in pool.ended():
            for run in runs:
                if run.folder == task.lock.parent and run.state not in ENDED:
                    _note(run, outcome, pool, results)
        progress.look_at(runs)
        show(runs, pool.where)
        time.sleep(LOOK)


def _finished_before(run: Run) -> bool:
    try:
        return is_finished(run.experiment, run.folder)
    except UserError:  # what is wrong with its folder is told by its process
        return False


def _begin(run: Run, pool: Pool) -> None:
    run.state = "waiting"
    pool.submit(task_of(run.experiment, run.folder))


def task_of(experiment: Experiment, folder: Path) -> Task:
    """The run of ``experiment`` in ``folder``, all parameters said, and by the variables that name
    folders here.
    """
    command = ["-m", "deepatlas.cli", "run", "--no-notebook", "--workers", "1"]
    command += ["--root", str(folder.parent)]
    for name, value in experiment.model_dump().items():
        if isinstance(value, dict):
            command += [f"{name}.{key}={entry}" for key, entry in value.items()]
        elif value is not None:
            command.append(f"{name}={value}")
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    return Task(folder / RUN_LOCK, tuple(command), given)


def _note(run: Run, outcome: Outcome, pool: Pool, results: Path) -> None:
    """What is to be done with a run whose process has ended."""
    killed = outcome.code < 0 or outcome.code == STOPPED
    smaller = _with_half_the_batch(run)
    if outcome.code == 0:
        _finish(run, results)
    elif killed and not run.killed:
        run.killed = True
        run.note = "was stopped or killed once, and goes on from its checkpoint"
        _begin(run, pool)
    elif outcome.code in (NO_MEMORY, KILLED) and smaller is not None:
        run.experiment = smaller
        run.folder = run.folder.with_name(smaller.name)
        run.note = f"too little memory: another experiment, batch_size={smaller.batch_size}"
        _begin(run, pool)
    else:
        run.state = "failed"
        ended = f"its process ended with exit code {outcome.code}"
        run.note = outcome.sentence if outcome.code > 0 else f"{ended}: {outcome.sentence}"
        run.output = outcome.output


def _with_half_the_batch(run: Run) -> Experiment | None:
    """The experiment that is done where memory does not suffice for the planned one; None if that
    has been done already, or if a batch is one pair.
    """
    planned = run.planned
    if run.experiment is not planned or planned.batch_size == planned.seg_batch_size == 1:
        return None
    sizes = {
        "batch_size": max(1, planned.batch_size // 2),
        "seg_batch_size": max(1, planned.seg_batch_size // 2),
    }
    return parse(planned.model_dump() | sizes, planned.entry)


def _finish(run: Run, results: Path) -> None:
    """Keep the rows of a run; it has failed if they cannot be kept."""
    try:
        if not (run.folder / "run.json").is_file():
            raise UserError(
                f"{run.folder}: not there, though its process has ended well. Workers must have "
                "the same disk and the same version of the kit as this machine; and if the code "
                "of the method was edited meanwhile, the same command does all runs by the new one"
            )
        collect([run.folder], results)
    except (UserError, OSError) as error:
        run.state = "failed"
        run.note = shortened(str(error), 1000)
    else:
        run.state = "finished"
        run.trained = len(run.experiment.table)
