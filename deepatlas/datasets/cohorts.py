"""From an entry to a cohort: phantoms made on the spot, or files read onto one grid, and split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from .. import phantom
from ..data import Cohort, Scan, split_by_subject
from ..errors import UserError, brief
from .entries import PROFILES, Entry, Profile, describe, expand
from .fetch import find
from .layouts import File, check_files, decathlon, label_names
from .nifti import load_scan
from .preparation import Preparation


def load_cohort(
    entry: Entry | str, *, profile: Profile = "class", dims: int | None = None, seed: int = 0
) -> Cohort:
    """The cohort of an ``entry``, or of its name, on its grid of ``profile``; prints its licence.

    ``profile`` is "smoke", "class" or "full"; ``dims`` is 2 for slices, 3 for volumes, by default
    what the entry says the cohort is for. ``seed`` draws the split where none is published, and
    the subjects of a phantom.
    """
    if isinstance(entry, str):
        entry = describe(entry)
    dims = entry.dims if dims is None else dims
    if profile not in PROFILES or dims not in (2, 3):
        raise UserError(
            f"profile must be one of {', '.join(PROFILES)} and dims 2 or 3, "
            f"got {profile!r} and {dims}"
        )
    print(f"{entry.name}: {entry.title}. {entry.licence}. {entry.credit}".rstrip())
    if entry.anatomy is not None:
        return _phantoms(entry, profile, dims, seed)
    return _from_files(entry, profile, dims, seed)


# --- phantoms -------------------------------------------------------------------------------------


def _phantoms(entry: Entry, profile: Profile, dims: int, seed: int) -> Cohort:
    shape, spacing = entry.grid(profile, dims)
    train, validation, test = entry.split_sizes(profile)

    def scans(first: int, count: int) -> tuple[Scan, ...]:
        numbers = range(first, first + count)
        return tuple(
            phantom.make_scan(entry.anatomy, number, shape, spacing=spacing, seed=seed)
            for number in numbers
        )

    structures = phantom.anatomy_of(entry.anatomy).structures
    return Cohort(
        entry.name,
        structures,
        spacing,
        train=scans(0, train),
        validation=scans(train, validation),
        test=scans(train + validation, test),
        licence=entry.licence,
        truth=phantom.true_deformation,
        label_numbers=tuple((index,) for index in range(1, len(structures))),
        label_dtype="uint8",
    )


# --- files ----------------------------------------------------------------------------------------


CHUNK = 8  # scans that are aligned at once


def _from_files(entry: Entry, profile: Profile, dims: int, seed: int) -> Cohort:
    volume, wanted = entry.grid(profile, 3), entry.grid(profile, dims)
    folder = find(entry)
    names, index_of = structures_of(entry, folder)
    files = decathlon(folder, entry.subject)
    _say_who_is_who(entry, files)
    train, validation, test = _split(entry, files, profile, seed)
    # only the scans of the split are read, and all of them are put on one grid together
    chosen = [*train, *validation, *test]
    check_files(chosen)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        originals = [_read(file, index_of, entry, volume) for file in chosen]
    _say_warnings(entry, [str(warning.message) for warning in told])
    _check_copies(entry, originals)
    reference = None
    if entry.align:
        reference = Preparation(volume, volume).prepare(originals[0]).image
    preparation = Preparation(volume, wanted, reference)
    scans = []
    for start in range(0, len(originals), CHUNK):
        chunk = originals[start : start + CHUNK]
        scans += preparation.prepare_all(chunk, alone=len(chunk) == 1)
    scans = tuple(scans)
    for scan, original in zip(scans, originals, strict=True):
        _check_on_grid(entry, scan, original, wanted[1])
    first_validation = len(train)
    first_test = len(train) + len(validation)
    cohort = Cohort(
        entry.name,
        names,
        spacing=wanted[1],
        train=scans[:first_validation],
        validation=scans[first_validation:first_test],
        test=scans[first_test:],
        licence=entry.licence,
        volume=volume,
        reference=reference,
        label_numbers=_numbers_of(index_of, len(names)),
    )
    _say_what_is_missing(entry, cohort, originals)
    return cohort


def _split(
    entry: Entry, files: Sequence[File], profile: Profile, seed: int
) -> tuple[tuple[File, ...], ...]:
    """Train, validation and test: a published test group is kept, all else is drawn by ``seed``."""
    sizes = entry.split_sizes(profile)
    if "published" not in entry.split:
        return split_by_subject(files, sizes, seed)
    if not any(file.group for file in files):
        raise UserError(
            f"{entry.name}: its split is published, but no scan in its dataset.json has a 'group', "
            "train or test: add them, or give split.full = [...], say"
        )
    to_train = [file for file in files if file.group == "train"]
    test = tuple(file for file in files if file.group == "test")
    in_test = {file.subject: file for file in test}
    for file in to_train:
        if file.subject in in_test:
            raise UserError(
                f"{entry.name}: its published split has one person on both sides, "
                f"{file.subject!r}: {file.id} is of 'group' train, {in_test[file.subject].id} of "
                "test: mend dataset.json, or the entry's subject"
            )
    if len(test) < sizes[2]:
        raise UserError(
            f"{entry.name}: split.published says {sizes[2]} scans for test, and {len(test)} in its "
            "dataset.json are of 'group' test: mend one of them"
        )
    train, validation = split_by_subject(to_train, sizes[:2], seed)
    return train, validation, test


def _read(
    file: File, index_of: dict[int, int], entry: Entry, volume: tuple[Sequence[int], float]
) -> Scan:
    scan = load_scan(
        file.image,
        file.labels,
        id=file.id,
        subject=file.subject,
        structures=index_of,
        empty_labels=entry.empty_labels,
    )
    _check_size(scan, *volume)
    return scan


# --- what may be wrong with the scans of a cohort -------------------------------------------------


def _say(entry: Entry, sentence: str) -> None:
    print(f"{entry.name}: {sentence}")


def _say_warnings(entry: Entry, told: Sequence[str]) -> None:
    """The first of them, and how many there are: a cohort's headers are often alike."""
    if told:
        more = f" (and {len(told) - 1} more such files)" if len(told) > 1 else ""
        _say(entry, f"WARNING: {told[0]}{more}")


