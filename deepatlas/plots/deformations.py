"""Deformations: a registration, one slice warped in several ways, motion through the plane."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from torch import Tensor

from ..data import Scan
from ..warp import Deformation
from .drawing import (
    draw_folds,
    draw_grid,
    draw_image,
    draw_key,
    draw_labels,
    draw_letters,
    draw_moved_lattice,
    draw_scale,
    key_square,
    labels_in_words,
    largest_label,
    middle_slice,
    spacing_of,
)
from .palette import MARKS


def registration_figure(
    moving: Scan, fixed: Scan, phi: Deformation, structures: Sequence[str] = ()
) -> Figure:
    """The middle axial plane of moving, with the lattice that phi carries there, of fixed, and of
    warped with the lattice it pulled; below them moving - fixed and warped - fixed, on one scale
    from the data, and det J; all six as large, in the proportions of the voxels of fixed.
    """
    spacing = spacing_of(fixed)
    count = len(structures) or 1 + max(largest_label(moving), largest_label(fixed))
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
        f"{_folds_percent(phi):.1f} % of this plane. {labels_in_words(seen)}"
    )
    return figure


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
    figure.set_label(
        "One slice warped, with the lattice of moving as it was pulled in orange and the pixels "
        f"that fold in pink; from left to right, {columns} panels a row: {'; '.join(said)}."
    )
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
        draw_image(cell, image[plane][None], title, spacing[list(axes)].tolist())
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
        labels = None if moving.labels is None else phi.warp_labels(moving.labels[None])[0]
        draw(cells[2], f"{title}: warped", coronal, warped, labels)
        draw_grid(cells[2], in_cut)

    draw_scale(grid[0, 0], spacing[:2].tolist())
    marks = [_mark("grid", "the lattice of moving, as it was pulled")]
    draw_key(figure, structures, seen, [*marks, _mark("arrows", "where a voxel looks")])
    figure.set_label(
        f"Motion through the plane, in mm, in the axial slice, at most {largest:.1f} either way; "
        f"arrows in the coronal cut; warped. {'; '.join(title for title, _ in panels)}."
    )
    return figure


def _mark(name: str, label: str) -> Line2D:
    """A line of the key for what is drawn over images."""
    if name == "folds":
        return key_square(MARKS[name], label)
    return Line2D([], [], color=MARKS[name], linewidth=1.5, label=label)


def _folds_percent(phi: Deformation) -> float:
    """Of the voxels of the middle slice, those where det J <= 0, in percent."""
    return 100 * float((middle_slice(phi.jacobian_determinant()[0]) <= 0).mean())


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
