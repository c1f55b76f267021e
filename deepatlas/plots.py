"""Figures: pure functions of data that return a matplotlib figure; ``show`` displays one with its
alternative text, ``description`` is the text that a figure of this module has of itself.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.patheffects import withStroke
from nibabel import aff2axcodes
from nibabel.affines import voxel_sizes
from torch import Tensor

from . import phantom
from .data import Scan
from .errors import printable
from .regimes import BASELINES, JOINT, NETWORK_OF, TITLES
from .terms import TERMS
from .warp import Deformation

# Structures, calm on grey images. As distances in OKLab (Ottosson, 2020; from black to white it is
# 1), the first 8 are 0.1 apart and all 12 are 0.06 apart, as everyone sees them and as they look
# without one of the three cones (Machado et al., 2009); none is yellow on white.
PALETTE = (
    "#3495D5",
    "#F7AE5D",
    "#69D7B4",
    "#7D5597",
    "#919309",
    "#D86C8D",
    "#A54C01",
    "#BEB3FD",
    "#45705B",
    "#83B0C1",
    "#BA9D6F",
    "#12935A",
)
DARK = (0, 6, 3, 4, 5)  # of the palette, what is seen as a thin line on white

# What is drawn over images; the viewers' scripts have the same colours.
MARKS = {"grid": "#D55E00", "folds": "#FF1FC7", "arrows": "#40E0FF", "points": "#0072B2"}

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
    further = [_further_colour(number) for number in range(structures - len(PALETTE))]
    return [*PALETTE[:structures], *further]


def line_colours(count: int) -> list:
    """The colours of ``count`` curves on white: those of structures, dark ones first."""
    order = [*DARK, *(n for n in range(len(PALETTE)) if n not in DARK)]
    found = [PALETTE[n] for n in order] + colours(count)[len(PALETTE) :]
    return found[:count]


def _further_colour(number: int) -> tuple[float, ...]:
    """Beyond the palette: as calm, in golden-ratio steps of hue, so that neighbours differ."""
    hue = 2 * np.pi * (number * 0.618034 % 1)
    lightness = (0.58, 0.76, 0.67)[number % 3]
    a, b = 0.095 * np.cos(hue), 0.095 * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3  # OKLab to the three cones
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    light = np.clip(linear, 0, 1)
    bent = np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)  # sRGB
    return tuple(bent.tolist())


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


def description(figure: Figure) -> str:
    """What ``figure`` shows, in words, for those who do not see it; empty if its maker wrote
    nothing.
    """
    return figure.get_label()


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


def draw_letters(axes: Axes, scan: Scan, plane: tuple[int, int] = (0, 1)) -> None:
    """At the edges of a picture, where the two axes of its ``plane`` lead: the first to the right,
    the second up. L and R, A and P, S and I are the person's left, right, front (anterior), back,
    head (superior) and feet, by the scan's affine.
    """
    _draw_ends(axes, [letters_of(scan)[axis] for axis in plane])


def _draw_ends(axes: Axes, ends: Sequence[tuple[str, str]]) -> None:
    """The letters at the ends of the two axes of a picture."""
    (left, right), (bottom, top) = ends
    places = ((0.04, 0.5, left), (0.96, 0.5, right), (0.5, 0.05, bottom), (0.5, 0.95, top))
    for x, y, letter in places:
        axes.text(
            x,
            y,
            letter,
            transform=axes.transAxes,
            color="white",
            fontsize=9,
            fontweight="bold",
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


def draw_scale(axes: Axes, spacing: Sequence[float]) -> None:
    """A bar at the right foot of a picture whose voxels are ``spacing`` mm wide, high: about a
    quarter as long as the picture is wide, and how long that is.
    """
    left, right = sorted(axes.get_xlim())
    bottom, top = sorted(axes.get_ylim())
    quarter = (right - left) * spacing[0] / 4
    tens = 10.0 ** np.floor(np.log10(quarter))
    length = max(n * tens for n in (1, 2, 5) if n * tens <= quarter)
    end, y = right - 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    stroke = [withStroke(linewidth=3.5, foreground="black")]
    begin = end - length / spacing[0]
    axes.plot([begin, end], [y, y], color="white", linewidth=2, path_effects=stroke)
    axes.annotate(
        f"{length:g} mm",
        ((begin + end) / 2, y),
        xytext=(0, 3),
        textcoords="offset points",
        color="white",
        fontsize=7,
        ha="center",
        path_effects=[withStroke(linewidth=2, foreground="black")],
    )


def draw_key(
    figure: Figure,
    structures: Sequence[str] = (),
    seen: Collection[int] = (),
    marks: Sequence[Line2D] = (),
) -> None:
    """At the foot of ``figure``: the colours of the structures that are ``seen``, their numbers, by
    name, and what ``marks`` mean, lines with a label.
    """
    numbers = sorted(int(number) for number in seen if number)  # but the background
    palette = colours(max(numbers, default=0))
    handles = []
    for number in numbers:
        name = structures[number] if number < len(structures) else f"structure {number}"
        handles.append(_square(palette[number - 1], literal(name)))
    handles += marks
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 5 if figure.get_figwidth() < 11 else 7),
            fontsize=8 if len(handles) < 25 else 6,
            frameon=False,
        )


def draw_folds(axes: Axes, phi: Deformation) -> None:
    """The voxels of the middle slice where det J <= 0, over what is drawn already."""
    folds = middle_slice(phi.jacobian_determinant()[0] <= 0)
    axes.imshow(
        np.ma.masked_equal(folds, 0),
        cmap=ListedColormap([MARKS["folds"]]),
        aspect=axes.get_aspect() if axes.images else "equal",
        origin="lower",
        interpolation="nearest",
    )


def _folds_percent(phi: Deformation) -> float:
    """Of the voxels of the middle slice, those where det J <= 0, in percent."""
    return 100 * float((middle_slice(phi.jacobian_determinant()[0]) <= 0).mean())


def draw_grid(axes: Axes, phi: Deformation, step: int = 4) -> None:
    """The lines phi_i(x) = multiples of ``step`` on the fixed grid: what warping makes of a lattice
    drawn on *moving*.

    In 3D the middle axial plane; motion through the plane is not shown.
    """
    points = phi.points[0, :2].detach().cpu()
    for channel, n in zip(points, phi.shape, strict=False):
        axes.contour(
            middle_slice(channel),
            levels=np.arange(0, n, step),
            colors=MARKS["grid"],
            linewidths=0.7,
        )


def draw_moved_lattice(axes: Axes, phi: Deformation, step: int = 4) -> None:
    """The lattice of the fixed grid, its nodes drawn where phi leads, on *moving*: the middle axial
    plane.
    """
    x, y = (middle_slice(channel) for channel in phi.points[0, :2])  # (J, I) each
    # matplotlib draws a line for each column
    axes.plot(x[::step].T, y[::step].T, color=MARKS["grid"], linewidth=0.7)
    axes.plot(x[:, ::step], y[:, ::step], color=MARKS["grid"], linewidth=0.7)


def scan_figure(scan: Scan, structures: Sequence[str] = ()) -> Figure:
    """The middle planes of a scan, sagittal, coronal and axial, on one scale, and below them the
    same with its labels; voxels in their true proportions, letters by the affine, and a key.
    """
    planes = {0: "sagittal", 1: "coronal", 2: "axial"}  # axis across the plane -> title
    if scan.image.ndim == 3:  # (1, I, J)
        planes = {2: ""}
    sides, voxels = np.array(spacing_of(scan)), (*scan.shape, 1)[:3]
    mm = sides * voxels
    wide, high = np.array([np.delete(mm, normal) for normal in planes]).T
    rows = 1 if scan.labels is None else 2
    inches = min(10.2 / wide.sum(), 4 / high.max())  # for a millimetre, in each picture
    size = (inches * wide.sum() + 0.3 * len(wide), (inches * high.max() + 0.35) * rows + 0.3)
    figure, grid = plt.subplots(
        rows,
        len(planes),
        figsize=size,
        squeeze=False,
        layout="constrained",
        width_ratios=wide,
    )
    seen: set[int] = set()
    for cells, (normal, title) in zip(grid.T, planes.items(), strict=True):
        spacing = np.delete(sides, normal)  # along the two axes of the plane
        if title:
            title += f", {'ijk'[normal]} = {voxels[normal] // 2}"
        for cell in cells:
            draw_image(cell, _facing(scan.image, normal), spacing=spacing)
            draw_letters(cell, scan, tuple(axis for axis in range(3) if axis != normal))
        cells[0].set_title(title, fontsize=9)
        draw_scale(cells[0], spacing)
        if scan.labels is not None:
            labels = _facing(scan.labels[None], normal)[0]
            count = len(structures) or int(scan.labels.max()) + 1
            draw_labels(cells[1], labels, count)
            seen.update(np.unique(middle_slice(labels)).tolist())
    draw_key(figure, structures, seen)
    drawn = ", ".join(planes.values()) or "its plane"
    figure.set_label(f"{drawn}, right way round by the letters at the edges. {_named(seen)}")
    return figure


def _named(seen: Collection[int]) -> str:
    """How many structures are seen, in words."""
    count = len(set(seen) - {0})
    return f"Labels of {count} structures in colour." if count else "No labels."


def _facing(volume: Tensor, normal: int) -> Tensor:
    """(1, I, J, K) with the axis ``normal`` last, so that the middle slice is across it; (1, I, J)
    as it is.
    """
    return volume if volume.ndim == 3 else volume.movedim(normal + 1, 3)


def registration_figure(
    moving: Scan, fixed: Scan, phi: Deformation, structures: Sequence[str] = ()
) -> Figure:
    """The middle axial plane of moving, with the lattice that phi carries there, of fixed, and of
    warped with the lattice it pulled; below them moving - fixed and warped - fixed, on one scale
    from the data, and det J; all six as large, in the proportions of the voxels of fixed.
    """
    spacing = spacing_of(fixed)
    count = len(structures) or 1 + max(_largest_label(moving), _largest_label(fixed))
    warped = phi.warp(moving.image[None])[0]
    warped_labels = None
    if moving.labels is not None:
        warped_labels = phi.warp_labels(moving.labels[None])[0]
    high = fixed.shape[1] * spacing[1] / (fixed.shape[0] * spacing[0])  # of a picture 1 wide
    figure = plt.figure(figsize=(9.6, 3 * min(max(high, 0.5), 2) * 2 + 1.6), layout="constrained")
    places = figure.add_gridspec(3, 3, height_ratios=(1, 1, 0.05))
    axes = [figure.add_subplot(places[n // 3, n % 3]) for n in range(6)]
    pictures = (
        ("moving, and where the lattice of fixed looks", moving.image, moving.labels),
        ("fixed", fixed.image, fixed.labels),
        ("warped, and the lattice of moving", warped, warped_labels),
    )
    seen: set[int] = set()
    for cell, (title, image, labels) in zip(axes[:3], pictures, strict=True):
        draw_image(cell, image, title, spacing)
        if labels is not None:
            draw_labels(cell, labels, count)
            seen.update(np.unique(middle_slice(labels)).tolist())
    axes[0].autoscale(False)  # as large as fixed, however far the lattice reaches
    draw_moved_lattice(axes[0], phi)
    draw_grid(axes[2], phi)
    draw_scale(axes[1], spacing)

    after = (warped - fixed.image)[0]
    before = (moving.image - fixed.image)[0] if moving.shape == fixed.shape else None
    sizes = [np.abs(middle_slice(values)) for values in (before, after) if values is not None]
    largest = max(float(np.quantile(sizes, 0.99)), 0.01)
    if before is None:
        axes[3].set_axis_off()
    else:
        _draw_map(axes[3], before, (-largest, largest), "moving - fixed")
    shown = _draw_map(axes[4], after, (-largest, largest), "warped - fixed")
    label = "difference of intensities; 99 % of the pixels lie on the scale"
    bar = figure.add_subplot(places[2, :2])
    figure.colorbar(shown, cax=bar, orientation="horizontal", extend="both").set_label(label)
    shown = _draw_map(axes[5], phi.jacobian_determinant()[0], (0, 2), "det J")
    draw_folds(axes[5], phi)
    bar = figure.add_subplot(places[2, 2])
    figure.colorbar(shown, cax=bar, orientation="horizontal", extend="max").set_label(
        "below 1 shrinks, above 1 grows"
    )
    for cell in axes:
        cell.set_aspect(spacing[1] / spacing[0])
        if cell.images:
            draw_letters(cell, fixed)
    draw_key(figure, structures, seen, [_mark("grid", "lattice"), _mark("folds", "det J ≤ 0")])
    means = [f"{values.mean():.3f}" for values in sizes]
    figure.set_label(
        "Moving, fixed and warped scan with their lattices; below, the differences to fixed, whose "
        f"mean size in this plane is {' before and '.join(means)}"
        f"{' after' if len(means) > 1 else ''}; and det J, at most 0, a fold, in "
        f"{_folds_percent(phi):.1f} % of this plane. {_named(seen)}"
    )
    return figure


def _largest_label(scan: Scan) -> int:
    return 0 if scan.labels is None else int(scan.labels.max())


def _draw_map(axes: Axes, values: Tensor, scale: tuple[float, float], title: str) -> AxesImage:
    """The middle slice of values (I, J, K), white in the middle of the ``scale``."""
    low, high = scale
    shown = axes.imshow(middle_slice(values), cmap="RdBu_r", vmin=low, vmax=high, origin="lower")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    return shown


def deformations_figure(
    moving: Scan, panels: Sequence[tuple[str, Deformation]], columns: int
) -> Figure:
    """The middle slice of ``moving`` warped by each (title, deformation), with its grid and its
    folds.
    """
    spacing = spacing_of(moving)
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(3.2 * columns, 3.5 * rows + 0.3),
        squeeze=False,
        layout="constrained",
    )
    said = []
    for cell, (title, phi) in zip(grid.flat, panels, strict=False):
        draw_image(cell, phi.warp(moving.image[None])[0], title, spacing)
        draw_folds(cell, phi)
        draw_grid(cell, phi)
        draw_letters(cell, moving)
        text = title.replace("\n", ": ")
        said.append(f"{text}, {_folds_percent(phi):.1f} % of the slice folded")
    for cell in grid.flat[len(panels) :]:
        cell.set_axis_off()
    draw_scale(grid[0, 0], spacing)
    marks = [_mark("grid", "the lattice of moving, as it was pulled")]
    draw_key(figure, marks=[*marks, _mark("folds", "folds: det J ≤ 0")])
    figure.set_label(f"One slice warped, with its grid: {'; '.join(said)}.")
    return figure


def _mark(name: str, label: str) -> Line2D:
    """A line of the key for what is drawn over images."""
    if name == "folds":
        return _square(MARKS[name], label)
    return Line2D([], [], color=MARKS[name], linewidth=1.5, label=label)


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
        beside = cells[0].inset_axes((1.03, 0.1, 0.04, 0.8))  # so that all panels are as large
        figure.colorbar(shown, cax=beside).ax.tick_params(labelsize=7)
        in_cut = Deformation(phi.displacement[:, coronal, :, j])
        draw(cells[1], f"{title}: where the cut looks", coronal, fixed.image[0])
        _draw_arrows(cells[1], in_cut, fixed.image[0, :, j] > 0)
        warped = phi.warp(moving.image[None])[0, 0]
        labels = phi.warp_labels(moving.labels[None])[0]
        draw(cells[2], f"{title}: warped", coronal, warped, labels)
        draw_grid(cells[2], in_cut)

    draw_scale(grid[0, 0], spacing[:2])
    marks = [_mark("grid", "the lattice of moving, as it was pulled")]
    draw_key(figure, structures, seen, [*marks, _mark("arrows", "where a voxel looks")])
    figure.set_label(
        f"Motion through the plane, in mm, in the axial slice, at most {largest:.1f} either way; "
        f"arrows in the coronal cut; warped. {'; '.join(title for title, _ in panels)}."
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
        color=MARKS["arrows"],
        width=0.008,
        edgecolor="black",
        linewidth=0.4,
    )


def sweep_figure(table: pd.DataFrame) -> Figure:
    """Dice against folds, a named point for each row of a ``table`` with the columns "Dice %" and
    "folds %".
    """
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.scatter(table["folds %"], table["Dice %"], color=MARKS["points"])
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
    letters: Sequence[tuple[str, str]] = (),
) -> Figure:
    """Loss terms and validation Dice against the step, and the middle slice of one pair as the
    networks see it.

    ``lines``: name -> {"x": steps, "y": values}. ``count``: structures, the background included.
    ``spacing``: mm from voxel to voxel along the slices' axes; ``letters``: at their ends, as
    ``letters_of`` has them.
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
            if letters:
                _draw_ends(cell, letters[:2])
        else:
            cell.set_axis_off()
    if "labels" in slices:
        draw_labels(axes[-2], slices["labels"], count)
    if "u0" in slices:
        u = torch.stack([slices["u0"], slices["u1"]])[None]  # (1, 2, I, J), in 1/64 voxel
        draw_grid(axes[-1], Deformation(u.float() / 64))
    ends = [f"{name} ends at {list(points['y'])[-1]:.3g}" for name, points in lines.items()]
    seen = [name for name in ("fixed", "warped") if name in slices]
    figure.set_label(
        f"Loss terms and scores against the step: {', '.join(ends)}. One pair as the networks see "
        f"it now: {', '.join(seen) or 'not shown'}."
    )
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
        names = [literal(name) for name in structures[1:]]
        handles = [_square(*pair) for pair in zip(colours(count - 1), names, strict=True)]
        axes[0, 4].legend(handles=handles, fontsize=8, loc="center", frameon=False)
    draw_image(axes[1, 0], example["moving"], "moving")
    for regime, (warped, fixed) in ((BASELINES["reg"], axes[1, 1:3]), (JOINT, axes[1, 3:5])):
        phi = Deformation(example[f"u_{regime}"])
        draw_image(warped, phi.warp(example["moving"][None])[0], f"warped: {TITLES[regime]}")
        draw_image(fixed, example["fixed"], f"its grid on fixed: {TITLES[regime]}")
        draw_grid(fixed, phi)
    figure.suptitle(literal(example["name"]), fontsize=10)
    return figure


