"""Training steps of the kit beside those of MONAI's parts, put together as in its DeepAtlas
tutorial; training to a held-out Dice; and the memory of a joint step of large scans.

    python benchmarks/steps.py step          at 64x80x64, networks of about equal parameters
    python benchmarks/steps.py training      both, from nothing, for the same number of steps
    python benchmarks/steps.py memory        32 structures, up to 160x192x224 by extrapolation

Both see the same scans, the same pairs and no augmentation; the tutorial's loader is left out. Its
loop registers by a displacement at full resolution, LNCC over 3 voxels and its own weights; the kit
by a velocity at half the resolution, LNCC over 9 voxels and the recipe's. Its U-Net convolves once
where the kit's does twice: of as many parameters it makes a third of the arithmetic, so that a step
is also timed with the kit's networks in the tutorial's loop, which tells the loops apart. Rows go
to tutorials_data/results/benchmarks.csv.
"""

import argparse
import functools
import itertools
import math
from dataclasses import replace
from pathlib import Path

from deepatlas import models, phantom, training
from deepatlas.data import Cohort, Scan
from deepatlas.pairs import draw_pair, pairs_by_case
from deepatlas.regimes import Regime
from deepatlas.terms import Weights
from deepatlas.warp import Deformation

import runner
import torch
from operations import name_of, peer, tell_and_keep
from runner import KIT, Row, Turns

TUTORIAL = "MONAI, tutorial"
SAME_NETWORKS = "MONAI, tutorial with the kit's networks"
STEP_SHAPE, STEP_SPACING = (64, 80, 64), 2.4
TRAINING_SHAPE, TRAINING_SPACING = (32, 40, 32), 5.0
RATES = {"seg": 4e-3, "reg": 1e-3}  # the kit's in 3D on a laptop
RECIPE = Weights(regularity=0.2, anatomy=10.0, supervised=100.0)
SEEN = {"seg": "segmentation", "reg": "registration"}
WHOLE = (160, 192, 224)
BEFORE_GIB = 17.8  # of a joint step at ``WHOLE``, by formula, before anything was done about it


# --- what is trained on ---------------------------------------------------------------------------


def brains(shape, spacing, labelled=3, unlabelled=5, device="cpu") -> Cohort:
    """Synthetic brains, of which so many training scans show their labels."""
    count = labelled + unlabelled
    scans = [phantom.make_scan("brain", n, shape, spacing=spacing) for n in range(count + 2)]
    train = [
        scan if n < labelled else replace(scan, labels=None) for n, scan in enumerate(scans[:count])
    ]
    structures = int(max(scan.labels.max() for scan in scans)) + 1
    names = tuple(f"structure {n}" for n in range(structures))
    return Cohort("brains", names, spacing, tuple(train), tuple(scans[count:]), ()).to(device)


def noise(shape, structures, device="cpu") -> Cohort:
    """Three scans of noise, one of them without labels: memory does not depend on what is seen."""
    generator = torch.Generator().manual_seed(0)
    affine = torch.eye(4, dtype=torch.float64)
    scans = []
    for n in range(3):
        image = torch.rand(1, *shape, generator=generator)
        labels = torch.randint(structures, shape, generator=generator, dtype=torch.uint8)
        scans.append(Scan(f"scan{n}", f"subject{n}", image, affine, labels if n else None))
    names = tuple(f"structure {n}" for n in range(structures))
    return Cohort("noise", names, 1.0, tuple(scans), (), ()).to(device)


# --- the kit's turns ------------------------------------------------------------------------------


def kit_networks(cohort: Cohort) -> dict[str, torch.nn.Module]:
    """The default pair, new, on the cohort's device."""
    torch.manual_seed(0)
    dims = len(cohort.train[0].shape)
    nets = models.build("kit", dims, len(cohort.structures), velocity=True, passes=1)
    return {name: net.to(cohort.device) for name, net in nets.items()}


