"""Exercises: solutions pass, stubs are told how to begin, every classic mistake gets its own hints,
nothing is lost.
"""

import ast
import dataclasses
import html
import inspect
import json
import os
import random
import stat
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from deepatlas import exercises, lessons, places
from deepatlas.cli import app
from deepatlas.errors import UserError
from deepatlas.exercises import asking
from deepatlas.losses import soft_dice
from deepatlas.warp import Deformation, sample

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("answers")

LESSONS = exercises.lessons()
NAMES = [f"{lesson}.{task}" for lesson in LESSONS for task in exercises.exercises_of(lesson)]
MISTAKES = [(name, mistake) for name in NAMES for mistake in exercises.find(name).mistakes]


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


def again(function, number):
    """A function that does the same, and is written otherwise."""
    made = {"function": function}
    exec(f"def answer(*given):\n    number = {number}\n    return function(*given)", made)
    return made["answer"]


def test_hints_come_one_by_one(capsys):
    name, mistake = MISTAKES[0]
    wrong = exercises.find(name).mistakes[mistake]
    for number, shown in enumerate((1, 2, 3, 3)):
        exercises.check(name, again(wrong.made, number))
        out = unwrapped(capsys)
        assert [hint in out for hint in wrong.hints] == [n < shown for n in range(3)]
        assert ("one more hint" in out) == (shown < 3)


def test_an_unchanged_answer_is_no_new_try(capsys):
    name, mistake = MISTAKES[0]
    wrong = exercises.find(name).mistakes[mistake]
    for _ in range(3):
        exercises.check(name, again(wrong.made, 0))
        out = unwrapped(capsys)
        assert wrong.hints[0] in out and wrong.hints[1] not in out
    assert "does not count as a try" in out and exercises.read_answers()[name]["tries"] == 1
    exercises.check(name, again(wrong.made, 1))
    assert wrong.hints[1] in unwrapped(capsys)
    assert exercises.read_answers()[name]["tries"] == 2


def test_an_answer_that_names_other_data_or_holds_another_function_is_a_new_try():
    def answer(value, choose):
        def chosen(*_):
            return choose(FACTORS, value)

        return chosen

    FACTORS = [1.0, torch.zeros(2)]
    name = NAMES[0]
    for value, choose, tries in (
        (7.0, max, 1),
        (7.0, max, 1),
        (8.0, max, 2),
        (8.0, lambda a, b: b, 3),
        (8.0, lambda a, b: b, 3),
        (8.0, lambda a, b: 0 * b, 4),
    ):
        exercises.check(name, answer(value, choose))
        assert exercises.read_answers()[name]["tries"] == tries
    FACTORS[0] = 2.0  # the list of the closure itself
    exercises.check(name, answer(8.0, lambda a, b: 0 * b))
    assert exercises.read_answers()[name]["tries"] == 5
    FACTORS.append(FACTORS)  # which holds itself
    exercises.check(name, answer(8.0, lambda a, b: 0 * b))


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


