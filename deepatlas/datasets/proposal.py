"""A cohort file for the scans of a folder: proposed, and made to be edited by a person."""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data import Scan, split_by_subject
from ..errors import printable
from .entries import LARGEST_NUMBER, PARTS, PROFILES, Dims, Entry, Grid, expand, manifest
from .grid import centred_affine, positions, resample_labels
from .layouts import File
from .nifti import as_slice, distinct, label_indices, read_labels
from .survey import Looked, Survey, who

UNKNOWN_LICENCE = "unknown: ask whoever gave you the scans"
MARGIN = 0.05  # of the anatomy's length, on either side; two voxels at least
SMALL = {2: 128**2, 3: 64**3}  # voxels: at most so many are no more work than a class has time for
LARGE = 4_000_000  # voxels that fit into the memory of few machines when networks are trained
ALIGNED = 0.9  # overlap of scans that are in one place, as after an affine alignment
MOST_COMPARED = 24  # scans, of which every pair is compared
MOST_TRIED = 100  # scans whose labels are put on the grids; seconds each, if they are large
MANY_STRUCTURES = 40
WIDTH = 96  # characters of a line of comment


@dataclass(frozen=True)
class Structure:
    """A name, the label numbers of the files, and what a person should know of it."""

    name: str
    numbers: tuple[int, ...]
    remark: str = ""


@dataclass(frozen=True)
class Fit:
    """What a grid does to the labels of a folder."""

    outside: dict[str, float]  # share of the labelled voxels that it leaves out, by scan
    tried: int  # scans whose labels were put on the grids
    # (structure, profile) -> the scans that have it, and show none of it on that profile's grid
    vanished: dict[tuple[str, str], list[str]]
    overlap: float | None  # mean Dice of all structures together, over pairs of centred scans


@dataclass(frozen=True)
class Proposal:
    """What is said of a folder's scans in a cohort file."""

    name: str
    title: str
    licence: str
    dims: Dims
    align: bool
    structures: tuple[Structure, ...]
    unseen: tuple[Structure, ...]  # that the folder names, or holds, and that are left out
    empty_labels: bool
    grids: dict[str, Grid]
    parts: dict[str, str]  # of each usable scan that is not left out
    split_remarks: tuple[str, ...]
    fit: Fit

    @property
    def remarks(self) -> list[str]:
        """Sentences: what is lost on the grid, and what the split leaves unscored."""
        return [*_grid_remarks(self), *self.split_remarks]


def propose(survey: Survey, name: str, *, seed: int = 0, quiet: bool = True) -> Proposal:
    """Structures, a grid and a split by person for the usable scans of a folder, whose data set is
    to be called ``name``.

    The labels are read again, one scan at a time: what is lost on the grid is counted.
    """
    scans = survey.usable
    dims = survey.dims
    structures, unseen = _structures(survey)
    grids = _grids(survey)
    fit = _try_grids(scans, structures, _profiles(grids, dims), quiet)
    parts = _parts(scans, seed)
    return Proposal(
        name=_name(name),
        title=_line(survey.listing.title) or _line(name) or "Scans of a folder",
        licence=_line(survey.listing.licence) or UNKNOWN_LICENCE,
        dims=dims,
        align=dims == 3 and (fit.overlap is None or fit.overlap < ALIGNED),
        structures=structures,
        unseen=unseen,
        empty_labels=any(_is_empty(scan, structures) for scan in scans),
        grids=grids,
        parts=parts,
        split_remarks=_split_remarks(scans, parts),
        fit=fit,
    )


def _name(text: str) -> str:
    """``text`` as the name of a data set, and not that of one of the kit's: their rows of results
    would replace each other.
    """
    name = re.sub(r"[^\w.-]+", "_", text).strip("_.-")[:90] or "scans"
    return f"{name}-own" if name in manifest() else name


def as_said(survey: Survey, entry: Entry, *, quiet: bool = True) -> Proposal:
    """What a cohort file says of its scans, looked at in the same way."""
    named = entry.structures or ()
    structures = tuple(Structure(name, tuple(expand(own))) for name, own in named)
    fit = _try_grids(survey.usable, structures, _profiles(entry.grids, entry.dims), quiet)
    parts: dict[str, str] = {scan.id: scan.part for scan in entry.scans or ()}
    return Proposal(
        name=entry.name,
        title=entry.title,
        licence=entry.licence,
        dims=entry.dims,
        align=entry.align,
        structures=structures,
        unseen=(),
        empty_labels=entry.empty_labels,
        grids=dict(entry.grids),
        parts=parts,
        split_remarks=_split_remarks(survey.usable, parts),
        fit=fit,
    )