def trainer_of(nets, cohort, steps, consults=True, mixed=False) -> training.Trainer:
    """A training of the networks named in ``steps``, by the recipe."""
    regime = Regime("joint" if consults else "alone", tuple(steps), consults=consults)
    settings = training.Settings(
        steps,
        RECIPE,
        "lncc",
        RATES,
        augmentation=0.0,
        mixed_precision=mixed,
        teacher=0.98,
        options={"sampled_warps": True},
    )
    return training.Trainer(nets, cohort, regime, settings)


# --- the tutorial's turns -------------------------------------------------------------------------


class Tutorial:
    """Two U-Nets of MONAI and the steps of its tutorial, on the kit's scans."""

    # strides 1, 2, 2, ...; widths on which processors are fast, with about the kit's parameters
    SEG_WIDTHS, REG_WIDTHS = (16, 32, 64, 64), (16, 64, 64, 64, 64)

    def __init__(self, cohort: Cohort, mixed: bool = False, same_networks: bool = False) -> None:
        blocks, losses = peer("monai.networks.blocks"), peer("monai.losses")
        torch.manual_seed(0)
        self.cohort, self.mixed = cohort, mixed
        self.structures = len(cohort.structures)
        self.nets = {
            "seg": self._unet(1, self.structures, self.SEG_WIDTHS),
            "reg": self._unet(2, 3, self.REG_WIDTHS),
        }
        self.in_pairs = same_networks  # F_R takes two images, not one of two channels
        if same_networks:
            nets = kit_networks(cohort)
            self.nets = {"seg": nets["seg"], "reg": nets["reg"].net}
        self.optimisers = {
            name: torch.optim.Adam(net.parameters(), RATES[name]) for name, net in self.nets.items()
        }
        self.warp = blocks.Warp()
        self.similarity = losses.LocalNormalizedCrossCorrelationLoss(kernel_size=3)
        self.bending = losses.BendingEnergyLoss()
        self.dice_of_labels = losses.DiceLoss(to_onehot_y=True, softmax=True)
        self.dice = losses.DiceLoss()
        side = sum(cohort.train[0].shape) / 3
        self.weights = {"anatomy": 2.0, "supervised": 3.0, "bending": 7.5 * (side / 128) ** 2}
        self.generator = torch.Generator().manual_seed(0)
        self.cases = {
            turn: pairs_by_case(cohort.train, turn, consults=True) for turn in ("seg", "reg")
        }
        self.alone = pairs_by_case(cohort.train, "seg", consults=False)

    def _unet(self, inputs, outputs, widths):
        strides = (1,) + (2,) * (len(widths) - 2)
        net = peer("monai.networks.nets").UNet(3, inputs, outputs, widths, strides, norm="batch")
        return net.to(self.cohort.device)

    def turn(self, name: str) -> None:
        """A step of one network while the other is consulted."""
        moving, fixed = draw_pair(self.cases[name], self.generator)
        loss = {"seg": self._seg_loss, "reg": self._reg_loss}[name](moving, fixed)
        self._step(name, loss)

    def supervised_turn(self) -> None:
        """A step of the segmentation network alone, on a labelled scan."""
        moving, _ = draw_pair(self.alone, self.generator)
        self._prepare("seg")
        self._step("seg", self._supervised(self.scores(moving), moving))

    def _prepare(self, name):
        for other, net in self.nets.items():
            net.train(other == name)

    def _step(self, name, loss):
        self.optimisers[name].zero_grad()
        loss.backward()
        self.optimisers[name].step()

    def _autocast(self):
        return torch.autocast(self.cohort.device.type, torch.bfloat16, enabled=self.mixed)

    def scores(self, scan: Scan) -> torch.Tensor:
        with self._autocast():
            return self.nets["seg"](scan.image[None]).float()

    def displacement(self, moving: Scan, fixed: Scan) -> torch.Tensor:
        with self._autocast():
            if self.in_pairs:
                return self.nets["reg"](moving.image[None], fixed.image[None]).float()
            return self.nets["reg"](torch.cat([moving.image, fixed.image])[None]).float()

    def _supervised(self, scores, scan):
        return self.weights["supervised"] * self.dice_of_labels(scores, scan.labels[None, None])

    def _one_hot(self, scan):
        one_hot = peer("monai.networks").one_hot
        return one_hot(scan.labels[None, None].long(), self.structures)

    def _reg_loss(self, moving, fixed):
        self._prepare("reg")
        u = self.displacement(moving, fixed)
        loss = self.similarity(self.warp(moving.image[None], u), fixed.image[None])
        loss = loss + self.weights["bending"] * self.bending(u)
        sides = []
        for scan in (moving, fixed):
            if scan.labels is not None:
                sides.append(self._one_hot(scan))
            else:
                with torch.no_grad():
                    sides.append(self.scores(scan).softmax(1))
        return loss + self.weights["anatomy"] * self.dice(self.warp(sides[0], u), sides[1])

    def _seg_loss(self, moving, fixed):
        self._prepare("seg")
        with torch.no_grad():
            u = self.displacement(moving, fixed)
        loss, sides = 0.0, []
        for scan in (moving, fixed):
            if scan.labels is not None:
                sides.append(self._one_hot(scan))
            else:
                sides.append(self.scores(scan).softmax(1))
        if moving.labels is None or fixed.labels is None:
            loss = self.weights["anatomy"] * self.dice(self.warp(sides[0], u), sides[1])
        known = moving if moving.labels is not None else fixed
        return loss + self._supervised(self.scores(known), known)


