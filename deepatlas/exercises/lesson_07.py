"""Lesson 07, evaluation: means that do not lie, the share of a gap, boundaries, many comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator

from ..evaluation import holm
from . import Exercise, Mistake


def _rng(generator: Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))


# --- a mean over structures and cases -------------------------------------------------------------


def _scores_with_gaps(dims: int, generator: Generator) -> tuple[np.ndarray]:
    """Dice (cases, structures); a structure that a case lacks is NaN."""
    scores = (
        _rng(generator).uniform(0.1, 0.2, (5, 4)) * np.array([1, 2, 3, 4])
        + np.linspace(0, 0.2, 5)[:, None]
    )
    scores[0, :3] = scores[2, 0] = np.nan
    return (scores,)


MEAN = Exercise(
    "The mean Dice of a cohort",
    _scores_with_gaps,
    lambda scores: np.nanmean(np.nanmean(scores, axis=1)),
    (
        "First one number for each case, then the mean over cases.",
        "A structure that a case lacks is left out of that case's mean: np.nanmean.",
        "np.nanmean(scores, axis=1).mean()",
    ),
    {
        "all at once": Mistake(
            lambda scores: np.nanmean(scores),
            (
                "It is nearly right, and exactly right if nothing is missing.",
                "A case in which structures are missing counts less in your mean, since it has fewer entries.",
                "The mean of each case first (axis=1), then the mean over cases.",
            ),
        ),
        "absent is 0": Mistake(
            lambda scores: np.nan_to_num(scores).mean(),
            (
                "Your mean is too small.",
                "A structure that is not there cannot be missed: 0 punishes the method for the anatomy.",
                "np.nanmean instead of replacing NaN by 0.",
            ),
        ),
        "absent is 1": Mistake(
            lambda scores: np.nan_to_num(scores, nan=1.0).mean(),
            (
                "Your mean is too large.",
                "1 is a reward for nothing.",
                "np.nanmean instead of replacing NaN by 1.",
            ),
        ),
        "NaN spreads": Mistake(
            lambda scores: scores.mean(),
            ("The result is not a number.", "One NaN makes every ordinary mean NaN.", "np.nanmean"),
        ),
        "incomplete cases dropped": Mistake(
            lambda scores: scores[~np.isnan(scores).any(axis=1)].mean(),
            (
                "Your mean uses fewer cases than there are.",
                "You leave out whole cases in which anything is missing; often these are the ill ones.",
                "Leave out the missing entry only: np.nanmean(scores, axis=1).",
            ),
        ),
        "structures first": Mistake(
            lambda scores: np.nanmean(np.nanmean(scores, axis=0)),
            (
                "It is close.",
                "You average over cases within each structure first. The cases are what was drawn at random; their means are "
                "what intervals and tests need.",
                "axis=1, the structures, first.",
            ),
        ),
    },
    dims=(3,),
    tolerance=1e-6,
)

# --- the share of a gap ---------------------------------------------------------------------------


def _three_arms(dims: int, generator: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = _rng(generator)
    baseline = rng.uniform(60, 70, 12)
    return baseline, baseline + rng.uniform(1, 6, 12), baseline + rng.uniform(5, 12, 12)


GAP = Exercise(
    "The share of the gap that is closed",
    _three_arms,
    lambda baseline, joint, full: (
        (joint.mean() - baseline.mean()) / (full.mean() - baseline.mean())
    ),
    (
        "What does full supervision gain over the baseline? What does joint training gain?",
        "The share is a ratio of two mean gains: (joint - baseline) / (full - baseline).",
        "(joint.mean() - baseline.mean()) / (full.mean() - baseline.mean())",
    ),
    {
        "mean of ratios": Mistake(
            lambda baseline, joint, full: ((joint - baseline) / (full - baseline)).mean(),
            (
                "It is near, but jumps if one subject's gap is small.",
                "A mean of ratios is ruled by the subjects whose denominator is nearly 0.",
                "Take the means first, then divide.",
            ),
        ),
        "ratio of scores": Mistake(
            lambda baseline, joint, full: joint.mean() / full.mean(),
            (
                "Your share is near 1 even if nothing was gained.",
                "Both scores contain the baseline. Subtract it from both.",
                "(joint.mean() - baseline.mean()) / (full.mean() - baseline.mean())",
            ),
        ),
        "what is left": Mistake(
            lambda baseline, joint, full: (
                (full.mean() - joint.mean()) / (full.mean() - baseline.mean())
            ),
            (
                "You give the share that is still open.",
                "Closed is what joint training has gained, not what it lacks.",
                "joint - baseline in the numerator.",
            ),
        ),
        "percent": Mistake(
            lambda baseline, joint, full: (
                100 * (joint.mean() - baseline.mean()) / (full.mean() - baseline.mean())
            ),
            (
                "Your number is a hundred times too large.",
                "A fraction was wanted here: 0.4, not 40.",
                "Leave the factor 100 away.",
            ),
        ),
        "relative gain": Mistake(
            lambda baseline, joint, full: (joint.mean() - baseline.mean()) / baseline.mean(),
            (
                "Full supervision does not occur in your number.",
                "You divide by the baseline: that is the relative gain.",
                "Divide by full - baseline.",
            ),
        ),
    },
    dims=(3,),
)

# --- a boundary distance --------------------------------------------------------------------------


def _distances(dims: int, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Distances in voxels from each boundary voxel of A to the boundary of B, and the other way
    round.
    """
    rng = _rng(generator)
    return rng.exponential(1.0, 300), np.concatenate(
        [rng.exponential(1.0, 80), rng.uniform(6, 20, 20)]
    )


