"""What a classroom does to one machine: thirty kernels, thirty trainings at once, and scans that do
not fit into memory.

    python tests/trust/load.py kernels --count 30       lesson 00 by so many students at once
    python tests/trust/load.py trainings --count 30     steps a second in all, and of one alone
    python tests/trust/load.py cohort --limit 256       batches of more images than so many MiB

The exit status is 1 if a kernel failed, if trainings at once lose more than a fifth, or if the
limit was passed; 2 if more was asked than this machine holds. Linux alone says what this reads of
memory.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import psutil
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[2]
LESSON = ROOT / "notebooks" / "00_start_here.ipynb"
LIVE = "application/vnd.jupyter.widget-view+json"  # an output that a kernel keeps alive
PILOTS = 4  # kernels that are tried first, and tell what one takes
SHARE = 0.85  # of the memory that is free: what more is asked is refused
MINUTES = 30  # for a class, after which it has failed
LOST = 0.2  # of the steps a second of one training: so much may many lose together
MIB = 2**20


class Refused(Exception):
    """More is asked than this machine holds."""


# --- kernels --------------------------------------------------------------------------------------


@dataclass
class Student:
    """A kernel, and what became of the lesson in it."""

    manager: AsyncKernelManager
    seconds: float = 0.0  # until its last cell had ended
    error: str = ""


@dataclass
class Class:
    """What a lesson took of the machine; memory in MiB, pages that several share counted once."""

    students: list[Student]
    seconds: float  # until the last had ended
    all_together: float  # the most at one time
    each: list[float]  # of the students, at that time

    @property
    def errors(self) -> list[str]:
        """What went wrong."""
        return [student.error for student in self.students if student.error]


def code_of(lesson: Path = LESSON) -> list[str]:
    """The code cells of a lesson as they stand: its viewers are live ones."""
    cells = nbformat.read(lesson, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    if 'display: str = "live"' not in code[0]:
        raise ValueError(f"{lesson}: its first code cell was to say display = live: {code[0]}")
    return code


def shared_fairly(pid: int) -> float:
    """MiB of a process and of its children, with each page that several processes have divided
    among them (PSS).
    """
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(FileNotFoundError, ProcessLookupError):
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


async def enter(folder: Path) -> Student:
    """A new kernel that works in ``folder`` and has what it writes in there, as every student has a
    folder of their own.
    """
    folder.mkdir(parents=True)
    places = {
        "DEEPATLAS_RUNS": folder / "runs",
        "DEEPATLAS_CACHE": folder / "cache",
        "DEEPATLAS_ANSWERS": folder / "answers.json",
        "IPYTHONDIR": folder / "ipython",
    }
    environment = os.environ | {name: str(place) for name, place in places.items()}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    manager = AsyncKernelManager(kernel_name="python3")
    with open(folder / "said", "w") as said:  # what the kernel says beside its messages
        await manager.start_kernel(cwd=str(folder), env=environment, stdout=said, stderr=said)
    return Student(manager)


async def attend(student: Student, code: list[str], begun: float) -> None:
    """Run the cells in the student's kernel, the next when one has ended, until one fails."""
    cells = [nbformat.v4.new_code_cell(source) for source in code]
    client = NotebookClient(
        nbformat.v4.new_notebook(cells=cells),
        km=student.manager,
        timeout=60 * MINUTES,
        startup_timeout=60 * MINUTES,
    )
    try:
        await client.async_execute()
    except CellExecutionError as error:
        student.error = f"{error.ename}: {error.evalue}"
        return
    except (RuntimeError, TimeoutError) as error:  # it has died, or has not ended
        student.error = str(error)
        return
    finally:
        student.seconds = time.perf_counter() - begun
        if client.kc is not None:
            client.kc.stop_channels()
    shown = [output.get("data", {}) for cell in cells for output in cell.outputs]
    if not any(LIVE in data for data in shown):
        student.error = "no viewer was shown"


async def look(students: list[Student], most: list[float]) -> None:
    """Keep in ``most`` what each of them holds when all together hold most."""
    while True:
        now = [shared_fairly(student.manager.provisioner.pid) for student in students]
        if sum(now) > sum(most):
            most[:] = now
        await asyncio.sleep(2)


