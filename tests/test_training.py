"""The method by formula: loss terms by case, regimes, and a loop that ends with the same bits
wherever it stops.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from deepatlas import checkpoints, models, training
from deepatlas.checkpoints import Interrupted, OutOfTime
from deepatlas.data import Batch, Cohort, Scan, Source
from deepatlas.errors import UserError
from deepatlas.models import Registration, probabilities, register
from deepatlas.networks import RegistrationNet, SegmentationNet
from deepatlas.pairs import draw_pair
from deepatlas.regimes import REGIMES, Regime, needed, regimes, spent
from deepatlas.terms import SIMILARITIES, TERMS, Weights, labels_or_guess, reg_terms, seg_terms
from deepatlas.training import Settings, train
from deepatlas.warp import Deformation

import pytest
import torch
from helpers import disks, one_thread, scan  # noqa: F401
from plain import plain_reg_terms, plain_seg_terms
from pretended import counts_of_a_turn
from torch import nn

CASES = {
    "known -> unknown": (True, False),
    "unknown -> known": (False, True),
    "known -> known": (True, True),
    "unknown -> unknown": (False, False),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SEG_TERMS = ("anatomy", "supervised", "cross_entropy")  # the last has no weight by default
NAMES = {"seg": {"anatomy", "supervised"}, "reg": {"similarity", "regularity", "anatomy"}}
# a checkpoint after 4, 8 and 12 steps
JOINT = Settings({"seg": 4, "reg": 8}, batch_size=2, validations=3, seed=1)


class TinySeg(nn.Module):
    """Scores of three structures; ``norm`` adds batch normalisation."""

    def __init__(self, norm=False):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.Tanh(),
            nn.Conv2d(4, 3, 1),
        )

    def forward(self, image):
        return self.layers(image)


class TinyReg(nn.Module):
    """Displacements of about a voxel."""

    def __init__(self, norm=False):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2) if norm else nn.Identity()
        )

    def forward(self, moving, fixed):
        return self.layers(2 * torch.cat([moving, fixed], 1))


def tiny(norm=False):
    torch.manual_seed(0)
    return TinySeg(norm), TinyReg(norm)


def networks(seed=0):
    torch.manual_seed(seed)
    return {"seg": SegmentationNet(2, 3, (16, 16)), "reg": RegistrationNet(2, (16, 16))}


def batches(*wanted):
    """Moving and fixed batch with one pair for each (moving known, fixed known)."""
    sides = zip(
        *[(scan(2 * i, m), scan(2 * i + 1, f)) for i, (m, f) in enumerate(wanted)], strict=True
    )
    return [Batch.of(side, 3) for side in sides]


def dice_loss(p, q):
    """1 - (2 sum(p q) + 1) / (sum p + sum q + 1), a structure at a time, of one pair
    (1, C, I, J).
    """
    scores = []
    for own, wanted in zip(p[0], q[0], strict=True):
        scores.append((2 * (own * wanted).sum() + 1) / (own.sum() + wanted.sum() + 1))
    return 1 - sum(scores) / len(scores)


def guess(seg_net, batch):
    exponentials = seg_net(batch.image).exp()
    return exponentials / exponentials.sum(1, keepdim=True)


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)


def assert_same_value_and_gradient(term, expected, network):
    torch.testing.assert_close(term, expected, rtol=1e-5, atol=1e-6)
    for actual, wanted in zip(gradients(term, network), gradients(expected, network), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-6)


def assert_zero_without_gradient(term):
    assert term == 0 and not term.requires_grad


# --- what the networks mean -----------------------------------------------------------------------


def test_a_displacement_is_added_and_a_velocity_is_integrated():
    net = tiny()[1]
    moving, fixed = (b.image for b in batches((True, True)))
    u = net(moving, fixed)
    torch.testing.assert_close(register(net, moving, fixed).displacement, u)
    phi = register(Registration(net, velocity=True, passes=1), moving, fixed)
    torch.testing.assert_close(phi.displacement, Deformation.exp(u).displacement)
    assert not torch.allclose(phi.displacement, u, atol=0.01)


def test_a_second_pass_looks_at_the_pair_as_warped_so_far():
    moving, fixed = batches((True, True))
    once = tiny()[1]
    first = register(once, moving.image, fixed.image)
    second = register(once, first.warp(moving.image), fixed.image)
    twice = Registration(once, velocity=False, passes=2)
    both = register(twice, moving.image, fixed.image)
    torch.testing.assert_close(both.displacement, (first @ second).displacement)


def test_probabilities_sum_to_one():
    seg_net = tiny()[0]
    batch, _ = batches((True, True))
    p = probabilities(seg_net, batch.image)
    torch.testing.assert_close(p, guess(seg_net, batch))
    torch.testing.assert_close(p.sum(1), torch.ones(1, 16, 16))


def test_the_experts_labels_where_they_exist_the_guess_where_not():
    batch, _ = batches((True, True), (False, True))
    p = guess(tiny()[0], batch)
    mixed = labels_or_guess(batch.known, batch.one_hot, p)
    assert torch.equal(mixed[0], batch.one_hot[0]) and torch.equal(mixed[1], p[1])


# --- the segmentation turn ------------------------------------------------------------------------


def seg_formula(seg_net, reg_net, moving, fixed, case):
    """The paper's table for one pair, and cross-entropy beside Dice: (anatomy, supervised,
    cross-entropy), None for a term that is not there.
    """
    phi = Deformation(reg_net(moving.image, fixed.image).detach())
    s_m, s_f, f_m, f_f = (
        moving.one_hot,
        fixed.one_hot,
        guess(seg_net, moving),
        guess(seg_net, fixed),
    )
    return {
        (True, False): (dice_loss(phi.warp(s_m), f_f), dice_loss(f_m, s_m), entropy(f_m, s_m)),
        (False, True): (dice_loss(phi.warp(f_m), s_f), dice_loss(f_f, s_f), entropy(f_f, s_f)),
        (True, True): (None, dice_loss(f_m, s_m), entropy(f_m, s_m)),
        (False, False): (None, None, None),
    }[case]


def entropy(p, q):
    """-sum q log p over structures, the mean over voxels."""
    return -(q * p.log()).sum(1).mean()


@cases
def test_terms_of_a_segmentation_turn_are_those_of_the_paper(case):
    seg_net, reg_net = tiny()
    moving, fixed = batches(case)
    terms = seg_terms(seg_net, reg_net, moving, fixed)
    assert set(terms) == {*NAMES["seg"], "cross_entropy"}
    expected = seg_formula(seg_net, reg_net, moving, fixed, case)
    for name, formula in zip(SEG_TERMS, expected, strict=True):
        term = terms[name]
        if formula is None:
            assert_zero_without_gradient(term)
        else:
            assert formula > 0.1
            assert_same_value_and_gradient(term, formula, seg_net)


@pytest.mark.parametrize(
    "wanted",
    [
        list(CASES.values()),
        [(False, True), (True, True)],
        [(True, True), (False, False)],
        [(True, False), (True, False), (False, True)],
    ],
)
def test_a_mixed_batch_is_the_mean_over_the_pairs_that_count(wanted):
    seg_net, reg_net = tiny()
    moving, fixed = batches(*wanted)
    terms = seg_terms(seg_net, reg_net, moving, fixed)
    singles = [
        seg_formula(seg_net, reg_net, part(moving, i), part(fixed, i), case)
        for i, case in enumerate(wanted)
    ]
    for i, name in enumerate(SEG_TERMS):
        counted = [single[i] for single in singles if single[i] is not None]
        if counted:
            assert_same_value_and_gradient(terms[name], sum(counted) / len(counted), seg_net)
        else:
            assert_zero_without_gradient(terms[name])


def part(batch, i):
    return batch[[i]]


@cases
def test_the_segmentation_baseline_has_no_anatomy(case):
    seg_net, _ = tiny()
    moving, fixed = batches(case)
    terms = seg_terms(seg_net, None, moving, fixed)
    assert_zero_without_gradient(terms["anatomy"])
    if case[0]:
        assert_same_value_and_gradient(
            terms["supervised"], dice_loss(guess(seg_net, moving), moving.one_hot), seg_net
        )
    else:
        assert_zero_without_gradient(terms["supervised"])


@cases
def test_a_segmentation_turn_leaves_the_registration_network_alone(case):
    seg_net, reg_net = tiny()
    terms = seg_terms(seg_net, reg_net, *batches(case))
    if case != (False, False):
        Weights().total(terms).backward()
        assert all(p.grad.abs().max() > 0 for p in seg_net.parameters())
    assert all(p.grad is None for p in reg_net.parameters())


def test_the_anatomy_gradient_passes_through_the_warp():
    """unknown -> known: a guess counts where phi looks it up, and nowhere else."""
    moving, fixed = batches((False, True))
    scores = torch.zeros(1, 3, 16, 16, requires_grad=True)
    shift = torch.zeros(1, 2, 16, 16)
    # warped(x) = moving(x + 5): rows 0 to 4 of the moving image are never looked up
    shift[:, 0] = 5
    seg_net, reg_net = nn.Identity(), nn.Identity()
    seg_net.forward = lambda images: scores.expand(len(images), -1, -1, -1)
    reg_net.forward = lambda moving, fixed: shift
    seg_terms(seg_net, reg_net, moving, fixed)["anatomy"].backward()
    assert scores.grad[:, :, :5].abs().max() == 0 and scores.grad[:, :, 5:].abs().min() > 0


def test_sampled_warps_show_the_labelled_moving_scan_as_it_is_warped():
    seg_net, reg_net = tiny()
    wanted = [(True, False), (False, True), (True, True)]
    moving, fixed = batches(*wanted)
    terms = seg_terms(seg_net, reg_net, moving, fixed, sampled_warps=True)
    plain = seg_terms(seg_net, reg_net, moving, fixed)
    assert_same_value_and_gradient(terms["anatomy"], plain["anatomy"], seg_net)
    m, f = part(moving, 0), part(fixed, 0)
    phi = Deformation(reg_net(m.image, f.image).detach())
    seen = dice_loss(seg_net(phi.warp(m.image)).softmax(1), phi.warp(m.one_hot))
    others = [
        seg_formula(seg_net, reg_net, part(moving, i), part(fixed, i), wanted[i])[1] for i in (1, 2)
    ]
    assert_same_value_and_gradient(terms["supervised"], (seen + sum(others)) / 3, seg_net)


def test_the_fourth_case_compares_two_guesses_when_it_is_asked_for():
    seg_net, reg_net = tiny()
    moving, fixed = batches((False, False))
    terms = seg_terms(seg_net, reg_net, moving, fixed, fourth_case=True)
    phi = Deformation(reg_net(moving.image, fixed.image).detach())
    assert_same_value_and_gradient(
        terms["anatomy"],
        dice_loss(phi.warp(guess(seg_net, moving)), guess(seg_net, fixed)),
        seg_net,
    )
    assert_zero_without_gradient(terms["supervised"])


# --- the registration turn ------------------------------------------------------------------------


def reg_formula(seg_net, reg_net, moving, fixed):
    """Eq. 2 for one pair, each missing S replaced by F_S's prediction."""
    phi = Deformation(reg_net(moving.image, fixed.image))
    s_m, s_f = (b.one_hot if all(b.known) else guess(seg_net, b).detach() for b in (moving, fixed))
    return {
        "similarity": correlation_loss(phi.warp(moving.image), fixed.image),
        "regularity": hessian_energy(phi.displacement),
        "anatomy": dice_loss(phi.warp(s_m), s_f),
    }


