"""Exercises that answer back: checkers that know the classic mistakes, hints in three levels,
progress.

``check`` runs a student's function on fresh random input beside an oracle, in 2D and 3D, and
compares what comes out and, where asked, the gradients. A wrong answer is compared with what each
classic mistake would have given, so that the hints speak of that mistake: first the symptom, at the
next try the concept, then the line. No answer stops a notebook.

One file of exercises a lesson (``lesson_01.py``), one of questions (``quiz_01.yaml``). To add an
exercise, write it into the file of its lesson and add a row to that file's ``EXERCISES``; the
lesson has a cell with the stub and one with a solution. To add a lesson, add its file: whatever
lists lessons looks which files there are.
"""

from __future__ import annotations

import importlib
import json
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import write_json
from ..errors import UserError
from ..places import answers_file

HERE = Path(__file__).resolve().parent
LEVELS = ("what you see", "the idea", "the line")


@dataclass(frozen=True)
class Mistake:
    """A classic mistake: a function that makes it, and hints that name symptom, idea and line."""

    made: Callable
    hints: tuple[str, str, str]


@dataclass(frozen=True)
class Exercise:
    """A function to write or to mend, an oracle, and the mistakes that are usually made."""

    title: str
    # (dims, generator) -> what the function is called with
    arguments: Callable[[int, torch.Generator], tuple]
    right: Callable
    hints: tuple[str, str, str]  # for a mistake that nobody has made before
    gradient: bool = False  # must the gradients by the tensors given agree, too?
    dims: Sequence[int] = (2, 3)
    tolerance: float = 1e-4
    mistakes: dict[str, Mistake] = field(default_factory=dict, init=False)

    def mistake(self, name: str, *, symptom: str, idea: str, line: str) -> Callable:
        """A decorator: the function below it makes the classic mistake ``name``."""

        def add(made: Callable) -> Callable:
            self.mistakes[name] = Mistake(made, (symptom, idea, line))
            return made

        return add


def find(name: str) -> Exercise:
    """The exercise "<lesson>.<task>", as in "01.dice"; UserError with the names there are."""
    lesson = name.partition(".")[0]
    known = {f"{lesson}.{task}": exercise for task, exercise in exercises_of(lesson).items()}
    if name not in known:
        raise UserError(
            f"there is no exercise {name!r}: lesson {lesson} has {', '.join(known) or 'none'}"
        )
    return known[name]


def lessons() -> list[str]:
    """The lessons that have exercises, as "01"."""
    return sorted(path.stem.removeprefix("lesson_") for path in HERE.glob("lesson_*.py"))


def exercises_of(lesson: str) -> dict[str, Exercise]:
    """{task: exercise} of a lesson, in its order."""
    if lesson not in lessons():
        raise UserError(
            f"there is no lesson {lesson!r} with exercises: choose from {', '.join(lessons())}"
        )
    return importlib.import_module(f"{__name__}.lesson_{lesson}").EXERCISES


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """NumPy's random numbers, begun by one of PyTorch's: for ``Exercise.arguments``."""
    return np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))


# --- checking -------------------------------------------------------------------------------------


def check(name: str, function: Callable, *, record: bool = True) -> None:
    """Try ``function`` as the answer to exercise ``name`` and print the verdict; no answer stops
    the notebook.

    Without ``record``, progress stays as it is: for the solution that a lesson brings along.
    """
    exercise = find(name)
    verdict = judge(exercise, function)
    tries = _count(name, verdict) if record else 0
    if verdict.passed:
        everywhere = ", in 2D and 3D" if len(exercise.dims) > 1 else ""
        print(f"✓ {exercise.title}: right{everywhere}.")
    elif verdict.unfinished:
        _say(f"… {exercise.title}: not written yet. To begin with: {exercise.hints[0]}")
    else:
        _say(f"✗ {exercise.title}: {verdict.problem}.")
        levels = LEVELS if verdict.mistake else ("to begin with", *LEVELS[1:])
        for number in range(min(max(tries, 1), len(levels))):
            _say(f"  {levels[number]}: {verdict.hints[number]}")
        if tries < len(LEVELS):
            print("  Change it and check again: there is one more hint at the next try.")


def _say(text: str) -> None:
    """Print, broken between words: a page would break a long line anywhere."""
    print(textwrap.fill(text, 100, subsequent_indent="    ", break_long_words=False))


@dataclass(frozen=True)
class Verdict:
    """What became of an answer: passed, unfinished, or a problem with its hints; ``mistake`` if it
    is a classic one.
    """

    passed: bool = False
    unfinished: bool = False
    problem: str = ""
    hints: tuple[str, str, str] = ("", "", "")
    mistake: str | None = None


