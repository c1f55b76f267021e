"""The JavaScript of the viewers without a browser: its geometry under node, by oracles, and how its
modules become one script.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from graphlib import CycleError
from itertools import pairwise
from pathlib import Path

from deepatlas import viewers
from deepatlas.viewers import bundle
from deepatlas.viewers.page import TEMPLATE, document
from deepatlas.warp import Deformation

import contourpy
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

MODULES = {path.stem: path.read_text("utf-8") for path in sorted(bundle.FOLDER.glob("*.js"))}
NODE_TESTS = sorted(Path(__file__).parent.glob("js/*.test.mjs"))
PLANES = ("sagittal", "coronal", "axial")  # by the axis that is the normal
SHAPE = (6, 8, 5)


@pytest.fixture(scope="session")
def node():
    """The command. Where there is none a test is skipped, or fails if DEEPATLAS_REQUIRE_BROWSER is
    1.
    """
    path = shutil.which("node")
    if path is None:
        reason = "no node here: install Debian's nodejs"
        if os.environ.get("DEEPATLAS_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def run_node(node, *arguments, **environment):
    """What node prints; an assertion that it succeeds."""
    done = subprocess.run(
        [node, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- geometry, by oracles -------------------------------------------------------------------------


def in_rows(volume, axis, index):
    """A plane as a viewer keeps it: row by row from the bottom, the first axis to the right."""
    return np.take(volume, index, axis).T.ravel().tolist()


def some_planes(shape):
    """(name, axis, index) of the first, a middle and the last plane along each axis."""
    for axis, name in enumerate(PLANES):
        for index in sorted({0, shape[axis] // 2, shape[axis] - 1}):
            yield name, axis, index


def volume_oracle():
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 256, SHAPE, dtype=np.uint8)
    points = rng.uniform(-2, 10, (200, 3))
    u = rng.integers(-150, 150, (3, *SHAPE), dtype=np.int16)
    planes = []
    for name, axis, index in some_planes(SHAPE):
        height, width = np.take(volume, index, axis).T.shape
        values = in_rows(volume, axis, index)
        planes.append(
            {"name": name, "index": index, "width": width, "height": height, "values": values}
        )
    return {
        "shape": SHAPE,
        "volume": volume.ravel().tolist(),
        "planes": planes,
        "points": points.tolist(),
        "interpolated": map_coordinates(
            volume.astype(float), points.T, order=1, mode="nearest"
        ).tolist(),
        "packed": packed(rng),
        "displacements": {
            "full resolution": displacement_oracle(SHAPE, 1),
            "half the resolution": displacement_oracle((6, 8, 4), 2),
            "2D": displacement_oracle((6, 8), 1),
            "2D, half the resolution": displacement_oracle((6, 8), 2),
        },
        "u": u.ravel().tolist(),
        "t": 0.37,
        "pulled": {"linear": pulled(volume, u, 0.37, 1), "nearest": pulled(volume, u, 0.37, 0)},
        "ties": [ties(volume, shift) for shift in ([0.5] * 3, [-0.5] * 3, [1.5, -1.5, 0.5])],
    }


def packed(rng):
    """A message from Python whose second array begins at an odd byte, and what it holds."""
    volumes = {
        "odd": torch.from_numpy(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)),
        "u": torch.from_numpy(rng.integers(-9999, 9999, (3, 2, 2, 2), dtype=np.int16)),
        "flat": torch.from_numpy(rng.integers(0, 256, (3, 5), dtype=np.uint8)),
    }
    meta, data = viewers.pack(volumes, tables={})
    return {
        "meta": meta,
        "data": base64.b64encode(data).decode(),
        "arrays": {name: values.flatten().tolist() for name, values in volumes.items()},
    }


def displacement_oracle(shape, scale):
    """A random u at 1/scale of the resolution, and torch's interpolation of it on planes."""
    coarse = [n // scale for n in shape]
    generator = torch.Generator().manual_seed(len(shape) + scale)
    steps = torch.randint(-999, 999, (len(shape), *coarse), generator=generator)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    full = F.interpolate(steps[None].double() / 64, size=shape, mode=mode)[0].numpy()
    flat = (1,) * (3 - len(shape))
    grid = (*shape, *flat)
    field = np.zeros((3, *grid))  # a 2D displacement does not leave the plane
    field[: len(shape)] = full.reshape(len(shape), *grid)
    planes = [
        {"name": name, "index": index, "field": [in_rows(u, axis, index) for u in field]}
        for name, axis, index in some_planes(grid)
    ]
    sent = {"values": steps.flatten().tolist(), "shape": [len(shape), *coarse, *flat]}
    return {"scale": scale, "shape": grid, "u": sent, "planes": planes}


def pulled(volume, u, t, order):
    """SciPy's volume(x + t u(x)) in whole numbers, on planes."""
    where = np.indices(SHAPE) + t * (u / 64)
    values = map_coordinates(volume.astype(float), where, order=order, mode="nearest")
    rounded = np.floor(values + 0.5).astype(int)
    return [
        {"name": name, "index": index, "values": in_rows(rounded, axis, index)}
        for name, axis, index in some_planes(SHAPE)
    ]


def ties(volume, shift):
    """What Python's ``warp_labels`` makes of labels that are shifted by halves, on planes."""
    u = torch.tensor(shift).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    warped = Deformation(u).warp_labels(torch.from_numpy(volume)[None])[0].numpy()
    planes = [
        {"name": name, "index": index, "values": in_rows(warped, axis, index)}
        for name, axis, index in some_planes(SHAPE)
    ]
    return {"shift": shift, "planes": planes}


def pen_oracle():
    return {
        "outlines": outlines(),
        "levels": {"right": level_points(up=False), "up": level_points(up=True)},
    }


def outlines():
    """Random labels, and the edges between them: {owner: [[x0, y0, x1, y1], ...]}."""
    labels = np.random.default_rng(1).integers(0, 4, (7, 9))  # rows from the bottom
    edges = {1: [], 2: [], 3: []}
    for y, x in np.argwhere(labels[:, 1:] != labels[:, :-1]).tolist():
        owner = owner_of(labels[y, x], labels[y, x + 1])
        edges[owner].append([x + 0.5, y - 0.5, x + 0.5, y + 0.5])
    for y, x in np.argwhere(labels[1:] != labels[:-1]).tolist():
        owner = owner_of(labels[y, x], labels[y + 1, x])
        edges[owner].append([x - 0.5, y + 0.5, x + 0.5, y + 0.5])
    return {"labels": labels.ravel().tolist(), "width": 9, "height": 7, "edges": edges}


def owner_of(*labels):
    """The smaller of two labels that touch, but not the background."""
    return int(min(label for label in labels if label))


def level_points(up):
    """A smooth random u, and the vertices of contourpy's lines where x + t u is 0, 4, 8, ..."""
    generator = torch.Generator().manual_seed(2)
    coarse = 2 * torch.randn(1, 1, 5, 6, generator=generator)
    u = F.interpolate(coarse, (18, 23), mode="bicubic", align_corners=True)[0, 0].numpy()
    t = 0.75
    y, x = np.indices(u.shape)
    phi = (y if up else x) + t * u.astype(float)
    contours = contourpy.contour_generator(z=phi)
    lines = []
    for level in range(-40, 80, 4):
        lines += contours.lines(level)
    return {
        "u": u.ravel().tolist(),
        "t": t,
        "width": 23,
        "height": 18,
        "points": np.concatenate(lines).tolist(),
        "segments": sum(len(line) - 1 for line in lines),
    }


ORACLES = {"volume.test": volume_oracle, "pen.test": pen_oracle}  # others need none


@pytest.mark.parametrize("path", NODE_TESTS, ids=lambda path: path.stem)
def test_under_node(node, path, tmp_path):
    oracle = tmp_path / "oracle.json"
    expected = ORACLES.get(path.stem, dict)()
    oracle.write_text(json.dumps(expected), encoding="utf-8")
    printed = run_node(node, "--test", path, ORACLE=oracle)
    assert re.search(r"^. pass [1-9]", printed, re.MULTILINE), printed


# --- modules --------------------------------------------------------------------------------------

DECLARED = re.compile(r"^(export )?(?:function|class|const|let) (\S+)", re.MULTILINE)


def declared_in(text, exported_only=False):
    """Every name at the top of a module, or those that it exports."""
    found = set()
    for export, name in DECLARED.findall(text):
        if export or not exported_only:
            found.add(name.partition("(")[0])
    return found


def imported_by(text):
    """The names that a module imports."""
    found = []
    for names in re.findall(r"^import \{([^}]+)\}", text, re.MULTILINE):
        found += [name.strip() for name in names.split(",") if name.strip()]
    return found


def used_in(text):
    """Every name in the code of a module but those behind a dot: no comments, no strings."""
    text = bundle.IMPORT.sub("", text)
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    text = re.sub(r'"[^"\n]*"', "", text)
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", text))


def test_no_name_stands_at_the_top_of_two_modules():
    """They share one scope in the script, and with the names of the page without a kernel."""
    page = TEMPLATE.read_text("utf-8").partition("%SCRIPT%")[2]
    seen = {"viewer"} | declared_in(page)
    for name, text in MODULES.items():
        declared = declared_in(text)
        assert all(map(str.isidentifier, declared)), f"{name}.js: one name a declaration"
        assert not seen & declared, f"{name}.js"
        seen |= declared


def test_every_module_is_reached_from_index_after_what_it_imports():
    order = list(bundle.modules())
    assert sorted(order) == sorted(MODULES) and order[-1] == "index"
    for name, text in MODULES.items():
        for other in bundle.IMPORT.findall(text):
            assert order.index(other) < order.index(name)


def test_a_circle_of_imports_is_refused(tmp_path):
    (tmp_path / "index.js").write_text('import { a } from "./a.js";\n')
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\nexport const a = 1;\n')
    (tmp_path / "b.js").write_text('import { a } from "./a.js";\nexport const b = 2;\n')
    with pytest.raises(CycleError):
        bundle.script(folder=tmp_path)
    (tmp_path / "b.js").write_text("export const b = 2;\n")
    joined = bundle.script(folder=tmp_path)
    assert joined.replace("\n", "") == "const b = 2;const a = 1;"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_what_it_uses_and_uses_what_it_imports(name):
    """The script hides an import that is missing, since there all names share one scope."""
    text = MODULES[name]
    imported, used = imported_by(text), used_in(text)
    assert len(imported) == len(set(imported))
    assert set(imported) <= used, "imported in vain"
    strange = used - set(imported) - declared_in(text)
    for other in MODULES.keys() - {name}:
        missing = strange & declared_in(MODULES[other], exported_only=True)
        assert not missing, f"of {other}.js, used without an import"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_about_in_100_columns(name):
    lines = MODULES[name].splitlines()
    assert lines[0].startswith("// ")
    assert max(map(len, lines)) <= 100
    for before, line in pairwise(lines):
        if re.match("export (async )?(function|class)|export const .*=>", line):
            assert before.endswith("*/"), f"no sentence above: {line}"


def test_node_imports_every_module_alone(node, tmp_path):
    lines = [f'await import("{(bundle.FOLDER / f"{name}.js").as_uri()}");' for name in MODULES]
    script = tmp_path / "all.mjs"
    script.write_text("\n".join(lines))
    run_node(node, script)


# --- the script -----------------------------------------------------------------------------------


def test_the_script_has_no_import_and_one_export():
    assert not re.search(r"^ *import\b|\bimport\(|\brequire\(", bundle.SCRIPT, re.MULTILINE)
    assert re.findall(r"^ *export\b.*", bundle.SCRIPT, re.MULTILINE) == ["export default {"]
    assert viewers.SliceViewer._esm == bundle.SCRIPT


def test_the_script_and_the_page_are_sound(node, tmp_path):
    script = tmp_path / "script.mjs"
    script.write_text(bundle.SCRIPT, encoding="utf-8")
    run_node(node, "--check", script)
    shows = 'import view from "./script.mjs";\nconsole.log(typeof view.render);\n'
    (tmp_path / "import.mjs").write_text(shows)
    assert run_node(node, tmp_path / "import.mjs") == "function\n"

    text = document({"meta": {"title": "one < two"}, "data": b""})
    page = tmp_path / "page.mjs"
    page.write_text(re.search(r'<script type="module">\n(.*?)</script>', text, re.DOTALL)[1])
    run_node(node, "--check", page)
    assert "<title>one &lt; two</title>" in text and "%SCRIPT%" not in text