def _line(text: str) -> str:
    """``text`` on one line, without control characters."""
    return " ".join(printable(text).split())


# --- structures -----------------------------------------------------------------------------------


def _structures(survey: Survey) -> tuple[tuple[Structure, ...], tuple[Structure, ...]]:
    """Those that are proposed, and those that are left out: in no file, or without a name."""
    names = {number: text for number, text in survey.listing.names.items() if number > 0}
    found = [number for number in survey.numbers if 0 < number <= LARGEST_NUMBER]
    unseen = []
    if not names:
        proposed = [Structure(f"label {number}", (number,)) for number in found]
    else:
        proposed = _merged({n: text for n, text in names.items() if n in found or not found})
        if found:
            for structure in _merged({n: text for n, text in names.items() if n not in found}):
                unseen.append(replace(structure, remark="in no file"))
        for number in found:
            if number not in names:
                unseen.append(
                    Structure(f"label {number}", (number,), "in files, and the folder has no name")
                )
    if not proposed:
        example = Structure("structure 1", (1,), "an example: no file is labelled")
        proposed = [example]
    taken = {structure.name.lower() for structure in proposed}
    unseen = [structure for structure in unseen if structure.name.lower() not in taken]
    return tuple(proposed), tuple(unseen)


def _merged(names: Mapping[int, str]) -> list[Structure]:
    """One structure for each name; numbers of one name are merged."""
    numbers: dict[str, list[int]] = {}
    spelled: dict[str, str] = {}
    for number, text in sorted(names.items()):
        name = _line(text)
        if name.lower() in ("", "background"):
            name = f"label {number}"
        spelled.setdefault(name.lower(), name)
        numbers.setdefault(name.lower(), []).append(number)
    return [Structure(spelled[key], tuple(own)) for key, own in numbers.items()]


def _is_empty(scan: Looked, structures: Sequence[Structure]) -> bool:
    """Has a scan labels, and none of the structures?"""
    wanted = {number for structure in structures for number in structure.numbers}
    return scan.file.labels is not None and not wanted & scan.voxels.keys()


# --- grid -----------------------------------------------------------------------------------------


def _grids(survey: Survey) -> dict[str, Grid]:
    """full, of the median voxel, around what is labelled; class too where full is small."""
    scans, dims = survey.usable, survey.dims
    odd = {id for oddity in survey.oddities if oddity.of_size for id in oddity.ids}
    usual = [scan for scan in scans if scan.file.id not in odd] or scans
    per_axis = np.median([scan.spacing for scan in scans], axis=0)
    spacing = float(f"{np.exp(np.log(per_axis).mean()):.2g}")  # the geometric mean
    extent = np.max([scan.extent for scan in usual], axis=0)
    anatomies = [scan.anatomy for scan in usual if scan.anatomy]
    length = extent
    if anatomies:
        anatomy = np.max(anatomies, axis=0)
        margin = np.maximum(2 * spacing, MARGIN * anatomy)
        length = np.minimum(anatomy + 2 * margin, extent)
    shape = tuple(max(16, 8 * math.ceil(round(side / spacing / 8, 3))) for side in length)
    grid = Grid(shape=shape, spacing=spacing)
    grids = {f"full-{dims}d": grid}
    if math.prod(shape) <= SMALL[dims]:
        grids[f"class-{dims}d"] = grid
    return grids


def _profiles(grids: Mapping[str, Grid], dims: Dims) -> dict[str, Grid]:
    """The grids of the profiles class and full, if they differ."""
    entry = Entry(
        name="grids",
        title="grids",
        licence="none",
        dims=dims,
        split={"full": (1, 0, 0)},
        structures=(("any", (1,)),),
        grids=dict(grids),
    )
    found: dict[str, Grid] = {}
    for profile in reversed(PROFILES[1:]):
        shape, spacing = entry.grid(profile, dims)
        grid = Grid(shape=shape, spacing=spacing)
        if grid not in found.values():
            found[profile] = grid
    return found


