"""Runs that are killed, stopped, out of memory or out of disk at random moments, writing included,
and go on until they have ended: to the bit they are the run that nobody disturbed.

    python tests/trust/interrupt.py                  two hundred disturbances
    python tests/trust/interrupt.py --times 5 --seed 3

After each the run folder must be readable, and what a run takes up again may lie back by the turns
between two saves at most. The exit status is 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from deepatlas import checkpoints, records, reporting
from deepatlas.errors import UserError

import pandas as pd
import torch
from disturbed import DISTURBANCES
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
RUN = ["run", "--no-notebook", "--workers", "1", "dataset=phantom-brain", "profile=smoke", "dims=2"]
RUN += ["device=cpu", "refine=2", "seg_steps=16", "reg_steps=16"]
SAVED_EVERY = 4  # turns of such a run between two validations, after each of which it saves
KINDS = [name for name in DISTURBANCES if name != "none"]


class Disturbed(Exception):
    """What a disturbed run may not do."""


def start(root: Path, kind: str = "none", moment: int = 0) -> subprocess.CompletedProcess:
    """The run in ``root``, disturbed by ``kind`` at its turn or write of number ``moment``."""
    command = [sys.executable, str(HERE / "disturbed.py"), kind, str(moment)]
    command += [str(root / "turns"), *RUN, "--root", str(root / "runs")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def the_folder(root: Path) -> Path | None:
    """Of the only run in ``root``, if it has begun."""
    found = list((root / "runs").glob("phantom-*"))
    return found[0] if found else None


def turns(root: Path) -> list[tuple[str, int]]:
    """(regime, step) of every turn that was begun since the last call."""
    log = root / "turns"
    lines = log.read_text().splitlines() if log.is_file() else []
    log.unlink(missing_ok=True)
    parted = [line.rpartition("|") for line in lines]
    return [(regime, int(step)) for regime, _, step in parted]


def lost(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> int:
    """Turns of ``before`` that are taken again in ``after``."""
    reached = dict(before)  # of each regime the last
    again = {}
    for regime, step in reversed(after):
        again[regime] = step  # of each regime the first
    return sum(max(0, reached[key] - step) for key, step in again.items() if key in reached)


def content(folder: Path) -> dict[str, object]:
    """What a finished run has found out: tensors and tables, by name, without what it took."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".csv":
            # which no two runs share
            found[name] = pd.read_csv(path).drop(columns="seconds", errors="ignore").to_csv()
        elif path.name == "checkpoint.pt":
            state = checkpoints.read_checkpoint(path)
            for network, weights in state["best"].items():
                for key, value in weights.items():
                    found[f"{name}:{network}.{key}"] = value
    return found


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of what differs in any bit."""
    differing = sorted(one.keys() ^ other.keys())
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        if not same:
            differing.append(name)
    return differing


def check_readable(root: Path) -> None:
    """Disturbed if the folder that a run has left cannot be read."""
    folder = the_folder(root)
    if folder is None or not (folder / "run.json").is_file():
        return
    records.read_record(folder)
    for path in folder.rglob("checkpoint.pt"):
        checkpoints.read_checkpoint(path)
    try:
        reporting.load_history(folder)
    except UserError as error:  # no regime has ended, or the record does not know the table yet
        if "start the run again with the same parameters" not in str(error):
            raise


def disturb(root: Path, rng: random.Random, wanted: dict, most: dict[str, int]) -> list[str]:
    """Disturb a new run until it has ended in spite of it; the kinds of disturbance there were."""
    kinds = []
    before = []
    while True:
        kind = rng.choice(KINDS)
        struck, _ = DISTURBANCES[kind]
        done = start(root, kind, rng.randrange(most[struck]))
        after = turns(root)
        again = lost(before, after)
        if again > SAVED_EVERY:
            raise Disturbed(f"after {kinds[-1]}: {again} turns were taken again")
        before = after or before
        check_readable(root)
        if done.returncode == 0:
            differing = differences(content(the_folder(root)), wanted)
            if differing:
                raise Disturbed(f"after {', '.join(kinds)}: other bits in {differing[:5]}")
            return kinds
        if "Traceback" in done.stderr and kind not in ("exception", "no memory"):
            raise Disturbed(f"{kind}: a traceback: {done.stderr[-600:]}")
        kinds.append(kind)


def undisturbed(root: Path) -> tuple[dict[str, object], dict[str, int]]:
    """What a run finds out that nobody disturbs, and how many turns and writes to choose from."""
    done = start(root)
    if done.returncode != 0:
        raise Disturbed(f"the run that nobody disturbs: {done.stderr[-600:]}")
    # a session takes a part of all turns, and so of all writes, which are a few for each save
    return content(the_folder(root)), {"turn": len(turns(root)) // 2, "write": 40}


def main(arguments: list[str] | None = None) -> int:
    """Disturb as often as was asked, and print what there was."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--times", type=int, default=200, help="disturbances in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    seen: Counter[str] = Counter()
    runs = 0
    with tempfile.TemporaryDirectory() as name, tqdm(total=options.times) as bar:
        try:
            wanted, most = undisturbed(Path(name) / "undisturbed")
            while seen.total() < options.times:
                root = Path(name) / f"run-{runs}"
                kinds = disturb(root, rng, wanted, most)
                seen.update(kinds)
                bar.update(len(kinds))
                runs += 1
                shutil.rmtree(root)
        except Disturbed as error:
            print(f"run {runs} of seed {options.seed}: {error}")
            return 1
    for kind, times in sorted(seen.items()):
        print(f"{kind}: {times}")
    print(
        f"{seen.total()} disturbances of {runs} runs: each ended with the bits of the undisturbed"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
