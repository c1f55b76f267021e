"""What a network means: its output as a deformation or as labels; pairs of networks by name; and
trained networks in one small file.

To add a pair of networks, add a row to ``NETWORKS``: the parameter ``networks`` of an experiment
takes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from . import networks
from .checkpoints import load_tensors, load_weights, write_tensors
from .data import Scan
from .errors import UserError
from .places import WEIGHTS
from .warp import Deformation

# --- networks by name -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Networks:
    """A pair of networks, and how the output of the second is read.

    Unless a row says otherwise, the registration network looks once, at the pair as it is, and
    answers with a displacement.
    """

    seg: Callable[[int, int], nn.Module]  # (dims, structures) -> F_S
    reg: Callable[[int], nn.Module]  # (dims) -> F_R
    dims: tuple[int, ...] = (2, 3)
    multiple: int = 8  # every side of a grid must be divisible by it
    velocity: bool | None = False  # is the output a velocity? None: as the experiment says
    passes: int | None = 1  # looks at a pair; None: as the experiment says
    coarse_passes: int | None = 0  # looks at half the resolution, before; None: likewise


NETWORKS = {
    "kit": Networks(
        networks.SegmentationNet,
        networks.RegistrationNet,
        velocity=None,
        passes=None,
        coarse_passes=None,
    ),
    "paper": Networks(
        lambda dims, structures: networks.PaperSegmentationNet(structures),
        lambda dims: networks.PaperRegistrationNet(),
        dims=(3,),
        multiple=16,
    ),
}


def build(
    name: str, dims: int, structures: int, *, velocity: bool, passes: int, coarse_passes: int = 0
) -> dict[str, nn.Module]:
    """Untrained networks {"seg": ..., "reg": ...} of the row ``name``, for so many structures."""
    row = NETWORKS[name]
    seg_net = row.seg(dims, structures)
    reg_net = Registration(
        row.reg(dims),
        velocity=velocity,
        passes=passes,
        coarse_passes=coarse_passes,
        multiple=row.multiple,
    )
    return {"seg": seg_net, "reg": reg_net}


class Registration(nn.Module):
    """F_R as the deformation that it means: (moving, fixed), each (B, 1, I, J, K) -> Deformation.

    The output of ``net`` is the displacement u, or with ``velocity`` the stationary velocity v of
    exp(v), invertible by construction. A network may offer ``on_own_grid(moving, fixed)``, what it
    predicts before it interpolates that to the images' grid: exp is then taken of that, and the
    displacement is interpolated.

    It looks at the pair ``coarse_passes`` times at half the resolution, where a look costs a
    quarter (in 3D an eighth) and sees twice as far, then ``passes`` times as it is, with the same
    weights; each time as warped so far, and phi = phi_1 @ phi_2 @ ... is composed. ``multiple``:
    what the sides of an image must be divisible by.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        velocity: bool,
        passes: int,
        coarse_passes: int = 0,
        multiple: int = 8,
    ) -> None:
        super().__init__()
        self.net = net
        self.velocity = velocity
        self.factors = (2,) * coarse_passes + (1,) * passes  # of each look, in order
        self.multiple = multiple

    def forward(self, moving: Tensor, fixed: Tensor) -> Deformation:
        first, *later = self.factors
        phi = self._deformation(self._look(moving, fixed, first), fixed)
        for factor in later:
            look = self._deformation(self._look(phi.warp(moving), fixed, factor), fixed)
            phi = phi @ look
        return phi

    def both_ways(self, moving: Tensor, fixed: Tensor) -> tuple[Deformation, Deformation]:
        """(phi, its inverse), where ``net`` predicts a velocity: the inverse of exp(v) is exp(-v).

        Of several looks phi = phi_1 @ phi_2 the inverse is phi_2^-1 @ phi_1^-1.
        """
        if not self.velocity:
            raise ValueError("without a velocity there is no exp(-v): use Deformation.inverse")
        first, *later = self.factors
        velocity = self._look(moving, fixed, first)
        phi = self._deformation(velocity, fixed)
        inverse = self._deformation(-velocity, fixed)
        for factor in later:
            velocity = self._look(phi.warp(moving), fixed, factor)
            phi = phi @ self._deformation(velocity, fixed)
            inverse = self._deformation(-velocity, fixed) @ inverse
        return phi, inverse

    def _deformation(self, predicted: Tensor, fixed: Tensor) -> Deformation:
        """What ``_look`` has predicted, read as a velocity or as a displacement."""
        shape = fixed.shape[2:]
        if self.velocity:
            return Deformation.exp(predicted, shape=shape)
        if predicted.shape[2:] != shape:
            mode = "bilinear" if fixed.ndim == 4 else "trilinear"
            predicted = F.interpolate(predicted, size=shape, mode=mode)
        return Deformation(predicted)

    def _look(self, moving: Tensor, fixed: Tensor, factor: int) -> Tensor:
        """v or u in voxels of the images, on the grid where ``net`` predicts it, if it says so, as
        exp costs an eighth there, a quarter in 2D; of the images made smaller by ``factor``.
        """
        predict = self.net
        if self.velocity:
            predict = getattr(self.net, "on_own_grid", self.net)
        if factor == 1:
            return predict(moving, fixed).float()
        small = [_smaller(image, factor, self.multiple) for image in (moving, fixed)]
        predicted = predict(*small).float() * factor
        for axis, side in enumerate(fixed.shape[2:], 2):
            kept = predicted.shape[axis] * side // (factor * small[1].shape[axis])
            predicted = predicted.narrow(axis, 0, kept)
        return predicted


