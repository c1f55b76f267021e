"""The files of a cohort as scans on its grid: one at a time, through the cache, and what may be
wrong with each.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Scan
from ..errors import UserError
from .cache import Cache, Names, Prepared, content_of
from .entries import Entry
from .layouts import File
from .nifti import load_scan, number_type
from .preparation import Preparation

NO_CONTRAST = 0.01  # of the scan's own intensities, 0 to 1


class Reader:
    """Reads the files of an ``entry`` onto the grid of a ``preparation``; ``index_of`` maps label
    numbers to structures.

    After ``read``, ``preparation`` has the reference of the alignment, if the entry wants one.
    """

    def __init__(self, entry: Entry, index_of: Mapping[int, int], preparation: Preparation) -> None:
        self.entry = entry
        self.index_of = index_of
        self.preparation = preparation
        self.cache = Cache()
        self._first: tuple[str, bool] | None = None  # a path, and: is it a slice?
        self._decides = {
            "structures": sorted(index_of.items()),
            "empty_labels": entry.empty_labels,
            "grids": [preparation.volume, preparation.wanted],
        }

    def read(self, files: Sequence[File]) -> list[Prepared]:
        """Every file on the common grid; the original of one scan at a time is in memory.

        If the entry wants its scans aligned, they are aligned to the first. UserError for the first
        file that is of no use.
        """
        to = None  # the key of the reference
        if self.entry.align:
            to, image = self._reference(files[0])
            self.preparation = replace(self.preparation, reference=image)
        bar = tqdm(
            files,
            desc=self.entry.name,
            unit="scan",
            delay=5,  # seconds; from the cache it takes less
            leave=False,
            disable=None,  # but on a terminal
        )
        return [self._prepared(file, {"aligned to": to}) for file in bar]

    def _reference(self, file: File) -> tuple[str, Tensor]:
        """The image that others are aligned to, and the key under which it is kept."""
        key = self._key(file, {"reference": True})
        kept = self.cache.find(key, _names(file))
        if kept is None:
            original, _ = self._read(file)
            scan = self.preparation.centred(original)
            kept = self.cache.keep(key, Prepared(scan, flat=len(original.shape) == 2))
        return key, kept.scan.image

    def _prepared(self, file: File, what_else: Mapping[str, object]) -> Prepared:
        """As the cache has it, or read, prepared and kept there."""
        key = self._key(file, what_else)
        kept = self.cache.find(key, _names(file))
        if kept is not None:
            self._check_kind(str(file.image), kept.flat)
            return kept
        original, told = self._read(file)
        scan = self.preparation.prepare(original)
        self._check_on_grid(scan, original, str(file.image))
        prepared = Prepared(
            scan,
            flat=len(original.shape) == 2,
            found=_structures(original.labels),
            shown=_structures(scan.labels),
            numbers=self._numbers(file),
            told=told,
        )
        return self.cache.keep(key, prepared)

    def _key(self, file: File, what_else: Mapping[str, object]) -> str:
        return self.cache.key_of({**content_of(file), **self._decides, **what_else})

    def _read(self, file: File) -> tuple[Scan, tuple[str, ...]]:
        """A scan on its own grid, and the warnings that came with it."""
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            scan = load_scan(
                file.stored,
                file.labels,
                id=file.id,
                subject=file.subject,
                structures=self.index_of,
                empty_labels=self.entry.empty_labels,
            )
        path = str(file.image)
        self._check_kind(path, len(scan.shape) == 2)
        _check_size(scan, path, *self.preparation.first_grid(scan))
        return scan, tuple(str(warning.message) for warning in told)

    def _check_kind(self, path: str, flat: bool) -> None:
        """Refuse slices among volumes."""
        first_path, first_flat = self._first = self._first or (path, flat)
        if flat != first_flat:
            one, other = (path, first_path) if flat else (first_path, path)
            raise UserError(
                f"{one}: it is a single slice, and {other} a volume: all scans of a cohort must be "
                "of one kind"
            )

    def _numbers(self, file: File) -> str:
        return "" if file.labels is None else number_type(file.labels, max(self.index_of))

    def _check_on_grid(self, scan: Scan, original: Scan, path: str) -> None:
        """Refuse a scan of which the grid shows nothing; ``path`` is for the error."""
        sides = " x ".join(map(str, scan.shape))
        grid = f"on the grid of {sides} voxels of {self.preparation.wanted[1]:g} mm"
        if len(scan.shape) == 2 and len(original.shape) == 3:
            grid += ", its middle plane,"
        what_to_do = "look at its affine, or give the entry a grid that holds what is to be seen"
        if scan.image.max() - scan.image.min() < NO_CONTRAST:
            raise UserError(f"{path}: {grid} the image is flat: {what_to_do}")
        vanished = bool(_structures(original.labels)) and not _structures(scan.labels)
        if vanished and not self.entry.empty_labels:
            raise UserError(
                f"{path}: {grid} none of its structures is left: {what_to_do}, or say "
                "empty_labels = true in the entry, if scans may have none"
            )


def _names(file: File) -> Names:
    return Names(file.id, file.subject, str(file.image))


def _structures(labels: Tensor | None) -> tuple[int, ...]:
    """The indices of the structures in a label map."""
    if labels is None:
        return ()
    found = torch.bincount(labels.flatten()).nonzero().flatten().tolist()
    return tuple(index for index in found if index != 0)


def _check_size(scan: Scan, path: str, shape: Sequence[int], spacing: float) -> None:
    """Refuse a scan that one voxel of the grid would hold, or that holds the grid in one voxel:
    lengths of another unit. ``path``, of its image, is for the error.
    """
    voxel = scan.affine[:3, : len(scan.shape)].norm(dim=0)  # mm, of the scan
    length = (voxel * voxel.new_tensor(scan.shape)).max().item()
    grid = max(shape) * spacing
    if length < 2 * spacing or voxel.min() > grid / 2:
        raise UserError(
            f"{path}: the scan is {length:g} mm long, with voxels of "
            f"{voxel.min().item():g} mm, and the grid is {grid:g} mm long, with voxels of "
            f"{spacing:g} mm: mend the voxel size in the file's header, or its unit, or give the "
            "entry another grid"
        )
