"""Trained networks on files: what comes back lies where the file lies, whatever its orientation."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from deepatlas import apply, experiments, losses, phantom
from deepatlas.apply import formats, pipeline, transform
from deepatlas.apply.model import Model, may_be_passed_on
from deepatlas.checkpoints import load_tensors, read_json, write_tensors
from deepatlas.datasets import describe, load_cohort, load_scan
from deepatlas.datasets.preparation import Preparation
from deepatlas.errors import UserError
from deepatlas.models import Registration, probabilities
from deepatlas.parameters import parse
from deepatlas.records import read_record, write_record
from deepatlas.warp import sample, voxel_grid

import nibabel as nib
import numpy as np
import pytest
import torch
from folders import write_case, write_dataset
from scipy import ndimage
from torch import nn
from volumes import noise, oblique, reoriented, write

# --- a body that is a formula, files of it, and networks that see it exactly ----------------------

STRUCTURES = ("background", "shell", "core")
NUMBERS = ((7, 8), (300,))
CENTRE = np.array([4.0, -3.0, 6.0])  # mm, of the body in the world
AXES = np.array([26.0, 20.0, 15.0])  # mm, half the sides of the shell


def depth(points):
    """How deep points (..., 3) in mm lie in the body, about mm: 0 on the shell's outer surface."""
    inner = np.linalg.norm((points - CENTRE) / AXES, axis=-1)
    return (1 - inner) * AXES.mean()


def world(shape, affine):
    """(I, J, K, 3): where each voxel of a grid lies, mm."""
    index = np.stack(np.indices(shape, dtype=np.float64), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def drawn(points):
    """Air, tissue, shell and core, with soft edges: after rescaling 0, 0, 1/2 and 1."""
    deep = depth(points)
    body = np.clip(deep / 4 + 0.5, 0, 1) + np.clip((deep - 8) / 4 + 0.5, 0, 1)
    return (100 + 200 * body) * (depth(points) > -12)


def truth_at(points):
    """Label numbers: the edges where the drawing is halfway."""
    deep = depth(points)
    return np.where(deep > 8, 300, np.where(deep > 0, 7, 0))


class Threshold(nn.Module):
    """Scores that say shell above 1/4, core above 3/4."""

    def __init__(self):
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(40.0))

    def forward(self, image):
        levels = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, *[1] * (image.ndim - 2))
        return -self.steepness * (image - levels).square()


class Waves(nn.Module):
    """A smooth displacement, or velocity, of about two voxels."""

    def __init__(self, size=1.0):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(size))

    def forward(self, moving, fixed):
        grid = voxel_grid(tuple(fixed.shape[2:]), fixed)[None]
        count = grid.shape[1]
        waves = [torch.sin(grid[:, i] / 7 + grid[:, (i + 1) % count] / 9) for i in range(count)]
        return self.size * torch.stack(waves, 1)


def fake(shape=(40, 40, 32), spacing=2.0, reference=None, **more):
    """A model that was never trained."""
    flat = len(shape) == 2
    volume = ((*shape, shape[0]), spacing) if flat else (shape, spacing)
    options = {
        "name": "fake",
        "nets": {
            "seg": Threshold().eval(),
            "reg": Registration(Waves(), velocity=True, passes=2).eval(),
        },
        "experiment": {"similarity": "lncc", "lambda_r": 0.2, "lambda_a": 0.5},
        "structures": STRUCTURES,
        "label_numbers": NUMBERS,
        "label_dtype": "int16",
        "preparation": Preparation(volume, (shape, spacing), reference),
        "aligned": reference is not None,
    }
    return Model(**{**options, **more})


