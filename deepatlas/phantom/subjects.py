"""Subjects: a template seen through a smooth invertible map, by a scanner.

A subject is the template seen through ``T``, its world -> the template, so two subjects are related
by ``T_moving^-1(T_fixed(x))``. Nothing is stored: a subject is redrawn from the numbers in its
name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from scipy import ndimage
from torch import Tensor

from ..data import Scan, rescale_intensities
from ..errors import UserError
from ..warp import Deformation
from .brain import BRAIN
from .knee import KNEE
from .shapes import Anatomy, Layer, Variation, Waves

ANATOMIES = {"brain": BRAIN, "knee": KNEE}


def anatomy_of(name: str) -> Anatomy:
    """The anatomy of this name; UserError with the names there are."""
    if name not in ANATOMIES:
        raise UserError(f"the anatomy must be one of {', '.join(ANATOMIES)}, got {name!r}")
    return ANATOMIES[name]


# --- motion ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Motion:
    """``T(x) = exp(v)(A x)``: a subject's world (mm) -> the template (mm)."""

    affine: np.ndarray  # A: (D + 1, D + 1)
    velocity: Waves  # v: D channels, mm per unit of time

    def to_template(self, points: np.ndarray) -> np.ndarray:
        """``T(x)`` of (N, D) points in mm."""
        return self._flow(apply(self.affine, points), 1.0)

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """``T^-1(p)`` of (N, D) points in mm: the same path, backwards in time."""
        return apply(np.linalg.inv(self.affine), self._flow(points, -1.0))

    def _flow(self, x: np.ndarray, time: float, steps: int = 4) -> np.ndarray:
        h, v = np.float32(time / steps), self.velocity
        for _ in range(steps):  # Runge-Kutta of order 4
            a = v(x)
            b = v(x + h / 2 * a)
            c = v(x + h / 2 * b)
            d = v(x + h * c)
            x = x + h / 6 * (a + 2 * b + 2 * c + d)
        return x


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``A x + t`` of (N, D) points, by [[A, t], [0, 1]]."""
    linear, shift = matrix[:-1, :-1], matrix[:-1, -1]
    return (points @ linear.T + shift).astype(np.float32)


def _rng(anatomy: str, *numbers: int) -> Generator:
    return np.random.default_rng([anatomy_of(anatomy).draw, *numbers])


def draw_motion(anatomy: str, seed: int, subject: int, dims: int) -> Motion:
    """How a subject lies and is shaped: an affine map, then a smooth flow."""
    rng = _rng(anatomy, seed, subject, dims)
    turn = rng.normal(0, 0.03, (dims, dims))
    scale = rng.normal(0, 0.03, dims)
    affine = np.eye(dims + 1)
    affine[:-1, :-1] += turn - turn.T + np.diag(scale)
    affine[:-1, -1] = rng.normal(0, 1, dims)
    waves = Waves.draw(rng, dims, dims, (60, 140), 12)
    speed = np.float32(anatomy_of(anatomy).speed)
    return Motion(affine, Waves(waves.k, waves.phase, waves.amplitude * speed))


def draw_variation(anatomy: str, seed: int, subject: int) -> Variation:
    """What distinguishes a subject beside its motion."""
    rng = _rng(anatomy, seed, subject, 0)
    folds = rng.normal(0, 0.4, 32)
    place = anatomy_of(anatomy).place(rng, rng.normal(size=3))
    radius = rng.uniform(3, 6)
    if rng.random() >= 0.7:  # some have neither lesion nor osteophyte
        radius = 0.0
    return Variation(folds.astype(np.float32), np.asarray(place, np.float32), radius)


# --- scans ----------------------------------------------------------------------------------------


def make_scan(
    anatomy: str, subject: int, shape: tuple[int, ...], *, spacing: float, seed: int = 0
) -> Scan:
    """Subject number ``subject``, labelled, on a grid of ``shape`` voxels of ``spacing`` mm centred
    on world 0.

    Any grid shows the same subject; what 2D and 3D scans of one number show is unrelated. In 2D,
    the world's first two axes lie in the plane; where they lead in the person, ``Anatomy.plane``
    says, and figures have their letters from it. Raises UserError for an unknown anatomy,
    ValueError for an impossible grid.
    """
    kind = anatomy_of(anatomy)
    if len(shape) not in (2, 3) or min(shape) < 2:
        raise ValueError(
            f"the shape must be 2 or 3 numbers of voxels, each at least 2, got {tuple(shape)}"
        )
    if not spacing > 0 or subject < 0 or seed < 0:
        raise ValueError(
            "the spacing must be above 0 mm, subject and seed at least 0, "
            f"got spacing={spacing}, subject={subject}, seed={seed}"
        )
    dims = len(shape)
    affine = torch.diag(torch.tensor([spacing] * 3 + [1.0], dtype=torch.float64))
    affine[:dims, 3] = -spacing * (torch.tensor(shape, dtype=torch.float64) - 1) / 2

    # the points of the template that the voxels show
    world = apply(*grid_of(affine, shape))
    points = draw_motion(anatomy, seed, subject, dims).to_template(world)
    if dims == 2:
        points = kind.plane[0] + points @ kind.plane[1:]

    layers = kind.template(points, draw_variation(anatomy, seed, subject))
    labels = np.zeros(len(points), np.uint8)
    for layer in layers:
        if layer.structure is not None:
            labels[layer.distance < 0] = kind.structures.index(layer.structure)
    image = _image(kind, layers, world, shape, _rng(anatomy, seed, subject, 10 + dims))
    name = name_of(anatomy, seed, subject)
    return Scan(
        id=name,
        subject=name,
        image=torch.from_numpy(rescale_intensities(image, name))[None],
        affine=affine,
        labels=torch.from_numpy(labels.reshape(shape)),
    )


def name_of(anatomy: str, seed: int, subject: int) -> str:
    """Of a subject and its scan: what ``true_deformation`` draws it again from."""
    return f"{anatomy}-s{seed}-{subject:04d}"


def grid_of(affine: Tensor, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The part (D + 1, D + 1) of ``affine`` that takes voxels to mm, and all voxels (N, D)."""
    dims = len(shape)
    axes = [*range(dims), 3]
    to_world = affine.numpy()[np.ix_(axes, axes)]
    voxels = np.indices(shape, np.float32).reshape(dims, -1).T
    return to_world, voxels


