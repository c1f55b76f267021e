"""What the project computes fast, computed plainly: tests compare the two, values and gradients."""

import itertools
import math
from collections import Counter

from deepatlas import losses, warp
from deepatlas.models import probabilities, register
from deepatlas.terms import labels_or_guess

import numpy as np
import torch
import torch.nn.functional as F

# --- datasets/grid.py -----------------------------------------------------------------------------


def plain_majority(labels, matrix, shape):
    """Labels (I, J, K) of new voxels, whose index ``matrix`` (4, 4) leads to old ones: the majority
    at the 2^D points a quarter voxel from the centre, whose own label decides ties; 0 outside.
    """
    new = np.zeros((*shape, 1)[:3], labels.dtype)
    quarters = [(-0.25, 0.25)] * len(shape) + [(0.0,)] * (3 - len(shape))
    corners = list(itertools.product(*quarters))
    for index in np.ndindex(new.shape):
        votes = []
        for corner in [(0, 0, 0), *corners]:
            point = (matrix @ [*np.add(index, corner), 1])[:3]
            voxel = warp.nearest(torch.from_numpy(point)).tolist()
            inside = all(0 <= i < n for i, n in zip(voxel, labels.shape, strict=True))
            votes.append(labels[tuple(voxel)] if inside else 0)
        count = Counter(votes[1:])
        most = max(count[vote] for vote in votes)
        new[index] = next(vote for vote in votes if count[vote] == most)
    return new.reshape(shape)


# --- evaluation -----------------------------------------------------------------------------------


def plain_folded_volume(u):
    """Volume that x + u(x), ``u`` (D, I, J, K), turns inside out around each voxel: the triangles
    or tetrahedra at each voxel by itself, whose volumes are determinants of their edges.
    """
    dims, *shape = u.shape
    simplices = [np.diag(signs) for signs in itertools.product((1, -1), repeat=dims)]
    if dims == 3:
        middle = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
        simplices += [middle, -middle]
    folded = np.zeros(shape)
    for voxel in np.ndindex(*shape):
        for simplex in simplices:
            edges = []
            for offset in simplex:
                there = tuple(np.clip(np.add(voxel, offset), 0, np.subtract(shape, 1)))
                edges.append(u[(slice(None), *there)] - u[(slice(None), *voxel)] + offset)
            volume = np.linalg.det(edges) * np.sign(np.linalg.det(simplex))
            folded[voxel] += max(-volume, 0)
    return folded / (2 * math.factorial(dims))


# --- pairs.py, terms.py ---------------------------------------------------------------------------


def plain_pairs_by_case(scans, turn, consults):
    """Each moving scan with the list of the fixed scans of other subjects, for each case."""
    found = []
    for moving_known, fixed_known in ((True, False), (False, True), (True, True), (False, False)):
        if turn == "seg" and not moving_known and not (consults and fixed_known):
            continue
        pairs = []
        for moving in scans:
            others = [
                fixed
                for fixed in scans
                if fixed.subject != moving.subject and (fixed.labels is not None) == fixed_known
            ]
            if (moving.labels is not None) == moving_known and others:
                pairs.append((moving, others))
        if pairs:
            found.append(pairs)
    return found


