"""Scans and cohorts: intensities, one grid, splits and batches."""

from copy import deepcopy
from dataclasses import replace

from deepatlas import data, models
from deepatlas.data import (
    Batch,
    Cohort,
    Scan,
    label_dtype,
    rescale_intensities,
    split_by_subject,
)
from deepatlas.datasets import centred_affine, check_sides, load_scan, resample
from deepatlas.errors import UserError

import numpy as np
import pytest
import torch
from volumes import noise, oblique, reoriented, rng, scaled, write


def scan(image, affine=None, labels=None, name="a", subject=None):
    affine = (
        torch.eye(4, dtype=torch.float64)
        if affine is None
        else torch.as_tensor(affine, dtype=torch.float64)
    )
    return Scan(
        name,
        subject or name,
        torch.as_tensor(image)[None].float(),
        affine,
        None if labels is None else torch.as_tensor(labels),
    )


def world(affine, shape):
    """World coordinates (3, I, J, K) of every voxel; a 2D grid is the plane k = 0."""
    voxels = np.stack([*np.indices((*shape, 1)[:3]), np.ones((*shape, 1)[:3])])
    return np.einsum("ij,j...->i...", np.asarray(affine), voxels)[:3].reshape(3, *shape)


def people(count, scans_each=1, labelled=True, shape=(4, 4, 4)):
    labels = np.zeros(shape, np.uint8)
    labels[0] = 1
    return tuple(
        scan(noise(*shape), labels=labels if labelled else None, name=f"{p}-{s}", subject=f"{p}")
        for p in range(count)
        for s in range(scans_each)
    )


def labelled_everywhere(label):
    return scan(noise(4, 4, 4), labels=np.full((4, 4, 4), label), name="x")


def cohort(**changes):
    scans = people(8)
    parts = {"train": scans[:5], "validation": scans[5:6], "test": scans[6:]} | changes
    return Cohort("toy", ("background", "thing"), 1.0, **parts)


# --- intensities ----------------------------------------------------------------------------------


def test_intensities_are_between_0_and_1_and_use_the_range():
    values = rescale_intensities(noise(12, 12, 12), "a")
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (0, 1)
    assert values.std() > 0.25  # a uniform distribution has 0.29


def test_intensities_do_not_depend_on_unit_and_offset():
    array = noise(12, 12, 12)
    np.testing.assert_allclose(
        rescale_intensities(250 * array - 1000, "a"), rescale_intensities(array, "a"), atol=1e-4
    )


def test_one_huge_voxel_does_not_darken_the_others():
    array = noise(12, 12, 12)
    array[:, :6] = 0  # background
    bright = array.copy()
    bright[5, 8, 5] = 1e6
    difference = np.abs(rescale_intensities(bright, "a") - rescale_intensities(array, "a"))
    difference[5, 8, 5] = 0
    assert difference.max() < 0.02


@pytest.mark.parametrize("bright", [1.0, 1e6])
def test_a_binary_image_stays_binary(bright):
    array = np.zeros((10, 10, 10), np.float32)
    array[3:7] = 1
    expected = array.copy()
    array[5, 5, 5] = bright
    np.testing.assert_array_equal(rescale_intensities(array, "a"), expected)


def one_odd_voxel(array, value):
    """How much the other voxels of the image change if one has another value."""
    odd = array.copy()
    odd.flat[0] = value
    change = np.abs(rescale_intensities(odd, "a") - rescale_intensities(array, "a"))
    return change.flat[1:].max()


@pytest.mark.parametrize("share", [0.6, 0.08, 0.01, 0.002])
@pytest.mark.parametrize("odd", [-1e-4, -1.0, -1e6, 0.5, 1e6])
def test_one_odd_voxel_changes_an_image_within_noise(share, odd):
    """Below a background of zeros it made the background foreground: a mean of .47 became .72."""
    array = np.zeros((48, 48, 48), np.float32)
    foreground = array.ravel()[-round(share * array.size) :]
    foreground[:] = rng().uniform(0.2, 1, foreground.size)
    assert one_odd_voxel(array, odd) < 2e-3


