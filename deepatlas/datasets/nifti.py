"""NIfTI files: read as arrays with RAS+ axes, and as scans.

nibabel knows what the fields of a header mean. What a file may get wrong is looked at here: nibabel
mends an odd header in silence, guesses a place where none is told, takes any unit for millimetres,
and stops reading before the checksum of gzip.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from nibabel.spatialimages import HeaderDataError

from ..data import Scan, Source, label_dtype, rescale_intensities
from ..errors import UserError

GZIP = b"\x1f\x8b"  # how a compressed file begins
BEST_RATIO = 1032  # a byte of gzip stands for no more bytes than this
PIECE = 2**20  # bytes that are read at once
PLANES = 64  # that are worked on at once
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by code of the unit of place; 0: not told
UNITS = {0: "not told", 1: "m", 2: "mm", 3: "µm"}
FARTHEST = 1e6  # mm, a kilometre: no voxel is so large or lies so far away
ELSEWHERE = 0.1  # voxels: two grids whose corners are further apart are not in one place
ROUNDING = 1e-3  # so far a label may be from a whole number

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Volume:
    """One image of a file that may hold several, as contrasts of one scan: its number, from 0."""

    path: Path
    number: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """That image of the file's numbers (I, J, K, n); of a file with one image, that one."""
        count = math.prod(array.shape[3:])
        if count == 1:
            return array
        if array.ndim != 4 or self.number >= count:
            raise UserError(
                f"{self.path}: volume {self.number}, counted from 0, of a row of them was wanted, "
                f"got shape {array.shape}: take another channel"
            )
        return array[..., self.number]


def read_nifti(image: str | Path | Volume) -> tuple[np.ndarray, np.ndarray, Source]:
    """A 2D or 3D NIfTI file as (array, affine, source), a volume's axes turned RAS+.

    The numbers are of the file's own type, but float64 where ``scl_slope`` applies; the affine is
    in millimetres, whatever the unit of the file. UserError if the file is damaged, holds several
    volumes, of which none is named, or no plain numbers, or does not say where it lies.
    """
    path, header, array = read_one(image)
    volume = array.shape[:3]
    affine = affine_of(header, volume, path)
    step = step_of(header)
    source = Source(str(path), array.shape, torch.from_numpy(affine), step=step)
    array = array.reshape(volume)
    if array.ndim == 3:
        # turns and flips axes: no interpolation
        turn = orientations.io_orientation(affine)
        array = orientations.apply_orientation(array, turn)
        affine = affine @ orientations.inv_ornt_aff(turn, volume)
    return array, affine, source


def read_one(image: str | Path | Volume) -> tuple[Path, nib.Nifti1Header, np.ndarray]:
    """(path, header, numbers) of the only image in a file, or of the one that is named, the numbers
    along the file's own axes. UserError for several, of which none is named.
    """
    if isinstance(image, Volume):
        header, array = read_stored(image.path)
        return image.path, header, image.of(array)
    path = Path(image)
    header, array = read_stored(path, single=True)
    return path, header, array


def read_stored(path: str | Path, *, single: bool = False) -> tuple[nib.Nifti1Header, np.ndarray]:
    """The header of a NIfTI file, as it stands, and the numbers, scaled, along the file's own axes,
    however many: a field of vectors has five. ``single``: UserError for more than one volume.
    """
    path = Path(path)
    _check_that_it_is_there(path)
    with _enough_memory(path):
        return _read(path, single)


def read_header(
    path: str | Path, *, single: bool = True
) -> tuple[nib.Nifti1Header, tuple[int, ...]]:
    """The header of a NIfTI file, as it stands, and its shape. ``single``: UserError for more than
    one volume.
    """
    path = Path(path)
    _check_that_it_is_there(path)
    with _opened(path) as stream:
        header = _header(stream.read(nib.Nifti2Header.sizeof_hdr), path)
    return header, _layout(header, path, single)[0]


def step_of(header: nib.Nifti1Header) -> float:
    """From one number to the next, where a file keeps integers that its header scales; else 0."""
    slope = abs(float(header["scl_slope"]))
    integers = header.get_data_dtype().kind in "iu"
    return slope if integers and _scales(header) else 0.0


