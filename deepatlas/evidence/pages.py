"""Tables of pages, made anew from the results: what a page quotes is what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError
from ..evaluation.statistics import holm
from ..places import FIRST_RESULTS, README, RESULTS
from ..regimes import BASELINES, CONTROLS, IDENTITY, JOINT, NETWORK_OF, REGIMES, SEMI
from ..sweeps.collect import JOINT_ALONE, PARAMETERS, ablation, read_table
from .claims import CLAIMS, judge, read_claims
from .gains import (
    ERRORS,
    METRICS,
    Metric,
    cannot_be_told,
    cohort_names,
    gain,
    gains,
    load_results,
    of_the_method,
    regimes_with,
    sees_all_labels,
    titles,
)
from .points import teacher_map
from .rivals import OF_EACH_PAIR

PAGES = (README, RESULTS / "README.md", FIRST_RESULTS / "README.md")  # made from the results
END = "<!-- end -->"

BENCHMARKS = "benchmarks.csv"  # written by the programs in the folder benchmarks
BENCHMARKED = ("operation", "size", "device", "threads", "dtype")  # what its rows are chosen by
NONE_YET = "*No rows yet.*"

Line = list[str]  # the cells of a line
Lines = Iterator[Line | str]  # of a table; a text is a line of its own, outside of it


def fill_tables(page: str, results: Path = RESULTS) -> str:
    """The text of a Markdown ``page`` with its tables made anew from the results.

    A table stands between ``<!-- dice labelled=1 -->`` and ``<!-- end -->``. Its kind is one of
    ``TABLES``: "dice" (regimes by cohorts), "gains" (of joint training, with intervals), "claims"
    (what was claimed beforehand, and holds), "map" (gains where the teacher is strong), "joint" (a
    line for each thing changed), "reruns" (runs that were made twice), "speed" (the kit beside its
    peers), "growth" (exponents of cost) or "pairs" (one pair registered by each program); what
    follows selects rows, and ``from=first`` those in the folder first of ``results``. A table of
    runs that are not there yet says so. Raises UserError for a mark that cannot be read.
    """

    def filled(mark: re.Match) -> str:
        begin = mark["begin"]
        conditions = dict(condition.split("=") for condition in mark["conditions"].split())
        folder = results / conditions.pop("from", ".")
        try:
            table = list(TABLES[mark["kind"]](folder, conditions))
        except UserError as error:
            raise UserError(f"{begin}: {error}") from error
        lines = [line if isinstance(line, str) else f"| {' | '.join(line)} |" for line in table]
        return "\n".join([begin, *lines, END])

    kinds = "|".join(TABLES)
    begin = rf"(?P<begin><!-- (?P<kind>{kinds})(?P<conditions>(?: \w+=[\w.^-]+)*) -->)"
    before_next_mark = r"(?:(?!<!--).)*?"
    marks = len(re.findall(rf"<!-- *(?:{kinds})\b", page))
    table = re.compile(rf"{begin}\n{before_next_mark}{END}", flags=re.DOTALL)
    text, count = table.subn(filled, page)
    if count != marks:
        raise UserError(
            f"a table begins with <!-- {kinds} NAME=VALUE ... --> and ends with {END}; of "
            f"{marks} marks {count} could be read"
        )
    return text


def _of_runs(
    read: Callable[[Path], pd.DataFrame],
    lines: Callable[[pd.DataFrame], Lines],
    results: Path,
    conditions: dict[str, str],
) -> Lines:
    """A table of the rows that ``read`` finds in ``results``, if there are any yet."""
    try:
        rows = read(results)
    except FileNotFoundError:
        rows = pd.DataFrame(columns=PARAMETERS)
    rows = _selected(rows, conditions, PARAMETERS)
    yield from [NONE_YET] if rows.empty else lines(rows)


def _of_benchmarks(
    lines: Callable[[pd.DataFrame], Lines], results: Path, conditions: dict[str, str]
) -> Lines:
    """A table of the rows of ``benchmarks.csv``; UserError if there are none."""
    if not (results / BENCHMARKS).exists():
        raise UserError(f"there is no {BENCHMARKS} in {results}")
    texts = {"program": str, "version": str, "note": str}
    rows = pd.read_csv(results / BENCHMARKS, dtype=texts).fillna({"note": ""})
    rows = _selected(rows, conditions, BENCHMARKED)
    if rows.empty:
        raise UserError(f"no such rows in {results / BENCHMARKS}")
    yield from lines(rows)


def _selected(rows: pd.DataFrame, conditions: dict[str, str], known: Iterable[str]) -> pd.DataFrame:
    """The rows that meet all ``conditions``; UserError for a name that is not ``known``."""
    for name, value in conditions.items():
        if name not in known:
            raise UserError(f"there is no {name!r} to select by: {', '.join(known)}")
        rows = rows[rows[name].astype(str) == value]
    return rows


def _rule(columns: int) -> Line:
    return ["---"] * columns


def _cells(values: Iterable[float], form: str) -> Line:
    return [" " if math.isnan(value) else f"{value:{form}}" for value in values]


def _title(regime: str) -> str:
    return titles()[regime]


# --- means ----------------------------------------------------------------------------------------

BELOW = "†"  # behind the mean of full supervision where a baseline is better
BY_SEED = "Each run, in the order of its seed"
# That an interval, a p or what is best is told of: fewer say nothing of how much runs scatter.
FEWEST_RUNS = 3


def _dice_table(rows: pd.DataFrame) -> Lines:
    """Means over runs of each regime, as in the table of the paper; of registration the true error,
    too, where it is known. Then the same run by run.

    Bold is the best of those that have N labels, and every other that cannot be told from it, run
    by run; of registrations that are sought for each pair by themselves.
    Of fewer than ``FEWEST_RUNS`` nothing is bold.
    """
    rows = rows[rows["changed"] == ""].assign(cohort=cohort_names)
    if rows.empty:
        yield NONE_YET
        return
    runs = rows.groupby("cohort")["run"].nunique()
    yield [" ", *runs.index]
    yield _rule(1 + len(runs))
    below = fewer = False
    for task, metric in _shown(rows):
        yield [_section(task, metric), *[" "] * len(runs)]
        of_task = rows[rows["task"] == task]
        columns = {cohort: _means(some, task, metric) for cohort, some in of_task.groupby("cohort")}
        for regime in _in_order(of_task):
            cells = [columns.get(cohort, {}).get(regime, " ") for cohort in runs.index]
            below |= any(BELOW in cell for cell in cells)
            fewer |= any("(" in cell for cell in cells)
            yield [_title(regime), *cells]
    yield ["runs", *map(str, runs)]
    if below:
        yield ""
        yield f"{BELOW} A baseline is better: there full supervision is no ceiling."
    if fewer:
        yield ""
        yield "(n): a mean of n of the runs; compare it run by run."
    yield from _each_run(rows)


def _shown(rows: pd.DataFrame) -> Iterator[tuple[str, Metric]]:
    """(task, metric) of each part of the table."""
    for task in NETWORK_OF:
        for metric in METRICS:
            if metric == "dice" or regimes_with(rows[rows["task"] == task], metric):
                yield task, metric


def _section(task: str, metric: Metric) -> str:
    return f"*{task}*" if metric == "dice" else f"*{task}: {METRICS[metric][0]}*"


def _in_order(rows: pd.DataFrame) -> list[str]:
    there = set(rows["regime"])
    return [regime for regime in titles() if regime in there]


def _means(rows: pd.DataFrame, task: str, metric: Metric) -> dict[str, str]:
    """Cell of each regime: its mean, bold if it is among the best, marked where full supervision is
    behind a baseline, and with the number of its runs where others have more.
    """
    _, sign = METRICS[metric]
    of_runs = rows.groupby(["regime", "run"])[metric].mean()
    means = of_runs.groupby("regime").mean().dropna()
    runs = of_runs.dropna().groupby("regime").size()
    enough = means[runs[means.index] >= FEWEST_RUNS]
    of_pairs = enough.index.isin(OF_EACH_PAIR)
    best = _best(rows, enough[~of_pairs], metric) | _best(rows, enough[of_pairs], metric)
    network = NETWORK_OF[task]
    rivals = [key for key in (BASELINES[network], CONTROLS[network]) if key in means]
    cells = {}
    for regime, mean in means.items():
        told = f"{mean:.1f}" if metric == "dice" else f"{mean:.2f}"
        if regime in best:
            told = f"**{told}**"
        ceiling = regime in REGIMES and sees_all_labels(regime)
        if ceiling and any(sign * (means[key] - mean) > 0 for key in rivals):
            told += f" {BELOW}"
        if runs[regime] < runs.max():
            told += f" ({runs[regime]})"
        cells[regime] = told
    return cells


def _best(rows: pd.DataFrame, means: pd.Series, metric: Metric) -> set[str]:
    """The best of the regimes that have N labels, and those that cannot be told from it."""
    of_n_labels = [regime for regime in means.index if not sees_all_labels(regime)]
    if len(of_n_labels) < 2:
        return set()
    _, sign = METRICS[metric]
    first = (sign * means[of_n_labels]).idxmax()
    found = {first}
    for regime in of_n_labels:
        comparable = regime != first and _in_one_run(rows, regime, first, metric)
        if comparable and cannot_be_told(gain(rows, regime, first, metric)):
            found.add(regime)
    return found


def _in_one_run(rows: pd.DataFrame, regime: str, other: str, metric: str) -> bool:
    """Is there a run that scores both?"""
    scored = rows[rows[metric].notna()]
    runs = [set(scored.loc[scored["regime"] == key, "run"]) for key in (regime, other)]
    return not runs[0].isdisjoint(runs[1])


def _each_run(rows: pd.DataFrame) -> Lines:
    """The means of single runs, folded up."""
    yield ""
    yield f"<details><summary>{BY_SEED}</summary>"
    yield ""
    seeds = rows.drop_duplicates("run").sort_values(["seed", "label_seed"]).groupby("cohort")
    order = {cohort: list(some["run"]) for cohort, some in seeds}
    named = {cohort: ", ".join(map(str, some["seed"])) for cohort, some in seeds}
    yield [" ", *(f"{cohort}: {named[cohort]}" for cohort in order)]
    yield _rule(1 + len(order))
    for task, metric in _shown(rows):
        yield [_section(task, metric), *[" "] * len(order)]
        of_task = rows[rows["task"] == task]
        means = of_task.groupby(["regime", "run"])[metric].mean()
        for regime in _in_order(of_task):
            of_regime = means[regime]
            cells = []
            for runs in order.values():
                values = of_regime.reindex(runs)
                told = _cells(values, ".1f" if metric == "dice" else ".2f")
                each = ", ".join("-" if text == " " else text for text in told)
                cells.append(each if values.notna().any() else " ")
            yield [_title(regime), *cells]
    yield ""
    yield "</details>"


# --- gains ----------------------------------------------------------------------------------------


def _gains_table(rows: pd.DataFrame) -> Lines:
    """Every gain, with p corrected by Holm over the lines of the table that have one; of fewer than
    ``FEWEST_RUNS`` the mean alone, and no share of a gap.
    """
    table = gains(rows[(rows["changed"] == "") & (rows["regime"] != IDENTITY)])
    if table.empty:
        yield NONE_YET
        return
    known = [metric for metric in ERRORS if metric in table]
    header = ["cohort", "N", "task", "against", "gain in points [95 %]", "by seed"]
    enough = table["runs"] >= FEWEST_RUNS
    header += [f"p (Holm, {enough.sum()})", "share of the gap"]
    header += [f"{METRICS[metric][0]} [95 %]" for metric in known]
    yield header
    yield _rule(len(header))
    table.loc[enough, "p"] = holm(table.loc[enough, "p"].fillna(1))
    table = table.assign(cohort=cohort_names, p=table["p"].where(enough))
    table = table.sort_values("labelled", kind="stable")
    for _, row in table.iterrows():
        share = row.get("share") if row["runs"] >= FEWEST_RUNS else None
        yield [
            row["cohort"],
            str(row["labelled"]),
            row["task"],
            _title(row["against"]),
            _with_interval(row, "gain", "low", "high", "+.1f"),
            row["by_seed"],
            _p(row["p"]),
            share if isinstance(share, str) else " ",
            *(  # in true error: below 0 it has fallen
                _with_interval(row, metric, f"{metric}_low", f"{metric}_high", "+.2f")
                for metric in known
            ),
        ]


def _with_interval(row: pd.Series, mean: str, low: str, high: str, form: str) -> str:
    """What these columns of a row say of its ``runs``, or " "."""
    if math.isnan(row[mean]):
        return " "
    told = f"{row[mean]:{form}}"
    if row["runs"] < FEWEST_RUNS:
        return told
    return f"{told} [{row[low]:{form}}, {row[high]:{form}}]"


def _p(p: float) -> str:
    if math.isnan(p):
        return " "
    return "< .001" if p < 0.001 else f"{p:.3f}"


# --- claims ---------------------------------------------------------------------------------------


def _claims_table(results: Path, conditions: dict[str, str]) -> Lines:
    """What was claimed before the runs, and what has become of it."""
    _selected(pd.DataFrame(), conditions, ())  # raises: claims select their rows themselves
    if not (results / CLAIMS).is_file():
        raise UserError(f"there is no {CLAIMS} in {results}")
    claims = read_claims(results / CLAIMS)
    try:
        judged = judge(claims, results)
    except FileNotFoundError:
        yield NONE_YET
        return
    header = ["claim", "cohort", "against", "gain [95 %]", "by seed", "p", "p (Holm)", "decision"]
    yield header
    yield _rule(len(header))
    for _, row in judged.iterrows():
        seeds = row["by_seed"]
        told = " "
        if row["lacking"]:
            seeds = f"no run of seed {row['lacking']}"
        else:
            told = f"{row['gain']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        what = [row["claim"], row["cohort"], row["against"]]
        yield [*what, told, seeds, _p(row["p"]), _p(row["p_holm"]), row["decision"]]


# --- where it helps -------------------------------------------------------------------------------


def _map_table(rows: pd.DataFrame) -> Lines:
    """How far the teacher is ahead of its pupil, and what joint training gains over each decisive
    rival, run by run.
    """
    try:
        points = teacher_map(rows)
    except UserError:  # no run of all its regimes
        yield NONE_YET
        return
    rivals = list(dict.fromkeys(points["against"]))
    header = ["cohort", "N", "task", "teacher ahead by", "by seed"]
    for rival in rivals:
        header += [f"gain over {rival}", "by seed"]
    yield header
    yield _rule(len(header))
    for (task, labelled, cohort), some in points.groupby(["task", "labelled", "cohort"]):
        ahead = some.drop_duplicates("seed").sort_values("seed")["teacher"]
        line = [cohort, str(labelled), task, *_mean_and_each(ahead)]
        for rival in rivals:
            of_rival = some[some["against"] == rival].sort_values("seed")["gain"]
            line += _mean_and_each(of_rival)
        yield line


def _mean_and_each(values: pd.Series) -> Line:
    if values.empty:
        return [" ", " "]
    return [f"{values.mean():+.1f}", ", ".join(_cells(values, "+.1f"))]


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
    "DeepAtlas by seed: segmentation",
    "registration",
]


def _joint_table(rows: pd.DataFrame) -> Lines:
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
        of_joint = some[some["regime"] == JOINT].sort_values("seed")
        by_seed = [of_joint.loc[of_joint["task"] == task, "Dice %"] for task in NETWORK_OF]
        yield [
            cohort,
            str(labelled),
            recipe,
            changed or " ",
            *_cells(means["Dice %"].reindex(shown), ".1f"),
            *_cells(joint.loc[["registration"], "folds %"], ".2f"),
            *_cells(joint["minus"], "+.1f"),
            str(some["run"].nunique()),
            *(", ".join(_cells(values, ".1f")) for values in by_seed),
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


# --- the same run, twice --------------------------------------------------------------------------

AGAIN = "again"  # folder of results whose rows are of runs that stand in the results, made anew


def _reruns_table(rows: pd.DataFrame) -> Lines:
    """Mean Dice of every regime in a run and in the same run ``AGAIN``, and what joint training
    gains over its decisive rivals in each.
    """
    yield ["cohort", "seed", "task", "regime", "Dice %", "again", "difference"]
    yield _rule(7)
    rows = rows[rows["regime"] != IDENTITY].assign(cohort=cohort_names)
    for (cohort, seed, task), some in rows.groupby(["cohort", "seed", "task"]):
        dice = some.set_index("regime")[["Dice %", "Dice % again"]]
        compared = {_title(regime): dice.loc[regime] for regime in _in_order(some)}
        for rival in (BASELINES[NETWORK_OF[task]], SEMI[NETWORK_OF[task]]):
            if {rival, JOINT} <= {*dice.index}:
                name = f"*{_title(JOINT)} minus {_title(rival)}*"
                compared[name] = dice.loc[JOINT] - dice.loc[rival]
        for name, (first, again) in compared.items():
            numbers = [f"{first:.1f}", f"{again:.1f}", f"{again - first:+.1f}"]
            yield [cohort, str(seed), task, name, *numbers]


def _made_twice(results: Path) -> pd.DataFrame:
    """The rows of ``results`` whose run was made again, with "Dice % again"."""
    keys = [*PARAMETERS, "changed", "task", "regime"]
    return _regimes(results).merge(
        _regimes(results / AGAIN)[[*keys, "Dice %"]], on=keys, suffixes=("", " again")
    )


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


def _speed_table(rows: pd.DataFrame) -> Lines:
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


def _growth_table(rows: pd.DataFrame) -> Lines:
    header = ["work", "grows with", "exponent", "at these sizes"]
    yield header
    yield _rule(len(header))
    for _, row in rows[rows["exponent"].notna()].iterrows():
        yield [row["operation"], row["size"], f"{row['exponent']:.2f}", row["note"]]


PAIRS_HEADER = ["program", "Dice %", "folds", "ms", "time / fastest peer's"]


def _pairs_table(rows: pd.DataFrame) -> Lines:
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


def _regimes(results: Path) -> pd.DataFrame:
    rows = read_table(results, "regimes")
    return rows.assign(changed=of_the_method(rows["changed"]))


# kind -> its lines, of a folder of results and the conditions of a mark
TABLES: dict[str, Callable[[Path, dict[str, str]], Lines]] = {
    "dice": partial(_of_runs, load_results, _dice_table),
    "gains": partial(_of_runs, load_results, _gains_table),
    "claims": _claims_table,
    "map": partial(_of_runs, load_results, _map_table),
    "joint": partial(_of_runs, _regimes, _joint_table),
    "reruns": partial(_of_runs, _made_twice, _reruns_table),
    "speed": partial(_of_benchmarks, _speed_table),
    "growth": partial(_of_benchmarks, _growth_table),
    "pairs": partial(_of_benchmarks, _pairs_table),
}
