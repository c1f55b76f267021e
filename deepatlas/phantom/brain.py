"""The template brain: its structures as signed distances, in RAS millimetres."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from .shapes import (
    Anatomy,
    Layer,
    Variation,
    Waves,
    ball,
    cut,
    ellipsoid,
    join,
    length,
    mirrored,
    tube,
)


def brain(p: np.ndarray, variation: Variation) -> list[Layer]:
    """Layers of the template brain at the points ``p`` (N, 3), RAS mm; a later layer covers the
    earlier ones.
    """
    q = mirrored(p)
    cerebellum = _cerebellum(q)
    stem = _brain_stem(q)
    hull = _hull(q, cerebellum, stem)
    cortex = _fold(p, q, hull, variation.folds)
    # 3.8 mm below the cortex's surface, but filled in the middle
    core = ellipsoid(q, (0, 8, -2), (30, 38, 22))
    white = np.minimum(cortex + 3.8, np.maximum(core, cortex + 1))
    liquor = np.minimum(hull, np.minimum(cerebellum, stem)) - 0.6
    layers = [
        Layer("background", liquor, "csf"),
        Layer("cortex", cortex, "grey"),
        Layer("white matter", white, "white"),
    ]
    if variation.radius > 0:
        lesion = np.maximum(ball(p, variation.place, variation.radius), white + 1)
        layers.append(Layer(None, lesion, "lesion"))
    return [
        *layers,
        Layer("cerebellum", cerebellum, "grey"),
        Layer(None, _white_of_the_cerebellum(q), "white"),
        Layer("brain stem", stem, "pale"),
        Layer("ventricles", ellipsoid(q, (0, -23, -36), (7, 4, 10)), "csf"),  # the fourth
        *_deep_structures(q),
    ]


def _cerebellum(q: np.ndarray) -> np.ndarray:
    hemispheres = ellipsoid(q, (24, -45, -40), (27, 30, 23))
    vermis = ellipsoid(q, (0, -43, -37), (14, 29, 24))
    return join(hemispheres, vermis, 6)


def _white_of_the_cerebellum(q: np.ndarray) -> np.ndarray:
    """Twigs that fan out from a core, as on a sagittal section."""
    angle = np.arctan2(q[:, 2] + 42, q[:, 1] + 33)
    twigs = np.abs(np.sin(angle * 11)) * 4.5 - 2.4
    twigs = np.maximum(ellipsoid(q, (18, -42, -41), (21, 24, 17)), twigs)
    core = ellipsoid(q, (14, -35, -41), (15, 12, 8))
    return np.minimum(twigs, core)


def _brain_stem(q: np.ndarray) -> np.ndarray:
    stem = tube(q, (0, -6, -8, 11), (0, -8, -34, 11), (0, -16, -62, 7))
    pons = ellipsoid(q, (0, -2, -30), (16, 11, 13))
    return join(stem, pons, 6)


def _hull(q: np.ndarray, cerebellum: np.ndarray, stem: np.ndarray) -> np.ndarray:
    """The cerebrum without its folds."""
    front = ellipsoid(q, (0, 0, -2), (63, 86, 68))
    back = ellipsoid(q, (22, -16, 4), (45, 64, 58))
    hull = join(front, back, 10)
    hull = cut(hull, q[:, 2] + 27, 6)  # the underside of the frontal and occipital lobes
    temporal_lobes = ellipsoid(q, (43, 4, -24), (22, 42, 23), -0.15)
    hull = join(hull, temporal_lobes, 4)
    lower_stem = np.maximum(stem - 2, q[:, 2] + 16)
    return cut(hull, np.minimum(cerebellum - 1.5, lower_stem), 3)


def _fold(p: np.ndarray, q: np.ndarray, hull: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The hull with fissures and sulci cut in: thin sheets where a random field on the hull is
    zero.
    """
    # rho is 0 in the middle, 1 on the surface
    centre = np.array([0, 0, -2], np.float32)
    radii = np.array([66, 86, 68], np.float32)
    rho = length((p - centre) / radii).clip(0.05)

    # sheets below the zeros of the field; they lean, as sulci do
    folds = Waves.draw(np.random.default_rng(7), 1, 3, (22, 30), len(phase)).shifted(phase)
    wander = Waves.draw(np.random.default_rng(8), 4, 3, (25, 45), 8)(p)
    on_hull = (p - centre) / rho[:, None] ** 0.85 + 4 * wander[:, :3]
    sheet = folds.distance(on_hull) * rho**0.85

    # depth below the surface, that of the fissure between the hemispheres included, which does not
    # run through the corpus callosum
    callosum = ellipsoid(q, (0, 0, 0), (40, 46, 27))
    midline = np.maximum(q[:, 0], -callosum)
    depth = np.minimum(-hull, midline).clip(0)

    # a sheet, and the Sylvian fissure, down to where they end
    reach = np.minimum(17 + 4 * wander[:, 3], 60 * rho - 19)  # mm below the surface
    slope = np.abs(q[:, 2] + 7 + 0.35 * (q[:, 1] - 10))
    sylvian = slope + (38 - q[:, 0]).clip(0) + (q[:, 1] - 40).clip(0)
    sheet = np.hypot(sheet, (depth - reach).clip(0))
    sylvian = np.hypot(sylvian, (depth - 28).clip(0))
    sulcus = np.minimum(sheet, sylvian)

    width = 0.3 + 1.1 * np.exp(-depth / 4)  # wider at the surface
    return np.maximum(hull, width - np.minimum(sulcus, midline))


