"""Many runs: Dice against N, and Dice against folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..regimes import NETWORK_OF
from .drawing import literal
from .palette import MARKS, line_colours


def dice_against_n_figure(points: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Dice against N, the number of labelled scans, with intervals: cohorts across, segmentation
    above registration.

    ``points`` has the columns dataset, task, regime, labelled, mean, low, high; ``titles`` the
    regimes to draw.
    """
    datasets, tasks = list(points["dataset"].unique()), list(NETWORK_OF)
    figure, grid = plt.subplots(
        len(tasks),
        len(datasets),
        figsize=(2.8 * len(datasets) + 0.4, 5.8),
        layout="constrained",
        squeeze=False,
    )
    distinct = list(dict.fromkeys(titles.values()))
    colour_of = dict(zip(distinct, line_colours(len(distinct)), strict=True))
    for cells, task in zip(grid, tasks, strict=True):
        for axes, dataset in zip(cells, datasets, strict=True):
            some = points[(points["task"] == task) & (points["dataset"] == dataset)]
            _draw_dice_against_n(axes, some, titles, colour_of)
            axes.set_title(f"{literal(dataset)}: {task}", fontsize=9)
    _one_legend(figure, grid, distinct)
    return figure


def _draw_dice_against_n(
    axes: Axes, points: pd.DataFrame, titles: Mapping[str, str], colour_of: Mapping[str, object]
) -> None:
    """A line with intervals for each regime of one cohort and task."""
    there = set(points["regime"])
    regimes = [key for key in titles if key in there]
    for i, key in enumerate(regimes):
        line = points[points["regime"] == key].sort_values("labelled")
        beside = 1.04 ** (i - len(regimes) / 2)  # beside each other, not upon
        axes.errorbar(
            line["labelled"] * beside,
            line["mean"],
            [line["mean"] - line["low"], line["high"] - line["mean"]],
            marker="o",
            markersize=4,
            capsize=2,
            color=colour_of[titles[key]],
            label=titles[key],
        )
    ticks = sorted(points["labelled"].unique())
    axes.set_xscale("log")
    axes.set_xlim(0.7 * ticks[0], 1.4 * ticks[-1])
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("N, labelled scans", fontsize=9)
    axes.set_ylabel("Dice, %", fontsize=9)
    axes.grid(alpha=0.3)


def _one_legend(figure: Figure, grid: np.ndarray, order: Sequence[str]) -> None:
    """Below the panels, for all of them: not every cohort has every regime."""
    handle_of = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handle_of[label] = handle
    named = [title for title in order if title in handle_of]
    figure.legend(
        [handle_of[title] for title in named],
        named,
        loc="outside lower center",
        ncols=grid.shape[1],
        fontsize=9,
        frameon=False,
    )


def sweep_figure(table: pd.DataFrame) -> Figure:
    """Dice against folds, a named point for each row of a ``table`` with the columns "Dice %" and
    "folds %".
    """
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.scatter(table["folds %"], table["Dice %"], color=MARKS["points"])
    for name, row in table.iterrows():
        axes.annotate(
            literal(str(name)),
            (row["folds %"], row["Dice %"]),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.margins(0.1)  # room for the names
    axes.set_xlabel("folds, %")
    axes.set_ylabel("Dice, %")
    axes.grid(alpha=0.3)
    return figure
