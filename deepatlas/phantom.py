"""Synthetic brains and knees, in 2D and 3D, whose true deformations are known.

An anatomy is a *template*: structures given by signed distances, functions of a point in
millimetres. A subject is that template seen through a smooth invertible map ``T``, its world -> the
template, so two subjects are related by ``T_moving^-1(T_fixed(x))``. As between people, some things
differ that no deformation explains: the phase of the folds, a lesion or an osteophyte, the
contrast. Nothing is stored: a subject is redrawn from the numbers in its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from scipy import ndimage
from torch import Tensor

from .data import Scan, rescale_intensities
from .warp import Deformation

STRUCTURES: dict[str, tuple[str, ...]] = {
    "brain": (
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
    "knee": (
        "background",
        "femur",
        "tibia",
        "patella",
        "femoral cartilage",
        "tibial cartilage",
        "muscle",
        "fat",
    ),
}

# Mean grey values of T1-weighted MRI. Tissues, not structures: thalamus and putamen, or muscle and
# cartilage, share one, so that a network has to learn where a structure lies and not only how
# bright it is.
TISSUES = {
    "brain": {
        "csf": 0.24,
        "grey": 0.53,
        "deep grey": 0.69,
        "pale": 0.80,
        "white": 0.87,
        "lesion": 0.60,
    },
    "knee": {
        "skin": 0.40,
        "fat": 0.92,
        "marrow": 0.76,
        "muscle": 0.42,
        "fibre": 0.14,
        "fluid": 0.28,
    },
}

# One layer of paint: (structure, or None to keep the label below; signed distance in mm; tissue).
Layer = tuple[str | None, np.ndarray, str]


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
        k = 2 * np.pi / rng.uniform(*wavelengths, count) * direction
        amplitude = rng.normal(size=(count, channels))
        amplitude *= np.sqrt(2) / np.linalg.norm(amplitude, axis=0)
        return cls(
            np.float32(k), np.float32(rng.uniform(0, 2 * np.pi, count)), np.float32(amplitude)
        )

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, D) points in mm -> (N, C) values."""
        return np.cos(points @ self.k + self.phase) @ self.amplitude

    def distance(self, points: np.ndarray) -> np.ndarray:
        """(N,) first-order distance in mm to the surface ``f = 0``: ``|f| / |grad f|``, without the
        radial part.
        """
        angle = points @ self.k + self.phase
        gradient = np.sin(angle) @ (self.amplitude * self.k.T)
        radial = (gradient * points).sum(1) ** 2 / (points**2).sum(1).clip(1e-6)
        slope = np.sqrt(((gradient**2).sum(1) - radial).clip(0))
        return np.abs(np.cos(angle) @ self.amplitude)[:, 0] / (slope + 0.03)


