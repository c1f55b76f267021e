"""Files that mean harm: code where data were wanted, little that swells to more than any memory,
and names that are tags, formulas, links or letters that steer a terminal.

What archives may do is in ``test_fetch.py``, what a browser makes of names in ``test_viewers.py``.
"""

import ast
import csv
import html
import html.parser
import io
import json
import os
import pickle
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

from deepatlas import apply, checkpoints, models, records, reporting, tracking, viewers
from deepatlas.apply import formats
from deepatlas.apply import model as model_module
from deepatlas.cli import app
from deepatlas.cli.arguments import read_config
from deepatlas.datasets import fetch
from deepatlas.datasets.entries import read_cohort
from deepatlas.errors import UserError
from deepatlas.exercises import asking
from deepatlas.parameters import parse
from deepatlas.sweeps import plan, progress

import folders
import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import requests
import torch
from helpers import run_record, scan
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]

# --- what no code here does -----------------------------------------------------------------------

# modules whose files are programs
PROGRAMS = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
# calls that run a text, or a file
RUNNING = ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "pd.read_pickle")
RUNNING += ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "tempfile.mktemp")
# (how a call ends, what one of its arguments must be, and what one must not)
ARGUMENTS = (
    ("torch.load", "weights_only=True", None),
    ("yaml.load", "Loader=WithoutAliases", None),  # a SafeLoader
    ("extractall", "filter=", None),
    ("", None, "shell=True"),
    ("", None, "allow_pickle=True"),
    ("", None, "verify=False"),
    ("", None, "trusted=True"),
)


def dangers(tree):
    """What of a syntax tree would let a file or a text run as a program, line by line."""
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        found += [f"{node.lineno}: {name}" for name in names if name.split(".")[0] in PROGRAMS]
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        given = [ast.unparse(argument) for argument in node.keywords]
        if call in RUNNING:
            found.append(f"{node.lineno}: {call}")
        for end, wanted, refused in ARGUMENTS:
            lacks = wanted is not None and not any(text.startswith(wanted) for text in given)
            if call.endswith(end) and (lacks or refused in given):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def programs():
    """(name, syntax tree) of all code but tests: modules, scripts, and the cells of notebooks."""
    for place in ("deepatlas", "benchmarks", "tutorials_data"):
        for path in (ROOT / place).rglob("*.py"):
            yield path, ast.parse(path.read_text(encoding="utf-8"))
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                yield path, ast.parse("".join(cell["source"]))


def test_no_code_lets_a_file_run():
    found = [f"{path}:{danger}" for path, tree in programs() for danger in dangers(tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import load",
        "import multiprocessing, shelve",
        "eval(text)",
        "os.system('ls')",
        "subprocess.run(line, shell=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "tar.extractall(folder)",
        "requests.get(url, verify=False)",
    ],
)
def test_such_code_would_be_found(code):
    assert len(dangers(ast.parse(code))) == 1
    assert not dangers(ast.parse("torch.load(path, weights_only=True); net.eval(); np.load(path)"))


# --- code where tensors were wanted ---------------------------------------------------------------


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def run_folder(folder, **more):
    """A finished run, as far as its record goes."""
    told = {"preparation": {"aligned": True}, "steps": {}, "seconds": {}, **more}
    folder.mkdir(exist_ok=True)
    records.write_record(run_record(**told), folder)
    return folder


