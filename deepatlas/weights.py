"""Trained networks in one small file, for those who want to use them before they have trained any."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from . import experiments
from .checkpoints import write_atomically
from .parameters import Experiment, parse

WEIGHTS = experiments.PROJECT / "tutorials_data" / "weights"


def keep(folder: Path, path: Path, regime: str = "deepatlas") -> None:
    """Write what ``regime`` trained in the run ``folder`` to ``path``, in half precision, with its
    parameters.
    """
    nets = experiments.load_networks(folder, regime)
    record = experiments.read_record(folder)
    kept = {
        "experiment": record["experiment"],
        "structures": list(record["structures"]),
        "networks": {
            name: {key: value.half() for key, value in net.state_dict().items()}
            for name, net in nets.items()
        },
    }
    write_atomically(path, lambda file: torch.save(kept, file))


def load(path: str | Path) -> tuple[dict[str, nn.Module], Experiment]:
    """The networks {"seg": ..., "reg": ...}, ready to use on the CPU, and the experiment that
    trained them.

    ``path`` is a file, or the name of a cohort whose weights come with the project.
    FileNotFoundError names those there are; ValueError if the file is damaged or not of this kit.
    """
    path = Path(path) if Path(path).is_file() or Path(path).suffix else WEIGHTS / f"{path}.pt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.pt")))
        raise FileNotFoundError(
            f"{path}: no such file; weights that come with the project: {there or 'none'}"
        )
    try:
        kept = torch.load(path, weights_only=True)
        experiment = parse(kept["experiment"])
        with torch.random.fork_rng(devices=[]):
            nets = experiments.new_networks(experiment, len(kept["structures"]))
        for name, weights in kept["networks"].items():
            nets[name].load_state_dict(weights)
    except OSError:  # nothing is wrong with the file
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ValueError(
            f"{path}: damaged, or not written by this version of the kit ({error}): make them again "
            "with `deepatlas weights`"
        ) from error
    return {name: nets[name].eval() for name in kept["networks"]}, experiment
