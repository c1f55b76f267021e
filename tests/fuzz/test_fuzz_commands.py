"""Random command lines, most of them wrong: one line says what is wrong, nothing is trained, no
folder stays.
"""

import functools
import re
import sys
from collections import Counter
from pathlib import Path

from deepatlas import apply, cli, exercises, experiments, notebooks, site, sweeps
from deepatlas.cli import app
from deepatlas.errors import UserError
from deepatlas.parameters import Experiment, parse, plain

import fuzzing
import nibabel as nib
import numpy as np
import pytest
from folders import write_nifti

COMMANDS = [given.name for given in (*app.registered_groups, *app.registered_commands)]
# A long work, or another program: what it is called with is all that is looked at.
ON_FILES = ["segment", "register", "apply", "evaluate", "export"]
LONG = ["lab", "measure", "gains", "doctor"]
QUICK = [name for name in COMMANDS if name not in LONG + ON_FILES]
NAMES = list(Experiment.model_fields)

WORDS = """
    0 1 2 -1 010 -007 1:30 1_000 0x10 ٣ 1e-3 .5 2. 1e999 1e-999 nan inf -inf .nan .inf 2.0 2.5
    true false yes no on off True None null none ~ [] {} [1,2] {a:1} &a *a !!python 2020-01-01
    99999999999999999999 1000000000 smoke class full oasis35 phantom-brain hippocampus lncc ncc
    joint all paper best kit cpu cuda cuda:99 meta auto float32 ../x /etc/passwd = == a=b % %s
"""
VALUES = WORDS.split()
VALUES += [
    "",
    " ",
    " 5",
    "5 ",
    "a\nb",
    "\x1b[2J",
    "\u202e",
    "\udcff",
    "x" * 10_000,
    "9" * 10_000,
    "[" * 10_000,
    "&a [" + "*a," * 100 + "]",
    "'",
    '"',
    "{0.__class__}",
    "${HOME}",
]
OPTIONS = ["--root", "--results", "--to", "--profile", "--dims", "--folder", "--zebra", "--", "-x"]
PLACES = """
    file folder link ada.json list.json deep.json plan.toml broken.toml other.toml many.toml
    gone file/x gone/x link/x folder/../ada.json . /proc/x /dev/null/x {x}
"""
PATHS = [*PLACES.split(), "", "x" * 300, "a\x1b[2J", "b\udcff"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with a file of each kind in it, and nothing that takes long."""
    monkeypatch.chdir(tmp_path)
    for variable in ("RUNS", "ANSWERS", "CACHE", "DATA"):
        monkeypatch.setenv(f"DEEPATLAS_{variable}", str(tmp_path / variable.lower()))
    Path("file").write_text("my work")
    Path("folder").mkdir()
    Path("link").symlink_to("nowhere")
    Path("ada.json").write_text('{"01.dice": {"solved": true, "tries": 1}}')
    Path("list.json").write_text("[1]")
    Path("deep.json").write_text("[" * 100_000)
    Path("plan.toml").write_text('[[sweep]]\nprofile = "smoke"\nseed = [0, 1]\n')
    Path("broken.toml").write_text("[[sweep")
    Path("other.toml").write_text("sweep = 5\n")
    Path("many.toml").write_text(
        "[[sweep]]\n" + "".join(f"{n} = {[*range(39)]}\n" for n in NAMES[5:12])
    )
    return tmp_path


def value(rng):
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(VALUES)
    if kind < 0.75:
        return str(
            rng.choice(
                [rng.randrange(-5, 50), round(rng.uniform(-2, 2), 3), 10 ** rng.randrange(25)]
            )
        )
    return "".join(chr(rng.randrange(1, 0x2FFF)) for _ in range(rng.randrange(1, 8)))


def assignment(rng):
    name = rng.choice(NAMES)
    kind = rng.random()
    if kind < 0.15:  # a letter is lost
        at = rng.randrange(len(name))
        name = name[:at] + name[at + 1 :]
    elif kind < 0.25:
        name = rng.choice(
            [f"{name}.x", "term_weights.similarity", "term_weights.zebra", value(rng)]
        )
    return f"{name}={value(rng)}" if rng.random() < 0.95 else name


def command_line(rng):
    words = [rng.choice(QUICK)]
    for _ in range(rng.randrange(5)):
        kind = rng.random()
        if kind < 0.5:
            words.append(assignment(rng))
        elif kind < 0.75:
            words.append(rng.choice(PATHS))
        else:
            words += [rng.choice(OPTIONS), rng.choice(PATHS)]
    return words


def everything(place):
    """Each file below with its content."""
    return {
        found.relative_to(place): found.read_bytes() if found.is_file() else None
        for found in place.rglob("*")
    }


class Began(Exception):
    """A long work began."""


def test_a_command_line_is_one_line_or_begins_to_work(place, monkeypatch, capsys):
    """Where it begins to work, its parameters are those that the words say."""
    began = []

    def works(experiment, *_, **__):
        began.append(experiment)
        raise Began

    for name in ("run", "train_or_load"):
        monkeypatch.setattr(experiments, name, works)
    monkeypatch.setattr(notebooks, "execute", works)
    monkeypatch.setattr(site, "build", works)
    monkeypatch.setattr(exercises, "hand_out", works)
    monkeypatch.setattr(sweeps, "carry_out_all", works)
    # a real cohort is looked for where there is none, and is not fetched
    monkeypatch.setattr("deepatlas.datasets.fetch.fetch", works, raising=False)
    before = everything(place)
    for number, rng in fuzzing.cases(1500):
        words = command_line(rng)
        began.clear()
        with fuzzing.told(number, [word[:200] for word in words]):
            code = 0
            try:
                monkeypatch.setattr(sys, "argv", ["deepatlas", *words])
                cli.main()
            except SystemExit as end:
                code = end.code
            except Began:
                if isinstance(began[0], Experiment):
                    check_meaning(words, began[0])
            said = capsys.readouterr()
            if isinstance(code, str):
                assert code.startswith("deepatlas: ") and len(code) < 2200, code[:3000]
                assert "\n" not in code and "\x1b" not in code, code[:3000]
            else:
                assert code in (None, 0, 1, 2, 130)
            assert "\x1b" not in said.out + said.err and "Traceback" not in said.err
            assert said.err.count("\n") <= 1
            after = everything(place)
            if words[0] == "collect" and not code:  # its table
                written = set(after) - set(before)
                for file in written:
                    assert after.pop(file).startswith(b"student,item")
                    (place / file).unlink()
            assert after == before, set(after) ^ set(before)


def check_meaning(words, experiment):
    """Each parameter has the value that was written last, by the one rule."""
    wanted = {}
    for word in words:
        name, equals, text = word.partition("=")
        if equals and name in NAMES and name != "term_weights":
            wanted[name] = text
    for name, text in wanted.items():
        if text not in ("null", "None"):
            assert stands_for(text, getattr(experiment, name)), (name, text)


def stands_for(text, got):
    """Is ``got`` what a reader of decimal numbers sees in ``text``? By Python's own words."""
    if isinstance(got, bool) and text.lower() == str(got).lower():
        return True
    if isinstance(got, int | float):  # a switch may be written as 0 or 1, too
        plain_integer = re.fullmatch(r"[+-]?(0|[1-9][0-9]*)", text)
        decimal = re.fullmatch(
            r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?", text
        )
        return bool(plain_integer or decimal) and float(text) == float(got)
    return text == got


def test_values_are_read_alike_from_every_side():
    """As a text, as papermill hands it on, or as the value it stands for: the same experiment."""
    usual = parse({})
    names = [name for name in NAMES if not isinstance(getattr(usual, name), str)]
    for number, rng in fuzzing.cases(1500):
        name, text = rng.choice(names), value(rng)
        with fuzzing.told(number, (name, text[:200])):
            outcomes = []
            for read in (str, plain):
                try:
                    outcomes.append(parse({name: read(text)}).model_dump_json())
                except UserError as error:
                    assert "\n" not in str(error) and len(str(error)) < 1000
                    outcomes.append("refused")
            assert outcomes[0] == outcomes[1]


# --- the commands on files ------------------------------------------------------------------------

INPUTS = """
    plane.nii.gz labels.nii.gz volume.nii.gz warp.nii.gz damaged.nii.gz vectors.nii.gz points.csv
    list.json names.json file folder link scans gone.nii.gz *.nii.gz plane.nii.gz/x phantom-brain
    plan.toml
"""
INPUTS = [*INPUTS.split(), "", "x" * 300, "a\x1b[2J", "b\udcff"]
PLACES_OUT = ["out", "out/deep", "folder", "scans", ".", "file", "link", "/proc/x", "plane.nii.gz"]
PLACES_OUT += ["out/a.pt", "list.json"]
MODELS = ["phantom-brain"] * 4 + ["hippocampus", "plan.toml", "folder", "scans", "file", "gone"]
FLAGS = {
    "segment": ["--device=cpu", "--device=quantum", "--regime=deepatlas"],
    "register": ["--inverse", "--refine=1", "--refine=x", "--format=learn2reg"],
    "apply": ["--labels", "--points", "--lps"],
    "evaluate": ["--names=names.json", "--names=list.json"],
    "export": ["--with-reference", "--regime=deepatlas"],
}
EVERYWHERE = ["--force", "--quiet"]


@pytest.fixture
def scans(place):
    """Beside what every command meets: planes, which the kit's networks take, and what looks so."""
    rng = np.random.default_rng(0)
    plane = rng.random((20, 24)).astype(np.float32)
    write_nifti(place / "plane.nii.gz", plane)
    write_nifti(place / "labels.nii.gz", (plane > 0.5).astype(np.uint8))
    write_nifti(place / "volume.nii.gz", rng.random((6, 7, 8)).astype(np.float32))
    warp = nib.Nifti1Image(rng.normal(size=(20, 24, 1, 1, 3)).astype(np.float32), np.eye(4))
    nib.save(warp, place / "vectors.nii.gz")
    warp.header.set_intent(1007)
    nib.save(warp, place / "warp.nii.gz")
    write_nifti(place / "scans" / "plane.nii.gz", plane)
    write_nifti(place / "scans" / "labels.nii.gz", (plane > 0.5).astype(np.uint8))
    whole = (place / "plane.nii.gz").read_bytes()
    (place / "damaged.nii.gz").write_bytes(whole[: len(whole) // 2])
    (place / "points.csv").write_text("x,y,z\n1,2,3\n")
    (place / "names.json").write_text('{"structures": {"one": [1]}}')
    return place


def file_words(rng):
    """Mostly words that might do; one in three has something wrong."""
    command = rng.choice(ON_FILES)
    inputs = INPUTS if rng.random() < 0.4 else INPUTS[:3]
    words = [command]
    if command == "apply":
        words.append(rng.choice(["warp.nii.gz", "warp.nii.gz", rng.choice(inputs)]))
    count = {"register": 2, "evaluate": 2, "export": 1}.get(command, rng.choice([1, 2]))
    count += rng.choice([0] * 10 + [-1, 1])
    words += [rng.choice(inputs) for _ in range(count)]
    if rng.random() < 0.95 and command in ("segment", "register"):
        words += ["--model", rng.choice(MODELS)]
    if rng.random() < 0.95:
        words += ["-o", rng.choice(["out", rng.choice(PLACES_OUT)])]
    for _ in range(rng.choice([0, 0, 1, 2])):
        words.append(rng.choice(EVERYWHERE + FLAGS[command]))
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words)), rng.choice(["--zebra", "--", "-x", *VALUES]))
    return words


