"""The networks: parameter counts of the paper, shapes, the start at the identity, gradients,
errors.
"""

import itertools

from deepatlas import networks
from deepatlas.models import Registration, register
from deepatlas.networks import (
    PaperRegistrationNet,
    PaperSegmentationNet,
    RegistrationNet,
    SegmentationNet,
)
from deepatlas.warp import Deformation

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import one_thread, waits  # noqa: F401
from plain import plain_block, plain_features, plain_upsample

SHAPES = {2: (16, 24), 3: (16, 8, 24)}
PAPER_SHAPE = (16, 16, 32)
both = pytest.mark.parametrize("dims", SHAPES, ids=["2D", "3D"])


def images(*shape, channels=1, seed=0):
    return torch.rand(2, channels, *shape, generator=torch.Generator().manual_seed(seed))


def seg_nets(dims):
    torch.manual_seed(0)
    return [SegmentationNet(dims, 5)] + ([PaperSegmentationNet(5)] if dims == 3 else [])


def reg_nets(dims):
    torch.manual_seed(0)
    kit = [RegistrationNet(dims), RegistrationNet(dims, half=False)]
    return kit + ([PaperRegistrationNet()] if dims == 3 else [])


def shape_for(net, dims):
    return PAPER_SHAPE if type(net).__name__.startswith("Paper") else SHAPES[dims]


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts_are_the_papers():
    assert parameters(PaperSegmentationNet(32)) == 874_864
    assert parameters(PaperRegistrationNet()) == 253_627


def test_default_widths_are_multiples_of_16():
    assert all(width % 16 == 0 for width in networks.SEG_WIDTHS + networks.REG_WIDTHS)
    convolutions = [
        m
        for net in (SegmentationNet(2, 5), RegistrationNet(3))
        for m in net.features.modules()
        if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)
    ]
    assert all(m.out_channels % 16 == 0 for m in convolutions)
    assert all(m.in_channels % 16 == 0 for m in convolutions if m.in_channels > 2)


@both
def test_segmentation_gives_one_score_per_structure(dims):
    for net in seg_nets(dims):
        shape = shape_for(net, dims)
        assert net(images(*shape)).shape == (2, 5, *shape)


@both
def test_registration_gives_one_component_per_axis(dims):
    for net in reg_nets(dims):
        shape = shape_for(net, dims)
        assert net(images(*shape), images(*shape, seed=1)).shape == (2, dims, *shape)


@both
def test_widths_set_the_depth(dims):
    net = SegmentationNet(dims, 3, widths=(16, 16))
    assert net(images(*[6] * dims)).shape == (2, 3, *[6] * dims)
    assert RegistrationNet(dims, (16,), half=False)(*[images(*[5] * dims)] * 2).shape == (
        2,
        dims,
        *[5] * dims,
    )


@both
def test_registration_starts_at_the_identity(dims):
    of_velocity = Registration(RegistrationNet(dims), velocity=True, passes=1)
    for net in [*reg_nets(dims), of_velocity]:
        shape = shape_for(net, dims)
        displacement = register(net, images(*shape), images(*shape, seed=1)).displacement
        assert 0 < displacement.abs().max() < 1e-2


def test_the_gradient_of_a_tiny_volume_is_finite_in_bfloat16():
    """Of 16 voxels 2 are left at the deepest level, where oneDNN reads what it never wrote;
    memory is filled with NaN before, so that it shows.
    """
    for seed in range(40):
        torch.manual_seed(seed)
        net = RegistrationNet(3)
        torch.nn.init.normal_(net.head.weight)
        junk = [torch.full((2**k,), float("nan")) for k in range(4, 20)]
        del junk
        with torch.autocast("cpu", torch.bfloat16):
            u = net(images(16, 16, 16)[:1], images(16, 16, 16, seed=1)[:1])
        u.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())


@both
@pytest.mark.parametrize("velocity", [True, False])
def test_coarse_looks_come_first_at_half_the_resolution(dims, velocity):
    """They see the pair as warped so far, and what they find is in voxels of the whole image."""
    shape = [16, 24, 16][:dims]
    moving, fixed = images(*shape), images(*shape, seed=1)
    net = RegistrationNet(dims, (16, 16))
    torch.nn.init.normal_(net.head.weight, std=0.05)
    pool = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
    looks = Registration(net, velocity=velocity, passes=1, coarse_passes=2, multiple=4)
    phi = None
    for factor in (2, 2, 1):
        seen = moving if phi is None else phi.warp(moving)
        small = [seen, fixed] if factor == 1 else [pool(x, factor) for x in (seen, fixed)]
        if velocity:
            found = Deformation.exp(factor * net.on_own_grid(*small), shape=tuple(shape))
        else:
            u = factor * net(*small)
            mode = "bilinear" if dims == 2 else "trilinear"
            found = Deformation(torch.nn.functional.interpolate(u, size=shape, mode=mode))
        phi = found if phi is None else phi @ found
    assert phi.displacement.abs().max() > 0.1
    torch.testing.assert_close(looks(moving, fixed).displacement, phi.displacement)


