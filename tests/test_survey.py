"""A stranger's folder is looked at, a cohort file is proposed, and what is wrong is said."""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from deepatlas.cli import main
from deepatlas.datasets import proposal as proposal_module
from deepatlas.datasets.entries import Grid, read_cohort
from deepatlas.datasets.grid import centred_affine
from deepatlas.datasets.layouts import File, Listing, read_folder
from deepatlas.datasets.nifti import load_scan
from deepatlas.datasets.proposal import as_said, cohort_text, propose
from deepatlas.datasets.survey import survey
from deepatlas.viewers.montage import montage

import nibabel as nib
import numpy as np
import pytest
from folders import write_dataset, write_nnunet

SHAPE = (24, 28, 20)
NAMES = {1: "lower", 2: "upper"}


def blocks(shape=SHAPE):
    """Two boxes, one on the other, in the middle."""
    labels = np.zeros(shape, np.uint8)
    i, j = (slice(n // 3, 2 * n // 3) for n in shape[:2])
    k = shape[2] // 2
    labels[i, j, k - 5 : k], labels[i, j, k : k + 5] = 1, 2
    return labels


def write(path, array, affine=None, change=None):
    if array.dtype == np.int64:
        array = array.astype(np.uint8)
    affine = np.eye(4) if affine is None else affine
    image = nib.Nifti1Image(array, None if affine is False else affine)
    image.header.set_xyzt_units("mm")
    if change is not None:
        change(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


class Folder:
    """Scans that are made, and then spoilt one by one."""

    def __init__(self, home, count=8, names=NAMES):
        self.home, self.names = home, names
        self.files = []
        for number in range(count):
            self.add(f"s{number}", seed=number)

    def add(self, id, seed=0, subject=None, labels=True, group=None):
        drawn = np.random.default_rng(seed)
        known = blocks()
        image = 100.0 * (known > 0) + 20 * drawn.random(SHAPE)
        write(self.image(id), image.astype(np.float32))
        known[8 + seed % 8, 18, 5 + seed // 8] = 1  # each a little different
        write(self.labels(id), known)
        file = File(id, subject or id, self.image(id), self.labels(id) if labels else None, group)
        self.files.append(file)
        return file

    def image(self, id):
        return self.home / "images" / f"{id}.nii.gz"

    def labels(self, id):
        return self.home / "labels" / f"{id}.nii.gz"

    def rewrite(self, id, both=None, affine=None, change=None, only=("image", "labels")):
        """Change the arrays, the affine or the header of a scan's files."""
        for which in only:
            path = getattr(self, which)(id)
            image = nib.load(path)
            array = np.asarray(image.dataobj)
            array = array if both is None else both(array)
            write(path, array, image.affine if affine is None else affine, change)

    @property
    def listing(self):
        return Listing("folders", "it was made", self.files, self.names)

    def survey(self):
        return survey(self.listing)

    def cohort(self, found=None, **options):
        """The proposal as the reader of cohort files reads it."""
        found = found or self.survey()
        proposal = propose(found, self.home.name, **options)
        path = self.home / "cohort.toml"
        path.write_text(cohort_text(proposal, found, self.home), encoding="utf-8")
        return read_cohort(path)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "mine")


def said(found):
    return "\n".join([*found.problems, *found.remarks])


# --- one row a scan -------------------------------------------------------------------------------


def test_the_table_has_what_the_files_hold(folder):
    affine = np.diag([-2.0, 1.0, 1.5, 1.0])
    folder.rewrite("s0", affine=affine, change=lambda image: image.set_qform(affine, 2))
    found = folder.survey()
    table = found.table().set_index("id")
    row = table.loc["s0"]
    array = np.asarray(nib.load(folder.image("s0")).dataobj)
    known = np.asarray(nib.load(folder.labels("s0")).dataobj)
    assert row["grid"] == "24 x 28 x 20" and row["spacing_mm"] == "2 x 1 x 1.5"
    assert row["orientation"] == "LAS" and table.loc["s1", "orientation"] == "RAS"
    assert (row["sform_code"], row["qform_code"], row["unit"]) == (2, 2, "mm")
    assert row["forms_apart_voxels"] == 0
    assert row["minimum"] == array.min() and row["maximum"] == array.max()
    assert row["p99"] == pytest.approx(np.percentile(array, 99))
    assert row["zeros"] == np.mean(array == 0) and row["not_finite"] == 0
    for number in (1, 2):
        assert row[f"label {number} voxels"] == (known == number).sum()
        assert row[f"label {number} mm3"] == pytest.approx(3 * (known == number).sum())
    assert row["label_numbers"] == "1-2" and not row["problem"]
    assert len(table) == 8 and not found.problems


def test_sound_scans_have_nothing_odd(folder):
    found = folder.survey()
    assert not found.problems and not found.remarks
    assert "8 scans of 8 persons: assumed" in found.persons


def test_persons_are_told_where_the_folder_tells_them(tmp_path):
    folder = Folder(tmp_path, count=0)
    for number in range(4):
        folder.add(f"s{number}", seed=number, subject=f"p{number // 2}")
    assert folder.survey().persons.startswith("4 scans of 2 persons, told by")


def test_what_a_cohort_file_leaves_out_is_one_sentence_and_persons_are_as_it_says(folder):
    folder.cohort()
    for id in ("s2", "s3"):
        folder.rewrite(id, lambda array: np.where(array == 2, 7, array), only=["labels"])
    folder.rewrite("s3", lambda array: np.where(array == 7, 9, array), only=["labels"])
    found = survey(read_folder(folder.home / "cohort.toml"))
    left_out = "not in the structures of the cohort file, so background: label numbers 7, 9"
    assert said(found).startswith("scans s2, s3: ") and said(found).count(left_out) == 1
    assert "in the folder" not in said(found)
    assert found.persons.startswith("8 scans of 8 persons, as the cohort file says; where a ")


# --- what is wrong --------------------------------------------------------------------------------


def test_files_that_cannot_be_read_are_named_and_the_others_go_on(folder):
    whole = folder.image("s1").read_bytes()
    folder.image("s1").write_bytes(whole[: len(whole) // 2])
    folder.labels("s2").unlink()
    found = folder.survey()
    assert len(found.problems) == 2 and len(found.usable) == 6
    assert re.search(r"scan s1: .*s1\.nii\.gz: cannot be read as NIfTI", found.problems[0])
    assert re.search(r"scan s2: .*s2\.nii\.gz: no such file", found.problems[1])
    assert found.table().set_index("id").loc["s1", "problem"]
    entry = folder.cohort(found)
    assert {scan.id for scan in entry.scans} == {"s0", "s3", "s4", "s5", "s6", "s7"}
    text = (folder.home / "cohort.toml").read_text(encoding="utf-8")
    assert '# id = "s1"' in text and "# left out: " in text


def nan(array):
    array[3, 3, 3] = np.nan
    return array


SPOILT = {
    "apart": (
        {"affine": np.diag([1, 1, 1, 1.0]) + np.eye(4, k=3) * 5, "only": ["labels"]},
        "the labels lie elsewhere in the world than the image",
    ),
    "another shape": (
        {"both": lambda array: array[:-2], "only": ["labels"]},
        r"the labels have \(22, 28, 20\) voxels, but the image",
    ),
    "no numbers of labels": (
        {"both": lambda array: array + np.float32(0.4), "only": ["labels"]},
        "labels must be whole numbers",
    ),
    "nan": ({"both": nan, "only": ["image"]}, "1 voxels of its image are NaN or infinite"),
    "flat": (
        {"both": lambda array: 0 * array + 3, "only": ["image"]},
        "its image has the value 3 everywhere",
    ),
    "nowhere": ({"affine": False}, "its header does not say where it lies"),
    "a slice": (
        {"both": lambda array: array[:, :, 9:10]},
        "its image is a slice, the others are volumes: keep one kind",
    ),
    "metres": (
        {"affine": np.diag([0.001, 0.001, 0.001, 1.0])},
        "its image is 0.028 mm long, the others about 28: mend the voxel size",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_a_run_would_refuse_must_be_mended(folder, what):
    change, sentence = SPOILT[what]
    folder.rewrite("s3", **change)
    found = folder.survey()
    assert len(found.problems) == 1
    assert re.match(f"scan s3: .*{sentence}", found.problems[0], re.DOTALL), found.problems
    assert "s3" not in {scan.id for scan in folder.cohort(found).scans}


def test_copies_are_found_by_content(folder):
    array = np.asarray(nib.load(folder.image("s1")).dataobj)
    write(folder.image("s4"), array.astype(np.float64))  # other bytes, the same image
    problem = folder.survey().problems
    assert len(problem) == 1
    assert "scan s4: its image is that of scan s1, voxel for voxel, and the two count" in problem[0]
    folder.files[4] = File("s4", "s1", folder.image("s4"), folder.labels("s4"))
    found = folder.survey()
    assert not found.problems
    assert "scan s4: its image is that of scan s1, voxel for voxel, and counts twice" in said(found)


def test_labels_of_another_scan_are_found(folder):
    special = np.roll(blocks(), 3, axis=1)
    for id in ("s2", "s5"):
        write(folder.labels(id), special)
    assert "scan s5: its labels are those of scan s2, voxel for voxel" in said(folder.survey())


# --- what is odd ----------------------------------------------------------------------------------


def turned(array):
    return array[::-1]


ODD = {
    "spacing": (
        {"affine": np.diag([3.5, 3.5, 3.5, 1])},
        "scan s3: .*spacing 3.5 mm, the others 1(;|$)",
    ),
    "one axis": (
        {"affine": np.diag([1, 1, 3.5, 1])},
        "scan s3: .*spacing 1 x 1 x 3.5 mm, the others 1(;|$)",
    ),
    "extent": (
        {"both": lambda a: a[:, 8:-8]},
        "scan s3: .*extent 24 x 12 x 20 mm, the others 24 x",
    ),
    "orientation": (
        {"both": turned, "affine": np.diag([-1.0, 1, 1, 1])},
        "scan s3: orientation LAS, the others RAS",
    ),
    "type": (
        {"both": lambda array: array.astype(np.int16)},
        "scan s3: type of voxels int16, the others float32",
    ),
    "unit": (
        {"change": lambda image: image.header.set_xyzt_units(0)},
        "scan s3: unit of lengths not told, the others mm",
    ),
    "sform": (
        {"change": lambda image: image.set_sform(image.affine, 4)},
        "scan s3: code of the sform 4, the others 2",
    ),
    "two places": (
        {"change": lambda image: image.set_qform(np.diag([1.0, 1, 1.2, 1]), 1)},
        "scan s3: .*its sform and its qform are up to .* voxels apart; the sform is taken",
    ),
    "intensities": (
        {"both": lambda array: 1000 * array, "only": ["image"]},
        "scan s3: .*largest intensity 1.2e\\+05, the others 120",
    ),
    "zeros": (
        {"both": lambda array: array * (array > 50), "only": ["image"]},
        "scan s3: .*share of zeros in the image 0.9.*, the others 0",
    ),
    "volume": (
        {"both": lambda array: array * (np.arange(28) > 16)[:, None], "only": ["labels"]},
        r"scan s3: volume of label 1 \(lower\) .* mm3, the others 361",
    ),
    "lacks": (
        {"both": lambda array: array * (array != 2), "only": ["labels"]},
        r"scan s3: .*lacks label 2 \(upper\), which 7 of 8 labelled scans have",
    ),
    "unlisted": (
        {"both": lambda array: np.where(np.arange(20) > 17, 7, array), "only": ["labels"]},
        "scan s3: label number 7 has .* voxels and no name in the folder: it becomes background",
    ),
    "nothing labelled": (
        {"both": lambda array: 0 * array, "only": ["labels"]},
        "scan s3: no voxel is labelled, though there is a file of labels",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_outliers_in_every_column_are_said_in_words(folder, what):
    change, sentence = ODD[what]
    folder.rewrite("s3", **change)
    found = folder.survey()
    assert not found.problems
    assert any(re.match(sentence, text) for text in found.remarks), found.remarks
    assert not any("s0" in text for text in found.remarks)
    assert found.table().set_index("id").loc["s3", "odd"]


def test_scans_with_the_same_oddity_are_in_one_sentence(tmp_path):
    folder = Folder(tmp_path, count=12)
    for number in (3, 5):
        folder.rewrite(f"s{number}", affine=np.diag([2.0, 2, 2, 1]))
    [sentence] = [text for text in folder.survey().remarks if "spacing" in text]
    assert sentence.startswith("scans s3, s5: spacing 2 mm, the others 1")


def test_few_scans_are_not_enough_for_what_is_usual(tmp_path):
    folder = Folder(tmp_path, count=4)
    folder.rewrite("s3", both=lambda array: 1000 * array, only=["image"])
    assert not folder.survey().remarks


def test_a_number_that_is_rare_is_told_where_the_folder_names_none(tmp_path):
    folder = Folder(tmp_path, names={})
    folder.rewrite("s3", both=lambda a: np.where(np.arange(20) > 17, 7, a), only=["labels"])
    found = folder.survey()
    assert "scan s3: label 7 is in 1 of 8 labelled scans only" in said(found)
    names = [name for name, _ in folder.cohort(found).structures]
    assert names == ["label 1", "label 2", "label 7"]


# --- the proposal ---------------------------------------------------------------------------------


def test_the_proposal_is_read_back(folder):
    entry = folder.cohort()
    assert entry.structures == (("lower", (1,)), ("upper", (2,)))
    assert entry.dims == 3 and not entry.align  # the boxes lie on each other
    assert entry.licence == "unknown: ask whoever gave you the scans"
    assert [scan.id for scan in entry.scans] == [f"s{number}" for number in range(8)]
    assert all((entry.home / scan.image).is_file() for scan in entry.scans)
    assert entry.scans[0].image == "images/s0.nii.gz"  # inside: the folder can be moved
    assert entry.grids["full-3d"] == entry.grids["class-3d"]  # small
    assert all(side % 8 == 0 for side in entry.grids["full-3d"].shape)
    first = (folder.home / "cohort.toml").read_text(encoding="utf-8")
    folder.cohort()
    assert (folder.home / "cohort.toml").read_text(encoding="utf-8") == first


def test_names_of_all_kinds_are_written_and_read_back(tmp_path):
    odd = {1: 'say "a\\b" é', 2: "upper", 3: "UPPER", 4: "background", 5: "in\x1bno\nfile"}
    folder = Folder(tmp_path / 'a "strange" ünï name', names=odd)
    numbers = np.array([0, 1, 2])
    for number in range(8):
        change = {0: numbers, 1: numbers + np.array([0, 2, 2])}.get(number % 2)
        folder.rewrite(f"s{number}", both=lambda a, c=change: c[a], only=["labels"])
    entry = folder.cohort()
    assert entry.structures == (
        ('say "a\\b" é', (1,)),
        ("upper", (2, 3)),  # of one name: merged
        ("label 4", (4,)),
    )
    text = (folder.home / "cohort.toml").read_text(encoding="utf-8")
    assert '# left out:    ["in\\\\x1bno file", [5]],  # in no file' in text


def test_labelled_scans_are_drawn_by_person_and_unlabelled_ones_train(tmp_path):
    folder = Folder(tmp_path, count=0)
    for number in range(20):
        folder.add(f"s{number}", number, subject=f"p{number // 2}", labels=number < 18)
    entry = folder.cohort()
    parts = {}
    for scan in entry.scans:
        parts.setdefault(scan.subject, set()).add(scan.part)
    assert all(len(some) == 1 for some in parts.values())
    persons = Counter(part for some in parts.values() for part in some)
    assert persons == {"train": 7, "validation": 1, "test": 2}  # p9 has no labels
    assert all(scan.part == "train" for scan in entry.scans if scan.labels is None)
    assert sum(scan.labels is None for scan in entry.scans) == 2
    other = folder.cohort(seed=1)
    assert {s.id: s.part for s in other.scans} != {s.id: s.part for s in entry.scans}


@pytest.mark.parametrize(
    "persons, wanted",
    [
        (1, (1, 0, 0)),
        (2, (2, 0, 0)),
        (3, (2, 0, 1)),
        (4, (2, 0, 2)),
        (5, (3, 0, 2)),
        (6, (3, 1, 2)),
        (20, (12, 3, 5)),
    ],
)
def test_how_many_persons_go_where(tmp_path, persons, wanted):
    count = Counter(scan.part for scan in Folder(tmp_path, persons).cohort().scans)
    assert (count["train"], count["validation"], count["test"]) == wanted


def test_a_published_split_is_kept(tmp_path):
    folder = Folder(tmp_path, count=0)
    for number in range(10):
        folder.add(f"s{number}", number, group="test" if number % 3 == 0 else "train")
    parts = {scan.id: scan.part for scan in folder.cohort().scans}
    assert {id for id, part in parts.items() if part == "test"} == {"s0", "s3", "s6", "s9"}
    assert Counter(parts.values())["validation"] == 1


def test_an_unlabelled_scan_of_a_test_person_is_left_out(tmp_path):
    folder = Folder(tmp_path, count=0)
    for number in range(4):
        folder.add(f"s{number}", number, group="test" if number < 2 else "train")
    folder.add("again", 9, subject="s0", labels=False)
    assert "again" not in {scan.id for scan in folder.cohort().scans}
    text = (folder.home / "cohort.toml").read_text(encoding="utf-8")
    assert "# left out: it has no labels, and its person is not in train" in text


def test_the_grid_holds_the_anatomy_and_counts_what_it_loses(tmp_path):
    folder = Folder(tmp_path, count=8)
    # the anatomy of one scan, whose voxels are odd, reaches far beyond the others'
    folder.rewrite("s3", affine=np.diag([1, 1, 9.0, 1]))
    found = folder.survey()
    proposal = propose(found, "mine")
    grid = proposal.grids["full-3d"]
    assert grid.spacing == 1.0 and grid.shape == (16, 16, 16)
    assert all(share == 0 for id, share in proposal.fit.outside.items() if id != "s3")
    scan = load_scan(
        folder.image("s3"), folder.labels("s3"), id="s3", subject="s3", structures={1: 1, 2: 1}
    )
    target = centred_affine(scan, grid.shape, grid.spacing).numpy()
    index = np.array(scan.labels.numpy().nonzero(), float)
    world = scan.affine[:3, :3].numpy() @ index + scan.affine[:3, 3:].numpy()
    on_grid = np.linalg.inv(target)[:3, :3] @ world + np.linalg.inv(target)[:3, 3:]
    sides = np.array(grid.shape)[:, None]
    inside = ((on_grid >= -0.5) & (on_grid <= sides - 0.5)).all(0)
    assert proposal.fit.outside["s3"] == pytest.approx(1 - inside.mean())
    assert 0.5 < proposal.fit.outside["s3"] < 1
    share = f"{100 * proposal.fit.outside['s3']:.1f}"
    assert f"scan s3: {share} % of its labelled voxels lie outside the grid" in proposal.remarks


def test_structures_that_vanish_on_a_grid_are_named(tmp_path):
    folder = Folder(tmp_path, count=5, names=NAMES | {3: "speck"})

    def with_speck(array):
        array[12, 14, 2] = 3
        return array

    for id in ("s1", "s2"):
        folder.rewrite(id, both=with_speck, only=["labels"])
    found = folder.survey()
    said_by = as_said(
        found,
        folder.cohort(found).model_copy(
            update={"grids": {"full-3d": Grid(shape=(16, 16, 16), spacing=3)}}
        ),
    )
    assert "structure speck: nothing of it is left on the grid of profile=full in scans s1, s2" in (
        said_by.remarks
    )
    assert not propose(found, "mine").fit.vanished  # its own grid keeps the voxel


def test_of_many_scans_some_are_tried_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(proposal_module, "MOST_TRIED", 4)
    monkeypatch.setattr(proposal_module, "MOST_COMPARED", 2)
    folder = Folder(tmp_path, count=8)
    entry = folder.cohort().model_copy(
        update={"grids": {"full-3d": Grid(shape=[16] * 3, spacing=40)}}
    )
    tried = as_said(folder.survey(), entry)
    assert tried.fit.tried == 4 and len(tried.fit.outside) == 8
    assert "whether structures are left on the grid was tried on 4 of 8 labelled scans" in (
        tried.remarks
    )


def test_oblique_and_anisotropic_scans_are_measured_in_the_world(tmp_path):
    folder = Folder(tmp_path, count=3)
    turn = nib.eulerangles.euler2mat(0.4, 0.2, 0.1)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 2.0, 1.0])
    for number in range(3):
        folder.rewrite(f"s{number}", affine=affine)
    found = folder.survey()
    scan = load_scan(
        folder.image("s1"), folder.labels("s1"), id="s", subject="s", structures={1: 1, 2: 1}
    )
    index = np.array(scan.labels.numpy().nonzero(), float)
    centre = (np.array(scan.shape)[:, None] - 1) / 2
    matrix = scan.affine[:3, :3].numpy()
    reach = np.abs(matrix @ (index - centre)).max(1) + np.abs(matrix).sum(1) / 2
    assert found.scans[1].anatomy == pytest.approx(2 * reach)
    proposal = propose(found, "mine")
    assert proposal.grids["full-3d"].spacing == 1.3  # the geometric mean of 1, 2 and 1
    assert max(proposal.fit.outside.values()) == 0


def test_alignment_is_proposed_where_anatomies_lie_apart(tmp_path):
    folder = Folder(tmp_path, count=4)
    for number in range(4):
        folder.rewrite(f"s{number}", both=lambda a, n=number: np.roll(a, 2 * n - 3, 1))
    assert folder.cohort().align
    text = (folder.home / "cohort.toml").read_text(encoding="utf-8")
    assert "mean Dice" in text


def test_unlabelled_scans_alone_have_a_grid_around_the_images(tmp_path):
    folder = Folder(tmp_path, count=0, names={})
    for number in range(4):
        folder.add(f"s{number}", number, labels=False)
    found = folder.survey()
    proposal = propose(found, "mine")
    assert proposal.grids["full-3d"].shape == (24, 32, 24) and proposal.align
    assert "no training scan is labelled: a run wants the labels of one at least" in (
        proposal.remarks
    )


def test_slices_become_a_cohort_of_two_dimensions(tmp_path):
    folder = Folder(tmp_path, count=4)
    for number in range(4):
        folder.rewrite(f"s{number}", both=lambda array: array[:, 14:15, :])
    found = folder.survey()
    entry = folder.cohort(found)
    assert entry.dims == 2 and not entry.align
    assert set(entry.grids) == {"full-2d", "class-2d"}
    assert entry.grids["full-2d"].shape == (16, 16)
    assert found.scans[0].planes[0].title == "coronal"
    assert "label 1 mm2" in found.table()


def test_scans_without_any_structure_are_allowed_where_there_are_some(folder):
    folder.rewrite("s3", both=lambda array: 0 * array, only=["labels"])
    assert folder.cohort().empty_labels


# --- the page -------------------------------------------------------------------------------------


def test_the_page_shows_every_scan_and_escapes_names(tmp_path, browser):
    folder = Folder(tmp_path, count=6, names=NAMES | {2: "<b>upper</b>"})
    folder.add("<script>alert(1)</script>".replace("/", "~"), 7, labels=False)
    folder.rewrite("s3", affine=np.diag([3.5, 3.5, 3.5, 1]))
    folder.rewrite("s4", affine=np.diag([1, 1, 3.0, 1]))
    folder.image("s5").write_bytes(b"nothing")
    found = folder.survey()
    proposal = propose(found, "mine")
    path = tmp_path / "check.html"
    path.write_text(montage(found, proposal.parts, proposal.remarks), encoding="utf-8")
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail("a name was run"))
    page.goto(path.as_uri())
    assert page.locator("section").count() == 7
    assert page.locator("img").count() == 6 * 3
    assert all(url.startswith(("file:", "data:")) for url in asked)
    alt = page.locator("img").first.get_attribute("alt")
    assert alt.startswith("Scan s0, sagittal, slice 12 of 24, P at the left and S at the top")
    assert "labels: lower, <b>upper</b>" in alt
    wrong = page.locator("section", has_text="s3 ·").locator(".wrong")
    assert "spacing 3.5 mm, the others" in wrong.first.inner_text()
    assert wrong.first.evaluate("e => getComputedStyle(e).color") == "rgb(176, 0, 32)"
    assert "cannot be read" in page.locator("section", has_text="s5 ·").inner_text()
    # voxels in their own proportions: the sagittal slice is 28 mm wide and 3 * 20 mm high
    box = page.locator("section", has_text="s4 ·").locator(".frame").first.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(28 / 60, rel=0.02)
    page.close()


def test_the_picture_of_a_slice_is_the_slice(tmp_path):
    """Right is to the right and up is up; a label has the colour of the viewers."""
    import base64
    import io

    from deepatlas import plots

    from matplotlib.image import imread

    folder = Folder(tmp_path, count=1)
    image = np.zeros(SHAPE, np.float32)
    image[4:20, 4:24, 4:16] = 0.5
    image[16:20, 4:24, 12:16] = 1  # right and superior
    write(folder.image("s0"), image)
    known = np.zeros(SHAPE, np.uint8)
    known[4:7, 13:16, 4:7] = 2  # left and inferior
    known[20, 14, 15] = 1
    write(folder.labels("s0"), known)
    page = montage(folder.survey(), {}, [])
    coronal = re.findall(r'src="data:image/png;base64,([^"]+)"', page)[1]
    picture = imread(io.BytesIO(base64.b64decode(coronal)), format="png")
    picture = np.round(255 * picture[::-1, :, :3]).astype(int).transpose(1, 0, 2)  # i, k from below
    assert picture.shape[:2] == (24, 20)
    assert picture[17, 14].min() > 200 and picture[1, 1].max() == 0
    colour = np.array(plots.colour_bytes(3)[2])
    grey = picture[10, 10, 0]
    assert picture[4, 4] == pytest.approx(0.9 * colour + 0.1 * grey, abs=1.5)
    assert picture[5, 5] == pytest.approx(0.35 * colour + 0.65 * grey, abs=1.5)


def test_labels_of_scans_that_no_run_can_take_are_no_hindrance(tmp_path):
    folder = Folder(tmp_path, count=1)
    image = blocks().astype(np.float32)
    image[0] = np.nan
    write(folder.image("s0"), image)
    folder.add("s1", seed=1, labels=False)
    found = folder.survey()
    assert len(found.problems) == 1 and found.numbers == [] and found.scans[0].planes
    assert montage(found, {}, []).count("<figure>") == 6


def test_a_page_of_many_scans_stays_small(tmp_path):
    folder = Folder(tmp_path, count=1)
    noise = np.random.default_rng(0).random((200, 200, 200), dtype=np.float32)
    write(folder.image("s0"), noise.astype(np.float16).astype(np.float32))
    write(folder.labels("s0"), np.pad(blocks(), [(88, 88), (86, 86), (90, 90)]))
    listing = Listing("folders", "", [folder.files[0]] * 200, NAMES)
    one = survey(Listing("folders", "", listing.files[:1], NAMES))
    from deepatlas.datasets import survey as module

    side = module.picture_side(200)
    shown = module.look(folder.files[0], NAMES, side)
    shown_once = len(montage(type(one)(one.listing, (shown,), (), ""), {}, []))
    assert 200 * shown_once < 15e6
    assert max(max(plane.image.shape) for plane in shown.planes) <= side


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``deepatlas data ...`` in this process, begun in ``tmp_path``: code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["deepatlas", "data", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        code = end.value.code
        if isinstance(code, str):  # sys.exit prints it, at the very end
            return SimpleNamespace(code=1, out=said.out, err=said.err + code + "\n")
        return SimpleNamespace(code=code or 0, out=said.out, err=said.err)

    return call


def test_check_writes_a_cohort_file_once(tmp_path, command):
    write_dataset(tmp_path / "scans", licence="CC0")
    done = command("check", "scans")
    assert done.code == 0, done.err
    assert "layout: decathlon" in done.out and "9 persons: assumed" in done.out
    assert "next:    deepatlas run dataset=cohort.toml" in done.out
    entry = read_cohort(tmp_path / "cohort.toml")
    assert entry.licence == "CC0" and entry.scans[0].image.startswith("scans/imagesTr/")
    assert (tmp_path / "check.csv").read_text().startswith("id,subject,group,")
    # what a person has edited stays
    edited = (tmp_path / "cohort.toml").read_text().replace('"Anterior"', '"head"')
    (tmp_path / "cohort.toml").write_text(edited)
    again = command("check", "scans")
    assert again.code == 0 and "is kept as it is" in again.out
    assert (tmp_path / "cohort.toml").read_text() == edited
    forced = command("check", "scans", "--force", "--quiet")
    assert forced.code == 0 and forced.out == forced.err == ""
    assert '"Anterior"' in (tmp_path / "cohort.toml").read_text()


def test_check_ends_with_code_1_where_something_must_be_mended(tmp_path, command):
    folder = write_dataset(tmp_path / "scans")
    (folder / "imagesTr" / "hippocampus_002.nii.gz").write_bytes(b"nothing")
    done = command("check", "scans", "--to", "out", "-q")
    assert done.code == 1 and done.out == ""
    assert done.err.startswith("deepatlas: scan hippocampus_002: ")
    assert "Traceback" not in done.err and done.err.count("\n") == 1
    entry = read_cohort(tmp_path / "out" / "cohort.toml")
    assert len(entry.scans) == 8 and Path(entry.scans[0].image).is_absolute()


def test_check_says_what_a_cohort_file_lacks_that_was_edited(tmp_path, command):
    write_dataset(tmp_path / "scans")
    command("check", "scans", "-q")
    text = (tmp_path / "cohort.toml").read_text()
    text = re.sub(
        r"grids\.full-3d = .*", "grids.full-3d = { shape = [16, 16, 16], spacing = 0.25 }", text
    )
    (tmp_path / "cohort.toml").write_text(text)
    done = command("check", "cohort.toml", "--to", "again")
    assert done.code == 0, done.err
    assert "% of its labelled voxels lie outside the grid" in done.out
    assert "as you wrote it" in done.out and not (tmp_path / "again" / "cohort.toml").exists()


def test_check_replaces_nothing_that_is_not_its_own(tmp_path, command):
    write_dataset(tmp_path / "scans")
    (tmp_path / "check.csv").write_text("my,own,table\n")
    done = command("check", "scans")
    assert done.code == 1
    assert "check.csv: is there already, and is none of this command's" in done.err
    assert (tmp_path / "check.csv").read_text() == "my,own,table\n"


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["hippocampus"], "by `deepatlas data fetch hippocampus`"),
        (["scans"], "by `deepatlas data check scans`"),
        (["check", "nowhere"], "nowhere: no such folder or file"),
        (
            ["check", "scans", "--layout", "bidds"],
            "there is no layout 'bidds', did you mean 'bids'",
        ),
        (["check", "scans", "--subject", "mouse"], "a pattern that holds {subject} was wanted"),
        (["fetch", "hippocampos"], "did you mean 'hippocampus'"),
    ],
)
def test_words_that_cannot_be_meant_end_with_one_line(tmp_path, command, words, sentence):
    write_dataset(tmp_path / "scans", count=1)
    done = command(*words)
    assert done.code != 0 and sentence in done.err and done.err.count("\n") == 1


def test_list_says_where_each_data_set_is(command):
    shown = command("list").out
    assert re.search(r"^phantom-knee: .* Made on the spot$", shown, re.MULTILINE)
    assert "CC BY-SA 4.0" in shown and shown == command().out


# --- real scans -----------------------------------------------------------------------------------


def test_real_scans_are_proposed_as_a_cohort(real_data, tmp_path):
    found = survey(read_folder(real_data / "oasis35", subject="oasis_{subject}"))
    assert not found.problems and len(found.scans) == 35
    assert found.persons.startswith("35 scans of 30 persons, told by")
    proposal = propose(found, "oasis35")
    (tmp_path / "cohort.toml").write_text(cohort_text(proposal, found, tmp_path), encoding="utf-8")
    entry = read_cohort(tmp_path / "cohort.toml")
    published = json.loads((real_data / "oasis35" / "dataset.json").read_text())["training"]
    test = {Path(i["image"]).name[:-7] for i in published if i["group"] == "test"}
    assert {scan.id for scan in entry.scans if scan.part == "test"} == test
    assert entry.align and proposal.fit.overlap == pytest.approx(0.87, abs=0.02)
    assert entry.grids["full-3d"].spacing == 2.0
    assert max(proposal.fit.outside.values()) < 1e-3
    assert any("Optic Chiasm" in text and "profile=class" in text for text in proposal.remarks)


def test_two_hundred_real_scans_in_seconds_and_one_page(real_data, tmp_path):
    found = survey(read_folder(real_data / "hippocampus"))
    assert any("the others 121 to 5.34e+03" in text for text in found.remarks)
    page = montage(found, {}, [])
    assert len(page) < 15e6 and page.count("<section>") == 200


def test_a_proposed_name_is_none_of_the_kits(tmp_path):
    """Rows of results are told apart by it."""
    found = survey(read_folder(write_nnunet(tmp_path / "oasis35", count=5)))
    assert propose(found, "oasis35").name == "oasis35-own"
    assert propose(found, "my mice").name == "my_mice"
