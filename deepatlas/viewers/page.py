"""A viewer as one page without a kernel: the same script, and a stand-in for the model."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bundle import SCRIPT

TEMPLATE = Path(__file__).with_name("page.html")


def document(state: Mapping[str, Any]) -> str:
    """One self-contained HTML document of a viewer whose synced traits are ``state``; the volumes
    are gzipped inside.
    """
    data = gzip.compress(state["data"], 9, mtime=0)
    plain = {name: value for name, value in state.items() if name != "data"}
    parts = {
        "TITLE": html.escape(state["meta"]["title"]),
        "STATE": json.dumps(plain).replace("<", "\\u003c"),  # no end of a script within
        "DATA": base64.b64encode(data).decode(),
        "SCRIPT": SCRIPT.replace("export default", "const viewer ="),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"%([A-Z]+)%", lambda found: parts[found[1]], template)
