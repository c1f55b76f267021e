"""Where floating-point numbers run out: losses, deformations and scores in float32 and bfloat16, of
any intensity, of structures that are empty, of displacements that lead far away and of grids of a
voxel or two, against the formulae in float64 of oracle.py; and how far trainings repeat to the bit.
"""

import hashlib
import itertools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from deepatlas import evaluation, losses, models, registration
from deepatlas.data import Batch, Scan, rescale_intensities
from deepatlas.datasets.nifti import load_scan
from deepatlas.datasets.preparation import Preparation
from deepatlas.recompute import sparing
from deepatlas.regimes import REGIMES
from deepatlas.terms import SIMILARITIES, Weights, reg_terms, seg_terms
from deepatlas.training import Settings, train
from deepatlas.warp import Deformation

import nibabel as nib
import numpy as np
import oracle
import pytest
import torch
from helpers import disks, one_thread  # noqa: F401
from plain import plain_folded_volume
from scipy import ndimage

# odd, tiny, unequal; the last ones are large enough for a mean to mean something
SHAPES = [(1, 1), (1, 7), (5, 1), (2, 3), (3, 3), (1, 1, 1), (1, 5, 2), (2, 2, 2), (3, 1, 7)]
LARGER = [(11, 7), (7, 5, 6)]
shapes = pytest.mark.parametrize("shape", SHAPES + LARGER, ids=str)
larger = pytest.mark.parametrize("shape", LARGER, ids=["2D", "3D"])


# --- tolerances -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """How far a value may be from that in float64, in parts of its largest number, or of 1 where
    that is smaller: a correlation of 0 is not 0 to seven digits.
    """

    float64: float
    float32: float
    bfloat16: float  # what comes in is rounded to 8 bits, 1 part in 512; the sums are of float32
    why: str
    has_unit: bool = False  # then only parts of its largest number are meant

    def of(self, dtype: torch.dtype) -> float:
        return getattr(self, str(dtype).removeprefix("torch."))


_MEANS = "means of centred numbers: some units of the last digit"
_NOISE = "as means; and to a variance the square of 1e-6 of the largest intensity is added"
_DIFFERENCES = "differences of neighbours lose a digit, which a square doubles"
_SHARES = "sums of positive numbers, divided by each other: hardly anything is lost"
_LOGARITHMS = "scores of 10 are kept to 0.02, and count as they are"
_PLACES = "a place is kept to 1 part in 512 of its displacement; there the image has a slope"

TOLERANCES = {
    "mse": Tolerance(1e-12, 5e-7, 5e-3, _MEANS, has_unit=True),
    "ncc": Tolerance(1e-9, 5e-7, 2e-3, _NOISE),
    "lncc 3": Tolerance(1e-9, 1e-6, 3e-3, _NOISE),
    "lncc 9": Tolerance(1e-9, 1e-6, 3e-3, _NOISE),
    "diffusion": Tolerance(1e-12, 5e-7, 5e-3, _DIFFERENCES, has_unit=True),
    "bending_energy": Tolerance(1e-12, 5e-7, 5e-3, _DIFFERENCES, has_unit=True),
    "soft_dice": Tolerance(1e-12, 5e-7, 1e-3, _SHARES),
    "soft_dice of integers": Tolerance(1e-12, 5e-7, 1e-3, _SHARES),
    "softmax_dice": Tolerance(1e-12, 5e-7, 1e-3, _SHARES),
    "warped_dice": Tolerance(1e-12, 5e-7, 1e-3, _SHARES),
    "cross_entropy": Tolerance(1e-12, 1e-6, 3e-3, _LOGARITHMS),
    "warp": Tolerance(1e-12, 5e-6, 2e-2, _PLACES),
    "composition": Tolerance(1e-12, 5e-6, 3e-2, _PLACES, has_unit=True),
    "exp": Tolerance(1e-12, 5e-6, 2e-2, _PLACES, has_unit=True),
    "jacobian": Tolerance(1e-12, 1e-6, 1e-2, _DIFFERENCES),
    "ndv_percent": Tolerance(1e-12, 1e-6, 3e-3, _DIFFERENCES),
    "sd_log_j": Tolerance(1e-12, 1e-6, 3e-3, _DIFFERENCES),
    "endpoint_voxels": Tolerance(1e-12, 1e-6, 2e-3, _MEANS, has_unit=True),
}


def assert_near(found, expected, name, dtype):
    """Finite, and as near as TOLERANCES says."""
    tolerance = TOLERANCES[name]
    found = np.asarray(found.detach().double() if isinstance(found, torch.Tensor) else found)
    size = np.abs(expected).max()
    if not tolerance.has_unit:
        size = max(size, 1.0)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance.of(dtype) * size)


def tensors(arrays, dtype):
    """Numbers in that precision; integers as they are."""
    found = []
    for array in arrays:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        found.append(tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return found


PRECISIONS = (torch.float64, torch.float32, torch.bfloat16)

# --- what goes in ---------------------------------------------------------------------------------


def rng(seed=0):
    return np.random.default_rng(seed)


def two_images(shape):
    """Two related batches (2, 2, ...), bright and dark, around 0."""
    a, noise = rng().uniform(-1, 1, (2, 2, 2, *shape))
    return a, 0.5 * a + noise


def probabilities(shape, seed=0):
    """(2, 3, ...): positive, summing to 1."""
    chances = rng(seed).uniform(0.05, 1, (2, 3, *shape))
    return chances / chances.sum(1, keepdims=True)


def scores(shape):
    """(2, 3, ...), before the softmax."""
    return 3 * rng(1).normal(size=(2, 3, *shape))


def labels(shape, structures=3):
    return rng(2).integers(structures, size=(2, *shape))


def displacement(shape, size=1.5, seed=3):
    """(2, D, ...) of at most ``size`` voxels per component."""
    return rng(seed).uniform(-size, size, (2, len(shape), *shape))


# --- every loss and deformation, in every precision -----------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is computed of ``inputs(shape)``, and what the oracle makes of them."""

    inputs: Callable
    compute: Callable
    expected: Callable


