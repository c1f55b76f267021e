"""The two networks: ``SegmentationNet`` and ``RegistrationNet``, one U-Net, in 2D and 3D; and the
paper's own two.

Any ``nn.Module`` of the same call works in their place: ``seg_net(image) -> scores`` (B, C, I, J,
K), before the softmax, and ``reg_net(moving, fixed)`` -> displacement (B, D, I, J, K), in voxels,
or a ``Deformation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recompute import again

# Multiples of 16 run on the fast paths of CPUs and GPUs; others do not.
SEG_WIDTHS = (16, 32, 32, 32)  # at full, half, quarter and eighth resolution
REG_WIDTHS = (32, 64, 64)  # at half, quarter and eighth resolution


class _Conv3d(nn.Conv3d):
    """As ``nn.Conv3d``, with the same parameters; it never leaves the CPU's fast kernels.

    Of one small float32 scan PyTorch computes a 3D convolution without oneDNN, backwards too, up to
    nine times slower. A tensor in oneDNN's own layout always goes there. And of a scan with two
    voxels along its first axis oneDNN's gradient of the weights, in bfloat16, is now and then what
    lay in the memory before, NaN too: such a scan is taken in float32.
    """

    SMALL = 20_480  # B C I J, up to which PyTorch does so

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # which knows no such layout
            return super().forward(x)
        mixed = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if mixed and x.shape[2] <= 2:
            with torch.autocast("cpu", enabled=False):
                return self.forward(x.float())
        slow = x.device.type == "cpu" and len(x) == 1 and x.shape[:4].numel() <= self.SMALL
        exact = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if slow and exact and torch.backends.mkldnn.is_available():
            return super().forward(x.to_mkldnn()).to_dense()
        return super().forward(x)


class _InstanceNorm(nn.GroupNorm):
    """As ``nn.InstanceNorm3d(channels, affine=True)`` in half the time: a channel is a group.

    Its output is no view, unlike that one's, so that an activation may overwrite it.
    """

    LARGE = 2**19  # voxels, from which ``normalise_large`` is the faster on a GPU

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch's kernel would copy scans that lie channels last, and answer in its own layout.
        if x.is_cuda and (x.shape[2:].numel() >= self.LARGE or not x.is_contiguous()):
            return normalise_large(x, self.weight, self.bias, self.eps)
        if x.device.type == "cpu" or x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):  # it would answer in float32
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def normalise_large(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Instance normalisation of a few large scans on a GPU, four times as fast there as its own
    kernel, which keeps one of its many processors busy for each channel.
    """
    voxels = tuple(range(2, x.ndim))
    per_channel = (-1, *[1] * len(voxels))
    # Without its offset, which the result does not depend on, x keeps its digits in bfloat16.
    x = x - x.detach().mean(voxels, keepdim=True)
    variance, mean = torch.var_mean(x, voxels, correction=0, keepdim=True)
    at_least_single = torch.promote_types(x.dtype, torch.float32)
    scale = weight.view(per_channel) * (variance.to(at_least_single) + eps).rsqrt()
    shift = bias.view(per_channel) - mean * scale
    return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