def test_one_odd_voxel_below_the_air_of_a_ct():
    """Its SD fell from .20 to .02."""
    tissue = rng().normal(40, 200, (48, 48, 24))
    array = np.concatenate([np.full((48, 48, 24), -1024.0), tissue], 2)
    assert one_odd_voxel(array, -1025) == 0
    assert one_odd_voxel(array, -3024) == 0
    assert rescale_intensities(array, "a").std() > 0.2


def test_one_odd_voxel_in_a_scan_without_background():
    array = rng().normal(100, 20, (32, 32, 32))
    assert max(one_odd_voxel(array, odd) for odd in (-1e4, 0, 1e5)) < 2e-3


def test_a_background_that_is_0_but_for_rounding_is_a_background():
    array = np.zeros((32, 32, 32))
    array[8:20, 8:20, 8:20] = rng().uniform(0.2, 1, (12, 12, 12))
    jitter = array + 1e-7 * rng().normal(size=array.shape)
    np.testing.assert_allclose(
        rescale_intensities(jitter, "a"), rescale_intensities(array, "a"), atol=2e-3
    )


def test_what_many_voxels_share_in_the_middle_is_no_background():
    array = rng().uniform(0, 1, (32, 32, 32))
    array[:16] = 0.4
    assert (rescale_intensities(array, "a") > 0).mean() > 0.95


@pytest.mark.parametrize("share", [0.04, 0.08, 0.3])
def test_the_air_of_z_scores_is_no_background(share):
    """Half of the foreground lies below it, and must not become black."""
    array = np.zeros((32, 32, 32))
    foreground = array.ravel()[-round(share * array.size) :]
    foreground[:] = rng().normal(0, 1, foreground.size)
    inside = rescale_intensities(array, "a").ravel()[-foreground.size :]
    assert (inside == 0).mean() < 0.3


def test_a_white_page_with_a_dark_figure_is_seen():
    array = np.full((128, 128), 255, np.uint8)
    array[50:70, 50:70] = rng().integers(20, 200, (20, 20))
    image = rescale_intensities(array, "a")
    assert image[0, 0] == 1
    assert image[50:70, 50:70].std() > 0.2
    odd = np.ones((20, 20, 20))
    odd[0, 0, 0] = 0
    assert rescale_intensities(odd, "a").ravel().tolist() == [0] + [1] * 7999


def test_how_much_makes_a_background():
    """A tenth of the voxels that are alike, with 3 % below; not tissue 1 % above it."""
    array = rng().uniform(0.5, 1, (40, 40, 40))
    flat = array.ravel()
    flat[:6400] = 0.2
    flat[6400:8320] = rng().uniform(0, 0.1, 1920)
    image = rescale_intensities(array, "a").ravel()
    assert (image[8320:] > 0).mean() > 0.98
    low = np.percentile(flat[8320:], 1)
    high = np.percentile(flat[8320:], 99.5)
    np.testing.assert_allclose(
        image[8320:], ((flat[8320:] - low) / (high - low)).clip(0, 1), atol=1e-6
    )

    flat[:] = 0
    flat[30000:] = rng().uniform(0.01, 0.012, 34000)
    flat[50000:] = 1
    assert (rescale_intensities(array, "a").ravel()[30000:] > 0).mean() > 0.98


def test_integers_beyond_float32_keep_their_range():
    """Of 1,000 values on top of 10 million float32 keeps half."""
    array = (10**9 + np.arange(16**3) % 1000).astype(np.int32).reshape(16, 16, 16)
    assert len(np.unique(rescale_intensities(array, "a"))) > 980


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.1e307])
def test_voxels_that_are_no_numbers_are_counted(bad):
    array = noise(8, 8, 8).astype(np.float64)
    array[0, 0, :3] = bad * np.array([1, -1, 1])
    with pytest.raises(UserError, match=r"a: 3 voxels are NaN, infinite or beyond 1e\+307: repair"):
        rescale_intensities(array, "a")


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.bool, torch.uint8),
        (torch.uint8, torch.uint8),
        (torch.int16, torch.int16),
        (torch.uint16, torch.int32),
        (torch.uint32, torch.int64),
        (torch.int64, torch.int64),
    ],
)
def test_labels_of_any_integer_type_make_a_cohort(given, kept):
    """PyTorch has no smallest element of a uint16 tensor."""
    labels = torch.zeros(4, 4, 4, dtype=torch.int64)
    labels[1] = 1
    scans = [scan(noise(4, 4, 4), labels=labels.to(given), name=name) for name in "abc"]
    assert scans[0].labels.dtype == kept
    together = cohort(train=tuple(scans))
    batch = Batch.of(together.train, 2)
    assert torch.equal(batch.one_hot[0, 1], labels.float())


