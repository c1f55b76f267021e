"""Phantoms: seeded, different from one another, and related by the deformation that
``true_deformation`` returns.
"""

from dataclasses import replace
from itertools import combinations

from deepatlas import phantom
from deepatlas.datasets import Entry, centred_affine, load_cohort, load_scan, resample
from deepatlas.phantom import subjects
from deepatlas.phantom.shapes import ball

import numpy as np
import pytest
import torch

GRIDS = {2: ((96, 96), 1.8), 3: ((64, 80, 64), 2.4)}
ANATOMIES = tuple(phantom.ANATOMIES)
THICK = {  # at least 4 voxels thick all over, where a voxel is 1.2 mm (brain) or 2.4 mm (knee)
    "brain": (
        "thalamus",
        "caudate",
        "putamen",
        "pallidum",
        "hippocampus",
        "brain stem",
        "cerebellum",
    ),
    "knee": ("femur", "tibia", "patella", "muscle", "fat"),
}


@pytest.fixture(scope="module")
def scans():
    """Four subjects of each anatomy in 2D and in 3D."""
    return {
        (anatomy, dims): [
            phantom.make_scan(anatomy, subject, shape, spacing=spacing) for subject in range(4)
        ]
        for anatomy in ANATOMIES
        for dims, (shape, spacing) in GRIDS.items()
    }


@pytest.fixture
def only_warped(monkeypatch):
    """Subjects that differ by their deformation alone: the same folds, no lesion, no osteophyte."""
    same = phantom.Variation(np.zeros(32, np.float32), np.zeros(3, np.float32), 0.0)
    monkeypatch.setattr(subjects, "draw_variation", lambda *subject: same)


def dice(one, other, anatomy):
    """Dice of every foreground structure by name."""
    scores = {}
    for number, name in enumerate(phantom.anatomy_of(anatomy).structures[1:], start=1):
        a, b = one == number, other == number
        scores[name] = 2 * float((a & b).sum()) / float(a.sum() + b.sum())
    return scores


def warp_labels(deformation, labels, anatomy):
    """Labels by linear interpolation of their one-hot channels: finer than the nearest voxel."""
    one_hot = torch.nn.functional.one_hot(
        labels[None].long(), len(phantom.anatomy_of(anatomy).structures)
    )
    return deformation.warp(one_hot.movedim(-1, 1).float())[0].argmax(0)


def points_in_the_body(dims, count=2000):
    """(count, D) points in mm, float32."""
    return np.random.default_rng(0).uniform(-60, 60, (count, dims)).astype(np.float32)


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_a_scan_is_complete(scans, anatomy, dims):
    for number, scan in enumerate(scans[anatomy, dims]):
        assert scan.id == scan.subject == f"{anatomy}-s0-{number:04d}"
        assert scan.shape == GRIDS[dims][0]
        assert scan.image.dtype == torch.float32 and scan.labels.dtype == torch.uint8
        assert scan.image.min() >= 0 and scan.image.max() <= 1
        assert set(scan.labels.unique().tolist()) == set(
            range(len(phantom.anatomy_of(anatomy).structures))
        )


@pytest.mark.parametrize("dims", GRIDS)
def test_world_zero_is_the_middle_of_the_grid(scans, dims):
    scan = scans["brain", dims][0]
    middle = torch.tensor(
        [*[(n - 1) / 2 for n in scan.shape], *[0.0] * (3 - dims), 1.0], dtype=torch.float64
    )
    assert torch.allclose(scan.affine @ middle, torch.tensor([0, 0, 0, 1.0], dtype=torch.float64))
    assert scan.affine.dtype == torch.float64 and scan.affine[0, 0] == GRIDS[dims][1]


