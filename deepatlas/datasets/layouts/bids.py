"""The layout of BIDS: sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz, and labels in derivatives."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...checkpoints import read_json
from ...errors import UserError, brief
from .files import (
    File,
    Listing,
    Options,
    check_different,
    contents,
    folders_in,
    scans_below,
    scans_in,
    some,
    without_ending,
)
from .msd import check_number, text_of
from .persons import person_of

SUBJECT = re.compile("sub-[A-Za-z0-9]+")
LABELS = ("dseg", "mask")  # suffixes of labels, the surer first
NO_IMAGES = (*LABELS, "probseg", "defacemask")
# what the name of labels may say more than its image's: how they were made
OF_LABELS = ("space", "desc", "atlas", "seg", "label", "res", "den")
OWN_SPACE = ("orig", "individual", "T1w", "T2w")  # of the image: labels in others lie elsewhere
DEEPEST = 4  # folders below a derivative's sub-01, at most


@dataclass(frozen=True)
class _Name:
    """The parts of a file's name: sub-01_ses-1_T1w has entities sub and ses, and a suffix."""

    entities: dict[str, str]
    suffix: str


def _parsed(path: Path) -> _Name | None:
    """The name of a file; None if it is none of BIDS."""
    *pairs, suffix = without_ending(path.name).split("_")
    entities = {}
    for pair in pairs:
        key, dash, value = pair.partition("-")
        if not (key and dash and value):
            return None
        entities[key] = value
    return _Name(entities, suffix) if "sub" in entities else None


def _name_of(path: Path) -> _Name:
    """The name of a file that was taken for its name; ValueError if it is none of BIDS."""
    name = _parsed(path)
    if name is None:
        raise ValueError(f"{path}: a name such as sub-01_T1w.nii.gz was wanted")
    return name


def recognise(folder: Path) -> str | None:
    """Folders sub-* that hold scans of BIDS' names."""
    for subject in _subjects(folder):
        for image in scans_below(subject, 2):
            if _parsed(image) is not None:
                return f"it has folders such as {subject.name}/ with scans such as {image.name}"
    return None


def _subjects(folder: Path) -> list[Path]:
    return [path for path in folders_in(folder) if SUBJECT.fullmatch(path.name)]


def read(folder: Path, options: Options) -> Listing:
    """The scans of one suffix in the folders anat, and their labels in anat or in derivatives.

    ``options.contrast`` is the suffix; without it, T1w is taken where there is one, or else the
    most frequent. The person is the sub- of a scan, unless ``options.subject`` says otherwise. Of
    several label maps of a scan, those are taken of the kind that most scans have.
    """
    notes: list[str] = []
    images = _images(folder, options.contrast, notes)
    ids = [without_ending(image.name) for image in images]
    check_different(ids, folder)
    labels_of = _labels(folder, images, notes)
    files = []
    for id, image in zip(ids, images, strict=True):
        subject = person_of(id, options.subject, folder)
        files.append(File(id, subject, image, labels_of.get(image)))
    description = folder / "dataset_description.json"
    said = read_json(description) if description.is_file() else {}
    if not isinstance(said, dict):
        raise UserError(f"{description}: an object in curly brackets was wanted, got {brief(said)}")
    return Listing(
        files=files,
        names=_names(folder, list(labels_of.values()), notes),
        notes=notes,
        licence=text_of(said, "License"),
        title=text_of(said, "Name"),
    )


# --- images ---------------------------------------------------------------------------------------


def _images(folder: Path, wanted: str | None, notes: list[str]) -> list[Path]:
    """The images of one suffix, in the folders anat of all persons and sessions."""
    by_suffix: dict[str, list[Path]] = {}
    odd = []
    for subject in _subjects(folder):
        found = []
        for place in (subject, *_sessions(subject)):
            for file in scans_in(place / "anat"):
                name = _parsed(file)
                if name is None or name.entities["sub"] != subject.name.removeprefix("sub-"):
                    odd.append(file.name)
                elif name.suffix not in NO_IMAGES:
                    by_suffix.setdefault(name.suffix, []).append(file)
                    found.append(file)
        if not found:
            notes.append(f"{subject.name} has no image in a folder anat, and is left out")
    if odd:
        notes.append(
            f"{len(odd)} files have no name of BIDS that begins with that of their folder sub-*, "
            f"and are left out: {some(odd)}"
        )
    if wanted is not None and wanted not in by_suffix:
        listed = ", ".join(sorted(by_suffix)) or "none"
        raise UserError(f"{folder}: there is no image with suffix {wanted!r}: there are {listed}")
    if not by_suffix:
        return []
    counts = {suffix: len(files) for suffix, files in sorted(by_suffix.items())}
    taken = wanted or ("T1w" if "T1w" in counts else max(counts, key=lambda suffix: counts[suffix]))
    others = [f"{suffix} ({count})" for suffix, count in counts.items() if suffix != taken]
    if others:
        notes.append(
            f"there are images of several kinds: {taken} ({counts[taken]}) is taken, left out are "
            f"{', '.join(others)}; another is taken if it is named as the contrast"
        )
    return by_suffix[taken]


def _sessions(subject: Path) -> list[Path]:
    return [path for path in folders_in(subject) if path.name.startswith("ses-")]


# --- labels ---------------------------------------------------------------------------------------


