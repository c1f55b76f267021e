"""All scans of a folder on one page that needs neither kernel nor network: slices, labels, facts,
and what is wrong or odd.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.image import imsave

from .. import plots
from ..datasets.survey import Looked, Plane, Survey
from ..errors import printable

MARK = "deepatlas data check"  # the generator of the page, by which it is known
# No script runs on the page, and it asks nobody for anything, whatever names and files say.
ALLOWED = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LONGEST = 210  # pixels of the longest side of a scan
FILL, OUTLINE = 0.35, 0.9  # how much of a label's colour hides the image
MANY = 20  # labels: their areas stay clear then, or nothing of the image was seen
MOST_NAMED = 12  # structures that the text of a picture names

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5em auto; max-width: 74em; padding: 0 1em; }
section { border-top: 1px solid #bbb; padding: .6em 0; display: flex; gap: .3em 1.5em;
  flex-wrap: wrap; align-items: flex-start; }
h2 { font-size: 1.05em; margin: 0 0 .3em; width: 100%; overflow-wrap: anywhere; }
.pictures { display: flex; gap: .8em; align-items: flex-start; flex-wrap: wrap; }
figure { margin: 0; } figcaption { font-size: .8em; color: #444; text-align: center; }
.frame { position: relative; background: #000; margin: 0 auto; }
.frame img { display: block; width: 100%; height: 100%; image-rendering: pixelated; }
.frame span { position: absolute; color: #fff; font: bold 11px sans-serif;
  text-shadow: 0 0 3px #000, 0 0 3px #000; }
.left { left: 3px; top: calc(50% - 7px); } .right { right: 3px; top: calc(50% - 7px); }
.top { top: 2px; left: calc(50% - 4px); } .bottom { bottom: 2px; left: calc(50% - 4px); }
dl { margin: 0; display: grid; grid-template-columns: max-content auto; gap: 0 .8em;
  font-size: .85em; align-content: start; flex: 1; min-width: 18em; }
dt { color: #444; } dd { margin: 0; overflow-wrap: anywhere; }
.wrong { color: #b00020; width: 100%; margin: 0; overflow-wrap: anywhere; }
.key span { display: inline-block; margin: 0 1em .2em 0; }
.key i { display: inline-block; width: 1em; height: 1em; margin-right: .35em;
  vertical-align: -2px; }
.none { color: #444; font-style: italic; }
"""

FACTS = {  # columns of the table, and what they are called here
    "grid": "voxels",
    "spacing_mm": "voxel, mm",
    "orientation": "orientation",
    "unit": "unit",
    "sform_code": "code of sform",
    "qform_code": "code of qform",
    "forms_apart_voxels": "sform to qform, voxels",
    "type": "type",
    "minimum": "smallest",
    "p1": "percentile 1",
    "median": "median",
    "p99": "percentile 99",
    "maximum": "largest",
    "zeros": "share of zeros",
    "not_finite": "NaN or infinite",
    "label_numbers": "label numbers",
    "labelled_share": "labelled share",
}


def montage(survey: Survey, parts: Mapping[str, str], remarks: Sequence[str]) -> str:
    """One HTML document: for each scan three slices through the middle of what is labelled, or one
    of a slice, its row of the table, and what is wrong or odd, in red.

    ``parts``: train, validation or test, by scan; ``remarks``: sentences on grid and split. About
    13 MB for any number of scans up to 800.
    """
    numbers = survey.numbers
    colours = np.array(plots.colour_bytes(len(numbers) + 1), np.uint8)
    names = {number: survey.listing.names.get(number, f"label {number}") for number in numbers}
    body = [
        f"<h1>{_safe(survey.listing.title or 'Scans of a folder')}</h1>",
        f"<p>Layout {_safe(survey.listing.layout)}: {_safe(survey.listing.why)}. "
        f"{_safe(survey.persons)}.</p>",
        _list("What must be mended", survey.problems),
        _list("What is odd", survey.remarks),
        _list("Grid and split", remarks),
        _list("What the folder says", survey.listing.notes),
        _key(names, colours),
    ]
    for scan in survey.scans:
        body.append(_section(scan, parts.get(scan.file.id, ""), survey, names, colours))
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f'<meta name="generator" content="{MARK}">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{ALLOWED}">\n'
        f"<title>{_safe(survey.listing.title or 'Scans')}: data check</title>\n"
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _safe(text: object) -> str:
    return html.escape(printable(str(text)))


