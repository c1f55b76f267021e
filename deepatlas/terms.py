"""The named terms of the two networks' losses.

Registration minimises    similarity + lambda_r regularity + lambda_a anatomy
Segmentation minimises    lambda_a anatomy + lambda_sp supervised, by case; the recipe ``best``
                          adds lambda_ce cross_entropy of the same scans

and each network supplies the labels that the other lacks (Xu & Niethammer, MICCAI 2019).

To add a term, write a function of the turn and add a row to ``TERMS``: it is trained with, logged,
plotted and drawn in the live view, since everything that lists terms reads this table. Its weight
is that of the row unless an experiment gives another, ``term_weights={name: 0.1}``. A term of
segmentation that looks at phi returns ``turn.nothing`` where ``turn.phi`` is None, as the baseline
has none. It is a mean over pairs, and its row says over which, unless it is over all. To add a
similarity, a mean over pairs too, name it in ``SIMILARITIES``.

A turn asks a network only about scans whose case a term looks at, and in as few passes as it can:
tests/plain.py has the same terms from a network that is shown every scan, and
tests/test_training.py compares values and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import losses
from .data import Batch, rows_of, sent
from .errors import UserError
from .models import as_probabilities, register
from .regimes import TURNS
from .warp import Deformation

SIMILARITIES = {"ncc": losses.ncc, "lncc": losses.lncc, "mse": losses.mse}


def labels_or_guess(known: Sequence[bool], one_hot: Tensor, probabilities: Tensor) -> Tensor:
    """The expert's labels where they exist, the network's own guess where they do not.

    ``known``: B answers, the others (B, C, I, J, K).

    >>> one_hot = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> probabilities = torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    >>> labels_or_guess((True, False), one_hot, probabilities)
    tensor([[1.0000, 0.0000],
            [0.3000, 0.7000]])
    """
    flags = sent(torch.tensor(known), one_hot.device).view(-1, *[1] * (one_hot.ndim - 1))
    return torch.where(flags, one_hot, probabilities)


# --- which pairs a term is about ------------------------------------------------------------------


@dataclass(frozen=True)
class Cases:
    """The pairs of a batch, by who is labelled: which of them, by number, each term is about.

    No GPU is asked: a part of a batch can be weighed by it before anything is computed.
    """

    known: Sequence[tuple[bool, bool]]  # of each pair: (is moving labelled?, is fixed?)
    consults: bool  # is the other network asked?
    fourth_case: bool = False  # are two guesses compared?

    @classmethod
    def of(cls, moving: Batch, fixed: Batch, consults: bool, fourth_case: bool = False) -> Cases:
        """The pairs of two batches."""
        return cls(list(zip(moving.known, fixed.known, strict=True)), consults, fourth_case)

    def every(self) -> list[int]:
        """All pairs."""
        return list(range(len(self.known)))

    def with_labels(self, moving: bool, fixed: bool) -> list[int]:
        """Pairs of the one case in which these sides are labelled, and the other ones are not."""
        return [row for row, sides in enumerate(self.known) if sides == (moving, fixed)]

    def counted(self) -> list[int]:
        """Pairs with an S on both sides in a turn of registration, an expert's or a guess."""
        return self.every() if self.consults else self.with_labels(True, True)

    def compared(self) -> list[int]:
        """Pairs of which a turn of segmentation compares S_m o phi with S_f."""
        if not self.consults:
            return []
        found = self.with_labels(True, False) + self.with_labels(False, True)
        if self.fourth_case:
            found += self.with_labels(False, False)
        return sorted(found)

    def taught(self) -> list[int]:
        """Pairs of which a turn of segmentation is shown an expert's labels: without the other
        network, those of the moving side.
        """
        found = []
        for row, (moving, fixed) in enumerate(self.known):
            if moving or (fixed and self.consults):
                found.append(row)
        return found


# --- what a turn holds, and the terms that look at it ---------------------------------------------


