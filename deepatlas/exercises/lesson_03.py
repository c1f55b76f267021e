"""Lesson 03, baselines: levels of a U-Net, one translation, labels carried along, votes, whose
labels count, a step that learns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..warp import Deformation, voxel_grid
from . import Exercise
from .lesson_02 import looked_up, smooth_field, uneven_shape

# --- a level of the U-Net -------------------------------------------------------------------------


def _two_levels(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Features of a coarse level and of the one that it was made of, with odd sides among them."""
    half = (4, 3, 5)[:dims]
    whole = (7, 6, 9)[:dims]
    coarse = torch.randn(2, 3, *half, generator=generator)
    skip = torch.randn(2, 2, *whole, generator=generator)
    return coarse, skip


def _twice(x: Tensor, *, corners: bool = False, mode: str = "") -> Tensor:
    """Twice as fine, by linear interpolation."""
    mode = mode or ("bilinear" if x.ndim == 4 else "trilinear")
    options = {} if mode == "nearest" else {"align_corners": corners}
    return F.interpolate(x, scale_factor=2, mode=mode, **options)


def _beside(finer: Tensor, skip: Tensor, *, behind: bool = True) -> Tensor:
    """Both as channels; what ``finer`` has too much is cut off behind, or in front."""
    keep = [slice(n) if behind else slice(-n, None) for n in skip.shape[2:]]
    return torch.cat([finer[..., *keep], skip], 1)


def _join(coarse: Tensor, skip: Tensor) -> Tensor:
    return _beside(_twice(coarse), skip)


JOIN = Exercise(
    "Joining two levels of a U-Net",
    arguments=_two_levels,
    right=_join,
    hints=(
        "First make the coarse features twice as fine; cut off what is then beyond the skip's last "
        "voxels; then put both side by side as channels.",
        "F.interpolate(coarse, scale_factor=2, mode='bilinear') ('trilinear' in 3D), a slice for "
        "each axis of voxels, and torch.cat along the channels.",
        "finer = F.interpolate(...); cut = [slice(n) for n in skip.shape[2:]]; "
        "torch.cat([finer[..., *cut], skip], dim=1)",
    ),
    gradient=True,
)


@JOIN.mistake(
    "not cut",
    symptom="It stops where a side of the skip is odd.",
    idea="Of 7 voxels 4 coarse ones are made, and of these 8: the last one covers nothing of the "
    "image.",
    line="finer[..., *[slice(n) for n in skip.shape[2:]]]",
)
def _not_cut(coarse, skip):
    return torch.cat([_twice(coarse), skip], 1)


@JOIN.mistake(
    "stretched to size",
    symptom="The shape is right, but the coarse features are squeezed wherever a side is odd.",
    idea="With size=skip.shape[2:] all of 4 coarse voxels are spread over 7 fine ones, 1.75 for "
    "each. They were made of two each, and no longer lie on these.",
    line="scale_factor=2, and cut off what is too much.",
)
def _stretched(coarse, skip):
    mode = "bilinear" if coarse.ndim == 4 else "trilinear"
    return torch.cat([F.interpolate(coarse, size=skip.shape[2:], mode=mode), skip], 1)


@JOIN.mistake(
    "cut in front",
    symptom="The shape is right, but the coarse features are moved by a voxel where a side is odd.",
    idea="The first coarse voxel was made of the first two fine ones. It is at the end that one "
    "is too many.",
    line="slice(n), which ends at n, instead of slice(-n, None)",
)
def _cut_in_front(coarse, skip):
    return _beside(_twice(coarse), skip, behind=False)


@JOIN.mistake(
    "skip first",
    symptom="The shape is right, the order of the channels is not.",
    idea="The next convolution knows its inputs by their place: what came from below comes first.",
    line="torch.cat([upsampled, skip], dim=1)",
)
def _skip_first(coarse, skip):
    both = _join(coarse, skip)
    return torch.cat([skip, both[:, : coarse.shape[1]]], 1)


