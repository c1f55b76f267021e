"""Scores against independent libraries (MONAI, digital-diffeomorphism, SciPy), exact cases and
worked examples.
"""

import ast
import itertools
import math
import warnings
from dataclasses import replace
from pathlib import Path

from deepatlas import evaluation
from deepatlas.data import Cohort, Scan
from deepatlas.warp import Deformation

import numpy as np
import pandas as pd
import pytest
import torch
from plain import plain_folded_volume
from scipy import ndimage, stats

SHAPES = ((24, 31), (17, 22, 19))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
NAMES = ("background", "one", "two", "three")


def blobs(shape, seed):
    """Integer labels (I, J, K): which of four smooth random fields is the largest; some touch the
    border.
    """
    noise = np.random.default_rng(seed).normal(size=(len(NAMES), *shape))
    return np.argmax([ndimage.gaussian_filter(field, 2.0) for field in noise], axis=0).astype(
        np.uint8
    )


def two_alike(shape, seed):
    """A label map and the same moved and speckled: overlapping, but with outliers."""
    reference = blobs(shape, seed)
    predicted = np.roll(reference, (1, 2), axis=(0, 1))
    speckles = np.random.default_rng(seed).random(shape) < 0.01
    return np.where(speckles, 1, predicted).astype(np.uint8), reference


def smooth(shape, size, seed=0, sigma=1.5):
    """A random displacement (1, D, I, J, K) of root mean square ``size`` voxels."""
    noise = np.random.default_rng(seed).normal(size=(len(shape), *shape))
    field = np.stack([ndimage.gaussian_filter(channel, sigma) for channel in noise])
    return torch.from_numpy(field * size / field.std()).float()[None]


def scaling(factors, shape):
    return Deformation.affine(torch.diag(torch.tensor([*factors, 1.0]))[None], shape)


def scan(name, subject=None, shape=(12, 14), labels=True, seed=0):
    index = torch.from_numpy(blobs(shape, seed)) if labels else None
    return Scan(
        name, subject or name, torch.zeros(1, *shape), torch.eye(4, dtype=torch.float64), index
    )


def cohort_of(*scans, **changes):
    return Cohort(
        "made up",
        NAMES,
        2.0,
        train=(replace(scans[0], id="t", subject="t"),),
        validation=(),
        test=scans,
        **changes,
    )


def identity(moving, fixed):
    return Deformation.identity(fixed.shape)


# --- overlap and boundary


@shapes
@pytest.mark.parametrize("seed", range(4))
def test_scores_agree_with_monai(shape, seed):
    from monai import metrics  # here: it takes seconds to load

    spacing = 1.7
    predicted, reference = two_alike(shape, seed)
    rows = pd.DataFrame(
        evaluation.score_labels(predicted, torch.from_numpy(reference), NAMES, spacing)
    )
    p, r = (
        torch.from_numpy(np.stack([labels == c for c in range(4)]))[None]
        for labels in (predicted, reference)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "dice": metrics.compute_dice(p, r, include_background=False),
            "nsd": metrics.compute_surface_dice(p, r, [1.0] * 3, include_background=False),
            "hd95_mm": metrics.compute_hausdorff_distance(p, r, percentile=95, spacing=spacing),
            "surface_mm": metrics.compute_average_surface_distance(
                p, r, symmetric=True, spacing=spacing
            ),
        }
    assert rows["structure"].tolist() == list(NAMES[1:])
    assert rows["dice"].between(0.05, 0.95).all()  # neither perfect nor hopeless
    for metric, values in expected.items():
        np.testing.assert_allclose(rows[metric], values[0].numpy(), rtol=2e-6, err_msg=metric)
    volumes = [[(labels == c).sum() for c in (1, 2, 3)] for labels in (predicted, reference)]
    np.testing.assert_allclose(rows["volume_error"], np.subtract(*volumes) / volumes[1])


