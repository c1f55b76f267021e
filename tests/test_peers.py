"""Rivals of others: their deformations point where the kit's do, and their rows are kept once."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from deepatlas import experiments, parameters, trainings
from deepatlas.data import Scan
from deepatlas.evaluation.overlap import dice
from deepatlas.warp import Deformation, voxel_grid

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import STRUCTURES, disks, one_thread  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.peers import (
    __main__,
    cases,
    dynunet,
    fields,
    propagation,
    registrations,
    rows,
    table,
    tuning,
)

SHAPES = [(48, 40), (24, 32, 28)]


# --- directions, units, axes ----------------------------------------------------------------------


def rotation_and_shift(shape):
    """[[A, t], [0, 1]] (1, D + 1, D + 1): turned in the first two axes about the middle, and moved
    by another number of voxels along each axis.
    """
    dims = len(shape)
    angle = 0.15
    turn = torch.eye(dims)
    turn[0, 0] = turn[1, 1] = np.cos(angle)
    turn[0, 1], turn[1, 0] = -np.sin(angle), np.sin(angle)
    middle = (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    matrix = torch.eye(dims + 1)
    matrix[:dims, :dims] = turn
    matrix[:dims, dims] = middle - turn @ middle + torch.tensor([3.0, -2.0, 1.0])[:dims]
    return matrix[None]


def blobs(shape):
    """An image (1, I, J, K) that looks the same from no two sides: soft balls of several sizes."""
    grid = voxel_grid(shape, torch.zeros(()))
    sides = torch.tensor(shape, dtype=torch.float32)
    image = torch.zeros(shape)
    for centre, size, value in (
        ((0.5, 0.5, 0.5), 0.28, 0.5),
        ((0.35, 0.4, 0.6), 0.1, 0.5),
        ((0.6, 0.35, 0.45), 0.07, -0.4),
        ((0.55, 0.65, 0.4), 0.09, 0.3),
    ):
        away = grid - (torch.tensor(centre)[: len(shape)] * sides).view(-1, *[1] * len(shape))
        distance = away.square().sum(0).sqrt()
        image += value * torch.sigmoid(1.5 * (size * min(shape) * 1.5 - distance))
    return image.clamp(0, 1)[None]


def scan(name, image, labels=None):
    return Scan(name, name, image, torch.eye(4, dtype=torch.float64), labels)


def pair(shape):
    """(moving, fixed, phi): fixed(x) = moving(phi(x))."""
    phi = Deformation.affine(rotation_and_shift(shape), shape)
    image = blobs(shape)
    return scan("moving", image), scan("fixed", phi.warp(image[None])[0]), phi


REGISTRATIONS = {
    "optimise": (
        "torch",
        partial(registrations.optimise, window=5, regularity=1.0, levels=3, steps=20),
    ),
    "ants_mi": ("ants", registrations.ants_mi),
    "ants_cc": ("ants", partial(registrations.ants_cc, radius=2, iterations=[20, 20, 10])),
    "sitk_bspline, mattes": (
        "SimpleITK",
        partial(registrations.sitk_bspline, metric="mattes", mesh=1),
    ),
    "sitk_bspline, correlation": (
        "SimpleITK",
        partial(registrations.sitk_bspline, metric="correlation", mesh=1),
    ),
}


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
@pytest.mark.parametrize("name", REGISTRATIONS)
def test_a_known_rotation_and_shift_are_found_in_voxels_and_the_right_way(name, shape):
    module, make = REGISTRATIONS[name]
    pytest.importorskip(module)
    moving, fixed, truth = pair(shape)
    found = make()(moving, fixed)
    assert found.shape == shape
    inside = fixed.image[0] > 0.1
    error = (found.displacement - truth.displacement)[0].square().sum(0).sqrt()[inside]
    size = truth.displacement[0].square().sum(0).sqrt()[inside]
    assert size.mean() > 3
    assert error.mean() < 0.25 * size.mean()
    # so that what is warped is the fixed image
    unlike = (found.warp(moving.image[None]) - fixed.image[None])[0, 0][inside].abs().mean()
    before = (moving.image - fixed.image)[0][inside].abs().mean()
    assert unlike < 0.4 * before


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_a_transform_of_ants_becomes_the_same_deformation(shape, tmp_path):
    ants = pytest.importorskip("ants")
    matrix = rotation_and_shift(shape)
    dims = len(shape)
    made = ants.create_ants_transform(
        transform_type="AffineTransform",
        dimension=dims,
        matrix=matrix[0, :dims, :dims].numpy(),
        translation=matrix[0, :dims, dims].numpy(),
    )
    file = str(tmp_path / "affine.mat")
    ants.write_transform(made, file)
    moving, fixed, truth = pair(shape)
    fixed_image, moving_image = (
        fields.ants_image(fixed.image[0]),
        fields.ants_image(moving.image[0]),
    )
    found = fields.ants_deformation(fixed_image, moving_image, [file])
    torch.testing.assert_close(found.displacement, truth.displacement, atol=1e-4, rtol=0)
    # and ANTs itself warps as the kit does
    warped = ants.apply_transforms(fixed_image, moving_image, [file]).numpy()
    inside = (slice(8, -8),) * dims
    ours = found.warp(moving.image[None])[0, 0].numpy()
    assert np.abs(warped - ours)[inside].max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_a_composite_of_simpleitk_becomes_the_same_deformation(shape):
    sitk = pytest.importorskip("SimpleITK")
    dims = len(shape)
    matrix = rotation_and_shift(shape)
    affine = sitk.AffineTransform(dims)
    affine.SetMatrix(matrix[0, :dims, :dims].double().flatten().tolist())
    affine.SetTranslation(matrix[0, :dims, dims].double().tolist())
    image = fields.sitk_image(blobs(shape)[0])
    assert image.GetSize() == shape
    splines = sitk.BSplineTransformInitializer(image, [3] * dims, order=3)
    generator = np.random.default_rng(0)
    splines.SetParameters(generator.normal(size=len(splines.GetParameters())).tolist())
    whole = sitk.CompositeTransform([affine, splines])
    found = fields.sitk_deformation(whole, image)
    for point in generator.integers(4, 20, size=(5, dims)).tolist():
        wanted = affine.TransformPoint(splines.TransformPoint([float(n) for n in point]))
        u = found.displacement[(0, slice(None), *point)]
        torch.testing.assert_close(u, torch.tensor(wanted) - torch.tensor(point), atol=1e-4, rtol=0)


def test_syn_finds_the_same_each_time():
    pytest.importorskip("ants")
    moving, fixed, _ = pair(SHAPES[0])
    first, second = (registrations.ants_mi()(moving, fixed) for _ in range(2))
    assert torch.equal(first.displacement, second.displacement)


# --- segmentation ---------------------------------------------------------------------------------


def stay(moving, fixed):
    return Deformation.identity(fixed.shape)


def shifted(moving, fixed):
    """One voxel along the first axis."""
    u = torch.zeros(1, 2, *fixed.shape)
    u[:, 0] = 1
    return Deformation(u)


def test_atlases_that_agree_are_fused_to_their_own_labels():
    pytest.importorskip("ants")
    atlas = disks(labelled=1, side=24).train[0]
    found = propagation.fused(stay, [replace(atlas, id=name) for name in "abc"])(atlas)
    assert torch.equal(found, atlas.labels.long())


def test_atlases_are_warped_before_they_are_fused():
    """Three atlases that lie one voxel beside the scan."""
    pytest.importorskip("ants")
    atlas = disks(labelled=1, side=24).train[0]
    target = replace(atlas, id="target", image=shifted(None, atlas).warp(atlas.image[None])[0])
    found = propagation.fused(shifted, [replace(atlas, id=name) for name in "abc"])(target)
    wanted = shifted(None, atlas).warp_labels(atlas.labels[None])[0]
    assert torch.equal(found, wanted.long())


def test_one_atlas_is_not_fused():
    pytest.importorskip("ants")
    with pytest.raises(ValueError, match="that is label propagation"):
        propagation.fused(stay, disks().labelled[:1])


@pytest.mark.parametrize(
    ("shape", "levels"),
    [((96, 96), 5), ((80, 96), 5), ((40, 56, 40), 4), ((16, 24, 16), 3), ((10, 16), 2)],
)
def test_sides_are_halved_as_long_as_they_are_even_and_long(shape, levels):
    assert dynunet.levels_of(shape) == levels


def test_dynunet_learns_from_the_labels_that_it_may_see():
    pytest.importorskip("monai")
    cohort = disks(labelled=3, unlabelled=1, side=32)
    losses = []
    arguments = {"steps": 60, "batch": 2, "width": 8, "seed": 0}
    net = dynunet.trained(cohort.labelled, 3, **arguments, losses=losses)
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    segment = dynunet.segmenter(net, 3)
    unseen = cohort.validation[0]
    assert min(dice(segment(unseen), unseen.labels, STRUCTURES).values()) > 0.6
    again = dynunet.trained(cohort.labelled, 3, **arguments)
    assert torch.equal(segment(unseen), dynunet.segmenter(again, 3)(unseen))


@pytest.mark.parametrize("shape", [(32, 32), (16, 24, 16)], ids=["2D", "3D"])
def test_dynunet_is_of_both_dimensions(shape):
    pytest.importorskip("monai")
    image = blobs(shape)
    seen = scan("seen", image, (image[0] > 0.5).long())
    net = dynunet.trained([seen], 2, steps=2, batch=1, width=4, seed=0)
    segment = dynunet.segmenter(net, 2)
    assert segment(seen).shape == shape
    # mirror images are segmented as mirror images
    mirrored = replace(seen, image=seen.image.flip(1), labels=seen.labels.flip(0))
    assert (segment(mirrored).flip(0) == segment(seen)).float().mean() > 0.99


# --- the cases ------------------------------------------------------------------------------------


def experiment_of(**values):
    return parameters.parse({"dataset": "phantom-brain", "profile": "smoke", "seed": 100} | values)


def test_scans_pairs_and_labels_are_those_of_the_experiment(tmp_path):
    experiment = experiment_of(labelled=2)
    found = cases.Cases.of(experiment)
    cohort = trainings.load_cohort_of(experiment)
    scores = experiments.Scores(experiment, cohort, tmp_path, {})

    def names(pairs):
        return [(moving.id, fixed.id) for moving, fixed in pairs]

    assert names(found.pairs) == names(scores.pairs)
    assert [one.id for one in found.scans] == [one.id for one in scores.tests]
    seen = found.seen_by(table.RIVALS["ants_propagation"])
    assert [one.id for one in seen.labelled] == [one.id for one in scores.atlases]
    assert found.seen_by(table.RIVALS["ants_cc"]).labelled == ()
    assert len(found.seen_by(table.RIVALS["dynunet_full"]).labelled) == len(cohort.train)
    on_validation = cases.Cases.of(experiment, "validation")
    assert {one.id for one in on_validation.scans} == {one.id for one in cohort.validation}


def test_a_rival_is_scored_for_each_subject(monkeypatch):
    experiment = experiment_of()
    found = cases.Cases.of(experiment)
    rival = table.Rival("registration", "none", lambda settings, seen: stay)
    scored = cases.scored("stays", rival, {"a": 1}, found)
    assert set(scored["subject"]) == {one.subject for one in found.scans}
    assert scored["dice"].between(1, 100).all() and (scored["folds_percent"] == 0).all()
    assert (scored["endpoint_voxels"] > 0).all() and (scored["seconds"] >= 0).all()
    assert scored["training_seconds"].isna().all()
    assert set(scored["settings"]) == {'{"a": 1}'}


def test_what_is_trained_on_a_gpu_says_so_and_tells_no_seconds(monkeypatch):
    seen = []

    def make(settings, given):
        seen.append(given.device)
        return lambda scan: scan.labels

    monkeypatch.setattr(cases.machine, "pick_device", lambda wanted: wanted)
    monkeypatch.setattr(cases.machine, "device_name", lambda device: f"name of {device}")
    found = cases.Cases.of(experiment_of(device="cuda"))
    trained = table.Rival("segmentation", "some", make, trains=True)
    scored = cases.scored("trained", trained, {}, found)
    assert seen == ["cuda"] and set(scored["processor"]) == {"name of cuda"}
    assert scored[["seconds", "training_seconds"]].isna().all(axis=None)
    still = table.Rival("registration", "none", lambda settings, seen: stay)
    scored = cases.scored("stays", still, {}, found)  # the processor does it, whatever the device
    assert set(scored["processor"]) == {"name of cpu"} and scored["seconds"].notna().all()


def test_what_a_rival_sees_is_in_its_key():
    experiment = experiment_of(labelled=2, label_seed=7)
    keys = {
        name: cases.run_of(name, table.RIVALS[name], experiment, "test")
        for name in ("ants_cc", "dynunet", "dynunet_full")
    }
    assert (keys["ants_cc"].labelled, keys["ants_cc"].label_seed) == (0, 100)
    assert (keys["dynunet"].labelled, keys["dynunet"].label_seed) == (2, 7)
    assert (keys["dynunet_full"].labelled, keys["dynunet_full"].label_seed) == (4, 100)
    assert keys["dynunet"].name == "phantom-brain-smoke-2d-N2-seed100-labels7"


# --- rows and the command -------------------------------------------------------------------------

WORDS = ["--dataset", "phantom-brain", "--profile", "smoke", "--dims", "2", "--seed", "100"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Of what takes them, where nothing was tuned."""
    row = table.RIVALS["optimise"]
    monkeypatch.setitem(
        table.RIVALS, "optimise", replace(row, settings=row.settings | {"steps": 1})
    )