# --- one step -------------------------------------------------------------------------------------


def compare_steps(shape, spacing, device, mixed, turns) -> list[Row]:
    """Rows of a step of each network, by both programs: time, and memory above what is there."""
    cohort = brains(shape, spacing, device=device)
    loops = {}
    if peer("monai.networks.nets"):
        loops[TUTORIAL] = Tutorial(cohort, mixed)
        loops[SAME_NETWORKS] = Tutorial(cohort, mixed, same_networks=True)
    rows = []
    for turn, words in SEEN.items():
        trainer = trainer_of(kit_networks(cohort), cohort, {turn: 100_000}, mixed=mixed)
        works, parameters = {KIT: trainer.take_turn}, {KIT: count(trainer.networks[turn])}
        for name, loop in loops.items():
            loop.generator.manual_seed(trainer.settings.seed)  # the same pairs
            works[name] = functools.partial(loop.turn, turn)
            parameters[name] = count(loop.nets[turn])
        found = runner.take_turns(works, device, turns)
        memory = {}
        for name, work in works.items():
            memory[name] = max(runner.peak_mib(work, device) for _ in range(3))
        operation = f"{words} step, joint"
        for row in rows_of_steps(operation, name_of(shape), device, mixed, found, memory):
            rows.append(replace(row, note=f"{parameters[row.program]:,} parameters"))
    return rows


def count(net) -> int:
    """Parameters of a network."""
    return sum(weights.numel() for weights in net.parameters())


def rows_of_steps(operation, size, device, mixed, found, memory) -> list[Row]:
    """Rows with the ratio to the tutorial, where it was measured."""
    rows = []
    on_cpu = device == "cpu"
    for name, (wall, own) in found.items():
        row = runner.row_of(operation, size, name, device, seconds=wall, cpu_seconds=own)
        row = replace(row, dtype="bfloat16" if mixed else "float32", memory_mib=memory[name])
        if TUTORIAL in found:
            other = found[TUTORIAL][on_cpu]
            ratio, less = (own if on_cpu else wall) / other, memory[name] / memory[TUTORIAL]
            row = replace(row, ratio=ratio, memory_ratio=less)
        if name == KIT:
            row = replace(row, goal=0.4)
        rows.append(row)
    return rows


# --- training -------------------------------------------------------------------------------------


