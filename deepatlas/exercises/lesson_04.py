"""Lesson 04, losses: similarity where it counts, overlap of what was drawn, whose labels are
compared, and a test of regularity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..losses import bending_energy, diffusion, soft_dice
from ..warp import Deformation
from . import Exercise
from .lesson_02 import looked_up, smooth_field, uneven_shape

# --- similarity -----------------------------------------------------------------------------------


def _two_images_and_a_weight(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of one batch each, alike in part, with another brightness and contrast, and how
    much each voxel counts.
    """
    a = torch.rand(2, 1, *uneven_shape(dims), generator=generator)
    b = 0.3 * a + 0.2 + 0.4 * torch.rand(a.shape, generator=generator)
    contrasts = torch.tensor([1.0, 3.0]).view(2, 1, *[1] * dims)
    weight = torch.rand(a.shape, generator=generator) ** 2
    return a, b * contrasts, weight


def _correlation(
    a: Tensor, b: Tensor, w: Tensor, *, mean: str = "weighted", root: bool = True
) -> Tensor:
    """Pearson's r of each scan of a batch, with one thing after another to get wrong; ``mean``:
    what is subtracted, "weighted", "plain" or "none".
    """
    a, b, w = a.flatten(1), b.flatten(1), w.flatten(1)
    of_means = torch.ones_like(w) if mean == "plain" else w

    def centred(x: Tensor) -> Tensor:
        if mean == "none":
            return x
        return x - (of_means * x).sum(1, keepdim=True) / of_means.sum(1, keepdim=True)

    a, b = centred(a), centred(b)
    sizes = (w * a.square()).sum(1) * (w * b.square()).sum(1)
    return (w * a * b).sum(1) / (sizes.sqrt() if root else sizes)


