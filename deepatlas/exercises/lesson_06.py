"""Lesson 06, one-shot: which scan to label, soft votes, confidence, draws, and a choice that must
not see the test.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from . import Exercise, numpy_generator
from .lesson_02 import uneven_shape

# --- which scan to label --------------------------------------------------------------------------


def _likeness(dims: int, generator: Generator) -> tuple[np.ndarray]:
    """likeness[i, j]: how well scan i, warped, resembles scan j; NaN where both are the same."""
    rng = numpy_generator(generator)
    best, easy, twin, steady, one, other = 1 + rng.permutation(6)
    likeness = rng.uniform(0.3, 0.35, (7, 7))
    likeness[best] -= 0.05  # the right answer: very like two of the others
    likeness[best, [one, other]] += 0.6
    likeness[steady] += 0.12  # the best by its median, or by its least value
    likeness[[0, easy]] += 0.08  # neither is the least alike
    likeness[:, easy] += 0.25  # the easiest to reach
    likeness[twin, 0] = 0.98  # a near twin
    np.fill_diagonal(likeness, np.nan)
    return (likeness,)


def _most_alike(likeness: np.ndarray) -> int:
    return int(np.nanmean(likeness, axis=1).argmax())


ATLAS = Exercise(
    "Which scan to label",
    arguments=_likeness,
    right=_most_alike,
    hints=(
        "The atlas is always the moving scan. Which one resembles the others best, in the mean?",
        "Row i holds how well scan i resembles each of the others; leave out the diagonal, where "
        "there is nothing.",
        "int(np.nanmean(likeness, axis=1).argmax())",
    ),
    dims=(2,),
)


@ATLAS.mistake(
    "as the fixed scan",
    symptom="You choose the scan that is easiest to reach, by columns, or by rows and columns "
    "together.",
    idea="An atlas is the moving scan, and likeness[i, j] has the moving scan first.",
    line="axis=1",
)
def _as_the_fixed_scan(likeness):
    return int(np.nanmean(likeness, axis=0).argmax())


@ATLAS.mistake(
    "the least alike",
    symptom="You choose the oddest scan.",
    idea="Large means alike.",
    line="argmax",
)
def _the_least_alike(likeness):
    return int(np.nanmean(likeness, axis=1).argmin())


@ATLAS.mistake(
    "the best single pair",
    symptom="You choose the scan that has one near twin.",
    idea="An atlas must serve everybody: take the mean over the others, not the best of them.",
    line="np.nanmean instead of np.nanmax",
)
def _the_best_single_pair(likeness):
    return int(np.nanmax(likeness, axis=1).argmax())


@ATLAS.mistake(
    "nan wins",
    symptom="The answer is always 0.",
    idea="Every row has a NaN on the diagonal, so every plain mean is NaN, and argmax takes the "
    "first.",
    line="np.nanmean",
)
def _nan_wins(likeness):
    return int(np.mean(likeness, axis=1).argmax())


# --- a soft vote ----------------------------------------------------------------------------------


def _propagated(dims: int, generator: Generator) -> tuple[Tensor]:
    """Probabilities (atlases, C, ...) of four structures, warped from several atlases."""
    scores = 2 * torch.randn(5, 4, *uneven_shape(dims), generator=generator)
    return (scores.softmax(1),)


def _soft_vote(probabilities: Tensor) -> Tensor:
    return probabilities.mean(0).argmax(0)


SOFT_VOTE = Exercise(
    "A soft vote",
    arguments=_propagated,
    right=_soft_vote,
    hints=(
        "How probable is each structure in the mean over the atlases? The largest mean wins.",
        "First the mean over atlases, dimension 0, then the argmax over structures.",
        "probabilities.mean(0).argmax(0)",
    ),
)


@SOFT_VOTE.mistake(
    "a hard vote",
    symptom="An atlas that is hardly sure counts as much as one that is certain.",
    idea="You decide first and count afterwards. A soft vote averages first.",
    line="mean, then argmax",
)
def _a_hard_vote(probabilities):
    votes = F.one_hot(probabilities.argmax(1), 4)
    return votes.sum(0).argmax(-1)


@SOFT_VOTE.mistake(
    "the loudest",
    symptom="One atlas decides each voxel alone.",
    idea="You take the largest probability that any atlas gives.",
    line="mean(0) instead of amax(0)",
)
def _the_loudest(probabilities):
    return probabilities.amax(0).argmax(0)


@SOFT_VOTE.mistake(
    "a product",
    symptom="One atlas that says *never* overrules all others.",
    idea="A product of probabilities treats the atlases as independent witnesses, and their "
    "mistakes as certain.",
    line="mean of probabilities, not of logarithms",
)
def _a_product(probabilities):
    return probabilities.log().mean(0).argmax(0)


@SOFT_VOTE.mistake(
    "the mean of labels",
    symptom="Structures appear that no atlas has there.",
    idea="Labels are names.",
    line="Average probabilities.",
)
def _the_mean_of_labels(probabilities):
    labels = probabilities.argmax(1)
    return labels.float().mean(0).round().long()


# --- weighting by confidence ----------------------------------------------------------------------


def _guess_and_pseudo(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    shape = (2, 3, *uneven_shape(dims))
    # of two scans one is clear, one is not
    sure = torch.tensor([0.5, 4.0]).view(2, *[1] * (dims + 1))
    guess = (sure * torch.randn(shape, generator=generator)).softmax(1)
    pseudo = (sure * torch.randn(shape, generator=generator)).softmax(1)
    return guess, pseudo


def _weighted(guess: Tensor, pseudo: Tensor, above: Tensor, below: Tensor | float) -> Tensor:
    """1 - soft Dice whose voxels are weighted in the overlap and in the sizes."""
    overlap = (above * guess * pseudo).flatten(2).sum(-1)
    sizes = (below * (guess + pseudo)).flatten(2).sum(-1)
    return 1 - (2 * overlap / sizes).mean()


def _confident(guess: Tensor, pseudo: Tensor) -> Tensor:
    pseudo = pseudo.detach()
    w = pseudo.amax(1, keepdim=True)
    return _weighted(guess, pseudo, w, w)


CONFIDENT = Exercise(
    "Listen to who is sure",
    arguments=_guess_and_pseudo,
    right=_confident,
    hints=(
        "How sure is the teacher at each voxel? That is the weight of the voxel, above and below.",
        "w = the largest probability of the pseudo-label over the structures; the pseudo-label "
        "has no gradient.",
        "1 - (2 * (w * guess * pseudo).sum / (w * (guess + pseudo)).sum).mean()",
    ),
    gradient=True,
)


@CONFIDENT.mistake(
    "above only",
    symptom="Your loss is too large, most of all where the teacher is in doubt.",
    idea="What is weighted in the overlap must be weighted in the sizes, too.",
    line="w * (guess + pseudo) in the denominator",
)
def _above_only(guess, pseudo):
    pseudo = pseudo.detach()
    w = pseudo.amax(1, keepdim=True)
    return _weighted(guess, pseudo, w, 1)


@CONFIDENT.mistake(
    "the teacher learns",
    symptom="The value is right, but a gradient flows back to the teacher's labels.",
    idea="A pseudo-label is evidence, not a party (lesson 05).",
    line="pseudo = pseudo.detach(), first of all",
)
def _the_teacher_learns(guess, pseudo):
    w = pseudo.amax(1, keepdim=True)
    return _weighted(guess, pseudo, w, w)


@CONFIDENT.mistake(
    "only the weight is detached",
    symptom="The value is right, and the weight has no gradient, but the pseudo-label in the "
    "overlap has one.",
    idea="It stands in three places: in the weight, in the overlap and in the sizes. None may "
    "learn.",
    line="pseudo = pseudo.detach(), first of all",
)
def _only_the_weight_is_detached(guess, pseudo):
    w = pseudo.amax(1, keepdim=True).detach()
    return _weighted(guess, pseudo, w, w)


@CONFIDENT.mistake(
    "the student's confidence",
    symptom="You ask the pupil how sure he is.",
    idea="A pupil who is sure of his mistakes would hear himself most.",
    line="w from pseudo, not from guess",
)
def _the_students_confidence(guess, pseudo):
    w = guess.amax(1, keepdim=True).detach()
    return _weighted(guess, pseudo.detach(), w, w)


@CONFIDENT.mistake(
    "the least sure",
    symptom="Voxels where the teacher is in doubt count most.",
    idea="The largest probability says how sure, the smallest how impossible the least likely "
    "structure is.",
    line="amax",
)
def _the_least_sure(guess, pseudo):
    pseudo = pseudo.detach()
    w = pseudo.amin(1, keepdim=True)
    return _weighted(guess, pseudo, w, w)


# --- draws ----------------------------------------------------------------------------------------


def _dice_of_draws(dims: int, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dice (draws, subjects), and which scan each draw has labelled: the best one three times."""
    rng = numpy_generator(generator)
    of_scans = np.array([0.7, 0.76, 0.82, 0.88]) + rng.uniform(0, 0.02, 4)
    dice = of_scans[:, None] + rng.normal(0, 0.03, (4, 12))
    drawn = rng.permutation([0, 1, 2, 3, 3, 3])
    names = rng.choice(20, 4, replace=False)
    return dice[drawn], names[drawn]