def compare_trainings(shape, spacing, device, mixed, alone, joint, every) -> list[Row]:
    """Both loops from nothing: ``alone`` steps of segmentation, then ``joint`` in turns, two of
    registration to one of segmentation; held-out Dice every so many steps.
    """
    cohort = brains(shape, spacing, device=device)
    curves = {KIT: train_kit(cohort, mixed, alone, joint, every)}
    if peer("monai.networks.nets"):
        curves[TUTORIAL] = train_tutorial(cohort, mixed, alone, joint, every)
    rows = []
    for number, task in enumerate(SEEN.values()):
        last = {name: curve[-1][2][number] for name, curve in curves.items()}
        wanted = min(last.values()) - 0.01
        reached = {name: first_above(curve, wanted, number) for name, curve in curves.items()}
        for name in curves:
            steps, spent, dice = reached[name]
            told = f"{wanted:.2f} was wanted: {100 * dice[number]:.1f} % at step {steps}"
            told += f"; Dice is that at step {joint}"
            row = runner.row_of(
                f"joint training to the same {task} Dice",
                name_of(shape),
                name,
                device,
                seconds=spent[0],
                cpu_seconds=spent[1],
                dice=100 * last[name],
                note=told,
            )
            row = replace(row, dtype="bfloat16" if mixed else "float32")
            if TUTORIAL in curves:
                on_cpu = device == "cpu"
                row = replace(row, ratio=spent[on_cpu] / reached[TUTORIAL][1][on_cpu])
            rows.append(replace(row, goal=0.3) if name == KIT else row)
    return rows


def first_above(curve, wanted, number):
    """The first point of a curve whose Dice is at least that much."""
    return next(point for point in curve if point[2][number] >= wanted)


class Clock:
    """Seconds of wall and process that pass between ``start`` and ``stop``, summed."""

    def __init__(self, device):
        self.device, self.spent = device, [0.0, 0.0]

    def time(self, work):
        wall, own = runner.timed(work, self.device, 1)
        self.spent[0] += wall
        self.spent[1] += own


