"""A trained model: its networks, and all that it takes to use them on a new file.

It comes from a run folder, from one file that ``export`` wrote for a colleague, or from the weights
that come with the kit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from ..checkpoints import load_tensors, write_text
from ..data import Scan
from ..datasets.entries import Entry, in_ranges, manifest
from ..datasets.grid import check_sides
from ..datasets.preparation import Preparation
from ..errors import UserError, brief, printable, shortened
from ..evaluation.cohorts import per_structure, per_subject
from ..experiments import REFERENCE, load_networks
from ..models import keep, load_kept
from ..records import in_a_line, own_file, recorded_experiment
from ..regimes import JOINT, NETWORK_OF, TITLES
from ..reporting import load_record, load_scores
from .formats import check_free

LABEL_DTYPES = tuple(f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64))


@dataclass(frozen=True, eq=False)
class Model:
    """Trained networks, and how a file is prepared for them; made by ``load``."""

    name: str  # of the run and the regime, or of the file
    nets: Mapping[str, nn.Module] = field(repr=False)  # {"seg": F_S, "reg": F_R}, or one of them
    experiment: Mapping[str, Any] = field(repr=False)  # the parameters of their training
    structures: tuple[str, ...]  # structures[0] is the background
    # of each structure but the background, in files
    label_numbers: tuple[tuple[int, ...], ...] = field(repr=False)
    label_dtype: str  # of the files of labels, as "uint8"
    # from a scan on its own grid to the networks' grid
    preparation: Preparation = field(repr=False)
    aligned: bool  # were the training scans aligned to a reference?
    channel: int | None = None  # which image is taken of files that hold several
    licence: str = ""  # of the training scans
    credit: str = ""
    card: str = field(default="", repr=False)  # what a user should know, in Markdown
    mixed_precision: bool = False  # run the networks in bfloat16?

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis of the networks' grid."""
        return tuple(self.preparation.wanted[0])

    @property
    def dims(self) -> int:
        """2 for slices, 3 for volumes."""
        return len(self.shape)

    @property
    def numbers(self) -> dict[str, tuple[int, ...]]:
        """The label numbers of each structure but the background; the first is what is written."""
        return dict(zip(self.structures[1:], self.label_numbers, strict=True))

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        (net, *_) = self.nets.values()
        return next(net.parameters()).device

    def to(self, device: torch.device | str, *, mixed_precision: bool | None = None) -> Model:
        """The same model on ``device``; with ``mixed_precision`` its networks run in bfloat16,
        which halves their memory and, where ``machine.bfloat16_pays``, their time.

        Without it they answer as when the run was scored.
        """
        mixed = self.mixed_precision if mixed_precision is None else mixed_precision
        nets = {name: net.to(device) for name, net in self.nets.items()}
        return replace(self, nets=nets, mixed_precision=mixed)

    def network(self, name: str) -> nn.Module:
        """The network "seg" or "reg"; UserError if the model has no such."""
        if name not in self.nets:
            task = {network: task for task, network in NETWORK_OF.items()}[name]
            raise UserError(
                f"{self.name}: has no network for {task}: load another regime of its run, one that "
                f"trained it, as {JOINT!r} does"
            )
        return self.nets[name]

    def prepare(self, scan: Scan) -> Scan:
        """``scan``, as read from a file, on the networks' grid, as the training scans were put
        there; UserError if it has other dimensions, or cannot be aligned as they were.
        """
        found = len(scan.shape)
        if found != self.dims:
            path = scan.id if scan.source is None else scan.source.path
            wanted = {2: "slices, of two axes or one voxel thick", 3: "volumes"}[self.dims]
            raise UserError(
                f"{path}: a {found}D image, {' x '.join(map(str, scan.shape))} voxels, and "
                f"{self.name} was trained on {wanted}: "
                f"take a model that was trained with dims={found}"
            )
        self._check_reference(scan)
        return self.preparation.prepare(scan)

    def _check_reference(self, scan: Scan) -> None:
        """UserError unless ``scan`` can be aligned as the training scans were, if they were."""
        if not self.aligned:
            return
        reference = self.preparation.reference
        if reference is None:
            raise UserError(
                f"{self.name}: its training scans were aligned to one of them, which this file "
                "does not hold, as the licence of the data may not allow it: where it does, export "
                "the run again with the reference (with_reference=True, --with-reference)"
            )
        if reference.ndim - 1 != len(scan.shape):
            raise UserError(
                f"{self.name}: was trained on the middle planes of volumes that were aligned as "
                "wholes, as no slice can be: train on slices, or on volumes with dims=3"
            )


# --- loading --------------------------------------------------------------------------------------


