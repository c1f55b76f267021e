"""The papers of the project: how to cite it and to contribute, what changed, and what is run and
asked on GitHub. What they say of the code is compared with the code.
"""

import ast
import re
import tomllib
from pathlib import Path

from deepatlas import lessons

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def yaml_of(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


PROJECT = tomllib.loads(text_of("pyproject.toml"))["project"]

# --- citation, changelog --------------------------------------------------------------------------


def test_the_kit_can_be_cited_by_its_version():
    cited = yaml.safe_load(text_of("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited), "required by the format"
    assert str(cited["cff-version"]) == "1.2.0" and cited["type"] == "software"
    assert cited["version"] == PROJECT["version"] and cited["license"] == PROJECT["license"]
    assert text_of("README.md").splitlines()[0] == f"# {cited['title']}"


def test_the_paper_is_cited_beside_the_kit_and_not_in_its_place():
    cited = yaml.safe_load(text_of("CITATION.cff"))
    assert "preferred-citation" not in cited, "the paper's authors did not write the kit"
    (paper,) = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Xu", "Niethammer"]
    assert paper["doi"] == "10.1007/978-3-030-32245-8_47" and paper["year"] == 2019
    assert (paper["volume"], paper["start"], paper["end"]) == (11765, 420, 429)
    arxiv = paper["identifiers"][0]["value"].removeprefix("arXiv:")
    assert f"https://arxiv.org/abs/{arxiv}" in text_of("README.md")


def test_the_changelog_begins_with_what_is_not_released_or_with_this_version():
    text = text_of("CHANGELOG.md")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    pattern = r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d"
    assert all(re.fullmatch(pattern, heading) for heading in headings)
    versions = [heading[1 : heading.index("]")] for heading in headings]
    newest = next(version for version in versions if version != "Unreleased")
    assert "Unreleased" not in versions[1:] and newest == PROJECT["version"]
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# --- contributing ---------------------------------------------------------------------------------

CONTRIBUTING = text_of("CONTRIBUTING.md")
QUOTED = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", CONTRIBUTING, flags=re.DOTALL))
PATHS = sorted(
    {word for word in QUOTED if re.fullmatch(r"[\w./*-]*(/|\.py|\.md|\.toml|\.cff)[\w./*-]*", word)}
)


@pytest.mark.parametrize("path", PATHS)
def test_what_the_guide_names_is_there(path):
    """N is a digit, and * anything; a file in ``.venv`` would be there after `make` only."""
    assert list(ROOT.glob(path.replace("0N", "0[0-9]")))


def test_the_guide_names_many_paths_and_its_links_lead_somewhere():
    assert len(PATHS) > 30
    for target in re.findall(r"\]\(([^)]+)\)", CONTRIBUTING):
        file, _, heading = target.partition("#")
        headings = re.findall(r"^#+ (.*)$", text_of(file), re.MULTILINE)
        assert not heading or heading in [title.lower().replace(" ", "-") for title in headings]


ROWS = re.findall(r"^\| an? (.+?) \| `([A-Z]+)` \| `(.+?)` \|", CONTRIBUTING, re.MULTILINE)


def test_each_table_of_the_guide_is_where_it_says():
    assert len(ROWS) == 7
    for _, table, name in ROWS:
        (path, *_) = sorted(ROOT.glob(name.replace("0N", "0[1-9]")))
        assigned = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            assigned |= {target.id for target in targets if isinstance(target, ast.Name)}
        assert table in assigned, f"{table} in {name}"


@pytest.mark.parametrize("thing, table, name", ROWS, ids=[thing for thing, _, _ in ROWS])
def test_the_guide_tells_no_other_way_than_the_readme(thing, table, name):
    """The README has a shorter table of the same things."""
    lines = text_of("README.md").splitlines()
    (row,) = [line for line in lines if re.match(rf"\| an? {thing} \|", line)]
    file = name.removeprefix("deepatlas/")
    assert f"`{table}`" in row
    assert f"`{file}`" in row or f"`{Path(file).parent}/`" in row


def test_targets_of_make_that_are_named_are_there():
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)", CONTRIBUTING))
    assert {"test", "lint", "results", "rivals"} <= named <= targets
    assert re.search(r"^WORKERS \?=", text_of("Makefile"), re.MULTILINE)


# --- GitHub ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_steps_a_limit_and_rights_that_it_says(path):
    workflow = yaml_of(path)
    assert workflow["name"] == path.stem and "contents" in workflow["permissions"]
    for job in workflow["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert job["steps"] and all(("run" in step) != ("uses" in step) for step in job["steps"])
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v0"))


def test_the_tests_run_there_as_they_run_here():
    workflow = yaml_of(ROOT / ".github" / "workflows" / "test.yml")
    assert set(workflow[True]) == {"push", "pull_request"}, "YAML reads `on` as true"
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    here = text_of(".ci/run")
    commands = [step["run"] for step in job["steps"] if "run" in step]
    made = [command for command in commands if command.startswith("make ")]
    assert made == re.findall(r"^make .*$", here, re.MULTILINE)
    torch = re.search(r"torch==\S+", here)[0]
    assert any(torch in command for command in commands)
    wanted = dict(re.findall(r"(DEEPATLAS_\w+)=(\S+)", here))
    for name in ("DEEPATLAS_DATA", "DEEPATLAS_REQUIRE_REAL_DATA"):
        wanted.pop(name)  # the real scans are not there
    assert job["env"] == wanted


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_can_be_filled_in(path):
    form = yaml_of(path)
    if path.stem == "config":
        assert form["blank_issues_enabled"] is True
        assert all(set(link) == {"name", "url", "about"} for link in form["contact_links"])
        return
    assert form["name"] and form["description"]
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    names = [item["id"] for item in fields]
    assert len(set(names)) == len(names)
    assert any(item.get("validations", {}).get("required") for item in fields)
    for item in form["body"]:
        assert item["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert item["attributes"]["value" if item["type"] == "markdown" else "label"]


def test_a_question_may_be_about_any_lesson():
    form = yaml_of(ROOT / ".github" / "ISSUE_TEMPLATE" / "teaching.yml")
    (where,) = [item for item in form["body"] if item["type"] == "dropdown"]
    stems = [path.stem for path in lessons.paths()]
    assert where["attributes"]["options"][: len(stems)] == stems


# --- what goes where ------------------------------------------------------------------------------

NETWORK = {"requests", "urllib3", "urllib", "http", "socket", "ftplib", "smtplib", "httpx"}


def test_one_file_alone_asks_a_server():
    """As the README says of what leaves a machine. (Dask's own connections are between workers.)"""
    asking = set()
    for path in sorted((ROOT / "deepatlas").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            if NETWORK & {name.partition(".")[0] for name in names}:
                asking.add(str(path.relative_to(ROOT)))
    assert asking == {"deepatlas/datasets/fetch.py"}
    section = text_of("README.md").split("## What leaves your machine")[1].split("\n## ")[0]
    assert "`deepatlas/datasets/fetch.py`" in section and "no medical device" in section


# Where packages come from is the affair of whoever installs, who may have a mirror.
REGISTRY = re.compile(r"(py)?pi\.org|pythonhosted|anaconda\.org|npmjs|download\.pytorch|index-url")


@pytest.mark.parametrize(
    "name",
    [
        *("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "Makefile", ".ci/run"),
        *("pyproject.toml", "environment.yml"),
        *(str(path.relative_to(ROOT)) for path in WORKFLOWS + FORMS),
    ],
)
def test_no_registry_is_named(name):
    assert not REGISTRY.search(text_of(name))
