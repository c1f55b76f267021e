"""A training that is watched, the loss explorer and the sweep explorer: what they send, ask for and
refuse.
"""

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor

from deepatlas import explorers, models, networks, training, viewers
from deepatlas.errors import UserError
from deepatlas.regimes import REGIMES
from deepatlas.terms import TERMS, Term
from deepatlas.viewers.page import document
from deepatlas.warp import Deformation

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import disks
from test_viewers import NAMES, noise, pair

PAIR = (20, 26)


def row(step, **terms):
    return {"step": step, "turn": "reg", "seconds": 0.1 * step, **terms}


def watched(display="live", pause=0.0):
    moving, fixed, phi = pair(PAIR)
    watch = explorers.view_training(
        moving,
        fixed,
        register=lambda m, f: phi,
        segment=lambda scan: scan.labels,
        structures=NAMES,
        display=display,
    )
    watch.PAUSE, watch.SHARE = pause, 1.0
    return watch


def test_training_calls_the_watch_with_every_row_and_the_networks_of_the_moment(tmp_path):
    cohort, seen = disks(), []
    nets = {"seg": networks.SegmentationNet(2, 3), "reg": networks.RegistrationNet(2)}
    watch = explorers.view_training(
        *cohort.validation,
        register=models.registrar(nets["reg"]),
        segment=models.segmenter(nets["seg"]),
    )
    watch.PAUSE, watch.SHARE = 0.0, 1.0
    watch.widget.observe(lambda change: seen.append(change["new"]), "frame")
    settings = training.Settings(
        {"seg": 4, "reg": 8}, learning_rates={"seg": 1e-2, "reg": 1e-2}, validations=3, watch=watch
    )
    history = training.train(
        nets, cohort, REGIMES["deepatlas"], settings, tmp_path, lambda _: {"seg": 0.5, "reg": 0.4}
    )
    assert watch.history == history and len(history) == 12
    assert len(set(seen)) > 6  # the networks change, and so do the pictures
    assert set(watch.widget.curves) >= {
        "similarity (reg)",
        "regularity (reg)",
        "anatomy (reg)",
        "supervised (seg)",
        "validation Dice (seg)",
    }
    assert watch.widget.curves["validation Dice (reg)"]["y"] == [0.4] * 3
    later = explorers.view_training(*cohort.validation)  # of a training that is only loaded
    settings = dataclasses.replace(settings, watch=later)
    training.train(
        nets,
        cohort,
        REGIMES["deepatlas"],
        settings,
        tmp_path,
        lambda _: pytest.fail("validated again"),
    )
    assert later.history == history and set(later.widget.curves) == set(watch.widget.curves)


def test_watching_changes_no_bit_of_the_training(tmp_path):
    def trained(watch):
        torch.manual_seed(0)
        nets = {"seg": networks.SegmentationNet(2, 3), "reg": networks.RegistrationNet(2)}
        look = (
            explorers.view_training(
                *disks().validation,
                register=models.registrar(nets["reg"]),
                segment=models.segmenter(nets["seg"]),
            )
            if watch
            else None
        )
        training.train(
            nets,
            disks(),
            REGIMES["deepatlas"],
            training.Settings({"seg": 3, "reg": 5}, watch=look),
            tmp_path / str(watch),
        )
        return [p for net in nets.values() for p in net.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(trained(False), trained(True), strict=True))


def test_a_watch_is_quiet_between_pauses_and_its_messages_are_small(monkeypatch):
    watch, now, sent = watched(), [0.0], []
    watch.PAUSE = 3.0
    monkeypatch.setattr(explorers.time, "monotonic", lambda: now[0])
    watch.widget.observe(lambda change: sent.append(len(change["new"])), "curves")
    for step in range(1, 1001):
        now[0] += 0.01
        watch(row(step, similarity=1 / step))
    assert len(sent) == 4  # at 0.01, 3.01, 6.01 and 9.01 seconds
    assert len(watch.widget.frame) < 10_000
    assert len(watch.widget.curves["similarity (reg)"]["x"]) <= 200


def test_a_slow_look_is_taken_rarely(monkeypatch):
    watch, now, sent = watched(), [0.0], []
    watch.PAUSE, watch.SHARE = 3.0, 0.02
    monkeypatch.setattr(explorers.time, "monotonic", lambda: now[0])
    look = watch.look

    def slow():
        now[0] += 1.0
        return look()

    watch.look = slow
    watch.widget.observe(sent.append, "curves")
    for step in range(1, 2001):
        now[0] += 0.05
        watch(row(step, similarity=1 / step))
    assert len(sent) == 3  # a second each, 2 % of 100 seconds and a little


