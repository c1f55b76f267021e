"""What a network means: its output as a deformation or as labels; pairs of networks by name; and
trained networks in one small file.

To add a pair of networks, add a row to ``NETWORKS``: the parameter ``networks`` of an experiment
takes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
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

    Unless a row says otherwise, the registration network looks once, and answers with a
    displacement.
    """

    seg: Callable[[int, int], nn.Module]  # (dims, structures) -> F_S
    reg: Callable[[int], nn.Module]  # (dims) -> F_R
    dims: tuple[int, ...] = (2, 3)
    multiple: int = 8  # every side of a grid must be divisible by it
    velocity: bool | None = False  # is the output a velocity? None: as the experiment says
    passes: int | None = 1  # looks at a pair; None: as the experiment says


NETWORKS = {
    "kit": Networks(networks.SegmentationNet, networks.RegistrationNet, velocity=None, passes=None),
    "paper": Networks(
        lambda dims, structures: networks.PaperSegmentationNet(structures),
        lambda dims: networks.PaperRegistrationNet(),
        dims=(3,),
        multiple=16,
    ),
}


def build(
    name: str, dims: int, structures: int, *, velocity: bool, passes: int
) -> dict[str, nn.Module]:
    """Untrained networks {"seg": ..., "reg": ...} of the row ``name``, for so many structures."""
    row = NETWORKS[name]
    seg_net = row.seg(dims, structures)
    reg_net = Registration(row.reg(dims), velocity=velocity, passes=passes)
    return {"seg": seg_net, "reg": reg_net}


class Registration(nn.Module):
    """F_R as the deformation that it means: (moving, fixed), each (B, 1, I, J, K) -> Deformation.

    The output of ``net`` is the displacement u, or with ``velocity`` the stationary velocity v of
    exp(v), invertible by construction. A network may offer ``on_own_grid(moving, fixed)``, what it
    predicts before it interpolates that to the images' grid: exp is then taken of that, and the
    displacement is interpolated. With more ``passes`` than one it looks again at the pair as warped
    so far, and its deformations are composed.
    """

    def __init__(self, net: nn.Module, *, velocity: bool, passes: int) -> None:
        super().__init__()
        self.net = net
        self.velocity = velocity
        self.passes = passes

    def forward(self, moving: Tensor, fixed: Tensor) -> Deformation:
        phi = self._look(moving, fixed)
        for _ in range(self.passes - 1):
            phi = phi @ self._look(phi.warp(moving), fixed)
        return phi

    def both_ways(self, moving: Tensor, fixed: Tensor) -> tuple[Deformation, Deformation]:
        """(phi, its inverse), where ``net`` predicts a velocity: the inverse of exp(v) is exp(-v).

        Of several passes phi = phi_1 @ phi_2 the inverse is phi_2^-1 @ phi_1^-1.
        """
        if not self.velocity:
            raise ValueError("without a velocity there is no exp(-v): use Deformation.inverse")
        shape = fixed.shape[2:]
        velocity = self._velocity(moving, fixed)
        phi = Deformation.exp(velocity, shape=shape)
        inverse = Deformation.exp(-velocity, shape=shape)
        for _ in range(self.passes - 1):
            velocity = self._velocity(phi.warp(moving), fixed)
            phi = phi @ Deformation.exp(velocity, shape=shape)
            inverse = Deformation.exp(-velocity, shape=shape) @ inverse
        return phi, inverse

    def _look(self, moving: Tensor, fixed: Tensor) -> Deformation:
        if self.velocity:
            return Deformation.exp(self._velocity(moving, fixed), shape=fixed.shape[2:])
        return Deformation(self.net(moving, fixed).float())

    def _velocity(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """v in voxels of the images, on the grid where ``net`` predicts it, if it says so: exp
        costs an eighth there, a quarter in 2D.
        """
        predict = getattr(self.net, "on_own_grid", self.net)
        return predict(moving, fixed).float()


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


class _Kept(BaseModel):
    """What ``keep`` always writes."""

    model_config = ConfigDict(strict=True)

    experiment: _Parameters
    structures: list[str]
    networks: dict[Literal["seg", "reg"], object]


def _kept_parameters(kept: object, path: Path) -> dict:
    """The parameters of the experiment in a file of weights; UserError unless ``keep`` wrote it."""
    try:
        found = _Kept.model_validate(kept).experiment
    except ValidationError:
        found = None
    row = NETWORKS.get(found.networks) if found else None
    if row is None or found.dims not in row.dims:
        raise UserError(
            f"{path}: not written by this version of the kit: make them again with "
            "`deepatlas weights`"
        )
    return kept["experiment"]
