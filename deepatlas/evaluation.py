"""Scores and statistics: overlap, boundaries, folding, endpoint error; a cohort as a table; arms
compared fairly.

No function here knows how a result was made: a label map or a deformation comes in, numbers come
out. Labels are warped to the nearest voxel before they are scored; linear warping of one-hot labels
raises Dice, so ask which was used before comparing with a published number. Millimetres are voxels
times the cohort's ``spacing``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage, stats
from torch import Tensor

from .data import Cohort, Scan
from .warp import Deformation

STRUCTURE_METRICS = ("dice", "nsd", "hd95_mm", "surface_mm", "volume_error")
# voxels: how far apart two boundaries may be and still agree, in the normalised surface distance
TOLERANCE = 1.0

# --- overlap and boundary -------------------------------------------------------------------------


def surface_distances(
    predicted: np.ndarray, reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels from each boundary voxel of ``predicted`` to the nearest of ``reference``, and the
    other way round.

    Both are boolean masks (I, J, K) or (I, J). A boundary voxel is one that erosion removes: it has
    a face neighbour outside the mask or outside the image. Raises ValueError if a mask is empty.
    """
    if not predicted.any() or not reference.any():
        raise ValueError("an empty mask has no boundary: give two masks that contain a voxel")
    # distances outside it are not asked for
    box = ndimage.find_objects((predicted | reference).astype(np.uint8))[0]
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (predicted, reference)]
    to_predicted, to_reference = (ndimage.distance_transform_edt(~surface) for surface in surfaces)
    return to_reference[surfaces[0]], to_predicted[surfaces[1]]


def mask_scores(
    predicted: np.ndarray, reference: np.ndarray, spacing: float = 1.0
) -> dict[str, float]:
    """``STRUCTURE_METRICS`` of one structure, A = ``predicted`` against B = ``reference``, boolean
    masks on one grid.

    - ``dice``: 2 |A and B| / (|A| + |B|).
    - ``nsd``, normalised surface distance: share of both boundaries within 1 voxel of the other
      (Nikolov et al., 2018).
    - ``hd95_mm``: 95th percentile of the surface distances, the larger of the two directions.
    - ``surface_mm``: mean of the surface distances of both directions together.
    - ``volume_error``: (|A| - |B|) / |B|; negative where the prediction is too small.

    A structure absent from the reference is NaN everywhere: neither 0 nor 1 would say anything
    about the method. One that was missed has Dice 0, nsd 0 and volume error -1, but NaN distances,
    for there is no boundary to measure from: never read a mean distance without the Dice beside it.
    Why these: Metrics Reloaded (Maier-Hein et al., 2024).
    """
    size, wanted = int(predicted.sum()), int(reference.sum())
    if wanted == 0:
        return dict.fromkeys(STRUCTURE_METRICS, math.nan)
    if size == 0:
        return dict(zip(STRUCTURE_METRICS, (0.0, 0.0, math.nan, math.nan, -1.0), strict=True))
    directions = surface_distances(predicted, reference)
    distances = np.concatenate(directions)
    return {
        "dice": 2 * int((predicted & reference).sum()) / (size + wanted),
        "nsd": float((distances <= TOLERANCE).mean()),
        "hd95_mm": spacing * max(float(np.percentile(one, 95)) for one in directions),
        "surface_mm": spacing * float(distances.mean()),
        "volume_error": size / wanted - 1,
    }


def score_labels(
    predicted: Tensor | np.ndarray,
    reference: Tensor | np.ndarray,
    structures: Sequence[str],
    spacing: float = 1.0,
) -> list[dict[str, float | str]]:
    """``mask_scores`` of every structure but the background: one row each, with its name under
    ``structure``.

    Both label maps are integers (I, J, K) or (I, J) on one grid of ``spacing`` mm; label c is
    ``structures[c]``. Raises ValueError on other shapes, other types and labels without a name.
    """
    maps = [
        np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        for labels in (predicted, reference)
    ]
    if maps[0].shape != maps[1].shape:
        raise ValueError(
            f"predicted and reference labels must share one grid, got {maps[0].shape} and {maps[1].shape}"
        )
    for labels in maps:
        if labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be integers, got {labels.dtype}: take the argmax of probabilities first"
            )
        if labels.min() < 0 or labels.max() >= len(structures):
            raise ValueError(
                f"labels must lie between 0 and {len(structures) - 1} ({structures[-1]}), "
                f"got {labels.min()} to {labels.max()}"
            )
    return [
        {"structure": name} | mask_scores(maps[0] == c, maps[1] == c, spacing)
        for c, name in enumerate(structures)
        if c > 0
    ]


