"""Registration of one pair by those who need no training: settings -> function of (moving, fixed).

None of them sees a label.
"""

from collections.abc import Callable, Sequence
from functools import partial

from deepatlas import losses, registration
from deepatlas.data import Scan
from deepatlas.warp import Deformation

import torch
import torch.nn.functional as F
from torch import Tensor

from .fields import ants_registration, sitk_deformation, sitk_image

Register = Callable[[Scan, Scan], Deformation]  # (moving, fixed)


def ants_mi() -> Register:
    """Affine map and SyN by mutual information: the defaults of ``ants.registration``."""
    return partial(ants_registration, type_of_transform="SyN")


def ants_cc(radius: int, iterations: Sequence[int]) -> Register:
    """Affine map and SyN by cross-correlation in windows of 2 ``radius`` + 1 voxels (Avants et al.,
    2008).

    ``iterations``: at most so many at each resolution, coarse to fine; the last is the full one,
    each before it half the next. All else is as ``ants.registration`` has it.
    """
    return partial(
        ants_registration,
        type_of_transform="SyN",
        syn_metric="CC",
        syn_sampling=radius,
        reg_iterations=tuple(iterations),
    )


def sitk_bspline(metric: str, mesh: int) -> Register:
    """Affine map, then cubic B-splines, by SimpleITK, at a quarter, half and all of the resolution.

    ``metric``: "mattes", mutual information of 32 bins, or "correlation", of the whole image; every
    voxel is compared. ``mesh``: cells of the control grid along each axis at the coarsest
    resolution; twice and four times as many at the next. At most 100 iterations of L-BFGS at each.
    The affine map takes mutual information and gradient descent.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def method(metric: str) -> sitk.ImageRegistrationMethod:
        made = sitk.ImageRegistrationMethod()
        if metric == "mattes":
            made.SetMetricAsMattesMutualInformation(32)
        else:
            made.SetMetricAsCorrelation()
        made.SetInterpolator(sitk.sitkLinear)
        made.SetShrinkFactorsPerLevel([4, 2, 1])
        made.SetSmoothingSigmasPerLevel([2, 1, 0])
        return made

    def register(moving: Scan, fixed: Scan) -> Deformation:
        fixed_image = sitk_image(fixed.image[0])
        moving_image = sitk_image(moving.image[0])
        dims = fixed_image.GetDimension()

        # the affine map, about the middle of the image
        middle = [(n - 1) / 2 for n in fixed_image.GetSize()]
        affine = sitk.AffineTransform(dims)
        affine.SetCenter(middle)
        search = method("mattes")
        search.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
        search.SetOptimizerScalesFromPhysicalShift()
        search.SetInitialTransform(affine, inPlace=True)
        search.Execute(fixed_image, moving_image)

        # affine(splines(x)): the splines act on points of the fixed image
        splines = sitk.BSplineTransformInitializer(fixed_image, [mesh] * dims, order=3)
        search = method(metric)
        search.SetOptimizerAsLBFGS2(
            numberOfIterations=100,
            # at an end, too, if ten iterations bring less than a thousandth
            deltaConvergenceDistance=10,
            deltaConvergenceTolerance=1e-3,
        )
        search.SetMovingInitialTransform(affine)
        search.SetInitialTransformAsBSpline(splines, inPlace=True, scaleFactors=[1, 2, 4])
        search.Execute(fixed_image, moving_image)
        whole = sitk.CompositeTransform([affine, splines])
        return sitk_deformation(whole, fixed_image)

    return register


def optimise(window: int, regularity: float, levels: int, steps: int) -> Register:
    """This kit without a network: ``registration.affine_matrices``, then ``refine_pair`` from
    coarse to fine.

    By LNCC in windows of ``window`` voxels and bending energy, ``steps`` at each of the
    resolutions: 2^(``levels`` - 1) voxels, ..., 2, 1.
    """
    similarity = partial(losses.lncc, window=window)

    def register(moving: Scan, fixed: Scan) -> Deformation:
        images = moving.image[None], fixed.image[None]
        shape = fixed.shape
        phi = Deformation.affine(registration.affine_matrices(*images), shape)
        for level in reversed(range(levels)):
            small_moving, small_fixed = (_shrunk(image, 2**level) for image in images)
            loss = registration.pair_loss(
                small_moving, small_fixed, similarity=similarity, regularity=regularity
            )
            phi = registration.refine_pair(_resized(phi, small_fixed.shape[2:]), loss, steps)
        return _resized(phi, shape)

    return register


def _shrunk(image: Tensor, factor: int) -> Tensor:
    """The means of blocks of ``factor`` voxels a side."""
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pool(image, factor)


def _resized(phi: Deformation, shape: Sequence[int]) -> Deformation:
    """The same deformation on another grid of the same place, in voxels of that."""
    shape = tuple(shape)
    if phi.shape == shape:
        return phi
    sizes = torch.tensor([n / m for n, m in zip(shape, phi.shape, strict=True)])
    u = phi.displacement * sizes.view(-1, *[1] * len(shape))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return Deformation(F.interpolate(u, size=shape, mode=mode))
