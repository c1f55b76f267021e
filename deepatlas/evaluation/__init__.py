"""Scores and statistics: how good a label map or a deformation is, a cohort as a table, regimes
compared fairly.

No function here knows how a result was made. ``overlap`` compares label maps, ``folding`` judges
deformations, ``cohorts`` makes rows of whole cohorts, and ``statistics`` says what they show.
"""

from .cohorts import (
    per_structure,
    per_subject,
    registration_pairs,
    score_registration,
    score_segmentation,
)
from .folding import endpoint_error, folding, non_diffeomorphic_volume
from .overlap import (
    STRUCTURE_METRICS,
    TOLERANCE,
    boundary,
    dice,
    mask_scores,
    score_labels,
    surface_distances,
)
from .statistics import (
    bootstrap_interval,
    holm,
    mean_and_interval,
    pair,
    paired_comparison,
    paired_differences,
    resampled_means,
    share_of_gap_closed,
    t_over_runs,
)

__all__ = [
    "STRUCTURE_METRICS",
    "TOLERANCE",
    "bootstrap_interval",
    "boundary",
    "dice",
    "endpoint_error",
    "folding",
    "holm",
    "mask_scores",
    "mean_and_interval",
    "non_diffeomorphic_volume",
    "pair",
    "paired_comparison",
    "paired_differences",
    "per_structure",
    "per_subject",
    "registration_pairs",
    "resampled_means",
    "score_labels",
    "score_registration",
    "score_segmentation",
    "share_of_gap_closed",
    "surface_distances",
    "t_over_runs",
]
