"""What stands behind the name of a run: a hash of the code that decides its result.

Of the modules that ``experiments.py`` imports, directly or through others, the syntax trees count,
without comments and docstrings. So a changed loss renames every run, wherever it stands, and a
comment, a new data set or a plot renames none. Which modules these are is read from the imports.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from .places import PACKAGE

ROOT = "experiments.py"  # it trains and scores


def method_hash(package: Path = PACKAGE) -> str:
    """A hash of the code that trains and scores, as it stands now: it may be edited meanwhile."""
    return code_hash(ROOT, package)


def code_hash(root: str, package: Path = PACKAGE) -> str:
    """A hash of the code of the file ``root`` of the package, and of all that it imports."""
    digest = hashlib.sha256()
    for path in method_files(package, root):
        code = _code(path.read_text(encoding="utf-8"))
        name = path.relative_to(package).as_posix()
        digest.update(f"{name}: {code}\n".encode())
    return digest.hexdigest()


def method_files(package: Path = PACKAGE, root: str = ROOT) -> list[Path]:
    """The files of the package that its file ``root`` imports, and itself, in alphabetical order:
    those of training and scoring.
    """
    found: set[Path] = set()
    waiting = [package / root]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for level, module, name in _own_imports(path.read_text(encoding="utf-8")):
            above = path.parents[level - 1] if level else package
            base = above.joinpath(*module)
            named = _file(base / name) or _file(base)
            if named and named != package / "__init__.py":
                waiting.append(named)
    return sorted(found, key=lambda path: path.relative_to(package).as_posix())


@cache
def _own_imports(source: str) -> list[tuple[int, tuple[str, ...], str]]:
    """(level, module, name) of ``from ..module import name``, for each name; level 0 for
    ``from deepatlas.module import name`` and ``import deepatlas.module``, without ``deepatlas``.

    It names a module, or else the file of ``module``. The ``__init__`` of a package above, which
    only hands on what stands in its modules, it does not name.
    """
    found = []
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level == 0 and module[0] != "deepatlas":
                continue
            own = module if node.level else module[1:]
            found += [(node.level, own, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                package, *inner = alias.name.split(".")
                if package == "deepatlas" and inner:
                    found.append((0, tuple(inner[:-1]), inner[-1]))
    return found


def _file(module: Path) -> Path | None:
    """The file of a module, or the ``__init__`` of a package; None if there is neither."""
    for path in (module.with_name(f"{module.name}.py"), module / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def _code(source: str) -> str:
    return _without_words(_tree(source))


WITH_WORDS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _without_words(node: ast.AST | list | object) -> str:
    """A syntax tree as text, without docstrings and positions.

    Fields that are empty are left out: newer versions of Python have more of them.
    """
    if isinstance(node, list):
        return f"[{', '.join(map(_without_words, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    told = []
    for name in node._fields:
        value: Any = getattr(node, name, None)
        if name == "body" and isinstance(node, WITH_WORDS) and _begins_with_words(value):
            value = value[1:]
        if value is not None and value != []:
            told.append(f"{name}={_without_words(value)}")
    return f"{type(node).__name__}({', '.join(told)})"


def _begins_with_words(body: list[ast.stmt]) -> bool:
    """Is there a docstring?"""
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    return isinstance(first, ast.Constant) and isinstance(first.value, str)
