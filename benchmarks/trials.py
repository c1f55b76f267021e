"""Trials that choose a recipe: every setting of a sweep, on scans that no claim is tested on.

    python benchmarks/trials.py tutorials_data/results/trials/recipe.toml

trains the regimes of each run, as `deepatlas sweep` does, but scores them on validation scans; of
a phantom, whose seeds share no subject, on its test scans, too. Seeds must be 100 or above, which
the protocol reports nothing of. Appends a row for each regime to the CSV file of the same name, and
leaves out what stands there already.
"""

import argparse
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from deepatlas import experiments, models, sweeps
from deepatlas.checkpoints import write_csv
from deepatlas.errors import UserError
from deepatlas.evaluation.cohorts import (
    per_subject,
    registration_pairs,
    score_registration,
    score_segmentation,
)
from deepatlas.sweeps.collect import changed
from deepatlas.trainings import load_cohort_of, own_steps, with_labels

import pandas as pd

FIRST_SEED = 100


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="a TOML file of [[sweep]] tables")
    parser.add_argument("--root", type=Path, help="of the run folders; by default the usual one")
    options = parser.parse_args()
    target = options.sweep.with_suffix(".csv")
    planned = sweeps.read_sweep(options.sweep)
    if early := [experiment.seed for experiment in planned if experiment.seed < FIRST_SEED]:
        sys.exit(f"{options.sweep}: seeds of trials are {FIRST_SEED} or above, got {min(early)}")
    for number, experiment in enumerate(planned, 1):
        done = pd.read_csv(target, keep_default_na=False) if target.is_file() else pd.DataFrame()
        said = about(experiment)
        if len(done) and (done[list(said)].astype(str) == pd.Series(said).astype(str)).all(1).any():
            continue
        print(f"{number} of {len(planned)}: {said}", flush=True)
        try:
            rows = trial(experiment, options.root)
        except (UserError, FloatingPointError) as error:
            sys.exit(f"{options.sweep}: {said}: {error}")
        write_csv(pd.concat([done, rows]), target)


def about(experiment):
    """What tells a trial from others."""
    return {
        "dataset": experiment.entry.name,
        "dims": experiment.dims,
        "labelled": experiment.labelled,
        "seed": experiment.seed,
        "recipe": experiment.recipe,
        "changed": changed(experiment),
    }


def trial(experiment, root=None):
    """The rows of one run."""
    trained = experiments.train_or_load(experiment, *experiment.table, root=root)
    cohort = load_cohort_of(experiment)
    if cohort.truth is not None:
        cohort = replace(cohort, truth=cache(cohort.truth))
    scans = with_labels(cohort.validation)
    if cohort.truth is not None:
        scans += with_labels(cohort.test)
    pairs = registration_pairs(scans, per_fixed=3, seed=experiment.seed)
    steps = own_steps(experiment)
    rows = []
    for regime, networks in trained.items():
        tables = {}
        if "seg" in networks:
            segment = models.segmenter(networks["seg"])
            tables["segmentation"] = score_segmentation(segment, cohort, scans)
        if "reg" in networks:
            register = models.registrar(networks["reg"])
            tables["registration"] = score_registration(register, cohort, pairs)
        for task, table in tables.items():
            row = {**about(experiment), "regime": regime, "task": task}
            row["steps"] = sum(steps[regime].values())
            row["Dice %"] = round(100 * per_subject(table).mean(), 2)
            if task == "registration":
                of_pairs = table.groupby("case").first()
                row["folds %"] = round(of_pairs["folds_percent"].mean(), 3)
                for name in ("endpoint_voxels", "endpoint_boundary_voxels"):
                    row[name] = round(of_pairs[name].mean(), 3)
            rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
