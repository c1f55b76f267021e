"""A warp applied to files: numbers copied, points sent, and what is refused.

That other programs say the same is in test_warp_files.py.
"""

import warnings

from deepatlas.apply import formats, transform
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from volumes import SLOPE, noise, oblique, patched, rng

SHAPE = (6, 7, 5)
SHIFT = np.array([1.0, -2.0, 1.5])  # millimetres, RAS


@pytest.fixture
def warp(tmp_path):
    """A warp that looks a voxel of 1 mm further: right, back, and one and a half up."""
    vectors = np.broadcast_to((SHIFT * (-1, -1, 1)).astype(np.float32), (*SHAPE, 3))
    write(tmp_path / "fixed.nii.gz", noise(*SHAPE))
    return formats.write_itk(vectors, tmp_path / "fixed.nii.gz", tmp_path / "warp.nii.gz")


def write(path, array, affine=None):
    made = nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    nib.save(made, path)
    return path


def applied(warp, path, kind="image", **more):
    return transform.apply_warp(warp, path, kind, warp.parent / "out", **more)


def test_an_image_is_pulled_and_zero_beyond_it(warp, tmp_path):
    array = noise(*SHAPE)
    path = write(tmp_path / "a.nii.gz", array)
    to = applied(warp, path)
    assert to == tmp_path / "out" / "a_warped.nii.gz"
    found = nib.load(to)
    assert found.get_data_dtype() == np.float32
    np.testing.assert_array_equal(found.affine, np.eye(4))
    expected = np.zeros(SHAPE)
    expected[:-1, 2:, :-2] = (array[1:, :-2, 1:-1] + array[1:, :-2, 2:]) / 2
    np.testing.assert_allclose(found.get_fdata(), expected, atol=1e-6)


def test_a_scaled_image_is_warped_as_its_header_says(warp, tmp_path):
    array = rng().integers(0, 9, SHAPE).astype(np.int16)
    plain = nib.load(applied(warp, write(tmp_path / "a.nii", array))).get_fdata()
    covered = np.zeros(SHAPE, bool)
    covered[:-1, 2:, :-2] = True
    path = patched(write(tmp_path / "b.nii", array), SLOPE, [0.5, 3.0])
    found = nib.load(applied(warp, path)).get_fdata()
    np.testing.assert_allclose(found, np.where(covered, 0.5 * plain + 3, 0), atol=1e-6)


def test_slabs_change_nothing(warp, tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii.gz", noise(9, 4, 6), oblique(origin=(-2, 0, 1)))
    whole = applied(warp, path).read_bytes()
    monkeypatch.setattr(formats, "SLAB", 1)
    assert applied(warp, path).read_bytes() == whole


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "uint64", "float32"])
def test_labels_are_copied_in_their_own_type(warp, tmp_path, dtype):
    """Numbers that no floating-point number holds, too."""
    largest = 2**24 - 1 if dtype == "float32" else np.iinfo(dtype).max
    numbers = np.zeros(SHAPE, dtype)
    numbers[3:5, 2:4, 2:4] = largest
    path = write(tmp_path / "a_labels.nii.gz", numbers)
    found = nib.load(applied(warp, path, "labels"))
    assert found.get_data_dtype() == np.dtype(dtype)
    expected = np.zeros(SHAPE, dtype)
    expected[2:4, 4:6, 0:2] = largest  # half a voxel goes up
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)


def test_labels_that_the_header_scales_are_what_they_mean(warp, tmp_path):
    """Such as a type too small was made to hold them."""
    numbers = np.zeros(SHAPE, np.int16)
    numbers[3:5, 2:4, 2:4] = 150
    path = patched(write(tmp_path / "a.nii", numbers), SLOPE, [2.0, 0.0])
    found = nib.load(applied(warp, path, "labels"))
    assert np.unique(found.get_fdata()).tolist() == [0, 300]
    assert found.get_data_dtype() == np.int16


