"""Whose a scan is, what dataset.json may say, and which files are a data set's own."""

import json
import os
import re
import shutil
from pathlib import Path

from deepatlas import datasets
from deepatlas.cli import app
from deepatlas.datasets import Entry
from deepatlas.datasets.layouts import (
    LAYOUTS,
    check_files,
    decathlon,
    label_names,
    list_files,
    person_of,
    read_folder,
    recognise,
)
from deepatlas.datasets.layouts.persons import united
from deepatlas.datasets.survey import survey
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pytest
from folders import (
    SHAPE,
    write_bids,
    write_case,
    write_dataset,
    write_folders,
    write_nifti,
    write_nnunet,
    write_scan,
    write_subjects,
    write_table,
)
from growth import times_longer
from typer.testing import CliRunner

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
    sentence = f"the scan '{name}' does not fit subject = 'mouse_.*--subject"
    with pytest.raises(UserError, match=sentence):
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


def test_the_time_to_read_a_list_of_scans_grows_with_their_number(tmp_path):
    def read(count):
        folder = listed(
            tmp_path / str(count),
            [f"m_{i}_x" for i in range(count)],
            same_person_twice=[[str(i), str(i + 1)] for i in range(0, count - 1)],
        )
        assert {file.subject for file in decathlon(folder, "m_{subject}_*")} == {"0"}

    assert times_longer(lambda: read(10_000), lambda: read(100_000)) < 40  # squared: 100


# --- the entry's regions --------------------------------------------------------------------------

REGIONS = {"0": "background", "1": "Left A  area one", "2": "Right A  area one", "3": "Brain Stem"}


def regions(folder, labels, low, high):
    listed(folder, ["a"], labels=labels)
    entry = datasets.describe("oasis35-cortex").model_copy(
        update={"regions": (low, high), "subject": None}
    )
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
    with pytest.raises(UserError, match=r"split.published says 4 scans for test, and 3 with"):
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


# --- folders in each layout -----------------------------------------------------------------------

WRITERS = {
    "decathlon": write_dataset,
    "nnunet": write_nnunet,
    "bids": write_bids,
    "folders": write_folders,
    "table": write_table,
    "subjects": write_subjects,
}


def names_of(listing):
    """(id, name of the labels or None) of each scan."""
    return [(file.id, file.labels and file.labels.name) for file in listing.files]


def test_the_table_is_what_is_tested():
    assert set(WRITERS) | {"cohort"} == set(LAYOUTS)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_layout_is_recognised_and_no_other(tmp_path, layout):
    folder = WRITERS[layout](tmp_path / "x y")
    found, why = recognise(folder)
    assert found == layout
    assert "could be" not in why
    listing = read_folder(folder)
    assert (listing.layout, listing.why) == (found, why)
    assert listing.notes == []
    assert len(listing.files) == (9 if layout == "decathlon" else 6)
    unlabelled = [file for file in listing.files if file.labels is None]
    assert len(unlabelled) == (0 if layout == "decathlon" else 1)
    paths = [file.image for file in listing.files]
    paths += [file.labels for file in listing.files if file.labels is not None]
    assert len(set(paths)) == len(paths) and all(path.is_file() for path in paths)
    assert {str(path).count("x y") for path in paths} == {1}


@pytest.mark.parametrize("layout", WRITERS)
def test_litter_is_not_read(tmp_path, layout):
    """Resource forks of macOS, hidden files and folders, a readme."""
    folder = WRITERS[layout](tmp_path)
    before = names_of(read_folder(folder))
    for path in list(folder.rglob("*")):
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        else:
            (path / ".DS_Store").write_bytes(b"\0")
            (path / ".trash" / "a_seg.nii.gz").parent.mkdir()
            (path / ".trash" / "a_seg.nii.gz").write_bytes(b"")
            (path / "README.txt").write_text("hello")
    assert names_of(read_folder(folder)) == before


@pytest.mark.parametrize("layout", ["nnunet", "bids", "folders", "subjects"])
def test_endings_may_be_in_capitals(tmp_path, layout):
    folder = WRITERS[layout](tmp_path)
    before = names_of(read_folder(folder))
    for path in list(folder.rglob("*.nii.gz")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    after = names_of(read_folder(folder))
    assert [id for id, _ in after] == [id for id, _ in before]
    assert [labels is None for _, labels in after] == [labels is None for _, labels in before]


@pytest.mark.parametrize("layout", WRITERS)
def test_files_and_folders_may_be_links_in_each_layout(tmp_path, layout):
    """As git-annex and clusters have them."""
    folder = WRITERS[layout](tmp_path / "x")
    before = names_of(read_folder(folder))
    for number, path in enumerate(sorted(folder.rglob("*.nii.gz"))):
        path.rename(tmp_path / f"{number}.bin")
        path.symlink_to(tmp_path / f"{number}.bin")
    for number, path in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        path.rename(tmp_path / f"folder {number}")
        path.symlink_to(tmp_path / f"folder {number}")
    (tmp_path / "y").symlink_to(folder)
    assert names_of(read_folder(tmp_path / "y")) == before


PERSONS = {  # names of persons, and of the scans of either side
    "decathlon": ("hippocampus_{subject}", "*_00[0-5]", "*[6-8]"),
    "nnunet": ("case_{subject}", "*_00[0-5]", "*[6-8]"),
    "bids": ("sub-{subject}_T1w", "*0[1-6]_*", "*0[7-9]_*"),
    "folders": ("mouse{subject}", "mouse0[0-5]", "mouse0[6-8]"),
    "table": ("t1 {subject}", "t1 [0-5]", "t1 [6-8]"),
    "subjects": ("brain_{subject}", "brain_[0-5]", "brain_[6-8]"),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_an_entry_names_persons_and_sides_in_each_layout(tmp_path, monkeypatch, layout):
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path))
    more = {"test": 0} if layout == "nnunet" else {}
    folder = WRITERS[layout](tmp_path / "blobs", count=9, **more)
    ids = [file.id for file in read_folder(folder).files]
    pattern, train, test = PERSONS[layout]
    entry = plain_entry(
        layout=layout,
        subject=pattern,
        groups={"train": [train], "test": [test]},
        split={"published": [3, 1, 2]},
    )
    files = list_files(folder, entry)
    assert [file.id for file in files] == ids
    assert [file.group for file in files] == ["train"] * 6 + ["test"] * 3
    assert files[3].subject == {"bids": "04", "nnunet": "003", "decathlon": "003"}.get(
        layout, "03" if layout == "folders" else "3"
    )
    cohort = datasets.load_cohort(entry, profile="full")
    assert len(cohort.train) >= 3 and len(cohort.test) >= 2


