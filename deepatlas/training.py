"""The method: the loss terms of the two networks, and the one loop that trains every regime.

Registration minimises    similarity + lambda_r regularity + lambda_a anatomy
Segmentation minimises    lambda_a anatomy + lambda_sp supervised, by case

and each network supplies the labels that the other lacks (Xu & Niethammer, MICCAI 2019).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import losses
from .checkpoints import Interrupted, read_checkpoint, stop_requests, write_atomically
from .data import Batch, Cohort, Scan
from .pairs import augment, draw_pair, pairs_by_case
from .regimes import Regime
from .warp import Deformation

# --- what the networks mean ----------------------------------------------------------------------------------------


def register(reg_net: nn.Module, moving: Tensor, fixed: Tensor) -> Deformation:
    """The deformation a registration network means: x + u(x), or exp(v) of one whose output is a velocity."""
    output = reg_net(moving, fixed).float()
    return Deformation.exp(output) if getattr(reg_net, "velocity", False) else Deformation(output)


def probabilities(seg_net: nn.Module, image: Tensor) -> Tensor:
    """F_S(I): (B, 1, I, J, K) -> (B, C, I, J, K), positive, summing to 1 over the structures."""
    return seg_net(image).float().softmax(1)


def labels_or_guess(batch: Batch, guess: Tensor) -> Tensor:
    """The expert's labels where they exist, the network's own guess where they do not."""
    return torch.where(batch.known.view(-1, *[1] * (guess.ndim - 1)), batch.one_hot, guess)


def segmenter(seg_net: nn.Module) -> Callable[[Scan], Tensor]:
    """A function scan -> labels (I, J, K): the most probable structure of each voxel."""
    @torch.no_grad()
    def segment(scan: Scan) -> Tensor:
        return seg_net.eval()(scan.image[None])[0].argmax(0)
    return segment


def registrar(reg_net: nn.Module) -> Callable[[Scan, Scan], Deformation]:
    """A function (moving, fixed) -> Deformation."""
    @torch.no_grad()
    def register_scans(moving: Scan, fixed: Scan) -> Deformation:
        return register(reg_net.eval(), moving.image[None], fixed.image[None])
    return register_scans


# --- the loss terms ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Weight of each named loss term."""

    similarity: float = 1.0
    regularity: float = 1.0  # lambda_r: belongs to a grid and a similarity, so sweep it
    anatomy: float = 3.0  # lambda_a
    supervised: float = 3.0  # lambda_sp

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of ``terms``."""
        return sum(getattr(self, name) * term for name, term in terms.items())


def reg_terms(reg_net: nn.Module, seg_net: nn.Module | None, moving: Batch, fixed: Batch,
              similarity: Callable[[Tensor, Tensor], Tensor] = losses.ncc) -> dict[str, Tensor]:
    """Loss terms of a registration turn: L_i(I_m o phi, I_f), L_r(phi), L_a(S_m o phi, S_f).

    A missing S is the guess of ``seg_net``, which is only consulted; without one, only pairs that an expert labelled
    on both sides have an anatomy term.
    """
    phi = register(reg_net, moving.image, fixed.image)
    if seg_net is None:
        pairs, s_moving, s_fixed = moving.known & fixed.known, moving.one_hot, fixed.one_hot
    else:
        with torch.no_grad():
            pairs = torch.ones_like(moving.known)
            s_moving, s_fixed = (b.one_hot if b.known.all() else labels_or_guess(b, probabilities(seg_net, b.image))
                                 for b in (moving, fixed))
    return {
        "similarity": similarity(phi.warp(moving.image), fixed.image),
        "regularity": losses.bending_energy(phi.displacement),
        "anatomy": _anatomy(phi, s_moving, s_fixed, pairs),
    }


def seg_terms(seg_net: nn.Module, reg_net: nn.Module | None, moving: Batch, fixed: Batch) -> dict[str, Tensor]:
    """Loss terms of a segmentation turn, by case; ``reg_net`` is only consulted.

    ======== ======== ============================ ======================
    moving   fixed    anatomy                      supervised
    ======== ======== ============================ ======================
    known    unknown  L_a(S_m o phi, F_S(I_f))     L_sp(F_S(I_m), S_m)
    unknown  known    L_a(F_S(I_m) o phi, S_f)     L_sp(F_S(I_f), S_f)
    known    known    0: it contains no F_S        L_sp(F_S(I_m), S_m)
    unknown  unknown  0: two free guesses agree    0
                      best when both are constant
    ======== ======== ============================ ======================

    Without ``reg_net``, the supervised baseline: the anatomy term is 0.
    """
    p_moving = probabilities(seg_net, moving.image)
    mixed = moving.known ^ fixed.known if reg_net is not None else torch.zeros_like(moving.known)
    # F_S(I_f) is needed where fixed is guessed, or is the only expert's side
    p_fixed = probabilities(seg_net, fixed.image) if mixed.any() else p_moving
    anatomy = p_moving.new_zeros(())
    if mixed.any():
        with torch.no_grad():
            phi = register(reg_net, moving.image, fixed.image)
        anatomy = _anatomy(phi, labels_or_guess(moving, p_moving), labels_or_guess(fixed, p_fixed), mixed)
    side = moving.known.view(-1, *[1] * (p_moving.ndim - 1))
    guess, truth = torch.where(side, p_moving, p_fixed), torch.where(side, moving.one_hot, fixed.one_hot)
    return {"anatomy": anatomy, "supervised": _mean_dice(guess, truth, moving.known | mixed)}


def _anatomy(phi: Deformation, s_moving: Tensor, s_fixed: Tensor, pairs: Tensor) -> Tensor:
    """L_a(S_m o phi, S_f), a mean over the ``pairs`` (B,) that count; probabilities are warped linearly."""
    return _mean_dice(phi.warp(s_moving), s_fixed, pairs) if pairs.any() else phi.displacement.new_zeros(())


def _mean_dice(p: Tensor, q: Tensor, counted: Tensor) -> Tensor:
    return losses.soft_dice(p[counted], q[counted]) if counted.any() else p.new_zeros(())


# --- the loop ------------------------------------------------------------------------------------------------------

SIMILARITIES = {"ncc": losses.ncc, "lncc": losses.lncc, "mse": losses.mse}


@dataclass(frozen=True)
class Settings:
    """How a regime is trained; all regimes of one comparison share everything but ``steps``."""

    steps: Mapping[str, int]  # turns of each network that trains, e.g. {"seg": 100, "reg": 200}
    weights: Weights = Weights()
    similarity: str = "ncc"  # of SIMILARITIES
    learning_rates: Mapping[str, float] = field(default_factory=lambda: {"seg": 1e-3, "reg": 1e-3})  # of Adam, at most
    batch_size: int = 1  # pairs of scans in a turn
    augmentation: float = 1.0  # strength
    validations: int = 8  # how often, evenly spread, the last at the end
    mixed_precision: bool = False  # networks in bfloat16, losses in float32
    seed: int = 0
    watch: Callable[[dict], None] | None = field(default=None, repr=False, compare=False)  # sees each row of history


def train(networks: Mapping[str, nn.Module], cohort: Cohort, regime: Regime, settings: Settings, folder: Path,
          validate: Callable[[], Mapping[str, float]] | None = None) -> list[dict]:
    """Train ``networks`` {"seg": ..., "reg": ...} by ``regime`` in place; leave them at their best validation score.

    ``validate()`` scores the networks as they are, {"seg": ..., "reg": ...}, more is better; it decides, for every
    regime by the same rule, which weights are kept. ``folder/checkpoint.pt`` makes the call resumable (on the CPU to
    the bit) and repeatable (a finished regime is only loaded). Returns the history, one row per step. Raises
    FloatingPointError at the first loss that is not finite, Interrupted after Ctrl-C or SIGTERM.
    """
    trainer = _Trainer(networks, cohort, regime, settings)
    path = Path(folder) / "checkpoint.pt"
    if path.exists():
        trainer.load(read_checkpoint(path, cohort.train[0].image.device), path)
    for row in trainer.history if settings.watch else ():
        settings.watch(row)  # what was trained before
    saved = time.monotonic()
    bar = tqdm(total=trainer.total, initial=trainer.step, desc=regime.title, unit="step", disable=trainer.finished)
    with bar, stop_requests() as stopped:
        if trainer.step == 0 and regime.consults and validate is not None:
            trainer.keep_best(validate())  # where it starts: training on need not make it better
        while not trainer.finished:
            row = trainer.advance()
            bar.update()
            bar.set_postfix({name: f"{row[name]:.3f}" for name in row if name in _TERMS}, refresh=False)
            if validated := trainer.validation_is_due():
                trainer.keep_best({} if validate is None else validate())
            if settings.watch:
                settings.watch(row)
            if validated or stopped or time.monotonic() - saved > MINUTES_UNSAVED * 60:
                write_atomically(path, lambda file: torch.save(trainer.state(), file))
                saved = time.monotonic()
            if stopped:
                raise Interrupted(f"{regime.title} stopped at step {trainer.step} of {trainer.total}; saved in {path}, "
                                  "and the same command goes on from there")
    for name in regime.trains:
        networks[name].load_state_dict(trainer.best[name])
    return trainer.history


MINUTES_UNSAVED = 5
_TERMS = {"similarity", "regularity", "anatomy", "supervised"}


class _Trainer:
    """Everything a step changes, so that it can be saved and restored as one."""

    def __init__(self, networks: Mapping[str, nn.Module], cohort: Cohort, regime: Regime, settings: Settings) -> None:
        self.networks, self.structures = networks, len(cohort.structures)
        self.regime, self.settings = regime, settings
        self.device = cohort.train[0].image.device
        if min(settings.steps.get(name, 0) for name in regime.trains) < 1:
            raise ValueError(f"{regime.title}: steps must be at least 1 for each of {', '.join(regime.trains)}, "
                             f"got {dict(settings.steps)}")
        self.total = sum(settings.steps[name] for name in regime.trains)
        self.optimisers = {name: torch.optim.Adam(networks[name].parameters()) for name in regime.trains}
        self.cases = {name: self._cases(cohort, regime, name) for name in regime.trains}
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.turns = dict.fromkeys(regime.trains, 0)
        self.best: dict[str, dict[str, Tensor]] = {}
        self.best_score: dict[str, float] = {}
        self.seconds = 0.0
        self.history: list[dict] = []

    @staticmethod
    def _cases(cohort: Cohort, regime: Regime, turn: str) -> list:
        cases = pairs_by_case(cohort.train, turn, regime.consults)
        if not cases:
            raise ValueError(f"{regime.title}: no pair among {len(cohort.train)} training scans, "
                             f"{len(cohort.labelled)} of them labelled, can teach the network '{turn}': "
                             "label more scans, or add some")
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
        return min(self.turns, key=lambda name: (self.turns[name] + 0.5) / self.settings.steps[name])

    def advance(self) -> dict:
        """One turn: draw, compute the named terms, step, and return the row of the history."""
        start, turn = time.perf_counter(), self.next_turn()
        for name, network in self.networks.items():
            network.train(name == turn)  # batch norm of a consulted network must not go on learning
        pairs = [draw_pair(self.cases[turn], self.generator) for _ in range(self.settings.batch_size)]
        moving, fixed = (Batch.of(side, self.structures) for side in zip(*pairs, strict=True))
        moving, fixed = augment(moving, fixed, self.settings.augmentation, self.generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.mixed_precision):
            terms = self._terms(turn, moving, fixed)
        values = {name: term.item() for name, term in terms.items()}
        self._check_finite({f"term {name}": value for name, value in values.items()}, turn, pairs)
        rate = self._update(turn, self.settings.weights.total(terms), pairs)
        self.turns[turn] += 1
        self.seconds += time.perf_counter() - start
        self.history.append({"step": self.step, "turn": turn, "rate": rate, "seconds": self.seconds, **values})
        return self.history[-1]

    def _terms(self, turn: str, moving: Batch, fixed: Batch) -> dict[str, Tensor]:
        consulted = self.networks["seg" if turn == "reg" else "reg"] if self.regime.consults else None
        if turn == "seg":
            return seg_terms(self.networks["seg"], consulted, moving, fixed)
        return reg_terms(self.networks["reg"], consulted, moving, fixed, SIMILARITIES[self.settings.similarity])

    def _update(self, turn: str, loss: Tensor, pairs: list) -> float:
        """One step of the optimiser of this turn's network; returns the learning rate."""
        optimiser, rate = self.optimisers[turn], self._rate(turn)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self.networks[turn].parameters() if p.grad is not None]
        self._check_finite({"gradient": torch.nn.utils.get_total_norm(gradients).item()}, turn, pairs)
        optimiser.step()
        return rate

    def _check_finite(self, values: Mapping[str, float], turn: str, pairs: list) -> None:
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            scans = ", ".join(f"{moving.id} -> {fixed.id}" for moving, fixed in pairs)
            raise FloatingPointError(f"{self.regime.title}, step {self.step + 1} (turn of {turn}): the "
                                     f"{' and '.join(bad)} is {values[bad[0]]} for {scans}: look at these scans, "
                                     "or lower the learning rate")

    def _rate(self, turn: str) -> float:
        """Learning rate of this turn: a cosine to 0, after a linear warm-up over the first 5 % of the steps."""
        steps = self.settings.steps[turn]
        warm = min(1.0, (self.turns[turn] + 1) / (0.05 * steps))
        return self.settings.learning_rates[turn] * warm * (1 + math.cos(math.pi * self.turns[turn] / steps)) / 2

    def validation_is_due(self) -> bool:
        """True ``validations`` times, evenly spread, and always at the last step."""
        often = max(1, self.settings.validations)
        return self.step * often // self.total != (self.step - 1) * often // self.total

    def keep_best(self, scores: Mapping[str, float]) -> None:
        """Remember each network that scored better than before; as long as there is no score, the latest."""
        for name in self.regime.trains:
            score, best = scores.get(name, math.nan), self.best_score.get(name, math.nan)
            if math.isnan(best) or score > best:
                state = self.networks[name].state_dict()
                self.best[name] = {key: value.detach().cpu().clone() for key, value in state.items()}
                self.best_score[name] = score
            if self.history:
                self.history[-1][f"validation_{name}"] = score

    def state(self) -> dict:
        """What a checkpoint holds: tensors, numbers and texts only."""
        return {
            "networks": {name: self.networks[name].state_dict() for name in self.regime.trains},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "generator": self.generator.get_state(), "dropout": torch.get_rng_state(), "turns": self.turns,
            "best": self.best, "best_score": self.best_score, "history": self.history, "seconds": self.seconds,
            "of": self._identity(),
        }

    def _identity(self) -> str:
        return f"{self.regime.title}: {self.settings}"

    def load(self, state: Mapping, path: Path) -> None:
        """Go on from a checkpoint, if it is of the same regime and settings."""
        if state["of"] != self._identity():
            raise ValueError(f"{path} is of another training ({state['of']}), not of {self._identity()}: "
                             "choose another folder, or remove that file")
        for name in self.regime.trains:
            self.networks[name].load_state_dict(state["networks"][name])
            self.optimisers[name].load_state_dict(state["optimisers"][name])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["dropout"].cpu())
        self.turns, self.best, self.best_score = state["turns"], state["best"], state["best_score"]
        self.history, self.seconds = state["history"], state["seconds"]