@shapes
def test_distances_where_voxels_are_longer_one_way_agree_with_monai(shape):
    from monai import metrics

    spacing = (0.9, 1.3, 2.5)[: len(shape)]
    predicted, reference = (labels == 1 for labels in two_alike(shape, 0))
    scores = evaluation.mask_scores(predicted, reference, spacing)
    p, r = (torch.from_numpy(mask)[None, None] for mask in (predicted, reference))
    more = {"include_background": True, "spacing": spacing}
    farthest = metrics.compute_hausdorff_distance(p, r, percentile=95, **more)
    mean = metrics.compute_average_surface_distance(p, r, symmetric=True, **more)
    assert scores["hd95_mm"] == pytest.approx(farthest.item(), rel=2e-6)
    assert scores["surface_mm"] == pytest.approx(mean.item(), rel=2e-6)
    # what is counted in voxels does not depend on their sides
    alike = evaluation.mask_scores(predicted, reference)
    for metric in ("dice", "nsd", "volume_error"):
        assert scores[metric] == alike[metric]
    # sides that are equal are one number, to the last bit
    equal = evaluation.mask_scores(predicted, reference, (1.7,) * len(shape))
    assert equal == evaluation.mask_scores(predicted, reference, 1.7)


def test_a_bar_moved_by_three_voxels():
    predicted, reference = np.zeros((2, 9, 12), bool)
    reference[4, 2:8] = True
    predicted[4, 5:11] = True  # 3 of its 6 voxels overlap; the others are 1, 2, 3 voxels away
    scores = evaluation.mask_scores(predicted, reference, spacing=2.0)
    assert scores == pytest.approx(
        {
            "dice": 0.5,
            "nsd": 8 / 12,
            "surface_mm": 2.0 * 12 / 12,
            "volume_error": 0.0,
            "hd95_mm": 2.0 * np.percentile([0, 0, 0, 1, 2, 3], 95),
        }
    )


def test_perfect_and_swapped():
    predicted, reference = (labels == 1 for labels in two_alike((20, 20, 20), 3))
    same = evaluation.mask_scores(reference, reference)
    assert same == {"dice": 1, "nsd": 1, "hd95_mm": 0, "surface_mm": 0, "volume_error": 0}
    forth, back = (
        evaluation.mask_scores(predicted, reference),
        evaluation.mask_scores(reference, predicted),
    )
    assert all(forth[m] == pytest.approx(back[m]) for m in ("dice", "nsd", "hd95_mm", "surface_mm"))
    assert (1 + forth["volume_error"]) * (1 + back["volume_error"]) == pytest.approx(1)


def test_absent_from_the_reference_is_nan_and_missed_is_zero():
    reference, predicted = np.zeros((2, 8, 8), np.uint8)
    # structure 1 is missed, 2 invented, 3 in neither
    reference[2:5, 2:5], predicted[2:5, 2:5] = 1, 2
    one, two, three = evaluation.score_labels(predicted, reference, NAMES)
    assert (one["dice"], one["nsd"], one["volume_error"]) == (0, 0, -1)
    assert math.isnan(one["hd95_mm"]) and math.isnan(one["surface_mm"])
    assert all(
        math.isnan(row[metric]) for row in (two, three) for metric in evaluation.STRUCTURE_METRICS
    )


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.zeros((8, 9), int), r"must share one grid, got \(8, 9\) and \(8, 8\)"),
        (np.zeros((8, 8)), "must be integers, got float64: take the argmax"),
        (torch.zeros(8, 8), "must be integers, got float32"),
        (np.full((8, 8), 4), r"between 0 and 3 \(three\), got 4 to 4"),
        (np.full((8, 8), -1), "got -1 to -1"),
    ],
)
def test_bad_labels_are_refused(predicted, message):
    with pytest.raises(ValueError, match=message):
        evaluation.score_labels(predicted, np.zeros((8, 8), int), NAMES)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.int64]
)
def test_labels_of_any_type_of_integer_score_alike(dtype):
    reference = torch.zeros(9, 9, dtype=torch.int64)
    reference[2:6, 3:8] = 1
    predicted = reference.roll(1, 0)
    wanted = evaluation.score_labels(predicted, reference, NAMES[:2])
    assert evaluation.score_labels(predicted.to(dtype), reference.to(dtype), NAMES[:2]) == wanted
    phi, truth = Deformation.identity((9, 9)), Deformation.identity((9, 9))
    truth.displacement[:, 0] = 0.5
    error = evaluation.endpoint_error(phi, truth, reference.to(dtype))
    assert error == {"endpoint_voxels": 0.5, "endpoint_boundary_voxels": 0.5}


