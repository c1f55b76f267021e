"""The ready configurations: each is of an experiment that can be trained, on folders in the layout
of its data set, and papermill and the command make the same run of it.
"""

import re
import subprocess
import sys
from functools import partial

from deepatlas import experiments, places, records
from deepatlas.cli import app
from deepatlas.cli.arguments import read_config
from deepatlas.datasets.entries import PROFILES, manifest
from deepatlas.errors import CALL_AGAIN
from deepatlas.parameters import parse
from deepatlas.regimes import JOINT

import nbformat
import pytest
from helpers import one_thread  # noqa: F401
from named_sets import (
    write_decathlon,
    write_mindboggle,
    write_neurite_oasis,
    write_neurite_oasis_2d,
    write_oai_zib,
    write_oasis35,
)
from typer.testing import CliRunner

FOLDER = places.NOTEBOOKS / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
SITES = {"MMRR-21": range(1, 5), "NKI-TRT-20": range(13, 15), "NKI-RS-22": range(1, 4)}

# Of each folder of scans, how a small one is made.
WRITERS = {
    "hippocampus": partial(write_decathlon, prefix="hippocampus", numbers=[1, 2]),
    "oasis35": write_oasis35,
    "neurite-oasis": write_neurite_oasis,
    "neurite-oasis-2d": write_neurite_oasis_2d,
    "spleen": partial(write_decathlon, prefix="spleen", numbers=[1]),
    "heart": partial(write_decathlon, prefix="la", numbers=[1]),
    "prostate": partial(write_decathlon, prefix="prostate", numbers=[1, 2], volumes=2),
    "mindboggle101": partial(write_mindboggle, sites=SITES),
    "oai-zib": write_oai_zib,
}


def test_there_is_one_for_each_data_set_and_profile():
    wanted = {f"{name}-{profile}" for name in manifest() for profile in PROFILES}
    missing = wanted - {path.stem for path in CONFIGS}
    assert not missing, "copy one of another data set, and put in the name of this one"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_of_the_experiment_that_its_name_says(path):
    values = read_config(path)
    experiment = parse(values)
    assert path.stem == f"{experiment.dataset}-{experiment.profile}"
    slices = "full-3d" not in experiment.entry.grids
    assert experiment.dims == (2 if slices else 3), "volumes are the rule"
    assert f"deepatlas run -f notebooks/configs/{path.name}" in path.read_text()
    assert f"-f notebooks/configs/{path.name} -p seed" in path.read_text()
    for name, value in values.items():
        assert getattr(experiment, name) == value, "as it stands there, with its type"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for all data sets, and for the runs on them."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("scans")
        patch.setenv("DEEPATLAS_DATA", str(home))
        patch.setenv("DEEPATLAS_CACHE", str(home / "cache"))
        yield home


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_takes_two_steps_on_a_small_cohort_in_the_layout_of_its_data_set(
    path, home, monkeypatch
):
    """With as many pairs in a step, the recipe and all else that the file asks for."""
    values = read_config(path)
    asked = parse(values)
    entry = asked.entry
    if entry.anatomy is None and not (home / entry.folder_name).exists():
        WRITERS[entry.folder_name](home / entry.folder_name)
    if "published" in entry.split:
        few = entry.model_copy(update={"split": {"published": (4, 2, 3)}})
        monkeypatch.setitem(manifest(), entry.name, few)
    values |= {"batch_size": asked.batch_size, "seg_batch_size": asked.seg_batch_size}
    values |= {"profile": "smoke", "seg_steps": 1, "reg_steps": 1, "joint_steps": 2, "labelled": 2}
    values["regimes"] = (
        "joint"  # no others are trained here: files that differ in nothing else meet
    )
    trained = experiments.train_or_load(parse(values), JOINT, root=home / "runs")
    assert set(trained[JOINT]) == {"seg", "reg"}


# --- papermill and the command --------------------------------------------------------------------


def papermill(out, *words):
    """What ``papermill`` says of the experiment's notebook, and its exit code."""
    command = [sys.executable, "-m", "papermill", str(places.EXPERIMENT), str(out), *words]
    done = subprocess.run([*command, "--no-progress-bar"], capture_output=True, text=True)
    return done.returncode, done.stderr.rstrip()


def test_papermill_and_the_command_make_the_same_run_and_stop_in_time(tmp_path, monkeypatch):
    """Each goes on with what the other has begun, and finds what the other has finished."""
    monkeypatch.setenv("DEEPATLAS_RUNS", str(tmp_path / "runs"))
    config = str(FOLDER / "phantom-knee-smoke.yaml")
    out = tmp_path / "out.ipynb"
    by_papermill = ["-f", config, "-p", "seed", "3", "-p", "regimes", "joint"]
    by_command = ["run", "-f", config, "seed=3", "regimes=joint", "--no-notebook"]

    code, said = papermill(out, *by_papermill, "-p", "minutes", "1e-6")
    assert code == 1
    sentence = said.splitlines()[-1]
    assert re.search(r"its time .*over.*the same command goes on", sentence), "and no traceback"
    (folder,) = (tmp_path / "runs").glob("phantom-knee-*")
    begun = records.read_record(folder)

    done = CliRunner().invoke(app, [*by_command, "--minutes", "1e-6"])
    assert done.exit_code == CALL_AGAIN, done.exception
    assert re.search(r"its time .*over.*the same command goes on", done.stderr)
    assert not records.read_record(folder)["finished"]
    done = CliRunner().invoke(app, by_command)
    assert done.exit_code == 0, done.exception
    finished = records.read_record(folder)
    assert finished["finished"] and finished["begun"] == begun["begun"]

    code, said = papermill(out, *by_papermill)
    assert code == 0, said
    cells = nbformat.read(out, 4).cells
    printed = [text.text for cell in cells for text in cell.get("outputs", []) if "text" in text]
    assert any(f"finished before, its scans were not read again: {folder}" in t for t in printed)
    assert list((tmp_path / "runs").glob("phantom-knee-*")) == [folder]
