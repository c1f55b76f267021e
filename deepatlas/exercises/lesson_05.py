"""Lesson 05, joint training: whose turn, where gradients stop, a few turns, a slow teacher, a
network that stands still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from ..losses import soft_dice
from . import Exercise
from .lesson_02 import uneven_shape

# --- whose turn -----------------------------------------------------------------------------------


def _taken_and_planned(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Moments (moments, 2) of a training with more turns for one network, among them those where
    the classic mistakes differ.
    """
    planned = torch.tensor([[100, 400]] * 4 + [[300, 200]] * 4)
    share = torch.rand(8, 1, generator=generator) * 0.8
    taken = (share * planned).round().long()

    # One network is clearly behind, in turn the first and the second.
    moments, behind = torch.arange(8), torch.tensor([0, 1] * 4)
    taken[moments, behind] -= (0.1 * planned[moments, behind]).long()
    taken = taken.clamp(min=0)

    # The very beginning, and a moment where the half of a turn decides.
    taken[0] = 0
    taken = torch.cat([taken, torch.tensor([[0, 2]])])
    planned = torch.cat([planned, torch.tensor([[3, 12]])])
    order = torch.randperm(len(planned), generator=generator)  # or the answer were always the same
    return taken[order], planned[order]


def _furthest_behind(taken: Tensor, planned: Tensor) -> Tensor:
    return ((taken + 0.5) / planned).argmin(1)


TURN = Exercise(
    "Whose turn is it?",
    arguments=_taken_and_planned,
    right=_furthest_behind,
    hints=(
        "Which of the two has taken the smaller share of its turns?",
        "Divide the turns taken, plus a half, by the turns planned; the smaller share is next.",
        "((taken + 0.5) / planned).argmin(1)",
    ),
    dims=(2,),
)


@TURN.mistake(
    "fewest turns",
    symptom="Both networks get as many turns, whatever was planned.",
    idea="A network that is to have four times as many turns is behind when it has only twice as "
    "many.",
    line="Divide by planned.",
)
def _fewest_turns(taken, planned):
    return taken.argmin(1)


@TURN.mistake(
    "most left",
    symptom="The network with more turns has its surplus first; only then do they alternate.",
    idea="What counts is the share that was taken, not the number of turns that are left.",
    line="((taken + 0.5) / planned).argmin(1)",
)
def _most_left(taken, planned):
    return (planned - taken).argmax(1)


@TURN.mistake(
    "furthest ahead",
    symptom="One network has all its turns before the other has any.",
    idea="You choose the one that is ahead.",
    line="argmin",
)
def _furthest_ahead(taken, planned):
    return ((taken + 0.5) / planned).argmax(1)


@TURN.mistake(
    "without the half",
    symptom="Some turns come in another order, the very first among them.",
    idea="Compare the middles of the next turns, not their beginnings: at first both begin at 0.",
    line="(taken + 0.5) / planned",
)
def _without_the_half(taken, planned):
    return (taken / planned).argmin(1)


@TURN.mistake(
    "a whole turn",
    symptom="The network with fewer turns is always a little late.",
    idea="Compare the middles of the next turns, not their ends.",
    line="(taken + 0.5) / planned",
)
def _a_whole_turn(taken, planned):
    return ((taken + 1) / planned).argmin(1)


# --- where the gradient stops ---------------------------------------------------------------------


def _warped_and_scores(dims: int, generator: Generator) -> tuple[Tensor, Tensor]:
    shape = (2, 3, *uneven_shape(dims))
    warped = torch.rand(shape, generator=generator).softmax(1)
    scores = 2 * torch.randn(shape, generator=generator)
    return warped, scores


def _consulted(warped: Tensor, scores: Tensor) -> Tensor:
    return soft_dice(warped, scores.softmax(1).detach())


STOP = Exercise(
    "A guess that is only consulted",
    arguments=_warped_and_scores,
    right=_consulted,
    hints=(
        "In a registration turn the loss may change the warped labels (through the deformation), "
        "and nothing else.",
        "Turn the scores into probabilities and cut them off from their gradient, then the soft "
        "Dice loss.",
        "soft_dice(warped, scores.softmax(1).detach())",
    ),
    gradient=True,
)


@STOP.mistake(
    "the guess learns",
    symptom="The value is right, but a gradient reaches the segmentation network in the other "
    "network's turn.",
    idea="Wherever both share an optimiser, the guess would move towards the warped labels: that "
    "is agreement, too.",
    line=".detach() on the probabilities, or torch.no_grad() around the network",
)
def _the_guess_learns(warped, scores):
    return soft_dice(warped, scores.softmax(1))