def _square(colour: object, label: str) -> Line2D:
    """A line of a key."""
    return Line2D([], [], marker="s", linestyle="", color=colour, label=label)


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


# --- the method, drawn ----------------------------------------------------------------------------

# the frame of what: colour, width, style
GIVEN = ("#0072B2", 2.0, "-")  # an expert's labels
LEARNS = ("#D55E00", 3.0, "-")
STILL = ("#777777", 1.5, "--")  # gets no gradient
ARROW = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}
BOX = {"boxstyle": "round", "facecolor": "white"}


@dataclass(frozen=True, eq=False)
class Pair:
    """What the drawings of the method show of a pair: two labelled scans on one grid, phi, and a
    guess of the labels of each, integers like them.
    """

    moving: Scan
    fixed: Scan
    phi: Deformation
    guesses: tuple[Tensor, Tensor]

    def labels(self, side: str, expert: bool) -> Tensor:
        """The expert's labels of a "moving" or "fixed" scan, or the guess of them."""
        number = ("moving", "fixed").index(side)
        return (self.moving, self.fixed)[number].labels if expert else self.guesses[number]


def phantom_pair(anatomy: str = "knee", size: int = 56) -> Pair:
    """Two phantoms, their true phi, and the guesses of someone who has seen one other labelled
    phantom and looks, for each voxel, for the patch nearby that is most alike. Under a second.
    """
    shape = (size, size)
    spacing = 144 / size
    scans = [phantom.make_scan(anatomy, n, shape, spacing=spacing) for n in (0, 1, 2)]
    moving, fixed, seen = scans
    guesses = (_guess(moving, seen), _guess(fixed, seen))
    phi = Deformation(phantom.true_deformation(moving, fixed).displacement.float())
    return Pair(moving, fixed, phi, guesses)


