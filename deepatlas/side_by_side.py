"""Regimes of one run that do not wait for each other, trained side by side in processes of their
own.

Two threads are hardly faster than one on small slices (1.2 x), two processes with a thread each
twice as fast. The process that holds the run says who trains what, keeps the record and scores; a
worker (``python -m deepatlas.side_by_side RUN``) is told the names of regimes, one after the other.
It stops, saved, when nobody is left to tell it anything.
"""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from . import locks, machine
from .checkpoints import Interrupted, OutOfTime, stop_requests
from .distributed import ALONE, Ranks
from .errors import UserError
from .places import PACKAGE
from .records import file_problem
from .regimes import BASELINES, Regime
from .tracking import Watch, tracked
from .trainings import RUN_LOCK, Trainings, go_on

MOST = 4  # workers: the table is hardly wider
ASIDE = 1.15  # times faster it must be to be worth processes of their own
WORTH = 1000  # steps of a baseline, below which it is over before other processes have begun
GIB_EACH = 1.5  # of memory free for a worker, which holds PyTorch, the scans and a step
CLEARLY = 1.1  # times sooner all must be done for baselines not to be begun first
ALSO_ASKS = 2  # a step that consults the other network costs about twice one that does not


# --- all regimes of a run -------------------------------------------------------------------------

Ended = Callable[[str, Mapping[str, nn.Module]], None]  # sees a regime, and its networks


@dataclass(frozen=True)
class Call:
    """How long a run may take, by whom, and who looks on: nothing that its result depends on."""

    until: float | None = None  # when to stop, saved, on the clock of ``time.monotonic``
    workers: int | None = 1  # processes that train side by side; None: as many as pay
    log: tuple[str, ...] = ()  # of ``tracking.TRACKERS``
    ranks: Ranks = ALONE  # processes that train each regime together


def train_all(trainings: Trainings, ended: Ended | None = None, call: Call | None = None) -> float:
    """Train, or find, every regime of ``trainings``, as soon as those have ended that it starts
    from. Returns the most memory of a process, in GiB.

    Raises Interrupted, OutOfTime, and what a training raises.
    """
    call = call or Call()
    workers = call.workers
    if workers is not None and workers < 1:
        raise UserError(f"workers: 1 or more was wanted, or None for as many as pay, got {workers}")
    costs = {key: cost(trainings.table[key], steps) for key, steps in trainings.untrained().items()}
    if call.ranks.count > 1 or not costs:
        workers = 1
    if workers is None:
        workers = workers_that_pay(
            trainings.table, costs, trainings.experiment.dims, trainings.cohort.device
        )
    workers = min(workers, max(1, len(costs)))
    order = list(trainings.table) if workers == 1 else soonest(trainings.table, costs, workers)
    hands = Here(trainings, call) if workers == 1 else Workers(trainings, workers, call)
    if not trainings.record["steps"]:
        trainings.record["threads"] = hands.threads
    # a second Ctrl-C does not disturb those that save what they have
    with stop_requests() as stopped, hands:
        course = _Course(trainings, hands, ended, order)
        try:
            while course.goes_on():
                if stopped:
                    raise Interrupted(
                        f"{trainings.folder}: stopped; the same command goes on from there"
                    )
                if call.until is not None and time.monotonic() > call.until:
                    raise OutOfTime(
                        f"{trainings.folder}: its time is over; the same command goes on from there"
                    )
        finally:
            course.give_back()
    if file_problem(trainings.record, trainings.folder, "history.csv"):
        trainings.keep_history()
    return hands.peak_memory_gib