@STOP.mistake(
    "nobody learns",
    symptom="The gradient flows into the wrong side.",
    idea="The warped labels carry the deformation: they must keep their gradient. The guess must "
    "lose it.",
    line="soft_dice(warped, scores.softmax(1).detach())",
)
def _nobody_learns(warped, scores):
    return soft_dice(warped.detach(), scores.softmax(1))


@STOP.mistake(
    "scores as probabilities",
    symptom="The loss is far from anything between 0 and 1.",
    idea="Scores are any numbers; Dice wants probabilities.",
    line="softmax over the structures, dimension 1",
)
def _scores_as_probabilities(warped, scores):
    return soft_dice(warped, scores.detach())


@STOP.mistake(
    "no gradient at all",
    symptom="The value is right, but nobody can learn from it.",
    idea="Only the guess is cut off. The warped labels must keep their gradient, or the "
    "deformation learns nothing.",
    line="soft_dice(warped, scores.softmax(1).detach())",
)
def _no_gradient_at_all(warped, scores):
    return soft_dice(warped, scores.softmax(1)).detach()


@STOP.mistake(
    "softmax over the batch",
    symptom="The probabilities of a voxel do not sum to 1.",
    idea="Dimension 0 is the batch.",
    line="softmax(1)",
)
def _softmax_over_the_batch(warped, scores):
    return soft_dice(warped, scores.softmax(0).detach())


@STOP.mistake(
    "the hard guess",
    symptom="The value is near, but where the network is in doubt you are not.",
    idea="The most probable structure says nothing about how sure the network was; the paper "
    "compares probabilities.",
    line="softmax(1) instead of argmax",
)
def _the_hard_guess(warped, scores):
    most_probable = scores == scores.amax(1, keepdim=True)
    return soft_dice(warped, most_probable.float())


# --- a few turns ----------------------------------------------------------------------------------


def _agreement(seg: Tensor, reg: Tensor) -> Tensor:
    """A loss of two networks in which each one's gradient depends on the other."""
    return (seg * reg - 1).square().mean() + 0.1 * (seg - reg).square().mean()


def _two_networks(dims: int, generator: Generator) -> tuple[Tensor, Tensor, tuple, Callable]:
    """Weights of two networks, and turns in which each learns more than once."""
    first = int(torch.randint(2, (), generator=generator))
    turns = (first, 1 - first, 1 - first, first, first)
    seg, reg = 2 * torch.rand(2, 4, generator=generator) - 1
    return seg, reg, turns, _agreement


def _gradients(nets: Tensor, loss: Callable) -> Tensor:
    """Of both networks (2, weights), stacked as they are."""
    nets = nets.clone().requires_grad_()
    return torch.autograd.grad(loss(*nets), nets)[0]


def _moved(nets: Tensor, gradients: Tensor, turn: int, rate: float = 0.1) -> Tensor:
    """Both networks (2, weights) after a step of the one whose ``turn`` it is."""
    step = torch.zeros_like(nets)
    step[turn] = rate * gradients[turn]
    return nets - step


def _in_turns(seg: Tensor, reg: Tensor, turns: Sequence[int], loss: Callable) -> Tensor:
    nets = torch.stack([seg, reg])
    for turn in turns:
        nets = _moved(nets, _gradients(nets, loss), turn)
    return nets


STEP = Exercise(
    "A few turns",
    arguments=_two_networks,
    right=_in_turns,
    hints=(
        "Two turns by hand: in the first one network moves. What does the second turn find, and "
        "what does it leave as it is?",
        "A loop over the turns. In each, compute the gradient of the loss of the two networks as "
        "they are by now, and subtract 0.1 times it from the one whose turn it is.",
        "both = [seg, reg]; in each turn learner = both[turn].clone().requires_grad_(), which "
        "stands in for both[turn] in loss(*both); grad, = torch.autograd.grad(..., learner)",
    ),
    dims=(2,),
)


@STEP.mistake(
    "both move",
    symptom="In each turn both networks have changed.",
    idea="Each would follow a partner that moves at the same time. In a turn one learns, the "
    "other is consulted.",
    line="Change only both[turn].",
)
def _both_move(seg, reg, turns, loss):
    nets = torch.stack([seg, reg])
    for _ in turns:
        nets = nets - 0.1 * _gradients(nets, loss)
    return nets


