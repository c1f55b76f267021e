"""Deformations, tested by oracle: linear interpolation reproduces linear maps, so the answers are
matrix algebra.
"""

import dataclasses

from deepatlas import evaluation
from deepatlas.warp import Deformation, pull, sample, voxel_grid

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import waits
from plain import plain_exp, plain_pull
from scipy import ndimage

SHAPES = ((24, 17), (16, 14, 19))
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # voxels
both = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
BATCH = 2
MARGIN = 4  # voxels; further inside, no affine map below leads out of the grid


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=seeded(seed))


def interior(values, margin=MARGIN):
    """The voxels at least ``margin`` from every border of (B, C, I, J, K)."""
    return values[(..., *[slice(margin, -margin)] * (values.ndim - 2))]


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def generator(shape, dtype, seed=0):
    """A linear velocity (B, D + 1, D + 1): about the grid's centre, plus a translation of half a
    voxel.
    """
    d = len(shape)
    linear = torch.randn(BATCH, d, d, dtype=dtype, generator=seeded(seed))
    linear = 0.15 * linear / torch.linalg.matrix_norm(linear, ord=2)[:, None, None]
    centre = torch.tensor([(n - 1) / 2 for n in shape], dtype=dtype)
    shift = torch.randn(BATCH, d, dtype=dtype, generator=seeded(seed + 1))
    shift = 0.5 * shift / shift.norm(dim=1, keepdim=True)
    top = torch.cat([linear, (shift - linear @ centre)[..., None]], dim=2)
    return torch.cat([top, torch.zeros(BATCH, 1, d + 1, dtype=dtype)], dim=1)


def affine_matrix(shape, dtype, seed=0):
    return torch.eye(len(shape) + 1, dtype=dtype) + generator(shape, dtype, seed)


def ramp(shape, dtype):
    """An image (B, 1, ...) linear in the voxel coordinates."""
    slopes = torch.tensor([0.3, -0.7, 1.1][: len(shape)], dtype=dtype)
    grid = voxel_grid(shape, slopes)
    return torch.einsum("d,d...->...", slopes, grid).expand(BATCH, 1, *shape)


def smooth_field(shape, size, seed=0, sigma=4.0):
    """A smooth random displacement (1, D, ...) of at most ``size`` voxels per component."""
    noise = np.random.default_rng(seed).standard_normal((len(shape), *shape))
    field = np.stack([ndimage.gaussian_filter(component, sigma) for component in noise])
    return torch.from_numpy(size * field / np.abs(field).max())[None]


def shifted(volume, axis, by):
    """``volume`` whose voxel x shows voxel x + by along ``axis``, the border voxel beyond the
    border.
    """
    n = volume.shape[axis]
    return volume.index_select(axis, (torch.arange(n) + by).clamp(0, n - 1))


def translation(shape, axis, by, dtype=torch.float32):
    u = torch.zeros(BATCH, len(shape), *shape, dtype=dtype)
    u[:, axis] = by
    return Deformation(u)


# --- affine oracles -------------------------------------------------------------------------------


@both
@shapes
def test_affine_moves_every_voxel_by_the_matrix(shape, dtype):
    matrix = affine_matrix(shape, dtype)
    points = Deformation.affine(matrix, shape).points
    for b in range(BATCH):
        corner = torch.tensor([*(n - 1 for n in shape), 1], dtype=dtype)
        assert_close(
            points[(b, slice(None), *[-1] * len(shape))],
            (matrix[b] @ corner)[:-1],
            TOLERANCE[dtype],
        )
        assert_close(
            points[(b, slice(None), *[0] * len(shape))], matrix[b, :-1, -1], TOLERANCE[dtype]
        )


@both
@shapes
def test_composition_is_the_matrix_product(shape, dtype):
    a, b = affine_matrix(shape, dtype, 0), affine_matrix(shape, dtype, 7)
    composed = Deformation.affine(a, shape) @ Deformation.affine(b, shape)
    expected = Deformation.affine(a @ b, shape)
    assert_close(interior(composed.displacement), interior(expected.displacement), TOLERANCE[dtype])
    other_order = Deformation.affine(b @ a, shape)
    assert (interior(composed.displacement) - interior(other_order.displacement)).abs().max() > 0.02