def test_labels_between_two_numbers_are_refused():
    """1.9999999 became 1 in a batch."""
    labels = np.full((4, 4, 4), 1.9999999)
    with pytest.raises(TypeError, match=r"scan a: labels must be integers, got torch.float64"):
        scan(noise(4, 4, 4), labels=labels)


@pytest.mark.parametrize(
    ("structures", "dtype"),
    [(2, torch.uint8), (256, torch.uint8), (257, torch.int16), (40000, torch.int32)],
)
def test_labels_have_a_type_that_holds_every_structure(structures, dtype):
    assert label_dtype(structures) == dtype


@pytest.mark.parametrize("bad", ["nan", "singular", "two equal axes", "of another shape"])
def test_an_affine_that_leads_nowhere_is_refused(bad):
    affine = scaled(1.5)
    if bad == "nan":
        affine[0, 3] = np.nan
    elif bad == "singular":
        affine[2] = 0
    elif bad == "two equal axes":
        affine[:3, 1] = affine[:3, 0]
    else:
        affine = affine[:3, :3]
    with pytest.raises(UserError, match="scan a: the affine"):
        scan(noise(4, 4, 4), affine)


@pytest.mark.parametrize("spacing", [1e-3, 1e3])
def test_voxels_of_any_size_have_a_place(spacing):
    scan(noise(4, 4, 4), scaled(spacing))


# --- one grid -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "axes, flips", [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 0, 2), (1, -1, 1))]
)
def test_to_source_leads_back_to_the_files_voxel(tmp_path, axes, flips):
    blob = np.exp(
        -sum((x - c) ** 2 for x, c in zip(np.indices((22, 18, 20)), (12, 8, 9), strict=True)) / 8
    )
    stored, affine = reoriented(blob.astype(np.float32), oblique(), axes, flips)
    loaded = load_scan(
        write(tmp_path / "a.nii", stored, affine), None, id="a", subject="a", structures={}
    )
    target = resample(loaded, centred_affine(loaded, (24, 24, 24), 0.8), (24, 24, 24))
    weights = target.image[0].double()
    voxels = torch.from_numpy(np.indices(target.shape).astype(np.float64))
    centroid = torch.tensor([*((weights * axis).sum() / weights.sum() for axis in voxels), 1])
    marked = np.unravel_index(stored.argmax(), stored.shape)
    np.testing.assert_allclose((target.to_source @ centroid)[:3], marked, atol=0.1)
    assert target.source.shape == stored.shape


def test_to_source_of_a_scan_without_a_file():
    with pytest.raises(ValueError, match="scan a was not read from a file"):
        _ = scan(noise(4, 4, 4)).to_source


