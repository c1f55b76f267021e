"""The one loop that trains every regime; ``Trainer.take_turn`` is its heart."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from .checkpoints import (
    TRAINED_AGAIN,
    Interrupted,
    load_weights,
    read_checkpoint,
    stop_requests,
    write_tensors,
)
from .data import Batch, Cohort
from .errors import UserError
from .pairs import augment, draw_pair, pairs_by_case
from .regimes import Regime
from .terms import SIMILARITIES, TERMS, Weights, reg_terms, seg_terms

MINUTES_UNSAVED = 5


@dataclass(frozen=True)
class Settings:
    """How a regime is trained; the regimes of one comparison differ in ``steps`` and in the weight
    of anatomy only.
    """

    steps: Mapping[str, int]  # turns of each network that trains, e.g. {"seg": 100, "reg": 200}
    weights: Weights = field(default_factory=Weights)
    similarity: str = "ncc"  # of SIMILARITIES
    # of Adam, at most
    learning_rates: Mapping[str, float] = field(default_factory=lambda: {"seg": 1e-3, "reg": 1e-3})
    batch_size: int = 1  # pairs of scans in a turn
    seg_batch_size: int | None = None  # in one of the segmentation network; None: as many
    augmentation: float = 1.0  # strength
    validations: int = 8  # how often, evenly spread, the last at the end
    mixed_precision: bool = False  # networks in bfloat16, losses in float32
    # a network is consulted as the average of its last 1 / (1 - teacher) turns; 0: as it is now
    teacher: float = 0.0
    options: Mapping[str, bool] = field(default_factory=dict)  # of terms.seg_terms
    seed: int = 0
    run: str = ""  # name of the run that it is part of, whose checkpoints are no other's
    # sees each row of history
    watch: Callable[[dict], None] | None = field(default=None, repr=False, compare=False)

    def pairs_in(self, turn: str) -> int:
        """Pairs of scans in a ``turn`` of "seg" or "reg"."""
        if turn == "seg" and self.seg_batch_size is not None:
            return self.seg_batch_size
        return self.batch_size


def train(
    networks: Mapping[str, nn.Module],
    cohort: Cohort,
    regime: Regime,
    settings: Settings,
    folder: Path,
    validate: Callable[[], Mapping[str, float]] | None = None,
) -> list[dict]:
    """Train ``networks`` {"seg": ..., "reg": ...} by ``regime`` in place; leave them at their best
    validation score.

    ``validate()`` scores the networks as they are, {"seg": ..., "reg": ...}, more is better; it
    decides, for every regime by the same rule, which weights are kept. ``folder/checkpoint.pt``
    makes the call resumable (on the CPU to the bit) and repeatable (a finished regime is only
    loaded). Returns the history, one row per step. Raises FloatingPointError at the first loss that
    is not finite, Interrupted after Ctrl-C or SIGTERM, or when the terminal is closed.
    """
    trainer = Trainer(networks, cohort, regime, settings)
    path = Path(folder) / "checkpoint.pt"
    if path.exists():
        trainer.load(read_checkpoint(path), path)
    for row in trainer.history if settings.watch else ():
        settings.watch(row)  # what was trained before
    saved = time.monotonic()
    bar = tqdm(
        total=trainer.total,
        initial=trainer.step,
        desc=regime.title,
        unit="step",
        disable=trainer.finished,
    )
    with bar, stop_requests() as stopped:
        if trainer.step == 0 and regime.consults and validate is not None:
            trainer.keep_best(validate())  # where it starts: training on need not make it better
        while not trainer.finished:
            row = trainer.take_turn()
            bar.update()
            shown = {name: f"{row[name]:.3f}" for name in TERMS if name in row}
            bar.set_postfix(shown, refresh=False)
            validated = trainer.validation_is_due()
            if validated:
                trainer.keep_best({} if validate is None else validate())
            if settings.watch:
                settings.watch(row)
            if validated or stopped or time.monotonic() - saved > MINUTES_UNSAVED * 60:
                write_tensors(trainer.state(), path)
                saved = time.monotonic()
            if stopped:
                raise Interrupted(
                    f"{regime.title} stopped at step {trainer.step} of {trainer.total}; saved in "
                    f"{path}, and the same command goes on from there"
                )
    for name in regime.trains:
        networks[name].load_state_dict(trainer.best[name])
    return trainer.history


def identity(cohort: Cohort, regime: Regime, settings: Settings) -> dict[str, str]:
    """What a checkpoint is of, and goes on with: this way of training, on these data, seeing these
    labels.
    """
    data = (cohort.fingerprint, [scan.id for scan in cohort.labelled])
    return {
        "regime": regime.title,
        "run": settings.run,
        "data": hashlib.sha256(repr(data).encode()).hexdigest()[:16],
        "settings": str(settings),
    }


class Trainer:
    """A training in progress: all that a turn changes, so that it is saved and restored as one."""

    def __init__(
        self, networks: Mapping[str, nn.Module], cohort: Cohort, regime: Regime, settings: Settings
    ) -> None:
        self.networks = networks
        self.structures = len(cohort.structures)
        self.regime = regime
        self.settings = settings
        self.device = cohort.device
        if min(settings.steps.get(name, 0) for name in regime.trains) < 1:
            raise ValueError(
                f"{regime.title}: steps must be at least 1 for each of {', '.join(regime.trains)}, "
                f"got {dict(settings.steps)}"
            )
        self.total = sum(settings.steps[name] for name in regime.trains)
        self.optimisers = {
            name: torch.optim.Adam(networks[name].parameters()) for name in regime.trains
        }
        self.teachers = {
            name: AveragedModel(networks[name], multi_avg_fn=get_ema_multi_avg_fn(settings.teacher))
            for name in regime.trains
            if settings.teacher and regime.consults and len(regime.trains) > 1
        }
        self.cases = {
            name: self._cases(cohort, regime, name, settings.options.get("fourth_case", False))
            for name in regime.trains
        }
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.turns = dict.fromkeys(regime.trains, 0)
        self.best: dict[str, dict[str, Tensor]] = {}
        self.best_score: dict[str, float] = {}
        self.seconds = 0.0
        self.history: list[dict] = []
        self.identity = identity(cohort, regime, settings)

    @staticmethod
    def _cases(cohort: Cohort, regime: Regime, turn: str, fourth_case: bool) -> list:
        cases = pairs_by_case(cohort.train, turn, regime.consults, fourth_case)
        if not cases:
            raise UserError(
                f"{regime.title}: no pair among {len(cohort.train)} training scans, "
                f"{len(cohort.labelled)} of them labelled, can teach the network '{turn}': "
                "label more scans, or add some"
            )
        return cases

    @property
    def step(self) -> int:
        """Turns taken so far, of all networks."""
        return sum(self.turns.values())

    @property
    def finished(self) -> bool:
        """Has every turn been taken?"""
        return self.step >= self.total

    def next_turn(self) -> str:
        """Whose turn it is: the network furthest behind its share of the steps."""
        return min(
            self.turns, key=lambda name: (self.turns[name] + 0.5) / self.settings.steps[name]
        )

    def take_turn(self) -> dict:
        """One turn, the heart of the method: draw pairs, compute the named loss terms of the
        network whose turn it is, take a step, and return the row of the history.
        """
        start = time.perf_counter()
        turn = self.next_turn()
        for name, network in self.networks.items():
            network.train(name == turn)  # batch norm of a consulted network must not go on learning

        count = self.settings.pairs_in(turn)
        pairs = [draw_pair(self.cases[turn], self.generator) for _ in range(count)]
        moving = Batch.of([moving for moving, _ in pairs], self.structures, self.device)
        fixed = Batch.of([fixed for _, fixed in pairs], self.structures, self.device)
        moving, fixed = augment(moving, fixed, self.settings.augmentation, self.generator)

        mixed = self.settings.mixed_precision
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            terms = self._terms(turn, moving, fixed)
        # In one question for all: each waits until a GPU has done its work. And before any
        # gradient is computed, since that of a lookup at NaN crashes on a CPU.
        numbers = torch.stack(list(terms.values())).tolist() if terms else []
        values = dict(zip(terms, numbers, strict=True))
        self._check_finite({f"term {name}": value for name, value in values.items()}, turn, pairs)

        norm = self._gradient(turn, terms)
        self._check_finite({"gradient": norm.item()}, turn, pairs)
        rate = self._step(turn)
        self.turns[turn] += 1
        self.seconds += time.perf_counter() - start
        row = {"step": self.step, "turn": turn, "rate": rate, "seconds": self.seconds, **values}
        self.history.append(row)
        return row

    def _terms(self, turn: str, moving: Batch, fixed: Batch) -> dict[str, Tensor]:
        """The named loss terms of a turn, but those of weight 0; the other network, or its average,
        is only consulted.
        """
        other = "seg" if turn == "reg" else "reg"
        consulted = self.networks[other] if self.regime.consults else None
        if other in self.teachers:
            consulted = self.teachers[other].module.eval()
        weighty = [name for name, weight in self.settings.weights.items() if weight]
        if turn == "seg":
            terms = seg_terms(
                self.networks["seg"], consulted, moving, fixed, **self.settings.options
            )
            return {name: term for name, term in terms.items() if name in weighty}
        similarity = SIMILARITIES[self.settings.similarity]
        return reg_terms(self.networks["reg"], consulted, moving, fixed, similarity, names=weighty)

    def _gradient(self, turn: str, terms: Mapping[str, Tensor]) -> Tensor:
        """The length of the gradient of the loss, left with the weights of this turn's network; 0
        where these pairs teach it nothing, as its only term may be without one.
        """
        self.optimisers[turn].zero_grad(set_to_none=True)
        if any(term.requires_grad for term in terms.values()):
            self.settings.weights.total(terms).backward()
        gradients = [p.grad for p in self.networks[turn].parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _step(self, turn: str) -> float:
        """One step of the optimiser of this turn's network; returns the learning rate."""
        rate = self._rate(turn)
        self.optimisers[turn].param_groups[0]["lr"] = rate
        self.optimisers[turn].step()
        if turn in self.teachers:
            self.teachers[turn].update_parameters(self.networks[turn])
        return rate

    def _check_finite(self, values: Mapping[str, float], turn: str, pairs: list) -> None:
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            scans = ", ".join(f"{moving.id} -> {fixed.id}" for moving, fixed in pairs)
            raise FloatingPointError(
                f"{self.regime.title}, step {self.step + 1} (turn of {turn}): the "
                f"{' and '.join(bad)} is {values[bad[0]]} for {scans}: look at these scans, "
                "or lower the learning rate"
            )

    def _rate(self, turn: str) -> float:
        """Learning rate of this turn: a cosine to 0, after a linear warm-up over the first 5 % of
        the steps.
        """
        steps = self.settings.steps[turn]
        warm = min(1.0, (self.turns[turn] + 1) / (0.05 * steps))
        return (
            self.settings.learning_rates[turn]
            * warm
            * (1 + math.cos(math.pi * self.turns[turn] / steps))
            / 2
        )

    def validation_is_due(self) -> bool:
        """True ``validations`` times, evenly spread, and always at the last step."""
        often = max(1, self.settings.validations)
        return self.step * often // self.total != (self.step - 1) * often // self.total

    def keep_best(self, scores: Mapping[str, float]) -> None:
        """Remember each network that scored better than before; as long as there is no score, the
        latest.
        """
        for name in self.regime.trains:
            score, best = scores.get(name, math.nan), self.best_score.get(name, math.nan)
            if math.isnan(best) or score > best:
                state = self.networks[name].state_dict()
                self.best[name] = {
                    key: value.detach().cpu().clone() for key, value in state.items()
                }
                self.best_score[name] = score
            if self.history:
                self.history[-1][f"validation_{name}"] = score

    def state(self) -> dict:
        """What a checkpoint holds: tensors, numbers and texts only."""
        return {
            "networks": {name: self.networks[name].state_dict() for name in self.regime.trains},
            "teachers": {name: teacher.state_dict() for name, teacher in self.teachers.items()},
            "optimisers": {
                name: optimiser.state_dict() for name, optimiser in self.optimisers.items()
            },
            "generator": self.generator.get_state(),
            "dropout": torch.get_rng_state(),
            "turns": self.turns,
            "best": self.best,
            "best_score": self.best_score,
            "history": self.history,
            "seconds": self.seconds,
            "of": self.identity,
        }

    def load(self, state: Mapping, path: Path) -> None:
        """Go on from a checkpoint; UserError if it is of another regime, run, settings or data."""
        found = state["of"] if isinstance(state["of"], dict) else {}
        others = [name for name, value in self.identity.items() if found.get(name) != value]
        if others:
            raise UserError(
                f"{path}: is of another training than {self.regime.title} in this folder: "
                f"{' and '.join(others)} differ; {TRAINED_AGAIN}"
            )
        for name in self.regime.trains:
            load_weights(self.networks[name], state["networks"][name], path)
            self.optimisers[name].load_state_dict(state["optimisers"][name])
        for name, teacher in self.teachers.items():
            load_weights(teacher, state["teachers"][name], path)
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["dropout"].cpu())
        self.turns, self.best, self.best_score = state["turns"], state["best"], state["best_score"]
        self.history, self.seconds = state["history"], state["seconds"]
