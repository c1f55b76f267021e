"""What a run trains: each regime from its start to its checkpoint, or found where it was trained.

A checkpoint says what it is of: the data, the labels seen, the settings that count for this regime,
the networks that it starts from, and the code. By that a regime is found again, in its run's own
folder or in that of another run, so that runs which differ in one weight share their baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from . import locks, machine, models, training
from .checkpoints import link, read_checkpoint, read_csv, read_json, write_atomically, write_csv
from .data import Cohort, Scan
from .datasets.cohorts import load_cohort
from .distributed import ALONE, Ranks
from .errors import UserError
from .evaluation.cohorts import registration_pairs
from .evaluation.overlap import dice
from .parameters import Experiment
from .records import (
    check_checkpoint,
    file_problem,
    forget_hash,
    hash_of,
    keep_checkpoint,
    keep_hash,
    read_record,
    recorded_experiment,
    write_record,
)
from .regimes import Regime
from .run_names import method_hash
from .terms import TERMS, Weights
from .training import Settings, Validate

RUN_LOCK = "run.lock"  # in a run folder: which process trains and writes there
LOCKS = ".locks"  # beside the run folders: who trains what just now


class Trainings:
    """The regimes of a run in its folder: what each is, where it is found, and how it is trained.

    ``networks`` and ``histories`` hold those that have ended, by regime.
    """

    def __init__(
        self,
        experiment: Experiment,
        table: Mapping[str, Regime],
        cohort: Cohort,
        folder: Path,
        record: dict,
        lock: locks.Lock | None = None,
    ) -> None:
        self.lock = lock  # of the run, if this process holds it
        self.experiment = experiment
        self.table = table
        self.cohort = cohort
        self.folder = folder
        self.record = record
        self.some = some_labelled(cohort, experiment)
        self.steps = own_steps(experiment)
        self.networks: dict[str, dict[str, nn.Module]] = {}
        self.histories: dict[str, list[dict]] = {}
        self._code = method_hash()

    def waits_for(self, key: str) -> set[str]:
        """The regimes that ``key`` starts from."""
        return set(self.table[key].start.values())

    def path(self, key: str) -> Path:
        """The checkpoint of a regime."""
        return checkpoint_of(self.folder, key)

    def is_trained(self, key: str) -> bool:
        """Has this run trained ``key``, or taken it from another?"""
        return is_trained(self.record, self.folder, key)

    def untrained(self) -> dict[str, dict[str, int]]:
        """Steps of each regime that this run has not trained."""
        return {key: self.steps[key] for key in self.table if not self.is_trained(key)}

    def train(
        self,
        key: str,
        until: float | None = None,
        watch: Callable[[dict], None] | None = None,
        ranks: Ranks = ALONE,
        quiet: bool = False,
    ) -> None:
        """Train ``key``, or go on with it, or only load it where it has ended. What it starts from
        has ended; where others of the ``ranks`` begin, the first tells them. For the others see
        ``training.train``.
        """
        nets, seen, regime, settings = self.begun(key, starts=ranks.first)
        with self._fitted(key, nets, settings) as fitted:
            self.histories[key] = training.train(
                nets,
                seen,
                regime,
                replace(fitted, watch=watch, until=until, quiet=quiet, ranks=ranks),
                self.folder / key,
                _validator(self.cohort),
            )
        self.networks[key] = {name: nets[name].eval() for name in regime.trains}

    @contextmanager
    def _fitted(
        self, key: str, nets: Mapping[str, nn.Module], settings: Settings
    ) -> Iterator[Settings]:
        """Within, ``nets`` are fitted to the machine that trains ``key``. Gives the settings, which
        say whether memory is spared.
        """
        if self.is_trained(key):  # it is only loaded
            yield settings
            return
        shape, device = self.cohort.shape, self.cohort.device
        mixed = settings.mixed_precision
        pairs = {turn: settings.pairs_in(turn) for turn in self.table[key].trains}
        structures = len(self.cohort.structures)
        sparing = machine.must_spare(nets, shape, structures, pairs, mixed=mixed, device=device)
        wanted = self.experiment.compiled
        if not wanted:  # a compiler lays them out itself
            machine.lay_out(nets, shape, mixed=mixed, device=device)
        with machine.compiled(nets, device, wanted):
            yield replace(settings, sparing=sparing)

    def begun(
        self, key: str, *, starts: bool = True
    ) -> tuple[dict[str, nn.Module], Cohort, Regime, Settings]:
        """What ``key`` is trained from: its networks at the start, the scans that it sees, its row,
        and how. Without ``starts`` the networks are untrained.
        """
        regime = self.table[key]
        start = regime.start if starts else {}
        for source in {*start.values()} - self.networks.keys():
            self.train(source)  # only loads
        # last of all that draws random numbers: dropout goes on with them
        untrained = new_networks(self.experiment, len(self.cohort.structures))
        nets = {name: net.to(self.cohort.device) for name, net in untrained.items()}
        for name, source in start.items():
            nets[name].load_state_dict(self.networks[source][name].state_dict())
        return nets, self._seen(key), regime, self._settings(key)

    def forget(self, key: str) -> None:
        """Of a regime whose checkpoint is gone: nobody takes half of it for the whole."""
        if key in self.record["steps"]:
            _forget(self.record, key)
            write_record(self.record, self.folder)

    def keep(self, key: str) -> None:
        """Write down that ``key``, loaded or trained, has ended."""
        if self.is_trained(key):
            return
        steps = self.record["steps"] | {key: self.steps[key]}
        # in the order of the table, also if this regime was there before
        order = [name for name in self.experiment.table if name in steps]
        self.record["steps"] = {name: steps[name] for name in order}
        self.record["seconds"][key] = round(self.histories[key][-1]["seconds"], 1)
        keep_checkpoint(self.record, key, self.identity(key))
        self.keep_history()

    def keep_history(self) -> None:
        """Write history.csv with the rows of all regimes trained so far, and the record with its
        hash.

        Rows that were not loaded are in the file; if it is damaged, in the checkpoints.
        """
        path = self.folder / "history.csv"
        before = None
        elsewhere = self.record["steps"].keys() - self.histories.keys()
        if elsewhere and file_problem(self.record, self.folder, "history.csv") is None:
            before = read_csv(path, ("turn", "regime"), ("regime",))
        tables = []
        for key in list(self.record["steps"]):
            if key in self.histories:
                rows = pd.DataFrame(self.histories[key]).assign(regime=key)
            elif before is not None:
                rows = before[before["regime"] == key]
            elif self.is_trained(key):
                checkpoint = read_checkpoint(self.path(key))
                check_checkpoint(self.record, key, checkpoint, self.path(key))
                rows = pd.DataFrame(checkpoint["history"]).assign(regime=key)
            else:  # its checkpoint is gone, too
                _forget(self.record, key)
                continue
            tables.append(rows)
        write_csv(pd.concat(tables), path)
        keep_hash(self.record, self.folder, "history.csv")
        write_record(self.record, self.folder)

    # --- what a training is, and where else it may be found ---------------------------------------

    def identity(self, key: str) -> dict[str, str]:
        """What the checkpoint of ``key`` says that it is of."""
        return training.identity(self._seen(key), self.table[key], self._settings(key))

    def _seen(self, key: str) -> Cohort:
        return self.cohort if self.table[key].all_labels else self.some

    def _settings(self, key: str) -> Settings:
        mixed = self.record["mixed_precision"]
        settings = _settings(self.experiment, self.table[key], self.steps[key], mixed)
        return replace(settings, run=self._origin(key))

    def _origin(self, key: str) -> str:
        """A hash of what a training begins with, beside its settings: the code, the scans that are
        trained on and that decide which weights are kept, how they were prepared, the networks, and
        their starts.
        """
        e = self.experiment
        scans = [
            (part, scan.id, scan.subject, scan.labels is not None)
            for part in ("train", "validation")
            for scan in getattr(self.cohort, part)
        ]
        prepared = (e.entry.identity(), e.profile)
        looks = (e.velocity, e.passes, e.coarse_passes)
        networks = (e.networks, e.dims, *looks, e.seed, self.cohort.structures)
        starts = {
            name: hash_of(self.identity(source))
            for name, source in sorted(self.table[key].start.items())
        }
        said = (self._code, self.cohort.fingerprint, scans, prepared, networks, starts)
        return hash_of(repr(said))[:16]

    def lock_of(self, key: str) -> locks.Lock:
        """Held by whoever trains what ``key`` is, in whatever run."""
        name = hash_of(self.identity(key))[:16]
        return locks.Lock(self.folder.parent / LOCKS / f"{name}.lock")

    def take_from_elsewhere(self, key: str) -> Path | None:
        """Find ``key`` in another run, and make its checkpoint this run's, too; where it was."""
        if self.path(key).is_file() and self._has_ended(self.path(key), key):
            return self.folder
        wanted = hash_of(self.identity(key))
        for record in sorted(self.folder.parent.glob("*/run.json")):
            if record.parent == self.folder:
                continue
            for name in _checkpoints_of(record, wanted):
                found = checkpoint_of(record.parent, name)
                if self._has_ended(found, key):
                    write_atomically(self.path(key), partial(link, found))
                    self.record.setdefault("found_in", {})[key] = record.parent.name
                    return record.parent
        return None

    def _has_ended(self, path: Path, key: str) -> bool:
        """Is the file a whole checkpoint of ``key``, trained to its end?"""
        try:
            state = read_checkpoint(path)
        except (UserError, OSError):  # damaged, or removed meanwhile: it is trained here
            return False
        return state["of"] == self.identity(key) and state["turns"] == self.steps[key]


