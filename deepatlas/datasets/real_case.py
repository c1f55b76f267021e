"""The one real scan that comes with the kit, for lessons: see tutorials_data/hippocampus_case."""

from __future__ import annotations

import torch

from ..data import Scan
from ..errors import UserError
from ..places import TUTORIALS_DATA
from .grid import Shape, centred_affine, resample
from .nifti import load_scan

FOLDER = TUTORIALS_DATA / "hippocampus_case"
REAL_CASE_STRUCTURES = ("background", "anterior", "posterior")
SHAPE: Shape = (40, 56, 40)  # that of the hippocampus data set at class size
SPACING = 1.0  # mm, the file's own: nothing is interpolated


def real_case(dims: int = 3) -> Scan:
    """A hippocampus, T1-weighted, with an expert's labels of its anterior and posterior part.

    ``dims`` = 3: the volume, image (1, 40, 56, 40) in [0, 1] and labels (40, 56, 40), of 1 mm.
    ``dims`` = 2: its axial slice with the most labelled voxels, (1, 40, 56) and (40, 56).

    Source: ``hippocampus_001`` of the Medical Segmentation Decathlon, Task04 (Antonelli et al.,
    Nature Communications 13:4128, 2022), CC BY-SA 4.0.
    """
    if dims not in (2, 3):
        raise UserError(f"dims must be 2 (a slice) or 3 (the volume), got {dims!r}")
    scan = load_scan(
        FOLDER / "image.nii.gz",
        FOLDER / "labels.nii.gz",
        id="hippocampus_001",
        subject="hippocampus_001",
        structures={1: 1, 2: 2},
    )
    affine = centred_affine(scan, SHAPE, SPACING)
    volume = resample(scan, affine, SHAPE)
    if dims == 3:
        return volume
    assert volume.labels is not None, "the file of labels was read"
    k = int((volume.labels > 0).sum((0, 1)).argmax())
    plane = affine @ torch.tensor([0, 0, k, 1], dtype=affine.dtype)
    affine = affine.clone()
    affine[:, 3] = plane
    return resample(scan, affine, SHAPE[:2])
