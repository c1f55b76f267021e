"""Labels on another grid, computed fast, are those that counting voxel by voxel finds."""

from deepatlas.data import Scan
from deepatlas.datasets import grid

import numpy as np
import pytest
import torch
from plain import plain_majority
from volumes import oblique, rng

BLOCKS = np.kron(rng(3).integers(0, 4, (4, 5, 3)), np.ones((3, 3, 3))).astype(np.uint8)

AFFINES = {
    "the same": np.eye(4),
    "shifted beyond the border": np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * -4,
    "twice the spacing, halfway everywhere": np.diag([2.0, 2, 2, 1]) + np.eye(4, k=3) * 0.5,
    "half the spacing": np.diag([0.5, 0.5, 0.5, 1]),
    "turned": oblique(origin=(2.0, -1.0, 3.0)),
    "mirrored and turned": oblique(degrees=160, origin=(12.0, 14.0, 1.0)) @ np.diag([-1, 1, 1, 1]),
    "axes exchanged": np.eye(4)[[1, 2, 0, 3]],
}


@pytest.mark.parametrize("slab", [1, 100, 2**16])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_the_majority_of_labels_is_that_of_counting_voxel_by_voxel(affine, slab, monkeypatch):
    monkeypatch.setattr(grid, "SLAB", slab)
    labels = torch.from_numpy(BLOCKS)
    scan = Scan("a", "a", torch.zeros(1, *labels.shape), torch.eye(4).double(), labels)
    for shape in ((9, 11, 8), (9, 11)):
        found = grid.resample_labels(scan, torch.from_numpy(affine), shape)
        assert found.dtype == labels.dtype
        np.testing.assert_array_equal(found, plain_majority(BLOCKS, affine, shape))


def test_the_majority_of_labels_of_a_slice():
    labels = torch.from_numpy(BLOCKS[:, :, 4])
    scan = Scan("a", "a", torch.zeros(1, *labels.shape), torch.eye(4).double(), labels)
    affine = oblique((1.4, 1.4, 1.0), degrees=0, origin=(0.3, 0.4, 0.0))
    found = grid.resample_labels(scan, torch.from_numpy(affine), (8, 10))
    np.testing.assert_array_equal(found, plain_majority(BLOCKS[:, :, 4:5], affine, (8, 10)))


def test_positions_are_spread_along_the_axes_that_matter_alone():
    row = np.array([0.5, 0.0, -2.0])
    found = grid.positions(row, 1.0, (4, 5, 6))
    assert found.shape == (4, 1, 6)
    index = np.indices((4, 5, 6))
    np.testing.assert_array_equal(
        np.broadcast_to(found, (4, 5, 6)), np.tensordot(row, index, 1) + 1.0
    )


@pytest.mark.parametrize("shift", [(0, 0, 0), (-3, 2, 40), (5, -1, -50)])
@pytest.mark.parametrize("shape", [(9, 11, 8), (12, 15, 9), (9, 11)])
def test_where_voxels_match_none_is_interpolated(shape, shift):
    image = torch.from_numpy(rng(1).random((1, 12, 15, 9), dtype=np.float32))
    place = oblique(degrees=30)
    scan = Scan("a", "a", image, torch.from_numpy(place), None)
    affine = torch.from_numpy(
        place @ (np.eye(4) + np.column_stack([*np.zeros((3, 4)), (*shift, 0)]))
    )
    index = [np.arange(first, first + n) for first, n in zip(shift, (*shape, 1), strict=False)]
    index = [some.clip(0, n - 1) for some, n in zip(index, image.shape[1:], strict=True)]
    found = grid.resample_image(scan, affine, shape)
    assert torch.equal(found[0].view(*shape, *[1] * (3 - len(shape))), image[0][np.ix_(*index)])
    # and a billionth of a voxel further on nothing jumps
    affine[:3, 3] += 1e-8
    torch.testing.assert_close(grid.resample_image(scan, affine, shape), found, atol=1e-6, rtol=0)