def _guess(scan: Scan, seen: Scan, reach: int = 4) -> Tensor:
    """Of each voxel (I, J), the label of the voxel of ``seen``, at most ``reach`` away along each
    axis, whose neighbourhood of 5 x 5 voxels is most alike.
    """
    least, found = torch.full(scan.shape, torch.inf), torch.zeros_like(scan.labels)
    for step in product(range(-reach, reach + 1), repeat=2):
        image, labels = (x.roll(step, (-2, -1)) for x in (seen.image, seen.labels))
        unlike = F.avg_pool2d((image - scan.image).square(), 5, stride=1, padding=2)[0]
        found = torch.where(unlike < least, labels, found)
        least = torch.minimum(unlike, least)
    return found


def cases_figure(turn: str, pair: Pair | None = None) -> Figure:
    """What a turn of "seg" or "reg" compares in each of the four cases, with the images of a
    ``pair``, by default two phantoms: phi pulls the labels of moving, and L_a compares what comes
    out with the labels of fixed.

    Framed blue: an expert's labels. Orange: what learns. Grey, dashed: what gets no gradient.
    """
    pair = phantom_pair() if pair is None else pair
    figure, grid = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    for axes, sides in zip(grid.flat, product((True, False), repeat=2), strict=True):
        _draw_case(axes, turn, sides, pair)
    figure.legend(
        handles=[
            _line(GIVEN, "an expert's labels: given"),
            _line(LEARNS, "learns in this turn: the gradient reaches it"),
            _line(STILL, "gets no gradient in this turn"),
        ],
        loc="outside lower center",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    figure.set_label(_CASES[turn])
    return figure


_CASES = {
    "seg": "A turn of segmentation in four cases. In each, phi, which gets no gradient, pulls the "
    "labels of moving, and L_a compares what comes out with those of fixed. One side labelled: the "
    "guess of the other side learns from it, and from L_sp of the labelled scan. Both labelled: no "
    "guess in L_a, so 0; L_sp remains. Both unlabelled: L_a is set to 0 and nothing is learnt.",
    "reg": "A turn of registration in four cases. In each, phi, which learns, pulls the labels of "
    "moving, and L_a compares what comes out with those of fixed: the expert's labels where there "
    "are any, else a guess, which gets no gradient. It counts in all four cases, beside the "
    "similarity L_i and the regularity L_r.",
}


def _draw_case(axes: Axes, turn: str, sides: tuple[bool, bool], pair: Pair) -> None:
    """One case: ``sides`` says whether an expert labelled moving and fixed."""
    moving, fixed = sides
    counts = turn == "reg" or moving != fixed
    of_phi = LEARNS if turn == "reg" else STILL
    of_guess = LEARNS if turn == "seg" and counts else STILL
    m, f = ("labelled" if known else "unlabelled" for known in sides)
    axes.set_title(f"moving {m}, fixed {f}", fontsize=11, fontweight="bold")
    count = 1 + max(_largest_label(pair.moving), _largest_label(pair.fixed))
    maps = (pair.labels("moving", moving), pair.labels("fixed", fixed))
    for x, letter, scan, labels, known in zip(
        (0.02, 0.76), "mf", (pair.moving, pair.fixed), maps, sides, strict=True
    ):
        _inset(axes, (x, 0.66), scan.image, f"$I_{letter}$", None)
        frame, name = (of_guess, f"$F_S(I_{letter})$, guess")
        if known:
            frame, name = GIVEN, f"$S_{letter}$, expert"
        else:
            axes.annotate("", (x + 0.11, 0.54), (x + 0.11, 0.6), arrowprops=ARROW)
            axes.text(x + 0.13, 0.57, "$F_S$", fontsize=10, va="center", color=frame[0])
        _draw_map_of_labels(_inset(axes, (x, 0.22), scan.image, name, frame), labels, count)

    warped = pair.phi.warp_labels(maps[0][None])[0]
    name = "$S_m \\circ \\varphi$" if moving else "$F_S(I_m) \\circ \\varphi$"
    frame = of_phi if moving or turn == "reg" else of_guess
    _draw_map_of_labels(_inset(axes, (0.39, 0.22), pair.fixed.image, name, frame), warped, count)
    axes.text(
        0.5,
        0.82,
        "$\\varphi = F_R(I_m, I_f)$",
        ha="center",
        va="center",
        fontsize=12,
        color=of_phi[0],
        bbox=BOX | {"edgecolor": of_phi[0], "linestyle": of_phi[2], "linewidth": of_phi[1]},
    )
    axes.annotate("", (0.36, 0.82), (0.25, 0.82), arrowprops=ARROW)
    axes.annotate("", (0.64, 0.82), (0.75, 0.82), arrowprops=ARROW)
    axes.annotate("", (0.5, 0.56), (0.5, 0.75), arrowprops=ARROW)
    axes.text(0.51, 0.66, "pulls", fontsize=9, va="center", style="italic")
    axes.annotate("", (0.38, 0.38), (0.25, 0.38), arrowprops=ARROW)
    compared = ARROW | {"arrowstyle": "<|-|>", "linestyle": "-" if counts else ":"}
    axes.annotate("", (0.75, 0.38), (0.62, 0.38), arrowprops=compared)
    axes.text(0.685, 0.44, "$L_a$", ha="center", fontsize=12)
    axes.text(0.685, 0.3, "counts" if counts else "0", ha="center", fontsize=10, style="italic")

    extra, colour = "no expert: nothing is learnt", STILL[0]
    if turn == "reg":
        extra = "also $L_i(I_m \\circ \\varphi, I_f)$ and $L_r(\\varphi)$"
        colour = "black"
    elif moving or fixed:
        letter = "m" if moving else "f"
        extra, colour = f"also $L_{{sp}}(F_S(I_{letter}), S_{letter})$", LEARNS[0]
    why = ""
    if not counts:
        why = (
            "$L_a$: no $F_S$ in it;  " if moving else "$L_a$ set to 0: guesses agree too easily;  "
        )
    axes.text(0.5, 0.05, why, ha="right" if why else "center", fontsize=10)
    axes.text(0.5, 0.05, extra, ha="left" if why else "center", fontsize=10, color=colour)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_axis_off()


def _inset(
    axes: Axes, corner: tuple[float, float], image: Tensor, name: str, frame: tuple | None
) -> Axes:
    """A small picture with its name below it, in a ``frame``."""
    inner = axes.inset_axes((*corner, 0.22, 0.3))
    draw_image(inner, image)
    inner.text(0.5, -0.05, name, transform=inner.transAxes, ha="center", va="top", fontsize=10)
    if frame is not None:
        colour, width, style = frame
        inner.texts[0].set_color(colour)
        edge = {"edgecolor": colour, "linewidth": width, "linestyle": style, "clip_on": False}
        inner.add_patch(Rectangle((0, 0), 1, 1, fill=False, transform=inner.transAxes, **edge))
    return inner


def _draw_map_of_labels(axes: Axes, labels: Tensor, count: int) -> None:
    """Labels over a fainter image, so that they and not the image are seen."""
    axes.images[0].set_alpha(0.5)
    draw_labels(axes, labels, count)


def _line(frame: tuple, label: str) -> Line2D:
    """A line of the key for a frame."""
    colour, width, style = frame
    return Line2D([], [], color=colour, linewidth=width, linestyle=style, label=label)


def at_a_glance(pair: Pair | None = None) -> Figure:
    """DeepAtlas on one page, A4 across, to be printed: both networks, the two turns, the four
    cases, the losses with their formulas, and what is used alone afterwards; with the images of a
    ``pair``, by default two phantoms.

    Notation of the paper (Xu & Niethammer, MICCAI 2019), but phi for its inverse phi, and f, fixed,
    for its t, target.
    """
    pair = phantom_pair() if pair is None else pair
    figure = plt.figure(figsize=(11.69, 8.27))
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, 1), ylim=(0, 1))
    page.set_axis_off()
    page.text(0.03, 0.955, "DeepAtlas at a glance", fontsize=19, fontweight="bold", va="center")
    page.text(
        0.97,
        0.955,
        "two networks that supply each other with the labels that an expert did not draw",
        fontsize=10,
        ha="right",
        va="center",
        style="italic",
    )
    _glance_at_networks(page, pair)
    for place, text in _GLANCE.items():
        x, y = place
        title, _, body = text.partition("\n")
        page.text(x, y, title, fontsize=11, fontweight="bold", va="top")
        page.text(x, y - 0.037, body, fontsize=9.5, va="top", linespacing=1.75)
    for y, formula in zip((0.375, 0.312, 0.245), _FORMULAS, strict=True):
        page.text(0.53, y, formula, fontsize=11, va="center")
    for y in (0.63, 0.455):
        page.plot((0.03, 0.97), (y, y), color="0.75", linewidth=0.8)
    for low, high in ((0.645, 0.92), (0.47, 0.615), (0.03, 0.44)):
        page.plot((0.5, 0.5), (low, high), color="0.75", linewidth=0.8)
    page.annotate("", (0.515, 0.545), (0.485, 0.545), arrowprops=ARROW | {"arrowstyle": "<|-|>"})
    _glance_at_cases(page)
    figure.set_label(
        "DeepAtlas on one page. The registration network finds phi, which pulls moving to fixed; "
        "the segmentation network labels a scan. In turns, one learns while the other is only "
        "asked: registration minimises similarity, regularity and the anatomy loss; segmentation "
        "the anatomy loss and the supervised loss. The anatomy loss compares pulled labels of "
        "moving with labels of fixed, an expert's or a guess, in four cases by who is labelled. "
        "Afterwards each network works alone."
    )
    return figure


