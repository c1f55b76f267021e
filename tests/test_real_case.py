"""The one real scan that comes with the kit."""

from deepatlas import datasets
from deepatlas.datasets.nifti import read_labels, read_nifti
from deepatlas.datasets.real_case import FOLDER
from deepatlas.errors import UserError

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine


def test_the_volume_has_the_numbers_of_its_files():
    scan = datasets.real_case()
    assert scan.image.shape == (1, 40, 56, 40) and scan.labels.shape == (40, 56, 40)
    assert scan.image.min() >= 0 and scan.image.max() <= 1
    numbers, affine = read_labels(FOLDER / "labels.nii.gz")
    counts = [int((numbers == structure).sum()) for structure in (1, 2)]
    assert torch.bincount(scan.labels.flatten().long()).tolist()[1:] == counts
    assert len(datasets.REAL_CASE_STRUCTURES) == 1 + len(counts)
    # the same voxel lies in the same place
    voxel = np.argwhere(numbers == 1)[0]
    here = np.linalg.solve(scan.affine.numpy(), [*apply_affine(affine, voxel), 1])[:3]
    assert np.allclose(here, here.round(), atol=1e-4)
    assert scan.labels[tuple(here.round().astype(int))] == 1


def test_the_slice_is_one_of_the_volume():
    volume, flat = datasets.real_case(), datasets.real_case(2)
    labelled = (volume.labels > 0).sum((0, 1))
    k = int(labelled.argmax())
    assert torch.equal(flat.labels, volume.labels[..., k])
    assert torch.allclose(flat.image, volume.image[..., k], atol=1e-6)
    place = volume.affine @ torch.tensor([3, 5, k, 1], dtype=torch.float64)
    assert torch.allclose(
        flat.affine @ torch.tensor([3, 5, 0, 1], dtype=torch.float64), place, atol=1e-6
    )


def test_it_is_a_file_of_ones_own_tools_too_and_is_credited():
    array, _, _ = read_nifti(FOLDER / "image.nii.gz")
    assert array.shape == (35, 51, 35)
    told = (FOLDER / "README.md").read_text()
    assert "CC BY-SA 4.0" in told and "Medical Segmentation Decathlon" in told


def test_other_dimensions_are_refused():
    with pytest.raises(UserError, match=r"dims must be 2 .* got 4"):
        datasets.real_case(4)