def load(path: str | Path, regime: str | None = None) -> Model:
    """The model in a run folder (of ``regime``, by default joint training), in a file that
    ``export`` wrote, or of the kit's weights of that name; on the CPU.

    FileNotFoundError if there is nothing, UserError if the run is not finished, or run or file are
    damaged or of another version of the kit.
    """
    if Path(path).is_dir():
        folder = Path(path)
        record = load_record(folder)
        return _of_run(record, _described(record, folder), folder, regime or JOINT)
    if regime is not None:
        raise UserError(
            f"{path}: a file holds the networks of one regime: leave regime={regime!r} out, or "
            "name a run folder"
        )
    nets, kept = load_kept(path)
    name = kept.get("name", str(path))
    described = kept.get("preparation")
    if described is None:
        described = _of_phantoms(kept, path)
    content = kept | {"name": name, "preparation": described}
    return _model(nets, content, Path(path), "export the run again with this version of the kit")


def _of_run(record: Mapping, described: Mapping, folder: Path, regime: str) -> Model:
    """The model that ``regime`` left in the run ``folder``, of which its record says so much."""
    nets = load_networks(folder, regime)
    content = {
        "name": f"{folder.resolve().name}/{regime}",
        "experiment": record["experiment"],
        "structures": record["structures"],
        "preparation": described,
    }
    return _model(nets, content, folder / "run.json", "start the run again in another folder")


def _described(record: Mapping, folder: Path) -> dict:
    """What the record of a run says of its scans, and the image that they were aligned to."""
    described = record.get("preparation")
    if not isinstance(described, Mapping):
        raise UserError(
            f"{folder / 'run.json'}: the run of an earlier version of the kit, which did not note "
            "how its scans were prepared: run it again with the same parameters and this version, "
            "in a folder of its own"
        )
    reference = None
    if described.get("aligned"):
        path = own_file(record, folder, REFERENCE)
        kept = load_tensors(path)
        reference = kept.get("image") if isinstance(kept, Mapping) else None
        if reference is None:
            raise UserError(f"{path}: holds no image that scans could be aligned to")
    grid = {"shape": record["shape"], "spacing_mm": record["spacing_mm"]}
    return {**described, **grid, "reference": reference}


def _of_phantoms(kept: Mapping, path: str | Path) -> dict:
    """What weights from before models were exported do not say, where the kit can know it: of
    phantoms, which are made on the grid of the networks.
    """
    values = kept["experiment"]
    entry = manifest().get(str(values.get("dataset")))
    if not isinstance(entry, Entry) or entry.anatomy is None:
        raise UserError(
            f"{path}: holds networks alone, and not how the scans were prepared that they were "
            "trained on: export their run instead, with `deepatlas export RUN -o FILE`"
        )
    profile = values["profile"]
    shape, spacing = entry.grid(profile, values["dims"])
    volume_shape, volume_spacing = entry.grid(profile, 3)
    return {
        "label_numbers": [[index] for index in range(1, len(kept["structures"]))],
        "label_dtype": "uint8",
        "volume_shape": list(volume_shape),
        "volume_spacing_mm": volume_spacing,
        "shape": list(shape),
        "spacing_mm": spacing,
        "aligned": False,
        "reference": None,
        "licence": entry.licence,
        "credit": entry.credit,
    }


