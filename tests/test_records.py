"""What a run says of itself: the code that it came from."""

import os
import shutil
import subprocess

from deepatlas import records

import pytest

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder, *arguments):
    options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    clean = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *options, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=clean, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of one commit, with a package that ``records`` takes for its own."""
    package = tmp_path / "project" / "deepatlas"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "all")
    monkeypatch.setattr(records, "PACKAGE", package)
    return package.parent


def test_a_checkout_says_its_commit_and_whether_it_was_changed(checkout, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")
    assert records.provenance() == {"commit": commit, "clean": True}
    (checkout / "a_result.csv").write_text("")  # git does not know it
    assert records.provenance() == {"commit": commit, "clean": True}
    (checkout / "deepatlas" / "__init__.py").write_text("changed = True\n")
    assert records.provenance() == {"commit": commit, "clean": False}
    # as in a hook of git, which speaks of another checkout
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    monkeypatch.setenv("GIT_WORK_TREE", "/")
    assert records.provenance() == {"commit": commit, "clean": False}


def test_a_package_that_was_installed_in_somebodys_checkout_says_none(checkout, monkeypatch):
    installed = checkout / ".venv" / "deepatlas"
    shutil.copytree(checkout / "deepatlas", installed)
    monkeypatch.setattr(records, "PACKAGE", installed)
    assert records.provenance() is None


def test_without_a_commit_a_checkout_or_git_nothing_is_said(checkout, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert records.provenance() is None
    with monkeypatch.context() as patch:
        patch.setattr(records, "PACKAGE", tmp_path / "nowhere")
        assert records.provenance() is None
    shutil.rmtree(checkout / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert records.provenance() is None
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    assert records.provenance() is None
