"""Lesson 02, deformations: looking up, landmarks through two maps, inverting, folding, counting
folds, walking, millimetres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..warp import Deformation, sample
from . import Exercise

# Fields are smooth: nobody asks what a field that jumps from voxel to voxel means.


def smooth_field(shape: tuple[int, ...], size: float, generator: Generator) -> Tensor:
    """A smooth displacement (1, D, I, J, K) of about ``size`` voxels."""
    dims = len(shape)
    coarse = torch.randn(1, dims, *[3] * dims, generator=generator)
    mode = "bilinear" if dims == 2 else "trilinear"
    return size * F.interpolate(coarse, size=shape, mode=mode)


def uneven_shape(dims: int) -> tuple[int, ...]:
    """A grid with no two sides alike, so that exchanged axes show."""
    return (9, 7, 8)[:dims]


# --- looking up -----------------------------------------------------------------------------------


def _image_and_field(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    shape = uneven_shape(dims)
    image = torch.rand(1, 2, *shape, generator=generator)
    return image, smooth_field(shape, 1.5, generator)


def _per_axis(values: Tensor, u: Tensor) -> Tensor:
    """(D,) shaped to be added to, or divided from, a displacement (1, D, I, J, K)."""
    return values.view(1, -1, *[1] * (u.ndim - 2))


def looked_up(
    moving: Tensor, points: Tensor, *, last_first: bool = True, missing: int = 1, **options: Any
) -> Tensor:
    """``moving`` at ``points`` (B, D, I, J, K), in voxels, by grid_sample, with one thing after
    another to get wrong.

    ``missing`` is what a size exceeds the number of steps by; ``options`` are those of grid_sample
    that differ from ours.
    """
    steps = torch.tensor(moving.shape[2:]) - missing
    grid = (2 * points / _per_axis(steps, points) - 1).movedim(1, -1)
    if last_first:
        grid = grid.flip(-1)
    chosen: dict[str, Any] = {"padding_mode": "border", "align_corners": True} | options
    return F.grid_sample(moving, grid, **chosen)


def _warped(moving: Tensor, u: Tensor) -> Tensor:
    return looked_up(moving, Deformation(u).points)


WARP = Exercise(
    "Warping by looking up",
    arguments=_image_and_field,
    right=_warped,
    hints=(
        "Every voxel x of the result looks up the moving image at x + u(x): first make the "
        "coordinates of every voxel.",
        "grid_sample wants points in [-1, 1] from the first voxel's centre to the last one's "
        "(align_corners=True), with the last axis first, in the last dimension of the tensor.",
        "points = 2 * (x + u) / (size - 1) - 1, then points.movedim(1, -1).flip(-1); x from "
        "torch.meshgrid(..., indexing='ij'), and the D sizes reshaped to (1, D, 1, 1[, 1]), so "
        "that each meets its own component.",
    ),
    gradient=True,
)


@WARP.mistake(
    "axes not reversed",
    symptom="With u = 0, a square image comes out transposed.",
    idea="grid_sample reads a point as (x, y, z), where x runs along the LAST axis of the tensor.",
    line="Reverse the coordinates: .flip(-1) on the dimension of the coordinates.",
)
def _axes_not_reversed(moving, u):
    return looked_up(moving, Deformation(u).points, last_first=False)


@WARP.mistake(
    "align_corners",
    symptom="With u = 0 the result is not the moving image, but slightly shrunk towards its "
    "middle.",
    idea="Without align_corners, -1 and 1 are the outer edges of the image, half a voxel beyond "
    "the centres of the first and last voxel; your scale is for the centres.",
    line="F.grid_sample(..., align_corners=True)",
)
def _align_corners(moving, u):
    return looked_up(moving, Deformation(u).points, align_corners=False)


@WARP.mistake(
    "size instead of size - 1",
    symptom="With u = 0 the result is not the moving image, but slightly enlarged, away from the "
    "first voxel.",
    idea="From the first voxel's centre to the last one's it is size - 1 steps, not size.",
    line="2 * points / (size - 1) - 1",
)
def _size_instead_of_steps(moving, u):
    return looked_up(moving, Deformation(u).points, missing=0)


@WARP.mistake(
    "pushed",
    symptom="The image moves the other way.",
    idea="u says where to LOOK in the moving image. The picture then moves against u.",
    line="x + u, not x - u.",
)
def _pushed(moving, u):
    return looked_up(moving, Deformation(-u).points)


@WARP.mistake(
    "u alone",
    symptom="The whole result is a blur of one corner of the image.",
    idea="u is where to look relative to the voxel's own place.",
    line="Add the coordinates of each voxel, e.g. from torch.meshgrid(..., indexing='ij').",
)
def _u_alone(moving, u):
    return looked_up(moving, u)


@WARP.mistake(
    "u already in [-1, 1]",
    symptom="The displacements are far too large.",
    idea="You add u after the coordinates were scaled to [-1, 1]. Here u is in voxels.",
    line="Add first, scale afterwards: 2 * (x + u) / (size - 1) - 1.",
)
def _u_already_scaled(moving, u):
    steps = torch.tensor(moving.shape[2:]) - 1
    return looked_up(moving, Deformation(u * _per_axis(steps, u) / 2).points)


@WARP.mistake(
    "sizes without a reshape",
    symptom="Two tensors meet whose axes do not fit.",
    idea="D sizes beside a tensor (B, D, I, J) meet its LAST axis, along which there are J voxels. "
    "They belong to the second axis, the components.",
    line="size.view(1, -1, 1, 1), and in 3D one more 1.",
)
def _sizes_without_reshape(moving, u):
    return 2 * Deformation(u).points / (torch.tensor(u.shape[2:]) - 1) - 1


@WARP.mistake(
    "zeros outside",
    symptom="It is right inside, but dark along the border.",
    idea="Where a voxel looks beyond the image it should see the nearest border voxel; by default "
    "it sees 0, an edge that is not in the body.",
    line="F.grid_sample(..., padding_mode='border')",
)
def _zeros_outside(moving, u):
    return looked_up(moving, Deformation(u).points, padding_mode="zeros")


# --- one after the other --------------------------------------------------------------------------


def _landmarks_and_fields(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Seven points between voxels, away from the border, and two displacements."""
    shape = uneven_shape(dims)
    u_phi = smooth_field(shape, 0.8, generator)
    u_psi = smooth_field(shape, 0.8, generator)
    sides = torch.tensor(shape)[None, :, None]
    return 1 + (sides - 3) * torch.rand(1, dims, 7, generator=generator), u_phi, u_psi


