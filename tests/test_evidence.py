"""What many runs show together: gains with intervals that count runs as chance, and pages."""

import json
import math
import shutil
import subprocess
import sys

from deepatlas import evaluation, evidence, experiments, sweeps
from deepatlas.errors import UserError
from deepatlas.evidence import pages
from deepatlas.parameters import parse

import numpy as np
import pandas as pd
import pytest
from scipy import stats


def test_without_results_it_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="the tables that `deepatlas sweep` keeps"):
        evidence.load_results(tmp_path)


@pytest.fixture
def committed(tmp_path):
    """A copy of the project's own tables."""
    for name in ("regimes.csv", "subjects.csv"):
        shutil.copyfile(evidence.FIRST_RESULTS / name, tmp_path / name)
    return tmp_path


def test_tables_with_other_columns_are_told(committed):
    for name, number in (("regimes.csv", "77.1674"), ("subjects.csv", "83.789")):
        path = committed / name
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole.replace("regime,", "arm,", 1), encoding="utf-8")
        with pytest.raises(UserError, match=rf"{name}: not the table .* has no column regime, on"):
            evidence.load_results(committed)
        path.write_text(whole.replace(number, "x", 1), encoding="utf-8")
        with pytest.raises(UserError, match=rf"{name}: damaged, not every value of .* is a number"):
            evidence.load_results(committed)
        path.write_text(whole.replace(number, "7", 1), encoding="utf-8")
        with pytest.raises(UserError, match=r"regimes\.csv and subjects\.csv do not say the same"):
            evidence.load_results(committed)
        path.write_text(whole, encoding="utf-8")
    assert len(evidence.load_results(committed)) > 10_000


@pytest.mark.parametrize("name", ["regimes.csv", "subjects.csv"])
@pytest.mark.parametrize("lines", [1, 2, 100, -1])
def test_a_table_cut_at_a_lines_end_is_told(committed, name, lines):
    whole = (committed / name).read_text(encoding="utf-8").splitlines(keepends=True)
    (committed / name).write_text("".join(whole[:lines]), encoding="utf-8")
    with pytest.raises(UserError, match=r"regimes\.csv and subjects\.csv do not say the same"):
        evidence.load_results(committed)


def rows_of(values):
    """One row per (run, subject, regime) of {run: {regime: dice of each subject}}."""
    return pd.DataFrame(
        [
            {"run": run, "regime": regime, "subject": f"p{i}", "dice": dice}
            for run, regimes in values.items()
            for regime, all_dice in regimes.items()
            for i, dice in enumerate(all_dice)
        ]
    )


def test_a_gain_is_paired_and_every_run_counts_alike():
    rows = rows_of({"a": {"x": [10, 20], "y": [9, 19]}, "b": {"x": [50] * 4, "y": [47] * 4}})
    gain = evidence.gain(rows, "x", "y")
    assert gain["gain"] == 2 and gain["runs"] == 2
    assert gain["p"] == pytest.approx(stats.ttest_1samp([1, 3], 0).pvalue)  # of runs, not subjects
    from_one = evidence.gain(rows, "x", "y", minimum=1)
    assert from_one["p"] == pytest.approx(stats.ttest_1samp([1, 3], 1).pvalue)
    # within a run every subject gains alike: only runs are chance
    assert (gain["low"], gain["high"]) == (1, 3)


def test_runs_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    agree = rows_of({run: {"x": 1 + rng.normal(size=20), "y": np.zeros(20)} for run in "abcde"})
    shift = dict(zip("abcde", (-3, -1, 1, 3, 5), strict=True))
    differ = rows_of(
        {run: {"x": shift[run] + rng.normal(size=20), "y": np.zeros(20)} for run in "abcde"}
    )
    assert evidence.gain(agree, "x", "y")["low"] > 0.5
    assert evidence.gain(differ, "x", "y")["low"] < 0


