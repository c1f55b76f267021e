"""What a run says of itself in run.json, and which files are its own: the record holds their
hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from .checkpoints import TRAINED_AGAIN, read_json, sha256_of, write_json
from .datasets.entries import Entry
from .errors import UserError
from .parameters import Experiment, parse
from .places import PACKAGE
from .regimes import NETWORK_OF

ALONE = "remove this file alone and start the run again: what was trained beside it is found"


class Record(BaseModel):
    """What must stand in run.json; a version may add more, and records of earlier ones stay."""

    model_config = ConfigDict(strict=True, extra="allow")

    experiment: dict[str, object]
    entry: dict[str, object] | None = None  # of the data set; earlier versions kept none
    finished: bool
    device: str
    mixed_precision: bool
    labelled_training_scans: int
    labelled_validation_scans: int
    training_scans: int
    test_scans: int
    shape: list[int]
    spacing_mm: float
    structures: list[str]
    data: str  # fingerprint of the cohort
    # tasks whose result the test scans can judge, and networks whose weights the validation scans
    # can: earlier versions did not begin without all of them
    scored: list[str] | None = None
    validated: list[str] | None = None
    preparation: dict[str, object] | None = None  # what a new scan needs beside shape and spacing
    steps: dict[str, dict[str, int]]  # of each trained regime, for each of its networks
    seconds: dict[str, float]
    peak_memory_gib: float | None = None  # of a finished run
    provenance: dict[str, object] | None = None  # of the code; earlier versions kept none
    # of the tables and examples that the run wrote, and of what each regime's checkpoint says that
    # it is of; earlier versions kept neither these nor the checksum
    sha256: dict[str, str] | None = None
    checkpoints: dict[str, str] | None = None
    checksum: str | None = None  # of all of the above


def read_record(folder: Path) -> dict:
    """The content of run.json; FileNotFoundError if ``folder`` is no run, UserError if the file is
    damaged, or of a version that knows other parameters.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not a run folder, there is no run.json in it")
    record = _whole(path)
    try:
        recorded_experiment(record)
    except ValueError as error:  # of pydantic, too
        raise UserError(
            f"{path}: not of this version of the kit ({in_a_line(error)}); its networks may be "
            "whole: read it with the version that wrote it"
        ) from error
    return record


def _whole(path: Path) -> dict:
    """The record in a file, if everything is in it, and as it was written; else UserError."""
    try:
        record = read_json(path)
    except UserError as error:
        raise UserError(f"{error}, it is damaged: {ALONE}") from error
    try:
        checked = Record.model_validate(record)
    except ValidationError as error:
        raise UserError(
            f"{path}: damaged, or not the record of a run ({in_a_line(error)}): {ALONE}"
        ) from error
    hashes = (checked.sha256, checked.checksum)
    if hashes != (None, None) and checked.checksum != _checksum(record):
        raise UserError(f"{path}: damaged, it is not as the run wrote it: {ALONE}")
    return record


def in_a_line(error: ValueError) -> str:
    """What is wrong, and where: pydantic takes several lines for it."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        found.append(f"{name}: {item['msg']}" if name else item["msg"])
    return "; ".join(found[:3])


def write_record(record: dict, folder: Path) -> None:
    """Write run.json, with a checksum of what stands in it."""
    record["checksum"] = _checksum(record)
    write_json(record, folder / "run.json")


def _checksum(record: Mapping) -> str:
    """A hash of all but the checksum itself."""
    return hash_of({name: value for name, value in record.items() if name != "checksum"})


def hash_of(content: object) -> str:
    """A hash of what is written as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# What a run did before there was a parameter for it.
BEFORE = {"coarse_passes": 0, "keep": "best", "lambda_ce": 0.0, "refine": 0}
FORMER_STARTS = ("baselines", "alike", "semi")  # of joint training, all of trained networks


def recorded_experiment(record: Mapping) -> Experiment:
    """The experiment of a run's record, which carries what was said of its data set; also of an
    earlier version's.
    """
    values = BEFORE | record["experiment"]
    if values.get("joint_start") in FORMER_STARTS:
        values["joint_start"] = "trained"
    entry = record.get("entry")
    said = None if entry is None else Entry.model_validate(entry)
    if said is not None and said.scans is not None:
        home = Path(str(record["experiment"].get("dataset"))).parent
        said = said.model_copy(update={"home": home})
    return parse(values, said)


def is_of(record: Mapping, experiment: Experiment) -> bool:
    """Is the record of this ``experiment``, wherever its scans were then?"""
    found = recorded_experiment(record)
    alike = found.choices == experiment.choices
    return alike and found.entry.identity() == experiment.entry.identity()


