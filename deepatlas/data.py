"""Scans and cohorts: from NIfTI files to tensors on one common grid, splits by subject, and hidden
labels.

A scan keeps the affine from its voxels to the world of its source file, through every resampling
and alignment, so that a result on the common grid can be carried back to the file it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """The file a scan was read from, and that file's own voxel grid."""

    path: str
    shape: tuple[int, ...]
    affine: Tensor  # (4, 4) float64, the file's voxel index -> world millimetres, RAS+
    # of the affine and the voxels of the image, and of its labels, as they were read
    digest: str = ""


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
        scans = self.scans
        if not self.train:
            raise ValueError(f"cohort {self.name}: there is no training scan")
        shapes = {scan.shape for scan in scans}
        if len(shapes) > 1:
            raise ValueError(
                f"cohort {self.name}: all scans must share one grid, got {sorted(shapes)}: resample them"
            )
        ids = [scan.id for scan in scans]
        if twice := {name for name in ids if ids.count(name) > 1}:
            raise ValueError(
                f"cohort {self.name}: scan ids must be unique, twice: {', '.join(sorted(twice))}"
            )
        parts = [
            {scan.subject for scan in part} for part in (self.train, self.validation, self.test)
        ]
        if leaked := (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2]):
            raise ValueError(
                f"cohort {self.name}: subjects on two sides of the split: {', '.join(sorted(leaked))}"
            )
        for scan in scans:
            if scan.labels is not None:
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
        made_from = [
            (scan.id, scan.shape, scan.source and scan.source.digest) for scan in self.scans
        ]
        return hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]

    def hide_labels(self, keep: int, seed: int = 0) -> Cohort:
        """The same cohort in which ``keep`` training scans, drawn by ``seed``, keep their labels: N
        = ``keep``.

        Nested: with one seed, the scans of a smaller ``keep`` are among those of a larger one.
        Validation and test scans are not touched.
        """
        if not 0 <= keep <= len(self.labelled):
            raise ValueError(
                f"keep must be from 0 to {len(self.labelled)}, the labelled training scans of "
                f"{self.name}, got {keep}"
            )
        order = torch.randperm(len(self.labelled), generator=torch.Generator().manual_seed(seed))
        kept = {self.labelled[i].id for i in order[:keep].tolist()}
        train = tuple(
            scan if scan.id in kept else replace(scan, labels=None) for scan in self.train
        )
        return replace(self, train=train)

    def to(self, device: torch.device | str) -> Cohort:
        """The same cohort with images and labels on ``device``."""

        def move(scans: Iterable[Scan]) -> tuple[Scan, ...]:
            return tuple(
                replace(
                    scan,
                    image=scan.image.to(device),
                    labels=None if scan.labels is None else scan.labels.to(device),
                )
                for scan in scans
            )

        return replace(
            self, train=move(self.train), validation=move(self.validation), test=move(self.test)
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
        return cls(image, one_hot, known, tuple(scan.id for scan in scans))


# --- files ----------------------------------------------------------------------------------------


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
        raise ValueError(
            f"{path}: cannot be read as NIfTI ({reason}); is the file complete?"
        ) from error
    shape, affine = tuple(image.shape), image.affine.astype(np.float64)
    if array.ndim not in (2, 3) or min(array.shape) == 0 or shape[3:] not in ((), (1,)):
        raise ValueError(
            f"{path}: a 2D or 3D image was wanted, got shape {shape}: store one volume per file"
        )
    if not np.isfinite(affine).all() or not np.linalg.cond(affine[:3, :3]) < 1e6:
        raise ValueError(
            f"{path}: the affine in the header is not invertible: set the voxel size and orientation"
        )
    source = Source(str(path), shape, torch.from_numpy(affine))
    if array.ndim == 3:
        # turns and flips axes: no interpolation
        turned = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
        array, affine = np.asarray(turned.dataobj), turned.affine
    return array, affine, source


def rescale_intensities(array: np.ndarray, name: str) -> np.ndarray:
    """Intensities in [0, 1]: percentiles 1 and 99.5 of the voxels above the minimum become 0 and 1.

    MRI intensities have no unit, and a few bright voxels must not decide the scale. ``name`` is for
    the errors.
    """
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name}: {np.count_nonzero(~np.isfinite(array))} voxels are NaN or infinite: "
            "repair the image"
        )
    above = array[array > array.min()]
    if above.size == 0:
        raise ValueError(
            f"{name}: every voxel has the value {array.flat[0]:g}: there is nothing to see"
        )
    low, high = np.percentile(above, (1, 99.5))
    if high <= low:  # a binary image
        low = array.min()
    return np.clip((array - low) / (high - low), 0, 1).astype(np.float32)


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
    index, digest = None, hashlib.sha256(affine.tobytes() + array.tobytes())
    if labels is not None:
        numbers, label_affine, _ = read_nifti(labels)
        if numbers.shape != array.shape:
            raise ValueError(
                f"{labels}: the labels have {numbers.shape} voxels, "
                f"but the image {image} has {array.shape}"
            )
        if not np.allclose(label_affine, affine, atol=1e-2):
            raise ValueError(
                f"{labels}: the labels lie elsewhere in the world than the image {image}: "
                "their affines differ; resample one onto the other"
            )
        if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any():
            raise ValueError(
                f"{labels}: labels must be whole numbers; this looks like an image or probabilities"
            )
        index = np.zeros(numbers.shape, np.uint8)
        for number, structure in structures.items():
            index[numbers == number] = structure
        if not index.any():
            found = sorted({int(number) for number in np.unique(numbers)} - {0})[:10]
            raise ValueError(
                f"{labels}: none of the wanted labels {sorted(structures)[:10]} occurs, found {found}"
            )
        digest.update(index.tobytes())
    return Scan(
        id,
        subject,
        torch.from_numpy(rescale_intensities(array, str(image)))[None],
        torch.from_numpy(affine.astype(np.float64)),
        None if index is None else torch.from_numpy(index),
        replace(source, digest=digest.hexdigest()),
    )


