"""What a training step sees: pairs of scans drawn by case, and augmented."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Batch, Scan, sent
from .warp import Deformation

CASES = {  # (is moving labelled?, is fixed?)
    "labelled, unlabelled": (True, False),
    "unlabelled, labelled": (False, True),
    "labelled, labelled": (True, True),
    "unlabelled, unlabelled": (False, False),
}


@dataclass(frozen=True)
class Pairs:
    """The pairs of one case: a moving scan with any fixed scan of another subject."""

    moving: list[Scan]  # those that have a partner
    fixed: list[Scan]
    places: Mapping[str, list[int]]  # of each subject's scans in ``fixed``, in order

    @classmethod
    def between(cls, moving: Sequence[Scan], fixed: Sequence[Scan]) -> Pairs:
        """Of all ``moving`` scans that have a partner among the ``fixed`` ones."""
        places = defaultdict(list)
        for place, scan in enumerate(fixed):
            places[scan.subject].append(place)
        of_others = [scan for scan in moving if len(places.get(scan.subject, ())) < len(fixed)]
        return cls(of_others, list(fixed), dict(places))

    def partners(self, moving: Scan) -> int:
        """How many fixed scans are of other subjects."""
        return len(self.fixed) - len(self.places.get(moving.subject, ()))

    def partner(self, moving: Scan, number: int) -> Scan:
        """The fixed scan with this number, counted from 0, among those of other subjects.

        The moving scan's own subject is stepped over: a list of partners for each scan would hold
        the square of the number of scans.
        """
        place = number
        for own in self.places.get(moving.subject, ()):
            if own <= place:
                place += 1
        return self.fixed[place]


def pairs_by_case(
    scans: Sequence[Scan], turn: str, consults: bool, fourth_case: bool = False
) -> list[Pairs]:
    """The pairs of each case that ``scans`` offer and a ``turn`` ("seg" or "reg") can learn from.

    Segmentation learns from a pair with at least one label, and from none only with
    ``fourth_case``; the baseline, which consults nobody, from the moving side.
    """

    def useful(moving_known: bool, fixed_known: bool) -> bool:
        if turn == "reg" or moving_known:
            return True
        return consults and (fixed_known or fourth_case)

    found = []
    for moving_known, fixed_known in CASES.values():
        if not useful(moving_known, fixed_known):
            continue
        pairs = Pairs.between(_of_kind(scans, moving_known), _of_kind(scans, fixed_known))
        if pairs.moving:
            found.append(pairs)
    return found


def _of_kind(scans: Sequence[Scan], known: bool) -> list[Scan]:
    """The labelled scans if ``known``, or else those that are not."""
    return [scan for scan in scans if (scan.labels is not None) == known]


def draw_pair(cases: list[Pairs], generator: torch.Generator) -> tuple[Scan, Scan]:
    """(moving, fixed): first the case, then the scans, so that a few labels among many scans are
    still seen often.
    """

    def number_below(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    case = cases[number_below(len(cases))]
    moving = case.moving[number_below(len(case.moving))]
    return moving, case.partner(moving, number_below(case.partners(moving)))


# --- augmentation ---------------------------------------------------------------------------------

COARSE = 4  # numbers along each axis from which a smooth bias field is interpolated


def draw_changes(
    pairs: int, shape: tuple[int, ...], strength: float, generator: torch.Generator
) -> Tensor | None:
    """How ``augment`` is to change each of so many pairs on a grid of ``shape``: a row of numbers
    for each; None at ``strength`` 0.

    At ``strength`` 1: rotations, scalings and shears of about 4 %, shifts of 3 % of a side, gamma
    from 0.7 to 1.4, a smooth bias field of about 10 %. Drawn on the CPU, whatever a pair is
    computed with, and in one tensor: a GPU gets it in one copy, and a part of a batch is changed by
    its rows.
    """
    if strength == 0:
        return None
    drawn = [_small_affines(pairs, shape, strength, generator).flatten(1)]
    for _ in ("moving", "fixed"):
        one_each = torch.randn(pairs, 1, generator=generator)
        drawn.append((strength * 0.35 * one_each.clamp(-1, 1)).exp())  # gamma
        coarse = torch.randn(pairs, COARSE ** len(shape), generator=generator)
        drawn.append(strength * 0.1 * coarse)
    return torch.cat(drawn, 1)


def augment(moving: Batch, fixed: Batch, changes: Tensor | None) -> tuple[Batch, Batch]:
    """Pairs as they might lie elsewhere in the scanner: one small affine map for both sides, other
    contrasts for each, by their rows of ``draw_changes``; None changes nothing.

    Labels move with their image, to the nearest voxel. The map is shared, so that registering the
    pair does not become harder than it is.
    """
    if changes is None:
        return moving, fixed
    shape = tuple(fixed.image.shape[2:])
    d = len(shape)
    lengths = [(d + 1) ** 2, 1, COARSE**d, 1, COARSE**d]
    affine, *contrasts = sent(changes, fixed.image.device).split(lengths, 1)
    phi = Deformation.affine(affine.unflatten(1, (d + 1, d + 1)), shape)
    # two channels of one volume: where to look is worked out once
    images = phi.warp(torch.cat([moving.image, fixed.image], 1)).split(1, 1)
    elsewhere = []
    for batch, image, gamma, coarse in zip(
        (moving, fixed), images, contrasts[::2], contrasts[1::2], strict=True
    ):
        labels = phi.warp_labels(batch.labels) if any(batch.known) else batch.labels
        seen = _recontrast(image, gamma, coarse)
        elsewhere.append(replace(batch, image=seen, labels=labels))
    return elsewhere[0], elsewhere[1]


def _small_affines(
    pairs: int, shape: tuple[int, ...], strength: float, generator: torch.Generator
) -> Tensor:
    """Random affine maps about the middle of the grid: (B, D + 1, D + 1), voxels to voxels."""
    d = len(shape)
    sides = torch.tensor(shape, dtype=torch.float32)
    centre = (sides - 1) / 2
    matrix = torch.eye(d + 1).repeat(pairs, 1, 1)
    linear = matrix[:, :d, :d]
    linear += strength * 0.04 * torch.randn(pairs, d, d, generator=generator)
    shift = strength * 0.03 * sides * torch.randn(pairs, d, generator=generator)
    # A (x - centre) + centre + shift
    matrix[:, :d, d] = centre - linear @ centre + shift
    return matrix


def _recontrast(image: Tensor, gamma: Tensor, coarse: Tensor) -> Tensor:
    """image^gamma times a smooth bias field: an exponent (B, 1) and the logarithm of a coarse field
    (B, 4^D) for each of (B, 1, I, J, K).
    """
    d = image.ndim - 2
    coarse = coarse.unflatten(1, (1, *[COARSE] * d))
    mode = "bilinear" if d == 2 else "trilinear"
    log_bias = F.interpolate(coarse, size=image.shape[2:], mode=mode)
    curved = image.clamp(min=0) ** gamma.view(-1, 1, *[1] * d)
    return (curved * log_bias.exp()).clamp(0, 1)
