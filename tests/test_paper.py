"""The tables of the paper: what it prints, and what runs of this kit put beside it."""

from deepatlas import places, sweeps
from deepatlas.cli import main
from deepatlas.errors import UserError
from deepatlas.evidence import paper
from deepatlas.regimes import BASELINES, FIRST, JOINT, SEMI

import pandas as pd
import pytest

STRUCTURES = ("femur", "femoral cartilage", "tibia", "tibial cartilage")


def scores(task, regime, dice):
    """Rows of two subjects; ``dice`` of each structure of the first, the second scores 0.1 less."""
    rows = []
    for subject, less in (("a", 0.0), ("b", 0.1)):
        for structure, value in zip(STRUCTURES, dice, strict=True):
            rows.append(
                {
                    "task": task,
                    "regime": regime,
                    "case": subject,
                    "subject": subject,
                    "structure": structure,
                    "dice": value - less,
                }
            )
    return pd.DataFrame(rows)


def test_every_line_of_the_paper_has_a_cell_for_every_column():
    assert set(paper.PAPER) == {"knee", "brain"}
    for table in paper.PAPER.values():
        for labelled, model in table.rows:
            assert list(table.printed(labelled, model)) == table.columns
            assert model in paper.MODELS
    knee = paper.PAPER["knee"].printed(5, "DA")
    assert knee["Seg all"] == "88.92 (2.01)" and knee["Reg cart."] == "73.67 (5.22)"
    assert paper.PAPER["brain"].printed(21, "DA") == {"Seg": "76.06 (1.50)", "Reg": "62.92 (2.13)"}


def test_the_mean_of_all_is_what_the_paper_says_of_bones_and_cartilage():
    """A slip of the pen in a number would show: all four structures count alike."""
    table = paper.PAPER["knee"]
    for key in table.rows:
        cells = table.printed(*key)
        for task in paper.TASKS:
            bones, cartilage, both = (cells[f"{task} {group}"] for group in table.groups)
            if both != "-":
                mean = (float(bones.split()[0]) + float(cartilage.split()[0])) / 2
                assert mean == pytest.approx(float(both.split()[0]), abs=0.011)


@pytest.fixture
def runs(monkeypatch):
    """Two runs at N = 1 and one at N = 5, as what their folders say."""
    of = {
        "one": (
            1,
            pd.concat(
                [
                    scores("registration", "reg_baseline", (0.9, 0.5, 0.9, 0.5)),
                    scores("segmentation", "semi_first", (0.9, 0.6, 0.9, 0.6)),
                    scores("segmentation", "deepatlas", (0.95, 0.7, 0.95, 0.7)),
                    scores("registration", "deepatlas", (0.9, 0.6, 0.9, 0.6)),
                ]
            ),
        ),
        "two": (1, scores("segmentation", "deepatlas", (0.85, 0.6, 0.85, 0.6))),
        "five": (5, scores("segmentation", "seg_baseline", (0.9, 0.7, 0.9, 0.7))),
    }
    monkeypatch.setattr(paper, "_scores_of", of.__getitem__)
    return list(of)


def test_runs_fill_the_table_in_the_papers_layout(runs):
    table = paper.paper_table("knee", runs)
    assert list(table.index[:2]) == [(0, "Baseline", "here"), (0, "Baseline", "paper")]
    # unsupervised registration is the baseline at N = 1: 90 and 80 %, sd of two subjects
    assert table.loc[(0, "Baseline", "here"), "Reg bones"] == "85.00 (7.07)"
    assert table.loc[(0, "Baseline", "here"), "Seg bones"] == "-"
    # the mean of two runs
    assert table.loc[(1, "DA", "here"), "Seg bones"] == "85.00 (7.07)"
    assert table.loc[(1, "DA", "here"), "Seg cart."] == "60.00 (7.07)"
    assert table.loc[(1, "DA", "here"), "Seg all"] == "72.50 (7.07)"
    assert table.loc[(1, "DA", "paper"), "Seg all"] == "87.21 (1.84)"
    assert table.loc[(5, "Baseline", "here"), "Seg bones"] == "85.00 (7.07)"
    # the first round: segmentation taught by registration, which has seen no label
    assert table.loc[(1, "Semi-DA", "here"), "Seg bones"] == "85.00 (7.07)"
    # what no run fills is left empty, what the paper does not have is a dash
    assert table.loc[(200, "Baseline", "here"), "Seg bones"] == ""
    assert table.loc[(1, "Semi-DA", "here"), "Reg all"] == "-"


def test_another_table_is_refused():
    with pytest.raises(UserError, match="no table 'knees', did you mean 'knee'"):
        paper.paper_table("knees", [])


# --- as a sweep -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dataset", "counts"),
    [
        ("knee", "oai-zib", {1: 3, 5: 3, 10: 3, 200: 3}),
        ("brain", "mindboggle101", {1: 3, 21: 3, 65: 3}),
    ],
)
def test_the_papers_runs_are_planned(name, dataset, counts):
    """With the paper's networks and recipe, batches of one, and each N of its table."""
    file = places.NOTEBOOKS / "configs" / f"paper-{name}.toml"
    assert sweeps.read_paper_table(file) == name
    planned = sweeps.read_sweep(file)
    assert {experiment.dataset for experiment in planned} == {dataset}
    assert {n: sum(e.labelled == n for e in planned) for n in counts} == counts
    assert len(planned) == sum(counts.values())
    for experiment in planned:
        assert experiment.networks == experiment.recipe == "paper"
        assert (experiment.profile, experiment.dims, experiment.batch_size) == ("full", 3, 1)
        keys = {*BASELINES.values(), JOINT}
        assert set(experiment.table) >= keys
        if experiment.labelled < max(counts):
            first = {FIRST} if experiment.labelled == 1 else set()
            assert set(experiment.table) == keys | {*SEMI.values()} | first
    wanted = {labelled for labelled, _ in paper.PAPER[name].rows if labelled}
    assert wanted == set(counts)


def test_a_sweep_ends_with_the_papers_table(tmp_path, monkeypatch, capsys):
    """On synthetic knees, which have the paper's four structures."""
    file = tmp_path / "knees.toml"
    file.write_text(
        '[paper]\ntable = "knee"\n[[sweep]]\ndataset = "phantom-knee"\nprofile = "smoke"\n'
        'regimes = "paper"\ndims = 2\nlabelled = 1\n'
    )
    words = ["deepatlas", "sweep", str(file), "--root", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert "Table 1: knees, N of 200 training scans labelled" in told
    (column,) = [line for line in lines if "Seg bones" in line]
    assert column.index("Seg bones") < column.index("Seg cart.") < column.index("Reg all")
    assert "88.92 (2.01)" in told, "the paper's own numbers stand beside"
    here = next(line for line in lines if "DA" in line and "here" in line and "Semi" not in line)
    assert here.count("(") == 6, "all six cells of DA at N = 1 are filled"
    assert "- How many steps the paper's 100 epochs have is not known" in told


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ('[paper]\ntable = "knees"\n', "no table 'knees', did you mean 'knee'"),
        ("[paper]\n", r"\[paper\] wants the name of a table"),
        ("paper = 3\n", r"\[paper\] wants the name of a table"),
    ],
)
def test_a_table_that_is_none_is_refused_before_the_first_run(
    said, sentence, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "sweep.toml"
    file.write_text(said + '[[sweep]]\ndataset = "phantom-knee"\nprofile = "smoke"\n')
    monkeypatch.setattr("sys.argv", ["deepatlas", "sweep", str(file), "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match=sentence):
        main()
    assert not list(tmp_path.glob("phantom-knee*"))