def train_kit(cohort, mixed, alone, joint, every):
    """[(step, (seconds, CPU seconds), (Dice of segmentation, of registration))]"""
    nets, clock = kit_networks(cohort), Clock(cohort.device.type)
    first = trainer_of(nets, cohort, {"seg": alone}, consults=False, mixed=mixed)
    for _ in range(alone):
        clock.time(first.take_turn)
    steps = {"seg": joint // 3, "reg": joint - joint // 3}
    second = trainer_of(nets, cohort, steps, mixed=mixed)
    segment, register = models.segmenter(nets["seg"]), models.registrar(nets["reg"])
    curve = []
    for step in range(1, joint + 1):
        clock.time(second.take_turn)
        if step % every == 0 or step == joint:
            curve.append((step, tuple(clock.spent), held_out(cohort, segment, register)))
    return curve


def train_tutorial(cohort, mixed, alone, joint, every):
    """The same of the tutorial's loop."""
    loop, clock = Tutorial(cohort, mixed), Clock(cohort.device.type)
    for _ in range(alone):
        clock.time(loop.supervised_turn)
    loop.generator.manual_seed(0)  # as the kit's second training: the same pairs
    order = itertools.cycle(["reg", "seg", "reg"])

    def segment(scan):
        loop.nets["seg"].eval()
        return loop.scores(scan)[0].argmax(0)

    def register(moving, fixed):
        loop.nets["reg"].eval()
        return Deformation(loop.displacement(moving, fixed))

    curve = []
    for step in range(1, joint + 1):
        name = next(order)
        clock.time(functools.partial(loop.turn, name))
        if step % every == 0 or step == joint:
            curve.append((step, tuple(clock.spent), held_out(cohort, segment, register)))
    return curve


@torch.no_grad()
def held_out(cohort, segment, register):
    """(Dice of segmentation, of registration) of the validation scans."""
    scans = cohort.validation
    guesses = [(segment(scan), scan.labels) for scan in scans]
    warped = [
        (register(moving, fixed).warp_labels(moving.labels[None])[0], fixed.labels)
        for moving, fixed in itertools.permutations(scans, 2)
    ]
    return mean_dice(guesses), mean_dice(warped)


def mean_dice(pairs) -> float:
    """Over structures that are there, and pairs of label maps."""
    found = []
    for one, other in pairs:
        one, other = one.cpu().long(), other.cpu().long()
        for label in other.unique()[1:]:
            both = ((one == label) & (other == label)).sum()
            found.append(float(2 * both / ((one == label).sum() + (other == label).sum())))
    return sum(found) / len(found)


# --- memory ---------------------------------------------------------------------------------------


def memory_of_joint_steps(shapes, structures, device, mixed, program) -> list[Row]:
    """Rows with the peak memory of a joint step at each shape above weights and scans, whichever
    network's turn takes more; and at 160x192x224 by the straight line through the largest two.
    """
    rows, points = [], []
    operation = f"joint step, {structures} structures"
    for shape in shapes:
        cohort = noise(shape, structures, device)
        peaks = {}
        for turn in SEEN:
            nets = kit_networks(cohort)
            trainer = trainer_of(nets, cohort, {turn: 1000}, mixed=mixed)
            trainer.take_turn()  # the optimiser's own numbers
            peaks[turn] = max(runner.peak_mib(trainer.take_turn, device) for _ in range(4))
        told = ", ".join(f"{SEEN[turn]} {peak / 1024:.2f} GiB" for turn, peak in peaks.items())
        points.append((math.prod(shape), max(peaks.values())))
        rows.append(_memory_row(operation, name_of(shape), program, device, mixed, told, points))
    if len(points) > 1 and WHOLE not in shapes:
        (small, less), (large, more) = points[-2:]
        slope = (more - less) / (large - small)
        points.append((math.prod(WHOLE), more + slope * (math.prod(WHOLE) - large)))
        told = f"extrapolated from {name_of(shapes[-2])} and {name_of(shapes[-1])}"
        rows.append(_memory_row(operation, name_of(WHOLE), program, device, mixed, told, points))
    if points[-1][0] == math.prod(WHOLE):
        less = points[-1][1] / 1024 / BEFORE_GIB
        rows[-1] = replace(rows[-1], memory_goal=0.5, memory_ratio=less)
    return rows


def _memory_row(operation, size, program, device, mixed, note, points) -> Row:
    row = runner.row_of(operation, size, program, device, memory_mib=points[-1][1], note=note)
    return replace(row, dtype="bfloat16" if mixed else "float32")


# --- the command ----------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("what", nargs="+", choices=["step", "training", "memory"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mixed", action="store_true", help="networks in bfloat16")
    parser.add_argument("--seconds", type=float, default=40, help="of a comparison of steps")
    parser.add_argument("--joint", type=int, default=150, help="joint steps of a training")
    parser.add_argument("--sides", type=int, nargs="*", default=[64, 96], help="of cubes: memory")
    parser.add_argument("--whole", action="store_true", help="memory at 160x192x224 itself, too")
    parser.add_argument("--program", default=KIT, help="what the rows of memory are called")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    parser.add_argument("--to", type=Path, default=runner.ROWS, help="the file of rows")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    turns = Turns(least=3, seconds=words.seconds)
    step_shape, training_shape = STEP_SHAPE, TRAINING_SHAPE
    step_spacing, training_spacing = STEP_SPACING, TRAINING_SPACING
    sides, structures, alone, joint, every = words.sides, 32, words.joint // 3, words.joint, 10
    if words.smoke:
        turns = Turns(least=1, seconds=0, shortest=0)
        step_shape = training_shape = (16, 24, 16)
        step_spacing = training_spacing = 9.0
        sides, structures, alone, joint, every = (16, 24), 4, 1, 3, 3
    device, mixed = words.device, words.mixed
    if "step" in words.what:
        rows = compare_steps(step_shape, step_spacing, device, mixed, turns)
        tell_and_keep(rows, words.to)
    if "training" in words.what:
        rows = compare_trainings(
            training_shape, training_spacing, device, mixed, alone, joint, every
        )
        tell_and_keep(rows, words.to)
    if "memory" in words.what:
        shapes = [(side,) * 3 for side in sides] + [WHOLE] * words.whole
        rows = memory_of_joint_steps(shapes, structures, device, mixed, words.program)
        tell_and_keep(rows, words.to)


if __name__ == "__main__":
    main()
