"""Figures: right way round, readable colours, alternative text, nothing left open."""

import re
from dataclasses import replace

from deepatlas import phantom, plots, viewers
from deepatlas.data import Scan, Source
from deepatlas.regimes import BASELINES, JOINT, TITLES
from deepatlas.terms import TERMS, Term
from deepatlas.viewers.montage import STYLE
from deepatlas.warp import Deformation

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch


def letters_on(axes):
    """The anatomical letters of a picture, left, right, bottom, top."""
    return [text.get_text() for text in axes.texts if len(text.get_text()) == 1]


def contour_points(axes):
    return np.concatenate(
        [path.vertices for collection in axes.collections for path in collection.get_paths()]
    )


def test_the_grid_is_what_warping_makes_of_a_lattice():
    """phi(x) = x + 2 pulls: a line drawn on moving at i = 8 appears on fixed at i = 6."""
    u = torch.zeros(1, 2, 20, 24)
    u[:, 0] = 2
    figure, axes = plt.subplots()
    plots.draw_grid(axes, Deformation(u), step=8)
    vertical = {round(x, 3) for x, y in contour_points(axes) if y == 4}
    assert vertical == {6.0, 14.0}
    lattice = torch.zeros(1, 1, 20, 24)
    lattice[:, :, [8, 16]] = 1
    assert Deformation(u).warp(lattice)[0, 0, :, 0].gt(0.5).nonzero().flatten().tolist() == [6, 14]
    plt.close(figure)


def test_a_slice_is_shown_with_the_first_axis_to_the_right_and_the_second_up():
    volume = torch.zeros(4, 6, 5)
    volume[3, 1, 2] = 1
    figure, axes = plt.subplots()
    plots.draw_image(axes, volume[None], "title")
    shown = axes.images[0]
    assert (
        shown.get_array().shape == (6, 4)
        and shown.get_array()[1, 3] == 1
        and shown.origin == "lower"
    )
    plt.close(figure)


def test_motion_through_the_plane_is_shown_in_millimetres_with_the_letters_of_the_scan():
    """u_3 = 1.5 voxels of 4 mm, and u_1 = 2; the third axis leads to the feet."""
    affine = torch.diag(torch.tensor([2.0, 3.0, -4.0, 1.0]))
    image = torch.ones(1, 12, 9, 10)
    image[0, 0] = 0  # the air
    labels = torch.zeros(12, 9, 10, dtype=torch.uint8)
    labels[4:8, 3:6, 2:7] = 1
    scan = Scan("a", "a", image, affine, labels)
    still = Deformation.identity(scan.shape)
    u = torch.zeros(1, 3, *scan.shape)
    u[:, 0], u[:, 2] = 2, 1.5
    panels = [("slices", still), ("volume", Deformation(u))]
    figure = plots.through_plane_figure(scan, scan, panels, (4, 5), ["background", "it"])
    cells = [cell for cell in figure.axes if cell.get_title()]
    letters = [letters_on(cell) for cell in cells]
    assert letters == [[*"LRPA"], [*"LRSI"], [*"LRSI"]] + [[*"LRPA"], [*"LRSI"], [*"LRSI"]] * 2
    flat, through = (cells[row].images[1].get_array() for row in (3, 6))
    assert flat.shape == (9, 12) and (flat[:, 1:] == 0).all()
    assert (through[:, 1:] == 6).all() and through.mask[:, 0].all(), "no colour in the air"
    (arrows,) = [drawn for drawn in cells[7].collections if hasattr(drawn, "U")]
    assert (arrows.U == 2).all() and (arrows.V == 1.5).all() and arrows.N == 3 * 4
    assert [cells[i].get_aspect() for i in (0, 1, 6, 7)] == [1.5, 2, 1.5, 2]
    (key,) = figure.legends
    names = [text.get_text() for text in key.get_texts()]
    assert names[0] == "it" and len(names) == 3, "a colour has a name, and so have lines and arrows"
    assert key.legend_handles[0].get_color() == plots.colours(1)[0]
    plt.close(figure)


