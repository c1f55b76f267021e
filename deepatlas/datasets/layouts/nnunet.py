"""The layout of nnU-Net's raw data: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, and a
dataset.json with the names of channels and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...checkpoints import read_json
from ...errors import UserError, brief
from .files import (
    CHANNEL,
    ENDING,
    File,
    Listing,
    Options,
    channel_of,
    named_channels,
    other_channels,
    scans_in,
    some,
    without_ending,
)
from .msd import check_number, text_of
from .persons import check_that_persons_share_no_labels, persons_of


def recognise(folder: Path) -> str | None:
    """A dataset.json beside images with the numbers of channels."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    dataset = read_json(path)
    if not isinstance(dataset, dict):
        return None
    if "channel_names" in dataset:
        return "its dataset.json has channel_names, as nnU-Net's"
    images = scans_in(folder / "imagesTr")
    if any(CHANNEL.fullmatch(without_ending(image.name)) for image in images):
        return "beside its dataset.json, the files of imagesTr have numbers of channels, _0000"
    return None


@dataclass(frozen=True)
class _Case:
    """The files of one case: images by channel."""

    images: dict[int, Path]
    labels: Path | None
    group: str | None = None


def read(folder: Path, options: Options) -> Listing:
    """The cases of imagesTr, then those of imagesTs; one channel of each.

    ``options.contrast`` is the name or the number of the channel; without it, channel 0 is taken.
    Cases without labels are unlabelled. 'same_person_twice' is read as in the Decathlon's layout.
    UserError if the files are no NIfTI.
    """
    path = folder / "dataset.json"
    dataset = read_json(path)
    if not isinstance(dataset, dict):
        raise UserError(f"{path}: an object in curly brackets was wanted, got {brief(dataset)}")
    _check_ending(dataset, path)
    notes: list[str] = []
    if isinstance(dataset.get("dataset"), dict):
        cases = _listed_cases(dataset["dataset"], folder)
    else:
        cases = _cases(folder, notes)
    channel = _channel(dataset, cases, options.contrast, path, notes)
    without = [case for case in cases if channel not in cases[case].images]
    if without:
        notes.append(
            f"{len(without)} cases have no image of channel {channel}, and are left out: "
            f"{some(without)}"
        )
    ids = [case for case in cases if channel in cases[case].images]
    _say_number(dataset, ids, cases, notes)
    person = persons_of(ids, options.subject, path, dataset.get("same_person_twice", []))
    files = [
        File(id, person[id], cases[id].images[channel], cases[id].labels, cases[id].group)
        for id in ids
    ]
    check_that_persons_share_no_labels(files, path)
    return Listing(
        files=files,
        names=_names(dataset, path, notes),
        notes=notes,
        licence=text_of(dataset, "licence", "license"),
        title=text_of(dataset, "name", "description"),
    )


def _check_ending(dataset: Mapping, path: Path) -> None:
    ending = dataset.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ENDING.fullmatch(ending):
        raise UserError(
            f"{path}: its file_ending is {brief(ending)}, and .nii.gz or .nii was wanted: convert "
            "the images and labels to NIfTI, and say so there"
        )


# --- cases ----------------------------------------------------------------------------------------


def _cases(folder: Path, notes: list[str]) -> dict[str, _Case]:
    """Case -> its files, of imagesTr and imagesTs; published labels of imagesTs make these the
    test group.
    """
    labelled_test = bool(scans_in(folder / "labelsTs"))
    cases: dict[str, _Case] = {}
    for part, group in (("Tr", "train"), ("Ts", "test")):
        images = _images(folder / f"images{part}", notes)
        labels = {without_ending(file.name): file for file in scans_in(folder / f"labels{part}")}
        twice = sorted(cases.keys() & images.keys())
        if twice:
            raise UserError(
                f"{folder}: {some(twice)} is in imagesTr and in imagesTs: name each case once"
            )
        alone = sorted(labels.keys() - images.keys())
        if alone:
            notes.append(
                f"{len(alone)} files of labels{part} have no image of their name, and are left "
                f"out: {some(alone)}"
            )
        for case, channels in images.items():
            published = group if labelled_test else None
            cases[case] = _Case(channels, labels.get(case), published)
    return cases