def placed(spacing, origin=(-35.0, -30.0, -22.0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


FINE = ((52, 48, 40), placed((1.5, 1.4, 1.5)))
ROUGH = ((42, 30, 16), placed((1.8, 2.2, 3.5)))
TURNED = ((48, 42, 38), oblique((1.6, 1.6, 1.6), origin=(-44.0, -27.0, -26.0)))
LONG = ((42, 40, 22), oblique((1.8, 1.7, 2.9), origin=(-44.0, -27.0, -26.0)))
KINDS = {
    "RAS": (FINE, None),
    "LAS": (FINE, ((0, 1, 2), (-1, 1, 1))),
    "PSR": (FINE, ((1, 2, 0), (-1, 1, 1))),
    "oblique": (TURNED, None),
    "anisotropic": (ROUGH, None),
    "all": (
        ((42, 40, 22), oblique((1.8, 1.7, 2.9), origin=(-44.0, -27.0, -26.0))),
        ((2, 0, 1), (-1, -1, 1)),
    ),
}


def file_of(folder, kind="RAS", name="scan", four_axes=False, draw=drawn):
    """A file of the body in one of ``KINDS``, and the truth on its own grid."""
    (shape, affine), turned = KINDS[kind]
    image, truth = draw(world(shape, affine)), truth_at(world(shape, affine))
    if turned:
        truth, _ = reoriented(truth, affine, *turned)
        image, affine = reoriented(image, affine, *turned)
    image = image.astype(np.float32)[..., None] if four_axes else image.astype(np.float32)
    return write(folder / f"{name}.nii.gz", image, affine), truth


def dice(found, truth, number):
    a, b = found == number, truth == number
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# --- segmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("aligned", [False, True], ids=["centred", "aligned"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_known_shape_comes_back_on_the_files_own_grid(kind, aligned, tmp_path):
    file, truth = file_of(tmp_path, kind)
    reference = None
    if aligned:  # a body elsewhere on the grid, larger and leaning: what is stored is not RAS
        points = world((40, 40, 32), placed((2.0, 2.0, 2.0), (-37.0, -43.0, -22.0)))
        leaning = points @ (np.eye(3) + 0.06 * np.ones((3, 3))).T
        grey = drawn(leaning) / 500
        reference = torch.from_numpy(grey).float()[None]
    found = apply.segment(file, fake(reference=reference))
    assert found.labels.shape == truth.shape and found.labels.dtype == np.int16
    assert set(np.unique(found.labels)) == {0, 7, 300}
    assert dice(found.labels, truth, 7) > 0.97 and dice(found.labels, truth, 300) > 0.97
    if aligned:
        linear = found.scan.affine[:3, :3]
        assert (linear - torch.diag(linear.diag())).abs().max() > 0.02


def test_a_file_of_four_axes_that_holds_one_volume(tmp_path):
    file, truth = file_of(tmp_path, four_axes=True)
    found = apply.segment(file, fake())
    assert found.labels.shape == (*truth.shape, 1)
    assert dice(found.labels[..., 0], truth, 300) > 0.97
    (labels, *_) = found.save(tmp_path / "out")
    assert nib.load(labels).shape == (*truth.shape, 1)


def test_of_a_file_with_several_images_the_models_own_is_taken(tmp_path):
    """As of the prostates of the Decathlon, whose files hold two contrasts."""
    names = ("one", "two")
    alone = [file_of(tmp_path, "LAS", name=name)[0] for name in names]
    several = []
    for path in alone:
        stored = nib.load(path)
        image = np.asarray(stored.dataobj)
        both = np.stack([image.max() - image, image], -1)
        several.append(tmp_path / "several" / path.name)
        several[-1].parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(both, stored.affine), several[-1])
    model = fake(channel=1)
    found = apply.segment(several[0], model)
    assert np.array_equal(found.labels, apply.segment(alone[0], model).labels)
    (labels, *_) = found.save(tmp_path / "out")
    assert nib.load(labels).shape == nib.load(alone[0]).shape
    pair = apply.register(*several, model, inverse=True)
    written = pair.save(tmp_path / "out")
    by_one = apply.register(*alone, model).save(tmp_path / "alone")
    warped = [np.asarray(nib.load(paths[-2]).dataobj) for paths in (written, by_one)]
    assert np.array_equal(*warped)
    pair.save(tmp_path / "challenge", format="learn2reg")
    with pytest.raises(UserError, match="store one volume per file, or name one of them"):
        apply.segment(several[0], fake())
    with pytest.raises(UserError, match="volume 5, counted from 0"):
        apply.segment(several[0], fake(channel=5))


def test_on_a_grid_of_the_same_voxels_nothing_is_interpolated(tmp_path):
    """A file with noise of its own in every voxel, LAS, larger than the grid on two sides."""
    values = 1 + noise(47, 40, 30, seed=3)
    values[:, :20] = 0
    stored, affine = reoriented(values, placed((2.0, 2.0, 2.0)), (0, 1, 2), (-1, 1, 1))
    file = write(tmp_path / "noise.nii.gz", stored, affine)
    found = apply.segment(file, fake())
    original = load_scan(file, None, id="a", subject="a", structures={})
    grey = original.image[0].flip(0).numpy()  # as it is stored
    wanted = np.where(grey > 0.75, 300, np.where(grey > 0.25, 7, 0))
    # of 47 planes the grid leaves out three on the left and four on the right, which come first
    wanted[:4], wanted[44:] = 0, 0
    assert np.array_equal(found.labels, wanted)
    assert found.outside == pytest.approx(7 / 47)


def test_probabilities_lead_back_better_than_the_nearest_labels(tmp_path):
    file, truth = file_of(tmp_path, "oblique")
    found = apply.segment(file, fake(shape=(24, 24, 16), spacing=4.0))
    matrix = torch.linalg.inv(found.scan.to_source).numpy()
    index = np.indices(truth.shape).reshape(3, -1)
    near = np.rint(matrix[:3, :3] @ index + matrix[:3, 3:]).astype(int)
    inside = ((near >= 0) & (found.scan.shape > near.T).T).all(0)
    near = np.where(inside, near, 0)
    nearest = np.array([0, 7, 300])[found.scan.labels.numpy()[tuple(near)]] * inside
    nearest = nearest.reshape(truth.shape)
    for number in (7, 300):
        assert dice(found.labels, truth, number) > dice(nearest, truth, number) + 0.015


def test_what_is_not_interpolated_would_have_come_out_the_same(tmp_path, monkeypatch):
    """Random probabilities, in which neighbours often agree; slabs of one plane or of many."""
    file, _ = file_of(tmp_path, "all")
    scan = fake().prepare(load_scan(file, None, id="a", subject="a", structures={}))
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(4, 10, 10, 8, generator=generator)
    scores = nn.functional.interpolate(rough[None], size=scan.shape, mode="trilinear")[0]
    probabilities = (scores + 0.02 * torch.rand(scores.shape, generator=generator)).softmax(0)
    index = np.indices(scan.source.shape).reshape(3, -1)
    matrix = torch.linalg.inv(scan.to_source).numpy()
    points = torch.from_numpy(matrix[:3, :3] @ index + matrix[:3, 3:])
    sides = torch.tensor(scan.shape)[:, None]
    inside = ((points >= -0.5) & (points <= sides - 0.5)).all(0)
    everywhere = sample(probabilities[None], points[None].float())[0].argmax(0)
    wanted = torch.where(inside, everywhere, 0).view(scan.source.shape).numpy()
    for slab in (1, 5000, 2**20):
        monkeypatch.setattr(formats, "SLAB", slab)
        found, outside = pipeline.onto_file(probabilities, scan)
        assert np.mean(found == wanted) > 0.9999
        assert outside == pytest.approx(1 - inside.double().mean().item(), abs=1e-6)
    assert 0.02 < outside < 0.9


def test_what_lies_outside_the_grid_is_background_and_its_share_is_said(tmp_path):
    file, truth = file_of(tmp_path, "RAS")
    found = apply.segment(file, fake(shape=(24, 40, 32)))
    places_of = world(truth.shape, FINE[1])
    middle = places_of.reshape(-1, 3).mean(0)
    beyond = np.abs(places_of[..., 0] - middle[0]) > 24.0
    assert found.outside == pytest.approx(beyond.mean(), abs=0.02) and found.outside > 0.3
    assert not found.labels[beyond].any()
    saved = found.save(tmp_path / "out")
    assert read_json(saved[1])["outside"] == found.outside


def test_bfloat16_changes_few_voxels(tmp_path):
    file, _ = file_of(tmp_path)
    exact = apply.segment(file, fake())
    rough = apply.segment(file, fake().to("cpu", mixed_precision=True))
    assert np.mean(exact.labels == rough.labels) > 0.98


# --- slices ---------------------------------------------------------------------------------------


def slice_of(folder, axis, thick=False):
    """A plane of the body across one world axis, of two file axes or one voxel thick."""
    shape, affine = [48, 48, 48], placed((1.5, 1.5, 1.5))
    shape[axis] = 1
    affine[axis, 3] = CENTRE[axis]
    points = world(shape, affine)
    image, truth = drawn(points).astype(np.float32), truth_at(points)
    if not thick:
        order = [i for i in range(3) if i != axis] + [axis]
        image, truth = image.transpose(order)[..., 0], truth.transpose(order)[..., 0]
        affine = affine[:, [*order, 3]]
    return write(folder / "slice.nii.gz", image, affine), truth


@pytest.mark.parametrize("thick", [False, True], ids=["two axes", "one thick"])
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["sagittal", "coronal", "axial"])
def test_networks_of_slices_take_slices(axis, thick, tmp_path):
    file, truth = slice_of(tmp_path, axis, thick)
    found = apply.segment(file, fake(shape=(40, 40)))
    assert found.labels.shape == truth.shape
    assert dice(found.labels, truth, 7) > 0.95 and dice(found.labels, truth, 300) > 0.95


