"""A mistake in an entry of ``datasets.toml`` is one sentence, whatever it is."""

import json
import re

from deepatlas import datasets
from deepatlas.datasets import Entry
from deepatlas.datasets.entries import expand
from deepatlas.errors import UserError

import pytest
from growth import times_longer

GOOD = {
    "title": '"Mice"',
    "licence": '"CC0"',
    "credit": '"by us"',
    "dims": "3",
    "align": "false",
    "subject": '"mouse_{subject}_*"',
    "empty_labels": "true",
    "split": "[3, 1, 2]",
    "structures": '[["femur", [1]], ["tibia", [3, "5-7"]]]',
    "grids": "{ full-3d = { shape = [160, 192, 96], spacing = 0.5 } }",
}


def read(home, more="", **changed):
    """The entry ``GOOD`` with other values; None leaves a key out."""
    lines = [f"{key} = {value}" for key, value in (GOOD | changed).items() if value is not None]
    path = home / "datasets.toml"
    path.write_text("[mice]\n" + "\n".join(lines) + "\n" + more, encoding="utf-8")
    return datasets.read_entries(path)["mice"]


def refused(home, more="", **changed):
    """The sentence with which such an entry is refused, without the name of the file."""
    with pytest.raises(UserError) as caught:
        read(home, more, **changed)
    said = str(caught.value)
    start = f"{home / 'datasets.toml'}: "
    assert said.startswith(start) and said.isprintable() and len(said) < 1000
    return said.removeprefix(start)


def test_the_good_entry_is_read(tmp_path):
    entry = read(tmp_path)
    assert entry.subject == "mouse_{subject}_*" and entry.empty_labels
    assert Entry.model_validate(json.loads(entry.model_dump_json())) == entry


@pytest.mark.parametrize("key", ["title", "licence", "split", "grids"])
def test_a_key_that_is_missing_is_named(tmp_path, key):
    assert refused(tmp_path, **{key: None}) == f"mice: {key} is missing"


@pytest.mark.parametrize("key", ["credit", "dims", "align", "subject", "empty_labels"])
def test_a_key_that_may_be_left_out_has_a_default(tmp_path, key):
    assert read(tmp_path, **{key: None})


WRONG = {"3": 3, "-1.5": -1.5, "true": True, '"x"': "x", "[]": [], "{ a = 1 }": {"a": 1}}
RIGHT = {
    ("title", '"x"'),
    ("licence", '"x"'),
    ("credit", '"x"'),
    ("dims", "3"),
    ("align", "true"),
    ("empty_labels", "true"),
}


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("key", GOOD)
def test_a_value_of_another_type_is_one_sentence_that_names_entry_and_key(tmp_path, key, value):
    if (key, value) in RIGHT:
        assert getattr(read(tmp_path, **{key: value}), key) == WRONG[value]
    else:
        assert refused(tmp_path, **{key: value}).startswith(f"mice: {key}")


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("split", '["3", "1", "2"]', "split.full.0: a whole number was wanted, got '3'"),
        ("split", "[3.0, 1, 2]", "split.full.0: a whole number was wanted, got 3.0"),
        ("split", "[3, 1, 1000000000]", "split: numbers of scans .* at most 100,000 each, got"),
        ("split", "[3, 1, 2, 4]", "split.full: "),
        ("align", '"yes"', "align: true or false was wanted, got 'yes'"),
        ("align", "1", "align: true or false was wanted, got 1"),
        ("dims", '"3"', "dims: input should be 2 or 3, got '3'"),
        ("grids", "{}", "grids: one grid at least, full-3d, was wanted"),
        ("grids", "{ full-3d = 3 }", "grids.full-3d: a table was wanted, got 3"),
        (
            "grids",
            "{ full-3d = { shape = [100000, 100000, 100000], spacing = 1.0 } }",
            "grids: full-3d must have at most 1,000,000,000 voxels",
        ),
        (
            "grids",
            "{ full-3d = { shape = [8, 8, 8], spacing = 1.0 } }",
            "grids: every side must be divisible by 8, one must be 16 or more",
        ),
        (
            "grids",
            "{ full-3d = { shape = [16, 16, 16], spacing = 1e300 } }",
            "grids.full-3d.spacing: input should be less than or equal to 10000, got 1e[+]300",
        ),
        (
            "grids",
            '{ full-3d = { shape = [16, 16, 16], spacing = "1" } }',
            "grids.full-3d.spacing: a number was wanted, got '1'",
        ),
        ("title", '""', "title: some text was wanted, got ''"),
        ("title", '" "', "title: some text was wanted, got ' '"),
        ("title", r'"a\nb"', r"title: text without line breaks and control characters"),
        ("licence", r'"\u001b[31mred"', r"licence: text without .* got '\\x1b\[31mred'"),
        ("credit", r'"a\u202eb"', r"credit: text without line breaks and control characters"),
        ("folder", '"../others"', "folder: a folder in that of all data .* got '../others'"),
        ("folder", '"/etc"', "folder: a folder in that of all data"),
        ("url", '"file:///etc/passwd"', "url: string should match pattern"),
        ("dims", "0x" + "f" * 5000, "dims: .*, got a very large int"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path, key, value, said):
    found = refused(tmp_path, **{key: value})
    assert re.match(f"mice: {said}", found), found


