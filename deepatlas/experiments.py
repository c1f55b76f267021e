"""Experiments: a run folder that can be interrupted and is never repeated.

``run`` trains and scores in plain Python; what it wrote is read by ``reporting.py``.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import datasets, evaluation, machine, networks, registration, terms, training
from .checkpoints import read_checkpoint, write_atomically
from .data import Cohort, Scan
from .parameters import Experiment, parse
from .regimes import Regime, needed, spent
from .terms import Weights
from .training import Settings
from .warp import Deformation

PROJECT = Path(__file__).resolve().parent.parent

# --- a run ----------------------------------------------------------------------------------------


def runs_folder() -> Path:
    """Where runs are kept: the environment variable ``DEEPATLAS_RUNS``, or ``runs`` in the project."""
    return Path(os.environ.get("DEEPATLAS_RUNS") or PROJECT / "runs").expanduser()


def run(experiment: Experiment, root: Path | None = None) -> Path:
    """Train every regime, score the test scans, and return the run folder; a finished run is only
    found again.
    """
    folder = Path(root or runs_folder()) / experiment.name
    if (folder / "run.json").is_file() and read_record(folder)["finished"]:
        print(f"finished before: {folder}")
        return folder
    record, cohort = _begin(experiment, folder, experiment.table)
    # raises now, not after the training, if there are none to score
    evaluation.registration_pairs(cohort.test)
    nets = _train(experiment, experiment.table, cohort, folder, record)
    write_csv(pd.concat(_score_all(nets, cohort, experiment)), folder / "scores.csv")
    examples = _examples(nets, cohort)
    write_atomically(folder / "examples.pt", lambda file: torch.save(examples, file))
    record |= {
        "finished": True,
        "peak_memory_gib": machine.peak_memory_gib(cohort.train[0].image.device),
    }
    _write_json(record, folder / "run.json")
    return folder


def train_or_load(
    experiment: Experiment, *keys: str, root: Path | None = None
) -> dict[str, dict[str, nn.Module]]:
    """The networks of the regimes ``keys``, and of those that they start from: {regime: {"seg":
    ..., "reg": ...}}.

    They are ready to use on the CPU, wherever they were trained. What the experiment's run folder
    holds is loaded, what it lacks is trained there; it is printed which. The folder's name has the
    hash of the parameters and of the code, its record that of the data, so that nothing old is
    found.
    """
    folder = Path(root or runs_folder()) / experiment.name
    table = needed(experiment.table, *keys)
    record, cohort = _begin(experiment, folder, table)
    trained = _train(experiment, table, cohort, folder, record)
    return {key: {name: net.cpu() for name, net in nets.items()} for key, nets in trained.items()}


def _begin(
    experiment: Experiment, folder: Path, table: Mapping[str, Regime]
) -> tuple[dict, Cohort]:
    """The record of a run of the regimes of ``table``, begun or gone on with, and its cohort on its
    device.
    """
    path = folder / "run.json"
    record = read_record(folder) if path.is_file() else None
    cohort = datasets.load_cohort(
        experiment.dataset, size=experiment.profile, dims=experiment.dims, seed=experiment.seed
    )
    device = record["device"] if record else machine.pick_device(experiment.device)
    if record and (problem := machine.step_problem(device)):
        if not all(_found(record, folder, key) for key in table):
            raise ValueError(
                f"{folder}: this run was begun on the device {device!r}, which cannot train here "
                f"({problem}): go on there, or name another folder of runs by DEEPATLAS_RUNS"
            )
        device = "cpu"  # nothing is left but to load what was trained
    device = torch.device(device)
    if record is None:
        record = _new_record(experiment, cohort, device)
        _write_json(record, path)
    if record["data"] != cohort.fingerprint:
        raise ValueError(
            f"{folder}: this run was begun on other data than {experiment.dataset} holds now: "
            "remove the folder to begin again"
        )
    return record, cohort.to(device)


def read_record(folder: Path) -> dict:
    """The content of run.json; FileNotFoundError if ``folder`` is no run, ValueError if the file is
    damaged.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not a run folder, there is no run.json in it")
    try:
        record = json.loads(path.read_text())
        parse(record["experiment"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: damaged, or written by another version ({error}): remove the folder"
        ) from error
    return record


def _new_record(experiment: Experiment, cohort: Cohort, device: torch.device) -> dict:
    mixed = (
        machine.bfloat16_pays(device, cohort.shape)
        if experiment.precision == "auto"
        else experiment.precision == "bfloat16"
    )
    return {
        "experiment": experiment.model_dump(),
        "finished": False,
        "device": str(device),
        "device_name": machine.device_name(device),
        "mixed_precision": mixed,
        "threads": torch.get_num_threads(),
        "labelled_training_scans": experiment.labelled,
        "labelled_validation_scans": sum(scan.labels is not None for scan in cohort.validation),
        "training_scans": len(cohort.train),
        "test_scans": len(cohort.test),
        "shape": cohort.shape,
        "spacing_mm": cohort.spacing,
        "structures": cohort.structures,
        "data": cohort.fingerprint,
        "python": platform.python_version(),
        "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": {
            name: version(name) for name in ("torch", "numpy", "scipy", "nibabel", "pandas")
        },
        "steps": {},
        "seconds": {},
    }


def own_steps(experiment: Experiment) -> dict[str, dict[str, int]]:
    """Steps of each network in each regime: its budget, less what the network that it starts from
    has taken.
    """
    table, baseline = experiment.table, {"seg": experiment.seg_steps, "reg": experiment.reg_steps}
    own: dict[str, dict[str, int]] = {}
    for key, regime in table.items():
        own[key] = {
            name: baseline[name]
            + regime.rounds * experiment.joint[name]
            - spent(table, key, name, own)
            for name in regime.trains
        }
    return own


def new_networks(experiment: Experiment, structures: int) -> dict[str, nn.Module]:
    """Untrained networks; the same weights for the same seed, so that all regimes start alike."""
    torch.manual_seed(experiment.seed)
    if experiment.networks == "paper":
        return {
            "seg": networks.PaperSegmentationNet(structures),
            "reg": networks.PaperRegistrationNet(),
        }
    return {
        "seg": networks.SegmentationNet(experiment.dims, structures),
        "reg": networks.RegistrationNet(
            experiment.dims, velocity=experiment.velocity, passes=experiment.passes
        ),
    }


def load_networks(folder: Path, regime: str) -> dict[str, nn.Module]:
    """The networks {"seg": ..., "reg": ...} that ``regime`` trained in the run ``folder``, ready to
    use on the CPU.
    """
    record = read_record(folder)
    path = Path(folder) / regime / "checkpoint.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such regime in this run: choose from {', '.join(record['steps'])}"
        )
    state = read_checkpoint(path)["best"]
    with torch.random.fork_rng(devices=[]):  # whoever loads networks keeps his random numbers
        nets = new_networks(parse(record["experiment"]), len(record["structures"]))
    for name, weights in state.items():
        nets[name].load_state_dict(weights)
    return {name: nets[name].eval() for name in state}


