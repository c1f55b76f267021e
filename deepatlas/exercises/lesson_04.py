"""Lesson 04, losses: similarity, regularity, overlap, and whose labels are compared."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..losses import bending_energy, diffusion, ncc
from ..warp import Deformation
from . import Exercise
from .lesson_02 import looked_up, smooth_field, uneven_shape

# --- similarity -----------------------------------------------------------------------------------


def _two_images(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two images of one batch each, alike in part, with another brightness and contrast."""
    a = torch.rand(2, 1, *uneven_shape(dims), generator=generator)
    b = 0.3 * a + 0.2 + 0.4 * torch.rand(a.shape, generator=generator)
    contrasts = torch.tensor([1.0, 3.0]).view(2, 1, *[1] * dims)
    return a, b * contrasts


def _correlation(a: Tensor, b: Tensor, *, centre: bool = True, root: bool = True) -> Tensor:
    """The mean of Pearson's r over a batch, with one thing after another to get wrong."""
    a, b = a.flatten(1), b.flatten(1)
    if centre:
        a = a - a.mean(1, keepdim=True)
        b = b - b.mean(1, keepdim=True)
    sizes = a.square().sum(1) * b.square().sum(1)
    r = (a * b).sum(1) / (sizes.sqrt() if root else sizes)
    return r.mean()


NCC = Exercise(
    "1 - NCC",
    arguments=_two_images,
    right=ncc,
    hints=(
        "Take one image of the batch after the other; flatten(1) leaves the batch alone.",
        "NCC is Pearson's r: centre both images, divide their product's sum by the root of the "
        "product of their squares' sums.",
        "1 - ((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()).mean(), with a and "
        "b centred.",
    ),
    gradient=True,
)


@NCC.mistake(
    "not centred",
    symptom="A brighter image, shifted by a constant, gets another loss.",
    idea="Correlation compares deviations from the mean.",
    line="Subtract a.mean(1, keepdim=True) first, and the same of b.",
)
def _not_centred(a, b):
    return 1 - _correlation(a, b, centre=False)


@NCC.mistake(
    "no root",
    symptom="Two equal images do not get 0.",
    idea="The denominator is the product of the two standard deviations, not of the variances.",
    line="Take .sqrt() of the product of the sums of squares.",
)
def _no_root(a, b):
    return 1 - _correlation(a, b, root=False)


@NCC.mistake(
    "not one minus",
    symptom="The loss is larger for images that are more alike.",
    idea="A loss is to be made small, and alike images have r = 1.",
    line="Return 1 - r.",
)
def _not_one_minus(a, b):
    return _correlation(a, b)


@NCC.mistake(
    "over the whole batch",
    symptom="It is right for a batch of one.",
    idea="You treat the batch as one long image: the contrast BETWEEN scans counts then.",
    line="Flatten with flatten(1), take means and sums over dimension 1, and average over the "
    "batch at the end.",
)
def _over_the_whole_batch(a, b):
    return 1 - _correlation(a.reshape(1, -1), b.reshape(1, -1))


@NCC.mistake(
    "squared",
    symptom="Your loss treats an inverted image like an equal one.",
    idea="That is 1 - NCC squared, as usual for the LOCAL correlation. The global one of the "
    "paper is not squared.",
    line="Leave the square away.",
)
def _squared(a, b):
    correlations = [1 - ncc(one[None], other[None]) for one, other in zip(a, b, strict=True)]
    return 1 - torch.stack(correlations).square().mean()


# --- regularity -----------------------------------------------------------------------------------


def _one_field(dims: int, generator: Generator) -> tuple[Tensor]:
    return (torch.randn(1, dims, *uneven_shape(dims), generator=generator),)


def _over_voxels(squares: Tensor) -> Tensor:
    """Squares (B, D, I, J, K) summed over channels, and the mean over voxels."""
    return squares.sum(1).mean()


