"""The lessons as pages that work from disk: executed, with viewers that need no kernel, and one
deck of slides each.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import nbconvert
import nbformat
import papermill
from nbformat import NotebookNode

from . import lessons, reporting
from .checkpoints import write_atomically

SLIDES = Path(__file__).with_name("slides.html")  # style and script that turn a page into slides
MATHJAX = "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full"
HEAD = """<script type="text/x-mathjax-config">
MathJax.Hub.Config({"HTML-CSS": {availableFonts: [], imageFont: null, webFont: "STIX-Web"}});
</script>
<style>.jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }</style>
"""  # the fonts that come with MathJax; lines of output broken between words


def build(
    folder: Path, parameters: Mapping[str, object], only: Sequence[str] = ()
) -> Iterator[Path]:
    """Execute the lessons (``only`` some of them) and write their pages and slides into ``folder``,
    one by one.

    ``parameters`` are those of the lessons' second cell; a lesson takes those that it has. The
    first lesson is the front page, ``index.html``, too. Raises ValueError for a parameter or a
    lesson that there is not, and one naming the lesson and the cell if a cell stops.
    """
    paths = {path.stem: path for path in lessons.paths()}
    known = {stem: papermill.inspect_notebook(str(path)) for stem, path in paths.items()}
    for wanted, there in (
        (only, set(paths)),
        (parameters, set().union(*known.values()) - {"display"}),
    ):
        if unknown := set(wanted) - there:
            raise ValueError(
                f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(sorted(there))}"
            )
    stems = [stem for stem in paths if stem in only or not only]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        files("jupyter_server_mathjax") / "static", folder / "mathjax", dirs_exist_ok=True
    )
    for stem in stems:
        taken = {name: value for name, value in parameters.items() if name in known[stem]} | {
            "display": "html"
        }
        notebook = _executed(paths[stem], taken)
        page = _html(_as_page(notebook, stems, _links(stem, stems)), stem)
        for name in [stem, "index"] if stem == stems[0] else [stem]:
            yield _write(folder / f"{name}.html", page)
        slides = _html(_as_slides(notebook, stems), stem).replace(
            "</body>", f"{SLIDES.read_text('utf-8')}</body>"
        )
        yield _write(folder / f"{stem}_slides.html", slides)


def _executed(path: Path, parameters: Mapping[str, object]) -> NotebookNode:
    """The notebook with its outputs, and with the parameters that it was run with in its second
    cell.
    """
    notebook = lessons.execute(path, parameters)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in _tags(cell)]
    for cell in notebook.cells:
        if "parameters" in _tags(cell):
            for name, value in parameters.items():
                cell.source = re.sub(
                    rf"^({name}: \w+ = )[^ ]+", rf"\g<1>{value!r}", cell.source, flags=re.MULTILINE
                )
    return notebook


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _as_page(notebook: NotebookNode, stems: Sequence[str], links: str) -> NotebookNode:
    """A copy for readers: solutions folded, no progress bars, links to pages instead of notebooks."""
    cells = [nbformat.v4.new_markdown_cell(links)]
    for cell in notebook.cells:
        if "solution" in _tags(cell):
            # in Markdown a blank line would end the block
            code = html.escape(cell.source).replace("\n", "&#10;")
            folded = (
                f"<details><summary>A solution</summary><pre><code>{code}</code></pre></details>"
            )
            cells.append(nbformat.v4.new_markdown_cell(folded))
        else:
            cells.append(_copied(cell, stems))
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def _as_slides(notebook: NotebookNode, stems: Sequence[str]) -> NotebookNode:
    """A copy for a projector: no solutions, and no code but that of exercises."""
    cells = [_copied(cell, stems) for cell in notebook.cells if "solution" not in _tags(cell)]
    for cell in cells:
        if cell.cell_type == "code" and "exercise" not in _tags(cell):
            cell.metadata["transient"] = {"remove_source": True}
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def _copied(cell: NotebookNode, stems: Sequence[str]) -> NotebookNode:
    if cell.cell_type == "code":
        shown = [output for output in cell.outputs if output.get("name") != "stderr"]
        return nbformat.v4.new_code_cell(cell.source, outputs=shown, metadata={"tags": _tags(cell)})

    def link(found: re.Match) -> str:
        return f"[{found[1]}]({found[2]}.html)" if found[2] in stems else found[1]

    return nbformat.v4.new_markdown_cell(re.sub(r"\[([^\]]+)\]\((\w+)\.ipynb\)", link, cell.source))


def _links(stem: str, stems: Sequence[str]) -> str:
    """What stands above a lesson: the front page, its neighbours, and its slides."""
    at = stems.index(stem)
    around = [("contents", "index")] if at else []
    around += [(f"← {name}", name) for name in stems[max(at - 1, 0) : at]]
    around += [(f"{name} →", name) for name in stems[at + 1 : at + 2]]
    return " · ".join(
        f"[{text}]({target}.html)" for text, target in [*around, ("slides", f"{stem}_slides")]
    )


def _html(notebook: NotebookNode, title: str) -> str:
    """One page, which asks nobody for anything."""
    exporter = nbconvert.HTMLExporter(
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        **reporting.OFFLINE | {"mathjax_url": MATHJAX},
    )
    body, _ = exporter.from_notebook_node(notebook)
    return body.replace("<!-- Load mathjax -->", HEAD).replace(
        "<title>Notebook</title>", f"<title>{title}</title>"
    )


def _write(path: Path, page: str) -> Path:
    write_atomically(path, lambda file: file.write_text(page, encoding="utf-8"))
    return path
