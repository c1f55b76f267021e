"""Sweeps that are disturbed: what dies, fails or is full, and a table that equals that of a quiet
sweep.

Most runs here are played by a small process that counts instead of training, under the run's lock,
and goes on from its count; at its end it puts a finished run into the folder.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from deepatlas import checkpoints, children, experiments, records, sweeps
from deepatlas.children import Outcome, Task
from deepatlas.cli import app
from deepatlas.cli.arguments import assignments
from deepatlas.cli.sweep import Places, _pool
from deepatlas.errors import CALL_AGAIN, NO_MEMORY, UserError
from deepatlas.parameters import parse
from deepatlas.sweeps import pools, progress, run, slurm

import pandas as pd
import pytest
from typer.testing import CliRunner

COUNTS = 20
# "auto" is timed, and a busy machine may decide otherwise
VALUES = {
    "profile": "smoke",
    "device": "cpu",
    "dims": 2,
    "regimes": "joint",
    "precision": "float32",
}

PLAYED = f"""
import shutil, signal, sys, time
from pathlib import Path
from deepatlas.errors import CALL_AGAIN, STOPPED
from deepatlas.locks import Held, Lock

folder, finished = map(Path, sys.argv[1:])
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
lock = Lock(folder / "run.lock")
try:
    lock.acquire()
except Held as held:
    print(f"deepatlas: {{held}}", file=sys.stderr)
    sys.exit(CALL_AGAIN)
counts = folder / "counts"
for count in range(len(counts.read_text().split()) if counts.exists() else 0, {COUNTS}):
    if stopping:
        lock.release()
        sys.exit(STOPPED)
    time.sleep(0.1)
    with counts.open("a") as file:
        file.write(f"{{count}}\\n")
for path in sorted(finished.iterdir()):
    shutil.copyfile(path, folder / path.name)
