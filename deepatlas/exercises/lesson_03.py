"""Lesson 03, baselines: levels of a U-Net, propagated labels, votes, whose labels count, a step
that learns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..warp import voxel_grid
from . import Exercise, Mistake
from .lesson_02 import looked_up, smooth_field, uneven_shape

# --- a level of the U-Net -------------------------------------------------------------------------


def _two_levels(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Features of a coarse level and of the one that is twice as fine."""
    half = (4, 3, 5)[:dims]
    return (
        torch.randn(2, 3, *half, generator=generator),
        torch.randn(2, 2, *(2 * n for n in half), generator=generator),
    )


def _twice(x: Tensor, *, nearest: bool = False, corners: bool = False) -> Tensor:
    if nearest:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.interpolate(
        x, scale_factor=2, mode="bilinear" if x.ndim == 4 else "trilinear", align_corners=corners
    )


JOIN = Exercise(
    "Joining two levels of a U-Net",
    _two_levels,
    lambda coarse, skip: torch.cat([_twice(coarse), skip], 1),
    (
        "First make the coarse features as large as the fine ones, then put both side by side as channels.",
        "F.interpolate(coarse, scale_factor=2, mode='bilinear') ('trilinear' in 3D), then torch.cat along the channels.",
        "torch.cat([F.interpolate(coarse, scale_factor=2, mode=mode), skip], dim=1)",
    ),
    {
        "skip first": Mistake(
            lambda coarse, skip: torch.cat([skip, _twice(coarse)], 1),
            (
                "The shape is right, the order of the channels is not.",
                "The next convolution knows its inputs by their place: what came from below comes first.",
                "torch.cat([upsampled, skip], dim=1)",
            ),
        ),
        "nearest": Mistake(
            lambda coarse, skip: torch.cat([_twice(coarse, nearest=True), skip], 1),
            (
                "The upsampled half of the result consists of small squares.",
                "The default of F.interpolate repeats each value. Linear interpolation was asked for.",
                "mode='bilinear', or 'trilinear' in 3D",
            ),
        ),
        "corners": Mistake(
            lambda coarse, skip: torch.cat([_twice(coarse, corners=True), skip], 1),
            (
                "The upsampled half is slightly stretched.",
                "With align_corners=True the first and last voxel centres are kept; a level that was made by halving covers "
                "the same area with larger voxels.",
                "Leave align_corners at False.",
            ),
        ),
        "bilinear in 3D": Mistake(
            lambda coarse, skip: torch.cat(
                [F.interpolate(coarse, scale_factor=2, mode="bilinear"), skip], 1
            ),
            (
                "It works in 2D and stops in 3D.",
                "Linear interpolation has a name for each number of axes: 'bilinear' for images, 'trilinear' for volumes.",
                "mode = 'bilinear' if coarse.ndim == 4 else 'trilinear'",
            ),
        ),
        "skip alone": Mistake(
            lambda coarse, skip: skip,
            (
                "What the coarse level found out is lost.",
                "The fine level knows where, the coarse level knows what: the decoder needs both.",
                "Concatenate both along the channels.",
            ),
        ),
    },
    gradient=True,
)

# --- label propagation ----------------------------------------------------------------------------


