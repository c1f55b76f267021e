"""A sweep of 24 runs that is disturbed, against the same sweep in peace, one run after the other:
are the tables equal, and how long does each take? `python benchmarks/sweeping.py` (Linux).

The disturbed one goes on side by side. Once runs have begun, a worker of Dask is killed, then the
process of a run, and to the process of another run the disk becomes full. That run fails, and the
same command does it at the end.

Parameters of all runs may be added, as in `seg_steps=20 reg_steps=20 joint_steps=30`;
`--keep FOLDER` keeps both sweeps there, and a sweep that is kept is not repeated.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deepatlas import sweeps
from deepatlas.cli.arguments import assignments
from deepatlas.trainings import RUN_LOCK

import pandas as pd
import psutil

GRID = {
    "dataset": "phantom-knee",
    "profile": "class",  # smoke has four training scans, and N is to be 5
    "seg_steps": 4,
    "reg_steps": 4,
    "joint_steps": 6,
    "dims": 2,
    "device": "cpu",
    "precision": "float32",  # "auto" is timed, and a busy machine may decide otherwise
    "labelled": [1, 5],
    "seed": [0, 1, 2],
    "lambda_r": [0.05, 0.1, 0.2, 0.4],
}
DISK = 50_000  # bytes that a file may have where the disk is full
DIFFER = ["sha256", "seconds"]  # of the record, which says when; and how long


def main():
    """Both sweeps, and what they show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    # more threads add up in another order, and the last digits tell
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as temporary:
        home = given.keep or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        grid = write_grid(home / "grid.toml", GRID | assignments(given.parameters))
        peaceful, disturbed = home / "peaceful", home / "disturbed"
        alone = finish(begin(grid, peaceful, 1))
        together = disturb(grid, disturbed, given.workers)
        runs = len(sweeps.read_sweep(grid))
        print(f"\n{runs} runs, {os.environ['OMP_NUM_THREADS']} thread(s) each")
        print(f"in peace, one after the other: {alone:.0f} s")
        print(f"disturbed, {given.workers} at once, and again for what failed: {together:.0f} s")
        print(f"that is {alone / together:.2f} times as fast")
        compare(peaceful / "results", disturbed / "results")


def write_grid(path, values):
    """A file of the sweep."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    path.write_text("\n".join(["[[sweep]]", *lines, ""]), encoding="utf-8")
    return path


def begin(grid, root, workers):
    """The command, and when it began."""
    command = [sys.executable, "-m", "deepatlas.cli", "sweep", str(grid)]
    command += ["--root", str(root), "--workers", str(workers)]
    print(" ".join(command), flush=True)
    return subprocess.Popen(command), time.monotonic()


def finish(begun, wanted=0):
    """Seconds that a sweep took, which ends with the exit code ``wanted``."""
    process, start = begun
    code = process.wait()
    if code != wanted:
        sys.exit(f"the sweep ended with {code}, and {wanted} was expected")
    return time.monotonic() - start


def disturb(grid, root, workers):
    """Seconds of the sweep with two kills and a full disk, and of the same command once more."""
    begun = begin(grid, root, workers)
    sweep = psutil.Process(begun[0].pid)
    disturbed = set()

    (full,) = training(root, disturbed, 1)
    psutil.Process(full.process).rlimit(resource.RLIMIT_FSIZE, (DISK, DISK))
    print(f"the disk is full for {full.name}", flush=True)
    disturbed.add(full.name)

    (killed,) = training(root, disturbed, 1)
    os.kill(killed.process, signal.SIGKILL)
    print(f"the process of {killed.name} is killed", flush=True)
    disturbed.add(killed.name)

    others = training(root, disturbed, workers)
    (worker,) = [
        child for child in sweep.children() if any("spawn_main" in word for word in child.cmdline())
    ]
    worker.kill()
    print(f"the worker of {' and '.join(run.name for run in others)} is killed", flush=True)

    first = finish(begun, wanted=1)
    return first + finish(begin(grid, root, workers))


class Training:
    """A run that a process is training."""

    def __init__(self, lock):
        self.name = lock.parent.name
        self.process = json.loads(lock.read_text())["process"]


def training(root, but, count):
    """The first ``count`` runs that are in the middle of their training, other than ``but``."""
    while True:
        found = []
        for checkpoint in root.glob("*/*/checkpoint.pt"):
            lock = checkpoint.parent.parent / RUN_LOCK
            name = lock.parent.name
            if name in but or any(run.name == name for run in found):
                continue
            try:
                found.append(Training(lock))
            except (OSError, ValueError):  # finished, or just being written
                continue
        if len(found) >= count:
            return found[:count]
        time.sleep(0.02)


def compare(peaceful, disturbed):
    """Print whether both folders of results hold the same tables."""
    for name in ("regimes", "subjects"):
        one, other = (
            sweeps.read_table(folder, name).drop(columns=DIFFER, errors="ignore")
            for folder in (peaceful, disturbed)
        )
        try:
            pd.testing.assert_frame_equal(one, other, check_exact=True)
        except AssertionError as error:
            sys.exit(f"{name}.csv: not equal: {error}")
        print(f"{name}.csv: {len(one)} rows of {one['run'].nunique()} runs, equal")


if __name__ == "__main__":
    main()
