"""What a training step sees: pairs of scans drawn by case, and augmented."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Batch, Scan
from .warp import Deformation

CASES = {"labelled, unlabelled": (True, False), "unlabelled, labelled": (False, True),
         "labelled, labelled": (True, True), "unlabelled, unlabelled": (False, False)}  # (moving, fixed)


def pairs_by_case(scans: Sequence[Scan], turn: str, consults: bool) -> list[list[tuple[Scan, list[Scan]]]]:
    """For each case that ``scans`` offer and a ``turn`` ("seg" or "reg") can learn from: every moving scan with the
    fixed scans, of other subjects, that it can be paired with.

    Segmentation learns from a pair with at least one label; the baseline, which consults nobody, from the moving side.
    """
    useful = {"reg": lambda m, f: True, "seg": (lambda m, f: m or f) if consults else (lambda m, f: m)}[turn]
    found = []
    for case in filter(lambda case: useful(*case), CASES.values()):
        moving, fixed = ([s for s in scans if (s.labels is not None) == known] for known in case)
        pairs = [(m, [f for f in fixed if f.subject != m.subject]) for m in moving]
        found.append([(m, others) for m, others in pairs if others])
    return [pairs for pairs in found if pairs]


def draw_pair(cases: list[list[tuple[Scan, list[Scan]]]], generator: torch.Generator) -> tuple[Scan, Scan]:
    """(moving, fixed): first the case, then the scans, so that a few labels among many scans are still seen often."""
    def pick(choices: Sequence):
        return choices[int(torch.randint(len(choices), (), generator=generator))]
    moving, fixed = pick(pick(cases))
    return moving, pick(fixed)


def augment(batch: Batch, strength: float, generator: torch.Generator) -> Batch:
    """The batch as other scanners and other heads might give it: small affine maps, gamma, a smooth bias field.

    At ``strength`` 1: rotations, scalings and shears of about 4 %, shifts of 3 % of a side, gamma from 0.7 to 1.4,
    bias of about 10 %. Labels move with their image.
    """
    if strength == 0:
        return batch
    shape, b = batch.image.shape[2:], len(batch.image)
    d, device = len(shape), batch.image.device
    def normal(*size: int) -> Tensor:
        return strength * torch.randn(*size, generator=generator)
    matrix = torch.eye(d + 1).repeat(b, 1, 1)
    sides = torch.tensor(shape, dtype=torch.float32)
    matrix[:, :d, :d] += 0.04 * normal(b, d, d)
    centre = (sides - 1) / 2
    matrix[:, :d, d] = centre - matrix[:, :d, :d] @ centre + 0.03 * sides * normal(b, d)
    gamma = (0.35 * normal(b).clamp(-1, 1)).exp()
    bias = F.interpolate(0.1 * normal(b, 1, *[4] * d), size=shape, mode="bilinear" if d == 2 else "trilinear")
    phi = Deformation.affine(matrix.to(device), tuple(shape))
    image = phi.warp(batch.image).clamp(min=0) ** gamma.to(device).view(-1, *[1] * (d + 1)) * bias.exp().to(device)
    return Batch(image.clamp(0, 1), phi.warp(batch.one_hot), batch.known, batch.ids)
