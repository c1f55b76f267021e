"""Tables of one run, from its folder alone."""

import json

from deepatlas import evaluation, reporting
from deepatlas.errors import UserError
from deepatlas.parameters import parse

import numpy as np
import pandas as pd
import pytest

LEVELS = {
    "segmentation": {
        "seg_baseline": 0.7,
        "semi_seg": 0.78,
        "deepatlas": 0.8,
        "seg_full": 0.9,
        "zebra": 0.5,
    },
    "registration": {"identity": 0.4, "reg_baseline": 0.6, "deepatlas": 0.75},
}


@pytest.fixture
def folder(tmp_path):
    """A finished run of twelve subjects; the regime "zebra" is in no table any more."""
    rng = np.random.default_rng(0)
    subjects = [f"p{i}" for i in range(12)]
    rows = []
    for task, levels in LEVELS.items():
        for regime, level in levels.items():
            for subject, dice in zip(subjects, rng.normal(level, 0.02, 12), strict=True):
                rows.append(
                    {
                        "task": task,
                        "regime": regime,
                        "case": subject,
                        "subject": subject,
                        "structure": "one",
                        "dice": dice,
                        "nsd": dice,
                        "hd95_mm": 2.0,
                        "folds_percent": 0.5 if task == "registration" else np.nan,
                        "endpoint_voxels": np.nan,
                    }
                )
    pd.DataFrame(rows).to_csv(tmp_path / "scores.csv", index=False)
    record = {
        "experiment": parse({"dims": 2}).model_dump(),
        "finished": True,
        "device": "cpu",
        "device_name": "x86_64",
        "mixed_precision": False,
        "threads": 1,
        "labelled_training_scans": 1,
        "labelled_validation_scans": 3,
        "training_scans": 24,
        "test_scans": 12,
        "shape": [64, 96],
        "spacing_mm": 1.0,
        "structures": ["background", "one"],
        "data": "0",
        "python": "3.11.4",
        "begun": "2026-11-25 12:00:00",
        "versions": {"torch": "2.6"},
        "steps": {"seg_baseline": {"seg": 3}, "semi_seg": {"seg": 5}},
        "seconds": {"seg_baseline": 1.5},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def of(folder, task, regime):
    scores = reporting.load_scores(folder)
    return evaluation.per_subject(scores[(scores["task"] == task) & (scores["regime"] == regime)])


def test_a_row_for_each_regime_by_title_or_by_key(folder):
    table = reporting.results_table(folder)
    assert table.index.tolist() == [
        ("segmentation", "Baseline"),
        ("segmentation", "Semi-DeepAtlas"),
        ("segmentation", "DeepAtlas"),
        ("segmentation", "Full supervision"),
        ("segmentation", "zebra"),
        ("registration", "No registration"),
        ("registration", "Baseline"),
        ("registration", "DeepAtlas"),
    ]
    keys = reporting.results_table(folder, titles=False).index.get_level_values("regime")
    assert keys.tolist() == [regime for levels in LEVELS.values() for regime in levels]
    assert table.loc[("segmentation", "Baseline"), ["steps", "seconds"]].tolist() == [3, 1.5]
    assert table.loc[("segmentation", "zebra"), "steps"] == 0
    dice = 100 * of(folder, "segmentation", "deepatlas")
    row = table.loc[("segmentation", "DeepAtlas")]
    assert row["Dice %"] == pytest.approx(dice.mean()) and row["SD"] == pytest.approx(dice.std())
    assert "zebra" in reporting.structure_table(folder, "segmentation")


def test_joint_training_is_compared_with_the_rivals_that_there_are(folder):
    table = reporting.comparison_table(folder)
    assert table[["task", "DeepAtlas minus"]].to_numpy().tolist() == [
        ["segmentation", "Baseline"],
        ["segmentation", "Semi-DeepAtlas"],
        ["registration", "Baseline"],
    ]
    joint, baseline = (of(folder, "registration", key) for key in ("deepatlas", "reg_baseline"))
    expected = evaluation.paired_comparison(100 * joint, 100 * baseline)
    last = table.iloc[-1]
    assert last[["difference", "low", "high"]].tolist() == pytest.approx(
        [expected[key] for key in ("difference", "low", "high")]
    )


def test_the_gap_is_shown_where_there_is_full_supervision(folder):
    (row,) = reporting.gap_table(folder).to_dict("records")
    compared = ("seg_baseline", "deepatlas", "seg_full")
    share = evaluation.share_of_gap_closed(*(of(folder, "segmentation", key) for key in compared))
    percent = {key: 100 * share[key] for key in ("share", "low", "high")}
    assert row == {"task": "segmentation", **percent} and 30 < row["share"] < 70


def test_a_run_that_is_not_finished_has_no_tables(folder):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"finished": False}))
    with pytest.raises(UserError, match="not finished; start it again"):
        reporting.results_table(folder)
