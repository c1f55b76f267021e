"""The machine a run finds itself on: devices, precision, memory; what ``deepatlas doctor`` reports."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from . import datasets, losses, networks
from .warp import Deformation


def pick_device(wanted: str = "auto") -> str:
    """The device to train on: ``wanted`` if it can do a training step, or of "auto" the first of
    CUDA, MPS, CPU.
    """
    if wanted != "auto":
        if problem := step_problem(wanted):
            raise ValueError(
                f"device {wanted!r} cannot train here ({problem}): choose 'auto' or 'cpu'"
            )
        return wanted
    found = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    return next((device for device in found if not step_problem(device)), "cpu")


def step_problem(device: str) -> str | None:
    """Why ``device`` cannot do a training step of both dimensions, or None: some lack an operation."""
    try:
        for shape in ((16, 16), (16, 16, 16)):
            image = torch.rand(1, 1, *shape, device=device)
            net = networks.RegistrationNet(len(shape)).to(device)
            loss = losses.ncc(Deformation(net(image, image)).warp(image), image)
            loss.backward()
            loss.item()  # a GPU reports what went wrong only when its answer is asked for
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def bfloat16_pays(device: torch.device | str, shape: tuple[int, ...] = (64, 64, 64)) -> bool:
    """Are the networks clearly faster in bfloat16 on a grid of ``shape``? Asked of the device, or
    timed.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # at 2 voxels a side, an eighth, oneDNN's weight gradients are NaN
    if len(shape) == 3 and min(shape) < 24:
        return False
    return device.type == "cpu" and (
        _convolution_seconds(torch.float32, len(shape))
        > 1.3 * _convolution_seconds(torch.bfloat16, len(shape))
    )


def _convolution_seconds(dtype: torch.dtype, dims: int) -> float:
    """The fastest of five forward passes of one convolution over 16,384 voxels."""
    layer = (torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d)(32, 32, 3, padding=1).to(dtype)
    x = torch.rand(1, 32, *((128, 128) if dims == 2 else (16, 32, 32))).to(dtype)
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def device_name(device: torch.device | str) -> str:
    """The name of the GPU or processor."""
    device = torch.device(device)
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )


def peak_memory_gib(device: torch.device | str) -> float:
    """The most memory this process has held so far: of the GPU, or resident."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    info = psutil.Process().memory_info()
    if sys.platform == "win32":
        peak = info.peak_wset
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
    return round(max(peak, info.rss) / 2**30, 2)


def doctor() -> Iterator[str]:
    """Lines about this machine, the last of them advice."""
    yield f"deepatlas {version('deepatlas')}, Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(
        f"{name} {_installed(name)}"
        for name in ("torch", "numpy", "nibabel", "papermill", "jupyterlab")
    )
    device = pick_device()
    for name, there in {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }.items():
        problem = step_problem(name) if there else "not there"
        yield f"{name}: {problem or 'works, ' + device_name(name)}"
    fast = bfloat16_pays(device)
    yield f"cpu: {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield f"bfloat16 on {device}: {'faster, used by default' if fast else 'not faster, float32 is used'}"
    memory, disk = (
        psutil.virtual_memory().available / 2**30,
        shutil.disk_usage(Path.cwd()).free / 2**30,
    )
    yield f"free: {memory:.1f} GiB of memory, {disk:.1f} GiB of disk here"
    home = os.environ.get("DEEPATLAS_DATA")
    missing = home and not Path(home).expanduser().is_dir()
    yield f"data: DEEPATLAS_DATA is {home or 'not set'}{', no such folder' if missing else ''}"
    for name, entry in datasets.manifest().items():
        yield f"  {name}: {_where(name, entry)}"
    yield f"advice: {_advice(device, memory, disk)}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _where(name: str, entry: dict) -> str:
    if "anatomy" in entry:
        return "made on the spot"
    found = datasets.local(name)
    return (
        str(found)
        if found
        else "can be downloaded"
        if "url" in entry
        else "not found; needs DEEPATLAS_DATA"
    )


def _advice(device: str, memory: float, disk: float) -> str:
    if memory < 3:
        return "close other programs: less than 3 GiB of memory are free, and an experiment wants about 2"
    if disk < 1:
        return "free some disk: runs want up to 1 GiB"
    if device == "cuda":
        return "run `make experiment`, and then full-size experiments with profile=full"
    return "run `make experiment`; profile=full wants a GPU"