def go_on(folder: Path, device: str) -> Trainings:
    """What the run in ``folder`` trains, for a process that trains for the one that holds it."""
    record = read_record(folder)
    experiment = recorded_experiment(record)
    cohort = load_cohort_of(experiment).to(torch.device(device))
    return Trainings(experiment, experiment.table, cohort, folder, record)


def load_cohort_of(experiment: Experiment) -> Cohort:
    """The cohort of an experiment, prepared on its grid, on the CPU."""
    return load_cohort(
        experiment.entry, profile=experiment.profile, dims=experiment.dims, seed=experiment.seed
    )


def _checkpoints_of(record: Path, wanted: str) -> list[str]:
    """The regimes of another run whose checkpoints are of what is ``wanted``, by its record.

    It is opened each time: the time of a file of another machine may be known from before.
    """
    try:
        kept = read_json(record).get("checkpoints") or {}
        return [name for name, identity in kept.items() if identity == wanted]
    except (UserError, OSError, AttributeError):  # damaged, or removed meanwhile
        return []


def checkpoint_of(folder: Path, key: str) -> Path:
    """Where the run in ``folder`` keeps the checkpoint of the regime ``key``."""
    return folder / key / "checkpoint.pt"


def is_trained(record: Mapping, folder: Path, key: str) -> bool:
    """Has the run in ``folder`` trained the regime ``key``?"""
    return key in record["steps"] and checkpoint_of(folder, key).is_file()


