"""What the method must achieve, over three seeds: minutes, not seconds. Tolerances were set before the runs."""

import pandas as pd
import pytest

from deepatlas import evidence, experiments

pytestmark = pytest.mark.timeout(3600)  # the first test waits for all trainings: ten minutes on two cores


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """The rows that tutorials_data/results/short.toml leaves: one per arm and seed."""
    root = tmp_path_factory.mktemp("learning")
    todo = evidence.read_sweep(evidence.RESULTS / "short.toml")
    return evidence.collect([experiments.run(experiment, root) for experiment in todo], root / "results")[0]


@pytest.fixture(scope="module")
def dice(arms):
    """Mean test Dice in percent, {(task, regime): one number for each seed}."""
    return {key: rows.sort_values("seed")["Dice %"].to_numpy() for key, rows in arms.groupby(["task", "regime"])}


def gain(dice, task, better, worse):
    return dice[task, better] - dice[task, worse]


@pytest.mark.learning
def test_registration_learns_without_labels(dice):
    assert (gain(dice, "registration", "reg_baseline", "identity") > 3).all()


@pytest.mark.learning
def test_joint_registration_beats_separate_registration(dice):
    assert gain(dice, "registration", "deepatlas", "reg_baseline").mean() > 0.5


@pytest.mark.learning
def test_segmentation_taught_by_registration_beats_one_label_alone(dice):
    assert gain(dice, "segmentation", "semi_seg", "seg_baseline").mean() > 1


@pytest.mark.learning
def test_all_labels_are_worth_no_less_than_one(dice):
    """So short a training does not yet show more: see tutorials_data/results for the distance at class size."""
    assert gain(dice, "segmentation", "seg_full", "seg_control").mean() > -1.5


@pytest.mark.learning
def test_committed_rows_can_be_had_again(arms):
    """Within the 1.5 points of PROTOCOL.md, in the mean over seeds, where a network took at least 200 steps (or none):
    what is stopped earlier still changes by points from step to step."""
    keys = ["dataset", "seed", "changed", "task", "regime"]
    committed = pd.read_csv(evidence.RESULTS / "arms.csv")
    both = arms.merge(committed, on=keys, suffixes=("", " committed"))
    assert len(both) == len(arms)
    both = both[(both["steps"] >= 200) | (both["steps"] == 0)]
    assert both["regime"].nunique() >= 8
    means = both.groupby(["task", "regime"])[["Dice %", "Dice % committed"]].mean()
    assert (means["Dice %"] - means["Dice % committed"]).abs().max() < 1.5, means.to_string()
