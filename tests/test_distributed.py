"""Several processes train one run together, and end with the weights of one."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from deepatlas import training
from deepatlas.checkpoints import OutOfTime, read_checkpoint
from deepatlas.distributed import ALONE, Left, Ranks, joined
from deepatlas.errors import UserError
from deepatlas.networks import RegistrationNet, SegmentationNet
from deepatlas.pairs import draw_changes
from deepatlas.regimes import REGIMES
from deepatlas.terms import TERMS
from deepatlas.training import Settings, train
from deepatlas.trainings import go_on
from deepatlas.warp import Deformation

import psutil
import pytest
import torch
from helpers import disks, one_thread  # noqa: F401
from torch import nn

TESTS = Path(__file__).resolve().parent
PATIENCE = 300  # seconds, on a machine that is busy


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started(function, *words, count=2):
    """``count`` processes that run a ``function`` of this file, as torchrun starts them."""
    code = f"import sys, test_distributed; test_distributed.{function}(*sys.argv[1:])"
    port = free_port()
    processes = []
    for number in range(count):
        surroundings = os.environ | {
            "PYTHONPATH": str(TESTS),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TORCHELASTIC_RUN_ID": "test",
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-c", code, *map(str, words)]
        processes.append(
            subprocess.Popen(
                command,
                env=surroundings,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def ended(processes, codes=None):
    """What each of the ``processes`` has printed; they end with these exit ``codes``."""
    try:
        told = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    wanted = codes or [0] * len(processes)
    assert [process.returncode for process in processes] == wanted, "\n".join(told)
    return told


# --- what the processes tell each other -----------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_pair_is_the_part_of_one_process(count):
    for pairs in range(count, 20):
        parts = [Ranks(number, count).part(pairs) for number in range(count)]
        assert [pair for part in parts for pair in part] == list(range(pairs))
        sizes = {len(part) for part in parts}
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_a_turn_with_fewer_pairs_than_processes_is_refused():
    ranks = Ranks(0, 4)
    ranks.check(4, "reg")
    with pytest.raises(UserError, match=r"seg_batch_size=3: 4 processes .* start fewer"):
        ranks.check(3, "seg")


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with joined() as ranks:
        assert ranks is ALONE and ranks.first and ranks.part(3) == range(3)
        ranks.check(1, "reg")
        assert ranks.add_up([1.5, float("inf")]) == [1.5, float("inf")] and ranks.any(
            False, True
        ) == [False, True]
        network = nn.Linear(2, 2)
        ranks.add_up_gradients(network)
        assert network.weight.grad is None
        ranks.say("nobody hears")


def talk():
    """In each process: sums, gradients and running statistics, and what the first one says; then
    the second is killed.
    """
    with joined() as ranks:
        number = ranks.number
        assert ranks.count == 2 and ranks.first == (number == 0)
        assert ranks.add_up([number + 1, 0.25]) == [3, 0.5]
        assert ranks.any(number == 1, False) == [True, False]

        network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).double()
        network = network.to(memory_format=torch.channels_last)
        network[1].running_mean.fill_(number)
        if ranks.first:  # the part of the other taught it nothing
            for parameter in network.parameters():
                parameter.grad = torch.full_like(parameter, 7)
        ranks.add_up_gradients(network)
        for parameter in network.parameters():
            assert (parameter.grad == 7).all()
            assert parameter.grad.stride() == parameter.stride()
        assert network[1].running_mean.tolist() == [0.5] * 3

        said = {"tensor": torch.arange(3), "text": ("a", 1)}
        if ranks.first:
            ranks.say(said)
        else:
            heard = ranks.hear()
            assert torch.equal(heard["tensor"], said["tensor"]) and heard["text"] == said["text"]
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(Left, match="another process of this run has ended"):
            ranks.add_up([1.0])


def test_processes_add_up_and_hear_the_first_and_that_another_has_ended():
    ended(started("talk"), [0, -signal.SIGKILL])


# --- a training -----------------------------------------------------------------------------------


class Exact(nn.Module):
    """The kit's registration network, whose velocity stays in float64."""

    def __init__(self):
        super().__init__()
        self.net = RegistrationNet(2).double()

    def forward(self, moving, fixed):
        return Deformation.exp(self.net.on_own_grid(moving, fixed), shape=fixed.shape[2:])


