"""One grid for all scans: centring, resampling, planes, and affine alignment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..data import Scan
from ..errors import UserError
from ..registration import affine_matrices
from ..warp import nearest

Shape = Sequence[int]
SLAB = 2**16  # voxels whose labels are looked up at once
SAME_PLACE = 1e-9  # old voxels between two places that are one


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
    i, j, k = (*shape, 1)[:3]
    return i, j, k


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
    interpolation: see ``resample_image`` and ``resample_labels``.
    """
    image = resample_image(scan, affine, shape)
    labels = None if scan.labels is None else resample_labels(scan, affine, shape)
    return replace(scan, image=image, affine=affine, labels=labels)


def resample_image(scan: Scan, affine: Tensor, shape: Shape) -> Tensor:
    """(1, I, J, K): the image of ``scan`` on the grid of ``affine``, smoothed first where the new
    voxels are larger; outside, it continues its border.
    """
    volume = scan.image.numpy()[0].reshape(volume_sides(scan.shape))
    matrix = _new_to_old(scan, affine)
    shift = _whole_shift(matrix, shape)
    if shift is not None:  # nothing is interpolated
        return torch.from_numpy(_cut(volume, shift, shape).reshape(1, *shape).clip(0, 1))
    # old voxels per new voxel, along each old axis; what exceeds one is smoothed away
    step = np.linalg.norm(matrix[:3, : len(shape)], axis=1)
    sigma = np.maximum(step - 1, 0) / 2
    smooth = ndimage.gaussian_filter(volume, sigma, mode="nearest") if sigma.any() else volume
    image = ndimage.affine_transform(
        smooth, matrix[:3, :3], matrix[:3, 3], volume_sides(shape), order=1, mode="nearest"
    )
    return torch.from_numpy(image.reshape(1, *shape).clip(0, 1))


