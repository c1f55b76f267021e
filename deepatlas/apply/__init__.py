"""Trained networks on files: scans go in; segmentations and warps come out, for other programs too.

    from deepatlas import apply

    model = apply.load("runs/my-brains-full-3d-N5-seed0-0a1b2c3d")
    apply.segment("new_scan.nii.gz", model).save("results")
    apply.register("moving.nii.gz", "fixed.nii.gz", model, inverse=True).save("results")

model.py      networks with all that it takes to use them; exporting and loading them
pipeline.py   file -> grid of the networks -> the file's own grid
formats.py    labels with names; warps that ITK, ANTs, Slicer and Learn2Reg read
transform.py  a warp applied to other images, labels and points
scoring.py    labels compared with an expert's
"""

from ..places import WEIGHTS
from .model import Model, export, load
from .pipeline import (
    Registration,
    Segmentation,
    register,
    registration_files,
    segment,
    segmentation_files,
)
from .scoring import evaluate
from .transform import apply_warp

__all__ = [
    "WEIGHTS",
    "Model",
    "Registration",
    "Segmentation",
    "apply_warp",
    "evaluate",
    "export",
    "load",
    "register",
    "registration_files",
    "segment",
    "segmentation_files",
]