def _composed(u_phi: Tensor, u_psi: Tensor) -> Tensor:
    return (Deformation(u_phi) @ Deformation(u_psi)).displacement


def _moved(points: Tensor, u: Tensor) -> Tensor:
    """Where phi(x) = x + u(x) takes points (1, D, N)."""
    return points + sample(u, points)


def _carried(points: Tensor, u_phi: Tensor, u_psi: Tensor) -> Tensor:
    return _moved(_moved(points, u_psi), u_phi)


COMPOSE = Exercise(
    "Landmarks, carried by one map after the other",
    arguments=_landmarks_and_fields,
    right=_carried,
    hints=(
        "One map first: where does psi take a point p? It stands between voxels, so its "
        "displacement there has to be looked up.",
        "psi(p) = p + u_psi(p), by sample. That is a point again, and phi goes on from there.",
        "at_b = points + sample(u_psi, points), then at_b + sample(u_phi, at_b)",
    ),
    gradient=True,
)


@COMPOSE.mistake(
    "sum",
    symptom="It is nearly right where both fields are small, and never quite.",
    idea="Displacements add only where they are constant: after psi the point stands elsewhere, "
    "and u_phi is another there.",
    line="u_phi has to be looked up at psi(p), not at p.",
)
def _sum(points, u_phi, u_psi):
    return _moved(points, u_psi) + sample(u_phi, points)


@COMPOSE.mistake(
    "the other order",
    symptom="You have psi(phi(p)).",
    idea="In phi(psi(p)) the point meets psi first: psi leads to B, and phi goes on from there.",
    line="First points + sample(u_psi, points).",
)
def _the_other_order(points, u_phi, u_psi):
    return _carried(points, u_psi, u_phi)


@COMPOSE.mistake(
    "the displacement",
    symptom="You return how far the points have moved, not where they are.",
    idea="sample(u, p) is a step. The place is p plus the step.",
    line="Add the points.",
)
def _the_displacement(points, u_phi, u_psi):
    return _carried(points, u_phi, u_psi) - points


