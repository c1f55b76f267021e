"""A cohort file: a table of structures, a grid and scans, as `deepatlas data check` writes it."""

from __future__ import annotations

from pathlib import Path

from ..entries import Entry, expand, read_cohort
from .files import File, Listing, Options


def recognise(path: Path) -> str | None:
    """A file of that ending, named itself: a folder that holds one is looked at anew."""
    if path.suffix.lower() == ".toml":
        return "it is a cohort file"
    return None


def read(path: Path, options: Options) -> Listing:
    """The scans that it lists, with the names of its structures."""
    entry = read_cohort(path)
    names = {number: name for name, numbers in entry.structures or () for number in expand(numbers)}
    files = files_of(entry, path.parent)
    return Listing(files=files, names=names, licence=entry.licence, title=entry.title)


def files_of(entry: Entry, home: Path) -> list[File]:
    """The scans of a cohort file in the folder ``home``, each with its part of the split: train,
    validation or test.
    """
    return [
        File(
            scan.id,
            scan.subject,
            home / scan.image,
            None if scan.labels is None else home / scan.labels,
            scan.part,
            entry.channel,
        )
        for scan in entry.scans or ()
    ]
