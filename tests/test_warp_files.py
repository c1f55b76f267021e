"""Warps as other programs read them: SimpleITK and ANTs warp the original files as the formula
says, evaluated by SciPy; and a file that they would not read is found out.
"""

import importlib
import os

from deepatlas.apply import formats, transform
from deepatlas.datasets.grid import centred_affine, resample
from deepatlas.datasets.nifti import load_scan
from deepatlas.errors import UserError
from deepatlas.warp import Deformation

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from volumes import oblique, rotation

LPS = np.array([-1.0, -1.0, 1.0])
NUMBERS = np.array([0, 17, 53, 2035], np.int16)
GRID = ((24, 32, 24), 2.0)  # the common grid of the scans: voxels, millimetres
MEAN, SAME, MILLIMETRES = 1e-5, 0.9999, 0.01  # what the readers must keep

# --- six kinds of geometry ------------------------------------------------------------------------


def las(spacing=(1.5, 1.5, 1.5)):
    affine = np.diag([-spacing[0], *spacing[1:], 1.0])
    affine[:3, 3] = (22, -20, -18)
    return affine


def anisotropic(spacing=(1.8, 2.2, 3.5)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-21, -30, -25)
    return affine


def everything():
    """LAS, oblique and anisotropic."""
    affine = las((1.8, 2.2, 3.5))
    affine[:3, :3] = rotation(11) @ rotation(-7, 0) @ affine[:3, :3]
    return affine


KINDS = {
    "LAS": (las(), las()),
    "oblique": (oblique((1.4, 1.2, 1.6)), oblique((1.5, 1.5, 1.3), degrees=-9)),
    "anisotropic": (anisotropic(), anisotropic()),
    "all": (everything(), everything()),
    "LAS to all": (las(), everything()),
    "aligned": (las(), everything()),  # and the affine of the moving scan is sheared
}
SHEARED = torch.tensor(
    [[1.05, 0.08, -0.03, -1.5], [0.02, 0.95, 0.1, 2.0], [-0.05, 0.04, 1.1, 0.7], [0, 0, 0, 1]],
    dtype=torch.float64,
)


