"""Exercises: solutions pass, stubs are told how to begin, every classic mistake gets its own hints,
nothing is lost.
"""

import ast
import json
import stat
from pathlib import Path

from deepatlas import exercises, lessons, places
from deepatlas.cli import app
from deepatlas.exercises import asking

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

LESSONS = exercises.lessons()
NAMES = [f"{lesson}.{task}" for lesson in LESSONS for task in exercises.exercises_of(lesson)]
MISTAKES = [(name, mistake) for name in NAMES for mistake in exercises.find(name).mistakes]


@pytest.fixture(autouse=True)
def answers(tmp_path, monkeypatch):
    path = tmp_path / "answers.json"
    monkeypatch.setenv("DEEPATLAS_ANSWERS", str(path))
    return path


def right(name):
    return exercises.find(name).right


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_passes_its_own_check(name, seed):
    assert exercises.judge(exercises.find(name), right(name), seed).passed


@pytest.mark.parametrize("name, mistake", MISTAKES, ids=lambda value: value)
def test_every_classic_mistake_gets_its_own_hints(name, mistake):
    exercise = exercises.find(name)
    assert {
        exercises.judge(exercise, exercise.mistakes[mistake].made, seed).mistake
        for seed in range(20)
    } == {mistake}
    hints = exercise.mistakes[mistake].hints
    others = [other.hints for key, other in exercise.mistakes.items() if key != mistake]
    assert len(set(hints)) == 3 and hints not in [exercise.hints, *others]


def unwrapped(capsys):
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    return " ".join(out.split())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stub", [lambda *_: None, lambda *_: ...], ids=["None", "..."])
def test_a_stub_is_told_how_to_begin(name, stub, capsys, answers):
    exercises.check(name, stub)
    out = unwrapped(capsys)
    assert "not written yet" in out and exercises.find(name).hints[0] in out
    assert not answers.exists()


def test_a_stub_may_raise():
    def stub(*_):
        raise NotImplementedError

    assert exercises.judge(exercises.find(NAMES[0]), stub).unfinished


def test_hints_come_one_by_one(capsys):
    name, mistake = MISTAKES[0]
    wrong = exercises.find(name).mistakes[mistake]
    for shown in (1, 2, 3, 3):
        exercises.check(name, wrong.made)
        out = unwrapped(capsys)
        assert [hint in out for hint in wrong.hints] == [n < shown for n in range(3)]
        assert ("one more hint" in out) == (shown < 3)


def test_an_error_of_the_student_is_an_answer(capsys):
    exercises.check(NAMES[0], lambda *_: 1 / 0)
    assert "stops with ZeroDivisionError" in capsys.readouterr().out


def test_what_is_solved_stays_solved(answers):
    exercises.check(NAMES[0], right(NAMES[0]))
    exercises.check(NAMES[0], lambda *_: torch.zeros(1))
    assert json.loads(answers.read_text())[NAMES[0]]["solved"]


def test_a_solution_that_a_lesson_brings_is_not_recorded(answers, capsys):
    exercises.check(NAMES[0], right(NAMES[0]), record=False)
    assert "right" in capsys.readouterr().out and not answers.exists()


def test_progress_counts_and_says_where(answers, capsys):
    exercises.check(NAMES[0], right(NAMES[0]))
    capsys.readouterr()
    exercises.progress()
    out = capsys.readouterr().out
    lesson = NAMES[0].partition(".")[0]
    assert (
        f"lesson {lesson}: 1 of {len(exercises.exercises_of(lesson))}" in out
        and str(answers) in out
    )


def test_answers_survive_in_any_letters(answers):
    asking.store("prediction 01.x", solved=True, answer="φ(x) ≤ 1")
    assert exercises.read_answers()["prediction 01.x"]["answer"] == "φ(x) ≤ 1"
    assert json.loads(answers.read_bytes().decode("utf-8"))