def test_the_share_of_the_gap():
    rows = rows_of({run: {"b": [50, 60], "j": [56, 66], "f": [60, 70]} for run in "abc"})
    share = evidence.gap_closed(rows, "b", "j", "f")
    assert share["share"] == pytest.approx(60) and share["low"] == pytest.approx(60)
    none = evidence.gap_closed(
        rows_of({run: {"b": [50, 60], "j": [56, 66], "f": [45, 65]} for run in "abc"}),
        "b",
        "j",
        "f",
    )
    assert math.isnan(none["share"])  # full supervision gains nothing for certain


ALIKE = {"dataset": "d", "profile": "class", "dims": 2, "recipe": "best", "labelled": 1}


def rows_alike(values, task="segmentation", **more):
    """``rows_of`` runs that differ in their seed alone, in the order of ``values``."""
    rows = rows_of(values).assign(**ALIKE, changed="", task=task, **more)
    seeds = {run: seed for seed, run in enumerate(values)}
    seed = rows["run"].map(seeds)
    return rows.assign(seed=seed, label_seed=seed, **{"folds %": 0.0})


def test_the_table_of_gains_compares_with_every_regime_there_is():
    regimes = {
        "deepatlas": [80, 84],
        "seg_baseline": [70, 74],
        "label_propagation": [60, 64],
        "seg_full": [90, 94],
    }
    table = evidence.gains(rows_alike({"a": regimes, "b": regimes})).set_index("against")
    assert list(table.index) == ["label_propagation", "seg_baseline"]
    assert table["gain"].tolist() == [20, 10] and table["mean"].tolist() == [62, 72]
    assert table["share"].tolist() == ["67 %", "50 %"]
    assert table["by_seed"].tolist() == ["+20.0, +20.0", "+10.0, +10.0"]


def test_a_regime_of_the_first_protocol_is_compared_with_still():
    runs = {"deepatlas": [80], "semi_seg_control": [79], "seg_control": [70]}
    table = evidence.gains(rows_alike({"a": runs}))
    assert table["against"].tolist() == ["seg_control", "semi_seg_control"]
    (line,) = [line for line in pages._gains_table(rows_alike({"a": runs})) if "+1.0" in line[4]]
    assert line[3] == "Semi-DeepAtlas, as long as DeepAtlas"


@pytest.mark.parametrize(
    "full, share", [([60, 70], "60 %"), ([53, 63], "all of it"), ([45, 65], "no gap")]
)
def test_a_share_that_means_nothing_is_a_word(full, share):
    """The baseline has 50 and 60; a gap that is not above 0 for certain is none."""
    runs = {
        run: {"seg_baseline": [50, 60], "deepatlas": [56, 66], "seg_full": full} for run in "abc"
    }
    assert evidence.gains(rows_alike(runs))["share"].tolist() == [share]


@pytest.mark.parametrize(
    "joint, full, share",
    [
        ((1.9, 1.9, 1.5), (2.4, 3.4, 0.0), "no gap"),  # one run of three has none
        ((0.5, 3.0, -0.2), (5.0, 5.2, 4.9), "may be chance"),
        ((1.9, 1.9, 1.5), (5.0, 5.2, 4.9), "35 %"),
    ],
)
def test_a_share_of_a_gap_or_a_gain_that_may_be_chance_is_a_word(joint, full, share):
    """By Student's t over the runs: the bootstrap's intervals of the first lie above 0."""
    runs = {
        run: {"seg_baseline": [50] * 3, "deepatlas": [50 + one] * 3, "seg_full": [50 + other] * 3}
        for run, one, other in zip("abc", joint, full, strict=True)
    }
    assert evidence.gains(rows_alike(runs))["share"].tolist() == [share]


def test_a_loss_is_no_negative_share():
    runs = {"seg_baseline": [50, 60], "deepatlas": [48, 58], "seg_full": [60, 70]}
    assert evidence.gains(rows_alike({"a": runs}))["share"].tolist() == ["a loss"]


