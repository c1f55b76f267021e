"""From an entry to a cohort: phantoms made on the spot, or files read onto one grid, and split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from .. import phantom
from ..data import Cohort, Scan, split_by_subject
from ..errors import UserError, brief
from .cache import OF_PHANTOMS, Cache, Names, Prepared
from .entries import PARTS, PROFILES, Entry, Profile, describe, expand
from .fetch import find
from .layouts import File, Options, check_files, layout_of, list_files
from .nifti import smallest_type
from .preparation import Preparation
from .reading import Reader

WORTH_KEEPING = 8000  # voxels, of a phantom


def load_cohort(
    entry: Entry | str, *, profile: str = "class", dims: int | None = None, seed: int = 0
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
        return _phantoms(entry, entry.anatomy, profile, dims, seed)
    return _from_files(entry, profile, dims, seed)


# --- phantoms -------------------------------------------------------------------------------------


def _phantoms(entry: Entry, anatomy: str, profile: Profile, dims: int, seed: int) -> Cohort:
    shape, spacing = entry.grid(profile, dims)
    train, validation, test = entry.split_sizes(profile)

    # small ones are made faster than they are found
    cache = Cache(OF_PHANTOMS) if math.prod(shape) >= WORTH_KEEPING else None

    def scans(first: int, count: int) -> tuple[Scan, ...]:
        numbers = range(first, first + count)
        return tuple(
            _phantom(cache, anatomy, number, tuple(shape), spacing, seed) for number in numbers
        )

    structures = phantom.anatomy_of(anatomy).structures
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


def _phantom(
    cache: Cache | None,
    anatomy: str,
    subject: int,
    shape: tuple[int, ...],
    spacing: float,
    seed: int,
) -> Scan:
    """What ``phantom.make_scan`` makes of these, or has made before and is in the ``cache``."""
    if cache is None:
        return phantom.make_scan(anatomy, subject, shape, spacing=spacing, seed=seed)
    name = phantom.name_of(anatomy, seed, subject)
    key = cache.key_of({"phantom": name, "shape": shape, "spacing": spacing})
    kept = cache.find(key, Names(name, name))
    if kept is None:
        scan = phantom.make_scan(anatomy, subject, shape, spacing=spacing, seed=seed)
        kept = cache.keep(key, Prepared(scan))
    return kept.scan


# --- files ----------------------------------------------------------------------------------------


def _from_files(entry: Entry, profile: Profile, dims: int, seed: int) -> Cohort:
    wanted = entry.grid(profile, dims)
    slices = dims == 2 and not any(key.endswith("-3d") for key in entry.grids)
    volume = wanted if slices else entry.grid(profile, 3)
    folder = find(entry)
    names, index_of = structures_of(entry, folder)
    files = list_files(folder, entry)
    _say_who_is_who(entry, files)
    train, validation, test = _split(entry, files, profile, seed)
    # only the scans of the split are read, and all of them are put on one grid together
    chosen = [*train, *validation, *test]
    check_files(chosen)
    reader = Reader(entry, index_of, Preparation(volume, wanted))
    prepared = reader.read(chosen)
    _say_warnings(entry, [text for one in prepared for text in one.told])
    scans = tuple(one.scan for one in prepared)
    _check_copies(entry, scans)
    if reader.cache.trouble is not None:
        _say(entry, f"WARNING: its scans stay in memory, not in the cache: {reader.cache.trouble}")
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
        volume=wanted if prepared[0].flat else volume,
        reference=reader.preparation.reference,
        label_numbers=_numbers_of(index_of, len(names)),
        label_dtype=_largest_type([one.numbers for one in prepared], max(index_of)),
        preferred=_preferred(entry, train),
    )
    _say_what_is_missing(entry, cohort, prepared)
    return cohort


def _largest_type(types: Sequence[str], largest: int) -> str:
    """One integer type for all label files, which holds the ``largest`` number too."""
    both = np.result_type(smallest_type(largest), *filter(None, set(types)))
    return both.name if both.kind in "iu" else "int64"


def _preferred(entry: Entry, train: Sequence[File]) -> tuple[str, ...]:
    """The training scans whose labels the entry wants to be kept first."""
    if entry.labelled_first is None:
        return ()
    found = tuple(file.id for file in train if fnmatchcase(file.id, entry.labelled_first))
    if not found:
        _say(
            entry,
            f"WARNING: labelled_first = {entry.labelled_first!r} fits no training scan, so the "
            "seed alone says whose labels are kept",
        )
    return found


def _split(
    entry: Entry, files: Sequence[File], profile: Profile, seed: int
) -> tuple[tuple[File, ...], ...]:
    """Train, validation and test: as a cohort file lists them; else of the scans with labels, a
    published group is kept, and all else is drawn by ``seed``.
    """
    if entry.scans is not None:
        file_of = {file.id: file for file in files}
        listed = [entry.scans_of(profile, part) for part in PARTS]
        return tuple(tuple(file_of[scan.id] for scan in scans) for scans in listed)
    files = [file for file in files if file.labels is not None]
    sizes = entry.split_sizes(profile)
    if entry.split is None or "published" not in entry.split:
        return split_by_subject(files, sizes, seed)
    in_group: dict[str, list[File]] = {part: [] for part in PARTS}
    for file in files:
        if file.group is not None:
            in_group[file.group].append(file)
    if not any(in_group.values()):
        raise UserError(
            f"{entry.name}: its split is published, but of no scan with labels the folder says a "
            "'group', train or test: add them, or give split.full = [...], say"
        )
    _check_groups(entry, in_group, sizes)
    test = tuple(in_group["test"])
    if in_group["validation"]:
        (train,) = split_by_subject(in_group["train"], sizes[:1], seed)
        return train, tuple(in_group["validation"]), test
    train, validation = split_by_subject(in_group["train"], sizes[:2], seed)
    return train, validation, test


def _check_groups(
    entry: Entry, in_group: Mapping[str, Sequence[File]], sizes: Sequence[int]
) -> None:
    """Refuse a published split that has a person on two sides, or fewer scans than it should."""
    side_of: dict[str, File] = {}
    for part in reversed(PARTS):
        for file in in_group[part]:
            other = side_of.setdefault(file.subject, file)
            if other.group != file.group:
                raise UserError(
                    f"{entry.name}: its published split has one person on both sides, "
                    f"{file.subject!r}: {file.id} is of 'group' {file.group}, {other.id} of "
                    f"{other.group}: mend the groups, or the entry's subject"
                )
    for part, size in zip(PARTS[1:], sizes[1:], strict=True):
        found = len(in_group[part])
        if found < size and (found or part == "test"):
            raise UserError(
                f"{entry.name}: split.published says {size} scans for {part}, and {found} with "
                f"labels are of 'group' {part}: mend one of them"
            )


# --- what may be wrong with the scans of a cohort -------------------------------------------------


def _say(entry: Entry, sentence: str) -> None:
    print(f"{entry.name}: {sentence}")


def _say_warnings(entry: Entry, told: Sequence[str]) -> None:
    """The first of them, and how many there are: a cohort's headers are often alike."""
    if told:
        more = f" (and {len(told) - 1} more such files)" if len(told) > 1 else ""
        _say(entry, f"WARNING: {told[0]}{more}")


