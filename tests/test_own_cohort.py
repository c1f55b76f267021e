"""Own scans: a cohort file is read, and taken wherever the name of a data set goes."""

import re
from pathlib import Path

from deepatlas.datasets import describe
from deepatlas.datasets.entries import read_cohort
from deepatlas.errors import UserError

import pytest

HEAD = {
    "name": '"mice"',
    "title": '"Mice of our own"',
    "licence": '"CC0"',
    "structures": '[["lower", [1]], ["upper", [2]]]',
    "grids.full-3d": "{ shape = [16, 16, 16], spacing = 1.0 }",
}


def scan(name, part="train", labelled=True, **changed):
    """The keys of one scan as TOML writes them; None leaves a key out."""
    values = {
        "id": f'"{name}"',
        "subject": f'"{name}"',
        "image": f'"images/{name}.nii.gz"',
        "labels": f'"labels/{name}.nii.gz"' if labelled else None,
        "part": f'"{part}"' if part else None,
    }
    return {key: value for key, value in (values | changed).items() if value is not None}


def write(folder, tables, **changed):
    """A cohort file with the head ``HEAD`` and these tables of scans."""
    head = {key.replace("__", "."): value for key, value in changed.items()}
    lines = [f"{key} = {value}" for key, value in (HEAD | head).items() if value is not None]
    for table in tables:
        lines += ["", "[[scans]]", *(f"{key} = {value}" for key, value in table.items())]
    path = folder / "cohort.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


SCANS = [scan("a"), scan("b", labelled=False), scan("c", "validation"), scan("d", "test")]


def refused(folder, tables=SCANS, **changed):
    """The sentence with which such a file is refused, without the name of the file."""
    path = write(folder, tables, **changed)
    with pytest.raises(UserError) as caught:
        read_cohort(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 1000
    return said.removeprefix(f"{path}: ")


# --- the file -------------------------------------------------------------------------------------


def test_a_cohort_file_lists_its_scans_one_by_one(tmp_path):
    entry = read_cohort(write(tmp_path, SCANS))
    assert (entry.name, entry.title, entry.layout) == ("mice", "Mice of our own", "cohort")
    assert entry.home == tmp_path and "home" not in entry.model_dump()
    assert [scan.id for scan in entry.scans] == list("abcd")
    assert entry.scans[1].labels is None
    assert entry.split_sizes("class") == [2, 1, 1]
    assert entry.labelled_at_most("full") == 1


def test_what_may_be_left_out_has_a_default(tmp_path):
    entry = read_cohort(write(tmp_path, [scan("a", subject=None)], title=None, licence=None))
    assert (entry.title, entry.licence) == ("mice", "unknown")
    assert entry.scans[0].subject == "a"


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"name": None}, "name is missing"),
        ({"name": '"../up"'}, "name: letters, digits, '_', '-' and '.' were wanted"),
        ({"structures": None}, "one of anatomy .* says what is in it, got none"),
        ({"structures": None, "anatomy": '"brain"'}, "there is no key 'anatomy'"),
        ({"structurs": "3"}, "there is no key 'structurs', did you mean 'structures'"),
        ({"split": "[2, 1, 1]"}, "there is no key 'split': choose from name, title"),
        ({"layout": '"bids"'}, "there is no key 'layout'"),
        ({"home": '"/etc"'}, "there is no key 'home'"),
        ({"grids__full-3d": None}, "grids is missing"),
        (
            {"grids__full-3d": "{ shape = [20, 16, 16], spacing = 1.0 }"},
            "grids: every side must be divisible by 8",
        ),
        (
            {"grids__full-3d": None, "grids__full-2d": "{ shape = [16, 16], spacing = 1.0 }"},
            "grids: full-3d was wanted, got full-2d",
        ),
        (
            {
                "dims": "2",
                "grids__full-3d": None,
                "grids__class-2d": "{ shape = [16, 16], spacing = 1.0 }",
            },
            "grids: full-3d or, for slices, full-2d was wanted, got class-2d",
        ),
        ({"title": '""'}, "title: some text was wanted, got ''"),
    ],
)
def test_a_mistake_in_the_head_is_one_sentence(tmp_path, changed, said):
    found = refused(tmp_path, **changed)
    assert re.match(said, found), found


@pytest.mark.parametrize(
    "scans, said",
    [
        ([], "a table [[scans]] for each scan was wanted, got []"),
        ([scan("a", image=None)], "scan 'a': image is missing"),
        ([scan("a", id=None)], "[[scans]] number 1: id is missing"),
        ([scan("a", id="3")], "[[scans]] number 1: id: text was wanted, got 3"),
        ([scan("a", None)], "scan 'a': part is missing"),
        (
            [scan("a", "tests")],
            "scan 'a': part: input should be 'train', 'validation' or 'test', got 'tests'",
        ),
        ([scan("a", label='"x"')], "scan 'a': there is no key 'label', did you mean 'labels'"),
        ([scan("a", image='""')], "scan 'a': image: some text was wanted, got ''"),
        ([scan("a", image=r'"a\u001b[2J"')], "scan 'a': image: text without line breaks and"),
        ([scan("a", labels=r'"a\nb"')], "scan 'a': labels: text without line breaks and"),
        (
            [scan("a", labels='"images/a.nii.gz"')],
            "scan 'a': 'images/a.nii.gz' is an image and its own labels",
        ),
        ([scan("a"), scan("a")], "the scan 'a' is there twice: give each an id of its own"),
        (
            [scan("a"), scan("b", image='"images/a.nii.gz"')],
            "the scans 'a' and 'b' have the same image, 'images/a.nii.gz': list it once",
        ),
        (
            [scan("a"), scan("b", "test", subject='"a"')],
            "one person, 'a', is in two parts: scan 'a' in train and scan 'b' in test: put all",
        ),
        ([scan("a", "test")], 'no scan is there to train on: say part = "train" of some'),
        (
            [scan("a", labelled=False), scan("b", labelled=False), scan("c", "test")],
            "none of its 2 training scans has labels: one at least was wanted",
        ),
    ],
)
def test_a_mistake_in_a_scan_is_one_sentence_that_names_it(tmp_path, scans, said):
    found = refused(tmp_path, scans)
    assert found.startswith(said), found