READERS = {
    "tensors.pt": checkpoints.load_tensors,
    "checkpoint.pt": checkpoints.read_checkpoint,
    "last.pt": checkpoints.last_checkpoint,
    "weights.pt": models.load,
    "model.pt": apply.load,
    "examples.pt": lambda path: reporting.load_examples(run_folder(path.parent)),
    "reference.pt": lambda path: apply.load(run_folder(path.parent)),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("form", ["an archive", "a pickle", "an older file"])
def test_code_in_a_file_of_tensors_is_refused_and_never_run(tmp_path, name, form):
    marker, path = tmp_path / "marker", tmp_path / "run" / name
    path.parent.mkdir()
    harm = {"best": Payload(marker), "of": {}, "experiment": {}, "networks": {}, "image": 1}
    if form == "a pickle":
        path.write_bytes(pickle.dumps(harm))
    else:
        torch.save(harm, path, _use_new_zipfile_serialization=form == "an archive")
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        READERS[name](path)
    assert not marker.exists()
    with pytest.raises(FileNotFoundError):
        marker.rmdir()
    torch.load(path, weights_only=False) if form != "a pickle" else pickle.loads(path.read_bytes())
    assert marker.is_dir(), "this file would do harm"


# --- little that swells ---------------------------------------------------------------------------


def test_a_compressed_file_of_tensors_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(10**7)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as to:
        for name in source.namelist():
            to.writestr(name, source.read(name))
    assert bomb.stat().st_size < 10**5
    assert torch.load(bomb, weights_only=True)["a"].numel() == 10**7, "PyTorch unpacks it"
    monkeypatch.delattr(zipfile.ZipFile, "testzip")  # not reached
    with pytest.raises(UserError, match=r"bomb\.pt: .*it unpacks to 4\d{7} bytes, more than"):
        checkpoints.load_tensors(bomb)


LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nseed: [*b, *b]\n"
MERGED = "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nseed: 1\n"
ROUND = "seed: &a [*a]\n"
DEEP = "seed: " + "[" * 20_000
TAGS = [
    "seed: !!python/object/apply:os.mkdir [marker]\n",
    "seed: !!python/name:os.system\n",
    "? !!python/tuple [1]\n: 1\n",
]


@pytest.mark.parametrize("text", [LAUGHS, MERGED, ROUND, DEEP, *TAGS])
def test_parameters_in_yaml_are_plain_values(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: not valid YAML \("):
        read_config(tmp_path / "config.yaml")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("number", [".nan", ".inf", "1e999", "1" + "0" * 5000])
def test_no_number_of_yaml_is_too_large_or_none(tmp_path, number):
    (tmp_path / "config.yaml").write_text(f"lambda_r: {number}\n")
    with pytest.raises(UserError):
        parse(read_config(tmp_path / "config.yaml"))


@pytest.mark.parametrize("read", [read_cohort, plan.read_sweep])
@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 2000 + " = 1",
        "[" + "a." * 2000 + "a]",
        "a = {" + "'=' . " * 2000 + "a = 1}",
        "a = " + "[" * 10**5,
        "a = 1" + "0" * 5000,
    ],
    ids=["key", "table", "inner key", "list", "number"],
)
def test_a_short_file_in_toml_takes_no_memory(tmp_path, read, text):
    path = tmp_path / "a.toml"
    path.write_text(f"{text}\n")
    said = r"a\.toml: .*(more than 1000 dots in line 1|recursion|limit \(4300 digits\))"
    with pytest.raises(UserError, match=said) as caught:
        read(path)
    assert len(str(caught.value)) < 300


def test_what_an_archive_says_of_one_file_is_short(tmp_path):
    """Compressed a thousandfold, a name would fill the memory before a size is looked at."""
    for number, kind in enumerate((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)):
        path = tmp_path / f"{number}.tar.gz"
        said = tarfile.TarInfo("name")
        said.type, said.size = kind, 2 * fetch.MOST_OF_HEADERS
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("first"))
            tar.addfile(said, io.BytesIO(bytes(said.size)))
        with pytest.raises(UserError, match="2097152 bytes are said of one file"):
            fetch._unpack(path, tmp_path / "unpacked", "https://example.org/a.tar")
    sparse = tarfile.TarInfo("holes")
    sparse.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("first"))
        tar.addfile(sparse)
    with pytest.raises(UserError, match="'holes' is a file with holes"):
        fetch._unpack(path, tmp_path / "unpacked", "https://example.org/a.tar")
    assert not (tmp_path / "unpacked").exists()


