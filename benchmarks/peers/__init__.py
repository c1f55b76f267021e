"""Rivals that people really use, scored on the very test scans and pairs of an experiment.

    python -m benchmarks.peers --dataset oasis35 --dims 2 --seed 100 --rival ants_cc --validation

``table.py`` lists them, ``cases.py`` finds the scans and pairs and scores them, ``rows.py`` keeps
what was found, ``tuning.py`` chooses settings on validation scans. Everything runs on one thread of
a CPU, so that seconds of one rival and of another mean the same.

Words: a *rival* is a program with its settings; ``part`` is the part of the cohort that is scored,
"test" or "validation".
"""

import os

# Read when ITK and ANTs are loaded. Without a seed the sample of points at which ANTs compares
# images is another one each time.
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
os.environ["ANTS_RANDOM_SEED"] = "1"
