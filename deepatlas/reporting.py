"""What a run found: its table, its comparisons, and the executed notebook. Read from the run folder
alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from . import evaluation, experiments
from .checkpoints import write_atomically
from .regimes import REGIMES, spent

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOK = experiments.PROJECT / "notebooks" / "experiment.ipynb"
# a report asks no server
OFFLINE = {"mathjax_url": "", "require_js_url": "", "jquery_url": "", "mermaid_js_url": ""}
NETWORK = {"segmentation": "seg", "registration": "reg"}  # which network a task scores
TITLES = {
    "identity": "No registration",
    "label_propagation": "Label propagation",
    **{key: regime.title for key, regime in REGIMES.items()},
}


def rivals(task: str) -> tuple[str, ...]:
    """The trained regimes that joint training is compared with in ``task``."""
    short = NETWORK[task]
    return f"{short}_baseline", f"{short}_control", f"semi_{short}", f"semi_{short}_control"


def load_record(folder: Path) -> dict:
    """The record of a finished run; ValueError if it is not finished."""
    record = experiments.read_record(folder)
    if not record["finished"]:
        raise ValueError(
            f"{folder}: this run is not finished; start it again with the same parameters to go on"
        )
    return record


def load_scores(folder: Path) -> pd.DataFrame:
    """The rows of scores.csv: one per regime, test case and structure."""
    return pd.read_csv(Path(folder) / "scores.csv", dtype={"case": str, "subject": str})


def _arm(scores: pd.DataFrame, task: str, regime: str) -> pd.DataFrame:
    return scores[(scores["task"] == task) & (scores["regime"] == regime)]


def results_table(folder: Path, *, titles: bool = True) -> pd.DataFrame:
    """One row per task and regime: Dice in percent, mean and SD over subjects, and other means.

    Regimes by their titles, or without ``titles`` by their keys in ``REGIMES``. *steps* are those
    the network has taken in all, pretraining included; *seconds* those of this regime alone.
    """
    record, scores = load_record(folder), load_scores(folder)
    table, rows = experiments.parse(record["experiment"]).table, []
    for (task, regime), arm in scores.groupby(["task", "regime"], sort=False):
        dice = 100 * evaluation.per_subject(arm)
        row = {
            "task": task,
            "regime": TITLES[regime] if titles else regime,
            "Dice %": dice.mean(),
            "SD": dice.std(),
            "NSD %": 100 * evaluation.per_subject(arm, "nsd").mean(),
            "HD95 mm": evaluation.per_subject(arm, "hd95_mm").mean(),
        }
        if task == "registration":
            row |= {
                "folds %": arm["folds_percent"].mean(),
                "error voxels": arm["endpoint_voxels"].mean(),
            }
        steps = spent(table, regime, NETWORK[task], record["steps"]) if regime in table else 0
        row |= {"steps": steps, "seconds": record["seconds"].get(regime, 0)}
        rows.append(row)
    return pd.DataFrame(rows).set_index(["task", "regime"]).dropna(axis="columns", how="all")


def structure_table(folder: Path, task: str) -> pd.DataFrame:
    """Dice in percent as "mean (SD)" over cases, structures down, regimes across."""
    scores = load_scores(folder)
    columns = {}
    for regime in scores.loc[scores["task"] == task, "regime"].unique():
        table = 100 * evaluation.per_structure(_arm(scores, task, regime))
        columns[TITLES[regime]] = table["mean"].map("{:.1f}".format) + table["sd"].map(
            " ({:.1f})".format
        )
    return pd.DataFrame(columns)


def comparison_table(folder: Path) -> pd.DataFrame:
    """What joint training gains, paired over test subjects, in points of Dice; p corrected by Holm."""
    scores = load_scores(folder)
    rows = []
    for task in NETWORK:
        joint = 100 * evaluation.per_subject(_arm(scores, task, "deepatlas"))
        for other in rivals(task):
            if other not in set(scores["regime"]):
                continue  # not every run has every arm
            result = evaluation.paired_comparison(
                joint, 100 * evaluation.per_subject(_arm(scores, task, other))
            )
            rows.append({"task": task, "DeepAtlas minus": TITLES[other], **result})
    table = pd.DataFrame(rows)
    return table.assign(p=evaluation.holm(table["p"])).rename(columns={"p": "p (Holm)"})


def gap_table(folder: Path) -> pd.DataFrame:
    """Share of the gap between the baseline and full supervision that joint training closes, in
    percent.
    """
    scores = load_scores(folder)
    rows = []
    for task, short in NETWORK.items():
        if f"{short}_full" not in set(scores["regime"]):
            continue
        arms = (
            evaluation.per_subject(_arm(scores, task, key))
            for key in (f"{short}_baseline", "deepatlas", f"{short}_full")
        )
        share = evaluation.share_of_gap_closed(*arms)
        rows.append({"task": task, **{key: 100 * share[key] for key in ("share", "low", "high")}})
    return pd.DataFrame(rows)


def load_examples(folder: Path) -> list[dict]:
    """The test pairs kept for figures: images, labels, guesses, displacements."""
    return torch.load(Path(folder) / "examples.pt", weights_only=True)


def report(folder: Path) -> Path:
    """Execute the experiment's notebook on a finished run; returns report.html, beside the executed
    notebook.
    """
    import nbconvert  # here: it takes seconds to load, and a machine that only trains lacks it

    record, folder = load_record(folder), Path(folder).resolve()
    executed = folder / "experiment.ipynb"
    try:  # the notebook finds the run, whatever --root was
        execute(NOTEBOOK, record["experiment"], executed, DEEPATLAS_RUNS=str(folder.parent))
    except ValueError as error:
        raise ValueError(
            f"{error}; the scores are safe, and the same command tries the notebook again"
        ) from error
    body, _ = nbconvert.HTMLExporter(exclude_input=True, **OFFLINE).from_filename(str(executed))
    write_atomically(folder / "report.html", lambda file: file.write_text(body, encoding="utf-8"))
    return folder / "report.html"


def execute(
    path: Path, parameters: Mapping[str, object], to: Path | None = None, **environment: str
) -> NotebookNode:
    """The notebook with its outputs, run with ``parameters`` in a kernel with these environment
    variables.

    As far as it gets it is kept in the file ``to``. Raises ValueError naming the file, and the cell
    if a cell stops.
    """
    import papermill  # here: a machine that only trains lacks it

    with _environment(environment):
        try:
            return papermill.execute_notebook(
                str(path), to and str(to), parameters=parameters, cwd=str(path.parent)
            )
        except papermill.PapermillExecutionError as error:
            at = f"{to or path}: cell {error.cell_index}"
            raise ValueError(f"{at} stopped ({error.ename}: {error.evalue})") from error
        # nbclient's DeadKernelError, jupyter_client's NoSuchKernel
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{to or path}: no kernel ran it to its end ({error})") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a while; a kernel inherits them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