@pytest.mark.parametrize("spacing", [1.0, 0.7])
@pytest.mark.parametrize(
    "shape", [(9, 8, 7), (6, 10, 7), (12, 12, 12), (4, 5, 6), (3, 14, 8)], ids=str
)
def test_equal_spacing_is_a_shift_by_whole_voxels(shape, spacing):
    own = (9, 8, 7)
    source = scan(
        noise(*own), scaled(spacing, (-31.3, 12.9, 5.1)), rng().integers(1, 5, own).astype(np.uint8)
    )
    target = resample(source, centred_affine(source, shape, spacing), shape)
    indices = [np.arange(n) + (m - n) // 2 for n, m in zip(shape, own, strict=True)]
    clipped = np.ix_(*[index.clip(0, m - 1) for index, m in zip(indices, own, strict=True)])
    inside = np.ones(shape, bool)
    for place, m in zip(np.meshgrid(*indices, indexing="ij"), own, strict=True):
        inside &= (place >= 0) & (place < m)
    np.testing.assert_allclose(target.image[0], source.image[0].numpy()[clipped], atol=1e-6)
    np.testing.assert_array_equal(
        target.labels, np.where(inside, source.labels.numpy()[clipped], 0)
    )
    assert target.labels.dtype == torch.uint8
    first = np.array([index[0] for index in indices])
    np.testing.assert_allclose(
        target.affine[:3, 3], source.affine[:3, 3].numpy() + spacing * first, atol=1e-9
    )


def test_resampling_onto_its_own_grid_changes_nothing():
    source = scan(noise(6, 5, 4), oblique(), rng().integers(1, 5, (6, 5, 4)))
    same = resample(source, source.affine, source.shape)
    np.testing.assert_allclose(same.image, source.image, atol=1e-6)
    np.testing.assert_array_equal(same.labels, source.labels)


def test_the_grid_is_centred_where_the_scan_is():
    source = scan(noise(9, 14, 11), oblique())
    affine = centred_affine(source, (16, 8, 24), 1.5)
    np.testing.assert_allclose(affine[:3, :3], 1.5 * np.eye(3))
    centre = source.affine @ torch.tensor([4.0, 6.5, 5.0, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(
        affine @ torch.tensor([7.5, 3.5, 11.5, 1.0], dtype=torch.float64), centre
    )


def test_halving_the_resolution_takes_the_majority_of_labels():
    labels = rng().integers(0, 3, (8, 6, 10)).astype(np.uint8)
    source = scan(noise(8, 6, 10), labels=labels)
    target = resample(source, centred_affine(source, (4, 3, 5), 2.0), (4, 3, 5))
    blocks = labels.reshape(4, 2, 3, 2, 5, 2).transpose(0, 2, 4, 1, 3, 5).reshape(4, 3, 5, 8)
    counts = (blocks[..., None] == np.arange(3)).sum(-2)
    unique = (counts == counts.max(-1, keepdims=True)).sum(-1) == 1
    assert unique.mean() > 0.5
    np.testing.assert_array_equal(target.labels[unique], counts.argmax(-1)[unique])
    ties = np.take_along_axis(counts, target.labels.numpy()[..., None].astype(int), -1)[..., 0]
    np.testing.assert_array_equal(ties, counts.max(-1))  # where two are as many, one of them


@pytest.mark.parametrize("spacing, degrees", [(1.0, 12), (0.5, 12), (1.4, 40)])
def test_rotated_labels_are_the_same_ones_in_the_same_place(spacing, degrees):
    shape = tuple(int(n / spacing) for n in (26, 24, 22))
    affine = oblique((spacing,) * 3, degrees)
    centre = affine[:3] @ np.array([*((n - 1) / 2 + 0.2 for n in shape), 1])

    def ball(grid, shape):
        distance = np.linalg.norm(world(grid, shape) - centre[:, None, None, None], axis=0)
        return np.select([distance < 5, distance < 9], [9, 2], 0).astype(np.uint8)

    source = scan(noise(*shape), affine, ball(affine, shape))
    target = resample(source, centred_affine(source, (28, 28, 28), 1.0), (28, 28, 28))
    expected = ball(target.affine, target.shape)
    assert set(target.labels.unique().tolist()) == {0, 2, 9}
    for label in (2, 9):
        found, truth = target.labels.numpy() == label, expected == label
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
        gravity = world(target.affine, target.shape)[:, found].mean(1)
        np.testing.assert_allclose(gravity, centre, atol=0.1)  # labels must not drift


@pytest.mark.parametrize("spacing", [0.8, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(12, 10, 9), (12, 10)], ids=["3D", "slice"])
def test_a_ramp_stays_a_ramp(shape, spacing):
    own, affine = (40, 36, 38), oblique((0.7, 0.8, 0.75))

    def ramp(place):
        return np.einsum(
            "d,d...->...",
            (0.008, -0.006, 0.007),
            place - affine[:3, 3].reshape(3, *[1] * place[0].ndim),
        )

    values = ramp(world(affine, own))
    low, height = values.min(), np.ptp(values)
    source = scan(((values - low) / height).astype(np.float32), affine)
    target = resample(source, centred_affine(source, shape, spacing), shape)
    place = world(target.affine, shape)
    expected = (ramp(place) - low) / height
    voxels = np.einsum(
        "ij,j...->i...", np.linalg.inv(affine), np.concatenate([place, np.ones((1, *shape))])
    )
    # from the border
    far = np.stack([(v > 5) & (v < n - 6) for v, n in zip(voxels, own, strict=False)]).all(0)
    assert far.mean() > 0.5
    np.testing.assert_allclose(target.image[0].numpy()[far], expected[far], atol=1e-5)


def test_larger_voxels_are_smoothed_first():
    source = scan(noise(33, 33, 33))
    # meets every third voxel
    target = resample(source, centred_affine(source, (11, 11, 11), 3.0), (11, 11, 11))
    assert target.image.std() < 0.3 * source.image.std()  # averages are less noisy than samples


def test_a_plane_is_not_mixed_with_its_neighbours():
    source = scan(noise(33, 33, 33))
    plane = scan(source.image[0, :, :, 16])
    affine = centred_affine(source, (11, 11), 3.0)
    flat = affine.clone()
    flat[2, 3] = 0
    cut = resample(source, affine, (11, 11))
    np.testing.assert_allclose(cut.image, resample(plane, flat, (11, 11)).image, atol=1e-6)


def test_a_2d_scan_is_resampled_like_an_image():
    source = scan(
        (np.indices((21, 17)) * np.array([0.02, 0.03]).reshape(2, 1, 1)).sum(0),
        scaled(1.0, (5, 6, 7)),
        np.repeat(np.arange(21, dtype=np.uint8)[:, None] // 7, 17, 1),
    )
    target = resample(source, centred_affine(source, (8, 8), 1.5), (8, 8))
    i, j = world(target.affine, (8, 8))[:2] - np.array([5, 6]).reshape(2, 1, 1)
    np.testing.assert_allclose(target.image[0], 0.02 * i + 0.03 * j, atol=1e-6)
    # where the votes tie, the centre decides
    np.testing.assert_array_equal(target.labels, np.round(i) // 7)
    assert target.affine[2, 3] == 7


@pytest.mark.parametrize("depth, middle", [(7, 3), (6, 2)])
def test_a_2d_grid_on_a_volume_is_the_axial_plane_in_the_middle(depth, middle):
    labels = rng().integers(0, 4, (6, 5, depth)).astype(np.uint8)
    source = scan(noise(6, 5, depth), scaled(1.5, (3, 4, 5)), labels)
    target = resample(source, centred_affine(source, (6, 5), 1.5), (6, 5))
    np.testing.assert_allclose(target.image[0], source.image[0, :, :, middle], atol=1e-6)
    np.testing.assert_array_equal(target.labels, labels[:, :, middle])
    assert target.affine[2, 3].item() == pytest.approx(5 + 1.5 * middle)


@pytest.mark.parametrize("spacing", [0, -1.0, float("nan")])
def test_spacing_must_be_positive(spacing):
    with pytest.raises(ValueError, match="spacing must be a positive number of millimetres, got"):
        centred_affine(scan(noise(4, 4, 4)), (4, 4, 4), spacing)


@pytest.mark.parametrize(
    "shape", [(16, 16, 20), (8, 8), (8, 8, 8), (0, 16, 16), (16,), (16, 16, 16, 16)], ids=str
)
def test_sides_must_be_divisible_and_large_enough_to_train(shape):
    with pytest.raises(ValueError, match=r"every side must be divisible by 8, one must be 16.*got"):
        check_sides(shape)


def test_divisible_sides_pass():
    check_sides((8, 16, 24))
    check_sides((32, 8))


def test_the_smallest_sides_that_pass_can_be_trained_on():
    """One scan of them, in both networks: batch normalisation needs several voxels."""
    for shape in ((8, 16), (16, 8), (8, 8, 16)):
        check_sides(shape)
        nets = models.build("kit", len(shape), 3, velocity=True, passes=1)
        image = torch.rand(1, 1, *shape)
        assert nets["seg"].train()(image).isfinite().all()
        assert nets["reg"].train()(image, image).displacement.isfinite().all()


# --- splits and cohorts ---------------------------------------------------------------------------


def ids(scans):
    return [one.id for one in scans]


def test_splits_keep_subjects_together():
    groups = split_by_subject(people(12, scans_each=2), (9, 4, 5), seed=3)
    assert [len(group) for group in groups] == [10, 4, 6]
    subjects = [{one.subject for one in group} for group in groups]
    assert sum(len(some) for some in subjects) == len(set.union(*subjects)) == 10
    assert len({one.id for group in groups for one in group}) == 20


def test_splits_are_drawn_by_the_seed_alone():
    scans = people(12)
    first, again, other = (
        [set(ids(group)) for group in split_by_subject(some, (6, 3, 3), seed)]
        for some, seed in ((scans, 0), (scans[::-1], 0), (scans, 1))
    )
    assert first == again
    assert first != other


def test_a_split_takes_linear_time():
    """300,000 scans took over a minute: counted in steps, not in seconds."""
    asked = []

    class Counted:
        def __init__(self, number):
            self.number = number

        @property
        def subject(self):
            asked.append(self.number)
            return f"{self.number:05}"

    groups = split_by_subject([Counted(n) for n in range(3000)], (2000, 500, 500))
    assert [len(group) for group in groups] == [2000, 500, 500]
    assert len(asked) < 10 * 3000


def test_splits_need_enough_subjects():
    with pytest.raises(
        ValueError, match=r"6 scans of 3 subjects do not fill groups of \(4, 2, 2\)"
    ):
        split_by_subject(people(3, scans_each=2), (4, 2, 2))


def test_a_cohort_knows_its_scans():
    toy = cohort()
    assert ids(toy.scans) == ids(people(8))
    assert toy.shape == (4, 4, 4)
    assert toy.labelled == toy.train


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"test": (replace(people(1)[0], id="new"),)},
            "cohort toy: subjects on two sides of the split: 0",
        ),
        ({"validation": (replace(people(8)[7], id="new"),)}, "two sides of the split: 7"),
        ({"validation": (replace(people(1)[0], id="new"),)}, "two sides of the split: 0"),
        (
            {"test": people(9, shape=(4, 4, 8))[8:]},
            r"share one grid, got \[\(4, 4, 4\), \(4, 4, 8\)\]",
        ),
        ({"test": people(9, shape=(4, 4))[8:]}, "share one grid"),
        ({"train": (*people(2), people(1)[0])}, "scan ids must be unique, twice: 0-0"),
        (
            {"test": (labelled_everywhere(2),)},
            "scan x: labels from 2 to 2, but the cohort has only 2 structures",
        ),
        (
            {"test": (labelled_everywhere(-1),)},
            "scan x: labels from -1 to -1, but the cohort has only 2 structures",
        ),
        ({"train": ()}, "cohort toy: there is no training scan"),
    ],
    ids=[
        "leak train test",
        "leak validation test",
        "leak train validation",
        "grids",
        "dimensions",
        "ids",
        "label",
        "negative label",
        "no training",
    ],
)
def test_a_cohort_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        cohort(**changes)


def test_a_scan_refuses_other_shapes():
    with pytest.raises(
        ValueError,
        match=r"scan a: the image must be \(1, I, J\) or \(1, I, J, K\), got \(2, 4, 4\)",
    ):
        Scan("a", "a", torch.zeros(2, 4, 4), torch.eye(4))
    with pytest.raises(
        ValueError, match=r"scan a: image \(4, 4\) and labels \(4, 5\) must have the same voxels"
    ):
        scan(noise(4, 4), labels=np.zeros((4, 5), int))


@pytest.mark.parametrize("keep", range(6))
def test_hiding_keeps_exactly_n_labels(keep):
    toy = cohort()
    hidden = toy.hide_labels(keep)
    assert len(hidden.labelled) == keep
    assert ids(hidden.train) == ids(toy.train)
    assert all(
        before.image is after.image for before, after in zip(toy.train, hidden.train, strict=True)
    )
    assert all(one.labels is not None for one in (*hidden.validation, *hidden.test))
    assert len(toy.labelled) == 5  # the old cohort is as it was


def test_hiding_is_seeded_and_nested():
    toy = cohort()
    drawn = {seed: ids(toy.hide_labels(2, seed).labelled) for seed in range(10)}
    assert drawn[0] == ids(toy.hide_labels(2, 0).labelled)
    assert len({tuple(names) for names in drawn.values()}) > 3
    for keep in range(5):
        assert set(ids(toy.hide_labels(keep, 4).labelled)) < set(
            ids(toy.hide_labels(keep + 1, 4).labelled)
        )


@pytest.mark.parametrize("keep", [-1, 3])
def test_hiding_counts_labelled_scans_only(keep):
    toy = cohort(train=(*people(2), *people(4, labelled=False)[2:]))
    with pytest.raises(
        ValueError,
        match=f"keep must be from 0 to 2, the labelled training scans of toy, got {keep}",
    ):
        toy.hide_labels(keep)


def test_a_cohort_moves_to_a_device():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    toy = cohort(test=people(9, labelled=False)[8:])
    moved = toy.to(device)
    assert {one.image.device.type for one in moved.scans} == {device}
    assert {one.labels.device.type for one in moved.train} == {device}
    assert moved.test[0].labels is None
    assert ids(moved.scans) == ids(toy.scans)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6)], ids=["2D", "3D"])
