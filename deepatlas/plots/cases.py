"""The method, drawn: what a turn compares in each of the four cases."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from .. import phantom
from ..data import Scan
from ..warp import Deformation
from .drawing import ARROW, draw_image, draw_labels, largest_label

# the frame of what: colour, width, style
GIVEN = ("#0072B2", 2.0, "-")  # an expert's labels
LEARNS = ("#D55E00", 3.0, "-")
STILL = ("#777777", 1.5, "--")  # gets no gradient
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
        return _labels_of((self.moving, self.fixed)[number]) if expert else self.guesses[number]


def _labels_of(scan: Scan) -> Tensor:
    """The labels of a scan that must have some."""
    if scan.labels is None:
        raise ValueError(f"scan {scan.id} has no labels: give a labelled one")
    return scan.labels


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
    known = _labels_of(seen)
    least, found = torch.full(scan.shape, torch.inf), torch.zeros(scan.shape, dtype=known.dtype)
    for step in product(range(-reach, reach + 1), repeat=2):
        image, labels = (x.roll(step, (-2, -1)) for x in (seen.image, known))
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
    for axes, (moving, fixed) in zip(grid.flat, product((True, False), repeat=2), strict=True):
        _draw_case(axes, turn, (moving, fixed), pair)
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
    count = 1 + max(largest_label(pair.moving), largest_label(pair.fixed))
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
        draw_map_of_labels(_inset(axes, (x, 0.22), scan.image, name, frame), labels, count)

    warped = pair.phi.warp_labels(maps[0][None])[0]
    name = "$S_m \\circ \\varphi$" if moving else "$F_S(I_m) \\circ \\varphi$"
    frame = of_phi if moving or turn == "reg" else of_guess
    draw_map_of_labels(_inset(axes, (0.39, 0.22), pair.fixed.image, name, frame), warped, count)
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


def draw_map_of_labels(axes: Axes, labels: Tensor, count: int) -> None:
    """Labels over a fainter image, so that they and not the image are seen."""
    axes.images[0].set_alpha(0.5)
    draw_labels(axes, labels, count)


def _line(frame: tuple, label: str) -> Line2D:
    """A line of the key for a frame."""
    colour, width, style = frame
    return Line2D([], [], color=colour, linewidth=width, linestyle=style, label=label)