def test_gains_come_seed_by_seed_and_p_is_corrected_for_all_of_them():
    values = [1.0, 1.9, 1.9, 1.8, 8.0]
    runs = {
        run: {"deepatlas": [50 + value] * 3, "seg_baseline": [50] * 3, "seg_control": [51] * 3}
        for run, value in zip("edcba", values, strict=True)  # not in the order of their names
    }
    rows = rows_alike(runs)
    header, _, short, long = pages._gains_table(rows)
    cell = dict(zip(header, short, strict=True))
    assert cell["by seed"] == "+1.0, +1.9, +1.9, +1.8, +8.0" and "p (Holm, 2)" in header
    p = [stats.ttest_1samp(np.array(values) - minus, 0).pvalue for minus in (0, 1)]
    assert cell["p (Holm, 2)"] == f"{2 * p[0]:.3f}"
    assert dict(zip(header, long, strict=True))["p (Holm, 2)"] == f"{max(2 * p[0], p[1]):.3f}"


def test_two_runs_have_no_p_and_are_none_of_the_lines_it_is_corrected_for():
    """Two gains that chance makes nearly alike would have a small one."""
    three = rows_alike(
        {run: {"deepatlas": [60 + n], "seg_baseline": [50]} for n, run in enumerate("abc")}
    )
    two = rows_alike(
        {
            "d": {"deepatlas": [53.9], "seg_baseline": [50]},
            "e": {"deepatlas": [53.8], "seg_baseline": [50]},
        }
    )
    header, _, *lines = pages._gains_table(pd.concat([three, two.assign(dataset="few")]))
    told = {line[0]: line[header.index("p (Holm, 1)")] for line in lines}
    p = stats.ttest_1samp([10, 11, 12], 0).pvalue
    assert told == {"d, 2D": f"{p:.3f}", "few, 2D": " "}


def test_runs_on_a_gpu_stand_apart(committed):
    rows = evidence.load_results(committed)
    assert evidence.with_those_of_a_gpu(rows, committed) is rows
    folder = committed / "gpu"
    folder.mkdir()
    for name in ("regimes.csv", "subjects.csv"):
        shutil.copyfile(evidence.RESULTS / "gpu" / name, folder / name)
    assert len(evidence.load_results(committed)) == len(rows)
    both = evidence.with_those_of_a_gpu(rows, committed)
    assert len(both) == len(rows) + len(evidence.load_results(folder))
    assert "hippocampus, 3D" in set(evidence.teacher_map(both)["cohort"])


def test_the_committed_brains_are_told_seed_by_seed():
    """The mean of 2.9 is carried by one run."""
    rows = evidence.load_results(evidence.FIRST_RESULTS)
    rows = rows[(rows["changed"] == "") & (rows["recipe"] == "best") & (rows["labelled"] == 1)]
    rows = rows[(rows["dataset"] == "phantom-brain") & (rows["task"] == "segmentation")]
    table = evidence.gains(rows).set_index("against")
    assert table.loc["seg_control", "by_seed"] == "+1.0, +1.9, +1.9, +1.8, +8.0"


def test_true_error_stands_beside_dice():
    runs = {run: {"deepatlas": [80, 82], "reg_baseline": [70, 72]} for run in "abc"}
    error = {"deepatlas": 1.5, "reg_baseline": 1.25}
    rows = rows_alike(runs, task="registration")
    rows = rows.assign(endpoint_voxels=rows["regime"].map(error), endpoint_boundary_voxels=math.nan)
    (found,) = evidence.gains(rows).to_dict("records")
    assert found["gain"] == 10 and found["endpoint_voxels"] == 0.25  # more Dice, and more error
    assert "endpoint_boundary_voxels" not in found  # not known
    header, _, line = pages._gains_table(rows)
    assert line[header.index("true error, voxels [95 %]")] == "+0.25 [+0.25, +0.25]"
    lines = list(pages._dice_table(rows))
    assert ["*registration: true error, voxels*", " "] in lines
    # the first two lines of a regime are its means, of Dice and of the error
    joint, baseline = (
        [line[1] for line in lines if line[:1] == [title]][:2]
        for title in ("DeepAtlas", "Baseline")
    )
    assert joint == ["**81.0**", "1.50"] and baseline == ["71.0", "**1.25**"]  # less is better


