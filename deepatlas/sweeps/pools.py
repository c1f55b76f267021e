"""Where the runs of a sweep are carried out: here one after the other, or by workers of Dask, on
this machine, on a cluster, or started by Slurm.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Protocol

import torch

from .. import machine
from ..children import GRACE, POLL, Outcome, Task, carry_out, cores, on_worker, threads_each
from ..errors import FAILED, UserError
from ..parameters import Experiment
from . import slurm

if TYPE_CHECKING:
    import distributed

CONNECT = 30.0  # seconds in which a scheduler answers
LOOK_AT_JOBS = 30.0  # seconds from one question to Slurm to the next
PATIENCE = 600.0  # seconds in which a scheduler that is gone may come back
# Begins a worker on this machine: Ctrl-C reaches all of a terminal, but only this process acts on
# it, and asks the workers to stop.
DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


class Pool(Protocol):
    """What carries out tasks."""

    where: str  # in words

    def submit(self, task: Task) -> None:
        """Carry it out as soon as there is room."""

    def ended(self) -> list[tuple[Task, Outcome]]:
        """The tasks that have ended since this was last asked."""

    def close(self) -> None:
        """Ask what still runs to save and end, and wait for it."""


def several_at_once() -> bool:
    """Is there Dask, by which several runs go on at once?"""
    return importlib.util.find_spec("distributed") is not None


def check_installed() -> None:
    """UserError if Dask is missing."""
    if not several_at_once():
        raise UserError(
            "several runs at once need dask.distributed, not installed here: pip install "
            "distributed (or deepatlas[scale]); without --workers, --scheduler, --slurm and "
            "--per-gpu they go on one after the other"
        )


def gpus_for(experiments: Sequence[Experiment]) -> list[str]:
    """The GPUs of this machine that the runs may use, as CUDA_VISIBLE_DEVICES names them; none if
    all are to be done on the CPU.
    """
    if all(experiment.device == "cpu" for experiment in experiments):
        return []
    if not torch.cuda.is_available():
        return ["0"] * torch.backends.mps.is_available()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return names or [str(number) for number in range(torch.cuda.device_count())]


def most_at_once(experiments: Sequence[Experiment], per_gpu: int) -> int:
    """How many of these runs the machine should carry out at once: ``per_gpu`` on each GPU; where
    there is none as many as memory and cores allow, a core each.
    """
    most = len(gpus_for(experiments)) * per_gpu
    if not most:
        largest = max(gib_needed(experiment) for experiment in experiments)
        most = min(cores(), int(machine.free_memory_gib() / largest))
    return max(1, min(most, len(experiments)))


def gib_needed(experiment: Experiment) -> float:
    """Memory that a run takes on a CPU, in GiB: 0.7 of PyTorch and the kit, and 6 kB for each voxel
    of a batch.

    Measured, in bfloat16: 0.55 to 0.8 at 4 x 96 x 96, 0.8 at 40 x 56 x 40; float32 takes twice the
    bytes a voxel.
    """
    shape, _ = experiment.entry.grid(experiment.profile, experiment.dims)
    voxels = max(experiment.batch_size, experiment.seg_batch_size)
    for side in shape:
        voxels *= side
    return 0.7 + 6e3 * voxels / 2**30


# --- one after the other --------------------------------------------------------------------------


class OneByOne:
    """Each in a process of this machine, one after the other."""

    def __init__(self) -> None:
        self.where = "one after the other"
        self.stopping = Event()
        self.thread = ThreadPoolExecutor(1)
        self.tasks: dict[Future, Task] = {}

    def submit(self, task: Task) -> None:
        """Carry it out after those that were submitted before."""
        done = self.thread.submit(carry_out, task, threads_each(1), self.stopping.is_set)
        self.tasks[done] = task

    def ended(self) -> list[tuple[Task, Outcome]]:
        """The tasks that have ended since this was last asked."""
        found = [done for done in self.tasks if done.done()]
        return [(self.tasks.pop(done), done.result()) for done in found]

    def close(self) -> None:
        """Ask the one that runs to save and end, and wait for it."""
        self.stopping.set()
        self.thread.shutdown(cancel_futures=True)


# --- Dask -----------------------------------------------------------------------------------------


class Workers:
    """By the workers of a scheduler of Dask, whose ``address`` may be anywhere.

    A task whose worker dies goes on with another worker; if the scheduler dies, all that has not
    ended is handed to the one that takes its place. ``closes`` is called at the end, as by who has
    started the scheduler for this sweep alone.
    """

    def __init__(self, address: str, where: str, closes: Callable[[], object] = bool) -> None:
        self.address = address
        self.where = where
        self.closes = closes
        self.tasks: dict[str, Task] = {}
        self.futures: dict[str, distributed.Future] = {}
        self.gone_since: float | None = None
        try:
            self.client = self._connect(timeout=CONNECT)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{address}: no scheduler of Dask answers there ({error}): start one by `dask "
                "scheduler`, or name another address, as in tcp://node7:8786"
            ) from error

    def submit(self, task: Task) -> None:
        """Hand it to the scheduler."""
        key = f"{task.lock.parent.name}-{uuid.uuid4().hex[:8]}"
        self.tasks[key] = task
        self._hand_over(key)

    def ended(self) -> list[tuple[Task, Outcome]]:
        """The tasks that have ended since this was last asked; UserError if the scheduler has been
        gone for ten minutes.
        """
        lost = any(future.status in ("cancelled", "lost") for future in self.futures.values())
        if (lost or self.client.status != "running") and not self._found_again():
            return []
        found = []
        for key, future in list(self.futures.items()):
            if future.status in ("finished", "error"):
                del self.futures[key]
                found.append((self.tasks.pop(key), _outcome(future)))
        return found

    def close(self) -> None:
        """Ask what still runs to save and end, and wait for it, but not for long: a worker may be
        gone. If the scheduler is gone, nobody can be asked, and the workers stop by themselves.
        """
        if self.client.status == "running":
            for future in self.futures.values():
                future.cancel()
            latest = time.monotonic() + GRACE
            while any(task.lock.exists() for task in self.tasks.values()):
                if time.monotonic() > latest:
                    break
                time.sleep(POLL)
        if self.client.status != "closed":
            self.client.close(timeout=5)
        self.closes()

    def _connect(self, timeout: float) -> distributed.Client:
        import distributed  # here: an extra
        from distributed.comm import resolve_address

        resolve_address(self.address)  # a client would raise the same, and hang at its end
        for name in ("distributed", "distributed.client"):
            # of a scheduler that is gone they print tracebacks, and ``ended`` says a sentence
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return distributed.Client(self.address, timeout=timeout, set_as_default=False)

    def _hand_over(self, key: str) -> None:
        # pure=False: the same run may be asked for again
        self.futures[key] = self.client.submit(on_worker, self.tasks[key], key=key, pure=False)

    def _found_again(self) -> bool:
        """Is there a scheduler again? Then it has all tasks that have not ended."""
        now = time.monotonic()
        self.gone_since = self.gone_since or now
        try:
            if self.client.status != "closed":
                self.client.close(timeout=1)
            self.client = self._connect(timeout=2)
        except OSError as error:
            if now - self.gone_since > PATIENCE:
                raise UserError(
                    f"{self.address}: the scheduler has been gone for {PATIENCE / 60:.0f} minutes: "
                    "start it again, and the same command goes on"
                ) from error
            return False
        self.gone_since = None
        for key in self.tasks:
            self._hand_over(key)
        return True


def _outcome(future: distributed.Future) -> Outcome:
    import distributed

    if future.status == "finished":
        return future.result()
    error = future.exception()
    if isinstance(error, distributed.KilledWorker):
        return Outcome(FAILED, "every worker that took this run has died")
    return Outcome(FAILED, f"{type(error).__name__}: {error}")


def on_this_machine(at_once: int, gpus: Sequence[str], per_gpu: int) -> Workers:
    """So many runs at once: by a worker for each of the ``gpus``, which sees that one alone; where
    there is none, by one worker that has a thread for each run. UserError if they are more than
    ``per_gpu`` on each GPU.
    """
    import distributed

    if gpus and at_once > len(gpus) * per_gpu:
        raise UserError(
            f"--workers {at_once} on {len(gpus)} GPUs is more than --per-gpu {per_gpu} on each: "
            "lower the one, or raise the other if their memory allows"
        )
    used = gpus[: -(-at_once // per_gpu)]
    common = {
        "memory_limit": 0,
        "preload": DEAF,
        "host": "127.0.0.1",
        "dashboard": False,
        "silence_logs": logging.ERROR,
    }
    environment = {"OMP_NUM_THREADS": str(threads_each(at_once))}
    workers = {}
    for number, gpu in enumerate(used):
        runs = at_once // len(used) + (number < at_once % len(used))
        options = {"nthreads": runs, "env": environment | {"CUDA_VISIBLE_DEVICES": gpu}}
        workers[number] = {"cls": distributed.Nanny, "options": common | options}
    if not used:
        options = {"nthreads": at_once, "env": environment}
        workers[0] = {"cls": distributed.Nanny, "options": common | options}
    cluster = _cluster("127.0.0.1", workers)
    where = f"{at_once} at once" + f" on {len(used)} GPUs" * bool(used)
    return Workers(cluster.scheduler_address, where, cluster.close)


class JobsOfSlurm(Workers):
    """By so many jobs of Slurm, each with a worker for each of its GPUs; the scheduler is this
    process.
    """

    def __init__(self, options: str, jobs: int, per_gpu: int) -> None:
        from distributed.utils import get_ip

        cluster = _cluster(get_ip(), {})
        try:
            script = slurm.script(options, cluster.scheduler_address, jobs, per_gpu)
            self.job = slurm.submit(script)
        except BaseException:
            cluster.close()
            raise
        self.looked = time.monotonic()
        super().__init__(cluster.scheduler_address, f"Slurm's job {self.job}", cluster.close)

    def ended(self) -> list[tuple[Task, Outcome]]:
        """The tasks that have ended since this was last asked; UserError if no job is left."""
        if self.tasks and time.monotonic() - self.looked > LOOK_AT_JOBS:
            self.looked = time.monotonic()
            if not self.client.scheduler_info()["workers"] and not slurm.is_there(self.job):
                raise UserError(
                    f"--slurm: all jobs of {self.job} have ended before the runs: see "
                    f"slurm-{self.job}_*.out; the same command goes on"
                )
        return super().ended()

    def close(self) -> None:
        """Ask what still runs to save and end, wait for it, and end the jobs."""
        super().close()
        slurm.cancel(self.job)


def _cluster(host: str, workers: dict) -> distributed.SpecCluster:
    """A scheduler in this process, and these workers."""
    import dask
    import distributed

    settings = {
        # a worker that is killed takes its runs with it, which are not to blame for it
        "distributed.scheduler.allowed-failures": 20,
        # Scheduler and worker only wait for runs. A hundred profiles and fifty ticks a second each
        # took 8 % of a core from them, this takes 3 %.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
    }
    dask.config.set(settings)
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": host, "port": 0, "dashboard": False, "dashboard_address": ":0"},
    }
    return distributed.SpecCluster(workers, scheduler, silence_logs=logging.ERROR)
