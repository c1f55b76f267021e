"""How a folder of files is laid out: which scans are in it, of whom, and where their labels are.

A new layout is a file with ``recognise`` and ``read``, and a row of ``LAYOUTS`` in ``choose.py``.
"""

from .choose import LAYOUTS, layout_of, list_files, marker_of, read_folder, recognise
from .files import File, Layout, Listing, Options, check_files
from .msd import decathlon, label_names, read_dataset
from .persons import person_of

__all__ = [
    "LAYOUTS",
    "File",
    "Layout",
    "Listing",
    "Options",
    "check_files",
    "decathlon",
    "label_names",
    "layout_of",
    "list_files",
    "marker_of",
    "person_of",
    "read_dataset",
    "read_folder",
    "recognise",
]