def test_an_error_kept_for_whole_runs_is_every_subjects(committed):
    rows = evidence.load_results(committed)
    regimes = sweeps.read_table(committed, "regimes")
    key = ["run", "task", "regime"]
    found = rows.groupby(key)["endpoint_voxels"].agg(["min", "max"])
    said = regimes.set_index(key)["error voxels"]
    assert said.notna().sum() > 300
    for column in found:
        pd.testing.assert_series_equal(
            found[column].sort_index(), said.sort_index(), check_names=False
        )
    # where subjects have their own, these stay
    subjects = pd.read_csv(committed / "subjects.csv", dtype={"subject": str})
    subjects.assign(endpoint_voxels=0.5).to_csv(committed / "subjects.csv", index=False)
    assert (evidence.load_results(committed)["endpoint_voxels"] == 0.5).all()


# --- which of the means are bold ------------------------------------------------------------------


def cells_of(rows, title):
    """The cells of a regime in the first part of the table of means."""
    return next(line for line in pages._dice_table(rows) if line[:1] == [title])[1:]


def test_bold_is_the_best_of_those_with_n_labels_and_what_cannot_be_told_from_it():
    wobble = dict(zip("abcde", (-2, 2, -1, 3, 0), strict=True))
    runs = {
        run: {
            "deepatlas": [80 + shift, 82 + shift],
            "seg_control": [81, 83],  # a point ahead, but not for certain
            "seg_baseline": [70, 72],
            "seg_full": [90, 92],
        }
        for run, shift in wobble.items()
    }
    rows = rows_alike(runs)
    assert cells_of(rows, "Baseline, as long as DeepAtlas") == ["**82.0**"]
    assert cells_of(rows, "DeepAtlas") == ["**81.4**"]
    assert cells_of(rows, "Baseline") == ["71.0"] and cells_of(rows, "Full supervision") == ["91.0"]
    runs = {run: regimes | {"deepatlas": [79, 81]} for run, regimes in runs.items()}
    assert cells_of(rows_alike(runs), "DeepAtlas") == ["80.0"]  # behind in every run: not bold


def test_full_supervision_below_a_baseline_is_marked_and_said():
    runs = {"deepatlas": [80, 82], "seg_baseline": [79, 80], "seg_full": [78, 79]}
    rows = rows_alike({"a": runs})
    assert cells_of(rows, "Full supervision") == ["78.5 †"]
    said = "† A baseline is better: there full supervision is no ceiling."
    assert said in list(pages._dice_table(rows))
    rows = rows_alike({"a": runs | {"seg_full": [90, 91]}})
    assert not any("†" in cell for line in pages._dice_table(rows) for cell in line)


def test_a_mean_of_fewer_runs_than_others_says_of_how_many():
    rows = rows_alike({run: {"deepatlas": [80.0], "seg_baseline": [70.0]} for run in "abc"})
    some = rows[(rows["regime"] == "deepatlas") | (rows["run"] != "c")]
    cells = {line[0]: line[1] for line in pages._dice_table(some) if len(line) == 2}
    assert "(" not in "".join(line for line in pages._dice_table(rows) if isinstance(line, str))
    first = next(line for line in pages._dice_table(some) if line[:1] == ["Baseline"])
    assert first[1] == "70.0 (2)" and cells["runs"] == "3"
    assert any("a mean of n of the runs" in line for line in pages._dice_table(some))


def test_of_fewer_than_three_runs_no_interval_is_told_and_nothing_is_bold():
    runs = {run: {"deepatlas": [80, 82], "seg_baseline": [70, 71]} for run in "abc"}
    for some, best, told in ((runs, "**81.0**", "+10.5 [+10.0, +11.0]"), ("ab", "81.0", "+10.5")):
        rows = rows_alike({run: runs[run] for run in some})
        assert cells_of(rows, "DeepAtlas") == [best] and cells_of(rows, "Baseline") == ["70.5"]
        header, _, line = pages._gains_table(rows)
        assert line[header.index("gain in points [95 %]")] == told
    # two runs of one regime among three of the others: not among the best
    rows = rows_alike(runs)
    some = rows[(rows["regime"] != "deepatlas") | (rows["run"] != "c")]
    assert cells_of(some, "DeepAtlas") == ["81.0 (2)"]