@shapes
@pytest.mark.parametrize("seed", range(3))
def test_dice_alone_is_the_dice_of_all_scores(shape, seed):
    predicted, reference = two_alike(shape, seed)
    predicted[predicted == 3] = 0  # missed
    names = (*NAMES, "absent")
    rows = pd.DataFrame(evaluation.score_labels(predicted, reference, names))
    alone = evaluation.dice(predicted, torch.from_numpy(reference), names)
    assert list(alone) == rows["structure"].tolist() == list(names[1:])
    np.testing.assert_array_equal(list(alone.values()), rows["dice"])
    assert alone["three"] == 0 and math.isnan(alone["absent"])


def test_an_empty_mask_has_no_boundary():
    with pytest.raises(ValueError, match="has no boundary"):
        evaluation.surface_distances(np.zeros((4, 4), bool), np.ones((4, 4), bool))


# --- deformations


@pytest.mark.parametrize("factors", [(1.1, 0.8), (0.9, 1.2, 1.3)])
def test_an_affine_map_does_not_fold(factors):
    measured = evaluation.folding(scaling(factors, (9, 10, 11)[: len(factors)]))
    assert measured["folds_percent"] == 0 and measured["ndv_percent"] == 0
    assert measured["sd_log_j"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("factors", [(-0.5, 0.8), (0.5, -2.0, 0.8), (-1.0, 1.0), (-1.0, 1.0, 1.0)])
def test_a_reflection_folds_everywhere(factors):
    phi = scaling(factors, (9, 10, 11)[: len(factors)])
    assert evaluation.folding(phi)["folds_percent"] == 100
    inside = evaluation.non_diffeomorphic_volume(phi)[(slice(1, -1),) * len(factors)]
    # the whole volume it covers is turned over
    np.testing.assert_allclose(inside, abs(np.prod(factors)), rtol=1e-4)


@shapes
def test_half_the_image_reflected(shape):
    """det J is 1 on one half, -1 on the other and 0 at the crease, and SDlogJ is that of these
    three values.
    """
    n = shape[0]
    u = torch.zeros(1, len(shape), *shape)
    crease = n // 2
    u[:, 0] = torch.clamp(2.0 * (crease - torch.arange(n)), max=0).view(-1, *[1] * (len(shape) - 1))
    inner = np.arange(n)[2:-2]
    determinants = np.sign(crease - inner)
    measured = evaluation.folding(Deformation(u))
    assert measured["folds_percent"] == pytest.approx(100 * (inner >= crease).mean())
    assert measured["sd_log_j"] == pytest.approx(np.log(determinants + 3.0).std(), rel=1e-5)


@shapes
@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
def test_folded_volume_agrees_with_its_authors(shape, size):
    authors = pytest.importorskip(
        "digital_diffeomorphism", reason="make test installs it: see the Makefile"
    )
    u = smooth(shape, size, seed=1)
    function = authors.nda if len(shape) == 2 else authors.ndv
    _, percent, volume, *_ = function(u[0].movedim(0, -1).numpy().copy(), is_disp=True)
    np.testing.assert_allclose(
        evaluation.non_diffeomorphic_volume(Deformation(u)), volume, atol=2e-5
    )
    assert evaluation.folding(Deformation(u))["ndv_percent"] == pytest.approx(
        percent, rel=1e-4, abs=1e-5
    )
    assert (percent > 0.1) == (size > 0.5)


@pytest.mark.parametrize("shape", [(7, 6), (7, 5, 6)], ids=["2D", "3D"])
@pytest.mark.parametrize("slab", [1, 70, 2**15])
def test_folded_volume_slab_by_slab_is_that_of_each_voxel(shape, slab, monkeypatch):
    monkeypatch.setitem(evaluation.non_diffeomorphic_volume.__globals__, "SLAB", slab)
    u = smooth(shape, 3.0, seed=4, sigma=0.7).double()
    found = evaluation.non_diffeomorphic_volume(Deformation(u)).numpy()
    np.testing.assert_allclose(found, plain_folded_volume(u[0].numpy()), atol=1e-12)
    assert (found > 0).mean() > 0.2


@shapes
def test_central_differences_miss_a_checkerboard(shape):
    """A sawtooth of period 2 has central differences 0; neighbours trade places: 1 - 1.6 < 0."""
    u = torch.zeros(1, len(shape), *shape)
    u[:, 0, 1::2] = 1.6
    measured = evaluation.folding(Deformation(u))
    assert measured["folds_percent"] == 0 and measured["sd_log_j"] == pytest.approx(0, abs=1e-6)
    inside = evaluation.non_diffeomorphic_volume(Deformation(u))[(slice(1, -1),) * len(shape)]
    # On one side of every voxel the cell is mapped to 1 - 1.6 of its volume, on the other to 1 +
    # 1.6.
    np.testing.assert_allclose(inside.mean(), 0.6 / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_sd_log_j_as_learn2reg_computes_it(size):
    u = smooth((14, 15, 16), size, seed=2)
    gradient = [
        [
            ndimage.correlate1d(
                u[0, c].double().numpy(), [-0.5, 0, 0.5], axis=axis, mode="constant"
            )
            for axis in range(3)
        ]
        for c in range(3)
    ]
    jacobian = np.moveaxis(np.array(gradient), (0, 1), (-2, -1)) + np.eye(3)
    determinant = np.linalg.det(jacobian)[2:-2, 2:-2, 2:-2]
    measured = evaluation.folding(Deformation(u))
    assert measured["sd_log_j"] == pytest.approx(
        np.log((determinant + 3).clip(1e-9, 1e9)).std(), rel=1e-3
    )
    assert measured["folds_percent"] == pytest.approx(100 * (determinant <= 0).mean(), abs=0.1)


@pytest.mark.parametrize(
    "phi", [Deformation.identity((8, 8), batch=2), Deformation.identity((8, 4))]
)
def test_folding_wants_one_deformation_with_an_inside(phi):
    with pytest.raises(ValueError, match="one deformation whose sides are at least 5 voxels"):
        evaluation.folding(phi)


@shapes
def test_boundary_is_where_a_face_neighbour_differs(shape):
    labels = blobs(shape, seed=5)
    neighbours = ndimage.generate_binary_structure(len(shape), 1)
    changed = (ndimage.maximum_filter(labels, footprint=neighbours, mode="nearest") != labels) | (
        ndimage.minimum_filter(labels, footprint=neighbours, mode="nearest") != labels
    )
    assert np.array_equal(evaluation.boundary(torch.from_numpy(labels)), changed & (labels > 0))


def test_endpoint_error_is_a_distance_where_the_labels_are():
    labels = torch.zeros(9, 9, dtype=torch.uint8)
    labels[2:7, 2:7] = 1
    u = torch.zeros(1, 2, 9, 9)
    u[0, :, 3:6, 3:6] = torch.tensor([3.0, 4.0]).view(2, 1, 1)  # wrong by 5 voxels, only inside
    u[0, :, 0] = 99.0  # the background does not count
    measured = evaluation.endpoint_error(Deformation(u), Deformation.identity((9, 9)), labels)
    assert (
        measured["endpoint_voxels"] == pytest.approx(5 * 9 / 25)
        and measured["endpoint_boundary_voxels"] == 0
    )
    nowhere = evaluation.endpoint_error(Deformation(u), Deformation(u), torch.zeros_like(labels))
    assert all(map(math.isnan, nowhere.values()))


# --- a cohort


@shapes
def test_segmentation_table(shape):
    scans = [scan("a1", "a", shape, seed=1), scan("b1", "b", shape, seed=2)]
    cohort = cohort_of(*scans)
    table = evaluation.score_segmentation(lambda s: scans[0].labels, cohort, scans)
    assert table.columns.tolist() == [
        "task",
        "case",
        "subject",
        "structure",
        *evaluation.STRUCTURE_METRICS,
    ]
    assert table[["case", "subject"]].drop_duplicates().values.tolist() == [
        ["a1", "a"],
        ["b1", "b"],
    ]
    assert (table["task"] == "segmentation").all() and table["structure"].tolist() == [
        *NAMES[1:]
    ] * 2
    assert (table.loc[table["case"] == "a1", "dice"] == 1).all()
    rows = evaluation.score_labels(scans[0].labels, scans[1].labels, NAMES, cohort.spacing)
    pd.testing.assert_frame_equal(
        table[table["case"] == "b1"][[*rows[0]]].reset_index(drop=True), pd.DataFrame(rows)
    )


@shapes
def test_registration_table(shape):
    """A moving scan that is the fixed one shifted by whole voxels: the shift undoes it, the
    identity does not.
    """
    fixed = scan("f", shape=shape, seed=3)
    fixed.labels[-3:] = 0  # nothing leaves the grid
    moving = replace(fixed, id="m", subject="m", labels=torch.roll(fixed.labels, 2, 0))
    shift = torch.zeros(1, len(shape), *shape)
    shift[:, 0] = 2.0
    cohort = cohort_of(
        moving,
        fixed,
        truth=lambda m, f: Deformation(shift if (m.id, f.id) == ("m", "f") else -shift),
    )
    right = evaluation.score_registration(
        lambda m, f: Deformation(shift.requires_grad_()), cohort, [(moving, fixed)]
    )
    wrong = evaluation.score_registration(identity, cohort, [(moving, fixed)])
    assert right.columns.tolist() == [
        "task",
        "case",
        "subject",
        "structure",
        *evaluation.STRUCTURE_METRICS,
        "folds_percent",
        "ndv_percent",
        "sd_log_j",
        "endpoint_voxels",
        "endpoint_boundary_voxels",
    ]
    assert (
        set(right["case"]) == {"m->f"}
        and set(right["subject"]) == {"f"}
        and set(right["task"]) == {"registration"}
    )
    assert (right["dice"] == 1).all() and (right["endpoint_voxels"] == 0).all()
    assert (wrong["dice"] < 0.9).all()
    assert (wrong[["endpoint_voxels", "endpoint_boundary_voxels"]] == 2).all(axis=None)
    assert (wrong[["folds_percent", "ndv_percent", "sd_log_j"]].abs() < 1e-6).all(axis=None)


def test_without_truth_the_endpoint_error_is_nan():
    scans = scan("a"), scan("b", seed=1)
    table = evaluation.score_registration(identity, cohort_of(*scans), [scans])
    assert table[["endpoint_voxels", "endpoint_boundary_voxels"]].isna().all(axis=None)


def test_the_fixed_scan_is_the_reference():
    full, partial = scan("full", seed=1), scan("partial", seed=1)
    partial.labels[partial.labels == 3] = 0
    cohort = cohort_of(full, partial)
    missed = evaluation.score_registration(identity, cohort, [(partial, full)]).set_index(
        "structure"
    )
    absent = evaluation.score_registration(identity, cohort, [(full, partial)]).set_index(
        "structure"
    )
    assert missed["dice"].tolist() == [1, 1, 0] and missed.loc["three", "volume_error"] == -1
    assert absent["dice"].isna().tolist() == [False, False, True]


def test_scans_without_labels_are_named_before_anything_runs():
    def never(*scans):
        raise AssertionError("this should not have been called")

    with_labels, without = scan("a"), scan("b", labels=False)
    cohort = cohort_of(with_labels, without)
    with pytest.raises(ValueError, match="scan b has no labels"):
        evaluation.score_segmentation(never, cohort, [with_labels, without])
    for pair in ((with_labels, without), (without, with_labels)):
        with pytest.raises(ValueError, match="scan b has no labels"):
            evaluation.score_registration(never, cohort, [pair])
    with pytest.raises(ValueError, match="no scan was given"):
        evaluation.score_segmentation(never, cohort, [])


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        (
            Deformation.identity((12, 13)),
            r"a->b: .* fixed scan's grid \(12, 14\) was wanted, got 1 on \(12, 13\)",
        ),
        (Deformation.identity((12, 14), batch=2), "got 2 on"),
        (Deformation(torch.full((1, 2, 12, 14), torch.nan)), "a->b: .* diverged"),
    ],
)
def test_impossible_deformations_are_refused(phi, message):
    scans = scan("a"), scan("b")
    with pytest.raises(ValueError, match=message):
        evaluation.score_registration(lambda moving, fixed: phi, cohort_of(*scans), [scans])
    with pytest.raises(ValueError, match=message.replace("a->b", "a->b, truth")):
        evaluation.score_registration(
            identity, cohort_of(*scans, truth=lambda moving, fixed: phi), [scans]
        )


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_never_of_one_person(seed):
    scans = [scan(f"{subject}{visit}", subject) for subject in "abc" for visit in range(3)]
    pairs = evaluation.registration_pairs(scans, per_fixed=4, seed=seed)
    assert all(moving.subject != fixed.subject for moving, fixed in pairs)
    assert [fixed.id for _, fixed in pairs] == [s.id for s in scans for _ in range(4)]
    assert len({(moving.id, fixed.id) for moving, fixed in pairs}) == len(pairs)
    assert pairs == evaluation.registration_pairs(scans, per_fixed=4, seed=seed)
    assert pairs != evaluation.registration_pairs(scans, per_fixed=4, seed=seed + 1)


