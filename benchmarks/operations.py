"""The kit's operations beside those of MONAI, VoxelMorph and plain PyTorch, forward and backward:
time, memory, the distance to what the machine could do at best, and how cost grows.

    python benchmarks/operations.py                          all operations, on one thread
    python benchmarks/operations.py --only lncc --sizes 64 96
    python benchmarks/operations.py --device cuda            on a GPU
    python benchmarks/operations.py --growth                 exponents of cost

Rows go to tutorials_data/results/benchmarks.csv. A peer that is not installed is left out, and that
is said; `pip install -e ".[peers]"` brings them.
"""

import argparse
import functools
import importlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path

from deepatlas import losses
from deepatlas.data import Scan
from deepatlas.pairs import pairs_by_case
from deepatlas.warp import Deformation, sample, voxel_grid

import runner
import torch
import torch.nn.functional as F
from runner import KIT, Row, Turns, Work
from torch import Tensor

SIZES = {"64": (64, 64, 64), "96": (96, 96, 96), "brain": (160, 192, 224)}
SMOKE = (16, 16, 24)
FLOAT = 4  # bytes
STRUCTURES = 32
ACCURACY, SHARE = 0.05, 0.95  # voxels, within which so many of an exponential's points must lie
ACCURACY_OF_HALF = 0.15  # the same of a velocity at half the grid


@functools.cache
def peer(module: str):
    """A module of another project; None, and a line that says so, where it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        print(f"without {module.partition('.')[0]}: {error}")
        return None


def name_of(shape: tuple[int, ...]) -> str:
    """64^3, or 160x192x224."""
    same = len(set(shape)) == 1
    return f"{shape[0]}^{len(shape)}" if same else "x".join(map(str, shape))


# --- what the programs are given ------------------------------------------------------------------


def smooth(shape, channels, coarse, seed, device):
    """(1, channels, I, J, K): noise on a grid of ``coarse`` nodes a side, interpolated."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, channels, *[coarse] * len(shape), generator=generator)
    return F.interpolate(noise, size=shape, mode="trilinear", align_corners=True).to(device)


def images(shape, device):
    """Two images (1, 1, I, J, K) about 0 that show the same things differently, with a texture
    everywhere: definitions of a local correlation differ where there is none, and where a window
    reaches beyond the border.
    """
    common = smooth(shape, 1, 12, 1, device)
    generator = torch.Generator().manual_seed(2)
    pair = []
    for scale in (1.0, -0.7):
        grain = torch.randn(1, 1, *shape, generator=generator).to(device)
        pair.append(scale * common + 0.4 * grain)
    return pair


def motion(shape, device, largest=6.0, margin=24.0, seed=3):
    """A smooth (1, 3, I, J, K) in voxels that fades towards the border and leads nowhere outside,
    where programs differ; and hardly anywhere exactly to a voxel, where the gradient jumps.
    """
    u = smooth(shape, len(shape), 6, seed, device)
    u = u * (largest / u.abs().max())
    here = voxel_grid(shape, u)
    distance = torch.full(shape, math.inf, device=device)
    inward = torch.empty_like(u[0])
    for axis, n in enumerate(shape):
        along = here[axis]
        distance = torch.minimum(distance, torch.minimum(along, n - 1 - along))
        inward[axis] = 0.3 * (1 - 2 * along / (n - 1))
    return u * (distance / margin).clamp(max=1) + inward


def flow(shape, device):
    """A velocity as large as between two heads: up to a tenth of the image in a unit of time."""
    side = min(shape)
    return motion(shape, device, largest=side / 10, margin=side / 10)


# --- the operations: a Work of each ---------------------------------------------------------------


def warp(shape, device, channels=1) -> Work:
    """A volume of one or more channels at x + u(x), u in voxels."""
    volume = smooth(shape, channels, 12, 4, device).requires_grad_()
    u = motion(shape, device).requires_grad_()
    programs = {KIT: lambda volume, u: Deformation(u).warp(volume)}
    programs["PyTorch"] = bare_grid_sample(shape, device)
    if monai := peer("monai.networks.blocks"):
        programs["MONAI"] = monai.Warp()
    if voxelmorph := peer("voxelmorph"):
        programs["VoxelMorph"] = voxelmorph.nn.modules.SpatialTransformer()
    voxels = math.prod(shape)
    # forward: volume, u, result; backward: these and a gradient of each
    numbers = 3 * channels + 2 * channels + 3 * len(shape) - len(shape)
    return Work(
        "warp" if channels == 1 else f"warp, {channels} channels",
        name_of(shape),
        (volume, u),
        programs,
        against=("PyTorch",),
        goal=1.05,
        tolerance=1e-3,
        moved_bytes=FLOAT * voxels * numbers,
        notes={"PyTorch": "grid_sample and the shortest conversion from voxels"},
    )