def convolution(dims: int, inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d | nn.Conv3d:
    """Of 3 voxels a side, in ``dims`` dimensions; the grid keeps its sides but for a ``stride``."""
    layer = nn.Conv2d if dims == 2 else _Conv3d
    return layer(inputs, outputs, 3, padding=1, stride=stride)


def upsample(x: Tensor) -> Tensor:
    """(B, C, I, J, K) -> (B, C, 2I, 2J, 2K), linear between voxel centres, as ``F.interpolate``
    does without ``align_corners``.

    Along each axis it is a product with a small matrix, which takes a third of the time backwards;
    but for what is small to a GPU, where one call is quicker than several, and for a compiler.
    """
    if torch.compiler.is_compiling() or (x.is_cuda and x.numel() < 2**21):
        mode = "bilinear" if x.ndim == 4 else "trilinear"
        return F.interpolate(x, scale_factor=2, mode=mode, align_corners=False)
    *_, n_rows, n_columns = x.shape
    x = _doubling(n_rows, x.device, x.dtype) @ x @ _doubling(n_columns, x.device, x.dtype).mT
    if x.ndim == 5:  # the axis before those two
        planes = x.flatten(3)
        planes = _doubling(x.shape[2], x.device, x.dtype) @ planes
        x = planes.unflatten(3, x.shape[3:])
    return x


@lru_cache
def _doubling(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2n, n): the weight of each of n voxels in each of the 2n voxels between them."""
    with torch.inference_mode(False):  # kept for trainings to come, whoever asks first
        units = torch.eye(n)[None]
        weights = F.interpolate(units, scale_factor=2, mode="linear", align_corners=False)[0]
        return weights.mT.to(device, dtype)


def _check_image(x: Tensor, dims: int, multiple: int) -> None:
    if x.ndim != dims + 2 or any(n % multiple for n in x.shape[2:]):
        axes = ", ".join("IJK"[:dims])
        raise ValueError(
            f"a {dims}D network wants (B, C, {axes}) with every side divisible by {multiple}, "
            f"got {tuple(x.shape)}: resample the cohort to such a shape"
        )


def block(dims: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, instance normalisation, LeakyReLU; twice. ``stride`` 2 halves the resolution."""
    return nn.Sequential(
        convolution(dims, inputs, outputs, stride=stride),
        _InstanceNorm(outputs),
        nn.LeakyReLU(0.1, inplace=True),
        convolution(dims, outputs, outputs),
        _InstanceNorm(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


class UNet(nn.Module):
    """(B, inputs, I, J, K) -> features (B, widths[0], I, J, K): down by strides, up with skips.

    With ``half`` the first block already halves the image, and so do the features: a quarter of the
    time in 2D, an eighth in 3D, enough for something as smooth as a displacement.
    """

    def __init__(self, dims: int, inputs: int, widths: Sequence[int], half: bool = False) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        self.dims, self.multiple = dims, 2 ** (len(widths) - 1 + half)
        self.down = nn.ModuleList([block(dims, inputs, widths[0], stride=2 if half else 1)])
        self.up = nn.ModuleList()
        for fine, coarse in pairwise(widths):
            self.down.append(block(dims, fine, coarse, stride=2))
            self.up.insert(0, block(dims, fine + coarse, fine))

    def forward(self, x: Tensor) -> Tensor:
        _check_image(x, self.dims, self.multiple)
        skips = []
        for down in self.down:
            x = again(down, x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = again(partial(_join, up), x, skips.pop())
        return x


def _join(up: nn.Module, coarse: Tensor, skip: Tensor) -> Tensor:
    """A step up: the block ``up`` of the features from below, at twice the resolution, and those
    kept on the way down.
    """
    return up(torch.cat([upsample(coarse), skip], 1))


class SegmentationNet(nn.Module):
    """F_S: image (B, 1, I, J, K) -> one score per structure (B, C, I, J, K); ``softmax`` makes them
    probabilities.
    """

    def __init__(self, dims: int, structures: int, widths: Sequence[int] = SEG_WIDTHS) -> None:
        super().__init__()
        self.features = UNet(dims, 1, widths)
        layer = nn.Conv2d if dims == 2 else nn.Conv3d
        self.head = layer(widths[0], structures, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


class RegistrationNet(nn.Module):
    """F_R: (moving, fixed), each (B, 1, I, J, K) -> displacement u (B, D, I, J, K), in voxels.

    ``models.Registration`` may read it as a velocity instead. With ``half`` it is computed at half
    the resolution and interpolated. The head starts near zero, so that training starts at the
    identity.
    """

    def __init__(self, dims: int, widths: Sequence[int] = REG_WIDTHS, *, half: bool = True) -> None:
        super().__init__()
        self.halves = half  # ``half`` is PyTorch's name for half precision
        self.features = UNet(dims, 2, widths, half=half)
        self.head = near_zero(convolution(dims, widths[0], dims))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        u = self.on_own_grid(moving, fixed)
        return upsample(u) if self.halves else u

    def on_own_grid(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """What ``forward`` interpolates: (B, D, I/2, J/2, K/2) with ``half``, still in voxels of
        the images.
        """
        return self.head(self.features(torch.cat([moving, fixed], 1)))


def near_zero(head: nn.Conv2d | nn.Conv3d) -> nn.Conv2d | nn.Conv3d:
    """The same layer with weights from N(0, 1e-5) and no bias."""
    nn.init.normal_(head.weight, std=1e-5)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head


# --- the paper's two networks, 3D -----------------------------------------------------------------


class PaperSegmentationNet(nn.Module):
    """The segmentation network of Xu & Niethammer (2019): a light U-Net with batch normalisation,
    3D.

    Encoder stages (8, 16), (16, 16, 32), (32, 32, 64), (64, 64, 64) with max-pooling between;
    874,864 parameters for 32 structures.
    """

    def __init__(self, structures: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [
                self._stage(1, 8, 16),
                self._stage(16, 16, 32),
                self._stage(32, 32, 64),
                self._stage(64, 64, 64),
            ]
        )
        self.widen = nn.ModuleList([self._widen(64), self._widen(64), self._widen(32)])
        self.up = nn.ModuleList(
            [
                self._stage(128, 64, 64),
                self._stage(96, 32, 32),
                self._stage(48, 16, 16),
            ]
        )
        self.head = nn.Conv3d(16, structures, 1)

    @staticmethod
    def _stage(*channels: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [convolution(3, inputs, outputs), nn.BatchNorm3d(outputs)]
            layers.append(nn.LeakyReLU(inplace=True))
        return nn.Sequential(*layers)

    @staticmethod
    def _widen(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.ConvTranspose3d(channels, channels, 2, stride=2),
            nn.BatchNorm3d(channels),
            nn.LeakyReLU(inplace=True),
        )

    def forward(self, image: Tensor) -> Tensor:
        _check_image(image, 3, 8)
        x, skips = image, []
        for i, down in enumerate(self.down):
            x = down(F.max_pool3d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for widen, up in zip(self.widen, self.up, strict=True):
            x = up(torch.cat([widen(x), skips.pop()], 1))
        return self.head(x)


class PaperRegistrationNet(nn.Module):
    """The registration network of Xu & Niethammer (2019), VoxelMorph as of CVPR 2018, 3D: 253,627
    parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([convolution(3, 2, 16)])
        for inputs, outputs in pairwise((16, 32, 32, 32, 32)):
            self.down.append(convolution(3, inputs, outputs, stride=2))
        self.up = nn.ModuleList([convolution(3, 32, 32)])
        for inputs, outputs in ((64, 32), (64, 32), (64, 8)):
            self.up.append(convolution(3, inputs, outputs))
        self.refine = convolution(3, 8, 8)
        self.head = near_zero(convolution(3, 24, 3))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        x, skips = torch.cat([moving, fixed], 1), []
        _check_image(x, 3, 16)
        for down in self.down:
            x = F.leaky_relu(down(x), 0.2, inplace=True)
            skips.append(x)
        skips.pop()
        x = F.leaky_relu(self.up[0](x), 0.2, inplace=True)
        for up in self.up[1:]:
            x = torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], 1)
            x = F.leaky_relu(up(x), 0.2, inplace=True)
        x = F.leaky_relu(self.refine(x), 0.2, inplace=True)
        x = torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], 1)
        return self.head(x)
