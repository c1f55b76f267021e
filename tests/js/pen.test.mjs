// What is drawn, without a canvas: outlines against NumPy, level lines against contourpy, lattice
// and arrows against affine fields.

import assert from "node:assert/strict";
import test from "node:test";

import {
  arrows, drawOutlines, imageOf, levelLines, movedLattice, pixelOf, resize, stretched, stroke, tint,
} from "../../deepatlas/viewers/js/pen.js";
import { Plane } from "../../deepatlas/viewers/js/volume.js";
import { FakeImageData, FakePath2D, close, oracle } from "./fakes.mjs";

globalThis.Path2D = FakePath2D;
globalThis.ImageData = FakeImageData;

const wanted = oracle();

/** A pen that remembers what it stroked. */
const fakePen = () => {
  const pen = { strokes: [], dashes: [], setLineDash: (dash) => pen.dashes.push(dash) };
  pen.stroke = (path) => pen.strokes.push([path, pen.strokeStyle, pen.lineWidth]);
  return pen;
};

test("outlines are the edges between different labels, of the smaller of two that touch", () => {
  const { labels, width, height, edges } = wanted.outlines;
  const colours = [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]];
  const pen = fakePen();
  drawOutlines(pen, labels, { width, height }, colours, 0.5, true);
  assert.deepEqual(pen.dashes, [[0.5, 0.5], []]);
  assert.deepEqual(pen.strokes.map(([, colour]) => colour).sort(),
    ["rgb(1,1,1)", "rgb(2,2,2)", "rgb(3,3,3)"]);
  for (const [path, colour, lineWidth] of pen.strokes) {
    const found = path.lines.map((line) => line.flat().join(" ")).sort();
    assert.deepEqual(found, edges[colour[4]].map((edge) => edge.join(" ")).sort());
    assert.equal(lineWidth, 0.5);
  }
});

test("one label has no outline", () => {
  const pen = fakePen();
  drawOutlines(pen, new Uint8Array(12).fill(2), { width: 4, height: 3 }, [], 1);
  assert.deepEqual(pen.strokes, []);
});

for (const [side, up] of [["right", false], ["up", true]]) {
  test(`level lines to the ${side} are contourpy's`, () => {
    const { u, t, width, height, points, segments } = wanted.levels[side];
    const { lines } = levelLines(Float32Array.from(u), t, up, { width, height });
    assert.ok(lines.every((line) => line.length === 2));
    assert.equal(lines.length, segments);
    const near = ([x, y]) => ([a, b]) => Math.hypot(a - x, b - y) < 1e-6;
    const ends = lines.flat();
    for (const point of points) assert.ok(ends.some(near(point)), `${point} is on no line`);
    for (const end of ends) assert.ok(points.some(near(end)), `${end} is on no contour`);
  });
}

test("level lines of a shift by one voxel stand one voxel before the lattice", () => {
  const u = new Float32Array(16 * 5).fill(1);
  const { lines } = levelLines(u, 1, false, { width: 16, height: 5 });
  const at = new Set(lines.flat().map(([x]) => x));
  assert.deepEqual([...at].sort((a, b) => a - b), [3, 7, 11, 15]);
});

test("level lines of an affine map are straight, and phi is a multiple of 4 on them", () => {
  const [width, height] = [20, 14];
  const phi = (x, y) => 1.5 * x - 0.5 * y + 1.25;
  const u = new Float32Array(width * height);
  for (let n = 0; n < u.length; n++) {
    const [x, y] = [n % width, Math.floor(n / width)];
    u[n] = phi(x, y) - x;
  }
  const { lines } = levelLines(u, 1, false, { width, height });
  const levels = lines.flat().map(([x, y]) => phi(x, y) / 4);
  assert.ok(close(levels, levels.map(Math.round), 1e-6));
  const [low, high] = [phi(0, height - 1), phi(width - 1, 0)];
  const all = Math.floor(high / 4) - Math.ceil(low / 4) + 1;
  assert.equal(new Set(levels.map(Math.round)).size, all);
});

