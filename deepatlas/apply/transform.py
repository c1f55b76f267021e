"""A warp applied to files, as ITK, ANTs and Slicer apply it: images and labels are pulled onto the
warp's grid, points of the fixed image are sent to the moving one.

With y a voxel of the warp's grid, S its affine and S_m that of the file, both to millimetres, and d
the displacement at y: warped(y) = file(S_m^-1 (S y + d)). By the rule of ITK a point within half a
voxel of the file's border still reads the voxels there; what lies further out is 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .. import checkpoints
from ..datasets.layouts.files import without_ending
from ..datasets.nifti import Volume, affine_of, read_one, read_stored, step_of, whole_numbers
from ..errors import UserError, brief
from ..warp import sample
from .formats import (
    SIGNS,
    Warp,
    exactly,
    moved,
    read_warp,
    slabs,
    smallest_dtype,
    write_image,
)

Kind = Literal["image", "labels", "points"]
COORDINATES = ("x", "y", "z")
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def apply_warp(
    warp: Warp | str | Path,
    file: str | Path,
    kind: Kind = "image",
    folder: str | Path = ".",
    *,
    lps: bool = False,
) -> Path:
    """Apply a warp of ITK to one file; the result is ``warped_file`` in ``folder``, which is
    written over.

    kind
        "image": linear interpolation, float32, on the warp's grid. "labels": the nearest voxel, in
        the file's own type. "points": a table with the columns x, y, z in millimetres, RAS+ or, as
        in ANTs and Slicer, ``lps``; each point of the FIXED image is sent to its place in the
        moving one. Landmarks of the moving image need the inverse warp.

    UserError for a file of another kind: several volumes, labels that are no whole numbers, a table
    without these columns.
    """
    if not isinstance(warp, Warp):
        warp = read_warp(warp)
    file = Path(file)
    to = warped_file(file, folder, kind)
    if kind == "points":
        _write_points(warp, file, to, lps)
    elif kind == "labels":
        write_image(_warped_labels(warp, file), warp.affine, to)
    else:
        write_warped(warp, file, to)
    return to


def warped_file(file: str | Path, folder: str | Path, kind: Kind = "image") -> Path:
    """Where ``apply_warp`` writes: NAME_warped.nii.gz, or NAME_warped.csv as the table."""
    file = Path(file)
    if kind == "points":
        return Path(folder) / f"{file.stem}_warped{file.suffix}"
    return Path(folder) / f"{without_ending(file.name)}_warped.nii.gz"


def write_warped(warp: Warp, image: str | Path | Volume, to: Path) -> Path:
    """The file ``image``, or one of the images in it, warped onto the grid of ``warp``, as
    ``apply_warp`` does, written ``to`` a place of one's own.
    """
    return write_image(_warped_image(warp, image), warp.affine, to)


# --- images and labels ----------------------------------------------------------------------------


def _warped_image(warp: Warp, image: str | Path | Volume) -> np.ndarray:
    """float32 on the grid of ``warp``, by linear interpolation."""
    file, header, array = read_one(image)
    array = _volume(array, warp, file)
    # in float64 every number of 32 bits is exact
    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))

    def read(points: Tensor) -> Tensor:
        return sample(volume[None, None], points[None])[0, 0].float()

    affine = affine_of(header, array.shape, file)
    return _pulled(warp, affine, array.shape, read)


def _warped_labels(warp: Warp, file: Path) -> np.ndarray:
    """Integers on the grid of ``warp``, of the nearest voxel: copied, never computed with."""
    header, array = read_stored(file, single=True)
    array = _volume(array, warp, file)
    kept = header.get_data_dtype().newbyteorder("=")
    if array.dtype.kind == "f":
        array = whole_numbers(array, step_of(header), file)
        if step_of(header):
            kept = np.dtype(smallest_dtype(array))

    def read(points: Tensor) -> np.ndarray:
        # by the rule of ITK: half a voxel goes up; at the border there may be none
        index = np.floor(points.numpy() + 0.5).astype(np.int64)
        within = []
        for axis, n in zip(index, array.shape, strict=True):
            within.append(axis.clip(0, n - 1))
        return array[tuple(within)]

    affine = affine_of(header, array.shape, file)
    found = _pulled(warp, affine, array.shape, read)
    return exactly(found, kept, str(file))


def _volume(array: np.ndarray, warp: Warp, file: Path) -> np.ndarray:
    """``array`` with as many axes as the warp; UserError if it has others."""
    volume = array.reshape(array.shape[:3])
    dims = len(warp.shape)
    if volume.ndim != dims:
        raise UserError(
            f"{file}: has {volume.ndim} axes, and the warp {warp.path} is one of {dims}: give it a "
            "file such as the moving one, which it was made for"
        )
    return volume


def _pulled(
    warp: Warp,
    affine: np.ndarray,
    shape: tuple[int, ...],
    read: Callable[[Tensor], Tensor | np.ndarray],
) -> np.ndarray:
    """What ``read`` says at the voxels (D, ...) of a file of ``affine`` and ``shape`` that the
    voxels of ``warp`` look at; 0 where they look beside it.
    """
    dims = len(shape)
    to_file = torch.from_numpy(np.linalg.inv(_frame(affine, dims)))
    to_world = torch.from_numpy(_frame(warp.affine, dims))
    sides = torch.tensor(shape, dtype=torch.float64).view(-1, *[1] * dims)
    parts = []
    for slab, voxels in slabs(warp.shape):
        displacement = warp.displacement[slab].astype(np.float64) * SIGNS[:dims]
        world = moved(to_world, voxels) + torch.from_numpy(displacement).movedim(-1, 0)
        points = moved(to_file, world)
        inside = ((points >= -0.5) & (points < sides - 0.5)).all(0)
        values = np.asarray(read(points))
        parts.append(np.where(inside.numpy(), values, np.zeros((), values.dtype)))
    return np.concatenate(parts)


def _frame(affine: np.ndarray, dims: int) -> np.ndarray:
    """(D + 1, D + 1): of a plane, what ITK takes of it, x and y."""
    kept = [*range(dims), 3]
    return affine[np.ix_(kept, kept)]


# --- points ---------------------------------------------------------------------------------------


def _write_points(warp: Warp, file: Path, to: Path, lps: bool) -> None:
    """The table ``file`` with each point f moved to f + d(f); other columns are copied."""
    dims = len(warp.shape)
    names = list(COORDINATES[:dims])
    separator = SEPARATORS.get(file.suffix.lower())
    if separator is None:
        raise UserError(
            f"{file}: a table of points was wanted, .csv or .tsv, with the columns "
            f"{', '.join(names)} in millimetres"
        )
    columns = checkpoints.read_csv(file, required=names, separator=separator).columns
    others = [name for name in columns if name not in names]
    table = checkpoints.read_csv(file, text=others, required=names, separator=separator, own=False)
    points = table[names].to_numpy(dtype=np.float64)
    unusable = ~np.isfinite(points).all(1)
    if unusable.any():
        first = points[unusable][0].tolist()
        raise UserError(
            f"{file}: point {int(unusable.argmax()) + 1} is {brief(first)}: finite numbers of "
            "millimetres were wanted"
        )
    signs = SIGNS[:dims] if lps else np.ones(dims)
    table[names] = _sent(warp, points * signs, file) * signs
    text = table.to_csv(index=False, sep=separator, float_format="%.4f", lineterminator="\n")
    checkpoints.write_text(text, to)


def _sent(warp: Warp, points: np.ndarray, file: Path) -> np.ndarray:
    """(N, D) points in millimetres RAS+, of the fixed image, in the moving one.

    By the rule of ITK a point outside the warp's grid stays where it is; a warning says so.
    """
    dims = points.shape[1]
    to_voxel = torch.from_numpy(np.linalg.inv(_frame(warp.affine, dims)))
    voxels = moved(to_voxel, torch.from_numpy(points.T))
    sides = torch.tensor(warp.shape, dtype=torch.float64)[:, None]
    inside = ((voxels >= -0.5) & (voxels < sides - 0.5)).all(0).numpy()
    field = torch.from_numpy(warp.displacement.astype(np.float64)).movedim(-1, 0)
    displacement = sample(field[None], voxels[None])[0].numpy().T * SIGNS[:dims]
    outside = np.count_nonzero(~inside)
    if outside:
        warnings.warn(
            f"{file}: {outside} of {len(points)} points lie outside the grid of the warp "
            f"{warp.path} and stay where they are: points of the FIXED image were wanted, those of "
            "the moving one need the inverse warp; are x and y of the other sign (--lps)?",
            stacklevel=4,
        )
    return points + np.where(inside[:, None], displacement, 0)
