"""Trained networks in one small file, for those who want to use some before they train any."""

from .models import keep, load
from .places import WEIGHTS

__all__ = ["WEIGHTS", "keep", "load"]