# --- deformations ---------------------------------------------------------------------------------


def non_diffeomorphic_volume(phi: Deformation) -> Tensor:
    """(I, J, K) or (I, J): how much volume, in voxels, ``phi`` turns inside out around each voxel.

    Each cell between voxel centres is cut into triangles or tetrahedra, in both mirror-image ways;
    ``phi`` maps one to signed volume J / D!, and the folded volume is the sum of max(-J, 0) / (2
    D!). That takes 4 finite-difference Jacobians in 2D and 10 in 3D: forward and backward
    differences in every combination, and in 3D the tetrahedron in the middle of the cell. Central
    differences skip the voxel they are taken at, and can miss every fold that these see. Border
    voxels count; beyond them ``u`` of the border goes on. Liu et al., "On finite difference
    Jacobian computation in deformable image registration", 2022.
    """
    u, dims = phi.displacement[0], len(phi.shape)
    padded = F.pad(phi.displacement, [1, 1] * dims, mode="replicate")[0]

    # phi(x + offset) - phi(x) of every voxel x: (D, I, J, K)
    def edge(offset: list[int]) -> Tensor:
        there = (slice(1 + step, 1 + step + n) for step, n in zip(offset, phi.shape, strict=True))
        return padded[(slice(None), *there)] - u + u.new_tensor(offset).view(-1, *[1] * dims)

    # D offsets from x to the other corners
    simplices = [np.diag(signs) for signs in product((1, -1), repeat=dims)]
    middle = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])  # diagonals of three faces of the cell
    folded = torch.zeros_like(u[0])
    for simplex in simplices + ([middle, -middle] if dims == 3 else []):
        orientation = float(np.sign(np.linalg.det(simplex)))
        folded -= (orientation * _determinant([edge(offset) for offset in simplex.tolist()])).clamp(
            max=0
        )
    return folded / (2 * math.factorial(dims))


def _determinant(columns: list[Tensor]) -> Tensor:
    """det of the D x D matrices whose columns are D tensors (D, ...): far faster than
    ``torch.linalg.det`` so small.
    """
    if len(columns) == 2:
        return columns[0][0] * columns[1][1] - columns[0][1] * columns[1][0]
    return (columns[0] * torch.linalg.cross(columns[1], columns[2], dim=0)).sum(0)


def folding(phi: Deformation) -> dict[str, float]:
    """How far one deformation (a batch of 1) is from being smooth and invertible.

    - ``folds_percent``: voxels whose det J <= 0, by central differences, in percent.
    - ``ndv_percent``: ``non_diffeomorphic_volume`` in percent of the image's volume, border
      included.
    - ``sd_log_j``: standard deviation of log(clip(det J + 3, 1e-9, 1e9)), as in Learn2Reg (Hering
      et al., 2023); not the textbook's SD of log det J: the 3 keeps mild folds finite.

    The first and the last leave out the outer 2 voxels, as Learn2Reg does; ValueError if nothing is
    left.
    """
    if len(phi.displacement) != 1 or min(phi.shape) < 5:
        raise ValueError(
            "folding is measured on one deformation whose sides are at least 5 voxels, "
            f"got a batch of {len(phi.displacement)} of shape {phi.shape}"
        )
    determinant = phi.jacobian_determinant()[0][(slice(2, -2),) * len(phi.shape)].double()
    return {
        "folds_percent": 100 * (determinant <= 0).double().mean().item(),
        "ndv_percent": 100 * non_diffeomorphic_volume(phi).double().mean().item(),
        "sd_log_j": (determinant + 3).clamp(1e-9, 1e9).log().std(correction=0).item(),
    }


def boundary(labels: Tensor) -> Tensor:
    """(I, J, K) or (I, J) bool: labelled voxels whose label differs from that of a face neighbour."""
    differs = torch.zeros_like(labels, dtype=torch.bool)
    for axis, n in enumerate(labels.shape):
        jump = labels.narrow(axis, 1, n - 1) != labels.narrow(axis, 0, n - 1)
        differs.narrow(axis, 1, n - 1).logical_or_(jump)  # a view: this marks ``differs``
        differs.narrow(axis, 0, n - 1).logical_or_(jump)
    return differs & (labels > 0)