def _smaller(image: Tensor, factor: int, multiple: int) -> Tensor:
    """Means over ``factor`` voxels along each axis, and zeros behind them up to sides divisible by
    ``multiple``, at least twice that: one voxel at the deepest level could not be normalised.
    """
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    small = pool(image, factor)
    missing = [max(-side % multiple, 2 * multiple - side) for side in small.shape[2:]]
    if not any(missing):
        return small
    behind = []
    for n in reversed(missing):
        behind += [0, n]
    return F.pad(small, behind)


# --- what they mean -------------------------------------------------------------------------------


def register(reg_net: nn.Module, moving: Tensor, fixed: Tensor) -> Deformation:
    """The deformation that a registration network means; a tensor is u, in voxels."""
    output = reg_net(moving, fixed)
    return output if isinstance(output, Deformation) else Deformation(output.float())


def probabilities(seg_net: nn.Module, image: Tensor) -> Tensor:
    """F_S(I): (B, 1, I, J, K) -> (B, C, I, J, K), positive, summing to 1 over the structures."""
    return as_probabilities(seg_net(image))


def as_probabilities(scores: Tensor) -> Tensor:
    """The softmax over the structures of a network's scores (B, C, I, J, K), never in half
    precision.
    """
    return scores.softmax(1, dtype=torch.promote_types(scores.dtype, torch.float32))


def segmenter(seg_net: nn.Module) -> Callable[[Scan], Tensor]:
    """A function scan -> labels (I, J, K): the most probable structure of each voxel, where the
    scan is.
    """

    @torch.no_grad()
    def segment(scan: Scan) -> Tensor:
        output = seg_net.eval()(_beside(seg_net, scan))
        return output[0].argmax(0).to(scan.image.device)

    return segment


def registrar(reg_net: nn.Module) -> Callable[[Scan, Scan], Deformation]:
    """A function (moving, fixed) -> Deformation, where the fixed scan is."""

    @torch.no_grad()
    def register_scans(moving: Scan, fixed: Scan) -> Deformation:
        phi = register(reg_net.eval(), _beside(reg_net, moving), _beside(reg_net, fixed))
        return Deformation(phi.displacement.to(fixed.image.device))

    return register_scans


def _beside(net: nn.Module, scan: Scan) -> Tensor:
    """The image (1, 1, I, J, K) where the network is: the scans of a large cohort are not."""
    device = next((parameter.device for parameter in net.parameters()), None)
    return scan.image[None].to(device)


# --- in one file ----------------------------------------------------------------------------------


def keep(
    nets: Mapping[str, nn.Module],
    record: Mapping,
    path: Path,
    beside: Mapping[str, object] | None = None,
) -> None:
    """Write trained ``nets`` to ``path`` in half precision, with what the ``record`` of their run
    says of their parameters and structures. UserError if ``path`` is a folder.

    ``beside``: what they need to be used on files, "name", "card" and "preparation".
    """
    halves = {}
    for name, net in nets.items():
        halves[name] = {key: value.half() for key, value in net.state_dict().items()}
    kept = {
        "experiment": dict(record["experiment"]),
        "structures": list(record["structures"]),
        "networks": halves,
        **(beside or {}),
    }
    write_tensors(kept, path)


def load(path: str | Path) -> tuple[dict[str, nn.Module], dict]:
    """The networks {"seg": ..., "reg": ...}, ready to use on the CPU, and the parameters of the
    experiment that trained them, by name.

    ``path`` is a file, or the name of a cohort whose weights come with the project.
    FileNotFoundError names those there are; UserError if the file is damaged or not of this kit.
    """
    nets, kept = load_kept(path)
    return nets, kept["experiment"]


def load_kept(path: str | Path) -> tuple[dict[str, nn.Module], dict]:
    """As ``load``, with all that stands in the file: "experiment", "structures", and what ``keep``
    was given beside.
    """
    path = Path(path)
    if not path.is_file() and not path.suffix:
        path = WEIGHTS / f"{path}.pt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.pt")))
        raise FileNotFoundError(
            f"{path}: no such file; weights that come with the project: {there or 'none'}"
        )
    kept = load_tensors(path)
    values = _kept_parameters(kept, path)
    with torch.random.fork_rng(devices=[]):  # whoever loads networks keeps his random numbers
        nets = build(
            values["networks"],
            values["dims"],
            len(kept["structures"]),
            velocity=values["velocity"],
            passes=values["passes"],
            coarse_passes=values.get("coarse_passes", 0),
        )
    for name, weights in kept["networks"].items():
        load_weights(nets[name], weights, path)
    ready = {name: nets[name].eval() for name in kept["networks"]}
    return ready, {name: value for name, value in kept.items() if name != "networks"}


class _Parameters(BaseModel):
    """What is asked of the experiment that trained the networks in a file; there is more in it."""

    model_config = ConfigDict(strict=True, extra="allow")

    networks: str
    dims: int
    velocity: bool
    passes: int
    coarse_passes: int = 0  # there was none in files of earlier versions


class _Kept(BaseModel):
    """What ``keep`` always writes."""

    model_config = ConfigDict(strict=True)

    experiment: _Parameters
    structures: list[str]
    networks: dict[Literal["seg", "reg"], object]


def _kept_parameters(kept: Any, path: Path) -> dict:
    """The parameters of the experiment in a file of weights; UserError unless ``keep`` wrote it."""
    try:
        found = _Kept.model_validate(kept).experiment
    except ValidationError:
        found = None
    row = None if found is None else NETWORKS.get(found.networks)
    if found is None or row is None or found.dims not in row.dims:
        raise UserError(
            f"{path}: not written by this version of the kit: make them again with "
            "`deepatlas weights`"
        )
    return kept["experiment"]
