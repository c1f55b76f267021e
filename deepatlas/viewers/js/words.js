// What is said beside the pictures: captions, ARIA, the line below, legends and notes.

import { ARROWS, FOLDS, element } from "./page.js";
import { imageOf } from "./pen.js";
import { displacementAt, linear, nearestVoxel } from "./volume.js";

/** Caption, letters and ARIA of a view. */
export function announce(view, { meta, flat }, { mode }) {
  const { plane, source, stack } = view;
  const count = plane.shape[plane.normal];
  const slice = `slice ${plane.index + 1} of ${count}`;
  const where = flat ? "slice" : plane.name;
  const composed = source === "warped" && mode !== "side by side";
  const named = composed ? `${mode} of fixed and warped` : source;
  const title = source === "image" ? where : named;

  view.caption.textContent = flat ? title : `${title}, ${slice}`;
  stack.setAttribute("aria-label", source === "image" ? where : `${title}, ${where}`);
  stack.setAttribute("aria-valuemin", 1);
  stack.setAttribute("aria-valuemax", count);
  stack.setAttribute("aria-valuenow", plane.index + 1);
  stack.setAttribute("aria-valuetext", slice);
  const sides = [...meta.letters[plane.right], ...meta.letters[plane.up]];
  view.letters.forEach((letter, n) => { letter.textContent = sides[n]; });
}

/** The line below: voxel, millimetres, structure and intensities there. */
export function describe(scene, state, voxel) {
  const { meta, flat, registration } = scene;
  const numbers = flat ? voxel.slice(0, 2) : voxel;
  const mm = meta.affine.slice(0, 3).map(
    ([a, b, c, d]) => (a * voxel[0] + b * voxel[1] + c * voxel[2] + d).toFixed(1));
  const there = probe(scene, voxel);
  const parts = registration ? ofRegistration(scene, state, voxel, there) : ofScan(there);
  return [`voxel ${numbers.join(" ")}`, `${mm.join(" ")} mm (R A S)`, ...parts].join(" · ");
}

/** What the volumes of a scene hold at a voxel. */
function probe({ meta, arrays }, [i, j, k]) {
  const [, J, K] = meta.shape;
  const at = (i * J + j) * K + k;
  const value = (name) => arrays[name].values[at];
  const structure = (name) => arrays[name] && meta.structures[value(name)];
  return { value, structure };
}

/** A byte as an intensity. */
const intensity = (value) => (value / 255).toFixed(2);

function ofScan({ value, structure }) {
  const parts = [`image ${intensity(value("image"))}`];
  if (structure("labels")) parts.push(structure("labels"));
  return parts;
}

function ofRegistration({ meta, arrays }, { strength: t }, voxel, { value, structure }) {
  // Where warped reads its value, at this strength.
  const u = displacementAt(voxel, arrays.u, meta.u_scale).map((along) => t * along);
  const looked = voxel.map((v, n) => v + (u[n] ?? 0));
  const length = Math.hypot(...u.map((along, n) => along * meta.spacing[n]));
  const pulled = (name, point) => linear(arrays[name].values, ...point, meta.shape);
  const warped = t === 1 ? value("warped") : pulled("moving", looked);
  const parts = [
    `moving ${intensity(value("moving"))}, fixed ${intensity(value("fixed"))}, `
      + `warped ${intensity(warped)}`,
    `|u| ${length.toFixed(1)} mm`,
    `det J ${determinant(value("jacobian"), value("folds"))}`,
  ];
  for (const name of ["moving", "fixed"]) {
    const there = structure(`${name}_labels`);
    if (there) parts.push(`${name}: ${there}`);
  }
  if (structure("moving_labels")) {
    const nearest = voxel.map((v, n) => nearestVoxel(v, u[n] ?? 0));
    const label = t === 1 ? value("warped_labels") : pulled("moving_labels", nearest);
    parts.push(`warped: ${meta.structures[label]}`);
  }
  return parts;
}

/** The byte that stands for det J, from 0 to 2, in words. */
function determinant(value, folded) {
  if (folded) return "≤ 0: a fold";
  return value === 255 ? "≥ 2" : (value / 127.5).toFixed(2);
}

/** Legends of what is shown, and the convention; made anew only if something else shows. */
export class Legend {
  constructor() {
    this.bars = element("span", { class: "bar" });
    this.note = element("div", { class: "note" });
    this.shown = null;
  }

  show(scene, { layers, push }) {
    const wanted = JSON.stringify([layers, push]);
    if (wanted === this.shown && scene === this.scene) return;
    Object.assign(this, { shown: wanted, scene });
    this.bars.replaceChildren(...legends(scene, layers));
    const wrong = scene.registration && push;
    this.note.textContent = wrong ? scene.meta.wrong : scene.meta.note;
    this.note.classList.toggle("wrong", wrong);
  }
}

function legends(scene, layers) {
  const { meta } = scene;
  const found = [];
  if (layers.includes("|u|")) {
    const longest = `${meta.u_max.toFixed(1)} mm`;
    found.push(colourBar("|u|: 0", scene.table("sequential"), longest));
  }
  if (layers.includes("det J")) {
    found.push(colourBar("det J: 0 shrinks", scene.table("diverging"), "2 grows"));
  }
  if (layers.includes("arrows")) found.push(colourSquare(ARROWS, "where a voxel looks"));
  if (layers.includes("folds")) found.push(colourSquare(FOLDS, "folds: det J ≤ 0"));
  if (layers.includes("labels")) {
    meta.structures.forEach((name, label) => {
      if (label) found.push(colourSquare(`rgb(${meta.colours[label]})`, name));
    });
  }
  return found;
}

/** A table of colours between what its ends mean. */
function colourBar(low, table, high) {
  const canvas = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const image = imageOf({ width: 256, height: 1 }, (n) => table[n]);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return element("span", { class: "legend" }, low, canvas, high);
}

function colourSquare(colour, name) {
  const square = element("span", { style: `width:10px;height:10px;background:${colour}` });
  return element("span", { class: "legend" }, square, name);
}