def correlation_loss(a, b):
    return 1 - torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]


def hessian_energy(u):
    i, j, ij = u.diff(n=2, dim=2), u.diff(n=2, dim=3), u.diff(dim=2).diff(dim=3)
    # 2: a sum over channels
    return 2 * (i.square().mean() + j.square().mean() + 2 * ij.square().mean())


@pytest.mark.parametrize(
    "wanted",
    [[case] for case in CASES.values()] + [list(CASES.values())],
    ids=[*CASES, "mixed batch"],
)
def test_terms_of_a_registration_turn_are_those_of_the_paper(wanted):
    seg_net, reg_net = tiny()
    moving, fixed = batches(*wanted)
    terms = reg_terms(reg_net, seg_net, moving, fixed)
    assert terms.keys() == NAMES["reg"]
    singles = [
        reg_formula(seg_net, reg_net, part(moving, i), part(fixed, i)) for i in range(len(wanted))
    ]
    for name, term in terms.items():
        expected = sum(single[name] for single in singles) / len(singles)
        assert expected > 0.01
        assert_same_value_and_gradient(term, expected, reg_net)


@pytest.mark.parametrize(
    "wanted",
    [[case] for case in CASES.values()] + [list(CASES.values())],
    ids=[*CASES, "mixed batch"],
)
def test_only_two_experts_teach_the_registration_baseline_anatomy(wanted):
    _, reg_net = tiny()
    moving, fixed = batches(*wanted)
    terms = reg_terms(reg_net, None, moving, fixed)
    experts = [i for i, case in enumerate(wanted) if case == (True, True)]
    if experts:
        expected = reg_formula(None, reg_net, part(moving, experts[0]), part(fixed, experts[0]))[
            "anatomy"
        ]
        assert_same_value_and_gradient(terms["anatomy"], expected, reg_net)
    else:
        assert_zero_without_gradient(terms["anatomy"])
    assert terms["similarity"].requires_grad and terms["regularity"].requires_grad


@cases
def test_a_registration_turn_leaves_the_segmentation_network_alone(case):
    seg_net, reg_net = tiny()
    Weights().total(reg_terms(reg_net, seg_net, *batches(case))).backward()
    assert all(p.grad.abs().max() > 0 for p in reg_net.parameters())
    assert all(p.grad is None for p in seg_net.parameters())


def test_the_similarity_can_be_chosen():
    _, reg_net = tiny()
    moving, fixed = batches((True, True))
    terms = reg_terms(reg_net, None, moving, fixed, SIMILARITIES["mse"])
    warped = Deformation(reg_net(moving.image, fixed.image)).warp(moving.image)
    torch.testing.assert_close(terms["similarity"], (warped - fixed.image).square().mean())


def test_weights_weigh_the_terms_that_are_there():
    weights = Weights(similarity=2, regularity=3, anatomy=5, supervised=7)
    assert weights.total({"similarity": 1.0, "regularity": 10.0, "anatomy": 100.0}) == 2 + 30 + 500
    assert weights.total({"anatomy": 1.0, "supervised": 10.0}) == 5 + 70
    assert (Weights()["anatomy"], Weights()["supervised"]) == (3, 3)  # the authors' lambda_a


# --- thrift changes nothing -----------------------------------------------------------------------

MIXTURES = [
    *([case] for case in CASES.values()),
    list(CASES.values()),
    [(True, True), (True, False)],
    [(False, True), (False, False), (True, False), (True, False)],
]


