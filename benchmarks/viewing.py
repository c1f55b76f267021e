"""How fast the viewers are in a browser, beside interact + matplotlib and ipympl: `make bench`. Not
a test.
"""

import shutil
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from deepatlas import phantom, viewers

from lab import open_notebook, printed, run_all, serve, write_notebook

STEPS, RATE = 80, 40  # slices asked for, and how many of them in a second

SET_UP = """import time, ipywidgets, numpy as np, matplotlib.pyplot as plt
from deepatlas import phantom, viewers
names = phantom.anatomy_of("brain").structures
moving, fixed = (phantom.make_scan("brain", i, (96, 96, 96), spacing=2.0) for i in (0, 1))
phi = phantom.true_deformation(moving, fixed)
image, labels = fixed.image[0].numpy(), np.ma.masked_equal(fixed.labels.numpy(), 0)
def draw(axes, k):
    return [a.imshow(v, **o) for a, cut in zip(axes, (np.s_[48], np.s_[:, 48], np.s_[:, :, k]))
            for v, o in ((image[cut].T, dict(cmap="gray", vmin=0, vmax=1)),
                         (labels[cut].T, dict(cmap="tab20", vmin=0, vmax=20, alpha=.5)))]
print("ready")"""
RIVALS = {
    "viewer": "display(viewers.view_scan(fixed, names))\nprint('made', time.time())",
    "registration": "display(viewers.view_registration(moving, fixed, phi, names))\n"
    "print('made', time.time())",
    "interact": "@ipywidgets.interact(k=(0, 95))\n"
    "def show(k=8):\n"
    "    draw(plt.subplots(1, 3, figsize=(9, 3))[1], k)\n"
    "    plt.show()\n"
    "print('made', time.time())",
    "ipympl": "%matplotlib widget\n"
    "figure, axes = plt.subplots(1, 3, figsize=(9, 3))\n"
    "shown = draw(axes, 8)\n"
    "slider = ipywidgets.IntSlider(8, 0, 95)\n"
    "def move(change):\n"
    "    k = change['new']\n"
    "    shown[4].set_data(image[:, :, k].T)\n"
    "    shown[5].set_data(labels[:, :, k].T)\n"
    "    figure.canvas.draw_idle()\n"
    "slider.observe(move, 'value')\n"
    "display(slider)\n"
    "print('made', time.time())",
}
COUNT = {  # how many new pictures have appeared
    "viewer": "() => Number(document.querySelector('.deepatlas').dataset.draws)",
    "interact": "() => window.pictures",
    "ipympl": "() => window.pictures",
}
WATCH = """(rival) => {
  window.pictures = 0;
  if (rival === 'interact') {
    const isPicture = (n) => n.querySelector?.('img') || n.tagName === 'IMG';
    new MutationObserver((all) => {
      window.pictures += all.flatMap((m) => [...m.addedNodes]).filter(isPicture).length;
    }).observe(document.body, { childList: true, subtree: true });
  }
  if (rival === 'ipympl') {
    const draw = CanvasRenderingContext2D.prototype.drawImage;
    CanvasRenderingContext2D.prototype.drawImage = function (source, ...rest) {
      if (source.tagName === 'IMG') window.pictures += 1;
      return draw.call(this, source, ...rest);
    };
  }
}"""


def draw_times(browser, folder):
    """A page of a 160^3 pair with labels and grid: pictures drawn of STEPS, and milliseconds for
    each.
    """
    moving, fixed = (phantom.make_scan("brain", i, (160, 160, 160), spacing=1.2) for i in (0, 1))
    viewer = viewers.view_registration(
        moving,
        fixed,
        phantom.true_deformation(moving, fixed),
        phantom.anatomy_of("brain").structures,
    )
    viewer.layers = ["labels", "grid"]
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(viewer.as_html(folder / "pair.html").as_uri())
    page.wait_for_selector("[data-draws]", timeout=60000)
    times = page.evaluate(
        """async ([steps, rate]) => {
      const root = document.querySelector('.deepatlas');
      const before = Number(root.dataset.draws);
      const times = [];
      new MutationObserver(() => times.push(Number(root.dataset.drawMs)))
        .observe(root, { attributes: true, attributeFilter: ['data-draws'] });
      for (let n = 0; n < steps; n++) {
        deepatlas.set('k', 40 + n);
        await new Promise((done) => setTimeout(done, 1000 / rate));
      }
      await new Promise((done) => setTimeout(done, 500));
      return [Number(root.dataset.draws) - before, times]; }""",
        [STEPS, RATE],
    )
    page.close()
    return times


def in_jupyterlab(browser, address, rival):
    """(seconds to the first picture after the cell's end, pictures of STEPS, pictures a second)."""
    page = browser.new_page(viewport={"width": 1400, "height": 1600})
    open_notebook(page, address, rival)
    run_all(page)
    first = {
        "viewer": ".deepatlas[data-draws]",
        "registration": ".deepatlas[data-draws]",
        "interact": ".jp-OutputArea img",
        "ipympl": "canvas",
    }[rival]
    page.wait_for_selector(f".jp-Notebook {first}", timeout=120000)
    seen = time.time()
    output = printed(page, "made")
    output.wait_for(timeout=60000)
    wait = max(seen - float(output.inner_text().split("made")[1].split()[0]), 0)
    if rival == "registration":
        page.close()
        return wait, 0, 0
    page.wait_for_timeout(1000)
    page.evaluate(WATCH, rival)
    page.locator(".deepatlas .stack" if rival == "viewer" else ".noUi-handle").last.focus()
    before, begun, last = page.evaluate(COUNT[rival]), time.time(), time.time()
    for n in range(STEPS):
        page.keyboard.press(
            "PageDown"
            if rival == "viewer" and n < 40
            else "PageUp"
            if rival == "viewer"
            else "ArrowRight"
        )
        time.sleep(max(0, begun + (n + 1) / RATE - time.time()))
    count = page.evaluate(COUNT[rival])
    while time.time() < last + 2:  # until nothing new has come for two seconds
        page.wait_for_timeout(100)
        if (now := page.evaluate(COUNT[rival])) != count:
            count, last = now, time.time()
    page.close()
    return wait, count - before, (count - before) / max(last - begun, STEPS / RATE)


def main():
    """Print one line per measurement."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        drawn, times = draw_times(browser, folder)
        print(
            f"160^3 pair, labels and grid, {STEPS} steps at {RATE} a second: {drawn} drawn, median "
            f"{statistics.median(times):.1f} ms, slowest {max(times):.1f} ms"
        )
        for rival, cell in RIVALS.items():
            write_notebook(folder / f"{rival}.ipynb", (SET_UP, cell))
        with serve(folder) as address:
            for rival in RIVALS:
                if rival == "ipympl" and find_spec("ipympl") is None:
                    print("ipympl: not installed (pip install ipympl)")
                    continue
                wait, pictures, rate = in_jupyterlab(browser, address, rival)
                speed = f"; {pictures} of {STEPS} pictures, {rate:.1f} a second" if pictures else ""
                print(
                    f"{rival}, 96^3, in JupyterLab: first picture {wait:.2f} s after the cell's "
                    f"end{speed}"
                )
        browser.close()


if __name__ == "__main__":
    main()
