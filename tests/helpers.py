"""A cohort small enough to train on in a second: a bright and a dark disk at random places, 2D."""

from collections import Counter

from deepatlas.data import Cohort, Scan
from deepatlas.parameters import parse

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

STRUCTURES = ("background", "bright", "dark")
SIDE = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For tensors this small more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_record(**more):
    """The record of a finished run of slices, as far as it is read by those who look at one."""
    return {
        "experiment": parse({"dims": 2}).model_dump(),
        "finished": True,
        "device": "cpu",
        "mixed_precision": False,
        "labelled_training_scans": 1,
        "labelled_validation_scans": 3,
        "training_scans": 24,
        "test_scans": 12,
        "shape": [64, 96],
        "spacing_mm": 1.0,
        "structures": ["background", "one"],
        "data": "0",
        **more,
    }


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def disk(centre, radius, side):
    i, j = torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")
    return (i - centre[0]) ** 2 + (j - centre[1]) ** 2 <= radius**2


def scan(number, labelled=True, side=SIDE, subject=None):
    """Scan ``s<number>``: a bright and a dark disk, a little apart, on grey."""
    generator = seeded(number)
    shift = side / 8 * (torch.rand(2, 2, generator=generator) - 0.5)
    centres = shift + side * torch.tensor([[0.3, 0.35], [0.7, 0.65]])
    labels = disk(centres[0], side / 5, side).long() + 2 * disk(centres[1], side / 6, side).long()
    image = torch.tensor([0.5, 0.9, 0.1])[labels] + 0.03 * torch.randn(
        side, side, generator=generator
    )
    return Scan(
        f"s{number}",
        subject or f"p{number}",
        image.clamp(0, 1)[None],
        torch.eye(4, dtype=torch.float64),
        labels if labelled else None,
    )


def disks(labelled=3, unlabelled=3, side=SIDE):
    """A cohort of ``labelled`` + ``unlabelled`` training scans and two validation scans."""
    train = tuple(scan(i, i < labelled, side) for i in range(labelled + unlabelled))
    return Cohort("disks", STRUCTURES, 1.0, train, (scan(100, side=side), scan(101, side=side)), ())


# --- what a GPU would wait for --------------------------------------------------------------------

# A number that the host asks for, the number of True voxels, and a tensor made of Python's numbers.
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.lift_fresh", "aten.is_nonzero")


class _Operations(TorchDispatchMode):
    """Counts the operations within, those of a backward pass too."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).rpartition(".")[0]
        self.counted[name] += 1
        if name == "aten.index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.counted["aten.nonzero"] += 1
        return function(*args, **(kwargs or {}))


def waits(compute):
    """{operation: times}: those of ``compute`` at which a GPU and the host would wait for each
    other.
    """
    with _Operations() as operations:
        compute()
    return {name: n for name, n in operations.counted.items() if name in WAITS}