def plain_draw_pair(cases, generator):
    """First the case, then the moving scan, then one of its partners."""

    def pick(choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    moving, others = pick(pick(cases))
    return moving, pick(others)


def plain_reg_terms(reg_net, seg_net, moving, fixed, similarity):
    """Every scan is segmented, and what is not needed is thrown away."""
    phi = register(reg_net, moving.image, fixed.image)
    counted = torch.tensor(moving.known) & torch.tensor(fixed.known)
    s_moving, s_fixed = moving.one_hot, fixed.one_hot
    if seg_net is not None:
        counted = torch.ones_like(counted)
        with torch.no_grad():
            s_moving, s_fixed = (
                labels_or_guess(side.known, side.one_hot, probabilities(seg_net, side.image))
                for side in (moving, fixed)
            )
    return {
        "similarity": similarity(phi.warp(moving.image), fixed.image),
        "regularity": losses.bending_energy(phi.displacement),
        "anatomy": plain_mean_dice(phi.warp(s_moving), s_fixed, counted),
    }


def plain_seg_terms(seg_net, reg_net, moving, fixed, sampled_warps=False, fourth_case=False):
    """Every pair is registered and every scan segmented, a side at a time."""
    with torch.no_grad():
        phi = register(reg_net, moving.image, fixed.image)
    m_known, f_known = torch.tensor(moving.known), torch.tensor(fixed.known)
    mixed = m_known ^ f_known
    compared = mixed | (~(m_known | f_known) & fourth_case)
    image, truth = moving.image, moving.one_hot
    if sampled_warps:
        warped = (m_known & mixed).view(-1, *[1] * (image.ndim - 1))
        image = torch.where(warped, phi.warp(image), image)
        truth = torch.where(warped, phi.warp(truth), truth)
    p_moving, p_fixed = probabilities(seg_net, image), probabilities(seg_net, fixed.image)
    s_moving = labels_or_guess(moving.known, moving.one_hot, p_moving)
    s_fixed = labels_or_guess(fixed.known, fixed.one_hot, p_fixed)
    side = m_known.view(-1, *[1] * (image.ndim - 1))
    guess = torch.where(side, p_moving, p_fixed)
    truth = torch.where(side, truth, fixed.one_hot)
    return {
        "anatomy": plain_mean_dice(phi.warp(s_moving), s_fixed, compared),
        "supervised": plain_mean_dice(guess, truth, m_known | mixed),
        "cross_entropy": plain_cross_entropy(guess, truth, m_known | mixed),
    }


def plain_mean_dice(p, q, counted):
    """The mean over the pairs that count; 0 if none does."""
    return losses.soft_dice(p[counted], q[counted]) if counted.any() else torch.zeros(())


def plain_cross_entropy(p, q, counted):
    """Likewise."""
    return -(q * p.log()).sum(1)[counted].mean() if counted.any() else torch.zeros(())


# --- warp -----------------------------------------------------------------------------------------


def plain_pull(volume, u):
    """``volume`` (B, C, I, J, K) at ``x + u(x)``, from its 2^D neighbours, weighted."""
    shape, size = u.shape[2:], volume.shape[2:]
    points = warp.voxel_grid(shape, u) + u
    for axis, n in enumerate(size):
        inside = points[:, axis].clamp(0, n - 1)
        points = torch.cat([points[:, :axis], inside[:, None], points[:, axis + 1 :]], 1)
    before = points.detach().floor()
    values = 0
    for corner in itertools.product((0, 1), repeat=len(shape)):
        neighbour = before + torch.tensor(corner, dtype=u.dtype).view(-1, *[1] * len(shape))
        weight = (1 - (points - neighbour).abs()).prod(1, keepdim=True)
        values = values + weight * warp.look_up(volume, neighbour.long())
    return values


def plain_exp(velocity, steps=64):
    """exp(v) by many short steps, each with the velocity halfway: u (B, D, I, J, K)."""
    grid = warp.voxel_grid(velocity.shape[2:], velocity)[None]
    points = grid.expand_as(velocity)
    for _ in range(steps):
        halfway = points + warp.sample(velocity, points) / (2 * steps)
        points = points + warp.sample(velocity, halfway) / steps
    return points - grid


# --- networks -------------------------------------------------------------------------------------


def plain_upsample(x):
    """Twice the voxels along every axis, linear between their centres."""
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, scale_factor=2, mode=mode, align_corners=False)


def plain_block(block, x):
    """Convolution, instance normalisation, LeakyReLU; twice; with the parameters of ``block``."""
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    for convolution, norm in ((block[0], block[1]), (block[3], block[4])):
        x = convolve(x, convolution.weight, convolution.bias, convolution.stride, padding=1)
        x = F.instance_norm(x, weight=norm.weight, bias=norm.bias)
        x = F.leaky_relu(x, 0.1)
    return x


def plain_features(unet, x):
    """What ``networks.UNet`` computes with these parameters."""
    skips = []
    for down in unet.down:
        x = plain_block(down, x)
        skips.append(x)
    skips.pop()
    for up in unet.up:
        x = plain_block(up, torch.cat([plain_upsample(x), skips.pop()], 1))
    return x


# --- losses.py ------------------------------------------------------------------------------------


def plain_window_means(x, window):
    """The mean of what lies inside the image, of the window around each voxel."""
    for axis in range(2, x.ndim):
        i = torch.arange(x.shape[axis])
        inside = ((i[:, None] - i).abs() <= window // 2).to(x)
        share = inside / inside.sum(1, keepdim=True)
        x = torch.tensordot(x, share, dims=([axis], [1])).movedim(-1, axis)
    return x


def plain_lncc(a, b, window):
    """1 - the mean of NCC^2 over all windows of a and b (B, C, I, J, K)."""
    voxels = tuple(range(2, a.ndim))
    a = (a - a.mean(voxels, keepdim=True)) / a.detach().abs().amax(voxels, keepdim=True)
    b = (b - b.mean(voxels, keepdim=True)) / b.detach().abs().amax(voxels, keepdim=True)
    texture_a = losses.FAINT * a.square().mean(voxels, keepdim=True) + losses.EPSILON**2
    texture_b = losses.FAINT * b.square().mean(voxels, keepdim=True) + losses.EPSILON**2
    mean_a, mean_b = plain_window_means(a, window), plain_window_means(b, window)
    covariance = plain_window_means(a * b, window) - mean_a * mean_b
    covariance = covariance.abs() + (texture_a * texture_b).sqrt()
    variance_a = plain_window_means(a * a, window) - mean_a**2 + texture_a
    variance_b = plain_window_means(b * b, window) - mean_b**2 + texture_b
    return 1 - (covariance**2 / (variance_a * variance_b)).mean()


def plain_bending_energy(u):
    """The mean of each squared second difference of u, mixed ones twice."""
    total = 0
    for i in range(2, u.ndim):
        for j in range(2, u.ndim):
            total = total + u.diff(dim=i).diff(dim=j).square().sum(1).mean()
    return total


def plain_soft_dice(p, q):
    """1 - Dice of two (B, C, I, J, K), averaged over structures and batch."""
    p, q = p.flatten(2), q.flatten(2)
    dice = (2 * (p * q).sum(-1) + 1) / (p.sum(-1) + q.sum(-1) + 1)
    return 1 - dice.mean()