_GLANCE = {  # where on the page -> a title, and lines
    (0.03, 0.61): "Turn of registration: $F_R$ learns, $F_S$ is only asked\n"
    r"minimise   $L_i(I_m \circ \varphi,\; I_f) + \lambda_r\, L_r(\varphi)"
    r" + \lambda_a\, L_a(S_m \circ \varphi,\; S_f)$"
    "\nlook alike  +  move smoothly  +  same anatomy on top of each other\n"
    "where no expert drew $S$, the guess $F_S(I)$ stands in: every pair has $L_a$",
    (0.53, 0.61): "Turn of segmentation: $F_S$ learns, $F_R$ is only asked\n"
    r"minimise   $\lambda_a\, L_a + \lambda_{sp}\, L_{sp}$   by case (below)"
    "\nlike the expert's labels, pulled to an unlabelled scan  +  like the expert's labels\n"
    "so that unlabelled scans teach, too: the pulled labels are their labels",
    (0.53, 0.435): "The losses",
    (0.53, 0.185): "Afterwards, each network works alone\n"
    r"$F_R$: two new scans $\rightarrow$ $\varphi$; no labels and no $F_S$ are needed"
    "\n"
    r"$F_S$: one new scan $\rightarrow$ labels; no atlas and no $F_R$ are needed"
    "\nneither needs an expert: those taught during training only",
}


