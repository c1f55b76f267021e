"""Lesson 02, deformations: looking up, composing, inverting, folding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..warp import Deformation, sample, voxel_grid
from . import Exercise, Mistake

# Fields are smooth: nobody asks what a field that jumps from voxel to voxel means.


def smooth_field(shape: tuple[int, ...], size: float, generator: Generator) -> Tensor:
    """A smooth displacement (1, D, I, J, K) of about ``size`` voxels."""
    coarse = torch.randn(1, len(shape), *[3] * len(shape), generator=generator)
    return size * F.interpolate(
        coarse, size=shape, mode="bilinear" if len(shape) == 2 else "trilinear"
    )


def uneven_shape(dims: int) -> tuple[int, ...]:
    """A grid with no two sides alike, so that exchanged axes show."""
    return (9, 7, 8)[:dims]


# --- looking up -----------------------------------------------------------------------------------


def _image_and_field(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    return torch.rand(1, 2, *uneven_shape(dims), generator=generator), smooth_field(
        uneven_shape(dims), 1.5, generator
    )


def _plus(u: Tensor) -> Tensor:
    """x + u(x)."""
    return voxel_grid(tuple(u.shape[2:]), u) + u


def looked_up(
    points: Callable = _plus,
    *,
    last_first: bool = True,
    align_corners: bool = True,
    count: int = 1,
    padding: str = "border",
    mode: str = "bilinear",
) -> Callable:
    """``warp(moving, u)`` by grid_sample, with one thing after another to get wrong."""

    def warp(moving: Tensor, u: Tensor) -> Tensor:
        size = torch.tensor(moving.shape[2:]).view(1, -1, *[1] * (u.ndim - 2))
        grid = (2 * points(u) / (size - count) - 1).movedim(1, -1)
        grid = grid.flip(-1) if last_first else grid
        return F.grid_sample(moving, grid, mode, padding, align_corners)

    return warp


WARP = Exercise(
    "Warping by looking up",
    _image_and_field,
    looked_up(),
    (
        "Every voxel x of the result looks up the moving image at x + u(x): first make the coordinates of every voxel.",
        "grid_sample wants points in [-1, 1] from the first voxel's centre to the last one's (align_corners=True), with "
        "the last axis first, in the last dimension of the tensor.",
        "points = 2 * (x + u) / (size - 1) - 1, then points.movedim(1, -1).flip(-1).",
    ),
    {
        "axes not reversed": Mistake(
            looked_up(last_first=False),
            (
                "With u = 0, a square image comes out transposed.",
                "grid_sample reads a point as (x, y, z), where x runs along the LAST axis of the tensor.",
                "Reverse the coordinates: .flip(-1) on the dimension of the coordinates.",
            ),
        ),
        "align_corners": Mistake(
            looked_up(align_corners=False),
            (
                "With u = 0 the result is not the moving image, but slightly shrunk towards its middle.",
                "Without align_corners, -1 and 1 are the outer edges of the image, half a voxel beyond the centres of the "
                "first and last voxel; your scale is for the centres.",
                "F.grid_sample(..., align_corners=True)",
            ),
        ),
        "size instead of size - 1": Mistake(
            looked_up(count=0),
            (
                "With u = 0 the result is not the moving image, but slightly enlarged, away from the first voxel.",
                "From the first voxel's centre to the last one's it is size - 1 steps, not size.",
                "2 * points / (size - 1) - 1",
            ),
        ),
        "pushed": Mistake(
            looked_up(lambda u: voxel_grid(tuple(u.shape[2:]), u) - u),
            (
                "The image moves the other way.",
                "u says where to LOOK in the moving image. The picture then moves against u.",
                "x + u, not x - u.",
            ),
        ),
        "u alone": Mistake(
            looked_up(lambda u: u),
            (
                "The whole result is a blur of one corner of the image.",
                "u is where to look relative to the voxel's own place.",
                "Add the coordinates of each voxel, e.g. from torch.meshgrid(..., indexing='ij').",
            ),
        ),
        "u already in [-1, 1]": Mistake(
            looked_up(
                lambda u: (
                    voxel_grid(tuple(u.shape[2:]), u)
                    + u * (torch.tensor(u.shape[2:]) - 1).view(1, -1, *[1] * (u.ndim - 2)) / 2
                )
            ),
            (
                "The displacements are far too large.",
                "You add u after the coordinates were scaled to [-1, 1]. Here u is in voxels.",
                "Add first, scale afterwards: 2 * (x + u) / (size - 1) - 1.",
            ),
        ),
        "zeros outside": Mistake(
            looked_up(padding="zeros"),
            (
                "It is right inside, but dark along the border.",
                "Where a voxel looks beyond the image it should see the nearest border voxel; by default it sees 0, an edge "
                "that is not in the body.",
                "F.grid_sample(..., padding_mode='border')",
            ),
        ),
    },
    gradient=True,
)

# --- one after the other --------------------------------------------------------------------------


def _two_fields(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    return smooth_field(uneven_shape(dims), 0.8, generator), smooth_field(
        uneven_shape(dims), 0.8, generator
    )


def _composed(u_phi: Tensor, u_psi: Tensor) -> Tensor:
    return (Deformation(u_phi) @ Deformation(u_psi)).displacement


COMPOSE = Exercise(
    "One deformation after another",
    _two_fields,
    _composed,
    (
        "(phi @ psi)(x) = phi(psi(x)): put psi(x) = x + u_psi(x) into phi, and subtract x.",
        "The displacement is u_psi(x) + u_phi(psi(x)): u_phi is looked up where psi leads.",
        "u_psi + sample(u_phi, Deformation(u_psi).points)",
    ),
    {
        "sum": Mistake(
            lambda u_phi, u_psi: u_phi + u_psi,
            (
                "It is nearly right where both fields are small, and never quite.",
                "Displacements add only where they are constant: after psi you stand elsewhere, and u_phi is another there.",
                "u_phi has to be looked up at psi(x), not at x.",
            ),
        ),
        "the other order": Mistake(
            lambda u_phi, u_psi: _composed(u_psi, u_phi),
            (
                "You have psi(phi(x)).",
                "In phi(psi(x)) the point meets psi first: psi says where to look, phi goes on from there.",
                "Look up u_phi with the points of psi, and add u_psi.",
            ),
        ),
        "looked up only": Mistake(
            lambda u_phi, u_psi: sample(u_phi, Deformation(u_psi).points),
            (
                "One of the two movements is missing.",
                "From x you first move by u_psi(x), then by u_phi at the new place.",
                "Add u_psi.",
            ),
        ),
        "warped like an image": Mistake(
            lambda u_phi, u_psi: u_phi + sample(u_psi, Deformation(u_psi).points),
            (
                "You look up the field of psi where psi leads.",
                "At psi(x) it is the other field, u_phi, that says how to go on.",
                "Exchange the two: u_psi + (u_phi looked up at psi(x)).",
            ),
        ),
    },
    gradient=True,
)

# --- backwards ------------------------------------------------------------------------------------


def _gentle_field(dims: int, generator: Generator) -> tuple[Tensor]:
    return (smooth_field(uneven_shape(dims), 0.5, generator),)


def _inverse(u: Tensor) -> Tensor:
    return Deformation(u).inverse().displacement


INVERSE = Exercise(
    "The inverse by a fixed point",
    _gentle_field,
    _inverse,
    (
        "We look for w with phi(x + w(x)) = x, that is, w(x) = -u(x + w(x)).",
        "Begin with w = -u, and put what you have into the right side, 30 times.",
        "for _ in range(30): w = -sample(u, Deformation(w).points)",
    ),
    {
        "minus u": Mistake(
            lambda u: -u,
            (
                "It is nearly right where u is small or constant.",
                "-u(x) undoes the step that begins at x. The step to undo is the one that ENDS at x.",
                "That is where the loop begins, not where it ends: repeat w = -u(x + w).",
            ),
        ),
        "one repetition": Mistake(
            lambda u: -sample(u, Deformation(-u).points),
            (
                "It is better than -u, but not there yet.",
                "One step of the fixed point halves the error or so; thirty make it vanish.",
                "Put it into a loop.",
            ),
        ),
        "not at the new place": Mistake(
            lambda u: -sample(u, Deformation(u).points),
            (
                "You look in the direction of u.",
                "The inverse looks up u where w leads, x + w(x), not where u leads.",
                "sample(u, Deformation(w).points), beginning with w = -u.",
            ),
        ),
        "points forgotten": Mistake(
            lambda u: sample(-u, -u),
            (
                "The result hardly depends on where it is.",
                "sample wants points, x + w(x), not displacements.",
                "sample(u, Deformation(w).points)",
            ),
        ),
        "sign lost": Mistake(
            lambda u: sample(u, Deformation(-u).points),
            (
                "It moves the wrong way: composed with phi it doubles the movement.",
                "w(x) = MINUS u(x + w(x)).",
                "w = -sample(...)",
            ),
        ),
    },
    tolerance=1e-3,
)

# --- folding, with a planted bug ------------------------------------------------------------------


def jacobian_determinant_with_a_bug(u: Tensor) -> Tensor:
    """The planted bug of the lesson, from a public repository: a + b for a - b in a difference."""
    matrix = _differences(u, lambda after, before: (after + before) / 2)
    return torch.linalg.det(matrix + torch.eye(u.shape[1]))


def _differences(
    u: Tensor, second: Callable = lambda after, before: (after - before) / 2
) -> Tensor:
    """du_c / dx_axis of a displacement (1, D, I, J, K) inside the border, (..., c, axis);
    ``second`` is for the axes after the first."""
    inner, columns = (slice(1, -1),) * (u.ndim - 2), []
    for axis in range(2, u.ndim):
        places = [
            (*inner[: axis - 2], part, *inner[axis - 1 :])
            for part in (slice(2, None), slice(None, -2))
        ]
        after, before = (u[(slice(None), slice(None), *place)] for place in places)
        columns.append((after - before) / 2 if axis == 2 else second(after, before))
    return torch.stack(columns, 2).movedim((1, 2), (-2, -1))


def _determinant(u: Tensor) -> Tensor:
    return torch.linalg.det(_differences(u) + torch.eye(u.shape[1]))


JACOBIAN = Exercise(
    "The Jacobian determinant",
    _gentle_field,
    _determinant,
    (
        "Move the image by a constant: the determinant must be 1 everywhere. Does yours pass?",
        "The matrix is 1 + du/dx (1 the identity matrix), with central differences (u(x + 1) - u(x - 1)) / 2 along EVERY "
        "axis.",
        "Compare the lines of the first and the second axis, sign by sign.",
    ),
    {
        "sum for difference": Mistake(
            jacobian_determinant_with_a_bug,
            (
                "A shift of the whole image should leave every volume as it is; here the determinant depends on the shift.",
                "A derivative is a difference. One of the axes has a sum.",
                "The line of the second axis: after MINUS before.",
            ),
        ),
        "no identity": Mistake(
            lambda u: torch.linalg.det(_differences(u)),
            (
                "Where nothing moves, the determinant is 0 instead of 1.",
                "phi(x) = x + u(x), so its derivative is 1 + du/dx, 1 the identity matrix.",
                "Add torch.eye(D) before you take the determinant.",
            ),
        ),
        "not halved": Mistake(
            lambda u: torch.linalg.det(2 * _differences(u) + torch.eye(u.shape[1])),
            (
                "Growth and shrinking are both exaggerated.",
                "From x - 1 to x + 1 are two voxels.",
                "Divide the difference by 2.",
            ),
        ),
        "trace": Mistake(
            lambda u: 1 + _differences(u).diagonal(dim1=-2, dim2=-1).sum(-1),
            (
                "It is close where u is gentle.",
                "1 + the divergence of u is the first-order part of det(1 + du/dx); the products are missing.",
                "torch.linalg.det of the whole matrix.",
            ),
        ),
    },
    gradient=True,
)

EXERCISES = {"warp": WARP, "compose": COMPOSE, "inverse": INVERSE, "jacobian": JACOBIAN}
