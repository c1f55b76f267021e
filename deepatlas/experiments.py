"""Experiments: a run folder that can be interrupted and is never repeated.

``run`` trains and scores in plain Python, regime by regime: a table on the screen grows as they
end. What it wrote is read by ``reporting.py``.

The parameter ``keep`` says which weights of a network are kept, by one rule for all regimes: those
at the "last" step, or the "best" on validation scans with labels. Without such scans the last
weights are kept; of a registration network, too, where all of them are of one person, of whom no
pair can be made. Test scans without labels are not scored, and registration is not where they are
of one person: the run trains to its end, and says so.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import distributed, locks, machine, models, registration, tracking
from .checkpoints import (
    Interrupted,
    load_weights,
    read_checkpoint,
    read_csv,
    remove_left_parts,
    stop_requests,
    write_csv,
    write_tensors,
)
from .data import Cohort, Scan, label_dtype
from .datasets.entries import Entry
from .distributed import Ranks
from .errors import UserError
from .evaluation.cohorts import (
    per_subject,
    registration_pairs,
    score_registration,
    score_segmentation,
)
from .parameters import Experiment, parse
from .places import LESSON_WEIGHTS, runs_folder
from .records import (
    ALONE,
    as_written,
    check_checkpoint,
    file_problem,
    is_of,
    keep_hash,
    notes,
    provenance,
    read_record,
    recorded_experiment,
    write_record,
)
from .regimes import (
    BASELINES,
    IDENTITY,
    JOINT,
    JOINT_PROPAGATION,
    NETWORK_OF,
    PROPAGATION,
    REFERENCES,
    REFINED,
    TAUGHT,
    TITLES,
    needed,
)
from .side_by_side import Call, train_all
from .terms import SIMILARITIES
from .trainings import (
    RUN_LOCK,
    Trainings,
    checkpoint_of,
    go_on,
    is_trained,
    load_cohort_of,
    new_networks,
    scores_of,
    several_people,
    some_labelled,
    with_labels,
)
from .warp import Deformation

FILES = ("scores.csv", "examples.pt", "history.csv")  # that a run makes, beside its checkpoints
REFERENCE = "reference.pt"  # the scan that all were aligned to, and a new one will be

# The regime whose registration carries the labels of the atlases -> the key of its rows.
PROPAGATIONS = {BASELINES["reg"]: PROPAGATION, JOINT: JOINT_PROPAGATION}

# Columns of scores.csv: texts, and numbers that are there even where no registration was scored.
SCORE_TEXTS = ("task", "regime", "case", "subject", "structure")
SCORE_NUMBERS = ("dice", "nsd", "hd95_mm", "folds_percent", "endpoint_voxels")

# --- a run ----------------------------------------------------------------------------------------


def run(
    experiment: Experiment,
    root: Path | None = None,
    *,
    until: float | None = None,
    workers: int | None = 1,
    log: Sequence[str] = (),
    ranks: Ranks = distributed.ALONE,
) -> Path:
    """Train every regime, score each on the test scans as it ends, and return the run folder; a
    finished run is only found again.

    An interrupted run goes on where it was. Of a finished one, what is missing or damaged is made
    again from the trained networks, and a regime whose checkpoint is gone is trained again. A
    regime that another run in ``root`` has trained, from the same start in the same way, is that
    one's.

    ``until``: when to stop, saved, on the clock of ``time.monotonic``. ``workers``: how many
    processes train regimes side by side; None: as many as pay on this machine. They know nothing of
    terms or networks that were added to a table in this process. ``log``: of ``tracking.TRACKERS``.
    ``ranks``: processes that ``follow``, and train each regime together with this one.
    Raises OutOfTime, Interrupted, and Held where another process trains this run.
    """
    folder = Path(root or runs_folder()) / experiment.name
    if not _lost(experiment, folder):
        print(f"finished before, its scans were not read again: {folder}")
        if _told_otherwise(experiment, folder) is not None:
            # it may be a folder that cannot be written, or another process's just now
            with suppress(OSError, locks.Held), locks.Lock(folder / RUN_LOCK):
                _write_what_is_told(experiment, folder)
        tracking.catch_up(log, folder)
        return folder
    device = _device(experiment, folder)  # an error before anything is written
    with locks.Lock(folder / RUN_LOCK) as lock:
        _write_what_is_told(experiment, folder)
        lost = _lost(experiment, folder)
        _say_what_is_lost(experiment, folder, lost)
        cohort, _, record = begun = _begin(experiment, folder, device)
        for note in notes(record):
            print(f"{cohort.name}: {note}")
        trainings = Trainings(experiment, experiment.table, *begun, lock)
        scores = Scores(experiment, cohort, folder, record)
        ended = scores.add if "scores.csv" in lost else None
        peak = train_all(trainings, ended, Call(until, workers, tuple(log), ranks))
        if "scores.csv" in lost:
            write_csv(scores.rows(), folder / "scores.csv")
            keep_hash(record, folder, "scores.csv")
        if "examples.pt" in lost:
            write_tensors(_examples(trainings.networks, cohort), folder / "examples.pt")
            keep_hash(record, folder, "examples.pt")
        if "peak_memory_gib" not in record:  # that of the training, not of a repair
            record["peak_memory_gib"] = peak
        record["finished"] = True
        write_record(record, folder)
    return folder


def is_finished(experiment: Experiment, folder: Path) -> bool:
    """Is nothing left to be done of the run in its ``folder``?"""
    return not _lost(experiment, folder)


def _lost(experiment: Experiment, folder: Path) -> list[str]:
    """Files of the run that are still to be made: of a finished run, what is missing or damaged."""
    record = _record_of(experiment, folder)
    if record is None or not record["finished"] or _untrained(experiment, folder, record):
        return list(FILES)
    return [name for name in FILES if file_problem(record, folder, name)]


def _untrained(experiment: Experiment, folder: Path, record: Mapping) -> list[str]:
    return [key for key in experiment.table if not is_trained(record, folder, key)]


def _say_what_is_lost(experiment: Experiment, folder: Path, lost: Sequence[str]) -> None:
    record = _record_of(experiment, folder)
    if record is None or not record["finished"]:
        return
    untrained = _untrained(experiment, folder, record)
    damaged = [name for name in lost if file_problem(record, folder, name)]
    if damaged:
        print(f"{folder}: {' and '.join(damaged)} missing or damaged, and made again")
    if untrained:
        print(f"{folder}: no checkpoint of {' and '.join(untrained)}, so trained and scored again")


# Of the lessons' trainings at class size: fewer than usual, so that nobody waits for a lesson.
LESSON_STEPS = {"seg_steps": 300, "reg_steps": 240}


def of_lessons(**parameters: object) -> Experiment:
    """What lessons train, and find where another one has trained it: slices, one labelled scan,
    and what ``parameters`` say otherwise.
    """
    steps = LESSON_STEPS if parameters.get("profile", "class") == "class" else {}
    return parse({"dims": 2, "labelled": 1, **steps, **parameters})


def train_or_load(
    experiment: Experiment, *keys: str, root: Path | None = None, workers: int | None = 1
) -> dict[str, dict[str, nn.Module]]:
    """The networks of the regimes ``keys``, and of those that they start from: {regime: {"seg":
    ..., "reg": ...}}.

    They are ready to use on the CPU, wherever they were trained. What the experiment's run folder
    holds is loaded, what it lacks is trained there; it is printed which. The folder's name has the
    hash of the parameters and of the code, its record that of the data, so that nothing old is
    found. Where another process trains in this folder, this one waits for it. ``workers``: how many
    processes train side by side, None: as many as pay; by default it is done here, where a notebook
    may have added a term of its own.
    """
    folder = Path(root or runs_folder()) / experiment.name
    table = needed(experiment.table, *keys)
    device = _device(experiment, folder)
    record = _record_of(experiment, folder)
    lock = None
    with ExitStack() as stack:
        # if it is only read, the folder may be one that cannot be written
        if not record or not all(is_trained(record, folder, key) for key in table):
            lock = locks.Lock(folder / RUN_LOCK)
            with stop_requests() as stopped:
                if not lock.wait(poll=1.0, stopped=lambda: bool(stopped)):
                    raise Interrupted(f"{folder}: stopped while another process trains in it")
            stack.callback(lock.release)
            _write_what_is_told(experiment, folder)
        trainings = Trainings(experiment, table, *_begin(experiment, folder, device), lock)
        train_all(trainings, call=Call(workers=workers))
    return {
        key: {name: net.cpu() for name, net in nets.items()}
        for key, nets in trainings.networks.items()
    }


def ready_made(experiment: Experiment, *keys: str) -> dict[str, dict[str, nn.Module]]:
    """As ``train_or_load``, in as many processes as pay; but the networks that come with the kit
    are loaded, and nothing is trained, where they are of this experiment.

    These are the lessons' own (``of_lessons``), in half precision. `deepatlas weights --lessons`
    trains them again.
    """
    table = needed(experiment.table, *keys)
    found = {}
    for key in table:
        path = LESSON_WEIGHTS / f"{key}.pt"
        if path.is_file():
            nets, parameters = models.load(path)
            if parse(parameters) == experiment:
                found[key] = nets
    if found.keys() != table.keys():
        return train_or_load(experiment, *keys, workers=None)
    for key, regime in table.items():
        print(f"{regime.title} ({key}): comes with the kit")
    return found


def keep_ready_made() -> list[Path]:
    """Train, or find, what ``ready_made`` loads, and write it; returns the files."""
    experiment = of_lessons()
    trained = train_or_load(experiment, *TAUGHT, workers=None)
    record = read_record(runs_folder() / experiment.name)
    paths = []
    for key, nets in trained.items():
        paths.append(LESSON_WEIGHTS / f"{key}.pt")
        models.keep(nets, record, paths[-1])
    return paths


def follow(ranks: Ranks) -> None:
    """Train, together with the process that holds the run, each regime that it names."""
    trainings: dict[str, Trainings] = {}
    while (said := ranks.hear()) is not None:
        folder = said["folder"]
        if folder not in trainings:
            trainings[folder] = go_on(Path(folder), said["device"])
        trainings[folder].train(said["key"], ranks=ranks)


def _begin(experiment: Experiment, folder: Path, device: torch.device) -> tuple[Cohort, Path, dict]:
    """The cohort of a run on its device, the folder, and the record, begun or gone on with."""
    record = _record_of(experiment, folder)
    for place in (folder, *folder.glob("*/")):
        remove_left_parts(place)
    cohort = load_cohort_of(experiment)
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
    return cohort.to(device), folder, record


def _device(experiment: Experiment, folder: Path) -> torch.device:
    """Where the run trains: where it was begun, if nobody says otherwise and it can be done."""
    record = _record_of(experiment, folder)
    if record is None or experiment.device != "auto":
        return torch.device(machine.pick_device(experiment.device))
    begun = record["device"]
    problem = machine.step_problem(begun)
    if problem is None:
        return torch.device(begun)
    device = machine.pick_device()
    print(f"{folder}: begun on {begun}, which cannot train here ({problem}): goes on on {device}")
    return torch.device(device)


def _record_of(experiment: Experiment, folder: Path) -> dict | None:
    """The record of the run in its ``folder``, None before it is begun; UserError if it is another
    run's. It says where the scans are now, and what is said of them, also if the file does not yet.
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
    return record


