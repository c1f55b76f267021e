"""Commands about data sets: which there are, fetching one, and looking at a folder of scans."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from ..errors import UserError, printable, shortened
from .arguments import check_file, spread

if TYPE_CHECKING:
    import pandas as pd

    from .. import datasets
    from ..datasets.layouts import Listing
    from ..datasets.proposal import Proposal
    from ..datasets.survey import Survey

MOST_SAID = 20  # sentences that are printed; check.html has all
TABLE_BEGINS = "id,subject,group,"  # by which a table of this command is known


class _Words(TyperGroup):
    """The commands of ``deepatlas data``, with a hint where a data set stands in their place."""

    def resolve_command(self, ctx, args):
        """As click has it: the name, the command and the words that are left."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        from .. import datasets

        if args[0] in datasets.manifest():
            raise UserError(
                f"deepatlas data {args[0]}: a data set is fetched, and what is in it is said, by "
                f"`deepatlas data fetch {args[0]}`"
            )
        if Path(args[0]).exists():
            raise UserError(
                f"deepatlas data {args[0]}: a folder of scans is looked at by "
                f"`deepatlas data check {shlex.quote(args[0])}`"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Words, help="Data sets: those that the kit knows, and your own scans.")


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Data sets: list those that the kit knows, fetch one, or check a folder of your own scans."""
    if context.invoked_subcommand is None:
        list_known()


@app.command("list")
def list_known() -> None:
    """List the data sets that the kit knows, with their licences."""
    from .. import datasets

    for name, entry in datasets.manifest().items():
        typer.echo(f"{name}: {entry.title}. {entry.licence}. {_where(entry)}")


def _where(entry: datasets.Entry) -> str:
    from .. import datasets

    if entry.anatomy is not None:
        return "Made on the spot"
    if datasets.local(entry) is not None:
        return "It is here"
    if entry.url is not None:
        return f"Downloaded by `deepatlas data fetch {entry.name}`"
    return f"Yours to get: set DEEPATLAS_DATA to the folder that holds {entry.folder_name}/"


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="a data set of `deepatlas data list`")],
    profile: str = "class",
    dims: int | None = None,
) -> None:
    """Load a data set (downloading it if need be) and say what is in it."""
    from .. import datasets

    cohort = datasets.load_cohort(name, profile=profile, dims=dims)
    typer.echo(
        f"{len(cohort.train)} training, {len(cohort.validation)} validation and {len(cohort.test)} "
        f"test scans of {' x '.join(map(str, cohort.shape))} voxels of {cohort.spacing} mm, of "
        f"{len({scan.subject for scan in cohort.scans})} persons"
    )
    typer.echo(f"structures: {', '.join(cohort.structures[1:])}")


# --- a folder of scans ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How a folder is read, where it does not show that itself."""

    layout: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="how it is laid out: {layouts}"),
    ] = None
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="how a scan's name gives its person, as in 'mouse_{subject}_*'",
        ),
    ] = None
    image: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="where a scan's image is, as in '{scan}/t1.nii.gz'"),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="where its labels are, as in '{scan}/seg.nii.gz'"),
    ] = None
    contrast: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="of several: BIDS's suffix, as T2w; nnU-Net's channel"),
    ] = None

    def list(self, path: Path) -> Listing:
        """The scans of a folder, or of a file that lists them."""
        from ..datasets.layouts import read_folder

        return read_folder(
            path,
            self.layout,
            subject=self.subject,
            image=self.image,
            labels=self.labels,
            contrast=self.contrast,
        )


