"""Registration without a network, against maps that are known because the images are formulas."""

import itertools
import json
import weakref
from dataclasses import replace

from deepatlas import datasets, losses, models, networks
from deepatlas.data import Scan
from deepatlas.datasets import centred_affine, load_scan, resample
from deepatlas.datasets.grid import align as aligned_affines
from deepatlas.evaluation import folding, score_labels
from deepatlas.registration import (
    affine_matrices,
    optimise_pair,
    pair_loss,
    propagate_labels,
    refine_pair,
)
from deepatlas.warp import Deformation, voxel_grid

import numpy as np
import pytest
import torch
from scipy import ndimage

SHAPES = {"2D": (32, 40), "3D": (24, 32, 24)}
dimensions = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
# i, j, k and sigma as shares of the sides, peak; not in one plane, or an affine map would not be
# unique
BLOBS = (
    (0.30, 0.35, 0.35, 0.13, 1.0),
    (0.65, 0.30, 0.60, 0.09, 0.7),
    (0.45, 0.70, 0.65, 0.11, 0.5),
    (0.70, 0.65, 0.30, 0.10, 0.8),
    (0.25, 0.60, 0.75, 0.08, 0.6),
)


def blobs(points, shape):
    """An asymmetric sum of Gaussians at ``points`` (D, ...), in voxels of a grid of ``shape``: (1,
    1, ...).
    """
    side = max(shape)
    image = torch.zeros(points.shape[1:])
    for *centre, sigma, peak in BLOBS:
        offset = torch.stack([p / n - c for p, n, c in zip(points, shape, centre, strict=False)])
        squares = (offset * torch.tensor(shape).view(-1, *[1] * len(shape)) / side).square().sum(0)
        image += peak * torch.exp(-squares / (2 * sigma**2))
    return image[None, None]


def small_affine(shape, seed):
    """[[A, t], [0, 1]] about the middle of the grid: up to 8 percent of scale and shear, up to 2
    voxels of shift.
    """
    rng, d = np.random.default_rng(seed), len(shape)
    linear = np.eye(d) + rng.uniform(-0.08, 0.08, (d, d))
    middle = (np.array(shape) - 1) / 2
    matrix = np.eye(d + 1)
    matrix[:d, :d], matrix[:d, d] = linear, middle - linear @ middle + rng.uniform(-2, 2, d)
    return torch.from_numpy(matrix).float()


def seen_through(matrix, shape):
    """The blobs in which the point M x of the image shows what x shows in the plain blobs: (1, 1,
    I, J, K).
    """
    return blobs(Deformation.affine(matrix.inverse()[None], shape).points[0], shape)


def plain(shape):
    return blobs(voxel_grid(shape, torch.zeros(1)), shape)


def worst_distance(found, wanted, shape):
    """The largest distance in voxels between two affine maps over the grid."""
    maps = (Deformation.affine(matrix[None], shape).points for matrix in (found, wanted))
    return float((next(maps) - next(maps)).norm(dim=1).max())


