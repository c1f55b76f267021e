"""Lesson 08, your own data: who is who, affines and which way round they lead, the way back to a
file.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..warp import sample, voxel_grid
from . import Exercise

LPS = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))  # RAS <-> LPS

# --- affines as files have them -------------------------------------------------------------------


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _turn(generator: Generator, size: float) -> Tensor:
    """(3, 3) a rotation by about ``size`` radians around an axis drawn at random."""
    skew = size * _normal(generator, 3, 3)
    return torch.linalg.matrix_exp(skew - skew.T)


def _affine(generator: Generator, first: float = 1.0) -> Tensor:
    """(4, 4) of a file: oblique, three different voxel sides; ``first`` = -1 runs to the left."""
    sides = torch.tensor([1.2 * first, 1.7, 2.6], dtype=torch.float64)
    sides *= 1 + 0.3 * torch.rand(3, generator=generator, dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = _turn(generator, 0.15) @ torch.diag(sides)
    affine[:3, 3] = 20 + 10 * _normal(generator, 3)
    return affine


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    """``M x + t`` of ``points`` (3, ...)."""
    moved = torch.einsum("ij,j...->i...", matrix[:3, :3], points)
    return moved + matrix[:3, 3].view(3, *[1] * (points.ndim - 1))


def _voxel_sides(affine: Tensor) -> Tensor:
    """(3,) mm: what zooms or pixdim of a header should be."""
    return affine[:3, :3].norm(dim=0)


# --- one affine after another ---------------------------------------------------------------------


def _three_affines(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(fixed file -> its world, world of fixed -> world of moving, moving file -> its world)."""
    move = torch.eye(4, dtype=torch.float64)
    move[:3, :3] += 0.1 * _normal(generator, 3, 3)
    move[:3, 3] = 8 * _normal(generator, 3)
    return _affine(generator), move, _affine(generator, first=-1)


def _combined(fixed: Tensor, move: Tensor, moving: Tensor) -> Tensor:
    return torch.linalg.inv(moving) @ move @ fixed


COMBINE = Exercise(
    "From a voxel of one file to a voxel of another",
    arguments=_three_affines,
    right=_combined,
    hints=(
        "Follow one voxel of the fixed file: where does it lie in its world, where is that in the "
        "other world, which voxel of the moving file is there?",
        "The matrix that acts first stands on the right; a file's affine leads out of its voxels, "
        "so the way into the moving file's voxels is an inverse.",
        "torch.linalg.inv(moving) @ move @ fixed",
    ),
    dims=(3,),
)


@COMBINE.mistake(
    "no inverse",
    symptom="Your numbers are far outside any image.",
    idea="The affine of the moving file leads from its voxels to the world. You are in the world "
    "already, and want to get back to its voxels.",
    line="torch.linalg.inv(moving) instead of moving.",
)
def _no_inverse(fixed, move, moving):
    return moving @ move @ fixed


@COMBINE.mistake(
    "the other order",
    symptom="It would be right for shifts; as soon as something turns or scales, it is not.",
    idea="Matrices act from the right to the left: what meets the voxel first stands last.",
    line="Begin on the right with `fixed`.",
)
def _the_other_order_of_affines(fixed, move, moving):
    return fixed @ move @ torch.linalg.inv(moving)


@COMBINE.mistake(
    "moving affine forgotten",
    symptom="Without a movement you get the identity, although the two files have other voxels.",
    idea="You return to the voxels of the fixed file. The value is to be looked up in the moving "
    "one.",
    line="The inverse of `moving` on the left, not that of `fixed`.",
)
def _moving_affine_forgotten(fixed, move, moving):
    return torch.linalg.inv(fixed) @ move @ fixed


@COMBINE.mistake(
    "movement forgotten",
    symptom="The heads lie where they lay before the alignment.",
    idea="You treat the two worlds as one. They are one only if nobody has moved.",
    line="`move` between the two affines.",
)
def _movement_forgotten(fixed, move, moving):
    return torch.linalg.inv(moving) @ fixed


@COMBINE.mistake(
    "movement backwards",
    symptom="The head moves by as much as it should, but the other way.",
    idea="`move` leads from the world of fixed to the world of moving: the way that we go.",
    line="`move` as it is, not inverted.",
)
def _movement_backwards(fixed, move, moving):
    return torch.linalg.inv(moving) @ torch.linalg.inv(move) @ fixed