def _told_otherwise(experiment: Experiment, folder: Path) -> dict | None:
    """The run's record, if its file says other words of the scans, or another place."""
    record = _record_of(experiment, folder)
    return None if record is None or record == read_record(folder) else record


def _write_what_is_told(experiment: Experiment, folder: Path) -> None:
    """Let the file of the run's record say it, too; the run's lock is held."""
    record = _told_otherwise(experiment, folder)
    if record is not None:
        write_record(record, folder)


def _new_record(experiment: Experiment, cohort: Cohort, device: torch.device) -> dict:
    if experiment.precision == "auto":
        mixed = machine.bfloat16_pays(device, cohort.shape)
    else:
        mixed = experiment.precision == "bfloat16"
    validation = with_labels(cohort.validation)
    several = several_people(validation)
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
        "provenance": provenance(),
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


def _scored_tasks(cohort: Cohort) -> list[str]:
    """The tasks that the test scans can judge: labels are compared, and pairs are of two people."""
    labelled = with_labels(cohort.test)
    if not labelled:
        return []
    return ["segmentation", "registration"] if several_people(labelled) else ["segmentation"]


def load_networks(folder: Path, regime: str) -> dict[str, nn.Module]:
    """The networks {"seg": ..., "reg": ...} that ``regime`` trained in the run ``folder``, ready to
    use on the CPU.
    """
    record = read_record(folder)
    path = checkpoint_of(Path(folder), regime)
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


