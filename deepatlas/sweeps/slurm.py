"""Workers started by Slurm: a short script for ``sbatch``."""

from __future__ import annotations

import shlex
import subprocess
import sys

from ..errors import UserError, brief

# In a job's time limit the worker leaves so many seconds earlier: its runs are saved by then.
LEAVE = 120
MOST_JOBS = 1000  # in an array, as Slurm is set up unless somebody has changed it

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=deepatlas-sweep
#SBATCH --array=1-{jobs}
#SBATCH --requeue
#SBATCH --open-mode=append
{options}
# Workers for a sweep, one for each GPU of the job. They leave before the job's time is over, so
# that what they train is saved, and the job then queues again.

job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID  # of the last one SLURM_JOB_ID means them all
ends=$(date -d "$(squeue -h -j "$job" -o %e)" +%s 2> /dev/null)
lifetime=()
if [ -n "$ends" ]; then
    seconds=$((ends - $(date +%s) - {leave}))
    if [ "$seconds" -lt 60 ]; then
        echo "the time limit leaves no time to work: --time=5 (minutes) is the least" >&2
        exit 1
    fi
    lifetime=(--lifetime "${{seconds}}s")
fi

gpus=(${{CUDA_VISIBLE_DEVICES//,/ }})
places=$((${{#gpus[@]}} > 0 ? ${{#gpus[@]}} : 1))
cores=${{SLURM_CPUS_ON_NODE:-1}}
threads=$((cores / (places * {each})))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
for ((i = 0; i < places; i++)); do
    CUDA_VISIBLE_DEVICES=${{gpus[i]}} {python} -m distributed.cli.dask_worker {address} \\
        --nthreads {each} --memory-limit 0 --no-dashboard --death-timeout 60 \\
        --name "$job-$i" --local-directory "${{TMPDIR:-/tmp}}" "${{lifetime[@]}}" &
done
wait

if [ -n "$ends" ] && [ "$(date +%s)" -ge $((ends - {leave})) ]; then
    scontrol requeue "$job"
fi
"""


def script(options: str, address: str, jobs: int, each: int) -> str:
    """A script for ``sbatch``: so many jobs, each of which starts a worker of the scheduler at
    ``address`` for each of its GPUs, or one where it has none, for ``each`` runs at once.

    ``options``: the name of a partition, options of sbatch, or both, as in "gpu --gres=gpu:1
    --time=4:00:00". UserError if they are written otherwise.
    """
    try:
        given = shlex.split(options)
    except ValueError as error:
        raise UserError(f"--slurm {brief(options)}: {error}") from error
    if given and not given[0].startswith("-"):
        given[0] = f"--partition={given[0]}"
    wrong = [word for word in given if not word.startswith("-")]
    if wrong or not given:
        raise UserError(
            f"--slurm {brief(options)}: the name of a partition was wanted, then options of sbatch "
            'written with a =, as in --slurm "gpu --gres=gpu:1 --time=4:00:00"'
        )
    lines = "\n".join(f"#SBATCH {word}" for word in given)
    return SCRIPT.format(
        jobs=jobs,
        options=lines,
        leave=LEAVE,
        each=each,
        python=shlex.quote(sys.executable),
        address=shlex.quote(address),
    )


def submit(text: str) -> str:
    """The number of the job that Slurm makes of a script; UserError if it makes none."""
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise UserError(
            "--slurm: there is no sbatch here: start the sweep where jobs are submitted, or submit "
            "there what --dry-run prints, with the address of a scheduler in it (`dask scheduler` "
            "prints one), and name that by --scheduler"
        ) from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"--slurm: sbatch refused the script ({error.stderr.strip()})") from error
    return done.stdout.strip().partition(";")[0]


def is_there(job: str) -> bool:
    """Does one of the jobs wait or run? So it is taken to be while Slurm does not answer."""
    done = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True)
    if done.returncode != 0:
        return "Invalid job id" not in done.stderr  # so it says of what ended minutes ago
    return bool(done.stdout.strip())


def cancel(job: str) -> None:
    """End the jobs that still wait or run."""
    subprocess.run(["scancel", job], capture_output=True)
