"""Questions in a notebook: a prediction that is stored before the answer is shown, and a quiz that
says why.

Widgets exist only in ``display="live"``. In pages without a kernel ("html") the answers are folded
away; "static" has the questions alone.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import ipywidgets
import yaml
from IPython import display as shown

from ..errors import UserError
from . import HERE, count_try, store

WIDE = {"width": "auto"}


def predict(
    name: str, question: str, options: Sequence[str], answer: str, *, display: str = "live"
) -> None:
    """Ask for a prediction; ``answer`` is revealed by a button that works only after one was
    stored.

    ``name`` is "<lesson>.<what>"; running the notebook stores and reveals nothing.
    """
    if display != "live":
        _without_widgets(question, options, {"Reveal": answer}, display)
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
        line.value = answer

    choice.observe(chosen, "value")
    keep.on_click(kept)
    reveal.on_click(revealed)
    buttons = ipywidgets.HBox([keep, reveal])
    shown.display(ipywidgets.VBox([_text(question), choice, buttons, line]))


def quiz(lesson: str, *, display: str = "live") -> None:
    """The questions of ``quiz_<lesson>.yaml``, each with the reason why an answer is right or
    wrong.
    """
    for number, item in enumerate(read_quiz(lesson), 1):
        question = f"{number}. {item['question']}"
        options = [option["answer"] for option in item["options"]]
        if display == "live":
            _ask(f"quiz {lesson}.{number}", question, item["options"])
        else:
            verdicts = {option["answer"]: _verdict(option) for option in item["options"]}
            _without_widgets(question, options, verdicts, display)


def read_quiz(lesson: str) -> list[dict]:
    """The questions of a lesson: question, and options with answer, why, and one that is right."""
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
        print("  (Answers are given in JupyterLab.)")
        return
    page = f"<p><b>{html.escape(question)}</b></p>"
    if choices := [f"<li>{html.escape(option)}</li>" for option in options if option not in folded]:
        page += f"<ul>{''.join(choices)}</ul>"
    for name, text in folded.items():
        page += f"<details><summary>{html.escape(name)}</summary>{text}</details>"
    shown.display(shown.HTML(page))
