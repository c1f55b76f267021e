"""NIfTI files written with nibabel must come back as the arrays, places and labels put in."""

import gzip
import itertools
import struct
import tracemalloc
import zlib

from deepatlas.data import rescale_intensities
from deepatlas.datasets import centred_affine, load_scan, nifti, read_nifti, resample
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pytest
import torch
from volumes import AFFINE, SLOPE, noise, oblique, patched, reoriented, rng, rotation, scaled, write

SOME = np.arange(64, dtype=np.int16).reshape(4, 4, 4) % 3
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
def test_numbers_keep_the_type_they_are_stored_in(tmp_path, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    found, _, _ = read_nifti(write(tmp_path / "a.nii.gz", array))
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, array)


def test_slope_and_intercept_are_honoured(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = patched(write(tmp_path / "a.nii", array), SLOPE, (0.5, -7.0))
    np.testing.assert_array_equal(read_nifti(path)[0], 0.5 * array - 7)


@pytest.mark.parametrize("slope, intercept", [(1, 0), (0, 5), (np.nan, np.nan)], ids=str)
def test_no_slope_leaves_the_integers_as_they_are(tmp_path, slope, intercept):
    array = np.array([0, 1, 2**31 - 1, -(2**31)] * 6, np.int32).reshape(2, 3, 4)
    path = patched(write(tmp_path / "a.nii", array), SLOPE, (slope, intercept))
    found = read_nifti(path)[0]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "shape", [(6, 5), (6, 5, 1), (6, 5, 4, 1), (6, 5, 4, 1, 1), (6, 5, 4, 1, 1, 1, 1)], ids=str
)
def test_flat_files_and_files_of_one_volume(tmp_path, shape):
    array = noise(*shape)
    path = write(tmp_path / "a.nii", array, scaled(2.0, (1, 2, 3)).numpy())
    found, affine, source = read_nifti(path)
    np.testing.assert_array_equal(found, array.reshape(shape[:3]))
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


@pytest.mark.parametrize(
    "numbers, dtype",
    [
        ((16777217, 16777216), np.uint32),
        ((16777217, 16777216), np.float64),
        ((2**53 + 1, 2**53), np.int64),
        ((2**64 - 1, 2**64 - 2), np.uint64),
    ],
    ids=str,
)
def test_neighbouring_large_label_numbers_are_two(tmp_path, numbers, dtype):
    stored = np.resize(np.array(numbers, dtype), (4, 4, 4))
    labels = tmp_path / "l.nii.gz"
    nib.save(nib.Nifti1Image(stored, np.eye(4), dtype=dtype), labels)
    image = write(tmp_path / "i.nii", noise(4, 4, 4))
    loaded = load_scan(image, labels, id="a", subject="a", structures={numbers[0]: 1})
    assert loaded.labels.count_nonzero() == 32
    np.testing.assert_array_equal(loaded.labels, stored == numbers[0])


@pytest.mark.parametrize(
    "structures, dtype", [(3, torch.uint8), (256, torch.int16), (40_000, torch.int32)]
)
def test_any_number_of_structures_can_be_labelled(tmp_path, structures, dtype):
    shape = (40, 40, 40)
    numbers = np.arange(64_000).reshape(shape) % structures
    image = write(tmp_path / "i.nii", noise(*shape))
    labels = write(tmp_path / "l.nii", numbers.astype(np.int32))
    one_more = {number: number + 1 for number in range(structures)}
    loaded = load_scan(image, labels, id="a", subject="a", structures=one_more)
    assert loaded.labels.dtype == dtype
    np.testing.assert_array_equal(loaded.labels, numbers + 1)


def test_labels_that_a_header_scales_are_the_whole_numbers_that_were_meant(tmp_path):
    numbers = np.resize(np.arange(5.0), (4, 5, 3))
    image, labels = nib.Nifti1Image(noise(4, 5, 3), np.eye(4)), nib.Nifti1Image(numbers, np.eye(4))
    labels.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "i.nii")
    nib.save(labels, tmp_path / "l.nii")
    read = read_nifti(tmp_path / "l.nii")[0]
    assert 1e-6 < np.abs(read - numbers).max() < 1e-3  # else nothing is tested
    loaded = load_scan(
        tmp_path / "i.nii",
        tmp_path / "l.nii",
        id="a",
        subject="a",
        structures={1: 1, 2: 2, 3: 3, 4: 4},
    )
    np.testing.assert_array_equal(loaded.labels, numbers)


