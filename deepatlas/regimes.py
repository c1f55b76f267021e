"""The table of the paper as a table in the code: every regime is a row, and one loop trains them
all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Regime:
    """One row of the comparison: which networks take turns, from which start, and which labels they
    see.
    """

    title: str
    trains: tuple[str, ...]  # of "seg", "reg"
    # network -> the regime whose network it starts from
    start: Mapping[str, str] = field(default_factory=dict)
    all_labels: bool = False
    consults: bool = False  # does a network in its turn ask the other one?
    # budget of a network, its starts included: its baseline's, and so many times ``joint_steps``
    rounds: int = 0


BASELINES = {"seg": "seg_baseline", "reg": "reg_baseline"}
SEMI = {"seg": "semi_seg", "reg": "semi_reg"}
ANEW = {"reg": "reg_baseline"}  # at N = 1 F_S forgets what it learnt from the one scan alone
# at N = 1 the paper teaches seg_net by the unsupervised reg_net
ONE_SHOT = {"seg": "semi_seg", "reg": "reg_baseline"}

REGIMES = {
    "seg_baseline": Regime("Baseline", ("seg",)),
    "reg_baseline": Regime("Baseline", ("reg",)),
    "semi_seg": Regime("Semi-DeepAtlas", ("seg",), BASELINES, consults=True, rounds=1),
    "semi_reg": Regime("Semi-DeepAtlas", ("reg",), BASELINES, consults=True, rounds=1),
    "deepatlas": Regime("DeepAtlas", ("seg", "reg"), BASELINES, consults=True, rounds=2),
    "seg_control": Regime("Baseline, as long as DeepAtlas", ("seg",), rounds=2),
    "reg_control": Regime("Baseline, as long as DeepAtlas", ("reg",), rounds=2),
    "semi_seg_control": Regime(
        "Semi-DeepAtlas, as long as DeepAtlas", ("seg",), BASELINES, consults=True, rounds=2
    ),
    "semi_reg_control": Regime(
        "Semi-DeepAtlas, as long as DeepAtlas", ("reg",), BASELINES, consults=True, rounds=2
    ),
    "seg_full": Regime("Full supervision", ("seg",), all_labels=True, rounds=2),
    "reg_full": Regime("Full supervision", ("reg",), all_labels=True, rounds=2),
}


def regimes(labelled: int, joint_start: str = "baselines", arms: str = "all") -> dict[str, Regime]:
    """The table for N = ``labelled``. At N = 1 semi-supervised segmentation starts anew, taught by
    registration, and semi-supervised registration is taught by it, as in the paper.

    Joint training starts from the "baselines" (at N = 1 from the two that teach semi-supervised
    registration), as in the paper; "alike", from the networks from which semi-supervised training
    starts (which differs at N = 1); from the "semi" supervised networks; or from "none", untrained;
    always with the same budget. ``arms`` "joint" leaves only joint training, the baselines, and
    what it starts from.
    """
    table = dict(REGIMES)
    if labelled == 1:
        for key in ("semi_seg", "semi_seg_control"):
            table[key] = replace(table[key], start=ANEW)
        for key in ("semi_reg", "semi_reg_control"):
            table[key] = replace(table[key], start=ONE_SHOT)
    starts = {
        "baselines": table["semi_reg"].start,
        "alike": table["semi_seg"].start,
        "semi": SEMI,
        "none": {},
    }
    table["deepatlas"] = replace(table["deepatlas"], start=starts[joint_start])
    return table if arms == "all" else needed(table, *BASELINES.values(), "deepatlas")


def needed(table: Mapping[str, Regime], *keys: str) -> dict[str, Regime]:
    """``keys`` and all that they start from, in the order of ``table``; ValueError if one is not in
    it.
    """
    if unknown := set(keys) - table.keys():
        raise ValueError(
            f"no regime {', '.join(sorted(unknown))} in this experiment: choose from {', '.join(table)}"
        )
    wanted = set(keys)
    for key in reversed(table):
        wanted |= set(table[key].start.values()) if key in wanted else set()
    return {key: regime for key, regime in table.items() if key in wanted}


def spent(
    table: Mapping[str, Regime], key: str, network: str, own: Mapping[str, Mapping[str, int]]
) -> int:
    """Steps that ``network`` has taken at the end of regime ``key``, its starts included; ``own``:
    steps by regime.
    """
    before = table[key].start.get(network)
    return own.get(key, {}).get(network, 0) + (spent(table, before, network, own) if before else 0)
