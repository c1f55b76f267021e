"""Lesson 06, one-shot: which scan to label, soft votes, confidence, draws, and a choice that must
not see the test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from . import Exercise, Mistake
from .lesson_02 import uneven_shape


def _rng(generator: Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))


# --- which scan to label --------------------------------------------------------------------------


def _likeness(dims: int, generator: Generator) -> tuple[np.ndarray]:
    """likeness[i, j]: how well scan i, warped, resembles scan j; nobody is warped to himself (NaN)."""
    rng = _rng(generator)
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


ATLAS = Exercise(
    "Which scan to label",
    _likeness,
    lambda likeness: int(np.nanmean(likeness, axis=1).argmax()),
    (
        "The atlas is always the moving scan. Which one resembles the others best, in the mean?",
        "Row i holds how well scan i resembles each of the others; leave out the diagonal, where there is nothing.",
        "int(np.nanmean(likeness, axis=1).argmax())",
    ),
    {
        "as the fixed scan": Mistake(
            lambda likeness: int(np.nanmean(likeness, axis=0).argmax()),
            (
                "You choose the scan that is easiest to reach, by columns, or by rows and columns together.",
                "An atlas is the moving scan, and likeness[i, j] has the moving scan first.",
                "axis=1",
            ),
        ),
        "the least alike": Mistake(
            lambda likeness: int(np.nanmean(likeness, axis=1).argmin()),
            ("You choose the oddest scan.", "Large means alike.", "argmax"),
        ),
        "the best single pair": Mistake(
            lambda likeness: int(np.nanmax(likeness, axis=1).argmax()),
            (
                "You choose the scan that has one near twin.",
                "An atlas must serve everybody: take the mean over the others, not the best of them.",
                "np.nanmean instead of np.nanmax",
            ),
        ),
        "nan wins": Mistake(
            lambda likeness: int(np.mean(likeness, axis=1).argmax()),
            (
                "The answer is always 0.",
                "Every row has a NaN on the diagonal, so every plain mean is NaN, and argmax takes the first.",
                "np.nanmean",
            ),
        ),
    },
    dims=(2,),
)

# --- a soft vote ----------------------------------------------------------------------------------


def _propagated(dims: int, generator: Generator) -> tuple[Tensor]:
    """Probabilities (atlases, C, ...) of four structures, warped from several atlases."""
    return ((2 * torch.randn(5, 4, *uneven_shape(dims), generator=generator)).softmax(1),)


SOFT_VOTE = Exercise(
    "A soft vote",
    _propagated,
    lambda probabilities: probabilities.mean(0).argmax(0),
    (
        "How probable is each structure in the mean over the atlases? The largest mean wins.",
        "First the mean over atlases, dimension 0, then the argmax over structures.",
        "probabilities.mean(0).argmax(0)",
    ),
    {
        "a hard vote": Mistake(
            lambda probabilities: F.one_hot(probabilities.argmax(1), 4).sum(0).argmax(-1),
            (
                "An atlas that is hardly sure counts as much as one that is certain.",
                "You decide first and count afterwards. A soft vote averages first.",
                "mean, then argmax",
            ),
        ),
        "the loudest": Mistake(
            lambda probabilities: probabilities.amax(0).argmax(0),
            (
                "One atlas decides each voxel alone.",
                "You take the largest probability that any atlas gives.",
                "mean(0) instead of amax(0)",
            ),
        ),
        "a product": Mistake(
            lambda probabilities: probabilities.log().mean(0).argmax(0),
            (
                "One atlas that says *never* overrules all others.",
                "A product of probabilities treats the atlases as independent witnesses, and their mistakes as certain.",
                "mean of probabilities, not of logarithms",
            ),
        ),
        "the mean of labels": Mistake(
            lambda probabilities: probabilities.argmax(1).float().mean(0).round().long(),
            (
                "Structures appear that no atlas has there.",
                "Labels are names.",
                "Average probabilities.",
            ),
        ),
    },
)

# --- weighting by confidence ----------------------------------------------------------------------


def _guess_and_pseudo(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    # of two scans one is clear, one is not
    sure = torch.tensor([0.5, 4.0]).view(2, *[1] * (dims + 1))
    shape = (2, 3, *uneven_shape(dims))
    return tuple((sure * torch.randn(shape, generator=generator)).softmax(1) for _ in range(2))


def _weighted(
    below: bool = True, least: bool = False, of_guess: bool = False, stop: str = "pseudo"
) -> Callable:
    def loss(guess: Tensor, pseudo: Tensor) -> Tensor:
        pseudo = pseudo.detach() if stop == "pseudo" else pseudo
        of = guess if of_guess else pseudo
        w = of.amin(1, keepdim=True) if least else of.amax(1, keepdim=True)
        w = w if stop == "nothing" else w.detach()
        overlap = (w * guess * pseudo).flatten(2).sum(-1)
        sizes = ((w if below else 1) * (guess + pseudo)).flatten(2).sum(-1)
        return 1 - (2 * overlap / sizes).mean()

    return loss


CONFIDENT = Exercise(
    "Listen to who is sure",
    _guess_and_pseudo,
    _weighted(),
    (
        "How sure is the teacher at each voxel? That is the weight of the voxel, above and below.",
        "w = the largest probability of the pseudo-label over the structures; the pseudo-label has no gradient.",
        "1 - (2 * (w * guess * pseudo).sum / (w * (guess + pseudo)).sum).mean()",
    ),
    {
        "above only": Mistake(
            _weighted(below=False),
            (
                "Your loss is too large, most of all where the teacher is in doubt.",
                "What is weighted in the overlap must be weighted in the sizes, too.",
                "w * (guess + pseudo) in the denominator",
            ),
        ),
        "the teacher learns": Mistake(
            _weighted(stop="nothing"),
            (
                "The value is right, but a gradient flows back to the teacher's labels.",
                "A pseudo-label is evidence, not a party (lesson 05).",
                "pseudo = pseudo.detach(), first of all",
            ),
        ),
        "only the weight is detached": Mistake(
            _weighted(stop="weight"),
            (
                "The value is right, and the weight has no gradient, but the pseudo-label in the overlap has one.",
                "It stands in three places: in the weight, in the overlap and in the sizes. None may learn.",
                "pseudo = pseudo.detach(), first of all",
            ),
        ),
        "the student's confidence": Mistake(
            _weighted(of_guess=True),
            (
                "You ask the pupil how sure he is.",
                "A pupil who is sure of his mistakes would hear himself most.",
                "w from pseudo, not from guess",
            ),
        ),
        "the least sure": Mistake(
            _weighted(least=True),
            (
                "Voxels where the teacher is in doubt count most.",
                "The largest probability says how sure, the smallest how impossible the least likely structure is.",
                "amax",
            ),
        ),
    },
    gradient=True,
)

# --- draws ----------------------------------------------------------------------------------------


def _dice_of_draws(dims: int, generator: Generator) -> tuple[np.ndarray]:
    """Dice (draws of the labelled scan, test subjects)."""
    rng = _rng(generator)
    return (rng.uniform(0.7, 0.9, (5, 1)) + rng.normal(0, 0.03, (5, 12)),)


DRAWS = Exercise(
    "Mean and scatter over draws",
    _dice_of_draws,
    lambda dice: (float(dice.mean(1).mean()), float(dice.mean(1).std(ddof=1))),
    (
        "One number for each draw first; then the mean and the standard deviation of these numbers.",
        "The number of a draw is the mean over its subjects. Five such numbers are a sample (ddof=1).",
        "means = dice.mean(axis=1); (means.mean(), means.std(ddof=1))",
    ),
    {
        "all together": Mistake(
            lambda dice: (float(dice.mean()), float(dice.std(ddof=1))),
            (
                "The mean is right, the scatter is not.",
                "You mix how subjects differ with how draws differ. The question was: what if another scan had been labelled?",
                "The mean of each draw first.",
            ),
        ),
        "between subjects": Mistake(
            lambda dice: (float(dice.mean()), float(dice.mean(0).std(ddof=1))),
            (
                "The mean is right, the scatter is too small.",
                "You average over draws, and with them away goes the scatter that was asked for.",
                "dice.mean(axis=1)",
            ),
        ),
        "divided by n": Mistake(
            lambda dice: (float(dice.mean(1).mean()), float(dice.mean(1).std())),
            (
                "The scatter is a little too small.",
                "np.std divides by n; a sample of five wants n - 1.",
                "std(ddof=1)",
            ),
        ),
        "the best draw": Mistake(
            lambda dice: (float(dice.mean(1).max()), float(dice.mean(1).std(ddof=1))),
            (
                "Your mean is that of the luckiest draw.",
                "Nobody knows beforehand which scan is the lucky one.",
                "means.mean(), not means.max()",
            ),
        ),
    },
    dims=(2,),
    tolerance=1e-6,
)

# --- a choice that must not see the test ----------------------------------------------------------


def _candidates(dims: int, generator: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dice of eight candidate atlases on validation and on test scans."""
    rng = _rng(generator)
    validation, test = rng.uniform(0.65, 0.7, (8, 4)), rng.uniform(0.7, 0.75, (8, 6))
    # the best there; one with a single lucky scan
    on_validation, lucky = 4 + rng.permutation(4)[:2]
    on_test, on_both = rng.permutation(4)[:2]
    validation[on_validation] += 0.2
    validation[lucky, 0] = 0.99
    test[on_test] += 0.2
    validation[on_both] += 0.15
    test[on_both] += 0.15
    return validation, test


