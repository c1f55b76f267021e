"""Loading a cohort from files, for the first time and by a process that finds it again, beside
MONAI's CacheDataset and PersistentDataset on the same files. A benchmark, not a test.

    python benchmarks/loading.py --cohort hippocampus --cohort phantom

Every number is that of a process of its own, after its imports: from the list of files to the sum
of all voxels of all images and labels on the grid. Memory is what is resident, pages of mapped
files too. The first time counts writing the cache, where there is one.
MONAI interpolates images linearly and takes the nearest label; the kit also smooths
where voxels become larger, takes the majority of labels, and knows a changed file by its content.
The hippocampus (from the folder that DEEPATLAS_DATA names) is loaded without alignment here, which
MONAI has no transform for; what the alignment takes is a row of its own.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from deepatlas import datasets, phantom

import nibabel as nib
import numpy as np
import runner
from runner import KIT

CACHE, PERSISTENT = "MONAI CacheDataset", "MONAI PersistentDataset"
ALIGNED = "deepatlas, aligned"
PROGRAMS = (KIT, CACHE, PERSISTENT)
GOALS = {"cold": 0.7, "cached": 0.1}  # of the time of MONAI's faster one

ENTRY = """
name = "{name}"
title = "Scans to be timed"
licence = "as their files'"
align = {align}
structures = [{structures}]
grids.full-3d = {{ shape = {shape}, spacing = {spacing} }}
"""

SCAN = """
[[scans]]
id = "{id}"
subject = "{id}"
image = "{image}"
labels = "{labels}"
part = "{part}"
"""


# --- cohorts --------------------------------------------------------------------------------------


def hippocampus(folder, count):
    """Pairs of files, label numbers, shape and spacing of the grid: the class profile's."""
    home = Path(os.environ["DEEPATLAS_DATA"]) / "hippocampus"
    images = sorted((home / "imagesTr").glob("[!.]*.nii.gz"))[:count]
    files = [(image, home / "labelsTr" / image.name) for image in images]
    return files, [1, 2], (40, 56, 40), 1.0


def phantoms(folder, count):
    """The same of brains that are made here, 80 x 96 x 80 voxels of 2 mm, for a grid of 4 mm."""
    files = []
    for number in range(count):
        scan = phantom.make_scan("brain", number, (80, 96, 80), spacing=2.0)
        grey = (1000 * scan.image[0].numpy()).astype(np.int16)
        paths = folder / f"brain{number}.nii.gz", folder / f"brain{number}-labels.nii.gz"
        for path, array in zip(paths, (grey, scan.labels.numpy()), strict=True):
            nib.save(nib.Nifti1Image(array, scan.affine.numpy()), path)
        files.append(paths)
    return files, list(range(1, 11)), (40, 48, 40), 4.0


COHORTS = {"hippocampus": (hippocampus, 120), "phantom": (phantoms, 12)}


def describe(folder, name, count):
    """Write cohort.toml for the kit and cohort.json for MONAI."""
    make, all_of_them = COHORTS[name]
    files, numbers, shape, spacing = make(folder, count or all_of_them)
    structures = ", ".join(f'["structure {number}", [{number}]]' for number in numbers)
    for align in ("false", "true"):
        text = ENTRY.format(
            name=name, align=align, structures=structures, shape=list(shape), spacing=spacing
        )
        for number, (image, labels) in enumerate(files):
            part = ("validation", "test")[number] if number < 2 else "train"
            text += SCAN.format(id=f"scan{number}", image=image, labels=labels, part=part)
        where = folder / align
        where.mkdir()
        (where / "cohort.toml").write_text(text)
    items = [{"image": str(image), "labels": str(labels)} for image, labels in files]
    told = {"items": items, "shape": shape, "spacing": spacing}
    (folder / "cohort.json").write_text(json.dumps(told))
    return len(files)


# --- programs, each in a process of its own -------------------------------------------------------


def ours(folder, cache, align="false"):
    """A function that loads all: pairs of an image and its labels."""
    os.environ["DEEPATLAS_CACHE"] = str(cache)
    path = str(folder / align / "cohort.toml")

    def load():
        cohort = datasets.load_cohort(path, profile="full", dims=3)
        scans = (*cohort.validation, *cohort.test, *cohort.train)  # the order of the files
        return [(scan.image[0].numpy(), scan.labels.numpy()) for scan in scans]

    return load


def monais(folder, cache, program):
    """The same by a data set of MONAI."""
    from monai import transforms as t
    from monai.data import CacheDataset, PersistentDataset

    told = json.loads((folder / "cohort.json").read_text())
    both = ["image", "labels"]
    transform = t.Compose(
        [
            t.LoadImaged(both),
            t.EnsureChannelFirstd(both),
            t.Orientationd(both, axcodes="RAS", labels=None),
            t.ScaleIntensityRangePercentilesd("image", 1, 99.5, 0, 1, clip=True),
            t.Spacingd(both, [told["spacing"]] * 3, mode=("bilinear", "nearest")),
            t.ResizeWithPadOrCropd("image", told["shape"], mode="edge"),
            t.ResizeWithPadOrCropd("labels", told["shape"]),
        ]
    )

    def load():
        if program == CACHE:
            dataset = CacheDataset(told["items"], transform, progress=False, num_workers=1)
        else:
            dataset = PersistentDataset(told["items"], transform, cache)
        items = [dataset[number] for number in range(len(dataset))]
        return [(item["image"].numpy()[0], item["labels"].numpy()[0]) for item in items]

    return load


