"""Trained networks in one small file, for those who want to use them before they have trained any."""

from .models import keep, load
from .places import WEIGHTS

__all__ = ["WEIGHTS", "keep", "load"]