def _ellipsoid(
    p: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...], tilt: float = 0.0
) -> np.ndarray:
    """Signed distance in mm, negative inside, to an ellipsoid turned by ``tilt`` radians about the
    third axis.
    """
    c, s = np.cos(tilt), np.sin(tilt)
    q = (p - np.float32(centre)) @ np.float32([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    level = np.linalg.norm(q / np.float32(radii), axis=1)
    return level * (level - 1) / np.linalg.norm(q / np.float32(radii) ** 2, axis=1).clip(1e-6)


def _tube(p: np.ndarray, *nodes: tuple[float, float, float, float]) -> np.ndarray:
    """Signed distance to a chain of straight tubes through ``nodes`` (x, y, z, radius)."""
    distances = []
    for a, step in zip(np.float32(nodes), np.diff(np.float32(nodes), axis=0), strict=False):
        offset, axis = p - a[:3], step[:3]
        t = (offset @ axis / (axis @ axis)).clip(0, 1)
        distances.append(np.linalg.norm(offset - t[:, None] * axis, axis=1) - a[3] - t * step[3])
    return np.min(distances, axis=0)


def _join(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Union of two shapes with a fillet of about ``blend`` mm between them."""
    h = (blend - np.abs(a - b)).clip(0) / blend
    return np.minimum(a, b) - h * h * blend / 4


def _cut(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Shape ``a`` without shape ``b``."""
    return -_join(-a, b, blend)


@dataclass(frozen=True)
class Variation:
    """What no deformation explains: a shift of the fold pattern, and a lesion's or an osteophyte's
    place and size.
    """

    folds: np.ndarray  # (F,) radians
    place: np.ndarray  # (3,) mm
    radius: float  # mm; 0: there is none


def brain(p: np.ndarray, variation: Variation) -> list[Layer]:
    """Layers of the template brain at the points ``p`` (N, 3), RAS mm; a later layer covers the
    earlier ones.
    """
    # the template is symmetric, its subjects are not
    q = np.abs(p * np.float32([1, 0, 0])) + p * np.float32([0, 1, 1])
    cerebellum = _join(
        _ellipsoid(q, (24, -45, -40), (27, 30, 23)), _ellipsoid(q, (0, -43, -37), (14, 29, 24)), 6
    )
    stem = _tube(q, (0, -6, -8, 11), (0, -8, -34, 11), (0, -16, -62, 7))
    stem = _join(stem, _ellipsoid(q, (0, -2, -30), (16, 11, 13)), 6)
    hull = _join(
        _ellipsoid(q, (0, 0, -2), (63, 86, 68)), _ellipsoid(q, (22, -16, 4), (45, 64, 58)), 10
    )
    hull = _cut(hull, q[:, 2] + 27, 6)  # the underside of the frontal and occipital lobes
    hull = _join(hull, _ellipsoid(q, (43, 4, -24), (22, 42, 23), -0.15), 4)  # temporal lobes
    hull = _cut(hull, np.minimum(cerebellum - 1.5, np.maximum(stem - 2, q[:, 2] + 16)), 3)
    cortex = _fold(p, q, hull, variation.folds)
    white = np.minimum(
        cortex + 3.8, np.maximum(_ellipsoid(q, (0, 8, -2), (30, 38, 22)), cortex + 1)
    )
    lesion = np.maximum(np.linalg.norm(p - variation.place, axis=1) - variation.radius, white + 1)
    twigs = np.abs(np.sin(np.arctan2(q[:, 2] + 42, q[:, 1] + 33) * 11)) * 4.5 - 2.4
    twigs = np.maximum(_ellipsoid(q, (18, -42, -41), (21, 24, 17)), twigs)
    return [
        ("background", np.minimum(hull, np.minimum(cerebellum, stem)) - 0.6, "csf"),
        ("cortex", cortex, "grey"),
        ("white matter", white, "white"),
        *[(None, lesion, "lesion")] * (variation.radius > 0),
        ("cerebellum", cerebellum, "grey"),
        (None, np.minimum(twigs, _ellipsoid(q, (14, -35, -41), (15, 12, 8))), "white"),
        ("brain stem", stem, "pale"),
        ("ventricles", _ellipsoid(q, (0, -23, -36), (7, 4, 10)), "csf"),
        *_deep_structures(q),
    ]


def _fold(p: np.ndarray, q: np.ndarray, hull: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """The hull with fissures and sulci cut in: thin sheets where a random field on the hull is
    zero.
    """
    centre, radii = np.float32([0, 0, -2]), np.float32([66, 86, 68])
    # 0 in the middle, 1 on the surface
    rho = np.linalg.norm((p - centre) / radii, axis=1).clip(0.05)
    folds = Waves.draw(np.random.default_rng(7), 1, 3, (22, 30), len(phase))
    folds = Waves(folds.k, folds.phase + phase, folds.amplitude)
    wander = Waves.draw(np.random.default_rng(8), 4, 3, (25, 45), 8)(p)
    # lean, as sulci do
    sheet = folds.distance((p - centre) / rho[:, None] ** 0.85 + 4 * wander[:, :3]) * rho**0.85
    # not through the corpus callosum
    midline = np.maximum(q[:, 0], -_ellipsoid(q, (0, 0, 0), (40, 46, 27)))
    depth = np.minimum(-hull, midline).clip(0)
    reach = np.minimum(17 + 4 * wander[:, 3], 60 * rho - 19)  # of a sulcus, mm below the surface
    sylvian = (
        np.abs(q[:, 2] + 7 + 0.35 * (q[:, 1] - 10))
        + (38 - q[:, 0]).clip(0)
        + (q[:, 1] - 40).clip(0)
    )
    sulcus = np.minimum(
        np.hypot(sheet, (depth - reach).clip(0)), np.hypot(sylvian, (depth - 28).clip(0))
    )
    # wider at the surface
    return np.maximum(hull, 0.3 + 1.1 * np.exp(-depth / 4) - np.minimum(sulcus, midline))


def _deep_structures(q: np.ndarray) -> list[Layer]:
    ventricles = [
        # lateral
        _tube(
            q, (7, 40, 3, 3), (6, 20, 10, 4.5), (9, -10, 15, 4.5), (20, -30, 10, 6), (23, -52, 4, 3)
        ),
        # their horns in the temporal lobes
        _tube(q, (20, -30, 10, 6), (35, -14, -9, 3), (33, 8, -19, 2)),
        np.maximum(q[:, 0] - 1.6, _ellipsoid(q, (0, 8, -4), (9, 16, 11))),  # third
    ]
    caudate = _join(
        _ellipsoid(q, (12.5, 30, 5), (6, 11, 9.5)),
        _tube(q, (13, 24, 11, 4.5), (18, -4, 18, 2.5)),
        3,
    )
    pallidum = _ellipsoid(q, (19, 13, -1), (5, 11, 7), 0.35)
    return [
        ("thalamus", _ellipsoid(q, (11.5, 0, 3), (10, 16, 10.5), 0.35), "deep grey"),
        ("caudate", caudate, "grey"),
        ("pallidum", pallidum, "pale"),
        ("putamen", _cut(_ellipsoid(q, (26, 17, 0), (6, 18, 11), 0.2), pallidum, 1), "deep grey"),
        ("hippocampus", _tube(q, (23, 12, -19, 6), (28, -4, -18, 5.5), (24, -20, -5, 5)), "grey"),
        ("ventricles", np.min(ventricles, axis=0), "csf"),
    ]


def knee(p: np.ndarray, variation: Variation) -> list[Layer]:
    """Layers of the template knee at the points ``p`` (N, 3), RAS mm, as in ``brain``; the joint is
    at z = -10.
    """
    q = np.abs(p * np.float32([1, 0, 0])) + p * np.float32([0, 1, 1])
    femur, tibia, patella = _bones(q)
    if variation.radius > 0:
        femur = _join(femur, np.linalg.norm(p - variation.place, axis=1) - variation.radius, 4)
    facing = np.minimum(
        _ellipsoid(q, (20, -10, 2), (26, 34, 20)), _ellipsoid(q, (0, 24, 18), (26, 16, 20))
    )
    on_femur = np.maximum(np.maximum(femur - 2.6, facing), 0.2 - tibia)
    on_tibia = np.max(
        [tibia - 2.6, q[:, 0] - 35, 9 - q[:, 0], -15.5 - q[:, 2], 0.2 - femur], axis=0
    )
    joint = np.maximum(np.minimum(femur, tibia) - 5, np.abs(q[:, 2] + 8) - 8)
    # menisci, tendon, cruciate ligament
    fibres = [
        np.maximum(joint, 28 - np.hypot(q[:, 0], q[:, 1] + 4)),
        _tube(q, (0, 46, 120, 4), (0, 50, 44, 4), (0, 50, 0, 4), (0, 28, -50, 4)),
        _tube(q, (4, -18, 8, 4), (2, 4, -13, 4)),
    ]
    leg = _tube(q * np.float32([1, 0.92, 1]), (0, -2, 160, 66), (0, 0, 10, 57), (0, -4, -160, 52))
    muscles = [
        _tube(q, (16, 30, 160, 34), (16, 29, 80, 25), (27, 20, 40, 9)),  # quadriceps
        _tube(q, (24, -32, 160, 28), (27, -36, 50, 18), (34, -36, -5, 9)),  # hamstrings
        _tube(q, (16, -36, 22, 8), (18, -38, -30, 19), (18, -32, -160, 28)),  # gastrocnemius
        _tube(q, (27, 14, -60, 10), (24, 14, -160, 18)),  # tibialis anterior
    ]
    bones = ("femur", femur), ("tibia", tibia), ("patella", patella)
    return [
        ("background", leg - 1.5, "skin"),
        ("fat", leg, "fat"),
        ("muscle", np.maximum(np.min(muscles, axis=0), leg + 5), "muscle"),
        ("background", joint, "fluid"),
        ("background", np.min(fibres, axis=0), "fibre"),
        ("femoral cartilage", on_femur, "muscle"),
        ("tibial cartilage", on_tibia, "muscle"),
        *((name, bone, "fibre") for name, bone in bones),  # a dark rind of dense bone
        *((None, bone + 1.3, "marrow") for _, bone in bones),
    ]


def _bones(q: np.ndarray) -> tuple[np.ndarray, ...]:
    condyle = _join(
        _ellipsoid(q, (22, -10, 13), (17, 26, 20)), _ellipsoid(q, (17, 10, 18), (18, 19, 19)), 8
    )
    shaft = _tube(q, (0, 2, 28, 20), (0, 4, 62, 15), (0, 6, 160, 14))
    femur = _cut(_join(condyle, shaft, 16), _ellipsoid(q, (0, -26, 0), (8, 26, 17)), 4)
    shaft = _tube(q, (0, -1, -34, 22), (0, 0, -62, 15), (0, 2, -160, 13))
    tibia = _cut(_join(_ellipsoid(q, (0, -3, -27), (40, 29, 26)), shaft, 12), -13.2 - q[:, 2], 3)
    return femur, np.maximum(tibia, 1 - femur), _ellipsoid(q, (0, 42, 22), (20, 10, 21))


# A 2D scan is a plane of the template: its origin, and the directions of its two voxel axes. The
# brain's is an axial plane tilted forwards until it meets every structure; the knee's runs
# sagittally through a
# condyle.
PLANES = {
    "brain": np.float32([[0, 0, -3], [1, 0, 0], [0, 0.91, 0.41]]),
    "knee": np.float32([[15, 0, 0], [0, 1, 0], [0, 0, 1]]),
}


@dataclass(frozen=True)
class Motion:
    """``T(x) = exp(v)(A x)``: a subject's world (mm) -> the template (mm)."""

    affine: np.ndarray  # A: (D + 1, D + 1)
    velocity: Waves  # v: D channels, mm per unit of time

    def to_template(self, points: np.ndarray) -> np.ndarray:
        """``T(x)`` of (N, D) points in mm."""
        return self._flow(_apply(self.affine, points), 1.0)

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """``T^-1(p)`` of (N, D) points in mm: the same path, backwards in time."""
        return _apply(np.linalg.inv(self.affine), self._flow(points, -1.0))

    def _flow(self, x: np.ndarray, time: float, steps: int = 4) -> np.ndarray:
        h, v = np.float32(time / steps), self.velocity
        for _ in range(steps):  # Runge-Kutta of order 4
            a = v(x)
            b = v(x + h / 2 * a)
            c = v(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + v(x + h * c))
        return x


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (points @ matrix[:-1, :-1].T + matrix[:-1, -1]).astype(np.float32)


def _motion(anatomy: str, seed: int, subject: int, dims: int) -> Motion:
    rng = np.random.default_rng([ord(anatomy[0]), seed, subject, dims])
    turn = rng.normal(0, 0.03, (dims, dims))
    affine = np.eye(dims + 1)
    affine[:-1, :-1] += turn - turn.T + np.diag(rng.normal(0, 0.03, dims))
    affine[:-1, -1] = rng.normal(0, 1, dims)
    waves = Waves.draw(rng, dims, dims, (60, 140), 12)
    # standard deviation of each component, mm per unit of time
    speed = {"brain": 2.0, "knee": 3.5}[anatomy]
    return Motion(affine, Waves(waves.k, waves.phase, waves.amplitude * np.float32(speed)))


def _variation(anatomy: str, seed: int, subject: int) -> Variation:
    rng = np.random.default_rng([ord(anatomy[0]), seed, subject, 0])
    folds, place = rng.normal(0, 0.4, 32), rng.normal(size=3)
    if anatomy == "brain":
        place = place / np.linalg.norm(place) * (36, 48, 24) + (0, 0, 18)  # in the white matter
    else:
        # on the rim of a condyle
        place = 38 * np.sign(place[0]), rng.uniform(-25, 10), rng.uniform(0, 14)
    return Variation(np.float32(folds), np.float32(place), rng.uniform(3, 6) * (rng.random() < 0.7))


def make_scan(
    anatomy: str, subject: int, shape: tuple[int, ...], *, spacing: float, seed: int = 0
) -> Scan:
    """Subject number ``subject``, labelled, on a grid of ``shape`` voxels of ``spacing`` mm centred
    on world 0.

    Any grid shows the same subject; what 2D and 3D scans of one number show is unrelated. In 2D,
    the world's first two axes lie in the plane. Raises ValueError for an unknown anatomy or an
    impossible grid.
    """
    if anatomy not in STRUCTURES:
        raise ValueError(f"the anatomy must be one of {', '.join(STRUCTURES)}, got {anatomy!r}")
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
    world = _apply(*_grid(affine, shape))
    points = _motion(anatomy, seed, subject, dims).to_template(world)
    if dims == 2:
        points = PLANES[anatomy][0] + points @ PLANES[anatomy][1:]
    layers = {"brain": brain, "knee": knee}[anatomy](points, _variation(anatomy, seed, subject))
    labels = np.zeros(len(points), np.uint8)
    for name, distance, _ in layers:
        if name is not None:
            labels[distance < 0] = STRUCTURES[anatomy].index(name)
    rng = np.random.default_rng([ord(anatomy[0]), seed, subject, 10 + dims])
    image = _image(anatomy, layers, world, shape, rng)
    name = f"{anatomy}-s{seed}-{subject:04d}"
    return Scan(
        name,
        name,
        torch.from_numpy(rescale_intensities(image, name))[None],
        affine,
        torch.from_numpy(labels.reshape(shape)),
    )


def _grid(affine: Tensor, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The part (D + 1, D + 1) of ``affine`` that takes voxels to mm, and all voxels (N, D)."""
    axes = [*range(len(shape)), 3]
    return affine.numpy()[np.ix_(axes, axes)], np.indices(shape, np.float32).reshape(
        len(shape), -1
    ).T


def _image(
    anatomy: str, layers: list[Layer], world: np.ndarray, shape: tuple[int, ...], rng: Generator
) -> np.ndarray:
    """Grey values as a scanner sees them: partial volume, bias field, texture, blur and Rician
    noise.
    """
    spacing = np.abs(world[1, -1] - world[0, -1])
    image, air = np.float32([[0], [1]]).repeat(len(world), axis=1)
    grey = {tissue: mean + rng.normal(0, 0.05) for tissue, mean in TISSUES[anatomy].items()}
    for _, distance, tissue in layers:
        # of the voxel inside a flat surface at this distance
        share = (0.5 - distance / spacing).clip(0, 1)
        image += share * (grey[tissue] - image)
        air *= 1 - share
    image *= 1 + 0.08 * Waves.draw(rng, 1, len(shape), (150, 300), 4)(world)[:, 0]
    image *= 1 + 0.02 * Waves.draw(rng, 1, len(shape), (8, 25), 16)(world)[:, 0]
    blurred = ndimage.gaussian_filter(image.reshape(shape), 0.5)
    noisy = np.hypot(blurred + rng.normal(0, 0.017, shape), rng.normal(0, 0.017, shape))
    # brains come without their skull
    return noisy * (1 - air.reshape(shape)) if anatomy == "brain" else noisy


def true_deformation(moving: Scan, fixed: Scan) -> Deformation:
    """``phi = M^-1 T_m^-1 T_f F``: u (1, D, I, J, K) in voxels of ``moving``, on the grid of
    ``fixed``.

    ``F`` and ``M`` are the affines that the scans have now, so they may have been resampled or
    aligned. Raises ValueError unless both are scans of ``make_scan``, of one anatomy and dimension.
    """
    (one, *m), (other, *f) = _subject(moving), _subject(fixed)
    dims = len(fixed.shape)
    if one != other or len(moving.shape) != dims:
        raise ValueError(
            "both scans must show one anatomy in one dimension, got "
            f"{moving.id} of shape {moving.shape} and {fixed.id} of shape {fixed.shape}: pair them anew"
        )
    (to_world, voxels), (of_moving, _) = (
        _grid(fixed.affine, fixed.shape),
        _grid(moving.affine, moving.shape),
    )
    template = _motion(one, *f, dims).to_template(_apply(to_world, voxels))
    u = _apply(np.linalg.inv(of_moving), _motion(one, *m, dims).to_world(template)) - voxels
    return Deformation(torch.from_numpy(u.T.reshape(1, dims, *fixed.shape).copy()))


def _subject(scan: Scan) -> tuple[str, int, int]:
    match = re.fullmatch(r"(brain|knee)-s(\d+)-(\d+)", scan.subject)
    if match is None:
        raise ValueError(
            "the true deformation is known only between scans of phantom.make_scan, got subject "
            f"{scan.subject!r}: register real scans instead"
        )
    return match[1], int(match[2]), int(match[3])
