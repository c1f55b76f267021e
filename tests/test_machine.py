"""The machine: a device that trains is picked, an unusable one is named, and the doctor always has
an answer.
"""

import os
import re
import subprocess
import sys

from deepatlas import datasets, doctor, machine

import psutil
import pytest
import torch

ABSENT = [
    name
    for name, there in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    )
    if not there
]


@pytest.fixture(scope="module")
def report():
    """The doctor's lines."""
    return list(doctor.examine())


def test_the_cpu_can_always_be_picked():
    assert machine.pick_device("cpu") == "cpu"


def test_auto_picks_a_device_that_trains():
    device = machine.pick_device()
    assert device == machine.pick_device("auto") in ("cuda", "mps", "cpu")
    assert machine.step_problem(device) is None


@pytest.mark.parametrize("wanted", [*ABSENT, "nonsense", "", "cuda:99", "cpu:x", "meta"])
def test_an_unusable_device_is_one_clear_sentence(wanted):
    with pytest.raises(
        ValueError, match=r"cannot train here \(.+\): choose 'auto' or 'cpu'"
    ) as caught:
        machine.pick_device(wanted)
    assert str(caught.value).startswith(f"device {wanted!r} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("first\nsecond"), AssertionError(), NotImplementedError("")]
)
def test_a_device_that_lacks_an_operation_is_passed_over(monkeypatch, error):
    """Whatever the operation says, even nothing, and whether CUDA is here or not."""

    def refuse(*_):
        raise error

    monkeypatch.setattr(machine.losses, "ncc", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.step_problem("cpu") in ("first", "AssertionError", "NotImplementedError")
    assert machine.pick_device("auto") == "cpu"


@pytest.mark.parametrize("shape", [(64, 64), (40, 48, 40), (64, 64, 64)])
def test_whether_bfloat16_pays_is_a_plain_answer(shape):
    assert isinstance(machine.bfloat16_pays("cpu", shape), bool)
    assert isinstance(machine.bfloat16_pays(torch.device("cpu"), shape), bool)


@pytest.mark.parametrize("shape", [(16, 16, 16), (16, 24, 16), (64, 64, 16)])
def test_bfloat16_is_never_used_on_tiny_volumes(monkeypatch, shape):
    times = {torch.float32: 9.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(machine, "_convolution_seconds", lambda dtype, dims: times[dtype])
    assert machine.bfloat16_pays("cpu", (40, 48, 40))
    assert not machine.bfloat16_pays("cpu", shape)


@pytest.mark.parametrize("seconds, pays", [(1.0, False), (0.9, False), (0.5, True)])
def test_bfloat16_must_be_clearly_faster(monkeypatch, seconds, pays):
    times = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(machine, "_convolution_seconds", lambda dtype, dims: times[dtype])
    assert machine.bfloat16_pays("cpu") is pays


@pytest.mark.parametrize("patience, passes", [(0.0, 1), (60.0, 6)])
def test_a_hopelessly_slow_pass_is_not_repeated(monkeypatch, patience, passes):
    """In bfloat16 without instructions for it: a second each."""
    seen = []
    layer = torch.nn.Identity()
    layer.register_forward_hook(lambda *call: seen.append(call))
    monkeypatch.setattr(machine.networks, "convolution", lambda *channels: layer)
    monkeypatch.setattr(machine, "HOPELESS", patience)
    assert machine._convolution_seconds(torch.bfloat16, 2) > 0
    assert len(seen) == passes


def test_peak_memory_counts_what_was_held_and_never_falls():
    before = machine.peak_memory_gib("cpu")
    block = torch.ones(2**26)  # a quarter GiB
    held = machine.peak_memory_gib("cpu")
    del block
    assert held >= 0.25
    late = 0.05  # the kernel counts pages in batches
    assert 0 < before <= held + late and held <= machine.peak_memory_gib("cpu") + late


def test_the_processor_has_a_name():
    assert machine.device_name("cpu").strip()


def test_the_doctor_reports_everything_and_ends_with_advice(report):
    lines = report
    text = "\n".join(lines)
    for pattern in (
        r"^deepatlas \d+\.\d+.*Python 3\.",
        r"^torch \d",
        r"^cuda: ",
        r"^mps: ",
        r"^cpu: \d+ cores, [\d.]+ of them busy now, \d+ threads",
        r"^waiting threads: ",
        r"^bfloat16 on \w+: (faster|not faster)",
        r"^free: [\d.]+ GiB of memory, [\d.]+ GiB of disk",
        r"^data: DEEPATLAS_DATA is ",
    ):
        assert re.search(pattern, text, re.MULTILINE), f"no line {pattern} in\n{text}"
    assert all(f"  {name}: " in text for name in datasets.manifest())
    assert lines[-1].startswith("advice: ") and len(lines[-1]) > 20
    assert not any("\n" in line for line in lines)


def test_the_doctor_says_what_is_not_there(report):
    for name in ABSENT:
        assert f"{name}: not there" in report


@pytest.mark.parametrize("home", [None, "/nowhere/at/all"])
def test_the_doctor_works_without_data(monkeypatch, tmp_path, home):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path))
    monkeypatch.delenv("DEEPATLAS_DATA", raising=False)
    if home:
        monkeypatch.setenv("DEEPATLAS_DATA", home)
    lines = list(doctor.examine())
    assert f"data: DEEPATLAS_DATA is {f'{home}, no such folder' if home else 'not set'}" in lines
    assert "  hippocampus: can be downloaded" in lines
    assert "  oasis35: not found; needs DEEPATLAS_DATA" in lines
    assert "  phantom-brain: made on the spot" in lines


