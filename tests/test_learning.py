"""What the method must achieve, over three seeds: minutes, not seconds. Tolerances were set before the runs."""

import numpy as np
import pytest

from deepatlas import evaluation, experiments, parameters, reporting

SHORT = {"dataset": "phantom-brain", "dims": 2, "device": "cpu", "seg_steps": 100, "reg_steps": 200, "joint_steps": 240}
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def dice(tmp_path_factory):
    """Mean test Dice in percent, {(task, regime): one number for each seed}."""
    root = tmp_path_factory.mktemp("learning")
    found: dict = {}
    for seed in SEEDS:
        scores = reporting.load_scores(experiments.run(parameters.parse({**SHORT, "seed": seed}), root))
        for key, arm in scores.groupby(["task", "regime"]):
            found.setdefault(key, []).append(100 * evaluation.per_subject(arm).mean())
    return {key: np.array(values) for key, values in found.items()}


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
def test_all_labels_are_the_ceiling_of_segmentation(dice):
    for regime in ("seg_baseline", "semi_seg", "deepatlas", "seg_control"):
        assert gain(dice, "segmentation", "seg_full", regime).mean() > 0
