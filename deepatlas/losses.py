"""Losses: tensors in, one number out, smaller is better. Always computed in float32 (or float64),
whatever comes in.

Half precision and TF32 make differences of large numbers, such as a variance, wrong or negative;
nothing here multiplies matrices or convolves, and sums run on centred values.

LNCC, bending energy and Dice bring their own gradient, in less time and much less memory than
autograd needs. tests/plain.py has the same losses as a textbook writes them, and
tests/test_losses.py compares values and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import as_labels
from .recompute import again, is_sparing

EPSILON = 1e-6  # of an image's largest magnitude: what varies less is rounding noise
BLACK = 1e-32  # an image of smaller magnitudes counts as black: its gradient would overflow
FAINT = 0.01  # of an image's variance: a window that varies less counts as flat
AT_ONCE = 4  # structures warped together where memory is spared
# Numbers in a slab, few enough for the cache of a core. On a GPU each slab would cost launches.
SLAB = {"cpu": 2**18}


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(
            f"two images of one shape were wanted, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return _exact(a), _exact(b)


class _WithGradients(torch.autograd.Function):
    """A number that comes with its gradients: ``formula(*tensors, needed)`` returns both.

    Of all the tensors on the way only the gradients are kept until ``backward``.
    """

    @staticmethod
    def forward(ctx: Any, formula: Callable, *tensors: Tensor) -> Tensor:
        value, gradients = formula(*tensors, ctx.needs_input_grad[1:])
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor | None, ...]:
        """Each gradient, times that by the value."""
        _refuse_second_gradient()
        gradients = (None if g is None else by_value * g for g in ctx.saved_tensors)
        return None, *gradients


def _refuse_second_gradient() -> None:
    """In a backward pass that is itself to be differentiated, gradients are enabled."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this loss brings its own gradient, which has none in turn: "
            "take it without create_graph"
        )


