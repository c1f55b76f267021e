"""Experiments: a run folder that can be interrupted and is never repeated.

``run`` trains and scores in plain Python; what it wrote is read by ``reporting.py``.
"""

from __future__ import annotations

import json
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

from . import machine, models, registration, training
from .checkpoints import read_checkpoint, write_atomically, write_csv, write_json
from .data import Cohort, Scan
from .datasets.cohorts import load_cohort
from .datasets.entries import Entry
from .errors import UserError
from .evaluation.cohorts import registration_pairs, score_registration, score_segmentation
from .evaluation.overlap import score_labels
from .parameters import Experiment, parse
from .places import runs_folder
from .regimes import BASELINES, IDENTITY, JOINT, PROPAGATION, Regime, needed, spent
from .terms import TERMS, Weights
from .training import Settings
from .warp import Deformation

# --- a run ----------------------------------------------------------------------------------------


def run(experiment: Experiment, root: Path | None = None) -> Path:
    """Train every regime, score the test scans, and return the run folder; a finished run is only
    found again.
    """
    folder = Path(root or runs_folder()) / experiment.name
    if (folder / "run.json").is_file() and read_record(folder)["finished"]:
        print(f"finished before, its scans were not read again: {folder}")
        return folder
    record, cohort = _begin(experiment, folder, experiment.table)
    # raises now, not after the training, if there are none to score
    registration_pairs(cohort.test)
    nets = _train(experiment, experiment.table, cohort, folder, record)
    write_csv(pd.concat(_score_all(nets, cohort, experiment)), folder / "scores.csv")
    examples = _examples(nets, cohort)
    write_atomically(folder / "examples.pt", lambda file: torch.save(examples, file))
    record |= {
        "finished": True,
        "peak_memory_gib": machine.peak_memory_gib(cohort.train[0].image.device),
    }
    write_json(record, folder / "run.json")
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
    cohort = load_cohort(
        experiment.entry, profile=experiment.profile, dims=experiment.dims, seed=experiment.seed
    )
    device = record["device"] if record else machine.pick_device(experiment.device)
    if record and (problem := machine.step_problem(device)):
        if not all(_found(record, folder, key) for key in table):
            raise UserError(
                f"{folder}: this run was begun on the device {device!r}, which cannot train here "
                f"({problem}): go on there, or name another folder of runs by DEEPATLAS_RUNS"
            )
        device = "cpu"  # nothing is left but to load what was trained
    device = torch.device(device)
    if record is None:
        record = _new_record(experiment, cohort, device)
        write_json(record, path)
    if record["data"] != cohort.fingerprint:
        raise UserError(
            f"{folder}: this run was begun on other data than {experiment.dataset} holds now: "
            "remove the folder to begin again"
        )
    return record, cohort.to(device)


def read_record(folder: Path) -> dict:
    """The content of run.json; FileNotFoundError if ``folder`` is no run, UserError if the file is
    damaged, or of a version that knows other parameters.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: not a run folder, there is no run.json in it")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged, it is not JSON ({error}): remove the folder") from error
    if not isinstance(record, dict) or not isinstance(record.get("experiment"), dict):
        raise UserError(f"{path}: damaged, no experiment is in it: remove the folder")
    try:
        recorded_experiment(record)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not of this version of the kit ({error}); its networks may be whole: read it "
            "with the version that wrote it"
        ) from error
    return record


def recorded_experiment(record: Mapping) -> Experiment:
    """The experiment of a run's record, which carries what was said of its data set."""
    entry = record.get("entry")
    return parse(record["experiment"], entry and Entry.model_validate(entry))


def _new_record(experiment: Experiment, cohort: Cohort, device: torch.device) -> dict:
    if experiment.precision == "auto":
        mixed = machine.bfloat16_pays(device, cohort.shape)
    else:
        mixed = experiment.precision == "bfloat16"
    labelled = [scan for scan in cohort.validation if scan.labels is not None]
    packages = ("torch", "numpy", "scipy", "nibabel", "pandas")
    return {
        "experiment": experiment.model_dump(),
        "entry": experiment.entry.model_dump(mode="json"),
        "finished": False,
        "device": str(device),
        "device_name": machine.device_name(device),
        "mixed_precision": mixed,
        "threads": torch.get_num_threads(),
        "labelled_training_scans": experiment.labelled,
        "labelled_validation_scans": len(labelled),
        "training_scans": len(cohort.train),
        "test_scans": len(cohort.test),
        "shape": cohort.shape,
        "spacing_mm": cohort.spacing,
        "structures": cohort.structures,
        "data": cohort.fingerprint,
        "python": platform.python_version(),
        "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": {name: version(name) for name in packages},
        "steps": {},
        "seconds": {},
    }


def own_steps(experiment: Experiment) -> dict[str, dict[str, int]]:
    """Steps of each network in each regime: its budget, less what the network that it starts from
    has taken.
    """
    table = experiment.table
    baseline = {"seg": experiment.seg_steps, "reg": experiment.reg_steps}
    own: dict[str, dict[str, int]] = {}
    for key, regime in table.items():
        steps = {}
        for name in regime.trains:
            budget = baseline[name] + regime.rounds * experiment.joint[name]
            before = spent(table, key, name, own)
            if before >= budget:
                raise UserError(
                    f"regime {key!r}: with rounds={regime.rounds} its network '{name}' may have "
                    f"taken {budget} steps in all, and what it starts from has taken {before} "
                    "already: give it more rounds"
                )
            steps[name] = budget - before
        own[key] = steps
    return own


