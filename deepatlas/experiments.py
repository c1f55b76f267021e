"""Experiments: a run folder that can be interrupted and is never repeated.

``run`` trains and scores in plain Python, regime by regime: a table on the screen grows as they
end. What it wrote is read by ``reporting.py``.

Validation scans with labels decide which weights of a network are kept, by one rule for all
regimes. Without any, the last weights are; of a registration network, too, where all of them are of
one person, of whom no pair can be made. Test scans without labels are not scored, and registration
is not where they are of one person: the run trains to its end, and says so.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import machine, models, registration, training
from .checkpoints import (
    load_weights,
    read_checkpoint,
    read_csv,
    remove_left_parts,
    write_csv,
    write_tensors,
)
from .data import Cohort, Scan, label_dtype
from .datasets.cohorts import load_cohort
from .datasets.entries import Entry
from .errors import UserError
from .evaluation.cohorts import (
    per_subject,
    registration_pairs,
    score_registration,
    score_segmentation,
)
from .evaluation.overlap import dice
from .parameters import Experiment
from .places import runs_folder
from .records import (
    ALONE,
    as_written,
    check_checkpoint,
    file_problem,
    forget_hash,
    is_of,
    keep_checkpoint,
    keep_hash,
    notes,
    read_record,
    recorded_experiment,
    write_record,
)
from .regimes import (
    BASELINES,
    IDENTITY,
    JOINT,
    NETWORK_OF,
    PROPAGATION,
    REFERENCES,
    Regime,
    needed,
    spent,
)
from .terms import TERMS, Weights
from .training import Settings
from .warp import Deformation

REFERENCE = "reference.pt"  # the scan that all were aligned to, and a new one will be

# Columns of scores.csv: texts, and numbers that are there even where no registration was scored.
SCORE_TEXTS = ("task", "regime", "case", "subject", "structure")
SCORE_NUMBERS = ("dice", "nsd", "hd95_mm", "folds_percent", "endpoint_voxels")

# --- a run ----------------------------------------------------------------------------------------


def run(experiment: Experiment, root: Path | None = None) -> Path:
    """Train every regime, score each on the test scans as it ends, and return the run folder; a
    finished run is only found again.

    An interrupted run goes on where it was. Of a finished one, what is missing or damaged is made
    again from the trained networks, and a regime whose checkpoint is gone is trained again.
    """
    folder = Path(root or runs_folder()) / experiment.name
    lost = _lost(experiment, folder)
    if not lost:
        print(f"finished before, its scans were not read again: {folder}")
        return folder
    record, cohort = _begin(experiment, folder, experiment.table)
    for note in notes(record):
        print(f"{cohort.name}: {note}")
    scores = Scores(experiment, cohort, folder, record)
    ended = scores.add if "scores.csv" in lost else None
    nets = _train(experiment, experiment.table, cohort, folder, record, ended)
    if "scores.csv" in lost:
        write_csv(scores.rows(), folder / "scores.csv")
        keep_hash(record, folder, "scores.csv")
    if "examples.pt" in lost:
        write_tensors(_examples(nets, cohort), folder / "examples.pt")
        keep_hash(record, folder, "examples.pt")
    if "peak_memory_gib" not in record:  # that of the training, not of a repair
        device = cohort.device
        record["peak_memory_gib"] = machine.peak_memory_gib(device)
    record["finished"] = True
    write_record(record, folder)
    return folder


def _lost(experiment: Experiment, folder: Path) -> list[str]:
    """Files of the run that are still to be made: of a finished run, what is missing or damaged."""
    results = ["scores.csv", "examples.pt", "history.csv"]
    record = _record_of(experiment, folder)
    if record is None or not record["finished"]:
        return results
    lost = [name for name in results if file_problem(record, folder, name)]
    untrained = [key for key in experiment.table if not _found(record, folder, key)]
    if lost:
        print(f"{folder}: {' and '.join(lost)} missing or damaged, and made again")
    if untrained:
        print(f"{folder}: no checkpoint of {' and '.join(untrained)}, so trained and scored again")
        return results
    return lost


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
    record = _record_of(experiment, folder)
    for place in (folder, *folder.glob("*/")):
        remove_left_parts(place)
    device = record["device"] if record else machine.pick_device(experiment.device)
    if record and (problem := machine.step_problem(device)):
        if not all(_found(record, folder, key) for key in table):
            raise UserError(
                f"{folder}: this run was begun on the device {device!r}, which cannot train here "
                f"({problem}): go on there, or name another folder of runs by DEEPATLAS_RUNS"
            )
        device = "cpu"  # nothing is left but to load what was trained
    device = torch.device(device)
    cohort = load_cohort(
        experiment.entry, profile=experiment.profile, dims=experiment.dims, seed=experiment.seed
    )
    if record is None:
        record = _new_record(experiment, cohort, device)
        write_record(record, folder)
    if record["data"] != cohort.fingerprint:
        raise UserError(
            f"{folder}: this run was begun on other data than {experiment.dataset} holds now: "
            "put the same data there, or name another folder of runs by DEEPATLAS_RUNS"
        )
    if cohort.reference is not None and file_problem(record, folder, REFERENCE):
        write_tensors({"image": cohort.reference}, folder / REFERENCE)
        keep_hash(record, folder, REFERENCE)
        write_record(record, folder)
    return record, cohort.to(device)


def _record_of(experiment: Experiment, folder: Path) -> dict | None:
    """The record of the run in its ``folder``, None before it is begun; UserError if it is another
    run's.
    """
    if not (folder / "run.json").is_file():
        return None
    record = read_record(folder)
    if not is_of(record, experiment):
        raise UserError(
            f"{folder / 'run.json'}: this is the record of another run, "
            f"{recorded_experiment(record).name}: put back the run's own, or {ALONE}"
        )
    moved = record["experiment"]["dataset"] != experiment.dataset
    entry = experiment.entry.model_dump(mode="json")
    if moved or record.get("entry") not in (None, entry):  # or its licence, say, was mended
        record["experiment"] = experiment.model_dump()
        record["entry"] = entry
        if record.get("preparation") is not None:
            record["preparation"] |= _rights(experiment.entry)
        write_record(record, folder)
    return record


def _new_record(experiment: Experiment, cohort: Cohort, device: torch.device) -> dict:
    if experiment.precision == "auto":
        mixed = machine.bfloat16_pays(device, cohort.shape)
    else:
        mixed = experiment.precision == "bfloat16"
    validation = _with_labels(cohort.validation)
    several = _several_people(validation)
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
        "labelled_validation_scans": len(validation),
        "training_scans": len(cohort.train),
        "test_scans": len(cohort.test),
        "shape": cohort.shape,
        "spacing_mm": cohort.spacing,
        "structures": cohort.structures,
        "preparation": _preparation(experiment, cohort),
        "scored": _scored_tasks(cohort),
        "validated": [*["seg"] * bool(validation), *["reg"] * several],
        "data": cohort.fingerprint,
        "python": platform.python_version(),
        "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": {name: version(name) for name in packages},
        "steps": {},
        "seconds": {},
        "sha256": {},
    }


def _preparation(experiment: Experiment, cohort: Cohort) -> dict[str, object]:
    """What a new scan needs, beside shape and spacing, to be prepared as those of the cohort
    were.
    """
    shape, spacing = cohort.volume or (cohort.shape, cohort.spacing)
    return {
        # of each structure but the background: the numbers that its label files have
        "label_numbers": [list(numbers) for numbers in cohort.label_numbers],
        "label_dtype": cohort.label_dtype,
        # of the volume that was aligned, before slices are taken
        "volume_shape": list(shape),
        "volume_spacing_mm": spacing,
        "aligned": cohort.reference is not None,
        "channel": experiment.entry.channel,
        **_rights(experiment.entry),
    }


def _rights(entry: Entry) -> dict[str, str]:
    """What trained networks may be used for, and whose the scans are."""
    return {"licence": entry.licence, "credit": entry.credit}


def _with_labels(scans: Sequence[Scan]) -> list[Scan]:
    return [scan for scan in scans if scan.labels is not None]


def _several_people(scans: Sequence[Scan]) -> bool:
    return len({scan.subject for scan in scans}) > 1


def _scored_tasks(cohort: Cohort) -> list[str]:
    """The tasks that the test scans can judge: labels are compared, and pairs are of two people."""
    labelled = _with_labels(cohort.test)
    if not labelled:
        return []
    return ["segmentation", "registration"] if _several_people(labelled) else ["segmentation"]


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
    path = _checkpoint(Path(folder), regime)
    if not path.is_file() and regime in record["steps"]:
        raise FileNotFoundError(
            f"{path}: missing: start the run again with the same parameters, and this regime is "
            "trained again"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such regime in this run: choose from {', '.join(record['steps'])}"
        )
    checkpoint = read_checkpoint(path)
    check_checkpoint(record, regime, checkpoint, path)
    state = checkpoint["best"]
    with torch.random.fork_rng(devices=[]):  # whoever loads networks keeps his random numbers
        nets = new_networks(recorded_experiment(record), len(record["structures"]))
    for name, weights in state.items():
        load_weights(nets[name], weights, path)
    return {name: nets[name].eval() for name in state}


def _some_labelled(cohort: Cohort, experiment: Experiment) -> Cohort:
    """The cohort as the semi-supervised regimes see it: N labelled training scans, and some
    unlabelled ones.
    """
    some = cohort.hide_labels(experiment.labelled, experiment.label_seed)
    others = [scan for scan in some.train if scan.labels is None][: experiment.unlabelled]
    return replace(some, train=some.labelled + tuple(others))


def _train(
    experiment: Experiment,
    table: Mapping[str, Regime],
    cohort: Cohort,
    folder: Path,
    record: dict,
    ended: Callable[[str, Mapping[str, nn.Module]], None] | None = None,
) -> dict[str, dict[str, nn.Module]]:
    """The regimes of ``table`` in its order, each trained or found in ``folder``: {regime:
    {network: trained}}; ``ended(regime, networks)`` sees each.
    """
    some = _some_labelled(cohort, experiment)
    own = own_steps(experiment)
    device = cohort.device
    trained: dict[str, dict[str, nn.Module]] = {}
    histories: dict[str, list[dict]] = {}
    for i, (key, regime) in enumerate(table.items(), 1):
        found = _found(record, folder, key)
        what = f"{' and '.join(regime.trains)}, {sum(own[key].values())} steps"
        where = f", found in {folder}" if found else ""
        print(f"[{i}/{len(table)}] {regime.title}: {what}{where}")
        if not found and key in record["steps"]:  # to be trained again: nobody takes half for whole
            _forget(record, key)
            write_record(record, folder)

        untrained = new_networks(experiment, len(cohort.structures))
        nets = {name: net.to(device) for name, net in untrained.items()}
        for name, source in regime.start.items():
            nets[name].load_state_dict(trained[source][name].state_dict())
        settings = _settings(experiment, regime, own[key], record["mixed_precision"])
        settings = replace(settings, run=folder.name)
        seen = cohort if regime.all_labels else some
        validate = _validator(nets, regime, cohort)
        histories[key] = training.train(nets, seen, regime, settings, folder / key, validate)
        trained[key] = {name: nets[name].eval() for name in regime.trains}
        if not found:
            steps = record["steps"] | {key: own[key]}
            # in the order of the table, also if this regime was there before
            record["steps"] = {name: steps[name] for name in experiment.table if name in steps}
            record["seconds"][key] = round(histories[key][-1]["seconds"], 1)
            keep_checkpoint(record, key, training.identity(seen, regime, settings))
            _keep_history(histories, record, folder)
        if ended is not None:
            ended(key, trained[key])
    if file_problem(record, folder, "history.csv"):
        _keep_history(histories, record, folder)
    return trained


def _found(record: Mapping, folder: Path, key: str) -> bool:
    """Has the run in ``folder`` trained the regime ``key``?"""
    return key in record["steps"] and _checkpoint(folder, key).is_file()


def _forget(record: dict, key: str) -> None:
    """Of a regime whose checkpoint is gone: it is as if it had never been trained, nor scored."""
    del record["steps"][key]
    forget_hash(record, _scores_of(key))
    record["finished"] = False


def _checkpoint(folder: Path, key: str) -> Path:
    return folder / key / "checkpoint.pt"


def _keep_history(histories: Mapping[str, list[dict]], record: dict, folder: Path) -> None:
    """Write history.csv with the rows of all regimes trained so far, and the record with its hash.

    Rows that are not in ``histories`` are in the file; if it is damaged, in the checkpoints.
    """
    path = folder / "history.csv"
    before = None
    elsewhere = record["steps"].keys() - histories.keys()
    if elsewhere and file_problem(record, folder, "history.csv") is None:
        before = read_csv(path, ("turn", "regime"), ("regime",))
    tables = []
    for key in list(record["steps"]):
        if key in histories:
            rows = pd.DataFrame(histories[key]).assign(regime=key)
        elif before is not None:
            rows = before[before["regime"] == key]
        elif _found(record, folder, key):
            kept = _checkpoint(folder, key)
            checkpoint = read_checkpoint(kept)
            check_checkpoint(record, key, checkpoint, kept)
            rows = pd.DataFrame(checkpoint["history"]).assign(regime=key)
        else:  # its checkpoint is gone, too
            _forget(record, key)
            continue
        tables.append(rows)
    write_csv(pd.concat(tables), path)
    keep_hash(record, folder, "history.csv")
    write_record(record, folder)


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
        e.seg_batch_size,
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
    regime. NaN where there are none to compare: then the last weights are kept.
    """
    scans = _with_labels(cohort.validation)
    pairs = registration_pairs(scans, per_fixed=2) if _several_people(scans) else []

    def mean_dice(results: list[tuple[Tensor, Scan]]) -> float:
        found = []
        for labels, scan in results:
            found += dice(labels, scan.labels, cohort.structures).values()
        return float(np.nanmean(found)) if found else float("nan")

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


