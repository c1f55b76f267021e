"""What many runs show together: gains with intervals that count runs as chance, and pages."""

import math
import shutil
import subprocess
import sys

from deepatlas import evidence, experiments, sweeps
from deepatlas.errors import UserError
from deepatlas.evidence import pages
from deepatlas.parameters import parse

import numpy as np
import pandas as pd
import pytest


def test_without_results_it_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="the tables that `deepatlas sweep` keeps"):
        evidence.load_results(tmp_path)


@pytest.fixture
def committed(tmp_path):
    """A copy of the project's own tables."""
    for name in ("regimes.csv", "subjects.csv"):
        shutil.copyfile(evidence.RESULTS / name, tmp_path / name)
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


def test_the_table_of_gains_compares_with_every_regime_there_is():
    regimes = {
        "deepatlas": [80, 84],
        "seg_baseline": [70, 74],
        "label_propagation": [60, 64],
        "seg_full": [90, 94],
    }
    rows = rows_of({"a": regimes, "b": regimes}).assign(
        dataset="d",
        profile="class",
        dims=2,
        recipe="best",
        changed="",
        labelled=1,
        task="segmentation",
    )
    table = evidence.gains(rows).set_index("against")
    assert list(table.index) == ["label_propagation", "seg_baseline"]
    assert table["gain"].tolist() == [20, 10] and table["mean"].tolist() == [62, 72]
    assert table["share"].tolist() == pytest.approx([200 / 3, 50])


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
        (
            "<!-- gains labelled=77 -->\n<!-- end -->",
            "labelled=77 -->: no such rows among the results",
        ),
    ],
)
def test_a_mark_that_cannot_be_read_is_an_error(page, text):
    with pytest.raises(ValueError, match=text):
        evidence.fill_tables(page)


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
        assert line[3] == "joint_start=semi" and line[9] == "60.0" and line[-1] == "1"


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
    assert recipe[9:] == ["70.0", "0.00", " ", " ", "2"]
    assert passes[3] == "passes=2" and passes[9:] == ["57.5", "0.00", "-2.5", "-2.5", "1"]


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


def test_of_several_tasks_one_is_selected_first():
    rows = rows_of({"a": {"x": [1, 2], "y": [1, 3]}})
    with pytest.raises(ValueError, match="select one task first"):
        evidence.gain(pd.concat([rows, rows]), "x", "y")


def test_runs_without_a_regime_have_no_part_in_its_comparison():
    rows = rows_of({"a": {"x": [3, 4], "y": [1, 2]}, "b": {"x": [9, 9]}})
    assert evidence.gain(rows, "x", "y") == {"gain": 2, "low": 2, "high": 2, "runs": 1}


ADDED = """
import sys, types
import pandas as pd
import deepatlas
from deepatlas.places import PACKAGE

# the table with a row more, as if it had been written into the file
text = (PACKAGE / "regimes.py").read_text(encoding="utf-8")
row = 'REGIMES = {\\n    "reg_slow": Regime("Baseline, slowly", ("reg",), rounds=1),\\n'
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
assert sum(line[2] == "Baseline, slowly" for line in lines) == 1
rows = rows.rename(columns={"dice": "Dice %"})
assert sum(line[0] == "Baseline, slowly" for line in pages._dice_table(rows)) == 1
"""


def test_a_regime_added_to_the_table_is_everywhere():
    """Among the rivals and the titles, and in every table: nothing else is edited."""
    done = subprocess.run([sys.executable, "-c", ADDED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