@pytest.mark.parametrize(
    "structures, said",
    [
        ('[["femur", [1]], ["femur", [2]]]', "the name 'femur' is there twice"),
        ('[["background", [1]]]', "the name 'background' is there twice"),
        ('[["a", [1, "4-6"]], ["b", [5]]]', "the label number 5 belongs to 'a' and to 'b'"),
        ('[["a", ["3-1"]]]', "from the smaller to the larger was wanted, as \"1-3\", got '3-1'"),
        ('[["a", [0]]]', "0 is the background's label number, and no structure's, got 0"),
        ('[["a", ["0-3"]]]', "0 is the background's label number, and no structure's, got '0-3'"),
        ('[["a", [-1]]]', 'label numbers such as 44 or "49-52" were wanted, got -1'),
        ('[["a", [true]]]', 'label numbers such as 44 or "49-52" were wanted, got True'),
        ('[["a", [1.5]]]', 'label numbers such as 44 or "49-52" were wanted, got 1.5'),
        ('[["a", ["²"]]]', "label numbers such as 44 or \"49-52\" were wanted, got '²'"),
        ('[["a", ["1-4000000000"]]]', "at most 100,000 in a range, got '1-4000000000'"),
        ('[["a", [18446744073709551616]]]', "label numbers up to 9223372036854775807 were wanted"),
        ('[["", [1]]]', "structures.0.0: some text was wanted, got ''"),
        (r'[["a\u0007", [1]]]', r"structures.0.0: text without line breaks and control"),
        ('[["a"]]', "structures.0.1 is missing"),
        ("[]", "one structure at least was wanted"),
    ],
)
def test_structures_have_one_name_and_their_own_label_numbers(tmp_path, structures, said):
    assert said in refused(tmp_path, structures=structures)


def test_a_label_number_beyond_16_million_is_a_label_number(tmp_path):
    entry = read(tmp_path, structures='[["a", [16777217]], ["b", [16777216, "16777218-16777219"]]]')
    assert list(expand(entry.structures[1][1])) == [16777216, 16777218, 16777219]


@pytest.mark.parametrize(
    "regions, said",
    [
        ("[207, 100]", "label numbers from the smaller to the larger were wanted, got [207, 100]"),
        ("[0, 100]", "regions.0: input should be greater than or equal to 1, got 0"),
        ("[-5, 100]", "regions.0: input should be greater than or equal to 1, got -5"),
        ("[100]", "regions.1 is missing"),
        ('["a", "b"]', "regions.0: a whole number was wanted, got 'a'"),
        ("100", "regions: a list was wanted, got 100"),
    ],
)
def test_regions_are_two_label_numbers_in_order(tmp_path, regions, said):
    assert said in refused(tmp_path, structures=None, regions=regions)


@pytest.mark.parametrize(
    "template",
    [
        "mouse",
        "mouse_*",
        "{subject}_{subject}",
        "a/{subject}",
        "{Subject}",
        "*_*_*_*_{subject}",
        "",
    ],
)
def test_a_template_has_the_person_once(tmp_path, template):
    assert refused(tmp_path, subject=f"'{template}'").startswith("mice: subject: ")