class Scores:
    """The test scans judged as regimes end: rows in the run folder, and a table on the screen.

    The rows of a regime are kept beside its checkpoint, so that a run that goes on scores only what
    it has not scored.
    """

    def __init__(self, experiment: Experiment, cohort: Cohort, folder: Path, record: dict) -> None:
        self.folder = folder
        self.record = record
        self.table = experiment.table
        self.titles = {key: title for key, (title, _) in REFERENCES.items()}
        self.titles |= {key: regime.title for key, regime in self.table.items()}
        self.atlases = _some_labelled(cohort, experiment).labelled
        self.tests = _with_labels(cohort.test)
        self.pairs: list[tuple[Scan, Scan]] = []
        if _several_people(self.tests):
            self.pairs = registration_pairs(self.tests, per_fixed=3, seed=experiment.seed)
        if cohort.truth is not None:  # of a pair once, not once a regime
            cohort = replace(cohort, truth=cache(cohort.truth))
        self.cohort = cohort
        self.of: dict[tuple[str, str], pd.DataFrame] = {}  # task and regime -> its rows

    def add(self, key: str, nets: Mapping[str, nn.Module]) -> None:
        """Score what can be judged as soon as the regime ``key`` has ended, and show it beside what
        was scored before; rows that the run has kept are only read.
        """
        if not self.tests:
            return
        name = _scores_of(key)
        kept = as_written(self.record, self.folder, name)
        if kept:
            rows = read_csv(self.folder / name, text=SCORE_TEXTS, required=SCORE_TEXTS)
        else:
            rows = self._score(key, nets)
            write_csv(rows, self.folder / name)
            keep_hash(self.record, self.folder, name)
            write_record(self.record, self.folder)
        for place, of_place in rows.groupby(["task", "regime"], sort=False):
            self.of[place] = of_place
        if not kept and not rows.empty:
            print(f"\n{self.shown()}\n", flush=True)  # in a log, too, before the next is trained

    def _score(self, key: str, nets: Mapping[str, nn.Module]) -> pd.DataFrame:
        """The rows of a regime; what needs no training of its own stands beside the registration
        baseline.
        """
        segmentations: dict[str, Callable[[Scan], Tensor]] = {}
        registrations: dict[str, Callable[[Scan, Scan], Deformation]] = {}
        if key == BASELINES["reg"]:
            baseline = models.registrar(nets["reg"])
            segmentations[PROPAGATION] = partial(
                registration.propagate_labels, baseline, self.atlases
            )
            registrations[IDENTITY] = _stay
        if "seg" in nets:
            segmentations[key] = models.segmenter(nets["seg"])
        if "reg" in nets:
            registrations[key] = models.registrar(nets["reg"])
        if not self.pairs:
            registrations = {}

        tables = []
        total = len(segmentations) + len(registrations)
        with tqdm(total=total, desc="scoring test scans", unit="task", leave=False) as bar:
            for regime, segment in segmentations.items():
                rows = score_segmentation(segment, self.cohort, self.tests)
                tables.append(rows.assign(regime=regime))
                bar.update()
            for regime, register in registrations.items():
                rows = score_registration(register, self.cohort, self.pairs)
                tables.append(rows.assign(regime=regime))
                bar.update()
        return pd.concat(tables) if tables else pd.DataFrame(columns=SCORE_TEXTS)

    def rows(self) -> pd.DataFrame:
        """The rows of scores.csv so far, task by task, in the order of the table of regimes; none
        where the test scans can judge nothing.
        """
        tables = []
        for task in NETWORK_OF:
            for key in self.titles:
                if (task, key) in self.of:
                    tables.append(self.of[task, key])
        rows = pd.concat(tables) if tables else pd.DataFrame(columns=SCORE_TEXTS)
        absent = [name for name in SCORE_NUMBERS if name not in rows]
        return rows.assign(**dict.fromkeys(absent, float("nan")))

    def shown(self) -> str:
        """Dice in percent so far, mean (SD) over subjects: titles down, tasks across."""
        tasks = list(NETWORK_OF) if self.pairs else ["segmentation"]
        cells: dict[str, dict[str, str]] = {}
        for key, title in self.titles.items():
            for task in tasks:
                if (task, key) in self.of:
                    percent = 100 * per_subject(self.of[task, key])
                    spread = f" ({percent.std():.1f})" if len(percent) > 1 else ""
                    row = cells.setdefault(title, dict.fromkeys(tasks, "-"))
                    row[task] = f"{percent.mean():.1f}{spread}"
        table = pd.DataFrame.from_dict(cells, orient="index")
        return table.rename_axis(columns="Dice % (SD)").to_string()