@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_the_same_numbers_give_the_same_bits_and_others_another_subject(anatomy):
    one, again = (phantom.make_scan(anatomy, 3, (24, 32, 24), spacing=6) for _ in range(2))
    assert torch.equal(one.image, again.image) and torch.equal(one.labels, again.labels)
    for other in (
        phantom.make_scan(anatomy, 4, (24, 32, 24), spacing=6),
        phantom.make_scan(anatomy, 3, (24, 32, 24), spacing=6, seed=1),
    ):
        assert other.id != one.id
        assert (other.labels != one.labels).float().mean() > 0.02
        assert not torch.equal(other.image, one.image)


def test_another_grid_shows_the_same_subject(scans):
    fine = scans["brain", 3][0]
    coarse = phantom.make_scan("brain", 0, (32, 40, 32), spacing=4.8)
    resampled = resample(fine, coarse.affine, coarse.shape)
    assert dice(resampled.labels, coarse.labels, "brain")["cerebellum"] > 0.93
    assert (
        torch.corrcoef(torch.stack([resampled.image.flatten(), coarse.image.flatten()]))[0, 1]
        > 0.95
    )


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_subjects_overlap_neither_too_little_nor_too_much(scans, anatomy, dims):
    pairs = combinations(scans[anatomy, dims], 2)
    scores = [list(dice(one.labels, other.labels, anatomy).values()) for one, other in pairs]
    assert 0.4 < np.mean(scores) < 0.65


def test_some_neighbours_share_their_grey_value(scans):
    scan = scans["brain", 3][0]
    number = phantom.anatomy_of("brain").structures.index
    grey = {
        name: scan.image[0][scan.labels == number(name)]
        for name in ("thalamus", "putamen", "white matter")
    }
    assert (grey["thalamus"].mean() - grey["putamen"].mean()).abs() < grey["thalamus"].std()
    assert grey["white matter"].mean() - grey["thalamus"].mean() > grey["thalamus"].std()


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_a_subject_s_map_has_an_inverse(anatomy, dims):
    points = points_in_the_body(dims)
    for subject in range(4):
        motion = subjects.draw_motion(anatomy, 0, subject, dims)
        residual = np.linalg.norm(motion.to_world(motion.to_template(points)) - points, axis=1)
        assert residual.max() < 0.1 * GRIDS[dims][1]
        # mm: and it moves
        assert np.linalg.norm(motion.to_template(points) - points, axis=1).mean() > 2


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_the_true_deformation_is_a_diffeomorphism(scans, anatomy, dims):
    moving, fixed = scans[anatomy, dims][:2]
    there, back = phantom.true_deformation(moving, fixed), phantom.true_deformation(fixed, moving)
    assert there.displacement.dtype == torch.float32 and there.displacement.shape == (
        1,
        dims,
        *fixed.shape,
    )
    assert there.jacobian_determinant().min() > 0
    lands = there.points.movedim(1, -1)
    inside = (
        ((lands >= 0) & (lands <= torch.tensor(fixed.shape) - 1))
        .all(-1)[:, None]
        .expand_as(there.displacement)
    )
    assert inside.float().mean() > 0.8
    # voxels, wherever ``back`` is known
    assert (back @ there).displacement[inside].abs().max() < 0.1
    assert phantom.true_deformation(fixed, fixed).displacement.abs().max() < 0.01


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_the_true_deformation_improves_every_structure(scans, anatomy, dims):
    """With the folds, lesions and osteophytes that no deformation explains, and the nearest voxel's
    label.
    """
    for moving, fixed in zip(scans[anatomy, dims], scans[anatomy, dims][1:], strict=False):
        warped = phantom.true_deformation(moving, fixed).warp_labels(moving.labels[None])[0]
        before, after = (dice(labels, fixed.labels, anatomy) for labels in (moving.labels, warped))
        assert all(after[name] > before[name] for name in after)
        assert np.mean(list(after.values())) > 0.8