test("a saddle has two pieces", () => {
  const u = Float32Array.from([3, 4, 5, 2]); // phi: 3, 5 below; 5, 3 above; the level 4 passes
  const { lines } = levelLines(u, 1, false, { width: 2, height: 2 });
  assert.equal(lines.length, 2);
});

/** An affine field on an axial plane: phi(x, y) = (x + 0.5 y + 2, 0.75 y - 0.25 x + 1). */
function affineField(plane) {
  const field = [0, 1, 2].map(() => new Float32Array(plane.size));
  plane.visit((n, [i, j]) => {
    field[0][n] = 0.5 * j + 2;
    field[1][n] = -0.25 * j - 0.25 * i + 1;
  });
  return field;
}

test("the lattice of fixed goes where an affine map leads it, at any strength", () => {
  const plane = new Plane("axial", [18, 13, 3], 1);
  const field = affineField(plane);
  for (const t of [1, 0.5]) {
    const { lines } = movedLattice(plane, field, t);
    const columns = [0, 4, 8, 12, 16].map((x) => along(13, (y) => [x, y]));
    const rows = [0, 4, 8, 12].map((y) => along(18, (x) => [x, y]));
    const moved = ([x, y]) => [x + t * (0.5 * y + 2), y + t * (1 - 0.25 * (x + y))];
    assert.equal(lines.length, columns.length + rows.length);
    [...columns, ...rows].forEach((line, n) => assert.ok(close(lines[n], line.map(moved))));
  }
});

/** The points of a line over `count` voxels: every second, and the last. */
function along(count, at) {
  const points = [];
  for (let n = 0; n < count - 1; n += 2) points.push(at(n));
  return [...points, at(count - 1)];
}

test("the lattice of a plane takes the components that lie in it", () => {
  const plane = new Plane("sagittal", [5, 9, 9], 2);
  const field = [7, 1, 2].map((value) => new Float32Array(plane.size).fill(value));
  const { lines } = movedLattice(plane, field, 1);
  assert.deepEqual(lines[0][0], [1, 2]);
});

test("without strength the lattice is straight lines from end to end", () => {
  const plane = new Plane("axial", [6, 9, 1], 0);
  const { lines } = movedLattice(plane, affineField(plane), 0);
  assert.deepEqual(lines, [
    [[0, 0], [0, 8]], [[4, 0], [4, 8]],
    [[0, 0], [5, 0]], [[0, 4], [5, 4]], [[0, 8], [5, 8]],
  ]);
});

test("arrows lead from every fourth voxel to where it looks", () => {
  const plane = new Plane("axial", [8, 8, 1], 0);
  const { lines } = arrows(plane, affineField(plane), 1);
  const shafts = lines.filter((_, n) => n % 2 === 0);
  const heads = lines.filter((_, n) => n % 2 === 1);
  const tails = [[2, 2], [6, 2], [2, 6], [6, 6]];
  const tips = tails.map(([x, y]) => [x + 0.5 * y + 2, y + 1 - 0.25 * (x + y)]);
  assert.ok(close(shafts, tails.map((tail, n) => [tail, tips[n]])));
  heads.forEach(([left, tip, right], n) => {
    assert.ok(close(tip, tips[n]));
    const [a, b] = [left, right].map(([x, y]) => Math.hypot(x - tip[0], y - tip[1]));
    assert.ok(close([a], [b]) && a < 1.5);
  });
});

test("arrows too short to be seen are left out", () => {
  const plane = new Plane("axial", [8, 8, 1], 0);
  const field = [0.2, 0, 0].map((value) => new Float32Array(plane.size).fill(value));
  assert.equal(arrows(plane, field, 1).lines.length, 8);
  assert.equal(arrows(plane, field, 0.4).lines.length, 0);
});

