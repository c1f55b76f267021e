"""The lessons as pages that work from disk: executed, with viewers that need no kernel, and one
deck of slides each.
"""

from __future__ import annotations

import html
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import nbconvert
import nbformat
from nbformat import NotebookNode

from . import lessons, notebooks, places
from .checkpoints import write_text
from .datasets.entries import settled
from .errors import UserError

SLIDES = Path(__file__).with_name("slides.html")  # style and script that turn a page into slides
MATHJAX = "mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full"
HEAD = """<script type="text/x-mathjax-config">
MathJax.Hub.Config({"HTML-CSS": {availableFonts: [], imageFont: null, webFont: "STIX-Web"}});
</script>
<style>
.jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }
.jp-RenderedMarkdown :is(p, li) { max-width: 62em; }
.jp-RenderedMarkdown table { margin-left: 0; }
</style>
"""  # the fonts that come with MathJax; output broken between words; lines not too long to read
ASKS = "asking.predict("  # a cell whose code holds the answer to what it asks


def build(
    folder: Path, parameters: Mapping[str, object], only: Sequence[str] = ()
) -> Iterator[Path]:
    """Execute the lessons (``only`` some of them) and write their pages and slides into ``folder``,
    one by one.

    ``parameters`` are those of the lessons' second cell; a lesson takes those that it has. The
    first lesson is the front page, ``index.html``, too. Raises UserError for a parameter or a
    lesson that there is not, and one naming the lesson and the cell if a cell stops.
    """
    paths = {path.stem: path for path in lessons.paths()}
    known = {stem: _parameters_of(path) for stem, path in paths.items()}
    all_known = set().union(*known.values()) - {"display"}
    _check_names(only, paths)
    _check_names(parameters, all_known)

    dataset = parameters.get("dataset")
    if isinstance(dataset, str):  # a lesson runs in a folder of its own
        parameters = {**parameters, "dataset": settled(dataset)}

    stems = [stem for stem in paths if stem in only or not only]
    folder.mkdir(parents=True, exist_ok=True)
    mathjax = files("jupyter_server_mathjax") / "static"
    shutil.copytree(str(mathjax), folder / "mathjax", dirs_exist_ok=True)
    for stem in stems:
        taken = {name: value for name, value in parameters.items() if name in known[stem]}
        notebook = _executed(paths[stem], taken | {"display": "html"})
        page = _html(_as_page(notebook, stems, _links(stem, stems)), stem)
        names = [stem, "index"] if stem == stems[0] else [stem]
        for name in names:
            yield _write(folder / f"{name}.html", page)
        slides = _html(_as_slides(notebook, stems), stem)
        slides = slides.replace("</body>", f"{SLIDES.read_text('utf-8')}</body>")
        yield _write(folder / f"{stem}_slides.html", slides)


def _parameters_of(path: Path) -> set[str]:
    """The names that the cell of parameters of a notebook sets."""
    cells = nbformat.read(path, 4).cells
    texts = [cell.source for cell in cells if "parameters" in _tags(cell)]
    return set(re.findall(r"^(\w+): ", "\n".join(texts), flags=re.MULTILINE))


def _check_names(wanted: Iterable[str], there: Iterable[str]) -> None:
    if unknown := sorted(set(wanted) - set(there)):
        raise UserError(f"there is no {', '.join(unknown)}: choose from {', '.join(sorted(there))}")


def _executed(path: Path, parameters: Mapping[str, object]) -> NotebookNode:
    """The notebook with its outputs, and with the parameters that it was run with in its second
    cell; without the folders of this machine.
    """
    notebook = lessons.execute(path, parameters)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in _tags(cell)]
    for cell in notebook.cells:
        if "parameters" in _tags(cell):
            for name, value in parameters.items():
                shown = _without_folders(value) if isinstance(value, str) else value
                cell.source = _with_value(cell.source, name, shown)
        for output in cell.get("outputs", []):
            _hide_folders(output)
    return notebook


def _with_value(source: str, name: str, value: object) -> str:
    """A cell of parameters in which ``name`` has another value."""

    def line(found: re.Match) -> str:  # not a pattern, in which a backslash means something
        return found[1] + repr(value)

    return re.sub(rf"^({name}: \w+ = )[^ ]+", line, source, flags=re.MULTILINE)


def _hide_folders(output: NotebookNode) -> None:
    """Take the folders of this machine out of the texts of an output."""
    if "text" in output:
        output.text = _without_folders(output.text)
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(value, str):
            output.data[kind] = _without_folders(value)


def _without_folders(text: str) -> str:
    """``text`` as readers elsewhere need it: of where runs, data and the kit lie on this machine
    the last name remains, behind "…", of a temporary folder none, and the user's own is ~.
    """
    kept = [places.runs_folder(), places.data_folder(), places.cache_folder(), places.NOTEBOOKS]
    kept += [places.TUTORIALS_DATA, places.home(), places.PACKAGE]
    shown = {}
    for folder in filter(None, kept):
        for name in (folder, folder.resolve()):  # as it is called, and where links lead
            shown[str(name)] = f"…/{folder.name}"
    shown.setdefault(str(Path.home()), "~")
    shown.pop(Path.home().anchor, None)  # "/" stands in many a text
    names = sorted(shown, key=len, reverse=True)  # what lies in another one comes first
    text = _replaced("|".join(map(re.escape, names)), lambda found: shown[found[0]], text)
    return _replaced(re.escape(tempfile.gettempdir()) + r"[/\\][\w.-]+", lambda found: "…", text)


