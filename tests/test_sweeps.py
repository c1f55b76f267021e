"""Many experiments: files of sweeps, and the tables that their runs leave."""

import hashlib
import importlib.util
import json
import shutil

from deepatlas import checkpoints, evidence, experiments, records, reporting, sweeps
from deepatlas.cli import app
from deepatlas.errors import UserError
from deepatlas.parameters import parse
from deepatlas.places import FIRST_RESULTS, RESULTS

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

SWEEP = """
[[sweep]]
profile = "smoke"
device = "cpu"
dims = 2
regimes = "joint"
labelled = [1, 2]
seed = [0, 1]
"""


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    return path


def test_a_list_stands_for_every_value(sweep):
    found = sweeps.read_sweep(sweep)
    assert [(e.labelled, e.seed) for e in found] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [e.seed for e in sweeps.read_sweep(sweep, {"labelled": 2})] == [0, 1]


def test_what_stands_twice_runs_once(sweep):
    sweep.write_text(SWEEP + SWEEP.replace("[1, 2]", "[2, 3]"))
    assert len(sweeps.read_sweep(sweep)) == 6


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("[[sweep]]\nlabeled = 1", "sweep.toml: .*no parameter 'labeled', did you mean 'labelled'"),
        ("[[sweep]]\nseed = [0, -1]", "sweep.toml: .*parameter 'seed' = -1"),
        ("[sweep", "sweep.toml: .*tables of parameters were wanted"),
        ("labelled = 1", "sweep.toml: .*tables of parameters were wanted"),
        ("sweep = 3", "sweep.toml: .*tables of parameters were wanted"),
        ("[sweep]\nseed = 1", "sweep.toml: .*tables of parameters were wanted"),
        ("[[sweeps]]\nseed = 1", "sweep.toml: .*were wanted, and sweeps is in it"),
        ("", "sweep.toml: .*were wanted, and nothing is in it"),
        ("sweep = [1]", "sweep.toml: .*were wanted, and sweep is in it"),
        ("[[sweep]]\nseed = []", "sweep.toml: .*the list of 'seed' is empty"),
        ("[[sweep]]\nseed = 2026-11-26", "sweep.toml: .*parameter 'seed'"),
        ("[[sweep]]\nseed = " + "[" * 100_000, "sweep.toml: .*tables of parameters were wanted"),
    ],
)
def test_a_mistake_names_the_file(sweep, text, wanted):
    sweep.write_text(text)
    with pytest.raises(ValueError, match=wanted):
        sweeps.read_sweep(sweep)


def test_more_combinations_than_anyone_runs_are_refused_before_they_are_built(sweep):
    """39^7: the numbers alone would fill the memory."""
    names = ("seed", "label_seed", "seg_steps", "reg_steps", "joint_steps", "reg_turns", "passes")
    lines = [f"{name} = {list(range(2, 41))}" for name in names]
    sweep.write_text("\n".join(["[[sweep]]", *lines]))
    with pytest.raises(UserError, match=r"sweep\.toml: .*137,231,006,679 experiments.*most 10,000"):
        sweeps.read_sweep(sweep)


def test_a_mark_at_the_beginning_of_a_sweep_is_no_mistake(sweep):
    sweep.write_text(SWEEP, encoding="utf-8-sig")
    assert len(sweeps.read_sweep(sweep)) == 4


def test_a_bug_is_not_called_a_mistake_in_the_file(sweep, monkeypatch):
    def bug(_):
        raise KeyError("ours")

    monkeypatch.setattr("deepatlas.sweeps.plan.parse", bug)
    with pytest.raises(KeyError):
        sweeps.read_sweep(sweep)


def test_a_missing_sweep_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no\.toml: no such file; \[\[sweep\]\] tables .* were wanted"
    ):
        sweeps.read_sweep(tmp_path / "no.toml")


def test_an_unknown_filter_is_refused(sweep):
    with pytest.raises(ValueError, match="no parameter 'zebra'"):
        sweeps.read_sweep(sweep, {"zebra": 1})


@pytest.mark.parametrize(
    "only, wanted",
    [
        ({"dataset": "phantom-kne"}, "phantom-kne"),
        ({"seed": True}, "^parameter 'seed' = True: a number or a word was wanted"),
        ({"seed": "one"}, "^parameter 'seed' = 'one': input .*integer"),
        ({"profile": "clas"}, "^parameter 'profile' = 'clas': .*'class'"),
    ],
)
def test_a_filter_that_cannot_fit_is_refused(sweep, only, wanted):
    with pytest.raises(ValueError, match=wanted):
        sweeps.read_sweep(sweep, only)


def test_a_filter_is_read_as_its_parameter_is(sweep):
    sweep.write_text(SWEEP + "lambda_r = [0.1, 0.2]\n")
    assert {e.lambda_r for e in sweeps.read_sweep(sweep, {"lambda_r": "1e-1"})} == {0.1}


