"""The benchmarks run, compare like with like, and keep their rows; nothing is timed here."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from deepatlas import evidence
from deepatlas.errors import UserError
from deepatlas.places import FIRST_RESULTS

import pandas as pd
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import agreement  # noqa: E402
import runner  # noqa: E402
import scaling  # noqa: E402

ONCE = runner.Turns(least=1, seconds=0, shortest=0)


def run(name, *words):
    """The text that a benchmark prints."""
    command = [sys.executable, str(BENCHMARKS / name), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_every_operation_is_compared_with_its_peers_at_a_tiny_size(tmp_path):
    pytest.importorskip("monai")
    path = tmp_path / "rows.csv"
    run("operations.py", "--smoke", "--to", str(path))
    rows = runner.read_rows(path)
    compared = [row for row in rows if math.isnan(row.exponent)]
    assert {row.program for row in compared} >= {"deepatlas", "MONAI", "PyTorch"}
    assert all(row.seconds > 0 and row.ratio > 0 and row.over_floor > 0 for row in compared)
    assert all(row.memory_mib > 0 and row.version and row.processor for row in compared)
    goals = {row.operation for row in compared if row.goal > 0}
    assert len(goals) >= 6


def test_steps_and_trainings_are_compared_with_a_loop_of_monai_at_a_tiny_size(tmp_path):
    pytest.importorskip("monai")
    path = tmp_path / "rows.csv"
    run("steps.py", "step", "training", "memory", "--smoke", "--to", str(path))
    rows = runner.read_rows(path)
    steps = [row for row in rows if row.operation.endswith("step, joint")]
    assert {row.program for row in steps} >= {"deepatlas", "MONAI, tutorial"}
    assert all(row.seconds > 0 and row.memory_mib > 0 for row in steps)
    assert sum("Dice" in row.operation for row in rows) == 4
    (large,) = [row for row in rows if row.size == "160x192x224"]
    assert large.note.startswith("extrapolated") and large.memory_goal == 0.5


def doubled(x):
    return 2 * x


def test_programs_that_do_other_work_are_not_compared():
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    machine = runner.Machine(copy_rate=1e9, matrix_rate=1e9)
    work = runner.Work("doubling", "4^2", (x,), {"deepatlas": doubled, "MONAI": lambda x: x + x})
    kit, _ = runner.compare(work, machine, ONCE)
    assert kit.program == "deepatlas" and kit.error == 0
    other = replace(work, programs={"deepatlas": doubled, "MONAI": lambda x: 3 * x})
    with pytest.raises(AssertionError, match="not the same work"):
        runner.compare(other, machine, ONCE)


def test_peak_memory_is_what_is_held_at_once():
    def work():
        first = torch.ones(2**18)  # 1 MiB
        second = first + 1
        del first
        third = second + 1
        return second.sum() + third.sum()

    assert runner.peak_mib(work, "cpu") == pytest.approx(2, abs=0.01)


def test_a_row_that_is_measured_again_takes_its_place(tmp_path):
    path = tmp_path / "rows.csv"
    old = runner.Row("warp", "64^3", "deepatlas", threads=1, seconds=2.0, note="slow, at first")
    other = runner.Row("warp", "64^3", "MONAI", threads=1, ratio=1.0)
    runner.keep([old, other], path)
    runner.keep([replace(old, seconds=1.0, note="")], path)
    found = runner.read_rows(path)
    assert [row.program for row in found] == ["deepatlas", "MONAI"]
    assert found[0].seconds == 1.0 and math.isnan(found[0].ratio) and found[1].ratio == 1.0


def test_an_exponent_is_a_slope_of_logarithms():
    assert runner.exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_a_page_quotes_the_kit_beside_its_peers(tmp_path):
    kit = runner.Row(
        "warp",
        "64^3",
        "deepatlas",
        seconds=0.3,
        cpu_seconds=0.02,
        memory_mib=12.0,
        ratio=0.5,
        goal=0.6,
        memory_ratio=0.9,
        memory_goal=0.8,
        over_floor=7.0,
    )
    peer = runner.Row("warp", "64^3", "MONAI", seconds=0.3, cpu_seconds=0.04)
    half = {"dtype": "bfloat16", "cpu_seconds": 1.5}
    kit_half, peer_half = replace(kit, **half), replace(peer, **half)
    memory = runner.Row(
        "step", "64^3", "deepatlas", memory_mib=10940.0, memory_ratio=0.6, memory_goal=0.5
    )
    growth = runner.Row("warp", "voxels", "deepatlas", exponent=1.04, note="1, 2 ms")
    pair = runner.Row(
        "a pair", "40^3", "SyN", cpu_seconds=0.5, ratio=1.0, dice=66.25, note="folds 0.10 %"
    )
    rows = [kit, peer, kit_half, peer_half, memory, growth, pair]
    runner.keep(rows, tmp_path / "benchmarks.csv")
    for name in ("regimes.csv", "subjects.csv"):
        shutil.copy(FIRST_RESULTS / name, tmp_path)
    marks = ("speed device=cpu", "growth", "pairs")
    page = "\n".join(f"<!-- {mark} -->\n<!-- end -->" for mark in marks)
    lines = evidence.fill_tables(page, tmp_path).splitlines()
    assert "| warp | 64^3 | 20 | 12 | **0.50** | 0.60 | 0.90 | 0.80 | 7 | MONAI 2.00 |" in lines
    half = "| warp, bfloat16 | 64^3 | 1,500 | 12 | **0.50** | 0.60 | 0.90 | 0.80 | 7 | MONAI 1.00 |"
    assert half in lines
    assert "| step | 64^3 |   | 10,940 |   |   | 0.60 | 0.50 |   |  |" in lines
    assert "| warp | voxels | 1.04 | 1, 2 ms |" in lines
    assert "| SyN | 66.2 | 0.10 % | 500 | 1.00 |" in lines
    with pytest.raises(UserError, match="'zebra' to select by: operation, size, device"):
        evidence.fill_tables("<!-- speed zebra=1 -->\n<!-- end -->", tmp_path)


def test_a_table_is_the_same_within_the_spread_of_its_seeds():
    def rows(*dice):
        table = pd.DataFrame({"Dice %": dice, "seed": range(len(dice))})
        place = {"dataset": "a", "dims": 2, "labelled": 1, "task": "t", "regime": "r"}
        return table.assign(**place)

    same = agreement.compare(rows(70.0, 74.0, 72.0), rows(71.0, 70.5, 69.0))["same"]
    assert same.tolist() == [True]  # 70.2, of 70 to 74
    same = agreement.compare(rows(70.0, 74.0, 72.0), rows(75.0, 74.0, 74.0))["same"]
    assert same.tolist() == [False]
    # one seed has no spread
    assert agreement.compare(rows(70.0), rows(71.4))["same"].tolist() == [True]
    assert agreement.compare(rows(70.0), rows(71.6))["same"].tolist() == [False]


def test_the_rows_of_the_faster_program_are_compared():
    assert "39 of 42 rows are the same" in run("agreement.py")  # as the results' README says


# --- what large experiments take ------------------------------------------------------------------


def timed_row(operation, size, seconds, **values):
    """A row of a GPU."""
    given = {"device": "cuda", "dtype": "bfloat16", "seconds": seconds} | values
    return runner.Row(operation, size, "deepatlas", **given)


STEPS = (
    timed_row("segmentation step, joint", "10^3", 0.02),
    timed_row("segmentation step, joint", "20x20x20", 0.08),  # 1e-5 a voxel: the larger counts
    timed_row("registration step, joint", "knees, 20x20x20", 0.16),
    timed_row("registration step, alone", "20x20x20", 0.04),
    timed_row("segmentation step, joint", "40^3", 9.0, device="cpu", cpu_seconds=9.0),
    timed_row("joint step, 32 structures", "10^3", runner.UNKNOWN, memory_mib=1.0),
)


def test_the_time_of_a_table_is_that_of_its_steps_pairs_and_voxels():
    prices = scaling.Prices(STEPS)
    assert prices.of_step("reg", True) == pytest.approx(2e-5)
    assert prices.of_step("reg", False) == pytest.approx(5e-6)
    assert prices.of_step("seg", False) == pytest.approx(1e-5)  # none was timed: as a joint one
    values = {"dataset": "phantom-knee", "dims": 3, "regimes": "joint"}
    experiment = scaling.parse(values | {"seg_steps": 10, "reg_steps": 20, "batch_size": 2})
    table = experiment.table
    cost = scaling.cost_of([(experiment, table)], (100, 100, 100), 7, 0, prices, times=3)
    # pairs and voxels of all; nothing of these three waits for anything
    baselines = {"seg": 10 * 1e-5, "reg": 20 * 5e-6}
    joint = 10 * 1e-5 + 20 * 2e-5
    assert cost.training == pytest.approx(3 * 2 * 1e6 * (sum(baselines.values()) + joint))
    assert cost.longest == pytest.approx(3 * 2 * 1e6 * joint)
    assert cost.memory_gib == pytest.approx(2 * 1000 / 1024)
    assert cost.disk_gib == pytest.approx(7 * 5e6 / 2**30)
    assert scaling.shared(8.0, 3.0, 2) == 4.0 and scaling.shared(8.0, 3.0, 8) == 3.0


def test_what_was_not_measured_is_said():
    with pytest.raises(UserError, match=r"no registration step, joint was measured on cuda in"):
        scaling.Prices(STEPS[:2]).of_step("reg", True)
    with pytest.raises(UserError, match=r"the size of a grid was wanted, .* got 'many'"):
        scaling.voxels_of("many")


def test_the_papers_table_and_more_scans_are_reckoned_from_the_committed_rows():
    said = run("scaling.py", "paper")
    assert said.count("core hours to align them") == 3 and "nan" not in said


def test_the_steps_of_a_class_are_measured_and_their_growth_told(tmp_path):
    path = tmp_path / "rows.csv"
    run("scaling.py", "measure", "--smoke", "--cohorts", "phantom-brain", "--to", str(path))
    run("scaling.py", "growth", "--smoke", "--to", str(path))
    rows = runner.read_rows(path)
    kinds = {scaling.kind_of(*kind) for kind in scaling.KINDS}
    wanted = kinds | set(scaling.SCORING.values())
    assert {row.operation for row in rows if row.cpu_seconds > 0} == wanted
    assert sum(not math.isnan(row.exponent) for row in rows) == 4
    said = run("scaling.py", "class", "--to", str(path))
    assert said.startswith("phantom-brain, 56x72x56, float32, deepatlas: joint training")