def warped_dice(p, q, u):
    return losses.warped_dice(Deformation(u).warp, p, q)


CASES = {
    "mse": Case(two_images, losses.mse, oracle.mse),
    "ncc": Case(two_images, losses.ncc, oracle.ncc),
    "lncc 3": Case(
        two_images, lambda a, b: losses.lncc(a, b, 3), lambda a, b: oracle.lncc(a, b, 3)
    ),
    "lncc 9": Case(two_images, losses.lncc, lambda a, b: oracle.lncc(a, b, 9)),
    "diffusion": Case(lambda s: [displacement(s)], losses.diffusion, oracle.diffusion),
    "bending_energy": Case(
        lambda s: [displacement(s)], losses.bending_energy, oracle.bending_energy
    ),
    "soft_dice": Case(
        lambda s: [probabilities(s), probabilities(s, 1)], losses.soft_dice, oracle.soft_dice
    ),
    "soft_dice of integers": Case(
        lambda s: [probabilities(s), labels(s)],
        losses.soft_dice,
        lambda p, truth: oracle.soft_dice(p, oracle.one_hot(truth, 3)),
    ),
    "softmax_dice": Case(
        lambda s: [scores(s), labels(s)],
        losses.softmax_dice,
        lambda x, truth: oracle.softmax_dice(x, oracle.one_hot(truth, 3)),
    ),
    "warped_dice": Case(
        lambda s: [probabilities(s), probabilities(s, 1), displacement(s)],
        warped_dice,
        lambda p, q, u: oracle.soft_dice(oracle.warped(p, u), q),
    ),
    "cross_entropy": Case(
        lambda s: [scores(s), labels(s)],
        losses.cross_entropy,
        lambda x, truth: oracle.cross_entropy(x, oracle.one_hot(truth, 3)),
    ),
    "warp": Case(
        lambda s: [two_images(s)[0], displacement(s)],
        lambda image, u: Deformation(u).warp(image),
        oracle.warped,
    ),
    "composition": Case(
        lambda s: [displacement(s), displacement(s, seed=4)],
        lambda u, v: (Deformation(u) @ Deformation(v)).displacement,
        oracle.composed,
    ),
    "exp": Case(lambda s: [displacement(s)], lambda v: Deformation.exp(v).displacement, oracle.exp),
    "jacobian": Case(
        lambda s: [displacement(s)],
        lambda u: Deformation(u).jacobian_determinant(),
        oracle.jacobian,
    ),
}
every = pytest.mark.parametrize("name", CASES)