class _Described(BaseModel):
    """How scans were prepared, and which numbers their labels have: strictly checked."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    label_numbers: list[list[int]]
    label_dtype: str
    volume_shape: list[int]
    volume_spacing_mm: float
    shape: list[int]
    spacing_mm: float
    aligned: bool
    channel: int | None = Field(None, ge=0)
    licence: str
    credit: str


class _Content(BaseModel):
    """What a file of a model holds beside its networks, which ``models`` looks at."""

    model_config = ConfigDict(strict=True)

    name: str
    card: str = ""
    preparation: _Described


def _model(nets: Mapping[str, nn.Module], content: Mapping, path: Path, what_to_do: str) -> Model:
    """The model of ``nets``; UserError if the ``content`` of its file or record is not whole."""
    structures = tuple(content["structures"])
    try:
        checked = _Content.model_validate(content)
        reference = content["preparation"].get("reference")
        _check(checked.preparation, reference, structures, content["experiment"]["dims"])
    except ValidationError as error:
        raise UserError(f"{path}: damaged ({shortened(in_a_line(error))}): {what_to_do}") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): {what_to_do}") from error
    of = checked.preparation
    return Model(
        checked.name,
        nets,
        dict(content["experiment"]),
        structures,
        tuple(tuple(numbers) for numbers in of.label_numbers),
        of.label_dtype,
        Preparation(
            (tuple(of.volume_shape), of.volume_spacing_mm),
            (tuple(of.shape), of.spacing_mm),
            reference,
        ),
        of.aligned,
        of.channel,
        of.licence,
        of.credit,
        checked.card,
    )


def _check(of: _Described, reference: object, structures: tuple[str, ...], dims: int) -> None:
    """ValueError where what is said of scans and labels does not fit together."""
    if not all(name.isprintable() for name in structures):
        raise ValueError(f"names of structures with control characters: {brief(structures)}")
    check_sides(of.shape)
    if len(of.shape) != dims:
        raise ValueError(f"networks of {dims} dimensions, and the grid {of.shape}")
    if not of.spacing_mm > 0 or not of.volume_spacing_mm > 0:
        raise ValueError(f"voxels of {of.spacing_mm} and {of.volume_spacing_mm} mm")
    if len(of.label_numbers) != len(structures) - 1:
        raise ValueError(
            f"label numbers for {len(of.label_numbers)} structures, and the names of "
            f"{len(structures) - 1}"
        )
    if of.label_dtype not in LABEL_DTYPES:
        raise ValueError(f"labels of type {brief(of.label_dtype)}")
    numbers = [number for some in of.label_numbers for number in some]
    if not all(of.label_numbers) or len({0, *numbers}) <= len(numbers):
        raise ValueError("a structure without a number, or two with the same")
    limits = np.iinfo(of.label_dtype)
    if min(numbers) < limits.min or max(numbers) > limits.max:
        raise ValueError(f"label numbers that {of.label_dtype} cannot hold")
    if reference is None:
        return
    # of slices that are files of their own, the reference is on their own grid
    wanted = ((1, *of.volume_shape), (1, *of.shape))
    fits = (
        isinstance(reference, Tensor)
        and tuple(reference.shape) in wanted
        and reference.is_floating_point()
        and reference.isfinite().all()
    )
    if not fits:
        raise ValueError(f"the reference is no image of {wanted[0][1:]} voxels")


# --- exporting ------------------------------------------------------------------------------------


def export(
    run: str | Path,
    path: str | Path,
    regime: str = JOINT,
    *,
    with_reference: bool = False,
    force: bool = False,
) -> Path:
    """Write the networks that ``regime`` trained in a finished ``run`` to one file, with all it
    takes to use them, and its model card beside it (``.md``); returns ``path``.

    The scan that the training scans were aligned to is an image of a person: it goes along if the
    licence of the data lets anybody pass on what is made of them, or ``with_reference``. UserError
    if a file is there already, unless ``force``.
    """
    run, path = Path(run), Path(path)
    card_path = path.with_suffix(".md")
    if path == card_path:
        raise UserError(f"{path}: is the name of the model card: let the file end in .pt")
    for target in (path, card_path):
        check_free(target, force)
    record = load_record(run)
    described = _described(record, run)
    model = _of_run(record, described, run, regime)  # says what is wrong before anything is written
    left_out = model.aligned and not with_reference and not may_be_passed_on(model.licence)
    if left_out:
        described["reference"] = None
        print(
            f"{path}: without the scan that the training scans were aligned to, since the licence "
            f"{printable(brief(model.licence))} is not known to allow it: nobody can align a new "
            "scan to it; where you may pass it on, export with with_reference=True "
            "(--with-reference)"
        )
    card = _card(record, run, regime, model, left_out)
    beside = {"name": model.name, "card": card, "preparation": described}
    keep(model.nets, _without_places(record), path, beside)
    write_text(card, card_path)
    return path


OPEN = re.compile(r"\b(CC0|CC[- ]BY|public domain|PDDL|ODC)\b", re.IGNORECASE)
NO_DERIVATIVES = re.compile(r"\bND\b|no[- ]?deriv", re.IGNORECASE)


def may_be_passed_on(licence: str) -> bool:
    """Does the ``licence`` of data let anybody pass on what is made of them? Not if it forbids
    derivatives, or is none of those known here.
    """
    return bool(OPEN.search(licence)) and not NO_DERIVATIVES.search(licence)


def _without_places(record: Mapping) -> dict:
    """The record, in which a data set that is a file has its name in the place of its path."""
    entry = record.get("entry") or {}
    experiment = dict(record["experiment"])
    experiment["dataset"] = entry.get("name", experiment["dataset"])
    return {**record, "experiment": experiment}


# --- the model card -------------------------------------------------------------------------------


USE = (
    "    deepatlas segment IMAGE.nii.gz --model THIS_FILE -o FOLDER",
    "    deepatlas register MOVING.nii.gz FIXED.nii.gz --model THIS_FILE -o FOLDER",
    "",
    "or in Python: `from deepatlas import apply`, `apply.segment(image, THIS_FILE)`.",
)
MEANT_FOR = (
    "Meant for research on scans like those that it was trained on: the same body part, contrast "
    "and kind of people. On others it answers, too, and nothing says that it is wrong: look at "
    "every result. It is no medical device, and nothing that a diagnosis may rest on."
)
NOT_USABLE = (
    "As it is, it takes no new scan: these must be aligned to one of the training scans, which was "
    "left out, since the licence is not known to allow it. Whoever may pass that scan on exports "
    "the run again with `--with-reference`.",
)


def _card(record: Mapping, run: Path, regime: str, model: Model, left_out: bool) -> str:
    """What a user should know of the model, in Markdown."""
    of_scans = "slices" if model.dims == 2 else "volumes"
    networks = " and ".join(task for task, network in NETWORK_OF.items() if network in model.nets)
    scores = _dice(run, regime)
    lines = [
        f"# {_literal(model.name)}",
        "",
        f"Trained networks for {networks} of {of_scans}, made with deepatlas.",
    ]
    sections = {
        "Use": (*(NOT_USABLE if left_out else USE), "", MEANT_FOR),
        "What it segments": _table(model, scores.get("segmentation")),
        "How it was trained": _training(record, regime, model, left_out),
        "What it reached": _reached(scores, record),
    }
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section]
    return "\n".join([*lines, ""])


def _literal(text: str) -> str:
    """``text`` as Markdown shows it letter by letter, on one line: no tag, no link, no code."""
    return re.sub(r"([\\<\[`])", r"\\\1", " ".join(printable(text).split()))


def _training(record: Mapping, regime: str, model: Model, left_out: bool) -> list[str]:
    """The scans, the regime, the grid and the versions behind a model."""
    experiment = recorded_experiment(record)
    sides = " x ".join(map(str, model.shape))
    alignment = "not aligned to each other"
    if model.aligned:
        alignment = "aligned to one of them by an affine map of the images"
        alignment += ", which this file does not hold" if left_out else ", which this file holds"
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return [
        f"- Scans: {_literal(_title(record))}. Licence: {_literal(model.licence)}. "
        f"{_literal(model.credit)}".rstrip(),
        f"- {record['labelled_training_scans']} of {record['training_scans']} training scans "
        "were seen with their labels.",
        f"- Regime: {TITLES.get(regime, regime)} (`{regime}`), profile {experiment.profile}, "
        f"{_steps(record, regime)}, seed {experiment.seed}, "
        f"draw of the labelled scans {experiment.label_seed}, recipe {experiment.recipe}.",
        f"- Grid: {sides} voxels of {model.preparation.wanted[1]:g} mm, centred on each scan; "
        f"the scans were {alignment}. What of a file lies outside is called background.",
        f"- Versions: deepatlas {version('deepatlas')} (export), Python {record['python']}, "
        f"{versions}.",
    ]


def _title(record: Mapping) -> str:
    entry = record.get("entry") or {}
    return entry.get("title") or entry.get("name") or str(record["experiment"]["dataset"])


def _dice(run: Path, regime: str) -> dict:
    """The scores of the run's own test scans, by task; none where it had no labels to score."""
    scores = load_scores(run)
    of_regime = scores[scores["regime"] == regime]
    return {task: rows for task, rows in of_regime.groupby("task") if rows["dice"].notna().any()}