def test_networks_of_slices_refuse_volumes_and_the_other_way_round(tmp_path):
    volume, _ = file_of(tmp_path)
    flat, _ = slice_of(tmp_path, 2)
    with pytest.raises(UserError, match=r"scan\.nii\.gz: a 3D image, .*trained on slices.*dims=3"):
        apply.segment(volume, fake(shape=(40, 40)))
    with pytest.raises(UserError, match=r"slice\.nii\.gz: a 2D image, .*trained on volumes.*dims"):
        apply.segment(flat, fake())
    with pytest.raises(UserError, match="a 3D image"):
        apply.register(volume, volume, fake(shape=(40, 40)))
    of_volumes = replace(fake(shape=(40, 40)), aligned=True)
    of_volumes.preparation.__dict__["reference"] = torch.rand(1, 40, 40, 40)
    with pytest.raises(UserError, match="middle planes of volumes that were aligned"):
        apply.segment(flat, of_volumes)


@pytest.mark.parametrize("thick", [False, True], ids=["two axes", "one thick"])
def test_slices_are_registered_and_written(thick, tmp_path):
    fixed, _ = slice_of(tmp_path, 2, thick)
    found = apply.register(fixed, fixed, fake(shape=(40, 40)), inverse=True)
    assert found.phi.shape == (40, 40)
    paths = found.save(tmp_path / "out")
    assert formats.read_warp(paths[0]).shape[:2] == (48, 48)
    assert nib.load(paths[2]).shape == nib.load(fixed).shape


