"""Which pairs a training step sees, how often, and how they are augmented."""

import dataclasses
from collections import Counter

from deepatlas.data import Batch
from deepatlas.pairs import (
    CASES,
    _small_affines,
    augment,
    draw_changes,
    draw_pair,
    pairs_by_case,
)
from deepatlas.warp import Deformation

import pytest
import torch
from helpers import disks, scan, seeded
from plain import plain_draw_pair, plain_pairs_by_case

DRAWS = 2000
LABELLED = [scan(i) for i in range(3)]
UNLABELLED = [scan(i, labelled=False) for i in range(3, 20)]
COHORT = LABELLED + UNLABELLED


def draws(scans, turn, consults, number=DRAWS, seed=0):
    cases, generator = pairs_by_case(scans, turn, consults), seeded(seed)
    return [draw_pair(cases, generator) for _ in range(number)]


def case(moving, fixed):
    return moving.labels is not None, fixed.labels is not None


def assert_equally_often(counts, wanted):
    """All of ``wanted`` and nothing else, each within five standard deviations of its share."""
    assert set(counts) == set(wanted)
    total, share = sum(counts.values()), 1 / len(wanted)
    assert all(
        abs(n - total * share) <= 5 * (total * share * (1 - share)) ** 0.5 for n in counts.values()
    ), counts


# --- cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "consults", "wanted"),
    [
        ("reg", True, list(CASES.values())),
        ("reg", False, list(CASES.values())),
        ("seg", True, [(True, False), (False, True), (True, True)]),
        ("seg", False, [(True, False), (True, True)]),
    ],
)
def test_cases_are_drawn_equally_often(turn, consults, wanted):
    assert_equally_often(Counter(case(*pair) for pair in draws(COHORT, turn, consults)), wanted)


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "turn", "consults", "wanted"),
    [
        (1, 5, "reg", True, [(True, False), (False, True), (False, False)]),
        (1, 1, "reg", True, [(True, False), (False, True)]),
        (0, 4, "reg", False, [(False, False)]),
        (4, 0, "reg", True, [(True, True)]),
        (1, 5, "seg", True, [(True, False), (False, True)]),
        (4, 0, "seg", True, [(True, True)]),
        (0, 4, "seg", True, []),
        (0, 4, "seg", False, []),
        (1, 0, "reg", False, []),
    ],
)
def test_only_cases_that_the_scans_offer_are_drawn(labelled, unlabelled, turn, consults, wanted):
    cohort = disks(labelled, unlabelled)
    if not wanted:
        assert pairs_by_case(cohort.train, turn, consults) == []
    else:
        assert_equally_often(
            Counter(case(*pair) for pair in draws(cohort.train, turn, consults, 400)), wanted
        )


def test_the_fourth_case_is_drawn_only_when_asked_for():
    scans = disks(0, 3).train
    assert (
        pairs_by_case(scans, "seg", True) == [] and pairs_by_case(scans, "seg", False, True) == []
    )
    assert len(pairs_by_case(COHORT, "seg", True, True)) == 4


def test_the_segmentation_baseline_learns_from_one_labelled_scan():
    assert {
        moving.id for moving, _ in draws(disks(1, 5).train, "seg", consults=False, number=50)
    } == {"s0"}


def test_scans_of_a_case_are_drawn_equally_often():
    pairs = [pair for pair in draws(COHORT, "reg", True, 4 * DRAWS) if case(*pair) == (True, False)]
    assert_equally_often(Counter(moving.id for moving, _ in pairs), [s.id for s in LABELLED])
    assert_equally_often(Counter(fixed.id for _, fixed in pairs), [s.id for s in UNLABELLED])


@pytest.mark.parametrize("turn", ["seg", "reg"])
def test_a_pair_never_shows_one_subject_twice(turn):
    rescans = [scan(i, labelled=i % 2 == 0, subject=f"p{i // 3}") for i in range(9)]
    pairs = draws(rescans, turn, consults=True)
    assert all(moving.subject != fixed.subject for moving, fixed in pairs)
    assert (
        len(
            {
                (moving.id, fixed.id)
                for moving, fixed in pairs
                if case(moving, fixed) == (True, True)
            }
        )
        > 10
    )


@pytest.mark.parametrize("turn", ["seg", "reg"])
@pytest.mark.parametrize("people", [1, 3, 4, 9])
def test_the_same_pairs_are_drawn_as_from_lists_of_partners(turn, people):
    rescans = [scan(i, labelled=i % 3 == 0, subject=f"p{i * 7 % people}") for i in range(9)]
    cases, lists = (make(rescans, turn, True) for make in (pairs_by_case, plain_pairs_by_case))
    assert len(cases) == len(lists)
    one, other = seeded(5), seeded(5)
    for _ in range(500 if lists else 0):
        assert draw_pair(cases, one) == plain_draw_pair(lists, other)


def test_two_scans_of_one_subject_are_no_pair():
    assert pairs_by_case([scan(0, subject="p"), scan(1, subject="p")], "reg", True) == []


def test_draws_are_seeded():
    def ids(seed):
        return [(m.id, f.id) for m, f in draws(COHORT, "reg", True, 20, seed)]

    assert ids(0) == ids(0) != ids(1)


# --- augmentation ---------------------------------------------------------------------------------


def blob(dims, side=24, copies=2, known=True):
    """A batch whose image is a smooth blob in the middle, 0 far from it, and whose second structure
    is where the image is brighter than a half.
    """
    x = torch.stack(torch.meshgrid(*[torch.arange(side) - (side - 1) / 2] * dims, indexing="ij"))
    image = (
        (1 - x.square().sum(0) / (side / 3.5) ** 2).clamp(min=0).expand(copies, 1, *[side] * dims)
    )
    labels = (image[:, 0] > 0.5).to(torch.uint8) * known
    ids = tuple(f"s{i}" for i in range(copies))
    return Batch(image, labels, (known,) * copies, ids, 2)