_FORMULAS = (
    r"$L_i = 1 - \mathrm{NCC}$,   NCC$(a, b) = \dfrac{\sum (a - \bar a)(b - \bar b)}"
    r"{\sqrt{\sum (a - \bar a)^2\; \sum (b - \bar b)^2}}$",
    r"$L_r = \mathrm{mean}_x \; \sum_{c,k,l} \left(\partial^2 u_c\, / \,\partial x_k"
    r" \partial x_l\right)^2$,   $\varphi(x) = x + u(x)$",
    r"$L_a,\; L_{sp} = 1 - \mathrm{mean}_c \; \dfrac{2 \sum_x p_c q_c}"
    r"{\sum_x p_c + \sum_x q_c}$   (soft Dice, structures c)",
)


def _glance_at_networks(page: Axes, pair: Pair) -> None:
    """What goes into each network and what comes out."""
    count = 1 + max(_largest_label(pair.moving), _largest_label(pair.fixed))
    warped = pair.phi.warp(pair.moving.image[None])[0]
    low, size = 0.69, (0.105, 0.15)
    pictures = (
        (0.03, pair.moving.image, "moving $I_m$"),
        (0.14, pair.fixed.image, "fixed $I_f$"),
        (0.378, warped, "$I_m \\circ \\varphi$: like fixed"),
        (0.55, pair.fixed.image, "any scan $I$"),
        (0.8, pair.fixed.image, "guess $F_S(I)$"),
    )
    drawn = []
    for x, image, name in pictures:
        inner = page.inset_axes((x, low, *size))
        draw_image(inner, image)
        inner.text(0.5, -0.05, name, transform=inner.transAxes, ha="center", va="top", fontsize=9.5)
        drawn.append(inner)
    draw_grid(drawn[2], pair.phi)
    _draw_map_of_labels(drawn[4], pair.guesses[1], count)
    page.text(0.03, 0.9, "Registration network $F_R$", fontsize=11, fontweight="bold", va="top")
    page.text(
        0.03, 0.868, "finds where each voxel of fixed looks on moving", fontsize=9.5, va="top"
    )
    page.text(0.53, 0.9, "Segmentation network $F_S$", fontsize=11, fontweight="bold", va="top")
    page.text(0.53, 0.868, "says of each voxel which structure it is", fontsize=9.5, va="top")
    middle = low + size[1] / 2
    for x, name, out in ((0.305, "$F_R$", "$\\varphi$ pulls"), (0.728, "$F_S$", "")):
        edge = {"edgecolor": LEARNS[0], "linewidth": 2}
        page.text(x, middle, name, fontsize=14, ha="center", va="center", bbox=BOX | edge)
        page.annotate("", (x + 0.065, middle), (x + 0.025, middle), arrowprops=ARROW)
        page.annotate("", (x - 0.025, middle), (x - 0.055, middle), arrowprops=ARROW)
        page.text(x + 0.045, middle + 0.02, out, fontsize=9, ha="center")


