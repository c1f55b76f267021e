"""Losses, deformations and scores in float64, as a textbook writes them: NumPy and SciPy, slow and
plain, with nothing of the package. Axes are its own: B batch, C channels or structures, I J K.
"""

import itertools
import math

import numpy as np
from scipy import ndimage, special
from scipy.spatial.distance import cdist

NOISE = 1e-6  # of an image's largest magnitude: what varies less is rounding noise
TEXTURE = 0.01  # of an image's variance: the faint texture that both images of LNCC share

# --- losses ---------------------------------------------------------------------------------------


def mse(a, b):
    """Mean of (a - b)^2."""
    return np.mean((a - b) ** 2)


def ncc(a, b):
    """1 - Pearson's r of each pair of images, averaged; r is 0 where one of them is constant."""
    return np.mean([1 - _pearson(x, y) for x, y in _images(a, b)])


def _images(a, b):
    """The pairs of images (I, J, K) of two (B, C, I, J, K)."""
    shape = a.shape[2:]
    return zip(a.reshape(-1, *shape), b.reshape(-1, *shape), strict=True)


def _pearson(x, y):
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())


def lncc(a, b, window):
    """1 - the mean of NCC^2 over the windows around all voxels, each cut off at the border."""
    values = []
    for x, y in _images(a, b):
        textures = _texture(x), _texture(y)
        for centre in np.ndindex(x.shape):
            box = tuple(slice(max(0, c - window // 2), c + window // 2 + 1) for c in centre)
            values.append(_squared_ncc(x[box], y[box], *textures))
    return 1 - np.mean(values)


def _texture(x):
    """The variance of the faint texture of one image, with what is rounding noise."""
    largest = np.abs(x).max() or 1.0
    return TEXTURE * x.var() + (NOISE * largest) ** 2


def _squared_ncc(x, y, texture_x, texture_y):
    """Of one window, as if both images had one faint texture in common."""
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    covariance = abs(covariance) + np.sqrt(texture_x * texture_y)
    return covariance**2 / ((x.var() + texture_x) * (y.var() + texture_y))


def diffusion(u):
    """Mean over voxels of the squared differences of neighbours, summed over axes and channels."""
    energy = 0.0
    for axis in range(2, u.ndim):
        difference = np.diff(u, axis=axis)
        energy += (difference**2).sum(1).mean() if difference.size else 0.0
    return energy


def bending_energy(u):
    """Mean over voxels of the squared second differences, summed over pairs of axes and channels.

    u(x + e + f) - u(x + e) - u(x + f) + u(x) of steps e and f along two axes, or twice the same.
    """
    shape = u.shape[2:]
    steps = np.eye(len(shape), dtype=int)
    energy = 0.0
    for e, f in itertools.product(steps, steps):
        squares = []
        for field in u:
            for x in np.ndindex(shape):
                if (x + e + f < shape).all():
                    at_e, at_f, at_both = (_at(field, x + step) for step in (e, f, e + f))
                    squares.append(((at_both - at_e - at_f + _at(field, x)) ** 2).sum())
        energy += np.mean(squares) if squares else 0.0
    return energy


def _at(field, x):
    """The vector of ``field`` (D, I, J, K) at the voxel ``x``."""
    return field[(slice(None), *x)]


def soft_dice(p, q):
    """1 - (2 sum(p q) + 1) / (sum p + sum q + 1), averaged over structures and batch."""
    values = []
    for one, other in _images(p, q):
        values.append(1 - (2 * (one * other).sum() + 1) / (one.sum() + other.sum() + 1))
    return np.mean(values)


def softmax_dice(scores, q):
    """``soft_dice`` of the softmax of scores."""
    return soft_dice(special.softmax(scores, 1), q)


def cross_entropy(scores, q):
    """Mean over voxels of -sum_c q_c log p_c."""
    return -(q * special.log_softmax(scores, 1)).sum(1).mean()


def one_hot(labels, structures):
    """(B, I, J, K) integers -> (B, C, I, J, K)."""
    return np.stack([labels == c for c in range(structures)], 1).astype(np.float64)


# --- deformations, by their displacements u (B, D, I, J, K) ---------------------------------------


def voxels(shape):
    """Every voxel's own coordinates, (D, I, J, K)."""
    return np.indices(shape).astype(np.float64)


def warped(volume, u):
    """``volume`` (B, C, I, J, K) at x + u(x), linearly; beyond the border, the border voxel."""
    found = np.empty((*volume.shape[:2], *u.shape[2:]))
    for b, channels in enumerate(volume):
        points = inside(voxels(u.shape[2:]) + u[b], volume.shape[2:])
        for c, channel in enumerate(channels):
            found[b, c] = ndimage.map_coordinates(channel, points, order=1, mode="nearest")
    return found


def inside(points, shape):
    """The points (D, ...) of the grid that are nearest to ``points``."""
    last = np.reshape(shape, (-1, *[1] * (points.ndim - 1))) - 1
    return points.clip(0, last)


def warped_labels(labels, u):
    """``labels`` (B, I, J, K) at the voxel nearest to x + u(x), a half up."""
    found = []
    for numbers, field in zip(labels, u, strict=True):
        nearest = voxels(field.shape[1:]) + np.floor(field + 0.5)
        found.append(numbers[tuple(inside(nearest, numbers.shape).astype(int))])
    return np.stack(found)


def composed(u, first):
    """Of phi @ psi, x -> phi(psi(x)), from those of phi and of psi, which is ``first``."""
    return first + warped(u, first)


def exp(velocity, squarings=3):
    """Of exp(v): of the step x + w(x + w(x) / 2), with w = v / 2^n, squared n times."""
    w = velocity / 2**squarings
    u = warped(w, w / 2)
    for _ in range(squarings):
        u = composed(u, u)
    return u


def jacobian(u):
    """det(I + du/dx) (B, I, J, K), by central differences; across a single voxel u is constant."""
    dims = u.shape[1]
    matrix = np.zeros((len(u), *u.shape[2:], dims, dims))
    for axis in range(dims):
        if u.shape[2 + axis] > 1:
            matrix[..., axis] = np.moveaxis(np.gradient(u, axis=2 + axis), 1, -1)
    return determinant(np.eye(dims) + matrix)


def determinant(matrix):
    """Of (..., D, D), by Leibniz' formula: the signed products of one number from each row."""
    dims = matrix.shape[-1]
    total = 0.0
    for columns in itertools.permutations(range(dims)):
        sign = np.linalg.det(np.eye(dims)[list(columns)])
        total = total + sign * matrix[..., range(dims), columns].prod(-1)
    return total


# --- scores ---------------------------------------------------------------------------------------


def overlap(predicted, reference):
    """Dice of two masks: 2 |A and B| / (|A| + |B|); NaN if there is no reference."""
    if not reference.any():
        return math.nan
    return 2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())


def boundary_voxels(mask):
    """(n, D): the voxels of a mask with a face neighbour outside it, or outside the image."""
    found = []
    padded = np.pad(mask, 1)
    for x in np.argwhere(padded):
        steps = np.concatenate([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])
        if not all(padded[tuple(x + step)] for step in steps):
            found.append(x - 1)
    return np.array(found)


def surface_scores(predicted, reference, spacing):
    """nsd, hd95_mm and surface_mm of two masks that are not empty: all distances, one by one."""
    one, other = boundary_voxels(predicted), boundary_voxels(reference)
    apart = cdist(one, other)
    near = np.concatenate([apart.min(1), apart.min(0)]) <= 1
    apart = cdist(one * spacing, other * spacing)
    there, back = apart.min(1), apart.min(0)
    return {
        "nsd": near.mean(),
        "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
        "surface_mm": np.concatenate([there, back]).mean(),
    }


def sd_log_j(u):
    """Standard deviation of log(clip(det J + 3, 1e-9, 1e9)), two voxels from every border."""
    inner = (0, *[slice(2, -2)] * u.shape[1])
    return np.log((jacobian(u)[inner] + 3).clip(1e-9, 1e9)).std()


def endpoint_error(u, truth, where):
    """Mean length of u - truth (D, I, J, K) over the voxels of a mask."""
    lengths = [math.hypot(*_at(u - truth, x)) for x in np.argwhere(where)]
    return np.mean(lengths) if lengths else math.nan
