"""The same work by several programs, timed side by side, and the rows that are kept of it.

Programs take turns, so that what else the machine does falls on all of them alike; a row keeps the
median of the turns. Before that each program's answer is compared with the kit's. On a CPU the
ratio is one of process CPU time, which other processes hardly disturb; on a GPU of seconds.

Memory is the most that PyTorch's allocator held above the inputs: what else a library takes, as
oneDNN does for packed weights, is not seen on a CPU.
"""

import csv
import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path

from deepatlas.checkpoints import write_atomically

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own words; read by torch

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

ROWS = Path(__file__).parents[1] / "tutorials_data" / "results" / "benchmarks.csv"
KIT = "deepatlas"
UNKNOWN = math.nan


@dataclass(frozen=True)
class Row:
    """One measurement: a line of benchmarks.csv."""

    operation: str
    size: str
    program: str
    version: str = ""
    device: str = "cpu"
    processor: str = ""
    threads: int = 0
    dtype: str = "float32"
    torch: str = ""
    seconds: float = UNKNOWN  # of the wall clock, as medians; so are the next
    cpu_seconds: float = UNKNOWN  # of the process, all its threads
    memory_mib: float = UNKNOWN  # the most held above the inputs
    ratio: float = UNKNOWN  # time over that of the fastest peer, or of the one the goal is about
    memory_ratio: float = UNKNOWN  # memory over that of the thriftiest peer
    goal: float = UNKNOWN  # for the ratio, of the kit's row
    memory_goal: float = UNKNOWN
    error: float = UNKNOWN  # from the kit's answer, or as the note says
    dice: float = UNKNOWN  # percent, on test scans, of what was registered or trained
    floor_seconds: float = UNKNOWN  # inputs read and results written once, nothing else
    over_floor: float = UNKNOWN  # time over the floor
    exponent: float = UNKNOWN  # time grows as size^exponent
    note: str = ""

    @property
    def key(self):
        """What is measured: a new row of the same key takes the place of the old one."""
        return (self.operation, self.size, self.program, self.device, self.threads, self.dtype)


# --- rows on disk ---------------------------------------------------------------------------------


def read_rows(path: Path = ROWS) -> list[Row]:
    """The rows of a file, in its order; none if there is no file."""
    if not path.exists():
        return []
    kinds = {column.name: column.type for column in fields(Row)}
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = []
    for line in lines:
        values = {}
        for name, text in line.items():
            if kinds[name] is float:
                values[name] = float(text) if text else UNKNOWN
            else:
                values[name] = kinds[name](text)
        rows.append(Row(**values))
    return rows


def keep(rows: list[Row], path: Path = ROWS) -> None:
    """Add ``rows`` to the file; what was measured before is replaced, in its place."""
    kept = {row.key: row for row in read_rows(path)}
    kept |= {row.key: row for row in rows}
    names = [column.name for column in fields(Row)]

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            for row in kept.values():
                writer.writerow([_text(getattr(row, name)) for name in names])

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4g}"


# --- the machine ----------------------------------------------------------------------------------


def version(package: str) -> str:
    """The version of an installed package, "" if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def processor(device: str) -> str:
    """The name of the GPU or CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(frozen=True)
class Machine:
    """Where work is timed, and how fast it is at its best."""

    device: str = "cpu"
    copy_rate: float = UNKNOWN  # bytes a second, read and written, of a large copy
    matrix_rate: float = UNKNOWN  # float32 operations a second, of a large matrix product

    def floor(self, moved_bytes: float, operations: float = 0.0) -> float:
        """Seconds that so much takes if nothing else did."""
        return max(moved_bytes / self.copy_rate, operations / self.matrix_rate)


