"""Views of what changes: a training as it goes, and what the weights of the loss do.

Built on the viewers; they receive functions (``register``, ``segment``, ``load``) and know nothing
of training.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from IPython.display import HTML
from IPython.display import display as show
from torch import Tensor

from . import evaluation, plots
from .data import Scan
from .errors import UserError
from .terms import SIMILARITIES, TERMS
from .viewers import (
    SCRIPT,
    SliceViewer,
    check,
    grey,
    label_bytes,
    pack,
    registration_state,
    sixty_fourths,
)
from .warp import Deformation

DICE_COLOUR = "#E69F00"  # of validation Dice; loss terms have theirs in TERMS

# --- a training as it goes ------------------------------------------------------------------------


class TrainingViewer(anywidget.AnyWidget):
    """The widget of ``view_training``: curves and one pair; it never needs an answer from the
    kernel.
    """

    _esm = SCRIPT
    meta = traitlets.Dict().tag(sync=True)
    curves = traitlets.Dict().tag(sync=True)  # of ``term_curves``
    frame = traitlets.Bytes().tag(sync=True)  # middle slices: fixed, warped, labels, u


class TrainingWatch:
    """What ``training.Settings(watch=...)`` calls with each row of the history; display it before
    training starts.

    Shows a picture after each validation, and else at most one in ``PAUSE`` seconds, fewer if
    making one takes long: watching costs about 2 % of the time.
    """

    PAUSE = 3.0  # seconds
    SHARE = 0.02  # of the time

    def __init__(self, look: Callable[[], dict[str, Tensor]], meta: dict, live: bool) -> None:
        self.history: list[dict] = []
        self.look = look
        self.meta = meta
        self.widget = TrainingViewer(meta=meta) if live else None
        self.due = 0.0

    def __call__(self, row: dict) -> None:
        self.history.append(row)
        begun = time.monotonic()
        validated = any(name.startswith("validation") for name in row)  # the last step always is
        if self.widget is not None and (begun >= self.due or validated):
            self.update()
            cost = time.monotonic() - begun
            self.due = begun + max(self.PAUSE, cost / self.SHARE)

    def update(self) -> None:
        """Send the curves so far and the pair as it is now."""
        if self.widget is None:  # nobody looks
            return
        packed, frame = pack(self.look(), tables={})
        with self.widget.hold_sync():
            self.widget.meta = self.meta | packed
            self.widget.curves = term_curves(self.history)
            self.widget.frame = frame

    def _ipython_display_(self) -> None:
        if self.widget is not None:
            show(self.widget)
        elif self.history:
            curves = term_curves(self.history)
            count, slices = len(self.meta["colours"]), self.look()
            figure = plots.training_figure(
                curves, slices, count, self.meta["spacing"], self.meta["letters"]
            )
            plots.show(figure, alt=plots.description(figure))
        else:
            print("The figure of this training is drawn when this is shown again after it.")


def view_training(
    moving: Scan,
    fixed: Scan,
    *,
    register: Callable | None = None,
    segment: Callable | None = None,
    structures: Sequence[str] = (),
    display: str = "live",
) -> TrainingWatch:
    """A live view of a training: its loss terms, validation Dice, and the middle slice of one pair.

    ``register(moving, fixed) -> Deformation`` and ``segment(scan) -> labels`` are asked for that
    pair: ``models.registrar(reg_net)`` and ``models.segmenter(seg_net)`` are such functions. Pass
    what is returned on as ``training.Settings(watch=...)``. Without "live", the figure is drawn
    when it is shown after the training.
    """
    check(moving, "moving", display)
    check(fixed, "fixed", display)

    def look() -> dict[str, Tensor]:
        slices = {"fixed": grey(plots.middle_plane(fixed.image[0]))}
        if segment is not None:
            labels = plots.middle_plane(segment(fixed))
            slices["labels"] = label_bytes(labels, "the segmentation")
        if register is not None:
            phi = register(moving, fixed)
            warped = phi.warp(moving.image[None])[0, 0]
            slices["warped"] = grey(plots.middle_plane(warped))
            u = sixty_fourths(phi.displacement[0])
            slices["u0"] = plots.middle_plane(u[0])
            slices["u1"] = plots.middle_plane(u[1])
        return slices

    meta = {
        "kind": "training",
        "title": "the training so far",
        "colours": plots.colour_bytes(len(structures) or 256),
        "spacing": list(plots.spacing_of(fixed)),
        "letters": plots.letters_of(fixed),
    }
    return TrainingWatch(look, meta, display == "live")


def term_curves(history: Sequence[dict], points: int = 200) -> dict[str, dict]:
    """{name: {"x": steps, "y": values, "colour": ...}}: each loss term, averaged over at most
    ``points`` spans of steps, and validation Dice as it was measured.
    """
    found = {}
    for turn in ("reg", "seg"):
        for name, term in TERMS.items():
            if getattr(term, turn) is None:
                continue
            # 0: a term that this step did not have; absent or NaN: one that was not computed
            rows = [row for row in history if row["turn"] == turn and abs(row.get(name, 0)) > 0]
            if rows:
                curve = _averaged([(row["step"], row[name]) for row in rows], points)
                found[f"{name} ({turn})"] = curve | {"colour": term.colour}
    for network in ("seg", "reg"):
        name = f"validation_{network}"
        rows = [row for row in history if np.isfinite(row.get(name, np.nan))]
        if rows:
            found[f"validation Dice ({network})"] = {
                "x": [row["step"] for row in rows],
                "y": [float(row[name]) for row in rows],
                "colour": DICE_COLOUR,
            }
    return found


def _averaged(pairs: Sequence[tuple[int, float]], points: int) -> dict[str, list]:
    """The last step and the mean value of each of at most ``points`` spans of ``pairs``."""
    spans = np.array_split(np.array(pairs, float), min(points, len(pairs)))
    return {
        "x": [int(span[-1, 0]) for span in spans],
        "y": [float(span[:, 1].mean()) for span in spans],
    }


# --- the weights of the loss ----------------------------------------------------------------------


def explore_losses(
    moving: Scan,
    fixed: Scan,
    register: Callable[..., Deformation],
    structures: Sequence[str] = (),
    *,
    display: str = "live",
) -> ipywidgets.VBox | HTML:
    """What lambda_r, lambda_a and the similarity do to one registration, each time anew by the
    caller's function.

    ``register(moving, fixed, lambda_r=..., lambda_a=..., similarity=...) -> Deformation``; about a
    second of work is pleasant. Without "live": a grid of finished registrations, lambda_r across
    and lambda_a down.
    """
    moving = check(moving, "moving", display, structures)
    fixed = check(fixed, "fixed", display, structures)
    register = _on_cpu(register)
    if display == "live":
        return _LossExplorer(moving, fixed, register, structures)
    panels = []
    for lambda_a in (0.0, 3.0):
        for lambda_r in (0.01, 0.1, 1.0, 10.0):
            wish = {"lambda_r": lambda_r, "lambda_a": lambda_a, "similarity": "lncc"}
            phi = register(moving, fixed, **wish)
            verdict = _judge(moving, fixed, phi, structures)
            panels.append((f"lambda_r {lambda_r:g}, lambda_a {lambda_a:g}\n{verdict}", phi))
    figure = plots.deformations_figure(moving, panels, columns=4)
    alt = (
        "Eight registrations: lambda_r grows from left to right, above without the anatomy term, "
        f"below with it. {plots.description(figure)}"
    )
    return plots.picture(figure, alt)


def _on_cpu(register: Callable[..., Deformation]) -> Callable[..., Deformation]:
    """``register`` with deformations that are on the CPU and carry no gradient."""

    def registered(*pair: Scan, **wish: object) -> Deformation:
        phi = register(*pair, **wish)
        return Deformation(phi.displacement.detach().cpu().float())

    return registered


def _judge(moving: Scan, fixed: Scan, phi: Deformation, structures: Sequence[str]) -> str:
    """Dice (if both scans are labelled) and folds of a registration, in words."""
    text = f"folds {evaluation.folding(phi)['folds_percent']:.2f} %"
    if moving.labels is None or fixed.labels is None:
        return text
    most = int(max(moving.labels.max(), fixed.labels.max()))
    names = structures or [str(label) for label in range(most + 1)]
    warped = phi.warp_labels(moving.labels[None])[0]
    rows = evaluation.score_labels(warped, fixed.labels, names)
    dice = np.nanmean([row["dice"] for row in rows])
    return f"Dice {100 * dice:.1f} %, {text}"


class _LossExplorer(ipywidgets.VBox):
    """Sliders above a viewer. While one registration is computed, only the latest wish is
    remembered.
    """

    def __init__(
        self, moving: Scan, fixed: Scan, register: Callable, structures: Sequence[str]
    ) -> None:
        self.pair = (moving, fixed)
        self.register = register
        self.structures = structures
        look = {"continuous_update": False, "style": {"description_width": "80px"}}
        self.lambda_r = ipywidgets.FloatLogSlider(
            0.2, min=-3, max=2, step=0.1, description="lambda_r", **look
        )
        self.lambda_a = ipywidgets.FloatSlider(
            0, min=0, max=10, step=0.5, description="lambda_a", **look
        )
        self.similarity = ipywidgets.Dropdown(
            options=list(SIMILARITIES), value="lncc", description="similarity"
        )
        self.verdict = ipywidgets.Label()
        self.viewer: SliceViewer | None = None
        self.waiting: asyncio.TimerHandle | None = None
        controls = (self.lambda_r, self.lambda_a, self.similarity)
        for control in controls:
            control.observe(self._wish, "value")
        self._compute()
        super().__init__([*controls, self.verdict, self.viewer])

    def _wish(self, _: object) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
        try:
            self.waiting = asyncio.get_running_loop().call_later(0.05, self._compute)
        except RuntimeError:  # no event loop: not in a notebook
            self._compute()

    def _compute(self) -> None:
        wish = {
            "lambda_r": self.lambda_r.value,
            "lambda_a": self.lambda_a.value,
            "similarity": self.similarity.value,
        }
        self.verdict.value = f"failed for {wish}"  # unless it is overwritten below
        phi = self.register(*self.pair, **wish)
        self.verdict.value = _judge(*self.pair, phi, self.structures)
        state = registration_state(*self.pair, phi, self.structures)
        if self.viewer is None:
            self.viewer = SliceViewer(**state)
        with self.viewer.hold_sync():  # the cursor and the layers stay as the reader left them
            self.viewer.meta = state["meta"]
            self.viewer.data = state["data"]


# --- finished runs --------------------------------------------------------------------------------


class _Sweep(anywidget.AnyWidget):
    _esm = SCRIPT
    meta = traitlets.Dict().tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)


def explore_sweep(
    table: pd.DataFrame, load: Callable[[str], ipywidgets.Widget], *, display: str = "live"
) -> ipywidgets.VBox | HTML:
    """Dice against folds of finished runs, a point each; a click on a point shows what
    ``load(name)`` makes of it.

    ``table`` has the columns "folds %" and "Dice %", and the names of the runs as its index;
    ``load`` returns a widget, such as ``view_registration`` of a pair registered by that run.
    Without "live": the scatter plot alone.
    """
    axes = ["folds %", "Dice %"]
    if not set(axes) <= set(table) or table[axes].dropna().empty:
        raise UserError(
            f"the table wants the columns {axes} and a row for each run, got {len(table)} rows of "
            f"{list(table)}"
        )
    table = table.dropna(subset=axes)
    points = []
    for name, folds, dice in table[axes].itertuples():
        points.append([float(folds), float(dice), str(name)])
    if display != "live":
        said = "; ".join(f"{name} {dice:.1f} at {folds:.2f}" for folds, dice, name in points)
        alt = f"A named point for each run, Dice % upwards against folds % to the right: {said}."
        return plots.picture(plots.sweep_figure(table), alt)

    meta = {"kind": "sweep", "title": "Dice against folds", "axes": axes, "points": points}
    scatter = _Sweep(meta=meta)
    load = functools.cache(load)  # going back to a run shows the widget it had
    shown = ipywidgets.VBox([load(points[0][2])])

    def choose(change: dict) -> None:
        name = points[change["new"]][2]
        shown.children = [load(name)]

    scatter.observe(choose, "chosen")
    return ipywidgets.VBox([scatter, shown])
