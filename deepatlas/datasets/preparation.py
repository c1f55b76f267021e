"""How a scan, as it was read, comes onto the grid of its cohort: one way, for the scans of a
training and for those that come later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..data import Scan
from ..errors import UserError
from .grid import Shape, align, centred_affine, middle_plane, resample


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
        return self.prepare_all([scan])[0]

    def prepare_all(self, originals: Sequence[Scan], alone: bool = False) -> list[Scan]:
        """Several scans at once, as ``prepare``; ``alone``: see ``grid.align``."""
        shape, spacing = self._first_grid(originals)
        scans = [resample(scan, centred_affine(scan, shape, spacing), shape) for scan in originals]
        if self.reference is not None:
            scans = align(scans, originals, self.reference, alone)
        flat_shape, flat_spacing = self.wanted
        if (shape, spacing) == (flat_shape, flat_spacing):
            return scans
        plane = middle_plane(shape, spacing, flat_shape, flat_spacing)
        flat = []
        for scan, original in zip(scans, originals, strict=True):
            flat.append(resample(original, scan.affine @ plane, flat_shape))
        return flat

    def _first_grid(self, originals: Sequence[Scan]) -> tuple[Shape, float]:
        """The grid on which scans are aligned."""
        flat = [scan for scan in originals if len(scan.shape) == 2]
        if not flat:
            return self.volume
        if len(self.wanted[0]) == 3:
            raise UserError(
                f"{_name(flat[0])}: it is a single slice, and volumes are wanted: take dims = 2"
            )
        if len(flat) < len(originals):
            volume = next(scan for scan in originals if len(scan.shape) == 3)
            raise UserError(
                f"{_name(flat[0])}: it is a single slice, and {_name(volume)} a volume: all scans "
                "of a cohort must be of one kind"
            )
        return self.wanted


def _name(scan: Scan) -> str:
    return scan.source.path if scan.source else scan.id