test("the head of an arrow is symmetric as the voxels are drawn, however long their sides", () => {
  const plane = new Plane("coronal", [8, 3, 8], 1, [1, 1, 4]);
  const field = [3, 0, -1].map((value) => new Float32Array(plane.size).fill(value));
  const { lines } = arrows(plane, field, 1);
  const drawn = ([x, y]) => [x, 4 * y];
  for (let n = 0; n < lines.length; n += 2) {
    const [tail, tip] = lines[n].map(drawn);
    const [left, end, right] = lines[n + 1].map(drawn);
    assert.deepEqual([tip[0] - tail[0], tip[1] - tail[1]], [3, -4]);
    assert.deepEqual(end, tip);
    for (const corner of [left, right]) { // 1.2 sides back along the arrow, .72 beside it
      const [x, y] = [corner[0] - tip[0], corner[1] - tip[1]];
      assert.ok(close([x * 0.6 - y * 0.8, Math.abs(x * 0.8 + y * 0.6)], [-1.2, 0.72]));
    }
    const both = [left[0] + right[0] - 2 * tip[0], left[1] + right[1] - 2 * tip[1]];
    assert.ok(close(both, [-1.44, 1.92]));
  }
  const short = [0, 0, 0.05].map((value) => new Float32Array(plane.size).fill(value));
  assert.equal(arrows(plane, short, 1).lines.length, 8); // 0.2 sides long
});

test("a path is stretched by the sides of a voxel, and left alone if they are equal", () => {
  globalThis.DOMMatrix = class {
    constructor(numbers) { this.numbers = numbers; }
  };
  FakePath2D.prototype.addPath = function addPath(path, { numbers: [a, , , d] }) {
    for (const line of path.lines) this.lines.push(line.map(([x, y]) => [a * x, d * y]));
  };
  const path = new FakePath2D();
  path.moveTo(1, 2);
  path.lineTo(3, 5);
  assert.equal(stretched(path, { sides: [1, 1] }), path);
  assert.deepEqual(stretched(path, { sides: [1, 4] }).lines, [[[1, 8], [3, 20]]]);
  assert.deepEqual(path.lines, [[[1, 2], [3, 5]]]);
});

test("an image has the top row first, in red, green, blue and full opacity", () => {
  const { data } = imageOf({ width: 2, height: 3 }, (n) => pixelOf(n, 10 * n, 100));
  const rows = [0, 1, 2].map((row) => Array.from(data.slice(8 * row, 8 * row + 8)));
  assert.deepEqual(rows, [
    [4, 40, 100, 255, 5, 50, 100, 255],
    [2, 20, 100, 255, 3, 30, 100, 255],
    [0, 0, 100, 255, 1, 10, 100, 255],
  ]);
});

test("a canvas that has its size already is left alone", () => {
  let cleared = 0;
  const canvas = { width: 3, set height(_) { cleared += 1; }, get height() { return 4; } };
  resize(canvas, 3, 4);
  assert.equal(cleared, 0);
  resize(canvas, 5, 4);
  assert.deepEqual([cleared, canvas.width], [1, 5]);
  const thin = {};
  resize(thin, 0.2, 7.6);
  assert.deepEqual(thin, { width: 1, height: 8 });
});

test("a stroke is in its colour and width", () => {
  const pen = fakePen();
  stroke(pen, "a path", "#123456", 2);
  assert.deepEqual(pen.strokes, [["a path", "#123456", 2]]);
});

test("all tints share one canvas, made when the first is wanted", () => {
  const made = [];
  globalThis.OffscreenCanvas = class {
    constructor(width, height) {
      Object.assign(this, { width, height });
      made.push(this);
    }

    getContext() {
      return { putImageData: (image) => { this.image = image; } };
    }
  };
  const drawn = [];
  const pen = {
    save() {}, restore() {}, setTransform: (...numbers) => { pen.transform = numbers; },
    drawImage: (canvas) => drawn.push([canvas.image.width, pen.globalAlpha, ...pen.transform]),
  };
  tint(pen, { width: 3, height: 2 }, 4, () => 0, 0.5);
  tint(pen, { width: 5, height: 2 }, 2, () => 0, 1);
  tint(pen, { width: 5, height: 2, sides: [1, 4] }, 2, () => 0, 1);
  assert.equal(made.length, 1);
  assert.deepEqual(drawn, [
    [3, 0.5, 4, 0, 0, 4, 0, 0], [5, 1, 2, 0, 0, 2, 0, 0], [5, 1, 2, 0, 0, 8, 0, 0],
  ]);
});