async def teach(count: int, code: list[str], folder: Path) -> Class:
    """``count`` students begin at once; who has ended keeps the kernel until all have."""
    begun = time.perf_counter()
    students = await asyncio.gather(*(enter(folder / f"student-{i}") for i in range(count)))
    most: list[float] = []
    looking = asyncio.create_task(look(students, most))
    try:
        await asyncio.gather(*(attend(student, code, begun) for student in students))
        await asyncio.sleep(2)  # one look more, at all of them
    finally:
        looking.cancel()
        await asyncio.gather(*(s.manager.shutdown_kernel(now=True) for s in students))
    return Class(students, max(student.seconds for student in students), sum(most), most)


def run_class(count: int, code: list[str], folder: Path) -> Class:
    """``teach`` to its end, in a thread of its own: this one may run an event loop already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(teach(count, code, folder))).result()


def check_room(count: int, each: float, free: float) -> None:
    """Refused if so many, of so many MiB each, do not fit in the MiB that are free."""
    if count * each > SHARE * free:
        raise Refused(
            f"{count} students of {each:.0f} MiB each are {count * each:.0f} MiB, and of "
            f"{free:.0f} that are free {SHARE:.0%} may be taken: ask for {int(SHARE * free / each)}"
        )


def kernels(count: int = 30) -> Class:
    """Lesson 00, live, by ``count`` students at once; Refused where a few take too much.

    Each has a kernel of one and the same server, which is what a room has whose students log in to
    one machine: a Jupyter server starts and watches kernels by the kernel managers that are used
    here. A hub gives each student a server as well, of some 100 MiB, and the browser has its own
    machine.
    """
    code = code_of()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if count > PILOTS:
            pilots = run_class(PILOTS, code, folder / "pilots")
            told_class(pilots)
            if pilots.errors:
                return pilots
            check_room(count, max(pilots.each), psutil.virtual_memory().available / MIB)
        return run_class(count, code, folder / "class")


def told_class(found: Class) -> None:
    """Print what a lesson took."""
    each = found.each
    print(
        f"{len(found.students)} kernels: the last had ended after {found.seconds:.0f} s; memory of "
        f"a student {sum(each) / len(each):.0f} MiB in the mean, {max(each):.0f} at most, of all "
        f"{found.all_together:.0f}; {len(found.errors)} failed",
        flush=True,
    )
    for error in sorted(set(found.errors)):
        print(f"    {error}")


# --- trainings ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Steps a second: of one training that has the machine, and of many at once, in all."""

    alone: float
    together: float
    threads: int  # PyTorch's, in each of the many

    @property
    def ratio(self) -> float:
        """How much of one training's rate many have together; 1 and more: nothing is lost."""
        return self.together / self.alone


PRELOADED = ["deepatlas.datasets", "deepatlas.trainings"]  # imported once for all of them