@pytest.mark.parametrize("subject", [0, 2, 4])
@pytest.mark.parametrize(
    ("anatomy", "shape", "spacing"),
    [
        ("brain", (192, 192), 0.9),
        ("brain", (80, 80, 64), 1.2),
        ("knee", (192, 192), 0.9),
        ("knee", (64, 80, 64), 2.4),
    ],
)
def test_labels_fall_onto_labels(anatomy, shape, spacing, subject, only_warped):
    """Dice > 0.95 on grids where the structure is at least 4 voxels thick all over, in 2D and 3D.

    Subjects differ by their deformation alone. On the coarser grids of the cohorts the same
    deformation scores less: half a voxel of rounding on a ball 4 voxels across costs 0.1 of Dice.
    """
    moving, fixed = (
        phantom.make_scan(anatomy, number, shape, spacing=spacing)
        for number in (subject, subject + 1)
    )
    warped = warp_labels(phantom.true_deformation(moving, fixed), moving.labels, anatomy)
    scores = dice(warped, fixed.labels, anatomy)
    assert {
        name: score for name, score in scores.items() if name in THICK[anatomy] and score < 0.95
    } == {}
    assert min(scores.values()) > 0.65  # cartilage is one voxel thick at 2.4 mm


@pytest.mark.parametrize("dims", GRIDS)
@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_thin_structures_agree_at_the_exact_point(scans, anatomy, dims, only_warped):
    """No grid: the moving template read at ``phi(x)`` names the same structure as the fixed
    template read at x.
    """
    moving, fixed = scans[anatomy, dims][2:]
    (to_world, voxels), (of_moving, _) = (
        subjects.grid_of(scan.affine, scan.shape) for scan in (fixed, moving)
    )
    phi = phantom.true_deformation(moving, fixed).points[0].flatten(1).T.numpy()
    seen = subjects.draw_motion(anatomy, 0, 2, dims).to_template(subjects.apply(of_moving, phi))
    wanted = subjects.draw_motion(anatomy, 0, 3, dims).to_template(subjects.apply(to_world, voxels))
    assert np.abs(seen - wanted).max() < 0.05  # mm


def test_a_resampled_and_turned_scan_keeps_its_truth(scans):
    moving, fixed = scans["knee", 3][:2]
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.96, -0.28], [0.28, 0.96]])
    turn[:3, 3] = torch.tensor([3.0, -2.0, 1.0])
    turned = resample(fixed, turn @ fixed.affine, fixed.shape)
    coarse = resample(moving, centred_affine(moving, (40, 48, 40), 3.6), (40, 48, 40))
    truth = phantom.true_deformation(coarse, turned)
    scores = dice(warp_labels(truth, coarse.labels, "knee"), turned.labels, "knee")
    assert scores["femur"] > 0.93 and scores["tibia"] > 0.93
    # The same point of the world is moved to the same point of the world, whatever the grids.
    at = torch.tensor([30.0, 41.0, 29.0])
    plain = phantom.true_deformation(moving, fixed)
    on_fixed = (torch.linalg.inv(fixed.affine) @ turned.affine @ torch.tensor([*at, 1.0]).double())[
        :3
    ]
    one = coarse.affine[:3, :3] @ truth(at.view(1, 3, 1)).double().flatten() + coarse.affine[:3, 3]
    other = (
        moving.affine[:3, :3] @ plain(on_fixed.float().view(1, 3, 1)).double().flatten()
        + moving.affine[:3, 3]
    )
    assert torch.allclose(one, other, atol=0.1)  # mm


