"""Many experiments: ``plan`` reads them from a file, ``collect`` keeps their rows."""

from .collect import (
    JOINT_ALONE,
    PARAMETERS,
    ablation,
    changed,
    check_results,
    collect,
    read_table,
    refuse_older,
)
from .plan import read_paper_table, read_sweep

__all__ = [
    "JOINT_ALONE",
    "PARAMETERS",
    "ablation",
    "changed",
    "check_results",
    "collect",
    "read_paper_table",
    "read_sweep",
    "read_table",
    "refuse_older",
]
