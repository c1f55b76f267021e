"""The commands that take trained networks to files, as a user meets them."""

import io
import json
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from deepatlas import apply, cli, experiments
from deepatlas.cli import apply as commands
from deepatlas.errors import UserError
from deepatlas.parameters import parse

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from folders import write_bids, write_nifti, write_scan

IMAGE = np.arange(60, dtype=np.float32).reshape(3, 4, 5)

# What the networks of these tests warn of, the command is to print.
pytestmark = pytest.mark.filterwarnings("always:its header tells of two places")


@pytest.fixture
def ask(monkeypatch, capsys):
    """What ``deepatlas WORDS`` leaves: its code, what it says, and what it complains of."""

    def asked(*words):
        monkeypatch.setattr(sys, "argv", ["deepatlas", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code or 0
        said = capsys.readouterr()
        if isinstance(code, str):  # as Python ends, it is printed
            return 1, said.out, f"{said.err}{code}\n"
        return code, said.out, said.err

    return asked


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with three images, one of which is damaged."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "c"):
        write_nifti(Path(f"scans/{name}.nii.gz"), IMAGE)
    Path("scans/b.nii.gz").write_bytes(b"no image")
    return tmp_path


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- without networks: what is asked before, and how the work goes on -----------------------------


class Labels:
    """What ``segment`` gives, so far as the command looks."""

    outside = 0.25

    def __init__(self, image):
        self.image = Path(image)

    def save(self, folder, *, force):
        target = apply.segmentation_files(self.image, folder)[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("labels")
        return [target]


@pytest.fixture
def networks(monkeypatch):
    """Networks that segment what can be read, and remember what they were given."""
    seen = []

    class Networks:
        def to(self, device, mixed_precision):
            return self

    def segment(image, model):
        seen.append(Path(image).name)
        nib.load(image)
        warnings.warn("its header tells of two places", stacklevel=2)
        return Labels(image)

    def damaged(image, model):
        try:
            return segment(image, model)
        except nib.filebasedimages.ImageFileError as error:
            raise UserError(f"{image}: cannot be read as NIfTI") from error

    monkeypatch.setattr(apply, "load", lambda path, regime: Networks())
    monkeypatch.setattr(apply, "segment", damaged)
    return seen


def test_one_image_that_cannot_be_read_is_named_and_the_others_go_on(ask, place, networks):
    files = sorted(Path("scans").iterdir())
    code, said, complaint = ask("segment", *files, "--model", "m", "-o", "out")
    assert code == 1 and networks == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert "deepatlas: scans/b.nii.gz: cannot be read as NIfTI\n" in complaint
    assert "scans/a.nii.gz -> out/a_labels.nii.gz (25 % of it lies outside" in said
    assert "2 segmented, 1 failed: out" in said and "deepatlas evaluate out" in said
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a_labels.nii.gz",
        "c_labels.nii.gz",
    ]


def test_a_folder_stands_for_the_images_in_it(ask, place, networks):
    Path("scans/b.nii.gz").unlink()
    Path("scans/._a.nii.gz").write_text("what macOS adds")
    Path("scans/note.txt").write_text("mine")
    shutil.copy("scans/a.nii.gz", "scans/a_seg.nii.gz")  # labels beside images are none
    code, said, _ = ask("segment", "scans", "scans/a.nii.gz", "--model", "m", "-o", "out")
    assert code == 0 and networks == ["a.nii.gz", "c.nii.gz"]
    assert "2 segmented, 0 failed" in said


def test_a_data_set_stands_for_its_scans(ask, tmp_path, networks):
    write_bids(tmp_path / "bids", count=3)
    code, _, complaint = ask("segment", tmp_path / "bids", "--model", "m", "-o", tmp_path / "out")
    assert code == 0, complaint
    assert networks == [f"sub-0{i}_T1w.nii.gz" for i in (1, 2, 3)]


def test_images_of_one_name_get_a_folder_each(ask, place, networks):
    """As where every scan has a folder, and its files the same names in each."""
    for scan in ("s1", "s2"):
        write_nifti(Path(f"mice/{scan}/t1.nii.gz"), IMAGE)
    words = ["segment", "mice/s1/t1.nii.gz", "mice/s2/t1.nii.gz", "scans/a.nii.gz"]
    code, _, complaint = ask(*words, "--model", "m", "-o", "out")
    assert code == 0, complaint
    assert {str(file) for file in Path("out").rglob("*.nii.gz")} == {
        "out/s1/t1_labels.nii.gz",
        "out/s2/t1_labels.nii.gz",
        "out/a_labels.nii.gz",
    }


def test_quiet_prints_errors_alone(ask, place, networks):
    code, said, complaint = ask("segment", "scans", "--model", "m", "-o", "out", "--quiet")
    assert code == 1 and said == ""
    assert complaint == "deepatlas: scans/b.nii.gz: cannot be read as NIfTI\n"
    Path("scans/b.nii.gz").unlink()
    assert ask("segment", "scans", "--model", "m", "-o", "new", "-q") == (0, "", "")


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self):
        return True


def test_a_terminal_shows_how_far_the_work_is(place, monkeypatch):
    for quiet in (False, True):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert commands.work_through([1, 2, 3], lambda _: None, quiet, "image") == 0
        assert ("0/3" in terminal.getvalue()) != quiet


def test_without_a_terminal_there_is_no_bar(ask, place, networks):
    complaint = ask("segment", "scans", "--model", "m", "-o", "out")[2]
    assert "image/s" not in complaint and "it/s" not in complaint
    assert "deepatlas: warning: its header tells of two places" in complaint


def test_a_bug_keeps_its_traceback_among_many_images(ask, place, networks, monkeypatch):
    monkeypatch.setattr(apply, "segment", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["deepatlas", "segment", "scans", "--model", "m", "-o", "out"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_nothing_is_replaced_unless_asked(ask, place, networks):
    Path("out").mkdir()
    Path("out/c_labels.nii.gz").write_text("my work")
    words = ["segment", "scans/a.nii.gz", "scans/c.nii.gz", "--model", "m", "-o", "out"]
    code, _, complaint = ask(*words)
    assert code == 1 and networks == []  # not even the first was worked on
    assert "out/c_labels.nii.gz: there already, and nothing was done" in complaint
    assert Path("out/c_labels.nii.gz").read_text() == "my work"
    assert ask(*words, "--force")[0] == 0
    assert Path("out/c_labels.nii.gz").read_text() == "labels"


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("x/s/a.nii.gz y/s/a.nii.gz -o out", "would both be written to out/s/a_labels.nii.gz"),
        ("scans/a.nii.gz scans/a.nii -o out", "would both be written to out/a_labels.nii.gz"),
        ("scans/a.nii.gz -o scans/b.nii.gz", "b.nii.gz: is not a folder"),
        ("scans/a.nii.gz -o /proc", "/proc: nothing can be written there"),
        ("scans/*.nii -o out", "scans/*.nii: no file fits this pattern"),
        ("gone.nii.gz -o out", "gone.nii.gz: no such file; an image in NIfTI format"),
        ("none -o out", "none: there is no image in NIfTI format (.nii or .nii.gz) in it, and it"),
    ],
)
def test_what_cannot_work_is_told_before_the_networks_are_loaded(
    words, sentence, ask, place, networks, monkeypatch
):
    for other in ("x/s/a.nii.gz", "y/s/a.nii.gz", "scans/a.nii"):
        write_nifti(Path(other), IMAGE)
    Path("none").mkdir()
    monkeypatch.setattr(apply, "load", lambda *_: pytest.fail("networks were loaded"))
    before = everything(place)
    code, said, complaint = ask("segment", *words.split(), "--model", "m")
    assert code == 1 and said == "" and sentence in complaint and complaint.count("\n") == 1
    assert everything(place) == before and not Path("out").exists()


def test_what_is_missing_is_named_and_the_others_go_on(ask, place, networks):
    words = ["scans/a.nii.gz", "gone.nii.gz", "scans/c.nii.gz"]
    code, said, complaint = ask("segment", *words, "--model", "m", "-o", "out")
    assert code == 1 and networks == ["a.nii.gz", "c.nii.gz"]
    assert "gone.nii.gz: no such file" in complaint and "2 segmented, 1 failed" in said


@pytest.mark.parametrize("command", ["segment", "register"])
@pytest.mark.parametrize(
    "model, sentence",
    [
        ("cohort.toml", "is a data set, not trained networks: train some by `deepatlas run"),
        ("own", "is a data set, not trained networks"),
        ("hippocampus", "deepatlas run dataset=hippocampus"),
        ("gone.pt", "gone.pt: no such file"),
        ("scans", "scans: "),
        ("runs", "runs: holds 1 run folders, and one was wanted, as runs/mine"),
        ("scans/b.nii.gz", "scans/b.nii.gz: "),
    ],
)
def test_what_is_no_model_is_a_sentence(command, model, sentence, ask, place):
    Path("cohort.toml").write_text("name = 'mice'")
    Path("own").mkdir()
    Path("own/cohort.toml").write_text("name = 'mice'")
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/run.json").write_text("{}")
    images = ["scans/a.nii.gz", "scans/c.nii.gz"]
    code, said, complaint = ask(command, *images, "--model", model, "-o", "out")
    assert code == 1 and sentence in complaint and complaint.count("\n") == 1
    assert said == "" and not Path("out").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("segment scans -o out", "Missing option '--model'"),
        ("segment scans --model m", "Missing option '--output'"),
        ("segment --model m -o out", "Missing argument 'IMAGE"),
        ("register scans/a.nii.gz --model m -o out", "Missing argument 'FIXED'"),
        ("register a b --model m -o out --refine -1", "Invalid value for '--refine'"),
        ("register a b --model m -o out --format fsl", "'fsl' is not one of"),
        ("apply warp a --labels --points -o out", "--labels or --points, not both"),
        ("evaluate a", "Missing argument 'REFERENCE'"),
    ],
)
def test_words_that_are_not_understood_end_with_2(words, sentence, ask, place):
    code, said, complaint = ask(*words.split())
    assert code == 2 and said == "" and sentence in complaint and complaint.count("\n") == 1


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("register gone.nii.gz scans/a.nii.gz --model m -o out", "gone.nii.gz: no such file"),
        ("register scans scans/a.nii.gz --model m -o out", "scans: is a folder, and an image"),
        ("apply gone.nii.gz scans/a.nii.gz -o out", "gone.nii.gz: no such file; a warp"),
        ("apply scans/a.nii.gz scans/c.nii.gz -o out", "scans/a.nii.gz: "),
        ("apply scans/a.nii.gz scans -o out", "scans: is a folder, and an image"),
        ("evaluate gone scans", "gone: no such file or folder"),
        ("evaluate scans scans -o scans/a.nii.gz --force", "a name that ends in .csv was wanted"),
        ("export scans -o out.pt", "scans: not a run folder"),
        ("export scans -o scans", "scans: is a folder, and the file to write was wanted"),
    ],
)
def test_files_that_are_none_are_a_sentence(words, sentence, ask, place):
    before = everything(place)
    code, _, complaint = ask(*words.split())
    assert code == 1 and sentence in complaint and complaint.count("\n") == 1
    assert everything(place) == before