def _check_that_it_is_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; an image in NIfTI format (.nii or .nii.gz) was wanted"
        )


@contextmanager
def _enough_memory(path: str | Path) -> Iterator[None]:
    """A sentence where a sound file is too large for this machine."""
    try:
        yield
    except MemoryError as error:
        raise UserError(
            f"{path}: its voxels do not fit into the memory of this machine: "
            "free some, or resample the image to larger voxels"
        ) from error


# --- voxels ---------------------------------------------------------------------------------------


def _read(path: Path, single: bool) -> tuple[nib.Nifti1Header, np.ndarray]:
    """The header of a file, and its numbers, scaled as the header says.

    The file is read to its end: only there are the checksum and the length that gzip keeps, and
    only so is a header found out that tells of fewer voxels than there are.
    """
    with _opened(path) as stream:
        header = _header(stream.read(nib.Nifti2Header.sizeof_hdr), path)
        shape, dtype, offset = _layout(header, path, single)
        size = math.prod(shape) * dtype.itemsize
        # before any memory is asked for
        most = os.path.getsize(path) * (BEST_RATIO if isinstance(stream, gzip.GzipFile) else 1)
        if offset + size > most:
            raise _unreadable(
                path, f"its header tells of {offset + size} bytes, it can hold only {most}"
            )
        stream.seek(offset)
        content = np.empty(size, np.uint8)
        missing = size - _fill(content.data, stream)
        if missing:
            raise _unreadable(path, f"{missing} bytes are missing at its end")
        if stream.read(1):
            raise _unreadable(path, "it holds more bytes than its header tells of")
    array = content.view(dtype).reshape(shape, order="F")
    return header, _scaled(array, header, path)


def _fill(content: memoryview, stream: io.BufferedIOBase) -> int:
    """Read into ``content`` what a stream has left, a piece at a time, so that no second copy of a
    large image is made; how many bytes there were.
    """
    filled = 0
    while filled < len(content):
        got = stream.readinto(content[filled : filled + PIECE])
        if not got:
            break
        filled += got
    return filled


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file, unpacked where it is compressed; UserError where they turn out to be
    damaged.
    """
    with open(path, "rb") as file:
        compressed = file.read(2) == GZIP
        file.seek(0)
        try:
            yield gzip.GzipFile(fileobj=file) if compressed else file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: cannot be read as NIfTI ({reason}); is the file complete?")


def _header(start: bytes, path: Path) -> nib.Nifti1Header:
    """The header that a file starts with, as it stands: nibabel's mending is off."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if not kind.may_contain_header(start):
            continue
        header = kind(start[: kind.sizeof_hdr], check=False)
        if header["sizeof_hdr"] != kind.sizeof_hdr:
            break
        if header["magic"].item() != kind.single_magic:
            raise UserError(
                f"{path}: header and voxels are in two files: "
                "convert them to one in NIfTI format (.nii or .nii.gz)"
            )
        return header
    raise _unreadable(path, "it does not begin as a NIfTI file does")