def _list(title: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{_safe(sentence)}</li>" for sentence in sentences)
    return f"<details open><summary>{title} ({len(sentences)})</summary><ul>{items}</ul></details>"


def _key(names: Mapping[int, str], colours: np.ndarray) -> str:
    items = []
    for (number, name), colour in zip(names.items(), colours[1:].tolist(), strict=True):
        red, green, blue = colour
        square = f'<i style="background:rgb({red},{green},{blue})"></i>'
        items.append(f"<span>{square}{number} {_safe(name)}</span>")
    if not items:
        return ""
    is_open = " open" if len(items) <= MANY else ""
    body = f'<p class="key">{"".join(items)}</p>'
    return f"<details{is_open}><summary>Labels ({len(items)})</summary>{body}</details>"


# --- one scan -------------------------------------------------------------------------------------


def _section(
    scan: Looked, part: str, survey: Survey, names: Mapping[int, str], colours: np.ndarray
) -> str:
    file = scan.file
    heads = [_safe(file.id), f"person {_safe(file.subject)}"]
    heads.append(_safe(part) if part else "left out")
    if file.labels is None:
        heads.append("unlabelled")
    longest = max((max(plane.lengths) for plane in scan.planes), default=1.0)
    pictures = [_figure(file.id, plane, LONGEST / longest, names, colours) for plane in scan.planes]
    if not pictures:
        pictures = ['<p class="none">no picture: the image could not be read</p>']
    rows = []
    for key, title in FACTS.items():
        if key in scan.facts:
            value = scan.facts[key]
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append(f"<dt>{title}</dt><dd>{_safe(text)}</dd>")
    wrong = [scan.problem] if scan.problem else []
    wrong += survey.remarks_on(file.id)
    warnings = "".join(f'<p class="wrong">{_safe(text)}</p>' for text in wrong)
    return (
        f"<section><h2>{' · '.join(heads)}</h2>{warnings}"
        f'<div class="pictures">{"".join(pictures)}</div><dl>{"".join(rows)}</dl></section>'
    )


def _figure(
    id: str, plane: Plane, pixels_per_mm: float, names: Mapping[int, str], colours: np.ndarray
) -> str:
    width, height = (max(1, round(length * pixels_per_mm)) for length in plane.lengths)
    left, right = plots.ENDS[plane.axes[0]]
    bottom, top = plots.ENDS[plane.axes[1]]
    sides = {"left": left, "right": right, "bottom": bottom, "top": top}
    letters = "".join(f'<span class="{side}">{letter}</span>' for side, letter in sides.items())
    picture = base64.b64encode(_png(plane, list(names), colours)).decode()
    caption = f"{plane.title}, slice {plane.where}"
    text = f"Scan {id}, {caption}, {left} at the left and {top} at the top"
    if plane.labels is not None:
        shown = [names[n] for n in np.unique(plane.labels).tolist() if n in names]
        more = f" and {len(shown) - MOST_NAMED} more" if len(shown) > MOST_NAMED else ""
        text += f", labels: {', '.join(shown[:MOST_NAMED]) or 'none in this slice'}{more}"
    return (
        f'<figure><div class="frame" style="width:{width}px;height:{height}px">'
        f'<img alt="{_safe(text)}" src="data:image/png;base64,{picture}">{letters}</div>'
        f"<figcaption>{_safe(caption)}</figcaption></figure>"
    )


def _png(plane: Plane, numbers: Sequence[int], colours: np.ndarray) -> bytes:
    """The slice in grey, labels in their colours, borders of labels stronger; i right, j up."""
    rgb = np.repeat(plane.image[..., None], 3, axis=2)
    if plane.labels is not None and numbers:
        index = np.searchsorted(numbers, plane.labels)  # a number that is not listed is none
        index = np.minimum(index, len(numbers) - 1)
        listed = np.asarray(numbers)[index] == plane.labels
        index = np.where(listed, index + 1, 0)
        fill = FILL if len(numbers) <= MANY else FILL / 3
        strength = np.where(_borders(index), OUTLINE, fill) * (index > 0)
        mixed = (1 - strength[..., None]) * rgb + strength[..., None] * colours[index]
        rgb = np.round(mixed).astype(np.uint8)
    content = io.BytesIO()
    imsave(content, rgb.transpose(1, 0, 2), format="png", origin="lower")
    return content.getvalue()


def _borders(index: np.ndarray) -> np.ndarray:
    """Where the next voxel, along either axis, has another label."""
    found = np.zeros(index.shape, bool)
    found[:-1] |= index[:-1] != index[1:]
    found[1:] |= index[1:] != index[:-1]
    found[:, :-1] |= index[:, :-1] != index[:, 1:]
    found[:, 1:] |= index[:, 1:] != index[:, :-1]
    return found
