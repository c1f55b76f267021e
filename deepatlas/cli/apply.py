"""Commands that take trained networks to files, and their results on from there."""

from __future__ import annotations

import io
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from tqdm import tqdm

from ..errors import UserError, printable, shortened
from ..places import WEIGHTS
from ..regimes import JOINT
from .arguments import check_file, spread
from .errors import told

if TYPE_CHECKING:
    import pandas as pd

    from .. import apply as applied
    from ..apply import scoring

Item = TypeVar("Item")

# --- options that several commands share ----------------------------------------------------------

Force = Annotated[bool, typer.Option("--force", help="replace files that are there already")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")]
MODEL = (
    "trained networks: the run folder that `deepatlas run` prints, a file that `deepatlas export` "
    "wrote, or the name of networks that come with the kit, phantom-brain"
)


class Precision(StrEnum):
    """In which numbers the networks compute."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass(frozen=True)
class Trained:
    """Which networks are used, and where."""

    model: Annotated[str, typer.Option("--model", "-m", metavar="RUN|FILE|NAME", help=MODEL)]
    regime: Annotated[
        str | None,
        typer.Option(help="of a run folder: whose networks are taken; those of joint training"),
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto"
    precision: Annotated[
        Precision,
        typer.Option(help="bfloat16 takes half the memory, and on some machines half the time"),
    ] = Precision.float32

    def load(self, folder: Path) -> applied.Model:
        """The model; UserError if its words name none, or if results would go into it."""
        from .. import apply as applied
        from .. import machine

        path = Path(self.model)
        refuse_within_run(folder, path)
        self._refuse_cohorts(path)
        self._refuse_many(path)
        device = machine.pick_device(self.device)
        mixed = self.precision is Precision.bfloat16
        return applied.load(self.model, self.regime).to(device, mixed_precision=mixed)

    def _refuse_many(self, path: Path) -> None:
        """The folder that holds the run folders is easily taken for one."""
        runs = sorted(record.parent for record in path.glob("*/run.json"))
        if runs and not (path / "run.json").is_file():
            raise UserError(
                f"{path}: holds {len(runs)} run folders, and one was wanted, as {runs[-1]}"
            )

    def _refuse_cohorts(self, path: Path) -> None:
        """Scans to learn from are no trained networks, which a newcomer may not know."""
        from .. import datasets

        holds_cohort = (path / "cohort.toml").is_file() and not (path / "run.json").is_file()
        is_name = not path.exists() and self.model in datasets.manifest()
        if path.suffix != ".toml" and not holds_cohort and not is_name:
            return
        if is_name and (WEIGHTS / f"{self.model}.pt").is_file():
            return
        raise UserError(
            f"{self.model}: is a data set, not trained networks: train some by `deepatlas run "
            f"dataset={self.model}`, and name the run folder that it prints"
        )


@dataclass(frozen=True)
class Output:
    """Where results go, and what is said of them."""

    folder: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="where the results go; made if missing"),
    ]
    force: Force = False
    quiet: Quiet = False

    def check(self, written: Mapping[Path, Sequence[Path]]) -> None:
        """UserError now, not after the work, unless each input can be ``written`` to its files."""
        source: dict[Path, Path] = {}
        for file, targets in written.items():
            for target in targets:
                other = source.setdefault(target, file)
                if other != file:
                    raise UserError(
                        f"{other} and {file} would both be written to {target}: give each a folder "
                        "of its own, by two commands with another -o, or rename one"
                    )
        inputs = {file.resolve() for file in written}
        for target in source:
            check_file(target)
            if target.resolve() in inputs:
                raise UserError(f"{target}: is an input, and would be replaced: name another -o")
        check_new(list(source), self.force)


def refuse_within_run(target: Path, run: Path) -> None:
    """UserError if ``target`` lies in the run folder ``run``, if it is one."""
    within = target.resolve().is_relative_to(run.resolve())
    if within and (run / "run.json").is_file():
        raise UserError(
            f"{target}: lies in the run folder {run}, whose files are its own: name another place "
            "with -o"
        )


def check_new(targets: Sequence[Path], force: bool) -> None:
    """UserError if a file is there already, unless the user said ``--force``."""
    there = [target for target in targets if target.exists()]
    if there and not force:
        more = f", and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserError(
            f"{there[0]}{more}: there already, and nothing was done: name another place with -o, "
            "or replace with --force"
        )


# --- how they work through their inputs -----------------------------------------------------------


@contextmanager
def saying(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that prints a line, between the bars of progress; if ``quiet``, nothing is printed
    by whom ever, and nobody is warned.
    """

    def say(line: str) -> None:
        tqdm.write(printable(line))

    if not quiet:
        yield say
        return
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield say


def work_through(
    items: Sequence[Item], work: Callable[[Item], None], quiet: bool, unit: str
) -> int:
    """Call ``work`` with each item, with a bar of progress; how many failed, each with its line."""
    failed = 0
    for item in tqdm(items, unit=unit, disable=True if quiet else None, leave=False):
        try:
            work(item)
        except Exception as error:
            sentence = told(error)
            if sentence is None:
                raise
            complain(sentence)
            failed += 1
    return failed


def complain(sentence: str) -> None:
    """Print one line about an input that failed; the others go on."""
    tqdm.write(f"deepatlas: {shortened(sentence, 2000)}", file=typer.get_text_stream("stderr"))


def existing(
    paths: Sequence[Path], wanted: str, inside: Callable[[Path], list[Path]] | None = None
) -> tuple[list[Path], int]:
    """The files among ``paths``, each once, and how many of these are none, which are named.

    A folder stands for what ``inside`` finds in it.
    """
    from ..apply import scoring

    found: list[Path] = []
    missing = 0
    for path in paths:
        try:
            if inside is not None and (path.is_dir() or path.suffix.lower() in scoring.LISTS):
                found += inside(path)
            elif path.is_file():
                found.append(path)
            else:
                raise FileNotFoundError(why_missing(path, wanted))
        except (UserError, OSError) as error:
            complain(told(error) or str(error))
            missing += 1
    return list({file.resolve(): file for file in found}.values()), missing


def images_in(folder: Path) -> list[Path]:
    """The images in a folder, but what is named as labels; of a cohort file, or of a data set that
    is laid out as ``data check`` knows, all scans. UserError if there is none.
    """
    from ..apply import scoring
    from ..datasets.layouts import read_folder
    from ..datasets.layouts.files import scans_in

    if folder.is_dir():
        images = [file for file in scans_in(folder) if not scoring.is_named_as_labels(file)]
        if images:
            return images
    try:
        return [file.image for file in read_folder(folder).files]
    except UserError as error:
        if not folder.is_dir():
            raise
        raise UserError(
            f"{folder}: there is no image in NIfTI format (.nii or .nii.gz) in it, and it is no "
            "data set that `deepatlas data check` reads: name the images, or the folder that "
            "holds them"
        ) from error


def places_of(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the results of each file go: ``folder``, or, of files of one name, as scans have that
    lie in a folder each, a folder in it named after the one that they lie in.
    """
    count = Counter(file.name for file in files)
    return {file: folder / file.parent.name if count[file.name] > 1 else folder for file in files}


def why_missing(path: Path, wanted: str) -> str:
    """The sentence about a path that is no file."""
    if path.is_dir():
        return f"{path}: is a folder, and {wanted} was wanted: name a file in it"
    if any(character in str(path) for character in "*?["):
        return f"{path}: no file fits this pattern: look at the folder and the ending"
    return f"{path}: no such file; {wanted} was wanted"


def end(failed: int) -> None:
    """Leave with code 1 if inputs failed."""
    if failed:
        raise typer.Exit(1)


def _quoted(*words: object) -> str:
    return shlex.join(str(word) for word in words)


# --- the commands ---------------------------------------------------------------------------------


@spread
def segment(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="images in NIfTI format (.nii, .nii.gz); a folder stands for all images in it, "
            "a data set as BIDS, or a cohort.toml, for its scans",
        ),
    ],
    trained: Trained,
    output: Output,
) -> None:
    """Segment images by a trained network.

    For each IMAGE it writes IMAGE_labels.nii.gz, on the image's own grid and in the label numbers
    of the training data, and IMAGE_labels.json, the structures' names; and for the folder
    labels.label.txt and labels.ctbl, their colours for ITK-SNAP and 3D Slicer. Images of one name
    get a folder each, named after the folder that they lie in.

        deepatlas segment scans/*.nii.gz --model runs/MY_RUN -o segmented

    An image that cannot be read is named, and the others go on; the exit code is then 1.
    """
    from .. import apply as applied

    wanted = "an image in NIfTI format (.nii or .nii.gz)"
    files, missing = existing(images, wanted, images_in)
    place = places_of(files, output.folder)
    output.check({file: applied.segmentation_files(file, place[file]) for file in files})
    if not files:
        end(missing)
    with saying(output.quiet) as say:
        model = trained.load(output.folder)

        def work(file: Path) -> None:
            result = applied.segment(file, model)
            labels = result.save(place[file], force=output.force)[0]
            share = round(100 * result.outside)
            beyond = f" ({share} % of it lies outside the networks' grid: background)"
            say(f"{file} -> {labels}{beyond if share else ''}")

        failed = missing + work_through(files, work, output.quiet, "image")
        if failed < len(files) + missing:
            say(f"\n{len(files) + missing - failed} segmented, {failed} failed: {output.folder}")
            compare = _quoted("deepatlas", "evaluate", output.folder)
            say(f"compare with an expert's labels: {compare} FOLDER_OF_LABELS (or cohort.toml)")
    end(failed)


class Format(StrEnum):
    """Who reads a warp."""

    itk = "itk"
    learn2reg = "learn2reg"


@dataclass(frozen=True)
class Warps:
    """Which warps are made of a pair."""

    refine: Annotated[
        int,
        typer.Option(min=0, help="steps by which the network's answer is improved for this pair"),
    ] = 0
    inverse: Annotated[
        bool, typer.Option("--inverse", help="write the warp from fixed to moving, too")
    ] = False
    format: Annotated[
        Format,
        typer.Option(help="itk: for ITK, ANTs and 3D Slicer; learn2reg: as in the challenge"),
    ] = Format.itk


@spread
def register(
    moving: Annotated[
        Path, typer.Argument(metavar="MOVING", help="the image that is warped (NIfTI)")
    ],
    fixed: Annotated[
        Path, typer.Argument(metavar="FIXED", help="the image that it is warped onto (NIfTI)")
    ],
    trained: Trained,
    output: Output,
    warps: Warps,
) -> None:
    """Register one image to another by a trained network: find the warp that carries MOVING onto
    FIXED.

    It writes MOVING_to_FIXED_warp.nii.gz, the warp on the grid of FIXED, and
    MOVING_to_FIXED.nii.gz, the warped image; two images of one name are told apart by their
    folders, as in p1_t1_to_p2_t1_warp.nii.gz. `deepatlas apply`, ANTs and 3D Slicer apply the warp
    to whatever lies where MOVING lies: other contrasts, labels.

        deepatlas register a.nii.gz b.nii.gz --model runs/MY_RUN -o registered
    """
    from .. import apply as applied

    for path in (moving, fixed):
        if not path.is_file():
            raise FileNotFoundError(why_missing(path, "an image in NIfTI format"))
    targets = applied.registration_files(
        moving, fixed, output.folder, inverse=warps.inverse, format=warps.format.value
    )
    output.check({fixed: [], moving: targets})  # which may be one file
    with saying(output.quiet) as say:
        model = trained.load(output.folder)
        result = applied.register(moving, fixed, model, refine=warps.refine, inverse=warps.inverse)
        written = result.save(output.folder, format=warps.format.value, force=output.force)
        for file in written:
            say(str(file))
        if warps.format is Format.itk:
            warp = written[0]
            say(f"\napply it to labels that lie where {moving} does:")
            say(f"  {_quoted('deepatlas', 'apply', warp)} LABELS --labels -o {output.folder}")
            dims = min(3, len(result.fixed.known_source.shape))
            ants = _quoted("antsApplyTransforms", "-d", dims, "-r", fixed, "-t", warp)
            say(f"  {ants} -i LABELS -n NearestNeighbor -o warped.nii.gz")


@spread
def apply(
    warp: Annotated[
        Path, typer.Argument(metavar="WARP", help="a warp that `deepatlas register` or ANTs wrote")
    ],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="what is warped: images or labels (NIfTI) that lie where the moving image does, "
            "or with --points tables (CSV, TSV)",
        ),
    ],
    output: Output,
    labels: Annotated[
        bool, typer.Option("--labels", help="they are labels: to the nearest voxel, never mixed")
    ] = False,
    points: Annotated[
        bool,
        typer.Option(
            "--points",
            help="they are tables of points, columns x, y, z in mm, in the fixed image; each is "
            "carried to the moving one",
        ),
    ] = False,
    lps: Annotated[
        bool,
        typer.Option(
            "--lps", help="the points are LPS, as in ITK, ANTs and 3D Slicer; by default RAS+"
        ),
    ] = False,
) -> None:
    """Apply a warp to images, labels or points.

    Images and labels are resampled on the warp's grid, that of the fixed image. Points go the other
    way, from the fixed image to the moving one; to carry points of the moving image, give the
    inverse warp (`deepatlas register --inverse`).

        deepatlas apply registered/a_to_b_warp.nii.gz a_labels.nii.gz --labels -o registered
    """
    from ..apply import formats, transform

    if labels and points:
        raise typer.BadParameter("--labels or --points, not both: one command for each kind")
    if lps and not points:
        raise typer.BadParameter("--lps says how points are written: it goes with --points")
    if not warp.is_file():
        raise FileNotFoundError(why_missing(warp, "a warp (NIfTI)"))
    kind: transform.Kind = "labels" if labels else "points" if points else "image"
    wanted = (
        "a table of points (.csv, .tsv)" if points else "an image in NIfTI format (.nii or .nii.gz)"
    )
    found, missing = existing(files, wanted)
    written = {file: [transform.warped_file(file, output.folder, kind)] for file in found}
    output.check({warp: [], **written})
    if not found:
        end(missing)
    with saying(output.quiet) as say:
        field = formats.read_warp(warp)

        def work(file: Path) -> None:
            warped = transform.apply_warp(field, file, kind, output.folder, lps=lps)
            say(f"{file} -> {warped}")
            if labels:
                say(
                    f"compare: {_quoted('deepatlas', 'evaluate', warped)} LABELS_OF_THE_FIXED_IMAGE"
                )

        failed = missing + work_through(found, work, output.quiet, "file")
    end(failed)


def evaluate(
    predicted: Annotated[
        Path, typer.Argument(metavar="PREDICTED", help="labels (NIfTI), or a folder of them")
    ],
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="REFERENCE",
            help="an expert's labels of the same scans: a file, a folder, or the cohort.toml that "
            "lists them",
        ),
    ],
    to: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="CSV", help="the table to write")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="which numbers mean which structure, as beside a segmentation; by default the "
            "file beside each predicted one, and without that each number is a structure",
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Compare labels with an expert's: Dice, surface distances, volumes.

    Two files, or two folders, matched by names: CASE_labels.nii.gz is compared with CASE.nii.gz or
    CASE_seg.nii.gz; what has no partner is named. Each pair must lie on one grid. A cohort.toml
    stands for all its labelled scans, those that were trained on, too: segment those of its test
    part alone where the means are to say what to expect of new scans.

    It prints the means over all cases; the CSV has a row for each case and structure: dice; nsd,
    the share of the boundary within a voxel; hd95_mm and surface_mm, distances between boundaries;
    volume_error, -0.1 where a tenth is missing.

        deepatlas evaluate segmented labelsTs -o scores.csv

        deepatlas evaluate segmented study/cohort.toml -o scores.csv
    """
    import pandas as pd

    from ..apply import formats, scoring
    from ..checkpoints import write_csv

    if to is not None:
        check_file(to)
        if to.suffix != ".csv":
            raise UserError(f"{to}: a name that ends in .csv was wanted for the table of scores")
        check_new([to], force)
    structures = None if names is None else formats.read_sidecar(names)
    found = scoring.match(predicted, reference)
    for path in found.without_reference:
        complain(f"{path}: no labels in {reference} belong to it")
    rows: list[dict] = []

    def work(pair: scoring.Pair) -> None:
        rows.extend(scoring.score_files(pair, structures))

    with saying(quiet) as say:
        failed = work_through(found.pairs, work, quiet, "case")
        if found.unlabelled:
            listed = ", ".join(_told_apart(found.unlabelled))
            say(shortened(f"unlabelled in {reference}, not scored: {listed}"))
        if found.without_prediction:
            listed = ", ".join(_told_apart(found.without_prediction))
            say(shortened(f"no prediction for {len(found.without_prediction)}: {listed}"))
        if rows:
            table = pd.DataFrame(rows, columns=list(scoring.COLUMNS))
            count = table["case"].nunique()
            say(f"means over {count} case{'s' * (count > 1)}\n{_means(table)}")
            if to is not None:
                write_csv(table, to)
                say(f"\nscores of each case: {to}")
    end(failed + len(found.without_reference))


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """Their names, with their folders where several have one name."""
    names = Counter(path.name for path in paths)
    return [path.name if names[path.name] == 1 else str(Path(*path.parts[-2:])) for path in paths]


def _means(table: pd.DataFrame) -> str:
    """The mean of each structure over the cases, and the mean of these, as text."""
    from ..evaluation.overlap import STRUCTURE_METRICS

    metrics = list(STRUCTURE_METRICS)
    means = table.groupby("structure", sort=False)[metrics].mean()
    if len(means) > 1:
        means.loc["mean of all"] = means.mean()
    means.index = [printable(name) for name in means.index]
    return means.to_string(float_format="{:.3f}".format)


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="a run folder, as `deepatlas run` prints it")
    ],
    to: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the file to write")],
    regime: Annotated[
        str, typer.Option(help="whose networks: deepatlas are those of joint training")
    ] = JOINT,
    with_reference: Annotated[
        bool,
        typer.Option(
            "--with-reference",
            help="put in the scan that others are aligned to, even if the data's licence does not "
            "clearly allow it",
        ),
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Put trained networks into one file that a colleague can use.

    The file holds the networks, how a scan is prepared for them, the structures' names and numbers,
    and a model card, which is written beside it as text, too. It takes the place of the run folder
    in `deepatlas segment --model FILE` and `deepatlas register --model FILE`. The weights are
    rounded to 16 bits: here and there a voxel at a border gets another label than by the folder.

        deepatlas export runs/MY_RUN -o hippocampus.pt
    """
    from .. import apply as applied

    check_file(to)
    refuse_within_run(to, run)
    with saying(quiet) as say:
        applied.export(run, to, regime, with_reference=with_reference, force=force)
        say(f"{to}, with its model card: {to.with_suffix('.md')}")
        written = applied.load(to)
        if written.aligned and written.preparation.reference is None:
            return  # nobody can use it as it is, which was said
        say(f"use it: deepatlas segment IMAGE --model {_quoted(to)} -o DIR")
