"""Damaged NIfTI files, compressed and plain: each is refused, or gives the very same voxels."""

import gzip
from collections import Counter

from deepatlas.datasets import read_nifti
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
from fuzzing import cases, flipped, told
from volumes import oblique, rng

SHAPE = (24, 22, 20)  # more bytes than are read at once


def sound_files():
    """name -> (bytes, voxels): noise, which gzip stores, and labels, which it compresses."""
    noise = rng().integers(0, 2**15, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:20, 5:15, 3:12] = rng().integers(0, 3, (16, 10, 9))
    files = {}
    for name, array in (("noise", noise), ("labels", labels)):
        raw = nib.Nifti1Image(array, oblique()).to_bytes()
        files[f"{name}.nii"] = raw, array
        for level in (1, 9):
            files[f"{name}{level}.nii.gz"] = gzip.compress(raw, level, mtime=0), array
        parts = [gzip.compress(part, mtime=0) for part in (raw[:5000], raw[5000:])]
        files[f"{name}-parts.nii.gz"] = b"".join(parts), array
    return files


def cut(data, random):
    return data[: random.randrange(len(data))]


def longer(data, random):
    more = random.randbytes(random.randint(1, 1000))
    return data + random.choice([more, bytes(len(more)), data, data[: len(more)]])


def overwritten(data, random):
    begin = random.randrange(len(data))
    count = min(random.randint(1, 600), len(data) - begin)
    return (
        data[:begin]
        + random.choice([bytes(count), random.randbytes(count)])
        + data[begin + count :]
    )


def missing(data, random):
    begin = random.randrange(len(data))
    return data[:begin] + data[begin + random.randint(1, 600) :]


def exchanged(data, random):
    """Two stretches in each other's place."""
    a, b, c = sorted(random.randrange(len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


COMPRESSED = [
    flipped,
    lambda data, random: flipped(data, random, 8),
    cut,
    longer,
    overwritten,
    missing,
    exchanged,
]
PLAIN = [cut, longer, missing]  # nothing tells that a plain file has other voxels


def test_damage_is_refused_or_changes_nothing(tmp_path):
    files = sound_files()
    kinds = Counter()
    for number, random in cases(2500):
        name = random.choice([*files])
        data, voxels = files[name]
        damage = random.choice(COMPRESSED if name.endswith(".gz") else PLAIN)
        path = tmp_path / name
        with told(number, f"{name}, {damage.__name__}"):
            path.write_bytes(damage(data, random))
            try:
                found, affine, _ = read_nifti(path)
            except UserError as error:
                kinds["refused"] += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            else:
                kinds["read"] += 1
                np.testing.assert_array_equal(found, voxels)
                np.testing.assert_allclose(affine, oblique(), atol=1e-5)
    print(dict(kinds))
    if kinds.total() > 1000:  # a reader that reads nothing is no reader
        assert kinds["read"] > 20
