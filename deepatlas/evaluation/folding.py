"""One deformation judged: how far it folds, and how far it is from the true one."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import as_labels
from ..warp import Deformation, determinant
from .overlap import boundary

# Voxels that are judged at a time: so few that what is computed in between stays in the processor's
# cache.
SLAB = 2**15
# Voxels: no scan is so long. Of a u that leads further, float32 cannot hold the products.
FAR = 1e6

Offset = tuple[int, ...]  # from a voxel to one of its neighbours


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
    dims = len(phi.shape)
    padded = F.pad(phi.displacement, [1, 1] * dims, mode="replicate")[0]
    thickness = max(1, SLAB // math.prod(phi.shape[1:]))
    slabs = []
    for start in range(0, phi.shape[0], thickness):
        slabs.append(_folded_volume(padded[:, start : start + thickness + 2]))
    return torch.cat(slabs)


def _folded_volume(padded: Tensor) -> Tensor:
    """``non_diffeomorphic_volume`` of (I, J, K) voxels; ``padded``, (D, I + 2, J + 2, K + 2), is u
    of these and of their neighbours.
    """
    dims = len(padded)
    edges: dict[Offset, Tensor] = {}  # simplices share them
    folded = padded.new_zeros(())
    for simplex in _simplices(dims):
        for offset in simplex:
            if offset not in edges:
                edges[offset] = _edge(padded, offset)
        orientation = float(np.sign(np.linalg.det(simplex)))
        volume = orientation * determinant([edges[offset] for offset in simplex])
        folded = folded - volume.clamp(max=0)
    return folded / (2 * math.factorial(dims))


def _simplices(dims: int) -> list[list[Offset]]:
    """The D offsets from one corner of a triangle or tetrahedron to the others, of each."""
    corners = []
    for signs in product((1, -1), repeat=dims):
        corners.append([tuple(row) for row in np.diag(signs).tolist()])
    if dims == 2:
        return corners
    middle = [(1, 1, 0), (0, 1, 1), (1, 0, 1)]  # diagonals of three faces of the cell
    opposite = [(-1, -1, 0), (0, -1, -1), (-1, 0, -1)]
    return [*corners, middle, opposite]


def _edge(padded: Tensor, offset: Offset) -> Tensor:
    """phi(x + offset) - phi(x) of every voxel x, (D, I, J, K); ``padded`` is u, a voxel larger on
    each side.
    """
    here, there = [slice(None)], [slice(None)]
    for step, n in zip(offset, padded.shape[1:], strict=True):
        here.append(slice(1, n - 1))
        there.append(slice(1 + step, n - 1 + step))
    offset_there = padded.new_tensor(offset).view(-1, *[1] * len(offset))
    return padded[tuple(there)] - padded[tuple(here)] + offset_there


def folding(phi: Deformation) -> dict[str, float]:
    """How far one deformation (a batch of 1) is from being smooth and invertible.

    - ``folds_percent``: voxels whose det J <= 0, by central differences, in percent.
    - ``ndv_percent``: ``non_diffeomorphic_volume`` in percent of the image's volume, border
      included.
    - ``sd_log_j``: standard deviation of log(clip(det J + 3, 1e-9, 1e9)), as in Learn2Reg (Hering
      et al., 2023); not the textbook's SD of log det J: the 3 keeps mild folds finite.

    The first and the last leave out the outer 2 voxels, as Learn2Reg does; ValueError if nothing is
    left.

    >>> mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None]
    >>> folding(Deformation.affine(mirror, (8, 8)))["folds_percent"]
    100.0
    """
    if len(phi.displacement) != 1 or min(phi.shape) < 5:
        raise ValueError(
            "folding is measured on one deformation whose sides are at least 5 voxels, "
            f"got a batch of {len(phi.displacement)} of shape {phi.shape}"
        )
    phi = Deformation(_exact(phi.displacement))
    inner = (slice(2, -2),) * len(phi.shape)
    det_j = phi.jacobian_determinant()[0][inner].double()
    folds = (det_j <= 0).double().mean().item()
    folded_volume = non_diffeomorphic_volume(phi).double().mean().item()
    log_j = (det_j + 3).clamp(1e-9, 1e9).log()
    return {
        "folds_percent": 100 * folds,
        "ndv_percent": 100 * folded_volume,
        "sd_log_j": log_j.std(correction=0).item(),
    }


def _exact(u: Tensor) -> Tensor:
    """``u``, of a diverged registration in float64: where it is not, numbers stay as they were."""
    return u.double() if u.abs().max() > FAR else u


def endpoint_error(phi: Deformation, truth: Deformation, labels: Tensor) -> dict[str, float]:
    """Mean |u - u_true| in voxels, over the fixed scan's labelled voxels and over those at a
    structure's ``boundary``.

    Both are batches of 1. Inside a uniform structure no image tells how it moved, so the first
    measures the regulariser too. NaN where there is no such voxel.
    """
    distance = _exact(phi.displacement - truth.displacement)[0].norm(dim=0)
    return {
        "endpoint_voxels": distance[as_labels(labels) > 0].mean().item(),
        "endpoint_boundary_voxels": distance[boundary(labels)].mean().item(),
    }
