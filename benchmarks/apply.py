"""What the README says about time and memory of trained networks on files of 160 x 192 x 224
voxels of 1 mm: `python benchmarks/apply.py`, with `--ants` also the registration of the same pair
by SyN of ANTs. Weights do not matter for time: the networks are untrained.

Each work is done in a process of its own, which tells its peak memory; compare numbers of one run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deepatlas import apply, machine, models, parameters, phantom
from deepatlas.apply.model import Model
from deepatlas.datasets.preparation import Preparation

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

SHAPE, SPACING = (160, 192, 224), 1.0
STRUCTURES = 13  # background included, as of oasis35
FILES = ("moving.nii.gz", "fixed.nii.gz")


def make_files(folder):
    """Two synthetic brains as NIfTI files, made at twice the spacing and interpolated."""
    half = tuple(side // 2 for side in SHAPE)
    for number, name in enumerate(FILES):
        scan = phantom.make_scan("brain", number, half, spacing=2 * SPACING)
        fine = ndimage.zoom(scan.image[0].numpy(), 2, order=1)
        affine = np.diag([SPACING, SPACING, SPACING, 1.0])
        nib.save(nib.Nifti1Image((1000 * fine).astype("int16"), affine), folder / name)


def untrained(mixed):
    """A model on the files' own grid."""
    experiment = parameters.parse({"dims": 3}).model_dump()
    keys = {key: experiment[key] for key in ("velocity", "passes")}
    nets = models.build(experiment["networks"], 3, STRUCTURES, **keys)
    numbers = tuple((number,) for number in range(1, STRUCTURES))
    names = ("background", *(f"structure {number}" for (number,) in numbers))
    grid = (SHAPE, SPACING)
    return Model(
        "untrained",
        {name: net.eval() for name, net in nets.items()},
        experiment,
        names,
        numbers,
        "uint8",
        Preparation(grid, grid),
        False,
        mixed_precision=mixed,
    )


def networks_alone(mixed):
    """(seconds of F_S, of F_R) on this grid, once each after a warm-up on a small one."""
    model = untrained(mixed)
    seconds = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        for name, inputs in (("seg", 1), ("reg", 2)):
            net = model.nets[name]
            net(*[torch.rand(1, 1, 32, 32, 32)] * inputs)
            images = [torch.rand(1, 1, *SHAPE)] * inputs
            start = time.perf_counter()
            net(*images)
            seconds.append(time.perf_counter() - start)
    return seconds


def work(kind, folder):
    """Do one thing, and return its seconds."""
    mixed = kind.endswith("bfloat16")
    if kind.startswith("seg"):
        model = untrained(mixed)
        start = time.perf_counter()
        apply.segment(folder / FILES[0], model).save(folder / kind)
        return time.perf_counter() - start
    if kind.startswith("reg"):
        model = untrained(mixed)
        start = time.perf_counter()
        apply.register(folder / FILES[0], folder / FILES[1], model).save(folder / kind)
        return time.perf_counter() - start
    import ants

    start = time.perf_counter()
    moving, fixed = (ants.image_read(str(folder / name)) for name in FILES)
    ants.registration(fixed, moving, type_of_transform="SyN", outprefix=str(folder / "syn"))
    return time.perf_counter() - start


def measured(kind, folder):
    """Seconds and peak memory of ``work`` in a process of its own."""
    command = [sys.executable, __file__, "--work", kind, "--folder", str(folder)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def main():
    """Print one line per measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ants", action="store_true")
    parser.add_argument("--work")
    parser.add_argument("--folder", type=Path)
    words = parser.parse_args()
    if words.work == "networks":
        seconds = {str(mixed): networks_alone(mixed) for mixed in (False, True)}
        print(json.dumps(seconds))
        return
    if words.work:
        seconds = work(words.work, words.folder)
        print(json.dumps({"seconds": seconds, "gib": machine.peak_memory_gib("cpu")}))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {SHAPE} voxels")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_files(folder)
        for mixed, (seg, reg) in measured("networks", folder).items():
            precision = "bfloat16" if mixed == "True" else "float32"
            print(f"networks alone, {precision}: segment {seg:.1f} s, register {reg:.1f} s")
        kinds = ["seg-float32", "seg-bfloat16", "reg-float32", "reg-bfloat16"]
        for kind in kinds + ["syn"] * words.ants:
            found = measured(kind, folder)
            print(f"{kind}, file to file: {found['seconds']:.1f} s, {found['gib']:.1f} GiB")


if __name__ == "__main__":
    main()
