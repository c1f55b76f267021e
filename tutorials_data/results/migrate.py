"""Brings a folder of results up to date: python tutorials_data/results/migrate.py FOLDER

What is now a regime was once called an arm. In a folder that `deepatlas sweep` left then,

- `arms.csv` becomes `regimes.csv`, and `arms=joint` in its column "changed" `regimes=joint`;
- in each record in `runs/` the parameter "arms" becomes "regimes", and nothing else changes;
- the column "sha256" names the records as they are now. A row that did not name its record as it
  was before keeps the hash that it had, so that the two still do not fit.

Names of runs and numbers stay as they are. It may be stopped and started again at any time: each
file is either as before or done, and what is done is left alone. A file of sweeps that still says
`arms = "joint"` is for you to edit.
"""

import csv
import hashlib
import io
import re
import sys
from pathlib import Path

from deepatlas.checkpoints import write_atomically, write_text

OLD, NEW = b'"arms": ', b'"regimes": '


def main(folder):
    table = folder / "arms.csv"
    if not table.is_file() and not (folder / "regimes.csv").is_file():
        sys.exit(f"{folder}: no arms.csv and no regimes.csv in it: it is no folder of results")
    if table.is_file() and (folder / "regimes.csv").is_file():
        sys.exit(f"{folder}: both arms.csv and regimes.csv are in it: remove the one that is wrong")
    records = sorted((folder / "runs").glob("*.json"))
    hash_now = dict(rename_parameter(path) for path in records)
    if table.is_file():
        write_text(renamed(table.read_text(encoding="utf-8"), hash_now), table)
        table.rename(folder / "regimes.csv")
    print(f"{folder}: up to date, {len(records)} records")


def rename_parameter(path):
    """Rename it in a record; the hash that the record had before, and the one that it has now."""
    before = path.read_bytes().replace(NEW, OLD, 1)  # also if it has been renamed already
    now = before.replace(OLD, NEW, 1)
    write_atomically(path, lambda file: file.write_bytes(now))
    return hashlib.sha256(before).hexdigest(), hashlib.sha256(now).hexdigest()


def renamed(text, hash_now):
    """The table with its texts and hashes as they are now; every other cell letter by letter."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows.fieldnames, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        row["changed"] = re.sub(r"\barms=", "regimes=", row["changed"])
        row["sha256"] = hash_now.get(row["sha256"], row["sha256"])
        writer.writerow(row)
    return file.getvalue()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.partition("\n")[0])
    main(Path(sys.argv[1]))