@every
@shapes
def test_every_precision_is_near_the_formula(name, shape):
    case = CASES[name]
    inputs = case.inputs(shape)
    expected = case.expected(*inputs)
    for dtype in PRECISIONS:
        assert_near(case.compute(*tensors(inputs, dtype)), expected, name, dtype)


@every
@shapes
def test_every_gradient_is_near_that_in_float64(name, shape):
    """Which finite differences check elsewhere. In bfloat16 a place may have passed into the next
    voxel, where the image has another slope: there it is finite.
    """
    case = CASES[name]
    inputs = case.inputs(shape)
    exact, single, half = (gradients(case.compute, inputs, dtype) for dtype in PRECISIONS)
    for one, other, rough in zip(exact, single, half, strict=True):
        assert other.dtype == torch.float32
        largest = one.abs().max().item()
        torch.testing.assert_close(other.double(), one, rtol=0, atol=GRADIENT * largest)
        assert rough.isfinite().all()


# of the largest number: sums as those of the values, divided by a variance
GRADIENT = 5e-5


def gradients(compute, inputs, dtype):
    """Those of a number, or of many weighed at random, by every input that has one."""
    leaves = tensors(inputs, dtype)
    wanted = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
    output = compute(*leaves)
    if output.ndim:
        weights = torch.from_numpy(rng(7).uniform(0.5, 1, output.shape))
        output = (weights.to(output.dtype) * output).sum()
    return torch.autograd.grad(output, wanted)


# --- images of any intensity ----------------------------------------------------------------------


def with_bright_voxel(image, value=1e30):
    bright = np.abs(image)
    bright[..., 2, 3] = value
    return bright


INTENSITIES = {
    "1e-30": lambda a, b: (1e-30 * a, 1e-30 * b),
    "1e30": lambda a, b: (1e30 * a, 1e30 * b),
    "1e-30 and 1e30": lambda a, b: (1e-30 * a, 1e30 * b),
    "a voxel of 1e30": lambda a, b: (with_bright_voxel(a), b),
    "a voxel of 1e30 in both": lambda a, b: (with_bright_voxel(a), with_bright_voxel(b)),
    "a voxel of 1e-30 in black": lambda a, b: (with_bright_voxel(0 * a, 1e-30), b),
}
FLAT = {
    "black": lambda a, b: (0 * a, b),
    "both black": lambda a, b: (0 * a, 0 * b),
    "constant 1e-30": lambda a, b: (0 * a + 1e-30, b),
    "constant 1e30": lambda a, b: (0 * a + 1e30, b),
    "both constant": lambda a, b: (0 * a + 1e30, 0 * b - 0.3),
}
correlations = pytest.mark.parametrize("name", ["ncc", "lncc 3", "lncc 9"])


@correlations
@larger
@pytest.mark.parametrize("kind", [*INTENSITIES, *FLAT])
def test_correlations_of_any_intensity(name, shape, kind):
    case = CASES[name]
    inputs = (INTENSITIES | FLAT)[kind](*two_images(shape))
    expected = case.expected(*inputs)
    for dtype in PRECISIONS:
        assert_near(case.compute(*tensors(inputs, dtype)), expected, name, dtype)
        for gradient in gradients(case.compute, inputs, dtype):
            assert gradient.isfinite().all()


SLOPES = [("ncc", kind) for kind in INTENSITIES]
# Where windows are flat LNCC has a kink, and no slope: a correlation and its opposite count alike.
SLOPES += [(name, kind) for name in ("lncc 3", "lncc 9") for kind in list(INTENSITIES)[:3]]


