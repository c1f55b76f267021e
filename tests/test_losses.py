"""Losses, each against an independent library or a formula worked out by hand; then gradients,
precision, errors.
"""

import itertools

from deepatlas import losses
from deepatlas.warp import Deformation, voxel_grid

import numpy as np
import pytest
import torch
from helpers import waits
from monai.losses import BendingEnergyLoss, DiceLoss, LocalNormalizedCrossCorrelationLoss
from plain import plain_bending_energy, plain_lncc, plain_soft_dice
from scipy.stats import pearsonr

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}
both = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
shapes = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)], ids=["2D", "3D"])
similarities = pytest.mark.parametrize("loss", [losses.mse, losses.ncc, losses.lncc])
DICES = {
    "soft_dice": losses.soft_dice,
    "soft_dice of integers": lambda p, q: losses.soft_dice(p, q.argmax(1)),
    "softmax_dice": lambda p, q: losses.softmax_dice(p, q.argmax(1)),
}
ALL = {
    "mse": losses.mse,
    "ncc": losses.ncc,
    "lncc": losses.lncc,
    "lncc 3": lambda a, b: losses.lncc(a, b, 3),
    "diffusion": lambda a, _: losses.diffusion(a),
    "bending_energy": lambda a, _: losses.bending_energy(a),
    **DICES,
}
every = pytest.mark.parametrize("name", ALL)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.rand(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def two_images(shape, dtype=torch.float64, channels=2):
    """Two related but different batches (3, channels, ...)."""
    a = random(3, channels, *shape, dtype=dtype)
    return a, 0.5 * a + random(3, channels, *shape, dtype=dtype, seed=1)


def two_inputs(name, shape, dtype=torch.float64):
    """Arguments that the loss ``name`` of ALL accepts, every value in (0, 1)."""
    if name in DICES:
        a, b = (random(2, 3, *shape, seed=seed).softmax(1) for seed in (0, 1))
    else:
        a, b = (random(2, len(shape), *shape, seed=seed) for seed in (0, 1))
    return a.to(dtype), b.to(dtype)


def one_hot(labels):
    """(B, I, J, K) integers -> (B, 3, I, J, K)."""
    return torch.stack([labels == i for i in range(3)], 1).double()


def assert_number(actual, expected, tolerance=1e-9):
    assert actual.ndim == 0
    assert float(actual) == pytest.approx(float(expected), rel=tolerance, abs=tolerance)


# --- similarity -----------------------------------------------------------------------------------


@both
@shapes
def test_mse_is_the_mean_squared_difference(shape, dtype):
    a, b = two_images(shape, dtype)
    assert_number(
        losses.mse(a, b), np.mean((a.double() - b.double()).numpy() ** 2), TOLERANCE[dtype]
    )


@both
@shapes
def test_ncc_is_one_minus_pearsons_r_of_each_image(shape, dtype):
    a, b = two_images(shape, dtype)
    # images of different contrast: a mean over images, not one r of all voxels
    a[0], b[1] = 7 * a[0] + 3, -b[1]
    r = [
        pearsonr(x.flatten().double(), y.flatten().double()).statistic
        for x, y in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)
    ]
    assert_number(losses.ncc(a, b), 1 - np.mean(r), TOLERANCE[dtype])


@shapes
def test_ncc_ignores_scale_and_offset_but_sees_inversion(shape):
    a, b = two_images(shape)
    assert_number(losses.ncc(5 * a + 2, 0.1 * b - 7), losses.ncc(a, b), 1e-7)
    assert_number(losses.ncc(a, 3 * a - 1), 0)
    assert_number(losses.ncc(a, 1 - a), 2)


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e20, 1e37])
def test_correlations_do_not_depend_on_the_unit_of_intensities(scale):
    """In float32 the square of 1e20 is infinite, and a product of two sums of squares overflows
    long before.
    """
    a, b = two_images((12, 13, 14), torch.float32, channels=1)
    for loss in (losses.ncc, losses.lncc):
        scaled = (scale * a).requires_grad_()
        value = loss(scaled, scale * b)
        assert_number(value.detach(), loss(a, b), 1e-5)
        assert torch.isfinite(torch.autograd.grad(value, scaled)[0]).all()


