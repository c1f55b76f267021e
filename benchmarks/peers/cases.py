"""The scans and pairs of an experiment, as its regimes are scored on them, and a rival scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

from deepatlas import machine
from deepatlas.data import Cohort, Scan
from deepatlas.errors import UserError
from deepatlas.evaluation.cohorts import (
    per_subject,
    registration_pairs,
    score_registration,
    score_segmentation,
)
from deepatlas.parameters import Experiment
from deepatlas.trainings import load_cohort_of, several_people, some_labelled, with_labels

import pandas as pd
import torch
from tqdm import tqdm

from .rows import Run, as_text
from .table import Rival, Seen, Settings

PARTS = ("test", "validation")
# of score_registration and score_segmentation, as the mean of each subject: column -> metric
METRICS = {
    "dice": ("dice", 100),  # in percent, as in subjects.csv
    "nsd": ("nsd", 100),
    "folds_percent": ("folds_percent", 1),
    "endpoint_voxels": ("endpoint_voxels", 1),
    "endpoint_boundary_voxels": ("endpoint_boundary_voxels", 1),
}


@dataclass(frozen=True)
class Cases:
    """An experiment's cohort, and the scans and pairs of one part of it that are scored."""

    experiment: Experiment
    part: str
    cohort: Cohort
    scans: list[Scan]
    pairs: list[tuple[Scan, Scan]]

    @classmethod
    def of(cls, experiment: Experiment, part: str = "test") -> Cases:
        """Those of the ``part``, drawn as ``experiments.Scores`` draws them."""
        cohort = load_cohort_of(experiment)
        scans = with_labels(getattr(cohort, part))
        if not several_people(scans):
            raise UserError(
                f"{cohort.name}: {part} scans of at least two people, with labels, were wanted, "
                f"got {len(scans)} scans"
            )
        pairs = registration_pairs(scans, per_fixed=3, seed=experiment.seed)
        return cls(experiment, part, cohort, scans, pairs)

    def seen_by(self, rival: Rival) -> Seen:
        """What the rival may see: the N labelled scans of the experiment, all, or none."""
        if rival.sees == "none":
            labelled = ()
        elif rival.sees == "all":
            labelled = self.cohort.labelled
        else:
            labelled = some_labelled(self.cohort, self.experiment).labelled
        device = machine.pick_device(self.experiment.device) if rival.trains else "cpu"
        return Seen(labelled, len(self.cohort.structures), self.experiment.seed, device)


def run_of(name: str, rival: Rival, experiment: Experiment, part: str) -> Run:
    """What the rows of a rival are told apart by.

    A rival that sees no label has N = 0, and one that sees all as many as there are: for both it
    does not matter which scans the experiment has labels of.
    """
    most = experiment.entry.labelled_at_most(experiment.profile)
    some = rival.sees == "some"
    return Run(
        regime=name,
        dataset=experiment.entry.name,
        profile=experiment.profile,
        dims=experiment.dims,
        labelled={"none": 0, "some": experiment.labelled, "all": most}[rival.sees],
        seed=experiment.seed,
        label_seed=experiment.label_seed if some else experiment.seed,
        part=part,
    )


class Watch:
    """``function``, each call of which is timed, and moves a progress bar on."""

    def __init__(self, function: Callable, bar: tqdm) -> None:
        self.function = function
        self.bar = bar
        self.seconds: list[float] = []  # of the processor, this process, all its threads

    def __call__(self, *scans: Scan):
        """What ``function`` says of the scans."""
        begun = time.process_time()
        found = self.function(*scans)
        self.seconds.append(time.process_time() - begun)
        self.bar.update()
        return found


def scored(
    name: str,
    rival: Rival,
    settings: Settings,
    cases: Cases,
    pairs: Sequence[tuple[Scan, Scan]] | None = None,
) -> pd.DataFrame:
    """A row for each subject: task, regime, subject, ``METRICS``, seconds, and what is the same for
    all: the settings, the version of the package, seconds of training, the device.

    ``seconds``: of the processor, for a pair or a scan, the median over those of the subject; NaN
    where a GPU does the work.
    ``pairs``: those to score in place of all.
    """
    pairs = cases.pairs if pairs is None else pairs
    torch.set_num_threads(1)
    seen = cases.seen_by(rival)
    begun = time.process_time()
    made = rival.make(settings, seen)
    training = time.process_time() - begun

    registers = rival.task == "registration"
    total = len(pairs) if registers else len(cases.scans)
    unit = "pair" if registers else "scan"
    with tqdm(total=total, desc=name, unit=unit, leave=False) as bar:
        watch = Watch(made, bar)
        if registers:
            scores = score_registration(watch, cases.cohort, pairs)
        else:
            scores = score_segmentation(watch, cases.cohort, cases.scans)
    table = _of_subjects(scores, watch.seconds).assign(
        regime=name,
        task=rival.task,
        training_seconds=training if rival.trains else float("nan"),
        settings=as_text(settings),
        program=_program(rival),
        processor=machine.device_name(seen.device),
    )
    if seen.device != "cpu":
        table[["seconds", "training_seconds"]] = float("nan")
    return table


def _of_subjects(scores: pd.DataFrame, seconds: Sequence[float]) -> pd.DataFrame:
    """The means of each subject, one row each, and the median of the seconds of its cases."""
    columns = {}
    for column, (metric, factor) in METRICS.items():
        if metric in scores:
            columns[column] = factor * per_subject(scores, metric)
    table = pd.DataFrame(columns)
    cases = scores.drop_duplicates("case")  # in the order in which they were timed
    timed = pd.Series(list(seconds), index=cases["subject"].to_list())
    table["seconds"] = timed.groupby(level=0).median()
    return table.rename_axis("subject").reset_index()


def _program(rival: Rival) -> str:
    """The package and its version."""
    package = rival.package or "deepatlas"
    return f"{package} {metadata.version(package)}"
