"""NIfTI files: read as arrays with RAS+ axes, and as scans."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..data import Scan, Source, rescale_intensities
from ..errors import UserError


def read_nifti(path: str | Path) -> tuple[np.ndarray, np.ndarray, Source]:
    """A 2D or 3D NIfTI file as (array, affine, source): float32, ``scl_slope`` applied, a volume's
    axes turned RAS+.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; an image in NIfTI format (.nii or .nii.gz) was wanted"
        )
    try:
        image = nib.load(path)
        flat = image.slicer[..., 0] if image.ndim == 4 else image
        array = np.asarray(flat.dataobj, dtype=np.float32)
    # a damaged file raises anything: nibabel's, gzip's, zlib's and NumPy's own errors
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as NIfTI ({reason}); is the file complete?"
        ) from error
    shape = tuple(image.shape)
    one_volume = shape[3:] in ((), (1,))
    if array.ndim not in (2, 3) or min(array.shape) == 0 or not one_volume:
        raise UserError(
            f"{path}: a 2D or 3D image was wanted, got shape {shape}: store one volume per file"
        )
    affine = image.affine.astype(np.float64)
    if not np.isfinite(affine).all() or not np.linalg.cond(affine[:3, :3]) < 1e6:
        raise UserError(
            f"{path}: the affine in the header is not invertible: "
            "set the voxel size and orientation"
        )
    source = Source(str(path), shape, torch.from_numpy(affine))
    if array.ndim == 3:
        # turns and flips axes: no interpolation
        turned = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
        array, affine = np.asarray(turned.dataobj), turned.affine
    return array, affine, source


def load_scan(
    image: str | Path,
    labels: str | Path | None,
    *,
    id: str,
    subject: str,
    structures: Mapping[int, int],
) -> Scan:
    """One scan from NIfTI files, on its own voxel grid, RAS+.

    ``structures`` maps the file's label numbers to indices into ``Cohort.structures``; unlisted
    numbers become background.
    """
    array, affine, source = read_nifti(image)
    digest = hashlib.sha256(affine.tobytes() + array.tobytes())
    index = None
    if labels is not None:
        numbers = _read_numbers(labels, image, array.shape, affine)
        index = _indices(numbers, structures, labels)
        digest.update(index.tobytes())
        index = torch.from_numpy(index)
    rescaled = torch.from_numpy(rescale_intensities(array, str(image)))
    return Scan(
        id,
        subject,
        image=rescaled[None],
        affine=torch.from_numpy(affine.astype(np.float64)),
        labels=index,
        source=replace(source, digest=digest.hexdigest()),
    )


def _read_numbers(
    labels: str | Path, image: str | Path, shape: tuple[int, ...], affine: np.ndarray
) -> np.ndarray:
    """The label numbers of a file that must lie where its image does, and be whole."""
    numbers, own_affine, _ = read_nifti(labels)
    if numbers.shape != shape:
        raise UserError(
            f"{labels}: the labels have {numbers.shape} voxels, but the image {image} has {shape}"
        )
    if not np.allclose(own_affine, affine, atol=1e-2):
        raise UserError(
            f"{labels}: the labels lie elsewhere in the world than the image {image}: "
            "their affines differ; resample one onto the other"
        )
    if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any():
        raise UserError(
            f"{labels}: labels must be whole numbers; this looks like an image or probabilities"
        )
    return numbers


def _indices(numbers: np.ndarray, structures: Mapping[int, int], labels: str | Path) -> np.ndarray:
    """Label numbers as indices into ``Cohort.structures``, uint8; ``labels`` is for the error."""
    index = np.zeros(numbers.shape, np.uint8)
    for number, structure in structures.items():
        index[numbers == number] = structure
    if not index.any():
        found = {int(number) for number in np.unique(numbers)} - {0}
        raise UserError(
            f"{labels}: none of the wanted labels {sorted(structures)[:10]} occurs, "
            f"found {sorted(found)[:10]}"
        )
    return index
