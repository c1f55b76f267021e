"""The layout of most people: a folder of images beside a folder of labels, or both in one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .files import (
    CHANNEL,
    File,
    Listing,
    Options,
    check_different,
    folders_in,
    scans_in,
    some,
    without_ending,
)
from .persons import persons_of

# names of folders, the surer first
IMAGES = ("images", "image", "imagestr", "imgs", "img", "scans", "volumes", "mri", "raw")
LABELS = (
    "labels",
    "label",
    "labelstr",
    "segmentations",
    "segmentation",
    "segs",
    "seg",
    "masks",
    "mask",
    "gt",
    "ground_truth",
    "groundtruth",
    "annotations",
)
# words at the end, or the beginning, of a file's name that say what it is, not whose
OF_LABELS = re.compile(
    r"[_.-](seg|dseg|segmentation|segmented|label|labels|labelmap|mask|masks|gt|manual)$"
    r"|^(seg|segmentation|label|labels|labelmap|mask|gt)[_-]",
    re.IGNORECASE,
)
OF_IMAGES = re.compile(r"[_.-](image|img|scan|volume|0000)$|^(image|img|scan|volume)[_-]", re.I)


def recognise(folder: Path) -> str | None:
    """Two folders of such names, or names in one folder that say what is labels."""
    images, labels = _place(folder, IMAGES), _place(folder, LABELS)
    if images is not None and labels is not None:
        if (folder / "dataset.json").exists():
            return None  # which says itself what lies there
        return f"it has a folder {images.name}/ of images and a folder {labels.name}/ of labels"
    image_files, label_files = _in_one_folder(folder)
    image_of = {without_ending(file.name): file for file in image_files}
    label_of = {without_ending(file.name): file for file in label_files}
    for image, label in _matched(list(image_of), list(label_of)).items():
        return f"{label_of[label].name} lies beside {image_of[image].name}"
    return None


def _place(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder with the surest of ``names`` that holds NIfTI files."""
    known = {path.name.lower(): path for path in folders_in(folder) if scans_in(path)}
    return next((known[name] for name in names if name in known), None)


def _in_one_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """(images, labels) that lie side by side, told by the names of labels."""
    images, labels = [], []
    for file in scans_in(folder):
        is_labels = OF_LABELS.search(without_ending(file.name))
        (labels if is_labels else images).append(file)
    return images, labels


def read(folder: Path, options: Options) -> Listing:
    """Images with the labels whose names fit: the same; the same but for a word such as _seg; or
    one begins with the other, and no third does. Images without labels are unlabelled.
    """
    images, labels = _place(folder, IMAGES), _place(folder, LABELS)
    notes: list[str] = []
    if images is not None and labels is not None:
        image_files, label_files = scans_in(images), scans_in(labels)
        others = [f"{path.name}/" for path in folders_in(folder) if path not in (images, labels)]
        if others:
            notes.append(
                f"{images.name}/ and {labels.name}/ are taken, left out are the folders "
                f"{some(others)}"
            )
    else:
        image_files, label_files = _in_one_folder(folder)
    image_files = _first_channels(image_files, notes)
    ids = [without_ending(file.name) for file in image_files]
    check_different(ids, images or folder)
    image_of = dict(zip(ids, image_files, strict=True))
    stems = [without_ending(file.name) for file in label_files]
    check_different(stems, labels or folder)
    label_of = dict(zip(stems, label_files, strict=True))
    matched = _matched(ids, stems)
    alone = [label_of[stem].name for stem in stems if stem not in matched.values()]
    if alone:
        notes.append(
            f"{len(alone)} files of labels fit no image, or not one alone, by their names, and are "
            f"left out: {some(alone)}"
        )
    person = persons_of(ids, options.subject, folder, []) if ids else {}
    files = [
        File(id, person[id], image_of[id], label_of[matched[id]] if id in matched else None)
        for id in ids
    ]
    return Listing(files=files, notes=notes)


def _first_channels(images: Sequence[Path], notes: list[str]) -> list[Path]:
    """Of images numbered as by nnU-Net, CASE_0000 and CASE_0001, the first: they are of one case,
    and not two scans.
    """
    stems = {without_ending(file.name) for file in images}
    first, others = [], []
    for file in images:
        found = CHANNEL.fullmatch(without_ending(file.name))
        is_other = found and int(found[2]) > 0 and f"{found[1]}_0000" in stems
        (others if is_other else first).append(file)
    if others:
        names = [file.name for file in others]
        notes.append(f"of each case the channel _0000 is taken, left out are {some(names)}")
    return first


# --- which labels are of which image --------------------------------------------------------------


def _matched(images: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Name of an image -> name of its labels, each once, the surest rule first."""
    matched: dict[str, str] = {}
    for pairs_of in (_of_one_name, _of_one_core, _of_one_beginning):
        images_left = [image for image in images if image not in matched]
        labels_left = sorted(set(labels) - set(matched.values()))
        pairs = pairs_of(images_left, labels_left)
        images_paired = Counter(image for image, _ in pairs)
        labels_paired = Counter(label for _, label in pairs)
        for image, label in pairs:
            if images_paired[image] == labels_paired[label] == 1:
                matched[image] = label
    return matched


def _of_one_name(images: Sequence[str], labels: Sequence[str]) -> list[tuple[str, str]]:
    known = set(labels)
    return [(name, name) for name in images if name in known]


def _of_one_core(images: Sequence[str], labels: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs whose names are the same without the words for images and labels."""
    images_of: dict[str, list[str]] = {}
    for image in images:
        images_of.setdefault(OF_IMAGES.sub("", image), []).append(image)
    pairs = []
    for label in labels:
        pairs += [(image, label) for image in images_of.get(OF_LABELS.sub("", label), [])]
    return pairs


def _of_one_beginning(images: Sequence[str], labels: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of which one name begins with the other, up to a character such as "_"."""
    known_images, known_labels = set(images), set(labels)
    pairs = []
    for label in labels:
        pairs += [(image, label) for image in _beginnings(label) & known_images]
    for image in images:
        pairs += [(image, label) for label in _beginnings(image) & known_labels]
    return pairs


def _beginnings(name: str) -> set[str]:
    return {name[: found.start()] for found in re.finditer("[^A-Za-z0-9]", name)} - {""}