def _weighted_ncc(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return 1 - _correlation(a, b, w.detach()).mean()


WEIGHTED_NCC = Exercise(
    "1 - NCC of the voxels that count",
    arguments=_two_images_and_a_weight,
    right=_weighted_ncc,
    hints=(
        "With w = 1 everywhere it is NCC of each scan. With w = 0 outside a mask it is NCC of what "
        "lies in the mask, whatever stands outside.",
        "Every sum over voxels becomes a sum of w times the same: in the two means, in the product "
        "and in both squares. And w is only consulted.",
        "w = w.detach(); a mean is (w * a).sum(1, keepdim=True) / w.sum(1, keepdim=True) of what "
        "was flattened by flatten(1); r is (w * a * b).sum(1) / ((w * a * a).sum(1) * "
        "(w * b * b).sum(1)).sqrt(), with a and b centred.",
    ),
    gradient=True,
)


@WEIGHTED_NCC.mistake(
    "weight not detached",
    symptom="The number is right, but the weight itself has got a gradient.",
    idea="A network that says which voxels count could then make the loss small by looking away "
    "from where the images differ.",
    line="w = w.detach(), before anything else.",
)
def _weight_not_detached(a, b, w):
    return 1 - _correlation(a, b, w).mean()


@WEIGHTED_NCC.mistake(
    "not centred",
    symptom="A brighter image, shifted by a constant, gets another loss.",
    idea="Correlation compares deviations from the mean.",
    line="Subtract (w * a).sum(1, keepdim=True) / w.sum(1, keepdim=True) first; of b the same.",
)
def _not_centred(a, b, w):
    return 1 - _correlation(a, b, w.detach(), mean="none").mean()


@WEIGHTED_NCC.mistake(
    "plain means",
    symptom="What stands where w = 0 still changes your number.",
    idea="You centre by the mean of all voxels. Those that count have a mean of their own.",
    line="(w * a).sum(1, keepdim=True) / w.sum(1, keepdim=True)",
)
def _plain_means(a, b, w):
    return 1 - _correlation(a, b, w.detach(), mean="plain").mean()


@WEIGHTED_NCC.mistake(
    "images times the weight",
    symptom="Your number is that of two images with dark corners.",
    idea="w * a is another image: where w falls off, both get the same artificial edge, and look "
    "alike there. The weight belongs to the sums, not to the images.",
    line="(w * a * b).sum(1), with a and b centred, and not (w * a) and (w * b)",
)
def _images_times_the_weight(a, b, w):
    w = w.detach()
    return 1 - _correlation(w * a, w * b, torch.ones_like(w)).mean()


@WEIGHTED_NCC.mistake(
    "no root",
    symptom="Two equal images do not get 0.",
    idea="The denominator is the product of the two standard deviations, not of the variances.",
    line="Take .sqrt() of the product of the sums of squares.",
)
def _no_root(a, b, w):
    return 1 - _correlation(a, b, w.detach(), root=False).mean()


@WEIGHTED_NCC.mistake(
    "not one minus",
    symptom="The loss is larger for images that are more alike.",
    idea="A loss is to be made small, and alike images have r = 1.",
    line="Return 1 - r.",
)
def _not_one_minus(a, b, w):
    return _correlation(a, b, w.detach()).mean()


@WEIGHTED_NCC.mistake(
    "over the whole batch",
    symptom="It is right for a batch of one.",
    idea="You treat the batch as one long image: the contrast BETWEEN scans counts then.",
    line="Flatten with flatten(1), take means and sums over dimension 1, and average over the "
    "batch at the end.",
)
def _over_the_whole_batch(a, b, w):
    return 1 - _correlation(*(x[None].flatten(1) for x in (a, b, w.detach()))).mean()


@WEIGHTED_NCC.mistake(
    "squared",
    symptom="Your loss treats an inverted image like an equal one.",
    idea="That is 1 - NCC squared, as usual for the LOCAL correlation. The global one of the "
    "paper is not squared.",
    line="Leave the square away.",
)
def _squared(a, b, w):
    return 1 - _correlation(a, b, w.detach()).square().mean()


# --- a test of regularity -------------------------------------------------------------------------


def _bending(
    u: Tensor, *, mixed: float = 2.0, reduced: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The bending energy, with one thing after another to get wrong; ``mixed`` is how often a
    mixed difference counts, ``reduced`` makes a number of squares (B, D, I, J, K).
    """
    reduced = reduced or (lambda squares: squares.sum(1).mean())
    axes = range(2, u.ndim)
    energy = torch.stack([reduced(u.diff(n=2, dim=i).square()) for i in axes]).sum(0)
    for i, j in combinations(axes, 2):
        energy = energy + mixed * reduced(u.diff(dim=i).diff(dim=j).square())
    return energy


def _shifted(u: Tensor, steps: dict[int, int]) -> Tensor:
    """The inner voxels of ``u``, read at so many ``steps`` (-1, 0 or 1) along some axes."""
    inner = [slice(None)] * 2
    for axis in range(2, u.ndim):
        step = steps.get(axis, 0)
        inner.append(slice(1 + step, u.shape[axis] - 1 + step))
    return u[tuple(inner)]


def _over_two_voxels(u: Tensor, *, divisor: float = 4.0) -> Tensor:
    """The bending energy whose mixed differences reach one voxel to either side along both axes,
    and so are to be divided by 2 * 2.
    """
    energy = _bending(u, mixed=0.0)
    for i, j in combinations(range(2, u.ndim), 2):
        corners = [a * b * _shifted(u, {i: a, j: b}) for a in (1, -1) for b in (1, -1)]
        energy = energy + 2 * (torch.stack(corners).sum(0) / divisor).square().sum(1).mean()
    return energy


def _of_means(u: Tensor) -> Tensor:
    """The means over voxels are squared, not the second derivatives: exact where these are the
    same everywhere, 0 where they cancel.
    """
    energy = u.new_zeros(len(u))
    for i in range(2, u.ndim):
        energy = energy + u.diff(n=2, dim=i).flatten(2).mean(2).square().sum(1)
    for i, j in combinations(range(2, u.ndim), 2):
        energy = energy + 2 * u.diff(dim=i).diff(dim=j).flatten(2).mean(2).square().sum(1)
    return energy.mean()


def _of_sums(u: Tensor) -> Tensor:
    """The second derivatives along all axes are added before they are squared: exact where a
    component bends along one axis only.
    """
    laplacian = torch.zeros_like(_shifted(u, {}))
    for i in range(2, u.ndim):
        laplacian += _shifted(u, {i: 1}) + _shifted(u, {i: -1}) - 2 * _shifted(u, {})
    mixed = _bending(u) - _bending(u, mixed=0.0)
    return laplacian.square().sum(1).mean() + mixed


# What a test is tried on: those that are right, then those that are not.
ENERGIES: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "the energy of the module": (True, bending_energy),
    "an energy with mixed differences over two voxels, divided by 4": (True, _over_two_voxels),
    "the energy of the exercise": (
        False,
        lambda u: _over_two_voxels(u, divisor=1.0),
    ),
    "one that counts mixed derivatives once": (False, lambda u: _bending(u, mixed=1.0)),
    "one without mixed derivatives": (False, lambda u: _bending(u, mixed=0.0)),
    "one with mixed derivatives alone": (
        False,
        lambda u: _bending(u) - _bending(u, mixed=0.0),
    ),
    "one of first derivatives": (False, diffusion),
    "one that takes the mean over components": (False, lambda u: _bending(u, reduced=torch.mean)),
    "one that takes the sum over voxels": (False, lambda u: _bending(u, reduced=torch.sum)),
    "one that sees the first component only": (False, lambda u: _bending(u[:, :1])),
    "one that sees the second component only": (False, lambda u: _bending(u[:, 1:2])),
    "one that adds the derivatives along the axes before it squares": (False, _of_sums),
    "one that squares the mean of a derivative over the voxels": (False, _of_means),
}


def _verdicts(test: Callable, energies: dict[str, Callable]) -> dict[str, float] | None:
    """{which energy: 1.0 or 0.0}, whether a test lets it pass; None if it looks at none of them.

    A test fails by ``assert``, or by returning False. Any other error stops it, if the energy was
    right.
    """
    looked_at = []
    found = {}
    for name, energy in energies.items():

        def watched(u: Tensor, energy: Callable = energy) -> Tensor:
            looked_at.append(energy)
            return energy(u)

        try:
            said = test(watched)
            passes = said is None or bool(said)
        except AssertionError:
            passes = False
        except Exception:
            if ENERGIES[name][0]:
                raise
            passes = False
        found[name] = float(passes)
    return found if looked_at else None


def _what_passes(found: Mapping[str, float], right: Mapping[str, float]) -> str:
    """What a test says of the first energy of which it is not to say so, and of how many more."""
    refused = [name for name in right if found[name] < right[name]]
    let_through = [name for name in right if found[name] > right[name]]
    said = []
    if refused:
        said.append(f"your test refuses a right energy: {refused[0]}")
    if let_through:
        more = f" (and {len(let_through) - 1} more)" if len(let_through) > 1 else ""
        said.append(f"your test lets a wrong energy pass: {let_through[0]}{more}")
    return "; ".join(said)


def _bent(
    *, components: int = 2, pure: float = 0.02, across: float = 0.05, mixed: float = 0.01
) -> tuple[Tensor, float]:
    """A field (1, 2, I, J) that is a polynomial of degree two, and its bending energy, by hand:
    ``pure`` and ``across`` are second derivatives of a component along one axis and along the
    other, ``mixed`` is that along both.
    """
    i, j = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    u = torch.stack(
        [
            pure * i**2 / 2 + across * j**2 / 2 + mixed * i * j,
            (2 * pure * j**2 / 2 + across * i**2 / 2 + 3 * mixed * i * j) * (components == 2),
        ]
    )
    energy = pure**2 + across**2 + 2 * mixed**2
    if components == 2:
        energy += (2 * pure) ** 2 + across**2 + 2 * (3 * mixed) ** 2
    return u[None], energy


def _uneven() -> tuple[Tensor, float]:
    """A field (1, 2, I, J) that bends one way in front of its middle and the other way behind, and
    its bending energy, by hand: .01 (i - 4) is the second derivative, the mean of 9, 4, 1, 0, 1, 4,
    9 is 4.
    """
    i, j = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    return torch.stack([0.01 * (i - 4) ** 3 / 6, 0 * j])[None], 0.01**2 * 4


def _costs(energy: Callable, u: Tensor, wanted: float) -> bool:
    return bool((energy(u) - wanted).abs() < 0.01 * wanted + 1e-7)


def _test_of_bending(energy: Callable) -> bool:
    return _costs(energy, *_bent()) and _costs(energy, *_uneven())


TEST_BENDING = Exercise(
    "A test that finds the bug",
    arguments=lambda dims, generator: ({name: made for name, (_, made) in ENERGIES.items()},),
    right=_test_of_bending,
    hints=(
        "Choose a displacement whose second derivatives you know without a computer, and compare "
        "with the energy that you have computed by hand.",
        "A polynomial of degree two has the same second derivatives everywhere, whichever way they "
        "are taken: a i^2 / 2 has a along i, b i j has b along i and j. Use all of them, in both "
        "components, with different numbers; and a second field that bends differently from place "
        "to place.",
        "u_1 = .02 i^2 / 2 + .05 j^2 / 2 + .01 i j costs .02^2 + .05^2 + 2 * .01^2; let u_2 be "
        "alike, with other numbers. Then, over i = 0, ..., 8, u_1 = .01 (i - 4)^3 / 6 with u_2 = "
        "0: it costs the mean of (.01 (i - 4))^2 over the inner i = 1, ..., 7, .0004.",
    ),
    dims=(2,),
    used=_verdicts,
    told=_what_passes,
)


@TEST_BENDING.mistake(
    "free maps alone",
    symptom="Your test lets nearly every wrong energy pass.",
    idea="Shifts, turns and enlargements have no second derivatives: an energy that is sixteen "
    "times too large finds sixteen times nothing. Choose a field that costs something.",
    line="u_1 = .01 i j costs 2 * .01^2 = .0002 at every voxel.",
)
def _free_maps_alone(energy):
    i, j = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    return bool(energy(torch.stack([0.1 * i + 3, 0.2 * j])[None]).abs() < 1e-7)


@TEST_BENDING.mistake(
    "along one axis",
    symptom="Energies pass whose mixed derivatives are wrong.",
    idea="Your field bends along its axes only; its mixed derivatives are 0, and so are four times "
    "as large ones.",
    line="Add a term with i j.",
)
def _along_one_axis(energy):
    return _costs(energy, *_bent(across=0.0, mixed=0.0))


@TEST_BENDING.mistake(
    "twisted only",
    symptom="Your test lets an energy pass that knows mixed derivatives alone.",
    idea="i j has no second derivative along i, nor along j: nobody misses them.",
    line="Add a i^2 / 2 to one component and c j^2 / 2 to the other.",
)
def _twisted_only(energy):
    return _costs(energy, *_bent(pure=0.0, across=0.0))


@TEST_BENDING.mistake(
    "one component",
    symptom="Your test lets an energy pass that never looks at u_2.",
    idea="The energy is a sum over the components of u; yours has one that is 0.",
    line="Bend both components, by different numbers.",
)
def _one_component(energy):
    return _costs(energy, *_bent(across=0.0, components=1))


@TEST_BENDING.mistake(
    "one twisted component",
    symptom="The bug of this exercise is found; others pass.",
    idea="u_1 = c i j with u_2 = 0 says nothing of second derivatives along one axis, nor of the "
    "other component.",
    line="Add a i^2 / 2 to u_1, and something else to u_2.",
)
def _one_twisted_component(energy):
    return _costs(energy, *_bent(pure=0.0, across=0.0, components=1))


@TEST_BENDING.mistake(
    "one field that bends evenly",
    symptom="Your test lets an energy pass that squares the mean of a second derivative over the "
    "voxels, instead of taking the mean of its squares.",
    idea="Where a second derivative is the same everywhere, the square of its mean is the mean of "
    "its square. Only a field that bends differently from place to place tells them apart; best "
    "one whose bending cancels in the mean.",
    line="A second field: u_1 = .01 (i - 4)^3 / 6 over i = 0, ..., 8 bends by .01 (i - 4), 0 in "
    "the mean, and must cost .0004, not 0.",
)
def _one_field_that_bends_evenly(energy):
    return _costs(energy, *_bent())


@TEST_BENDING.mistake(
    "one axis for each component",
    symptom="Two wrong energies pass: one adds the derivatives along i and j before it squares, "
    "one squares the mean of a derivative over the voxels.",
    idea="In your fields a component bends along one axis at most, and alike everywhere. With "
    "nothing to add a sum is harmless, and with nothing that varies a mean is.",
    line="Let one component bend along both axes, a i^2 / 2 + b j^2 / 2, and add a field such as "
    ".01 (i - 4)^3 / 6, whose second derivative .01 (i - 4) is 0 in the mean.",
)
def _one_axis_for_each_component(energy):
    return _costs(energy, *_bent(across=0.0))


@TEST_BENDING.mistake(
    "bends along one axis at a time",
    symptom="Your test lets an energy pass that adds the derivatives along i and along j before it "
    "squares them.",
    idea="If a component bends along one axis only, there is nothing to add: the sum is the one, "
    "and its square is right.",
    line="Let one component bend along both axes: a i^2 / 2 + b j^2 / 2 costs a^2 + b^2, not "
    "(a + b)^2.",
)
def _one_axis_at_a_time(energy):
    return _costs(energy, *_bent(across=0.0)) and _costs(energy, *_uneven())


@TEST_BENDING.mistake(
    "against one program",
    symptom="Your test refuses an energy that is right.",
    idea="On noise two right ways to take differences give different numbers, since noise has no "
    "derivatives. A test should know the truth, not another program's answer.",
    line="Use a polynomial of degree two instead of noise, and your own number.",
)
def _against_one_program(energy):
    noise = torch.randn(1, 2, 9, 7, generator=Generator().manual_seed(0))
    return _costs(energy, noise, bending_energy(noise).item())


@TEST_BENDING.mistake(
    "some cost",
    symptom="Your test only asks whether bending costs anything.",
    idea="Nearly every wrong energy charges something; this bug charges mixed ones sixteenfold.",
    line="Compare with the number that you computed by hand.",
)
def _some_cost(energy):
    return bool(energy(_bent()[0]) > 0)


# --- overlap --------------------------------------------------------------------------------------


def _one_hot(labels: Tensor) -> Tensor:
    """Labels 0, 1, 2 as channels: (B, I, J, K) -> (B, 3, I, J, K)."""
    return F.one_hot(labels, 3).movedim(-1, 1).float()


def _probabilities(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot labels of two scans, three structures."""
    shape = uneven_shape(dims)
    scores = 2 * torch.randn(2, 3, *shape, generator=generator)
    labels = torch.randint(0, 3, (2, *shape), generator=generator)
    labels[0][labels[0] == 2] = 1  # one scan lacks structure 2 nearly everywhere
    labels[0].view(-1)[:3] = 2
    return scores.softmax(1), _one_hot(labels)


def _partly_drawn(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, one-hot labels that are 0 for structures that nobody drew, and which were
    drawn: two of one scan, all three of the other.
    """
    p, q = _probabilities(dims, generator)
    drawn = torch.tensor([[True, True, False], [True, True, True]])
    drawn = drawn[:, torch.randperm(3, generator=generator)]
    return p, q * drawn.view(2, 3, *[1] * dims), drawn


def _dice_of_each(p: Tensor, q: Tensor, *, factor: float = 2.0, squares: bool = False) -> Tensor:
    """Soft Dice of each scan and structure, (B, C), with one thing after another to get wrong."""
    p, q = p.flatten(2), q.flatten(2)
    sizes = (p.square() + q.square()).sum(-1) if squares else (p + q).sum(-1)
    return factor * (p * q).sum(-1) / sizes


def _dice_of_drawn(p: Tensor, q: Tensor, drawn: Tensor) -> Tensor:
    return 1 - _dice_of_each(p, q)[drawn].mean()


DRAWN_DICE = Exercise(
    "1 - soft Dice of what was drawn",
    arguments=_partly_drawn,
    right=_dice_of_drawn,
    hints=(
        "First one soft Dice for every scan and every structure, (B, C). Then the mean of those "
        "that were drawn.",
        "Sums run over voxels only; a boolean tensor as an index picks out where it is true.",
        "p and q flattened to (B, C, voxels): dice = 2 * (p * q).sum(-1) / (p.sum(-1) + "
        "q.sum(-1)), then 1 - dice[drawn].mean()",
    ),
    gradient=True,
)


@DRAWN_DICE.mistake(
    "undrawn is absent",
    symptom="Where nobody drew a structure, your loss punishes whoever finds it.",
    idea="Not drawn does not mean not there. What nobody knows must not be taught.",
    line="Take the mean over dice[drawn], not over all.",
)
def _undrawn_is_absent(p, q, drawn):
    return 1 - _dice_of_each(p, q).mean()


@DRAWN_DICE.mistake(
    "undrawn is perfect",
    symptom="Your loss shrinks with every structure that nobody drew.",
    idea="What was not drawn counts as a loss of 0, since it stands in the denominator.",
    line="Divide by the number of those that were drawn: dice[drawn].mean()",
)
def _undrawn_is_perfect(p, q, drawn):
    return ((1 - _dice_of_each(p, q)) * drawn).mean()


@DRAWN_DICE.mistake(
    "undrawn scores nothing",
    symptom="Even a perfect guess has a large loss.",
    idea="What was not drawn counts as a Dice of 0, since it stands in the denominator.",
    line="Divide by the number of those that were drawn: dice[drawn].mean()",
)
def _undrawn_scores_nothing(p, q, drawn):
    return 1 - (_dice_of_each(p, q) * drawn).mean()


@DRAWN_DICE.mistake(
    "scan by scan",
    symptom="A structure of a scan where little was drawn counts more in your version.",
    idea="You take the mean of each scan first. Asked for was one mean over everything that was "
    "drawn.",
    line="dice[drawn].mean()",
)
def _scan_by_scan(p, q, drawn):
    dice = _dice_of_each(p, q)
    return 1 - ((dice * drawn).sum(1) / drawn.sum(1)).mean()


@DRAWN_DICE.mistake(
    "no factor 2",
    symptom="A perfect guess does not get 0.",
    idea="The denominator counts the voxels of both; where they agree, twice.",
    line="2 * (p * q).sum(-1)",
)
def _no_factor_2(p, q, drawn):
    return 1 - _dice_of_each(p, q, factor=1.0)[drawn].mean()


@DRAWN_DICE.mistake(
    "the score",
    symptom="A perfect guess gets 1, the worst gets 0: the wrong way round for a loss.",
    idea="You return Dice. A loss is made small, so it is 1 - Dice.",
    line="return 1 - ...",
)
def _the_score(p, q, drawn):
    return _dice_of_each(p, q)[drawn].mean()


@DRAWN_DICE.mistake(
    "pooled",
    symptom="Small structures hardly count in your version.",
    idea="You add all structures before dividing: the largest decides.",
    line="Sum over voxels only, dim -1, and take the mean over dice[drawn] at the end.",
)
def _pooled(p, q, drawn):
    p, q = p.flatten(2)[drawn], q.flatten(2)[drawn]
    return 1 - 2 * (p * q).sum() / (p.sum() + q.sum())


@DRAWN_DICE.mistake(
    "hard",
    symptom="Your loss has no gradient: nothing can be learnt from it.",
    idea="argmax jumps. The soft version uses the probabilities themselves.",
    line="Leave p as it is.",
)
def _hard(p, q, drawn):
    return _dice_of_drawn(_one_hot(p.argmax(1)), q, drawn)


@DRAWN_DICE.mistake(
    "squares",
    symptom="Your denominator is smaller than it should be.",
    idea="Some papers put squares there (V-Net). Then a guess that is unsure everywhere is "
    "punished less.",
    line="p.sum(-1) + q.sum(-1), without squares.",
)
def _squares(p, q, drawn):
    return 1 - _dice_of_each(p, q, squares=True)[drawn].mean()


# --- whose labels? --------------------------------------------------------------------------------


# Pairs of a registration turn: each of the four cases once, and pairs with known fixed scans.
FOUR_CASES = ((True, False, True, False), (False, True, True, False))
FIXED_KNOWN = ((True, False, True, False), (True, True, True, True))


def _four_pairs(
    dims: int, generator: Generator, cases: tuple[tuple[bool, ...], ...] = FOUR_CASES
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(u, known, one_hot, guess) of four pairs in any order, first of the moving scans, then of the
    fixed ones; one_hot is all 0 where no expert has been.
    """
    shape = uneven_shape(dims)
    known = torch.tensor(cases)[:, torch.randperm(4, generator=generator)]
    guess = (2 * torch.randn(2, 4, 3, *shape, generator=generator)).softmax(2)
    labels = torch.randint(0, 3, (8, *shape), generator=generator)
    one_hot = _one_hot(labels).view_as(guess) * _per_scan(known, guess)
    fields = [smooth_field(shape, 1.0, generator) for _ in range(4)]
    return torch.cat(fields), known, one_hot, guess


def _per_scan(known: Tensor, like: Tensor) -> Tensor:
    """(2, B) shaped to choose between tensors (2, B, C, I, J, K)."""
    return known.view(*known.shape, *[1] * (like.ndim - 2))


def _of_constants(answer: Callable, u: Tensor, known: Tensor, *labels: Tensor) -> Tensor:
    """What ``answer`` returns where experts' labels are constants, as they are: whether they pass
    through ``no_grad`` is nobody's fault.
    """
    one_hot, guess = labels
    return answer(u, known, one_hot.detach(), guess)


def _sides(known: Tensor, one_hot: Tensor, guess: Tensor) -> Tensor:
    """The expert's labels where they exist, the guess where they do not."""
    return torch.where(_per_scan(known, guess), one_hot, guess.detach())


def _compared(u: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
    return soft_dice(Deformation(u).warp(moving), fixed)


def _anatomy(u: Tensor, known: Tensor, one_hot: Tensor, guess: Tensor) -> Tensor:
    return _compared(u, *_sides(known, one_hot, guess))


GUESS = Exercise(
    "The anatomy term of a registration turn",
    arguments=partial(_four_pairs, cases=FIXED_KNOWN),
    right=_anatomy,
    hints=(
        "First make what is compared, for both sides at once: the expert's labels or the guess. "
        "Then warp the moving side, and compare.",
        "known has an entry for each scan; the others have channels and voxels, too, so known "
        "needs as many axes of length 1. torch.where chooses. The guesses are only consulted.",
        "known.view(2, -1, 1, 1, 1) in 2D, in 3D with one more 1; moving, fixed = "
        "torch.where(known, one_hot, guess.detach()); then "
        "losses.soft_dice(Deformation(u).warp(moving), fixed)",
    ),
    gradient=True,
    tolerance=1e-5,  # what is compared on either side is much alike
    used=_of_constants,
    also=_four_pairs,
)


@GUESS.mistake(
    "guess not detached",
    symptom="The number is right, but a gradient flows into the guesses.",
    idea="In a registration turn F_S is only consulted. With a gradient it would learn to agree "
    "with whatever F_R has made of it.",
    line="guess.detach() where you choose.",
)
def _not_detached(u, known, one_hot, guess):
    return _compared(u, *torch.where(_per_scan(known, guess), one_hot, guess))


@GUESS.mistake(
    "the wrong one detached",
    symptom="The number is right, but a gradient flows into the guesses and none into u.",
    idea="In a registration turn F_R learns, by u, and F_S is only consulted. You have it the "
    "other way round.",
    line="guess.detach(), and Deformation(u) with u as it is",
)
def _wrong_one_detached(u, known, one_hot, guess):
    return _not_detached(u.detach(), known, one_hot, guess)


@GUESS.mistake(
    "nobody learns",
    symptom="The number is right, but nobody can learn from it: no gradient comes back to u.",
    idea="Only the guesses are to be cut off. What torch.no_grad() surrounds is cut off whole, the "
    "warp with it.",
    line="guess.detach() where you choose; no torch.no_grad() around the warp or the loss",
)
def _nobody_learns(u, known, one_hot, guess):
    return _anatomy(u, known, one_hot, guess).detach()


@GUESS.mistake(
    "exchanged",
    symptom="Where an expert has been, you use the guess, and elsewhere zeros.",
    idea="torch.where(condition, a, b) takes a where the condition is true.",
    line="one_hot before guess.",
)
def _exchanged(u, known, one_hot, guess):
    return _compared(u, *_sides(~known, one_hot, guess))


@GUESS.mistake(
    "guess only",
    symptom="The expert's labels are not used at all.",
    idea="A guess is a makeshift for scans that nobody labelled.",
    line="torch.where(known, one_hot, guess), with known in the right shape.",
)
def _guess_only(u, known, one_hot, guess):
    return _compared(u, *guess.detach())


@GUESS.mistake(
    "expert only",
    symptom="Scans without labels are compared as if they contained nothing at all.",
    idea="one_hot is 0 everywhere where no expert has been. That is not a scan without anatomy: "
    "there the guess stands in, scan by scan (`if known.any()` would decide for the whole batch).",
    line="torch.where(known, one_hot, guess), with known in the right shape.",
)
def _expert_only(u, known, one_hot, guess):
    return _compared(u, *one_hot)


@GUESS.mistake(
    "for the batch, not for each scan",
    symptom="Where some scans of a side are labelled and some are not, the guess stands in for all "
    "of them.",
    idea="One answer for the whole side, such as `known[0].all()`, throws away every expert's "
    "label of a batch in which one is missing. Each scan has an answer of its own.",
    line="torch.where(known, one_hot, guess), with known in the right shape, instead of an if.",
)
def _for_the_batch(u, known, one_hot, guess):
    everywhere = known.all(1, keepdim=True).expand_as(known)
    return _compared(u, *_sides(everywhere, one_hot, guess))


@GUESS.mistake(
    "not shaped",
    symptom="It stops: known has one entry for each scan, and PyTorch takes them for voxels.",
    idea="Shapes are matched from the LAST axis. known (2, B) must become (2, B, 1, 1, 1) to "
    "choose between tensors (2, B, C, I, J).",
    line="known.view(2, -1, 1, 1, 1), in 3D with one more 1",
)
def _not_shaped(u, known, one_hot, guess):
    return _compared(u, *torch.where(known, one_hot, guess.detach()))


@GUESS.mistake(
    "as in a segmentation turn",
    symptom="Pairs without any expert count as 0.",
    idea="That is the rule of the SEGMENTATION turn, where two free guesses could agree on "
    "anything. Here the guesses do not learn, and all four cases count.",
    line="Choose on each side by itself, and compare every pair.",
)
def _as_in_a_segmentation_turn(u, known, one_hot, guess):
    moving, fixed = _sides(known, one_hot, guess)
    return sum(
        _compared(u[[pair]], moving[[pair]], fixed[[pair]])
        for pair in range(len(u))
        if known[:, pair].any()
    ) / len(u)


@GUESS.mistake(
    "one side for both",
    symptom="Pairs are wrong that an expert has labelled on one side only.",
    idea="You ask the moving scan whether it is labelled, and choose both sides by its answer. "
    "Each side has an answer of its own.",
    line="known[0] for the moving scans, known[1] for the fixed ones.",
)
def _one_side_for_both(u, known, one_hot, guess):
    return _compared(u, *_sides(known[:1].expand_as(known), one_hot, guess))


@GUESS.mistake(
    "not warped",
    symptom="Your number does not depend on u.",
    idea="What is compared are the labels of the moving scan as they lie after warping, so that "
    "the network hears where to move them.",
    line="Deformation(u).warp(moving)",
)
def _not_warped(u, known, one_hot, guess):
    return soft_dice(*_sides(known, one_hot, guess))


@GUESS.mistake(
    "fixed warped",
    symptom="You move the wrong side.",
    idea="phi leads from voxels of fixed to places of moving: what is looked up there is moving.",
    line="Deformation(u).warp(moving), against fixed as it is",
)
def _fixed_warped(u, known, one_hot, guess):
    moving, fixed = _sides(known, one_hot, guess)
    return soft_dice(moving, Deformation(u).warp(fixed))


# --- a planted bug --------------------------------------------------------------------------------


def _image_labels_field(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    shape = uneven_shape(dims)
    image = torch.rand(1, 1, *shape, generator=generator)
    labels = torch.randint(0, 3, (1, *shape), generator=generator)
    return image, _one_hot(labels), smooth_field(shape, 1.0, generator)


def _warped_alike(image: Tensor, one_hot: Tensor, u: Tensor) -> Tensor:
    return Deformation(u).warp(torch.cat([image, one_hot], 1))


def _warp_both(
    image: Tensor,
    one_hot: Tensor,
    u: Tensor,
    *,
    images: bool = True,
    labels: bool = True,
    mode: str = "bilinear",
) -> Tensor:
    """Image and labels looked up at x + u(x); ``images`` and ``labels`` are the align_corners of
    each, ``mode`` is that of the labels.
    """
    points = Deformation(u).points
    warped = looked_up(image, points, align_corners=images)
    warped_labels = looked_up(one_hot, points, align_corners=labels, mode=mode)
    return torch.cat([warped, warped_labels], 1)


WARP_BOTH = Exercise(
    "Image and labels, warped alike",
    arguments=_image_labels_field,
    right=_warped_alike,
    hints=(
        "Give both the same picture and compare the results: are they warped alike?",
        "Image and labels must be looked up at the same places, with the same convention of "
        "coordinates.",
        "Compare the two calls of grid_sample, argument by argument.",
    ),
    gradient=True,
)


@WARP_BOTH.mistake(
    "labels without align_corners",
    symptom="The labels lie a little beside their image, up to half a voxel near the border.",
    idea="The grid was scaled for align_corners=True. The second call does not say so, and its "
    "default is False.",
    line="align_corners=True in both calls.",
)
def _labels_without_align_corners(image, one_hot, u):
    return _warp_both(image, one_hot, u, labels=False)


@WARP_BOTH.mistake(
    "image without align_corners",
    symptom="Now the image is off and the labels are right.",
    idea="The scale of the grid is for align_corners=True.",
    line="align_corners=True in both calls.",
)
def _image_without_align_corners(image, one_hot, u):
    return _warp_both(image, one_hot, u, images=False)


@WARP_BOTH.mistake(
    "neither",
    symptom="Image and labels agree, but with u = 0 neither stays as it was.",
    idea="The coordinates were scaled by size - 1, which belongs to align_corners=True.",
    line="align_corners=True in both calls.",
)
def _neither(image, one_hot, u):
    return _warp_both(image, one_hot, u, images=False, labels=False)


@WARP_BOTH.mistake(
    "nearest",
    symptom="The warped labels are right, but their gradient by u is 0.",
    idea="The nearest voxel jumps, so the anatomy term could not move anything. One-hot channels "
    "are amounts, and may be interpolated.",
    line="Leave mode at its default, bilinear.",
)
def _nearest(image, one_hot, u):
    return _warp_both(image, one_hot, u, mode="nearest")


EXERCISES = {
    "weighted_ncc": WEIGHTED_NCC,
    "test_bending": TEST_BENDING,
    "drawn_dice": DRAWN_DICE,
    "guess": GUESS,
    "warp_both": WARP_BOTH,
}
