"""One grid for all scans: centring, resampling, planes, and affine alignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..data import Scan
from ..errors import UserError
from ..registration import affine_matrices
from ..warp import look_up, nearest

Shape = Sequence[int]


def check_sides(shape: Shape) -> None:
    """Refuse a grid whose sides the networks cannot halve three times; or of which a single voxel
    would be left, which batch normalisation cannot learn from.
    """
    halved = [n // 8 for n in shape]
    if len(shape) not in (2, 3) or any(n < 8 or n % 8 for n in shape) or max(halved) < 2:
        raise UserError(
            "every side must be divisible by 8, one must be 16 or more, and there must be 2 or 3, "
            f"got {tuple(shape)}: pass another shape"
        )


def volume_sides(shape: Shape) -> tuple[int, int, int]:
    """The three sides of a grid: a 2D one is one voxel deep, and of several volumes in a row the
    sides of one count.
    """
    return (*shape, 1)[:3]


def centred_affine(scan: Scan, shape: Shape, spacing: float) -> Tensor:
    """(4, 4) of a grid of ``shape`` and ``spacing`` (mm) with RAS axes, centred where ``scan`` is.

    A 2D grid on a 3D scan is the axial plane through that centre; on a 2D scan it lies in the plane
    of the scan, whichever that is. Where source and target have the same spacing the shift is a
    whole number of voxels, so that nothing is interpolated.
    """
    if not spacing > 0:
        raise UserError(f"spacing must be a positive number of millimetres, got {spacing}")
    own = torch.tensor(volume_sides(scan.shape), dtype=torch.float64)
    wanted = torch.tensor(volume_sides(shape), dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = spacing * _axes(scan)
    in_scan = slice(None, len(scan.shape))  # how thick a slice is does not matter
    # the voxel of the scan, not always a whole one, on which the new grid is centred
    if torch.allclose(scan.affine[:3, in_scan], affine[:3, in_scan], atol=1e-4):
        whole_shift = torch.div(own - wanted, 2, rounding_mode="floor")
        middle = whole_shift + (wanted - 1) / 2
    else:
        middle = (own - 1) / 2
    centre = scan.affine[:3, :3] @ middle + scan.affine[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((wanted - 1) / 2)
    return affine


def _axes(scan: Scan) -> Tensor:
    """(3, 3): the directions of a grid for ``scan``, one a column: those of the world, RAS.

    Of a 2D scan: the two of them that are closest to its plane, turned into it, and across.
    """
    world = torch.eye(3, dtype=torch.float64)
    if len(scan.shape) == 3:
        return world
    across = torch.linalg.cross(scan.affine[:3, 0], scan.affine[:3, 1])
    across = across / across.norm()
    away = int(across.abs().argmax())
    across = across * across[away].sign()
    first, second = (world[axis] for axis in range(3) if axis != away)
    one = first - (first @ across) * across
    one = one / one.norm()
    other = second - (second @ across) * across - (second @ one) * one
    return torch.stack([one, other / other.norm(), across], dim=1)


# --- resampling -----------------------------------------------------------------------------------


def resample(scan: Scan, affine: Tensor, shape: Shape) -> Scan:
    """``scan`` on the grid of ``affine`` (its voxels -> the scan's world) and ``shape``, in one
    interpolation.

    The image is smoothed first where the new voxels are larger, and continues its border outside. A
    new voxel's label is the majority of the nearest labels at 2^D points inside it: integers are
    counted, never interpolated.
    """
    matrix = (torch.linalg.inv(scan.affine) @ affine).numpy()  # new voxel -> old voxel
    # old voxels per new voxel, along each old axis; what exceeds one is smoothed away
    step = np.linalg.norm(matrix[:3, : len(shape)], axis=1)
    sigma = np.maximum(step - 1, 0) / 2
    volume = scan.image.numpy()[0].reshape(volume_sides(scan.shape))
    smooth = ndimage.gaussian_filter(volume, sigma, mode="nearest")
    image = ndimage.affine_transform(
        smooth, matrix[:3, :3], matrix[:3, 3], volume_sides(shape), order=1, mode="nearest"
    )
    labels = None
    if scan.labels is not None:
        numbers = scan.labels.numpy().reshape(volume.shape)
        labels = torch.from_numpy(_majority(numbers, matrix, shape).reshape(shape))
    image = torch.from_numpy(image.reshape(1, *shape).clip(0, 1))
    return replace(scan, image=image, affine=affine, labels=labels)


def _majority(labels: np.ndarray, matrix: np.ndarray, shape: Shape) -> np.ndarray:
    """Majority of the nearest ``labels`` at the 2^D points a quarter voxel from each new voxel's
    centre.

    The label at the centre decides ties: the first corner's would move every structure a quarter
    voxel.
    """
    in_plane = [(-0.25, 0.25)] * len(shape)
    through_plane = [(0.0,)] * (3 - len(shape))
    corners = np.stack(np.meshgrid(*in_plane, *through_plane)).reshape(3, -1).T
    centres = _points(matrix, shape)
    votes = [_nearest(labels, centres)]
    votes += [_nearest(labels, centres + _along(matrix, corner)) for corner in corners]
    votes = np.stack(votes)
    # how many corners agree with each candidate; argmax takes the first of equals, the centre's
    agreeing = np.stack([(votes[1:] == vote).sum(0, dtype=np.uint8) for vote in votes])
    winner = agreeing.argmax(0)
    return np.take_along_axis(votes, winner[None], 0)[0]


def _points(matrix: np.ndarray, shape: Shape) -> np.ndarray:
    """(3, I, J, K): where the centre of each new voxel lies, in old voxels."""
    index = np.indices(volume_sides(shape), dtype=np.float64)
    return np.einsum("ij,j...->i...", matrix[:3, :3], index) + matrix[:3, 3, None, None, None]


def _along(matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """(3, 1, 1, 1): an offset in new voxels, in old ones."""
    return (matrix[:3, :3] @ offset)[:, None, None, None]


def _nearest(labels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The label of the voxel nearest to each of ``points`` (3, I, J, K); 0 outside.

    By the one rule of ``warp.nearest``: a grid of twice the spacing asks halfway between voxels
    everywhere, where rounding noise must not decide.
    """
    index = nearest(torch.from_numpy(points))
    found = look_up(torch.from_numpy(labels)[None, None], index[None])[0, 0]
    inside = torch.ones_like(found, dtype=torch.bool)
    for axis, n in enumerate(labels.shape):
        inside &= (index[axis] >= 0) & (index[axis] < n)
    return torch.where(inside, found, torch.zeros_like(found)).numpy()


# --- a cohort -------------------------------------------------------------------------------------


def middle_plane(shape: Shape, spacing: float, flat: Shape, flat_spacing: float) -> Tensor:
    """(4, 4) voxels of a 2D grid -> voxels of the 3D grid whose middle axial plane it is."""
    matrix = torch.eye(4, dtype=torch.float64) * (flat_spacing / spacing)
    matrix[3, 3] = 1
    centre = (torch.tensor(volume_sides(shape), dtype=torch.float64) - 1) / 2
    flat_centre = (torch.tensor(volume_sides(flat), dtype=torch.float64) - 1) / 2
    matrix[:3, 3] = centre - matrix[:3, :3] @ flat_centre
    return matrix


def align(
    scans: Sequence[Scan], originals: Sequence[Scan], reference: Tensor, alone: bool = False
) -> list[Scan]:
    """``scans`` aligned to the ``reference`` image (1, I, J, K) by affine maps of their images.

    ``originals`` are the same scans as they were read: the result is resampled from these, once.
    The affine of each aligned scan still leads from its voxels to the world of its own file. A scan
    that has the image of the reference stays as it is.

    PyTorch rounds a batch of one image otherwise than larger ones, whatever is in these. So that a
    scan gets the same map by itself as among others, one scan is aligned together with the
    reference, unless it is said to be ``alone``.
    """
    images = torch.stack([scan.image for scan in scans])
    if len(scans) == 1 and not alone:
        images = torch.cat([images, reference[None]])
    matrices = affine_matrices(images, reference[None]).double()[: len(scans)]
    aligned = []
    for scan, original, matrix in zip(scans, originals, matrices, strict=True):
        if torch.equal(scan.image, reference):
            aligned.append(scan)
            continue
        affine = scan.affine @ _in_space(matrix)
        aligned.append(resample(original, affine, scan.shape))
    return aligned


def _in_space(matrix: Tensor) -> Tensor:
    """(D + 1, D + 1) as (4, 4): a 2D alignment moves within the plane."""
    d = len(matrix) - 1
    whole = torch.eye(4, dtype=torch.float64)
    whole[:d, :d] = matrix[:d, :d]
    whole[:d, 3] = matrix[:d, d]
    return whole