def test_a_filter_that_nothing_fits_is_said(sweep, tmp_path):
    results = tmp_path / "results"
    done = CliRunner().invoke(
        app, ["sweep", str(sweep), "dataset=phantom-knee", "--results", str(results)]
    )
    assert done.exit_code == 0 and "no experiment in it has dataset=phantom-knee" in done.output
    assert not results.exists()


def test_an_unknown_filter_says_what_may_have_been_meant(sweep):
    with pytest.raises(ValueError, match="no parameter 'labeled', did you mean 'labelled'"):
        sweeps.read_sweep(sweep, {"labeled": 1})


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
    assert (tmp_path / "runs" / "results" / "regimes.csv").is_file()
    for only in ("seed=0", "seed=1"):
        done = CliRunner().invoke(app, [*arguments, only])
        assert done.exit_code == 0, done.output
    regimes = pd.read_csv(results / "regimes.csv")
    assert regimes["run"].nunique() == 2 and sorted(regimes["seed"].unique()) == [0, 1]
    for name, sha256 in regimes.groupby("run")["sha256"].first().items():
        assert hash_of(results / "runs" / f"{name}.json") == sha256
    rows = evidence.load_results(results)
    assert set(rows["regime"]) == {
        "identity",
        "label_propagation",
        "joint_propagation",
        "reg_baseline_refined",
        "deepatlas_refined",
        *parse({"regimes": "joint", "labelled": 2}).table,
    }
    joint = rows[(rows["regime"] == "deepatlas") & (rows["task"] == "segmentation")]
    means = regimes[(regimes["regime"] == "deepatlas") & (regimes["task"] == "segmentation")]
    means = means.set_index("run")["Dice %"]
    np.testing.assert_allclose(joint.groupby("run")["dice"].mean(), means.sort_index(), atol=0.01)
    gain = evidence.gain(rows[rows["task"] == "segmentation"], "deepatlas", "seg_baseline")
    assert gain["runs"] == 2 and gain["low"] <= gain["gain"] <= gain["high"]


def test_rows_of_the_same_experiment_are_replaced(sweep, tmp_path):
    """As when a file of the method was edited, and everything was run again."""
    experiment = sweeps.read_sweep(sweep, {"labelled": 1, "seed": 0})[0]
    old = experiments.run(experiment, tmp_path / "runs")
    new, other = (old.with_name(name) for name in ("same-parameters-other-code", "other-seed"))
    for folder, seed in ((new, 0), (other, 1)):
        shutil.copytree(old, folder)
        record = json.loads((old / "run.json").read_text())
        record["experiment"] |= {"seed": seed, "label_seed": seed}
        records.write_record(record, folder)
    results = tmp_path / "results"
    sweeps.collect([old, other], results)
    regimes, subjects = sweeps.collect([new], results)
    assert set(regimes["run"]) == set(subjects["run"]) == {new.name, other.name}
    assert {path.stem for path in (results / "runs").iterdir()} == {new.name, other.name}


@pytest.mark.parametrize("name", ["scores.csv", "run.json"])
def test_of_a_damaged_run_nothing_is_collected(sweep, tmp_path, name):
    """What was collected before stays, and it is told before the next training."""
    experiment = sweeps.read_sweep(sweep, {"labelled": 2, "seed": 0})[0]
    folder = experiments.run(experiment, tmp_path / "runs")
    results = tmp_path / "results"
    sweeps.collect([folder], results)
    before = contents(results)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content.replace(b"0.9", b"0.8", 1).replace(b"true", b"false", 1))
    with pytest.raises(UserError, match=rf"{name}: damaged"):
        sweeps.collect([folder], results)
    assert contents(results) == before
    sweeps.check_results(results)
    (results / "subjects.csv").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"subjects\.csv: not the table that was wanted"):
        sweeps.check_results(results)


def test_names_survive_from_the_run_to_the_evidence(sweep, tmp_path):
    """A subject "null", and a structure "NA": read with pandas' defaults they are missing."""
    experiment = sweeps.read_sweep(sweep, {"labelled": 2, "seed": 0})[0]
    folder = experiments.run(experiment, tmp_path / "runs")
    scores = reporting.load_scores(folder)
    subjects, structures = scores["subject"].unique(), scores["structure"].unique()
    new = scores.assign(
        subject=scores["subject"].replace({subjects[0]: "null", subjects[1]: "007"}),
        structure=scores["structure"].replace({structures[0]: "NA"}),
    )
    checkpoints.write_csv(new, folder / "scores.csv")
    record = records.read_record(folder)
    records.keep_hash(record, folder, "scores.csv")
    records.write_record(record, folder)
    regimes, _ = sweeps.collect([folder], tmp_path / "results")
    rows = evidence.load_results(tmp_path / "results")
    assert {"null", "007"} <= set(rows["subject"])
    means = rows.groupby(["task", "regime"])["dice"].mean()
    np.testing.assert_allclose(
        means, regimes.set_index(["task", "regime"])["Dice %"].sort_index(), atol=0.01
    )
    again, _ = sweeps.collect([folder], tmp_path / "results")
    pd.testing.assert_frame_equal(again, regimes, check_exact=False, rtol=1e-5)


