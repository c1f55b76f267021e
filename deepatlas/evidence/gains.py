"""What joint training gains, over many runs: paired by run and subject, with intervals of two
levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..evaluation.statistics import mean_and_interval, paired_differences, share_of_gap_closed
from ..places import RESULTS
from ..regimes import FULL, JOINT, NETWORK_OF, REFERENCES, rivals
from ..sweeps.collect import JOINT_ALONE, PARAMETERS, ablation, read_table

# --- gains ----------------------------------------------------------------------------------------


def load_results(results: Path = RESULTS) -> pd.DataFrame:
    """One row per subject of a regime, with the parameters of its run; FileNotFoundError if there
    are none, UserError if the two tables do not say the same.
    """
    regimes = read_table(results, "regimes")
    subjects = read_table(results, "subjects")
    _belong_together(regimes, subjects, results)
    parameters = regimes.drop_duplicates("run")[["run", *PARAMETERS, "changed"]]
    return subjects.merge(parameters, on="run")


def _belong_together(regimes: pd.DataFrame, subjects: pd.DataFrame, results: Path) -> None:
    """UserError unless all regimes of a run have as many subjects, whose mean is what the regime's
    row says.
    """
    key = ["run", "task", "regime"]
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


def gain(rows: pd.DataFrame, regime: str, other: str) -> dict[str, float]:
    """Mean of ``regime`` - ``other`` in points of Dice, paired by run and subject, with a 95 %
    interval.

    ``rows`` of ``load_results``, of one task. The interval is a bootstrap of two levels: runs are
    drawn with replacement, then subjects within each, so that the draw of the labelled scans counts
    as chance, too.
    """
    differences = paired_differences(*_dice_of(rows, regime, other))
    found = mean_and_interval(differences)
    return {"gain": found.pop("mean"), **found}


def gap_closed(rows: pd.DataFrame, baseline: str, joint: str, full: str) -> dict[str, float]:
    """(joint - baseline) / (full - baseline) in percent, each a mean over runs, with the interval
    of ``gain``.

    NaN unless the interval of full - baseline lies above 0: a share of nothing means nothing.
    """
    found = share_of_gap_closed(*_dice_of(rows, baseline, joint, full))
    percent = {key: 100 * found[key] for key in ("share", "low", "high")}
    return percent | {"runs": found["runs"]}


def _dice_of(rows: pd.DataFrame, *regimes: str) -> list[pd.Series]:
    """Dice of each regime by (run, subject), of the runs that have all of them."""
    if missing := set(regimes) - set(rows["regime"]):
        raise UserError(f"no row of {', '.join(sorted(missing))} among {len(rows)} rows")
    rows = rows[rows["regime"].isin(regimes)]
    regimes_of_run = rows.groupby("run")["regime"].transform("nunique")
    rows = rows[regimes_of_run == len(set(regimes))]
    dice = rows.set_index(["run", "subject"]).sort_index()
    return [dice.loc[dice["regime"] == regime, "dice"] for regime in regimes]


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Every gain of joint training: one row per cohort, recipe, N, task and the regime that it is
    compared with.

    Beside the ``gain`` with its interval, the mean of that regime, and the share of the gap between
    it and full supervision, in percent, where the gap is wider than chance.
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
    references = [key for key, (_, scored_in) in REFERENCES.items() if scored_in == task]
    for other in (*references, *rivals(task)):
        if other not in there:
            continue
        of_runs = rows[rows["regime"] == other].groupby("run")["dice"].mean()
        compared = {"against": other, "mean": of_runs.mean(), **gain(rows, JOINT, other)}
        if full in there:
            compared["share"] = gap_closed(rows, other, JOINT, full)["share"]
        yield compared


# --- Dice against N -------------------------------------------------------------------------------


def dice_against_n(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice of each regime against N, with the interval of ``gain``: what
    ``plots.dice_against_n_figure`` draws.

    Of the runs by the recipe "best" at class size whose labelled scans were drawn by the seed, with
    those seeds that every N of a cohort has, for another seed is another cohort; where an N has no
    run of all regimes, of those of joint training alone. UserError if there is none.
    """
    usual = rows[
        (rows["recipe"] == "best")
        & (rows["profile"] == "class")
        & (rows["label_seed"] == rows["seed"])
        & rows["changed"].isin(("", JOINT_ALONE))
    ]
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


def cohort_names(rows: pd.DataFrame) -> pd.Series:
    """The data set and its dimensions: slices and volumes are not compared."""
    return rows["dataset"] + ", " + rows["dims"].astype(str) + "D"


# --- one thing changed at a time ------------------------------------------------------------------


def ablations(dataset: str, labelled: int = 1, results: Path = RESULTS) -> pd.DataFrame:
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
