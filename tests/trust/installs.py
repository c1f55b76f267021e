"""The kit as somebody installs it: a wheel and a source distribution, outside the checkout, with
each Python of this machine, with the newest and with the lowest versions that it admits.

    python tests/trust/installs.py                       every Python that is found
    python tests/trust/installs.py --only 3.11           those of this version
    python tests/trust/installs.py --gigabytes           also where torch brings CUDA along

It wants the network, takes minutes for each Python, and has one virtual environment at a time,
which it deletes. Where torch would bring CUDA, which is gigabytes, it is only asked whether all
requirements can be met together, and whether every file compiles. The exit status is 1 if anything
fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADMITTED = SpecifierSet(PROJECT["requires-python"])
MINUTES = 20  # for one command
ROOM = 4  # GiB of disk that one environment may take
CUDA = ("nvidia-", "cuda-", "triton")  # how the packages begin that torch brings for NVIDIA's GPUs
# where managers of Pythons keep them, below the home of whoever runs this
KEPT = (
    ".pyenv/versions/*/bin/python3",
    ".local/share/uv/python/*/bin/python3",
    "mini*/bin/python3",
    "mini*/envs/*/bin/python3",
    ".conda/envs/*/bin/python3",
)


class Failed(Exception):
    """What an installed kit did not do, in words."""


@dataclass(frozen=True)
class Python:
    """A Python of this machine."""

    path: str
    version: Version

    @property
    def admitted(self) -> bool:
        """May the kit be installed for it?"""
        return ADMITTED.contains(str(self.version), prereleases=True)


def pythons() -> list[Python]:
    """One of each version, the oldest first: on the path, and of pyenv, uv and conda."""
    candidates = []
    for folder in os.environ["PATH"].split(os.pathsep):
        candidates += sorted(Path(folder).glob("python3*"))
    for pattern in KEPT:
        candidates += sorted(Path.home().glob(pattern))
    candidates = [path for path in candidates if re.fullmatch(r"python3(\.\d+)?", path.name)]
    tell = "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3], sys.executable)"
    found: dict[Version, Python] = {}
    for path in map(str, candidates):
        done = subprocess.run([path, "-c", tell], capture_output=True, text=True)
        if done.returncode == 0:  # else it is a shim of nothing, or can make no environment
            text, _, executable = done.stdout.strip().partition(" ")
            found.setdefault(Version(text), Python(executable, Version(text)))
    return [found[version] for version in sorted(found)]


def lowest() -> dict[str, str]:
    """The lower bound of every dependency, by name; ValueError if one has none."""
    bounds = {}
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        lower = [one.version for one in requirement.specifier if one.operator == ">="]
        if not lower:
            raise ValueError(f"pyproject.toml: {text} has no lower bound")
        bounds[requirement.name] = lower[0]
    return bounds


# --- an environment -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder to work in, both outside the checkout."""

    folder: Path

    @property
    def programs(self) -> Path:
        """Where its commands are."""
        return self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    @property
    def home(self) -> Path:
        """What commands take for the home of the user, and for the current folder."""
        return self.folder / "home"

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess:
        """One of its programs, as it ended; nothing of the checkout or of its user leads to it."""
        inherited = {}
        for name, value in os.environ.items():
            if not name.startswith(("DEEPATLAS_", "PYTHON", "PYTEST", "JUPYTER", "VIRTUAL_ENV")):
                inherited[name] = value
        path = os.pathsep.join([str(self.programs), inherited["PATH"]])
        return subprocess.run(
            [str(self.programs / program), *words],
            cwd=self.home,
            env=inherited | {"HOME": str(self.home), "PATH": path, "MPLBACKEND": "Agg"},
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
        )

    def ran(self, program: str, *words: str) -> str:
        """What it says; Failed if it does not end well."""
        done = self.run(program, *words)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-1500:]
            raise Failed(f"{program} {' '.join(words)} ends with {done.returncode}: {said}")
        return done.stdout

    def pip(self, *words: str) -> str:
        """What pip says."""
        return self.ran("python", "-m", "pip", *words)


@contextmanager
def environment(python: Python) -> Iterator[Environment]:
    """A new one for this Python, deleted at the end; Failed if there is no room on the disk."""
    with tempfile.TemporaryDirectory(prefix="installs-") as name:
        free = shutil.disk_usage(name).free / 2**30
        if free < ROOM:
            raise Failed(f"{free:.1f} GiB of disk are free, and {ROOM} may be taken")
        made = Environment(Path(name))
        made.home.mkdir()
        command = [python.path, "-m", "venv", str(made.folder / "venv")]
        subprocess.run(command, check=True, capture_output=True)
        yield made


