"""What large experiments take, reckoned from measured steps: hours, memory, disk, and what is
slowest.

    python benchmarks/scaling.py paper      the paper's knees, and 10,000 scans, on GPUs
    python benchmarks/scaling.py class      the tables of the class profile in 3D, on two cores
    python benchmarks/scaling.py measure    a step of each kind, and scoring, of the class profile
    python benchmarks/scaling.py growth     how the time of a step grows, in voxels and structures

The formula: a step takes ``pairs * voxels * seconds``, where the seconds, of a pair and a voxel,
are those of the largest grid that was measured on the device; so it is a ceiling where a small grid
left a GPU waiting for work. A regime takes the steps of both of its networks, and a table the sum
of its regimes, or shared among G devices the G-th part, but never less than its longest chain of
regimes that start from one another. Memory grows with pairs and voxels, disk with scans and
voxels.

``measure`` and ``growth`` add rows to tutorials_data/results/benchmarks.csv. On a GPU, where no
step of a large grid has been timed yet: ``measure --device cuda --mixed --side 160``.
"""

import argparse
import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deepatlas import models
from deepatlas.data import Cohort
from deepatlas.datasets import load_cohort
from deepatlas.errors import UserError
from deepatlas.evaluation.cohorts import (
    registration_pairs,
    score_registration,
    score_segmentation,
)
from deepatlas.parameters import Experiment, parse
from deepatlas.regimes import Regime, needed
from deepatlas.training import Trainer
from deepatlas.trainings import Trainings, own_steps

import runner
import steps
import torch
from operations import name_of, tell_and_keep
from runner import KIT, Row, Turns
from steps import SEEN

COHORTS = ("phantom-brain", "phantom-knee", "oasis35")  # in 3D, as a class trains on them
# A step of each kind, and a regime that takes it: alone, or asking the other network.
KINDS = {
    ("seg", False): "seg_baseline",
    ("reg", False): "reg_baseline",
    ("seg", True): "semi_seg",
    ("reg", True): "semi_reg",
}
SCORING = {"seg": "scoring a segmentation", "reg": "scoring a registration"}
THREADS_GAIN = 2**0.7  # of two threads in a step of volumes over one
BYTES = 5  # a voxel of a scan on disk: its image in float32, its label in a byte
PAIRS_PER_TEST_SCAN = 3


# --- prices: what was measured --------------------------------------------------------------------


def voxels_of(size: str) -> int:
    """Voxels of a grid that a row tells of: 64^3, 64x80x64, or "oasis35, 56x72x56"."""
    grid = size.rpartition(" ")[2]
    if power := re.fullmatch(r"(\d+)\^(\d)", grid):
        return int(power[1]) ** int(power[2])
    if re.fullmatch(r"\d+(x\d+)+", grid):
        return math.prod(map(int, grid.split("x")))
    raise UserError(f"the size of a grid was wanted, as 64^3 or 64x80x64, got {size!r}")


def kind_of(network: str, consults: bool) -> str:
    """What rows call a step."""
    return f"{SEEN[network]} step, {'joint' if consults else 'alone'}"


@dataclass(frozen=True)
class Prices:
    """What was measured on one device, in one type of number."""

    rows: tuple[Row, ...]  # all of benchmarks.csv
    device: str = "cuda"
    dtype: str = "bfloat16"
    program: str = KIT
    cohort: str = ""  # only what was measured on its scans

    def row(self, operation: str) -> Row | None:
        """The row of ``operation`` on the largest grid."""
        found = [
            row
            for row in self.rows
            if (row.operation, row.program) == (operation, self.program)
            and (row.device, row.dtype) == (self.device, self.dtype)
            and row.size.startswith(self.cohort)
        ]
        return max(found, key=lambda row: voxels_of(row.size), default=None)

    def of_step(self, network: str, consults: bool) -> float:
        """Seconds of a pair and a voxel; of a step alone, where none was timed, those of one that
        asks the other network, which takes longer.
        """
        row = self.row(kind_of(network, consults)) or self.row(kind_of(network, True))
        if row is None:
            raise UserError(
                f"no {kind_of(network, consults)} was measured on {self.device} in {self.dtype}: "
                "run `python benchmarks/scaling.py measure` there first"
            )
        seconds = row.cpu_seconds if self.device == "cpu" else row.seconds
        return seconds / voxels_of(row.size)

    def of_scoring(self, network: str) -> float:
        """Seconds of a case and a voxel: always of a processor."""
        on_processor = replace(self, device="cpu", dtype="float32", program=KIT)
        row = on_processor.row(SCORING[network])
        return 0.0 if row is None else row.cpu_seconds / voxels_of(row.size)

    def of_memory(self) -> float:
        """MiB of a pair and a voxel that a joint step of 32 structures holds, at most."""
        row = self.row("joint step, 32 structures")
        return math.nan if row is None else row.memory_mib / voxels_of(row.size)


