"""The command: a mistake of the user is one line, a bug keeps its traceback, every command explains
itself.
"""

import subprocess
import sys

from deepatlas.cli import app, arguments, errors
from deepatlas.errors import UserError

import pytest
from typer.testing import CliRunner

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


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
        "doctor",
        "data",
        "run",
        "table",
        "weights",
        "sweep",
        "gains",
        "lab",
        "site",
        "measure",
        "warm",
        "handout",
        "collect",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself(name):
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output


def test_values_are_read_as_yaml():
    assert arguments.assignments(
        ["labelled=5", "velocity=false", "term_weights={similarity: 2}"]
    ) == {
        "labelled": 5,
        "velocity": False,
        "term_weights": {"similarity": 2},
    }


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