def test_an_image_is_no_labels(warp, tmp_path):
    path = write(tmp_path / "a.nii.gz", noise(*SHAPE))
    with pytest.raises(UserError, match=r"a\.nii\.gz: labels must be whole numbers; this looks"):
        applied(warp, path, "labels")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_files_of_another_kind_are_refused(warp, tmp_path, kind):
    path = write(tmp_path / "a.nii.gz", noise(*SHAPE, 2))
    with pytest.raises(UserError, match="a 2D or 3D image was wanted, got shape"):
        applied(warp, path, kind)
    path = write(tmp_path / "b.nii.gz", np.zeros(SHAPE[:2], np.uint8))
    with pytest.raises(UserError, match=r"b\.nii\.gz: has 2 axes, and the warp .* is one of 3"):
        applied(warp, path, kind)
    with pytest.raises(FileNotFoundError, match=r"none\.nii\.gz: no such file"):
        applied(warp, tmp_path / "none.nii.gz", kind)
    with pytest.raises(UserError, match=r"warp\.nii\.gz: .*2D or 3D image was wanted"):
        applied(warp, warp, kind)


def test_an_image_is_no_warp(warp, tmp_path):
    with pytest.raises(UserError, match=r"fixed\.nii\.gz: a warp of ITK or ANTs was wanted"):
        transform.apply_warp(tmp_path / "fixed.nii.gz", tmp_path / "fixed.nii.gz")


def test_a_warped_image_can_be_put_anywhere(warp, tmp_path):
    path = write(tmp_path / "a.nii.gz", noise(*SHAPE))
    to = transform.write_warped(formats.read_warp(warp), path, tmp_path / "b.nii.gz")
    assert to.read_bytes() == applied(warp, path).read_bytes()


# --- points ---------------------------------------------------------------------------------------


def table(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("lps", [False, True])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_points_are_sent_and_other_columns_copied(warp, tmp_path, ending, lps):
    """As in ANTs' tables, and as they were written: "007" stays, and so does "NA"."""
    sign = -1 if lps else 1
    lines = [
        ["name", "x", "y", "z", "label"],
        ["007", f"{sign * 2}", f"{sign * 3}", "1", "1"],
        ["NA", f"{sign * 1.5}", f"{sign * 2.25}", "2", ""],
    ]
    separator = "," if ending == "csv" else "\t"
    text = "".join(separator.join(line) + "\n" for line in lines)
    to = applied(warp, table(tmp_path / f"p.{ending}", text), "points", lps=lps)
    assert to.name == f"p_warped.{ending}"
    found = [line.split(separator) for line in to.read_text().splitlines()]
    assert [line[0] for line in found] == ["name", "007", "NA"]
    assert [line[4] for line in found] == ["label", "1", ""]
    points = np.array([line[1:4] for line in found[1:]], float) * (sign, sign, 1)
    np.testing.assert_allclose(points, np.array([[2, 3, 1], [1.5, 2.25, 2]]) + SHIFT, atol=1e-4)


def test_points_beside_the_warp_stay_and_are_told_of(warp, tmp_path):
    path = table(tmp_path / "p.csv", "x,y,z\n2,3,1\n-0.6,0,0\n5.6,3,1\n5.4,3,1\n")
    with pytest.warns(UserWarning, match=r"2 of 4 points lie outside .* the inverse warp; .*--lps"):
        to = applied(warp, path, "points")
    found = pd.read_csv(to).to_numpy()
    np.testing.assert_allclose(found[1:3], [[-0.6, 0, 0], [5.6, 3, 1]])
    np.testing.assert_allclose(found[[0, 3]], np.array([[2, 3, 1], [5.4, 3, 1]]) + SHIFT)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "x,y\n1,2\n", r"p\.csv: not the table that was wanted, it has no column z"),
        ("p.csv", "X,Y,Z\n1,2,3\n", "it has no column x, y, z, only X, Y, Z"),
        ("p.csv", "x\ty\tz\n1\t2\t3\n", "it has no column x, y, z"),
        ("p.tsv", "x,y,z\n1,2,3\n", "it has no column x, y, z"),
        ("p.csv", "x,y,z\n1,2,a\n", "not every value of its column 'z' is a number"),
        (
            "p.csv",
            "x,y,z\n1,2,3\n1,,3\n",
            r"point 2 is \[1\.0, nan, 3\.0\]: finite numbers",
        ),
        ("p.csv", "x,y,z\n1,2\n", "not a valid table"),
        ("p.fcsv", "# Markups fiducial file\n", r"a table of points was wanted, \.csv or \.tsv"),
    ],
)
def test_tables_of_something_else_are_refused(warp, tmp_path, name, text, said):
    with pytest.raises(UserError, match=said):
        applied(warp, table(tmp_path / name, text), "points")
    assert not (tmp_path / "out").exists()


def test_no_points_are_no_mistake(warp, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to = applied(warp, table(tmp_path / "p.csv", "x,y,z,name\n"), "points")
    assert to.read_text() == "x,y,z,name\n"
