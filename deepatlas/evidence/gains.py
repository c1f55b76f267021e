"""What joint training gains, over many runs: paired by run and subject, with intervals of two
levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd

from ..errors import UserError
from ..evaluation.statistics import (
    mean_and_interval,
    paired_differences,
    share_of_gap_closed,
    t_over_runs,
)
from ..places import FIRST_RESULTS
from ..regimes import FULL, JOINT, NETWORK_OF, REFINED, REGIMES, TITLES
from ..sweeps.collect import JOINT_ALONE, KEYS, PARAMETERS, ablation, read_table
from . import rivals

# --- what rows are about --------------------------------------------------------------------------

Metric = Literal["dice", "endpoint_voxels", "endpoint_boundary_voxels"]
# What a row scores: its column -> title, and whether more of it is better (1) or worse (-1).
METRICS: dict[Metric, tuple[str, int]] = {
    "dice": ("Dice, %", 1),
    "endpoint_voxels": ("true error, voxels", -1),
    "endpoint_boundary_voxels": ("true error at boundaries, voxels", -1),
}
# The true error of a registration, where the true deformation is known -> its mean over a run in
# regimes.csv
ERRORS: dict[Metric, str] = {
    "endpoint_voxels": "error voxels",
    "endpoint_boundary_voxels": "error boundary voxels",
}
# Regimes that rows of the first protocol alone have.
FIRST_TITLES = {
    "semi_seg_control": "Semi-DeepAtlas, as long as DeepAtlas",
    "semi_reg_control": "Semi-DeepAtlas, as long as DeepAtlas",
}


def sees_all_labels(regime: str) -> bool:
    """Is it full supervision?"""
    return regime == rivals.ALL_LABELS or (regime in REGIMES and REGIMES[regime].all_labels)


def titles() -> dict[str, str]:
    """Key -> title of every regime, reference and rival that a row may be of, in the order of
    tables: full supervision last.
    """
    every = TITLES | FIRST_TITLES | rivals.TITLES
    return {key: every[key] for key in sorted(every, key=sees_all_labels)}


def cohort_names(rows: pd.DataFrame) -> pd.Series:
    """The data set and its dimensions: slices and volumes are not compared."""
    return rows["dataset"] + ", " + rows["dims"].astype(str) + "D"


# --- rows -----------------------------------------------------------------------------------------

# Folder of results whose rows are of runs on a GPU: told apart, and no claim counts them.
GPU = "gpu"


def load_results(results: Path = FIRST_RESULTS) -> pd.DataFrame:
    """One row per subject of a regime, with the parameters of its run; FileNotFoundError if there
    are none, UserError if the two tables do not say the same.

    Those of rivals are among them. The columns of ``METRICS`` are its scores. Where a true error
    was kept for whole runs alone, every subject has its run's mean, and an interval counts no
    chance but that of runs.
    """
    regimes = read_table(results, "regimes")
    subjects = read_table(results, "subjects")
    _belong_together(regimes, subjects, results)
    regimes = regimes.assign(changed=of_the_method(regimes["changed"]))
    parameters = regimes.drop_duplicates("run")[["run", *PARAMETERS, "changed"]]
    rows = subjects.merge(parameters, on="run")
    of_runs = rows[KEYS["regimes"]].merge(regimes, on=KEYS["regimes"], how="left")
    for metric, column in ERRORS.items():
        if column in of_runs:
            rows[metric] = rows[metric].fillna(of_runs[column])
    of_rivals = rivals.rows_of_rivals(results, parameters)
    return rows if of_rivals.empty else pd.concat([rows, of_rivals], ignore_index=True)


def with_those_of_a_gpu(rows: pd.DataFrame, results: Path) -> pd.DataFrame:
    """``rows`` of ``results``, and those of the runs on a ``GPU`` that stand in a folder of their
    own there, if there are any.
    """
    folder = results / GPU
    return pd.concat([rows, load_results(folder)]) if folder.is_dir() else rows


def of_the_method(changed: pd.Series) -> pd.Series:
    """The column ``changed`` without the precision, which is a matter of the machine: runs that the
    recipe alone decides have "".
    """
    return changed.str.replace(r"\bprecision=\w+", "", regex=True).str.strip()


def _belong_together(regimes: pd.DataFrame, subjects: pd.DataFrame, results: Path) -> None:
    """UserError unless all regimes of a run have as many subjects, whose mean is what the regime's
    row says.
    """
    key = KEYS["regimes"]
    said = regimes.set_index(key)["Dice %"]
    found = subjects.groupby(key)["dice"].agg(["mean", "size"])
    same_rows = said.index.is_unique and set(said.index) == set(found.index)
    uneven = found["size"].groupby(["run", "task"]).nunique().gt(1).any()
    if not same_rows or uneven or (said - found["mean"]).abs().gt(0.01).any():
        raise UserError(
            f"{results}: regimes.csv and subjects.csv do not say the same, so one of them is "
            "damaged or of another collection: `deepatlas sweep` collects them again from the "
            "folders of the runs"
        )


def regimes_with(rows: pd.DataFrame, metric: str) -> set[str]:
    """Those that have a number in a column of ``METRICS``."""
    return set(rows.loc[rows[metric].notna(), "regime"]) if metric in rows else set()


# --- two regimes ----------------------------------------------------------------------------------


def gain(
    rows: pd.DataFrame, regime: str, other: str, metric: str = "dice", minimum: float = 0.0
) -> dict[str, float]:
    """Mean of ``regime`` - ``other`` in a column of ``METRICS``, by default in points of Dice,
    paired by run and subject, with a 95 % interval, and p by ``t_over_runs``, that it is no other
    than ``minimum``.

    ``rows`` of ``load_results``, of one task. The interval is a bootstrap of two levels: runs are
    drawn with replacement, then subjects within each, so that the draw of the labelled scans counts
    as chance, too.
    """
    differences = paired_differences(*_scores_of(rows, regime, other, metric=metric))
    found = mean_and_interval(differences)
    return {"gain": found.pop("mean"), **found, "p": t_over_runs(differences, minimum)}


def cannot_be_told(found: Mapping[str, float]) -> bool:
    """Could this ``gain`` be chance, by its p of Student's t, not corrected? p is NaN where runs do
    not scatter at all.
    """
    return found["p"] > 0.05 or found["gain"] == 0


def gain_by_seed(
    rows: pd.DataFrame, regime: str, other: str, metric: str = "dice"
) -> dict[int, float]:
    """The gain of each run by its seed, in the order of seeds; of the runs that ``gain`` counts."""
    differences = paired_differences(*_scores_of(rows, regime, other, metric=metric))
    of_runs = differences.groupby(level="run").mean()
    seeds = rows.drop_duplicates("run").set_index("run")["seed"]
    ordered = seeds.loc[of_runs.index].sort_values(kind="stable")
    return {int(seed): float(of_runs[run]) for run, seed in ordered.items()}


def gap_closed(rows: pd.DataFrame, baseline: str, joint: str, full: str) -> dict[str, float]:
    """(joint - baseline) / (full - baseline) in percent, each a mean over runs, with the interval
    of ``gain``.

    NaN unless the interval of full - baseline lies above 0: a share of nothing means nothing.
    """
    found = share_of_gap_closed(*_scores_of(rows, baseline, joint, full))
    percent = {key: 100 * found[key] for key in ("share", "low", "high")}
    return percent | {"runs": found["runs"]}


MAY_BE_CHANCE = "may be chance"  # in place of a share, where the gain itself may be


def share_in_words(share: float) -> str:
    """A share in percent where it means something: as in "72 %", "no gap" where full supervision
    does not gain for certain (NaN), "a loss" below 0 and "all of it" above 100.
    """
    if math.isnan(share):
        return "no gap"
    if share < 0:
        return "a loss"
    return f"{share:.0f} %" if share <= 100 else "all of it"


def _scores_of(rows: pd.DataFrame, *regimes: str, metric: str = "dice") -> list[pd.Series]:
    """The scores of each regime by (run, subject), of the runs that have all of them."""
    if missing := set(regimes) - set(rows["regime"]):
        raise UserError(f"no row of {', '.join(sorted(missing))} among {len(rows)} rows")
    rows = rows[rows["regime"].isin(regimes)]
    regimes_of_run = rows.groupby("run")["regime"].transform("nunique")
    rows = rows[regimes_of_run == len(set(regimes))]
    scores = rows.set_index(["run", "subject"]).sort_index()
    return [scores.loc[scores["regime"] == regime, metric] for regime in regimes]


# --- every gain of joint training -----------------------------------------------------------------


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Every gain of joint training: one row per cohort, recipe, N, task and the regime or rival
    that it is compared with; with a registration that is sought for each pair, that which is
    refined.

    Beside the ``gain`` with its interval and ``p``, not corrected for their number: the gains by
    seed; the mean of that regime; the ``share`` of the gap between it and full supervision, in
    words; and the difference in each true error, where it is known.
    """
    alike = ["dataset", "profile", "dims", "recipe", "changed", "labelled", "task"]
    found = []
    for values, some in rows.groupby(alike):
        what = dict(zip(alike, values, strict=True))
        found += [what | compared for compared in _comparisons(some, what["task"])]
    return pd.DataFrame(found)


