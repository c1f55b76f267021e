"""From a file to the networks' grid, through a network, and back onto the file's own grid.

A new scan is prepared by the code that prepared the training scans. What comes back lies where the
file lies, whatever its orientation: probabilities are interpolated, then the largest is taken,
which is closer to the truth than to look up the nearest label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import models
from ..checkpoints import write_json
from ..data import Scan, label_dtype
from ..datasets.grid import volume_sides
from ..datasets.layouts.files import without_ending
from ..datasets.nifti import Volume, load_scan
from ..errors import UserError
from ..registration import pair_loss, refine_pair
from ..terms import SIMILARITIES
from ..warp import TIE, Deformation, look_up, sample
from . import formats, transform
from .model import Model, load

if TYPE_CHECKING:
    from IPython.display import HTML

    from ..viewers import SliceViewer

FORMATS = ("itk", "learn2reg")  # of warps


# --- segmentation ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The labels of one file, on its own grid."""

    # of the file's shape, in the training scans' own label numbers; 0: background
    labels: np.ndarray = field(repr=False)
    outside: float  # share of the file's voxels that lie outside the networks' grid
    # as the network saw it, with the most probable structures there as labels
    scan: Scan = field(repr=False)
    model: Model

    @property
    def source(self) -> Path:
        """The file that was segmented."""
        return Path(self.scan.known_source.path)

    def save(self, folder: str | Path, *, force: bool = False) -> list[Path]:
        """Write the labels with the geometry of the file, a sidecar that names them, and tables of
        colours for ITK-SNAP and Slicer, which all results of one model in a folder share.

        UserError, before anything is written, if a file is there already, unless ``force``.
        """
        folder = Path(folder)
        labels, sidecar = segmentation_files(self.source, folder)
        for path in (labels, sidecar):
            formats.check_free(path, force)
        numbers = self.model.numbers
        about = {**_made_by(self.model), "image": str(self.source), "outside": self.outside}
        colours = formats.write_colours(numbers, folder, force=force)
        formats.write_labels(self.labels, self.source, labels, self.model.label_dtype)
        formats.write_sidecar(numbers, sidecar, about)
        return [labels, sidecar, *colours]

    def view(self, *, display: str = "live") -> SliceViewer | HTML:
        """The scan as the network saw it, with its labels; ``display`` as in
        ``viewers.view_scan``.
        """
        from ..viewers import view_scan

        return view_scan(self.scan, self.model.structures, display=display)


def segment(image: str | Path, model: Model | str | Path) -> Segmentation:
    """The structures that the segmentation network sees in the file ``image``, on its own grid.

    Of merged structures the first of their numbers is written. ``model`` is one that was loaded, or
    what ``load`` takes. UserError for a file that cannot be used, or a model that cannot segment.
    """
    model = _loaded(model)
    seg_net = model.network("seg")
    scan = model.prepare(_read(image, model))
    probabilities = _probabilities(seg_net, scan.image[None], model)[0].cpu()
    indices, outside = onto_file(probabilities, scan)

    first = [numbers[0] for numbers in model.label_numbers]
    written = np.array([0, *first], dtype=model.label_dtype)
    seen = probabilities.argmax(0).to(label_dtype(len(probabilities)))
    return Segmentation(written[indices], outside, replace(scan, labels=seen), model)


@torch.no_grad()
def _probabilities(seg_net: torch.nn.Module, image: Tensor, model: Model) -> Tensor:
    """``models.probabilities`` (1, C, I, J, K), but in place: of many structures on a large grid
    no second copy is made.
    """
    with _precision(model):
        scores = seg_net(image.to(model.device))
    scores = scores.float()
    for planes in scores.split(8, dim=2):
        planes.copy_(planes.softmax(1))
    return scores


def onto_file(probabilities: Tensor, scan: Scan) -> tuple[np.ndarray, float]:
    """The most probable structure of each voxel of the file that ``scan`` was read from, (I, J, K)
    integers in the file's own shape, and the share of them outside the grid of ``scan``, which are
    background.

    ``probabilities`` (C, I, J, K) on the grid of ``scan`` are interpolated linearly. Where all
    voxels around a point agree on the largest one that is the largest of the interpolated, too; so
    only borders of structures are interpolated.
    """
    agreed = _agreed(probabilities.argmax(0))
    dtype = label_dtype(len(probabilities))
    shape = scan.known_source.shape
    found = torch.zeros(volume_sides(shape), dtype=dtype)
    outside = 0
    for planes, points, inside in _slabs(scan):
        cells = points.floor().long()
        labels = look_up(agreed[None, None], cells[None])[0, 0].long()
        undecided = inside & (labels < 0)
        at = points[:, undecided]
        labels[undecided] = sample(probabilities[None], at[None])[0].argmax(0)
        labels[~inside] = 0
        found[planes] = labels.to(dtype)
        outside += int((~inside).sum())
    return found.numpy().reshape(shape), outside / found.numel()