@larger
@pytest.mark.parametrize(("name", "kind"), SLOPES)
def test_the_slope_of_correlations_of_any_intensity(name, shape, kind):
    """That of the formula, along a random direction, by finite differences."""
    case = CASES[name]
    a, b = INTENSITIES[kind](*two_images(shape))
    step = np.abs(a).max() * rng(5).normal(size=a.shape)
    ahead, behind = (case.expected(a + h * step, b) for h in (1e-6, -1e-6))
    slope = (ahead - behind) / 2e-6
    (gradient, _) = gradients(case.compute, [a, b], torch.float32)
    found = (gradient.double().numpy() * step).sum()
    assert found == pytest.approx(slope, rel=1e-3, abs=1e-5)


@larger
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_squared_difference_has_the_unit_of_intensities_squared(shape, scale):
    """Of 1e30 float32 cannot hold it: it is infinite, not NaN, and its gradient is what it is."""
    a, b = (scale * x for x in two_images(shape))
    assert_near(losses.mse(*tensors([a, b], torch.float64)), oracle.mse(a, b), "mse", torch.float64)
    single = losses.mse(*tensors([a, b], torch.float32))
    assert single == (0 if scale < 1 else math.inf)
    (gradient, _) = gradients(losses.mse, [a, b], torch.float32)
    np.testing.assert_allclose(gradient.numpy(), 2 * (a - b) / a.size, rtol=1e-3)


@larger
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_images_are_aligned_and_registered_whatever_their_intensities(shape, scale):
    """As those of intensity 1 are, to the bit: a power of two, 1e-30 or 1e30, rounds nothing."""
    images = tensors(rolled_images(shape), torch.float32)
    scaled = [scale * image for image in images]
    matrix, expected = (registration.affine_matrices(*x, steps=(4, 2)) for x in (scaled, images))
    assert torch.equal(matrix, expected)
    assert (expected - torch.eye(len(shape) + 1)).abs().max() > 0.05
    phi, expected = (registration.optimise_pair(*x, steps=5) for x in (scaled, images))
    assert torch.equal(phi.displacement, expected.displacement)
    assert expected.displacement.abs().max() > 0.1


def rolled_images(shape):
    """A smooth image (1, 1, ...) and the same a voxel further along the first axis."""
    fixed = ndimage.gaussian_filter(rng().uniform(size=[2 * n for n in shape]), 1.0)[None, None]
    return np.roll(fixed, 1, 2), fixed


# --- structures that are empty or one voxel -------------------------------------------------------

PLACES = {"nowhere": slice(0), "one voxel": 0, "another voxel": -1, "everywhere": slice(None)}
small_shapes = pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 4), (2, 2, 2), (5, 1, 3)])
predicted_at = pytest.mark.parametrize("predicted", PLACES)
reference_at = pytest.mark.parametrize("reference", PLACES)


def structure(place, shape):
    """Integer labels, 1 at a place."""
    found = np.zeros(shape, np.uint8)
    found.flat[PLACES[place]] = 1
    return found


@predicted_at
@reference_at
@small_shapes
def test_overlap_of_structures_that_are_hardly_there(predicted, reference, shape):
    """Each form of Dice and cross entropy, of a prediction without doubt: a softmax of 1e30."""
    guess, truth = structure(predicted, shape)[None], structure(reference, shape)[None]
    p, q = oracle.one_hot(guess, 3), oracle.one_hot(truth, 3)  # the third is in neither
    certain = 1e30 * (2 * p - 1)
    still = np.zeros((1, len(shape), *shape))
    dice, entropy = oracle.soft_dice(p, q), oracle.cross_entropy(certain, q)
    for name, inputs, expected in (
        ("soft_dice", [p, q], dice),
        ("soft_dice of integers", [p, truth], dice),
        ("softmax_dice", [certain, truth], dice),
        ("warped_dice", [p, q, still], dice),
        ("cross_entropy", [certain, truth], entropy),
        ("cross_entropy", [certain, q], entropy),
    ):
        compute = CASES[name].compute
        for dtype in PRECISIONS:
            assert_near(compute(*tensors(inputs, dtype)), expected, name, dtype)
            assert all(g.isfinite().all() for g in gradients(compute, inputs, dtype))
            with sparing(name == "warped_dice"):
                assert_near(compute(*tensors(inputs, dtype)), expected, name, dtype)


