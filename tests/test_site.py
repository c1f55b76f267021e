"""The lessons as pages: executed, whole, asking nobody for anything; read in a real browser, from
disk.
"""

import re
import subprocess
import sys
import tempfile
import types
from importlib import util
from pathlib import Path

from deepatlas import lessons, places, site
from deepatlas.cli import app

import nbformat
import pytest
import yaml
from typer.testing import CliRunner

LESSONS = [path.stem for path in lessons.paths()]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    list(site.build(folder, {"profile": "smoke"}))
    return folder


@pytest.fixture
def page(browser):
    """A page of the browser that keeps the addresses it was made to ask."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()
    outside = [
        url for url in page.asked if not url.startswith(("file:", "data:", "about:", "blob:"))
    ]
    assert not outside


def test_every_lesson_has_a_page_and_slides(pages):
    made = {path.stem for path in pages.glob("*.html")}
    assert made == {"index", *LESSONS, *(f"{lesson}_slides" for lesson in LESSONS)}
    assert (pages / "index.html").read_text() == (pages / f"{LESSONS[0]}.html").read_text()


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_page_reads_as_a_lesson(pages, page, lesson):
    page.goto((pages / f"{lesson}.html").as_uri())
    text = page.inner_text("body")
    assert "Traceback" not in text and "step/s" not in text and ".ipynb" not in page.content()
    assert (
        "profile: str = 'smoke'" in text or lesson == "00_start_here"
    ) and "display: str = 'html'" in text
    assert all(
        alt for alt in page.locator("img").evaluate_all("images => images.map(image => image.alt)")
    )
    assert page.locator("iframe").count() <= 3
    for link in page.locator("a[href$='.html']").evaluate_all(
        "links => links.map(link => link.getAttribute('href'))"
    ):
        assert (pages / link).is_file() or link.startswith("http"), link


@pytest.mark.parametrize("lesson", LESSONS)
def test_solutions_and_answers_are_folded_and_whole(pages, page, lesson):
    page.goto((pages / f"{lesson}.html").as_uri())
    cells = nbformat.read(places.NOTEBOOKS / f"{lesson}.ipynb", 4).cells
    folded = []
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags or (site._tells(cell) and "colab" not in tags):
            folded.append(cell.source)
    assert page.locator("details[open]").count() == 0
    assert (
        page.locator("details code").evaluate_all("codes => codes.map(code => code.textContent)")
        == folded
    )


def test_formulas_are_set(pages, page):
    page.goto((pages / "02_deformations.html").as_uri())
    page.wait_for_selector(".MathJax", state="attached", timeout=30_000)
    page.wait_for_function("!document.body.innerText.includes('$$')")


def test_a_viewer_works_without_a_kernel(pages, page):
    page.goto((pages / "index.html").as_uri())
    frame = page.frame_locator("iframe").first
    slider, warped = frame.get_by_label("warp strength"), frame.locator("canvas").last
    slider.scroll_into_view_if_needed()

    def settled():
        """A picture that stays: whatever was to be painted has been."""
        before = None
        for _ in range(50):
            if (now := warped.screenshot()) == before:
                return now
            before = now
            page.wait_for_timeout(200)
        raise AssertionError("the viewer goes on changing")

    before = settled()
    slider.fill("0")
    page.wait_for_timeout(200)
    assert settled() != before


def test_slides_turn(pages, page):
    page.goto((pages / "02_deformations_slides.html").as_uri())
    assert page.inner_text("nav.slide").startswith("1 / ")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("nav.slide").startswith("2 / ") and page.url.endswith("#2")
    assert page.locator("h2:visible").count() == 1
    assert (
        page.locator("p:visible").first.evaluate("p => parseFloat(getComputedStyle(p).fontSize)")
        >= 18
    )
    assert "def push" not in page.inner_text("body")
    page.keyboard.press("ArrowRight")
    assert "def warp(moving, u)" in page.inner_text("body")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("nav.slide").startswith("1 / ")


def test_the_slide_of_a_question_does_not_tell_the_answer(pages, page):
    page.goto((pages / "07_evaluation_slides.html").as_uri())
    asked = page.locator("section", has_text="In which share of the pixels is det J <= 0")
    assert asked.count() == 1 and "central differences: " not in asked.text_content()
    told = asked.locator("xpath=following-sibling::section[1]")
    assert "central differences: " in told.text_content()


def test_slides_turn_without_a_keyboard(pages, page):
    page.goto((pages / "02_deformations_slides.html").as_uri())
    page.get_by_role("button", name="next slide").click()
    assert page.inner_text("nav.slide").startswith("2 / ") and page.url.endswith("#2")
    page.get_by_role("button", name="slide before").click()
    assert page.inner_text("nav.slide").startswith("1 / ")


def test_tables_of_slides_can_be_read_from_the_last_row(pages, page):
    page.goto((pages / "07_evaluation_slides.html").as_uri())
    sizes = page.locator("td").evaluate_all(
        "cells => cells.map(cell => parseFloat(getComputedStyle(cell).fontSize))"
    )
    assert sizes and min(sizes) >= 16


def test_printed_every_slide_is_there(pages, page):
    page.goto((pages / "02_deformations_slides.html").as_uri())
    assert page.locator("h2:visible").count() == 0
    page.emulate_media(media="print")
    assert page.locator("h2:visible").count() > 3


def test_a_page_leads_on_at_its_end(pages, page):
    page.goto((pages / "02_deformations.html").as_uri())
    links = page.locator("a[href='03_baselines.html']").all()
    assert len(links) >= 2


def test_a_page_down_shows_the_rest_of_a_slide_first(pages, page):
    page.goto((pages / "02_deformations_slides.html").as_uri() + "#2")
    page.keyboard.press("PageDown")
    assert page.inner_text("nav.slide").startswith("2 / ")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.keyboard.press("PageDown")
    page.wait_for_function("document.querySelector('nav.slide').textContent.startsWith('3 / ')")


def test_a_lesson_that_stops_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"01_data\.ipynb: cell \d+ stopped"):
        list(site.build(tmp_path, {"profile": "huge"}, ["01_data"]))


@pytest.mark.parametrize("arguments", [["profil=smoke"], ["display=live"]])
def test_a_parameter_that_no_lesson_has_is_refused(tmp_path, arguments):
    done = CliRunner().invoke(app, ["site", *arguments, "--to", str(tmp_path / "site")])
    assert (
        "choose from dataset, profile" in str(done.exception) and not (tmp_path / "site").exists()
    )


def test_a_value_with_a_backslash_stands_in_the_page_as_it_is():
    source = "dataset: str = 'phantom'  # one of ours\nprofile: str = 'class'"
    shown = site._with_value(source, "dataset", "C:\\data\\1")
    assert shown == "dataset: str = 'C:\\\\data\\\\1'  # one of ours\nprofile: str = 'class'"


@pytest.mark.parametrize("lesson", LESSONS)
@pytest.mark.parametrize("kind", ["", "_slides"])
def test_a_page_says_nothing_of_where_things_lie_on_the_machine_that_made_it(pages, lesson, kind):
    text = (pages / f"{lesson}{kind}.html").read_text()
    assert_no_folders(text)
    if lesson == "00_start_here":
        assert "lessons: …/notebooks; runs: …/" in text
    else:
        assert "kept in …/answers.json" in text


def assert_no_folders(text):
    """Not of the user, nor of temporary files, the kit, runs or data."""
    folders = [Path.home(), tempfile.gettempdir(), places.home(), places.PACKAGE]
    folders += [places.runs_folder(), places.data_folder(), places.cache_folder()]
    for folder in filter(None, folders):
        found = re.search(rf"(?<![\w+/]){re.escape(str(folder))}(?![\w-]).*", text)
        assert found is None, found[0]


def test_of_folders_the_last_names_remain(tmp_path, monkeypatch):
    data, runs = tmp_path / "scans & more", tmp_path / "ours" / "runs"
    data.mkdir()
    (tmp_path / "link").symlink_to(data)
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path / "link"))
    monkeypatch.setenv("DEEPATLAS_RUNS", str(runs))
    monkeypatch.setenv("HOME", "/srv/ada")
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    for text, shown in (
        (f"runs: {runs}; data: '{tmp_path}/link/oasis35'", "runs: …/runs; data: '…/link/oasis35'"),
        (f"{data}/oasis35", "…/link/oasis35"),
        (f"lessons: {places.NOTEBOOKS}\n", "lessons: …/notebooks\n"),
        ("kept in /tmp/tmpab_1-c/answers.json", "kept in …/answers.json"),
        ("DEEPATLAS_RUNS=/srv/ada/mice, ~/mice", "DEEPATLAS_RUNS=~/mice, ~/mice"),
        ("a/b, 3 / 4, /srv/adam, 1/tmp/2, base64,ab+/tmp/abc", None),
    ):
        assert site._without_folders(text) == (shown or text)
    monkeypatch.setenv("HOME", "/")
    assert site._without_folders("3 / 4, a/b, /c") == "3 / 4, a/b, /c"


# --- Colab, Binder, GitHub Pages ------------------------------------------------------------------


def colab_cells():
    """{notebook: its cell for Colab}, of those that have one."""
    found = {}
    for path in sorted(places.NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, 4).cells
        of_colab = [cell.source for cell in cells if "colab" in cell.metadata.get("tags", [])]
        assert len(of_colab) <= 1, path.stem
        found |= dict.fromkeys([path.stem] * len(of_colab), "".join(of_colab))
    return found


def test_the_cell_for_colab_is_the_same_everywhere_and_comes_first():
    cells = colab_cells()
    assert "00_start_here" in cells and len(set(cells.values())) == 1
    for stem in cells:
        code = [
            cell
            for cell in nbformat.read(places.NOTEBOOKS / f"{stem}.ipynb", 4).cells
            if cell.cell_type == "code"
        ]
        tags = [cell.metadata.get("tags", []) for cell in code[:2]]
        assert tags == [["parameters"], ["colab"]], "nothing is imported before"


@pytest.fixture
def colab(monkeypatch):
    """A pretended Colab: what was installed, and how often widgets were switched on."""
    seen = types.SimpleNamespace(installed=[], widgets=0)

    def widgets():
        seen.widgets += 1

    def install(command, check):
        assert check and command[:4] == [sys.executable, "-m", "pip", "install"]
        seen.installed.append(command[-1])

    output = types.ModuleType("google.colab.output")
    output.enable_custom_widget_manager = widgets
    package, above = types.ModuleType("google.colab"), types.ModuleType("google")
    package.output, above.colab = output, package
    for module in (above, package, output):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(subprocess, "run", install)
    return seen


def run_the_cell():
    exec(colab_cells()["00_start_here"], {})


def test_on_colab_the_kit_is_installed_where_it_is_missing(colab, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    run_the_cell()
    (address,) = colab.installed
    assert address.startswith("git+https://github.com/") and colab.widgets == 1


def test_on_colab_the_kit_is_installed_once(colab):
    run_the_cell()
    assert colab.installed == [] and colab.widgets == 1


def test_elsewhere_the_cell_for_colab_does_nothing(colab, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab")
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    run_the_cell()
    assert colab.installed == [] and colab.widgets == 0


def test_the_site_is_published_as_make_makes_it():
    workflow = yaml.safe_load((ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["build"]["steps"]
    assert "make tutorials" in [step.get("run") for step in steps]
    kept = next(step for step in steps if "upload-pages-artifact" in step.get("uses", ""))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"{kept['with']['path']}/index.html" in makefile
    assert workflow["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}
    assert workflow["jobs"]["publish"]["needs"] == "build"
    assert set(workflow[True]) == {"push", "workflow_dispatch"}, "YAML reads `on` as true"


def test_the_badges_lead_to_a_lesson_that_there_is():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = re.findall(r"https://(?:mybinder|colab)\S*/notebooks/(\S+)\.ipynb", readme)
    assert len(badges) == 2 and set(badges) <= set(LESSONS)


def test_a_question_is_asked_before_its_code_tells_the_answer():
    question = nbformat.v4.new_code_cell('asking.predict("id", "How many?", ["1", "2"], "Two.")')
    question.outputs = [nbformat.v4.new_output("stream", text="How many?")]
    notebook = nbformat.v4.new_notebook(cells=[question])
    folded, asked = site._as_page(notebook, [], "links").cells[1:-1]
    assert folded.source.startswith("<details>") and "Two." in folded.source
    page = site._html(nbformat.v4.new_notebook(cells=[asked]), "a lesson")
    assert "How many?" in page and "Two." not in page
    assert "celltag_asks" in site._html(site._as_slides(notebook, []), "slides")


def test_a_slide_begins_with_a_heading():
    source = "Read the table.\n\n## Next\n\n### Exercise 1\n\nWrite.\n\n### A part\n\nMore."
    text = nbformat.v4.new_markdown_cell(source)
    cells = site._as_slides(nbformat.v4.new_notebook(cells=[text]), []).cells
    begun = [cell.source.split("\n")[0] for cell in cells]
    assert begun == ["Read the table.", "## Next", "### A part"]