def _table(model: Model, scores: object) -> list[str]:
    """One row for each structure: numbers, name, and Dice on the test scans."""
    dice = {} if scores is None else per_structure(scores)["mean"].to_dict()
    lines = ["| written as | label numbers of the training scans | structure | Dice % |"]
    lines.append("|---|---|---|---|")
    for name, numbers in zip(model.structures[1:], model.label_numbers, strict=True):
        known = name in dice and np.isfinite(dice[name])
        value = f"{100 * dice[name]:.1f}" if known else "not measured"
        merged = ", ".join(in_ranges(numbers))
        lines.append(f"| {numbers[0]} | {merged} | {_literal(name).replace('|', '/')} | {value} |")
    return lines


def _steps(record: Mapping, regime: str) -> str:
    """As in "300 steps of seg and 400 steps of reg", by this regime alone."""
    counted = [f"{count} steps of {network}" for network, count in record["steps"][regime].items()]
    return " and ".join(counted)


def _reached(scores: Mapping, record: Mapping) -> list[str]:
    """Mean Dice and its SD over the people of the test scans, of each task."""
    if not scores:
        return ["Not measured: the run had no labelled test scans."]
    lines = []
    for task, rows in scores.items():
        dice = 100 * per_subject(rows)
        spread = f", SD {dice.std():.1f}" if len(dice) > 1 else ""
        lines.append(
            f"- {task}: Dice {dice.mean():.1f} %{spread}, over {len(dice)} people in the run's "
            f"{record['test_scans']} test scans, on the networks' grid."
        )
    lines.append("- One run, one split: expect less on scans of another scanner.")
    return lines