def random_batches(wanted, dims, seed=0):
    """Noise and random labels, with one pair for each (moving known, fixed known)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (8, 16, 8)[:dims]

    def side(known):
        image = torch.rand(len(known), 1, *shape, generator=generator)
        labels = torch.randint(0, 3, (len(known), *shape), generator=generator, dtype=torch.uint8)
        ids = tuple(str(i) for i in range(len(known)))
        labels *= torch.tensor(known).view(-1, *[1] * dims)
        return Batch(image, labels, known, ids, 3)

    return [side(known) for known in zip(*wanted, strict=True)]


def spread_networks(dims):
    """Networks whose guesses differ from voxel to voxel, and that move by about a voxel."""
    torch.manual_seed(0)
    seg_net = SegmentationNet(dims, 3, (16, 16))
    reg_net = Registration(RegistrationNet(dims, (16, 16)), velocity=True, passes=1)
    torch.nn.init.normal_(reg_net.net.head.weight, std=0.1)
    return seg_net, reg_net


def assert_same_terms(terms, plain, network):
    assert terms.keys() == plain.keys()
    for name in terms:
        if plain[name].requires_grad:
            assert_same_value_and_gradient(terms[name], plain[name], network)
        else:
            torch.testing.assert_close(terms[name], plain[name])


@pytest.mark.parametrize("dims", [2, 3], ids=["2D", "3D"])
@pytest.mark.parametrize("wanted", MIXTURES, ids=str)
@pytest.mark.parametrize("options", [{}, {"sampled_warps": True}, {"fourth_case": True}], ids=str)
def test_a_segmentation_turn_is_that_of_a_network_shown_every_scan(dims, wanted, options):
    seg_net, reg_net = spread_networks(dims)
    moving, fixed = random_batches(wanted, dims)
    terms = seg_terms(seg_net, reg_net, moving, fixed, **options)
    assert_same_terms(terms, plain_seg_terms(seg_net, reg_net, moving, fixed, **options), seg_net)


@pytest.mark.parametrize("dims", [2, 3], ids=["2D", "3D"])
@pytest.mark.parametrize("wanted", MIXTURES, ids=str)
@pytest.mark.parametrize("consults", [True, False], ids=["consults", "alone"])
def test_a_registration_turn_is_that_of_a_network_shown_every_scan(dims, wanted, consults):
    seg_net, reg_net = spread_networks(dims)
    seg_net = seg_net if consults else None
    moving, fixed = random_batches(wanted, dims)
    terms = reg_terms(reg_net, seg_net, moving, fixed, SIMILARITIES["lncc"])
    plain = plain_reg_terms(reg_net, seg_net, moving, fixed, SIMILARITIES["lncc"])
    assert_same_terms(terms, plain, reg_net)


def seen_by(network):
    """A list of how many images each forward pass of ``network`` is shown, as it grows."""
    counts = []
    network.register_forward_pre_hook(lambda net, images: counts.append(len(images[0])))
    return counts


def test_no_scan_is_shown_to_a_network_in_vain():
    seg_net, reg_net = tiny()
    segmented, registered = seen_by(seg_net), seen_by(reg_net)
    moving, fixed = batches(*CASES.values())
    seg_terms(seg_net, reg_net, moving, fixed)
    assert (segmented, registered) == ([5], [2])  # two sides of two pairs, one of the third
    seg_terms(seg_net, None, moving, fixed)
    assert (segmented, registered) == ([5, 2], [2])
    reg_terms(reg_net, seg_net, moving, fixed)
    assert (segmented, registered) == ([5, 2, 4], [2, 4])  # four of eight scans have no labels
    reg_terms(reg_net, seg_net, moving, fixed, names=["similarity", "regularity"])
    assert (segmented, registered) == ([5, 2, 4], [2, 4, 4])


def test_batch_normalisation_that_learns_sees_one_role_at_a_time():
    seg_net, reg_net = tiny(norm=True)
    segmented = seen_by(seg_net)
    moving, fixed = batches((True, False), (False, True))
    terms = seg_terms(seg_net, reg_net.eval(), moving, fixed)
    assert segmented == [2, 2]
    plain = plain_seg_terms(seg_net, reg_net, moving, fixed)
    assert_same_terms(terms, plain, seg_net)
    seg_terms(seg_net.eval(), reg_net, moving, fixed)
    assert segmented == [2, 2, 2, 2, 4]


@pytest.mark.parametrize("regime", ["semi_seg", "semi_reg"])
def test_a_term_of_weight_0_is_neither_computed_nor_kept(regime):
    nets = networks()
    turn = REGIMES[regime].trains[0]
    consulted = seen_by(nets["seg"])
    loop = trainer(Settings({turn: 3}, Weights(anatomy=0)), regime, nets)
    assert "anatomy" not in loop.take_turn()
    assert turn == "seg" or not consulted


def test_a_turn_that_teaches_nothing_changes_nothing():
    nets = networks()
    before = {name: value.clone() for name, value in nets["seg"].state_dict().items()}
    settings = Settings({"seg": 3}, Weights(supervised=0))
    row = trainer(settings, "semi_seg", nets, disks(4, 0)).take_turn()
    assert row["anatomy"] == 0
    assert_same(dict(nets["seg"].state_dict()), before)


# --- what a GPU is asked --------------------------------------------------------------------------


def kit_trainer(regime, dims, labelled, batch_size, dtype=torch.float32, **options):
    """The kit's networks, which look twice, on random scans; with their cohort."""
    generator = torch.Generator().manual_seed(0)
    shape = (16,) * dims

    def random_scan(number, known):
        labels = torch.randint(0, 4, shape, generator=generator, dtype=torch.uint8)
        image = torch.rand(1, *shape, generator=generator, dtype=dtype)
        affine = torch.eye(4, dtype=torch.float64)
        return Scan(f"s{number}", f"p{number}", image, affine, labels if known else None)

    train = tuple(random_scan(number, number < labelled) for number in range(labelled + 3))
    cohort = Cohort("random", ("a", "b", "c", "d"), 1.0, train, (), ())
    torch.manual_seed(0)
    nets = models.build("kit", dims, 4, velocity=True, passes=2)
    nets = {name: net.to(dtype) for name, net in nets.items()}
    steps = dict.fromkeys(REGIMES[regime].trains, 4)
    settings = Settings(steps, batch_size=batch_size, similarity="lncc", teacher=0.9)
    settings = replace(settings, options=options)
    return training.Trainer(nets, cohort, REGIMES[regime], settings), cohort


@pytest.mark.parametrize(
    ("regime", "dims", "labelled", "options"),
    [
        ("seg_baseline", 2, 1, {}),
        ("reg_baseline", 2, 2, {}),
        ("deepatlas", 2, 3, {"sampled_warps": True, "fourth_case": True}),
        ("deepatlas", 3, 1, {}),
    ],
)
def test_a_gpu_is_asked_once_a_step(regime, dims, labelled, options, monkeypatch):
    loop, cohort = kit_trainer(regime, dims, labelled, 2, **options)
    for _ in range(2):
        loop.take_turn()  # some numbers are made once, and kept
    for _ in range(2):
        counts = counts_of_a_turn(loop, cohort, monkeypatch)
        assert counts.pop("asked in a list") == 1
        # the random numbers of augmentation; and who is labelled, of each side with both kinds
        assert 1 <= counts.pop("sent") <= 3
        assert not counts


def test_a_step_reads_no_more_numbers_than_it_must():
    """By PyTorch's own profiler, on a CPU, where a number is read at no cost."""
    loop, _ = kit_trainer("deepatlas", 2, 2, 3)
    for _ in range(2):
        weights = len(list(loop.networks[loop.next_turn()].parameters()))
        with torch.profiler.profile() as profiler:
            loop.take_turn()
        count = {event.key: event.count for event in profiler.key_averages()}
        drawn = 3 * 3  # a case and two scans of each pair
        terms = 3  # whether they are finite, before the backward pass
        # and Adam's count of steps of each weight, which is on the CPU, too
        assert count["aten::_local_scalar_dense"] <= drawn + terms + weights
        assert "aten::nonzero" not in count


# --- a batch in parts -----------------------------------------------------------------------------


def of_a_turn(loop, parts):
    """The values of a turn whose batch is computed in so many parts, and its gradient."""
    turn = loop.next_turn()
    loop.parts[turn] = parts
    row = loop.take_turn()
    gradient = [p.grad.clone() for p in loop.networks[turn].parameters() if p.grad is not None]
    return row, gradient