@both
def test_a_coarse_look_of_an_odd_grid_is_padded_behind(dims):
    """24 halved is no multiple of 8: zeros are put behind, and the answer is cut off there."""
    net = RegistrationNet(dims, (16, 16, 16))
    torch.nn.init.normal_(net.head.weight, std=0.05)
    looks = Registration(net, velocity=True, passes=1, coarse_passes=1)
    small = [24] * dims
    moving, fixed = images(*small), images(*small, seed=1)
    behind = [0, 8] * dims
    padded = [torch.nn.functional.pad(x, behind) for x in (moving, fixed)]
    with torch.no_grad():
        found = looks._look(moving, fixed, 2)
        of_padded = looks._look(*padded, 2)
    assert found.shape[2:] == torch.Size([6] * dims) and of_padded.shape[2:] == (8,) * dims
    inner = of_padded[(..., *[slice(6)] * dims)]
    torch.testing.assert_close(found, inner)


@both
def test_a_coarse_look_of_the_smallest_grid_can_be_trained(dims):
    """Of 16 voxels a side one would be left at the deepest level, which no batch of one passes."""
    looks = Registration(RegistrationNet(dims), velocity=True, passes=1, coarse_passes=1).train()
    moving, fixed = (x[:1] for x in (images(*[16] * dims), images(*[16] * dims, seed=1)))
    assert looks(moving, fixed).displacement.shape[2:] == torch.Size([16] * dims)


@both
def test_a_registration_network_sees_both_images_and_which_of_them_moves(dims):
    for net in reg_nets(dims):
        torch.nn.init.normal_(net.head.weight)
        a, b = images(*shape_for(net, dims)), images(*shape_for(net, dims), seed=1)
        outputs = [net(a, b), net(b, a), net(a, a), net(b, b)]
        assert all((x - y).abs().max() > 0.1 for x, y in itertools.combinations(outputs, 2))


# --- the same arithmetic as the plain layers ------------------------------------------------------


def with_gradients(compute, inputs, net):
    """The output, and the gradients of the inputs and of the parameters."""
    inputs = inputs.clone().requires_grad_()
    output = compute(inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    parameters = list(net.parameters())
    gradients = torch.autograd.grad((output * weights.to(output)).sum(), [inputs, *parameters])
    return [output.detach(), *gradients]


@both
@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
def test_the_features_are_those_of_plain_layers(dims, half):
    """In float64 to its last digits; so are the gradients."""
    torch.manual_seed(0)
    net = networks.UNet(dims, 2, (16, 32, 16), half=half).double()
    x = images(*SHAPES[dims], channels=2).double()
    fast = with_gradients(net, x, net)
    plain = with_gradients(lambda x: plain_features(net, x), x, net)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(1, 16), (16, 16), (16, 3)])
def test_a_small_scan_alone_is_convolved_by_the_same_arithmetic(count, stride, channels):
    """oneDNN's kernels, which PyTorch would leave for one small float32 scan, against float64."""
    torch.manual_seed(0)
    layer = networks.convolution(3, *channels, stride=stride)
    x = torch.randn(count, channels[0], 10, 8, 6)
    fast = with_gradients(layer, x, layer)
    fast = [value.double() for value in fast]
    plain = torch.nn.Conv3d(*channels, 3, padding=1, stride=stride).double()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fast, with_gradients(plain, x.double(), plain), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN")
def test_a_small_scan_alone_is_convolved_by_onednn():
    """If PyTorch's rule for it moves, this says so."""
    layer = networks.convolution(3, 16, 16)
    small, large = torch.randn(1, 16, 8, 8, 8), torch.randn(1, 16, 40, 40, 8)
    for x in (small, large):
        with torch.profiler.profile() as profile:
            layer(x.requires_grad_()).sum().backward()
        names = {event.name for event in profile.events()}
        assert "aten::mkldnn_convolution" in names
        assert not any("slow_conv" in name for name in names)


