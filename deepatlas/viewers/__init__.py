"""Viewers: scroll through a scan, or through a registration, in the browser.

A viewer is one widget whose picture is sliced and painted by the modules in ``js/``: its volumes
travel once, as bytes, and it needs no answer from Python afterwards, so that it goes on working
while a long cell runs. Its state is in synced traits (``i``, ``j``, ``k``, ``strength``,
``layers``, ...), which ipywidgets' controls may join by ``jslink``.

widget.py    the widget, and the functions that show a scan or a registration
state.py     what travels to the browser
page.py      a viewer as a page without a kernel
montage.py   all scans of a folder on one page, with what is odd
bundle.py    the modules of js/ as one script
"""

from .bundle import SCRIPT
from .state import (
    check,
    grey,
    label_bytes,
    pack,
    registration_state,
    sixty_fourths,
)
from .widget import SliceViewer, view_registration, view_scan

__all__ = [
    "SCRIPT",
    "SliceViewer",
    "check",
    "grey",
    "label_bytes",
    "pack",
    "registration_state",
    "sixty_fourths",
    "view_registration",
    "view_scan",
]
