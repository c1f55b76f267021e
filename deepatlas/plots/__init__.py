"""Figures: pure functions of data that return a matplotlib figure; ``show`` displays one with its
alternative text, ``description`` is the text that a figure of this package has of itself.

palette.py       colours: of structures, of curves, of what is drawn over images
drawing.py       what figures are drawn with: planes, letters, a scale, a key, lattices
scans.py         one scan
deformations.py  a registration, one slice warped in several ways, motion through the plane
runs.py          one run: its training, its losses, one test pair, the Dice of its cases
curves.py        many runs
cases.py         the method, drawn: the four cases
glance.py        the method on one page
coordinates.py   a deformation, drawn with its numbers
"""

from __future__ import annotations

import base64
import html
import io

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure

from ..errors import printable
from .cases import LEARNS, Pair, cases_figure, phantom_pair
from .coordinates import composition_figure, pull_back_figure, squaring_figure
from .curves import dice_against_n_figure, sweep_figure
from .deformations import deformations_figure, registration_figure, through_plane_figure
from .drawing import (
    ENDS,
    draw_folds,
    draw_grid,
    draw_image,
    draw_key,
    draw_labels,
    draw_letters,
    draw_moved_lattice,
    draw_scale,
    letters_of,
    literal,
    middle_plane,
    middle_slice,
    spacing_of,
)
from .glance import at_a_glance
from .palette import MARKS, PALETTE, colour_bytes, colours, line_colours
from .runs import dice_boxes, example_figure, loss_curves, training_figure
from .scans import scan_figure

__all__ = [
    "ENDS",
    "LEARNS",
    "MARKS",
    "PALETTE",
    "Pair",
    "at_a_glance",
    "cases_figure",
    "colour_bytes",
    "colours",
    "composition_figure",
    "deformations_figure",
    "description",
    "dice_against_n_figure",
    "dice_boxes",
    "draw_folds",
    "draw_grid",
    "draw_image",
    "draw_key",
    "draw_labels",
    "draw_letters",
    "draw_moved_lattice",
    "draw_scale",
    "example_figure",
    "letters_of",
    "line_colours",
    "literal",
    "loss_curves",
    "middle_plane",
    "middle_slice",
    "phantom_pair",
    "picture",
    "pull_back_figure",
    "registration_figure",
    "scan_figure",
    "show",
    "spacing_of",
    "squaring_figure",
    "sweep_figure",
    "through_plane_figure",
    "training_figure",
]


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
    return str(figure.get_label())
