"""The two tables of the paper, filled with runs of this kit, beside the numbers that the paper
prints.

Z. Xu and M. Niethammer, DeepAtlas, MICCAI 2019 (arXiv 1904.08465): Table 1, knees, and Table 2,
brains. Dice in percent, mean (SD) over test subjects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..errors import UserError, meant
from ..evaluation.cohorts import per_subject
from ..records import read_record, recorded_experiment
from ..regimes import BASELINES, FIRST, JOINT, NETWORK_OF, SEMI
from ..reporting import load_scores

# The models of the paper, and the regime of each network that they are here; at N = 1 the paper's
# Semi-DA is the first round of segmentation.
MODELS = {
    "Baseline": BASELINES,
    "Semi-DA": SEMI,
    "DA": {"seg": JOINT, "reg": JOINT},
}
TASKS = {"Seg": "segmentation", "Reg": "registration"}


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: what its columns are, and what it prints."""

    title: str
    # column of each task -> structures whose mean it is; () for all of them
    groups: Mapping[str, tuple[str, ...]]
    # (N, model) -> what the paper prints, by the table's columns; "-" where it prints nothing
    rows: Mapping[tuple[int, str], str]
    # what is not known of the paper's runs, or is otherwise here
    differences: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """As in "Seg bones": each task with each group."""
        return [f"{task} {group}".strip() for task in TASKS for group in self.groups]

    def printed(self, labelled: int, model: str) -> dict[str, str]:
        """A row of the paper: column -> "mean (SD)", or "-"."""
        cells = [cell.strip() for cell in self.rows[labelled, model].split("|")]
        return dict(zip(self.columns, cells, strict=True))


COMMON = (
    "How many steps the paper's 100 epochs have is not known: each network takes those that the "
    "file of the sweep says.",
    "The weight of the bending energy is this kit's: the authors' displacements have other units.",
    "The labelled scans of N are drawn by the seed.",
    "Baseline, N = 0: the registration baseline of the runs at N = 1, which sees no label.",
)

PAPER = {
    "knee": PaperTable(
        title="Table 1: knees, N of 200 training scans labelled",
        groups={
            "bones": ("femur", "tibia"),
            "cart.": ("femoral cartilage", "tibial cartilage"),
            "all": (),
        },
        rows={
            (0, "Baseline"): "-|-|-|95.32 (1.13)|65.71 (5.86)|80.52 (3.24)",
            (1, "Semi-DA"): "96.43 (0.85)|76.67 (3.24)|86.55 (1.86)|-|-|-",
            (1, "DA"): "96.80 (0.81)|77.63 (3.22)|87.21 (1.84)|"
            "95.76 (1.01)|70.77 (5.68)|83.27 (3.14)",
            (5, "Baseline"): "96.51 (1.69)|78.95 (3.91)|87.73 (2.37)|"
            "95.60 (1.08)|68.13 (5.98)|81.87 (3.31)",
            (5, "Semi-DA"): "96.97 (1.26)|79.73 (3.84)|88.35 (2.22)|"
            "96.38 (0.81)|73.48 (5.26)|84.93 (2.89)",
            (5, "DA"): "97.49 (0.67)|80.35 (3.64)|88.92 (2.01)|"
            "96.35 (0.82)|73.67 (5.22)|85.01 (2.86)",
            (10, "Baseline"): "97.29 (1.03)|80.59 (3.67)|88.94 (2.07)|"
            "95.77 (1.02)|69.45 (5.93)|82.61 (3.27)",
            (10, "Semi-DA"): "97.60 (0.76)|81.21 (3.58)|89.40 (1.99)|"
            "96.66 (0.72)|74.67 (5.01)|85.66 (2.73)",
            (10, "DA"): "97.70 (0.65)|81.19 (3.47)|89.45 (1.91)|"
            "96.62 (0.75)|74.69 (5.03)|85.66 (2.75)",
            (200, "Baseline"): "98.24 (0.34)|83.54 (2.93)|90.89 (1.56)|"
            "96.98 (0.56)|77.33 (4.34)|87.16 (2.35)",
        },
        differences=(
            *COMMON,
            "Which 200 scans the paper trained on, and which it tested on, is not known: they are "
            "drawn by the seed.",
            "The paper's grid is not known: here 112 x 144 x 144 voxels of 1 mm.",
        ),
    ),
    "brain": PaperTable(
        title="Table 2: brains, 31 cortical regions, N of 65 training scans labelled",
        groups={"": ()},
        rows={
            (0, "Baseline"): "-|54.75 (2.37)",
            (1, "Semi-DA"): "61.19 (1.49)|-",
            (1, "DA"): "61.22 (1.40)|56.54 (2.32)",
            (21, "Baseline"): "73.48 (2.58)|59.47 (2.34)",
            (21, "Semi-DA"): "75.63 (1.66)|62.92 (2.14)",
            (21, "DA"): "76.06 (1.50)|62.92 (2.13)",
            (65, "Baseline"): "81.31 (1.21)|63.25 (2.07)",
        },
        differences=(
            *COMMON,
            "N = 21 is MMRR-21, as in the paper; at N = 1 the labelled scan is one of these.",
            "Which 12 of NKI-TRT-20 are among the paper's 65, and which 21 of NKI-RS-22 its test "
            "scans are, is not known: here the first of each; the other 8 of NKI-TRT-20 validate.",
            "The paper's grid is 168 x 200 x 168; its registration network wants sides divisible "
            "by 16: here 176 x 208 x 176 voxels of 1 mm.",
        ),
    ),
}


