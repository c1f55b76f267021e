"""Folders of scans in the layout of the Medical Segmentation Decathlon, made for tests."""

import json

import nibabel as nib
import numpy as np

SHAPE = (12, 14, 12)


def write_nifti(path, array, spacing=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([spacing] * 3 + [1])), path)


def write_case(folder, name, seed, scale=1.0, spacing=1.0):
    """A bright block whose lower half is structure 1 and upper half 2; ``scale`` as intensities of
    MRI vary.
    """
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 3:7, 3:9], labels[3:9, 7:11, 3:9] = 1, 2
    image = (labels > 0) + 0.2 * np.random.default_rng(seed).random(SHAPE, dtype=np.float32)
    write_nifti(folder / "imagesTr" / f"{name}.nii.gz", (scale * image).astype(np.float32), spacing)
    write_nifti(folder / "labelsTr" / f"{name}.nii.gz", labels, spacing)
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def write_dataset(folder, count=9, **more):
    """A folder in the layout of the Medical Segmentation Decathlon, as Task04 has it."""
    training = [write_case(folder, f"hippocampus_{i:03d}", i, scale=10.0**i) for i in range(count)]
    dataset = {
        "name": "Hippocampus",
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": training,
        "test": [],
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def rewrite(folder, change):
    path = folder / "dataset.json"
    dataset = json.loads(path.read_text())
    change(dataset)
    path.write_text(json.dumps(dataset))