@COMPOSE.mistake(
    "looked up only",
    symptom="One of the two movements is missing.",
    idea="From p you first move by u_psi(p), then by u_phi at the new place: both steps count.",
    line="at_b + sample(u_phi, at_b), with at_b = points + sample(u_psi, points)",
)
def _looked_up_only(points, u_phi, u_psi):
    return points + sample(u_phi, _moved(points, u_psi))


@COMPOSE.mistake(
    "displacements for points",
    symptom="Wherever you stand, you look near the first voxel of u_phi.",
    idea="sample wants points, psi(p) = p + u_psi(p). u_psi(p) alone is a step: of a few voxels, "
    "counted from nowhere.",
    line="Look u_phi up at points + sample(u_psi, points), not at sample(u_psi, points).",
)
def _displacements_for_points(points, u_phi, u_psi):
    step = sample(u_psi, points)
    return points + step + sample(u_phi, step)


@COMPOSE.mistake(
    "backwards",
    symptom="The points move the other way.",
    idea="It is the PICTURE that moves against u, since its pixels look things up. A point of the "
    "fixed image is led by phi itself, to x + u(x) in the moving image.",
    line="Add, twice.",
)
def _backwards(points, u_phi, u_psi):
    return _carried(points, -u_phi, -u_psi)


@COMPOSE.mistake(
    "nearest voxel",
    symptom="Your points are off by a little, as if they had stood on voxels.",
    idea="You read u at the nearest voxel. A landmark stands between voxels, and so does its "
    "image: interpolate, both times.",
    line="sample(u, points) instead of u[..., points.round()]",
)
def _nearest_voxel(points, u_phi, u_psi):
    at_b = points + sample(u_psi, points.round())
    return at_b + sample(u_phi, at_b.round())


# --- backwards ------------------------------------------------------------------------------------


def _gentle_field(dims: int, generator: Generator) -> tuple[Tensor]:
    """A displacement that changes by .6 of a voxel at most from a voxel to the next, whichever way:
    so the fixed point is the same from any start, and 30 repetitions are more than enough.
    """
    u = smooth_field(uneven_shape(dims), 0.5, generator)
    steepest = [u.diff(dim=axis).norm(dim=1).max() for axis in range(2, u.ndim)]
    return (0.6 * u / torch.stack(steepest).norm(),)


def _inverse(u: Tensor) -> Tensor:
    return Deformation(u).inverse().displacement


INVERSE = Exercise(
    "The inverse by a fixed point",
    arguments=_gentle_field,
    right=_inverse,
    hints=(
        "Write phi(x + w(x)) = x out with u. Two things drop out, and w stands alone on one side.",
        "w(x) = -u(x + w(x)). Begin with w = -u, and put what you have into the right side, 30 "
        "times.",
        "for _ in range(30): w = -sample(u, Deformation(w).points)",
    ),
    tolerance=1e-3,
)


@INVERSE.mistake(
    "minus u",
    symptom="It is nearly right where u is small or constant.",
    idea="-u(x) undoes the step that begins at x. The step to undo is the one that ENDS at x.",
    line="That is where the loop begins, not where it ends: repeat w = -u(x + w).",
)
def _minus_u(u):
    return -u


@INVERSE.mistake(
    "one repetition",
    symptom="It is better than -u, but not there yet.",
    idea="One step of the fixed point leaves less than half of the error, on average; thirty make "
    "it vanish.",
    line="Put it into a loop.",
)
def _one_repetition(u):
    return -sample(u, Deformation(-u).points)


@INVERSE.mistake(
    "not at the new place",
    symptom="You look in the direction of u.",
    idea="The inverse looks up u where w leads, x + w(x), not where u leads.",
    line="sample(u, Deformation(w).points), beginning with w = -u.",
)
def _not_at_the_new_place(u):
    return -sample(u, Deformation(u).points)


@INVERSE.mistake(
    "points forgotten",
    symptom="The result hardly depends on where it is.",
    idea="sample wants points, x + w(x), not displacements.",
    line="sample(u, Deformation(w).points)",
)
def _points_forgotten(u):
    return sample(-u, -u)


@INVERSE.mistake(
    "sign lost",
    symptom="It moves the wrong way: composed with phi it doubles the movement.",
    idea="w(x) = MINUS u(x + w(x)).",
    line="w = -sample(...)",
)
def _sign_lost(u):
    return sample(u, Deformation(-u).points)


# --- folding, with a planted bug ------------------------------------------------------------------


