"""The rules of the house, read from the source: imports go down, files stay short, everything
public is used.
"""

import ast
import json
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = {
    path.stem: path for path in sorted((ROOT / "deepatlas").glob("*.py")) if path.stem != "__init__"
}
SOURCE = {name: path.read_text(encoding="utf-8") for name, path in PACKAGE.items()}
TREES = {name: ast.parse(text) for name, text in SOURCE.items()}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

FLOOR_0 = {"data", "networks", "warp", "losses", "checkpoints"}
FLOOR_1 = {
    "registration",
    "phantom",
    "datasets",
    "pairs",
    "regimes",
    "terms",
    "training",
    "evaluation",
}
FLOOR_3 = {
    "machine",
    "parameters",
    "experiments",
    "evidence",
    "reporting",
    "lessons",
    "site",
    "weights",
    "cli",
}
MAY_IMPORT = {
    **{name: set() for name in FLOOR_0},
    "registration": {"data", "warp", "losses"},
    "phantom": {"data", "warp"},
    "datasets": {"data", "phantom", "registration"},
    "pairs": {"data", "warp"},
    "regimes": set(),
    "terms": {"data", "warp", "losses"},
    "training": {"data", "checkpoints", "pairs", "regimes", "terms"},
    "evaluation": {"data", "warp"},  # never training: a metric must not know how a model was made
    "plots": (FLOOR_0 | FLOOR_1) - {"training"},
    "viewers": (FLOOR_0 | FLOOR_1 | {"plots"}) - {"training"},
    "explorers": (FLOOR_0 | FLOOR_1 | {"plots", "viewers"}) - {"training"},
    **{name: {*PACKAGE, "exercises"} for name in FLOOR_3},
}
ONLY_IN = {
    "matplotlib": {"plots", "viewers"},
    "papermill": FLOOR_3,
    "ipywidgets": {"explorers"},
    "anywidget": {"viewers", "explorers"},
}
CORE = (FLOOR_0 | FLOOR_1) & set(PACKAGE)

# Public names that nothing in the package or a notebook uses, each with the reason to keep it.
KEPT = {
    "cli.app": "what typer.testing runs",
    "cli.main": "the command: pyproject.toml names it",
    "warp.sample": "the one convention of grid_sample, which lesson and tests look at",
    "losses.diffusion": "the regularity of VoxelMorph, to compare bending energy with",
}


def imports_of(tree):
    """(module of deepatlas or outer package, name imported or None) of every import, nested ones
    included.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, inner = alias.name.partition(".")
                yield (
                    (inner or "__init__") if package == "deepatlas" else package,
                    None,
                    package == "deepatlas",
                )
        elif isinstance(node, ast.ImportFrom):
            package, _, inner = (node.module or "").partition(".")
            if node.level:
                package, inner = "deepatlas", node.module or ""
            for alias in node.names:
                own = package == "deepatlas"
                yield (inner or alias.name) if own else package, alias.name if inner else None, own


def functions_of(tree):
    """Every function and method, nested ones included."""
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def lines_of(function):
    return function.end_lineno - function.lineno + 1


def calls_of(tree, name):
    """Every call of ``name(...)`` or ``anything.name(...)``."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and name == getattr(node.func, "id", getattr(node.func, "attr", None))
    ]