# What a file of answers is not, and what is said of it.
DAMAGED = {
    "cut": ("[1, 2", "not valid JSON"),
    "a list": ("[1, 2]", "a dictionary of answers was wanted"),
    "no entry": ('{"01.dice": 1}', "'01.dice' is not told to be solved by true or false"),
    "not solved": ('{"01.dice": {"tries": 1}}', "is not told to be solved"),
    "yes": ('{"01.dice": {"solved": "yes", "tries": 1}}', "is not told to be solved"),
    "x tries": ('{"01.dice": {"solved": true, "tries": "x"}}', "no number of tries: 'x'"),
    "true tries": ('{"01.dice": {"solved": true, "tries": true}}', "no number of tries: True"),
    "null tries": ('{"01.dice": {"solved": true, "tries": null}}', "no number of tries: None"),
    "fewer than no tries": ('{"01.dice": {"solved": true, "tries": -1}}', "number of tries: -1"),
    "a list for a text": ('{"01.dice": {"solved": true, "answer": [1]}}', "a text was wanted"),
    "half a letter": ('{"01.dice": {"solved": true, "last": "\\ud800"}}', "half a letter"),
    "deep": ("[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_answers_stop_no_notebook_and_are_not_overwritten(kind, answers, capsys):
    text, problem = DAMAGED[kind]
    answers.write_text(text)
    exercises.check("01.dice", right("01.dice"))
    exercises.check("01.dice", lambda *_: 7)
    exercises.progress()
    asking.store("prediction 01.x", solved=True, answer="a")
    out = capsys.readouterr().out
    assert "✓ Dice of every structure: right" in out and "✗ Dice of every structure" in out
    assert out.count("(not kept: ") == 4 and str(answers) in out
    assert answers.read_text() == text
    with pytest.raises(UserError) as caught:
        exercises.read_answers()
    assert str(answers) in str(caught.value) and problem in str(caught.value)


def test_answers_without_tries_have_had_none(answers):
    answers.write_text('\ufeff{"01.dice": {"solved": true}}', encoding="utf-8")
    exercises.check("01.dice", lambda *_: 7)
    kept = exercises.read_answers()["01.dice"]
    assert kept["solved"] and kept["tries"] == 1


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
        (lambda x: x.detach() * x, "its gradient by x is not"),
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


@pytest.mark.parametrize("container", [list, tuple, lambda rows: [list(row) for row in rows]])
def test_single_tensors_in_a_row_keep_their_gradients(container):
    assert exercises.judge(squares(True), lambda x: container(x**2)).passed
    verdict = exercises.judge(squares(True), lambda x: container(x.detach() ** 2))
    assert "no gradient comes back" in verdict.problem


def only_one_learns(wrong):
    """An answer of which the value is right, and the gradients are ``wrong``."""
    exercise = exercises.Exercise(
        "products",
        lambda d, g: (torch.rand((3,) * d, generator=g), torch.rand(3, generator=g), 2),
        lambda learner, other, factor: factor * learner * other.detach(),
        ("a", "b", "c"),
        gradient=True,
    )
    return exercises.judge(exercise, wrong)


@pytest.mark.parametrize(
    "wrong, told",
    [
        (lambda a, b, n: n * a * b, "but a gradient flows into other, where nothing may learn"),
        (lambda a, b, n: (n * a * b).detach(), "but no gradient comes back to learner. On the way"),
        # as many gradients as there should be, of other shapes
        (
            lambda a, b, n: n * a.detach() * b,
            "but no gradient comes back to learner, and a gradient flows into other, where",
        ),
        (lambda a, b, n: n * (a.detach() + 2 * a - 2 * a.detach()) * b.detach(), "gradient by l"),
        (lambda a, b, n: a.requires_grad_(False) * b.detach() * n, "comes back to learner"),
    ],
)
def test_gradients_are_compared_argument_by_argument(wrong, told):
    problem = only_one_learns(wrong).problem
    assert problem.startswith("in 2D the value is right, but ") and told in problem


@pytest.mark.parametrize("lesson", LESSONS)
def test_an_oracle_calls_its_arguments_as_the_stub_does(lesson):
    """A problem names them."""
    for task, exercise in exercises.exercises_of(lesson).items():
        if not exercise.gradient:
            continue
        (source,) = [
            c.source for c in cells(lesson, "exercise") if f'"{lesson}.{task}"' in c.source
        ]
        called = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
        names = list(inspect.signature(exercise.right).parameters)
        assert [argument.arg for argument in called.args.args] == names


def test_a_row_of_numbers_and_tensors_without_axes_is_right():
    """As a loop over batches makes it: a tensor where a pair counts, else 0."""

    def with_a_loop(dice_loss, moving, fixed):
        found = []
        for losses, counts in zip(dice_loss, moving & fixed, strict=True):
            found.append(losses[counts].mean() if counts.any() else 0.0)
        return found

    assert exercises.judge(exercises.find("03.weak"), with_a_loop).passed


def test_a_wrong_value_tells_a_mistake_whatever_its_gradient():
    exercise = squares(True)
    exercise.mistake("cubes", symptom="1", idea="2", line="3")(lambda x: x**3)
    exercise.mistake("cut", symptom="4", idea="5", line="6")(lambda x: x.detach() * x)
    assert exercises.judge(exercise, lambda x: x.detach() ** 3).mistake == "cubes"
    assert exercises.judge(exercise, lambda x: x.detach() * x).mistake == "cut"
    # a right value tells nothing: neither "cut" nor anything else was made
    assert exercises.judge(exercise, lambda x: x.detach() ** 2).mistake is None


def test_errors_are_one_mistake_if_they_say_the_same():
    exercise = squares(False)
    exercise.mistake("shapes", symptom="1", idea="2", line="3")(lambda x: x + torch.ones(7))
    assert exercises.judge(exercise, lambda x: x * torch.ones(8)).mistake == "shapes"
    assert exercises.judge(exercise, lambda x: 1 / 0).mistake is None


# Tests that a student might write: right ones, and what is said of others.
TESTS = {
    "by hand": (lambda energy: hand_made(energy, assertion=True), ""),
    "that returns": (lambda energy: hand_made(energy, assertion=False), ""),
    "that accepts anything": (
        lambda energy: energy(torch.zeros(1, 2, 5, 6)) < 1,
        "your test lets a wrong energy pass: the energy of the exercise (and 10 more)",
    ),
    "that refuses anything": (
        lambda energy: energy(torch.zeros(1, 2, 5, 6)) > 1,
        "your test refuses a right energy: the energy of the module",
    ),
    "that stops": (lambda energy: energy(torch.zeros(5)), "it stops with"),
}


def hand_made(energy, assertion):
    """One field for each kind of derivative, in each component, one that bends along both axes, and
    one that bends forth and back.
    """
    i, j = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    right = True
    fields = [(i**2 / 2, 1.0), (j**2 / 2, 1.0), (i * j, 2.0), ((i**2 + j**2) / 2, 2.0)]
    for bent, cost in [*fields, ((j - 2) ** 3 / 6, (1 + 0 + 1) / 3)]:
        for u in ([bent, 0 * i], [0 * i, bent]):
            right = right and abs(energy(torch.stack(u)[None]).item() - cost) < 1e-3
    if not assertion:
        return right
    assert right
    return None


@pytest.mark.parametrize("kind", TESTS)
def test_a_test_is_tried_on_right_and_wrong_energies(kind):
    test, problem = TESTS[kind]
    verdict = exercises.judge(exercises.find("04.test_bending"), test)
    assert verdict.passed == (not problem) and problem in verdict.problem


def quadratic(energy, across):
    """A test of one field, whose second derivatives are the same at all voxels."""
    i, j = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    u_0 = 0.03 * i**2 / 2 + across * j**2 / 2 + 0.02 * i * j
    u_1 = 0.05 * j**2 / 2 + across * i**2 / 2 + 0.01 * i * j
    cost = 0.03**2 + 0.05**2 + 2 * across**2 + 2 * (0.02**2 + 0.01**2)
    assert abs(energy(torch.stack([u_0, u_1])[None]).item() - cost) < 0.01 * cost


@pytest.mark.parametrize(
    "across, mistake, told",
    [
        (0.0, "one axis for each component", "one adds the derivatives along i and j"),
        (0.07, "one field that bends evenly", "an energy pass that squares the mean"),
    ],
)
def test_a_test_of_one_quadratic_field_is_told_what_it_lets_through(across, mistake, told):
    exercise = exercises.find("04.test_bending")
    verdict = exercises.judge(exercise, lambda energy: quadratic(energy, across))
    assert not verdict.passed and verdict.mistake == mistake and told in verdict.hints[0]


def test_a_test_that_looks_at_nothing_is_not_written_yet():
    assert exercises.judge(exercises.find("04.test_bending"), lambda energy: True).unfinished


def test_an_answer_cannot_change_what_it_is_compared_with():
    def vandal(x):
        x.zero_()
        return x**2

    assert not exercises.judge(squares(False), vandal).passed


# --- answers that nobody expects ------------------------------------------------------------------


def changed(x):
    """An answer that changes whatever is everybody's, and is right."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    np.seterr(all="raise")
    warnings.simplefilter("error")
    return x**2


def test_what_an_answer_sets_for_everybody_is_set_back():
    def settings():
        return (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            np.geterr(),
            list(warnings.filters),
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
        )

    before = settings()
    assert exercises.judge(squares(False), changed).passed
    assert "no gradient comes back" in exercises.judge(squares(True), changed).problem
    assert settings() == before


def test_what_an_earlier_cell_has_set_changes_no_verdict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        try:
            for name in NAMES:
                assert exercises.judge(exercises.find(name), right(name), 0).passed
            verdict = exercises.judge(squares(True), lambda x: x.detach() ** 2)
            assert "no gradient comes back" in verdict.problem
        finally:
            torch.set_grad_enabled(True)
            torch.set_default_dtype(torch.float32)


def test_whoever_presses_stop_is_obeyed():
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercises.judge(squares(False), interrupted)


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, MemoryError, RecursionError])
def test_no_error_of_an_answer_stops_a_notebook(error):
    def stopping(_):
        raise error("enough")

    verdict = exercises.judge(squares(False), stopping)
    assert f"it stops with {error.__name__}: enough" in verdict.problem


class Resisting:
    """Nobody may look at it."""

    def __repr__(self):
        raise SystemExit("no")

    __str__ = __len__ = __iter__ = __eq__ = __bool__ = __repr__
    __hash__ = None


@pytest.mark.parametrize("value", [Resisting(), [Resisting()], {"a": Resisting()}])
def test_an_object_that_resists_is_wrong(value):
    assert "was wanted, got" in exercises.judge(squares(False), lambda _: value).problem


def test_what_is_told_of_an_answer_is_short_and_steers_no_terminal():
    def loud(_):
        raise ValueError("\x1b[2J" + "x" * 10**6)

    problem = exercises.judge(squares(False), loud).problem
    assert len(problem) < 600 and "\x1b" not in problem and "\\x1b[2J" in problem


def half(as_what):
    """An exercise whose right answer is a number, and its half as something else."""

    def arguments(dims, generator):
        return (float(torch.rand((), generator=generator)),)

    halves = exercises.Exercise("halves", arguments, lambda x: x / 2, ("a", "b", "c"), dims=(2,))
    return exercises.judge(halves, lambda x: as_what(x / 2))


@pytest.mark.parametrize(
    "number",
    [
        float,
        Fraction,
        Decimal,
        np.float64,
        np.array,
        torch.tensor,
        torch.nn.Parameter,
        np.longdouble,
    ],
)
def test_a_number_of_any_kind_is_a_number(number):
    as_what = number if number is not torch.nn.Parameter else lambda x: number(torch.tensor(x))
    assert half(as_what).passed


@pytest.mark.parametrize("wrong", [str, complex, np.complex128, np.datetime64, lambda x: [x]])
def test_what_is_no_number_is_wrong(wrong):
    assert not half(wrong).passed


@pytest.mark.parametrize("row", [list, tuple, np.array, torch.stack])
def test_a_row_of_numbers_of_any_kind_is_a_row(row):
    """Numbers of NumPy and of PyTorch in a list, too."""
    wanted = exercises.find("01.dice")
    verdict = exercises.judge(wanted, lambda *given: row(list(wanted.right(*given))))
    assert verdict.passed


# Answers that look at nothing, or at one thing only.
TRIVIAL = {
    "0": lambda *_: 0,
    "1": lambda *_: 1,
    "2": lambda *_: 2,
    "half": lambda *_: 0.5,
    "True": lambda *_: True,
    "nan": lambda *_: float("nan"),
    "the first": lambda *given: given[0],
    "the second": lambda *given: given[1],
    "the last": lambda *given: given[-1],
    "zeros": lambda *given: torch.zeros_like(given[0]),
    "ones": lambda *given: torch.ones_like(given[0]),
    "sorted": lambda *given: np.sort(given[0]),
    "minus": lambda *given: -given[0],
    "the sum": lambda *given: given[0].sum(),
    "the mean": lambda *given: given[0].mean(),
    "the first row": lambda *given: given[0][0],
    "the place of the largest": lambda *given: given[0].argmax(),
    "the largest of rows": lambda *given: given[0].argmax(1),
    "the smallest of rows": lambda *given: given[0].argmin(1),
    "nobody is tested": lambda *_: {"train": list(range(16)), "test": []},
}


@pytest.mark.parametrize("name", NAMES)
def test_no_trivial_answer_is_right(name):
    """`return 1` was, on 6 of 20 seeds."""
    exercise = dataclasses.replace(exercises.find(name))  # without mistakes: they take time
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        cases = [
            case
            for dims in exercise.dims
            for case in exercises._two_cases(exercise, dims, generator)
        ]
        for answer, function in TRIVIAL.items():
            verdicts = (exercises._judge(exercise, function, *case, "") for case in cases)
            assert not all(verdict.passed for verdict in verdicts), (answer, seed)


@pytest.mark.parametrize("name", NAMES)
def test_no_constant_is_right(name):
    """Even one that is right for the arguments drawn first."""
    exercise = dataclasses.replace(exercises.find(name))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        arguments = exercise.arguments(exercise.dims[0], generator)
        used = exercise.used or (lambda right, *given: right(*given))
        constant = used(exercise.right, *arguments)
        assert not exercises.judge(exercise, lambda *_, value=constant: value, seed).passed


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


def run_cells(*sources):
    """One after the other, each compiled by itself, as a kernel does."""
    names = {}
    for source in sources:
        exec(source, names)


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
    """As "run all" does, three times: solutions are right, stubs are unfinished or show a symptom
    and nothing else, and nothing counts as a try.
    """
    imported = imports(lesson)
    for tag, wanted in (("solution", "✓"), ("exercise", "…✗")) * 3:
        for cell in cells(lesson, tag):
            run_cells(imported, cell.source)
            out = capsys.readouterr().out
            assert out[0] in wanted, cell.source
            assert not any(f"  {level}: " in out for level in exercises.LEVELS[1:]), out
    for entry in exercises.read_answers().values():
        assert not entry["solved"] and entry["tries"] == 0


def test_a_planted_bug_that_was_changed_is_a_try(capsys, answers):
    (cell,) = [cell for cell in cells("03", "exercise") if '"03.fit"' in cell.source]
    for change, tries in (("5", 0), ("int(5)", 1), ("int(5)", 1), ("round(5)", 2)):
        source = cell.source.replace("range(5)", f"range({change})")
        run_cells(imports("03"), source + "  # a comment is no change")
        assert exercises.read_answers()["03.fit"]["tries"] == tries
    assert "the idea: loss.backward() ADDS" in unwrapped(capsys)


def test_the_planted_energy_is_sixteen_times_too_large():
    """The one that lesson 04 shows, and the one that its checker tries a test on."""
    (cell,) = [cell for cell in all_cells("04") if "def published_bending" in cell.source]
    names = {}
    exec(cell.source.partition("\n\n\n")[0], names)
    tried = exercises.find("04.test_bending").arguments(2, None)[0]
    i, j = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    twisted = torch.stack([0.01 * i * j, 0 * i])[None]
    cost = tried["the energy of the module"](twisted)
    assert cost.item() == pytest.approx(2 * 0.01**2, rel=1e-3)
    for planted in (names["published_bending"], tried["the energy of the exercise"]):
        assert planted(twisted).item() == pytest.approx(16 * cost.item(), rel=1e-3)


def test_a_lesson_that_somebody_is_changing_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exercises, "NOTEBOOKS", tmp_path)
    for text in ("[", "{}", '{"cells": [1]}', '{"cells": [{"source": "(", "metadata": {}}]}'):
        (tmp_path / "03_x.ipynb").write_text(text)
        exercises.check("03.fit", exercises.find("03.fit").mistakes["uphill"].made)
        assert "The loss rises." in capsys.readouterr().out


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


@pytest.mark.parametrize("link", ["itself", "a symbolic link", "a hard link", "another way"])
def test_a_table_never_replaces_answers(tmp_path, link):
    student = tmp_path / "ada.json"
    student.write_text('{"01.dice": {"solved": true, "tries": 2}}')
    to = {"itself": student, "another way": tmp_path / "x" / ".." / "ada.json"}.get(link)
    (tmp_path / "x").mkdir()
    if to is None:
        to = tmp_path / "class.csv"
        if link == "a hard link":
            os.link(student, to)
        else:
            to.symlink_to(student)
    done = run("collect", student, "--to", to)
    assert isinstance(done.exception, UserError) and "are answers of a student" in str(
        done.exception
    )
    assert "01.dice" in student.read_text() and "01.dice" in to.read_text()


def test_a_table_replaces_a_table_and_nothing_else(tmp_path):
    student, to = tmp_path / "ada.json", tmp_path / "class.csv"
    student.write_text("{}")
    assert run("collect", student, "--to", to).exit_code == 0
    assert pd.read_csv(to).empty
    student.write_text('{"01.dice": {"solved": true, "tries": 2}}')
    assert run("collect", student, "--to", to).exit_code == 0
    assert len(pd.read_csv(to)) == 1
    to.write_text("my notes")
    done = run("collect", student, "--to", to)
    assert "is no table of answers: name another file" in str(done.exception)
    assert to.read_text() == "my notes"
    assert "is a folder" in str(run("collect", student, "--to", tmp_path).exception)


def test_no_spreadsheet_computes_what_a_student_wrote(tmp_path):
    written = ["=HYPERLINK(1)", "+1+1", "-2", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "a, b\n=1"]
    known = {
        f"{text} {place}": {"solved": True, "answer": text} for place, text in enumerate(written)
    }
    student = tmp_path / "=1+\x1b[2J.json"
    student.write_text(json.dumps(known))
    assert run("collect", student, "--to", tmp_path / "class.csv").exit_code == 0
    table = pd.read_csv(tmp_path / "class.csv", keep_default_na=False)
    assert set(table["student"]) == {"'=1+\\x1b[2J"}
    kept = table["answer"].tolist()
    assert kept[0] == "'=HYPERLINK(1)" and kept[-1] == "a, b\n'=1"
    for column in ("student", "item", "answer"):
        for text in table[column]:
            assert text[0] not in "=+-@\t\r ＝" and "\x1b" not in text and "\r" not in text


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_answers_of_a_student_are_one_sentence(kind, tmp_path):
    text, problem = DAMAGED[kind]
    student = tmp_path / "ada.json"
    student.write_text(text)
    done = run("collect", student, "--to", tmp_path / "class.csv")
    assert isinstance(done.exception, UserError) and problem in str(done.exception)
    assert str(student) in str(done.exception) and not (tmp_path / "class.csv").exists()


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


@pytest.mark.parametrize(("start", "repetitions"), [(-1, 30), (0, 30), (-1, 31), (-1, 60), (1, 40)])
def test_an_inverse_is_right_from_any_start(start, repetitions):
    def invert(u):
        w = start * u
        for _ in range(repetitions):
            w = -sample(u, Deformation(w).points)
        return w

    inverse = exercises.find("02.inverse")
    assert all(exercises.judge(inverse, invert, seed).passed for seed in range(20))


def test_a_translation_may_be_found_by_another_optimiser():
    def by_adam(moving, fixed, rate):
        dims = moving.ndim - 2
        t = torch.zeros(dims, requires_grad=True)
        optimiser = torch.optim.Adam([t], lr=0.1)
        for _ in range(150):
            u = t.view(1, dims, *[1] * dims).expand(1, dims, *moving.shape[2:])
            loss = (Deformation(u).warp(moving) - fixed).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return t.tolist()

    assert all(exercises.judge(exercises.find("03.translation"), by_adam, s).passed for s in (0, 1))


@pytest.mark.parametrize("unit", ["mm", "voxels"])
def test_folds_may_be_counted_in_either_unit(unit):
    def folds(u, spacing):
        sides = spacing.tolist()
        if unit == "voxels":
            u, sides = u / spacing.view(1, 3, 1, 1, 1), [1.0, 1.0, 1.0]
        slopes = torch.gradient(u[0], spacing=sides, dim=(1, 2, 3))
        matrix = torch.stack(slopes, 1).movedim((0, 1), (-2, -1))[1:-1, 1:-1, 1:-1]
        count = (torch.linalg.det(matrix + torch.eye(3)) <= 0).sum().item()
        return 100 * count / matrix[..., 0, 0].numel()

    assert all(exercises.judge(exercises.find("02.folds"), folds, s).passed for s in range(20))


def descent(move, *, expanded=True):
    """Gradient descent on a translation as a student writes it: ``move`` takes a step."""

    def translation(moving, fixed, rate):
        dims = moving.ndim - 2
        t = torch.zeros(dims, requires_grad=True)
        for _ in range(20):
            u = t.view(1, dims, *[1] * dims)
            u = u.expand(1, dims, *moving.shape[2:]) if expanded else u
            (Deformation(u).warp(moving) - fixed).square().mean().backward()
            t = move(t, rate)
        return t.detach()

    return translation


def in_place(t, rate):
    with torch.no_grad():
        t -= rate * t.grad
    t.grad = None
    return t


def of_constants(t, rate):
    with torch.no_grad():
        return t - rate * t.grad


def with_a_new_leaf(t, rate):
    return (t - rate * t.grad).detach().requires_grad_()


@pytest.mark.parametrize(
    "answer, mistake, told",
    [
        (descent(in_place, expanded=False), "never moved", "a grid of ONE voxel"),
        (
            descent(lambda t, rate: t - rate * t.grad),
            "a result instead of the leaf",
            "makes a NEW tensor",
        ),
        (descent(of_constants), "a constant instead of the leaf", "makes a NEW tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_lost_leaf_and_a_lost_grid_are_told_apart(answer, mistake, told):
    verdict = exercises.judge(exercises.find("03.translation"), answer)
    assert verdict.mistake == mistake and told in verdict.hints[1]


@pytest.mark.parametrize("move", [in_place, with_a_new_leaf])
def test_a_leaf_may_be_changed_or_made_anew(move):
    assert exercises.judge(exercises.find("03.translation"), descent(move)).passed


def turns_by_backward(erase):
    """The turns of lesson 05 with ``backward``; ``erase`` says whose gradients after a turn."""

    def in_turns(seg, reg, turns, loss):
        both = [seg.clone().requires_grad_(), reg.clone().requires_grad_()]
        for turn in turns:
            loss(*both).backward()
            with torch.no_grad():
                both[turn] -= 0.1 * both[turn].grad
            for erased in erase(turn):
                both[erased].grad = None
        return torch.stack(both).detach()

    return in_turns


@pytest.mark.parametrize(
    "erase, mistake",
    [
        (lambda turn: (0, 1), None),
        (lambda turn: (), "gradients add up"),
        (lambda turn: (turn,), "the partner's gradient is kept"),
    ],
)
def test_turns_by_backward_must_erase_both_gradients(erase, mistake):
    verdict = exercises.judge(exercises.find("05.step"), turns_by_backward(erase))
    assert verdict.passed == (mistake is None) and verdict.mistake == mistake


def test_whose_turn_it_is_may_be_found_by_taking_turns():
    """Whoever lays out all turns at once, and counts on from those taken, is right."""

    def next_turn(taken, planned, joins):
        found = []
        for row in range(len(taken)):
            line = [
                ((joins[row, n] + (1 - joins[row, n]) * (k + 0.5) / planned[row, n]).item(), n)
                for n in range(taken.shape[1])
                for k in range(int(taken[row, n]), int(planned[row, n]))
            ]
            found.append(min(line)[1])
        return found

    assert all(exercises.judge(exercises.find("05.turn"), next_turn, s).passed for s in range(5))


@pytest.mark.parametrize(
    "choose",
    [
        lambda likeness, labelled: likeness[labelled],
        lambda likeness, labelled: likeness[:, labelled],
        lambda likeness, labelled: likeness[labelled] + likeness[:, labelled],
        lambda likeness, labelled: likeness[:, labelled] - np.nanmean(likeness, axis=1),
    ],
    ids=["as fixed", "as moving", "both", "and like the others"],
)
def test_the_scan_least_like_the_labelled_one_is_the_odd_one(choose):
    def second(likeness, labelled):
        return int(np.nanargmin(choose(likeness, labelled)))

    exercise = exercises.find("06.second")
    verdicts = {exercises.judge(exercise, second, seed).mistake for seed in range(40)}
    assert verdicts == {"the furthest"}


@pytest.mark.parametrize("seed", range(5))
def test_a_vote_must_hold_for_a_huge_beta(seed):
    def vote(holds):
        def local_vote(probabilities, likeness, beta):
            weights = (beta * (likeness - likeness.amax(0) if holds else likeness)).exp()
            return (weights[:, None] * probabilities).sum(0) / weights.sum(0)

        return local_vote

    exercise = exercises.find("06.local")
    assert exercises.judge(exercise, vote(holds=True), seed).passed
    assert exercises.judge(exercise, vote(holds=False), seed).mistake == "too large for a float"


def anatomy_by_flags(u, known, one_hot, guess):
    """One answer for each side of a batch."""
    guess = guess.detach()
    moving, fixed = (one_hot[side] if known[side].all() else guess[side] for side in (0, 1))
    return soft_dice(Deformation(u).warp(moving), fixed)


def anatomy_of_what(u, known, one_hot, guess):
    known = known.view(2, -1, *[1] * (guess.ndim - 2))
    moving, fixed = torch.where(known, one_hot, guess)
    return soft_dice(Deformation(u).warp(moving), fixed)


def anatomy_unwatched(*given):
    with torch.no_grad():
        return anatomy_of_what(*given)


@pytest.mark.parametrize(
    "answer, mistake, told",
    [
        (anatomy_by_flags, "for the batch, not for each scan", "was wanted"),
        (anatomy_unwatched, "nobody learns", "no gradient comes back to u. On the way from u to"),
        (
            lambda u, *given: anatomy_of_what(u.detach(), *given),
            "the wrong one detached",
            "no gradient comes back to u, and a gradient flows into guess, where",
        ),
        (anatomy_of_what, "guess not detached", "a gradient flows into guess, where"),
    ],
)
def test_of_an_anatomy_term_it_is_said_who_learns(answer, mistake, told):
    verdict = exercises.judge(exercises.find("04.guess"), answer)
    assert verdict.mistake == mistake and told in verdict.problem


def test_labels_that_nobody_learns_may_pass_through_no_grad():
    def anatomy(u, known, one_hot, guess):
        with torch.no_grad():
            known = known.view(2, -1, *[1] * (guess.ndim - 2))
            moving, fixed = torch.where(known, one_hot, guess)
        return soft_dice(Deformation(u).warp(moving), fixed)

    assert all(exercises.judge(exercises.find("04.guess"), anatomy, seed).passed for seed in (0, 1))


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


def test_static_questions_have_their_answers_below(capsys, answers):
    asking.quiz("01", display="static")
    asking.predict("01.x", "How much?", ["a", "b"], "It is b.", display="static")
    out = capsys.readouterr().out
    assert "How much?\n  ( ) a\n  ( ) b\n\nFor after your guess: It is b." in out
    questions, below = out.split("\nAnswers:\n")
    content = asking.read_quiz("01")
    for item in content["questions"]:
        for option in item["options"]:
            assert option["why"] not in questions
            assert (option["why"] in below) == option.get("right", False)
    assert all(f"  - {task}\n" in below for task in content["colleague"]) and not answers.exists()


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
    content = asking.read_quiz("01")
    *pages, last = widgets[1:]
    for page, item in zip(pages, content["questions"], strict=True):
        assert (
            page.data.count("<details><summary>") == len(item["options"])
            and page.data.count("✓ Right.") == 1
        )
    assert last.data.count("<li>") == len(content["colleague"]) and "<details>" not in last.data
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
    content = asking.read_quiz("01")
    last = widgets.pop()
    assert all(html.escape(task) in last.data for task in content["colleague"])
    for box, item in zip(widgets, content["questions"], strict=True):
        _, choice, button, line = box.children
        for index, option in enumerate(item["options"]):
            choice.index = index
            assert line.value == ""
            button.click()
            assert ("✓" in line.value) == option.get("right", False)
        tried = json.loads(answers.read_text())[f"quiz 01.{widgets.index(box) + 1}"]
        # a later wrong answer takes nothing away
        assert tried["solved"] and tried["tries"] == len(item["options"])
