"""Whose a scan is, what dataset.json may say, and which files are a data set's own."""

import json
import os
import re
import time
from pathlib import Path

from deepatlas import datasets
from deepatlas.datasets import Entry
from deepatlas.datasets.layouts import decathlon, label_names, person_of
from deepatlas.datasets.layouts.persons import united
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pytest
from folders import SHAPE, write_case, write_nifti

ADNI = [
    f"ADNI_{site}_S_{person}_MR_MP-RAGE__br_raw_S{10 + image}_I{4000 + image}"
    for image, (site, person) in enumerate(
        [("002", "0295"), ("002", "0413"), ("006", "0498"), ("007", "0041")] * 2
    )
]


def listed(folder, names, **more):
    """A dataset.json of scans with these names, without the scans."""
    training = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names]
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"training": training, **more}))
    return folder


def subjects(folder, names, template=None, **more):
    return [file.subject for file in decathlon(listed(folder, names, **more), template)]


# --- who is who -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, template, person",
    [
        ("hippocampus_001", "hippocampus_{subject}", "001"),
        ("oasis_1003", "oasis_{subject}", "1003"),
        ("case_01_0000", "{subject}_0000", "case_01"),
        ("sub-01_ses-02_T1w", "sub-{subject}_ses-*_T1w", "01"),
        (ADNI[0], "*_S_{subject}_*", "0295"),
        (ADNI[0], "ADNI_{subject}_MR_*", "002_S_0295"),
        ("mouse_a.b_left", "mouse_{subject}_*", "a.b"),
        ("a_b_c", "{subject}_*", "a"),  # as few characters as will do
        ("x", "{subject}", "x"),
        ("x", "*{subject}*", "x"),
        # without a template: BIDS, or a person of its own
        ("sub-01_ses-02_T1w", None, "01"),
        ("sub-CC110033_T1w", None, "CC110033"),
        ("sub-7", None, "7"),
        ("case_01_0000", None, "case_01_0000"),
        ("subject-01_T1w", None, "subject-01_T1w"),
        ("hippocampus_001", None, "hippocampus_001"),
    ],
)
def test_a_template_says_whose_a_scan_is(tmp_path, name, template, person):
    assert person_of(name, template, tmp_path) == person


@pytest.mark.parametrize("name", ["rat_1_a", "mouse__", "mouse_1", "amouse_1_a"])
def test_a_scan_whose_name_does_not_fit_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"the scan '{name}' does not fit subject = 'mouse_"):
        person_of(name, "mouse_{subject}_*", tmp_path)


def test_twenty_five_mice_are_twenty_five_persons(tmp_path):
    """Their names end with a modality of which there are three: three persons were guessed."""
    mice = [f"mouse{i:02d}_{('T2', 'UT', 'PD')[i % 3]}" for i in range(25)]
    assert len(set(subjects(tmp_path, mice))) == 25
    assert subjects(tmp_path, mice, "{subject}_*") == [f"mouse{i:02d}" for i in range(25)]


def test_an_image_number_is_no_person(tmp_path):
    """ADNI numbers images: scans of one person were eight persons, and fell on two sides."""
    found = subjects(tmp_path, ADNI, "*_S_{subject}_*")
    assert found == ["0295", "0413", "0498", "0041"] * 2


@pytest.mark.parametrize("ending", ["_T1w", "_ses-1_T1w"])
def test_a_name_of_bids_gives_the_person(tmp_path, ending):
    names = [f"sub-{i:02d}{ending}" for i in range(6)]
    assert subjects(tmp_path, names) == [f"{i:02d}" for i in range(6)]


def test_a_name_of_nnu_net_has_no_person(tmp_path):
    names = [f"brain_{i:03d}_0000" for i in range(6)]
    assert subjects(tmp_path, names) == names


def test_what_most_scans_share_is_nobody(tmp_path):
    mice = [f"mouse{i:02d}_{'UT' if i < 15 else i}" for i in range(25)]
    with pytest.raises(UserError, match="15 of 25 scans are of one person, 'UT'"):
        subjects(tmp_path, mice, "*_{subject}")
    assert subjects(tmp_path, ["a_1", "a_2", "b_1"], "{subject}_*") == ["a", "a", "b"]


# --- one person, several scans --------------------------------------------------------------------