@pytest.mark.parametrize(
    ("regime", "labelled", "options"),
    [
        ("seg_baseline", 2, {}),
        ("reg_baseline", 2, {}),
        ("semi_seg", 1, {"sampled_warps": True, "fourth_case": True}),
        ("semi_seg", 3, {}),
        ("semi_reg", 2, {}),
    ],
)
def test_a_batch_in_halves_has_the_same_values_and_gradient(regime, labelled, options):
    """Whatever cases the halves have: here three and two pairs, drawn twice."""
    for seed in range(2):
        found = []
        for parts in (1, 2):
            loop, _ = kit_trainer(regime, 2, labelled, 5, torch.float64, **options)
            loop.generator.manual_seed(seed)
            found.append(of_a_turn(loop, parts))
        (whole, gradient), (halves, of_halves) = found
        assert halves.pop("parts") == 2 and whole.keys() == halves.keys()
        for name in whole.keys() & TERMS.keys():
            assert whole[name] == pytest.approx(halves[name], rel=1e-9)
        assert len(gradient) == len(of_halves) > 0
        for one, other in zip(gradient, of_halves, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_a_term_counts_as_the_mean_over_those_pairs_that_it_is_about():
    """And not over all that were drawn, of which some have nothing to do with it."""
    loop, _ = kit_trainer("semi_seg", 2, 3, 5, torch.float64)
    compute, plain, fewer = loop._terms, [], False

    def seen(turn, pairs, changes):
        found = compute(turn, pairs, changes)
        plain.append({name: term.item() for name, term in found.items()})
        return found

    loop._terms = seen
    behind = loop._pairs_behind

    def counted(turn, pairs):
        nonlocal fewer
        found = behind(turn, pairs)
        fewer = fewer or any(0 < count < len(pairs) for count in found.values())
        return found

    loop._pairs_behind = counted
    for _ in range(6):
        row = loop.take_turn()
        for name, value in plain.pop().items():
            assert row[name] == pytest.approx(value, rel=1e-9)
    assert fewer


def short_of_memory(loop, most, error):
    """Let ``loop`` have memory for so many pairs at once."""
    compute = loop._terms

    def terms(turn, pairs, changes):
        if len(pairs) > most:
            raise error
        return compute(turn, pairs, changes)

    loop._terms = terms


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: not enough memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_once_and_says_so(error, capsys):
    whole = trainer(replace(JOINT, batch_size=3))
    rows = [whole.take_turn() for _ in range(4)]
    loop = trainer(replace(JOINT, batch_size=3))
    short_of_memory(loop, 2, error)
    for row in rows:
        halves = loop.take_turn()
        assert halves.pop("parts") == 2
        assert halves.keys() == row.keys()
        assert all(
            halves[name] == pytest.approx(row[name], abs=1e-3) for name in TERMS.keys() & row.keys()
        )
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2  # once for each network
    assert "3 pairs of a turn of reg do not fit in the memory of cpu: from here on" in said[0]
    again = trainer(replace(JOINT, batch_size=3), nets=networks(seed=9))
    again.load(loop.state(), Path("checkpoint.pt"))
    assert again.parts == {"seg": 2, "reg": 2}


@pytest.mark.parametrize(("pairs", "most"), [(1, 0), (4, 1)])
def test_where_not_even_half_a_batch_fits_it_is_told(pairs, most):
    loop = trainer(replace(JOINT, batch_size=pairs))
    short_of_memory(loop, most, torch.OutOfMemoryError("CUDA out of memory"))
    half = max(1, pairs // 2)
    with pytest.raises(
        MemoryError,
        match=rf"DeepAtlas, step 1 \(turn of reg\): not even {half} of its {pairs} pairs of "
        "16 x 16 voxels fit in the memory of cpu",
    ):
        loop.take_turn()


def test_another_error_is_no_want_of_memory():
    loop = trainer(JOINT)
    short_of_memory(loop, 0, RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="power cut"):
        loop.take_turn()


# --- regimes --------------------------------------------------------------------------------------


STARTS = pytest.mark.parametrize("joint_start", ["none", "trained"])


@STARTS
@pytest.mark.parametrize("labelled", [1, 2, 21])
def test_a_regime_starts_from_networks_that_were_trained_before_it(labelled, joint_start):
    table = regimes(labelled, joint_start)
    for i, (key, regime) in enumerate(table.items()):
        before = dict(list(table.items())[:i])
        assert all(
            source in before and network in before[source].trains
            for network, source in regime.start.items()
        )
        assert regime.consults == key.startswith(("semi", "deepatlas"))
        assert regime.title == REGIMES[key].title and regime.trains == REGIMES[key].trains
        consulted = {"seg", "reg"} - set(regime.trains) if regime.consults else set()
        assert consulted <= regime.start.keys(), "a consulted network must have been trained"
        assert joint_start == "trained" or not regime.goes_on
    wanted = {"semi_first"} if labelled > 1 else set()
    if joint_start == "none":
        wanted = {"semi_first", "seg_control", "reg_control"}
    assert REGIMES.keys() - table.keys() == wanted


@STARTS
@pytest.mark.parametrize("labelled", [1, 2])
def test_semi_and_deepatlas_differ_in_nothing_but_whether_the_teacher_learns(labelled, joint_start):
    table = regimes(labelled, joint_start)
    joint = table["deepatlas"]
    assert set(joint.trains) == {"seg", "reg"}
    for name in ("seg", "reg"):
        semi = table[f"semi_{name}"]
        assert semi.trains == (name,) and semi.start.get(name) == joint.start.get(name)
        assert (semi.length, semi.consults) == (joint.length, joint.consults)
    assert {key for key, regime in REGIMES.items() if regime.all_labels} == {"seg_full", "reg_full"}


def test_with_one_label_an_unsupervised_registration_teaches_segmentation_first():
    table = regimes(1, "trained")
    assert table["semi_first"].start == {"reg": "reg_baseline"}
    assert table["deepatlas"].start == {"seg": "semi_first", "reg": "reg_baseline"}
    table = regimes(1, "none")
    assert table["semi_seg"].start == {"reg": "reg_baseline"}
    assert table["semi_reg"].start == {"seg": "semi_seg"}


def test_what_a_network_has_spent_includes_what_it_started_from():
    own = {
        "seg_baseline": {"seg": 1},
        "reg_baseline": {"reg": 10},
        "semi_first": {"seg": 100},
        "semi_seg": {"seg": 2},
        "deepatlas": {"seg": 2, "reg": 20},
        "seg_control": {"seg": 7},
        "seg_full": {"seg": 9},
    }
    table = regimes(2, "trained")
    assert spent(table, "deepatlas", "seg", own) == 1 + 2
    assert spent(table, "deepatlas", "reg", own) == 10 + 20
    assert spent(table, "semi_seg", "seg", own) == 1 + 2
    assert spent(table, "seg_control", "seg", own) == 1 + 7
    assert spent(table, "seg_full", "seg", own) == 9
    table = regimes(1, "trained")
    assert spent(table, "deepatlas", "seg", own) == 100 + 2
    assert spent(table, "deepatlas", "reg", own) == 10 + 20
    assert spent(table, "semi_seg", "seg", own) == 100 + 2
    assert spent(regimes(1, "none"), "deepatlas", "seg", own) == 2


def test_joint_training_starts_where_it_is_told():
    baselines = {"seg": "seg_baseline", "reg": "reg_baseline"}
    starts = {start: regimes(5, start)["deepatlas"].start for start in ("trained", "none")}
    assert starts == {"trained": baselines, "none": {}}


def test_a_regime_and_all_that_it_needs():
    many, one = regimes(5, "trained"), regimes(1, "trained")
    assert list(needed(many, "semi_reg")) == ["seg_baseline", "reg_baseline", "semi_reg"]
    assert list(needed(one, "semi_reg")) == ["reg_baseline", "semi_first", "semi_reg"]
    with pytest.raises(
        ValueError, match="no regime semi in this experiment: choose from seg_baseline"
    ):
        needed(one, "semi")


# --- the loop -------------------------------------------------------------------------------------


def trainer(settings, regime="deepatlas", nets=None, cohort=None):
    return training.Trainer(nets or networks(), cohort or disks(), REGIMES[regime], settings)


@pytest.mark.parametrize(
    "steps",
    [
        {"seg": 5, "reg": 5},
        {"seg": 30, "reg": 60},
        {"seg": 7, "reg": 140},
        {"seg": 100, "reg": 3},
        {"seg": 1, "reg": 1},
        {"seg": 13, "reg": 31},
    ],
)
def test_turns_are_exact_and_evenly_spread(steps):
    loop, total = trainer(Settings(steps)), sum(steps.values())
    for step in range(1, total + 1):
        assert not loop.finished
        loop.turns[loop.next_turn()] += 1
        assert all(abs(loop.turns[name] - step * steps[name] / total) < 0.51 for name in steps)
    assert loop.finished and loop.turns == steps


def test_the_rate_warms_up_and_falls_along_a_cosine(tmp_path):
    settings = Settings({"seg": 100}, learning_rates={"seg": 0.01})
    loop, rates = trainer(settings, "seg_baseline"), []
    for turn in range(100):
        loop.turns["seg"] = turn
        rates.append(loop._rate("seg"))
    assert (
        0 < rates[0] < 0.003
        and max(rates) == pytest.approx(0.01, rel=0.02)
        and rates.index(max(rates)) <= 5
    )
    assert rates[6:] == sorted(rates[6:], reverse=True)
    for turn in (25, 50, 75):
        assert rates[turn] == pytest.approx(0.01 * math.cos(math.pi * turn / 200) ** 2)
    assert rates[-1] < 1e-5


def test_the_optimiser_uses_the_rate_of_the_history():
    """Adam's first step moves every weight whose gradient is not tiny by the learning rate."""
    nets = networks()
    head, before = nets["seg"].head.weight, nets["seg"].head.weight.detach().clone()
    row = trainer(
        Settings({"seg": 10}, learning_rates={"seg": 0.01}), "seg_baseline", nets
    ).take_turn()
    torch.testing.assert_close(
        (head - before).abs().median().item(), row["rate"], rtol=1e-3, atol=0
    )


def test_only_the_network_whose_turn_it_is_moves():
    nets = networks()
    loop = trainer(JOINT, nets=nets)
    for _ in range(6):
        before = {
            name: [p.detach().clone() for p in net.parameters()] for name, net in nets.items()
        }
        turn = loop.take_turn()["turn"]
        for name, net in nets.items():
            moved = any(
                not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True)
            )
            assert moved == (name == turn)


def test_each_network_has_its_own_number_of_pairs(monkeypatch):
    drawn = []

    def draw(cases, generator):
        drawn.append(cases)
        return draw_pair(cases, generator)

    monkeypatch.setattr("deepatlas.training.draw_pair", draw)
    for settings, wanted in (
        (JOINT, {"seg": 2, "reg": 2}),
        (replace(JOINT, seg_batch_size=1), {"seg": 1, "reg": 2}),
    ):
        loop = trainer(settings)
        for _ in range(4):
            drawn.clear()
            turn = loop.take_turn()["turn"]
            assert len(drawn) == wanted[turn]


def test_a_teacher_is_the_running_average_of_the_network_that_is_consulted():
    nets = networks()
    loop = trainer(replace(JOINT, teacher=0.9), nets=nets)
    mean = None
    for _ in range(6):
        if loop.take_turn()["turn"] == "seg":
            now = nets["seg"].head.weight.detach()
            mean = now.clone() if mean is None else 0.9 * mean + 0.1 * now
    teacher = loop.teachers["seg"]
    torch.testing.assert_close(teacher.head.weight, mean)
    assert not torch.equal(mean, nets["seg"].head.weight)
    seen = []
    teacher.register_forward_hook(lambda *call: seen.append(True))
    while loop.next_turn() != "reg":
        loop.take_turn()
    loop.take_turn()
    assert seen and not teacher.training


@pytest.mark.parametrize("turn", ["seg", "reg"])
def test_batch_norm_of_a_consulted_network_stops_learning(turn):
    nets = dict(zip(("seg", "reg"), tiny(norm=True), strict=True))
    before = {name: [b.clone() for b in net.buffers()] for name, net in nets.items()}
    trainer(Settings({turn: 3}), f"semi_{turn}", nets).take_turn()
    for name, net in nets.items():
        moved = any(not torch.equal(a, b) for a, b in zip(before[name], net.buffers(), strict=True))
        assert moved == (name == turn)


@pytest.mark.parametrize(
    "regime", ["seg_baseline", "reg_baseline", "semi_seg", "semi_reg", "deepatlas"]
)
def test_every_row_of_the_history_names_its_terms(regime, tmp_path):
    steps = {name: JOINT.steps[name] for name in REGIMES[regime].trains}
    history = train(networks(), disks(), REGIMES[regime], replace(JOINT, steps=steps), tmp_path)
    assert [row["step"] for row in history] == list(range(1, sum(steps.values()) + 1))
    for row in history:
        assert {"step", "turn", "rate", "seconds", *NAMES[row["turn"]]} <= row.keys()
        assert all(math.isfinite(row[name]) for name in NAMES[row["turn"]])
    assert {name: sum(row["turn"] == name for row in history) for name in steps} == steps
    assert [row["seconds"] for row in history] == sorted(row["seconds"] for row in history)


def test_no_usable_pair_is_explained(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"Baseline: no pair among 3 training scans, 0 of them labelled, "
        r"can teach the network 'seg': label more",
    ):
        train(networks(), disks(0, 3), REGIMES["seg_baseline"], Settings({"seg": 2}), tmp_path)
    assert not any(tmp_path.iterdir())


def test_mixed_precision_is_for_the_networks_alone(tmp_path):
    nets, seen = networks(), []
    nets["seg"].head.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    history = train(
        nets, disks(), REGIMES["deepatlas"], replace(JOINT, mixed_precision=True), tmp_path
    )
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for net in nets.values() for p in net.parameters())
    exact = train(networks(), disks(), REGIMES["deepatlas"], JOINT, tmp_path / "exact")
    for row, other in zip(history, exact, strict=True):
        assert all(row[name] == pytest.approx(other[name], abs=0.05) for name in NAMES[row["turn"]])