def smooth(shape, sigma, seed):
    """Smooth noise of unit variance."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return noise / noise.std()


def deformation(shape, most=2.0, seed=0):
    """Smooth displacements of up to about ``most`` voxels."""
    u = np.stack([smooth(shape, 4, seed + axis) for axis in range(len(shape))])
    return torch.from_numpy(u * most / np.abs(u).max()).float()[None]


def generated(folder, kind):
    """(moving, its labels, fixed), files of one kind of geometry."""
    of_moving, of_fixed = KINDS[kind]
    image = smooth((30, 34, 22), 1.5, 5).astype(np.float32)
    files = {
        "moving": (image, of_moving),
        "labels": (NUMBERS[np.digitize(image, (-1, 0, 1))], of_moving),
        "fixed": (smooth((26, 32, 20), 1.5, 6).astype(np.float32), of_fixed),
    }
    for name, (array, affine) in files.items():
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return [folder / f"{name}.nii.gz" for name in files]


def scan_of(path, grid=GRID, alignment=None):
    """The scan on the common grid, as it is for a network."""
    own = load_scan(path, None, id=path.name, subject=path.name, structures={})
    shape, spacing = grid
    affine = centred_affine(own, shape, spacing)
    if alignment is not None:
        affine = affine @ alignment
    return resample(own, affine, shape)


class Pair:
    """A pair of files, of scans, a deformation, and the warp on disk."""

    def __init__(self, folder, files, grid=GRID, alignment=None):
        self.folder = folder
        self.moving, self.labels, self.fixed = files
        self.moving_scan = scan_of(self.moving, grid, alignment)
        self.fixed_scan = scan_of(self.fixed, grid)
        velocity = deformation(grid[0])
        self.phi = Deformation.exp(velocity)
        self.inverse = Deformation.exp(-velocity)
        self.displacement = formats.lps_displacement(self.phi, self.moving_scan, self.fixed_scan)
        self.warp = formats.write_itk(self.displacement, self.fixed, folder / "warp.nii.gz")

    def moving_points(self, voxels):
        """World coordinates (3, ...), RAS, in the moving image of ``voxels`` of the fixed file: the
        formula, by SciPy.
        """
        to_scan = np.linalg.inv(self.fixed_scan.affine.numpy()) @ nib.load(self.fixed).affine
        x = through(to_scan, voxels)
        u = self.phi.displacement[0].numpy()
        carried = [ndimage.map_coordinates(part, x, order=1, mode="nearest") for part in u]
        return through(self.moving_scan.affine.numpy(), x + np.stack(carried))

    def expected(self, path, order):
        """The file ``path`` warped onto the fixed file's grid, with ITK's border."""
        image = nib.load(path)
        array = image.get_fdata()
        voxels = np.indices(nib.load(self.fixed).shape[:3], dtype=np.float64)
        p = through(np.linalg.inv(image.affine), self.moving_points(voxels))
        if order == 0:
            p = np.floor(p + 0.5)  # as ITK rounds
        values = ndimage.map_coordinates(array, p, order=order, mode="nearest")
        sides = np.array(array.shape).reshape(3, 1, 1, 1)
        return np.where(((p >= -0.5) & (p < sides - 0.5)).all(0), values, 0)


def through(affine, points):
    return np.einsum("ij,j...->i...", affine[:3, :3], points) + affine[:3, 3].reshape(
        3, *[1] * (points.ndim - 1)
    )


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    alignment = SHEARED if request.param == "aligned" else None
    return Pair(folder, generated(folder, request.param), alignment=alignment)


@pytest.fixture(scope="module")
def las_to_all(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return Pair(folder, generated(folder, "LAS to all"))


# --- the readers ----------------------------------------------------------------------------------


def antspyx():
    """ANTs. Without it a test is skipped, or fails if DEEPATLAS_REQUIRE_ANTS is 1."""
    if os.environ.get("DEEPATLAS_REQUIRE_ANTS") == "1":
        return importlib.import_module("ants")
    return pytest.importorskip("ants", reason="make test installs antspyx: see the Makefile")


def by_simpleitk(pair, path, warp, nearest=False):
    """SimpleITK's Resample of the original file ``path``."""
    field = sitk.ReadImage(str(warp), sitk.sitkVectorFloat64)
    resampled = sitk.Resample(
        sitk.ReadImage(str(path), sitk.sitkInt32 if nearest else sitk.sitkFloat64),
        sitk.ReadImage(str(pair.fixed)),
        sitk.DisplacementFieldTransform(sitk.Image(field)),  # which empties what it is given
        sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear,
        0,
    )
    return sitk.GetArrayFromImage(resampled).T


def by_ants(pair, path, warp, nearest=False):
    """antsApplyTransforms of the original file ``path``."""
    ants = antspyx()
    return ants.apply_transforms(
        ants.image_read(str(pair.fixed)),
        ants.image_read(str(path)),
        [str(warp)],
        interpolator="nearestNeighbor" if nearest else "linear",
    ).numpy()


def by_the_kit(pair, path, warp, nearest=False):
    """``apply_warp``."""
    kind = "labels" if nearest else "image"
    return np.asarray(nib.load(transform.apply_warp(warp, path, kind, pair.folder)).dataobj)


READERS = {"SimpleITK": by_simpleitk, "ANTs": by_ants, "the kit": by_the_kit}


def check_image(pair, read, warp):
    found = read(pair, pair.moving, warp)
    expected = pair.expected(pair.moving, order=1)
    assert np.abs(found - expected).mean() < MEAN * np.ptp(expected)


def check_labels(pair, read, warp):
    found = read(pair, pair.labels, warp, nearest=True)
    expected = pair.expected(pair.labels, order=0)
    assert set(np.unique(found)) <= set(NUMBERS.tolist())
    assert (found == expected).mean() > SAME


@pytest.mark.parametrize("reader", READERS)
def test_images_are_warped_as_the_formula_says(pair, reader):
    check_image(pair, READERS[reader], pair.warp)


