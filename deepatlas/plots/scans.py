"""One scan: its middle planes, and its labels."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..data import Scan
from .drawing import (
    draw_image,
    draw_key,
    draw_labels,
    draw_letters,
    draw_scale,
    labels_in_words,
    middle_slice,
    spacing_of,
)


def scan_figure(scan: Scan, structures: Sequence[str] = ()) -> Figure:
    """The middle planes of a scan, sagittal, coronal and axial, on one scale, and below them the
    same with its labels; voxels in their true proportions, letters by the affine, and a key.
    """
    planes = {0: "sagittal", 1: "coronal", 2: "axial"}  # axis across the plane -> title
    if scan.image.ndim == 3:  # (1, I, J)
        planes = {2: ""}
    sides, voxels = np.array(spacing_of(scan)), (*scan.shape, 1)[:3]
    mm = sides * voxels
    wide, high = np.array([np.delete(mm, normal) for normal in planes]).T
    rows = 1 if scan.labels is None else 2
    inches = min(10.2 / wide.sum(), 4 / high.max())  # for a millimetre, in each picture
    size = (inches * wide.sum() + 0.3 * len(wide), (inches * high.max() + 0.35) * rows + 0.3)
    figure, grid = plt.subplots(
        rows,
        len(planes),
        figsize=size,
        squeeze=False,
        layout="constrained",
        width_ratios=wide,
    )
    seen: set[int] = set()
    for cells, (normal, title) in zip(grid.T, planes.items(), strict=True):
        spacing = np.delete(sides, normal).tolist()  # along the two axes of the plane
        right, up = (axis for axis in range(3) if axis != normal)
        if title:
            title += f", {'ijk'[normal]} = {voxels[normal] // 2}"
        for cell in cells:
            draw_image(cell, _facing(scan.image, normal), spacing=spacing)
            draw_letters(cell, scan, (right, up))
        cells[0].set_title(title, fontsize=9)
        draw_scale(cells[0], spacing)
        if scan.labels is not None:
            labels = _facing(scan.labels[None], normal)[0]
            count = len(structures) or int(scan.labels.max()) + 1
            draw_labels(cells[1], labels, count)
            seen.update(np.unique(middle_slice(labels)).tolist())
    draw_key(figure, structures, seen)
    drawn = ", ".join(planes.values()) or "its plane"
    figure.set_label(
        f"{drawn}, right way round by the letters at the edges. {labels_in_words(seen)}"
    )
    return figure


def _facing(volume: Tensor, normal: int) -> Tensor:
    """(1, I, J, K) with the axis ``normal`` last, so that the middle slice is across it; (1, I, J)
    as it is.
    """
    return volume if volume.ndim == 3 else volume.movedim(normal + 1, 3)