class _Course:
    """How far a run has come."""

    def __init__(
        self, trainings: Trainings, hands: Here | Workers, ended: Ended | None, order: list[str]
    ) -> None:
        self.trainings = trainings
        self.hands = hands
        self.ended = ended
        self.waiting = order
        self.locks: dict[str, locks.Lock] = {}  # of what is being trained
        self.unseen: list[str] = []  # what has ended, and nobody was shown
        self.told: set[str] = set()

    def goes_on(self) -> bool:
        """Begin with what can be begun, and show what has ended; False: that was all."""
        for key in list(self.waiting):
            ready = self.trainings.waits_for(key) <= self.trainings.networks.keys()
            # others go on training while this process scores and draws, and are told first
            free = self.hands.free and (self.hands.aside or not self.unseen)
            if ready and free and self._begin(key):
                self.waiting.remove(key)
        done = self.hands.wait(seconds=0.0 if self.unseen else 0.5) if self.locks else None
        if done is not None:
            self._end(done)
        elif self.unseen:
            key = self.unseen.pop(0)
            if self.ended is not None:
                self.ended(key, self.trainings.networks[key])
        elif self.waiting and not self.locks:
            time.sleep(1.0)  # for another run
        return bool(self.waiting or self.locks or self.unseen)

    def _begin(self, key: str) -> bool:
        """Begin with ``key``, or have it; False: another run trains the same just now."""
        trainings = self.trainings
        if trainings.is_trained(key):
            self._say(key, trainings.folder)
            self._end(key)
            return True
        trainings.forget(key)
        lock = trainings.lock_of(key)
        try:
            lock.acquire()
        except locks.Held as error:
            if key not in self.told:
                title = trainings.table[key].title
                tqdm.write(f"{title}: another run trains the same, this one waits for it ({error})")
            self.told.add(key)
            return False
        self.locks[key] = lock
        where = trainings.take_from_elsewhere(key)
        self._say(key, where)
        if where is None:
            self.hands.start(key)
        else:
            self.hands.spare(key)
            self._end(key)
        return True

    def _end(self, key: str) -> None:
        """Load what has ended, and write that down."""
        if key not in self.trainings.networks:
            self.trainings.train(key)
        self.trainings.keep(key)
        if key in self.locks:
            self.locks.pop(key).release()  # whoever waits for it finds it in the record
        self.unseen.append(key)

    def _say(self, key: str, where: Path | None) -> None:
        trainings = self.trainings
        regime = trainings.table[key]
        what = f"{' and '.join(regime.trains)}, {sum(trainings.steps[key].values())} steps"
        found = "" if where is None else f", found in {where}"
        place = list(trainings.table).index(key) + 1
        tqdm.write(f"[{place}/{len(trainings.table)}] {regime.title}: {what}{found}")

    def give_back(self) -> None:
        """Let others train what was not ended."""
        for lock in self.locks.values():
            lock.release()


# --- how many, and which first --------------------------------------------------------------------


def cost(regime: Regime, steps: Mapping[str, int]) -> int:
    """What training a regime costs, in steps of a baseline."""
    return sum(steps.values()) * (ALSO_ASKS if regime.consults else 1)


def chains(table: Mapping[str, Regime], costs: Mapping[str, int]) -> dict[str, int]:
    """Of each regime, what must be trained one after the other from its beginning to the end."""
    found: dict[str, int] = {}
    for key in reversed(list(table)):  # whoever starts from it stands below
        after = [found[other] for other in found if key in table[other].start.values()]
        found[key] = costs.get(key, 0) + max(after, default=0)
    return found


