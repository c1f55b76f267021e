"""Viewers: what Python sends, what it refuses, and, in a real browser, what is on the screen."""

import base64
import io
import json
import re
from dataclasses import replace

from deepatlas import phantom, plots, viewers
from deepatlas.data import Scan, rescale_intensities
from deepatlas.datasets import load_scan
from deepatlas.errors import UserError, printable
from deepatlas.viewers.state import at_its_own_resolution
from deepatlas.warp import Deformation

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

SHAPE = (20, 26, 16)
NAMES = ("background", "one", "two", "three")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(shape=SHAPE, seed=0, labelled=True):
    """A scan of random voxels: no two slices are alike."""
    generator = seeded(seed)
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    labels = torch.randint(0, 4, shape, generator=generator) if labelled else None
    return Scan(
        f"noise-{seed}", f"noise-{seed}", torch.rand(1, *shape, generator=generator), affine, labels
    )


def smooth(shape=SHAPE, amplitude=3.0, seed=0):
    """A smooth random displacement (1, D, I, J, K), in voxels."""
    coarse = torch.randn(1, len(shape), *[4] * len(shape), generator=seeded(seed))
    return amplitude * torch.nn.functional.interpolate(
        coarse, size=shape, mode="bilinear" if len(shape) == 2 else "trilinear", align_corners=True
    )


def grey(image):
    return np.round(255 * image.numpy()).astype(np.uint8)


def pair(shape=SHAPE, u=None):
    return noise(shape, 1), noise(shape, 2), Deformation(smooth(shape) if u is None else u)


# --- in Python ------------------------------------------------------------------------------------


def test_the_volumes_travel_once_and_whole():
    moving, fixed, phi = pair()
    viewer = viewers.view_registration(moving, fixed, phi, NAMES)
    wanted = {
        "moving": grey(moving.image[0]),
        "fixed": grey(fixed.image[0]),
        "warped": grey(phi.warp(moving.image[None])[0, 0]),
        "fixed_labels": fixed.labels.numpy(),
        "warped_labels": phi.warp_labels(moving.labels[None])[0].numpy(),
        "folds": (phi.jacobian_determinant()[0] <= 0).numpy(),
    }
    for name, values in wanted.items():
        at = viewer.meta["arrays"][name]
        sent = np.frombuffer(viewer.data, at["type"], values.size, at["offset"]).reshape(
            at["shape"]
        )
        assert np.array_equal(sent, values), name
    assert sum(
        np.prod(a["shape"]) * np.dtype(a["type"]).itemsize for a in viewer.meta["arrays"].values()
    ) == len(viewer.data)


@pytest.mark.parametrize("shape", [(20, 26), (20, 26, 16)])
def test_u_travels_at_the_resolution_of_the_network(shape):
    """What was interpolated from half the resolution is found again, to less than 1/64 voxel; other
    fields stay.
    """
    coarse = 4 * torch.randn(1, len(shape), *[n // 2 for n in shape], generator=seeded())
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    u = torch.nn.functional.interpolate(coarse, scale_factor=2, mode=mode)
    torch.testing.assert_close(at_its_own_resolution(u), coarse, atol=1e-4, rtol=0)
    other = smooth(shape)
    assert at_its_own_resolution(other) is other
    odd = smooth((5, 6))
    assert at_its_own_resolution(odd) is odd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, image=s.image * torch.nan), "moving noise-1: the image holds NaN"),
        (
            lambda s: replace(s, image=torch.zeros(1, 0, 4, 4), labels=None),
            r"the image is empty, \(1, 0, 4, 4\)",
        ),
        (
            lambda s: noise((20, 26, 14), 1),
            r"moving \(20, 26, 14\), fixed \(20, 26, 16\).*share a grid",
        ),
        (
            lambda s: replace(s, labels=s.labels + 3),
            "labels from 3 to 6, but there are names for 4",
        ),
        (
            lambda s: replace(s, image=s.image[None]),
            r"must be \(1, I, J\) or \(1, I, J, K\), got \(1, 1, 20, 26, 16\)",
        ),
    ],
)
def test_bad_input_gets_one_sentence(change, message):
    moving, fixed, phi = pair()
    for display in ("live", "static"):
        with pytest.raises(ValueError, match=message):
            viewers.view_registration(change(moving), fixed, phi, NAMES, display=display)