@pytest.mark.parametrize("reader", READERS)
def test_labels_are_warped_as_the_formula_says(pair, reader):
    check_labels(pair, READERS[reader], pair.warp)


def test_the_test_is_not_empty(pair):
    """The warp moves much, and the images overlap."""
    still = by_simpleitk(pair, pair.moving, zero_warp(pair))
    expected = pair.expected(pair.moving, order=1)
    assert np.abs(still - expected).mean() > 0.01 * np.ptp(expected)
    assert (expected != 0).mean() > 0.25
    assert np.unique(pair.expected(pair.labels, order=0)).tolist() == NUMBERS.tolist()


def zero_warp(pair):
    return formats.write_itk(0 * pair.displacement, pair.fixed, pair.folder / "zero.nii.gz")


# --- points ---------------------------------------------------------------------------------------


def points_of(pair, count=50):
    """Voxels of the fixed file (3, N), between voxels too, and where they are in LPS (N, 3)."""
    sides = np.array(nib.load(pair.fixed).shape[:3])
    voxels = np.random.default_rng(3).uniform(0, sides - 1, (count, 3)).T.round()
    return voxels, through(nib.load(pair.fixed).affine, voxels).T * LPS


def table_of(folder, points):
    table = pd.DataFrame(points, columns=["x", "y", "z"])
    table.insert(0, "name", [f"0{i}" for i in range(len(points))])
    table.to_csv(folder / "points.csv", index=False)
    return folder / "points.csv"


def test_points_go_from_fixed_to_moving(pair):
    voxels, points = points_of(pair)
    expected = pair.moving_points(voxels).T * LPS
    field = sitk.ReadImage(str(pair.warp), sitk.sitkVectorFloat64)
    to_moving = sitk.DisplacementFieldTransform(sitk.Image(field))
    found = {
        "SimpleITK": [to_moving.TransformPoint(point.tolist()) for point in points],
        "ANTs": antspyx().apply_transforms_to_points(
            3, pd.DataFrame(points, columns=["x", "y", "z"]), [str(pair.warp)]
        )[["x", "y", "z"]],
    }
    table = table_of(pair.folder, points)
    written = transform.apply_warp(pair.warp, table, "points", pair.folder, lps=True)
    ours = pd.read_csv(written, dtype={"name": str})
    assert ours["name"].tolist() == [f"0{i}" for i in range(len(points))]
    found["the kit"] = ours[["x", "y", "z"]]
    for reader, places in found.items():
        apart = np.linalg.norm(np.asarray(places) - expected, axis=1)
        assert apart.max() < MILLIMETRES, reader


def test_the_inverse_file_brings_points_back(pair):
    """Within the grids, where nothing was cut off."""
    back = formats.lps_displacement(pair.inverse, pair.fixed_scan, pair.moving_scan)
    inverse = formats.write_itk(back, pair.moving, pair.folder / "inverse.nii.gz")
    there, again = (
        sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
        for path in (pair.warp, inverse)
    )
    middle = np.array(nib.load(pair.fixed).shape[:3]) / 2
    voxels = middle + np.random.default_rng(1).uniform(-4, 4, (40, 3))
    points = through(nib.load(pair.fixed).affine, voxels.T).T * LPS
    moved = np.array([there.TransformPoint(point.tolist()) for point in points])
    returned = np.array([again.TransformPoint(point.tolist()) for point in moved])
    assert np.linalg.norm(moved - points, axis=1).mean() > 1
    # those that did not leave the moving image, beyond which its field ends
    voxels = through(np.linalg.inv(nib.load(pair.moving).affine), (moved * LPS).T)
    sides = np.array(nib.load(pair.moving).shape)[:, None]
    inside = ((voxels > 2) & (voxels < sides - 3)).all(0)
    assert inside.sum() > 10
    assert np.linalg.norm(returned - points, axis=1)[inside].max() < 0.25


# --- files that no reader takes -------------------------------------------------------------------


def four_axes(pair, vectors, affine):
    return nib.Nifti1Image(vectors, affine)


def no_intent(pair, vectors, affine):
    return nib.Nifti1Image(vectors[:, :, :, None], affine)