FAINT = losses.FAINT


@pytest.fixture
def no_texture(monkeypatch):
    """LNCC without the faint texture that its windows share: the formula of the books."""
    monkeypatch.setattr(losses, "FAINT", 0.0)


def windows_by_loops(a, b, window, faint=0.0):
    """Mean of NCC squared over the windows of two arrays (I, J, K), each cut off at the border.

    As if to both a texture were added that correlates with itself alone.
    """
    r = window // 2
    s, t = (np.sqrt(faint) * x.std() for x in (a, b))
    values = []
    for centre in itertools.product(*map(range, a.shape)):
        box = tuple(slice(max(0, c - r), c + r + 1) for c in centre)
        covariance = np.cov(a[box].ravel(), b[box].ravel(), ddof=0)
        covariance = np.abs(covariance) + np.array([[s * s, s * t], [s * t, t * t]])
        values.append(covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1]))
    return np.mean(values)


@both
@shapes
@pytest.mark.parametrize("window", [3, 5, 9, 31])
def test_lncc_is_a_mean_of_squared_correlations_in_truncated_windows(shape, dtype, window):
    shape = tuple(n - 2 for n in shape)
    a, b = two_images(shape, dtype, channels=1)
    expected = 1 - np.mean(
        [
            windows_by_loops(x.numpy(), y.numpy(), window, FAINT)
            for x, y in zip(a[:, 0].double(), b[:, 0].double(), strict=True)
        ]
    )
    assert_number(losses.lncc(a, b, window), expected, 10 * TOLERANCE[dtype])


