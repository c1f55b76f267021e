"""Folders in exactly the layout of each data set that the kit knows, with blocks of its label
numbers.
"""

import json

import nibabel as nib
import numpy as np

SHAPE, SPACING = (24, 28, 24), 6.0
LIA = np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]])  # axes to the left, down, to the front


def blocks(numbers, shape=SHAPE):
    """Label numbers in blocks of 4 voxels a side, all of them, some often."""
    sides = [-(-n // 4) for n in shape]
    inner = np.zeros(sides, bool)
    inner[tuple(slice(1, -1) if n > 2 else slice(None) for n in sides)] = True
    coarse = np.zeros(sides, np.int16)
    coarse[inner] = np.resize(numbers, inner.sum())
    for axis in range(3):
        coarse = coarse.repeat(4, axis)
    return coarse[tuple(slice(n) for n in shape)]


def write(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_pair(image, labels, numbers, seed, *, affine=None, shape=SHAPE, volumes=1):
    affine = np.diag([SPACING] * 3 + [1.0]) if affine is None else affine
    truth = blocks(numbers, shape)
    voxels = (truth > 0) + 0.3 * np.random.default_rng(seed).random(shape)
    if volumes > 1:
        voxels = np.stack([voxels + volume for volume in range(volumes)], -1)
        voxels[..., 1:] = voxels[..., 1:] ** 3  # another contrast
    write(image, voxels.astype(np.float32), affine)
    write(labels, truth, affine)


# --- each layout ----------------------------------------------------------------------------------


def write_decathlon(folder, prefix, numbers, count=9, volumes=1):
    training = []
    for i in range(count):
        image, labels = f"imagesTr/{prefix}_{i:02d}.nii.gz", f"labelsTr/{prefix}_{i:02d}.nii.gz"
        write_pair(folder / image, folder / labels, numbers, i, volumes=volumes)
        training.append({"image": f"./{image}", "label": f"./{labels}"})
    names = {"0": "background"} | {str(number): f"label {number}" for number in numbers}
    test = [f"./imagesTs/{prefix}_{count + i:02d}.nii.gz" for i in range(2)]
    dataset = {"labels": names, "training": training, "test": test, "numTraining": count}
    (folder / "dataset.json").write_text(json.dumps(dataset))


def write_oasis35(folder, train=6, test=3):
    """As the Decathlon's, with the published groups in dataset.json; of each of the twelve
    structures one number, of the cortex two regions of both sides.
    """
    numbers = [44, 100, 101, 102, 103, 49, 59, 36, 57, 55, 47, 31, 35, 38, 40]
    write_decathlon(folder, "oasis", numbers, train + test)
    dataset = json.loads((folder / "dataset.json").read_text())
    for i, case in enumerate(dataset["training"]):
        case["group"] = "train" if i < train else "test"
    regions = {100: "Right ACgG  anterior", 101: "Left ACgG   anterior"}
    regions |= {102: "Right AIns  insula", 103: "Left AIns   insula"}
    dataset["labels"] |= {str(number): name for number, name in regions.items()}
    (folder / "dataset.json").write_text(json.dumps(dataset))


def write_neurite_oasis(folder, count=9):
    """A folder for each scan, volumes whose axes run to the left, down and to the front."""
    affine = np.eye(4)
    affine[:3, :3] = SPACING * LIA
    for i in range(count):
        scan = folder / f"OASIS_OAS1_{i:04d}_MR1"
        files = scan / "aligned_norm.nii.gz", scan / "aligned_seg35.nii.gz"
        write_pair(*files, range(1, 36), i, affine=affine, shape=(28, 32, 32))
        write(scan / "norm.nii.gz", np.ones(SHAPE, np.float32), affine)
    (folder / "subjects.txt").write_text("OASIS_OAS1_0000_MR1\n")


def write_neurite_oasis_2d(folder, count=9, thin=1):
    """Slices of 160 x 192 voxels and one, along the axis ``thin`` of the header."""
    axes = [axis for axis in range(3) if axis != thin]
    affine = np.eye(4)
    affine[:3, :3] = SPACING * np.eye(3)[:, [*axes, thin]]
    for i in range(count):
        scan = folder / f"OASIS_OAS1_{i:04d}_MR1"
        files = scan / "slice_norm.nii.gz", scan / "slice_seg4.nii.gz"
        write_pair(*files, range(1, 5), i, affine=affine, shape=(32, 36, 1))


# The scans of each site, by their numbers.
MINDBOGGLE = {
    "MMRR-21": range(1, 22),
    "HLN-12": range(1, 13),
    "NKI-TRT-20": range(1, 21),
    "OASIS-TRT-20": range(1, 21),
    "NKI-RS-22": range(1, 23),
}


def write_mindboggle(folder, sites=MINDBOGGLE):
    """A folder for each site, and in it one for each scan."""
    regions = [1000 + number for number in range(1, 36) if number not in (1, 4, 32, 33)]
    numbers = [*regions, *(number + 1000 for number in regions)]
    seed = 0
    for site, scans in sites.items():
        for i in scans:
            scan = folder / f"{site}_volumes" / f"{site}-{i}"
            seed += 1
            files = scan / "t1weighted.nii.gz", scan / "labels.DKT31.manual.nii.gz"
            write_pair(*files, numbers, seed, shape=(28, 32, 28))
            write(scan / "t1weighted_brain.nii.gz", np.ones((4, 4, 4), np.float32), np.eye(4))
    extra = folder / "Extra-18_volumes" / "Twins-2-1"
    write_pair(extra / "t1weighted.nii.gz", extra / "labels.DKT31.manual.nii.gz", numbers, 999)


def write_oai_zib(folder, channel="_0000", count=9):
    """As OAIZIB-CM lays them out, without a dataset.json; the last two are in its test folders."""
    for i in range(1, count + 1):
        part = "Tr" if i < count - 1 else "Ts"
        image = folder / f"images{part}" / f"oaizib_{i:03d}{channel}.nii.gz"
        write_pair(image, folder / f"labels{part}" / f"oaizib_{i:03d}.nii.gz", range(1, 6), i)