@dataclass(frozen=True, eq=False)
class RegTurn:
    """What a term of registration may look at; labels and guesses are (B, C, I, J, K)."""

    moving: Batch
    fixed: Batch
    phi: Deformation  # what the registration network means: gradients flow through it
    seg_net: nn.Module | None  # only consulted
    similarity: Callable[[Tensor, Tensor], Tensor]

    @property
    def counted(self) -> list[int]:
        """The numbers of the pairs with an S on both sides."""
        return Cases.of(self.moving, self.fixed, self.seg_net is not None).counted()

    @cached_property
    def labels(self) -> tuple[Tensor, Tensor]:
        """S_m and S_f of the pairs that count: the expert's labels where they exist, the guess of
        the segmentation network where they do not. It is asked when a term first looks here.
        """
        moving, fixed = self.moving[self.counted], self.fixed[self.counted]
        s_moving, s_fixed = _labels(self.seg_net, moving, fixed)
        return s_moving, s_fixed


@dataclass(frozen=True, eq=False)
class SegTurn:
    """What a term of segmentation may look at, an item for each case: tensors of the R pairs of the
    batch that are of this case, (R, C, I, J, K), or (R, I, J, K) as integer labels; R may be 0.
    """

    # F_S(I) of labelled scans, before the softmax, and the expert's labels of them
    taught: Sequence[tuple[Tensor, Tensor]]
    # S_m o phi and S_f of the pairs that are compared
    compared: Sequence[tuple[Tensor, Tensor]] = ()
    # of these pairs, in the same order; None where none is
    phi: Deformation | None = None

    @property
    def nothing(self) -> Tensor:
        """The value of a term that no pair of the batch has."""
        scores, _ = self.taught[0]
        return scores.new_zeros((), dtype=torch.float32)


def _similarity(turn: RegTurn) -> Tensor:
    """L_i(I_m o phi, I_f)."""
    return turn.similarity(turn.phi.warp(turn.moving.image), turn.fixed.image)


def _regularity(turn: RegTurn) -> Tensor:
    """L_r(phi)."""
    return losses.bending_energy(turn.phi.displacement)


def _reg_anatomy(turn: RegTurn) -> Tensor:
    """L_a(S_m o phi, S_f), over the pairs that count."""
    if not turn.counted:
        return turn.moving.image.new_zeros(())
    s_moving, s_fixed = turn.labels
    phi = Deformation(rows_of(turn.phi.displacement, turn.counted))
    return losses.warped_dice(phi.warp, s_moving, s_fixed)


def _seg_anatomy(turn: SegTurn) -> Tensor:
    """L_a(S_m o phi, S_f), over the pairs that are compared."""
    return turn.nothing + _mean_over_pairs(losses.soft_dice, turn.compared)


def _supervised(turn: SegTurn) -> Tensor:
    """L_sp(F_S(I), S), over the pairs with a labelled side."""

    def dice(scores: Tensor, truth: Tensor) -> Tensor:
        if truth.ndim < scores.ndim:
            return losses.softmax_dice(scores, truth)
        return losses.soft_dice(as_probabilities(scores), truth)

    return turn.nothing + _mean_over_pairs(dice, turn.taught)


def _cross_entropy(turn: SegTurn) -> Tensor:
    """L_ce(F_S(I), S), over the pairs with a labelled side."""
    return turn.nothing + _mean_over_pairs(losses.cross_entropy, turn.taught)


def _mean_over_pairs(
    loss: Callable[[Tensor, Tensor], Tensor], cases: Sequence[tuple[Tensor, Tensor]]
) -> Tensor | int:
    """The mean over the pairs of all ``cases``, where ``loss`` is that of a case; 0 of no pair."""
    pairs = sum(len(one) for one, _ in cases)
    return sum(loss(one, other) * (len(one) / pairs) for one, other in cases if len(one))


@dataclass(frozen=True)
class Term:
    """One named loss term, and in whose turn it counts."""

    weight: float  # unless an experiment says otherwise
    colour: str  # in every figure
    reg: Callable[[RegTurn], Tensor] | None = None
    seg: Callable[[SegTurn], Tensor] | None = None
    # of which pairs it is the mean; a batch that is computed in parts is weighed by their numbers
    reg_pairs: Callable[[Cases], list[int]] = Cases.every
    seg_pairs: Callable[[Cases], list[int]] = Cases.every
    # The experiment's parameter that weighs it; None: an entry of its ``term_weights``.
    parameter: str | None = None

    def __post_init__(self) -> None:
        if self.reg is None and self.seg is None:
            raise ValueError("a loss term counts in a turn: give it a function, reg or seg")


