"""Lesson 05, joint training: turns, where gradients stop, one turn, a slow teacher, a network that
stands still.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from ..losses import soft_dice
from . import Exercise, Mistake
from .lesson_02 import uneven_shape

# --- whose turn -----------------------------------------------------------------------------------


def _taken_and_planned(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Moments of a training with more turns for one network, among them those where the classic
    mistakes differ.
    """
    planned = torch.tensor([[100, 400]] * 8)
    planned[4:] = torch.tensor([300, 200])
    share = torch.rand(8, generator=generator) * 0.8
    taken = (share[:, None] * planned).round().long()
    behind = torch.tensor([0, 1] * 4)
    taken[torch.arange(8), behind] -= (0.1 * planned[torch.arange(8), behind]).long()
    taken = taken.clamp(min=0)
    taken[0] = 0
    return torch.cat([taken, torch.tensor([[0, 2]])]), torch.cat([planned, torch.tensor([[3, 12]])])


def _furthest_behind(taken: Tensor, planned: Tensor) -> Tensor:
    return ((taken + 0.5) / planned).argmin(1)


TURN = Exercise(
    "Whose turn is it?",
    _taken_and_planned,
    _furthest_behind,
    (
        "Which of the two has taken the smaller share of its turns?",
        "Divide the turns taken, plus a half, by the turns planned; the smaller share is next.",
        "((taken + 0.5) / planned).argmin(1)",
    ),
    {
        "fewest turns": Mistake(
            lambda taken, planned: taken.argmin(1),
            (
                "Both networks get as many turns, whatever was planned.",
                "A network that is to have four times as many turns is behind when it has only twice as many.",
                "Divide by planned.",
            ),
        ),
        "most left": Mistake(
            lambda taken, planned: (planned - taken).argmax(1),
            (
                "The network with more turns has its surplus first; only then do they alternate.",
                "What counts is the share that was taken, not the number of turns that are left.",
                "((taken + 0.5) / planned).argmin(1)",
            ),
        ),
        "furthest ahead": Mistake(
            lambda taken, planned: ((taken + 0.5) / planned).argmax(1),
            (
                "One network has all its turns before the other has any.",
                "You choose the one that is ahead.",
                "argmin",
            ),
        ),
        "without the half": Mistake(
            lambda taken, planned: (taken / planned).argmin(1),
            (
                "Some turns come in another order, the very first among them.",
                "Compare the middles of the next turns, not their beginnings: at first both begin at 0.",
                "(taken + 0.5) / planned",
            ),
        ),
        "a whole turn": Mistake(
            lambda taken, planned: ((taken + 1) / planned).argmin(1),
            (
                "The network with fewer turns is always a little late.",
                "Compare the middles of the next turns, not their ends.",
                "(taken + 0.5) / planned",
            ),
        ),
    },
    dims=(2,),
)

# --- where the gradient stops ---------------------------------------------------------------------


