"""How a scan, as it was read, comes onto the grid of its cohort: one way, for the scans of a
training and for those that come later.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..data import Scan
from ..errors import UserError
from .grid import Shape, align, centred_affine, middle_plane, resample, resample_image


@dataclass(frozen=True, eq=False)
class Preparation:
    """The grid that is ``wanted``, (shape, spacing in mm), and the ``volume`` that it is itself, or
    whose middle plane it is.

    With a ``reference``, the image of one training scan on ``volume``, (1, I, J, K), scans are
    aligned to it by affine maps of their images. Scans that are slices themselves come onto
    ``wanted`` at once, and their reference is on it too.
    """

    volume: tuple[Shape, float]
    wanted: tuple[Shape, float]
    reference: Tensor | None = None

    def prepare(self, scan: Scan) -> Scan:
        """``scan``, as ``load_scan`` reads it, on the common grid."""
        shape, spacing = self.first_grid(scan)
        affine = centred_affine(scan, shape, spacing)
        if self.reference is not None:
            image = resample_image(scan, affine, shape)
            (affine,) = align([image], [affine], self.reference)
        if (shape, spacing) != self.wanted:
            affine = affine @ middle_plane(shape, spacing, *self.wanted)
        return resample(scan, affine, self.wanted[0])  # from the voxels of the file, once

    def centred(self, scan: Scan) -> Scan:
        """``scan`` on the first grid, in the middle of it: what is aligned, and what others are
        aligned to.
        """
        shape, spacing = self.first_grid(scan)
        return resample(scan, centred_affine(scan, shape, spacing), shape)

    def first_grid(self, scan: Scan) -> tuple[Shape, float]:
        """The grid on which a scan is aligned; UserError for a slice where volumes are wanted."""
        if len(scan.shape) == 3:
            return self.volume
        if len(self.wanted[0]) == 3:
            path = scan.source.path if scan.source else scan.id
            raise UserError(f"{path}: it is a single slice, and volumes are wanted: take dims=2")
        return self.wanted