@both
def test_a_block_in_bfloat16_is_near_the_exact_one(dims):
    torch.manual_seed(0)
    block = networks.block(dims, 16, 16)
    x = images(*SHAPES[dims], channels=16)
    with torch.autocast("cpu", torch.bfloat16):
        fast = block(x)
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast.float(), plain_block(block, x), rtol=0, atol=0.1)


@both
def test_a_large_scan_is_normalised_by_the_same_arithmetic(dims):
    """Values and gradients in float64; in bfloat16 far from zero, to what its digits allow."""
    torch.manual_seed(0)
    norm = networks.block(dims, 16, 16)[1].double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = images(*SHAPES[dims], channels=16).double()
    fast = with_gradients(lambda x: networks.normalise_large(x, *norm.parameters(), 1e-5), x, norm)
    plain = with_gradients(lambda x: F.instance_norm(x, None, None, *norm.parameters()), x, norm)
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
    rough = (x + 3).bfloat16()
    fast = networks.normalise_large(rough, *norm.float().parameters(), 1e-5)
    plain = F.instance_norm(rough.float(), None, None, *norm.parameters())
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast.float(), plain, rtol=0.01, atol=0.03)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="for a GPU")
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("large", [0, 2**30], ids=["large", "small"])
@both
def test_a_gpu_computes_the_features_of_plain_layers(monkeypatch, dims, mixed, large):
    """And keeps them in bfloat16 where it is told to."""
    monkeypatch.setattr(networks._InstanceNorm, "LARGE", large)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    net = networks.UNet(dims, 2, (16, 32, 16))
    x = images(*SHAPES[dims], channels=2)
    plain = with_gradients(lambda x: plain_features(net, x), x, net)
    net, x = net.cuda(), x.cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        fast = with_gradients(net, x, net)
    assert fast[0].dtype == (torch.bfloat16 if mixed else torch.float32)
    tolerance = 0.1 if mixed else 1e-3
    output, wanted = fast[0].float().cpu(), plain[0]
    assert (output - wanted).norm() < tolerance * wanted.norm()
    assert mixed or (fast[1].cpu() - plain[1]).norm() < tolerance * plain[1].norm()


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_upsampling_is_linear_interpolation(dims, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *(4, 1, 5)[:dims], dtype=dtype)
    nothing = torch.nn.Identity()
    fast = with_gradients(networks.upsample, x, nothing)
    plain = with_gradients(plain_upsample, x.double(), nothing)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert all(value.dtype == dtype for value in fast)
    torch.testing.assert_close(
        [value.double() for value in fast], plain, rtol=tolerance, atol=tolerance
    )


def test_upsampling_first_without_gradients_then_with_them():
    """What it keeps between calls can be used in a training whoever asked first."""
    networks._doubling.cache_clear()
    x = torch.randn(1, 1, 6, 7)
    with torch.inference_mode():
        networks.upsample(x)
    with_gradients(networks.upsample, x, torch.nn.Identity())


def doubled(values, axis):
    """Twice the voxels along ``axis``, by hand: a new voxel lies a quarter voxel from an old one's
    centre.
    """
    first, last = np.take(values, [0], axis), np.take(values, [-1], axis)
    before = np.concatenate([first, np.delete(values, -1, axis)], axis)
    after = np.concatenate([np.delete(values, 0, axis), last], axis)
    pair = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis + 1)
    return pair.reshape(*values.shape[:axis], -1, *values.shape[axis + 1 :])


