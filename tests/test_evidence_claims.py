"""Claims that were stated before the runs: read, tested over runs, corrected for their number."""

import math

from deepatlas import evidence
from deepatlas.cli import app
from deepatlas.errors import UserError
from deepatlas.evidence import claims
from deepatlas.evidence.claims import Claim
from deepatlas.places import RESULTS

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

SEEDS = [0, 1, 2, 3, 4]
USUAL = {
    "name": "it gains",
    "cohorts": ["d, 2D"],
    "labelled": 1,
    "task": "registration",
    "against": "reg_control",
    "seeds": SEEDS,
}


def claim(**changed):
    return Claim(**(USUAL | changed))


def write_results(folder, dice, validation=None, dataset="d", more=None):
    """Tables of runs in ``folder``: Dice of two subjects of each seed, {regime: one number a seed},
    one of them a point above the other.
    """
    regimes, subjects = [], []
    for regime, values in dice.items():
        for seed, value in enumerate(values):
            if math.isnan(value):
                continue
            who = {"run": f"{dataset}-{seed}", "task": "registration", "regime": regime}
            scores = {} if validation is None else {"validation": validation[regime][seed]}
            what = {"dataset": dataset, "profile": "class", "dims": 2, "recipe": "best"}
            what |= {"labelled": 1, "seed": seed, "label_seed": seed, "changed": ""}
            mean = {"Dice %": value, "folds %": 0.0, "sha256": "x"}
            regimes.append({**who, **mean, **what, **scores})
            for i, shift in enumerate((-0.5, 0.5)):
                row = {**who, "subject": f"p{i}", "dice": value + shift}
                subjects.append(row | ({} if more is None else {"endpoint_voxels": more[regime]}))
    tables = {"regimes": pd.DataFrame(regimes), "subjects": pd.DataFrame(subjects)}
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        if path.exists():
            table = pd.concat([pd.read_csv(path, keep_default_na=False, na_values=[]), table])
        table.to_csv(path, index=False)


def judged(folder, *some):
    return evidence.judge(list(some), folder)


GAINS = np.array([2.0, 2.4, 1.7, 2.2, 1.9])


@pytest.fixture
def results(tmp_path):
    write_results(tmp_path, {"deepatlas": 70 + GAINS, "reg_control": [70.0] * 5})
    return tmp_path


def test_p_is_students_over_the_means_of_runs(results):
    (row,) = judged(results, claim()).to_dict("records")
    assert row["p"] == pytest.approx(stats.ttest_1samp(GAINS, 0).pvalue, rel=1e-6)
    assert row["gain"] == pytest.approx(GAINS.mean()) and row["runs"] == 5
    assert row["low"] < row["gain"] < row["high"] and row["decision"] == "holds"
    assert row["by_seed"] == "+2.0, +2.4, +1.7, +2.2, +1.9"
    assert row["against"] == "Baseline, as long as DeepAtlas"


def test_a_gain_has_to_lie_beyond_the_minimum(results):
    (row,) = judged(results, claim(minimum=1.0)).to_dict("records")
    assert row["p"] == pytest.approx(stats.ttest_1samp(GAINS, 1).pvalue, rel=1e-6)
    assert row["decision"] == "holds"
    (row,) = judged(results, claim(minimum=3.0)).to_dict("records")
    assert row["p"] < 0.05 and row["decision"] == "refuted"  # it is below 3, for certain


def test_a_loss_does_not_bear_out_a_gain(results):
    back = claim(regime="reg_control", against="deepatlas")
    (row,) = judged(results, back).to_dict("records")
    assert row["p"] < 0.05 and row["gain"] < 0 and row["decision"] == "refuted"
    less = claim(regime="reg_control", against="deepatlas", direction="lower", minimum=1.0)
    (row,) = judged(results, less).to_dict("records")
    assert row["decision"] == "holds"
    assert row["p"] == pytest.approx(stats.ttest_1samp(-GAINS, -1).pvalue, rel=1e-6)