def test_the_brain_passes_for_mri(real_data):
    """Beside skull-stripped T1 scans at 4 mm: as much brain, the same grey values, the same
    steepness of edges.
    """

    def described(images):
        heads = [image[0].numpy() for image in images]
        inside = [head > 0.05 for head in heads]
        slopes = [
            np.sqrt(sum(d**2 for d in np.gradient(head)))[mask]
            for head, mask in zip(heads, inside, strict=True)
        ]
        return (
            np.mean([mask.mean() for mask in inside]),
            np.mean(
                [
                    np.histogram(h[m], 10, (0, 1))[0] / m.sum()
                    for h, m in zip(heads, inside, strict=True)
                ],
                0,
            ),
            np.mean([np.percentile(slope, [10, 25, 50, 75, 90]) for slope in slopes], 0),
        )

    shape, spacing = (40, 48, 40), 4.0
    files = sorted((real_data / "oasis35" / "imagesTr").glob("*.nii.gz"))[:6]
    scans = [
        load_scan(file, None, id=file.name, subject=file.name, structures={}) for file in files
    ]
    real = described(
        [resample(scan, centred_affine(scan, shape, spacing), shape).image for scan in scans]
    )
    ours = described(
        [phantom.make_scan("brain", i, shape, spacing=spacing).image for i in range(6)]
    )
    assert ours[0] == pytest.approx(real[0], rel=0.1)
    assert np.abs(np.cumsum(ours[1]) - np.cumsum(real[1])).max() < 0.1
    assert ours[2] == pytest.approx(real[2], rel=0.25)


def test_a_third_anatomy_is_one_row(monkeypatch):
    def apple(p, variation):
        flesh = ball(p, np.float32([0, 0, 0]), 40)
        core = ball(p, np.float32([0, 0, 0]), 12 + variation.radius)
        return [
            phantom.Layer("flesh", flesh, "juice"),
            phantom.Layer("core", core, "pip"),
        ]

    row = phantom.Anatomy(
        structures=("background", "flesh", "core"),
        tissues={"juice": 0.8, "pip": 0.3},
        template=apple,
        plane=np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0]]),
        draw=1,
        speed=2.0,
        place=lambda rng, normal: normal,
        air=True,
    )
    monkeypatch.setitem(phantom.ANATOMIES, "apple", row)
    for shape in ((32, 32), (24, 24, 24)):
        moving, fixed = (phantom.make_scan("apple", i, shape, spacing=4.0) for i in (0, 1))
        assert moving.id == "apple-s0-0000"
        assert set(moving.labels.unique().tolist()) == {0, 1, 2}
        phi = phantom.true_deformation(moving, fixed)
        warped = phi.warp_labels(moving.labels[None])[0]
        agree = (warped == fixed.labels).float().mean()
        assert agree > (moving.labels == fixed.labels).float().mean()

    entry = Entry(
        name="apples",
        title="Apples",
        licence="CC0",
        anatomy="apple",
        split=(2, 1, 1),
        grids={"full-3d": {"shape": (48, 48, 48), "spacing": 2.0}},
    )
    cohort = load_cohort(entry, profile="smoke", dims=2)
    assert cohort.structures == row.structures and len(cohort.scans) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anatomy": "heart"}, "one of brain, knee, got 'heart'"),
        ({"shape": (8,)}, r"2 or 3 numbers of voxels, each at least 2, got \(8,\)"),
        ({"shape": (8, 8, 1)}, r"got \(8, 8, 1\)"),
        ({"spacing": 0}, "above 0 mm.*spacing=0"),
        ({"subject": -1}, "at least 0.*subject=-1"),
    ],
)
def test_impossible_scans_are_refused(changes, message):
    arguments = {"anatomy": "brain", "subject": 0, "shape": (8, 8), "spacing": 20.0} | changes
    with pytest.raises(ValueError, match=message):
        phantom.make_scan(**arguments)


def test_impossible_pairs_are_refused():
    flat, knee = (phantom.make_scan(anatomy, 0, (16, 16), spacing=12) for anatomy in ANATOMIES)
    solid = phantom.make_scan("brain", 1, (16, 16, 16), spacing=12)
    for moving in (knee, solid):
        with pytest.raises(ValueError, match="one anatomy in one dimension, got"):
            phantom.true_deformation(moving, flat)
    with pytest.raises(ValueError, match="subject 'oasis_1000': register real scans"):
        phantom.true_deformation(replace(flat, subject="oasis_1000"), flat)


def test_every_anatomy_draws_numbers_of_its_own():
    """Else two of them would have the same subjects, only in other shapes."""
    draws = [anatomy.draw for anatomy in phantom.ANATOMIES.values()]
    assert len(set(draws)) == len(draws)