def _deep_structures(q: np.ndarray) -> list[Layer]:
    thalamus = ellipsoid(q, (11.5, 0, 3), (10, 16, 10.5), 0.35)
    head = ellipsoid(q, (12.5, 30, 5), (6, 11, 9.5))
    tail = tube(q, (13, 24, 11, 4.5), (18, -4, 18, 2.5))
    caudate = join(head, tail, 3)
    pallidum = ellipsoid(q, (19, 13, -1), (5, 11, 7), 0.35)
    putamen = cut(ellipsoid(q, (26, 17, 0), (6, 18, 11), 0.2), pallidum, 1)
    hippocampus = tube(q, (23, 12, -19, 6), (28, -4, -18, 5.5), (24, -20, -5, 5))
    return [
        Layer("thalamus", thalamus, "deep grey"),
        Layer("caudate", caudate, "grey"),
        Layer("pallidum", pallidum, "pale"),
        Layer("putamen", putamen, "deep grey"),
        Layer("hippocampus", hippocampus, "grey"),
        Layer("ventricles", _ventricles(q), "csf"),
    ]


def _ventricles(q: np.ndarray) -> np.ndarray:
    lateral = tube(
        q, (7, 40, 3, 3), (6, 20, 10, 4.5), (9, -10, 15, 4.5), (20, -30, 10, 6), (23, -52, 4, 3)
    )
    temporal_horns = tube(q, (20, -30, 10, 6), (35, -14, -9, 3), (33, 8, -19, 2))
    third = np.maximum(q[:, 0] - 1.6, ellipsoid(q, (0, 8, -4), (9, 16, 11)))
    return np.min([lateral, temporal_horns, third], axis=0)


def _in_the_white_matter(_: Generator, normal: np.ndarray) -> np.ndarray:
    return normal / np.linalg.norm(normal) * (36, 48, 24) + (0, 0, 18)


BRAIN = Anatomy(
    structures=(
        "background",
        "white matter",
        "cortex",
        "ventricles",
        "thalamus",
        "caudate",
        "putamen",
        "pallidum",
        "hippocampus",
        "brain stem",
        "cerebellum",
    ),
    tissues={  # of T1-weighted MRI
        "csf": 0.24,
        "grey": 0.53,
        "deep grey": 0.69,
        "pale": 0.80,
        "white": 0.87,
        "lesion": 0.60,
    },
    template=brain,
    # axial, but tilted forwards
    plane=np.array([[0, 0, -3], [1, 0, 0], [0, 0.91, 0.41]], np.float32),
    draw=98,
    speed=2.0,
    place=_in_the_white_matter,
    air=False,
)
