"""Experiments: validated parameters, a run folder that can be interrupted and is never repeated, and its table.

``run`` trains and scores in plain Python; what it wrote is read by ``reporting.py``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from . import datasets, evaluation, machine, networks, registration, training
from .checkpoints import read_checkpoint, write_atomically
from .data import Cohort, Scan, check_sides
from .regimes import Regime, regimes, spent
from .training import Settings, Weights
from .warp import Deformation

PROJECT = Path(__file__).resolve().parent.parent

# What the profile and the number of dimensions decide where the parameters say nothing.
_DECIDED = ("seg_steps", "reg_steps", "joint_steps", "batch_size", "seg_rate", "reg_rate")
PROFILES = {profile: dict(zip(_DECIDED, values, strict=True)) for profile, values in {
    "smoke-2d": (4, 4, 6, 2, 4e-3, 4e-3),
    "smoke-3d": (4, 4, 6, 1, 4e-3, 1e-3),
    "class-2d": (300, 400, 600, 4, 4e-3, 4e-3),
    "class-3d": (300, 400, 600, 1, 4e-3, 1e-3),
    "full-2d": (2000, 4000, 6000, 8, 1e-3, 1e-3),
    "full-3d": (4000, 8000, 12000, 4, 1e-3, 5e-4),
}.items()}


class Experiment(BaseModel):
    """The parameters of one comparison of all regimes; plain values, checked, with a sentence for each mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = "phantom-brain"  # one of the names in tutorials_data/datasets.toml
    profile: Literal["smoke", "class", "full"] = "class"  # size of grid and training: test, laptop, GPU
    dims: Literal[2, 3] = Field(None, validate_default=False)  # slices or volumes; by default what the cohort is for
    labelled: int = Field(1, ge=1)  # N, training scans whose labels may be seen (registration at N = 1 uses none)
    seed: int = Field(0, ge=0)  # of the split, the networks and the draws
    label_seed: int = Field(None, ge=0, validate_default=False)  # of the choice of labelled scans; by default ``seed``
    seg_steps: int = Field(None, ge=1, validate_default=False)  # steps of the segmentation baseline
    reg_steps: int = Field(None, ge=1, validate_default=False)  # steps of the registration baseline
    joint_steps: int = Field(None, ge=2, validate_default=False)  # turns of joint training, both networks together
    reg_turns: int = Field(2, ge=1)  # registration turns for each segmentation turn (the paper: 20)
    batch_size: int = Field(None, ge=1, validate_default=False)  # pairs in a step
    lambda_r: float = Field(0.2, ge=0)  # weight of the bending energy
    lambda_a: float = Field(3.0, ge=0)  # weight of the anatomy term
    lambda_sp: float = Field(3.0, ge=0)  # weight of the supervised term
    similarity: Literal["ncc", "lncc", "mse"] = "lncc"  # of images (the paper: ncc)
    velocity: bool = False  # does the registration network output a velocity field?
    networks: Literal["kit", "paper"] = "kit"  # the paper's two networks are 3D and slower
    seg_rate: float = Field(None, gt=0, validate_default=False)  # Adam's learning rate for segmentation, at its highest
    reg_rate: float = Field(None, gt=0, validate_default=False)  # and for registration
    augmentation: float = Field(1.0, ge=0)  # strength, 0 for none
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the networks; losses are always float32

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Mapping) -> dict:
        given = {key: value for key, value in dict(values).items() if value is not None}
        given = {"dataset": "phantom-brain", "profile": "class"} | given
        given.setdefault("label_seed", given.get("seed", 0))
        given.setdefault("dims", datasets.describe(str(given["dataset"]))["dims"])
        if isinstance(given["dims"], str) and given["dims"].isdigit():
            given["dims"] = int(given["dims"])
        return PROFILES.get(f"{given['profile']}-{given['dims']}d", {}) | given

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name != "velocity":
            raise ValueError("a number or a word was wanted, not true or false")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Experiment:
        most = datasets.split_sizes(self.dataset, self.profile)[0]
        if self.labelled > most:
            raise ValueError(f"labelled must be at most {most}, the training scans of "
                             f"{self.dataset} in profile {self.profile}, got {self.labelled}")
        if self.networks == "paper" and (self.dims == 2 or self.velocity):
            raise ValueError("networks='paper' is 3D and predicts displacements: take dims=3 and leave velocity false")
        if self.networks == "paper":
            check_sides(datasets.describe(self.dataset)["grids"][f"{self.profile}-3d"]["shape"], 16)
        return self

    @property
    def name(self) -> str:
        """Readable, and different for different parameters or different code of the method."""
        text = self.model_dump_json() + _source_hash()
        return (f"{self.dataset}-{self.profile}-{self.dims}d-N{self.labelled}-seed{self.seed}-"
                f"{hashlib.sha256(text.encode()).hexdigest()[:8]}")

    @property
    def rates(self) -> dict[str, float]:
        """Learning rate of each network."""
        return {"seg": self.seg_rate, "reg": self.reg_rate}

    @property
    def joint(self) -> dict[str, int]:
        """Turns of each network in joint training."""
        seg = max(1, round(self.joint_steps / (1 + self.reg_turns)))
        return {"seg": seg, "reg": self.joint_steps - seg}


