"""The rules of the house, read from the source: imports run one way, walls stand, everything public
is used, and a new thing is added in one place.
"""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from deepatlas import regimes, terms

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "deepatlas"


def module_name(path):
    """The dotted name within the package: "warp", "viewers.state", "viewers" for its __init__."""
    parts = path.relative_to(HOME).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Every Python file of the package, in subfolders too; the package's own __init__ stands apart.
PACKAGE = {module_name(path): path for path in sorted(HOME.rglob("*.py"))}
FRONT = PACKAGE.pop("")
SOURCE = {name: path.read_text(encoding="utf-8") for name, path in PACKAGE.items()}
TREES = {name: ast.parse(text) for name, text in SOURCE.items()}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# The walls. Everything else follows from imports running one way.
ONLY_IN = {
    "matplotlib": {"plots", "evidence_plots", "viewers", "explorers", "exercises"},
    "ipywidgets": {"viewers", "explorers", "exercises"},
    "anywidget": {"viewers", "explorers", "exercises"},
    "papermill": {"notebooks"},
}
MUST_NOT_IMPORT = {
    # A metric must not know how a model was made.
    "evaluation": {"training", "networks", "models", "terms", "regimes", "experiments"},
    "plots": {"training", "experiments", "reporting", "evidence"},
    "evidence_plots": {"training", "experiments", "reporting", "evidence"},
    "viewers": {"training", "experiments", "reporting", "evidence"},
    "exercises": {"training", "experiments", "reporting", "evidence"},
}

# Public names that nothing in the package or a notebook uses, each with the reason to keep it.
KEPT = {
    "cli.app": "what typer.testing runs",
    "cli.main": "the command: pyproject.toml names it",
    "warp.sample": "the one convention of grid_sample, which lesson and tests look at",
}


def imports_of(name, tree=None):
    """(module of deepatlas or outer package, name imported or None, is it ours) of every import of
    a module, nested ones included; a module of ours by its dotted name.
    """
    tree = TREES[name] if tree is None else tree
    parts = name.split(".") if name else []
    is_package = name in PACKAGE and PACKAGE[name].stem == "__init__"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, inner = alias.name.partition(".")
                own = package == "deepatlas"
                yield inner if own else package, None, own
        elif isinstance(node, ast.ImportFrom):
            package, _, inner = (node.module or "").partition(".")
            base = inner.split(".") if inner else []
            if node.level:  # from the package that the module stands in, or above
                package = "deepatlas"
                up = node.level - 1 if is_package else node.level
                here = parts[: len(parts) - up] if up else parts
                base = here + (node.module.split(".") if node.module else [])
            if package != "deepatlas":
                yield package, None, False
                continue
            for alias in node.names:
                module = ".".join([*base, alias.name])
                if module in PACKAGE:
                    yield module, None, True
                else:
                    yield ".".join(base), alias.name, True


def own_imports(name):
    """The modules of deepatlas that a module imports."""
    return {module for module, _, own in imports_of(name) if own and module}


def subject(name):
    """The file or folder at the top of the package that a module stands in."""
    return name.partition(".")[0]


