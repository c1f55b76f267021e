"""Faults planted on purpose: one at a time, in a copy of the project, and the tests of the module
that it touches are run. A test that fails has caught it.

    python tests/trust/plant.py                   all of faults.toml
    python tests/trust/plant.py --draw 6 --seed 3

Whoever wrote ``faults.toml`` had not seen the tests. A fault that no test catches stays in it, and
is named at the end; the exit status is 1 if there are more of them than one in twenty.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
FAULTS = Path(__file__).with_name("faults.toml")
MINUTES = 15  # for the tests of one fault, which may hang
FAILED = 1  # pytest's exit status where a test failed; 2 and more: it did not come so far


@dataclass(frozen=True)
class Fault:
    """``before``, which occurs once in ``file``, becomes ``after``; ``tests`` are to see it."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    survives: str = ""  # why no test catches it, if that is known

    def planted(self, root: Path = ROOT) -> str:
        """The source of the file with the fault in it; ValueError if the file has changed."""
        source = (root / self.file).read_text(encoding="utf-8")
        if source.count(self.before) != 1:
            raise ValueError(
                f"{self.name}: {self.before!r} is to occur once in {self.file}, and occurs "
                f"{source.count(self.before)} times: bring the fault to the present source"
            )
        faulty = source.replace(self.before, self.after)
        if ast.dump(ast.parse(faulty)) == ast.dump(ast.parse(source)):
            raise ValueError(f"{self.name}: nothing but the layout of {self.file} is changed")
        return faulty


def read_faults(path: Path = FAULTS) -> list[Fault]:
    """All faults, in the order of the file."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    return [Fault(**{**table, "tests": tuple(table["tests"])}) for table in tables]


def drawn(faults: list[Fault], number: int, seed: int) -> list[Fault]:
    """``number`` of them, other ones for each ``seed``."""
    return random.Random(seed).sample(faults, number)


def copy_project(to: Path) -> Path:
    """The project in the folder ``to``, without its history and what git ignores."""
    patterns = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    at_the_top = {pattern.strip("/") for pattern in patterns if pattern.startswith("/")}
    anywhere = [pattern.rstrip("/") for pattern in patterns if not pattern.startswith("/")]
    ignored = shutil.ignore_patterns(".git", *anywhere)

    def left(folder: str, names: list[str]) -> set[str]:
        top = at_the_top.intersection(names) if Path(folder) == ROOT else set()
        return top | ignored(folder, names)

    return shutil.copytree(ROOT, to, ignore=left, dirs_exist_ok=True)


def run_tests(copy: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Exit status of pytest on the copy, which comes before an installed kit, and what it said
    last.
    """
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "no:nbmake", "-o", "addopts=", "-m", "not learning", *tests]
    inherited = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment = inherited | {"PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"no end in {MINUTES} minutes"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, lines[0] if lines else done.stdout.strip()[-300:]


def is_caught(fault: Fault, copy: Path) -> tuple[bool, str]:
    """Whether a test of ``copy`` fails once the fault is planted there, and which; it is taken out
    again. RuntimeError if the tests could not be run.
    """
    path = copy / fault.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(fault.planted(copy), encoding="utf-8")
    try:
        status, said = run_tests(copy, fault.tests)
    finally:
        path.write_text(sound, encoding="utf-8")
    if status not in (0, FAILED):
        raise RuntimeError(f"{fault.name}: its tests could not be run: {said}")
    return status == FAILED, said


def main(arguments: list[str] | None = None) -> int:
    """Plant, print what caught each fault, and say which survived."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--draw", type=int, help="as many, drawn by --seed, instead of all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    faults = read_faults()
    if options.draw is not None:
        faults = drawn(faults, options.draw, options.seed)
    survived = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_project(Path(folder))
        named = {test for fault in faults for test in fault.tests}
        for test in tqdm(sorted(named), desc="without a fault"):
            status, said = run_tests(copy, (test,))
            if status != 0:
                print(f"{test}: fails without any fault: {said}")
                return 2
        for fault in tqdm(faults, desc="with a fault"):
            caught, said = is_caught(fault, copy)
            tqdm.write(f"{'caught' if caught else 'SURVIVED'}: {fault.file}: {fault.name} ({said})")
            if not caught:
                survived.append(fault)
    print(f"{len(faults) - len(survived)} of {len(faults)} faults were caught")
    return int(20 * len(survived) > len(faults))


if __name__ == "__main__":
    sys.exit(main())