def judge(exercise: Exercise, function: Callable, seed: int | None = None) -> Verdict:
    """Try ``function`` on fresh random input (drawn by ``seed``, if given) in every dimension of
    ``exercise``.
    """
    for dims in exercise.dims:
        generator = torch.Generator()
        generator.manual_seed(generator.seed() if seed is None else seed)
        arguments = exercise.arguments(dims, generator)
        verdict = _judge(exercise, function, arguments, f"in {dims}D ")
        if not verdict.passed:
            return verdict
    return Verdict(passed=True)


def _judge(exercise: Exercise, function: Callable, arguments: tuple, where: str) -> Verdict:
    wanted = _outcome(exercise, exercise.right, arguments)
    try:
        got = _outcome(exercise, function, arguments)
    except Exception as error:  # whatever a student's code raises is an answer
        # PyTorch's own come with a text
        if isinstance(error, NotImplementedError) and not str(error):
            return Verdict(unfinished=True)
        got = None
        problem = f"it stops with {type(error).__name__}: {error}"
    else:
        if got.value is None or got.value is Ellipsis:
            return Verdict(unfinished=True)
        problem = _difference(got, wanted, exercise.tolerance)
    if not problem:
        return Verdict(passed=True)
    if len(exercise.dims) > 1:
        problem = where + problem
    for name, mistake in exercise.mistakes.items():
        if _makes(mistake, exercise, arguments, got):
            return Verdict(problem=problem, hints=mistake.hints, mistake=name)
    return Verdict(problem=problem, hints=exercise.hints)


def _makes(mistake: Mistake, exercise: Exercise, arguments: tuple, got: _Outcome | None) -> bool:
    """Does this mistake give what the answer gave (None: an error)?"""
    try:
        made = _outcome(exercise, mistake.made, arguments)
    except Exception:  # a mistake may stop, as the answer may
        return got is None
    return got is not None and not _difference(got, made, exercise.tolerance)


@dataclass(frozen=True)
class _Outcome:
    """What a function returned, and the gradients by its tensors, those that there are."""

    value: object
    gradients: Sequence[Tensor] = ()


def _outcome(exercise: Exercise, function: Callable, arguments: tuple) -> _Outcome:
    """Of copies of the arguments, so that nobody can change them."""
    copies = [_copy(argument, exercise.gradient) for argument in arguments]
    value = function(*copies)
    if not (exercise.gradient and isinstance(value, Tensor) and value.requires_grad):
        return _Outcome(value)
    inputs = [copy for copy in copies if isinstance(copy, Tensor) and copy.requires_grad]
    # a weighted sum, so that every entry of the value has its own say
    weight = torch.linspace(0.5, 1.5, value.numel()).view(value.shape)
    gradients = torch.autograd.grad((value * weight).sum(), inputs, allow_unused=True)
    return _Outcome(value, [gradient for gradient in gradients if gradient is not None])


def _copy(argument: object, gradient: bool) -> object:
    if isinstance(argument, Tensor):
        return argument.clone().requires_grad_(gradient and argument.is_floating_point())
    if isinstance(argument, np.ndarray):
        return argument.copy()
    return argument


def _difference(got: _Outcome, wanted: _Outcome, tolerance: float) -> str:
    """What distinguishes two outcomes, in words; empty if nothing does."""
    if isinstance(wanted.value, Mapping):
        return _difference_of_tables(got.value, wanted.value, tolerance)
    return _difference_of_values(got.value, wanted.value, tolerance) or _difference_of_gradients(
        got.gradients, wanted.gradients, tolerance
    )


def _difference_of_tables(value: object, right: Mapping, tolerance: float) -> str:
    if not isinstance(value, Mapping) or value.keys() != right.keys():
        return f"a dictionary with the keys {list(right)} was wanted, got {_brief(value)}"
    for key in right:
        if text := _difference_of_values(value[key], right[key], tolerance):
            return f"at {key!r} {text}"
    return ""


def _difference_of_values(value: object, right: object, tolerance: float) -> str:
    a, b = _array(value), _array(right)
    if a is None or b is None:  # not numbers
        same = a is None and b is None and value == right
        return "" if same else f"{_brief(right)} was wanted, got {_brief(value)}"
    if a.shape != b.shape:
        return f"the shape {b.shape} was wanted, got {a.shape}"
    close = np.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    if close.all():
        return ""
    first = tuple(int(i) for i in np.argwhere(~close)[0])
    where = f" at {first}" if first else ""
    return f"{b[first]:.4g} was wanted{where}, got {a[first]:.4g}"


