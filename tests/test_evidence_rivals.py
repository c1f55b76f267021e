"""Rivals stand in the tables of evidence as if they were regimes of the runs that they are of."""

from benchmarks.peers.table import RIVALS
from deepatlas import evidence
from deepatlas.errors import UserError
from deepatlas.evidence import rivals
from deepatlas.evidence.claims import Claim
from deepatlas.evidence.gains import sees_all_labels

import pandas as pd
import pytest
from test_evidence_claims import write_results

DICE = {
    "reg_baseline": [70.0, 71.0, 72.0],
    "deepatlas": [72.0, 73.5, 74.0],
    "reg_baseline_refined": [74.0, 75.0, 76.0],
    "deepatlas_refined": [78.0, 79.5, 80.0],
}
SYN = [75.0, 76.0, 77.0]


def row(seed, subject, dice, **changed):
    """Of the file of rivals, by default SyN's."""
    usual = {
        "run": f"d-class-2d-N0-seed{seed}",
        "task": "registration",
        "regime": "ants_cc",
        "subject": subject,
        "dice": dice,
        "endpoint_voxels": float("nan"),
        "endpoint_boundary_voxels": float("nan"),
        "dataset": "d",
        "profile": "class",
        "dims": 2,
        "labelled": 0,
        "seed": seed,
        "label_seed": seed,
        "part": "test",
    }
    return usual | changed


def syn():
    return [row(seed, f"p{i}", SYN[seed] + i - 0.5) for seed in range(3) for i in range(2)]


@pytest.fixture
def results(tmp_path):
    write_results(tmp_path, DICE)
    pd.DataFrame(syn()).to_csv(tmp_path / rivals.FILE, index=False)
    return tmp_path


def with_rivals(folder, *rows):
    pd.DataFrame(rows).to_csv(folder / rivals.FILE, index=False)
    return evidence.load_results(folder)


def test_every_rival_has_a_title_and_its_task():
    assert RIVALS.keys() == rivals.TITLES.keys()
    for key, rival in RIVALS.items():
        titles = {"registration": rivals.REGISTRATIONS, "segmentation": rivals.SEGMENTATIONS}
        assert key in titles[rival.task]
        assert (rival.sees == "all") == (key == rivals.ALL_LABELS) == sees_all_labels(key)


def test_a_rival_is_a_row_of_the_run_of_its_seed(results):
    rows = evidence.load_results(results)
    found = rows[rows["regime"] == "ants_cc"]
    assert found.groupby("run")["dice"].mean().to_dict() == {f"d-{s}": SYN[s] for s in range(3)}
    assert set(found["labelled"]) == {1} and set(found["recipe"]) == {"best"}


def test_scans_of_validation_and_other_cohorts_are_left_out(results):
    others = ({"part": "validation"}, {"dataset": "e"}, {"dims": 3}, {"seed": 7}, {"profile": "x"})
    for other in others:
        rows = with_rivals(results, *(one | other for one in syn()))
        assert set(rows["regime"]) == set(DICE)


def test_what_a_rival_saw_of_the_labels_is_what_the_run_saw(results):
    seen = {"regime": "dynunet", "task": "segmentation", "labelled": 1}
    for changed, there in (
        ({}, True),
        ({"labelled": 5}, False),
        ({"label_seed": 9}, False),
        ({"regime": rivals.ALL_LABELS, "labelled": 24}, True),
    ):
        regime = (seen | changed)["regime"]
        rows = with_rivals(results, row(0, "p0", 80.0, **(seen | changed)))
        assert (regime in set(rows["regime"])) == there


def test_runs_that_change_something_have_no_rivals(results):
    path = results / "regimes.csv"
    table = pd.read_csv(path, keep_default_na=False)
    table.assign(changed="lambda_a=0.0").to_csv(path, index=False)
    assert set(evidence.load_results(results)["regime"]) == set(DICE)


def test_a_rival_of_each_pair_is_compared_with_what_is_refined(results):
    table = evidence.gains(evidence.load_results(results)).set_index("against")
    assert table.loc["ants_cc", "gain"] == pytest.approx(9.5 / 3)
    assert table.loc["reg_baseline_refined", "gain"] == pytest.approx(12.5 / 3)
    assert table.loc["reg_baseline", "gain"] == pytest.approx(6.5 / 3)
    assert "deepatlas_refined" not in table.index


def test_bold_is_told_apart_by_whether_each_pair_is_sought_by_itself(results):
    page = evidence.fill_tables("<!-- dice labelled=1 -->\n<!-- end -->", results)
    means = page.split("<details>")[0].splitlines()
    lines = {line.split(" | ")[0].strip("| "): line for line in means}
    assert "**73.2**" in lines["DeepAtlas"] and "**79.2**" in lines["DeepAtlas, refined"]
    assert "76.0" in lines["SyN of ANTs, cross-correlation"]
    assert page.count("**") == 4


def test_a_claim_may_be_about_a_rival(results):
    claim = Claim(
        name="ahead of SyN",
        cohorts=["d, 2D"],
        labelled=1,
        task="registration",
        regime="deepatlas_refined",
        against="ants_cc",
        seeds=[0, 1, 2],
    )
    (found,) = evidence.judge([claim], results).to_dict("records")
    assert found["by_seed"] == "+3.0, +3.5, +3.0" and found["decision"] == "holds"


def test_a_damaged_file_of_rivals_is_named(results):
    (results / rivals.FILE).write_text("run,task\na,b\n")
    with pytest.raises(UserError, match=rf"{rivals.FILE}: not the table that was wanted"):
        evidence.load_results(results)
