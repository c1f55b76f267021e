"""Segmentation by labelled scans that are registered to the one to be segmented.

Settings -> function from the labelled scans to a function scan -> labels (I, J, K).
"""

from collections.abc import Callable, Sequence

from deepatlas import registration
from deepatlas.data import Scan

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .fields import ants_image
from .registrations import Register

Segment = Callable[[Scan], Tensor]  # scan -> labels (I, J, K)

# The defaults of ants.joint_label_fusion: voxels from the middle to the border of a patch, and to
# where a better patch is looked for; sharpness and ridge of the weights.
PATCH, SEARCH, BETA, RHO = 2, 3, 4, 0.01


def propagated(register: Register, atlases: Sequence[Scan]) -> Segment:
    """Label propagation: the labels of the ``atlases`` as ``register`` warps them, averaged."""

    def segment(scan: Scan) -> Tensor:
        return registration.propagate_labels(register, atlases, scan)

    return segment


def fused(register: Register, atlases: Sequence[Scan]) -> Segment:
    """Joint label fusion (Wang et al., 2013) of the ``atlases`` as ``register`` warps them.

    An atlas weighs more where its patches look like those of the scan, less where those of other
    atlases err alike. Weights are worked out up to ``SEARCH`` voxels from where any atlas has a
    structure; elsewhere is background. ValueError unless there are at least two atlases.
    """
    import ants

    if len(atlases) < 2:
        raise ValueError("of one labelled scan nothing can be fused: that is label propagation")

    def segment(scan: Scan) -> Tensor:
        images = []
        labels = []
        anywhere = np.zeros(scan.shape, bool)
        for atlas in atlases:
            phi = register(atlas, scan)
            images.append(ants_image(phi.warp(atlas.image[None])[0, 0]))
            warped = phi.warp_labels(atlas.labels[None])[0].numpy()
            labels.append(ants_image(warped + 1))  # 0 would not be a structure
            anywhere |= warped > 0
        mask = ndimage.binary_dilation(anywhere, iterations=SEARCH)
        found = ants.joint_label_fusion(
            ants_image(scan.image[0]),
            ants_image(mask),
            images,
            label_list=labels,
            beta=BETA,
            rad=[PATCH] * mask.ndim,
            r_search=SEARCH,
            rho=RHO,
        )
        fused_labels = found["segmentation"].numpy().round().astype(np.int64)
        return torch.from_numpy(np.maximum(fused_labels - 1, 0))

    return segment
