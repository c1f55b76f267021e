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


def _moments(dims: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Moments (moments, 3) of trainings of three networks: turns taken, turns planned, and when
    each joins. Wherever it is hard to say who is next, nobody asks.
    """
    shape = (400, 3)
    planned = torch.randint(2, 13, shape, generator=generator)
    joins = torch.randint(0, 7, shape, generator=generator) / 10
    taken = (planned * 1.2 * torch.rand(shape, generator=generator)).long().clamp(max=planned)
    taken[:40] = 0  # the very beginning
    earliest, second = _middles(taken, planned, joins).sort(1).values[:, :2].unbind(1)
    clear = (second - earliest > 0.01) & (taken < planned).any(1)
    order = torch.randperm(int(clear.sum()), generator=generator)[:100]
    return taken[clear][order], planned[clear][order], joins[clear][order]


def _middles(taken: Tensor, planned: Tensor, joins: Tensor, half: float = 0.5) -> Tensor:
    """Where the next turn of each network lies, on a line from 0 to 1: its middle, or its
    beginning, or its end, where ``half`` is 0, or 1.
    """
    return joins + (1 - joins) * (taken + half) / planned


def _next_turn(taken: Tensor, planned: Tensor, joins: Tensor) -> Tensor:
    return _middles(taken, planned, joins).argmin(1)


TURN = Exercise(
    "Whose turn is it?",
    arguments=_moments,
    right=_next_turn,
    hints=(
        "Draw the line of one network that joins at .4 and is to have three turns. How long is a "
        "turn? Where does the first one begin, and where is its middle? Where is that of the "
        "second?",
        "A network that joins at j has 1 - j of the line, so a turn is (1 - j) / planned long. Its "
        "next one begins after those that it has taken, counted from j.",
        "(joins + (1 - joins) * (taken + 0.5) / planned).argmin(1)",
    ),
    dims=(2,),
)


@TURN.mistake(
    "fewest turns",
    symptom="All networks get as many turns, whatever was planned.",
    idea="A network that is to have four times as many turns is behind when it has only twice as "
    "many.",
    line="Divide by planned.",
)
def _fewest_turns(taken, planned, joins):
    return taken.argmin(1)


@TURN.mistake(
    "most left",
    symptom="The network with most turns has its surplus first; only then do they alternate.",
    idea="What counts is where the next turn lies on the line, not how many are left.",
    line="(taken + 0.5) / planned, squeezed into what is left of the line from joins to 1",
)
def _most_left(taken, planned, joins):
    return (planned - taken).argmax(1)


@TURN.mistake(
    "furthest ahead",
    symptom="One network has all its turns before the others have any.",
    idea="You choose the one that is ahead.",
    line="argmin",
)
def _furthest_ahead(taken, planned, joins):
    return _middles(taken, planned, joins).argmax(1)


@TURN.mistake(
    "without the half",
    symptom="Some turns come in another order, the very first among them.",
    idea="Compare the middles of the next turns, not their beginnings: of those that join at 0 all "
    "begin at 0.",
    line="(taken + 0.5) / planned",
)
def _without_the_half(taken, planned, joins):
    return _middles(taken, planned, joins, half=0.0).argmin(1)


@TURN.mistake(
    "a whole turn",
    symptom="The network with fewest turns is always a little late.",
    idea="Compare the middles of the next turns, not their ends.",
    line="(taken + 0.5) / planned",
)
def _a_whole_turn(taken, planned, joins):
    return _middles(taken, planned, joins, half=1.0).argmin(1)


@TURN.mistake(
    "nobody waits",
    symptom="It is right where all join at 0. One that joins late takes turns before it does.",
    idea="You lay the turns of each over the whole line. One that joins at j has the part from j "
    "to 1 for as many turns.",
    line="joins + (1 - joins) * (the place on a whole line)",
)
def _nobody_waits(taken, planned, joins):
    return _middles(taken, planned, torch.zeros_like(joins)).argmin(1)


@TURN.mistake(
    "moved, not squeezed",
    symptom="One that joins late is not ready when the others are: its last turns lie beyond 1.",
    idea="All its turns must fit between j and 1, so each is shorter by the factor 1 - j.",
    line="joins + (1 - joins) * (taken + 0.5) / planned",
)
def _moved(taken, planned, joins):
    return (joins + (taken + 0.5) / planned).argmin(1)


@TURN.mistake(
    "squeezed, not moved",
    symptom="One that joins late hurries from the beginning, and is ready before the others are.",
    idea="Its turns are short, as they should be, but lie between 0 and 1 - j instead of between j "
    "and 1.",
    line="joins + ...",
)
def _squeezed(taken, planned, joins):
    return ((1 - joins) * (taken + 0.5) / planned).argmin(1)


@TURN.mistake(
    "two of them",
    symptom="A third network never has a turn.",
    idea="Comparing two columns is a rule for two networks. argmin(1) asks them all.",
    line="argmin(1) of one number for each network, (rows, networks)",
)
def _two_of_them(taken, planned, joins):
    return _middles(taken, planned, joins)[:, :2].argmin(1)


@TURN.mistake(
    "those that have joined alone",
    symptom="Most answers are right, but who joins late has as many turns as if it had not.",
    idea="You leave out a network until it joins, and then it is far behind and has turn after "
    "turn. Its turns are to be spread evenly over what is left.",
    line="joins + (1 - joins) * (taken + 0.5) / planned",
)
def _those_that_have_joined(taken, planned, joins):
    whole = _middles(taken, planned, torch.zeros_like(joins))
    return torch.maximum(whole, joins).argmin(1)


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


def _stepped(nets: Tensor, gradients: Tensor, turn: int, rate: float = 0.1) -> Tensor:
    """Both networks (2, weights) after a step of the one whose ``turn`` it is."""
    step = torch.zeros_like(nets)
    step[turn] = rate * gradients[turn]
    return nets - step


def _in_turns(seg: Tensor, reg: Tensor, turns: Sequence[int], loss: Callable) -> Tensor:
    nets = torch.stack([seg, reg])
    for turn in turns:
        nets = _stepped(nets, _gradients(nets, loss), turn)
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
        nets = _stepped(nets, _gradients(consulted, loss), turn)
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
        nets = _stepped(nets, gradients, turn)
    return nets


def _adding_up(
    seg: Tensor, reg: Tensor, turns: Sequence[int], loss: Callable, *, erased: bool
) -> Tensor:
    """Each turn adds to both gradients; ``erased`` is that of the learner, after its step."""
    nets = torch.stack([seg, reg])
    gradients = torch.zeros_like(nets)
    for turn in turns:
        gradients = gradients + _gradients(nets, loss)
        nets = _stepped(nets, gradients, turn)
        if erased:
            gradients[turn] = 0
    return nets


@STEP.mistake(
    "gradients add up",
    symptom="The first turn is right. Every later step follows the gradients of all turns before "
    "it, too.",
    idea="loss.backward() ADDS to .grad, and of both networks, since the loss looks at both: at "
    "its first turn the second one already has a gradient of the first one's.",
    line="Set .grad of both to None before every backward(); or torch.autograd.grad, which keeps "
    "nothing.",
)
def _gradients_add_up(seg, reg, turns, loss):
    return _adding_up(seg, reg, turns, loss, erased=False)


@STEP.mistake(
    "the partner's gradient is kept",
    symptom="The first turn is right. A step after the other's turns follows old gradients.",
    idea="You erase the learner's gradient after its step. But backward() fills the partner's, "
    "too, and at the partner's next turn it is still there, and is added to.",
    line="Erase both in every turn, or take torch.autograd.grad of the learner alone.",
)
def _partners_gradient_is_kept(seg, reg, turns, loss):
    return _adding_up(seg, reg, turns, loss, erased=True)


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
        nets = _stepped(nets, _gradients(nets, loss), turn, rate=-0.1)
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
