"""Folders that a user's variables name: the same in the command, in a notebook and in a child."""

import os
from pathlib import Path

from deepatlas import places
from deepatlas.errors import UserError

import pytest

READERS = {
    "DEEPATLAS_RUNS": places.runs_folder,
    "DEEPATLAS_ANSWERS": places.answers_file,
    "DEEPATLAS_CACHE": places.cache_folder,
    "DEEPATLAS_DATA": places.data_folder,
}


@pytest.mark.parametrize("variable", READERS)
def test_a_relative_path_is_refused_where_nobody_knows_from_where(variable, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "mine/here")
    wanted = f"{variable} must be an absolute path, got 'mine/here': write {variable}={tmp_path}"
    with pytest.raises(UserError, match=wanted):
        READERS[variable]()


@pytest.mark.parametrize("variable", READERS)
def test_the_command_settles_it_for_all_that_it_starts(variable, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "../mine")
    places.settle()
    monkeypatch.chdir("/")
    assert READERS[variable]() == Path(os.environ[variable]) == tmp_path.parent / "mine"


@pytest.mark.parametrize("variable", READERS)
def test_an_absolute_path_home_and_nothing_stay_what_they_are(variable, monkeypatch, tmp_path):
    monkeypatch.delenv(variable, raising=False)
    otherwise = READERS[variable]()
    for given, wanted in ((str(tmp_path), tmp_path), ("~/mine", Path.home() / "mine")):
        monkeypatch.setenv(variable, given)
        assert READERS[variable]() == wanted
        places.settle()
        assert READERS[variable]() == wanted
    monkeypatch.setenv(variable, "")
    places.settle()
    assert READERS[variable]() == otherwise and os.environ[variable] == ""


def test_the_home_of_nobody_is_told(monkeypatch):
    monkeypatch.setenv("DEEPATLAS_RUNS", "~no-such-person/runs")
    with pytest.raises(UserError, match=r"DEEPATLAS_RUNS=~no-such-person/runs: .*without ~"):
        places.runs_folder()
