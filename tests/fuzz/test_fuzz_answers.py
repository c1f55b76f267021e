"""Answers that nobody expects, to every exercise: a verdict, never an error, never "right"; files
of answers, damaged: the same answers, or a sentence.
"""

import json
import random
import warnings
from collections import UserDict, deque
from decimal import Decimal

from deepatlas import exercises
from deepatlas.errors import UserError

import fuzzing
import numpy as np
import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.usefixtures("answers")

NAMES = [
    f"{lesson}.{task}" for lesson in exercises.lessons() for task in exercises.exercises_of(lesson)
]


# --- answers --------------------------------------------------------------------------------------


class Raising(Exception):
    """An error whose text is an error."""

    def __str__(self):
        raise SystemExit("no text")


ERRORS = [
    ValueError("x" * 10**6),
    ValueError("\x1b[2J\n" * 1000),
    SystemExit(0),
    SystemExit("bye"),
    GeneratorExit(),
    MemoryError(),
    RecursionError(),
    StopIteration(),
    UserWarning("a warning"),
    NotImplementedError("not yet"),
    Raising(),
    BaseException(),
    AssertionError(),
    UserError("a mistake"),
    OSError(28, "No space left on device"),
]


def resisting(*methods):
    """An object that raises, exits, or never ends wherever it is looked at by ``methods``."""

    def raises(self, *_):
        raise SystemExit("do not look")

    return type("Resisting", (), {method: raises for method in methods} | {"__hash__": None})()


def endless():
    while True:
        yield 1.0


def cycle():
    itself = []
    itself.append(itself)
    return itself


def deep():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    return nested


class LyingDict(dict):
    def keys(self):
        raise KeyError("no keys")

    __iter__ = items = __len__ = keys


class LyingList(list):
    def __iter__(self):
        raise SystemExit("no items")

    __len__ = __getitem__ = __iter__


class LyingArray(np.ndarray):
    def __array_finalize__(self, _):
        raise ValueError("no array")


class LyingNumber(float):
    def __float__(self):
        raise SystemExit("no number")

    __repr__ = __float__


# Each makes a thing, given the exercise's arguments.
THINGS = {
    "10**400": lambda *_: 10**400,
    "-10**5000": lambda *_: -(10**5000),
    "inf": lambda *_: float("inf"),
    "complex": lambda *_: 1 + 2j,
    "Decimal": lambda *_: Decimal("sNaN"),
    "float16": lambda *_: np.float16(7),
    "text": lambda *_: "\x1b[2J" * 1000,
    "number as text": lambda *_: "0.5",
    "bytes": lambda *_: b"\0" * 1000,
    "set": lambda *_: {1.0, 2.0},
    "deque": lambda *_: deque([1.0]),
    "empty": lambda *_: [],
    "empty dictionary": lambda *_: {},
    "other keys": lambda *_: {1: 2, None: 3, (1,): 4},
    "mapping": lambda *_: UserDict(train=[1], test=[2]),
    "lying dictionary": lambda *_: LyingDict(train=[1], test=[2]),
    "dictionary of things": lambda *_: {"train": resisting("__repr__"), "test": 10**400},
    "lying list": lambda *_: LyingList([1.0]),
    "lying number": lambda *_: LyingNumber(1.0),
    "lying array": lambda *_: np.zeros(3).view(LyingArray),
    "ragged": lambda *_: [[1.0], [1.0, 2.0]],
    "cycle": lambda *_: cycle(),
    "deep": lambda *_: deep(),
    "long": lambda *_: [0.0] * (10**6 + 1),
    "range": lambda *_: range(10**15),
    "generator": lambda *_: endless(),
    "map": lambda *given: map(lambda x: x, given),
    "class": lambda *_: int,
    "function": lambda *_: print,
    "module": lambda *_: torch,
    "itself": lambda *given: given,
    "resisting": lambda *_: resisting("__repr__", "__eq__", "__len__", "__iter__", "__bool__"),
    "no attributes": lambda *_: resisting("__getattribute__"),
    "raising class": lambda *_: resisting("__class__"),
    "objects": lambda *_: np.array([resisting("__float__", "__repr__")], dtype=object),
    "names": lambda *_: np.array(["x", "0.5"]),
    "dates": lambda *_: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "record": lambda *_: np.zeros(3, dtype=[("a", int)]),
    "complex array": lambda *_: np.zeros(3, dtype=complex),
    "huge array": lambda *_: np.broadcast_to(np.int8(0), (10**6, 10**6)),
    "huge lists": lambda *_: [[0.0] * 10**6] * 10**6,
    "masked": lambda *_: np.ma.masked_all(3),
    "series": lambda *_: pd.Series([0.1, 0.2]),
    "frame": lambda *_: pd.DataFrame({"a": [1]}),
    "NA": lambda *_: pd.NA,
    "sparse": lambda *_: torch.eye(3).to_sparse(),
    "compressed": lambda *_: torch.eye(3).to_sparse_csr(),
    "meta": lambda *_: torch.zeros(3, device="meta"),
    "quantised": lambda *_: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8),
    "nested": lambda *_: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "complex tensor": lambda *_: torch.zeros(3, dtype=torch.complex64),
    "conjugate": lambda *_: torch.zeros(3, dtype=torch.complex64).conj(),
    "imaginary part": lambda *_: torch.zeros(3, dtype=torch.complex64).conj().imag,
    "float8": lambda *_: torch.zeros(3).to(torch.float8_e4m3fn),
    "bits": lambda *_: torch.zeros(3, dtype=torch.bool),
    "no voxels": lambda *_: torch.zeros(0, 3),
    "huge tensor": lambda *_: torch.zeros(()).expand(10**6, 10**6),
    "parameter": lambda *_: torch.nn.Parameter(torch.full((3,), 7.0)),
    "packed": lambda *_: torch.nn.utils.rnn.pack_sequence([torch.zeros(2)]),
    "network": lambda *_: torch.nn.Linear(1, 1),
    "generator of PyTorch": lambda *_: torch.Generator(),
}