# --- scores of a run ------------------------------------------------------------------------------


class Scores:
    """The test scans judged as regimes end: rows in the run folder, and a table on the screen.

    The rows of a regime are kept beside its checkpoint, so that a run that goes on scores only what
    it has not scored.
    """

    def __init__(self, experiment: Experiment, cohort: Cohort, folder: Path, record: dict) -> None:
        self.experiment = experiment
        self.folder = folder
        self.record = record
        self.table = experiment.table
        self.titles = {key: title for key, (title, _) in REFERENCES.items()}
        self.titles |= {key: regime.title for key, regime in self.table.items()}
        self.titles |= {key: TITLES[key] for key in REFINED.values()}
        self.seg_nets: dict[str, nn.Module] = {}  # of the regimes that have ended, who may teach
        self.atlases = some_labelled(cohort, experiment).labelled
        self.tests = with_labels(cohort.test)
        self.pairs: list[tuple[Scan, Scan]] = []
        if several_people(self.tests):
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
        if "seg" in nets:
            self.seg_nets[key] = nets["seg"]
        name = scores_of(key)
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
        baseline, or beside the regime whose registration carries the labels.
        """
        segmentations: dict[str, Callable[[Scan], Tensor]] = {}
        registrations: dict[str, Callable[[Scan, Scan], Deformation]] = {}
        if key in PROPAGATIONS:
            segmentations[PROPAGATIONS[key]] = partial(
                registration.propagate_labels, models.registrar(nets["reg"]), self.atlases
            )
        if key == BASELINES["reg"]:
            registrations[IDENTITY] = _stay
        if "seg" in nets:
            segmentations[key] = models.segmenter(nets["seg"])
        if "reg" in nets:
            registrations[key] = models.registrar(nets["reg"])
        if key in REFINED and self.experiment.refine:
            registrations[REFINED[key]] = self._refiner(key, nets["reg"])
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

    def _refiner(self, key: str, reg_net: nn.Module) -> Callable[[Scan, Scan], Deformation]:
        """A pair is registered by ``reg_net``, then refined by the loss that trained it: similarity
        and regularity, and the anatomy that the regime's segmentation network guesses, if it has
        one. No label of a test scan is looked at.
        """
        e, regime = self.experiment, self.table[key]
        similarity = SIMILARITIES[e.similarity]
        seg_net = None
        if regime.consults:
            seg_net = self.seg_nets[key if "seg" in regime.trains else regime.start["seg"]]
        register = models.registrar(reg_net)

        def refined(moving: Scan, fixed: Scan) -> Deformation:
            images = moving.image[None], fixed.image[None]
            guesses = None
            if seg_net is not None:
                with torch.no_grad():
                    s_moving, s_fixed = (models.probabilities(seg_net, x) for x in images)
                guesses = (s_moving, s_fixed)
            loss = registration.pair_loss(
                *images,
                similarity=similarity,
                regularity=e.lambda_r,
                anatomy=e.lambda_a,
                probabilities=guesses,
            )
            return registration.refine_pair(register(moving, fixed), loss, e.refine)

        return refined

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


def _stay(moving: Scan, fixed: Scan) -> Deformation:
    return Deformation.identity(fixed.shape, device=fixed.image.device)


def _examples(
    trained: Mapping[str, Mapping[str, nn.Module]], cohort: Cohort, count: int = 3
) -> list[dict]:
    """What the figures show of the first test pairs: images, labels, guesses and displacements, as
    plain tensors; nothing where no pair of labelled test scans can be made.
    """
    integers = label_dtype(len(cohort.structures))
    tests = with_labels(cohort.test)
    pairs = registration_pairs(tests, per_fixed=1) if several_people(tests) else []
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