def _try_grids(
    scans: Sequence[Looked],
    structures: Sequence[Structure],
    grids: Mapping[str, Grid],
    quiet: bool,
) -> Fit:
    """Put the labels of scans on the grids, one scan at a time; of many, of some."""
    index_of: dict[int, int] = {}
    for index, structure in enumerate(structures, start=1):
        index_of |= dict.fromkeys(structure.numbers, index)
    labelled = [scan for scan in scans if scan.voxels]
    smallest = min(grids.values(), key=lambda grid: math.prod(grid.shape))
    every = max(1, math.ceil(len(labelled) / MOST_TRIED))
    compared = max(1, math.ceil(len(labelled) / MOST_COMPARED))
    tried, masks = 0, []
    outside: dict[str, float] = {}
    vanished: dict[tuple[str, str], list[str]] = {}
    bar = tqdm(labelled, desc="trying the grid", unit="scan", disable=True if quiet else None)
    for number, found in enumerate(bar):
        scan, own_labels = _labels_alone(found.file, index_of)
        if not own_labels.any():
            continue
        whole = grids["full"]
        frame = centred_affine(scan, whole.shape, whole.spacing)
        to_grid = torch.linalg.inv(frame) @ scan.affine
        outside[scan.id] = _share_outside(own_labels > 0, to_grid.numpy(), whole.shape)
        if number % every and number % compared:
            continue
        tried += 1
        here = set(distinct(own_labels).tolist())
        for profile, grid in grids.items():
            affine = centred_affine(scan, grid.shape, grid.spacing)
            labels = resample_labels(scan, affine, grid.shape)
            for index in sorted(here - set(distinct(labels.numpy()).tolist())):
                key = (structures[index - 1].name, profile)
                vanished.setdefault(key, []).append(scan.id)
            if grid == smallest and number % compared == 0:
                masks.append(np.packbits(labels.numpy() > 0))
    return Fit(outside, tried, vanished, _mean_overlap(masks))


def _labels_alone(file: File, index_of: Mapping[int, int]) -> tuple[Scan, np.ndarray]:
    """A scan without its image, and its labels: of a file whose labels have been read before."""
    assert file.labels is not None, "voxels of labels were counted"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two places: the survey says it
        numbers, affine = read_labels(file.labels)
    numbers, _, affine = as_slice(numbers, None, affine)
    labels = label_indices(numbers, index_of, file.labels, empty_labels=True)
    image = torch.zeros(1, *labels.shape)
    scan = Scan(file.id, file.subject, image, torch.from_numpy(affine), labels)
    return scan, labels.numpy()


def _share_outside(labelled: np.ndarray, matrix: np.ndarray, shape: Sequence[int]) -> float:
    """Share of the voxels of a mask whose centres are in no voxel of the grid of ``shape``;
    ``matrix`` (4, 4): voxel of the mask -> of the grid.
    """
    inside = labelled.copy()
    for row, side in zip(matrix, shape, strict=False):
        position = positions(row, row[3], labelled.shape)
        inside &= (position >= -0.5) & (position <= side - 0.5)
    return 1 - float(inside.sum() / labelled.sum())


def _mean_overlap(masks: Sequence[np.ndarray]) -> float | None:
    """Mean Dice over pairs of masks, eight voxels a byte; None if there is no pair."""
    sizes = [int(np.bitwise_count(mask).sum()) for mask in masks]
    found = []
    for one, other in combinations(range(len(masks)), 2):
        both = int(np.bitwise_count(masks[one] & masks[other]).sum())
        if sizes[one] + sizes[other]:
            found.append(2 * both / (sizes[one] + sizes[other]))
    return float(np.mean(found)) if found else None


def _grid_remarks(proposal: Proposal) -> list[str]:
    said = []
    lost = {id: share for id, share in proposal.fit.outside.items() if share >= 0.001}
    for id, share in sorted(lost.items(), key=lambda item: -item[1])[:10]:
        said.append(f"scan {id}: {100 * share:.1f} % of its labelled voxels lie outside the grid")
    if len(lost) > 10:
        said.append(f"{len(lost) - 10} more scans have labelled voxels outside the grid")
    for (structure, profile), ids in proposal.fit.vanished.items():
        said.append(
            f"structure {structure}: nothing of it is left on the grid of profile={profile} in "
            f"{who(ids)}"
        )
    if proposal.fit.vanished and proposal.fit.tried < len(proposal.fit.outside):
        said.append(
            f"whether structures are left on the grid was tried on {proposal.fit.tried} of "
            f"{len(proposal.fit.outside)} labelled scans"
        )
    grid = proposal.grids.get(f"full-{proposal.dims}d")
    if grid is not None and math.prod(grid.shape) > LARGE:
        said.append(
            f"the grid full has {math.prod(grid.shape) / 1e6:.1f} million voxels: training on it "
            "wants a large GPU; a larger spacing, or profile=class, wants less"
        )
    if len(proposal.structures) > MANY_STRUCTURES:
        said.append(
            f"there are {len(proposal.structures)} structures, and memory grows with each: merge "
            "or leave out what is not needed"
        )
    return said


# --- split ----------------------------------------------------------------------------------------


