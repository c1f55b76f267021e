"""Settings of rivals, chosen on validation pairs alone:

    python -m benchmarks.peers.tuning --dataset oasis35 --dims 2 --rival ants_cc --seed 100 101 102

Every combination of a rival's ``grid`` is tried on the validation pairs of tuning seeds; each trial
is a row of ``tuning.csv`` beside this file. Of a data set those settings are taken that have the
highest Dice there, among those that fold at most ``MOST_FOLDS`` of the voxels.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepatlas.checkpoints import read_csv, write_csv
from deepatlas.errors import FAILED, UserError
from deepatlas.locks import Lock
from deepatlas.parameters import Experiment, parse

import pandas as pd
from tqdm import tqdm

from .cases import Cases, scored
from .rows import as_settings, as_text
from .table import RIVALS, Rival, Settings, rival_named

TRIALS = Path(__file__).with_name("tuning.csv")
MOST_FOLDS = 0.5  # percent of the voxels, as the mean over pairs
COHORT = ["dataset", "profile", "dims"]
KEY = [*COHORT, "rival", "settings", "seeds", "pairs"]
COLUMNS = [*KEY, "dice", "folds_percent", "endpoint_voxels", "seconds"]
TEXT = ("dataset", "profile", "rival", "settings", "seeds")


def read_trials(path: Path = TRIALS) -> pd.DataFrame:
    """The trials so far; none if there is no file."""
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    return read_csv(path, TEXT, COLUMNS)


def chosen(name: str, experiment: Experiment, path: Path = TRIALS) -> Settings:
    """The settings of the rival ``name`` for the data set, profile and dimensions of
    ``experiment``: tuned if trials are there, else those of its row of the table.
    """
    rival = RIVALS[name]
    if rival.settings_of:
        return chosen(rival.settings_of, experiment, path)
    trials = read_trials(path)
    same = trials["rival"] == name
    for column, value in _cohort_of(experiment).items():
        same &= trials[column] == value
    there = trials[same]
    if there.empty:
        if rival.grid:
            print(f"{name}: nothing was tuned for {experiment.entry.name}, {experiment.dims}D")
        return rival.settings
    fair = there[there["folds_percent"] <= MOST_FOLDS]
    best = (there if fair.empty else fair).sort_values("dice", kind="stable").iloc[-1]
    return as_settings(best["settings"])


def _cohort_of(experiment: Experiment) -> dict[str, object]:
    names = (experiment.entry.name, experiment.profile, experiment.dims)
    return dict(zip(COHORT, names, strict=True))


def combinations(rival: Rival) -> Iterator[dict[str, object]]:
    """All settings of the rival's grid."""
    for values in itertools.product(*rival.grid.values()):
        yield dict(zip(rival.grid, values, strict=True))


def tune(name: str, cases: Sequence[Cases], most: int, path: Path = TRIALS) -> None:
    """Try what is not in the file yet: each trial on at most ``most`` validation pairs of each of
    the ``cases``, which are of one data set.
    """
    rival = RIVALS[name]
    who = _cohort_of(cases[0].experiment) | {"rival": name}
    who["seeds"] = " ".join(str(one.experiment.seed) for one in cases)
    who["pairs"] = sum(len(one.pairs[:most]) for one in cases)
    trials = list(combinations(rival))
    for settings in tqdm(trials, desc=f"tuning {name}", unit="trial"):
        row = who | {"settings": as_text(settings)}
        if _is_there(row, read_trials(path)):
            continue
        tables = [scored(name, rival, settings, one, one.pairs[:most]) for one in cases]
        every = pd.concat(tables)
        row["dice"] = every["dice"].mean()
        row["folds_percent"] = every["folds_percent"].mean()
        row["endpoint_voxels"] = every["endpoint_voxels"].mean()
        row["seconds"] = statistics.median(every["seconds"])
        _add(row, path)
        tqdm.write(f"{name} {row['settings']}: Dice {row['dice']:.2f} %, {row['seconds']:.2f} s")


def _is_there(row: dict[str, object], trials: pd.DataFrame) -> bool:
    same = pd.Series(True, index=trials.index)
    for name in KEY:
        same &= trials[name] == row[name]
    return bool(same.any())


def _add(row: dict[str, object], path: Path) -> None:
    lock = Lock(path.parent / f"{path.name}.lock")
    lock.wait(0.2, quiet=True)
    try:
        rows = [*read_trials(path).to_dict("records"), row]
        write_csv(pd.DataFrame(rows, columns=COLUMNS), path)
    finally:
        lock.release()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--profile", default="class")
    parser.add_argument("--dims", type=int)
    parser.add_argument("--seed", type=int, nargs="+", default=[100, 101, 102])
    parser.add_argument("--rival", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--pairs", type=int, default=6, help="at most, of each seed")
    parser.add_argument("--out", type=Path, default=TRIALS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the peers
    try:
        for name in options.rival:
            if not rival_named(name).grid:
                raise UserError(f"of the rival {name} nothing is tuned")
        cases = []
        for seed in options.seed:
            values = {"dataset": options.dataset, "profile": options.profile, "seed": seed}
            experiment = parse(values | {"dims": options.dims})
            cases.append(Cases.of(experiment, "validation"))
        for name in options.rival:
            tune(name, cases, options.pairs, options.out)
            print(f"{name}: {as_text(chosen(name, cases[0].experiment, options.out))}")
    except UserError as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
