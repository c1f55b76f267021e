"""A strong supervised segmenter: MONAI's DynUNet with the settings of nnU-Net (Isensee et al.,
2021), from the labels that it may see and nothing else.

As nnU-Net has it: z-scores; instance norm, leaky ReLU, two convolutions a stage, 32 channels at
full resolution, twice as many at each lower one, the lowest of at least 4 voxels a side; Dice
without background and cross-entropy, of three resolutions, weighted 1, 1/2, 1/4; SGD with Nesterov
momentum .99, weight decay 3e-5, gradients of norm 12 at most, rate .01 (1 - step/steps)^.9; its
augmentation, mirroring along every axis in training and in prediction; the weights at the end are
kept, so validation scans decide nothing.

Otherwise than there: a patch is the whole image, which is small enough; there are fewer steps and
smaller batches; one network, not five; borders of an image that is turned or made smaller are
continued, not filled with 0; predictions of lower resolutions are enlarged to be compared, where
nnU-Net makes the labels smaller.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from deepatlas.data import Scan, label_dtype

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .propagation import Segment

RATE, POWER = 1e-2, 0.9
MOMENTUM, DECAY, LARGEST_GRADIENT = 0.99, 3e-5, 12.0
SMALLEST = 4  # voxels a side, of the lowest resolution


def levels_of(shape: Sequence[int]) -> int:
    """Resolutions of the network, the full one included: halved as long as every side is even, and
    at least ``SMALLEST`` voxels are left.
    """
    sides = list(shape)
    levels = 1
    while all(side % 2 == 0 and side // 2 >= SMALLEST for side in sides):
        sides = [side // 2 for side in sides]
        levels += 1
    return levels


def network(shape: Sequence[int], structures: int, width: int) -> nn.Module:
    """The untrained network for images of ``shape``, with ``width`` channels at full resolution."""
    from monai.networks.nets import DynUNet

    dims, levels = len(shape), levels_of(shape)
    if levels < 3:
        raise ValueError(f"DynUNet wants sides that can be halved twice, got {tuple(shape)}")
    most = width * (16 if dims == 2 else 10)  # 512 and 320 of width 32
    filters = [min(width * 2**level, most) for level in range(levels)]
    return DynUNet(
        spatial_dims=dims,
        in_channels=1,
        out_channels=structures,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=filters,
        deep_supervision=True,
        deep_supr_num=max(1, levels - 3),  # not the lowest
    )


def augmentation(dims: int, seed: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """nnU-Net's: of "image" and "label", each (1, I, J, K), in its order and with its chances."""
    from monai import transforms

    both = {"keys": ["image", "label"], "mode": ["bilinear", "nearest"], "padding_mode": "border"}
    image = {"keys": ["image"]}
    # any angle in a plane, 30 degrees about each axis in a volume
    turns = {"range_x": math.pi}
    if dims == 3:
        turns = dict.fromkeys(("range_x", "range_y", "range_z"), math.pi / 6)
    zooms = {"keys": ["image", "label"], "padding_mode": "edge"}
    zooms["mode"] = ["bilinear" if dims == 2 else "trilinear", "nearest"]
    enlarged = "bicubic" if dims == 2 else "trilinear"
    steps = [
        transforms.RandRotated(**both, **turns, prob=0.2),
        transforms.RandZoomd(**zooms, min_zoom=1 / 1.4, max_zoom=1 / 0.7, prob=0.2),
        transforms.RandGaussianNoised(**image, std=math.sqrt(0.1), prob=0.1),
        transforms.RandGaussianSmoothd(
            **image, sigma_x=(0.5, 1), sigma_y=(0.5, 1), sigma_z=(0.5, 1), prob=0.2
        ),
        transforms.RandScaleIntensityd(**image, factors=0.25, prob=0.15),
        # contrast: farther from the mean, or nearer to it
        transforms.RandScaleIntensityFixedMeand(
            **image, factors=0.25, preserve_range=True, prob=0.15
        ),
        transforms.RandSimulateLowResolutiond(
            **image, zoom_range=(0.5, 1), upsample_mode=enlarged, prob=0.25
        ),
        transforms.RandAdjustContrastd(
            **image, gamma=(0.7, 1.5), invert_image=True, retain_stats=True, prob=0.1
        ),
        transforms.RandAdjustContrastd(**image, gamma=(0.7, 1.5), retain_stats=True, prob=0.3),
    ]
    for axis in range(dims):
        steps.append(transforms.RandFlipd(["image", "label"], prob=0.5, spatial_axis=axis))
    return transforms.Compose(steps).set_random_state(seed)


@contextmanager
def without_history() -> Iterator[None]:
    """Within, MONAI keeps no history of every transform, which nobody would read."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def trained(
    scans: Sequence[Scan],
    structures: int,
    *,
    steps: int,
    batch: int,
    width: int,
    seed: int,
    mixed: bool = False,
    device: str = "cpu",
    losses: list[float] | None = None,
) -> nn.Module:
    """The network after ``steps`` steps of ``batch`` images each, drawn from the labelled
    ``scans``.

    ``mixed``: convolutions in bfloat16, the loss in float32. ``losses``: takes that of each step.
    """
    torch.manual_seed(seed)
    net = network(scans[0].shape, structures, width).train().to(device)
    augment = augmentation(len(scans[0].shape), seed)
    generator = torch.Generator().manual_seed(seed)
    samples = [
        {"image": z_scores(scan.image), "label": scan.labels[None].float()} for scan in scans
    ]
    optimiser = torch.optim.SGD(
        net.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
    )
    for step in tqdm(range(steps), desc="training", unit="step", leave=False):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - step / steps) ** POWER
        drawn = torch.randint(len(samples), (batch,), generator=generator).tolist()
        with without_history():
            seen = [augment(dict(samples[number])) for number in drawn]
        images = torch.stack([sample["image"] for sample in seen]).to(device)
        labels = torch.stack([sample["label"] for sample in seen]).to(device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            scores = net(images)
        loss = supervised_loss(scores.float(), labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), LARGEST_GRADIENT)
        optimiser.step()
        if losses is not None:
            losses.append(loss.item())
    return net.eval()


def supervised_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Dice and cross-entropy of ``scores`` (B, R, C, I, J, K) of R resolutions, all enlarged to the
    full one, and ``labels`` (B, 1, I, J, K): weighted 1, 1/2, 1/4, ..., divided by their sum.
    """
    from monai.losses import DiceCELoss

    # Dice of a structure is of all images of a batch together, and of the background is none
    compare = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    total = 0.0
    weights = 0.0
    for level, of_level in enumerate(scores.unbind(1)):
        weight = 0.5**level
        total = total + weight * compare(of_level, labels)
        weights += weight
    return total / weights


def z_scores(image: Tensor) -> Tensor:
    """(image - mean) / standard deviation, of all voxels."""
    return (image - image.mean()) / image.std().clamp(min=1e-8)


def segmenter(net: nn.Module, structures: int, mixed: bool = False) -> Segment:
    """A function scan -> labels (I, J, K): of the mean of the probabilities of all mirror images,
    each turned back, the largest.
    """
    device = next(net.parameters()).device

    @torch.inference_mode()
    def segment(scan: Scan) -> Tensor:
        image = z_scores(scan.image)[None].to(device)
        axes = range(2, image.ndim)
        total = torch.zeros(structures, *scan.shape, device=device)
        for count in range(len(axes) + 1):
            for mirrored in itertools.combinations(axes, count):
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                    scores = net(image.flip(mirrored))
                total += scores.float().softmax(1).flip(mirrored)[0]
        return total.argmax(0).to(label_dtype(structures)).cpu()

    return segment