def test_a_float_label_just_below_a_whole_number_is_not_the_one_before(tmp_path):
    stored = np.resize([0, 1.9999999], (4, 4, 4))
    image, labels = write(tmp_path / "i.nii", noise(4, 4, 4)), write(tmp_path / "l.nii", stored)
    loaded = load_scan(image, labels, id="a", subject="a", structures={1: 1, 2: 2})
    np.testing.assert_array_equal(loaded.labels, np.round(stored))


def test_labels_may_be_empty_where_that_is_said(tmp_path):
    image = write(tmp_path / "i.nii", noise(4, 4, 4))
    labels = write(tmp_path / "l.nii", np.zeros((4, 4, 4), np.uint8))
    loaded = load_scan(image, labels, id="a", subject="a", structures={1: 1}, empty_labels=True)
    assert loaded.labels.count_nonzero() == 0


@pytest.mark.parametrize(
    "dtype, offset", [(np.int32, 1e7), (np.int32, 1e9), (np.uint32, 4e9), (np.uint16, 6e4)]
)
def test_a_large_offset_takes_nothing_from_the_range_of_an_image(tmp_path, dtype, offset):
    plain = rng().integers(0, 1000, (8, 9, 10))
    moved = (plain + int(offset)).astype(dtype)
    paths = (
        write(tmp_path / "plain.nii", plain.astype(np.int16)),
        write(tmp_path / "moved.nii", moved),
    )
    images = [load_scan(path, None, id="a", subject="a", structures={}).image for path in paths]
    assert len(images[1].unique()) > 400
    np.testing.assert_allclose(images[1], images[0], atol=1e-6)


# --- which file it was ----------------------------------------------------------------------------


def test_the_digest_of_an_image_tells_copies_from_others(tmp_path):
    volume, affine = rng().integers(0, 1000, (3, 4, 5)).astype(np.int16), oblique()
    other = volume.copy()
    other[0, 0, 0] += 1
    files = {
        "plain.nii": (volume, affine),
        "copy.nii.gz": (volume, affine),
        "turned.nii": reoriented(volume, affine, (2, 0, 1), (1, -1, 1)),
        "float.nii": (volume.astype(np.float32), affine),
        "moved.nii": (volume, affine + 1),
        "other.nii": (other, affine),
    }
    digests = {}
    for name, (array, place) in files.items():
        path = write(tmp_path / name, array, place)
        loaded = load_scan(path, None, id="a", subject="a", structures={})
        digests[name] = (loaded.source.image_digest, loaded.source.digest)
    of_the_voxels = {name: pair[0] for name, pair in digests.items()}
    assert len(set(of_the_voxels.values())) == 2
    assert of_the_voxels["other.nii"] not in [of_the_voxels[name] for name in [*files][:-1]]
    assert digests["plain.nii"] == digests["copy.nii.gz"] == digests["float.nii"]
    assert digests["plain.nii"][1] != digests["moved.nii"][1]


def test_the_digest_of_a_scan_depends_on_its_labels(tmp_path):
    image = write(tmp_path / "i.nii", noise(4, 4, 4))
    digests = set()
    for name in ("one", "two"):
        numbers = rng(len(digests)).integers(0, 3, (4, 4, 4)).astype(np.uint8)
        labels = write(tmp_path / f"{name}.nii", numbers)
        loaded = load_scan(image, labels, id="a", subject="a", structures={1: 1, 2: 2})
        digests.add(loaded.source.digest)
    assert len(digests) == 2


# --- where it lies --------------------------------------------------------------------------------


def with_header(path, array=None, affine=None, **fields):
    """A file in whose header ``fields`` are changed; set last, so that they stand as given."""
    array = noise(4, 5, 6) if array is None else array
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
    raw = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)
    return path


def with_forms(path, sform, qform, codes=(1, 1)):
    image = nib.Nifti1Image(noise(4, 5, 6), None)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