def _slabs(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Views of ``x``, cut across ``axis`` into pieces that a processor's cache holds."""
    return x.split(_thickness(x, axis), axis)


def _thickness(x: Tensor, axis: int) -> int:
    if x.device.type not in SLAB:
        return max(1, x.shape[axis])
    of_one = x.numel() // max(1, x.shape[axis])
    return max(1, SLAB[x.device.type] // max(1, of_one))


# --- similarity of images -------------------------------------------------------------------------


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a - b)^2 over all voxels of two (B, C, I, J, K): blames every difference of
    contrast. Infinite where differences are so large that float32 cannot hold their squares, 1e19.
    """
    a, b = _same_shape(a, b)
    return (a - b).square().mean()


def _centred(x: Tensor) -> Tensor:
    """(B, C, I, J, K) minus its mean over voxels, in units of its largest magnitude.

    In these units squares neither overflow nor vanish, whatever the scanner's intensities are. No
    gradient flows through the unit: a correlation does not depend on it.
    """
    voxels = tuple(range(2, x.ndim))
    largest = x.detach().abs().amax(voxels, keepdim=True)
    unit = torch.where(largest > BLACK, largest, 1.0)  # of a black image any will do
    x = x / unit
    return x - x.mean(voxels, keepdim=True)


def ncc(a: Tensor, b: Tensor) -> Tensor:
    """1 - NCC, the normalised cross-correlation over each whole image (Pearson's r), in [0, 2]: L_i
    of the paper.

    NCC = sum (a - mean a)(b - mean b) / (|a - mean a| |b - mean b|), for (B, C, I, J, K), averaged
    over B and C; 0 for an image that is constant.

    >>> image = torch.rand(1, 1, 8, 8)
    >>> ncc(image, 10 * image + 3).item() < 1e-5  # brightness and contrast do not count
    True
    >>> round(ncc(image, -image).item(), 4)  # inverted contrast does
    2.0
    """
    a, b = _same_shape(a, b)
    a, b = _centred(a).flatten(2), _centred(b).flatten(2)
    sd_a = (a.square().mean(-1) + EPSILON**2).sqrt()
    sd_b = (b.square().mean(-1) + EPSILON**2).sqrt()
    return 1 - ((a * b).mean(-1) / (sd_a * sd_b)).mean()


def lncc(a: Tensor, b: Tensor, window: int = 9) -> Tensor:
    """1 - the mean of NCC^2 over windows of ``window`` voxels a side (odd), each centred on a
    voxel, in [0, 1].

    In a window, NCC = (|cov(a, b)| + s_a s_b) / sqrt((var a + s_a^2)(var b + s_b^2)): as if both
    had one faint texture in common, whose variance s^2 is ``FAINT`` times that of the whole image.
    So two flat windows agree, a flat one and one with an edge do not, and the noise of a background
    hardly counts. Inverted contrast counts as agreement, as in VoxelMorph: an image has no distance
    from itself, nor from a multiple of itself, be it negative.

    At the border a window is what lies inside the image. A window of twice the side costs one
    addition an axis more.

    >>> image = torch.rand(1, 1, 16, 16)
    >>> lncc(image, -3 * image).item() < 1e-5
    True
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of at least 3 voxels, got {window}")
    a, b = _same_shape(a, b)
    formula = partial(_mean_squared_ncc, window=window)
    return 1 - _WithGradients.apply(formula, _centred(a), _centred(b))


def _squared_ncc(means: Tensor, textures: Tensor) -> Tensor:
    """NCC^2 of each window, from its means of a^2, a, a b, b, b^2, and from s_a^2, s_b^2."""
    mean_aa, mean_a, mean_ab, mean_b, mean_bb = means
    texture_a, texture_b = textures
    covariance = (mean_ab - mean_a * mean_b).abs() + (texture_a * texture_b).sqrt()
    variance_a = (mean_aa - mean_a**2).clamp(min=0) + texture_a
    variance_b = (mean_bb - mean_b**2).clamp(min=0) + texture_b
    return (covariance**2 / (variance_a * variance_b)).clamp(max=1)


def _mean_squared_ncc(
    a: Tensor, b: Tensor, needed: tuple[bool, bool], window: int
) -> tuple[Tensor, list[Tensor | None]]:
    """The mean of NCC^2 over all windows, and its gradients by the centred a and b.

    Autograd differentiates ``_squared_ncc``, slab by slab, and the gradient by each mean takes its
    place. Only the steps from the voxels to the means, and back, are by hand.
    """
    means = torch.stack([a * a, a, a * b, b, b * b])
    # s^2 of a and of b: FAINT times the variance of each image
    variances = means[::4].mean(tuple(range(3, means.ndim)), keepdim=True)
    textures = FAINT * variances + EPSILON**2
    _window_means_(means, window)

    total = a.new_zeros(())
    by_textures = torch.zeros_like(textures)
    for slab in _slabs(means, 3):
        with torch.enable_grad():
            leaves = [slab.detach().requires_grad_(), textures.detach().requires_grad_()]
            part = _squared_ncc(*leaves).sum() / a.numel()
        total += part.detach()
        if any(needed):
            by_slab, by_textures_here = torch.autograd.grad(part, leaves)
            slab.copy_(by_slab)
            by_textures += by_textures_here

    if not any(needed):
        return total, [None, None]

    # an image that needs no gradient has no use for those by the means of it alone
    used = means[0 if needed[0] else 2 : 5 if needed[1] else 3]
    _window_means_(used, window, transposed=True)
    by_aa, by_a, by_ab, by_b, by_bb = means
    if needed[0]:
        by_aa += by_textures[0] * FAINT / a[0, 0].numel()
        by_a.addcmul_(by_aa, a, value=2).addcmul_(by_ab, b)
    if needed[1]:
        by_bb += by_textures[1] * FAINT / b[0, 0].numel()
        by_b.addcmul_(by_bb, b, value=2).addcmul_(by_ab, a)
    # copies, so that the other means go
    return total, [by_a.clone() if needed[0] else None, by_b.clone() if needed[1] else None]


def _window_means_(x: Tensor, window: int, *, transposed: bool = False) -> None:
    """Replace each voxel of ``x`` (N, B, C, I, J, K) by the mean over the window around it.

    ``transposed``: what turns a gradient by those means into one by ``x``. A voxel is in the window
    of another if that is in its own: it is again a sum over windows, of numbers divided before.
    """
    for axis in range(3, x.ndim):
        n = x.shape[axis]
        radius = min(window // 2, n - 1)
        i = torch.arange(n, device=x.device, dtype=x.dtype)
        inside = 1 + i.clamp(max=radius) + i.flip(0).clamp(max=radius)
        share = (1 / inside).view(-1, *[1] * (x.ndim - 1 - axis))
        # along one axis, slabs of another do not mix
        for slab in _slabs(x, 4 if axis == 3 else 3):
            if transposed:
                slab *= share
            sums = _sums_of_runs(_padded(slab, axis, radius), 2 * radius + 1, axis)
            slab.copy_(sums if transposed else sums * share)


def _padded(x: Tensor, axis: int, amount: int) -> Tensor:
    """``x`` with zeros at both ends of ``axis``."""
    return F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [amount, amount])


def _sums_of_runs(x: Tensor, length: int, axis: int) -> Tensor:
    """x[i] + ... + x[i + length - 1] along ``axis``, wherever there are so many.

    Sums of 1, 2, 4, 8, ... numbers, each from two of the sums before: a run of 9 is one of 1 and
    one of 8. Few additions, and none of large sums that are subtracted again.
    """
    runs = x.shape[axis] - length + 1
    total, taken = None, 0
    size = 1
    while 2 * size <= length:
        if length & size:
            part = x.narrow(axis, taken, runs)
            total = part if total is None else total + part
            taken += size
        there = x.shape[axis] - size
        x = x.narrow(axis, 0, there) + x.narrow(axis, size, there)
        size *= 2
    part = x.narrow(axis, taken, runs)  # the longest power of two is in every length
    return part if total is None else total + part


# --- regularity of deformations -------------------------------------------------------------------


def diffusion(u: Tensor) -> Tensor:
    """Mean over voxels of |grad u|^2, squared differences of neighbours summed over axes and
    channels; no unit.
    """
    u = _exact(u)
    of_axes = (_mean_square(u.diff(dim=axis)) for axis in range(2, u.ndim))
    return sum(of_axes, u.new_zeros(()))


def bending_energy(u: Tensor) -> Tensor:
    """Mean over voxels of |Hessian of u|^2 (squared Frobenius norm, summed over channels), in
    1/voxel^2: L_r.

    Compact stencils: u(x+1) - 2 u(x) + u(x-1), and mixed differences over one voxel's square,
    counted twice since the Hessian is symmetric. Central differences over two voxels, taken twice,
    would be blind to checkerboards. Zero for every affine deformation; for a quadratic u (B, D, I,
    J, K) D times MONAI's ``BendingEnergyLoss``, which averages over the D channels. Doubling the
    resolution of the grid divides it by 4: lambda_r belongs to a grid.

    >>> x = torch.arange(6.0)[:, None].expand(6, 6)
    >>> u = torch.stack([x, torch.zeros(6, 6)])[None]
    >>> bending_energy(u)  # a stretch does not bend
    tensor(0.)
    >>> bending_energy(u**2)  # the second derivative of x^2 is 2
    tensor(4.)
    """
    return _WithGradients.apply(_bending_and_gradient, _exact(u))


def _mean_square(x: Tensor) -> Tensor:
    """Mean over voxels of |x|^2, summed over channels; 0 if there is none, as of differences along
    a side that is too short for them.
    """
    return x.square().sum(1).mean() if x.numel() else x.sum()


# Where a second difference takes its numbers: steps along its two axes, and the factor there.
_ALONG_ONE_AXIS = (((0, 0), 1), ((1, 0), -2), ((2, 0), 1))
_ALONG_TWO_AXES = (((0, 0), 1), ((1, 0), -1), ((0, 1), -1), ((1, 1), 1))


def _bending_and_gradient(u: Tensor, needed: tuple[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The bending energy and its gradient, slab by slab: |D u|^2 has the gradient 2 D^T D u, where
    D^T adds a difference back to the voxels it was taken from, with the same factors.
    """
    energy = u.new_zeros(())
    gradient = torch.zeros_like(u) if needed[0] else None
    thick = _thickness(u, 2)
    for start in range(0, u.shape[2], thick):
        for i, j in combinations_with_replacement(range(2, u.ndim), 2):
            reach = (i, j).count(2)  # a difference starts in this slab, and may end beyond it
            here = slice(start, start + thick + reach)
            d = u[:, :, here].diff(dim=i).diff(dim=j)
            if d.numel() == 0:
                continue
            weight = (1 if i == j else 2) / _count_of_differences(u, i, j)
            if gradient is not None:
                for (along_i, along_j), factor in _ALONG_ONE_AXIS if i == j else _ALONG_TWO_AXES:
                    source = gradient[:, :, here].narrow(i, along_i, d.shape[i])
                    source = source.narrow(j, along_j, d.shape[j])
                    source.add_(d, alpha=2 * weight * factor)
            energy += weight * d.square_().sum()
    return energy, [gradient]


def _count_of_differences(u: Tensor, i: int, j: int) -> int:
    """How many second differences along axes i and j there are, in all of the batch."""
    sides = list(u.shape)
    sides[i] -= 1
    sides[j] -= 1
    return math.prod(sides) // u.shape[1]


# --- overlap of structures ------------------------------------------------------------------------


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - Dice, Dice = (2 sum(p q) + 1) / (sum p + sum q + 1) over voxels, averaged over structures
    and batch: L_a and L_sp.

    ``probabilities`` (B, C, I, J, K) against probabilities or one-hot labels of the same shape, or
    integer labels (B, I, J, K). Background counts as a structure. No softmax is ever 0: the voxel
    that is added above and below makes agreement of a structure that is nowhere in the target, once
    its probabilities sum to much less than one voxel.

    >>> labels = torch.tensor([[[0, 0, 1, 1]]])
    >>> one_hot = F.one_hot(labels, 2).movedim(-1, 1)
    >>> soft_dice(one_hot.float(), labels)
    tensor(0.)
    >>> soft_dice(torch.full((1, 2, 1, 4), 0.5), labels)  # 1 - (2 * 1 + 1) / (2 + 2 + 1)
    tensor(0.4000)
    """
    p = _exact(probabilities).flatten(2)
    without_structures = probabilities.shape[:1] + probabilities.shape[2:]
    if target.shape == probabilities.shape:
        q = _exact(target).flatten(2)
        overlap, size = _Sums.apply(p, q)
    elif target.shape == without_structures and not target.is_floating_point():
        index = as_labels(target).flatten(1).long()
        overlap, size = _SumsOfLabels.apply(p, index, target.shape[1])
    else:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} want a target of that shape, or integer "
            f"labels without the axis of structures, got {tuple(target.shape)} of {target.dtype}"
        )
    return _one_minus_dice(overlap, size)


def warped_dice(warp: Callable[[Tensor], Tensor], probabilities: Tensor, target: Tensor) -> Tensor:
    """``soft_dice(warp(probabilities), target)``, both (B, C, I, J, K).

    Where memory is spared, a few structures at a time, which are warped again in the backward pass:
    of as many as the paper's 32 the warped ones are never all there.
    """
    if not is_sparing():
        return soft_dice(warp(probabilities), target)

    def sums(some: Tensor, their_target: Tensor) -> tuple[Tensor, Tensor]:
        p, q = _exact(warp(some)), _exact(their_target)
        return _Sums.apply(p.flatten(2), q.flatten(2))

    overlaps = []
    sizes = []
    parts = zip(probabilities.split(AT_ONCE, 1), target.split(AT_ONCE, 1), strict=True)
    for some, their_target in parts:
        overlap, size = again(sums, some, their_target)
        overlaps.append(overlap)
        sizes.append(size)
    return _one_minus_dice(torch.cat(overlaps, 1), torch.cat(sizes, 1))


def softmax_dice(scores: Tensor, labels: Tensor) -> Tensor:
    """``soft_dice(scores.softmax(1), labels)`` of a network's scores (B, C, I, J, K) and integer
    labels (B, I, J, K), in a third of the memory.

    Its gradient can be taken once only: ``retain_graph`` is in vain.
    """
    if labels.shape != scores.shape[:1] + scores.shape[2:]:
        raise ValueError(
            f"scores {tuple(scores.shape)} want integer labels without the axis of structures, "
            f"got {tuple(labels.shape)} of {labels.dtype}"
        )
    index = as_labels(labels).flatten(1).long()
    overlap, size = _SumsOfSoftmax.apply(scores.flatten(2), index, labels.shape[1])
    return _one_minus_dice(overlap, size)


def cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """-mean over voxels of sum_c q_c log p_c, with p the softmax of a network's scores (B, C, I, J,
    K), and q the integer labels (B, I, J, K) or probabilities (B, C, I, J, K).

    In nats, and never in half precision. A voxel outside the scan that was warped has q = 0, and
    counts nothing. Where Dice has lost a structure its gradient vanishes, since p is 0 there; that
    of this one, p - q by the scores, does not.

    >>> labels = torch.tensor([[[0, 0, 1, 1]]])
    >>> cross_entropy(torch.zeros(1, 2, 1, 4), labels)  # -log 1/2: two structures, and no idea
    tensor(0.6931)
    """
    if target.ndim < scores.ndim:
        target = as_labels(target).long()
    return F.cross_entropy(_exact(scores), target)


def _one_minus_dice(overlap: Tensor, size: Tensor) -> Tensor:
    """1 - Dice from sum(p q) and sum p + sum q, both (B, C)."""
    return 1 - ((2 * overlap + 1) / (size + 1)).mean()


# The two sums that Dice is made of, for p and q (B, C, voxels). By p, the one has the gradient q
# and the other 1: the gradient of both is written in one go, where autograd would make a tensor for
# each and add them up.


class _Sums(torch.autograd.Function):
    """sum(p q) and sum p + sum q, over voxels."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(p, q)
        return (p * q).sum(-1), p.sum(-1) + q.sum(-1)

    @staticmethod
    def backward(
        ctx: Any, by_overlap: Tensor, by_size: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """By p: by_overlap q + by_size; by q likewise."""
        _refuse_second_gradient()
        p, q = ctx.saved_tensors
        by_overlap, by_size = by_overlap[..., None], by_size[..., None]
        of_p = (by_overlap * q).add_(by_size) if ctx.needs_input_grad[0] else None
        of_q = (by_overlap * p).add_(by_size) if ctx.needs_input_grad[1] else None
        return of_p, of_q


class _SumsOfLabels(torch.autograd.Function):
    """The same, where q is the one-hot tensor of labels (B, voxels), which is never made."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, labels: Tensor, planes: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(labels)
        return _overlap_and_size(p, labels, planes)

    @staticmethod
    def backward(ctx: Any, by_overlap: Tensor, by_size: Tensor) -> tuple[Tensor, None, None]:
        """By p alone: labels have no gradient."""
        _refuse_second_gradient()
        (labels,) = ctx.saved_tensors
        return _by_probabilities(by_overlap, by_size, labels), None, None


class _SumsOfSoftmax(torch.autograd.Function):
    """The same, where moreover p is the softmax of scores.

    The gradient takes the place of p, so ``backward`` works once: autograd refuses a second time.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor, planes: int) -> tuple[Tensor, Tensor]:
        p = scores.softmax(1, dtype=torch.promote_types(scores.dtype, torch.float32))
        ctx.save_for_backward(p, labels)
        return _overlap_and_size(p, labels, planes)

    @staticmethod
    def backward(ctx: Any, by_overlap: Tensor, by_size: Tensor) -> tuple[Tensor, None, None]:
        """By the scores, in place of p."""
        _refuse_second_gradient()
        p, labels = ctx.saved_tensors
        by_size = by_size[..., None]
        own = p.gather(1, labels[:, None]) * by_overlap.gather(1, labels)[:, None]
        # The gradient g by p is by_size, and by_overlap more in a voxel's own structure; the one by
        # the scores is p (g - sum of p g).
        for p_part, own_part in zip(_slabs(p, 2), own.split(_thickness(p, 2), 2), strict=True):
            expected = (p_part * by_size).sum(1, keepdim=True) + own_part
            p_part *= by_size - expected
        return p.scatter_add_(1, labels[:, None], own), None, None


def _by_probabilities(by_overlap: Tensor, by_size: Tensor, labels: Tensor) -> Tensor:
    """(B, C, voxels): ``by_size``, and ``by_overlap`` more where a voxel is of that structure."""
    gradient = by_size[..., None].repeat(1, 1, labels.shape[1])
    own = by_overlap.gather(1, labels)
    return gradient.scatter_add_(1, labels[:, None], own[:, None])


def _overlap_and_size(p: Tensor, labels: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    """(B, C) each: of each structure sum(p q), which is p over its voxels, and sum p + sum q.

    Plane by plane, then over the planes: added up one by one, float32 stops at 16.8 million.
    """
    own = p.gather(1, labels[:, None])
    own, labels = own.view(len(p), planes, -1), labels.view(len(p), planes, -1)
    zeros = p.new_zeros(len(p), planes, p.shape[1])
    overlap = zeros.scatter_add(2, labels, own).sum(1)
    size = zeros.scatter_add(2, labels, torch.ones_like(own)).sum(1)
    return overlap, p.sum(-1) + size
