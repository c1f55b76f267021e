"""What many runs show together: ``gains`` says it in numbers, ``pages`` fills the tables of pages.

Both read the two tables that ``sweeps.collect`` keeps; ``paper`` puts runs beside the paper's own
tables.
"""

from ..places import RESULTS
from .gains import (
    ablations,
    dice_against_n,
    gain,
    gains,
    gap_closed,
    load_results,
)
from .pages import PAGES, fill_tables
from .paper import PAPER, check_paper_table, paper_table

__all__ = [
    "PAGES",
    "PAPER",
    "RESULTS",
    "ablations",
    "check_paper_table",
    "dice_against_n",
    "fill_tables",
    "gain",
    "gains",
    "gap_closed",
    "load_results",
    "paper_table",
]