def _say_who_is_who(entry: Entry, files: Sequence[File]) -> None:
    """Nothing is guessed: what is assumed where neither the entry nor the files name a person."""
    alone = sum(file.subject == file.id for file in files)
    layout = layout_of(entry.layout)
    names_persons = entry.scans is not None or layout.names_persons
    if names_persons or entry.subject is not None or not alone:
        return
    by_list = ", or list the scans in 'same_person_twice' of dataset.json"
    _say(
        entry,
        f"whose a scan is, the entry does not say: {alone} of its {len(files)} scans count as "
        "persons of their own; where a person was scanned twice, add to the entry where a scan's "
        'name has the person, as in subject = "mouse_{subject}_*"'
        + (by_list if layout.lists_persons else ""),
    )


def _check_copies(entry: Entry, scans: Sequence[Scan]) -> None:
    """Refuse images of equal voxels that count as two persons; say it where they are of one, whom
    two experts may have labelled.
    """
    originals: dict[str, Scan] = {}
    for scan in scans:
        other = originals.setdefault(scan.known_source.image_digest or scan.id, scan)
        if other is scan:
            continue
        both = f"{other.known_source.path} and {scan.known_source.path} hold the same image"
        if other.subject != scan.subject:
            raise UserError(
                f"{both}, and count as two persons, {other.subject!r} and {scan.subject!r}: "
                f"remove one of them{_how_to_join(entry)}"
            )
        _say(entry, f"{both}: it counts twice")