def endpoint_error(phi: Deformation, truth: Deformation, labels: Tensor) -> dict[str, float]:
    """Mean |u - u_true| in voxels, over the fixed scan's labelled voxels and over those at a
    structure's ``boundary``.

    Both are batches of 1. Inside a uniform structure no image tells how it moved, so the first
    measures the regulariser too. NaN where there is no such voxel.
    """
    distance = (phi.displacement - truth.displacement)[0].norm(dim=0)
    return {
        "endpoint_voxels": distance[labels > 0].mean().item(),
        "endpoint_boundary_voxels": distance[boundary(labels)].mean().item(),
    }


# --- a cohort -------------------------------------------------------------------------------------


def score_segmentation(
    segment: Callable[[Scan], Tensor], cohort: Cohort, scans: Sequence[Scan]
) -> pd.DataFrame:
    """One row per scan and structure: task, case, subject, structure and ``STRUCTURE_METRICS``.

    ``segment(scan)`` returns integer labels (I, J, K). Raises ValueError where a scan has no labels
    to compare with.
    """
    _require_labels(scans)
    rows = []
    for scan in scans:
        case = {"task": "segmentation", "case": scan.id, "subject": scan.subject}
        rows += [
            case | row
            for row in score_labels(segment(scan), scan.labels, cohort.structures, cohort.spacing)
        ]
    return pd.DataFrame(rows)


def registration_pairs(
    scans: Sequence[Scan], per_fixed: int = 3, seed: int = 0
) -> list[tuple[Scan, Scan]]:
    """(moving, fixed) pairs: every scan is fixed with ``per_fixed`` others of the list, drawn by
    ``seed``.

    Never two scans of one person, which would look like a triumph of registration. Fewer moving
    scans where the list has fewer; ValueError where it has none.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for fixed in scans:
        others = [scan for scan in scans if scan.subject != fixed.subject]
        if not others or per_fixed < 1:
            raise ValueError(
                f"no moving scan for scan {fixed.id}: scans of at least 2 subjects and per_fixed >= 1 "
                f"are needed, got {len({scan.subject for scan in scans})} and {per_fixed}"
            )
        pairs += [(others[i], fixed) for i in rng.permutation(len(others))[:per_fixed]]
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
    its rows. Score ``Deformation.identity`` too. Raises ValueError where a scan has no labels or a
    deformation is not finite or not on the fixed scan's grid.
    """
    _require_labels([scan for pair in pairs for scan in pair])
    rows = []
    for moving, fixed in pairs:
        name = f"{moving.id}->{fixed.id}"
        phi, labels = _on_cpu(register(moving, fixed), name, fixed), fixed.labels.cpu()
        warped = phi.warp_labels(moving.labels.cpu()[None])[0]
        case = {"task": "registration", "case": name, "subject": fixed.subject}
        pair = folding(phi) | {"endpoint_voxels": math.nan, "endpoint_boundary_voxels": math.nan}
        if cohort.truth is not None:
            truth = _on_cpu(cohort.truth(moving, fixed), f"{name}, truth", fixed)
            pair |= endpoint_error(phi, truth, labels)
        rows += [
            case | row | pair
            for row in score_labels(warped, labels, cohort.structures, cohort.spacing)
        ]
    return pd.DataFrame(rows)


def _require_labels(scans: Sequence[Scan]) -> None:
    """Refuse before the work, not after an hour of it."""
    unlabelled = [f"scan {scan.id} has no labels" for scan in scans if scan.labels is None]
    if unlabelled or not scans:
        raise ValueError(
            f"{(unlabelled or ['no scan was given'])[0]}: scoring compares with the labels of a scan"
        )


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
        raise ValueError(f"{name}: the displacement is NaN or infinite: the registration diverged")
    return Deformation(phi.displacement.detach().cpu())


# --- from rows to a statement ---------------------------------------------------------------------


def per_subject(scores: pd.DataFrame, metric: str = "dice") -> pd.Series:
    """One number a subject: the mean over structures within each case, then over the subject's
    cases.

    Pairs that share a fixed scan, and structures of one scan, are not independent. NaN is left out
    (``per_structure`` counts it). Raises ValueError on rows of several tasks or regimes.
    """
    return _one_arm(scores).groupby(["subject", "case"])[metric].mean().groupby("subject").mean()


