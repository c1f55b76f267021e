"""Coordinates, drawn: how a deformation pulls, composes and squares, with its numbers."""

from __future__ import annotations

from itertools import product
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from .. import phantom
from ..warp import Deformation
from .drawing import ARROW, draw_image, middle_slice
from .palette import MARKS


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
        "Pull-back of one pixel, on two grids: left, warped, right, moving. "
        f"{text.replace(chr(10), '; ')}, the mean of the four pixels around that point of "
        "moving, weighed by nearness. The arrow leads from the pixel that is filled to the place "
        "that is read."
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
    points = [tuple(point.tolist()) for _, _, point in images]
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
        "One squaring step. Left, arrows of a field that turns, on a grid of 8 x 7; right, the "
        f"same field squared. From x = ({x[0]:.0f}, {x[1]:.0f}): "
        f"{text.replace(chr(10), '. ')}. Two short steps follow the curve; at the right, one arrow "
        "leads from x to z."
    )
    return figure


def _write_below(figure: Figure, text: str) -> None:
    """Two lines at the foot of a figure, and room for them and for a key above the panels."""
    figure.set_layout_engine("constrained", rect=(0, 0.13, 1, 0.8))
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
        tuple(point.tolist()),
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


def _pixel(
    at: tuple[int, int], colour: str, width: float, style: Literal["-", "--"] = "-"
) -> Rectangle:
    """The frame of a pixel."""
    corner = (at[0] - 0.5, at[1] - 0.5)
    frame = Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=width, zorder=4)
    frame.set_linestyle(style)
    return frame