# --- where the code came from ---------------------------------------------------------------------


def provenance() -> dict[str, object] | None:
    """The git commit of the checkout that this package is part of, and whether all files that git
    knows are as in it: {"commit": "0123...", "clean": True}.

    None where the package is installed without a checkout, or where git is missing or fails.
    """
    # An installed package may lie in the checkout of another project, which does not track it.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    if not commit or changed is None:
        return None
    return {"commit": commit, "clean": not changed}


def _git(*arguments: str) -> str | None:
    """What git says in the folder of the package; None if it cannot be asked."""
    # those that a hook of git sets name another checkout
    environment = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    options = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "--no-optional-locks")
    try:
        done = subprocess.run(
            ["git", *options, *arguments],
            cwd=PACKAGE,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


# --- what could not be done -----------------------------------------------------------------------

TASKS = tuple(NETWORK_OF)
NETWORKS = {"seg": "segmentation network", "reg": "registration network"}


def scored_tasks(record: Mapping) -> list[str]:
    """The tasks that the run's test scans can judge: all, in a record of an earlier version."""
    scored = record.get("scored")
    return list(TASKS) if scored is None else scored


def notes(record: Mapping) -> list[str]:
    """What the scans of a run could not decide, a sentence each; none where they could all."""
    found = []
    validated = record.get("validated")
    lasting = []
    if validated is not None and record["experiment"].get("keep", "best") == "best":
        lasting = [name for name in NETWORKS if name not in validated]
    if lasting:
        kept = " and the ".join(NETWORKS[name] for name in lasting)
        persons = ", of 2 persons" if lasting == ["reg"] else ", for registration of 2 persons"
        found.append(
            f"of the {kept} the last weights are kept, not the best: that takes validation scans "
            f"with labels{persons}"
        )
    missing = [task for task in TASKS if task not in scored_tasks(record)]
    if missing:
        found.append(
            f"{' and '.join(missing)} cannot be scored: that takes test scans with labels, of 2 "
            "persons for registration"
        )
    return found


# --- the files of a run ---------------------------------------------------------------------------


def keep_checkpoint(record: dict, key: str, identity: Mapping) -> None:
    """Note in the record what the checkpoint of the regime ``key`` says that it is of.

    Its bytes are no sign: it holds seconds, and its archive has checksums of its own.
    """
    if record.get("checkpoints") is None:
        record["checkpoints"] = {}
    record["checkpoints"][key] = hash_of(identity)


def check_checkpoint(record: Mapping, key: str, state: Mapping, path: Path) -> None:
    """UserError if the checkpoint of the regime ``key`` is not of this run."""
    wanted = (record.get("checkpoints") or {}).get(key)
    if wanted is not None and wanted != hash_of(state["of"]):
        raise UserError(f"{path}: is of another run or regime: {TRAINED_AGAIN}")


def keep_hash(record: dict, folder: Path, name: str) -> None:
    """Note in the record that the file ``name`` of the run is as it stands now."""
    record.setdefault("sha256", {})[name] = sha256_of(folder / name)


def forget_hash(record: dict, name: str) -> None:
    """Whatever the file ``name`` of the run holds, it is not the run's any more."""
    (record.get("sha256") or {}).pop(name, None)


def as_written(record: Mapping, folder: Path, name: str) -> bool:
    """Is the file ``name`` of a run there, and known to be as the run wrote it?"""
    known = name in (record.get("sha256") or {})
    return known and file_problem(record, folder, name) is None


def file_problem(record: Mapping, folder: Path, name: str) -> str | None:
    """What is wrong with the file ``name`` of a run, or None: it is missing, or not the one that
    the run wrote. Of a run of an earlier version it is only known whether the file is there.
    """
    path = Path(folder) / name
    if not path.is_file():
        return "missing"
    wanted = (record.get("sha256") or {}).get(name)
    if wanted is not None and wanted != sha256_of(path):
        return "damaged, or of another run"
    return None


def own_file(record: Mapping, folder: Path, name: str) -> Path:
    """The path of the file ``name`` of a run; UserError if it is missing, or not the one that the
    run wrote.
    """
    path = Path(folder) / name
    problem = file_problem(record, folder, name)
    if problem is not None:
        raise UserError(f"{path}: {problem}; {made_again(record, folder)}")
    return path


def made_again(record: Mapping, folder: Path) -> str:
    """What to do about a file of a run that is missing or damaged."""
    if recorded_experiment(record).name == Path(folder).resolve().name:
        return "start the run again with the same parameters: its trained networks make it again"
    return (
        "only the version of the kit that wrote the run, in a folder of its own name, can make it "
        "again from the trained networks"
    )
