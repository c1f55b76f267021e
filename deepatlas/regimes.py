"""The table of the paper as a table in the code: every regime is a row, one loop trains them all.

To add a regime, add a row to ``REGIMES``: it is trained, scored, drawn and compared with joint
training, since everything that lists regimes reads this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .errors import UserError


@dataclass(frozen=True)
class Regime:
    """A row of the comparison: which networks take turns, from which start, seeing which labels."""

    title: str
    trains: tuple[str, ...]  # of "seg", "reg"
    start: Mapping[str, str] = field(default_factory=dict)  # network -> the regime it starts from
    all_labels: bool = False  # does it see the labels of every training scan?
    consults: bool = False  # does a network in its turn ask the other one?
    # Budget of a network, its starts included: its baseline's, and so many times ``joint_steps``.
    rounds: int = 0
    anatomy: str = "lambda_a"  # the experiment's parameter that weighs its anatomy term


BASELINES = {"seg": "seg_baseline", "reg": "reg_baseline"}
SEMI = {"seg": "semi_seg", "reg": "semi_reg"}
FULL = {"seg": "seg_full", "reg": "reg_full"}
JOINT = "deepatlas"
ANEW = {"reg": "reg_baseline"}  # at N = 1 F_S forgets what it learnt from the one scan alone
# At N = 1 the paper teaches seg_net by the unsupervised reg_net.
ONE_SHOT = {"seg": "semi_seg", "reg": "reg_baseline"}

REGIMES = {
    "seg_baseline": Regime("Baseline", ("seg",)),
    # A registration baseline learns anatomy from the few fully labelled pairs alone.
    "reg_baseline": Regime("Baseline", ("reg",), anatomy="lambda_weak"),
    "semi_seg": Regime("Semi-DeepAtlas", ("seg",), BASELINES, consults=True, rounds=1),
    "semi_reg": Regime("Semi-DeepAtlas", ("reg",), BASELINES, consults=True, rounds=1),
    "deepatlas": Regime("DeepAtlas", ("seg", "reg"), BASELINES, consults=True, rounds=2),
    "seg_control": Regime("Baseline, as long as DeepAtlas", ("seg",), rounds=2),
    "reg_control": Regime(
        "Baseline, as long as DeepAtlas", ("reg",), rounds=2, anatomy="lambda_weak"
    ),
    "semi_seg_control": Regime(
        "Semi-DeepAtlas, as long as DeepAtlas", ("seg",), BASELINES, consults=True, rounds=2
    ),
    "semi_reg_control": Regime(
        "Semi-DeepAtlas, as long as DeepAtlas", ("reg",), BASELINES, consults=True, rounds=2
    ),
    "seg_full": Regime("Full supervision", ("seg",), all_labels=True, rounds=2),
    "reg_full": Regime("Full supervision", ("reg",), all_labels=True, rounds=2),
}

# What needs no training of its own: key in the rows of scores -> title, task that it is scored in.
IDENTITY = "identity"
PROPAGATION = "label_propagation"
REFERENCES = {
    IDENTITY: ("No registration", "registration"),
    PROPAGATION: ("Label propagation", "segmentation"),
}

NETWORK_OF = {"segmentation": "seg", "registration": "reg"}  # task -> the network that it scores
TITLES = {
    **{key: title for key, (title, _) in REFERENCES.items()},
    **{key: regime.title for key, regime in REGIMES.items()},
}
TAUGHT = ("seg_baseline", "seg_control", "semi_seg", JOINT)  # what the lessons train


def rivals(task: str) -> tuple[str, ...]:
    """The trained regimes that joint training is compared with in ``task``, in the table's order.

    Every regime that trains this network alone, but those that see all labels.
    """
    network = NETWORK_OF[task]
    return tuple(
        key
        for key, regime in REGIMES.items()
        if regime.trains == (network,) and not regime.all_labels
    )


def ordered(table: Mapping[str, Regime]) -> dict[str, Regime]:
    """``table``, if every regime stands behind those that it starts from; else ValueError."""
    trained: dict[str, tuple[str, ...]] = {}
    for key, regime in table.items():
        for network, source in regime.start.items():
            if network not in trained.get(source, ()):
                raise ValueError(
                    f"regime {key!r} starts its network '{network}' from {source!r}, which does "
                    "not stand above it in the table, or does not train that network: move the "
                    "row, or name another start"
                )
        trained[key] = regime.trains
    return dict(table)


ordered(REGIMES)


def regimes(labelled: int, joint_start: str = "baselines", which: str = "all") -> dict[str, Regime]:
    """The table for N = ``labelled``.

    At N = 1 semi-supervised segmentation starts anew, taught by registration, and semi-supervised
    registration is taught by it, as in the paper.

    Joint training starts from the "baselines" (at N = 1 from the two that teach semi-supervised
    registration), as in the paper; "alike", from the networks from which semi-supervised training
    starts (which differs at N = 1); from the "semi" supervised networks; or from "none", untrained;
    always with the same budget. ``which`` "joint" leaves only joint training, the baselines, and
    what it starts from.
    """
    table = dict(REGIMES)
    if labelled == 1:
        for key, regime in REGIMES.items():
            semi_supervised = regime.consults and regime.start == BASELINES
            if semi_supervised and regime.trains == ("seg",):
                table[key] = replace(regime, start=ANEW)
            if semi_supervised and regime.trains == ("reg",):
                table[key] = replace(regime, start=ONE_SHOT)
    starts = {
        "baselines": table[SEMI["reg"]].start,
        "alike": table[SEMI["seg"]].start,
        "semi": SEMI,
        "none": {},
    }
    table[JOINT] = replace(table[JOINT], start=starts[joint_start])
    table = ordered(table)
    return table if which == "all" else needed(table, *BASELINES.values(), JOINT)


def needed(table: Mapping[str, Regime], *keys: str) -> dict[str, Regime]:
    """``keys`` and all they start from, in the order of ``table``; UserError for an unknown one."""
    if unknown := set(keys) - table.keys():
        raise UserError(
            f"no regime {', '.join(sorted(unknown))} in this experiment: "
            f"choose from {', '.join(table)}"
        )
    wanted = set(keys)
    for key in reversed(table):
        if key in wanted:
            wanted |= set(table[key].start.values())
    return {key: regime for key, regime in table.items() if key in wanted}


def spent(
    table: Mapping[str, Regime], key: str, network: str, own: Mapping[str, Mapping[str, int]]
) -> int:
    """Steps that ``network`` has taken at the end of regime ``key``, its starts included.

    ``own`` holds the steps of each regime by itself.
    """
    steps = own.get(key, {}).get(network, 0)
    if before := table[key].start.get(network):
        steps += spent(table, before, network, own)
    return steps
