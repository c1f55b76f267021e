"""Exercises that answer back: checkers that know the classic mistakes, hints in three levels,
progress.

``check`` runs a student's function on fresh random input beside an oracle, in 2D and 3D, and
compares what comes out and, where asked, the gradients. A wrong answer is compared with what each
classic mistake would have given, so that the hints speak of that mistake: first the symptom, at the
next try the concept, then the line. No answer stops a notebook. One file of exercises a lesson
(``lesson_01.py``), one of questions (``quiz_01.yaml``).
"""

from __future__ import annotations

import importlib
import json
import os
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import write_atomically

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
    mistakes: Mapping[str, Mistake] = field(default_factory=dict)
    gradient: bool = False  # must the gradients by the tensors given agree, too?
    dims: Sequence[int] = (2, 3)
    tolerance: float = 1e-4


def find(name: str) -> Exercise:
    """The exercise "<lesson>.<task>", as in "01.dice"; ValueError with the names there are."""
    lesson = name.partition(".")[0]
    known = {f"{lesson}.{task}": exercise for task, exercise in exercises_of(lesson).items()}
    if name not in known:
        raise ValueError(
            f"there is no exercise {name!r}: lesson {lesson} has {', '.join(known) or 'none'}"
        )
    return known[name]


def lessons() -> list[str]:
    """The lessons that have exercises, as "01"."""
    return sorted(path.stem.removeprefix("lesson_") for path in HERE.glob("lesson_*.py"))


def exercises_of(lesson: str) -> dict[str, Exercise]:
    """{task: exercise} of a lesson, in its order."""
    if lesson not in lessons():
        raise ValueError(
            f"there is no lesson {lesson!r} with exercises: choose from {', '.join(lessons())}"
        )
    return importlib.import_module(f"{__name__}.lesson_{lesson}").EXERCISES


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
        print(f"✓ {exercise.title}: right{', in 2D and 3D' if len(exercise.dims) > 1 else ''}.")
    elif verdict.unfinished:
        _say(f"… {exercise.title}: not written yet. To begin with: {exercise.hints[0]}")
    else:
        _say(f"✗ {exercise.title}: {verdict.problem}.")
        levels = LEVELS if verdict.mistake else ("to begin with", *LEVELS[1:])
        for level, hint in list(zip(levels, verdict.hints, strict=True))[: max(tries, 1)]:
            _say(f"  {level}: {hint}")
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
        arguments, where = (
            exercise.arguments(dims, generator),
            f"in {dims}D " if len(exercise.dims) > 1 else "",
        )
        wanted = _outcome(exercise, exercise.right, arguments)
        try:
            got = _outcome(exercise, function, arguments)
        except Exception as error:  # whatever a student's code raises is an answer
            # PyTorch's own come with a text
            if isinstance(error, NotImplementedError) and not str(error):
                return Verdict(unfinished=True)
            got, problem = None, f"{where}it stops with {type(error).__name__}: {error}"
        else:
            if got[0] is None or got[0] is Ellipsis:
                return Verdict(unfinished=True)
            problem = _difference(got, wanted, exercise.tolerance)
            problem = problem and where + problem
        if problem:
            for name, mistake in exercise.mistakes.items():
                if _makes(mistake, exercise, arguments, got):
                    return Verdict(problem=problem, hints=mistake.hints, mistake=name)
            return Verdict(problem=problem, hints=exercise.hints)
    return Verdict(passed=True)


def _makes(mistake: Mistake, exercise: Exercise, arguments: tuple, got: tuple | None) -> bool:
    """Does this mistake give what the answer gave (None: an error)?"""
    try:
        made = _outcome(exercise, mistake.made, arguments)
    except Exception:  # a mistake may stop, as the answer may
        return got is None
    return got is not None and not _difference(got, made, exercise.tolerance)


def _outcome(exercise: Exercise, function: Callable, arguments: tuple) -> tuple:
    """(value, gradients): of copies of the arguments, so that nobody can change them."""
    copies = tuple(
        a.clone().requires_grad_(exercise.gradient and a.is_floating_point())
        if isinstance(a, Tensor)
        else a.copy()
        if isinstance(a, np.ndarray)
        else a
        for a in arguments
    )
    value, gradients = function(*copies), []
    if exercise.gradient and isinstance(value, Tensor) and value.requires_grad:
        weight = torch.linspace(0.5, 1.5, value.numel()).view(value.shape)
        inputs = [copy for copy in copies if isinstance(copy, Tensor) and copy.requires_grad]
        gradients = torch.autograd.grad((value * weight).sum(), inputs, allow_unused=True)
    return value, [g for g in gradients if g is not None]