def test_a_bad_deformation_and_a_bad_display_get_one_sentence():
    moving, fixed, phi = pair()
    with pytest.raises(ValueError, match="NaN or infinity: look at the training"):
        viewers.view_registration(moving, fixed, Deformation(phi.displacement * torch.nan))
    with pytest.raises(ValueError, match=r"\(2, 3, 20, 26, 16\).*one pair of the batch"):
        viewers.view_registration(
            moving, fixed, Deformation(phi.displacement.repeat(2, 1, 1, 1, 1))
        )
    with pytest.raises(ValueError, match="'live', 'html' or 'static', got 'big'"):
        viewers.view_scan(moving, NAMES, display="big")
    with pytest.raises(ValueError, match=r"at least 2 voxels, got \(6, 6, 1\): give a 2D scan as"):
        viewers.view_registration(
            noise((6, 6, 1), 1), noise((6, 6, 1), 2), Deformation.identity((6, 6, 1))
        )


def test_letters_follow_the_affine():
    scan = noise()
    assert viewers.view_scan(scan).meta["letters"] == [("L", "R"), ("P", "A"), ("I", "S")]
    turned = replace(
        scan, affine=scan.affine[:, [1, 0, 2, 3]] * torch.tensor([1.0, -1.0, 1.0, 1.0])
    )
    assert viewers.view_scan(turned).meta["letters"] == [("P", "A"), ("R", "L"), ("I", "S")]


SIDES = (1.0, 1.0, 4.0)  # mm, of a voxel


def with_sides(scan, sides=SIDES):
    """The same voxels with other sides."""
    return replace(scan, affine=torch.diag(torch.tensor([*sides, 1.0], dtype=torch.float64)))


def shift(shape, *voxels):
    """u that is the same everywhere, in voxels."""
    axes = [1] * len(shape)
    return Deformation(torch.tensor(voxels).view(1, -1, *axes).repeat(1, 1, *shape))


def test_millimetres_are_those_of_each_axis_of_an_oblique_or_sheared_affine():
    axes = torch.tensor([[0, 1, 2], [-1, 0, 3], [-2, -3, 0]], dtype=torch.float64)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.linalg.matrix_exp(axes / 9)
    scan = with_sides(noise(), (0.5, 2.0, 4.0))
    oblique = replace(scan, affine=turn @ scan.affine)
    assert viewers.view_scan(oblique).meta["spacing"] == pytest.approx([0.5, 2.0, 4.0])
    sheared = scan.affine.clone()
    sheared[0, 1] = 1.5  # j leads 1.5 mm to the right, too
    sheared = replace(scan, affine=sheared)
    assert viewers.view_scan(sheared).meta["spacing"] == pytest.approx([0.5, 2.5, 4.0])

    longest = [
        viewers.view_registration(scan, scan, shift(SHAPE, *u)).meta["u_max"]
        for u in ((0.0, 0.0, 1.0), (0.0, 1.5, 0.0), (3.0, 2.0, -3.0), (0.0, 0.0, 0.0))
    ]
    assert longest == pytest.approx([4.0, 3.0, np.sqrt(1.5**2 + 4**2 + 12**2), 0.5])


@pytest.mark.parametrize("display", ["live", "static"])
def test_two_scans_whose_voxels_differ_twofold_are_no_pair(display):
    moving, fixed, phi = pair()
    near = with_sides(moving, (1.2, 0.9, 3.4))  # as aligned
    viewers.view_registration(near, with_sides(fixed), phi, display=display)
    message = "of moving is 1 x 1 x 1 mm, one of fixed 1 x 1 x 4: .* resample both to one grid"
    with pytest.raises(UserError, match=message):
        cubes = with_sides(moving, (1.0, 1.0, 1.0))
        viewers.view_registration(cubes, with_sides(fixed), phi, display=display)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int32, torch.int64],
)
def test_labels_of_any_integer_type_are_shown(dtype):
    moving, fixed, phi = pair()
    moving, fixed = (replace(scan, labels=scan.labels.to(dtype)) for scan in (moving, fixed))
    for viewer, name in (
        (viewers.view_scan(fixed, NAMES), "labels"),
        (viewers.view_registration(moving, fixed, phi, NAMES), "fixed_labels"),
        (viewers.view_registration(moving, fixed, phi), "fixed_labels"),
    ):
        at = viewer.meta["arrays"][name]
        sent = np.frombuffer(viewer.data, at["type"], fixed.labels.numel(), at["offset"])
        assert np.array_equal(sent, fixed.labels.numpy().ravel())
    assert viewers.view_scan(fixed, NAMES, display="static").data.startswith("<img")
    static = viewers.view_registration(moving, fixed, phi, NAMES, display="static")
    assert static.data.startswith("<img")


