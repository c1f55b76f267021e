// What a browser has and node has not, as far as geometry needs it; and what Python expects.

import { readFileSync } from "node:fs";

/** Written by tests/test_viewers_js.py. */
export const oracle = () => JSON.parse(readFileSync(process.env.ORACLE, "utf8"));

/** A path that remembers its lines: each the points from one moveTo to the next. */
export class FakePath2D {
  lines = [];

  moveTo(x, y) {
    this.lines.push([[x, y]]);
  }

  lineTo(x, y) {
    this.lines.at(-1).push([x, y]);
  }
}

export class FakeImageData {
  constructor(width, height) {
    Object.assign(this, { width, height, data: new Uint8ClampedArray(4 * width * height) });
  }
}

/** All numbers of nested arrays, typed ones included. */
function numbers(values) {
  return typeof values === "number" ? [values] : Array.from(values).flatMap(numbers);
}

/** Whether all numbers of two nested arrays are within `tolerance` of each other. */
export function close(found, wanted, tolerance = 1e-9) {
  const [a, b] = [numbers(found), numbers(wanted)];
  return a.length === b.length && a.every((value, n) => Math.abs(value - b[n]) <= tolerance);
}