def _mean_and_scatter(dice: np.ndarray, scans: np.ndarray) -> tuple[float, float]:
    _, first = np.unique(scans, return_index=True)
    means = dice[first].mean(1)
    return float(means.mean()), float(means.std(ddof=1))


DRAWS = Exercise(
    "Mean and scatter over draws",
    arguments=_dice_of_draws,
    right=_mean_and_scatter,
    hints=(
        "Which rows are about another labelled scan? One number for each of these; then the mean "
        "and the standard deviation of these numbers.",
        "np.unique with return_index=True says where each scan was drawn first. The number of a "
        "draw is the mean over its subjects; such numbers are a sample (ddof=1).",
        "_, first = np.unique(scans, return_index=True); means = dice[first].mean(axis=1); "
        "(means.mean(), means.std(ddof=1))",
    ),
    dims=(2,),
    tolerance=1e-6,
)


@DRAWS.mistake(
    "every draw counts",
    symptom="Your mean leans towards one scan, and your scatter is too small.",
    idea="Two draws of one scan are one experiment told twice: nothing but the draw was different.",
    line="_, first = np.unique(scans, return_index=True), and dice[first]",
)
def _every_draw_counts(dice, scans):
    means = dice.mean(1)
    return float(means.mean()), float(means.std(ddof=1))


