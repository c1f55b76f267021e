"""Score rivals in the place of a regime:

    python -m benchmarks.peers --dataset oasis35 --dims 2 --seed 100 --rival ants_cc --out rows.csv

Cohort, labelled scans, test scans and pairs are those of the experiment with these parameters. A
row a subject is added to the file; a rival and seed whose rows are in it is not scored again, so
the same command goes on where it was stopped.
"""

import argparse
import sys
import warnings
from pathlib import Path

from deepatlas.errors import FAILED, UserError
from deepatlas.evidence.rivals import FILE
from deepatlas.parameters import parse
from deepatlas.places import RESULTS

from . import rows
from .cases import Cases, run_of, scored
from .table import RIVALS, rival_named
from .tuning import TRIALS, chosen


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--profile", default="class")
    parser.add_argument("--dims", type=int, help="2: slices, 3: volumes")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--labelled", type=int, help="N, by default 1")
    parser.add_argument("--label-seed", type=int, help="by default the seed")
    parser.add_argument("--rival", nargs="+", default=list(RIVALS), help=", ".join(RIVALS))
    parser.add_argument("--steps", type=int, help="of the trainings of DynUNet")
    parser.add_argument("--device", default="cpu", help="of these, and of their predictions")
    parser.add_argument("--validation", action="store_true", help="score validation scans instead")
    parser.add_argument("--tuning", type=Path, default=TRIALS, help="trials that settings are of")
    parser.add_argument("--out", type=Path, default=RESULTS / FILE)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # of the peers
    try:
        for name in options.rival:  # an error before any work
            rival_named(name)
        rows.read(options.out)
        for seed in options.seed:
            score_seed(options, seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return FAILED
    return 0


def score_seed(options: argparse.Namespace, seed: int) -> None:
    """Score the rivals that are not in the file yet; the cohort is read if there is one."""
    experiment = parse(
        {
            "dataset": options.dataset,
            "profile": options.profile,
            "dims": options.dims,
            "labelled": options.labelled,
            "label_seed": options.label_seed,
            "seed": seed,
            "device": options.device,
        }
    )
    part = "validation" if options.validation else "test"
    cases = None
    for name in options.rival:
        rival = rival_named(name)
        run = run_of(name, rival, experiment, part)
        settings = dict(chosen(name, experiment, options.tuning))
        if options.steps is not None and rival.trains:
            settings["steps"] = options.steps
        before = rows.rows_of(run, options.out)
        if not before.empty:
            same = before["settings"].eq(rows.as_text(settings)).all()
            print(f"{name}, seed {seed}: scored before{'' if same else ', with other settings'}")
            continue
        if rival.sees == "some" and experiment.labelled < rival.least:
            print(
                f"{name}, seed {seed}: wants {rival.least} labelled scans, and "
                f"{experiment.labelled} are: with one, label fusion is label propagation"
            )
            continue
        cases = cases or Cases.of(experiment, part)
        found = scored(name, rival, settings, cases)
        rows.add(run, found, options.out)
        print(
            f"{name}, seed {seed}: Dice {found['dice'].mean():.2f} %, "
            f"{found['seconds'].median():.3g} s of the processor each",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
