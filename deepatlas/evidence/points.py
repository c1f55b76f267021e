"""What the figures of the evidence draw: one point for each run, not bars of means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from ..errors import UserError
from ..regimes import BASELINES, CONTROLS, FIRST, JOINT, NETWORK_OF, PROPAGATION, SEMI
from .gains import FIRST_TITLES, cohort_names, gain, gain_by_seed, titles, usual_runs

COHORT = ["dataset", "dims", "labelled"]
TAUGHT_LONG = dict(zip(("seg", "reg"), FIRST_TITLES, strict=True))


def decisive_rivals(rows: pd.DataFrame, task: str) -> list[str]:
    """The regimes among ``rows`` that a gain of joint training has to be told from: a teacher that
    does not learn, and training as long without one. That is the baseline itself where every regime
    is trained at one go.
    """
    network = NETWORK_OF[task]
    there = set(rows["regime"])
    long = TAUGHT_LONG[network]  # in rows of the first protocol Semi-DeepAtlas was the shorter
    taught = long if long in there else SEMI[network]
    alone = CONTROLS[network] if CONTROLS[network] in there else BASELINES[network]
    return [key for key in (taught, alone) if key in there]


def decisive_gains(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points of Dice that joint training gains over each of ``decisive_rivals``: a row per seed
    (``gain``), and a row per cohort, N, task and rival (``gain``, ``low``, ``high``, ``runs``).

    Of the runs of ``usual_runs``. UserError if none has such a pair of regimes.
    """
    seeds, means = [], []
    for what, some in _cohorts(rows):
        if JOINT not in set(some["regime"]):
            continue
        for rival in decisive_rivals(some, what["task"]):
            what = what | {"against": titles()[rival]}
            for seed, value in gain_by_seed(some, JOINT, rival).items():
                seeds.append({**what, "seed": seed, "gain": value})
            means.append({**what, **gain(some, JOINT, rival)})
    if not means:
        raise UserError(
            "no run by the recipe best at class size, with nothing changed, of DeepAtlas and "
            "Semi-DeepAtlas or the baseline as long, among the results"
        )
    return pd.DataFrame(seeds), pd.DataFrame(means)


def _cohorts(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """(cohort, N and task, rows of the usual runs), each."""
    usual = usual_runs(rows, "")
    for values, some in usual.groupby([*COHORT, "task"]):
        dataset, dims, labelled, task = values
        yield {"cohort": f"{dataset}, {dims}D", "labelled": labelled, "task": task}, some


# --- where it helps -------------------------------------------------------------------------------


def teacher_map(rows: pd.DataFrame) -> pd.DataFrame:
    """Is a gain where the teacher is strong? A row per cohort, N, seed, task and decisive rival:
    ``teacher``, by how many points of test Dice the teacher is ahead of its pupil, and ``gain``.

    The teacher of segmentation is the registration baseline, scored as label propagation, and its
    pupil the segmentation baseline. The teacher of registration is the F_S that joint training
    starts from, or that Semi-DeepAtlas holds fixed; its pupil the registration baseline. Where the
    rival is that same pupil, both numbers are differences from one, and rise together by
    themselves: within a cohort that is no finding.

    Of the runs of ``usual_runs``. UserError if none has all of these regimes.
    """
    usual = usual_runs(rows, "").assign(cohort=cohort_names)
    found = []
    for (cohort, labelled, seed), run in usual.groupby(["cohort", "labelled", "seed"]):
        dice = run.groupby(["task", "regime"])["dice"].mean()
        what = {"cohort": cohort, "labelled": labelled, "seed": seed}
        for task, network in NETWORK_OF.items():
            pair = (teacher_of(run, task, labelled), (task, BASELINES[network]), (task, JOINT))
            if not set(pair) <= set(dice.index):
                continue
            teacher, pupil, joint = (dice[key] for key in pair)
            of_task = run[run["task"] == task]
            for rival in decisive_rivals(of_task, task):
                point = {"task": task, "against": titles()[rival], "teacher": teacher - pupil}
                found.append({**what, **point, "gain": joint - dice[task, rival]})
    if not found:
        raise UserError(
            "no run by the recipe best at class size, with nothing changed, of DeepAtlas, what "
            "teaches it and its decisive rivals, among the results"
        )
    return pd.DataFrame(found)


def teacher_of(rows: pd.DataFrame, task: str, labelled: int) -> tuple[str, str]:
    """(task, regime) that scores who teaches the network of ``task``, before it learns itself."""
    if task == "segmentation":
        return task, PROPAGATION
    if labelled > 1:
        return "segmentation", BASELINES["seg"]
    return "segmentation", FIRST if FIRST in set(rows["regime"]) else SEMI["seg"]