def _glance_at_cases(page: Axes) -> None:
    """The table of the four cases."""
    page.text(0.03, 0.435, "The four cases", fontsize=11, fontweight="bold", va="top")
    page.text(
        0.03,
        0.4,
        "$S$: an expert's labels;  $F_S(I)$: a guess;  orange: what learns",
        fontsize=9.5,
        va="top",
    )
    titles = (
        "moving",
        "fixed",
        "$L_a$ compares",
        "segmentation\nlearns from",
        "registration\nlearns from",
    )
    columns = (0.03, 0.102, 0.174, 0.313, 0.405)
    for x, title in zip(columns, titles, strict=True):
        page.text(x, 0.325, title, fontsize=9, fontweight="bold", va="center")
    page.plot((0.03, 0.48), (0.29, 0.29), color="0.5", linewidth=0.8)
    for row, (moving, fixed) in enumerate(product((True, False), repeat=2)):
        y = 0.25 - 0.06 * row
        sides = ["$S_m$" if moving else "$F_S(I_m)$", "$S_f$" if fixed else "$F_S(I_f)$"]
        supervised = f"$L_{{sp}}$ of $I_{'m' if moving else 'f'}$"
        learns = {(True, True): supervised, (False, False): "nothing"}
        of_segmentation = learns.get((moving, fixed), f"$L_a$, {supervised}")
        words = (
            "labelled" if moving else "unlabelled",
            "labelled" if fixed else "unlabelled",
            f"{sides[0]}$\\;\\circ\\,\\varphi$  with  {sides[1]}",
            of_segmentation,
            "$L_a, L_i, L_r$",
        )
        looks = ("black", "black", "black", LEARNS[0], LEARNS[0])
        for x, word, colour in zip(columns, words, looks, strict=True):
            colour = STILL[0] if word == "nothing" else colour
            page.text(x, y, word, fontsize=9, va="center", color=colour)


