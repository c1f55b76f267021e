"""The data sets that the kit knows, on generated folders in exactly the layout of each."""

import json

from deepatlas import datasets
from deepatlas.datasets import entries
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pytest
import torch

SHAPE, SPACING = (24, 28, 24), 6.0
LIA = np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]])  # axes to the left, down, to the front


def blocks(numbers, shape=SHAPE):
    """Label numbers in blocks of 4 voxels a side, all of them, some often."""
    sides = [-(-n // 4) for n in shape]
    inner = np.zeros(sides, bool)
    inner[tuple(slice(1, -1) if n > 2 else slice(None) for n in sides)] = True
    coarse = np.zeros(sides, np.int16)
    coarse[inner] = np.resize(numbers, inner.sum())
    for axis in range(3):
        coarse = coarse.repeat(4, axis)
    return coarse[tuple(slice(n) for n in shape)]


def write(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_pair(image, labels, numbers, seed, *, affine=None, shape=SHAPE, volumes=1):
    affine = np.diag([SPACING] * 3 + [1.0]) if affine is None else affine
    truth = blocks(numbers, shape)
    voxels = (truth > 0) + 0.3 * np.random.default_rng(seed).random(shape)
    if volumes > 1:
        voxels = np.stack([voxels + volume for volume in range(volumes)], -1)
        voxels[..., 1:] = voxels[..., 1:] ** 3  # another contrast
    write(image, voxels.astype(np.float32), affine)
    write(labels, truth, affine)


def write_decathlon(folder, name, numbers, count, volumes=1):
    training = []
    for i in range(count):
        image, labels = f"imagesTr/{name}_{i:02d}.nii.gz", f"labelsTr/{name}_{i:02d}.nii.gz"
        write_pair(folder / image, folder / labels, numbers, i, volumes=volumes)
        training.append({"image": f"./{image}", "label": f"./{labels}"})
    names = {"0": "background"} | {str(number): f"label {number}" for number in numbers}
    test = [f"./imagesTs/{name}_{count + i:02d}.nii.gz" for i in range(2)]
    dataset = {"labels": names, "training": training, "test": test, "numTraining": count}
    (folder / "dataset.json").write_text(json.dumps(dataset))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path))
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def people(cohort):
    return {scan.subject for scan in cohort.scans}


@pytest.mark.parametrize("name", list(datasets.manifest()))
def test_every_set_says_whose_it_is_and_what_may_be_done_with_it(name):
    entry = datasets.describe(name)
    assert entry.title and entry.licence
    assert entry.credit or entry.anatomy, "whoever uses scans cites who made them"
    if entry.url is not None:
        assert entry.checksum, "a download is checked"


@pytest.mark.parametrize(
    ("name", "prefix", "numbers", "structures"),
    [
        ("spleen", "spleen", [1], ["spleen"]),
        ("heart", "la", [1], ["left atrium"]),
        ("prostate", "prostate", [1, 2], ["peripheral zone", "transition zone"]),
    ],
)
def test_sets_of_the_decathlon(home, name, prefix, numbers, structures):
    volumes = 2 if name == "prostate" else 1
    write_decathlon(home / name, prefix, numbers, 9, volumes)
    cohort = datasets.load_cohort(name, profile="smoke")
    assert [*cohort.structures[1:]] == structures
    assert len(people(cohort)) == 9 and all(len(person) == 2 for person in people(cohort))
    assert all(set(scan.labels.unique().tolist()) == {0, *numbers} for scan in cohort.scans)


def test_the_prostates_first_contrast_is_taken(home, tmp_path):
    """The files hold T2 and ADC; a data set that takes the other has other images."""
    write_decathlon(home / "prostate", "prostate", [1, 2], 9, volumes=2)
    entry = datasets.describe("prostate")
    first = datasets.load_cohort(entry, profile="smoke").train[0]
    second_entry = entry.model_copy(update={"channel": 1})
    second = datasets.load_cohort(second_entry, profile="smoke").train[0]
    assert (first.image - second.image).abs().max() > 0.05
    assert first.source.shape == SHAPE
    with pytest.raises(UserError, match=r"volume 2, counted from 0.*take another channel"):
        datasets.load_cohort(entry.model_copy(update={"channel": 2}), profile="smoke")
    with pytest.raises(UserError, match="name one of them as the channel"):
        datasets.load_cohort(entry.model_copy(update={"channel": None}), profile="smoke")


def test_neurite_oasis_in_3d(home):
    """A folder for each scan, volumes whose axes run to the left, down and to the front."""
    affine = np.eye(4)
    affine[:3, :3] = SPACING * LIA
    for i in range(9):
        folder = home / "neurite-oasis" / f"OASIS_OAS1_{i:04d}_MR1"
        files = folder / "aligned_norm.nii.gz", folder / "aligned_seg35.nii.gz"
        write_pair(*files, range(1, 36), i, affine=affine, shape=(28, 32, 32))
        write(folder / "norm.nii.gz", np.ones(SHAPE, np.float32), affine)
    (home / "neurite-oasis" / "subjects.txt").write_text("OASIS_OAS1_0000_MR1\n")
    cohort = datasets.load_cohort("neurite-oasis", profile="smoke")
    assert len(cohort.structures) == 36 and cohort.structures[14] == "left hippocampus"
    assert cohort.structures[30] == "right hippocampus"
    assert people(cohort) == {f"{i:04d}" for i in range(9)}


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_neurite_oasis_in_2d(home, thin):
    """Slices of 160 x 192 voxels and one, whichever way the header says that they lie."""
    axes = [axis for axis in range(3) if axis != thin]
    affine = np.eye(4)
    affine[:3, :3] = SPACING * np.eye(3)[:, [*axes, thin]]
    for i in range(9):
        folder = home / "neurite-oasis-2d" / f"OASIS_OAS1_{i:04d}_MR1"
        files = folder / "slice_norm.nii.gz", folder / "slice_seg4.nii.gz"
        write_pair(*files, range(1, 5), i, affine=affine, shape=(32, 36, 1))
    cohort = datasets.load_cohort("neurite-oasis-2d", profile="smoke")
    assert cohort.shape == (40, 48)
    assert cohort.structures[1:] == (
        "cortex",
        "subcortical grey matter",
        "white matter",
        "cerebrospinal fluid",
    )
    assert all(len(scan.labels.unique()) == 5 for scan in cohort.scans)


def write_mindboggle(folder):
    sites = {"MMRR-21": 21, "HLN-12": 12, "NKI-TRT-20": 20, "OASIS-TRT-20": 20, "NKI-RS-22": 22}
    regions = [1000 + number for number in range(1, 36) if number not in (1, 4, 32, 33)]
    numbers = [*regions, *(number + 1000 for number in regions)]
    seed = 0
    for site, count in sites.items():
        for i in range(1, count + 1):
            scan = folder / f"{site}_volumes" / f"{site}-{i}"
            seed += 1
            files = scan / "t1weighted.nii.gz", scan / "labels.DKT31.manual.nii.gz"
            write_pair(*files, numbers, seed, shape=(28, 32, 28))
            write(scan / "t1weighted_brain.nii.gz", np.ones((4, 4, 4), np.float32), np.eye(4))
    extra = folder / "Extra-18_volumes" / "Twins-2-1"
    write_pair(extra / "t1weighted.nii.gz", extra / "labels.DKT31.manual.nii.gz", numbers, 999)


def test_mindboggle_has_the_papers_groups(home):
    """65 to train, of which N = 21 are one site, as in the paper; 31 regions, both sides merged."""
    write_mindboggle(home / "mindboggle101")
    entry = datasets.describe("mindboggle101").model_copy(update={"align": False})
    cohort = datasets.load_cohort(entry, profile="smoke")
    assert [len(part) for part in (cohort.train, cohort.validation, cohort.test)] == [65, 8, 21]
    sites = [scan.id.rpartition("-")[0] for scan in cohort.train]
    found = {site: sites.count(site) for site in set(sites)}
    assert found == {"MMRR-21": 21, "HLN-12": 12, "NKI-TRT-20": 12, "OASIS-TRT-20": 20}
    assert {scan.id.rpartition("-")[0] for scan in cohort.test} == {"NKI-RS-22"}
    assert len(cohort.structures) == 32 and cohort.label_numbers[0] == (1002, 2002)
    for keep in (1, 21):
        for seed in range(3):
            labelled = cohort.hide_labels(keep, seed).labelled
            assert all(scan.id.startswith("MMRR-21-") for scan in labelled)
    assert len(cohort.hide_labels(65).labelled) == 65


@pytest.mark.parametrize("channel", ["_0000", ""])
def test_oai_zib_knees(home, monkeypatch, channel):
    """As OAIZIB-CM lays them out, without a dataset.json; both halves of the tibial cartilage."""
    folder = home / "oai-zib"
    for i in range(1, 10):
        part = "Tr" if i < 8 else "Ts"
        image = folder / f"images{part}" / f"oaizib_{i:03d}{channel}.nii.gz"
        write_pair(image, folder / f"labels{part}" / f"oaizib_{i:03d}.nii.gz", range(1, 6), i)
    cohort = datasets.load_cohort("oai-zib", profile="smoke")
    assert cohort.structures[1:] == ("femur", "femoral cartilage", "tibia", "tibial cartilage")
    assert cohort.label_numbers == ((1,), (2,), (3,), (4, 5))
    assert len(people(cohort)) == 9
    assert isinstance(cohort.reference, torch.Tensor), "knees are aligned"


def test_the_papers_two_are_supplied_by_the_user():
    for name in ("mindboggle101", "oai-zib"):
        entry = datasets.describe(name)
        assert entry.url is None
        with pytest.raises(FileNotFoundError, match="set DEEPATLAS_DATA to the folder"):
            datasets.find(entry)


def test_a_channel_is_a_number_from_0():
    said = entries.manifest()["prostate"].model_dump() | {"channel": -1}
    with pytest.raises(ValueError, match="channel"):
        entries.Entry(**said)
