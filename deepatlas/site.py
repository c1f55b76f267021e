"""The lessons as pages that work from disk: executed, with viewers that need no kernel, and one deck of slides each."""

from __future__ import annotations

import html
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

import nbconvert
import nbformat
import papermill
from nbformat import NotebookNode

from . import experiments
from .reporting import OFFLINE

NOTEBOOKS = experiments.PROJECT / "notebooks"
SLIDES = Path(__file__).with_name("slides.html")  # style and script that turn a page into slides
MATHJAX = "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full"
FONTS = """<script type="text/x-mathjax-config">
MathJax.Hub.Config({"HTML-CSS": {availableFonts: [], imageFont: null, webFont: "STIX-Web"}});
</script>
"""  # those that come with it


def build(folder: Path, parameters: Mapping[str, object], lessons: list[str] | None = None) -> Iterator[Path]:
    """Execute the ``lessons`` (every one by default) and write their pages and slides into ``folder``, one by one.

    ``parameters`` are those of the lessons' second cell; a lesson takes those that it has. The front page is
    ``index.html``. Raises ValueError naming the lesson and the cell that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(files("jupyter_server_mathjax") / "static", folder / "mathjax", dirs_exist_ok=True)
    paths = [path for path in sorted(NOTEBOOKS.glob("0*.ipynb")) if lessons is None or path.stem in lessons]
    for path in paths:
        notebook = _executed(path, parameters)
        yield _write(folder / f"{path.stem}.html", _as_page(notebook, _links(path, paths)), code=True)
        yield _write(folder / f"{path.stem}_slides.html", _as_page(notebook, ""), code=False)
    shutil.copyfile(folder / f"{paths[0].stem}.html", folder / "index.html")


def _executed(path: Path, parameters: Mapping[str, object]) -> NotebookNode:
    known = papermill.inspect_notebook(str(path))
    wanted = {"display": "html"} | {name: value for name, value in parameters.items() if name in known}
    answers = os.environ.get("DEEPATLAS_ANSWERS")
    try:
        with tempfile.TemporaryDirectory() as nobody:  # every exercise is met for the first time
            os.environ["DEEPATLAS_ANSWERS"] = str(Path(nobody) / "answers.json")
            return papermill.execute_notebook(str(path), None, parameters=wanted, cwd=str(path.parent))
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{path}: cell {error.cell_index} stopped ({error.ename}: {error.evalue})") from error
    finally:
        os.environ.pop("DEEPATLAS_ANSWERS")
        if answers is not None:
            os.environ["DEEPATLAS_ANSWERS"] = answers


def _as_page(notebook: NotebookNode, links: str) -> NotebookNode:
    """A copy for readers: solutions folded, no progress bars, links to pages instead of notebooks."""
    cells = [nbformat.v4.new_markdown_cell(links)] if links else []
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            code = html.escape(cell.source).replace("\n\n", "\n&#8203;\n")  # in Markdown a blank line would end it
            folded = f"<details><summary>A solution</summary><pre><code>{code}</code></pre></details>"
            cells.append(nbformat.v4.new_markdown_cell(folded))
        elif cell.cell_type == "markdown":
            cells.append(nbformat.v4.new_markdown_cell(re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.html)", cell.source)))
        elif "injected-parameters" not in cell.metadata.get("tags", []):
            shown = [output for output in cell.outputs if output.get("name") != "stderr"]
            cells.append(nbformat.v4.new_code_cell(cell.source, outputs=shown))
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def _links(path: Path, paths: list[Path]) -> str:
    """What stands above a lesson: its neighbours, and its slides."""
    at = paths.index(path)
    around = [("contents", "index")] if at else []
    around += [(f"← {p.stem}", p.stem) for p in paths[max(at - 1, 0):at]]
    around += [(f"{p.stem} →", p.stem) for p in paths[at + 1:at + 2]]
    return " · ".join(f"[{text}]({target}.html)" for text, target in [*around, ("slides", f"{path.stem}_slides")])


def _write(path: Path, notebook: NotebookNode, *, code: bool) -> Path:
    """One file, which asks nobody for anything; without ``code``, as slides."""
    exporter = nbconvert.HTMLExporter(exclude_input=not code, exclude_input_prompt=True, exclude_output_prompt=True,
                                     **OFFLINE | {"mathjax_url": MATHJAX})
    body, _ = exporter.from_notebook_node(notebook)
    body = body.replace("<!-- Load mathjax -->", FONTS)
    if not code:
        body = body.replace("</body>", f"{SLIDES.read_text(encoding='utf-8')}</body>")
    path.write_text(body.replace("<title>Notebook</title>", f"<title>{path.stem}</title>"), encoding="utf-8")
    return path
