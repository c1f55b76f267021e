"""NIfTI files written with nibabel must come back as the arrays, places and labels put in."""

import itertools
import struct
import zlib

from deepatlas.data import rescale_intensities
from deepatlas.datasets import centred_affine, load_scan, read_nifti, resample

import nibabel as nib
import numpy as np
import pytest
import torch
from volumes import AFFINE, SLOPE, noise, oblique, patched, reoriented, rng, scaled, write

ORIENTATIONS = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes, flips", ORIENTATIONS, ids=str)
def test_every_orientation_is_turned_to_ras(tmp_path, axes, flips):
    volume, affine = noise(3, 4, 5), oblique()
    path = write(tmp_path / "a.nii", *reoriented(volume, affine, axes, flips))
    array, found, source = read_nifti(path)
    np.testing.assert_array_equal(array, volume)
    np.testing.assert_allclose(found, affine, atol=1e-5)  # the header holds float32
    assert source.path == str(path)
    assert source.shape == tuple(volume.shape[axis] for axis in axes)
    loaded = load_scan(path, None, id="a", subject="a", structures={})
    np.testing.assert_array_equal(loaded.image[0], rescale_intensities(volume, "a"))


@pytest.mark.parametrize("axes, flips", ORIENTATIONS[::5], ids=str)
def test_labels_may_be_stored_in_another_orientation_than_the_image(tmp_path, axes, flips):
    volume, labels = noise(3, 4, 5), rng().integers(0, 3, (3, 4, 5)).astype(np.int16)
    path = write(tmp_path / "image.nii", volume, oblique())
    label_path = write(tmp_path / "labels.nii.gz", *reoriented(labels, oblique(), axes, flips))
    loaded = load_scan(path, label_path, id="a", subject="a", structures={1: 1, 2: 2})
    np.testing.assert_array_equal(loaded.labels, labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.int32, np.float32, np.float64])
def test_stored_types(tmp_path, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    found, _, _ = read_nifti(write(tmp_path / "a.nii.gz", array))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


def test_slope_and_intercept_are_honoured(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = patched(write(tmp_path / "a.nii", array), SLOPE, (0.5, -7.0))
    np.testing.assert_allclose(read_nifti(path)[0], 0.5 * array - 7)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 4, 1)], ids=str)