def test_fewer_pairs_where_there_are_fewer_scans():
    scans = [scan("a1", "a"), scan("a2", "a"), scan("b")]
    ids = {
        (moving.id, fixed.id) for moving, fixed in evaluation.registration_pairs(scans, per_fixed=3)
    }
    assert ids == {("b", "a1"), ("b", "a2"), ("a1", "b"), ("a2", "b")}
    with pytest.raises(ValueError, match=r"no moving scan for scan a1: .* got 1 and 3"):
        evaluation.registration_pairs(scans[:2])
    with pytest.raises(ValueError, match="got 2 and 0"):
        evaluation.registration_pairs(scans, per_fixed=0)


# --- statistics


def scores(rows):
    return pd.DataFrame(rows, columns=["subject", "case", "structure", "dice"])


def test_per_subject_is_a_mean_of_case_means():
    table = scores(
        [
            ("a", "x->a", "one", 0.2),
            ("a", "x->a", "two", 0.4),
            ("a", "y->a", "one", 0.9),
            ("a", "y->a", "two", np.nan),
            ("b", "x->b", "one", np.nan),
            ("b", "x->b", "two", 0.5),
        ]
    )
    result = evaluation.per_subject(table)
    assert result.to_dict() == pytest.approx({"a": (0.3 + 0.9) / 2, "b": 0.5})
    counted = evaluation.per_structure(table)
    assert counted.index.tolist() == ["one", "two"]
    assert counted["cases"].tolist() == [3, 3] and counted["undefined"].tolist() == [1, 1]
    assert counted["mean"].tolist() == pytest.approx([0.55, 0.45])
    assert counted["sd"].tolist() == pytest.approx(
        [np.std([0.2, 0.9], ddof=1), np.std([0.4, 0.5], ddof=1)]
    )


