"""The machine: a device that trains is picked, an unusable one is named, and the doctor always has
an answer.
"""

import os
import re
import subprocess
import sys

from deepatlas import datasets, doctor, losses, machine, models, networks

import psutil
import pytest
import torch
from helpers import one_thread  # noqa: F401
from torch import nn
from torch.profiler import ProfilerActivity, profile

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
        r"^freed memory: ",
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
    """What a fresh process prints, with these environment variables and no others about threads
    and freed memory.
    """
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MALLOC_TRIM_THRESHOLD_")
    names += ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    environment = {name: v for name, v in os.environ.items() if name not in names}
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


# As a step does: pieces of 8 MiB, all freed, and asked for again.
PAGES_ASKED_FOR = """
import resource, torch
for _ in range(20):
    pieces = [torch.zeros(2**21) for _ in range(6)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(os, "confstr"), reason="glibc is asked for by its name")
def test_freed_memory_is_kept_for_the_next_step_unless_the_environment_says_otherwise():
    if not (os.confstr_names.get("CS_GNU_LIBC_VERSION") and os.confstr("CS_GNU_LIBC_VERSION")):
        pytest.skip("this C library is not glibc")
    begin = "import resource, torch, deepatlas.machine as machine\n"
    begin += "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
    kept = int(said(begin + PAGES_ASKED_FOR))
    given_back = int(said(begin + PAGES_ASKED_FOR, MALLOC_TRIM_THRESHOLD_="131072"))
    assert kept < 2 * 6 * 2**11 < given_back / 5  # once or twice a page of 4 KiB, and every time
    say = "from deepatlas import machine; print(machine.freed_memory())"
    assert "up to 128 MiB" in said(say)
    assert "variables" in said(say, MALLOC_TRIM_THRESHOLD_="131072")


def test_busy_cores_are_between_none_and_all():
    assert 0 <= machine.busy_cores(0.1) <= psutil.cpu_count()


# --- memory of a training step --------------------------------------------------------------------


def kit(dims, structures=5):
    torch.manual_seed(0)
    return models.build("kit", dims, structures, velocity=True, passes=1)


def peak_gib(step):
    """The most that is held at once, as PyTorch's allocator counts it."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**30


def test_what_a_step_holds_is_known_before():
    """A joint turn of either network, 32 structures: the estimate is near what the allocator
    says.
    """
    structures, shape = 32, (32, 32, 32)
    nets = kit(3, structures)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, *shape, generator=generator)
    moving, fixed = images.split(1)
    truth = torch.rand(1, structures, *shape, generator=generator).softmax(1)

    def reg_turn():
        phi = nets["reg"](moving, fixed)
        with torch.no_grad():
            guess = models.probabilities(nets["seg"], moving)
        anatomy = losses.soft_dice(phi.warp(guess), truth)
        (losses.lncc(phi.warp(moving), fixed) + anatomy).backward()

    def seg_turn():
        with torch.no_grad():
            warped = nets["reg"](moving, fixed).warp(truth)
        taught, compared = nets["seg"](images).split(1)
        anatomy = losses.soft_dice(warped, models.as_probabilities(compared))
        (losses.softmax_dice(taught, truth.argmax(1)) + anatomy).backward()

    for turn, step in (("reg", reg_turn), ("seg", seg_turn)):
        wanted = machine.step_gib(nets, shape, structures, {turn: 1}, mixed=False)
        assert wanted == pytest.approx(peak_gib(step), rel=0.25)
        assert machine.step_gib(nets, shape, structures, {turn: 4}, mixed=False) == 4 * wanted
        assert (
            wanted / 2 < machine.step_gib(nets, shape, structures, {turn: 1}, mixed=True) < wanted
        )


def test_memory_is_spared_where_a_step_would_not_fit(monkeypatch, capsys):
    nets, pairs = kit(2), {"seg": 1, "reg": 3}
    wanted = machine.step_gib(nets, (64, 80), 5, pairs, mixed=False)
    decided = []
    for free in (2 * wanted, wanted):
        monkeypatch.setattr(machine, "free_memory_gib", lambda device, free=free: free)
        decided.append(machine.must_spare(nets, (64, 80), 5, pairs, mixed=False, device="cpu"))
    assert decided == [False, True]
    said_once = capsys.readouterr().out
    assert said_once.startswith("a training step of 3 pairs of 64 x 80 voxels would hold about")
    assert said_once.count("\n") == 1


def test_on_a_gpu_a_half_of_the_batch_must_fit(monkeypatch):
    nets, pairs = kit(2), {"reg": 4}
    wanted = machine.step_gib(nets, (64, 80), 5, pairs, mixed=False)
    decided = []
    for free in (0.6 * wanted, 0.5 * wanted):
        monkeypatch.setattr(machine, "free_memory_gib", lambda device, free=free: free)
        decided.append(machine.must_spare(nets, (64, 80), 5, pairs, mixed=False, device="cuda"))
    assert decided == [False, True]


class OfItsOwn(nn.Module):
    """A network that looks at a number on its way."""

    def forward(self, image):
        return image * 2 if image.sum().item() > 0 else image


