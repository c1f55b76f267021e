"""Quizzes: no way to guess pays, and what is to be computed was computed."""

import itertools
import re
import statistics

from deepatlas import evaluation, exercises, losses
from deepatlas.cli import app
from deepatlas.errors import UserError
from deepatlas.exercises import asking
from deepatlas.places import NOTEBOOKS
from deepatlas.warp import Deformation, sample

import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

LESSONS = exercises.lessons()
QUESTIONS = {
    f"{lesson}.{number}": item
    for lesson in LESSONS
    for number, item in enumerate(asking.read_quiz(lesson)["questions"], 1)
}


def answers_of(item):
    return [option["answer"] for option in item["options"]]


def place_of_right(item):
    return [option.get("right", False) for option in item["options"]].index(True)


# --- what each quiz has -----------------------------------------------------------------------


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_quiz_has_questions_with_reasons_and_two_to_explain(lesson):
    content = asking.read_quiz(lesson)
    assert set(content) == {"questions", "colleague"}
    assert len(content["questions"]) >= 5
    assert len(content["colleague"]) == 2 and all(len(task) > 80 for task in content["colleague"])


@pytest.mark.parametrize("key", QUESTIONS)
def test_a_question_has_one_right_answer_and_a_reason_for_each(key):
    item = QUESTIONS[key]
    assert set(item) - {"computes"} == {"question", "options"}
    assert item.get("computes", True) is True
    answers, reasons = answers_of(item), [option["why"] for option in item["options"]]
    assert [option.get("right", False) for option in item["options"]].count(True) == 1
    assert len(answers) >= 3
    assert len(set(answers)) == len(answers) and len(set(reasons)) == len(reasons)
    assert all(len(why) > 20 for why in reasons)


@pytest.mark.parametrize("key", QUESTIONS)
def test_the_answers_of_a_question_are_about_equally_long(key):
    lengths = [len(answer) for answer in answers_of(QUESTIONS[key])]
    assert max(lengths) - min(lengths) <= 10


# --- ways to guess ----------------------------------------------------------------------------


def by_length(wanted, among):
    """Is the longest, or the shortest, answer right? Of equally long ones ``among`` takes one."""

    def taken(item):
        lengths = [len(answer) for answer in answers_of(item)]
        best = [place for place, length in enumerate(lengths) if length == wanted(lengths)]
        return among(best) == place_of_right(item)

    return taken


