"""Files for other programs: geometry kept to the bit, numbers exact, names and colours, warps."""

import gzip
import re
from dataclasses import replace
from types import SimpleNamespace

from deepatlas import plots
from deepatlas.apply import formats
from deepatlas.data import Scan
from deepatlas.datasets.nifti import load_scan
from deepatlas.errors import UserError
from deepatlas.warp import Deformation

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from volumes import noise, oblique, rng

SHAPE = (6, 7, 5)
STRUCTURES = {'the "left"\ncaudate': (11,), "cortex": (3, 42), "stem": (2035,)}


def image(path, array=None, affine=None, kind=nib.Nifti1Image, **header):
    """A file whose header fields are set as they are given."""
    made = kind(noise(*SHAPE) if array is None else array, oblique() if affine is None else affine)
    for field, value in header.items():
        made.header[field] = value
    nib.save(made, path)
    return path


def labels(*shape, seed=0):
    return rng(seed).choice(np.array([0, 11, 42, 2035]), size=shape or SHAPE)


# --- labels ---------------------------------------------------------------------------------------

ODD = {
    "codes of their own": {"sform_code": 2, "qform_code": 4},
    "no qform": {"qform_code": 0},
    "no sform": {"sform_code": 0, "qform_code": 1},
    "metres": {"xyzt_units": 1},
    "two places": {"qoffset_x": 50.0},
    "a qform that is none": {"quatern_b": 3.0, "quatern_c": 2.0},
    "a scale": {"scl_slope": 2.0, "scl_inter": -7.0},
    "a negative side": {"pixdim": [1, -1, 1.2, 0.9, 0, 0, 0, 0]},
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_labels_keep_the_geometry_of_the_file_to_the_bit(tmp_path, odd, kind):
    like = image(tmp_path / "like.nii.gz", kind=kind)
    raw = bytearray(gzip.decompress(like.read_bytes()))
    header = kind.header_class(bytes(raw[: kind.header_class.sizeof_hdr]), check=False)
    for field, value in ODD[odd].items():
        header[field] = value
    raw[: header.sizeof_hdr] = header.binaryblock
    like.write_bytes(gzip.compress(bytes(raw)))

    numbers = labels()
    to = formats.write_labels(numbers, like, tmp_path / "out" / "like_labels.nii.gz", "int16")
    written = gzip.decompress(to.read_bytes())
    after = kind.header_class(written[: header.sizeof_hdr], check=False)
    for field in formats.PLACE:
        np.testing.assert_array_equal(after[field], header[field])
    assert after.get_data_dtype() == np.int16 and after.get_intent()[0] == "label"
    slope = [float(after[field]) for field in ("scl_slope", "scl_inter")]
    assert slope == [1, 0]
    stored = np.frombuffer(written, np.int16, offset=int(after["vox_offset"]))
    np.testing.assert_array_equal(stored.reshape(SHAPE, order="F"), numbers)


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1), SHAPE[:2], (*SHAPE[:2], 1)])
@pytest.mark.parametrize("dtype", ["", "uint16", "int32", "int64", "uint64", "float32", "float64"])
def test_labels_lie_where_the_image_does_in_other_programs(tmp_path, shape, dtype):
    affine = np.diag([-1.5, 2.0, 1.2, 1.0]) if len(shape) == 2 else oblique()
    like = image(tmp_path / "like.nii.gz", noise(*shape), affine)
    numbers = labels(*shape[:3])
    to = formats.write_labels(numbers, like, tmp_path / "labels.nii.gz", dtype)
    ours, theirs = sitk.ReadImage(str(to)), sitk.ReadImage(str(like))
    for place in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(ours, place)() == getattr(theirs, place)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours).T, numbers)
    assert nib.load(to).get_data_dtype() == np.dtype(dtype or "int16")


def test_labels_are_never_stored_as_others(tmp_path):
    like = image(tmp_path / "like.nii")
    too_large = {"uint8": 256, "uint16": -1, "float32": 2**24 + 1, "int32": 2**31}
    for dtype, largest in too_large.items():
        numbers = np.zeros(SHAPE, np.int64)
        numbers[0] = largest
        with pytest.raises(UserError, match=f"labels from .* do not fit into {dtype}"):
            formats.write_labels(numbers, like, tmp_path / "labels.nii", dtype)
    with pytest.raises(TypeError, match="labels must be integers, got float64"):
        formats.write_labels(np.zeros(SHAPE), like, tmp_path / "labels.nii")
    with pytest.raises(ValueError, match=r"labels of \(5, 7, 6\) voxels do not lie on"):
        formats.write_labels(np.zeros(SHAPE[::-1], int), like, tmp_path / "labels.nii")
    assert not (tmp_path / "labels.nii").exists()


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ([0, 255], "uint8"),
        ([0, 256], "int16"),
        ([-1, 3], "int16"),
        ([0, 2**15], "int32"),
        ([0, 2**31], "int64"),
        ([0, 2**64 - 1], "uint64"),
    ],
)
def test_the_smallest_type_holds_all_numbers(numbers, name):
    dtype = np.uint64 if max(numbers) > 2**62 else np.int64
    assert formats.smallest_dtype(np.array(numbers, dtype)) == name


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_same_input_gives_the_same_bytes_and_no_other_file(tmp_path, ending, monkeypatch):
    like = image(tmp_path / "like.nii.gz")
    to = tmp_path / f"labels{ending}"
    formats.write_labels(labels(), like, to)
    first = to.read_bytes()
    monkeypatch.setattr("time.time", lambda: 0.0)
    formats.write_labels(labels(), like, to)
    assert to.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([to.name, "like.nii.gz"])


