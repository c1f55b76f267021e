"""The machine that a run finds itself on: devices, precision, threads, memory."""

from __future__ import annotations

import os
import platform
import sys
import time

import psutil
import torch

from . import SPINS, TORCH_CAME_FIRST, losses, networks
from .errors import UserError
from .warp import Deformation

# Seconds of one pass of ``_convolution_seconds``. Without instructions for bfloat16 it takes one or
# more, where float32 takes hundredths.
HOPELESS = 0.5


def pick_device(wanted: str = "auto") -> str:
    """The device to train on: ``wanted`` if it can do a training step, or of "auto" the first of
    CUDA, MPS, CPU.
    """
    if wanted != "auto":
        if problem := step_problem(wanted):
            raise UserError(
                f"device {wanted!r} cannot train here ({problem}): choose 'auto' or 'cpu'"
            )
        return wanted
    found = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    return next((device for device in found if not step_problem(device)), "cpu")


def step_problem(device: str) -> str | None:
    """Why ``device`` cannot train in both dimensions, or None: some lack an operation."""
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
    if device.type != "cpu":
        return False
    exact = _convolution_seconds(torch.float32, len(shape))
    return exact > 1.3 * _convolution_seconds(torch.bfloat16, len(shape))


def _convolution_seconds(dtype: torch.dtype, dims: int) -> float:
    """The fastest of five forward passes of one convolution over 16,384 voxels."""
    layer = networks.convolution(dims, 32, 32).to(dtype)
    shape = (128, 128) if dims == 2 else (16, 32, 32)
    x = torch.rand(1, 32, *shape).to(dtype)
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - start)
            if seconds[-1] > HOPELESS:
                break
    return min(seconds[1:] or seconds)  # the first pass prepares


def device_name(device: torch.device | str) -> str:
    """The name of the GPU or processor."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def waiting_threads() -> str:
    """In words: how long a thread of OpenMP that has no work spins before it sleeps."""
    if sys.platform != "linux":
        return "as PyTorch's OpenMP has it (the bound is for GNU's, on Linux)"
    if TORCH_CAME_FIRST:
        return (
            "may spin for long: torch was imported before deepatlas, too late to bound it; import "
            "deepatlas first, or set GOMP_SPINCOUNT=" + SPINS
        )
    if policy := os.environ.get("OMP_WAIT_POLICY"):
        return f"by OMP_WAIT_POLICY={policy}"
    return f"spin for GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT')} rounds, then sleep"


def busy_cores(seconds: float = 0.5) -> float:
    """How many cores' worth of work the machine is doing now, this process at rest."""
    percent = psutil.cpu_percent(interval=seconds, percpu=True)
    return sum(percent) / 100


def peak_memory_gib(device: torch.device | str) -> float:
    """The most memory this process has held so far: of the GPU, or resident."""
    if torch.device(device).type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    info = psutil.Process().memory_info()
    if sys.platform == "win32":
        peak = info.peak_wset
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return round(max(peak, info.rss) / 2**30, 2)
