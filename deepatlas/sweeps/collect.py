"""The rows of finished runs in two small tables, from which every statement can be computed again.

``regimes.csv`` has a row for each regime of a run, ``subjects.csv`` one for each test subject in a
regime. Each row names its run, and the hash of the run's record, which is kept beside them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from ..checkpoints import read_csv, sha256_of, write_atomically, write_csv
from ..errors import UserError
from ..evaluation.cohorts import per_subject
from ..locks import Lock
from ..parameters import Experiment, parse
from ..places import RESULTS
from ..records import recorded_experiment
from ..reporting import load_record, load_scores, results_table, validation_table

# what every row says of its run; of the data set its name, wherever it is
PARAMETERS = ("dataset", "profile", "dims", "recipe", "labelled", "seed", "label_seed")
# what tells the rows of a table apart
KEYS = {
    "regimes": ["run", "task", "regime"],
    "subjects": ["run", "task", "regime", "subject"],
}
TEXT = ("run", "task", "regime", "subject", "sha256", "dataset", "profile", "recipe", "changed")
REQUIRED = {
    "regimes": (*KEYS["regimes"], "Dice %", "folds %", *PARAMETERS, "changed"),
    "subjects": (*KEYS["subjects"], "dice"),
}
# Columns that tables of earlier versions lack: of regimes, Dice in percent on the validation scans,
# see ``validation_table``; of subjects, true errors of registration where they are known.
LATER = {
    "regimes": ("validation", "teacher"),
    "subjects": ("endpoint_voxels", "endpoint_boundary_voxels"),
}
JOINT_ALONE = "regimes=joint"  # in the column "changed": joint training, and what it starts from


def collect(folders: Iterable[Path], results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write ``regimes.csv``, ``subjects.csv`` and ``runs/<name>.json`` of finished runs into
    ``results``; both tables.

    Earlier rows of other experiments stay; those of the same parameters, from other code, are
    replaced. Others who collect into ``results`` are waited for.
    """
    lock = Lock(results / "collecting.lock")
    lock.wait(0.2, quiet=True)
    try:
        return _collect(folders, results)
    finally:
        lock.release()


def _collect(folders: Iterable[Path], results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    regimes, subjects = _earlier(results, "regimes"), _earlier(results, "subjects")
    for folder in folders:
        regimes.append(_regime_rows(folder))  # raises if a file of the run is damaged
        subjects.append(_subject_rows(folder))
        kept = results / "runs" / f"{folder.name}.json"
        write_atomically(kept, partial(shutil.copyfile, folder / "run.json"))

    # Of one experiment only the run that was collected last stays.
    every = pd.concat(regimes)
    latest = every.drop_duplicates([*PARAMETERS, "changed"], keep="last")["run"]
    kept = _write_table(every, latest, results, "regimes")
    kept_subjects = _write_table(pd.concat(subjects), latest, results, "subjects")
    for name in set(every["run"]) - set(latest):
        (results / "runs" / f"{name}.json").unlink(missing_ok=True)
    return kept, kept_subjects


def _earlier(results: Path, name: str) -> list[pd.DataFrame]:
    """The table as it stands, if it does."""
    refuse_older(results)
    return [read_table(results, name)] if (results / f"{name}.csv").is_file() else []


def _regime_rows(folder: Path) -> pd.DataFrame:
    experiment = recorded_experiment(load_record(folder))
    who = {"run": folder.name, "sha256": sha256_of(folder / "run.json")}
    who |= {name: getattr(experiment, name) for name in PARAMETERS}
    who["dataset"] = experiment.entry.name
    who["changed"] = changed(experiment)
    table = results_table(folder, titles=False).join(validation_table(folder)).reset_index()
    absent = [name for name in REQUIRED["regimes"] if name not in (*table, *who)]
    return table.assign(**dict.fromkeys(absent, float("nan")), **who)


def _subject_rows(folder: Path) -> pd.DataFrame:
    """Dice in percent of each subject in each regime, and the true errors of its registration in
    voxels, NaN where they are not known.
    """
    rows = []
    for (task, regime), scores in load_scores(folder).groupby(["task", "regime"], sort=False):
        found = pd.DataFrame({"task": task, "regime": regime, "dice": 100 * per_subject(scores)})
        for name in LATER["subjects"]:
            found[name] = per_subject(scores, name) if name in scores else float("nan")
        rows.append(found.round({"dice": 3}))
    if not rows:
        return pd.DataFrame(columns=[*REQUIRED["subjects"], *LATER["subjects"]])
    return pd.concat(rows).reset_index().assign(run=folder.name)


def _write_table(rows: pd.DataFrame, latest: pd.Series, results: Path, name: str) -> pd.DataFrame:
    """The rows of the runs ``latest``, sorted, each once, as ``<name>.csv``."""
    key = KEYS[name]
    table = rows.drop_duplicates(key, keep="last").sort_values(key, kind="stable")
    table = table[table["run"].isin(latest)]
    others = [column for column in table if column not in key]
    table = table[key + others].reset_index(drop=True)
    write_csv(table, results / f"{name}.csv")
    return table


def changed(experiment: Experiment) -> str:
    """What an experiment sets otherwise than its recipe and profile, as in "lambda_r=1.0
    reg_turns=20"; on which machine is no part of it.
    """
    given = {name: getattr(experiment, name) for name in PARAMETERS}
    usual = parse(given, experiment.entry).choices
    texts = []
    for name, value in experiment.choices.items():
        if value == usual[name]:
            continue
        if isinstance(value, dict):  # as in "term_weights.curl=0.5"
            texts += [f"{name}.{key}={number}" for key, number in value.items()]
        else:
            texts.append(f"{name}={value}")
    return " ".join(texts)


def ablation(rows: pd.DataFrame) -> pd.Series:
    """What a run changes of the method; that it trains fewer regimes changes nothing of it."""
    return rows["changed"].str.replace(JOINT_ALONE, "").str.strip()


def read_table(results: Path, name: str) -> pd.DataFrame:
    """The table "regimes" or "subjects" of ``results``; FileNotFoundError if there is none,
    UserError if it is damaged, or another table. Columns of ``LATER`` that it lacks are NaN.
    """
    refuse_older(results)
    path = results / f"{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{results}: no {name}.csv in it, of the tables that `deepatlas sweep` keeps"
        )
    table = read_csv(path, TEXT, REQUIRED[name])
    absent = [column for column in LATER[name] if column not in table]
    return table.assign(**dict.fromkeys(absent, float("nan")))


def check_results(results: Path) -> None:
    """UserError if there are tables in ``results`` to which rows cannot be added: before a sweep,
    not after its first training.
    """
    for name in KEYS:
        _earlier(results, name)


def refuse_older(results: Path) -> None:
    """UserError if the tables in ``results`` are of an earlier version."""
    if (results / "arms.csv").is_file():
        raise UserError(
            f"{results}: its tables are of an earlier version, in which regimes.csv was arms.csv; "
            f"python {RESULTS / 'migrate.py'} {results} brings them up to date"
        )
