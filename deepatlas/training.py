"""The one loop that trains every regime; ``Trainer.take_turn`` is its heart."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoints import (
    TRAINED_AGAIN,
    Interrupted,
    OutOfTime,
    last_checkpoint,
    load_weights,
    one_before,
    stop_requests,
    write_checkpoint,
)
from .data import Batch, Cohort, Scan, rows_of, sent
from .distributed import ALONE, Left, Ranks, running_statistics
from .errors import UserError, memory_is_short
from .pairs import augment, draw_changes, draw_pair, pairs_by_case
from .recompute import sparing
from .regimes import Regime
from .terms import SIMILARITIES, TERMS, Cases, Weights, pairs_behind, reg_terms, seg_terms

MINUTES_UNSAVED = 5

# Which weights of a network are kept: the best on labelled validation scans, or those at the end.
KEEP = ("best", "last")

Validate = Callable[[Mapping[str, nn.Module]], Mapping[str, float]]  # see ``train``


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
    keep: str = "best"  # of KEEP; "last": validation is logged, and decides nothing
    mixed_precision: bool = False  # networks in bfloat16, losses in float32
    # a network is consulted as the average of its last 1 / (1 - teacher) turns; 0: as it is now
    teacher: float = 0.0
    options: Mapping[str, bool] = field(default_factory=dict)  # of terms.seg_terms
    seed: int = 0
    run: str = ""  # name of the run that it is part of, whose checkpoints are no other's
    # is what a network computes on the way computed again in the backward pass, not held?
    sparing: bool = field(default=False, repr=False, compare=False)
    # sees each row of history
    watch: Callable[[dict], None] | None = field(default=None, repr=False, compare=False)
    quiet: bool = field(default=False, repr=False, compare=False)  # without a bar
    # when to stop, saved, on the clock of ``time.monotonic``
    until: float | None = field(default=None, repr=False, compare=False)
    # processes that train together, each of which calls ``train``
    ranks: Ranks = field(default=ALONE, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {self.keep!r}")

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
    validate: Validate | None = None,
) -> list[dict]:
    """Train ``networks`` {"seg": ..., "reg": ...} by ``regime`` in place; leave them at the weights
    that ``settings.keep`` names.

    ``validate(networks)`` scores those that it is given, {"seg": ..., "reg": ...}, more is better.
    With ``keep="best"`` that decides, for every regime by the same rule, which weights are kept:
    those of the highest score, the first of equals, or the last ones where there is no score. A
    network that starts from trained weights is scored before its first step, too, and may keep
    them. With ``keep="last"`` nothing depends on ``validate``.

    ``folder/checkpoint.pt`` makes the call resumable (on the CPU to the bit) and repeatable (a
    finished regime is only loaded); until then the one that was saved before stays beside it, and
    is taken if the last one is damaged. Returns the history, one row per step; those of a
    validation have further columns, see ``Trainer.validate``. Raises FloatingPointError at the
    first loss that is not finite, Interrupted after Ctrl-C or SIGTERM, or when the terminal is
    closed, and OutOfTime after the first step that ends later than ``settings.until``: each call
    takes one step at least.

    Of several ``settings.ranks`` the first alone looks into ``folder``, validates, and knows of
    ``until``. Raises Left, saved, when another one has ended.

    A training may go on on another device, or with another number of threads, and then differs by
    rounding, as two trainings on one GPU do: there the gradients of looking up, of interpolating
    and of Dice with labels (grid_sample, interpolate, scatter_add) are sums in no fixed order, and
    PyTorch has no others.
    """
    ranks = settings.ranks
    trainer = Trainer(networks, cohort, regime, settings)
    path = Path(folder) / "checkpoint.pt"
    if ranks.first and path.exists():
        trainer.load(last_checkpoint(path), path)
    trainer.begin_alike(path)
    if settings.watch:
        for row in trainer.history:  # what was trained before
            settings.watch(row)
    saved = time.monotonic()
    bar = tqdm(
        total=trainer.total,
        initial=trainer.step,
        desc=regime.title,
        unit="step",
        disable=settings.quiet or trainer.finished or not ranks.first,
    )
    goes_on = f"saved in {path}, and the same command goes on from there"
    with bar, stop_requests() as stopped, trainer.saved_where_others_end(path, goes_on):
        ranks.stopped = stopped
        if trainer.step == 0 and ranks.first:
            trainer.validate_start(validate)
        while not trainer.finished:
            row = trainer.take_turn()
            bar.update()
            shown = {name: f"{row[name]:.3f}" for name in TERMS if name in row}
            bar.set_postfix(shown, refresh=False)
            validated = trainer.validation_is_due()
            if validated and ranks.first:
                trainer.validate(validate)
            if settings.watch:
                settings.watch(row)
            now = time.monotonic()
            is_late = settings.until is not None and now >= settings.until
            asked, late = ranks.any(bool(stopped), is_late)
            due = validated or asked or late or now - saved > MINUTES_UNSAVED * 60
            if due and ranks.first:
                write_checkpoint(trainer.state(), path)
                saved = time.monotonic()
            where = f"step {trainer.step} of {trainer.total}"
            if asked:
                raise Interrupted(f"{regime.title} stopped at {where}; {goes_on}")
            if late and not trainer.finished:
                raise OutOfTime(f"{regime.title}: its time was over at {where}; {goes_on}")
    if ranks.first:
        one_before(path).unlink(missing_ok=True)
    best = ranks.of_first(trainer.best)
    for name in regime.trains:
        networks[name].load_state_dict(best[name])
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
        self.ranks = settings.ranks
        self.structures = len(cohort.structures)
        self.regime = regime
        self.settings = settings
        self.device = cohort.device
        self.shape = cohort.shape
        if min(settings.steps.get(name, 0) for name in regime.trains) < 1:
            raise ValueError(
                f"{regime.title}: steps must be at least 1 for each of {', '.join(regime.trains)}, "
                f"got {dict(settings.steps)}"
            )
        for name in regime.trains:
            self.ranks.check(settings.pairs_in(name), name)
        self.total = sum(settings.steps[name] for name in regime.trains)
        # All weights of a network in one kernel of a GPU, which then keeps the count of steps, too.
        fused = True if self.device.type == "cuda" else None
        self.optimisers = {
            name: torch.optim.Adam(networks[name].parameters(), fused=fused)
            for name in regime.trains
        }
        self.teachers = {
            name: deepcopy(networks[name]).eval()
            for name in regime.trains
            if settings.teacher and regime.consults and len(regime.trains) > 1
        }
        self.cases = {
            name: self._cases(cohort, regime, name, settings.options.get("fourth_case", False))
            for name in regime.trains
        }
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.turns = dict.fromkeys(regime.trains, 0)
        self.parts = dict.fromkeys(regime.trains, 1)  # in which a batch of its turn is computed
        self.best: dict[str, dict[str, Tensor]] = {}
        self.best_score: dict[str, float] = {}
        self.seconds = 0.0
        self.history: list[dict] = []
        self.identity = identity(cohort, regime, settings)

    def begin_alike(self, path: Path) -> None:
        """Give all processes the weights of the first, and the state that it has read from
        ``path``.
        """
        if self.ranks.count == 1:
            return
        trained = [self.networks[name] for name in self.regime.trains]
        if self.ranks.first and any(running_statistics(network) for network in trained):
            tqdm.write(
                f"{self.regime.title}: batch normalisation sees the pairs of each of the "
                f"{self.ranks.count} processes by itself, so that the weights depend on how many "
                "there are"
            )
        weights = {name: network.state_dict() for name, network in self.networks.items()}
        said = self.ranks.of_first({"weights": weights, "state": self.state()})
        if not self.ranks.first:
            for name, network in self.networks.items():
                load_weights(network, said["weights"][name], path)
            self.load(said["state"], path)

    @contextmanager
    def saved_where_others_end(self, path: Path, goes_on: str) -> Iterator[None]:
        """Where another process has ended, the first saves what it has in ``path``."""
        try:
            yield
        except Left as error:
            if self.ranks.first:
                write_checkpoint(self.state(), path)
            where = f"step {self.step} of {self.total}"
            raise Left(f"{self.regime.title}, {where}: {error}; {goes_on}") from error

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

        before = self.generator.get_state()
        count = self.settings.pairs_in(turn)
        pairs = [draw_pair(self.cases[turn], self.generator) for _ in range(count)]
        changes = draw_changes(count, self.shape, self.settings.augmentation, self.generator)
        try:
            values = self._gradient(turn, pairs, changes)
        except Left:
            self.generator.set_state(before)  # as if this turn had not begun
            raise
        rate = self._step(turn)

        self.turns[turn] += 1
        self.seconds += time.perf_counter() - start
        row = {"step": self.step, "turn": turn, "rate": rate, "seconds": self.seconds, **values}
        if self.parts[turn] > 1:
            row["parts"] = self.parts[turn]
        self.history.append(row)
        return row

    def _gradient(
        self, turn: str, pairs: Sequence[tuple[Scan, Scan]], changes: Tensor | None
    ) -> dict[str, float]:
        """The value of each term of these pairs, whose gradient is left with the weights of this
        turn's network; all of them finite.

        A batch for which there is too little memory is computed in two halves from then on, one
        after the other: the same gradient, to rounding, but for batch normalisation, whose
        statistics are then those of a half. (Where an operating system promises more memory than it
        has, nobody is told, and the process is killed.)
        """
        while True:
            try:
                return self._gradient_in_parts(turn, pairs, changes)
            except (RuntimeError, MemoryError) as error:
                if not memory_is_short(error):
                    raise
                own = len(self.ranks.part(len(pairs)))
                if own == 1 or self.parts[turn] > 1:
                    size = " x ".join(str(n) for n in self.shape)
                    raise MemoryError(
                        f"{self.regime.title}, step {self.step + 1} (turn of {turn}): not even "
                        f"{math.ceil(own / 2)} of its {len(pairs)} pairs of {size} voxels "
                        f"fit in the memory of {self.device}"
                    ) from error
            # only now, when the error no longer holds what was computed, is its memory free again
            self.parts[turn] = 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            tqdm.write(
                f"{self.regime.title}, step {self.step + 1}: {len(pairs)} pairs of a turn of "
                f"{turn} do not fit in the memory of {self.device}: from here on they are computed "
                "in two halves, one after the other, with the same gradient (but for batch "
                "normalisation, if the network has any: it sees a half)"
            )

    def _gradient_in_parts(
        self, turn: str, pairs: Sequence[tuple[Scan, Scan]], changes: Tensor | None
    ) -> dict[str, float]:
        """``_gradient``, with as much memory as the largest part needs: of those pairs that this
        process computes. A GPU is asked once.
        """
        self.optimisers[turn].zero_grad(set_to_none=True)
        whole = self._pairs_behind(turn, pairs)
        values: dict[str, Tensor] = {}
        own = self.ranks.part(len(pairs))
        for rows in _parts(own, self.parts[turn]):
            some = [pairs[row] for row in rows]
            their_changes = None if changes is None else rows_of(changes, rows)
            shares = {}
            for name, count in self._pairs_behind(turn, some).items():
                shares[name] = count / whole[name] if whole[name] else 0.0
            with sparing(self.settings.sparing):
                terms = self._terms(turn, some, their_changes)
                weighed = {name: shares[name] * term for name, term in terms.items()}
                self._backward(weighed)
            for name, term in weighed.items():
                values[name] = values.get(name, 0.0) + term.detach()

        weights = self.settings.weights
        if any(weights[name] and count for name, count in whole.items()):
            self.ranks.add_up_gradients(self.networks[turn])
        gradients = [p.grad for p in self.networks[turn].parameters() if p.grad is not None]
        norm = sent(torch.nn.utils.get_total_norm(gradients), self.device)
        # In one question for all: it waits until a GPU has done its work.
        *numbers, length = torch.stack([*values.values(), norm]).tolist()
        found = dict(zip(values, self.ranks.add_up(numbers), strict=True))
        self._check_finite({f"term {name}": value for name, value in found.items()}, turn, pairs)
        self._check_finite({"gradient": length}, turn, pairs)
        return found

    def _backward(self, terms: Mapping[str, Tensor]) -> None:
        """Add the gradient of the loss that these terms make to that of the weights; nothing where
        they teach nothing, as the only term may be without a gradient.
        """
        # On a CPU the gradient of a lookup at NaN crashes; there, an answer costs no time.
        if self.device.type == "cpu" and not all(term.isfinite() for term in terms.values()):
            return
        if any(term.requires_grad for term in terms.values()):
            self.settings.weights.total(terms).backward()

    def _pairs_behind(self, turn: str, pairs: Sequence[tuple[Scan, Scan]]) -> dict[str, int]:
        """Of how many of these pairs each term of a turn is the mean."""
        known = []
        for moving, fixed in pairs:
            known.append((moving.labels is not None, fixed.labels is not None))
        fourth_case = self.settings.options.get("fourth_case", False)
        return pairs_behind(turn, Cases(known, self.regime.consults, fourth_case))

    def _terms(
        self, turn: str, pairs: Sequence[tuple[Scan, Scan]], changes: Tensor | None
    ) -> dict[str, Tensor]:
        """The named loss terms of a turn, but those of weight 0; the other network, or its average,
        is only consulted.
        """
        moving = Batch.of([moving for moving, _ in pairs], self.structures, self.device)
        fixed = Batch.of([fixed for _, fixed in pairs], self.structures, self.device)
        moving, fixed = augment(moving, fixed, changes)
        other = "seg" if turn == "reg" else "reg"
        consulted = self.consulted().get(other)
        weighty = [name for name, weight in self.settings.weights.items() if weight]
        mixed = self.settings.mixed_precision
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            if turn == "seg":
                terms = seg_terms(
                    self.networks["seg"], consulted, moving, fixed, **self.settings.options
                )
                return {name: term for name, term in terms.items() if name in weighty}
            similarity = SIMILARITIES[self.settings.similarity]
            return reg_terms(
                self.networks["reg"], consulted, moving, fixed, similarity, names=weighty
            )

    def consulted(self) -> dict[str, nn.Module]:
        """The networks that are asked in the other one's turn, by name, as they are asked: of one
        that learns its average, if there is one.
        """
        if not self.regime.consults:
            return {}
        found = {}
        for turn in self.regime.trains:
            other = "seg" if turn == "reg" else "reg"
            found[other] = self.teachers.get(other, self.networks[other])
        return found

    def _step(self, turn: str) -> float:
        """One step of the optimiser of this turn's network; returns the learning rate."""
        rate = self._rate(turn)
        self.optimisers[turn].param_groups[0]["lr"] = rate
        self.optimisers[turn].step()
        if turn in self.teachers:
            self._average(turn)
        return rate

    @torch.no_grad()
    def _average(self, turn: str) -> None:
        """Take the weights of this turn's network into the average of its past, which begins with
        those after its first turn. (PyTorch's ``AveragedModel`` sends a GPU its count each time.)
        """
        teacher, network = self.teachers[turn], self.networks[turn]
        share = 1 - self.settings.teacher if self.turns[turn] else 1.0
        torch._foreach_lerp_(list(teacher.parameters()), list(network.parameters()), share)
        for kept, now in zip(teacher.buffers(), network.buffers(), strict=True):
            kept.copy_(now)

    def _check_finite(
        self, values: Mapping[str, float], turn: str, pairs: Sequence[tuple[Scan, Scan]]
    ) -> None:
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

    def validate_start(self, validate: Validate | None) -> None:
        """Score the networks that start from trained weights, by ``keep="best"``: training on need
        not make them better.
        """
        names = self.regime.goes_on if self.settings.keep == "best" else ()
        if names and validate is not None:
            self.keep(validate({name: self.networks[name] for name in names}), names)

    def validate(self, validate: Validate | None) -> None:
        """Score the networks as they are, remember the weights that are to be kept, and add to the
        last row of the history, for "seg" and "reg":

        ``validation_seg``, the score of a network that is trained; ``kept_seg``, that of the
        weights of it that are kept so far; ``teacher_seg``, that of a network that is consulted,
        as it is consulted. Each is NaN where ``validate`` does not tell it.
        """
        trained = {name: self.networks[name] for name in self.regime.trains}
        scores = validate(trained) if validate else {}
        self.keep(scores, self.regime.trains)
        taught_by = self._teacher_scores(scores, validate)
        row = self.history[-1]
        for name in self.regime.trains:
            row[f"validation_{name}"] = scores.get(name, math.nan)
            row[f"kept_{name}"] = self.best_score[name]
        for name, score in taught_by.items():
            row[f"teacher_{name}"] = score

    def _teacher_scores(
        self, scores: Mapping[str, float], validate: Validate | None
    ) -> dict[str, float]:
        """The scores of the networks that are consulted. One that is trained, too, and has no
        average, is in ``scores``; a fixed one is scored once, in the first validation.
        """
        found = {}
        for name, network in self.consulted().items():
            earlier = [row[f"teacher_{name}"] for row in self.history if f"teacher_{name}" in row]
            if name in self.regime.trains and name not in self.teachers:
                found[name] = scores.get(name, math.nan)
            elif name not in self.regime.trains and earlier:
                found[name] = earlier[0]
            else:
                told = validate({name: network}) if validate else {}
                found[name] = told.get(name, math.nan)
        return found

    def keep(self, scores: Mapping[str, float], names: Sequence[str]) -> None:
        """Remember the weights of the networks ``names`` as they are: by ``keep="best"`` of those
        that scored better than before, or, as long as there is no score, of all; by ``keep="last"``
        of all.
        """
        for name in names:
            score, best = scores.get(name, math.nan), self.best_score.get(name, math.nan)
            if self.settings.keep == "last" or math.isnan(best) or score > best:
                state = self.networks[name].state_dict()
                self.best[name] = {
                    key: value.detach().cpu().clone() for key, value in state.items()
                }
                self.best_score[name] = score

    def state(self) -> dict:
        """What a checkpoint holds: tensors, numbers and texts only. Of a finished training only
        what it has found, since nothing goes on from there.
        """
        found = {
            "turns": self.turns,
            "best": self.best,
            "best_score": self.best_score,
            "history": self.history,
            "seconds": self.seconds,
            "of": self.identity,
        }
        if self.finished:
            return found
        on_gpu = self.device.type == "cuda"
        return {
            "networks": {name: self.networks[name].state_dict() for name in self.regime.trains},
            "teachers": {name: teacher.state_dict() for name, teacher in self.teachers.items()},
            "optimisers": {
                name: optimiser.state_dict() for name, optimiser in self.optimisers.items()
            },
            "generator": self.generator.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_on_gpu": torch.cuda.get_rng_state(self.device) if on_gpu else None,
            "parts": self.parts,
            **found,
        }

    def load(self, state: Mapping, path: Path) -> None:
        """Go on from a checkpoint, whose tensors are on the CPU; UserError if it is of another
        regime, run, settings or data.
        """
        found = state["of"] if isinstance(state["of"], dict) else {}
        others = [name for name, value in self.identity.items() if found.get(name) != value]
        if others:
            raise UserError(
                f"{path}: is of another training than {self.regime.title} in this folder: "
                f"{' and '.join(others)} differ; {TRAINED_AGAIN}"
            )
        self.turns, self.best, self.best_score = state["turns"], state["best"], state["best_score"]
        self.history, self.seconds = state["history"], state["seconds"]
        if self.finished:
            for name in self.regime.trains:
                load_weights(self.networks[name], self.best[name], path)
            return
        for name in self.regime.trains:
            load_weights(self.networks[name], state["networks"][name], path)
            self._load_optimiser(name, state["optimisers"][name])
        for name, teacher in self.teachers.items():
            load_weights(teacher, state["teachers"][name], path)
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["dropout"])
        if self.device.type == "cuda" and state.get("dropout_on_gpu") is not None:
            torch.cuda.set_rng_state(state["dropout_on_gpu"], self.device)
        self.parts |= state.get("parts", {})  # files of before have none

    def _load_optimiser(self, name: str, saved: Mapping) -> None:
        """What Adam knows of each weight goes where the weight is, but the count of steps stays on
        the CPU unless this device keeps it: on a GPU, each would be asked for at every step.
        """
        optimiser = self.optimisers[name]
        fused = optimiser.defaults["fused"]  # of this device, not of that of the file
        groups = [{**group, "fused": fused} for group in saved["param_groups"]]
        optimiser.load_state_dict({**saved, "param_groups": groups})


def _parts(rows: range, parts: int) -> list[range]:
    """``rows`` in so many ``parts``, the first ones by one longer where they must be; a part has
    one at least.
    """
    parts = min(parts, len(rows))
    ends = [math.ceil(len(rows) * part / parts) for part in range(parts + 1)]
    return [rows[start:end] for start, end in pairwise(ends)]
