"""One run: the training as it goes, its loss terms, one test pair, the Dice of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import Scan
from ..regimes import BASELINES, JOINT, TITLES
from ..terms import TERMS
from ..warp import Deformation
from .drawing import (
    draw_ends,
    draw_grid,
    draw_image,
    draw_labels,
    key_square,
    letters_of,
    literal,
    plane_of,
)
from .palette import colours

PANELS_ACROSS = 5  # of a training: more in one row are too small to read on a page


def training_figure(
    lines: Mapping[str, Mapping],
    slices: Mapping[str, Tensor],
    count: int,
    spacing: Sequence[float] = (1.0, 1.0),
    letters: Sequence[tuple[str, str]] = (),
) -> Figure:
    """Loss terms and validation Dice against the step, and the middle slice of one pair as the
    networks see it.

    ``lines``: name -> {"x": steps, "y": values}. ``count``: structures, the background included.
    ``spacing``: mm from voxel to voxel along the slices' axes; ``letters``: at their ends, as
    ``letters_of`` has them.
    """
    panels = len(lines) + 2
    columns = min(panels, PANELS_ACROSS)
    rows = -(-panels // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 2.4 * rows), layout="constrained", squeeze=False
    )
    axes, spare = grid.flat[:panels], grid.flat[panels:]
    for cell in spare:
        cell.set_axis_off()
    for cell, (name, points) in zip(axes, lines.items(), strict=False):
        marker = "." if len(points["x"]) < 20 else ""
        cell.plot(points["x"], points["y"], marker=marker, linewidth=1)
        cell.set_title(name, fontsize=9)
        cell.set_xlabel("step", fontsize=8)
    for cell, name in zip(axes[-2:], ("fixed", "warped"), strict=True):
        if name in slices:
            draw_image(cell, slices[name][None].float() / 255, f"{name}, now", spacing)
            if letters:
                draw_ends(cell, letters[:2])
        else:
            cell.set_axis_off()
    if "labels" in slices:
        draw_labels(axes[-2], slices["labels"], count)
    if "u0" in slices:
        u = torch.stack([slices["u0"], slices["u1"]])[None]  # (1, 2, I, J), in 1/64 voxel
        draw_grid(axes[-1], Deformation(u.float() / 64))
    said = []
    for name, points in lines.items():
        values = list(points["y"])
        said.append(f"{name} ends at {values[-1]:.3g}, having begun at {values[0]:.3g}")
    seen = [name for name in ("fixed", "warped") if name in slices]
    figure.set_label(
        "A panel for each loss term and each score, a line against the step: "
        f"{'; '.join(said)}. Last, one pair as the networks see it now: "
        f"{', '.join(seen) or 'not shown'}."
    )
    return figure


def loss_curves(history: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Every named loss term of every regime against its step, smoothed over a twentieth of the
    steps.
    """
    regimes = list(history["regime"].unique())
    columns = 3
    rows = -(-len(regimes) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(12, 2.4 * rows), layout="constrained", squeeze=False
    )
    for axes, regime in zip(grid.flat, regimes, strict=False):
        of_regime = history[history["regime"] == regime]
        for (turn, losses), style in zip(of_regime.groupby("turn"), ("-", "--"), strict=False):
            _draw_terms(axes, losses, turn, style)
        turns = ", ".join(sorted(of_regime["turn"].unique()))
        axes.set_title(f"{titles.get(regime, regime)} ({turns})", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    for axes in grid.flat[len(regimes) :]:
        axes.set_axis_off()
    return figure


def _draw_terms(axes: Axes, losses: pd.DataFrame, turn: str, style: str) -> None:
    """A line for each term that the turns of one network have."""
    window = max(1, len(losses) // 20)
    for name, term in TERMS.items():
        if name in losses and losses[name].notna().any():
            smooth = losses[name].rolling(window, min_periods=1).mean()
            label = f"{name} ({turn})"
            axes.plot(losses["step"], smooth, style, color=term.colour, label=label, linewidth=1.2)


def example_figure(
    example: Mapping, structures: Sequence[str], letters: Sequence[tuple[str, str]] = ()
) -> Figure:
    """One test pair: the true and guessed labels above, moving, fixed, warped and the deformation
    grid below.

    ``letters``: at the ends of the axes, as ``letters_of`` has them. By default what a run makes
    certain: its volumes lie along R, A and S, its 2D phantoms in the plane of their anatomy; other
    slices have none.
    """
    letters = letters or _letters_of_pair(example)
    count = len(structures)
    figure, axes = plt.subplots(2, 5, figsize=(12.5, 5.6), layout="constrained")
    above = [(None, "fixed"), (example["fixed_labels"], "expert's labels")]
    for regime in (BASELINES["seg"], JOINT):
        above.append((example[f"labels_{regime}"], f"segmentation: {TITLES[regime]}"))
    for cell, (labels, title) in zip(axes[0, :4], above, strict=True):
        draw_image(cell, example["fixed"], title)
        if labels is not None:
            draw_labels(cell, labels, count)
    axes[0, 4].set_axis_off()
    if count <= 14:
        names = [literal(name) for name in structures[1:]]
        handles = [key_square(*pair) for pair in zip(colours(count - 1), names, strict=True)]
        axes[0, 4].legend(handles=handles, fontsize=8, loc="center", frameon=False)
    draw_image(axes[1, 0], example["moving"], "moving")
    for regime, (warped, fixed) in ((BASELINES["reg"], axes[1, 1:3]), (JOINT, axes[1, 3:5])):
        phi = Deformation(example[f"u_{regime}"])
        draw_image(warped, phi.warp(example["moving"][None])[0], f"warped: {TITLES[regime]}")
        draw_image(fixed, example["fixed"], f"its grid on fixed: {TITLES[regime]}")
        draw_grid(fixed, phi)
    directions = ""
    if letters:
        for cell in figure.axes:
            if cell.images:
                draw_ends(cell, letters[:2])
        (left, right), (bottom, top) = letters[:2]
        directions = f" From left to right {left} to {right}, from below upwards {bottom} to {top}."
    figure.suptitle(literal(example["name"]), fontsize=10)
    figure.set_label(
        f"Test pair {example['name']}. Above, fixed, the expert's labels on it, and those of two "
        f"segmentations, {TITLES[BASELINES['seg']]} and {TITLES[JOINT]}. Below, moving, and for "
        f"two registrations, {TITLES[BASELINES['reg']]} and {TITLES[JOINT]}, warped and the grid "
        f"on fixed.{directions}"
    )
    return figure


def _letters_of_pair(example: Mapping) -> list[tuple[str, str]]:
    """The letters at the ends of the axes of a kept pair; none where it does not say them."""
    fixed = example["name"].rpartition(" to ")[2]
    affine = torch.eye(4, dtype=torch.float64)
    if example["fixed"].ndim == 3 and plane_of(fixed) is None:
        return []
    return letters_of(Scan(fixed, fixed, example["fixed"], affine))


def dice_boxes(scores: pd.DataFrame, task: str, titles: Mapping[str, str]) -> Figure:
    """Dice of each test case (mean over its structures), a box for each regime of one ``task``; a
    dot is a case.
    """
    of_task = scores[scores["task"] == task]
    dice = 100 * of_task.groupby(["regime", "case"], sort=False)["dice"].mean()
    regimes = list(dict.fromkeys(dice.index.get_level_values("regime")))
    values = [dice[regime].dropna().to_numpy() for regime in regimes]
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(regimes) + 1.2), layout="constrained")
    axes.boxplot(
        values,
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        medianprops={"color": "#D55E00"},
    )
    jitter = np.random.default_rng(0)
    for row, points in enumerate(values, 1):
        heights = row + jitter.uniform(-0.15, 0.15, len(points))
        axes.plot(points, heights, ".", color="#0072B2", markersize=4, alpha=0.6)
    axes.set_yticks(range(1, len(regimes) + 1), [titles.get(regime, regime) for regime in regimes])
    axes.invert_yaxis()
    axes.set_xlabel("Dice, % (mean over structures)")
    axes.set_title(task.capitalize())
    axes.grid(axis="x", alpha=0.3)
    return figure
