"""Deformations of images: ``phi(x) = x + u(x)``, in voxels, in 2D and 3D. The only caller of
``grid_sample``.

A deformation maps voxels of the *fixed* image to voxels of the *moving* image, so warping pulls:
``warped(x) = moving(phi(x))``. To look up, not to push: every fixed voxel then has exactly one
value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import as_labels
from .recompute import again


def voxel_grid(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Every voxel's own coordinates: (D, I, J, K), in voxels, with the dtype and device of
    ``like``.
    """
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


# Where a point lies halfway between two voxels, the nearest is the one further along the axis, and
# rounding noise of a few compositions, in voxels, does not decide otherwise.
TIE = 1e-4


def nearest(coordinates: Tensor) -> Tensor:
    """The voxel nearest to each coordinate, floor(x + 1/2), as int64; a half goes up everywhere.

    Rounding half to even, as PyTorch does, a shift of 1/2 would read every other voxel twice and
    the rest never.

    >>> nearest(torch.tensor([0.5, 1.5, 2.5]))
    tensor([1, 2, 3])
    >>> torch.tensor([0.5, 1.5, 2.5]).round()
    tensor([0., 2., 2.])
    """
    within = coordinates.clamp(-1e9, 1e9)  # of a diverged u: no integer holds 1e19
    return torch.floor(within + (0.5 + TIE)).long()


def look_up(volume: Tensor, index: Tensor) -> Tensor:
    """``volume`` (B, C, I, J, K), of any type, at the voxels ``index`` (B, D, ...) -> (B, C, ...);
    outside, the nearest border voxel.
    """
    return _look_up(volume, index.unbind(1))


def _look_up(volume: Tensor, axes: Iterable[Tensor]) -> Tensor:
    """``look_up`` where the index along each axis (B, ...) is made when it is its turn."""
    flat = torch.zeros((), dtype=torch.int64, device=volume.device)
    for n, index in zip(volume.shape[2:], axes, strict=True):
        flat = flat * n + index.clamp(0, n - 1)
    shape = flat.shape[1:]
    flat = flat.flatten(1)[:, None].expand(-1, volume.shape[1], -1)
    return volume.flatten(2).gather(2, flat).view(*volume.shape[:2], *shape)


def _check_axes(volume: Tensor, dims: int) -> None:
    if volume.ndim != dims + 2:
        raise ValueError(
            f"points of {dims} coordinates need a volume of batch, channel and as many "
            f"voxel axes, got {tuple(volume.shape)}: is the batch or the channel axis missing?"
        )


def sample(volume: Tensor, points: Tensor) -> Tensor:
    """``volume`` (B, C, I, J, K) at ``points`` (B, D, ...), in voxels, by linear interpolation in
    every dimension -> (B, C, ...); outside, the nearest border voxel.

    >>> volume = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    >>> middle, outside = [0.5, 0.5], [9.0, 0.0]
    >>> sample(volume, torch.tensor([[middle, outside]]).mT)
    tensor([[[1.5000, 2.0000]]])
    """
    _check_axes(volume, points.shape[1])
    # filled where the points are: a number sent to a GPU would wait until it has done its work
    first_voxel = points.new_full((), -1.0)
    return _interpolate(volume, points, [first_voxel] * points.shape[1])


def pull(volume: Tensor, u: Tensor) -> Tensor:
    """``volume`` (B, C, I, J, K) at ``x + u(x)`` of every voxel x of the grid of ``u`` (B, D, ...),
    in voxels -> (B, C, ...): ``sample(volume, voxel_grid + u)``, in fewer passes over memory.
    """
    shape = u.shape[2:]
    _check_axes(volume, len(shape))
    origins = []
    for axis, (n, side) in enumerate(zip(shape, volume.shape[2:], strict=True)):
        last = 2 * (n - 1) / max(side - 1, 1) - 1
        voxels = torch.linspace(-1, last, n, dtype=u.dtype, device=u.device)
        origins.append(voxels.view(-1, *[1] * (len(shape) - 1 - axis)))
    return _interpolate(volume, u, origins)


