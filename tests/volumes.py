"""Volumes, their places, and the NIfTI files they are stored in."""

import struct

import nibabel as nib
import numpy as np
import torch


def rng(seed=0):
    return np.random.default_rng(seed)


def write(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def noise(*shape, seed=0):
    return rng(seed).random(shape, dtype=np.float32)


def rotation(degrees, axis=2):
    """(3, 3), about one world axis."""
    a, b = (i for i in range(3) if i != axis)
    matrix = np.eye(3)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
    return matrix


def oblique(spacing=(1.0, 1.2, 0.9), degrees=12.0, origin=(-20.0, 7.0, 31.0)):
    """An affine that is turned about two axes; its closest axes are RAS."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(degrees) @ rotation(degrees / 2, 0) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def reoriented(array, affine, axes, flips):
    """The same volume in the same place, stored with permuted and flipped axes: (array, affine)."""
    stored = array.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    to_original = np.zeros((4, 4))  # stored voxel -> voxel of ``array``
    to_original[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        to_original[old, new] = flip
        to_original[old, 3] = 0 if flip == 1 else array.shape[old] - 1
    return stored, affine @ to_original


def patched(path, offset, values):
    """Overwrite float32 ``values`` in the header of an uncompressed NIfTI file."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 4 * len(values)] = struct.pack(f"<{len(values)}f", *values)
    path.write_bytes(raw)
    return path


# where a NIfTI header keeps scl_slope (then scl_inter) and the three rows of the affine
SLOPE, AFFINE = 112, 280


def scaled(spacing, origin=(0.0, 0.0, 0.0)):
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(origin, dtype=torch.float64)
    return affine