@pytest.mark.filterwarnings("always")  # the command tells them in lines
def test_words_about_files_end_in_lines_and_touch_no_input(scans, monkeypatch, capsys):
    """What is new lies where -o says, whole; nothing that was there is another."""
    loaded = functools.cache(apply.load)  # the kit's own networks, read once
    monkeypatch.setattr(apply, "load", lambda path, regime=None: loaded(path, regime))
    before = everything(scans)
    codes = Counter()
    for number, rng in fuzzing.cases(300):
        words = file_words(rng)
        with fuzzing.told(number, [word[:200] for word in words]):
            code = 0
            try:
                monkeypatch.setattr(sys, "argv", ["deepatlas", *words])
                cli.main()
            except SystemExit as end:
                code = end.code
            said = capsys.readouterr()
            complaints = said.err.splitlines()
            if isinstance(code, str):
                complaints.append(code)
                code = 1
            codes[code or 0] += 1
            assert code in (None, 0, 1, 2) and bool(code) <= bool(complaints)
            for line in complaints:
                assert line.startswith("deepatlas: ") and len(line) < 2200, line[:3000]
            assert "\x1b" not in said.out + said.err
            if "--quiet" in words:
                assert said.out == ""
            after = everything(scans)
            for file in sorted(set(after) - set(before), reverse=True):
                where = Path(words[words.index("-o") + 1])
                assert file.is_relative_to(where) or where.is_relative_to(file), file
                assert file.suffix != ".part"
                path = scans / file
                path.rmdir() if path.is_dir() else path.unlink()
                del after[file]
            assert after == before, set(before) - set(after)
    assert min(codes[code] for code in (0, 1, 2)) > 10, codes