def test_a_scan_is_on_one_side(tmp_path):
    folder = write_folders(tmp_path)
    entry = plain_entry(layout="folders", groups={"train": ["mouse*"], "test": ["mouse03"]})
    with pytest.raises(
        UserError, match=r"'mouse03' fits the patterns of groups.train and of groups.test"
    ):
        list_files(folder, entry)


def test_an_entry_of_no_known_layout_is_told_which_there_are(tmp_path):
    with pytest.raises(UserError, match="there is no layout 'bidz', did you mean 'bids'"):
        list_files(tmp_path, plain_entry(layout="bidz"))


def test_an_entry_without_any_scan_is_said(tmp_path):
    with pytest.raises(UserError, match="blobs: no scan was found in the layout 'folders'"):
        list_files(tmp_path, plain_entry(layout="folders"))


def plain_entry(**more):
    values = {
        "name": "blobs",
        "title": "Blobs",
        "licence": "CC0",
        "split": [3, 1, 1],
        "structures": [["low", [1]], ["high", [2]]],
        "grids": {"full-3d": {"shape": [16, 16, 16], "spacing": 1.0}},
    }
    return datasets.Entry(**(values | more))


def test_a_folder_that_is_none_of_them_is_told_all_that_was_looked_for(tmp_path):
    write_nifti(tmp_path / "a" / "b.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserError, match=r"no layout of scans .*was recognised. Looked for") as said:
        read_folder(tmp_path)
    assert all(name in str(said.value) for name in LAYOUTS)
    with pytest.raises(FileNotFoundError, match="no such folder or file; a folder of scans"):
        read_folder(tmp_path / "c")


def test_of_two_layouts_the_surer_is_taken_and_the_other_named(tmp_path):
    write_table(write_folders(tmp_path))
    listing = read_folder(tmp_path)
    assert listing.layout == "table"
    assert "it could be 'folders' as well (it has a folder images/" in listing.why
    assert "which is less sure" in listing.why
    assert read_folder(tmp_path, "folders").files[0].id == "mouse00"


@pytest.mark.parametrize(
    "options, said",
    [
        ({"subject": "mouse"}, r"subject = 'mouse': a pattern that holds \{subject\} was wanted"),
        ({"image": "a.nii"}, r"image = 'a.nii': a pattern that holds \{scan\} was wanted"),
        ({"labels": "a.nii"}, r"labels = 'a.nii': a pattern that holds \{scan\} was wanted"),
        (
            {"image": "/nowhere/{scan}.nii"},
            "image = '/nowhere/.*: a path that begins in",
        ),
        (
            {"labels": "/nowhere/{scan}.nii"},
            "labels = '/nowhere/.*: a path that begins in",
        ),
        ({"layout": "zip"}, "there is no layout 'zip': choose from cohort, decathlon"),
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path, options, said):
    write_folders(tmp_path)
    with pytest.raises(UserError, match=said):
        read_folder(tmp_path, **options)


# --- the Decathlon --------------------------------------------------------------------------------


def test_images_of_test_and_items_without_labels_are_unlabelled(tmp_path):
    folder = write_dataset(tmp_path, count=3)
    write_nifti(folder / "imagesTs" / "h_7.nii.gz", np.zeros(SHAPE, np.uint8))

    def more(dataset):
        del dataset["training"][1]["label"]
        dataset["test"] = [
            "./imagesTs/h_7.nii.gz",
            "./imagesTs/h_8.nii.gz",
            "imagesTs/._h_7.nii.gz",
        ]
        dataset["licence"] = "CC-BY-SA 4.0"

    change(folder, more)
    listing = read_folder(folder)
    assert names_of(listing) == [
        ("hippocampus_000", "hippocampus_000.nii.gz"),
        ("hippocampus_001", None),
        ("hippocampus_002", "hippocampus_002.nii.gz"),
        ("h_7", None),
    ]
    assert listing.names == {1: "Anterior", 2: "Posterior"}
    assert (listing.licence, listing.title) == ("CC-BY-SA 4.0", "Hippocampus")
    (note,) = listing.notes
    assert "1 images of the list 'test' of dataset.json are not there" in note and "h_8" in note


@pytest.mark.parametrize("item", [3, None, ["a"], {"label": "a.nii.gz"}])
def test_an_item_of_test_is_a_path(tmp_path, item):
    folder = listed(tmp_path, ["a"], test=[item])
    with pytest.raises(UserError, match=r"each entry of 'test' must name its 'image'"):
        decathlon(folder)


def test_a_name_in_training_and_in_test_is_refused(tmp_path):
    folder = write_dataset(tmp_path, count=2, test=["imagesTs/hippocampus_001.nii.gz"])
    write_nifti(folder / "imagesTs" / "hippocampus_001.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserError, match="'hippocampus_001' is there more than once"):
        decathlon(folder)


# --- nnU-Net --------------------------------------------------------------------------------------


def test_one_channel_of_nnu_net_is_taken_and_the_others_named(tmp_path):
    folder = write_nnunet(tmp_path, channels=("T1", "FLAIR"))
    listing = read_folder(folder)
    assert {file.image.name[-12:] for file in listing.files} == {"_0000.nii.gz"}
    assert "0 (T1) is taken, left out are 1 (FLAIR)" in listing.notes[0]
    for wanted in ("flair", "1"):
        listing = read_folder(folder, contrast=wanted)
        assert [file.image.name for file in listing.files][:2] == [
            "case_000_0001.nii.gz",
            "case_001_0001.nii.gz",
        ]
    with pytest.raises(UserError, match=r"no channel 'T2': choose from 0 \(T1\), 1 \(FLAIR\)"):
        read_folder(folder, contrast="T2")


def test_what_does_not_fit_in_nnu_net_is_said(tmp_path):
    folder = write_nnunet(tmp_path, channels=("T1", "T2"), numTraining=7)
    (folder / "imagesTr" / "case_001_0000.nii.gz").unlink()
    (folder / "imagesTr" / "case_002_0000.nii.gz").rename(folder / "imagesTr" / "odd.nii.gz")
    (folder / "imagesTr" / "case_002_0001.nii.gz").unlink()
    listing = read_folder(folder)
    said = "\n".join(listing.notes)
    assert "1 cases have no image of channel 0, and are left out: case_001" in said
    assert "1 files of imagesTr have no number of a channel, _0000, and are left out: odd" in said
    assert "1 files of labelsTr have no image of their name, and are left out: case_002" in said
    assert "dataset.json says numTraining 7, and 3 cases with labels were found" in said
    assert [file.id for file in listing.files] == ["case_000", "case_003", "case_004", "case_005"]


def test_regions_that_overlap_become_structures(tmp_path):
    labels = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    listing = read_folder(write_nnunet(tmp_path, labels=labels, regions_class_order=[1, 2, 3]))
    assert listing.names == {1: "whole tumour", 2: "core", 3: "enhancing"}
    assert "regions that overlap (whole tumour, core)" in listing.notes[0]
    both = {"background": 0, "left": [1, 2], "right": 3}
    listing = read_folder(write_nnunet(tmp_path, labels=both))
    assert listing.names == {1: "left 1", 2: "left 2", 3: "right"}


def test_voxels_that_nobody_labelled_are_said(tmp_path):
    labels = {"background": 0, "low": 1, "ignore": 2}
    listing = read_folder(write_nnunet(tmp_path, labels=labels))
    assert listing.names == {1: "low"}
    assert "the label 2, 'ignore', marks voxels that nobody has labelled" in listing.notes[0]


@pytest.mark.parametrize("labels", [3, ["a"], {"a": "b"}, {"a": -1}, {"a": 1.5}, {"a": []}])
def test_labels_of_nnu_net_are_numbers(tmp_path, labels):
    with pytest.raises(UserError, match="'labels' must give each name its number"):
        read_folder(write_nnunet(tmp_path, labels=labels))


@pytest.mark.parametrize("ending", [".png", ".tif", ".nrrd", 3])
def test_other_formats_are_refused_with_what_to_do(tmp_path, ending):
    folder = write_nnunet(tmp_path, file_ending=ending)
    with pytest.raises(UserError, match=r"its file_ending is .*convert the images and labels to"):
        read_folder(folder)


def test_the_first_version_of_nnu_net_is_read(tmp_path):
    """Its dataset.json lists images without the number of the channel that their files have."""
    folder = write_nnunet(tmp_path, test=0, labels={"0": "background", "1": "low", "2": "high"})

    def first(dataset):
        del dataset["channel_names"], dataset["file_ending"]
        dataset["modality"] = {"0": "T1"}
        dataset["training"] = [
            {"image": f"./imagesTr/case_{i:03d}.nii.gz", "label": f"./labelsTr/case_{i:03d}.nii.gz"}
            for i in range(5)
        ]

    change(folder, first)
    listing = read_folder(folder)
    assert listing.layout == "nnunet"
    assert listing.names == {1: "low", 2: "high"}
    assert [file.id for file in listing.files] == [f"case_{i:03d}" for i in range(6)]


def test_cases_that_dataset_json_lists_are_taken_as_listed(tmp_path):
    folder = write_folders(tmp_path, images="a", labels="b")
    dataset = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "low": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "dataset": {
            "m0": {"images": ["a/mouse00.nii.gz"], "label": "b/mouse00_seg.nii.gz"},
            "m1": {"images": ["a/mouse01.nii.gz"]},
        },
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    listing = read_folder(folder)
    assert names_of(listing) == [("m0", "mouse00_seg.nii.gz"), ("m1", None)]
    dataset["dataset"]["m1"] = {"image": "a/mouse01.nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(UserError, match="each case of 'dataset' must list its 'images'"):
        read_folder(folder)


def test_labels_of_images_ts_make_these_the_published_test_group(tmp_path):
    folder = write_nnunet(tmp_path, count=4, test=1)
    assert {file.group for file in read_folder(folder).files} == {None}
    labels = folder / "labelsTr" / "case_000.nii.gz"
    (folder / "labelsTs").mkdir()
    (folder / "labelsTs" / "case_003.nii.gz").write_bytes(labels.read_bytes())
    listing = read_folder(folder)
    assert [file.group for file in listing.files] == ["train", "train", "train", "test"]
    assert listing.files[3].labels.parent.name == "labelsTs"


def test_a_case_is_in_one_folder_of_nnu_net(tmp_path):
    folder = write_nnunet(tmp_path)
    image = folder / "imagesTr" / "case_000_0000.nii.gz"
    (folder / "imagesTs" / image.name).write_bytes(image.read_bytes())
    with pytest.raises(UserError, match="case_000 is in imagesTr and in imagesTs"):
        read_folder(folder)


def test_a_channel_of_a_case_is_there_once(tmp_path):
    folder = write_nnunet(tmp_path)
    (folder / "imagesTr" / "case_000_0000.nii").write_bytes(b"")
    with pytest.raises(UserError, match="is the same channel of the same case: remove one"):
        read_folder(folder)


# --- BIDS -----------------------------------------------------------------------------------------


def test_a_person_of_bids_has_all_his_sessions(tmp_path):
    listing = read_folder(write_bids(tmp_path, count=4, sessions=("pre", "post")))
    assert [file.subject for file in listing.files] == ["01", "01", "02", "02", "03", "03"] + 2 * [
        "04"
    ]
    assert listing.files[1].id == "sub-01_ses-pre_T1w"
    assert listing.files[1].labels.name == "sub-01_ses-pre_dseg.nii.gz"
    assert listing.names == {1: "low", 2: "high"}
    assert (listing.title, listing.licence) == ("Blobs", "CC0")


def test_one_person_with_most_scans_is_no_mistake_in_bids(tmp_path):
    folder = write_bids(tmp_path, count=2, sessions="abcd", unlabelled=0)
    for path in (folder / "sub-02").glob("ses-[bcd]"):
        shutil.rmtree(path)
    assert [file.subject for file in read_folder(folder).files] == ["01"] * 4 + ["02"]


def test_one_suffix_of_bids_is_taken_and_the_others_named(tmp_path):
    folder = write_bids(tmp_path, suffixes=("T1w", "T2w"))
    listing = read_folder(folder)
    assert all(file.id.endswith("_T1w") for file in listing.files)
    assert "T1w (6) is taken, left out are T2w (6)" in listing.notes[0]
    listing = read_folder(folder, contrast="T2w")
    assert all(file.id.endswith("_T2w") for file in listing.files) and listing.files[0].labels
    with pytest.raises(UserError, match="no image with suffix 'FLAIR': there are T1w, T2w"):
        read_folder(folder, contrast="FLAIR")


def test_without_t1w_the_most_frequent_suffix_is_taken(tmp_path):
    folder = write_bids(tmp_path, suffixes=("PDw", "T2w"))
    (folder / "sub-03" / "anat" / "sub-03_PDw.nii.gz").unlink()
    assert all(file.id.endswith("_T2w") for file in read_folder(folder).files)


def rename(folder, old, new):
    for path in sorted(folder.rglob(f"*{old}*")):
        if path.is_file():
            path.rename(path.with_name(path.name.replace(old, new)))


def test_runs_have_labels_of_their_own(tmp_path):
    folder = write_bids(tmp_path, count=3, unlabelled=0)
    anat, drawn = folder / "sub-01" / "anat", folder / "derivatives" / "experts" / "sub-01" / "anat"
    rename(anat, "sub-01_T1w", "sub-01_run-1_T1w")
    rename(drawn, "sub-01_dseg", "sub-01_run-1_desc-manual_dseg")
    write_scan(anat / "sub-01_run-2_T1w.nii.gz", seed=77)
    rename(folder / "derivatives" / "experts" / "sub-02", "_dseg", "_desc-manual_dseg")
    rename(folder / "derivatives" / "experts" / "sub-03", "_dseg", "_desc-manual_dseg")
    assert names_of(read_folder(folder))[:2] == [
        ("sub-01_run-1_T1w", "sub-01_run-1_desc-manual_dseg.nii.gz"),
        ("sub-01_run-2_T1w", None),
    ]


def test_labels_that_fit_two_runs_are_taken_of_none(tmp_path):
    folder = write_bids(tmp_path, count=3, unlabelled=0)
    anat = folder / "sub-01" / "anat"
    rename(anat, "sub-01_T1w", "sub-01_run-1_T1w")
    write_scan(anat / "sub-01_run-2_T1w.nii.gz", seed=77)
    listing = read_folder(folder)
    assert [labels is None for _, labels in names_of(listing)] == [True, True, False, False]
    assert "1 label maps fit no image, or not one alone" in listing.notes[0]


def test_labels_of_one_kind_are_taken_for_all_scans(tmp_path):
    """Two raters, of whom one has drawn fewer; and labels in the space of a template."""
    folder = write_bids(tmp_path, count=4, unlabelled=0)
    other = write_bids(tmp_path / "other", count=2, unlabelled=0, pipeline="students")
    (other / "derivatives" / "students").rename(folder / "derivatives" / "students")
    shutil.rmtree(other)
    home = folder / "derivatives" / "experts" / "sub-01" / "anat"
    write_scan(home / "sub-01_space-MNI152NLin2009cAsym_dseg.nii.gz")
    write_scan(home / "sub-01_space-orig_atlas-dk_dseg.nii.gz")
    listing = read_folder(folder)
    assert {file.labels.parent.parent.parent.name for file in listing.files} == {"experts"}
    said = "\n".join(listing.notes)
    assert "1 label maps lie in another space than the images, by their names" in said
    assert "derivatives/experts dseg (4) is taken, left out are" in said
    assert "derivatives/students dseg (2)" in said and "atlas-dk dseg (1)" in said


def test_labels_beside_the_images_and_masks_are_found(tmp_path):
    folder = write_bids(tmp_path, count=3, unlabelled=3)
    shutil.rmtree(folder / "derivatives")
    for i in (1, 2):
        anat = folder / f"sub-0{i}" / "anat"
        write_scan(anat / f"sub-0{i}_label-L_desc-T1lesion_mask.nii.gz")
        write_scan(anat / f"sub-0{i}_desc-brain_mask.nii.gz")
    lesions = [f"sub-0{i}_label-L_desc-T1lesion_mask.nii.gz" for i in (1, 2)]
    assert [labels for _, labels in names_of(read_folder(folder))] == [*lesions, None]
    write_scan(folder / "sub-03" / "anat" / "sub-03_dseg.nii.gz")
    labels = [labels for _, labels in names_of(read_folder(folder))]
    assert labels == [None, None, "sub-03_dseg.nii.gz"]


def test_names_of_labels_are_inherited_from_the_nearest_table(tmp_path):
    folder = write_bids(tmp_path, count=3)
    table = folder / "derivatives" / "experts" / "dseg.tsv"
    near = table.with_name("sub-01") / "anat" / "sub-01_dseg.tsv"
    near.write_text("index\tname\n1\tlow\n2\tupper\n")
    listing = read_folder(folder)
    assert listing.names == {1: "low", 2: "high"}
    assert "give different names to 2: the first is taken" in listing.notes[0]
    near.unlink()
    table.rename(folder / "derivatives" / "dseg.tsv")
    assert read_folder(folder).names == {1: "low", 2: "high"}
    (folder / "derivatives" / "dseg.tsv").rename(folder / "desc-other_dseg.tsv")
    assert read_folder(folder).names == {}  # another kind's


@pytest.mark.parametrize("text", ["name\tindex\nlow\tx\n", "a\tb\n1\t2\n", b"\xff\xfe\x00"])
def test_a_table_of_names_has_index_and_name(tmp_path, text):
    folder = write_bids(tmp_path)
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "derivatives" / "experts" / "dseg.tsv").write_bytes(data)
    with pytest.raises(UserError, match=r"dseg.tsv: .*(index .*and name were wanted|not a table)"):
        read_folder(folder)


def test_persons_without_images_and_odd_names_are_said(tmp_path):
    folder = write_bids(tmp_path)
    rename(folder / "sub-02" / "anat", "sub-02_T1w", "sub-03_T1w")
    rename(folder / "sub-04" / "anat", "sub-04_T1w", "brain")
    said = "\n".join(read_folder(folder).notes)
    assert "sub-02 has no image in a folder anat" in said
    assert "2 files have no name of BIDS that begins with that of their folder" in said


# --- images beside labels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "images, labels",
    [("images", "labels"), ("IMGS", "gt"), ("Images", "Segmentations"), ("imagesTr", "labelsTr")],
)
def test_folders_have_many_names(tmp_path, images, labels):
    listing = read_folder(write_folders(tmp_path, images=images, labels=labels))
    assert listing.layout == "folders"
    assert names_of(listing)[0] == ("mouse00", "mouse00_seg.nii.gz")
    assert f"a folder {images}/ of images and a folder {labels}/ of labels" in listing.why


def test_labels_may_lie_beside_their_images(tmp_path):
    listing = read_folder(write_folders(tmp_path, images=".", labels=".", suffix="_mask"))
    assert "mouse00_mask.nii.gz lies beside mouse00.nii.gz" in listing.why
    assert names_of(listing)[4:] == [("mouse04", "mouse04_mask.nii.gz"), ("mouse05", None)]


PAIRS = [
    # image, labels, do they fit?
    ("a.nii.gz", "a.nii.gz", True),
    ("a.nii.gz", "a.nii", True),
    ("a.nii.gz", "a_seg.nii.gz", True),
    ("a.nii.gz", "a-label.nii.gz", True),
    ("a.nii.gz", "seg_a.nii.gz", True),
    ("a_img.nii.gz", "a_mask.nii.gz", True),
    ("a_0000.nii.gz", "a.nii.gz", True),
    ("a b.nii.gz", "a b_Seg.nii.gz", True),
    ("a.1.nii.gz", "a.1_gt.nii.gz", True),
    ("a_t1.nii.gz", "a_t1_by_hand.nii.gz", True),  # one begins with the other
    ("a_t1.nii.gz", "a.nii.gz", True),
    ("a1.nii.gz", "a.nii.gz", False),
    ("a_t1.nii.gz", "a_t2_seg.nii.gz", False),
    ("1.nii.gz", "11.nii.gz", False),
]


@pytest.mark.parametrize("image, label, fit", PAIRS, ids=[f"{a} {b}" for a, b, _ in PAIRS])
def test_labels_are_matched_by_name(tmp_path, image, label, fit):
    write_scan(tmp_path / "images" / "zz.nii.gz", tmp_path / "labels" / "zz.nii.gz")
    write_scan(tmp_path / "images" / image, tmp_path / "labels" / label)
    listing = read_folder(tmp_path)
    assert (listing.files[0].labels is not None) == fit
    assert bool(listing.notes) != fit
    assert listing.files[1].labels is not None
    if not fit:
        assert "1 files of labels fit no image" in listing.notes[0] and label in listing.notes[0]


def test_a_match_that_is_not_the_only_one_is_none(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    write_scan(images / "a.nii.gz", labels / "a_seg.nii.gz")
    write_scan(labels / "a_mask.nii.gz")  # two raters
    write_scan(images / "b_1.nii.gz", labels / "b.nii.gz")
    write_scan(images / "b_2.nii.gz")
    write_scan(images / "c.nii.gz", labels / "c_x.nii.gz")
    write_scan(images / "c_d.nii.gz", labels / "c_d_x.nii.gz")
    listing = read_folder(tmp_path)
    fitting = {id: labels for id, labels in names_of(listing) if labels}
    assert fitting == {}
    assert "5 files of labels fit no image, or not one alone" in listing.notes[0]
    write_scan(labels / "c_d.nii.gz")  # the same name is surer, and then c has one
    assert dict(names_of(read_folder(tmp_path)))["c_d"] == "c_d.nii.gz"


def test_other_folders_and_channels_are_said(tmp_path):
    folder = write_folders(tmp_path, count=3)
    rename(folder / "images", ".nii.gz", "_0000.nii.gz")
    write_scan(folder / "images" / "mouse00_0001.nii.gz")
    write_scan(folder / "masks" / "mouse00.nii.gz")
    listing = read_folder(folder)
    assert names_of(listing)[0] == ("mouse00", "mouse00_seg.nii.gz") and len(listing.files) == 3
    said = "\n".join(listing.notes)
    assert "images/, labels/ are taken, left out are the folders masks/" in said
    assert "of each case the channel _0000 is taken, left out are mouse00_0001.nii.gz" in said


def test_nnu_nets_folders_without_dataset_json_have_their_test_group(tmp_path):
    """As the knees of OAIZIB-CM come."""
    folder = write_nnunet(tmp_path, count=6, test=2, unlabelled=2)
    (folder / "dataset.json").unlink()
    listing = read_folder(folder)
    assert listing.layout == "folders" and listing.notes == []
    assert [file.id for file in listing.files] == [f"case_{i:03d}" for i in range(6)]
    assert [file.labels is None for file in listing.files] == [False] * 4 + [True] * 2
    assert {file.group for file in listing.files} == {None}
    for i in (4, 5):
        write_scan(folder / "labelsTs" / f"case_00{i}.nii.gz", seed=i)
    listing = read_folder(folder)
    assert [file.group for file in listing.files] == ["train"] * 4 + ["test"] * 2
    assert all(file.labels is not None for file in listing.files)


def test_two_files_of_one_name_are_refused(tmp_path):
    folder = write_folders(tmp_path)
    (folder / "images" / "mouse00.nii").write_bytes(b"")
    with pytest.raises(UserError, match=r"mouse00.nii.gz have one name: remove one"):
        read_folder(folder)
    (folder / "images" / "mouse00.nii").rename(folder / "labels" / "mouse00_seg.nii")
    with pytest.raises(UserError, match=r"mouse00_seg.nii.gz have one name: remove one"):
        read_folder(folder)


def test_most_scans_of_one_person_are_said_where_a_pattern_says_so_alone(tmp_path):
    """In a folder there is no list of persons: the names of BIDS are believed."""
    for session in "abcd":
        write_scan(tmp_path / "images" / f"sub-01_ses-{session}_T1w.nii.gz")
    write_scan(tmp_path / "images" / "sub-02_ses-a_T1w.nii.gz", tmp_path / "labels" / "sub-02.nii")
    persons = [file.subject for file in read_folder(tmp_path).files]
    assert persons == ["01"] * 4 + ["02"]
    with pytest.raises(
        UserError, match=r"5 of 5 .* 'T1w': .* in a table of the files, in a column"
    ):
        read_folder(tmp_path, subject="*_*_{subject}")


def test_the_time_to_match_files_grows_with_their_number(tmp_path):
    def folder_of(count):
        home = tmp_path / str(count)
        for part, ending in (("images", ""), ("labels", "_x_seg")):
            (home / part).mkdir(parents=True)
            for i in range(count):
                (home / part / f"scan_{i}{ending}.nii.gz").touch()
        return home

    def matched(home):
        listing = read_folder(home)
        assert all(file.labels.name == f"{file.id}_x_seg.nii.gz" for file in listing.files)

    few, many = folder_of(300), folder_of(3000)
    assert times_longer(lambda: matched(few), lambda: matched(many)) < 40  # squared: 100


# --- tables ---------------------------------------------------------------------------------------

COLUMNS = ("image", "labels", "subject", "group", "id")


@pytest.mark.parametrize("name", ["scans.csv", "Scans.TSV", "scans.tsv"])
def test_a_table_says_it_all(tmp_path, name):
    folder = write_table(tmp_path, name=name.lower(), header=COLUMNS)
    (folder / name.lower()).rename(folder / name)
    for path in (folder, folder / name):
        listing = read_folder(path)
        assert listing.layout == "table"
        assert [file.id for file in listing.files] == [f"scan{i}" for i in range(6)]
        assert [file.subject for file in listing.files] == ["p0", "p0", "p1", "p1", "p2", "p2"]
        assert [file.group for file in listing.files] == ["test"] * 2 + ["train"] * 4
        assert listing.files[5].labels is None
        assert listing.files[0].labels == folder / "files" / "drawn 0.nii.gz"
        assert "3 persons, told by the table's column of persons" in survey(listing).persons


def test_columns_have_many_names_and_other_separators(tmp_path):
    folder = write_table(tmp_path, header=COLUMNS)
    path = folder / "scans.csv"
    text = path.read_text().replace(",", ";").split("\n", 1)[1]
    path.write_text("\ufeffScan;Mask;Patient ID;Split;Name\n\n" + text, encoding="utf-8")
    listing = read_folder(folder)
    assert [file.subject for file in listing.files][:3] == ["p0", "p0", "p1"]
    assert [file.id for file in listing.files][:2] == ["scan0", "scan1"]


def test_without_a_column_of_persons_names_are_persons(tmp_path):
    folder = write_table(tmp_path)
    assert [file.subject for file in read_folder(folder).files][:2] == ["t1 0", "t1 1"]
    listing = read_folder(folder, subject="t1 {subject}")
    assert [file.subject for file in listing.files][:2] == ["0", "1"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for person in "ab":
        write_scan(tmp_path / person / "t1.nii.gz", tmp_path / person / "seg.nii.gz")
    lines = ["image,labels", "a/t1.nii.gz,a/seg.nii.gz", "b/t1.nii.gz,b/seg.nii.gz"]
    (tmp_path / "scans.csv").write_text("\n".join(lines))
    assert [file.id for file in read_folder(tmp_path, "table").files] == ["a_t1", "b_t1"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("picture,labels\na,b\n", r"a column 'image' was wanted .*got 'picture', 'labels'"),
        ("image,labels\n", "got no scan"),
        ("", "got no scan"),
        ("image,labels\na.nii,b.nii,c\n", "line 2 has 3 cells, and the first line 2"),
        ("image,labels\n\n,b.nii\n", "line 3 names no image"),
        ("image,part\na.nii,left\n", "line 2: the group must be train, validation or test, or"),
        ("image,scan\na.nii,b.nii\n", "columns 'image' and 'scan' are both of image"),
        ("image,image\na.nii,b.nii\n", "two columns have one name"),
        ("image,id\na.nii,x\nb.nii,x\n", "2 images have only 1 different names, 'x' is there"),
        ("image\na.nii\na.nii\n", "2 images have only 1 different names"),
        (b"image\n\xff\xfe.nii\n", "not a table of text in UTF-8"),
        ("image,labels\na.nii,c.nii\nb.nii,c.nii\n", "have the same labels, c.nii"),
    ],
)
def test_a_table_that_cannot_be_understood_is_said(tmp_path, text, said):
    path = tmp_path / "scans.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"scans.csv: .*{said}"):
        read_folder(path)


def test_two_tables_in_a_folder_are_none(tmp_path):
    write_table(tmp_path)
    write_table(tmp_path, name="more.csv")
    with pytest.raises(UserError, match=r"got more.csv, scans.csv: name the file itself"):
        read_folder(tmp_path, "table")
    assert len(read_folder(tmp_path / "more.csv").files) == 6


@pytest.mark.parametrize("layout", ["table", "folders"])
def test_what_a_check_writes_into_the_folder_changes_nothing(tmp_path, layout):
    """It leaves a table and a cohort file there, and neither is what the user meant."""
    folder = WRITERS[layout](tmp_path)
    before = recognise(folder)
    checked = CliRunner().invoke(app, ["data", "check", str(folder), "--to", str(folder)])
    assert (folder / "cohort.toml").is_file() and (folder / "check.csv").is_file(), checked.output
    assert recognise(folder) == before


# --- a folder for each scan -----------------------------------------------------------------------


def test_templates_say_where_the_files_of_a_scan_are(tmp_path):
    image, labels = "*/{scan}/t1weighted.nii.gz", "*/{scan}/labels.DKT31.manual.nii.gz"
    folder = write_subjects(tmp_path, image=image, labels=labels)
    write_scan(folder / "site" / "brain_0" / "labels.other.nii.gz")
    entry = plain_entry(layout="subjects", image=image, labels=labels, subject="brain_{subject}")
    files = list_files(folder, entry)
    assert [(file.id, file.subject) for file in files] == [(f"brain_{i}", str(i)) for i in range(6)]
    assert [file.labels is None for file in files] == [False] * 5 + [True]
    assert read_folder(folder, image=image, labels=labels).layout == "subjects"
    assert all(file.labels is None for file in read_folder(folder, image=image).files)


def test_a_scan_may_be_in_the_name_of_its_files_and_in_brackets(tmp_path):
    folder = write_subjects(
        tmp_path, image="{scan}/{scan}_t1.nii.gz", labels="{scan}/{scan}_gt.nii"
    )
    for path in (folder / "brain_1").iterdir():
        path.rename(path.with_name(path.name.replace("brain_1", "b[1]")))
    (folder / "brain_1").rename(folder / "b[1]")
    listing = read_folder(folder)
    assert names_of(listing)[0] == ("b[1]", "b[1]_gt.nii")
    assert "holds SCAN_t1.nii.gz, and SCAN_gt.nii looks like labels" in listing.why


def test_of_several_files_the_t1_and_the_first_labels_are_taken(tmp_path):
    folder = write_subjects(tmp_path, labels="{scan}/aligned_seg35.nii.gz", unlabelled=2)
    for scan in folder.iterdir():
        for name in ("flair", "orig", "t1ce"):
            write_scan(scan / f"{name}.nii.gz")
        if (scan / "aligned_seg35.nii.gz").exists():
            write_scan(scan / "seg4.nii.gz")
    listing = read_folder(folder)
    assert {file.image.name for file in listing.files} == {"t1.nii.gz"}
    assert listing.files[0].labels.name == "aligned_seg35.nii.gz"
    assert listing.files[5].labels is None
    said = "\n".join(listing.notes)
    assert "several files of image: {scan}/t1.nii.gz is taken, left out are t1ce.nii.gz, fl" in said
    assert "several files of labels" in said and "seg4.nii.gz" in said


def test_folders_that_differ_are_not_recognised(tmp_path):
    folder = write_subjects(tmp_path)
    write_scan(folder / "brain_0" / "extra.nii.gz")
    with pytest.raises(UserError, match="no layout of scans"):
        read_folder(folder)
    with pytest.raises(UserError, match="its folders do not hold files of the same names"):
        read_folder(folder, "subjects")


@pytest.mark.parametrize(
    "template, said",
    [
        ("{scan}/*.nii.gz", r"labels = .* fits several files of the scan 'brain_0': brain_0/seg"),
        ("{scan}/../{scan}/seg.nii.gz", None),
    ],
)
def test_labels_of_a_scan_are_one_file(tmp_path, template, said):
    folder = write_subjects(tmp_path)
    if said is None:
        listing = read_folder(folder, image="{scan}/t1.nii.gz", labels=template)
        assert listing.files[0].labels is not None
        return
    with pytest.raises(UserError, match=said):
        read_folder(folder, image="{scan}/t1.nii.gz", labels=template)


def test_scans_of_one_name_in_two_places_are_refused(tmp_path):
    folder = write_subjects(tmp_path, count=3, image="*/{scan}/t1.nii.gz", labels="*/{scan}/s.nii")
    write_scan(folder / "elsewhere" / "brain_0" / "t1.nii.gz")
    with pytest.raises(UserError, match="'brain_0' is there more than once"):
        read_folder(folder, image="*/{scan}/t1.nii.gz")


# --- a cohort file --------------------------------------------------------------------------------

COHORT = """
name = "mice"
title = "Mice"
licence = "mine"
structures = [["both", [1, "3-4"]], ["high", [2]]]
grids.full-3d = { shape = [16, 16, 16], spacing = 1.0 }

[[scans]]
id = "a"
subject = "p"
image = "images/mouse00.nii.gz"
labels = "labels/mouse00_seg.nii.gz"
part = "test"

[[scans]]
id = "b"
subject = "q"
image = "images/mouse01.nii.gz"
part = "train"

[[scans]]
id = "c"
image = "images/mouse02.nii.gz"
labels = "labels/mouse02_seg.nii.gz"
part = "train"
"""


def test_a_cohort_file_lists_its_scans(tmp_path):
    folder = write_folders(tmp_path)
    (folder / "cohort.toml").write_text(COHORT)
    listing = read_folder(folder / "cohort.toml")
    assert (listing.layout, listing.title, listing.licence) == ("cohort", "Mice", "mine")
    drawn = {file.id: file.labels and file.labels.name for file in listing.files}
    assert drawn == {"a": "mouse00_seg.nii.gz", "b": None, "c": "mouse02_seg.nii.gz"}
    told = {(file.id, file.subject, file.group) for file in listing.files}
    assert told == {("a", "p", "test"), ("b", "q", "train"), ("c", "c", "train")}
    assert listing.names == {1: "both", 3: "both", 4: "both", 2: "high"}
    entry = datasets.describe(str(folder))
    assert list_files(folder, entry) == listing.files
    check_files(listing.files)
    (folder / "images" / "mouse01.nii.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"mouse01.nii.gz: no such file: the data set lists"
    ):
        check_files(listing.files)
    assert recognise(folder)[0] == "folders"  # the file itself, if that is what is meant


# --- several images in a file ---------------------------------------------------------------------


def prostates(folder, monkeypatch):
    """As the Decathlon keeps prostates: T2 and ADC in one file; the second image is dark."""
    monkeypatch.setenv("DEEPATLAS_DATA", str(folder.parent))
    write_dataset(folder, count=6, modality={"0": "T2", "1": "ADC"})
    for path in (folder / "imagesTr").iterdir():
        image = np.asarray(nib.load(path).dataobj)
        write_nifti(path, np.stack([image, image.max() - image], axis=-1))
    return folder


def test_the_decathlons_files_of_several_images(tmp_path, monkeypatch):
    folder = prostates(tmp_path / "blobs", monkeypatch)
    listing = read_folder(folder)
    assert {file.channel for file in listing.files} == {0}
    assert "several channels: 0 (T2) is taken, left out are 1 (ADC)" in listing.notes[0]
    assert {file.channel for file in read_folder(folder, contrast="adc").files} == {1}
    with pytest.raises(UserError, match=r"no channel 'DWI': choose from 0 \(T2\), 1 \(ADC\)"):
        read_folder(folder, contrast="DWI")
    first, second = (
        datasets.load_cohort(plain_entry(channel=number), profile="full").train[0]
        for number in (0, 1)
    )
    assert (first.labels == second.labels).all()
    inside = first.labels > 0
    assert first.image[0][inside].mean() > 0.5 > second.image[0][inside].mean()


def test_a_check_of_several_images_ends_with_a_cohort_of_one(tmp_path, monkeypatch):
    folder = prostates(tmp_path / "blobs", monkeypatch)
    words = ["data", "check", str(folder), "--contrast", "ADC", "--to", str(tmp_path), "--quiet"]
    CliRunner().invoke(app, words)
    entry = datasets.describe(str(tmp_path / "cohort.toml"))
    assert entry.channel == 1
    listing = read_folder(tmp_path / "cohort.toml")
    assert {file.channel for file in listing.files} == {1}
    cohort = datasets.load_cohort(entry, profile="full")
    assert cohort.train[0].image[0][cohort.train[0].labels > 0].mean() < 0.5


def test_an_entry_names_the_channel_of_nnu_net(tmp_path):
    folder = write_nnunet(tmp_path, channels=("T1", "T2"))
    files = list_files(folder, plain_entry(layout="nnunet", channel=1))
    assert {file.image.name[-12:] for file in files} == {"_0001.nii.gz"}


# --- what is said is followed, and what a network wrote is no expert's ---------------------------


def write_segmentation(file):
    """Labels such as `deepatlas segment` writes, and what it says of them."""
    write_nifti(file, np.ones(SHAPE, np.uint8))
    about = {"structures": {"low": [1]}, "model": "blobs", "deepatlas": "0.2.0"}
    file.with_name(file.name.replace(".nii.gz", ".json")).write_text(json.dumps(about))


@pytest.mark.parametrize("labels", [".", "labels"])
def test_labels_that_a_network_wrote_are_not_learned_from(tmp_path, labels):
    """Results beside the scans: of labelled ones, too, which must not lose their expert's."""
    images = "." if labels == "." else "images"
    folder = write_folders(tmp_path, count=4, unlabelled=2, images=images, labels=labels)
    for i in range(4):
        write_segmentation(folder / labels / f"mouse{i:02d}_labels.nii.gz")
    listing = read_folder(folder)
    drawn = ["mouse00_seg.nii.gz", "mouse01_seg.nii.gz", None, None]
    assert [name for _, name in names_of(listing)] == drawn
    assert "4 files of labels were written by `deepatlas segment`, not drawn, and" in str(
        listing.notes
    )
    if labels == ".":
        assert listing.why == "mouse00_seg.nii.gz lies beside mouse00.nii.gz"
    # another's JSON, as of BIDS, says nothing of the kind
    for file in (folder / labels).glob("*_labels.json"):
        file.write_text('{"RepetitionTime": 2}')
    assert "deepatlas segment" not in str(read_folder(folder).notes)


def test_in_the_folder_of_a_scan_they_are_none_either(tmp_path):
    folder = write_subjects(tmp_path, labels="{scan}/z_seg.nii.gz")
    for scan in folder.iterdir():
        write_segmentation(scan / "t1_labels.nii.gz")
    listing = read_folder(folder)
    assert {name for _, name in names_of(listing)} == {"z_seg.nii.gz", None}
    assert listing.files[5].labels is None


@pytest.mark.parametrize(
    "layout, options, said",
    [
        ("folders", {"labels": "labels/{scan}_seg.nii.gz"}, "'folders' knows itself where"),
        ("folders", {"layout": "folders", "image": "{scan}.nii"}, "'folders' knows itself where"),
        ("folders", {"contrast": "T2w"}, "'folders' knows no contrasts: leave it out"),
        ("subjects", {"contrast": "T2w"}, "'subjects' knows no contrasts: leave it out"),
    ],
)
def test_what_a_layout_does_not_take_is_refused_and_not_passed_over(
    tmp_path, layout, options, said
):
    folder = WRITERS[layout](tmp_path)
    with pytest.raises(UserError, match=said):
        read_folder(folder, **options)


def test_what_fits_no_template_is_named(tmp_path):
    folder = write_folders(tmp_path, count=3)
    for name in ("images/other.nii.gz", "labels/Mouse-1.nii.gz"):
        write_nifti(folder / name, np.ones(SHAPE, np.uint8))
    templates = {"image": "images/mouse{scan}.nii.gz", "labels": "labels/mouse{scan}_seg.nii.gz"}
    listing = read_folder(folder, **templates)
    assert len(listing.files) == 3
    assert "2 files fit no template" in listing.notes[0]
    assert "left out: images/other.nii.gz, labels/Mouse-1.nii.gz" in listing.notes[0]