@pytest.mark.parametrize("column", ["task", "regime"])
def test_regimes_are_not_averaged_together(column):
    table = scores([("a", "a", "one", 0.2), ("a", "a", "one", 0.4)]).assign(
        **{column: ["this", "that"]}
    )
    for function in (evaluation.per_subject, evaluation.per_structure):
        with pytest.raises(ValueError, match=f"select one {column} first, got this, that"):
            function(table)


def test_bootstrap_interval_is_scipys():
    values = np.random.default_rng(0).gamma(2.0, size=40)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert evaluation.bootstrap_interval(values) == pytest.approx(tuple(expected), abs=0.02)
    assert evaluation.bootstrap_interval(values, seed=3) == evaluation.bootstrap_interval(
        pd.Series(values), seed=3
    )
    assert all(map(math.isnan, evaluation.bootstrap_interval([1.0])))


def test_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    intervals = [evaluation.bootstrap_interval(rng.normal(size=30), seed) for seed in range(150)]
    assert 0.88 < np.mean([low < 0 < high for low, high in intervals]) < 0.99


def test_with_runs_the_interval_covers_the_truth():
    """Gains of mean 1, SD 1 between runs and 2 between subjects: about 95 of 100 intervals over 12
    runs hold 1.
    """
    rng, hits = np.random.default_rng(1), 0
    for _ in range(100):
        groups = [(1 + rng.normal() + 2 * rng.normal(size=20))[:, None] for _ in range(12)]
        low, high = np.percentile(evaluation.resampled_means(groups, 500), (2.5, 97.5))
        hits += low <= 1 <= high
    assert hits >= 85