def test_holm_counts_every_claim_those_without_runs_too(results):
    weak = 70 + np.array([2.0, -1.0, 3.0, 0.5, 1.5])
    write_results(results, {"deepatlas": weak, "reg_control": [70.0] * 5}, dataset="e")
    strong, other = claim(), claim(cohorts=["e, 2D"])
    absent = claim(seeds=[*SEEDS, 7, 8])
    alone = judged(results, strong)["p_holm"].iloc[0]
    table = judged(results, strong, other, absent)
    assert table["p_holm"].iloc[0] == pytest.approx(3 * alone)
    assert table["p_holm"].iloc[1] == pytest.approx(2 * table["p"].iloc[1])
    assert table["decision"].tolist() == ["holds", "not shown", "not enough runs"]
    assert table["lacking"].iloc[2] == "7, 8" and math.isnan(table["p"].iloc[2])


def test_a_claim_is_about_every_one_of_its_cohorts(results):
    weak = 70 + np.array([2.0, -1.0, 3.0, 0.5, 1.5])
    write_results(results, {"deepatlas": weak, "reg_control": [70.0] * 5}, dataset="e")
    table = judged(results, claim(cohorts=["d, 2D", "e, 2D"]))
    assert table["p"].iloc[0] < 0.001 and table["p"].iloc[1] > 0.1
    assert (table["p_holm"] == table["p"].max()).all()
    assert (table["decision"] == "not shown").all()


def test_a_run_without_one_of_the_regimes_is_lacking(tmp_path):
    control = [70.0, 70.0, math.nan, 70.0, 70.0]
    write_results(tmp_path, {"deepatlas": 70 + GAINS, "reg_control": control})
    (row,) = judged(tmp_path, claim()).to_dict("records")
    assert (row["decision"], row["lacking"], row["runs"]) == ("not enough runs", "2", 4)


def test_other_seeds_have_no_part_in_it(results):
    """More runs than were planned, until it holds: no."""
    (row,) = judged(results, claim(seeds=[0, 1, 2])).to_dict("records")
    assert row["runs"] == 3 and row["gain"] == pytest.approx(GAINS[:3].mean())


def test_the_better_rival_is_the_one_that_validation_scans_prefer(tmp_path):
    dice = {
        "deepatlas": [72.0] * 5,
        "reg_baseline": [60.0, 60.0, 71.0, 71.0, 60.0],
        "reg_control": [70.0, 70.5, 65.0, 65.0, 71.0],
    }
    validation = {  # in the fourth run it is wrong about the test scans, and counts all the same
        "deepatlas": [90.0] * 5,
        "reg_baseline": [50.0, 50.0, 80.0, 50.0, 70.0],
        "reg_control": [60.0, 60.0, 60.0, 60.0, 80.0],
    }
    write_results(tmp_path, dice, validation)
    both = claim(against=["reg_baseline", "reg_control"])
    (row,) = judged(tmp_path, both).to_dict("records")
    assert row["by_seed"] == "+2.0, +1.5, +1.0, +7.0, +1.0"
    assert row["against"] == "the better of Baseline and Baseline, as long as DeepAtlas"


def test_without_validation_scores_no_rival_is_the_better(tmp_path):
    dice = {"deepatlas": [72.0] * 5, "reg_baseline": [60.0] * 5, "reg_control": [70.0] * 5}
    write_results(tmp_path, dice)
    both = claim(against=["reg_baseline", "reg_control"])
    with pytest.raises(UserError, match="run d-0 has no validation score of each of reg_baseline,"):
        judged(tmp_path, both)
    assert judged(tmp_path, claim())["runs"].tolist() == [5]


def test_a_true_error_is_claimed_as_dice_is(tmp_path):
    error = {"deepatlas": 1.2, "reg_control": 1.5}
    write_results(tmp_path, {"deepatlas": 70 + GAINS, "reg_control": [70.0] * 5}, more=error)
    lower = claim(metric="endpoint_voxels", direction="lower", seeds=[0, 1])
    (row,) = judged(tmp_path, lower).to_dict("records")
    assert row["gain"] == pytest.approx(-0.3) and row["by_seed"] == "-0.30, -0.30"
    assert math.isnan(row["p"]) and row["decision"] == "not shown"  # runs without any scatter
    unknown = claim(metric="endpoint_boundary_voxels", direction="lower")
    (row,) = judged(tmp_path, unknown).to_dict("records")
    assert row["decision"] == "not enough runs"