def _interpolate(volume: Tensor, offsets: Tensor, origins: list[Tensor]) -> Tensor:
    """``volume`` at ``origins + offsets``: an origin per axis, in grid_sample's frame, and offsets
    (B, D, ...), in voxels.
    """
    # grid_sample wants [-1, 1] from the first voxel's centre to the last one's, and the last voxel
    # axis first
    coordinates = []
    for axis, offset in enumerate(offsets.unbind(1)):
        half_side = max(volume.shape[2 + axis] - 1, 1) / 2
        coordinates.append(torch.add(origins[axis], offset, alpha=1 / half_side))
    normalised = torch.stack(coordinates[::-1], dim=1).flatten(2)
    # and the coordinates last: a view, since interleaving them takes longer than a look-up
    normalised = normalised.transpose(1, 2)
    # never round the points to a volume's half precision
    dtype = torch.promote_types(volume.dtype, offsets.dtype)
    values = _grid_sample(volume.to(dtype), normalised.to(dtype))
    return values.to(volume.dtype).view(*values.shape[:2], *offsets.shape[2:])


def _grid_sample(volume: Tensor, points: Tensor) -> Tensor:
    """``volume`` (B, C, I, J, K) at ``points`` (B, N, D), in grid_sample's frame -> (B, C, N)."""
    b, n, d = points.shape
    # On a CPU grid_sample gives each item of a batch to a thread. Of one item each thread gets its
    # share of the points, and the same volume, which is not copied as long as it needs no gradient.
    shares = 1
    one_at_rest = b == len(volume) == 1 and not volume.requires_grad
    if one_at_rest and points.device.type == "cpu" and not torch.compiler.is_compiling():
        shares = math.gcd(n, torch.get_num_threads())
        volume = volume.expand(shares, *volume.shape[1:])
    grid = points.view(b * shares, *[1] * (d - 1), n // shares, d)  # rows of points
    values = F.grid_sample(volume, grid, "bilinear", "border", align_corners=True).flatten(2)
    return values if shares == 1 else values.transpose(0, 1).reshape(b, volume.shape[1], n)


def determinant(columns: Sequence[Tensor]) -> Tensor:
    """det (..., I, J, K) of the D x D matrices whose columns are D tensors (..., D, I, J, K): far
    faster than ``torch.linalg.det`` so small.
    """
    d = len(columns)
    if d == 2:
        a, b = (column.unbind(-d - 1) for column in columns)
        return a[0] * b[1] - a[1] * b[0]
    a, b, c = (column.unbind(-d - 1) for column in columns)
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        + a[1] * (b[2] * c[0] - b[0] * c[2])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )


def _derivative(u: Tensor, axis: int) -> Tensor:
    """du/dx along an axis, by central differences, one-sided at the border; 0 across a single
    voxel, beyond which ``u`` goes on as it is.
    """
    if u.shape[axis] == 1:
        return 0 * u
    (derivative,) = torch.gradient(u, dim=axis)
    return derivative


def _halfway(w: Tensor) -> Tensor:
    """w(x + w(x) / 2): the velocity w halfway along a step."""
    return pull(w, w / 2)


def _squared(u: Tensor) -> Tensor:
    """The displacement of phi @ phi from that of phi."""
    return u + pull(u, u)


