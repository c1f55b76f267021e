"""Regimes trained side by side, found in other runs, and waited for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from deepatlas import experiments, locks, reporting, side_by_side, trainings
from deepatlas.checkpoints import Interrupted, OutOfTime
from deepatlas.errors import UserError
from deepatlas.parameters import parse
from deepatlas.regimes import JOINT, regimes

import pytest
import torch

SMOKE = {"profile": "smoke", "dims": 2, "device": "cpu", "precision": "float32"}

LONG = {**SMOKE, "seg_steps": 3000, "reg_steps": 3000}


def begin_long_run(root, **streams):
    """The command, with two workers."""
    values = [f"{name}={value}" for name, value in LONG.items()]
    command = [sys.executable, "-m", "deepatlas.cli", "run", *values, "--no-notebook"]
    command += ["--workers", "2", "--root", str(root)]
    threads = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=threads, **streams)


@pytest.fixture(scope="module")
def one_thread():
    """As many threads as each worker has: last bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(one_thread, tmp_path_factory):
    """A run by this process."""
    return experiments.run(parse(SMOKE), tmp_path_factory.mktemp("alone"))


def test_side_by_side_and_one_after_the_other_are_the_same(alone, tmp_path, capsys):
    folder = experiments.run(parse(SMOKE), tmp_path, workers=3)
    assert folder.name == alone.name
    assert (folder / "scores.csv").read_bytes() == (alone / "scores.csv").read_bytes()
    record = reporting.load_record(folder)
    assert list(record["steps"]) == list(parse(SMOKE).table)
    told = capsys.readouterr().out
    first, last = told.index("seg, 4 steps"), told.index("[7/7]")
    assert first < told.index("Dice % (SD)") < last  # a table before all is trained


def test_an_interrupt_saves_what_each_of_them_has(alone, tmp_path):
    process = begin_long_run(tmp_path, stderr=subprocess.PIPE, text=True)
    wanted = [f"*/{key}_baseline/checkpoint.pt" for key in ("seg", "reg")]
    while not all(list(tmp_path.glob(name)) for name in wanted) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    (folder,) = (record.parent for record in tmp_path.glob("*/run.json"))
    assert not (folder / trainings.RUN_LOCK).exists()
    for key in ("seg_baseline", "reg_baseline"):
        state = torch.load(folder / key / "checkpoint.pt", weights_only=True)
        assert 0 < sum(state["turns"].values()) < 3000


def test_lessons_train_side_by_side_what_they_would_train_here(alone, tmp_path):
    experiment = parse(SMOKE)
    beside = experiments.train_or_load(experiment, "semi_seg", root=tmp_path, workers=2)
    here = experiments.train_or_load(experiment, "semi_seg", root=alone.parent)
    assert here.keys() == beside.keys()
    for regime, nets in here.items():
        for name, net in nets.items():
            for key, weights in net.state_dict().items():
                assert torch.equal(weights, beside[regime][name].state_dict()[key])


def test_they_stop_in_time(one_thread, tmp_path):
    experiment = parse(LONG)
    with pytest.raises(OutOfTime, match="goes on"):
        experiments.run(experiment, tmp_path, workers=2, until=time.monotonic() + 12)
    assert not reporting.read_record(tmp_path / experiment.name)["finished"]


def test_what_goes_wrong_with_one_is_told_and_the_others_are_saved(one_thread, tmp_path):
    experiment = parse({**SMOKE, "reg_rate": 1e30, "seg_steps": 3000})
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        experiments.run(experiment, tmp_path, workers=2)
    state = torch.load(
        tmp_path / experiment.name / "seg_baseline" / "checkpoint.pt", weights_only=True
    )
    assert state["turns"]["seg"] < 3000


def test_a_worker_that_is_killed_is_told(one_thread, tmp_path, monkeypatch):
    experiment = parse(LONG)
    seen = []

    def kill(workers, seconds, wait=side_by_side.Workers.wait):
        seen[:] = workers.processes
        if workers.steps:
            seen[0].kill()
        return wait(workers, seconds)

    monkeypatch.setattr(side_by_side.Workers, "wait", kill)
    with pytest.raises(UserError, match=r"has died .*--workers 1"):
        experiments.run(experiment, tmp_path, workers=2)
    assert all(process.poll() is not None for process in seen)


def test_a_worker_that_died_before_it_was_told_anything_is_told(alone):
    trained = trainings.go_on(alone, "cpu")
    trained.lock = locks.Lock(alone / trainings.RUN_LOCK)
    with trained.lock, pytest.raises(UserError, match=r"trained Baseline has died \(signal 9\)"):
        workers = side_by_side.Workers(trained, 1, side_by_side.Call())
        with workers:
            workers.processes[0].kill()
            workers.processes[0].wait()
            workers.start("seg_baseline")
            workers.wait(10)


