"""Registration without a network: affine alignment, one pair by gradient descent, and labels
carried over by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .data import Batch, Scan, label_dtype
from .warp import Deformation


@torch.enable_grad()
def affine_matrices(
    moving: Tensor, fixed: Tensor, steps: Sequence[int] = (80, 40), rate: float = 0.02
) -> Tensor:
    """[[A, t], [0, 1]] (B, D + 1, D + 1), fixed voxels -> moving voxels, that align (B, 1, I, J, K)
    to (1, 1, I, J, K).

    Minimises 1 - NCC of the images, never of labels, over the 12 numbers (2D: 6) by Adam, first at
    half resolution, then at full (``steps`` each). Scale and shift share one learning ``rate``
    since the coordinates are centred and divided by the longest side.
    """
    if moving.shape[1:] != fixed.shape[1:]:
        raise ValueError(
            "moving and fixed must share one grid, "
            f"got {tuple(moving.shape)} and {tuple(fixed.shape)}"
        )
    d, device = moving.ndim - 2, moving.device
    identity = torch.eye(d + 1, device=device)

    # voxels -> coordinates from -1 to 1 along the longest side
    sides = torch.tensor(fixed.shape[2:], dtype=torch.float32, device=device)
    half = float(sides.max()) / 2
    to_unit = identity / half
    to_unit[:d, d] = -(sides - 1) / 2 / half
    to_unit[d, d] = 1

    offset = torch.zeros(len(moving), d + 1, d + 1, device=device, requires_grad=True)
    mask = torch.ones(d + 1, 1, device=device)
    mask[d] = 0  # the last row stays [0, 1]
    optimiser = torch.optim.Adam([offset], lr=rate)

    def matrices() -> Tensor:
        return to_unit.inverse() @ (identity + mask * offset) @ to_unit

    for level, count in zip((2, 1), steps, strict=True):
        small_moving, small_fixed = _smaller(moving, level), _smaller(fixed, level)
        shape = tuple(small_fixed.shape[2:])
        all_fixed = small_fixed.expand_as(small_moving)
        # voxel of the small grid -> voxel of the full one
        shrink = identity * level
        shrink[:d, d] = (level - 1) / 2
        shrink[d, d] = 1
        optimiser.param_groups[0]["lr"] = rate / level
        for _ in range(count):
            phi = Deformation.affine(shrink.inverse() @ matrices() @ shrink, shape)
            mean = losses.ncc(phi.warp(small_moving), all_fixed)
            loss = mean * len(moving)  # a map does not depend on the others of the batch
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return matrices().detach()


def _smaller(x: Tensor, factor: int) -> Tensor:
    """Means over ``factor`` voxels along each axis; a side of fewer goes on as its border does."""
    if factor == 1:
        return x
    missing = [max(factor - side, 0) for side in x.shape[2:]]
    if any(missing):
        behind = []
        for n in reversed(missing):
            behind += [0, n]
        x = F.pad(x, behind, mode="replicate")
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return pool(x, factor)


Similarity = Callable[[Tensor, Tensor], Tensor]
PairLoss = Callable[[Deformation], Tensor]


def pair_loss(
    moving: Tensor,
    fixed: Tensor,
    *,
    similarity: Similarity = losses.ncc,
    regularity: float = 1.0,
    anatomy: float = 0.0,
    probabilities: tuple[Tensor, Tensor] | None = None,
) -> PairLoss:
    """phi -> similarity(I_m o phi, I_f) + ``regularity`` * bending energy + ``anatomy`` * (1 - soft
    Dice of S_m o phi and S_f): of one pair, what a registration network is trained to minimise.

    ``moving``, ``fixed``: I_m and I_f, (B, 1, I, J, K). ``probabilities``: S_m and S_f, (B, C, I,
    J, K) each; without them there is no last term.
    """
    if moving.shape != fixed.shape:
        raise ValueError(
            "moving and fixed must share one grid, "
            f"got {tuple(moving.shape)} and {tuple(fixed.shape)}"
        )

    def loss(phi: Deformation) -> Tensor:
        value = similarity(phi.warp(moving), fixed)
        value = value + regularity * losses.bending_energy(phi.displacement)
        if probabilities is None:
            return value
        s_moving, s_fixed = probabilities
        return value + anatomy * losses.warped_dice(phi.warp, s_moving, s_fixed)

    return loss


def optimise_pair(
    moving: Tensor,
    fixed: Tensor,
    *,
    similarity: Similarity = losses.ncc,
    regularity: float = 1.0,
    steps: int = 100,
    rate: float = 0.1,
) -> Deformation:
    """The phi that minimises similarity + ``regularity`` * bending energy for one pair (B, 1, I, J,
    K), by Adam on u.

    What a registration network is trained to guess in one step is found here in ``steps`` of them,
    each of at most about ``rate`` voxels. u lives at half the resolution and is interpolated.
    """
    shape = fixed.shape[2:]
    mode = "bilinear" if len(shape) == 2 else "trilinear"

    def deformation(coarse: Tensor) -> Deformation:
        return Deformation(F.interpolate(coarse, size=shape, mode=mode))

    loss = pair_loss(moving, fixed, similarity=similarity, regularity=regularity)
    for now, _ in _descent(fixed, deformation, loss, steps, rate):
        phi = now
    return phi


def refine_pair(start: Deformation, loss: PairLoss, steps: int = 50) -> Deformation:
    """Of ``start``, as a network's guess, and ``steps`` from there, each of at most about 0.1
    voxels, the phi of the smallest ``loss``: what a network was trained for, of this pair alone.

    phi = ``start`` o exp(v), by Adam on the velocity v, in voxels, which begins at 0 and lives at
    half the resolution. So phi is invertible where ``start`` is; ``start`` + u might fold.
    """
    start = start.detach()

    def deformation(coarse: Tensor) -> Deformation:
        return start @ Deformation.exp(coarse, shape=start.shape)

    best, smallest = start, loss(start).item()
    descent = _descent(start.displacement, deformation, loss, steps, rate=0.1)
    next(descent)  # the start again, but for rounding
    for phi, value in descent:
        if value < smallest:
            best, smallest = phi, value
    return best


@torch.enable_grad()
def _descent(
    like: Tensor,
    deformation: Callable[[Tensor], Deformation],
    loss: PairLoss,
    steps: int,
    rate: float,
) -> Iterator[tuple[Deformation, float]]:
    """phi and its loss at the beginning, and after each of ``steps`` of Adam on what
    ``deformation`` makes phi of: vectors at half the resolution of the images ``like``, 0 at first.
    """
    shape = like.shape[2:]
    half_shape = [(n + 1) // 2 for n in shape]
    # in bfloat16 a step of 0.1 voxels would be lost
    dtype = torch.promote_types(like.dtype, torch.float32)
    coarse = like.new_zeros(len(like), len(shape), *half_shape, dtype=dtype).requires_grad_()
    optimiser = torch.optim.Adam([coarse], lr=rate)
    for step in range(steps + 1):
        phi = deformation(coarse)
        value = loss(phi)
        yield phi.detach(), value.item()
        if step == steps:
            return
        optimiser.zero_grad()
        value.backward()
        optimiser.step()


@torch.no_grad()
def propagate_labels(
    register: Callable[[Scan, Scan], Deformation], atlases: Sequence[Scan], scan: Scan
) -> Tensor:
    """Labels of ``scan`` (I, J, K) from those of the ``atlases`` warped onto it: the oldest
    one-shot method.

    The probability of structure c is p_c(x) = mean over atlases a of S_ac(phi_a(x)), where S_ac is
    1 in structure c of atlas a and 0 elsewhere, interpolated linearly, and phi_a = ``register(a,
    scan)`` is any registration. A voxel gets the structure of the largest p_c. Of two atlases that
    disagree both structures may have 1/2 (in one voxel of a hundred, measured), and rounding
    decides; of an odd number hardly ever. The atlases are added to p (C, I, J, K) one by one, C the
    largest label in them and 1. ValueError without an atlas.

    >>> def atlas(name, *labels):
    ...     return Scan(name, name, torch.zeros(1, 1, 3), torch.eye(4), torch.tensor([labels]))
    >>> atlases = [atlas("a", 0, 1, 1), atlas("b", 0, 0, 1), atlas("c", 1, 1, 0)]
    >>> propagate_labels(lambda *pair: Deformation.identity((1, 3)), atlases, atlases[0])
    tensor([[0, 1, 1]], dtype=torch.uint8)
    """
    if not atlases:
        raise ValueError("label propagation needs at least one labelled scan")
    structures = 1 + max(int(atlas.known_labels.max()) for atlas in atlases)
    total = torch.zeros(structures, *scan.shape, device=scan.image.device)
    for atlas in atlases:
        phi = register(atlas, scan)
        total += phi.warp(Batch.of([atlas], structures).one_hot)[0]
    return total.argmax(0).to(label_dtype(structures))
