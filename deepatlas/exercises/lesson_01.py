"""Lesson 01, data: voxels and millimetres, another program's grid, intensities, overlap, splits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from . import Exercise, numpy_generator

# --- overlap --------------------------------------------------------------------------------------


def _counted(dims: int, generator: Generator) -> tuple[Tensor]:
    """A table of voxels of 5 labels: the row is what the guess says, the column what the expert
    does. The expert's map lacks one structure, the guess another.
    """
    table = torch.randint(1, 60, (5, 5), generator=generator)
    table += torch.diag(torch.randint(40, 400, (5,), generator=generator))
    table[0, 0] += 2000  # the background is large
    of_expert, of_guess = (1 + torch.randperm(4, generator=generator)[:2]).tolist()
    table[:, of_expert] = 0
    table[of_guess] = 0
    return (table,)


def _dice_of_table(
    table: Tensor,
    *,
    first: int = 1,
    absent: float = math.nan,
    score: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda both, a, b: 2 * both / (a + b),
) -> Tensor:
    """``score`` of (voxels in both, of the guess, of the expert) of every structure from ``first``
    on; ``absent`` for those that the expert's map lacks.
    """
    both, guess, expert = table.diagonal(), table.sum(1), table.sum(0)
    found = score(both.double(), guess.double(), expert.double())
    return found.masked_fill(expert == 0, absent)[first:]


DICE = Exercise(
    "Dice of every structure",
    arguments=_counted,
    right=_dice_of_table,
    hints=(
        "Take one structure c at a time. How many voxels does the guess call c, how many the "
        "expert, and how many do both?",
        "Row c is what the guess calls c, whatever the expert says: its sum is |A|. Column c is "
        "the expert's, its sum is |B|. Both agree in one entry. A structure that the expert's map "
        "lacks is NaN.",
        "2 * table[c, c] / (table[c].sum() + table[:, c].sum()), NaN where table[:, c].sum() is 0, "
        "for c = 1, 2, ...",
    ),
    dims=(2,),
)


@DICE.mistake(
    "intersection over union",
    symptom="Your numbers are too small, except where they are 0 or 1.",
    idea="You divide by the union. That is the Jaccard index; Dice divides by the mean of both "
    "sizes.",
    line="The denominator is (|A| + |B|) / 2, where voxels in both count twice, not |A or B|.",
)
def _intersection_over_union(table):
    return _dice_of_table(table, score=lambda both, a, b: both / (a + b - both))


@DICE.mistake(
    "no factor 2",
    symptom="All your numbers are half of what they should be: two equal maps must have Dice 1.",
    idea="|A| + |B| counts the voxels of the intersection twice, so the numerator must, too.",
    line="2 * table[c, c] / (table[c].sum() + table[:, c].sum())",
)
def _no_factor_2(table):
    return _dice_of_table(table, score=lambda both, a, b: both / (a + b))


@DICE.mistake(
    "background counted",
    symptom="You return one number too many.",
    idea="Label 0 is the background. It is large and easy, and makes every mean look better than "
    "it is.",
    line="Begin at 1.",
)
def _background_counted(table):
    return _dice_of_table(table, first=0)


@DICE.mistake(
    "absent is 0",
    symptom="A structure that the expert's map does not contain gets 0.",
    idea="0 would punish the method for something that is not there to be found; the mean over "
    "cases would then measure how often a structure is absent.",
    line="Where table[:, c] is 0 everywhere, the answer is float('nan'); leave it out of means "
    "later.",
)
def _absent_is_0(table):
    return _dice_of_table(table, absent=0.0)


@DICE.mistake(
    "absent is 1",
    symptom="A structure that the expert's map does not contain gets 1.",
    idea="1 is a reward for nothing, even where the guess invents the structure.",
    line="Where table[:, c] is 0 everywhere, the answer is float('nan').",
)
def _absent_is_1(table):
    return _dice_of_table(table, absent=1.0)


@DICE.mistake(
    "rows for columns",
    symptom="NaN stands where the GUESS lacks a structure, instead of the expert.",
    idea="Dice is the same if both maps change places, but what is absent is not: a structure that "
    "is there, and that the guess has missed, has Dice 0.",
    line="NaN where table[:, c].sum() is 0, the column, not the row table[c].",
)
def _rows_for_columns(table):
    return _dice_of_table(table.T)


@DICE.mistake(
    "found by the guess",
    symptom="Your numbers do not fall if the guess paints a structure everywhere.",
    idea="You divide what was found by what the expert drew. That is sensitivity (recall): it "
    "never asks what the guess has drawn too much.",
    line="Divide twice the agreement by |A| + |B|.",
)
def _found_by_the_guess(table):
    return _dice_of_table(table, score=lambda both, a, b: both / b)


@DICE.mistake(
    "agreement of all voxels",
    symptom="Your numbers are near 1 although the structures overlap little.",
    idea="You count the voxels that both maps leave out as agreement. In a large image everything "
    "agrees then.",
    line="Only row c and column c of the table are asked.",
)
def _agreement_of_all_voxels(table):
    every = table.sum()
    return _dice_of_table(table, score=lambda both, a, b: (every - a - b + 2 * both) / every)


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


LPS = (-1.0, -1.0, 1.0)


def _two_affines(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Of a file, oblique and with thick slices, in R, A, S; and of a grid of about 1.5 mm, in L, P,
    S.
    """
    of_file, _ = _affine_and_index(dims, generator)
    of_grid = 1.5 * torch.eye(4, dtype=torch.float64)
    of_grid[:3, :3] += 0.2 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    of_grid[:3, 3] = 50 * torch.randn(3, generator=generator, dtype=torch.float64)
    of_grid[3, 3] = 1
    return of_file, of_grid