@dataclass(frozen=True, eq=False)
class Deformation:
    """``phi(x) = x + u(x)``, sampled on the fixed image's voxel grid; beyond the border, ``u`` of
    the border.

    >>> u = torch.zeros(1, 2, 3, 3)
    >>> u[:, 1] = 1.0  # every voxel looks one further along the last axis
    >>> image = torch.arange(9.0).view(1, 1, 3, 3)
    >>> Deformation(u).warp(image)[0, 0]
    tensor([[1., 2., 2.],
            [4., 5., 5.],
            [7., 8., 8.]])
    """

    displacement: Tensor  # u: (B, D, I, J, K), in voxels

    def __post_init__(self) -> None:
        u = self.displacement
        if not u.is_floating_point() or u.ndim not in (4, 5) or u.shape[1] != u.ndim - 2:
            raise ValueError(
                "a displacement must be a floating-point tensor (B, 2, I, J) or (B, 3, I, J, K) "
                f"in voxels, got {tuple(u.shape)} of {u.dtype}"
            )
        # half precision cannot tell voxel 200.0 from 200.5
        if u.dtype in (torch.float16, torch.bfloat16):
            object.__setattr__(self, "displacement", u.float())

    @classmethod
    def identity(
        cls, shape: tuple[int, ...], batch: int = 1, device: torch.device | str = "cpu"
    ) -> Deformation:
        """``phi(x) = x`` on a grid of ``shape``.

        >>> Deformation.identity((4, 4)).points[0, :, 3, 1]
        tensor([3., 1.])
        """
        return cls(torch.zeros(batch, len(shape), *shape, device=device))

    @classmethod
    def affine(cls, matrix: Tensor, shape: tuple[int, ...]) -> Deformation:
        """``phi(x) = A x + t`` from ``matrix`` = [[A, t], [0, 1]] (B, D + 1, D + 1), voxels to
        voxels: ``u(x) = (A - I) x + t``.

        >>> twice = torch.diag(torch.tensor([2.0, 2.0, 1.0]))[None]
        >>> Deformation.affine(twice, (4, 4)).points[0, :, 3, 1]
        tensor([6., 2.])
        """
        d = len(shape)
        grid = voxel_grid(shape, matrix)
        change = matrix[:, :d, :d] - torch.eye(d, dtype=matrix.dtype, device=matrix.device)
        shift = matrix[:, :d, d].view(-1, d, *[1] * d)
        return cls(torch.einsum("bij,j...->bi...", change, grid) + shift)

    @classmethod
    def exp(
        cls, velocity: Tensor, squarings: int = 3, shape: tuple[int, ...] | None = None
    ) -> Deformation:
        """``exp(v)``: one unit of time along the stationary velocity ``v`` (B, D, I, J, K), in
        voxels.

        Scaling and squaring: ``exp(v) = exp(v / 2^n)^(2^n)`` (Arsigny et al., MICCAI 2006), with
        ``exp(w) = x + w(x + w(x) / 2)`` for the small ``w = v / 2^n``: the velocity halfway along a
        step, where 3 squarings come as close as 7 from the velocity at its beginning. Invertible as
        long as a step does not fold: ``exp(v) @ exp(-v) = id``.

        With ``shape``, of the grid of phi, ``v`` is in voxels of that grid but may be known on a
        coarser one: the steps are taken there, and phi is interpolated.

        >>> x = voxel_grid((16, 16), torch.zeros(1))
        >>> v = 6 * torch.sin(2 * torch.pi * x / 16)[None]
        >>> Deformation(v).jacobian_determinant().min() < 0  # x + v(x) folds
        tensor(True)
        >>> Deformation.exp(v).jacobian_determinant().min() > 0
        tensor(True)
        """
        velocity = cls(velocity).displacement  # checked, and never in half precision
        own = velocity.shape[2:]
        shape = tuple(own if shape is None else shape)
        # voxels of the grid of phi in one of v's, for each axis; filled where v is
        sizes = [velocity.new_full((), n / m) for n, m in zip(shape, own, strict=True)]
        size = torch.stack(sizes).view(-1, *[1] * len(own))
        step = velocity / (2**squarings * size)
        u = again(_halfway, step)
        for _ in range(squarings):
            u = again(_squared, u)
        if shape == own:
            return cls(u)
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        return cls(F.interpolate(u * size, size=shape, mode=mode))

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis of the fixed image."""
        return tuple(self.displacement.shape[2:])

    @property
    def points(self) -> Tensor:
        """``phi(x)`` of every voxel x: (B, D, I, J, K), in voxels of the moving image."""
        return voxel_grid(self.shape, self.displacement) + self.displacement

    def __call__(self, points: Tensor) -> Tensor:
        """``phi(x)`` at any ``points`` (B, D, ...), in voxels."""
        return points + sample(self.displacement, points)

    def __matmul__(self, first: Deformation) -> Deformation:
        """``(phi @ psi)(x) = phi(psi(x))``: psi acts on the point first, phi on the image first.

        >>> twice = Deformation.affine(torch.diag(torch.tensor([2.0, 2.0, 1.0]))[None], (5, 5))
        >>> shift = Deformation(torch.ones(1, 2, 5, 5))
        >>> (twice @ shift).points[0, :, 1, 1]  # 2 (x + 1)
        tensor([4., 4.])
        >>> (shift @ twice).points[0, :, 1, 1]  # 2 x + 1
        tensor([3., 3.])
        """
        return Deformation(first.displacement + pull(self.displacement, first.displacement))

    def warp(self, moving: Tensor) -> Tensor:
        """``moving(phi(x))`` by linear interpolation: (B, C, I, J, K) floats -> the same on the
        fixed grid.

        >>> Deformation.identity((2, 2)).warp(torch.tensor([[[[0, 1], [2, 3]]]]))
        Traceback (most recent call last):
            ...
        TypeError: warp interpolates, and labels must not be: use warp_labels for torch.int64
        """
        if not moving.is_floating_point():
            raise TypeError(
                f"warp interpolates, and labels must not be: use warp_labels for {moving.dtype}"
            )
        return pull(moving, self.displacement)

    def warp_labels(self, labels: Tensor) -> Tensor:
        """``labels(phi(x))`` of the nearest voxel: (B, I, J, K) integers -> the same. It has no
        gradient.

        The labels are copied, never computed with. From voxel i it is i + floor(u + 1/2), so that
        the same u leads every voxel equally far.

        >>> phi = Deformation(torch.full((1, 2, 1, 4), 0.5))
        >>> phi.warp_labels(torch.tensor([[[0, 0, 7, 2]]]))  # a half goes up
        tensor([[[0, 7, 2, 2]]])
        """
        volume = as_labels(labels)[:, None]
        _check_axes(volume, len(self.shape))
        if len(labels) != len(self.displacement):
            raise ValueError(
                f"as many label maps as deformations were wanted, got {len(labels)} and "
                f"{len(self.displacement)}"
            )
        return _look_up(volume, self._nearest_voxels())[:, 0].to(labels.dtype)

    def _nearest_voxels(self) -> Iterator[Tensor]:
        """The index along each axis (B, I, J, K) of the voxel of ``moving`` nearest to phi(x)."""
        dims = len(self.shape)
        for axis, u in enumerate(self.displacement.unbind(1)):
            here = torch.arange(self.shape[axis], device=u.device)
            yield here.view(-1, *[1] * (dims - 1 - axis)) + nearest(u)

    def inverse(self, iterations: int = 30) -> Deformation:
        """``psi`` with ``phi(psi(x)) = x``, by the fixed point ``w(x) = -u(x + w(x))`` (Chen et
        al., 2008).

        Converges where ``u`` changes by less than one voxel per voxel. ``-u`` alone is not the
        inverse.

        >>> x = voxel_grid((16, 16), torch.zeros(1))
        >>> phi = Deformation(2 * torch.sin(2 * torch.pi * x / 16)[None])
        >>> there_and_back = phi @ phi.inverse()
        >>> there_and_back.displacement.abs().max() < 0.01
        tensor(True)
        >>> (phi @ Deformation(-phi.displacement)).displacement.abs().max() > 0.9  # voxels
        tensor(True)
        """
        inverse = Deformation(-self.displacement)
        for _ in range(iterations):
            inverse = Deformation(-pull(self.displacement, inverse.displacement))
        return inverse

    def jacobian_determinant(self) -> Tensor:
        """``det(I + du/dx)`` (B, I, J, K): local volume change by central differences; <= 0 where
        phi folds.

        >>> twice = torch.diag(torch.tensor([2.0, 2.0, 1.0]))[None]
        >>> Deformation.affine(twice, (4, 4)).jacobian_determinant()[0, 1, 1]
        tensor(4.)
        """
        axes = range(2, self.displacement.ndim)
        columns = [_derivative(self.displacement, axis) for axis in axes]
        for axis, column in enumerate(columns):
            column[:, axis] += 1
        return determinant(columns)

    def detach(self) -> Deformation:
        """The same deformation; no gradient flows back to the network that made it."""
        return Deformation(self.displacement.detach())