def parse(values: Mapping) -> Experiment:
    """An Experiment from plain ``values``; ValueError with one sentence per mistake."""
    try:
        return Experiment(**values)
    except ValidationError as error:
        raise ValueError("; ".join(_sentence(item) for item in error.errors())) from None


def _sentence(item: Mapping) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, Experiment.model_fields, 1)
        hint = f", did you mean {close[0]!r}" if close else f": choose from {', '.join(Experiment.model_fields)}"
        return f"there is no parameter {name!r}{hint}"
    text = item["msg"].removeprefix("Value error, ")
    return f"parameter {name!r} = {item['input']!r}: {text[0].lower()}{text[1:]}" if name else text


def from_notebook(namespace: dict) -> Experiment:
    """An Experiment from the ``globals()`` of a notebook whose plain values, at the first call, are its parameters.

    Papermill only logs a name that the notebook does not know; here it is an error.
    """
    names = namespace.setdefault("_parameters", [
        key for key, value in namespace.items() if not key.startswith("_") and key not in ("In", "Out")
        and isinstance(value, (str, int, float, bool, list, dict, type(None)))])
    return parse({name: namespace[name] for name in names})


def _source_hash() -> str:
    """Of the code and the manifest that decide a result, so that editing a loss never finds an old network."""
    names = ("data", "warp", "networks", "losses", "phantom", "registration", "datasets", "pairs", "regimes",
             "checkpoints", "training", "evaluation", "experiments")
    files = [Path(__file__).with_name(f"{name}.py") for name in names] + [datasets.MANIFEST]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# --- a run ---------------------------------------------------------------------------------------------------------


def runs_folder() -> Path:
    """Where runs are kept: the environment variable ``DEEPATLAS_RUNS``, or ``runs`` in the project."""
    return Path(os.environ.get("DEEPATLAS_RUNS") or PROJECT / "runs")


def run(experiment: Experiment, root: Path | None = None) -> Path:
    """Train every regime, score the test scans, and return the run folder; a finished run is only found again."""
    folder = Path(root or runs_folder()) / experiment.name
    path = folder / "run.json"
    record = read_record(folder) if path.is_file() else None
    if record and record["finished"]:
        print(f"finished before: {folder}")
        return folder
    cohort = datasets.load_cohort(experiment.dataset, size=experiment.profile, dims=experiment.dims,
                                  seed=experiment.seed)
    device = torch.device(machine.pick_device(record["device"] if record else experiment.device))
    record = record or _new_record(experiment, cohort, device)
    if record["data"] != cohort.fingerprint:
        raise ValueError(f"{folder}: this run was begun on other data than {experiment.dataset} holds now: "
                         "remove the folder to begin again")
    _write_json(record, path)
    cohort = cohort.to(device)
    nets = _train_all(experiment, cohort, folder, record)
    _write_csv(pd.concat(_score_all(nets, cohort, experiment)), folder / "scores.csv")
    examples = _examples(nets, cohort)
    write_atomically(folder / "examples.pt", lambda file: torch.save(examples, file))
    record |= {"finished": True, "peak_memory_gib": machine.peak_memory_gib(device)}
    _write_json(record, path)
    return folder


