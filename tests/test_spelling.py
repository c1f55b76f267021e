"""Prose is British: lessons, papers, docstrings and comments, by codespell's table of the spellings
that differ. Code is left alone, since libraries say ``color`` and ``center``. Slips of the pen are
found by codespell itself, in `make lint`.
"""

import ast
import io
import json
import re
import tokenize
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("notebooks/*.md"),
    *ROOT.glob("notebooks/*.ipynb"),
    *ROOT.glob("tutorials_data/**/*.md"),
    *ROOT.glob("deepatlas/**/*.yaml"),
    *ROOT.glob("deepatlas/**/*.py"),
    *ROOT.glob("tests/**/*.py"),
    *ROOT.glob("benchmarks/**/*.py"),
]
# A computer's program, practice as a noun and what is writable are British, too.
BRITISH = {"practice", "program", "programs", "writable"}
# Names and titles are quoted as they are.
NAMES = re.compile(r"Apache License|Medical Center|Math\.round|Pseudo-labeling", re.IGNORECASE)
CODE = re.compile(r"(?s:```.*?```)|``.*?``|`.*?`|</?\w[^>]*>|\]\([^)]*\)|https?://\S+")
EXAMPLE = re.compile(r"^ *(>>>|\.\.\.) .*$", re.MULTILINE)


def american_spellings():
    """{American spelling: British spelling}, in small letters, of words that differ."""
    data = resources.files("codespell_lib") / "data" / "dictionary_en-GB_to_en-US.txt"
    found = {}
    for line in data.read_text(encoding="utf-8").splitlines():
        british, _, american = line.partition("->")
        for word in american.split(","):
            found[word.strip()] = british
    return {word: british for word, british in found.items() if word and word not in BRITISH}


AMERICAN = american_spellings()


def words_of_python(text):
    """Comments and docstrings, without examples."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    parts = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            parts.append(EXAMPLE.sub("", ast.get_docstring(node) or ""))
    return "\n\n".join(parts)


def words_of_notebook(text):
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


READERS = {".md": str, ".yaml": str, ".py": words_of_python, ".ipynb": words_of_notebook}


def americanisms(text):
    """Each American spelling in prose, and the British one."""
    prose = NAMES.sub("", CODE.sub("", text))
    words = re.findall(r"[a-z]+", prose.lower())
    return sorted({f"{word}: {AMERICAN[word]}" for word in words if word in AMERICAN})


def test_american_spellings_are_told_from_code_and_names():
    assert americanisms("The Center's colors, labeled") == [
        "center: centre",
        "colors: colours",
        "labeled: labelled",
    ]
    assert not americanisms("a practice of `color=`, by the Apache License, ```\ncenter\n``` grey")
    assert americanisms(words_of_python('"""Gray."""\ngray = 1  # color')) == [
        "color: colour",
        "gray: grey",
    ]


def test_prose_is_british():
    assert len(FILES) > 200, "the test looks at nothing"
    found = []
    for path in FILES:
        text = READERS[path.suffix](path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(ROOT)}: {said}" for said in americanisms(text)]
    assert not found, "\n".join(found)
