"""From a name, or a folder, to a cohort: what is said of a data set, its files, one common grid.

Real scans are looked for in the folder that the environment variable ``DEEPATLAS_DATA`` names, then
in the cache; those with a public address are downloaded once.
"""

from .cohorts import load_cohort, structures_of
from .entries import PROFILES, Entry, Grid, describe, manifest, read_entries
from .fetch import download, find, local
from .grid import centred_affine, check_sides, resample
from .nifti import load_scan, read_nifti
from .real_case import REAL_CASE_STRUCTURES, real_case

__all__ = [
    "PROFILES",
    "REAL_CASE_STRUCTURES",
    "Entry",
    "Grid",
    "centred_affine",
    "check_sides",
    "describe",
    "download",
    "find",
    "load_cohort",
    "load_scan",
    "local",
    "manifest",
    "read_entries",
    "read_nifti",
    "real_case",
    "resample",
    "structures_of",
]
