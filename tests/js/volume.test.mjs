// Planes, interpolation and pulling, against NumPy, SciPy and torch.

import assert from "node:assert/strict";
import test from "node:test";

import {
  Plane, coarse, displacementAt, displacementOn, linear, nearestVoxel, proportions, pull, unpack,
} from "../../deepatlas/viewers/js/volume.js";
import { close, oracle } from "./fakes.mjs";

const wanted = oracle();
const { shape } = wanted;

test("unpack finds what Python packed, wherever its bytes begin", () => {
  const bytes = Buffer.from(wanted.packed.data, "base64");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const arrays = unpack(wanted.packed.meta, view);
  assert.deepEqual(Object.keys(arrays), Object.keys(wanted.packed.arrays));
  for (const [name, values] of Object.entries(wanted.packed.arrays)) {
    assert.deepEqual(Array.from(arrays[name].values), values, name);
    assert.deepEqual(arrays[name].shape, wanted.packed.meta.arrays[name].shape);
  }
  assert.ok(arrays.odd.values instanceof Uint8Array && arrays.u.values instanceof Int16Array);
});

test("a plane reads its voxels row by row from the bottom", () => {
  for (const { name, index, width, height, values } of wanted.planes) {
    const plane = new Plane(name, shape, index);
    assert.deepEqual([plane.width, plane.height, plane.size], [width, height, width * height]);
    const read = plane.read(wanted.volume, new Uint8Array(plane.size));
    assert.deepEqual(Array.from(read), values, `${name} ${index}`);
  }
});

test("a pixel's voxel holds the pixel's value", () => {
  const [, J, K] = shape;
  for (const { name, index, values } of wanted.planes) {
    const plane = new Plane(name, shape, index);
    const visited = [];
    for (let y = 0; y < plane.height; y++) {
      for (let x = 0; x < plane.width; x++) {
        const [i, j, k] = plane.voxel(x, y);
        assert.equal(wanted.volume[(i * J + j) * K + k], values[x + plane.width * y]);
        visited.push([x + plane.width * y, i, j, k]);
      }
    }
    const seen = [];
    plane.visit((n, voxel) => seen.push([n, ...voxel]));
    assert.deepEqual(seen, visited);
  }
});

test("linear is SciPy's, beyond the border, too", () => {
  const found = wanted.points.map((point) => linear(wanted.volume, ...point, shape));
  assert.ok(close(found, wanted.interpolated));
  const two = [...wanted.volume.map(() => 0), ...wanted.volume]; // channels, of which the second
  const second = wanted.points.map((point) => linear(two, ...point, shape, two.length / 2));
  assert.deepEqual(second, found);
});

test("linear gives an affine function back at any point within", () => {
  const [I, J, K] = shape;
  const affine = (i, j, k) => 3 * i - 2 * j + 0.5 * k + 7;
  const values = [];
  for (let i = 0; i < I; i++) {
    for (let j = 0; j < J; j++) {
      for (let k = 0; k < K; k++) values.push(affine(i, j, k));
    }
  }
  for (const [a, b, c] of [[0, 0, 0], [1.25, 2.5, 3.75], [I - 1, J - 1, K - 1], [4.9, 0.1, 0]]) {
    assert.ok(close([linear(values, a, b, c, shape)], [affine(a, b, c)]));
  }
});

test("a coarse voxel lies in the middle of the voxels that it stands for", () => {
  for (const scale of [1, 2, 4]) {
    for (let node = 0; node < 3; node++) {
      const first = node * scale;
      const last = first + scale - 1;
      assert.equal(coarse((first + last) / 2, scale), node);
    }
  }
});

for (const [title, { scale, shape: grid, u, planes }] of Object.entries(wanted.displacements)) {
  test(`u on a plane is torch's: ${title}`, () => {
    const volume = { values: Int16Array.from(u.values), shape: u.shape };
    for (const { name, index, field } of planes) {
      const plane = new Plane(name, grid, index);
      const found = displacementOn(plane, volume, scale);
      assert.equal(found.length, 3);
      assert.ok(close(found, field, 1e-5), `${name} ${index}`);
      plane.visit((n, voxel) => {
        const there = displacementAt(voxel, volume, scale);
        assert.equal(there.length, u.shape[0]);
        assert.ok(close(there, field.slice(0, there.length).map((along) => along[n]), 1e-5));
      });
    }
  });
}

for (const [kind, planes] of Object.entries(wanted.pulled)) {
  test(`pulling is SciPy's: ${kind}`, () => {
    const u = { values: Int16Array.from(wanted.u), shape: [3, ...shape] };
    const volume = { values: Uint8Array.from(wanted.volume), shape };
    for (const { name, index, values } of planes) {
      const plane = new Plane(name, shape, index);
      const field = displacementOn(plane, u, 1);
      const out = new Uint8Array(plane.size);
      assert.equal(pull(plane, volume, field, wanted.t, kind === "nearest", out), out);
      assert.deepEqual(Array.from(out), values, `${name} ${index}`);
    }
  });
}

test("a half goes up in every voxel, and rounding noise changes nothing, as in Python", () => {
  const volume = { values: Uint8Array.from(wanted.volume), shape };
  for (const { shift, planes } of wanted.ties) {
    for (const noise of [0, 1e-7, -1e-7, 1e-6, -1e-6]) {
      for (const { name, index, values } of planes) {
        const plane = new Plane(name, shape, index);
        const field = shift.map((u) => new Float32Array(plane.size).fill(u + noise));
        const out = pull(plane, volume, field, 1, true, new Uint8Array(plane.size));
        assert.deepEqual(Array.from(out), values, `${shift} + ${noise}, ${name} ${index}`);
      }
    }
  }
  assert.deepEqual([0.5, -0.5, 1.5, -1.5, 0.49, -0.51].map((u) => nearestVoxel(7, u)),
    [8, 7, 9, 6, 7, 6]);
});

test("the sides of a voxel are in units of the shortest that is seen", () => {
  assert.deepEqual(proportions([2, 2, 2], [5, 6, 7]), [1, 1, 1]);
  assert.deepEqual(proportions([2, 1, 4], [5, 6, 7]), [2, 1, 4]);
  assert.deepEqual(proportions([2, 3, 1], [5, 6, 1]), [1, 1.5, 0.5]); // 2D
  const sides = ["sagittal", "coronal", "axial"].map(
    (name) => new Plane(name, [5, 6, 7], 0, [2, 1, 4]).sides);
  assert.deepEqual(sides, [[1, 4], [2, 4], [2, 1]]);
  assert.deepEqual(new Plane("coronal", [5, 6, 7], 0).sides, [1, 1]);
});

test("pulling by no displacement reads the plane", () => {
  const volume = { values: Uint8Array.from(wanted.volume), shape };
  for (const { name, index, values } of wanted.planes) {
    const plane = new Plane(name, shape, index);
    const still = [0, 1, 2].map(() => new Float32Array(plane.size));
    for (const nearest of [false, true]) {
      const out = pull(plane, volume, still, 1, nearest, new Uint8Array(plane.size));
      assert.deepEqual(Array.from(out), values);
    }
  }
});