def test_a_network_that_needs_numbers_is_not_estimated():
    assert machine.held_bytes(OfItsOwn(), [torch.empty(1, 1, 8, 8, device="meta")]) == 0


def test_memory_that_is_free():
    assert 0 < machine.free_memory_gib() < 2**20


# --- networks fitted to a machine -----------------------------------------------------------------


@pytest.fixture
def one_layer():
    torch.manual_seed(0)
    return nn.Conv2d(1, 1, 3)


IMAGE = torch.linspace(0, 1, 64).view(1, 1, 8, 8)


class OneConvolution(nn.Module):
    """(moving, fixed) -> a velocity."""

    def __init__(self):
        super().__init__()
        self.layer = networks.convolution(2, 2, 2)

    def forward(self, moving, fixed):
        return self.layer(torch.cat([moving, fixed], 1))


@pytest.mark.parametrize("dims", [2, 3])
def test_compiled_networks_are_the_same_networks(monkeypatch, capsys, dims):
    """Exp and all, in one piece, both ways; and afterwards nothing is compiled. What is not tried:
    the compiler's last step, by which C++ is written, and which takes minutes.
    """
    until_then = torch._dynamo.lookup_backend("aot_eager")
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: until_then)
    monkeypatch.setattr(machine, "compile_problem", lambda device: None)
    torch.manual_seed(0)
    net = models.Registration(networks.RegistrationNet(dims, (16, 16)), velocity=True, passes=1)
    pair = [torch.rand(1, 1, *[8] * dims) for _ in range(2)]

    def turn():
        net.zero_grad()
        u = net(*pair).displacement
        u.square().mean().backward()
        return [u.detach(), *(weight.grad for weight in net.parameters())]

    names = list(net.state_dict())
    expected = turn()
    counters = torch._dynamo.utils.counters
    counters.clear()
    with machine.compiled({"reg": net}, "cpu") as done:
        assert done
        found = turn()
        assert list(net.state_dict()) == names
    assert capsys.readouterr().out == ""  # nothing runs as it is
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for one, other in zip(found, expected, strict=True):  # many are 0, but for rounding
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-9)
    assert torch.equal(turn()[0], expected[0])
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")  # as it is here
def test_it_is_said_that_there_is_no_compiler(monkeypatch, capsys, one_layer):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch._dynamo.reset()
    before = torch.get_rng_state()
    with machine.compiled({"seg": one_layer}, "cpu") as done:
        assert not done
    told = capsys.readouterr().out
    assert told.startswith("the networks are not compiled (InvalidCxxCompiler: No working C++")
    assert told.endswith("): they train as they are\n") and told.count("\n") == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_compiled_that_is_not_wanted(capsys, one_layer):
    with machine.compiled({"seg": one_layer}, "cpu", wanted=False) as done:
        assert not done
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("device", ABSENT)
def test_nothing_is_compiled_for_a_device_that_is_absent(device):
    assert machine.compile_problem(device)


def test_what_the_compiler_cannot_do_runs_as_it_is(monkeypatch, capsys):
    def refuse(graph, inputs):
        raise RuntimeError("no such thing\nfurther down")

    monkeypatch.setattr(machine, "compile_problem", lambda device: None)
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: refuse)
    net = OneConvolution()
    expected = net(IMAGE, IMAGE)
    with machine.compiled({"reg": net}, "cpu") as done:
        assert done
        assert torch.equal(net(IMAGE, IMAGE), expected)
    assert capsys.readouterr().out == (
        "a part of a network is not compiled (no such thing): it runs as it is\n"
    )


def test_a_cpu_keeps_its_layout(one_layer):
    assert machine.lay_out({"seg": one_layer}, (8, 8), mixed=False, device="cpu") == []
    assert one_layer.weight.is_contiguous()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_trial_of_a_layout_leaves_the_weights_as_they_are(dims):
    torch.manual_seed(0)
    net = nn.Sequential(
        networks.block(dims, 1, 16), nn.Dropout(), nn.Flatten(2), nn.BatchNorm1d(16)
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    image = torch.rand(1, 1, *[8] * dims)
    assert isinstance(machine._is_faster_channels_last(net, [image], False), bool)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert all(weight.grad is None for weight in net.parameters())
    first = net[0][3].weight
    assert first.is_contiguous(
        memory_format=(torch.channels_last, torch.channels_last_3d)[dims - 2]
    )


@pytest.mark.parametrize(
    "before, after, shift, faster",
    [(1.2, 1.0, 0.0, True), (1.05, 1.0, 0.0, False), (1.2, 1.0, 1.0, False)],
)
def test_a_layout_must_be_clearly_faster_and_answer_alike(
    monkeypatch, one_layer, before, after, shift, faster
):
    answers = iter([(before, IMAGE), (after, IMAGE + shift)])
    monkeypatch.setattr(machine, "_training_seconds", lambda *_: next(answers))
    assert machine._is_faster_channels_last(one_layer, [IMAGE], False) is faster


def test_a_layout_without_a_kernel_is_not_taken(monkeypatch, one_layer):
    def refuse(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(machine, "_training_seconds", refuse)
    assert machine._is_faster_channels_last(one_layer, [IMAGE], False) is False
