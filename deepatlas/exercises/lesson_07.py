"""Lesson 07, evaluation: means that do not lie, the share of a gap, boundaries, many
comparisons.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Generator

from ..evaluation import holm
from . import Exercise, numpy_generator

# --- a mean over structures and cases -------------------------------------------------------------


def _scores_with_gaps(dims: int, generator: Generator) -> tuple[np.ndarray]:
    """Dice (cases, structures); a structure that a case lacks is NaN."""
    structures = np.array([1, 2, 3, 4])
    cases = np.linspace(0, 0.2, 5)[:, None]
    scores = numpy_generator(generator).uniform(0.1, 0.2, (5, 4)) * structures + cases
    scores[0, :3] = np.nan
    scores[2, 0] = np.nan
    return (scores,)


def _mean_of_cases(scores: np.ndarray) -> float:
    return np.nanmean(np.nanmean(scores, axis=1))


MEAN = Exercise(
    "The mean Dice of a cohort",
    arguments=_scores_with_gaps,
    right=_mean_of_cases,
    hints=(
        "First one number for each case, then the mean over cases.",
        "A structure that a case lacks is left out of that case's mean: np.nanmean.",
        "np.nanmean(scores, axis=1).mean()",
    ),
    dims=(3,),
    tolerance=1e-6,
)


@MEAN.mistake(
    "all at once",
    symptom="It is nearly right, and exactly right if nothing is missing.",
    idea="A case in which structures are missing counts less in your mean, since it has fewer "
    "entries.",
    line="The mean of each case first (axis=1), then the mean over cases.",
)
def _all_at_once(scores):
    return np.nanmean(scores)


@MEAN.mistake(
    "absent is 0",
    symptom="Your mean is too small.",
    idea="A structure that is not there cannot be missed: 0 punishes the method for the anatomy.",
    line="np.nanmean instead of replacing NaN by 0.",
)
def _absent_is_0(scores):
    return np.nan_to_num(scores).mean()


@MEAN.mistake(
    "absent is 1",
    symptom="Your mean is too large.",
    idea="1 is a reward for nothing.",
    line="np.nanmean instead of replacing NaN by 1.",
)
def _absent_is_1(scores):
    return np.nan_to_num(scores, nan=1.0).mean()


@MEAN.mistake(
    "NaN spreads",
    symptom="The result is not a number.",
    idea="One NaN makes every ordinary mean NaN.",
    line="np.nanmean",
)
def _nan_spreads(scores):
    return scores.mean()


@MEAN.mistake(
    "incomplete cases dropped",
    symptom="Your mean uses fewer cases than there are.",
    idea="You leave out whole cases in which anything is missing; often these are the ill ones.",
    line="Leave out the missing entry only: np.nanmean(scores, axis=1).",
)
def _incomplete_cases_dropped(scores):
    complete = ~np.isnan(scores).any(axis=1)
    return scores[complete].mean()


@MEAN.mistake(
    "structures first",
    symptom="It is close.",
    idea="You average over cases within each structure first. The cases are what was drawn at "
    "random; their means are what intervals and tests need.",
    line="axis=1, the structures, first.",
)
def _structures_first(scores):
    return np.nanmean(np.nanmean(scores, axis=0))


# --- the share of a gap ---------------------------------------------------------------------------


def _three_regimes(dims: int, generator: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dice in percent of twelve subjects: baseline, joint training, full supervision."""
    rng = numpy_generator(generator)
    baseline = rng.uniform(60, 70, 12)
    joint = baseline + rng.uniform(1, 6, 12)
    full = baseline + rng.uniform(5, 12, 12)
    return baseline, joint, full


def _share(baseline: np.ndarray, joint: np.ndarray, full: np.ndarray) -> float:
    return (joint.mean() - baseline.mean()) / (full.mean() - baseline.mean())


GAP = Exercise(
    "The share of the gap that is closed",
    arguments=_three_regimes,
    right=_share,
    hints=(
        "What does full supervision gain over the baseline? What does joint training gain?",
        "The share is a ratio of two mean gains: (joint - baseline) / (full - baseline).",
        "(joint.mean() - baseline.mean()) / (full.mean() - baseline.mean())",
    ),
    dims=(3,),
)


@GAP.mistake(
    "mean of ratios",
    symptom="It is near, but jumps if one subject's gap is small.",
    idea="A mean of ratios is ruled by the subjects whose denominator is nearly 0.",
    line="Take the means first, then divide.",
)
def _mean_of_ratios(baseline, joint, full):
    return ((joint - baseline) / (full - baseline)).mean()


@GAP.mistake(
    "ratio of scores",
    symptom="Your share is near 1 even if nothing was gained.",
    idea="Both scores contain the baseline. Subtract it from both.",
    line="(joint.mean() - baseline.mean()) / (full.mean() - baseline.mean())",
)
def _ratio_of_scores(baseline, joint, full):
    return joint.mean() / full.mean()


@GAP.mistake(
    "what is left",
    symptom="You give the share that is still open.",
    idea="Closed is what joint training has gained, not what it lacks.",
    line="joint - baseline in the numerator.",
)
def _what_is_left(baseline, joint, full):
    return (full.mean() - joint.mean()) / (full.mean() - baseline.mean())


@GAP.mistake(
    "percent",
    symptom="Your number is a hundred times too large.",
    idea="A fraction was wanted here: 0.4, not 40.",
    line="Leave the factor 100 away.",
)
def _percent(baseline, joint, full):
    return 100 * _share(baseline, joint, full)


