"""Lesson 01, data: voxels and millimetres, intensities, overlap, splits."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor

from . import Exercise, Mistake

# --- overlap --------------------------------------------------------------------------------------


def _label_maps(dims: int, generator: Generator) -> tuple[Tensor, Tensor, int]:
    """Two label maps of 4 structures that overlap in part; structure 3 is missing from the
    reference.
    """
    reference = torch.randint(0, 3, (6,) * dims, generator=generator)
    predicted = torch.where(
        torch.rand(reference.shape, generator=generator) < 0.4,
        torch.randint(0, 4, reference.shape, generator=generator),
        reference,
    )
    return predicted, reference, 4


def _overlaps(score) -> object:
    """A function of two label maps from one of two masks: one number for each structure but the
    background.
    """
    return lambda predicted, reference, count: torch.tensor(
        [score(predicted == c, reference == c) for c in range(1, count)]
    )


def _dice(a: Tensor, b: Tensor, absent: float = math.nan, factor: float = 2.0) -> float:
    return float(factor * (a & b).sum() / (a.sum() + b.sum())) if b.any() else absent


DICE = Exercise(
    "Dice of every structure",
    _label_maps,
    _overlaps(_dice),
    (
        "Take one structure c at a time: two masks, predicted == c and reference == c.",
        "Dice = 2 |A and B| / (|A| + |B|), and a structure that the reference lacks is NaN.",
        "One number for each of c = 1, ..., count - 1, in a tensor.",
    ),
    {
        "intersection over union": Mistake(
            _overlaps(lambda a, b: float((a & b).sum() / (a | b).sum()) if b.any() else math.nan),
            (
                "Your numbers are too small, except where they are 0 or 1.",
                "You divide by the union. That is the Jaccard index; Dice divides by the mean of both sizes.",
                "The denominator is (|A| + |B|) / 2, where voxels in both count twice, not |A or B|.",
            ),
        ),
        "no factor 2": Mistake(
            _overlaps(lambda a, b: _dice(a, b, factor=1.0)),
            (
                "All your numbers are half of what they should be: two equal masks must have Dice 1.",
                "|A| + |B| counts the voxels of the intersection twice, so the numerator must, too.",
                "2 * (a & b).sum() / (a.sum() + b.sum())",
            ),
        ),
        "background counted": Mistake(
            lambda p, r, count: torch.tensor([_dice(p == c, r == c) for c in range(count)]),
            (
                "You return one number too many.",
                "Label 0 is the background. It is large and easy, and makes every mean look better than it is.",
                "Begin at 1: range(1, count).",
            ),
        ),
        "absent is 0": Mistake(
            _overlaps(lambda a, b: _dice(a, b, absent=0.0)),
            (
                "A structure that the reference does not contain gets 0.",
                "0 would punish the method for something that is not there to be found; the mean over cases would then "
                "measure how often a structure is absent.",
                "Where reference == c is nowhere true, the answer is float('nan'); leave it out of means later.",
            ),
        ),
        "absent is 1": Mistake(
            _overlaps(lambda a, b: _dice(a, b, absent=1.0)),
            (
                "A structure that the reference does not contain gets 1.",
                "1 is a reward for nothing, even where the prediction invents the structure.",
                "Where reference == c is nowhere true, the answer is float('nan').",
            ),
        ),
        "agreement of all voxels": Mistake(
            _overlaps(lambda a, b: float((a == b).float().mean()) if b.any() else math.nan),
            (
                "Your numbers are near 1 although the structures overlap little.",
                "You count the voxels that both maps leave out as agreement. In a large image everything agrees then.",
                "Count only voxels inside the masks: a & b, not a == b.",
            ),
        ),
    },
)

# --- where a voxel is -----------------------------------------------------------------------------


def _affine_and_index(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.diag(torch.tensor([-1.0, 1.5, 2.0], dtype=torch.float64))
    affine[:3, :3] += 0.2 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    affine[:3, 3] = 50 * torch.randn(3, generator=generator, dtype=torch.float64)
    return affine, torch.randint(1, 60, (3,), generator=generator).double()


def _to_world(affine: Tensor, index: Tensor) -> Tensor:
    return affine[:3, :3] @ index + affine[:3, 3]


WORLD = Exercise(
    "From a voxel to millimetres",
    _affine_and_index,
    _to_world,
    (
        "The affine is a 4 x 4 matrix: its upper left 3 x 3 block turns and scales, its last column shifts.",
        "world = M index + t, with M = affine[:3, :3] and t = affine[:3, 3].",
        "affine[:3, :3] @ index + affine[:3, 3]",
    ),
    {
        "transposed": Mistake(
            lambda affine, index: index @ affine[:3, :3] + affine[:3, 3],
            (
                "It is right for axes that are not turned, and wrong for oblique ones.",
                "index @ M is M transposed times index: rows and columns are exchanged.",
                "M stands on the left: affine[:3, :3] @ index.",
            ),
        ),
        "no shift": Mistake(
            lambda affine, index: affine[:3, :3] @ index,
            (
                "Voxel (0, 0, 0) would lie at the scanner's origin.",
                "The last column says where voxel (0, 0, 0) lies in the world.",
                "Add affine[:3, 3].",
            ),
        ),
        "the other way": Mistake(
            lambda affine, index: (
                torch.linalg.inv(affine)[:3, :3] @ index + torch.linalg.inv(affine)[:3, 3]
            ),
            (
                "You get voxels where millimetres were wanted.",
                "The affine of a NIfTI file leads from voxels to the world; its inverse leads back.",
                "Do not invert it.",
            ),
        ),
        "axes reversed": Mistake(
            lambda affine, index: _to_world(affine, index.flip(0)),
            (
                "The first and the third number of the voxel change places.",
                "Some libraries store volumes as (K, J, I). Here, as in nibabel, an index is (i, j, k).",
                "Use the index as it is, without [::-1] or flip.",
            ),
        ),
    },
    dims=(3,),
)

# --- intensities ----------------------------------------------------------------------------------


def _raw_image(dims: int, generator: Generator) -> tuple[np.ndarray]:
    rng = np.random.default_rng(generator.initial_seed() % 2**32)
    image = rng.gamma(4.0, 100.0, (24,) * dims) + 300
    image[:10] = 20.0  # air around the head
    image.flat[-2:] = 50_000  # a few voxels that shine
    return (image.astype(np.float32),)


def _normalise(image: np.ndarray, low: float = 1, high: float = 99.5) -> np.ndarray:
    inside = image[image > image.min()]
    a, b = np.percentile(inside, (low, high))
    return ((image - a) / (b - a)).clip(0, 1)


NORMALISE = Exercise(
    "Intensities in [0, 1]",
    _raw_image,
    _normalise,
    (
        "Leave out the voxels of the smallest value, the air around the head.",
        "The percentiles 1 and 99.5 of the rest become 0 and 1; what lies beyond is cut off.",
        "low, high = np.percentile(image[image > image.min()], (1, 99.5))",
    ),
    {
        "minimum and maximum": Mistake(
            lambda image: (image - image.min()) / (image.max() - image.min()),
            (
                "Nearly all voxels end up near 0: the picture is black.",
                "One bright vessel or a metal clip decides the scale, if the scale is set by the maximum.",
                "Use percentiles instead of min() and max().",
            ),
        ),
        "not cut off": Mistake(
            lambda image: (
                (image - np.percentile(image[image > image.min()], 1))
                / np.ptp(np.percentile(image[image > image.min()], (1, 99.5)))
            ),
            (
                "Some values lie below 0 or above 1.",
                "Percentiles lie inside the range, so voxels beyond them leave [0, 1].",
                "Add .clip(0, 1).",
            ),
        ),
        "air counted": Mistake(
            lambda image: (
                (image - np.percentile(image, 1)) / np.ptp(np.percentile(image, (1, 99.5)))
            ).clip(0, 1),
            (
                "The same brain gets another scale if there is more air around it.",
                "The percentiles are taken over the whole image, air included.",
                "Take them over image[image > image.min()].",
            ),
        ),
        "mean and deviation": Mistake(
            lambda image: (image - image.mean()) / image.std(),
            (
                "Your values are not in [0, 1].",
                "That is standardisation. It is usual, too, but here every image goes to [0, 1].",
                "Subtract the lower percentile, divide by the difference of both, and clip.",
            ),
        ),
    },
    tolerance=1e-3,
)

# --- a planted bug: a split that leaks ------------------------------------------------------------


def _rescans(dims: int, generator: Generator) -> tuple[list[str], list[str], int]:
    """(subject of each scan, an order of the subjects, scans wanted for testing)."""
    people = [f"p{i}" for i in range(8)]
    # an odd number is wanted: whoever cuts a list of scans cuts a person in two
    subjects = people * 2
    order = [people[i] for i in torch.randperm(len(people), generator=generator).tolist()]
    shuffled = [subjects[i] for i in torch.randperm(len(subjects), generator=generator).tolist()]
    return shuffled, order, 5


def _split(subjects: list[str], order: list[str], wanted: int) -> dict[str, list[int]]:
    tested: list[str] = []
    for person in order:
        if sum(subject in tested for subject in subjects) >= wanted:
            break
        tested.append(person)
    return {
        "train": [i for i, s in enumerate(subjects) if s not in tested],
        "test": [i for i, s in enumerate(subjects) if s in tested],
    }


def split_that_leaks(subjects: list[str], order: list[str], wanted: int) -> dict[str, list[int]]:
    """The planted bug of the lesson: scans are dealt out one by one, so that a person can be on
    both sides.
    """
    scans = sorted(range(len(subjects)), key=lambda i: order.index(subjects[i]))
    return {"train": sorted(scans[wanted:]), "test": sorted(scans[:wanted])}


SPLIT = Exercise(
    "A split that does not leak",
    _rescans,
    _split,
    (
        "List the people on each side: is somebody on both? Is the test side larger than it need be? Do indices ascend?",
        "Whole people are dealt out, in the given order, until the test side has at least the wanted number of scans.",
        "Collect people, not scans; then a scan goes where its person is.",
    ),
    {
        "by scan": Mistake(
            split_that_leaks,
            (
                "For some draws one person has a scan on each side.",
                "The code cuts a list of scans after `wanted`, in the middle of a person if need be.",
                "Go through `order` and add people until the test side has at least `wanted` scans.",
            ),
        ),
        "one too few": Mistake(
            lambda subjects, order, wanted: _split(subjects, order, wanted - 1),
            (
                "Sometimes the test side has fewer scans than wanted.",
                "You stop before the wanted number is reached.",
                "Go on as long as there are fewer than `wanted`: stop at >= wanted.",
            ),
        ),
        "people counted": Mistake(
            lambda subjects, order, wanted: {
                "train": [i for i, s in enumerate(subjects) if s not in order[:wanted]],
                "test": [i for i, s in enumerate(subjects) if s in order[:wanted]],
            },
            (
                "The test side has as many people as it should have scans.",
                "`wanted` counts scans, and some people have several.",
                "Count the scans of the people chosen so far, not the people.",
            ),
        ),
    },
    dims=(3,),
)

EXERCISES = {"dice": DICE, "world": WORLD, "normalise": NORMALISE, "split": SPLIT}
