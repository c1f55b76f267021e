"""What travels to the browser: volumes as bytes, and what is said of them.

The ``*_state`` functions give the traits of a ``SliceViewer``, without making a widget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import plots
from ..data import Scan
from ..errors import UserError, printable
from ..warp import Deformation

LAYERS = {
    "scan": ["labels"],
    "registration": ["labels", "grid", "arrows", "|u|", "det J", "folds"],
}
MOST_BYTES = 2**28  # of volumes: the largest page that Chromium was seen to open was as large
TABLES = {"grey": "gray", "sequential": "viridis", "diverging": "RdBu_r"}  # matplotlib's names
NOTE = (
    "Warping pulls: the value at voxel x of warped is read at phi(x) = x + u(x) on moving. "
    "The grid: on moving, the lattice of fixed carried along by phi; on warped, the lattice of "
    "moving as it was pulled. Arrows on fixed lead to where a voxel looks. Movement through the "
    "plane is not shown; det J and folds are of full strength."
)
WRONG = (
    "Wrong on purpose: on warped, the same u drawn as if it pushed the voxels. The lattice leans "
    "against the picture, since warping pulls: where u points right, the picture moves left."
)


# --- what is refused ------------------------------------------------------------------------------


def check(scan: Scan, role: str, display: str, structures: Sequence[str] = ()) -> Scan:
    """``scan`` on the CPU; UserError, one sentence, unless it can be shown as ``display`` says.

    ``structures``, where given, must name every label.
    """
    if display not in ("live", "html", "static"):
        raise UserError(f"display must be 'live', 'html' or 'static', got {display!r}")
    if scan.image.numel() == 0:
        raise UserError(f"{role} {scan.id}: the image is empty, {tuple(scan.image.shape)}")
    if not scan.image.isfinite().all():
        raise UserError(
            f"{role} {scan.id}: the image holds NaN or infinity: rescale its intensities to [0, 1]"
        )
    image = scan.image.detach().cpu().float()
    if scan.labels is None:
        return replace(scan, image=image)

    least, most = int(scan.labels.min()), int(scan.labels.max())
    names = len(structures) or most + 1
    if least < 0 or most >= names:
        raise UserError(
            f"scan {scan.id}: labels from {least} to {most}, but there are names for {names}: "
            "pass structures=cohort.structures"
        )
    return replace(scan, image=image, labels=label_bytes(scan.labels, f"scan {scan.id}"))


def label_bytes(labels: Tensor, name: str) -> Tensor:
    """Labels as the bytes that travel, on the CPU; UserError, with ``name``, beyond 255."""
    most = int(labels.max())
    if most > 255:
        raise UserError(
            f"{name}: the largest label is {most}, but viewers show at most 256 structures, "
            "background included: give fewer"
        )
    return labels.to("cpu", torch.uint8)


def check_size(shape: Sequence[int], bytes_per_voxel: int) -> None:
    """UserError if more than a browser takes would travel."""
    size = math.prod(shape) * bytes_per_voxel
    if size > MOST_BYTES:
        sides = " x ".join(map(str, shape))
        raise UserError(
            f"{sides} voxels are {size >> 20} MiB for the browser, which takes {MOST_BYTES >> 20}: "
            "crop or resample them, or choose display='static'"
        )


def check_registration(moving: Scan, fixed: Scan, phi: Deformation) -> None:
    """UserError, one sentence, unless the three fit together."""
    u = phi.displacement
    if moving.shape != fixed.shape or phi.shape != fixed.shape or len(u) != 1:
        raise UserError(
            f"moving {moving.shape}, fixed {fixed.shape} and one deformation {tuple(u.shape)} "
            "must share a grid: resample them, and take one pair of the batch"
        )
    dims = len(fixed.shape)
    of_moving = plots.spacing_of(moving)[:dims]
    of_fixed = plots.spacing_of(fixed)[:dims]
    for one, other in zip(of_moving, of_fixed, strict=True):
        # after an affine alignment the sides differ, by as much as heads do
        if max(one, other) > 2 * min(one, other):
            raise UserError(
                f"a voxel of moving is {_sides(of_moving)} mm, one of fixed {_sides(of_fixed)}: "
                "a displacement in voxels has no length then: resample both to one grid"
            )
    if not u.isfinite().all():
        raise UserError("the deformation holds NaN or infinity: look at the training that made it")
    if min(phi.shape) < 2:
        raise UserError(
            f"every side must be at least 2 voxels, got {phi.shape}: give a 2D scan as (1, I, J)"
        )


def _sides(spacing: Sequence[float]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing)


# --- the state of a viewer ------------------------------------------------------------------------


def scan_title(scan: Scan) -> str:
    """What is shown, in words."""
    labelled = "" if scan.labels is None else ", with its labels"
    return f"Scan {printable(scan.id)}, {' x '.join(map(str, scan.shape))} voxels{labelled}"


def registration_title(moving: Scan, fixed: Scan) -> str:
    """What is shown, in words."""
    pair = printable(f"{moving.id} to {fixed.id}")
    return f"Registration of {pair}: moving, fixed and warped scan"


def scan_state(scan: Scan, structures: Sequence[str] = ()) -> dict:
    """What ``view_scan`` shows of a scan that ``check`` let through."""
    check_size(scan.shape, 1 if scan.labels is None else 2)
    volumes = {"image": grey(scan.image[0])}
    if scan.labels is not None:
        volumes["labels"] = scan.labels
    return _state("scan", scan, volumes, structures, scan_title(scan))


def registration_state(
    moving: Scan, fixed: Scan, phi: Deformation, structures: Sequence[str] = ()
) -> dict:
    """What ``view_registration`` shows of two scans that ``check`` let through."""
    check_registration(moving, fixed, phi)
    check_size(fixed.shape, 14)  # eight volumes of bytes, and u, at most, of 3 x 2
    volumes = _registration_volumes(moving, fixed, phi)
    title = registration_title(moving, fixed)
    return _state("registration", fixed, volumes, structures, title)


def _registration_volumes(moving: Scan, fixed: Scan, phi: Deformation) -> dict[str, Tensor]:
    determinant = phi.jacobian_determinant()[0]
    volumes = {
        "moving": grey(moving.image[0]),
        "fixed": grey(fixed.image[0]),
        "warped": grey(phi.warp(moving.image[None])[0, 0]),
        "jacobian": (determinant.clamp(0, 2) * 127.5).round().to(torch.uint8),
        "folds": (determinant <= 0).byte(),
        "u": sixty_fourths(at_its_own_resolution(phi.displacement)[0]),
    }
    if moving.labels is not None:
        volumes["moving_labels"] = moving.labels
        volumes["warped_labels"] = phi.warp_labels(moving.labels[None])[0]
    if fixed.labels is not None:
        volumes["fixed_labels"] = fixed.labels
    return volumes


def _state(
    kind: str, scan: Scan, volumes: dict[str, Tensor], structures: Sequence[str], title: str
) -> dict:
    """The traits of a viewer of ``volumes`` on the grid of ``scan``."""
    shape = (*scan.shape, 1)[:3]  # a 2D scan is the plane k = 0
    spacing = plots.spacing_of(scan)
    labels = [volume for name, volume in volumes.items() if name.endswith("labels")]
    most = max((int(volume.max()) for volume in labels), default=0)
    names = list(structures) or ["background", *(f"structure {n}" for n in range(1, most + 1))]
    layers = [layer for layer in LAYERS[kind] if layer != "labels" or most]
    meta, data = pack(volumes)
    meta |= {
        "kind": kind,
        "title": title,
        "shape": shape,
        "spacing": list(spacing),
        "affine": scan.affine.tolist(),
        "letters": plots.letters_of(scan),
        "structures": [printable(name) for name in names],
        "colours": plots.colour_bytes(len(names)),
        "note": NOTE if kind == "registration" else "",
        "wrong": WRONG,
        "layers": layers,
    }
    if "u" in volumes:
        u = volumes["u"]
        meta["u_scale"] = shape[0] // u.shape[1]
        meta["u_max"] = _longest(u, spacing)
    return {
        "meta": meta,
        "data": data,
        "layers": ["grid"] if kind == "registration" else layers,
        "i": shape[0] // 2,
        "j": shape[1] // 2,
        "k": shape[2] // 2,
    }


def _longest(u: Tensor, spacing: Sequence[float]) -> float:
    """The largest |u| in mm, of ``u`` (D, I, J, K) in 1/64 voxel; at least a side of a voxel."""
    sides = torch.tensor(spacing[: len(u)])
    mm = u.float() / 64 * sides.view(-1, *[1] * (u.ndim - 1))
    return max(float(sides.min()), float(mm.norm(dim=0).max()))


# --- as bytes -------------------------------------------------------------------------------------


def grey(image: Tensor) -> Tensor:
    """Intensities in [0, 1] as bytes: 255 steps, to the nearest."""
    return (image.cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def sixty_fourths(u: Tensor) -> Tensor:
    """Displacements in voxels as 16-bit integers, in 1/64 voxel: up to 512 voxels."""
    steps = (u.detach().cpu().float() * 64).round()
    return steps.clamp(-32768, 32767).to(torch.int16)


def at_its_own_resolution(u: Tensor) -> Tensor:
    """u at half the resolution if it was interpolated from there, as a network's is, else u."""
    shape = u.shape[2:]
    if any(n % 2 for n in shape):
        return u
    coarse = u
    for axis in range(2, u.ndim):
        coarse = _halved(coarse, axis)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    again = F.interpolate(coarse, size=shape, mode=mode)
    return coarse if (again - u).abs().max() < 1 / 128 else u