def test_a_header_that_does_not_say_where_the_image_lies_is_refused(tmp_path):
    path = with_header(tmp_path / "a.nii", sform_code=0, qform_code=0)
    assert nib.load(path).affine[0, 0] == -1  # the guess that is not taken
    with pytest.raises(UserError, match=r"a.nii: .* does not say where it lies .*set_sform"):
        read_nifti(path)
    mended = nib.load(path)
    mended.set_sform(np.diag([2.0, 2, 2, 1]), code=1)
    mended.to_filename(path)
    np.testing.assert_array_equal(read_nifti(path)[1], np.diag([2.0, 2, 2, 1]))


@pytest.mark.parametrize("form", ["sform", "qform"])
@pytest.mark.parametrize(
    "unit, in_mm", [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)]
)
def test_places_are_in_millimetres_whatever_the_unit_of_the_file(tmp_path, form, unit, in_mm):
    affine = oblique()
    stored = np.diag([1 / in_mm] * 3 + [1]) @ affine
    image = nib.Nifti1Image(noise(4, 5, 6), None)
    getattr(image, f"set_{form}")(stored, 1)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii")
    _, found, source = read_nifti(tmp_path / "a.nii")
    np.testing.assert_allclose(found, affine, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(source.affine, affine, rtol=1e-5, atol=1e-4)


def test_an_unknown_unit_is_refused(tmp_path):
    path = with_header(tmp_path / "a.nii", xyzt_units=5)
    with pytest.raises(UserError, match=r"a.nii: its header gives places in an unknown unit, 5"):
        read_nifti(path)


@pytest.mark.parametrize(
    "qform",
    [np.diag([-1.0, 1, 1, 1]), np.diag([2.0, 2, 2, 1]), scaled(1, (0, 0.5, 0)).numpy()],
    ids=["flip", "factor of two", "shift"],
)
def test_two_places_in_one_header_are_said_and_the_sform_is_taken(tmp_path, qform):
    path = with_forms(tmp_path / "a.nii", np.eye(4), qform)
    with pytest.warns(UserWarning, match=r"a.nii: .*two places, .*the sform is taken"):
        _, affine, _ = read_nifti(path)
    np.testing.assert_array_equal(affine, np.eye(4))


def test_negative_sides_are_those_of_older_files(tmp_path):
    header = {"sform_code": 0, "qform_code": 1, "pixdim": [1, -2, 2, 3, 0, 0, 0, 0]}
    _, affine, _ = read_nifti(with_header(tmp_path / "a.nii", **header))
    np.testing.assert_array_equal(np.abs(np.diag(affine)), [2, 2, 3, 1])


def test_an_offset_that_is_not_told_is_behind_the_header(tmp_path):
    array, _, _ = read_nifti(with_header(tmp_path / "a.nii", vox_offset=0))
    told, _, _ = read_nifti(with_header(tmp_path / "b.nii"))
    np.testing.assert_array_equal(array, told)


@pytest.mark.parametrize(
    ("largest", "stored"), [(4, np.uint8), (4, np.int16), (207, np.int16), (2035, np.int16)]
)
def test_labels_that_were_saved_under_another_type_are_whole(tmp_path, largest, stored):
    """nibabel fits the steps of the stored type to the largest label: 4 becomes 4.0078, say."""
    numbers = np.random.default_rng(0).integers(0, largest + 1, (6, 6, 6))
    numbers[0, 0, 0] = largest
    image = nib.Nifti1Image(numbers.astype(np.float64), np.eye(4))
    image.header.set_data_dtype(stored)
    nib.save(image, tmp_path / "labels.nii")
    nib.save(nib.Nifti1Image(noise(6, 6, 6), np.eye(4)), tmp_path / "image.nii")
    structures = {number: number for number in range(1, largest + 1)}
    found = load_scan(
        tmp_path / "image.nii",
        tmp_path / "labels.nii",
        id="a",
        subject="a",
        structures=structures,
    )
    np.testing.assert_array_equal(found.labels, numbers)


@pytest.mark.parametrize("off", [0.01, 0.3])
def test_labels_that_are_not_whole_are_refused(tmp_path, off):
    numbers = np.ones((6, 6, 6), np.float32)
    numbers[0] = 2 + off
    nib.save(nib.Nifti1Image(numbers, np.eye(4)), tmp_path / "labels.nii")
    nib.save(nib.Nifti1Image(noise(6, 6, 6), np.eye(4)), tmp_path / "image.nii")
    with pytest.raises(UserError, match="labels must be whole numbers"):
        load_scan(
            tmp_path / "image.nii",
            tmp_path / "labels.nii",
            id="a",
            subject="a",
            structures={1: 1, 2: 2},
        )


def test_a_qform_that_makes_no_place_is_said(tmp_path):
    changes = {"qform_code": 1, "quatern_b": 3.0}
    with pytest.warns(UserWarning, match=r"a.nii: its qform is not valid; the sform"):
        read_nifti(with_header(tmp_path / "a.nii", **changes))
    with pytest.raises(UserError, match=r"b.nii: the affine in the header is not invertible"):
        read_nifti(with_header(tmp_path / "b.nii", sform_code=0, **changes))


@pytest.mark.parametrize("codes", [(1, 1), (4, 1), (0, 1), (1, 0)], ids=str)
def test_equal_places_and_single_ones_are_not_remarked_upon(tmp_path, codes, recwarn):
    affine = oblique((0.7, 1.9, 3.1), origin=(-312.7, 88.1, 1204.3))
    path = with_forms(tmp_path / "a.nii", affine, affine, codes)
    np.testing.assert_allclose(read_nifti(path)[1], affine, rtol=1e-5, atol=1e-3)
    assert not recwarn.list


@pytest.mark.parametrize("spacing, shift", [(3.0, 0.05), (1e-3, 2e-5), (0.5, 0.04)])
def test_labels_a_fraction_of_a_voxel_away_are_in_one_place_with_their_image(
    tmp_path, spacing, shift
):
    image = write(tmp_path / "i.nii", noise(4, 4, 4), scaled(spacing, (1.0, 0, 0)).numpy())
    labels = write(tmp_path / "l.nii", SOME, scaled(spacing, (1.0 + shift, 0, 0)).numpy())
    loaded = load_scan(image, labels, id="a", subject="a", structures={1: 1, 2: 2})
    np.testing.assert_array_equal(loaded.labels, SOME)


@pytest.mark.parametrize("spacing, shift", [(1e-3, 9e-3), (1e-3, 2e-4), (3.0, 0.6)])
def test_labels_a_good_part_of_a_voxel_away_are_refused_at_any_size(tmp_path, spacing, shift):
    image = write(tmp_path / "i.nii", noise(4, 4, 4), scaled(spacing, (1.0, 0, 0)).numpy())
    labels = write(tmp_path / "l.nii", SOME, scaled(spacing, (1.0 + shift, 0, 0)).numpy())
    with pytest.raises(UserError, match=r"labels lie elsewhere .* corners are up to .* voxels"):
        load_scan(image, labels, id="a", subject="a", structures={1: 1, 2: 2})


def test_a_small_turn_is_seen_at_the_corners(tmp_path):
    """A matrix that differs by 2 in a thousand moves the far corner of a large image by a voxel."""
    shape = (2, 400, 400)
    image, labels = noise(*shape), np.ones(shape, np.uint8)
    turned = np.eye(4)
    turned[:3, :3] = rotation(0.15, 0)
    image, labels = write(tmp_path / "i.nii", image), write(tmp_path / "l.nii", labels, turned)
    with pytest.raises(UserError, match=r"corners are up to 1\.\d voxels apart"):
        load_scan(image, labels, id="a", subject="a", structures={1: 1})


@pytest.mark.parametrize("pixdim", [0.0, 1.0], ids=["no thickness", "a thickness"])
def test_a_plane_whose_header_has_only_a_qform_is_read(tmp_path, pixdim):
    path = with_header(
        tmp_path / "a.nii",
        noise(6, 5),
        sform_code=0,
        qform_code=1,
        pixdim=[0, 2, 3, pixdim, 0, 0, 0, 0],
    )
    np.testing.assert_array_equal(read_nifti(path)[1], np.diag([2.0, 3, 1, 1]))


# --- damage ---------------------------------------------------------------------------------------


def test_no_bit_of_a_gzip_file_can_turn_over_unseen(tmp_path):
    volume = rng().integers(0, 9, (24, 22, 20)).astype(np.uint8)  # more than what is read at once
    sound = write(tmp_path / "sound.nii.gz", volume).read_bytes()
    path, unnoticed = tmp_path / "damaged.nii.gz", 0
    for place in [*range(0, 160, 3), *range(160, 8 * len(sound), 101)]:
        damaged = bytearray(sound)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found, affine, _ = read_nifti(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: cannot be read as NIfTI (")
        else:
            unnoticed += 1
            np.testing.assert_array_equal(found, volume)
            np.testing.assert_array_equal(affine, np.eye(4))
    assert unnoticed < 20  # the time and the system in gzip's own header say nothing of the image


def test_bytes_after_a_gzip_file_are_damage_and_zeros_are_padding(tmp_path):
    path = write(tmp_path / "a.nii.gz", noise(16, 16, 16))
    sound = path.read_bytes()
    path.write_bytes(sound + bytes(512))
    np.testing.assert_array_equal(read_nifti(path)[0], noise(16, 16, 16))
    path.write_bytes(sound + b"and more")
    with pytest.raises(UserError, match="cannot be read as NIfTI"):
        read_nifti(path)


def test_a_file_in_several_parts_of_gzip_is_one_file(tmp_path):
    raw = nib.Nifti1Image(noise(4, 4, 4), np.eye(4)).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]))
    np.testing.assert_array_equal(read_nifti(path)[0], noise(4, 4, 4))


