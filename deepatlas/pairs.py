"""What a training step sees: pairs of scans drawn by case, and augmented."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Batch, Scan
from .warp import Deformation

CASES = {
    "labelled, unlabelled": (True, False),
    "unlabelled, labelled": (False, True),
    # (moving, fixed)
    "labelled, labelled": (True, True),
    "unlabelled, unlabelled": (False, False),
}


def pairs_by_case(
    scans: Sequence[Scan], turn: str, consults: bool, fourth_case: bool = False
) -> list[list[tuple[Scan, list[Scan]]]]:
    """For each case that ``scans`` offer and a ``turn`` ("seg" or "reg") can learn from: every
    moving scan with the fixed scans, of other subjects, that it can be paired with.

    Segmentation learns from a pair with at least one label, and from none only with
    ``fourth_case``; the baseline, which consults nobody, from the moving side.
    """

    def useful(moving: bool, fixed: bool) -> bool:
        return turn == "reg" or moving or (consults and (fixed or fourth_case))

    found = []
    for case in filter(lambda case: useful(*case), CASES.values()):
        moving, fixed = ([s for s in scans if (s.labels is not None) == known] for known in case)
        pairs = [(m, [f for f in fixed if f.subject != m.subject]) for m in moving]
        found.append([(m, others) for m, others in pairs if others])
    return [pairs for pairs in found if pairs]


def draw_pair(
    cases: list[list[tuple[Scan, list[Scan]]]], generator: torch.Generator
) -> tuple[Scan, Scan]:
    """(moving, fixed): first the case, then the scans, so that a few labels among many scans are
    still seen often.
    """

    def pick(choices: Sequence):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    moving, fixed = pick(pick(cases))
    return moving, pick(fixed)


def augment(
    moving: Batch, fixed: Batch, strength: float, generator: torch.Generator
) -> tuple[Batch, Batch]:
    """A pair as it might lie elsewhere in the scanner: one small affine map for both sides, other
    contrasts for each.

    At ``strength`` 1: rotations, scalings and shears of about 4 %, shifts of 3 % of a side, gamma
    from 0.7 to 1.4, a smooth bias field of about 10 %. Labels move with their image. The map is
    shared, so that registering the pair does not become harder than it is.
    """
    if strength == 0:
        return moving, fixed
    shape, b, device = tuple(fixed.image.shape[2:]), len(fixed.image), fixed.image.device
    d, sides = len(shape), torch.tensor(shape, dtype=torch.float32)
    matrix = torch.eye(d + 1).repeat(b, 1, 1)
    matrix[:, :d, :d] += strength * 0.04 * torch.randn(b, d, d, generator=generator)
    shift = strength * 0.03 * sides * torch.randn(b, d, generator=generator)
    centre = (sides - 1) / 2
    matrix[:, :d, d] = centre - matrix[:, :d, :d] @ centre + shift
    phi = Deformation.affine(matrix.to(device), shape)
    return tuple(
        Batch(
            _recontrast(phi.warp(batch.image), strength, generator),
            phi.warp(batch.one_hot),
            batch.known,
            batch.ids,
        )
        for batch in (moving, fixed)
    )


def _recontrast(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """image^gamma times a smooth bias field, drawn anew for each (B, 1, I, J, K)."""
    b, d = len(image), image.ndim - 2
    gamma = (
        strength * 0.35 * torch.randn(b, *[1] * (d + 1), generator=generator).clamp(-1, 1)
    ).exp()
    bias = F.interpolate(
        strength * 0.1 * torch.randn(b, 1, *[4] * d, generator=generator),
        size=image.shape[2:],
        mode="bilinear" if d == 2 else "trilinear",
    )
    return (image.clamp(min=0) ** gamma.to(image.device) * bias.exp().to(image.device)).clamp(0, 1)
