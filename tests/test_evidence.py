"""Many experiments: files of sweeps, the tables they leave, and intervals that count runs as
chance.
"""

import hashlib
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from deepatlas import evidence, experiments
from deepatlas.cli import app
from deepatlas.parameters import parse

SWEEP = """
[[sweep]]
profile = "smoke"
device = "cpu"
dims = 2
arms = "joint"
labelled = [1, 2]
seed = [0, 1]
"""


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    return path


def test_a_list_stands_for_every_value(sweep):
    found = evidence.read_sweep(sweep)
    assert [(e.labelled, e.seed) for e in found] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [e.seed for e in evidence.read_sweep(sweep, {"labelled": 2})] == [0, 1]


def test_what_stands_twice_runs_once(sweep):
    sweep.write_text(SWEEP + SWEEP.replace("[1, 2]", "[2, 3]"))
    assert len(evidence.read_sweep(sweep)) == 6


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("[[sweep]]\nlabeled = 1", "sweep.toml: .*no parameter 'labeled', did you mean 'labelled'"),
        ("[[sweep]]\nseed = [0, -1]", "sweep.toml: .*parameter 'seed' = -1"),
        ("[sweep", "sweep.toml: .*tables of parameters were wanted"),
        ("labelled = 1", "sweep.toml: .*tables of parameters were wanted"),
        ("sweep = 3", "sweep.toml: .*tables of parameters were wanted"),
        ("[sweep]\nseed = 1", "sweep.toml: .*tables of parameters were wanted"),
    ],
)
def test_a_mistake_names_the_file(sweep, text, wanted):
    sweep.write_text(text)
    with pytest.raises(ValueError, match=wanted):
        evidence.read_sweep(sweep)


def test_a_missing_sweep_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no\.toml: no such file; \[\[sweep\]\] tables .* were wanted"
    ):
        evidence.read_sweep(tmp_path / "no.toml")


def test_an_unknown_filter_is_refused(sweep):
    with pytest.raises(ValueError, match="no parameter 'zebra'"):
        evidence.read_sweep(sweep, {"zebra": 1})


@pytest.mark.parametrize(
    "only, wanted",
    [
        ({"dataset": "phantom-kne"}, "phantom-kne"),
        ({"seed": "one"}, "^parameter 'seed' = 'one': input .*integer"),
        ({"profile": "clas"}, "^parameter 'profile' = 'clas': .*'class'"),
    ],
)
def test_a_filter_that_cannot_fit_is_refused(sweep, only, wanted):
    with pytest.raises(ValueError, match=wanted):
        evidence.read_sweep(sweep, only)


def test_a_filter_is_read_as_its_parameter_is(sweep):
    sweep.write_text(SWEEP + "lambda_r = [0.1, 0.2]\n")
    assert {e.lambda_r for e in evidence.read_sweep(sweep, {"lambda_r": "1e-1"})} == {0.1}


def test_a_filter_that_nothing_fits_is_said(sweep, tmp_path):
    results = tmp_path / "results"
    done = CliRunner().invoke(
        app, ["sweep", str(sweep), "dataset=phantom-knee", "--results", str(results)]
    )
    assert done.exit_code == 0 and "no experiment in it has dataset=phantom-knee" in done.output
    assert not results.exists()


def test_an_unknown_filter_says_what_may_have_been_meant(sweep):
    with pytest.raises(ValueError, match="no parameter 'labeled', did you mean 'labelled'"):
        evidence.read_sweep(sweep, {"labeled": 1})


