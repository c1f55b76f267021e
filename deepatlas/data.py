"""Scans, cohorts and batches: tensors with a place in the world, split by subject, labels hidden.

A scan keeps the affine from its voxels to the world of its source file, through every resampling
and alignment, so that a result on the common grid can be carried back to the file it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True, eq=False)
class Source:
    """The file a scan was read from, and that file's own voxel grid."""

    path: str
    shape: tuple[int, ...]
    affine: Tensor  # (4, 4) float64, the file's voxel index -> world millimetres, RAS+
    # of the affine and the voxels of the image, and of its labels, as they were read
    digest: str = ""
    image_digest: str = ""  # of the voxels of the image alone: copies have the same


@dataclass(frozen=True, eq=False)
class Scan:
    """One image of one subject, on a voxel grid."""

    id: str
    subject: str  # scans of one person never fall on two sides of a split
    image: Tensor  # (1, I, J, K) float32, intensities in [0, 1]; 2D: (1, I, J)
    # (4, 4) float64, voxel index -> world millimetres, RAS+; a 2D scan is the plane k = 0
    affine: Tensor
    # (I, J, K) integer, index into Cohort.structures; None: unlabelled
    labels: Tensor | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.image.ndim not in (3, 4) or self.image.shape[0] != 1:
            raise ValueError(
                f"scan {self.id}: the image must be (1, I, J) or (1, I, J, K), "
                f"got {tuple(self.image.shape)}"
            )
        if self.labels is not None and self.labels.shape != self.image.shape[1:]:
            raise ValueError(
                f"scan {self.id}: image {tuple(self.image.shape[1:])} and labels "
                f"{tuple(self.labels.shape)} must have the same voxels"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.image.shape[1:])

    @property
    def to_source(self) -> Tensor:
        """(4, 4) this scan's voxel index -> voxel index of the file it was read from."""
        if self.source is None:
            raise ValueError(f"scan {self.id} was not read from a file")
        return torch.linalg.inv(self.source.affine) @ self.affine


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans on one isotropic grid, split by subject."""

    name: str
    structures: tuple[str, ...]  # name of each label; structures[0] is the background
    spacing: float  # millimetres from voxel to voxel
    train: tuple[Scan, ...]
    validation: tuple[Scan, ...]
    test: tuple[Scan, ...]
    licence: str = ""
    # (moving, fixed) -> the true Deformation: known for phantoms only
    truth: Callable | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError(f"cohort {self.name}: there is no training scan")
        shapes = {scan.shape for scan in self.scans}
        if len(shapes) > 1:
            raise ValueError(
                f"cohort {self.name}: all scans must share one grid, got {sorted(shapes)}: "
                "resample them"
            )
        ids = [scan.id for scan in self.scans]
        twice = {name for name in ids if ids.count(name) > 1}
        if twice:
            raise UserError(
                f"cohort {self.name}: scan ids must be unique, twice: {', '.join(sorted(twice))}"
            )
        self._check_that_no_subject_leaks()
        for scan in self.scans:
            self._check_labels(scan)

    def _check_that_no_subject_leaks(self) -> None:
        leaked = set()
        for one, other in combinations((self.train, self.validation, self.test), 2):
            leaked |= {scan.subject for scan in one} & {scan.subject for scan in other}
        if leaked:
            raise UserError(
                f"cohort {self.name}: subjects on two sides of the split: "
                f"{', '.join(sorted(leaked))}"
            )

    def _check_labels(self, scan: Scan) -> None:
        if scan.labels is None:
            return
        low, high = int(scan.labels.min()), int(scan.labels.max())
        if low < 0 or high >= len(self.structures):
            raise ValueError(
                f"scan {scan.id}: labels from {low} to {high}, but the cohort has only "
                f"{len(self.structures)} structures with background"
            )

    @property
    def scans(self) -> tuple[Scan, ...]:
        """All scans: train, validation, test."""
        return self.train + self.validation + self.test

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis of the common grid."""
        return self.train[0].shape

    @property
    def labelled(self) -> tuple[Scan, ...]:
        """The N training scans whose labels may be seen."""
        return tuple(scan for scan in self.train if scan.labels is not None)

    @property
    def fingerprint(self) -> str:
        """A hash of what the scans were made from: their ids, the grid, and what is in their files.

        Not of their own voxels: after an alignment, these differ in the last bits between machines.
        """
        made_from = []
        for scan in self.scans:
            digest = None if scan.source is None else scan.source.digest
            made_from.append((scan.id, scan.shape, digest))
        return hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]

    def hide_labels(self, keep: int, seed: int = 0) -> Cohort:
        """The same cohort in which ``keep`` training scans, drawn by ``seed``, keep their labels.

        Nested: with one seed, the scans of a smaller ``keep`` are among those of a larger one.
        Validation and test scans are not touched.
        """
        labelled = self.labelled
        if not 0 <= keep <= len(labelled):
            raise UserError(
                f"keep must be from 0 to {len(labelled)}, the labelled training scans of "
                f"{self.name}, got {keep}"
            )
        order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed))
        kept = {labelled[i].id for i in order[:keep].tolist()}
        train = []
        for scan in self.train:
            train.append(scan if scan.id in kept else replace(scan, labels=None))
        return replace(self, train=tuple(train))

    def to(self, device: torch.device | str) -> Cohort:
        """The same cohort with images and labels on ``device``."""

        def moved(scan: Scan) -> Scan:
            labels = None if scan.labels is None else scan.labels.to(device)
            return replace(scan, image=scan.image.to(device), labels=labels)

        def all_moved(scans: Iterable[Scan]) -> tuple[Scan, ...]:
            return tuple(moved(scan) for scan in scans)

        return replace(
            self,
            train=all_moved(self.train),
            validation=all_moved(self.validation),
            test=all_moved(self.test),
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Several scans as tensors; labelled and unlabelled ones side by side."""

    image: Tensor  # (B, 1, I, J, K) float32
    one_hot: Tensor  # (B, C, I, J, K) float32, all 0 where unknown
    known: Tensor  # (B,) bool: has this scan an expert's labels?
    ids: tuple[str, ...]

    @classmethod
    def of(cls, scans: Sequence[Scan], structures: int) -> Batch:
        """A batch of ``scans`` with ``structures`` channels, background included."""
        image = torch.stack([scan.image for scan in scans])
        one_hot = image.new_zeros(len(scans), structures, *image.shape[2:])
        for row, scan in zip(one_hot, scans, strict=True):
            if scan.labels is not None:
                row.scatter_(0, scan.labels[None].long(), 1.0)
        known = torch.tensor([scan.labels is not None for scan in scans], device=image.device)
        ids = tuple(scan.id for scan in scans)
        return cls(image, one_hot, known, ids)


# --- intensities ----------------------------------------------------------------------------------


def rescale_intensities(array: np.ndarray, name: str) -> np.ndarray:
    """Intensities in [0, 1]: percentiles 1 and 99.5 of the voxels above the minimum become 0 and 1.

    MRI intensities have no unit, and a few bright voxels must not decide the scale. ``name`` is for
    the errors.
    """
    finite = np.isfinite(array)
    if not finite.all():
        raise UserError(
            f"{name}: {np.count_nonzero(~finite)} voxels are NaN or infinite: repair the image"
        )
    above = array[array > array.min()]
    if above.size == 0:
        raise UserError(
            f"{name}: every voxel has the value {array.flat[0]:g}: there is nothing to see"
        )
    low, high = np.percentile(above, (1, 99.5))
    if high <= low:  # a binary image
        low = array.min()
    rescaled = np.clip((array - low) / (high - low), 0, 1)
    return rescaled.astype(np.float32)


# --- splits ---------------------------------------------------------------------------------------


Item = TypeVar("Item")  # a scan, or anything else of a ``subject``: a file not read yet


def split_by_subject(
    scans: Sequence[Item], sizes: Sequence[int], seed: int = 0
) -> tuple[tuple[Item, ...], ...]:
    """Disjoint groups of at least ``sizes`` scans each, whole subjects at a time, in an order drawn
    by ``seed``.
    """
    subjects = sorted({scan.subject for scan in scans})
    order = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(seed))
    waiting = [subjects[i] for i in order.tolist()]
    groups = []
    for size in sizes:
        group: list[Item] = []
        while len(group) < size:
            if not waiting:
                raise UserError(
                    f"{len(scans)} scans of {len(subjects)} subjects do not fill groups of "
                    f"{tuple(sizes)}"
                )
            subject = waiting.pop(0)
            group += [scan for scan in scans if scan.subject == subject]
        groups.append(tuple(group))
    return tuple(groups)
