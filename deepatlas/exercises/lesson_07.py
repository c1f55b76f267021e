"""Lesson 07, evaluation: means that do not lie, boundaries, runs as cases, many comparisons, the
share of a gap.
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
    return float(np.nanmean(np.nanmean(scores, axis=1)))


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


@MEAN.mistake(
    "median for mean",
    symptom="It is near, and stays where it is when one case is lost altogether.",
    idea="You give the median over cases. A method that fails on one case in ten has nearly the "
    "same median as one that never fails; the mean tells them apart.",
    line="The mean over cases of np.nanmean(scores, axis=1).",
)
def _median_of_cases(scores):
    return np.median(np.nanmean(scores, axis=1))


@MEAN.mistake(
    "median of structures",
    symptom="It is near, and blind to a structure that fails everywhere.",
    idea="You take the median over the structures of a case. A structure that is always missed "
    "has to count.",
    line="np.nanmean over the structures, not np.nanmedian.",
)
def _median_of_structures(scores):
    return np.nanmedian(scores, axis=1).mean()


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


@GAP.mistake(
    "median for mean",
    symptom="It is near, but the gains of your subjects do not add up to it.",
    idea="You compare medians: of a median nobody knows which subject's gain it is. The gain of a "
    "cohort is a mean of gains, and the mean of differences is the difference of means.",
    line="(joint.mean() - baseline.mean()) / (full.mean() - baseline.mean())",
)
def _medians_for_means(baseline, joint, full):
    lowest = np.median(baseline)
    return (np.median(joint) - lowest) / (np.median(full) - lowest)


# --- how much of a boundary is near -------------------------------------------------------------

TOLERANCE = 1.0  # voxels


def _distances(dims: int, generator: Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Distances in voxels from each boundary voxel of A to the boundary of B, the other way round,
    and what is forgiven: distances of a grid, so that many are just that.
    """
    rng = numpy_generator(generator)
    on_a_grid = np.sqrt([0.0, 1.0, 2.0, 4.0, 5.0, 9.0])
    a_to_b = rng.choice(on_a_grid, 300, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    b_to_a = rng.choice(on_a_grid, 100, p=[0.1, 0.2, 0.1, 0.1, 0.2, 0.3])
    return a_to_b, b_to_a, TOLERANCE


def _nsd(a_to_b: np.ndarray, b_to_a: np.ndarray, tolerance: float) -> float:
    near = (a_to_b <= tolerance).sum() + (b_to_a <= tolerance).sum()
    return float(near / (len(a_to_b) + len(b_to_a)))


NSD = Exercise(
    "The normalised surface distance",
    arguments=_distances,
    right=_nsd,
    hints=(
        "Count the boundary voxels that are near enough, of A and of B. How many are there in all?",
        "Near enough is at most the tolerance. Both boundaries are one heap of voxels, in the "
        "numerator and in the denominator.",
        "((a_to_b <= tolerance).sum() + (b_to_a <= tolerance).sum()) / (len(a_to_b) + len(b_to_a))",
    ),
    dims=(3,),
)


@NSD.mistake(
    "one direction",
    symptom="A part that the guess lacks altogether goes unnoticed.",
    idea="From A every voxel may be near to B while B has a part far from A.",
    line="Count both boundaries.",
)
def _one_direction(a_to_b, b_to_a, tolerance):
    return float((a_to_b <= tolerance).mean())


@NSD.mistake(
    "mean of two shares",
    symptom="It is near, and right if both boundaries are equally long.",
    idea="You average a share of A and a share of B: then a voxel of the shorter boundary weighs "
    "more than one of the longer.",
    line="Add the counts first, then divide by the number of all boundary voxels.",
)
def _mean_of_shares(a_to_b, b_to_a, tolerance):
    return float(((a_to_b <= tolerance).mean() + (b_to_a <= tolerance).mean()) / 2)


@NSD.mistake(
    "the worse direction",
    symptom="It is smaller than it should be.",
    idea="The worse of two directions belongs to a Hausdorff distance, which is about the farthest "
    "voxels. Here all voxels are counted together.",
    line="Add the counts of both boundaries, then divide.",
)
def _worse_share(a_to_b, b_to_a, tolerance):
    return float(min((a_to_b <= tolerance).mean(), (b_to_a <= tolerance).mean()))


@NSD.mistake(
    "strictly below",
    symptom="A boundary that lies just one tolerance away everywhere gets far too little.",
    idea="On a grid many distances are exactly the tolerance. These are forgiven, too.",
    line="<= tolerance, not < tolerance",
)
def _strictly_below(a_to_b, b_to_a, tolerance):
    near = (a_to_b < tolerance).sum() + (b_to_a < tolerance).sum()
    return float(near / (len(a_to_b) + len(b_to_a)))


@NSD.mistake(
    "what is far",
    symptom="The better the guess, the smaller your number.",
    idea="You count what lies too far away. The score is the share that is near enough.",
    line="<= tolerance, or 1 minus what you have.",
)
def _what_is_far(a_to_b, b_to_a, tolerance):
    return 1 - _nsd(a_to_b, b_to_a, tolerance)


@NSD.mistake(
    "percent",
    symptom="Your number is a hundred times too large.",
    idea="A share was wanted: 0.9, not 90.",
    line="Leave the factor 100 away.",
)
def _nsd_in_percent(a_to_b, b_to_a, tolerance):
    return 100 * _nsd(a_to_b, b_to_a, tolerance)


# --- runs are cases -------------------------------------------------------------------------------


def _gains_of_runs(dims: int, generator: Generator) -> tuple[np.ndarray]:
    """Differences of two methods, (runs, subjects): each run has its own luck, all its subjects
    share it.
    """
    rng = numpy_generator(generator)
    luck = rng.normal(1.0, 1.0, (5, 1))
    return (luck + rng.exponential(1.0, (5, 8)) - 1,)


def _t_of(means: np.ndarray) -> float:
    """Student's t of independent numbers: the mean over its standard error."""
    return float(means.mean() / (means.std(ddof=1) / math.sqrt(len(means))))


def _t_over_runs(differences: np.ndarray) -> float:
    return _t_of(differences.mean(axis=1))


RUNS = Exercise(
    "A test over runs",
    arguments=_gains_of_runs,
    right=_t_over_runs,
    hints=(
        "What is drawn anew in each run, and shared by all its subjects? So how many independent "
        "numbers are there?",
        "One mean for each run. t is the mean of these, divided by their standard deviation "
        "(n - 1 in it) over the root of n, where n is the number of runs.",
        "m = differences.mean(axis=1); m.mean() / (m.std(ddof=1) / np.sqrt(len(m)))",
    ),
    dims=(3,),
)


@RUNS.mistake(
    "subjects as cases",
    symptom="Your t is too far from 0: it makes one more certain than one may be.",
    idea="Subjects of one run share the labelled scan and the networks. Counted one by one, as "
    "if each had been drawn anew, they promise more than they know.",
    line="differences.mean(axis=1) first, then t over these few numbers.",
)
def _subjects_as_cases(differences):
    return _t_of(differences.ravel())


@RUNS.mistake(
    "means of subjects",
    symptom="You have as many numbers as there are subjects in a run.",
    idea="You average over the runs, and test over subjects: then the luck of the runs is no "
    "chance at all.",
    line="axis=1: over the subjects of a run.",
)
def _means_of_subjects(differences):
    return _t_of(differences.mean(axis=0))


@RUNS.mistake(
    "n instead of n - 1",
    symptom="It is a little too far from 0, the more so the fewer runs there are.",
    idea="The mean was taken from the same numbers, so one of them is no longer free: the sum of "
    "squares is divided by n - 1.",
    line="std(ddof=1)",
)
def _n_instead_of_n_minus_1(differences):
    means = differences.mean(axis=1)
    return float(means.mean() / (means.std() / math.sqrt(len(means))))


@RUNS.mistake(
    "no root of n",
    symptom="It does not grow with the number of runs.",
    idea="You divide by how much single runs scatter. Their mean scatters less, by the root of "
    "their number.",
    line="Divide the standard deviation by np.sqrt(len(means)).",
)
def _no_root(differences):
    means = differences.mean(axis=1)
    return float(means.mean() / means.std(ddof=1))


@RUNS.mistake(
    "median for mean",
    symptom="It is near, but a subject on which everything went wrong has left no trace.",
    idea="You take the median of each run. The gain of a run is the mean of its subjects' gains.",
    line="differences.mean(axis=1)",
)
def _medians_of_runs(differences):
    return _t_of(np.median(differences, axis=1))


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


@HOLM.mistake(
    "factors the other way",
    symptom="The smallest p stays as it is, and the largest grows most.",
    idea="The smallest p is the one that was picked out of all m: it pays for all of them.",
    line="The k-th smallest times m - k + 1: factors m, m - 1, ..., 1.",
)
def _factors_the_other_way(p):
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    values = p[order] * np.arange(1, len(p) + 1)
    adjusted[order] = np.maximum.accumulate(values).clip(max=1)
    return adjusted


EXERCISES = {"nsd": NSD, "mean": MEAN, "runs": RUNS, "holm": HOLM, "gap": GAP}