def test_an_address_of_https_leads_to_no_other(tmp_path, monkeypatch):
    def moved(session, url, **options):
        return SimpleNamespace(url="http://example.org/a.tar", close=list, ok=True)

    monkeypatch.setattr(requests.Session, "get", moved)
    with pytest.raises(ConnectionError, match=r"leads to http://example\.org/a\.tar, which is not"):
        fetch.download("https://example.org/a.tar", "0" * 64, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


# --- names in tables ------------------------------------------------------------------------------

FORMULAS = ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "＝1", "a;=1", "a\n-1", '";=1', "=;=1"]
PLAIN = ["a-b", "1=2", "a, -1", "'a'", "", "NA", "ada@home", "a;b", "->"]


def cells_of(text):
    """What a spreadsheet takes for cells, where commas stand between them, and where semicolons."""
    for separator in ",;":
        for line in csv.reader(io.StringIO(text), delimiter=separator):
            yield from line


def is_computed(cell):
    return cell.strip()[:1] in ("=", "+", "-", "@", "＝") and not cell.startswith("'")


def test_no_spreadsheet_computes_a_name_and_the_kit_reads_it_as_it_was(tmp_path):
    path, names = tmp_path / "table.csv", FORMULAS + PLAIN[:-1]
    checkpoints.write_csv(pd.DataFrame({"name": names, "number": -1.5}), path)
    text = path.read_text(encoding="utf-8")
    computed = [cell for cell in cells_of(text) if is_computed(cell)]
    assert set(computed) == {"-1.5"}, "numbers are numbers"
    for name in PLAIN[:-1]:
        assert checkpoints.guarded(name) == name
    table = checkpoints.read_csv(path, text=["name"], required=["name", "number"])
    assert table["name"].tolist() == names and (table["number"] == -1.5).all()


def test_a_table_of_others_is_read_as_it_stands(tmp_path):
    (tmp_path / "points.csv").write_text("x,name\n1,'=1\n")
    table = checkpoints.read_csv(tmp_path / "points.csv", ["name"], ["x"], own=False)
    assert table["name"].tolist() == ["'=1"]


TAG = "<img src=x onerror=alert(1)>"
NAMES = ["=1+1", "a;=1", TAG, "$(touch marker)", "'; touch marker; '", "\x1b[2J", "a\n=1"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A folder of scans with such names and headers, and what ``data check`` makes of it."""
    home = tmp_path_factory.mktemp("names")
    items = []
    for number, name in enumerate(NAMES):
        paths = [f"{part}/{name}.nii.gz" for part in ("imagesTr", "labelsTr")]
        folders.write_scan(home / paths[0], home / paths[1], seed=number)
        items.append(f"./{paths[0]}")
        image = nib.load(home / paths[0])
        header = image.header
        for field in ("descrip", "intent_name", "db_name", "aux_file"):
            header[field] = b"<script>7"
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"<script>7</script>"))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, header), home / paths[0])
    done = CliRunner().invoke(app, ["data", "check", str(home), "--to", str(home / "out")])
    return home / "out", done


def test_a_table_of_scans_has_neither_formulas_nor_letters_that_steer(checked):
    folder, done = checked
    text = (folder / "check.csv").read_text(encoding="utf-8")
    assert not any(is_computed(cell) for cell in cells_of(text))
    for shown in (text, done.output):
        assert "\x1b" not in shown and "\\x1b[2J" in shown
    assert "$(touch marker)" in text and "<script>" not in text


def test_a_cohort_file_keeps_every_name_in_its_quotation_marks(checked):
    said = tomllib.loads((checked[0] / "cohort.toml").read_text(encoding="utf-8"))
    usable = {name for name in NAMES if name.isprintable()}
    assert {table["id"] for table in said["scans"]} == usable
    assert not {"a", "touch"} & said.keys()


class Tags(html.parser.HTMLParser):
    """The tags of a page, and the names of all their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}


def test_a_page_of_scans_holds_no_tag_of_a_name_and_runs_nothing(checked):
    page = (checked[0] / "check.html").read_text(encoding="utf-8")
    found = Tags(page)
    assert "section" in found.tags and not {"script", "iframe", "link", "a"} & found.tags
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "alert(1)" in page and "default-src 'none'; img-src data:" in page


