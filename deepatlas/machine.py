"""The machine that a run finds itself on: devices, precision, threads, memory; and networks fitted
to it: compiled, laid out for its GPU, spared for what they would hold.
"""

from __future__ import annotations

import copy
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from . import KEEPS_FREED_MEMORY, KEPT_BYTES, SPINS, TORCH_CAME_FIRST, losses, networks
from .errors import UserError
from .warp import Deformation

# Seconds of one pass of ``_convolution_seconds``. Without instructions for bfloat16 it takes one or
# more, where float32 takes hundredths.
HOPELESS = 0.5
# Tensors of all structures, in float32, that a turn of each network holds at its peak beside what
# the networks hold: scores, probabilities, labels, their gradients. Measured at 64^3 and 96^3.
TENSORS_OF_STRUCTURES = {"seg": 8, "reg": 5}
SHARE_TO_FILL = 0.9  # of the free memory: the rest is lost between what is held


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
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


def freed_memory() -> str:
    """In words: what becomes of the memory that a step of training frees."""
    if KEEPS_FREED_MEMORY:
        return f"kept for the next step, up to {KEPT_BYTES // 2**20} MiB"
    return "by the C library, or by the variables that the environment sets for it"


def busy_cores(seconds: float = 0.5) -> float:
    """How many cores' worth of work the machine is doing now, this process at rest."""
    percent = psutil.cpu_percent(interval=seconds, percpu=True)
    return sum(percent) / 100


def free_memory_gib(device: torch.device | str = "cpu") -> float:
    """Memory that a new process could have without others losing theirs; of a GPU, also what this
    one keeps there unused.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + kept) / 2**30
    return psutil.virtual_memory().available / 2**30


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


# --- memory of a training step --------------------------------------------------------------------


def must_spare(
    nets: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    structures: int,
    pairs: Mapping[str, int],
    *,
    mixed: bool,
    device: torch.device | str,
) -> bool:
    """Would a turn of ``pairs`` {"seg": ..., "reg": ...} need more memory than is free? It is said;
    see recompute.py for what is done about it.

    A GPU says when its memory does not suffice, and a batch is then computed in halves, which costs
    less time: there it is asked of a half. Of a CPU the operating system would end the process.
    """
    if torch.device(device).type == "cuda":
        pairs = {turn: math.ceil(count / 2) for turn, count in pairs.items()}
    wanted = step_gib(nets, shape, structures, pairs, mixed=mixed)
    free = free_memory_gib(device)
    if wanted <= SHARE_TO_FILL * free:
        return False
    size = " x ".join(map(str, shape))
    print(
        f"a training step of {max(pairs.values())} pairs of {size} voxels would hold about "
        f"{wanted:.1f} GiB, and {free:.1f} are free: it holds a part, and computes the rest again "
        "in the backward pass, the same numbers in about 1.3 times the time"
    )
    return True


def step_gib(
    nets: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    structures: int,
    pairs: Mapping[str, int],
    *,
    mixed: bool,
) -> float:
    """GiB that a training step holds at its peak, in the turn that holds more: what the network
    holds for its backward pass, of two scans a pair or of one pair, and some tensors of all
    structures.
    """
    dtype = torch.bfloat16 if mixed else torch.float32
    image = torch.empty(1, 1, *shape, dtype=dtype, device="meta")
    inputs = {"seg": [image], "reg": [image, image]}
    passes = {"seg": 2, "reg": 1}
    of_structures = 4 * structures * math.prod(shape)
    largest = 0
    for turn, count in pairs.items():
        held = passes[turn] * held_bytes(nets[turn], inputs[turn])
        held += TENSORS_OF_STRUCTURES[turn] * of_structures
        largest = max(largest, count * held)
    return largest / 2**30


def held_bytes(net: nn.Module, images: Sequence[Tensor]) -> int:
    """Bytes that ``net`` holds for its backward pass of ``images``, which are on the device "meta":
    of tensors without numbers nothing is computed. 0 of a network that cannot do without.
    """
    sizes = {}
    kept = []  # alive, so that no storage is taken for another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        kept.append(tensor)
        return tensor

    without_numbers = copy.deepcopy(net).to("meta", images[0].dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        try:
            without_numbers(*images)
        except (RuntimeError, NotImplementedError):
            return 0
    return sum(sizes.values())


# --- networks fitted to a machine -----------------------------------------------------------------


def lay_out(
    nets: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    *,
    mixed: bool,
    device: torch.device | str,
) -> list[str]:
    """Lay the weights of those networks on a GPU channels last, in place, that train clearly faster
    so there, timed on one scan of ``shape``; returns their names. On a CPU it was slower.

    Names and values of the weights stay as they are.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return []
    chosen = []
    with torch.random.fork_rng([device]):  # the training draws as if nobody had tried
        image = torch.rand(1, 1, *shape, device=device)
        inputs = {"seg": [image], "reg": [image, image.flip(2)]}
        for name, net in nets.items():
            if _is_faster_channels_last(net, inputs[name], mixed):
                chosen.append(name)
            else:
                _lay(net, torch.contiguous_format)
    return chosen


