"""Figures: right way round, readable colours, alternative text, nothing left open."""

from deepatlas import plots
from deepatlas.data import Scan
from deepatlas.regimes import BASELINES, JOINT, TITLES
from deepatlas.terms import TERMS, Term
from deepatlas.warp import Deformation

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch


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
    letters = [[text.get_text() for text in cell.texts] for cell in cells]
    assert letters == [[*"LRPA"], [*"LRSI"], [*"LRSI"]] + [[*"LRPA"], [*"LRSI"], [*"LRSI"]] * 2
    flat, through = (cells[row].images[1].get_array() for row in (3, 6))
    assert flat.shape == (9, 12) and (flat[:, 1:] == 0).all()
    assert (through[:, 1:] == 6).all() and through.mask[:, 0].all(), "no colour in the air"
    (arrows,) = [drawn for drawn in cells[7].collections if hasattr(drawn, "U")]
    assert (arrows.U == 2).all() and (arrows.V == 1.5).all() and arrows.N == 3 * 4
    assert [cells[i].get_aspect() for i in (0, 1, 6, 7)] == [1.5, 2, 1.5, 2]
    (key,) = figure.legends
    assert [text.get_text() for text in key.get_texts()] == ["it"], "a colour has a name"
    assert key.legend_handles[0].get_color() == plots.colours(1)[0]
    plt.close(figure)


@pytest.mark.parametrize("count", [1, 7, 8, 12, 49])
def test_colours_differ(count):
    rgb = np.array([plt.matplotlib.colors.to_rgb(colour) for colour in plots.colours(count)])
    assert len(rgb) == count
    assert count == 1 or np.abs(np.diff(rgb, axis=0)).sum(1).min() > 0.2


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
        if text.get_color() == "#D55E00"
    }
    assert orange and all(learning in text for text in orange)
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
    """All five pictures, and moving as large as fixed, although its lattice leads beyond it."""
    moving, fixed = thin(1, (2.0, 1.0, 4.0)), thin(2, (2.0, 1.0, 4.0))
    phi = Deformation(torch.full((1, 3, 12, 10, 6), 4.0))
    figure = plots.registration_figure(moving, fixed, phi)
    pictures = figure.axes[:5]
    assert [axes.get_title() for axes in pictures[3:]] == ["warped - fixed", "det J"]
    assert drawn(pictures) == pytest.approx([24 / 10] * 5, rel=0.01)
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
