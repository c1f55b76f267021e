"""The rivals: what each is called, does, wants and sees, and what is tried to choose its settings.

A new rival is a row here, and a title in ``deepatlas.evidence.rivals``. ``make(settings, seen)``
returns what is scored: for registration a function (moving, fixed) -> Deformation, for segmentation
a function scan -> labels (I, J, K).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from deepatlas.data import Scan
from deepatlas.errors import UserError, brief, meant

from . import dynunet, propagation, registrations

Settings = Mapping[str, object]


@dataclass(frozen=True)
class Seen:
    """What a rival may see of a cohort before it is scored."""

    labelled: Sequence[Scan]  # N of the training scans, all, or none: as its row says
    structures: int  # background included
    seed: int
    device: str = "cpu"  # that networks are trained on


@dataclass(frozen=True)
class Rival:
    """A row of the table."""

    task: str  # "registration" or "segmentation"
    sees: str  # the labels of training scans that it sees: "none", "some" (N of them), "all"
    make: Callable[[Settings, Seen], Callable]
    package: str = ""  # that it wants beside the kit, by its name on PyPI
    module: str = ""  # by which that is imported
    settings: Settings = field(default_factory=dict)  # where nothing was tuned
    # all combinations of these are tried on validation pairs
    grid: Mapping[str, Sequence] = field(default_factory=dict)
    settings_of: str = ""  # another rival, whose tuned settings it takes
    least: int = 0  # labelled scans that it wants
    trains: bool = False  # a network, for as many steps as its settings say


def _propagation(settings: Settings, seen: Seen) -> Callable:
    return propagation.propagated(registrations.ants_cc(**settings), seen.labelled)


def _fusion(settings: Settings, seen: Seen) -> Callable:
    return propagation.fused(registrations.ants_cc(**settings), seen.labelled)


def _dynunet(settings: Settings, seen: Seen) -> Callable:
    net = dynunet.trained(
        seen.labelled, seen.structures, seed=seen.seed, device=seen.device, **settings
    )
    return dynunet.segmenter(net, seen.structures, bool(settings["mixed"]))


ANTS = {"package": "antspyx", "module": "ants"}
MONAI = {"package": "monai", "module": "monai"}
SYN_CC = {"radius": 4, "iterations": [100, 70, 50]}
# nnU-Net takes 250,000 steps, and of images as small as these far larger batches
DYNUNET = {"steps": 2000, "batch": 2, "width": 32, "mixed": True}

RIVALS = {
    "ants_mi": Rival(
        "registration",
        "none",
        lambda settings, seen: registrations.ants_mi(),
        **ANTS,
    ),
    "ants_cc": Rival(
        "registration",
        "none",
        lambda settings, seen: registrations.ants_cc(**settings),
        **ANTS,
        settings=SYN_CC,
        grid={
            "radius": [2, 3, 4],
            # the first is the default of ants.registration, which leaves the full resolution out
            "iterations": [[40, 20, 0], [100, 70, 50], [100, 100, 70, 50]],
        },
    ),
    "sitk_bspline": Rival(
        "registration",
        "none",
        lambda settings, seen: registrations.sitk_bspline(**settings),
        package="simpleitk",
        module="SimpleITK",
        settings={"metric": "mattes", "mesh": 4},
        grid={"metric": ["mattes", "correlation"], "mesh": [2, 3, 4, 6]},
    ),
    "optimise": Rival(
        "registration",
        "none",
        lambda settings, seen: registrations.optimise(**settings),
        settings={"window": 9, "regularity": 1.0, "levels": 4, "steps": 100},
        grid={
            "window": [5, 9],
            "regularity": [0.2, 0.5, 1.0, 2.0, 5.0],
            "levels": [4],
            "steps": [100],
        },
    ),
    "ants_propagation": Rival(
        "segmentation",
        "some",
        _propagation,
        **ANTS,
        settings_of="ants_cc",
        least=1,
    ),
    "ants_jlf": Rival(
        "segmentation",
        "some",
        _fusion,
        **ANTS,
        settings_of="ants_cc",
        least=2,
    ),
    "dynunet": Rival(
        "segmentation",
        "some",
        _dynunet,
        **MONAI,
        settings=DYNUNET,
        least=1,
        trains=True,
    ),
    "dynunet_full": Rival(
        "segmentation",
        "all",
        _dynunet,
        **MONAI,
        settings=DYNUNET,
        least=1,
        trains=True,
    ),
}


def rival_named(name: str) -> Rival:
    """The row ``name``; UserError, which says what to do, if there is none, or its package is not
    installed.
    """
    if name not in RIVALS:
        raise UserError(f"there is no rival {brief(name)}{meant(name, RIVALS)}")
    rival = RIVALS[name]
    if rival.module and find_spec(rival.module) is None:
        raise UserError(
            f"the rival {name} wants the package {rival.package}, which is not installed: "
            f"pip install {rival.package}"
        )
    return rival