def test_one_run_is_the_bootstrap_of_its_subjects():
    values = np.random.default_rng(2).normal(size=15)
    runs = pd.Series(values, index=pd.Index(["a"] * 15, name="run"))
    assert evaluation.bootstrap_interval(runs, seed=4) == evaluation.bootstrap_interval(values, 4)
    table = evaluation.resampled_means([values[:, None]], seed=4)
    counts = np.random.default_rng(4).multinomial(15, np.full(15, 1 / 15), size=10_000)
    np.testing.assert_array_equal(table, counts @ values[:, None] / 15)


def test_every_run_counts_alike():
    """However many subjects it has; two runs are drawn as (a, a), (a, b), (b, a) or (b, b)."""
    index = pd.MultiIndex.from_tuples([("a", "1"), ("b", "1"), ("b", "2"), ("b", "3")])
    values = pd.Series([1.0, 3.0, 3.0, 3.0], index=index.set_names(["run", "subject"]))
    found = evaluation.mean_and_interval(values)
    assert found == {"mean": 2, "low": 1, "high": 3, "runs": 2}
    groups = [values.loc[[run]].to_numpy()[:, None] for run in "ab"]
    means = evaluation.resampled_means(groups)
    drawn, counts = np.unique(means, return_counts=True)
    assert drawn.tolist() == [1, 2, 3]
    np.testing.assert_allclose(counts / len(means), [0.25, 0.5, 0.25], atol=0.02)


