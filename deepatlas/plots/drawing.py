"""What figures are drawn with: planes of images and labels, letters, a scale, a key, lattices."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from nibabel import aff2axcodes
from nibabel.affines import voxel_sizes
from torch import Tensor

from .. import phantom
from ..data import Scan
from ..errors import printable
from ..warp import Deformation
from .palette import MARKS, colours


def literal(name: str) -> str:
    """``name`` as matplotlib shows it letter by letter: no formula between its dollars."""
    return printable(name).replace("$", r"\$")


ENDS = {  # the letters at the low and the high end of an axis that leads towards the key
    "R": ("L", "R"),
    "L": ("R", "L"),
    "A": ("P", "A"),
    "P": ("A", "P"),
    "S": ("I", "S"),
    "I": ("S", "I"),
}
ARROW = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14}


def letters_of(scan: Scan) -> list[tuple[str, str]]:
    """The letters at the low and the high end of the axes i, j and k; of a 2D scan, k is across
    it.

    They follow the affine. The world of a 2D phantom is a plane, its x and y; what these are in the
    person, its anatomy says: a knee's plane is sagittal.
    """
    to_person = scan.affine.cpu().numpy().copy()
    if len(scan.shape) == 2 and scan.source is None:
        plane = plane_of(scan.subject)
        if plane is not None:
            to_person[:3, :2] = plane.T @ to_person[:2, :2]
            to_person[:3, 2] = np.cross(to_person[:3, 0], to_person[:3, 1])
    return [ENDS[code] for code in aff2axcodes(to_person)]


def plane_of(subject: str) -> np.ndarray | None:
    """(2, 3): where x and y of a 2D phantom of this name lead in the person, R, A and S; None for
    any other name.
    """
    found = re.fullmatch(r"(.+)-s\d+-\d+", subject)  # as ``phantom.name_of`` makes it
    if found is None or found[1] not in phantom.ANATOMIES:
        return None
    return phantom.ANATOMIES[found[1]].plane[1:]


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
    draw_ends(axes, [letters_of(scan)[axis] for axis in plane])


def draw_ends(axes: Axes, ends: Sequence[tuple[str, str]]) -> None:
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
        handles.append(key_square(palette[number - 1], literal(name)))
    handles += marks
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 5 if figure.get_figwidth() < 11 else 7),
            fontsize=8 if len(handles) < 25 else 6,
            frameon=False,
        )


def key_square(colour: str | tuple[float, float, float], label: str) -> Line2D:
    """A line of a key."""
    return Line2D([], [], marker="s", linestyle="", color=colour, label=label)


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


def largest_label(scan: Scan) -> int:
    """The highest number in the labels of a scan; 0 if it has none."""
    return 0 if scan.labels is None else int(scan.labels.max())


def labels_in_words(seen: Collection[int]) -> str:
    """How many structures are seen, in words."""
    count = len(set(seen) - {0})
    return f"Labels of {count} structures in colour." if count else "No labels."