def _how_to_join(entry: Entry) -> str:
    """What to do about two persons who are one."""
    if entry.scans is not None:
        return " from the cohort file, or give both the same subject"
    if layout_of(entry.layout).lists_persons:
        return " from dataset.json, or join them in its 'same_person_twice'"
    return ", or mend how the entry or the folder names the person"


def _say_what_is_missing(entry: Entry, cohort: Cohort, prepared: Sequence[Prepared]) -> None:
    """Structures that cannot be learned or scored, and scans that show none; UserError if nothing
    can be scored.
    """
    labelled = [one for one in prepared if one.scan.labels is not None]
    empty = [one for one in labelled if not one.shown]
    if empty:
        _say(
            entry,
            f"{len(empty)} of {len(prepared)} scans show no structure, as its empty_labels allows",
        )
    before_test = len(cohort.train) + len(cohort.validation)
    train = [one for one in prepared[: len(cohort.train)] if one.scan.labels is not None]
    test = [one for one in prepared[before_test:] if one.scan.labels is not None]
    if test and not _shown(test):
        raise UserError(
            f"{entry.name}: no test scan shows any structure on the grid, so there is nothing to "
            "score: draw another split by the seed, or give it more test scans"
        )
    everywhere = set(range(1, len(cohort.structures)))
    nowhere = everywhere - _shown(prepared)
    if nowhere:
        in_files = {index for one in prepared for index in one.found}
        unknown = nowhere - in_files
        lost = nowhere - unknown
        _say_structures(entry, cohort, unknown, "no file that was read holds the label numbers of")
        _say_structures(entry, cohort, lost, "no scan shows, on this grid,")
    for part, some in (("training", train), ("test", test)):
        if some:
            missing = everywhere - nowhere - _shown(some)
            _say_structures(entry, cohort, missing, f"no {part} scan shows")


def _shown(prepared: Sequence[Prepared]) -> set[int]:
    """The structures that are on one of the scans at least."""
    return {index for one in prepared for index in one.shown}


def _say_structures(entry: Entry, cohort: Cohort, indices: set[int], what: str) -> None:
    if not indices:
        return
    names = [cohort.structures[index] for index in sorted(indices)]
    some = ", ".join(names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    _say(entry, f"WARNING: {what} {some}{more}")


# --- structures -----------------------------------------------------------------------------------


def structures_of(entry: Entry, folder: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names with background first, and label number of the files -> index of the name."""
    merged: Sequence[tuple[str, Sequence[int | str]]] = entry.structures or ()
    if entry.regions is not None:
        options = Options(entry.subject, entry.image, entry.labels)
        texts = layout_of(entry.layout).read(folder, options).names
        said_in = folder / "dataset.json"
        merged = _regions(texts, *entry.regions, said_in if said_in.is_file() else folder)
    names = ["background"]
    index_of: dict[int, int] = {}
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
