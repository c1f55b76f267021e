"""How dense the source is: three measures, printed; not goals. Run: python tests/style.py [FOLDER
...]

- Expression nodes in an assignment, a return or an expression, 90th percentile: how much has to be
  held in mind at once.
- Lines beyond 100 columns, in percent of those that are not empty.
- Comprehensions inside a comprehension, for 1,000 lines.

With ``--densest`` the statements with the most nodes are listed, too.
"""

import argparse
import ast
from pathlib import Path

COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


SIMPLE = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Expr


def expressions(node):
    """Expression nodes of a simple statement."""
    return sum(isinstance(inner, ast.expr) for inner in ast.walk(node))


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def percentile(values, share):
    """The smallest value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(files):
    """{measure: number} of Python ``files``, and (nodes, place) of every statement."""
    statements, lines, long, nested = [], 0, 0, 0
    for path in files:
        text = path.read_text(encoding="utf-8")
        rows = [row for row in text.splitlines() if row.strip()]
        lines += len(rows)
        long += sum(len(row) > 100 for row in rows)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, SIMPLE) and not is_docstring(node):
                statements.append((expressions(node), f"{path}:{node.lineno}"))
            if isinstance(node, COMPREHENSIONS):
                nested += sum(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node)) - 1
    measures = {
        "lines": lines,
        "expression nodes a statement, 90th percentile": percentile(
            [n for n, _ in statements], 0.9
        ),
        "lines beyond 100 columns, %": round(100 * long / lines, 1),
        "nested comprehensions in 1,000 lines": round(1000 * nested / lines, 1),
    }
    return measures, statements


def main():
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[root / "deepatlas"])
    parser.add_argument("--densest", type=int, default=0, help="list so many statements")
    options = parser.parse_args()
    for folder in options.folders:
        files = [folder] if folder.is_file() else sorted(folder.rglob("*.py"))
        measures, statements = measure(files)
        print(f"{folder}: {', '.join(f'{name} {value}' for name, value in measures.items())}")
        for nodes, place in sorted(statements, reverse=True)[: options.densest]:
            print(f"  {nodes:4d}  {place}")


if __name__ == "__main__":
    main()