@pytest.mark.parametrize("like", ['["b"]', "3", "{ a = 1 }", '"mice"', '"nobody"', "true"])
def test_like_names_another_table(tmp_path, like):
    assert refused(tmp_path, like=like).startswith("mice is like ")


@pytest.mark.parametrize("name", ['"../up"', '"a/b"', '""', r'"a\nb"', '"a b"', '"-rf"'])
def test_the_name_of_an_entry_can_name_a_folder(tmp_path, name):
    path = tmp_path / "datasets.toml"
    lines = [f"{key} = {value}" for key, value in GOOD.items()]
    path.write_text(f"[{name}]\n" + "\n".join(lines))
    with pytest.raises(UserError, match="name: ") as caught:
        datasets.read_entries(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = 'x", "\x00", "[a]\n[a]"],
    ids=["deep", "long", "open", "zero", "twice"],
)
def test_what_is_no_toml_is_said(tmp_path, text):
    path = tmp_path / "datasets.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"datasets.toml: not valid TOML "):
        datasets.read_entries(path)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    read(tmp_path)
    path = tmp_path / "datasets.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(datasets.read_entries(path)) == ["mice"]


def test_the_time_to_check_a_list_of_structures_grows_with_their_number(tmp_path):
    def checked(count):
        many = ", ".join(f'["s{i}", [{i}]]' for i in range(1, count + 1))
        entry = read(tmp_path, structures=f"[{many}]")
        assert len(entry.structures) == count

    assert times_longer(lambda: checked(10_000), lambda: checked(100_000)) < 40  # squared: 100


FOLDERS = {"layout": '"subjects"', "image": '"*/{scan}/t1.nii.gz"', "labels": '"{scan}/seg.nii.gz"'}


def test_an_entry_says_how_its_folder_is_laid_out(tmp_path):
    entry = read(tmp_path, **FOLDERS, labelled_first='"MMRR-*"')
    assert (entry.layout, entry.image) == ("subjects", "*/{scan}/t1.nii.gz")
    assert entry.labelled_first == "MMRR-*"
    assert read(tmp_path).layout == "decathlon"


def test_groups_are_patterns_of_scan_ids(tmp_path):
    groups = '{ train = ["MMRR-*", "NKI-*"], test = ["OASIS-*"] }'
    entry = read(tmp_path, **FOLDERS, groups=groups)
    assert entry.groups == {"train": ("MMRR-*", "NKI-*"), "test": ("OASIS-*",)}
    assert Entry.model_validate(json.loads(entry.model_dump_json())) == entry


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"image": '"t1.nii.gz"'}, "image: the path of a scan's file in the folder was wanted"),
        ({"image": '"../{scan}.nii"'}, "image: the path of a scan's file in the folder was"),
        ({"image": '"/{scan}.nii"'}, "image: the path of a scan's file in the folder was wanted"),
        ({"image": '"{scan}/{scan}.nii"'}, "image: the path of a scan's file in the folder was"),
        ({"labels": '"{subject}.nii"'}, "labels: the path of a scan's file in the folder was"),
        ({"image": None}, "labels = ... wants image = ..., by which a scan is found"),
        ({"groups": '{ tests = ["a"] }'}, "groups.tests"),
        ({"groups": '{ test = "a" }'}, "groups.test: a list was wanted, got 'a'"),
        ({"layout": '""'}, "layout: some text was wanted, got ''"),
        ({"labelled_first": "3"}, "labelled_first: text was wanted, got 3"),
    ],
)
def test_a_mistake_in_a_layout_is_one_sentence(tmp_path, changed, said):
    found = refused(tmp_path, **(FOLDERS | changed))
    assert found.startswith(f"mice: {said}"), found


def test_of_a_named_set_every_training_scan_may_keep_its_labels(tmp_path):
    assert read(tmp_path).labelled_at_most("class") == 3
    words = {"title", "licence", "credit"}
    assert read(tmp_path).identity() == read(tmp_path).model_dump(mode="json", exclude=words)