# --- what is built --------------------------------------------------------------------------------


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution; Failed if a wheel of the latter has other files."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    (source,) = folder.glob("*.tar.gz")
    again = folder / "again"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--quiet", "--wheel-dir", str(again), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (of_source,) = again.glob("*.whl")
    if content(wheel) != content(of_source):
        names = {name for name, _ in content(wheel) ^ content(of_source)}
        raise Failed(f"the source distribution makes another wheel: {sorted(names)[:10]}")
    return wheel, source


def content(wheel: Path) -> set[tuple[str, str]]:
    """(name, hash) of every file."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            (name, hashlib.sha256(archive.read(name)).hexdigest()) for name in archive.namelist()
        }


# --- which torch ----------------------------------------------------------------------------------


def wanted(made: Environment, *words: str) -> dict[str, str]:
    """{name: version} of what pip would install; Failed if it finds no versions that agree."""
    pip = ("install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-")
    report = json.loads(made.pip(*pip, *words))
    told = [one["metadata"] for one in report["install"]]
    return {one["name"].lower(): one["version"] for one in told}


def choose_torch(made: Environment, *, old: bool, gigabytes: bool) -> str | None:
    """The newest torch that is admitted, or with ``old`` the lowest; None if all bring CUDA, and
    no ``gigabytes`` are wanted.
    """
    bound = lowest()["torch"]
    newest = wanted(made, "torch")
    if gigabytes or not any(name.startswith(CUDA) for name in newest):
        return bound if old else newest["torch"]
    listed = re.search(r"Available versions: (.*)", made.pip("index", "versions", "torch"))
    versions = [Version(text) for text in listed[1].split(", ")] if listed else []
    without = [one for one in versions if one.local == "cpu" and one >= Version(bound)]
    if not without:
        return None
    return str(min(without) if old else max(without))


# --- what is tried --------------------------------------------------------------------------------

A_SCAN = """
import nibabel
from deepatlas import datasets

cohort = datasets.load_cohort("phantom-brain", profile="smoke", dims=2)
scan = cohort.test[0]
image = nibabel.Nifti1Image(scan.image[0].numpy(), scan.affine.numpy())
nibabel.save(image, "scan.nii.gz")
"""
SMALL = ("profile=smoke", "dims=2", "device=cpu", "regimes=joint")


def try_commands(made: Environment) -> list[str]:
    """Do what a newcomer does, in the order in which one needs it; what was tried, or Failed."""
    version = made.ran("python", "-c", "import deepatlas; print(deepatlas.__file__)")
    if str(ROOT) in version or str(made.folder) not in version:
        raise Failed(f"another kit is imported than the one that was installed: {version}")
    doctor = made.ran("deepatlas", "doctor")
    if f"deepatlas {PROJECT['version']}," not in doctor:
        raise Failed(f"the doctor names another version: {doctor.splitlines()[0]}")
    for command in ((), ("run",), ("segment",), ("data", "check")):
        made.ran("deepatlas", *command, "--help")
    made.ran("deepatlas", "run", *SMALL, "--no-notebook")
    told = made.ran("deepatlas", "run", *SMALL, "seed=1")
    found = re.search(r"report: +(.*)/report\.html", told)
    if found is None or not Path(found[1], "report.html").is_file():
        raise Failed(f"a run with its notebook names no report: {told[-500:]}")
    run = found[1]
    if "Dice" not in (table := made.ran("deepatlas", "table", run)):
        raise Failed(f"the table of a run says nothing of Dice: {table[:500]}")
    made.ran("python", "-c", A_SCAN)
    for model in (run, "phantom-brain"):
        out = made.home / f"segmented-by-{Path(model).name}"
        made.ran("deepatlas", "segment", "scan.nii.gz", "--model", model, "-o", str(out))
        if not (out / "scan_labels.nii.gz").is_file():
            raise Failed(f"segment by {model} left no labels")
    made.ran("deepatlas", "handout", "lessons")
    if len(list((made.home / "lessons").glob("0*.ipynb"))) < 9:
        raise Failed("the handout lacks lessons")
    made.ran("deepatlas", "lab", "--version")
    return [
        "doctor",
        "--help",
        "run --no-notebook",
        "run",
        "table",
        "segment",
        "handout",
        "lab --version",
    ]


def compile_all(made: Environment, wheel: Path) -> None:
    """Compile every file of the wheel by this Python, whose warnings are errors."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(made.folder / "unpacked")
    code = str(made.folder / "unpacked" / "deepatlas")
    made.ran("python", "-W", "error", "-m", "compileall", "-q", code)


