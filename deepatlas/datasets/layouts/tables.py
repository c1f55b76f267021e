"""The layout of a table: a CSV or TSV file with a line for each scan."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from pathlib import Path

from ...errors import UserError, brief, shortened
from .files import ENDING, File, Listing, Options, check_different, contents, without_ending
from .persons import check_that_persons_share_no_labels, persons_of

# what a column may be called, in small letters
COLUMNS = {
    "image": ("image", "images", "image_path", "scan", "path", "file", "filename"),
    "labels": ("labels", "label", "label_path", "segmentation", "seg", "mask"),
    "subject": ("subject", "subject_id", "person", "patient", "patient_id", "participant_id"),
    "group": ("group", "part", "split", "set"),
    "id": ("id", "name", "scan_id"),
}
GROUPS: dict[str, str | None] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
    "": None,
}


def recognise(path: Path) -> str | None:
    """A table itself, or a folder with one table that has a column of NIfTI files."""
    if path.is_file():
        return "it is a table" if _is_table(path) else None
    tables = [file for file in contents(path) if _is_table(file) and _lists_scans(file)]
    if len(tables) == 1:
        return f"its {tables[0].name} has a column of images"
    return None


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv") and path.is_file()


def _lists_scans(path: Path) -> bool:
    """Has a table a column of images, and is its first image a NIfTI file by its name?

    The table that `deepatlas data check` leaves in a folder has a group and a part, and is none.
    """
    try:
        (_, first), *_ = _rows(path)
        image = first[_columns(path, first)["image"]]
    except UserError:
        return False
    return ENDING.search(image.strip()) is not None


def read(path: Path, options: Options) -> Listing:
    """The scans of a table with the columns image, labels, subject, group and id, of which only
    image must be there; files are relative to the folder of the table, or absolute.

    Without a column subject, names tell whose a scan is, as in other layouts. UserError, a
    sentence that names the table and the line, for each mistake.
    """
    if path.is_dir():
        tables = [file for file in contents(path) if _is_table(file) and _lists_scans(file)]
        if len(tables) != 1:
            names = ", ".join(file.name for file in tables) or "none"
            raise UserError(
                f"{path}: one CSV or TSV file with a column of images was wanted, got {names}: "
                "name the file itself"
            )
        path = tables[0]
    rows = _rows(path)
    key_of = _columns(path, rows[0][1])

    def column(what: str) -> list[str]:
        key = key_of.get(what)
        return [row[key].strip() if key else "" for _, row in rows]

    images, labels, groups = column("image"), column("labels"), column("group")
    for (number, _), image, group in zip(rows, images, groups, strict=True):
        if not image:
            raise UserError(f"{path}: line {number} names no image")
        if group.lower() not in GROUPS:
            raise UserError(
                f"{path}: line {number}: the group must be train, validation or test, or empty, "
                f"got {brief(group)}"
            )
    ids = _ids(images, column("id"), path)
    person = dict(zip(ids, column("subject"), strict=True))
    unknown = [id for id in ids if options.subject is not None or not person[id]]
    if unknown:
        person |= persons_of(unknown, options.subject, path)
    files = []
    for id, image, label, group in zip(ids, images, labels, groups, strict=True):
        files.append(
            File(
                id,
                person[id],
                path.parent / image,
                path.parent / label if label else None,
                GROUPS[group.lower()],
            )
        )
    check_that_persons_share_no_labels(files, path)
    return Listing(files=files)


def _ids(images: list[str], said: list[str], path: Path) -> list[str]:
    """Names of scans: those of the column id; or else of the files, with their folders where the
    files alone have the same names.
    """
    ids = [id or without_ending(image) for id, image in zip(said, images, strict=True)]
    if len(set(ids)) < len(ids) and not any(said):
        parts = [Path(image).parts for image in images]
        ids = ["_".join([*folders, without_ending(name)]) for *folders, name in parts]
    check_different(ids, path)
    return ids


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines of a table but the first, as (number of the line, column -> cell)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        separator = max("\t;,", key=header.count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of text in UTF-8 ({error})") from error
    names = lines[0] if lines else []
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two columns have one name: {brief(names)}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != len(names):
            raise UserError(
                f"{path}: line {number} has {len(line)} cells, and the first line {len(names)}: "
                f"a cell that holds {brief(separator)} itself must stand in quotation marks"
            )
        rows.append((number, dict(zip(names, line, strict=True))))
    if not rows:
        raise UserError(
            f"{path}: a first line with the names of columns, and a line for each scan, were "
            "wanted, got no scan"
        )
    return rows


def _columns(path: Path, names: Collection[str]) -> dict[str, str]:
    """What a column is -> its name in the table; UserError if there is none of images."""
    found: dict[str, str] = {}
    for name in names:
        for what, known in COLUMNS.items():
            if name.strip().lower().replace(" ", "_") in known:
                other = found.setdefault(what, name)
                if other != name:
                    raise UserError(
                        f"{path}: the columns {other!r} and {name!r} are both of {what}: rename one"
                    )
    if "image" not in found:
        raise UserError(
            f"{path}: a column 'image' was wanted (and labels, subject, group, id, where there are "
            f"any), got {shortened(', '.join(map(repr, names)))}"
        )
    return found
