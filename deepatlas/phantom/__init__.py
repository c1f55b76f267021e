"""Synthetic brains and knees, in 2D and 3D, whose true deformations are known.

An anatomy is a *template*: structures given by signed distances, functions of a point in
millimetres. A subject is that template seen through a smooth invertible map. As between people,
some things differ that no deformation explains: the phase of the folds, a lesion or an osteophyte,
the contrast. A new anatomy is a file with an ``Anatomy``, and a row of ``ANATOMIES``.
"""

from .shapes import Anatomy, Layer, Variation
from .subjects import ANATOMIES, anatomy_of, make_scan, name_of, true_deformation

__all__ = [
    "ANATOMIES",
    "Anatomy",
    "Layer",
    "Variation",
    "anatomy_of",
    "make_scan",
    "name_of",
    "true_deformation",
]
