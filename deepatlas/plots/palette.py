"""Colours: of structures, of curves, and of what is drawn over images."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb

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
