"""Which layout a folder has, and its scans: the table of layouts, and who reads it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import UserError, meant
from ..entries import Entry, Part
from . import bids, cohort, folders, msd, nnunet, subjects, tables
from .files import File, Layout, Listing, Options

# by name, the surest first: of two that a folder looks like, the first is taken
LAYOUTS = {
    "cohort": Layout("a file that `deepatlas data check` wrote", cohort.recognise, cohort.read, ""),
    "decathlon": Layout(
        "Medical Segmentation Decathlon: a dataset.json that lists images and labels",
        msd.recognise,
        msd.read,
        "dataset.json",
        lists_persons=True,
        has_contrasts=True,
    ),
    "nnunet": Layout(
        "nnU-Net v2 raw data: a dataset.json with channel_names, imagesTr/CASE_0000.nii.gz and "
        "labelsTr/CASE.nii.gz",
        nnunet.recognise,
        nnunet.read,
        "dataset.json",
        lists_persons=True,
        has_contrasts=True,
        splits_channels=True,
    ),
    "bids": Layout(
        "BIDS: sub-*/anat/*_T1w.nii.gz, and labels as derivatives/*/sub-*/anat/*_dseg.nii.gz",
        bids.recognise,
        bids.read,
        "sub-*",
        names_persons=True,
        has_contrasts=True,
    ),
    "table": Layout(
        "a CSV or TSV file with columns image, labels and subject",
        tables.recognise,
        tables.read,
        "*.[ct]sv",
        names_persons=True,
    ),
    "folders": Layout(
        "a folder of images beside a folder of labels, or CASE.nii.gz beside CASE_seg.nii.gz",
        folders.recognise,
        folders.read,
        "*",
    ),
    "subjects": Layout(
        "a folder for each scan, in which the files have the same names",
        subjects.recognise,
        subjects.read,
        "*/*",
    ),
}


def recognise(path: Path) -> tuple[str, str]:
    """(layout, why) of a folder, or of a file that lists scans.

    Where it looks like several, the first of ``LAYOUTS`` is taken, and ``why`` names the others.
    UserError, with all that was looked for, if it looks like none; FileNotFoundError if it is not
    there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such folder or file; a folder of scans in NIfTI format was wanted"
        )
    looks_like = {}
    for name, layout in LAYOUTS.items():
        reason = layout.recognise(path)
        if reason is not None:
            looks_like[name] = reason
    if not looks_like:
        wanted = "; ".join(f"{name}: {layout.title}" for name, layout in LAYOUTS.items())
        raise UserError(
            f"{path}: no layout of scans in NIfTI format was recognised. Looked for: {wanted}. "
            "Write a table of the files (CSV with columns image, labels, subject), or say the "
            "layout"
        )
    (taken, why), *others = looks_like.items()
    for name, reason in others:
        why += f"; it could be {name!r} as well ({reason}), which is less sure"
    return taken, why


def read_folder(
    path: str | Path,
    layout: str | None = None,
    *,
    subject: str | None = None,
    image: str | None = None,
    labels: str | None = None,
    contrast: str | None = None,
) -> Listing:
    """The scans of a folder, or of a file that lists scans, in a ``layout`` or in the one that is
    recognised; for the options see ``Options``. UserError if it holds no scan.
    """
    path = Path(path)
    options = Options(subject, image, labels, contrast)
    _check_options(options)
    if layout is not None:
        why = "it was said"
    elif image is not None:
        layout, why = "subjects", "it was said where the images are"
    else:
        layout, why = recognise(path)
    read = layout_of(layout).read
    _check_that_it_takes(layout, options)
    listing = read(path, options)
    if not listing.files:
        raise UserError(f"{path}: no scan was found in the layout {layout!r} ({why})")
    return replace(listing, layout=layout, why=why)


def _check_options(options: Options) -> None:
    for name, template, part in (
        ("subject", options.subject, "{subject}"),
        ("image", options.image, "{scan}"),
        ("labels", options.labels, "{scan}"),
    ):
        if template is not None and part not in template:
            raise UserError(f"{name} = {template!r}: a pattern that holds {part} was wanted")
    for name, template in (("image", options.image), ("labels", options.labels)):
        if template is not None and Path(template).anchor:
            raise UserError(
                f"{name} = {template!r}: a path that begins in the folder was wanted, as in "
                '"{scan}/t1.nii.gz"'
            )


def _check_that_it_takes(layout: str, options: Options) -> None:
    """What a user says of a folder is followed or refused, and never passed over."""
    if layout != "subjects":
        for name, template in (("image", options.image), ("labels", options.labels)):
            if template is not None:
                raise UserError(
                    f"{name} = {template!r}: the layout {layout!r} knows itself where the files "
                    "are: leave it out, or say image = ... as in '{scan}/t1.nii.gz', and no layout"
                )
    if options.contrast is not None and not layout_of(layout).has_contrasts:
        raise UserError(
            f"contrast = {options.contrast!r}: the layout {layout!r} knows no contrasts: leave it "
            "out, and let the files say which image is meant"
        )
    if options.subject is not None and layout == "cohort":
        raise UserError(
            f"subject = {options.subject!r}: in a cohort file each scan has its subject: write it "
            "there"
        )


def layout_of(name: str) -> Layout:
    """The layout of that name; UserError with those that there are."""
    if name not in LAYOUTS:
        raise UserError(f"there is no layout {name!r}{meant(name, LAYOUTS, all_of_them=True)}")
    return LAYOUTS[name]


# --- the scans of an entry ------------------------------------------------------------------------


def list_files(folder: Path, entry: Entry) -> list[File]:
    """The scans of an entry whose files are in ``folder``, not read yet, with their persons and
    the side of a published split.
    """
    return [replace(file, channel=entry.channel) for file in _files(folder, entry)]


def _files(folder: Path, entry: Entry) -> list[File]:
    if entry.scans is not None:
        return cohort.files_of(entry, folder)
    layout = layout_of(entry.layout)
    by_channel = layout.splits_channels and entry.channel is not None
    contrast = str(entry.channel) if by_channel else None
    options = Options(entry.subject, entry.image, entry.labels, contrast)
    files = layout.read(folder, options).files
    if not files:
        raise UserError(f"{folder}: {entry.name}: no scan was found in the layout {entry.layout!r}")
    groups = entry.groups
    if groups is None:
        return files
    return [replace(file, group=_group(file.id, groups, entry.name)) for file in files]


def _group(id: str, groups: Mapping[Part, Sequence[str]], name: str) -> Part | None:
    """The side of the split that the patterns of the entry ``name`` give to a scan."""
    fitting = [
        group
        for group, patterns in groups.items()
        if any(fnmatch.fnmatchcase(id, pattern) for pattern in patterns)
    ]
    if len(fitting) > 1:
        raise UserError(
            f"{name}: the scan {id!r} fits the patterns of groups.{fitting[0]} and of "
            f"groups.{fitting[1]}: mend one of them"
        )
    return fitting[0] if fitting else None


def marker_of(entry: Entry) -> str:
    """A pattern of what an entry's folder holds, relative to it: where it is, the data are."""
    if entry.image is not None:
        return entry.image.replace("{scan}", "*")
    return layout_of(entry.layout).marker