def _parts(scans: Sequence[Looked], seed: int) -> dict[str, str]:
    """The part of each scan, whole persons at a time; a scan without labels of a person who is not
    in train has none: in train it would leak, elsewhere there is nothing to score.
    """
    files = [scan.file for scan in scans]
    persons: dict[str, File] = {}  # with labels; one of the scans of each
    group_of: dict[str, str] = {}
    for file in files:
        if file.labels is not None:
            persons.setdefault(file.subject, file)
            if file.group in ("validation", "test") and group_of.get(file.subject) != "test":
                group_of[file.subject] = file.group
    part_of = dict(group_of)
    waiting = [file for subject, file in persons.items() if subject not in group_of]
    sizes = _sizes(len(waiting), published=set(group_of.values()))
    drawn = split_by_subject(waiting, sizes, seed)
    for part, some in zip(PARTS, drawn, strict=True):
        part_of |= dict.fromkeys((file.subject for file in some), part)
    parts: dict[str, str] = {}
    for file in files:
        of_person = part_of.get(file.subject, "train")
        if file.labels is not None or of_person == "train":
            parts[file.id] = of_person
    return parts


def _sizes(persons: int, published: set[str]) -> tuple[int, int, int]:
    """How many labelled persons go to train, validation and test: of those whose part the folder
    does not say.
    """
    validation = test = 0
    if published:
        if "validation" not in published and persons >= 4:
            validation = max(1, round(0.2 * persons))
    elif persons >= 6:
        validation = max(1, round(0.15 * persons))
        test = max(2, round(0.25 * persons))
    elif persons >= 3:
        test = 1 if persons == 3 else 2
    return persons - validation - test, validation, test