@shapes
@pytest.mark.parametrize("window", [3, 5, 9])
def test_lncc_agrees_with_monai_away_from_the_border(shape, window, no_texture):
    """MONAI sees zeros outside: with a margin of zeros no window is cut off in either. Windows that
    see nothing but the margin agree here, and do not there.
    """
    a, b = (
        torch.nn.functional.pad(100 * x, [window] * (2 * len(shape)))
        for x in two_images(shape, channels=1)
    )
    monai = LocalNormalizedCrossCorrelationLoss(
        len(shape), window, "rectangular", reduction="none", smooth_nr=0, smooth_dr=1e-9
    )
    squared = -monai(a, b)
    inside = torch.ones(shape)
    for axis in range(inside.ndim):  # a window sees the image from half its side away
        padding = [0, 0] * (inside.ndim - 1 - axis) + [window // 2] * 2
        inside = torch.nn.functional.pad(inside, padding, value=1)
    empty = a[:1, :1].numel() - inside.numel()
    agreement = (squared.sum() + len(a) * empty) / squared.numel()
    assert_number(losses.lncc(a, b, window), 1 - agreement, 1e-4)


@shapes
def test_a_window_larger_than_the_image_gives_the_squared_ncc(shape, no_texture):
    a, b = (x[:1, :1] for x in two_images(shape))
    assert_number(losses.lncc(a, b, 99), 1 - (1 - losses.ncc(a, b)) ** 2)


def test_lncc_ignores_local_contrast_and_inversion():
    a, _ = two_images((40, 40), channels=1)
    a = 10 * a
    halves = torch.cat([3 * a[..., :20] + 1, 5 - a[..., 20:]], -1)
    assert losses.lncc(a, 5 - 2 * a, 5) < 1e-6
    assert losses.lncc(a, halves, 5) < 0.12  # all windows but those across the seam
    assert losses.ncc(a, halves) > 0.5


@shapes
def test_an_image_has_no_lncc_from_itself_however_much_of_it_is_flat(shape):
    """A skull-stripped scan is flat in most of its windows."""
    a, _ = two_images(tuple(4 * n for n in shape), torch.float32, channels=1)
    a[..., : 3 * a.shape[-1] // 4] = 0
    for other in (a, 3 * a, a / 7 + 2, 1 - a):
        assert losses.lncc(a, other) < 1e-4


def test_a_flat_window_and_one_with_an_edge_do_not_agree():
    flat = torch.zeros(1, 1, 30, 30)
    flat[..., 25:, 25:] = 1
    edge = flat.clone()
    edge[..., :10, 4] = 1
    assert losses.lncc(flat, flat) < 1e-5
    seen = 9 * 14 / 900  # share of the windows that see the line
    assert losses.lncc(flat, edge) > 0.8 * seen


@pytest.mark.parametrize("window", [4, 1, 0, -3])
def test_lncc_refuses_a_window_without_a_centre(window):
    with pytest.raises(ValueError, match=rf"odd number of at least 3 voxels, got {window}"):
        losses.lncc(*two_images((9, 9)), window)


@similarities
def test_similarities_refuse_images_of_different_shape(loss):
    with pytest.raises(
        ValueError, match=r"one shape were wanted, got \(1, 1, 5, 6\) and \(1, 1, 6, 5\)"
    ):
        loss(torch.zeros(1, 1, 5, 6), torch.zeros(1, 1, 6, 5))


# --- regularity -----------------------------------------------------------------------------------


def quadratic(shape, dtype=torch.float64, seed=0):
    """A displacement (2, D, ...) quadratic in x, and the squared Frobenius norm of its Hessians,
    averaged over B.
    """
    d = len(shape)
    hessians = random(2, d, d, d, seed=seed) - 0.5
    hessians = hessians + hessians.transpose(-1, -2)
    x = voxel_grid(shape, hessians)
    u = torch.einsum("bcij,i...,j...->bc...", hessians, x, x) / 2 + affine_field(shape)
    return u.to(dtype), hessians.square().sum((1, 2, 3)).mean()


def affine_field(shape, matrix=None):
    matrix = random(len(shape), len(shape), seed=5) if matrix is None else matrix
    return torch.einsum("cd,d...->c...", matrix, voxel_grid(shape, matrix))[None] + 3.5


@both
@shapes
def test_bending_energy_of_a_quadratic_is_its_hessian_squared(shape, dtype):
    u, expected = quadratic(shape, dtype)
    assert_number(losses.bending_energy(u), expected, 100 * TOLERANCE[dtype])


@shapes
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # inside MONAI
def test_bending_energy_of_a_quadratic_is_d_times_monais(shape):
    u, _ = quadratic(shape)
    assert_number(losses.bending_energy(u), len(shape) * BendingEnergyLoss()(u))


@shapes
def test_bending_energy_is_zero_for_affine_and_rigid_deformations(shape):
    assert losses.bending_energy(affine_field(shape)) < 1e-20
    turn = torch.eye(len(shape) + 1, dtype=torch.float64)[None]
    turn[0, :2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert losses.bending_energy(Deformation.affine(turn, shape).displacement) < 1e-20


@shapes
def test_bending_energy_sees_the_checkerboard_that_central_differences_do_not(shape):
    d = len(shape)
    board = (-1.0) ** voxel_grid(shape, torch.zeros((), dtype=torch.float64)).sum(0).expand(
        1, d, *shape
    )
    assert all(
        np.abs(np.gradient(board[0, 0].numpy(), axis=i)[(slice(1, -1),) * d]).max() == 0
        for i in range(d)
    )
    assert_number(losses.bending_energy(board), d * 16 * d**2)  # every second difference is 4 or -4


def field(side, dims):
    """A smooth physical deformation of the unit cube, in voxels of a grid of ``side``."""
    x = (voxel_grid((side,) * dims, torch.zeros((), dtype=torch.float64)) + 0.5) / side
    wave = torch.sin(3 * x.roll(1, 0)) * torch.cos(2 * x)
    return (0.1 * side * wave)[None]


@pytest.mark.parametrize(("dims", "side"), [(2, 64), (3, 32)])
def test_doubling_the_grid_quarters_bending_energy_and_keeps_diffusion(dims, side):
    coarse, fine = field(side, dims), field(2 * side, dims)
    assert float(losses.bending_energy(coarse) / losses.bending_energy(fine)) == pytest.approx(
        4, rel=0.02
    )
    assert float(losses.diffusion(coarse) / losses.diffusion(fine)) == pytest.approx(1, rel=0.05)


@both
@shapes
def test_diffusion_of_an_affine_field_is_its_matrix_squared(shape, dtype):
    matrix = random(len(shape), len(shape), seed=3) - 0.5
    u = affine_field(shape, matrix).to(dtype)
    assert_number(losses.diffusion(u), matrix.square().sum(), 100 * TOLERANCE[dtype])


@shapes
def test_diffusion_is_the_squared_difference_of_neighbours(shape):
    u = random(2, len(shape), *shape)
    expected = sum(
        np.mean(np.sum(np.diff(u.numpy(), axis=axis) ** 2, axis=1)) for axis in range(2, u.ndim)
    )
    assert_number(losses.diffusion(u), expected)


# --- overlap --------------------------------------------------------------------------------------


@both
@shapes
def test_soft_dice_agrees_with_monai(shape, dtype):
    p, q = two_inputs("soft_dice", shape, dtype)
    truth = one_hot(q.argmax(1)).to(dtype)
    monai = DiceLoss(smooth_nr=1, smooth_dr=1)
    assert_number(losses.soft_dice(p, truth), monai(p, truth), TOLERANCE[dtype])
    assert_number(losses.soft_dice(p, q), monai(p, q), TOLERANCE[dtype])


@both
@shapes
def test_soft_dice_of_integers_is_that_of_their_one_hot(shape, dtype):
    p, q = two_inputs("soft_dice", shape, dtype)
    p.requires_grad_()
    values = [
        losses.soft_dice(p, labels)
        for labels in (q.argmax(1), q.argmax(1).to(torch.uint8), one_hot(q.argmax(1)))
    ]
    gradients = [torch.autograd.grad(value, p)[0] for value in values]
    for value, gradient in zip(values[:2], gradients[:2], strict=True):
        assert_number(value.detach(), values[2].detach(), TOLERANCE[dtype])
        torch.testing.assert_close(gradient, gradients[2], rtol=1e-4, atol=1e-9)


def test_soft_dice_by_hand():
    truth = one_hot(torch.tensor([[0, 0, 1, 1]])[None])  # the third structure is nowhere
    guess = one_hot(torch.tensor([[0, 1, 1, 1]])[None])
    assert_number(losses.soft_dice(guess, truth), 1 - (3 / 4 + 5 / 6 + 1) / 3, 1e-6)
    assert_number(losses.soft_dice(truth, truth), 0, 1e-6)
    nothing_overlaps = 1 - (1 / 3 + 1 / 5 + 1 / 3) / 3
    assert_number(losses.soft_dice(truth.roll(1, 1), truth), nothing_overlaps, 1e-6)


@pytest.mark.parametrize(("side", "p"), [(16, 1e-6), (32, 1e-6), (128, 1e-8)])
def test_structures_that_are_nowhere_agree_though_no_softmax_is_0(side, p):
    """As long as their probabilities sum to much less than a voxel."""
    truth = torch.zeros(1, side, side, side, dtype=torch.long)
    guess = torch.full((1, 3, side, side, side), p)
    guess[:, 0] = 1 - 2 * p
    assert losses.soft_dice(guess, truth) < 0.03
    both = torch.zeros_like(guess)
    both[:, 0] = 1
    assert losses.soft_dice(guess, both) < 0.03


def test_soft_dice_counts_more_voxels_than_float32_can_count_to():
    """Added up one by one, a sum of ones stops at 2^24."""
    shape = (1, 18, 1024, 1024)
    labels = torch.ones(shape, dtype=torch.uint8)
    p = torch.zeros(1, 2, *shape[1:])
    p[:, 1] = 1
    assert_number(losses.soft_dice(p, labels), 0, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16, torch.int16, torch.int64])
def test_soft_dice_takes_integers_of_any_type(dtype):
    p, q = two_inputs("soft_dice", (9, 11))
    labels = (q.argmax(1) > 0).long()
    assert_number(losses.soft_dice(p, labels.to(dtype)), losses.soft_dice(p, labels))


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (2, 2), (1, 1), (2, 2, 2), (1, 4, 6)])
def test_regularity_of_a_side_too_short_for_differences(shape):
    """The differences that there are count, the others are none; and the gradient is finite."""
    u = random(1, len(shape), *shape).requires_grad_()
    value = losses.bending_energy(u) + losses.diffusion(u)
    assert torch.isfinite(torch.autograd.grad(value, u)[0]).all()
    long = u.detach().repeat(1, 1, *(5 if n == 1 else 1 for n in shape))
    assert_number(losses.diffusion(u).detach(), losses.diffusion(long))


