"""What a training step holds in memory for its backward pass, or computes a second time there.

Of a large volume the tensors between the layers do not fit. Within ``sparing(True)`` the blocks of
the U-Nets, the squarings of exp and the Dice of warped structures hold what goes in only, and the
backward pass computes the rest again, one piece after the other: the same numbers, in more time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result", Tensor, tuple[Tensor, ...])

_sparing = False


@contextmanager
def sparing(on: bool) -> Iterator[None]:
    """Within, ``again`` spares memory if ``on``; both passes, forward and backward, belong here."""
    global _sparing
    before = _sparing
    _sparing = on
    try:
        yield
    finally:
        _sparing = before


def is_sparing() -> bool:
    """Is memory spared now, in a pass that has a backward one?"""
    return _sparing and torch.is_grad_enabled()


def again(function: Callable[..., Result], *inputs: Tensor) -> Result:
    """``function(*inputs)``; where memory is spared, what it makes on the way is made again in the
    backward pass.

    A function that keeps statistics of what it sees, as batch normalisation does, would count twice
    and does not belong here; nor does one that draws random numbers, whose state is not kept, since
    to ask a GPU for it waits for all its work.
    """
    if not is_sparing():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
