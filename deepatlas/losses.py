"""Losses: tensors in, one number out, smaller is better. Always computed in float32 (or float64),
whatever comes in.

Half precision and TF32 make differences of large numbers, such as a variance, wrong or negative;
nothing here multiplies matrices or convolves, and sums run on centred values.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import as_labels

EPSILON = 1e-6  # of an image's largest magnitude: what varies less is rounding noise
FAINT = 0.01  # of an image's variance: a window that varies less counts as flat


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(
            f"two images of one shape were wanted, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return _exact(a), _exact(b)


# --- similarity of images -------------------------------------------------------------------------


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a - b)^2 over all voxels of two (B, C, I, J, K): blames every difference of
    contrast.
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
    unit = torch.where(largest > 1e-30, largest, 1.0)  # of a black image any will do
    x = x / unit
    return x - x.mean(voxels, keepdim=True)


def ncc(a: Tensor, b: Tensor) -> Tensor:
    """1 - NCC, the normalised cross-correlation over each whole image (Pearson's r), in [0, 2]: L_i
    of the paper.

    NCC = sum (a - mean a)(b - mean b) / (|a - mean a| |b - mean b|), for (B, C, I, J, K), averaged
    over B and C; 0 for an image that is constant.
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

    At the border a window is what lies inside the image. Computed by running sums, at a cost that
    does not depend on ``window``.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of at least 3 voxels, got {window}")
    a, b = _same_shape(a, b)
    a, b = _centred(a), _centred(b)
    count = _window_sums(torch.ones_like(a[:1, :1]), window)

    def window_mean(x: Tensor) -> Tensor:
        return _window_sums(x, window) / count

    aa, bb, ab = a * a, b * b, a * b
    mean_a, mean_b = window_mean(a), window_mean(b)
    mean_aa, mean_bb, mean_ab = window_mean(aa), window_mean(bb), window_mean(ab)
    texture_a, texture_b = _faint_variance(aa), _faint_variance(bb)
    covariance = (mean_ab - mean_a * mean_b).abs() + (texture_a * texture_b).sqrt()
    variance_a = (mean_aa - mean_a**2).clamp(min=0) + texture_a
    variance_b = (mean_bb - mean_b**2).clamp(min=0) + texture_b
    return 1 - (covariance**2 / (variance_a * variance_b)).clamp(max=1).mean()


def _faint_variance(squares: Tensor) -> Tensor:
    """s^2 of each image (B, C, 1, 1, 1), from the squares of its centred voxels."""
    variance = squares.mean(tuple(range(2, squares.ndim)), keepdim=True)
    return FAINT * variance + EPSILON**2


def _window_sums(x: Tensor, window: int) -> Tensor:
    """Sum over the window around each voxel, axis by axis: running[i + r] - running[i - r - 1]."""
    radius = window // 2
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        running = x.cumsum(axis)
        upper = torch.arange(n, device=x.device).add(radius).clamp(max=n - 1)
        total = running.index_select(axis, upper)
        if n > radius + 1:
            lower = running.narrow(axis, 0, n - radius - 1)
            total = total - F.pad(lower, _front(x.ndim, axis, radius + 1))
        x = total
    return x


def _front(ndim: int, axis: int, amount: int) -> list[int]:
    """Padding for ``F.pad``: ``amount`` zeros in front along ``axis``."""
    pads = [0] * (2 * (ndim - axis))
    pads[-2] = amount
    return pads


# --- regularity of deformations -------------------------------------------------------------------


def diffusion(u: Tensor) -> Tensor:
    """Mean over voxels of |grad u|^2, squared differences of neighbours summed over axes and
    channels; no unit.
    """
    u = _exact(u)
    return sum(_mean_square(u.diff(dim=axis)) for axis in range(2, u.ndim))


def bending_energy(u: Tensor) -> Tensor:
    """Mean over voxels of |Hessian of u|^2 (squared Frobenius norm, summed over channels), in
    1/voxel^2: L_r.

    Compact stencils: u(x+1) - 2 u(x) + u(x-1), and mixed differences over one voxel's square,
    counted twice since the Hessian is symmetric. Central differences over two voxels, taken twice,
    would be blind to checkerboards. Zero for every affine deformation; for a quadratic u (B, D, I,
    J, K) D times MONAI's ``BendingEnergyLoss``, which averages over the D channels. Doubling the
    resolution of the grid divides it by 4: lambda_r belongs to a grid.
    """
    u = _exact(u)
    axes = range(2, u.ndim)
    pure = sum(_mean_square(u.diff(n=2, dim=i)) for i in axes)
    mixed = sum(2 * _mean_square(u.diff(dim=i).diff(dim=j)) for i, j in combinations(axes, 2))
    return pure + mixed


def _mean_square(x: Tensor) -> Tensor:
    """Mean over voxels of |x|^2, summed over channels; 0 if there is none, as of differences along
    a side that is too short for them.
    """
    return x.square().sum(1).mean() if x.numel() else x.sum()


# --- overlap of structures ------------------------------------------------------------------------


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - Dice, Dice = (2 sum(p q) + 1) / (sum p + sum q + 1) over voxels, averaged over structures
    and batch: L_a and L_sp.

    ``probabilities`` (B, C, I, J, K) against probabilities or one-hot labels of the same shape, or
    integer labels (B, I, J, K). Background counts as a structure. No softmax is ever 0: the voxel
    that is added above and below makes agreement of a structure that is nowhere in the target, once
    its probabilities sum to much less than one voxel.
    """
    p = _exact(probabilities).flatten(2)
    without_structures = probabilities.shape[:1] + probabilities.shape[2:]
    if target.shape == probabilities.shape:
        q = _exact(target).flatten(2)
        overlap = (p * q).sum(-1)
        size = q.sum(-1)
    elif target.shape == without_structures and not target.is_floating_point():
        # gather the one probability that counts; no one-hot tensor is made
        index = as_labels(target).flatten(1).long()
        own = p.gather(1, index[:, None])[:, 0]
        overlap = _sums_of(own, index, target.shape, p.shape[1])
        size = _sums_of(torch.ones_like(own), index, target.shape, p.shape[1])
    else:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} want a target of that shape, or integer "
            f"labels without the axis of structures, got {tuple(target.shape)} of {target.dtype}"
        )
    dice = (2 * overlap + 1) / (p.sum(-1) + size + 1)
    return 1 - dice.mean()


def _sums_of(values: Tensor, index: Tensor, shape: torch.Size, structures: int) -> Tensor:
    """(B, C): the sum of ``values`` (B, voxels) over the voxels of each structure.

    Plane by plane, then over the planes: added up one by one, float32 stops at 16.8 million.
    """
    b, planes = shape[:2]
    values, index = values.view(b, planes, -1), index.view(b, planes, -1)
    of_plane = values.new_zeros(b, planes, structures).scatter_add(2, index, values)
    return of_plane.sum(1)