def functions_of(tree):
    """Every function and method, nested ones included."""
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def calls_of(tree, name):
    """Every call of ``name(...)`` or ``anything.name(...)``."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and name == getattr(node.func, "id", getattr(node.func, "attr", None))
    ]


def words_of(tree):
    """Every name, attribute, argument and keyword: what is code, not strings or comments."""
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


# --- imports --------------------------------------------------------------------------------------


def circle_through(graph):
    """A list of modules that import each other in a circle, or None."""
    state = {}  # module -> "open" while its imports are followed, then "done"

    def follow(module, trail):
        if state.get(module) == "done":
            return None
        if state.get(module) == "open":
            return [*trail[trail.index(module) :], module]
        state[module] = "open"
        for imported in sorted(graph.get(module, ())):
            if found := follow(imported, [*trail, module]):
                return found
        state[module] = "done"
        return None

    for module in graph:
        if found := follow(module, []):
            return found
    return None


def test_the_search_for_circles_finds_one():
    assert circle_through({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_through({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_imports_of_modules_run_one_way():
    """In subfolders too, and nested in functions."""
    graph = {name: own_imports(name) - {name} for name in PACKAGE}
    assert circle_through(graph) is None


def test_imports_of_subjects_run_one_way():
    """A package counts as one: no two subjects need each other."""
    graph = {}
    for name in PACKAGE:
        graph.setdefault(subject(name), set()).update(map(subject, own_imports(name)))
    graph = {name: imported - {name} for name, imported in graph.items()}
    assert circle_through(graph) is None


@pytest.mark.parametrize("package", ONLY_IN)
def test_heavy_packages_stay_where_they_belong(package):
    users = {subject(name) for name in PACKAGE if (package, None, False) in set(imports_of(name))}
    assert users, "the test looks at nothing"
    assert_none(sorted(users - ONLY_IN[package]), f"{package} belongs in {ONLY_IN[package]} only")


@pytest.mark.parametrize("wall", MUST_NOT_IMPORT)
def test_walls_stand(wall):
    """Neither directly nor through others."""
    reached = {name for name in PACKAGE if subject(name) == wall}
    assert reached, "the test looks at nothing"
    waiting = list(reached)
    while waiting:
        for module in own_imports(waiting.pop()) - reached:
            reached.add(module)
            waiting.append(module)
    through = {subject(name) for name in reached} & MUST_NOT_IMPORT[wall]
    assert_none(sorted(through), f"{wall} must not import")


def test_the_package_itself_imports_nothing():
    tree = ast.parse(FRONT.read_text(encoding="utf-8"))
    modules = {module for module, _, _ in imports_of("", tree)}
    assert modules <= sys.stdlib_module_names


def test_only_one_file_knows_where_things_are():
    """Folders beside the package, and the variables that name a user's folders."""
    found = []
    for name, text in SOURCE.items():
        if name in ("places", "doctor"):  # the doctor shows what a variable says
            continue
        if re.search(r"os\.environ[^\n]*DEEPATLAS_|parent\.parent|parents\[", text):
            found.append(name)
    assert_none(sorted(set(found) - {"run_names"}), "ask places.py")


# --- the tree of files ----------------------------------------------------------------------------


def tree_of_readme():
    """The paths that README's annotated tree lists, folders with a slash behind them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```\n(deepatlas/.*?)```", text, re.DOTALL)[1]
    listed, above = [], []
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        names = [name.strip() for name in re.split(r"\s{2,}", line.strip())[0].split(",")]
        above = above[: indent // 4]
        listed += ["".join(above) + name for name in names]
        if names[-1].endswith("/"):
            above.append(names[-1])
    return listed


def test_the_tree_in_readme_is_what_is_there():
    listed = tree_of_readme()
    assert_none(sorted({name for name in listed if listed.count(name) > 1}), "listed twice")
    assert_none([name for name in listed if not (ROOT / name).exists()], "not there")
    files = {str(path.relative_to(ROOT)) for path in PACKAGE.values()}
    files -= {name for name in files if name.endswith("__init__.py")}
    for folder in [name for name in listed if name.endswith("/") and name != "deepatlas/"]:
        if not any(name.startswith(folder) and name != folder for name in listed):
            files -= {name for name in files if name.startswith(folder)}  # listed as a whole
    assert_none(sorted(files - set(listed)), "not in the tree")
    at_top = {name.partition("/")[0] + "/" for name, _ in text_files() if "/" in name}
    assert_none(sorted(at_top - set(listed) - {".ci/"}), "folders that the tree lacks")


# --- dangers --------------------------------------------------------------------------------------


def test_grid_sample_is_called_in_one_file_only():
    users = {name for name, tree in TREES.items() if "grid_sample" in words_of(tree)}
    assert users == {"warp", "exercises.lesson_02"}, (
        "the exercise is to meet its conventions, and what one gets wrong"
    )
    assert len(calls_of(TREES["warp"], "grid_sample")) == 1


def test_nothing_is_pickled():
    assert_none(
        [
            f"{name}: {word}"
            for name, tree in TREES.items()
            for word in words_of(tree)
            if "pickle" in word
        ],
        "pickle runs whatever a file tells it to",
    )


def without_keyword(call, keyword, allowed):
    """Every call of ``call`` that does not say ``keyword=``, or says what is not allowed."""
    return [
        f"{name}.py:{node.lineno}"
        for name, tree in TREES.items()
        for node in calls_of(tree, call)
        if not any(given.arg == keyword and allowed(given.value) for given in node.keywords)
    ]


def test_torch_load_reads_weights_only():
    safe = re.compile(r"torch\.load\(.*weights_only=True.*\)|(?!torch\.).*")
    loads = [
        (name, ast.unparse(call)) for name, tree in TREES.items() for call in calls_of(tree, "load")
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


# --- style ---------------------------------------------------------------------------------------


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
    """Functions, classes and constants at the top of a file; a decorator is a use."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from [] if node.decorator_list else [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def without_imports(tree):
    """The statements of a file that are no imports."""
    return [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]


