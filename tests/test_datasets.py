"""Cohorts by name: the manifest, phantoms, folders in the layout of the Decathlon, and the real
scans.
"""

import json
import re
from pathlib import Path

from deepatlas import datasets
from deepatlas.datasets import Entry, preparation
from deepatlas.datasets.entries import expand, in_ranges
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pytest
import torch
from folders import SHAPE, rewrite, write_case, write_dataset, write_nifti

NAMES = list(datasets.manifest())
PHANTOMS = [name for name, entry in datasets.manifest().items() if entry.anatomy is not None]
FILES = [name for name in NAMES if name not in PHANTOMS]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A private DEEPATLAS_DATA, and a private cache."""
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def change_entry(monkeypatch, name, **changes):
    """Other words in the entry of a data set, for one test."""
    changed = datasets.describe(name).model_copy(update=changes)
    monkeypatch.setitem(datasets.manifest(), name, changed)


@pytest.fixture
def hippocampus(home, monkeypatch):
    change_entry(monkeypatch, "hippocampus", align=False)  # blocks of noise cannot be aligned
    return write_dataset(home / "hippocampus")


def load(name="hippocampus", **options):
    return datasets.load_cohort(name, **{"profile": "smoke", **options})


def ids(scans):
    return [scan.id for scan in scans]


# --- the manifest ---------------------------------------------------------------------------------


def dims_of(entry):
    """2 and 3, or 2 alone where the files are slices."""
    return (2, 3) if any(key.endswith("-3d") for key in entry.grids) else (2,)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_has_a_title_a_licence_a_grid_for_each_size_and_a_split(name):
    entry = datasets.describe(name)
    assert entry.title and entry.licence
    assert isinstance(entry.align, bool)
    for profile in datasets.PROFILES:
        for dims in dims_of(entry):
            shape, spacing = entry.grid(profile, dims)
            assert len(shape) == dims and spacing > 0
            assert all(side >= 16 and side % 8 == 0 for side in shape), profile
        sizes = entry.split_sizes(profile)
        assert len(sizes) == 3 and min(sizes) >= 1
    for key, grid in entry.grids.items():
        assert entry.grid(key[:-3], int(key[-2])) == (grid.shape, grid.spacing)


@pytest.mark.parametrize("name", NAMES)
def test_a_flat_grid_lies_within_the_volume_it_is_a_plane_of(name):
    entry = datasets.describe(name)
    if 3 not in dims_of(entry):
        pytest.skip("its files are slices")
    for profile in datasets.PROFILES:
        (flat, flat_spacing), (volume, spacing) = entry.grid(profile, 2), entry.grid(profile, 3)
        for n_flat, n in zip(flat, volume, strict=False):
            ratio = n_flat * flat_spacing / (n * spacing)
            assert 0.7 < ratio < 1.5, (
                f"{profile}: {n_flat} x {flat_spacing} mm against {n} x {spacing} mm"
            )


def test_a_public_address_comes_with_a_checksum_and_what_has_none_says_whose_it_is():
    for name in FILES:
        entry = datasets.describe(name)
        if entry.url is not None:
            assert entry.url.startswith("https://")
            assert re.fullmatch("[0-9a-f]{64}|[0-9a-f]{32}", entry.checksum)
        assert entry.credit
    assert datasets.describe("hippocampus").url is not None


def test_an_entry_like_another_takes_what_it_does_not_say_itself():
    cortex, whole = datasets.describe("oasis35-cortex"), datasets.describe("oasis35")
    assert cortex.grids == whole.grids and cortex.licence == whole.licence
    assert cortex.title != whole.title
    assert cortex.regions is not None and cortex.structures is None


KNEES = """
[knees]
title = "Knees"
licence = "CC0"
structures = [["femur", [1]], ["tibia", [3, "5-7"]]]
split = [3, 1, 2]
grids.full-3d = { shape = [160, 192, 96], spacing = 0.5 }
"""


def write_table(folder, text):
    path = folder / "datasets.toml"
    path.write_text(text)
    return path


def test_one_grid_is_enough(tmp_path):
    (entry,) = datasets.read_entries(write_table(tmp_path, KNEES)).values()
    assert entry.name == "knees" and entry.dims == 3 and not entry.align
    assert entry.grid("full", 3) == ((160, 192, 96), 0.5)
    assert entry.grid("class", 3) == ((80, 96, 48), 1.0)
    assert entry.grid("smoke", 3) == ((24, 24, 16), 4.0)  # 20 and 12 voxels are rounded up
    for profile in datasets.PROFILES:
        shape, spacing = entry.grid(profile, 3)
        assert entry.grid(profile, 2) == (shape[:2], spacing)


@pytest.mark.parametrize("shape", [(16, 16, 16), (88, 104, 72), (160, 224, 192), (24, 48, 32)])
@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.1])
def test_a_grid_that_follows_holds_the_volume_and_can_be_halved(shape, spacing):
    entry = datasets.describe("hippocampus").model_copy(
        update={"grids": {"full-3d": datasets.Grid(shape=shape, spacing=spacing)}}
    )
    for profile in ("class", "smoke"):
        follows, larger = entry.grid(profile, 3)
        datasets.check_sides(follows)
        assert min(follows) >= 16
        for side, full in zip(follows, shape, strict=True):
            assert side * larger > (full - 1e-6) * spacing
            assert side == 16 or (side - 8) * larger < full * spacing
    assert max(entry.grid("smoke", 3)[0]) <= 24


def test_what_is_said_of_a_grid_comes_before_what_follows(tmp_path):
    text = KNEES + "grids.class-3d = { shape = [48, 48, 48], spacing = 2.0 }\n"
    (entry,) = datasets.read_entries(write_table(tmp_path, text)).values()
    assert entry.grid("class", 3) == ((48, 48, 48), 2.0)
    assert entry.grid("class", 2) == ((48, 48), 2.0)


def test_without_a_grid_to_follow_from_it_is_said_what_to_add():
    entry = datasets.describe("hippocampus")
    flat = entry.model_copy(update={"grids": {"full-2d": entry.grids["full-2d"]}})
    assert flat.grid("full", 2) == entry.grid("full", 2)
    with pytest.raises(UserError, match=r"no grid class-3d.* its scans are slices: take dims=2"):
        flat.grid("class", 3)
    small = entry.model_copy(update={"grids": {"smoke-3d": entry.grids["full-3d"]}})
    with pytest.raises(
        UserError, match=r"no grid class-3d, and no full-3d.*: add grids.full-3d = "
    ):
        small.grid("class", 3)


@pytest.mark.parametrize(
    "split, smoke, middle, full",
    [
        ("split = [3, 1, 2]", [3, 1, 2], [3, 1, 2], [3, 1, 2]),
        ("split.full = [9, 2, 3]", [9, 2, 3], [9, 2, 3], [9, 2, 3]),
        ("split = { smoke = [3, 1, 2], full = [9, 2, 3] }", [3, 1, 2], [9, 2, 3], [9, 2, 3]),
        ("split.smoke = [3, 1, 2]", [3, 1, 2], [3, 1, 2], [3, 1, 2]),
        ("split.published = [5, 2, 4]", [5, 2, 4], [5, 2, 4], [5, 2, 4]),
    ],
)
def test_a_profile_without_sizes_takes_those_of_another(tmp_path, split, smoke, middle, full):
    path = write_table(tmp_path, KNEES.replace("split = [3, 1, 2]", split))
    entry = datasets.read_entries(path)["knees"]
    assert [entry.split_sizes(profile) for profile in datasets.PROFILES] == [smoke, middle, full]


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("title", "titel", "knees: .*there is no key 'titel', did you mean"),
        ("licence", "licence = 'x'\ncolour", "there is no key 'colour': choose from title, "),
        ('licence = "CC0"', "", "knees: licence is missing"),
        ("[3, 1, 2]", "[3, 1]", "split.full.2 is missing"),
        ("[3, 1, 2]", "[0, 1, 2]", "at least one for train"),
        ("split =", "split.tiny =", "split: there is no profile 'tiny': choose from smoke, "),
        ("grids.full-3d", "grids.huge-3d", "grids: there is no grid 'huge-3d': choose from smoke-"),
        ("160", "161", "grids: every side must be divisible by 8"),
        ("160, 192, 96", "160, 192", r"grids: full-3d wants 3 sides, got \[160, 192\]"),
        (
            "0.5",
            "0.0",
            "grids.full-3d.spacing: input should be greater than or equal to 0.00",
        ),
        ('"5-7"', '"5 to 7"', "such as 44 or \"49-52\" were wanted, got '5 to 7'"),
        ('["femur", [1]], ["tibia", [3, "5-7"]]', '["femur", []]', "'femur' has no label number"),
        ("structures = ", "anatomy = 'knee'\nstructures = ", "got anatomy and structures"),
        ('structures = [["femur", [1]], ["tibia", [3, "5-7"]]]', "", "got none of them"),
        ('[["femur", [1]], ["tibia", [3, "5-7"]]]', '[["femur", [1]]]\ndims = 4', "dims: input "),
        ("structures = ", "url = 'https://x'\nstructures = ", "a url wants the sha256"),
        ("structures = ", "like = 'heads'\nstructures = ", "like 'heads': another table of this"),
        ("[knees]", "[knees", "not valid TOML"),
        ("[knees]", "knees = 3\n[a]", "a table for each data set was wanted, got knees = 3"),
    ],
)
def test_a_mistake_in_an_entry_is_one_sentence_that_names_the_file(tmp_path, old, new, said):
    path = write_table(tmp_path, KNEES.replace(old, new))
    with pytest.raises(UserError, match=said) as caught:
        datasets.read_entries(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_an_unknown_anatomy_in_an_entry_is_one_sentence(tmp_path):
    text = KNEES.replace('structures = [["femur", [1]], ["tibia", [3, "5-7"]]]', 'anatomy = "hip"')
    with pytest.raises(UserError, match="anatomy: the anatomy must be one of brain, knee, got 'hi"):
        datasets.read_entries(write_table(tmp_path, text))


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_survives_json(name):
    entry = datasets.describe(name)
    kept = json.loads(json.dumps(entry.model_dump(mode="json")))
    assert Entry.model_validate(kept) == entry


def test_a_cohort_is_loaded_from_an_entry_that_a_run_kept(hippocampus, monkeypatch):
    kept = json.loads(json.dumps(datasets.describe("hippocampus").model_dump(mode="json")))
    wanted = load()
    monkeypatch.delitem(datasets.manifest(), "hippocampus")  # the kit no longer knows it
    found = load(Entry.model_validate(kept))
    assert found.fingerprint == wanted.fingerprint and found.name == "hippocampus"
    assert torch.equal(found.train[0].image, wanted.train[0].image)


@pytest.mark.parametrize(
    "wrong, close", [("hipocampus", "hippocampus"), ("oasis", "oasis35"), ("brain", None)]
)
def test_an_unknown_name_gets_a_suggestion_and_the_list(wrong, close):
    with pytest.raises(ValueError, match="choose from phantom-brain, phantom-knee") as caught:
        datasets.describe(wrong)
    if close:
        assert f"did you mean {close!r}" in str(caught.value)


@pytest.mark.parametrize("options", [{"profile": "tiny"}, {"dims": 4}, {"dims": 1}])
def test_a_wrong_profile_or_dimension_is_refused_before_anything_is_read(options):
    with pytest.raises(
        ValueError, match=r"profile must be one of smoke, class, full and dims 2 or 3, got"
    ):
        load("phantom-brain", **options)


def test_numbers_and_ranges_of_labels_are_expanded():
    numbers = [44, 49, 50, 51, 52, 45]
    assert list(expand([44, "49-52", 45])) == numbers
    assert (
        in_ranges(numbers) == ["44", "49-52", "45"] and list(expand(in_ranges(numbers))) == numbers
    )
    assert in_ranges([]) == []


# --- phantoms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", PHANTOMS)
def test_a_phantom_cohort_has_its_grid_its_split_and_its_truth(name, dims, capsys):
    entry, cohort = datasets.describe(name), load(name, dims=dims)
    assert entry.licence in capsys.readouterr().out
    assert (cohort.shape, cohort.spacing) == entry.grid("smoke", dims)
    parts = (cohort.train, cohort.validation, cohort.test)
    assert [len(part) for part in parts] == entry.split_sizes("smoke")
    assert len({scan.subject for scan in cohort.scans}) == len(cohort.scans)
    assert all(scan.labels is not None for scan in cohort.scans)
    truth = cohort.truth(cohort.train[0], cohort.test[0])
    assert truth.displacement.shape == (1, dims, *cohort.shape)


def test_the_seed_draws_other_phantoms_and_the_same_seed_the_same():
    one, same, other = (load("phantom-brain", dims=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.train[0].image, same.train[0].image)
    assert not torch.equal(one.train[0].image, other.train[0].image)


# --- a folder in the Decathlon's layout -----------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_a_folder_is_read_onto_the_grid_with_its_structures(hippocampus, dims, capsys):
    cohort = load(dims=dims)
    assert cohort.structures == ("background", "anterior", "posterior")
    assert cohort.shape == ((32, 32) if dims == 2 else (16, 24, 16))
    assert [len(part) for part in (cohort.train, cohort.validation, cohort.test)] == [4, 2, 3]
    assert sorted(ids(cohort.scans)) == [f"hippocampus_{i:03d}" for i in range(9)]
    assert "CC BY-SA 4.0" in capsys.readouterr().out and cohort.licence == "CC BY-SA 4.0"
    for scan in cohort.scans:
        assert scan.labels.unique().tolist() == [0, 1, 2]
        # though the files differ by 8 orders of magnitude
        assert scan.image.min() >= 0 and scan.image.max() <= 1
        assert scan.source.path.endswith(f"imagesTr/{scan.id}.nii.gz")


def test_each_scan_keeps_its_own_labels_and_a_voxel_leads_back_to_its_file(hippocampus):
    for scan in load().scans:
        middle = scan.labels.nonzero().double().mean(0)
        place = scan.to_source @ torch.cat([middle, torch.ones(1).double()])
        torch.testing.assert_close(
            place[:3], torch.tensor([5.5, 6.5, 5.5]).double(), rtol=0, atol=0.7
        )


def middle_plane(flat, volume, spacing):
    """Two corners of a 2D scan, as voxels of the 3D scan: (3, 2); the third must be the middle."""
    corners = torch.tensor(
        [[0, 0, 0, 1], [*(n - 1 for n in flat.shape), 0, 1]], dtype=torch.float64
    ).T
    return (torch.linalg.inv(volume.affine) @ flat.affine @ corners)[:3]


@pytest.mark.parametrize("profile", ["smoke", "class"])
def test_a_2d_scan_is_the_middle_plane_of_the_3d_scan(hippocampus, monkeypatch, profile):
    change_entry(monkeypatch, "hippocampus", split=dict.fromkeys(datasets.PROFILES, (4, 2, 3)))
    flat, volume = (load(profile=profile, dims=dims) for dims in (2, 3))
    for one, other in zip(flat.scans, volume.scans, strict=True):
        assert one.id == other.id
        first, last = middle_plane(one, other, volume.spacing).T
        middle = (torch.tensor(volume.shape).double() - 1) / 2
        torch.testing.assert_close((first + last) / 2, middle)
        assert first[2].item() == pytest.approx(middle[2].item()) == last[2].item()
        assert torch.linalg.norm(one.affine[:3, 0]) == pytest.approx(flat.spacing)


def test_the_seed_draws_another_split_of_the_same_scans(hippocampus):
    one, same, other = (load(seed=seed) for seed in (0, 0, 1))
    assert ids(one.scans) == ids(same.scans) != ids(other.scans)
    assert sorted(ids(one.scans)) == sorted(ids(other.scans))


def test_the_fingerprint_is_that_of_the_files_not_of_what_an_alignment_made_of_them(
    hippocampus, monkeypatch
):
    cohort = load()
    monkeypatch.setattr(
        preparation,
        "align",
        lambda images, affines, reference: [
            affine + torch.eye(4).roll(3, 1) * 1e-6 for affine in affines
        ],
    )
    change_entry(monkeypatch, "hippocampus", align=True)
    assert load().fingerprint == cohort.fingerprint
    prints = {cohort.fingerprint, load(seed=1).fingerprint, load(dims=2).fingerprint}
    name = cohort.train[0].id
    write_case(hippocampus, name, seed=99)
    prints.add(load().fingerprint)
    path = hippocampus / "labelsTr" / f"{name}.nii.gz"
    write_nifti(path, 3 - np.clip(nib.load(path).get_fdata(), 1, 2).astype(np.uint8))
    prints.add(load().fingerprint)
    for part in ("imagesTr", "labelsTr"):
        path = hippocampus / part / f"{name}.nii.gz"
        # the same voxels, larger
        write_nifti(path, np.asarray(nib.load(path).dataobj), spacing=1.6)
    prints.add(load().fingerprint)
    assert len(prints) == 6


def test_a_person_scanned_twice_is_one_subject_and_never_split(hippocampus):
    rewrite(
        hippocampus,
        lambda dataset: dataset.update(same_person_twice=[["000", "008"], ["001", "005"]]),
    )
    for seed in range(6):
        try:
            cohort = load(seed=seed)
        # whole subjects at a time: the groups may be too few for nine scans
        except ValueError as error:
            assert "do not fill" in str(error)
            continue
        subjects = {scan.id[-3:]: scan.subject for scan in cohort.scans}
        sides = {
            scan.id[-3:]: i
            for i, part in enumerate((cohort.train, cohort.validation, cohort.test))
            for scan in part
        }
        for one, other in (("000", "008"), ("001", "005")):
            if {one, other} <= subjects.keys():
                assert subjects[one] == subjects[other] and sides[one] == sides[other]


@pytest.mark.parametrize("twins", [[["000", "009"]], [["0", "8"]], ["000"], [3], [[]], None, 3])
def test_a_person_scanned_twice_who_is_nobody_is_refused(hippocampus, twins):
    rewrite(hippocampus, lambda dataset: dataset.update(same_person_twice=twins))
    with pytest.raises(
        ValueError, match=r"dataset.json: 'same_person_twice' must list the scans of one person"
    ):
        load()


def test_a_dot_in_a_name_belongs_to_the_name_and_two_scans_of_one_name_are_refused(
    hippocampus, monkeypatch
):
    change_entry(monkeypatch, "hippocampus", subject="s.{subject}")
    for i in range(9):
        for part in ("imagesTr", "labelsTr"):
            (hippocampus / part / f"hippocampus_00{i}.nii.gz").rename(
                hippocampus / part / f"s.{i}.nii.gz"
            )
    text = (hippocampus / "dataset.json").read_text().replace("hippocampus_00", "s.")
    (hippocampus / "dataset.json").write_text(text)
    assert set(ids(load().scans)) == {f"s.{i}" for i in range(9)}
    rewrite(hippocampus, lambda dataset: dataset["training"].append(dataset["training"][0]))
    with pytest.raises(ValueError, match=r"dataset.json: 10 images have only 9 different names"):
        load()


def test_resource_forks_of_macos_are_ignored(hippocampus):
    (hippocampus / "imagesTr" / "._hippocampus_000.nii.gz").write_bytes(b"\0\5\26\7")
    fork = {
        "image": "./imagesTr/._hippocampus_000.nii.gz",
        "label": "./labelsTr/._hippocampus_000.nii.gz",
    }
    rewrite(hippocampus, lambda dataset: dataset["training"].insert(0, fork))
    assert not any("._" in scan.id for scan in load().scans)


def test_only_the_scans_of_the_split_are_read(hippocampus):
    """A tenth scan, unreadable, does no harm in the seeds in which it is not drawn."""
    write_nifti(hippocampus / "labelsTr" / "hippocampus_009.nii.gz", np.zeros(SHAPE, np.uint8))
    (hippocampus / "imagesTr" / "hippocampus_009.nii.gz").write_bytes(b"broken")
    extra = {
        "image": "./imagesTr/hippocampus_009.nii.gz",
        "label": "./labelsTr/hippocampus_009.nii.gz",
    }
    rewrite(hippocampus, lambda dataset: dataset["training"].append(extra))
    loaded = 0
    for seed in range(12):
        try:
            loaded += bool(load(seed=seed, dims=2))
        except ValueError as error:
            assert "hippocampus_009" in str(error)
    assert loaded > 0


def test_too_few_scans_are_counted(home):
    write_dataset(home / "hippocampus", count=5)
    with pytest.raises(ValueError, match="5 scans of 5 subjects do not fill groups"):
        load()


def write_cortex(folder):
    """Eight cases in which structure 1 is a cortical region, left and right, and structure 2 is
    white matter.
    """
    training = [
        write_case(folder, f"oasis_{i}", i, spacing=12.0) | {"group": "train" if i < 5 else "test"}
        for i in range(8)
    ]
    for path in (folder / "labelsTr").glob("*.nii.gz"):
        labels, left = np.asarray(nib.load(path).dataobj), np.arange(SHAPE[0])[:, None, None] < 6
        numbers = np.select([labels == 0, (labels == 1) & left, labels == 1], [0, 101, 100], 44)
        write_nifti(path, numbers.astype(np.uint8), 12.0)
    names = {
        "0": "background",
        "44": "Right Cerebral White Matter",
        "100": "Right ACgG  anterior cingulate gyrus",
        "101": "Left ACgG   anterior cingulate gyrus",
        "208": "Right beyond the cortex",
    }
    (folder / "dataset.json").write_text(json.dumps({"labels": names, "training": training}))


def test_regions_are_named_by_dataset_json_left_and_right_merged(home, monkeypatch):
    write_cortex(home / "oasis35")
    change_entry(monkeypatch, "oasis35-cortex", split={"published": (2, 3, 3)})
    cohort = load("oasis35-cortex")
    assert cohort.structures == ("background", "anterior cingulate gyrus")
    assert sorted(ids(cohort.test)) == ["oasis_5", "oasis_6", "oasis_7"]
    assert (len(cohort.train), len(cohort.validation)) == (2, 3)
    for scan in cohort.scans:
        place = (scan.labels == 1).nonzero().double().mean(0)
        voxel = scan.to_source @ torch.cat([place, torch.ones(1).double()])
        # both halves
        torch.testing.assert_close(
            voxel[:3], torch.tensor([5.5, 4.5, 5.5]).double(), rtol=0, atol=0.7
        )


# --- a cohort file --------------------------------------------------------------------------------

OWN = """
name = "own"
licence = "CC0"
structures = [["lower", [1]], ["upper", [2]]]
grids.full-3d = { shape = [16, 24, 16], spacing = 1.0 }
"""


def write_own(folder, parts, head=OWN, unlabelled=(), persons=None):
    """A cohort file of one scan for each of ``parts``, with the files that it lists."""
    for number, part in enumerate(parts):
        name = f"s{number}"
        write_case(folder, name, number)
        person = (persons or {}).get(name, name)
        head += f'\n[[scans]]\nid = "{name}"\nsubject = "{person}"\npart = "{part}"\n'
        head += f'image = "imagesTr/{name}.nii.gz"\n'
        if name not in unlabelled:
            head += f'labels = "labelsTr/{name}.nii.gz"\n'
    (folder / "cohort.toml").write_text(head)
    return str(folder / "cohort.toml")


PARTS = ["train", "train", "train", "validation", "test", "test"]


@pytest.mark.parametrize("profile", datasets.PROFILES)
def test_the_scans_of_a_cohort_file_are_where_it_says(home, tmp_path, profile, capsys):
    path = write_own(tmp_path / "own", PARTS, unlabelled=["s1", "s3"])
    cohort = load(path, profile=profile, seed=3)
    assert ids(cohort.train) == (["s0", "s2", "s1"] if profile == "smoke" else ["s0", "s1", "s2"])
    assert (ids(cohort.validation), ids(cohort.test)) == (["s3"], ["s4", "s5"])
    assert {scan.id for scan in cohort.scans if scan.labels is None} == {"s1", "s3"}
    assert all(scan.image.max() > 0.5 for scan in cohort.scans)
    told = capsys.readouterr().out
    assert "CC0" in told and "persons of their own" not in told  # the file says who is who
    assert cohort.name == "own"


def test_the_labelled_training_scans_of_a_cohort_file_can_be_hidden(home, tmp_path):
    head = 'labelled_first = "s[24]"\n' + OWN
    parts = ["train"] * 6 + ["test"]
    cohort = load(write_own(tmp_path / "own", parts, head, unlabelled=["s4"]), profile="full")
    assert cohort.preferred == ("s2", "s4")
    for seed in range(5):
        assert ids(cohort.hide_labels(1, seed).labelled) == ["s2"]
    with pytest.raises(UserError, match="keep must be from 0 to 5"):
        cohort.hide_labels(6)


def test_a_pattern_that_fits_no_scan_is_told(home, tmp_path, capsys):
    head = 'labelled_first = "site1_*"\n' + OWN
    cohort = load(write_own(tmp_path / "own", ["train"] * 3, head), profile="full")
    assert cohort.preferred == ()
    assert "labelled_first = 'site1_*' fits no training scan" in capsys.readouterr().out


def test_test_scans_without_labels_are_for_cohort_files(home, tmp_path):
    path = write_own(tmp_path / "own", PARTS, unlabelled=["s4", "s5"])
    cohort = load(path)
    assert [scan.labels for scan in cohort.test] == [None, None]
    only_training = write_own(tmp_path / "more", ["train", "train"], unlabelled=["s1"])
    assert load(only_training).test == () == load(only_training).validation


def test_a_person_in_two_files_of_a_cohort_file_is_told_apart_by_it(home, tmp_path):
    folder = tmp_path / "own"
    path = write_own(folder, PARTS)
    write_case(folder, "s1", seed=0)  # the same image as s0
    with pytest.raises(
        UserError,
        match=r"s0.nii.gz and .*s1.nii.gz hold the same image, and count "
        "as two persons, 's0' and 's1': remove one of them from the cohort file, or "
        "give both the same subject",
    ):
        load(path)
    path = write_own(folder, PARTS, persons={"s1": "s0"})
    write_case(folder, "s1", seed=0)
    assert load(path).train[1].subject == "s0"


def test_unlabelled_scans_of_a_named_set_are_not_drawn(hippocampus, monkeypatch):
    wanted = load().fingerprint
    extra = write_case(hippocampus, "hippocampus_100", 100)
    del extra["label"]
    rewrite(hippocampus, lambda dataset: dataset["training"].append(extra))
    rewrite(hippocampus, lambda dataset: dataset.update(test=["./imagesTr/hippocampus_100.nii.gz"]))
    rewrite(hippocampus, lambda dataset: dataset["training"].pop())
    assert load().fingerprint == wanted
    change_entry(monkeypatch, "hippocampus", split={"full": (5, 2, 3)})
    with pytest.raises(UserError, match="9 scans of 9 subjects do not fill groups"):
        load()


# --- how the files say it -------------------------------------------------------------------------


def test_a_cohort_knows_the_numbers_of_its_structures_and_their_type(hippocampus, monkeypatch):
    cohort = load()
    assert cohort.label_numbers == ((1,), (2,)) and cohort.label_dtype == "uint8"
    structures = (("posterior", (2,)), ("others", (1, "300-301")))
    change_entry(monkeypatch, "hippocampus", structures=structures)
    cohort = load()
    assert cohort.label_numbers == ((2,), (1, 300, 301))
    assert cohort.label_dtype == "int16"  # which holds 301


@pytest.mark.parametrize(
    "types, wanted",
    [
        (["uint8"], "uint8"),
        (["int16"], "int16"),
        (["uint8", "int16"], "int16"),
        (["uint16", "int16"], "int32"),
        (["uint64", "int16"], "int64"),
        (["float32"], "uint8"),
        (["float64", "int32"], "int32"),
    ],
    ids=str,
)
def test_the_type_of_the_label_files_is_the_largest(hippocampus, types, wanted):
    for number, path in enumerate(sorted((hippocampus / "labelsTr").glob("*.nii.gz"))):
        labels = np.asarray(nib.load(path).dataobj)
        dtype = types[number % len(types)]
        nib.Nifti1Image(labels.astype(dtype), np.eye(4), dtype=dtype).to_filename(path)
    assert load().label_dtype == load().label_dtype == wanted  # read, and from the cache


def test_label_files_that_are_scaled_have_the_smallest_type_that_does(hippocampus):
    for path in (hippocampus / "labelsTr").glob("*.nii.gz"):
        labels = np.asarray(nib.load(path).dataobj)
        image = nib.Nifti1Image((labels * 2).astype(np.int32), np.eye(4))
        image.header.set_slope_inter(0.5, 0)
        image.to_filename(path)
    assert load().label_dtype == "uint8"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("align", [False, True])
def test_a_cohort_keeps_what_a_later_scan_is_prepared_by(hippocampus, monkeypatch, dims, align):
    change_entry(monkeypatch, "hippocampus", align=align)
    cohort = load(dims=dims)
    assert cohort.volume == datasets.describe("hippocampus").grid("smoke", 3)
    if align:
        assert cohort.reference.shape == (1, *cohort.volume[0])
        if dims == 3:
            assert torch.equal(cohort.reference, cohort.train[0].image)
    else:
        assert cohort.reference is None


@pytest.mark.parametrize("name", PHANTOMS)
def test_the_numbers_of_a_phantom_are_its_indices(name):
    cohort = load(name, dims=2)
    wanted = tuple((index,) for index in range(1, len(cohort.structures)))
    assert (cohort.label_numbers, cohort.label_dtype, cohort.volume) == (wanted, "uint8", None)


# --- slices ---------------------------------------------------------------------------------------

SLICES = OWN.replace("full-3d = { shape = [16, 24, 16]", "full-2d = { shape = [16, 24]")
SLICES += "dims = 2\n"
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


def write_slices(folder, thin, axes=3):
    """Every file of a cohort cut to one slice along the axis ``thin``; of two axes, or three."""
    for path in folder.glob("*Tr/*.nii.gz"):
        image = nib.load(path)
        array = np.asarray(image.dataobj).take([6], thin)
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, thin] * 6
        if axes == 2:
            others = [axis for axis in range(3) if axis != thin]
            array, affine = array.squeeze(thin), affine[:, [*others, thin, 3]]
        nib.Nifti1Image(array, affine).to_filename(path)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("plane", AXES)
def test_files_that_are_slices_along_any_axis_are_2d_scans(home, tmp_path, plane, axes, align):
    head = SLICES + f"align = {str(align).lower()}\n"
    path = write_own(tmp_path / "own", PARTS, head)
    whole = nib.load(tmp_path / "own" / "labelsTr" / "s0.nii.gz").get_fdata()
    write_slices(tmp_path / "own", AXES[plane], axes)
    cohort = load(path, profile="full", dims=2)
    assert cohort.shape == (16, 24) and cohort.volume == ((16, 24), 1.0)
    wanted = whole.take(6, AXES[plane])
    for scan in cohort.scans:
        assert [int((scan.labels == i).sum()) for i in (1, 2)] == pytest.approx(
            [(wanted == i).sum() for i in (1, 2)], abs=20 if align else 0
        )
        middle = torch.cat([(scan.labels > 0).nonzero().double().mean(0), torch.tensor([0.0, 1.0])])
        place = scan.affine @ middle.double()  # of the block, in the world
        expected = torch.tensor([5.5, 6.5, 5.5])
        expected[AXES[plane]] = 6
        torch.testing.assert_close(place[:3], expected.double(), rtol=0, atol=0.7)
        assert cohort.reference is None or cohort.reference.shape == (1, 16, 24)


def test_slices_are_read_onto_the_flat_grids_of_an_entry_that_has_volumes_too(home, tmp_path):
    path = write_own(tmp_path / "own", PARTS)
    write_slices(tmp_path / "own", 2)
    cohort = load(path, profile="full", dims=2)
    assert cohort.shape == (16, 24) and cohort.volume == ((16, 24), 1.0)
    assert all(len(scan.labels.unique()) == 3 for scan in cohort.scans)
    with pytest.raises(
        UserError, match=r"s0.nii.gz: it is a single slice, and volumes are wanted: take dims=2"
    ):
        load(path, profile="full", dims=3)


@pytest.mark.parametrize("align", ["true", "false"])
@pytest.mark.parametrize("again", [False, True])
def test_slices_among_volumes_are_refused(home, tmp_path, align, again):
    folder = tmp_path / "own"
    path = write_own(folder, PARTS, OWN + f"align = {align}\n")
    if again:  # all but two are in the cache
        load(path, profile="full", dims=2)
    for part in ("imagesTr", "labelsTr"):
        image = nib.load(folder / part / "s4.nii.gz")
        image.slicer[:, :, 5:6].to_filename(folder / part / "s4.nii.gz")
    with pytest.raises(UserError, match=r"s4.nii.gz: it is a single slice, .*s0.nii.gz a volume"):
        load(path, profile="full", dims=2)


def test_a_tilted_slice_is_seen_in_its_own_plane(home, tmp_path):
    path = write_own(tmp_path / "own", PARTS, SLICES)
    write_slices(tmp_path / "own", 2, axes=2)
    turned = np.eye(4)
    cos, sin = np.cos(0.3), np.sin(0.3)
    turned[1:3, 1:3] = [[cos, -sin], [sin, cos]]
    for file in (tmp_path / "own").glob("*Tr/*.nii.gz"):
        image = nib.load(file)
        nib.Nifti1Image(np.asarray(image.dataobj), turned @ image.affine).to_filename(file)
    cohort = load(path, profile="full", dims=2)
    for scan in cohort.scans:
        counted = [int((scan.labels == i).sum()) for i in (1, 2)]
        assert counted == [24, 24]


# --- published splits, and names, of other layouts ------------------------------------------------

NAMED = """
[named]
title = "Named"
licence = "CC0"
layout = "subjects"
image = "{scan}/image.nii.gz"
labels = "{scan}/labels.nii.gz"
split.published = [2, 1, 2]
groups.train = ["A-*"]
groups.test = ["B-*"]
structures = [["lower", [1]], ["upper", [2]]]
grids.full-3d = { shape = [16, 24, 16], spacing = 1.0 }
"""


def write_named(folder, names):
    for number, name in enumerate(names):
        case = write_case(folder, name, number)
        for key, file in (("image", "image"), ("label", "labels")):
            target = folder / name / f"{file}.nii.gz"
            target.parent.mkdir(exist_ok=True)
            (folder / case[key]).rename(target)


def read_named(tmp_path, text=NAMED):
    (entry,) = datasets.read_entries(write_table(tmp_path, text)).values()
    return entry


def test_groups_of_an_entry_are_a_published_split(home, tmp_path, capsys):
    write_named(home / "named", ["A-1", "A-2", "A-3", "B-1", "B-2", "C-1"])
    cohort = load(read_named(tmp_path))
    assert len(cohort.train) == 2 and len(cohort.validation) == 1
    assert sorted(ids(cohort.test)) == ["B-1", "B-2"]
    assert "C-1" not in ids(cohort.scans)
    told = capsys.readouterr().out
    assert "6 of its 6 scans count as persons of their own" in told and "dataset.json" not in told


def test_validation_scans_may_be_published_too(home, tmp_path):
    write_named(home / "named", ["A-1", "A-2", "A-3", "B-1", "B-2", "V-1"])
    entry = read_named(tmp_path, NAMED + 'groups.validation = ["V-*"]\n')
    cohort = load(entry)
    assert ids(cohort.validation) == ["V-1"] and len(cohort.train) == 2
    short = entry.model_copy(update={"split": {"published": (2, 2, 2)}})
    with pytest.raises(UserError, match=r"split.published says 2 scans for validation, and 1 with"):
        load(short)


def test_a_test_group_needs_labels(home, tmp_path):
    write_named(home / "named", ["A-1", "A-2", "A-3", "B-1", "B-2"])
    (home / "named" / "B-2" / "labels.nii.gz").unlink()
    with pytest.raises(UserError, match=r"split.published says 2 scans for test, and 1 with l"):
        load(read_named(tmp_path))


def test_copies_in_other_layouts_have_no_dataset_json_to_mend(home, tmp_path):
    write_named(home / "named", ["A-1", "A-2", "A-3", "B-1", "B-2"])
    image = (home / "named" / "A-1" / "image.nii.gz").read_bytes()
    (home / "named" / "B-2" / "image.nii.gz").write_bytes(image)
    with pytest.raises(UserError, match="remove one of them, or mend how the entry or the folder"):
        load(read_named(tmp_path))


def test_regions_are_named_by_the_layout(home, tmp_path):
    (home / "nn").mkdir(parents=True)
    text = NAMED.replace("[named]", "[nn]").replace('"subjects"', '"nnunet"')
    text = re.sub("(image|labels|groups).*\n", "", text.replace("split.published", "split"))
    text = text.replace('structures = [["lower", [1]], ["upper", [2]]]', "regions = [1, 2]")
    names = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "lower": 1, "upper": 2}}
    (home / "nn" / "dataset.json").write_text(json.dumps({**names, "file_ending": ".nii.gz"}))
    for number in range(5):
        write_case(home / "nn", f"c{number}", number)
        image = home / "nn" / "imagesTr" / f"c{number}.nii.gz"
        image.rename(image.with_name(f"c{number}_0000.nii.gz"))
    assert load(read_named(tmp_path, text)).structures == ("background", "lower", "upper")


# --- what may be wrong with a folder --------------------------------------------------------------


def test_a_folder_that_is_missing_and_has_no_address_says_where_it_was_looked_for(
    home, monkeypatch
):
    with pytest.raises(
        FileNotFoundError, match=f"no folder oasis35 .*{re.escape(str(home))}.*set DEEPATLAS_DATA"
    ):
        load("oasis35")
    monkeypatch.delenv("DEEPATLAS_DATA")
    with pytest.raises(FileNotFoundError, match=r"oasis35 .*it is not set.*set DEEPATLAS_DATA"):
        load("oasis35-cortex")


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[]", "a list 'training'"),
        ("{}", "a list 'training'"),
        ('{"training": []}', "a list 'training'"),
        ('{"training": ["a.nii.gz"]}', "must name its 'image' and its 'label'"),
        ('{"training": 3}', "a list 'training'"),
        ('{"training": [{"image": 3, "label": 4}]}', "must name its 'image'"),
    ],
)
def test_a_broken_dataset_json_is_named(hippocampus, text, wanted):
    (hippocampus / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"dataset.json: .*{wanted}"):
        load()


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_a_missing_file_is_named(hippocampus, part):
    for path in (hippocampus / part).glob("*.nii.gz"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{part}/hippocampus_00\d.nii.gz: no such file"):
        load()


def test_the_data_folder_comes_before_the_cache_and_either_is_found(home, tmp_path):
    cached = write_dataset(tmp_path / "cache" / "hippocampus", count=1)
    assert datasets.local("hippocampus") == cached.resolve()
    own = write_dataset(home / "hippocampus", count=1)
    assert datasets.local("hippocampus") == datasets.find("hippocampus") == own.resolve()
    assert datasets.local("oasis35") is None


def test_a_relative_data_folder_would_be_another_one_in_a_notebook_and_is_refused(
    hippocampus, monkeypatch
):
    monkeypatch.chdir(hippocampus.parent.parent)
    monkeypatch.setenv("DEEPATLAS_DATA", "data")
    with pytest.raises(UserError, match="DEEPATLAS_DATA must be an absolute path, got 'data'"):
        datasets.find("hippocampus")


# --- grids of volumes -----------------------------------------------------------------------------

ENOUGH = 100  # voxels


def least_voxels(cohort):
    """{structure: voxels} of the scan that has fewest of it."""
    count = len(cohort.structures)
    found = [torch.bincount(scan.labels.flatten().long(), minlength=count) for scan in cohort.scans]
    return dict(zip(cohort.structures, torch.stack(found).amin(0).tolist(), strict=True))


@pytest.mark.parametrize("name", PHANTOMS)
def test_on_the_grid_of_a_class_every_structure_of_every_phantom_has_a_hundred_voxels(name):
    assert min(least_voxels(load(name, profile="class", dims=3)).values()) >= ENOUGH


# --- real scans -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oasis(real_data):
    return {
        (name, dims): load(name, dims=dims)
        for name, dims in (("oasis35", 3), ("oasis35", 2), ("oasis35-cortex", 3))
    }


def published(real_data):
    return json.loads((real_data / "oasis35" / "dataset.json").read_text())


def label_array(real_data, scan):
    return np.asarray(nib.load(real_data / "oasis35" / "labelsTr" / f"{scan.id}.nii.gz").dataobj)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_real_hippocampus_loads(real_data, dims):
    cohort = load(dims=dims)
    assert cohort.structures == ("background", "anterior", "posterior")
    assert [len(part) for part in (cohort.train, cohort.validation, cohort.test)] == [4, 2, 3]
    shares = torch.stack([(scan.labels > 0).float().mean() for scan in cohort.scans])
    assert shares.min() > 0.01 and shares.max() < 0.3


@pytest.mark.parametrize("key", [("oasis35", 2), ("oasis35", 3), ("oasis35-cortex", 3)], ids=str)
def test_the_published_groups_are_respected(oasis, real_data, key):
    group = {
        Path(item["image"]).name.split(".")[0]: item["group"]
        for item in published(real_data)["training"]
    }
    cohort = oasis[key]
    assert {group[scan.id] for scan in cohort.train + cohort.validation} == {"train"}
    assert sorted(ids(cohort.test)) == sorted(
        name for name, kind in group.items() if kind == "test"
    )
    assert (len(cohort.train), len(cohort.validation), len(cohort.test)) == (12, 3, 20)


def test_a_real_person_scanned_twice_is_one_subject_on_one_side(oasis, real_data):
    cohort = oasis["oasis35", 3]
    subject = {scan.id.split("_")[1]: scan.subject for scan in cohort.scans}
    side = {
        scan.id.split("_")[1]: i
        for i, part in enumerate((cohort.train, cohort.validation, cohort.test))
        for scan in part
    }
    pairs = published(real_data)["same_person_twice"]
    assert len(pairs) == 5
    for one, other in pairs:
        assert subject[one] == subject[other] and side[one] == side[other]
    assert len(set(subject.values())) == 30


def test_the_twelve_structures_hold_the_voxels_of_their_numbers(oasis, real_data):
    """Volumes counted in the files; the smoke grid is coarse, so the large structures must agree
    and all be there.
    """
    numbers = {
        "cerebral white matter": [44, 45],
        "cortex": range(100, 208),
        "lateral ventricles": range(49, 53),
        "thalamus": [59, 60],
        "caudate": [36, 37, 23, 30],
        "putamen": [57, 58],
        "pallidum": [55, 56],
        "hippocampus": [47, 48],
        "amygdala": [31, 32],
        "brain stem": [35, 61, 62],
        "cerebellar grey matter": [38, 39, 71, 72, 73],
        "cerebellar white matter": [40, 41],
    }
    entry = datasets.describe("oasis35")
    structures, lookup = datasets.structures_of(entry, real_data / "oasis35")
    assert structures == ("background", *numbers) == oasis["oasis35", 3].structures
    for stub in (oasis["oasis35", 3].train[0], oasis["oasis35", 3].test[0]):
        array = label_array(real_data, stub)
        paths = (
            real_data / "oasis35" / part / f"{stub.id}.nii.gz" for part in ("imagesTr", "labelsTr")
        )
        scan = datasets.load_scan(*paths, id=stub.id, subject=stub.subject, structures=lookup)
        counted = [int(np.isin(array, list(wanted)).sum()) for wanted in numbers.values()]
        assert torch.bincount(scan.labels.flatten().long(), minlength=13)[1:].tolist() == counted
        assert min(counted) > 0


def test_on_the_grid_the_large_structures_keep_their_volume(oasis, real_data):
    cohort = oasis["oasis35", 3]
    for scan in (cohort.train[0], cohort.test[3]):
        # of a voxel of the aligned grid, mm^3
        volume = float(torch.linalg.det(scan.affine[:3, :3]))
        whole = float((scan.labels > 0).sum()) * volume
        array = label_array(real_data, scan)
        wanted = 8 * int(np.isin(array, [n for n in range(23, 208) if n not in (42, 43)]).sum())
        assert whole == pytest.approx(wanted, rel=0.12)


@pytest.mark.learning  # aligning 35 scans takes half a minute
def test_on_the_grid_of_a_class_every_structure_of_every_real_brain_has_a_hundred_voxels(
    real_data,
):
    cohort = load("oasis35", profile="class", dims=3)
    assert min(least_voxels(cohort).values()) >= ENOUGH


def test_the_cortex_has_each_region_once_left_and_right_merged(oasis, real_data):
    cohort = oasis["oasis35-cortex", 3]
    names = cohort.structures[1:]
    assert len(set(names)) == len(names) == 49
    assert not any(word in name for name in names for word in ("Left", "Right"))
    _, lookup = datasets.structures_of(datasets.describe("oasis35-cortex"), real_data / "oasis35")
    wanted = [int(number) for number in published(real_data)["labels"] if 100 <= int(number) <= 207]
    assert sorted(lookup) == sorted(wanted) and len(wanted) == 98
    assert all(list(lookup.values()).count(index) == 2 for index in range(1, 50))


def test_the_real_2d_scans_are_the_middle_planes_of_the_aligned_volumes(oasis):
    flat, volume = oasis["oasis35", 2], oasis["oasis35", 3]
    for one, other in zip(flat.scans, volume.scans, strict=True):
        assert one.id == other.id
        assert torch.allclose(
            middle_plane(one, other, volume.spacing)[2],
            torch.tensor((volume.shape[2] - 1) / 2, dtype=torch.float64),
        )
        assert (one.labels > 0).float().mean() > 0.2