def _say_who_is_who(entry: Entry, files: Sequence[File]) -> None:
    """Nothing is guessed: what is assumed where neither the entry nor BIDS names a person."""
    alone = sum(file.subject == file.id for file in files)
    if entry.subject is None and alone:
        _say(
            entry,
            f"whose a scan is, the entry does not say: {alone} of its {len(files)} scans count as "
            "persons of their own; where a person was scanned twice, add to the entry where a "
            'scan\'s name has the person, as in subject = "mouse_{subject}_*", or list the scans '
            "in 'same_person_twice' of dataset.json",
        )


def _check_copies(entry: Entry, scans: Sequence[Scan]) -> None:
    """Refuse images of equal voxels that count as two persons; say it where they are of one, whom
    two experts may have labelled.
    """
    originals: dict[str, Scan] = {}
    for scan in scans:
        other = originals.setdefault(scan.source.image_digest or scan.id, scan)
        if other is scan:
            continue
        both = f"{other.source.path} and {scan.source.path} hold the same image"
        if other.subject != scan.subject:
            raise UserError(
                f"{both}, and count as two persons, {other.subject!r} and {scan.subject!r}: remove "
                "one of them from dataset.json, or join them in its 'same_person_twice'"
            )
        _say(entry, f"{both}: it counts twice")


def _check_size(scan: Scan, shape: Sequence[int], spacing: float) -> None:
    """Refuse a scan that one voxel of the grid would hold, or that holds the grid in one voxel:
    lengths of another unit.
    """
    voxel = scan.affine[:3, : len(scan.shape)].norm(dim=0)  # mm, of the scan
    length = (voxel * voxel.new_tensor(scan.shape)).max().item()
    grid = max(shape) * spacing
    if length < 2 * spacing or voxel.min() > grid / 2:
        raise UserError(
            f"{scan.source.path}: the scan is {length:g} mm long, with voxels of "
            f"{voxel.min().item():g} mm, and the grid is {grid:g} mm long, with voxels of "
            f"{spacing:g} mm: mend the voxel size in the file's header, or its unit, or give the "
            "entry another grid"
        )


NO_CONTRAST = 0.01  # of the scan's own intensities, 0 to 1


def _check_on_grid(entry: Entry, scan: Scan, original: Scan, spacing: float) -> None:
    """Refuse a scan of which the grid shows nothing."""
    grid = f"on the grid of {' x '.join(map(str, scan.shape))} voxels of {spacing:g} mm"
    if len(scan.shape) == 2:
        grid += ", its middle plane,"
    what_to_do = "look at its affine, or give the entry a grid that holds what is to be seen"
    if scan.image.max() - scan.image.min() < NO_CONTRAST:
        raise UserError(f"{scan.source.path}: {grid} the image is flat: {what_to_do}")
    if _vanished(scan, original) and not entry.empty_labels:
        raise UserError(
            f"{scan.source.path}: {grid} none of its structures is left: {what_to_do}, or say "
            "empty_labels = true in the entry, if scans may have none"
        )