def check_paper_table(name: str) -> None:
    """UserError, with the names there are, unless ``name`` is one of ``PAPER``."""
    if name not in PAPER:
        raise UserError(f"the paper has no table {name!r}{meant(name, PAPER, all_of_them=True)}")


def paper_table(name: str, folders: Iterable[Path]) -> pd.DataFrame:
    """The table ``name`` of ``PAPER`` from finished runs: two lines for each N and model, "here"
    and "paper"; mean (SD) over test subjects, averaged over runs.

    A cell that no run fills is "". UserError for another name.
    """
    check_paper_table(name)
    table = PAPER[name]
    scores = [_scores_of(folder) for folder in folders]
    lines = []
    for labelled, model in table.rows:
        who = {"N": labelled, "model": model}
        printed = table.printed(labelled, model)
        here = dict(_cells(table, labelled, model, scores))
        filled = {column: here.get(column, "") for column in printed}
        for column, text in printed.items():
            if text == "-":  # the paper's model has no such network
                filled[column] = "-"
        lines.append({**who, "from": "here", **filled})
        lines.append({**who, "from": "paper", **printed})
    return pd.DataFrame(lines).set_index(["N", "model", "from"])


def _scores_of(folder: Path) -> tuple[int, pd.DataFrame]:
    """(N, scores) of a finished run."""
    experiment = recorded_experiment(read_record(folder))
    return experiment.labelled, load_scores(folder)


def _cells(
    table: PaperTable, labelled: int, model: str, runs: Iterable[tuple[int, pd.DataFrame]]
) -> Iterator[tuple[str, str]]:
    """(column, "mean (SD)") of each column that the runs can fill."""
    of_n = [scores for count, scores in runs if count == max(labelled, 1)]
    for short, task in TASKS.items():
        regime = MODELS[model][NETWORK_OF[task]]
        if labelled == 1 and regime == SEMI["seg"]:
            regime = FIRST
        rows = [scores[(scores["task"] == task) & (scores["regime"] == regime)] for scores in of_n]
        for group, structures in table.groups.items():
            cell = _mean_and_sd(rows, structures)
            if cell:
                yield f"{short} {group}".strip(), cell


def _mean_and_sd(runs: Iterable[pd.DataFrame], structures: tuple[str, ...]) -> str:
    """Dice % of some structures, all if none is named, as "mean (SD)" over the subjects of each
    run, averaged over the runs; "" if there is none.
    """
    means, deviations = [], []
    for rows in runs:
        some = rows[rows["structure"].isin(structures)] if structures else rows
        if len(some):
            dice = 100 * per_subject(some)
            means.append(dice.mean())
            deviations.append(dice.std())
    if not means:
        return ""
    return f"{pd.Series(means).mean():.2f} ({pd.Series(deviations).mean():.2f})"
