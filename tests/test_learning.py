"""What the method must achieve, over three seeds: minutes, not seconds. Tolerances were set before
the runs.
"""

from functools import cache

from deepatlas import (
    datasets,
    evaluation,
    experiments,
    losses,
    models,
    networks,
    registration,
    sweeps,
    terms,
    training,
    weights,
)
from deepatlas.data import Batch
from deepatlas.places import RESULTS
from deepatlas.regimes import Regime

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

# The first test waits for all trainings: ten minutes on two cores. Their lines are counted by the
# tests of each module: to count them here would cost a sixth of the time.
pytestmark = [pytest.mark.timeout(3600), pytest.mark.no_cover]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that returns the rows which tutorials_data/results/short.toml leaves, one for each
    regime and seed. Whoever calls it first trains: lines of a fixture would be counted.
    """
    root = tmp_path_factory.mktemp("learning")

    @cache
    def collected():
        todo = sweeps.read_sweep(RESULTS / "short.toml")
        folders = [experiments.run(experiment, root) for experiment in todo]
        return sweeps.collect(folders, root / "results")[0]

    return collected


def gain(rows, task, better, worse):
    """Points of mean test Dice, of each seed."""
    dice = rows[rows["task"] == task].pivot(index="seed", columns="regime", values="Dice %")
    return dice[better] - dice[worse]


@pytest.mark.learning
def test_registration_learns_without_labels(trained):
    assert (gain(trained(), "registration", "reg_baseline", "identity") > 3).all()


@pytest.mark.learning
def test_joint_segmentation_beats_one_label_alone(trained):
    assert gain(trained(), "segmentation", "deepatlas", "seg_baseline").mean() > 1


@pytest.mark.learning
def test_joint_registration_is_not_misled_by_what_it_is_taught(trained):
    """With a loud anatomy term it was six points behind where the teacher was weak."""
    assert gain(trained(), "registration", "deepatlas", "reg_baseline").mean() > -1


@pytest.mark.learning
def test_segmentation_taught_by_registration_beats_one_label_alone(trained):
    assert gain(trained(), "segmentation", "semi_seg", "seg_baseline").mean() > 1


@pytest.mark.learning
def test_all_labels_are_worth_no_less_than_one(trained):
    """So short a training does not yet show more: see tutorials_data/results/first for the distance
    at class size.
    """
    assert gain(trained(), "segmentation", "seg_full", "seg_baseline").mean() > -1.5


# Points of Dice, in the mean over seeds. What PROTOCOL.md wants is asked of all regimes of a task
# together: one of them alone, semi_reg, has moved by 2.3 in a single run as short as these.
OF_A_TASK = 1.5
OF_A_REGIME = 3.0


@pytest.mark.learning
def test_committed_rows_can_be_had_again(trained):
    """They are committed from two machines. What took fewer than 200 steps is left out: it still
    changes by points from step to step.
    """
    rows = trained()
    keys = ["dataset", "seed", "task", "regime", "steps"]
    committed = pd.read_csv(RESULTS / "short" / "regimes.csv")
    (changed,) = rows["changed"].unique()
    of_both = [changed, changed.replace(" refine=0", "")]  # which trains the same networks
    both = rows.merge(
        committed[committed["changed"].isin(of_both)], on=keys, suffixes=("", " committed")
    )
    assert len(both) == 2 * len(rows), "the committed rows are of another method: run it again"
    both = both[(both["steps"] >= 200) | (both["steps"] == 0)]
    of_regimes = both.groupby(["task", "regime"])[["Dice %", "Dice % committed"]].mean()
    moved = of_regimes["Dice %"] - of_regimes["Dice % committed"]
    assert len(moved) == 11
    assert moved.abs().max() < OF_A_REGIME, moved.to_string()
    assert moved.groupby("task").mean().abs().max() < OF_A_TASK, moved.to_string()


# --- what the lessons say, of the networks that come with the project -----------------------------

SEEDS = (0, 1, 2)


@pytest.mark.learning
def test_folds_fall_as_regularity_rises():
    """Lesson 04: on every pair, and none are left at 5."""
    cohort = datasets.load_cohort("phantom-brain", dims=2)
    for moving, fixed in zip(cohort.test[:3], cohort.test[3:6], strict=True):
        folds = [
            evaluation.folding(
                registration.optimise_pair(
                    moving.image[None],
                    fixed.image[None],
                    similarity=losses.lncc,
                    regularity=weight,
                    rate=0.3,
                )
            )["folds_percent"]
            for weight in (0.0, 0.05, 0.5, 5.0)
        ]
        assert folds == sorted(folds, reverse=True) and folds[0] > 1 and folds[-1] == 0


@pytest.mark.learning
def test_linear_warping_flatters():
    """Lessons 02 and 07: the most probable of linearly warped labels scores higher than
    nearest-warped ones.
    """
    for seed in SEEDS:
        cohort = datasets.load_cohort("phantom-knee", dims=2, seed=seed)
        moving, fixed = cohort.test[:2]
        phi = cohort.truth(moving, fixed)
        linear = phi.warp(Batch.of([moving], len(cohort.structures)).one_hot)[0].argmax(0)
        nearest = phi.warp_labels(moving.labels[None])[0]
        dice = [
            np.nanmean(
                [
                    row["dice"]
                    for row in evaluation.score_labels(labels, fixed.labels, cohort.structures)
                ]
            )
            for labels in (linear, nearest)
        ]
        assert dice[0] > dice[1] + 0.002


def taught(seed, teach, steps=60):
    """Dice on four test scans of the segmentation network that comes with the project, after
    ``teach(nets, steps)``.
    """
    nets, _ = weights.load("phantom-brain")
    cohort = datasets.load_cohort("phantom-brain", dims=2)
    teach(nets, cohort, seed, steps)
    return evaluation.score_segmentation(models.segmenter(nets["seg"]), cohort, cohort.test[:4])[
        "dice"
    ].mean()


@pytest.mark.learning
def test_two_guesses_that_teach_each_other_agree_on_something_wrong(tmp_path):
    """Lesson 05: left to themselves they lose at least .05 of Dice; with a label on one side they
    do not.
    """

    def by(labelled, fourth_case):
        def teach(nets, cohort, seed, steps):
            settings = training.Settings(
                {"seg": steps},
                terms.Weights(anatomy=10.0),
                "lncc",
                {"seg": 4e-3},
                2,
                options={"fourth_case": fourth_case},
                seed=seed,
            )
            training.train(
                nets,
                cohort.hide_labels(labelled),
                Regime("guesses", ("seg",), consults=True),
                settings,
                tmp_path / f"{seed}-{labelled}",
            )

        return teach

    before = taught(0, lambda *_: None)
    for seed in SEEDS:
        assert taught(seed, by(0, True)) < before - 0.05
        assert taught(seed, by(1, False)) > before - 0.05


@pytest.mark.learning
def test_an_untrained_registration_teaches_worse_than_a_trained_one(tmp_path):
    """Lesson 05: by at least .01 of Dice."""

    def by(trained):
        def teach(nets, cohort, seed, steps):
            untrained = networks.RegistrationNet(2)
            untrained = models.Registration(untrained, velocity=True, passes=1)
            partner = nets["reg"] if trained else untrained
            settings = training.Settings(
                {"seg": steps},
                terms.Weights(anatomy=10.0, supervised=10.0),
                "lncc",
                {"seg": 4e-3},
                2,
                seed=seed,
            )
            training.train(
                {"seg": nets["seg"], "reg": partner},
                cohort.hide_labels(1),
                Regime("taught", ("seg",), consults=True),
                settings,
                tmp_path / f"{seed}-{trained}",
            )

        return teach

    for seed in SEEDS:
        assert taught(seed, by(True)) > taught(seed, by(False)) + 0.01


@pytest.mark.learning
def test_a_network_that_is_taught_by_itself_gets_worse():
    """Lesson 05: by at least .02 of Dice, while it agrees with itself: its loss stays below .2."""

    def itself(nets, cohort, seed, steps):
        net, draw = nets["seg"].train(), torch.Generator().manual_seed(seed)
        optimiser, lost = torch.optim.Adam(net.parameters(), 2e-3), []
        for _ in range(steps):
            scan = cohort.train[int(torch.randint(len(cohort.train), (), generator=draw))]
            guess = net(scan.image[None]).softmax(1)
            copied = F.one_hot(guess.argmax(1), guess.shape[1]).movedim(-1, 1).float()
            optimiser.zero_grad()
            loss = losses.soft_dice(guess, copied)
            loss.backward()
            optimiser.step()
            lost.append(loss.item())
        assert np.mean(lost[-10:]) < 0.2

    before = taught(0, lambda *_: None)
    assert all(taught(seed, itself) < before - 0.02 for seed in SEEDS)