@both
@shapes
def test_inverse_is_the_inverse_matrix(shape, dtype):
    matrix = affine_matrix(shape, dtype)
    inverse = Deformation.affine(matrix, shape).inverse()
    expected = Deformation.affine(torch.linalg.inv(matrix), shape)
    assert_close(interior(inverse.displacement), interior(expected.displacement), TOLERANCE[dtype])


@both
@pytest.mark.parametrize("shape", [(30, 27), (24, 22, 25)], ids=["2D", "3D"])
def test_exp_is_the_matrix_exponential(shape, dtype):
    velocity = generator(shape, dtype)
    identity = torch.eye(len(shape) + 1, dtype=dtype)
    phi = Deformation.exp(Deformation.affine(identity + velocity, shape).displacement)
    # each squaring lets the border reach one voxel further in
    actual = interior(phi.displacement, 9)
    # what three squarings make of the matrix: a step, with the velocity halfway along it
    step = velocity / 2**3
    squared = torch.linalg.matrix_power(identity + step + step @ step / 2, 2**3)
    assert_close(
        actual, interior(Deformation.affine(squared, shape).displacement, 9), 5 * TOLERANCE[dtype]
    )
    exact = interior(Deformation.affine(torch.linalg.matrix_exp(velocity), shape).displacement, 9)
    assert_close(actual, exact, 2e-3)
    assert exact.abs().max() > 0.5


@pytest.mark.parametrize("shape", [(30, 27), (24, 22, 25)], ids=["2D", "3D"])
def test_more_squarings_come_closer_to_the_matrix_exponential(shape):
    velocity = generator(shape, torch.float64)
    identity = torch.eye(len(shape) + 1, dtype=torch.float64)
    u = Deformation.affine(identity + velocity, shape).displacement
    exact = interior(Deformation.affine(torch.linalg.matrix_exp(velocity), shape).displacement, 9)
    coarse, fine = (
        (interior(Deformation.exp(u, squarings=n).displacement, 9) - exact).abs().max().item()
        for n in (2, 4)
    )
    # second order: half the step, a quarter of the error
    assert coarse / fine == pytest.approx(4**2, rel=0.1)


@both
@shapes
def test_jacobian_is_the_determinant(shape, dtype):
    matrix = affine_matrix(shape, dtype)
    determinant = torch.linalg.det(matrix[:, :-1, :-1])
    assert (determinant - 1).abs().max() > 0.01
    actual = Deformation.affine(matrix, shape).jacobian_determinant()
    assert_close(
        actual, determinant.view(-1, *[1] * len(shape)).expand(-1, *shape), TOLERANCE[dtype]
    )


@shapes
def test_jacobian_is_negative_where_space_is_mirrored(shape):
    mirror = torch.eye(len(shape) + 1).repeat(1, 1, 1)
    mirror[0, 0, 0] = -1
    assert_close(
        Deformation.affine(mirror, shape).jacobian_determinant(), -torch.ones(1, *shape), 1e-5
    )


def test_jacobian_is_of_central_differences():
    u = torch.zeros(1, 2, 9, 7, dtype=torch.float64)
    i, j = voxel_grid((9, 7), u)
    # central differences are exact for quadratics
    u[0, 0], u[0, 1] = 0.01 * i**2 + 0.02 * j**2, 0.03 * i * j
    expected = (1 + 0.02 * i) * (1 + 0.03 * i) - 0.04 * j * 0.03 * j
    actual = Deformation(u).jacobian_determinant()[0]
    assert_close(actual[1:-1, 1:-1], expected[1:-1, 1:-1], 1e-12)


@both
@shapes
def test_warping_a_ramp_by_an_affine_map_is_exact(shape, dtype):
    matrix = affine_matrix(shape, dtype)
    phi, image = Deformation.affine(matrix, shape), ramp(shape, dtype)
    slopes = torch.tensor([0.3, -0.7, 1.1][: len(shape)], dtype=dtype)
    expected = torch.einsum("d,bd...->b...", slopes, phi.points)[:, None]
    assert_close(interior(phi.warp(image)), interior(expected), 10 * TOLERANCE[dtype])


