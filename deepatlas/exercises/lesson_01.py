"""Lesson 01, data: voxels and millimetres, one grid for all, intensities, overlap, splits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from . import Exercise, numpy_generator

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


def _each(
    score: Callable[[Tensor, Tensor], float],
    predicted: Tensor,
    reference: Tensor,
    count: int,
    first: int = 1,
) -> Tensor:
    """``score`` of the two masks of each structure: one number for each but the background."""
    masks = [(predicted == c, reference == c) for c in range(first, count)]
    return torch.tensor([score(a, b) for a, b in masks])


def _dice(a: Tensor, b: Tensor, *, factor: float = 2.0, absent: float = math.nan) -> float:
    """Of two masks; ``absent`` where the second, the reference, is empty."""
    if not b.any():
        return absent
    return float(factor * (a & b).sum() / (a.sum() + b.sum()))


def _dice_of_structures(predicted: Tensor, reference: Tensor, count: int) -> Tensor:
    return _each(_dice, predicted, reference, count)


DICE = Exercise(
    "Dice of every structure",
    arguments=_label_maps,
    right=_dice_of_structures,
    hints=(
        "Take one structure c at a time: two masks, predicted == c and reference == c.",
        "Dice = 2 |A and B| / (|A| + |B|), and a structure that the reference lacks is NaN.",
        "One number for each of c = 1, ..., count - 1, in a tensor.",
    ),
)


@DICE.mistake(
    "intersection over union",
    symptom="Your numbers are too small, except where they are 0 or 1.",
    idea="You divide by the union. That is the Jaccard index; Dice divides by the mean of both "
    "sizes.",
    line="The denominator is (|A| + |B|) / 2, where voxels in both count twice, not |A or B|.",
)
def _intersection_over_union(predicted, reference, count):
    def jaccard(a, b):
        if not b.any():
            return math.nan
        return float((a & b).sum() / (a | b).sum())

    return _each(jaccard, predicted, reference, count)


@DICE.mistake(
    "no factor 2",
    symptom="All your numbers are half of what they should be: two equal masks must have Dice 1.",
    idea="|A| + |B| counts the voxels of the intersection twice, so the numerator must, too.",
    line="2 * (a & b).sum() / (a.sum() + b.sum())",
)
def _no_factor_2(predicted, reference, count):
    return _each(lambda a, b: _dice(a, b, factor=1.0), predicted, reference, count)


@DICE.mistake(
    "background counted",
    symptom="You return one number too many.",
    idea="Label 0 is the background. It is large and easy, and makes every mean look better than "
    "it is.",
    line="Begin at 1: range(1, count).",
)
def _background_counted(predicted, reference, count):
    return _each(_dice, predicted, reference, count, first=0)


@DICE.mistake(
    "absent is 0",
    symptom="A structure that the reference does not contain gets 0.",
    idea="0 would punish the method for something that is not there to be found; the mean over "
    "cases would then measure how often a structure is absent.",
    line="Where reference == c is nowhere true, the answer is float('nan'); leave it out of means "
    "later.",
)
def _absent_is_0(predicted, reference, count):
    return _each(lambda a, b: _dice(a, b, absent=0.0), predicted, reference, count)


@DICE.mistake(
    "absent is 1",
    symptom="A structure that the reference does not contain gets 1.",
    idea="1 is a reward for nothing, even where the prediction invents the structure.",
    line="Where reference == c is nowhere true, the answer is float('nan').",
)
def _absent_is_1(predicted, reference, count):
    return _each(lambda a, b: _dice(a, b, absent=1.0), predicted, reference, count)


@DICE.mistake(
    "agreement of all voxels",
    symptom="Your numbers are near 1 although the structures overlap little.",
    idea="You count the voxels that both maps leave out as agreement. In a large image everything "
    "agrees then.",
    line="Count only voxels inside the masks: a & b, not a == b.",
)
def _agreement_of_all_voxels(predicted, reference, count):
    def agreement(a, b):
        if not b.any():
            return math.nan
        return float((a == b).float().mean())

    return _each(agreement, predicted, reference, count)


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
    arguments=_affine_and_index,
    right=_to_world,
    hints=(
        "The affine is a 4 x 4 matrix: its upper left 3 x 3 block turns and scales, its last "
        "column shifts.",
        "world = M index + t, with M = affine[:3, :3] and t = affine[:3, 3].",
        "affine[:3, :3] @ index + affine[:3, 3]",
    ),
    dims=(3,),
)


@WORLD.mistake(
    "transposed",
    symptom="It is right for axes that are not turned, and wrong for oblique ones.",
    idea="index @ M is M transposed times index: rows and columns are exchanged.",
    line="M stands on the left: affine[:3, :3] @ index.",
)
def _transposed(affine, index):
    return index @ affine[:3, :3] + affine[:3, 3]


@WORLD.mistake(
    "no shift",
    symptom="Voxel (0, 0, 0) would lie at the scanner's origin.",
    idea="The last column says where voxel (0, 0, 0) lies in the world.",
    line="Add affine[:3, 3].",
)
def _no_shift(affine, index):
    return affine[:3, :3] @ index


@WORLD.mistake(
    "the other way",
    symptom="You get voxels where millimetres were wanted.",
    idea="The affine of a NIfTI file leads from voxels to the world; its inverse leads back.",
    line="Do not invert it.",
)
def _the_other_way(affine, index):
    return _to_world(torch.linalg.inv(affine), index)


@WORLD.mistake(
    "axes reversed",
    symptom="The first and the third number of the voxel change places.",
    idea="Some libraries store volumes as (K, J, I). Here, as in nibabel, an index is (i, j, k).",
    line="Use the index as it is, without [::-1] or flip.",
)
def _axes_reversed(affine, index):
    return _to_world(affine, index.flip(0))


# --- one grid for all -----------------------------------------------------------------------------


def _two_affines(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Of a file, oblique and with thick slices, and of a grid of 1.5 mm along the world's axes."""
    of_file, _ = _affine_and_index(dims, generator)
    of_grid = 1.5 * torch.eye(4, dtype=torch.float64)
    of_grid[3, 3] = 1
    of_grid[:3, 3] = 50 * torch.randn(3, generator=generator, dtype=torch.float64)
    return of_file, of_grid


