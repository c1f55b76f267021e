"""What many runs show together: ``gains`` says it in numbers, ``claims`` judges what was claimed
beforehand, ``points`` makes what is drawn, and ``pages`` fills the tables of pages.

All read the two tables that ``sweeps.collect`` keeps; ``paper`` puts runs beside the paper's own
tables.
"""

from ..places import FIRST_RESULTS, RESULTS
from .claims import CLAIMS, judge, read_claims
from .gains import (
    ablations,
    dice_against_n,
    gain,
    gains,
    gap_closed,
    load_results,
    with_those_of_a_gpu,
)
from .pages import PAGES, fill_tables
from .paper import PAPER, check_paper_table, paper_table
from .points import decisive_gains, teacher_map

__all__ = [
    "CLAIMS",
    "FIRST_RESULTS",
    "PAGES",
    "PAPER",
    "RESULTS",
    "ablations",
    "check_paper_table",
    "decisive_gains",
    "dice_against_n",
    "fill_tables",
    "gain",
    "gains",
    "gap_closed",
    "judge",
    "load_results",
    "paper_table",
    "read_claims",
    "teacher_map",
    "with_those_of_a_gpu",
]