def likes(rng, given):
    """What has the shape of an argument, but other content or another type."""
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    if not tensors:
        return 12345
    one = rng.choice(tensors)
    ways = [
        lambda: torch.full_like(one.double(), float("nan")),
        lambda: one.to_sparse(),
        lambda: one.to("meta"),
        lambda: one.to(torch.complex64),
        lambda: torch.quantize_per_tensor(one.float(), 0.1, 0, torch.qint8),
        lambda: one.double() + 1e6,
        lambda: (one.double() * 1e300).requires_grad_() * 1e300,
        lambda: one.flip(0)[None],
    ]
    return rng.choice(ways)()


def vandal(rng, given):
    """Changes what it was given, and whatever is everybody's."""
    for one in given:
        if isinstance(one, torch.Tensor):
            one.data.zero_()
        elif isinstance(one, np.ndarray):
            one.fill(0)
        elif isinstance(one, list):
            one.clear()
    ways = [
        lambda: torch.set_grad_enabled(False),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("meta"),
        lambda: torch.manual_seed(0),
        lambda: np.random.seed(0),
        lambda: random.seed(0),
        lambda: np.seterr(all="raise"),
        lambda: warnings.simplefilter("error"),
    ]
    for way in rng.sample(ways, 4):
        way()
    return 12345


def hostile(rng):
    """(words, an answer)"""
    kind = rng.choice(["thing", "thing", "thing", "error", "like", "vandal", "signature", "none"])
    if kind == "thing":
        name = rng.choice(list(THINGS))
        return name, THINGS[name]
    if kind == "error":
        error = rng.choice(ERRORS)

        def raising(*_):
            raise error

        return f"raises {type(error).__name__}", raising
    if kind == "like":
        return kind, lambda *given: likes(rng, given)
    if kind == "vandal":
        return kind, lambda *given: vandal(rng, given)
    if kind == "signature":
        return kind, rng.choice(
            [lambda: 1, lambda *, a: a, lambda *_, **__: next(iter(__)), 7, None]
        )

    def recursive(*given):
        return recursive(*given)

    return "recursive", recursive


def everybodys():
    """What an answer must leave as it was."""
    return (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_rng_state().sum().item(),
        np.random.get_state()[1].sum(),
        random.getstate(),
        str(np.geterr()),
        len(warnings.filters),
    )


def test_no_answer_stops_a_notebook(capsys):
    for number, rng in fuzzing.cases(600):
        name = rng.choice(NAMES)
        what, answer = hostile(rng)
        before = everybodys()
        with fuzzing.told(number, f"{what} to {name}"):
            exercises.check(name, answer)
            out = capsys.readouterr().out
            assert out[0] in "✗…", out
            assert len(out) < 3000 and "\x1b" not in out
            assert everybodys() == before


# --- files of answers -----------------------------------------------------------------------------

VALUES = [None, True, 1, -1, 10**400, 1.5, float("nan"), "", "x", "=1", [], {}, [[]], "\ud800"]


def some_answers(rng):
    known = {}
    for _ in range(rng.randrange(1, 5)):
        known[rng.choice([*NAMES, "prediction 01.x", "quiz 01.1"])] = {
            "solved": rng.random() < 0.5,
            "tries": rng.randrange(5),
            "last": rng.choice(["", "other"]),
            "when": "2024-01-01 00:00:00",
        }
    return known


def damaged(rng, known):
    """Bytes of a file of answers with which something has happened."""
    text = json.dumps(known, indent=1)
    data = text.encode()
    kind = rng.choice(["bits", "cut", "value", "entry", "all", "twice", "zeros"])
    if kind == "bits":
        return fuzzing.flipped(data, rng, rng.randrange(1, 4))
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    if kind == "zeros":
        start = rng.randrange(len(data))
        return data[:start] + b"\0" * (len(data) - start)
    if kind == "twice":
        return data + data
    if kind == "all":
        return json.dumps(rng.choice(VALUES)).encode()
    name = rng.choice(list(known))
    if kind == "entry":
        known[name] = rng.choice(VALUES)
    else:
        known[name] = known[name] | {rng.choice(["solved", "tries", "last"]): rng.choice(VALUES)}
    return json.dumps(known).encode()


def test_damaged_answers_are_told_and_kept(tmp_path, capsys, answers):
    """Either a sentence that names the file, which then stays as it is, or a file of answers in
    which the new one stands beside the others.
    """
    for number, rng in fuzzing.cases(150):
        content = damaged(rng, some_answers(rng))
        answers.write_bytes(content)
        with fuzzing.told(number, content[:300]):
            try:
                before = exercises.read_answers()
            except UserError as error:
                assert str(answers) in str(error)
                before = None
            exercises.check("01.world", exercises.find("01.world").right)
            out = capsys.readouterr().out
            assert "✓ From a voxel to millimetres" in out
            if before is None:
                assert answers.read_bytes() == content and "(not kept: " in out
                continue
            after = exercises.read_answers()
            assert after.pop("01.world")["solved"]
            before.pop("01.world", None)
            assert after == before
            for row in exercises.collect_answers([answers]):
                assert row["item"][:1] not in "=+-@" or row["item"] == ""
