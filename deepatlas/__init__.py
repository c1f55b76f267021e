"""DeepAtlas: a network that registers 3D medical images and one that segments them, trained
jointly.

Reading order (each file is one subject; imports go down only, so a file needs only those of lower
floors):

====== ================== ==================================================================================
floor  file               subject
====== ================== ==================================================================================
0      data.py            scans, cohorts, batches; NIfTI to one common grid; splits; hiding labels
0      warp.py            deformations: composing, inverting, warping
0      networks.py        the two networks
0      losses.py          similarity, regularity and overlap, each one number
0      checkpoints.py     files that are never half-written, stops between steps
1      phantom.py         synthetic brains and knees whose true deformations are known
1      registration.py    registration without a network: affine alignment, one pair by gradient descent
1      datasets.py        cohorts by name
1      pairs.py           what a training step sees: pairs by case, augmented
1      regimes.py         the table of the paper: who trains, from which start, seeing which labels
1      terms.py           the loss terms of the two networks, by labelled and unlabelled case
1      training.py        one loop for all regimes
1      evaluation.py      scores and statistics; knows nothing of how a model was made
2      plots.py           figures
2      viewers.py         scroll through a scan or a warp in the browser; viewers.js beside it paints
2      explorers.py       a training as it goes, sliders for the weights of the loss, finished runs
2      exercises/         checkers, hints, progress, questions; one file of each a lesson
3      machine.py         devices, precision, memory
3      parameters.py      the parameters of an experiment, checked
3      experiments.py     a run folder that can be interrupted
3      weights.py         trained networks in one small file
3      reporting.py       tables of a run and its executed notebook
3      lessons.py         the lessons as files: run from top to bottom, and what that costs
3      site.py            the lessons as pages and slides that work from disk
3      evidence.py        many experiments, and what they show together
3      cli.py             the command ``deepatlas``
====== ================== ==================================================================================

Conventions
    Axes: ``B`` batch, ``C`` structures or channels, ``I J K`` voxel axes (2D: ``I J``), ``D`` = 2
    or 3 of them. A deformation ``phi(x) = x + u(x)`` maps voxels of the *fixed* image to voxels of
    the *moving* image, and warping pulls: ``warped(x) = moving(phi(x))``. The displacement ``u`` is
    ``(B, D, I, J, K)`` in voxels; channel c moves tensor axis c. Millimetres appear only in
    evaluation and in files. ``(phi @ psi)(x) = phi(psi(x))``, hence ``(phi @ psi).warp(m) ==
    psi.warp(phi.warp(m))``. Integer labels are never interpolated: train on warped one-hot labels,
    score nearest-warped labels.

Glossary
    *labels*: integers, one per voxel; 0 is background. *one_hot*: the same as 0/1 channels, known
    truth. *probabilities*: a network's guess. *structure*: one labelled anatomical region. *scan*:
    one image of one subject. *cohort*: scans on one grid, split into train, validation and test.
    *N*: labelled training scans. *regime*: what is trained, from which start, seeing which labels.
    *turn*: a step of one network while the other is only consulted.
"""

import os as _os

# Read when torch is imported: operations that Apple's GPUs lack run on the CPU.
_os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
