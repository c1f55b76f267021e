"""The layout of the Medical Segmentation Decathlon: a dataset.json lists images and labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ...checkpoints import read_json
from ...errors import UserError, brief, shortened
from ..entries import LARGEST_NUMBER, inside
from .files import (
    ENDING,
    File,
    Listing,
    Options,
    channel_of,
    check_different,
    named_channels,
    other_channels,
    some,
    without_ending,
)
from .persons import check_that_persons_share_no_labels, persons_of


def recognise(folder: Path) -> str | None:
    """A dataset.json that lists files as 'training', where they are."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    dataset = read_json(path)
    if not isinstance(dataset, dict) or "channel_names" in dataset:
        return None
    items = dataset.get("training")
    if not isinstance(items, list):
        return None
    if any(_is_of_nnu_net(folder, item) for item in items[:1]):
        return None
    return "its dataset.json lists images and labels as 'training'"


def _is_of_nnu_net(folder: Path, item: object) -> bool:
    """Does an item list "case.nii.gz", and the file is "case_0000.nii.gz"? So did the first
    version of nnU-Net.
    """
    name = item.get("image") if isinstance(item, dict) else None
    if not isinstance(name, str) or not inside(name) or (folder / name).exists():
        return False
    return (folder / ENDING.sub(r"_0000\g<0>", name)).exists()


def read(folder: Path, options: Options) -> Listing:
    """The scans of the lists 'training' and 'test', the latter without labels; of files that hold
    several images, as 'modality' names them, the first or ``options.contrast``.
    """
    dataset = read_dataset(folder)
    names = label_names(folder)
    names.pop(0, None)  # the background
    named = named_channels(dataset.get("modality"))
    files = decathlon(folder, options.subject)
    notes = []
    if len(named) > 1 or options.contrast is not None:
        channel = 0
        if options.contrast is not None:
            channel = channel_of(options.contrast, named, folder / "dataset.json")
        notes += other_channels(channel, named)
        files = [replace(file, channel=channel) for file in files]
    if dataset["absent"]:
        notes.append(
            f"{len(dataset['absent'])} images of the list 'test' of dataset.json are not there, "
            f"and left out: {some(dataset['absent'])}"
        )
    return Listing(
        files=files,
        names=names,
        notes=notes,
        licence=text_of(dataset, "licence", "license"),
        title=text_of(dataset, "name"),
    )


def decathlon(folder: Path, template: str | None = None) -> list[File]:
    """The scans of a folder as the Medical Segmentation Decathlon lays it out, with a dataset.json:
    those of 'training', and then those of 'test', which have no labels.

    ``template``: the ``subject`` of the data set's entry, see ``person_of``. 'same_person_twice',
    the kit's addition, lists scans of one person, by their names or by the persons that these give;
    'group' says on which side of a published split a scan is.
    """
    dataset = read_dataset(folder)
    path = folder / "dataset.json"
    items = [*dataset["training"], *dataset["test"]]
    ids = [without_ending(item["image"]) for item in items]
    check_different(ids, path)
    person = persons_of(ids, template, path, dataset.get("same_person_twice", []))
    files = []
    for id, item in zip(ids, items, strict=True):
        labels = item.get("label")
        files.append(
            File(
                id,
                person[id],
                folder / item["image"],
                None if labels is None else folder / labels,
                item.get("group"),
            )
        )
    check_that_persons_share_no_labels(files, path)
    return files


# --- dataset.json ---------------------------------------------------------------------------------


def label_names(folder: Path) -> dict[int, str]:
    """What a folder's own dataset.json calls its label numbers."""
    path = folder / "dataset.json"
    labels = read_dataset(folder).get("labels", {})
    wanted = f'{path}: \'labels\' must name each label number, as {{"1": "left thalamus"}}, got '
    if not isinstance(labels, dict):
        raise UserError(f"{wanted}{brief(labels)}")
    names = {}
    for key, text in labels.items():
        number = check_number(key)
        if number is None or not isinstance(text, str) or number in names:
            raise UserError(f"{wanted}{brief(key)}: {brief(text)}")
        names[number] = text
    return names


def check_number(text: object) -> int | None:
    """A label number, as a number or as its digits; None if it is none."""
    if isinstance(text, bool) or not isinstance(text, int | str):
        return None
    if not re.fullmatch("[0-9]{1,19}", str(text)) or int(text) > LARGEST_NUMBER:
        return None
    return int(text)


def read_dataset(folder: Path) -> dict:
    """The dataset.json of a folder; UserError if it lists no images and labels in this folder.

    Of 'test', those that are there, as items without labels; the others are 'absent'.
    """
    path = folder / "dataset.json"
    dataset = read_json(path)
    if not isinstance(dataset, dict):
        dataset = {}
    training = _listed(dataset, "training", path)
    if not training:
        raise UserError(
            f"{path}: a list 'training' of image and label files was wanted, and is missing or "
            "empty"
        )
    unlabelled = []
    absent = []
    for item in _listed(dataset, "test", path):
        if (folder / item["image"]).is_file():
            unlabelled.append({"image": item["image"]})
        else:
            absent.append(item["image"])
    return dataset | {"training": training, "test": unlabelled, "absent": absent}


def _listed(dataset: Mapping, key: str, path: Path) -> list[dict]:
    """The items of a list, checked, without the resource forks of macOS."""
    listed = dataset.get(key)
    items = []
    for item in listed if isinstance(listed, list) else []:
        if key == "test" and isinstance(item, str):
            item = {"image": item}
        _check_item(item, key, path)
        if not item["image"].rpartition("/")[2].startswith("._"):
            items.append(item)
    return items


def _check_item(item: object, key: str, path: Path) -> None:
    if not isinstance(item, dict) or not _names(item, "image") or not _names(item, "label", True):
        raise UserError(
            f"{path}: each entry of {key!r} must name its 'image' and its 'label', got "
            f"{brief(item)}: where there are no labels, leave 'label' out"
        )
    for part in ("image", "label"):
        name = item.get(part)
        if name is not None and (not inside(name) or not without_ending(name)):
            raise UserError(
                f"{path}: each {part!r} must be the path of a file in the folder of this "
                f"dataset.json, without '..', got {brief(name)}: move the file there"
            )
    if item["image"] == item.get("label"):
        raise UserError(f"{path}: {brief(item['image'])} is an image and its own labels")
    if item.get("group") not in (None, "train", "test"):
        raise UserError(
            f"{path}: each 'group' must be train or test, got {brief(item['group'])} for "
            f"{brief(item['image'])}"
        )


def _names(item: dict, key: str, optional: bool = False) -> bool:
    return isinstance(item.get(key), str) or (optional and item.get(key) is None)


def text_of(dataset: Mapping, *keys: str) -> str:
    """The first of ``keys`` under which there is a line of text; else nothing."""
    for key in keys:
        text = dataset.get(key)
        if isinstance(text, str) and text.strip():
            return shortened(text.strip())
    return ""