# --- points ---------------------------------------------------------------------------------------


@both
@shapes
def test_calling_on_voxels_agrees_with_points(shape, dtype):
    phi = Deformation(random(BATCH, len(shape), *shape, dtype=dtype) * 4 - 2)
    voxels = voxel_grid(shape, phi.displacement).expand(BATCH, -1, *shape)
    assert_close(phi(voxels), phi.points, TOLERANCE[dtype])


@both
@shapes
def test_calling_on_points_between_voxels_is_the_affine_map(shape, dtype):
    matrix = affine_matrix(shape, dtype)
    size = torch.tensor(shape, dtype=dtype)[:, None]
    points = random(BATCH, len(shape), 50, dtype=dtype) * (size - 1)
    expected = matrix[:, :-1, :-1] @ points + matrix[:, :-1, -1:]
    assert_close(Deformation.affine(matrix, shape)(points), expected, TOLERANCE[dtype])


@shapes
def test_beyond_the_border_the_displacement_of_the_border_holds(shape):
    phi = Deformation(random(1, len(shape), *shape))
    first, last = (0,) * len(shape), tuple(n - 1 for n in shape)
    for corner, outward in ((first, -6.0), (last, 6.0)):
        outside = torch.tensor(corner, dtype=torch.float64)[None, :, None] + outward
        assert_close(
            phi(outside)[0, :, 0],
            outside[0, :, 0] + phi.displacement[(0, slice(None), *corner)],
            1e-9,
        )


# --- warping --------------------------------------------------------------------------------------


@both
@shapes
def test_identity_changes_nothing(shape, dtype):
    image = random(BATCH, 3, *shape, dtype=dtype)
    labels = torch.randint(0, 9, (BATCH, *shape), generator=seeded())
    identity = Deformation.identity(shape, BATCH)
    assert identity.shape == shape
    assert_close(identity.warp(image), image, 5e-6)
    assert torch.equal(identity.warp_labels(labels), labels)


@pytest.mark.parametrize("labels_dtype", [torch.uint8, torch.int64, torch.bool])
@shapes
def test_integer_translations_warp_labels_exactly(shape, labels_dtype):
    labels = torch.randint(0, 9, (BATCH, *shape), generator=seeded()).to(labels_dtype)
    for axis in range(len(shape)):
        for by in (1, -2):
            warped = translation(shape, axis, by).warp_labels(labels)
            assert warped.dtype == labels_dtype
            assert torch.equal(warped, shifted(labels, axis + 1, by))


def test_adding_one_pulls_the_right_neighbour():
    image = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])[None, None]
    down = Deformation(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3))
    right = Deformation(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3))
    assert_close(
        right.warp(image)[0, 0], torch.tensor([[20.0, 30.0, 30.0], [50.0, 60.0, 60.0]]), 1e-5
    )
    assert_close(
        down.warp(image)[0, 0], torch.tensor([[40.0, 50.0, 60.0], [40.0, 50.0, 60.0]]), 1e-5
    )


@both
@shapes
def test_order_of_composition_is_exact_on_ramps(shape, dtype):
    phi = Deformation.affine(affine_matrix(shape, dtype, 0), shape)
    psi = Deformation.affine(affine_matrix(shape, dtype, 7), shape)
    image = ramp(shape, dtype)
    at_once = interior((phi @ psi).warp(image))
    assert_close(at_once, interior(psi.warp(phi.warp(image))), 10 * TOLERANCE[dtype])
    assert (at_once - interior(phi.warp(psi.warp(image)))).abs().max() > 0.02


@shapes
def test_order_of_composition_on_smooth_images(shape):
    phi, psi = (Deformation(smooth_field(shape, 2.0, seed)) for seed in (1, 2))
    image = smooth_field(shape, 1.0, 3)[:, :1]
    at_once = interior((phi @ psi).warp(image))
    right = (at_once - interior(psi.warp(phi.warp(image)))).abs().max()
    wrong = (at_once - interior(phi.warp(psi.warp(image)))).abs().max()
    assert right < 0.03  # two interpolations against one
    assert wrong > 4 * right


