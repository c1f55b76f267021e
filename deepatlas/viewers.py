"""Viewers: scroll through a scan, or through a registration, in the browser.

A viewer is one widget whose picture is sliced and painted by ``viewers.js``: its volumes travel
once, as bytes, and it needs no answer from Python afterwards, so that it goes on working while a
long cell runs. Its state is in synced traits (``i``, ``j``, ``k``, ``strength``, ``layers``, ...),
which ipywidgets' controls may join by ``jslink``.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anywidget
import matplotlib
import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from IPython.display import HTML
from matplotlib.colors import to_rgb
from torch import Tensor

from . import plots
from .data import Scan
from .warp import Deformation

SCRIPT = Path(__file__).with_name("viewers.js")
PAGE = Path(__file__).with_name("viewers.html")
LAYERS = {"scan": ["labels"], "registration": ["labels", "grid", "arrows", "|u|", "det J", "folds"]}
NOTE = (
    "Warping pulls: the value at voxel x of warped is read at phi(x) = x + u(x) on moving. The grid: on moving, "
    "the lattice of fixed carried along by phi; on warped, the lattice of moving as it was pulled. Arrows on fixed "
    "lead to where a voxel looks. Movement through the plane is not shown; det J and folds are of full strength."
)
WRONG = (
    "Wrong on purpose: on warped, the same u drawn as if it pushed the voxels. The lattice leans against the "
    "picture, since warping pulls: where u points right, the picture moves left."
)


class SliceViewer(anywidget.AnyWidget):
    """The widget, made by ``view_scan`` and ``view_registration``. Assign to any trait below
    ``data`` to steer it.
    """

    _esm = SCRIPT
    meta = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    i = traitlets.Int(0).tag(sync=True)  # the cursor, a voxel
    j = traitlets.Int(0).tag(sync=True)
    k = traitlets.Int(0).tag(sync=True)
    # of a registration
    plane = traitlets.Enum(["axial", "coronal", "sagittal"], "axial").tag(sync=True)
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)  # of LAYERS, those that show
    outline = traitlets.Bool(False).tag(sync=True)  # draw labels by their edges, not filled
    opacity = traitlets.Float(0.45, min=0, max=1).tag(sync=True)  # of filled labels
    # intensities from level - window / 2
    window = traitlets.Float(1.0, min=0.05, max=1).tag(sync=True)
    # to level + window / 2 go from black to white
    level = traitlets.Float(0.5, min=0, max=1).tag(sync=True)
    mode = traitlets.Enum(
        ["side by side", "checkerboard", "flicker", "difference"], "side by side"
    ).tag(sync=True)
    # t: warped(x) = moving(x + t u(x))
    strength = traitlets.Float(1.0, min=0, max=1).tag(sync=True)
    push = traitlets.Bool(False).tag(sync=True)  # draw the misconception

    def as_html(self, path: Path | str) -> Path:
        """Write this viewer, as it stands, to one self-contained file that any browser shows
        without a kernel.
        """
        path = Path(path)
        path.write_text(
            _page({name: getattr(self, name) for name in SliceViewer.class_own_traits(sync=True)}),
            encoding="utf-8",
        )
        return path


def view_scan(
    scan: Scan, structures: Sequence[str] = (), *, display: str = "live"
) -> SliceViewer | HTML:
    """Three linked orthogonal planes of ``scan`` (one in 2D) with its labels, named by
    ``structures``.

    ``display``: "live" is a widget, "html" a self-contained page that needs no kernel, "static" a
    figure. Raises ValueError for an image that is empty or not finite, or labels that
    ``structures`` does not name.
    """
    scan = check(scan, "scan", display, structures)
    volumes = {"image": grey(scan.image[0])}
    if scan.labels is not None:
        volumes["labels"] = scan.labels.to(torch.uint8)
    labelled = "" if scan.labels is None else ", with its labels"
    alt = f"Scan {scan.id}, {' x '.join(map(str, scan.shape))} voxels{labelled}"
    if display == "static":
        return plots.picture(plots.scan_figure(scan, structures), alt)
    return _shown(_state("scan", scan, volumes, structures, alt), display)


def view_registration(
    moving: Scan,
    fixed: Scan,
    phi: Deformation,
    structures: Sequence[str] = (),
    *,
    display: str = "live",
) -> SliceViewer | HTML:
    """``moving``, ``fixed`` and ``moving`` warped by ``phi``, with one linked cursor; labels are
    those of the scans.

    ``phi`` (batch 1, in voxels, on the grid of ``fixed``) may come from a network, from
    ``optimise_pair`` or from a phantom's truth. ``display`` as in ``view_scan``; to show a guess,
    put it into ``dataclasses.replace(scan, labels=...)``. Raises ValueError if grids differ, a
    value is not finite, or ``structures`` does not name a label.
    """
    moving, fixed = (
        check(moving, "moving", display, structures),
        check(fixed, "fixed", display, structures),
    )
    phi = Deformation(phi.displacement.detach().cpu().float())
    if display == "static":
        title = _check_registration(moving, fixed, phi)
        return plots.picture(plots.registration_figure(moving, fixed, phi, structures), title)
    return _shown(registration_state(moving, fixed, phi, structures), display)


def registration_state(
    moving: Scan, fixed: Scan, phi: Deformation, structures: Sequence[str] = ()
) -> dict:
    """The traits of a ``SliceViewer`` of one registration: what ``view_registration`` shows,
    without a widget.
    """
    title = _check_registration(moving, fixed, phi)
    return _state(
        "registration", fixed, _registration_volumes(moving, fixed, phi), structures, title
    )


def _check_registration(moving: Scan, fixed: Scan, phi: Deformation) -> str:
    """A title for the three; ValueError unless they fit together."""
    u = phi.displacement
    if moving.shape != fixed.shape or phi.shape != fixed.shape or len(u) != 1:
        raise ValueError(
            f"moving {moving.shape}, fixed {fixed.shape} and one deformation {tuple(u.shape)} must share "
            "a grid: resample them, and take one pair of the batch"
        )
    if not u.isfinite().all():
        raise ValueError("the deformation holds NaN or infinity: look at the training that made it")
    if min(phi.shape) < 2:
        raise ValueError(
            f"every side must be at least 2 voxels, got {phi.shape}: give a 2D scan as (1, I, J)"
        )
    return f"Registration of {moving.id} to {fixed.id}: moving, fixed and warped scan"


def _registration_volumes(moving: Scan, fixed: Scan, phi: Deformation) -> dict:
    determinant = phi.jacobian_determinant()[0]
    volumes = {
        "moving": grey(moving.image[0]),
        "fixed": grey(fixed.image[0]),
        "warped": grey(phi.warp(moving.image[None])[0, 0]),
        "jacobian": (determinant.clamp(0, 2) * 127.5).round().to(torch.uint8),
        "folds": (determinant <= 0).byte(),
        "u": sixty_fourths(_at_its_own_resolution(phi.displacement)[0]),
    }
    if moving.labels is not None:
        labels = moving.labels.to(torch.uint8)
        volumes |= {
            "moving_labels": labels,
            "warped_labels": phi.warp_labels(labels[None].int())[0].to(torch.uint8),
        }
    if fixed.labels is not None:
        volumes["fixed_labels"] = fixed.labels.to(torch.uint8)
    return volumes


def _at_its_own_resolution(u: Tensor) -> Tensor:
    """u at half the resolution if it was interpolated from there, as a network's is, else u itself.

    Doubling by linear interpolation puts node m at x = 2m + 1/2, between which u is straight: so
    the node is 3/2 u(2m+1) - 1/2 u(2m+2), and u(2m+1) at the far border, where there is no next
    voxel.
    """
    shape = u.shape[2:]
    if any(n % 2 for n in shape):
        return u
    coarse = u
    for axis in range(2, u.ndim):
        odd, even = (
            coarse.index_select(axis, torch.arange(start, coarse.shape[axis], 2))
            for start in (1, 0)
        )
        n = odd.shape[axis]
        coarse = 1.5 * odd - 0.5 * torch.cat(
            [even.narrow(axis, 1, n - 1), odd.narrow(axis, n - 1, 1)], axis
        )
    again = F.interpolate(coarse, size=shape, mode="bilinear" if len(shape) == 2 else "trilinear")
    return coarse if (again - u).abs().max() < 1 / 128 else u


# --- what travels ---------------------------------------------------------------------------------


def check(scan: Scan, role: str, display: str, structures: Sequence[str] = ()) -> Scan:
    """``scan`` on the CPU; ValueError, one sentence, unless it can be shown as ``display`` says.

    ``structures``, where given, must name every label.
    """
    if display not in ("live", "html", "static"):
        raise ValueError(f"display must be 'live', 'html' or 'static', got {display!r}")
    if scan.image.numel() == 0:
        raise ValueError(f"{role} {scan.id}: the image is empty, {tuple(scan.image.shape)}")
    if not scan.image.isfinite().all():
        raise ValueError(
            f"{role} {scan.id}: the image holds NaN or infinity: rescale its intensities to [0, 1]"
        )
    if scan.labels is not None:
        least, most = int(scan.labels.min()), int(scan.labels.max())
        names = min(len(structures) or 256, 256)  # a label travels as a byte
        if least < 0 or most >= names:
            raise ValueError(
                f"scan {scan.id}: labels from {least} to {most}, but there are names for {names}: pass "
                "structures=cohort.structures, at most 256"
            )
    return replace(
        scan,
        image=scan.image.detach().cpu().float(),
        labels=None if scan.labels is None else scan.labels.cpu(),
    )


def grey(image: Tensor) -> Tensor:
    """Intensities in [0, 1] as bytes: 255 steps, to the nearest."""
    return (image.cpu().clamp(0, 1) * 255).round().to(torch.uint8)


def sixty_fourths(u: Tensor) -> Tensor:
    """Displacements in voxels as 16-bit integers, in 1/64 voxel: up to 512 voxels."""
    return (u.detach().cpu().float() * 64).round().clamp(-32768, 32767).to(torch.int16)


def _state(
    kind: str, scan: Scan, volumes: dict[str, Tensor], structures: Sequence[str], title: str
) -> dict:
    """The traits of a viewer of ``volumes`` on the grid of ``scan``."""
    shape = (*scan.shape, *[1] * (3 - len(scan.shape)))
    meta, data = pack(volumes)
    most = max((int(v.max()) for name, v in volumes.items() if name.endswith("labels")), default=0)
    names = list(structures) or ["background", *(f"structure {n}" for n in range(1, most + 1))]
    meta |= {
        "kind": kind,
        "title": title,
        "shape": shape,
        "spacing": float(scan.affine[:3, 0].norm()),
        "affine": scan.affine.tolist(),
        "letters": [_ends(code) for code in nib.aff2axcodes(scan.affine.numpy())],
        "structures": names,
        "colours": colours(len(names)),
        "note": NOTE if kind == "registration" else "",
        "wrong": WRONG,
        "layers": [layer for layer in LAYERS[kind] if layer != "labels" or most],
    }
    if "u" in volumes:
        longest = volumes["u"].float().square().sum(0).sqrt().max()
        meta |= {"u_scale": shape[0] // volumes["u"].shape[1], "u_max": max(64, int(longest))}
    middle = {axis: n // 2 for axis, n in zip("ijk", shape, strict=True)}
    layers = ["grid"] if kind == "registration" else meta["layers"]
    return {"meta": meta, "data": data, "layers": layers, **middle}


def _shown(state: dict, display: str) -> SliceViewer | HTML:
    """A widget, or a page in a frame; only "live" makes a widget, since one would be saved with the
    notebook.
    """
    if display == "live":
        return SliceViewer(**state)
    title, content = html.escape(state["meta"]["title"]), html.escape(_page(state))
    return HTML(
        f'<div><iframe title="{title}" loading="lazy" srcdoc="{content}" '
        'style="width:100%;height:600px;border:0"></iframe></div>'
    )


def colours(count: int) -> list[list[int]]:
    """The colour of each of ``count`` structures, background (black) included, as bytes."""
    return [
        [0, 0, 0],
        *([round(255 * c) for c in to_rgb(colour)] for colour in plots.colours(count - 1)),
    ]


def _ends(code: str) -> tuple[str, str]:
    """The letters at the low and the high end of an axis that leads towards ``code``."""
    return {
        "R": ("L", "R"),
        "L": ("R", "L"),
        "A": ("P", "A"),
        "P": ("A", "P"),
        "S": ("I", "S"),
        "I": ("S", "I"),
    }[code]


TABLES = {"grey": "gray", "sequential": "viridis", "diverging": "RdBu_r"}  # matplotlib's names


def pack(volumes: dict[str, Tensor], tables: dict[str, str] = TABLES) -> tuple[dict, bytes]:
    """All volumes and tables of colours in one block of bytes, and where each begins."""
    arrays, parts, offset = {}, [], 0
    palettes = {
        f"table_{name}": np.round(255 * matplotlib.colormaps[key](np.arange(256))[:, :3]).astype(
            np.uint8
        )
        for name, key in tables.items()
    }
    for name, values in ({key: value.numpy() for key, value in volumes.items()} | palettes).items():
        arrays[name] = {"type": str(values.dtype), "offset": offset, "shape": list(values.shape)}
        if (values.ndim == 2 and name not in palettes) or (name == "u" and values.ndim == 3):
            arrays[name]["shape"].append(1)  # a 2D scan is the plane k = 0
        parts.append(np.ascontiguousarray(values).tobytes())
        offset += len(parts[-1])
    return {"arrays": arrays}, b"".join(parts)


# --- a page without a kernel ----------------------------------------------------------------------


def _page(state: dict) -> str:
    """A viewer as one HTML document: the same JavaScript, a stand-in for the model, the volumes
    gzipped inside.
    """
    whole = {
        name: trait.default_value for name, trait in SliceViewer.class_own_traits(sync=True).items()
    } | state
    data = base64.b64encode(gzip.compress(whole.pop("data"), 9, mtime=0)).decode()
    script = SCRIPT.read_text(encoding="utf-8").replace("export default", "const viewer =")
    parts = {
        "TITLE": html.escape(state["meta"]["title"]),
        "STATE": json.dumps(whole).replace("<", "\\u003c"),
        "DATA": data,
        "SCRIPT": script,
    }
    return re.sub(r"%([A-Z]+)%", lambda found: parts[found[1]], PAGE.read_text(encoding="utf-8"))