def command(path, *words):
    return __main__.main(
        [*WORDS, "--tuning", str(path.parent / "none.csv"), *words, "--out", str(path)]
    )


def test_rows_of_subjects_csv_are_written_once(tmp_path, capsys):
    path = tmp_path / "peers.csv"
    assert command(path, "--rival", "optimise") == 0
    found = rows.read(path)
    assert list(found.columns[:5]) == ["run", "task", "regime", "subject", "dice"]
    assert set(found["run"]) == {"phantom-brain-smoke-2d-N0-seed100"}
    assert len(found) == 3 and set(found["part"]) == {"test"}
    before = path.read_bytes()
    assert command(path, "--rival", "optimise") == 0
    assert "scored before" in capsys.readouterr().out
    assert path.read_bytes() == before
    # another seed, and the validation scans, come beside
    assert command(path, "--rival", "optimise", "--validation") == 0
    assert command(path, "--rival", "optimise", "--seed", "101") == 0
    assert len(rows.read(path)) == 3 + 2 + 3
    assert not list(tmp_path.glob("*.lock")) and not list(tmp_path.glob("*.part"))


def test_label_fusion_of_one_scan_is_skipped_with_a_sentence(tmp_path, capsys):
    pytest.importorskip("ants")
    path = tmp_path / "peers.csv"
    assert command(path, "--rival", "ants_jlf") == 0
    assert "wants 2 labelled scans, and 1 are" in capsys.readouterr().out
    assert not path.exists()