@pytest.mark.parametrize("display", ["live", "html", "static"])
def test_more_structures_than_a_viewer_shows_are_refused(display):
    moving, fixed, phi = pair()
    names = [f"structure {n}" for n in range(300)]
    most = fixed.labels.to(torch.int16)
    most[0, 0, 0] = 255
    viewers.view_scan(replace(fixed, labels=most), names, display=display)
    most[0, 0, 0] = 256
    many = replace(fixed, labels=most)
    message = "scan noise-2: the largest label is 256, but viewers show at most 256 structures"
    with pytest.raises(UserError, match=message):
        viewers.view_scan(many, names, display=display)
    with pytest.raises(UserError, match=message):
        viewers.view_registration(moving, many, phi, display=display)


@pytest.mark.parametrize(("value", "message"), [(0.0, "singular"), (torch.nan, "finite numbers")])
def test_an_affine_that_leads_nowhere_gets_a_sentence(value, message):
    scan = noise()
    affine = scan.affine.clone()
    affine[:, 2] = value
    for display in ("live", "html", "static"):
        with pytest.raises(UserError, match=f"scan noise-0: the affine .*{message}"):
            viewers.view_scan(replace(scan, affine=affine), display=display)


def test_volumes_larger_than_a_browser_takes_are_refused_before_they_are_made(monkeypatch):
    moving, fixed, phi = pair()
    voxels = fixed.image.numel()
    monkeypatch.setattr(viewers.state, "MOST_BYTES", 14 * voxels)
    viewers.view_registration(moving, fixed, phi)
    monkeypatch.setattr(viewers.state, "MOST_BYTES", 2 * voxels)
    viewers.view_scan(fixed)
    monkeypatch.setattr(viewers.state, "_registration_volumes", None)
    message = "20 x 26 x 16 voxels are .* MiB for the browser.*: crop or resample them, or choose"
    with pytest.raises(UserError, match=message):
        viewers.view_registration(moving, fixed, phi)
    viewers.view_registration(moving, fixed, phi, display="static")
    monkeypatch.setattr(viewers.state, "MOST_BYTES", voxels)
    with pytest.raises(UserError, match=message):
        viewers.view_scan(fixed)
    viewers.view_scan(replace(fixed, labels=None))


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path):
    viewer = viewers.view_scan(noise())
    path = viewer.as_html(tmp_path / "viewer.html")
    before = path.read_bytes()
    viewer.meta = viewer.meta | {"title": "half a letter: \udc80"}
    with pytest.raises(UnicodeEncodeError):
        viewer.as_html(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(20, 26), SHAPE])
def test_static_and_html_leave_no_widget(shape):
    moving, fixed, phi = pair(shape)
    for show in (
        lambda d: viewers.view_scan(fixed, NAMES, display=d),
        lambda d: viewers.view_registration(moving, fixed, phi, NAMES, display=d),
    ):
        static, framed = show("static").data, show("html").data
        assert static.startswith('<img alt="') and "base64" in static
        assert framed.startswith("<div><iframe title=") and "model_id" not in framed
        assert "http" not in framed.replace("http-equiv", "")
    unlabelled = plots.scan_figure(replace(fixed, labels=None))
    assert len(unlabelled.axes) == (1 if len(shape) == 2 else 3)
    plots.picture(unlabelled, "")