def resample_labels(scan: Scan, affine: Tensor, shape: Shape) -> Tensor:
    """(I, J, K): the labels of ``scan`` on the grid of ``affine``; 0 outside.

    A new voxel's label is the majority of the nearest labels at 2^D points a quarter voxel from its
    centre: integers are counted, never interpolated. The label at the centre decides ties: the
    first corner's would move every structure a quarter voxel.
    """
    # around the volume a border of background, which stands for all that is outside
    old = np.pad(scan.known_labels.numpy().reshape(volume_sides(scan.shape)), 1)
    matrix = _new_to_old(scan, affine)
    shift = _whole_shift(matrix, shape)
    if shift is not None:  # all points are in one voxel
        return torch.from_numpy(_cut(old, shift + 1, shape).reshape(shape))
    in_plane = [(-0.25, 0.25)] * len(shape)
    through_plane = [(0.0,)] * (3 - len(shape))
    corners = [(0.0, 0.0, 0.0), *itertools.product(*in_plane, *through_plane)]
    new = np.empty(volume_sides(shape), old.dtype)
    # a few planes at a time, so that what is computed of them stays in the processor's cache
    planes = max(1, SLAB // (new.size // len(new)))
    for first in range(0, len(new), planes):
        slab = new[first : first + planes]
        votes = np.empty((len(corners), *slab.shape), old.dtype)
        for vote, corner in zip(votes, corners, strict=True):
            start = matrix @ (first + corner[0], corner[1], corner[2], 1.0)
            vote[:] = _nearest(old, matrix[:3, :3], start[:3], slab.shape)
        slab[:] = _majority(votes)
    return torch.from_numpy(new.reshape(shape))


def _whole_shift(matrix: np.ndarray, shape: Shape) -> np.ndarray | None:
    """By how many old voxels each new one lies further along the axes; None if voxels do not match
    everywhere.
    """
    shift = np.round(matrix[:3, 3])
    away = np.abs(matrix[:3] - np.column_stack([np.eye(3), shift]))
    if (away @ (*volume_sides(shape), 1)).max() > SAME_PLACE:
        return None
    return shift.astype(int)


def _cut(volume: np.ndarray, shift: np.ndarray, shape: Shape) -> np.ndarray:
    """The voxels of a volume from ``shift`` on; outside, those of its border."""
    for axis, (first, n) in enumerate(zip(shift, volume_sides(shape), strict=True)):
        volume = volume.take(range(first, first + n), axis, mode="clip")
    return volume


def _new_to_old(scan: Scan, affine: Tensor) -> np.ndarray:
    """(4, 4): voxels of the grid of ``affine`` -> voxels of ``scan``."""
    return (torch.linalg.inv(scan.affine) @ affine).numpy()


def _majority(votes: np.ndarray) -> np.ndarray:
    """The most frequent of ``votes`` (1 + 2^D, I, J, K) but the first, which decides ties."""
    winner = votes[0].copy()
    # nearly everywhere all agree
    mixed = (votes[1:] != votes[0]).any(0)
    some = votes[:, mixed]
    # how many corners agree with each candidate; argmax takes the first of equals, the centre's
    agreeing = np.stack([(some[1:] == vote).sum(0, dtype=np.uint8) for vote in some])
    winner[mixed] = np.take_along_axis(some, agreeing.argmax(0)[None], 0)[0]
    return winner


def _nearest(
    padded: np.ndarray, matrix: np.ndarray, start: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Labels at the voxels nearest to ``matrix @ index + start`` of every index of ``shape``; of a
    volume that is ``padded`` by one voxel, into which all points outside are moved.

    By the one rule of ``warp.nearest``: a grid of twice the spacing asks halfway between voxels
    everywhere, where rounding noise must not decide.
    """
    flat = np.zeros((1, 1, 1), np.int64)
    for row, first, n in zip(matrix, start, padded.shape, strict=True):
        points = torch.from_numpy(positions(row, first, shape))
        flat = flat * n + (nearest(points).numpy() + 1).clip(0, n - 1)
    return padded.ravel().take(flat)


def positions(row: np.ndarray, first: float, shape: Shape) -> np.ndarray:
    """``row @ index + first`` of every index of ``shape``; of length 1 along axes on which it does
    not depend.
    """
    position = np.full((1,) * len(shape), first)
    for axis, n in enumerate(shape):
        if row[axis] != 0:
            sides = [1] * len(shape)
            sides[axis] = n
            position = position + (row[axis] * np.arange(n)).reshape(sides)
    return position


# --- a cohort -------------------------------------------------------------------------------------


def middle_plane(shape: Shape, spacing: float, flat: Shape, flat_spacing: float) -> Tensor:
    """(4, 4) voxels of a 2D grid -> voxels of the 3D grid whose middle axial plane it is.

    >>> plane = middle_plane((8, 8, 9), 2.0, (8, 8), 2.0)
    >>> plane @ torch.tensor([3.0, 5.0, 0.0, 1.0]).double()
    tensor([3., 5., 4., 1.], dtype=torch.float64)
    """
    matrix = torch.eye(4, dtype=torch.float64) * (flat_spacing / spacing)
    matrix[3, 3] = 1
    centre = (torch.tensor(volume_sides(shape), dtype=torch.float64) - 1) / 2
    flat_centre = (torch.tensor(volume_sides(flat), dtype=torch.float64) - 1) / 2
    matrix[:3, 3] = centre - matrix[:3, :3] @ flat_centre
    return matrix


def align(images: Sequence[Tensor], affines: Sequence[Tensor], reference: Tensor) -> list[Tensor]:
    """The ``affines`` of grids, on which ``images`` (1, I, J, K) were resampled, moved such that
    these match the ``reference`` image.

    An affine leads from there to the world of the scan's own file as before. Of an image that is
    the reference it stays as it is. One image after the other: how PyTorch rounds depends on how
    many there are in a batch, and a scan is to get the same map by itself as among others.
    """
    moved = []
    for image, affine in zip(images, affines, strict=True):
        if torch.equal(image, reference):
            moved.append(affine)
        else:
            (matrix,) = affine_matrices(image[None], reference[None]).double()
            moved.append(affine @ _in_space(matrix))
    return moved


def _in_space(matrix: Tensor) -> Tensor:
    """(D + 1, D + 1) as (4, 4): a 2D alignment moves within the plane."""
    d = len(matrix) - 1
    whole = torch.eye(4, dtype=torch.float64)
    whole[:d, :d] = matrix[:d, :d]
    whole[:d, 3] = matrix[:d, d]
    return whole
