// What a plane shows: its volumes as they were sent or pulled, their colours, and how both are
// painted. `view` is one picture, {source, plane, base, top, stack}; `state` are the traits.

import { ARROWS, FOLDS, ORANGE, clamp } from "./page.js";
import {
  arrows, drawOutlines, imageOf, levelLines, movedLattice, pixelOf, resize, stretched, stroke, tint,
} from "./pen.js";
import { displacementOn, proportions, pull, unpack } from "./volume.js";

const SQUARE = 8; // of the checkerboard, in shortest sides of a voxel
const KEPT = 40; // planes and tables that are remembered

const BLUE = "rgba(86, 180, 233, 0.6)"; // of the cursor

/** The volumes of one message from Python, and what has been computed from them. */
export class Scene {
  constructor(meta, data) {
    this.meta = meta;
    this.arrays = unpack(meta, data);
    this.voxel = proportions(meta.spacing, meta.shape);
    this.cache = new Map();
    this.registration = meta.kind === "registration";
    this.flat = meta.shape[2] === 1;
  }

  /** What `make` returns, remembered as long as `key` names the same thing. */
  remembered(key, make) {
    if (!this.cache.has(key)) {
      if (this.cache.size > KEPT) this.cache.clear();
      this.cache.set(key, make());
    }
    return this.cache.get(key);
  }

  /** A volume on a plane. */
  planeOf(name, plane) {
    return this.remembered(`${name} ${plane.name} ${plane.index}`, () => {
      const { values } = this.arrays[name];
      return plane.read(values, new values.constructor(plane.size));
    });
  }

  /** u on a plane: its three components, in voxels. */
  field(plane) {
    return this.remembered(`u ${plane.name} ${plane.index}`,
      () => displacementOn(plane, this.arrays.u, this.meta.u_scale));
  }

  /** Moving pulled through x + t u(x): Python's own at t = 1, interpolated here in between. */
  warped(plane, t) {
    if (t === 1) return this.planeOf("warped", plane);
    return this.pulled("moving", plane, t, false);
  }

  /** The labels of moving pulled likewise; undefined if it has none. */
  warpedLabels(plane, t) {
    if (!this.arrays.moving_labels) return undefined;
    if (t === 1) return this.planeOf("warped_labels", plane);
    return this.pulled("moving_labels", plane, t, true);
  }

  pulled(name, plane, t, nearest) {
    if (t === 0) return this.planeOf(name, plane);
    return this.remembered(`${name} ${t} ${plane.name} ${plane.index}`, () => {
      const volume = this.arrays[name];
      const out = new volume.values.constructor(plane.size);
      return pull(plane, volume, this.field(plane), t, nearest, out);
    });
  }

  /** The labels that belong to a picture; undefined if there are none. */
  labelsOf({ source, plane }, t) {
    if (source === "warped") return this.warpedLabels(plane, t);
    const name = source === "image" ? "labels" : `${source}_labels`;
    return this.arrays[name] && this.planeOf(name, plane);
  }

  /** A table of 256 colours made in Python, as pixels: (256, 3) bytes -> 256 words. */
  table(name) {
    return this.remembered(`table ${name}`, () => {
      const { values } = this.arrays[`table_${name}`];
      const colour = (_, n) => pixelOf(values[3 * n], values[3 * n + 1], values[3 * n + 2]);
      return Uint32Array.from({ length: 256 }, colour);
    });
  }

  /** The table of greys, stretched between level - window / 2 and level + window / 2. */
  windowed(window, level) {
    return this.remembered(`grey ${window} ${level}`, () => {
      const grey = this.table("grey");
      return grey.map((_, n) => {
        const share = (n / 255 - level + window / 2) / window;
        return grey[clamp(Math.round(share * 255), 0, 255)];
      });
    });
  }

  /** The colour of each structure, as a pixel; the background's is 0, which paints nothing. */
  structurePixels() {
    return this.remembered("colours",
      () => this.meta.colours.map((rgb, label) => (label ? pixelOf(...rgb) : 0)));
  }
}

/** The grey values of a view, and the table of colours that they index. */
function picture(scene, { source, plane }, state) {
  const grey = scene.windowed(state.window, state.level);
  if (source !== "warped") return [scene.planeOf(source, plane), grey];
  const warped = scene.warped(plane, state.strength);
  if (state.mode === "side by side") return [warped, grey];

  const fixed = scene.planeOf("fixed", plane);
  if (state.mode === "flicker") return [state.phase ? fixed : warped, grey];
  if (state.mode === "difference") {
    const difference = warped.map((value, n) => 128 + (value - fixed[n]) / 2);
    return [difference, scene.table("diverging")];
  }
  const [across, upwards] = plane.sides.map((side) => Math.max(1, Math.round(SQUARE / side)));
  const checked = warped.map((value, n) => {
    const column = Math.floor(n % plane.width / across);
    const row = Math.floor(Math.floor(n / plane.width) / upwards);
    return (column + row) % 2 ? fixed[n] : value;
  });
  return [checked, grey];
}

