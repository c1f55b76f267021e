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

EPSILON = 1e-6


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


def ncc(a: Tensor, b: Tensor) -> Tensor:
    """1 - NCC, the normalised cross-correlation over each whole image (Pearson's r), in [0, 2]: L_i
    of the paper.

    NCC = sum (a - mean a)(b - mean b) / (|a - mean a| |b - mean b|), for (B, C, I, J, K), averaged
    over B and C.
    """
    a, b = _same_shape(a, b)
    a, b = a.flatten(2), b.flatten(2)
    a = a - a.mean(-1, keepdim=True)
    b = b - b.mean(-1, keepdim=True)
    norms = (a.square().sum(-1) * b.square().sum(-1) + EPSILON**2).sqrt()
    return 1 - ((a * b).sum(-1) / norms).mean()


def lncc(a: Tensor, b: Tensor, window: int = 9) -> Tensor:
    """1 - the mean of NCC^2 over windows of ``window`` voxels a side (odd), each centred on a
    voxel, in [0, 1].

    At the border a window is what lies inside the image. Squared, so that inverted contrast counts
    as agreement, as in VoxelMorph; computed by running sums, at a cost that does not depend on
    ``window``.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of at least 3 voxels, got {window}")
    a, b = _same_shape(a, b)
    a = a - a.mean(tuple(range(2, a.ndim)), keepdim=True)
    b = b - b.mean(tuple(range(2, b.ndim)), keepdim=True)
    count = _window_sums(torch.ones_like(a[:1, :1]), window)

    def window_mean(x: Tensor) -> Tensor:
        return _window_sums(x, window) / count

    aa, bb, ab = a * a, b * b, a * b
    mean_a, mean_b = window_mean(a), window_mean(b)
    mean_aa, mean_bb, mean_ab = window_mean(aa), window_mean(bb), window_mean(ab)
    covariance = mean_ab - mean_a * mean_b
    variance_a = (mean_aa - mean_a**2).clamp(min=0)
    variance_b = (mean_bb - mean_b**2).clamp(min=0)
    variances = variance_a * variance_b
    return 1 - (covariance**2 / (variances + EPSILON)).clamp(max=1).mean()


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
    """Mean over voxels of |x|^2, summed over channels."""
    return x.square().sum(1).mean()


# --- overlap of structures ------------------------------------------------------------------------


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - Dice, Dice = 2 sum(p q) / (sum p + sum q) over voxels, averaged over structures and
    batch: L_a and L_sp.

    ``probabilities`` (B, C, I, J, K) against probabilities or one-hot labels of the same shape, or
    integer labels (B, I, J, K). Background counts as a structure; one that is nowhere in both
    counts as agreement.
    """
    p = _exact(probabilities).flatten(2)
    without_structures = probabilities.shape[:1] + probabilities.shape[2:]
    if target.shape == probabilities.shape:
        q = _exact(target).flatten(2)
        overlap = (p * q).sum(-1)
        size = q.sum(-1)
    elif target.shape == without_structures and not target.is_floating_point():
        # gather the one probability that counts; no one-hot tensor is made
        index = target.flatten(1).long()
        own = p.gather(1, index[:, None])[:, 0]
        zeros = p.new_zeros(p.shape[:2])
        overlap = zeros.scatter_add(1, index, own)
        size = zeros.scatter_add(1, index, torch.ones_like(own))
    else:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} want a target of that shape, or integer "
            f"labels without the axis of structures, got {tuple(target.shape)} of {target.dtype}"
        )
    dice = (2 * overlap + EPSILON) / (p.sum(-1) + size + EPSILON)
    return 1 - dice.mean()