def test_no_name_is_dead():
    """Not used anywhere: not at home, in another file or in a notebook. Handing it on is no use."""
    words = Counter()
    for name, tree in TREES.items():
        hands_on = PACKAGE[name].stem == "__init__"
        for node in without_imports(tree) if hands_on else [tree]:
            words.update(words_of(node))
    for path in NOTEBOOKS:
        words.update(words_of(notebook_tree(path)))
    dead = []
    for module, tree in TREES.items():
        for name in public_names(tree):
            if words[name] < 2 and name != "__all__" and f"{module}.{name}" not in KEPT:
                dead.append(f"{module}.{name}")
    assert_none(dead, "dead")


def test_words_of_the_house_are_used():
    """moving and fixed, seg_net and reg_net, regime: no other names for the same things."""
    wrong = re.compile(
        r"(src|tgt|source_image|target_image|img\d?|mov|flow_field|ddf|dvf|arms?)(_.*)?$"
    )
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
        (("results",), "deepatlas sweep tutorials_data/results/short.toml"),
        (("results",), "OMP_NUM_THREADS=2 .venv/bin/deepatlas sweep tutorials_data/results/again"),
        (("results",), "deepatlas gains"),
        (("tutorials", "ARGS=profile=smoke"), "deepatlas site profile=smoke"),
        (("weights",), "deepatlas weights dataset=phantom-brain"),
        (("test",), "-m pytest"),
        (("lab",), "bin/deepatlas lab"),
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
    (record,) = tmp_path.glob("*/run.json")
    folder = record.parent
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
    needed = "cli, datasets, doctor, experiments, models, notebooks, reporting, sweeps"
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))
from deepatlas import {needed}
"""
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
    extras = project["optional-dependencies"]
    stated = project["dependencies"] + extras["scale"] + extras["tensorboard"]
    # yaml comes as pyyaml, dask with distributed
    declared = {split_requirement(text)[0] for text in stated} | {"yaml", "dask"}
    used = {module for name in PACKAGE for module, _, own in imports_of(name) if not own}
    used = {{"IPython": "ipython"}.get(module, module) for module in used}
    assert_none(sorted(used - declared - sys.stdlib_module_names), "imported, but not declared")


# --- one place to touch ---------------------------------------------------------------------------

# Each is added in one file of a copy of the project, and a smoke training must know it.
ADDITIONS = {
    "a loss term": (
        "deepatlas/terms.py",
        """

def _shift(turn):
    return turn.phi.displacement.mean().square()


TERMS["shift"] = Term(0.5, "#123456", reg=_shift)
""",
        ["regimes=joint", "term_weights.shift=2.0"],
        """
import pandas as pd
from deepatlas import explorers, plots, terms, trainings
history = pd.read_csv(folder / "history.csv")
assert history.loc[history["turn"] == "reg", "shift"].notna().all()
figure = plots.loss_curves(history, {key: key for key in set(history["regime"])})
legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
labels = {text.get_text() for legend in legends for text in legend.get_texts()}
assert "shift (reg)" in labels
rows = history[history["regime"] == "deepatlas"].to_dict("records")
assert explorers.term_curves(rows)["shift (reg)"]["colour"] == "#123456"
assert trainings.weights(experiment, experiment.table["deepatlas"])["shift"] == 2.0
""",
    ),
    "a pair of networks": (
        "deepatlas/models.py",
        """