def _vanished(scan: Scan, original: Scan) -> bool:
    return scan.labels is not None and bool(original.labels.any()) and not scan.labels.any()


def _say_what_is_missing(entry: Entry, cohort: Cohort, originals: Sequence[Scan]) -> None:
    """Structures that cannot be learned or scored, and scans that show none; UserError if nothing
    can be scored.
    """
    empty = [scan for scan in cohort.scans if scan.labels is not None and not scan.labels.any()]
    if empty:
        _say(
            entry,
            f"{len(empty)} of {len(cohort.scans)} scans show no structure, as its empty_labels "
            "allows",
        )
    if cohort.test and not _structures_in(cohort.test):
        raise UserError(
            f"{entry.name}: no test scan shows any structure on the grid, so there is nothing to "
            "score: draw another split by the seed, or give it more test scans"
        )
    everywhere = set(range(1, len(cohort.structures)))
    nowhere = everywhere - _structures_in(cohort.scans)
    if nowhere:
        unknown = nowhere - _structures_in(originals)
        lost = nowhere - unknown
        _say_structures(entry, cohort, unknown, "no file that was read holds the label numbers of")
        _say_structures(entry, cohort, lost, "no scan shows, on this grid,")
    for part, scans in (("training", cohort.train), ("test", cohort.test)):
        if scans:
            missing = everywhere - nowhere - _structures_in(scans)
            _say_structures(entry, cohort, missing, f"no {part} scan shows")


def _say_structures(entry: Entry, cohort: Cohort, indices: set[int], what: str) -> None:
    if not indices:
        return
    names = [cohort.structures[index] for index in sorted(indices)]
    some = ", ".join(names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    _say(entry, f"WARNING: {what} {some}{more}")


def _structures_in(scans: Sequence[Scan]) -> set[int]:
    """The indices of the structures that are on one of the scans at least."""
    found: set[int] = set()
    for scan in scans:
        if scan.labels is not None:
            found.update(scan.labels.unique().tolist())
    return found - {0}


# --- structures -----------------------------------------------------------------------------------


def structures_of(entry: Entry, folder: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names with background first, and label number of the files -> index of the name."""
    if entry.regions is None:
        merged = entry.structures
    else:
        merged = _regions(label_names(folder), *entry.regions, folder / "dataset.json")
    names = ["background"]
    index_of = {}
    for index, (name, numbers) in enumerate(merged, start=1):
        names.append(name)
        index_of |= dict.fromkeys(expand(numbers), index)
    return tuple(names), index_of


def _numbers_of(index_of: dict[int, int], count: int) -> tuple[tuple[int, ...], ...]:
    """The label numbers of each of ``count`` structures but the background."""
    numbers: list[list[int]] = [[] for _ in range(count)]
    for number, index in index_of.items():
        numbers[index].append(number)
    return tuple(map(tuple, numbers[1:]))


def _regions(texts: dict[int, str], low: int, high: int, path: Path) -> list[tuple[str, list[int]]]:
    """One structure for each region and its twin on the other side.

    "Right ACgG  anterior cingulate gyrus": the side and the abbreviation are left out. UserError
    where more than a left and a right region would become one.
    """
    merged: dict[str, dict[str, int]] = {}
    for number, text in texts.items():
        if low <= number <= high:
            side, name = _side_and_name(text)
            if name in ("", "background") or not name.isprintable():
                raise UserError(
                    f"{path}: a name was wanted for label number {number}, got {brief(text)}"
                )
            sides = merged.setdefault(name, {})
            if side in sides or (sides and "" in (side, *sides)):
                raise UserError(
                    f"{path}: the labels {[*sides.values(), number]} would be one region, "
                    f"{name!r}, left and right merged: rename one, or list them as the entry's "
                    "structures"
                )
            sides[side] = number
    if not merged:
        raise UserError(f"{path}: 'labels' names no label number from {low} to {high}")
    return [(name, list(sides.values())) for name, sides in merged.items()]


def _side_and_name(text: str) -> tuple[str, str]:
    words = text.split()
    if len(words) > 1 and words[0].lower() in ("left", "right"):
        return words[0].lower(), " ".join(words[2:] or words[1:])
    return "", " ".join(words)