# --- the formula ----------------------------------------------------------------------------------


def seconds_of_regimes(
    table: Mapping[str, Regime],
    steps_of: Mapping[str, Mapping[str, int]],
    pairs: Mapping[str, int],
    voxels: int,
    prices: Prices,
) -> dict[str, float]:
    """Seconds that each regime of ``table`` trains on one device."""
    seconds = {}
    for key, regime in table.items():
        seconds[key] = sum(
            count * pairs[network] * voxels * prices.of_step(network, regime.consults)
            for network, count in steps_of[key].items()
        )
    return seconds


def longest_chain(table: Mapping[str, Regime], seconds: Mapping[str, float]) -> float:
    """Seconds of the regimes that wait for one another, where they take longest."""
    until: dict[str, float] = {}
    for key, regime in table.items():  # what a regime starts from stands above it
        begun = max((until[source] for source in regime.start.values()), default=0.0)
        until[key] = begun + seconds[key]
    return max(until.values())


def shared(total: float, longest: float, devices: int) -> float:
    """Seconds of work whose regimes are shared among devices."""
    return max(total / devices, longest)


@dataclass(frozen=True)
class Cost:
    """What an experiment, or several, take."""

    training: float  # seconds of one device
    longest: float  # seconds of the longest chain of regimes
    scoring: float  # seconds of one core
    memory_gib: float  # of a device, in a step
    disk_gib: float  # of prepared scans


def cost_of(
    experiments: Iterable[tuple[Experiment, Mapping[str, Regime]]],
    shape: tuple[int, ...],
    scans: int,
    tests: int,
    prices: Prices,
    times: float = 1.0,
) -> Cost:
    """Of tables of experiments on a grid of ``shape``: of so many ``scans`` in all and ``tests``
    among them, with ``times`` the steps that the experiments say.

    Baselines that experiments have in common are counted for each: a little too much.
    """
    voxels = math.prod(shape)
    training, longest, scoring, most = 0.0, 0.0, 0.0, 0
    for experiment, table in experiments:
        pairs = {"seg": experiment.seg_batch_size, "reg": experiment.batch_size}
        seconds = seconds_of_regimes(table, own_steps(experiment), pairs, voxels, prices)
        training += times * sum(seconds.values())
        longest = max(longest, times * longest_chain(table, seconds))
        cases = {"seg": tests, "reg": PAIRS_PER_TEST_SCAN * tests}
        for regime in table.values():
            scoring += sum(
                cases[network] * voxels * prices.of_scoring(network) for network in regime.trains
            )
        most = max(most, *pairs.values())
    memory = most * voxels * prices.of_memory() / 1024
    return Cost(training, longest, scoring, memory, scans * voxels * BYTES / 2**30)


# --- the paper's table, and more scans ------------------------------------------------------------

KNEES = (160, 200, 160)
SCANS, TESTS = 200, 250  # training scans of the paper; test scans of the entry oai-zib
DEVICES = 8


def papers_table() -> list[tuple[Experiment, Mapping[str, Regime]]]:
    """The rows of the paper's first table, of knees: what semi-supervised and joint training at N =
    1, 5 and 10 take, N = 0 as the registration baseline of N = 1, and N = 200 as baselines.
    """
    found = []
    for labelled in (1, 5, 10, SCANS):
        values = {"dataset": "oai-zib", "profile": "full", "dims": 3, "regimes": "paper"}
        experiment = parse(values | {"labelled": labelled})
        keys = ("seg_baseline", "reg_baseline") if labelled == SCANS else tuple(experiment.table)
        found.append((experiment, needed(experiment.table, *keys)))
    return found


def joint_alone() -> list[tuple[Experiment, Mapping[str, Regime]]]:
    """Joint training and what it starts from."""
    values = {"dataset": "oai-zib", "profile": "full", "dims": 3, "regimes": "joint"}
    experiment = parse(values | {"labelled": 5})
    return [(experiment, experiment.table)]