def test_a_worker_whose_run_another_process_has_says_so(alone):
    trained = trainings.go_on(alone, "cpu")
    trained.lock = locks.Lock(alone / trainings.RUN_LOCK)
    with trained.lock:
        workers = side_by_side.Workers(trained, 1, side_by_side.Call())
        (alone / trainings.RUN_LOCK).unlink()
        with workers, pytest.raises(UserError, match="its lock is gone"):
            workers.wait(60)


def test_a_request_to_stop_does_not_end_a_worker_that_waits_for_work(alone):
    trained = trainings.go_on(alone, "cpu")
    trained.lock = locks.Lock(alone / trainings.RUN_LOCK)
    with trained.lock, side_by_side.Workers(trained, 1, side_by_side.Call()) as workers:
        workers.start("seg_baseline")
        assert workers.wait(60) == "seg_baseline"
        workers.processes[0].terminate()  # as a queue does to all processes of a job
        workers.start("reg_baseline")
        assert workers.wait(60) == "reg_baseline"


def test_workers_end_when_the_process_that_holds_the_run_is_killed(one_thread, tmp_path):
    process = begin_long_run(tmp_path, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("*/*/checkpoint.pt")) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    (folder,) = (record.parent for record in tmp_path.glob("*/run.json"))
    end = time.monotonic() + 60
    while workers_of(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert not workers_of(folder)
    lock = locks.Lock(folder / trainings.RUN_LOCK)
    lock.acquire()  # that of a process that has ended is anybody's
    lock.release()


def workers_of(folder):
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if "side_by_side" in line and str(folder) in line]


def test_no_workers_are_refused(alone, tmp_path):
    with pytest.raises(UserError, match="workers: 1 or more was wanted"):
        experiments.run(parse({**SMOKE, "seed": 1}), tmp_path, workers=0)


def test_how_many_pay(monkeypatch):
    table = regimes(1)
    experiment = parse({"dims": 2})
    costs = {
        key: side_by_side.cost(table[key], steps)
        for key, steps in trainings.own_steps(experiment).items()
    }
    cpu = torch.device("cpu")

    def found(costs, threads, dims=2, device=cpu, gib=100.0):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(side_by_side.machine, "free_memory_gib", lambda: gib)
        return side_by_side.workers_that_pay(table, costs, dims, device)

    assert found(costs, 1) == 1 and found(costs, 2) == 2 and found(costs, 2, dims=3) == 2
    assert 2 <= found(costs, 16) <= side_by_side.MOST
    assert found(costs, 2, gib=1.0) == 1  # no room
    assert found(costs, 2, device=torch.device("cuda")) == 1
    chain = {key: costs[key] for key in ("reg_baseline", "semi_seg", "semi_reg")}
    assert found(chain, 2) == 1  # each waits for the one before
    assert found(dict.fromkeys(costs, 5), 2) == 1  # over before others have begun


def test_baselines_are_begun_first_and_then_what_most_waits_for():
    table = regimes(1)
    order = side_by_side.soonest(table, dict.fromkeys(table, 1), 2)
    assert order[:3] == ["reg_baseline", "seg_baseline", "semi_seg"]
    assert set(order) == set(table)


def test_what_takes_as_long_as_all_the_rest_is_begun_at_once():
    table = {key: regimes(1)[key] for key in ("seg_baseline", "reg_baseline", "semi_seg", JOINT)}
    costs = {"seg_baseline": 3, "reg_baseline": 2, "semi_seg": 6, JOINT: 11}
    order = side_by_side.soonest(table, costs, 2)
    assert order[0] == JOINT and set(order) == set(table)
    baselines_first = ["reg_baseline", "seg_baseline", JOINT, "semi_seg"]
    assert side_by_side.duration(order, table, costs, 2) == 11  # the others: 2 + 6 + 3
    assert side_by_side.duration(baselines_first, table, costs, 2) == 2 + 11
    assert side_by_side.duration(baselines_first, table, costs, 1) == sum(costs.values())


# --- regimes that runs have in common -------------------------------------------------------------


