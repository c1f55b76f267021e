"""From numbers to a statement: pairs, intervals, tests, the share of a gap.

What is compared is a Series for each regime. Either it has one number a subject, from
``per_subject``: then subjects are drawn with replacement, and chance is which subjects there were.
Or its index has a level "run", too: then runs are drawn first and subjects within each, so that the
draw of the labelled scans, the first weights and the order of the pairs count as chance as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

MIDDLE = (2.5, 97.5)  # percentiles: 95 % lie between them

# --- pairing --------------------------------------------------------------------------------------


def pair(*regimes: Sequence[float]) -> pd.DataFrame:
    """(subjects, regimes): those subjects that have a number in every regime.

    They are matched by name where each regime is a Series, else by place. Raises ValueError if the
    regimes do not match.
    """
    names = None
    values: Sequence[Sequence[float]] = regimes
    if all(isinstance(regime, pd.Series) for regime in regimes):
        names = regimes[0].index
        values = _in_order(names, regimes)
    lengths = [len(regime) for regime in values]
    if len(set(lengths)) > 1:
        raise ValueError(
            "paired regimes need the same subjects, "
            f"got {', '.join(str(length) for length in lengths)} values"
        )
    columns = [np.asarray(regime, dtype=float) for regime in values]
    table = pd.DataFrame(np.column_stack(columns), index=names)
    table = table[np.isfinite(table).all(axis="columns")]
    if table.empty:
        raise ValueError("no subject has a number in every regime")
    return table


def _in_order(names: pd.Index, regimes: Sequence[pd.Series]) -> list[pd.Series]:
    """The regimes, their subjects in the order of ``names``."""
    if not all(regime.index.is_unique for regime in regimes):
        raise ValueError("a subject has several numbers in one regime: select one task first")
    every = [set(regime.index) for regime in regimes]
    if strangers := set.union(*every) - set.intersection(*every):
        raise ValueError(
            f"not scored in every regime: subjects {', '.join(sorted(map(str, strangers)))}"
        )
    return [regime.reindex(names) for regime in regimes]


def paired_differences(a: pd.Series, b: pd.Series) -> pd.Series:
    """a - b of each subject; ValueError if the regimes do not match."""
    table = pair(a, b)
    return table[0] - table[1]


# --- chance ---------------------------------------------------------------------------------------


def groups_of(table: pd.DataFrame) -> list[np.ndarray]:
    """(subjects, columns) of each run, if the index has a level "run"; else of all together."""
    if "run" not in table.index.names:
        return [table.to_numpy()]
    return [rows.to_numpy() for _, rows in table.groupby(level="run")]


def grand_means(groups: Sequence[np.ndarray]) -> np.ndarray:
    """(columns,): the mean over groups of the means over their rows; every group counts alike."""
    return np.mean([group.mean(axis=0) for group in groups], axis=0)


def resampled_means(
    groups: Sequence[np.ndarray], resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """(resamples, columns): ``grand_means`` of groups drawn with replacement, of rows drawn
    likewise within each.

    With one group it is the ordinary bootstrap of its rows (Efron, 1979). A single number has no
    scatter to draw from: NaN.
    """
    if sum(len(group) for group in groups) < 2:
        return np.full((resamples, groups[0].shape[1]), math.nan)
    of_rows, of_groups = _draws(tuple(len(group) for group in groups), resamples, seed)
    means = []
    for drawn, group in zip(of_rows, groups, strict=True):
        means.append(drawn @ group / len(group))
    # means: (groups, resamples, columns)
    return np.einsum("rg,grc->rc", of_groups, np.stack(means)) / len(groups)


@lru_cache(maxsize=2)  # a table of gains asks a hundred times for as many runs and subjects
def _draws(
    sizes: tuple[int, ...], resamples: int, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """How often each of n is drawn, of n draws with replacement, (resamples, n): of the rows of
    each group, n of ``sizes``, and then of the groups.
    """
    rng = np.random.default_rng(seed)

    def drawn(n: int) -> np.ndarray:
        return rng.multinomial(n, np.full(n, 1 / n), size=resamples)

    return [drawn(n) for n in sizes], drawn(len(sizes))


def middle(resampled: np.ndarray) -> tuple[float, float]:
    """(low, high), between which the middle 95 % lie: the percentile interval."""
    low, high = np.percentile(resampled, MIDDLE).tolist()
    return low, high


def mean_and_interval(values: pd.Series, seed: int = 0) -> dict[str, float]:
    """The ``mean`` over runs of the means over subjects, its interval ``low`` to ``high``, and how
    many ``runs`` there are.
    """
    groups = groups_of(values.to_frame())
    low, high = bootstrap_interval(values, seed)
    return {"mean": float(grand_means(groups)[0]), "low": low, "high": high, "runs": len(groups)}


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval (low, high) of the mean of ``values``, one a subject; NaN
    for a single one.

    It is too narrow below about 10 subjects, and below about as many runs. ``seed`` draws 10,000
    resamples.
    """
    table = pd.Series(values, dtype=float).to_frame()
    return middle(resampled_means(groups_of(table), seed=seed)[:, 0])