@predicted_at
@reference_at
@small_shapes
def test_scores_of_structures_that_are_hardly_there(predicted, reference, shape):
    guess, truth = structure(predicted, shape), structure(reference, shape)
    check_scores(guess, truth, spacing=1.5)


@pytest.mark.parametrize("spacing", [0.7, (0.9, 1.3, 2.5)])
@shapes
def test_scores_are_those_of_every_distance(shape, spacing):
    """Of labels thrown at random, so that structures consist of single voxels, or are missing."""
    spacing = spacing if isinstance(spacing, float) else spacing[: len(shape)]
    guess, truth = labels(shape, 5)
    check_scores(guess, truth, spacing, structures=6)


def check_scores(guess, truth, spacing, structures=2):
    names = [str(c) for c in range(structures)]
    rows = evaluation.score_labels(guess, truth, names, spacing)
    alone = evaluation.dice(guess, truth, names)
    for c, row in enumerate(rows, 1):
        expected = {"dice": oracle.overlap(guess == c, truth == c)} | dict.fromkeys(
            ("nsd", "hd95_mm", "surface_mm", "volume_error"), math.nan
        )
        if (truth == c).any():
            expected["volume_error"] = (guess == c).sum() / (truth == c).sum() - 1
            expected["nsd"] = 0.0  # of a structure that was missed
            if (guess == c).any():
                expected |= oracle.surface_scores(guess == c, truth == c, spacing)
        found = {metric: row[metric] for metric in expected}
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)
        assert alone[str(c)] == pytest.approx(expected["dice"], nan_ok=True)


@pytest.mark.parametrize("shape", [(24, 20), (14, 12, 13)], ids=["2D", "3D"])
def test_scores_of_labels_that_a_network_gave_in_bfloat16(shape):
    """The largest of its scores is another where two are alike to 1 part in 256: here and there at
    a boundary, which moves by a voxel at most. In float32 hardly ever.
    """
    smooth = [ndimage.gaussian_filter(field, 2.0) for field in rng().normal(size=(4, *shape))]
    answer = 30 * np.stack(smooth)
    truth = np.roll(answer.argmax(0), 1, 0)
    expected = score_rows(answer.argmax(0), truth)
    scan = Scan("a", "a", torch.zeros(1, *shape), torch.eye(4))
    for dtype, dice, mm in ((torch.float32, 1e-12, 1e-12), (torch.bfloat16, 2e-2, 1.0)):
        segment = models.segmenter(Answers(torch.from_numpy(answer).to(dtype)[None]))
        found = score_rows(segment(scan), truth)
        for row, wanted in zip(found, expected, strict=True):
            assert wanted["hd95_mm"] > 0
            for metric in ("dice", "nsd", "volume_error"):
                assert row[metric] == pytest.approx(wanted[metric], abs=dice)
            for metric in ("hd95_mm", "surface_mm"):
                assert row[metric] == pytest.approx(wanted[metric], abs=mm)


