"""What many runs show together: ``gains`` says it in numbers, ``pages`` fills the tables of pages.

Both read the two tables that ``sweeps.collect`` keeps.
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

__all__ = [
    "PAGES",
    "RESULTS",
    "ablations",
    "dice_against_n",
    "fill_tables",
    "gain",
    "gains",
    "gap_closed",
    "load_results",
]