def declaring(path, shape):
    """A file of a header alone, which tells of zeros in this ``shape``, float32."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header["sform_code"], header["vox_offset"] = 1, 352
    raw = header.binaryblock + bytes(4)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_small_file_that_tells_of_gigabytes_is_refused_before_it_is_read(tmp_path, name):
    path = declaring(tmp_path / name, (1000, 1000, 5000))
    assert path.stat().st_size < 400
    refused = rf"{name}: .*tells of 20000000352 bytes, it can hold only"
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=refused):
            read_nifti(path)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_the_largest_file_that_gzip_can_hold_is_read(tmp_path):
    empty = nib.Nifti1Image(np.zeros((128, 128, 128), np.uint8), np.eye(4)).to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(empty, 9))
    assert len(empty) / path.stat().st_size > 900
    assert not read_nifti(path)[0].any()


@pytest.mark.parametrize("part", ["image", "labels"])
def test_a_file_too_large_for_the_memory_is_not_called_damaged(tmp_path, monkeypatch, part):
    paths = {
        "image": write(tmp_path / "image.nii", noise(4, 4, 4)),
        "labels": write(tmp_path / "labels.nii", SOME),
    }
    reshaped = nifti._scaled

    def too_large(array, header, path):
        if path == paths[part]:
            raise MemoryError
        return reshaped(array, header, path)

    monkeypatch.setattr(nifti, "_scaled", too_large)
    with pytest.raises(UserError, match=rf"{part}.nii: its voxels do not fit into the memory"):
        load_scan(*paths.values(), id="a", subject="a", structures={1: 1})


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [3, -4, 5, 6, 1, 1, 1, 1]},
        {"dim": [3, 0, 5, 6, 1, 1, 1, 1]},
        {"dim": [0, 4, 5, 6, 1, 1, 1, 1]},
        {"dim": [8, 4, 5, 6, 1, 1, 1, 1]},
        {"dim": [3, 4, 5, 7, 1, 1, 1, 1]},
        {"dim": [3, 4, 5, 5, 1, 1, 1, 1]},
        {"datatype": 2},
        {"datatype": 64},
        {"datatype": 0},
        {"datatype": 1},
        {"vox_offset": -352},
        {"vox_offset": 352.5},
        {"vox_offset": 353},
        {"vox_offset": 1e30},
        {"vox_offset": np.nan},
        {"magic": b"n+3"},
        {"magic": b""},
        {"sizeof_hdr": 347},
        {"scl_slope": 2, "scl_inter": np.nan},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path, fields):
    with pytest.raises(UserError, match=r"a.nii: cannot be read as NIfTI .*is the file complete"):
        read_nifti(with_header(tmp_path / "a.nii", **fields))


@pytest.mark.parametrize("fields", [{"srow_x": [np.inf, 0, 0, 0]}, {"srow_y": [0, 1, 0, 1e9]}])
def test_a_place_beyond_all_bounds_is_refused(tmp_path, fields):
    with pytest.raises(UserError, match="not invertible, or leads beyond a kilometre"):
        read_nifti(with_header(tmp_path / "a.nii", **fields))


def test_extensions_of_the_header_and_nifti_2_are_read(tmp_path):
    array = rng().integers(0, 2**40, (3, 4, 5))
    image = nib.Nifti2Image(array, oblique(), dtype=np.int64)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1000))
    nib.save(image, tmp_path / "a.nii.gz")
    found, affine, _ = read_nifti(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found, array)
    np.testing.assert_allclose(affine, oblique(), atol=1e-12)


def test_what_is_compressed_is_told_by_its_bytes(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(nib.Nifti1Image(noise(4, 4, 4), np.eye(4)).to_bytes()))
    np.testing.assert_array_equal(read_nifti(path)[0], noise(4, 4, 4))


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


def longer(path):
    """One slice more than the header tells of."""
    raw = bytearray(nib.Nifti1Image(noise(4, 4, 5), np.eye(4)).to_bytes())
    raw[46:48] = struct.pack("<h", 4)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def of_a_pair(path):
    write(path, noise(4, 4, 4))
    path.write_bytes(path.read_bytes().replace(b"n+1\0", b"ni1\0"))


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
    "colours.nii": (colours, "its voxels are colours, .* one channel, as a grey image"),
    "complex.nii": (
        lambda path: write(path, noise(4, 4, 4).astype(np.complex64)),
        "its voxels are complex numbers, real ones were wanted: store their magnitude",
    ),
    "longer.nii": (longer, "it holds more bytes than its header tells of"),
    "longer.nii.gz": (longer, "it holds more bytes than its header tells of"),
    "endless.nii": (
        lambda path: patched(write(path, noise(4, 4, 4)), SLOPE, (np.inf, 0.0)),
        "its header scales by inf and adds 0",
    ),
    "pair.nii": (of_a_pair, "header and voxels are in two files: convert them to one"),
    "series.nii": (
        lambda path: write(path, noise(4, 4, 4, 2)),
        r"got shape \(4, 4, 4, 2\): store one volume per file",
    ),
    "vectors.nii": (lambda path: write(path, noise(4, 4, 4, 1, 3)), r"got shape \(4, 4, 4, 1, 3\)"),
    "line.nii": (lambda path: write(path, noise(9)), "a 2D or 3D image was wanted, got shape"),
    "nan.nii": (with_one(np.nan), "1 voxels are NaN, infinite or beyond .*: repair the image"),
    "inf.nii": (with_one(np.inf), "1 voxels are NaN, infinite or beyond .*: repair the image"),
    "constant.nii": (
        lambda path: write(path, np.full((4, 4, 4), 3.0)),
        "every voxel has the value 3",
    ),
    "zero.nii": (
        with_affine(*[0] * 12),
        "the affine in the header is not invertible.*: set the voxel size",
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
        (
            np.where(SOME == 1, 2.0**24, SOME).astype(np.float32),
            np.eye(4),
            r"labels from 2\^24 on are not exact in float32: store them as integers",
        ),
        (HOLES, np.eye(4), "labels must be whole numbers"),
        (PEAKS, np.eye(4), "labels must be whole numbers"),
        (SOME + 40, np.eye(4), r"none of the wanted labels \[1, 2\] occurs, found \[40, 41, 42\]"),
        (0 * SOME, np.eye(4), r"none of the wanted labels \[1, 2\] occurs, found \[\]"),
    ],
    ids=[
        "shape",
        "flat",
        "moved",
        "scaled",
        "fractions",
        "huge",
        "nan",
        "inf",
        "other numbers",
        "empty",
    ],
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


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_the_pixels_of_a_slice_lie_where_its_file_says_along_whichever_axis_it_is_thin(
    tmp_path, thin
):
    shape = [5, 6, 7]
    shape[thin] = 1
    affine = oblique()
    path = tmp_path / "slice.nii.gz"
    nib.save(nib.Nifti1Image(rng(0).random(shape).astype(np.float32), affine), path)
    scan = load_scan(path, None, id="a", subject="a", structures={})
    assert scan.shape == tuple(side for side in shape if side > 1)
    in_slice = np.array([1.0, 2.0])
    in_file = np.insert(in_slice, thin, 0.0)
    world = scan.affine.numpy()[:3, :2] @ in_slice + scan.affine.numpy()[:3, 3]
    assert world == pytest.approx(affine[:3, :3] @ in_file + affine[:3, 3])