@DRAWS.mistake(
    "all together",
    symptom="The mean is right, the scatter is not.",
    idea="You mix how subjects differ with how draws differ. The question was: what if another "
    "scan had been labelled?",
    line="The mean of each draw first.",
)
def _all_together(dice, scans):
    _, first = np.unique(scans, return_index=True)
    return float(dice[first].mean()), float(dice[first].std(ddof=1))


@DRAWS.mistake(
    "between subjects",
    symptom="The mean is right, the scatter is too small.",
    idea="You average over draws, and with them away goes the scatter that was asked for.",
    line="mean(axis=1)",
)
def _between_subjects(dice, scans):
    _, first = np.unique(scans, return_index=True)
    return float(dice[first].mean()), float(dice[first].mean(0).std(ddof=1))


@DRAWS.mistake(
    "divided by n",
    symptom="The scatter is a little too small.",
    idea="np.std divides by n; a sample wants n - 1.",
    line="std(ddof=1)",
)
def _divided_by_n(dice, scans):
    _, first = np.unique(scans, return_index=True)
    means = dice[first].mean(1)
    return float(means.mean()), float(means.std())


@DRAWS.mistake(
    "the best draw",
    symptom="Your mean is that of the luckiest draw.",
    idea="Nobody knows beforehand which scan is the lucky one.",
    line="means.mean(), not means.max()",
)
def _the_best_draw(dice, scans):
    _, first = np.unique(scans, return_index=True)
    means = dice[first].mean(1)
    return float(means.max()), float(means.std(ddof=1))


# --- a choice that must not see the test ----------------------------------------------------------


def _candidates(dims: int, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dice of eight candidate atlases on validation and on test scans."""
    rng = numpy_generator(generator)
    validation = rng.uniform(0.65, 0.7, (8, 4))
    test = rng.uniform(0.7, 0.75, (8, 6))
    on_validation, lucky = 4 + rng.permutation(4)[:2]
    on_test, on_both = rng.permutation(4)[:2]
    validation[on_validation] += 0.2  # the right choice
    validation[lucky, 0] = 0.99  # a single lucky scan
    test[on_test] += 0.2  # the best by the scans that judge
    validation[on_both] += 0.15  # the best by all scans together
    test[on_both] += 0.15
    return validation, test


def _score_of_the_chosen(validation: np.ndarray, test: np.ndarray) -> float:
    best = validation.mean(1).argmax()
    return float(test[best].mean())


REPORT = Exercise(
    "A choice that must not see the test",
    arguments=_candidates,
    right=_score_of_the_chosen,
    hints=(
        "Which scans decide which atlas is taken? Which scans may say how good it is?",
        "The choice is made on validation scans; then the chosen atlas is scored once on test "
        "scans.",
        "test[validation.mean(axis=1).argmax()].mean()",
    ),
    dims=(2,),
    tolerance=1e-6,
)


@REPORT.mistake(
    "chosen by the test",
    symptom="Your number is too good.",
    idea="You take the atlas that is best on the test scans: they choose and judge at once.",
    line="best = validation.mean(axis=1).argmax(); test[best].mean()",
)
def _chosen_by_the_test(validation, test):
    return float(test.mean(1).max())


@REPORT.mistake(
    "the validation score",
    symptom="Your number does not come from test scans at all.",
    idea="The best of many validation scores is flattered by the choice itself.",
    line="Score the chosen atlas on test.",
)
def _the_validation_score(validation, test):
    return float(validation.mean(1).max())


@REPORT.mistake(
    "both together",
    symptom="It is too good in most runs.",
    idea="Half of the choice was made by the scans that judge it.",
    line="Choose by validation alone.",
)
def _both_together(validation, test):
    all_scans = np.concatenate([validation, test], 1)
    best = all_scans.mean(1).argmax()
    return float(test[best].mean())


@REPORT.mistake(
    "the mean of all",
    symptom="You did not choose.",
    idea="That is what an atlas drawn by lot would reach in the mean: a good number to report, "
    "but another question.",
    line="test[best].mean()",
)
def _the_mean_of_all(validation, test):
    return float(test.mean())


EXERCISES = {
    "vote": SOFT_VOTE,
    "atlas": ATLAS,
    "draws": DRAWS,
    "report": REPORT,
    "confident": CONFIDENT,
}