def _layout(
    header: nib.Nifti1Header, path: Path, single: bool = True
) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, type, offset in bytes) of the voxels in the file; UserError if it is not one image,
    where a ``single`` one is wanted.
    """
    count = int(header["dim"][0])
    shape = tuple(int(side) for side in header["dim"][1 : 1 + count])
    if not 1 <= count <= 7 or min(shape) < 1:
        raise _unreadable(path, f"its header gives the dimensions {header['dim'].tolist()}")
    if single and (count < 2 or max(shape[3:], default=1) > 1):
        raise UserError(
            f"{path}: a 2D or 3D image was wanted, got shape {shape}: store one volume per "
            "file, or name one of them as the channel of the data set"
        )
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        raise _unreadable(path, f"its header gives an unknown type of voxels, {error}") from error
    if dtype.fields is not None:
        raise UserError(
            f"{path}: its voxels are colours, one number each was wanted: "
            "store the labels, or one channel, as a grey image"
        )
    if dtype.kind == "c":
        raise UserError(
            f"{path}: its voxels are complex numbers, real ones were wanted: "
            "store their magnitude, say"
        )
    if dtype.kind not in "iuf":
        raise _unreadable(path, f"its header gives the type of voxels {header['datatype']}")
    offset = float(header["vox_offset"]) or float(header.single_vox_offset)  # 0: not told
    if not header.single_vox_offset <= offset < 2**62 or not offset.is_integer():
        raise _unreadable(path, f"its header says that the voxels begin at byte {offset:g}")
    return shape, dtype, int(offset)


def _scaled(array: np.ndarray, header: nib.Nifti1Header, path: Path) -> np.ndarray:
    """slope * array + intercept, float64; the array in its own type where there is no scaling."""
    if not _scales(header):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise _unreadable(path, f"its header scales by {slope:g} and adds {intercept:g}")
    values = array.astype(np.float64)
    values *= slope
    values += intercept
    return values


def _scales(header: nib.Nifti1Header) -> bool:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    return not (slope == 0 or math.isnan(slope) or (slope, intercept) == (1, 0))


# --- place ----------------------------------------------------------------------------------------


def affine_of(header: nib.Nifti1Header, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """(4, 4) float64, voxel index of the file -> world millimetres, RAS+; of a plane too.

    The sform, as nibabel takes it, or else the qform. A header with neither says nothing of left
    and right, and is refused. Where the two differ, a warning says so: other programs take the
    other one.
    """
    forms = _forms(header, shape, path)
    if not forms:
        raise UserError(
            f"{path}: its header does not say where it lies (sform and qform have code 0), so left "
            "and right are unknown: if you know its affine, set it, with image.set_sform(affine, "
            "code=1) and image.to_filename(...) of nibabel, say"
        )
    affine = forms[0]
    usable = np.isfinite(affine).all() and np.abs(affine).max() <= FARTHEST
    if not usable or not np.linalg.cond(affine[:3, :3]) < 1e6:
        raise UserError(
            f"{path}: the affine in the header is not invertible, or leads beyond a kilometre: "
            "set the voxel size and orientation"
        )
    _say_if_apart(forms, shape, path)
    return affine


def _forms(header: nib.Nifti1Header, shape: tuple[int, ...], path: Path) -> list[np.ndarray]:
    """The affines in millimetres that a header gives: by the sform, by the qform, or none."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in MILLIMETRES:
        raise UserError(
            f"{path}: its header gives places in an unknown unit, {unit}: "
            "set its xyzt_units to 2, millimetres, if they are"
        )
    forms = []
    if header["sform_code"] > 0:
        forms.append(header.get_sform())
    if header["qform_code"] > 0:
        forms.append(_qform(header, flat=len(shape) == 2))
    for form in forms:
        form[:3] *= MILLIMETRES[unit]
    return forms


@dataclass(frozen=True)
class Place:
    """What a header says of where its voxels lie, beside the affine that is taken."""

    sform_code: int
    qform_code: int
    unit: str
    apart: float  # voxels between the places by sform and by qform; NaN if the qform is not valid


def read_place(path: str | Path) -> Place:
    """The codes of sform and qform, the unit, and how far the two forms differ, in voxels of the
    first; of a file that ``read_nifti`` reads.
    """
    path = Path(path)
    header, shape = read_header(path, single=False)
    forms = _forms(header, shape[:3], path)
    with np.errstate(all="ignore"):  # a qform may hold anything
        apart = voxels_apart(forms[0], forms[-1], shape[:3])
    return Place(
        int(header["sform_code"]),
        int(header["qform_code"]),
        UNITS[int(header["xyzt_units"]) & 7],
        apart,
    )


def _say_if_apart(forms: list[np.ndarray], shape: tuple[int, ...], path: Path) -> None:
    """Warn of a header whose sform and qform, if it has both, put the voxels in two places."""
    if not np.isfinite(forms[-1]).all():
        reason = "its qform is not valid"
    else:
        with np.errstate(all="ignore"):  # a qform may hold anything
            apart = voxels_apart(forms[0], forms[-1], shape)
            if apart <= ELSEWHERE:
                return
            last = [*(side - 1 for side in shape), 0, 0][:3]
            by_sform, by_qform = (np.round(form @ [*last, 1], 1)[:3].tolist() for form in forms)
        reason = (
            f"its header tells of two places, up to {apart:.2g} voxels apart: its last voxel is at "
            f"{by_sform} mm by the sform, at {by_qform} by the qform"
        )
    warnings.warn(
        f"{path}: {reason}; the sform is taken, other programs may take the qform", stacklevel=4
    )