def _difference_of_gradients(
    got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float
) -> str:
    if len(got) < len(wanted):
        return (
            "the value is right, but no gradient comes back: stay in PyTorch, without .item(), "
            ".numpy() or .detach()"
        )
    if len(got) > len(wanted):
        return "the value is right, but a gradient flows where nothing may learn"
    allowed = 10 * tolerance
    for mine, theirs in zip(got, wanted, strict=True):
        if not torch.allclose(mine, theirs, rtol=allowed, atol=allowed, equal_nan=True):
            return "the value is right, but its gradient is not"
    return ""


def _array(value: object) -> np.ndarray | None:
    """Any sensible container of numbers; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    if not (isinstance(value, int | float | np.ndarray | np.generic) or _is_row(value)):
        return None
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):  # an array of names
        return None


def _is_row(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(isinstance(x, int | float) for x in value)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


# --- what has been answered -----------------------------------------------------------------------


def read_answers(path: Path | None = None) -> dict[str, dict]:
    """{exercise or question: what is known of it}; UserError if the file is damaged."""
    path = path or answers_file()
    if not path.is_file():
        return {}
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry, dict) and "solved" in entry for entry in answers.values()):
            raise ValueError("entries without 'solved'")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not a file of answers ({error}): move it away to begin anew"
        ) from error
    return answers


def _entry(answers: Mapping[str, dict], name: str) -> dict:
    return answers.get(name, {"solved": False, "tries": 0})


def store(name: str, **what: object) -> dict:
    """Update the entry of an exercise or a question, and the file; returns the entry."""
    answers = read_answers()
    entry = _entry(answers, name) | what
    entry["when"] = time.strftime("%Y-%m-%d %H:%M:%S")
    answers[name] = entry
    try:
        write_json(answers, answers_file())
    except OSError as error:
        print(f"(not kept: {error}. Let DEEPATLAS_ANSWERS name a file that can be written.)")
    return entry


def count_try(name: str, right: bool, **what: object) -> int:
    """Store a try and return how many there were; what was solved once stays solved."""
    entry = _entry(read_answers(), name)
    solved = entry["solved"] or right
    return store(name, solved=solved, tries=entry["tries"] + 1, **what)["tries"]


def _count(name: str, verdict: Verdict) -> int:
    """Tries so far; nothing written is none."""
    if verdict.unfinished:
        return _entry(read_answers(), name)["tries"]
    if verdict.passed:
        return count_try(name, True, last="")
    return count_try(name, False, last=verdict.mistake or "other")


def progress() -> None:
    """Print what is solved, lesson by lesson, and where the answers are kept."""
    answers = read_answers()
    for lesson in lessons():
        solved = [_entry(answers, f"{lesson}.{task}")["solved"] for task in exercises_of(lesson)]
        boxes = "".join("■" if done else "□" for done in solved)
        print(f"lesson {lesson}: {sum(solved)} of {len(solved)} exercises [{boxes}]")
    print(f"kept in {answers_file()}")


# --- for teachers ---------------------------------------------------------------------------------


def collect_answers(files: Sequence[Path]) -> list[dict]:
    """One row per student (the name of the file) and exercise, prediction or question: solved,
    tries, answer, when.

    UserError if two files have one name.
    """
    names = Counter(Path(file).stem for file in files)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(
            f"several files are named {', '.join(twice)}.json: name each after its student"
        )
    rows = []
    for file in files:
        for name, entry in read_answers(Path(file)).items():
            row = {"student": Path(file).stem, "item": name}
            for key in ("solved", "tries", "last", "answer", "when"):
                row[key] = entry.get(key, "")
            rows.append(row)
    return rows


def hand_out(notebooks: Sequence[Path], folder: Path) -> list[Path]:
    """Copies of ``notebooks`` without their solutions in ``folder``; FileExistsError rather than
    replace one there.

    The originals are only read, so they may be those of an installed package.
    """
    copies = [folder / notebook.name for notebook in notebooks]
    if there := [copy.name for copy in copies if copy.exists()]:
        raise FileExistsError(
            f"{folder}: {', '.join(there)} is there already, perhaps with answers in it: "
            "choose another folder"
        )
    for notebook, copy in zip(notebooks, copies, strict=True):
        content = json.loads(notebook.read_text(encoding="utf-8"))
        content["cells"] = [cell for cell in content["cells"] if not _is_solution(cell)]
        write_json(content, copy)
    return copies


def _is_solution(cell: Mapping) -> bool:
    return "solution" in cell["metadata"].get("tags", [])
