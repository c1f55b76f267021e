"""How long the parts of the default experiment take, in float32 and bfloat16, and what watching it
costs: `make bench`. A benchmark, not a test: compare numbers of one run only.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from deepatlas import datasets, experiments, explorers, models, parameters, phantom, training
from deepatlas.regimes import REGIMES, Regime

import torch


def seconds(work):
    """Seconds that ``work()`` takes, once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def phantoms(anatomy):
    """Thirty subjects, with their labels, at 64 x 80 x 64 voxels."""
    for subject in range(30):
        phantom.make_scan(anatomy, subject, (64, 80, 64), spacing=2.4)


def step_seconds(cohort, turn, consults, mixed, steps=12):
    """Median seconds of a training step of the default experiment's size."""
    experiment = parameters.parse({})
    networks = experiments.new_networks(experiment, len(cohort.structures))
    regime = Regime(
        f"{turn}, {'joint' if consults else 'alone'}, {'bfloat16' if mixed else 'float32'}",
        (turn,),
        consults=consults,
    )
    settings = training.Settings(
        {turn: steps},
        batch_size=experiment.batch_size,
        seg_batch_size=experiment.seg_batch_size,
        mixed_precision=mixed,
    )
    with tempfile.TemporaryDirectory() as folder:
        history = training.train(networks, cohort.hide_labels(1), regime, settings, Path(folder))
    ends = [row["seconds"] for row in history]
    return statistics.median(end - begin for begin, end in pairwise(ends[1:]))


def watching_share(cohort, steps=240):
    """Share of the time of a joint training that a live view takes: pictures of a real pair, but no
    browser.
    """
    experiment, spent = parameters.parse({}), [0.0]
    networks = experiments.new_networks(experiment, len(cohort.structures))
    watch = explorers.view_training(
        *cohort.validation[:2],
        register=models.registrar(networks["reg"]),
        segment=models.segmenter(networks["seg"]),
        structures=cohort.structures,
    )

    def timed(row):
        spent[0] += seconds(lambda: watch(row))

    settings = training.Settings(
        {"seg": steps // 3, "reg": 2 * steps // 3},
        batch_size=experiment.batch_size,
        seg_batch_size=experiment.seg_batch_size,
        watch=timed,
    )
    with tempfile.TemporaryDirectory() as folder:
        whole = seconds(
            lambda: training.train(
                networks, cohort.hide_labels(1), REGIMES["deepatlas"], settings, Path(folder)
            )
        )
    return spent[0] / whole


def main():
    """Print one line per measurement."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    doctor = [sys.executable, "-m", "deepatlas.cli", "doctor"]
    spent = seconds(lambda: subprocess.run(doctor, capture_output=True, check=True))
    print(f"deepatlas doctor: {spent:.1f} s")
    for anatomy in phantom.ANATOMIES:
        spent = seconds(lambda name=anatomy: phantoms(name))
        print(f"30 {anatomy} phantoms of 64 x 80 x 64: {spent:.1f} s")
    cohort = datasets.load_cohort("phantom-brain")
    for turn in ("seg", "reg"):
        for consults in (False, True):
            single = step_seconds(cohort, turn, consults, False)
            mixed = step_seconds(cohort, turn, consults, True)
            print(
                f"a step of {turn}, {'joint' if consults else 'alone'}: "
                f"float32 {1000 * single:.0f} ms, bfloat16 {1000 * mixed:.0f} ms, "
                f"ratio {single / mixed:.2f}"
            )
    print(f"watching a training live takes {100 * watching_share(cohort):.1f} % of its time")


if __name__ == "__main__":
    main()