# --- which weights are kept -----------------------------------------------------------------------


def copy_of(nets):
    return {
        name: {key: value.clone() for key, value in net.state_dict().items()}
        for name, net in nets.items()
    }


def kept_scores(tmp_path, seg, reg=(0, 1, 2, 3), **settings):
    """Validation number (0: before the first step) whose weights each network is left with, for
    these scores.
    """
    nets, seen = networks(), []
    begins = 1 if settings else 0  # of "last" nobody asks before the first step

    def validate(asked):
        assert asked == nets
        seen.append(copy_of(nets))
        number = begins + len(seen) - 1
        scores = {"seg": seg[number], "reg": reg[number]}
        return {name: score for name, score in scores.items() if score is not None}

    settings = replace(JOINT, **settings)
    history = train(nets, disks(), REGIMES["deepatlas"], settings, tmp_path, validate)
    assert len(seen) == 4 - begins
    rows = [row for row in history if "validation_seg" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    for name, scores in (("seg", seg), ("reg", reg)):
        wanted = [math.nan if score is None else score for score in scores]
        for column in (f"validation_{name}", f"teacher_{name}"):  # its own teacher
            found = [row[column] for row in rows]
            assert found == pytest.approx(wanted[1:], nan_ok=True)
    kept = {
        name: [
            begins + i
            for i, state in enumerate(seen)
            if all(torch.equal(v, net.state_dict()[k]) for k, v in state[name].items())
        ]
        for name, net in nets.items()
    }
    for name, scores in (("seg", seg), ("reg", reg)):
        wanted = math.nan if scores[kept[name][0]] is None else scores[kept[name][0]]
        assert rows[-1][f"kept_{name}"] == pytest.approx(wanted, nan_ok=True)
    return kept


def test_each_network_is_left_at_its_best_validation_score(tmp_path):
    assert kept_scores(tmp_path, seg=(0.2, 0.1, 0.9, 0.5), reg=(0.1, 0.7, 0.6, 0.5)) == {
        "seg": [2],
        "reg": [1],
    }


def test_a_network_that_training_on_makes_worse_stays_where_it_started(tmp_path):
    assert kept_scores(tmp_path, seg=(0.6, 0.1, 0.5, 0.4), reg=(0.6, 0.7, 0.6, 0.5)) == {
        "seg": [0],
        "reg": [1],
    }


def test_without_scores_the_last_weights_are_kept(tmp_path):
    assert kept_scores(tmp_path, seg=(None, None, None, None)) == {"seg": [3], "reg": [3]}


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0, math.nan, 0.5, 0.4), 2),
        ((0, 0.5, math.nan, 0.4), 1),
        ((0, 0.5, 0.4, math.nan), 1),
        ((0, 0.5, math.nan, 0.6), 3),
    ],
)
def test_a_score_that_is_nan_beats_no_number(tmp_path, scores, kept):
    assert kept_scores(tmp_path, seg=scores)["seg"] == [kept]


def test_of_equal_scores_the_first_is_kept(tmp_path):
    assert kept_scores(tmp_path, seg=(0.1, 0.5, 0.5, 0.5))["seg"] == [1]


@pytest.mark.parametrize("seg", [(0.9, 0.8, 0.7, 0.1), (0.9, 0.5, 0.4, math.nan), (None,) * 4])
def test_the_last_weights_are_kept_where_that_was_asked(tmp_path, seg):
    assert kept_scores(tmp_path, seg=seg, keep="last") == {"seg": [3], "reg": [3]}


def test_by_the_last_weights_nothing_depends_on_validation(tmp_path):
    found = {}
    for name, validate in (("scored", score), ("not", None)):
        nets = networks()
        settings = replace(JOINT, keep="last")
        history = train(nets, disks(), REGIMES["deepatlas"], settings, tmp_path / name, validate)
        state = checkpoints.read_checkpoint(tmp_path / name / "checkpoint.pt")
        losses = [[row[term] for term in TERMS if term in row] for row in history]
        found[name] = (losses, copy_of(nets), {key: dict(w) for key, w in state["best"].items()})
    assert_same(found["scored"], found["not"])
    _, weights, best = found["not"]
    assert_same(weights, best)


def test_other_weights_than_the_best_or_the_last_are_refused():
    with pytest.raises(ValueError, match="keep must be one of best, last, got 'latest'"):
        Settings({"seg": 1}, keep="latest")


