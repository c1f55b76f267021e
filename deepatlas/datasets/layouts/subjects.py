"""The layout of a folder for each scan, in which the files have the same names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from .files import (
    File,
    Listing,
    Options,
    check_different,
    folders_in,
    is_hidden,
    is_segmentation,
    scans_in,
    some,
)
from .persons import check_that_persons_share_no_labels, persons_of

LABELS = re.compile(
    r"(^|[^a-z])(seg|dseg|aseg|segmentation|label|labels|labelmap|mask|gt|parc|aparc)"
    r"[0-9]*([^a-z]|$)"
)
T1 = re.compile("(^|[^a-z])t1", re.IGNORECASE)


def recognise(folder: Path) -> str | None:
    """Every folder in it holds files of the same names, of which one is labels by its name."""
    templates = _templates(folder)
    if templates is None:
        return None
    images, labels = templates
    return f"each of its folders holds {images[0]}, and {labels[0]} looks like labels".replace(
        "{scan}", "SCAN"
    )


def _templates(folder: Path) -> tuple[list[str], list[str]] | None:
    """(images, labels) as the names of files that the folders share, {scan} for the folder's own,
    the likeliest first; None where they share none, or none that looks like labels.

    Labels may be missing in some folders: these scans are unlabelled.
    """
    scans = [path for path in folders_in(folder) if scans_in(path)]
    if len(scans) < 2:
        return None
    names_of = []
    for scan in scans:
        given = [file for file in scans_in(scan) if not is_segmentation(file)]
        names_of.append({file.name.replace(scan.name, "{scan}") for file in given})
    everywhere = set.union(*names_of)
    labels = sorted(name for name in everywhere if LABELS.search(name.lower()))
    images = sorted(everywhere - set(labels))
    if not images or not labels or not all(names.issuperset(images) for names in names_of):
        return None
    images.sort(key=lambda name: T1.search(name) is None)
    return images, labels


def read(folder: Path, options: Options) -> Listing:
    """The scans by the templates ``options.image`` and ``options.labels``, paths relative to the
    folder with {scan} for the scan's name and * for any one folder, or for a part of a name.

    Without them, by the names that all folders share. A scan without labels is unlabelled.
    """
    notes: list[str] = []
    image, labels = options.image, options.labels
    if image is None:
        templates = _templates(folder)
        if templates is None:
            raise UserError(
                f"{folder}: its folders do not hold files of the same names, of which one is "
                'labels by its name: say where they are, as in image = "{scan}/t1.nii.gz" and '
                'labels = "{scan}/labels.nii.gz"'
            )
        images, label_names = templates
        image = "{scan}/" + images[0]
        labels = labels or "{scan}/" + label_names[0]
        for what, taken, others in (
            ("image", image, images[1:]),
            ("labels", labels, label_names[1:]),
        ):
            if others:
                notes.append(
                    f"each scan has several files of {what}: {taken} is taken, left out are "
                    f"{some(others)}; say {what} = ... to take another"
                )
    image_of = _found(folder, image)
    ids = list(image_of)
    person = persons_of(ids, options.subject, folder)
    files = []
    for id in ids:
        files.append(File(id, person[id], image_of[id], _labels(folder, labels, id)))
    check_that_persons_share_no_labels(files, folder)
    if options.image is not None:
        notes += _left_out(files)
    return Listing(files=files, notes=notes)


def _left_out(files: Sequence[File]) -> list[str]:
    """A note on what lies beside the scans' files and fits no template; none where all is taken."""
    taken = {path for file in files for path in (file.image, file.labels) if path is not None}
    beside = [path for home in sorted({path.parent for path in taken}) for path in scans_in(home)]
    others = [path for path in beside if path not in taken]
    if not others:
        return []
    listed = some([f"{path.parent.name}/{path.name}" for path in others])
    return [f"{len(others)} files fit no template, or no image, and are left out: {listed}"]


def _found(folder: Path, template: str) -> dict[str, Path]:
    """Scan -> its image, by a template."""
    pattern = re.escape(template).replace(r"\{scan\}", "(?P<scan>[^/]+)", 1)
    pattern = pattern.replace(r"\{scan\}", "(?P=scan)").replace(r"\*", "[^/]*")
    found = []
    for file in _glob(folder, template.replace("{scan}", "*")):
        fits = re.fullmatch(pattern, file.relative_to(folder).as_posix())
        if fits is not None:
            found.append((fits["scan"], file))
    check_different([id for id, _ in found], folder)
    return dict(sorted(found))


def _labels(folder: Path, template: str | None, id: str) -> Path | None:
    """The labels of a scan; UserError where the template fits several files."""
    if template is None:
        return None
    # ids are literal: square brackets in a folder's name are no pattern
    literal = re.sub(r"([*?[])", r"[\1]", id)
    found = _glob(folder, template.replace("{scan}", literal))
    if len(found) > 1:
        raise UserError(
            f"{folder}: labels = {template!r} fits several files of the scan {id!r}: "
            f"{some([file.relative_to(folder) for file in found])}"
        )
    return found[0] if found else None


def _glob(folder: Path, pattern: str) -> Sequence[Path]:
    return sorted(file for file in folder.glob(pattern) if not is_hidden(file))