# --- with networks: a folder of scans, a run, and files for others --------------------------------

COHORT = """
name = "blobs"
title = "Blobs"
licence = "CC0"
structures = [["low", [1]], ["high", [2]]]
grids.full-3d = { shape = [16, 16, 16], spacing = 1.0 }
"""
PARTS = {"a": "train", "b": "train", "c": "validation", "d": "test", "e": "test"}


@dataclass(frozen=True)
class Own:
    """A folder of scans of a user, and the run of networks that they trained."""

    folder: Path
    run: Path

    def image(self, name):
        return self.folder / "images" / f"{name}.nii.gz"

    def labels(self, name):
        return self.folder / "labels" / f"{name}.nii.gz"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    tables = [COHORT]
    for seed, (name, part) in enumerate(PARTS.items()):
        image, labels = f"images/{name}.nii.gz", f"labels/{name}.nii.gz"
        write_scan(folder / image, folder / labels, seed)
        keys = {"id": name, "subject": name, "image": image, "labels": labels, "part": part}
        tables.append("\n".join(["[[scans]]", *(f'{key} = "{keys[key]}"' for key in keys)]))
    (folder / "cohort.toml").write_text("\n\n".join(tables))
    experiment = parse({"dataset": str(folder / "cohort.toml"), "profile": "smoke"})
    return Own(folder, experiments.run(experiment, folder / "runs"))