def _signs(signs: tuple[float, ...] = LPS) -> Tensor:
    return torch.diag(torch.tensor([*signs, 1.0], dtype=torch.float64))


def _grid_to_file(file_affine: Tensor, grid_affine: Tensor) -> Tensor:
    return torch.linalg.inv(file_affine) @ _signs() @ grid_affine


GRID = Exercise(
    "From another program's grid into the file",
    arguments=_two_affines,
    right=_grid_to_file,
    hints=(
        "Three steps: from a voxel of the grid to its place in L, P, S; to the same place in R, A, "
        "S; from there to a voxel of the file. Which matrix makes which step?",
        "The affine of the grid leads into the world, diag(-1, -1, 1, 1) from L, P, S to R, A, S, "
        "the inverse of the file's affine out of the world; of a product, the matrix on the right "
        "acts first.",
        "torch.linalg.inv(file_affine) @ signs @ grid_affine, with signs = torch.diag("
        "torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=file_affine.dtype))",
    ),
    dims=(3,),
)


@GRID.mistake(
    "signs forgotten",
    symptom="It would be right if both programs meant the same by x, y and z.",
    idea="x = 40 mm is 40 mm to the right in the one convention and 40 mm to the left in the "
    "other. The scan would come out turned round, left for right and back for front.",
    line="Put diag(-1, -1, 1, 1) between the two matrices.",
)
def _signs_forgotten(file_affine, grid_affine):
    return torch.linalg.inv(file_affine) @ grid_affine


@GRID.mistake(
    "signs first",
    symptom="You have changed the signs of two INDICES of the grid.",
    idea="L, P, S and R, A, S are directions of the world. A voxel's index knows no world: only "
    "what the grid's affine has made of it does.",
    line="inv(file_affine) @ signs @ grid_affine, not inv(file_affine) @ grid_affine @ signs",
)
def _signs_first(file_affine, grid_affine):
    return torch.linalg.inv(file_affine) @ grid_affine @ _signs()


@GRID.mistake(
    "signs last",
    symptom="You have changed the signs of two INDICES of the file.",
    idea="L, P, S and R, A, S are directions of the world. Behind the inverse there are voxels "
    "again.",
    line="inv(file_affine) @ signs @ grid_affine, not signs @ inv(file_affine) @ grid_affine",
)
def _signs_last(file_affine, grid_affine):
    return _signs() @ torch.linalg.inv(file_affine) @ grid_affine


@GRID.mistake(
    "all three reversed",
    symptom="Head and neck have changed places.",
    idea="L is against R and P against A, but S is S in both conventions.",
    line="diag(-1, -1, 1, 1)",
)
def _all_reversed(file_affine, grid_affine):
    return torch.linalg.inv(file_affine) @ _signs((-1.0, -1.0, -1.0)) @ grid_affine


@GRID.mistake(
    "shift not reversed",
    symptom="The axes lead the right way now, and begin at the wrong place.",
    idea="You have changed the signs of M alone. Where voxel (0, 0, 0) lies, t, is a place in L, "
    "P, S, too.",
    line="Multiply the whole 4 x 4 matrix by diag(-1, -1, 1, 1).",
)
def _shift_not_reversed(file_affine, grid_affine):
    turned = _signs() @ grid_affine
    turned[:3, 3] = grid_affine[:3, 3]
    return torch.linalg.inv(file_affine) @ turned


@GRID.mistake(
    "the other way",
    symptom="Your matrix leads from a voxel of the file to one of the grid.",
    idea="Resampling looks up: every voxel of the grid asks where in the file it lies. The other "
    "way, some voxels of the grid would get two values and others none.",
    line="Invert the affine of the file, not that of the grid.",
)
def _file_to_grid(file_affine, grid_affine):
    return torch.linalg.inv(_grid_to_file(file_affine, grid_affine))


@GRID.mistake(
    "the steps exchanged",
    symptom="You have the right matrices, and the place is wrong.",
    idea="In a product the matrix on the right acts first. Yours begins with the inverse, which "
    "wants millimetres and is given a voxel.",
    line="The grid's affine stands on the right, the inverse of the file's on the left.",
)
def _steps_exchanged(file_affine, grid_affine):
    return _signs() @ grid_affine @ torch.linalg.inv(file_affine)


@GRID.mistake(
    "no inverse",
    symptom="The places are hundreds of millimetres away.",
    idea="Both affines lead INTO the world. One step must lead out of it.",
    line="Use torch.linalg.inv of the file's affine.",
)
def _no_inverse(file_affine, grid_affine):
    return file_affine @ _signs() @ grid_affine


@GRID.mistake(
    "shift alone",
    symptom="It is right for a file whose voxels are as large as the grid's and lie the same way.",
    idea="You compare where the two grids begin. Voxels of another size, and axes that are turned, "
    "need the whole matrix.",
    line="Multiply the 4 x 4 matrices; do not subtract their last columns.",
)
def _shift_alone(file_affine, grid_affine):
    matrix = torch.eye(4, dtype=file_affine.dtype)
    matrix[:3, 3] = (_signs() @ grid_affine)[:3, 3] - file_affine[:3, 3]
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