def _is_faster_channels_last(net: nn.Module, images: Sequence[Tensor], mixed: bool) -> bool:
    """Does ``net``, left channels last, train clearly faster so, and answer as before?"""
    two_sides = images[0].ndim == 4
    try:
        before, expected = _training_seconds(net, images, mixed)
        _lay(net, torch.channels_last if two_sides else torch.channels_last_3d)
        after, found = _training_seconds(net, images, mixed)
    except RuntimeError:  # too little memory, or a kernel that is not there
        return False
    alike = torch.allclose(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    return alike and 1.1 * after < before


def _lay(net: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay the weights of ``net`` in memory so, in place."""
    untyped: Any = net  # documented, but some versions of PyTorch have no overload for it
    untyped.to(memory_format=memory_format)


def _training_seconds(
    net: nn.Module, images: Sequence[Tensor], mixed: bool
) -> tuple[float, Tensor]:
    """The fastest of four passes through ``net`` and back, and what it answers on the last; its
    weights and their gradients stay as they are.
    """
    device = images[0].device
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    statistics = copy.deepcopy(dict(net.named_buffers()))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            output = net(*images)
        tensor = getattr(output, "displacement", output)
        torch.autograd.grad(tensor.float().square().mean(), weights)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    for name, buffer in net.named_buffers():  # of batch normalisation
        buffer.copy_(statistics[name])
    return min(seconds[1:]), tensor.detach().float()  # the first pass prepares


@contextmanager
def compiled(
    nets: Mapping[str, nn.Module], device: torch.device | str, wanted: bool = True
) -> Iterator[bool]:
    """Within, if ``wanted``, ``torch.compile`` makes each of ``nets`` faster; or it is said why
    not, and they run as they are. Gives whether it is done.

    Names and values of the weights stay, the numbers are the same to rounding. Each size of a
    batch, trained or consulted, is compiled when it first comes, which takes half a minute or more.
    It is made for GPUs: on a CPU it wins little in 2D, and loses in 3D.

    CUDA's graphs are left out: what a network answers would be overwritten when it is next asked,
    how many scans a network sees changes from step to step with their labels, and they save
    launches, which count on small grids only, where a whole run takes minutes.
    """
    problem = compile_problem(device) if wanted else None
    if problem:
        print(f"the networks are not compiled ({problem}): they train as they are")
    if problem or not wanted:
        yield False
        return
    before = torch._dynamo.config.recompile_limit
    # each size in its own code; beyond so many of all networks, PyTorch runs them as they are
    torch._dynamo.config.recompile_limit = 64
    for net in nets.values():
        net.compile(backend=_compiled_or_as_it_is, dynamic=False)
    try:
        yield True
    finally:
        torch._dynamo.config.recompile_limit = before
        for net in nets.values():
            net._compiled_call_impl = None  # there is no public way back


def compile_problem(device: torch.device | str) -> str | None:
    """Why nothing can be compiled for ``device``, or None: something small is, both
    ways."""
    try:
        x = torch.ones(8, device=device, requires_grad=True)
        torch.compile(lambda x: x.sin().exp())(x).sum().backward()
    except Exception as error:  # no compiler, none for this Python, no Triton: each has its own
        return _first_line(error)
    return None


def _compiled_or_as_it_is(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
    """A backend of ``torch.compile``: its usual one, or where that fails the operations one by
    one.
    """
    try:
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)
    except Exception as error:
        print(f"a part of a network is not compiled ({_first_line(error)}): it runs as it is")
        return graph.forward