def new_networks(experiment: Experiment, structures: int) -> dict[str, nn.Module]:
    """Untrained networks; the same weights for the same seed, so that all regimes start alike."""
    torch.manual_seed(experiment.seed)
    return models.build(
        experiment.networks,
        experiment.dims,
        structures,
        velocity=experiment.velocity,
        passes=experiment.passes,
    )


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
        nets = new_networks(recorded_experiment(record), len(record["structures"]))
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
    some = _some_labelled(cohort, experiment)
    own = own_steps(experiment)
    device = cohort.train[0].image.device
    trained: dict[str, dict[str, nn.Module]] = {}
    for i, (key, regime) in enumerate(table.items(), 1):
        found = _found(record, folder, key)
        what = f"{' and '.join(regime.trains)}, {sum(own[key].values())} steps"
        where = f", found in {folder}" if found else ""
        print(f"[{i}/{len(table)}] {regime.title}: {what}{where}")

        untrained = new_networks(experiment, len(cohort.structures))
        nets = {name: net.to(device) for name, net in untrained.items()}
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
            record["steps"][key] = own[key]
            record["seconds"][key] = round(history[-1]["seconds"], 1)
            write_json(record, folder / "run.json")
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
    return Settings(
        steps,
        _weights(experiment, regime),
        e.similarity,
        e.rates,
        e.batch_size,
        e.augmentation,
        mixed_precision=mixed_precision,
        seed=e.seed,
        teacher=e.teacher,
        options={"sampled_warps": e.sampled_warps, "fourth_case": e.fourth_case},
    )


def _weights(experiment: Experiment, regime: Regime) -> Weights:
    """The weight of each loss term: by its parameter, by ``term_weights``, or as in its row."""
    weights = dict(experiment.term_weights)
    for name, term in TERMS.items():
        if term.parameter is not None:
            weights[name] = getattr(experiment, term.parameter)
    weights["anatomy"] = getattr(experiment, regime.anatomy_weight)
    return Weights(**weights)


def _validator(
    nets: Mapping[str, nn.Module], regime: Regime, cohort: Cohort
) -> Callable[[], dict[str, float]]:
    """Mean Dice of the training networks on the labelled validation scans; the same rule for every
    regime.
    """
    scans = [scan for scan in cohort.validation if scan.labels is not None]
    several = len({scan.subject for scan in scans}) > 1
    pairs = registration_pairs(scans, per_fixed=2) if several else []

    def mean_dice(results: list[tuple[Tensor, Scan]]) -> float:
        dice = []
        for labels, scan in results:
            rows = score_labels(labels, scan.labels, cohort.structures)
            dice += [row["dice"] for row in rows]
        return float(np.nanmean(dice)) if dice else float("nan")

    def validate() -> dict[str, float]:
        segment, register = models.segmenter(nets["seg"]), models.registrar(nets["reg"])
        scores = {}
        if "seg" in regime.trains:
            scores["seg"] = mean_dice([(segment(scan), scan) for scan in scans])
        if "reg" in regime.trains:
            warped = [
                register(moving, fixed).warp_labels(moving.labels[None])[0]
                for moving, fixed in pairs
            ]
            fixed_scans = [fixed for _, fixed in pairs]
            scores["reg"] = mean_dice(list(zip(warped, fixed_scans, strict=True)))
        return scores

    return validate


# --- scores of a run ------------------------------------------------------------------------------


def _score_all(
    trained: Mapping[str, Mapping[str, nn.Module]], cohort: Cohort, experiment: Experiment
) -> Iterator[pd.DataFrame]:
    """The rows of scores.csv, regime by regime; identity and label propagation need no training of
    their own.
    """
    pairs = registration_pairs(cohort.test, per_fixed=3, seed=experiment.seed)
    atlases = _some_labelled(cohort, experiment).labelled
    register_baseline = models.registrar(trained[BASELINES["reg"]]["reg"])

    def propagate(scan: Scan) -> Tensor:
        return registration.propagate_labels(register_baseline, atlases, scan)

    def stay(moving: Scan, fixed: Scan) -> Deformation:
        return Deformation.identity(fixed.shape, device=fixed.image.device)

    segmentations = {PROPAGATION: propagate}
    registrations = {IDENTITY: stay}
    for key, nets in trained.items():
        if "seg" in nets:
            segmentations[key] = models.segmenter(nets["seg"])
        if "reg" in nets:
            registrations[key] = models.registrar(nets["reg"])

    total = len(segmentations) + len(registrations)
    with tqdm(total=total, desc="scoring test scans", unit="regime") as bar:
        for key, segment in segmentations.items():
            yield score_segmentation(segment, cohort, cohort.test).assign(regime=key)
            bar.update()
        for key, register in registrations.items():
            yield score_registration(register, cohort, pairs).assign(regime=key)
            bar.update()


def _examples(
    trained: Mapping[str, Mapping[str, nn.Module]], cohort: Cohort, count: int = 3
) -> list[dict]:
    """What the figures show of the first test pairs: images, labels, guesses and displacements, as
    plain tensors.
    """
    examples = []
    for moving, fixed in registration_pairs(cohort.test, per_fixed=1)[:count]:
        example = {
            "moving": moving.image,
            "fixed": fixed.image,
            "moving_labels": moving.labels,
            "fixed_labels": fixed.labels,
            "name": f"{moving.id} to {fixed.id}",
        }
        for key in (BASELINES["seg"], JOINT):
            segment = models.segmenter(trained[key]["seg"])
            example[f"labels_{key}"] = segment(fixed).to(torch.uint8)
        for key in (BASELINES["reg"], JOINT):
            register = models.registrar(trained[key]["reg"])
            example[f"u_{key}"] = register(moving, fixed).displacement
        for key, value in example.items():
            if isinstance(value, Tensor):
                example[key] = value.cpu()
        examples.append(example)
    return examples
