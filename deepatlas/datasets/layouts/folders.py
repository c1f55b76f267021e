"""The layout of most people: a folder of images beside a folder of labels, or both in one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from .files import (
    CHANNEL,
    File,
    Listing,
    Options,
    check_different,
    drawn,
    folders_in,
    is_segmentation,
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
OF_IMAGES = re.compile(r"[_.-](image|img|scan|volume)$|^(image|img|scan|volume)[_-]", re.I)


def recognise(folder: Path) -> str | None:
    """Two folders of such names, or names in one folder that say what is labels."""
    images, labels = _place(folder, IMAGES), _place(folder, LABELS)
    if images is not None and labels is not None:
        if (folder / "dataset.json").exists():
            return None  # which says itself what lies there
        return f"it has a folder {images.name}/ of images and a folder {labels.name}/ of labels"
    image_files, label_files = _in_one_folder(folder)
    image_of = {without_ending(file.name): file for file in image_files}
    # what a network wrote tells the layout only where nobody drew anything
    by_hand = [file for file in label_files if not is_segmentation(file)]
    label_of = {without_ending(file.name): file for file in by_hand or label_files}
    for image, label in _matched(list(image_of), list(label_of)).items():
        return f"{label_of[label].name} lies beside {image_of[image].name}"
    return None


def _place(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder with the surest of ``names`` that holds NIfTI files."""
    known = {path.name.lower(): path for path in folders_in(folder) if scans_in(path)}
    return next((known[name] for name in names if name in known), None)


def _in_one_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """(images, labels) that lie side by side, told by the names of labels."""
    images: list[Path] = []
    labels: list[Path] = []
    for file in scans_in(folder):
        is_labels = OF_LABELS.search(without_ending(file.name))
        (labels if is_labels else images).append(file)
    return images, labels


def read(folder: Path, options: Options) -> Listing:
    """Images with the labels whose names fit: the same; the same but for a word such as _seg; or
    one begins with the other, and no third does. Images without labels are unlabelled.

    imagesTs beside imagesTr belongs to them; published labels of it make it the test group.
    """
    images, labels = _place(folder, IMAGES), _place(folder, LABELS)
    notes: list[str] = []
    if images is None or labels is None:
        files = _paired(*_in_one_folder(folder), None, notes)
    else:
        known = [images, labels]
        files = []
        test_images, test_labels = _place(folder, ["imagests"]), _place(folder, ["labelsts"])
        if images.name.lower() != "imagestr" or test_images is None:
            files += _paired(scans_in(images), scans_in(labels), None, notes)
        elif test_labels is None:
            known.append(test_images)
            files += _paired(scans_in(images), scans_in(labels), None, notes)
            files += _paired(scans_in(test_images), [], None, notes)
        else:
            known += [test_images, test_labels]
            files += _paired(scans_in(images), scans_in(labels), "train", notes)
            files += _paired(scans_in(test_images), scans_in(test_labels), "test", notes)
        others = [f"{path.name}/" for path in folders_in(folder) if path not in known]
        if others:
            taken = ", ".join(f"{path.name}/" for path in known)
            notes.append(f"{taken} are taken, left out are the folders {some(others)}")
    ids = [file.id for file in files]
    check_different(ids, folder)
    person = persons_of(ids, options.subject, folder)
    files = [replace(file, subject=person[file.id]) for file in files]
    return Listing(files=files, notes=notes)


def _paired(
    images: Sequence[Path], labels: Sequence[Path], group: str | None, notes: list[str]
) -> list[File]:
    """Images with their labels; the persons are told later, of all."""
    image_of = _by_case(images, notes)
    label_of: dict[str, Path] = {}
    for file in drawn(labels, notes):
        other = label_of.setdefault(without_ending(file.name), file)
        if other != file:
            raise UserError(f"{other} and {file.name} have one name: remove one")
    matched = _matched(list(image_of), list(label_of))
    taken = set(matched.values())
    alone = [file.name for stem, file in label_of.items() if stem not in taken]
    if alone:
        notes.append(
            f"{len(alone)} files of labels fit no image, or not one alone, by their names, and are "
            f"left out: {some(alone)}"
        )
    return [
        File(id, id, image, label_of[matched[id]] if id in matched else None, group)
        for id, image in image_of.items()
    ]


def _by_case(images: Sequence[Path], notes: list[str]) -> dict[str, Path]:
    """Name of a scan -> its image. Of images numbered as by nnU-Net, CASE_0000 and CASE_0001, the
    first is taken, as CASE: they are of one case, and not two scans.
    """
    stems = {without_ending(file.name) for file in images}
    image_of: dict[str, Path] = {}
    others = []
    for file in images:
        id = without_ending(file.name)
        found = CHANNEL.fullmatch(id)
        if found and f"{found[1]}_0000" in stems and found[1] not in stems:
            if int(found[2]) > 0:
                others.append(file.name)
                continue
            id = found[1]
        other = image_of.setdefault(id, file)
        if other != file:
            raise UserError(f"{other} and {file.name} have one name: remove one")
    if others:
        notes.append(f"of each case the channel _0000 is taken, left out are {some(others)}")
    return image_of


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
