"""What every fuzzer shares: cases by number, each with its own random numbers.

``make test`` tries some ten seconds of each. By hand, any length:

    DEEPATLAS_FUZZ=100 pytest tests/fuzz        a hundred times as many cases
    DEEPATLAS_FUZZ_SEED=7 pytest tests/fuzz     other ones

A case that fails is told by its number, and is the only one tried with DEEPATLAS_FUZZ_CASE=number.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SEED = int(os.environ.get("DEEPATLAS_FUZZ_SEED", 0))
TIMES = float(os.environ.get("DEEPATLAS_FUZZ", 1))


def cases(count: int) -> Iterator[tuple[int, random.Random]]:
    """(number, random numbers) of ``count`` cases, or as many times more as DEEPATLAS_FUZZ says."""
    only = os.environ.get("DEEPATLAS_FUZZ_CASE")
    numbers = range(int(count * TIMES)) if only is None else [int(only)]
    for number in numbers:
        yield number, random.Random(f"{SEED} {number}")


@contextmanager
def told(number: int, what: object) -> Iterator[None]:
    """Whatever goes wrong in a case is told with its number and with ``what`` was tried."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        pytest.fail(f"case {number} (seed {SEED}), {what}: {type(error).__name__}: {error}")


def flipped(data: bytes, rng: random.Random, bits: int = 1) -> bytes:
    """``data`` with some bits turned over."""
    damaged = bytearray(data)
    for _ in range(bits):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)