def _difference(got: tuple, wanted: tuple, tolerance: float) -> str:
    """What distinguishes two outcomes, in words; empty if nothing does."""
    value, right = got[0], wanted[0]
    if isinstance(right, Mapping):
        if not isinstance(value, Mapping) or value.keys() != right.keys():
            return f"a dictionary with the keys {list(right)} was wanted, got {_brief(value)}"
        for key in right:
            if text := _difference((value[key], []), (right[key], []), tolerance):
                return f"at {key!r} {text}"
        return ""
    a, b = _array(value), _array(right)
    if a is None or b is None:
        return (
            ""
            if a is b is None and value == right
            else f"{_brief(right)} was wanted, got {_brief(value)}"
        )
    if a.shape != b.shape:
        return f"the shape {b.shape} was wanted, got {a.shape}"
    close = np.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not close.all():
        at = tuple(int(i) for i in np.argwhere(~close)[0])
        where = f" at {at}" if at else ""
        return f"{b[at]:.4g} was wanted{where}, got {a[at]:.4g}"
    if len(got[1]) < len(wanted[1]):
        return "the value is right, but no gradient comes back: stay in PyTorch, without .item(), .numpy() or .detach()"
    if len(got[1]) > len(wanted[1]):
        return "the value is right, but a gradient flows where nothing may learn"
    for mine, theirs in zip(got[1], wanted[1], strict=True):
        if not torch.allclose(
            mine, theirs, rtol=10 * tolerance, atol=10 * tolerance, equal_nan=True
        ):
            return "the value is right, but its gradient is not"
    return ""


def _array(value: object) -> np.ndarray | None:
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    if isinstance(value, int | float | np.ndarray | np.generic) or (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(x, int | float) for x in value)
    ):
        try:
            return np.asarray(value, dtype=float)
        except (TypeError, ValueError):  # an array of names
            return None
    return None


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


# --- what has been answered -----------------------------------------------------------------------


def answers_file() -> Path:
    """Where answers are kept: the environment variable ``DEEPATLAS_ANSWERS``, or ``answers.json``
    in the project.
    """
    return Path(
        os.environ.get("DEEPATLAS_ANSWERS") or HERE.parent.parent / "answers.json"
    ).expanduser()


def read_answers(path: Path | None = None) -> dict[str, dict]:
    """{exercise or question: what is known of it}; ValueError if the file is damaged."""
    path = path or answers_file()
    if not path.is_file():
        return {}
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry, dict) and "solved" in entry for entry in answers.values()):
            raise ValueError("entries without 'solved'")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a file of answers ({error}): move it away to begin anew"
        ) from error
    return answers


def store(name: str, **what: object) -> dict:
    """Update the entry of an exercise or a question, and the file; returns the entry."""
    answers = read_answers()
    entry = answers[name] = answers.get(name, {"solved": False, "tries": 0}) | what
    entry["when"] = time.strftime("%Y-%m-%d %H:%M:%S")
    text = json.dumps(answers, indent=1, ensure_ascii=False)
    try:
        write_atomically(answers_file(), lambda file: file.write_text(text, encoding="utf-8"))
    except OSError as error:
        print(f"(not kept: {error}. Let DEEPATLAS_ANSWERS name a file that can be written.)")
    return entry


def count_try(name: str, right: bool, **what: object) -> int:
    """Store a try and return how many there were; what was solved once stays solved."""
    entry = read_answers().get(name, {"solved": False, "tries": 0})
    return store(name, solved=entry["solved"] or right, tries=entry["tries"] + 1, **what)["tries"]


def _count(name: str, verdict: Verdict) -> int:
    """Tries so far; nothing written is none."""
    if verdict.unfinished:
        return read_answers().get(name, {"tries": 0})["tries"]
    return count_try(
        name, verdict.passed, last=verdict.mistake or ("" if verdict.passed else "other")
    )


def progress() -> None:
    """Print what is solved, lesson by lesson, and where the answers are kept."""
    answers = read_answers()
    for lesson in lessons():
        names = [f"{lesson}.{task}" for task in exercises_of(lesson)]
        solved = [name for name in names if answers.get(name, {}).get("solved")]
        print(
            f"lesson {lesson}: {len(solved)} of {len(names)} exercises "
            f"[{''.join('■' if name in solved else '□' for name in names)}]"
        )
    print(f"kept in {answers_file()}")


# --- for teachers ---------------------------------------------------------------------------------


def gather(files: Sequence[Path]) -> list[dict]:
    """One row per student (the name of the file) and exercise, prediction or question: solved,
    tries, answer, when.

    ValueError if two files have one name.
    """
    names = Counter(Path(file).stem for file in files)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(
            f"several files are named {', '.join(twice)}.json: name each after its student"
        )
    return [
        {
            "student": Path(file).stem,
            "item": name,
            **{key: entry.get(key, "") for key in ("solved", "tries", "last", "answer", "when")},
        }
        for file in files
        for name, entry in read_answers(Path(file)).items()
    ]


def hand_out(notebooks: Sequence[Path], folder: Path) -> list[Path]:
    """Copies of ``notebooks`` without their solutions in ``folder``; FileExistsError rather than
    replace one there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies = [folder / notebook.name for notebook in notebooks]
    if there := [copy.name for copy in copies if copy.exists()]:
        raise FileExistsError(
            f"{folder}: {', '.join(there)} is there already, perhaps with answers in it: "
            "choose another folder"
        )
    for notebook, copy in zip(notebooks, copies, strict=True):
        content = json.loads(notebook.read_text(encoding="utf-8"))
        content["cells"] = [
            cell for cell in content["cells"] if "solution" not in cell["metadata"].get("tags", [])
        ]
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(copy, lambda file, text=text: file.write_text(text, encoding="utf-8"))
    return copies
