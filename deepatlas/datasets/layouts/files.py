"""What every layout is made of: files of scans that have not been read, and what a folder says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...checkpoints import read_json
from ...errors import UserError
from ..nifti import Volume

ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
# of nnU-Net: case, and the number of its channel
CHANNEL = re.compile(r"(.+)_([0-9]{4})")
MOST_NAMED = 5  # files that one sentence names


@dataclass(frozen=True)
class File:
    """A scan that has not been read yet."""

    id: str
    subject: str
    image: Path
    labels: Path | None
    group: str | None = None  # "train", "validation" or "test", where a split is published
    channel: int | None = None  # which image of a file that holds several

    @property
    def stored(self) -> Path | Volume:
        """What is to be read: the file, or the one of its images that is meant."""
        return self.image if self.channel is None else Volume(self.image, self.channel)


@dataclass(frozen=True)
class Listing:
    """What a folder holds: the scans, and what it says of them.

    ``layout``, and ``why`` it was taken, are filled in by ``read_folder``. ``names``: label number
    -> name, where the folder names them; ``notes``: sentences for the user about what was left out
    or chosen.
    """

    layout: str = ""
    why: str = ""
    files: list[File] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    licence: str = ""
    title: str = ""


@dataclass(frozen=True)
class Options:
    """What a user may say of a folder: ``subject``, see ``person_of``; ``image`` and ``labels``,
    see the layout "subjects"; ``contrast``, where a scan has several: the suffix of BIDS, the
    channel of nnU-Net.
    """

    subject: str | None = None
    image: str | None = None
    labels: str | None = None
    contrast: str | None = None


@dataclass(frozen=True)
class Layout:
    """A way to lay out a folder of scans.

    ``recognise(folder)``: why it looks so, or None. ``read(folder, options)``: the listing; of what
    the options say, it takes what the layout knows. ``marker``: a pattern, relative to the folder,
    of a file or folder that is there wherever the layout is.
    """

    title: str
    recognise: Callable[[Path], str | None]
    read: Callable[[Path, Options], Listing]
    marker: str
    names_persons: bool = False  # does it say of each scan whose it is?
    # has it a dataset.json, which may list the scans of one person as 'same_person_twice'?
    lists_persons: bool = False
    has_contrasts: bool = False  # may a scan have several images, of which one is named?
    splits_channels: bool = False  # is each channel of a scan a file of its own?


def is_hidden(path: Path) -> bool:
    """Hidden files, and the resource forks of macOS, "._scan.nii.gz"."""
    return path.name.startswith(".")


def contents(folder: Path) -> list[Path]:
    """What a folder holds, by name, but hidden files; nothing where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not is_hidden(path))


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name, links to folders among them."""
    return [path for path in contents(folder) if path.is_dir()]


def scans_in(folder: Path) -> list[Path]:
    """The NIfTI files in a folder, by name; also links to files that are not there."""
    return [path for path in contents(folder) if ENDING.search(path.name) and not path.is_dir()]


def scans_below(folder: Path, depth: int) -> Iterator[Path]:
    """The NIfTI files in a folder and in those below it, ``depth`` folders deep."""
    yield from scans_in(folder)
    if depth > 0:
        for inner in folders_in(folder):
            yield from scans_below(inner, depth - 1)


def without_ending(name: str) -> str:
    """The name of a file, given by its path, without .nii or .nii.gz."""
    return ENDING.sub("", name.rpartition("/")[2])


def is_segmentation(labels: Path) -> bool:
    """Are these labels a network's? `deepatlas segment` says so in the JSON file beside them."""
    beside = labels.with_name(f"{without_ending(labels.name)}.json")
    if not beside.is_file():
        return False
    try:
        content = read_json(beside)
    except (UserError, OSError):
        return False
    return isinstance(content, dict) and content.keys() >= {"structures", "model", "deepatlas"}


def drawn(labels: Collection[Path], notes: list[str]) -> list[Path]:
    """Files of ``labels`` but those that a network wrote: nobody must learn from them, or be
    measured by them, as if an expert had drawn them.
    """
    written = [file for file in labels if is_segmentation(file)]
    if written:
        notes.append(
            f"{len(written)} files of labels were written by `deepatlas segment`, not drawn, and "
            f"are left out: {some([file.name for file in written])}; a table of the files, or a "
            "cohort file, takes them all the same"
        )
    return [file for file in labels if file not in written]


def check_different(ids: Sequence[str], path: Path) -> None:
    """Refuse two scans of one name; ``path`` is for the error."""
    if len(set(ids)) < len(ids):
        twice, _ = Counter(ids).most_common(1)[0]
        raise UserError(
            f"{path}: {len(ids)} images have only {len(set(ids))} different names, {twice!r} is "
            "there more than once: name each by its scan"
        )


def channel_of(wanted: str, named: Mapping[int, str], path: Path) -> int:
    """The number of the channel of which ``wanted`` is the number or the name."""
    fitting = [
        number
        for number, name in named.items()
        if wanted.lower() == name.lower() or (wanted.isdecimal() and int(wanted) == number)
    ]
    if len(fitting) != 1:
        listed = ", ".join(f"{number} ({name})" for number, name in sorted(named.items()))
        raise UserError(f"{path}: there is no channel {wanted!r}: choose from {listed or 'none'}")
    return fitting[0]


def named_channels(names: object) -> dict[int, str]:
    """Number -> name of channels, as a dataset.json has them."""
    listed = names.items() if isinstance(names, dict) else ()
    return {int(key): str(name) for key, name in listed if re.fullmatch("[0-9]{1,4}", str(key))}


def other_channels(taken: int, named: Mapping[int, str]) -> list[str]:
    """A note on which of the channels of each scan is taken; none where there is one."""
    others = [f"{number} ({name})" for number, name in sorted(named.items()) if number != taken]
    if not others:
        return []
    return [
        f"each scan has several channels: {taken} ({named.get(taken, '')}) is taken, left out are "
        f"{some(others)}; another is taken if it is named as the contrast"
    ]


def check_files(files: Collection[File]) -> None:
    """Refuse files that are not there, before any is read."""
    wanted = [path for file in files for path in (file.image, file.labels) if path is not None]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        others = f" ({len(missing)} files of the split are missing)" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{missing[0]}: no such file{others}: the data set lists it, restore it"
        )


def some(names: Collection[object]) -> str:
    """The first few of ``names``, and how many more there are."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more