def _bending(
    u: Tensor, *, mixed: float = 2.0, reduced: Callable[[Tensor], Tensor] = _over_voxels
) -> Tensor:
    """The bending energy, with one thing after another to get wrong; ``mixed`` is how often a
    mixed difference counts.
    """
    axes = range(2, u.ndim)
    energy = sum(reduced(u.diff(n=2, dim=i).square()) for i in axes)
    for i, j in combinations(axes, 2):
        energy = energy + mixed * reduced(u.diff(dim=i).diff(dim=j).square())
    return energy


BENDING = Exercise(
    "Bending energy",
    arguments=_one_field,
    right=bending_energy,
    hints=(
        "Second differences: u.diff(n=2, dim=i) along one axis, u.diff(dim=i).diff(dim=j) along "
        "two.",
        "The squared Frobenius norm of the Hessian: all its entries squared and added, over all "
        "channels; then the mean over voxels.",
        "For each axis x.square().sum(1).mean(), and twice the same of each mixed pair i < j.",
    ),
    gradient=True,
)


@BENDING.mistake(
    "mixed counted once",
    symptom="It is right for fields that bend along one axis only.",
    idea="The Hessian is symmetric: the entry (i, j) stands there again as (j, i).",
    line="Count every mixed second difference twice.",
)
def _mixed_counted_once(u):
    return _bending(u, mixed=1.0)


@BENDING.mistake(
    "no mixed",
    symptom="A field that is twisted, u = x y, costs nothing in your version.",
    idea="The Hessian has entries off its diagonal.",
    line="Add 2 * u.diff(dim=i).diff(dim=j).square() for every pair of axes.",
)
def _no_mixed(u):
    return _bending(u, mixed=0.0)


@BENDING.mistake(
    "first differences",
    symptom="A plain enlargement, u = 0.1 x, already costs something.",
    idea="You penalise the gradient (diffusion). Bending energy penalises the CHANGE of the "
    "gradient, and lets every affine map go free.",
    line="Second differences: diff(n=2, dim=i).",
)
def _first_differences(u):
    return diffusion(u)


@BENDING.mistake(
    "mean over channels",
    symptom="Your number is too small by the number of channels.",
    idea="The norm is a sum over the channels of u; only over voxels one takes the mean.",
    line=".square().sum(1).mean()",
)
def _mean_over_channels(u):
    return _bending(u, reduced=torch.mean)


@BENDING.mistake(
    "sum over voxels",
    symptom="Your number grows with the size of the image.",
    idea="A loss is a mean over voxels; otherwise lambda_r would mean something else for each "
    "image size.",
    line=".sum(1).mean() instead of .sum()",
)
def _sum_over_voxels(u):
    return _bending(u, reduced=torch.sum)


# --- overlap --------------------------------------------------------------------------------------


def _one_hot(labels: Tensor) -> Tensor:
    """Labels 0, 1, 2 as channels: (B, I, J, K) -> (B, 3, I, J, K)."""
    return F.one_hot(labels, 3).movedim(-1, 1).float()