def augmented(moving, fixed, strength, generator):
    """Changed by numbers that are drawn for each of their pairs."""
    shape = tuple(fixed.image.shape[2:])
    return augment(moving, fixed, draw_changes(len(fixed.ids), shape, strength, generator))


dimensions = pytest.mark.parametrize("dims", [2, 3], ids=["2D", "3D"])


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@dimensions
def test_strength_0_changes_nothing(dims):
    moving, fixed, generator = blob(dims), blob(dims), seeded()
    before = generator.get_state()
    assert augmented(moving, fixed, 0, generator) == (moving, fixed)
    assert torch.equal(generator.get_state(), before)


@dimensions
def test_labels_move_with_their_image(dims):
    batch = blob(dims, copies=4)
    for after in augmented(batch, batch, 1.0, seeded(1)):
        for before, image, moved in zip(batch.labels, after.image[:, 0], after.labels, strict=True):
            # as many of the brightest voxels as have the label; gamma and bias remain
            brightest = image >= image.flatten().sort().values[-int(moved.sum())]
            assert (brightest == moved).float().mean() > 0.97
            assert correlation(image, moved.float()) > correlation(image, before.float())


@dimensions
def test_a_label_comes_from_the_voxel_nearest_to_where_the_map_looks(dims):
    """As a lookup by hand: no label is invented, none is blended."""
    batch = blob(dims)
    labels = torch.randint(0, 5, batch.labels.shape, generator=seeded(3), dtype=torch.uint8)
    batch = dataclasses.replace(batch, labels=labels, structures=5)
    shape = tuple(batch.image.shape[2:])
    phi = Deformation.affine(_small_affines(len(batch.ids), shape, 1.0, seeded()), shape)
    after = augmented(batch, batch, 1.0, seeded())[0]
    assert after.labels.dtype == torch.uint8
    index = (phi.points + 0.5 + 1e-4).floor().long().clamp(0, 23)
    for row, moved, found in zip(labels, after.labels, index, strict=True):
        assert torch.equal(moved, row[tuple(found)])


@dimensions
def test_both_sides_of_a_pair_are_moved_alike_but_seen_by_different_scanners(dims):
    moving, fixed = augmented(blob(dims), blob(dims), 1.0, seeded())
    assert torch.equal(moving.labels, fixed.labels)
    assert not torch.equal(moving.labels, blob(dims).labels)
    assert moving.labels.diff(dim=0).any()  # another map for each pair of the batch
    assert all((moving.image[i] - fixed.image[i]).abs().max() > 0.02 for i in range(2))


@dimensions
def test_one_hot_still_sums_to_one_where_known_and_stays_zero_where_unknown(dims):
    known, unknown = augmented(blob(dims, known=True), blob(dims, known=False), 2.0, seeded())
    assert torch.equal(known.one_hot.sum(1), torch.ones(2, *[24] * dims))
    assert not unknown.one_hot.any()
    assert not any(unknown.known) and all(known.known) and known.ids == ("s0", "s1")


@dimensions
def test_images_stay_in_range(dims):
    batch = blob(dims)
    batch = dataclasses.replace(batch, image=torch.rand(batch.image.shape, generator=seeded(3)))
    for seed in range(20):
        for after in augmented(batch, batch, 3.0, seeded(seed)):
            assert after.image.min() >= 0 and after.image.max() <= 1
            assert after.image.dtype == torch.float32 and after.image.shape == batch.image.shape


@dimensions
def test_augmentation_is_seeded_and_leaves_its_input_alone(dims):
    batch = blob(dims)
    copy = batch.image.clone(), batch.labels.clone()
    one, two, other = (augmented(batch, batch, 1.0, seeded(seed)) for seed in (0, 0, 1))
    for side in range(2):
        assert torch.equal(one[side].image, two[side].image) and torch.equal(
            one[side].labels, two[side].labels
        )
        assert not torch.equal(one[side].image, other[side].image)
    assert torch.equal(batch.image, copy[0]) and torch.equal(batch.labels, copy[1])


def centres(batch):
    """Centre of mass of the second structure, in voxels from the middle: (B, D)."""
    mass, side = batch.labels.float(), batch.image.shape[-1]
    axes = torch.arange(side) - (side - 1) / 2
    total = mass.flatten(1).sum(1)
    along = [
        mass.movedim(1 + axis, -1).flatten(1, -2).sum(1) @ axes / total
        for axis in range(mass.ndim - 1)
    ]
    return torch.stack(along, 1)


@dimensions
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_shifts_are_3_percent_of_a_side(dims, strength):
    """A blob in the middle is not moved by the linear part, which keeps the middle where it is."""
    batch = blob(dims, copies=150)
    moved = centres(augmented(batch, batch, strength, seeded())[0])
    assert float(moved.std()) == pytest.approx(0.03 * 24 * strength, rel=0.2)
    assert float(moved.mean().abs()) < 0.03 * 24 * strength / 3


def test_gamma_runs_from_0_7_to_1_4():
    """Of a constant image: log image = gamma log(1/2) + bias, and the bias is about 10 %."""
    grey = dataclasses.replace(blob(2, copies=400), image=torch.full((400, 1, 24, 24), 0.5))
    for after in augmented(grey, grey, 1.0, seeded()):
        log = after.image.log()
        gamma = log.mean((1, 2, 3)) / torch.tensor(0.5).log()
        assert 0.6 < gamma.min() < 0.75 and 1.3 < gamma.max() < 1.6
        assert 0.04 < (log - log.mean((2, 3), keepdim=True)).std() < 0.11
