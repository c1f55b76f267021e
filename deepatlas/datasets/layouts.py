"""How a folder of files is laid out: which scans are in it, of whom, and where their labels are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import read_json
from ..errors import UserError, brief
from .entries import LARGEST_NUMBER, inside


@dataclass(frozen=True)
class File:
    """A scan that has not been read yet."""

    id: str
    subject: str
    image: Path
    labels: Path | None
    group: str | None = None  # "train" or "test", where a split is published


def decathlon(folder: Path, template: str | None = None) -> list[File]:
    """The scans of a folder as the Medical Segmentation Decathlon lays it out, with a dataset.json.

    ``template``: the ``subject`` of the data set's entry, see ``person_of``. 'same_person_twice',
    the kit's addition, lists scans of one person, by their names or by the persons that these give;
    'group' says on which side of a published split a scan is.
    """
    dataset = read_dataset(folder)
    path = folder / "dataset.json"
    items = dataset["training"]
    ids = [_without_ending(item["image"]) for item in items]
    if len(set(ids)) < len(ids):
        raise UserError(
            f"{path}: {len(ids)} images have only {len(set(ids))} different names: "
            "name each by its scan"
        )
    person = {id: person_of(id, template, path) for id in ids}
    _check_that_names_tell_persons_apart(person, template, path)
    first = _united(person, dataset.get("same_person_twice", []), path)
    files = []
    for id, item in zip(ids, items, strict=True):
        image, labels = folder / item["image"], folder / item["label"]
        files.append(File(id, first[person[id]], image, labels, item.get("group")))
    _check_that_persons_share_no_labels(files, path)
    return files


def _file_name(image: str) -> str:
    return image.rpartition("/")[2]


def _without_ending(image: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", _file_name(image))


# --- who is who -----------------------------------------------------------------------------------


def person_of(id: str, template: str | None, path: Path) -> str:
    """The person of whom a scan is, by the scan's name without its ending.

    In ``template``, {subject} stands for the person, and * for anything, even nothing; from left to
    right, each for as few characters as will do: by "*_S_{subject}_*" the scan
    "ADNI_002_S_0295_MR_1" is of "0295". UserError if the name does not fit.

    Without a template a BIDS name, "sub-01_ses-02_T1w", is of "01"; any other scan is of a person
    of its own, who has its name.
    """
    if template is None:
        bids = re.match("sub-([A-Za-z0-9]+)(_|$)", id)
        return bids.group(1) if bids else id
    pattern = re.escape(template).replace(r"\{subject\}", "(.+?)").replace(r"\*", ".*?")
    found = re.fullmatch(pattern, id)
    if found is None:
        raise UserError(
            f"{path}: the name of the scan {id!r} does not fit subject = {template!r}, by which "
            "the entry of the data set says whose a scan is: mend one of them"
        )
    return found.group(1)


def _check_that_names_tell_persons_apart(
    person: Mapping[str, str], template: str | None, path: Path
) -> None:
    """Refuse a part of the names that most scans share, such as T1w: it is nobody."""
    name, count = Counter(person.values()).most_common(1)[0]
    if count <= 2 or 2 * count <= len(person):
        return
    if template is None:
        rule = "the names of BIDS"
        advice = 'say so in the entry of the data set, as in subject = "mouse_{subject}_*"'
    else:
        rule = f"subject = {template!r}"
        advice = "mend that"
    raise UserError(
        f"{path}: by {rule}, {count} of {len(person)} scans are of one person, {name!r}: if "
        f"another part of the name is the person, {advice}; if they are, list these scans in "
        "'same_person_twice', without that rule"
    )


def _united(person: Mapping[str, str], groups: object, path: Path) -> dict[str, str]:
    """Person -> the first of all that are the same one; groups that share a person unite.

    ``person``: of each scan, by its name. ``groups``: lists of scans or of persons.
    """
    first = {name: name for name in person.values()}

    def first_of(name: str) -> str:
        while first[name] != name:
            first[name] = first[first[name]]  # chains stay short
            name = first[name]
        return name

    for group in groups if isinstance(groups, list) else [groups]:
        members = [str(item) for item in group] if isinstance(group, list) else []
        if not members or any(item not in first and item not in person for item in members):
            raise UserError(
                f"{path}: 'same_person_twice' must list the scans of one person, by their names "
                f'or by what these say of the person, in lists such as ["003", "017"], got '
                f"{brief(group)}"
            )
        for item in members:
            if item in first and person.get(item, item) != item:
                raise UserError(
                    f"{path}: in 'same_person_twice', {item!r} is a scan of {person[item]!r} and "
                    "another person's name: rename one"
                )
        persons = [item if item in first else person[item] for item in members]
        for name in persons:
            first[first_of(name)] = first_of(persons[0])
    return {name: first_of(name) for name in first}


def _check_that_persons_share_no_labels(files: Sequence[File], path: Path) -> None:
    """Refuse one file of labels for scans of two persons: these would be contrasts of one case."""
    owners: dict[str, File] = {}
    for file in files:
        other = owners.setdefault(str(file.labels), file)
        if other.subject != file.subject:
            raise UserError(
                f"{path}: {other.id} and {file.id} have the same labels, {file.labels.name}, and "
                "count as two persons: list one scan of each case, or join them in "
                "'same_person_twice'"
            )


# --- dataset.json ---------------------------------------------------------------------------------


def label_names(folder: Path) -> dict[int, str]:
    """What a folder's own dataset.json calls its label numbers."""
    path = folder / "dataset.json"
    labels = read_dataset(folder).get("labels", {})
    wanted = f'{path}: \'labels\' must name each label number, as {{"1": "left thalamus"}}, got '
    if not isinstance(labels, dict):
        raise UserError(f"{wanted}{brief(labels)}")
    names = {}
    for number, text in labels.items():
        numeric = re.fullmatch("[0-9]{1,19}", number) and int(number) <= LARGEST_NUMBER
        if not numeric or not isinstance(text, str) or int(number) in names:
            raise UserError(f"{wanted}{brief(number)}: {brief(text)}")
        names[int(number)] = text
    return names


