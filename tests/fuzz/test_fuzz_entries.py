"""Entries of datasets.toml and dataset.json files, damaged in every way that comes to mind.

Either one sentence says what is wrong, or the cohort is right: nobody on two sides, no image twice,
every label where its file has it.
"""

import contextlib
import copy
import io
import json
import math
import shutil

from deepatlas import datasets
from deepatlas.datasets.entries import read_entries
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pytest
from folders import SHAPE, write_case, write_nifti
from fuzzing import cases, flipped, told

ENTRY = {
    "title": "Mice",
    "licence": "CC0",
    "credit": "by us",
    "dims": 3,
    "align": False,
    "subject": "m{subject}_*",
    "empty_labels": False,
    "split": {"full": [2, 1, 2], "smoke": [1, 1, 1]},
    "structures": [["low", [1]], ["high", ["2-3", 7]]],
    "grids": {"full-3d": {"shape": [16, 16, 16], "spacing": 1.0}},
}
NAMES = ["m0_a", "m0_b", "m1_a", "m2_a", "m3_a", "m4_a"]
VALUES = [
    *(0, -1, 1, 2, 3, 7, 8, 16, 24, 10**9, 2**63, 10**30, 10**4000),
    *(0.0, -0.5, 0.5, 1.0, 2.0, 1e-300, 1e300, math.inf, math.nan, True, False),
    *("", " ", "x", "smoke", "published", "train", "test", "full-3d", "1", "2-3", "3-1", "0-2"),
    *("1-4000000000", "low", "background", "NA", "{subject}", "*", "*_{subject}", "m0_a", "0"),
    *("../up", "/etc/passwd", "C:/x", "a\nb", "\x1b[31m", "\u202e", "é", "brain", "mice", "=1+1"),
    *(
        "imagesTr/m0_a.nii.gz",
        "labelsTr/m0_a.nii.gz",
        "imagesTr/m5_copy.nii.gz",
        "imagesTr",
        "imagesTr/m8_link.nii.gz",
    ),
    *(
        "labelsTr/empty.nii.gz",
        "imagesTr/m6_tiny.nii.gz",
        "imagesTr/m7_flat.nii.gz",
        "imagesTr/no.nii",
    ),
    *([], [[]], {}, {"a": 1}, ["x"], [1, 2], [3, 1, 2], [1, 1, 1], [["low", [1]]], [207, 100]),
    *(
        [1, 3],
        ["m0_a", "m1_a"],
        [["m0_a", "m1_a"], ["m1_a", "2"]],
        {"1": "Left A  one", "2": "two"},
    ),
    *([[[[[]]]]], {"shape": [16, 16], "spacing": 1.0}, {"full": [1, 0, 1]}),
]
KEYS = ["split", "regions", "anatomy", "url", "sha256", "folder", "like", "labels", "group", "x\n"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six scans of five mice, and files that are no scans."""
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path))
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "mice"
    for number, name in enumerate(NAMES):
        write_case(home, name, number)
    images, labels = home / "imagesTr", home / "labelsTr"
    shutil.copy(images / "m0_a.nii.gz", images / "m5_copy.nii.gz")
    write_nifti(labels / "empty.nii.gz", np.zeros(SHAPE, np.uint8))
    write_nifti(images / "m6_tiny.nii.gz", np.random.default_rng(9).random(SHAPE), 1e-3)
    write_nifti(images / "m7_flat.nii.gz", np.zeros(SHAPE, np.float32))
    shutil.copy(images / "m0_a.nii.gz", tmp_path / "up")
    (images / "m8_link.nii.gz").symlink_to(tmp_path / "up")
    return home


def dataset():
    items = []
    for number, name in enumerate(NAMES):
        item = {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
        items.append(item | {"group": "train" if number < 4 else "test"})
    return {
        "labels": {"0": "background", "1": "Left A  one", "2": "Right A  one", "3": "three"},
        "same_person_twice": [],
        "training": items,
    }


# --- damage ---------------------------------------------------------------------------------------


def places_in(value, found=None):
    """Every (container, key) in a tree of dictionaries and lists."""
    found = [] if found is None else found
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places_in(value[key], found)
    return found


# what an author may well write: more of it is read, and must then be right
ENTRY_WORDS = {
    "subject": [
        "m{subject}",
        "{subject}_a",
        "*_{subject}",
        "{subject}",
        "m{subject}_*",
        "*{subject}*",
    ],
    "empty_labels": [True, False],
    "split": [[2, 1, 2], [1, 0, 1], [3, 1, 1], [2, 1, 0], {"published": [2, 1, 2]}, [4, 1, 1]],
    "structures": [
        [["a", [1]], ["b", [2]]],
        [["a", ["1-2"]]],
        [["a", [2]], ["b", [16777217, 1]]],
        [["a", [1]], ["b", ["2-3"]], ["c", [4]]],
        [["a", [3]]],
        [["a", [1]], ["a", [2]]],
        [["a", [1, 2]], ["b", [2]]],
    ],
    "grids": [
        {"full-3d": {"shape": [16, 24, 16], "spacing": 1.0}},
        {"full-3d": {"shape": [24, 24, 24], "spacing": 0.5}},
        {"full-3d": {"shape": [16, 16, 16], "spacing": 6.0}},
        {"full-3d": {"shape": [16, 16, 16], "spacing": 0.02}},
    ],
}
LISTED_WORDS = {
    "image": [
        "imagesTr/m5_copy.nii.gz",
        "imagesTr/m6_tiny.nii.gz",
        "imagesTr/m7_flat.nii.gz",
        "imagesTr/m8_link.nii.gz",
    ],
    "label": ["labelsTr/empty.nii.gz", "labelsTr/m1_a.nii.gz", "imagesTr/m1_a.nii.gz"],
    "group": ["train", "test", None],
}
GROUPS = [[["m0_a", "m1_a"]], [["0", "1"], ["1", "2"]], [["m3_a", "2"], ["4"]], [["0", "4"]]]


def author(tree, rng):
    """One value is changed to another that somebody may mean."""
    if "training" not in tree:
        key = rng.choice(list(ENTRY_WORDS))
        tree[key] = copy.deepcopy(rng.choice(ENTRY_WORDS[key]))
    elif rng.random() < 0.3:
        tree["same_person_twice"] = copy.deepcopy(rng.choice(GROUPS))
    else:
        key = rng.choice(list(LISTED_WORDS))
        rng.choice(tree["training"])[key] = rng.choice(LISTED_WORDS[key])


def damage(tree, rng):
    """One value is changed, removed, doubled, or swapped with another."""
    holder, key = rng.choice(places_in(tree))
    kind = rng.choice(["change", "change", "change", "remove", "double", "swap", "add"])
    if kind == "change":
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == "remove":
        del holder[key]
    elif kind == "double" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == "swap":
        other_holder, other_key = rng.choice(places_in(tree))
        one, other = copy.deepcopy(holder[key]), copy.deepcopy(other_holder[other_key])
        holder[key], other_holder[other_key] = other, one
    else:
        tree[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, int) and abs(value) > 2**70:
        return hex(value)
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


# --- what must be true ----------------------------------------------------------------------------


def numbers_of(items):
    """The label numbers of a structure, read in another way than the kit's."""
    for item in items:
        low, *high = map(int, str(item).split("-"))
        yield from range(low, (high or [low])[0] + 1)


def check(cohort, entry, listed, dims):
    sides = [{scan.subject for scan in p} for p in (cohort.train, cohort.validation, cohort.test)]
    assert sum(map(len, sides)) == len(set().union(*sides)), "one person on two sides"
    assert len(set(cohort.structures)) == len(cohort.structures) > 1
    assert all(name.strip() and name.isprintable() for name in cohort.structures)
    assert cohort.test == () or any(scan.labels.any() for scan in cohort.test), "nothing to score"
    assert {item.get("group") for item in listed["training"]} <= {"train", "test", None}
    if entry.subject == ENTRY["subject"]:
        check_persons(cohort, listed)
    owners = {}
    for scan in cohort.scans:
        assert scan.id.isprintable() and scan.id
        assert scan.image.isfinite().all() and 0 <= scan.image.min() < scan.image.max() <= 1
        assert scan.labels.min() >= 0 and scan.labels.max() < len(cohort.structures)
        assert scan.labels.any() or entry.empty_labels
        owner = owners.setdefault(scan.source.image_digest, scan.subject)
        assert owner == scan.subject, "one image, two persons"
        if dims == 3 and cohort.spacing == 1.0 and min(cohort.shape) >= 16 and entry.structures:
            check_labels(scan, entry, listed)


def check_persons(cohort, listed):
    """Scans of one mouse, by their names or by what was said of them, are of one subject."""
    persons = [{f"m{i}_a", f"m{i}_b", str(i)} for i in range(9)]
    for group in listed.get("same_person_twice", []):
        touched = [person for person in persons if person & set(map(str, group))]
        persons = [person for person in persons if person not in touched] + [set().union(*touched)]
    for person in persons:
        assert len({scan.subject for scan in cohort.scans if scan.id in person}) < 2, person


def check_labels(scan, entry, listed):
    """On a grid of the files' own spacing nothing is interpolated: voxels can be counted."""
    (item,) = [item for item in listed["training"] if item["image"].endswith(f"/{scan.id}.nii.gz")]
    numbers = np.asarray(nib.load(scan.source.path).dataobj)
    assert numbers.shape == SHAPE
    numbers = np.asarray(
        nib.load(f"{scan.source.path.split('/imagesTr')[0]}/{item['label']}").dataobj
    )
    for index, (_, wanted) in enumerate(entry.structures, start=1):
        counted = np.isin(numbers, list(numbers_of(wanted))).sum()
        assert (scan.labels == index).sum() == counted, "a label is lost"


def attempt(folder, text, listed_text, profile, dims, seed):
    """The cohort, or None where a sentence says what is wrong."""
    path = folder.parent / "datasets.toml"
    path.write_bytes(text)
    (folder / "dataset.json").write_bytes(listed_text)
    try:
        entry = next(iter(read_entries(path).values()), None)
        if entry is None:
            return None
        shape, _ = entry.grid(profile, 3)
        if entry.anatomy is not None or math.prod(shape) > 32**3:
            return None  # phantoms are not files; a large grid takes its time
        entry = entry.model_copy(update={"align": False, "url": None})  # as does an alignment
        with contextlib.redirect_stdout(io.StringIO()) as said:
            cohort = datasets.load_cohort(entry, profile=profile, dims=dims, seed=seed)
        assert all(line.isprintable() for line in said.getvalue().splitlines())
    except (UserError, FileNotFoundError) as error:
        sentence = str(error)
        assert sentence.isprintable() and 20 < len(sentence) < 1500, repr(sentence)
        named = ("datasets.toml", "dataset.json", ".nii", "mice", "scans of")
        assert any(name in sentence for name in named), sentence
        return None
    listed = json.loads(listed_text.decode("utf-8-sig"))
    check(cohort, entry, listed, dims)
    return cohort


def test_the_undamaged_entry_gives_its_cohort(folder):
    text, listed = f"mice = {toml(ENTRY)}".encode(), json.dumps(dataset()).encode()
    for dims in (2, 3):
        assert attempt(folder, text, listed, "full", dims, 0) is not None


@pytest.mark.parametrize("what", ["entry", "dataset.json"])
def test_a_damaged_entry_is_told_or_gives_a_right_cohort(folder, what):
    loaded = 0
    for number, rng in cases(400):
        entry, listed = copy.deepcopy(ENTRY), dataset()
        tree = entry if what == "entry" else listed
        if rng.random() < 0.5:
            entry["split"] = {"published": [2, 1, 2]}
        for _ in range(rng.choice([1, 1, 2, 3])):
            author(tree, rng)
        if rng.random() < 0.5:
            damage(tree, rng)
        name = rng.choice(["mice"] * 20 + ["", "../mice", "a\nb"])
        text = f"{json.dumps(name)} = {toml(entry)}".encode()
        listed_text = json.dumps(listed).encode()
        if rng.random() < 0.05:
            if what == "entry":
                text = flipped(text, rng, 2)
            else:
                listed_text = flipped(listed_text, rng, 2)
        profile, dims, seed = rng.choice(datasets.PROFILES), rng.choice((2, 3)), rng.randrange(3)
        tried = f"{profile} {dims}d seed {seed}\n{text!r}\n{listed_text!r}"
        with told(number, tried[:5000]):
            loaded += attempt(folder, text, listed_text, profile, dims, seed) is not None
    assert loaded > 0  # else nothing was tried
