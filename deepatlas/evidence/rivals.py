"""Rows of rivals, which ``benchmarks/peers`` scores on the test scans and pairs of a run, as if
they were regimes of that run.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..checkpoints import read_csv
from ..regimes import REFINED

FILE = "rivals.csv"  # beside the tables of results
ALL_LABELS = "dynunet_full"
# Key in the rows -> title. What is tried and how stands in benchmarks/peers/table.py.
REGISTRATIONS = {
    "ants_mi": "SyN of ANTs, mutual information",
    "ants_cc": "SyN of ANTs, cross-correlation",
    "sitk_bspline": "B-splines of SimpleITK",
    "optimise": "Each pair by itself, from coarse to fine",
}
SEGMENTATIONS = {
    "ants_propagation": "Label propagation by SyN",
    "ants_jlf": "Joint label fusion by SyN",
    "dynunet": "DynUNet of MONAI",
    ALL_LABELS: "DynUNet of MONAI, full supervision",
}
TITLES = REGISTRATIONS | SEGMENTATIONS
# Registrations that are sought for each pair by itself: slower than a network's answer.
OF_EACH_PAIR = (*REFINED.values(), *REGISTRATIONS)

COHORT = ["dataset", "profile", "dims", "seed"]
TEXT = ("run", "task", "regime", "subject", "dataset", "profile", "part", "settings", "program")
SCORES = ["dice", "endpoint_voxels", "endpoint_boundary_voxels"]


def rows_of_rivals(results: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """One row per rival, subject and run of ``runs`` (a row per run, with its parameters) of the
    same cohort and seed: what each saw of the labels is what the run's regimes saw.

    Of runs that change nothing of the recipe. UserError if the file is damaged; no rows if there is
    none.
    """
    path = results / FILE
    kept = ["task", "regime", "subject", *SCORES]
    if not path.is_file():
        return pd.DataFrame(columns=[*kept, *runs.columns])
    said = ("labelled", "label_seed")
    rows = read_csv(path, TEXT, [*kept[:4], *COHORT, *said, "part"])
    rows = rows[(rows["part"] == "test") & rows["regime"].isin(TITLES)]
    rows = rows[[*kept, *COHORT, *said]].rename(columns={name: f"{name}_seen" for name in said})
    rows = rows.merge(runs[runs["changed"] == ""], on=COHORT)
    no_matter = (rows["labelled_seen"] == 0) | (rows["regime"] == ALL_LABELS)
    same = (rows["labelled_seen"] == rows["labelled"]) & (
        rows["label_seed_seen"] == rows["label_seed"]
    )
    return rows.loc[no_matter | same, [*kept, *runs.columns]]