def test_flat_files_and_files_of_one_volume(tmp_path, shape):
    array = noise(*shape)
    path = write(tmp_path / "a.nii", array, scaled(2.0, (1, 2, 3)).numpy())
    found, affine, source = read_nifti(path)
    np.testing.assert_array_equal(found, array[..., 0] if len(shape) == 4 else array)
    np.testing.assert_allclose(affine, scaled(2.0, (1, 2, 3)))
    assert source.shape == shape
    loaded = load_scan(path, None, id="a", subject="a", structures={})
    flat = resample(loaded, centred_affine(loaded, (6, 5), 2.0), (6, 5))
    middle = loaded.image.reshape(1, 6, 5, -1)
    middle = middle[..., (middle.shape[-1] - 1) // 2]
    np.testing.assert_allclose(flat.image, middle, atol=1e-6)


def test_label_numbers_become_indices(tmp_path):
    numbers = np.array([0, 17, 53, 999] * 6, np.int32).reshape(4, 3, 2)
    image, labels = write(tmp_path / "i.nii", noise(4, 3, 2)), write(tmp_path / "l.nii", numbers)
    loaded = load_scan(image, labels, id="a", subject="s", structures={17: 2, 53: 1})
    np.testing.assert_array_equal(
        loaded.labels, np.select([numbers == 17, numbers == 53], [2, 1], 0)
    )
    assert (loaded.id, loaded.subject, loaded.labels.dtype) == ("a", "s", torch.uint8)
    assert load_scan(image, None, id="a", subject="s", structures={17: 2}).labels is None


# --- bad files ------------------------------------------------------------------------------------


def text(path):
    path.write_text("The patient was fine.\n" * 50)


def truncated(path):
    write(path, noise(12, 12, 12))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only_a_header(path):
    write(path, noise(12, 12, 12))
    path.write_bytes(path.read_bytes()[:348])


def damaged(path):
    good = zlib.compressobj(wbits=31)  # gzip
    half = nib.Nifti1Image(noise(12, 12, 12), np.eye(4)).to_bytes()[:4000]
    # no block starts so
    path.write_bytes(good.compress(half) + good.flush(zlib.Z_SYNC_FLUSH) + b"\xff" * 3000)


def unknown_type(path):
    write(path, noise(4, 4, 4))
    raw = bytearray(path.read_bytes())
    raw[70:72] = struct.pack("<h", 272)
    path.write_bytes(raw)


def colours(path):
    write(path, np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def with_one(value):
    def make(path):
        array = noise(4, 4, 4)
        array[1, 2, 3] = value
        write(path, array)

    return make


def with_affine(*rows):
    return lambda path: patched(write(path, noise(4, 4, 4)), AFFINE, rows)


BAD_IMAGES = {
    "text.nii": (text, "cannot be read as NIfTI"),
    "text.nii.gz": (text, "cannot be read as NIfTI"),
    "empty.nii.gz": (lambda path: path.write_bytes(b""), "cannot be read as NIfTI"),
    "truncated.nii": (truncated, "cannot be read as NIfTI .* is the file complete"),
    "truncated.nii.gz": (truncated, "cannot be read as NIfTI .* is the file complete"),
    "header.nii": (only_a_header, "cannot be read as NIfTI .* is the file complete"),
    "damaged.nii.gz": (damaged, "cannot be read as NIfTI .* is the file complete"),
    "type.nii": (unknown_type, "cannot be read as NIfTI"),
    "colours.nii": (colours, "cannot be read as NIfTI"),
    "series.nii": (
        lambda path: write(path, noise(4, 4, 4, 2)),
        r"got shape \(4, 4, 4, 2\): store one volume per file",
    ),
    "vectors.nii": (lambda path: write(path, noise(4, 4, 4, 1, 3)), r"got shape \(4, 4, 4, 1, 3\)"),
    "line.nii": (lambda path: write(path, noise(9)), "a 2D or 3D image was wanted, got shape"),
    "nan.nii": (with_one(np.nan), "1 voxels are NaN or infinite: repair the image"),
    "inf.nii": (with_one(np.inf), "1 voxels are NaN or infinite: repair the image"),
    "constant.nii": (
        lambda path: write(path, np.full((4, 4, 4), 3.0)),
        "every voxel has the value 3",
    ),
    "zero.nii": (
        with_affine(*[0] * 12),
        "the affine in the header is not invertible: set the voxel size",
    ),
    "flat.nii": (
        with_affine(1, 0, 0, 5, 0, 1, 0, 5, 1, 0, 0, 5),
        "the affine in the header is not invertible",
    ),
    "stretched.nii": (
        with_affine(1e30, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0),
        "the affine in the header is not invertible",
    ),
    "lost.nii": (with_affine(float("nan")), "the affine in the header is not invertible"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_refused_by_name(tmp_path, name):
    make, message = BAD_IMAGES[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        load_scan(tmp_path / name, None, id="a", subject="a", structures={})
    assert str(error.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("name", ["absent.nii.gz", ""], ids=["absent", "a folder"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(
        FileNotFoundError, match=r"no such file; an image in NIfTI format \(.nii or .nii.gz\)"
    ) as error:
        read_nifti(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_micrometre_voxels_are_not_a_singular_affine(tmp_path):
    _, affine, _ = read_nifti(
        write(tmp_path / "a.nii", noise(4, 4, 4), np.diag([5e-4, 5e-4, 5e-4, 1]))
    )
    assert affine[0, 0] == pytest.approx(5e-4)


SOME = np.arange(64, dtype=np.int16).reshape(4, 4, 4) % 3
FRACTIONS = SOME.astype(np.float32) + 0.5
HOLES = np.where(SOME == 1, np.nan, SOME).astype(np.float32)
PEAKS = np.where(SOME == 1, np.inf, SOME).astype(np.float32)


@pytest.mark.parametrize(
    "labels, affine, message",
    [
        (
            SOME[:3],
            np.eye(4),
            r"the labels have \(3, 4, 4\) voxels, but the image .*image.nii has \(4, 4, 4\)",
        ),
        (SOME[..., 0], np.eye(4), r"the labels have \(4, 4\) voxels"),
        (
            SOME,
            scaled(1, (0, 2, 0)).numpy(),
            "the labels lie elsewhere in the world than the image .*image.nii",
        ),
        (SOME, scaled(1.1).numpy(), "the labels lie elsewhere"),
        (
            FRACTIONS,
            np.eye(4),
            "labels must be whole numbers; this looks like an image or probabilities",
        ),
        (HOLES, np.eye(4), "labels must be whole numbers"),
        (PEAKS, np.eye(4), "labels must be whole numbers"),
        (SOME + 40, np.eye(4), r"none of the wanted labels \[1, 2\] occurs, found \[40, 41, 42\]"),
        (0 * SOME, np.eye(4), r"none of the wanted labels \[1, 2\] occurs, found \[\]"),
    ],
    ids=["shape", "flat", "moved", "scaled", "fractions", "nan", "inf", "other numbers", "empty"],
)
def test_bad_labels_are_refused_by_name(tmp_path, labels, affine, message):
    image, path = (
        write(tmp_path / "image.nii", noise(4, 4, 4)),
        write(tmp_path / "labels.nii", labels, affine),
    )
    with pytest.raises(ValueError, match=message) as error:
        load_scan(image, path, id="a", subject="a", structures={1: 1, 2: 2})
    assert str(error.value).startswith(f"{path}: ")


def test_missing_labels_are_named(tmp_path):
    image = write(tmp_path / "image.nii", noise(4, 4, 4))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii: no such file"):
        load_scan(image, tmp_path / "nowhere.nii", id="a", subject="a", structures={1: 1})