def of_intent(code):
    def image(pair, vectors, affine):
        made = nib.Nifti1Image(vectors[:, :, :, None], affine)
        made.header.set_intent(code, allow_unknown=True)
        return made

    return image


def with_nan(pair, vectors, affine):
    vectors = vectors.copy()
    vectors[1, 2, 3, 0] = np.nan
    return of_intent(1007)(pair, vectors, affine)


# each a file, and what ``read_warp`` says of it
WRONG = {
    "four axes": (four_axes, r"got the shape \(26, 32, 20, 3\); warps of four axes are those of"),
    "no intent": (no_intent, "its intent is none: programs of ITK would not take it"),
    "intent 1006": (of_intent(1006), "its intent is 1006, vectors in RAS: programs"),
    "intent of FSL": (of_intent(2006), "its intent is 2006"),
    "NaN": (with_nan, "1 of its numbers are NaN or infinite: look at the registration"),
}


def wrong_file(pair, kind):
    image = WRONG[kind][0](pair, pair.displacement, nib.load(pair.fixed).affine)
    path = pair.folder / f"wrong {kind}.nii.gz"
    nib.save(image, path)
    return path


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused(las_to_all, kind):
    with pytest.raises(UserError, match=WRONG[kind][1]):
        transform.apply_warp(
            wrong_file(las_to_all, kind), las_to_all.moving, "image", las_to_all.folder
        )


@pytest.mark.parametrize("kind", ["four axes", "no intent"])
def test_ants_applies_nothing_in_silence_and_the_check_finds_it(las_to_all, kind):
    pair = las_to_all
    wrong = wrong_file(pair, kind)
    untouched = by_ants(pair, pair.moving, zero_warp(pair))
    # all but a first plane, which is read from elsewhere
    assert np.isclose(by_ants(pair, pair.moving, wrong), untouched, atol=1e-5).mean() > 0.9
    with pytest.raises(AssertionError):
        check_image(pair, by_ants, wrong)
    with pytest.raises(AssertionError):
        check_labels(pair, by_ants, wrong)


@pytest.mark.parametrize("reader", READERS)
def test_vectors_in_ras_are_found_out(las_to_all, reader):
    pair = las_to_all
    ras = (pair.displacement * LPS).astype(np.float32)
    wrong = formats.write_itk(ras, pair.fixed, pair.folder / "ras.nii.gz")
    with pytest.raises(AssertionError):
        check_image(pair, READERS[reader], wrong)


def test_a_warp_on_the_common_grid_is_found_out(las_to_all):
    """Beyond it ITK moves nothing, and the kit goes on as at its border."""
    pair = las_to_all
    scan = pair.fixed_scan
    q = through(pair.moving_scan.affine.numpy(), pair.phi.points[0].double().numpy())
    x = np.indices(scan.shape, dtype=np.float64)
    d = np.moveaxis(q - through(scan.affine.numpy(), x), 0, -1) * LPS
    image = of_intent(1007)(pair, d.astype(np.float32), scan.affine.numpy())
    wrong = pair.folder / "common.nii.gz"
    nib.save(image, wrong)
    with pytest.raises(AssertionError):
        check_image(pair, by_simpleitk, wrong)


# --- planes ---------------------------------------------------------------------------------------


def planes(folder, thick, of_moving, of_fixed):
    """Two files of a plane, of two axes or one voxel ``thick``: (files, scans, moving image)."""
    image = smooth((40, 36), 1.5, 5).astype(np.float32)
    other = smooth((36, 44), 1.5, 6).astype(np.float32)
    files = [folder / "moving.nii.gz", folder / "fixed.nii.gz"]
    for array, affine, path in ((image, of_moving, files[0]), (other, of_fixed, files[1])):
        nib.save(nib.Nifti1Image(array[..., None] if thick else array, affine), path)
    scans = [
        load_scan(path, None, id=path.name, subject=path.name, structures={}) for path in files
    ]
    return files, scans, image