@pytest.mark.parametrize("name", ["ants_propagation", "ants_jlf", "ants_cc", "sitk_bspline"])
def test_rivals_run_from_end_to_end(tmp_path, name):
    pytest.importorskip(table.RIVALS[name].module)
    path = tmp_path / "peers.csv"
    assert command(path, "--rival", name, "--labelled", "2", "--validation") == 0
    found = rows.read(path)
    assert len(found) == 2 and found["dice"].between(20, 100).all()
    assert set(found["labelled"]) == {0 if table.RIVALS[name].sees == "none" else 2}


def test_the_steps_of_dynunet_are_a_parameter(tmp_path, capsys):
    pytest.importorskip("monai")
    path = tmp_path / "peers.csv"
    words = ["--rival", "dynunet", "dynunet_full", "--validation"]
    assert command(path, *words, "--steps", "2") == 0
    found = rows.read(path)
    assert {json.loads(text)["steps"] for text in found["settings"]} == {2}
    assert (found["training_seconds"] > 0).all()
    assert set(found["labelled"]) == {1, 4}
    assert command(path, *words, "--steps", "3") == 0
    assert "with other settings" in capsys.readouterr().out


def test_a_rival_that_is_not_there_is_said(tmp_path, capsys, monkeypatch):
    path = tmp_path / "peers.csv"
    assert command(path, "--rival", "ants_c") == 1
    assert "did you mean 'ants_cc'" in capsys.readouterr().err
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    assert command(path, "--rival", "ants_mi") == 1
    assert "pip install antspyx" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert command(tmp_path / "other.csv", "--rival", "optimise") == 1
    assert "not the table that was wanted" in capsys.readouterr().err