def test_a_page_with_a_viewer_asks_for_nothing(tmp_path):
    path = viewers.view_scan(scan(1), ("background", "</script><b>", TAG)).as_html(tmp_path / "a")
    page = path.read_text(encoding="utf-8")
    found = Tags(page)
    assert not {"img", "link", "b", "iframe"} & found.tags and "src" not in found.attributes
    assert "default-src 'none'; script-src 'unsafe-inline';" in page and TAG not in page


@pytest.mark.parametrize("name", ["<script>7", TAG, "[x](javascript:7)", "`x`", "a\n# b", "a\\<b>"])
def test_a_model_card_shows_a_name_letter_by_letter(name):
    from nbconvert.filters import markdown2html

    shown = Tags(markdown2html(f"- Scans: {model_module._literal(name)}. Licence: none."))
    assert shown.tags <= {"ul", "li", "p"}


def test_an_answer_of_a_prediction_is_a_text(monkeypatch):
    shown = []
    monkeypatch.setattr(asking.shown, "display", shown.append)
    asking.predict("01.a", f"which? {TAG}", [TAG, "b"], f"{TAG} < 1", display="html")
    assert TAG not in shown[0].data and shown[0].data.count("&lt;img") == 3
    asking.predict("01.a", "which?", ["a", "b"], f"{TAG} < 1")
    _, choice, (_, reveal), line = _parts(shown[1])
    choice.value = "a"
    reveal.click()
    assert line.value.startswith("&lt;img")


def _parts(box):
    question, choice, buttons, line = box.children
    return question, choice, buttons.children, line


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "\u202eb"])
def test_names_of_structures_steer_nothing(tmp_path, name):
    (tmp_path / "a.json").write_text(json.dumps({"structures": {name: [1]}}))
    with pytest.raises(UserError, match=r"a\.json: names and numbers were wanted"):
        formats.read_sidecar(tmp_path / "a.json")


# --- names that become folders, or stand in a report ----------------------------------------------


def test_a_history_names_no_folder_elsewhere(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        folder.mkdir()
    kept = other / "events.out.tfevents.1"
    kept.write_text("mine")
    rows = {"step": [1], "turn": ["seg"], "regime": ["../../other"], "seconds": [0.0]}
    checkpoints.write_csv(pd.DataFrame(rows), run / "history.csv")
    with pytest.raises(UserError, match=r"history\.csv is damaged, it names a regime '\.\./\.\."):
        tracking.catch_up(["tensorboard"], run)
    assert list(other.iterdir()) == [kept] and kept.read_text() == "mine"


def test_a_regime_in_a_table_of_scores_is_a_word(tmp_path):
    row = dict.fromkeys(("dice", "nsd", "hd95_mm", "folds_percent", "endpoint_voxels"), 1.0)
    texts = {"task": "segmentation", "case": "a", "subject": "a", "structure": "one"}
    table = pd.DataFrame([{**row, **texts, "regime": TAG}])
    checkpoints.write_csv(table, tmp_path / "scores.csv")
    with pytest.raises(UserError, match=r"scores\.csv: damaged, it names a regime '<img"):
        reporting.load_scores(run_folder(tmp_path))


def test_a_record_names_no_parameter_that_is_code(tmp_path):
    """Papermill writes each as a line of the notebook."""
    values = parse({"dims": 2}).model_dump() | {"x = 1\nimport os": 1}
    with pytest.raises(UserError, match="there is no parameter"):
        reporting.load_record(run_folder(tmp_path, experiment=values))


def test_a_table_that_shows_names_shows_them_letter_by_letter():
    """pandas' ``style`` takes a text for HTML unless it is told; names stand in these lessons."""
    for stem in ("01_data", "08_your_own_data"):
        cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", 4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        styled = [line for line in code.splitlines() if ".style" in line]
        assert styled and all('escape="html"' in line for line in styled), stem


def test_a_sweep_in_a_notebook_shows_what_failed_letter_by_letter(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda table, **_: shown.append(table.to_html()))
    experiment = parse({"profile": "smoke"})
    run = progress.Run(experiment, experiment, Path("runs/one"), "failed", note=TAG)
    progress._Notebook()([run], TAG)
    assert TAG not in shown[0] and shown[0].count(html.escape(TAG)) == 2
