"""What a machine can do with the kit, in words."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from . import datasets, machine, places

PACKAGES = ("torch", "numpy", "nibabel", "papermill", "jupyterlab")


def examine() -> Iterator[str]:
    """Lines about this machine, the last of them advice."""
    python = f"Python {platform.python_version()}"
    yield f"deepatlas {version('deepatlas')}, {python}, {platform.platform()}"
    yield ", ".join(f"{name} {_installed(name)}" for name in PACKAGES)

    device = machine.pick_device()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name, found in there.items():
        problem = machine.step_problem(name) if found else "not there"
        yield f"{name}: {problem or 'works, ' + machine.device_name(name)}"
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    busy = machine.busy_cores()
    yield f"cpu: {cores} cores, {busy:.1f} of them busy now, {torch.get_num_threads()} threads"
    yield f"waiting threads: {machine.waiting_threads()}"
    yield f"freed memory: {machine.freed_memory()}"
    fast = "faster, used by default" if machine.bfloat16_pays(device) else "not faster"
    yield f"bfloat16 on {device}: {fast}"

    memory = psutil.virtual_memory().available / 2**30
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    yield f"free: {memory:.1f} GiB of memory, {disk:.1f} GiB of disk here"
    yield f"lessons: {places.NOTEBOOKS}; runs: {places.runs_folder()}"
    named = os.environ.get("DEEPATLAS_DATA")
    folder = places.data_folder()
    missing = folder is not None and not folder.is_dir()
    yield f"data: DEEPATLAS_DATA is {named or 'not set'}{', no such folder' if missing else ''}"
    for name in datasets.manifest():
        yield f"  {name}: {_where(name)}"
    yield f"advice: {_advice(device, memory, disk, busy / cores)}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _where(name: str) -> str:
    entry = datasets.describe(name)
    if entry.anatomy:
        return "made on the spot"
    if found := datasets.local(name):
        return str(found)
    return "can be downloaded" if entry.url else "not found; needs DEEPATLAS_DATA"


def _advice(device: str, memory: float, disk: float, busy: float) -> str:
    run = "`make experiment`" if places.CHECKOUT else "`deepatlas run`"
    if memory < 3:
        return (
            "close other programs: less than 3 GiB of memory are free, and an experiment wants "
            "about 2"
        )
    if disk < 1:
        return "free some disk: runs want up to 1 GiB"
    if device == "cuda":
        return f"run {run}, and then full-size experiments with profile=full"
    if busy > 0.8:
        return (
            f"other programs keep the processor busy: {run} will take longer than it says; where "
            "many train at once, set OMP_NUM_THREADS=1 for each"
        )
    return f"run {run}; profile=full wants a GPU"