@dataclass(frozen=True)
class Report:
    """Where the proposal and what was found are written, and what is said of it."""

    to: Annotated[
        Path, typer.Option(metavar="DIR", help="where cohort.toml, check.csv, check.html go")
    ] = Path()
    force: Annotated[
        bool, typer.Option("--force", help="replace files that are there, your edits too")
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="print nothing but what must be mended")
    ] = False

    def check(self) -> None:
        """UserError now, not after the work, if something else would be replaced."""
        from ..datasets.entries import COHORT_FILE

        for file, begins in (
            (self.to / COHORT_FILE, ""),
            (self.to / "check.csv", TABLE_BEGINS),
            (self.to / "check.html", _mark()),
        ):
            check_file(file)
            if self.force or not begins or not file.exists():
                continue
            with file.open(encoding="utf-8", errors="replace") as stream:
                if begins not in stream.read(400):
                    raise UserError(
                        f"{file}: is there already, and is none of this command's: name another "
                        "folder with --to, or replace it with --force"
                    )

    def say(self, line: str = "") -> None:
        """Print a line, unless nothing is to be printed."""
        if not self.quiet:
            typer.echo(printable(line))


class _NamesLayouts(TyperCommand):
    """A command whose help names the layouts, which are imported only when it is asked for."""

    def format_help(self, ctx, formatter):
        """As click has it, with the names."""
        from ..datasets.layouts import LAYOUTS

        for option in self.params:
            if isinstance(option, TyperOption) and option.name == "layout" and option.help:
                option.help = option.help.format(layouts=", ".join(LAYOUTS))
        super().format_help(ctx, formatter)


@app.command(cls=_NamesLayouts)
@spread
def check(
    path: Annotated[
        Path,
        typer.Argument(help="a folder of scans, a CSV that lists them, or a cohort.toml"),
    ],
    reading: Reading,
    report: Report,
) -> None:
    """Look at every scan of a folder, say what is odd, and propose a cohort file for training.

    Ends with code 1 if there is something to mend before a run, as a file that cannot be read.

        deepatlas data check my_scans
        deepatlas data check my_mice --subject 'mouse_{subject}_*' --to study
    """
    from ..datasets.entries import COHORT_FILE, read_cohort
    from ..datasets.proposal import as_said, propose
    from ..datasets.survey import survey

    report.check()
    listing = reading.list(path)
    report.say(f"layout: {listing.layout}, {listing.why}")
    for note in listing.notes:
        report.say(f"  {note}")
    found = survey(listing, quiet=report.quiet)
    report.say(f"persons: {found.persons}")
    if not found.usable:
        _write_what_was_found(found, None, report)
        _complain(found.problems)
        raise typer.Exit(1)
    file = report.to / COHORT_FILE
    if listing.layout == "cohort":
        file = path
        proposal = as_said(found, read_cohort(path), quiet=report.quiet)
    else:
        name = Path(path.resolve()).name.partition(".")[0]
        proposal = propose(found, name, quiet=report.quiet)
    _print_summary(found, proposal, report.say)
    written = _write_what_was_found(found, proposal, report)
    mistake = _write_cohort(found, proposal, file, report)
    for name in written:
        report.say(f"{name}")
    mend = [*found.problems, *([mistake] if mistake else [])]
    _complain(mend)
    if mistake is None:
        report.say(f"next:    deepatlas run dataset={shlex.quote(str(file))}")
    if mend:
        raise typer.Exit(1)


def _mark() -> str:
    from ..viewers import montage  # here: a machine that only trains lacks IPython

    return montage.MARK


def _write_what_was_found(found: Survey, proposal: Proposal | None, report: Report) -> list[str]:
    """Write the table and the page; lines that say where they are."""
    from ..checkpoints import write_csv, write_text
    from ..viewers import montage

    parts = {} if proposal is None else proposal.parts
    table = found.table()
    if proposal is not None:
        at = table.columns.get_loc("problem")
        table.insert(at, "outside_the_grid", table["id"].map(proposal.fit.outside))
        table.insert(at, "part", table["id"].map(proposal.parts).fillna(""))
    write_csv(table, report.to / "check.csv")
    remarks = [] if proposal is None else proposal.remarks
    page = montage.montage(found, parts, remarks)
    write_text(page, report.to / "check.html")
    return [
        f"table:   {report.to / 'check.csv'}",
        f"page:    {report.to / 'check.html'}, to look at every scan",
    ]