class Answers(torch.nn.Module):
    """A network that gives the same scores whatever it is shown."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, image):
        return self.scores


def score_rows(guess, truth):
    return evaluation.score_labels(guess, truth, ["background", "a", "b", "c"])


# --- displacements that lead nowhere, to the border and far beyond --------------------------------


def beyond(by):
    """Each component at random about that many voxels forth or back, a number of float32."""
    return lambda x, last: (by * signed(x.shape)).astype(np.float32).astype(float)


def signed(shape):
    return rng(6).choice([-1, 1], size=shape) * rng(7).uniform(1, 2, size=shape)


DISPLACEMENTS = {
    "none": lambda x, last: 0 * x,
    "half a voxel": lambda x, last: 0 * x + 0.5,
    "to the border": lambda x, last: np.where(rng(6).random(x.shape) < 0.5, -x, last - x),
    "beyond": beyond(20),
    "far beyond": beyond(1e6),
    "diverged": beyond(1e30),
    "all the same way": lambda x, last: 0 * x + 2.0**100,
}
SCATTERED = ("beyond", "far beyond", "diverged")  # so that u is no velocity of anything
displaced = pytest.mark.parametrize("kind", DISPLACEMENTS)


def displacement_of(kind, shape):
    """(1, D, ...)"""
    x = oracle.voxels(shape)
    last = np.reshape(shape, (-1, *[1] * len(shape))) - 1.0
    return DISPLACEMENTS[kind](x, last)[None]


@displaced
@shapes
def test_displacements_however_far(kind, shape):
    """In every precision, bfloat16 too: it has these numbers, but for the last ones, to which it is
    beyond the border that they lead.
    """
    u = displacement_of(kind, shape)
    image = two_images(shape)[0][:1]
    numbers = labels(shape, 200)[:1]
    for dtype in PRECISIONS:
        field, picture = tensors([u, image], dtype)
        phi = Deformation(field)
        assert_near(phi.warp(picture), oracle.warped(image, u), "warp", dtype)
        warped = phi.warp_labels(torch.from_numpy(numbers))
        np.testing.assert_array_equal(warped, oracle.warped_labels(numbers, u))
        twice = (phi @ phi).displacement
        assert_near(twice, oracle.composed(u, u), "composition", dtype)
        flow = Deformation.exp(field).displacement
        assert flow.isfinite().all()
        if kind not in SCATTERED:
            assert_near(flow, oracle.exp(u), "exp", dtype)
        assert phi.inverse().displacement.isfinite().all()


@displaced
@shapes
def test_gradients_of_displacements_however_far(kind, shape):
    """Beyond the border the image is flat: to move there changes nothing."""
    u, image = displacement_of(kind, shape), two_images(shape)[0][:1]

    def sum_of_warped(picture, field):
        return Deformation(field).warp(picture).sum()

    for dtype in (torch.float64, torch.float32):
        by_image, by_u = gradients(sum_of_warped, [image, u], dtype)
        assert by_image.isfinite().all() and by_u.isfinite().all()
        assert by_image.sum().item() == pytest.approx(image.size)
        if kind in (*SCATTERED, "all the same way"):
            assert not by_u.any()


@pytest.mark.parametrize("kind", [kind for kind in DISPLACEMENTS if kind != "diverged"])
@shapes
def test_energies_and_volumes_of_displacements_however_far(kind, shape):
    u = displacement_of(kind, shape)
    energies = ("diffusion", "bending_energy", "jacobian")
    expected = {name: CASES[name].expected(u) for name in energies}
    folded = plain_folded_volume(u[0])
    for dtype in (torch.float64, torch.float32):
        for name in energies:
            compute = CASES[name].compute
            assert_near(compute(*tensors([u], dtype)), expected[name], name, dtype)
            assert gradients(compute, [u], dtype)[0].isfinite().all()
        found = evaluation.non_diffeomorphic_volume(Deformation(*tensors([u], dtype)))
        assert_near(found, folded, "ndv_percent", dtype)


@displaced
@larger
def test_scores_of_displacements_however_far(kind, shape):
    check_folding(displacement_of(kind, shape), [torch.float32])


@larger
@pytest.mark.parametrize("size", [0.2, 2.0])
def test_scores_of_a_deformation_in_every_precision(shape, size):
    check_folding(displacement(shape, size)[:1], PRECISIONS)


def check_folding(u, dtypes):
    """Folds, their volume, the scatter of volumes, and the error of places."""
    inner = (0, *[slice(2, -2)] * u.shape[1])
    folds = 100 * (oracle.jacobian(u)[inner] <= 0).mean()
    numbers = labels(u.shape[2:])[0]
    expected = {
        "ndv_percent": 100 * plain_folded_volume(u[0]).mean(),
        "sd_log_j": oracle.sd_log_j(u),
        "endpoint_voxels": oracle.endpoint_error(u[0], 0 * u[0], numbers > 0),
    }
    for dtype in dtypes:
        phi = Deformation(*tensors([u], dtype))
        truth = Deformation(torch.zeros_like(phi.displacement))
        error = evaluation.endpoint_error(phi, truth, torch.from_numpy(numbers))
        found = evaluation.folding(phi) | error
        assert found["folds_percent"] == pytest.approx(folds)
        for name, value in expected.items():
            assert_near(found[name], value, name, dtype)


# --- grids of a voxel or two ----------------------------------------------------------------------


@shapes
def test_images_of_any_shape_can_be_aligned_and_registered(shape):
    moving, fixed = tensors([x[:1, :1] for x in two_images(shape)], torch.float32)
    matrix = registration.affine_matrices(moving, fixed, steps=(2, 2))
    assert matrix.isfinite().all() and torch.linalg.det(matrix[0]) > 0
    for similarity in (losses.ncc, losses.lncc, losses.mse):
        phi = registration.optimise_pair(moving, fixed, similarity=similarity, steps=2)
        assert phi.shape == shape and phi.displacement.isfinite().all()
        loss = registration.pair_loss(moving, fixed, similarity=similarity)
        refined = registration.refine_pair(phi, loss, steps=2)
        assert refined.displacement.isfinite().all()


def test_small_steps_add_up_where_images_are_in_bfloat16():
    """Of a displacement of half a voxel and 0.001 more, bfloat16 itself would keep the half."""
    images = rolled_images((11, 7))
    half, single = (
        registration.optimise_pair(*tensors(images, dtype), steps=700, rate=0.001).displacement
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert single.abs().max() > 0.6
    torch.testing.assert_close(half, single, rtol=0, atol=0.05)


# --- a whole turn of training ---------------------------------------------------------------------

NOTHING = {
    "black": lambda image: 0 * image,
    "white": lambda image: 0 * image + 1,
    "one bright voxel": lambda image: (image == image.max()).float(),
}


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", NOTHING)
@pytest.mark.parametrize("shape", [(16, 16), (16, 8, 8)], ids=["2D", "3D"])
def test_a_turn_of_scans_on_which_there_is_nothing_to_see(shape, kind, mixed):
    """Nor any structure, in a batch of one: every term and gradient is finite."""
    image = NOTHING[kind](torch.from_numpy(rng().random((1, *shape), dtype=np.float32)))
    scan = Scan("a", "a", image, torch.eye(4), torch.zeros(shape, dtype=torch.uint8))
    known, unknown = Batch.of([scan], 3), Batch.of([replace(scan, labels=None)], 3)
    torch.manual_seed(0)
    networks = models.build("kit", len(shape), 3, velocity=True, passes=1, coarse_passes=1)
    for similarity in SIMILARITIES.values():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            of_reg = reg_terms(networks["reg"], networks["seg"], known, unknown, similarity)
            of_seg = seg_terms(networks["seg"], networks["reg"], known, unknown)
        for terms in (of_reg, of_seg):
            assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
            sum(terms.values()).backward()
    for network in networks.values():
        assert all(weight.grad.isfinite().all() for weight in network.parameters())


# --- intensities of files -------------------------------------------------------------------------

SIDE = 12
# how the numbers of a file are kept, and how far they may then be from those of the scan
STORED = {
    "1e-30": (lambda x: (1e-30 * x).astype(np.float32), 1e-6),
    "1e30": (lambda x: (1e30 * x).astype(np.float32), 1e-6),
    "on top of 1000": (lambda x: (x + 1000).astype(np.float32), 2e-4),
    "below 0": (lambda x: (1e30 * (x - 5)).astype(np.float32), 1e-5),
    "float64": (lambda x: 1e-300 * x, 1e-6),
}


def volume():
    """A bright block in the dark, with noise."""
    image = 0.2 * rng().random((SIDE, SIDE, SIDE))
    image[3:9, 2:8, 4:10] += 1
    return image


def prepared(path, array, slope=None):
    """The image of a file as it comes to a network, on a grid of other voxels."""
    image = nib.Nifti1Image(array, np.eye(4))
    if slope:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    scan = load_scan(path, None, id="a", subject="a", structures={})
    grid = ((8, 8, 8), 1.3)
    return Preparation(grid, grid).prepare(scan).image


@pytest.mark.parametrize("kind", STORED)
def test_a_scan_is_seen_the_same_in_any_unit(kind, tmp_path):
    stored, tolerance = STORED[kind]
    expected = prepared(tmp_path / "as_it_is.nii", volume())
    found = prepared(tmp_path / "scaled.nii", stored(volume()))
    assert expected.min() < 0.1 and expected.max() > 0.9
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("slope", [1e-30, 1e30])
def test_a_scan_of_scaled_integers_is_seen_the_same(slope, tmp_path):
    numbers = (1000 * volume()).astype(np.int16)
    expected = prepared(tmp_path / "as_it_is.nii", numbers)
    found = prepared(tmp_path / "scaled.nii", numbers, slope)
    assert nib.load(tmp_path / "scaled.nii").get_fdata().max() > 1000 * slope
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bright", [1e30, -1e30])
def test_a_voxel_of_1e30_does_not_hide_the_others(bright):
    array = rng().random((24, 24, 24))
    odd = array.copy()
    odd[5, 6, 7] = bright
    change = np.abs(rescale_intensities(odd, "a") - rescale_intensities(array, "a"))
    change[5, 6, 7] = 0
    assert change.max() < 1e-3


# --- the same bits again --------------------------------------------------------------------------


def print_trainings(deterministic):
    """What short trainings end with, as a hash, in 2D and 3D, in float32 and with the networks in
    bfloat16: for a process of its own.
    """
    torch.use_deterministic_algorithms(deterministic)
    weights = Weights(cross_entropy=1.0)
    for dims, mixed in itertools.product((2, 3), (False, True)):
        settings = Settings(
            {"seg": 2, "reg": 2},
            weights,
            "lncc",
            batch_size=2,
            mixed_precision=mixed,
            teacher=0.5,
            quiet=True,
        )
        torch.manual_seed(0)
        networks = models.build("kit", dims, 3, velocity=True, passes=1)
        with tempfile.TemporaryDirectory() as folder:
            history = train(networks, cohort_of(dims), REGIMES["deepatlas"], settings, Path(folder))
        print(digest(networks, history))


def cohort_of(dims):
    """Disks, or in 3D rods."""
    cohort = disks()
    if dims == 2:
        return cohort
    rods = []
    for scan in cohort.scans:
        image, truth = scan.image, scan.labels
        image = image[..., None].repeat(1, 1, 1, 16)
        truth = None if truth is None else truth[..., None].repeat(1, 1, 16)
        rods.append(replace(scan, image=image, labels=truth))
    train_on = len(cohort.train)
    return replace(cohort, train=tuple(rods[:train_on]), validation=tuple(rods[train_on:]))


def digest(networks, history):
    found = hashlib.sha256()
    for network in networks.values():
        for weight in network.state_dict().values():
            found.update(weight.numpy().tobytes())
    terms = [{key: row[key] for key in row if key != "seconds"} for row in history]
    found.update(repr(terms).encode())
    return found.hexdigest()


def trainings_in_a_process(deterministic):
    return subprocess.run(
        [sys.executable, "-c", f"import test_numerics as t; t.print_trainings({deterministic})"],
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_on_a_cpu_trainings_are_deterministic_as_pytorch_means_it():
    """With its flag, which refuses every operation that may give other bits the next time and fills
    memory that nobody has written with NaN, a training runs, and ends with the bits of one that ran
    without it in another process.
    """
    with_the_flag, without = (trainings_in_a_process(flag) for flag in (True, False))
    assert len(set(without)) == 4
    assert with_the_flag == without