def _some_labelled(cohort: Cohort, experiment: Experiment) -> Cohort:
    """The cohort as the semi-supervised regimes see it: N labelled training scans, and some
    unlabelled ones.
    """
    some = cohort.hide_labels(experiment.labelled, experiment.label_seed)
    others = [scan for scan in some.train if scan.labels is None][: experiment.unlabelled]
    return replace(some, train=some.labelled + tuple(others))


def _train(
    experiment: Experiment, table: Mapping[str, Regime], cohort: Cohort, folder: Path, record: dict
) -> dict[str, dict[str, nn.Module]]:
    """The regimes of ``table`` in its order, each trained or found in ``folder``: {regime:
    {network: trained}}.
    """
    some, own = _some_labelled(cohort, experiment), own_steps(experiment)
    trained: dict[str, dict[str, nn.Module]] = {}
    for i, (key, regime) in enumerate(table.items(), 1):
        found = _found(record, folder, key)
        print(
            f"[{i}/{len(table)}] {regime.title}: {' and '.join(regime.trains)}, {sum(own[key].values())} steps"
            + (f", found in {folder}" if found else "")
        )
        nets = {
            name: net.to(cohort.train[0].image.device)
            for name, net in new_networks(experiment, len(cohort.structures)).items()
        }
        for name, source in regime.start.items():
            nets[name].load_state_dict(trained[source][name].state_dict())
        history = training.train(
            nets,
            cohort if regime.all_labels else some,
            regime,
            _settings(experiment, regime, own[key], record["mixed_precision"]),
            folder / key,
            _validator(nets, regime, cohort),
        )
        trained[key] = {name: nets[name].eval() for name in regime.trains}
        if not found:
            _keep_history(pd.DataFrame(history).assign(regime=key), folder / "history.csv")
            record["steps"][key], record["seconds"][key] = (
                own[key],
                round(history[-1]["seconds"], 1),
            )
            _write_json(record, folder / "run.json")
    return trained


def _found(record: Mapping, folder: Path, key: str) -> bool:
    """Has the run in ``folder`` trained the regime ``key``?"""
    return key in record["steps"] and (folder / key / "checkpoint.pt").is_file()


def _keep_history(rows: pd.DataFrame, path: Path) -> None:
    """Add the rows of one regime to those of the others."""
    if path.is_file():
        others = pd.read_csv(path)
        rows = pd.concat([others[~others["regime"].isin(rows["regime"])], rows])
    write_csv(rows, path)