def tell_paper(prices: Prices) -> None:
    """Print both, on one device and on several: runs and regimes side by side, or one regime by all
    of them, if its steps have as many pairs.
    """
    many = 10_000
    plans = (
        ("the paper's knees, all rows of Table 1", papers_table(), SCANS, 1),
        (f"{many:,} scans, one joint training, as many steps", joint_alone(), many, 1),
        (f"{many:,} scans, each seen as often", joint_alone(), many, many // SCANS),
    )
    print(f"{prices.device}, {prices.dtype}, grid {name_of(KNEES)}; hours are at most:")
    for words, experiments, scans, times in plans:
        cost = cost_of(experiments, KNEES, scans + TESTS, TESTS, prices, times)
        side_by_side = shared(cost.training, cost.longest, DEVICES) / 3600
        together = cost.training / DEVICES / 3600
        prepared = (scans + TESTS) * math.prod(KNEES) * preparation(prices.rows) / 3600
        print(
            f"{words}: training {cost.training / 3600:,.1f} h on one, on {DEVICES} "
            f"{side_by_side:,.1f} h side by side or {together:,.1f} h together; "
            f"{cost.memory_gib:.0f} GiB at {largest_batch(experiments)} pairs a step; scans "
            f"{cost.disk_gib:,.0f} GiB on disk, {prepared:,.1f} core hours to align them; scoring "
            f"{cost.scoring / 3600:,.1f} core hours"
        )


def largest_batch(experiments: Iterable[tuple[Experiment, Mapping[str, Regime]]]) -> int:
    """Pairs of the largest step."""
    return max(max(e.batch_size, e.seg_batch_size) for e, _ in experiments)


def preparation(rows: Iterable[Row]) -> float:
    """Core seconds of a voxel that reading and aligning a scan take."""
    measured_of = ("load a cohort, cold", "hippocampus, 120 scans", "deepatlas, aligned")
    for row in rows:
        if (row.operation, row.size, row.program) == measured_of:
            return row.cpu_seconds / 120 / math.prod((40, 56, 40))
    return math.nan


# --- a class on two cores -------------------------------------------------------------------------


def tell_class(rows: tuple[Row, ...], programs: Iterable[str]) -> None:
    """Print minutes of joint training with its starts, and of the whole table, at N = 1: what the
    steps take, scoring beside.
    """
    for cohort in COHORTS:
        shape, _ = parse({"dataset": cohort, "dims": 3}).entry.grid("class", 3)
        for program in programs:
            for dtype in ("float32", "bfloat16"):
                prices = Prices(rows, "cpu", dtype, program, cohort)
                if prices.row(kind_of("seg", False)) is None:
                    continue
                joint = of_class(cohort, "joint", shape, prices)
                whole = of_class(cohort, "all", shape, prices)
                print(
                    f"{cohort}, {name_of(shape)}, {dtype}, {program}: joint training with its "
                    f"starts {joint.training / THREADS_GAIN / 60:.0f} min by two threads; whole "
                    f"table {shared(whole.training, whole.longest, 2) / 60:.0f} min by two "
                    f"processes, and {whole.scoring / 2 / 60:.0f} of scoring"
                )


def of_class(cohort: str, regimes: str, shape: tuple[int, ...], prices: Prices) -> Cost:
    """The cost of the class profile in 3D at N = 1."""
    experiment = parse({"dataset": cohort, "dims": 3, "labelled": 1, "regimes": regimes})
    train, validation, test = experiment.entry.split_sizes("class")
    scans = train + validation + test
    return cost_of([(experiment, experiment.table)], shape, scans, test, prices)


# --- measuring ------------------------------------------------------------------------------------


def measure(
    experiment: Experiment, cohort: Cohort, size: str, program: str, mixed: bool, turns: Turns
) -> list[Row]:
    """Rows of a step of each kind, of a pair each, and of scoring a case of each task."""
    device = cohort.device.type
    record = {"mixed_precision": mixed}
    trainings = Trainings(experiment, experiment.table, cohort, Path("nowhere"), record)
    works = {}
    for (network, consults), key in KINDS.items():
        nets, seen, regime, settings = trainings.begun(key, starts=False)
        one_pair = replace(settings, steps={network: 10**6}, batch_size=1, seg_batch_size=1)
        works[kind_of(network, consults)] = Trainer(nets, seen, regime, one_pair).take_turn
    if not mixed and cohort.test:
        nets, *_ = trainings.begun("seg_baseline", starts=False)
        segment, register = models.segmenter(nets["seg"]), models.registrar(nets["reg"])
        pair = registration_pairs(cohort.test, per_fixed=1)[:1]
        works[SCORING["seg"]] = functools.partial(
            score_segmentation, segment, cohort, cohort.test[:1]
        )
        works[SCORING["reg"]] = functools.partial(score_registration, register, cohort, pair)
    rows = []
    for operation, (wall, own) in runner.take_turns(works, device, turns).items():
        row = runner.row_of(operation, size, KIT, device, seconds=wall, cpu_seconds=own)
        rows.append(replace(row, program=program, dtype="bfloat16" if mixed else "float32"))
    return rows


def growth(shapes: list[tuple[int, ...]], structures: list[int], turns: Turns) -> list[Row]:
    """Rows of exponents: the time of a joint step over voxels, of 13 structures, and over
    structures, on the first grid but one.
    """
    rows = []
    sizes = {
        "voxels": [(shape, 13) for shape in shapes],
        "structures": [(shapes[1], count) for count in structures],
    }
    for of, cases in sizes.items():
        found = [seconds_of_steps(shape, count, turns) for shape, count in cases]
        for network, words in SEEN.items():
            seconds = [each[network] for each in found]
            amounts = [math.prod(shape) if of == "voxels" else count for shape, count in cases]
            first, last = (
                name_of(shape) if of == "voxels" else str(count)
                for shape, count in (cases[0], cases[-1])
            )
            at = "" if of == "voxels" else f" at {name_of(shapes[1])}"
            told = ", ".join(f"{1000 * t:.3g}" for t in seconds) + " ms of CPU"
            row = runner.row_of(
                f"{words} step, joint", f"{of}, {first} to {last}{at}", KIT, "cpu", note=told
            )
            rows.append(replace(row, exponent=runner.exponent(amounts, seconds)))
    return rows


def seconds_of_steps(shape: tuple[int, ...], structures: int, turns: Turns) -> dict[str, float]:
    """CPU seconds of a joint step of each network, on noise."""
    cohort = steps.noise(shape, structures)
    works = {}
    for network in SEEN:
        nets = steps.kit_networks(cohort)
        works[network] = steps.trainer_of(nets, cohort, {network: 10**6}).take_turn
    return {name: own for name, (_, own) in runner.take_turns(works, "cpu", turns).items()}


# --- the command ----------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("what", choices=["paper", "class", "measure", "growth"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of measure")
    parser.add_argument("--cohorts", nargs="*", default=list(COHORTS), choices=list(COHORTS))
    parser.add_argument("--side", type=int, help="measure phantoms on a cube of so many voxels")
    parser.add_argument("--mixed", action="store_true", help="networks in bfloat16")
    parser.add_argument("--program", default=KIT, help="what the rows of measure are called")
    parser.add_argument("--least", type=int, default=4, help="turns of each kind")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    parser.add_argument("--to", type=Path, default=runner.ROWS, help="the file of rows")
    words = parser.parse_args()
    torch.set_num_threads(1)
    turns = Turns(least=words.least, seconds=0)
    if words.smoke:
        turns = Turns(least=1, seconds=0, shortest=0)
    if words.what == "measure":
        for name in words.cohorts:
            profile = "smoke" if words.smoke else "class"
            tell_and_keep(measured(name, profile, words, turns), words.to)
    elif words.what == "growth":
        shapes = [(32, 40, 32), (40, 48, 40), (48, 64, 48), (64, 80, 64)]
        structures = [4, 8, 16, 32]
        if words.smoke:
            shapes, structures = [(16, 16, 16), (16, 24, 16)], [4, 8]
        tell_and_keep(growth(shapes, structures, turns), words.to)
    else:
        rows = tuple(runner.read_rows(words.to))
        if words.what == "paper":
            tell_paper(Prices(rows))
        else:
            programs = dict.fromkeys(row.program for row in rows if row.program.startswith(KIT))
            tell_class(rows, programs)


def measured(name: str, profile: str, words: argparse.Namespace, turns: Turns) -> list[Row]:
    """Rows of ``measure`` of one cohort, on its grid, or on a cube of synthetic scans."""
    experiment = parse({"dataset": name, "profile": profile, "dims": 3, "labelled": 1})
    if words.side is None:
        cohort = load_cohort(experiment.entry, profile=profile, dims=3)
    else:
        side, spacing = words.side, 200 / words.side
        cohort = steps.brains((side,) * 3, spacing, labelled=3, unlabelled=2)
    size = f"{name}, {name_of(cohort.shape)}"
    return measure(experiment, cohort.to(words.device), size, words.program, words.mixed, turns)


if __name__ == "__main__":
    main()