def read_dataset(folder: Path) -> dict:
    """The dataset.json of a folder; UserError if it lists no images and labels in this folder."""
    path = folder / "dataset.json"
    dataset = read_json(path)
    listed = dataset.get("training") if isinstance(dataset, dict) else None
    items = []
    for item in listed if isinstance(listed, list) else []:
        _check_item(item, path)
        if not _file_name(item["image"]).startswith("._"):  # resource forks of macOS
            items.append(item)
    if not items:
        raise UserError(
            f"{path}: a list 'training' of image and label files was wanted, and is missing or "
            "empty"
        )
    return dataset | {"training": items}


def _check_item(item: object, path: Path) -> None:
    if not isinstance(item, dict) or not _names(item, "image") or not _names(item, "label"):
        raise UserError(
            f"{path}: each entry of 'training' must name its 'image' and its 'label', "
            f"got {brief(item)}"
        )
    for key in ("image", "label"):
        if not inside(item[key]) or not _without_ending(item[key]):
            raise UserError(
                f"{path}: each {key!r} must be the path of a file in the folder of this "
                f"dataset.json, without '..', got {brief(item[key])}: move the file there"
            )
    if item["image"] == item["label"]:
        raise UserError(f"{path}: {brief(item['image'])} is an image and its own labels")
    if item.get("group") not in (None, "train", "test"):
        raise UserError(
            f"{path}: each 'group' must be train or test, got {brief(item['group'])} for "
            f"{brief(item['image'])}"
        )


def _names(item: dict, key: str) -> bool:
    return isinstance(item.get(key), str)


def check_files(files: Collection[File]) -> None:
    """Refuse files that are not there, before any is read."""
    missing = [path for file in files for path in (file.image, file.labels) if not path.is_file()]
    if missing:
        others = f" ({len(missing)} files of the split are missing)" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{missing[0]}: no such file{others}: dataset.json lists it, restore it"
        )
