"""The named terms of the two networks' losses.

Registration minimises    similarity + lambda_r regularity + lambda_a anatomy
Segmentation minimises    lambda_a anatomy + lambda_sp supervised, by case

and each network supplies the labels that the other lacks (Xu & Niethammer, MICCAI 2019).

To add a term, write a function of the turn and add a row to ``TERMS``: it is trained with, logged,
plotted and drawn in the live view, since everything that lists terms reads this table. Its weight
is that of the row unless an experiment gives another, ``term_weights={name: 0.1}``. A term of
segmentation that looks at phi returns 0 where ``turn.phi`` is None, as the baseline has none (see
``_seg_anatomy``). To add a similarity, name it in ``SIMILARITIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import losses
from .data import Batch
from .errors import UserError
from .models import probabilities, register
from .warp import Deformation

SIMILARITIES = {"ncc": losses.ncc, "lncc": losses.lncc, "mse": losses.mse}


def labels_or_guess(batch: Batch, guess: Tensor) -> Tensor:
    """The expert's labels where they exist, the network's own guess where they do not."""
    return torch.where(_per_pair(batch.known, guess), batch.one_hot, guess)


# --- what a turn holds, and the terms that look at it ---------------------------------------------


@dataclass(frozen=True)
class RegTurn:
    """What a term of registration may look at; labels and guesses are (B, C, I, J, K)."""

    moving: Batch
    fixed: Batch
    phi: Deformation  # what the registration network means: gradients flow through it
    s_moving: Tensor  # S_m: the expert's labels, or the segmentation network's guess
    s_fixed: Tensor  # S_f
    counted: Tensor  # (B,) bool: pairs with an S on both sides
    similarity: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SegTurn:
    """What a term of segmentation may look at; labels and guesses are (B, C, I, J, K)."""

    guess: Tensor  # F_S of the labelled side of each pair
    truth: Tensor  # the expert's labels of that side
    known: Tensor  # (B,) bool: pairs that have such a side
    compared: Tensor  # (B,) bool: pairs whose two sides are compared through phi
    # None where no pair of the batch is compared:
    phi: Deformation | None = None
    s_moving: Tensor | None = None  # the expert's labels where they exist, else F_S(I_m)
    s_fixed: Tensor | None = None


def _similarity(turn: RegTurn) -> Tensor:
    """L_i(I_m o phi, I_f)."""
    return turn.similarity(turn.phi.warp(turn.moving.image), turn.fixed.image)


def _regularity(turn: RegTurn) -> Tensor:
    """L_r(phi)."""
    return losses.bending_energy(turn.phi.displacement)


def _reg_anatomy(turn: RegTurn) -> Tensor:
    """L_a(S_m o phi, S_f), over the pairs that count."""
    return _warped_dice(turn.phi, turn.s_moving, turn.s_fixed, turn.counted)


def _seg_anatomy(turn: SegTurn) -> Tensor:
    """L_a(S_m o phi, S_f), over the pairs that are compared."""
    if turn.phi is None:
        return turn.guess.new_zeros(())
    return _warped_dice(turn.phi, turn.s_moving, turn.s_fixed, turn.compared)


def _supervised(turn: SegTurn) -> Tensor:
    """L_sp(F_S(I), S), over the pairs with a labelled side."""
    return _mean_dice(turn.guess, turn.truth, turn.known)


@dataclass(frozen=True)
class Term:
    """One named loss term, and in whose turn it counts."""

    weight: float  # unless an experiment says otherwise
    colour: str  # in every figure
    reg: Callable[[RegTurn], Tensor] | None = None
    seg: Callable[[SegTurn], Tensor] | None = None
    # The experiment's parameter that weighs it; None: an entry of its ``term_weights``.
    parameter: str | None = None

    def __post_init__(self) -> None:
        if self.reg is None and self.seg is None:
            raise ValueError("a loss term counts in a turn: give it a function, reg or seg")


TERMS = {
    "similarity": Term(1.0, "#0072B2", reg=_similarity),
    # lambda_r belongs to a grid and a similarity, so sweep it.
    "regularity": Term(1.0, "#009E73", reg=_regularity, parameter="lambda_r"),
    "anatomy": Term(3.0, "#D55E00", reg=_reg_anatomy, seg=_seg_anatomy, parameter="lambda_a"),
    "supervised": Term(3.0, "#CC79A7", seg=_supervised, parameter="lambda_sp"),
}


COLUMNS = ("step", "turn", "rate", "seconds", "regime")  # of a history, beside its terms


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
        """The weighted sum of ``terms``."""
        return sum(self[name] * term for name, term in terms.items())


# --- the two turns --------------------------------------------------------------------------------


def reg_terms(
    reg_net: nn.Module,
    seg_net: nn.Module | None,
    moving: Batch,
    fixed: Batch,
    similarity: Callable[[Tensor, Tensor], Tensor] = losses.ncc,
) -> dict[str, Tensor]:
    """Loss terms of a registration turn: L_i(I_m o phi, I_f), L_r(phi), L_a(S_m o phi, S_f).

    A missing S is the guess of ``seg_net``, which is only consulted; without one, only pairs that
    an expert labelled on both sides have an anatomy term.
    """
    phi = register(reg_net, moving.image, fixed.image)
    if seg_net is None:
        counted = moving.known & fixed.known
        s_moving, s_fixed = moving.one_hot, fixed.one_hot
    else:
        counted = torch.ones_like(moving.known)
        s_moving, s_fixed = _consulted(seg_net, moving), _consulted(seg_net, fixed)
    turn = RegTurn(moving, fixed, phi, s_moving, s_fixed, counted, similarity)
    return {name: term.reg(turn) for name, term in TERMS.items() if term.reg}


@torch.no_grad()
def _consulted(seg_net: nn.Module, batch: Batch) -> Tensor:
    """The labels of ``batch``, guessed where an expert's are missing; nobody is asked in vain."""
    if batch.known.all():
        return batch.one_hot
    return labels_or_guess(batch, probabilities(seg_net, batch.image))


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
    nobody = torch.zeros_like(moving.known)
    mixed = nobody if reg_net is None else moving.known ^ fixed.known
    compared = mixed
    if fourth_case and reg_net is not None:
        compared = mixed | ~(moving.known | fixed.known)
    if compared.any():
        turn = _compared_turn(seg_net, reg_net, moving, fixed, (mixed, compared), sampled_warps)
    else:
        guess = probabilities(seg_net, moving.image)
        turn = SegTurn(guess, moving.one_hot, moving.known, nobody)
    return {name: term.seg(turn) for name, term in TERMS.items() if term.seg}