# --- what a segmentation writes -------------------------------------------------------------------


def test_what_is_written_lies_where_the_file_lies(tmp_path):
    file, _ = file_of(tmp_path, "all")
    found = apply.segment(file, fake())
    paths = found.save(tmp_path / "out")
    assert paths[:2] == apply.segmentation_files(file, tmp_path / "out")
    assert [path.name for path in paths] == [
        "scan_labels.nii.gz",
        "scan_labels.json",
        "labels.label.txt",
        "labels.ctbl",
    ]
    written, image = nib.load(paths[0]), nib.load(file)
    assert written.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(written.dataobj), found.labels)
    assert np.array_equal(written.affine, image.affine)
    assert formats.read_sidecar(paths[1]) == {"shell": (7, 8), "core": (300,)}
    said = read_json(paths[1])
    assert said["model"] == "fake" and said["image"] == str(file)
    assert "shell" in paths[2].read_text() and "core" in paths[3].read_text()


def test_what_is_there_already_stays_unless_forced(tmp_path):
    out = tmp_path / "out"
    file, _ = file_of(tmp_path)
    other, _ = file_of(tmp_path, "LAS", name="other")
    found = apply.segment(file, fake())
    paths = found.save(out)
    apply.segment(other, fake()).save(out)  # the tables of colours are shared
    before = paths[0].read_bytes()
    with pytest.raises(UserError, match=r"scan_labels\.nii\.gz: .*there already"):
        found.save(out)
    found.save(out, force=True)
    assert paths[0].read_bytes() == before
    names = ("background", "shell", "kernel")
    third, _ = file_of(tmp_path, name="third")
    with pytest.raises(UserError, match=r"labels\.(label\.txt|ctbl)"):
        apply.segment(third, fake(structures=names)).save(out)
    assert not (out / "third_labels.nii.gz").exists() and not (out / "third_labels.json").exists()


def test_both_results_can_be_looked_at(tmp_path):
    file, _ = file_of(tmp_path)
    assert "iframe" in apply.segment(file, fake()).view(display="html").data
    assert "iframe" in apply.register(file, file, fake()).view(display="html").data


# --- registration ---------------------------------------------------------------------------------