def _write_cohort(found: Survey, proposal: Proposal, file: Path, report: Report) -> str | None:
    """Write the cohort file, unless a person's is there; a sentence if a run would refuse it."""
    from ..checkpoints import write_text
    from ..datasets.entries import read_cohort
    from ..datasets.proposal import cohort_text

    if found.listing.layout == "cohort":
        report.say(f"cohort:  {file}, as you wrote it")
    elif file.exists() and not report.force:
        report.say(
            f"cohort:  {file} is there already and is kept as it is, as you may have edited it; "
            "--force replaces it by the proposal"
        )
    else:
        write_text(cohort_text(proposal, found, report.to), file)
        report.say(f"cohort:  {file}, yours to edit: structures, grid, and the part of every scan")
    try:
        read_cohort(file)
    except UserError as error:
        return str(error)
    return None


def _complain(sentences: Sequence[str]) -> None:
    """Print what must be mended, a line each."""
    for sentence in sentences:
        typer.echo(f"deepatlas: {shortened(sentence, 2000)}", err=True)


# --- what is printed ------------------------------------------------------------------------------


def _print_summary(found: Survey, proposal: Proposal, say: Callable[[str], None]) -> None:
    table = found.table()
    table = table[table["problem"] == ""]
    unlabelled = [scan.file.id for scan in found.usable if scan.file.labels is None]
    labelled = len(found.usable) - len(unlabelled)
    say(f"\n{labelled} labelled and {len(unlabelled)} unlabelled scans can be used")
    if unlabelled:
        say(f"  unlabelled: {_some(unlabelled)}")
    for title, column in {
        "voxels": "grid",
        "voxel, mm": "spacing_mm",
        "orientation": "orientation",
        "unit": "unit",
        "sform": "sform_code",
        "qform": "qform_code",
        "type": "type",
        "labels": "label_numbers",
    }.items():
        if column in table:
            say(f"  {title:12}{_values(table[column])}")
    say(f"  {'intensities':12}{_span(table['minimum'])} to {_span(table['maximum'])}")
    _print_sentences("odd", found.remarks, say)
    say("\nproposed" if found.listing.layout != "cohort" else "\nas the cohort file says")
    say(f"  structures: {_some([structure.name for structure in proposal.structures])}")
    for key, grid in proposal.grids.items():
        say(f"  grid {key}: {' x '.join(map(str, grid.shape))} voxels of {grid.spacing:g} mm")
    shares = list(proposal.fit.outside.values())
    if shares:
        mean = 100 * sum(shares) / len(shares)
        say(f"  labelled voxels outside the grid: {mean:.2g} %, at most {100 * max(shares):.2g} %")
    if proposal.fit.overlap is not None:
        say(f"  overlap of the centred anatomies: {proposal.fit.overlap:.2f} (mean Dice)")
    say(f"  affine alignment: {'yes' if proposal.align else 'no'}")
    count = Counter(proposal.parts.values())
    parts = ", ".join(f"{part} {count[part]}" for part in ("train", "validation", "test"))
    say(f"  scans: {parts}")
    _print_sentences("of the grid and the split", proposal.remarks, say)
    say("")


def _print_sentences(title: str, sentences: Sequence[str], say: Callable[[str], None]) -> None:
    if sentences:
        say(f"\n{title}")
    for sentence in sentences[:MOST_SAID]:
        say(f"  {sentence}")
    if len(sentences) > MOST_SAID:
        say(f"  and {len(sentences) - MOST_SAID} more, which are in check.html")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _values(column: pd.Series) -> str:
    """The values of a column, the most frequent first, and how many scans have each."""
    import pandas as pd

    values = column.dropna()
    if pd.api.types.is_numeric_dtype(values):
        values = values.map("{:g}".format)  # beside a scan that has none they are no integers
    counts = values.astype(str).replace("", "none").value_counts()
    if len(counts) == 1:
        return shortened(counts.index[0])
    listed = [f"{shortened(value, 60)} ({count})" for value, count in counts.head(4).items()]
    more = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
    return ", ".join(listed) + more


def _span(column: pd.Series) -> str:
    low, high = f"{column.min():.3g}", f"{column.max():.3g}"
    return low if low == high else f"{low}..{high}"