def _agreed(labels: Tensor) -> Tensor:
    """(I - 1, J - 1, K - 1): the label that all voxels at the corners of each cell have, -1 where
    they differ.
    """
    least = most = labels.to(torch.int32)
    for axis in range(labels.ndim):
        n = labels.shape[axis] - 1
        least = torch.minimum(least.narrow(axis, 0, n), least.narrow(axis, 1, n))
        most = torch.maximum(most.narrow(axis, 0, n), most.narrow(axis, 1, n))
    return torch.where(least == most, least, -1)


def _slabs(scan: Scan) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some planes of the scan's file at a time: (which along its first axis; where each of their
    voxels lies on the grid of the scan, (D, n, J, K) float32; which of them lie inside it).
    """
    dims = len(scan.shape)
    to_scan = torch.linalg.inv(scan.to_source)
    last = torch.tensor(scan.shape, dtype=torch.float64).view(-1, 1, 1, 1) - 1
    for planes, voxels in formats.slabs(volume_sides(scan.known_source.shape)):
        points = formats.moved(to_scan, voxels)[:dims]
        # a voxel reaches half a voxel beyond its centre
        inside = ((points >= -0.5 - TIE) & (points <= last + 0.5 + TIE)).all(0)
        yield planes, points.clamp(min=0).minimum(last).float(), inside


# --- registration ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Registration:
    """The deformation of one pair of files, on the networks' grid."""

    phi: Deformation = field(repr=False)  # fixed -> moving, in voxels of that grid
    moving: Scan = field(repr=False)  # both as the network saw them
    fixed: Scan = field(repr=False)
    model: Model
    inverse: Deformation | None = field(default=None, repr=False)  # moving -> fixed
    # how the inverse was made: "exp(-v)", of a network's velocity, or "fixed point"
    inverse_by: str | None = None
    refined: int = 0  # steps of optimisation after the network

    def save(self, folder: str | Path, *, format: str = "itk", force: bool = False) -> list[Path]:
        """Write the warp, the moving image as it is warped, both on the fixed file's grid, and a
        sidecar; and the inverse warp, on the moving file's grid, if there is one.

        ``format``: "itk", a displacement field for ITK, ANTs and Slicer, or "learn2reg". UserError,
        before anything is written, if a file is there already, unless ``force``.
        """
        of_moving, of_fixed = self.moving.known_source, self.fixed.known_source
        inverse = self.inverse is not None
        paths = registration_files(
            of_moving.path, of_fixed.path, folder, inverse=inverse, format=format
        )
        for path in paths:
            formats.check_free(path, force)
        *warps, warped, sidecar = paths
        displacement = formats.lps_displacement(self.phi, self.moving, self.fixed)
        warp = formats.Warp(warps[0], displacement, of_fixed.affine.numpy())
        transform.write_warped(warp, _stored(of_moving.path, self.model), warped)
        _write_warp(displacement, of_fixed.path, of_moving.path, warps[0])
        if self.inverse is not None:
            displacement = formats.lps_displacement(self.inverse, self.fixed, self.moving)
            _write_warp(displacement, of_moving.path, of_fixed.path, warps[1])
        about = {
            **_made_by(self.model),
            "moving": of_moving.path,
            "fixed": of_fixed.path,
            "moving_outside": _outside(self.moving),
            "fixed_outside": _outside(self.fixed),
            "refined_steps": self.refined,
            "inverse_by": self.inverse_by,
            "folds_percent": _folds_percent(self.phi),
        }
        write_json(about, sidecar)
        return paths

    def view(self, *, display: str = "live") -> SliceViewer | HTML:
        """Moving, fixed and warped scan as the network saw them; ``display`` as in
        ``viewers.view_registration``.
        """
        from ..viewers import view_registration

        return view_registration(self.moving, self.fixed, self.phi, display=display)


def register(
    moving: str | Path,
    fixed: str | Path,
    model: Model | str | Path,
    *,
    refine: int = 0,
    inverse: bool = False,
) -> Registration:
    """The deformation that the registration network predicts of the file ``moving`` to ``fixed``.

    ``refine``: steps of optimisation of this one pair that begin there, and minimise the loss that
    the network was trained by: the similarity of the run's own kind + ``lambda_r`` times the
    bending energy, and if the model has a segmentation network ``lambda_a`` times 1 - Dice of its
    guesses of both images. With ``inverse`` also the way back: by exp(-v) where the network
    predicts a velocity and nothing was refined, else by a fixed point. ``model`` is one that was
    loaded, or what ``load`` takes.
    """
    if refine < 0:
        raise UserError(f"refine must be a number of steps, 0 for none, got {refine}")
    model = _loaded(model)
    reg_net = model.network("reg")
    moving_scan = model.prepare(_read(moving, model))
    fixed_scan = model.prepare(_read(fixed, model))
    images = (moving_scan.image[None].to(model.device), fixed_scan.image[None].to(model.device))
    back = None
    inverse_by = "fixed point" if inverse else None
    with torch.no_grad(), _precision(model):
        if inverse and not refine and isinstance(reg_net, models.Registration) and reg_net.velocity:
            phi, back = reg_net.both_ways(*images)
            inverse_by = "exp(-v)"
        else:
            phi = models.register(reg_net, *images)
    if refine:
        guesses = None
        if "seg" in model.nets:
            seg_net = model.nets["seg"]
            of_moving = _probabilities(seg_net, images[0], model)
            guesses = (of_moving, _probabilities(seg_net, images[1], model))
        loss = pair_loss(
            *images,
            similarity=SIMILARITIES[model.experiment["similarity"]],
            regularity=model.experiment["lambda_r"],
            anatomy=model.experiment["lambda_a"],
            probabilities=guesses,
        )
        phi = refine_pair(phi, loss, refine)
    if inverse and back is None:
        back = phi.inverse()
    return Registration(
        _on_cpu(phi),
        moving_scan,
        fixed_scan,
        model,
        None if back is None else _on_cpu(back),
        inverse_by,
        refine,
    )