def measure_machine(device: str) -> Machine:
    """A machine with the rates that floors are made from, the best of several tries."""
    large = torch.ones(2**26, device=device)  # 256 MiB: beyond every cache
    into = torch.empty_like(large)
    copying = best_seconds(lambda: into.copy_(large), device)
    side = 4096 if device == "cuda" else 1024
    matrix = torch.rand(side, side, device=device)
    multiplying = best_seconds(lambda: matrix @ matrix, device)
    return Machine(device, 2 * large.nbytes / copying, 2 * side**3 / multiplying)


def best_seconds(work: Callable[[], object], device: str, tries: int = 7) -> float:
    """The shortest of several times, after one that does not count: of the process on a CPU."""
    work()
    return min(timed(work, device, 1)[device == "cpu"] for _ in range(tries))


# --- time and memory ------------------------------------------------------------------------------


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: str, times: int) -> tuple[float, float]:
    """Seconds of the wall clock and of this process that one call of ``work`` takes, the mean of
    so many.
    """
    _wait(device)
    wall, own = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - wall) / times, (time.process_time() - own) / times


def peak_mib(work: Callable[[], object], device: str) -> float:
    """The most memory that ``work`` holds above what there was before, as PyTorch's allocator
    counts it.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    changes = []
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            changes.append((event.start_ns(), event.nbytes()))
    held = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):  # of one instant: as they came
        held += size
        peak = max(peak, held)
    return peak / 2**20


@dataclass(frozen=True)
class Turns:
    """How long programs take turns."""

    least: int = 5  # turns of each
    seconds: float = 4.0  # as long as all of them together stay below, more turns
    most: int = 25
    shortest: float = 0.02  # a turn of less is repeated, and the mean is taken


def take_turns(
    works: Mapping[str, Callable[[], object]], device: str, turns: Turns
) -> dict[str, tuple[float, float]]:
    """{program: (seconds, CPU seconds)} of one call, medians over turns that alternate."""
    times = {}
    for name, work in works.items():
        work()  # the first call reserves memory and chooses algorithms
        seconds, _ = timed(work, device, 1)
        times[name] = max(1, math.ceil(turns.shortest / max(seconds, 1e-7)))
    found = {name: [] for name in works}
    names, begun, count = list(works), time.perf_counter(), 0
    gc.collect()
    gc.disable()
    try:
        while count < turns.least or (
            count < turns.most and time.perf_counter() - begun < turns.seconds
        ):
            for name in names:
                found[name].append(timed(works[name], device, times[name]))
            names.append(names.pop(0))  # another one first
            count += 1
    finally:
        gc.enable()
    medians = {}
    for name, pairs in found.items():
        walls, owns = zip(*pairs, strict=True)
        medians[name] = (statistics.median(walls), statistics.median(owns))
    return medians


# --- programs side by side ------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One piece of work, with the programs that can do it: functions of the ``inputs``."""

    operation: str
    size: str
    inputs: tuple[torch.Tensor, ...]
    programs: Mapping[str, Callable[..., torch.Tensor]]  # the kit's first
    against: tuple[str, ...] = ()  # whose best the ratio is to; empty: all but the kit
    goal: float = UNKNOWN
    memory_goal: float = UNKNOWN
    # how far an answer may be from the kit's, relative to it; definitions differ at borders
    tolerance: float = 1e-3
    moved_bytes: float = UNKNOWN  # that must be read or written, inputs and results alone
    operations: float = 0.0  # of floating-point numbers, where they are what takes the time
    errors: Mapping[str, float] = field(default_factory=dict)  # known otherwise than by comparison
    notes: Mapping[str, str] = field(default_factory=dict)


def forward_and_backward(program: Callable, inputs: tuple, weight: torch.Tensor) -> tuple:
    """The answer, and its gradients by those inputs that want one."""
    answer = program(*inputs)
    wanted = [x for x in inputs if x.requires_grad]
    return answer.detach(), torch.autograd.grad(answer, wanted, weight)