def _images(folder: Path, notes: list[str]) -> dict[str, dict[int, Path]]:
    """Case -> channel -> file."""
    images: dict[str, dict[int, Path]] = {}
    unnumbered = []
    for file in scans_in(folder):
        found = CHANNEL.fullmatch(without_ending(file.name))
        if found is None:
            unnumbered.append(file.name)
            continue
        channels = images.setdefault(found[1], {})
        number = int(found[2])
        if number in channels:
            raise UserError(
                f"{file}: {channels[number].name} is the same channel of the same case: remove one"
            )
        channels[number] = file
    if unnumbered:
        notes.append(
            f"{len(unnumbered)} files of {folder.name} have no number of a channel, _0000, and "
            f"are left out: {some(unnumbered)}"
        )
    return images


def _listed_cases(listed: Mapping, folder: Path) -> dict[str, _Case]:
    """The cases that dataset.json lists by itself, as 'dataset', with paths of images and label."""
    cases = {}
    for case, item in listed.items():
        images = item.get("images") if isinstance(item, dict) else None
        labels = item.get("label") if isinstance(item, dict) else None
        listed_images = images if isinstance(images, list) else [None]
        paths = [*listed_images, labels or ""]
        if not all(isinstance(path, str) for path in paths):
            raise UserError(
                f"{folder / 'dataset.json'}: each case of 'dataset' must list its 'images' and "
                f"name its 'label', got {brief(case)}: {brief(item)}"
            )
        channels = {number: folder / image for number, image in enumerate(listed_images)}
        cases[case] = _Case(channels, folder / labels if labels else None)
    return cases


def _channel(
    dataset: Mapping, cases: Mapping[str, _Case], wanted: str | None, path: Path, notes: list[str]
) -> int:
    """The number of the channel to take, 0 unless told, and a note where there are others."""
    names = named_channels(dataset.get("channel_names", dataset.get("modality")))
    there = {number: "" for case in cases.values() for number in case.images}
    named = there | names
    taken = 0 if wanted is None else channel_of(wanted, named, path)
    notes += other_channels(taken, {number: named[number] for number in there})
    return taken


def _say_number(dataset: Mapping, ids: list[str], cases: Mapping, notes: list[str]) -> None:
    """A note where dataset.json counts other cases than there are."""
    said = dataset.get("numTraining")
    labelled = sum(cases[id].labels is not None and cases[id].group != "test" for id in ids)
    if isinstance(said, int) and said != labelled:
        notes.append(
            f"dataset.json says numTraining {said}, and {labelled} cases with labels were found"
        )


# --- names of labels ------------------------------------------------------------------------------


def _names(dataset: Mapping, path: Path, notes: list[str]) -> dict[int, str]:
    """Label number -> name.

    'labels' gives a number for each name, or, where regions are trained, several; the first version
    of nnU-Net gave a name for each number. Regions overlap, and structures do not: each number has
    the name of the smallest region that holds it, and with its number if another has that name too.
    """
    wanted = f"{path}: 'labels' must give each name its number, as {{\"liver\": 1}}, got "
    labels = dataset.get("labels", {})
    if not isinstance(labels, dict):
        raise UserError(f"{wanted}{brief(labels)}")
    numbers_of: dict[str, list[int]] = {}
    for key, value in labels.items():
        if isinstance(value, str) and key.isdecimal():  # the first version
            name, numbers = value, [key]
        else:
            name, numbers = key, value if isinstance(value, list) else [value]
        checked = [number for number in map(check_number, numbers) if number is not None]
        if len(checked) < len(numbers) or not checked:
            raise UserError(f"{wanted}{brief(key)}: {brief(value)}")
        numbers_of[name] = checked
    names: dict[int, str] = {}
    for name, numbers in sorted(numbers_of.items(), key=lambda item: -len(item[1])):
        names.update(dict.fromkeys(numbers, name))  # the smaller regions come later
    regions = [name for name, numbers in numbers_of.items() if len(numbers) > 1]
    if regions:
        shared = [name for name in regions if list(names.values()).count(name) > 1]
        for number, name in names.items():
            if name in shared:
                names[number] = f"{name} {number}"
        notes.append(
            f"its labels are regions that overlap ({some(regions)}): each label number is taken "
            "as a structure of its own, with the name of the smallest region that holds it; merge "
            "them where a region is wanted"
        )
    ignored = numbers_of.get("ignore", [])
    if ignored:
        notes.append(
            f"the label {ignored[0]}, 'ignore', marks voxels that nobody has labelled; left out "
            "of the structures, they count as background"
        )
    return {number: name for number, name in names.items() if number and number not in ignored}