@pytest.mark.parametrize(
    "groups, persons",
    [
        ([["000", "001"], ["001", "002"]], "000 000 000 003 004"),
        ([["001", "002"], ["000", "001"]], "000 000 000 003 004"),
        ([["000", "001"], ["003", "004"], ["004", "000"]], "003 003 002 003 003"),
        ([["004", "003"]], "000 001 002 004 004"),
        ([["h_000", "h_001"]], "000 000 002 003 004"),
        ([["h_000", "001"]], "000 000 002 003 004"),
        ([["000"], ["001", "001"]], "000 001 002 003 004"),
        ([], "000 001 002 003 004"),
    ],
)
def test_groups_that_share_a_person_unite_under_the_first(tmp_path, groups, persons):
    names = [f"h_{i:03d}" for i in range(5)]
    found = subjects(tmp_path, names, "h_{subject}", same_person_twice=groups)
    assert found == persons.split()


def test_without_a_template_scans_are_united_by_their_names(tmp_path):
    found = subjects(tmp_path, ["a", "b", "c"], same_person_twice=[["c", "a"]])
    assert found == ["c", "b", "c"]


@pytest.mark.parametrize(
    "groups", [[["000", "9"]], [["0"]], ["000"], [3], [[]], None, 3, {}, [[[]]]]
)
def test_somebody_unknown_is_no_person(tmp_path, groups):
    with pytest.raises(UserError, match=r"'same_person_twice' must list the scans of one person"):
        subjects(tmp_path, ["h_000", "h_001"], "h_{subject}", same_person_twice=groups)


def test_two_persons_do_not_have_one_file_of_labels(tmp_path):
    """Contrasts of one case, as nnU-Net numbers them, would fall on two sides of the split."""
    folder = listed(tmp_path, ["a_0000", "a_0001", "b_0000"])
    dataset = json.loads((folder / "dataset.json").read_text())
    for item, labels in zip(dataset["training"], ("a", "./labelsTr/../a", "b"), strict=True):
        item["label"] = "labelsTr/a.nii.gz" if labels != "b" else "./labelsTr/b.nii.gz"
    (folder / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(UserError, match=r"a_0000 and a_0001 have the same labels, a.nii.gz"):
        decathlon(folder)
    assert [file.subject for file in decathlon(folder, "{subject}_*")] == ["a", "a", "b"]


# --- dataset.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd.nii",
        "../a.nii.gz",
        "imagesTr/../../a.nii",
        "C:/a.nii",
        r"..\a.nii",
        r"\\x\a.nii",
        "",
        "imagesTr/",
        ".nii.gz",
        "a\x1b[31m.nii",
        "a\x00.nii",
        "a\n.nii",
    ],
)
@pytest.mark.parametrize("key", ["image", "label"])
def test_a_path_leads_to_a_file_in_the_folder(tmp_path, key, path):
    items = [{"image": "a.nii.gz", "label": "b.nii.gz"}, {"image": "c.nii.gz", "label": "d.nii.gz"}]
    items[1][key] = path
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    with pytest.raises(UserError, match=f"each '{key}' must be the path of a file in") as caught:
        decathlon(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("group", ["validation", "Train", "", 3, ["train"], {"a": 1}, True])
def test_a_group_is_train_or_test(tmp_path, group):
    item = {"image": "a.nii.gz", "label": "b.nii.gz", "group": group}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [item]}))
    with pytest.raises(UserError, match=r"dataset.json: each 'group' must be train or test, got"):
        decathlon(tmp_path)


def test_no_group_is_none(tmp_path):
    item = {"image": "a.nii.gz", "label": "b.nii.gz", "group": None}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [item]}))
    assert decathlon(tmp_path)[0].group is None


def test_an_image_is_not_its_own_labels(tmp_path):
    item = {"image": "a.nii.gz", "label": "a.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [item]}))
    with pytest.raises(UserError, match=r"'a.nii.gz' is an image and its own labels"):
        decathlon(tmp_path)


def test_nothing_but_resource_forks_is_an_empty_list(tmp_path):
    with pytest.raises(UserError, match="a list 'training' of image and label files was wanted"):
        decathlon(listed(tmp_path, ["._a", "._b"]))


@pytest.mark.parametrize(
    "labels",
    [
        ["a"],
        3,
        None,
        {"one": "a"},
        {"-1": "a"},
        {"1.0": "a"},
        {"": "a"},
        {"1": 2},
        {"1": ["a"]},
        {"1": "a", "01": "b"},
        {"9" * 5000: "a"},
        {"²": "a"},
        {"thalamus": 1},
    ],
)
def test_labels_are_named_by_their_numbers(tmp_path, labels):
    folder = listed(tmp_path, ["a"], labels=labels)
    with pytest.raises(UserError, match="'labels' must name each label number, as") as caught:
        label_names(folder)
    assert len(str(caught.value)) < 500


def test_a_byte_order_mark_and_deep_nesting(tmp_path):
    folder = listed(tmp_path, ["a"])
    path = folder / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [file.id for file in decathlon(folder)] == ["a"]
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"dataset.json: not valid JSON"):
        decathlon(folder)
    path.write_text('{"training": [' + "[" * 500 + "]" * 500 + "]}")
    with pytest.raises(UserError, match=r"must name its 'image' and its 'label', got") as caught:
        decathlon(folder)
    assert len(str(caught.value)) < 500