@STEP.mistake(
    "a partner from before",
    symptom="The first turn is right. Later ones are taught by a network that is out of date.",
    idea="You consult the partner as it was at the beginning, which is Semi-DeepAtlas with two "
    "pupils. Here each is taught by what the other has become.",
    line="loss(*both), with what earlier turns have made of both",
)
def _a_partner_from_before(seg, reg, turns, loss):
    nets = torch.stack([seg, reg])
    for turn in turns:
        consulted = torch.stack([seg, reg])
        consulted[turn] = nets[turn]
        nets = _moved(nets, _gradients(consulted, loss), turn)
    return nets


@STEP.mistake(
    "gradients from before",
    symptom="The first turn is right, and then every step of a network is the same.",
    idea="The loss has another slope wherever the networks have moved: a gradient is computed "
    "anew in each turn.",
    line="torch.autograd.grad inside the loop",
)
def _gradients_from_before(seg, reg, turns, loss):
    nets = torch.stack([seg, reg])
    gradients = _gradients(nets, loss)
    for turn in turns:
        nets = _moved(nets, gradients, turn)
    return nets


@STEP.mistake(
    "the other one moves",
    symptom="In each turn the wrong network has changed.",
    idea="turn 0 is segmentation, turn 1 registration.",
    line="both[turn], where both is [seg, reg]",
)
def _the_other_one_moves(seg, reg, turns, loss):
    return _in_turns(seg, reg, [1 - turn for turn in turns], loss)


@STEP.mistake(
    "one turn only",
    symptom="Only the first turn has left a trace.",
    idea="Several turns were asked for: what one leaves is where the next begins.",
    line="for turn in turns, and return after the loop",
)
def _one_turn_only(seg, reg, turns, loss):
    return _in_turns(seg, reg, turns[:1], loss)


@STEP.mistake(
    "one after the other",
    symptom="As many steps of each network, but in another order.",
    idea="First all of the one and then all of the other: so long the first one is taught by a "
    "partner that does not move.",
    line="for turn in turns, in the order given",
)
def _one_after_the_other(seg, reg, turns, loss):
    return _in_turns(seg, reg, sorted(turns), loss)


@STEP.mistake(
    "uphill",
    symptom="The loss rises.",
    idea="The gradient points uphill.",
    line="Subtract it.",
)
def _uphill(seg, reg, turns, loss):
    nets = torch.stack([seg, reg])
    for turn in turns:
        nets = _moved(nets, _gradients(nets, loss), turn, rate=-0.1)
    return nets


# --- a slow teacher -------------------------------------------------------------------------------


def _after_each_turn(dims: int, generator: Generator) -> tuple[Tensor, float]:
    """Weights of a student (turns, weights) that wanders, and how slowly the teacher follows."""
    students = 1 + torch.randn(6, 5, generator=generator)
    decay = 0.6 + 0.3 * torch.rand((), generator=generator)
    return students, float(decay)


def _followed(students: Tensor, decay: float, share: float) -> Tensor:
    """decay times what the teacher was, and share times the student, turn by turn."""
    teacher = students[0]
    for student in students[1:]:
        teacher = decay * teacher + share * student
    return teacher


def _slow_teacher(students: Tensor, decay: float) -> Tensor:
    return _followed(students, decay, 1 - decay)


AVERAGE = Exercise(
    "A slow teacher",
    arguments=_after_each_turn,
    right=_slow_teacher,
    hints=(
        "The teacher begins where the student does. After each turn it keeps most of what it is "
        "and takes a little of what the student has become.",
        "A loop over the turns but the first; in it a weighted mean with the weights decay and "
        "1 - decay.",
        "teacher = students[0]; for student in students[1:]: teacher = decay * teacher + "
        "(1 - decay) * student",
    ),
    dims=(2,),
)


@AVERAGE.mistake(
    "exchanged",
    symptom="The teacher runs after the student.",
    idea="decay near 1 means a long memory.",
    line="decay belongs to the teacher.",
)
def _exchanged(students, decay):
    return _followed(students, 1 - decay, decay)


@AVERAGE.mistake(
    "not a mean",
    symptom="The weights grow with every turn.",
    idea="The two factors must sum to 1.",
    line="(1 - decay) * student",
)
def _not_a_mean(students, decay):
    return _followed(students, decay, 1.0)


@AVERAGE.mistake(
    "half and half",
    symptom="decay makes no difference, and the last turn counts half.",
    idea="An ordinary mean of two forgets half of its past in every turn.",
    line="decay and 1 - decay instead of a half each",
)
def _half_and_half(students, decay):
    return _followed(students, 0.5, 0.5)


@AVERAGE.mistake(
    "all turns alike",
    symptom="decay makes no difference, and the first turn counts as much as the last.",
    idea="A running average forgets: the weight of a turn falls by the factor decay with each "
    "turn that follows.",
    line="teacher = decay * teacher + (1 - decay) * student, turn by turn",
)
def _all_turns_alike(students, decay):
    return students.mean(0)