def _grid_to_file(file_affine: Tensor, grid_affine: Tensor) -> Tensor:
    return torch.linalg.inv(file_affine) @ grid_affine


GRID = Exercise(
    "From the common grid into the file",
    arguments=_two_affines,
    right=_grid_to_file,
    hints=(
        "Two steps: from a voxel of the grid to its place in the world, from that place to a "
        "voxel of the file. Which matrix makes which step?",
        "The affine of the grid leads into the world, the inverse of the file's leads out of it; "
        "of a product, the matrix on the right acts first.",
        "torch.linalg.inv(file_affine) @ grid_affine",
    ),
    dims=(3,),
)


@GRID.mistake(
    "the other way",
    symptom="Your matrix leads from a voxel of the file to one of the grid.",
    idea="Resampling looks up: every voxel of the grid asks where in the file it lies. The other "
    "way, some voxels of the grid would get two values and others none.",
    line="Invert the affine of the file, not that of the grid.",
)
def _file_to_grid(file_affine, grid_affine):
    return _grid_to_file(grid_affine, file_affine)


@GRID.mistake(
    "the steps exchanged",
    symptom="You have the right two matrices, and the place is wrong.",
    idea="In a product the matrix on the right acts first. Yours begins with the inverse, which "
    "wants millimetres and is given a voxel.",
    line="Exchange the factors: the grid's affine stands on the right.",
)
def _steps_exchanged(file_affine, grid_affine):
    return grid_affine @ torch.linalg.inv(file_affine)


@GRID.mistake(
    "no inverse",
    symptom="The places are hundreds of millimetres away.",
    idea="Both affines lead INTO the world. One step must lead out of it.",
    line="Use torch.linalg.inv of the file's affine.",
)
def _no_inverse(file_affine, grid_affine):
    return file_affine @ grid_affine


@GRID.mistake(
    "shift alone",
    symptom="It is right for a file whose voxels are as large as the grid's and lie the same way.",
    idea="You compare where the two grids begin. Voxels of another size, and axes that are turned, "
    "need the whole matrix.",
    line="Multiply the 4 x 4 matrices; do not subtract their last columns.",
)
def _shift_alone(file_affine, grid_affine):
    matrix = torch.eye(4, dtype=file_affine.dtype)
    matrix[:3, 3] = grid_affine[:3, 3] - file_affine[:3, 3]
    return matrix


# --- intensities ----------------------------------------------------------------------------------


def _raw_image(dims: int, generator: Generator) -> tuple[np.ndarray]:
    rng = numpy_generator(generator)
    image = rng.gamma(4.0, 100.0, (24,) * dims) + 300
    image[:10] = 20.0  # air around the head
    image.flat[:4] = rng.uniform(0, 19, 4)  # a few voxels that are darker than the air
    image.flat[-2:] = 50_000  # a few voxels that shine
    return (image.astype(np.float32),)


def _rescaled(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """``low`` becomes 0, ``high`` becomes 1."""
    return (image - low) / (high - low)


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, (1, 99.5))


def _head(image: np.ndarray) -> np.ndarray:
    """The voxels above the air, which is the most frequent value."""
    values, counts = np.unique(image, return_counts=True)
    return image[image > values[counts.argmax()]]


def _normalise(image: np.ndarray) -> np.ndarray:
    return _rescaled(image, *_percentiles(_head(image))).clip(0, 1)