def test_from_a_run_to_labels_and_their_scores(own, tmp_path, ask):
    out = tmp_path / "out"
    code, said, _ = ask("segment", own.image("d"), own.image("e"), "--model", own.run, "-o", out)
    assert code == 0 and "2 segmented, 0 failed" in said
    assert sorted(path.name for path in out.iterdir()) == [
        "d_labels.json",
        "d_labels.nii.gz",
        "e_labels.json",
        "e_labels.nii.gz",
        "labels.ctbl",
        "labels.label.txt",
    ]
    labels = nib.load(out / "d_labels.nii.gz")
    assert labels.shape == nib.load(own.image("d")).shape
    assert labels.get_data_dtype() == np.uint8 and set(np.unique(labels.dataobj)) <= {0, 1, 2}

    table = tmp_path / "scores.csv"
    code, said, _ = ask("evaluate", out, own.folder / "labels", "-o", table)
    assert code == 0 and "means over 2 cases" in said and "mean of all" in said
    assert "no prediction for 3: a.nii.gz, b.nii.gz, c.nii.gz" in said
    rows = pd.read_csv(table)
    assert rows["case"].tolist() == ["d", "d", "e", "e"]
    assert rows["structure"].tolist() == ["low", "high"] * 2
    again = apply.evaluate(out, own.folder / "labels")
    np.testing.assert_allclose(rows["dice"], again["dice"], rtol=1e-5)


