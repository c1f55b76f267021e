"""Files of labels compared: on their own grid, in their own numbers, matched by their names."""

import json
import shutil

from deepatlas import apply, evaluation
from deepatlas.apply import scoring
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from folders import write_nnunet
from volumes import oblique

AFFINE = np.diag([0.8, 1.1, 3.0, 1.0])


def write(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def blocks(shift=0, numbers=(17, 53)):
    """Two blocks of different numbers; ``shift`` moves them along the last axis."""
    labels = np.zeros((12, 10, 9), np.int16)
    for number, begin in zip(numbers, (1, 7), strict=True):
        labels[begin : begin + 4, 2:7, 2 + shift : 6 + shift] = number
    return labels


@pytest.fixture
def files(tmp_path):
    predicted = write(tmp_path / "out" / "a_labels.nii.gz", blocks(1))
    return predicted, write(tmp_path / "truth" / "a.nii.gz", blocks())


def numbers(table):
    return table.set_index("structure")[list(evaluation.STRUCTURE_METRICS)]


def test_a_number_is_a_structure_and_distances_are_millimetres_of_the_grid(files):
    table = apply.evaluate(*files)
    assert table.columns.tolist() == ["case", "structure", *evaluation.STRUCTURE_METRICS]
    assert table["case"].tolist() == ["a", "a"] and table["structure"].tolist() == ["17", "53"]
    for name in ("17", "53"):
        wanted = evaluation.mask_scores(
            blocks(1) == int(name), blocks() == int(name), (0.8, 1.1, 3.0)
        )
        assert numbers(table).loc[name].to_dict() == pytest.approx(wanted)
    # a block of four slices moved by one: some of its boundary is a slice of 3 mm away
    assert numbers(table)["hd95_mm"].tolist() == [3.0, 3.0]


def test_axes_of_the_file_do_not_matter(files, tmp_path):
    """A file whose axes are turned has its millimetres turned with them."""
    turned = []
    for path, shift in zip(("p.nii.gz", "r.nii.gz"), (1, 0), strict=True):
        affine = AFFINE[:, [2, 1, 0, 3]]
        turned.append(write(tmp_path / path, blocks(shift).transpose(2, 1, 0), affine))
    wanted = numbers(apply.evaluate(*files))
    pd.testing.assert_frame_equal(numbers(apply.evaluate(*turned)), wanted)


def test_millimetres_of_an_oblique_file_are_those_along_its_own_axes(files, tmp_path):
    turned = []
    for path, shift in zip(("p.nii.gz", "r.nii.gz"), (1, 0), strict=True):
        affine = oblique((0.8, 1.1, 3.0), degrees=30.0)
        turned.append(write(tmp_path / path, blocks(shift), affine))
    pd.testing.assert_frame_equal(
        numbers(apply.evaluate(*turned)), numbers(apply.evaluate(*files)), rtol=1e-4
    )


def test_a_plane_is_scored(tmp_path):
    predicted = write(tmp_path / "p.nii.gz", blocks(1)[:, 4])
    reference = write(tmp_path / "r.nii.gz", blocks()[:, 4])
    table = numbers(apply.evaluate(predicted, reference))
    assert table["hd95_mm"].tolist() == pytest.approx([1.1, 1.1])


def test_labels_kept_as_decimal_numbers_are_the_same(files, tmp_path):
    same = write(tmp_path / "float.nii.gz", blocks(1).astype(np.float32))
    wanted = numbers(apply.evaluate(*files))
    pd.testing.assert_frame_equal(numbers(apply.evaluate(same, files[1])), wanted)


def test_structures_join_numbers_and_leave_others_out(files, tmp_path):
    """The prediction has one number for what the expert drew with two."""
    merged = write(tmp_path / "m.nii.gz", np.where(blocks(), 17, 0).astype(np.uint8))
    table = apply.evaluate(merged, files[1], {"both": (17, 53)})
    assert table["structure"].tolist() == ["both"] and table["dice"].tolist() == [1.0]
    table = apply.evaluate(*files, {"left": [17]})
    assert table["structure"].tolist() == ["left"]


def test_what_the_reference_lacks_is_no_number(files, tmp_path):
    only = write(tmp_path / "one.nii.gz", np.where(blocks() == 17, 17, 0).astype(np.uint8))
    table = numbers(apply.evaluate(files[0], only))
    assert table.loc["53"].isna().all() and table.loc["17"].notna().all()


def test_the_names_beside_a_prediction_are_taken(files):
    beside = files[0].with_name("a_labels.json")
    beside.write_text(json.dumps({"structures": {"front": [17], "back": [53]}}))
    table = apply.evaluate(*files)
    assert table["structure"].tolist() == ["front", "back"]


@pytest.mark.parametrize(
    "structures, sentence",
    [
        ({"background": (0,), "x": (17,)}, "0 is the number of the background, .*'background' has"),
        ({"whole": (17, 53), "core": (53,)}, "number 53 belongs to 'whole' and to 'core'"),
    ],
)
def test_a_number_is_of_one_structure_and_0_of_none(structures, sentence, files):
    files[0].with_name("a_labels.json").write_text(json.dumps(structures))
    for said in (structures, None):
        with pytest.raises(UserError, match=sentence):
            apply.evaluate(*files, said)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda array, affine: (array[:-1], affine), "has 11 x 10 x 9 voxels, and the reference"),
        (lambda array, affine: (array, affine @ np.diag([-1, 1, 1, 1])), "lies elsewhere"),
        (lambda array, affine: (array, affine @ np.diag([1, 1, 1.5, 1])), "lies elsewhere"),
        (lambda array, affine: (array * 0.3, affine), "whole numbers"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(change, sentence, files, tmp_path):
    other = write(tmp_path / "other.nii.gz", *change(blocks().astype(np.float32), AFFINE))
    with pytest.raises(UserError, match=f"other.nii.gz.*{sentence}"):
        apply.evaluate(other, files[1])


def test_other_numbers_are_a_sentence(files):
    with pytest.raises(UserError, match=r"a.nii.gz: holds none of .*'x': .*only .*\[17, 53\]"):
        apply.evaluate(*files, {"x": (1,)})


def test_nothing_there_is_a_sentence(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder; labels in NIfTI"):
        apply.evaluate(files[0], tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: there is no file in NIfTI format"):
        apply.evaluate(files[0].parent, tmp_path / "empty")


# --- which file belongs to which ------------------------------------------------------------------


@pytest.mark.parametrize(
    "predicted, reference",
    [
        ("a_labels", "a"),
        ("a_labels", "a_labels"),
        ("a_labels", "a_seg"),
        ("a", "a_dseg"),
        ("a_0000_labels", "a"),  # nnU-Net: only images have the channel in their names
        ("case_0000_labels", "case_0000"),
        ("sub-01_T1w_labels", "sub-01_dseg"),
        ("sub-01_ses-2_T1w_labels", "sub-01_ses-2_space-orig_desc-manual_dseg"),
    ],
)
def test_names_that_belong_together(predicted, reference, tmp_path):
    one = write(tmp_path / "p" / f"{predicted}.nii.gz", blocks())
    two = write(tmp_path / "r" / "deep" / f"{reference}.nii", blocks())
    write(tmp_path / "r" / "other_0001.nii.gz", blocks())
    found = scoring.match(tmp_path / "p", tmp_path / "r")
    assert [(pair.predicted, pair.reference) for pair in found.pairs] == [(one, two)]


def test_numbers_of_cases_are_told_apart(tmp_path):
    for i in (0, 1, 2):
        write(tmp_path / "p" / f"case_000{i}_labels.nii.gz", blocks())
        write(tmp_path / "r" / f"case_000{i}.nii.gz", blocks())
    found = scoring.match(tmp_path / "p", tmp_path / "r")
    assert [pair.case for pair in found.pairs] == ["case_0000", "case_0001", "case_0002"]


def test_images_beside_labels_are_no_reference(tmp_path):
    """As in a folder of BIDS: else an image of whole numbers would be compared."""
    write(tmp_path / "p" / "sub-01_T1w_labels.nii.gz", blocks())
    write(tmp_path / "r" / "sub-01_T1w.nii.gz", blocks())
    truth = write(tmp_path / "r" / "sub-01_dseg.nii.gz", blocks())
    assert scoring.match(tmp_path / "p", tmp_path / "r").pairs[0].reference == truth


def test_scans_in_folders_of_their_own_are_matched_by_a_list_of_them(tmp_path):
    """Their files have the same names everywhere; the sidecar says which image was segmented."""
    lines = ["image,labels,id"]
    for scan in ("s1", "s2", "s3"):
        image = write(tmp_path / "data" / scan / "norm.nii.gz", blocks())
        truth = "" if scan == "s3" else f"data/{scan}/expert.nii.gz"
        if truth:
            write(tmp_path / truth, blocks())
        write(tmp_path / "out" / scan / "norm_labels.nii.gz", blocks())
        sidecar = {"structures": {"all": [17, 53]}, "image": str(image)}
        (tmp_path / "out" / scan / "norm_labels.json").write_text(json.dumps(sidecar))
        lines.append(f"data/{scan}/norm.nii.gz,{truth},{scan}")
    table = tmp_path / "scans.csv"
    table.write_text("\n".join(lines))
    found = scoring.match(tmp_path / "out", table)
    assert [pair.case for pair in found.pairs] == ["s1", "s2"]
    assert [path.parent.name for path in found.unlabelled] == ["s3"]
    assert not found.without_reference
    for pair in found.pairs:
        assert pair.predicted.parent.name == pair.reference.parent.name == pair.case
    assert apply.evaluate(tmp_path / "out", table)["dice"].tolist() == [1.0, 1.0]


def test_a_data_set_is_compared_by_its_labels_alone(tmp_path):
    """Its images would fit by their names, too."""
    write_nnunet(tmp_path / "raw", count=3)
    labels = sorted((tmp_path / "raw" / "labelsTr").iterdir())
    (tmp_path / "out").mkdir()
    for image in (tmp_path / "raw" / "imagesTr").iterdir():
        shutil.copy(labels[0], tmp_path / "out" / image.name.replace(".nii", "_labels.nii"))
    found = scoring.match(tmp_path / "out", tmp_path / "raw")
    assert [pair.reference for pair in found.pairs] == labels


def test_warped_labels_are_not_those_of_their_own_scan(tmp_path):
    """They lie on another scan, whose labels the user must name."""
    write(tmp_path / "p" / "sub-01_dseg_warped.nii.gz", blocks())
    write(tmp_path / "r" / "sub-01_dseg.nii.gz", blocks())
    with pytest.raises(UserError, match="no name fits"):
        scoring.match(tmp_path / "p", tmp_path / "r")


def test_what_has_no_partner_is_named(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "p" / f"{name}_labels.nii.gz", blocks())
    for name in ("b", "c"):
        write(tmp_path / "r" / f"{name}.nii.gz", blocks())
    found = scoring.match(tmp_path / "p", tmp_path / "r")
    assert [pair.case for pair in found.pairs] == ["b"]
    assert [path.name for path in found.without_reference] == ["a_labels.nii.gz"]
    assert [path.name for path in found.without_prediction] == ["c.nii.gz"]


@pytest.mark.parametrize(
    "predicted, reference, sentence",
    [
        (["a_labels"], ["x/a", "y/a"], "could both be its reference"),
        (["x/a_labels", "y/a_labels"], ["a"], "could both be meant"),
        (["a_labels"], ["b"], "a_labels.nii.gz would go with a.nii.gz, and there is b.nii.gz"),
        (
            ["a_labels"],
            ["b"],
            "name the cohort.toml or the table that lists images with their labels",
        ),
    ],
)
def test_names_that_tell_nothing_are_a_sentence(predicted, reference, sentence, tmp_path):
    for folder, names in (("p", predicted), ("r", reference)):
        for name in names:
            write(tmp_path / folder / f"{name}.nii.gz", blocks())
    with pytest.raises(UserError, match=sentence):
        scoring.match(tmp_path / "p", tmp_path / "r")


def test_two_files_are_compared_whatever_their_names(tmp_path):
    one, two = (write(tmp_path / f"{name}.nii.gz", blocks()) for name in ("x", "y"))
    assert apply.evaluate(one, two)["dice"].tolist() == [1.0, 1.0]


def test_a_file_is_not_compared_with_itself(files):
    """As where the results lie in the folder of the expert's: all would be perfect."""
    with pytest.raises(UserError, match=r"a_labels\.nii\.gz: would be compared with itself"):
        apply.evaluate(files[0].parent, files[0].parent)