def refused(python: Python, wheel: Path) -> str:
    """A Python that is not admitted is told so by pip; else Failed."""
    with environment(python) as made:
        done = made.run("python", "-m", "pip", "install", "--no-deps", str(wheel))
        said = done.stdout + done.stderr
        if done.returncode == 0 or PROJECT["requires-python"] not in said:
            raise Failed(f"pip is to refuse it by {PROJECT['requires-python']}, and says: {said}")
    return "refused by pip, as it should be"


def tried(python: Python, what: Path, old: bool, gigabytes: bool) -> str:
    """Install ``what``, a wheel or source distribution, with the newest of what it requires, or
    with ``old`` the lowest, and try its commands; in words, how that went.
    """
    with environment(python) as made:
        torch = choose_torch(made, old=old, gigabytes=gigabytes)
        exact = lowest() if old else {}
        exact.pop("torch", None)
        if torch is not None:
            exact["torch"] = torch
        constraints = made.folder / "constraints.txt"
        constraints.write_text("".join(f"{name}=={exact[name]}\n" for name in exact))
        if torch is None:
            count = len(wanted(made, str(what), "--constraint", str(constraints)))
            if what.suffix == ".whl":
                compile_all(made, what)
            return f"{count} packages agree, and its files compile; not run, as torch is all CUDA"
        made.pip("install", "--quiet", "--constraint", str(constraints), str(what))
        made.pip("check")
        commands = ", ".join(try_commands(made))
        there = {}
        for one in json.loads(made.pip("list", "--format", "json")):
            there[re.sub(r"[-_.]+", "-", one["name"]).lower()] = one["version"]
        names = [re.sub(r"[-_.]+", "-", name).lower() for name in lowest()]
        return f"{commands}; with " + ", ".join(f"{name} {there[name]}" for name in names)


def resolves(python: Python) -> str:
    """Whether pip finds versions for the pip part of environment.yml, and for every extra."""
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (listed,) = [part["pip"] for part in parts if isinstance(part, dict)]
    of_conda = [word for line in listed for word in line.replace("--editable .", str(ROOT)).split()]
    asked = {"environment.yml": of_conda}
    for extra in PROJECT["optional-dependencies"]:
        asked[extra] = [f"{ROOT}[{extra}]"]
    with environment(python) as made:
        torch = choose_torch(made, old=False, gigabytes=False)
        constraints = made.folder / "constraints.txt"
        constraints.write_text(f"torch=={torch}\n" if torch else "")
        told = []
        for name, words in asked.items():
            count = len(wanted(made, *words, "--constraint", str(constraints)))
            told.append(f"{name}: {count} packages")
    return ", ".join(told)


def main(arguments: list[str] | None = None) -> int:
    """Build, install, try, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="Pythons of this version, as 3.11")
    parser.add_argument("--gigabytes", action="store_true", help="a torch with CUDA is welcome")
    options = parser.parse_args(arguments)
    found = [python for python in pythons() if f"{python.version}.".startswith(options.only)]
    admitted = [python for python in found if python.admitted]
    failures = []

    def attempt(title: str, work, *arguments: object) -> object:
        try:
            done = work(*arguments)
        except (Failed, subprocess.SubprocessError) as error:
            failures.append(title)
            print(f"FAILED: {title}: {error}", flush=True)
            return None
        print(f"ok: {title}: {done}", flush=True)
        return done

    with tempfile.TemporaryDirectory() as name:
        built = attempt("wheel and source distribution", build, Path(name))
        if built is None or not admitted:
            print(f"{len(found)} Pythons, of which {len(admitted)} are admitted")
            return 1
        wheel, source = built
        for python in found:
            title = f"Python {python.version}, {python.path}"
            if not python.admitted:
                attempt(title, refused, python, wheel)
                continue
            attempt(f"{title}, wheel, newest", tried, python, wheel, False, options.gigabytes)
            if python is admitted[0]:
                # newer Pythons have no wheels of packages that are older than they
                more = (python, wheel, True, options.gigabytes)
                attempt(f"{title}, wheel, lowest", tried, *more)
                more = (python, source, False, options.gigabytes)
                attempt(f"{title}, source distribution, newest", tried, *more)
        attempt("environment.yml and extras", resolves, admitted[0])
    print(f"{len(failures)} failed" if failures else "all that was tried did what it should")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