@pytest.mark.parametrize(
    ("regime", "may_stay"),
    [
        (REGIMES["seg_baseline"], ()),
        (REGIMES["seg_full"], ()),
        (REGIMES["semi_first"], ()),  # it asks a network that was trained, and starts anew
        (REGIMES["seg_control"], ("seg",)),  # it asks nobody
        (REGIMES["reg_control"], ("reg",)),
        (REGIMES["semi_seg"], ("seg",)),
        (REGIMES["deepatlas"], ("seg", "reg")),
        (replace(REGIMES["deepatlas"], start={"reg": "reg_baseline"}), ("reg",)),
        (regimes(2, "none")["deepatlas"], ()),
    ],
)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_only_what_starts_from_trained_weights_may_keep_them(tmp_path, regime, may_stay, keep):
    nets, asked = networks(), []
    start = copy_of(nets)

    def validate(networks):
        asked.append(tuple(networks))
        first = len(asked) == 1
        return dict.fromkeys(networks, 0.9 if first else 0.1)

    steps = {name: JOINT.steps[name] for name in regime.trains}
    settings = replace(JOINT, steps=steps, keep=keep)
    train(nets, disks(), regime, settings, tmp_path, validate)
    stayed = []
    for name in regime.trains:
        weights = nets[name].state_dict().items()
        if all(torch.equal(weight, start[name][key]) for key, weight in weights):
            stayed.append(name)
    if keep == "best" and may_stay:
        assert asked[0] == tuple(stayed) == may_stay
    else:
        assert stayed == [] and asked[0] == regime.trains


# --- how good the teacher is ----------------------------------------------------------------------


def asking(asked):
    """``score`` that writes down which networks it was asked for."""

    def validate(networks):
        asked.append(tuple(networks.values()))
        return score(networks)

    return validate


def test_a_teacher_that_is_an_average_is_scored_as_that():
    loop, asked = trainer(replace(JOINT, teacher=0.5)), []
    for _ in range(9):
        loop.take_turn()
    loop.validate(asking(asked))
    row = loop.history[-1]
    assert asked == [tuple(loop.networks.values()), *[(net,) for net in loop.consulted().values()]]
    for name, network in loop.teachers.items():
        assert row[f"teacher_{name}"] == score({name: network})[name]
        assert row[f"validation_{name}"] == score(loop.networks)[name] != row[f"teacher_{name}"]


def test_a_teacher_that_is_the_network_itself_is_scored_with_it():
    loop, asked = trainer(JOINT), []
    loop.take_turn()
    loop.validate(asking(asked))
    row = loop.history[-1]
    assert asked == [tuple(loop.networks.values())]
    assert row["teacher_seg"] == row["validation_seg"] != row["validation_reg"]
    assert row["teacher_reg"] == row["validation_reg"]


@pytest.mark.parametrize(("turn", "other"), [("seg", "reg"), ("reg", "seg")])
def test_a_fixed_teacher_is_scored_once(tmp_path, turn, other):
    """Also where the training was stopped at each step."""
    nets, asked = networks(), []
    settings = replace(JOINT, steps={turn: 8}, validations=4, teacher=0.5)
    arguments = (nets, disks(), REGIMES[f"semi_{turn}"], settings, tmp_path, asking(asked))
    wanted = score(nets)[other]
    for _ in range(7):
        with pytest.raises(OutOfTime):
            train(*arguments[:3], replace(settings, until=time.monotonic()), *arguments[4:])
    rows = [row for row in train(*arguments) if f"validation_{turn}" in row]
    assert asked.count((nets[other],)) == 1 and asked.count((nets[turn],)) == 5
    assert [row[f"teacher_{other}"] for row in rows] == [wanted] * 4
    assert not any(f"teacher_{turn}" in row for row in rows)


@pytest.mark.parametrize("regime", ["seg_baseline", "reg_control", "seg_full"])
def test_who_asks_nobody_has_no_teacher_to_score(tmp_path, regime):
    (name,) = REGIMES[regime].trains
    settings = replace(JOINT, steps={name: 3})
    history = train(networks(), disks(), REGIMES[regime], settings, tmp_path, score)
    assert f"kept_{name}" in history[-1]
    assert not any(column.startswith("teacher") for row in history for column in row)


def test_a_finished_regime_is_only_loaded(tmp_path, monkeypatch):
    first = networks()
    history = train(
        first, disks(), REGIMES["deepatlas"], JOINT, tmp_path, lambda _: {"seg": 0.5, "reg": 0.5}
    )
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(training.Trainer, "take_turn", lambda self: pytest.fail("trained again"))
    again = networks(seed=9)
    repeated = train(
        again,
        disks(),
        REGIMES["deepatlas"],
        JOINT,
        tmp_path,
        lambda _: pytest.fail("validated again"),
    )
    assert_same(repeated, history)
    assert_same(
        {k: v.state_dict() for k, v in again.items()}, {k: v.state_dict() for k, v in first.items()}
    )
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


# --- stopping and going on ------------------------------------------------------------------------


