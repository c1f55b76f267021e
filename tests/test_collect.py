"""What the tables of many runs say of networks on validation scans, and of true errors."""

import json

from deepatlas import evaluation, experiments, places, reporting, sweeps
from deepatlas.checkpoints import read_checkpoint
from deepatlas.parameters import parse
from deepatlas.regimes import NETWORK_OF, REFERENCES, REFINED
from deepatlas.sweeps.collect import LATER

import numpy as np
import pandas as pd
import pytest

VALUES = {"profile": "smoke", "device": "cpu", "dims": 2, "labelled": 2, "joint_start": "trained"}
REGIMES = ["run", "task", "regime"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run in which networks may keep their start."""
    root = tmp_path_factory.mktemp("runs")
    return experiments.run(parse({**VALUES, "keep": "best"}), root)


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    sweeps.collect([run], folder)
    return folder


def without_later(results, folder):
    """The tables as an earlier version wrote them."""
    folder.mkdir()
    for name, columns in LATER.items():
        table = sweeps.read_table(results, name).drop(columns=list(columns))
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def test_validation_is_that_of_the_weights_that_were_kept(run, results):
    rows = sweeps.read_table(results, "regimes")
    untrained = {*REFERENCES, *REFINED.values()}
    trained = rows[~rows["regime"].isin(untrained)]
    assert len(trained) > 5 and trained["validation"].notna().all()
    for row in trained.itertuples():
        kept = read_checkpoint(run / row.regime / "checkpoint.pt")["best_score"]
        assert row.validation == pytest.approx(100 * kept[NETWORK_OF[row.task]], abs=1e-3)
    references = rows[rows["regime"].isin(untrained)]
    assert set(references["regime"]) == untrained
    assert references[["validation", "teacher"]].isna().all(axis=None)


def test_a_start_that_was_kept_is_what_validation_says(run, results):
    """It stands in no row of the history: it was scored before the first step."""
    history = reporting.load_history(run)
    rows = sweeps.read_table(results, "regimes").set_index(["task", "regime"])
    starts = {"deepatlas": "seg_baseline", "seg_control": "seg_baseline"}
    for regime, start in starts.items():
        after = history.loc[history["regime"] == regime, "validation_seg"].max()
        before = rows.loc[("segmentation", start), "validation"]
        found = rows.loc[("segmentation", regime), "validation"]
        assert found == pytest.approx(max(100 * after, before), abs=1e-3)


def test_the_teacher_is_the_other_network_as_it_was_at_the_end(run, results):
    history = reporting.load_history(run).groupby("regime").last()
    rows = sweeps.read_table(results, "regimes").set_index(["task", "regime"])
    teachers = rows["teacher"]
    for task, regime, column in (
        ("segmentation", "deepatlas", "teacher_reg"),
        ("registration", "deepatlas", "teacher_seg"),
        ("segmentation", "semi_seg", "teacher_reg"),
        ("registration", "semi_reg", "teacher_seg"),
    ):
        wanted = 100 * history.loc[regime, column]
        assert teachers[task, regime] == pytest.approx(wanted, abs=1e-3)
    # a fixed teacher is the network that was trained before, and was scored there as it was kept
    baseline = rows.loc[("registration", "reg_baseline"), "validation"]
    assert teachers["segmentation", "semi_seg"] == pytest.approx(baseline, abs=1e-3)
    alone = [regime for _, regime in rows.index if regime.endswith(("baseline", "control", "full"))]
    assert len(alone) == 6
    assert teachers[teachers.index.isin(alone, level="regime")].isna().all()


def test_a_subjects_true_errors_are_kept(run, results):
    subjects = sweeps.read_table(results, "subjects")
    scores = reporting.load_scores(run)
    for regime in ("identity", "deepatlas"):
        of_scores = scores[(scores["task"] == "registration") & (scores["regime"] == regime)]
        of_subjects = subjects[
            (subjects["task"] == "registration") & (subjects["regime"] == regime)
        ].set_index("subject")
        for column in LATER["subjects"]:
            wanted = evaluation.per_subject(of_scores, column)
            assert wanted.notna().all() and wanted.gt(0).all()
            found = of_subjects[column].loc[wanted.index]
            np.testing.assert_allclose(found, wanted, rtol=1e-4)
    segmented = subjects[subjects["task"] == "segmentation"]
    assert segmented[list(LATER["subjects"])].isna().all(axis=None)
    # of a run, the mean of what its subjects have
    rows = sweeps.read_table(results, "regimes").set_index(["task", "regime"])
    means = subjects.groupby(["task", "regime"])[list(LATER["subjects"])].mean()
    for column, of_run in zip(
        LATER["subjects"], ("error voxels", "error boundary voxels"), strict=True
    ):
        found = rows[of_run].dropna()
        assert len(found) > 5
        np.testing.assert_allclose(found, means[column].loc[found.index], rtol=1e-3)


def test_tables_of_an_earlier_version_are_read_and_added_to(run, results, tmp_path):
    older = without_later(results, tmp_path / "older")
    for name, columns in LATER.items():
        table = sweeps.read_table(older, name)
        assert table[list(columns)].isna().all(axis=None)
    another = parse({**VALUES, "regimes": "joint", "seed": 1})
    folder = experiments.run(another, tmp_path / "runs")
    sweeps.collect([folder], older)
    rows = sweeps.read_table(older, "regimes")
    assert rows.groupby("run")["validation"].count().to_dict() == {run.name: 0, folder.name: 4}
    again = sweeps.read_table(results, "regimes")
    kept = rows[rows["run"] == run.name].drop(columns=list(LATER["regimes"]))
    pd.testing.assert_frame_equal(
        kept.reset_index(drop=True),
        again[kept.columns].sort_values(REGIMES, kind="stable").reset_index(drop=True),
        check_dtype=False,
    )


def test_the_first_protocols_tables_are_read():
    for name, columns in LATER.items():
        table = sweeps.read_table(places.FIRST_RESULTS, name)
        assert len(table) > 100 and set(columns) <= set(table)


def test_a_run_of_an_earlier_version_says_nothing_of_validation(run, tmp_path):
    """Its history has scores, but not of what was kept."""
    record = json.loads((run / "run.json").read_text()) | {"sha256": None, "checksum": None}
    record = {key: value for key, value in record.items() if value is not None}
    (tmp_path / "run.json").write_text(json.dumps(record))
    history = pd.read_csv(run / "history.csv")
    new = [name for name in history if name.startswith(("kept", "teacher"))]
    assert len(new) == 4
    history.drop(columns=new).to_csv(tmp_path / "history.csv", index=False)
    table = reporting.validation_table(tmp_path)
    assert list(table) == ["validation", "teacher"] and table.isna().all(axis=None)