lock.release()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run."""
    return experiments.run(parse(VALUES), tmp_path_factory.mktemp("trained"))


@pytest.fixture
def todo():
    return [parse(VALUES | {"seed": seed}) for seed in range(4)]


@pytest.fixture
def played(tmp_path, trained, todo, monkeypatch):
    """Processes that play the runs ``todo``, each of which ends with results of its own."""
    script = tmp_path / "played.py"
    script.write_text(PLAYED)
    ready = tmp_path / "ready"
    for experiment in todo:
        folder = ready / experiment.name
        folder.mkdir(parents=True)
        record = records.read_record(trained)
        record["experiment"] = experiment.model_dump()
        scores = pd.read_csv(trained / "scores.csv")
        scores["dice"] = scores["dice"] * (1 - experiment.seed / 100)
        checkpoints.write_csv(scores, folder / "scores.csv")
        records.keep_hash(record, folder, "scores.csv")
        shutil.copyfile(trained / "history.csv", folder / "history.csv")
        records.write_record(record, folder)

    def task_of(experiment, folder):
        arguments = (str(script), str(folder), str(ready / folder.name))
        # the workers' folder is another one
        return Task(
            folder / "run.lock", arguments, {"PYTHONPATH": str(Path(__file__).parent.parent)}
        )

    monkeypatch.setattr(run, "task_of", task_of)
    monkeypatch.setattr(run, "LOOK", 0.1)
    return ready


def quiet(ready, results):
    """The tables that nothing disturbs."""
    sweeps.collect(sorted(ready.iterdir()), results)
    return tables(results)


def tables(results):
    """What stands in the tables, but what differs from one training to the next."""
    found = [sweeps.read_table(results, name) for name in ("regimes", "subjects")]
    return [table.drop(columns=["sha256", "seconds"], errors="ignore") for table in found]


def assert_equal(results, wanted):
    for table, other in zip(tables(results), wanted, strict=True):
        pd.testing.assert_frame_equal(table, other)


def counted(folder):
    path = folder / "counts"
    return len(path.read_text().split()) if path.exists() else 0


def once(condition, disturb):
    """A way to show runs that does ``disturb`` as soon as ``condition`` holds."""
    done = []

    def show(runs, _):
        if not done and condition(runs):
            done.append(True)
            disturb(runs)

    return show


def begun(runs):
    return any(counted(run.folder) > 2 for run in runs)


def nothing(*_, **__):
    """Shows nothing."""


def kill_worker(client):
    (process,) = client.run(os.getpid).values()
    os.kill(process, signal.SIGKILL)


# --- what dies ------------------------------------------------------------------------------------


def test_of_a_worker_that_is_killed_another_goes_on(todo, played, tmp_path):
    pool = sweeps.on_this_machine(2, [], 1)
    show = once(begun, lambda _: kill_worker(pool.client))
    runs = sweeps.carry_out_all(todo, tmp_path / "runs", tmp_path / "results", lambda: pool, show)
    assert [run.state for run in runs] == ["finished"] * 4
    assert_equal(tmp_path / "results", quiet(played, tmp_path / "quiet"))
    for each in runs:  # nobody counted what another had counted
        assert counted(each.folder) == COUNTS


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def dask():
    """Starts a scheduler, or a worker, of Dask; all are ended with the test."""
    started = []

    def start(kind, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
        quietly = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([*command, "--no-dashboard"], **quietly))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_scheduler_that_starts_again_gets_what_is_left(todo, played, tmp_path, dask):
    port = free_port()
    here = ("--host", "127.0.0.1", "--port", str(port))
    address = f"tcp://127.0.0.1:{port}"
    worker = (address, "--nthreads", "2", "--memory-limit", "0", "--no-nanny")
    worker += ("--local-directory", str(tmp_path / "scratch"))
    scheduler = dask("scheduler", *here)
    dask("worker", *worker)

    def restart(_):
        scheduler.kill()
        scheduler.wait()
        dask("scheduler", *here)
        dask("worker", *worker)

    runs = sweeps.carry_out_all(
        todo,
        tmp_path / "runs",
        tmp_path / "results",
        lambda: sweeps.Workers(address, "there"),
        once(begun, restart),
    )
    assert [run.state for run in runs] == ["finished"] * 4
    assert_equal(tmp_path / "results", quiet(played, tmp_path / "quiet"))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "http://127.0.0.1:9", ""])
def test_no_scheduler_is_said(address, monkeypatch):
    monkeypatch.setattr(pools, "CONNECT", 0.2)
    with pytest.raises(UserError, match=f"^{address}: no scheduler of Dask answers"):
        sweeps.Workers(address, "there")


def test_a_scheduler_that_stays_away_is_said(tmp_path, dask, monkeypatch):
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", str(port))
    pool = sweeps.Workers(address, "there")
    pool.submit(Task(tmp_path / "run.lock", ()))
    scheduler.kill()
    scheduler.wait()
    monkeypatch.setattr(pools, "PATIENCE", 0.0)
    with pytest.raises(UserError, match="the scheduler has been gone"), closing(pool):
        while True:
            assert pool.ended() == []


def test_a_run_that_is_killed_goes_on_once(todo, played, tmp_path):
    def kill(runs):
        lock = json.loads((runs[0].folder / "run.lock").read_text())
        os.kill(lock["process"], signal.SIGKILL)

    show = once(begun, kill)
    runs = sweeps.carry_out_all(todo[:1], tmp_path / "runs", tmp_path / "results", show=show)
    assert runs[0].state == "finished" and "killed once" in runs[0].note
    assert counted(runs[0].folder) == COUNTS


def test_two_sweeps_on_one_folder(todo, played, tmp_path):
    """In opposite orders, so that they meet."""
    places = (tmp_path / "runs", tmp_path / "results")
    found = []

    def other():
        found.extend(sweeps.carry_out_all(todo[::-1], *places, show=nothing))

    thread = threading.Thread(target=other)
    thread.start()
    runs = sweeps.carry_out_all(todo, *places, show=nothing)
    thread.join()
    assert {run.state for run in [*runs, *found]} == {"finished"}
    assert_equal(tmp_path / "results", quiet(played, tmp_path / "quiet"))
    for each in runs:
        assert counted(each.folder) == COUNTS


def test_collectors_lose_none_of_each_others_rows(todo, played, tmp_path):
    threads = []
    for folder in sorted(played.iterdir()):
        for _ in range(3):
            collecting = ([folder], tmp_path / "results")
            threads.append(threading.Thread(target=sweeps.collect, args=collecting))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_equal(tmp_path / "results", quiet(played, tmp_path / "quiet"))
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "regimes.csv",
        "subjects.csv",
        "runs",
    }


def test_a_sweep_that_is_stopped_says_that_it_goes_on(todo, played, tmp_path):
    places = (tmp_path / "runs", tmp_path / "results")
    show = once(begun, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(checkpoints.Interrupted, match=r"stopped, and 2 of 2 runs are left: .*same"):
        sweeps.carry_out_all(todo[:2], *places, show=show)
    folder = places[0] / todo[0].name
    assert 2 < counted(folder) < COUNTS and not (folder / "run.lock").exists()
    runs = sweeps.carry_out_all(todo[:2], *places, show=nothing)
    assert [run.state for run in runs] == ["finished"] * 2
    assert counted(folder) == COUNTS


def test_who_does_not_stop_when_asked_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "GRACE", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    begun = time.monotonic()
    done = children.carry_out(
        Task(tmp_path / "run.lock", ("-c", deaf)), 1, lambda: time.monotonic() - begun > 1
    )
    assert done.code == children.STOPPED and time.monotonic() - begun < 20


# --- what fails -----------------------------------------------------------------------------------

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv = ["deepatlas", *sys.argv[3:]]
runpy.run_module("deepatlas.cli", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size there")
def test_a_full_disk_in_one_run_is_told_and_the_others_go_on(todo, tmp_path, monkeypatch):
    """The file of a checkpoint is larger than the limit, which means the same as a full disk."""
    plainly = run.task_of

    def limited(experiment, folder):
        task = plainly(experiment, folder)
        if experiment.seed == 0:
            return Task(task.lock, ("-c", LIMITED, *task.arguments), task.environment)
        return task

    places = (tmp_path / "runs", tmp_path / "results")
    monkeypatch.setattr(run, "task_of", limited)
    full, other = sweeps.carry_out_all(todo[:2], *places, show=nothing)
    assert (full.state, other.state) == ("failed", "finished")
    assert "no space is left" in full.note and "Traceback" not in full.output
    assert set(tables(places[1])[0]["run"]) == {todo[1].name}

    monkeypatch.setattr(run, "task_of", plainly)
    again, _ = sweeps.carry_out_all(todo[:2], *places, show=nothing)
    assert again.state == "finished"
    # not trained in this process: it may have another number of threads, and round otherwise
    sweeps.carry_out_all(todo[:2], tmp_path / "quiet runs", tmp_path / "quiet", show=nothing)
    assert_equal(places[1], tables(tmp_path / "quiet"))


class Played:
    """A pool whose tasks end as ``outcomes`` say, one after the other."""

    where = "nowhere"

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.tasks = []
        self.submitted = []

    def submit(self, task):
        self.tasks.append(task)
        self.submitted.append(task)

    def ended(self):
        return [(self.tasks.pop(0), self.outcomes.pop(0))] if self.tasks else []

    def close(self):
        self.closed = True


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(run, "LOOK", 0.0)


def test_too_little_memory_means_half_the_batch_once_and_another_experiment(
    todo, tmp_path, at_once
):
    pool = Played(Outcome(NO_MEMORY, "too little memory"), Outcome(NO_MEMORY, "still too little"))
    places = (tmp_path / "runs", tmp_path / "results")
    (only,) = sweeps.carry_out_all(todo[:1], *places, lambda: pool, nothing)
    assert todo[0].batch_size == 2 and only.experiment.batch_size == 1
    first, second = pool.submitted
    assert first.lock.parent.name == todo[0].name and "batch_size=2" in first.arguments
    assert second.lock.parent.name == only.experiment.name and "batch_size=1" in second.arguments
    assert only.state == "failed" and only.note == "still too little"
    assert (
        sweeps.changed(only.experiment)
        == "regimes=joint batch_size=1 seg_batch_size=1 precision=float32"
    )


def test_who_is_killed_twice_may_lack_memory(todo, tmp_path, at_once):
    killed = Outcome(-signal.SIGKILL)
    pool = Played(killed, killed, Outcome(1, "deaf"))
    places = (tmp_path / "runs", tmp_path / "results")
    sweeps.carry_out_all(todo[:1], *places, lambda: pool, nothing)
    names = [task.lock.parent.name for task in pool.submitted]
    assert names[0] == names[1] == todo[0].name != names[2]


def test_a_bug_is_told_by_its_last_line_and_the_others_go_on(todo, tmp_path, monkeypatch):
    def task_of(experiment, folder):
        return Task(folder / "run.lock", ("-c", "print('working'); raise KeyError('ours')"))

    monkeypatch.setattr(run, "task_of", task_of)
    places = (tmp_path / "runs", tmp_path / "results")
    runs = sweeps.carry_out_all(todo[:2], *places, show=nothing)
    assert [(run.state, run.note) for run in runs] == [("failed", "KeyError: 'ours'")] * 2
    assert "Traceback" in runs[0].output and "working" in runs[0].output


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text("""
[[sweep]]
profile = "smoke"
dims = 2
lambda_r = [1e30, 0.2]
""")
    return path


def test_the_command_tells_what_failed_and_ends_with_1(grid, tmp_path, monkeypatch):
    def task_of(experiment, folder):
        failing = f"import sys; sys.exit('deepatlas: lambda_r={experiment.lambda_r} is no good')"
        return Task(folder / "run.lock", ("-c", failing))

    monkeypatch.setattr(run, "task_of", task_of)
    done = CliRunner().invoke(app, ["sweep", str(grid), "--root", str(tmp_path), "--workers", "1"])
    assert done.exit_code == 1
    for weight in ("1e+30", "0.2"):
        assert f"failed (lambda_r={weight} is no good)" in done.stdout
        assert f": lambda_r={weight} is no good" in done.stderr


def test_a_dry_run_begins_nothing(grid, tmp_path):
    runs = tmp_path / "runs"
    words = ["sweep", str(grid), "--root", str(runs), "--dry-run"]
    plan = CliRunner().invoke(app, words)
    assert plan.exit_code == 0 and "lambda_r=1e+30" in plan.stdout
    assert len(plan.stdout.splitlines()) == 2
    script = CliRunner().invoke(app, [*words, "--slurm", "gpu --time=60", "--per-gpu", "2"])
    assert script.stdout.startswith("#!/bin/bash\n") and "--array=1-2\n" in script.stdout
    assert "--nthreads 2" in script.stdout and not runs.exists()


def test_two_places_at_once_are_refused(grid, tmp_path):
    words = [
        "sweep",
        str(grid),
        "--root",
        str(tmp_path),
        "--slurm",
        "gpu",
        "--scheduler",
        "tcp://x",
    ]
    done = CliRunner().invoke(app, [*words, "--dry-run"])
    assert "one of them was wanted, not both" in str(done.exception)
    done = CliRunner().invoke(app, ["sweep", str(grid), "--scheduler", "tcp://x", "--workers", "2"])
    assert "leave out --workers" in str(done.exception)


def test_without_dask_it_is_one_after_the_other_or_said(grid, tmp_path, monkeypatch):
    monkeypatch.setattr(pools.importlib.util, "find_spec", lambda name: None)
    assert isinstance(_pool([], Places()), sweeps.OneByOne)
    with pytest.raises(UserError, match=r"need dask\.distributed.*deepatlas\[scale\]"):
        _pool([], Places(workers=2))


def test_success_without_a_run_is_none(todo, tmp_path, at_once):
    pool = Played(Outcome(0))
    places = (tmp_path / "runs", tmp_path / "results")
    (only,) = sweeps.carry_out_all(todo[:1], *places, lambda: pool, nothing)
    assert only.state == "failed" and "the same version of the kit" in only.note
    assert pool.closed


# --- what a process is given ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"profile": "smoke", "dims": 3, "unlabelled": 2, "lambda_r": 1e-5, "fourth_case": True},
        {"term_weights": {"similarity": 0.5}, "velocity": False, "recipe": "paper"},
    ],
)
def test_a_process_is_given_the_same_experiment(values, tmp_path):
    experiment = parse(values)
    task = run.task_of(experiment, tmp_path / experiment.name)
    given = task.arguments[task.arguments.index("--root") + 2 :]
    assert parse(assignments(list(given))) == experiment
    assert task.lock == tmp_path / experiment.name / "run.lock"


def test_a_run_that_another_holds_is_waited_for(tmp_path):
    """The process says so by its exit code; then the lock is waited for, not the process asked
    again and again.
    """
    asked = tmp_path / "asked"
    said = f"import sys; open({str(asked)!r}, 'a').write('.'); sys.exit({CALL_AGAIN})"
    code = f"{said} if not __import__('os').path.exists({str(asked)!r}) else None"
    assert children.carry_out(Task(tmp_path / "run.lock", ("-c", code)), 1, bool).code == 0
    assert asked.read_text() == "."


def test_threads_share_the_cores(monkeypatch):
    monkeypatch.setattr(children, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [children.threads_each(runs) for runs in (1, 3, 20)] == [8, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert children.threads_each(3) == 5


def test_as_many_at_once_as_memory_and_cores_allow(todo, monkeypatch):
    monkeypatch.setattr(pools, "cores", lambda: 8)
    monkeypatch.setattr(pools.machine, "free_memory_gib", lambda: 1000.0)
    monkeypatch.setattr(pools.torch.cuda, "is_available", lambda: False)
    assert sweeps.most_at_once(todo * 5, 1) == 8
    assert sweeps.most_at_once(todo, 1) == 4
    monkeypatch.setattr(pools.machine, "free_memory_gib", lambda: 2.0)
    assert sweeps.most_at_once(todo, 1) == 2
    monkeypatch.setattr(pools.machine, "free_memory_gib", lambda: 0.1)
    assert sweeps.most_at_once(todo, 1) == 1
    monkeypatch.setattr(pools.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pools.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweeps.gpus_for(todo) == []  # they are to be done on the CPU
    anywhere = [parse({"profile": "smoke", "seed": seed}) for seed in range(20)]
    assert sweeps.gpus_for(anywhere) == ["0", "1"]
    assert sweeps.most_at_once(anywhere, 3) == 6
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert sweeps.gpus_for(anywhere) == ["4", "7"]


class Cluster:
    """In the place of Dask's: it only notes its workers."""

    scheduler_address = "tcp://nowhere:1"

    def __init__(self, host, workers):
        self.workers = workers

    def close(self):
        pass