def _qform(header: nib.Nifti1Header, flat: bool) -> np.ndarray:
    """(4, 4) of the quaternion in a header, in the file's unit; NaN if it is not valid."""
    header = header.copy()
    sides = header["pixdim"]
    sides[1:4] = np.abs(sides[1:4])  # older files have negative ones
    if sides[0] == 0:  # the sign of the third axis, + where none is told
        sides[0] = 1
    if flat and sides[3] == 0:
        sides[3] = 1
    try:
        with np.errstate(all="ignore"):
            return header.get_qform()
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)


def voxels_apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far the corners of two grids of ``shape`` are apart, at most, in voxels of ``one``."""
    sides = (*shape, 1)[:3]
    ends = [(0, side - 1) for side in sides]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)], dtype=np.float64).T
    seen_from_one = np.linalg.inv(one) @ other @ corners
    return float(np.linalg.norm((seen_from_one - corners)[:3], axis=0).max())


# --- scans ----------------------------------------------------------------------------------------


def load_scan(
    image: str | Path | Volume,
    labels: str | Path | None,
    *,
    id: str,
    subject: str,
    structures: Mapping[int, int],
    empty_labels: bool = False,
) -> Scan:
    """One scan from NIfTI files, on its own voxel grid, RAS+; 2D, if that has one slice only, along
    whichever axis.

    ``structures`` maps the file's label numbers to indices into ``Cohort.structures``; unlisted
    numbers become background. None of them in the whole file is a UserError, unless
    ``empty_labels``: a scan without the lesion.
    """
    path = image.path if isinstance(image, Volume) else image
    with _enough_memory(path):
        array, affine, source = read_nifti(image)
        voxels = np.ascontiguousarray(array, dtype=np.float64)
        del array
        image_digest = digest_of(voxels)
        digest = hashlib.sha256(affine.tobytes() + image_digest.encode())
        rescaled = torch.from_numpy(rescale_intensities(voxels, str(path)))
        del voxels
    index = None
    if labels is not None:
        with _enough_memory(labels):
            numbers = read_labels_of(labels, path, tuple(rescaled.shape), affine)
            index = label_indices(numbers, structures, labels, empty_labels)
            digest.update(index.numpy().data)
    rescaled, index, affine = as_slice(rescaled, index, affine)
    return Scan(
        id,
        subject,
        image=rescaled[None],
        affine=torch.from_numpy(affine),
        labels=index,
        source=replace(source, digest=digest.hexdigest(), image_digest=image_digest),
    )


def as_slice(
    image: Array, labels: Array | None, affine: np.ndarray
) -> tuple[Array, Array | None, np.ndarray]:
    """(image, labels, affine) of a volume that is one voxel thick along one axis, whichever, as
    those of a plane; of anything else as they are.
    """
    if image.ndim == 2 or list(image.shape).count(1) != 1:
        return image, labels, affine
    thin = list(image.shape).index(1)
    in_plane: list[int] = [axis for axis in range(3) if axis != thin]
    flat = None if labels is None else labels.squeeze(thin)
    return image.squeeze(thin), flat, affine[:, [*in_plane, thin, 3]]


def digest_of(array: np.ndarray) -> str:
    """SHA-256 of the voxels of an image, in hexadecimal digits: of copies it is the same, whatever
    type they are stored in.
    """
    digest = hashlib.sha256()
    for block in blocks(array):
        # in float64 every number of 32 bits is exact
        digest.update(np.ascontiguousarray(block, dtype=np.float64).data)
    return digest.hexdigest()


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Views of some planes at a time: what is computed of one needs little memory, and of an array
    whose first axis is the fastest, as in a file, each cache line is read once.
    """
    for first in range(0, len(array), PLANES):
        yield array[first : first + PLANES]