def test_curves_are_means_of_spans():
    history = [row(n, similarity=float(n), anatomy=0.0) for n in range(1, 1001)]
    history[499]["validation_reg"] = 0.5
    history[999]["validation_reg"] = float("nan")
    found = explorers.term_curves(history, points=10)
    assert found["similarity (reg)"] == {
        "x": list(range(100, 1001, 100)),
        "y": [n + 50.5 for n in range(0, 1000, 100)],
        "colour": TERMS["similarity"].colour,
    }
    assert found["validation Dice (reg)"] == {"x": [500], "y": [0.5], "colour": "#E69F00"}
    assert "anatomy (reg)" not in found  # a term that is not there
    history = [row(1, similarity=0.5, anatomy=float("nan"))]  # as a table of other regimes has it
    assert list(explorers.term_curves(history)) == ["similarity (reg)"]
    assert explorers.term_curves([]) == {}


def test_curves_are_those_of_the_table_of_terms(monkeypatch):
    """A term that is added there has a curve in its colour, in each turn it has a part in."""
    added = Term(1.0, "#123456", reg=lambda turn: turn, seg=None)
    monkeypatch.setitem(TERMS, "inverse", added)
    history = [row(1, inverse=0.5, anatomy=0.3, similarity=0.1)]
    history.append({"step": 1, "turn": "seg", "inverse": 0.5, "anatomy": 0.3, "supervised": 0.2})
    found = explorers.term_curves(history)
    assert list(found) == [
        "similarity (reg)",
        "anatomy (reg)",
        "inverse (reg)",
        "anatomy (seg)",
        "supervised (seg)",
    ]
    assert found["inverse (reg)"] == {"x": [1], "y": [0.5], "colour": "#123456"}