def test_every_table_of_means_has_every_run():
    runs = {
        "b": {"deepatlas": [80, 82], "seg_baseline": [70, 71]},
        "a": {"deepatlas": [60, 61], "seg_baseline": [50, 51]},
    }
    lines = list(pages._dice_table(rows_alike(runs)))
    again = lines[lines.index(f"<details><summary>{pages.BY_SEED}</summary>") :]
    assert [" ", "d, 2D: 0, 1"] in again and ["DeepAtlas", "81.0, 60.5"] in again
    assert again[-1] == "</details>"


def test_means_are_of_nothing_but_dice_folds_and_error():
    """Seconds passed on machines that did other work: no table quotes them."""
    runs = {"deepatlas": [80, 82], "seg_baseline": [70, 71]}
    rows = rows_alike({"a": runs}, seconds=1234.5)
    shown = (*pages._dice_table(rows), *pages._gains_table(rows))
    assert not any("1234" in cell or "second" in cell for line in shown for cell in line)


def test_a_regime_that_is_missing_is_named():
    with pytest.raises(ValueError, match="no row of zebra"):
        evidence.gain(rows_of({"a": {"x": [1]}}), "x", "zebra")


def test_a_page_gets_the_tables_it_asks_for(tmp_path):
    results = tmp_path / "results"
    smoke = {"profile": "smoke", "device": "cpu", "dims": 2, "regimes": "joint", "labelled": 2}
    folders = [experiments.run(parse(smoke | {"seed": seed}), tmp_path) for seed in (0, 1)]
    sweeps.collect(folders, results)
    first, second = "<!-- joint labelled=2 -->", "<!-- joint seed=1 -->"
    end = "<!-- end -->"
    page = "\n".join(["Before", first, "old", end, "between", second, end, "after"])
    lines = evidence.fill_tables(page, results).splitlines()
    assert [line for line in lines if not line.startswith(("|", "<!--"))] == [
        "Before",
        "between",
        "after",
    ]
    dice = sweeps.read_table(results, "regimes").set_index(["seed", "task", "regime"])["Dice %"]
    seg, reg = dice[1, "segmentation", "deepatlas"], dice[1, "registration", "deepatlas"]
    below = lines[lines.index(second) :]
    (row,) = [line for line in below if line.startswith("| phantom-brain")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert (cells[1], cells[6], cells[9]) == ("2", f"{seg:.1f}", f"{reg:.1f}")


@pytest.mark.parametrize(
    "page, text",
    [
        ("<!-- dice  labelled=1 -->\n<!-- end -->", "of 1 marks 0 could be read"),
        ("<!-- dice -->\nprose\n<!-- gains -->\n<!-- end -->", "of 2 marks 1 could be read"),
        (
            "<!-- dice zebra=1 -->\n<!-- end -->",
            "there is no 'zebra' to select by: dataset, profile",
        ),
        ("<!-- gains from=nowhere zebra=1 -->\n<!-- end -->", "no 'zebra' to select by"),
        ("<!-- speed size=zebra -->\n<!-- end -->", "size=zebra -->: no such rows in"),
        ("<!-- claims labelled=1 -->\n<!-- end -->", "there is no 'labelled' to select by"),
    ],
)
def test_a_mark_that_cannot_be_read_is_an_error(page, text):
    with pytest.raises(ValueError, match=text):
        evidence.fill_tables(page)


@pytest.mark.parametrize("kind", ["dice", "gains", "map", "joint"])
def test_the_precision_of_a_run_hides_it_from_no_table(kind, committed):
    """A sweep may say it, so that a busy machine does not decide it."""
    mark = f"<!-- {kind} labelled=5 dataset=oasis35 -->\n<!-- end -->"
    before = evidence.fill_tables(mark, committed)
    path = committed / "regimes.csv"
    table = pd.read_csv(path, keep_default_na=False, na_values=[])
    table["changed"] = (table["changed"] + " precision=bfloat16").str.strip()
    table.to_csv(path, index=False)
    assert "oasis35" in before and evidence.fill_tables(mark, committed) == before


@pytest.mark.parametrize("kind", ["dice", "gains", "map", "joint", "reruns"])
def test_a_table_without_rows_says_so(kind, committed):
    for conditions in ("labelled=77", "from=nowhere labelled=1"):
        begin = f"<!-- {kind} {conditions} -->"
        page = evidence.fill_tables(f"{begin}\nold\n<!-- end -->", committed)
        assert page.splitlines() == [begin, "*No rows yet.*", "<!-- end -->"]
    page = evidence.fill_tables("<!-- dice labelled=5 -->\n<!-- end -->", committed)
    assert "No rows yet" not in page and "oasis35, 2D" in page


def test_a_run_that_was_made_twice_is_told_in_both(committed):
    """Of those in the folder again alone, with what joint training gains in each."""
    again = committed / pages.AGAIN
    again.mkdir()
    rows = pd.read_csv(committed / "regimes.csv", keep_default_na=False, na_values=[])
    usual = (rows["labelled"] == 1) & (rows["changed"] == "") & (rows["seed"] == 1)
    twice = rows[usual & (rows["dataset"] == "oasis35")]
    joint = (twice["regime"] == "deepatlas") & (twice["task"] == "segmentation")
    moved = twice.assign(**{"Dice %": twice["Dice %"].astype(float) + np.where(joint, 2.0, 0.5)})
    moved.to_csv(again / "regimes.csv", index=False)

    page = evidence.fill_tables("<!-- reruns -->\n<!-- end -->", committed)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    told = {(line[2], line[3]): line[-1] for line in lines[3:-1]}
    assert {tuple(line[:2]) for line in lines[3:-1]} == {("oasis35, 2D", "1")}
    assert told["segmentation", "DeepAtlas"] == "+2.0"
    assert told["segmentation", "*DeepAtlas minus Baseline*"] == "+1.5"
    assert told["registration", "Baseline"] == "+0.5"
    assert told["registration", "*DeepAtlas minus Semi-DeepAtlas*"] == "+0.0"


def test_a_mark_says_which_folder_its_rows_are_from(committed):
    shutil.copytree(committed, committed.parent / "all" / "first")
    marks = [f"<!-- dice {where}labelled=5 -->" for where in ("from=first ", "")]
    first, own = (
        evidence.fill_tables(f"{mark}\n<!-- end -->", committed.parent / "all") for mark in marks
    )
    assert "DeepAtlas" in first and "*No rows yet.*" in own


def test_dice_against_n_counts_no_run_twice():
    """An N with runs of all regimes is drawn from these, another from runs of joint training; other
    draws from none, and seeds that not every N has neither."""
    usual = {
        "dataset": "d",
        "dims": 2,
        "profile": "class",
        "recipe": "best",
        "task": "segmentation",
        "regime": "deepatlas",
        "subject": "p0",
        "seed": 0,
        "label_seed": 0,
        "dice": 50.0,
    }
    rows = pd.DataFrame(
        [
            usual | {"run": run, "labelled": labelled, "changed": changed, "label_seed": label_seed}
            for run, labelled, changed, label_seed in (
                ("a", 1, "", 0),
                ("b", 1, "regimes=joint", 0),
                ("c", 2, "regimes=joint", 0),
                ("d", 1, "regimes=joint", 3),
            )
        ]
    )
    easier = [
        usual | {"run": "e", "labelled": 1, "changed": "", "seed": 1, "label_seed": 1, "dice": 90.0}
    ]
    rows = pd.concat([rows, pd.DataFrame(easier)])  # a seed without a run at N = 2
    table = evidence.dice_against_n(rows)
    assert table[["dataset", "labelled", "runs", "mean"]].to_numpy().tolist() == [
        ["d, 2D", 1, 1, 50.0],
        ["d, 2D", 2, 1, 50.0],
    ]
    with pytest.raises(ValueError, match="no run by the recipe best at class size"):
        evidence.dice_against_n(rows.assign(recipe="paper"))


def test_the_joint_table_prefers_runs_of_all_regimes():
    """Whatever they change, and in whatever order they stand."""
    same = {
        "dataset": "d",
        "profile": "class",
        "dims": 2,
        "labelled": 1,
        "recipe": "best",
        "seed": 0,
        "label_seed": 0,
        "folds %": 0.0,
        "regime": "deepatlas",
    }
    alone = {"run": "a", "changed": "regimes=joint joint_start=semi", "Dice %": 40.0}
    everything = {"run": "b", "changed": "joint_start=semi", "Dice %": 60.0}
    tasks = ("segmentation", "registration")
    rows = pd.DataFrame(
        [same | run | {"task": task} for run in (alone, everything) for task in tasks]
    )
    for some in (rows, rows[::-1]):
        (line,) = list(pages._joint_table(some))[2:]
        assert line[3] == "joint_start=semi" and line[9] == "60.0" and line[-3] == "1"


def test_the_joint_table_counts_no_seed_twice_and_compares_like_with_like():
    """A run of all regimes and one of joint training alone are the same training; seed 1 has
    nothing changed in it.
    """
    usual = {
        "dataset": "d",
        "profile": "class",
        "dims": 2,
        "labelled": 1,
        "recipe": "best",
        "folds %": 0.0,
        "regime": "deepatlas",
    }
    regimes = pd.DataFrame(
        [
            usual
            | {
                "run": run,
                "changed": changed,
                "seed": seed,
                "label_seed": seed,
                "Dice %": dice,
                "task": task,
            }
            for run, changed, seed, dice in (
                ("b", "regimes=joint", 0, 50.0),
                ("a", "", 0, 60.0),
                ("c", "regimes=joint", 1, 80.0),
                ("e", "regimes=joint passes=2", 0, 57.5),
            )
            for task in ("segmentation", "registration")
        ]
    )
    recipe, passes = list(pages._joint_table(regimes))[2:]
    by_seed = ["60.0, 80.0"] * 2  # of both tasks
    assert recipe[9:] == ["70.0", "0.00", " ", " ", "2", *by_seed]
    assert passes[3] == "passes=2"
    assert passes[9:] == ["57.5", "0.00", "-2.5", "-2.5", "1", "57.5", "57.5"]


def test_ablations_are_runs_that_differ_in_what_was_changed(tmp_path):
    usual = {
        "run": "r",
        "dataset": "d",
        "profile": "class",
        "dims": 2,
        "labelled": 1,
        "recipe": "best",
        "seed": 0,
        "label_seed": 0,
        "regime": "deepatlas",
        "changed": "",
        "folds %": 0.5,
        "Dice %": 60.0,
    }
    others = (
        {"seed": 1},
        {"label_seed": 1},
        {"dims": 3},
        {"recipe": "paper"},
        {"regime": "semi_seg"},
    )
    rows = [
        usual,
        usual | {"changed": "regimes=joint"},
        usual | {"changed": "regimes=joint velocity=False", "Dice %": 70.0},
        *(usual | other | {"Dice %": 0.0} for other in others),
    ]
    regimes = pd.DataFrame(
        [row | {"task": task} for row in rows for task in ("registration", "segmentation")]
    )
    regimes.to_csv(tmp_path / "regimes.csv", index=False)
    table = evidence.ablations("d", results=tmp_path)
    assert table["registration"].to_dict() == {"": 60.0, "velocity=False": 70.0}
    assert (table["segmentation"] == table["registration"]).all() and (
        table["folds %"] == 0.5
    ).all()
    with pytest.raises(ValueError, match="no run of slices of d at class size with labelled=7"):
        evidence.ablations("d", 7, tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no regimes\.csv in it, of the tables that .* keeps"
    ):
        evidence.ablations("d", results=tmp_path / "elsewhere")


@pytest.mark.parametrize("page", evidence.PAGES, ids=lambda page: page.parent.name)
def test_the_projects_pages_show_the_committed_rows(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- dice" in text and evidence.fill_tables(text) == text


def test_the_first_protocol_says_what_is_wrong_with_it_as_its_rows_do():
    """The numbers of its list of faults, made anew."""
    text = (evidence.FIRST_RESULTS / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# The first protocol")
    text = " ".join(text[: text.index("## The tables")].split())
    rows = evidence.load_results(evidence.FIRST_RESULTS)
    usual = rows[
        (rows["changed"] == "") & (rows["recipe"] == "best") & (rows["profile"] == "class")
    ]
    table = evidence.gains(usual[usual["labelled"].isin((1, 5)) & (usual["regime"] != "identity")])
    assert len(table) == 72 and "**72 intervals, no correction.**" in text
    assert f"{(table['low'] > 0).sum()} lie above 0 and one below" in text
    assert (table["high"] < 0).sum() == 1
    survive = table[evaluation.holm(table["p"]) < 0.05]
    assert len(survive) == 6 and "six gains survive" in text
    assert not survive["against"].str.contains("semi_.*_control").any()
    loss = table[table["high"] < 0].iloc[0]
    assert (loss["dataset"], loss["labelled"], loss["task"]) == ("oasis35", 5, "registration")
    told = f"{loss['gain']:.2f} [{loss['low']:.2f}, {loss['high']:.2f}]".replace("0.", ".")
    assert told in text
    regimes = sweeps.read_table(evidence.FIRST_RESULTS, "regimes")
    steps = []
    for turns in (1, 2, 5, 20):
        changed = f"regimes=joint reg_turns={turns}" if turns != 2 else ""
        run = regimes[(regimes["changed"] == changed) & (regimes["dataset"] == "phantom-knee")]
        run = run[(run["labelled"] == 1) & (run["seed"] == 0) & (run["recipe"] == "best")]
        record = evidence.FIRST_RESULTS / "runs" / f"{run['run'].iloc[0]}.json"
        own = json.loads(record.read_text(encoding="utf-8"))["steps"]["deepatlas"]
        steps.append(f"{own['seg']} : {own['reg']:,}")
    assert f"{', '.join(steps[:-1])} and {steps[-1]} turns" in text


def test_of_several_tasks_one_is_selected_first():
    rows = rows_of({"a": {"x": [1, 2], "y": [1, 3]}})
    with pytest.raises(ValueError, match="select one task first"):
        evidence.gain(pd.concat([rows, rows]), "x", "y")


def test_runs_without_a_regime_have_no_part_in_its_comparison():
    rows = rows_of({"a": {"x": [3, 4], "y": [1, 2]}, "b": {"x": [9, 9]}})
    found = evidence.gain(rows, "x", "y")
    assert math.isnan(found.pop("p")) and found == {"gain": 2, "low": 2, "high": 2, "runs": 1}


ADDED = """
import sys, types
import pandas as pd
import deepatlas
from deepatlas.places import PACKAGE

# the table with a row more, as if it had been written into the file
text = (PACKAGE / "regimes.py").read_text(encoding="utf-8")
row = 'REGIMES = {\\n    "reg_slow": Regime("Baseline, slowly", ("reg",)),\\n'
assert text.count("REGIMES = {\\n") == 1
regimes = types.ModuleType("deepatlas.regimes")
sys.modules["deepatlas.regimes"] = deepatlas.regimes = regimes
exec(compile(text.replace("REGIMES = {\\n", row), "regimes.py", "exec"), regimes.__dict__)

from deepatlas import evidence, reporting
from deepatlas.errors import UserError
from deepatlas.evidence import pages

rows = evidence.load_results()
rows = rows[(rows["dataset"] == "oasis35") & (rows["changed"] == "") & (rows["labelled"] == 5)]
as_reg_control = rows[rows["regime"] == "reg_control"].assign(regime="reg_slow")
rows = pd.concat([rows, as_reg_control])
assert reporting.rivals("registration")[0] == "reg_slow"
assert "reg_slow" not in reporting.rivals("segmentation")
assert reporting.TITLES["reg_slow"] == "Baseline, slowly"
table = evidence.gains(rows).set_index("against")
assert table.loc["reg_slow", "gain"] == table.loc["reg_control", "gain"]
lines = list(pages._gains_table(rows))
assert sum(line[3] == "Baseline, slowly" for line in lines) == 1
shown = [line for line in pages._dice_table(rows) if line[:1] == ["Baseline, slowly"]]
assert len(shown) == 2, shown  # its mean, and each run
"""


def test_a_regime_added_to_the_table_is_everywhere():
    """Among the rivals and the titles, and in every table: nothing else is edited."""
    done = subprocess.run([sys.executable, "-c", ADDED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