def read_labels_of(
    labels: str | Path, image: str | Path, shape: tuple[int, ...], affine: np.ndarray
) -> np.ndarray:
    """The label numbers, integers, of a file that must lie where its image does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two places: its image's has been told
        numbers, own_affine = read_labels(labels)
    if numbers.shape != shape:
        raise UserError(
            f"{labels}: the labels have {numbers.shape} voxels, but the image {image} has {shape}"
        )
    apart = voxels_apart(affine, own_affine, shape)
    if apart > ELSEWHERE:
        raise UserError(
            f"{labels}: the labels lie elsewhere in the world than the image {image}: "
            f"their corners are up to {apart:.2g} voxels apart; resample one onto the other"
        )
    return numbers


def read_labels(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The label numbers of a file, integers, and its affine, as ``read_nifti`` turns them;
    UserError unless they are whole numbers.
    """
    numbers, affine, source = read_nifti(path)
    if numbers.dtype.kind == "f":
        numbers = whole_numbers(numbers, source.step, path)
    return numbers, affine


def number_type(path: str | Path, largest: int) -> str:
    """The integer type of a file's label numbers, as NumPy calls it; where it keeps them as
    floating-point numbers, or scaled, the smallest common one that holds the ``largest``.
    """
    header, _ = read_header(path)
    stored = header.get_data_dtype()
    if stored.kind in "iu" and not _scales(header):
        return stored.name
    return smallest_type(largest)


def smallest_type(largest: int) -> str:
    """The smallest common integer type that holds ``largest``, as NumPy calls it."""
    types = ("uint8", "int16", "int32", "int64")
    return next(name for name in types if largest <= np.iinfo(name).max)


def whole_numbers(numbers: np.ndarray, step: float, labels: str | Path) -> np.ndarray:
    """Labels that a file keeps as floating-point numbers, or as integers that its header scales in
    steps of ``step``, as the integers that they mean, int64.
    """
    whole = np.round(numbers)
    # programs that save them under another type fit the steps to the largest label
    tolerance = max(ROUNDING, min(0.51 * step, 0.1))
    if not np.isfinite(numbers).all() or np.abs(numbers - whole).max() > tolerance:
        raise UserError(
            f"{labels}: labels must be whole numbers; this looks like an image or probabilities"
        )
    # from here on, a whole number and the next are stored as the same
    digits = min(np.finfo(numbers.dtype).nmant + 1, 62)
    if np.abs(whole).max() >= 2.0**digits:
        raise UserError(
            f"{labels}: labels from 2^{digits} on are not exact in {numbers.dtype}: "
            "store them as integers"
        )
    return whole.astype(np.int64)


def label_indices(
    numbers: np.ndarray, structures: Mapping[int, int], labels: str | Path, empty_labels: bool
) -> torch.Tensor:
    """Label numbers as indices into ``Cohort.structures``; ``labels`` is for the error."""
    found = distinct(numbers)
    index_of = [structures.get(int(number), 0) for number in found]
    if not any(index_of) and not empty_labels:
        others = [int(number) for number in found if number != 0]
        raise UserError(
            f"{labels}: none of the wanted labels {sorted(structures)[:10]} occurs, "
            f"found {others[:10]}; if a scan may have none of them, say empty_labels = true in the "
            "entry of the data set"
        )
    dtype = label_dtype(max(structures.values(), default=0) + 1)
    table = torch.tensor(index_of, dtype=dtype).numpy()
    few = has_few(found)
    if few:  # a row for each number from 0 on, whether it occurs or not
        rows = np.zeros(int(found[-1]) + 1, table.dtype)
        rows[found] = table
        table = rows
    indices = np.empty(numbers.shape, table.dtype)
    # not all at once: what numpy looks up by, it makes integers of 64 bits first
    for block, some in zip(blocks(indices), blocks(numbers), strict=True):
        block[:] = table[some if few else np.searchsorted(found, some)]
    return torch.from_numpy(indices)


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The label numbers that occur, in order."""
    ends = np.array([numbers.min(), numbers.max()])
    if not has_few(ends):
        return np.unique(numbers)
    # no sorting
    occurs = np.zeros(int(ends[1]) + 1, bool)
    for block in blocks(numbers):
        occurs[block] = True
    return occurs.nonzero()[0]


def has_few(ends: np.ndarray) -> bool:
    """Are numbers, of which the first and the last are given, few enough for a table with a row for
    each from 0 on?
    """
    return bool(ends[0] >= 0 and ends[-1] < 2**16)
