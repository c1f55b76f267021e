"""Many experiments and what they show together: a file of sweeps, the rows of finished runs, and
paired statistics.

Results are two small tables: one row per arm of a run, and one per subject of an arm, from which
every gain can be computed again. Each row names its run and the hash of the run's record, which is
kept beside them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import shutil
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from . import datasets, evaluation, experiments, reporting
from .parameters import Experiment, parse

RESULTS = experiments.PROJECT / "tutorials_data" / "results"
# their tables are made from the results
PAGES = (experiments.PROJECT / "README.md", RESULTS / "README.md")
# of a run, in its rows
PARAMETERS = ("dataset", "profile", "dims", "recipe", "labelled", "seed", "label_seed")


def read_sweep(path: Path, only: Mapping[str, object] | None = None) -> list[Experiment]:
    """The experiments of a TOML file: ``[[sweep]]`` tables, whose lists stand for every one of
    their values.

    ``only`` leaves those whose parameters have these values. Raises FileNotFoundError or ValueError
    naming the file, or the parameter, and the mistake.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; [[sweep]] tables of parameters were wanted, as in "
            "tutorials_data/results/evidence.toml"
        )
    try:
        sweeps = tomllib.loads(Path(path).read_text(encoding="utf-8"))["sweep"]
        found = [
            parse(dict(zip(sweep, values, strict=True)))
            for sweep in sweeps
            for values in itertools.product(
                *(v if isinstance(v, list) else [v] for v in sweep.values())
            )
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: [[sweep]] tables of parameters were wanted: {error}") from error
    for name in set(only or {}) - Experiment.model_fields.keys():
        parse({name: 0})  # raises: it knows what may have been meant
    only = {name: _value(name, value) for name, value in (only or {}).items()}
    if "dataset" in only:
        datasets.describe(only["dataset"])  # raises if there is none
    wanted = [e for e in found if all(getattr(e, name) == value for name, value in only.items())]
    return list({experiment.name: experiment for experiment in wanted}.values())


def _value(name: str, value: object) -> object:
    """``value`` as the parameter ``name`` has it; one sentence if it cannot be."""
    try:
        return TypeAdapter(Experiment.model_fields[name].annotation).validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise ValueError(f"parameter {name!r} = {value!r}: {said[0].lower()}{said[1:]}") from None


def collect(folders: Iterable[Path], results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write ``arms.csv``, ``subjects.csv`` and ``runs/<name>.json`` of finished runs into
    ``results``; both tables.

    Earlier rows of other experiments stay; those of the same parameters, from other code, are
    replaced.
    """
    arms, subjects = (
        [frame] if (frame := _read(results / f"{name}.csv")) is not None else []
        for name in ("arms", "subjects")
    )
    for folder in folders:
        record_hash = _keep_record(folder, results / "runs")
        table = reporting.results_table(folder, titles=False).reset_index()
        who = {"run": folder.name, "sha256": record_hash}
        values = reporting.load_record(folder)["experiment"]
        who |= {name: values[name] for name in PARAMETERS} | {"changed": changed(values)}
        arms.append(table.assign(**who))
        subjects.append(_per_subject(reporting.load_scores(folder)).assign(run=folder.name))
    every = pd.concat(arms)
    latest = every.drop_duplicates([*PARAMETERS, "changed"], keep="last")["run"]
    keys = (["run", "task", "regime"], ["run", "task", "regime", "subject"])
    tables = []
    for name, frames, key in zip(("arms", "subjects"), (arms, subjects), keys, strict=True):
        table = pd.concat(frames).drop_duplicates(key, keep="last").sort_values(key, kind="stable")
        table = table[table["run"].isin(latest)]
        table = table[key + [column for column in table if column not in key]].reset_index(
            drop=True
        )
        experiments.write_csv(table, results / f"{name}.csv")
        tables.append(table)
    for name in set(every["run"]) - set(latest):
        (results / "runs" / f"{name}.json").unlink(missing_ok=True)
    return tables[0], tables[1]


def changed(values: Mapping[str, object]) -> str:
    """What an experiment sets otherwise than its recipe and profile, as in "lambda_r=1.0
    reg_turns=20".
    """
    usual = parse({name: values[name] for name in PARAMETERS}).model_dump()
    return " ".join(f"{name}={value}" for name, value in values.items() if value != usual[name])


def _setting(arms: pd.DataFrame) -> pd.Series:
    """What a run changes of the method; that it trains fewer arms changes none of them."""
    return arms["changed"].str.replace("arms=joint", "").str.strip()


def _read(path: Path) -> pd.DataFrame | None:
    return (
        pd.read_csv(path, dtype={"subject": str}).fillna({"changed": ""})
        if path.is_file()
        else None
    )


def _table(results: Path, name: str) -> pd.DataFrame:
    if (table := _read(results / f"{name}.csv")) is None:
        raise FileNotFoundError(
            f"{results}: no {name}.csv in it, of the tables that `deepatlas sweep` keeps"
        )
    return table


def _keep_record(folder: Path, place: Path) -> str:
    """Copy run.json; returns its hash."""
    place.mkdir(parents=True, exist_ok=True)
    kept = place / f"{folder.name}.json"
    shutil.copyfile(folder / "run.json", kept)
    return hashlib.sha256(kept.read_bytes()).hexdigest()


def _per_subject(scores: pd.DataFrame) -> pd.DataFrame:
    """Dice in percent of each subject in each arm."""
    rows = [
        pd.DataFrame({"task": task, "regime": regime, "dice": 100 * evaluation.per_subject(arm)})
        for (task, regime), arm in scores.groupby(["task", "regime"], sort=False)
    ]
    return pd.concat(rows).reset_index().round({"dice": 3})


def load_results(results: Path = RESULTS) -> pd.DataFrame:
    """One row per subject of an arm, with the parameters of its run; FileNotFoundError if there are
    none.
    """
    arms, subjects = _table(results, "arms"), _table(results, "subjects")
    parameters = arms.drop_duplicates("run")[["run", *PARAMETERS, "changed"]]
    return subjects.merge(parameters, on="run")


def gain(rows: pd.DataFrame, arm: str, other: str) -> dict[str, float]:
    """Mean of ``arm`` - ``other`` in points of Dice, paired by run and subject, with a 95 %
    interval.

    ``rows`` of ``load_results``, of one task. The interval is a bootstrap of two levels: runs are
    drawn with replacement, then subjects within each, so that the draw of the labelled scans counts
    as chance, too.
    """
    pairs = _paired(rows, arm, other)
    mean, resampled, runs = _over_runs((pairs[arm] - pairs[other]).to_frame())
    return {"gain": float(mean[0]), **_interval(resampled[:, 0]), "runs": runs}


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Every gain of joint training: one row per cohort, recipe, N, task and the arm that it is
    compared with.

    Beside the ``gain`` with its interval, the mean of that arm, and the share of the gap between it
    and full supervision, in percent, where the gap is wider than chance.
    """
    found = []
    settings = ["dataset", "profile", "dims", "recipe", "changed", "labelled", "task"]
    for values, some in rows.groupby(settings):
        setting = dict(zip(settings, values, strict=True))
        arms, short = set(some["regime"]), reporting.NETWORK[setting["task"]]
        for other in ("identity", "label_propagation", *reporting.rivals(setting["task"])):
            if other not in arms or "deepatlas" not in arms:
                continue
            mean = some[some["regime"] == other].groupby("run")["dice"].mean().mean()
            row = {**setting, "against": other, "mean": mean, **gain(some, "deepatlas", other)}
            full = f"{short}_full"
            if full in arms:
                row["share"] = gap_closed(some, other, "deepatlas", full)["share"]
            found.append(row)
    return pd.DataFrame(found)


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice of each arm against N, with the interval of ``gain``: what ``plots.curves_figure``
    draws.

    Of the runs by the recipe "best" at class size whose labelled scans were drawn by the seed, with
    those seeds that every N of a cohort has, for another seed is another cohort; where an N has no
    run of all arms, of those of joint training alone. ValueError if there is none.
    """
    usual = rows[
        (rows["recipe"] == "best")
        & (rows["profile"] == "class")
        & (rows["label_seed"] == rows["seed"])
        & rows["changed"].isin(("", "arms=joint"))
    ]
    cohort = ["dataset", "dims"]
    whole = (
        (usual["changed"] == "")
        .groupby([usual[key] for key in (*cohort, "labelled")])
        .transform("any")
    )
    usual = usual[(usual["changed"] == "") | ~whole]
    of_cohort, of_seed = (
        usual.groupby(keys)["labelled"].transform("nunique") for keys in (cohort, [*cohort, "seed"])
    )
    usual = usual[of_seed == of_cohort]
    if usual.empty:
        raise ValueError(
            "no run by the recipe best at class size, with nothing changed and a seed that every N has, "
            "among the results"
        )
    keys, found = [*cohort, "task", "regime", "labelled"], []
    for values, some in usual.groupby(keys, sort=False):
        mean, resampled, runs = _over_runs(some.set_index("run")[["dice"]])
        found.append(
            {
                **dict(zip(keys, values, strict=True)),
                "mean": mean[0],
                **_interval(resampled[:, 0]),
                "runs": runs,
            }
        )
    return pd.DataFrame(found).assign(dataset=_cohort)


def gap_closed(rows: pd.DataFrame, baseline: str, joint: str, full: str) -> dict[str, float]:
    """(joint - baseline) / (full - baseline) in percent, each a mean over runs, with the interval
    of ``gain``.

    NaN unless the interval of full - baseline lies above 0: a share of nothing means nothing.
    """
    pairs = _paired(rows, baseline, joint, full)
    mean, resampled, runs = _over_runs(pairs[[joint, full]].sub(pairs[baseline], axis="index"))
    if _interval(resampled[:, 1])["low"] <= 0:
        return {"share": math.nan, "low": math.nan, "high": math.nan, "runs": runs}
    return {
        "share": float(100 * mean[0] / mean[1]),
        **_interval(100 * resampled[:, 0] / resampled[:, 1]),
        "runs": runs,
    }


def settings(dataset: str, labelled: int = 1, results: Path = RESULTS) -> pd.DataFrame:
    """One thing changed at a time: what joint training reaches in each setting, on slices, at class
    size, with seed 0.

    A row for what was changed, as in "lambda_r=1.0", and "" for the recipe "best" itself; the
    columns are the mean Dice in percent of "segmentation" and "registration", and "folds %".
    ValueError if there is no such run.
    """
    arms = _table(results, "arms")
    usual = {
        "dataset": dataset,
        "labelled": labelled,
        "dims": 2,
        "profile": "class",
        "recipe": "best",
        "seed": 0,
        "label_seed": 0,
        "regime": "deepatlas",
    }
    arms = arms[(arms[list(usual)] == pd.Series(usual)).all(axis=1)].assign(changed=_setting)
    if arms.empty:
        raise ValueError(
            f"{results}: no run of slices of {dataset} at class size with labelled={labelled} and seed=0"
        )
    arms = arms.drop_duplicates(["changed", "task"]).set_index("changed")
    table = arms.pivot(columns="task", values="Dice %")
    return table.assign(**{"folds %": arms.loc[arms["task"] == "registration", "folds %"]})


# --- pages ----------------------------------------------------------------------------------------


def fill_tables(page: str, results: Path = RESULTS) -> str:
    """The text of a Markdown ``page`` with its tables made anew from the results.

    A table stands between ``<!-- dice labelled=1 -->`` and ``<!-- end -->``. Its kind is "dice"
    (arms by cohorts), "gains" (of joint training, with intervals) or "joint" (a line for each
    setting); what follows selects rows. Raises ValueError for a mark that cannot be read.
    """
    both = load_results(results), _table(results, "arms")
    kinds = {
        "dice": (_dice_table, both[1]),
        "gains": (_gains_table, both[0]),
        "joint": (_joint_table, both[1]),
    }

    def table(mark: re.Match) -> str:
        make, rows = kinds[mark[2]]
        for name, value in (pair.split("=") for pair in mark[3].split()):
            if name not in PARAMETERS:
                raise ValueError(
                    f"{mark[1].strip()}: there is no {name!r} to select by: {', '.join(PARAMETERS)}"
                )
            rows = rows[rows[name].astype(str) == value]
        if rows.empty:
            raise ValueError(f"{mark[1].strip()}: no such rows among the results")
        return mark[1] + "".join(f"| {' | '.join(line)} |\n" for line in make(rows)) + mark[4]

    marks = len(re.findall(r"<!-- *(?:dice|gains|joint)", page))
    begin, end = r"(<!-- (dice|gains|joint)((?: \w+=[\w.-]+)*) -->\n)", r"(<!-- end -->)"
    filled, count = re.subn(rf"{begin}(?:(?!<!--).)*?{end}", table, page, flags=re.DOTALL)
    if count != marks:
        raise ValueError(
            f"a table begins with <!-- dice|gains|joint NAME=VALUE ... --> and ends with <!-- end -->; of "
            f"{marks} marks {count} could be read"
        )
    return filled


def _cohort(rows: pd.DataFrame) -> pd.Series:
    """The name of the cohort and its dimensions: slices and volumes are not compared."""
    return rows["dataset"] + ", " + rows["dims"].astype(str) + "D"


def _dice_table(arms: pd.DataFrame) -> Iterator[list[str]]:
    """Mean Dice over runs of each arm, as in the table of the paper."""
    arms = arms[arms["changed"] == ""].assign(cohort=_cohort)
    runs = arms.groupby("cohort")["run"].nunique()
    yield from ([" ", *runs.index], ["---"] * (1 + len(runs)))
    means = arms.groupby(["task", "regime", "cohort"])["Dice %"].mean()
    for task in reporting.NETWORK:
        yield [f"*{task}*", *[" "] * len(runs)]
        for regime, title in reporting.TITLES.items():
            if (task, regime) in means:
                bold = "**" if regime == "deepatlas" else ""
                cells = [means[task, regime].get(cohort) for cohort in runs.index]
                yield [
                    title,
                    *(" " if cell is None else f"{bold}{cell:.1f}{bold}" for cell in cells),
                ]
    yield ["runs", *map(str, runs)]


def _gains_table(rows: pd.DataFrame) -> Iterator[list[str]]:
    yield from (
        ["cohort", "task", "against", "gain in points [95 %]", "share of the gap", "runs"],
        ["---"] * 6,
    )
    table = gains(rows[(rows["changed"] == "") & (rows["regime"] != "identity")])
    for _, row in table.assign(cohort=_cohort).iterrows():
        share = row.get("share", math.nan)
        yield [
            row["cohort"],
            row["task"],
            reporting.TITLES[row["against"]],
            f"{row['gain']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]",
            " " if math.isnan(share) else f"{share:.0f} %",
            str(row["runs"]),
        ]


def _joint_table(arms: pd.DataFrame) -> Iterator[list[str]]:
    """A line for each setting, a mean over its runs; and by how much joint training differs from
    what the recipe "best" makes of the same seeds, which decide the scans and the draws."""
    tasks = [
        (task, regime)
        for task, short in reporting.NETWORK.items()
        for regime in (f"{short}_baseline", f"semi_{short}", "deepatlas")
    ]
    yield from (
        [
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
        ],
        ["---"] * 14,
    )
    drawn = np.where(
        arms["label_seed"] == arms["seed"], "", " label_seed=" + arms["label_seed"].astype(str)
    )
    changed = (_setting(arms) + drawn).str.strip()
    # first the runs of all arms
    arms = arms.sort_values("changed").assign(cohort=_cohort, changed=changed)
    arms = arms.drop_duplicates([*PARAMETERS, "changed", "task", "regime"])
    same = ["cohort", "labelled", "seed", "label_seed", "task", "regime"]
    usual = arms[(arms["recipe"] == "best") & (arms["changed"] == "")].set_index(same)["Dice %"]
    arms = arms.join(usual.rename("usual"), on=same)
    arms["minus"] = (arms["Dice %"] - arms["usual"]).where(
        (arms["recipe"] != "best") | (arms["changed"] != "")
    )
    for (cohort, labelled, recipe, setting), runs in arms.groupby(
        ["cohort", "labelled", "recipe", "changed"]
    ):
        means = runs.groupby(["task", "regime"])[["Dice %", "folds %", "minus"]].mean()
        joint = means.xs("deepatlas", level="regime").loc[list(reporting.NETWORK)]
        yield [
            cohort,
            str(labelled),
            recipe,
            setting or " ",
            *_cells(means["Dice %"].reindex(tasks), ".1f"),
            *_cells(joint.loc[["registration"], "folds %"], ".2f"),
            *_cells(joint["minus"], "+.1f"),
            str(runs["run"].nunique()),
        ]


def _cells(values: Iterable[float], form: str) -> list[str]:
    return [" " if math.isnan(value) else f"{value:{form}}" for value in values]


# --- statistics -----------------------------------------------------------------------------------


def _paired(rows: pd.DataFrame, *arms: str) -> pd.DataFrame:
    table = rows[rows["regime"].isin(arms)].pivot_table(
        index=["run", "subject"], columns="regime", values="dice"
    )
    if missing := set(arms) - set(table):
        raise ValueError(f"no row of {', '.join(sorted(missing))} among {len(rows)} rows")
    return table.dropna()


def _over_runs(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """The mean over runs (index level "run") of each column, the same resampled, and the number of
    runs.
    """
    groups = [group.to_numpy() for _, group in table.groupby(level="run")]
    return (
        np.mean([group.mean(0) for group in groups], axis=0),
        two_level_means(groups),
        len(groups),
    )


def _interval(resampled: np.ndarray) -> dict[str, float]:
    """The middle 95 %."""
    return dict(zip(("low", "high"), np.percentile(resampled, (2.5, 97.5)).tolist(), strict=True))


def two_level_means(
    groups: Sequence[np.ndarray], resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """(resamples, columns): means over groups, drawn with replacement, of the means over their
    rows, drawn likewise.
    """
    rng = np.random.default_rng(seed)
    means = np.stack(
        [
            rng.multinomial(len(g), np.full(len(g), 1 / len(g)), size=resamples) @ g / len(g)
            for g in groups
        ]
    )  # (groups, resamples, columns)
    drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=resamples)
    return np.einsum("rg,grc->rc", drawn, means) / len(groups)
