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
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from nibabel import aff2axcodes
from nibabel.affines import voxel_sizes
from torch import Tensor

from .data import Scan
from .errors import printable
from .regimes import BASELINES, JOINT, NETWORK_OF, TITLES
from .terms import TERMS
from .warp import Deformation

# Up to 8 structures: Okabe and Ito's colours, told apart by colour-blind readers; beyond,
# neighbours differ.
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")

ENDS = {  # the letters at the low and the high end of an axis that leads towards the key
    "R": ("L", "R"),
    "L": ("R", "L"),
    "A": ("P", "A"),
    "P": ("A", "P"),
    "S": ("I", "S"),
    "I": ("S", "I"),
}


def colours(structures: int) -> list:
    """One colour for each structure but the background; the same structure has the same colour in
    every figure.
    """
    if structures <= len(OKABE_ITO):
        return list(OKABE_ITO[:structures])
    hues = (np.arange(structures) * 0.618034) % 1  # golden-ratio steps: neighbours far apart
    return [plt.get_cmap("hsv")(hue) for hue in hues]


def colour_bytes(count: int) -> list[list[int]]:
    """The colour of each of ``count`` structures, background (black) included, as bytes."""
    found = [[0, 0, 0]]
    for colour in colours(count - 1):
        found.append([round(255 * channel) for channel in to_rgb(colour)])
    return found


def picture(figure: Figure, alt: str) -> HTML:
    """``figure`` as a PNG whose alternative text is ``alt``; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(printable(alt))
    return HTML(f'<img alt="{text}" src="data:image/png;base64,{data}" style="max-width:100%">')


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` with its alternative text, and close it."""
    display(picture(figure, alt))


def literal(name: str) -> str:
    """``name`` as matplotlib shows it letter by letter: no formula between its dollars."""
    return printable(name).replace("$", r"\$")


def letters_of(scan: Scan) -> list[tuple[str, str]]:
    """The letters at the low and the high end of the axes i, j and k; of a 2D scan, k is across
    it.
    """
    return [ENDS[code] for code in aff2axcodes(scan.affine.cpu().numpy())]


def spacing_of(scan: Scan) -> tuple[float, float, float]:
    """Millimetres from voxel to voxel along i, j and k; of a 2D scan, k is across it."""
    return tuple(voxel_sizes(scan.affine.cpu().numpy()).tolist())