def bare_grid_sample(shape, device):
    """``grid_sample`` with the least that turns u in voxels into its coordinates, from a grid that
    was made before.
    """
    sides = torch.tensor(shape, dtype=torch.float32, device=device)
    here = voxel_grid(shape, sides).movedim(0, -1)  # (I, J, K, D)
    scale = (2 / (sides - 1)).flip(0)
    identity = here.flip(-1) * scale - 1

    def work(volume: Tensor, u: Tensor) -> Tensor:
        grid = torch.addcmul(identity, u.movedim(1, -1).flip(-1), scale)
        return F.grid_sample(volume, grid, "bilinear", "border", align_corners=True)

    return work


def exp(shape, device) -> Work:
    """The exponential of a velocity, by as few squarings as a program needs for ``ACCURACY``."""
    velocity = flow(shape, device)
    programs = {KIT: lambda v, n: Deformation.exp(v, n).displacement}
    if monai := peer("monai.networks.blocks"):
        programs["MONAI"] = lambda v, n: monai.DVF2DDF(n)(v)
    if voxelmorph := peer("voxelmorph"):
        programs["VoxelMorph"] = lambda v, n: voxelmorph.nn.modules.IntegrateVelocityField(steps=n)(
            v
        )
    return enough_squarings("exp", velocity, shape, programs, goal=0.3, memory_goal=0.5)


