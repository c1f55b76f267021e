"""What it costs that the C library hands freed memory back to the system: turns of joint training.

A step of training frees what the next one asks for again. From 128 KiB on (later: from the largest
piece freed so far, at most 32 MiB) glibc maps every piece anew, and hands the end of its heap back;
the system clears each page before it is used again. Two thresholds bound that, here set to the same
size by its environment variables, which it reads when a process begins. Another C library knows
nothing of them.

    python benchmarks/freed_memory.py                 in 2D and 3D, one thread
    python benchmarks/freed_memory.py --seconds 60    with more steps
"""

import argparse
import json
import os
import subprocess
import sys

from threads import environment

MIB = 2**20
SIZES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
UNSET = dict.fromkeys((*SIZES, "GLIBC_TUNABLES"))
SETTINGS = {
    "as the kit sets it": {},
    "as glibc comes": {"GLIBC_TUNABLES": ""},  # where it is set, the kit sets nothing
    **{f"{n} MiB": dict.fromkeys(SIZES, str(n * MIB)) for n in (32, 64, 256, 1024, 16384)},
}
GRIDS = {2: ((80, 96), 2.0), 3: ((56, 72, 56), 2.5)}  # of the class profile

# A turn of each network, in a process of its own.
STEPS = """
import json, resource, sys, time
import psutil, torch
import steps
torch.set_num_threads(1)
dims, seconds = int(sys.argv[1]), float(sys.argv[2])
shape, spacing = json.loads(sys.argv[3])
cohort = steps.brains(shape, spacing)
trainer = steps.trainer_of(steps.kit_networks(cohort), cohort, {"seg": 10**6, "reg": 10**6})
def step():
    for _ in range(2):
        trainer.take_turn()
for _ in range(3):
    step()
before, begun, taken = resource.getrusage(resource.RUSAGE_SELF), time.process_time(), 0
while time.process_time() - begun < seconds:
    step()
    taken += 1
after = resource.getrusage(resource.RUSAGE_SELF)
each = lambda name: (getattr(after, name) - getattr(before, name)) / taken
print(json.dumps({
    "user": each("ru_utime"), "system": each("ru_stime"), "faults": each("ru_minflt"),
    "peak": after.ru_maxrss / 1024, "rest": psutil.Process().memory_info().rss / 2**20,
}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of the processor, each setting")
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 3], choices=[2, 3])
    asked = parser.parse_args()
    print("a turn of each network       CPU s   system s   page faults   peak MiB   at rest MiB")
    for dims in asked.dims:
        for title, setting in SETTINGS.items():
            command = [sys.executable, "-c", STEPS, str(dims), str(asked.seconds)]
            done = subprocess.run(
                [*command, json.dumps(GRIDS[dims])],
                env=environment(UNSET | setting | {"OMP_NUM_THREADS": "1"}),
                cwd=os.path.dirname(os.path.abspath(__file__)),
                stdout=subprocess.PIPE,
                check=True,
            )
            found = json.loads(done.stdout)
            seconds = f"{found['user'] + found['system']:9.3f} {found['system']:9.3f}"
            memory = f"{found['peak']:10.0f} {found['rest']:12.0f}"
            print(f"{dims}D, {title:20} {seconds} {found['faults']:13,.0f} {memory}", flush=True)


if __name__ == "__main__":
    main()