def _split_remarks(scans: Sequence[Looked], parts: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences: what cannot be trained or scored by this split."""
    there = [scan.file for scan in scans if scan.file.id in parts]
    labelled: dict[str, list[File]] = {part: [] for part in PARTS}
    for file in there:
        if file.labels is not None:
            labelled[parts[file.id]].append(file)
    said = []
    if not labelled["train"]:
        said.append("no training scan is labelled: a run wants the labels of one at least")
    if sum(parts[file.id] == "train" for file in there) < 2:
        said.append("there is one training scan: registration is trained on pairs of two or more")
    if not labelled["test"]:
        said.append("no test scan is labelled: a run trains, and scores nothing")
    elif len({file.subject for file in labelled["test"]}) < 2:
        said.append("the test scans are of one person: registration, of pairs, is not scored")
    if not labelled["validation"]:
        said.append("no validation scan is labelled: the last weights are kept, not the best ones")
    return tuple(said)


# --- the file -------------------------------------------------------------------------------------


def cohort_text(proposal: Proposal, survey: Survey, home: Path) -> str:
    """The text of a cohort file in the folder ``home``, which ``read_cohort`` reads."""
    lines = [
        *_comment(
            f"Proposed by `deepatlas data check`, which took the layout {survey.listing.layout!r} "
            f"({survey.listing.why}). It is yours to edit: names, structures, grid, and the part "
            "of every scan. Look at check.html first. Then: deepatlas run dataset=<this file>"
        ),
        "",
        f"name = {_quoted(proposal.name)}",
        f"title = {_quoted(proposal.title)}",
        *_comment("What the scans may be used for; trained networks are handed on under it."),
        f"licence = {_quoted(proposal.licence)}",
        *_comment("Whose the scans are, as they want it said."),
        'credit = ""',
        "",
        *_comment("What an experiment takes if it is not told: slices (2) or volumes (3)."),
        f"dims = {proposal.dims}",
        "",
        *_comment(_why_aligned(proposal)),
        f"align = {_boolean(proposal.align)}",
        "",
        *_channel_lines(survey),
        *_comment("true: there are scans whose labels show no structure, as without a lesion."),
        f"empty_labels = {_boolean(proposal.empty_labels)}",
        "",
        *_structure_lines(proposal),
        "",
        *_grid_lines(proposal),
        "",
        *_comment(_how_split(proposal, survey)),
    ]
    for scan in survey.scans:
        lines += ["", *_scan_lines(scan, proposal, home)]
    return "\n".join(lines) + "\n"


def _channel_lines(survey: Survey) -> list[str]:
    """Which image of its files is taken, where they may hold several."""
    channels = {scan.file.channel for scan in survey.scans} - {None}
    if not channels:
        return []
    (channel,) = channels
    about = "Which image of files that hold several, counted from 0."
    return [*_comment(about), f"channel = {channel}", ""]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(_line(text), WIDTH, break_long_words=False)]


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    return json.dumps(printable(text), ensure_ascii=False)


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _why_aligned(proposal: Proposal) -> str:
    overlap = proposal.fit.overlap
    measured = "Nothing is known of how the labelled anatomies of two scans overlap."
    if overlap is not None:
        measured = (
            "Centred on their images, the labelled anatomies of two scans overlap by "
            f"{overlap:.2f} (mean Dice)."
        )
    return (
        "true: every scan is first moved, turned and scaled onto one training scan, by an affine "
        "map of the images, so that the networks learn the differences of shape that are left; "
        "new scans are treated in the same way. false: scans are centred only, as is right where "
        f"they are aligned already, or show different parts of the body. {measured} Proposed is "
        f"true for volumes below {ALIGNED}; try both, and keep what scores higher on validation."
    )


def _structure_lines(proposal: Proposal) -> list[str]:
    lines = _comment(
        "What is learned: a name, and the label numbers of the files that mean it. Numbers in one "
        'list are merged, "49-52" is a range, and what is not listed becomes background.'
    )
    lost: dict[str, list[str]] = {}
    for (name, profile), ids in proposal.fit.vanished.items():
        scans = "1 scan" if len(ids) == 1 else f"{len(ids)} scans"
        text = f"nothing is left on the grid of profile={profile} in {scans}"
        lost.setdefault(name, []).append(text)
    lines.append("structures = [")
    for structure in proposal.structures:
        remarks = [structure.remark] if structure.remark else []
        remarks += lost.get(structure.name, [])
        lines.append(_structure_line(structure, "; ".join(remarks)))
    for structure in proposal.unseen:
        lines.append("  # left out:" + _structure_line(structure, structure.remark))
    lines.append("]")
    return lines


def _structure_line(structure: Structure, remark: str) -> str:
    numbers = ", ".join(map(str, structure.numbers))
    comment = f"  # {remark}" if remark else ""
    return f"    [{_quoted(structure.name)}, [{numbers}]],{comment}"


def _grid_lines(proposal: Proposal) -> list[str]:
    shares = list(proposal.fit.outside.values())
    said = ""
    if shares:
        said = (
            f" Of the labelled voxels {100 * float(np.mean(shares)):.2g} % lie outside (at most "
            f"{100 * max(shares):.2g} % of one scan)."
        )
    lines = _comment(
        "The common grid of profile=full: voxels along right, anterior and superior, and "
        "millimetres from one to the next. Every side must be divisible by 8 (by 16 for "
        "networks=paper), and 16 at least. Proposed are the median voxel and room for what is "
        f"labelled, or else for the images.{said} What is not said follows from full: class at "
        "twice its spacing, smoke with 24 voxels along the longest side."
    )
    for key, grid in proposal.grids.items():
        if key.startswith("class"):
            lines += _comment("The full grid is small: class takes it too, as small things matter.")
        shape = ", ".join(map(str, grid.shape))
        lines.append(f"grids.{key} = {{ shape = [{shape}], spacing = {float(grid.spacing)!r} }}")
    for text in _grid_remarks(proposal):
        lines += _comment(f"Note: {text}.")
    return lines


def _how_split(proposal: Proposal, survey: Survey) -> str:
    count = Counter(proposal.parts.values())
    remarks = "".join(f" Note: {text}." for text in proposal.split_remarks)
    return (
        f"The scans: {count['train']} for train, {count['validation']} for validation, "
        f"{count['test']} for test, drawn by person; all scans of one person must be in one part. "
        "A scan without labels is useful in train. Paths begin in the folder of this file. "
        f"Persons: {survey.persons}.{remarks}"
    )


def _scan_lines(scan: Looked, proposal: Proposal, home: Path) -> list[str]:
    file = scan.file
    lines = ["[[scans]]", f"id = {_quoted(file.id)}", f"subject = {_quoted(file.subject)}"]
    lines.append(f"image = {_quoted(_path(file.image, home))}")
    if file.labels is not None:
        lines.append(f"labels = {_quoted(_path(file.labels, home))}")
    part = proposal.parts.get(file.id)
    if part is not None:
        unlabelled = "  # unlabelled" if file.labels is None else ""
        return [*lines, f'part = "{part}"{unlabelled}']
    why = scan.problem or "it has no labels, and its person is not in train"
    lines.append('part = "train"')
    return [*_comment(f"left out: {why}"), *(f"# {line}" for line in lines)]


def _path(path: Path, home: Path) -> str:
    """A path as a cohort file in ``home`` has it: relative where it is inside."""
    whole = Path(os.path.abspath(path))
    home = Path(os.path.abspath(home))
    return whole.relative_to(home).as_posix() if whole.is_relative_to(home) else str(whole)
