"""What a run found: its table, its comparisons, and the executed notebook. Read from the run folder
alone.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from . import experiments, notebooks, places
from .checkpoints import write_text
from .errors import UserError
from .evaluation.cohorts import per_structure, per_subject
from .evaluation.statistics import holm, paired_comparison, share_of_gap_closed
from .regimes import BASELINES, FULL, JOINT, NETWORK_OF, TITLES, rivals, spent

# --- what stands in the folder --------------------------------------------------------------------


def load_record(folder: Path) -> dict:
    """The record of a finished run; UserError if it is not finished."""
    record = experiments.read_record(folder)
    if not record["finished"]:
        raise UserError(
            f"{folder}: this run is not finished; start it again with the same parameters to go on"
        )
    return record


def load_scores(folder: Path) -> pd.DataFrame:
    """The rows of scores.csv: one per regime, test case and structure."""
    return pd.read_csv(Path(folder) / "scores.csv", dtype={"case": str, "subject": str})


def load_examples(folder: Path) -> list[dict]:
    """The test pairs kept for figures: images, labels, guesses, displacements."""
    return torch.load(Path(folder) / "examples.pt", weights_only=True)


# --- tables ---------------------------------------------------------------------------------------


def results_table(folder: Path, *, titles: bool = True) -> pd.DataFrame:
    """One row per task and regime: Dice in percent, mean and SD over subjects, and other means.

    Regimes by their titles, or without ``titles`` by their keys in ``REGIMES``. *steps* are those
    the network has taken in all, pretraining included; *seconds* those of this regime alone.
    """
    record = load_record(folder)
    table = experiments.recorded_experiment(record).table
    rows = []
    for (task, regime), scores in load_scores(folder).groupby(["task", "regime"], sort=False):
        dice = 100 * per_subject(scores)
        row = {
            "task": task,
            "regime": _title(regime) if titles else regime,
            "Dice %": dice.mean(),
            "SD": dice.std(),
            "NSD %": 100 * per_subject(scores, "nsd").mean(),
            "HD95 mm": per_subject(scores, "hd95_mm").mean(),
        }
        if task == "registration":
            row["folds %"] = scores["folds_percent"].mean()
            row["error voxels"] = scores["endpoint_voxels"].mean()
        trained = regime in table
        row["steps"] = spent(table, regime, NETWORK_OF[task], record["steps"]) if trained else 0
        row["seconds"] = record["seconds"].get(regime, 0)
        rows.append(row)
    return pd.DataFrame(rows).set_index(["task", "regime"]).dropna(axis="columns", how="all")


def structure_table(folder: Path, task: str) -> pd.DataFrame:
    """Dice in percent as "mean (SD)" over cases, structures down, regimes across."""
    scores = load_scores(folder)
    columns = {}
    for regime in scores.loc[scores["task"] == task, "regime"].unique():
        dice = 100 * per_structure(_of(scores, task, regime))
        means = dice["mean"].map("{:.1f}".format)
        columns[_title(regime)] = means + dice["sd"].map(" ({:.1f})".format)
    return pd.DataFrame(columns)


def comparison_table(folder: Path) -> pd.DataFrame:
    """What joint training gains, paired over test subjects, in points of Dice; p by Holm."""
    scores = load_scores(folder)
    there = set(scores["regime"])  # not every run has every regime
    rows = []
    for task in NETWORK_OF:
        joint = 100 * per_subject(_of(scores, task, JOINT))
        for rival in rivals(task):
            if rival in there:
                found = paired_comparison(joint, 100 * per_subject(_of(scores, task, rival)))
                rows.append({"task": task, "DeepAtlas minus": _title(rival), **found})
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"])).rename(columns={"p": "p (Holm)"})


def gap_table(folder: Path) -> pd.DataFrame:
    """Share of the gap between the baseline and full supervision that joint training closes, in
    percent.
    """
    scores = load_scores(folder)
    rows = []
    for task, network in NETWORK_OF.items():
        if FULL[network] not in set(scores["regime"]):
            continue
        compared = (BASELINES[network], JOINT, FULL[network])
        share = share_of_gap_closed(*(per_subject(_of(scores, task, key)) for key in compared))
        percent = {key: 100 * share[key] for key in ("share", "low", "high")}
        rows.append({"task": task, **percent})
    return pd.DataFrame(rows)


def _of(scores: pd.DataFrame, task: str, regime: str) -> pd.DataFrame:
    return scores[(scores["task"] == task) & (scores["regime"] == regime)]


def _title(regime: str) -> str:
    """A regime that the table no longer has keeps its key."""
    return TITLES.get(regime, regime)


# --- the notebook ---------------------------------------------------------------------------------


def report(folder: Path) -> Path:
    """Execute the experiment's notebook on a finished run; returns report.html, beside the executed
    notebook.
    """
    import nbconvert  # here: it takes seconds to load, and a machine that only trains lacks it

    parameters = load_record(folder)["experiment"]
    folder = Path(folder).resolve()
    executed = folder / "experiment.ipynb"
    try:  # the notebook finds the run, whatever --root was
        notebooks.execute(
            places.EXPERIMENT, parameters, executed, DEEPATLAS_RUNS=str(folder.parent)
        )
    except UserError as error:
        raise UserError(
            f"{error}; the scores are safe, and the same command tries the notebook again"
        ) from error
    exporter = nbconvert.HTMLExporter(exclude_input=True, **notebooks.OFFLINE)
    page, _ = exporter.from_filename(str(executed))
    write_text(page, folder / "report.html")
    return folder / "report.html"
