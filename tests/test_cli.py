"""The command: a mistake of the user is one line, a bug keeps its traceback, every command explains
itself.
"""

import errno
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

from deepatlas import cli, evidence, evidence_plots, experiments, notebooks
from deepatlas.checkpoints import Interrupted, OutOfTime
from deepatlas.cli import app, arguments, errors
from deepatlas.datasets.layouts import LAYOUTS
from deepatlas.errors import CALL_AGAIN, NO_MEMORY, STOPPED, UserError
from deepatlas.locks import Held
from deepatlas.parameters import parse

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

COMMANDS = [given.name for given in (*app.registered_groups, *app.registered_commands)]


def command(*words, before=""):
    """What ``deepatlas WORDS`` does in a process of its own, after the code ``before``."""
    code = f"from deepatlas import cli\n{before}\ncli.main()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_a_mistake_is_one_line():
    done = command("run", "labeled=5")
    assert done.returncode == 1
    assert done.stderr == ("deepatlas: there is no parameter 'labeled', did you mean 'labelled'\n")


def test_a_mistake_shows_where_it_arose_if_asked():
    done = command("--debug", "run", "labeled=5")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().endswith("did you mean 'labelled'")


@pytest.mark.parametrize("error", ["ValueError('ours')", "KeyError('ours')", "TypeError('ours')"])
def test_a_bug_keeps_its_traceback(error):
    """Even a ValueError, which until now was taken for a mistake of the user."""
    before = (
        "from deepatlas import reporting\n"
        f"def broken(*_):\n    raise {error}\n"
        "reporting.load_record = broken\n"
    )
    done = command("table", ".", before=before)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "in broken" in done.stderr


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    done = command("table", str(tmp_path / "nowhere"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "not a run folder" in done.stderr


def test_the_commands_are_these():
    assert COMMANDS == [
        "data",
        "run",
        "segment",
        "register",
        "apply",
        "evaluate",
        "export",
        "table",
        "sweep",
        "gains",
        "weights",
        "lab",
        "site",
        "measure",
        "warm",
        "handout",
        "collect",
        "doctor",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself(name):
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output


# Words after which nothing is computed; each of the packages takes a second, or a tenth of one.
EXPLAINED = [["--help"], [], ["data", "--help"], *([name, "--help"] for name in COMMANDS)]
MISTYPED = [["zebra"], ["run", "--zebra"], ["data", "--zebra"], ["table"], ["segment", "a.nii"]]
HEAVY = ("torch", "numpy", "pandas", "scipy", "nibabel", "matplotlib", "IPython")


def test_whoever_asks_for_help_or_mistypes_waits_for_no_heavy_package():
    before = f"""
import contextlib, io, sys
for words in {EXPLAINED + MISTYPED!r}:
    sys.argv = ["deepatlas", *words]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main()
        except SystemExit:
            pass
    assert len(said.getvalue()) > 20, words
    print(words, [name for name in {HEAVY!r} if name in sys.modules])
sys.exit()
"""
    done = command(before=before)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(EXPLAINED + MISTYPED)
    assert [line for line in lines if not line.endswith(" []")] == []


def test_help_names_the_layouts():
    done = CliRunner().invoke(app, ["data", "check", "--help"])
    assert all(name in done.output for name in LAYOUTS) and "{layouts}" not in done.output


def test_values_are_read_by_one_plain_rule():
    texts = ["labelled=5", "velocity=false", "seg_rate=1e-3", "dataset=oasis35", "joint_start=none"]
    assert arguments.assignments(texts) == {
        "labelled": 5,
        "velocity": False,
        "seg_rate": 0.001,
        "dataset": "oasis35",
        "joint_start": "none",
    }


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("seed=010", "parameter 'seed': '010' begins with 0: write 10"),
        ("dataset=", "parameter 'dataset' has no value: write one after the =, or leave it out"),
        ("term_weights.similarity=", "parameter 'term_weights' has no value"),
        ("seed=" + "9" * 10_000, "parameter 'seed': a number of 10000 digits is more than"),
    ],
)
def test_a_value_that_could_be_misread_is_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        arguments.assignments([text])


# Each made a traceback, a folder, another experiment or 580 MB of text.
WRONG = [
    ["seed=010"],
    ["seed=1:30"],
    ["dataset="],
    ["seed=99999999999999999999"],
    ["batch_size=1000000000"],
    ["dims=2.5"],
    ["lambda_r=.nan"],
    ["lambda_r=1e999"],
    ["velocity=yes"],
    ["labelled=2024-01-01"],
    ["term_weights={similarity: 2}"],
    ["dataset=[" + "&a [x,x], " * 3 + "*a]"],
    ["seed=" + "[" * 100_000],
    ["x" * 100_000 + "=1"],
    ["dataset=a\nb\x1b[2J"],
]


@pytest.mark.parametrize("words", WRONG, ids=lambda words: words[0][:30])
@pytest.mark.parametrize("name", ["run", "weights", "warm"])
def test_a_wrong_value_is_one_short_line_and_leaves_no_folder(
    name, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DEEPATLAS_RUNS", str(tmp_path / "runs"))
    with pytest.raises(SystemExit) as caught, errors.as_one_line():
        app([name, *words])
    line = str(caught.value)
    assert line.startswith("deepatlas: ") and len(line) < 2200
    assert "\n" not in line and "\x1b" not in line
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_dimensions_may_be_written_as_a_float():
    assert parse(arguments.assignments(["dims=2.0"])) == parse({"dims": 2})


def test_an_entry_of_a_dictionary_has_a_dot():
    texts = ["term_weights.similarity=2", "term_weights.shift=0.5", "seed=1"]
    assert arguments.assignments(texts) == {
        "term_weights": {"similarity": 2, "shift": 0.5},
        "seed": 1,
    }
    with pytest.raises(UserError, match="parameter 'seed' = 1 has no entry 'x'"):
        arguments.assignments(["seed=1", "seed.x=2"])


@pytest.mark.parametrize("text", ["labelled", "=5", "two words=5", "term_weights.=5", ".x=5"])
def test_what_is_no_assignment_is_refused(text):
    with pytest.raises(UserError, match=r"parameters are written NAME=VALUE"):
        arguments.assignments([text])


# --- parameters from files ------------------------------------------------------------------------


def test_the_command_line_wins_over_a_file_and_the_last_file_over_others(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(
        "# a knee\ndataset: phantom-knee\nseed: 1\nseg_rate: 1e-3\nvelocity: false\n"
        "term_weights: {shift: 0.5, similarity: 2}\n"
    )
    second.write_text("seed: 2\nlabelled: 5\n")
    values = arguments.assignments(["labelled=3", "term_weights.shift=1"], [first, second])
    assert values == {
        "dataset": "phantom-knee",
        "seed": 2,
        "seg_rate": "1e-3",  # YAML reads it as a text, papermill hands it on
        "velocity": False,
        "term_weights": {"shift": 1, "similarity": 2},
        "labelled": 3,
    }
    del values["term_weights"]
    assert parse(values).seg_rate == 0.001


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("seed: [1\n", "not valid YAML .*, line 2, column 1"),
        ("- seed\n", r"parameters by their names were wanted, .* got \['seed'\]"),
        ("seed\n", "parameters by their names were wanted, .* got 'seed'"),
        ("1: 2\n", "parameters by their names were wanted"),
        ("a: \x00", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_file_without_parameters_is_told(text, sentence, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"config\.yaml: {sentence}"):
        arguments.assignments([], [file])


def test_a_file_may_be_empty_and_must_be_there(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert arguments.assignments(["seed=1"], [tmp_path / "empty.yaml"]) == {"seed": 1}
    done = CliRunner().invoke(app, ["run", "-f", str(tmp_path / "gone.yaml")])
    assert isinstance(done.exception, FileNotFoundError)
    assert errors.told(done.exception) == f"{tmp_path / 'gone.yaml'}: no such file or directory"


# --- one call of a run ----------------------------------------------------------------------------


@pytest.fixture
def called(monkeypatch):
    """What ``experiments.run`` is called with, which then raises what is put into ``error``."""
    calls = SimpleNamespace(options=None, error=OutOfTime("stopped at step 3; it goes on"))

    def run(experiment, root, ranks, **options):
        calls.options = options
        raise calls.error

    monkeypatch.setattr(experiments, "run", run)
    return calls


def run_smoke(tmp_path, *words):
    return CliRunner().invoke(
        app, ["run", "profile=smoke", "--no-notebook", "--root", str(tmp_path), *words]
    )


def test_how_long_on_what_and_who_follows_is_handed_on(called, tmp_path):
    begun = time.monotonic()
    run_smoke(tmp_path, "--minutes=9", "--workers=2", "--log=tensorboard")
    until = called.options.pop("until")
    assert begun + 540 <= until <= time.monotonic() + 540
    assert called.options == {"workers": 2, "log": ("tensorboard",)}
    run_smoke(tmp_path)
    assert called.options == {"until": None, "workers": None, "log": ()}


@pytest.mark.parametrize(
    "error, code",
    [
        (OutOfTime("stopped in time"), CALL_AGAIN),
        (Held("another process trains it"), CALL_AGAIN),
        (Interrupted("stopped by Ctrl-C"), STOPPED),
    ],
)
def test_a_queue_knows_by_the_exit_code_what_to_do(error, code, called, tmp_path):
    called.error = error
    done = run_smoke(tmp_path)
    assert done.exit_code == code and done.stderr == f"deepatlas: {error}\n"


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--minutes=0"], "--minutes: a number above 0 was wanted, got 0.0"),
        (["--minutes=nan"], "--minutes: a number above 0 was wanted, got nan"),
        (["--log=tensorbord"], "no tracker 'tensorbord', did you mean 'tensorboard'"),
        (["minutes=9"], "minutes is no parameter of the experiment, .* write --minutes 9"),
    ],
)
def test_what_means_nothing_is_refused_before_any_work(words, sentence, called, tmp_path):
    done = run_smoke(tmp_path, *words)
    assert isinstance(done.exception, UserError) and re.search(sentence, str(done.exception))
    assert called.options is None


# --- errors ---------------------------------------------------------------------------------------


def test_debug_lets_the_error_through(monkeypatch):
    monkeypatch.setattr(errors.shown, "tracebacks", True)
    with pytest.raises(UserError), errors.as_one_line():
        raise UserError("a mistake")
    monkeypatch.setattr(errors.shown, "tracebacks", False)
    with pytest.raises(SystemExit, match="deepatlas: a mistake"), errors.as_one_line():
        raise UserError("a mistake")


def test_a_sweep_refuses_older_tables_before_it_trains(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('[[sweep]]\nprofile = "smoke"\ndims = 2\nregimes = "joint"\n')
    (tmp_path / "runs" / "results").mkdir(parents=True)
    (tmp_path / "runs" / "results" / "arms.csv").write_text("run\n")
    done = command("sweep", str(plan), "--root", str(tmp_path / "runs"))
    assert done.returncode == 1 and "migrate.py" in done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["results"]


# --- what cannot be written is told before the work -----------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    """Whatever takes long fails the test."""

    def works(*_, **__):
        pytest.fail("it began to work")

    monkeypatch.setattr(experiments, "run", works)
    monkeypatch.setattr(experiments, "train_or_load", works)
    monkeypatch.setattr(notebooks, "execute", works)


def told(*words):
    """The sentence that a command ends with."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(done.exception, UserError | OSError), done.exception
    return str(done.exception)


@pytest.mark.parametrize(
    "to, sentence",
    [
        ("folder", "is a folder, and the file to write was wanted"),
        ("file/kept.pt", "file: is not a folder"),
        ("file/a/kept.pt", "file: is not a folder"),
        ("nowhere/kept.pt", "nowhere: is not a folder"),
        ("file", "is there already, and holds no weights"),
        ("x" * 300, "too long a name for a file"),
    ],
)
def test_weights_that_cannot_be_kept_are_not_trained(to, sentence, tmp_path, no_work):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("my work")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.iterdir())
    assert sentence in told("weights", "profile=smoke", "--to", tmp_path / to)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "my work"


def test_a_place_that_takes_nothing_is_told(no_work):
    """Even root can write no file there."""
    for place in ("/proc/kept.pt", "/proc/new/kept.pt"):
        assert "/proc: nothing can be written there" in told("weights", "--to", place)


def test_runs_that_cannot_be_kept_are_not_begun(tmp_path, no_work, monkeypatch):
    file = tmp_path / "file"
    file.write_text("my work")
    plan = tmp_path / "plan.toml"
    plan.write_text('[[sweep]]\nprofile = "smoke"\n')
    runs = tmp_path / "runs"
    sentence = f"{file}: is not a folder"
    assert sentence in told("run", "--root", file)
    assert sentence in told("run", "--root", file / "below")
    assert sentence in told("sweep", plan, "--root", file)
    assert sentence in told("sweep", plan, "--root", runs, "--results", file)
    assert sentence in told("site", "--to", file)
    assert sentence in told("handout", file)
    assert sentence in told("lab", "--folder", file)
    monkeypatch.setenv("DEEPATLAS_RUNS", str(file))
    assert sentence in told("run")
    assert sentence in told("warm")
    assert sentence in told("weights", "--to", tmp_path / "kept.pt")
    assert not runs.exists() and file.read_text() == "my work"


def test_a_report_that_no_package_makes_is_told_before_the_training(tmp_path, no_work, monkeypatch):
    def missing(*_):
        raise UserError("a notebook needs papermill")

    monkeypatch.setattr(notebooks, "check_installed", missing)
    for words in (["run", "--root", tmp_path], ["site", "--to", tmp_path / "site"], ["measure"]):
        assert told(*words) == "a notebook needs papermill"
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_never_half_written(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    rows = pd.DataFrame({"gain": [1.0]})
    for name in ("load_results", "gains", "teacher_map"):
        monkeypatch.setattr(evidence, name, lambda _: rows)
    monkeypatch.setattr(evidence, "decisive_gains", lambda _: (rows, rows))
    for name in ("gains_figure", "teacher_map_figure"):
        monkeypatch.setattr(evidence_plots, name, lambda *_: Figure())
    assert CliRunner().invoke(app, ["gains", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "map.png").read_bytes()[1:4] == b"PNG"
    picture = (tmp_path / "gains.png").read_bytes()
    assert picture[1:4] == b"PNG"

    def half(self, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(Figure, "savefig", half)
    assert "no space is left" in told("gains", tmp_path)
    assert (tmp_path / "gains.png").read_bytes() == picture
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("words", [["seed=1"], ["--to", "mine.pt"]])
def test_the_networks_of_the_lessons_are_of_one_run(words):
    assert "nothing else is taken" in told("weights", "--lessons", *words)


def test_relative_folders_are_settled_before_a_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPATLAS_RUNS", "mine")
    monkeypatch.setattr(experiments, "train_or_load", lambda *_, **__: None)
    done = CliRunner().invoke(app, ["warm"])
    assert done.exit_code == 0 and f"warm: {tmp_path / 'mine'}" in done.output
    assert os.environ["DEEPATLAS_RUNS"] == str(tmp_path / "mine")


# --- how a command ends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, sentence",
    [
        (UserError("a\nb\x1b[2J"), "a b\\x1b[2J"),
        (UserError("x" * 10**6), "x" * 1000 + "..." + "x" * 1000),
        (MemoryError(), "there is too little memory: lower batch_size"),
        (MemoryError("Unable to allocate 8 TiB"), "too little memory (Unable to allocate 8 TiB)"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1"),
            "there is too little memory: lower batch_size",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU has too little memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pt"), "a.pt: no space is left on"),
        (OSError(errno.ENOSPC, "No space left on device"), "deepatlas: no space is left on"),
        (PermissionError(13, "Permission denied", "a\x1b.csv"), "a\\x1b.csv: permission denied"),
        (FileNotFoundError("a.csv: no such file"), "deepatlas: a.csv: no such file"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_user_can_mend_is_one_line(error, sentence, capsys):
    with pytest.raises(SystemExit) as caught, errors.as_one_line():
        raise error
    of_memory = "too little memory" in sentence
    line = capsys.readouterr().err.removesuffix("\n") if of_memory else caught.value.code
    assert sentence in line and line.startswith("deepatlas: ")
    assert "\n" not in line and len(line) < 2200
    if of_memory:  # a sweep tries again, with less
        assert caught.value.code == NO_MEMORY


@pytest.mark.parametrize("error", [RuntimeError("ours"), RecursionError("ours"), KeyError("ours")])
def test_what_is_no_mistake_of_the_user_is_let_through(error):
    with pytest.raises(type(error)), errors.as_one_line():
        raise error


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["zebra"], "No such command 'zebra': see deepatlas --help"),
        (["table"], "Missing argument"),
        (["table", "a", "b\x1b[2J\nc"], "extra argument(s) (b\\x1b[2J"),
        (["run", "--zebra"], "No such option: --zebra"),
    ],
)
def test_words_that_are_not_understood_are_one_line(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deepatlas", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.out == ""
    assert sentence in said.err and said.err.count("\n") == 1


def test_without_words_the_command_explains_itself(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deepatlas"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code and "Usage: deepatlas" in capsys.readouterr().out


def test_ctrl_c_is_obeyed_without_a_word():
    done = command("data", before="from deepatlas import datasets\n" + STOPPED)
    assert done.returncode == 130 and done.stderr == ""


STOPPED = """
def stopped():
    raise KeyboardInterrupt
datasets.manifest = stopped
"""


@pytest.mark.parametrize("reader", ["true", "head -1"])
def test_a_reader_who_leaves_is_let_go(reader):
    line = f"{sys.executable} -m deepatlas.cli data | {reader}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_full_disk_behind_the_output_is_told():
    line = f"{sys.executable} -m deepatlas.cli data > /dev/full"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ("deepatlas: no space is left on the disk: free some, and start again\n")


@pytest.mark.filterwarnings("default:a.nii")
def test_a_warning_is_one_line(capsys):
    with errors.as_one_line():
        warnings.warn("a.nii: its header tells of two places", stacklevel=1)
    assert capsys.readouterr().err == (
        "deepatlas: warning: a.nii: its header tells of two places\n"
    )


def test_a_device_that_is_none_is_refused_before_scans_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(
        experiments, "load_cohort_of", lambda *_, **__: pytest.fail("scans were read")
    )
    experiment = parse({"profile": "smoke", "device": "quantum"})
    with pytest.raises(UserError, match="device 'quantum' cannot train here"):
        experiments.run(experiment, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_in_a_folder_that_can_only_be_read_is_found(tmp_path, monkeypatch):
    experiment = parse({"profile": "smoke"})
    folder = tmp_path / experiment.name
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    monkeypatch.setattr(arguments, "check_folder", lambda place: pytest.fail("it was tried"))
    arguments.check_runs(tmp_path, experiment)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
def test_what_is_no_plain_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(UserError, match="is no plain file"):
            arguments.check_file(place)