def scan_of(image, name="a", labels=None, spacing=2.0):
    """A scan away from the world's origin, so that a lost shift shows."""
    affine = torch.diag(torch.tensor([spacing] * 3 + [1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-31.0, 17.0, 5.0])
    return Scan(name, name, image[0].clamp(0, 1).float(), affine, labels)


def marked(shape, voxel):
    """One labelled block of 3 voxels a side around ``voxel``."""
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[tuple(slice(v - 1, v + 2) for v in voxel)] = 1
    return labels


def mark_in_world(scan):
    """The centre of the marked voxels, in mm."""
    index = scan.labels.nonzero().double().mean(0)
    return (scan.affine @ torch.cat([index, torch.zeros(3 - len(index)), torch.ones(1)]).double())[
        :3
    ]


# --- affine maps ----------------------------------------------------------------------------------


@dimensions
def test_two_known_affine_maps_are_recovered_within_half_a_voxel(shape):
    wanted = [small_affine(shape, seed) for seed in (1, 2)]
    found = affine_matrices(
        torch.cat([seen_through(matrix, shape) for matrix in wanted]), plain(shape)
    )
    assert worst_distance(*wanted, shape) > 2, (
        "the two maps must differ for this test to mean anything"
    )
    for one, other in zip(found, wanted, strict=True):
        assert worst_distance(torch.eye(len(shape) + 1), other, shape) > 1.5
        assert worst_distance(one, other, shape) < 0.5


@dimensions
def test_an_image_is_aligned_to_itself_by_the_identity(shape):
    found = affine_matrices(plain(shape), plain(shape))
    assert worst_distance(found[0], torch.eye(len(shape) + 1), shape) < 0.1


def test_the_map_of_one_image_does_not_depend_on_the_batch_it_came_in():
    shape = SHAPES["2D"]
    batch = torch.cat([seen_through(small_affine(shape, seed), shape) for seed in (1, 2, 3)])
    together = affine_matrices(batch, plain(shape))
    alone = torch.cat([affine_matrices(image[None], plain(shape)) for image in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-2)


def test_the_last_row_stays_affine_and_no_gradient_is_kept():
    found = affine_matrices(
        seen_through(small_affine((16, 16), 1), (16, 16)), plain((16, 16)), steps=(3, 3)
    )
    assert found[0, -1].tolist() == [0, 0, 1]
    assert not found.requires_grad


def test_brightness_and_contrast_do_not_matter_to_affine_alignment():
    shape = SHAPES["2D"]
    wanted = small_affine(shape, 1)
    found = affine_matrices(0.2 + 0.4 * seen_through(wanted, shape), plain(shape))
    assert worst_distance(found[0], wanted, shape) < 0.5


def test_affine_alignment_refuses_images_on_two_grids():
    with pytest.raises(ValueError, match=r"one grid.*32, 40\).*24, 40\)"):
        affine_matrices(plain((32, 40)), plain((24, 40)))


# --- alignment of scans ---------------------------------------------------------------------------


def align(scans, originals, reference):
    """``scans`` moved such that they match the reference, each resampled once from its original."""
    images, affines = [scan.image for scan in scans], [scan.affine for scan in scans]
    moved = aligned_affines(images, affines, reference)
    found = []
    for scan, original, affine in zip(scans, originals, moved, strict=True):
        stays = affine is scan.affine
        found.append(scan if stays else resample(original, affine, scan.shape))
    return found


@dimensions
def test_an_aligned_scan_still_knows_where_in_its_file_a_voxel_lies(shape):
    voxel = tuple(n // 2 + 2 for n in shape)
    original = scan_of(seen_through(small_affine(shape, 2), shape), labels=marked(shape, voxel))
    reference = scan_of(plain(shape), "reference")
    aligned = align([reference, original], [reference, original], reference.image)[1]
    moved = aligned.labels.nonzero().double().mean(0) - torch.tensor(voxel)
    assert moved.norm() > 0.5, "the mark must have moved on the grid for this test to mean anything"
    # half a voxel
    torch.testing.assert_close(mark_in_world(aligned), mark_in_world(original), rtol=0, atol=1.0)


@dimensions
def test_alignment_makes_a_scan_look_like_the_reference(shape):
    reference, other = (
        scan_of(plain(shape), "reference"),
        scan_of(seen_through(small_affine(shape, 2), shape), "b"),
    )
    aligned = align([other], [other], reference.image)[0]
    before, after = ((scan.image - reference.image).abs().mean() for scan in (other, aligned))
    assert after < before / 4


def test_the_reference_stays_itself_and_the_order_is_kept():
    shape = (16, 24)
    scans = [
        scan_of(seen_through(small_affine(shape, seed), shape), f"scan{seed}") for seed in range(5)
    ]
    aligned = align(scans, scans, scans[3].image)
    assert [scan.id for scan in aligned] == [scan.id for scan in scans]
    assert aligned[3] is scans[3]


@dimensions
def test_alignment_never_looks_at_labels(shape):
    labels = marked(shape, tuple(n // 2 for n in shape))
    scans = [
        scan_of(seen_through(small_affine(shape, seed), shape), f"scan{seed}", labels)
        for seed in (1, 2)
    ]
    bare = [replace(scan, labels=None) for scan in scans]
    reference = scans[0].image
    aligned, bare_aligned = align(scans, scans, reference), align(bare, bare, reference)
    for one, other in zip(aligned, bare_aligned, strict=True):
        assert other.labels is None
        torch.testing.assert_close(one.affine, other.affine, rtol=0, atol=0)
        torch.testing.assert_close(one.image, other.image, rtol=0, atol=0)


def test_the_aligned_scan_is_resampled_once_from_the_original():
    shape = (32, 40)
    fine = tuple(2 * n for n in shape)
    original = scan_of(seen_through(small_affine(fine, 1), fine), spacing=1.0)
    coarse = resample(original, centred_affine(original, shape, 2.0), shape)
    reference = replace(coarse, id="reference", image=plain(shape)[0])
    aligned = align([coarse], [original], reference.image)[0]
    direct = resample(original, aligned.affine, shape)
    torch.testing.assert_close(aligned.image, direct.image, rtol=0, atol=0)
    assert (aligned.image - resample(coarse, aligned.affine, shape).image).abs().max() > 1e-3


def dice_of_pairs(scans, structures):
    """Mean Dice over all ordered pairs and structures, without registration."""
    pairs = itertools.permutations(scans, 2)
    return float(
        np.nanmean(
            [
                row["dice"]
                for one, other in pairs
                for row in score_labels(one.labels, other.labels, structures)
            ]
        )
    )


@pytest.mark.parametrize(("name", "count"), [("oasis35", 6), ("hippocampus", 12)])
def test_alignment_brings_real_scans_closer_than_centring(real_data, name, count):
    """Labels only judge; the maps come from images. Centred, resampled scans against aligned ones,
    on one grid.
    """
    entry = datasets.describe(name)
    folder = real_data / name
    structures, lookup = datasets.structures_of(entry, folder)
    items = [
        item
        for item in json.loads((folder / "dataset.json").read_text())["training"]
        if item.get("group", "train") == "train"
    ][:count]
    raw = [
        load_scan(
            folder / item["image"],
            folder / item["label"],
            id=item["image"],
            subject=item["image"],
            structures=lookup,
        )
        for item in items
    ]
    shape, spacing = entry.grid("class", 3)
    centred = [resample(scan, centred_affine(scan, shape, spacing), shape) for scan in raw]
    aligned = align(centred, raw, centred[0].image)
    before, after = (dice_of_pairs(scans, structures) for scans in (centred, aligned))
    print(f"\n{name}, {count} scans: mean pairwise Dice centred {before:.3f}, aligned {after:.3f}")
    assert after >= before + 0.03


# --- one pair by gradient descent -----------------------------------------------------------------


def texture(points):
    """A smooth random pattern of wavelengths from 8 to 20 voxels at ``points`` (D, ...): (1, 1,
    ...), about [0, 1].
    """
    rng, image = np.random.default_rng(0), torch.zeros(points.shape[1:])
    for _ in range(24):
        direction = rng.normal(size=len(points))
        wave = torch.tensor(
            direction / np.linalg.norm(direction) * 2 * np.pi / rng.uniform(8, 20)
        ).float()
        image += torch.cos(
            torch.einsum("d,d...->...", wave, points) + float(rng.uniform(0, 2 * np.pi))
        )
    return (image / 14 + 0.5)[None, None]


def smooth_deformation(shape, peak=3.0):
    """u of at most ``peak`` voxels along each axis, 0 at the border."""
    unit = [x / (n - 1) for x, n in zip(voxel_grid(shape, torch.zeros(1)), shape, strict=True)]
    bump = torch.stack([torch.sin(torch.pi * x) for x in unit]).prod(0)
    waves = [torch.cos(torch.pi * unit[(c + 1) % len(shape)]) for c in range(len(shape))]
    return Deformation(torch.stack([peak * bump * (0.4 + 0.6 * wave) for wave in waves])[None])


def known_pair(shape):
    """(moving, fixed, phi) with ``fixed(x) = moving(phi(x))`` exactly, by formula."""
    phi = smooth_deformation(shape)
    return texture(voxel_grid(shape, torch.zeros(1))), texture(phi.points[0]), phi


def endpoint_error(found, truth):
    return float((found.displacement - truth.displacement).norm(dim=1).mean())


@dimensions
def test_optimisation_finds_a_known_smooth_deformation(shape):
    moving, fixed, truth = known_pair(shape)
    found = optimise_pair(moving, fixed, regularity=0.3)
    start = endpoint_error(Deformation.identity(shape), truth)
    assert start > 0.5
    assert endpoint_error(found, truth) < start / 2
    assert (found.warp(moving) - fixed).abs().mean() < (moving - fixed).abs().mean() / 4


def test_the_sign_and_the_direction_of_an_optimised_pair():
    """moving(phi(x)) = fixed(x): a blob 2 voxels further along axis 0 in moving is found at +2."""
    shape = (32, 40)
    shift = torch.eye(3)
    shift[0, 2] = 2
    u = optimise_pair(seen_through(shift, shape), plain(shape), regularity=0.3).displacement
    assert abs(float(u[0, 0, 8:16, 10:20].mean()) - 2) < 0.4
    assert abs(float(u[0, 1, 8:16, 10:20].mean())) < 0.4


def test_optimisation_takes_any_similarity_and_stronger_regularity_bends_less():
    moving, fixed, _ = known_pair((24, 24))

    def distance(a, b):
        return (a - b).square().mean()

    soft, stiff = (
        optimise_pair(moving, fixed, similarity=distance, regularity=weight, steps=40).displacement
        for weight in (0.01, 10.0)
    )
    assert stiff.diff(n=2, dim=2).abs().mean() < soft.diff(n=2, dim=2).abs().mean() / 2


def test_an_optimised_deformation_carries_no_gradient_and_keeps_odd_shapes():
    image = torch.rand(2, 1, 9, 13, generator=torch.Generator().manual_seed(0))
    phi = optimise_pair(image, image.flip(2), steps=2)
    assert phi.displacement.shape == (2, 2, 9, 13)
    assert not phi.displacement.requires_grad


def test_optimisation_refuses_images_on_two_grids():
    with pytest.raises(ValueError, match=r"one grid.*8, 8\).*8, 16\)"):
        optimise_pair(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 16))


@dimensions
def test_refinement_begins_where_it_is_told_and_only_lowers_its_own_loss(shape):
    moving, fixed, truth = known_pair(shape)

    begun = Deformation(0.5 * truth.displacement)
    loss = pair_loss(moving, fixed, similarity=losses.lncc, regularity=0.3)
    nothing = refine_pair(begun, loss, steps=0)
    assert torch.equal(nothing.displacement, begun.displacement)
    seen = [float(loss(begun))]
    for steps in (1, 10, 20):
        found = refine_pair(begun, loss, steps)
        again = refine_pair(begun, loss, steps)
        assert torch.equal(found.displacement, again.displacement)
        seen.append(float(loss(found)))
    assert seen == sorted(seen, reverse=True) and seen[-1] < 0.9 * seen[0]
    assert endpoint_error(found, truth) < endpoint_error(begun, truth)


def test_refinement_keeps_its_start_where_every_step_is_worse():
    """Adam's first step is as long as its rate, wherever it leads."""
    image = plain((24, 32))
    best = Deformation.identity((24, 32))
    loss = pair_loss(image, image, similarity=losses.mse, regularity=0.0)
    found = refine_pair(best, loss, steps=3)
    assert torch.equal(found.displacement, best.displacement)


@dimensions
def test_the_loss_of_a_pair_is_the_sum_of_its_terms(shape):
    moving, fixed, phi = known_pair(shape)
    s_moving, s_fixed = (torch.cat([x.sigmoid(), 1 - x.sigmoid()], 1) for x in (moving, fixed))
    value = pair_loss(moving, fixed, similarity=losses.mse, regularity=2.0)(phi)
    wanted = losses.mse(phi.warp(moving), fixed) + 2 * losses.bending_energy(phi.displacement)
    assert torch.equal(value, wanted)
    options = {"similarity": losses.mse, "regularity": 2.0}
    both = (s_moving, s_fixed)
    value = pair_loss(moving, fixed, **options, anatomy=3.0, probabilities=both)(phi)
    assert torch.allclose(value, wanted + 3 * losses.soft_dice(phi.warp(s_moving), s_fixed))


def test_refinement_without_a_similarity_is_led_by_the_anatomy_and_does_not_fold():
    """A square of side 12 onto one of side 20, by what is known of it alone."""
    image = plain((32, 32))
    s_moving, s_fixed = torch.zeros(2, 1, 2, 32, 32).unbind()
    for s, half in ((s_moving, 6), (s_fixed, 10)):
        s[:, 1, 16 - half : 16 + half, 16 - half : 16 + half] = 1
        s[:, 0] = 1 - s[:, 1]
    options = {"similarity": lambda a, b: 0 * (a - b).sum(), "regularity": 0.01}
    loss = pair_loss(image, image, **options, anatomy=1.0, probabilities=(s_moving, s_fixed))
    phi = refine_pair(Deformation.identity((32, 32)), loss)
    assert losses.warped_dice(phi.warp, s_moving, s_fixed) < 0.1
    assert folding(phi)["folds_percent"] == 0


# --- the inverse of a network's deformation -------------------------------------------------------


class Sloped(torch.nn.Module):
    """A smooth output that is another at every pass, in length and direction: what does not commute
    shows in which order passes are put together.
    """

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, moving, fixed):
        grid = voxel_grid(tuple(fixed.shape[2:]), fixed)[None]
        turned = grid.roll(self.calls % 2, dims=1)
        self.calls += 1
        waves = [torch.sin(turned[:, i] / 6 + i) for i in range(grid.shape[1])]
        return (1 + moving.mean()) * torch.stack(waves, 1)


@dimensions
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_inverse_of_a_velocity_undoes_every_pass(shape, passes):
    moving, fixed = plain(shape), plain(shape).flip(2)
    net = models.Registration(Sloped(), velocity=True, passes=passes)
    phi, inverse = net.both_ways(moving, fixed)
    net.net.calls = 0
    assert torch.equal(phi.displacement, net(moving, fixed).displacement)
    inner = (slice(None), slice(None), *[slice(8, -8)] * len(shape))
    assert float(phi.displacement[inner].abs().max()) > 1
    assert float((phi @ inverse).displacement[inner].abs().max()) < 0.1
    assert float((inverse @ phi).displacement[inner].abs().max()) < 0.1


@dimensions
@pytest.mark.parametrize("passes", [1, 2])
def test_a_velocity_is_integrated_where_the_network_predicts_it(shape, passes):
    """On half the grid: nearly the deformation of its interpolated velocity."""
    torch.manual_seed(0)
    bare = networks.RegistrationNet(len(shape))
    torch.nn.init.normal_(bare.head.weight, std=0.02)
    moving, fixed = plain(shape), plain(shape).flip(2)
    net = models.Registration(bare, velocity=True, passes=passes)
    with torch.no_grad():
        phi, inverse = net.both_ways(moving, fixed)
        assert torch.equal(phi.displacement, net(moving, fixed).displacement)
        velocity = bare(moving, fixed)
        assert torch.equal(models.register(bare, moving, fixed).displacement, velocity)
        there_and_back = (phi @ inverse).displacement.norm(dim=1)
        if passes == 1:
            at_once = Deformation.exp(velocity).displacement
            assert velocity.abs().max() > 0.5
            assert (phi.displacement - at_once).norm(dim=1).mean() < 0.05
    assert phi.shape == shape
    assert there_and_back.mean() < 0.1


def test_a_displacement_has_no_velocity_to_turn_round():
    net = models.Registration(Sloped(), velocity=False, passes=1)
    with pytest.raises(ValueError, match=r"use Deformation\.inverse"):
        net.both_ways(plain((24, 32)), plain((24, 32)))


# --- label propagation ----------------------------------------------------------------------------


def atlas(*rows, name="a"):
    labels = torch.tensor(rows, dtype=torch.uint8)
    return Scan(
        name, name, torch.zeros(1, *labels.shape), torch.eye(4, dtype=torch.float64), labels
    )


def no_registration(moving, fixed):
    return Deformation.identity(fixed.shape)


def shifted(*u):
    """A registration that finds the same displacement everywhere, in voxels."""

    def register(moving, fixed):
        field = torch.tensor(u, dtype=torch.float32).view(1, -1, *[1] * len(u))
        return Deformation(field.expand(1, -1, *fixed.shape).clone())

    return register


def test_of_equal_weights_the_label_of_most_atlases_wins():
    atlases = [
        atlas([0, 1, 2], [3, 3, 0]),
        atlas([0, 1, 1], [3, 2, 0]),
        atlas([1, 1, 2], [0, 2, 0]),
    ]
    for order in itertools.permutations(atlases):
        found = propagate_labels(no_registration, order, atlases[0])
        assert found.tolist() == [[0, 1, 2], [3, 2, 0]]


@pytest.mark.parametrize("shape", [(9, 11), (5, 6, 7)])
def test_masks_are_warped_linearly_averaged_and_the_largest_wins(shape):
    """By SciPy, mask by mask and atlas by atlas."""
    generator = torch.Generator().manual_seed(0)
    names = ("a", "b", "c")
    labels = {name: torch.randint(4, shape, generator=generator) for name in names}
    atlases = [atlas(*labels[name].tolist(), name=name) for name in names]
    fields = {name: torch.randn(1, len(shape), *shape, generator=generator) for name in names}
    found = propagate_labels(lambda moving, _: Deformation(fields[moving.id]), atlases, atlases[0])

    mean = np.zeros((4, *shape))
    for name in names:
        points = np.indices(shape) + fields[name][0].numpy()
        for structure in range(4):
            mask = (labels[name] == structure).numpy().astype(float)
            mean[structure] += ndimage.map_coordinates(mask, points, order=1, mode="nearest") / 3
    second, first = np.sort(mean, axis=0)[-2:]
    decided = first - second > 1e-4  # no rounding decides
    assert decided.mean() > 0.95
    assert (found.numpy() == mean.argmax(0))[decided].all()


def test_a_tie_of_two_whole_votes_is_decided_by_how_sure_they_are():
    """At the second voxel two atlases disagree: one has the structure there for certain, the other,
    read between its voxels, has it by 0.4. As whole votes they would be a tie, and the background
    would win it.
    """
    structure, background = atlas([1, 1, 0, 0], name="one"), atlas([1, 0, 0, 0], name="other")
    shift = {"one": shifted(0.0, 0.0), "other": shifted(0.0, -0.4)}

    def register(moving, fixed):
        return shift[moving.id](moving, fixed)

    found = propagate_labels(register, [background, structure], structure)
    assert found.tolist() == [[1, 1, 0, 0]]


def test_each_atlas_is_the_moving_scan_and_its_labels_are_pulled():
    one, scan = (
        atlas([0, 7, 0, 0], [0, 7, 0, 0], name="atlas"),
        replace(atlas([0] * 4, [0] * 4), labels=None),
    )
    seen = []

    def register(moving, fixed):
        seen.append((moving.id, fixed.id))
        # warped(x) = labels(x - 1): the stripe moves to larger indices
        return shifted(0.0, -1.0)(moving, fixed)

    labels = propagate_labels(register, [one], scan)
    assert labels.tolist() == [[0, 0, 7, 0]] * 2
    assert labels.dtype == one.labels.dtype
    assert seen == [("atlas", "a")]


def test_more_than_255_structures_are_propagated():
    one = atlas([0, 1], name="one")
    one = replace(one, labels=torch.tensor([[0, 300]]))
    assert propagate_labels(no_registration, [one], one).tolist() == [[0, 300]]


def test_memory_does_not_grow_with_the_atlases(monkeypatch):
    """Never are the masks of two atlases there at once."""
    shape, alive = (8, 8), weakref.WeakSet()
    most = 0
    warp = Deformation.warp

    def watched(phi, moving):
        nonlocal most
        assert len(moving) == 1
        alive.add(moving)
        most = max(most, len(alive))
        return warp(phi, moving)

    monkeypatch.setattr(Deformation, "warp", watched)
    atlases = [atlas(*torch.randint(3, shape).tolist(), name=f"{i}") for i in range(5)]
    propagate_labels(no_registration, atlases, atlases[0])
    assert most == 1


def test_propagation_without_an_atlas_says_so():
    with pytest.raises(ValueError, match="at least one labelled scan"):
        propagate_labels(no_registration, [], atlas([0, 1]))