@JOIN.mistake(
    "nearest",
    symptom="The upsampled half of the result consists of small squares.",
    idea="The default of F.interpolate repeats each value. Linear interpolation was asked for.",
    line="mode='bilinear', or 'trilinear' in 3D",
)
def _repeated(coarse, skip):
    return _beside(_twice(coarse, mode="nearest"), skip)


@JOIN.mistake(
    "corners",
    symptom="The upsampled half is slightly stretched.",
    idea="With align_corners=True the first and last voxel centres are kept; a level that was "
    "made by halving covers the same area with larger voxels.",
    line="Leave align_corners at False.",
)
def _corners(coarse, skip):
    return _beside(_twice(coarse, corners=True), skip)


@JOIN.mistake(
    "bilinear in 3D",
    symptom="It works in 2D and stops in 3D.",
    idea="Linear interpolation has a name for each number of axes: 'bilinear' for images, "
    "'trilinear' for volumes.",
    line="mode = 'bilinear' if coarse.ndim == 4 else 'trilinear'",
)
def _bilinear_in_3d(coarse, skip):
    return _beside(_twice(coarse, mode="bilinear"), skip)


@JOIN.mistake(
    "skip alone",
    symptom="What the coarse level found out is lost.",
    idea="The fine level knows where, the coarse level knows what: the decoder needs both.",
    line="Concatenate both along the channels.",
)
def _skip_alone(coarse, skip):
    return skip


# --- one translation ------------------------------------------------------------------------------

STEPS = 20  # of gradient descent


def _spot(shape: tuple[int, ...], centre: Tensor) -> Tensor:
    """A bright spot (1, 1, I, J, K) around ``centre``, in voxels, a voxel and a half wide, of which
    nothing reaches the border.
    """
    distances = voxel_grid(shape, centre) - centre.view(-1, *[1] * len(shape))
    return torch.exp(-distances.square().sum(0) / (2 * 1.5**2))[None, None]


def _two_spots(dims: int, generator: Generator) -> tuple[Tensor, Tensor, float]:
    """(moving, fixed, rate): the same spot in two places, by up to a voxel and a half apart along
    each axis and never by the same along two; a rate that halves the way left with every step, or
    so.
    """
    shape = (14, 12, 13)[:dims]
    middle = torch.tensor([(n - 1) / 2 for n in shape])
    ways = torch.tensor([0.5, 1.4, 0.9])[torch.randperm(3, generator=generator)][:dims]
    ways = ways * (1 - 2 * torch.randint(0, 2, (dims,), generator=generator))
    centre = middle + torch.rand(dims, generator=generator) - 0.5
    moving = _spot(shape, centre + ways)
    fixed = _shifted(moving, ways)
    # the curvature of the loss at its goal, along an axis
    curvature = 2 * moving.diff(dim=2).square().sum() / moving.numel()
    return moving, fixed, round(0.5 / curvature.item(), 1)


def _shifted(moving: Tensor, t: Tensor) -> Tensor:
    """``moving`` looked up at x + t for every voxel x."""
    u = t.view(1, -1, *[1] * (moving.ndim - 2)).expand(1, -1, *moving.shape[2:])
    return Deformation(u).warp(moving)


def _found(
    moving: Tensor,
    fixed: Tensor,
    rate: float,
    *,
    steps: int = STEPS,
    added_up: bool = False,
) -> Tensor:
    """``steps`` steps of gradient descent on t (D,), from 0; ``rate`` below 0 leads uphill,
    ``added_up`` follows the sum of all gradients so far.
    """
    t = torch.zeros(moving.ndim - 2)
    direction = torch.zeros_like(t)
    for _ in range(steps):
        t.requires_grad_()
        loss = (_shifted(moving, t) - fixed).square().mean()
        (gradient,) = torch.autograd.grad(loss, t)
        direction = gradient + direction if added_up else gradient
        t = t.detach() - rate * direction
    return t