def _labels_and_field(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    shape = uneven_shape(dims)
    return torch.randint(0, 4, shape, generator=generator), smooth_field(shape, 1.5, generator)[0]


def _indexed(
    points: Callable[[Tensor, Tensor], Tensor] = torch.add, rounded: Callable = torch.round
) -> Callable:
    """``propagate(labels, u)`` by index, with one thing after another to get wrong."""

    def propagate(labels: Tensor, u: Tensor) -> Tensor:
        where = rounded(points(voxel_grid(tuple(labels.shape), u), u)).long()
        return labels[
            tuple(axis.clamp(0, n - 1) for axis, n in zip(where, labels.shape, strict=True))
        ]

    return propagate


def _interpolated(labels: Tensor, u: Tensor) -> Tensor:
    return looked_up()(labels[None, None].float(), u[None])[0, 0].round().long()


PROPAGATE = Exercise(
    "Propagating labels",
    _labels_and_field,
    _indexed(),
    (
        "Every voxel x of the result reads the label at x + u(x).",
        "Labels are names, not quantities: take the label of the nearest voxel, and of the border beyond the border.",
        "where = (grid + u).round().long(), clamped to 0 ... n - 1 on each axis; labels[where[0], where[1], ...]",
    ),
    {
        "interpolated": Mistake(
            _interpolated,
            (
                "Between structures 1 and 3 there appears a rim of structure 2.",
                "The mean of two labels is a third structure that has nothing to do with either.",
                "Round the position, not the label.",
            ),
        ),
        "rounded down": Mistake(
            _indexed(rounded=torch.floor),
            (
                "Every structure has moved by about half a voxel.",
                "Turning a position into an index by .long() or floor cuts off: 2.9 becomes 2.",
                "(grid + u).round().long()",
            ),
        ),
        "pushed": Mistake(
            _indexed(torch.sub),
            (
                "The labels move the other way.",
                "u says where to LOOK in the moving labels.",
                "x + u, not x - u",
            ),
        ),
        "axes exchanged": Mistake(
            _indexed(lambda x, u: (x + u).flip(0)),
            (
                "The labels come from the place mirrored at the diagonal.",
                "Channel c of u moves axis c of the tensor. The reversed order belongs to grid_sample only.",
                "labels[where[0], where[1], ...]",
            ),
        ),
        "u alone": Mistake(
            _indexed(lambda x, u: u),
            (
                "Nearly everything is read in one corner.",
                "u is relative to the voxel's own place.",
                "Add the coordinates of each voxel.",
            ),
        ),
    },
)

# --- voting ---------------------------------------------------------------------------------------


def _several(dims: int, generator: Generator) -> tuple[Tensor]:
    return (torch.randint(0, 4, (5, *uneven_shape(dims)), generator=generator),)


def _votes(labels: Tensor) -> Tensor:
    return F.one_hot(labels, int(labels.max()) + 1).sum(0)


VOTE = Exercise(
    "A vote of several atlases",
    _several,
    lambda labels: _votes(labels).argmax(-1),  # the first of equals is the smallest
    (
        "How many atlases say 0 at this voxel, how many say 1, and so on? The largest count wins.",
        "The sum of one-hot labels over the atlases is the number of votes. argmax finds the winner: of two with as many "
        "votes the smaller label.",
        "F.one_hot(labels).sum(0).argmax(-1)",
    ),
    {
        "mean": Mistake(
            lambda labels: labels.float().mean(0).round().long(),
            (
                "Two atlases for 0 and two for 2 elect structure 1, which nobody voted for.",
                "Labels are names; their mean means nothing.",
                "Count votes for each label, then argmax.",
            ),
        ),
        "median": Mistake(
            lambda labels: labels.median(0).values,
            (
                "It is often right, but the winner sometimes lies between the two that most voted for.",
                "The median is the middle of a row; names have no row.",
                "Count votes for each label, then argmax.",
            ),
        ),
        "the larger of equals": Mistake(
            lambda labels: _votes(labels).shape[-1] - 1 - _votes(labels).flip(-1).argmax(-1),
            (
                "Only voxels with a tie differ.",
                "Where two labels have as many votes, the smaller one was asked for.",
                "argmax returns the first of equals: do not reverse the labels.",
            ),
        ),
        "any structure": Mistake(
            lambda labels: labels.max(0).values,
            (
                "There is hardly any background left.",
                "You take the largest label that any atlas has, so that one vote is enough.",
                "Count votes for each label, then argmax.",
            ),
        ),
    },
)

# --- whose labels count ---------------------------------------------------------------------------


def _pairs(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Three batches of five pairs; in the last of them nobody labelled both sides."""
    known = torch.tensor([[True, True, False, False, True], [True, False, True, False, True]])
    batches = [known[:, torch.randperm(5, generator=generator)] for _ in range(2)]
    moving, fixed = torch.stack([*batches, torch.stack([known[0], ~known[0]])], 1)
    return torch.rand(3, 5, generator=generator), moving, fixed


def _over(
    counted: Callable[[Tensor, Tensor], Tensor], whole: bool = False, least: int = 1
) -> Callable:
    def anatomy(dice_loss: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        counts = counted(moving, fixed)
        return (dice_loss * counts).sum(1) / (
            counts.shape[1] if whole else counts.sum(1).clamp(min=least)
        )

    return anatomy


WEAK = Exercise(
    "Weak supervision",
    _pairs,
    _over(torch.logical_and),
    (
        "The anatomy term needs an expert's labels on both sides of a pair.",
        "Take the mean over the pairs that have them; where a batch has none, 0.",
        "counts = moving_known & fixed_known; (dice_loss * counts).sum(1) / counts.sum(1).clamp(min=1)",
    ),
    {
        "nothing divided by nothing": Mistake(
            _over(torch.logical_and, least=0),
            (
                "A batch without any such pair gives nan, and one nan in a loss ruins every weight of a network.",
                "0 pairs in the sum, 0 in the denominator. With one labelled scan every batch is like that.",
                "counts.sum(1).clamp(min=1) in the denominator",
            ),
        ),
        "the sum": Mistake(
            lambda dice_loss, moving, fixed: (dice_loss * (moving & fixed)).sum(1),
            (
                "Your term grows with the number of labelled pairs.",
                "A loss should not depend on how many pairs happen to be labelled in this batch: take their mean.",
                "Divide by the number of pairs that count.",
            ),
        ),
        "either": Mistake(
            _over(torch.logical_or),
            (
                "More pairs count than should.",
                "With labels on one side only there is nothing to compare them with, as long as nobody guesses.",
                "& instead of |",
            ),
        ),
        "all pairs in the mean": Mistake(
            _over(torch.logical_and, whole=True),
            (
                "Your term is too small.",
                "A pair without labels is not a pair with a loss of 0: it must not stand in the denominator.",
                "Divide by the number of pairs that count.",
            ),
        ),
        "the moving side": Mistake(
            _over(lambda moving, fixed: moving),
            (
                "Pairs count whose fixed scan nobody labelled.",
                "Labels on both sides are compared: S_m after warping, and S_f.",
                "moving_known & fixed_known",
            ),
        ),
        "the fixed side": Mistake(
            _over(lambda moving, fixed: fixed),
            (
                "Pairs count whose moving scan nobody labelled.",
                "Labels on both sides are compared: S_m after warping, and S_f.",
                "moving_known & fixed_known",
            ),
        ),
    },
    dims=(2,),
    gradient=True,
)

# --- a step that learns ---------------------------------------------------------------------------


def _regression(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(20, 3, generator=generator), torch.randn(20, generator=generator)


def _descent(sign: float = -1.0, grad: Callable = lambda new, old: new) -> Callable:
    """Five steps of gradient descent on the mean squared residual of ``x @ w - y``."""

    def fit(x: Tensor, y: Tensor) -> Tensor:
        w = torch.zeros(x.shape[1], requires_grad=True)
        kept = torch.zeros_like(w)
        for _ in range(5):
            (now,) = torch.autograd.grad((x @ w - y).square().mean(), w)
            kept = grad(now, kept)
            w = (w + sign * 0.1 * kept).detach().requires_grad_()
        return w.detach()

    return fit


FIT = Exercise(
    "A training loop",
    _regression,
    _descent(),
    (
        "Compute the first two steps by hand and compare: which one is the first to differ?",
        "Five steps, the mean of the squares, 0.1 times the gradient of this step and of no other.",
        "In each step: loss.backward(), w -= 0.1 * w.grad, w.grad = None.",
    ),
    {
        "gradients add up": Mistake(
            _descent(grad=torch.add),
            (
                "The first step is right, the later ones are too long: w swings beyond its goal.",
                "loss.backward() ADDS the new gradient to w.grad; every step then takes all earlier gradients again.",
                "w.grad = None (or w.grad.zero_()) in every step, after the update or before backward().",
            ),
        ),
        "erased before the step": Mistake(
            lambda x, y: torch.zeros(x.shape[1]),
            (
                "w never moves.",
                "You erase the gradient between backward() and the step, so the step has nothing to follow.",
                "Erase before backward(), or after the step.",
            ),
        ),
        "uphill": Mistake(
            _descent(sign=1.0),
            ("The loss rises.", "The gradient points uphill.", "w -= rate * w.grad"),
        ),
        "mean of the past": Mistake(
            _descent(grad=lambda new, old: 0.5 * new + 0.5 * old),
            (
                "It learns, but behind its time.",
                "You mix the old gradient with the new one. That is momentum, which was not asked for here.",
                "Start each step from an empty gradient.",
            ),
        ),
    },
    dims=(2,),
)

EXERCISES = {"join": JOIN, "propagate": PROPAGATE, "vote": VOTE, "weak": WEAK, "fit": FIT}