def _central(u: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """``u`` (1, D, I, J, K) after and before each voxel inside the border, along voxel ``axis``."""
    inside = [slice(None), slice(None)] + [slice(1, -1)] * (u.ndim - 2)
    after, before = inside.copy(), inside.copy()
    after[axis], before[axis] = slice(2, None), slice(None, -2)
    return u[tuple(after)], u[tuple(before)]


def _gradient(u: Tensor, sign: int = -1) -> Tensor:
    """du_c / dx_axis of a displacement (1, D, I, J, K) inside the border, (..., c, axis); ``sign``
    of what stands before a voxel on the axes after the first.
    """
    columns = []
    for axis in range(2, u.ndim):
        after, before = _central(u, axis)
        columns.append((after - before) / 2 if axis == 2 else (after + sign * before) / 2)
    return torch.stack(columns, 2).movedim((1, 2), (-2, -1))


def _one_plus(matrix: Tensor) -> Tensor:
    """det(1 + matrix), 1 the identity matrix."""
    return torch.linalg.det(matrix + torch.eye(matrix.shape[-1]))


def _determinant(u: Tensor) -> Tensor:
    return _one_plus(_gradient(u))


JACOBIAN = Exercise(
    "The Jacobian determinant",
    arguments=_gentle_field,
    right=_determinant,
    hints=(
        "Move the image by a constant, along each axis in turn: the determinant must be 1 "
        "everywhere. Does yours pass?",
        "The matrix is 1 + du/dx (1 the identity matrix), with central differences (u(x + 1) - "
        "u(x - 1)) / 2 along EVERY axis.",
        "Compare the lines of the three axes, sign by sign.",
    ),
    gradient=True,
    dims=(3,),
)


@JACOBIAN.mistake(
    "sum for difference",
    symptom="A shift of the whole image should leave every volume as it is; here the determinant "
    "depends on the shift.",
    idea="A derivative is a difference. Along some of the axes you have a sum.",
    line="Along the second and the third axis, too: after MINUS before.",
)
def jacobian_determinant_with_a_bug(u: Tensor) -> Tensor:
    """The planted bug of the lesson: a + b for a - b along all axes but the first, as in the
    gradient loss of the paper's public code.
    """
    return _one_plus(_gradient(u, sign=+1))


@JACOBIAN.mistake(
    "no identity",
    symptom="Where nothing moves, the determinant is 0 instead of 1.",
    idea="phi(x) = x + u(x), so its derivative is 1 + du/dx, 1 the identity matrix.",
    line="Add torch.eye(D) before you take the determinant.",
)
def _no_identity(u):
    return torch.linalg.det(_gradient(u))


@JACOBIAN.mistake(
    "not halved",
    symptom="Growth and shrinking are both exaggerated.",
    idea="From x - 1 to x + 1 are two voxels.",
    line="Divide the difference by 2.",
)
def _not_halved(u):
    return _one_plus(2 * _gradient(u))


@JACOBIAN.mistake(
    "trace",
    symptom="It is close where u is gentle.",
    idea="1 + the divergence of u is the first-order part of det(1 + du/dx); the products are "
    "missing.",
    line="torch.linalg.det of the whole matrix.",
)
def _trace(u):
    return 1 + _gradient(u).diagonal(dim1=-2, dim2=-1).sum(-1)


# --- folds, counted in millimetres ----------------------------------------------------------------


def _field_in_mm(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A displacement in mm on a grid of uneven voxels, that folds here and there; and their sides.
    Some planes of voxels all look at one and the same plane: their determinant is 0.
    """
    sides = torch.tensor([1.0, 0.5, 4.0])[torch.randperm(3, generator=generator)].double()
    u = smooth_field((13, 12, 11), 2.2, generator).double()
    u = u + 0.35 * torch.randn(u.shape, generator=generator, dtype=torch.float64)
    u[:, 0, 3:7] = 5.0 - torch.arange(3.0, 7.0, dtype=torch.float64).view(1, -1, 1, 1)
    return _per_axis(sides, u) * u, sides


def _folds(
    u: Tensor,
    spacing: Tensor,
    *,
    folded: Callable[[Tensor], Tensor] = lambda determinant: determinant <= 0,
) -> Tensor:
    """Percentage of the voxels inside the border with a determinant that is ``folded``."""
    determinant = _determinant(u / _per_axis(spacing, u))
    return 100 * folded(determinant).double().mean()


FOLDS = Exercise(
    "Folds, counted in millimetres",
    arguments=_field_in_mm,
    right=_folds,
    hints=(
        "det J compares lengths with lengths: u and x must be in ONE unit, either one. Which one "
        "is u in, and which one do differences of neighbouring voxels count in?",
        "Central differences inside the border, (u(x + 1) - u(x - 1)) / 2, of a u in mm, are mm "
        "per voxel: divide the one along axis a by the side of a voxel along a. Then 1 + du/dx, "
        "its determinant, and the share that is 0 or less, times 100.",
        "Or make it voxels at once, u / spacing.view(1, 3, 1, 1, 1), and go on as in the exercise "
        "before; then 100 * (determinant <= 0).double().mean().",
    ),
    dims=(3,),
)


@FOLDS.mistake(
    "mm per voxel",
    symptom="It is right for voxels of 1 mm. Of others you exaggerate what moves along a long "
    "side, and play down what moves along a short one.",
    idea="The difference of two neighbours is in mm, and they are one voxel apart: mm per voxel. 1 "
    "+ du/dx wants mm per mm.",
    line="Divide the difference along axis a by spacing[a].",
)
def _mm_per_voxel(u, spacing):
    return _folds(u, torch.ones_like(spacing))


@FOLDS.mistake(
    "multiplied",
    symptom="Voxels of 4 mm make you find folds where there are none.",
    idea="You multiply by the side of a voxel. From mm to voxels one divides; so does who divides "
    "a difference in mm by a distance in mm.",
    line="u / spacing.view(1, 3, 1, 1, 1)",
)
def _multiplied(u, spacing):
    return _folds(u, 1 / spacing)


@FOLDS.mistake(
    "spacing without a reshape",
    symptom="Two tensors meet whose axes do not fit.",
    idea="Three numbers beside a tensor (1, 3, I, J, K) meet its LAST axis. They belong to the "
    "second one, the components.",
    line="spacing.view(1, 3, 1, 1, 1)",
)
def _spacing_without_reshape(u, spacing):
    return u / spacing


@FOLDS.mistake(
    "a share",
    symptom="Your number is a hundredth of what it should be.",
    idea="You return a share between 0 and 1. Asked for was a percentage.",
    line="Multiply by 100.",
)
def _share(u, spacing):
    return _folds(u, spacing) / 100


@FOLDS.mistake(
    "collapsed left out",
    symptom="You count too few voxels.",
    idea="Where the determinant is exactly 0, a whole piece looks at a plane. There is no way "
    "back from there either.",
    line="<= 0 instead of < 0",
)
def _collapsed_left_out(u, spacing):
    return _folds(u, spacing, folded=lambda determinant: determinant < 0)


@FOLDS.mistake(
    "the others",
    symptom="Yours and the right number add up to 100.",
    idea="You count the voxels that do NOT fold.",
    line="determinant <= 0",
)
def _the_others(u, spacing):
    return _folds(u, spacing, folded=lambda determinant: determinant > 0)


@FOLDS.mistake(
    "no identity",
    symptom="Of a displacement that is 0 everywhere you would say that all of it folds.",
    idea="phi(x) = x + u(x), so its derivative is 1 + du/dx, 1 the identity matrix.",
    line="Add torch.eye(3) before you take the determinant.",
)
def _identity_forgotten(u, spacing):
    gradient = _gradient(u / _per_axis(spacing, u))
    return 100 * (torch.linalg.det(gradient) <= 0).double().mean()


@FOLDS.mistake(
    "not halved",
    symptom="You find too many folds.",
    idea="From the voxel before to the voxel after are two voxels.",
    line="Divide the difference by 2 (and by the side of a voxel).",
)
def _difference_not_halved(u, spacing):
    return _folds(2 * u, spacing)


@FOLDS.mistake(
    "a number of voxels",
    symptom="You return how many voxels fold, not which percentage of them.",
    idea="A count depends on how large the grid is. Of 1,000 voxels and of 1,000,000 a percentage "
    "says the same.",
    line="100 * (determinant <= 0).double().mean()",
)
def _number_of_voxels(u, spacing):
    return _folds(u, spacing) / 100 * u[0, 0, 1:-1, 1:-1, 1:-1].numel()


# --- a walk along a velocity ----------------------------------------------------------------------

SQUARINGS = 6


def _velocity(dims: int, generator: Generator) -> tuple[Tensor]:
    return (smooth_field(uneven_shape(dims), 1.5, generator),)


def _squared(v: Tensor, first: float = 2**-SQUARINGS, squarings: int = SQUARINGS) -> Tensor:
    """The displacement of a step ``first * v`` put after itself ``squarings`` times."""
    u = first * v
    for _ in range(squarings):
        u = _composed(u, u)
    return u


SQUARING = Exercise(
    "Scaling and squaring",
    arguments=_velocity,
    right=_squared,
    hints=(
        "Two parts: make the step so short that v hardly changes along it; then put the map after "
        "itself, and that after itself, and so on.",
        "The short step is v / 2^6. What is the displacement of phi after phi? It stands above, "
        "for phi after psi.",
        "u = v / 2**6; then six times u = u + sample(u, Deformation(u).points)",
    ),
    tolerance=0.05,  # pixels: whoever takes more squarings comes as close to exp(v)
)


@SQUARING.mistake(
    "doubled",
    symptom="You get v back.",
    idea="2 u would be phi after phi if u were the same everywhere. After the first step one "
    "stands elsewhere, and follows the arrow there.",
    line="u + (u looked up at x + u(x)), not u + u.",
)
def _doubled(v):
    return v.clone()


@SQUARING.mistake(
    "not scaled",
    symptom="You have walked for 64 units of time instead of one.",
    idea="Six squarings are 2^6 = 64 steps. Each has to take 1/64 of the time.",
    line="Begin with v / 2**6.",
)
def _not_scaled(v):
    return _squared(v, first=1.0)


@SQUARING.mistake(
    "divided by the number of squarings",
    symptom="You have walked for more than ten units of time.",
    idea="Every squaring doubles the time: after six it is 2^6 = 64 times the first step's, not 6 "
    "times.",
    line="v / 2**6, not v / 6.",
)
def _divided_by_the_number(v):
    return _squared(v, first=1 / SQUARINGS)


@SQUARING.mistake(
    "steps for squarings",
    symptom="You have walked for about a tenth of the time.",
    idea="You put the first short step after what there is, six times. To square is to put what "
    "there is after itself.",
    line="In the loop no v: u = u + sample(u, Deformation(u).points).",
)
def _steps_for_squarings(v):
    small = v / 2**SQUARINGS
    u = small
    for _ in range(SQUARINGS):
        u = _composed(small, u)
    return u


@SQUARING.mistake(
    "displacements for points",
    symptom="Wherever you stand, you look near the first voxel.",
    idea="sample wants points, x + u(x), not steps.",
    line="sample(u, Deformation(u).points) instead of sample(u, u)",
)
def _step_for_points(v):
    u = v / 2**SQUARINGS
    for _ in range(SQUARINGS):
        u = u + sample(u, u)
    return u


@SQUARING.mistake(
    "looked up only",
    symptom="You stay where you began: the result is as short as the first step.",
    idea="Phi after phi moves twice: by u(x), then by u at the new place.",
    line="u + sample(...), not sample(...) alone.",
)
def _second_step_alone(v):
    u = v / 2**SQUARINGS
    for _ in range(SQUARINGS):
        u = sample(u, Deformation(u).points)
    return u


# --- millimetres ----------------------------------------------------------------------------------


def _field_and_affine(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """The last side is 3, so that three numbers may meet the wrong axis without an error."""
    u = smooth_field((4, 5, 3), 2.0, generator).double()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.diag(torch.tensor([-1.0, 1.5, 3.0], dtype=torch.float64))
    affine[:3, :3] += 0.2 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    affine[:3, 3] = 50 * torch.randn(3, generator=generator, dtype=torch.float64)
    return u, affine


LPS = (-1.0, -1.0, 1.0)


def _in_mm(u: Tensor, matrix: Tensor, signs: tuple[float, ...] = LPS) -> Tensor:
    """``signs * matrix u(x)`` at every voxel x of u (1, 3, I, J, K)."""
    turned = torch.einsum("cd,bdijk->bcijk", matrix, u)
    return _per_axis(torch.tensor(signs, dtype=u.dtype), u) * turned


def _in_lps(u: Tensor, affine: Tensor) -> Tensor:
    return _in_mm(u, affine[:3, :3])


MILLIMETRES = Exercise(
    "A displacement for ITK",
    arguments=_field_and_affine,
    right=_in_lps,
    hints=(
        "Where do x and x + u(x) lie in the world? Subtract one place from the other.",
        "With M x + t for a place, the difference is M u(x): t drops out. Then the first two "
        "numbers change their sign, from R, A, S to L, P, S.",
        "mm = torch.einsum('cd,bdijk->bcijk', affine[:3, :3], u), then "
        "mm * torch.tensor([-1.0, -1.0, 1.0]).view(1, 3, 1, 1, 1)",
    ),
    dims=(3,),
)


@MILLIMETRES.mistake(
    "still R, A, S",
    symptom="The lengths are right, and two of the three directions are reversed.",
    idea="nibabel's millimetres grow towards R, A and S; ITK's towards L, P and S. Nothing crashes "
    "if you forget it: the image is warped wrongly.",
    line="Change the sign of the first two components.",
)
def _still_ras(u, affine):
    return _in_mm(u, affine[:3, :3], (1.0, 1.0, 1.0))


@MILLIMETRES.mistake(
    "all three reversed",
    symptom="The third component has the wrong sign.",
    idea="L is against R and P against A, but S is S in both conventions.",
    line="The signs are -1, -1, 1.",
)
def _all_reversed(u, affine):
    return _in_mm(u, affine[:3, :3], (-1.0, -1.0, -1.0))


@MILLIMETRES.mistake(
    "voxels, reversed",
    symptom="Where a voxel is not 1 mm large your lengths are wrong.",
    idea="You have changed signs, but the numbers are still voxels along the axes of the array.",
    line="First affine[:3, :3] times u, then the signs.",
)
def _voxels_reversed(u, affine):
    return _in_mm(u, torch.eye(3, dtype=u.dtype))


@MILLIMETRES.mistake(
    "voxels",
    symptom="You return u as it is.",
    idea="u counts voxels along the axes of the array. Another program knows its own array, not "
    "yours: it wants millimetres along the axes of the world.",
    line="Multiply by affine[:3, :3] at every voxel, and change two signs.",
)
def _voxels(u, affine):
    return u.clone()


@MILLIMETRES.mistake(
    "sizes alone",
    symptom="It is right for an array whose axes run to R, A and S, and wrong for an oblique one.",
    idea="You multiply by the size of a voxel. An axis of the array may lead in any direction of "
    "the world, which only the whole matrix says.",
    line="affine[:3, :3] @ u(x), not its columns' lengths times u(x).",
)
def _sizes_alone(u, affine):
    return _in_mm(u, torch.diag(affine[:3, :3].norm(dim=0)))


@MILLIMETRES.mistake(
    "shift added",
    symptom="Where nothing moves, yours is not 0.",
    idea="A displacement is the difference of two places. What both are shifted by drops out.",
    line="Leave out affine[:3, 3].",
)
def _shift_added(u, affine):
    shift = torch.tensor(LPS, dtype=u.dtype) * affine[:3, 3]
    return _in_lps(u, affine) + _per_axis(shift, u)


@MILLIMETRES.mistake(
    "transposed",
    symptom="It is right for axes that are not turned, and wrong for oblique ones.",
    idea="You sum over the rows of the matrix instead of its columns.",
    line="Component c of the result is the sum over d of affine[c, d] times component d of u.",
)
def _transposed(u, affine):
    return _in_mm(u, affine[:3, :3].T)


@MILLIMETRES.mistake(
    "signs before the matrix",
    symptom="It is right for an array whose first, second and third axes run along x, y and z.",
    idea="L, P, S are directions of the world. Before the matrix the components run along the axes "
    "of the array.",
    line="First the matrix, then the signs.",
)
def _signs_first(u, affine):
    signs = torch.diag(torch.tensor(LPS, dtype=u.dtype))
    return _in_mm(u, affine[:3, :3] @ signs, (1.0, 1.0, 1.0))


@MILLIMETRES.mistake(
    "signs without a reshape",
    symptom="The last plane has other signs than the two before it.",
    idea="Three numbers beside a tensor (1, 3, I, J, K) meet its LAST axis, which has three voxels "
    "here and no error tells you. They belong to the second axis, the components.",
    line="signs.view(1, 3, 1, 1, 1)",
)
def _signs_without_reshape(u, affine):
    return torch.tensor(LPS, dtype=u.dtype) * _in_mm(u, affine[:3, :3], (1.0, 1.0, 1.0))


EXERCISES = {
    "warp": WARP,
    "compose": COMPOSE,
    "inverse": INVERSE,
    "jacobian": JACOBIAN,
    "folds": FOLDS,
    "squaring": SQUARING,
    "millimetres": MILLIMETRES,
}