def words_of(tree):
    """Every name, attribute, argument and keyword: what is in the code, not in strings or comments."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            if isinstance(value := getattr(node, field, None), str):
                yield value


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def notebook_tree(path):
    """The code of a notebook, without lines that only IPython understands."""
    code = "\n".join(
        "".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "code"
    )
    return ast.parse(re.sub(r"^\s*[%!?].*$", "", code, flags=re.MULTILINE))


def text_files():
    """(path, text) of every file that git tracks or would track."""
    listed = subprocess.run(
        [
            "git",
            "-c",
            f"safe.directory={ROOT}",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr}")
    for name in listed.stdout.splitlines():
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue


def assert_none(found, rule):
    assert not found, f"{rule}:\n  " + "\n  ".join(map(str, found))


# --- floors ---------------------------------------------------------------------------------------


def test_every_file_has_its_floor():
    assert_none(sorted(PACKAGE.keys() - MAY_IMPORT.keys()), "files without a floor in this test")


@pytest.mark.parametrize("name", PACKAGE)
def test_imports_go_down_only(name):
    upward = {module for module, _, own in imports_of(TREES[name]) if own} - MAY_IMPORT[name]
    allowed = ", ".join(sorted(MAY_IMPORT[name])) or "nothing"
    assert_none(sorted(upward), f"{name}.py may import {allowed} of deepatlas, but imports")


@pytest.mark.parametrize("package", ONLY_IN)
def test_heavy_packages_stay_where_they_belong(package):
    users = {
        name
        for name, tree in TREES.items()
        if (package, False) in {(m, own) for m, _, own in imports_of(tree)}
    }
    assert_none(
        sorted(users - ONLY_IN[package]), f"{package} belongs in {sorted(ONLY_IN[package])} only"
    )


def test_the_package_itself_imports_nothing_and_lists_every_file():
    text = (ROOT / "deepatlas" / "__init__.py").read_text(encoding="utf-8")
    assert {module for module, _, _ in imports_of(ast.parse(text))} <= sys.stdlib_module_names
    assert_none(
        [name for name in PACKAGE if f"{name}.py" not in text],
        "files that the map in __init__.py lacks",
    )
    listed = re.findall(r"(\w+)\.py", text)
    assert_none(sorted(set(listed) - PACKAGE.keys()), "files in the map that do not exist")


def test_the_map_gives_every_file_the_floor_of_this_test():
    text = (ROOT / "deepatlas" / "__init__.py").read_text(encoding="utf-8")
    floor = {
        name: 0 if name in FLOOR_0 else 1 if name in FLOOR_1 else 3 if name in FLOOR_3 else 2
        for name in PACKAGE
    }
    listed = {
        name: int(number) for number, name in re.findall(r"^(\d) +(\w+)\.py", text, re.MULTILINE)
    }
    assert listed == floor


EXERCISES = sorted((ROOT / "deepatlas" / "exercises").glob("*.py"))
EVERYWHERE = TREES | {
    f"exercises/{path.stem}": ast.parse(path.read_text(encoding="utf-8")) for path in EXERCISES
}


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_exercises_keep_the_rules_of_the_house(path):
    """They stand on floors 0 and 1; one folder, since lessons come and go."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    below = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 2
    }
    assert_none(sorted(below - FLOOR_0 - FLOOR_1 | below & {"training"}), "imports that go up")
    assert ast.get_docstring(tree) and len(text.splitlines()) < 350
    assert_none([f.name for f in functions_of(tree) if lines_of(f) > 50], "too long")
    assert_none(
        [
            f.name
            for f in tree.body
            if isinstance(f, ast.FunctionDef | ast.ClassDef)
            and not f.name.startswith("_")
            and not ast.get_docstring(f)
        ],
        "without a docstring",
    )


# --- dangers --------------------------------------------------------------------------------------


def test_grid_sample_is_called_in_one_file_only():
    users = [name for name, tree in EVERYWHERE.items() if "grid_sample" in words_of(tree)]
    assert users == ["warp", "exercises/lesson_02"], (
        "the exercise is to meet its conventions, and what one gets wrong"
    )
    assert len(calls_of(TREES["warp"], "grid_sample")) == 1


def test_nothing_is_pickled():
    assert_none(
        [
            f"{name}: {word}"
            for name, tree in EVERYWHERE.items()
            for word in words_of(tree)
            if "pickle" in word
        ],
        "pickle runs whatever a file tells it to",
    )


def without_keyword(call, keyword, allowed):
    """Every call of ``call`` that does not say ``keyword=``, or says something else than allowed."""
    return [
        f"{name}.py:{node.lineno}"
        for name, tree in EVERYWHERE.items()
        for node in calls_of(tree, call)
        if not any(given.arg == keyword and allowed(given.value) for given in node.keywords)
    ]


def test_torch_load_reads_weights_only():
    safe = re.compile(r"torch\.load\(.*weights_only=True.*\)|(?!torch\.).*")
    loads = [
        (name, ast.unparse(call))
        for name, tree in EVERYWHERE.items()
        for call in calls_of(tree, "load")
    ]
    assert_none(
        [f"{name}: {call}" for name, call in loads if not safe.fullmatch(call)],
        "torch.load without weights_only=True runs what the file says",
    )
    assert any("torch.load(" in text for text in SOURCE.values()), "the test looks at nothing"


def test_archives_are_unpacked_with_a_filter():
    for call in ("extractall", "extract", "unpack_archive"):
        assert_none(
            without_keyword(call, "filter", lambda value: "trusted" not in ast.unparse(value)),
            f"{call} without filter= writes wherever the archive says",
        )