def workers_that_pay(
    table: Mapping[str, Regime], costs: Mapping[str, int], dims: int, device: torch.device
) -> int:
    """How many processes train the regimes of ``costs`` soonest; 1: this one alone.

    t threads do a step t^.3 times as fast as one on slices, t^.7 on volumes. On a GPU it is one:
    whether several share it well depends on the networks, so somebody has to say so.
    """
    threads = torch.get_num_threads()
    room = int(machine.free_memory_gib() / GIB_EACH)
    work = sum(costs.values())
    if device.type != "cpu" or work < WORTH:
        return 1
    gain = 0.3 if dims == 2 else 0.7
    longest = max(chains(table, costs).values())
    times = {1: work / threads**gain / ASIDE}
    for workers in range(2, min(MOST, threads, room, len(costs)) + 1):
        times[workers] = max(longest, work / workers) / (threads // workers) ** gain
    return min(times, key=lambda workers: times[workers])


def soonest(table: Mapping[str, Regime], costs: Mapping[str, int], workers: int) -> list[str]:
    """In which order regimes are begun: baselines, which a reader looks for first, and then what
    most is waiting for; or that at once, where all are done clearly sooner.
    """
    length = chains(table, costs)
    longest_first = sorted(table, key=lambda key: -length[key])
    baselines_first = sorted(longest_first, key=lambda key: key not in BASELINES.values())
    orders = (longest_first, baselines_first)
    sooner, later = (duration(order, table, costs, workers) for order in orders)
    return longest_first if CLEARLY * sooner < later else baselines_first


def duration(
    order: list[str], table: Mapping[str, Regime], costs: Mapping[str, int], workers: int
) -> int:
    """What ``workers`` take, in steps of a baseline, if whoever is free begins with the first of
    ``order`` that waits for nothing.
    """
    free_at = [0] * workers
    ended: dict[str, int] = {}
    waiting = list(order)
    while waiting:
        now = min(free_at)
        there = {key for key, end in ended.items() if end <= now}
        ready = [key for key in waiting if there >= {*table[key].start.values()}]
        if ready:
            waiting.remove(ready[0])
            until = ended[ready[0]] = now + costs.get(ready[0], 0)
        else:
            until = min(end for end in ended.values() if end > now)
        free_at[free_at.index(now)] = until
    return max(ended.values())


# --- the process that holds the run ---------------------------------------------------------------


class Here:
    """This process, which trains one regime after the other; all ``ranks`` train the same."""

    aside = False

    def __init__(self, trainings: Trainings, call: Call) -> None:
        self.trainings = trainings
        self.call = call
        self.threads = torch.get_num_threads()
        self.done: list[str] = []

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def free(self) -> bool:
        """Is there nothing that has ended and was not looked at?"""
        return not self.done

    def start(self, key: str) -> None:
        """Train ``key``, to its end."""
        folder, device = self.trainings.folder, self.trainings.cohort.device
        self.call.ranks.say({"folder": str(folder), "device": device.type, "key": key})
        with tracked(self.call.log, folder, key) as watch:
            self.trainings.train(key, self.call.until, watch, self.call.ranks)
        self.done.append(key)

    def spare(self, key: str) -> None:
        """Nobody need train ``key``."""

    def wait(self, seconds: float) -> str | None:
        """What has ended."""
        return self.done.pop() if self.done else None

    @property
    def peak_memory_gib(self) -> float:
        """The most memory that this process has held."""
        return machine.peak_memory_gib(self.trainings.cohort.device)


class Workers:
    """Processes that train regimes of ``trainings``, under the run's lock that this one holds."""

    aside = True

    def __init__(self, trainings: Trainings, count: int, call: Call) -> None:
        self.trainings = trainings
        self.said: queue.Queue[tuple[int, dict | None]] = queue.Queue()
        self.busy: dict[int, str] = {}
        self.steps: dict[str, int] = {}  # taken by the regimes that are being trained
        self.peak_of_workers = 0.0
        assert trainings.lock is not None  # it holds the run, and its workers adopt this lock
        self.threads = max(1, torch.get_num_threads() // count)
        paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        command = [sys.executable, "-m", "deepatlas.side_by_side", str(trainings.folder)]
        self.processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is this process's alone
            )
            for _ in range(count)
        ]
        first = {
            "token": trainings.lock.token,
            "device": str(trainings.cohort.device),
            "seconds_left": None if call.until is None else call.until - time.monotonic(),
            "log": call.log,
        }
        for i, process in enumerate(self.processes):
            threading.Thread(target=self._listen, args=(i, process), daemon=True).start()
            self._tell(i, first)
        total = sum(sum(steps.values()) for steps in trainings.untrained().values())
        self.bar = tqdm(desc=f"{count} side by side", unit="step", total=total)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        """Stop them, each saved; nothing happens to those that have ended."""
        for process in self.processes:
            with suppress(BrokenPipeError):  # it has died, and was told something after that
                if process.stdin is not None:
                    process.stdin.close()
        for process in self.processes:
            process.wait()
        self.bar.close()

    def _listen(self, i: int, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        try:
            with process.stdout as lines:
                for line in lines:
                    self.said.put((i, json.loads(line)))
        finally:  # it may have died in the middle of a line
            self.said.put((i, None))

    def _tell(self, i: int, message: Mapping) -> None:
        with suppress(BrokenPipeError):  # it has died, as ``wait`` will hear
            print(json.dumps(message), file=self.processes[i].stdin, flush=True)

    @property
    def free(self) -> bool:
        """Is a worker without work?"""
        return len(self.busy) < len(self.processes)

    def start(self, key: str) -> None:
        """Let a worker that is free train ``key``."""
        i = next(i for i in range(len(self.processes)) if i not in self.busy)
        self.busy[i] = key
        self._tell(i, {"train": key})

    def spare(self, key: str) -> None:
        """Nobody need train ``key``."""
        self.bar.total -= sum(self.trainings.steps[key].values())

    def wait(self, seconds: float) -> str | None:
        """The next regime that has ended, within so many seconds; None: none has.

        What a worker raised is raised here.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                i, said = self.said.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return None
            if said is None:
                self._explain(i)
            elif "raised" in said:
                raise _ERRORS[said["raised"]](said["sentence"])
            elif "step" in said:
                self._show(self.busy[i], said["step"])
            elif "ended" in said:
                self.peak_of_workers = max(self.peak_of_workers, said["peak_memory_gib"])
                key = self.busy.pop(i)
                self._show(key, sum(self.trainings.steps[key].values()))
                del self.steps[key]
                return key

    @property
    def peak_memory_gib(self) -> float:
        """The most memory that a worker has held, or this process, which scores."""
        own = machine.peak_memory_gib(self.trainings.cohort.device)
        return max(own, self.peak_of_workers)

    def _show(self, key: str, step: int) -> None:
        self.bar.update(step - self.steps.get(key, 0))
        self.steps[key] = step
        self.bar.set_postfix(self.steps, refresh=False)

    def _explain(self, i: int) -> None:
        code = self.processes[i].wait()
        if i not in self.busy:
            what = "waited for work"
        else:
            what = f"trained {self.trainings.table[self.busy[i]].title}"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise UserError(
            f"{self.trainings.folder}: the process that {what} has died ({how}); if memory was "
            "short, let one regime be trained at a time, by --workers 1: the same command goes on "
            "from what was saved"
        )


# --- a worker -------------------------------------------------------------------------------------

# What may go wrong with a training is told by the process that holds the run, as if it had been its
# own; of a class and one derived from it, that one first.
_KINDS = (OutOfTime, Interrupted, FloatingPointError, MemoryError, UserError)
_ERRORS = {kind.__name__: kind for kind in _KINDS}


def _work(folder: Path) -> None:
    """Train what standard input names, and tell standard output of it, a line of JSON each."""
    # A queue asks all processes of a job to stop; this one, while it trains nothing, by its parent.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    speak = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed

    def tell(**said: object) -> None:
        with suppress(BrokenPipeError):  # nobody hears it, and ``listen`` will know
            os.write(speak, f"{json.dumps(said)}\n".encode())

    orders: queue.Queue[dict | None] = queue.Queue()
    alone = threading.Event()  # nobody is left who would tell more

    def listen() -> None:
        for line in sys.stdin:
            orders.put(json.loads(line))
        alone.set()
        orders.put(None)

    threading.Thread(target=listen, daemon=True).start()
    first = orders.get()
    if first is None:
        return
    left = first["seconds_left"]
    until = None if left is None else time.monotonic() + left
    try:
        locks.adopt(folder / RUN_LOCK, first["token"])
        with redirect_stdout(io.StringIO()):  # the scans' licence has been said
            trainings = go_on(folder, first["device"])
        while (order := orders.get()) is not None:
            key = order["train"]
            with tracked(first["log"], folder, key) as log:
                trainings.train(key, until, _told(tell, log, alone), quiet=True)
            tell(ended=key, peak_memory_gib=machine.peak_memory_gib(trainings.cohort.device))
    except _KINDS as error:
        kind = next(kind for kind in _KINDS if isinstance(error, kind))
        tell(raised=kind.__name__, sentence=str(error))


def _told(tell: Callable[..., None], log: Watch | None, alone: threading.Event) -> Watch:
    """Tell of a training twice a second; the tracker ``log`` sees every row. Once ``alone``, ask
    the training to stop, as Ctrl-C does.
    """
    last = 0.0

    def watch(row: Mapping[str, object]) -> None:
        nonlocal last
        if log is not None:
            log(row)
        if alone.is_set():
            signal.raise_signal(signal.SIGTERM)
        elif time.monotonic() - last > 0.5:
            last = time.monotonic()
            tell(step=row["step"])

    return watch


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
