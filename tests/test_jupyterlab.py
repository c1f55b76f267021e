"""Viewers in JupyterLab itself: server, kernel and browser on this machine."""

import re
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from lab import open_notebook, printed, run_all, serve, write_notebook
from test_viewers import canvas, grey, noise, on_screen

CELLS = (
    f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    "from test_viewers import NAMES, noise, pair\n"
    "from test_explorers import PAIR, TABLE, constant, row, watched\n"
    "from deepatlas import explorers, viewers\nimport ipywidgets",
    "scan_viewer = viewers.view_scan(noise(), NAMES)\nscan_viewer",
    "slider = ipywidgets.IntSlider(8, 0, 15, description='linked')\n"
    "ipywidgets.jslink((slider, 'value'), (scan_viewer, 'k'))\nslider",
    "viewers.view_registration(*pair(), NAMES)",
    "watch = watched(pause=0.5)\nwatch",
    "moving, fixed, phi = pair(PAIR)\nasked = []\n"
    "explorers.explore_losses(moving, fixed, constant(asked), NAMES)",
    "explorers.explore_sweep(TABLE, lambda name: ipywidgets.Label('the warp of ' + name))",
    "print('busy')\nfor step in range(1, 240):\n"
    "    watch(row(step, similarity=1 / step, anatomy=0.5 - step / 1000))\n"
    "    time.sleep(0.05)\nprint('free again')",
    # run again when the kernel is free
    "print('cursor', scan_viewer.i, scan_viewer.j, scan_viewer.k)",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with an empty notebook and one with viewers."""
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "empty.ipynb", ())
    write_notebook(folder / "viewers.ipynb", CELLS)
    with serve(folder) as address:
        yield address


@pytest.fixture(scope="module")
def notebook(lab, browser):
    """A function that opens a notebook of the lab: its page, the errors on its console, and
    requests that leave.
    """

    def opened(name):
        page = browser.new_page(viewport={"width": 1500, "height": 3600})
        errors, outside = [], []
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(f"{error} {error.stack}"))
        page.on(
            "request",
            lambda r: (
                None
                if re.match(r"(http|ws)://127\.0\.0\.1|data:|blob:", r.url)
                else outside.append(r.url)
            ),
        )
        open_notebook(page, lab, name)
        return page, errors, outside

    return opened


@pytest.fixture(scope="module")
def running(notebook):
    """The notebook of viewers after Run All, its last but one cell still busy."""
    page, errors, outside = notebook("viewers")
    run_all(page)
    printed(page, "busy").wait_for(timeout=240000)
    return page, errors, outside


def cursor(page):
    return re.search(
        r"voxel (\d+) (\d+) (\d+)", page.locator(".deepatlas .status").first.text_content()
    ).groups()


def test_the_picture_changes_while_the_kernel_is_busy(running):
    page, _, _ = running
    volume = grey(noise().image[0])
    axial = page.locator(".deepatlas .stack").nth(2)
    axial.focus()
    active = (
        "() => [...document.querySelectorAll('.jp-Cell')]"
        ".findIndex(c => c.classList.contains('jp-mod-active'))"
    )
    before = page.evaluate(active)
    for key in ("PageUp", "PageUp", "ArrowLeft", "ArrowDown", "1", "1"):
        page.keyboard.press(key)
    page.wait_for_timeout(200)
    assert printed(page, "free again").count() == 0  # the kernel has not answered
    assert cursor(page) == ("9", "12", "10")
    assert np.array_equal(canvas(page, 2)[..., 0], on_screen(volume, "axial", 10))
    assert np.array_equal(canvas(page, 0)[..., 0], on_screen(volume, "sagittal", 9))
    assert page.evaluate(active) == before  # the keys were the viewer's


def test_a_slider_of_ipywidgets_moves_the_viewer_in_the_browser_alone(running):
    page, _, _ = running
    handle = page.locator(".noUi-handle").first
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(200)
    assert cursor(page)[2] == "11"
    assert printed(page, "free again").count() == 0


def test_a_training_is_seen_while_it_runs(running):
    page, _, _ = running
    view = page.locator(".deepatlas[aria-label='the training so far']")
    first = int(view.get_attribute("data-draws"))
    page.wait_for_timeout(1500)
    assert int(view.get_attribute("data-draws")) >= first + 2
    assert printed(page, "free again").count() == 0
    assert (
        view.locator("canvas[role=img]").count() == 4
        and view.locator("canvas[data-source]").count() == 2
    )
    assert "similarity (reg): now" in view.locator("canvas[role=img]").first.get_attribute(
        "aria-label"
    )


def test_both_viewers_are_there_and_python_hears_of_the_cursor(running):
    page, _, _ = running
    # a scan, a registration, the loss explorer's
    assert page.locator(".deepatlas .stack").count() == 3 + 3 + 3
    printed(page, "free again").wait_for()
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.keyboard.press("Shift+Enter")
    printed(page, "cursor 9 12 11").wait_for()


def test_the_loss_explorer_shows_another_registration(running):
    page, _, _ = running
    warped = page.locator("canvas.base[data-source=warped]").nth(1)
    before = warped.evaluate("canvas => canvas.toDataURL()")
    page.locator(".noUi-handle").nth(1).focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([n, before]) => document.querySelectorAll('canvas.base[data-source=warped]')[n]"
        ".toDataURL() !== before",
        arg=[1, before],
        timeout=10000,
    )


def test_a_click_on_a_finished_run_shows_its_warp(running):
    page, _, _ = running
    assert page.get_by_text("the warp of stiff").count() == 1
    scatter = page.locator("canvas[role=slider]")
    box = scatter.bounding_box()
    # 0.5 % folds, 75 % Dice
    scatter.click(position={"x": 287 / 840 * box["width"], "y": 60 / 560 * box["height"]})
    page.get_by_text("the warp of good").wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_text("the warp of loose").wait_for()


def test_nothing_went_wrong_and_nothing_left_the_machine(running, notebook):
    _, errors, outside = running
    page, usual, _ = notebook("empty")
    time.sleep(2)
    page.close()
    assert set(errors) <= set(usual)
    assert outside == []


@pytest.mark.parametrize("display", ["static", "html"])
def test_a_saved_notebook_holds_no_widget(tmp_path, display):
    from nbclient import NotebookClient

    cells = (
        CELLS[0],
        f"viewers.view_scan(noise(), NAMES, display={display!r})",
        f"viewers.view_registration(*pair(), NAMES, display={display!r})",
    )
    saved = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    NotebookClient(saved, kernel_name="python3").execute(cwd=tmp_path)
    text = nbformat.writes(saved)
    assert "widgets" not in saved.metadata and "widget-view" not in text
    assert ("<iframe" if display == "html" else "<img alt=") in text