@GAP.mistake(
    "relative gain",
    symptom="Full supervision does not occur in your number.",
    idea="You divide by the baseline: that is the relative gain.",
    line="Divide by full - baseline.",
)
def _relative_gain(baseline, joint, full):
    return (joint.mean() - baseline.mean()) / baseline.mean()


# --- a boundary distance --------------------------------------------------------------------------


def _distances(dims: int, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Distances in voxels from each boundary voxel of A to the boundary of B, and the other way
    round.
    """
    rng = numpy_generator(generator)
    a_to_b = rng.exponential(1.0, 300)
    near, far = rng.exponential(1.0, 80), rng.uniform(6, 20, 20)
    return a_to_b, np.concatenate([near, far])


def _hd95(a_to_b: np.ndarray, b_to_a: np.ndarray) -> float:
    return float(max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)))


HD95 = Exercise(
    "The 95th percentile of the surface distance",
    arguments=_distances,
    right=_hd95,
    hints=(
        "There are two directions: from A to B, and from B to A.",
        "The 95th percentile of each direction, and the larger of the two.",
        "max(np.percentile(a_to_b, 95), np.percentile(b_to_a, 95))",
    ),
    dims=(3,),
)


@HD95.mistake(
    "one direction",
    symptom="A part that the guess lacks altogether goes unnoticed.",
    idea="From A every point may be near to B while B has a part far from A.",
    line="Use both directions and take the larger.",
)
def _one_direction(a_to_b, b_to_a):
    return float(np.percentile(a_to_b, 95))


@HD95.mistake(
    "both together",
    symptom="It is smaller than it should be.",
    idea="You mix both directions before the percentile: the longer boundary then outvotes the "
    "shorter one.",
    line="A percentile for each direction, then the larger.",
)
def _both_together(a_to_b, b_to_a):
    distances = np.concatenate([a_to_b, b_to_a])
    return float(np.percentile(distances, 95))


@HD95.mistake(
    "mean of both",
    symptom="It is smaller than it should be.",
    idea="A Hausdorff distance is the worse of the two directions, not their mean.",
    line="max instead of mean.",
)
def _mean_of_both(a_to_b, b_to_a):
    return float(np.mean([np.percentile(a_to_b, 95), np.percentile(b_to_a, 95)]))


@HD95.mistake(
    "the very largest",
    symptom="It is larger than it should be.",
    idea="That is the plain Hausdorff distance, which a single stray voxel decides.",
    line="Percentile 95 instead of the maximum.",
)
def _the_very_largest(a_to_b, b_to_a):
    return float(max(a_to_b.max(), b_to_a.max()))


# --- many comparisons -----------------------------------------------------------------------------


def _p_values(dims: int, generator: Generator) -> tuple[np.ndarray]:
    p = numpy_generator(generator).permutation([0.001, 0.012, 0.014, 0.02, 0.6, 0.8])
    if p[0] < p[-1]:
        p = p[::-1].copy()  # never in order
    return (p,)


def _stepped(p: np.ndarray, *, monotone: bool = True, cap: float = 1.0) -> np.ndarray:
    """The k-th smallest of m times m - k + 1, with one thing after another to get wrong."""
    order = np.argsort(p)
    values = p[order] * np.arange(len(p), 0, -1)
    if monotone:
        values = np.maximum.accumulate(values)
    adjusted = np.empty_like(p)
    adjusted[order] = values.clip(max=cap)
    return adjusted


HOLM = Exercise(
    "Holm's correction",
    arguments=_p_values,
    right=holm,
    hints=(
        "Sort the p-values, correct each, and put them back into their places.",
        "The smallest is multiplied by m, the next by m - 1, and so on; none may fall below its "
        "predecessor, or above 1.",
        "np.maximum.accumulate(p[order] * np.arange(m, 0, -1)).clip(max=1)",
    ),
    dims=(3,),
)


@HOLM.mistake(
    "Bonferroni",
    symptom="All but the smallest are too large.",
    idea="That is Bonferroni's correction: valid, but needlessly strict. Holm relaxes the factor "
    "step by step.",
    line="Multiply the k-th smallest by m - k + 1.",
)
def _bonferroni(p):
    return (p * len(p)).clip(max=1)


@HOLM.mistake(
    "not monotone",
    symptom="A larger p gets a smaller corrected one.",
    idea="Nobody may overtake: once a comparison fails, all that follow fail, too.",
    line="np.maximum.accumulate over the sorted values.",
)
def _not_monotone(p):
    return _stepped(p, monotone=False)


@HOLM.mistake(
    "above 1",
    symptom="One of your corrected values is larger than 1.",
    idea="A probability ends at 1.",
    line="Add .clip(max=1).",
)
def _above_1(p):
    return _stepped(p, cap=math.inf)


@HOLM.mistake(
    "not put back",
    symptom="The right numbers, in the wrong places.",
    idea="You return them sorted. Each belongs to its own comparison.",
    line="adjusted[order] = values",
)
def _not_put_back(p):
    return np.sort(holm(p))


@HOLM.mistake(
    "false discovery rate",
    symptom="Your values are too small.",
    idea="That is Benjamini and Hochberg: it bounds the share of false claims among the claims, "
    "not the chance of any.",
    line="The factor is m - k + 1, not m / k.",
)
def _false_discovery_rate(p):
    falling = np.argsort(p)[::-1]
    values = p[falling] * len(p) / np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[falling] = np.minimum.accumulate(values).clip(max=1)
    return adjusted


EXERCISES = {"mean": MEAN, "gap": GAP, "hd95": HD95, "holm": HOLM}