# --- coordinates, drawn ---------------------------------------------------------------------------


def pull_back_figure() -> Figure:
    """How one pixel of warped gets its value: x on the grid of fixed looks at phi(x) = x + u(x) on
    moving, between four pixels, and takes their mean by nearness. All numbers are those of
    ``Deformation.warp`` on a grid of 6 x 5.
    """
    i, j = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    moving = (90 * torch.exp(-((i - 3) ** 2 + (j - 3) ** 2) / 3)).round()
    phi = Deformation(torch.stack([2 - i / 4, j / 8])[None])
    warped = phi.warp(moving[None, None])[0, 0]
    x = (1, 2)
    u, point = phi.displacement[0, :, 1, 2].tolist(), phi.points[0, :, 1, 2].tolist()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 5.2), layout="constrained")
    _draw_numbers(left, warped, "warped, on the grid of fixed: where the value is written")
    _draw_numbers(right, moving, "moving: where the value is read")
    left.add_patch(_pixel(x, MARKS["grid"], 3))
    right.add_patch(_pixel(x, MARKS["grid"], 1.5, "--"))
    right.annotate(
        "",
        point,
        x,
        arrowprops=ARROW | {"color": MARKS["grid"], "linewidth": 2, "shrinkB": 4},
        zorder=5,
    )
    right.plot(*point, "o", color=MARKS["grid"], markeredgecolor="white", markersize=8, zorder=6)
    terms = []
    a, b = (int(value) for value in point)
    for near in product((a, a + 1), (b, b + 1)):
        right.add_patch(_pixel(near, MARKS["points"], 2.5))
        weight = (1 - abs(point[0] - near[0])) * (1 - abs(point[1] - near[1]))
        terms.append((weight, moving[near].item()))
    value = sum(weight * there for weight, there in terms)
    sums = " + ".join(f"{weight:.4g}·{there:.0f}" for weight, there in terms)
    where = f"({point[0]:.2f}, {point[1]:.2f})"
    text = (
        f"x = {x},  u(x) = ({u[0]:.2f}, {u[1]:.2f}),  φ(x) = x + u(x) = {where}\n"
        f"warped(x) = moving(φ(x)) = {sums} = {value:.1f}"
    )
    _write_below(figure, text)
    figure.legend(
        handles=[
            Line2D([], [], color=MARKS["grid"], linewidth=2, label="x, and u(x) from it to φ(x)"),
            Line2D(
                [], [], color=MARKS["points"], linewidth=2.5, label="the four pixels around φ(x)"
            ),
        ],
        loc="upper center",
        ncols=2,
        frameon=False,
    )
    figure.set_label(
        f"Pull-back of one pixel. {text.replace(chr(10), '; ')}, the mean of the four pixels "
        "around that point of moving, weighed by nearness. The arrow leads from the pixel that is "
        "filled to the place that is read."
    )
    return figure


def composition_figure() -> Figure:
    """phi after psi, over three images: x on the grid of fixed, psi(x) on the grid between,
    phi(psi(x)) on moving; with the numbers of ``phi @ psi``, and of the sum that is wrong.
    """
    scan = phantom.make_scan("brain", 0, (32, 32), spacing=7.0)
    centre, turn = 15.5, np.deg2rad(25)
    matrix = torch.eye(3)
    matrix[:2, :2] = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix[:2, 2] = centre - matrix[:2, :2] @ torch.full((2,), centre)
    phi = Deformation.affine(matrix[None], scan.shape)
    shift = torch.tensor([4.0, 2.0])
    psi = Deformation(shift.view(1, 2, 1, 1).expand(1, 2, *scan.shape).clone())
    both = phi @ psi
    x = (8, 16)
    at = {name: map.displacement[0, :, x[0], x[1]] for name, map in (("φ", phi), ("ψ", psi))}
    between = torch.tensor(x) + at["ψ"]
    end = both.points[0, :, x[0], x[1]]
    between_to_end = end - between
    images = (
        ("the grid of fixed: (I ∘ φ) ∘ ψ", both.warp(scan.image[None])[0], torch.tensor(x) + 0.0),
        ("the grid between: I ∘ φ", phi.warp(scan.image[None])[0], between),
        ("moving: I", scan.image, end),
    )
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 5.4), layout="constrained")
    names = ("x", "ψ(x)", "φ(ψ(x))")
    for cell, (title, image, point), name in zip(axes, images, names, strict=True):
        draw_image(cell, image)
        cell.set_title(title, fontsize=11)
        _coordinates(cell)
        cell.plot(*point.tolist(), "o", color=MARKS["grid"], markeredgecolor="white", markersize=9)
        _beside(cell, point, f"{name} = {_numbers(point)}")
    points = [point.tolist() for _, _, point in images]
    for n, name in enumerate("ψφ"):
        arrow = ConnectionPatch(
            points[n],
            points[n + 1],
            "data",
            "data",
            axesA=axes[n],
            axesB=axes[n + 1],
            arrowstyle="-|>",
            color=MARKS["arrows"],
            linewidth=2,
            mutation_scale=16,
            shrinkA=6,
            shrinkB=6,
        )
        figure.add_artist(arrow)
        axes[n].set_xlabel(f"i          the arrow: {name}", fontsize=11)
    wrong = at["ψ"] + at["φ"]
    text = (
        f"$u_ψ$(x) = {_numbers(at['ψ'])},  $u_φ$(ψ(x)) = {_numbers(between_to_end)};  "
        f"their sum is u of φ ∘ ψ at x: {_numbers(end - torch.tensor(x))}\n"
        f"wrong: $u_ψ$(x) + $u_φ$(x) = {_numbers(wrong)}, since φ is asked at ψ(x), not at x"
    )
    _write_below(figure, text)
    figure.set_label(
        f"phi after psi over three images. x = {x} on the grid of fixed; psi(x) = "
        f"{_numbers(between)} on the grid between; phi(psi(x)) = {_numbers(end)} on moving, where "
        f"the value is read. The displacements add as u_psi(x) + u_phi(psi(x)) = "
        f"{_numbers(end - torch.tensor(x))}; with u_phi(x) it were {_numbers(wrong)}."
    )
    return figure


