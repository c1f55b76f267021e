"""The modules of ``js/`` as one script: anywidget, and a page from disk, take no more than one.

Each is an ES module that ``node`` can import alone. In the script they share one scope, so no two
of them may give the same name to something at the top.
"""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

FOLDER = Path(__file__).with_name("js")
IMPORT = re.compile(r'^import \{[^}]+\} from "\./(\w+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


def modules(entry: str = "index", folder: Path = FOLDER) -> dict[str, str]:
    """{name: text} of ``entry`` and all that it imports, each after what it imports itself.

    Raises graphlib.CycleError, a ValueError, if modules import each other in a circle.
    """
    texts, imported, waiting = {}, {}, [entry]
    while waiting:
        name = waiting.pop()
        if name not in texts:
            texts[name] = (folder / f"{name}.js").read_text(encoding="utf-8")
            imported[name] = IMPORT.findall(texts[name])
            waiting += imported[name]
    return {name: texts[name] for name in TopologicalSorter(imported).static_order()}


def script(entry: str = "index", folder: Path = FOLDER) -> str:
    """All modules in one scope: without imports, and with the default export of ``entry`` alone."""
    texts = modules(entry, folder).values()
    return "\n".join(EXPORT.sub("", IMPORT.sub("", text)) for text in texts)


SCRIPT = script()
