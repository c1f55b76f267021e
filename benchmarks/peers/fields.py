"""Scans as images of ANTs and SimpleITK, and their transforms as deformations of this kit.

Images are handed over without a place in the world: voxels of side 1, the first at the origin, axes
not turned. A millimetre of theirs is then a voxel, on every axis, as it is on the isotropic grid of
a cohort. Both programs count axes as the kit does if ITK's x is the kit's first axis; SimpleITK
gives and takes arrays the other way round, (K, J, I), ANTs does not.

ITK's transform of a registration maps points of the fixed image to points of the moving one, as
``Deformation`` does, so nothing is inverted.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from deepatlas.data import Scan
from deepatlas.warp import Deformation

import numpy as np
import torch


def deformation_of(vectors: np.ndarray) -> Deformation:
    """u from ``vectors`` (I, J, K, D), or (I, J, D), in voxels; vectors[..., c] moves axis c."""
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    return Deformation(torch.from_numpy(array).movedim(-1, 0)[None])


# --- ANTs -----------------------------------------------------------------------------------------


def ants_image(array: np.ndarray | torch.Tensor):
    """(I, J, K) or (I, J) as an image of antspyx, float32."""
    import ants

    return ants.from_numpy(np.asarray(array, dtype=np.float32))


def ants_registration(moving: Scan, fixed: Scan, **arguments) -> Deformation:
    """What ``ants.registration`` finds with these ``arguments``: affine map and warp as one
    deformation, (I, J, K) vectors in voxels of the fixed image.
    """
    import ants

    fixed_image = ants_image(fixed.image[0])
    moving_image = ants_image(moving.image[0])
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            fixed_image, moving_image, outprefix=f"{folder}/found_", **arguments
        )
        return ants_deformation(fixed_image, moving_image, found["fwdtransforms"])


def ants_deformation(fixed_image, moving_image, transforms: Sequence[str]) -> Deformation:
    """Files of ANTs, the last of which acts first on points of the fixed image, as one deformation
    on its grid.
    """
    import ants

    with tempfile.TemporaryDirectory() as folder:
        path = ants.apply_transforms(
            fixed_image, moving_image, list(transforms), compose=f"{folder}/whole_"
        )
        if not Path(path).is_file():
            raise RuntimeError("ANTs wrote no deformation: see what it printed above")
        return deformation_of(ants.image_read(path).numpy())


# --- SimpleITK ------------------------------------------------------------------------------------


def sitk_image(array: np.ndarray | torch.Tensor):
    """(I, J, K) or (I, J) as an image of SimpleITK, float32, whose x is the first axis."""
    import SimpleITK as sitk

    return sitk.GetImageFromArray(np.asarray(array, dtype=np.float32).transpose())


def sitk_deformation(transform, fixed_image) -> Deformation:
    """A SimpleITK ``transform``, fixed points -> moving points, on the grid of ``fixed_image``."""
    import SimpleITK as sitk

    field = sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat64,
        fixed_image.GetSize(),
        fixed_image.GetOrigin(),
        fixed_image.GetSpacing(),
        fixed_image.GetDirection(),
    )
    vectors = sitk.GetArrayFromImage(field)  # (K, J, I, D), components x, y, z
    spatial = tuple(range(vectors.ndim - 1))
    return deformation_of(vectors.transpose(*reversed(spatial), vectors.ndim - 1))
