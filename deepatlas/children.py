"""One run of a sweep, as a process of its own: what a thread of a worker starts, watches and stops.

Only a process can catch the signal that asks it to stop, and save what it has trained. A process
that is killed, or whose memory does not suffice, takes no other run with it.

Nothing heavy is imported here: a worker of Dask, which needs no more than this, takes a tenth of
the memory of a process that trains.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import psutil

from .errors import CALL_AGAIN, STOPPED, shortened
from .locks import Lock

POLL = 0.2  # seconds between two looks at a process
GRACE = 60.0  # seconds in which a process that was asked to stop may save what it has trained
OUTPUT = 4000  # characters of what a process said last


@dataclass(frozen=True)
class Task:
    """A run to be done somewhere: the lock in its folder, on the disk that all workers share, what
    Python is given to do it, and environment variables that it needs beside a worker's own.
    """

    lock: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How the process of a run ended: its exit code, negative if a signal killed it; the sentence
    of its error, if it had one; and what it said last.
    """

    code: int
    sentence: str = ""
    output: str = ""


def threads_each(at_once: int) -> int:
    """PyTorch's threads for each of so many runs on this machine: what the user says by
    OMP_NUM_THREADS, else its share of the cores.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else max(1, cores() // at_once)


def cores() -> int:
    """The cores that this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # macOS has none
        return len(process.cpu_affinity())
    return psutil.cpu_count() or 1


def carry_out(task: Task, threads: int, stopped: Callable[[], bool]) -> Outcome:
    """Train and score the run of ``task`` in a process of its own, on so many threads; once
    ``stopped()`` is true the process is asked to save and end.

    A run that another process holds is waited for, and is then found finished, or gone on with.
    """
    while True:
        outcome = _one_process(task, threads, stopped)
        if stopped():
            return Outcome(STOPPED, outcome.sentence, outcome.output)
        if outcome.code != CALL_AGAIN:
            return outcome
        lock = Lock(task.lock)
        if lock.wait(POLL, stopped=stopped, quiet=True):
            lock.release()


def _one_process(task: Task, threads: int, stopped: Callable[[], bool]) -> Outcome:
    environment = os.environ | dict(task.environment) | {"OMP_NUM_THREADS": str(threads)}
    # not through a pipe: who is not read any more is killed by its next word
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, *task.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches who has started it, who then asks it to stop
        )
        try:
            while _runs(child) and not stopped():
                pass
        finally:
            _stop(child)
        said = _end_of(output)
    return Outcome(child.returncode, _sentence(said), said)


def _runs(child: subprocess.Popen) -> bool:
    """Does the process still run, a moment from now?"""
    try:
        child.wait(POLL)
    except subprocess.TimeoutExpired:
        return True
    return False


def _stop(child: subprocess.Popen) -> None:
    """Ask a process to save and end; end it if it does not."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _end_of(output: BinaryIO) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - OUTPUT))
    return output.read().decode("utf-8", "replace")


def _sentence(said: str) -> str:
    """The sentence of the command's error, or of a bug the last line, which names it."""
    lines = [line.strip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("deepatlas: ")]
    told = [line for line in told if not line.startswith("deepatlas: warning")]
    last = (told or lines or [""])[-1]
    return shortened(last.removeprefix("deepatlas: "), 1000)


def on_worker(task: Task) -> Outcome:
    """``carry_out`` in a thread of a worker of Dask, until the worker closes or the task is
    withdrawn.
    """
    import distributed  # here: an extra

    worker = distributed.get_worker()
    key = worker.get_current_task()
    running = (distributed.Status.running, distributed.Status.paused)

    def stopped() -> bool:
        known = worker.state.tasks.get(key)
        return worker.status not in running or known is None or known.state != "executing"

    outcome = carry_out(task, threads_each(worker.state.nthreads), stopped)
    if outcome.code == STOPPED and stopped():
        raise distributed.Reschedule  # another worker goes on
    return outcome