@pytest.mark.parametrize("scans", ["3", "[3]"])
def test_scans_that_are_no_tables_are_refused(tmp_path, scans):
    said = "a table [[scans]] for each scan was wanted, got 3"
    assert refused(tmp_path, [], scans=scans) == said


def test_the_table_of_named_sets_takes_no_scans(tmp_path):
    from deepatlas.datasets import read_entries

    path = tmp_path / "datasets.toml"
    path.write_text('[mice]\ntitle = "x"\nlicence = "x"\nscans = []\n')
    with pytest.raises(UserError, match=r"datasets.toml: mice: there is no key 'scans'"):
        read_entries(path)


def test_smoke_takes_a_few_scans_and_the_labelled_ones_first(tmp_path):
    scans = [scan(f"u{i}", labelled=False) for i in range(3)]
    scans += [scan(f"l{i}") for i in range(3)]
    scans += [scan(f"v{i}", "validation") for i in range(5)]
    scans += [scan(f"t{i}", "test") for i in range(9)]
    entry = read_cohort(write(tmp_path, scans))
    assert entry.split_sizes("smoke") == [4, 2, 3]
    assert [scan.id for scan in entry.scans_of("smoke", "train")] == ["l0", "l1", "l2", "u0"]
    assert entry.labelled_at_most("smoke") == 3
    assert entry.split_sizes("class") == entry.split_sizes("full") == [6, 5, 9]


def test_grids_are_made_from_the_one_that_is_said(tmp_path):
    grid = "{ shape = [160, 192, 96], spacing = 0.5 }"
    entry = read_cohort(write(tmp_path, SCANS, **{"grids.full-3d": grid}))
    assert entry.grid("full", 3) == ((160, 192, 96), 0.5)
    assert entry.grid("class", 3) == ((80, 96, 48), 1.0)
    assert entry.grid("smoke", 3) == ((24, 24, 16), 4.0)
    assert entry.grid("class", 2) == ((80, 96), 1.0)


def test_a_cohort_of_slices_has_grids_of_slices_alone(tmp_path):
    grid = {"grids.full-3d": None, "grids.full-2d": "{ shape = [160, 192], spacing = 1.0 }"}
    entry = read_cohort(write(tmp_path, SCANS, dims="2", **grid))
    assert entry.grid("full", 2) == ((160, 192), 1.0)
    assert entry.grid("class", 2) == ((80, 96), 2.0)
    assert entry.grid("smoke", 2) == ((24, 24), 8.0)
    with pytest.raises(UserError, match="there is no grid class-3d, and no full-3d"):
        entry.grid("class", 3)


def test_where_the_files_are_is_no_part_of_what_a_cohort_is(tmp_path):
    here = read_cohort(write(tmp_path, SCANS))
    moved = [scan("a", image='"/else/a.nii.gz"', labels='"/else/a_labels.nii.gz"'), *SCANS[1:]]
    (tmp_path / "there").mkdir()
    there = read_cohort(write(tmp_path / "there", moved))
    assert here.identity() == there.identity()
    hidden = read_cohort(write(tmp_path, [SCANS[0], scan("b"), *SCANS[2:]]))
    assert hidden.identity() != here.identity()


# --- wherever a name goes -------------------------------------------------------------------------


def test_a_file_and_its_folder_are_described_as_a_name_is(tmp_path, monkeypatch):
    entry = read_cohort(write(tmp_path, SCANS))
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    relative = Path(tmp_path.name)
    for name in (tmp_path / "cohort.toml", tmp_path, relative, "~" / relative / "cohort.toml"):
        assert describe(str(name)) == entry


def test_a_folder_without_a_cohort_file_is_told_to_be_checked_first(tmp_path):
    with pytest.raises(UserError) as caught:
        describe(str(tmp_path))
    assert f"run `deepatlas data check {tmp_path}` first: it writes the cohort.toml" in str(
        caught.value
    )


def test_what_is_neither_a_name_nor_a_path_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mice.toml: no such file; a cohort file was"):
        describe(str(tmp_path / "mice.toml"))
    with pytest.raises(UserError, match="there is no cohort 'hipocampus', did you mean 'hippoc"):
        describe("hipocampus")
    with pytest.raises(UserError, match="no path of a cohort file"):
        describe("~nobody-of-this-name/cohort.toml")
    with pytest.raises(UserError, match=r"there is no cohort|no path of a cohort file"):
        describe("x" * 5000)
