"""What a run found: its table, its comparisons, and the executed notebook. Read from the run folder
alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from . import notebooks, places
from .checkpoints import load_tensors, read_csv, write_text
from .errors import UserError, brief
from .evaluation.cohorts import per_structure, per_subject
from .evaluation.statistics import holm, paired_comparison, share_of_gap_closed
from .experiments import SCORE_NUMBERS, SCORE_TEXTS
from .records import made_again, own_file, read_record, recorded_experiment, scored_tasks
from .regimes import BASELINES, FULL, JOINT, NETWORK_OF, REFINED, TITLES, rivals, spent

# --- what stands in the folder --------------------------------------------------------------------


def load_record(folder: Path) -> dict:
    """The record of a finished run; UserError if it is not finished."""
    record = read_record(folder)
    if not record["finished"]:
        raise UserError(
            f"{folder}: this run is not finished; start it again with the same parameters to go on"
        )
    return record


def load_scores(folder: Path) -> pd.DataFrame:
    """The rows of scores.csv: one per regime, test case and structure, of the tasks that could be
    scored; UserError if the file is damaged, or of another run.
    """
    record = read_record(folder)
    path = own_file(record, folder, "scores.csv")
    scores = read_csv(path, text=SCORE_TEXTS, required=(*SCORE_TEXTS, *SCORE_NUMBERS))
    rows = scores.groupby(["task", "regime"]).size()
    networks = {NETWORK_OF[task] for task in scored_tasks(record)}
    wanted = {key for key, steps in record["steps"].items() if networks & steps.keys()}
    found = set(scores["regime"])
    missing = wanted - found
    uneven = rows.groupby("task").nunique().gt(1).any()
    if odd := [regime for regime in found if not regime.isidentifier()]:
        raise UserError(f"{path}: damaged, it names a regime {brief(odd[0])}")
    nothing = scores.empty and bool(networks)
    if nothing or missing or uneven:  # that much is seen without a hash, too
        raise UserError(f"{path}: rows of it are missing; {made_again(record, folder)}")
    return scores


def load_history(folder: Path) -> pd.DataFrame:
    """The rows of history.csv: one per step of each regime trained so far; UserError if the file is
    damaged, or of another run.
    """
    path = own_file(read_record(folder), folder, "history.csv")
    return read_csv(path, text=("turn", "regime"), required=("step", "turn", "regime"))


def load_examples(folder: Path) -> list[dict]:
    """The test pairs kept for figures: images, labels, guesses, displacements; UserError if the
    file is damaged, or of another run.
    """
    return load_tensors(own_file(read_record(folder), folder, "examples.pt"))


# --- tables ---------------------------------------------------------------------------------------


def results_table(folder: Path, *, titles: bool = True) -> pd.DataFrame:
    """One row per task and regime: Dice in percent, mean and SD over subjects, and other means.

    Regimes by their titles, or without ``titles`` by their keys in ``REGIMES``. *steps* are those
    the network has taken in all, pretraining included; *seconds* those of this regime alone.
    """
    network_of = {refined: key for key, refined in REFINED.items()}
    record = load_record(folder)
    table = recorded_experiment(record).table
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
            if "endpoint_boundary_voxels" in scores:
                row["error boundary voxels"] = scores["endpoint_boundary_voxels"].mean()
        key = network_of.get(regime, regime)
        row["steps"] = 0
        if key in table:
            row["steps"] = spent(table, key, NETWORK_OF[task], record["steps"])
        row["seconds"] = record["seconds"].get(regime, 0)
        rows.append(row)
    if not rows:  # no test scan can judge anything: a table, but of nothing
        columns = ["task", "regime", "Dice %", "folds %", "steps", "seconds"]
        return pd.DataFrame(columns=columns).set_index(["task", "regime"])
    return pd.DataFrame(rows).set_index(["task", "regime"]).dropna(axis="columns", how="all")


def validation_table(folder: Path) -> pd.DataFrame:
    """One row per task and trained regime, Dice in percent on the validation scans: ``validation``,
    of the weights that are kept of the network that the task scores, and ``teacher``, of the
    network that was consulted while it was trained, at the end.

    NaN where nobody is consulted, and of runs of earlier versions, which kept neither.
    """
    history = load_history(folder)
    ends = history.drop_duplicates("regime", keep="last").set_index("regime")
    rows = []
    for task, network in NETWORK_OF.items():
        (other,) = set(NETWORK_OF.values()) - {network}
        for regime, end in ends.iterrows():
            rows.append(
                {
                    "task": task,
                    "regime": regime,
                    "validation": 100 * end.get(f"kept_{network}", math.nan),
                    "teacher": 100 * end.get(f"teacher_{other}", math.nan),
                }
            )
    columns = ["task", "regime", "validation", "teacher"]
    return pd.DataFrame(rows, columns=columns).set_index(["task", "regime"])


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
    for task in scores["task"].unique():
        joint = 100 * per_subject(_of(scores, task, JOINT))
        for rival in rivals(task):
            if rival in there:
                found = paired_comparison(joint, 100 * per_subject(_of(scores, task, rival)))
                rows.append({"task": task, "DeepAtlas minus": _title(rival), **found})
    if not rows:
        return pd.DataFrame(columns=["task", "DeepAtlas minus", "p (Holm)"])
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"])).rename(columns={"p": "p (Holm)"})


def gap_table(folder: Path) -> pd.DataFrame:
    """Share of the gap between the baseline and full supervision that joint training closes, in
    percent.
    """
    scores = load_scores(folder)
    rows = []
    for task, network in NETWORK_OF.items():
        if _of(scores, task, FULL[network]).empty:
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
