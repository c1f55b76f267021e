"""What the lessons cost: measured, and said in their headers. What they say of volumes."""

import re
import shutil
import sys
from types import SimpleNamespace

import deepatlas
from deepatlas import (
    datasets,
    evaluation,
    evidence,
    lessons,
    losses,
    models,
    notebooks,
    phantom,
    places,
    registration,
    sweeps,
)
from deepatlas.cli import app
from deepatlas.datasets.nifti import read_nifti
from deepatlas.evidence.gains import usual_runs
from deepatlas.parameters import parse
from deepatlas.warp import Deformation

import nbformat
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

ROWS = {row["lesson"]: row for row in pd.read_csv(places.LESSON_COSTS).to_dict("records")}
ROW = {"first_seconds": 118.0, "again_seconds": 22.0, "cores": 2, "memory_gib": 0.58}


def test_every_lesson_was_measured():
    assert list(ROWS) == [path.stem for path in lessons.paths()]


@pytest.mark.parametrize("path", lessons.paths(), ids=lambda path: path.stem)
def test_a_header_says_what_was_measured_of_this_code(path):
    row = ROWS[path.stem]
    assert row["code"] == lessons.code_hash(path), (
        f"the code of {path.stem} has changed: deepatlas measure {path.stem}"
    )
    (header,) = lessons.HEADER.findall(path.read_text(encoding="utf-8"))
    assert header[1] == lessons.cost(row)
    assert row["cores"] >= 2 and row["first_seconds"] < 300 * row["cores"] / 2, (
        "five minutes on two cores"
    )


@pytest.mark.parametrize(
    "first, again, words",
    [
        (
            118,
            22,
            "2 minutes to run on 2 processor cores the first time, 25 seconds afterwards; 0.6 GiB",
        ),
        (11.2, 10.9, "15 seconds to run on 2 processor cores; 0.6 GiB"),
        (90, 89, "90 seconds to run on 2 processor cores; 0.6 GiB"),
    ],
)
def test_durations_are_rounded_upwards(first, again, words):
    assert lessons.cost(ROW | {"first_seconds": first, "again_seconds": again}) == words


def test_a_header_is_written_in_its_place(tmp_path):
    path = tmp_path / "00_start_here.ipynb"
    shutil.copyfile(lessons.paths()[0], path)
    code, before = lessons.code_hash(path), nbformat.read(path, 4)
    lessons.write_header(path, ROW)
    after = nbformat.read(path, 4)
    changed = [
        (a.source, b.source) for a, b in zip(before.cells, after.cells, strict=True) if a != b
    ]
    assert (
        len(changed) == 1
        and "the first time, 25 seconds afterwards; 0.6 GiB of memory" in changed[0][1]
    )
    assert lessons.code_hash(path) == code
    path.write_text(
        re.sub("Time:", "Duration:", path.read_text(encoding="utf-8")), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="was wanted, found 0"):
        lessons.write_header(path, ROW)