def test_the_command_runs_collects_and_goes_on(sweep, tmp_path):
    results = tmp_path / "results"
    arguments = [
        "sweep",
        str(sweep),
        "labelled=2",
        "--root",
        str(tmp_path / "runs"),
        "--results",
        str(results),
    ]
    assert CliRunner().invoke(app, [*arguments[:-2], "seed=0"]).exit_code == 0
    # by default beside the runs, not in the project
    assert (tmp_path / "runs" / "results" / "arms.csv").is_file()
    for only in ("seed=0", "seed=1"):
        done = CliRunner().invoke(app, [*arguments, only])
        assert done.exit_code == 0, done.output
    arms = pd.read_csv(results / "arms.csv")
    assert arms["run"].nunique() == 2 and sorted(arms["seed"].unique()) == [0, 1]
    for name, sha256 in arms.groupby("run")["sha256"].first().items():
        assert (
            hashlib.sha256((results / "runs" / f"{name}.json").read_bytes()).hexdigest() == sha256
        )
    rows = evidence.load_results(results)
    assert set(rows["regime"]) == {
        "identity",
        "label_propagation",
        *parse({"arms": "joint", "labelled": 2}).table,
    }
    arm = rows[(rows["regime"] == "deepatlas") & (rows["task"] == "segmentation")]
    means = arms[(arms["regime"] == "deepatlas") & (arms["task"] == "segmentation")].set_index(
        "run"
    )["Dice %"]
    np.testing.assert_allclose(arm.groupby("run")["dice"].mean(), means.sort_index(), atol=0.01)
    gain = evidence.gain(rows[rows["task"] == "segmentation"], "deepatlas", "seg_baseline")
    assert gain["runs"] == 2 and gain["low"] <= gain["gain"] <= gain["high"]


def test_without_results_it_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="the tables that `deepatlas sweep` keeps"):
        evidence.load_results(tmp_path)