def test_a_batch_puts_labelled_and_unlabelled_side_by_side(shape):
    labels = rng().integers(0, 3, shape).astype(np.uint8)
    a, b = scan(noise(*shape), labels=labels, name="a"), scan(noise(*shape, seed=1), name="b")
    batch = Batch.of([b, a], 4)
    assert batch.ids == ("b", "a")
    assert batch.known == (False, True)
    assert batch.labels.dtype == torch.uint8 and not batch.labels[0].any()
    np.testing.assert_array_equal(batch.labels[1], labels)
    assert torch.equal(batch.image, torch.stack([b.image, a.image]))
    assert batch.one_hot.shape == (2, 4, *shape)
    assert torch.equal(
        batch.one_hot.sum(1), torch.tensor([0.0, 1.0]).view(2, *[1] * len(shape)).expand(2, *shape)
    )
    np.testing.assert_array_equal(batch.one_hot[1].argmax(0), labels)
    assert batch.image.dtype == batch.one_hot.dtype == torch.float32


def test_rows_of_a_batch_are_a_batch():
    labels = rng().integers(0, 3, (4, 5)).astype(np.uint8)
    scans = [
        scan(noise(4, 5, seed=i), labels=labels if i % 2 else None, name=f"s{i}") for i in range(5)
    ]
    batch = Batch.of(scans, 3)
    some = batch[[1, 3]]
    assert some.ids == ("s1", "s3") and some.known == (True, True)
    assert torch.equal(some.image, batch.image[[1, 3]])
    assert torch.equal(some.one_hot, batch.one_hot[[1, 3]])
    assert batch[[4, 0]].ids == ("s4", "s0")
    assert batch[range(5)].image is batch.image  # all are no copy
    none = batch[[]]
    assert none.ids == () and none.one_hot.shape == (0, 3, 4, 5)