@pytest.mark.parametrize(
    "code, kernel", [("import os; os._exit(1)", "python3"), ("1 + 1", "no-such-kernel")]
)
def test_a_kernel_that_dies_or_is_not_there_is_one_sentence(tmp_path, code, kernel):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code)],
        metadata={"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "short.ipynb")
    with pytest.raises(ValueError, match=r"short\.ipynb: no kernel ran it to its end"):
        notebooks.execute(tmp_path / "short.ipynb", {})


BAR = """import deepatlas
from tqdm import tqdm
for _ in tqdm(range(1000), mininterval=0, disable=False):
    pass
tqdm.write("said")"""


def test_a_notebook_that_nobody_watches_keeps_no_progress_bars(tmp_path):
    """A bar is printed a thousand times over, and each of them would be an output."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(BAR)],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(notebook, tmp_path / "bar.ipynb")
    executed = notebooks.execute(tmp_path / "bar.ipynb", {})
    assert [output["text"] for output in executed.cells[0].outputs] == ["said\n"]


@pytest.mark.parametrize("asks, watched", [(True, True), (False, False)])
def test_somebody_watches_a_kernel_that_may_ask(monkeypatch, asks, watched):
    kernel = SimpleNamespace(_allow_stdin=asks)
    shell = SimpleNamespace(kernel=kernel)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert deepatlas._nobody_watches() == (not watched)
    shell.kernel = None  # a terminal
    assert not deepatlas._nobody_watches()


def test_a_lesson_is_measured_from_an_empty_folder_and_again(tmp_path, monkeypatch):
    """With a notebook of our own that keeps something in the folder of runs, as a lesson does, and
    a diary.
    """
    monkeypatch.setenv("DEEPATLAS_RUNS", str(tmp_path))
    parameters = nbformat.v4.new_code_cell(
        'display: str = "live"', metadata={"tags": ["parameters"]}
    )
    diary = str(tmp_path / "diary")
    body = nbformat.v4.new_code_cell(
        "from deepatlas.places import runs_folder\n"
        "trained = runs_folder() / 'trained'\n"
        f"with open({diary!r}, 'a') as diary:\n"
        "    diary.write(f'{display}, trained before: {trained.exists()}\\n')\n"
        "trained.write_text('')"
    )
    path = tmp_path / "lesson.ipynb"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, body], metadata=kernel), path)
    row = lessons.measure(path)
    assert (tmp_path / "diary").read_text().splitlines() == [
        "static, trained before: False",
        "static, trained before: True",
    ]
    assert row["first_seconds"] > 0 < row["again_seconds"] and 0.05 < row["memory_gib"] < 4
    assert not (tmp_path / "trained").exists()


def test_a_lesson_that_does_not_exist_is_named():
    done = CliRunner().invoke(app, ["measure", "09_nothing"])
    assert "no lesson 09_nothing: choose from 00_start_here" in str(done.exception)


# --- volumes --------------------------------------------------------------------------------------


def dice(labels, fixed):
    names = phantom.anatomy_of("brain").structures
    rows = evaluation.score_labels(labels, fixed.labels, names)
    return sum(row["dice"] for row in rows) / len(rows)


def test_slices_look_alike_and_are_far_from_the_truth():
    """Lessons 02 and 04: of the same two terms a volume makes more than its slices, which do not
    see what gives them away.
    """
    moving, fixed = (
        phantom.make_scan("brain", number, (40, 48, 40), spacing=4.0) for number in (0, 1)
    )
    true = phantom.true_deformation(moving, fixed).displacement
    brain = fixed.labels > 0

    def in_slices(image):
        return image[0].movedim(-1, 0)

    def found(a, b):
        how = {"similarity": losses.lncc, "regularity": 0.3, "steps": 60, "rate": 0.3}
        return registration.optimise_pair(a, b, **how).displacement

    a, b = moving.image[None], fixed.image[None]
    within = found(in_slices(a), in_slices(b)).movedim(0, -1)
    ways = {
        "rest": torch.zeros_like(true),
        "slices": torch.cat([within, torch.zeros_like(within[:1])])[None],
        "volume": found(a, b),
        "truth": true,
    }
    alike, off, met, bent = {}, {}, {}, {}
    for name, u in ways.items():
        phi = Deformation(u)
        alike[name] = losses.lncc(in_slices(phi.warp(a)), in_slices(b))
        off[name] = (u - true)[0].norm(dim=0)[brain].mean()
        met[name] = dice(phi.warp_labels(moving.labels[None])[0], fixed)
        bent[name] = losses.bending_energy(u)
    assert alike["slices"] < 1.3 * alike["volume"] < alike["rest"] / 2
    assert alike["truth"] > max(alike["slices"], alike["volume"]), "two people differ in more"
    assert off["slices"] > 0.75 * off["rest"] and off["volume"] < 0.6 * off["rest"]
    assert met["rest"] + 0.1 < met["slices"] < met["volume"] - 0.05
    assert bent["slices"] > 50 * bent["volume"]
    assert (ways["volume"][0, 2].abs() > 0.5)[brain].float().mean() > 0.5, "more than half"


def test_the_networks_for_volumes_follow_a_structure_out_of_its_slice():
    """Lesson 05, with the networks that come with the kit."""
    nets, trained = models.load("phantom-brain-3d")
    assert trained["dims"] == 3 and trained["labelled"] == 1
    cohort = datasets.load_cohort("phantom-brain", profile=trained["profile"], dims=3)
    moving, fixed = cohort.test[:2]
    phi = models.registrar(nets["reg"])(moving, fixed)
    carried = phi.warp_labels(moving.labels[None])[0]
    guess = models.segmenter(nets["seg"])(fixed)
    assert dice(carried, fixed) > dice(moving.labels, fixed) + 0.05
    assert dice(guess, fixed) > dice(carried, fixed)

    left_out = [
        (int((fixed.labels[..., k] == c).sum()), c, k)
        for c in range(1, int(fixed.labels.max()) + 1)
        for k in range(fixed.shape[2])
        if not (moving.labels[..., k] == c).any()
    ]
    size, c, k = max(left_out)
    it = fixed.labels[..., k] == c
    assert size >= 10
    for labels in (carried, guess):
        assert (labels[..., k] == c)[it].any(), "no registration of slices finds any"


# --- what lessons 00 and 07 say of the evidence ---------------------------------------------------


def prose(stem):
    cells = nbformat.read(places.NOTEBOOKS / f"{stem}.ipynb", 4).cells
    return " ".join(" ".join(cell.source.split()) for cell in cells if cell.cell_type == "markdown")


UNITS = r"%|percent|points?|steps|times|seconds|minutes|voxels|mm|of "
# Decimals, thousands, and whole numbers of something.
NUMBER = re.compile(rf"(?<![\w.])(?:\d*\.\d+|\d+,\d{{3}}[\d,]*|\d+(?=\s*(?:{UNITS})))(?!\w)")
USUAL = {".05", "2.5", "5", "95"}  # level of a test, ends of an interval
QUOTED = {  # what no code of the lesson has, and a test below compares
    "01_data": {"1,704,295", "200"},
    "05_joint_training": {"0.98"},
    "06_one_shot": {"400"},
    "07_evaluation": {"21"},
}
SUPPOSED = {"01_data": {".6", ".70", ".75"}}  # in an example that says so


def plain(stem):
    """The prose of a lesson without its header, formulas, code, addresses and licences."""
    text = lessons.HEADER.sub("", prose(stem)).split("**Read on.**")[0]
    return re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|\]\([^)]*\)|CC BY-SA 4\.0", "", text)


@pytest.mark.parametrize("path", lessons.paths(), ids=lambda path: path.stem)
def test_no_result_is_typed_in_the_text(path):
    """They are printed by cells. A number in the text is one that the lesson's code has, too."""
    cells = nbformat.read(path, 4).cells
    code = " ".join(cell.source for cell in cells if cell.cell_type == "code")
    known = USUAL | QUOTED.get(path.stem, set()) | SUPPOSED.get(path.stem, set())
    for number in set(NUMBER.findall(plain(path.stem))) - known:
        written = re.escape(number.replace(",", ""))
        assert re.search(rf"(?<![\d.]){written}(?![\d.])", code.replace("_", "")), number


def test_what_lesson_01_says_of_the_hippocampus_is_so(real_data):
    assert "from 121 to 1,704,295 (in the 200 of its labelled cases" in plain("01_data")
    files = sorted((real_data / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    largest = [read_nifti(file)[0].max() for file in files]
    assert (len(files), int(min(largest)), int(max(largest))) == (200, 121, 1_704_295)


def test_what_lessons_quote_of_the_first_protocol_and_of_the_paper_is_so():
    first = usual_runs(sweeps.read_table(places.FIRST_RESULTS, "regimes"), "")
    knees = first[(first["dataset"] == "phantom-knee") & (first["labelled"] == 1)]
    steps = knees[knees["regime"] == "reg_baseline"]["steps"]
    assert set(steps) == {int(*QUOTED["06_one_shot"])}
    assert parse({}).teacher == float(*QUOTED["05_joint_training"])
    assert "five labelled scans of 200" in plain("07_evaluation")
    paper = " ".join(places.README.read_text(encoding="utf-8").split())
    assert "knees (200 training scans) and brains (65)" in paper


@pytest.fixture(scope="module")
def rows():
    found = usual_runs(evidence.load_results(evidence.RESULTS), "")
    return found[(found["labelled"] == 1) & (found["dims"] == 2)]


@pytest.fixture(scope="module")
def judged():
    claims = evidence.read_claims(evidence.RESULTS / evidence.CLAIMS)
    return evidence.judge(claims, evidence.RESULTS)


def compared(rows, task, rival):
    two = rows[(rows["task"] == task) & rows["regime"].isin(["deepatlas", rival])]
    table = evidence.gains(two)
    assert len(table) == 3
    return table


def by_run(table):
    return [float(gain) for text in table["by_seed"] for gain in text.split(", ")]


def test_segmentation_lies_above_the_baseline_in_every_run(rows):
    for stem in ("00_start_here", "07_evaluation"):
        assert re.search(r"above the baseline in \*?every\*? run of every cohort", prose(stem))
    table = compared(rows, "segmentation", "seg_baseline")
    assert min(by_run(table)) > 0 and (table["low"] > 0).all()
    means = rows[rows["task"] == "segmentation"].groupby(["regime", "dataset"])["dice"].mean()
    assert (means["seg_full"] > means["deepatlas"]).all(), "full supervision lies above both"


def test_joint_training_cannot_be_told_from_a_fixed_teacher(rows):
    assert "it cannot be told apart; each interval contains 0" in prose("00_start_here")
    table = compared(rows, "segmentation", "semi_seg")
    assert (table["low"] < 0).all() and (table["high"] > 0).all()
    assert table["gain"].min() < 0 < table["gain"].max(), "lesson 07: on both sides of 0"


def test_the_three_registrations_lie_close_together(rows):
    assert "The three lie close together, and each interval contains 0" in prose("00_start_here")
    for rival in ("reg_baseline", "semi_reg"):
        table = compared(rows, "registration", rival)
        assert (table["low"] < 0).all() and (table["high"] > 0).all()
    assert "the lines lie within a point or two of each other" in prose("07_evaluation")
    regimes = ["reg_baseline", "semi_reg", "deepatlas", "reg_full"]
    some = rows[(rows["task"] == "registration") & rows["regime"].isin(regimes)]
    means = some.groupby(["dataset", "regime"])["dice"].mean().unstack("regime")
    assert (means.max(axis=1) - means.min(axis=1)).max() < 2


def test_no_claim_holds(judged):
    assert "none of this project's claims holds so far" in prose("00_start_here")
    assert "the claim is **not shown**" in prose("07_evaluation")
    assert set(judged["decision"]) == {"not shown", "not enough runs"}
    error = judged[judged["claim"].str.contains("true error")].set_index("cohort")
    assert error.loc["phantom-brain, 2D", "low"] > 0, "larger than the baseline's"


def test_the_wrap_up_of_lesson_07_is_about_a_claim_that_one_cohort_alone_would_pass(judged):
    claim = judged[judged["against"].str.contains("SyN")].set_index("cohort")
    assert claim.loc["oasis35, 2D", "p"] * 8 < 0.05 < claim["p_holm"].max()
    assert (claim["low"] > 0).all()