def _scores_of(key: str) -> str:
    """The file in a run folder that keeps the rows of the regime ``key``."""
    return f"{key}/scores.csv"


def _stay(moving: Scan, fixed: Scan) -> Deformation:
    return Deformation.identity(fixed.shape, device=fixed.image.device)


def _examples(
    trained: Mapping[str, Mapping[str, nn.Module]], cohort: Cohort, count: int = 3
) -> list[dict]:
    """What the figures show of the first test pairs: images, labels, guesses and displacements, as
    plain tensors; nothing where no pair of labelled test scans can be made.
    """
    integers = label_dtype(len(cohort.structures))
    tests = _with_labels(cohort.test)
    pairs = registration_pairs(tests, per_fixed=1) if _several_people(tests) else []
    examples = []
    for moving, fixed in pairs[:count]:
        example = {
            "moving": moving.image,
            "fixed": fixed.image,
            "moving_labels": moving.labels,
            "fixed_labels": fixed.labels,
            "name": f"{moving.id} to {fixed.id}",
        }
        for key in (BASELINES["seg"], JOINT):
            segment = models.segmenter(trained[key]["seg"])
            example[f"labels_{key}"] = segment(fixed).to(integers)
        for key in (BASELINES["reg"], JOINT):
            register = models.registrar(trained[key]["reg"])
            example[f"u_{key}"] = register(moving, fixed).displacement
        for key, value in example.items():
            if isinstance(value, Tensor):
                # its own memory: what was mapped from a file is a part of that file's
                example[key] = value.cpu().clone()
        examples.append(example)
    return examples
