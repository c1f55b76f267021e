"""A cohort larger than memory, measured: many scans are made, loaded, and drawn in batches, in a
folder that is removed afterwards. A benchmark, not a test.

    python benchmarks/cohort_memory.py --scans 1000 --side 96

Memory that is the process's own counts apart from pages of the cache's files, which the system
takes back when it needs them. Whether it really does is seen under a limit of the system, say with
`systemd-run --scope -p MemoryMax=4G`. 1,000 scans at 96^3 take 8 GB of disk.
"""

import argparse
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

from deepatlas import datasets, parameters, training
from deepatlas.data import Batch
from deepatlas.pairs import draw_pair, pairs_by_case
from deepatlas.regimes import JOINT, REGIMES
from deepatlas.trainings import new_networks

import nibabel as nib
import numpy as np
import psutil
import torch

ENTRY = """
name = "many"
title = "Made to measure memory"
licence = "CC0"
structures = [["ball", [1]], ["shell", [2]]]
grids.full-3d = {{ shape = [{side}, {side}, {side}], spacing = 1.0 }}
"""

SCAN = """
[[scans]]
id = "{id}"
subject = "{id}"
image = "{id}.nii"
{labels}part = "{part}"
"""


class Memory(threading.Thread):
    """The most memory that this process holds while it runs, in GiB, looked at twenty times a
    second: its own, and all that is resident.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.own = self.resident = 0.0
        self.start()

    def run(self):
        process = psutil.Process()
        while True:
            info = process.memory_info()
            of_files = getattr(info, "shared", 0)  # where the system does not tell: all is own
            self.own = max(self.own, (info.rss - of_files) / 2**30)
            self.resident = max(self.resident, info.rss / 2**30)
            time.sleep(0.05)


def write_scans(folder, count, side):
    """``count`` scans of ``side``^3 voxels and a cohort file; every second training scan has no
    labels.
    """
    radius = np.linalg.norm(np.indices((side,) * 3) - side / 2, axis=0) / side
    labels = np.select([radius < 0.2, radius < 0.3], [1, 2]).astype(np.uint8)
    smooth = np.select([labels == 1, labels == 2, radius < 0.4], [1300, 1600, 1000])
    rng = np.random.default_rng(0)
    images = [(smooth + rng.integers(0, 100, smooth.shape)).astype(np.int16) for _ in range(4)]
    lines = [ENTRY.format(side=side)]
    for number in range(count):
        id = f"scan{number:05d}"
        part = "train" if number < 0.9 * count else "validation" if number % 2 else "test"
        labelled = part != "train" or number % 2 == 0
        image = images[number % 4]
        image.flat[number] += 1  # else they would be copies of one another
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{id}.nii")
        if labelled:
            nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / f"{id}-labels.nii")
        told = f'labels = "{id}-labels.nii"\n' if labelled else ""
        lines.append(SCAN.format(id=id, labels=told, part=part))
    (folder / "cohort.toml").write_text("".join(lines))
    return folder / "cohort.toml"


def draw_all(cohort, generator):
    """Batches of two pairs as a training draws them, as many as show every scan three times."""
    cases = pairs_by_case(cohort.train, "reg", consults=True)
    seen = set()
    for _ in range(3 * len(cohort.train) // 4):
        for side in zip(*(draw_pair(cases, generator) for _ in range(2)), strict=True):
            batch = Batch.of(side, len(cohort.structures), cohort.device)
            seen.update(batch.ids)
            batch.image.mean().item()
    for start in range(0, len(cohort.scans), 2):  # chance leaves some out
        batch = Batch.of(cohort.scans[start : start + 2], len(cohort.structures), cohort.device)
        seen.update(batch.ids)
        batch.image.mean().item()
    return len(seen)


def train(cohort, folder):
    """Steps of both networks in turns, with few channels, as the smoke profile takes them."""
    experiment = parameters.parse({"profile": "smoke", "dims": 3})
    networks = new_networks(experiment, len(cohort.structures))
    settings = training.Settings({"seg": 4, "reg": 4}, batch_size=1)
    training.train(networks, cohort, REGIMES[JOINT], settings, folder)


def main():
    """Print the seconds and the memory of each step."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--scans", type=int, default=1000)
    options.add_argument("--side", type=int, default=96, help="voxels, a multiple of 8")
    options.add_argument("--folder", type=Path, help="on the disk to use; a new folder in it is")
    chosen = options.parse_args()
    memory = Memory()
    print(f"{chosen.scans} scans of {chosen.side}^3 voxels; {torch.get_num_threads()} threads")
    print(f"before anything: {memory.own:.2f} GiB")

    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        os.environ["DEEPATLAS_CACHE"] = str(folder / "cache")

        def timed(what, work):
            start = time.perf_counter()
            result = work()
            print(
                f"{what}: {time.perf_counter() - start:.0f} s; so far at most {memory.own:.2f} "
                f"GiB of its own, {memory.resident:.2f} resident with pages of files",
                flush=True,
            )
            return result

        path = timed("files written", lambda: write_scans(folder, chosen.scans, chosen.side))

        def load():
            return datasets.load_cohort(datasets.describe(str(path)), profile="full", dims=3)

        timed("loaded for the first time", load)
        cohort = timed("loaded from the cache", load)
        whole = sum(scan.image.nbytes for scan in cohort.scans) / 2**30
        print(f"the images alone are {whole:.2f} GiB")
        keep = min(100, chosen.scans // 4)
        some = timed("labels hidden but of some", lambda: cohort.hide_labels(keep))
        generator = torch.Generator().manual_seed(0)
        seen = timed("batches of all scans drawn", lambda: draw_all(some, generator))
        print(f"{seen} scans were seen")
        timed("8 steps trained", lambda: train(some, folder / "run"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak resident by the system: {peak / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