/**
 * Paints the lower canvas, one pixel a voxel, and shows it at `zoom` screen pixels per shortest
 * side of a voxel.
 */
export function paintBase(scene, view, state, zoom) {
  const { plane, base, stack } = view;
  const [values, colours] = picture(scene, view, state);
  resize(base, plane.width, plane.height);
  base.getContext("2d").putImageData(imageOf(plane, (n) => colours[values[n]]), 0, 0);
  show(base, plane, zoom);
  show(stack, plane, zoom);
}

/** Paints the upper canvas, as fine as the screen: layers, and the cursor. */
export function paintTop(scene, view, state, zoom) {
  const { plane, source, top } = view;
  const scale = zoom * (globalThis.devicePixelRatio || 1);
  const line = 1.6 / zoom;
  const pen = clean(top, plane, scale);
  show(top, plane, zoom);
  const on = (layer) => state.layers.includes(layer);
  if (source === "warped") paintMaps(pen, scene, plane, state, scale);
  if (on("labels")) paintLabels(pen, scene, view, state, scale, line);
  if (on("folds") && source === "warped") paintFolds(pen, scene, plane, scale);
  if (scene.registration && on("grid")) paintGrid(pen, scene, view, state, line);
  if (on("arrows") && source === "fixed") {
    const path = arrows(plane, scene.field(plane), state.strength);
    stroke(pen, stretched(path, plane), ARROWS, line);
  }
  stroke(pen, stretched(cross(plane, state.cursor), plane), BLUE, 1 / zoom);
}

/** The size of a canvas, or what holds one, on the screen. */
function show({ style }, { width, height, sides: [wide, tall] }, zoom) {
  style.width = `${width * wide * zoom}px`;
  style.height = `${height * tall * zoom}px`;
}

/**
 * The pen of an emptied canvas, upwards, in units of a voxel's shortest side, each of `scale`
 * pixels.
 */
function clean(canvas, { width, height, sides: [wide, tall] }, scale) {
  resize(canvas, width * wide * scale, height * tall * scale);
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.setTransform(scale, 0, 0, -scale, wide / 2 * scale, (height - 0.5) * tall * scale);
  return pen;
}

/** Red, green and blue of "#RRGGBB". */
function bytesOf(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

/** Maps over the warped picture: |u| in mm, and det J. */
function paintMaps(pen, scene, plane, { layers, strength }, scale) {
  if (layers.includes("|u|")) {
    const [u, v, w] = scene.field(plane);
    const [di, dj, dk] = scene.meta.spacing;
    const steps = strength * 255 / scene.meta.u_max; // of the table of colours, per mm
    const table = scene.table("sequential");
    const colour = (n) => {
      const length = Math.hypot(u[n] * di, v[n] * dj, w[n] * dk);
      return table[Math.min(255, Math.round(length * steps))];
    };
    tint(pen, plane, scale, colour, 0.75);
  }
  if (layers.includes("det J")) {
    const values = scene.planeOf("jacobian", plane);
    const table = scene.table("diverging");
    tint(pen, plane, scale, (n) => table[values[n]], 0.75);
  }
}

/** The voxels where det J <= 0. */
function paintFolds(pen, scene, plane, scale) {
  const values = scene.planeOf("folds", plane);
  const folded = pixelOf(...bytesOf(FOLDS));
  tint(pen, plane, scale, (n) => (values[n] ? folded : 0), 1);
}

/** Labels filled or outlined; on warped, dashed, where they should have come to lie. */
function paintLabels(pen, scene, view, { strength, outline, opacity }, scale, line) {
  const { plane, source } = view;
  const { colours } = scene.meta;
  const labels = scene.labelsOf(view, strength);
  if (labels && outline) {
    drawOutlines(pen, labels, plane, colours, line * 1.2);
  } else if (labels) {
    const pixels = scene.structurePixels();
    tint(pen, plane, scale, (n) => pixels[labels[n]], opacity);
  }
  if (source === "warped" && scene.arrays.fixed_labels) {
    drawOutlines(pen, scene.planeOf("fixed_labels", plane), plane, colours, line, true);
  }
}

/** The lattice of fixed, carried along by phi on moving; on warped, moving's as it was pulled. */
function paintGrid(pen, scene, { source, plane }, { strength, push }, line) {
  const field = scene.field(plane);
  const draw = (path) => stroke(pen, stretched(path, plane), ORANGE, line);
  if (source === "moving" || (source === "warped" && push)) {
    draw(movedLattice(plane, field, strength));
  } else if (source === "fixed") {
    draw(movedLattice(plane, field, 0));
  } else {
    draw(levelLines(field[plane.right], strength, false, plane));
    draw(levelLines(field[plane.up], strength, true, plane));
  }
}

/** Two lines through the cursor. */
function cross({ right, up, width, height }, cursor) {
  const path = new Path2D();
  path.moveTo(cursor[right], -0.5);
  path.lineTo(cursor[right], height - 0.5);
  path.moveTo(-0.5, cursor[up]);
  path.lineTo(width - 0.5, cursor[up]);
  return path;
}