def formula(found, shape, order=1):
    """The moving file as it is warped, on the fixed file's grid, by the formula alone, in float64:
    p = S_m^-1 A_m phi(A_f^-1 S_f y), with ITK's border.
    """
    image = nib.load(found.moving.source.path)
    y = np.indices(shape).reshape(3, -1).astype(float)

    def through(matrix, points):
        return matrix[:3, :3] @ points + matrix[:3, 3:]

    fixed_affine = found.fixed.source.affine.numpy()
    x = through(np.linalg.inv(found.fixed.affine.numpy()) @ fixed_affine, y)
    u = found.phi.displacement[0].double().numpy()
    q = x + [ndimage.map_coordinates(part, x, order=1, mode="nearest") for part in u]
    p = through(np.linalg.inv(image.affine) @ found.moving.affine.numpy(), q)
    values = ndimage.map_coordinates(image.get_fdata(), p, order=order, mode="nearest")
    sides = np.array(image.shape)[:, None]
    inside = ((p >= -0.5) & (p <= sides - 0.5)).all(0)
    return (values * inside).reshape(shape), inside.reshape(shape)


@pytest.mark.parametrize("aligned", [False, True], ids=["centred", "aligned"])
def test_a_registration_is_written_for_other_programs(aligned, tmp_path):
    moving, _ = file_of(tmp_path, "all", name="one")
    fixed, truth = file_of(tmp_path, "LAS", name="two")
    reference = None
    if aligned:
        points = world((40, 40, 32), placed((2.2, 2.0, 2.0), (-40.0, -40.0, -26.0)))
        reference = torch.from_numpy(drawn(points) / 500).float()[None]
    found = apply.register(moving, fixed, fake(reference=reference), inverse=True)
    paths = found.save(tmp_path / "out")
    assert paths == apply.registration_files(moving, fixed, tmp_path / "out", inverse=True)
    assert [path.name for path in paths] == [
        "one_to_two_warp.nii.gz",
        "one_to_two_inverse_warp.nii.gz",
        "one_to_two.nii.gz",
        "one_to_two.json",
    ]
    warp = formats.read_warp(paths[0])
    assert warp.shape == truth.shape
    assert formats.read_warp(paths[1]).shape == nib.load(moving).shape
    wanted, inside = formula(found, truth.shape)
    warped = nib.load(paths[2])
    assert np.allclose(warped.affine, nib.load(fixed).affine)
    difference = np.abs(np.asarray(warped.dataobj) - wanted)
    assert inside.mean() > 0.3 and difference.mean() < 1e-5 * np.ptp(wanted)
    said = read_json(paths[3])
    assert said["inverse_by"] == "exp(-v)" and said["folds_percent"] == 0
    assert 0 <= said["fixed_outside"] < 0.7 and said["refined_steps"] == 0
    with pytest.raises(UserError, match=r"one_to_two_warp\.nii\.gz: .*there already"):
        found.save(tmp_path / "out")
    found.save(tmp_path / "out", force=True)


def test_a_registration_for_learn2reg(tmp_path):
    moving, _ = file_of(tmp_path, "RAS", name="one")
    fixed, truth = file_of(tmp_path, "LAS", name="two")
    found = apply.register(moving, fixed, fake(), inverse=True)
    paths = found.save(tmp_path / "out", format="learn2reg")
    assert paths == apply.registration_files(
        moving, fixed, tmp_path / "out", inverse=True, format="learn2reg"
    )
    assert paths[0].name.startswith("disp_two_") and paths[1].name.startswith("disp_one_")
    with np.load(paths[0]) as archive:
        (name,) = archive.files
        assert archive[name].shape == (*truth.shape, 3)
    with pytest.raises(UserError, match="no format 'fsl' of warps: choose from itk, learn2reg"):
        found.save(tmp_path / "other", format="fsl")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="warp and inverse would have one name in the format learn"):
        apply.registration_files(moving, moving, tmp_path, format="learn2reg", inverse=True)


def test_names_of_results_do_not_depend_on_how_an_ending_is_written():
    """As those of scans and labels do not, with which they are matched."""
    assert apply.segmentation_files("in/A.NII.GZ", "out")[0] == Path("out/A_labels.nii.gz")
    warp, *_ = apply.registration_files("A.NII", "b.nii", "out")
    assert warp == Path("out/A_to_b_warp.nii.gz")
    assert transform.warped_file("A.NII.GZ", "out") == Path("out/A_warped.nii.gz")


def test_a_pair_of_one_name_is_told_apart_by_its_folders():
    warp, *_ = apply.registration_files("p1/t1.nii.gz", "p2/t1.nii.gz", "out")
    assert warp == Path("out/p1_t1_to_p2_t1_warp.nii.gz")
    warp, *_ = apply.registration_files("p1/t1.nii.gz", "p1/t1.nii.gz", "out")
    assert warp == Path("out/t1_to_t1_warp.nii.gz")