def test_moving_and_fixed_may_have_different_shapes():
    image, labels = random(1, 2, 11, 9), torch.randint(0, 5, (1, 11, 9), generator=seeded())
    twice = torch.diag(torch.tensor([2.0, 2.0, 1.0]))[None]
    phi = Deformation.affine(twice, (6, 5))
    assert_close(phi.warp(image), image[..., ::2, ::2], 1e-5)
    assert torch.equal(phi.warp_labels(labels), labels[:, ::2, ::2])


def test_composing_different_grids_lands_on_the_grid_of_the_first():
    phi = Deformation(random(1, 2, 11, 9))
    psi = Deformation.affine(
        torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))[None], (6, 5)
    )
    assert_close((phi @ psi).points, phi.points[..., ::2, ::2], 1e-9)


@pytest.mark.parametrize(
    "image_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
@both
def test_warping_keeps_the_images_dtype(image_dtype, dtype):
    image = random(BATCH, 1, *SHAPES[0]).to(image_dtype)
    assert translation(SHAPES[0], 0, 0.5, dtype).warp(image).dtype == image_dtype


def test_warping_an_image_stored_channels_last():
    image = random(BATCH, 3, *SHAPES[0])
    phi = translation(SHAPES[0], 1, 0.5)
    assert torch.equal(phi.warp(image.to(memory_format=torch.channels_last)), phi.warp(image))


# --- sample ---------------------------------------------------------------------------------------


@both
@shapes
def test_sample_against_scipy(shape, dtype):
    volume = random(BATCH, 2, *shape, dtype=dtype)
    size = torch.tensor(shape, dtype=dtype)[:, None, None]
    points = random(BATCH, len(shape), 20, 6, dtype=dtype, seed=1) * (size + 5) - 3  # some outside
    actual = sample(volume, points)
    assert actual.shape == (BATCH, 2, 20, 6)
    for b in range(BATCH):
        for c in range(2):
            expected = ndimage.map_coordinates(
                volume[b, c].numpy(), points[b].numpy(), order=1, mode="nearest"
            )
            assert_close(actual[b, c], torch.from_numpy(expected), TOLERANCE[dtype])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("threads", [1, 2, 3])
@shapes
def test_pulling_equals_its_plain_version(shape, batch, threads):
    """Values and both gradients; a batch of one is shared out among the threads."""
    volume = random(batch, 3, *(n + 3 for n in shape)).requires_grad_()
    u = (8 * random(batch, len(shape), *shape, seed=1) - 4).requires_grad_()
    weights = random(batch, 3, *shape, seed=2)
    plain = plain_pull(volume, u)
    wanted = torch.autograd.grad((weights * plain).sum(), [volume, u])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast, fixed = pull(volume, u), pull(volume.detach(), u)
        found = torch.autograd.grad((weights * fast).sum(), [volume, u])
        (of_u,) = torch.autograd.grad((weights * fixed).sum(), u)
    finally:
        torch.set_num_threads(before)
    assert_close(fast, plain, 1e-12)
    assert torch.equal(fixed, fast)
    for actual, expected in zip([*found, of_u], [*wanted, wanted[1]], strict=True):
        assert_close(actual, expected, 1e-12)


@both
@shapes
def test_pulling_is_sampling_at_the_points(shape, dtype):
    volume = random(BATCH, 2, *shape, dtype=dtype)
    phi = Deformation(6 * random(BATCH, len(shape), *shape, dtype=dtype, seed=1) - 3)
    assert_close(pull(volume, phi.displacement), sample(volume, phi.points), TOLERANCE[dtype])


# --- the nearest voxel ----------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-5])
@pytest.mark.parametrize("shift", [0.5, -0.5, 1.5, 20.5])
def test_a_shift_of_half_a_voxel_keeps_every_structure(shift, noise):
    """A half goes up for every voxel, as Math.round does, whatever the last bits of u say."""
    n = 61
    labels = torch.arange(1, n + 1).repeat(3, 1)[None]  # each column a structure
    u = torch.zeros(1, 2, 3, n)
    u[:, 1] = shift + noise * (2 * random(3, n) - 1)
    warped = Deformation(u).warp_labels(labels)
    up = int(np.floor(shift + 0.5))
    expected = labels[..., (torch.arange(n) + up).clamp(0, n - 1)]
    assert torch.equal(warped, expected)


def test_halves_that_were_composed_are_halves():
    half = translation((9, 61), 1, 0.25)
    labels = torch.arange(61).repeat(BATCH, 9, 1)
    warped = (half @ half).warp_labels(labels)
    assert torch.equal(warped, labels[..., (torch.arange(61) + 1).clamp(max=60)])
    flow = Deformation.exp(translation((9, 61), 1, 0.5).displacement)
    assert torch.equal(flow.warp_labels(labels), warped)


@shapes
def test_nearest_against_the_nearest_centre(shape):
    """Of random u, where no point is halfway, by the smallest distance along each axis."""
    u = torch.randint(-24, 24, (1, len(shape), *shape), generator=seeded()) / 8 + 1 / 16
    labels = torch.arange(int(np.prod(shape))).view(1, *shape)
    index = []
    for axis, n in enumerate(shape):
        points = Deformation(u).points[0, axis]
        distance = (points[..., None] - torch.arange(n)).abs()
        index.append(distance.argmin(-1))
    assert torch.equal(Deformation(u).warp_labels(labels)[0], labels[0][tuple(index)])


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int64]
)
def test_labels_are_copied_whatever_their_type(dtype):
    numbers = torch.zeros(BATCH, 4, 4, dtype=torch.int64)
    largest = 1 if dtype == torch.bool else min(torch.iinfo(dtype).max, 2**53 + 1)
    numbers[:, 1, 2] = largest
    warped = translation((4, 4), 0, 1.0).warp_labels(numbers.to(dtype))
    assert warped.dtype == dtype
    assert (warped.to(torch.int64)[:, 0, 2] == largest).all()
    assert (warped.to(torch.int64) > 0).sum() == BATCH