def _settings(
    experiment: Experiment, regime: Regime, steps: Mapping[str, int], mixed_precision: bool
) -> Settings:
    """How a regime of this experiment is trained."""
    e = experiment
    # the few labelled pairs alone
    weak = regime.trains == ("reg",) and not (regime.consults or regime.all_labels)
    return Settings(
        steps,
        Weights(1.0, e.lambda_r, e.lambda_weak if weak else e.lambda_a, e.lambda_sp),
        e.similarity,
        e.rates,
        e.batch_size,
        e.augmentation,
        mixed_precision=mixed_precision,
        seed=e.seed,
        teacher=e.teacher,
        options={"sampled_warps": e.sampled_warps, "fourth_case": e.fourth_case},
    )


def _validator(
    nets: Mapping[str, nn.Module], regime: Regime, cohort: Cohort
) -> Callable[[], dict[str, float]]:
    """Mean Dice of the training networks on the labelled validation scans; the same rule for every
    regime.
    """
    scans = [scan for scan in cohort.validation if scan.labels is not None]
    pairs = (
        evaluation.registration_pairs(scans, per_fixed=2)
        if len({s.subject for s in scans}) > 1
        else []
    )

    def mean_dice(results: list[tuple[Tensor, Scan]]) -> float:
        dice = [
            row["dice"]
            for labels, scan in results
            for row in evaluation.score_labels(labels, scan.labels, cohort.structures)
        ]
        return float(np.nanmean(dice)) if dice else float("nan")

    def validate() -> dict[str, float]:
        segment, register = terms.segmenter(nets["seg"]), terms.registrar(nets["reg"])
        scores = {}
        if "seg" in regime.trains:
            scores["seg"] = mean_dice([(segment(scan), scan) for scan in scans])
        if "reg" in regime.trains:
            scores["reg"] = mean_dice(
                [(register(m, f).warp_labels(m.labels[None])[0], f) for m, f in pairs]
            )
        return scores

    return validate


# --- scores of a run ------------------------------------------------------------------------------


def _score_all(
    trained: Mapping[str, Mapping[str, nn.Module]], cohort: Cohort, experiment: Experiment
) -> Iterator[pd.DataFrame]:
    """The rows of scores.csv, regime by regime; identity and label propagation need no training of
    their own.
    """
    pairs = evaluation.registration_pairs(cohort.test, per_fixed=3, seed=experiment.seed)
    atlases = _some_labelled(cohort, experiment).labelled
    segmentations = {
        "label_propagation": lambda scan: registration.propagate_labels(
            terms.registrar(trained["reg_baseline"]["reg"]), atlases, scan
        )
    }
    segmentations |= {
        key: terms.segmenter(nets["seg"]) for key, nets in trained.items() if "seg" in nets
    }
    registrations = {
        "identity": lambda moving, fixed: Deformation.identity(
            fixed.shape, device=fixed.image.device
        )
    }
    registrations |= {
        key: terms.registrar(nets["reg"]) for key, nets in trained.items() if "reg" in nets
    }
    with tqdm(
        total=len(segmentations) + len(registrations), desc="scoring test scans", unit="regime"
    ) as bar:
        for key, segment in segmentations.items():
            yield evaluation.score_segmentation(segment, cohort, cohort.test).assign(regime=key)
            bar.update()
        for key, register in registrations.items():
            yield evaluation.score_registration(register, cohort, pairs).assign(regime=key)
            bar.update()


def _examples(
    trained: Mapping[str, Mapping[str, nn.Module]], cohort: Cohort, count: int = 3
) -> list[dict]:
    """What the figures show of the first test pairs: images, labels, guesses and displacements, as
    plain tensors.
    """
    examples = []
    for moving, fixed in evaluation.registration_pairs(cohort.test, per_fixed=1)[:count]:
        example = {
            "moving": moving.image,
            "fixed": fixed.image,
            "moving_labels": moving.labels,
            "fixed_labels": fixed.labels,
            "name": f"{moving.id} to {fixed.id}",
        }
        for key in ("seg_baseline", "deepatlas"):
            example[f"labels_{key}"] = terms.segmenter(trained[key]["seg"])(fixed).to(torch.uint8)
        for key in ("reg_baseline", "deepatlas"):
            example[f"u_{key}"] = terms.registrar(trained[key]["reg"])(moving, fixed).displacement
        examples.append(
            {
                key: value.cpu() if isinstance(value, Tensor) else value
                for key, value in example.items()
            }
        )
    return examples


def _write_json(record: Mapping, path: Path) -> None:
    write_atomically(path, lambda file: file.write_text(json.dumps(record, indent=1) + "\n"))


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Numbers with six digits; never half-written."""
    write_atomically(path, lambda file: frame.to_csv(file, index=False, float_format="%.6g"))