def largest_within(phi):
    inner = (slice(None), slice(None), *[slice(6, -6)] * len(phi.shape))
    return float(phi.displacement[inner].abs().max())


def test_the_inverse_undoes_and_says_how_it_was_made(tmp_path):
    moving, _ = file_of(tmp_path, name="one")
    fixed, _ = file_of(tmp_path, "oblique", name="two")
    displacement = {"reg": Registration(Waves(), velocity=False, passes=1).eval()}
    plain = {"reg": Waves().eval()}  # anybody's network: a tensor is u
    for model, refine, said in (
        (fake(), 0, "exp(-v)"),
        (fake(), 2, "fixed point"),
        (fake(nets=displacement), 0, "fixed point"),
        (fake(nets=plain), 0, "fixed point"),
    ):
        found = apply.register(moving, fixed, model, inverse=True, refine=refine)
        assert found.inverse_by == said and largest_within(found.phi) > 0.9
        assert largest_within(found.phi @ found.inverse) < 0.1
    assert apply.register(moving, fixed, fake()).inverse is None


@pytest.mark.parametrize("guesses", [True, False], ids=["by anatomy, too", "by images alone"])
def test_refining_lowers_the_runs_own_loss_from_where_the_network_left_it(tmp_path, guesses):
    moving, _ = file_of(tmp_path, name="one")
    fixed, _ = file_of(tmp_path, "oblique", name="two")
    nets = fake().nets
    model = fake(nets=nets if guesses else {"reg": nets["reg"]})

    def loss(found):
        images = found.moving.image[None], found.fixed.image[None]
        unlike = losses.lncc(found.phi.warp(images[0]), images[1])
        value = unlike + 0.2 * losses.bending_energy(found.phi.displacement)
        if guesses:
            s_moving, s_fixed = (probabilities(nets["seg"], image) for image in images)
            value = value + 0.5 * losses.soft_dice(found.phi.warp(s_moving), s_fixed)
        return value.item()

    begun, refined, again = (
        apply.register(moving, fixed, model, refine=steps) for steps in (0, 8, 8)
    )
    assert loss(refined) < 0.95 * loss(begun)
    assert torch.equal(refined.phi.displacement, again.phi.displacement)
    near = (refined.phi.displacement - begun.phi.displacement).abs().max()
    assert 0 < near < 1.5  # 8 steps of about .1 voxels along each of three axes
    with pytest.raises(UserError, match="refine must be a number of steps, 0 for none, got -1"):
        apply.register(moving, fixed, fake(), refine=-1)


# --- models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a smoke run on a generated data set, whose scans are aligned."""
    home = tmp_path_factory.mktemp("data")
    write_dataset(home / "hippocampus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPATLAS_DATA", str(home))
        patch.setenv("DEEPATLAS_RUNS", str(home / "runs"))
        values = {"dataset": "hippocampus", "profile": "smoke", "device": "cpu", "regimes": "joint"}
        folder = experiments.run(parse(values | {"precision": "float32"}))
        yield folder, home / "hippocampus" / "imagesTr" / "hippocampus_000.nii.gz"


def test_a_run_folder_is_a_model(trained):
    folder, file = trained
    model = apply.load(folder)
    assert model.name == f"{folder.name}/deepatlas"
    assert model.structures == ("background", "anterior", "posterior")
    assert model.numbers == {"anterior": (1,), "posterior": (2,)} and model.label_dtype == "uint8"
    assert model.aligned and model.preparation.reference.shape == (1, *model.shape)
    assert model.licence.startswith("CC BY-SA") and model.credit
    found = apply.segment(file, model)
    assert found.labels.shape == nib.load(file).shape and found.labels.dtype == np.uint8
    assert len(repr(found)) < 800  # as the last line of a notebook's cell
    assert np.array_equal(found.labels, apply.segment(file, folder).labels)
    baseline = apply.load(folder, "seg_baseline")
    assert set(baseline.nets) == {"seg"}
    with pytest.raises(UserError, match="has no network for registration: load another regime"):
        apply.register(file, file, baseline)
    with pytest.raises(FileNotFoundError, match="no such regime in this run: choose from"):
        apply.load(folder, "zebra")