class _Flat(nn.Module):
    def __init__(self, dims, inputs, outputs):
        super().__init__()
        self.layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(inputs, outputs, 3, padding=1)

    def forward(self, *images):
        return self.layer(torch.cat(images, 1))


NETWORKS["flat"] = Networks(
    lambda dims, structures: _Flat(dims, 1, structures), lambda dims: _Flat(dims, 2, dims)
)
""",
        ["regimes=joint", "networks=flat"],
        """
nets = experiments.load_networks(folder, "deepatlas")
assert type(nets["seg"]).__name__ == "_Flat"
assert not nets["reg"].velocity and nets["reg"].factors == (1,)
""",
    ),
    "a regime": (
        "deepatlas/regimes.py",
        (
            "REGIMES = {\n",
            'REGIMES = {\n    "seg_long": Regime("Baseline, twice", ("seg",), length="whole"),\n',
        ),
        [],
        """
from deepatlas import evidence, reporting, sweeps
title = "Baseline, twice"
assert ("segmentation", title) in reporting.results_table(folder).index
assert title in set(reporting.comparison_table(folder)["DeepAtlas minus"])
assert title in reporting.structure_table(folder, "segmentation")
sweeps.collect([folder], folder.parent / "results")
rows = evidence.load_results(folder.parent / "results")
assert "seg_long" in set(evidence.gains(rows)["against"])
""",
    ),
    "a data set": (
        "tutorials_data/datasets.toml",
        """
[my-knees]
title = "Knees of a test"
licence = "CC0"
anatomy = "knee"
dims = 2
align = false
split = [4, 2, 3]
grids.full-3d = { shape = [64, 64, 64], spacing = 2.0 }
""",
        ["regimes=joint", "dataset=my-knees"],
        """
from deepatlas import doctor
assert folder.name.startswith("my-knees-smoke-2d")
assert any(line.strip().startswith("my-knees: ") for line in doctor.examine())
""",
    ),
    "a lesson's exercise": (
        "deepatlas/exercises/lesson_01.py",
        """

EXERCISES["double"] = Exercise(
    "twice",
    lambda dims, generator: (torch.rand(3, generator=generator),),
    lambda x: 2 * x,
    ("too small", "twice", "2 * x"),
)
""",
        None,
        """
