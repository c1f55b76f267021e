"""Figures: pure functions of data that return a matplotlib figure; ``show`` displays one with its alternative text."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from .warp import Deformation

# Up to 8 structures: Okabe and Ito's colours, told apart by colour-blind readers; beyond, neighbours differ.
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")


def colours(structures: int) -> list:
    """One colour for each structure but the background; the same structure has the same colour in every figure."""
    if structures <= len(OKABE_ITO):
        return list(OKABE_ITO[:structures])
    hues = (np.arange(structures) * 0.618034) % 1  # golden-ratio steps: neighbours far apart
    return [plt.get_cmap("hsv")(hue) for hue in hues]


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` as a PNG whose alternative text is ``alt``, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    display(HTML(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" style="max-width:100%">'))


def middle_slice(volume: Tensor) -> np.ndarray:
    """The middle plane k of (I, J, K), or (I, J) itself, with i to the right and j up."""
    plane = volume if volume.ndim == 2 else volume[:, :, volume.shape[2] // 2]
    return plane.detach().cpu().numpy().T


def draw_image(axes: Axes, image: Tensor, title: str = "") -> None:
    """The middle slice of an image (1, I, J, K) in grey."""
    axes.imshow(middle_slice(image[0]), cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_labels(axes: Axes, labels: Tensor, structures: int) -> None:
    """The middle slice of labels (I, J, K) as a translucent overlay; ``structures`` counts the background."""
    plane = middle_slice(labels)
    axes.imshow(np.ma.masked_equal(plane, 0), cmap=ListedColormap(colours(structures - 1)), vmin=1, alpha=0.55,
                vmax=max(structures - 1, 2), origin="lower", interpolation="nearest")


def draw_grid(axes: Axes, phi: Deformation, step: int = 4) -> None:
    """The lines phi_i(x) = multiples of ``step`` on the fixed grid: what warping makes of a lattice drawn on *moving*.

    In 3D the middle axial plane; motion through the plane is not shown.
    """
    points = phi.points[0, :2].detach().cpu()
    for channel, n in zip(points, phi.shape, strict=False):
        axes.contour(middle_slice(channel), levels=np.arange(0, n, step), colors="#D55E00", linewidths=0.7)


def example_figure(example: Mapping, structures: Sequence[str]) -> Figure:
    """One test pair: the true and guessed labels above, moving, fixed, warped and the deformation grid below."""
    count = len(structures)
    arms = {"reg_baseline": "baseline", "deepatlas": "DeepAtlas"}
    figure, axes = plt.subplots(2, 5, figsize=(12.5, 5.6), layout="constrained")
    for cell, (labels, title) in zip(axes[0], [(None, "fixed"), (example["fixed_labels"], "expert's labels"),
                                               (example["labels_seg_baseline"], "segmentation: baseline"),
                                               (example["labels_deepatlas"], "segmentation: DeepAtlas")], strict=False):
        draw_image(cell, example["fixed"], title)
        if labels is not None:
            draw_labels(cell, labels, count)
    axes[0, 4].set_axis_off()
    shown = dict(zip(structures[1:], colours(count - 1), strict=True))
    handles = [plt.Line2D([], [], marker="s", linestyle="", color=colour) for colour in shown.values()]
    if count <= 14:
        axes[0, 4].legend(handles, shown, fontsize=8, loc="center", frameon=False)
    draw_image(axes[1, 0], example["moving"], "moving")
    for cells, (key, title) in zip((axes[1, 1:3], axes[1, 3:5]), arms.items(), strict=True):
        phi = Deformation(example[f"u_{key}"])
        draw_image(cells[0], phi.warp(example["moving"][None])[0], f"warped: {title}")
        draw_image(cells[1], example["fixed"], f"its grid on fixed: {title}")
        draw_grid(cells[1], phi)
    figure.suptitle(example["name"], fontsize=10)
    return figure


def dice_boxes(scores: pd.DataFrame, task: str, titles: Mapping[str, str]) -> Figure:
    """Dice of each test case (mean over its structures), a box for each regime of one ``task``; a dot is a case."""
    rows = scores[scores["task"] == task].groupby(["regime", "case"], sort=False)["dice"].mean()
    regimes = list(dict.fromkeys(rows.index.get_level_values("regime")))
    values = [100 * rows[regime].dropna().to_numpy() for regime in regimes]
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(regimes) + 1.2), layout="constrained")
    axes.boxplot(values, orientation="horizontal", widths=0.6, showfliers=False, medianprops={"color": "#D55E00"})
    jitter = np.random.default_rng(0)
    for row, points in enumerate(values, 1):
        axes.plot(points, row + jitter.uniform(-0.15, 0.15, len(points)), ".", color="#0072B2", markersize=4, alpha=0.6)
    axes.set_yticks(range(1, len(regimes) + 1), [titles[regime] for regime in regimes])
    axes.invert_yaxis()
    axes.set_xlabel("Dice, % (mean over structures)")
    axes.set_title(task.capitalize())
    axes.grid(axis="x", alpha=0.3)
    return figure


def loss_curves(history: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Every named loss term of every regime against its step, smoothed over a twentieth of the steps."""
    regimes = list(dict.fromkeys(history["regime"]))
    columns = 3
    figure, grid = plt.subplots(-(-len(regimes) // columns), columns, figsize=(12, 2.4 * -(-len(regimes) // columns)),
                                layout="constrained", squeeze=False)
    terms = [("similarity", "#0072B2"), ("regularity", "#009E73"), ("anatomy", "#D55E00"), ("supervised", "#CC79A7")]
    for axes, regime in zip(grid.flat, regimes, strict=False):
        rows = history[history["regime"] == regime]
        for (turn, turn_rows), style in zip(rows.groupby("turn"), ("-", "--"), strict=False):
            for name, colour in terms:
                if name in turn_rows and turn_rows[name].notna().any():
                    smooth = turn_rows[name].rolling(max(1, len(turn_rows) // 20), min_periods=1).mean()
                    axes.plot(turn_rows["step"], smooth, style, color=colour, label=f"{name} ({turn})", linewidth=1.2)
        axes.set_title(f"{titles[regime]} ({', '.join(sorted(rows['turn'].unique()))})", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.legend(fontsize=7, frameon=False)
    for axes in grid.flat[len(regimes):]:
        axes.set_axis_off()
    return figure
