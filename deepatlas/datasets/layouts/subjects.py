"""A layout."""

from __future__ import annotations

from pathlib import Path

from .files import Listing, Options


def recognise(folder: Path) -> str | None:
    """Not yet."""
    return None


def read(folder: Path, options: Options) -> Listing:
    """Nothing yet."""
    return Listing()