def _replaced(path: str, shown: Callable[[re.Match], str], text: str) -> str:
    """``text`` with every path of this pattern replaced that is no part of a longer name, nor of a
    picture's bytes in letters.
    """
    return re.sub(rf"(?<![\w+/.~-])(?:{path})(?![\w-])", shown, text)


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


# --- pages and slides -----------------------------------------------------------------------------


def _as_page(notebook: NotebookNode, stems: Sequence[str], links: str) -> NotebookNode:
    """A copy for readers: solutions and answers folded, no progress bars, nothing that installs,
    links to pages, not to notebooks.
    """
    cells = [nbformat.v4.new_markdown_cell(links)]
    for cell in notebook.cells:
        if "colab" in _tags(cell):
            continue
        if "solution" in _tags(cell):
            cells.append(_folded(cell, "A solution"))
            continue
        copied = _copied(cell, stems)
        if _tells(cell):
            cells.append(_folded(cell, "The code, and in it the answer"))
            copied.metadata["transient"] = {"remove_source": True}
        cells.append(copied)
    cells.append(nbformat.v4.new_markdown_cell(links))  # whoever has read to the end goes on
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def _tells(cell: NotebookNode) -> bool:
    """Whether the code of a cell holds the answer to what it asks, or is folded in JupyterLab."""
    folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    return cell.cell_type == "code" and (folded or ASKS in cell.source)


def _folded(cell: NotebookNode, summary: str) -> NotebookNode:
    """The code of a cell, which a click on ``summary`` shows."""
    # in Markdown a blank line would end the block
    code = html.escape(cell.source).replace("\n", "&#10;")
    return nbformat.v4.new_markdown_cell(
        f"<details><summary>{summary}</summary><pre><code>{code}</code></pre></details>"
    )


def _as_slides(notebook: NotebookNode, stems: Sequence[str]) -> NotebookNode:
    """A copy for a projector: no solutions, and no code but that of exercises. A slide begins with
    a heading, so what stands before one in its cell stays with the slide before.
    """
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        if "solution" in _tags(cell):
            continue
        copied = _copied(cell, stems)
        if copied.cell_type == "markdown":
            cells += map(nbformat.v4.new_markdown_cell, _at_headings(copied.source))
            continue
        if "exercise" not in _tags(cell):
            if not copied.outputs:
                continue
            copied.metadata["transient"] = {"remove_source": True}
        if ASKS in cell.source:  # what follows tells the answer, on the next slide
            copied.metadata["tags"] = [*_tags(cell), "asks"]
        cells.append(copied)
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def _at_headings(text: str) -> list[str]:
    """A Markdown text in parts, each of which begins with a heading; headings with nothing between
    them stay together.
    """
    parts = [""]
    for part in re.split(r"^(?=##+ )", text, flags=re.MULTILINE):
        lines = parts[-1].split("\n")
        if all(line.startswith("#") for line in lines if line.strip()):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


def _copied(cell: NotebookNode, stems: Sequence[str]) -> NotebookNode:
    if cell.cell_type == "code":
        shown = [output for output in cell.outputs if output.get("name") != "stderr"]
        return nbformat.v4.new_code_cell(cell.source, outputs=shown, metadata={"tags": _tags(cell)})

    def link(found: re.Match) -> str:
        text, stem = found.groups()
        return f"[{text}]({stem}.html)" if stem in stems else text

    return nbformat.v4.new_markdown_cell(re.sub(r"\[([^\]]+)\]\((\w+)\.ipynb\)", link, cell.source))


def _links(stem: str, stems: Sequence[str]) -> str:
    """What stands above a lesson: the front page, its neighbours, and its slides."""
    at = stems.index(stem)
    links = []
    if at > 0:
        links.append("[contents](index.html)")
        links.append(f"[← {stems[at - 1]}]({stems[at - 1]}.html)")
    if at + 1 < len(stems):
        links.append(f"[{stems[at + 1]} →]({stems[at + 1]}.html)")
    links.append(f"[slides]({stem}_slides.html)")
    return " · ".join(links)


def _html(notebook: NotebookNode, title: str) -> str:
    """One page, which asks nobody for anything."""
    exporter = nbconvert.HTMLExporter(
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        **notebooks.OFFLINE | {"mathjax_url": MATHJAX},
    )
    page, _ = exporter.from_notebook_node(notebook)
    page = page.replace("<!-- Load mathjax -->", HEAD)
    return page.replace("<title>Notebook</title>", f"<title>{title}</title>")


def _write(path: Path, page: str) -> Path:
    write_text(page, path)
    return path
