"""A JupyterLab of its own on this machine, for browser tests and benchmarks."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager

import nbformat


def write_notebook(path, cells):
    """Write a notebook of code ``cells`` for the Python that runs this."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, path)


@contextmanager
def serve(folder):
    """The address of a JupyterLab on ``folder``, private in its settings and quiet towards the
    network.
    """
    options = [
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=0",
        "--allow-root",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.news_url=None",
    ]
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    environment = (
        os.environ
        | {name: str(folder / place) for name, place in places.items()}
        | {"OMP_NUM_THREADS": "1"}
    )
    log = folder / "lab.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stderr=file, env=environment
        )
    try:
        for _ in range(1800):
            if (
                found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
            ) or server.poll() is not None:
                break
            time.sleep(0.1)
        assert found, f"JupyterLab did not start:\n{log.read_text()}"
        yield found[0]
    finally:
        server.terminate()
        server.wait(timeout=30)


def open_notebook(page, address, name):
    """Open a notebook in ``page`` and wait for its kernel."""
    # not where another notebook is open
    page.goto(f"{address}/lab/workspaces/{name}/tree/{name}.ipynb")
    page.wait_for_selector(".jp-Notebook", timeout=180000)
    page.wait_for_selector(".jp-Toolbar-kernelName:has-text('Python 3')", timeout=180000)


def run_all(page):
    """Run All Cells, from the menu."""
    page.get_by_role("menuitem", name="Run", exact=True).first.click()
    page.get_by_text("Run All Cells", exact=True).first.click()


def printed(page, text):
    """The output that contains ``text``; the source of a cell does not count."""
    return page.locator(".jp-OutputArea-output", has_text=text)
