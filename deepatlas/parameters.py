"""The parameters of an experiment: plain values, checked, with one sentence for each mistake."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from . import datasets, terms
from .data import check_sides
from .regimes import Regime, regimes

# What the profile and the number of dimensions decide where the parameters say nothing.
_DECIDED = ("seg_steps", "reg_steps", "joint_steps", "batch_size", "seg_rate", "reg_rate")
PROFILES = {
    profile: dict(zip(_DECIDED, values, strict=True))
    for profile, values in {
        "smoke-2d": (4, 4, 6, 2, 4e-3, 4e-3),
        "smoke-3d": (4, 4, 6, 1, 4e-3, 1e-3),
        "class-2d": (300, 400, 600, 4, 4e-3, 4e-3),
        "class-3d": (300, 400, 600, 1, 4e-3, 1e-3),
        "full-2d": (2000, 4000, 6000, 8, 1e-3, 1e-3),
        "full-3d": (4000, 8000, 12000, 4, 1e-3, 5e-4),
    }.items()
}

# What the recipe decides where the parameters say nothing: the paper's, and what served best on
# validation scans.
RECIPES = {
    "paper": {
        "similarity": "ncc",
        "reg_turns": 20,
        "lambda_a": 3.0,
        "lambda_weak": 3.0,
        "lambda_sp": 3.0,
        "teacher": 0.0,
        "sampled_warps": False,
        "velocity": False,
    },
    "best": {
        "similarity": "lncc",
        "reg_turns": 2,
        "lambda_a": 10.0,
        "lambda_weak": 0.3,
        "lambda_sp": 100.0,
        "teacher": 0.98,
        "sampled_warps": True,
        "velocity": True,
    },
}


class Experiment(BaseModel):
    """The parameters of one comparison of all regimes; plain values, checked, with a sentence for
    each mistake.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = "phantom-brain"  # one of the names in tutorials_data/datasets.toml
    # size of grid and training: test, laptop, GPU
    profile: Literal["smoke", "class", "full"] = "class"
    # slices or volumes; by default what the cohort is for
    dims: Literal[2, 3] = Field(None, validate_default=False)
    recipe: Literal["paper", "best"] = "best"  # of RECIPES
    arms: Literal["all", "joint"] = "all"  # every regime, or joint training and what it starts from
    # N, training scans whose labels may be seen (registration at N = 1 uses none)
    labelled: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)  # of the split, the networks and the draws
    # of the choice of labelled scans; by default ``seed``
    label_seed: int = Field(None, ge=0, validate_default=False)
    seg_steps: int = Field(None, ge=1, validate_default=False)  # steps of the segmentation baseline
    reg_steps: int = Field(None, ge=1, validate_default=False)  # steps of the registration baseline
    # of both networks, in one round (``Regime.rounds``)
    joint_steps: int = Field(None, ge=2, validate_default=False)
    # registration turns for each segmentation turn
    reg_turns: int = Field(None, ge=1, validate_default=False)
    batch_size: int = Field(None, ge=1, validate_default=False)  # pairs in a step
    lambda_r: float = Field(0.2, ge=0)  # weight of the bending energy
    lambda_a: float = Field(None, ge=0, validate_default=False)  # weight of the anatomy term
    # of baselines, by fully labelled pairs alone
    lambda_weak: float = Field(None, ge=0, validate_default=False)
    lambda_sp: float = Field(None, ge=0, validate_default=False)  # weight of the supervised term
    # of images: a name in ``terms.SIMILARITIES``
    similarity: str = Field(None, validate_default=False)
    # decay of the average that is consulted, 0: none
    teacher: float = Field(None, ge=0, lt=1, validate_default=False)
    # does seg_net see the labelled scan warped, too?
    sampled_warps: bool = Field(None, validate_default=False)
    fourth_case: bool = False  # do two guesses teach seg_net to agree? (it collapses)
    # whose networks: see ``regimes``
    joint_start: Literal["baselines", "alike", "semi", "none"] = "baselines"
    # unlabelled training scans, by default all there are
    unlabelled: int = Field(None, ge=0, validate_default=False)
    passes: int = Field(1, ge=1)  # times the registration network looks at a pair, as warped so far
    # does the registration network output a velocity field?
    velocity: bool = Field(None, validate_default=False)
    networks: Literal["kit", "paper"] = "kit"  # the paper's two networks are 3D and slower
    # Adam's learning rate for segmentation, at its highest
    seg_rate: float = Field(None, gt=0, validate_default=False)
    reg_rate: float = Field(None, gt=0, validate_default=False)  # and for registration
    augmentation: float = Field(1.0, ge=0)  # strength, 0 for none
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    # of the networks; losses are always float32
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Mapping) -> dict:
        given = {key: value for key, value in dict(values).items() if value is not None}
        given = {"dataset": "phantom-brain", "profile": "class", "recipe": "best"} | given
        given.setdefault("label_seed", given.get("seed", 0))
        given.setdefault("dims", datasets.describe(str(given["dataset"]))["dims"])
        if isinstance(given["dims"], str) and given["dims"].isdigit():
            given["dims"] = int(given["dims"])
        if given.get("networks") == "paper":
            given.setdefault("velocity", False)  # the paper's network predicts displacements
        decided = PROFILES.get(f"{given['profile']}-{given['dims']}d", {}) | RECIPES.get(
            str(given["recipe"]), {}
        )
        return decided | given

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("a number or a word was wanted, not true or false")
        return value

    @field_validator("similarity")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in terms.SIMILARITIES:
            raise ValueError(f"choose from {', '.join(terms.SIMILARITIES)}")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Experiment:
        most = datasets.split_sizes(self.dataset, self.profile)[0]
        if self.labelled > most:
            raise ValueError(
                f"labelled must be at most {most}, the training scans of "
                f"{self.dataset} in profile {self.profile}, got {self.labelled}"
            )
        if self.unlabelled is not None and self.unlabelled > most - self.labelled:
            raise ValueError(
                f"unlabelled must be at most {most - self.labelled}, what {self.labelled} labelled scans "
                f"leave of {most}, got {self.unlabelled}"
            )
        if self.networks == "paper" and (self.dims == 2 or self.velocity):
            raise ValueError(
                "networks='paper' is 3D and predicts displacements: take dims=3 and leave velocity false"
            )
        if self.networks == "paper":
            check_sides(datasets.describe(self.dataset)["grids"][f"{self.profile}-3d"]["shape"], 16)
        return self

    @property
    def name(self) -> str:
        """Readable, and different for different parameters or different code of the method."""
        text = self.model_dump_json() + _source_hash()
        return (
            f"{self.dataset}-{self.profile}-{self.dims}d-N{self.labelled}-seed{self.seed}-"
            f"{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        )

    @property
    def table(self) -> dict[str, Regime]:
        """The regimes to train, in order."""
        return regimes(self.labelled, self.joint_start, self.arms)

    @property
    def rates(self) -> dict[str, float]:
        """Learning rate of each network."""
        return {"seg": self.seg_rate, "reg": self.reg_rate}

    @property
    def joint(self) -> dict[str, int]:
        """Turns of each network in joint training."""
        seg = max(1, round(self.joint_steps / (1 + self.reg_turns)))
        return {"seg": seg, "reg": self.joint_steps - seg}


def parse(values: Mapping) -> Experiment:
    """An Experiment from plain ``values``; ValueError with one sentence per mistake."""
    try:
        return Experiment(**values)
    except ValidationError as error:
        raise ValueError("; ".join(_sentence(item) for item in error.errors())) from None


def _sentence(item: Mapping) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, Experiment.model_fields, 1)
        hint = (
            f", did you mean {close[0]!r}"
            if close
            else f": choose from {', '.join(Experiment.model_fields)}"
        )
        return f"there is no parameter {name!r}{hint}"
    text = item["msg"].removeprefix("Value error, ")
    return f"parameter {name!r} = {item['input']!r}: {text[0].lower()}{text[1:]}" if name else text


def from_notebook(namespace: dict) -> Experiment:
    """An Experiment from the ``globals()`` of a notebook whose plain values, at the first call, are
    its parameters.

    Papermill only logs a name that the notebook does not know; here it is an error.
    """
    names = namespace.setdefault(
        "_parameters",
        [
            key
            for key, value in namespace.items()
            if not key.startswith("_")
            and key not in ("In", "Out")
            and isinstance(value, (str, int, float, bool, list, dict, type(None)))
        ],
    )
    return parse({name: namespace[name] for name in names})


def _source_hash() -> str:
    """Of the code and the manifest that decide a result, so that editing a loss never finds an old
    network.
    """
    names = (
        "data",
        "warp",
        "networks",
        "losses",
        "phantom",
        "registration",
        "datasets",
        "pairs",
        "regimes",
        "checkpoints",
        "terms",
        "training",
        "evaluation",
        "parameters",
        "experiments",
    )
    files = [Path(__file__).with_name(f"{name}.py") for name in names] + [datasets.MANIFEST]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
