"""Figures: pure functions of data that return a matplotlib figure; ``show`` displays one with its
alternative text.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from .data import Scan
from .warp import Deformation

# Up to 8 structures: Okabe and Ito's colours, told apart by colour-blind readers; beyond,
# neighbours differ.
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")


def colours(structures: int) -> list:
    """One colour for each structure but the background; the same structure has the same colour in
    every figure.
    """
    if structures <= len(OKABE_ITO):
        return list(OKABE_ITO[:structures])
    hues = (np.arange(structures) * 0.618034) % 1  # golden-ratio steps: neighbours far apart
    return [plt.get_cmap("hsv")(hue) for hue in hues]


def picture(figure: Figure, alt: str) -> HTML:
    """``figure`` as a PNG whose alternative text is ``alt``; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return HTML(
        f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" style="max-width:100%">'
    )


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` with its alternative text, and close it."""
    display(picture(figure, alt))


def middle_plane(volume: Tensor) -> Tensor:
    """The middle plane k of (I, J, K), or (I, J) itself."""
    return volume if volume.ndim == 2 else volume[:, :, volume.shape[2] // 2]


def middle_slice(volume: Tensor) -> np.ndarray:
    """The middle plane with i to the right and j up, as matplotlib wants it."""
    return middle_plane(volume).detach().cpu().numpy().T


def draw_image(axes: Axes, image: Tensor, title: str = "") -> None:
    """The middle slice of an image (1, I, J, K) in grey."""
    axes.imshow(
        middle_slice(image[0]), cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="nearest"
    )
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_labels(axes: Axes, labels: Tensor, structures: int) -> None:
    """The middle slice of labels (I, J, K) as a translucent overlay; ``structures`` counts the
    background.
    """
    plane = middle_slice(labels)
    axes.imshow(
        np.ma.masked_equal(plane, 0),
        cmap=ListedColormap(colours(structures - 1)),
        vmin=1,
        alpha=0.55,
        vmax=max(structures - 1, 2),
        origin="lower",
        interpolation="nearest",
    )


def draw_grid(axes: Axes, phi: Deformation, step: int = 4) -> None:
    """The lines phi_i(x) = multiples of ``step`` on the fixed grid: what warping makes of a lattice
    drawn on *moving*.

    In 3D the middle axial plane; motion through the plane is not shown.
    """
    points = phi.points[0, :2].detach().cpu()
    for channel, n in zip(points, phi.shape, strict=False):
        axes.contour(
            middle_slice(channel), levels=np.arange(0, n, step), colors="#D55E00", linewidths=0.7
        )


def draw_moved_lattice(axes: Axes, phi: Deformation, step: int = 4) -> None:
    """The lattice of the fixed grid, its nodes drawn where phi leads, on *moving*: the middle axial
    plane.
    """
    points = np.stack([middle_slice(channel) for channel in phi.points[0, :2]])  # (2, J, I)
    for lines in (points[:, ::step], points[:, :, ::step].transpose(0, 2, 1)):
        axes.plot(lines[0].T, lines[1].T, color="#D55E00", linewidth=0.7)


def scan_figure(scan: Scan, structures: Sequence[str] = ()) -> Figure:
    """The middle planes of a scan, sagittal, coronal and axial, and below them the same with its
    labels.
    """
    planes = [(2, "")] if scan.image.ndim == 3 else [(0, "sagittal"), (1, "coronal"), (2, "axial")]
    rows = 1 + (scan.labels is not None)
    figure, grid = plt.subplots(
        rows,
        len(planes),
        figsize=(3.4 * len(planes), 3.4 * rows),
        squeeze=False,
        layout="constrained",
    )
    count = len(structures) or int(scan.labels.max()) + 1 if rows == 2 else 0
    for cells, (normal, title) in zip(grid.T, planes, strict=True):
        for row, cell in enumerate(cells):
            draw_image(cell, _facing(scan.image, normal), title if row == 0 else "")
            if row:
                draw_labels(cell, _facing(scan.labels[None], normal)[0], count)
    return figure


def _facing(volume: Tensor, normal: int) -> Tensor:
    """(1, I, J, K) with the axis ``normal`` last, so that the middle slice is across it; (1, I, J)
    as it is.
    """
    return volume if volume.ndim == 3 else volume.movedim(normal + 1, 3)


def registration_figure(
    moving: Scan, fixed: Scan, phi: Deformation, structures: Sequence[str] = ()
) -> Figure:
    """The middle axial plane of moving, with the lattice that phi carries there, of fixed, of
    warped with the lattice it pulled, and of the two's difference and det J."""
    labelled = [scan.labels for scan in (moving, fixed) if scan.labels is not None]
    count = len(structures) or 1 + max((int(labels.max()) for labels in labelled), default=0)
    warped = phi.warp(moving.image[None])[0]
    figure, axes = plt.subplots(1, 5, figsize=(16, 3.4), layout="constrained")
    pictures = (
        (moving.image, moving.labels),
        (fixed.image, fixed.labels),
        (warped, None if moving.labels is None else phi.warp_labels(moving.labels[None].int())[0]),
    )
    for cell, title, (image, labels) in zip(
        axes, ("moving", "fixed", "warped"), pictures, strict=False
    ):
        draw_image(cell, image, title)
        if labels is not None:
            draw_labels(cell, labels, count)
    draw_moved_lattice(axes[0], phi)
    draw_grid(axes[2], phi)
    maps = (
        ((warped - fixed.image)[0], 0, "warped - fixed"),
        (phi.jacobian_determinant()[0], 1, "det J"),
    )
    for cell, (values, centre, title) in zip(axes[3:], maps, strict=True):
        shown = cell.imshow(
            middle_slice(values), cmap="RdBu_r", vmin=centre - 1, vmax=centre + 1, origin="lower"
        )
        cell.set_title(title, fontsize=9)
        cell.set_axis_off()
        figure.colorbar(shown, ax=cell, shrink=0.7)
    return figure


def deformations_figure(
    moving: Scan, panels: Sequence[tuple[str, Deformation]], columns: int
) -> Figure:
    """The middle slice of ``moving`` warped by each (title, deformation), with its grid."""
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 3.5 * rows), squeeze=False, layout="constrained"
    )
    for cell, (title, phi) in zip(grid.flat, panels, strict=False):
        draw_image(cell, phi.warp(moving.image[None])[0], title)
        draw_grid(cell, phi)
    return figure


def sweep_figure(table: pd.DataFrame) -> Figure:
    """Dice against folds, a named point for each row of a ``table`` with the columns "Dice %" and
    "folds %".
    """
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.scatter(table["folds %"], table["Dice %"], color="#0072B2")
    for name, row in table.iterrows():
        axes.annotate(
            str(name),
            (row["folds %"], row["Dice %"]),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("folds, %")
    axes.set_ylabel("Dice, %")
    axes.grid(alpha=0.3)
    return figure


def training_figure(
    curves: Mapping[str, Mapping], slices: Mapping[str, Tensor], count: int
) -> Figure:
    """Loss terms and validation Dice against the step, and the middle slice of one pair as the
    networks see it.

    ``count``: structures, the background included.
    """
    figure, axes = plt.subplots(
        1, len(curves) + 2, figsize=(2.6 * (len(curves) + 2), 2.6), layout="constrained"
    )
    for cell, (name, points) in zip(axes, curves.items(), strict=False):
        cell.plot(
            points["x"], points["y"], marker="." if len(points["x"]) < 20 else "", linewidth=1
        )
        cell.set_title(name, fontsize=9)
        cell.set_xlabel("step", fontsize=8)
    for cell, name in zip(axes[-2:], ("fixed", "warped"), strict=True):
        if name in slices:
            draw_image(cell, slices[name][None].float() / 255, f"{name}, now")
        else:
            cell.set_axis_off()
    if "labels" in slices:
        draw_labels(axes[-2], slices["labels"], count)
    if "u0" in slices:
        draw_grid(
            axes[-1], Deformation(torch.stack([slices["u0"], slices["u1"]])[None].float() / 64)
        )
    return figure


def example_figure(example: Mapping, structures: Sequence[str]) -> Figure:
    """One test pair: the true and guessed labels above, moving, fixed, warped and the deformation
    grid below.
    """
    count = len(structures)
    arms = {"reg_baseline": "baseline", "deepatlas": "DeepAtlas"}
    figure, axes = plt.subplots(2, 5, figsize=(12.5, 5.6), layout="constrained")
    for cell, (labels, title) in zip(
        axes[0],
        [
            (None, "fixed"),
            (example["fixed_labels"], "expert's labels"),
            (example["labels_seg_baseline"], "segmentation: baseline"),
            (example["labels_deepatlas"], "segmentation: DeepAtlas"),
        ],
        strict=False,
    ):
        draw_image(cell, example["fixed"], title)
        if labels is not None:
            draw_labels(cell, labels, count)
    axes[0, 4].set_axis_off()
    shown = dict(zip(structures[1:], colours(count - 1), strict=True))
    handles = [
        plt.Line2D([], [], marker="s", linestyle="", color=colour) for colour in shown.values()
    ]
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
    """Dice of each test case (mean over its structures), a box for each regime of one ``task``; a
    dot is a case.
    """
    rows = scores[scores["task"] == task].groupby(["regime", "case"], sort=False)["dice"].mean()
    regimes = list(dict.fromkeys(rows.index.get_level_values("regime")))
    values = [100 * rows[regime].dropna().to_numpy() for regime in regimes]
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
        axes.plot(
            points,
            row + jitter.uniform(-0.15, 0.15, len(points)),
            ".",
            color="#0072B2",
            markersize=4,
            alpha=0.6,
        )
    axes.set_yticks(range(1, len(regimes) + 1), [titles[regime] for regime in regimes])
    axes.invert_yaxis()
    axes.set_xlabel("Dice, % (mean over structures)")
    axes.set_title(task.capitalize())
    axes.grid(axis="x", alpha=0.3)
    return figure


def cases_figure(turn: str) -> Figure:
    """What a turn of "seg" or "reg" compares in each of the four cases, and where its gradient
    goes.

    Blue: an expert's labels. Orange: what learns. Grey: what gets no gradient.
    """
    blue, orange, grey = "#0072B2", "#D55E00", "#777777"
    learns = {"seg": orange if turn == "seg" else grey, "phi": orange if turn == "reg" else grey}
    figure, grid = plt.subplots(2, 2, figsize=(10, 5.6), layout="constrained")
    for axes, (moving, fixed) in zip(grid.flat, product((True, False), repeat=2), strict=True):
        counts = turn == "reg" or moving != fixed
        why = "counts" if counts else "0: no $F_S$ in it" if moving else "0: two guesses agree"
        names = ("labelled" if moving else "unlabelled", "labelled" if fixed else "unlabelled")
        axes.set_title(f"moving {names[0]}, fixed {names[1]}", fontsize=10)
        guess = learns["seg"] if counts else grey
        for x, letter, known in ((0.14, "m", moving), (0.86, "f", fixed)):
            _box(axes, x, 0.85, f"$I_{letter}$", "black")
            _box(
                axes,
                x,
                0.45,
                f"$S_{letter}$, expert" if known else f"$F_S(I_{letter})$, guess",
                blue if known else guess,
            )
            axes.annotate("", (x, 0.54), (x, 0.76), arrowprops={"arrowstyle": "->", "color": grey})
        _box(axes, 0.5, 0.85, "$\\varphi = F_R(I_m, I_f)$", learns["phi"])
        axes.annotate(
            "",
            (0.66, 0.45),
            (0.34, 0.45),
            arrowprops={"arrowstyle": "<->", "color": "black", "linestyle": "-" if counts else ":"},
        )
        axes.text(0.5, 0.53, "$\\circ\\,\\varphi$, then $L_a$", ha="center", fontsize=9)
        axes.text(0.5, 0.34, why, ha="center", fontsize=9, style="italic")
        if turn == "reg":
            extra, colour = "also $L_i(I_m \\circ \\varphi, I_f)$ and $L_r(\\varphi)$", "black"
        elif moving or fixed:
            letter = "m" if moving else "f"
            extra, colour = f"also $L_{{sp}}(F_S(I_{letter}), S_{letter})$", orange
        else:
            extra, colour = "no expert: nothing is learnt", grey
        axes.text(0.5, 0.1, extra, ha="center", fontsize=9, color=colour)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.set_axis_off()
    return figure


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        color=colour,
        fontsize=11,
        bbox={"boxstyle": "round", "edgecolor": colour, "facecolor": "white"},
    )


def curves_figure(curves: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Dice against N, the number of labelled scans, with intervals: cohorts across, segmentation
    above registration.

    ``curves`` has the columns dataset, task, regime, labelled, mean, low, high; ``titles`` the
    regimes to draw.
    """
    datasets, tasks = list(dict.fromkeys(curves["dataset"])), ["segmentation", "registration"]
    figure, grid = plt.subplots(
        2,
        len(datasets),
        figsize=(3.4 * len(datasets) + 1.6, 6),
        layout="constrained",
        squeeze=False,
    )
    shown = dict(
        zip(dict.fromkeys(titles.values()), colours(len(set(titles.values()))), strict=True)
    )
    for (row, task), (column, dataset) in product(enumerate(tasks), enumerate(datasets)):
        axes, some = (
            grid[row, column],
            curves[(curves["task"] == task) & (curves["dataset"] == dataset)],
        )
        arms = [key for key in titles if key in set(some["regime"])]
        for i, key in enumerate(arms):
            points = some[some["regime"] == key].sort_values("labelled")
            x = points["labelled"] * 1.04 ** (i - len(arms) / 2)  # beside each other, not upon
            axes.errorbar(
                x,
                points["mean"],
                [points["mean"] - points["low"], points["high"] - points["mean"]],
                marker="o",
                markersize=4,
                capsize=2,
                color=shown[titles[key]],
                label=titles[key],
            )
        ticks = sorted(some["labelled"].unique())
        axes.set_xscale("log")
        axes.set_xlim(0.7 * ticks[0], 1.4 * ticks[-1])
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.set_title(f"{dataset}: {task}", fontsize=9)
        axes.set_xlabel("N, labelled scans", fontsize=8)
        axes.set_ylabel("Dice, %", fontsize=8)
        axes.grid(alpha=0.3)
    named = {}
    for axes in grid.flat:  # not every cohort has every arm
        named |= {
            label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    order = [title for title in shown if title in named]
    figure.legend(
        [named[title] for title in order],
        order,
        loc="outside right center",
        fontsize=8,
        frameon=False,
    )
    return figure


def loss_curves(history: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Every named loss term of every regime against its step, smoothed over a twentieth of the
    steps.
    """
    regimes = list(dict.fromkeys(history["regime"]))
    columns = 3
    figure, grid = plt.subplots(
        -(-len(regimes) // columns),
        columns,
        figsize=(12, 2.4 * -(-len(regimes) // columns)),
        layout="constrained",
        squeeze=False,
    )
    terms = [
        ("similarity", "#0072B2"),
        ("regularity", "#009E73"),
        ("anatomy", "#D55E00"),
        ("supervised", "#CC79A7"),
    ]
    for axes, regime in zip(grid.flat, regimes, strict=False):
        rows = history[history["regime"] == regime]
        for (turn, turn_rows), style in zip(rows.groupby("turn"), ("-", "--"), strict=False):
            for name, colour in terms:
                if name in turn_rows and turn_rows[name].notna().any():
                    smooth = (
                        turn_rows[name].rolling(max(1, len(turn_rows) // 20), min_periods=1).mean()
                    )
                    axes.plot(
                        turn_rows["step"],
                        smooth,
                        style,
                        color=colour,
                        label=f"{name} ({turn})",
                        linewidth=1.2,
                    )
        axes.set_title(f"{titles[regime]} ({', '.join(sorted(rows['turn'].unique()))})", fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.legend(fontsize=7, frameon=False)
    for axes in grid.flat[len(regimes) :]:
        axes.set_axis_off()
    return figure