@both
@shapes
def test_softmax_dice_agrees_with_monai(shape, dtype):
    scores, q = two_inputs("softmax_dice", shape, dtype)
    scores, labels = 9 * scores, q.argmax(1)
    monai = DiceLoss(softmax=True, to_onehot_y=True, smooth_nr=1, smooth_dr=1)
    assert_number(
        losses.softmax_dice(scores, labels), monai(scores, labels[:, None]), TOLERANCE[dtype]
    )


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(2, 4, 4),
        torch.zeros(2, 1, 4, 4, dtype=torch.long),
        torch.zeros(2, 4, 5, dtype=torch.long),
        torch.zeros(2, 2, 4, 4),
    ],
)
def test_soft_dice_refuses_a_target_that_does_not_fit(labels):
    with pytest.raises(
        ValueError,
        match=r"probabilities \(2, 3, 4, 4\) want a target of that shape, or integer "
        r"labels .* got \(.*\) of torch",
    ):
        losses.soft_dice(torch.zeros(2, 3, 4, 4), labels)


@pytest.mark.parametrize("labels", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 5)])
def test_softmax_dice_wants_integer_labels(labels):
    with pytest.raises(ValueError, match=r"scores \(2, 3, 4, 4\) want integer labels .* got"):
        losses.softmax_dice(torch.zeros(2, 3, 4, 4), labels.long())
    with pytest.raises(TypeError, match="labels must be integers"):
        losses.softmax_dice(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4))