def _image(
    kind: Anatomy, layers: list[Layer], world: np.ndarray, shape: tuple[int, ...], rng: Generator
) -> np.ndarray:
    """Grey values as a scanner sees them: partial volume, bias field, texture, blur and Rician
    noise.
    """
    spacing = np.abs(world[1, -1] - world[0, -1])
    grey = {}
    for tissue, mean in kind.tissues.items():
        grey[tissue] = mean + rng.normal(0, 0.05)

    # layer by layer, each with its share of a voxel
    image = np.zeros(len(world), np.float32)
    air = np.ones(len(world), np.float32)
    for layer in layers:
        # of the voxel inside a flat surface at this distance
        share = (0.5 - layer.distance / spacing).clip(0, 1)
        image += share * (grey[layer.tissue] - image)
        air *= 1 - share

    bias = Waves.draw(rng, 1, len(shape), (150, 300), 4)(world)[:, 0]
    image *= 1 + 0.08 * bias
    texture = Waves.draw(rng, 1, len(shape), (8, 25), 16)(world)[:, 0]
    image *= 1 + 0.02 * texture

    # the magnitude of a signal with noise in both its channels
    blurred = ndimage.gaussian_filter(image.reshape(shape), 0.5)
    real = blurred + rng.normal(0, 0.017, shape)
    imaginary = rng.normal(0, 0.017, shape)
    noisy = np.hypot(real, imaginary)
    return noisy if kind.air else noisy * (1 - air.reshape(shape))


# --- truth ----------------------------------------------------------------------------------------


def true_deformation(moving: Scan, fixed: Scan) -> Deformation:
    """``phi = M^-1 T_m^-1 T_f F``: u (1, D, I, J, K) in voxels of ``moving``, on the grid of
    ``fixed``.

    ``F`` and ``M`` are the affines that the scans have now, so they may have been resampled or
    aligned. Raises ValueError unless both are scans of ``make_scan``, of one anatomy and dimension.
    """
    dims = len(fixed.shape)
    anatomy, moving_seed, moving_number = _read_name(moving)
    other, fixed_seed, fixed_number = _read_name(fixed)
    if anatomy != other or len(moving.shape) != dims:
        raise ValueError(
            "both scans must show one anatomy in one dimension, got "
            f"{moving.id} of shape {moving.shape} and {fixed.id} of shape {fixed.shape}: "
            "pair them anew"
        )
    # voxels of fixed -> its world -> template -> world of moving -> voxels of moving
    to_world, voxels = grid_of(fixed.affine, fixed.shape)
    of_fixed = draw_motion(anatomy, fixed_seed, fixed_number, dims)
    of_moving = draw_motion(anatomy, moving_seed, moving_number, dims)
    template = of_fixed.to_template(apply(to_world, voxels))
    world = of_moving.to_world(template)
    moving_to_world, _ = grid_of(moving.affine, moving.shape)
    u = apply(np.linalg.inv(moving_to_world), world) - voxels
    return Deformation(torch.from_numpy(u.T.reshape(1, dims, *fixed.shape).copy()))


def _read_name(scan: Scan) -> tuple[str, int, int]:
    """Anatomy, seed and number of a subject of ``make_scan``."""
    match = re.fullmatch(r"(.+)-s(\d+)-(\d+)", scan.subject)
    if match is None or match[1] not in ANATOMIES:
        raise ValueError(
            "the true deformation is known only between scans of phantom.make_scan, got subject "
            f"{scan.subject!r}: register real scans instead"
        )
    return match[1], int(match[2]), int(match[3])
