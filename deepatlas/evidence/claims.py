"""Claims that were stated before the runs, each judged once: a file of at most eight, with an
interval, a test over runs, and Holm's correction over all of them.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import UserError, meant
from ..evaluation.statistics import holm
from ..regimes import JOINT
from ..sweeps.collect import KEYS, read_table
from .gains import Metric, cohort_names, gain, gain_by_seed, load_results, titles, usual_runs

CLAIMS = "claims.toml"  # beside the tables of results
MOST = 8  # claims in a file
LEVEL = 0.05  # the chance of even one false claim among all that are decided
BETTER_OF = "the better of them"  # the rival, where a claim names several


class Claim(BaseModel):
    """One sentence that the runs may bear out: ``regime`` beats its rival by more than ``minimum``
    on every one of its cohorts, at ``labelled`` labels, over the runs of just these ``seeds``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    cohorts: list[str] = Field(min_length=1)  # as in "oasis35, 2D"
    labelled: int = Field(ge=1)
    task: Literal["segmentation", "registration"]
    metric: Metric = "dice"
    regime: str = JOINT
    # of several rivals the one that validation scans prefer, in each run by itself
    against: str | list[str]
    direction: Literal["higher", "lower"] = "higher"
    minimum: float = Field(default=0, ge=0)  # points of Dice, or voxels
    seeds: list[int] = Field(min_length=2)
    changed: str = ""  # what its runs set otherwise than the recipe, as in "keep=last"

    @field_validator("regime", "against")
    @classmethod
    def _there_is_such_a_regime(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        for name in names:
            if name not in titles():
                raise ValueError(f"there is no regime {name!r}{meant(name, titles())}")
        if not names:
            raise ValueError("a rival was wanted")
        return value

    @property
    def sign(self) -> int:
        """1 where more is claimed, -1 where less is."""
        return 1 if self.direction == "higher" else -1

    @property
    def rival(self) -> str:
        """What it is compared with, in words."""
        if isinstance(self.against, str):
            return titles()[self.against]
        names = dict.fromkeys(titles()[key] for key in self.against)
        return f"the better of {' and '.join(names)}"


def read_claims(path: Path) -> list[Claim]:
    """The tables ``[[claim]]`` of a TOML file; UserError naming the file, the claim and the
    mistake.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("claim", [])
    except ValueError as error:
        raise UserError(f"{path}: [[claim]] tables were wanted: {error}") from error
    if not 0 < len(tables) <= MOST:
        raise UserError(f"{path}: 1 to {MOST} tables [[claim]] were wanted, got {len(tables)}")
    return [_claim(table, f"{path}: claim {number}") for number, table in enumerate(tables, 1)]


def _claim(table: Mapping[str, object], where: str) -> Claim:
    try:
        return Claim.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {name}: {first['msg']}") from None


# --- judging --------------------------------------------------------------------------------------


def judge(claims: list[Claim], results: Path) -> pd.DataFrame:
    """One row per claim and cohort: its gain with the two-level interval, the gains by seed, p, and
    what becomes of the claim.

    p is two-sided, of Student's t over the runs' means (``t_over_runs``) against the claim's
    minimum. A claim is about every one of its cohorts, so its p is the largest of theirs (Berger,
    1982), corrected by Holm over all claims of the file; those that lack runs count as p = 1. It
    "holds" if that is below ``LEVEL`` and every gain lies beyond the minimum, and is "refuted" if
    every gain falls short of it.
    """
    rows, regimes = load_results(results), read_table(results, "regimes")
    judged = [_of_cohorts(claim, rows, regimes) for claim in claims]
    p_values = [_largest(table["p"]) for table in judged]
    corrected = holm([1.0 if math.isnan(p) else p for p in p_values])
    tables = []
    for claim, table, p in zip(claims, judged, corrected, strict=True):
        tables.append(table.assign(p_holm=p, decision=_decision(claim, table, p)))
    return pd.concat(tables, ignore_index=True)


def _largest(p_values: pd.Series) -> float:
    """NaN if one of them is."""
    return float(p_values.max(skipna=False))


def _decision(claim: Claim, table: pd.DataFrame, p: float) -> str:
    if (table["lacking"] != "").any():
        return "not enough runs"
    beyond = claim.sign * table["gain"] > claim.minimum
    if p >= LEVEL or beyond.nunique() > 1:
        return "not shown"
    return "holds" if beyond.all() else "refuted"


def _of_cohorts(claim: Claim, rows: pd.DataFrame, regimes: pd.DataFrame) -> pd.DataFrame:
    """One row per cohort of a claim, not yet corrected."""
    rows = usual_runs(rows, claim.changed)
    wanted = {"labelled": claim.labelled, "task": claim.task}
    rows = rows[(rows[list(wanted)] == pd.Series(wanted)).all(axis="columns")]
    rows = rows[rows["seed"].isin(claim.seeds)].assign(cohort=cohort_names)
    found = []
    for cohort in claim.cohorts:
        of_cohort = rows[rows["cohort"] == cohort]
        what = {"claim": claim.name, "cohort": cohort, "against": claim.rival}
        found.append({**what, **_compare(claim, of_cohort, regimes)})
    return pd.DataFrame(found)


def _compare(claim: Claim, rows: pd.DataFrame, regimes: pd.DataFrame) -> dict[str, object]:
    """The gain over the rival in the runs of one cohort; numbers are NaN while runs are lacking."""
    rival = claim.against
    if not isinstance(rival, str):
        rows = with_the_better_rival(rows, rival, regimes)
        rival = BETTER_OF
    scored = rows[rows[claim.metric].notna()]
    if (scored.groupby("seed")["run"].nunique() > 1).any():
        raise UserError(f"claim {claim.name!r}: several runs of one seed, of which one was wanted")
    of_seed = scored.groupby("seed")["regime"].agg(set)
    there = {seed for seed, names in of_seed.items() if {claim.regime, rival} <= names}
    lacking = ", ".join(str(seed) for seed in claim.seeds if seed not in there)
    if lacking:
        unknown = dict.fromkeys(("gain", "low", "high", "p"), math.nan)
        return {**unknown, "by_seed": "", "runs": len(there), "lacking": lacking}
    found = gain(rows, claim.regime, rival, claim.metric, claim.sign * claim.minimum)
    digits = 1 if claim.metric == "dice" else 2
    by_seed = gain_by_seed(rows, claim.regime, rival, claim.metric).values()
    told = ", ".join(f"{value:+.{digits}f}" for value in by_seed)
    return {**found, "by_seed": told, "lacking": ""}


def with_the_better_rival(
    rows: pd.DataFrame, rivals: list[str], regimes: pd.DataFrame
) -> pd.DataFrame:
    """``rows`` of one task, and once more those of the rival with the higher validation score in
    each run, under the name ``BETTER_OF``: which one is the better is not read from test scans.

    A run that lacks one of them gets none. UserError where a validation score is missing.
    """
    scores = regimes.set_index(KEYS["regimes"])["validation"]
    chosen = []
    for (run, task), some in rows.groupby(["run", "task"]):
        if not set(rivals) <= set(some["regime"]):
            continue
        of_rivals = scores.loc[[(run, task, rival) for rival in rivals]]
        if of_rivals.isna().any():
            raise UserError(
                f"regimes.csv: run {run} has no validation score of each of {', '.join(rivals)}, "
                "by which the better one is chosen: name one rival in the claim, or run it again"
            )
        better = rivals[int(of_rivals.to_numpy().argmax())]  # the first of equals
        chosen.append(some[some["regime"] == better].assign(regime=BETTER_OF))
    return pd.concat([rows, *chosen])