# --- files ----------------------------------------------------------------------------------------


def segmentation_files(image: str | Path, folder: str | Path) -> list[Path]:
    """The labels and the sidecar that ``Segmentation.save`` writes for the file ``image``."""
    name = f"{without_ending(Path(image).name)}_labels"
    return [Path(folder) / f"{name}.nii.gz", Path(folder) / f"{name}.json"]


def registration_files(
    moving: str | Path,
    fixed: str | Path,
    folder: str | Path,
    *,
    inverse: bool = False,
    format: str = "itk",
) -> list[Path]:
    """What ``Registration.save`` writes for two files: the warp, its inverse if it is wanted, the
    warped moving image and the sidecar. Files of one name, as t1 in a folder for each scan, are
    told apart by their folders. UserError for a ``format`` that is none.
    """
    if format not in FORMATS:
        raise UserError(f"there is no format {format!r} of warps: choose from {', '.join(FORMATS)}")
    names = [without_ending(Path(file).name) for file in (moving, fixed)]
    folders = [Path(file).resolve().parent.name for file in (moving, fixed)]
    if names[0] == names[1] and folders[0] != folders[1]:
        names = [f"{place}_{name}" for place, name in zip(folders, names, strict=True)]
    pair = "_to_".join(names)
    if format == "itk":
        names = [f"{pair}_warp.nii.gz", f"{pair}_inverse_warp.nii.gz"]
    else:
        names = [f"{formats.learn2reg_name(fixed, moving)}.npz"]
        names.append(f"{formats.learn2reg_name(moving, fixed)}.npz")
    if inverse and names[0] == names[1]:
        raise UserError(
            f"{pair}: warp and inverse would have one name in the format {format}, as both images "
            "have: rename one of them"
        )
    if not inverse:
        names.pop()
    return [Path(folder) / name for name in (*names, f"{pair}.nii.gz", f"{pair}.json")]


def _write_warp(displacement: np.ndarray, fixed: str, moving: str, to: Path) -> None:
    """In the format that the name ``to`` says."""
    if to.suffix == ".npz":
        formats.write_learn2reg(displacement, fixed, moving, to)
    else:
        formats.write_itk(displacement, fixed, to)


# --- what both do ---------------------------------------------------------------------------------


def _loaded(model: Model | str | Path) -> Model:
    return model if isinstance(model, Model) else load(model)


def _read(path: str | Path, model: Model) -> Scan:
    """The scan in a file, without labels, on its own grid."""
    name = without_ending(Path(path).name)
    return load_scan(_stored(path, model), None, id=name, subject=name, structures={})


def _stored(path: str | Path, model: Model) -> Path | Volume:
    """What is read of a file: of several images the one that the networks were trained on."""
    return Path(path) if model.channel is None else Volume(Path(path), model.channel)


def _precision(model: Model) -> torch.autocast:
    """The networks in bfloat16 where the model says so; what losses and warps do stays float32."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=model.mixed_precision)


def _on_cpu(phi: Deformation) -> Deformation:
    return Deformation(phi.displacement.cpu())


def _outside(scan: Scan) -> float:
    """The share of the voxels of the scan's file that lie outside the grid of the scan."""
    inside = sum(int(within.sum()) for _, _, within in _slabs(scan))
    return 1 - inside / math.prod(scan.known_source.shape)


def _folds_percent(phi: Deformation) -> float:
    """Voxels whose det J <= 0, as ``evaluation.folding`` counts them: of its other measures of
    folding each takes longer than the network.
    """
    inner = (slice(2, -2),) * len(phi.shape)
    folded = phi.jacobian_determinant()[0][inner] <= 0
    return 100 * folded.float().mean().item()


def _made_by(model: Model) -> dict:
    """For a sidecar: which model, with which precision, by which version of the kit."""
    return {
        "model": model.name,
        "precision": "bfloat16" if model.mixed_precision else "float32",
        "deepatlas": version("deepatlas"),
    }