def test_each_gpu_has_a_worker_that_sees_it_alone(monkeypatch):
    begun = []
    monkeypatch.setattr(pools, "_cluster", lambda *words: begun.append(Cluster(*words)) or begun[0])
    monkeypatch.setattr(sweeps.Workers, "_connect", nothing)
    pool = sweeps.on_this_machine(5, ["4", "7", "9"], 2)
    assert pool.where == "5 at once on 3 GPUs"
    options = [worker["options"] for worker in begun[0].workers.values()]
    assert [each["env"]["CUDA_VISIBLE_DEVICES"] for each in options] == ["4", "7", "9"]
    assert [each["nthreads"] for each in options] == [2, 2, 1]
    assert {each["preload"] for each in options} == {pools.DEAF}  # to Ctrl-C
    with pytest.raises(UserError, match="--workers 4 on 1 GPUs is more than --per-gpu 2 on each"):
        sweeps.on_this_machine(4, ["0"], 2)


# --- Slurm ----------------------------------------------------------------------------------------


def test_the_script_for_slurm_is_short_and_right(tmp_path):
    """Bash runs it, with stand-ins for Slurm and Python; the job has two GPUs and an hour."""
    text = slurm.script("gpu --gres=gpu:2 --time=1:00:00", "tcp://node:8786", 3, 2)
    assert len(text.splitlines()) < 40
    for line in ("--partition=gpu", "--gres=gpu:2", "--time=1:00:00", "--array=1-3", "--requeue"):
        assert f"#SBATCH {line}\n" in text
    for name, body in {
        "squeue": "date -d '+1 hour' +%Y-%m-%dT%H:%M:%S",
        "scontrol": "echo scontrol $*",
        "worker": 'echo "GPU=$CUDA_VISIBLE_DEVICES threads=$OMP_NUM_THREADS $*"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    text = text.replace(sys.executable, str(tmp_path / "worker"))
    given = {
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "2",
        "CUDA_VISIBLE_DEVICES": "4,5",
        "SLURM_CPUS_ON_NODE": "12",
    }
    environment = os.environ | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-eu"], input=text, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.split()[0] for line in lines] == ["GPU=4", "GPU=5"]
    for line in lines:
        assert "threads=3 " in line and "dask_worker tcp://node:8786 --nthreads 2" in line
        lifetime = int(line.split("--lifetime ")[1].rstrip("s"))
        assert 3600 - slurm.LEAVE - 10 < lifetime <= 3600 - slurm.LEAVE


SLURM = {
    "sbatch": "cat > $HERE/script; echo 7",
    "squeue": "cat $HERE/jobs",
    "scancel": "echo $* > $HERE/cancelled",
}


@pytest.fixture
def played_slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's programs, in a folder in which ``jobs`` is what squeue prints."""
    for name, body in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nHERE={tmp_path}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "jobs").write_text("7_1 small\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(pools, "LOOK_AT_JOBS", 0.0)
    return tmp_path


def test_jobs_that_have_ended_before_the_runs_are_told(played_slurm):
    pool = sweeps.JobsOfSlurm("small", 2, 1)
    pool.submit(Task(played_slurm / "run.lock", ()))
    assert pool.ended() == [] and "7" in pool.where
    assert f"dask_worker {pool.address} " in (played_slurm / "script").read_text()
    (played_slurm / "jobs").write_text("")
    squeue = (played_slurm / "squeue").read_text()
    (played_slurm / "squeue").write_text("#!/bin/sh\necho Unable to contact slurm >&2; exit 1\n")
    assert pool.ended() == []  # Slurm is away, which says nothing of its jobs
    (played_slurm / "squeue").write_text(squeue)
    with pytest.raises(UserError, match="all jobs of 7 have ended before the runs"):
        pool.ended()
    pool.close()
    assert (played_slurm / "cancelled").read_text() == "7\n"


def test_a_job_without_time_to_work_says_so_and_does_not_queue_again(played_slurm):
    (played_slurm / "squeue").write_text("#!/bin/sh\ndate -d '+150 sec' +%Y-%m-%dT%H:%M:%S\n")
    text = slurm.script("small --time=2", "tcp://node:8786", 1, 1)
    done = subprocess.run(["bash", "-e"], input=text, capture_output=True, text=True)
    assert done.returncode == 1 and "no time to work" in done.stderr


@pytest.mark.parametrize("options", ["", "gpu normal", "--time 1:00", "gpu 'x"])
def test_options_for_slurm_that_are_none_are_refused(options):
    with pytest.raises(UserError, match="--slurm"):
        slurm.script(options, "tcp://node:8786", 1, 1)


def test_where_there_is_no_slurm_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no sbatch here: .*--dry-run"):
        slurm.submit("#!/bin/bash\n")


# --- the table that changes -----------------------------------------------------------------------


@pytest.fixture
def some_runs(todo, tmp_path):
    runs = [progress.Run(e, e, tmp_path / e.name) for e in todo]
    runs[0].state, runs[0].trained = "finished", 3
    runs[1].state, runs[1].note = "failed", "no space is left"
    folder = runs[2].folder
    folder.mkdir()
    (folder / "run.lock").touch()
    (folder / "run.json").write_text('{"steps": {"seg_baseline": {}}}')
    progress.look_at(runs)
    return runs


def test_a_table_says_where_each_run_stands(some_runs):
    table = progress.table(some_runs)
    assert list(table["state"]) == ["finished", "failed", "running", "waiting"]
    assert table["regimes"][2] == "1 of 3"
    said = progress.summary(some_runs, "2 at once")
    assert said == "4 runs, 2 at once: 1 finished, 1 running, 1 failed, 1 waiting"


def test_a_log_has_a_line_for_each_change(some_runs, capsys):
    show = progress._Log()
    show(some_runs, "here")
    show(some_runs, "here")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[1].endswith(": failed (no space is left)")


def test_a_terminal_is_written_over(some_runs, capsys):
    show = progress._Terminal()
    show(some_runs, "here")
    assert "\x1b[3A" not in capsys.readouterr().out
    show(some_runs, "here")
    again = capsys.readouterr().out
    assert again.startswith("\x1b[3A") and "no space is left" in again


def test_a_notebook_has_one_output_that_changes(some_runs, monkeypatch):
    shown = []

    class Output:
        def update(self, table):
            shown.append(table)

    monkeypatch.setattr("IPython.display.display", lambda table, display_id: Output())
    show = progress._Notebook()
    show(some_runs, "here")
    show(some_runs, "here")
    (table,) = shown
    assert "1 failed" in table.to_html() and "no space is left" in table.to_html()