def squaring_figure() -> Figure:
    """One squaring step, u(x) + u(x + u(x)): the displacement of x, and that of the place it leads
    to, between pixels; with the numbers of ``phi @ phi`` on a grid of 8 x 7.
    """
    i, j = torch.meshgrid(torch.arange(8.0), torch.arange(7.0), indexing="ij")
    phi = Deformation(0.28 * torch.stack([2 - j, i - 2])[None])
    squared = phi @ phi
    x = torch.tensor([5.0, 2.0])
    u = phi.displacement[0, :, 5, 2]
    y, z = x + u, squared.points[0, :, 5, 2]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 5.6), layout="constrained")
    for cell, of, title in (
        (left, phi, "φ: one step"),
        (right, squared, "φ ∘ φ: two steps in one"),
    ):
        cell.quiver(
            i,
            j,
            *of.displacement[0],
            color="0.75",
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.003,
        )
        cell.plot(i.flatten(), j.flatten(), ".", color="0.6", markersize=4)
        cell.set(xlim=(-0.7, 7.7), ylim=(-0.7, 6.9), aspect="equal")
        cell.set_title(title, fontsize=11)
        _coordinates(cell)
        cell.plot(*x, "o", color=MARKS["grid"], markersize=8)
    a, b = y.floor().int().tolist()
    nodes = list(product((a, a + 1) if y[0] > a else (a,), (b, b + 1)))
    left.plot(
        *zip(*nodes, strict=True), "s", color=MARKS["points"], fillstyle="none", markersize=13
    )
    steps = ((left, x, y, "grid"), (left, y, z, "points"), (right, x, z, "grid"))
    for cell, begin, end, colour in steps:
        arrow = ARROW | {"color": MARKS[colour], "linewidth": 2.2}
        cell.annotate("", end.tolist(), begin.tolist(), arrowprops=arrow)
    for cell, point, name in ((left, x, "x"), (left, y, "y"), (left, z, "z"), (right, x, "x")):
        _beside(cell, point, f"{name} = {_numbers(point)}", dark=True)
    _beside(right, z, f"z = {_numbers(z)}", dark=True)
    text = (
        f"u(x) = {_numbers(u)} leads to y = x + u(x) = {_numbers(y)};  there, between the squares, "
        f"u(y) = {_numbers(z - y)}\n"
        f"u of φ ∘ φ at x: u(x) + u(y) = {_numbers(z - x)};  not 2 u(x) = {_numbers(2 * u)}"
    )
    _write_below(figure, text)
    figure.set_label(
        "One squaring step. Arrows of a field that turns, on a grid of 8 x 7. "
        f"{text.replace(chr(10), '. ')}. Two short steps follow the curve; at the right, one arrow "
        "leads from x to z."
    )
    return figure


def _write_below(figure: Figure, text: str) -> None:
    """Two lines at the foot of a figure, and room for them and for a key above the panels."""
    figure.get_layout_engine().set(rect=(0, 0.13, 1, 0.8))
    figure.text(0.5, 0.02, text, fontsize=12, ha="center", va="bottom", linespacing=1.5)


def _numbers(point: Tensor) -> str:
    """A pair of coordinates, two places behind the point."""
    a, b = (round(float(value), 2) + 0.0 for value in point)
    return f"({a:.2f}, {b:.2f})"


def _beside(axes: Axes, point: Tensor, text: str, dark: bool = False) -> None:
    """``text`` above a point: dark on white, or white on an image."""
    look = [withStroke(linewidth=3, foreground="white" if dark else "black")]
    axes.annotate(
        text,
        point.tolist(),
        xytext=(15, -3) if dark else (0, 10),
        textcoords="offset points",
        color="black" if dark else "white",
        fontsize=10,
        ha="left" if dark else "center",
        path_effects=look,
        zorder=7,
    )


def _coordinates(axes: Axes) -> None:
    """Ticks with the indices of voxels, and which axis is which."""
    axes.set_axis_on()
    axes.tick_params(labelsize=8)
    axes.set_xlabel("i", fontsize=10)
    axes.set_ylabel("j", fontsize=10)


def _draw_numbers(axes: Axes, image: Tensor, title: str) -> None:
    """A tiny image (I, J) with its numbers."""
    axes.imshow(middle_slice(image), cmap="gray", vmin=0, vmax=130, origin="lower")
    for (i, j), value in np.ndenumerate(image.numpy()):
        axes.text(
            i,
            j - 0.32,
            f"{value:.0f}" if value == round(float(value)) else f"{value:.1f}",
            ha="center",
            va="center",
            color="white" if value < 65 else "black",
            fontsize=8,
        )
    axes.set_title(title, fontsize=11)
    axes.set(xticks=range(image.shape[0]), yticks=range(image.shape[1]))
    _coordinates(axes)


def _pixel(at: tuple[int, int], colour: str, width: float, style: str = "-") -> Rectangle:
    """The frame of a pixel."""
    corner = (at[0] - 0.5, at[1] - 0.5)
    look = {"edgecolor": colour, "linewidth": width, "linestyle": style, "zorder": 4}
    return Rectangle(corner, 1, 1, fill=False, **look)


# --- numbers --------------------------------------------------------------------------------------


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
    colour_of = dict(zip(distinct, line_colours(len(distinct)), strict=True))
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