def test_without_a_widget_the_figure_comes_after_the_training(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(explorers.plots, "display", shown.append)
    watch = watched("static")
    watch._ipython_display_()
    assert "drawn when this is shown again" in capsys.readouterr().out and shown == []
    watch(row(1, similarity=0.5))
    watch(row(2, similarity=0.4, validation_reg=0.6))
    watch._ipython_display_()
    assert watch.widget is None and shown[0].data.startswith('<img alt="A panel for each')


def constant(calls):
    """A registration that shifts by lambda_r voxels and writes down what it was asked for."""

    def register(moving, fixed, **wish):
        calls.append(wish)
        return Deformation(torch.full((1, 2, *PAIR), wish["lambda_r"]))

    return register


def elsewhere(work):
    """``work()`` on a thread of its own, where no event loop is running yet."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def test_the_sliders_ask_for_another_registration():
    calls = []
    moving, fixed, _ = pair(PAIR)
    explorer = explorers.explore_losses(moving, fixed, constant(calls), NAMES)
    before = explorer.viewer.data

    def slide():
        explorer.lambda_r.value, explorer.similarity.value = 2.0, "ncc"

    elsewhere(slide)
    assert (
        calls[-1] == {"lambda_r": pytest.approx(2.0), "lambda_a": 0, "similarity": "ncc"}
        and len(calls) == 3
    )
    assert explorer.viewer.data != before
    assert explorer.verdict.value.startswith("Dice ") and "folds 0.00 %" in explorer.verdict.value
    assert not any(slider.continuous_update for slider in (explorer.lambda_r, explorer.lambda_a))


def test_of_several_wishes_the_latest_wins():
    calls = []
    moving, fixed, _ = pair(PAIR)

    async def hurry():
        explorer = explorers.explore_losses(moving, fixed, constant(calls), NAMES)
        for value in (1.0, 2.0, 4.0):
            explorer.lambda_r.value = value
        await asyncio.sleep(0.2)

    elsewhere(lambda: asyncio.run(hurry()))
    assert [round(call["lambda_r"], 3) for call in calls] == [0.2, 4.0]


@pytest.mark.parametrize("display", ["static", "html"])
def test_without_a_kernel_there_is_a_grid_of_finished_registrations(display):
    calls = []
    moving, fixed, _ = pair(PAIR)
    shown = explorers.explore_losses(moving, fixed, constant(calls), NAMES, display=display)
    assert shown.data.startswith("<img alt=") and "lambda_r 10, lambda_a 3: Dice" in shown.data
    assert {(call["lambda_r"], call["lambda_a"]) for call in calls} == {
        (r, a) for r in (0.01, 0.1, 1.0, 10.0) for a in (0.0, 3.0)
    }


TABLE = pd.DataFrame(
    {"Dice %": [70.0, 75.0, 72.0], "folds %": [0.0, 0.5, 2.0]}, index=["stiff", "good", "loose"]
)


def test_a_point_of_a_sweep_shows_its_warp():
    loaded = []

    def load(name):
        loaded.append(name)
        return viewers.view_scan(noise(PAIR))

    box = explorers.explore_sweep(TABLE, load)
    scatter, shown = box.children
    assert loaded == ["stiff"] and scatter.meta["points"][1] == [0.5, 75.0, "good"]
    first = shown.children
    scatter.chosen = 2
    assert loaded == ["stiff", "loose"] and shown.children != first
    scatter.chosen = 0
    # seen before: not computed again
    assert shown.children == first and loaded == ["stiff", "loose"]
    empty = pd.concat([pd.DataFrame({"Dice %": [50.0]}, index=["segmentation"]), TABLE])
    # a row without folds is left out
    assert len(explorers.explore_sweep(empty, load).children[0].meta["points"]) == 3
    static = explorers.explore_sweep(empty, load, display="static")
    assert "nan" not in static.data.partition(" src=")[0]
    assert static.data.startswith("<img alt=") and "good 75.0 at 0.50" in static.data


@pytest.mark.parametrize("table", [TABLE.iloc[:0], TABLE[["Dice %"]]])
def test_a_table_without_runs_or_columns_is_refused(table):
    with pytest.raises(
        ValueError, match=r"wants the columns \['folds %', 'Dice %'\] and a row for each run, got"
    ):
        explorers.explore_sweep(table, lambda name: None)


def test_bad_scans_are_refused_before_anything_is_drawn():
    moving, fixed, _ = pair(PAIR)
    broken = noise(PAIR)
    broken.image[0, 0, 0] = np.nan
    for call in (
        lambda: explorers.view_training(moving, broken),
        lambda: explorers.explore_losses(broken, fixed, constant([])),
    ):
        with pytest.raises(ValueError, match="holds NaN"):
            call()


SIDES = torch.diag(torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64))


def test_a_training_is_watched_in_the_proportions_of_its_voxels(browser, tmp_path):
    moving, fixed = (dataclasses.replace(scan, affine=SIDES) for scan in pair(PAIR)[:2])
    phi = Deformation(torch.ones(1, 2, *PAIR))
    watch = explorers.view_training(
        moving, fixed, register=lambda m, f: phi, segment=lambda scan: scan.labels.bool()
    )
    watch(row(1, similarity=0.5))
    path = tmp_path / "training.html"
    widget = watch.widget
    state = {"meta": widget.meta | {"title": "t"}, "curves": widget.curves, "data": widget.frame}
    path.write_text(document(state), encoding="utf-8")

    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("[data-draws='1']")
    page.evaluate("deepatlas.set('frame', deepatlas.get('data'))")
    page.wait_for_selector("canvas[data-source=warped]")
    sizes = page.evaluate(
        "() => [...document.querySelectorAll('canvas[data-source]')].map(c => [c.width, c.height])"
    )
    assert sizes == [[60, 234]] * 2  # 20 x 26 voxels of 1 x 3 mm, 3 pixels a mm
    page.close()


def test_a_training_is_drawn_in_the_proportions_of_its_voxels(monkeypatch):
    drawn = []
    monkeypatch.setattr(explorers.plots, "show", lambda figure, alt: drawn.append(figure))
    moving, fixed = (dataclasses.replace(scan, affine=SIDES) for scan in pair(PAIR)[:2])
    watch = explorers.view_training(moving, fixed, display="static")
    watch(row(1, similarity=0.5))
    watch._ipython_display_()
    assert drawn[0].axes[-2].get_aspect() == 3
    plt.close("all")


def test_a_guess_of_more_structures_than_can_be_shown_is_refused_at_once():
    moving, fixed, _ = pair(PAIR)
    many = torch.full(PAIR, 256, dtype=torch.int16)
    watch = explorers.view_training(moving, fixed, segment=lambda scan: many)
    with pytest.raises(UserError, match="the segmentation: the largest label is 256, but viewers"):
        watch(row(1, similarity=0.5))