from deepatlas import exercises
exercises.check("01.double", lambda x: x + x)
exercises.progress()
assert exercises.read_answers()["01.double"]["solved"]
""",
    ),
}


@pytest.mark.parametrize("thing", ADDITIONS)
def test_a_new_thing_is_added_in_one_place(thing, tmp_path):
    file, addition, parameters, checks = ADDITIONS[thing]
    project = tmp_path / "project"
    for folder in ("deepatlas", "tutorials_data", "notebooks"):
        shutil.copytree(ROOT / folder, project / folder)
    shutil.copy(ROOT / "pyproject.toml", project)
    text = (project / file).read_text(encoding="utf-8")
    if isinstance(addition, tuple):  # a row among the others
        assert text.count(addition[0]) == 1
        text = text.replace(*addition)
    else:
        text += addition
    (project / file).write_text(text, encoding="utf-8")
    code = "from deepatlas import experiments, parameters\nfrom deepatlas.cli import arguments\n"
    if parameters is not None:
        values = ["profile=smoke", "dims=2", "device=cpu", "precision=float32", *parameters]
        code += (
            f"experiment = parameters.parse(arguments.assignments({values}))\n"
            "folder = experiments.run(experiment)\n"
        )
    environment = os.environ | {
        "PYTHONPATH": str(project),
        "DEEPATLAS_RUNS": str(tmp_path / "runs"),
        "DEEPATLAS_ANSWERS": str(tmp_path / "answers.json"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code + checks],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_regime_that_stands_before_its_start_is_refused():
    table = {
        "late": regimes.Regime("Late", ("seg",), start={"seg": "early"}),
        "early": regimes.Regime("Early", ("seg",)),
    }
    with pytest.raises(
        ValueError, match="'late' starts its network 'seg' from 'early', which does"
    ):
        regimes.ordered(table)
    table = {"early": table["early"], "late": table["late"]}
    assert list(regimes.ordered(table)) == ["early", "late"]


@pytest.mark.parametrize(
    "table, said",
    [
        ({"identity": regimes.Regime("Mine", ("seg",))}, "that name is taken, by No registration"),
        (
            {name: regimes.Regime("Mine", ("seg",)) for name in ("one", "two")},
            "regime 'two': another that trains seg is called 'Mine', too",
        ),
        (
            {
                "one": regimes.Regime("Mine", ("reg",)),
                "two": regimes.Regime("Mine", ("seg", "reg")),
            },
            "regime 'two': another that trains reg is called 'Mine', too",
        ),
        (
            {"mine": regimes.Regime("Mine", ("seg",), consults=True)},
            "asks the network 'reg', which it neither trains nor starts from",
        ),
    ],
)
def test_a_row_that_cannot_be_trained_is_refused(table, said):
    with pytest.raises(ValueError, match=said):
        regimes.ordered(table)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"trains": ("sg",)}, "trains must be a tuple of seg and reg"),
        ({"trains": "seg"}, "trains must be a tuple of seg and reg"),
        ({"trains": ()}, "trains must be a tuple of seg and reg"),
        ({"trains": ("seg",), "length": "long"}, "length must be one of baseline, joint, whole"),
        ({"trains": ("seg",), "length": 2}, "length must be one of baseline, joint, whole"),
    ],
)
def test_a_row_that_means_nothing_is_refused(wrong, said):
    with pytest.raises(ValueError, match=f"Mine: {said}"):
        regimes.Regime("Mine", **wrong)


def test_a_rival_is_all_that_trains_the_network_without_all_labels(monkeypatch):
    both = regimes.Regime(
        "Longer", ("seg", "reg"), regimes.BASELINES, consults=True, length="whole"
    )
    monkeypatch.setitem(regimes.REGIMES, "longer", both)
    for task in ("segmentation", "registration"):
        assert regimes.rivals(task)[-1] == "longer"
        assert "deepatlas" not in regimes.rivals(task)
        assert not [key for key in regimes.rivals(task) if key.endswith("full")]


def test_a_loss_term_has_a_turn_and_a_name_of_its_own(monkeypatch):
    with pytest.raises(ValueError, match="give it a function, reg or seg"):
        terms.Term(1.0, "#000000")
    monkeypatch.setitem(terms.TERMS, "step", terms.TERMS["regularity"])
    with pytest.raises(ValueError, match="cannot be named step, as a column of the history"):
        terms.Weights()


def test_regime_keys_are_typed_in_one_file():
    """Elsewhere in the package they are read from the table."""
    found = []
    for name, tree in TREES.items():
        if subject(name) == "regimes":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in regimes.REGIMES:
                found.append(f"{name}: {node.value} (line {node.lineno})")
    assert_none([text for text in found if "deepatlas (" not in text], "regime keys by hand")


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
    """``my_*`` functions meet an assertion, directly or through names that hold what they gave."""
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_deepatlas_is_imported_before_torch(path):
    """It sets what OpenMP reads when torch is loaded: how long a waiting thread spins."""
    lines = ast.unparse(notebook_tree(path)).splitlines()
    ours = [n for n, line in enumerate(lines) if re.match(r"(from|import) deepatlas\b", line)]
    torchs = [n for n, line in enumerate(lines) if re.match(r"(from|import) (torch|monai)\b", line)]
    assert ours and (not torchs or ours[0] < torchs[0])


BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", [*NOTEBOOKS, *BENCHMARKS], ids=lambda path: path.stem)
def test_what_is_asked_of_the_package_is_there(path):
    """Every ``module.name`` of a notebook or a benchmark, where module is one of ours."""
    is_notebook = path.suffix == ".ipynb"
    tree = notebook_tree(path) if is_notebook else ast.parse(path.read_text(encoding="utf-8"))
    modules, missing = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepatlas"):
            home = importlib.import_module(node.module)
            for alias in node.names:
                try:
                    found = importlib.import_module(f"{node.module}.{alias.name}")
                except ModuleNotFoundError:
                    missing += [] if hasattr(home, alias.name) else [alias.name]
                else:
                    modules[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                missing.append(f"{node.value.id}.{node.attr} (line {node.lineno})")
    assert_none(missing, "not there")


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
