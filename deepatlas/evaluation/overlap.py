"""Two label maps compared: overlap, distance between boundaries, volume.

A label map comes in, numbers come out. Labels are warped to the nearest voxel before they are
scored; linear warping of one-hot labels raises Dice, so ask which was used before comparing with a
published number. Millimetres are voxels times the ``spacing`` of the grid: one number, or one for
each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..data import as_labels

STRUCTURE_METRICS = ("dice", "nsd", "hd95_mm", "surface_mm", "volume_error")
# voxels: how far apart two boundaries may be and still agree, in the normalised surface distance
TOLERANCE = 1.0


def surface_distances(
    predicted: np.ndarray,
    reference: np.ndarray,
    sides: Sequence[float] | np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels from each boundary voxel of ``predicted`` to the nearest of ``reference``, and the
    other way round; millimetres, where the ``sides`` of a voxel are given in them.

    Both are boolean masks (I, J, K) or (I, J). A boundary voxel is one that erosion removes: it has
    a face neighbour outside the mask or outside the image. Raises ValueError if a mask is empty.
    """
    if not predicted.any() or not reference.any():
        raise ValueError("an empty mask has no boundary: give two masks that contain a voxel")
    # The box around both: distances outside it are not asked for.
    box = ndimage.find_objects((predicted | reference).astype(np.uint8))[0]
    surface = _surface(predicted[box])
    reference_surface = _surface(reference[box])
    to_surface = ndimage.distance_transform_edt(~surface, sampling=sides)
    to_reference = ndimage.distance_transform_edt(~reference_surface, sampling=sides)
    return to_reference[surface], to_surface[reference_surface]


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)


def mask_scores(
    predicted: np.ndarray, reference: np.ndarray, spacing: float | Sequence[float] = 1.0
) -> dict[str, float]:
    """``STRUCTURE_METRICS`` of one structure, A = ``predicted`` against B = ``reference``, boolean
    masks on one grid, whose ``spacing`` is in mm: one number, or one for each axis.

    - ``dice``: 2 |A and B| / (|A| + |B|).
    - ``nsd``, normalised surface distance: share of both boundaries within 1 voxel of the other
      (Nikolov et al., 2018): a step along any axis, however long the sides of a voxel are.
    - ``hd95_mm``: 95th percentile of the surface distances, the larger of the two directions.
    - ``surface_mm``: mean of the surface distances of both directions together.
    - ``volume_error``: (|A| - |B|) / |B|; negative where the prediction is too small.

    A structure absent from the reference is NaN everywhere: neither 0 nor 1 would say anything
    about the method. One that was missed has Dice 0, nsd 0 and volume error -1, but NaN distances,
    for there is no boundary to measure from: never read a mean distance without the Dice beside it.
    Why these: Metrics Reloaded (Maier-Hein et al., 2024).

    >>> truth = np.zeros((8, 8), bool)
    >>> truth[2:6, 2:6] = True
    >>> scores = mask_scores(np.roll(truth, 1, axis=0), truth, spacing=2.0)
    >>> scores["dice"], scores["hd95_mm"], scores["volume_error"]
    (0.75, 2.0, 0.0)
    """
    size = int(predicted.sum())
    wanted = int(reference.sum())
    undefined = dict.fromkeys(STRUCTURE_METRICS, math.nan)
    if wanted == 0:
        return undefined
    if size == 0:
        return undefined | {"dice": 0.0, "nsd": 0.0, "volume_error": -1.0}
    there, back = surface_distances(predicted, reference)
    within = float((np.concatenate((there, back)) <= TOLERANCE).mean())
    sides = np.broadcast_to(spacing, predicted.ndim)
    if (sides == sides[0]).all():
        scale = float(sides[0])
    else:
        there, back = surface_distances(predicted, reference, sides)
        scale = 1.0
    farthest = max(np.percentile(there, 95), np.percentile(back, 95))
    both = int((predicted & reference).sum())
    return {
        "dice": 2 * both / (size + wanted),
        "nsd": within,
        "hd95_mm": scale * float(farthest),
        "surface_mm": scale * float(np.concatenate((there, back)).mean()),
        "volume_error": size / wanted - 1,
    }