def scores_of(key: str) -> str:
    """The file in a run folder that keeps the rows of the regime ``key``."""
    return f"{key}/scores.csv"


def _forget(record: dict, key: str) -> None:
    """As if the regime had never been trained, nor scored."""
    del record["steps"][key]
    record.get("found_in", {}).pop(key, None)
    forget_hash(record, scores_of(key))
    record["finished"] = False


# --- what a regime is of an experiment ------------------------------------------------------------


def own_steps(experiment: Experiment) -> dict[str, dict[str, int]]:
    """Steps of each network in each regime: see ``regimes.LENGTHS``."""
    baseline = {"seg": experiment.seg_steps, "reg": experiment.reg_steps}
    joint = experiment.joint
    whole = {name: baseline[name] + joint[name] for name in baseline}
    lengths = {"baseline": baseline, "joint": joint, "whole": whole}
    own = {}
    for key, regime in experiment.table.items():
        own[key] = {name: lengths[regime.length][name] for name in regime.trains}
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
        coarse_passes=experiment.coarse_passes,
    )


def some_labelled(cohort: Cohort, experiment: Experiment) -> Cohort:
    """The cohort as the semi-supervised regimes see it: N labelled training scans, and some
    unlabelled ones.
    """
    some = cohort.hide_labels(experiment.labelled, experiment.label_seed)
    others = [scan for scan in some.train if scan.labels is None][: experiment.unlabelled]
    return replace(some, train=some.labelled + tuple(others))


