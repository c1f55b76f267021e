"""A wheel, used by somebody who has no checkout: everything that the kit brings along is in it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from deepatlas.cli import main; main()"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """(folder, environment): the unpacked wheel and a home, both far from the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*build, "--wheel-dir", str(folder), str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    ours = [name for name in os.environ if name.startswith("DEEPATLAS_")]
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"PYTHONPATH": str(folder / "site"), "HOME": str(folder / "home")}
    (folder / "home").mkdir()
    return folder, environment


def process(elsewhere, *arguments, code=COMMAND):
    """The command as it ended, or other ``code``."""
    folder, environment = elsewhere
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def ran(elsewhere, *arguments, code=COMMAND):
    """What the command prints; it must end well."""
    done = process(elsewhere, *arguments, code=code)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_what_is_imported_and_knows_its_places(elsewhere):
    folder, _ = elsewhere
    code = (
        "import json; from deepatlas import places; print(json.dumps([str(p) for p in ("
        "places.PACKAGE, places.MANIFEST, places.EXPERIMENT, places.runs_folder())]"
        "+ [places.CHECKOUT]))"
    )
    package, manifest, notebook, runs, checkout = json.loads(ran(elsewhere, code=code))
    assert package == str(folder / "site" / "deepatlas") and checkout is False
    assert Path(manifest).is_file() and Path(notebook).is_file()
    assert manifest.startswith(package)
    assert runs == str(folder / "home" / "deepatlas" / "runs")


def test_it_carries_lessons_pages_scripts_and_results_but_no_tests(elsewhere):
    folder, _ = elsewhere
    site = folder / "site"
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert "deepatlas/viewers/js/index.js" in names and "deepatlas/viewers/page.html" in names
    assert {
        f"deepatlas/shared/notebooks/{path.name}" for path in ROOT.glob("notebooks/*.ipynb")
    } <= names
    assert "deepatlas/shared/tutorials_data/results/first/regimes.csv" in names
    assert "deepatlas/exercises/quiz_01.yaml" in names
    assert not [name for name in names if "test_" in name or name.endswith(".pyc")]


def test_the_doctor_speaks(elsewhere):
    said = ran(elsewhere, "doctor")
    assert "phantom-brain: made on the spot" in said and "deepatlas run" in said


def test_a_run_ends_with_its_report(elsewhere):
    folder, _ = elsewhere
    said = ran(elsewhere, "run", "profile=smoke", "dims=2", "device=cpu", "regimes=joint")
    (record,) = (folder / "home" / "deepatlas" / "runs").glob("*/run.json")
    run = record.parent
    assert f"report:   {run / 'report.html'}" in said
    assert (run / "report.html").stat().st_size > 100_000


def test_weights_load(elsewhere):
    code = "from deepatlas import weights; print(sorted(weights.load('phantom-brain')[0]))"
    assert ran(elsewhere, code=code).strip() == "['reg', 'seg']"


def test_the_lessons_are_handed_out(elsewhere):
    folder, _ = elsewhere
    ran(elsewhere, "handout", "lessons")
    copies = {path.name for path in (folder / "lessons").iterdir()}
    assert copies == {path.name for path in ROOT.glob("notebooks/*.ipynb")}
    text = (folder / "lessons" / "04_losses.ipynb").read_text(encoding="utf-8")
    assert '"exercise"' in text and '"solution"' not in text


def test_lab_opens_copies_of_the_lessons_and_keeps_what_a_learner_wrote(elsewhere):
    """JupyterLab itself is asked for its version alone."""
    folder, _ = elsewhere
    notebooks = folder / "home" / "deepatlas" / "notebooks"
    notebooks.mkdir(parents=True)
    (notebooks / "01_data.ipynb").write_text("mine")
    said = ran(elsewhere, "lab", "--version")
    assert said.strip()[0].isdigit()
    assert (notebooks / "01_data.ipynb").read_text() == "mine"
    assert (notebooks / "02_deformations.ipynb").stat().st_size > 10_000


def test_the_command_gains_reads_the_results_it_carries_and_writes_no_page(elsewhere):
    folder, _ = elsewhere
    results = folder / "site" / "deepatlas" / "shared" / "tutorials_data" / "results"
    before = {path: path.read_bytes() for path in results.rglob("*.*") if path.is_file()}
    assert "phantom-brain" in ran(elsewhere, "gains", results / "first")
    ran(elsewhere, "gains")
    assert {path: path.read_bytes() for path in results.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize("arguments", [["weights"], ["measure"]])
def test_what_came_with_the_kit_is_not_written_to(elsewhere, arguments):
    done = process(elsewhere, *arguments)
    assert done.returncode == 1 and "that came with the kit are not" in done.stderr
