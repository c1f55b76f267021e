"""DeepAtlas: two networks for 3D medical images, one that registers and one that segments, trained
jointly.

The method can be read in an evening, one subject a file, in this order: ``data`` (scans, cohorts,
batches), ``warp`` (deformations), ``networks``, ``losses``, ``models`` (what a network means),
``pairs`` (what a step sees), ``terms`` (the named loss terms), ``regimes`` (the table of the
paper), ``training`` (the loop; ``Trainer.take_turn`` is its heart), ``evaluation``. Then
``parameters`` and ``experiments``, which make a run of them. README.md says what all the files are.

Conventions
    Axes: ``B`` batch, ``C`` structures or channels, ``I J K`` voxel axes (2D: ``I J``), ``D`` = 2
    or 3 of them. A deformation ``phi(x) = x + u(x)`` maps voxels of the *fixed* image to voxels of
    the *moving* image, and warping pulls: ``warped(x) = moving(phi(x))``. The displacement ``u`` is
    ``(B, D, I, J, K)`` in voxels; channel c moves tensor axis c. Millimetres appear only in
    evaluation, viewers and files. ``(phi @ psi)(x) = phi(psi(x))``, hence ``(phi @ psi).warp(m) ==
    psi.warp(phi.warp(m))``. Integer labels are never interpolated, and never pass through a
    floating-point type: where a network's warp is learnt from, one-hot labels are warped; where
    a scan is augmented or scored, labels are those of the nearest voxel, which from voxel i is
    i + floor(u + 1/2). What a header says about place is used, converted, or refused with a
    sentence.

Glossary
    *labels*: integers, one per voxel; 0 is background. *one_hot*: the same as 0/1 channels, known
    truth. *probabilities*: a network's guess. *structure*: one labelled anatomical region. *scan*:
    one image of one subject. *cohort*: scans on one grid, split into train, validation and test.
    *N*: labelled training scans. *regime*: what is trained, from which start, seeing which labels.
    *turn*: a step of one network while the other is only consulted. *profile*: how large grid and
    training are: smoke, class or full.
"""

import ctypes as _ctypes
import os as _os
import sys as _sys

# Both are read when torch is imported.
TORCH_CAME_FIRST = "torch" in _sys.modules

# Operations that Apple's GPUs lack run on the CPU.
_os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

# A thread of GNU's OpenMP that has nothing to do spins before it sleeps: 300,000 rounds if nobody
# says otherwise, in which it keeps a core from whoever has work. Seconds of a registration step of
# the class profile on two cores, idle and beside so many busy processes, and the steps a second of
# thirty kernels that train at once (benchmarks/threads.py):
#
#                      2D                         3D            thirty kernels, 2D
#     rounds      idle     1     2     4     idle      4        in all
#     300,000     .035   .130  .171  1.06    .327   3.86          .8
#     30,000      .035     -     -    .49    .323   2.07         1.6
#     10,000      .036   .236  .129   .31    .325   1.29         4.4
#     3,000       .036   .141  .118   .27    .323   1.12         8.8
#     1,000       .038   .105  .106   .32      -      -           -
#     one thread  .057   .055  .089   .23    .482     -         29.8
#
# 3,000 costs 3 to 8 % on an idle machine and beside one busy process, and saves a factor of 1.5 to
# eleven on a busier one. Where many train at once, one thread for each is far better still.
SPINS = "3000"
if "OMP_WAIT_POLICY" not in _os.environ:
    _os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

# What one step of training frees, the next asks for again, but glibc hands it back to the system
# meanwhile, which clears each page before it is used anew: 41,000 pages for a second of training on
# slices (one thread, class profile), and 10 % of its time; where two trainings ran on both cores of
# a virtual machine, a third. Kept up to so many bytes, pages are asked for some thirty times a
# second, and a process at rest holds at most so much more (benchmarks/freed_memory.py).
KEPT_BYTES = 128 * 2**20


def _keep_freed_memory() -> bool:
    """Raise both thresholds of glibc's ``mallopt`` to ``KEPT_BYTES``, for this process. False where
    the C library is another one, or the user's variables have set them.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if _sys.platform != "linux" or any(name in _os.environ for name in variables):
        return False
    set_to = getattr(_ctypes.CDLL(None), "mallopt", None)  # musl has none
    return set_to is not None and all(
        set_to(name, KEPT_BYTES) for name in (trim_threshold, mmap_threshold)
    )


KEEPS_FREED_MEMORY = _keep_freed_memory()


def _nobody_watches() -> bool:
    """Is this a kernel that executes a notebook from outside? Such a kernel may ask nothing."""
    frontend = _sys.modules.get("IPython")
    shell = frontend.get_ipython() if frontend else None
    kernel = getattr(shell, "kernel", None)
    return kernel is not None and not getattr(kernel, "_allow_stdin", True)


# A notebook keeps whatever a progress bar prints, a thousand times a line: where nobody watches,
# bars wait for thirty years before they show themselves. Read when tqdm is imported.
if _nobody_watches():
    _os.environ.setdefault("TQDM_DELAY", "1e9")