def _hd95(reduce: Callable = max, percentile: float = 95) -> Callable:
    return lambda a_to_b, b_to_a: float(
        reduce((np.percentile(a_to_b, percentile), np.percentile(b_to_a, percentile)))
    )


HD95 = Exercise(
    "The 95th percentile of the surface distance",
    _distances,
    _hd95(),
    (
        "There are two directions: from A to B, and from B to A.",
        "The 95th percentile of each direction, and the larger of the two.",
        "max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95))",
    ),
    {
        "one direction": Mistake(
            lambda a_to_b, b_to_a: float(np.percentile(a_to_b, 95)),
            (
                "A part that the guess lacks altogether goes unnoticed.",
                "From A every point may be near to B while B has a part far from A.",
                "Use both directions and take the larger.",
            ),
        ),
        "both together": Mistake(
            lambda a_to_b, b_to_a: float(np.percentile(np.concatenate([a_to_b, b_to_a]), 95)),
            (
                "It is smaller than it should be.",
                "You mix both directions before the percentile: the longer boundary then outvotes the shorter one.",
                "A percentile for each direction, then the larger.",
            ),
        ),
        "mean of both": Mistake(
            _hd95(np.mean),
            (
                "It is smaller than it should be.",
                "A Hausdorff distance is the worse of the two directions, not their mean.",
                "max instead of mean.",
            ),
        ),
        "the very largest": Mistake(
            _hd95(percentile=100),
            (
                "It is larger than it should be.",
                "That is the plain Hausdorff distance, which a single stray voxel decides.",
                "Percentile 95 instead of the maximum.",
            ),
        ),
    },
    dims=(3,),
)

# --- many comparisons -----------------------------------------------------------------------------


def _p_values(dims: int, generator: Generator) -> tuple[np.ndarray]:
    p = _rng(generator).permutation([0.001, 0.012, 0.014, 0.02, 0.6, 0.8])
    return (p if p[0] > p[-1] else p[::-1].copy(),)  # never in order


def _stepped(
    p: np.ndarray, factor: Callable, monotone: bool = True, cap: float = 1.0
) -> np.ndarray:
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    values = p[order] * [factor(len(p), k) for k in range(len(p))]
    adjusted[order] = (np.maximum.accumulate(values) if monotone else values).clip(max=cap)
    return adjusted


HOLM = Exercise(
    "Holm's correction",
    _p_values,
    holm,
    (
        "Sort the p-values, correct each, and put them back into their places.",
        "The smallest is multiplied by m, the next by m - 1, and so on; none may fall below its predecessor, or above 1.",
        "np.maximum.accumulate(p[order] * np.arange(m, 0, -1)).clip(max=1)",
    ),
    {
        "Bonferroni": Mistake(
            lambda p: (p * len(p)).clip(max=1),
            (
                "All but the smallest are too large.",
                "That is Bonferroni's correction: valid, but needlessly strict. Holm relaxes the factor step by step.",
                "Multiply the k-th smallest by m - k + 1.",
            ),
        ),
        "not monotone": Mistake(
            lambda p: _stepped(p, lambda m, k: m - k, monotone=False),
            (
                "A larger p gets a smaller corrected one.",
                "Nobody may overtake: once a comparison fails, all that follow fail, too.",
                "np.maximum.accumulate over the sorted values.",
            ),
        ),
        "above 1": Mistake(
            lambda p: _stepped(p, lambda m, k: m - k, cap=math.inf),
            (
                "One of your corrected values is larger than 1.",
                "A probability ends at 1.",
                "Add .clip(max=1).",
            ),
        ),
        "not put back": Mistake(
            lambda p: np.sort(holm(p)),
            (
                "The right numbers, in the wrong places.",
                "You return them sorted. Each belongs to its own comparison.",
                "adjusted[order] = values",
            ),
        ),
        "false discovery rate": Mistake(
            lambda p: _fdr(p),
            (
                "Your values are too small.",
                "That is Benjamini and Hochberg: it bounds the share of false claims among the claims, not the chance of any.",
                "The factor is m - k + 1, not m / k.",
            ),
        ),
    },
    dims=(3,),
)


def _fdr(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p)[::-1]
    m, adjusted = len(p), np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(p[order] * m / np.arange(m, 0, -1)).clip(max=1)
    return adjusted


EXERCISES = {"mean": MEAN, "gap": GAP, "hd95": HD95, "holm": HOLM}