def test_a_page_of_a_96_cubed_pair_is_small(tmp_path):
    moving, fixed = (phantom.make_scan("brain", i, (96, 96, 96), spacing=2.0) for i in (0, 1))
    viewer = viewers.view_registration(
        moving,
        fixed,
        phantom.true_deformation(moving, fixed),
        phantom.anatomy_of("brain").structures,
    )
    assert viewer.as_html(tmp_path / "pair.html").stat().st_size < 6e6


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path, browser):
    """A function that opens a viewer's page from disk; no console message, no request beyond the
    file.
    """
    trouble, pages = [], []

    def open_page(viewer, **options):
        path = viewer.as_html(tmp_path / f"viewer{len(pages)}.html")
        page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        # ours, below
        page.on(
            "console", lambda m: None if "willReadFrequently" in m.text else trouble.append(m.text)
        )
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith(("file:", "data:", "blob:")) else trouble.append(r.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("[data-draws]")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert trouble == []


def settle(page):
    """Until the next picture is painted."""
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def state(page, name=None, value=None):
    """The viewer's trait ``name``; with a ``value``, set it as ipywidgets would."""
    if value is not None:
        page.evaluate("([name, value]) => deepatlas.set(name, value)", [name, value])
        settle(page)
    return page.evaluate("(name) => deepatlas.get(name)", name)


def canvas(page, view, layer="base"):
    """The pixels of view number ``view``: (height, width, 4), the top row first."""
    url = page.evaluate(
        "([n, layer]) => document.querySelectorAll(`canvas.${layer}`)[n].toDataURL()", [view, layer]
    )
    pixels = plt.imread(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.round(255 * pixels).astype(np.uint8)


def on_screen(volume, plane, index):
    """NumPy's slice as a viewer shows it: the first axis to the right, the second upwards."""
    part = np.take(volume, index, ["sagittal", "coronal", "axial"].index(plane))
    return part.T[::-1]


def test_every_pixel_of_every_plane_is_the_voxel(opened):
    scan = noise()
    page = opened(viewers.view_scan(scan, NAMES))
    volume = grey(scan.image[0])
    for cursor in ((0, 0, 0), (19, 25, 15), (7, 11, 3)):
        for axis, index in zip("ijk", cursor, strict=True):
            state(page, axis, index)
        for view, plane in enumerate(("sagittal", "coronal", "axial")):
            assert np.array_equal(
                canvas(page, view)[..., 0], on_screen(volume, plane, cursor[view])
            ), (plane, cursor)
            assert (canvas(page, view)[..., 3] == 255).all()


def boxes(page):
    """Width and height of each picture on the screen."""
    found = page.evaluate(
        "() => [...document.querySelectorAll('canvas.base')].map(c => c.getBoundingClientRect())"
    )
    return np.array([[box["width"], box["height"]] for box in found])


def test_voxels_are_drawn_with_their_own_sides_one_pixel_each(opened):
    scan = with_sides(noise(), (1.0, 2.0, 4.0))
    page = opened(viewers.view_scan(scan, NAMES))
    volume = grey(scan.image[0])
    for view, plane in enumerate(("sagittal", "coronal", "axial")):
        shown = canvas(page, view)[..., 0]
        assert np.array_equal(shown, on_screen(volume, plane, (10, 13, 8)[view]))
    mm = np.array([[26 * 2, 16 * 4], [20 * 1, 16 * 4], [20 * 1, 26 * 2]])
    zoom = boxes(page) / mm
    assert zoom == pytest.approx(np.full((3, 2), zoom[0, 0]), rel=1e-3)
    top = [canvas(page, view, "top").shape[:2] for view in range(3)]  # as fine as the screen
    assert np.array(top)[:, ::-1] == pytest.approx(boxes(page), abs=1)


@pytest.mark.parametrize("shape", [(20, 26), SHAPE])
def test_a_registration_is_drawn_with_its_own_sides(opened, shape):
    moving, fixed, phi = pair(shape)
    sides = (1.5, 0.5, 4.0)
    moving, fixed = with_sides(moving, sides), with_sides(fixed, sides)
    page = opened(viewers.view_registration(moving, fixed, phi))
    planes = {"axial": (20 * 1.5, 26 * 0.5)}
    if len(shape) == 3:
        planes |= {"coronal": (20 * 1.5, 16 * 4), "sagittal": (26 * 0.5, 16 * 4)}
    for plane, (width, height) in planes.items():
        state(page, "plane", plane)
        drawn = boxes(page)
        assert drawn[:, 0] / drawn[:, 1] == pytest.approx([width / height] * 3, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 9, 7), (8, 1, 7), (8, 9, 1), (2, 3, 400)])
def test_a_scan_that_is_thin_or_long_is_shown(opened, shape):
    scan = with_sides(noise(shape, labelled=False), (1.0, 1.0, 50.0))
    page = opened(viewers.view_scan(scan))
    planes = ("axial",) if shape[2] == 1 else ("sagittal", "coronal", "axial")
    for view, plane in enumerate(planes):
        normal = ("sagittal", "coronal", "axial").index(plane)
        wanted = on_screen(grey(scan.image[0]), plane, shape[normal] // 2)
        assert np.array_equal(canvas(page, view)[..., 0], wanted)
        assert min(canvas(page, view, "top").shape[:2]) >= 1
    assert boxes(page).max() < 1200


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_a_file_in_any_orientation_is_shown_in_ras(opened, tmp_path, codes):
    values = np.random.default_rng(0).integers(0, 255, (9, 11, 13)).astype(np.float32)
    tilt = np.eye(4)
    tilt[:2, :2] = [[0.98, -0.2], [0.2, 0.98]]  # oblique by 11 degrees
    ras = nib.Nifti1Image(values, tilt)
    image = ras.as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(ras.affine), nib.orientations.axcodes2ornt(codes)
        )
    )
    nib.save(image, tmp_path / "scan.nii.gz")
    scan = load_scan(tmp_path / "scan.nii.gz", None, id="a", subject="a", structures={})
    page = opened(viewers.view_scan(scan))
    for view, (plane, index) in enumerate((("sagittal", 4), ("coronal", 5), ("axial", 6))):
        wanted = on_screen(grey(torch.from_numpy(rescale_intensities(values, "a"))), plane, index)
        assert np.array_equal(canvas(page, view)[..., 0], wanted)
    assert page.locator(".letter").all_text_contents() == [
        "P",
        "A",
        "I",
        "S",
        "L",
        "R",
        "I",
        "S",
        "L",
        "R",
        "P",
        "A",
    ]