def assert_same(a, b):
    """Bit for bit, through dicts and lists."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_same(*pair)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b or (a != a and b != b)  # NaN


def score(networks):
    """A validation that depends on the weights: best somewhere in the middle."""
    return {
        name: float(next(net.parameters()).detach().double().sum().sin())
        for name, net in networks.items()
    }


def train_joint(folder, seed=0, regime="deepatlas", dropout=0.0, **limits):
    """The final weights and the whole checkpoint, without times."""
    nets = networks(seed)
    if dropout:
        nets["seg"].head = nn.Sequential(nn.Dropout(dropout), nets["seg"].head)
    steps = {name: JOINT.steps[name] for name in REGIMES[regime].trains}
    settings = replace(JOINT, steps=steps, **limits)
    history = train(nets, disks(), REGIMES[regime], settings, folder, score)
    state = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
    assert_same(state["history"], history)
    for row in [state, *state["history"]]:
        row.pop("seconds")
    return {
        "final": {name: dict(nets[name].state_dict()) for name in REGIMES[regime].trains},
        **state,
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train_joint(tmp_path_factory.mktemp("uninterrupted"))


def calls(monkeypatch, owner, name, act, at):
    """Let the ``at``-th call of ``owner.name`` (from 1) do ``act()`` first; 0: every call."""
    original, count = getattr(owner, name), iter(range(1, 10**6))

    def wrapped(*args, **kwargs):
        if next(count) == at or at == 0:
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def fail():
    raise RuntimeError("power cut")


def send(number):
    return lambda: os.kill(os.getpid(), number)


def test_training_is_repeatable(uninterrupted, tmp_path):
    assert_same(train_joint(tmp_path), uninterrupted)


@pytest.mark.parametrize("step", [2, 5, 8, 9, 12])
def test_after_a_crash_training_goes_on_from_the_last_checkpoint(
    uninterrupted, tmp_path, monkeypatch, step
):
    with monkeypatch.context() as patch:
        calls(patch, training, "draw_pair", fail, 2 * step - 1)  # two pairs a step
        with pytest.raises(RuntimeError, match="power cut"):
            train_joint(tmp_path)
    assert (tmp_path / "checkpoint.pt").exists() == (step > 4)
    # other weights: all are loaded
    assert_same(train_joint(tmp_path, seed=9 if step > 4 else 0), uninterrupted)


STOPPING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_a_signal_stops_after_the_step_and_training_goes_on(
    uninterrupted, tmp_path, monkeypatch, number, step
):
    with monkeypatch.context() as patch:
        calls(patch, training, "draw_pair", send(number), 2 * step)
        with pytest.raises(
            Interrupted,
            match=rf"DeepAtlas stopped at step {step} of 12; saved in .*checkpoint.pt, and "
            "the same command goes on from there",
        ):
            train_joint(tmp_path)
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]) == step
    assert_same(train_joint(tmp_path, seed=9), uninterrupted)


def test_a_signal_during_validation_waits_for_its_end(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls(patch, training.Trainer, "validate", send(signal.SIGINT), 2)
        with pytest.raises(KeyboardInterrupt, match="step 8 of 12"):
            train_joint(tmp_path)
    assert_same(train_joint(tmp_path, seed=9), uninterrupted)


def test_stopped_at_every_single_step_it_still_ends_with_the_same_bits(
    uninterrupted, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        calls(patch, training.Trainer, "take_turn", send(signal.SIGTERM), 0)
        for _ in range(12):
            with pytest.raises(Interrupted):
                train_joint(tmp_path)
    assert_same(train_joint(tmp_path, seed=9), uninterrupted)


@pytest.mark.parametrize("regime", ["reg_baseline", "semi_seg"])
def test_a_regime_of_one_network_goes_on_too(tmp_path, monkeypatch, regime):
    whole = train_joint(tmp_path / "whole", regime=regime)
    with monkeypatch.context() as patch:
        calls(patch, training, "draw_pair", send(signal.SIGINT), 5)
        with pytest.raises(Interrupted):
            train_joint(tmp_path / "parts", regime=regime)
    assert_same(train_joint(tmp_path / "parts", regime=regime), whole)


def test_a_network_with_dropout_goes_on_too(tmp_path, monkeypatch):
    whole = train_joint(tmp_path / "whole", dropout=0.5)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        calls(patch, training, "draw_pair", send(signal.SIGINT), 14)
        train_joint(tmp_path / "parts", dropout=0.5)
    assert_same(train_joint(tmp_path / "parts", seed=9, dropout=0.5), whole)


@pytest.mark.parametrize("more", [{"keep": "last"}, {"teacher": 0.5}])
def test_by_the_last_weights_or_with_a_slow_teacher_it_goes_on_too(tmp_path, more):
    whole = train_joint(tmp_path / "whole", **more)
    for step in range(1, 12):
        with pytest.raises(OutOfTime):
            seed = 9 if step > 1 else 0
            train_joint(tmp_path / "parts", seed, until=time.monotonic(), **more)
    assert_same(train_joint(tmp_path / "parts", seed=9, **more), whole)


def test_out_of_time_at_every_step_it_still_ends_with_the_same_bits(uninterrupted, tmp_path):
    """A time that is over before the first step: each call takes one, so that all end."""
    for step in range(1, 12):
        with pytest.raises(
            OutOfTime,
            match=rf"DeepAtlas: its time was over at step {step} of 12; saved in .*checkpoint.pt, "
            "and the same command goes on from there",
        ):
            train_joint(tmp_path, seed=9 if step > 1 else 0, until=time.monotonic())
    assert_same(train_joint(tmp_path, seed=9, until=time.monotonic()), uninterrupted)


def test_with_time_enough_a_training_ends(uninterrupted, tmp_path, capfd):
    assert_same(train_joint(tmp_path, until=time.monotonic() + 3600, quiet=True), uninterrupted)
    assert capfd.readouterr() == ("", "")


def test_of_a_finished_training_only_what_it_found_is_kept(uninterrupted, tmp_path):
    unfinished = {"networks", "teachers", "optimisers", "generator", "dropout", "dropout_on_gpu"}
    found = {"final", "turns", "best", "best_score", "history", "of"}
    assert uninterrupted.keys() == found
    with pytest.raises(OutOfTime):
        train_joint(tmp_path, until=time.monotonic())
    state = checkpoints.read_checkpoint(tmp_path / "checkpoint.pt")
    assert state.keys() == found - {"final"} | unfinished | {"parts", "seconds"}


def test_training_goes_on_with_another_number_of_threads(uninterrupted, tmp_path):
    """Not with the same bits: the sums are others."""
    with pytest.raises(OutOfTime):
        train_joint(tmp_path, until=time.monotonic())
    torch.set_num_threads(2)
    try:
        final = train_joint(tmp_path, seed=9)["final"]
    finally:
        torch.set_num_threads(1)
    for name, state in uninterrupted["final"].items():
        for key, value in state.items():
            torch.testing.assert_close(final[name][key], value, rtol=0, atol=1e-2)


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
def test_what_was_begun_elsewhere_goes_on_where_the_networks_are():
    """From the CPU to a device that is only pretended: Adam's means go there, its count does not,
    which would be asked for at each step.
    """
    begun = trainer(JOINT)
    for _ in range(3):
        begun.take_turn()
    nets = {name: net.to("meta") for name, net in networks(seed=9).items()}
    there = trainer(JOINT, nets=nets)
    there.load(begun.state(), Path("checkpoint.pt"))
    assert there.step == 3 and there.turns == begun.turns
    for optimiser in there.optimisers.values():
        for known in optimiser.state.values():
            assert known["step"].device.type == "cpu"
            assert known["exp_avg"].device.type == known["exp_avg_sq"].device.type == "meta"


def test_whether_adam_is_fused_is_the_devices_affair_not_the_files():
    begun = trainer(JOINT)
    turn = begun.take_turn()["turn"]
    state = begun.state()
    for saved in state["optimisers"].values():
        saved["param_groups"][0]["fused"] = True  # as on a GPU of CUDA
    here = trainer(JOINT)
    here.load(state, Path("checkpoint.pt"))
    assert here.optimisers[turn].param_groups[0]["fused"] is None
    for _ in range(2):  # the other network's turn, too
        here.take_turn()
    assert state["optimisers"][turn]["param_groups"][0]["fused"] is True  # what was given stays


def test_random_numbers_of_a_gpu_are_kept(monkeypatch):
    """Of dropout; those of the pairs are the CPU's everywhere."""
    numbers, restored = torch.arange(16, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: numbers)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: restored.append(given))
    loop, gpu = trainer(JOINT), torch.device("cuda")
    loop.take_turn()
    assert loop.state()["dropout_on_gpu"] is None
    loop.device = gpu
    state = loop.state()
    loop.load(state, Path("checkpoint.pt"))
    assert restored == [(numbers, gpu)]
    loop.load({**state, "dropout_on_gpu": None}, Path("checkpoint.pt"))  # begun on a CPU
    trainer(JOINT).load(state, Path("checkpoint.pt"))  # gone on with there
    assert len(restored) == 1


@pytest.mark.parametrize("number", STOPPING)
def test_signal_handlers_are_restored(tmp_path, monkeypatch, number):
    handlers = [signal.getsignal(n) for n in STOPPING]
    for act, error in ((send(number), Interrupted), (fail, RuntimeError)):
        with monkeypatch.context() as patch, pytest.raises(error):
            calls(patch, training, "draw_pair", act, 3)
            train_joint(tmp_path)
        assert [signal.getsignal(n) for n in STOPPING] == handlers
    train_joint(tmp_path)
    assert [signal.getsignal(n) for n in STOPPING] == handlers


def test_training_works_in_a_thread(uninterrupted, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train_joint(tmp_path)))
    thread.start()
    thread.join(60)
    assert_same(results, [uninterrupted])


def train_slowly(folder, threads):
    """What the process below runs: ``train_joint``, telling of each validation and waiting a
    little.
    """
    torch.set_num_threads(int(threads))
    keep = training.Trainer.keep

    def slow(self, scores, names):
        print("validated", flush=True)
        time.sleep(0.4)
        keep(self, scores, names)

    training.Trainer.keep = slow
    train_joint(folder)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_a_process_that_is_killed_loses_only_what_came_after_its_checkpoint(
    uninterrupted, tmp_path, name
):
    code = "import sys, test_training; test_training.train_slowly(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(torch.get_num_threads())],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(3):
        assert process.stdout.readline() == "validated\n"
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    rows = len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"])
    if name == "SIGKILL":
        assert rows in (4, 8)
    else:
        assert rows == 8 and "DeepAtlas stopped at step 8 of 12" in errors
    assert_same(train_joint(tmp_path, seed=9), uninterrupted)


@pytest.mark.parametrize("damage", [b"", b"half of a file", None])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    uninterrupted, tmp_path, monkeypatch, capsys, damage
):
    path = tmp_path / "checkpoint.pt"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        calls(patch, training.Trainer, "take_turn", fail, 11)  # it has saved after 4 turns and 8
        train_joint(tmp_path)
    before = path.with_name("checkpoint.before.pt")
    rows = [len(checkpoints.read_checkpoint(file)["history"]) for file in (before, path)]
    assert rows == [4, 8]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert_same(train_joint(tmp_path), uninterrupted)
    assert f"{path}: was damaged; it goes on from the checkpoint" in capsys.readouterr().out
    assert not before.exists()


def test_two_damaged_checkpoints_are_told_by_the_last_one(tmp_path):
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"/checkpoint.pt: cannot be read.*: remove it"):
        checkpoints.last_checkpoint(tmp_path / "checkpoint.pt")


# --- files and numbers that go wrong --------------------------------------------------------------


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "checkpoint.pt"
    checkpoints.write_atomically(path, lambda file: torch.save({"step": 1}, file))

    def half_a_file(state, where):
        Path(where).write_bytes(b"half")
        fail()

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(torch, "save", half_a_file)
        checkpoints.write_atomically(path, lambda file: torch.save({"step": 2}, file))
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]
    checkpoints.write_atomically(path, lambda file: torch.save({"step": 3}, file))
    assert torch.load(path, weights_only=True) == {"step": 3}


