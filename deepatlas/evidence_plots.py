"""Figures of what many runs show: a dot for each run, never a bar that hides them. Pure functions
of data, as in ``plots``.
"""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .plots import line_colours, literal
from .regimes import NETWORK_OF

MARKERS = ("o", "s", "^", "D", "v", "P")  # of the numbers of labelled scans, in their order
DODGE = 0.18  # how far rivals stand from the middle of their line


def gains_figure(seeds: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Points of Dice that joint training gains over its decisive rivals: a line for each cohort and
    N, a panel for each task, a dot for each seed, and the mean with its 95 % interval.

    The tables of ``evidence.decisive_gains``: ``seeds`` has a gain for each seed, ``means`` the
    columns cohort, labelled, task, against, gain, low and high.
    """
    lines = means[["cohort", "labelled"]].drop_duplicates()
    lines = lines.sort_values(["labelled", "cohort"]).reset_index(drop=True)
    rivals = list(dict.fromkeys(means["against"]))
    colour_of = dict(zip(rivals, ("#0072B2", "#D55E00"), strict=False))
    figure, cells = plt.subplots(
        1,
        len(NETWORK_OF),
        figsize=(10, 0.55 * len(lines) + 1.6),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axes, task in zip(cells[0], NETWORK_OF, strict=True):
        axes.axvline(0, color="0.6", linewidth=1)
        for place, line in lines.iterrows():
            for rival in rivals:
                at = place + (DODGE if rival == rivals[0] else -DODGE)
                what = {**line, "task": task, "against": rival}
                _draw_gain(axes, _where(seeds, what), _where(means, what), at, colour_of[rival])
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("DeepAtlas minus the rival, points of Dice", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    labels = [f"{literal(cohort)}, N = {n}" for cohort, n in lines.itertuples(index=False)]
    cells[0, 0].set_yticks(range(len(lines)), labels, fontsize=9)
    cells[0, 0].invert_yaxis()
    handles = [_key(colour_of[rival], "D", f"minus {rival}") for rival in rivals]
    handles.append(_key("0.4", "o", "one seed", size=3.5))
    handles.append(Line2D([], [], color="0.4", linewidth=2, label="mean, 95 % interval"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _draw_gain(
    axes: Axes, seeds: pd.DataFrame, mean: pd.DataFrame, place: float, colour: str
) -> None:
    """The interval as a bar, the mean as a diamond on it, the seeds as dots upon both."""
    if mean.empty:
        return
    (found,) = mean.to_dict("records")
    axes.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=2, alpha=0.6)
    axes.plot(found["gain"], place, "D", color=colour, markersize=6)
    dots = [place] * len(seeds)
    axes.plot(seeds["gain"], dots, "o", color="white", markeredgecolor=colour, markersize=3.5)


def teacher_map_figure(points: pd.DataFrame) -> Figure:
    """The gain of joint training against how far its teacher is ahead of its pupil: a panel for
    each task and decisive rival, a point for each cohort, N and seed.

    ``points`` is the table of ``evidence.teacher_map``.
    """
    cohorts, numbers = sorted(points["cohort"].unique()), sorted(points["labelled"].unique())
    colour_of = dict(zip(cohorts, line_colours(len(cohorts)), strict=True))
    marker_of = dict(zip(numbers, cycle(MARKERS), strict=False))
    rivals = list(dict.fromkeys(points["against"]))
    figure, grid = plt.subplots(
        len(rivals),
        len(NETWORK_OF),
        figsize=(10, 3.4 * len(rivals) + 0.6),
        layout="constrained",
        sharex="col",
        squeeze=False,
    )
    for cells, rival in zip(grid, rivals, strict=True):
        for axes, task in zip(cells, NETWORK_OF, strict=True):
            axes.axhline(0, color="0.6", linewidth=1)
            axes.axvline(0, color="0.6", linewidth=1)
            some = _where(points, {"task": task, "against": rival})
            for (cohort, n), of_cohort in some.groupby(["cohort", "labelled"]):
                style = {"color": colour_of[cohort], "marker": marker_of[n]}
                axes.plot(of_cohort["teacher"], of_cohort["gain"], linestyle="", alpha=0.8, **style)
            axes.grid(alpha=0.3)
        cells[0].set_ylabel(f"DeepAtlas minus\n{rival},\npoints of Dice", fontsize=8)
    for top, bottom, task in zip(grid[0], grid[-1], NETWORK_OF, strict=True):
        top.set_title(task, fontsize=10)
        bottom.set_xlabel(AHEAD[task], fontsize=8)
    handles = [_key(colour_of[cohort], "o", literal(cohort)) for cohort in cohorts]
    handles += [_key("0.4", marker_of[n], f"N = {n}") for n in numbers]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    return figure


AHEAD = {  # what the map measures of a teacher
    "segmentation": "label propagation minus segmentation baseline, points of Dice",
    "registration": "the F_S that teaches minus registration baseline, points of Dice",
}


def _where(table: pd.DataFrame, values: dict[str, object]) -> pd.DataFrame:
    """The rows that have these values."""
    return table[(table[list(values)] == pd.Series(values)).all(axis="columns")]


def _key(colour: str, marker: str, label: str, size: float = 6) -> Line2D:
    """A line of the legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=size, label=label)