# --- tuning ---------------------------------------------------------------------------------------


def test_settings_are_those_of_the_highest_dice_that_hardly_fold(tmp_path):
    experiment = experiment_of()
    path = tmp_path / "tuning.csv"
    assert tuning.chosen("ants_cc", experiment, path) == table.SYN_CC
    who = {"dataset": "phantom-brain", "profile": "smoke", "dims": 2, "seeds": "100", "pairs": 6}
    trials = []
    for radius, found, folds in ((2, 80, 0.1), (3, 82, 0), (4, 90, 2.0)):
        settings = rows.as_text({"radius": radius, "iterations": [1, 1]})
        trial = who | {"rival": "ants_cc", "settings": settings, "dice": found}
        trials.append(trial | {"folds_percent": folds, "endpoint_voxels": 1, "seconds": 1})
    pd.DataFrame(trials, columns=tuning.COLUMNS).to_csv(path, index=False)
    assert tuning.chosen("ants_cc", experiment, path) == {"radius": 3, "iterations": [1, 1]}
    assert tuning.chosen("ants_propagation", experiment, path)["radius"] == 3
    elsewhere = experiment_of(dataset="phantom-knee")
    assert tuning.chosen("ants_cc", elsewhere, path) == table.SYN_CC


def test_a_trial_is_tried_once_and_on_validation_pairs(tmp_path, monkeypatch):
    grid = {"window": [5], "regularity": [0.2, 1.0], "levels": [2], "steps": [2]}
    rival = replace(table.RIVALS["optimise"], grid=grid)
    monkeypatch.setitem(tuning.RIVALS, "optimise", rival)
    scans = cases.Cases.of(experiment_of(), "validation")
    path = tmp_path / "tuning.csv"
    tuning.tune("optimise", [scans], 1, path)
    found = tuning.read_trials(path)
    assert len(found) == 2 and set(found["pairs"]) == {1}
    monkeypatch.setattr(tuning, "scored", None)  # it would be called for a trial that is not there
    tuning.tune("optimise", [scans], 1, path)
    assert tuning.read_trials(path).equals(found)


def test_the_grids_hold_what_the_rivals_take():
    for name, rival in table.RIVALS.items():
        for settings in tuning.combinations(rival):
            assert settings.keys() == (rival.settings.keys() if rival.grid else set()), name