def test_a_new_scan_is_prepared_as_the_training_scans_were(trained, monkeypatch):
    """To the bit: the cohort's own scans, and the same files as a stranger's."""
    folder, _ = trained
    monkeypatch.setenv("DEEPATLAS_DATA", str(folder.parent.parent))
    cohort = load_cohort("hippocampus", profile="smoke", seed=0)
    model = apply.load(folder)
    for scan in cohort.scans:
        own = apply.segment(scan.source.path, model).scan
        assert torch.equal(own.affine, scan.affine)
        assert torch.equal(own.image, scan.image)


def test_an_exported_model_is_one_file_that_answers_alike(trained, tmp_path):
    folder, file = trained
    path = apply.export(folder, tmp_path / "hippocampus.pt")
    moved = tmp_path / "elsewhere" / "model.pt"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    model, run = apply.load(moved), apply.load(folder)
    assert model.name == run.name and model.numbers == run.numbers
    assert torch.equal(model.preparation.reference, run.preparation.reference)
    here, there = apply.segment(file, model), apply.segment(file, run)
    assert torch.equal(here.scan.image, there.scan.image)
    assert np.mean(here.labels == there.labels) > 0.98  # half precision
    with pytest.raises(UserError, match=r"hippocampus\.pt: is there already"):
        apply.export(folder, path)
    apply.export(folder, path, force=True)
    with pytest.raises(UserError, match=r"model\.pt: a file holds the networks of one regime"):
        apply.load(moved, "deepatlas")
    with pytest.raises(UserError, match="is the name of the model card"):
        apply.export(folder, tmp_path / "model.md")
    assert str(tmp_path) not in json.dumps(load_tensors(path)["experiment"])


def test_the_card_says_what_a_user_must_know(trained, tmp_path):
    folder, _ = trained
    path = apply.export(folder, tmp_path / "model.pt")
    card = path.with_suffix(".md").read_text()
    assert card == apply.load(path).card
    record = read_record(folder)
    for text in (
        "deepatlas segment IMAGE.nii.gz --model",
        "| 1 | 1 | anterior |",
        "no medical device",
        "CC BY-SA 4.0",
        "1 of 4 training scans",
        "seed 0",
        "16 x 24 x 16 voxels of 2.5 mm",
        "which this file holds",
        f"torch {record['versions']['torch']}",
        "- segmentation: Dice ",
        "- registration: Dice ",
    ):
        assert text in card, text


def test_a_reference_goes_along_only_where_the_licence_lets_it(trained, tmp_path, capsys):
    for licence, allowed in {
        "CC BY-SA 4.0": True,
        "CC BY-NC 3.0 (not for commercial use)": True,
        "CC0: made by this project": True,
        "CC BY-NC-ND 4.0": False,
        "CC-BY-ND": False,
        "OASIS data use agreement": False,
        "": False,
        "unknown": False,
    }.items():
        assert may_be_passed_on(licence) is allowed, licence
    folder, file = trained
    mine = tmp_path / "run"
    shutil.copytree(folder, mine)
    record = read_record(mine)
    record["preparation"]["licence"] = "ours"
    write_record(record, mine)
    path = apply.export(mine, tmp_path / "without.pt")
    assert "'ours' is not known to allow it" in capsys.readouterr().out
    assert load_tensors(path)["preparation"]["reference"] is None
    card = path.with_suffix(".md").read_text()
    assert "which this file does not hold" in card
    assert "it takes no new scan" in card and "deepatlas segment" not in card
    with pytest.raises(UserError, match=r"aligned to one of them, which .* --with-reference"):
        apply.segment(file, path)
    whole = apply.export(mine, tmp_path / "with.pt", with_reference=True)
    card = whole.with_suffix(".md").read_text()
    assert "deepatlas segment" in card and "profile smoke" in card and "steps of seg" in card
    assert apply.segment(file, whole).labels.shape == nib.load(file).shape


COHORT = """
name = "mice"
licence = "ours, not to be passed on"
align = true
structures = [["block", [2, 1, "7-9"]]]
grids.full-3d = { shape = [16, 16, 16], spacing = 1.0 }
"""