def test_runs_with_something_changed_are_claimed_about_by_name(results):
    (row,) = judged(results, claim(changed="keep=last")).to_dict("records")
    assert row["decision"] == "not enough runs"


def test_the_precision_is_the_machines_matter(results):
    path = results / "regimes.csv"
    table = pd.read_csv(path, keep_default_na=False, na_values=[])
    table.assign(changed="precision=bfloat16").to_csv(path, index=False)
    assert judged(results, claim())["decision"].tolist() == ["holds"]
    table.assign(changed="passes=2 precision=bfloat16").to_csv(path, index=False)
    assert judged(results, claim())["decision"].tolist() == ["not enough runs"]
    assert judged(results, claim(changed="passes=2"))["decision"].tolist() == ["holds"]


def test_a_seed_counts_once(results):
    for name in ("regimes", "subjects"):
        path = results / f"{name}.csv"
        table = pd.read_csv(path, keep_default_na=False, na_values=[])
        again = table[table["run"] == "d-3"].assign(run="again")
        if name == "regimes":
            again = again.assign(changed="precision=float32")
        pd.concat([table, again]).to_csv(path, index=False)
    with pytest.raises(UserError, match="'it gains': several runs of one seed, of which one"):
        judged(results, claim())


# --- the file -------------------------------------------------------------------------------------

LINE = """
[[claim]]
name = "it gains"
cohorts = ["d, 2D"]
labelled = 1
task = "registration"
against = "reg_control"
seeds = [0, 1, 2, 3, 4]
"""


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "1 to 8 tables .* got 0"),
        (9 * LINE, "1 to 8 tables .* got 9"),
        (LINE + "minium = 2", "claim 1: minium: Extra inputs"),
        (LINE.replace("reg_control", "reg_contorl"), "no regime 'reg_contorl', did you mean 'reg_"),
        (LINE.replace('"reg_control"', "[]"), "a rival was wanted"),
        (LINE + LINE.replace("registration", "both"), "claim 2: task: "),
        (LINE + 'metric = "seconds"', "claim 1: metric: "),
        (LINE + "minimum = -1", "claim 1: minimum: "),
        (LINE.replace("[0, 1, 2, 3, 4]", "[0]"), "claim 1: seeds: "),
        ("claim = [", r"\[\[claim\]\] tables were wanted"),
    ],
)
def test_a_file_of_claims_that_cannot_be_read_is_an_error(tmp_path, text, said):
    path = tmp_path / "claims.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"claims\.toml: .*{said}"):
        claims.read_claims(path)


def test_the_projects_claims_can_be_read():
    found = claims.read_claims(RESULTS / "claims.toml")
    assert 1 <= len(found) <= 8 and len({one.name for one in found}) == len(found)
    for one in found:
        assert (one.metric == "dice") == (one.direction == "higher")


def test_the_command_and_the_pages_tell_what_becomes_of_them(results):
    text = LINE + LINE.replace("it gains", "more runs").replace("4]", "4, 9]")
    (results / "claims.toml").write_text(text, encoding="utf-8")
    said = CliRunner().invoke(app, ["gains", str(results)], catch_exceptions=False).output
    assert "it gains" in said and "holds" in said and "not enough runs" in said
    page = evidence.fill_tables("<!-- claims -->\n<!-- end -->", results)
    assert "| it gains | d, 2D | Baseline, as long as DeepAtlas | +2.04 [" in page
    assert "| no run of seed 9 |" in page and page.count("not enough runs") == 1
    (results / "regimes.csv").unlink()
    page = evidence.fill_tables("<!-- claims -->\n<!-- end -->", results)
    assert "*No rows yet.*" in page
