"""How a folder of files is laid out: which scans are in it, of whom, and where their labels are."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError


@dataclass(frozen=True)
class File:
    """A scan that has not been read yet."""

    id: str
    subject: str
    image: Path
    labels: Path | None
    group: str | None = None  # "train" or "test", where a split is published


def decathlon(folder: Path) -> list[File]:
    """The scans of a folder as the Medical Segmentation Decathlon lays it out, with a dataset.json.

    A scan's number ends its name. 'same_person_twice', the kit's addition, lists the numbers of
    scans of one person; 'group' says on which side of a published split a scan is.
    """
    dataset = read_dataset(folder)
    path = folder / "dataset.json"
    items = []
    for item in dataset["training"]:
        if not Path(item["image"]).name.startswith("._"):  # resource forks of macOS
            items.append(item)
    ids = [_without_ending(item["image"]) for item in items]
    if len(set(ids)) < len(ids):
        raise UserError(
            f"{path}: {len(ids)} images have only {len(set(ids))} different names: "
            "name each by its scan"
        )
    numbers = [id.split("_")[-1] for id in ids]
    persons = _persons(numbers, dataset.get("same_person_twice", []), path)
    files = []
    for id, number, item in zip(ids, numbers, items, strict=True):
        image, labels = folder / item["image"], folder / item["label"]
        files.append(File(id, persons[number], image, labels, item.get("group")))
    return files


def _without_ending(image: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", Path(image).name)


def _persons(numbers: list[str], twice: object, path: Path) -> dict[str, str]:
    """Number of a scan -> its subject: the first number of those of one person."""
    persons = {number: number for number in numbers}
    for group in twice if isinstance(twice, list) else [twice]:
        known = isinstance(group, list) and {*map(str, group)} <= persons.keys()
        if not known or not group:
            raise UserError(
                f"{path}: 'same_person_twice' must list the numbers of scans, as they "
                f'end their names, in lists such as ["003", "017"], got {group!r}'
            )
        persons |= dict.fromkeys(map(str, group), str(group[0]))
    return persons


def label_names(folder: Path) -> dict[int, str]:
    """What a folder's own dataset.json calls its label numbers."""
    labels = read_dataset(folder).get("labels", {})
    return {int(number): text for number, text in labels.items()}


def read_dataset(folder: Path) -> dict:
    """The dataset.json of a folder; UserError if it lists no images and labels."""
    path = folder / "dataset.json"
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}): restore the file that came with the data"
        ) from error
    items = dataset.get("training") if isinstance(dataset, dict) else None
    if not isinstance(items, list) or not items:
        raise UserError(
            f"{path}: a list 'training' of image and label files was wanted, and is missing or "
            "empty"
        )
    for item in items:
        if not isinstance(item, dict) or not _names(item, "image") or not _names(item, "label"):
            raise UserError(
                f"{path}: each entry of 'training' must name its 'image' and its 'label', "
                f"got {item!r}"
            )
    return dataset


def _names(item: dict, key: str) -> bool:
    return isinstance(item.get(key), str)