def test_no_device_is_written_into_the_code():
    pattern = "cuda" + ":0"
    assert_none(
        [name for name, text in text_files() if pattern in text],
        f"{pattern} is not on everybody's machine",
    )


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGE)
def test_a_file_is_below_350_lines(name):
    assert len(SOURCE[name].splitlines()) < 350


def test_the_core_is_below_3000_lines():
    assert sum(len(SOURCE[name].splitlines()) for name in CORE) < 3000


@pytest.mark.parametrize("name", PACKAGE)
def test_no_function_is_longer_than_50_lines(name):
    assert_none(
        [f"{f.name}: {lines_of(f)} lines" for f in functions_of(TREES[name]) if lines_of(f) > 50],
        "too long",
    )


def test_the_median_function_has_at_most_10_lines():
    assert (
        statistics.median(lines_of(f) for tree in TREES.values() for f in functions_of(tree)) <= 10
    )


@pytest.mark.parametrize("name", PACKAGE)
def test_no_function_takes_more_than_six_arguments(name):
    def count(function):
        a = function.args
        named = [
            arg.arg
            for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))
        ]
        return len([arg for arg in named if arg not in ("self", "cls")])

    assert_none(
        [f"{f.name}: {count(f)}" for f in functions_of(TREES[name]) if count(f) > 6],
        "too many arguments",
    )


@pytest.mark.parametrize("name", PACKAGE)
def test_nothing_in_the_source_is_undecided(name):
    assert_none(re.findall(r".*\b(?:TODO|FIXME|XXX)\b.*", SOURCE[name]), "undecided")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGE)
def test_everything_public_has_a_docstring(name):
    """But ``forward``: the docstring of a network's class says what goes in and what comes out."""
    assert ast.get_docstring(TREES[name]), "the file itself"
    bodies = [
        TREES[name].body,
        *(node.body for node in TREES[name].body if isinstance(node, ast.ClassDef)),
    ]
    public = [
        node
        for body in bodies
        for node in body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and node.name != "forward"
    ]
    assert_none(
        [node.name for node in public if not ast.get_docstring(node)], "without a docstring"
    )


