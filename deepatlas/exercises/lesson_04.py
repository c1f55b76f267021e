"""Lesson 04, losses: similarity, regularity, overlap, and whose labels are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..losses import bending_energy, diffusion, ncc, soft_dice
from ..warp import Deformation
from . import Exercise, Mistake
from .lesson_02 import looked_up, smooth_field, uneven_shape

# --- similarity -----------------------------------------------------------------------------------


def _two_images(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Two images of one batch each, alike in part, with another brightness and contrast."""
    a = torch.rand(2, 1, *uneven_shape(dims), generator=generator)
    b = 0.3 * a + 0.2 + 0.4 * torch.rand(a.shape, generator=generator)
    return a, b * torch.tensor([1.0, 3.0]).view(2, 1, *[1] * dims)


def _correlation(centre: bool = True, root: bool = True, one_minus: bool = True) -> Callable:
    def loss(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.flatten(1), b.flatten(1)
        if centre:
            a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        sizes = a.square().sum(1) * b.square().sum(1)
        r = ((a * b).sum(1) / (sizes.sqrt() if root else sizes)).mean()
        return 1 - r if one_minus else r

    return loss


NCC = Exercise(
    "1 - NCC",
    _two_images,
    ncc,
    (
        "Take one image of the batch after the other; flatten(1) leaves the batch alone.",
        "NCC is Pearson's r: centre both images, divide their product's sum by the root of the product of their squares' "
        "sums.",
        "1 - ((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()).mean(), with a and b centred.",
    ),
    {
        "not centred": Mistake(
            _correlation(centre=False),
            (
                "A brighter image, shifted by a constant, gets another loss.",
                "Correlation compares deviations from the mean.",
                "Subtract a.mean(1, keepdim=True) first, and the same of b.",
            ),
        ),
        "no root": Mistake(
            _correlation(root=False),
            (
                "Two equal images do not get 0.",
                "The denominator is the product of the two standard deviations, not of the variances.",
                "Take .sqrt() of the product of the sums of squares.",
            ),
        ),
        "not one minus": Mistake(
            _correlation(one_minus=False),
            (
                "The loss is larger for images that are more alike.",
                "A loss is to be made small, and alike images have r = 1.",
                "Return 1 - r.",
            ),
        ),
        "over the whole batch": Mistake(
            lambda a, b: _correlation()(a.reshape(1, -1), b.reshape(1, -1)),
            (
                "It is right for a batch of one.",
                "You treat the batch as one long image: the contrast BETWEEN scans counts then.",
                "Flatten with flatten(1), take means and sums over dimension 1, and average over the batch at the end.",
            ),
        ),
        "squared": Mistake(
            lambda a, b: (
                1
                - torch.stack(
                    [(1 - ncc(a[i : i + 1], b[i : i + 1])) ** 2 for i in range(len(a))]
                ).mean()
            ),
            (
                "Your loss treats an inverted image like an equal one.",
                "That is 1 - NCC squared, as usual for the LOCAL correlation. The global one of the paper is not squared.",
                "Leave the square away.",
            ),
        ),
    },
    gradient=True,
)

# --- regularity -----------------------------------------------------------------------------------


def _one_field(dims: int, generator: Generator) -> tuple[Tensor]:
    return (torch.randn(1, dims, *uneven_shape(dims), generator=generator),)


def _bending(mixed: float = 2.0, channels: Callable = lambda x: x.sum(1).mean()) -> Callable:
    def loss(u: Tensor) -> Tensor:
        axes = range(2, u.ndim)
        energy = sum(channels(u.diff(n=2, dim=i).square()) for i in axes)
        return energy + mixed * sum(
            channels(u.diff(dim=i).diff(dim=j).square()) for i in axes for j in axes if i < j
        )

    return loss


BENDING = Exercise(
    "Bending energy",
    _one_field,
    bending_energy,
    (
        "Second differences: u.diff(n=2, dim=i) along one axis, u.diff(dim=i).diff(dim=j) along two.",
        "The squared Frobenius norm of the Hessian: all its entries squared and added, over all channels; then the mean "
        "over voxels.",
        "For each axis x.square().sum(1).mean(), and twice the same of each mixed pair i < j.",
    ),
    {
        "mixed counted once": Mistake(
            _bending(mixed=1.0),
            (
                "It is right for fields that bend along one axis only.",
                "The Hessian is symmetric: the entry (i, j) stands there again as (j, i).",
                "Count every mixed second difference twice.",
            ),
        ),
        "no mixed": Mistake(
            _bending(mixed=0.0),
            (
                "A field that is twisted, u = x y, costs nothing in your version.",
                "The Hessian has entries off its diagonal.",
                "Add 2 * u.diff(dim=i).diff(dim=j).square() for every pair of axes.",
            ),
        ),
        "first differences": Mistake(
            diffusion,
            (
                "A plain enlargement, u = 0.1 x, already costs something.",
                "You penalise the gradient (diffusion). Bending energy penalises the CHANGE of the gradient, and lets every "
                "affine map go free.",
                "Second differences: diff(n=2, dim=i).",
            ),
        ),
        "mean over channels": Mistake(
            _bending(channels=lambda x: x.mean()),
            (
                "Your number is too small by the number of channels.",
                "The norm is a sum over the channels of u; only over voxels one takes the mean.",
                ".square().sum(1).mean()",
            ),
        ),
        "sum over voxels": Mistake(
            _bending(channels=lambda x: x.sum()),
            (
                "Your number grows with the size of the image.",
                "A loss is a mean over voxels; otherwise lambda_r would mean something else for each image size.",
                ".sum(1).mean() instead of .sum()",
            ),
        ),
    },
    gradient=True,
)

# --- overlap --------------------------------------------------------------------------------------


def _probabilities(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    scores = 2 * torch.randn(2, 3, *uneven_shape(dims), generator=generator)
    labels = torch.randint(0, 3, (2, *uneven_shape(dims)), generator=generator)
    labels[0][labels[0] == 2] = 1  # one scan lacks structure 2 nearly everywhere
    labels[0].view(-1)[:3] = 2
    return scores.softmax(1), F.one_hot(labels, 3).movedim(-1, 1).float()


def _soft_dice(
    p: Tensor, q: Tensor, *, factor: float = 2.0, squares: bool = False, first: int = 0
) -> Tensor:
    p, q = p.flatten(2)[:, first:], q.flatten(2)[:, first:]
    sizes = (p.square() + q.square()).sum(-1) if squares else (p + q).sum(-1)
    return 1 - (factor * (p * q).sum(-1) / sizes).mean()


SOFT_DICE = Exercise(
    "1 - soft Dice",
    _probabilities,
    soft_dice,
    (
        "Probabilities p instead of membership: |A and B| becomes the sum of p q, |A| the sum of p.",
        "One Dice for every scan and every structure, background included; then the mean of all.",
        "p and q flattened to (B, C, voxels): 1 - (2 * (p * q).sum(-1) / (p.sum(-1) + q.sum(-1))).mean()",
    ),
    {
        "no factor 2": Mistake(
            lambda p, q: _soft_dice(p, q, factor=1.0),
            (
                "A perfect guess does not get 0.",
                "The denominator counts the voxels of both; where they agree, twice.",
                "2 * (p * q).sum(-1)",
            ),
        ),
        "the score": Mistake(
            lambda p, q: 1 - _soft_dice(p, q),
            (
                "A perfect guess gets 1, the worst gets 0: the wrong way round for a loss.",
                "You return Dice. A loss is made small, so it is 1 - Dice.",
                "return 1 - ...",
            ),
        ),
        "pooled": Mistake(
            lambda p, q: 1 - 2 * (p * q).sum() / (p.sum() + q.sum()),
            (
                "Small structures hardly count in your version.",
                "You add all structures before dividing: the largest decides. And since p sums to 1 over the structures, this "
                "is only the mean probability of the right label.",
                "Sum over voxels only, dim -1, and take the mean over structures at the end.",
            ),
        ),
        "hard": Mistake(
            lambda p, q: _soft_dice(F.one_hot(p.argmax(1), 3).movedim(-1, 1).float(), q),
            (
                "Your loss has no gradient: nothing can be learnt from it.",
                "argmax jumps. The soft version uses the probabilities themselves.",
                "Leave p as it is.",
            ),
        ),
        "background left out": Mistake(
            lambda p, q: _soft_dice(p, q, first=1),
            (
                "Your loss lacks the first channel.",
                "As a SCORE, Dice leaves out the background. In the loss of this kit it counts as one structure among the "
                "others, so that false positives cost something at once.",
                "Use all channels.",
            ),
        ),
        "squares": Mistake(
            lambda p, q: _soft_dice(p, q, squares=True),
            (
                "Your denominator is smaller than it should be.",
                "Some papers put squares there (V-Net). Then a guess that is unsure everywhere is punished less.",
                "p.sum(-1) + q.sum(-1), without squares.",
            ),
        ),
    },
    gradient=True,
)

# --- whose labels? --------------------------------------------------------------------------------


def _mixed_batch(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(known, one_hot, guess) of a batch of three: one_hot is all 0 where no expert has been."""
    guess, one_hot = (torch.cat([x, x.flip(0)[:1]]) for x in _probabilities(dims, generator))
    known = torch.tensor([True, False, True])
    return known, one_hot * known.view(-1, 1, *[1] * dims), guess


def _view(known: Tensor, like: Tensor) -> Tensor:
    return known.view(-1, *[1] * (like.ndim - 1))


GUESS = Exercise(
    "The expert's labels where they exist",
    _mixed_batch,
    lambda known, one_hot, guess: torch.where(_view(known, guess), one_hot, guess),
    (
        "known has one entry for each scan of the batch; the others have channels and voxels, too.",
        "Where known, the expert's labels; elsewhere, the network's own guess: torch.where.",
        "torch.where(known.view(-1, 1, 1, 1), one_hot, guess) in 2D; in 3D one more 1.",
    ),
    {
        "exchanged": Mistake(
            lambda known, one_hot, guess: torch.where(_view(known, guess), guess, one_hot),
            (
                "Where an expert has been, you use the guess, and elsewhere zeros.",
                "torch.where(condition, a, b) takes a where the condition is true.",
                "one_hot before guess.",
            ),
        ),
        "added": Mistake(
            lambda known, one_hot, guess: one_hot + guess,
            (
                "Where an expert has been, the channels add up to 2.",
                "The expert's labels replace the guess, they are not added to it.",
                "torch.where instead of a sum.",
            ),
        ),
        "guess only": Mistake(
            lambda known, one_hot, guess: guess,
            (
                "The expert's labels are not used at all.",
                "A guess is a makeshift for scans that nobody labelled.",
                "torch.where(known, one_hot, guess), with known in the right shape.",
            ),
        ),
        "cut off": Mistake(
            lambda known, one_hot, guess: torch.where(_view(known, guess), one_hot, guess.detach()),
            (
                "The gradient of the guess is gone.",
                "In a segmentation turn this guess is what the network is to learn from. Whoever is only consulted is put "
                "under torch.no_grad() elsewhere.",
                "Leave .detach() away.",
            ),
        ),
    },
    gradient=True,
)

# --- a planted bug --------------------------------------------------------------------------------


def _image_labels_field(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    image = torch.rand(1, 1, *uneven_shape(dims), generator=generator)
    one_hot = (
        F.one_hot(torch.randint(0, 3, (1, *uneven_shape(dims)), generator=generator), 3)
        .movedim(-1, 1)
        .float()
    )
    return image, one_hot, smooth_field(uneven_shape(dims), 1.0, generator)


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
    each.
    """
    warps = looked_up(align_corners=images), looked_up(align_corners=labels, mode=mode)
    return torch.cat(
        [warp(values, u) for warp, values in zip(warps, (image, one_hot), strict=True)], 1
    )


WARP_BOTH = Exercise(
    "Image and labels, warped alike",
    _image_labels_field,
    lambda image, one_hot, u: Deformation(u).warp(torch.cat([image, one_hot], 1)),
    (
        "Give both the same picture and compare the results: are they warped alike?",
        "Image and labels must be looked up at the same places, with the same convention of coordinates.",
        "Compare the two calls of grid_sample, argument by argument.",
    ),
    {
        "labels without align_corners": Mistake(
            lambda image, one_hot, u: _warp_both(image, one_hot, u, labels=False),
            (
                "The labels lie a little beside their image, up to half a voxel near the border.",
                "The grid was scaled for align_corners=True. The second call does not say so, and its default is False.",
                "align_corners=True in both calls.",
            ),
        ),
        "image without align_corners": Mistake(
            lambda image, one_hot, u: _warp_both(image, one_hot, u, images=False),
            (
                "Now the image is off and the labels are right.",
                "The scale of the grid is for align_corners=True.",
                "align_corners=True in both calls.",
            ),
        ),
        "neither": Mistake(
            lambda image, one_hot, u: _warp_both(image, one_hot, u, images=False, labels=False),
            (
                "Image and labels agree, but with u = 0 neither stays as it was.",
                "The coordinates were scaled by size - 1, which belongs to align_corners=True.",
                "align_corners=True in both calls.",
            ),
        ),
        "nearest": Mistake(
            lambda image, one_hot, u: _warp_both(image, one_hot, u, mode="nearest"),
            (
                "The warped labels are right, but their gradient by u is 0.",
                "The nearest voxel jumps, so the anatomy term could not move anything. One-hot channels are amounts, and may "
                "be interpolated.",
                "Leave mode at its default, bilinear.",
            ),
        ),
    },
    gradient=True,
)

EXERCISES = {
    "ncc": NCC,
    "bending": BENDING,
    "soft_dice": SOFT_DICE,
    "guess": GUESS,
    "warp_both": WARP_BOTH,
}