def test_chance_is_drawn_in_one_place():
    """One bootstrap in the whole package, so that an interval means the same everywhere."""
    package = Path(evaluation.__file__).parents[1]
    drawing = []
    for path in sorted(package.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            inside = ast.walk(function) if isinstance(function, ast.FunctionDef) else ()
            names = {node.attr for node in inside if isinstance(node, ast.Attribute)}
            if names & {"multinomial", "bootstrap"}:
                drawing.append((path.relative_to(package).as_posix(), function.name))
    outer, inner = ("_draws", "drawn")
    place = "evaluation/statistics.py"
    assert drawing == [(place, outer), (place, inner)]


def test_wilcoxon_p_counts_sign_flips():
    """Under the null hypothesis each difference is as likely negative: all 2^n sign patterns, by
    brute force.
    """
    differences = np.array([0.9, -0.2, 0.5, 0.4, 0.1, 0.7, -0.3])
    ranks = stats.rankdata(abs(differences))
    observed = abs(np.sum(np.sign(differences) * ranks))
    flips = [abs(np.dot(signs, ranks)) for signs in itertools.product((1, -1), repeat=len(ranks))]
    a = pd.Series(differences, index=list("abcdefg"))
    result = evaluation.paired_comparison(a, pd.Series(0.0, index=list("gfedcba")))
    assert result["p"] == pytest.approx(np.mean(np.array(flips) >= observed - 1e-9))
    assert result["difference"] == pytest.approx(differences.mean()) and result["subjects"] == 7
    assert (result["low"], result["high"]) == evaluation.bootstrap_interval(differences)


def test_subjects_are_matched_by_name_and_nan_is_left_out():
    a = pd.Series({"x": 1.0, "y": 2.0, "z": np.nan})
    b = pd.Series({"z": 5.0, "y": 1.0, "x": 0.5})
    result = evaluation.paired_comparison(a, b)
    assert result["difference"] == pytest.approx(0.75) and result["subjects"] == 2


def test_equal_regimes_differ_by_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = evaluation.paired_comparison([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert same == {"difference": 0, "low": 0, "high": 0, "p": 1, "subjects": 3}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            pd.Series({"x": 1.0}),
            pd.Series({"x": 1.0, "y": 2.0}),
            "not scored in every regime: subjects y",
        ),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "same subjects, got 2, 3 values"),
        ([np.nan, 1.0], [1.0, np.nan], "no subject has a number in every regime"),
    ],
)
def test_regimes_that_do_not_match_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        evaluation.paired_comparison(a, b)


def test_a_subject_that_stands_twice_is_refused():
    """As when the rows of both tasks are given at once."""
    twice = pd.Series([1.0, 2.0, 3.0], index=["x", "y", "x"])
    with pytest.raises(ValueError, match="several numbers in one regime: select one task"):
        evaluation.paired_comparison(twice, twice)


def test_five_subjects_never_show_five_percent():
    assert evaluation.paired_comparison([1.0, 2, 3, 4, 5], [0.0] * 5)["p"] == pytest.approx(
        2 / 2**5
    )


