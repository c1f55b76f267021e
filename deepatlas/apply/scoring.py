"""Files of labels compared with an expert's: each structure, in millimetres, on the expert's grid.

The metrics are those of ``evaluation.overlap``. The two files must lie on one grid, which need not
be isotropic; their own label numbers count, and a sidecar says which belong to one structure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..checkpoints import read_json
from ..datasets.layouts import read_folder
from ..datasets.layouts.files import scans_below, without_ending
from ..datasets.nifti import ELSEWHERE, label_indices, read_labels, voxels_apart
from ..errors import UserError, brief, printable
from ..evaluation.overlap import STRUCTURE_METRICS, score_labels
from .formats import Structures, read_sidecar

COLUMNS = ("case", "structure", *STRUCTURE_METRICS)
DEPTH = 6  # folders of labels are searched so far down; BIDS has sub-01/ses-01/anat

LISTS = (".toml", ".csv", ".tsv")  # a cohort file, and tables of scans
LABELS_ENDING = re.compile(r"_(labels?|dseg|seg|mask)$")
FIRST_CHANNEL = re.compile(r"_0000$")  # of nnU-Net's images, not of its labels
# of a BIDS name, what two files of one acquisition need not share
NOT_OF_THE_CASE = re.compile(r"_(desc|space|label|res)-[^_]+|_[^_-]+$")


def evaluate(
    predicted: str | Path,
    reference: str | Path,
    structures: Structures | None = None,
) -> pd.DataFrame:
    """One row with ``STRUCTURE_METRICS`` for each case and structure; files, or folders whose files
    are matched by their names.

    ``structures``, as {"hippocampus": [17, 53]}, says which numbers are scored, and which count as
    one; by default the sidecar beside a predicted file does, and where there is none, each number
    is a structure. UserError, or an error of the file, for the first pair that cannot be compared.
    """
    rows = []
    for pair in match(predicted, reference).pairs:
        rows += score_files(pair, structures)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def score_files(pair: Pair, structures: Structures | None = None) -> list[dict[str, float | str]]:
    """The rows of one ``pair``; see ``evaluate``.

    Numbers that ``structures`` do not list are background, like 0. UserError unless both files hold
    labels of one grid, and if the reference has none of the structures.
    """
    if pair.predicted.resolve() == pair.reference.resolve():
        raise UserError(
            f"{pair.predicted}: would be compared with itself: name the expert's labels, which lie "
            "elsewhere or have another name"
        )
    guess, guess_affine = read_labels(pair.predicted)
    truth, affine = read_labels(pair.reference)
    _check_grids(pair, (guess.shape, guess_affine), (truth.shape, affine))
    if structures is None:
        beside = _sidecar(pair.predicted)
        if beside.is_file():
            structures = read_sidecar(beside)
        else:
            found = np.union1d(guess, truth)
            structures = {str(number): (number,) for number in found.tolist() if number != 0}
    index_of = _index_of(structures)
    names = ("background", *structures)
    wanted = label_indices(truth, index_of, pair.reference, empty_labels=True)
    if not wanted.any():
        there = [number for number in np.unique(truth).tolist() if number != 0]
        raise UserError(
            f"{pair.reference}: holds none of the structures that are compared, "
            f"{brief(dict(structures))}, only the numbers {brief(there)}: are these labels of "
            "another kind? --names takes a file that says which numbers mean what"
        )
    labels = label_indices(guess, index_of, pair.predicted, empty_labels=True)
    # sides of one length, but for the rounding of an oblique affine, are equal
    sides = np.linalg.norm(affine[:3, : truth.ndim], axis=0).round(6)
    rows = score_labels(labels, wanted, names, sides.tolist())
    return [{"case": printable(pair.case), **row} for row in rows]


def _index_of(structures: Structures) -> dict[int, int]:
    """Label number -> 1, 2, ... of its structure; UserError if one is the background's, or of two
    structures: one of these would be scored without it.
    """
    index_of: dict[int, int] = {}
    names = list(structures)
    for index, (name, numbers) in enumerate(structures.items(), 1):
        for number in numbers:
            if number == 0:
                raise UserError(
                    f"0 is the number of the background, which is not scored, and {brief(name)} "
                    "has it: leave it out of the names"
                )
            other = index_of.setdefault(number, index)
            if other != index:
                raise UserError(
                    f"the number {number} belongs to {brief(names[other - 1])} and to "
                    f"{brief(name)}: compare structures that overlap one by one"
                )
    return index_of


def _check_grids(
    pair: Pair,
    guess: tuple[tuple[int, ...], np.ndarray],
    truth: tuple[tuple[int, ...], np.ndarray],
) -> None:
    """UserError unless two grids, each a shape and an affine, are one."""
    advice = "compare labels that lie on the reference's grid, as the file that was segmented must"
    if guess[0] != truth[0]:
        raise UserError(
            f"{pair.predicted}: has {_sides(guess[0])} voxels, and the reference {pair.reference} "
            f"has {_sides(truth[0])}: {advice}"
        )
    apart = voxels_apart(truth[1], guess[1], truth[0])
    if apart > ELSEWHERE:
        raise UserError(
            f"{pair.predicted}: lies elsewhere in the world than the reference {pair.reference}, "
            f"their corners are up to {apart:.2g} voxels apart: {advice}"
        )


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


# --- which file belongs to which ------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A predicted and a reference file of labels of one case."""

    case: str
    predicted: Path
    reference: Path