@pytest.mark.parametrize("shape", [(20, 26), SHAPE])
def test_warped_is_pythons_at_full_strength_and_near_it_between(opened, shape):
    moving, fixed, _ = pair(shape)
    blurred = torch.nn.functional.interpolate(
        torch.rand(1, 1, *[6] * len(shape), generator=seeded(3)),
        size=shape,
        mode="bilinear" if len(shape) == 2 else "trilinear",
    )
    u = smooth(shape)
    moving = replace(moving, image=blurred[0])
    page = opened(viewers.view_registration(moving, fixed, Deformation(u), NAMES))
    index = 0 if len(shape) == 2 else shape[2] // 2

    def wanted(t):
        volume = grey(Deformation(t * u).warp(moving.image[None])[0, 0]).reshape(*shape[:2], -1)
        return on_screen(volume, "axial", index).astype(int)

    assert np.array_equal(canvas(page, 2)[..., 0], wanted(1.0))
    for t in (0.25, 0.6, 0.99):
        state(page, "strength", t)
        assert np.abs(canvas(page, 2)[..., 0] - wanted(t)).max() <= 2
    state(page, "strength", 0.0001)
    assert np.abs(canvas(page, 2)[..., 0] - wanted(0)).max() <= 2


def test_modes_mix_fixed_and_warped(opened):
    moving, fixed, phi = pair((20, 26))
    page = opened(viewers.view_registration(moving, fixed, phi))
    a = on_screen(grey(phi.warp(moving.image[None])[0, 0])[..., None], "axial", 0)
    b = on_screen(grey(fixed.image[0])[..., None], "axial", 0)
    state(page, "mode", "checkerboard")
    shown = canvas(page, 2)[..., 0]
    i, j = np.meshgrid(np.arange(20), np.arange(26)[::-1])
    assert np.array_equal(shown, np.where((i // 8 + j // 8) % 2, b, a))
    state(page, "mode", "flicker")
    seen = set()
    for _ in range(8):
        page.wait_for_timeout(250)
        shown = canvas(page, 2)[..., 0]
        seen.add(
            "fixed"
            if np.array_equal(shown, b)
            else "warped"
            if np.array_equal(shown, a)
            else "neither"
        )
    assert seen == {"fixed", "warped"}
    state(page, "mode", "difference")
    red, blue = (canvas(page, 2)[..., c].astype(int) for c in (0, 2))
    assert (
        (red - blue)[a.astype(int) - b > 60].min() > 0 > (red - blue)[b.astype(int) - a > 60].max()
    )


ORANGE = np.array([0xD5, 0x5E, 0x00])


def orange_columns(page, view, y, side):
    """The voxels x on row y of a square view through whose centre a line of the grid passes."""
    pixels = canvas(page, view, "top")
    scale, found = pixels.shape[0] / side, []
    for x in range(side - 2):
        row, column = int((side - 0.5 - y) * scale), int((x + 0.5) * scale)
        near = pixels[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].reshape(-1, 4)
        if ((np.abs(near[:, :3].astype(int) - ORANGE).max(1) < 40) & (near[:, 3] > 100)).any():
            found.append(x)
    return found


def test_grid_lines_pass_where_the_convention_says(opened):
    """u = 1 voxel along the first axis. Moving: the node of voxel 4 is drawn at 5. Warped: the
    level line of phi = x + 1 = 4 passes through x = 3. Drawn as a push, the node of 4 lies at 5 on
    warped, too, where no level is."""
    u = torch.zeros(1, 2, 24, 24)
    u[:, 0] = 1.0
    viewer = viewers.view_registration(
        *(noise((24, 24), s, labelled=False) for s in (1, 2)), Deformation(u)
    )
    viewer.i, viewer.j = 23, 23
    page = opened(viewer)
    assert [orange_columns(page, view, 6, 24) for view in range(3)] == [
        [1, 5, 9, 13, 17, 21],
        [0, 4, 8, 12, 16, 20],
        [3, 7, 11, 15, 19],
    ]
    state(page, "push", True)
    assert orange_columns(page, 2, 6, 24) == [1, 5, 9, 13, 17, 21]
    assert "Wrong on purpose" in page.locator(".note").text_content()
    state(page, "push", False)
    state(page, "layers", [])
    assert [orange_columns(page, view, 6, 24) for view in range(3)] == [[], [], []]


def runs(flags):
    """(middle, length) of each run of true values."""
    edges = np.flatnonzero(np.diff([0, *flags.astype(int), 0])).reshape(-1, 2)
    return [((a + b) / 2, b - a) for a, b in edges]


def test_the_grid_is_drawn_where_the_voxels_are_and_as_thick_in_both_directions(opened):
    """u = 1 voxel of 4 mm along k, in the coronal plane: on moving, the node of voxel 4 at 5."""
    moving, fixed = (with_sides(noise((24, 24, 24), s, labelled=False)) for s in (1, 2))
    viewer = viewers.view_registration(moving, fixed, shift((24, 24, 24), 0.0, 0.0, 1.0))
    viewer.plane, viewer.i, viewer.k = "coronal", 23, 23
    page = opened(viewer)
    lines = ([1, 5, 9, 13, 17, 21], [0, 4, 8, 12, 16, 20], [3, 7, 11, 15, 19, 23])
    for view, wanted in enumerate(lines):
        pixels = canvas(page, view, "top")
        near = np.abs(pixels[..., :3].astype(int) - ORANGE).max(-1) < 60
        orange = near & (pixels[..., 3] > 100)
        height, width = orange.shape
        assert height == pytest.approx(4 * width, abs=3)
        rows = runs(orange.mean(1) > 0.5)
        found = sorted((height - middle) / height * 24 - 0.5 for middle, _ in rows)
        assert found == pytest.approx(wanted, abs=0.1)
        columns = runs(orange.mean(0) > 0.5)
        found = [middle / width * 24 - 0.5 for middle, _ in columns]
        border = [] if view == 2 else [0]  # no level passes there
        assert found == pytest.approx([*border, 4, 8, 12, 16, 20], abs=0.2)
        assert max(thick for _, thick in rows + columns) <= 3


def test_the_squares_of_the_checkerboard_are_squares(opened):
    moving, fixed = (with_sides(noise(seed=s), (1.0, 2.0, 4.0)) for s in (1, 2))
    phi = Deformation(smooth())
    page = opened(viewers.view_registration(moving, fixed, phi))
    warped, fixed = grey(phi.warp(moving.image[None])[0, 0]), grey(fixed.image[0])
    state(page, "mode", "checkerboard")
    for plane, index, across, upwards in (("coronal", 13, 8, 2), ("axial", 8, 8, 4)):
        state(page, "plane", plane)
        one, other = on_screen(warped, plane, index), on_screen(fixed, plane, index)
        y, x = np.indices(one.shape)
        second = (x // across + y[::-1] // upwards) % 2
        assert np.array_equal(canvas(page, 2)[..., 0], np.where(second, other, one))


def test_a_step_along_a_long_side_is_as_long_in_the_line_the_key_and_the_colour(opened):
    """One voxel along k is 4.0 mm, in front; one along i is 1.0 mm, behind."""
    u = torch.zeros(1, 3, *SHAPE)
    u[:, 2, :, :13] = 1.0
    u[:, 0, :, 13:] = 1.0
    moving, fixed = with_sides(noise(seed=1)), with_sides(noise(seed=2))
    viewer = viewers.view_registration(moving, fixed, Deformation(u))
    viewer.layers = ["|u|"]
    page = opened(viewer)
    said = []
    for j, t in ((3, 1.0), (20, 1.0), (3, 0.5)):
        state(page, "j", j)
        state(page, "strength", t)
        said.append(re.search(r"\|u\| [0-9.]+ mm", page.locator(".status").text_content())[0])
    assert said == ["|u| 4.0 mm", "|u| 1.0 mm", "|u| 2.0 mm"]
    assert page.locator(".legend").first.text_content() == "|u|: 04.0 mm"

    state(page, "strength", 1.0)
    pixels = canvas(page, 2, "top").astype(int)
    height, width = pixels.shape[:2]
    for j, step in ((3, 255), (22, 64)):
        shown = pixels[int((25.7 - j) / 26 * height), int(0.3 * width), :3]
        wanted = 255 * np.array(plt.get_cmap("viridis")(step)[:3])
        assert shown == pytest.approx(wanted, abs=3)


def test_the_pointer_finds_its_voxel_in_a_stretched_picture(opened):
    page = opened(viewers.view_scan(with_sides(noise(), (1.0, 2.0, 4.0)), NAMES))
    box = page.locator("canvas.base").nth(1).bounding_box()  # coronal: 20 x 16 voxels
    page.mouse.click(box["x"] + 6.5 / 20 * box["width"], box["y"] + 3.5 / 16 * box["height"])
    settle(page)
    assert (state(page, "i"), state(page, "k")) == (6, 12)
    text = page.locator(".status").text_content()
    assert "voxel 6 13 12" in text and "6.0 26.0 48.0 mm" in text


def test_between_0_and_full_strength_a_half_goes_up_as_in_python(opened):
    moving, fixed = noise((20, 26), 1), noise((20, 26), 2)
    page = opened(viewers.view_registration(moving, fixed, shift((20, 26), 1.0, -1.0), NAMES))
    state(page, "strength", 0.5)
    for i, j in ((4, 5), (5, 6), (6, 5)):
        state(page, "i", i)
        state(page, "j", j)
        label = shift((20, 26), 0.5, -0.5).warp_labels(moving.labels[None])[0, i, j]
        assert label == moving.labels[i + 1, j]
        assert page.locator(".status").text_content().endswith(f"warped: {NAMES[label]}")


NASTY = (
    "</script><script>window.stolen = 1</script>",
    '"><img src=x onerror="window.stolen = 1">',
    "&lt;b&gt; 'quoted' %STATE%",
    "\u202egnorw \x1b[31m\x00 \udc80",
)


def test_names_stay_names(opened):
    names = ("background", *NASTY[:3])
    scans = []
    for seed, name in ((1, " ".join(NASTY)), (2, NASTY[3])):
        scans.append(replace(noise(seed=seed), id=name))
    shown = [printable(name) for name in names]
    pages = [
        viewers.view_scan(scans[0], names),
        viewers.view_registration(*scans, Deformation(smooth()), names),
    ]
    for viewer in pages:
        viewer.layers = ["labels"]
        page = opened(viewer)
        assert page.evaluate("window.stolen") is None and page.locator("img").count() == 0
        legends = page.locator(".legend").all_text_contents()
        assert legends == shown[1:]
        title = page.locator(".deepatlas").get_attribute("aria-label")
        assert printable(NASTY[3]) in title and r"\u202e" in title and r"\udc80" in title
        assert page.evaluate("document.title") == " ".join(title.split())
    for display in ("static", "html"):
        viewers.view_registration(*scans, Deformation(smooth()), names, display=display)
        data = viewers.view_scan(scans[0], names, display=display).data
        data.encode()
        assert "<script>" not in data and "<img src=x" not in data


def test_keys_wheel_pointer_and_sliders_change_the_picture(opened):
    scan = noise()
    page = opened(viewers.view_scan(scan, NAMES))
    volume, axial = grey(scan.image[0]), page.locator(".stack").nth(2)
    box = axial.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.wheel(0, 100)  # without the focus the page scrolls, not the viewer
    settle(page)
    assert state(page, "k") == 8
    axial.focus()
    page.mouse.wheel(0, 100)
    settle(page)
    assert state(page, "k") == 7
    for key, axis, wanted in (
        ("PageUp", "k", 8),
        ("End", "k", 15),
        ("Home", "k", 0),
        ("PageDown", "k", 0),
        ("ArrowLeft", "i", 9),
        ("ArrowRight", "i", 10),
        ("ArrowUp", "j", 14),
        ("ArrowDown", "j", 13),
    ):
        page.keyboard.press(key)
        settle(page)
        assert state(page, axis) == wanted, key
    assert np.array_equal(canvas(page, 2)[..., 0], on_screen(volume, "axial", 0))
    assert (
        axial.get_attribute("aria-valuenow") == "1" and axial.get_attribute("aria-valuemax") == "16"
    )
    assert "slice 1 of 16" in axial.get_attribute("aria-valuetext")
    page.mouse.click(box["x"] + 0.26 * box["width"], box["y"] + 0.51 * box["height"])
    settle(page)
    assert (state(page, "i"), state(page, "j")) == (5, 12)  # and the other planes follow
    assert np.array_equal(canvas(page, 0)[..., 0], on_screen(volume, "sagittal", 5))
    page.keyboard.press("1")
    settle(page)
    assert state(page, "layers") == []
    page.get_by_label("window").fill("0.5")
    settle(page)
    assert state(page, "window") == 0.5
    half = np.clip(np.round((on_screen(volume, "axial", 0) / 255 - 0.25) / 0.5 * 255), 0, 255)
    assert np.abs(canvas(page, 2)[..., 0] - half).max() <= 1


def test_layers_and_styles_change_the_upper_canvas(opened):
    moving, fixed, phi = pair((20, 26), 2.5 * smooth((20, 26), seed=4))
    assert (phi.jacobian_determinant() <= 0).any()
    page = opened(viewers.view_registration(moving, fixed, phi, NAMES))
    state(page, "layers", [])
    empty = [canvas(page, view, "top") for view in range(3)]
    shows = {
        "labels": (0, 1, 2),
        "grid": (0, 1, 2),
        "arrows": (1,),
        "|u|": (2,),
        "det J": (2,),
        "folds": (2,),
    }
    for number, (layer, views) in enumerate(shows.items(), 1):
        page.locator(f"[data-layer='{layer}']").click()
        settle(page)
        changed = [
            view for view in range(3) if not np.array_equal(canvas(page, view, "top"), empty[view])
        ]
        assert tuple(changed) == views, layer
        page.locator(".stack").first.focus()
        page.keyboard.press(str(number))
        settle(page)
        assert state(page, "layers") == []
    state(page, "layers", ["folds"])
    folded = on_screen((phi.jacobian_determinant()[0] <= 0).numpy()[..., None], "axial", 0)
    pixels = canvas(page, 2, "top")
    scale = pixels.shape[0] / 26
    for row, column in np.argwhere(folded)[:20]:
        shown = pixels[int((row + 0.3) * scale), int((column + 0.3) * scale)] / 255
        assert shown == pytest.approx(to_rgba(plots.MARKS["folds"]), abs=1e-6)


def test_hovering_names_the_structure_and_the_place(opened):
    scan = noise()
    page = opened(viewers.view_scan(scan, NAMES))
    box = page.locator(".stack").nth(2).bounding_box()
    page.mouse.move(box["x"] + 3.5 / 20 * box["width"], box["y"] + (26 - 20.5) / 26 * box["height"])
    text = page.locator(".status").text_content()
    assert "voxel 3 20 8" in text and "6.0 40.0 16.0 mm" in text
    assert NAMES[scan.labels[3, 20, 8]] in text and f"image {scan.image[0, 3, 20, 8]:.2f}" in text


def test_the_pointer_finds_its_voxel_under_a_caption_longer_than_the_picture_is_wide(opened):
    page = opened(viewers.view_registration(*pair((8, 40)), NAMES))
    state(page, "mode", "checkerboard")
    box = page.locator("canvas.base").nth(2).bounding_box()
    page.mouse.click(box["x"] + 6.5 / 8 * box["width"], box["y"] + 10.5 / 40 * box["height"])
    settle(page)
    assert (state(page, "i"), state(page, "j")) == (6, 29)


def test_the_line_below_says_what_warped_shows_at_this_strength(opened):
    moving, fixed, phi = pair((20, 26))
    page = opened(viewers.view_registration(moving, fixed, phi, NAMES))
    for t in (1.0, 0.5, 0.0):
        state(page, "strength", t)
        value = Deformation(t * phi.displacement).warp(moving.image[None])[0, 0, 10, 13]
        length = 2 * t * phi.displacement[0, :, 10, 13].norm()  # 2 mm a voxel
        text = page.locator(".status").text_content()
        shown = [float(re.search(f"{name} ([0-9.]+)", text)[1]) for name in ("warped", r"\|u\|")]
        assert shown == pytest.approx([float(value), float(length)], abs=0.06), text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_and_fine_screens(opened, scheme):
    page = opened(viewers.view_scan(noise(), NAMES), color_scheme=scheme, device_scale_factor=2)
    colour = page.evaluate("getComputedStyle(document.querySelector('.deepatlas .status')).color")
    assert (
        max(map(int, re.findall(r"\d+", colour)[:3])) < 100
        if scheme == "light"
        else "rgb(255" in colour
    )
    width = page.locator(".stack").first.bounding_box()["width"]
    assert canvas(page, 0, "top").shape[1] == pytest.approx(2 * width, abs=2)


def test_a_finger_moves_the_cursor(opened):
    page = opened(viewers.view_scan(noise(), NAMES), has_touch=True)
    box = page.locator(".stack").nth(2).bounding_box()
    page.touchscreen.tap(box["x"] + 0.26 * box["width"], box["y"] + 0.51 * box["height"])
    settle(page)
    assert (state(page, "i"), state(page, "j")) == (5, 12)


def test_a_page_keeps_the_state_of_its_viewer(opened):
    viewer = viewers.view_scan(noise(), NAMES)
    viewer.k, viewer.outline = 3, True
    page = opened(viewer)
    assert (state(page, "k"), state(page, "outline")) == (3, True)
    assert json.loads(page.locator("#state").text_content())["meta"]["structures"] == list(NAMES)
