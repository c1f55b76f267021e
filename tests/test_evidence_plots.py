"""Figures of the evidence: a dot for each run, and the map of where joint training helps."""

from deepatlas import evidence, evidence_plots
from deepatlas.errors import UserError
from deepatlas.evidence import points

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

USUAL = {
    "dataset": "d",
    "profile": "class",
    "dims": 2,
    "recipe": "best",
    "changed": "",
    "subject": "p0",
}

# Dice of one run: the teachers are known, and what is gained
DICE = {
    "segmentation": {
        "label_propagation": 66.0,
        "seg_baseline": 70.0,
        "semi_first": 75.0,
        "semi_seg": 76.0,
        "seg_control": 71.0,
        "deepatlas": 78.0,
    },
    "registration": {
        "reg_baseline": 60.0,
        "semi_reg": 63.0,
        "reg_control": 61.5,
        "deepatlas": 64.0,
    },
}


def rows_of(labelled, seed, shift=0.0, dice=DICE, **more):
    """One subject of one run; DeepAtlas is better by ``shift``."""
    run = {"run": f"N{labelled}-{seed}", "labelled": labelled, "seed": seed, "label_seed": seed}
    return pd.DataFrame(
        [
            USUAL
            | run
            | more
            | {"task": task, "regime": key, "dice": value + shift * (key == "deepatlas")}
            for task, regimes in dice.items()
            for key, value in regimes.items()
        ]
    )


@pytest.fixture
def rows():
    return pd.concat([rows_of(1, 0), rows_of(1, 1, 1.0), rows_of(5, 0)])


def test_a_gain_is_over_the_fixed_teacher_and_over_training_as_long(rows):
    seeds, means = evidence.decisive_gains(rows)
    assert set(means["against"]) == {"Semi-DeepAtlas", "Baseline, as long as DeepAtlas"}
    one = seeds[(seeds["labelled"] == 1) & (seeds["task"] == "segmentation")]
    assert one[one["against"] == "Semi-DeepAtlas"]["gain"].tolist() == [2.0, 3.0]
    assert one[one["against"] != "Semi-DeepAtlas"]["gain"].tolist() == [7.0, 8.0]
    assert len(means) == 8 and means["runs"].tolist() == [2] * 4 + [1] * 4


def test_in_rows_of_the_first_protocol_the_fixed_teacher_is_the_one_as_long():
    dice = {"segmentation": DICE["segmentation"] | {"semi_seg_control": 77.5}}
    seeds, _ = evidence.decisive_gains(rows_of(1, 0, dice=dice))
    told = dict(zip(seeds["against"], seeds["gain"], strict=True))
    assert told == {
        "Semi-DeepAtlas, as long as DeepAtlas": 0.5,
        "Baseline, as long as DeepAtlas": 7.0,
    }


def test_runs_with_something_changed_are_no_part_of_a_figure():
    for more in ({"changed": "passes=2"}, {"recipe": "paper"}, {"label_seed": 3}):
        some = rows_of(1, 0).assign(**more)
        for draw in (evidence.decisive_gains, evidence.teacher_map):
            with pytest.raises(UserError, match="no run by the recipe best at class size"):
                draw(some)


def test_the_teacher_is_what_joint_training_starts_from(rows):
    found = evidence.teacher_map(rows).set_index(["task", "labelled", "seed", "against"])["teacher"]
    semi = "Semi-DeepAtlas"
    assert found["segmentation", 1, 0, semi] == 66 - 70  # propagated labels are behind their pupil
    assert found["registration", 1, 0, semi] == 75 - 60  # at N = 1 the first round's network
    assert found["registration", 5, 0, semi] == 70 - 60  # else the baseline
    first = {
        **DICE,
        "segmentation": {k: v for k, v in DICE["segmentation"].items() if k != "semi_first"},
    }
    found = evidence.teacher_map(rows_of(1, 0, dice=first))
    assert set(found.loc[found["task"] == "registration", "teacher"]) == {76 - 60}