def test_a_batch_is_made_where_its_scans_are():
    moved = [
        replace(one, image=one.image.to("meta"), labels=one.labels.to("meta")) for one in people(2)
    ]
    batch = Batch.of(moved, 2)
    assert {tensor.device.type for tensor in (batch.image, batch.one_hot)} == {"meta"}


def test_on_its_way_to_a_gpu_a_tensor_is_pinned_and_nobody_waits(monkeypatch):
    done = []

    def pinned(tensor):
        done.append("pinned")
        return tensor

    def moved(tensor, device, **how):
        done.append((device.type, how))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", moved)
    for device in ("cuda", "cpu", "mps"):
        data.sent(torch.zeros(2), torch.device(device))
    assert done == ["pinned", ("cuda", {"non_blocking": True}), ("cpu", {}), ("mps", {})]


def test_too_many_scans_for_a_device_stay_where_they_are_and_batches_are_moved(monkeypatch):
    whole = cohort()
    images = sum(4 * 64 + 64 for _ in whole.scans)  # bytes, labels too
    monkeypatch.setattr(data, "_room_on", lambda device: 2 * images)
    assert whole.to("cpu").batches_on is None
    monkeypatch.setattr(data, "_room_on", lambda device: 2 * images - 1)
    moved = whole.to("meta")
    assert all(scan.image.device.type == "cpu" for scan in moved.scans)
    assert moved.device.type == "meta" and whole.device.type == "cpu"
    assert moved.hide_labels(1).device.type == "meta"
    batch = Batch.of(moved.train[:2], 2, moved.device)
    assert {batch.image.device.type, batch.one_hot.device.type} == {"meta"}
    monkeypatch.setattr(data, "_room_on", lambda device: float("inf"))
    assert moved.to("cpu").batches_on is None


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_scans_that_are_preferred_keep_their_labels_first(keep):
    chosen = ("1-0", "4-0")
    some = cohort(preferred=chosen)
    for seed in range(6):
        kept = {scan.id for scan in some.hide_labels(keep, seed).labelled}
        assert len(kept) == keep
        assert len(kept & set(chosen)) == min(keep, 2)
        assert kept <= {scan.id for scan in some.hide_labels(min(keep + 1, 5), seed).labelled}
    first = {next(scan.id for scan in some.hide_labels(1, seed).labelled) for seed in range(20)}
    assert first == set(chosen)