@AVERAGE.mistake(
    "the student",
    symptom="The teacher is the student.",
    idea="That is decay = 0: no memory.",
    line="Keep decay times the old teacher.",
)
def _the_student(students, decay):
    return students[-1]


@AVERAGE.mistake(
    "one step only",
    symptom="The turns between the first and the last have left no trace.",
    idea="The teacher moves after every turn, not once at the end.",
    line="for student in students[1:]",
)
def _one_step_only(students, decay):
    return decay * students[0] + (1 - decay) * students[-1]


@AVERAGE.mistake(
    "from zero",
    symptom="Your teacher is smaller than every student.",
    idea="It does not begin with nothing, but as a copy of the student.",
    line="teacher = students[0], and the loop over students[1:]",
)
def _from_zero(students, decay):
    return _followed(torch.cat([torch.zeros_like(students[:1]), students]), decay, 1 - decay)


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
    seen = 2 + torch.randn(shape, generator=generator)
    test = torch.randn(shape, generator=generator)
    return _batch_norm_net, seen, test


def _descend(net: nn.Module, loss: Tensor) -> None:
    """One step of gradient descent on the weights of ``net``, in place."""
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(0.1 * gradient)


def _stands_still(make_net: Callable, seen: Tensor, test: Tensor) -> Tensor:
    net = make_net().eval()
    return torch.stack([net(seen), net(test)]).detach()


FROZEN = Exercise(
    "A network that stands still",
    arguments=_seen_and_test,
    right=_stands_still,
    hints=(
        "torch.no_grad() stops gradients. Is there anything in this network that changes without "
        "one, and anything that depends on the other images of a batch?",
        "Batch normalisation keeps running means of what it sees, and updates them whenever the "
        "network is in training mode, gradient or not.",
        "net.eval() before it is consulted",
    ),
    dims=(2,),
)


@FROZEN.mistake(
    "running means move",
    symptom="After a turn in which it was only consulted, the network answers differently.",
    idea="Its batch normalisation was in training mode and has learnt the mean brightness of the "
    "consulted images.",
    line="net.eval() before it is consulted, not only at the end",
)
def _running_means_move(make_net, seen, test):
    net = make_net().train()
    guess = net(seen)
    return torch.stack([guess, net.eval()(test)]).detach()


@FROZEN.mistake(
    "never consulted",
    symptom="One answer came back where two were wanted: the other network never got its guess.",
    idea="A network that is not asked stands still, too, but teaches nobody. Ask it, and leave it "
    "as it was.",
    line="torch.stack([guess, answer]), both of the network in evaluation mode",
)
def _never_consulted(make_net, seen, test):
    return make_net().eval()(test).detach()


@FROZEN.mistake(
    "a copy is consulted",
    symptom="The answer is right, the guess is not.",
    idea="A copy protects the running means, but in training mode a guess still depends on the "
    "other images of its batch.",
    line="net.eval() before it is consulted; then no copy is needed",
)
def _a_copy_is_consulted(make_net, seen, test):
    guess = make_net().train()(seen)
    return torch.stack([guess, make_net().eval()(test)]).detach()


@FROZEN.mistake(
    "training mode at the end",
    symptom="The guess is right, but the answer for one image depends on the others of its batch.",
    idea="In training mode batch normalisation uses the batch at hand.",
    line="net.eval() for the test images, too",
)
def _training_mode_at_the_end(make_net, seen, test):
    net = make_net().eval()
    guess = net(seen)
    return torch.stack([guess, net.train()(test)]).detach()


@FROZEN.mistake(
    "training mode throughout",
    symptom="Guess and answer both depend on the other images of their batch.",
    idea="A new network is in training mode until somebody says otherwise, and no_grad() does not.",
    line="net.eval() before anything is asked",
)
def _training_mode_throughout(make_net, seen, test):
    net = make_net().train()
    return torch.stack([net(seen), net(test)]).detach()


@FROZEN.mistake(
    "it learns",
    symptom="The weights themselves have changed.",
    idea="A consulted network takes no step.",
    line="No backward(), no optimiser for it in this turn",
)
def _it_learns(make_net, seen, test):
    net = make_net().eval()
    guess = net(seen)
    _descend(net, guess.square().mean())
    return torch.stack([guess, net(test)]).detach()


EXERCISES = {"turn": TURN, "stop": STOP, "step": STEP, "average": AVERAGE, "frozen": FROZEN}
