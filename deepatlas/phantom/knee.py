"""The template knee: its structures as signed distances, in RAS millimetres."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from .shapes import Anatomy, Layer, Variation, ball, cut, ellipsoid, join, mirrored, tube


def knee(p: np.ndarray, variation: Variation) -> list[Layer]:
    """Layers of the template knee at the points ``p`` (N, 3), RAS mm, as in ``brain``; the joint is
    at z = -10.
    """
    q = mirrored(p)
    femur, tibia, patella = _bones(q)
    if variation.radius > 0:
        femur = join(femur, ball(p, variation.place, variation.radius), 4)
    on_femur, on_tibia = _cartilage(q, femur, tibia)
    joint = np.maximum(np.minimum(femur, tibia) - 5, np.abs(q[:, 2] + 8) - 8)
    slim = q * np.array([1, 0.92, 1], np.float32)
    leg = tube(slim, (0, -2, 160, 66), (0, 0, 10, 57), (0, -4, -160, 52))
    muscle = np.maximum(_muscles(q), leg + 5)
    return [
        Layer("background", leg - 1.5, "skin"),
        Layer("fat", leg, "fat"),
        Layer("muscle", muscle, "muscle"),
        Layer("background", joint, "fluid"),
        Layer("background", _fibres(q, joint), "fibre"),
        Layer("femoral cartilage", on_femur, "muscle"),
        Layer("tibial cartilage", on_tibia, "muscle"),
        # a dark rind of dense bone
        Layer("femur", femur, "fibre"),
        Layer("tibia", tibia, "fibre"),
        Layer("patella", patella, "fibre"),
        Layer(None, femur + 1.3, "marrow"),
        Layer(None, tibia + 1.3, "marrow"),
        Layer(None, patella + 1.3, "marrow"),
    ]


def _bones(q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Femur, tibia and patella."""
    back = ellipsoid(q, (22, -10, 13), (17, 26, 20))
    front = ellipsoid(q, (17, 10, 18), (18, 19, 19))
    condyles = join(back, front, 8)
    shaft = tube(q, (0, 2, 28, 20), (0, 4, 62, 15), (0, 6, 160, 14))
    notch = ellipsoid(q, (0, -26, 0), (8, 26, 17))
    femur = cut(join(condyles, shaft, 16), notch, 4)

    head = ellipsoid(q, (0, -3, -27), (40, 29, 26))
    shaft = tube(q, (0, -1, -34, 22), (0, 0, -62, 15), (0, 2, -160, 13))
    plateau = -13.2 - q[:, 2]
    tibia = cut(join(head, shaft, 12), plateau, 3)
    tibia = np.maximum(tibia, 1 - femur)

    patella = ellipsoid(q, (0, 42, 22), (20, 10, 21))
    return femur, tibia, patella


def _cartilage(
    q: np.ndarray, femur: np.ndarray, tibia: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sheets of 2.6 mm on femur and tibia, where the two face each other."""
    below = ellipsoid(q, (20, -10, 2), (26, 34, 20))
    behind_the_patella = ellipsoid(q, (0, 24, 18), (26, 16, 20))
    facing = np.minimum(below, behind_the_patella)
    on_femur = np.maximum(np.maximum(femur - 2.6, facing), 0.2 - tibia)
    # from 9 to 35 mm beside the midline, on top
    edges = [q[:, 0] - 35, 9 - q[:, 0], -15.5 - q[:, 2]]
    on_tibia = np.max([tibia - 2.6, *edges, 0.2 - femur], axis=0)
    return on_femur, on_tibia


def _fibres(q: np.ndarray, joint: np.ndarray) -> np.ndarray:
    menisci = np.maximum(joint, 28 - np.hypot(q[:, 0], q[:, 1] + 4))
    tendon = tube(q, (0, 46, 120, 4), (0, 50, 44, 4), (0, 50, 0, 4), (0, 28, -50, 4))
    cruciate_ligament = tube(q, (4, -18, 8, 4), (2, 4, -13, 4))
    return np.min([menisci, tendon, cruciate_ligament], axis=0)


def _muscles(q: np.ndarray) -> np.ndarray:
    quadriceps = tube(q, (16, 30, 160, 34), (16, 29, 80, 25), (27, 20, 40, 9))
    hamstrings = tube(q, (24, -32, 160, 28), (27, -36, 50, 18), (34, -36, -5, 9))
    gastrocnemius = tube(q, (16, -36, 22, 8), (18, -38, -30, 19), (18, -32, -160, 28))
    tibialis_anterior = tube(q, (27, 14, -60, 10), (24, 14, -160, 18))
    return np.min([quadriceps, hamstrings, gastrocnemius, tibialis_anterior], axis=0)


def _on_the_rim_of_a_condyle(rng: Generator, normal: np.ndarray) -> tuple[float, float, float]:
    return 38 * np.sign(normal[0]), rng.uniform(-25, 10), rng.uniform(0, 14)


KNEE = Anatomy(
    structures=(
        "background",
        "femur",
        "tibia",
        "patella",
        "femoral cartilage",
        "tibial cartilage",
        "muscle",
        "fat",
    ),
    tissues={  # of T1-weighted MRI
        "skin": 0.40,
        "fat": 0.92,
        "marrow": 0.76,
        "muscle": 0.42,
        "fibre": 0.14,
        "fluid": 0.28,
    },
    template=knee,
    # sagittal, through a condyle
    plane=np.array([[15, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32),
    draw=107,
    speed=3.5,
    place=_on_the_rim_of_a_condyle,
    air=True,
)