@both
def test_half_resolution_is_interpolated_to_the_whole_grid(dims):
    torch.manual_seed(0)
    net, seen = RegistrationNet(dims), []
    torch.nn.init.normal_(net.head.weight)
    net.head.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    u = net(images(*SHAPES[dims]), images(*SHAPES[dims], seed=1))
    assert seen[0].shape == (2, dims, *[n // 2 for n in SHAPES[dims]])
    expected = seen[0].numpy()
    for axis in range(2, dims + 2):
        expected = doubled(expected, axis)
    np.testing.assert_allclose(u.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@both
def test_the_gradient_reaches_every_parameter(dims):
    for net in seg_nets(dims) + reg_nets(dims):
        shape = shape_for(net, dims)
        a, b = images(*shape), images(*shape, seed=1)
        output = net(a) if "Seg" in type(net).__name__ else net(a, b)
        (
            output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        ).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            if parameter.ndim > 1:  # of each input channel, skip connections among them
                reached = parameter.grad.abs().transpose(0, 1).flatten(1).amax(1)
                assert reached.min() > 0, f"{type(net).__name__}: {name}"


@both
def test_a_voxel_far_away_matters(dims):
    """The receptive field of the coarsest level spans the grid."""
    net = SegmentationNet(dims, 2)
    image = images(*SHAPES[dims]).requires_grad_()
    net(image)[(0, 1, *[0] * dims)].backward()
    assert image.grad[(0, 0, *[-1] * dims)] != 0


@both
def test_instance_normalisation_does_not_depend_on_the_mode_or_the_batch(dims):
    for net in (seg_nets(dims)[0], reg_nets(dims)[0]):
        inputs = [
            images(*SHAPES[dims], seed=seed) for seed in range(1 + isinstance(net, RegistrationNet))
        ]
        training = net.train()(*inputs)
        torch.testing.assert_close(training, net.eval()(*inputs), rtol=0, atol=0)
        torch.testing.assert_close(
            training[:1], net(*(image[:1] for image in inputs)), rtol=1e-4, atol=1e-5
        )


@both
def test_a_network_ignores_the_scale_of_the_intensities(dims):
    net = seg_nets(dims)[0]
    inner = (slice(None), slice(None), *[slice(6, -6)] * dims)  # zero padding knows no offset
    image = images(*[24] * dims)
    torch.testing.assert_close(
        net(100 * image)[inner], net(10 * image)[inner], rtol=1e-2, atol=1e-2
    )


@both
def test_same_seed_same_network(dims):
    for one, two in zip(
        seg_nets(dims) + reg_nets(dims), seg_nets(dims) + reg_nets(dims), strict=True
    ):
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)
        )


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "inputs", "text"),
    [
        (
            SegmentationNet(3, 2),
            [(1, 1, 40, 56, 41)],
            r"a 3D network wants \(B, C, I, J, K\) with every side divisible by 8"
            r", got \(1, 1, 40, 56, 41\): resample",
        ),
        (
            SegmentationNet(2, 2),
            [(1, 1, 16, 16, 16)],
            r"a 2D network wants \(B, C, I, J\) .* got \(1, 1, 16, 16, 16\)",
        ),
        (SegmentationNet(3, 2), [(1, 16, 16, 16)], r"a 3D network wants .* got \(1, 16, 16, 16\)"),
        (RegistrationNet(2), [(1, 1, 16, 20)] * 2, r"divisible by 8, got \(1, 2, 16, 20\)"),
        (
            RegistrationNet(2, (16, 16)),
            [(1, 1, 16, 18)] * 2,
            r"divisible by 4, got \(1, 2, 16, 18\)",
        ),
        (
            RegistrationNet(2, (16, 16), half=False),
            [(1, 1, 16, 17)] * 2,
            r"divisible by 2, got \(1, 2, 16, 17\)",
        ),
        (PaperSegmentationNet(2), [(1, 1, 8, 8, 12)], r"divisible by 8, got \(1, 1, 8, 8, 12\)"),
        (
            PaperRegistrationNet(),
            [(1, 1, 16, 16, 24)] * 2,
            r"divisible by 16, got \(1, 2, 16, 16, 24\)",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(net, inputs, text):
    with pytest.raises(ValueError, match=text):
        net(*(torch.zeros(shape) for shape in inputs))


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="dims must be 2 or 3, got 4"):
        RegistrationNet(4)


@both
def test_a_gpu_would_never_wait(dims):
    """Both directions; what is kept between calls is made in the first one."""
    for net in seg_nets(dims):
        image = images(*shape_for(net, dims))
        net(image)
        assert waits(lambda net=net, image=image: net(image).sum().backward()) == {}
    for net in reg_nets(dims):
        pair = [images(*shape_for(net, dims), seed=seed) for seed in range(2)]
        net(*pair)
        assert waits(lambda net=net, pair=pair: net(*pair).sum().backward()) == {}


@both
def test_channels_last_are_the_same_networks(dims):
    """Values, gradients and what a checkpoint holds."""
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    net = SegmentationNet(dims, 5).double()
    image = images(*SHAPES[dims]).double()
    expected = with_gradients(net, image, net)
    net.to(memory_format=layout)
    found = with_gradients(net, image, net)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    usual = SegmentationNet(dims, 5).double()
    usual.load_state_dict(net.state_dict())
    torch.testing.assert_close(usual(image), net(image), rtol=1e-9, atol=1e-9)