@pytest.mark.parametrize("thick", [False, True], ids=["two axes", "one thick"])
def test_a_plane_is_warped_as_the_formula_says(thick, tmp_path):
    """In SimpleITK and in ANTs; planes of two axes, and at two heights in volumes."""
    of_moving, of_fixed = las((1.5, 1.2, 1.0)), anisotropic((1.3, 1.4, 1.0))
    of_moving[2, 3], of_fixed[2, 3] = (16, 15) if thick else (0, 0)
    files, (moving, fixed), image = planes(tmp_path, thick, of_moving, of_fixed)
    phi = Deformation(deformation((36, 44)))
    displacement = formats.lps_displacement(phi, moving, fixed)
    warp = formats.write_itk(displacement, files[1], tmp_path / "warp.nii.gz")

    q = phi.points[0].double().numpy()
    world = through(moving.affine.numpy(), np.concatenate([q, 0 * q[:1]]))
    p = through(np.linalg.inv(of_moving), world)[:2]
    values = ndimage.map_coordinates(image, p, order=1, mode="nearest")
    sides = np.array(image.shape).reshape(2, 1, 1)
    of_scan = np.where(((p >= -0.5) & (p < sides - 0.5)).all(0), values, 0)
    # a volume was turned into RAS
    x = np.indices((36, 44, 1), dtype=np.float64)
    i, j = through(fixed.to_source.numpy(), x)[:2, ..., 0].round().astype(int)
    expected = np.empty_like(of_scan)
    expected[i, j] = of_scan

    field = sitk.ReadImage(str(warp), sitk.sitkVectorFloat64)
    read = [sitk.ReadImage(str(path)) for path in files]
    resampled = sitk.Resample(*read, sitk.DisplacementFieldTransform(field))
    ants = antspyx()
    fixed_image, moving_image = (ants.image_read(str(path)) for path in files[::-1])
    kit = nib.load(transform.apply_warp(warp, files[0], "image", tmp_path))
    assert kit.shape == nib.load(files[1]).shape
    found = {
        "SimpleITK": sitk.GetArrayFromImage(resampled).T,
        "ANTs": ants.apply_transforms(fixed_image, moving_image, [str(warp)]).numpy(),
        "the kit": kit.get_fdata(),
    }
    for reader, array in found.items():
        difference = array.reshape(expected.shape) - expected
        assert np.abs(difference).mean() < MEAN * np.ptp(expected), reader


@pytest.mark.parametrize("which", ["moving", "fixed"])
def test_a_plane_of_two_axes_that_itk_would_misread_is_refused(which, tmp_path):
    straight, tilted = las((1.5, 1.2, 1.0)), las((1.5, 1.2, 1.0))
    turned = np.radians(20)
    tilted[:3, :3] = [
        [-1.5 * np.cos(turned), 0, np.sin(turned)],
        [0, 1.2, 0],
        [1.5 * np.sin(turned), 0, np.cos(turned)],
    ]
    affines = (tilted, straight) if which == "moving" else (straight, tilted)
    files, (moving, fixed), _ = planes(tmp_path, False, *affines)
    phi = Deformation(deformation((36, 44)))
    with pytest.raises(UserError, match=r"fixed\.nii\.gz: .*one voxel thick"):
        displacement = formats.lps_displacement(phi, moving, fixed)
        formats.write_itk(displacement, files[1], tmp_path / "warp.nii.gz")


# --- real scans -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_pair(real_data, tmp_path_factory):
    """Two hippocampi, as they were published."""
    home = real_data / "hippocampus"
    names = sorted(path.name for path in (home / "labelsTr").glob("*.nii.gz"))[:2]
    moving, fixed = (home / "imagesTr" / name for name in names)
    folder = tmp_path_factory.mktemp("real")
    return Pair(folder, (moving, home / "labelsTr" / names[0], fixed), ((40, 56, 40), 1.0), SHEARED)


@pytest.mark.parametrize("reader", READERS)
def test_real_scans_are_warped_as_the_formula_says(real_pair, reader):
    check_image(real_pair, READERS[reader], real_pair.warp)
    found = READERS[reader](real_pair, real_pair.labels, real_pair.warp, nearest=True)
    assert (found == real_pair.expected(real_pair.labels, order=0)).mean() > SAME
    assert np.unique(found).tolist() == [0, 1, 2]
