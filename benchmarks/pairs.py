"""One pair registered by trained networks and by those who need no training: Dice, folds, time.

    deepatlas run dataset=phantom-brain dims=3        prints a run folder
    python benchmarks/pairs.py RUN_FOLDER [--pairs 20] [--only network SyN]

The test pairs of the run are registered on the run's own grid, each by every program in turn, on
one thread, and judged as the run judged them: labels of the nearest voxel. A program is given the
images alone. So was the network, but in its training it has seen others of the same kind: what that
took is in the run's report.

Rows go to tutorials_data/results/benchmarks.csv. ``pip install -e ".[peers]"`` brings the peers.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

from deepatlas import evaluation, experiments, losses, models, registration
from deepatlas.datasets import load_cohort
from deepatlas.records import recorded_experiment
from deepatlas.regimes import JOINT
from deepatlas.warp import Deformation

import numpy as np
import torch
from runner import KIT, ROWS, keep, row_of, told

GOAL = 0.01  # of the fastest peer's time
THREADS = 1  # of every program, so that none profits from cores that another leaves idle

# --- the kit --------------------------------------------------------------------------------------


def networks(folder, regime, steps):
    """{program: function of (moving, fixed)}: the network of a run, alone and with ``steps`` of
    refinement.
    """
    experiment = recorded_experiment(experiments.read_record(folder))
    look = models.registrar(experiments.load_networks(folder, regime)["reg"])

    def refine(moving, fixed):
        loss = registration.pair_loss(
            moving.image[None],
            fixed.image[None],
            similarity=losses.lncc,
            regularity=experiment.lambda_r,
        )
        return registration.refine_pair(look(moving, fixed), loss, steps)

    return {f"{KIT}, network": look, f"{KIT}, network + {steps} steps": refine}


# --- others ---------------------------------------------------------------------------------------


def syn(metric, sampling):
    """Affine and SyN of ANTs; ``sampling``: bins of mattes, radius of CC."""
    import ants

    def register(moving, fixed):
        images = [ants.from_numpy(scan.image[0].numpy()) for scan in (fixed, moving)]
        found = ants.registration(*images, "SyN", syn_metric=metric, syn_sampling=sampling)
        with tempfile.TemporaryDirectory() as folder:
            # all of its transforms as one field, in millimetres, here voxels, of the fixed image
            field = ants.apply_transforms(*images, found["fwdtransforms"], compose=f"{folder}/all_")
            u = ants.image_read(field).numpy()
        for file in {*found["fwdtransforms"], *found["invtransforms"]}:
            Path(file).unlink()
        return field_of(u)

    return register


def elastix():
    """Translation, affine and B-splines of elastix, its default parameters."""
    import itk

    parameters = itk.ParameterObject.New()
    for name in ("translation", "affine", "bspline"):
        parameters.AddParameterMap(parameters.GetDefaultParameterMap(name))

    def register(moving, fixed):
        fixed_image, moving_image = (
            itk.image_from_array(np.ascontiguousarray(scan.image[0].numpy()))
            for scan in (fixed, moving)
        )
        _, found = itk.elastix_registration_method(
            fixed_image, moving_image, parameter_object=parameters, log_to_console=False
        )
        field = itk.transformix_deformation_field(moving_image, found)
        # ITK numbers axes and components from the last array axis on
        return field_of(np.asarray(field)[..., ::-1])

    return register


def convex_adam():
    """ConvexAdam, its default parameters; volumes only."""
    from convexAdam.convex_adam_MIND import convex_adam_pt

    def register(moving, fixed):
        with contextlib.redirect_stdout(io.StringIO()):
            u = convex_adam_pt(fixed.image[0], moving.image[0], dtype=torch.float32)
        return field_of(u)

    return register


def field_of(u):
    """(I, J, K, D) in voxels as a Deformation."""
    array = np.ascontiguousarray(u, dtype=np.float32)
    return Deformation(torch.from_numpy(array).movedim(-1, 0)[None])


# name in the rows -> package, and what makes the program
PEERS = {
    "antspyx, SyN, mutual information": ("antspyx", lambda: syn("mattes", 32)),
    "antspyx, SyN, cross-correlation": ("antspyx", lambda: syn("CC", 4)),
    "itk-elastix, B-splines": ("itk-elastix", elastix),
    "convexAdam": ("convexAdam", convex_adam),
}


def programs_for(folder, regime, steps, dims, only):
    """Those that are wanted, can be imported, and register in so many dimensions."""
    found = {"no registration": lambda moving, fixed: Deformation.identity(fixed.shape)}
    found |= networks(folder, regime, steps)
    for name, (package, make) in PEERS.items():
        if package == "convexAdam" and dims == 2:
            print(f"{name}: registers volumes only")
            continue
        try:
            found[name] = make()
        except ImportError as error:
            print(f"without {name}: {error}")
    wanted = {}
    for name, register in found.items():
        if not only or any(word in name for word in only):
            wanted[name] = register
    return wanted


# --- taken together -------------------------------------------------------------------------------


def measure(programs, cohort, pairs):
    """{program: (seconds, CPU seconds, Dice, folds %)}, medians and means over ``pairs``."""
    taken = {name: [] for name in programs}
    scores = {name: [] for name in programs}
    for number, (moving, fixed) in enumerate(pairs, 1):
        for name, register in programs.items():
            wall, own = time.perf_counter(), time.process_time()
            phi = register(moving, fixed)
            taken[name].append((time.perf_counter() - wall, time.process_time() - own))
            scored = evaluation.score_registration(
                lambda *_, phi=phi: phi, cohort, [(moving, fixed)]
            )
            scores[name].append((100 * scored["dice"].mean(), scored["folds_percent"].iloc[0]))
        print(f"pair {number} of {len(pairs)}", flush=True)
    found = {}
    for name in programs:
        walls, owns = zip(*taken[name], strict=True)
        dice, folds = zip(*scores[name], strict=True)
        times = (statistics.median(walls), statistics.median(owns))
        found[name] = (*times, statistics.mean(dice), statistics.mean(folds))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--regime", default=JOINT, help="whose network")
    parser.add_argument("--pairs", type=int, default=20, help="at most so many test pairs")
    parser.add_argument("--steps", type=int, default=50, help="of refinement")
    parser.add_argument("--only", nargs="*", help="programs whose names have one of these words")
    parser.add_argument("--to", type=Path, default=ROWS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the peers
    torch.set_num_threads(THREADS)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(THREADS)  # of ANTs and elastix
    record = experiments.read_record(options.run)
    experiment = recorded_experiment(record)
    cohort = load_cohort(
        experiment.entry, profile=experiment.profile, dims=experiment.dims, seed=experiment.seed
    )
    labelled = [scan for scan in cohort.test if scan.labels is not None]
    pairs = evaluation.registration_pairs(labelled, per_fixed=1, seed=experiment.seed)
    programs = programs_for(
        options.run, options.regime, options.steps, experiment.dims, options.only
    )
    found = measure(programs, cohort, pairs[: options.pairs])
    peers = [own for name, (_, own, _, _) in found.items() if name in PEERS]
    size = f"{cohort.name}, {'x'.join(map(str, cohort.shape))}"
    rows = []
    for name, (wall, own, dice, folds) in found.items():
        rows.append(
            row_of(
                "a pair",
                size,
                name,
                "cpu",
                seconds=wall,
                cpu_seconds=own,
                ratio=own / min(peers) if peers else float("nan"),
                goal=GOAL if name.startswith(KIT) else float("nan"),
                dice=dice,
                note=f"folds {folds:.2f} %",
            )
        )
        print(told(rows[-1]))
    keep(rows, options.to)


if __name__ == "__main__":
    main()
