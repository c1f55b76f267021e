"""Scans, cohorts and batches: tensors with a place in the world, split by subject, labels hidden.

A scan keeps the affine from its voxels to the world of its source file, through every resampling
and alignment, so that a result on the common grid can be carried back to the file it came from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol, TypeVar

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
    step: float = 0.0  # from one number to the next, where the file keeps scaled integers


@dataclass(frozen=True, eq=False)
class Scan:
    """One image of one subject, on a voxel grid."""

    id: str
    subject: str  # scans of one person never fall on two sides of a split
    image: Tensor  # (1, I, J, K) float32, intensities in [0, 1]; 2D: (1, I, J)
    # (4, 4) float64, voxel index -> world millimetres, RAS+; a 2D scan is the plane k = 0
    affine: Tensor
    # (I, J, K) integer (see ``as_labels``), index into Cohort.structures; None: unlabelled
    labels: Tensor | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.image.ndim not in (3, 4) or self.image.shape[0] != 1:
            raise ValueError(
                f"scan {self.id}: the image must be (1, I, J) or (1, I, J, K), "
                f"got {tuple(self.image.shape)}"
            )
        _check_affine(self.affine, self.id)
        if self.labels is None:
            return
        if self.labels.shape != self.image.shape[1:]:
            raise ValueError(
                f"scan {self.id}: image {tuple(self.image.shape[1:])} and labels "
                f"{tuple(self.labels.shape)} must have the same voxels"
            )
        object.__setattr__(self, "labels", as_labels(self.labels, f"scan {self.id}"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return tuple(self.image.shape[1:])

    @property
    def known_labels(self) -> Tensor:
        """(I, J, K) the labels of a scan that has some; ValueError of any other."""
        if self.labels is None:
            raise ValueError(f"scan {self.id} has no labels")
        return self.labels

    @property
    def known_source(self) -> Source:
        """The file that a scan was read from; ValueError if it was not read from one."""
        if self.source is None:
            raise ValueError(f"scan {self.id} was not read from a file")
        return self.source

    @property
    def to_source(self) -> Tensor:
        """(4, 4) this scan's voxel index -> voxel index of the file it was read from."""
        return torch.linalg.inv(self.known_source.affine) @ self.affine


def _check_affine(affine: Tensor, id: str) -> None:
    """Refuse what leads from voxels to no place in the world."""
    if affine.shape != (4, 4) or not affine.isfinite().all():
        raise UserError(
            f"scan {id}: the affine must be 4 x 4 finite numbers, got {affine.tolist()}"
        )
    sides = affine[:3, :3].double().norm(dim=0)  # mm, of a voxel
    volume = torch.linalg.det(affine[:3, :3].double()).abs()
    if not volume > 1e-6 * sides.prod():
        raise UserError(
            f"scan {id}: the affine is singular, its voxels have no volume: "
            "set the voxel size and orientation"
        )


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
    # how a scan that comes later is prepared alike: (shape, mm) of the grid on which scans were
    # aligned, and the image (1, I, J, K) on it that they were aligned to
    volume: tuple[tuple[int, ...], float] | None = None
    reference: Tensor | None = None
    # how the files say it: of each structure but the background, the label numbers that mean it,
    # and the integer type of these numbers
    label_numbers: tuple[tuple[int, ...], ...] = ()
    label_dtype: str = ""
    preferred: tuple[str, ...] = ()  # ids of training scans whose labels are kept first
    # where scans go, a batch at a time, if they are too many to be there all at once; else None
    batches_on: torch.device | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise UserError(f"cohort {self.name}: there is no training scan")
        shapes = {scan.shape for scan in self.scans}
        if len(shapes) > 1:
            raise ValueError(
                f"cohort {self.name}: all scans must share one grid, got {sorted(shapes)}: "
                "resample them"
            )
        count = Counter(scan.id for scan in self.scans)
        twice = [name for name in count if count[name] > 1]
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
    def device(self) -> torch.device:
        """Where batches of it are computed with: where its scans are, unless these are too many."""
        return self.batches_on or self.train[0].image.device

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

        Those that are ``preferred`` come first. Nested: with one seed, the scans of a smaller
        ``keep`` are among those of a larger one. Validation and test scans are not touched.

        >>> def scan(name):
        ...     labels = torch.zeros(8, 8, dtype=torch.uint8)
        ...     return Scan(name, name, torch.zeros(1, 8, 8), torch.eye(4), labels)
        >>> cohort = Cohort("toy", ("background",), 1.0, tuple(map(scan, "abcd")), (), ())
        >>> one, two = cohort.hide_labels(keep=1), cohort.hide_labels(keep=2)
        >>> len(two.train), len(two.labelled), set(one.labelled) < set(two.labelled)
        (4, 2, True)
        """
        labelled = self.labelled
        if not 0 <= keep <= len(labelled):
            raise UserError(
                f"keep must be from 0 to {len(labelled)}, the labelled training scans of "
                f"{self.name}, got {keep}"
            )
        order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed))
        drawn = [labelled[i].id for i in order.tolist()]
        drawn.sort(key=lambda id: id not in self.preferred)  # else the order stays as it was drawn
        kept = set(drawn[:keep])
        train = []
        for scan in self.train:
            train.append(scan if scan.id in kept else replace(scan, labels=None))
        return replace(self, train=tuple(train))

    def with_labels(self, least: Sequence[int] = (3, 2, 2)) -> Cohort:
        """The same cohort without the scans that nobody has labelled.

        UserError where fewer than ``least`` remain for training, validation and test.
        """
        parts = (self.train, self.validation, self.test)
        kept = [tuple(scan for scan in part if scan.labels is not None) for part in parts]
        found = [len(part) for part in kept]
        if any(count < wanted for count, wanted in zip(found, least, strict=True)):
            raise UserError(
                f"cohort {self.name}: scans with labels were wanted, {least[0]} for training, "
                f"{least[1]} for validation and {least[2]} for test, got {found[0]}, {found[1]} "
                f"and {found[2]}: label more scans, or take another data set here"
            )
        return replace(self, train=kept[0], validation=kept[1], test=kept[2])

    def to(self, device: torch.device | str) -> Cohort:
        """The same cohort with images and labels on ``device``.

        If they would take more than half of the memory that is free there, they stay where they
        are, and ``Batch.of`` moves them: see ``batches_on``.
        """
        device = torch.device(device)
        if self._bytes > _room_on(device) / 2:
            return replace(self, batches_on=device)

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
            batches_on=None,
        )

    @property
    def _bytes(self) -> int:
        """What images and labels take in memory."""
        images = sum(scan.image.nbytes for scan in self.scans)
        return images + sum(scan.labels.nbytes for scan in self.scans if scan.labels is not None)


def _room_on(device: torch.device) -> float:
    """The bytes that are free on a GPU of CUDA; of other devices nobody says: as many as wanted."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


