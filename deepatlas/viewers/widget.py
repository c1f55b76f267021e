"""The widget, and the functions that show a scan or a registration with it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets
from IPython.display import HTML

from .. import plots
from ..checkpoints import write_text
from ..data import Scan
from ..warp import Deformation
from .bundle import SCRIPT
from .page import document
from .state import (
    check,
    check_registration,
    registration_state,
    registration_title,
    scan_state,
    scan_title,
)

MODES = ["side by side", "checkerboard", "flicker", "difference"]


class SliceViewer(anywidget.AnyWidget):
    """The widget, made by ``view_scan`` and ``view_registration``. Assign to any trait below
    ``data`` to steer it.
    """

    _esm = SCRIPT
    meta = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    # The cursor, a voxel.
    i = traitlets.Int(0).tag(sync=True)
    j = traitlets.Int(0).tag(sync=True)
    k = traitlets.Int(0).tag(sync=True)
    # Of a registration, which plane is shown.
    plane = traitlets.Enum(["axial", "coronal", "sagittal"], "axial").tag(sync=True)
    # Of ``meta["layers"]``, those that show.
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)
    # Draw labels by their edges, not filled.
    outline = traitlets.Bool(False).tag(sync=True)
    # Of filled labels.
    opacity = traitlets.Float(0.45, min=0, max=1).tag(sync=True)
    # Intensities from level - window / 2 to level + window / 2 go from black to white.
    window = traitlets.Float(1.0, min=0.05, max=1).tag(sync=True)
    level = traitlets.Float(0.5, min=0, max=1).tag(sync=True)
    # How the third picture of a registration shows fixed and warped.
    mode = traitlets.Enum(MODES, MODES[0]).tag(sync=True)
    # t: warped(x) = moving(x + t u(x)).
    strength = traitlets.Float(1.0, min=0, max=1).tag(sync=True)
    # Draw the misconception.
    push = traitlets.Bool(False).tag(sync=True)

    def as_html(self, path: Path | str) -> Path:
        """Write this viewer, as it stands, to one self-contained file that any browser shows
        without a kernel; never half-written.
        """
        path = Path(path)
        traits = SliceViewer.class_own_traits(sync=True)
        state = {name: getattr(self, name) for name in traits}
        write_text(document(state), path)
        return path


def view_scan(
    scan: Scan, structures: Sequence[str] = (), *, display: str = "live"
) -> SliceViewer | HTML:
    """Three linked orthogonal planes of ``scan`` (one in 2D) with its labels, named by
    ``structures``.

    Voxels are drawn with their own sides. ``display``: "live" is a widget, "html" a self-contained
    page that needs no kernel, "static" a figure. Raises UserError for an image that is empty or not
    finite, labels that ``structures`` does not name or of more than 256 structures, or more voxels
    than a browser takes: 2^27 with labels.
    """
    scan = check(scan, "scan", display, structures)
    if display == "static":
        figure = plots.scan_figure(scan, structures)
        return plots.picture(figure, f"{scan_title(scan)}: {plots.description(figure)}")
    return _shown(scan_state(scan, structures), display)


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
    put it into ``dataclasses.replace(scan, labels=...)``. All pictures have the proportions of the
    voxels of ``fixed``, and |u| its millimetres. Raises UserError if grids differ, a value is not
    finite, ``structures`` does not name a label, labels are of more than 256 structures, or for
    more voxels than a browser takes: 14 bytes each, 2^28 in all.
    """
    moving = check(moving, "moving", display, structures)
    fixed = check(fixed, "fixed", display, structures)
    phi = Deformation(phi.displacement.detach().cpu().float())
    if display == "static":
        check_registration(moving, fixed, phi)
        figure = plots.registration_figure(moving, fixed, phi, structures)
        title = registration_title(moving, fixed)
        return plots.picture(figure, f"{title}. {plots.description(figure)}")
    return _shown(registration_state(moving, fixed, phi, structures), display)


def _shown(state: dict, display: str) -> SliceViewer | HTML:
    """A widget, or a page in a frame; only "live" makes a widget, since one would be saved with the
    notebook.
    """
    if display == "live":
        return SliceViewer(**state)
    traits = SliceViewer.class_own_traits(sync=True)
    defaults = {name: trait.default_value for name, trait in traits.items()}
    title = html.escape(state["meta"]["title"])
    content = html.escape(document(defaults | state))
    return HTML(
        f'<div><iframe title="{title}" loading="lazy" srcdoc="{content}" '
        'style="width:100%;height:600px;border:0"></iframe></div>'
    )
