"""Many experiments: ``plan`` reads them from a file, ``run`` carries them out, each as a process
here or elsewhere (``pools``), and ``collect`` keeps their rows.
"""

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
from .pools import (
    JobsOfSlurm,
    OneByOne,
    Workers,
    check_installed,
    gpus_for,
    most_at_once,
    on_this_machine,
    several_at_once,
)
from .run import carry_out_all
from .slurm import MOST_JOBS
from .slurm import script as slurm_script

__all__ = [
    "JOINT_ALONE",
    "MOST_JOBS",
    "PARAMETERS",
    "JobsOfSlurm",
    "OneByOne",
    "Workers",
    "ablation",
    "carry_out_all",
    "changed",
    "check_installed",
    "check_results",
    "collect",
    "gpus_for",
    "most_at_once",
    "on_this_machine",
    "read_paper_table",
    "read_sweep",
    "read_table",
    "refuse_older",
    "several_at_once",
    "slurm_script",
]