def test_a_hundred_thousand_entries_are_read_in_seconds(tmp_path):
    folder = listed(
        tmp_path,
        [f"m_{i}_x" for i in range(100_000)],
        same_person_twice=[[str(i), str(i + 1)] for i in range(0, 99_999)],
    )
    start = time.process_time()
    files = decathlon(folder, "m_{subject}_*")
    assert {file.subject for file in files} == {"0"}
    assert time.process_time() - start < 10


# --- the entry's regions --------------------------------------------------------------------------

REGIONS = {"0": "background", "1": "Left A  area one", "2": "Right A  area one", "3": "Brain Stem"}


def regions(folder, labels, low, high):
    listed(folder, ["a"], labels=labels)
    entry = datasets.describe("oasis35-cortex").model_copy(update={"regions": (low, high)})
    return datasets.structures_of(entry, folder)


def test_left_and_right_of_a_region_are_one_structure(tmp_path):
    more = REGIONS | {"4": "Left Putamen", "5": "Right Putamen"}
    names, index_of = regions(tmp_path, more, 1, 9)
    assert names == ("background", "area one", "Brain Stem", "Putamen")
    assert index_of == {1: 1, 2: 1, 3: 2, 4: 3, 5: 3}


@pytest.mark.parametrize("text", ["Left B  area one", "area one", "Right  C  area  one"])
def test_other_regions_of_one_name_are_not_merged(tmp_path, text):
    with pytest.raises(UserError, match=r"labels \[1, 2, 4\] would be one region, 'area one'"):
        regions(tmp_path, REGIONS | {"4": text}, 1, 9)


@pytest.mark.parametrize("text", ["", " ", "a\x1b[31m", "background"])
def test_a_region_has_a_name(tmp_path, text):
    with pytest.raises(UserError, match="a name was wanted for label number 4, got") as caught:
        regions(tmp_path, REGIONS | {"4": text}, 1, 9)
    assert str(caught.value).isprintable()


def test_regions_that_nobody_names_are_said(tmp_path):
    with pytest.raises(UserError, match="'labels' names no label number from 10 to 20"):
        regions(tmp_path, REGIONS, 10, 20)


# --- files of the split ---------------------------------------------------------------------------


@pytest.fixture
def blobs(tmp_path, monkeypatch):
    """(folder of nine scans, load): the function loads them, with other words in the entry."""
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path))
    folder = tmp_path / "blobs"
    items = [write_case(folder, f"blob_{i}", i) for i in range(9)]
    (folder / "dataset.json").write_text(json.dumps({"training": items}))

    def load(dims=3, seed=0, **changed):
        entry = {
            "name": "blobs",
            "title": "Blobs",
            "licence": "CC0",
            "split": [4, 2, 3],
            "structures": [["low", [1]], ["high", [2]]],
            "grids": {"full-3d": {"shape": [16, 16, 16], "spacing": 1.0}},
        }
        entry = datasets.Entry(**(entry | changed))
        return datasets.load_cohort(entry, profile="full", dims=dims, seed=seed)

    return folder, load


def change(folder, function):
    path = folder / "dataset.json"
    dataset = json.loads(path.read_text())
    function(dataset)
    path.write_text(json.dumps(dataset))


def test_nothing_is_guessed_about_persons_and_that_is_said(blobs, capsys):
    _, load = blobs
    load()
    said = "blobs: whose a scan is, the entry does not say: 9 of its 9 scans count as persons"
    assert said in capsys.readouterr().out
    load(subject="blob_{subject}")
    assert "whose a scan is" not in capsys.readouterr().out


def test_one_person_of_adni_is_on_one_side(blobs):
    folder, load = blobs
    change(folder, lambda dataset: dataset["training"].clear())
    persons = ["0295", "0413", "0498", "0041", "0555", "0678"]
    items = []
    for i in range(12):
        person = persons[i % 6]
        items.append(write_case(folder, f"ADNI_002_S_{person}_MR_S{i}_I{4000 + i}", 20 + i))
    change(folder, lambda dataset: dataset["training"].extend(items))
    for seed in range(4):
        cohort = load(subject="*_S_{subject}_*", split=[4, 2, 4], seed=seed)
        sides = [{scan.subject for scan in part} for part in (cohort.train, cohort.test)]
        assert len(cohort.train) == len(cohort.test) == 4
        assert [len(side) for side in sides] == [2, 2] and not sides[0] & sides[1]