# --- gradients and precision ----------------------------------------------------------------------

PLAIN = {
    "lncc": plain_lncc,
    "bending_energy": plain_bending_energy,
    "soft_dice": plain_soft_dice,
    "soft_dice of integers": lambda p, labels: plain_soft_dice(p, one_hot(labels)),
    "softmax_dice": lambda s, labels: plain_soft_dice(s.softmax(1), one_hot(labels)),
}


def fast_and_plain(name, shape):
    """(the loss, its plain version, what both are given) of PLAIN."""
    fast = getattr(losses, name.split()[0])
    if name == "bending_energy":
        return fast, PLAIN[name], [9 * random(2, len(shape), *shape)]
    if name == "lncc":
        a, b = two_images(shape)
        return fast, PLAIN[name], [a, b]
    p, q = two_inputs(name, shape)
    return fast, PLAIN[name], [p, q if name == "soft_dice" else q.argmax(1)]


@pytest.mark.parametrize("slab", [50, 300, 2**16])  # numbers: all sizes of a last one
@pytest.mark.parametrize("name", PLAIN)
@shapes
def test_own_gradients_are_those_of_the_plain_loss(name, shape, slab, monkeypatch):
    monkeypatch.setitem(losses.SLAB, "cpu", slab)
    fast, plain, inputs = fast_and_plain(name, shape)
    for window in (3, 5, 9, 31) if name == "lncc" else (None,):
        words = [window] if window else []
        leaves = [x.requires_grad_() for x in inputs if x.is_floating_point()]
        value, expected = fast(*inputs, *words), plain(*inputs, *words)
        assert_number(value.detach(), expected.detach(), 1e-12)
        gradients = torch.autograd.grad(value, leaves, 3 * torch.ones_like(value))
        expected = torch.autograd.grad(3 * expected, leaves)
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PLAIN)
@shapes
def test_own_gradients_are_the_same_on_a_gpu(name, shape):
    fast, _, inputs = fast_and_plain(name, shape)
    values, gradients = [], []
    for device in ("cpu", "cuda"):
        first, *others = [x.to(device) for x in inputs]
        value = fast(first.requires_grad_(), *others)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, first)[0].cpu())
    assert_number(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "softmax_dice"])