@dataclass(frozen=True)
class Matches:
    """Two folders of labels, matched by names.

    ``unlabelled``: predictions of scans that a list names without labels, so that none are missing.
    """

    pairs: list[Pair]
    without_reference: list[Path]
    without_prediction: list[Path]
    unlabelled: list[Path] = field(default_factory=list)


def match(predicted: str | Path, reference: str | Path) -> Matches:
    """Which files are compared: two files whatever their names; two folders by names; a folder of
    segmentations with a cohort file, or with a data set that ``data check`` reads, by the images
    that both name.

    CASE_labels.nii.gz belongs to CASE.nii.gz, CASE_seg.nii.gz and the like; nnU-Net's _0000 and
    what BIDS says of contrast and derivation count for nothing. UserError if nothing matches, or if
    two files of one folder could be meant.
    """
    predicted, reference = Path(predicted), Path(reference)
    for path in (predicted, reference):
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such file or folder; labels in NIfTI format (.nii or .nii.gz) were "
                "wanted"
            )
    is_list = reference.suffix.lower() in LISTS
    if predicted.is_file() and reference.is_file() and not is_list:
        return Matches([Pair(names_of(predicted)[-1], predicted, reference)], [], [])
    guesses = _label_files(predicted)
    images: set[str] = set()
    try:
        truths, images = _listed(reference)
    except UserError:
        if is_list:
            raise
        truths = {file: names_of(file) for file in _label_files(reference)}
    by_name: dict[str, list[Path]] = {}
    for truth, names in truths.items():
        for name in names:
            by_name.setdefault(name, []).append(truth)

    owner: dict[Path, Path] = {}
    pairs: list[Pair] = []
    alone: list[Path] = []
    unlabelled: list[Path] = []
    for guess in guesses:
        image = _image_of(guess)
        names = [image] if image in images else names_of(guess)
        known = next((name for name in names if name in by_name), None)
        if known is None:
            (unlabelled if image in images else alone).append(guess)
            continue
        found = by_name[known]
        if len(found) > 1:
            raise UserError(
                f"{guess}: {found[0]} and {found[1]} could both be its reference: name the folder "
                "that holds one file of labels for each case, or a cohort.toml that lists them"
            )
        other = owner.setdefault(found[0], guess)
        if other != guess:
            raise UserError(
                f"{found[0]}: {other} and {guess} could both be meant: name the folder that holds "
                "one file of labels for each case"
            )
        pairs.append(Pair(truths[found[0]][0] if images else known, guess, found[0]))
    if not pairs:
        example = next(iter(truths))
        raise UserError(
            f"{predicted}: no name fits one of {reference}: {guesses[0].name} would go with "
            f"{names_of(guesses[0])[-1]}.nii.gz, and there is {example.name}; name the cohort.toml "
            "or the table that lists images with their labels, compare single files, whose names "
            "do not matter, or rename them"
        )
    unpredicted = [truth for truth in truths if truth not in owner]
    return Matches(pairs, alone, unpredicted, unlabelled)


def _listed(reference: Path) -> tuple[dict[Path, list[str]], set[str]]:
    """Of each labelled scan in a list or a data set: its labels, and what they may be matched by,
    the scan's id, its image, and the names of that; and all images, labelled or not. UserError if
    it is none, or has no labels.
    """
    found, images = {}, set()
    for scan in read_folder(reference).files:
        image = str(scan.image.resolve())
        images.add(image)
        if scan.labels is not None:
            names = [scan.id, image, *names_of(scan.image)]
            found[scan.labels] = list(dict.fromkeys(names))
    if not found:
        raise UserError(f"{reference}: no scan in it has labels that could be compared")
    return found, images


def _image_of(labels: Path) -> str | None:
    """The image that was segmented, by the sidecar; None where it does not say."""
    beside = _sidecar(labels)
    content = read_json(beside) if beside.is_file() else None
    image = content.get("image") if isinstance(content, dict) else None
    return str(Path(image).resolve()) if isinstance(image, str) else None


def names_of(path: Path) -> list[str]:
    """The names that a file may be matched by, its own first, that of its case last."""
    name = without_ending(path.name)
    if name.endswith("_warped"):  # of one scan, and lies on another
        return [name]
    names = [name]
    for ending in (LABELS_ENDING, FIRST_CHANNEL):
        names.append(ending.sub("", names[-1]))
    if name.startswith("sub-"):
        names.append(NOT_OF_THE_CASE.sub("", names[-1]))
    return list(dict.fromkeys(name for name in names if name))


def _label_files(path: Path) -> list[Path]:
    """The files of labels in a folder and below it: those whose names say so, where any does;
    ``path`` itself, if it is a file. UserError if there is none.
    """
    files = [path] if path.is_file() else list(scans_below(path, DEPTH))
    if not files:
        raise UserError(f"{path}: there is no file in NIfTI format (.nii or .nii.gz) in it")
    return [file for file in files if is_named_as_labels(file)] or files


def is_named_as_labels(path: Path) -> bool:
    """Does the name of a file say that it holds labels, as CASE_labels.nii.gz does?"""
    return LABELS_ENDING.search(without_ending(path.name)) is not None


def _sidecar(labels: Path) -> Path:
    return labels.with_name(f"{without_ending(labels.name)}.json")