def test_the_doctor_names_the_folder_of_data_that_are_there(monkeypatch, tmp_path):
    (tmp_path / "oasis35").mkdir()
    (tmp_path / "oasis35" / "dataset.json").write_text("{}")
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path))
    assert doctor._where("oasis35-cortex") == str(tmp_path / "oasis35")


@pytest.mark.parametrize(
    "device, memory, disk, busy, word",
    [
        ("cpu", 1.0, 100.0, 0.0, "memory"),
        ("cpu", 16.0, 0.1, 0.0, "disk"),
        ("cuda", 16.0, 100.0, 0.0, "profile=full"),
        ("cpu", 16.0, 100.0, 0.0, "make experiment"),
        ("cpu", 16.0, 100.0, 0.95, "keep the processor busy"),
    ],
)
def test_the_advice_fits_the_machine(device, memory, disk, busy, word):
    assert word in doctor._advice(device, memory, disk, busy)


# --- threads --------------------------------------------------------------------------------------

SAY = "from deepatlas import machine; print(machine.waiting_threads())"


def said(code, **variables):
    """What a fresh process prints, with these environment variables and no others about threads."""
    about_threads = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: v for name, v in os.environ.items() if name not in about_threads}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is Linux's")
@pytest.mark.parametrize(
    "code, variables, wanted",
    [
        (SAY, {}, "GOMP_SPINCOUNT=3000"),
        (SAY, {"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT=7"),  # the user's own bound stays
        (SAY, {"OMP_WAIT_POLICY": "PASSIVE"}, "by OMP_WAIT_POLICY=PASSIVE"),
        (f"import torch; {SAY}", {}, "too late"),
    ],
)
def test_waiting_threads_are_bounded_and_it_is_said_where_not(code, variables, wanted):
    assert wanted in said(code, **variables)


def test_a_chosen_wait_policy_is_not_overruled():
    code = "import deepatlas, os; print('GOMP_SPINCOUNT' in os.environ)"
    assert said(code, OMP_WAIT_POLICY="PASSIVE").strip() == "False"


def test_busy_cores_are_between_none_and_all():
    assert 0 <= machine.busy_cores(0.1) <= psutil.cpu_count()