TERMS = {
    "similarity": Term(1.0, "#0072B2", reg=_similarity),
    # lambda_r belongs to a grid and a similarity, so sweep it.
    "regularity": Term(1.0, "#009E73", reg=_regularity, parameter="lambda_r"),
    "anatomy": Term(
        3.0,
        "#D55E00",
        reg=_reg_anatomy,
        seg=_seg_anatomy,
        reg_pairs=Cases.counted,
        seg_pairs=Cases.compared,
        parameter="lambda_a",
    ),
    "supervised": Term(
        3.0, "#CC79A7", seg=_supervised, seg_pairs=Cases.taught, parameter="lambda_sp"
    ),
    # Not in the paper: beside Dice, so that no structure is lost.
    "cross_entropy": Term(
        0.0, "#56B4E9", seg=_cross_entropy, seg_pairs=Cases.taught, parameter="lambda_ce"
    ),
}


def pairs_behind(turn: str, cases: Cases) -> dict[str, int]:
    """Of how many pairs each term of a ``turn`` of "seg" or "reg" is the mean.

    Of a batch in parts, a term of the whole is the sum of those of the parts, each times its share
    of these pairs; and so is the gradient.
    """
    pairs = {}
    for name, term in TERMS.items():
        if turn == "reg" and term.reg:
            pairs[name] = len(term.reg_pairs(cases))
        if turn == "seg" and term.seg:
            pairs[name] = len(term.seg_pairs(cases))
    return pairs


# of a history, beside its terms
COLUMNS: tuple[str, ...] = ("step", "turn", "rate", "seconds", "parts", "regime")
COLUMNS += tuple(f"{what}_{net}" for what in ("validation", "kept", "teacher") for net in TURNS)


class Weights(dict):
    """Weight of each named loss term: ``Weights(regularity=0.2)``; of the others, that in TERMS."""

    def __init__(self, **given: float) -> None:
        if taken := TERMS.keys() & {*COLUMNS}:
            raise ValueError(
                f"a loss term cannot be named {taken.pop()}, as a column of the history"
            )
        if unknown := given.keys() - TERMS.keys():
            raise UserError(
                f"there is no loss term {', '.join(sorted(unknown))}: "
                f"choose from {', '.join(TERMS)}"
            )
        super().__init__({name: term.weight for name, term in TERMS.items()} | given)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of ``terms``.

        >>> terms = {"similarity": torch.tensor(0.5), "regularity": torch.tensor(0.25)}
        >>> Weights(regularity=0.2).total(terms)  # 1 * 0.5 + 0.2 * 0.25
        tensor(0.5500)
        """
        return sum(self[name] * term for name, term in terms.items())


# --- the two turns --------------------------------------------------------------------------------


def reg_terms(
    reg_net: nn.Module,
    seg_net: nn.Module | None,
    moving: Batch,
    fixed: Batch,
    similarity: Callable[[Tensor, Tensor], Tensor] = losses.ncc,
    *,
    names: Collection[str] = TERMS.keys(),
) -> dict[str, Tensor]:
    """Loss terms of a registration turn: L_i(I_m o phi, I_f), L_r(phi), L_a(S_m o phi, S_f); of
    them, those in ``names``.

    A missing S is the guess of ``seg_net``, which is only consulted; without one, only pairs that
    an expert labelled on both sides have an anatomy term.
    """
    phi = register(reg_net, moving.image, fixed.image)
    turn = RegTurn(moving, fixed, phi, seg_net, similarity)
    return {name: term.reg(turn) for name, term in TERMS.items() if term.reg and name in names}


@torch.no_grad()
def _labels(seg_net: nn.Module | None, *sides: Batch) -> tuple[Tensor, ...]:
    """The labels of each side of the pairs, guessed where an expert's are missing; without a
    ``seg_net`` only pairs count that miss none.
    """
    if seg_net is None or all(all(side.known) for side in sides):
        return tuple(side.one_hot for side in sides)
    scores = _scores(seg_net, [rows_of(side.image, _unlabelled(side)) for side in sides])
    guesses = [as_probabilities(some) for some in scores]
    return tuple(_filled(side, guess) for side, guess in zip(sides, guesses, strict=True))


def _unlabelled(side: Batch) -> list[int]:
    return [row for row, known in enumerate(side.known) if not known]


def _filled(side: Batch, guess: Tensor) -> Tensor:
    """The labels of one side of pairs, or the ``guess`` for those of its scans that have none."""
    if all(side.known):
        return side.one_hot
    if not any(side.known):
        return guess
    whole = guess.new_zeros(len(side.known), *guess.shape[1:])
    for row, one in zip(_unlabelled(side), guess, strict=True):
        whole[row] = one
    return labels_or_guess(side.known, side.one_hot, whole)


def _scores(seg_net: nn.Module, *roles: Sequence[Tensor]) -> list[Tensor]:
    """F_S of the images (R, 1, I, J, K) that play each role: scores (R, C, I, J, K) of each tensor
    of images, in order.

    In one forward pass, which is faster than two; but batch normalisation that is learning would
    mix the statistics of the roles, and sees one at a time.
    """
    learning = any(isinstance(part, _BatchNorm) and part.training for part in seg_net.modules())
    together = [images for role in roles for images in role]
    passes = roles if learning else [together]
    found = []
    for tensors in passes:
        scores = seg_net(torch.cat(list(tensors)))
        found += scores.split([len(images) for images in tensors])
    return found


def seg_terms(
    seg_net: nn.Module,
    reg_net: nn.Module | None,
    moving: Batch,
    fixed: Batch,
    *,
    sampled_warps: bool = False,
    fourth_case: bool = False,
) -> dict[str, Tensor]:
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

    Without ``reg_net``, the supervised baseline: the anatomy term is 0. With ``sampled_warps``, the
    labelled moving scan of a mixed pair is seen as it is warped, image and labels alike:
    L_sp(F_S(I_m o phi), S_m o phi). ``fourth_case`` lets two guesses be compared, to show why they
    must not be.
    """
    cases = Cases.of(moving, fixed, reg_net is not None, fourth_case)
    if reg_net is not None and cases.compared():
        turn = _compared_turn(seg_net, reg_net, moving, fixed, cases, sampled_warps)
    else:
        labelled = moving[cases.taught()]
        scores = seg_net(labelled.image) if len(labelled.ids) else labelled.one_hot
        turn = SegTurn([(scores, labelled.labels)])
    return {name: term.seg(turn) for name, term in TERMS.items() if term.seg}