REPORT = Exercise(
    "A choice that must not see the test",
    _candidates,
    lambda validation, test: float(test[validation.mean(1).argmax()].mean()),
    (
        "Which scans decide which atlas is taken? Which scans may say how good it is?",
        "The choice is made on validation scans; then the chosen atlas is scored once on test scans.",
        "test[validation.mean(axis=1).argmax()].mean()",
    ),
    {
        "chosen by the test": Mistake(
            lambda validation, test: float(test.mean(1).max()),
            (
                "Your number is too good.",
                "You take the atlas that is best on the test scans: they choose and judge at once.",
                "best = validation.mean(axis=1).argmax(); test[best].mean()",
            ),
        ),
        "the validation score": Mistake(
            lambda validation, test: float(validation.mean(1).max()),
            (
                "Your number does not come from test scans at all.",
                "The best of many validation scores is flattered by the choice itself.",
                "Score the chosen atlas on test.",
            ),
        ),
        "both together": Mistake(
            lambda validation, test: float(
                test[np.concatenate([validation, test], 1).mean(1).argmax()].mean()
            ),
            (
                "It is too good in most runs.",
                "Half of the choice was made by the scans that judge it.",
                "Choose by validation alone.",
            ),
        ),
        "the mean of all": Mistake(
            lambda validation, test: float(test.mean()),
            (
                "You did not choose.",
                "That is what an atlas drawn by lot would reach in the mean: a good number to report, but another question.",
                "test[best].mean()",
            ),
        ),
    },
    dims=(2,),
    tolerance=1e-6,
)

EXERCISES = {
    "vote": SOFT_VOTE,
    "atlas": ATLAS,
    "draws": DRAWS,
    "report": REPORT,
    "confident": CONFIDENT,
}