def resident_mib(since_now=False):
    """The most memory that was resident in this process, pages of mapped files included; as Linux
    counts it, which can be told to begin ``since_now``.
    """
    if not Path("/proc/self/clear_refs").exists():
        return runner.UNKNOWN
    if since_now:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def work(program, folder, cache, keep):
    """Load once, and print what it took."""
    if program in (KIT, ALIGNED):
        load = ours(folder, cache, "true" if program == ALIGNED else "false")
    else:
        load = monais(folder, cache, program)
    before = resident_mib(since_now=True)
    wall, cpu = time.perf_counter(), time.process_time()
    pairs = load()
    total = sum(float(image.sum()) + float(labels.sum()) for image, labels in pairs)
    took = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "memory_mib": resident_mib() - before,
        "total": total,
    }
    if keep:
        images, labels = zip(*pairs, strict=True)
        np.savez(keep, images=np.stack(images), labels=np.stack(labels).astype(np.int16))
    print(json.dumps(took))


def measure(program, folder, cache, keep=""):
    """What ``work`` prints, of a process of its own with one thread."""
    command = [sys.executable, __file__, "--work", program, str(folder), str(cache), str(keep)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


# --- comparison -----------------------------------------------------------------------------------


def check_same(folder):
    """1 - the correlation of the images of both programs, at most; AssertionError if it or the
    overlap of the labels says that it is not the same work.

    A grid with an odd number of voxels more than the file has is centred half a voxel to this or
    that side: they are compared where they match best, at most one voxel apart.
    """
    loaded = []
    for program in (KIT, PERSISTENT):
        keep = folder / f"{program}.npz"
        measure(program, folder, folder / f"first {program}", keep)
        loaded.append(np.load(keep))
    images = [found["images"] for found in loaded]
    labels = [found["labels"] for found in loaded]
    far, overlaps = [], []
    for number, image in enumerate(images[0]):
        alike = {}
        for shift in itertools.product((-1, 0, 1), repeat=3):
            other = np.roll(images[1][number], shift, (0, 1, 2))
            alike[shift] = np.corrcoef(image.ravel(), other.ravel())[0, 1]
        best = max(alike, key=alike.get)
        far.append(1 - alike[best])
        one, other = labels[0][number], np.roll(labels[1][number], best, (0, 1, 2))
        both = np.count_nonzero((one == other) & (one > 0))
        overlaps.append(2 * both / (np.count_nonzero(one) + np.count_nonzero(other)))
    print(f"images {max(far):.3g} apart at most, labels overlap by {min(overlaps):.3g} at least")
    # each has its own percentiles of intensity, and nearest labels are not those of the majority
    assert max(far) < 0.15 and min(overlaps) > 0.7, "not the same work"
    return max(far)


def compare(name, count, turns):
    """Rows of one cohort."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        scans = describe(folder, name, count)
        programs = [program for program in PROGRAMS if program == KIT or runner.version("monai")]
        error = check_same(folder) if len(programs) > 1 else runner.UNKNOWN
        found = {}
        for turn in range(turns):
            for program in programs:
                cache = folder / f"{program} {turn}"
                for when in GOALS:
                    took = measure(program, folder, cache)
                    found.setdefault((when, program), []).append(took)
        # seconds a scan: once
        for when in GOALS:
            found[when, ALIGNED] = [measure(ALIGNED, folder, folder / "aligned")]
    rows = []
    for when, goal in GOALS.items():
        medians = {}
        for program in (*programs, ALIGNED):
            columns = ("seconds", "cpu_seconds", "memory_mib")
            tries = found[when, program]
            medians[program] = {
                column: statistics.median(took[column] for took in tries) for column in columns
            }
        peers = [medians[program] for program in programs[1:]]
        best = min((peer["cpu_seconds"] for peer in peers), default=runner.UNKNOWN)
        least = min((peer["memory_mib"] for peer in peers), default=runner.UNKNOWN)
        for program, values in medians.items():
            size = f"{name}, {scans} scans"
            row = runner.row_of(f"load a cohort, {when}", size, program, "cpu", **values)
            row = replace(
                row,
                threads=1,
                ratio=values["cpu_seconds"] / best,
                memory_ratio=values["memory_mib"] / least if least else runner.UNKNOWN,
                error=0.0 if program == KIT else error,
                goal=goal if program == KIT else runner.UNKNOWN,
                note=NOTES.get((when, program), ""),
            )
            rows.append(row)
    return rows


NOTES = {
    ("cached", KIT): "knows files by their content, MONAI's by their paths",
    ("cached", CACHE): "another process finds nothing of it and loads anew",
    ("cold", ALIGNED): "affine alignment too, which its peers have not",
}


def main():
    """Print the rows and keep them."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--cohort", action="append", choices=COHORTS)
    options.add_argument("--scans", type=int, help="only so many of each")
    options.add_argument("--turns", type=int, default=5)
    options.add_argument("--to", type=Path, default=runner.ROWS, help="the file of rows")
    options.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.work:
        program, folder, cache, keep = chosen.work
        work(program, Path(folder), Path(cache), keep)
        return
    cohorts = list(COHORTS) if "DEEPATLAS_DATA" in os.environ else ["phantom"]
    if "hippocampus" in (chosen.cohort or []) and "hippocampus" not in cohorts:
        options.error("the hippocampus is looked for in the folder that DEEPATLAS_DATA names")
    for name in chosen.cohort or cohorts:
        rows = compare(name, chosen.scans, chosen.turns)
        for row in rows:
            print(runner.told(row), flush=True)
        runner.keep(rows, chosen.to)


if __name__ == "__main__":
    main()
