"""One deformation judged: how far it folds, and how far it is from the true one."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import as_labels
from ..warp import Deformation
from .overlap import boundary


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
    u = phi.displacement[0]  # (D, I, J, K)
    dims = len(phi.shape)
    padded = F.pad(phi.displacement, [1, 1] * dims, mode="replicate")[0]
    folded = torch.zeros_like(u[0])
    for simplex in _simplices(dims):
        edges = [_edge(u, padded, offset) for offset in simplex.tolist()]
        orientation = float(np.sign(np.linalg.det(simplex)))
        volume = orientation * _determinant(edges)
        folded -= volume.clamp(max=0)
    return folded / (2 * math.factorial(dims))


def _simplices(dims: int) -> list[np.ndarray]:
    """(D, D) each: the D offsets from one corner of a triangle or tetrahedron to the others."""
    corners = [np.diag(signs) for signs in product((1, -1), repeat=dims)]
    if dims == 2:
        return corners
    middle = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])  # diagonals of three faces of the cell
    return [*corners, middle, -middle]


def _edge(u: Tensor, padded: Tensor, offset: list[int]) -> Tensor:
    """phi(x + offset) - phi(x) of every voxel x, (D, I, J, K); ``padded`` is u, a voxel larger on
    each side.
    """
    there = [slice(None)]
    for step, n in zip(offset, u.shape[1:], strict=True):
        there.append(slice(1 + step, 1 + step + n))
    offset_there = u.new_tensor(offset).view(-1, *[1] * len(offset))
    return padded[tuple(there)] - u + offset_there


def _determinant(columns: list[Tensor]) -> Tensor:
    """det of the D x D matrices whose columns are D tensors (D, ...): far faster than
    ``torch.linalg.det`` so small.
    """
    if len(columns) == 2:
        a, b = columns
        return a[0] * b[1] - a[1] * b[0]
    a, b, c = columns
    return (a * torch.linalg.cross(b, c, dim=0)).sum(0)


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
    inner = (slice(2, -2),) * len(phi.shape)
    determinant = phi.jacobian_determinant()[0][inner].double()
    folds = (determinant <= 0).double().mean().item()
    folded_volume = non_diffeomorphic_volume(phi).double().mean().item()
    log_j = (determinant + 3).clamp(1e-9, 1e9).log()
    return {
        "folds_percent": 100 * folds,
        "ndv_percent": 100 * folded_volume,
        "sd_log_j": log_j.std(correction=0).item(),
    }


def endpoint_error(phi: Deformation, truth: Deformation, labels: Tensor) -> dict[str, float]:
    """Mean |u - u_true| in voxels, over the fixed scan's labelled voxels and over those at a
    structure's ``boundary``.

    Both are batches of 1. Inside a uniform structure no image tells how it moved, so the first
    measures the regulariser too. NaN where there is no such voxel.
    """
    distance = (phi.displacement - truth.displacement)[0].norm(dim=0)
    return {
        "endpoint_voxels": distance[as_labels(labels) > 0].mean().item(),
        "endpoint_boundary_voxels": distance[boundary(labels)].mean().item(),
    }
