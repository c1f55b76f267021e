"""What phantoms are made of: random waves, signed distances to shapes, layers of paint.

Points are (N, D) in millimetres, float32. A signed distance is (N,), negative inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class Waves:
    """A band-limited random field ``f(x) = sum_f amplitude_f cos(k_f . x + phase_f)``, known at
    every point.
    """

    k: np.ndarray  # (D, F) radians per mm
    phase: np.ndarray  # (F,) radians
    amplitude: np.ndarray  # (F, C)

    @classmethod
    def draw(
        cls, rng: Generator, channels: int, dims: int, wavelengths: tuple[float, float], count: int
    ) -> Waves:
        """``count`` plane waves in random directions, wavelengths in mm; every channel has variance
        1.
        """
        direction = rng.normal(size=(dims, count))
        direction /= np.linalg.norm(direction, axis=0)
        wavelength = rng.uniform(*wavelengths, count)
        k = 2 * np.pi / wavelength * direction
        amplitude = rng.normal(size=(count, channels))
        amplitude *= np.sqrt(2) / np.linalg.norm(amplitude, axis=0)
        phase = rng.uniform(0, 2 * np.pi, count)
        return cls(k.astype(np.float32), phase.astype(np.float32), amplitude.astype(np.float32))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, D) points in mm -> (N, C) values."""
        return np.cos(points @ self.k + self.phase) @ self.amplitude

    def shifted(self, phase: np.ndarray) -> Waves:
        """The same waves, each moved on by its ``phase`` (F,), in radians."""
        return Waves(self.k, self.phase + phase, self.amplitude)

    def distance(self, points: np.ndarray) -> np.ndarray:
        """(N,) first-order distance in mm to the surface ``f = 0``: ``|f| / |grad f|``, without the
        radial part.
        """
        angle = points @ self.k + self.phase
        value = np.cos(angle) @ self.amplitude
        gradient = np.sin(angle) @ (self.amplitude * self.k.T)
        # what of the squared gradient points away from the origin
        squared_radius = (points**2).sum(1).clip(1e-6)
        radial = (gradient * points).sum(1) ** 2 / squared_radius
        slope = np.sqrt(((gradient**2).sum(1) - radial).clip(0))
        return np.abs(value)[:, 0] / (slope + 0.03)


# --- signed distances -----------------------------------------------------------------------------


def length(p: np.ndarray) -> np.ndarray:
    """(N,): the lengths of (N, 3) vectors; NumPy's sum over so short an axis takes far longer."""
    return np.sqrt(p[:, 0] ** 2 + p[:, 1] ** 2 + p[:, 2] ** 2)


def mirrored(p: np.ndarray) -> np.ndarray:
    """Points with |x| for x: a template is symmetric, its subjects are not."""
    across = np.array([1, 0, 0], np.float32)
    return np.abs(p * across) + p * (1 - across)


def ellipsoid(
    p: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...], tilt: float = 0.0
) -> np.ndarray:
    """Distance to an ellipsoid turned by ``tilt`` radians about the third axis."""
    c, s = np.cos(tilt), np.sin(tilt)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    q = (p - np.array(centre, np.float32)) @ turn
    # |q / radii| is 1 on the surface; divided by its slope it is about a distance
    sides = np.array(radii, np.float32)
    level = length(q / sides)
    slope = length(q / sides**2).clip(1e-6)
    return level * (level - 1) / slope


def ball(p: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Distance to a ball."""
    return length(p - centre) - radius


def tube(p: np.ndarray, *nodes: tuple[float, float, float, float]) -> np.ndarray:
    """Distance to a chain of straight tubes through ``nodes`` (x, y, z, radius)."""
    starts = np.array(nodes, np.float32)
    steps = np.diff(starts, axis=0)
    distances = []
    for start, step in zip(starts, steps, strict=False):
        offset, axis = p - start[:3], step[:3]
        # how far along this piece the nearest point of its axis lies: 0 at its start, 1 at its end
        t = (offset @ axis / (axis @ axis)).clip(0, 1)
        to_axis = length(offset - t[:, None] * axis)
        distances.append(to_axis - start[3] - t * step[3])
    return np.min(distances, axis=0)


def join(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Union of two shapes with a fillet of about ``blend`` mm between them."""
    h = (blend - np.abs(a - b)).clip(0) / blend
    return np.minimum(a, b) - h * h * blend / 4


def cut(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Shape ``a`` without shape ``b``."""
    return -join(-a, b, blend)


# --- anatomies ------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """One layer of paint: it covers the earlier ones where its distance is negative."""

    structure: str | None  # None: the label below stays
    distance: np.ndarray  # (N,) signed, in mm
    tissue: str


@dataclass(frozen=True)
class Variation:
    """What no deformation explains: a shift of the fold pattern, and a lesion's or an osteophyte's
    place and size.
    """

    folds: np.ndarray  # (F,) radians
    place: np.ndarray  # (3,) mm
    radius: float  # mm; 0: there is none


@dataclass(frozen=True, eq=False)
class Anatomy:
    """All that is said of one kind of phantom."""

    structures: tuple[str, ...]  # structures[0] is the background
    # Mean grey value of each tissue. Tissues, not structures: several structures share one, so that
    # a network has to learn where a structure lies and not only how bright it is.
    tissues: dict[str, float]
    # the layers of the template at points (N, 3), RAS mm; of one subject's variation
    template: Callable[[np.ndarray, Variation], list[Layer]]
    # a 2D scan is a plane of the template: its origin, and the directions of its two voxel axes
    plane: np.ndarray  # (3, 3) mm
    draw: int  # of its random numbers, another for each anatomy
    speed: float  # of a subject's motion: SD of each component, mm per unit of time
    # where a lesion or an osteophyte is, in mm, from three normal numbers, or from further draws
    place: Callable[[Generator, np.ndarray], tuple[float, ...] | np.ndarray]
    air: bool  # is there noise outside the body? (skull-stripped heads have 0 there)