# --- statements -----------------------------------------------------------------------------------


def paired_comparison(a: pd.Series, b: pd.Series, seed: int = 0) -> dict[str, float]:
    """Mean of a - b over subjects as ``difference``, its bootstrap interval ``low`` to ``high``,
    and Wilcoxon's ``p``.

    ``a`` and ``b`` come from ``per_subject``, or are sequences in one order of subjects. ``p`` is
    two-sided, of the signed-rank test; with n subjects it cannot fall below 2 / 2^n, so 5 subjects
    can never show p < 0.05. A subject that is NaN in one regime is left out; ``subjects`` says how
    many remain. Raises ValueError if the regimes do not match.

    >>> before = pd.Series([0.70, 0.72, 0.74, 0.76, 0.78])
    >>> after = pd.Series([0.75, 0.78, 0.81, 0.84, 0.87])
    >>> result = paired_comparison(after, before)  # all five are better
    >>> round(result["difference"], 4), result["p"]
    (0.07, 0.0625)
    """
    from scipy import stats  # here: it takes half a second to load

    differences = paired_differences(a, b)
    low, high = bootstrap_interval(differences, seed)
    p = 1.0 if (differences == 0).all() else float(stats.wilcoxon(differences).pvalue)
    return {
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "p": p,
        "subjects": len(differences),
    }


def t_over_runs(differences: pd.Series, minimum: float = 0.0) -> float:
    """Two-sided p of Student's t over the runs' means: is the mean of ``differences`` just
    ``minimum``? NaN for a single run, and where runs do not scatter at all.

    The index of ``differences`` has a level "run". A run, not a subject, is a case: its subjects
    share the labelled scan and the networks. The test is exact where the means of runs scatter
    normally, and then its p can be as small as it likes. One that only flips signs needs no such
    assumption, but cannot fall below 2 / 2^n with n runs (.06 with 5, .004 with 9): 5 runs could
    show nothing by it. Neither sees a failure that happens in one run of ten.
    """
    from scipy import stats  # here: it takes half a second to load

    means = np.array([group.mean() for group in groups_of(differences.to_frame())])
    if len(means) < 2 or np.ptp(means) < 1e-9 * np.abs(means).max():
        return math.nan
    return float(stats.ttest_1samp(means, minimum).pvalue)


def share_of_gap_closed(
    baseline: pd.Series, joint: pd.Series, full: pd.Series, seed: int = 0
) -> dict[str, float]:
    """(joint - baseline) / (full - baseline) of the means: ``share``, with its interval ``low`` to
    ``high``.

    How much of what full supervision gains over the baseline does joint training gain? Whole
    subjects are resampled, all three regimes together. All NaN unless the interval of the gap,
    full - baseline, lies above 0: a share of nothing means nothing. ``subjects`` and ``runs`` say
    of how many. Raises ValueError if the regimes do not match.

    >>> baseline = pd.Series([0.5, 0.6, 0.7])
    >>> found = share_of_gap_closed(baseline, baseline + 0.1, baseline + 0.2)
    >>> round(found["share"], 4)
    0.5
    """
    table = pair(baseline, joint, full)
    gains = table[[1, 2]].sub(table[0], axis="index")  # joint - baseline, full - baseline
    groups = groups_of(gains)
    resampled = resampled_means(groups, seed=seed)
    share = low = high = math.nan
    smallest_gap, _ = middle(resampled[:, 1])
    if smallest_gap > 0:
        gained, gap = grand_means(groups)
        share = float(gained / gap)
        some = resampled[resampled[:, 1] != 0]  # by chance a draw has no gap at all
        low, high = middle(some[:, 0] / some[:, 1])
    return {
        "share": share,
        "low": low,
        "high": high,
        "subjects": len(table),
        "runs": len(groups),
    }


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p, in the order given: the k-th smallest of m times m - k + 1, never below
    its predecessors.

    Below 0.05, the chance of even one false claim among all m is below 5 %, whatever their
    dependence (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, dtype=float)
    order = p.argsort()
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled).clip(max=1)
    return adjusted