def test_own_gradients_come_for_what_wants_one_and_as_often_as_asked(name):
    fast, _, inputs = fast_and_plain(name, (6, 7))
    assert not fast(*inputs).requires_grad
    for number, x in enumerate(inputs):
        if not x.is_floating_point():
            continue
        leaf = x.clone().requires_grad_()
        value = fast(*inputs[:number], leaf, *inputs[number + 1 :])
        with torch.no_grad():
            assert_number(fast(*inputs[:number], leaf, *inputs[number + 1 :]), value)
        once = torch.autograd.grad(value, leaf, retain_graph=True)[0]
        twice = torch.autograd.grad(2 * value, leaf)[0]
        torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 4, 4, 5, 6)])
def test_cross_entropy_is_that_of_the_formula(shape):
    """Of integer labels and of probabilities, which may sum to less than one."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator, requires_grad=True)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    q = torch.nn.functional.one_hot(labels, shape[1]).movedim(-1, 1).float()
    for target, probabilities in ((labels, q), (0.5 * q, 0.5 * q)):
        formula = -(probabilities * scores.softmax(1).log()).sum(1).mean()
        found = losses.cross_entropy(scores, target)
        torch.testing.assert_close(found, formula)
        gradients = [torch.autograd.grad(x, scores)[0] for x in (found, formula)]
        torch.testing.assert_close(*gradients)


def test_cross_entropy_is_never_in_half_precision():
    """Of scores that a network gave in bfloat16 it is what float32 makes of the same numbers."""
    scores = (8 * torch.randn(2, 5, 9, 7, generator=torch.manual_seed(0))).bfloat16()
    labels = torch.randint(5, (2, 9, 7), generator=torch.manual_seed(1))
    found = losses.cross_entropy(scores, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, losses.cross_entropy(scores.float(), labels))


def test_cross_entropy_finds_a_structure_that_dice_has_lost():
    scores = torch.zeros(1, 2, 8, 8)
    scores[:, 0] = 20.0  # everything is background, and nothing of it
    scores.requires_grad_()
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 2:5, 2:5] = 1
    steep = {}
    for loss in (losses.softmax_dice, losses.cross_entropy):
        (gradient,) = torch.autograd.grad(loss(scores, labels), scores)
        steep[loss.__name__] = gradient[0, 1, 3, 3].abs().item()
    assert steep["softmax_dice"] < 1e-8 and steep["cross_entropy"] > 0.01


def test_the_gradient_of_softmax_dice_comes_once():
    _, _, (scores, labels) = fast_and_plain("softmax_dice", (6, 7))
    value = losses.softmax_dice(scores.requires_grad_(), labels)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("name", PLAIN)
def test_a_gradient_of_an_own_gradient_is_refused(name):
    fast, _, inputs = fast_and_plain(name, (6, 7))
    value = fast(inputs[0].requires_grad_(), *inputs[1:])
    with pytest.raises(RuntimeError, match=r"brings its own gradient, .* without create_graph"):
        torch.autograd.grad(value, inputs[0], create_graph=True)


@pytest.mark.parametrize("name", [name for name in ALL if name != "softmax_dice"])  # asks twice
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)], ids=["2D", "3D"])
def test_gradients_are_those_of_finite_differences(name, shape):
    a, b = two_inputs(name, shape)
    scale = 1 if name in DICES else 10
    if name not in DICES:
        b.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: ALL[name](scale * a, scale * b), (a.requires_grad_(), b)
    )


@every
@shapes
def test_half_precision_is_computed_in_float32(name, shape):
    a, b = two_inputs(name, shape, torch.bfloat16)
    expected = ALL[name](a.float(), b.float())
    with torch.autocast("cpu", torch.bfloat16):
        values = [ALL[name](a, b), ALL[name](a.float(), b.float())]
    for value in (*values, ALL[name](a, b)):
        assert value.dtype == torch.float32
        assert_number(value, expected, 1e-6)


@every
def test_double_precision_is_kept(name):
    a, b = two_inputs(name, (6, 7))
    assert ALL[name](a, b).dtype == torch.float64


@similarities
@pytest.mark.parametrize("images", ["constant", "both constant", "faint", "far from zero", "black"])
def test_similarities_survive_hard_images(loss, images):
    a, b = two_images((12, 13, 14), torch.float32, channels=1)
    a = {
        "constant": torch.full_like(a, 0.3),
        "both constant": torch.full_like(a, 0.3),
        "faint": 1e-4 * a,
        "far from zero": 1000 + 0.01 * a,
        "black": torch.zeros_like(a),
    }[images].requires_grad_()
    b = torch.full_like(b, 0.7) if images == "both constant" else b
    value = loss(a, b)
    value.backward()
    assert torch.isfinite(a.grad).all()
    assert value >= 0 and (loss is losses.mse or value <= 2)


def test_a_large_offset_costs_little_accuracy():
    a, b = two_images((16, 16, 16), torch.float32, channels=1)
    a = 1000 + a  # float32 holds it to 6e-5
    assert_number(losses.ncc(a, b), losses.ncc(a.double(), b.double()), 1e-4)
    assert_number(losses.lncc(a, b), losses.lncc(a.double(), b.double()), 1e-3)


@shapes
def test_lncc_stays_accurate_beside_a_bright_flat_region(shape):
    """Running sums must not lose a faint texture behind a bright one: float32 against float64."""
    a, b = two_images(tuple(4 * n for n in shape), torch.float32, channels=1)
    a[..., : a.shape[-1] // 2] = 50
    assert_number(losses.lncc(a, b, 5), losses.lncc(a.double(), b.double(), 5), 2e-2)


@shapes
def test_a_variance_lost_to_rounding_is_never_negative(shape):
    a, b = (
        x.requires_grad_()
        for x in two_images(tuple(4 * n for n in shape), torch.float32, channels=1)
    )
    bright = torch.zeros_like(a)
    bright[..., : a.shape[-1] // 2] = 1e4  # window variances of the rounding are about 10
    values = [
        losses.lncc(x, y, 5)
        for x, y in ((bright + 1e-3 * a, b), (b, bright), (bright, bright + 1e-3 * b))
    ]
    for value in values:
        assert 0 <= value <= 1
    assert all(
        torch.isfinite(g).all() and g.abs().max() < 1e3
        for g in torch.autograd.grad(sum(values), (a, b))
    )


@similarities
def test_identical_images_have_no_loss(loss):
    a, _ = two_images((15, 16), torch.float32)
    assert -1e-6 <= float(loss(100 * a, 100 * a)) < 1e-5


@every
@shapes
def test_a_gpu_would_never_wait(name, shape):
    a, b = two_inputs(name, shape)
    a.requires_grad_()
    assert waits(lambda: ALL[name](a, b).backward()) == {}