def test_own_scans_without_test_labels_become_a_model(tmp_path, capsys):
    """Two structures merged, nothing to score, and no trace of where the files were."""
    home = tmp_path / "private"
    scans = [COHORT]
    for i, labelled in enumerate([True, False, False]):
        case = write_case(home, f"mouse{i}", i)
        scans += ["[[scans]]", f'id = "mouse{i}"', 'part = "train"', f'image = "{case["image"]}"']
        scans += [f'labels = "{case["label"]}"'] * labelled
    (home / "cohort.toml").write_text("\n".join(scans))
    values = {"dataset": str(home / "cohort.toml"), "profile": "smoke", "device": "cpu"}
    folder = experiments.run(parse(values | {"regimes": "joint"}), tmp_path / "runs")
    path = apply.export(folder, tmp_path / "mice.pt")
    assert "licence 'ours, not to be passed on' is not known" in capsys.readouterr().out
    card = path.with_suffix(".md").read_text()
    assert "Not measured" in card and "| 2 | 2, 1, 7-9 | block | not measured |" in card
    assert str(tmp_path).encode() not in path.read_bytes() and str(tmp_path) not in card
    found = apply.segment(home / "imagesTr" / "mouse2.nii.gz", folder)
    assert set(np.unique(found.labels)) <= {0, 2}
    with pytest.raises(UserError, match="--with-reference"):
        apply.segment(home / "imagesTr" / "mouse2.nii.gz", path)


def test_what_is_no_model_is_told(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(FileNotFoundError, match=r"no such file; weights that come with"):
        apply.load(tmp_path / "zebra")
    with pytest.raises(FileNotFoundError, match=r"not a run folder, there is no run\.json"):
        apply.load(tmp_path)

    mine = tmp_path / "run"
    shutil.copytree(folder, mine)
    whole = read_record(mine)

    def with_record(**changes):
        write_record({**whole, **changes}, mine)
        return mine

    with pytest.raises(UserError, match="this run is not finished; start it again"):
        apply.load(with_record(finished=False))
    with pytest.raises(UserError, match=r"the run of an earlier version .* run it again"):
        apply.load(with_record(preparation=None))
    with pytest.raises(UserError, match=r"run\.json: damaged .*label numbers for 1 structures"):
        apply.load(with_record(preparation={**whole["preparation"], "label_numbers": [[1]]}))
    with_record()
    (mine / "reference.pt").unlink()
    with pytest.raises(UserError, match=r"reference\.pt: missing"):
        apply.load(mine)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"label_numbers": [[1], [1]]}, "two with the same"),
        ({"label_numbers": [[1], []]}, "a structure without a number"),
        ({"label_numbers": [[1], ["2"]]}, "valid integer"),
        ({"label_numbers": [[1], [300]]}, "uint8 cannot hold"),
        ({"label_numbers": [[1], [-1]]}, "uint8 cannot hold"),
        ({"label_dtype": "object"}, "labels of type 'object'"),
        ({"shape": [16, 24]}, "3 dimensions"),
        ({"shape": [16, 24, 15]}, "divisible by 8"),
        ({"spacing_mm": 0.0}, "voxels of 0"),
        ({"aligned": "yes"}, "valid boolean"),
        ({"reference": torch.zeros(1, 16, 24, 8)}, "reference is no image"),
        ({"reference": "code"}, "reference is no image"),
        ({"licence": None}, "valid string"),
    ],
)
def test_a_file_that_is_not_whole_is_told(trained, tmp_path, change, said):
    folder, _ = trained
    path = apply.export(folder, tmp_path / "model.pt")
    content = load_tensors(path)
    content["preparation"] |= change
    write_tensors(content, path)
    with pytest.raises(UserError, match=rf"model\.pt: damaged \(.*{said}.*export the run again"):
        apply.load(path)


def test_weights_alone_are_no_model(trained, tmp_path):
    folder, _ = trained
    path = apply.export(folder, tmp_path / "model.pt")
    content = load_tensors(path)
    del content["preparation"]
    write_tensors(content, path)
    with pytest.raises(UserError, match="networks alone, and not how the scans were prepared"):
        apply.load(path)


def test_the_kits_own_weights_see_a_phantom_in_a_file(tmp_path):
    model = apply.load("phantom-brain")
    assert model.dims == 2 and model.shape == (96, 96)
    entry = describe("phantom-brain")
    scan = phantom.make_scan("brain", 500, *[entry.grid("class", 2)[0]], spacing=2.0, seed=9)
    affine = scan.affine.numpy() @ np.diag([-1, 1, 1, 1])  # LAS
    affine[0, 3] = scan.affine[0, 3] + 2.0 * 95
    file = write(tmp_path / "phantom.nii.gz", scan.image[0].numpy()[::-1], affine)
    found = apply.segment(file, "phantom-brain")
    truth = scan.labels.numpy()[::-1]
    values = [dice(found.labels, truth, index) for index in range(1, len(model.structures))]
    assert np.mean(values) > 0.85
    assert found.outside == 0