def test_a_cohort_file_stands_for_its_scans_and_for_their_labels(own, tmp_path, ask):
    cohort, out = own.folder / "cohort.toml", tmp_path / "out"
    code, said, complaint = ask("segment", cohort, "--model", own.run, "-o", out)
    assert code == 0 and "5 segmented" in said, complaint
    code, said, complaint = ask("evaluate", out, cohort, "-o", tmp_path / "scores.csv")
    assert code == 0 and "means over 5 cases" in said, complaint
    assert pd.read_csv(tmp_path / "scores.csv")["case"].unique().tolist() == list("abcde")

    text = cohort.read_text().replace("images/", f"{own.folder}/images/")
    unlabelled = tmp_path / "cohort.toml"
    unlabelled.write_text(
        text.replace('labels = "labels/b.nii.gz"\n', "").replace("labels/", f"{own.folder}/labels/")
    )
    code, said, complaint = ask("evaluate", out, unlabelled, "-o", tmp_path / "fewer.csv")
    assert code == 0 and not complaint, "a scan without labels in the list lacks none"
    assert "means over 4 cases" in said and "not scored: b_labels.nii.gz" in said


def test_from_a_run_to_a_warp_that_is_applied(own, tmp_path, ask):
    out = tmp_path / "out"
    pair = [own.image("d"), own.image("e")]
    code, said, complaint = ask("register", *pair, "--model", own.run, "-o", out, "--inverse")
    assert code == 0, complaint
    assert f"deepatlas apply {out}/d_to_e_warp.nii.gz LABELS --labels" in said
    assert "antsApplyTransforms" in said
    assert "-n NearestNeighbor" in said, "GenericLabel smooths, and differs from deepatlas apply"
    assert {path.name for path in out.iterdir()} == {
        "d_to_e.json",
        "d_to_e.nii.gz",
        "d_to_e_inverse_warp.nii.gz",
        "d_to_e_warp.nii.gz",
    }
    warp = out / "d_to_e_warp.nii.gz"
    assert ask("apply", warp, own.labels("d"), "--labels", "-o", out)[0] == 0
    warped = nib.load(out / "d_warped.nii.gz")
    assert set(np.unique(warped.dataobj)) <= {0, 1, 2}
    assert ask("evaluate", out / "d_warped.nii.gz", own.labels("e"))[0] == 0

    points = tmp_path / "points.csv"
    points.write_text("name,x,y,z\nnose,5,6,7\n")
    assert ask("apply", warp, points, "--points", "-o", out)[0] == 0
    assert (out / "points_warped.csv").read_text().startswith("name,x,y,z\nnose,")
    code, _, complaint = ask("apply", warp, own.labels("d"), "--labels", "-o", out)
    assert code == 1 and "d_warped.nii.gz: there already" in complaint


def test_a_warp_for_learn2reg_and_one_that_was_refined(own, tmp_path, ask):
    pair = [own.image("d"), own.image("e")]
    words = ["register", *pair, "--model", own.run, "-o", tmp_path, "--refine", "2"]
    code, said, complaint = ask(*words, "--format", "learn2reg")
    assert code == 0, complaint
    assert len(list(tmp_path.glob("disp_*.npz"))) == 1 and "antsApply" not in said


def test_one_file_does_what_the_run_does(own, tmp_path, ask):
    file = tmp_path / "blobs.pt"
    code, said, _ = ask("export", own.run, "-o", file)
    assert code == 0 and f"--model {file}" in said and f"{file.with_suffix('.md')}" in said
    written = []
    for model in (own.run, file):
        out = tmp_path / f"by_{model.name}"
        assert ask("segment", own.image("d"), "--model", model, "-o", out)[0] == 0
        written.append(np.asarray(nib.load(out / "d_labels.nii.gz").dataobj))
    assert (written[0] != written[1]).mean() < 0.02  # half precision
    code, _, complaint = ask("export", own.run, "-o", file)
    assert code == 1 and "blobs.pt: is there already" in complaint
    assert ask("export", own.run, "-o", file, "--force", "--quiet") == (0, "", "")


def test_a_run_keeps_its_folder_to_itself(own, ask):
    before = everything(own.run)
    words = ["segment", own.image("d"), "--model", own.run, "-o", own.run / "segmented"]
    code, _, complaint = ask(*words)
    assert code == 1 and "lies in the run folder" in complaint
    code, _, complaint = ask("export", own.run, "-o", own.run / "run.json", "--force")
    assert code == 1 and "lies in the run folder" in complaint
    assert everything(own.run) == before