@dataclass(frozen=True, eq=False)
class Batch:
    """Several scans as tensors; labelled and unlabelled ones side by side."""

    image: Tensor  # (B, 1, I, J, K) float32
    labels: Tensor  # (B, I, J, K) integers, index into Cohort.structures; 0 where unknown
    # has this scan an expert's labels? B answers that no GPU has to give
    known: tuple[bool, ...]
    ids: tuple[str, ...]
    structures: int  # background included

    @classmethod
    def of(
        cls, scans: Sequence[Scan], structures: int, device: torch.device | None = None
    ) -> Batch:
        """A batch of ``scans`` that know of ``structures``, background included; on ``device``, by
        default where the scans are.
        """
        image = torch.stack([scan.image for scan in scans])
        shape = (len(scans), *image.shape[2:])
        labels = torch.zeros(shape, dtype=label_dtype(structures), device=image.device)
        for row, scan in zip(labels, scans, strict=True):
            if scan.labels is not None:
                row.copy_(scan.labels)
        if device is not None:
            image, labels = sent(image, device), sent(labels, device)
        known = tuple(scan.labels is not None for scan in scans)
        return cls(image, labels, known, tuple(scan.id for scan in scans), structures)

    @property
    def one_hot(self) -> Tensor:
        """(B, C, I, J, K) float32, a channel for each structure, all 0 where unknown; made anew
        each time: it is much larger than ``labels``.
        """
        b, *voxels = self.labels.shape
        zeros = self.image.new_zeros(b, self.structures, *voxels)
        one_hot = zeros.scatter_(1, self.labels[:, None].long(), 1.0)
        for row, known in zip(one_hot, self.known, strict=True):
            if not known:
                row.zero_()
        return one_hot

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        """The scans whose numbers ``rows`` gives, R of them."""
        known = tuple(self.known[row] for row in rows)
        ids = tuple(self.ids[row] for row in rows)
        image, labels = rows_of(self.image, rows), rows_of(self.labels, rows)
        return Batch(image, labels, known, ids, self.structures)


def rows_of(batch: Tensor, rows: Sequence[int]) -> Tensor:
    """(B, ...) -> (R, ...): the items whose numbers ``rows`` gives; all of them are no copy.

    Numbers in a tensor would have to be sent to a GPU first, and to know how many of B answers are
    True it would have to do all its work.
    """
    if list(rows) == list(range(len(batch))):
        return batch
    if not rows:
        return batch[:0]
    items = batch.split(1)
    return torch.cat([items[row] for row in rows])


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``. On its way to a GPU of CUDA nobody waits: from memory that is
    pinned it is copied while the program goes on.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# --- labels ---------------------------------------------------------------------------------------

_SIGNED = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def as_labels(labels: Tensor, name: str = "") -> Tensor:
    """``labels`` as integers that PyTorch can compute with: bool becomes 0 and 1, and an unsigned
    type of more than 8 bits, for which it lacks most functions, a signed one that holds as much.

    TypeError, which says ``name``, for anything but integers: 1.9999999 would silently become 1.
    """
    if labels.is_floating_point() or labels.is_complex():
        whose = f"{name}: " if name else ""
        raise TypeError(
            f"{whose}labels must be integers, got {labels.dtype}: round them, or take the argmax "
            "of probabilities"
        )
    signed = labels.to(_SIGNED.get(labels.dtype, labels.dtype))
    if labels.dtype == torch.uint64 and (signed < 0).any():
        raise ValueError(f"{name or 'labels'}: numbers from 2^63 on have no signed integer type")
    return signed