def _probabilities(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot labels of two scans, three structures."""
    shape = uneven_shape(dims)
    scores = 2 * torch.randn(2, 3, *shape, generator=generator)
    labels = torch.randint(0, 3, (2, *shape), generator=generator)
    labels[0][labels[0] == 2] = 1  # one scan lacks structure 2 nearly everywhere
    labels[0].view(-1)[:3] = 2
    return scores.softmax(1), _one_hot(labels)


def _soft_dice(p: Tensor, q: Tensor, *, factor: float = 2.0, squares: bool = False) -> Tensor:
    """1 - soft Dice as in the lesson, with one thing after another to get wrong."""
    p, q = p.flatten(2), q.flatten(2)
    overlaps = (p * q).sum(-1)
    sizes = (p.square() + q.square()).sum(-1) if squares else (p + q).sum(-1)
    return 1 - (factor * overlaps / sizes).mean()


SOFT_DICE = Exercise(
    "1 - soft Dice",
    arguments=_probabilities,
    right=_soft_dice,
    hints=(
        "Probabilities p instead of membership: |A and B| becomes the sum of p q, |A| the sum of "
        "p.",
        "One Dice for every scan and every structure, background included; then the mean of all.",
        "p and q flattened to (B, C, voxels): 1 - (2 * (p * q).sum(-1) / (p.sum(-1) + "
        "q.sum(-1))).mean()",
    ),
    gradient=True,
)


@SOFT_DICE.mistake(
    "no factor 2",
    symptom="A perfect guess does not get 0.",
    idea="The denominator counts the voxels of both; where they agree, twice.",
    line="2 * (p * q).sum(-1)",
)
def _no_factor_2(p, q):
    return _soft_dice(p, q, factor=1.0)


@SOFT_DICE.mistake(
    "the score",
    symptom="A perfect guess gets 1, the worst gets 0: the wrong way round for a loss.",
    idea="You return Dice. A loss is made small, so it is 1 - Dice.",
    line="return 1 - ...",
)
def _the_score(p, q):
    return 1 - _soft_dice(p, q)


@SOFT_DICE.mistake(
    "pooled",
    symptom="Small structures hardly count in your version.",
    idea="You add all structures before dividing: the largest decides. And since p sums to 1 over "
    "the structures, this is only the mean probability of the right label.",
    line="Sum over voxels only, dim -1, and take the mean over structures at the end.",
)
def _pooled(p, q):
    return 1 - 2 * (p * q).sum() / (p.sum() + q.sum())


@SOFT_DICE.mistake(
    "hard",
    symptom="Your loss has no gradient: nothing can be learnt from it.",
    idea="argmax jumps. The soft version uses the probabilities themselves.",
    line="Leave p as it is.",
)
def _hard(p, q):
    return _soft_dice(_one_hot(p.argmax(1)), q)


@SOFT_DICE.mistake(
    "background left out",
    symptom="Your loss lacks the first channel.",
    idea="As a SCORE, Dice leaves out the background. In the loss of this kit it counts as one "
    "structure among the others, so that false positives cost something at once.",
    line="Use all channels.",
)
def _background_left_out(p, q):
    return _soft_dice(p[:, 1:], q[:, 1:])


@SOFT_DICE.mistake(
    "squares",
    symptom="Your denominator is smaller than it should be.",
    idea="Some papers put squares there (V-Net). Then a guess that is unsure everywhere is "
    "punished less.",
    line="p.sum(-1) + q.sum(-1), without squares.",
)
def _squares(p, q):
    return _soft_dice(p, q, squares=True)


# --- whose labels? --------------------------------------------------------------------------------


def _mixed_batch(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(known, one_hot, guess) of a batch of three: one_hot is all 0 where no expert has been."""
    two_guesses, two_labels = _probabilities(dims, generator)
    guess = torch.cat([two_guesses, two_guesses[1:]])
    one_hot = torch.cat([two_labels, two_labels[1:]])
    known = torch.tensor([True, False, True])
    return known, one_hot * _per_scan(known, one_hot), guess


def _per_scan(known: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to choose between tensors (B, C, I, J, K)."""
    return known.view(-1, *[1] * (like.ndim - 1))


def _labels_or_guess(known: Tensor, one_hot: Tensor, guess: Tensor) -> Tensor:
    return torch.where(_per_scan(known, guess), one_hot, guess)


GUESS = Exercise(
    "The expert's labels where they exist",
    arguments=_mixed_batch,
    right=_labels_or_guess,
    hints=(
        "known has one entry for each scan of the batch; the others have channels and voxels, too.",
        "Where known, the expert's labels; elsewhere, the network's own guess: torch.where.",
        "torch.where(known.view(-1, 1, 1, 1), one_hot, guess) in 2D; in 3D one more 1.",
    ),
    gradient=True,
)


@GUESS.mistake(
    "exchanged",
    symptom="Where an expert has been, you use the guess, and elsewhere zeros.",
    idea="torch.where(condition, a, b) takes a where the condition is true.",
    line="one_hot before guess.",
)
def _exchanged(known, one_hot, guess):
    return torch.where(_per_scan(known, guess), guess, one_hot)


@GUESS.mistake(
    "added",
    symptom="Where an expert has been, the channels add up to 2.",
    idea="The expert's labels replace the guess, they are not added to it.",
    line="torch.where instead of a sum.",
)
def _added(known, one_hot, guess):
    return one_hot + guess


@GUESS.mistake(
    "guess only",
    symptom="The expert's labels are not used at all.",
    idea="A guess is a makeshift for scans that nobody labelled.",
    line="torch.where(known, one_hot, guess), with known in the right shape.",
)
def _guess_only(known, one_hot, guess):
    return guess


@GUESS.mistake(
    "cut off",
    symptom="The gradient of the guess is gone.",
    idea="In a segmentation turn this guess is what the network is to learn from. Whoever is only "
    "consulted is put under torch.no_grad() elsewhere.",
    line="Leave .detach() away.",
)
def _cut_off(known, one_hot, guess):
    return torch.where(_per_scan(known, guess), one_hot, guess.detach())


# --- a planted bug --------------------------------------------------------------------------------


def _image_labels_field(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    shape = uneven_shape(dims)
    image = torch.rand(1, 1, *shape, generator=generator)
    labels = torch.randint(0, 3, (1, *shape), generator=generator)
    return image, _one_hot(labels), smooth_field(shape, 1.0, generator)


def _warped_alike(image: Tensor, one_hot: Tensor, u: Tensor) -> Tensor:
    return Deformation(u).warp(torch.cat([image, one_hot], 1))


def _warp_both(
    image: Tensor,
    one_hot: Tensor,
    u: Tensor,
    *,
    images: bool = True,
    labels: bool = True,
    mode: str = "bilinear",
) -> Tensor:
    """Image and labels looked up at x + u(x); ``images`` and ``labels`` are the align_corners of
    each, ``mode`` is that of the labels.
    """
    points = Deformation(u).points
    warped = looked_up(image, points, align_corners=images)
    warped_labels = looked_up(one_hot, points, align_corners=labels, mode=mode)
    return torch.cat([warped, warped_labels], 1)


WARP_BOTH = Exercise(
    "Image and labels, warped alike",
    arguments=_image_labels_field,
    right=_warped_alike,
    hints=(
        "Give both the same picture and compare the results: are they warped alike?",
        "Image and labels must be looked up at the same places, with the same convention of "
        "coordinates.",
        "Compare the two calls of grid_sample, argument by argument.",
    ),
    gradient=True,
)


@WARP_BOTH.mistake(
    "labels without align_corners",
    symptom="The labels lie a little beside their image, up to half a voxel near the border.",
    idea="The grid was scaled for align_corners=True. The second call does not say so, and its "
    "default is False.",
    line="align_corners=True in both calls.",
)
def _labels_without_align_corners(image, one_hot, u):
    return _warp_both(image, one_hot, u, labels=False)


@WARP_BOTH.mistake(
    "image without align_corners",
    symptom="Now the image is off and the labels are right.",
    idea="The scale of the grid is for align_corners=True.",
    line="align_corners=True in both calls.",
)
def _image_without_align_corners(image, one_hot, u):
    return _warp_both(image, one_hot, u, images=False)


@WARP_BOTH.mistake(
    "neither",
    symptom="Image and labels agree, but with u = 0 neither stays as it was.",
    idea="The coordinates were scaled by size - 1, which belongs to align_corners=True.",
    line="align_corners=True in both calls.",
)
def _neither(image, one_hot, u):
    return _warp_both(image, one_hot, u, images=False, labels=False)


@WARP_BOTH.mistake(
    "nearest",
    symptom="The warped labels are right, but their gradient by u is 0.",
    idea="The nearest voxel jumps, so the anatomy term could not move anything. One-hot channels "
    "are amounts, and may be interpolated.",
    line="Leave mode at its default, bilinear.",
)
def _nearest(image, one_hot, u):
    return _warp_both(image, one_hot, u, mode="nearest")


EXERCISES = {
    "ncc": NCC,
    "bending": BENDING,
    "soft_dice": SOFT_DICE,
    "guess": GUESS,
    "warp_both": WARP_BOTH,
}