def exact_training(folder, ranks=ALONE, broken=0):
    """The history of twenty turns, and the networks: the kit's own in float64, of three or four
    pairs of every case. A part of a batch may have no pair of a case that the other has.
    """
    cohort = disks(3, 3)
    scans = [replace(scan, image=scan.image.double()) for scan in cohort.train]
    for scan in scans[:broken]:
        scan.image[...] = torch.nan
    torch.manual_seed(0)
    nets = {"seg": SegmentationNet(2, 3).double(), "reg": Exact()}
    if not ranks.first:  # all weights are those of the first
        nets["reg"] = Exact()
    settings = Settings({"seg": 8, "reg": 12}, batch_size=4, seg_batch_size=3, seed=1, ranks=ranks)
    cohort = replace(cohort, train=tuple(scans))
    with patch.object(training, "draw_changes", lambda *of: draw_changes(*of).double()):
        history = train(nets, cohort, REGIMES["deepatlas"], settings, folder)
    return history, {name: net.state_dict() for name, net in nets.items()}


def train_together(folder):
    """Keeps what each process ends with; what is wrong with the pairs of one is told by all."""
    with joined() as ranks:
        result = exact_training(Path(folder) / "together", ranks)
        torch.save(result, Path(folder) / f"{ranks.number}.pt")
        with pytest.raises(FloatingPointError, match=r"is nan for .* look at these scans"):
            exact_training(Path(folder) / "broken", ranks, broken=1)
    threads = {thread.id for thread in psutil.Process().threads()}
    of_python = {thread.native_id for thread in threading.enumerate()}
    assert threads == of_python, "PyTorch's threads are left when Python ends"


def test_two_processes_train_as_one_does(tmp_path):
    processes = started("train_together", tmp_path)
    history, weights = exact_training(tmp_path / "alone")
    ended(processes)
    first, second = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(2))
    for row, wanted in zip(first[0], history, strict=True):
        assert row.keys() == wanted.keys() and row["turn"] == wanted["turn"]
        for term in TERMS.keys() & row.keys():
            assert row[term] == pytest.approx(wanted[term], rel=1e-9)
    for name, of_one in weights.items():
        for key, wanted in of_one.items():
            assert torch.equal(first[1][name][key], second[1][name][key])
            torch.testing.assert_close(first[1][name][key], wanted, rtol=0, atol=1e-9)
    assert [path.name for path in (tmp_path / "together").iterdir()] == ["checkpoint.pt"]


# --- a run ----------------------------------------------------------------------------------------

STEPS = 1_000_000  # more than anybody waits for


def run(root):
    """``torchrun ... deepatlas.cli run`` of two processes, begun: a few steps of a baseline, and
    then a training without an end.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "deepatlas.cli", "run", "--no-notebook", "--root", str(root)]
    parameters = ["profile=smoke", "regimes=joint", f"reg_steps={STEPS}"]
    return subprocess.Popen(
        [sys.executable, *torchrun, *command, *parameters],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(found, process):
    """What ``found()`` returns as soon as it is something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if result := found():
            return result
        time.sleep(0.2)
    process.kill()
    raise AssertionError(process.communicate()[0])


def test_a_process_that_is_killed_ends_the_run_saved(tmp_path):
    together = run(tmp_path)
    wait_for(lambda: [*tmp_path.glob("*/seg_baseline/scores.csv")], together)
    children = psutil.Process(together.pid).children()
    second = next(child for child in children if child.environ().get("RANK") == "1")
    time.sleep(8)  # the second training has begun by then, also beside other work
    second.kill()
    told = together.communicate(timeout=PATIENCE)[0]
    assert together.returncode == 1, told
    assert told.count("another process of this run has ended") == 1, told
    (checkpoint,) = tmp_path.glob("*/reg_baseline/checkpoint.pt")
    assert f"saved in {checkpoint}, and the same command goes on from there" in told

    # it goes on with one process, too
    before = read_checkpoint(checkpoint)["turns"]["reg"]
    with pytest.raises(OutOfTime):
        go_on(checkpoint.parent.parent, "cpu").train("reg_baseline", until=time.monotonic())
    assert read_checkpoint(checkpoint)["turns"]["reg"] == before + 1
