"""Tables of pages, made anew from the results: what a page quotes is what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError
from ..places import README, RESULTS
from ..regimes import BASELINES, IDENTITY, JOINT, NETWORK_OF, SEMI, TITLES
from ..sweeps.collect import JOINT_ALONE, PARAMETERS, ablation, read_table
from .gains import cohort_names, gains, load_results

PAGES = (README, RESULTS / "README.md")  # their tables are made from the results
END = "<!-- end -->"

BENCHMARKS = "benchmarks.csv"  # written by the programs in the folder benchmarks
BENCHMARKED = ("operation", "size", "device", "threads", "dtype")  # what its rows are chosen by

Line = list[str]  # the cells of a line


def fill_tables(page: str, results: Path = RESULTS) -> str:
    """The text of a Markdown ``page`` with its tables made anew from the results.

    A table stands between ``<!-- dice labelled=1 -->`` and ``<!-- end -->``. Its kind is "dice"
    (regimes by cohorts), "gains" (of joint training, with intervals), "joint" (a line for each
    thing changed), "speed" (the kit beside its peers), "growth" (exponents of cost) or "pairs" (one
    pair registered by each program); what follows selects rows. Raises UserError for a mark that
    cannot be read.
    """
    regimes, subjects = read_table(results, "regimes"), load_results(results)
    rows_of = {"dice": regimes, "gains": subjects, "joint": regimes}
    if (results / BENCHMARKS).exists():
        rows_of |= dict.fromkeys(("speed", "growth", "pairs"), _benchmarks(results))

    def filled(mark: re.Match) -> str:
        begin = mark["begin"]
        if mark["kind"] not in rows_of:
            raise UserError(f"{begin}: there is no {BENCHMARKS} in {results}")
        rows = _selected(rows_of[mark["kind"]], mark["conditions"].split(), begin)
        lines = [f"| {' | '.join(cells)} |" for cells in TABLES[mark["kind"]](rows)]
        return "\n".join([begin, *lines, END])

    kinds = "|".join(TABLES)
    begin = rf"(?P<begin><!-- (?P<kind>{kinds})(?P<conditions>(?: \w+=[\w.^-]+)*) -->)"
    before_next_mark = r"(?:(?!<!--).)*?"
    marks = len(re.findall(rf"<!-- *(?:{kinds})", page))
    table = re.compile(rf"{begin}\n{before_next_mark}{END}", flags=re.DOTALL)
    text, count = table.subn(filled, page)
    if count != marks:
        raise UserError(
            f"a table begins with <!-- {kinds} NAME=VALUE ... --> and ends with {END}; of "
            f"{marks} marks {count} could be read"
        )
    return text


def _selected(rows: pd.DataFrame, conditions: Iterable[str], mark: str) -> pd.DataFrame:
    """The rows with NAME=VALUE, for all ``conditions``; UserError naming the ``mark`` if none."""
    for condition in conditions:
        name, value = condition.split("=")
        known = [column for column in rows if column in (*PARAMETERS, *BENCHMARKED)]
        if name not in known:
            raise UserError(f"{mark}: there is no {name!r} to select by: {', '.join(known)}")
        rows = rows[rows[name].astype(str) == value]
    if rows.empty:
        raise UserError(f"{mark}: no such rows among the results")
    return rows


def _rule(columns: int) -> Line:
    return ["---"] * columns


def _cells(values: Iterable[float], form: str) -> Line:
    return [" " if math.isnan(value) else f"{value:{form}}" for value in values]


# --- mean Dice ------------------------------------------------------------------------------------


def _dice_table(rows: pd.DataFrame) -> Iterator[Line]:
    """Mean Dice over runs of each regime, as in the table of the paper."""
    rows = rows[rows["changed"] == ""].assign(cohort=cohort_names)
    runs = rows.groupby("cohort")["run"].nunique()
    yield [" ", *runs.index]
    yield _rule(1 + len(runs))
    means = rows.groupby(["task", "regime", "cohort"])["Dice %"].mean().unstack("cohort")
    for task in NETWORK_OF:
        yield [f"*{task}*", *[" "] * len(runs)]
        for regime, title in TITLES.items():
            if (task, regime) in means.index:
                cells = _cells(means.loc[(task, regime), runs.index], ".1f")
                if regime == JOINT:
                    cells = [cell if cell == " " else f"**{cell}**" for cell in cells]
                yield [title, *cells]
    yield ["runs", *map(str, runs)]


# --- gains ----------------------------------------------------------------------------------------


def _gains_table(rows: pd.DataFrame) -> Iterator[Line]:
    header = ["cohort", "task", "against", "gain in points [95 %]", "share of the gap", "runs"]
    yield header
    yield _rule(len(header))
    table = gains(rows[(rows["changed"] == "") & (rows["regime"] != IDENTITY)])
    for _, row in table.assign(cohort=cohort_names).iterrows():
        share = row.get("share", math.nan)
        yield [
            row["cohort"],
            row["task"],
            TITLES[row["against"]],
            f"{row['gain']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]",
            " " if math.isnan(share) else f"{share:.0f} %",
            str(row["runs"]),
        ]


# --- one thing changed at a time ------------------------------------------------------------------

JOINT_HEADER = [
    "cohort",
    "N",
    "recipe",
    "changed",
    "Dice, segmentation: baseline",
    "Semi",
    "DeepAtlas",
    "registration: baseline",
    "Semi",
    "DeepAtlas",
    "folds %",
    "DeepAtlas minus the recipe's, same seeds: segmentation",
    "registration",
    "runs",
]


def _joint_table(rows: pd.DataFrame) -> Iterator[Line]:
    """A line for each thing changed, a mean over its runs; and by how much joint training differs
    from what the recipe "best" makes of the same seeds, which decide the scans and the draws.
    """
    yield JOINT_HEADER
    yield _rule(len(JOINT_HEADER))
    shown = [
        (task, regime)
        for task, network in NETWORK_OF.items()
        for regime in (BASELINES[network], SEMI[network], JOINT)
    ]
    rows = _minus_the_recipe(_each_training_once(rows))
    lines = ["cohort", "labelled", "recipe", "changed"]
    for (cohort, labelled, recipe, changed), some in rows.groupby(lines):
        means = some.groupby(["task", "regime"])[["Dice %", "folds %", "minus"]].mean()
        joint = means.xs(JOINT, level="regime").loc[list(NETWORK_OF)]
        yield [
            cohort,
            str(labelled),
            recipe,
            changed or " ",
            *_cells(means["Dice %"].reindex(shown), ".1f"),
            *_cells(joint.loc[["registration"], "folds %"], ".2f"),
            *_cells(joint["minus"], "+.1f"),
            str(some["run"].nunique()),
        ]


def _each_training_once(rows: pd.DataFrame) -> pd.DataFrame:
    """A run of all regimes and one of joint training alone are the same training: the former stays.

    Another draw of the labelled scans than the seed's is a thing changed, too.
    """
    alone = rows["changed"].str.contains(JOINT_ALONE)
    own_draw = rows["label_seed"] == rows["seed"]
    draw = np.where(own_draw, "", " label_seed=" + rows["label_seed"].astype(str))
    rows = rows.assign(
        cohort=cohort_names, changed=(ablation(rows) + draw).str.strip(), alone=alone
    )
    rows = rows.sort_values("alone", kind="stable")
    return rows.drop_duplicates([*PARAMETERS, "changed", "task", "regime"])


def _minus_the_recipe(rows: pd.DataFrame) -> pd.DataFrame:
    """The column "minus": Dice less what the recipe "best" makes of the same seeds, itself NaN."""
    same = ["cohort", "profile", "labelled", "seed", "label_seed", "task", "regime"]
    recipe = (rows["recipe"] == "best") & (rows["changed"] == "")
    usual = rows[recipe].set_index(same)["Dice %"].rename("usual")
    rows = rows.join(usual, on=same)
    return rows.assign(minus=(rows["Dice %"] - rows["usual"]).mask(recipe))


# --- time and memory beside others ----------------------------------------------------------------

SPEED_HEADER = [
    "work",
    "size",
    "ms",
    "MiB",
    "time / best peer's",
    "goal",
    "memory / best peer's",
    "goal",
    "time / floor",
    "others' time / ours",
]


def _benchmarks(results: Path) -> pd.DataFrame:
    texts = {"program": str, "version": str, "note": str}
    return pd.read_csv(results / BENCHMARKS, dtype=texts).fillna({"note": ""})


def _speed_table(rows: pd.DataFrame) -> Iterator[Line]:
    """A line for each work, size and precision, in the order of the file; a ratio that meets its
    goal is bold.

    Time is that of the process on a CPU, all its threads together, and of the clock on a GPU; it
    stays empty where memory alone was measured.
    """
    yield SPEED_HEADER
    yield _rule(len(SPEED_HEADER))
    rows = rows[rows["cpu_seconds"].notna() | rows["memory_ratio"].notna()]
    on_cpu = rows["device"] == "cpu"
    first = rows["operation"].drop_duplicates().tolist()  # works in the order of the file
    rows = rows.assign(
        time=rows["cpu_seconds"].where(on_cpu, rows["seconds"]),
        place=rows["operation"].map(first.index),
    ).sort_values("place", kind="stable")
    for (work, size, _, _, dtype), some in rows.groupby(list(BENCHMARKED), sort=False):
        ours = some[some["program"] == "deepatlas"]
        if ours.empty:
            continue
        kit = ours.iloc[0]
        others = []
        for _, row in some[some["time"].notna()].iterrows():
            if row["program"] != "deepatlas":
                others.append(f"{row['program']} {row['time'] / kit['time']:.2f}")
        yield [
            work if dtype == "float32" else f"{work}, {dtype}",
            size,
            _three_digits(1000 * kit["time"]),
            _three_digits(kit["memory_mib"]),
            *_against_goal(kit["ratio"], kit["goal"]),
            *_against_goal(kit["memory_ratio"], kit["memory_goal"]),
            _three_digits(kit["over_floor"]),
            ", ".join(others),
        ]


def _three_digits(value: float) -> str:
    """12.3, or 1,234 where :.3g would write 1.23e+03."""
    if math.isnan(value):
        return " "
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _against_goal(ratio: float, goal: float) -> Line:
    told, wanted = _cells([ratio, goal], ".2f")
    return [f"**{told}**" if ratio <= goal else told, wanted]


def _growth_table(rows: pd.DataFrame) -> Iterator[Line]:
    header = ["work", "grows with", "exponent", "at these sizes"]
    yield header
    yield _rule(len(header))
    for _, row in rows[rows["exponent"].notna()].iterrows():
        yield [row["operation"], row["size"], f"{row['exponent']:.2f}", row["note"]]


PAIRS_HEADER = ["program", "Dice %", "folds", "ms", "time / fastest peer's"]


def _pairs_table(rows: pd.DataFrame) -> Iterator[Line]:
    """A line for each program that registers a pair: processor time, as in ``_speed_table``."""
    yield PAIRS_HEADER
    yield _rule(len(PAIRS_HEADER))
    for _, row in rows[rows["operation"] == "a pair"].iterrows():
        yield [
            row["program"],
            f"{row['dice']:.1f}",
            row["note"].removeprefix("folds "),
            _three_digits(1000 * row["cpu_seconds"]),
            *_against_goal(row["ratio"], row["goal"])[:1],
        ]


TABLES: dict[str, Callable[[pd.DataFrame], Iterator[Line]]] = {
    "dice": _dice_table,
    "gains": _gains_table,
    "joint": _joint_table,
    "speed": _speed_table,
    "growth": _growth_table,
    "pairs": _pairs_table,
}