def _compared_turn(
    seg_net: nn.Module,
    reg_net: nn.Module,
    moving: Batch,
    fixed: Batch,
    pairs: tuple[Tensor, Tensor],
    sampled_warps: bool,
) -> SegTurn:
    """A turn in which both sides are segmented; ``pairs``: (B,) bool, those of one label, those
    compared.
    """
    mixed, compared = pairs
    with torch.no_grad():
        phi = register(reg_net, moving.image, fixed.image)

    # The labelled moving scan as it is, or as it looks when it lies like the fixed scan.
    image, truth = moving.image, moving.one_hot
    if sampled_warps:
        warped = _per_pair(moving.known & mixed, image)
        image = torch.where(warped, phi.warp(image), image)
        truth = torch.where(warped, phi.warp(truth), truth)
    p_moving, p_fixed = probabilities(seg_net, image), probabilities(seg_net, fixed.image)

    # Of each pair the side that an expert labelled; of two, the moving one.
    side = _per_pair(moving.known, p_moving)
    return SegTurn(
        guess=torch.where(side, p_moving, p_fixed),
        truth=torch.where(side, truth, fixed.one_hot),
        known=moving.known | mixed,
        compared=compared,
        phi=phi,
        s_moving=labels_or_guess(moving, p_moving),
        s_fixed=labels_or_guess(fixed, p_fixed),
    )


def _per_pair(flags: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to choose between tensors (B, C, I, J, K)."""
    return flags.view(-1, *[1] * (like.ndim - 1))


def _warped_dice(phi: Deformation, s_moving: Tensor, s_fixed: Tensor, pairs: Tensor) -> Tensor:
    """1 - Dice of S_m o phi and S_f, a mean over ``pairs`` (B,); they are warped linearly."""
    if not pairs.any():
        return phi.displacement.new_zeros(())
    return _mean_dice(phi.warp(s_moving), s_fixed, pairs)


def _mean_dice(p: Tensor, q: Tensor, counted: Tensor) -> Tensor:
    if not counted.any():
        return p.new_zeros(())
    return losses.soft_dice(p[counted], q[counted])