def _comparisons(rows: pd.DataFrame, task: str) -> Iterator[dict[str, object]]:
    """Joint training against every other regime there is, but full supervision."""
    there = set(rows["regime"])
    if JOINT not in there:
        return
    full = FULL[NETWORK_OF[task]]
    for other in titles():
        joint = REFINED[JOINT] if other in rivals.OF_EACH_PAIR else JOINT
        if other == joint or not {other, joint} <= there or sees_all_labels(other):
            continue
        of_runs = rows[rows["regime"] == other].groupby("run")["dice"].mean()
        compared = {"against": other, "mean": of_runs.mean(), **gain(rows, joint, other)}
        by_seed = gain_by_seed(rows, joint, other).values()
        compared["by_seed"] = ", ".join(f"{value:+.1f}" for value in by_seed)
        if full in there and joint == JOINT:  # full supervision is not refined
            compared["share"] = _share_told(rows, other, full, compared)
        for metric in ERRORS:
            if {joint, other} <= regimes_with(rows, metric):
                error = gain(rows, joint, other, metric)
                ends = {f"{metric}_{end}": error[end] for end in ("low", "high")}
                compared |= {metric: error["gain"]} | ends
        yield compared


def _share_told(rows: pd.DataFrame, other: str, full: str, of_joint: Mapping[str, float]) -> str:
    """``share_in_words`` of the gap between ``other`` and ``full``, where neither the gap nor what
    joint training gains over ``other`` may be chance.
    """
    share = gap_closed(rows, other, JOINT, full)["share"]
    if math.isnan(share) or cannot_be_told(gain(rows, full, other)):
        return share_in_words(math.nan)
    return MAY_BE_CHANCE if cannot_be_told(of_joint) else share_in_words(share)