TRANSLATION = Exercise(
    "Gradient descent on one translation",
    arguments=_two_spots,
    right=_found,
    hints=(
        "Begin with t = torch.zeros(D, requires_grad=True). In every step: shift moving by t, "
        "compare, and move t a little downhill.",
        "A shift by t is a displacement that is t at every voxel: u = t.view(1, -1, 1, 1)"
        ".expand(1, D, I, J) (in 3D one more). The loss is (Deformation(u).warp(moving) - fixed)"
        ".square().mean(); loss.backward() fills t.grad.",
        "20 times: loss.backward(); then t -= rate * t.grad under torch.no_grad(); then "
        "t.grad = None. At the end t.detach().",
    ),
    tolerance=0.02,  # voxels: with another optimiser one may stop elsewhere
)


@TRANSLATION.mistake(
    "gradients add up",
    symptom="The spot swings past its goal, and back, and past it again.",
    idea="loss.backward() ADDS to t.grad. Each step then follows all earlier gradients once more: "
    "a pendulum without friction.",
    line="t.grad = None in every step, after t was moved (with an optimiser: "
    "optimiser.zero_grad()).",
)
def _never_erased(moving, fixed, rate):
    return _found(moving, fixed, rate, added_up=True)


@TRANSLATION.mistake(
    "uphill",
    symptom="The spot moves away from its goal, and is lost.",
    idea="The gradient points to where the loss grows.",
    line="t -= rate * t.grad",
)
def _away(moving, fixed, rate):
    return _found(moving, fixed, -rate)


@TRANSLATION.mistake(
    "pushed",
    symptom="It is the right way, with the wrong sign.",
    idea="t is asked for such that moving, LOOKED UP at x + t, is fixed. You have the way on which "
    "the spot is to be pushed, or have exchanged moving and fixed.",
    line="warp moving by + t, and compare with fixed.",
)
def _the_way_of_the_spot(moving, fixed, rate):
    return -_found(moving, fixed, rate)


@TRANSLATION.mistake(
    "axes reversed",
    symptom="You have the right numbers in the reversed order.",
    idea="Component c of a displacement moves along axis c of the image. grid_sample and "
    "affine_grid begin with the last axis instead.",
    line="Use Deformation, or t.flip(0) if you call grid_sample yourself.",
)
def _axes_reversed(moving, fixed, rate):
    return _found(moving, fixed, rate).flip(0)


@TRANSLATION.mistake(
    "from -1 to 1",
    symptom="Your numbers are far too small, by another factor along each axis.",
    idea="You have found it in the units of grid_sample, in which an axis is 2 long. Asked for are "
    "voxels, of which it has n - 1.",
    line="Multiply by (n - 1) / 2 along each axis.",
)
def _from_minus_one_to_one(moving, fixed, rate):
    return 2 * _found(moving, fixed, rate) / (torch.tensor(moving.shape[2:]) - 1)


@TRANSLATION.mistake(
    "from -1 to 1, reversed",
    symptom="Your numbers are far too small, and in the reversed order.",
    idea="Those are the units and the order of grid_sample: an axis is 2 long, and the last one "
    "comes first. Asked for are voxels, the first axis first.",
    line="Multiply by (n - 1) / 2 along each axis, and reverse; or use Deformation.",
)
def _as_grid_sample_has_it(moving, fixed, rate):
    return _from_minus_one_to_one(moving, fixed, rate).flip(0)


@TRANSLATION.mistake(
    "never moved",
    symptom="t is 0 at the end, as it was at the beginning. Print t.grad right after "
    "loss.backward(): is it 0 there, or not?",
    idea="If it is 0, look at the shape of u: t.view(1, D, 1, 1) alone is a grid of ONE voxel, the "
    "first one, and the difference from fixed broadcasts what is seen there without a word. u "
    "needs a step for every voxel. If it is not 0, your step does not reach t: the gradient was "
    "erased first, or something else was moved.",
    line="u = t.view(1, D, 1, 1).expand(1, D, *moving.shape[2:]) (in 3D one more 1); then "
    "loss.backward(), then t -= rate * t.grad (under torch.no_grad()), then t.grad = None.",
)
def _never_moved(moving, fixed, rate):
    return torch.zeros(moving.ndim - 2)


