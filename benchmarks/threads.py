"""What waiting threads cost: steps of training on an idle and on a busy machine, and in a class.

Threads of OpenMP that have no work spin for a while before they sleep. On an idle machine that
saves the time of waking them; where other processes want the cores, a spinning thread keeps the one
with the work from running. ``GOMP_SPINCOUNT`` bounds the spin (read once, when torch is imported),
so each setting is tried in a process of its own.

    python benchmarks/threads.py                    idle, and beside busy processes, in 2D and 3D
    python benchmarks/threads.py --class-of 30      so many that train at once: steps in all
"""

import argparse
import json
import os
import subprocess
import sys
import time

SETTINGS = {
    "as torch comes": {"GOMP_SPINCOUNT": None},
    "OMP_WAIT_POLICY=PASSIVE": {"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": "PASSIVE"},
    **{
        f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": n}
        for n in ("0", "1000", "3000", "10000", "30000", "100000")
    },
    "one thread": {"GOMP_SPINCOUNT": None, "OMP_NUM_THREADS": "1"},
}

# A registration step of the class profile: 2D is the classroom's default, 3D the hippocampus grid.
STEP = """
import json, os, sys, time
import torch
from deepatlas import losses, models
dims, seconds, least = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
shape, batch = {2: ((96, 96), 4), 3: ((40, 56, 40), 1)}[dims]
torch.manual_seed(0)
moving, fixed = torch.rand(batch, 1, *shape), torch.rand(batch, 1, *shape)
net = models.build("kit", dims, 2, velocity=True, passes=1)["reg"]
optimiser = torch.optim.Adam(net.parameters())
def step():
    phi = models.register(net, moving, fixed)
    loss = losses.lncc(phi.warp(moving), fixed) + 0.2 * losses.bending_energy(phi.displacement)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
step()
print("ready", flush=True)
sys.stdin.readline()
taken, begun = [], time.perf_counter()
while time.perf_counter() - begun < seconds or len(taken) < least:
    start = time.perf_counter()
    step()
    taken.append(time.perf_counter() - start)
print(json.dumps(taken), flush=True)
"""


def environment(setting):
    """This process's environment with the variables of a setting; None removes one."""
    values = dict(os.environ)
    for name, value in setting.items():
        values.pop(name, None)
        if value is not None:
            values[name] = value
    return values


def begin(dims, seconds, least, setting):
    """A process that is ready to train, waiting for a line on its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, str(dims), str(seconds), str(least)],
        env=environment(setting),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process):
    process.stdin.write("\n")
    process.stdin.flush()


def mean(values):
    return sum(values) / len(values)


def step_seconds(dims, setting, busy, seconds):
    """Seconds of a step in the mean, beside ``busy`` processes that never wait."""
    process = begin(dims, seconds, 3, setting)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        time.sleep(0.5)
        finish(process)
        return mean(json.loads(process.stdout.readline()))
    finally:
        for other in others:
            other.kill()
            other.wait()
        process.wait()


def class_of(count, setting, seconds):
    """Steps a second of ``count`` processes that train at once, in all."""
    processes = [begin(2, seconds, 1, setting) for _ in range(count)]
    start = time.perf_counter()
    for process in processes:
        finish(process)
    taken = [json.loads(process.stdout.readline()) for process in processes]
    total = time.perf_counter() - start
    for process in processes:
        process.wait()
    return sum(map(len, taken)) / total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--class-of", type=int, default=0)
    parser.add_argument("--busy", nargs="*", type=int, default=[0, 2 * (os.cpu_count() or 1)])
    parser.add_argument(
        "--seconds", type=float, default=12, help="beside busy processes; a third of it idle"
    )
    parser.add_argument("--rounds", type=int, default=3, help="every setting in turn, so often")
    parser.add_argument("--dims", nargs="*", type=int, default=(2, 3))
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    if options.class_of:
        for name in options.only:
            rate = class_of(options.class_of, SETTINGS[name], options.seconds)
            print(f"{name:26s} {options.class_of} at once: {rate:.2f} steps a second", flush=True)
        return
    for dims in options.dims:
        found = {name: {busy: [] for busy in options.busy} for name in options.only}
        for _ in range(options.rounds):
            for name in options.only:
                for busy in found[name]:
                    seconds = options.seconds if busy else options.seconds / 3
                    seconds = step_seconds(dims, SETTINGS[name], busy, seconds)
                    found[name][busy].append(seconds)
        for name, results in found.items():
            told = []
            for busy, seconds in results.items():
                where = f"beside {busy} busy processes" if busy else "idle"
                told.append(
                    f"{where} {mean(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"
                )
            print(f"{dims}D {name:26s} seconds a step: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