def test_a_file_of_another_ending_is_refused(tmp_path):
    like = image(tmp_path / "like.nii.gz")
    with pytest.raises(UserError, match=r"labels\.mgz: a name that ends in \.nii or \.nii\.gz was"):
        formats.write_labels(labels(), like, tmp_path / "labels.mgz")


def test_what_is_there_already_is_not_overwritten_without_force(tmp_path):
    path = image(tmp_path / "a.nii")
    formats.check_free(tmp_path / "b.nii", force=False)
    formats.check_free(path, force=True)
    with pytest.raises(UserError, match=r"a\.nii: is there already: name another .*--force"):
        formats.check_free(path, force=False)


# --- names and colours ----------------------------------------------------------------------------


def test_a_sidecar_tells_which_numbers_mean_which_structure(tmp_path):
    path = tmp_path / "a_labels.json"
    structures = {'the "left" caudate': (11,), "cortex": (3, 42), "stem": (2035,)}
    formats.write_sidecar(structures, path, {"model": "m"})
    assert formats.read_sidecar(path) == structures
    assert '"model": "m"' in path.read_text()
    path.write_text('{"hippocampus": [17, 53], "stem": 16}')
    assert formats.read_sidecar(path) == {"hippocampus": (17, 53), "stem": (16,)}


@pytest.mark.parametrize(
    "content",
    ["[1]", "{}", "3", '{"a": "b"}', '{"a": []}', '{"a": 1.5}', '{"a": true}', '{"a": {"b": 1}}'],
)
def test_a_sidecar_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"names\.json: names and numbers were wanted, as in .*got"):
        formats.read_sidecar(path)


def test_colour_tables_have_the_colours_of_the_viewers(tmp_path):
    """In the columns of ITK-SNAP, and in those of Slicer."""
    snap, slicer = formats.write_colours(STRUCTURES, tmp_path)
    assert (snap.name, slicer.name) == ("labels.label.txt", "labels.ctbl")
    row = re.compile(r'^ *(\d+) +(\d+) +(\d+) +(\d+) +(\S+) +(\d) +(\d) +"(.*)"$', re.MULTILINE)
    rows = row.findall(snap.read_text())
    colours = plots.colour_bytes(len(STRUCTURES) + 1)
    wanted = [(0, *colours[0], "0", 0, 0, "Clear Label")]
    names = ("the 'left' caudate", "cortex", "stem")
    for name, numbers, colour in zip(names, STRUCTURES.values(), colours[1:], strict=True):
        wanted += [(number, *colour, "1", 1, 1, name) for number in numbers]
    assert rows == [tuple(map(str, row)) for row in wanted]

    lines = [line.split(" ") for line in slicer.read_text().splitlines() if line[0] != "#"]
    assert [int(line[0]) for line in lines] == [0, 11, 3, 42, 2035]
    assert [line[1] for line in lines[1:]] == ["the_'left'_caudate", "cortex", "cortex", "stem"]
    assert [list(map(int, line[2:5])) for line in lines[1:]] == [
        list(row[1:4]) for row in wanted[1:]
    ]
    assert [line[5] for line in lines] == ["0", *["255"] * 4]


def test_colour_tables_of_other_structures_are_not_overwritten(tmp_path):
    formats.write_colours(STRUCTURES, tmp_path)
    formats.write_colours(STRUCTURES, tmp_path)  # a second segmentation by the same model
    with pytest.raises(UserError, match="with the colours of other structures: name another"):
        formats.write_colours({"other": (1,)}, tmp_path)
    formats.write_colours({"other": (1,)}, tmp_path, force=True)
    assert '"other"' in (tmp_path / "labels.label.txt").read_text()


# --- displacements --------------------------------------------------------------------------------


def scan(path):
    return load_scan(path, None, id=path.name, subject=path.name, structures={})


