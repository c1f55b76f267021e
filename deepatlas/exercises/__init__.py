"""Exercises that answer back: checkers that know the classic mistakes, hints in three levels,
progress.

``check`` runs a student's function on fresh random input beside an oracle, in 2D and 3D, and
compares what comes out and, where asked, the gradients; twice, on input with different right
answers, so that no constant is right. A wrong answer is compared with what each classic mistake
would have given, so that the hints speak of that mistake: first the symptom, at the next try the
concept, then the line. What has not changed since the last time is no try, nor is what a lesson
brings along: a planted bug, run as it stands, shows its symptom and nothing else. No answer stops a
notebook; only the person before it does (Ctrl-C).

One file of exercises a lesson (``lesson_01.py``), one of questions (``quiz_01.yaml``). To add an
exercise, write it into the file of its lesson and add a row to that file's ``EXERCISES``; the
lesson has a cell with the stub and one with a solution. To add a lesson, add its file: whatever
lists lessons looks which files there are.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import random
import re
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import guarded, read_json, write_json
from ..errors import UserError, brief, printable, shortened
from ..places import NOTEBOOKS, answers_file

HERE = Path(__file__).resolve().parent
LEVELS = ("what you see", "the idea", "the line")
# Of what stands around an answer, these are told apart by what they hold, in lists so deep.
PLAIN, DEEPEST = (str, int, float, bool, Tensor, np.ndarray), 4
LONGEST = 400  # characters of what is told of a problem
MOST_NUMBERS = 10**6  # in an answer; right ones have less than a thousandth of it
COLUMNS = ("student", "item", "solved", "tries", "last", "answer", "when")  # of collected answers


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
    # (answer, *arguments) -> what is compared; without it, what the answer returns for them. None:
    # nothing was written yet. With it, the right result may be the same for all arguments.
    used: Callable | None = None
    # as ``arguments``: of another kind, for whoever is right for the usual ones
    also: Callable[[int, torch.Generator], tuple] | None = None
    # (table of the answer, right one, as ``used`` makes them) -> what differs, in words
    told: Callable[[Mapping, Mapping], str] | None = None
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

    Without ``record``, progress stays as it is: for the solution that a lesson brings along. A
    wrong answer counts as a try if it has changed since the last one, and is not the lesson's own.
    """
    exercise = find(name)
    verdict = judge(exercise, function)
    tries, changed = _count(name, verdict, function) if record else (0, True)
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
        if not changed:
            print("  (Unchanged, so it does not count as a try: change it and check again.)")
        elif tries < len(LEVELS):
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

    What an answer sets for the whole process (gradients off, another default type, seeds) is set
    back.
    """
    for dims in exercise.dims:
        generator = torch.Generator()
        generator.manual_seed(generator.seed() if seed is None else seed)
        for arguments, wanted in _two_cases(exercise, dims, generator):
            verdict = _judge(exercise, function, arguments, wanted, f"in {dims}D ")
            if not verdict.passed:
                return verdict
    return Verdict(passed=True)


def _two_cases(
    exercise: Exercise, dims: int, generator: torch.Generator
) -> list[tuple[tuple, _Outcome]]:
    """Arguments and what is right for them, drawn until what is right differs; one case where an
    exercise looks at an answer's own ``used`` result. And one more of the kind ``also``, if any.
    """

    def drawn(arguments: Callable[[int, torch.Generator], tuple]) -> tuple[tuple, _Outcome]:
        with _usual_settings(), _silence():
            given = arguments(dims, generator)
            return given, _outcome(exercise, exercise.right, given)

    first = drawn(exercise.arguments)
    last = [drawn(exercise.also)] if exercise.also else []
    if exercise.used:
        return [first, *last]
    for _ in range(100):
        second = drawn(exercise.arguments)
        if _difference(second[1], first[1], exercise.tolerance):
            return [first, second, *last]
    raise ValueError(f"exercise {exercise.title!r}: the right answer is the same for all arguments")


def _judge(
    exercise: Exercise, function: Callable, arguments: tuple, wanted: _Outcome, where: str
) -> Verdict:
    got: _Outcome | str
    try:
        got = _outcome(exercise, function, arguments)
    except KeyboardInterrupt:  # not the answer's: somebody has pressed stop
        raise
    except BaseException as error:  # whatever a student's code raises is an answer, SystemExit too
        text = _text_of(error)
        # PyTorch's own come with a text
        if isinstance(error, NotImplementedError) and not text:
            return Verdict(unfinished=True)
        got = _kind_of(error)
        problem = f"it stops with {type(error).__name__}: {text}"
    else:
        if got.nothing:
            return Verdict(unfinished=True)
        problem = _problem(exercise, got, wanted)
    if not problem:
        return Verdict(passed=True)
    problem = shortened(where + problem if len(exercise.dims) > 1 else problem, LONGEST)
    name = _mistake_made(exercise, arguments, got, wanted)
    hints = exercise.mistakes[name].hints if name else exercise.hints
    return Verdict(problem=problem, hints=hints, mistake=name)


def _problem(exercise: Exercise, got: _Outcome, wanted: _Outcome) -> str:
    """What an answer is told of its result; empty if it is right."""
    # the oracle calls the arguments as the lesson's stub does
    names = list(inspect.signature(exercise.right).parameters)
    problem = _difference(got, wanted, exercise.tolerance, names=names)
    mine, right = got.numbers, wanted.numbers
    if problem and exercise.told and isinstance(mine, dict) and isinstance(right, dict):
        return exercise.told(mine, right)
    return problem


def _mistake_made(
    exercise: Exercise, arguments: tuple, got: _Outcome | str, wanted: _Outcome
) -> str | None:
    """The classic mistake that gives what the answer gave, an error (its kind) too; None if there
    is none.

    Best with its gradients. But a wrong value alone tells a mistake, whatever became of the
    gradients; a right value does not.
    """
    of_value = None
    made: _Outcome | str
    for name, mistake in exercise.mistakes.items():
        try:
            with _silence():
                made = _outcome(exercise, mistake.made, arguments)
        except Exception as error:  # a mistake may stop, as the answer may
            made = _kind_of(error)
        if isinstance(got, str) or isinstance(made, str):
            if got == made:
                return name
        elif not _difference(got, made, exercise.tolerance):
            return name
        elif of_value is None and not _difference(got, made, exercise.tolerance, gradients=False):
            of_value = name
    if of_value is None or isinstance(got, str):
        return None
    wrong = _difference(got, wanted, exercise.tolerance, gradients=False)
    return of_value if wrong else None


def _kind_of(error: BaseException) -> str:
    """What an error says, without its numbers: of two shapes, it is the same."""
    return f"{type(error).__name__}: {re.sub('[0-9]+', '', _text_of(error))}"


@contextmanager
def _usual_settings() -> Iterator[None]:
    """Those of a fresh process for a while, then those from before: random numbers, too."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            np.errstate(all="warn"),
            warnings.catch_warnings(),
        ):
            _set_defaults(torch.float32, torch.device("cpu"))
            yield
    finally:
        _set_defaults(dtype, device)
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)