def read_record(folder: Path) -> dict:
    """The content of run.json; FileNotFoundError if ``folder`` is no run, ValueError if the file is damaged."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not a run folder, there is no run.json in it")
    try:
        record = json.loads(path.read_text())
        parse(record["experiment"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged, or written by another version ({error}): remove the folder") from error
    return record


def _new_record(experiment: Experiment, cohort: Cohort, device: torch.device) -> dict:
    mixed = (machine.bfloat16_pays(device, cohort.shape) if experiment.precision == "auto"
             else experiment.precision == "bfloat16")
    return {
        "experiment": experiment.model_dump(), "finished": False, "device": str(device),
        "device_name": machine.device_name(device), "mixed_precision": mixed, "threads": torch.get_num_threads(),
        "labelled_training_scans": experiment.labelled,
        "labelled_validation_scans": sum(scan.labels is not None for scan in cohort.validation),
        "training_scans": len(cohort.train), "test_scans": len(cohort.test), "shape": cohort.shape,
        "spacing_mm": cohort.spacing, "structures": cohort.structures, "data": cohort.fingerprint,
        "python": platform.python_version(), "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "nibabel", "pandas")},
        "steps": {}, "seconds": {},
    }


def own_steps(experiment: Experiment, table: Mapping[str, Regime]) -> dict[str, dict[str, int]]:
    """Steps of each network in each regime. Controls and full supervision get what DeepAtlas spent on that network."""
    joint, base = experiment.joint, {"seg": experiment.seg_steps, "reg": experiment.reg_steps}
    own: dict[str, dict[str, int]] = {}
    for key, regime in table.items():
        if regime.budget_of:
            own[key] = {name: spent(table, regime.budget_of, name, own) for name in regime.trains}
        elif not regime.consults:
            own[key] = {name: base[name] for name in regime.trains}
        else:  # one that starts anew gets the time of the baseline it skips, too
            own[key] = {name: joint[name] + (0 if name in regime.start else base[name]) for name in regime.trains}
    return own


def new_networks(experiment: Experiment, structures: int) -> dict[str, nn.Module]:
    """Untrained networks; the same weights for the same seed, so that all regimes start alike."""
    torch.manual_seed(experiment.seed)
    if experiment.networks == "paper":
        return {"seg": networks.PaperSegmentationNet(structures), "reg": networks.PaperRegistrationNet()}
    return {"seg": networks.SegmentationNet(experiment.dims, structures),
            "reg": networks.RegistrationNet(experiment.dims, velocity=experiment.velocity)}


def load_networks(folder: Path, regime: str) -> dict[str, nn.Module]:
    """The networks {"seg": ..., "reg": ...} that ``regime`` trained in the run ``folder``, ready to use on the CPU."""
    record = read_record(folder)
    path = Path(folder) / regime / "checkpoint.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such regime in this run: choose from {', '.join(record['steps'])}")
    state = read_checkpoint(path)["best"]
    nets = new_networks(parse(record["experiment"]), len(record["structures"]))
    for name, weights in state.items():
        nets[name].load_state_dict(weights)
    return {name: nets[name].eval() for name in state}


def _train_all(experiment: Experiment, cohort: Cohort, folder: Path, record: dict) -> dict[str, dict[str, nn.Module]]:
    """Every regime in the order of the table: {regime: {network: trained}}."""
    table = regimes(experiment.labelled)
    own, some = own_steps(experiment, table), cohort.hide_labels(experiment.labelled, experiment.label_seed)
    trained: dict[str, dict[str, nn.Module]] = {}
    histories = []
    for i, (key, regime) in enumerate(table.items(), 1):
        print(f"[{i}/{len(table)}] {regime.title}: {' and '.join(regime.trains)}, {sum(own[key].values())} steps")
        nets = {name: net.to(cohort.train[0].image.device)
                for name, net in new_networks(experiment, len(cohort.structures)).items()}
        for name, source in regime.start.items():
            nets[name].load_state_dict(trained[source][name].state_dict())
        settings = Settings(own[key], Weights(1.0, experiment.lambda_r, experiment.lambda_a, experiment.lambda_sp),
                            experiment.similarity, experiment.rates, experiment.batch_size,
                            experiment.augmentation, mixed_precision=record["mixed_precision"], seed=experiment.seed)
        history = training.train(nets, cohort if regime.all_labels else some, regime, settings, folder / key,
                                 _validator(nets, regime, cohort))
        trained[key] = {name: nets[name].eval() for name in regime.trains}
        histories.append(pd.DataFrame(history).assign(regime=key))
        record["steps"][key], record["seconds"][key] = own[key], round(history[-1]["seconds"], 1)
        _write_csv(pd.concat(histories), folder / "history.csv")
        _write_json(record, folder / "run.json")
    return trained


def _validator(nets: Mapping[str, nn.Module], regime: Regime, cohort: Cohort) -> Callable[[], dict[str, float]]:
    """Mean Dice of the training networks on the labelled validation scans; the same rule for every regime."""
    scans = [scan for scan in cohort.validation if scan.labels is not None]
    pairs = evaluation.registration_pairs(scans, per_fixed=2) if len({s.subject for s in scans}) > 1 else []

    def mean_dice(results: list[tuple[Tensor, Scan]]) -> float:
        dice = [row["dice"] for labels, scan in results
                for row in evaluation.score_labels(labels, scan.labels, cohort.structures)]
        return float(np.nanmean(dice)) if dice else float("nan")

    def validate() -> dict[str, float]:
        segment, register = training.segmenter(nets["seg"]), training.registrar(nets["reg"])
        scores = {}
        if "seg" in regime.trains:
            scores["seg"] = mean_dice([(segment(scan), scan) for scan in scans])
        if "reg" in regime.trains:
            scores["reg"] = mean_dice([(register(m, f).warp_labels(m.labels[None])[0], f) for m, f in pairs])
        return scores

    return validate


# --- scores of a run -----------------------------------------------------------------------------------------------


def _score_all(trained: Mapping[str, Mapping[str, nn.Module]], cohort: Cohort, experiment: Experiment
               ) -> Iterator[pd.DataFrame]:
    """The rows of scores.csv, regime by regime; identity and label propagation need no training of their own."""
    pairs = evaluation.registration_pairs(cohort.test, per_fixed=3, seed=experiment.seed)
    atlases = cohort.hide_labels(experiment.labelled, experiment.label_seed).labelled
    segmentations = {"label_propagation": lambda scan: registration.propagate_labels(
        training.registrar(trained["reg_baseline"]["reg"]), atlases, scan)}
    segmentations |= {key: training.segmenter(nets["seg"]) for key, nets in trained.items() if "seg" in nets}
    registrations = {"identity": lambda moving, fixed: Deformation.identity(fixed.shape, device=fixed.image.device)}
    registrations |= {key: training.registrar(nets["reg"]) for key, nets in trained.items() if "reg" in nets}
    with tqdm(total=len(segmentations) + len(registrations), desc="scoring test scans", unit="regime") as bar:
        for key, segment in segmentations.items():
            yield evaluation.score_segmentation(segment, cohort, cohort.test).assign(regime=key)
            bar.update()
        for key, register in registrations.items():
            yield evaluation.score_registration(register, cohort, pairs).assign(regime=key)
            bar.update()


def _examples(trained: Mapping[str, Mapping[str, nn.Module]], cohort: Cohort, count: int = 3) -> list[dict]:
    """What the figures show of the first test pairs: images, labels, guesses and displacements, as plain tensors."""
    examples = []
    for moving, fixed in evaluation.registration_pairs(cohort.test, per_fixed=1)[:count]:
        example = {"moving": moving.image, "fixed": fixed.image, "moving_labels": moving.labels,
                   "fixed_labels": fixed.labels, "name": f"{moving.id} to {fixed.id}"}
        for key in ("seg_baseline", "deepatlas"):
            example[f"labels_{key}"] = training.segmenter(trained[key]["seg"])(fixed).to(torch.uint8)
        for key in ("reg_baseline", "deepatlas"):
            example[f"u_{key}"] = training.registrar(trained[key]["reg"])(moving, fixed).displacement
        examples.append({key: value.cpu() if isinstance(value, Tensor) else value for key, value in example.items()})
    return examples


def _write_json(record: Mapping, path: Path) -> None:
    write_atomically(path, lambda file: file.write_text(json.dumps(record, indent=1) + "\n"))


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    write_atomically(path, lambda file: frame.to_csv(file, index=False, float_format="%.6g"))