@COMBINE.mistake(
    "the way back",
    symptom="You get voxels of the fixed file where voxels of the moving one were wanted.",
    idea="Each factor is inverted, and their order is reversed: that is the whole way backwards.",
    line="torch.linalg.inv(moving) @ move @ fixed, or the inverse of what you have.",
)
def _the_way_back(fixed, move, moving):
    return torch.linalg.inv(_combined(fixed, move, moving))


# --- headers that disagree about left and right ---------------------------------------------------

HALF_TURN = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))


def _headers(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """sforms and qforms (10, 4, 4): equal, shifted, turned by half a turn, or mirrored; of files
    stored from left to right and from right to left.
    """
    sforms, qforms = [], []
    for kind in ("equal", "shifted", "turned", "mirrored", "mirrored"):
        for first in (-1.0, 1.0):
            sform = _affine(generator, first)
            sform[:3, :3] = sform[:3, torch.randperm(3, generator=generator)]
            qform = sform.clone()
            if kind == "shifted":
                qform[:3, 3] += 30
            if kind == "turned":
                qform = HALF_TURN @ sform
            if kind == "mirrored":
                axis = int(torch.randint(3, (), generator=generator))
                qform[:3, axis] *= -1  # this axis of the array runs the other way
            sforms.append(sform)
            qforms.append(qform)
    order = torch.randperm(len(sforms), generator=generator)
    return torch.stack(sforms)[order], torch.stack(qforms)[order]


def _handedness(affines: Tensor) -> Tensor:
    """+1 or -1 of each of (n, 4, 4)."""
    return torch.linalg.det(affines[:, :3, :3]).sign()


def _mirrored(sforms: Tensor, qforms: Tensor) -> list[bool]:
    return (_handedness(sforms) != _handedness(qforms)).tolist()


MIRRORED = Exercise(
    "Find the mirrored scans",
    arguments=_headers,
    right=_mirrored,
    hints=(
        "For each file compare the two matrices with one another. Which property of a matrix "
        "changes when left and right are exchanged, and stays as it is when the head is turned?",
        "The sign of the determinant of the 3 x 3 block: no turn, shift or voxel size changes it, "
        "a mirror does.",
        "torch.linalg.det(sforms[:, :3, :3]) * torch.linalg.det(qforms[:, :3, :3]) < 0",
    ),
    dims=(3,),
)


@MIRRORED.mistake(
    "stored from the right",
    symptom="You accuse files that are in order: both of their matrices say the same.",
    idea="A negative determinant says which hand the array's axes make, as where it is stored from "
    "right to left: that is usual and harmless. A contradiction takes two.",
    line="Compare the sign of the sform's determinant with that of the qform's.",
)
def _stored_from_the_right(sforms, qforms):
    return (_handedness(sforms) < 0).tolist()


@MIRRORED.mistake(
    "any difference",
    symptom="You accuse scans that were only shifted or turned.",
    idea="Two forms may differ, and be wrong, without a mirror: shifted or turned, a left hand "
    "stays a left hand.",
    line="Compare the signs of the determinants, not the numbers.",
)
def _any_difference(sforms, qforms):
    return [not torch.allclose(s, q) for s, q in zip(sforms, qforms, strict=True)]


@MIRRORED.mistake(
    "first row",
    symptom="You accuse scans that were turned by half a turn: front and back have changed places "
    "in these, and left and right, but they are not mirrored.",
    idea="Half a turn changes the signs of x and y. Two changes of sign make no mirror.",
    line="Compare determinants, where signs multiply, not rows.",
)
def _first_row(sforms, qforms):
    return [not torch.allclose(s[0, :3], q[0, :3]) for s, q in zip(sforms, qforms, strict=True)]


@MIRRORED.mistake(
    "diagonal",
    symptom="You accuse scans that were turned by half a turn, and miss those that are mirrored "
    "along another axis of the array than the first.",
    idea="One entry says where one axis leads. Half a turn changes its sign without a mirror, and "
    "a mirror along another axis leaves it as it is.",
    line="Use the determinant of the whole 3 x 3 block.",
)
def _diagonal(sforms, qforms):
    return (sforms[:, 0, 0].sign() != qforms[:, 0, 0].sign()).tolist()


@MIRRORED.mistake(
    "the sound ones",
    symptom="It is the other way round: you list the scans that are in order.",
    idea="Asked for are the scans whose two matrices have determinants of different sign.",
    line="Turn the comparison round.",
)
def _the_sound_ones(sforms, qforms):
    return [not mirrored for mirrored in _mirrored(sforms, qforms)]


# --- a planted bug: who is who --------------------------------------------------------------------


def _related(names: list[str], contents: list[str], i: int, j: int) -> bool:
    return names[i] == names[j] or contents[i] == contents[j]


def _people(names: list[str], contents: list[str]) -> list[int]:
    first = list(range(len(names)))
    changed = True
    while changed:
        changed = False
        for i in range(len(names)):
            for j in range(len(names)):
                if _related(names, contents, i, j) and first[j] < first[i]:
                    first[i] = first[j]
                    changed = True
    return first


def _listed_scans(dims: int, generator: Generator) -> tuple[list[str], list[str]]:
    """The person that each of 12 scans is said to be of, and a hash of its voxels: some were
    scanned twice, some files were copied under another name. Drawn until each way to get it wrong
    shows.
    """
    ways = [_people, who_is_who_with_a_bug, _one_pass, _by_name, _by_content, _always_with_the_next]
    while True:
        draws = torch.randint(7, (12,), generator=generator).tolist()
        names = ["abcdefg"[number] for number in draws]
        draws = torch.randint(15, (12,), generator=generator).tolist()
        contents = [f"{number:04x}" for number in draws]
        answers = {tuple(way(names, contents)) for way in ways}
        if len(answers) == len(ways) and len(set(_people(names, contents))) > 2:
            return names, contents


PEOPLE = Exercise(
    "Who is who",
    arguments=_listed_scans,
    right=_people,
    hints=(
        "Look for a scan that has the name of one and the voxels of another: are these two one "
        "person in your answer?",
        "If scan 5 belongs with scan 2, and scan 2 with scan 0, then all three are one person: "
        "what is known of 2 must be handed on to 5.",
        "Repeat first[i] = min(first[j] of all j that belong with i) until nothing changes.",
    ),
    dims=(3,),
)


@PEOPLE.mistake(
    "friends of friends",
    symptom="A scan that belongs to another by way of a third one counts as somebody new.",
    idea="You look at direct relations alone. But a copy of a rescan is of the same person, too: "
    "relations have to be followed to their end.",
    line="Hand on first[j], not j, and repeat until no entry changes.",
)
def who_is_who_with_a_bug(names: list[str], contents: list[str]) -> list[int]:
    """The planted bug of the lesson: relations are not followed to their end."""
    first = []
    for i in range(len(names)):
        with_i = [j for j in range(i + 1) if _related(names, contents, i, j)]
        first.append(min(with_i))
    return first


@PEOPLE.mistake(
    "one pass",
    symptom="Two groups that a later scan joins stay apart.",
    idea="When scan 7 turns out to belong with scan 1 and with scan 4, scan 4 has already been "
    "numbered.",
    line="Go through the list again until nothing changes.",
)
def _one_pass(names, contents):
    first = []
    for i in range(len(names)):
        first.append(i)
        with_i = [first[j] for j in range(i + 1) if _related(names, contents, i, j)]
        first[i] = min(with_i)
    return first


@PEOPLE.mistake(
    "by name",
    symptom="A copy under another name counts as a new person.",
    idea="Names are what somebody typed. Equal voxels prove that it is one scan.",
    line="Join scans of equal contents as well.",
)
def _by_name(names, contents):
    return [names.index(name) for name in names]


@PEOPLE.mistake(
    "by content",
    symptom="A person who was scanned twice counts as two.",
    idea="A second scan of a person has other voxels, by noise alone. There the name tells.",
    line="Join scans of equal names as well.",
)
def _by_content(names, contents):
    return [contents.index(content) for content in contents]


@PEOPLE.mistake(
    "the latest relative",
    symptom="Your number is that of a relative, but not always of the first one.",
    idea="All scans of a person must get one number, else they are dealt out as several.",
    line="The smallest index of all that belong together.",
)
def _always_with_the_next(names, contents):
    first = []
    for i in range(len(names)):
        before = [j for j in range(i) if _related(names, contents, i, j)]
        first.append(max(before, default=i))
    return first


# --- back to the file's own grid ------------------------------------------------------------------

MARGIN = 1e-3  # between the two largest probabilities: no rounding decides


def _looked_up(probabilities: Tensor, matrix: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(C, ...) at ``matrix`` times each voxel of ``shape``, linearly."""
    points = _apply(matrix, voxel_grid(shape, probabilities))
    return sample(probabilities[None], points[None])[0]


def _guess_and_way(dims: int, generator: Generator) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """Probabilities (4, 4, 5, 4), voxels of a file -> those of the grid, and the file's shape."""
    shape = (6, 5, 7)
    while True:
        probabilities = (2.5 * _normal(generator, 4, 4, 5, 4)).softmax(0)
        matrix = torch.eye(4, dtype=torch.float64)
        sides = torch.tensor([-0.42, 0.75, 0.36], dtype=torch.float64)
        matrix[:3, :3] = _turn(generator, 0.04) @ torch.diag(sides)
        matrix[:3, 3] = torch.tensor([2.6, 0.4, 0.3], dtype=torch.float64)
        best = _looked_up(probabilities, matrix, shape).topk(2, dim=0).values
        if (best[0] - best[1]).min() > MARGIN:
            return probabilities, matrix, shape


def _back(probabilities: Tensor, matrix: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return _looked_up(probabilities, matrix, shape).argmax(0)


BACK = Exercise(
    "Labels on the file's own grid",
    arguments=_guess_and_way,
    right=_back,
    hints=(
        "Stand on each voxel of the file, ask where it lies on the common grid, and look there.",
        "Points: the matrix times every index, (3, I, J, K). What is looked up linearly are the "
        "probabilities; labels are chosen at the very end.",
        "sample(probabilities[None], points[None])[0].argmax(0)",
    ),
    dims=(3,),
)


@BACK.mistake(
    "labels carried",
    symptom="The borders are steps as large as the voxels of the common grid.",
    idea="You choose a label on the coarse grid and carry it over. What the network knew between "
    "two voxels is lost.",
    line="Interpolate the probabilities first, argmax afterwards.",
)
def _labels_carried(probabilities, matrix, shape):
    points = _apply(matrix, voxel_grid(shape, probabilities))
    chosen = probabilities.argmax(0)
    index = torch.floor(points + 0.5).long()
    for axis, side in enumerate(chosen.shape):
        index[axis].clamp_(0, side - 1)
    return chosen[tuple(index)]


@BACK.mistake(
    "labels interpolated",
    symptom="Between structures 1 and 3 you find structure 2.",
    idea="Labels are names. Their mean is a name, too, but of something else.",
    line="Interpolate the channels of the probabilities, not the labels.",
)
def _labels_interpolated(probabilities, matrix, shape):
    labels = probabilities.argmax(0, keepdim=True).to(probabilities)
    return _looked_up(labels, matrix, shape)[0].round()


@BACK.mistake(
    "inverse affine",
    symptom="Most voxels look at the border, and whole regions have one label.",
    idea="The matrix leads from the file's voxels to those of the grid, as it is wanted: we stand "
    "in the file and look up. Its inverse would be for pushing.",
    line="Do not invert it.",
)
def _inverse_affine(probabilities, matrix, shape):
    return _back(probabilities, torch.linalg.inv(matrix), shape)


@BACK.mistake(
    "zooms instead of the affine",
    symptom="The result is mirrored and shifted.",
    idea="The sides of the voxels alone say neither which way an axis runs nor where it begins.",
    line="Use the whole matrix: matrix[:3, :3] @ index + matrix[:3, 3].",
)
def _zooms_instead(probabilities, matrix, shape):
    scale = torch.eye(4, dtype=torch.float64)
    scale[:3, :3] = torch.diag(_voxel_sides(matrix))
    return _back(probabilities, scale, shape)


@BACK.mistake(
    "no shift",
    symptom="The result is shifted, or looks outside the grid altogether.",
    idea="The last column says where the file's first voxel lies on the grid.",
    line="Add matrix[:3, 3].",
)
def _no_shift_on_the_way_back(probabilities, matrix, shape):
    matrix = matrix.clone()
    matrix[:3, 3] = 0
    return _back(probabilities, matrix, shape)


# --- a displacement for other programs ------------------------------------------------------------


def _field_and_affines(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """u (3, I, J, K) in voxels, the affine of moving, and the affine of fixed."""
    u = 1.5 * _normal(generator, 3, 4, 3, 5)
    return u, _affine(generator, first=-1), _affine(generator)


def _millimetres(u: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
    """``A_m (x + u) - A_f x``: mm, RAS."""
    x = voxel_grid(tuple(u.shape[1:]), u)
    return _apply(moving, x + u) - _apply(fixed, x)


def _in_lps(vectors: Tensor, signs: Tensor = LPS) -> Tensor:
    return torch.einsum("ij,j...->i...", signs, vectors)


def _displacement(u: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
    return _in_lps(_millimetres(u, moving, fixed))


DISPLACEMENT = Exercise(
    "A displacement in millimetres, LPS",
    arguments=_field_and_affines,
    right=_displacement,
    hints=(
        "Take one voxel x of fixed. Where does it lie in the world, in mm? And where the point "
        "x + u(x) of moving?",
        "The displacement is the difference of these two places: the one to look at minus the one "
        "to stand on. At the end, x and y change their signs: LPS.",
        "d = moving(x + u) - fixed(x), each by M p + t; then d[:2] *= -1",
    ),
    dims=(3,),
)


@DISPLACEMENT.mistake(
    "RAS for LPS",
    symptom="The first two components have the wrong sign.",
    idea="The kit's world grows to the Right and to the front (Anterior), that of ITK to the Left "
    "and to the back (Posterior). Up is up in both.",
    line="Change the signs of the first two components.",
)
def _ras_for_lps(u, moving, fixed):
    return _millimetres(u, moving, fixed)


@DISPLACEMENT.mistake(
    "all three signs",
    symptom="The last component has the wrong sign.",
    idea="S, Superior, is the last letter of RAS and of LPS: upwards stays upwards.",
    line="Change the signs of the first two components only.",
)
def _all_three_signs(u, moving, fixed):
    return -_millimetres(u, moving, fixed)


@DISPLACEMENT.mistake(
    "one sign",
    symptom="The second component has the wrong sign.",
    idea="LPS differs from RAS in two letters, not only in left and right. Changing one sign is a "
    "mirror; changing two is half a turn.",
    line="Change the signs of the first two components.",
)
def _one_sign(u, moving, fixed):
    left_only = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    return _in_lps(_millimetres(u, moving, fixed), left_only)


@DISPLACEMENT.mistake(
    "moving affine forgotten",
    symptom="It is right where both images have the same affine, and only there.",
    idea="x + u is a voxel of the MOVING image, and lies where the affine of that image says.",
    line="moving(x + u) - fixed(x)",
)
def _moving_forgotten(u, moving, fixed):
    return _displacement(u, fixed, fixed)


@DISPLACEMENT.mistake(
    "a vector turned into millimetres",
    symptom="Where u is 0 you give 0, although the same voxel lies elsewhere in the other image.",
    idea="The matrix times u is the length of a step within the moving image. What is stored is "
    "the difference of two places, each in a world by its own affine.",
    line="Carry x + u and x to the world, each by its own affine, and subtract.",
)
def _a_vector(u, moving, fixed):
    return _displacement(u, moving, moving)


@DISPLACEMENT.mistake(
    "zooms instead of the affine",
    symptom="Your arrows know neither which way the axes of an image run nor that the other image "
    "lies elsewhere.",
    idea="The sides of a voxel say how long a step is, and no more.",
    line="Use the whole affines, M p + t.",
)
def _zooms_for_the_affine(u, moving, fixed):
    return _in_lps(u * _voxel_sides(fixed).view(3, 1, 1, 1))


@DISPLACEMENT.mistake(
    "inverse affine",
    symptom="Your numbers are in voxels, or nothing in particular.",
    idea="The affine leads from voxels to millimetres, which is the way wanted.",
    line="Do not invert it.",
)
def _inverted_affines(u, moving, fixed):
    return _displacement(u, torch.linalg.inv(moving), torch.linalg.inv(fixed))


@DISPLACEMENT.mistake(
    "the place, not the difference",
    symptom="Where u is 0 and both images have one affine, your arrow is not 0: it leads from the "
    "origin of the world to the voxel.",
    idea="You give the place to look at. A displacement is how far it is from where one stands.",
    line="Subtract the place of the voxel itself, fixed(x).",
)
def _the_place(u, moving, fixed):
    x = voxel_grid(tuple(u.shape[1:]), u)
    return _in_lps(_apply(moving, x + u))


@DISPLACEMENT.mistake(
    "u alone",
    symptom="Where u is 0 and both images have one affine, your arrow is not 0: it leads to the "
    "first voxel.",
    idea="u is relative to the voxel: what lies in the moving image is x + u.",
    line="moving(x + u), not moving(u).",
)
def _u_as_a_place(u, moving, fixed):
    x = voxel_grid(tuple(u.shape[1:]), u)
    return _in_lps(_apply(moving, u) - _apply(fixed, x))


@DISPLACEMENT.mistake(
    "affines exchanged",
    symptom="The two images have exchanged their affines.",
    idea="x is a voxel of fixed, x + u one of moving.",
    line="moving(x + u) - fixed(x)",
)
def _affines_exchanged(u, moving, fixed):
    return _displacement(u, fixed, moving)


EXERCISES = {
    "combine": COMBINE,
    "mirrored": MIRRORED,
    "people": PEOPLE,
    "back": BACK,
    "displacement": DISPLACEMENT,
}
