"""Set-up of every test: private folders, one thread-safe figure backend, and the real scans if they
are there.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

PRIVATE = Path(tempfile.mkdtemp(prefix="deepatlas-tests-"))
atexit.register(shutil.rmtree, PRIVATE, ignore_errors=True)

if os.environ.get("DEEPATLAS_DATA"):
    os.environ["DEEPATLAS_DATA"] = str(Path(os.environ["DEEPATLAS_DATA"]).resolve())
os.environ["DEEPATLAS_RUNS"] = str(PRIVATE / "runs")  # never the project's own runs/
os.environ["DEEPATLAS_ANSWERS"] = str(PRIVATE / "answers.json")
os.environ.setdefault("DEEPATLAS_CACHE", str(PRIVATE / "cache"))
os.environ["IPYTHONDIR"] = str(PRIVATE / "ipython")
os.environ["JUPYTER_RUNTIME_DIR"] = str(PRIVATE / "jupyter")
os.environ["MPLBACKEND"] = "Agg"
if os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # side by side: they share the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that train for minutes come first, so that other processes need not wait for them
    at the end.
    """
    long = {item.path for item in items if item.get_closest_marker("learning")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real scans. Without it a test is skipped, or fails if
    DEEPATLAS_REQUIRE_REAL_DATA is 1.
    """
    home = os.environ.get("DEEPATLAS_DATA", "")
    missing = [
        name
        for name in ("hippocampus", "oasis35")
        if not (Path(home) / name / "dataset.json").is_file()
    ]
    if home and not missing:
        return Path(home)
    reason = f"DEEPATLAS_DATA is {home or 'not set'}: no {' and no '.join(missing)} there"
    if os.environ.get("DEEPATLAS_REQUIRE_REAL_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def answers(tmp_path, monkeypatch) -> Path:
    """A file of answers that is the test's own, and not there yet."""
    path = tmp_path / "answers.json"
    monkeypatch.setenv("DEEPATLAS_ANSWERS", str(path))
    return path


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window. Where there is none a test is skipped, or fails if
    DEEPATLAS_REQUIRE_BROWSER is 1.
    """
    from playwright.sync_api import sync_playwright

    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        reason = "no chromium here: install Debian's chromium, or Chrome"
        if os.environ.get("DEEPATLAS_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=quiet)
        yield chromium
        chromium.close()