# --- Dice against N -------------------------------------------------------------------------------


def dice_against_n(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice of each regime against N, with the interval of ``gain``: what
    ``plots.dice_against_n_figure`` draws.

    Of the runs of ``usual_runs``, with those seeds that every N of a cohort has, for another seed
    is another cohort; where an N has no run of all regimes, of those of joint training alone.
    UserError if there is none.
    """
    usual = usual_runs(rows[rows["regime"].isin(TITLES)], "", JOINT_ALONE)
    usual = _of_every_n(_of_all_regimes(usual))
    if usual.empty:
        raise UserError(
            "no run by the recipe best at class size, with nothing changed and a seed that every N "
            "has, among the results"
        )
    keys = ["dataset", "dims", "task", "regime", "labelled"]
    found = []
    for values, some in usual.groupby(keys, sort=False):
        point = dict(zip(keys, values, strict=True))
        found.append(point | mean_and_interval(some.set_index("run")["dice"]))
    return pd.DataFrame(found).assign(dataset=cohort_names)


def usual_runs(rows: pd.DataFrame, *changed: str) -> pd.DataFrame:
    """Runs by the recipe "best" at class size whose labelled scans were drawn by the seed, and
    which set otherwise than the recipe what one of ``changed`` says: "" for nothing.
    """
    return rows[
        (rows["recipe"] == "best")
        & (rows["profile"] == "class")
        & (rows["label_seed"] == rows["seed"])
        & rows["changed"].isin(changed)
    ]


def _of_all_regimes(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs of all regimes, if a cohort and N has one; else those of joint training alone."""
    rows = rows.assign(all_regimes=rows["changed"] == "")
    any_of_all = rows.groupby(["dataset", "dims", "labelled"])["all_regimes"].transform("any")
    return rows[rows["all_regimes"] | ~any_of_all]


def _of_every_n(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs of those seeds that have every N of their cohort."""
    of_cohort = rows.groupby(["dataset", "dims"])["labelled"].transform("nunique")
    of_seed = rows.groupby(["dataset", "dims", "seed"])["labelled"].transform("nunique")
    return rows[of_seed == of_cohort]


# --- one thing changed at a time ------------------------------------------------------------------


def ablations(dataset: str, labelled: int = 1, results: Path = FIRST_RESULTS) -> pd.DataFrame:
    """One thing changed at a time: what joint training reaches, on slices, at class size, with
    seed 0.

    A row for what was changed, as in "lambda_r=1.0", and "" for the recipe "best" itself; the
    columns are the mean Dice in percent of "segmentation" and "registration", and "folds %".
    UserError if there is no such run.
    """
    usual = {
        "dataset": dataset,
        "labelled": labelled,
        "dims": 2,
        "profile": "class",
        "recipe": "best",
        "seed": 0,
        "label_seed": 0,
        "regime": JOINT,
    }
    rows = read_table(results, "regimes")
    rows = rows.assign(changed=of_the_method(rows["changed"]))
    rows = rows[(rows[list(usual)] == pd.Series(usual)).all(axis="columns")]
    if rows.empty:
        raise UserError(
            f"{results}: no run of slices of {dataset} at class size with labelled={labelled} "
            "and seed=0"
        )
    rows = rows.assign(changed=ablation).drop_duplicates(["changed", "task"])
    rows = rows.set_index("changed")
    folds = rows.loc[rows["task"] == "registration", "folds %"]
    return rows.pivot(columns="task", values="Dice %").assign(**{"folds %": folds})