def compare(work: Work, machine: Machine, turns: Turns) -> list[Row]:
    """Rows of the programs' forward and backward passes; AssertionError if answers differ."""
    weight = _weight_of(work)
    works, errors, memory = {}, {}, {}
    reference = None
    for name, program in work.programs.items():

        def one(program=program):
            return forward_and_backward(program, work.inputs, weight)

        found = one()
        if reference is None:
            reference = found
        errors[name] = _difference(found, reference)
        if name not in work.errors:
            assert errors[name] <= work.tolerance, (
                f"{work.operation}, {work.size}: {name} differs by {errors[name]:.2g} from "
                f"{KIT}, more than {work.tolerance}: not the same work"
            )
        del found
        memory[name] = peak_mib(one, machine.device)
        works[name] = one
    del reference
    medians = take_turns(works, machine.device, turns)
    rows = []
    floor = machine.floor(work.moved_bytes, work.operations)
    by_cpu = machine.device == "cpu"
    measure = {name: own if by_cpu else wall for name, (wall, own) in medians.items()}
    peers = [name for name in work.against or list(work.programs)[1:] if name in measure]
    for name, (wall, own) in medians.items():
        row = row_of(work.operation, work.size, name, machine.device)
        best = min([measure[peer] for peer in peers], default=UNKNOWN)
        least = min([memory[peer] for peer in peers], default=UNKNOWN)
        row = replace(
            row,
            seconds=wall,
            cpu_seconds=own,
            memory_mib=memory[name],
            ratio=measure[name] / best,
            memory_ratio=memory[name] / least if least else UNKNOWN,
            error=work.errors.get(name, errors[name]),
            floor_seconds=floor,
            over_floor=measure[name] / floor,
            note=work.notes.get(name, ""),
        )
        if name == KIT:
            row = replace(row, goal=work.goal, memory_goal=work.memory_goal)
        rows.append(row)
    return rows


def row_of(operation: str, size: str, program: str, device: str, **values) -> Row:
    """A row that says what ran where, with ``values``."""
    first = program.replace(",", " ").split()[0].lower()
    package = "torch" if first == "pytorch" else first
    return Row(
        operation,
        size,
        program,
        version(package),
        device,
        processor(device),
        torch.get_num_threads(),
        torch=torch.__version__,
        **values,
    )


def _weight_of(work: Work) -> torch.Tensor:
    """What is propagated backward: noise of the answer's shape, or 1 for a loss."""
    kit = next(iter(work.programs.values()))
    with torch.no_grad():
        answer = kit(*work.inputs)
    if answer.ndim == 0:
        return torch.ones_like(answer)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(answer.shape, generator=generator).to(answer.device)


def _difference(found: tuple, reference: tuple) -> float:
    """How far an answer is from the reference, relative to it, or 1 - the cosine between gradients,
    whatever is more.
    """
    answer, wanted = found[0].double(), reference[0].double()
    differences = [(answer - wanted).norm() / wanted.norm()]
    for gradient, other in zip(found[1], reference[1], strict=True):
        alike = F.cosine_similarity(gradient.double().flatten(), other.double().flatten(), 0)
        differences.append(1 - alike)
    return max(0.0, *map(float, differences))


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """The slope of log time over log size: 1 where cost grows as the size does."""
    x, y = [math.log(n) for n in sizes], [math.log(t) for t in seconds]
    return statistics.linear_regression(x, y).slope


def told(row: Row) -> str:
    """A row in a line for the screen."""
    words = [f"{row.operation}, {row.size}: {row.program} {row.version}".ljust(62)]
    for name, unit, scale in (
        ("seconds", "ms", 1000),
        ("cpu_seconds", "ms CPU", 1000),
        ("memory_mib", "MiB", 1),
        ("ratio", "x", 1),
        ("memory_ratio", "x memory", 1),
        ("over_floor", "x floor", 1),
        ("error", "error", 1),
        ("dice", "% Dice", 1),
        ("exponent", "exponent", 1),
    ):
        value = getattr(row, name)
        if not math.isnan(value):
            words.append(f"{scale * value:.3g} {unit}")
    return "  ".join([*words, row.note])
