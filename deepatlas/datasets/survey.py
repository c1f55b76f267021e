"""What is in the files of a folder: one row a scan, and what is odd among them, in words.

One scan is in memory at a time. A file that cannot be read is named, and the others go on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from ..errors import UserError, printable, shortened
from .entries import Dims, in_ranges
from .layouts import File, Listing
from .nifti import ELSEWHERE, as_slice, blocks, digest_of, read_labels_of, read_nifti, read_place

PLANES = ("sagittal", "coronal", "axial")  # across R, A and S
PICTURE_VOXELS = 4_000_000  # of all pictures of a folder together
SMALLEST_PICTURE, LARGEST_PICTURE = 48, 192  # voxels along the longest side of one

# --- what is odd ----------------------------------------------------------------------------------

ENOUGH = 5  # scans, to say of an intensity or a volume what is usual
ENOUGH_ALIKE = 3  # scans, to say it of words, and of lengths, which are often the same
FAR = 5.0  # robust standard deviations from the median
RARE = 1 / 3  # the largest share of the scans that counts as the rare ones
SAME_LENGTH = math.log10(1.05)  # so much do lengths differ that are taken for the same
SAME_VOLUME = math.log10(2)
SAME_INTENSITY = math.log10(3)
SAME_SHARE = 0.1
OTHER_UNIT = 20  # so much longer or shorter is no scan of the same part of a body


Facts = dict[str, str | float]  # of one scan, by the column of the table


@dataclass(frozen=True)
class Plane:
    """A slice of a scan to look at; i to the right, j up."""

    title: str  # sagittal, coronal, axial, or slice
    where: str  # as "20 of 40"
    image: np.ndarray  # (I, J) uint8
    labels: np.ndarray | None  # (I, J) label numbers of the file
    lengths: tuple[float, float]  # mm
    axes: tuple[str, str]  # where i and j lead, as "R" and "S"


@dataclass
class Looked:
    """What was found in the files of one scan."""

    file: File
    facts: Facts = field(default_factory=dict)
    voxels: dict[int, int] = field(default_factory=dict)  # of each label number but 0
    volume: float = math.nan  # mm^3 of a voxel; of a slice, mm^2
    planes: list[Plane] = field(default_factory=list)
    flat: bool = False  # a slice, not a volume
    # of the axes of the array, a volume's turned RAS+: mm of a voxel
    spacing: tuple[float, ...] = ()
    # along the axes of the world, a slice's along its own: twice the mm from the image's centre to
    # its border, and to what is farthest of its structures (empty where there is none)
    extent: tuple[float, ...] = ()
    anatomy: tuple[float, ...] = ()
    apart: float = math.nan  # voxels between the places by sform and by qform
    digest: str = ""  # of the image's voxels
    label_digest: str = ""
    problem: str = ""  # why a run would refuse it


@dataclass(frozen=True)
class Oddity:
    """What is odd about some scans, but no hindrance."""

    ids: tuple[str, ...]
    text: str
    of_size: bool = False  # is it the size of the voxels, or of the image?


@dataclass(frozen=True)
class Survey:
    """What was found in a folder of scans."""

    listing: Listing
    scans: tuple[Looked, ...]
    oddities: tuple[Oddity, ...]
    persons: str  # how many there are, and how they were told apart

    @property
    def usable(self) -> list[Looked]:
        """The scans that a run can take."""
        return [scan for scan in self.scans if not scan.problem]

    @property
    def problems(self) -> list[str]:
        """Sentences: what a person must mend before a run takes these scans."""
        return [f"scan {scan.file.id}: {scan.problem}" for scan in self.scans if scan.problem]

    @property
    def dims(self) -> Dims:
        """2 if the files are slices, 3 if they are volumes."""
        return 2 if any(scan.flat for scan in self.usable) else 3

    @property
    def numbers(self) -> list[int]:
        """The label numbers in the files of the usable scans, without 0."""
        return sorted({number for scan in self.usable for number in scan.voxels})

    @property
    def remarks(self) -> list[str]:
        """Sentences: what is odd, all that is odd about the same scans in one."""
        texts: dict[tuple[str, ...], list[str]] = {}
        for oddity in self.oddities:
            texts.setdefault(oddity.ids, []).append(oddity.text)
        return [f"{who(ids)}: {'; '.join(some)}" for ids, some in texts.items()]

    def remarks_on(self, id: str) -> list[str]:
        """What is odd about one scan."""
        return [oddity.text for oddity in self.oddities if id in oddity.ids]

    def table(self) -> pd.DataFrame:
        """One row a scan: its header, its intensities, voxels and volume of each label number, and
        what is wrong or odd.
        """
        numbers = self.numbers
        volume = "mm2" if self.dims == 2 else "mm3"
        rows = []
        for scan in self.scans:
            row = {
                "id": printable(scan.file.id),
                "subject": printable(scan.file.subject),
                "group": scan.file.group or "",
                "image": printable(str(scan.file.image)),
                "labels": printable(str(scan.file.labels or "")),
                **scan.facts,
            }
            for number in numbers if scan.file.labels is not None and scan.facts else ():
                count = scan.voxels.get(number, 0)
                row[f"label {number} voxels"] = count
                row[f"label {number} {volume}"] = count * scan.volume
            row["problem"] = scan.problem
            row["odd"] = "; ".join(self.remarks_on(scan.file.id))
            rows.append(row)
        return pd.DataFrame(rows)


def survey(listing: Listing, *, quiet: bool = True) -> Survey:
    """Read every scan of ``listing``, one at a time; with a progress bar unless ``quiet``."""
    side = picture_side(len(listing.files))
    scans = []
    for file in tqdm(listing.files, desc="reading", unit="scan", disable=True if quiet else None):
        scans.append(look(file, listing.names, side))
    _find_slices_among_volumes(scans)
    _find_other_units(scans)
    copies = _find_copies(scans)
    usable = [scan for scan in scans if not scan.problem]
    oddities = (
        *copies,
        *_odd_places(usable),
        *_odd_words(usable),
        *_odd_lengths(usable),
        *_odd_intensities(usable),
        *_odd_labels(usable, listing),
    )
    return Survey(listing, tuple(scans), oddities, _persons(listing))


def picture_side(scans: int) -> int:
    """Voxels along the longest side of a picture, by how many scans there are to show."""
    side = math.sqrt(PICTURE_VOXELS / (len(PLANES) * max(1, scans)))
    return int(np.clip(side, SMALLEST_PICTURE, LARGEST_PICTURE))


def who(ids: Sequence[str]) -> str:
    """The scans of a sentence; of many, the first three."""
    some = ", ".join(ids[:3])
    if len(ids) == 1:
        return f"scan {some}"
    return f"scans {some}" + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def _persons(listing: Listing) -> str:
    persons = {file.subject for file in listing.files}
    text = f"{len(listing.files)} scans of {len(persons)} persons"
    alone = all(file.subject == file.id for file in listing.files)
    if listing.layout == "cohort":
        said = f"{text}, as the cohort file says"
        twice = "; where a person was scanned twice, give both scans the same subject in it"
        return said + twice if alone else said
    if alone:
        return (
            f"{text}: assumed, nothing in the folder says whose a scan is, so each counts as a "
            "person of its own; where a person was scanned twice, say how the scans' names give "
            'the person, as in --subject "mouse_{subject}_*", or write it into the cohort file'
        )
    if listing.layout == "table":
        return f"{text}, told by the table's column of persons, or by the names of the scans"
    return f"{text}, told by the names of the scans, or by what the folder says of them"


# --- one scan -------------------------------------------------------------------------------------


def look(file: File, names: Mapping[int, str], side: int) -> Looked:
    """What is in the files of a scan; pictures of at most ``side`` voxels."""
    found = Looked(file)
    try:
        _check_names(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of two places: a column says it
            array, affine, source = read_nifti(file.stored)
        place = read_place(file.image)
    except (UserError, OSError) as error:
        found.problem = shortened(str(error), 600)
        return found
    numbers = None
    if file.labels is not None:
        try:
            numbers = read_labels_of(file.labels, file.image, array.shape, affine)
        except (UserError, OSError) as error:
            found.problem = shortened(str(error), 600)
    array, numbers, affine = as_slice(array, numbers, affine)
    own_spacing = voxel_sizes(source.affine.numpy())[: len(source.shape)]
    found.spacing = tuple(voxel_sizes(affine)[: array.ndim].tolist())
    found.volume = math.prod(found.spacing)
    found.flat = array.ndim == 2
    found.extent = tuple((np.abs(_axes(affine, array.ndim)) @ array.shape).tolist())
    found.digest = digest_of(array)
    found.apart = round(place.apart, 3)
    found.facts = {
        "grid": _times(source.shape),
        "spacing_mm": _times(own_spacing),
        "orientation": "".join(nib.aff2axcodes(source.affine.numpy())),
        "unit": place.unit,
        "sform_code": place.sform_code,
        "qform_code": place.qform_code,
        "forms_apart_voxels": found.apart,
    }
    intensities, wrong = _intensities(array)
    found.facts |= intensities
    found.problem = found.problem or wrong
    if numbers is not None:
        _count(found, numbers, affine, names)
    found.planes = _planes(array, numbers, affine, intensities, side)
    return found


def _axes(affine: np.ndarray, dims: int) -> np.ndarray:
    """(dims, dims): the steps along the axes of the world, RAS, of one voxel along each of an
    array; of a slice, along the two axes that are closest to it.
    """
    if dims == 3:
        return affine[:3, :3]
    away = int(np.abs(np.cross(affine[:3, 0], affine[:3, 1])).argmax())
    return np.delete(affine[:3, :2], away, axis=0)


def _check_names(file: File) -> None:
    for text in (file.id, file.subject, str(file.image), str(file.labels or "")):
        if not text.isprintable():
            raise UserError(
                f"{printable(text)}: a name without line breaks, control characters and damaged "
                "letters was wanted: rename the file"
            )


def _times(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:.4g}" for side in sides)


def _intensities(array: np.ndarray) -> tuple[Facts, str]:
    """Columns of the table, and why a run would refuse the image, if it would."""
    values = array.ravel(order="K")
    not_finite = 0
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        not_finite = int(values.size - np.count_nonzero(finite))
        values = values[finite] if not_finite else values
    facts: Facts = {"type": str(array.dtype)}
    if not_finite:
        wrong = f"{not_finite} voxels of its image are NaN or infinite: repair the image"
    elif values.min() == values.max():
        wrong = f"its image has the value {values[0]:g} everywhere: there is nothing to see"
    else:
        wrong = ""
    if values.size:
        p1, median, p99 = np.percentile(values, (1, 50, 99)).tolist()
        facts |= {
            "minimum": float(values.min()),
            "p1": p1,
            "median": median,
            "p99": p99,
            "maximum": float(values.max()),
            "zeros": 1 - np.count_nonzero(values) / values.size,
        }
    return facts | {"not_finite": not_finite}, wrong


def _count(
    found: Looked, numbers: np.ndarray, affine: np.ndarray, names: Mapping[int, str]
) -> None:
    """Fill in what the labels of a scan hold."""
    found.voxels = _voxels(numbers)
    found.label_digest = digest_of(numbers)
    # if the folder names its structures, others are none
    wanted = [number for number in found.voxels if not names or number in names]
    if not wanted:
        anywhere = None
    elif len(wanted) == len(found.voxels):
        anywhere = numbers != 0
    else:
        anywhere = np.isin(numbers, wanted)
    if anywhere is not None:
        found.anatomy = _reach(anywhere, affine)
    found.facts |= {
        "label_numbers": " ".join(in_ranges(sorted(found.voxels))),
        "labelled_share": sum(found.voxels.values()) / numbers.size,
    }


def _voxels(numbers: np.ndarray) -> dict[int, int]:
    """How many voxels have each label number but 0."""
    low, high = int(numbers.min()), int(numbers.max())
    if low >= 0 and high < 2**16:  # no sorting
        counts = np.zeros(high + 1, np.int64)
        for block in blocks(numbers):
            counts += np.bincount(block.ravel(order="K"), minlength=high + 1)
        found, counts = counts.nonzero()[0], counts[counts > 0]
    else:
        found, counts = np.unique(numbers, return_counts=True)
    pairs = zip(found.tolist(), counts.tolist(), strict=True)
    return {number: count for number, count in pairs if number != 0}


def _reach(mask: np.ndarray, affine: np.ndarray) -> tuple[float, ...]:
    """Twice the mm from the centre of the grid to the farthest voxel of ``mask``, as ``extent``."""
    matrix = _axes(affine, mask.ndim)
    centre = (np.array(mask.shape)[:, None] - 1) / 2
    # of every row along the last axis its two ends: what is farthest is among them
    rows = np.nonzero(mask.any(-1))
    last = mask.shape[-1] - 1
    ends = (mask.argmax(-1)[rows], last - mask[..., ::-1].argmax(-1)[rows])
    indices = np.concatenate([np.stack([*rows, end]) for end in ends], axis=1)
    far = np.abs(matrix @ (indices - centre)).max(axis=1)
    half_a_voxel = np.abs(matrix).sum(axis=1) / 2
    return tuple((2 * (far + half_a_voxel)).tolist())


def _planes(
    array: np.ndarray,
    numbers: np.ndarray | None,
    affine: np.ndarray,
    intensities: Facts,
    side: int,
) -> list[Plane]:
    """The slices through the middle of what is labelled, or else of the image."""
    if "p99" not in intensities:
        return []
    codes = nib.aff2axcodes(affine)
    sizes = voxel_sizes(affine)
    normals: Sequence[int] = range(3)
    if array.ndim == 2:
        array = array[:, :, None]
        numbers = None if numbers is None else numbers[:, :, None]
        normals = [2]
    planes = []
    for normal in normals:
        middle = _middle(numbers, array.shape, normal)
        rest = [axis for axis in range(3) if axis != normal]
        cut = np.take(array, middle, normal)
        i, j = (float(array.shape[axis] * sizes[axis]) for axis in rest)
        step = max(1, math.ceil(max(cut.shape) / side))
        begin = step // 2
        image = _bytes(cut[begin::step, begin::step], intensities)
        labels = None
        if numbers is not None and numbers.any():
            labels = np.take(numbers, middle, normal)[begin::step, begin::step].copy()
        title = PLANES["LRPAIS".index(codes[normal]) // 2]
        where = f"{middle + 1} of {array.shape[normal]}"
        axes = (codes[rest[0]], codes[rest[1]])
        planes.append(Plane(title, where, image, labels, (i, j), axes))
    return planes


def _middle(numbers: np.ndarray | None, shape: Sequence[int], axis: int) -> int:
    if numbers is not None:
        others = tuple(other for other in range(3) if other != axis)
        labelled = np.flatnonzero(numbers.any(others))
        if len(labelled):
            return int(labelled[0] + labelled[-1]) // 2
    return shape[axis] // 2


def _bytes(values: np.ndarray, intensities: Facts) -> np.ndarray:
    """Percentile 1 becomes black, percentile 99 almost white; few steps, for small files."""
    low, high = float(intensities["p1"]), float(intensities["p99"])
    if high <= low:
        low, high = float(intensities["minimum"]), float(intensities["maximum"])
    scaled = (np.nan_to_num(values.astype(np.float64)) - low) / max(high - low, 1e-300)
    steps = np.round(60 * scaled).clip(0, 63)
    return (4 * steps).astype(np.uint8)


# --- all scans ------------------------------------------------------------------------------------


def _find_slices_among_volumes(scans: Sequence[Looked]) -> None:
    usable = [scan for scan in scans if not scan.problem]
    slices = [scan for scan in usable if scan.flat]
    if 0 < len(slices) < len(usable):
        fewer = slices if 2 * len(slices) <= len(usable) else [s for s in usable if not s.flat]
        what = "a slice, the others are volumes" if fewer[0].flat else "a volume, the others slices"
        for scan in fewer:
            scan.problem = f"its image is {what}: keep one kind in a cohort"


def _find_other_units(scans: Sequence[Looked]) -> None:
    """A scan that is far shorter or longer than the others has lengths in another unit."""
    usable = [scan for scan in scans if not scan.problem]
    if len(usable) < ENOUGH_ALIKE:
        return
    longest = [max(scan.extent) for scan in usable]
    usual = float(np.median(longest))
    for scan, length in zip(usable, longest, strict=True):
        if not usual / OTHER_UNIT < length < usual * OTHER_UNIT:
            scan.problem = (
                f"its image is {length:.3g} mm long, the others about {usual:.3g}: mend the voxel "
                "size in the file's header, or its unit"
            )


def _find_copies(scans: Sequence[Looked]) -> list[Oddity]:
    """Images of equal voxels: of two persons they are a problem; of one, and labels that are the
    same, an oddity.
    """
    found = []
    images: dict[str, Looked] = {}
    labels: dict[str, Looked] = {}
    for scan in scans:
        if scan.problem:
            continue
        first = images.setdefault(scan.digest, scan)
        if first is not scan:
            same = f"its image is that of scan {first.file.id}, voxel for voxel"
            if first.file.subject == scan.file.subject:
                found.append(Oddity((scan.file.id,), f"{same}, and counts twice"))
            else:
                scan.problem = (
                    f"{same}, and the two count as two persons, {first.file.subject!r} and "
                    f"{scan.file.subject!r}: remove one of them, or say that they are one"
                )
            continue
        if scan.voxels:
            first = labels.setdefault(scan.label_digest, scan)
            if first is not scan:
                text = f"its labels are those of scan {first.file.id}, voxel for voxel"
                found.append(Oddity((scan.file.id,), f"{text}, and the images differ"))
    return found


def _odd_places(scans: Sequence[Looked]) -> list[Oddity]:
    found = []
    for scan in scans:
        if not scan.apart <= ELSEWHERE:
            how = "its qform is not valid"
            if not math.isnan(scan.apart):
                how = f"its sform and its qform are up to {scan.apart:.2g} voxels apart"
            text = f"{how}; the sform is taken, other programs may take the qform"
            found.append(Oddity((scan.file.id,), text))
    return found


WORDS = {
    "orientation": "orientation",
    "unit": "unit of lengths",
    "type": "type of voxels",
    "sform_code": "code of the sform",
    "qform_code": "code of the qform",
}


def _odd_words(scans: Sequence[Looked]) -> list[Oddity]:
    """The rare values of a column, where most scans share another."""
    found = []
    for key, title in WORDS.items():
        ids: dict[str, list[str]] = {}
        for scan in scans:
            ids.setdefault(str(scan.facts[key]), []).append(scan.file.id)
        usual = max(ids, key=lambda value: len(ids[value]), default="")
        rare = {value: some for value, some in ids.items() if value != usual}
        count = sum(map(len, rare.values()))
        if len(scans) < ENOUGH_ALIKE or count > RARE * len(scans):
            continue
        for value, some in rare.items():
            found.append(Oddity(tuple(some), f"{title} {value}, the others {usual}"))
    return found


def _odd_lengths(scans: Sequence[Looked]) -> list[Oddity]:
    """Scans whose voxels, or whose whole image, are larger or smaller along some axis."""
    found: list[Oddity] = []
    if len(scans) < ENOUGH_ALIKE:
        return found
    for title in ("spacing", "extent"):
        lengths = np.array([(*getattr(scan, title), 1.0)[:3] for scan in scans])
        odd = np.zeros(len(scans), bool)
        for axis in range(lengths.shape[1]):
            odd |= _far(np.log10(lengths[:, axis]), SAME_LENGTH) != 0
        if not odd.any():
            continue
        others = lengths[~odd]
        alike = np.ptp(others, axis=0).max() < 0.01 * others.max()
        usual = ("" if alike else "about ") + _lengths(np.median(others, 0), scans[0].flat)
        ids: dict[str, list[str]] = {}
        for scan, own, is_odd in zip(scans, lengths, odd, strict=True):
            if is_odd:
                ids.setdefault(_lengths(own, scan.flat), []).append(scan.file.id)
        for own, some in ids.items():
            text = f"{title} {own} mm, the others {usual}"
            found.append(Oddity(tuple(some), text, of_size=True))
    return found


def _lengths(lengths: Sequence[float], flat: bool) -> str:
    lengths = lengths[:2] if flat else lengths
    if max(lengths) < 1.005 * min(lengths):
        return f"{lengths[0]:.3g}"
    return " x ".join(f"{length:.3g}" for length in lengths)


def _odd_intensities(scans: Sequence[Looked]) -> list[Oddity]:
    found: list[Oddity] = []
    if len(scans) < ENOUGH:
        return found
    ids = [scan.file.id for scan in scans]
    column = {
        key: np.array([scan.facts[key] for scan in scans], float)
        for key in ("minimum", "p1", "median", "p99", "maximum", "zeros")
    }
    width = float(np.median(column["p99"] - column["p1"])) or 1.0
    for key, title in {
        "minimum": "smallest intensity",
        "p1": "percentile 1 of the intensities",
        "median": "median intensity",
        "p99": "percentile 99 of the intensities",
        "maximum": "largest intensity",
    }.items():
        far = _far(column[key] / width, SAME_SHARE)
        if (column[key] > 0).all():  # how many times as bright, too
            far *= _far(np.log10(column[key]), SAME_INTENSITY) != 0
        found += _said(title, ids, column[key], far)
    far = _far(column["zeros"], SAME_SHARE)
    return found + _said("share of zeros in the image", ids, column["zeros"], far)


def _odd_labels(scans: Sequence[Looked], listing: Listing) -> list[Oddity]:
    """Label numbers that nobody named, that are rare or that a scan lacks, and their volumes.

    What a cohort file does not list may be left out on purpose: one sentence says so of all.
    """
    names = listing.names
    left_out: list[int] = []
    scans = [scan for scan in scans if scan.file.labels is not None]
    found = []
    empty = tuple(scan.file.id for scan in scans if not scan.voxels)
    if empty:
        found.append(Oddity(empty, "no voxel is labelled, though there is a file of labels"))
    scans = [scan for scan in scans if scan.voxels]
    unit = "mm2" if any(scan.flat for scan in scans) else "mm3"
    for number in sorted({number for scan in scans for number in scan.voxels}):
        having = [scan for scan in scans if number in scan.voxels]
        lacking = [scan for scan in scans if number not in scan.voxels]
        ids = tuple(scan.file.id for scan in having)
        title = f"label {number}"
        if number in names:
            title += f" ({shortened(names[number], 60)})"
        counts = f"{len(having)} of {len(scans)} labelled scans"
        if names and number not in names and listing.layout == "cohort":
            left_out.append(number)
            continue
        if names and number not in names:
            voxels = sum(scan.voxels[number] for scan in having)
            text = f"label number {number} has {voxels} voxels and no name in the folder"
            found.append(Oddity(ids, f"{text}: it becomes background"))
            continue
        if len(scans) >= ENOUGH_ALIKE and 0 < len(lacking) <= RARE * len(scans):
            without = tuple(scan.file.id for scan in lacking)
            found.append(Oddity(without, f"lacks {title}, which {counts} have"))
        if len(scans) >= ENOUGH_ALIKE and not names and len(having) <= RARE * len(scans):
            found.append(Oddity(ids, f"{title} is in {counts} only"))
        if len(having) >= ENOUGH:
            volumes = np.array([scan.voxels[number] * scan.volume for scan in having])
            far = _far(np.log10(volumes), SAME_VOLUME)
            found += _said(f"volume of {title}", ids, volumes, far, unit)
    if left_out:
        ids = tuple(scan.file.id for scan in scans if not scan.voxels.keys().isdisjoint(left_out))
        numbers = shortened(", ".join(map(str, left_out)), 100)
        text = f"not in the structures of the cohort file, so background: label numbers {numbers}"
        found.append(Oddity(ids, text))
    return found


def _far(values: np.ndarray, same: float) -> np.ndarray:
    """-1 or 1 for values far below or above the others, 0 for these: by the median and the median
    absolute deviation, and more than ``same`` from the median.
    """
    middle = np.median(values)
    deviation = np.median(np.abs(values - middle)) / 0.6745  # the normal distribution's sigma
    beyond = np.abs(values - middle) > max(FAR * deviation, same)
    return np.sign(values - middle).astype(int) * beyond


def _said(
    title: str, ids: Sequence[str], values: np.ndarray, far: np.ndarray, unit: str = ""
) -> list[Oddity]:
    """A sentence for the low values that are ``far`` from the others, and one for the high ones."""
    usual = _range(values[far == 0])
    found = []
    for sign in (-1, 1):
        some = tuple(id for id, is_far in zip(ids, far, strict=True) if is_far == sign)
        if some:
            own = f"{_range(values[far == sign])} {unit}".rstrip()
            found.append(Oddity(some, f"{title} {own}, the others {usual}"))
    return found


def _range(values: np.ndarray) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"