def test_what_an_experiment_changes_is_said():
    assert sweeps.changed(parse({})) == ""
    other = parse({"recipe": "paper", "lambda_r": 2, "reg_turns": 5, "label_seed": 3})
    assert sweeps.changed(other) == "reg_turns=5 lambda_r=2.0"
    weighed = parse({"term_weights": {"similarity": 2}, "regimes": "joint"})
    assert sweeps.changed(weighed) == "regimes=joint term_weights.similarity=2.0"


def test_the_records_kept_are_those_that_the_rows_name():
    regimes = sweeps.read_table(FIRST_RESULTS, "regimes")
    for name, sha256 in regimes.groupby("run")["sha256"].first().items():
        record = FIRST_RESULTS / "runs" / f"{name}.json"
        assert hash_of(record) == sha256
        assert json.loads(record.read_text())["experiment"]["seed"] < 100  # others chose the recipe


# --- results of an earlier version ----------------------------------------------------------------


def migrate(folder):
    path = RESULTS / "migrate.py"
    spec = importlib.util.spec_from_file_location("migrate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(folder)


@pytest.fixture
def older(tmp_path):
    """The committed results as the earlier version kept them: three runs."""
    folder = tmp_path / "older"
    (folder / "runs").mkdir(parents=True)
    text = (FIRST_RESULTS / "regimes.csv").read_text(encoding="utf-8")
    header, *lines = text.splitlines(keepends=True)
    runs = dict.fromkeys(line.partition(",")[0] for line in lines if "regimes=joint" in line)
    kept = list(runs)[:3]
    table = header + "".join(line for line in lines if line.partition(",")[0] in kept)
    for name in kept:
        record = (FIRST_RESULTS / "runs" / f"{name}.json").read_bytes()
        path = folder / "runs" / f"{name}.json"
        path.write_bytes(record.replace(b'"regimes"', b'"arms"'))
        table = table.replace(hashlib.sha256(record).hexdigest(), hash_of(path))
    (folder / "arms.csv").write_text(table.replace("regimes=joint", "arms=joint"))
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


def test_older_results_are_brought_up_to_date_letter_by_letter(older):
    migrate(older)
    committed = (FIRST_RESULTS / "regimes.csv").read_text(encoding="utf-8").splitlines()
    lines = (older / "regimes.csv").read_text(encoding="utf-8").splitlines()
    assert not (older / "arms.csv").exists() and len(lines) > 10
    assert set(lines) <= set(committed) and lines[0] == committed[0]
    for path in (older / "runs").iterdir():
        assert path.read_bytes() == (FIRST_RESULTS / "runs" / path.name).read_bytes()
    done = contents(older)
    migrate(older)
    assert contents(older) == done


def test_bringing_up_to_date_goes_on_where_it_was_stopped(older, tmp_path):
    half = shutil.copytree(older, tmp_path / "half")
    migrate(older)
    name = sorted(path.name for path in (half / "runs").iterdir())[0]
    shutil.copyfile(older / "runs" / name, half / "runs" / name)
    migrate(half)
    assert contents(half) == contents(older)


def test_a_record_that_was_edited_is_not_made_to_fit(older):
    table = (older / "arms.csv").read_text(encoding="utf-8")
    name = sorted(path.name for path in (older / "runs").iterdir())[0]
    edited = older / "runs" / name
    edited.write_text(edited.read_text().replace('"finished": true', '"finished": false'))
    migrate(older)
    rows = sweeps.read_table(older, "regimes")
    kept = rows.loc[rows["run"] == edited.stem, "sha256"].iloc[0]
    assert kept in table and kept != hash_of(edited)


def test_what_is_no_folder_of_results_is_refused(older, tmp_path):
    with pytest.raises(SystemExit, match="it is no folder of results"):
        migrate(tmp_path)
    shutil.copyfile(older / "arms.csv", older / "regimes.csv")
    with pytest.raises(SystemExit, match="remove the one that is wrong"):
        migrate(older)


def test_older_results_are_not_mixed_with_new_ones(older):
    for use in (lambda: sweeps.read_table(older, "regimes"), lambda: sweeps.collect([], older)):
        with pytest.raises(UserError, match=r"earlier version.*migrate\.py .*up to date"):
            use()
