"""One run on several GPUs: processes that torchrun starts, each with its part of every batch.

    torchrun --nproc-per-node 2 -m deepatlas.cli run --no-notebook profile=full

Every process draws the same pairs from the same random numbers and computes its part of them; then
the gradients are added up. A step is that of one process with the whole batch, to rounding: how
many GPUs there were is no parameter of a run, and not in its name. The first process alone holds
the run's lock, writes, validates, scores and prints; the others follow it from one training to the
next.

Why not PyTorch's ``DistributedDataParallel``: it adds gradients up while one backward pass of one
forward pass yields them, and every process must make both, or the others wait for ever. Here a part
of a batch may teach a network nothing, or ask it twice, or be computed in halves for want of
memory. What it gains, to talk while it computes, is little: all gradients are 1 to 4 MB.

Batch normalisation sees each process's part by itself, so that with it the number of processes does
matter; its running statistics are averaged. (``SyncBatchNorm`` works on GPUs only, and waits in
every forward and backward pass for the same pass of the others, which a part without labelled scans
never makes. The kit's own networks have instance normalisation, which looks at one scan.)
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import UserError

# The others wait while the first validates and scores; that one has ended is seen at once.
PATIENCE = timedelta(days=7)
# Seconds from the request to stop until a sum on GPUs is given up: a process that has ended does
# not take part, and torchrun, which then asks the others to stop, kills them after 30.
GRACE = 15


Told = TypeVar("Told")  # of tensors, numbers and texts


class Left(UserError):
    """Another process of the run has ended, so that this one cannot go on."""


class Ranks:
    """The processes that train together, as each of them sees them; by default one, alone."""

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number = number  # of this process, from 0
        self.count = count
        self.stopped: Sequence[int] = ()  # signals that asked this process to stop
        self.left = False  # has another process ended?

    @property
    def first(self) -> bool:
        """Is it this process that holds the run's lock, writes, validates and prints?"""
        return self.number == 0

    def check(self, pairs: int, turn: str) -> None:
        """UserError, of the first process, if a ``turn`` has too few pairs for each to have a part
        of them.
        """
        if self.first and pairs < self.count:
            name = "seg_batch_size" if turn == "seg" else "batch_size"
            raise UserError(
                f"{name}={pairs}: {self.count} processes were to share the pairs of a turn of "
                f"{turn!r}, one each at least: start fewer (--nproc-per-node), or give the "
                f"experiment a larger {name}"
            )

    def part(self, pairs: int) -> range:
        """Which of the ``pairs`` of a turn this process computes: as many as any other, or one
        less.
        """
        begin = pairs * self.number // self.count
        return range(begin, pairs * (self.number + 1) // self.count)

    def add_up(self, values: Sequence[float]) -> list[float]:
        """The sum of each of the ``values`` over all processes, the same bits in each."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        self._all_reduce(sums)
        return sums.tolist()

    def any(self, *flags: bool) -> list[bool]:
        """Of each of the ``flags``: is it True in any process? So that all stop alike."""
        return [total > 0 for total in self.add_up([float(flag) for flag in flags])]

    def add_up_gradients(self, network: nn.Module) -> None:
        """Give every parameter of ``network`` the sum of its gradients over all processes, and the
        running statistics of batch normalisation their mean.
        """
        if self.count == 1:
            return
        gradients = []
        for parameter in network.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # this part taught it nothing
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._replace_by_sums(gradients)
        statistics = running_statistics(network)
        self._replace_by_sums(statistics)
        for statistic in statistics:
            statistic /= self.count

    def _replace_by_sums(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over all processes, all of them in one message."""
        if not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, sums in zip(tensors, flat.split(sizes), strict=True):
            tensor.copy_(sums.view(tensor.shape))  # its own layout stays as it is

    def say(self, value: object) -> None:
        """Let all others ``hear`` a value of tensors, numbers and texts."""
        if self.count > 1:
            content = io.BytesIO()
            torch.save(value, content)
            with self._leaving():
                dist.broadcast_object_list([content.getvalue()], 0, device=CPU)

    def hear(self) -> Any:
        """What the first process says next, its tensors on the CPU."""
        content: list[bytes] = [b""]
        with self._leaving():
            dist.broadcast_object_list(content, 0, device=CPU)
        return torch.load(io.BytesIO(content[0]), map_location="cpu", weights_only=True)

    def await_first(self) -> None:
        """Wait until the first process has ended, which torchrun would stop as soon as another one
        ends with an error.
        """
        with suppress(Left):
            self.hear()

    def of_first(self, value: Told) -> Told:
        """``value`` as the first process has it; the others call this, too."""
        if not self.first:
            return self.hear()
        self.say(value)
        return value

    def _all_reduce(self, tensor: Tensor) -> None:
        with self._leaving():
            work = dist.all_reduce(tensor, async_op=True)
            if tensor.is_cuda:
                self._watch(work)
            work.wait()

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        """What PyTorch raises when another process does not answer any more, as ``Left``."""
        try:
            yield
        except torch.OutOfMemoryError:  # which is this process's own
            raise
        except RuntimeError as error:
            self.left = True
            raise Left(ENDED) from error

    def _watch(self, work: dist.Work) -> None:
        """Wait for a sum on GPUs, where nothing tells that another process has ended, so that a
        request to stop is still seen.
        """
        asked = None
        while not work.is_completed():
            if self.stopped and asked is None:
                asked = time.monotonic()
            if asked is not None and time.monotonic() - asked > GRACE:
                self.left = True
                raise Left(ENDED)
            time.sleep(1e-4)


# What this process says of it.
ENDED = (
    "another process of this run has ended, so that all do: its own message, if it had time for "
    "one, stands above"
)
ALONE = Ranks()
CPU = torch.device("cpu")


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Of each batch normalisation of ``network``: its running mean and variance."""
    found = []
    for part in network.modules():
        if isinstance(part, _BatchNorm) and part.track_running_stats:
            statistics = (part.running_mean, part.running_var)
            found += [statistic for statistic in statistics if statistic is not None]
    return found


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun has started, this one among them; without torchrun it is alone.

    On a machine with GPUs "cuda" is a GPU of its own for each.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1 or not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE
        return
    # Its functions take, as defaults, the processes joined when it is first imported, which a
    # training does: they would be kept, and PyTorch's threads with them, until Python has ended
    # under these threads (SIGABRT).
    importlib.import_module("torch.distributed.nn")
    here = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if here >= gpus:
            raise UserError(
                f"torchrun was to start a process for each GPU, {here + 1} or more on this machine "
                f"with {gpus}: give it --nproc-per-node {gpus}, or CUDA_VISIBLE_DEVICES= to train "
                "on the CPU"
            )
        torch.cuda.set_device(here)
        backend = "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    ranks = Ranks(dist.get_rank(), count)
    if ranks.first:
        signal.signal(signal.SIGTERM, partial(_stop, ranks))
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _stop(ranks: Ranks, number: int, _: FrameType | None) -> None:
    """End this process; but torchrun asks for that, too, because another one has ended, and then
    there is something to be saved and said first.
    """
    if not ranks.left:
        raise SystemExit(128 + number)