def _warped_and_scores(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    shape = (2, 3, *uneven_shape(dims))
    return torch.rand(shape, generator=generator).softmax(1), 2 * torch.randn(
        shape, generator=generator
    )


STOP = Exercise(
    "A guess that is only consulted",
    _warped_and_scores,
    lambda warped, scores: soft_dice(warped, scores.softmax(1).detach()),
    (
        "In a registration turn the loss may change the warped labels (through the deformation), and nothing else.",
        "Turn the scores into probabilities and cut them off from their gradient, then the soft Dice loss.",
        "soft_dice(warped, scores.softmax(1).detach())",
    ),
    {
        "the guess learns": Mistake(
            lambda warped, scores: soft_dice(warped, scores.softmax(1)),
            (
                "The value is right, but a gradient reaches the segmentation network in the other network's turn.",
                "Wherever both share an optimiser, the guess would move towards the warped labels: that is agreement, too.",
                ".detach() on the probabilities, or torch.no_grad() around the network",
            ),
        ),
        "nobody learns": Mistake(
            lambda warped, scores: soft_dice(warped.detach(), scores.softmax(1)),
            (
                "The gradient flows into the wrong side.",
                "The warped labels carry the deformation: they must keep their gradient. The guess must lose it.",
                "soft_dice(warped, scores.softmax(1).detach())",
            ),
        ),
        "scores as probabilities": Mistake(
            lambda warped, scores: soft_dice(warped, scores.detach()),
            (
                "The loss is far from anything between 0 and 1.",
                "Scores are any numbers; Dice wants probabilities.",
                "softmax over the structures, dimension 1",
            ),
        ),
        "no gradient at all": Mistake(
            lambda warped, scores: soft_dice(warped, scores.softmax(1)).detach(),
            (
                "The value is right, but nobody can learn from it.",
                "Only the guess is cut off. The warped labels must keep their gradient, or the deformation learns nothing.",
                "soft_dice(warped, scores.softmax(1).detach())",
            ),
        ),
        "softmax over the batch": Mistake(
            lambda warped, scores: soft_dice(warped, scores.softmax(0).detach()),
            (
                "The probabilities of a voxel do not sum to 1.",
                "Dimension 0 is the batch.",
                "softmax(1)",
            ),
        ),
        "the hard guess": Mistake(
            lambda warped, scores: soft_dice(
                warped, (scores == scores.amax(1, keepdim=True)).float()
            ),
            (
                "The value is near, but where the network is in doubt you are not.",
                "The most probable structure says nothing about how sure the network was; the paper compares probabilities.",
                "softmax(1) instead of argmax",
            ),
        ),
    },
    gradient=True,
)

# --- one turn -------------------------------------------------------------------------------------


def _agreement(seg: Tensor, reg: Tensor) -> Tensor:
    """A loss of two networks in which each one's gradient depends on the other."""
    return (seg * reg - 1).square().mean() + 0.1 * (seg - reg).square().mean()


def _two_networks(dims: int, generator: Generator) -> tuple[Tensor, Tensor, int, Callable]:
    turn = int(torch.randint(2, (), generator=generator))
    return (
        torch.randn(4, generator=generator),
        torch.randn(4, generator=generator),
        turn,
        _agreement,
    )


def _gradients(seg: Tensor, reg: Tensor, loss: Callable) -> tuple[Tensor, Tensor]:
    seg, reg = seg.clone().requires_grad_(), reg.clone().requires_grad_()
    return torch.autograd.grad(loss(seg, reg), (seg, reg))


def _stepped(steps: Callable) -> Callable:
    def alternate(seg: Tensor, reg: Tensor, turn: int, loss: Callable) -> Tensor:
        g_seg, g_reg = _gradients(seg, reg, loss)
        a, b = steps(turn)
        return torch.stack([seg - 0.1 * a * g_seg, reg - 0.1 * b * g_reg])

    return alternate


def _sequential(seg: Tensor, reg: Tensor, turn: int, loss: Callable) -> Tensor:
    seg = seg - 0.1 * _gradients(seg, reg, loss)[0]
    return torch.stack([seg, reg - 0.1 * _gradients(seg, reg, loss)[1]])


STEP = Exercise(
    "One turn",
    _two_networks,
    _stepped(lambda turn: (1 - turn, turn)),
    (
        "In turn 0 the segmentation network moves, in turn 1 the registration network; the other one stays as it is.",
        "Compute the gradient for the network whose turn it is, and subtract 0.1 times it from that one only.",
        "seg.requires_grad_(); grad, = torch.autograd.grad(loss(seg, reg), seg); torch.stack([seg - 0.1 * grad, reg])",
    ),
    {
        "both move": Mistake(
            _stepped(lambda turn: (1, 1)),
            (
                "Both networks have changed.",
                "Each would follow a partner that moves at the same time. In a turn one learns, the other is consulted.",
                "Change only the network whose turn it is.",
            ),
        ),
        "both, one after the other": Mistake(
            _sequential,
            (
                "Both networks have changed.",
                "That is two turns. One was asked for.",
                "Change only the network whose turn it is.",
            ),
        ),
        "the other one moves": Mistake(
            _stepped(lambda turn: (turn, 1 - turn)),
            (
                "The wrong network has changed.",
                "turn 0 is segmentation, turn 1 registration.",
                "Exchange the two branches.",
            ),
        ),
        "uphill": Mistake(
            _stepped(lambda turn: (turn - 1, -turn)),
            ("The loss rises.", "The gradient points uphill.", "Subtract it."),
        ),
    },
    dims=(2,),
)

# --- a slow teacher -------------------------------------------------------------------------------


def _weights(dims: int, generator: Generator) -> tuple[Tensor, Tensor, float]:
    return torch.randn(6, generator=generator), torch.randn(6, generator=generator), 0.9


AVERAGE = Exercise(
    "A slow teacher",
    _weights,
    lambda teacher, student, decay: decay * teacher + (1 - decay) * student,
    (
        "The teacher keeps most of what it is and takes a little of what the student has become.",
        "A weighted mean with the weights decay and 1 - decay.",
        "decay * teacher + (1 - decay) * student",
    ),
    {
        "exchanged": Mistake(
            lambda teacher, student, decay: (1 - decay) * teacher + decay * student,
            (
                "The teacher runs after the student.",
                "decay near 1 means a long memory.",
                "decay belongs to the teacher.",
            ),
        ),
        "not a mean": Mistake(
            lambda teacher, student, decay: decay * teacher + student,
            (
                "The weights grow with every turn.",
                "The two factors must sum to 1.",
                "(1 - decay) * student",
            ),
        ),
        "half and half": Mistake(
            lambda teacher, student, decay: (teacher + student) / 2,
            (
                "decay makes no difference.",
                "An ordinary mean forgets half of its past in every turn.",
                "decay and 1 - decay instead of a half each",
            ),
        ),
        "the student": Mistake(
            lambda teacher, student, decay: student,
            (
                "The teacher is the student.",
                "That is decay = 0: no memory.",
                "Keep decay times the old teacher.",
            ),
        ),
    },
    dims=(2,),
)

# --- a network that stands still ------------------------------------------------------------------


def _batch_norm_net() -> nn.Module:
    """A small network with batch normalisation that was trained on other images."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.LeakyReLU(0.1), nn.Conv2d(3, 2, 1)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, generator=generator)
    return net


def _seen_and_test(dims: int, generator: Generator) -> tuple[Callable, Tensor, Tensor]:
    shape = (2, 1, 8, 6)
    return (
        _batch_norm_net,
        2 + torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
    )


def _used(consulted: bool, afterwards: bool, learns: bool = False) -> Callable:
    """Consult in training or evaluation mode, then use in one."""

    def after_a_turn(make_net: Callable, seen: Tensor, test: Tensor) -> Tensor:
        net = make_net().train(consulted)
        guess = net(seen)
        if learns:
            guess.square().mean().backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter -= 0.1 * parameter.grad
        return net.train(afterwards)(test).detach()

    return after_a_turn


FROZEN = Exercise(
    "A network that stands still",
    _seen_and_test,
    _used(False, False),
    (
        "torch.no_grad() stops gradients. Is there anything in this network that changes without one?",
        "Batch normalisation keeps running means of what it sees, and updates them whenever the network is in training "
        "mode, gradient or not.",
        "net.eval() before it is consulted",
    ),
    {
        "running means move": Mistake(
            _used(True, False),
            (
                "After a turn in which it was only consulted, the network answers differently.",
                "Its batch normalisation was in training mode and has learnt the mean brightness of the consulted images.",
                "net.eval() before it is consulted, not only at the end",
            ),
        ),
        "training mode at the end": Mistake(
            _used(False, True),
            (
                "The answer for one image depends on the others of its batch.",
                "In training mode batch normalisation uses the batch at hand.",
                "net.eval() for the test images, too",
            ),
        ),
        "it learns": Mistake(
            _used(False, False, learns=True),
            (
                "The weights themselves have changed.",
                "A consulted network takes no step.",
                "No backward(), no optimiser for it in this turn",
            ),
        ),
    },
    dims=(2,),
)

EXERCISES = {"turn": TURN, "stop": STOP, "step": STEP, "average": AVERAGE, "frozen": FROZEN}