def test_trained_at_one_go_the_baseline_is_as_long():
    at_one_go = {
        task: {key: dice for key, dice in regimes.items() if not key.endswith(("control", "first"))}
        for task, regimes in DICE.items()
    }
    rows = rows_of(1, 0, dice=at_one_go)
    seeds, _ = evidence.decisive_gains(rows)
    of_task = seeds[seeds["task"] == "registration"]
    assert dict(zip(of_task["against"], of_task["gain"], strict=True)) == {
        "Semi-DeepAtlas": 1.0,
        "Baseline": 4.0,
    }
    found = evidence.teacher_map(rows).set_index(["task", "against"])["teacher"]
    assert found["registration", "Semi-DeepAtlas"] == 76 - 60  # what Semi-DeepAtlas holds fixed


def test_no_gain_of_the_map_is_over_the_pupil_where_another_is_as_long(rows):
    """Else both would hold the same number, and rise together by themselves."""
    usual, other = evidence.teacher_map(rows), rows.copy()
    pupil = other["regime"].isin(("seg_baseline", "reg_baseline"))
    other.loc[pupil, "dice"] -= 5
    moved = evidence.teacher_map(other)
    assert (moved["teacher"] >= usual["teacher"]).all() and (
        moved["teacher"] != usual["teacher"]
    ).any()
    assert (moved["gain"] == usual["gain"]).all()


def test_the_committed_rows_have_a_point_for_each_run():
    rows = evidence.load_results(evidence.FIRST_RESULTS)
    found = evidence.teacher_map(rows)
    assert len(found) == 32 * 2 * 2  # runs, tasks, rivals
    brains = found[(found["cohort"] == "phantom-brain, 2D") & (found["labelled"] == 1)]
    brains = brains[brains["task"] == "segmentation"]
    against = brains[brains["against"] == "Baseline, as long as DeepAtlas"].sort_values("seed")
    assert against["gain"].round(1).tolist() == [1.0, 1.9, 1.9, 1.8, 8.0]
    mine = rows[(rows["changed"] == "") & (rows["run"].str.contains("phantom-brain.*N1-seed4"))]
    dice = mine[mine["task"] == "segmentation"].groupby("regime")["dice"].mean()
    ahead = dice["label_propagation"] - dice["seg_baseline"]
    assert against["teacher"].iloc[-1] == pytest.approx(ahead)


# --- drawn ----------------------------------------------------------------------------------------


def places(axes, marker):
    """The x of every dot with this marker."""
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return sorted(np.concatenate([line.get_xdata() for line in lines]).tolist())


def test_every_seed_is_a_dot_and_every_mean_has_its_interval(rows):
    seeds, means = evidence.decisive_gains(rows)
    figure = evidence_plots.gains_figure(seeds, means)
    for axes, task in zip(figure.axes, ("segmentation", "registration"), strict=True):
        assert axes.get_title() == task
        of_task = means[means["task"] == task]
        assert places(axes, "o") == sorted(seeds.loc[seeds["task"] == task, "gain"])
        assert places(axes, "D") == sorted(of_task["gain"])
        bars = [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 2]
        wanted = of_task[["low", "high"]].to_numpy()
        assert np.array_equal(np.sort(bars, axis=0), np.sort(wanted, axis=0), equal_nan=True)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["d, 2D, N = 1", "d, 2D, N = 5"]
    plt.close(figure)


def test_the_map_has_a_point_for_each_cohort_n_and_seed(rows):
    found = evidence.teacher_map(rows)
    figure = evidence_plots.teacher_map_figure(found)
    assert len(figure.axes) == 4
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["d, 2D", "N = 1", "N = 5"]
    semi = found[found["against"] == "Semi-DeepAtlas"]
    for axes, task in zip(figure.axes[:2], ("segmentation", "registration"), strict=True):
        of_task = semi[semi["task"] == task]
        drawn = [line for line in axes.lines if line.get_marker() not in ("None", None)]
        xy = np.concatenate([line.get_xydata() for line in drawn])
        wanted = of_task[["teacher", "gain"]].to_numpy()
        assert sorted(map(tuple, xy)) == sorted(map(tuple, wanted))
    plt.close(figure)


def test_a_cohort_may_have_any_name_and_number():
    many = [rows_of(n, 0, dataset=f"a$b${n}", run=f"r{n}") for n in range(1, 12)]
    figure = evidence_plots.teacher_map_figure(evidence.teacher_map(pd.concat(many)))
    figure.canvas.draw()
    plt.close(figure)
    seeds, means = points.decisive_gains(pd.concat(many))
    figure = evidence_plots.gains_figure(seeds, means)
    figure.canvas.draw()
    plt.close(figure)