def score_labels(
    predicted: Tensor | np.ndarray,
    reference: Tensor | np.ndarray,
    structures: Sequence[str],
    spacing: float | Sequence[float] = 1.0,
) -> list[dict[str, float | str]]:
    """``mask_scores`` of every structure but the background: one row each, with its name under
    ``structure``.

    Both label maps are integers (I, J, K) or (I, J) on one grid of ``spacing`` mm, as in
    ``mask_scores``; label c is ``structures[c]``. Raises ValueError on other shapes, other types
    and labels without a name.
    """
    predicted, reference = _label_maps(predicted, reference, structures)
    rows: list[dict[str, float | str]] = []
    for c, name in enumerate(structures):
        if c > 0:
            scores = mask_scores(predicted == c, reference == c, spacing)
            rows.append({"structure": name, **scores})
    return rows


def dice(
    predicted: Tensor | np.ndarray, reference: Tensor | np.ndarray, structures: Sequence[str]
) -> dict[str, float]:
    """{structure: 2 |A and B| / (|A| + |B|)}: what ``score_labels`` says of Dice, far sooner, for
    voxels are only counted, those of all structures at once.

    >>> truth = np.array([[0, 1, 1, 0]])
    >>> guess = np.array([[1, 1, 0, 2]])  # no putamen is there
    >>> dice(guess, truth, ("background", "caudate", "putamen"))
    {'caudate': 0.5, 'putamen': nan}
    """
    predicted, reference = _label_maps(predicted, reference, structures)
    agreed = reference[predicted == reference]
    found, wanted, both = [
        np.bincount(labels.ravel().astype(np.intp), minlength=len(structures))
        for labels in (predicted, reference, agreed)
    ]
    undefined = np.full(len(structures), math.nan)
    scores = np.divide(2 * both, found + wanted, out=undefined, where=wanted > 0)
    return dict(zip(structures[1:], scores[1:].tolist(), strict=True))


def _label_maps(
    predicted: Tensor | np.ndarray, reference: Tensor | np.ndarray, structures: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of integers on one grid, each of which has a name; else ValueError."""
    predicted = _integers(predicted, structures)
    reference = _integers(reference, structures)
    if predicted.shape != reference.shape:
        raise ValueError(
            "predicted and reference labels must share one grid, "
            f"got {predicted.shape} and {reference.shape}"
        )
    return predicted, reference


def _integers(labels: Tensor | np.ndarray, structures: Sequence[str]) -> np.ndarray:
    """``labels`` as an array of integers, of which bool counts as one, if each has a name."""
    array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if array.dtype.kind not in "iub":
        raise ValueError(
            f"labels must be integers, got {array.dtype}: take the argmax of probabilities first"
        )
    if array.size == 0:
        raise ValueError(f"labels of no voxel cannot be compared, got shape {array.shape}")
    if array.min() < 0 or array.max() >= len(structures):
        raise ValueError(
            f"labels must lie between 0 and {len(structures) - 1} ({structures[-1]}), "
            f"got {array.min()} to {array.max()}"
        )
    return array


def boundary(labels: Tensor) -> Tensor:
    """(I, J, K) or (I, J) bool: labelled voxels with a face neighbour of another label."""
    labels = as_labels(labels)
    differs = torch.zeros_like(labels, dtype=torch.bool)
    for axis, n in enumerate(labels.shape):
        jump = labels.narrow(axis, 1, n - 1) != labels.narrow(axis, 0, n - 1)
        differs.narrow(axis, 1, n - 1).logical_or_(jump)  # a view: this marks ``differs``
        differs.narrow(axis, 0, n - 1).logical_or_(jump)
    return differs & (labels > 0)