def train(profile: str, cache: str, pipe: Connection) -> None:
    """What one process does: get ready, say so, and train as many steps as it is told through the
    ``pipe``, until it is told none; each time it answers on how many threads.
    """
    from deepatlas import datasets, parameters, training, trainings
    from deepatlas.regimes import JOINT, REGIMES

    import torch

    os.environ["DEEPATLAS_CACHE"] = cache
    experiment = parameters.parse({"profile": profile, "dims": 2})
    with redirect_stdout(io.StringIO()):
        cohort = datasets.load_cohort("phantom-brain", profile=experiment.profile, dims=2)
    some = trainings.some_labelled(cohort, experiment)

    def train_for(steps: int) -> None:
        settings = training.Settings(
            {"seg": steps - steps // 2, "reg": steps // 2},
            batch_size=experiment.batch_size,
            validations=1,
            quiet=True,
        )
        networks = trainings.new_networks(experiment, len(cohort.structures))
        with tempfile.TemporaryDirectory() as folder:
            training.train(networks, some, REGIMES[JOINT], settings, Path(folder))

    train_for(2)
    pipe.send(torch.get_num_threads())
    while steps := pipe.recv():
        train_for(steps)
        pipe.send(torch.get_num_threads())


@dataclass(frozen=True)
class Training:
    """A process of ``train``."""

    process: BaseProcess
    pipe: Connection

    @classmethod
    def begin(cls, profile: str, folder: Path) -> Training:
        """One that is getting ready."""
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(PRELOADED)
        here, there = processes.Pipe()
        arguments = (profile, str(folder / "cache"), there)
        process = processes.Process(target=train, args=arguments, daemon=True)
        process.start()
        there.close()  # so that its end is seen here
        return cls(process, here)

    def answer(self) -> int:
        """The number of its threads, once it has done what it was told; EOFError if it ended."""
        return self.pipe.recv()

    def end(self) -> None:
        """Tell it that there is no more to do, or kill it."""
        with suppress(OSError):
            self.pipe.send(0)
            self.process.join(timeout=10)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def rate(some: list[Training], steps: int) -> tuple[float, int]:
    """Steps a second of all these together, each of which takes ``steps``, until the last has
    ended; and the threads of one.
    """
    begun = time.perf_counter()
    for one in some:
        one.pipe.send(steps)
    threads = [one.answer() for one in some]
    return len(some) * steps / (time.perf_counter() - begun), threads[0]


def trainings(count: int = 30, steps: int = 20, profile: str = "class") -> Rates:
    """``count`` processes that train at once, ``steps`` each, and one that has the machine to
    itself, before and after; nobody says to them how many threads they may take, unless the
    environment does.
    """
    for_itself = steps * max(1, count // 3)
    some: list[Training] = []
    with tempfile.TemporaryDirectory() as name:
        try:
            some.append(Training.begin(profile, Path(name)))
            some[0].answer()
            before, _ = rate(some, for_itself)
            some += [Training.begin(profile, Path(name)) for _ in range(count - 1)]
            for one in some[1:]:
                one.answer()
            together, threads = rate(some, steps)
            for one in some[1:]:
                one.end()
            after, _ = rate(some[:1], for_itself)
        finally:
            for one in some:
                one.end()
    return Rates((before + after) / 2, together, threads)


def told_rates(found: Rates, count: int) -> None:
    """Print what many lose."""
    print(
        f"one training: {found.alone:.2f} steps a second; {count} at once, of {found.threads} "
        f"threads each: {found.together:.2f} in all, {found.ratio:.0%}"
    )


# --- a cohort larger than memory ------------------------------------------------------------------

ENTRY = """
name = "many"
title = "Made to be larger than memory"
licence = "CC0"
structures = [["ball", [1]]]
grids.full-3d = {{ shape = [{side}, {side}, {side}], spacing = 1.0 }}
"""
SCAN = """
[[scans]]
id = "{id}"
subject = "{id}"
image = "{id}.nii"
labels = "ball.nii"
part = "{part}"
"""


@dataclass(frozen=True)
class Streamed:
    """What a process under a limit has come to; in MiB."""

    limit: float  # of memory of its own, beside what Python and its libraries hold
    libraries: float  # what these hold
    most: float  # that it had beside them at one time
    images: float  # of the whole cohort, as the process saw it; 0 if it did not come so far
    seen: int  # scans that were in a batch
    scans: int  # that there are

    @property
    def within(self) -> bool:
        """Has every scan been in a batch, and was the limit kept?"""
        return self.most <= self.limit and self.seen == self.scans > 0


def write_cohort(folder: Path, scans: int, side: int) -> Path:
    """Files of ``scans`` images of ``side``^3 voxels, and the cohort file that lists them."""
    distance = np.linalg.norm(np.indices((side,) * 3) - side / 2, axis=0) / side
    ball = (distance < 0.3).astype(np.uint8)
    nib.save(nib.Nifti1Image(ball, np.eye(4)), folder / "ball.nii")
    noise = np.random.default_rng(0).integers(0, 100, ball.shape)
    image = (noise + np.where(ball, 1000, 0)).astype(np.int16)
    lines = [ENTRY.format(side=side)]
    for number in range(scans):
        image.flat[number] += 500  # else they would be copies of one another
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"scan{number:05d}.nii")
        part = {0: "validation", 1: "test"}.get(number, "train")
        lines.append(SCAN.format(id=f"scan{number:05d}", part=part))
    (folder / "cohort.toml").write_text("".join(lines))
    return folder / "cohort.toml"


def draw(path: str, keep: bool) -> None:
    """What one process does: get ready, say so, load the cohort, for the first time and again, and
    draw every scan twice, in batches of four as a training draws pairs. With ``keep`` it holds them
    all, which is what must not be.
    """
    from deepatlas import datasets
    from deepatlas.data import Batch

    import torch

    print("ready", flush=True)
    entry = datasets.describe(path)
    datasets.load_cohort(entry, profile="full", dims=3)
    cohort = datasets.load_cohort(entry, profile="full", dims=3)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    kept = []
    for _ in range(2):
        order = torch.randperm(len(cohort.scans), generator=generator).tolist()
        for first in range(0, len(order), 4):
            scans = [cohort.scans[number] for number in order[first : first + 4]]
            batch = Batch.of(scans, len(cohort.structures), cohort.device)
            batch.image.mean().item()
            seen.update(batch.ids)
            if keep:
                kept.append(batch)
    images = sum(scan.image.nbytes for scan in cohort.scans) / MIB
    print(json.dumps({"images": images, "seen": len(seen)}))


def own_memory(pid: int) -> float:
    """MiB that a process has and the system cannot take back: no page of it is also in a file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:"))]
    return sum(kib) / 1024


def cohort(limit: int = 256, scans: int = 300, side: int = 96) -> Streamed:
    """Files of ``scans`` images of ``side``^3 voxels, which are more than ``limit`` MiB, and what
    comes of drawing batches of them within that limit.
    """
    if 4 * scans * side**3 <= limit * MIB:
        raise ValueError(f"{scans} images of {side}^3 voxels are no more than {limit} MiB")
    with tempfile.TemporaryDirectory() as name:
        return draw_within(limit, write_cohort(Path(name), scans, side), scans)


def draw_within(limit: int, path: Path, scans: int, *, keep: bool = False) -> Streamed:
    """Load a cohort of so many scans and draw batches of it, in a process that is killed once it
    holds ``limit`` MiB of its own, beside what Python and its libraries hold.

    What is limited is anonymous memory, looked at a hundred times a second: pages of files, which
    the cache of scans maps, are taken back by a system that needs them. RLIMIT_AS and RLIMIT_DATA
    will not do: they count what is mapped, privately and writable, as if all of it were there.
    """
    environment = os.environ | {"DEEPATLAS_CACHE": str(path.parent / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "draw", str(path)] + ["--keep"] * keep
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, text=True, env=environment) as process:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the process ended before it had begun, with {process.wait()}")
        libraries = most = own_memory(process.pid)
        while process.poll() is None:
            with suppress(FileNotFoundError, ProcessLookupError):
                most = max(most, own_memory(process.pid))
            if most > libraries + limit:
                process.kill()
            time.sleep(0.01)
        said = process.stdout.read().splitlines()
    found = {"images": 0.0, "seen": 0}
    if process.returncode == 0:
        found = json.loads(said[-1])
    return Streamed(limit, libraries, most - libraries, found["images"], found["seen"], scans=scans)


def told_cohort(found: Streamed) -> None:
    """Print whether the limit was kept."""
    print(
        f"{found.scans} scans, {found.images:.0f} MiB of images: {found.seen} were drawn with "
        f"{found.most:.0f} MiB of the process's own at most, of {found.limit:.0f} that it may "
        f"have beside Python and its libraries, which hold {found.libraries:.0f}"
    )


# --- the command ----------------------------------------------------------------------------------


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """What is to be done, and how much of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("kernels", help="students who do lesson 00 at once")
    part.add_argument("--count", type=int, default=30)
    part = parts.add_parser("trainings", help="processes that train at once")
    part.add_argument("--count", type=int, default=30)
    part.add_argument("--steps", type=int, default=20, help="of each")
    part.add_argument("--profile", default="class", choices=["smoke", "class"])
    part = parts.add_parser("cohort", help="images that do not fit into memory")
    part.add_argument("--limit", type=int, default=256, help="MiB beside Python's own")
    part.add_argument("--scans", type=int, default=300)
    part.add_argument("--side", type=int, default=96, help="voxels, a multiple of 8")
    part = parts.add_parser("draw", help="what the process under the limit does")
    part.add_argument("path")
    part.add_argument("--keep", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Do one part, and print what it took."""
    options = vars(parsed(arguments))
    part = options.pop("part")
    if part == "kernels":
        try:
            lesson = kernels(**options)
        except Refused as error:
            print(error)
            return 2
        told_class(lesson)
        return int(bool(lesson.errors))
    if part == "trainings":
        rates = trainings(**options)
        told_rates(rates, options["count"])
        return int(rates.ratio < 1 - LOST)
    if part == "cohort":
        streamed = cohort(**options)
        told_cohort(streamed)
        return int(not streamed.within)
    draw(**options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
