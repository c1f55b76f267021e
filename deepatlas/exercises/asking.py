"""Questions in a notebook: a prediction that is stored before the answer is shown, a quiz that says
why, and two questions to be answered in one's own words.

Widgets exist only in ``display="live"``. In pages without a kernel ("html") the answers are folded
away; in "static" text they stand below.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import ipywidgets
import yaml
from IPython import display as shown

from ..errors import UserError
from . import HERE, count_try, store

COLLEAGUE = "Explain to a colleague, in half a page each:"
WIDE = {"width": "auto"}


def predict(
    name: str, question: str, options: Sequence[str], answer: str, *, display: str = "live"
) -> None:
    """Ask for a prediction; ``answer`` is revealed by a button that works only after one was
    stored.

    ``name`` is "<lesson>.<what>"; running the notebook stores and reveals nothing.
    """
    if display != "live":
        _without_widgets(question, options, {"Reveal": html.escape(answer)}, display)
        if display == "static":
            print(f"\nFor after your guess: {answer}")
        return
    choice = _choice(options)
    keep = ipywidgets.Button(description="Store my prediction", disabled=True, layout=WIDE)
    reveal = ipywidgets.Button(description="Reveal", disabled=True)
    line = ipywidgets.HTML()

    def chosen(_: object) -> None:
        keep.disabled = choice.value is None

    def kept(_: object) -> None:
        store(f"prediction {name}", solved=True, answer=choice.value)
        choice.disabled = True
        keep.disabled = True
        reveal.disabled = False
        line.value = "Stored. Now you may look."

    def revealed(_: object) -> None:
        line.value = html.escape(answer)

    choice.observe(chosen, "value")
    keep.on_click(kept)
    reveal.on_click(revealed)
    buttons = ipywidgets.HBox([keep, reveal])
    shown.display(ipywidgets.VBox([_text(question), choice, buttons, line]))


def quiz(lesson: str, *, display: str = "live") -> None:
    """The questions of ``quiz_<lesson>.yaml``, each with the reason why an answer is right or
    wrong; then what is to be explained to a colleague, of which no notebook has the answers.
    """
    content = read_quiz(lesson)
    for number, item in enumerate(content["questions"], 1):
        question = f"{number}. {item['question']}"
        options = [option["answer"] for option in item["options"]]
        if display == "live":
            _ask(f"quiz {lesson}.{number}", question, item["options"])
        else:
            verdicts = {option["answer"]: _verdict(option) for option in item["options"]}
            _without_widgets(question, options, verdicts, display)
    if display == "static":
        _print_answers(content["questions"])
    _explain(content["colleague"], display)


def read_quiz(lesson: str) -> dict[str, list]:
    """What a lesson asks at its end.

    ``questions``: each a question, perhaps ``computes`` (its answer is to be computed), and options
    with answer, why, and one that is right. ``colleague``: what is to be explained, as text.
    """
    path = HERE / f"quiz_{lesson}.yaml"
    if not path.is_file():
        raise UserError(f"lesson {lesson!r} has no quiz: {path.name} is not there")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _ask(name: str, question: str, options: Sequence[dict]) -> None:
    choice = _choice([option["answer"] for option in options])
    button = ipywidgets.Button(description="Check", disabled=True)
    line = ipywidgets.HTML()

    def chosen(_: object) -> None:
        button.disabled = choice.value is None
        line.value = ""

    def checked(_: object) -> None:
        option = options[choice.index]
        count_try(name, option.get("right", False), answer=choice.value)
        line.value = _verdict(option)

    choice.observe(chosen, "value")
    button.on_click(checked)
    shown.display(ipywidgets.VBox([_text(question), choice, button, line]))


def _explain(tasks: Sequence[str], display: str) -> None:
    """Questions without options, as text in every display: they are answered on paper."""
    if display == "static":
        print(COLLEAGUE)
        for task in tasks:
            print(f"  - {task}")
        return
    listed = "".join(f"<li>{html.escape(task)}</li>" for task in tasks)
    shown.display(shown.HTML(f"<p><b>{COLLEAGUE}</b></p><ul>{listed}</ul>"))


def _print_answers(questions: Sequence[Mapping]) -> None:
    """The right answer of each question, with its reason: below all of them."""
    print("\nAnswers:")
    for number, item in enumerate(questions, 1):
        (right,) = [option for option in item["options"] if option.get("right")]
        print(f"  {number}. {right['answer'].rstrip('.')}: {right['why']}")
    print()


def _choice(options: Sequence[str]) -> ipywidgets.RadioButtons:
    return ipywidgets.RadioButtons(
        options=list(options), value=None, layout={"width": "max-content"}
    )


def _text(question: str) -> ipywidgets.HTML:
    return ipywidgets.HTML(f"<b>{html.escape(question)}</b>")


def _verdict(option: Mapping) -> str:
    verdict = "✓ Right." if option.get("right") else "✗ Not quite."
    return f"<b>{verdict}</b> {html.escape(option['why'])}"


def _without_widgets(
    question: str, options: Sequence[str], folded: Mapping[str, str], display: str
) -> None:
    """The question as text; in a page, what is ``folded`` opens by a click on its name."""
    if display == "static":
        print(question)
        for option in options:
            print(f"  ( ) {option}")
        return
    page = f"<p><b>{html.escape(question)}</b></p>"
    if choices := [f"<li>{html.escape(option)}</li>" for option in options if option not in folded]:
        page += f"<ul>{''.join(choices)}</ul>"
    for name, text in folded.items():
        page += f"<details><summary>{html.escape(name)}</summary>{text}</details>"
    shown.display(shown.HTML(page))