def label_dtype(structures: int) -> torch.dtype:
    """The smallest integer type that holds the index of each of so many structures."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if structures - 1 <= torch.iinfo(dtype).max:
            return dtype
    raise ValueError(f"more structures than any image has voxels: {structures}")


# --- intensities ----------------------------------------------------------------------------------

PLATEAU = 0.05  # share of the voxels that make a background, if they are alike
LARGEST = 1e307  # of larger intensities the difference may be infinite
BELOW = 0.05  # share that may lie below it, of all voxels, and of those above it


def rescale_intensities(array: np.ndarray, name: str) -> np.ndarray:
    """Intensities in [0, 1]: percentiles 1 and 99.5 of the voxels above the background become 0 and
    1.

    MRI intensities have no unit, and a few bright voxels must not decide the scale. Nor must a few
    dark ones: the background is not what equals the minimum, but the value that many voxels share
    near the lower end; a scan without one is scaled by all its voxels. ``name`` is for the errors.
    """
    values = np.asarray(array, np.float64)  # integers of 32 bits have more digits than float32
    lowest, highest = values.min(), values.max()
    if not (abs(lowest) < LARGEST and abs(highest) < LARGEST):  # nor if one is NaN
        unusable = np.count_nonzero(~(np.abs(values) < LARGEST))
        raise UserError(
            f"{name}: {unusable} voxels are NaN, infinite or beyond {LARGEST:g}: repair the image"
        )
    if lowest == highest:
        raise UserError(f"{name}: every voxel has the value {lowest:g}: there is nothing to see")
    # one copy, in which the percentiles are found by exchanging voxels
    mixed = values.flatten("K")
    background = _background(mixed)
    mixed = mixed[mixed > background]
    low, high = np.percentile(mixed, (1, 99.5), overwrite_input=True)
    del mixed
    if high <= low:  # a binary image
        low = max(background, lowest)
    scaled = values - low
    scaled /= high - low
    return scaled.clip(0, 1, out=scaled).astype(np.float32)


def _background(values: np.ndarray) -> float:
    """The largest value that counts as background, -inf if there is none; the order of ``values``
    is changed.

    A background: a share ``PLATEAU`` of the voxels or more has the same value, to a thousandth of
    the range from there to the 99.5th percentile, and few voxels lie below.
    """
    count = max(1, round(PLATEAU * values.size))
    last = round(BELOW * values.size)
    if last + count >= values.size:
        return -np.inf
    # Sorted, ``count`` neighbours that are alike stand close together: of all rows of neighbours
    # that begin with one of the lowest values, the narrowest.
    values.partition(last + count)
    lower_end = np.sort(values[: last + count + 1])
    width = lower_end[count:] - lower_end[: last + 1]
    narrowest = int(width.argmin())
    begin = lower_end[narrowest]
    tolerance = 1e-3 * max(np.percentile(values, 99.5, overwrite_input=True) - begin, 0)
    if width[narrowest] > tolerance:
        return -np.inf
    end = begin if width[narrowest] == 0 else begin + tolerance
    # In the middle of the others, as the air of z-scores, or above them, as a white page, it is
    # no background.
    below = np.count_nonzero(values < begin - tolerance)
    above = np.count_nonzero(values > end)
    return -np.inf if below > BELOW * above else end


# --- splits ---------------------------------------------------------------------------------------


class _OfSubject(Protocol):
    """A scan, or anything else of a ``subject``: a file not read yet."""

    @property
    def subject(self) -> str:
        """The person it shows."""


Item = TypeVar("Item", bound=_OfSubject)


def split_by_subject(
    scans: Sequence[Item], sizes: Sequence[int], seed: int = 0
) -> tuple[tuple[Item, ...], ...]:
    """Disjoint groups of at least ``sizes`` scans each, whole subjects at a time, in an order drawn
    by ``seed``.

    >>> from types import SimpleNamespace
    >>> scans = [SimpleNamespace(subject=name) for name in ("ann", "ann", "bob", "bob", "cid")]
    >>> train, test = split_by_subject(scans, sizes=(2, 1))
    >>> {scan.subject for scan in train} & {scan.subject for scan in test}
    set()
    """
    subjects = sorted({scan.subject for scan in scans})
    order = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(seed))
    waiting = iter([subjects[i] for i in order.tolist()])
    scans_of: dict[str, list[Item]] = {subject: [] for subject in subjects}
    for scan in scans:
        scans_of[scan.subject].append(scan)
    groups = []
    for size in sizes:
        group: list[Item] = []
        while len(group) < size:
            subject = next(waiting, None)
            if subject is None:
                raise UserError(
                    f"{len(scans)} scans of {len(subjects)} subjects do not fill groups of "
                    f"{tuple(sizes)}"
                )
            group += scans_of[subject]
        groups.append(tuple(group))
    return tuple(groups)