def _labels(folder: Path, images: Sequence[Path], notes: list[str]) -> dict[Path, Path]:
    """Image -> labels, matched by the entities in their names, of one kind."""
    candidates = _label_files(folder)
    image_names = {image: _name_of(image).entities for image in images}
    images_of: dict[str, list[Path]] = {}  # by person: names of others need not be compared
    for image, entities in image_names.items():
        images_of.setdefault(entities["sub"], []).append(image)
    by_kind: dict[str, dict[Path, Path]] = {}
    elsewhere, unmatched = [], []
    for file, home in candidates:
        name = _name_of(file)
        entities = name.entities
        if entities.get("space", OWN_SPACE[0]) not in OWN_SPACE:
            elsewhere.append(file.name)
            continue
        own = {key: value for key, value in entities.items() if key not in OF_LABELS}
        fitting = _fitting(own, images_of.get(own["sub"], []), image_names)
        kind = _kind(entities, name.suffix, home)
        if len(fitting) != 1 or fitting[0] in by_kind.get(kind, {}):
            unmatched.append(file.name)
            continue
        by_kind.setdefault(kind, {})[fitting[0]] = file
    if elsewhere:
        notes.append(
            f"{len(elsewhere)} label maps lie in another space than the images, by their names, "
            f"and are left out: {some(elsewhere)}"
        )
    if unmatched:
        notes.append(
            f"{len(unmatched)} label maps fit no image, or not one alone, by their names, and are "
            f"left out: {some(unmatched)}"
        )
    if not by_kind:
        return {}
    taken = max(by_kind, key=lambda kind: len(by_kind[kind]))
    others = [f"{kind} ({len(by_kind[kind])})" for kind in by_kind if kind != taken]
    if others:
        notes.append(
            f"there are label maps of several kinds: {taken} ({len(by_kind[taken])}) is taken, "
            f"left out are {some(others)}"
        )
    return by_kind[taken]


def _label_files(folder: Path) -> list[tuple[Path, str]]:
    """(file, where from) of every label map: of segmentations, or else of masks but the brain's."""
    places = [(subject, "the images' own folders") for subject in _subjects(folder)]
    derivatives = folder / "derivatives"
    for pipeline in (derivatives, *folders_in(derivatives)):
        home = pipeline.relative_to(folder).as_posix()
        places += [(subject, home) for subject in _subjects(pipeline)]
    found: dict[str, list[tuple[Path, str]]] = {suffix: [] for suffix in LABELS}
    for place, home in places:
        for file in scans_below(place, DEEPEST):
            name = _parsed(file)
            if name is None or name.suffix not in LABELS:
                continue
            of_the_brain = name.entities.get("desc", "brain") == "brain"
            if name.suffix == "mask" and of_the_brain and "label" not in name.entities:
                continue
            found[name.suffix].append((file, home))
    return next((files for files in found.values() if files), [])


def _fitting(
    own: Mapping[str, str], images: Sequence[Path], names: Mapping[Path, Mapping[str, str]]
) -> list[Path]:
    """The images that labels may be of: that of the same entities, or else all that have at least
    those of the labels.
    """
    same = [image for image in images if names[image] == own]
    return same or [image for image in images if own.items() <= names[image].items()]


def _kind(entities: Mapping[str, str], suffix: str, home: str) -> str:
    """What label maps of all scans have in common: "derivatives/experts desc-manual dseg"."""
    how = [f"{key}-{entities[key]}" for key in OF_LABELS if key in entities]
    return " ".join([home, *how, suffix])


# --- names of labels ------------------------------------------------------------------------------


def _names(folder: Path, labels: Sequence[Path], notes: list[str]) -> dict[int, str]:
    """Label number -> name, by the tables *dseg.tsv beside the labels or above them.

    As BIDS inherits: a table is for all label maps at or below its folder whose names have its
    entities; the nearest counts.
    """
    found = [_table_of(file, folder) for file in labels]
    tables = sorted({table for table in found if table is not None})
    names: dict[int, str] = {}
    different = set()
    for table in tables:
        for number, name in _read_names(table).items():
            if names.setdefault(number, name) != name:
                different.add(number)
    if different:
        notes.append(
            f"the tables dseg.tsv give different names to {some(sorted(different))}: the first "
            f"is taken, of {tables[0]}"
        )
    return names


def _table_of(labels: Path, folder: Path) -> Path | None:
    own = {f"{key}-{value}" for key, value in _name_of(labels).entities.items()}
    place = labels.parent
    while True:
        fitting = []
        for file in contents(place):
            *entities, suffix = file.name.removesuffix(".tsv").split("_")
            if file.suffix == ".tsv" and suffix == "dseg" and own.issuperset(entities):
                fitting.append((len(entities), file))
        if fitting:
            return max(fitting)[1]
        if place == folder or place == place.parent:
            return None
        place = place.parent


def _read_names(path: Path) -> dict[int, str]:
    """A table with columns index and name; UserError if it has others."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of text with tabs ({error})") from error
    names = {}
    for row in rows:
        number, name = check_number((row.get("index") or "").strip()), row.get("name")
        if number is None or not name:
            raise UserError(
                f"{path}: columns index (a label number) and name were wanted in each line, got "
                f"{brief(row)}"
            )
        if number:
            names[number] = name.strip()
    return names