STRATEGIES = {
    "the longest, the first of them": by_length(max, min),
    "the longest, the last of them": by_length(max, max),
    "the shortest, the first of them": by_length(min, min),
    "the shortest, the last of them": by_length(min, max),
    "the first": lambda item: place_of_right(item) == 0,
    "the last": lambda item: place_of_right(item) == len(item["options"]) - 1,
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_way_to_guess_pays(strategy):
    score = {key: STRATEGIES[strategy](item) for key, item in QUESTIONS.items()}
    assert sum(score.values()) / len(score) <= 0.4
    for lesson in LESSONS:
        of_lesson = [points for key, points in score.items() if key[:2] == lesson]
        assert sum(of_lesson) / len(of_lesson) <= 0.6, f"{strategy} pays in lesson {lesson}"


# --- what is to be computed -------------------------------------------------------------------


def world():
    matrix, shift = np.diag([-2, 2, 3]), np.array([90, -120, -60])
    x, y, z = matrix @ (10, 50, 40) + shift
    sides = ("left", "right"), ("behind", "in front"), ("below", "above")
    named = zip((x, y, z), sides, strict=True)
    return ", ".join(f"{abs(value)} mm {names[int(value > 0)]}" for value, names in named)


def on_both_sides():
    """Of ten people with two of 40 scans, if 20 scans are dealt to each side."""
    return f"about {round(10 * 20 / 39)}"


def pairs_with_a_label():
    pairs = list(itertools.permutations(range(24), 2))
    return f"1 in {len(pairs) // sum(0 in pair for pair in pairs)}"


def shining():
    image = torch.zeros(1, 1, 20, 9)
    image[0, 0, 10, 4] = 1
    u = torch.zeros(1, 2, 20, 9)
    u[:, 0] = 3
    return str(tuple(Deformation(u).warp(image)[0, 0].nonzero()[0].tolist()))


def plane(*components):
    """A displacement (1, 2, 11, 11) of functions of x and y."""
    x, y = torch.meshgrid(torch.arange(11.0), torch.arange(11.0), indexing="ij")
    return torch.stack([component(x, y) for component in components])[None]


def growth():
    u = plane(lambda x, y: 0.5 * x, lambda x, y: -0.2 * y)
    return f"by the factor {Deformation(u).jacobian_determinant()[0, 5, 5]:.1f}"


def line(displacement):
    """A displacement along the first axis, (1, 2, 20, 3)."""
    x = torch.arange(20.0)[:, None].expand(20, 3)
    return torch.stack([displacement(x), torch.zeros_like(x)])[None]


def composed():
    phi, psi = line(lambda x: 3 - 0.5 * x), line(lambda x: 0.2 * x)
    both = psi + sample(phi, Deformation(psi).points)
    return f"{both[0, 0, 10, 1]:.0f}"


def inverted():
    return f"{Deformation(line(lambda x: 0.5 * x)).inverse().displacement[0, 0, 12, 1]:.0f}"


def soft_vote():
    mean = np.mean([(0.1, 0.5, 0.4), (0.1, 0.5, 0.4), (0.0, 0.1, 0.9)], axis=0)
    name = ("Background", "Thalamus", "Putamen")[mean.argmax()]
    return f"{name}, with a mean of {mean.max():.2f}".replace("0.", ".")


def contrast_inverted():
    image = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    ncc, lncc = losses.ncc(1 - image, image), losses.lncc(1 - image, image)
    return f"{ncc:.0f} and {abs(lncc):.0f}"


def weight_on_a_finer_grid():
    """One map in millimetres, on grids of 3 and of 1.5 mm."""
    coarse = losses.bending_energy(plane(lambda x, y: x * x, lambda x, y: 0 * x))
    fine = losses.bending_energy(plane(lambda x, y: 2 * (x / 2) ** 2, lambda x, y: 0 * x))
    return f"{0.5 * coarse / fine:g}"


def bending():
    u = plane(lambda x, y: 0.03 * x * y, lambda x, y: 0 * x)
    return f"{losses.bending_energy(u):.4f}"


def shifted(thickness, length):
    """Dice, and the share of boundaries within a pixel, of a rectangle shifted by one pixel."""
    maps = torch.zeros(2, thickness + 20, length + 20, dtype=torch.long)
    for number in range(2):
        maps[number, 10 + number : 10 + number + thickness, 10:-10] = 1
    (row,) = evaluation.score_labels(*maps, ("background", "it"), spacing=(1.0, 1.0))
    return row


def thin_and_large():
    dice = [shifted(4, 400)["dice"], shifted(50, 50)["dice"]]
    return " and ".join(f"{value:.2f}"[1:] for value in dice)


def cartilage():
    row = shifted(2, 400)
    return f"{row['dice']:.2f} and {row['nsd']:.2f}"[1:]


def order_of_turns():
    turns = {"R": 5, "S": 2}
    middles = [((k + 0.5) / n, name) for name, n in turns.items() for k in range(n)]
    return " ".join(name for _, name in sorted(middles))


def pushed_back():
    guess = torch.zeros(1, 1, 10, 3, requires_grad=True)
    point = torch.tensor([7.25, 1.0]).view(1, 2, 1, 1)
    (0.8 * sample(guess, point)).sum().backward()
    return " and ".join(f"{value:.1f}" for value in guess.grad[0, 0, 7:9, 1])


def pupil():
    borders = ([2, -1, 0, 2, -3], [1] * 5)
    return " and ".join(f"{statistics.mean(errors):g}" for errors in borders) + " voxels"


def scatter_of_draws():
    return f"{np.array([(80, 84), (86, 90), (83, 87)]).mean(1).std(ddof=1):.1f}"


def confident():
    q, p = np.array([1, 0.5]), np.array([1, 1])
    w = np.maximum(q, 1 - q)
    return f"{2 * (w * p * q).sum() / (w * (p + q)).sum():.2f}"[1:]


def mean_of_cases():
    cases = np.array([(0.8, np.nan), (0.6, 0.4)])
    return f"{np.nanmean(cases, axis=1).mean():.2f}"[1:]


def holm():
    p = (0.012, 0.015, 0.040)
    return f"{max(3 * p[0], 2 * p[1]):.3f}"[1:]


def letters():
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([(0, 1.5, 0), (-2, 0, 0), (0, 0, 3)])
    return "".join(nibabel.aff2axcodes(affine))


def as_lps(ras):
    return str(tuple((np.array(ras) * (-1, -1, 1)).tolist()))


COMPUTED = {
    "01.1": world,
    "01.2": lambda: f"{np.mean([0.92, 0.60]):.2f}"[1:],
    "01.3": lambda: f"a {(3 + 1) // 2}",
    "01.4": on_both_sides,
    "01.5": pairs_with_a_label,
    "02.1": shining,
    "02.2": growth,
    "02.3": composed,
    "02.4": inverted,
    "03.2": lambda: str(3 * 2**3),
    "03.3": lambda: str(len(list(itertools.permutations(range(4), 2)))),
    "03.4": soft_vote,
    "04.1": contrast_inverted,
    "04.2": weight_on_a_finer_grid,
    "04.3": bending,
    "04.4": thin_and_large,
    "05.2": order_of_turns,
    "05.3": lambda: f"{1 - 0.98**50:.2f}",
    "05.4": pushed_back,
    "06.1": pupil,
    "06.2": scatter_of_draws,
    "06.4": confident,
    "07.1": cartilage,
    "07.2": mean_of_cases,
    "07.3": holm,
    "07.4": lambda: f"{(76.06 - 73.48) / (81.31 - 73.48):.0%}".replace("%", " %"),
    "08.1": lambda: as_lps((12, -34, 56)),
    "08.2": letters,
    "08.5": lambda: as_lps(np.subtract((13, 18, 35), (10, 20, 30))),
}


def test_two_questions_of_five_are_to_be_computed():
    computed = {key for key, item in QUESTIONS.items() if item.get("computes")}
    assert computed == set(COMPUTED)
    assert len(computed) >= 0.4 * len(QUESTIONS)


@pytest.mark.parametrize("key", COMPUTED)
def test_the_right_answer_is_what_comes_out(key):
    item, found = QUESTIONS[key], COMPUTED[key]()
    there = [
        answer == found or answer.startswith((f"{found} ", f"{found},"))
        for answer in answers_of(item)
    ]
    assert there == [option.get("right", False) for option in item["options"]], found
    assert re.search(r"\d", " ".join([item["question"], *answers_of(item)]))


# --- what is read -----------------------------------------------------------------------------


def test_a_lesson_without_a_quiz_says_so():
    with pytest.raises(UserError, match=r"quiz_99.yaml is not there"):
        asking.quiz("99")


def test_teachers_are_told_what_to_expect_of_each_explanation():
    text = (NOTEBOOKS / "TEACHING.md").read_text(encoding="utf-8")
    parts = text.split("\n### Lesson ")[1:]
    assert [part[:2] for part in parts] == LESSONS
    for part in parts:
        for number in (1, 2):
            assert part.count(f"**{number}. ") == 1
        assert part.count("*Points:*") == part.count("*Misunderstandings:*") == 2


def test_a_handout_has_nothing_for_teachers(tmp_path):
    assert CliRunner().invoke(app, ["handout", str(tmp_path)]).exit_code == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".ipynb"}
    texts = "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())
    assert "*Misunderstandings:*" not in texts