def test_holm_worked_example():
    np.testing.assert_allclose(evaluation.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(evaluation.holm([0.9, 0.6]), [1, 1])


@pytest.mark.parametrize("seed", range(3))
def test_holm_is_the_closed_bonferroni_test(seed):
    """Adjusted p of a hypothesis: the largest Bonferroni p of all the sets of hypotheses it belongs
    to.
    """
    p = np.random.default_rng(seed).beta(0.5, 3, size=6)
    subsets = [list(s) for n in range(1, 7) for s in itertools.combinations(range(6), n)]
    expected = [max(min(1, len(s) * p[s].min()) for s in subsets if i in s) for i in range(6)]
    np.testing.assert_allclose(evaluation.holm(p), expected)


def test_a_run_is_a_case_not_a_subject():
    """Two hundred subjects of five runs are five numbers."""
    runs = {"a": 1.0, "b": 1.9, "c": 1.9, "d": 1.8, "e": 8.0}
    rng = np.random.default_rng(0)
    noise = rng.normal(size=40)
    noise -= noise.mean()
    index = pd.MultiIndex.from_product([runs, range(40)], names=["run", "subject"])
    values = pd.Series([mean + one for mean in runs.values() for one in noise], index)
    for minimum in (0.0, 1.5):
        wanted = stats.ttest_1samp(list(runs.values()), minimum).pvalue
        assert evaluation.t_over_runs(values, minimum) == pytest.approx(wanted)
    assert evaluation.t_over_runs(values) > 0.05  # one run carries the mean
    assert math.isnan(evaluation.t_over_runs(values[:40]))  # a single run
    alike = pd.Series(1.0, index)
    assert math.isnan(evaluation.t_over_runs(alike))  # no scatter to judge by
    assert math.isnan(evaluation.t_over_runs(0 * alike))


def test_share_of_gap_closed():
    rng = np.random.default_rng(0)
    # subjects differ much, regimes little: only pairing sees the gap
    baseline = rng.normal(0.6, 0.1, size=20)
    full = baseline + rng.normal(0.1, 0.01, size=20)
    quarter = baseline + 0.25 * (full - baseline)
    exact = evaluation.share_of_gap_closed(baseline, quarter, full)
    assert [exact[key] for key in ("share", "low", "high")] == pytest.approx([0.25] * 3)
    noisy = quarter + rng.normal(0, 0.01, size=20)
    result = evaluation.share_of_gap_closed(baseline, noisy, full)
    expected = stats.bootstrap(
        (baseline, noisy, full),
        lambda b, j, f, axis: (j.mean(axis) - b.mean(axis)) / (f.mean(axis) - b.mean(axis)),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (result["low"], result["high"]) == pytest.approx(tuple(expected), abs=0.01)
    assert result["low"] < result["share"] < result["high"] and result["subjects"] == 20


def test_a_share_over_runs_counts_runs_as_chance():
    """In run a a quarter of the gap is closed, in run b three quarters; both gaps are alike."""
    subjects = [f"p{i}" for i in range(8)]
    index = pd.MultiIndex.from_product([["a", "b"], subjects], names=["run", "subject"])
    baseline = pd.Series(0.5, index=index)
    joint = baseline + np.repeat([0.025, 0.075], 8)
    found = evaluation.share_of_gap_closed(baseline, joint, baseline + 0.1)
    assert [found[key] for key in ("share", "low", "high")] == pytest.approx([0.5, 0.25, 0.75])
    assert (found["runs"], found["subjects"]) == (2, 16)


def test_a_share_is_told_though_a_draw_may_have_no_gap():
    baseline = pd.Series([50.0, 60.0])
    full = pd.Series([50.0, 70.0])  # drawn twice, the first of them has none
    assert math.isnan(evaluation.share_of_gap_closed(baseline, baseline, full)["share"])
    many = pd.Series([50.0] * 4)
    gaps = pd.Series([0.0, 1.0, 1.0, 1.0])
    found = evaluation.share_of_gap_closed(many, many + gaps / 2, many + gaps)
    assert [found[key] for key in ("share", "low", "high")] == pytest.approx([0.5] * 3)


def test_a_share_of_no_gap_is_nan():
    rng = np.random.default_rng(1)
    baseline, full = rng.normal(size=(2, 12))
    # the gap's interval contains 0
    assert np.ptp(np.sign(evaluation.bootstrap_interval(full - baseline))) == 2
    none = evaluation.share_of_gap_closed(baseline, baseline + 0.1, full)
    assert all(math.isnan(none[key]) for key in ("share", "low", "high")) and none["subjects"] == 12
    assert math.isnan(evaluation.share_of_gap_closed([1.0], [2.0], [3.0])["share"])
    # full supervision clearly worse: no gap to close, either
    below = baseline - rng.normal(0.5, 0.1, size=12)
    assert math.isnan(evaluation.share_of_gap_closed(baseline, baseline + 0.1, below)["share"])


def test_dice_alone_has_no_number_for_what_the_reference_lacks():
    predicted = np.array([[1, 1], [2, 0]])
    reference = np.array([[1, 0], [0, 0]])
    found = evaluation.dice(predicted, reference, ("background", "there", "not there"))
    assert found["there"] == pytest.approx(2 / 3) and math.isnan(found["not there"])
    rows = evaluation.score_labels(predicted, reference, ("background", "there", "not there"))
    assert math.isnan(rows[1]["dice"])