def middle_plane(volume: Tensor) -> Tensor:
    """The middle plane k of (I, J, K), or (I, J) itself."""
    return volume if volume.ndim == 2 else volume[:, :, volume.shape[2] // 2]


def middle_slice(volume: Tensor) -> np.ndarray:
    """The middle plane with i to the right and j up, as matplotlib wants it."""
    return middle_plane(volume).detach().cpu().numpy().T


def draw_image(
    axes: Axes, image: Tensor, title: str = "", spacing: Sequence[float] = (1.0, 1.0)
) -> None:
    """The middle slice of an image (1, I, J, K) in grey, its voxels ``spacing`` mm wide, high."""
    axes.imshow(
        middle_slice(image[0]),
        cmap="gray",
        vmin=0,
        vmax=1,
        origin="lower",
        interpolation="nearest",
        aspect=spacing[1] / spacing[0],
    )
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_labels(axes: Axes, labels: Tensor, structures: int) -> None:
    """The middle slice of labels (I, J, K) as a translucent overlay, in proportion with the image
    below; ``structures`` counts the background.
    """
    plane = middle_slice(labels)
    axes.imshow(
        np.ma.masked_equal(plane, 0),
        cmap=ListedColormap(colours(structures - 1)),
        vmin=1,
        alpha=0.55,
        vmax=max(structures - 1, 2),
        aspect=axes.get_aspect() if axes.images else "equal",
        origin="lower",
        interpolation="nearest",
    )


def draw_letters(axes: Axes, scan: Scan, plane: tuple[int, int]) -> None:
    """At the edges of a picture, where the two axes of its ``plane`` lead: the first to the right,
    the second up.
    """
    (left, right), (bottom, top) = (letters_of(scan)[axis] for axis in plane)
    places = ((0.03, 0.5, left), (0.97, 0.5, right), (0.5, 0.04, bottom), (0.5, 0.96, top))
    for x, y, letter in places:
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            color="#FFE14D",
            fontsize=8,
            ha="center",
            va="center",
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
    x, y = (middle_slice(channel) for channel in phi.points[0, :2])  # (J, I) each
    # matplotlib draws a line for each column
    axes.plot(x[::step].T, y[::step].T, color="#D55E00", linewidth=0.7)
    axes.plot(x[:, ::step], y[:, ::step], color="#D55E00", linewidth=0.7)


def scan_figure(scan: Scan, structures: Sequence[str] = ()) -> Figure:
    """The middle planes of a scan, sagittal, coronal and axial, and below them the same with its
    labels; voxels in their true proportions.
    """
    planes = {0: "sagittal", 1: "coronal", 2: "axial"}  # axis across the plane -> title
    if scan.image.ndim == 3:  # (1, I, J)
        planes = {2: ""}
    rows = 1 if scan.labels is None else 2
    size = (3.4 * len(planes), 3.4 * rows)
    figure, grid = plt.subplots(
        rows, len(planes), figsize=size, squeeze=False, layout="constrained"
    )
    for cells, (normal, title) in zip(grid.T, planes.items(), strict=True):
        spacing = np.delete(spacing_of(scan), normal)  # along the two axes of the plane
        draw_image(cells[0], _facing(scan.image, normal), title, spacing)
        if scan.labels is not None:
            count = len(structures) or int(scan.labels.max()) + 1
            draw_image(cells[1], _facing(scan.image, normal), spacing=spacing)
            draw_labels(cells[1], _facing(scan.labels[None], normal)[0], count)
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
    warped with the lattice it pulled, and of the two's difference and det J; all in the proportions
    of the voxels of fixed.
    """
    spacing = spacing_of(fixed)
    count = len(structures) or 1 + max(_largest_label(moving), _largest_label(fixed))
    warped = phi.warp(moving.image[None])[0]
    warped_labels = None
    if moving.labels is not None:
        warped_labels = phi.warp_labels(moving.labels[None])[0]
    figure, axes = plt.subplots(1, 5, figsize=(16, 3.4), layout="constrained")
    pictures = (
        ("moving", moving.image, moving.labels),
        ("fixed", fixed.image, fixed.labels),
        ("warped", warped, warped_labels),
    )
    for cell, (title, image, labels) in zip(axes[:3], pictures, strict=True):
        draw_image(cell, image, title, spacing)
        if labels is not None:
            draw_labels(cell, labels, count)
    axes[0].autoscale(False)  # as large as fixed, however far the lattice reaches
    draw_moved_lattice(axes[0], phi)
    draw_grid(axes[2], phi)
    _draw_map(axes[3], (warped - fixed.image)[0], 0, "warped - fixed")
    _draw_map(axes[4], phi.jacobian_determinant()[0], 1, "det J")
    for cell in axes[3:]:
        cell.set_aspect(spacing[1] / spacing[0])
    return figure


def _largest_label(scan: Scan) -> int:
    return 0 if scan.labels is None else int(scan.labels.max())


def _draw_map(axes: Axes, values: Tensor, centre: float, title: str) -> None:
    """The middle slice of values (I, J, K), white at ``centre``, with a scale beside it."""
    shown = axes.imshow(
        middle_slice(values), cmap="RdBu_r", vmin=centre - 1, vmax=centre + 1, origin="lower"
    )
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    axes.figure.colorbar(shown, ax=axes, shrink=0.7)


def deformations_figure(
    moving: Scan, panels: Sequence[tuple[str, Deformation]], columns: int
) -> Figure:
    """The middle slice of ``moving`` warped by each (title, deformation), with its grid."""
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 3.5 * rows), squeeze=False, layout="constrained"
    )
    for cell, (title, phi) in zip(grid.flat, panels, strict=False):
        draw_image(cell, phi.warp(moving.image[None])[0], title, spacing_of(moving))
        draw_grid(cell, phi)
    return figure


def through_plane_figure(
    moving: Scan,
    fixed: Scan,
    panels: Sequence[tuple[str, Deformation]],
    at: tuple[int, int],
    structures: Sequence[str],
) -> Figure:
    """What each (title, deformation) of a pair of labelled volumes does across the axial slice k,
    and what that makes of the coronal cut j, ``at`` = (j, k).

    Above: fixed in both planes, a dashed line where they meet, and moving in the coronal cut.
    Below, a row for each deformation: u_3 in the axial slice, in mm; where the voxels of the cut
    look, as arrows (u_1, u_3); warped, with the lattice it pulled. At the foot, the names of the
    structures that are seen.
    """
    j, k = at
    axial, coronal = (0, 1), (0, 2)  # the axes of the two planes
    spacing = np.array(spacing_of(fixed))
    seen: set[int] = set()

    def draw(
        cell: Axes,
        title: str,
        axes: tuple[int, int],
        image: Tensor,
        labels: Tensor | None = None,
    ) -> None:
        """A plane of an image (I, J, K), and of its labels if there are any."""
        plane = (slice(None), slice(None), k) if axes == axial else (slice(None), j)
        draw_image(cell, image[plane][None], title, spacing[list(axes)])
        if labels is not None:
            draw_labels(cell, labels[plane], len(structures))
            seen.update(labels[plane].unique().tolist())
        draw_letters(cell, fixed, axes)

    rows = 1 + len(panels)
    figure, grid = plt.subplots(rows, 3, figsize=(9.5, 3 * rows), layout="constrained")
    draw(grid[0, 0], f"fixed, axial slice k = {k}", axial, fixed.image[0], fixed.labels)
    draw(grid[0, 1], f"fixed, coronal cut j = {j}", coronal, fixed.image[0], fixed.labels)
    draw(grid[0, 2], f"moving, coronal cut j = {j}", coronal, moving.image[0], moving.labels)
    for cell, line in zip(grid[0], (j, k, k), strict=True):
        cell.axhline(line, color="white", linestyle="--", linewidth=0.8)

    outside = middle_slice(fixed.image[0, ..., k]) <= 0
    through = [spacing[2] * middle_slice(phi.displacement[0, 2, ..., k]) for _, phi in panels]
    largest = max(np.abs(values[~outside]).max() for values in through) or 1.0
    for cells, (title, phi), values in zip(grid[1:], panels, through, strict=True):
        draw(cells[0], f"{title}: $u_3$, mm", axial, fixed.image[0])
        shown = cells[0].imshow(
            np.ma.masked_where(outside, values),
            cmap="RdBu_r",
            vmin=-largest,
            vmax=largest,
            origin="lower",
            aspect=cells[0].get_aspect(),
        )
        figure.colorbar(shown, ax=cells[0], shrink=0.7)
        in_cut = Deformation(phi.displacement[:, coronal, :, j])
        draw(cells[1], f"{title}: where the cut looks", coronal, fixed.image[0])
        _draw_arrows(cells[1], in_cut, fixed.image[0, :, j] > 0)
        warped = phi.warp(moving.image[None])[0, 0]
        labels = phi.warp_labels(moving.labels[None])[0]
        draw(cells[2], f"{title}: warped", coronal, warped, labels)
        draw_grid(cells[2], in_cut)

    named = sorted(seen - {0})  # but the background
    palette = colours(len(structures) - 1)
    figure.legend(
        [_square(palette[c - 1]) for c in named],
        [literal(structures[c]) for c in named],
        loc="outside lower center",
        ncols=5,
        fontsize=8,
        frameon=False,
    )
    return figure


def _draw_arrows(cell: Axes, phi: Deformation, where: Tensor, step: int = 3) -> None:
    """Arrows from every third voxel ``where`` (I, J) to phi(x), in a plane."""
    i, j = torch.meshgrid(*[torch.arange(0, n, step) for n in phi.shape], indexing="ij")
    kept = where[::step, ::step]
    u = phi.displacement[0, :, ::step, ::step]
    cell.quiver(
        i[kept],
        j[kept],
        u[0][kept],
        u[1][kept],
        angles="xy",
        scale_units="xy",
        scale=1,
        color="#D55E00",
        width=0.006,
    )


def sweep_figure(table: pd.DataFrame) -> Figure:
    """Dice against folds, a named point for each row of a ``table`` with the columns "Dice %" and
    "folds %".
    """
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.scatter(table["folds %"], table["Dice %"], color="#0072B2")
    for name, row in table.iterrows():
        axes.annotate(
            literal(str(name)),
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
    lines: Mapping[str, Mapping],
    slices: Mapping[str, Tensor],
    count: int,
    spacing: Sequence[float] = (1.0, 1.0),
) -> Figure:
    """Loss terms and validation Dice against the step, and the middle slice of one pair as the
    networks see it.

    ``lines``: name -> {"x": steps, "y": values}. ``count``: structures, the background included.
    ``spacing``: mm from voxel to voxel along the slices' axes.
    """
    columns = len(lines) + 2
    figure, axes = plt.subplots(1, columns, figsize=(2.6 * columns, 2.6), layout="constrained")
    for cell, (name, points) in zip(axes, lines.items(), strict=False):
        marker = "." if len(points["x"]) < 20 else ""
        cell.plot(points["x"], points["y"], marker=marker, linewidth=1)
        cell.set_title(name, fontsize=9)
        cell.set_xlabel("step", fontsize=8)
    for cell, name in zip(axes[-2:], ("fixed", "warped"), strict=True):
        if name in slices:
            draw_image(cell, slices[name][None].float() / 255, f"{name}, now", spacing)
        else:
            cell.set_axis_off()
    if "labels" in slices:
        draw_labels(axes[-2], slices["labels"], count)
    if "u0" in slices:
        u = torch.stack([slices["u0"], slices["u1"]])[None]  # (1, 2, I, J), in 1/64 voxel
        draw_grid(axes[-1], Deformation(u.float() / 64))
    return figure


def example_figure(example: Mapping, structures: Sequence[str]) -> Figure:
    """One test pair: the true and guessed labels above, moving, fixed, warped and the deformation
    grid below.
    """
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
        handles = [_square(colour) for colour in colours(count - 1)]
        names = [literal(name) for name in structures[1:]]
        axes[0, 4].legend(handles, names, fontsize=8, loc="center", frameon=False)
    draw_image(axes[1, 0], example["moving"], "moving")
    for regime, (warped, fixed) in ((BASELINES["reg"], axes[1, 1:3]), (JOINT, axes[1, 3:5])):
        phi = Deformation(example[f"u_{regime}"])
        draw_image(warped, phi.warp(example["moving"][None])[0], f"warped: {TITLES[regime]}")
        draw_image(fixed, example["fixed"], f"its grid on fixed: {TITLES[regime]}")
        draw_grid(fixed, phi)
    figure.suptitle(literal(example["name"]), fontsize=10)
    return figure


def _square(colour: object) -> plt.Line2D:
    return plt.Line2D([], [], marker="s", linestyle="", color=colour)


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


def cases_figure(turn: str) -> Figure:
    """What a turn of "seg" or "reg" compares in each of the four cases, and where its gradient
    goes.

    Blue: an expert's labels. Orange: what learns. Grey: what gets no gradient.
    """
    blue, orange, grey = "#0072B2", "#D55E00", "#777777"
    seg_colour, phi_colour = (orange, grey) if turn == "seg" else (grey, orange)
    figure, grid = plt.subplots(2, 2, figsize=(10, 5.6), layout="constrained")
    for axes, (moving, fixed) in zip(grid.flat, product((True, False), repeat=2), strict=True):
        counts = turn == "reg" or moving != fixed
        why = "counts"
        if not counts:
            why = "0: no $F_S$ in it" if moving else "0: two guesses agree"
        m, f = ("labelled" if known else "unlabelled" for known in (moving, fixed))
        axes.set_title(f"moving {m}, fixed {f}", fontsize=10)
        guess = seg_colour if counts else grey
        for x, letter, known in ((0.14, "m", moving), (0.86, "f", fixed)):
            _box(axes, x, 0.85, f"$I_{letter}$", "black")
            if known:
                _box(axes, x, 0.45, f"$S_{letter}$, expert", blue)
            else:
                _box(axes, x, 0.45, f"$F_S(I_{letter})$, guess", guess)
            axes.annotate("", (x, 0.54), (x, 0.76), arrowprops={"arrowstyle": "->", "color": grey})
        _box(axes, 0.5, 0.85, "$\\varphi = F_R(I_m, I_f)$", phi_colour)
        arrow = {"arrowstyle": "<->", "color": "black", "linestyle": "-" if counts else ":"}
        axes.annotate("", (0.66, 0.45), (0.34, 0.45), arrowprops=arrow)
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


def dice_against_n_figure(points: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Dice against N, the number of labelled scans, with intervals: cohorts across, segmentation
    above registration.

    ``points`` has the columns dataset, task, regime, labelled, mean, low, high; ``titles`` the
    regimes to draw.
    """
    datasets, tasks = list(points["dataset"].unique()), list(NETWORK_OF)
    figure, grid = plt.subplots(
        len(tasks),
        len(datasets),
        figsize=(3.4 * len(datasets) + 1.6, 6),
        layout="constrained",
        squeeze=False,
    )
    distinct = list(dict.fromkeys(titles.values()))
    colour_of = dict(zip(distinct, colours(len(distinct)), strict=True))
    for cells, task in zip(grid, tasks, strict=True):
        for axes, dataset in zip(cells, datasets, strict=True):
            some = points[(points["task"] == task) & (points["dataset"] == dataset)]
            _draw_dice_against_n(axes, some, titles, colour_of)
            axes.set_title(f"{literal(dataset)}: {task}", fontsize=9)
    _one_legend(figure, grid, distinct)
    return figure


def _draw_dice_against_n(
    axes: Axes, points: pd.DataFrame, titles: Mapping[str, str], colour_of: Mapping[str, object]
) -> None:
    """A line with intervals for each regime of one cohort and task."""
    there = set(points["regime"])
    regimes = [key for key in titles if key in there]
    for i, key in enumerate(regimes):
        line = points[points["regime"] == key].sort_values("labelled")
        beside = 1.04 ** (i - len(regimes) / 2)  # beside each other, not upon
        axes.errorbar(
            line["labelled"] * beside,
            line["mean"],
            [line["mean"] - line["low"], line["high"] - line["mean"]],
            marker="o",
            markersize=4,
            capsize=2,
            color=colour_of[titles[key]],
            label=titles[key],
        )
    ticks = sorted(points["labelled"].unique())
    axes.set_xscale("log")
    axes.set_xlim(0.7 * ticks[0], 1.4 * ticks[-1])
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("N, labelled scans", fontsize=8)
    axes.set_ylabel("Dice, %", fontsize=8)
    axes.grid(alpha=0.3)


def _one_legend(figure: Figure, grid: np.ndarray, order: Sequence[str]) -> None:
    """Beside the panels, for all of them: not every cohort has every regime."""
    handle_of = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handle_of[label] = handle
    named = [title for title in order if title in handle_of]
    figure.legend(
        [handle_of[title] for title in named],
        named,
        loc="outside right center",
        fontsize=8,
        frameon=False,
    )


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
        axes.legend(fontsize=7, frameon=False)
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
