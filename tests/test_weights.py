"""Trained networks in one small file: kept, loaded, refused if damaged, as good as they were."""

from pathlib import Path

from deepatlas import datasets, evaluation, experiments, models, places, weights
from deepatlas.checkpoints import load_tensors, write_tensors
from deepatlas.cli import app
from deepatlas.errors import UserError
from deepatlas.parameters import parse
from deepatlas.regimes import TAUGHT

import pytest
import torch
from typer.testing import CliRunner

SMOKE = ["profile=smoke", "dims=2", "device=cpu", "regimes=joint"]


def test_kept_networks_answer_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "kept"
    done = CliRunner().invoke(app, ["weights", *SMOKE, "--to", str(path)])
    assert done.exit_code == 0, done.output
    nets, values = weights.load(path)
    experiment = parse({"profile": "smoke", "dims": 2, "device": "cpu", "regimes": "joint"})
    assert parse(values) == experiment
    trained = experiments.load_networks(places.runs_folder() / experiment.name, "deepatlas")
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(nets["seg"](image), trained["seg"](image), atol=0.02, rtol=0.02)
    phi, wanted = nets["reg"](image, image), trained["reg"](image, image)
    torch.testing.assert_close(phi.displacement, wanted.displacement, atol=0.02, rtol=0.02)


def test_what_is_not_there_or_damaged_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"zebra\.pt: no such file; .* with the project: phantom-brain"
    ):
        weights.load("zebra")
    (tmp_path / "half.pt").write_bytes(
        weights.WEIGHTS.joinpath("phantom-brain.pt").read_bytes()[:1000]
    )
    with pytest.raises(ValueError, match=r"half\.pt: cannot be read .* the file is damaged"):
        weights.load(tmp_path / "half.pt")


def test_a_file_that_may_not_be_read_is_not_called_damaged(monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(PermissionError):
        weights.load("phantom-brain")


def test_a_bit_of_the_projects_weights_that_turned_over_is_told(tmp_path):
    content = bytearray((weights.WEIGHTS / "phantom-brain.pt").read_bytes())
    content[len(content) // 2] ^= 16
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"flipped\.pt: cannot be read \(the checksum of .* wrong"):
        weights.load(tmp_path / "flipped.pt")


def test_a_file_that_holds_something_else_is_told(tmp_path):
    path = tmp_path / "else.pt"
    whole = load_tensors(weights.WEIGHTS / "phantom-brain.pt")
    others = {
        "not written by this version": [
            [],
            {"experiment": {}},
            whole | {"experiment": whole["experiment"] | {"networks": "zebra"}},
            whole | {"experiment": whole["experiment"] | {"dims": 7}},
            whole | {"networks": {"zebra": {}}},
        ],
        "not those of the network that was wanted .size mismatch": [
            whole | {"structures": [*whole["structures"], "one more"]},
        ],
        "not those of the network that was wanted": [
            whole | {"networks": {"seg": []}},
            whole | {"networks": {"seg": {}}},
        ],
    }
    for text, values in others.items():
        for value in values:
            write_tensors(value, path)
            with pytest.raises(UserError, match=rf"else\.pt: .*{text}"):
                weights.load(path)


def test_a_folder_is_no_place_for_weights(tmp_path):
    with pytest.raises(UserError, match="is a folder, and the file to write was wanted"):
        weights.keep({}, {"experiment": {}, "structures": []}, tmp_path)


def test_other_parameters_do_not_replace_the_projects_weights():
    done = CliRunner().invoke(app, ["weights", *SMOKE])
    assert "name another file with --to" in str(done.exception)


def test_the_projects_weights_are_small_and_good():
    """On test scans that no training has seen; the run that left them reached .914 and .843."""
    path = weights.WEIGHTS / "phantom-brain.pt"
    assert path.stat().st_size < 2**21
    nets, values = weights.load("phantom-brain")
    chosen = {name: values[name] for name in ("profile", "dims", "seed")}
    cohort = datasets.load_cohort(values["dataset"], **chosen)
    seg = evaluation.score_segmentation(models.segmenter(nets["seg"]), cohort, cohort.test)
    reg = evaluation.score_registration(
        models.registrar(nets["reg"]),
        cohort,
        evaluation.registration_pairs(cohort.test, per_fixed=1),
    )
    assert evaluation.per_subject(seg).mean() > 0.90
    assert evaluation.per_subject(reg).mean() > 0.82
    assert reg["folds_percent"].max() < 0.5


def test_the_networks_of_the_lessons_are_small_and_as_the_lessons_tell():
    """What is taught beside the expert's scan is better than the baseline; one run of each."""
    files = sorted(places.LESSON_WEIGHTS.glob("*.pt"))
    assert sum(file.stat().st_size for file in files) < 2**22
    experiment = experiments.of_lessons()
    cohort = datasets.load_cohort(experiment.dataset, profile=experiment.profile, dims=2)
    found = experiments.ready_made(experiment, *TAUGHT)
    assert {file.stem for file in files} == found.keys()
    dice = {}
    for key, nets in found.items():
        if "seg" in nets:
            segment = models.segmenter(nets["seg"])
            scores = evaluation.score_segmentation(segment, cohort, cohort.test)
        else:
            pairs = evaluation.registration_pairs(cohort.test, per_fixed=1)
            scores = evaluation.score_registration(models.registrar(nets["reg"]), cohort, pairs)
        dice[key] = evaluation.per_subject(scores).mean()
    assert 0.7 < dice["seg_baseline"] < dice["semi_seg"] - 0.02
    assert dice["deepatlas"] > dice["seg_baseline"] + 0.02
    assert dice["reg_baseline"] > 0.7