@pytest.mark.parametrize(
    "owner, name, error",
    [
        (Path, "read_bytes", PermissionError(13, "Permission denied")),
        (torch, "load", torch.OutOfMemoryError("CUDA")),
    ],
)
def test_a_checkpoint_that_cannot_be_read_here_is_not_called_damaged(
    tmp_path, monkeypatch, owner, name, error
):
    def unable(*_, **__):
        raise error

    checkpoints.write_tensors({"step": 1}, tmp_path / "checkpoint.pt")
    monkeypatch.setattr(owner, name, unable)
    with pytest.raises(type(error)):
        checkpoints.read_checkpoint(tmp_path / "checkpoint.pt")


def test_two_processes_that_save_at_once_do_not_mix(tmp_path, monkeypatch):
    path = tmp_path / "run.json"

    def slowly(file):
        file.write_text("mine, ")
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: -1)
            checkpoints.write_atomically(path, lambda other: other.write_text("another's, whole"))
        with file.open("a") as rest:
            rest.write("whole")

    checkpoints.write_atomically(path, slowly)
    assert path.read_text() == "mine, whole"


def poisoned(cohort):
    return replace(
        cohort,
        train=tuple(replace(s, image=torch.full_like(s.image, math.nan)) for s in cohort.train),
    )


def test_a_loss_that_is_not_finite_names_term_step_and_scans(tmp_path, monkeypatch):
    monkeypatch.setitem(SIMILARITIES, "ncc", lambda a, b: math.inf * (a - b).square().mean())
    with pytest.raises(
        FloatingPointError,
        match=r"Baseline, step 1 \(turn of reg\): the term similarity "
        r"is inf for s\d -> s\d, s\d -> s\d: look at these scans, or lower",
    ):
        train(
            networks(),
            disks(),
            REGIMES["reg_baseline"],
            Settings({"reg": 4}, batch_size=2),
            tmp_path,
        )
    assert not any(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_overwrites_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        calls(patch, training, "draw_pair", send(signal.SIGTERM), 10)
        train_joint(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    nets = networks(seed=9)
    with pytest.raises(
        FloatingPointError, match=r"DeepAtlas, step 6 \(turn of \w+\): the term .* is nan for"
    ):
        train(nets, poisoned(disks()), REGIMES["deepatlas"], JOINT, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["networks"]
    assert_same(
        {name: dict(net.state_dict()) for name, net in nets.items()},
        {name: dict(state) for name, state in saved.items()},
    )


# --- it learns ------------------------------------------------------------------------------------


def mean_of(history, term, turn):
    """Of the first and of the last ten turns."""
    values = [row[term] for row in history if row["turn"] == turn]
    return sum(values[:10]) / 10, sum(values[-10:]) / 10


def learn(tmp_path, nets, regime, steps, cohort=None, **options):
    settings = Settings(steps, learning_rates={"seg": 1e-2, "reg": 1e-2}, batch_size=4, **options)
    return train(nets, cohort or disks(side=24), REGIMES[regime], settings, tmp_path)


def test_sixty_steps_of_the_baseline_learn_to_segment(tmp_path):
    nets = networks()
    before, after = mean_of(learn(tmp_path, nets, "seg_baseline", {"seg": 60}), "supervised", "seg")
    assert before > 0.3 and after < before / 3
    held_out = scan(100, side=24)
    dice = dice_loss(
        guess(nets["seg"].eval(), Batch.of([held_out], 3)), Batch.of([held_out], 3).one_hot
    )
    assert dice < 0.25


def test_sixty_steps_of_the_baseline_learn_to_register(tmp_path):
    nets = networks()
    cohort = disks(0, 6, side=24)  # unsupervised
    history = learn(
        tmp_path, nets, "reg_baseline", {"reg": 60}, cohort, weights=Weights(regularity=0.1)
    )
    before, after = mean_of(history, "similarity", "reg")
    assert after < 0.6 * before
    moving, fixed = (Batch.of([s], 3) for s in cohort.validation)
    with torch.no_grad():
        phi = register(nets["reg"].eval(), moving.image, fixed.image)
    assert dice_loss(phi.warp(moving.one_hot), fixed.one_hot) < 0.8 * dice_loss(
        moving.one_hot, fixed.one_hot
    )


class TwoImages(nn.Module):
    """Any network of two channels as a registration network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, moving, fixed):
        return self.net(torch.cat([moving, fixed], 1))


def test_networks_of_another_library_can_be_trained(tmp_path):
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    seg_net, reg_net = (
        UNet(
            spatial_dims=2,
            in_channels=inputs,
            out_channels=outputs,
            channels=(16, 32),
            strides=(2,),
        )
        for inputs, outputs in ((1, 3), (2, 2))
    )
    history = learn(
        tmp_path, {"seg": seg_net, "reg": TwoImages(reg_net)}, "deepatlas", {"seg": 20, "reg": 20}
    )
    for turn, term in (("seg", "supervised"), ("seg", "anatomy"), ("reg", "anatomy")):
        before, after = mean_of(history, term, turn)
        assert after < 0.8 * before, (turn, term, before, after)


def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(tmp_path):
    nets = networks()
    before = {name: value.clone() for name, value in nets["seg"].state_dict().items()}
    next(nets["seg"].parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"Baseline, step 1 \(turn of seg\): the gradient is nan for"
    ):
        train(nets, disks(), REGIMES["seg_baseline"], Settings({"seg": 2}), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in nets["seg"].state_dict().items())


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    train(networks(), disks(), REGIMES["seg_baseline"], Settings({"seg": 1}), tmp_path)
    with pytest.raises(
        UserError,
        match=r"pt: is of another training than .*: settings differ; remove it",
    ):
        train(networks(), disks(), REGIMES["seg_baseline"], Settings({"seg": 2}), tmp_path)


def of_another_file(cohort):
    """The same scans, as read from files with another content."""
    source = Source("a.nii.gz", (16, 16, 1), torch.eye(4, dtype=torch.float64), digest="other")
    return replace(cohort, train=tuple(replace(scan, source=source) for scan in cohort.train))


@pytest.mark.parametrize(
    "other",
    [
        disks(labelled=2, unlabelled=3).hide_labels(1, seed=1),
        disks(labelled=2, unlabelled=4).hide_labels(1, seed=0),
        of_another_file(disks(labelled=2, unlabelled=3).hide_labels(1, seed=0)),
    ],
    ids=["other labels are seen", "another scan", "another content of the files"],
)
def test_a_checkpoint_of_other_data_is_refused(tmp_path, other):
    cohort = disks(labelled=2, unlabelled=3).hide_labels(1, seed=0)
    assert {scan.id for scan in cohort.labelled} != {scan.id for scan in disks(2).labelled}
    train(networks(), cohort, REGIMES["deepatlas"], JOINT, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=r"checkpoint.pt: is of another training .* data differ"):
        train(networks(), other, REGIMES["deepatlas"], JOINT, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    train(networks(), cohort, REGIMES["deepatlas"], JOINT, tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    first, other = (replace(JOINT, run=name) for name in ("run-1", "run-2"))
    train(networks(), disks(), REGIMES["deepatlas"], first, tmp_path)
    with pytest.raises(UserError, match=r"is of another training .*: run and settings differ"):
        train(networks(), disks(), REGIMES["deepatlas"], other, tmp_path)


def test_weights_of_another_number_of_structures_are_told(tmp_path):
    train(networks(), disks(), REGIMES["deepatlas"], JOINT, tmp_path)
    nets = networks()
    nets["seg"].head = nn.Conv2d(4, 4, 1)
    with pytest.raises(
        UserError, match=r"checkpoint.pt: its weights are not those .* \(size mismatch for head"
    ):
        train(nets, disks(), REGIMES["deepatlas"], JOINT, tmp_path)


def test_steps_must_be_positive(tmp_path):
    with pytest.raises(
        ValueError, match=r"DeepAtlas: steps must be at least 1 for each of seg, reg, got {'seg': 0"
    ):
        train(networks(), disks(), REGIMES["deepatlas"], Settings({"seg": 0, "reg": 1}), tmp_path)


def test_two_networks_that_do_not_consult_each_other_have_no_teacher(tmp_path):
    """Not even as an average of the past: two baselines that take turns."""
    alone = Regime("Alone", ("seg", "reg"), consults=False)
    settings = Settings({"seg": 2, "reg": 2}, teacher=0.9)
    history = train(networks(), disks().hide_labels(1), alone, settings, tmp_path)
    assert [row["anatomy"] for row in history] == [0.0] * 4