def test_runs_share_what_is_the_same_in_both(alone, tmp_path, monkeypatch, capsys):
    shutil.copytree(alone, tmp_path / alone.name)
    other = parse({**SMOKE, "lambda_a": 5.0})
    trained = []
    train = trainings.training.train

    def counted(nets, cohort, regime, settings, folder, *more, **others):
        if not (folder / "checkpoint.pt").is_file():
            trained.append(folder.name)
        return train(nets, cohort, regime, settings, folder, *more, **others)

    monkeypatch.setattr(trainings.training, "train", counted)
    folder = experiments.run(other, tmp_path)
    # lambda_a weighs in every regime that consults, and in full supervision's registration
    shared = {"seg_baseline", "reg_baseline", "seg_full"}
    assert set(trained) == set(other.table) - shared
    record = reporting.load_record(folder)
    assert record["found_in"] == dict.fromkeys(sorted(shared), alone.name)
    assert f"found in {tmp_path / alone.name}" in capsys.readouterr().out
    # it is as if it had been trained here
    undisturbed = experiments.run(other, tmp_path / "elsewhere")
    assert (folder / "scores.csv").read_bytes() == (undisturbed / "scores.csv").read_bytes()


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"seg_rate": 1e-3}, {"augmentation": 0.5}, {"precision": "bfloat16"}],
    ids=str,
)
def test_another_start_or_another_way_is_not_shared(alone, tmp_path, other):
    shutil.copytree(alone, tmp_path / alone.name)
    experiments.train_or_load(parse({**SMOKE, **other}), "seg_baseline", root=tmp_path)
    (folder,) = (r.parent for r in tmp_path.glob("*/run.json") if r.parent.name != alone.name)
    assert "found_in" not in json.loads((folder / "run.json").read_text())


def test_scans_on_another_grid_are_not_the_same(alone, tmp_path):
    shutil.copytree(alone, tmp_path / alone.name)
    entry = parse(SMOKE).entry
    wider = entry.grids["smoke-2d"].model_copy(update={"spacing": 7.0})
    grids = entry.grids | {"smoke-2d": wider}
    other = parse(SMOKE, entry.model_copy(update={"grids": grids}))
    experiments.train_or_load(other, "seg_baseline", root=tmp_path)
    assert "found_in" not in json.loads((tmp_path / other.name / "run.json").read_text())


def test_what_was_found_and_is_trained_again_is_not_said_to_be_found(alone, tmp_path):
    shutil.copytree(alone, tmp_path / alone.name)
    other = parse({**SMOKE, "lambda_a": 5.0})
    experiments.train_or_load(other, "seg_baseline", root=tmp_path)
    folder = tmp_path / other.name
    assert json.loads((folder / "run.json").read_text())["found_in"] == {"seg_baseline": alone.name}
    shutil.rmtree(tmp_path / alone.name)
    (folder / "seg_baseline" / "checkpoint.pt").unlink()
    experiments.train_or_load(other, "seg_baseline", root=tmp_path)
    assert json.loads((folder / "run.json").read_text())["found_in"] == {}


def test_a_damaged_regime_of_another_run_is_trained_here(alone, tmp_path):
    copy = shutil.copytree(alone, tmp_path / alone.name)
    (copy / "seg_baseline" / "checkpoint.pt").write_bytes(b"damaged")
    other = parse({**SMOKE, "lambda_a": 5.0})
    experiments.train_or_load(other, "seg_baseline", root=tmp_path)
    assert "found_in" not in json.loads((tmp_path / other.name / "run.json").read_text())


def test_one_waits_for_the_regime_that_another_run_trains(alone, tmp_path, capsys):
    other = parse({**SMOKE, "lambda_a": 5.0})
    begun = experiments.train_or_load(other, "seg_baseline", root=tmp_path)
    assert set(begun) == {"seg_baseline"}
    going_on = trainings.go_on(tmp_path / other.name, "cpu")
    held = going_on.lock_of("reg_baseline")
    held.acquire()  # as another run does that trains it
    with pytest.raises(OutOfTime):
        experiments.run(other, tmp_path, until=time.monotonic() + 3)
    assert "another run trains the same" in capsys.readouterr().out
    held.release()
    assert reporting.load_record(experiments.run(other, tmp_path))["finished"]


def test_a_run_that_another_process_holds_is_refused_and_left_as_it_is(alone, tmp_path):
    folder = shutil.copytree(alone, tmp_path / alone.name)
    (folder / "scores.csv").unlink()
    before = (folder / "run.json").read_bytes()
    with locks.Lock(folder / trainings.RUN_LOCK), pytest.raises(locks.Held, match="process"):
        experiments.run(parse(SMOKE), tmp_path)
    assert (folder / "run.json").read_bytes() == before


def test_a_lesson_waits_for_another_that_trains_in_its_folder(tmp_path, monkeypatch):
    experiment = parse(SMOKE)
    lock = locks.Lock(tmp_path / experiment.name / trainings.RUN_LOCK)
    lock.acquire()
    asked = []

    def stopped(self, poll, stopped):
        asked.append(poll)
        return False

    monkeypatch.setattr(locks.Lock, "wait", stopped)
    with pytest.raises(Interrupted, match="another process"):
        experiments.train_or_load(experiment, "seg_baseline", root=tmp_path)
    assert asked
    lock.release()
