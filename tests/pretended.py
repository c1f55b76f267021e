"""A GPU that is only pretended: what a training step would copy to it, and wait for.

All tensors stay on the CPU, but those of scans and networks, and all that is computed from them,
count as the GPU's. Noted is each time that Python asks for one of their numbers, whose answer a GPU
gives when its work is done; each tensor that is sent; and each that an operation wants there though
it was made on the CPU, which on a GPU is an error, or a copy that waits.
"""

from collections import Counter

from deepatlas import data, pairs, terms, training

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")


class PretendedGpu(TorchDispatchMode):
    """Within, ``counts`` grows by what is asked, sent and mixed."""

    def __init__(self, tensors):
        super().__init__()
        self.places = {}  # of each memory that is not just anywhere, as that of zeros is
        self.kept = []  # so that no other tensor gets the same memory
        self.counts = Counter()
        for tensor in tensors:
            self._put(tensor, "gpu")

    def _put(self, tensor, place):
        if tensor.layout == torch.strided:
            self.places[tensor.untyped_storage()._cdata] = place
            self.kept.append(tensor)

    def place(self, tensor):
        if tensor.layout != torch.strided:  # oneDNN's own, which only a CPU knows
            return "gpu"
        return self.places.get(tensor.untyped_storage()._cdata)

    def sent(self, tensor, device):
        """In place of ``data.sent``."""
        if self.place(tensor) == "gpu":
            return tensor
        self.counts["sent"] += 1
        there = tensor.clone()
        self._put(there, "gpu")
        return there

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.name().removeprefix("aten::").split(".")[0]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_gpu = any(self.place(tensor) == "gpu" for tensor in given)
        if on_gpu:
            self._note(name, args, given)
        result = function(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        from_python = "lift" in name or "rand" in name
        for tensor in made:
            if on_gpu:
                self._put(tensor, "gpu")
            elif from_python or any(self.place(one) == "cpu" for one in given):
                self._put(tensor, "cpu")
        return result

    def _note(self, name, args, given):
        by_answers = name in ("index", "index_put_") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool
            for leaf in tree_leaves(args[1])
        )
        if name in ASKS or by_answers:
            self.counts[f"asked by {name}"] += 1
        for tensor in given:
            if self.place(tensor) == "cpu" and tensor.ndim:
                self.counts[f"mixed by {name}"] += 1


class _Calls(TorchFunctionMode):
    """What no operation of PyTorch tells where the GPU is a CPU: numbers that are asked for in a
    list, and copies that are waited for.
    """

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function, types, args=(), kwargs=None):
        there = (
            bool(args) and isinstance(args[0], torch.Tensor) and self.gpu.place(args[0]) == "gpu"
        )
        if function is torch.Tensor.tolist and there:
            self.gpu.counts["asked in a list"] += 1
        if function is torch.Tensor.new_tensor and there:
            self.gpu.counts["copied by new_tensor"] += 1
        places = [*args[1:], (kwargs or {}).get("device")]
        moves = any(isinstance(place, torch.device) for place in places)
        if function is torch.Tensor.to and moves and not there:
            self.gpu.counts["copied by to"] += 1
        return function(*args, **(kwargs or {}))


def counts_of_a_turn(trainer, cohort, monkeypatch):
    """What the next turn of ``trainer`` copies and asks, were its device a GPU."""
    tensors = [scan.image for scan in cohort.scans]
    tensors += [scan.labels for scan in cohort.scans if scan.labels is not None]
    for network in [*trainer.networks.values(), *trainer.teachers.values()]:
        tensors += [*network.parameters(), *network.buffers()]
    for optimiser in trainer.optimisers.values():
        for known in optimiser.state.values():
            tensors += [value for name, value in known.items() if name != "step"]
    gpu = PretendedGpu(tensors)
    with monkeypatch.context() as patch:
        for module in (data, pairs, terms, training):
            patch.setattr(module, "sent", gpu.sent)
        patch.setattr(trainer, "device", torch.device("cuda"))
        with gpu, _Calls(gpu):
            trainer.take_turn()
    return gpu.counts
