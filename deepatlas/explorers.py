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
import torch
import traitlets
from IPython.display import HTML
from IPython.display import display as show
from torch import Tensor

from . import evaluation, plots
from .data import Scan
from .terms import SIMILARITIES
from .viewers import (
    SCRIPT,
    SliceViewer,
    check,
    colours,
    grey,
    pack,
    registration_state,
    sixty_fourths,
)
from .warp import Deformation


class TrainingViewer(anywidget.AnyWidget):
    """The widget of ``view_training``: curves and one pair; it never needs an answer from the
    kernel.
    """

    _esm = SCRIPT
    meta = traitlets.Dict().tag(sync=True)
    curves = traitlets.Dict().tag(sync=True)  # {name: {"x": steps, "y": values}}
    frame = traitlets.Bytes().tag(sync=True)  # middle slices: fixed, warped, labels, u


class TrainingWatch:
    """What ``training.Settings(watch=...)`` calls with each row of the history; display it before
    training starts.

    Shows a picture after each validation, and else at most one in ``PAUSE`` seconds, fewer if
    making one takes long: watching costs about 2 % of the time.
    """

    PAUSE, SHARE = 3.0, 0.02

    def __init__(self, look: Callable[[], dict[str, Tensor]], meta: dict, live: bool) -> None:
        self.history: list[dict] = []
        self.look, self.meta = look, meta
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
        packed, frame = pack(self.look(), tables={})
        with self.widget.hold_sync():
            self.widget.meta, self.widget.curves = self.meta | packed, curves(self.history)
            self.widget.frame = frame

    def _ipython_display_(self) -> None:
        if self.widget is not None:
            show(self.widget)
        elif self.history:
            plots.show(
                plots.training_figure(curves(self.history), self.look(), len(self.meta["colours"])),
                alt="Loss terms and validation Dice against the step, and one pair as the networks see it now.",
            )
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
    pair: ``terms.registrar(reg_net)`` and ``terms.segmenter(seg_net)`` are such functions. Without
    "live", the figure is drawn when the returned object is shown after the training. Pass it on as
    ``training.Settings(watch=...)``.
    """
    check(moving, "moving", display)
    check(fixed, "fixed", display)

    def look() -> dict[str, Tensor]:
        slices = {"fixed": grey(plots.middle_plane(fixed.image[0]))}
        if segment is not None:
            slices["labels"] = plots.middle_plane(segment(fixed)).cpu().to(torch.uint8)
        if register is not None:
            phi = register(moving, fixed)
            slices["warped"] = grey(plots.middle_plane(phi.warp(moving.image[None])[0, 0]))
            u = sixty_fourths(phi.displacement[0])
            slices |= {f"u{axis}": plots.middle_plane(u[axis]) for axis in (0, 1)}
        return slices

    meta = {
        "kind": "training",
        "title": "the training so far",
        "colours": colours(len(structures) or 256),
    }
    return TrainingWatch(look, meta, display == "live")


def curves(history: Sequence[dict], points: int = 200) -> dict[str, dict[str, list]]:
    """Each loss term, averaged over at most ``points`` spans of steps, and validation Dice as it
    was measured.
    """
    found = {}
    for turn, name in (
        ("reg", "similarity"),
        ("reg", "regularity"),
        ("reg", "anatomy"),
        ("seg", "anatomy"),
        ("seg", "supervised"),
    ):
        # 0: no such term
        rows = [
            (row["step"], row[name]) for row in history if row["turn"] == turn and row.get(name)
        ]
        if rows:
            spans = np.array_split(np.array(rows, float), min(points, len(rows)))
            found[f"{name} ({turn})"] = {
                "x": [int(s[-1, 0]) for s in spans],
                "y": [float(s[:, 1].mean()) for s in spans],
            }
    for name in ("seg", "reg"):
        rows = [
            (row["step"], row[f"validation_{name}"])
            for row in history
            if np.isfinite(row.get(f"validation_{name}", np.nan))
        ]
        if rows:
            found[f"validation Dice ({name})"] = {
                "x": [x for x, _ in rows],
                "y": [float(y) for _, y in rows],
            }
    return found


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
    moving, fixed = (
        check(moving, "moving", display, structures),
        check(fixed, "fixed", display, structures),
    )
    register = _on_cpu(register)
    if display == "live":
        return _LossExplorer(moving, fixed, register, structures)
    found = [
        (r, a, register(moving, fixed, lambda_r=r, lambda_a=a, similarity="lncc"))
        for a in (0.0, 3.0)
        for r in (0.01, 0.1, 1.0, 10.0)
    ]
    panels = [
        (f"lambda_r {r:g}, lambda_a {a:g}\n{_judge(moving, fixed, phi, structures)}", phi)
        for r, a, phi in found
    ]
    return plots.picture(
        plots.deformations_figure(moving, panels, columns=4),
        "Warped scans and grids: " + "; ".join(title.replace("\n", ": ") for title, _ in panels),
    )


def _on_cpu(register: Callable[..., Deformation]) -> Callable[..., Deformation]:
    return lambda *pair, **wish: Deformation(
        register(*pair, **wish).displacement.detach().cpu().float()
    )


def _judge(moving: Scan, fixed: Scan, phi: Deformation, structures: Sequence[str]) -> str:
    """Dice (if both scans are labelled) and folds of a registration, in words."""
    text = f"folds {evaluation.folding(phi)['folds_percent']:.2f} %"
    if moving.labels is None or fixed.labels is None:
        return text
    names = structures or [
        str(n) for n in range(int(max(moving.labels.max(), fixed.labels.max())) + 1)
    ]
    rows = evaluation.score_labels(phi.warp_labels(moving.labels[None])[0], fixed.labels, names)
    return f"Dice {100 * np.nanmean([row['dice'] for row in rows]):.1f} %, {text}"


class _LossExplorer(ipywidgets.VBox):
    """Sliders above a viewer. While one registration is computed, only the latest wish is
    remembered.
    """

    def __init__(
        self, moving: Scan, fixed: Scan, register: Callable, structures: Sequence[str]
    ) -> None:
        self.pair, self.register, self.structures = (moving, fixed), register, structures
        wide = {"continuous_update": False, "style": {"description_width": "80px"}}
        self.lambda_r = ipywidgets.FloatLogSlider(
            0.2, min=-3, max=2, step=0.1, description="lambda_r", **wide
        )
        self.lambda_a = ipywidgets.FloatSlider(
            0, min=0, max=10, step=0.5, description="lambda_a", **wide
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
            self.viewer.meta, self.viewer.data = state["meta"], state["data"]


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
        raise ValueError(
            f"the table wants the columns {axes} and a row for each run, got {len(table)} rows of "
            f"{list(table)}"
        )
    table = table.dropna(subset=axes)
    if display != "live":
        names = "; ".join(
            f"{name} {row[axes[1]]:.1f} at {row[axes[0]]:.2f}" for name, row in table.iterrows()
        )
        return plots.picture(plots.sweep_figure(table), f"Dice % against folds %: {names}")
    points = [
        [float(row[axes[0]]), float(row[axes[1]]), str(name)] for name, row in table.iterrows()
    ]
    scatter = _Sweep(
        meta={"kind": "sweep", "title": "Dice against folds", "axes": axes, "points": points}
    )
    load = functools.cache(load)  # going back to a run shows the widget it had
    shown = ipywidgets.VBox([load(points[0][2])])

    def choose(change: dict) -> None:
        shown.children = [load(points[change["new"]][2])]

    scatter.observe(choose, "chosen")
    return ipywidgets.VBox([scatter, shown])