def test_labels_and_image_of_a_diverged_u_read_the_same_voxel():
    u = torch.zeros(1, 2, 5, 5)
    u[:, 1] = 1e19
    image = torch.arange(25.0).view(1, 1, 5, 5)
    labels = Deformation(u).warp_labels(image[:, 0].long())
    assert torch.equal(labels.float(), Deformation(u).warp(image)[:, 0])


def test_numbers_that_float32_cannot_hold_stay_as_they_are():
    labels = torch.tensor([[[16777217, 16777216], [16777216, 16777217]]])
    assert torch.equal(Deformation.identity((2, 2)).warp_labels(labels), labels)


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (5, 1, 4), (1, 1, 3)])
def test_axes_of_length_one(shape):
    u = random(1, len(shape), *shape) * 2 - 1
    phi, image = Deformation(u), random(1, 2, *shape)
    points = [p.numpy() for p in phi.points[0]]
    for c in range(2):
        expected = ndimage.map_coordinates(image[0, c].numpy(), points, order=1, mode="nearest")
        assert_close(phi.warp(image)[0, c], torch.from_numpy(expected), 1e-9)
    assert all(
        warp.displacement.isfinite().all()
        for warp in (phi @ phi, phi.inverse(), Deformation.exp(u))
    )
    still = torch.zeros_like(u).requires_grad_()
    assert torch.equal(Deformation(still).warp(image), image)
    Deformation(still).warp(image).sum().backward()
    assert still.grad.isfinite().all()


# --- diffeomorphisms ------------------------------------------------------------------------------


@shapes
def test_exp_of_the_negative_velocity_is_the_inverse(shape):
    velocity = smooth_field(shape, 2.0)
    forward, backward = Deformation.exp(velocity), Deformation.exp(-velocity)
    assert interior(forward.displacement).abs().max() > 1
    assert (forward.jacobian_determinant() > 0).all()
    for there_and_back in (forward @ backward, backward @ forward):
        assert interior(there_and_back.displacement).abs().max() < 0.05
    # no mere minus sign
    assert (interior(forward.displacement) + interior(backward.displacement)).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(48, 56), (32, 40, 32)], ids=["2D", "3D"])