@contextmanager
def _silence() -> Iterator[None]:
    """Our own code knows what it divides by; where warnings are errors, it must go on, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _set_defaults(dtype: torch.dtype, device: torch.device) -> None:
    torch.set_default_dtype(dtype)
    if torch.get_default_device() != device:
        # a device that was named makes every call of PyTorch slower, the CPU, too
        torch.set_default_device(None if device == torch.device("cpu") else device)


# --- what a function returned, and what distinguishes it ------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """What a function returned, as numbers, and its gradients by each argument: None where there is
    none.

    ``numbers`` is an array, or a dictionary of arrays, or None for what is neither; ``text`` is
    what is told of it. So nothing of the student's is touched afterwards.
    """

    numbers: np.ndarray | dict[str, np.ndarray | None] | None
    text: str
    gradients: Sequence[np.ndarray | None] = ()
    nothing: bool = False  # a stub returns None, or ...


def _outcome(exercise: Exercise, function: Callable, arguments: tuple) -> _Outcome:
    """Of copies of the arguments, so that nobody can change them."""
    copies = [_copy(argument, exercise.gradient) for argument in arguments]
    with _usual_settings():
        value = exercise.used(function, *copies) if exercise.used else function(*copies)
    with _usual_settings():  # once more: the function may have changed them
        numbers = _numbers(value)
        text = _text_of(value)
        nothing = value is None or value is Ellipsis
        if not exercise.gradient or not isinstance(numbers, np.ndarray):
            return _Outcome(numbers, text, nothing=nothing)
        return _Outcome(numbers, text, _gradients(_stacked(value), copies))


def _stacked(value: object) -> Tensor:
    """Numbers in any container as one tensor, which keeps the gradients of those that have any."""
    if isinstance(value, list | tuple) and len(value):
        return torch.stack([_stacked(item) for item in value])
    if isinstance(value, Tensor):
        return value.double()
    return torch.as_tensor(_array(value))


def _gradients(value: Tensor, copies: Sequence[object]) -> list[np.ndarray | None]:
    """Of ``value`` by each of ``copies``; None where there is none."""
    inputs = [copy for copy in copies if isinstance(copy, Tensor) and copy.requires_grad]
    if not value.requires_grad or not inputs:
        return [None] * len(copies)
    # a weighted sum, so that every entry of the value has its own say
    weight = torch.linspace(0.5, 1.5, value.numel()).view(value.shape).to(value.device)
    found = torch.autograd.grad((value * weight).sum(), inputs, allow_unused=True)
    by_input = {id(copy): gradient for copy, gradient in zip(inputs, found, strict=True)}
    return [_array(by_input.get(id(copy))) for copy in copies]


def _copy(argument: object, gradient: bool) -> object:
    if isinstance(argument, Tensor):
        return argument.clone().requires_grad_(gradient and argument.is_floating_point())
    if isinstance(argument, np.ndarray | list):
        return argument.copy()
    return argument


def _difference(
    got: _Outcome,
    wanted: _Outcome,
    tolerance: float,
    *,
    gradients: bool = True,
    names: Sequence[str] = (),
) -> str:
    """What distinguishes two outcomes, in words; empty if nothing does. Without ``gradients``,
    their values alone; ``names`` are those of the arguments.
    """
    if isinstance(wanted.numbers, dict):
        return _difference_of_tables(got, wanted.numbers, tolerance)
    text = _difference_of_values(got, wanted, tolerance)
    if text or not gradients:
        return text
    return _difference_of_gradients(got.gradients, wanted.gradients, tolerance, names)


def _difference_of_tables(got: _Outcome, right: dict, tolerance: float) -> str:
    if not isinstance(got.numbers, dict) or got.numbers.keys() != right.keys():
        return f"a dictionary with the keys {list(right)} was wanted, got {got.text}"
    for key in right:
        mine = _Outcome(got.numbers[key], "something else")
        theirs = _Outcome(right[key], "numbers")
        if text := _difference_of_values(mine, theirs, tolerance):
            return f"at {key!r} {text}"
    return ""


def _difference_of_values(got: _Outcome, wanted: _Outcome, tolerance: float) -> str:
    a, b = got.numbers, wanted.numbers
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):  # no numbers
        return f"{wanted.text} was wanted, got {got.text}"
    if a.shape != b.shape:
        return f"the shape {b.shape} was wanted, got {a.shape}"
    close = np.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    if close.all():
        return ""
    first = tuple(int(i) for i in np.argwhere(~close)[0])
    where = f" at {first}" if first else ""
    return f"{b[first]:.4g} was wanted{where}, got {a[first]:.4g}"


def _difference_of_gradients(
    got: Sequence[np.ndarray | None],
    wanted: Sequence[np.ndarray | None],
    tolerance: float,
    names: Sequence[str] = (),
) -> str:
    """Argument by argument: who has a gradient and must not, or has none and must, or has another;
    the arguments are called by ``names``, or by their numbers.
    """
    missing, too_many, other = [], [], []
    allowed = 10 * tolerance
    for place, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        name = names[place] if place < len(names) else f"argument {place + 1}"
        if mine is None and theirs is None:
            continue
        if mine is None:
            missing.append(name)
        elif theirs is None:
            too_many.append(name)
        elif mine.shape != theirs.shape or not np.allclose(
            mine, theirs, rtol=allowed, atol=allowed, equal_nan=True
        ):
            other.append(name)
    said = []
    if missing:
        said.append(f"no gradient comes back to {' and '.join(missing)}")
    if too_many:
        said.append(f"a gradient flows into {' and '.join(too_many)}, where nothing may learn")
    if other and not said:
        said.append(f"its gradient by {' and '.join(other)} is not")
    if not said:
        return ""
    advice = ""
    if missing:
        advice = (
            f". On the way from {' and '.join(missing)} to the result stay in PyTorch and let it "
            "watch: no .item(), .numpy(), .detach() or torch.no_grad() there"
        )
    return f"the value is right, but {', and '.join(said)}{advice}"


def _numbers(value: object) -> np.ndarray | dict[str, np.ndarray | None] | None:
    """Any sensible container of numbers as an array, or a dictionary of such containers as one of
    arrays; None for anything else, an object that resists among them.
    """
    try:
        if isinstance(value, Mapping):
            items = dict(value).items()
            return {key: _array(item) for key, item in items if isinstance(key, str)}
        return _array(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a sparse tensor, one without data, 10**400, or an object that lies
        return None


def _array(value: object, most: int = MOST_NUMBERS) -> np.ndarray | None:
    """Numbers, at most ``most``, as an array of floats; None for what are none, errors for what
    cannot be read.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.numel() > most:
            return None
        return value.detach().cpu().double().numpy()
    if isinstance(value, list | tuple | range):
        if len(value) > most:
            return None
        rows = [_array(item, most // len(value)) for item in value]
        return None if any(row is None for row in rows) else np.array(rows, dtype=float)
    if not isinstance(value, Number | np.ndarray) or isinstance(value, complex):
        return None
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biuf":
        return None  # names, dates, complex numbers
    if isinstance(value, np.ndarray) and value.size > most:
        return None
    return np.asarray(value, dtype=float)


def _text_of(value: object) -> str:
    """What a sentence quotes of an object, or of an error: short, printable, and whatever it is."""
    try:
        return shortened(str(value)) if isinstance(value, BaseException) else brief(value, 60)
    except KeyboardInterrupt:
        raise
    except BaseException:  # its __repr__ is a student's, too
        return f"something that cannot be shown, of type {type(value).__name__}"


# --- what has been answered -----------------------------------------------------------------------


def read_answers(path: Path | None = None) -> dict[str, dict]:
    """{exercise or question: what is known of it}; UserError if the file is damaged."""
    path = path or answers_file()
    if not path.is_file():
        return {}
    answers = read_json(path)
    problem = ""
    if not isinstance(answers, dict):
        problem = "a dictionary of answers was wanted"
    else:
        problems = (_problem_of(name, entry) for name, entry in answers.items())
        problem = next(filter(None, problems), "")
    if problem:
        raise UserError(f"{path}: not a file of answers ({problem}): move it away to begin anew")
    return answers


def _problem_of(name: str, entry: object) -> str:
    """What is wrong with an entry of a file of answers; empty if nothing is."""
    if not isinstance(entry, dict) or not isinstance(entry.get("solved"), bool):
        return f"{brief(name)} is not told to be solved by true or false"
    tries = entry.get("tries", 0)  # a prediction has none
    if type(tries) is not int or not 0 <= tries < 10**9:
        return f"the tries of {brief(name)} are no number of tries: {brief(tries)}"
    texts = [name, *(entry.get(key, "") for key in ("last", "answer", "when"))]
    for text in texts:
        if not isinstance(text, str):
            return f"a text was wanted in {brief(name)}, got {brief(text)}"
        if text != text.encode("utf-8", "replace").decode():
            return f"half a letter stands in {brief(name)}"
    return ""


def _entry(answers: Mapping[str, dict], name: str) -> dict:
    return {"solved": False, "tries": 0} | answers.get(name, {})


def _read_or_say() -> dict[str, dict] | None:
    """The answers so far; None if the file is damaged, which is said and stops nobody."""
    try:
        return read_answers()
    except (UserError, OSError) as error:
        print(f"(not kept: {shortened(str(error))}. The file stays as it is.)")
        return None


def store(name: str, **what: object) -> dict:
    """Update the entry of an exercise or a question, and the file; returns the entry.

    Where that cannot be, it is said and not kept: no answer stops a notebook.
    """
    answers = _read_or_say()
    entry = (answers or {}).get(name, {}) | what
    entry["when"] = time.strftime("%Y-%m-%d %H:%M:%S")
    if answers is not None:
        answers[name] = entry
        try:
            write_json(answers, answers_file())
        except (UserError, OSError) as error:
            text = shortened(str(error))
            print(f"(not kept: {text}. Let DEEPATLAS_ANSWERS name a file that can be written.)")
    return entry


def count_try(name: str, right: bool, **what: object) -> int:
    """Store a try and return how many there were; what was solved once stays solved."""
    answers = _read_or_say()
    if answers is None:
        return 0
    entry = _entry(answers, name)
    solved = entry["solved"] or right
    return store(name, solved=solved, tries=entry["tries"] + 1, **what)["tries"]


def _count(name: str, verdict: Verdict, function: object) -> tuple[int, bool]:
    """Tries so far, and whether this one is new; nothing written is none, nor is what was checked
    before, or what the lesson brings along.
    """
    if verdict.unfinished:
        return 0, True
    if verdict.passed:
        return count_try(name, True, last=""), True
    answers = _read_or_say()
    if answers is None:
        return 0, True
    entry = _entry(answers, name)
    code, before = _fingerprint_of(function), entry.get("code")
    if before is None and _fingerprint(getattr(function, "__code__", None)) in _handed_out(name):
        store(name, **entry, code=code)
    elif code is None or code != before:
        return count_try(name, False, last=verdict.mistake or "other", code=code), True
    return entry["tries"], False


def _fingerprint_of(function: object) -> str | None:
    """Of a function: of what it does, and of the data and functions around it that it names."""
    if not isinstance(function, FunctionType):
        return _fingerprint(getattr(function, "__code__", None))
    code = function.__code__
    named = [function.__globals__.get(name) for name in code.co_names]
    held = [_content(cell) for cell in function.__closure__ or ()]
    said = repr((_essence(code), [_data(value) for value in [*named, *held]]))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put there yet
        return None


def _data(value: Any, depth: int = 0) -> object:
    """What a value holds, as far as it is the same when its cell is run again."""
    kind = type(value)
    if isinstance(value, FunctionType):
        return _essence(value.__code__)
    if kind in (list, tuple) and depth < DEEPEST:
        return [_data(one, depth + 1) for one in value]
    if kind is dict and depth < DEEPEST:
        return [(_data(key, depth + 1), _data(one, depth + 1)) for key, one in value.items()]
    return repr(value) if kind in PLAIN else kind.__name__


def _fingerprint(code: object) -> str | None:
    """Of compiled code: of what it does, not of comments, blanks and where it stands."""
    if not isinstance(code, CodeType):
        return None
    return hashlib.sha256(repr(_essence(code)).encode()).hexdigest()[:16]


def _essence(code: CodeType) -> tuple:
    constants = [_essence(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants


def _handed_out(name: str) -> set[str | None]:
    """The fingerprints of the functions in a lesson's cell for exercise ``name``; none where the
    lessons are not.

    Asked only for what is checked first: where students write into the lesson itself, its cell is
    soon what they have written.
    """
    found = set()
    try:
        for path in NOTEBOOKS.glob(f"{name.partition('.')[0]}_*.ipynb"):
            for cell in read_json(path)["cells"]:
                source = "".join(cell["source"])
                if _has_tag(cell, "exercise") and f'check("{name}"' in source:
                    found |= set(map(_fingerprint, compile(source, "cell", "exec").co_consts))
    except (UserError, OSError, ValueError, SyntaxError, KeyError, TypeError):
        pass  # a lesson that somebody is changing
    return found - {None}


def progress() -> None:
    """Print what is solved, lesson by lesson, and where the answers are kept."""
    answers = _read_or_say()
    if answers is None:
        return
    for lesson in lessons():
        solved = [_entry(answers, f"{lesson}.{task}")["solved"] for task in exercises_of(lesson)]
        boxes = "".join("■" if done else "□" for done in solved)
        print(f"lesson {lesson}: {sum(solved)} of {len(solved)} exercises [{boxes}]")
    print(f"kept in {printable(str(answers_file()))}")


# --- for teachers ---------------------------------------------------------------------------------


def collect_answers(files: Sequence[Path]) -> list[dict]:
    """One row per student (the name of the file) and exercise, prediction or question: solved,
    tries, answer, when. A text that a spreadsheet would take for a formula begins with '.

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
            known = entry | {"student": Path(file).stem, "item": name}
            row = {}
            for key in COLUMNS:
                value = known.get(key, "")
                row[key] = guarded(printable(value)) if isinstance(value, str) else value
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
        content = read_json(notebook)
        content["cells"] = [cell for cell in content["cells"] if not _has_tag(cell, "solution")]
        write_json(content, copy)
    return copies


def _has_tag(cell: Mapping, tag: str) -> bool:
    return tag in cell["metadata"].get("tags", [])