@pytest.fixture
def pair(tmp_path):
    """Two files, their scans on their own grids, and a deformation."""
    moving = scan(image(tmp_path / "moving.nii.gz", affine=oblique((1.1, 1.3, 0.8), 20)))
    fixed = scan(image(tmp_path / "fixed.nii.gz", noise(*SHAPE, seed=1)))
    phi = Deformation(torch.from_numpy(rng().normal(size=(1, 3, *fixed.shape))).float())
    return SimpleNamespace(moving=moving, fixed=fixed, phi=phi)


def lps_of(pair):
    return formats.lps_displacement(pair.phi, pair.moving, pair.fixed)


def test_a_displacement_is_the_way_between_two_places(pair):
    """On the fixed file's own voxels, of which ``phi`` is known."""
    q = pair.phi.points[0].double()
    places = []
    for affine, points in ((pair.moving.affine, q), (pair.fixed.affine, None)):
        if points is None:
            points = torch.from_numpy(np.indices(pair.fixed.shape)).double()
        shift = affine[:3, 3].view(3, 1, 1, 1)
        places.append(torch.einsum("ij,j...->i...", affine[:3, :3], points) + shift)
    there, here = places
    expected = ((there - here) * torch.tensor([-1, -1, 1]).view(3, 1, 1, 1)).movedim(0, -1)
    found = lps_of(pair)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_slabs_change_nothing(pair, monkeypatch):
    whole = lps_of(pair)
    monkeypatch.setattr(formats, "SLAB", 1)
    np.testing.assert_array_equal(lps_of(pair), whole)


def test_scans_that_were_not_read_from_files_have_no_warp(pair):
    made = Scan("made", "made", pair.fixed.image, pair.fixed.affine)
    with pytest.raises(UserError, match=r"moving\.nii\.gz to made: a warp for other programs"):
        formats.lps_displacement(pair.phi, pair.moving, made)


def test_a_deformation_of_another_grid_is_a_bug(pair):
    with pytest.raises(ValueError, match=r"one deformation of the fixed scan's \(6, 7, 5\) voxels"):
        formats.lps_displacement(Deformation.identity((6, 7, 4)), pair.moving, pair.fixed)
    with pytest.raises(ValueError, match="one deformation"):
        formats.lps_displacement(Deformation.identity(SHAPE, batch=2), pair.moving, pair.fixed)


def test_a_plane_of_a_volume_cannot_warp_the_volume(pair):
    flat = replace(pair.fixed, image=pair.fixed.image[..., 0])
    with pytest.raises(UserError, match=r"fixed\.nii\.gz: is a volume, and one plane of it was"):
        formats.lps_displacement(Deformation.identity(SHAPE[:2]), pair.moving, flat)


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE[:2], 1)])
def test_axes_of_one_voxel_are_no_hindrance(tmp_path, shape):
    own = scan(image(tmp_path / "a.nii.gz", noise(*shape)))
    u = torch.full((1, len(own.shape), *own.shape), 0.5)
    displacement = formats.lps_displacement(Deformation(u), own, own)
    assert displacement.shape == (*shape[:3], 3)
    written = formats.write_itk(displacement, tmp_path / "a.nii.gz", tmp_path / "warp.nii.gz")
    assert formats.read_warp(written).shape == shape[:3]


def test_a_plane_one_voxel_thick_is_warped_in_its_plane(tmp_path):
    """A sagittal file, whose scan is its plane."""
    own = scan(image(tmp_path / "a.nii.gz", noise(1, 8, 9)))
    phi = Deformation(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 8, 9))
    displacement = formats.lps_displacement(phi, own, own)
    expected = (own.affine[:3, 0] + 2 * own.affine[:3, 1]).numpy() * (-1, -1, 1)
    np.testing.assert_allclose(displacement, np.broadcast_to(expected, (1, 8, 9, 3)), atol=1e-5)


# --- warps ----------------------------------------------------------------------------------------


def test_a_warp_says_where_it_lies_and_what_it_is(pair, tmp_path):
    fixed = image(tmp_path / "fixed.nii.gz", xyzt_units=1)  # in metres
    pair.fixed = scan(fixed)
    displacement = lps_of(pair)
    path = formats.write_itk(displacement, fixed, tmp_path / "warp.nii.gz")
    header = nib.load(path).header
    assert header.get_data_shape() == (*SHAPE, 1, 3) and header["intent_code"] == 1007
    assert header.get_data_dtype() == np.float32
    for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
        np.testing.assert_allclose(form, np.diag([1e3, 1e3, 1e3, 1]) @ oblique(), atol=0.01)
        assert code == 1
    assert header.get_xyzt_units()[0] == "mm"
    back = formats.read_warp(path)
    np.testing.assert_array_equal(back.displacement, displacement)
    np.testing.assert_allclose(back.affine, pair.fixed.source.affine, rtol=1e-6)
    theirs, ours = (sitk.ReadImage(str(file)) for file in (fixed, path))
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), rtol=1e-5)
    np.testing.assert_allclose(ours.GetDirection(), theirs.GetDirection(), atol=1e-5)