def rows_of(values):
    """One row per (run, subject, regime) of {run: {regime: dice of each subject}}."""
    return pd.DataFrame(
        [
            {"run": run, "regime": regime, "subject": f"p{i}", "dice": dice}
            for run, arms in values.items()
            for regime, all_dice in arms.items()
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


def test_the_interval_covers_the_truth():
    """Gains of mean 1, SD 1 between runs and 2 between subjects: about 95 of 100 intervals over 12
    runs hold 1.
    """
    rng, hits = np.random.default_rng(1), 0
    for _ in range(100):
        groups = [(1 + rng.normal() + 2 * rng.normal(size=20))[:, None] for _ in range(12)]
        low, high = np.percentile(evidence.two_level_means(groups, 500), (2.5, 97.5))
        hits += low <= 1 <= high
    assert hits >= 85


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


def test_the_table_of_gains_compares_with_every_arm_there_is():
    arms = {
        "deepatlas": [80, 84],
        "seg_baseline": [70, 74],
        "label_propagation": [60, 64],
        "seg_full": [90, 94],
    }
    rows = rows_of({"a": arms, "b": arms}).assign(
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


def test_rows_of_the_same_experiment_are_replaced(sweep, tmp_path):
    """As when a file of the method was edited, and everything was run again."""
    experiment = evidence.read_sweep(sweep, {"labelled": 1, "seed": 0})[0]
    old = experiments.run(experiment, tmp_path / "runs")
    new, other = (old.with_name(name) for name in ("same-parameters-other-code", "other-seed"))
    for folder, seed in ((new, 0), (other, 1)):
        shutil.copytree(old, folder)
        record = json.loads((old / "run.json").read_text())
        record["experiment"] |= {"seed": seed, "label_seed": seed}
        (folder / "run.json").write_text(json.dumps(record))
    results = tmp_path / "results"
    evidence.collect([old, other], results)
    arms, subjects = evidence.collect([new], results)
    assert set(arms["run"]) == set(subjects["run"]) == {new.name, other.name}
    assert {path.stem for path in (results / "runs").iterdir()} == {new.name, other.name}


def test_a_page_gets_the_tables_it_asks_for(sweep, tmp_path):
    results = tmp_path / "results"
    folders = [
        experiments.run(e, tmp_path / "runs") for e in evidence.read_sweep(sweep, {"labelled": 2})
    ]
    evidence.collect(folders, results)
    page = "Before\n<!-- joint labelled=2 -->\nold\n<!-- end -->\nbetween\n<!-- joint seed=1 -->\n<!-- end -->\nafter"
    lines = evidence.fill_tables(page, results).splitlines()
    assert [line for line in lines if not line.startswith(("|", "<!--"))] == [
        "Before",
        "between",
        "after",
    ]
    arms = evidence._read(results / "arms.csv").set_index(["seed", "task", "regime"])["Dice %"]
    seg, reg = arms[1, "segmentation", "deepatlas"], arms[1, "registration", "deepatlas"]
    (row,) = [
        line
        for line in lines[lines.index("<!-- joint seed=1 -->") :]
        if line.startswith("| phantom-brain")
    ]
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


def test_curves_count_no_run_twice():
    """An N with runs of all arms is drawn from these, another from runs of joint training; other
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
                ("b", 1, "arms=joint", 0),
                ("c", 2, "arms=joint", 0),
                ("d", 1, "arms=joint", 3),
            )
        ]
    )
    easier = [
        usual | {"run": "e", "labelled": 1, "changed": "", "seed": 1, "label_seed": 1, "dice": 90.0}
    ]
    rows = pd.concat([rows, pd.DataFrame(easier)])  # a seed without a run at N = 2
    table = evidence.curves(rows)
    assert table[["dataset", "labelled", "runs", "mean"]].to_numpy().tolist() == [
        ["d, 2D", 1, 1, 50.0],
        ["d, 2D", 2, 1, 50.0],
    ]
    with pytest.raises(ValueError, match="no run by the recipe best at class size"):
        evidence.curves(rows.assign(recipe="paper"))


def test_the_joint_table_counts_no_seed_twice_and_compares_like_with_like():
    """A run of all arms and one of joint training alone are the same training; seed 1 has nothing
    changed in it.
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
    arms = pd.DataFrame(
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
                ("b", "arms=joint", 0, 50.0),
                ("a", "", 0, 60.0),
                ("c", "arms=joint", 1, 80.0),
                ("e", "arms=joint passes=2", 0, 57.5),
            )
            for task in ("segmentation", "registration")
        ]
    )
    recipe, passes = list(evidence._joint_table(arms))[2:]
    assert recipe[9:] == ["70.0", "0.00", " ", " ", "2"]
    assert passes[3] == "passes=2" and passes[9:] == ["57.5", "0.00", "-2.5", "-2.5", "1"]


def test_settings_are_runs_that_differ_in_what_was_changed(tmp_path):
    usual = {
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
        usual | {"changed": "arms=joint"},
        usual | {"changed": "arms=joint velocity=False", "Dice %": 70.0},
        *(usual | other | {"Dice %": 0.0} for other in others),
    ]
    arms = pd.DataFrame(
        [row | {"task": task} for row in rows for task in ("registration", "segmentation")]
    )
    arms.to_csv(tmp_path / "arms.csv", index=False)
    table = evidence.settings("d", results=tmp_path)
    assert table["registration"].to_dict() == {"": 60.0, "velocity=False": 70.0}
    assert (table["segmentation"] == table["registration"]).all() and (
        table["folds %"] == 0.5
    ).all()
    with pytest.raises(ValueError, match="no run of slices of d at class size with labelled=7"):
        evidence.settings("d", 7, tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no arms\.csv in it, of the tables that `deepatlas sweep` keeps"
    ):
        evidence.settings("d", results=tmp_path / "elsewhere")


@pytest.mark.parametrize("page", evidence.PAGES, ids=lambda page: page.parent.name)
def test_the_projects_pages_show_the_committed_rows(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- dice" in text and evidence.fill_tables(text) == text


def test_what_an_experiment_changes_is_said():
    assert evidence.changed(parse({}).model_dump()) == ""
    other = parse({"recipe": "paper", "lambda_r": 2, "reg_turns": 5, "label_seed": 3})
    assert evidence.changed(other.model_dump()) == "reg_turns=5 lambda_r=2.0"


def test_an_arm_that_is_missing_is_named():
    with pytest.raises(ValueError, match="no row of zebra"):
        evidence.gain(rows_of({"a": {"x": [1]}}), "x", "zebra")


def test_the_records_kept_are_those_that_the_rows_name():
    arms = evidence._read(evidence.RESULTS / "arms.csv")
    for name, sha256 in arms.groupby("run")["sha256"].first().items():
        record = evidence.RESULTS / "runs" / f"{name}.json"
        assert hashlib.sha256(record.read_bytes()).hexdigest() == sha256
        assert parse(json.loads(record.read_text())["experiment"]).seed < 100