def test_a_regime_that_is_none_is_a_sentence(own, tmp_path, ask):
    words = ["segment", own.image("d"), "--model", own.run, "-o", tmp_path / "out"]
    code, _, complaint = ask(*words, "--regime", "zebra")
    assert code == 1 and "zebra" in complaint and "choose from" in complaint
    assert not (tmp_path / "out").exists()


def test_labels_that_do_not_fit_are_named_and_the_others_are_scored(own, tmp_path, ask):
    out = tmp_path / "out"
    shutil.copytree(own.folder / "labels", out)
    write_nifti(out / "b.nii.gz", np.zeros((5, 5, 5), np.uint8))
    shutil.copy(out / "a.nii.gz", out / "zebra.nii.gz")
    code, said, complaint = ask("evaluate", out, own.folder / "labels", "-o", tmp_path / "t.csv")
    assert code == 1 and "means over 4 cases" in said
    assert "b.nii.gz: has 5 x 5 x 5 voxels, and the reference" in complaint
    assert "zebra.nii.gz: no labels in" in complaint
    assert pd.read_csv(tmp_path / "t.csv")["dice"].eq(1).all()
    names = tmp_path / "names.json"
    names.write_text('{"structures": {"both": [1, 2]}}')
    words = ["evaluate", out / "a.nii.gz", own.labels("a"), "--names", names]
    assert "both" in ask(*words)[1]


@pytest.mark.parametrize("shape, dims", [((8, 8), 2), ((8, 8, 1), 3), ((8, 8, 8), 3)])
def test_ants_is_told_the_dimensions_of_the_file(ask, place, monkeypatch, shape, dims):
    """A slice one voxel thick is a volume to it, and its warp is one of volumes."""
    fixed = SimpleNamespace(known_source=SimpleNamespace(shape=shape))
    found = SimpleNamespace(fixed=fixed, save=lambda *_, **__: [Path("out/a_to_c_warp.nii.gz")])
    model = SimpleNamespace(to=lambda *_, **__: None)
    monkeypatch.setattr(apply, "load", lambda *_: model)
    monkeypatch.setattr(apply, "register", lambda *_, **__: found)
    words = ["register", "scans/a.nii.gz", "scans/c.nii.gz", "--model", "m", "-o", "out"]
    code, said, complaint = ask(*words)
    assert code == 0, complaint
    assert f"antsApplyTransforms -d {dims} " in said


def test_labels_of_one_name_are_told_apart_by_their_folders(ask, place):
    for person in ("p1", "p2", "p3"):
        write_nifti(Path(f"study/{person}/t1.nii.gz"), IMAGE)
        write_nifti(Path(f"study/{person}/seg.nii.gz"), np.ones((3, 4, 5), np.uint8))
    write_nifti(Path("out/p1/t1_labels.nii.gz"), np.ones((3, 4, 5), np.uint8))
    sidecar = {"structures": {"s": [1]}, "image": str(place / "study/p1/t1.nii.gz")}
    Path("out/p1/t1_labels.json").write_text(json.dumps(sidecar))
    code, said, complaint = ask("evaluate", "out", "study")
    assert code == 0, complaint
    assert "no prediction for 2: p2/seg.nii.gz, p3/seg.nii.gz" in said


def test_an_image_may_be_registered_to_itself_but_nothing_is_replaced(ask, place, monkeypatch):
    monkeypatch.setattr(apply, "load", lambda *_: pytest.fail("refused before"))
    Path("out").mkdir()
    Path("out/a_to_a_warp.nii.gz").write_text("mine")
    words = ["register", "scans/a.nii.gz", "scans/a.nii.gz", "--model", "m", "-o", "out"]
    code, _, complaint = ask(*words)
    assert code == 1 and "out/a_to_a_warp.nii.gz: there already" in complaint


@pytest.mark.parametrize("aligned", [False, True])
def test_a_file_that_nobody_can_use_is_not_said_to_be_used(ask, tmp_path, monkeypatch, aligned):
    preparation = SimpleNamespace(reference=None)
    model = SimpleNamespace(aligned=aligned, preparation=preparation)
    monkeypatch.setattr(apply, "export", lambda *_, **__: None)
    monkeypatch.setattr(apply, "load", lambda path: model)
    code, said, _ = ask("export", tmp_path, "-o", tmp_path / "ours.pt")
    assert code == 0 and ("use it:" in said) is not aligned