def test_who_is_preferred_changes_no_order_within_the_two_groups():
    plain, some = cohort(), cohort(preferred=("0-0", "2-0", "3-0"))

    def order(one, seed):
        """Scans in the order in which they keep their labels."""
        kept, found = set(), []
        for keep in range(1, 6):
            new = {scan.id for scan in one.hide_labels(keep, seed).labelled} - kept
            found += new
            kept |= new
        return found

    for seed in range(6):
        drawn = order(plain, seed)
        wanted = [name for name in drawn if name in some.preferred]
        wanted += [name for name in drawn if name not in some.preferred]
        assert order(some, seed) == wanted


class Elsewhere(torch.nn.Module):
    """A network on another device, which says where its input was."""

    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(1, device="meta"))
        self.channels = channels
        self.seen = []

    def forward(self, *images):
        self.seen += [image.device.type for image in images]
        return torch.zeros(1, self.channels, *images[0].shape[2:])


def test_a_scan_is_moved_to_the_network_and_what_is_found_back_to_the_scan():
    moving, fixed = people(2)
    seg_net, reg_net = Elsewhere(2), Elsewhere(3)
    assert models.segmenter(seg_net)(fixed).device.type == "cpu"
    assert models.registrar(reg_net)(moving, fixed).displacement.device.type == "cpu"
    assert seg_net.seen == ["meta"] and reg_net.seen == ["meta", "meta"]


class Normalised(torch.nn.Module):
    """A network with batch normalisation and dropout, which a training leaves in training mode."""

    def __init__(self, inputs, outputs):
        super().__init__()
        layers = [torch.nn.Conv3d(inputs, outputs, 3, padding=1), torch.nn.BatchNorm3d(outputs)]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Dropout(0.5))

    def forward(self, *images):
        return self.layers(torch.cat(images, 1))


def test_a_network_learns_nothing_from_a_scan_that_it_is_asked_about():
    """Its running means stay, and the same question has the same answer."""
    moving, fixed = people(2)
    seg_net, reg_net = Normalised(1, 2), Normalised(2, 3)
    before = deepcopy([seg_net.state_dict(), reg_net.state_dict()])

    def answers():
        labels = models.segmenter(seg_net.train())(fixed)
        return labels, models.registrar(reg_net.train())(moving, fixed).displacement

    for first, again in zip(answers(), answers(), strict=True):
        torch.testing.assert_close(again, first, rtol=0, atol=0)
    torch.testing.assert_close([seg_net.state_dict(), reg_net.state_dict()], before)