def public_names(tree):
    """Functions, classes and constants at the top of a file."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def used_from_outside(tree):
    """ "module.name" of everything that ``tree`` takes from deepatlas."""
    modules = {module for module, _, own in imports_of(tree) if own}
    used = {f"{module}.{name}" for module, name, own in imports_of(tree) if own and name}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        ):
            used.add(f"{node.value.id}.{node.attr}")
    return used


def used_anywhere():
    return set().union(*map(used_from_outside, [*TREES.values(), *map(notebook_tree, NOTEBOOKS)]))


def is_command(node):
    return any(
        "command" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])
    )


def test_no_name_is_dead():
    """Not used anywhere, not even at home."""
    words = {name: list(words_of(tree)) for name, tree in TREES.items()}
    everywhere = used_anywhere()
    commands = {node.name for node in TREES["cli"].body if is_command(node)}
    dead = [
        f"{module}.{name}"
        for module, tree in TREES.items()
        for name in public_names(tree)
        if f"{module}.{name}" not in everywhere | KEPT.keys()
        and words[module].count(name) < 2
        and not (module == "cli" and name in commands)
    ]
    assert_none(dead, "dead")


def test_words_of_the_house_are_used():
    """moving and fixed, seg_net and reg_net: no other names for the same things."""
    wrong = re.compile(r"(src|tgt|source_image|target_image|img\d?|mov|flow_field|ddf|dvf)(_.*)?$")
    assert_none(
        sorted(
            {
                f"{name}: {word}"
                for name, tree in TREES.items()
                for word in words_of(tree)
                if wrong.match(word)
            }
        ),
        "other words for moving, fixed and u",
    )


def test_the_licence_is_apaches():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "target, command",
    [
        (
            ("experiment", "DATASET=hippocampus", "ARGS=labelled=5"),
            "deepatlas run dataset=hippocampus labelled=5",
        ),
        (
            ("results", "ARGS=dataset=oasis35"),
            "deepatlas sweep tutorials_data/results/evidence.toml dataset=oasis35",
        ),
        (("results",), "deepatlas sweep tutorials_data/results/ablations.toml"),
        (("results",), "deepatlas sweep tutorials_data/results/short.toml"),
        (("results",), "deepatlas gains"),
        (("tutorials", "ARGS=profile=smoke"), "deepatlas site profile=smoke"),
        (("weights",), "deepatlas weights dataset=phantom-brain"),
        (("test",), "-m pytest"),
        (("lab",), "jupyter lab --notebook-dir=notebooks"),
    ],
)
def test_make_sets_up_and_runs(target, command):
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", *target], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "-m venv .venv" in done.stdout and command in done.stdout


@pytest.mark.skipif(not (ROOT / ".venv" / "run.stamp").exists(), reason="make has not set up .venv")
def test_make_experiment_makes_a_table_a_notebook_and_a_report(tmp_path):
    """The main command itself, at the smallest size."""
    done = subprocess.run(
        ["make", "experiment", f"ARGS=profile=smoke device=cpu --root={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for text in ("N = 1 of", "DeepAtlas", "Full supervision", "report:", "notebook:", "scores:"):
        assert text in done.stdout
    (folder,) = tmp_path.iterdir()
    assert {"run.json", "scores.csv", "experiment.ipynb", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert re.search(r"Executing:.*cell", done.stderr) and re.search(
        r"\d\d:\d\d<\d\d:\d\d,.*step/s", done.stderr
    )


def test_a_machine_that_only_trains_needs_no_jupyter():
    absent = (
        "papermill",
        "nbconvert",
        "nbformat",
        "IPython",
        "jupyterlab",
        "ipywidgets",
        "matplotlib",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import deepatlas.cli"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- packages -------------------------------------------------------------------------------------


def split_requirement(text):
    name, bound = re.fullmatch(r"([A-Za-z0-9_.-]+?)\s*((?:[<>=!~].*)?)", text).groups()
    return {"pytorch": "torch"}.get(name, name).lower(), bound.replace(" ", "")


def test_conda_and_pip_install_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = dict(map(split_requirement, project["dependencies"] + extras["test"] + extras["dev"]))
    wanted["python"] = project["requires-python"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(item["pip"] for item in conda if isinstance(item, dict))
    listed = [
        item
        for item in (*(i for i in conda if isinstance(i, str)), *pip)
        if item not in ("pip", "--editable .")
    ]
    assert dict(map(split_requirement, listed)) == wanted
    assert "--editable ." in pip and "pip" in conda


def test_every_package_that_is_imported_is_a_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {split_requirement(text)[0] for text in project["dependencies"]} | {"yaml"}  # pyyaml
    used = {module for tree in TREES.values() for module, _, own in imports_of(tree) if not own}
    used = {{"IPython": "ipython"}.get(module, module) for module in used}
    assert_none(sorted(used - declared - sys.stdlib_module_names), "imported, but not declared")


# --- notebooks and texts --------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    dirty = [
        i
        for i, cell in enumerate(cells_of(path))
        if cell.get("outputs") or cell.get("execution_count")
    ]
    assert_none(dirty, "cells with outputs or execution counts")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_one_cell_of_parameters_that_are_annotated_literals(path):
    tagged = [cell for cell in cells_of(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for node in ast.parse("".join(tagged[0]["source"])).body:
        assert isinstance(node, ast.AnnAssign), f"not annotated: {ast.unparse(node)}"
        ast.literal_eval(node.value)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_derives_by_hand_agrees_with_the_module(path):
    """``my_*`` functions meet an assertion, directly or through the names that hold what they gave."""
    tree = notebook_tree(path)
    mine = {f.name for f in functions_of(tree) if f.name.startswith("my_")}
    holding = {
        target.id: ast.unparse(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in ast.walk(node.targets[0])
        if isinstance(target, ast.Name)
    }
    asserted = [ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    asserted += [
        holding[word] for text in asserted for word in re.findall(r"\w+", text) if word in holding
    ]
    assert_none(
        [name for name in mine if not any(f"{name}(" in text for text in asserted)],
        "never asserted",
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_nobody_for_anything_online(path):
    for cell in cells_of(path):
        text = "".join(cell["source"])
        assert not re.search(r"<(img|script|iframe|link)\b|!\[[^\]]*\]\(http", text), text


def test_there_is_an_experiment_to_parameterise():
    assert ROOT / "notebooks" / "experiment.ipynb" in NOTEBOOKS


FORBIDDEN = {
    "a number in a tracker": "issue" + " #",
    "a path of one machine": r"(?<![\w.])/(wo" + "rk|home|Us" + "ers)/",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_text_speaks_of_where_it_was_written(what):
    pattern = re.compile(FORBIDDEN[what], re.IGNORECASE)
    assert_none(
        [
            f"{name}: {line.strip()[:100]}"
            for name, text in text_files()
            for line in text.splitlines()
            if pattern.search(line)
        ],
        what,
    )