def _settings(
    experiment: Experiment, regime: Regime, steps: Mapping[str, int], mixed_precision: bool
) -> Settings:
    """How a regime of this experiment is trained; what does not count for it is left as it is by
    default, so that experiments which differ in that alone share it.
    """
    e = experiment
    seg, reg = ("seg" in regime.trains), ("reg" in regime.trains)
    counting: dict[str, Any] = {}
    if reg:
        counting |= {"similarity": e.similarity, "batch_size": e.batch_size}
    if seg:
        counting["seg_batch_size"] = e.seg_batch_size
    if seg and regime.consults:
        counting["options"] = {"sampled_warps": e.sampled_warps, "fourth_case": e.fourth_case}
    if seg and reg:
        counting["teacher"] = e.teacher
    weighty = weights(experiment, regime)
    for name, term in TERMS.items():
        asked = (term.reg, term.seg) if reg and seg else (term.reg if reg else term.seg,)
        if not any(asked):
            weighty[name] = 0.0
    if not reg and not regime.consults:
        weighty["anatomy"] = 0.0  # nothing is compared
    return Settings(
        steps,
        weighty,
        learning_rates={name: e.rates[name] for name in regime.trains},
        keep=e.keep,
        augmentation=e.augmentation,
        mixed_precision=mixed_precision,
        seed=e.seed,
        **counting,
    )


def weights(experiment: Experiment, regime: Regime) -> Weights:
    """The weight of each loss term: by its parameter, by ``term_weights``, or as in its row."""
    given = dict(experiment.term_weights)
    for name, term in TERMS.items():
        if term.parameter is not None:
            given[name] = getattr(experiment, term.parameter)
    given["anatomy"] = getattr(experiment, regime.anatomy_weight)
    return Weights(**given)


def _validator(cohort: Cohort) -> Validate:
    """A function networks -> mean Dice of each on the labelled validation scans, from 0 to 1; the
    same for every regime. NaN where there are none to compare.
    """
    scans = with_labels(cohort.validation)
    pairs = registration_pairs(scans, per_fixed=2) if several_people(scans) else []

    def segmented(seg_net: nn.Module) -> list[tuple[Tensor, Scan]]:
        segment = models.segmenter(seg_net)
        return [(segment(scan), scan) for scan in scans]

    def registered(reg_net: nn.Module) -> list[tuple[Tensor, Scan]]:
        register = models.registrar(reg_net)
        found = []
        for moving, fixed in pairs:
            warped = register(moving, fixed).warp_labels(moving.known_labels[None])[0]
            found.append((warped, fixed))
        return found

    results_of = {"seg": segmented, "reg": registered}

    def validate(networks: Mapping[str, nn.Module]) -> dict[str, float]:
        scores = {}
        for name, network in networks.items():
            found: list[float] = []
            for labels, scan in results_of[name](network):
                found += dice(labels, scan.known_labels, cohort.structures).values()
            scores[name] = float(np.nanmean(found)) if found else float("nan")
        return scores

    return validate


def with_labels(scans: Sequence[Scan]) -> list[Scan]:
    """Those of the scans that have labels."""
    return [scan for scan in scans if scan.labels is not None]


def several_people(scans: Sequence[Scan]) -> bool:
    """Can a pair be made of the scans?"""
    return len({scan.subject for scan in scans}) > 1