def test_grids_that_itk_does_not_know_are_refused(tmp_path):
    sheared = oblique()
    sheared[:3, 0] += 0.1 * sheared[:3, 1]
    path = image(tmp_path / "a.nii.gz", affine=sheared, qform_code=0)
    with pytest.raises(UserError, match=r"a\.nii\.gz: its voxels are sheared, and ITK knows only"):
        formats.write_itk(np.zeros((*SHAPE, 3)), path, tmp_path / "warp.nii.gz")
    path = image(tmp_path / "b.nii.gz", noise(6, 7), affine=oblique(degrees=30))
    with pytest.raises(UserError, match=r"b\.nii\.gz: its plane is not axial"):
        formats.write_itk(np.zeros((6, 7, 2)), path, tmp_path / "warp.nii.gz")
    with pytest.raises(ValueError, match="do not lie on"):
        formats.write_itk(np.zeros((7, 6, 2)), path, tmp_path / "warp.nii.gz")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((6, 7), "(6, 7)"),
        (SHAPE, "(6, 7, 5)"),
        ((3, *SHAPE), "(3, 6, 7, 5)"),
        ((*SHAPE, 1, 2), "(6, 7, 5, 1, 2)"),
        ((*SHAPE, 1, 4), "(6, 7, 5, 1, 4)"),
        ((*SHAPE, 2, 3), "(6, 7, 5, 2, 3)"),
    ],
)
def test_images_and_other_fields_are_no_warps(tmp_path, shape, said):
    path = image(tmp_path / "a.nii.gz", noise(*shape), intent_code=1007)
    with pytest.raises(UserError, match=f"a warp of ITK.*got the shape {re.escape(said)}"):
        formats.read_warp(path)


def test_a_damaged_warp_is_found_out(pair, tmp_path):
    path = formats.write_itk(lps_of(pair), pair.fixed.source.path, tmp_path / "warp.nii.gz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"warp\.nii\.gz: cannot be read as NIfTI"):
        formats.read_warp(path)
    with pytest.raises(FileNotFoundError, match=r"none\.nii: no such file"):
        formats.read_warp(tmp_path / "none.nii")


# --- Learn2Reg ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npz", ".nii.gz"])
def test_a_warp_of_learn2reg_is_in_voxels_of_the_files(pair, tmp_path, ending):
    """v = p - y, p by the affines that are stored."""
    fixed, moving = pair.fixed.source.path, pair.moving.source.path
    path = formats.write_learn2reg(lps_of(pair), fixed, moving, tmp_path / f"disp{ending}")
    if ending == ".npz":
        (found,) = np.load(path).values()
    else:
        found = np.asarray(nib.load(path).dataobj)
        np.testing.assert_allclose(nib.load(path).affine, nib.load(fixed).affine, atol=1e-5)
    y = np.indices(SHAPE)
    q = pair.phi.points[0].double().numpy()  # both scans lie on the grids of their files
    to_file = pair.moving.to_source.numpy()
    p = np.einsum("ij,j...->i...", to_file[:3, :3], q) + to_file[:3, 3].reshape(3, 1, 1, 1)
    assert found.dtype == np.float32 and found.shape == (*SHAPE, 3)
    np.testing.assert_allclose(found, np.moveaxis(p - y, 0, -1), atol=1e-4)


def test_the_bytes_of_learn2reg_are_the_same_each_time(pair, tmp_path):
    fixed, moving = pair.fixed.source.path, pair.moving.source.path
    for ending in (".npz", ".nii.gz"):
        path = tmp_path / f"disp{ending}"
        first = formats.write_learn2reg(lps_of(pair), fixed, moving, path).read_bytes()
        assert formats.write_learn2reg(lps_of(pair), fixed, moving, path).read_bytes() == first


def test_a_plane_has_no_warp_of_learn2reg(tmp_path):
    path = image(tmp_path / "a.nii.gz", noise(6, 7), affine=np.eye(4))
    with pytest.raises(UserError, match=r"a\.nii\.gz: has two axes, and a warp of Learn2Reg is"):
        formats.write_learn2reg(np.zeros((6, 7, 2)), path, path, tmp_path / "disp.npz")


@pytest.mark.parametrize(
    ("fixed", "moving", "name"),
    [
        ("OASIS_0438_0000.nii.gz", "x/OASIS_0439_0001.nii.gz", "disp_0438_0000_0439_0001"),
        ("a.nii", "sub-1_T1w.nii.gz", "disp_a_0000_sub-1_T1w_0000"),
        ("A.NII", "B_0001.NII.GZ", "disp_A_0000_B_0001_0000"),
    ],
)
def test_names_are_those_of_learn2reg(fixed, moving, name):
    assert formats.learn2reg_name(fixed, moving) == name