def exp_of_half(shape, device) -> Work:
    """The same of a velocity that is known at every second voxel, as the kit's network predicts it:
    the peers integrate it on the fine grid, and VoxelMorph's parts can be put together for the
    coarse one.
    """
    coarse = tuple(n // 2 for n in shape)
    velocity = 2 * flow(coarse, device)  # in voxels of the fine grid
    fine = functools.partial(F.interpolate, size=shape, mode="trilinear")
    programs = {KIT: lambda v, n: Deformation.exp(v, n, shape=shape).displacement}
    if monai := peer("monai.networks.blocks"):
        programs["MONAI"] = lambda v, n: monai.DVF2DDF(n)(fine(v))
    if voxelmorph := peer("voxelmorph"):
        parts = voxelmorph.nn.modules
        programs["VoxelMorph"] = lambda v, n: parts.IntegrateVelocityField(steps=n)(fine(v))
        resize = parts.ResizeDisplacementField(2, align_corners=False)
        programs["VoxelMorph, at half"] = lambda v, n: resize(
            parts.IntegrateVelocityField(steps=n)(v / 2)
        )
    return enough_squarings(
        "exp, from half the grid",
        velocity,
        shape,
        programs,
        ACCURACY_OF_HALF,
        notes={"VoxelMorph, at half": "put together from its parts; "},
    )


def enough_squarings(
    operation, velocity, shape, programs, accuracy=ACCURACY, notes=None, **values
) -> Work:
    """A Work of programs (velocity, squarings) -> u, each with as few squarings as suffice."""
    notes = dict(notes or {})
    distance = distance_from_flow(velocity, shape)
    chosen, errors = {}, {}
    for name, program in programs.items():
        for squarings in range(1, 11):
            with torch.no_grad():
                most, largest = distance(program(velocity, squarings))
            if most <= accuracy:
                break
        chosen[name] = functools.partial(_with, program, squarings)
        errors[name] = most
        told = f"{squarings} squarings; error in voxels, of {SHARE:.0%}; at most {largest:.2f}"
        notes[name] = notes.get(name, "") + told
    # v is read and u written; backward the gradient of u is read and that of v written
    numbers = 2 * len(shape) * (math.prod(shape) + velocity[0, 0].numel())
    return Work(
        operation,
        name_of(shape),
        (velocity.requires_grad_(),),
        chosen,
        moved_bytes=FLOAT * numbers,
        errors=errors,
        notes=notes,
        **values,
    )


def _with(program, squarings, velocity):
    return program(velocity, squarings)


def distance_from_flow(velocity, shape, points=20_000, steps=64):
    """A function that says how far u (1, D, I, J, K) is from one unit of time along ``velocity``,
    which may be known on a coarser grid: (that of ``SHARE`` of the points at most, the largest)
    distance in voxels, at so many of them.
    The way is followed in float64, by Runge and Kutta.
    """
    velocity = velocity.detach().double().cpu()
    size = torch.tensor([n / m for n, m in zip(shape, velocity.shape[2:], strict=True)])
    size = size.double().view(-1, 1)
    generator = torch.Generator().manual_seed(5)
    axes = [torch.randint(n, (points,), generator=generator) for n in shape]
    start = torch.stack(axes)[None].double()  # (1, D, points)

    def at(x: Tensor) -> Tensor:
        return sample(velocity, (x + 0.5) / size - 0.5)

    x, h = start, 1 / steps
    for _ in range(steps):
        k1 = at(x)
        k2 = at(x + h / 2 * k1)
        k3 = at(x + h / 2 * k2)
        k4 = at(x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    wanted = (x - start)[0]

    def distance(u: Tensor) -> tuple[float, float]:
        found = u.detach()[(0, slice(None), *axes)].double().cpu()
        apart = (found - wanted).norm(dim=0)
        return float(apart.quantile(SHARE)), float(apart.max())

    return distance


def lncc(shape, device) -> Work:
    """1 - the local correlation over windows of 9 voxels."""
    a, b = images(shape, device)
    programs = {KIT: lambda a, b: losses.lncc(a, b, 9)}
    if monai := peer("monai.losses"):
        loss = monai.LocalNormalizedCrossCorrelationLoss(kernel_size=9).to(device)
        programs["MONAI"] = lambda a, b: 1 + loss(a, b)
    if neurite := peer("neurite"):
        programs["neurite"] = lambda a, b: 1 - neurite.nn.functional.ncc(a, b, 9).squeeze()
    return Work(
        "LNCC, window 9",
        name_of(shape),
        (a.requires_grad_(), b.requires_grad_()),
        programs,
        goal=0.5,
        memory_goal=0.5,
        tolerance=0.02,  # flat windows and the border are treated differently
        moved_bytes=FLOAT * math.prod(shape) * 6,  # two images, read twice, and their gradients
    )


def bending(shape, device) -> Work:
    """The bending energy of a displacement."""
    u = motion(shape, device).requires_grad_()
    programs = {KIT: losses.bending_energy}
    if monai := peer("monai.losses"):
        loss = monai.BendingEnergyLoss()
        programs["MONAI"] = lambda u: len(shape) * loss(u)  # the mean over channels, not the sum
    return Work(
        "bending energy",
        name_of(shape),
        (u,),
        programs,
        goal=0.45,
        memory_goal=0.8,
        tolerance=0.1,  # MONAI's mixed differences span two voxels and leave the border out
        moved_bytes=FLOAT * math.prod(shape) * 3 * len(shape),
    )


def dice(shape, device, structures=STRUCTURES) -> Work:
    """Softmax of scores, and 1 - their Dice with integer labels."""
    generator = torch.Generator().manual_seed(6)
    coarse = torch.randint(structures, (1, 1, *[8] * len(shape)), generator=generator)
    labels = F.interpolate(coarse.float(), size=shape, mode="nearest")[:, 0].long().to(device)
    scores = torch.randn(1, structures, *shape, generator=generator).to(device).requires_grad_()
    programs = {KIT: lambda scores: losses.softmax_dice(scores, labels)}
    if monai := peer("monai.losses"):
        loss = monai.DiceLoss(softmax=True, to_onehot_y=True, smooth_nr=1, smooth_dr=1)
        programs["MONAI"] = lambda scores: loss(scores, labels[:, None])
    return Work(
        f"softmax and Dice, {structures} structures",
        name_of(shape),
        (scores,),
        programs,
        goal=0.4,
        memory_goal=0.6,
        moved_bytes=FLOAT * math.prod(shape) * 3 * structures,  # scores, read twice; their gradient
    )


OPERATIONS: dict[str, Callable[..., Work]] = {
    "warp": warp,
    "warp-13": functools.partial(warp, channels=13),
    "exp": exp,
    "exp-half": exp_of_half,
    "lncc": lncc,
    "bending": bending,
    "dice": dice,
}


# --- how cost grows -------------------------------------------------------------------------------


def growth_in_voxels(name, sides, device, turns) -> Row:
    """The exponent of an operation's time in voxels, over cubes of these sides."""
    works = {}
    for side in sides:
        work = OPERATIONS[name]((side,) * 3, device)
        works[side] = work
    return growth(
        works[sides[0]].operation,
        f"voxels, {sides[0]}^3 to {sides[-1]}^3",
        [side**3 for side in sides],
        {side: _kit_of(work) for side, work in works.items()},
        device,
        turns,
    )


def growth_in_structures(counts, side, device, turns) -> Row:
    """The exponent of softmax and Dice in structures."""
    works = {n: _kit_of(dice((side,) * 3, device, n)) for n in counts}
    size = f"structures, {counts[0]} to {counts[-1]} at {side}^3"
    return growth("softmax and Dice", size, counts, works, device, turns)


def growth_in_scans(counts, turns) -> Row:
    """The exponent of what is done once for a training of so many scans: which pairs there are."""
    works = {n: functools.partial(pairs_by_case, scans_of(n), "reg", True) for n in counts}
    size = f"scans, {counts[0]} to {counts[-1]}"
    return growth("pairs by case", size, counts, works, "cpu", turns)


def scans_of(count):
    """So many tiny scans, every second of them labelled."""
    image, affine = torch.zeros(1, 4, 4), torch.eye(4, dtype=torch.float64)
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    return [
        Scan(f"scan{n}", f"subject{n}", image, affine, labels if n % 2 else None)
        for n in range(count)
    ]


def _kit_of(work: Work) -> Callable[[], object]:
    """The kit's forward and backward pass of a Work, without arguments."""
    with torch.no_grad():
        weight = torch.ones_like(work.programs[KIT](*work.inputs))
    return functools.partial(runner.forward_and_backward, work.programs[KIT], work.inputs, weight)


def growth(operation, size, counts, works, device, turns) -> Row:
    """A row with the exponent of the kit's time; the note says the times."""
    medians = runner.take_turns(works, device, turns)
    times = [own if device == "cpu" else wall for wall, own in medians.values()]
    told = ", ".join(f"{1000 * seconds:.3g}" for seconds in times)
    unit = "ms of CPU" if device == "cpu" else "ms"
    return runner.row_of(
        operation,
        size,
        KIT,
        device,
        exponent=runner.exponent(list(map(float, counts)), times),
        note=f"{told} {unit}",
    )


# --- the command ----------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(OPERATIONS), choices=list(OPERATIONS))
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seconds", type=float, default=4, help="of an operation's turns")
    parser.add_argument("--growth", action="store_true", help="exponents of cost instead")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    parser.add_argument("--to", type=Path, default=runner.ROWS, help="the file of rows")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    turns = Turns(least=3, seconds=words.seconds)
    shapes = [SIZES[size] for size in words.sizes]
    sides, structures, scans = (32, 48, 64, 80), (4, 8, 16, 32), (100, 200, 400, 800)
    if words.smoke:
        turns = Turns(least=1, seconds=0, shortest=0)
        shapes = [SMOKE]
        sides, structures, scans = (8, 16), (4, 8), (4, 8)
    if words.growth or words.smoke:
        for name in words.only:
            tell_and_keep([growth_in_voxels(name, sides, words.device, turns)], words.to)
        side = sides[1]
        tell_and_keep([growth_in_structures(structures, side, words.device, turns)], words.to)
        tell_and_keep([growth_in_scans(scans, turns)], words.to)
    if words.growth:
        return
    machine = runner.measure_machine(words.device)
    print(
        f"{runner.processor(words.device)}, {words.threads} threads, torch {torch.__version__}: "
        f"copies {machine.copy_rate / 1e9:.3g} GB a second, "
        f"multiplies {machine.matrix_rate / 1e12:.3g} Tflop a second"
    )
    for name in words.only:
        for shape in shapes:
            work = OPERATIONS[name](shape, words.device)
            tell_and_keep(runner.compare(work, machine, turns), words.to)


def tell_and_keep(rows: list[Row], path: Path) -> None:
    """Print the rows, and write them: an interrupted benchmark keeps what it has."""
    for row in rows:
        print(runner.told(row), flush=True)
    runner.keep(rows, path)


if __name__ == "__main__":
    main()