def _compared_turn(
    seg_net: nn.Module,
    reg_net: nn.Module,
    moving: Batch,
    fixed: Batch,
    cases: Cases,
    sampled_warps: bool,
) -> SegTurn:
    """A turn in which pairs are compared through phi."""
    both = moving[cases.with_labels(True, True)]  # the fixed side would teach nothing more
    # the pairs of which one side is labelled, the moving or the fixed one, or neither
    one = cases.with_labels(True, False)
    other = cases.with_labels(False, True)
    neither = cases.with_labels(False, False) if cases.fourth_case else []
    # m and f: the moving and the fixed scans of each case
    m_one, m_other, m_neither = moving[one], moving[other], moving[neither]
    f_one, f_other, f_neither = fixed[one], fixed[other], fixed[neither]

    with torch.no_grad():
        moving_images = torch.cat([m_one.image, m_other.image, m_neither.image])
        fixed_images = torch.cat([f_one.image, f_other.image, f_neither.image])
        phi = register(reg_net, moving_images, fixed_images)
    u_one, u_other, u_neither = phi.displacement.split([len(one), len(other), len(neither)])

    # The labelled moving scans as they are, or as they look when they lie like the fixed scans.
    warped_truth = _warp(u_one, m_one.one_hot)
    seen, truth = m_one.image, m_one.labels
    if sampled_warps:
        seen, truth = _warp(u_one, m_one.image), warped_truth

    # F_S of every scan that is taught or compared, a side at a time
    moving_roles = [both.image, seen, m_other.image, m_neither.image]
    fixed_roles = [f_one.image, f_other.image, f_neither.image]
    scores = _scores(seg_net, moving_roles, fixed_roles)
    of_both, of_m_one, of_m_other, of_m_neither = scores[:4]
    of_f_one, of_f_other, of_f_neither = scores[4:]

    return SegTurn(
        taught=[(of_both, both.labels), (of_m_one, truth), (of_f_other, f_other.labels)],
        compared=[
            (warped_truth, as_probabilities(of_f_one)),
            (_warp(u_other, as_probabilities(of_m_other)), f_other.labels),
            (_warp(u_neither, as_probabilities(of_m_neither)), as_probabilities(of_f_neither)),
        ],
        phi=phi,
    )


def _warp(u: Tensor, volume: Tensor) -> Tensor:
    """``volume`` warped by x + u(x); there may be none."""
    return Deformation(u).warp(volume) if len(volume) else volume