# --- one grid -------------------------------------------------------------------------------------


def check_sides(shape: Sequence[int], multiple: int) -> None:
    """Refuse a grid that the networks cannot halve often enough."""
    if len(shape) not in (2, 3) or any(n < multiple or n % multiple for n in shape):
        raise ValueError(
            f"every side must be divisible by {multiple}, and there must be 2 or 3, got {tuple(shape)}: "
            "pass another shape"
        )


def centred_affine(scan: Scan, shape: Sequence[int], spacing: float) -> Tensor:
    """(4, 4) of a grid of ``shape`` and ``spacing`` (mm) with RAS axes, centred where ``scan`` is.

    A 2D grid on a 3D scan is the axial plane through that centre. Where source and target have the
    same spacing the shift is a whole number of voxels, so that nothing is interpolated.
    """
    if not spacing > 0:
        raise ValueError(f"spacing must be a positive number of millimetres, got {spacing}")
    own = torch.tensor((*scan.shape, 1)[:3], dtype=torch.float64)
    wanted = torch.tensor((*shape, 1)[:3], dtype=torch.float64)
    # voxel of the source
    middle = torch.div(own - wanted, 2, rounding_mode="floor") + (wanted - 1) / 2
    affine = torch.eye(4, dtype=torch.float64) * spacing
    affine[3, 3] = 1
    if not torch.allclose(scan.affine[:3, :3], affine[:3, :3], atol=1e-4):
        middle = (own - 1) / 2
    centre = scan.affine[:3, :3] @ middle + scan.affine[:3, 3]
    affine[:3, 3] = centre - spacing * (wanted - 1) / 2
    return affine


def resample(scan: Scan, affine: Tensor, shape: Sequence[int]) -> Scan:
    """``scan`` on the grid of ``affine`` (its voxels -> the scan's world) and ``shape``, in one
    interpolation.

    The image is smoothed first where the new voxels are larger, and continues its border outside. A
    new voxel's label is the majority of the nearest labels at 2^D points inside it: integers are
    counted, never interpolated.
    """
    matrix = (torch.linalg.inv(scan.affine) @ affine).numpy()  # new voxel -> old voxel
    # old voxels per new voxel, along each old axis
    step = np.linalg.norm(matrix[:3, : len(shape)], axis=1)
    volume = scan.image.numpy()[0].reshape((*scan.shape, 1)[:3])
    out_shape = (*shape, 1)[:3]
    smooth = ndimage.gaussian_filter(volume, np.maximum(step - 1, 0) / 2, mode="nearest")
    image = ndimage.affine_transform(
        smooth, matrix[:3, :3], matrix[:3, 3], out_shape, order=1, mode="nearest"
    )
    labels = None
    if scan.labels is not None:
        labels = torch.from_numpy(
            _vote(scan.labels.numpy().reshape(volume.shape), matrix, shape).reshape(shape)
        )
    return replace(
        scan,
        image=torch.from_numpy(image.reshape(1, *shape).clip(0, 1)),
        affine=affine,
        labels=labels,
    )


def _vote(labels: np.ndarray, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Majority of the nearest ``labels`` at the 2^D points a quarter voxel from each new voxel's
    centre.

    The label at the centre decides ties: the first corner's would move every structure a quarter
    voxel.
    """
    corners = (
        np.array(np.meshgrid(*[(-0.25, 0.25)] * len(shape), *[(0,)] * (3 - len(shape))))
        .reshape(3, -1)
        .T
    )
    votes = np.stack(
        [
            ndimage.affine_transform(
                labels,
                matrix[:3, :3],
                matrix[:3, 3] + matrix[:3, :3] @ point,
                (*shape, 1)[:3],
                order=0,
                mode="grid-constant",
            )
            for point in (np.zeros(3), *corners)
        ]
    )
    agreeing = np.stack([(votes[1:] == vote).sum(0, dtype=np.uint8) for vote in votes])
    return np.take_along_axis(votes, agreeing.argmax(0)[None], 0)[0]


# --- splits ---------------------------------------------------------------------------------------


def split_by_subject(
    scans: Sequence[Scan], sizes: Sequence[int], seed: int = 0
) -> tuple[tuple[Scan, ...], ...]:
    """Disjoint groups of at least ``sizes`` scans each, whole subjects at a time, in an order drawn
    by ``seed``.
    """
    subjects = sorted({scan.subject for scan in scans})
    order = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(seed)).tolist()
    queue = [[scan for scan in scans if scan.subject == subjects[i]] for i in order]
    groups = []
    for size in sizes:
        group: list[Scan] = []
        while len(group) < size:
            if not queue:
                raise ValueError(
                    f"{len(scans)} scans of {len(subjects)} subjects do not fill groups of {tuple(sizes)}"
                )
            group += queue.pop(0)
        groups.append(tuple(group))
    return tuple(groups)