@TRANSLATION.mistake(
    "a result instead of the leaf",
    symptom="The first step is right, and in the second one t.grad is None.",
    idea="t = t - ... makes a NEW tensor, the result of a subtraction. loss.backward() fills .grad "
    "of what you began with (a leaf), not of results.",
    line="with torch.no_grad(): t -= rate * t.grad, which changes t in place.",
)
def _result_instead_of_the_leaf(moving, fixed, rate):
    t = torch.zeros(moving.ndim - 2, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch has its doubts, too
        for _ in range(2):
            (_shifted(moving, t) - fixed).square().mean().backward()
            t = t - rate * t.grad
    return t


@TRANSLATION.mistake(
    "a constant instead of the leaf",
    symptom="The first step is right, and in the second one loss.backward() finds nothing that "
    "wants a gradient.",
    idea="t = t - ... makes a NEW tensor, and under torch.no_grad(), or with .detach(), one that "
    "asks for no gradient.",
    line="with torch.no_grad(): t -= rate * t.grad, which changes t in place; or "
    "t.requires_grad_() after each step.",
)
def _constant_instead_of_the_leaf(moving, fixed, rate):
    t = torch.zeros(moving.ndim - 2, requires_grad=True)
    for _ in range(2):
        (_shifted(moving, t) - fixed).square().mean().backward()
        t = (t - rate * t.grad).detach()
    return t


@TRANSLATION.mistake(
    "in place, watched",
    symptom="It stops at the first step: PyTorch will not let you change t in place.",
    idea="What is done to t is recorded, for the gradient. A step is no part of the loss, and is "
    "not to be recorded.",
    line="with torch.no_grad(): t -= rate * t.grad",
)
def _in_place_watched(moving, fixed, rate):
    t = torch.zeros(moving.ndim - 2, requires_grad=True)
    (_shifted(moving, t) - fixed).square().mean().backward()
    t -= rate * t.grad
    return t


@TRANSLATION.mistake(
    "one step",
    symptom="The spot has gone a part of its way.",
    idea="A step follows the slope where it begins, and must be short. Then one looks again.",
    line="Put it into a loop of 20 steps.",
)
def _one_step(moving, fixed, rate):
    return _found(moving, fixed, rate, steps=1)


# --- labels carried along -------------------------------------------------------------------------


def _labels_and_field(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    shape = uneven_shape(dims)
    labels = torch.randint(0, 4, shape, generator=generator)
    return labels, smooth_field(shape, 1.5, generator)[0]


def _nearest(points: Tensor) -> Tensor:
    return (points + 0.5).floor()


def _read(labels: Tensor, points: Tensor, rounded: Callable = _nearest) -> Tensor:
    """The labels (I, J, K) at ``points`` (D, I, J, K), by index."""
    where = rounded(points).long()
    index = [axis.clamp(0, n - 1) for axis, n in zip(where, labels.shape, strict=True)]
    return labels[tuple(index)]


def _propagated(labels: Tensor, u: Tensor) -> Tensor:
    return _read(labels, voxel_grid(u.shape[1:], u) + u)


PROPAGATE = Exercise(
    "Labels carried to the nearest voxel",
    arguments=_labels_and_field,
    right=_propagated,
    hints=(
        "Every voxel x of the result reads the label at x + u(x).",
        "Labels are names, not quantities: take the label of the nearest voxel, and of the border "
        "beyond the border.",
        "where = (grid + u + 0.5).floor().long(), clamped to 0 ... n - 1 on each axis; "
        "labels[where[0], where[1], ...]",
    ),
)


@PROPAGATE.mistake(
    "interpolated",
    symptom="Between structures 1 and 3 there appears a rim of structure 2.",
    idea="The mean of two labels is a third structure that has nothing to do with either.",
    line="Round the position, not the label.",
)
def _interpolated(labels, u):
    warped = looked_up(labels[None, None].float(), Deformation(u[None]).points)
    return warped[0, 0].round().long()


@PROPAGATE.mistake(
    "rounded down",
    symptom="Every structure has moved by about half a voxel.",
    idea="Turning a position into an index by .long() or floor cuts off: 2.9 becomes 2.",
    line="(grid + u + 0.5).floor().long()",
)
def _rounded_down(labels, u):
    return _read(labels, voxel_grid(u.shape[1:], u) + u, rounded=torch.floor)


@PROPAGATE.mistake(
    "pushed",
    symptom="The labels move the other way.",
    idea="u says where to LOOK in the moving labels.",
    line="x + u, not x - u",
)
def _pushed(labels, u):
    return _read(labels, voxel_grid(u.shape[1:], u) - u)


@PROPAGATE.mistake(
    "axes exchanged",
    symptom="The labels come from the place mirrored at the diagonal.",
    idea="Channel c of u moves axis c of the tensor. The reversed order belongs to grid_sample "
    "only.",
    line="labels[where[0], where[1], ...]",
)
def _axes_exchanged(labels, u):
    points = voxel_grid(u.shape[1:], u) + u
    return _read(labels, points.flip(0))


@PROPAGATE.mistake(
    "u alone",
    symptom="Nearly everything is read in one corner.",
    idea="u is relative to the voxel's own place.",
    line="Add the coordinates of each voxel.",
)
def _u_alone(labels, u):
    return _read(labels, u)


# --- voting ---------------------------------------------------------------------------------------


def _several(dims: int, generator: Generator) -> tuple[Tensor]:
    """Probabilities of five atlases for four structures, (5, 4, I, J, K): some nearly sure, some
    not.
    """
    scores = 3 * torch.randn(5, 4, *uneven_shape(dims), generator=generator)
    return (scores.softmax(1),)


def _vote(probabilities: Tensor) -> Tensor:
    return probabilities.mean(0).argmax(0)


VOTE = Exercise(
    "A vote of several atlases",
    arguments=_several,
    right=_vote,
    hints=(
        "How probable is structure 0 at this voxel, if every atlas is believed alike? And "
        "structure 1, and so on? The largest wins.",
        "The mean over the atlases is a probability again, (C, I, J[, K]); argmax over its "
        "structures finds the winner.",
        "probabilities.mean(0).argmax(0)",
    ),
)


@VOTE.mistake(
    "whole votes",
    symptom="Where the atlases are unsure, your winner is often another one.",
    idea="Each of your atlases first decides for one structure, and .51 then counts as much as "
    "1: what it knew of the others is lost, and ties appear.",
    line="The mean of the probabilities first, then one argmax.",
)
def _whole_votes(probabilities):
    decided = probabilities.argmax(1)
    return F.one_hot(decided, probabilities.shape[1]).sum(0).argmax(-1)


@VOTE.mistake(
    "mean of labels",
    symptom="Two atlases for 0 and two for 2 elect structure 1, which nobody voted for.",
    idea="Labels are names; their mean means nothing. Probabilities are quantities.",
    line="Average the probabilities, not what argmax makes of them.",
)
def _mean_of_labels(probabilities):
    return probabilities.argmax(1).float().mean(0).round().long()


@VOTE.mistake(
    "the surest",
    symptom="A single atlas decides, wherever it is surer than the others.",
    idea="The maximum over the atlases listens to one of them; a poorly registered atlas is as "
    "sure of itself as a good one.",
    line="mean(0) instead of a maximum over the atlases",
)
def _the_surest(probabilities):
    return probabilities.amax(0).argmax(0)


@VOTE.mistake(
    "median",
    symptom="Where two or three atlases are sure and the others are not, another structure wins.",
    idea="The median asks only for the middle atlas, and how sure the others are counts nothing. "
    "It protects against one outlier; asked for was the mean, which believes all alike.",
    line="mean(0) instead of median(0).values",
)
def _median(probabilities):
    return probabilities.median(0).values.argmax(0)


@VOTE.mistake(
    "product",
    symptom="One atlas that says 0 is enough to rule a structure out.",
    idea="A product treats the atlases as independent witnesses; they share their mistakes, and "
    "each gets a veto.",
    line="mean(0) instead of prod(0), or of a sum of logarithms",
)
def _product(probabilities):
    return probabilities.prod(0).argmax(0)


@VOTE.mistake(
    "atlases for structures",
    symptom="Your result names atlases, not structures.",
    idea="The first axis counts the atlases, the second one the structures: the mean is over "
    "the first.",
    line="probabilities.mean(0), then argmax over what is now the first axis",
)
def _atlases_for_structures(probabilities):
    return probabilities.amax(1).argmax(0)


# --- whose labels count ---------------------------------------------------------------------------


def _pairs(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, is moving known, is fixed known) of three batches of five pairs; in the last of them
    nobody labelled both sides.
    """
    known = torch.tensor([[True, True, False, False, True], [True, False, True, False, True]])
    batches = [known[:, torch.randperm(5, generator=generator)] for _ in range(2)]
    never_both = torch.stack([known[0], ~known[0]])
    moving, fixed = torch.stack([*batches, never_both], 1)
    return torch.rand(3, 5, generator=generator), moving, fixed


def _mean_over(counts: Tensor, dice_loss: Tensor, least: int = 1) -> Tensor:
    """The mean of each batch over the pairs that count; 0 if there is none."""
    return (dice_loss * counts).sum(1) / counts.sum(1).clamp(min=least)


def _weak(dice_loss: Tensor, moving_known: Tensor, fixed_known: Tensor) -> Tensor:
    return _mean_over(moving_known & fixed_known, dice_loss)


WEAK = Exercise(
    "Weak supervision",
    arguments=_pairs,
    right=_weak,
    hints=(
        "The anatomy term needs an expert's labels on both sides of a pair.",
        "Take the mean over the pairs that have them; where a batch has none, 0.",
        "counts = moving_known & fixed_known; (dice_loss * counts).sum(1) / "
        "counts.sum(1).clamp(min=1)",
    ),
    dims=(2,),
    gradient=True,
)


@WEAK.mistake(
    "nothing divided by nothing",
    symptom="A batch without any such pair gives nan, and one nan in a loss ruins every weight of "
    "a network.",
    idea="0 pairs in the sum, 0 in the denominator. With one labelled scan every batch is like "
    "that.",
    line="counts.sum(1).clamp(min=1) in the denominator",
)
def _nothing_divided_by_nothing(dice_loss, moving, fixed):
    return _mean_over(moving & fixed, dice_loss, least=0)


@WEAK.mistake(
    "one mean for all",
    symptom="You return one number where every batch was to have its own.",
    idea="The first axis counts the batches, the second one the pairs of a batch: sums run over "
    "the second.",
    line="sum(1), twice",
)
def _one_mean_for_all(dice_loss, moving, fixed):
    counts = moving & fixed
    return (dice_loss * counts).sum() / counts.sum()


@WEAK.mistake(
    "the sum",
    symptom="Your term grows with the number of labelled pairs.",
    idea="A loss should not depend on how many pairs happen to be labelled in this batch: take "
    "their mean.",
    line="Divide by the number of pairs that count.",
)
def _the_sum(dice_loss, moving, fixed):
    return (dice_loss * (moving & fixed)).sum(1)


@WEAK.mistake(
    "either",
    symptom="More pairs count than should.",
    idea="With labels on one side only there is nothing to compare them with, as long as nobody "
    "guesses.",
    line="& instead of |",
)
def _either(dice_loss, moving, fixed):
    return _mean_over(moving | fixed, dice_loss)


@WEAK.mistake(
    "all pairs in the mean",
    symptom="Your term is too small.",
    idea="A pair without labels is not a pair with a loss of 0: it must not stand in the "
    "denominator.",
    line="Divide by the number of pairs that count.",
)
def _all_pairs_in_the_mean(dice_loss, moving, fixed):
    return (dice_loss * (moving & fixed)).mean(1)


@WEAK.mistake(
    "the moving side",
    symptom="Pairs count whose fixed scan nobody labelled.",
    idea="Labels on both sides are compared: S_m after warping, and S_f.",
    line="moving_known & fixed_known",
)
def _the_moving_side(dice_loss, moving, fixed):
    return _mean_over(moving, dice_loss)


@WEAK.mistake(
    "the fixed side",
    symptom="Pairs count whose moving scan nobody labelled.",
    idea="Labels on both sides are compared: S_m after warping, and S_f.",
    line="moving_known & fixed_known",
)
def _the_fixed_side(dice_loss, moving, fixed):
    return _mean_over(fixed, dice_loss)


# --- a step that learns ---------------------------------------------------------------------------


def _regression(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(20, 3, generator=generator), torch.randn(20, generator=generator)


def _descent(
    x: Tensor,
    y: Tensor,
    *,
    sign: float = -1.0,
    followed: Callable[[Tensor, Tensor], Tensor] = lambda now, before: now,
) -> Tensor:
    """Five steps on the mean squared residual of ``x @ w - y``, along what is ``followed``: a
    function of this step's gradient and of what was followed before.
    """
    w = torch.zeros(x.shape[1], requires_grad=True)
    direction = torch.zeros_like(w)
    for _ in range(5):
        loss = (x @ w - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, w)
        direction = followed(gradient, direction)
        w = (w + sign * 0.1 * direction).detach().requires_grad_()
    return w.detach()


FIT = Exercise(
    "A training loop",
    arguments=_regression,
    right=_descent,
    hints=(
        "Compute the first two steps by hand and compare: which one is the first to differ?",
        "Five steps, the mean of the squares, 0.1 times the gradient of this step and of no other.",
        "In each step: loss.backward(), w -= 0.1 * w.grad, w.grad = None.",
    ),
    dims=(2,),
)


@FIT.mistake(
    "gradients add up",
    symptom="The first step is right, the later ones are too long: w swings beyond its goal.",
    idea="loss.backward() ADDS the new gradient to w.grad; every step then takes all earlier "
    "gradients again.",
    line="w.grad = None (or w.grad.zero_()) in every step, after the update or before backward().",
)
def _gradients_add_up(x, y):
    return _descent(x, y, followed=torch.add)


@FIT.mistake(
    "erased before the step",
    symptom="w never moves.",
    idea="You erase the gradient between backward() and the step, so the step has nothing to "
    "follow.",
    line="Erase before backward(), or after the step.",
)
def _erased_before_the_step(x, y):
    return torch.zeros(x.shape[1])


@FIT.mistake(
    "uphill",
    symptom="The loss rises.",
    idea="The gradient points uphill.",
    line="w -= rate * w.grad",
)
def _uphill(x, y):
    return _descent(x, y, sign=1.0)


@FIT.mistake(
    "mean of the past",
    symptom="It learns, but behind its time.",
    idea="You mix the old gradient with the new one. That is momentum, which was not asked for "
    "here.",
    line="Start each step from an empty gradient.",
)
def _mean_of_the_past(x, y):
    return _descent(x, y, followed=lambda now, before: 0.5 * now + 0.5 * before)


EXERCISES = {
    "join": JOIN,
    "translation": TRANSLATION,
    "weak": WEAK,
    "propagate": PROPAGATE,
    "vote": VOTE,
    "fit": FIT,
}