def test_where_answers_cannot_be_kept_the_verdict_is_said_all_the_same(
    answers, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DEEPATLAS_ANSWERS", str(tmp_path / "file" / "answers.json"))
    exercises.check("01.dice", exercises.find("01.dice").right)
    shown = capsys.readouterr().out
    assert (
        "✓ Dice of every structure: right" in shown and "Let DEEPATLAS_ANSWERS name a file" in shown
    )


def test_a_home_in_the_name_of_the_file_is_found(monkeypatch):
    monkeypatch.setenv("DEEPATLAS_ANSWERS", "~/answers.json")
    assert exercises.answers_file() == Path.home() / "answers.json"


def test_damaged_answers_are_not_overwritten(answers):
    answers.write_text("[1, 2")
    with pytest.raises(ValueError, match=r"answers\.json: not a file of answers"):
        exercises.check(NAMES[0], right(NAMES[0]))
    assert answers.read_text() == "[1, 2"


@pytest.mark.parametrize(
    "name, text",
    [("01.zebra", "no exercise '01.zebra': lesson 01 has 01.dice"), ("99.dice", "no lesson '99'")],
)
def test_an_unknown_exercise_is_named(name, text):
    with pytest.raises(ValueError, match=text):
        exercises.check(name, len)


def squares(gradient):
    return exercises.Exercise(
        "squares",
        lambda d, g: (torch.rand((3,) * d, generator=g),),
        lambda x: x**2,
        ("a", "b", "c"),
        gradient=gradient,
    )


@pytest.mark.parametrize(
    "function, problem",
    [
        (lambda x: x**2, ""),
        (lambda x: x.detach() ** 2, "no gradient comes back"),
        (lambda x: x.detach() * x, "its gradient is not"),
        (lambda x: x**3, "was wanted at (0, 0)"),
        (lambda x: (x**2)[0], "the shape (3, 3) was wanted, got (3,)"),
        (lambda x: "x", "got 'x'"),
        (lambda x: np.array(["x"]), "was wanted, got array(['x']"),
        (lambda x: (x**2).bfloat16(), "was wanted"),
    ],
)
def test_value_gradient_and_shape_are_compared(function, problem):
    verdict = exercises.judge(squares(True), function, seed=0)  # at a fixed place
    assert verdict.passed == (not problem) and problem in verdict.problem


def test_an_answer_cannot_change_what_it_is_compared_with():
    def vandal(x):
        x.zero_()
        return x**2

    assert not exercises.judge(squares(False), vandal).passed


# --- lessons --------------------------------------------------------------------------------------


def cells(lesson, tag):
    return [cell for cell in all_cells(lesson) if tag in cell.metadata.get("tags", [])]


def all_cells(lesson):
    (path,) = places.NOTEBOOKS.glob(f"{lesson}_*.ipynb")
    return nbformat.read(path, 4).cells


def imports(lesson):
    """What a lesson imports, as its cells say it."""
    code = "\n".join(cell.source for cell in all_cells(lesson) if cell.cell_type == "code")
    found = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(ast.unparse(node) for node in found) + "\n"


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_has_a_stub_and_a_solution_for_every_exercise(lesson):
    names = {f"{lesson}.{task}" for task in exercises.exercises_of(lesson)}
    assert len(names) >= 4
    for tag in ("exercise", "solution"):
        text = "\n".join(cell.source for cell in cells(lesson, tag))
        assert all(f'check("{name}"' in text for name in names), tag
    for cell in cells(lesson, "solution"):
        assert "record=False" in cell.source and "def solution_" in cell.source
        assert cell.metadata["jupyter"]["source_hidden"]


@pytest.mark.parametrize("lesson", LESSONS)
def test_solutions_pass_and_stubs_do_not(lesson, capsys, answers):
    """As "run all" does: solutions are right, stubs are unfinished or classic mistakes, and
    progress stays at zero.
    """
    imported = imports(lesson)
    for tag, wanted in (("solution", "✓"), ("exercise", "…✗")):
        for cell in cells(lesson, tag):
            exec(imported + cell.source, {})
            assert capsys.readouterr().out[0] in wanted, cell.source
    assert not any(entry["solved"] for entry in exercises.read_answers().values())


# --- for teachers ---------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_class_is_collected_in_one_table(tmp_path, answers):
    exercises.check(NAMES[0], right(NAMES[0]))
    asking.store("prediction 01.x", solved=True, answer="a, b")
    students = [answers.rename(tmp_path / "ada.json")]
    exercises.check(NAMES[0], lambda *_: torch.zeros(1))
    students.append(answers.rename(tmp_path / "emmy.json"))
    done = run("collect", *students, "--to", tmp_path / "class.csv")
    assert done.exit_code == 0 and "3 answers of 2 students" in done.output
    table = pd.read_csv(tmp_path / "class.csv")
    assert table["student"].tolist() == ["ada", "ada", "emmy"]
    assert table["solved"].tolist() == [True, True, False]
    assert table["answer"][1] == "a, b"


def test_answers_that_are_not_there_are_named(tmp_path):
    done = run("collect", tmp_path / "nobody.json", "--to", tmp_path / "class.csv")
    assert (
        "nobody.json: no such file" in str(done.exception) and not (tmp_path / "class.csv").exists()
    )


def test_two_students_of_one_name_are_refused(tmp_path):
    students = [tmp_path / folder / "ada.json" for folder in "ab"]
    for student in students:
        student.parent.mkdir()
        student.write_text("{}")
    done = run("collect", *students, "--to", tmp_path / "class.csv")
    assert (
        "several files are named ada.json" in str(done.exception)
        and not (tmp_path / "class.csv").exists()
    )


def test_a_handout_has_the_stubs_but_not_the_solutions(tmp_path):
    assert run("handout", tmp_path / "class").exit_code == 0
    copies = sorted((tmp_path / "class").glob("*.ipynb"))
    handed_out = [*lessons.paths(), places.EXPERIMENT]
    assert [copy.name for copy in copies] == [path.name for path in handed_out]
    for copy in copies:
        notebook = nbformat.read(copy, 4)
        nbformat.validate(notebook)
        text = "\n".join(cell.source for cell in notebook.cells)
        assert "def solution_" not in text
        assert ("exercises.check(" in text) == (copy.stem[:2] in LESSONS)


def test_a_handout_of_lessons_that_may_only_be_read_can_be_written_in(tmp_path):
    original = tmp_path / "installed" / "01_data.ipynb"
    original.parent.mkdir()
    original.write_bytes((places.NOTEBOOKS / original.name).read_bytes())
    original.chmod(0o444)
    (copy,) = exercises.hand_out([original], tmp_path / "class")
    assert stat.S_IMODE(copy.stat().st_mode) & stat.S_IWUSR
    assert "def solution_" in original.read_text(encoding="utf-8")


def test_a_handout_never_overwrites_answers(tmp_path):
    run("handout", tmp_path)
    (tmp_path / "01_data.ipynb").write_text("my work")
    assert "there already, perhaps with answers in it" in str(run("handout", tmp_path).exception)
    assert (tmp_path / "01_data.ipynb").read_text() == "my work"


# --- questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_quiz_has_five_questions_with_reasons(lesson):
    questions = asking.read_quiz(lesson)
    assert len(questions) == 5
    for item in questions:
        assert sum(option.get("right", False) for option in item["options"]) == 1
        assert len(item["options"]) >= 3 and all(
            len(option["why"]) > 20 for option in item["options"]
        )


def test_static_questions_are_text_without_answers(capsys, answers):
    asking.quiz("01", display="static")
    asking.predict("01.x", "How much?", ["a", "b"], "It is b.", display="static")
    out = capsys.readouterr().out
    assert "How much?" in out and "( ) b" in out and "It is b." not in out and not answers.exists()
    assert not any(
        option["why"] in out for item in asking.read_quiz("01") for option in item["options"]
    )


@pytest.fixture
def widgets(monkeypatch):
    made = []
    monkeypatch.setattr(asking.shown, "display", made.append)
    return made


def test_in_pages_answers_are_folded_away(widgets, answers):
    asking.predict("01.x", "a < b?", ["yes", "no"], "It is b.", display="html")
    assert "<p><b>a &lt; b?</b></p><ul><li>yes</li><li>no</li></ul>" in widgets[0].data
    assert widgets[0].data.endswith("<details><summary>Reveal</summary>It is b.</details>")
    asking.quiz("01", display="html")
    for page, item in zip(widgets[1:], asking.read_quiz("01"), strict=True):
        assert (
            page.data.count("<details><summary>") == len(item["options"])
            and page.data.count("✓ Right.") == 1
        )
    assert not answers.exists()


def test_a_prediction_is_stored_before_the_answer_is_shown(widgets, answers):
    asking.predict("01.x", "How much?", ["a", "b"], "It is b.")
    _, choice, buttons, line = widgets[0].children
    keep, reveal = buttons.children
    assert choice.value is None and keep.disabled and reveal.disabled and not answers.exists()
    choice.value = "a"
    keep.click()
    assert json.loads(answers.read_text())["prediction 01.x"]["answer"] == "a"
    assert choice.disabled and not reveal.disabled and "It is b." not in line.value
    reveal.click()
    assert line.value == "It is b."


def test_a_quiz_says_why(widgets, answers):
    asking.quiz("01")
    assert len(widgets) == 5
    for box, item in zip(widgets, asking.read_quiz("01"), strict=True):
        _, choice, button, line = box.children
        for index, option in enumerate(item["options"]):
            choice.index = index
            assert line.value == ""
            button.click()
            assert ("✓" in line.value) == option.get("right", False)
        tried = json.loads(answers.read_text())[f"quiz 01.{widgets.index(box) + 1}"]
        # a later wrong answer takes nothing away
        assert tried["solved"] and tried["tries"] == len(item["options"])


def test_a_lesson_without_a_quiz_says_so():
    with pytest.raises(ValueError, match=r"quiz_99.yaml is not there"):
        asking.quiz("99")