def test_ten_copies_of_one_scan_are_not_ten_persons(blobs):
    folder, load = blobs
    original = (folder / "imagesTr" / "blob_0.nii.gz").read_bytes()
    for i in range(1, 9):
        (folder / "imagesTr" / f"blob_{i}.nii.gz").write_bytes(original)
    with pytest.raises(UserError, match=r"blob_\d.nii.gz and .*blob_\d.nii.gz hold the same image"):
        load()


def test_the_same_voxels_in_another_file_are_a_copy_and_those_of_one_person_are_said(blobs, capsys):
    folder, load = blobs
    image = folder / "imagesTr" / "blob_3.nii"  # not compressed, and somewhere else in the world
    array = np.asarray(nib.load(f"{image.with_name('blob_0.nii.gz')}").dataobj)
    write_nifti(image, array, 1.01)
    write_nifti(
        folder / "labelsTr" / "blob_3.nii",
        np.asarray(nib.load(folder / "labelsTr" / "blob_0.nii.gz").dataobj),
        1.01,
    )

    def other(dataset):
        item = dataset["training"][3]
        item["image"], item["label"] = "imagesTr/blob_3.nii", "labelsTr/blob_3.nii"

    change(folder, other)
    with pytest.raises(UserError, match=r"count as two persons, 'blob_[03]' and 'blob_[03]'"):
        load()
    change(folder, lambda dataset: dataset.update(same_person_twice=[["blob_0", "blob_3"]]))
    load(split=[4, 2, 2], seed=1)
    assert re.search("blob_[03].* hold the same image: it counts twice", capsys.readouterr().out)


def test_a_person_on_both_sides_of_a_published_split_is_named_before_anything_is_read(blobs):
    folder, load = blobs
    for path in (folder / "imagesTr").glob("*"):
        path.write_bytes(b"")

    def published(dataset):
        for i, item in enumerate(dataset["training"]):
            item["group"] = "train" if i < 6 else "test"
        dataset["same_person_twice"] = [["blob_2", "blob_7"]]

    change(folder, published)
    with pytest.raises(UserError, match="'blob_2': blob_2 is of 'group' train, blob_7 of test"):
        load(split={"published": [4, 2, 3]})
    change(folder, lambda dataset: dataset.pop("same_person_twice"))
    with pytest.raises(UserError, match=r"split.published says 4 scans for test, and 3 in its"):
        load(split={"published": [4, 2, 4]})


