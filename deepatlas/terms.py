"""The method: what the two networks mean, and the named terms of their losses.

Registration minimises    similarity + lambda_r regularity + lambda_a anatomy
Segmentation minimises    lambda_a anatomy + lambda_sp supervised, by case

and each network supplies the labels that the other lacks (Xu & Niethammer, MICCAI 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import losses
from .data import Batch, Scan
from .warp import Deformation

SIMILARITIES = {"ncc": losses.ncc, "lncc": losses.lncc, "mse": losses.mse}

# --- what the networks mean -----------------------------------------------------------------------


def register(reg_net: nn.Module, moving: Tensor, fixed: Tensor) -> Deformation:
    """The deformation a registration network means: x + u(x), or exp(v) of one whose output is a
    velocity.

    One with ``passes`` looks again at the pair as warped so far, and its deformations are composed.
    """
    phi = None
    for _ in range(getattr(reg_net, "passes", 1)):
        output = reg_net(moving if phi is None else phi.warp(moving), fixed).float()
        update = (
            Deformation.exp(output) if getattr(reg_net, "velocity", False) else Deformation(output)
        )
        phi = update if phi is None else phi @ update
    return phi


def probabilities(seg_net: nn.Module, image: Tensor) -> Tensor:
    """F_S(I): (B, 1, I, J, K) -> (B, C, I, J, K), positive, summing to 1 over the structures."""
    return seg_net(image).float().softmax(1)


def labels_or_guess(batch: Batch, guess: Tensor) -> Tensor:
    """The expert's labels where they exist, the network's own guess where they do not."""
    return torch.where(_per_pair(batch.known, guess), batch.one_hot, guess)


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


# --- the loss terms -------------------------------------------------------------------------------


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
        pairs, s_moving, s_fixed = moving.known & fixed.known, moving.one_hot, fixed.one_hot
    else:
        with torch.no_grad():
            pairs = torch.ones_like(moving.known)
            s_moving, s_fixed = (
                b.one_hot if b.known.all() else labels_or_guess(b, probabilities(seg_net, b.image))
                for b in (moving, fixed)
            )
    return {
        "similarity": similarity(phi.warp(moving.image), fixed.image),
        "regularity": losses.bending_energy(phi.displacement),
        "anatomy": _anatomy(phi, s_moving, s_fixed, pairs),
    }


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
    mixed = moving.known ^ fixed.known if reg_net is not None else torch.zeros_like(moving.known)
    taught = mixed | ~(moving.known | fixed.known) if fourth_case and reg_net is not None else mixed
    if not taught.any():
        guess = probabilities(seg_net, moving.image)
        return {
            "anatomy": guess.new_zeros(()),
            "supervised": _mean_dice(guess, moving.one_hot, moving.known),
        }
    with torch.no_grad():
        phi = register(reg_net, moving.image, fixed.image)
    image, truth = moving.image, moving.one_hot
    if sampled_warps:
        warped = _per_pair(moving.known & mixed, image)
        image, truth = (
            torch.where(warped, phi.warp(image), image),
            torch.where(warped, phi.warp(truth), truth),
        )
    p_moving, p_fixed = probabilities(seg_net, image), probabilities(seg_net, fixed.image)
    anatomy = _anatomy(
        phi, labels_or_guess(moving, p_moving), labels_or_guess(fixed, p_fixed), taught
    )
    side = _per_pair(moving.known, p_moving)
    guess, truth = torch.where(side, p_moving, p_fixed), torch.where(side, truth, fixed.one_hot)
    return {"anatomy": anatomy, "supervised": _mean_dice(guess, truth, moving.known | mixed)}


def _per_pair(flags: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to choose between tensors (B, C, I, J, K)."""
    return flags.view(-1, *[1] * (like.ndim - 1))


def _anatomy(phi: Deformation, s_moving: Tensor, s_fixed: Tensor, pairs: Tensor) -> Tensor:
    """L_a(S_m o phi, S_f), a mean over the ``pairs`` (B,) that count; probabilities are warped
    linearly.
    """
    return (
        _mean_dice(phi.warp(s_moving), s_fixed, pairs)
        if pairs.any()
        else phi.displacement.new_zeros(())
    )


def _mean_dice(p: Tensor, q: Tensor, counted: Tensor) -> Tensor:
    return losses.soft_dice(p[counted], q[counted]) if counted.any() else p.new_zeros(())
