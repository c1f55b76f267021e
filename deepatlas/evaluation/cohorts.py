"""A cohort scored: one row per test case and structure, and what such rows say of a subject.

No function here knows how a result was made: it calls ``segment(scan)`` or ``register(moving,
fixed)``, and compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from ..data import Cohort, Scan
from ..errors import UserError
from ..warp import Deformation
from .folding import endpoint_error, folding
from .overlap import score_labels

# --- rows -----------------------------------------------------------------------------------------


def score_segmentation(
    segment: Callable[[Scan], Tensor], cohort: Cohort, scans: Sequence[Scan]
) -> pd.DataFrame:
    """One row per scan and structure: task, case, subject, structure and ``STRUCTURE_METRICS``.

    ``segment(scan)`` returns integer labels (I, J, K). Raises UserError where a scan has no labels
    to compare with.
    """
    _require_labels(scans)
    rows: list[dict[str, float | str]] = []
    for scan in scans:
        case = {"task": "segmentation", "case": scan.id, "subject": scan.subject}
        found = score_labels(segment(scan), scan.known_labels, cohort.structures, cohort.spacing)
        rows += [{**case, **scores} for scores in found]
    return pd.DataFrame(rows)


def registration_pairs(
    scans: Sequence[Scan], per_fixed: int = 3, seed: int = 0
) -> list[tuple[Scan, Scan]]:
    """(moving, fixed) pairs: every scan is fixed with ``per_fixed`` others of the list, drawn by
    ``seed``.

    Never two scans of one person, which would look like a triumph of registration. Fewer moving
    scans where the list has fewer; UserError where it has none.
    """
    if not scans:
        raise UserError(
            "no scan to make pairs of: scans of at least 2 subjects are needed, got none"
        )
    rng = np.random.default_rng(seed)
    pairs = []
    for fixed in scans:
        others = [scan for scan in scans if scan.subject != fixed.subject]
        if not others or per_fixed < 1:
            subjects = {scan.subject for scan in scans}
            raise UserError(
                f"no moving scan for scan {fixed.id}: scans of at least 2 subjects and "
                f"per_fixed >= 1 are needed, got {len(subjects)} and {per_fixed}"
            )
        drawn = rng.permutation(len(others))[:per_fixed]
        pairs += [(others[i], fixed) for i in drawn]
    return pairs


def score_registration(
    register: Callable[[Scan, Scan], Deformation],
    cohort: Cohort,
    pairs: Sequence[tuple[Scan, Scan]],
) -> pd.DataFrame:
    """One row per (moving, fixed) pair and structure: nearest-warped labels of moving against the
    labels of fixed.

    The columns of ``score_segmentation`` (case "moving->fixed", subject the fixed one), then the
    pair's ``folding`` and ``endpoint_error`` (NaN without ``cohort.truth``), repeated in each of
    its rows. Score ``Deformation.identity`` too. Raises UserError where a scan has no labels or a
    deformation is not finite, ValueError where it is not on the fixed scan's grid.
    """
    _require_labels([scan for pair in pairs for scan in pair])
    rows: list[dict[str, float | str]] = []
    for moving, fixed in pairs:
        name = f"{moving.id}->{fixed.id}"
        case = {"task": "registration", "case": name, "subject": fixed.subject}
        phi = _on_cpu(register(moving, fixed), name, fixed)
        labels = fixed.known_labels.cpu()
        warped = phi.warp_labels(moving.known_labels.cpu()[None])[0]
        if cohort.truth is None:
            error = {"endpoint_voxels": math.nan, "endpoint_boundary_voxels": math.nan}
        else:
            truth = _on_cpu(cohort.truth(moving, fixed), f"{name}, truth", fixed)
            error = endpoint_error(phi, truth, labels)
        of_pair = folding(phi) | error
        found = score_labels(warped, labels, cohort.structures, cohort.spacing)
        rows += [{**case, **scores, **of_pair} for scores in found]
    return pd.DataFrame(rows)


def _require_labels(scans: Sequence[Scan]) -> None:
    """Refuse before the work, not after an hour of it."""
    wanted = "scoring compares with the labels of a scan"
    if not scans:
        raise UserError(f"no scan was given: {wanted}")
    for scan in scans:
        if scan.labels is None:
            raise UserError(f"scan {scan.id} has no labels: {wanted}")


def _on_cpu(phi: Deformation, name: str, fixed: Scan) -> Deformation:
    """``phi`` without gradient, on the CPU, checked to be one finite deformation on the fixed
    scan's grid.
    """
    if len(phi.displacement) != 1 or phi.shape != fixed.shape:
        raise ValueError(
            f"{name}: one deformation on the fixed scan's grid {fixed.shape} was wanted, "
            f"got {len(phi.displacement)} on {phi.shape}"
        )
    if not phi.displacement.isfinite().all():
        raise UserError(f"{name}: the displacement is NaN or infinite: the registration diverged")
    return Deformation(phi.displacement.detach().cpu())


# --- from rows to a statement ---------------------------------------------------------------------


def per_subject(scores: pd.DataFrame, metric: str = "dice") -> pd.Series:
    """One number a subject: the mean over structures within each case, then over the subject's
    cases.

    Pairs that share a fixed scan, and structures of one scan, are not independent. NaN is left out
    (``per_structure`` counts it). Raises ValueError on rows of several tasks or regimes.

    >>> scores = pd.DataFrame({
    ...     "subject": ["ann", "ann", "ann", "bob"],
    ...     "case": ["left", "left", "right", "left"],
    ...     "dice": [0.5, 0.7, 1.0, 0.9],
    ... })
    >>> per_subject(scores).to_dict()  # of ann (0.6 + 1.0) / 2
    {'ann': 0.8, 'bob': 0.9}
    """
    _require_one(scores)
    of_case = scores.groupby(["subject", "case"])[metric].mean()
    return of_case.groupby("subject").mean()


def per_structure(scores: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Mean and sd over cases of each structure, the number of ``cases`` and how many of them are
    ``undefined`` (NaN).

    For Dice, undefined is a structure absent from the reference; for distances, also one absent
    from the prediction.
    """
    _require_one(scores)
    groups = scores.groupby("structure", sort=False)[metric]
    table = groups.agg(mean="mean", sd="std", cases="size")
    return table.assign(undefined=table["cases"] - groups.count())


def _require_one(scores: pd.DataFrame) -> None:
    """Refuse to average over what is to be compared."""
    for column in ("task", "regime"):
        if column in scores and scores[column].nunique() > 1:
            found = ", ".join(map(str, scores[column].unique()))
            raise ValueError(f"select one {column} first, got {found}")
