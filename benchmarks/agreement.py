"""Does a changed program give the same table? Rows that `deepatlas sweep` made, beside those that
come with the project, as the first protocol, in tutorials_data/results/first, has it.

    python benchmarks/agreement.py          those of first/faster, with those of first
    deepatlas sweep my.toml --results FOLDER
    python benchmarks/agreement.py FOLDER   those of FOLDER, with those of first
    python benchmarks/agreement.py FOLDER --committed tutorials_data/results

For each cohort, task and regime: the least and the largest Dice of the committed rows whose
parameters and seeds were run again, their mean, that of the new rows, and whether it lies between
them. Of a single seed there is no spread: there, whether the two are within 1.5 points.
"""

import argparse
from pathlib import Path

import pandas as pd

FIRST = Path(__file__).parents[1] / "tutorials_data" / "results" / "first"
SAME = ["dataset", "dims", "labelled", "task", "regime"]
WITHIN = 1.5  # points of Dice, of one row and another


def rows_of(file: Path) -> pd.DataFrame:
    """Rows of the recipe ``best`` in class size with no parameter changed but those of the machine,
    device or precision.
    """
    table = pd.read_csv(file)
    changed = table["changed"].fillna("").str.replace(r"^(device|precision)=\w+$", "", regex=True)
    plain = (changed == "") & (table["profile"] == "class") & (table["recipe"] == "best")
    return table[plain].drop_duplicates([*SAME, "seed"], keep="last")


def compare(committed: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """One row for each regime that both tables have, over the seeds that both have."""
    both = committed.merge(again, on=[*SAME, "seed"], suffixes=("", ", again"))
    groups = both.groupby(SAME, sort=False)
    old = groups["Dice %"]
    table = old.agg(seeds="size", least="min", largest="max", mean="mean")
    table["again"] = groups["Dice %, again"].mean()
    between = table["again"].between(table["least"], table["largest"])
    near = (table["again"] - table["mean"]).abs() <= WITHIN
    table["same"] = between.where(table["seeds"] > 1, near)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", nargs="?", type=Path, default=FIRST / "faster", help="folder of regimes.csv"
    )
    parser.add_argument(
        "--committed", type=Path, default=FIRST, help="folder of those that it is compared with"
    )
    options = parser.parse_args()
    committed = rows_of(options.committed / "regimes.csv")
    table = compare(committed, rows_of(options.results / "regimes.csv"))
    print(table.round(1).to_string())
    print(f"{table['same'].sum()} of {len(table)} rows are the same")


if __name__ == "__main__":
    main()
