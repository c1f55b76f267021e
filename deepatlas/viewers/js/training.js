// A training as it goes: curves of every loss term and of validation Dice, and one pair as the
// networks see it now; all small messages.

import { ORANGE, STYLE, element, oncePerFrame } from "./page.js";
import { drawOutlines, levelLines, pixelOf, resize, stretched, stroke, tint } from "./pen.js";
import { proportions, unpack } from "./volume.js";

const WIDTH = 230; // pixels of a curve
const HEIGHT = 90;
const MARGIN = 4;
const LARGEST = 280; // pixels of the longer side of a picture

const TITLES = { fixed: "fixed, as segmented now", warped: "warped, as registered now" };

/** Curves above the pair, drawn anew with every message. */
export class TrainingView {
  constructor(model, el) {
    this.model = model;
    this.curves = element("div", { class: "views" });
    this.pictures = element("div", { class: "views" });
    this.status = element("div", { class: "status", role: "status" });
    this.root = element("div", {
      class: "deepatlas", role: "group", "aria-label": model.get("meta").title,
      "data-lm-suppress-shortcuts": "true",
    }, this.status, this.curves, this.pictures);
    el.replaceChildren(element("style", {}, STYLE), this.root);
    // Curves and frame come together: one drawing.
    this.changed = oncePerFrame(() => this.draw());
    model.on("change:curves", this.changed);
    model.on("change:frame", this.changed);
    this.draw();
  }

  remove() {
    this.model.off("change:curves", this.changed);
    this.model.off("change:frame", this.changed);
  }

  draw() {
    const meta = this.model.get("meta");
    const curves = Object.entries(this.model.get("curves"));
    const steps = curves.map(([, { x }]) => x.at(-1));
    const last = `step ${Math.max(...steps)}`;
    this.status.textContent = steps.length ? last : "waiting for the first step";
    this.curves.replaceChildren(...curves.map(([name, points]) => curveFigure(name, points)));
    const frame = this.model.get("frame");
    if (frame?.byteLength) {
      this.pictures.replaceChildren(...pairFigures(unpack(meta, frame), meta));
    }
    this.root.dataset.draws = Number(this.root.dataset.draws ?? 0) + 1;
  }
}

/** One curve with its latest value and its range, in its own colour. */
function curveFigure(name, { x, y, colour }) {
  const ratio = globalThis.devicePixelRatio || 1;
  const now = y.at(-1).toPrecision(3);
  const canvas = element("canvas", {
    width: WIDTH * ratio, height: HEIGHT * ratio, role: "img",
    style: `width:${WIDTH}px;height:${HEIGHT}px`, "aria-label": `${name}: now ${now}`,
  });
  const low = Math.min(...y);
  const high = Math.max(...y);

  // From the first step to the last, from the lowest value to the highest.
  const at = (n) => {
    const along = (x[n] - x[0]) / Math.max(x.at(-1) - x[0], 1);
    const upwards = (y[n] - low) / Math.max(high - low, 1e-12);
    return [
      MARGIN + (WIDTH - 2 * MARGIN) * along,
      HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * upwards,
    ];
  };
  const path = new Path2D();
  path.moveTo(...at(0));
  for (let n = 1; n < x.length; n++) path.lineTo(...at(n));

  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  stroke(pen, path, colour, 1.6);
  const range = `${low.toPrecision(3)} to ${high.toPrecision(3)}`;
  return element("figure", {}, element("figcaption", {}, `${name}: ${now}`), canvas,
    element("div", { class: "note" }, range));
}

/** The middle slices of the pair: fixed with its labels, warped with its grid. */
function pairFigures(arrays, { colours, spacing }) {
  const [width, height] = arrays.fixed.shape;
  const sides = proportions(spacing, arrays.fixed.shape).slice(0, 2);
  const plane = { width, height, sides };
  const [wide, tall] = [width * sides[0], height * sides[1]];
  const zoom = Math.max(1, Math.floor(LARGEST / Math.max(wide, tall)));
  const there = Object.keys(TITLES).filter((name) => arrays[name]);
  return there.map((name) => {
    const canvas = element("canvas", {
      "data-source": name, role: "img", "aria-label": TITLES[name],
    });
    resize(canvas, wide * zoom, tall * zoom);
    const pen = canvas.getContext("2d");
    const grey = rows(arrays[name]);
    tint(pen, plane, zoom, (n) => pixelOf(grey[n], grey[n], grey[n]), 1);
    const left = sides[0] / 2 * zoom;
    pen.setTransform(zoom, 0, 0, -zoom, left, (height - 0.5) * sides[1] * zoom);
    if (name === "fixed" && arrays.labels) {
      drawOutlines(pen, rows(arrays.labels), plane, colours, 1.6 / zoom);
    } else if (name === "warped" && arrays.u0) {
      for (const [u, up] of [[arrays.u0, false], [arrays.u1, true]]) {
        const lines = levelLines(rows(u), 1 / 64, up, plane);
        stroke(pen, stretched(lines, plane), ORANGE, 1.2 / zoom);
      }
    }
    return element("figure", {}, element("figcaption", {}, TITLES[name]), canvas);
  });
}

/** A slice (I, J) in C order, row by row from the bottom. */
function rows({ values, shape: [width, height] }) {
  const out = new values.constructor(width * height);
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) out[x + y * width] = values[x * height + y];
  }
  return out;
}