# --- colours --------------------------------------------------------------------------------------

# What is seen without one kind of cones, of linear RGB: Machado, Oliveira and Fernandes (2009),
# severity 1.
SIGHTS = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colours):
    """Hexadecimal sRGB, or triples of it -> linear RGB (N, 3)."""
    bent = np.array([plt.matplotlib.colors.to_rgb(colour) for colour in colours])
    return np.where(bent <= 0.04045, bent / 12.92, ((bent + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Linear RGB (N, 3) -> OKLab (Ottosson, 2020): lightness from 0 to 1, and two of hue."""
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(rgb @ np.transpose(to_cones)) @ np.transpose(to_lab)


def nearest(colours, sight):
    """The least distance in OKLab between two of ``colours``, seen by eyes of one kind."""
    seen = oklab(np.clip(linear(colours) @ np.transpose(SIGHTS[sight]), 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    return apart[np.triu_indices(len(seen), 1)].min()


def test_distances_between_colours_are_those_that_are_known():
    assert nearest(["black", "white"], "all cones") == pytest.approx(1, abs=1e-3)
    red = oklab(linear(["#FF0000"]))[0]
    assert red == pytest.approx([0.62796, 0.22486, 0.12585], abs=1e-4)  # Ottosson's own table
    assert nearest(["#D55E00", "#009E73"], "all cones") > 0.2
    assert nearest(["#BB6E00", "#8E7C00"], "deuteranopia") < 0.04, "orange and olive: alike"
    greys = linear(["#404040", "#C0C0C0"])
    for matrix in SIGHTS.values():
        assert greys @ np.transpose(matrix) == pytest.approx(greys, abs=1e-4), "grey stays grey"


@pytest.mark.parametrize("sight", SIGHTS)
def test_structures_are_told_apart_by_everyone(sight):
    assert nearest(plots.colours(8), sight) > 0.1
    assert nearest(plots.colours(12), sight) > 0.06


def test_colours_are_calm_on_grey_and_none_is_yellow_on_white():
    lab = oklab(linear(plots.colours(60)))
    chroma, hue = np.hypot(lab[:, 1], lab[:, 2]), np.degrees(np.arctan2(lab[:, 2], lab[:, 1]))
    assert chroma.max() < 0.145, "pure red, lime and blue have 0.26 to 0.31"
    assert chroma[:8].min() > 0.08, "and grey has 0"
    assert lab[:, 0].min() > 0.45 and lab[:, 0].max() < 0.85
    yellow = (hue > 85) & (hue < 125) & (lab[:, 0] > 0.78)
    assert not yellow[: len(plots.PALETTE)].any()


@pytest.mark.parametrize("count", [1, 7, 8, 12, 49])
def test_colours_differ(count):
    rgb = np.array([plt.matplotlib.colors.to_rgb(colour) for colour in plots.colours(count)])
    assert len(rgb) == count
    assert count == 1 or np.abs(np.diff(rgb, axis=0)).sum(1).min() > 0.2


def test_a_structure_has_its_colour_whatever_the_number_of_structures():
    assert plots.colours(3) == plots.colours(40)[:3]
    assert plots.colour_bytes(4) == plots.colour_bytes(200)[:4]


def test_the_lines_of_a_few_curves_are_dark_enough_on_white():
    assert len({str(colour) for colour in plots.line_colours(30)}) == 30
    luminance = linear(plots.line_colours(5)) @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (luminance + 0.05)).min() > 3, "WCAG's contrast of graphics"
    for sight in SIGHTS:
        assert nearest(plots.line_colours(5), sight) > 0.1


def test_folds_and_grid_are_seen_upon_structures_and_maps():
    dark_blue = plt.get_cmap("RdBu_r")(0.0)[:3]  # what det J = 0 is drawn in
    for sight in SIGHTS:
        for colour in [dark_blue, *plots.colours(8)]:
            assert nearest([plots.MARKS["folds"], colour], sight) > 0.06
        assert nearest([plots.MARKS["folds"], dark_blue], sight) > 0.2


def test_the_scripts_of_the_viewers_have_the_same_marks():
    script = dict(
        re.findall(r'^const (ORANGE|ARROWS|FOLDS|DOT) = "(#\w{6})";', viewers.SCRIPT, re.M)
    )
    assert script == {
        "ORANGE": plots.MARKS["grid"],
        "ARROWS": plots.MARKS["arrows"],
        "FOLDS": plots.MARKS["folds"],
        "DOT": plots.MARKS["points"],
    }
    assert "color: #fff;" in viewers.SCRIPT and "color: #fff;" in STYLE, "letters, as here: white"


# --- keys, letters, scales, texts -----------------------------------------------------------------


def key_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture(scope="module")
def knees():
    moving, fixed = (phantom.make_scan("knee", n, (32, 32), spacing=4.0) for n in (0, 1))
    phi = Deformation(phantom.true_deformation(moving, fixed).displacement.float())
    return moving, fixed, phi


def test_a_scan_has_letters_a_scale_and_a_key(knees):
    figure = plots.scan_figure(thin(), ("background", "one", "$two$"))
    assert [letters_on(axes) for axes in figure.axes] == [[*"PAIS"], [*"LRIS"], [*"LRPA"]] * 2
    assert key_of(figure) == ["one", r"\$two\$"]
    scales = [
        text.get_text() for axes in figure.axes for text in axes.texts if "mm" in text.get_text()
    ]
    assert scales == ["5 mm", "2 mm", "2 mm"], "once for each plane"
    assert "Labels of 2 structures in colour." in plots.description(figure)
    unlabelled = Scan("u", "u", thin().image, thin().affine)
    bare = plots.scan_figure(unlabelled)
    assert bare.legends == [] and plots.description(bare).endswith("No labels.")
    names = key_of(plots.scan_figure(knees[0]))
    assert "structure 1" in names, "a structure without a name has its number"
    plt.close("all")


def test_a_registration_has_one_scale_from_its_data_and_shows_its_folds(knees):
    moving, fixed, phi = knees
    structures = phantom.anatomy_of("knee").structures
    folded = Deformation(6 * phi.displacement)
    figure = plots.registration_figure(moving, fixed, folded, structures)
    pictures = {axes.get_title(): axes for axes in figure.axes[:6]}
    assert all(letters_on(axes) == [*"PAIS"] for axes in pictures.values()), "a sagittal plane"
    scales = [pictures[f"{name} - fixed"].images[0].get_clim() for name in ("moving", "warped")]
    warped = folded.warp(moving.image[None])[0]
    sizes = torch.stack([moving.image - fixed.image, warped - fixed.image]).abs()
    largest = torch.quantile(sizes, 0.99).item()
    assert scales[0] == pytest.approx((-largest, largest)) and scales[0] == scales[1]
    folds = (folded.jacobian_determinant()[0] <= 0).numpy().T
    assert folds.any()
    shown = pictures["det J"].images[1]
    assert np.array_equal(~shown.get_array().mask, folds)
    assert plt.matplotlib.colors.to_hex(shown.cmap(0)).upper() == plots.MARKS["folds"]
    assert key_of(figure)[-2:] == ["lattice", "det J ≤ 0"] and "femur" in key_of(figure)
    said = plots.description(figure)
    assert f"{100 * folds.mean():.1f} % of this plane" in said
    assert f"{(moving.image - fixed.image).abs().mean():.3f} before" in said
    assert f"{(warped - fixed.image).abs().mean():.3f} after" in said
    plt.close(figure)


def test_identical_scans_have_a_scale_that_is_not_empty(knees):
    fixed = knees[1]
    figure = plots.registration_figure(fixed, fixed, Deformation.identity(fixed.shape))
    assert figure.axes[4].images[0].get_clim() == (-0.01, 0.01)
    plt.close(figure)


def test_deformations_show_their_folds_and_say_how_many(knees):
    moving, _, phi = knees
    panels = [(f"{strength} u", Deformation(strength * phi.displacement)) for strength in (1, 6)]
    figure = plots.deformations_figure(moving, panels, columns=3)
    assert letters_on(figure.axes[0]) == [*"PAIS"] and not figure.axes[2].axison
    share = 100 * (panels[1][1].jacobian_determinant() <= 0).float().mean()
    said = plots.description(figure)
    assert "1 u, 0.0 % of the slice folded" in said and f"6 u, {share:.1f} % of" in said
    assert len(key_of(figure)) == 2
    plt.close(figure)


def test_a_training_has_letters_where_it_is_told_them():
    slices = {"fixed": torch.zeros(12, 10, dtype=torch.uint8)}
    lines = {"similarity (reg)": {"x": [1, 2], "y": [0.5, 0.4]}}
    letters = [("L", "R"), ("P", "A"), ("I", "S")]
    figure = plots.training_figure(lines, slices, 3, letters=letters)
    assert letters_on(figure.axes[1]) == [*"LRPA"]
    said = plots.description(figure)
    assert "similarity (reg) ends at 0.4" in said and "validation" not in said
    plt.close(figure)


@pytest.mark.parametrize(("terms", "spare"), [(8, 0), (7, 1)])
def test_a_training_of_many_terms_fits_a_page(terms, spare):
    image = torch.zeros(12, 10, dtype=torch.uint8)
    lines = {f"term {n}": {"x": [1, 2], "y": [0.5, 0.4]} for n in range(terms)}
    figure = plots.training_figure(lines, {"fixed": image, "warped": image}, 3)
    assert figure.get_figwidth() <= 12 and len(figure.axes) == terms + 2 + spare
    titles = [axes.get_title() for axes in figure.axes if axes.axison or axes.images]
    assert titles == [*lines, "fixed, now", "warped, now"]
    plt.close(figure)


def test_a_text_of_a_figure_is_shown(monkeypatch, knees):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    figure = plots.scan_figure(knees[0])
    text = plots.description(figure)
    plots.show(figure, alt=text)
    assert f'alt="{text}"' in shown[0].data
    empty, _ = plt.subplots()
    assert plots.description(empty) == ""
    plt.close(empty)


def test_show_writes_the_alternative_text_and_closes(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    figure, _ = plt.subplots()
    plots.show(figure, alt='moving "a" < fixed')
    assert (
        'alt="moving &quot;a&quot; &lt; fixed"' in shown[0].data
        and "data:image/png;base64," in shown[0].data
    )
    assert not plt.fignum_exists(figure.number)


def test_boxes_and_curves_name_every_regime():
    scores = pd.DataFrame(
        {
            "task": "segmentation",
            "regime": ["a", "a", "b", "b"],
            "case": ["1", "2", "1", "2"],
            "dice": [0.5, 0.6, np.nan, 0.8],
        }
    )
    figure = plots.dice_boxes(scores, "segmentation", {"a": "First", "b": "Second"})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["First", "Second"]
    history = pd.DataFrame(
        {
            "regime": "a",
            "step": [1, 2],
            "turn": ["seg", "reg"],
            "supervised": [0.5, np.nan],
            "similarity": [np.nan, 0.2],
        }
    )
    figure = plots.loss_curves(history, {"a": "First"})
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {
        "supervised (seg)",
        "similarity (reg)",
    }
    plt.close("all")


def test_a_term_has_its_colour_and_a_new_one_is_drawn(monkeypatch):
    """In the order of the table; what is in the history and not in the table is not drawn."""
    monkeypatch.setitem(TERMS, "curl", Term(1.0, "#123456", reg=TERMS["regularity"].reg))
    names = [*TERMS, "zebra"]
    rows = [{"regime": "a", "turn": "reg", "step": i, **dict.fromkeys(names, 0.5)} for i in (1, 2)]
    axes = plots.loss_curves(pd.DataFrame(rows), {"a": "First"}).axes[0]
    drawn = {line.get_label(): line.get_color() for line in axes.lines}
    assert drawn == {f"{name} (reg)": term.colour for name, term in TERMS.items()}
    assert list(drawn)[:4] == [
        f"{name} (reg)" for name in ("similarity", "regularity", "anatomy", "supervised")
    ]
    assert drawn["curl (reg)"] == "#123456"
    plt.close("all")


def test_a_regime_that_the_table_lacks_keeps_its_key():
    """As in the folder of an older run."""
    scores = pd.DataFrame({"task": "registration", "regime": "zebra", "case": "1", "dice": [0.5]})
    figure = plots.dice_boxes(scores, "registration", TITLES)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["zebra"]
    history = pd.DataFrame({"regime": ["zebra"], "step": [1], "turn": ["reg"], "anatomy": [0.5]})
    assert plots.loss_curves(history, TITLES).axes[0].get_title() == "zebra (reg)"
    plt.close("all")


def test_an_example_shows_the_baselines_and_joint_training():
    shape = (16, 18)
    example = {"moving": torch.zeros(1, *shape), "fixed": torch.zeros(1, *shape), "name": "m to f"}
    for key in ("fixed_labels", f"labels_{BASELINES['seg']}", f"labels_{JOINT}"):
        example[key] = torch.zeros(shape, dtype=torch.uint8)
    for key in (BASELINES["reg"], JOINT):
        example[f"u_{key}"] = torch.zeros(1, 2, *shape)
    figure = plots.example_figure(example, ("background", "one", "two"))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "fixed",
        "expert's labels",
        "segmentation: Baseline",
        "segmentation: DeepAtlas",
        "",
        "moving",
        "warped: Baseline",
        "its grid on fixed: Baseline",
        "warped: DeepAtlas",
        "its grid on fixed: DeepAtlas",
    ]
    names = [text.get_text() for text in figure.axes[4].get_legend().get_texts()]
    assert names == ["one", "two"] and figure.get_suptitle() == "m to f"
    plt.close(figure)


@pytest.mark.parametrize(
    "name, shape, letters",
    [
        ("brain-s0-0001", (16, 18), "LRPA"),
        ("knee-s0-0001", (16, 18), "PAIS"),
        ("sub-1", (16, 18, 12), "LRPA"),  # a volume of a run lies along R, A and S
        ("sub-1", (16, 18), ""),  # a slice of somebody else's may lie anyhow
    ],
)
def test_an_example_has_letters_where_they_are_certain(name, shape, letters):
    image, labels = torch.zeros(1, *shape), torch.zeros(shape, dtype=torch.uint8)
    example = {"moving": image, "fixed": image, "name": f"other to {name}"}
    for key in ("fixed_labels", f"labels_{BASELINES['seg']}", f"labels_{JOINT}"):
        example[key] = labels
    for key in (BASELINES["reg"], JOINT):
        example[f"u_{key}"] = torch.zeros(1, len(shape), *shape)
    figure = plots.example_figure(example, ("background", "one"))
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 9 and all(letters_on(axes) == [*letters] for axes in pictures)
    said = plots.description(figure)
    assert name in said
    ends = "From left to right {} to {}, from below upwards {} to {}."
    assert (ends.format(*letters) in said) if letters else ("upwards" not in said)
    told = plots.example_figure(example, ("background", "one"), [("A", "P"), ("S", "I")])
    assert letters_on(told.axes[0]) == [*"APSI"]
    plt.close("all")


def test_a_2d_phantom_has_the_letters_of_the_plane_that_it_shows(knees):
    """Also turned; a volume and a scan from a file have those of their affine."""
    brain = phantom.make_scan("brain", 0, (16, 16), spacing=9.0)
    assert plots.letters_of(brain) == [("L", "R"), ("P", "A"), ("I", "S")]
    knee = knees[0]
    assert plots.letters_of(knee) == [("P", "A"), ("I", "S"), ("L", "R")]
    turned = replace(knee, affine=knee.affine @ torch.diag(torch.tensor([1.0, -1, 1, 1]).double()))
    assert plots.letters_of(turned)[:2] == [("P", "A"), ("S", "I")]
    volume = phantom.make_scan("knee", 0, (8, 8, 8), spacing=16.0)
    assert plots.letters_of(volume) == [("L", "R"), ("P", "A"), ("I", "S")]
    source = Source("a.nii.gz", (32, 32), knee.affine)
    assert plots.letters_of(replace(knee, source=source))[:2] == [("L", "R"), ("P", "A")]


def test_dice_against_n_has_an_interval_for_every_regime():
    table = pd.DataFrame(
        [
            {
                "dataset": dataset,
                "task": task,
                "regime": regime,
                "labelled": n,
                "mean": 80 + n,
                "low": 78.0,
                "high": 90.0,
            }
            for dataset in ("a", "b")
            for n in (1, 5)
            for task, regime in (
                ("segmentation", "x"),
                ("segmentation", "y"),
                ("registration", "x"),
            )
        ]
    )
    figure = plots.dice_against_n_figure(table, {"x": "joint", "y": "alone"})
    segmentation, registration = figure.axes[0], figure.axes[2]
    assert [len(axes.containers) for axes in (segmentation, registration)] == [2, 1]
    assert segmentation.containers[0].lines[0].get_ydata().tolist() == [81, 85]
    lengths = [
        path.vertices[:, 1].tolist() for path in segmentation.containers[0].lines[2][0].get_paths()
    ]
    assert lengths == [[78, 90], [78, 90]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["joint", "alone"]
    plt.close(figure)


@pytest.mark.parametrize("turn, learning", [("seg", "F_S"), ("reg", "F_R")])
def test_the_four_cases_say_what_counts_and_what_learns(turn, learning):
    figure = plots.cases_figure(turn)
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert [("counts" in words) for words in texts] == (
        [False, True, True, False] if turn == "seg" else [True] * 4
    )
    orange = {
        text.get_text()
        for axes in figure.axes
        for text in axes.texts
        if text.get_color() == plots.LEARNS[0]
    }
    assert orange and all(learning in text for text in orange)
    assert all("pulls" in words for words in texts), "an arrow from phi to the labels it pulls"
    assert len(key_of(figure)) == 3 and "four cases" in plots.description(figure)
    plt.close(figure)


def test_the_four_cases_show_real_labels_and_guesses(knees):
    """The expert's where there are any, else the guess; in the middle what phi pulls."""
    moving, fixed, phi = knees
    guesses = (moving.labels.roll(1, 0), fixed.labels.roll(1, 1))
    figure = plots.cases_figure("seg", plots.Pair(moving, fixed, phi, guesses))
    for axes, (m, f) in zip(figure.axes, [(1, 1), (1, 0), (0, 1), (0, 0)], strict=True):
        of_moving = moving.labels if m else guesses[0]
        wanted = [of_moving, fixed.labels if f else guesses[1], phi.warp_labels(of_moving[None])[0]]
        inner = [child for child in axes.child_axes if len(child.images) == 2]
        shown = [child.images[1].get_array() for child in inner]
        for values, labels in zip(shown, wanted, strict=True):
            assert np.array_equal(values.filled(0), labels.numpy().T)
    plt.close(figure)


def test_a_guess_is_made_from_images_and_another_phantoms_labels():
    pair = plots.phantom_pair(size=32)
    for scan, guess in zip((pair.moving, pair.fixed), pair.guesses, strict=True):
        right = (guess == scan.labels).float().mean()
        assert 0.8 < right < 1, "good, and not the expert's"


def test_one_page_has_it_all_and_is_a4_across():
    figure = plots.at_a_glance()
    assert figure.get_size_inches() * 25.4 == pytest.approx([297, 210], abs=0.2)
    words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    for wanted in (
        "Registration network",
        "Segmentation network",
        "Turn of registration",
        "Turn of segmentation",
        "The four cases",
        r"L_i = 1 - \mathrm{NCC}",
        "Afterwards",
    ):
        assert wanted in words
    figure.canvas.draw()
    page = figure.get_window_extent()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert page.x0 < box.x0 and box.x1 < page.x1, f"on the page: {text.get_text()}"
    plt.close(figure)


def test_one_page_has_no_text_upon_another():
    figure = plots.at_a_glance()
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    for number, box in enumerate(boxes):
        for other in boxes[:number]:
            assert not box.padded(-2).overlaps(other.padded(-2))
    plt.close(figure)


def numbers_of(text):
    """Every pair of coordinates in ``text``, in order."""
    found = re.findall(r"\((-?\d+\.\d+), (-?\d+\.\d+)\)", text)
    return [(float(a), float(b)) for a, b in found]


def test_a_pull_back_is_the_arithmetic_of_warp():
    figure = plots.pull_back_figure()
    warped, moving = (axes.images[0].get_array() for axes in figure.axes)  # (J, I)
    said = plots.description(figure)
    u, point = numbers_of(said)
    assert point == (1 + u[0], 2 + u[1])
    terms = re.findall(r"([\d.]+)·(\d+)", said)
    assert sum(float(weight) for weight, _ in terms) == pytest.approx(1, abs=1e-3)
    value = sum(float(weight) * float(there) for weight, there in terms)
    assert value == pytest.approx(warped[2, 1], abs=0.05)
    assert [int(there) for _, there in terms] == [moving[j, i] for i in (2, 3) for j in (2, 3)]
    assert f"= {value:.1f}," in said
    plt.close(figure)


def test_phi_after_psi_adds_at_the_place_between():
    figure = plots.composition_figure()
    said = plots.description(figure)
    between, end, right, wrong = numbers_of(said)
    assert right == pytest.approx((end[0] - 8, end[1] - 16), abs=0.011) and wrong != right
    shown = figure.texts[-1].get_text()
    u_psi, u_phi, total, other = numbers_of(shown)
    assert u_psi == (between[0] - 8, between[1] - 16)
    assert total == right == pytest.approx(tuple(np.add(u_psi, u_phi)), abs=0.011)
    assert other == wrong
    fixed, middle = (axes.images[0].get_array() for axes in figure.axes[:2])
    psi = Deformation(torch.tensor(u_psi).view(1, 2, 1, 1).expand(1, 2, *fixed.shape).clone())
    pulled = psi.warp(torch.from_numpy(middle.T.copy())[None, None])[0, 0]
    assert np.abs(pulled.numpy().T - fixed).mean() < 0.02, "(I after phi) after psi"
    plt.close(figure)


def test_a_squaring_step_asks_again_where_the_first_leads():
    figure = plots.squaring_figure()
    said = plots.description(figure)
    u, y, u_there, both, twice = numbers_of(said)
    assert y == (5 + u[0], 2 + u[1])
    assert u_there == pytest.approx((0.28 * (2 - y[1]), 0.28 * (y[0] - 2)), abs=0.006)
    assert both == pytest.approx(tuple(np.add(u, u_there)), abs=0.011)
    assert twice == pytest.approx((2 * u[0], 2 * u[1])) and twice != both
    plt.close(figure)


# --- voxels with sides of their own ---------------------------------------------------------------


def thin(seed=0, sides=(1.0, 2.0, 4.0), shape=(12, 10, 6)):
    """A scan of random voxels of ``sides`` mm."""
    generator = torch.Generator().manual_seed(seed)
    affine = torch.diag(torch.tensor([*sides, 1.0], dtype=torch.float64))
    image = torch.rand(1, *shape, generator=generator)
    labels = torch.randint(0, 3, shape, generator=generator)
    return Scan(f"thin-{seed}", f"thin-{seed}", image, affine, labels)


def drawn(axes):
    """Width over height of the pictures on the page."""
    axes[0].figure.canvas.draw()
    boxes = [cell.get_window_extent() for cell in axes]
    return [box.width / box.height for box in boxes]


def test_a_scan_is_drawn_in_the_proportions_of_its_voxels():
    figure = plots.scan_figure(thin())
    sagittal, coronal, axial = 20 / 24, 12 / 24, 12 / 20  # mm over mm
    assert drawn(figure.axes) == pytest.approx([sagittal, coronal, axial] * 2, rel=0.01)
    flat = plots.scan_figure(thin(sides=(1.0, 3.0, 1.0), shape=(12, 10)))
    assert drawn(flat.axes) == pytest.approx([12 / 30] * 2, rel=0.01)
    plt.close("all")


def test_a_registration_is_drawn_in_the_proportions_of_its_voxels():
    """All six pictures, and moving as large as fixed, although its lattice leads beyond it."""
    moving, fixed = thin(1, (2.0, 1.0, 4.0)), thin(2, (2.0, 1.0, 4.0))
    phi = Deformation(torch.full((1, 3, 12, 10, 6), 4.0))
    figure = plots.registration_figure(moving, fixed, phi)
    pictures = figure.axes[:6]
    titles = [axes.get_title() for axes in pictures]
    assert titles[3:] == ["moving - fixed", "warped - fixed", "det J"]
    assert drawn(pictures) == pytest.approx([24 / 10] * 6, rel=0.01)
    widths = [axes.get_window_extent().width for axes in pictures]
    assert widths == pytest.approx([widths[0]] * 6, rel=0.01), "all as large"
    assert pictures[0].get_xlim() == pictures[1].get_xlim() == (-0.5, 11.5)

    panels = plots.deformations_figure(moving, [("one", phi), ("two", phi)], columns=2)
    assert drawn(panels.axes) == pytest.approx([24 / 10] * 2, rel=0.01)
    plt.close("all")


def test_a_training_is_drawn_in_the_proportions_of_its_voxels():
    slices = {
        "fixed": torch.zeros(12, 10, dtype=torch.uint8),
        "warped": torch.zeros(12, 10, dtype=torch.uint8),
        "labels": torch.ones(12, 10, dtype=torch.uint8),
        "u0": torch.zeros(12, 10, dtype=torch.int16),
        "u1": torch.zeros(12, 10, dtype=torch.int16),
    }
    lines = {"similarity (reg)": {"x": [1, 2], "y": [0.5, 0.4]}}
    figure = plots.training_figure(lines, slices, 3, spacing=(1.0, 3.0, 9.0))
    assert drawn(figure.axes[1:]) == pytest.approx([12 / 30] * 2, rel=0.01)
    plt.close(figure)


def test_tensors_alone_are_drawn_as_squares():
    figure, (one, other) = plt.subplots(1, 2)
    plots.draw_image(one, torch.zeros(1, 12, 10))
    plots.draw_labels(one, torch.ones(12, 10, dtype=torch.bool), 2)
    plots.draw_labels(other, torch.ones(12, 10, dtype=torch.uint16), 2)
    assert drawn([one, other]) == pytest.approx([1.2] * 2, rel=0.01)
    plt.close(figure)


# --- names ----------------------------------------------------------------------------------------


def test_names_are_shown_letter_by_letter():
    """No formula between dollars, nothing that steers a page, nothing that cannot be written."""
    nasty = "$\\frac$ \x1b[1m"
    shape = (16, 18)
    example = {"moving": torch.zeros(1, *shape), "fixed": torch.zeros(1, *shape), "name": nasty}
    for key in ("fixed_labels", f"labels_{BASELINES['seg']}", f"labels_{JOINT}"):
        example[key] = torch.zeros(shape, dtype=torch.uint8)
    for key in (BASELINES["reg"], JOINT):
        example[f"u_{key}"] = torch.zeros(1, 2, *shape)
    plots.picture(plots.example_figure(example, ("background", nasty)), nasty)

    table = pd.DataFrame({"Dice %": [70.0], "folds %": [0.5]}, index=[nasty])
    figure = plots.sweep_figure(table)
    shown = plots.picture(figure, f'{nasty} "\udc80" <b>')
    assert figure.axes[0].texts[0].get_text() == r"\$\frac\$ \x1b[1m"
    assert 'alt="$\\frac$ \\x1b[1m &quot;\\udc80&quot; &lt;b&gt;"' in shown.data
