"""The parameters of an experiment: plain values, checked, with one sentence for each mistake."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from functools import partial
from numbers import Number
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .datasets.entries import Entry, Profile, describe, settled
from .errors import UserError, brief, meant
from .models import NETWORKS
from .regimes import REGIMES, Regime, without_full_supervision
from .regimes import regimes as table_of_regimes
from .run_names import method_hash
from .terms import SIMILARITIES, TERMS

# What the profile and the number of dimensions decide where the parameters say nothing.
PROFILES = {
    "smoke-2d": {
        "seg_steps": 4,
        "reg_steps": 4,
        "joint_steps": 6,
        "batch_size": 2,
        "seg_rate": 4e-3,
        "reg_rate": 2e-3,
        "refine": 2,
    },
    "smoke-3d": {
        "seg_steps": 4,
        "reg_steps": 4,
        "joint_steps": 6,
        "batch_size": 1,
        "seg_rate": 4e-3,
        "reg_rate": 1e-3,
        "refine": 2,
    },
    "class-2d": {
        "seg_steps": 500,
        "reg_steps": 600,
        "joint_steps": 600,
        "batch_size": 2,
        "seg_rate": 8e-3,
        "reg_rate": 2e-3,
        "refine": 50,
    },
    "class-3d": {
        "seg_steps": 500,
        "reg_steps": 600,
        "joint_steps": 600,
        "batch_size": 1,
        "seg_rate": 4e-3,
        "reg_rate": 1e-3,
        "refine": 50,
    },
    "full-2d": {
        "seg_steps": 6000,
        "reg_steps": 12000,
        "joint_steps": 12000,
        "batch_size": 8,
        "seg_rate": 1e-3,
        "reg_rate": 1e-3,
        "refine": 50,
    },
    "full-3d": {
        "seg_steps": 12000,
        "reg_steps": 24000,
        "joint_steps": 24000,
        "batch_size": 4,
        "seg_rate": 1e-3,
        "reg_rate": 5e-4,
        "refine": 50,
    },
}

# What the recipe decides where the parameters say nothing: the paper's, and what served best on
# validation scans.
RECIPES = {
    "paper": {
        "similarity": "ncc",
        "lambda_r": 0.2,
        "reg_turns": 20,
        "lambda_a": 3.0,
        "lambda_weak": 3.0,
        "lambda_sp": 3.0,
        "lambda_ce": 0.0,
        "teacher": 0.0,
        "sampled_warps": False,
        "velocity": False,
        "coarse_passes": 0,
        "joint_start": "trained",
        "refine": 0,
    },
    "best": {
        "similarity": "lncc",
        "lambda_r": 0.2,
        "reg_turns": 2,
        "lambda_a": 1.0,
        "lambda_weak": 0.3,
        "lambda_sp": 10.0,
        "lambda_ce": 10.0,
        "teacher": 0.98,
        "sampled_warps": True,
        "velocity": True,
        "coarse_passes": 2,
        "joint_start": "none",
    },
}


# What every consumer of a seed takes: PyTorch, NumPy, and the tables of results.
LARGEST_SEED = 2**63 - 1
# More than anybody waits for. Larger numbers are slips, and would be told by an empty memory.
MOST_STEPS = 10_000_000
MOST_PAIRS = 1024

# Parameters that, if nobody gives them, are as another: what is wrong with that one is said once.
FOLLOWS = ("label_seed", "seg_batch_size")

# Parameters that name no other run: it may go on elsewhere.
ELSEWHERE = ("device", "compiled")

# A parameter that, if nobody gives it, is filled in by the data set, the profile or the recipe.
filled = partial(Field, None, validate_default=False)


class Experiment(BaseModel):
    """The parameters of one comparison of all regimes; plain values, checked, with a sentence for
    each mistake.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # --- what is compared, on which scans ---
    # a name in tutorials_data/datasets.toml, or a cohort file, kept as an absolute path
    dataset: str = "phantom-brain"
    # how large grid and training are: for a test, a laptop, a GPU
    profile: Profile = "class"
    # slices or volumes; by default what the data set is for
    dims: Literal[2, 3] = filled()
    # of RECIPES
    recipe: Literal["paper", "best"] = "best"
    # every regime; joint training and what it starts from; or those of the paper's tables
    regimes: Literal["all", "joint", "paper"] = "all"
    # N, training scans whose labels may be seen (registration at N = 1 uses none); by default 1,
    # and of a cohort file all that are labelled
    labelled: int = filled(ge=1)
    # of the split, the networks and the draws
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    # of the choice of labelled scans; by default ``seed``
    label_seed: int = filled(ge=0, le=LARGEST_SEED)

    # --- how long ---
    # steps of each network in one schedule
    seg_steps: int = filled(ge=1, le=MOST_STEPS)
    reg_steps: int = filled(ge=1, le=MOST_STEPS)
    # turns of both networks where joint training goes on from trained ones
    joint_steps: int = filled(ge=2, le=MOST_STEPS)
    # and registration turns for each segmentation turn there
    reg_turns: int = filled(ge=1, le=MOST_STEPS)
    # pairs in a step; in one of the segmentation network, by default as many
    batch_size: int = filled(ge=1, le=MOST_PAIRS)
    seg_batch_size: int = filled(ge=1, le=MOST_PAIRS)

    # --- the loss ---
    # weight of the bending energy
    lambda_r: float = filled(ge=0)
    # weight of the anatomy term; of registration baselines, that of fully labelled pairs alone
    lambda_a: float = filled(ge=0)
    lambda_weak: float = filled(ge=0)
    # weight of the supervised term, which is Dice, and of cross-entropy beside it
    lambda_sp: float = filled(ge=0)
    lambda_ce: float = filled(ge=0)
    # weights of other loss terms, by their names in ``terms.TERMS``
    term_weights: dict[str, float] = Field(default_factory=dict)
    # of images: a name in ``terms.SIMILARITIES``
    similarity: str = filled()

    # --- the way of training ---
    # a network is consulted as its average, whose decay this is; 0: as it is now
    teacher: float = filled(ge=0, lt=1)
    # does a taught segmentation network see the labelled scan as it is warped, not as it is?
    sampled_warps: bool = filled()
    # do two guesses teach the segmentation network to agree? (it collapses)
    fourth_case: bool = False
    # what joint training starts from: see ``regimes.regimes``
    joint_start: Literal["trained", "none"] = filled()
    # the weights of a network that are kept: those at the "last" step, so that validation scans
    # decide nothing, or the "best" on validation scans with labels
    keep: Literal["last", "best"] = "last"
    # unlabelled training scans; None: all there are
    unlabelled: int | None = Field(None, ge=0)

    # --- the networks ---
    # times the registration network looks at a pair, as warped so far
    passes: int = Field(1, ge=1, le=100)
    # and before, at half the resolution
    coarse_passes: int = filled(ge=0, le=100)
    # does the registration network output a velocity field?
    velocity: bool = filled()
    # a name in ``models.NETWORKS``; the paper's two are 3D, slower, and predict displacements
    networks: str = "kit"
    # Adam's learning rate for each network, at its highest
    seg_rate: float = filled(gt=0)
    reg_rate: float = filled(gt=0)
    # strength, 0 for none
    augmentation: float = Field(1.0, ge=0, le=10)

    # --- the test ---
    # steps by which each test pair's registration is refined, in rows beside the network's own; 0:
    # there are no such rows
    refine: int = filled(ge=0)

    # --- the machine ---
    # "auto", "cpu", "cuda", "cuda:1", "mps"
    device: str = "auto"
    # of the networks; losses are always float32
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # the networks by torch.compile, for GPUs: minutes at the start; on a CPU it hardly pays
    compiled: bool = False

    _entry: Entry = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Mapping, info: ValidationInfo) -> dict:
        """What is not given: by the networks, else the recipe, else the profile; ``dims`` and
        ``labelled`` by the data set.
        """
        given: dict[str, Any] = {}
        for key, value in dict(values).items():
            left_open = value is None or (isinstance(value, str) and value in ("null", "None"))
            if not left_open:
                given[key] = value
        given = {"dataset": "phantom-brain", "profile": "class", "recipe": "best"} | given
        given.setdefault("label_seed", given.get("seed", 0))
        if _carried(info) is None:
            given["dataset"] = settled(str(given["dataset"]))
        entry = _entry_of(str(given["dataset"]), info)
        given.setdefault("dims", entry.dims)
        own = entry.scans is not None
        given.setdefault("labelled", entry.labelled_at_most(given["profile"]) if own else 1)
        given["dims"] = _whole(given["dims"])
        row = NETWORKS.get(str(given.get("networks", "kit")))
        for name in ("velocity", "coarse_passes"):
            able = getattr(row, name, None)
            if able is not None:
                given.setdefault(name, able)
        decided = PROFILES.get(f"{given['profile']}-{given['dims']}d", {})
        filled_in = decided | RECIPES.get(str(given["recipe"]), {}) | given
        if "batch_size" in filled_in:
            filled_in.setdefault("seg_batch_size", filled_in["batch_size"])
        return filled_in

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        """Texts that stand for numbers, as papermill hands them on, are read by the one rule."""
        return _suiting(value, cls.model_fields[str(info.field_name)].annotation)

    @field_validator("term_weights", mode="before")
    @classmethod
    def _read_weights(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError(
                "weights by their names were wanted, as in term_weights.similarity=0.5 on the "
                'command line or {"similarity": 0.5} elsewhere'
            )
        return {name: _suiting(weight, float) for name, weight in value.items()}

    @field_validator("similarity", "networks")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        table: Collection[str] = SIMILARITIES if info.field_name == "similarity" else NETWORKS
        if value not in table:
            raise ValueError(f"choose from {', '.join(table)}")
        return value

    @field_validator("term_weights")
    @classmethod
    def _weighable(cls, value: dict[str, float]) -> dict[str, float]:
        free = [name for name, term in TERMS.items() if term.parameter is None]
        for name, weight in value.items():
            if name in TERMS and name not in free:
                raise ValueError(f"the weight of {name} is the parameter {TERMS[name].parameter}")
            if name not in TERMS:
                raise ValueError(
                    f"there is no loss term {brief(name)}: choose from {', '.join(free)}"
                )
            if weight < 0:
                raise ValueError(f"the weight of {name} must be at least 0")
        return value

    @model_validator(mode="after")
    def _possible(self, info: ValidationInfo) -> Experiment:
        self._entry = _entry_of(self.dataset, info)
        training = self.entry.split_sizes(self.profile)[0]
        most = self.entry.labelled_at_most(self.profile)
        if self.labelled > most:
            which = "training scans" if most == training else "training scans with labels"
            raise ValueError(
                f"labelled must be at most {most}, the {which} of "
                f"{self.entry.name} in profile {self.profile}, got {self.labelled}"
            )
        left = training - self.labelled
        if self.unlabelled is not None and self.unlabelled > left:
            raise ValueError(
                f"unlabelled must be at most {left}, what {self.labelled} labelled scans "
                f"leave of {training}, got {self.unlabelled}"
            )
        self._suit_the_networks()
        return self

    def _suit_the_networks(self) -> None:
        """Refuse what the row of ``models.NETWORKS`` cannot do."""
        row = NETWORKS[self.networks]
        if self.dims not in row.dims:
            able = " or ".join(f"dims={dims}" for dims in row.dims)
            raise ValueError(f"networks={self.networks!r} wants {able}, got dims={self.dims}")
        for name in ("velocity", "passes", "coarse_passes"):
            able = getattr(row, name)
            if able is not None and getattr(self, name) != able:
                raise ValueError(
                    f"networks={self.networks!r} wants {name}={able}, got {getattr(self, name)}: "
                    "leave it out, or choose other networks"
                )
        shape, _ = self.entry.grid(self.profile, self.dims)
        if any(side % row.multiple for side in shape):
            raise ValueError(
                f"networks={self.networks!r} wants a grid whose sides are divisible by "
                f"{row.multiple}, and {self.profile}-{self.dims}d of {self.entry.name} is {shape}: "
                "choose another profile, or give the data set such a grid"
            )

    @property
    def entry(self) -> Entry:
        """What is said of the data set."""
        return self._entry

    @property
    def name(self) -> str:
        """Readable; different for different parameters, another method, or another data set, and
        the same wherever the files of a cohort are.
        """
        said = json.dumps([self.choices, self.entry.identity()], sort_keys=True)
        text = method_hash() + said
        return (
            f"{self.entry.name}-{self.profile}-{self.dims}d-N{self.labelled}-seed{self.seed}-"
            f"{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        )

    @property
    def choices(self) -> dict[str, object]:
        """All parameters but where the data set is, and what computes, as JSON."""
        return self.model_dump(mode="json", exclude={"dataset", *ELSEWHERE})

    @property
    def table(self) -> dict[str, Regime]:
        """The regimes to train, in order. Full supervision is none of them where a cohort file's
        scans have no more labels than N: it would repeat the baseline.
        """
        table = table_of_regimes(self.labelled, self.joint_start, self.regimes)
        own = self.entry.scans is not None
        if own and self.labelled == self.entry.labelled_at_most(self.profile):
            return without_full_supervision(table)
        return table

    @property
    def rates(self) -> dict[str, float]:
        """Learning rate of each network."""
        return {"seg": self.seg_rate, "reg": self.reg_rate}

    @property
    def joint(self) -> dict[str, int]:
        """Turns of each network where joint training goes on from trained ones: ``reg_turns`` of
        registration for one of segmentation, and of both at most ``joint_steps``.
        """
        seg = max(1, self.joint_steps // (1 + self.reg_turns))
        return {"seg": seg, "reg": min(seg * self.reg_turns, self.joint_steps - seg)}


# The tables name parameters: a typo shows when the module is loaded, not when a row is trained.
for _name, _term in TERMS.items():
    if _term.parameter not in {None, *Experiment.model_fields}:
        raise ValueError(f"loss term {_name!r}: there is no parameter {_term.parameter!r}")
for _name, _regime in REGIMES.items():
    if _regime.anatomy_weight not in Experiment.model_fields:
        raise ValueError(f"regime {_name!r}: there is no parameter {_regime.anatomy_weight!r}")


def _carried(info: ValidationInfo) -> Entry | None:
    """The entry that a run carries, if ``parse`` was given one."""
    return (info.context or {}).get("entry")


def _entry_of(dataset: str, info: ValidationInfo) -> Entry:
    """The entry of a data set: the one that a run carries, or else what is said of it now."""
    carried = _carried(info)
    return describe(dataset) if carried is None else carried


def parse(values: Mapping, entry: Entry | None = None) -> Experiment:
    """An Experiment from plain ``values``; UserError with one sentence per mistake.

    ``entry``: that of a data set which the kit need not know.

    >>> parse({"lambda_r": "0.5", "seed": 3}).lambda_r
    0.5
    >>> parse({"lamda_r": 0.5})
    Traceback (most recent call last):
        ...
    deepatlas.errors.UserError: there is no parameter 'lamda_r', did you mean 'lambda_r'
    """
    try:
        return Experiment.model_validate(dict(values), context={"entry": entry})
    except ValidationError as error:
        told = []
        for item in error.errors():
            name = item["loc"][0] if item["loc"] else ""
            if name not in FOLLOWS or values.get(name) is not None:
                told.append(_sentence(item))
        raise UserError("; ".join(told)) from None


def _sentence(item: Mapping) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"there is no parameter {brief(name)}{meant(name, Experiment.model_fields)}"
    text = item["msg"].removeprefix("Value error, ")
    if not name:
        return text
    return f"parameter {brief(name)} = {brief(item['input'])}: {text[0].lower()}{text[1:]}"


# --- values that are written as text --------------------------------------------------------------

WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
INTEGER = re.compile(r"[+-]?[0-9]+")
FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def plain(text: str) -> object:
    """The value that ``text`` stands for: a decimal number as in 5, .5 or 1e-3; true or false; None
    for null and None; anything else is a text.

    UserError if a number begins with 0, as octal ones do elsewhere, or is too large to be one.

    >>> plain("1e-3"), plain("true"), plain("null"), plain("phantom-knee")
    (0.001, True, None, 'phantom-knee')
    """
    if text in WORDS:
        return WORDS[text]
    if not FLOAT.fullmatch(text):
        return text
    if not INTEGER.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise UserError(f"{brief(text)} is larger than any number that a computer adds up")
        return number
    digits = text.lstrip("+-")
    if digits.startswith("0") and digits != "0":
        raise UserError(f"{brief(text)} begins with 0: write {digits.lstrip('0') or 0}")
    if len(digits) > 100:
        raise UserError(f"a number of {len(digits)} digits is more than any parameter takes")
    return int(text)


# What a value must be where a text does not stand for it.
_KINDS = {int: "integer", float: "number", bool: "boolean"}


def _suiting(value: object, annotation: object) -> object:
    """``value`` for a parameter of this type: a text is read where the type is no text's; a
    ValueError says what no rule turns into the type.
    """
    types = get_args(annotation) or (annotation,)
    kind = next((known for known in (bool, int, float) if known in types), None)
    if isinstance(value, str) and kind is not None:
        value = plain(value)
        if isinstance(value, str):
            raise ValueError(f"input should be a valid {_KINDS[kind]}")
    if isinstance(value, bool) and kind is not bool:
        raise ValueError("a number or a word was wanted, not true or false")
    return value


def _whole(value: object) -> object:
    """``value``, as an integer if it stands for one: "2" and 2.0 are 2."""
    value = plain(value) if isinstance(value, str) else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# --- a notebook's variables -----------------------------------------------------------------------

PLAIN = (str, Number, list, dict, type(None))


def from_notebook(namespace: dict, beside: Collection[str] = ()) -> Experiment:
    """An Experiment from the ``globals()`` of a notebook: at the first call all its plain values
    are parameters, but those named in ``beside``; later those that have the name of one, as they
    are by then.

    Papermill only logs a name that the notebook does not know; here it is an error. So is, later,
    a new variable that is nearly named like a parameter and has a value of its type; what is named
    less alike is taken for a variable of the reader's own.
    """
    values = {}
    for name, value in namespace.items():
        if isinstance(value, PLAIN) and not name.startswith("_") and name not in ("In", "Out"):
            values[name] = value
    for name in beside:
        values.pop(name, None)
    if "_parameters_were_read" in namespace:
        others = [name for name in values if name not in Experiment.model_fields]
        for name in others:
            _refuse_misspelt(name, values.pop(name))
    experiment = parse(values)
    namespace["_parameters_were_read"] = True
    return experiment


def _refuse_misspelt(name: str, value: object) -> None:
    """UserError if a variable is nearly named like a parameter that it may be meant for."""
    close = difflib.get_close_matches(name.lower(), Experiment.model_fields, 1, cutoff=0.8)
    if not close or not _may_be_meant_for(close[0], value):
        return  # as seeds = [0, 1], or regime = "seg_long"
    raise UserError(
        f"there is no parameter {name!r}, did you mean {close[0]!r}? Write so, and `del {name}`; "
        "if it is something else, give the variable another name"
    )


def _may_be_meant_for(parameter: str, value: object) -> bool:
    """Is ``value`` a number where one is wanted, in its bounds or not, or else nearly a word that
    the parameter takes?
    """
    annotation = Experiment.model_fields[parameter].annotation
    choices = get_args(annotation) or (annotation,)  # types, or the words or numbers to choose from
    types = {choice if isinstance(choice, type) else type(choice) for choice in choices}
    if isinstance(value, Number) and not isinstance(value, bool):
        return not types.isdisjoint({int, float})
    words = [choice for choice in choices if isinstance(choice, str)]
    if words and isinstance(value, str):
        return bool(difflib.get_close_matches(value, words, 1))
    try:
        parse({parameter: value})
    except UserError:
        return False
    return True
