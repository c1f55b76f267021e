"""Folders of scans in each layout, made for tests: blobs with two structures, 1 and 2."""

import json

import nibabel as nib
import numpy as np

SHAPE = (12, 14, 12)


def write_nifti(path, array, spacing=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([spacing] * 3 + [1])), path)


def arrays(seed, scale=1.0):
    """(image, labels): a bright block whose lower half is structure 1 and upper half 2; ``scale``
    as intensities of MRI vary.
    """
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 3:7, 3:9], labels[3:9, 7:11, 3:9] = 1, 2
    image = (labels > 0) + 0.2 * np.random.default_rng(seed).random(SHAPE, dtype=np.float32)
    return (scale * image).astype(np.float32), labels


def write_scan(image, labels=None, seed=0, scale=1.0, spacing=1.0):
    """A file for the image, and one for the labels unless it is None."""
    voxels, numbers = arrays(seed, scale)
    write_nifti(image, voxels, spacing)
    if labels is not None:
        write_nifti(labels, numbers, spacing)


def write_case(folder, name, seed, scale=1.0, spacing=1.0):
    """A scan as the Decathlon keeps it, and its line in dataset.json."""
    image, labels = f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz"
    write_scan(folder / image, folder / labels, seed, scale, spacing)
    return {"image": f"./{image}", "label": f"./{labels}"}


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


# --- layouts of others: ``count`` scans, of which the last ``unlabelled`` have no labels ----------

NAMES = {1: "low", 2: "high"}


def write_nnunet(folder, count=6, unlabelled=1, channels=("T1",), test=1, ending=".nii.gz", **more):
    """nnU-Net v2 raw data: case_000 ... in imagesTr, the last ``test`` in imagesTs, each with an
    image for every one of ``channels``.
    """
    for i in range(count):
        part = "Ts" if i >= count - test else "Tr"
        labelled = i < count - max(test, unlabelled)
        labels = folder / f"labels{part}" / f"case_{i:03d}{ending}"
        for channel in range(len(channels)):
            image = folder / f"images{part}" / f"case_{i:03d}_{channel:04d}{ending}"
            write_scan(image, labels if labelled else None, seed=10 * i + channel, scale=i + 1.0)
    dataset = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, "low": 1, "high": 2},
        "numTraining": count - max(test, unlabelled),
        "file_ending": ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def write_bids(folder, count=6, unlabelled=1, sessions=(), suffixes=("T1w",), pipeline="experts"):
    """BIDS: sub-01 ..., each with an image for every one of ``sessions`` and ``suffixes``, and
    labels of the first suffix in derivatives.
    """
    for i in range(count):
        for session in sessions or (None,):
            name = f"sub-{i + 1:02d}"
            place = f"{name}/anat"
            if session is not None:
                place = f"{name}/ses-{session}/anat"
                name += f"_ses-{session}"
            labels = folder / "derivatives" / pipeline / place / f"{name}_dseg.nii.gz"
            for number, suffix in enumerate(suffixes):
                labelled = number == 0 and i < count - unlabelled
                seed = 100 * i + 10 * number + len(list(folder.rglob("*.nii.gz")))
                image = folder / place / f"{name}_{suffix}.nii.gz"
                write_scan(image, labels if labelled else None, seed, scale=i + 1.0)
    lines = ["index\tname", "0\tbackground", *(f"{n}\t{name}" for n, name in NAMES.items())]
    (folder / "derivatives" / pipeline).mkdir(parents=True, exist_ok=True)
    (folder / "derivatives" / pipeline / "dseg.tsv").write_text("\n".join(lines) + "\n")
    description = {"Name": "Blobs", "BIDSVersion": "1.9.0", "License": "CC0"}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    return folder


def write_folders(
    folder, count=6, unlabelled=1, images="images", labels="labels", suffix="_seg", ending=".nii.gz"
):
    """A folder of images and one of labels, whose names have ``suffix`` more; both may be "."."""
    for i in range(count):
        label_file = folder / labels / f"mouse{i:02d}{suffix}{ending}"
        labelled = i < count - unlabelled
        image = folder / images / f"mouse{i:02d}{ending}"
        write_scan(image, label_file if labelled else None, seed=i, scale=i + 1.0)
    return folder


def write_table(folder, count=6, unlabelled=1, name="scans.csv", header=("image", "labels")):
    """A table with these columns, "image", "labels", "subject", "group", "id" in this order, and
    its files; two scans of each person.
    """
    separator = "\t" if name.endswith(".tsv") else ","
    lines = [separator.join(header)]
    for i in range(count):
        image, labels = f"files/t1 {i}.nii.gz", f"files/drawn {i}.nii.gz"
        labelled = i < count - unlabelled
        write_scan(folder / image, folder / labels if labelled else None, seed=i, scale=i + 1.0)
        group = "test" if i < 2 else "train"
        cells = (image, labels if labelled else "", f"p{i // 2}", group, f"scan{i}")
        lines.append(separator.join(cells[: len(header)]))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def write_subjects(
    folder, count=6, unlabelled=1, image="{scan}/t1.nii.gz", labels="{scan}/seg.nii.gz"
):
    """A folder for each scan, brain_0 ..., with files named by these templates."""
    for i in range(count):
        scan = f"brain_{i}"
        label_file = folder / labels.replace("{scan}", scan).replace("*", "site")
        image_file = folder / image.replace("{scan}", scan).replace("*", "site")
        labelled = i < count - unlabelled
        write_scan(image_file, label_file if labelled else None, seed=i, scale=i + 1.0)
    return folder
