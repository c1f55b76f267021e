"""Lesson 06, one-shot: votes that listen to likeness, which scan to label next, confidence,
draws, and a choice that must not see the test.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from . import Exercise, numpy_generator
from .lesson_02 import uneven_shape

# --- which scan next ------------------------------------------------------------------------------


def _labelled_once(dims: int, generator: Generator) -> tuple[np.ndarray, int]:
    """likeness[i, j] of scan i, warped, to scan j, NaN where both are the same; and the number of
    the scan that is labelled, which serves most of the others, but not all.
    """
    rng = numpy_generator(generator)
    labelled, right, twin, odd, easy, steady, *rest = 1 + rng.permutation(13)
    served, apart = rest[:4], rest[4:]
    likeness = rng.uniform(0.33, 0.35, (14, 14))
    likeness[[0, odd]] -= 0.1
    likeness[:, odd] = 0.2
    # the furthest from the one that is labelled, as fixed and as moving
    likeness[[labelled, twin], odd] = 0.1, 0.25
    likeness[odd, labelled] = 0.05
    likeness[labelled, served] = rng.uniform(0.86, 0.88, 4)
    likeness[twin, served] = rng.uniform(0.77, 0.79, 4)  # the best one of those left, if alone
    likeness[right] = rng.uniform(0.2, 0.22, 14)
    likeness[right, apart] = rng.uniform(0.75, 0.77, 3)  # the right answer: it serves the others
    likeness[steady] = rng.uniform(0.42, 0.44, 14)  # the best for the one who is served worst
    likeness[:, easy] = rng.uniform(0.88, 0.9, 14)  # the easiest to reach
    np.fill_diagonal(likeness, np.nan)
    return likeness, int(labelled)


def _second(likeness: np.ndarray, labelled: int) -> int:
    served = np.maximum(likeness, likeness[labelled])  # NaN for the two labelled ones
    return int(np.nanmean(served, axis=1).argmax())


SECOND = Exercise(
    "Which scan next",
    arguments=_labelled_once,
    right=_second,
    hints=(
        "Take one candidate. Which scans would still be served by the first one, which of them by "
        "the candidate, and how well is each then served?",
        "For each candidate i and each other scan j, the larger of likeness[i, j] and "
        "likeness[labelled, j]; then the mean over j.",
        "np.nanmean(np.maximum(likeness, likeness[labelled]), axis=1).argmax()",
    ),
    dims=(2,),
)


@SECOND.mistake(
    "the best alone",
    symptom="You choose a scan that serves those who are served already.",
    idea="It is the most like the others of all that are left, but a twin of the first one: what "
    "counts is what a scan *adds*.",
    line="np.maximum(likeness, likeness[labelled]) before the mean",
)
def _the_best_alone(likeness, labelled):
    alone = np.nanmean(likeness, axis=1)
    alone[labelled] = -np.inf
    return int(alone.argmax())


@SECOND.mistake(
    "the first once more",
    symptom="You choose the scan that is labelled already.",
    idea="It is the most like the others of all, so it wins every contest in which what it has "
    "done already is not taken into account.",
    line="np.maximum(likeness, likeness[labelled]) before the mean",
)
def _the_first_once_more(likeness, labelled):
    return labelled


@SECOND.mistake(
    "the furthest",
    symptom="You choose the odd scan, which nobody resembles.",
    idea="Furthest from what is labelled is not the same as useful: a scan that is like nobody "
    "serves itself alone.",
    line="Ask of each candidate how well all the others would be served.",
)
def _the_furthest(likeness, labelled):
    return int(np.nanargmin(likeness[labelled]))


@SECOND.mistake(
    "the worst served",
    symptom="You look at the scan that is served worst, and at no other.",
    idea="That protects the oddest scan of all. Asked for was how well they are served in the "
    "mean.",
    line="np.nanmean instead of np.nanmin",
)
def _the_worst_served(likeness, labelled):
    served = np.maximum(likeness, likeness[labelled])
    return int(np.nanmin(served, axis=1).argmax())


@SECOND.mistake(
    "as the fixed scan",
    symptom="You choose the scan that is easiest to reach.",
    idea="An atlas is the moving scan, and likeness[i, j] has the moving scan first.",
    line="likeness[labelled], a row, and the mean over axis=1",
)
def _as_the_fixed_scan(likeness, labelled):
    served = np.maximum(likeness, likeness[:, [labelled]])
    return int(np.nanmean(served, axis=0).argmax())


@SECOND.mistake(
    "nan wins",
    symptom="The answer is always 0.",
    idea="Every row has a NaN on the diagonal, so every plain mean is NaN, and argmax takes the "
    "first.",
    line="np.nanmean",
)
def _nan_wins(likeness, labelled):
    return int(np.mean(np.maximum(likeness, likeness[labelled]), axis=1).argmax())


# --- a vote that listens where it pays ------------------------------------------------------------


def _atlases_and_likeness(dims: int, generator: Generator) -> tuple[Tensor, Tensor, float]:
    """Probabilities (atlases, C, ...) of three structures, warped from four atlases; how like each
    warped image is to the new one, place by place, from -1 to 1; and how much that is to count.
    """
    shape = uneven_shape(dims)
    scores = 2 * torch.randn(4, 3, *shape, generator=generator)
    of_atlas = torch.rand(4, *[1] * dims, generator=generator) - 0.5
    likeness = of_atlas + torch.rand(4, *shape, generator=generator) - 0.5
    beta = 3 + 2 * torch.rand((), generator=generator)
    return scores.softmax(1), likeness, float(beta)


def _where_one_decides(dims: int, generator: Generator) -> tuple[Tensor, Tensor, float]:
    """Alike, with a beta whose exponentials no float32 holds: some atlas fits at every place."""
    probabilities, likeness, beta = _atlases_and_likeness(dims, generator)
    likeness[0] = (1 + likeness[0].abs()) / 2
    return probabilities, likeness, 100 * beta


def _weighed(probabilities: Tensor, weights: Tensor) -> Tensor:
    """The sum over atlases, each times its ``weights`` (atlases, ...)."""
    return (weights[:, None] * probabilities).sum(0)


def _local_vote(probabilities: Tensor, likeness: Tensor, beta: float) -> Tensor:
    return _weighed(probabilities, (beta * likeness).softmax(0))


LOCAL_VOTE = Exercise(
    "A vote that listens where it pays",
    arguments=_atlases_and_likeness,
    right=_local_vote,
    hints=(
        "At one voxel: two atlases, likeness .9 and .5, beta 5. By which factor does the first "
        "count more? How much does each count, then, if the two weights are to sum to 1?",
        "Weights exp(beta * likeness), divided by their sum over the atlases, at each voxel for "
        "itself; then the weighted sum of the probabilities. The weights need an axis for the "
        "structures.",
        "w = (beta * likeness).softmax(0); (w[:, None] * probabilities).sum(0)",
    ),
    also=_where_one_decides,
)


@LOCAL_VOTE.mistake(
    "all alike",
    symptom="Likeness makes no difference.",
    idea="That is the vote of lesson 03, which believes every atlas alike, where its registration "
    "has failed, too.",
    line="(w[:, None] * probabilities).sum(0) instead of probabilities.mean(0)",
)
def _all_alike(probabilities, likeness, beta):
    return probabilities.mean(0)


@LOCAL_VOTE.mistake(
    "sums of anything",
    symptom="What comes out does not sum to 1 over the structures.",
    idea="A mean of probabilities is a probability if the weights sum to 1. Yours do not.",
    line="Divide the weights by their sum over the atlases: softmax(0)",
)
def _sums_of_anything(probabilities, likeness, beta):
    return _weighed(probabilities, (beta * likeness).exp())


@LOCAL_VOTE.mistake(
    "too large for a float",
    symptom="It is right for a small beta. For a huge one nan comes out.",
    idea="exp(100) is more than a float32 holds: inf, and inf / inf is nan. Only differences of "
    "likeness count, so the largest may be subtracted from all before exp.",
    line="softmax(0), which does so; or (beta * (likeness - likeness.amax(0))).exp()",
)
def _too_large_for_a_float(probabilities, likeness, beta):
    weights = (beta * likeness).exp()
    return _weighed(probabilities, weights / weights.sum(0))


@LOCAL_VOTE.mistake(
    "a mean of products",
    symptom="What comes out does not sum to 1 over the structures.",
    idea="Dividing by the number of atlases is right for weights that are 1 in the mean. Yours "
    "are exp(beta * likeness).",
    line="Divide by the sum of the weights, not by their number.",
)
def _a_mean_of_products(probabilities, likeness, beta):
    return _weighed(probabilities, (beta * likeness).exp()) / len(probabilities)


@LOCAL_VOTE.mistake(
    "one weight an atlas",
    symptom="Each atlas counts as much at one place as at any other.",
    idea="You weigh by the likeness of the whole scan. An atlas may fit in front and fail behind: "
    "that is why likeness is given place by place.",
    line="No mean over the voxels",
)
def _one_weight_an_atlas(probabilities, likeness, beta):
    whole = likeness.flatten(1).mean(1).view(-1, *[1] * (likeness.ndim - 1))
    return _weighed(probabilities, (beta * whole).softmax(0).expand_as(likeness))


@LOCAL_VOTE.mistake(
    "over the voxels",
    symptom="Your weights sum to 1 over the voxels of an atlas, not over the atlases of a voxel.",
    idea="Who competes? At each voxel the atlases do.",
    line="softmax(0): dimension 0 counts the atlases",
)
def _over_the_voxels(probabilities, likeness, beta):
    weights = (beta * likeness).flatten(1).softmax(1).view_as(likeness)
    return _weighed(probabilities, weights)


@LOCAL_VOTE.mistake(
    "the most alike alone",
    symptom="At each voxel a single atlas decides.",
    idea="The errors of the others can no longer average out: the likest patch is not always the "
    "one with the right labels.",
    line="A weighted sum instead of argmax over the atlases",
)
def _the_most_alike_alone(probabilities, likeness, beta):
    alone = likeness == likeness.amax(0)
    return _weighed(probabilities, alone.float())


@LOCAL_VOTE.mistake(
    "likeness as weight",
    symptom="Some of your weights are negative, or huge.",
    idea="Likeness runs from -1 to 1. Divided by its sum it may be negative, and where the sum is "
    "near 0 it is anything at all.",
    line="exp(beta * likeness), which is positive, before dividing",
)
def _likeness_as_weight(probabilities, likeness, beta):
    return _weighed(probabilities, likeness / likeness.sum(0))


@LOCAL_VOTE.mistake(
    "without beta",
    symptom="Your weights are too even.",
    idea="beta says how much a difference of likeness is to count: at 0 it is the vote of lesson "
    "03, at a large one the likest atlas decides.",
    line="beta * likeness before exp, or before softmax",
)
def _without_beta(probabilities, likeness, beta):
    return _weighed(probabilities, likeness.softmax(0))


@LOCAL_VOTE.mistake(
    "the least alike",
    symptom="The atlas that fits worst is heard most.",
    idea="Large means alike: a weight rises with likeness.",
    line="beta, not -beta",
)
def _the_least_alike(probabilities, likeness, beta):
    return _weighed(probabilities, (-beta * likeness).softmax(0))


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
    "local": LOCAL_VOTE,
    "second": SECOND,
    "draws": DRAWS,
    "report": REPORT,
    "confident": CONFIDENT,
}
