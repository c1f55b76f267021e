"""Parameters, run folders and tables: an experiment from its first word to report.html, at smoke
size.
"""

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

from deepatlas import (
    data,
    datasets,
    evaluation,
    experiments,
    locks,
    losses,
    models,
    parameters,
    places,
    records,
    registration,
    reporting,
    run_names,
    terms,
    training,
    trainings,
)
from deepatlas.cli import app
from deepatlas.errors import UserError
from deepatlas.parameters import Experiment, parse
from deepatlas.regimes import REFINED, REGIMES, TAUGHT, spent
from deepatlas.trainings import own_steps
from deepatlas.warp import Deformation

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

SMOKE = {"profile": "smoke", "device": "cpu", "dims": 2}
TWO = {**SMOKE, "labelled": 2}  # the experiment of the finished run
TABLE = parse(TWO).table


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return experiments.run(parse(TWO), root)


def rewrite(folder, **changes):
    """Change the record of a run as a run does; a key that becomes None is left out."""
    record = json.loads((folder / "run.json").read_text()) | changes
    record = {name: value for name, value in record.items() if value is not None}
    if "checksum" in record:
        records.write_record(record, folder)
    else:
        (folder / "run.json").write_text(json.dumps(record))
    return record


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, text",
    [
        ({"labeled": 5}, "there is no parameter 'labeled', did you mean 'labelled'"),
        ({"zebra": 5}, "there is no parameter 'zebra': choose from dataset, profile"),
        ({"dataset": "hipocampus"}, "no cohort 'hipocampus', did you mean 'hippocampus'"),
        ({"labelled": 0}, "parameter 'labelled' = 0: input should be greater than or equal to 1"),
        (
            {"labelled": 1000},
            "labelled must be at most 24, the training scans of phantom-brain in profile class, "
            "got 1000",
        ),
        ({"labelled": "many"}, "parameter 'labelled' = 'many': input should be a valid integer"),
        ({"labelled": 1.5}, "parameter 'labelled' = 1.5: input should be a valid integer"),
        ({"dims": 4}, "parameter 'dims' = 4: input should be 2 or 3"),
        (
            {"profile": "huge"},
            "parameter 'profile' = 'huge': input should be 'smoke', 'class' or 'full'",
        ),
        ({"reg_rate": "fast"}, "parameter 'reg_rate' = 'fast': input should be a valid number"),
        ({"reg_rate": 0}, "parameter 'reg_rate' = 0: input should be greater than 0"),
        ({"reg_rate": float("nan")}, "parameter 'reg_rate' = nan: input should be"),
        ({"lambda_r": -1}, "parameter 'lambda_r' = -1: input should be greater than or equal to 0"),
        ({"lambda_a": float("inf")}, "parameter 'lambda_a' = inf: input should be a finite number"),
        (
            {"velocity": "perhaps"},
            "parameter 'velocity' = 'perhaps': input should be a valid boolean",
        ),
        ({"similarity": "mi"}, "parameter 'similarity' = 'mi': choose from ncc, lncc, mse"),
        ({"networks": "paper"}, "networks='paper' wants dims=3, got dims=2"),
        (
            {"networks": "paper", "dims": 3, "velocity": True},
            "networks='paper' wants velocity=False, got True: leave it out",
        ),
        (
            {"networks": "paper", "dims": 3, "passes": 2},
            "networks='paper' wants passes=1, got 2: leave it out",
        ),
        (
            {"networks": "paper", "dims": 3, "profile": "smoke"},
            "sides are divisible by 16, and smoke-3d of phantom-brain is (16, 24, 16): choose",
        ),
        (
            {"networks": "papers"},
            "parameter 'networks' = 'papers': choose from kit, paper",
        ),
        (
            {"term_weights": {"anatomy": 2.0}},
            "the weight of anatomy is the parameter lambda_a",
        ),
        (
            {"term_weights": {"zebra": 2.0}},
            "there is no loss term 'zebra': choose from similarity",
        ),
        (
            {"term_weights": {"similarity": -1}},
            "the weight of similarity must be at least 0",
        ),
        (
            {"joint_steps": 1},
            "parameter 'joint_steps' = 1: input should be greater than or equal to 2",
        ),
        ({"profile": ["class"]}, "parameter 'profile' = ['class']: input should be 'smoke'"),
        ({"dataset": 5}, "no cohort '5'"),
        (
            {"labelled": True},
            "parameter 'labelled' = True: a number or a word was wanted, not true or false",
        ),
        (
            {"dataset": "oasis35", "labelled": 13},
            "labelled must be at most 12, the training scans of oasis35",
        ),
        (
            {"labelled": 20, "unlabelled": 5},
            "unlabelled must be at most 4, what 20 labelled scans leave of 24, got 5",
        ),
        ({"recipe": "worst"}, "parameter 'recipe' = 'worst': input should be 'paper' or 'best'"),
        ({"recipe": ["best"]}, "parameter 'recipe' = ['best']: input should be 'paper' or 'best'"),
        ({"teacher": 1}, "parameter 'teacher' = 1: input should be less than 1"),
        ({"seg_steps": 0}, "parameter 'seg_steps' = 0: input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_is_one_sentence(values, text):
    with pytest.raises(ValueError) as caught:
        parse(values)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_two_mistakes_are_both_named():
    with pytest.raises(ValueError, match=r"'seed' = -1.*; .*'labeled'"):
        parse({"labeled": 5, "seed": -1})


@pytest.mark.parametrize("name", ["seed", "batch_size"])
def test_a_mistake_in_what_another_parameter_follows_is_named_once(name):
    for others in ({}, {"label_seed": None, "seg_batch_size": None}):  # as a notebook has them
        with pytest.raises(UserError) as caught:
            parse({name: -1, **others})
        assert str(caught.value).count("parameter") == 1 and f"'{name}' = -1" in str(caught.value)


def test_text_from_yaml_and_the_command_line_means_what_it_says():
    experiment = parse(
        {"seg_rate": "1e-3", "velocity": "false", "dims": "3", "labelled": "5", "seg_steps": None}
    )
    assert (experiment.seg_rate, experiment.velocity, experiment.dims, experiment.labelled) == (
        1e-3,
        False,
        3,
        5,
    )
    assert experiment.seg_steps == parameters.PROFILES["class-3d"]["seg_steps"]


def test_a_notebooks_variables_are_its_parameters():
    assert (
        parameters.from_notebook(
            {"labelled": 2, "_hidden": 1, "In": [], "Out": {}, "torch": torch}
        ).labelled
        == 2
    )
    with pytest.raises(ValueError, match="no parameter 'labeled'"):
        parameters.from_notebook({"labeled": 2})


def test_a_parameter_changed_in_the_notebook_is_read_again():
    namespace = {"labelled": 2}
    parameters.from_notebook(namespace)
    namespace |= {"labelled": 3, "record": {"more": "variables"}}
    assert parameters.from_notebook(namespace).labelled == 3


def test_the_notebooks_parameters_are_the_experiments():
    notebook = nbformat.read(places.EXPERIMENT, 4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    namespace: dict = {}
    exec(cell.source, namespace)
    names = [name for name in namespace if not name.startswith("_")]
    of_the_call = ["minutes", "workers", "log"]
    assert names == [*Experiment.model_fields, *of_the_call]
    assert parameters.from_notebook(namespace, beside=of_the_call) == Experiment()


def test_the_name_changes_with_every_parameter():
    others = [
        {"seed": 1},
        {"lambda_r": 2.0},
        {"velocity": False},
        {"reg_turns": 20},
        {"precision": "float32"},
    ]
    assert len({parse(values).name for values in [{}, *others]}) == 1 + len(others)


# --- names of runs --------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the package whose code names the runs: edit it, look at ``Experiment().name``."""
    package = shutil.copytree(places.PACKAGE, tmp_path / "deepatlas")
    monkeypatch.setattr(parameters, "method_hash", lambda: run_names.method_hash(package))
    assert Experiment().name == Experiment().name
    return package


def edit(path, *replaced):
    text = path.read_text(encoding="utf-8")
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")


def test_a_changed_loss_renames_a_run_while_it_is_edited(copied):
    before = Experiment().name
    edit(copied / "losses.py", ("EPSILON = 1e-6", "EPSILON = 1e-5"))
    assert Experiment().name != before


def test_a_changed_loss_in_a_new_file_renames_a_run(copied):
    (copied / "edges.py").write_text('"""Edges."""\n\n\ndef edges(a, b):\n    return a - b\n')
    unused = Experiment().name
    edit(copied / "terms.py", ("from . import losses\n", "from . import edges, losses\n"))
    used = Experiment().name
    edit(copied / "edges.py", ("a - b", "a + b"))
    assert len({unused, used, Experiment().name}) == 3


@pytest.mark.parametrize(
    "spelling",
    ["from deepatlas import edges", "import deepatlas.edges", "from .edges import edges"],
)
def test_a_new_file_counts_however_it_is_imported(copied, spelling):
    (copied / "edges.py").write_text("def edges(a, b):\n    return a - b\n")
    edit(copied / "terms.py", ("from . import losses\n", f"from . import losses\n{spelling}\n"))
    before = Experiment().name
    edit(copied / "edges.py", ("a - b", "a + b"))
    assert Experiment().name != before


def test_packages_only_hand_on_what_stands_in_their_modules():
    """What the hash leaves out decides nothing: no table and no function in such an __init__."""
    folders = {path.parent for path in run_names.method_files()} - {places.PACKAGE}
    assert len(folders) >= 3
    for folder in folders:
        tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        others = [node for node in tree.body if not isinstance(node, ast.ImportFrom)]
        texts = [ast.unparse(node) for node in others[1:]]  # behind the docstring
        assert all(text.startswith("__all__ = ") for text in texts), f"{folder.name}: {texts}"


def test_a_new_file_in_a_package_counts_too(copied):
    (copied / "evaluation" / "ours.py").write_text("def score():\n    return 1\n")
    edit(
        copied / "evaluation" / "cohorts.py",
        (
            "from __future__ import annotations\n",
            "from __future__ import annotations\n\nfrom .ours import score\n",
        ),
    )
    before = Experiment().name
    edit(copied / "evaluation" / "ours.py", ("return 1", "return 2"))
    assert Experiment().name != before


@pytest.mark.parametrize("file", ["losses.py", "evaluation/cohorts.py", "training.py"])
def test_a_comment_a_docstring_and_a_blank_line_rename_no_run(copied, file):
    before = Experiment().name
    edit(
        copied / file,
        (
            "from __future__ import annotations\n",
            "from __future__ import annotations\n\n# A remark.\n",
        ),
        ('"""', '"""In other words: '),
    )
    assert Experiment().name == before


@pytest.mark.parametrize("file", ["plots/curves.py", "reporting.py", "cli/run.py", "doctor.py"])
def test_what_only_shows_renames_no_run(copied, file):
    before = Experiment().name
    with (copied / file).open("a") as stream:
        stream.write("\nANOTHER = 1\n")
    assert Experiment().name == before


def test_the_method_is_what_is_imported():
    names = {str(path.relative_to(places.PACKAGE)) for path in run_names.method_files()}
    assert {"losses.py", "terms.py", "training.py", "warp.py", "regimes.py"} <= names
    assert not names & {"doctor.py", "evaluation/statistics.py", "reporting.py"}
    assert not any(name.startswith(("plots/", "viewers/", "cli/")) for name in names)


def test_only_the_entry_of_its_own_data_set_renames_a_run(tmp_path, monkeypatch):
    text = places.MANIFEST.read_text(encoding="utf-8")
    names = []
    for change in (
        lambda text: text,
        lambda text: text + '\n[mine]\nlike = "phantom-knee"\ntitle = "Mine"\n',
        lambda text: text.replace("[phantom-knee]", "# A remark.\n[phantom-knee]\ncredit = 'us'"),
        lambda text: text.replace("split.class = [24, 3, 12]", "split.class = [23, 3, 12]", 1),
    ):
        manifest = tmp_path / f"{len(names)}.toml"
        manifest.write_text(change(text), encoding="utf-8")
        monkeypatch.setattr(places, "MANIFEST", manifest)
        datasets.manifest.cache_clear()
        names.append(Experiment().name)
    monkeypatch.undo()
    datasets.manifest.cache_clear()
    assert names[0] == names[1] == names[2] != names[3]


def test_a_run_of_another_version_is_not_to_be_removed(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / finished.name)
    rewrite(folder, sha256=None, checksum=None)  # an earlier one kept no hashes
    edit(folder / "run.json", ('"regimes": "all"', '"arms": "all"'))
    with pytest.raises(
        ValueError, match=r"no parameter 'arms'.* may be whole: read it with"
    ) as caught:
        reporting.load_record(folder)
    assert "remove" not in str(caught.value)


def test_a_run_is_read_by_a_kit_that_lacks_its_data_set(finished, tmp_path, monkeypatch):
    """Its folder carries the entry: nothing is called damaged, and its networks load."""
    folder = shutil.copytree(finished, tmp_path / finished.name)
    text = places.MANIFEST.read_text(encoding="utf-8")
    manifest = tmp_path / "datasets.toml"
    manifest.write_text(text.replace("[phantom-brain]", "[another]"), encoding="utf-8")
    monkeypatch.setattr(places, "MANIFEST", manifest)
    datasets.manifest.cache_clear()
    try:
        with pytest.raises(ValueError, match="no cohort 'phantom-brain'"):
            parse({"dataset": "phantom-brain"})
        assert not reporting.results_table(folder).empty
        assert experiments.load_networks(folder, "deepatlas").keys() == {"seg", "reg"}
    finally:
        monkeypatch.undo()
        datasets.manifest.cache_clear()


def test_an_own_similarity_is_one_more_word(monkeypatch):
    monkeypatch.setitem(terms.SIMILARITIES, "edges", terms.SIMILARITIES["ncc"])
    assert parse({"similarity": "edges"}).similarity == "edges"


# --- budgets --------------------------------------------------------------------------------------


STARTS = pytest.mark.parametrize("joint_start", ["none", "trained"])


@STARTS
@pytest.mark.parametrize("labelled", [1, 2, 5])
@pytest.mark.parametrize("network", ["seg", "reg"])
def test_rivals_and_full_supervision_spend_what_deepatlas_spent(labelled, network, joint_start):
    experiment = parse({"labelled": labelled, "joint_start": joint_start})
    table, own = experiment.table, own_steps(experiment)
    total = spent(table, "deepatlas", network, own)
    rivals = {f"semi_{network}", f"{network}_control", f"{network}_full"} & table.keys()
    assert len(rivals) == (3 if joint_start == "trained" else 2)
    assert {spent(table, key, network, own) for key in rivals} == {total}
    baseline = own[f"{network}_baseline"][network]
    assert baseline < total if joint_start == "trained" else baseline == total


def test_the_papers_ratio_of_turns():
    assert parse({"joint_steps": 420, "reg_turns": 20}).joint == {"seg": 20, "reg": 400}


def test_joint_regimes_are_joint_training_and_what_it_starts_from():
    baselines = ["seg_baseline", "reg_baseline"]
    for more, between in (
        ({"joint_start": "none"}, []),
        ({"joint_start": "trained"}, ["semi_first"]),
        ({"joint_start": "trained", "labelled": 5}, []),
    ):
        table = parse({"regimes": "joint", **more}).table
        assert list(table) == [*baselines, *between, "deepatlas"]


def test_who_gets_lambda_weak_stands_in_the_table():
    """The baselines of registration, which learn anatomy from fully labelled pairs alone."""
    given = {"labelled": 5, "lambda_a": 7.0, "lambda_weak": 0.5, "lambda_r": 0.1}
    experiment = parse({**given, "joint_start": "trained"})
    weights = {
        key: trainings.weights(experiment, regime) for key, regime in experiment.table.items()
    }
    weak = {key for key, given in weights.items() if given["anatomy"] == 0.5}
    assert weak == {"reg_baseline", "reg_control"}
    assert all(weights[key]["anatomy"] == 7.0 for key in weights.keys() - weak)
    assert {given["regularity"] for given in weights.values()} == {0.1}
    assert {given["similarity"] for given in weights.values()} == {1.0}


def test_recipes_fill_what_the_parameters_leave_open():
    paper, best = parse({"recipe": "paper"}), parse({})
    assert (paper.similarity, paper.reg_turns, paper.sampled_warps) == ("ncc", 20, False)
    assert best.similarity == "lncc" and best.sampled_warps
    assert parse({"recipe": "paper", "reg_turns": 3}).reg_turns == 3


def test_unlabelled_scans_can_be_left_out():
    experiment = parse({**SMOKE, "labelled": 2, "unlabelled": 1})
    cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
    some = trainings.some_labelled(cohort, experiment)
    assert [scan.labels is not None for scan in some.train] == [True, True, False]
    assert len(trainings.some_labelled(cohort, parse(TWO)).train) == len(cohort.train) == 4


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_scores_every_regime_on_every_test_scan(finished):
    scores = reporting.load_scores(finished)
    references = {"identity", "label_propagation", "joint_propagation"}
    assert set(scores["regime"]) == references | TABLE.keys() | set(REFINED.values())
    assert scores.groupby(["task", "regime"])["case"].nunique().loc[
        "segmentation"
    ].unique().tolist() == [3]
    assert scores["endpoint_voxels"].notna().sum() == (scores["task"] == "registration").sum()
    identity = scores[scores["regime"] == "identity"]
    assert identity["folds_percent"].eq(0).all() and identity["sd_log_j"].eq(0).all()


def test_a_runs_record_says_what_was_done(finished):
    record = json.loads((finished / "run.json").read_text())
    assert (
        record["finished"]
        and record["labelled_training_scans"] == 2
        and record["labelled_validation_scans"] == 2
    )
    assert record["experiment"]["labelled"] == 2 and record["mixed_precision"] in (True, False)
    assert set(record["steps"]) == set(record["seconds"]) == set(TABLE)
    assert record["peak_memory_gib"] > 0 and record["versions"]["torch"] == torch.__version__


def test_the_history_has_a_row_for_every_step(finished):
    history = pd.read_csv(finished / "history.csv")
    record = json.loads((finished / "run.json").read_text())
    for regime, steps in record["steps"].items():
        rows = history[history["regime"] == regime]
        assert rows["turn"].value_counts().to_dict() == steps
        last = rows.iloc[-1]
        for name in steps:
            assert last[[f"validation_{name}", f"kept_{name}"]].notna().all()
        asked = {"seg", "reg"} - steps.keys() if len(steps) == 1 else steps.keys()
        teachers = [f"teacher_{name}" for name in asked]
        assert last[teachers].notna().all() == TABLE[regime].consults


def test_a_finished_run_is_not_repeated(finished, monkeypatch):
    monkeypatch.setattr(experiments, "train_all", lambda *_: pytest.fail("trained again"))
    assert experiments.run(parse(TWO), finished.parent) == finished


def test_some_regimes_are_trained_or_found(tmp_path, capsys):
    experiment = parse({**TWO, "joint_start": "trained"})
    first = experiments.train_or_load(experiment, "semi_seg", root=tmp_path)
    assert (
        list(first) == ["seg_baseline", "reg_baseline", "semi_seg"]
        and "found" not in capsys.readouterr().out
    )
    second = experiments.train_or_load(experiment, "semi_seg", "semi_reg", root=tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert ["found in" in line for line in said if line.startswith("[")] == [
        True,
        True,
        True,
        False,
    ]
    for name, weights in first["semi_seg"]["seg"].state_dict().items():
        assert torch.equal(weights, second["semi_seg"]["seg"].state_dict()[name])
    history = pd.read_csv(tmp_path / experiment.name / "history.csv")
    assert history["regime"].unique().tolist() == list(second)
    assert not json.loads((tmp_path / experiment.name / "run.json").read_text())["finished"]


def test_what_was_trained_before_is_read_from_a_folder_that_cannot_be_written(
    finished, monkeypatch
):
    monkeypatch.setattr("os.replace", lambda *_: pytest.fail("something was written"))
    experiments.train_or_load(parse(TWO), "deepatlas", root=finished.parent)


def test_what_the_lessons_train_can_be_trained_before_class(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DEEPATLAS_RUNS", str(tmp_path))
    done = CliRunner().invoke(app, ["warm", "profile=smoke"])
    assert done.exit_code == 0, done.output
    experiment = experiments.of_lessons(profile="smoke")
    lessons = [lesson.read_text(encoding="utf-8") for lesson in places.NOTEBOOKS.glob("0*.ipynb")]
    asked = [
        re.findall(r"(\w+)\\\"", call)
        for lesson in lessons
        for call in re.findall(r"(?:train_or_load|ready_made)\(experiment, (.*?)\)", lesson)
    ]
    assert len(asked) >= 4
    for keys in asked:
        experiments.train_or_load(experiment, *keys)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert lines and all("found in" in line for line in lines)


def test_what_the_lessons_load_comes_with_the_kit_and_is_trained_for_others(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DEEPATLAS_RUNS", str(tmp_path))
    asked = []

    def trains(experiment, *keys, workers):
        asked.append((experiment.name, keys, workers))

    monkeypatch.setattr(experiments, "train_or_load", trains)
    brought = experiments.ready_made(experiments.of_lessons(), *TAUGHT)
    assert set(brought) == {"seg_baseline", "reg_baseline", "semi_seg", "deepatlas"}
    assert capsys.readouterr().out.count("comes with the kit") == 4
    assert asked == [] and not list(tmp_path.iterdir())
    other = experiments.of_lessons(seed=1)
    experiments.ready_made(other, "semi_seg")
    assert asked == [(other.name, ("semi_seg",), None)]


def test_the_networks_of_the_lessons_are_kept_again(tmp_path, monkeypatch):
    smoke = experiments.of_lessons(profile="smoke", device="cpu")
    monkeypatch.setenv("DEEPATLAS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(experiments, "of_lessons", lambda: smoke)
    monkeypatch.setattr(experiments, "LESSON_WEIGHTS", tmp_path / "kept")
    done = CliRunner().invoke(app, ["weights", "--lessons"])
    assert done.exit_code == 0, done.output
    trained = experiments.train_or_load(smoke, *TAUGHT)
    monkeypatch.setattr(experiments, "train_or_load", lambda *_, **__: pytest.fail("trained"))
    kept = experiments.ready_made(smoke, *TAUGHT)
    image = torch.rand(1, 1, 32, 32)
    for key in ("seg_baseline", "semi_seg", "deepatlas"):
        answers = kept[key]["seg"](image), trained[key]["seg"](image)
        torch.testing.assert_close(*answers, atol=0.02, rtol=0.02)


def test_a_run_goes_on_from_regimes_trained_before(tmp_path, finished):
    experiment = parse(TWO)
    experiments.train_or_load(experiment, "semi_reg", root=tmp_path)
    scores, others = (
        reporting.load_scores(f) for f in (experiments.run(experiment, tmp_path), finished)
    )
    pd.testing.assert_frame_equal(scores, others)


def test_each_network_works_alone(finished):
    nets = experiments.load_networks(finished, "deepatlas")
    cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
    pairs = evaluation.registration_pairs(cohort.test, 3, 0)
    scores = reporting.load_scores(finished)
    for task, rows in (
        (
            "segmentation",
            evaluation.score_segmentation(models.segmenter(nets["seg"]), cohort, cohort.test),
        ),
        (
            "registration",
            evaluation.score_registration(models.registrar(nets["reg"]), cohort, pairs),
        ),
    ):
        kept = scores[(scores["task"] == task) & (scores["regime"] == "deepatlas")]
        assert rows["dice"].to_numpy() == pytest.approx(
            kept["dice"].to_numpy(), abs=1e-4, nan_ok=True
        )


def test_loading_what_is_not_there(finished, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no such regime in this run: choose from seg_baseline"
    ):
        experiments.load_networks(finished, "semi")
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        reporting.load_record(tmp_path)


def begun_on_a_gpu(finished, tmp_path, **more):
    """A copy of the finished run whose record speaks of a device that is nowhere."""
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    return parse(rewrite(folder, device="cuda:99", finished=False, **more)["experiment"])


def test_what_a_gpu_has_trained_is_found_where_there_is_none(finished, tmp_path, monkeypatch):
    experiment = begun_on_a_gpu(finished, tmp_path)
    moved = []
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda net: moved.append(net) or net)
    found = experiments.train_or_load(experiment, "deepatlas", root=tmp_path)
    assert {id(net) for nets in found.values() for net in nets.values()} == {
        id(net) for net in moved
    }


def test_what_a_gpu_has_begun_goes_on_elsewhere(finished, tmp_path, capsys):
    done = records.recorded_experiment(reporting.load_record(finished))
    experiment = parse(done.model_dump() | {"device": "auto"})
    assert experiment.name == finished.name
    folder = shutil.copytree(finished, tmp_path / finished.name)
    rewrite(folder, device="cuda:99", finished=False, experiment=experiment.model_dump())
    shutil.rmtree(folder / "deepatlas")
    assert experiments.run(experiment, tmp_path) == folder
    told = capsys.readouterr().out
    assert "begun on cuda:99, which cannot train here" in told and "goes on on cpu" in told
    assert reporting.load_record(folder)["finished"]


def test_a_cohort_without_pairs_is_told_before_the_training(tmp_path, monkeypatch, capsys):
    entry = datasets.describe("phantom-brain")
    one_test_scan = entry.model_copy(update={"split": entry.split | {"smoke": (4, 2, 1)}})
    monkeypatch.setitem(datasets.manifest(), "phantom-brain", one_test_scan)
    folder = experiments.run(parse({**SMOKE, "labelled": 2, "regimes": "joint"}), tmp_path)
    told = capsys.readouterr().out
    assert told.index("registration cannot be scored") < told.index("[1/")
    assert set(reporting.load_scores(folder)["task"]) == {"segmentation"}


def test_who_loads_networks_keeps_his_random_numbers(finished):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    experiments.load_networks(finished, "deepatlas")
    assert torch.equal(torch.rand(2), wanted)


def test_a_run_on_changed_data_is_refused(finished, tmp_path):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    rewrite(folder, finished=False, data="other")
    with pytest.raises(
        ValueError, match=r"this run was begun on other data .* the same data there"
    ):
        experiments.run(parse(TWO), tmp_path)
    with pytest.raises(ValueError, match="not finished"):
        reporting.load_record(folder)


# --- scores that grow -----------------------------------------------------------------------------


@pytest.fixture
def scored(monkeypatch):
    """The regimes that are scored from now on, as they are."""
    regimes_scored = []
    score = experiments.Scores._score

    def watched(scores, key, nets):
        regimes_scored.append(key)
        return score(scores, key, nets)

    monkeypatch.setattr(experiments.Scores, "_score", watched)
    return regimes_scored


def test_the_table_grows_as_regimes_end(tmp_path, capsys):
    """Each regime's row is on the screen before the next is trained, baselines first."""
    folder = experiments.run(parse({**SMOKE, "labelled": 2, "regimes": "joint"}), tmp_path)
    after = re.split(r"\[\d/3\] .*\n", capsys.readouterr().out)[1:]
    references = ["No registration", "Label propagation"]
    of_baselines = [*references, "Baseline", "Baseline, refined"]
    all_titles = [*references, "Label propagation by DeepAtlas", "Baseline", "DeepAtlas"]
    all_titles += ["Baseline, refined", "DeepAtlas, refined"]
    for table, wanted in zip(after, (["Baseline"], of_baselines, all_titles), strict=True):
        head, *rows = table.strip().splitlines()
        assert head.split() == ["Dice", "%", "(SD)", "segmentation", "registration"]
        assert [row[: len(title)] for row, title in zip(rows, wanted, strict=True)] == wanted
    assert after[0].strip().endswith(" -")
    table = reporting.results_table(folder)
    for regime in ("Baseline", "DeepAtlas"):
        (line,) = [line for line in after[2].splitlines() if line.startswith(f"{regime} ")]
        for task in ("segmentation", "registration"):
            mean, sd = table.loc[(task, regime), ["Dice %", "SD"]]
            assert f"{mean:.1f} ({sd:.1f})" in line


def test_a_run_that_goes_on_scores_what_it_has_not_scored(finished, tmp_path, scored, monkeypatch):
    """Stopped in the middle of scoring; its files are those of a run that was never stopped."""
    experiment = parse(TWO)
    score = experiments.score_registration

    def stop(register, *arguments):
        if scored[-1] == "semi_reg":
            raise KeyboardInterrupt
        return score(register, *arguments)

    monkeypatch.setattr(experiments, "score_registration", stop)
    with pytest.raises(KeyboardInterrupt):
        experiments.run(experiment, tmp_path)
    before = list(TABLE)[: list(TABLE).index("semi_reg")]
    assert scored == [*before, "semi_reg"]
    scored.clear()
    monkeypatch.setattr(experiments, "score_registration", score)
    folder = experiments.run(experiment, tmp_path)
    assert scored == list(TABLE)[len(before) :]
    assert (folder / "scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()


def test_only_what_was_trained_again_is_scored_again(finished, tmp_path, scored):
    """Whoever trained it: rows of other weights are not kept."""
    experiment = parse(TWO)
    folder = shutil.copytree(finished, tmp_path / finished.name)
    for key in ("semi_seg", "seg_full"):
        (folder / key / "checkpoint.pt").unlink()
    experiments.train_or_load(experiment, "semi_seg", root=tmp_path)
    (folder / "scores.csv").unlink()
    experiments.run(experiment, tmp_path)
    assert scored == ["semi_seg", "seg_full"]
    assert (folder / "scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()


def test_what_is_trained_again_and_stopped_is_neither_trained_nor_scored(
    finished, tmp_path, scored, monkeypatch
):
    """Though a checkpoint of it is there again, and rows of the networks that it had before."""
    experiment = parse(TWO)
    folder = shutil.copytree(finished, tmp_path / finished.name)
    (folder / "semi_seg" / "checkpoint.pt").unlink()
    take_turn = training.Trainer.take_turn

    def stopped(trainer):
        row = take_turn(trainer)
        signal.raise_signal(signal.SIGINT)
        return row

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Trainer, "take_turn", stopped)
        experiments.train_or_load(experiment, "semi_seg", root=tmp_path)
    assert (folder / "semi_seg" / "checkpoint.pt").is_file()
    with pytest.raises(UserError, match="not finished"):
        reporting.results_table(folder)
    experiments.run(experiment, tmp_path)
    assert scored == ["semi_seg"]
    assert (folder / "scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()
    assert experiments.load_networks(folder, "semi_seg")


@pytest.mark.parametrize("damage", ["gone", "cut_at_a_line", "zeroed"])
def test_rows_of_a_regime_that_are_damaged_are_scored_again(finished, copy, scored, damage):
    globals()[damage](copy / "semi_reg" / "scores.csv", None)
    (copy / "scores.csv").unlink()
    experiments.run(parse(TWO), copy.parent)
    assert scored == ["semi_reg"]
    assert (copy / "scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()


def test_validation_scans_alone_say_how_good_the_networks_are(finished):
    cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
    networks = experiments.load_networks(finished, "deepatlas")
    scores = trainings._validator(cohort)(networks)
    assert trainings._validator(replace(cohort, test=()))(networks) == scores
    pairs = evaluation.registration_pairs(cohort.validation, per_fixed=2)
    judged = {
        "seg": evaluation.score_segmentation(
            models.segmenter(networks["seg"]), cohort, cohort.validation
        ),
        "reg": evaluation.score_registration(models.registrar(networks["reg"]), cohort, pairs),
    }
    for name, rows in judged.items():
        assert scores[name] == pytest.approx(np.nanmean(rows["dice"]), abs=1e-4)


@pytest.mark.parametrize(
    ("key", "reference"),
    [("reg_baseline", "label_propagation"), ("deepatlas", "joint_propagation")],
)
def test_label_propagation_is_that_of_the_networks_it_is_named_by(finished, key, reference):
    experiment = parse(TWO)
    cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
    atlases = trainings.some_labelled(cohort, experiment).labelled
    register = models.registrar(experiments.load_networks(finished, key)["reg"])

    def propagated(scan):
        return registration.propagate_labels(register, atlases, scan)

    rows = evaluation.score_segmentation(propagated, cohort, cohort.test)
    kept = reporting.load_scores(finished)
    kept = kept[kept["regime"] == reference]
    assert set(kept["task"]) == {"segmentation"}
    assert rows["dice"].to_numpy() == pytest.approx(kept["dice"].to_numpy(), abs=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    ("key", "teacher"),
    [("reg_baseline", None), ("semi_reg", "seg_baseline"), ("deepatlas", "deepatlas")],
)
def test_a_pair_is_refined_by_the_loss_that_trained_its_network(finished, key, teacher):
    experiment = parse(TWO)
    cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
    register = models.registrar(experiments.load_networks(finished, key)["reg"])

    def refined(moving, fixed):
        images = moving.image[None], fixed.image[None]
        guesses = None
        if teacher is not None:
            net = experiments.load_networks(finished, teacher)["seg"]
            guesses = tuple(models.probabilities(net, image).detach() for image in images)
        loss = registration.pair_loss(
            *images,
            similarity=losses.lncc,
            regularity=experiment.lambda_r,
            anatomy=experiment.lambda_a,
            probabilities=guesses,
        )
        return registration.refine_pair(register(moving, fixed), loss, experiment.refine)

    pairs = evaluation.registration_pairs(cohort.test, per_fixed=3, seed=experiment.seed)
    rows = evaluation.score_registration(refined, cohort, pairs)
    kept = reporting.load_scores(finished)
    by_network = kept[kept["regime"] == key]
    kept = kept[kept["regime"] == REFINED[key]]
    for column in ("dice", "endpoint_voxels"):
        assert rows[column].to_numpy() == pytest.approx(
            kept[column].to_numpy(), abs=1e-3, nan_ok=True
        )
    of_network = by_network.loc[by_network["task"] == "registration", "endpoint_voxels"]
    assert not np.allclose(of_network, kept["endpoint_voxels"])


@pytest.mark.parametrize("joint_start", ["none", "trained"])
def test_a_pair_is_refined_by_what_taught_its_network_not_by_its_start(
    tmp_path, monkeypatch, joint_start
):
    experiment = parse({**SMOKE, "joint_start": joint_start})
    cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
    scores = experiments.Scores(experiment, cohort, tmp_path, {})
    nets = {}
    asked = []
    monkeypatch.setattr(models, "probabilities", lambda net, image: asked.append(net) or image)
    monkeypatch.setattr(registration, "refine_pair", lambda start, loss, steps: start)
    for key, regime in experiment.table.items():
        untrained = experiments.new_networks(experiment, len(cohort.structures))
        nets[key] = {name: untrained[name] for name in regime.trains}
        if "seg" in regime.trains:
            scores.seg_nets[key] = untrained["seg"]
    fixed_teacher = experiment.table["semi_reg"].start["seg"]
    for key, teacher in (("semi_reg", fixed_teacher), ("deepatlas", "deepatlas")):
        asked.clear()
        scores._refiner(key, nets[key]["reg"])(*scores.pairs[0])
        assert asked == [nets[teacher]["seg"]] * 2
    asked.clear()
    scores._refiner("reg_baseline", nets["reg_baseline"]["reg"])(*scores.pairs[0])
    assert not asked


def test_without_steps_of_refinement_there_are_no_such_rows(tmp_path):
    folder = experiments.run(parse({**SMOKE, "regimes": "joint", "refine": 0}), tmp_path)
    regimes = set(reporting.load_scores(folder)["regime"])
    assert "deepatlas" in regimes and not regimes & set(REFINED.values())


def test_a_reference_is_scored_again_with_the_networks_it_is_made_of(finished, tmp_path, scored):
    folder = shutil.copytree(finished, tmp_path / finished.name)
    (folder / "scores.csv").unlink()
    (folder / "deepatlas" / "scores.csv").unlink()
    experiments.run(parse(TWO), tmp_path)
    assert scored == ["deepatlas"]
    assert (folder / "scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()


def test_a_pairs_true_deformation_is_computed_once(tmp_path):
    """Not once a regime: it takes longer than the network."""
    experiment = parse(TWO)
    cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
    asked = []

    def truth(moving, fixed):
        asked.append((moving.id, fixed.id))
        return cohort.truth(moving, fixed)

    scores = experiments.Scores(experiment, replace(cohort, truth=truth), tmp_path, {})
    nets = experiments.new_networks(experiment, len(cohort.structures))
    scores.add("seg_baseline", {"seg": nets["seg"]})
    for key in ("reg_baseline", "semi_reg"):
        scores.add(key, {"reg": nets["reg"]})
    rows = scores.rows()
    assert rows["regime"].nunique() == 7 and rows["endpoint_voxels"].notna().any()
    assert len(asked) == len(set(asked)) == len(scores.pairs)


# --- files of a run belong together ---------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn_otherwise(tmp_path_factory):
    """The run of ``finished``, but for the scans that are labelled."""
    root = tmp_path_factory.mktemp("others")
    return experiments.run(parse({**SMOKE, "labelled": 2, "label_seed": 1}), root)


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """A copy of the finished run, whose networks are trained: no turn more is taken."""
    monkeypatch.setattr(training.Trainer, "take_turn", lambda self: pytest.fail("trained again"))
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


def gone(path, other):
    path.unlink()


def cut_at_a_line(path, other):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


def zeroed(path, other):
    path.write_bytes(bytes(path.stat().st_size))


def swapped(path, other):
    shutil.copyfile(other, path)


@pytest.mark.parametrize("damage", [gone, cut_at_a_line, zeroed, swapped])
@pytest.mark.parametrize("name", ["scores.csv", "history.csv", "examples.pt"])
def test_what_is_lost_of_a_finished_run_is_made_again(
    finished, drawn_otherwise, copy, capsys, damage, name
):
    """Told to whoever reads it; from the trained networks, with the very same numbers."""
    experiment = parse(TWO)
    damage(copy / name, drawn_otherwise / name)
    read = {
        "scores.csv": reporting.results_table,
        "history.csv": reporting.load_history,
        "examples.pt": reporting.load_examples,
    }[name]
    with pytest.raises(UserError, match=rf"{name}: (missing|damaged, or of another run); start"):
        read(copy)
    assert experiments.run(experiment, copy.parent) == copy
    assert f"{name} missing or damaged, and made again" in capsys.readouterr().out
    for each in ("scores.csv", "history.csv", "examples.pt"):
        assert (copy / each).read_bytes() == (finished / each).read_bytes()
    read(copy)
    experiments.run(experiment, copy.parent)
    assert "finished before" in capsys.readouterr().out


def test_rows_of_the_history_come_back_when_some_regimes_are_loaded(finished, copy):
    """Of regimes that are not asked for, too: their checkpoints hold them."""
    experiment = parse(TWO)
    cut_at_a_line(copy / "history.csv", None)
    experiments.train_or_load(experiment, "seg_baseline", root=copy.parent)
    assert (copy / "history.csv").read_bytes() == (finished / "history.csv").read_bytes()


def test_the_record_of_another_run_is_refused(finished, drawn_otherwise, copy):
    experiment = parse(TWO)
    swapped(copy / "run.json", drawn_otherwise / "run.json")
    for begin in (
        lambda: experiments.run(experiment, copy.parent),
        lambda: experiments.train_or_load(experiment, "seg_baseline", root=copy.parent),
    ):
        with pytest.raises(
            UserError,
            match=rf"the record of another run, {drawn_otherwise.name}: .*this file alone",
        ):
            begin()
    with pytest.raises(UserError, match=r"scores\.csv: damaged, or of another run"):
        reporting.results_table(copy)


@pytest.mark.parametrize("damage", [gone, zeroed, swapped])
def test_without_its_record_a_run_finds_what_it_trained(finished, drawn_otherwise, copy, damage):
    """As the sentence says: remove run.json alone, and start again."""
    damage(copy / "run.json", drawn_otherwise / "run.json")
    (copy / "run.json").unlink(missing_ok=True)
    experiments.run(parse(TWO), copy.parent)
    for each in ("scores.csv", "history.csv", "examples.pt"):
        assert (copy / each).read_bytes() == (finished / each).read_bytes()


def test_a_checkpoint_of_another_label_seed_is_refused(finished, drawn_otherwise, copy):
    name = "deepatlas/checkpoint.pt"
    swapped(copy / name, drawn_otherwise / name)
    with pytest.raises(UserError, match=r"checkpoint\.pt: is of another run or regime: remove it"):
        experiments.load_networks(copy, "deepatlas")
    with pytest.raises(UserError, match=r"is of another training .*: (run and )?data"):
        experiments.train_or_load(parse(TWO), "deepatlas", root=copy.parent)


@pytest.mark.parametrize("others", [(), ("scores.csv",), ("history.csv",)], ids=str)
@pytest.mark.parametrize("key", ["semi_seg", "deepatlas"])
def test_a_checkpoint_that_was_removed_is_trained_again(finished, tmp_path, key, others):
    """As the sentence says that tells of its damage, though the run is finished."""
    folder = shutil.copytree(finished, tmp_path / finished.name)
    peak = experiments.read_record(folder)["peak_memory_gib"]
    for name in (f"{key}/checkpoint.pt", *others):
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: start the run again"):
        experiments.load_networks(folder, key)
    experiment = parse(TWO)
    experiments.train_or_load(experiment, "seg_baseline", root=tmp_path)
    experiments.run(experiment, tmp_path)
    assert (folder / "scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()
    assert experiments.load_networks(folder, key)
    rows = reporting.load_history(folder).drop(columns="seconds")
    before = reporting.load_history(finished).drop(columns="seconds")
    pd.testing.assert_frame_equal(
        rows.sort_values(["regime", "step"], ignore_index=True),
        before.sort_values(["regime", "step"], ignore_index=True),
    )
    assert experiments.read_record(folder)["peak_memory_gib"] == peak


def test_two_that_train_one_run_at_once_leave_a_run_that_can_be_read(finished, tmp_path):
    """Their checkpoints have other seconds, and are the same networks."""
    folder = shutil.copytree(finished, tmp_path / finished.name)
    path = folder / "deepatlas" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"seconds": 123.4}, path)
    assert experiments.load_networks(folder, "deepatlas")
    experiments.train_or_load(parse(TWO), "deepatlas", root=tmp_path)


def test_a_run_of_another_version_of_the_code_is_reported(finished, tmp_path):
    """Its name has another hash, and its files are its own all the same."""
    name = "phantom-brain-smoke-2d-N2-seed0-01234567"
    folder = shutil.copytree(finished, tmp_path / name)
    pd.testing.assert_frame_equal(
        reporting.results_table(folder), reporting.results_table(finished)
    )
    assert experiments.load_networks(folder, "deepatlas").keys() == {"seg", "reg"}
    (folder / "scores.csv").unlink()
    with pytest.raises(UserError, match=r"missing; only the version of the kit that wrote the run"):
        reporting.results_table(folder)


def test_what_killed_processes_left_is_swept_up_when_a_run_goes_on(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / finished.name)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host = locks.place()
    left = [
        folder / f"scores.csv.{host}.{process.pid}.0a1b2c3d.part",
        folder / "deepatlas" / f"checkpoint.pt.{host}.{process.pid}.0a1b2c3d.part",
    ]
    for path in left:
        path.write_bytes(b"half")
    experiments.train_or_load(parse(TWO), "seg_baseline", root=tmp_path)
    assert not any(path.exists() for path in left)


def test_guesses_of_more_than_255_structures_are_kept_as_they_are(monkeypatch):
    """As uint8, structure 257 would be structure 1."""
    cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
    names = tuple(f"structure {i}" for i in range(300))
    cohort = replace(cohort, structures=names)
    guess = torch.full(cohort.shape, 257)
    monkeypatch.setattr(models, "segmenter", lambda net: lambda scan: guess)
    monkeypatch.setattr(
        models, "registrar", lambda net: lambda moving, fixed: Deformation.identity(fixed.shape)
    )
    nets = {key: {"seg": None, "reg": None} for key in REGIMES}
    (example, *_) = experiments._examples(nets, cohort)
    assert torch.equal(example["labels_deepatlas"].long(), guess)


@pytest.mark.parametrize(
    "name, text",
    [
        ("run.json", "run.json: .*damaged.*remove this file alone and start the run again"),
        (
            "deepatlas/checkpoint.pt",
            "checkpoint.pt: cannot be read .* the file is damaged: remove it",
        ),
    ],
)
@pytest.mark.parametrize("content", [b"", b"half a fi", b"{}"])
def test_a_damaged_file_is_named(finished, tmp_path, name, text, content):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(ValueError, match=text):
        experiments.load_networks(tmp_path / "run", "deepatlas")


def test_the_labelled_scans_are_drawn_by_their_own_seed(tmp_path, monkeypatch):
    drawn = []
    hide = data.Cohort.hide_labels
    monkeypatch.setattr(
        data.Cohort,
        "hide_labels",
        lambda cohort, keep, seed: drawn.append((keep, seed)) or hide(cohort, keep, seed),
    )
    experiments.run(parse({**SMOKE, "label_seed": 7}), tmp_path)
    assert set(drawn) == {(1, 7)} and parse({"seed": 3}).label_seed == 3


@pytest.mark.parametrize(
    "values",
    [
        {"dims": 3},
        {"labelled": 4},
        {"recipe": "paper"},
        {"teacher": 0.9, "passes": 2, "fourth_case": True},
        {"labelled": 2, "unlabelled": 0, "regimes": "joint", "joint_start": "none"},
    ],
    ids=["3D", "all labelled", "the paper's recipe", "means beyond the paper", "ablations"],
)
def test_other_experiments_run_too(values, tmp_path):
    folder = experiments.run(parse({**SMOKE, **values}), tmp_path)
    assert reporting.results_table(folder)["Dice %"].between(0, 100).all()


@pytest.mark.parametrize("dataset", ["hippocampus", "oasis35", "oasis35-cortex"])
def test_real_scans_run_too(dataset, real_data, tmp_path):
    folder = experiments.run(
        parse({"dataset": dataset, "profile": "smoke", "device": "cpu"}), tmp_path
    )
    table = reporting.results_table(folder)
    assert (
        table.loc[("registration", "No registration"), "Dice %"] > 20
        and "error voxels" not in table
    )


# --- the command ----------------------------------------------------------------------------------


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "deepatlas.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    "arguments, text",
    [
        (
            ["run", "labeled=5"],
            "deepatlas: there is no parameter 'labeled', did you mean 'labelled'",
        ),
        (["run", "dataset=["], "deepatlas: there is no cohort '[': choose from"),
        (["run", "labelled"], "deepatlas: parameters are written NAME=VALUE"),
        (
            ["run", "device=cuda:99", "profile=smoke"],
            "deepatlas: device 'cuda:99' cannot train here",
        ),
        (
            ["data", "fetch", "oasis"],
            "deepatlas: there is no cohort 'oasis', did you mean 'oasis35'",
        ),
        (["table", "/nowhere"], "deepatlas: /nowhere: not a run folder"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_one_sentence(arguments, text, tmp_path):
    done = command(*arguments, *(["--root", tmp_path] if arguments[0] == "run" else []))
    assert done.returncode == 1 and done.stderr.startswith(text) and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_the_command_runs_an_interrupted_experiment_to_its_end_with_a_notebook(tmp_path):
    # which precision is the faster is measured, and a busy machine may answer otherwise
    given = {"profile": "smoke", "dims": 2, "seg_steps": 60, "device": "cpu"}
    given["precision"] = "float32"
    values = [f"{name}={value}" for name, value in given.items()]
    arguments = ["run", *values, "--root", tmp_path / "stopped"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deepatlas.cli", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while (
        not list(tmp_path.glob("stopped/*/seg_baseline/checkpoint.pt")) and process.poll() is None
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "goes on from there" in errors and "Traceback" not in errors
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "stopped").glob("*/run.json")
    folder = record.parent
    # last bits depend on it
    torch.set_num_threads(json.loads(record.read_text())["threads"])
    uninterrupted = experiments.run(parse(given), tmp_path)
    assert (folder / "scores.csv").read_bytes() == (uninterrupted / "scores.csv").read_bytes()
    assert not (places.runs_folder() / folder.name).exists()
    assert "DeepAtlas" in done.stdout and str(folder / "report.html") in done.stdout
    report = (folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]+', report)
    assert (
        report.count("<img alt=") == 6
        and "Traceback" not in report
        and "Full supervision" in report
    )
    printed = command("table", folder).stdout
    assert "cerebellum" in printed and "Label propagation" in printed


def test_the_command_lists_and_checks_data():
    assert "CC BY-SA 4.0" in command("data").stdout
    shown = command("data", "fetch", "phantom-knee", "--profile", "smoke", "--dims", "2").stdout
    assert (
        "femoral cartilage" in shown
        and "4 training, 2 validation and 3 test scans of 32 x 32 voxels" in shown
    )


def test_the_readmes_python_runs(finished, monkeypatch, capsys, tmp_path):
    """On a run of smoke size, the README shows the default one, and on files of its test scans."""
    blocks = re.findall(
        r"```python\n(.*?)```",
        places.README.read_text(encoding="utf-8"),
        re.S,
    )
    monkeypatch.setattr(experiments, "run", lambda experiment: finished)
    load = datasets.load_cohort
    monkeypatch.setattr(
        datasets, "load_cohort", lambda name, **how: load(name, profile="smoke", **how)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN_FOLDER").symlink_to(finished)
    names = ("new.nii.gz", "a.nii.gz", "b.nii.gz")
    for name, scan in zip(names, load("phantom-brain", profile="smoke").test, strict=True):
        nib.save(nib.Nifti1Image(scan.image[0].numpy(), scan.affine.numpy()), name)
    for code in blocks:
        exec(code, {})
    assert len(blocks) == 3
    assert "tensor([" in capsys.readouterr().out
