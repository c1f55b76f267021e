"""From an entry to a cohort: phantoms made on the spot, or files read onto one grid, and split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import phantom
from ..data import Cohort, Scan, split_by_subject
from ..errors import UserError
from .entries import PROFILES, Entry, Profile, describe, expand
from .fetch import find
from .grid import on_common_grid
from .layouts import File, decathlon, label_names
from .nifti import load_scan


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

    return Cohort(
        entry.name,
        phantom.anatomy_of(entry.anatomy).structures,
        spacing,
        train=scans(0, train),
        validation=scans(train, validation),
        test=scans(train + validation, test),
        licence=entry.licence,
        truth=phantom.true_deformation,
    )


# --- files ----------------------------------------------------------------------------------------


def _from_files(entry: Entry, profile: Profile, dims: int, seed: int) -> Cohort:
    volume, wanted = entry.grid(profile, 3), entry.grid(profile, dims)
    folder = find(entry)
    names, index_of = structures_of(entry, folder)
    train, validation, test = _split(entry, decathlon(folder), profile, seed)
    # only the scans of the split are read, and all of them are put on one grid together
    originals = [_read(file, index_of) for file in (*train, *validation, *test)]
    scans = tuple(on_common_grid(originals, volume, wanted, entry.align))
    first_validation = len(train)
    first_test = len(train) + len(validation)
    return Cohort(
        entry.name,
        names,
        spacing=wanted[1],
        train=scans[:first_validation],
        validation=scans[first_validation:first_test],
        test=scans[first_test:],
        licence=entry.licence,
    )


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
    train, validation = split_by_subject(to_train, sizes[:2], seed)
    test = tuple(file for file in files if file.group == "test")
    return train, validation, test


def _read(file: File, index_of: dict[int, int]) -> Scan:
    return load_scan(file.image, file.labels, id=file.id, subject=file.subject, structures=index_of)


def structures_of(entry: Entry, folder: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names with background first, and label number of the files -> index of the name."""
    if entry.regions is None:
        merged = entry.structures
    else:
        merged = _regions(label_names(folder), *entry.regions)
    names = ["background"]
    index_of = {}
    for index, (name, numbers) in enumerate(merged, start=1):
        names.append(name)
        index_of |= dict.fromkeys(expand(numbers), index)
    return tuple(names), index_of


def _regions(texts: dict[int, str], low: int, high: int) -> list[tuple[str, list[int]]]:
    """One structure for each region and its twin on the other side.

    "Right ACgG  anterior cingulate gyrus": the side and the abbreviation are left out.
    """
    merged: dict[str, list[int]] = {}
    for number, text in texts.items():
        if low <= number <= high:
            name = " ".join(text.split()[2:]) or text
            merged.setdefault(name, []).append(number)
    return list(merged.items())