def per_structure(scores: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Mean and sd over cases of each structure, the number of ``cases`` and how many of them are
    ``undefined`` (NaN).

    For Dice, undefined is a structure absent from the reference; for distances, also one absent
    from the prediction.
    """
    groups = _one_arm(scores).groupby("structure", sort=False)[metric]
    table = groups.agg(mean="mean", sd="std", cases="size")
    return table.assign(undefined=table["cases"] - groups.count())


def _one_arm(scores: pd.DataFrame) -> pd.DataFrame:
    """Refuse to average over what is to be compared."""
    for column in ("task", "regime"):
        if column in scores and scores[column].nunique() > 1:
            raise ValueError(
                f"select one {column} first, got {', '.join(map(str, scores[column].unique()))}"
            )
    return scores


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval (low, high) of the mean of ``values``, one a subject; NaN
    for a single one.

    It is too narrow below about 10 subjects. ``seed`` draws 10,000 resamples (Efron, 1979).
    """
    means = _resampled_means(np.asarray(values, dtype=float)[:, None], seed)
    return tuple(np.percentile(means[:, 0], (2.5, 97.5)).tolist())


def paired_comparison(a: pd.Series, b: pd.Series, seed: int = 0) -> dict[str, float]:
    """Mean of a - b over subjects as ``difference``, its bootstrap interval ``low`` to ``high``,
    and Wilcoxon's ``p``.

    ``a`` and ``b`` come from ``per_subject``, or are sequences in one order of subjects. ``p`` is
    two-sided, of the signed-rank test; with n subjects it cannot fall below 2 / 2^n, so 5 subjects
    can never show p < 0.05. A subject that is NaN in one arm is left out; ``subjects`` says how
    many remain. Raises ValueError if the arms do not match.
    """
    differences = np.subtract(*_paired(a, b).T)
    low, high = bootstrap_interval(differences, seed)
    p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return {
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "p": p,
        "subjects": len(differences),
    }


def share_of_gap_closed(
    baseline: pd.Series, joint: pd.Series, full: pd.Series, seed: int = 0
) -> dict[str, float]:
    """(joint - baseline) / (full - baseline) of the subjects' means: ``share``, with its interval
    ``low`` to ``high``.

    How much of what full supervision gains over the baseline does joint training gain? Whole
    subjects are resampled, all three arms together. All NaN unless the interval of the gap, full -
    baseline, lies above 0: a share of nothing means nothing. Raises ValueError if the arms do not
    match.
    """
    table = _paired(baseline, joint, full)
    gains = table[:, 1:] - table[:, :1]  # joint - baseline, full - baseline
    resampled = _resampled_means(gains, seed)
    share = low = high = math.nan
    if np.percentile(resampled[:, 1], 2.5) > 0:
        share = float(gains[:, 0].mean() / gains[:, 1].mean())
        low, high = np.percentile(resampled[:, 0] / resampled[:, 1], (2.5, 97.5)).tolist()
    return {"share": share, "low": low, "high": high, "subjects": len(table)}


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p, in the order given: the k-th smallest of m times m - k + 1, never below
    its predecessors.

    Below 0.05, the chance of even one false claim among all m is below 5 %, whatever their
    dependence (Holm, 1979).
    """
    p = np.asarray(p_values, dtype=float)
    order = p.argsort()
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def _resampled_means(table: np.ndarray, seed: int, resamples: int = 10_000) -> np.ndarray:
    """(resamples, columns): column means of ``table`` (subjects, columns) over rows drawn with
    replacement.
    """
    n = len(table)
    if n < 2:
        return np.full((resamples, table.shape[1]), math.nan)
    # how often each subject
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return drawn @ table / n


def _paired(*arms: pd.Series) -> np.ndarray:
    """(subjects, arms): the subjects that have a number in every arm, matched by name where names
    are given.
    """
    if all(isinstance(arm, pd.Series) for arm in arms):
        names = [set(arm.index) for arm in arms]
        if strangers := set.union(*names) - set.intersection(*names):
            raise ValueError(
                f"not scored in every arm: subjects {', '.join(sorted(map(str, strangers)))}"
            )
        arms = tuple(arm.reindex(arms[0].index) for arm in arms)
    if len({len(arm) for arm in arms}) > 1:
        raise ValueError(
            f"paired arms need the same subjects, got {', '.join(str(len(arm)) for arm in arms)} values"
        )
    table = np.column_stack([np.asarray(arm, dtype=float) for arm in arms])
    table = table[np.isfinite(table).all(axis=1)]
    if len(table) == 0:
        raise ValueError("no subject has a number in every arm")
    return table