def test_missing_files_are_counted_before_anything_is_read(blobs):
    folder, load = blobs
    for i in range(4):
        (folder / "labelsTr" / f"blob_{i}.nii.gz").unlink()
    for path in (folder / "imagesTr").glob("*"):
        path.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no such file \(4 files of the split are missing"):
        load()


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_scans_may_be_links_as_on_a_cluster(blobs, part):
    """What the user has linked is his; only what dataset.json says is not followed."""
    folder, load = blobs
    path = folder / part / "blob_4.nii.gz"
    path.rename(folder.parent / "elsewhere.nii.gz")
    path.symlink_to(os.path.join("..", "..", "elsewhere.nii.gz"))
    assert "blob_4" in {scan.id for scan in load().scans}


def test_a_folder_that_is_a_link_itself_is_followed(blobs):
    folder, load = blobs
    folder.rename(folder.parent / "real")
    folder.symlink_to("real")
    assert len(load().scans) == 9


# --- what is left on the grid ---------------------------------------------------------------------


def relabel(folder, function, spacing=1.0):
    """``function(number of the scan, labels)`` gives other labels, None the same."""
    for i in range(9):
        labels = np.zeros(SHAPE, np.uint8)
        labels[3:9, 3:7, 3:9], labels[3:9, 7:11, 3:9] = 1, 2
        write_nifti(folder / "labelsTr" / f"blob_{i}.nii.gz", function(i, labels), spacing)


def place(folder, i, spacing):
    for part in ("imagesTr", "labelsTr"):
        path = folder / part / f"blob_{i}.nii.gz"
        array = np.asarray(nib.load(path).dataobj)
        write_nifti(path, array, spacing)


@pytest.mark.parametrize("spacing", [1e-3, 1e3])
def test_a_scan_in_another_unit_is_refused(blobs, spacing):
    """At 1e-3 no voxel was labelled, at 1e3 all were of one structure."""
    folder, load = blobs
    place(folder, 5, spacing)
    with pytest.raises(UserError, match=r"blob_5.nii.gz: the scan is .* mm long, .*mend the voxel"):
        load()


def corner(i, labels):
    """Scan 5 has its structures only in a corner."""
    if i == 5:
        labels[:] = 0
        labels[0, 0, 0] = 1
    return labels


@pytest.mark.parametrize("dims", [2, 3])
def test_structures_that_are_all_gone_are_said_with_what_to_do(blobs, dims):
    folder, load = blobs
    relabel(folder, corner)
    grids = {"full-3d": {"shape": [16, 16, 16], "spacing": 2.0}}
    with pytest.raises(UserError, match=r"blob_5.nii.gz: on the grid .*none of its structures is"):
        load(dims=dims, grids=grids)


def test_a_plane_that_misses_the_structures_is_refused_in_2d_only(blobs, capsys):
    folder, load = blobs

    def below(i, labels):
        if i == 5:
            labels[:, :, 4:] = 0
        return labels

    relabel(folder, below)
    assert load(dims=3)
    with pytest.raises(UserError, match=r"blob_5.nii.gz: .* its middle plane, none of its"):
        load(dims=2)
    assert load(dims=2, empty_labels=True)
    assert "1 of 9 scans show no structure, as its empty_labels allows" in capsys.readouterr().out


def test_a_scan_without_the_lesion_is_allowed_by_the_entry_and_said(blobs, capsys):
    folder, load = blobs
    relabel(folder, lambda i, labels: labels * (i not in (2, 5)))
    with pytest.raises(UserError, match=r"blob_[25].nii.gz: none of .*empty_labels = true"):
        load()
    cohort = load(empty_labels=True)
    assert "2 of 9 scans show no structure" in capsys.readouterr().out
    empty = {scan.id for scan in cohort.scans if not scan.labels.any()}
    assert empty == {"blob_2", "blob_5"}


def test_nothing_to_score_is_refused_before_a_training(blobs):
    folder, load = blobs
    test = {int(scan.id[-1]) for scan in load().test}
    relabel(folder, lambda i, labels: labels * (i not in test))
    with pytest.raises(UserError, match="blobs: no test scan shows any structure on the grid"):
        load(empty_labels=True)


def test_structures_that_nobody_shows_are_said_loudly(blobs, capsys):
    folder, load = blobs
    structures = [["low", [1]], ["high", [2]], ["nobody's", [7]], ["speck", [3]]]

    def speck(i, labels):
        labels[3, 3, 3] = 3
        return labels

    relabel(folder, speck)
    load(structures=structures, grids={"full-3d": {"shape": [16, 16, 16], "spacing": 3.0}})
    said = capsys.readouterr().out
    assert "blobs: WARNING: no file that was read holds the label numbers of nobody's\n" in said
    assert "blobs: WARNING: no scan shows, on this grid, speck\n" in said
    train = {int(scan.id[-1]) for scan in load().train}
    relabel(folder, lambda i, labels: np.where((labels == 2) & (i in train), 0, labels))
    load()
    assert "blobs: WARNING: no training scan shows high\n" in capsys.readouterr().out


def test_an_image_that_is_flat_on_the_grid_is_refused(blobs):
    folder, load = blobs
    image = np.zeros((60, 60, 60), np.float32)
    image[:4] = np.random.default_rng(0).random((4, 60, 60))
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[28:33, 28:33, 28:33] = 1
    write_nifti(folder / "imagesTr" / "blob_5.nii.gz", image)
    write_nifti(folder / "labelsTr" / "blob_5.nii.gz", labels)
    with pytest.raises(UserError, match=r"blob_5.nii.gz: on the grid .*the image is flat"):
        load()


# --- found by a reader ----------------------------------------------------------------------------


def test_one_name_for_a_scan_and_for_another_person_is_refused():
    person = {"1": "2", "x_1": "1", "x_2": "2", "y": "y"}
    with pytest.raises(UserError, match="'1' is a scan of '2' and another person's name"):
        united(person, [["1", "y"]], Path("dataset.json"))


@pytest.mark.parametrize("template", ["{subject}*", "scan{subject}*", "*{subject}"])
def test_a_template_that_does_not_say_where_the_person_ends_is_refused(template):
    with pytest.raises(ValueError, match="nothing says where the person ends"):
        Entry._check_subject(template)


def test_names_that_look_alike_in_a_table_are_one():
    for names in (["a ", "a"], ["Background"], ["Thalamus", "thalamus"]):
        structures = tuple((name, (number,)) for number, name in enumerate(names, 1))
        with pytest.raises(ValueError, match="is there twice"):
            Entry._check_structures(structures)
