"""The table of the paper as a table in the code: every regime is a row, one loop trains them all.

To add a regime, add a row to ``REGIMES``, below those that it starts from. It is trained, scored
and drawn, and joint training is compared with it unless it sees all labels, since everything that
lists regimes reads this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .errors import UserError

TURNS = ("seg", "reg")


# How many steps a regime takes of each network that it trains: as its baseline; as joint training
# that goes on from trained networks; or as both together.
LENGTHS = ("baseline", "joint", "whole")


@dataclass(frozen=True)
class Regime:
    """A row of the comparison: which networks take turns, from which start, seeing which labels."""

    title: str
    trains: tuple[str, ...]  # of TURNS
    # network -> the regime whose network it is at the start; also of one that is only consulted
    start: Mapping[str, str] = field(default_factory=dict)
    one_shot: Mapping[str, str] | None = None  # the start at N = 1, where it is another
    all_labels: bool = False  # does it see the labels of every training scan?
    consults: bool = False  # does a network in its turn ask the other one?
    length: str = "baseline"  # of LENGTHS
    at_one_only: bool = False  # is it trained at N = 1 alone?
    anatomy_weight: str = "lambda_a"  # the experiment's parameter that weighs its anatomy term

    def __post_init__(self) -> None:
        if not isinstance(self.trains, tuple) or not self.trains or set(self.trains) - {*TURNS}:
            raise ValueError(
                f"{self.title}: trains must be a tuple of {' and '.join(TURNS)}, as in "
                f"('seg',), got {self.trains!r}"
            )
        if self.length not in LENGTHS:
            raise ValueError(
                f"{self.title}: length must be one of {', '.join(LENGTHS)}, got {self.length!r}"
            )

    @property
    def goes_on(self) -> tuple[str, ...]:
        """The networks that it trains from weights that another regime has trained."""
        return tuple(name for name in self.trains if name in self.start)


BASELINES = {"seg": "seg_baseline", "reg": "reg_baseline"}
SEMI = {"seg": "semi_seg", "reg": "semi_reg"}
CONTROLS = {"seg": "seg_control", "reg": "reg_control"}
FULL = {"seg": "seg_full", "reg": "reg_full"}
FIRST = "semi_first"
JOINT = "deepatlas"
# At N = 1 F_R has seen no labels, and teaches an F_S that forgets what it learnt from the one scan
# alone.
ONE_SHOT = {"seg": FIRST, "reg": "reg_baseline"}

# As in the paper, where joint training goes on from trained networks: see ``regimes`` for the table
# in which every regime is trained at one go.
REGIMES = {
    "seg_baseline": Regime("Baseline", ("seg",)),
    # A registration baseline learns anatomy from the few fully labelled pairs alone.
    "reg_baseline": Regime("Baseline", ("reg",), anatomy_weight="lambda_weak"),
    "semi_first": Regime(
        "Semi-DeepAtlas, first round",
        ("seg",),
        {"reg": "reg_baseline"},
        consults=True,
        at_one_only=True,
    ),
    "semi_seg": Regime(
        "Semi-DeepAtlas", ("seg",), BASELINES, ONE_SHOT, consults=True, length="joint"
    ),
    "semi_reg": Regime(
        "Semi-DeepAtlas", ("reg",), BASELINES, ONE_SHOT, consults=True, length="joint"
    ),
    "deepatlas": Regime(
        "DeepAtlas", ("seg", "reg"), BASELINES, ONE_SHOT, consults=True, length="joint"
    ),
    "seg_control": Regime(
        "Baseline, as long as DeepAtlas", ("seg",), {"seg": "seg_baseline"}, length="joint"
    ),
    "reg_control": Regime(
        "Baseline, as long as DeepAtlas",
        ("reg",),
        {"reg": "reg_baseline"},
        length="joint",
        anatomy_weight="lambda_weak",
    ),
    "seg_full": Regime("Full supervision", ("seg",), all_labels=True, length="whole"),
    "reg_full": Regime("Full supervision", ("reg",), all_labels=True, length="whole"),
}

# What needs no training of its own: key in the rows of scores -> title, task that it is scored in.
IDENTITY = "identity"
PROPAGATION = "label_propagation"
JOINT_PROPAGATION = "joint_propagation"
REFERENCES = {
    IDENTITY: ("No registration", "registration"),
    PROPAGATION: ("Label propagation", "segmentation"),
    JOINT_PROPAGATION: ("Label propagation by DeepAtlas", "segmentation"),
}

# What a pair is refined to by the loss that trained its network, beside the network's own answer:
# regime -> key of these rows.
REFINED = {key: f"{key}_refined" for key in (BASELINES["reg"], SEMI["reg"], JOINT)}

NETWORK_OF = {"segmentation": "seg", "registration": "reg"}  # task -> the network that it scores
TITLES = {
    **{key: title for key, (title, _) in REFERENCES.items()},
    **{key: regime.title for key, regime in REGIMES.items()},
    **{rows: f"{REGIMES[key].title}, refined" for key, rows in REFINED.items()},
}
TAUGHT = ("seg_baseline", "semi_seg", JOINT)  # what the lessons train, and what that starts from

# What the parameter ``regimes`` of an experiment chooses from; what these start from comes along.
CHOICES = {
    "all": None,
    "joint": (*BASELINES.values(), JOINT),  # joint training and what it starts from
    "paper": (*BASELINES.values(), *SEMI.values(), JOINT),  # those of the paper's tables
}


def rivals(task: str) -> tuple[str, ...]:
    """The trained regimes that joint training is compared with in ``task``, in the table's order:
    all others that train its network, but those that see all labels.
    """
    network = NETWORK_OF[task]
    found = []
    for key, regime in REGIMES.items():
        if key != JOINT and network in regime.trains and not regime.all_labels:
            found.append(key)
    return tuple(found)


def ordered(table: Mapping[str, Regime]) -> dict[str, Regime]:
    """``table``, if every regime stands behind those that it starts from, and a network that is
    asked has been trained; else ValueError.
    """
    trained: dict[str, tuple[str, ...]] = {}
    titles = set()
    for key, regime in table.items():
        for network in regime.trains:  # a table of results shows titles, for each network
            if (regime.title, network) in titles:
                raise ValueError(
                    f"regime {key!r}: another that trains {network} is called {regime.title!r}, "
                    "too, and a table could not tell them apart"
                )
            titles.add((regime.title, network))
        if key in REFERENCES or key in REFINED.values():
            raise ValueError(f"regime {key!r}: that name is taken, by {TITLES[key]}")
        for network, source in regime.start.items():
            if network not in trained.get(source, ()):
                raise ValueError(
                    f"regime {key!r} starts its network '{network}' from {source!r}, which does "
                    "not stand above it in the table, or does not train that network: move the "
                    "row, or name another start"
                )
        untaught = {*TURNS} - {*regime.trains} - {*regime.start}
        if regime.consults and untaught:
            raise ValueError(
                f"regime {key!r} asks the network '{untaught.pop()}', which it neither trains nor "
                "starts from a regime that did: name one in its start"
            )
        trained[key] = regime.trains
    return dict(table)


ordered(REGIMES)


def regimes(labelled: int, joint_start: str = "none", which: str = "all") -> dict[str, Regime]:
    """The table for N = ``labelled``.

    With ``joint_start`` "none" every regime starts from untrained networks and has one schedule of
    as many steps: they differ in nothing but who teaches. DeepAtlas: the other network, as it
    learns; Semi-DeepAtlas: one that has been trained, held fixed; the baseline: nobody.

    With "trained", as in the paper, Semi-DeepAtlas and DeepAtlas go on from trained networks, in a
    second schedule, and the baseline goes on as long. At N = 1 these are not both baselines: see
    ``ONE_SHOT``.

    ``which`` is one of ``CHOICES``.
    """
    table = {}
    for key, regime in REGIMES.items():
        if regime.at_one_only and labelled > 1:
            continue
        if labelled == 1 and regime.one_shot is not None:
            regime = replace(regime, start=regime.one_shot)
        table[key] = regime
    if joint_start == "none":
        table = _at_one_go(table)
    table, chosen = ordered(table), CHOICES[which]
    return table if chosen is None else needed(table, *chosen)


def _at_one_go(table: Mapping[str, Regime]) -> dict[str, Regime]:
    """``table`` with untrained networks at every start: without what is then another row again."""
    found = {}
    for key, regime in table.items():
        if key == FIRST or key in CONTROLS.values():
            continue
        teachers = {}
        for network, source in regime.start.items():
            if network not in regime.trains:
                teachers[network] = SEMI["seg"] if source == FIRST else source
        found[key] = replace(regime, start=teachers, length="baseline")
    return found


def without_full_supervision(table: Mapping[str, Regime]) -> dict[str, Regime]:
    """``table`` without the regimes that see all labels."""
    return {key: regime for key, regime in table.items() if not regime.all_labels}


def needed(table: Mapping[str, Regime], *keys: str) -> dict[str, Regime]:
    """``keys`` and all they start from, in the order of ``table``; UserError for an unknown one.

    >>> list(needed(REGIMES, "deepatlas"))
    ['seg_baseline', 'reg_baseline', 'deepatlas']
    """
    if unknown := set(keys) - table.keys():
        raise UserError(
            f"no regime {', '.join(sorted(unknown))} in this experiment: "
            f"choose from {', '.join(table)}"
        )
    wanted = set(keys)
    for key in reversed(list(table)):
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