def test_exp_is_the_walk_along_the_velocity(shape):
    velocity = smooth_field(shape, 6.0, sigma=5.0)
    walk = plain_exp(velocity)
    assert walk.abs().max() > 3
    error = (Deformation.exp(velocity).displacement - walk).norm(dim=1)
    assert error.mean() < 0.02
    assert error.max() < 0.12


@pytest.mark.parametrize("shape", [(48, 56), (32, 40, 32)], ids=["2D", "3D"])
def test_exp_on_half_the_grid_is_that_of_the_interpolated_velocity(shape):
    """In voxels of the fine grid; no folds, and the way back leads back."""
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    half = smooth_field([n // 2 for n in shape], 6.0, sigma=2.5)
    phi, back = (Deformation.exp(v, shape=shape) for v in (half, -half))
    assert phi.shape == shape
    fine = Deformation.exp(F.interpolate(half, scale_factor=2, mode=mode))
    assert fine.displacement.abs().max() > 3
    error = (phi.displacement - fine.displacement).norm(dim=1)
    assert error.mean() < 0.05
    assert interior(error[:, None]).max() < 0.25
    assert evaluation.folding(phi)["ndv_percent"] == 0
    for there_and_back in (phi @ back, back @ phi):
        assert interior(there_and_back.displacement).norm(dim=1).mean() < 0.05


@pytest.mark.parametrize("shape", [(9, 12), (7, 12, 8)], ids=["2D", "3D"])
def test_exp_of_a_translation_is_that_translation_on_any_grid(shape):
    velocity = torch.full((BATCH, len(shape), *[4] * len(shape)), 1.5, dtype=torch.float64)
    phi = Deformation.exp(velocity, shape=shape)
    assert_close(phi.displacement, translation(shape, 0, 0).displacement.double() + 1.5, 1e-9)


@shapes
def test_inverse_undoes_a_smooth_deformation(shape):
    phi = Deformation(smooth_field(shape, 1.5))
    inverse = phi.inverse()
    # the fixed point's own equation
    assert interior((phi @ inverse).displacement).abs().max() < 1e-6
    assert interior((inverse @ phi).displacement).abs().max() < 0.1  # the inverse is interpolated


@shapes
def test_minus_u_is_not_the_inverse(shape):
    centre = torch.tensor([(n - 1) / 2 for n in shape])
    grow = torch.eye(len(shape) + 1) * 1.2
    grow[:-1, -1] = -0.2 * centre
    grow[-1, -1] = 1
    phi = Deformation.affine(grow[None], shape)
    assert interior((phi @ phi.inverse()).displacement).abs().max() < 1e-4
    minus = interior((phi @ Deformation(-phi.displacement)).displacement)
    furthest = (max(shape) - 1) / 2 - MARGIN
    assert minus.abs().max().item() == pytest.approx(0.04 * furthest, abs=1e-4)  # 1.2 * 0.8 = 0.96


# --- gradients, precision, errors -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 3)], ids=["2D", "3D"])
def test_gradients_of_warping(shape):
    image = random(BATCH, 2, *shape).requires_grad_()
    # away from the kinks at voxels
    u = (0.1 + 0.3 * random(BATCH, len(shape), *shape, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: Deformation(v).warp(m), (image, u))


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 3)], ids=["2D", "3D"])
def test_gradients_of_exp_composition_and_jacobian(shape):
    u = (0.1 + 0.3 * random(1, len(shape), *shape, seed=1)).requires_grad_()

    def everything(v):
        phi = Deformation.exp(v, squarings=2, shape=[2 * n for n in shape])
        return (phi @ Deformation(v)).jacobian_determinant()

    assert torch.autograd.gradcheck(everything, u)


