"""Tables of one run, from its folder alone."""

import json
import os
from pathlib import Path

from deepatlas import evaluation, notebooks, records, reporting
from deepatlas.checkpoints import write_csv
from deepatlas.errors import UserError

import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import run_record

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
    record = run_record(
        device_name="x86_64",
        threads=1,
        python="3.11.4",
        begun="2026-11-25 12:00:00",
        versions={"torch": "2.6"},
        steps={"seg_baseline": {"seg": 3}, "semi_seg": {"seg": 5}},
        seconds={"seg_baseline": 1.5},
    )
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


# --- names that readers eat -----------------------------------------------------------------------


def test_a_structure_na_and_a_subject_null_count(folder):
    """Read with pandas' defaults they are missing: the mean Dice .527 would be .577."""
    rows = []
    for regime in LEVELS["segmentation"]:
        for subject, dice in {"null": [0.1, 0.8], "p1": [0.5, 0.7], "007": [0.6, 0.462]}.items():
            for structure, value in zip(("NA", "one"), dice, strict=True):
                rows.append(
                    {
                        "task": "segmentation",
                        "regime": regime,
                        "case": subject,
                        "subject": subject,
                        "structure": structure,
                        "dice": value,
                        "nsd": value,
                        "hd95_mm": 1.0,
                        "folds_percent": np.nan,
                        "endpoint_voxels": np.nan,
                    }
                )
    write_csv(pd.DataFrame(rows), folder / "scores.csv")
    eaten = pd.read_csv(folder / "scores.csv")
    eaten = eaten[eaten["regime"] == "deepatlas"]
    assert round(evaluation.per_subject(eaten).mean(), 3) != 0.527
    assert round(of(folder, "segmentation", "deepatlas").mean(), 3) == 0.527
    assert set(of(folder, "segmentation", "deepatlas").index) == {"null", "p1", "007"}
    table = reporting.results_table(folder)
    assert table["Dice %"].round(1).unique().tolist() == [52.7]
    assert reporting.structure_table(folder, "segmentation").index.tolist() == ["NA", "one"]


# --- files that are not the run's -----------------------------------------------------------------


def test_without_hashes_rows_that_are_missing_are_told_all_the_same(folder):
    """Runs of earlier versions kept none: a file cut at a line's end is seen by its rows."""
    whole = (folder / "scores.csv").read_text().splitlines(keepends=True)
    for count in (1, 5, 13, 30, 60, len(whole) - 1):
        (folder / "scores.csv").write_text("".join(whole[:count]))
        with pytest.raises(
            UserError, match=r"scores\.csv: rows of it are missing; only the version"
        ):
            reporting.results_table(folder)


def test_scores_of_another_run_are_told(folder):
    record = json.loads((folder / "run.json").read_text())
    records.keep_hash(record, folder, "scores.csv")
    records.write_record(record, folder)
    before = reporting.results_table(folder)
    text = (folder / "scores.csv").read_text()
    (folder / "scores.csv").write_text(text.replace("zebra", "zebrA"))
    with pytest.raises(UserError, match=r"scores\.csv: damaged, or of another run"):
        reporting.results_table(folder)
    (folder / "scores.csv").unlink()
    with pytest.raises(UserError, match=r"scores\.csv: missing"):
        reporting.results_table(folder)
    (folder / "scores.csv").write_text(text)
    pd.testing.assert_frame_equal(reporting.results_table(folder), before)


def test_a_record_that_was_changed_is_told(folder):
    record = json.loads((folder / "run.json").read_text())
    records.keep_hash(record, folder, "scores.csv")
    records.write_record(record, folder)
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace("1.5", "1.6"))
    with pytest.raises(
        UserError, match=r"run\.json: damaged, it is not as the run wrote it: remove"
    ):
        reporting.results_table(folder)


@pytest.mark.parametrize("key", ["finished", "steps", "seconds", "structures", "experiment"])
@pytest.mark.parametrize("value", [None, [], "x", 7])
def test_a_record_that_lacks_something_is_told(folder, key, value):
    record = json.loads((folder / "run.json").read_text())
    del record[key]
    record |= {} if value is None else {key: value}
    (folder / "run.json").write_text(json.dumps(record))
    if (key, value) == ("structures", []):
        return  # possible
    with pytest.raises(UserError, match=rf"run\.json: damaged, or not the record of a run \({key}"):
        reporting.load_record(folder)


# --- notebooks ------------------------------------------------------------------------------------


def notebook_of(path, code):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("name", ["{x}", "{seed}", "{", "a}b", "{0!r:>{9}}"])
def test_braces_in_a_path_are_letters(tmp_path, name):
    (tmp_path / name).mkdir()
    path = notebook_of(tmp_path / name / "in.ipynb", "print(1 + 1)")
    to = tmp_path / name / "out.ipynb"
    done = notebooks.execute(path, {"seed": 1}, to)
    assert done.cells[-1].outputs[0].text == "2\n" and to.is_file()


def test_a_cell_that_stops_and_a_kernel_that_is_not_there_are_told(tmp_path):
    path = notebook_of(tmp_path / "in.ipynb", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(UserError, match=r"in\.ipynb: no kernel ran it .* \(Kernel died"):
        notebooks.execute(path, {})
    path.write_text(path.read_text().replace('"python3"', '"zebra"'))
    with pytest.raises(UserError, match=r"in\.ipynb: no kernel ran it .* kernel named zebra"):
        notebooks.execute(path, {})


def test_each_kernel_has_its_own_files_and_time_to_start(tmp_path, monkeypatch):
    import papermill

    code = "import os; print(os.environ['IPYTHONDIR'], os.environ['JUPYTER_RUNTIME_DIR'])"
    path = notebook_of(tmp_path / "in.ipynb", code)
    mine = {name: os.environ.get(name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
    limits = []
    real = papermill.execute_notebook

    def execute(*words, **options):
        limits.append(options["start_timeout"])
        return real(*words, **options)

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    found = []
    for _ in range(2):
        found += notebooks.execute(path, {}).cells[-1].outputs[0].text.split()
    assert len({*found, *mine.values()}) == 6, "all differ, from this process's own, too"
    assert not any(Path(folder).exists() for folder in found)
    assert {name: os.environ.get(name) for name in mine} == mine
    assert limits == [600, 600], "seconds"


def test_a_bug_is_not_called_a_kernels_death(tmp_path, monkeypatch):
    import papermill

    def bug(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr(papermill, "execute_notebook", bug)
    with pytest.raises(KeyError):
        notebooks.execute(tmp_path / "in.ipynb", {})


def test_what_a_notebook_needs_is_looked_for_before(monkeypatch):
    notebooks.check_installed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"papermill and nbconvert .*not installed.*--no-notebook"):
        notebooks.check_installed()