def _halved(u: Tensor, axis: int) -> Tensor:
    """The nodes between which u, doubled along ``axis`` by linear interpolation, is straight.

    Node m lies at x = 2m + 1/2, so it is 3/2 u(2m+1) - 1/2 u(2m+2), and u(2m+1) at the far border,
    where there is no next voxel.
    """
    nodes = u.shape[axis] // 2
    pairs = u.unflatten(axis, (nodes, 2))
    even, odd = pairs.unbind(axis + 1)
    following = torch.cat([even.narrow(axis, 1, nodes - 1), odd.narrow(axis, nodes - 1, 1)], axis)
    return 1.5 * odd - 0.5 * following


def pack(volumes: dict[str, Tensor], tables: dict[str, str] = TABLES) -> tuple[dict, bytes]:
    """All volumes and tables of colours in one block of bytes, and where each begins."""
    blocks = {}
    for name, volume in volumes.items():
        values = volume.numpy()
        flat = values.ndim == (3 if name == "u" else 2)
        blocks[name] = values[..., None] if flat else values  # a 2D scan is the plane k = 0
    for name, key in tables.items():
        rgb = matplotlib.colormaps[key](np.arange(256))[:, :3]
        blocks[f"table_{name}"] = np.round(255 * rgb).astype(np.uint8)

    arrays, parts, offset = {}, [], 0
    for name, values in blocks.items():
        arrays[name] = {"type": str(values.dtype), "offset": offset, "shape": list(values.shape)}
        parts.append(values.tobytes())
        offset += len(parts[-1])
    return {"arrays": arrays}, b"".join(parts)