def test_detach_cuts_the_gradient():
    u = random(1, 2, 5, 4).requires_grad_()
    assert Deformation(u).warp(random(1, 1, 5, 4)).requires_grad
    assert not Deformation(u).detach().warp(random(1, 1, 5, 4)).requires_grad


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_displacements_are_promoted(half):
    u = torch.ones(1, 2, 300, 3, dtype=half)
    phi = Deformation(u)
    assert phi.displacement.dtype == torch.float32
    assert phi.points[0, 0, -1, 0] == 300  # bfloat16 has no 299 and no 301
    assert Deformation.exp(u).displacement.dtype == torch.float32


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_images_do_not_round_the_coordinates(half):
    stripes = (torch.arange(3000) % 2).view(1, 1, -1, 1).expand(1, 1, -1, 2).to(half)
    warped = translation((3000, 2), 0, 1.0).warp(stripes.expand(BATCH, -1, -1, -1))
    assert_close(
        warped[:, :, :-1].float(), stripes[:, :, 1:].expand(BATCH, -1, -1, -1).float(), 1e-2
    )


def test_a_deformation_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Deformation.identity((4, 4)).displacement = torch.zeros(1, 2, 4, 4)


@pytest.mark.parametrize(
    "u, message",
    [
        (
            torch.zeros(1, 3, 8, 8),
            r"\(B, 2, I, J\) or \(B, 3, I, J, K\) in voxels, got \(1, 3, 8, 8\)",
        ),
        (torch.zeros(1, 2, 8, 8, 8), r"got \(1, 2, 8, 8, 8\)"),
        (torch.zeros(2, 8, 8), r"got \(2, 8, 8\)"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.int64), "floating-point tensor .* of torch.int64"),
    ],
    ids=["channels", "channels 3D", "no batch", "integers"],
)
def test_a_wrong_displacement_is_refused(u, message):
    with pytest.raises(ValueError, match=message):
        Deformation(u)


@pytest.mark.parametrize("shape", [None, (8, 8)])
@pytest.mark.parametrize(
    "v",
    [torch.zeros(4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4, dtype=torch.int64)],
    ids=["no batch", "a channel too many", "integers"],
)
def test_a_wrong_velocity_is_refused(v, shape):
    with pytest.raises(ValueError, match=r"must be a floating-point tensor .* got \("):
        Deformation.exp(v, shape=shape)


def test_labels_are_not_interpolated():
    identity = Deformation.identity((4, 4))
    with pytest.raises(TypeError, match=r"warp interpolates.*use warp_labels for torch.uint8"):
        identity.warp(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"labels must be integers, got torch.float32: round them"):
        identity.warp_labels(torch.zeros(1, 4, 4))


@pytest.mark.parametrize("wrong", [(8, 8, 8), (1, 8, 8, 8), (1, 1, 8, 8)])
def test_a_forgotten_axis_is_named(wrong):
    with pytest.raises(ValueError, match="is the batch or the channel axis missing"):
        Deformation.identity((8, 8, 8)).warp(torch.zeros(wrong))
    with pytest.raises(ValueError, match="is the batch or the channel axis missing"):
        Deformation.identity((8, 8)).warp_labels(torch.zeros(8, 8, dtype=torch.uint8))


@shapes
def test_a_gpu_would_never_wait(shape):
    """All that a training step or a score does with a deformation."""
    dims = len(shape)
    velocity = (2 * random(BATCH, dims, *shape) - 1).requires_grad_()
    volume = random(BATCH, 2, *shape).requires_grad_()
    labels = torch.zeros(BATCH, *shape, dtype=torch.uint8)
    points = random(BATCH, dims, 7)

    def use():
        phi = Deformation.exp(velocity, shape=[2 * n for n in shape])
        phi = phi @ Deformation.identity(phi.shape, BATCH) @ phi.inverse(2)
        phi(points).sum().backward(retain_graph=True)
        phi.warp(volume).sum().backward(retain_graph=True)
        phi.jacobian_determinant().sum().backward()
        phi.warp_labels(labels)
        Deformation.affine(torch.eye(dims + 1)[None], shape)

    assert waits(use) == {}
    assert waits(lambda: velocity.new_tensor([1.0]) * velocity.detach().sum().item())  # it counts