NORMALISE = Exercise(
    "Intensities, where some voxels are darker than air",
    arguments=_raw_image,
    right=_normalise,
    hints=(
        "First find the air: of all values, which one do most voxels have?",
        "np.unique(image, return_counts=True) gives the values and how often each occurs. The "
        "percentiles 1 and 99.5 of what lies above the most frequent one become 0 and 1; what lies "
        "beyond is cut off.",
        "values, counts = np.unique(image, return_counts=True); air = values[counts.argmax()]; "
        "then percentiles of image[image > air].",
    ),
    tolerance=1e-3,
)


@NORMALISE.mistake(
    "air counted",
    symptom="The same brain gets another scale if there is more air around it.",
    idea="Your percentiles are taken over the air, too. With image > image.min(), one voxel that "
    "is darker than the air is left out, and all the air is taken for head.",
    line="Compare with the most frequent value instead of image.min().",
)
def _air_counted(image):
    inside = image[image > image.min()]
    return _rescaled(image, *_percentiles(inside)).clip(0, 1)


@NORMALISE.mistake(
    "minimum and maximum",
    symptom="Nearly all voxels end up near 0: the picture is black.",
    idea="One bright vessel or a metal clip decides the scale, if the scale is set by the maximum.",
    line="Use percentiles instead of min() and max().",
)
def _minimum_and_maximum(image):
    return _rescaled(image, image.min(), image.max())


@NORMALISE.mistake(
    "not cut off",
    symptom="Some values lie below 0 or above 1.",
    idea="Percentiles lie inside the range, so voxels beyond them leave [0, 1].",
    line="Add .clip(0, 1).",
)
def _not_cut_off(image):
    return _rescaled(image, *_percentiles(_head(image)))


@NORMALISE.mistake(
    "mean and deviation",
    symptom="Your values are not in [0, 1].",
    idea="That is standardisation. It is usual, too, but here every image goes to [0, 1].",
    line="Subtract the lower percentile, divide by the difference of both, and clip.",
)
def _mean_and_deviation(image):
    return (image - image.mean()) / image.std()


# --- a planted bug: a split that leaks ------------------------------------------------------------


def _rescans(dims: int, generator: Generator) -> tuple[list[str], list[str], int]:
    """(subject of each scan, an order of the subjects, scans wanted for testing)."""
    people = [f"p{i}" for i in range(8)]
    subjects = people * 2  # everybody was scanned twice
    order = torch.randperm(len(people), generator=generator).tolist()
    shuffled = torch.randperm(len(subjects), generator=generator).tolist()
    # an odd number is wanted: whoever cuts a list of scans cuts a person in two
    return [subjects[i] for i in shuffled], [people[i] for i in order], 5


def _sides(subjects: list[str], tested: list[str]) -> dict[str, list[int]]:
    """The scans of the people ``tested`` on one side, all others on the other."""
    return {
        "train": [i for i, subject in enumerate(subjects) if subject not in tested],
        "test": [i for i, subject in enumerate(subjects) if subject in tested],
    }


def _split(subjects: list[str], order: list[str], wanted: int) -> dict[str, list[int]]:
    tested: list[str] = []
    for person in order:
        if sum(subject in tested for subject in subjects) >= wanted:
            break
        tested.append(person)
    return _sides(subjects, tested)


SPLIT = Exercise(
    "A split that does not leak",
    arguments=_rescans,
    right=_split,
    hints=(
        "List the people on each side: is somebody on both? Is the test side larger than it need "
        "be? Do indices ascend?",
        "Whole people are dealt out, in the given order, until the test side has at least the "
        "wanted number of scans.",
        "Collect people, not scans; then a scan goes where its person is.",
    ),
    dims=(3,),
)


@SPLIT.mistake(
    "by scan",
    symptom="For some draws one person has a scan on each side.",
    idea="The code cuts a list of scans after `wanted`, in the middle of a person if need be.",
    line="Go through `order` and add people until the test side has at least `wanted` scans.",
)
def split_that_leaks(subjects: list[str], order: list[str], wanted: int) -> dict[str, list[int]]:
    """The planted bug of the lesson: scans are dealt out one by one, so that a person can be on
    both sides.
    """
    scans = sorted(range(len(subjects)), key=lambda i: order.index(subjects[i]))
    return {"train": sorted(scans[wanted:]), "test": sorted(scans[:wanted])}


@SPLIT.mistake(
    "one too few",
    symptom="Sometimes the test side has fewer scans than wanted.",
    idea="You stop before the wanted number is reached.",
    line="Go on as long as there are fewer than `wanted`: stop at >= wanted.",
)
def _one_too_few(subjects, order, wanted):
    return _split(subjects, order, wanted - 1)


@SPLIT.mistake(
    "people counted",
    symptom="The test side has as many people as it should have scans.",
    idea="`wanted` counts scans, and some people have several.",
    line="Count the scans of the people chosen so far, not the people.",
)
def _people_counted(subjects, order, wanted):
    return _sides(subjects, order[:wanted])


EXERCISES = {
    "dice": DICE,
    "world": WORLD,
    "grid": GRID,
    "normalise": NORMALISE,
    "split": SPLIT,
}
