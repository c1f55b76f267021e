"""Memory for time: where memory is spared, values and gradients are the same, and less is held."""

from deepatlas import losses, models, recompute
from deepatlas.warp import Deformation

import pytest
import torch
from helpers import one_thread  # noqa: F401
from torch.profiler import ProfilerActivity, profile

SHAPES = {2: (16, 24), 3: (16, 8, 24)}
STRUCTURES = 6  # no multiple of those warped together
both = pytest.mark.parametrize("dims", SHAPES, ids=["2D", "3D"])


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def segmentation(dims):
    """A function without arguments that computes a number, and the tensors it depends on."""
    torch.manual_seed(0)
    net = models.build("kit", dims, STRUCTURES, velocity=True, passes=1)["seg"]
    image = random(2, 1, *SHAPES[dims])
    return lambda: net(image).square().mean(), list(net.parameters())


def registration(dims):
    torch.manual_seed(0)
    net = models.build("kit", dims, STRUCTURES, velocity=True, passes=2)["reg"]
    moving, fixed = random(1, 1, *SHAPES[dims]), random(1, 1, *SHAPES[dims], seed=1)
    return lambda: losses.ncc(net(moving, fixed).warp(moving), fixed), list(net.parameters())


def exp(dims):
    velocity = (6 * random(1, dims, *SHAPES[dims]) - 3).requires_grad_()
    return lambda: Deformation.exp(velocity).displacement.square().mean(), [velocity]


def warped_dice(dims):
    u = (6 * random(2, dims, *SHAPES[dims]) - 3).requires_grad_()
    scores = random(2, STRUCTURES, *SHAPES[dims], seed=1).requires_grad_()
    target = random(2, STRUCTURES, *SHAPES[dims], seed=2).softmax(1)

    def compute():
        return losses.warped_dice(Deformation(u).warp, scores.softmax(1), target)

    return compute, [u, scores]


every = pytest.mark.parametrize("case", [segmentation, registration, exp, warped_dice])


def held(compute):
    """Bytes that ``compute`` leaves behind, all but its result for its backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = compute()
    events = profiler.profiler.kineto_results.events()
    left = sum(event.nbytes() for event in events if event.name() == "[memory]")
    del result  # until now
    return left


@both
@every
def test_the_same_numbers_and_gradients(case, dims):
    compute, leaves = case(dims)
    value = compute()
    gradients = torch.autograd.grad(value, leaves)
    with recompute.sparing(True):
        spared = compute()
        spared_gradients = torch.autograd.grad(spared, leaves)
    # only the sums of Dice may run in another order
    tolerance = {"rtol": 1e-5, "atol": 1e-9} if case is warped_dice else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(spared, value, **tolerance)
    torch.testing.assert_close(spared_gradients, gradients, **tolerance)


@both
@every
def test_less_is_held(case, dims):
    compute, _ = case(dims)
    compute()  # once first: what is kept from call to call
    plain = held(compute)
    with recompute.sparing(True):
        spared = held(compute)
    assert spared < 0.7 * plain


def test_memory_is_spared_within_only_and_not_without_gradients():
    assert not recompute.is_sparing()
    with recompute.sparing(True):
        assert recompute.is_sparing()
        with recompute.sparing(False):
            assert not recompute.is_sparing()
        with torch.no_grad():
            assert not recompute.is_sparing()
        assert recompute.is_sparing()
    with pytest.raises(KeyError), recompute.sparing(True):
        raise KeyError
    assert not recompute.is_sparing()
