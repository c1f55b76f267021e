"""The method on one page, to be printed."""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cases import BOX, LEARNS, STILL, Pair, draw_map_of_labels, phantom_pair
from .drawing import ARROW, draw_grid, draw_image, largest_label


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
    count = 1 + max(largest_label(pair.moving), largest_label(pair.fixed))
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
    draw_map_of_labels(drawn[4], pair.guesses[1], count)
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
