// The slice viewer of deepatlas: everything it shows it slices, warps and paints here, in the browser, so that it
// needs no answer from the kernel. `meta` and `data` arrive once a picture; the state is in synced traits of the model.
//
// Conventions are those of the Python module: volumes (I, J, K) in C order; phi(x) = x + u(x), in voxels, leads from
// the fixed to the moving image, so that warping pulls: warped(x) = moving(phi(x)). On a picture the first axis of the
// plane grows to the right, the second upwards.

const PLANES = { sagittal: [0, 1, 2], coronal: [1, 0, 2], axial: [2, 0, 1] }; // normal, right, up
const AXES = ["i", "j", "k"];
const STATE = [...AXES, "plane", "layers", "outline", "opacity", "window", "level", "mode", "strength", "push"];
const LATTICE = 4; // voxels between lines of the deformation grid
const SQUARE = 8; // voxels of a square of the checkerboard

const STYLE = `
.deepatlas { font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-ui-font-color1, CanvasText); background: var(--jp-layout-color1, Canvas);
  padding: 6px; box-sizing: border-box; max-width: 100%; }
.deepatlas .bar { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; margin: 2px 0 6px; }
.deepatlas button, .deepatlas select { font: inherit; color: inherit; background: var(--jp-layout-color2, ButtonFace);
  border: 1px solid var(--jp-border-color1, GrayText); border-radius: 3px; padding: 1px 7px; cursor: pointer; }
.deepatlas button[aria-pressed=true] { background: var(--jp-brand-color1, #0b57d0); color: #fff; }
.deepatlas label, .deepatlas .legend { display: inline-flex; gap: 5px; align-items: center; }
.deepatlas input[type=range] { width: 110px; }
.deepatlas .views { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-end; }
.deepatlas figure { margin: 0; } .deepatlas figcaption { font-weight: 600; width: 0; min-width: 100%; }
.deepatlas .stack { position: relative; background: #000; line-height: 0; touch-action: none; cursor: crosshair; }
.deepatlas .base { image-rendering: pixelated; } .deepatlas .top { position: absolute; inset: 0; }
.deepatlas .stack:focus-visible, .deepatlas button:focus-visible, .deepatlas select:focus-visible,
.deepatlas input:focus-visible { outline: 3px solid #D55E00; outline-offset: 1px; }
.deepatlas .letter { position: absolute; font: 600 12px system-ui; color: #fff; text-shadow: 0 0 3px #000;
  pointer-events: none; line-height: 1; }
.deepatlas .status { min-height: 1.4em; font-variant-numeric: tabular-nums; margin-top: 4px; }
.deepatlas .note { opacity: .85; max-width: 75ch; margin-top: 2px; }
.deepatlas .note.wrong { color: #D55E00; opacity: 1; font-weight: 600; }
.deepatlas .legend canvas { width: 90px; height: 10px; }
`;

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// --- volumes ---------------------------------------------------------------------------------------------------------

const TYPES = { uint8: Uint8Array, int16: Int16Array };

/** {name: {values, shape}} from the one block of bytes that Python sent. */
function unpack(meta, data) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const arrays = {};
  for (const [name, { type, offset, shape }] of Object.entries(meta.arrays)) {
    const Type = TYPES[type];
    const count = shape.reduce((a, b) => a * b, 1);
    const part = bytes.slice(offset, offset + count * Type.BYTES_PER_ELEMENT); // a copy, so that it is aligned
    arrays[name] = { values: new Type(part.buffer), shape };
  }
  return arrays;
}

/** One plane of a volume, row by row from the bottom: value (x, y) stands at x + width * y. */
class Plane {
  constructor(name, shape, index) {
    const [normal, right, up] = PLANES[name];
    const strides = [shape[1] * shape[2], shape[2], 1];
    Object.assign(this, { name, normal, right, up, index, width: shape[right], height: shape[up] });
    [this.start, this.dx, this.dy] = [index * strides[normal], strides[right], strides[up]];
  }

  get size() { return this.width * this.height; }

  read(values, out) {
    for (let x = 0; x < this.width; x++) { // up is the faster axis of the volume
      let at = this.start + x * this.dx;
      for (let n = x; n < out.length; n += this.width, at += this.dy) out[n] = values[at];
    }
    return out;
  }

  /** Voxel (i, j, k) of the picture's (x, y). */
  voxel(x, y) {
    const voxel = [0, 0, 0];
    [voxel[this.normal], voxel[this.right], voxel[this.up]] = [this.index, x, y];
    return voxel;
  }
}

/** u (a volume of 2 or 3 channels, 1/64 voxel, at half or full resolution) on every pixel of a plane, in voxels. */
function displacementOn(plane, { values, shape: [channels, ...shape] }, scale) {
  const field = [0, 1, 2].map(() => new Float32Array(plane.size));
  const size = shape[0] * shape[1] * shape[2];
  for (let c = 0; c < channels; c++) {
    if (scale === 1) {
      plane.read(values.subarray(c * size, (c + 1) * size), field[c]);
      for (let n = 0; n < plane.size; n++) field[c][n] /= 64;
      continue;
    }
    const voxel = plane.voxel(0, 0);
    for (let y = 0, n = 0; y < plane.height; y++) {
      for (let x = 0; x < plane.width; x++, n++) {
        voxel[plane.right] = x;
        voxel[plane.up] = y;
        field[c][n] = linear(values, coarse(voxel[0], scale), coarse(voxel[1], scale), coarse(voxel[2], scale), shape,
          c * size) / 64;
      }
    }
  }
  return field;
}

/** Where voxel v of the full grid lies on a grid of 1/scale of the resolution. */
const coarse = (v, scale) => (v - (scale - 1) / 2) / scale;

/** `values` at the point (a, b, c) of a volume, by linear interpolation; outside, at the border. */
function linear(values, a, b, c, [I, J, K], offset = 0) {
  const [x, y, z] = [clamp(a, 0, I - 1), clamp(b, 0, J - 1), clamp(c, 0, K - 1)];
  const [i, j, k] = [Math.floor(x), Math.floor(y), Math.floor(z)];
  const [si, sj, sk] = [i < I - 1 ? J * K : 0, j < J - 1 ? K : 0, k < K - 1 ? 1 : 0];
  const o = offset + (i * J + j) * K + k;
  const line = (at) => values[at] + (values[at + sk] - values[at]) * (z - k);
  const face = (at) => line(at) + (line(at + sj) - line(at)) * (y - j);
  return face(o) + (face(o + si) - face(o)) * (x - i);
}

/** A volume pulled through x + t u(x) onto a plane: linearly, or (labels) from the nearest voxel. */
function pull(plane, { values, shape }, field, t, nearest, out) {
  const voxel = plane.voxel(0, 0);
  for (let y = 0, n = 0; y < plane.height; y++) {
    for (let x = 0; x < plane.width; x++, n++) {
      voxel[plane.right] = x;
      voxel[plane.up] = y;
      const [a, b, c] = [voxel[0] + t * field[0][n], voxel[1] + t * field[1][n], voxel[2] + t * field[2][n]];
      out[n] = nearest ? linear(values, Math.round(a), Math.round(b), Math.round(c), shape)
        : Math.round(linear(values, a, b, c, shape));
    }
  }
  return out;
}

// --- drawing on the upper canvas, in units of a voxel: the centre of voxel (x, y) is the point (x, y) ----------------

/** Edges between pixels of different labels; of two structures that touch, the smaller number's colour. */
function drawOutlines(pen, labels, plane, colours, width, dashed = false) {
  const { width: w, height: h } = plane;
  const paths = new Map();
  const edge = (a, b, x0, y0, x1, y1) => {
    const owner = a === 0 ? b : b === 0 ? a : Math.min(a, b);
    if (!paths.has(owner)) paths.set(owner, new Path2D());
    paths.get(owner).moveTo(x0, y0);
    paths.get(owner).lineTo(x1, y1);
  };
  for (let y = 0, n = 0; y < h; y++) {
    for (let x = 0; x < w; x++, n++) {
      if (x + 1 < w && labels[n] !== labels[n + 1]) edge(labels[n], labels[n + 1], x + 0.5, y - 0.5, x + 0.5, y + 0.5);
      if (y + 1 < h && labels[n] !== labels[n + w]) edge(labels[n], labels[n + w], x - 0.5, y + 0.5, x + 0.5, y + 0.5);
    }
  }
  pen.setLineDash(dashed ? [0.5, 0.5] : []);
  pen.lineWidth = width;
  for (const [label, path] of paths) {
    pen.strokeStyle = `rgb(${colours[label]})`;
    pen.stroke(path);
  }
  pen.setLineDash([]);
}

/** The lines where x + t u, or (up) y + t u, passes a multiple of LATTICE on a plane (marching squares). */
function levelLines(u, t, up, { width: w, height: h }) {
  const path = new Path2D();
  const band = (value) => Math.floor(value / LATTICE);
  for (let y = 0, n = 0; y + 1 < h; y++, n++) {
    for (let x = 0; x + 1 < w; x++, n++) {
      const [p, q, r] = up ? [y, y, y + 1] : [x, x + 1, x];
      const a = p + t * u[n], b = q + t * u[n + 1], c = q + r - p + t * u[n + w + 1], d = r + t * u[n + w];
      const low = band(a);
      if (band(b) === low && band(c) === low && band(d) === low) continue;
      const most = Math.max(a, b, c, d);
      for (let level = Math.ceil(Math.min(a, b, c, d) / LATTICE) * LATTICE; level <= most; level += LATTICE) {
        crossing(path, [a, b, c, d], level, x, y);
      }
    }
  }
  return path;
}

function crossing(path, [a, b, c, d], level, x, y) {
  const points = [];
  const side = (p, q, x0, y0, x1, y1) => {
    if ((p < level) === (q < level)) return;
    const t = (level - p) / (q - p);
    points.push([x0 + t * (x1 - x0), y0 + t * (y1 - y0)]);
  };
  side(a, b, x, y, x + 1, y);
  side(b, c, x + 1, y, x + 1, y + 1);
  side(c, d, x + 1, y + 1, x, y + 1);
  side(d, a, x, y + 1, x, y);
  for (let n = 0; n + 1 < points.length; n += 2) {
    path.moveTo(...points[n]);
    path.lineTo(...points[n + 1]);
  }
}

/** The lattice of the plane, each node drawn where x + t u(x) leads; motion through the plane is projected. */
function movedLattice(plane, field, t) {
  const path = new Path2D();
  const { width: w, height: h, right, up } = plane;
  const node = (x, y) => [x + t * field[right][x + y * w], y + t * field[up][x + y * w]];
  const every = t === 0 ? Infinity : LATTICE / 2; // voxels from point to point; without a warp, lines are straight
  const line = (count, at) => {
    path.moveTo(...at(0));
    for (let n = every; n < count - 1; n += every) path.lineTo(...at(n));
    path.lineTo(...at(count - 1));
  };
  for (let x = 0; x < w; x += LATTICE) line(h, (y) => node(x, y));
  for (let y = 0; y < h; y += LATTICE) line(w, (x) => node(x, y));
  return path;
}

/** Arrows from every fourth voxel x to where it looks, x + t u(x). */
function arrows(plane, field, t) {
  const path = new Path2D();
  const { width: w, height: h, right, up } = plane;
  for (let y = 2; y < h; y += LATTICE) {
    for (let x = 2; x < w; x += LATTICE) {
      const [dx, dy] = [t * field[right][x + y * w], t * field[up][x + y * w]];
      const length = Math.hypot(dx, dy);
      if (length < 0.1) continue;
      const head = Math.min(1.2, 0.45 * length) / length;
      path.moveTo(x, y);
      path.lineTo(x + dx, y + dy);
      path.moveTo(x + dx - head * (dx - 0.6 * dy), y + dy - head * (dy + 0.6 * dx));
      path.lineTo(x + dx, y + dy);
      path.lineTo(x + dx - head * (dx + 0.6 * dy), y + dy - head * (dy - 0.6 * dx));
    }
  }
  return path;
}

// --- the viewer ------------------------------------------------------------------------------------------------------

class Viewer {
  constructor(model, el) {
    this.model = model;
    this.meta = model.get("meta");
    this.arrays = unpack(this.meta, model.get("data"));
    this.root = element("div", { class: "deepatlas", role: "group", "aria-label": this.meta.title,
      "data-lm-suppress-shortcuts": "true" });
    this.flat = this.meta.shape[2] === 1;
    this.cache = new Map();
    this.draws = 0;
    this.phase = 0;
    this.build();
    el.replaceChildren(element("style", {}, STYLE), this.root);
    this.changed = () => this.schedule();
    this.renewed = () => { // another registration of the same pair
      this.meta = model.get("meta");
      this.arrays = unpack(this.meta, model.get("data"));
      this.cache.clear();
      this.explained = null;
      this.schedule();
    };
    model.on("change:data", this.renewed);
    for (const name of STATE) model.on(`change:${name}`, this.changed);
    this.resizes = new ResizeObserver(() => this.schedule());
    this.resizes.observe(this.root);
    this.clock = setInterval(() => this.tick(), 500);
    this.draw();
  }

  remove() {
    for (const name of STATE) this.model.off(`change:${name}`, this.changed);
    this.model.off("change:data", this.renewed);
    this.resizes.disconnect();
    clearInterval(this.clock);
  }

  get(name) { return this.model.get(name); }

  set(values) {
    this.hovered = null; // the line below follows the cursor again
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    if (!this.saving) { // one message a frame, however fast the pointer is
      this.saving = true;
      requestAnimationFrame(() => { this.saving = false; this.model.save_changes(); });
    }
    this.schedule();
  }

  get registration() { return this.meta.kind === "registration"; }
  get cursor() { return AXES.map((axis, n) => clamp(this.get(axis), 0, this.meta.shape[n] - 1)); }
  get strength() { return clamp(this.get("strength"), 0, 1); }
  on(layer) { return this.get("layers").includes(layer); }

  build() {
    const views = this.registration ? ["moving", "fixed", "warped"].map((source) => ({ source, only: "axial" }))
      : (this.flat ? ["axial"] : Object.keys(PLANES)).map((only) => ({ source: "image", only }));
    this.views = views.map((view) => this.buildView(view));
    this.status = element("div", { class: "status", role: "status" });
    this.note = element("div", { class: "note" });
    this.legends = element("span", { class: "bar" });
    this.root.append(this.buildBar(), element("div", { class: "views" }, ...this.views.map((view) => view.figure)),
      this.status, this.legends, this.note);
  }

  buildBar() {
    const bar = element("div", { class: "bar", role: "toolbar", "aria-label": "viewer controls" });
    this.controls = [];
    if (this.registration && !this.flat) bar.append(this.choice("plane", "plane", Object.keys(PLANES)));
    if (this.registration) {
      bar.append(this.choice("third picture", "mode", ["side by side", "checkerboard", "flicker", "difference"]));
      bar.append(this.slider("warp strength", "strength", 0, 1, 0.01));
    }
    this.meta.layers.forEach((layer, n) => bar.append(this.toggle(layer, n + 1)));
    if (this.meta.layers.includes("labels")) {
      bar.append(this.pressed("outline", "outline"), this.slider("opacity", "opacity", 0, 1, 0.05));
    }
    if (this.registration) bar.append(this.pressed("draw u as a push", "push"));
    bar.append(this.slider("window", "window", 0.05, 1, 0.01), this.slider("level", "level", 0, 1, 0.01));
    return bar;
  }

  choice(text, name, options) {
    const select = element("select", { "aria-label": text, onchange: () => this.set({ [name]: select.value }) },
      ...options.map((option) => element("option", { value: option }, option)));
    this.controls.push(() => { select.value = this.get(name); });
    return element("label", {}, text, select);
  }

  slider(text, name, min, max, step) {
    const input = element("input", { type: "range", min, max, step, "aria-label": text, "data-trait": name,
      oninput: () => this.set({ [name]: Number(input.value) }) });
    this.controls.push(() => { input.value = this.get(name); });
    return element("label", {}, text, input);
  }

  toggle(layer, number) {
    const button = element("button", { type: "button", title: `key ${number}`, "data-layer": layer,
      onclick: () => this.toggleLayer(layer) }, layer);
    this.controls.push(() => button.setAttribute("aria-pressed", this.on(layer)));
    return button;
  }

  pressed(text, name) {
    const button = element("button", { type: "button", "data-trait": name,
      onclick: () => this.set({ [name]: !this.get(name) }) }, text);
    this.controls.push(() => button.setAttribute("aria-pressed", this.get(name)));
    return button;
  }

  toggleLayer(layer) {
    const layers = this.get("layers");
    this.set({ layers: layers.includes(layer) ? layers.filter((name) => name !== layer) : [...layers, layer] });
  }

  buildView(view) {
    view.base = element("canvas", { class: "base", "data-source": view.source });
    view.top = element("canvas", { class: "top" });
    view.stack = element("div", { class: "stack", tabindex: "0", role: "slider", "aria-orientation": "vertical" },
      view.base, view.top);
    view.letters = ["left", "right", "bottom", "top"].map((side) => element("span", { class: "letter",
      style: `${side}: 3px; ${"left right".includes(side) ? "top: calc(50% - 6px)" : "left: calc(50% - 4px)"}` }));
    view.stack.append(...view.letters);
    view.caption = element("figcaption");
    view.figure = element("figure", {}, view.caption, view.stack);
    this.listen(view);
    return view;
  }

  listen(view) {
    const { stack } = view;
    stack.addEventListener("pointerdown", (event) => {
      stack.focus({ preventScroll: true });
      stack.setPointerCapture(event.pointerId);
      view.from = { x: event.clientX, y: event.clientY, window: this.get("window"), level: this.get("level") };
      this.drag(view, event);
      event.preventDefault();
    });
    stack.addEventListener("pointermove", (event) => {
      if (stack.hasPointerCapture(event.pointerId)) this.drag(view, event);
      else if (!event.buttons) this.describe(this.hovered = this.pointed(view, event));
    });
    stack.addEventListener("pointerleave", () => this.describe(this.hovered = null));
    stack.addEventListener("contextmenu", (event) => event.preventDefault());
    stack.addEventListener("keydown", (event) => this.key(view, event));
    stack.addEventListener("wheel", (event) => {
      if (!this.root.contains(document.activeElement)) return; // the page scrolls unless the viewer has the focus
      event.preventDefault();
      this.step(view, "normal", -Math.sign(event.deltaY));
    }, { passive: false });
  }

  pointed(view, event) {
    const box = view.stack.getBoundingClientRect();
    const { width, height } = view.plane;
    const x = clamp(Math.floor((event.clientX - box.left) / box.width * width), 0, width - 1);
    const y = clamp(height - 1 - Math.floor((event.clientY - box.top) / box.height * height), 0, height - 1);
    return view.plane.voxel(x, y);
  }

  drag(view, event) {
    if (event.buttons === 2 || event.shiftKey) { // window and level
      const { x, y, window, level } = view.from;
      this.set({ window: clamp(window + (event.clientX - x) / 300, 0.05, 1),
        level: clamp(level + (y - event.clientY) / 300, 0, 1) });
    } else {
      const [i, j, k] = this.pointed(view, event);
      this.set({ i, j, k });
    }
  }

  step(view, axis, by) {
    const n = view.plane[axis];
    this.set({ [AXES[n]]: clamp(this.cursor[n] + by, 0, this.meta.shape[n] - 1) });
  }

  key(view, event) {
    const last = this.meta.shape[view.plane.normal];
    const moves = { ArrowLeft: ["right", -1], ArrowRight: ["right", 1], ArrowUp: ["up", 1], ArrowDown: ["up", -1],
      PageUp: ["normal", 1], PageDown: ["normal", -1], Home: ["normal", -last], End: ["normal", last] };
    const layer = this.meta.layers[Number(event.key) - 1];
    if (event.ctrlKey || event.metaKey || event.altKey || !(moves[event.key] || layer)) return;
    if (layer) this.toggleLayer(layer);
    else this.step(view, ...moves[event.key]);
    event.preventDefault();
    event.stopPropagation();
  }

  tick() {
    if (this.registration && this.get("mode") === "flicker") {
      this.phase = 1 - this.phase;
      this.schedule();
    }
  }

  schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    const begun = performance.now();
    for (const control of this.controls) control();
    const cursor = this.cursor;
    for (const view of this.views) {
      const name = this.registration && !this.flat ? this.get("plane") : view.only;
      view.plane = new Plane(name, this.meta.shape, cursor[PLANES[name][0]]);
    }
    this.zoom = this.fit();
    for (const view of this.views) {
      this.paintBase(view);
      this.paintTop(view, cursor);
      this.announce(view);
    }
    this.describe(this.hovered);
    this.explain();
    this.root.dataset.draws = ++this.draws;
    this.root.dataset.drawMs = (performance.now() - begun).toFixed(2);
  }

  /** Screen pixels per voxel: all views side by side, or, on a narrow screen, one below the other. */
  fit() {
    const room = Math.max(this.root.clientWidth - 14, 100);
    const widths = this.views.map(({ plane }) => plane.width);
    const beside = (room - 10 * (widths.length - 1)) / widths.reduce((a, b) => a + b);
    const zoom = room < 500 ? room / Math.max(...widths) : beside;
    return Math.max(Math.min(zoom, 400 / Math.max(...this.views.map(({ plane }) => plane.height))), 0.5);
  }

  /** What `make` returns, remembered as long as `key` names the same thing; a few planes are kept. */
  remembered(key, make) {
    if (!this.cache.has(key)) {
      if (this.cache.size > 40) this.cache.clear();
      this.cache.set(key, make());
    }
    return this.cache.get(key);
  }

  planeOf(name, plane) {
    return this.remembered(`${name} ${plane.name} ${plane.index}`, () => {
      const { values } = this.arrays[name];
      return plane.read(values, new values.constructor(plane.size));
    });
  }

  field(plane) {
    return this.remembered(`u ${plane.name} ${plane.index}`,
      () => displacementOn(plane, this.arrays.u, this.meta.u_scale));
  }

  /** Moving pulled through x + t u(x): Python's own at t = 1, interpolated here in between. */
  warped(plane, what) {
    const t = this.strength;
    if (t === 1) return this.planeOf(what === "labels" ? "warped_labels" : "warped", plane);
    const name = what === "labels" ? "moving_labels" : "moving";
    if (t === 0) return this.planeOf(name, plane);
    return this.remembered(`${what} ${t} ${plane.name} ${plane.index}`, () => {
      const volume = this.arrays[name];
      return pull(plane, volume, this.field(plane), t, what === "labels", new volume.values.constructor(plane.size));
    });
  }

  /** The grey values of a view on its plane, and the name of the table of colours that they index. */
  picture({ source, plane }) {
    if (source !== "warped") return [this.planeOf(source, plane), "grey"];
    const [warped, mode] = [this.warped(plane, "image"), this.get("mode")];
    if (mode === "side by side") return [warped, "grey"];
    const fixed = this.planeOf("fixed", plane);
    if (mode === "flicker") return [this.phase ? fixed : warped, "grey"];
    if (mode === "difference") return [warped.map((value, n) => 128 + (value - fixed[n]) / 2), "diverging"];
    return [warped.map((value, n) => {
      const square = Math.floor(n % plane.width / SQUARE) + Math.floor(n / plane.width / SQUARE);
      return square % 2 ? fixed[n] : value;
    }), "grey"];
  }

  paintBase(view) {
    const [values, table] = this.picture(view);
    const { width: w, height: h } = view.plane;
    const image = new ImageData(w, h);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = table === "grey" ? this.windowed() : this.table(table);
    for (let y = 0, n = 0; y < h; y++) {
      for (let x = 0, at = (h - 1 - y) * w; x < w; x++) pixels[at++] = colours[values[n++]];
    }
    if (view.base.width !== w || view.base.height !== h) Object.assign(view.base, { width: w, height: h });
    view.base.getContext("2d").putImageData(image, 0, 0);
    for (const { style } of [view.base, view.stack]) {
      Object.assign(style, { width: `${w * this.zoom}px`, height: `${h * this.zoom}px` });
    }
  }

  /** A table of 256 colours made in Python, as pixels: (256, 3) bytes -> 256 words of RGBA. */
  table(name) {
    return this.remembered(`table ${name}`, () => {
      const { values } = this.arrays[`table_${name}`];
      return Uint32Array.from({ length: 256 }, (_, n) => 0xff000000
        | (values[3 * n + 2] << 16) | (values[3 * n + 1] << 8) | values[3 * n]);
    });
  }

  windowed() {
    const [window, level] = [this.get("window"), this.get("level")];
    return this.remembered(`grey ${window} ${level}`, () => {
      const grey = this.table("grey");
      return grey.map((_, n) => grey[clamp(Math.round((n / 255 - level + window / 2) / window * 255), 0, 255)]);
    });
  }

  paintTop(view, cursor) {
    const { plane, source, top } = view;
    const scale = this.zoom * (globalThis.devicePixelRatio || 1);
    const [width, height] = [Math.round(plane.width * scale), Math.round(plane.height * scale)];
    if (top.width !== width || top.height !== height) Object.assign(top, { width, height });
    Object.assign(top.style, { width: `${plane.width * this.zoom}px`, height: `${plane.height * this.zoom}px` });
    const pen = top.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.setTransform(scale, 0, 0, -scale, scale / 2, (plane.height - 0.5) * scale);
    const line = 1.6 / this.zoom;
    if (source === "warped") this.paintMaps(pen, plane, scale);
    if (this.on("labels")) this.paintLabels(pen, view, scale, line);
    if (this.registration && this.on("grid")) this.paintGrid(pen, view, line);
    if (this.on("arrows") && source === "fixed") {
      stroke(pen, arrows(plane, this.field(plane), this.strength), "#F0E442", line);
    }
    const cross = new Path2D();
    const [x, y] = [cursor[plane.right], cursor[plane.up]];
    cross.moveTo(x, -0.5);
    cross.lineTo(x, plane.height - 0.5);
    cross.moveTo(-0.5, y);
    cross.lineTo(plane.width - 0.5, y);
    stroke(pen, cross, "rgba(86, 180, 233, 0.6)", 1 / this.zoom);
  }

  /** Maps over the warped picture: |u| in mm, det J, and folds in red. */
  paintMaps(pen, plane, scale) {
    if (this.on("|u|")) {
      const [a, b, c] = this.field(plane);
      const steps = this.strength * 255 * 64 / this.meta.u_max; // of the table of colours, per voxel
      const length = a.map((_, n) => Math.hypot(a[n], b[n], c[n]) * steps);
      tint(pen, plane, scale, (n) => this.table("sequential")[Math.min(255, Math.round(length[n]))], 0.75);
    }
    if (this.on("det J")) {
      const values = this.planeOf("jacobian", plane);
      tint(pen, plane, scale, (n) => this.table("diverging")[values[n]], 0.75);
    }
    if (this.on("folds")) {
      const values = this.planeOf("folds", plane);
      tint(pen, plane, scale, (n) => (values[n] ? 0xff0000ff : 0), 1);
    }
  }

  paintLabels(pen, { source, plane }, scale, line) {
    const names = { image: "labels", moving: "moving_labels", fixed: "fixed_labels" };
    const labels = source !== "warped" ? this.arrays[names[source]] && this.planeOf(names[source], plane)
      : this.arrays.moving_labels && this.warped(plane, "labels");
    const { colours } = this.meta;
    if (labels && this.get("outline")) drawOutlines(pen, labels, plane, colours, line * 1.2);
    else if (labels) {
      const words = this.remembered("colours", () => colours.map(([r, g, b]) => 0xff000000 | (b << 16) | (g << 8) | r));
      tint(pen, plane, scale, (n) => (labels[n] ? words[labels[n]] : 0), this.get("opacity"));
    }
    if (source === "warped" && this.arrays.fixed_labels) { // where the labels should have come to lie
      drawOutlines(pen, this.planeOf("fixed_labels", plane), plane, colours, line, true);
    }
  }

  paintGrid(pen, { source, plane }, line) {
    const field = this.field(plane);
    const t = this.strength;
    if (source === "moving" || (source === "warped" && this.get("push"))) {
      stroke(pen, movedLattice(plane, field, t), "#D55E00", line);
    } else if (source === "fixed") {
      stroke(pen, movedLattice(plane, field, 0), "#D55E00", line);
    } else {
      stroke(pen, levelLines(field[plane.right], t, false, plane), "#D55E00", line);
      stroke(pen, levelLines(field[plane.up], t, true, plane), "#D55E00", line);
    }
  }

  announce(view) {
    const { plane, source, stack } = view;
    const count = this.meta.shape[plane.normal];
    const where = this.flat ? "slice" : plane.name;
    const composed = source === "warped" && this.get("mode") !== "side by side";
    const title = composed ? `${this.get("mode")} of fixed and warped` : source === "image" ? where : source;
    view.caption.textContent = `${title}${this.flat ? "" : `, slice ${plane.index + 1} of ${count}`}`;
    const attributes = { label: source === "image" ? where : `${title}, ${where}`, valuemin: 1, valuemax: count,
      valuenow: plane.index + 1, valuetext: `slice ${plane.index + 1} of ${count}` };
    for (const [name, value] of Object.entries(attributes)) stack.setAttribute(`aria-${name}`, value);
    const sides = [...this.meta.letters[plane.right], ...this.meta.letters[plane.up]];
    view.letters.forEach((letter, n) => { letter.textContent = sides[n]; });
  }

  /** The line below: voxel, millimetres, structure and intensities there. */
  describe(voxel) {
    voxel ??= this.cursor;
    const [I, J, K] = this.meta.shape;
    const at = (voxel[0] * J + voxel[1]) * K + voxel[2];
    const value = (name) => this.arrays[name].values[at];
    const grey = (name) => `${name} ${(value(name) / 255).toFixed(2)}`;
    const structure = (name) => this.arrays[name] && this.meta.structures[value(name)];
    const mm = this.meta.affine.slice(0, 3).map((row) => (row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2]
      + row[3]).toFixed(1));
    const parts = [`voxel ${voxel.slice(0, this.flat ? 2 : 3).join(" ")}`, `${mm.join(" ")} mm (R A S)`];
    if (this.registration) {
      const [channels, ...shape] = this.arrays.u.shape;
      const [size, t] = [shape[0] * shape[1] * shape[2], this.strength];
      const point = voxel.map((v) => coarse(v, this.meta.u_scale));
      const u = AXES.slice(0, channels).map((_, c) => t * linear(this.arrays.u.values, ...point, shape, c * size) / 64);
      const looked = voxel.map((v, n) => v + (u[n] ?? 0)); // where warped reads its value, at this strength
      const warped = t === 1 ? value("warped") : linear(this.arrays.moving.values, ...looked, this.meta.shape);
      parts.push(`${grey("moving")}, ${grey("fixed")}, warped ${(warped / 255).toFixed(2)}`);
      const det = value("jacobian");
      parts.push(`|u| ${(Math.hypot(...u) * this.meta.spacing).toFixed(1)} mm`,
        `det J ${value("folds") ? "≤ 0: a fold" : det === 255 ? "≥ 2" : (det / 127.5).toFixed(2)}`);
      const names = ["moving", "fixed"].filter((name) => structure(`${name}_labels`));
      parts.push(...names.map((name) => `${name}: ${structure(`${name}_labels`)}`));
      if (structure("moving_labels")) {
        const label = linear(this.arrays.moving_labels.values, ...looked.map(Math.round), this.meta.shape);
        parts.push(`warped: ${this.meta.structures[t === 1 ? value("warped_labels") : label]}`);
      }
    } else {
      parts.push(grey("image"), ...[structure("labels")].filter(Boolean));
    }
    const text = parts.join(" · ");
    if (this.status.textContent !== text) this.status.textContent = text; // announced once
  }

  /** Legends of what is shown, and the convention. */
  explain() {
    const shown = JSON.stringify([this.get("layers"), this.get("push")]);
    if (shown === this.explained) return;
    this.explained = shown;
    const bars = { "|u|": ["sequential", "0", `${(this.meta.u_max / 64 * this.meta.spacing).toFixed(1)} mm`],
      "det J": ["diverging", "0 shrinks", "2 grows"] };
    const legends = Object.keys(bars).filter((layer) => this.on(layer))
      .map((layer) => this.colourBar(layer, ...bars[layer]));
    if (this.on("labels")) {
      legends.push(...this.meta.structures.slice(1).map((name, n) => element("span", { class: "legend" },
        element("span", { style: `width:10px;height:10px;background:rgb(${this.meta.colours[n + 1]})` }), name)));
    }
    this.legends.replaceChildren(...legends);
    const wrong = this.registration && this.get("push");
    this.note.textContent = wrong ? this.meta.wrong : this.meta.note;
    this.note.classList.toggle("wrong", wrong);
  }

  colourBar(layer, table, low, high) {
    const canvas = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    const image = new ImageData(256, 1);
    new Uint32Array(image.data.buffer).set(this.table(table));
    canvas.getContext("2d").putImageData(image, 0, 0);
    return element("span", { class: "legend" }, `${layer}: ${low}`, canvas, high);
  }
}

function stroke(pen, path, colour, width) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke(path);
}

const scratch = new OffscreenCanvas(1, 1); // one for every tint: making them takes longer than filling them

/** Whole voxels in the colour (a word of RGBA) that `colour(n)` gives; 0 leaves a voxel alone. */
function tint(pen, { width: w, height: h }, scale, colour, opacity) {
  const image = new ImageData(w, h);
  const pixels = new Uint32Array(image.data.buffer);
  for (let y = 0, n = 0; y < h; y++) {
    for (let x = 0, at = (h - 1 - y) * w; x < w; x++) pixels[at++] = colour(n++);
  }
  if (scratch.width !== w || scratch.height !== h) Object.assign(scratch, { width: w, height: h });
  scratch.getContext("2d").putImageData(image, 0, 0);
  pen.save();
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.globalAlpha = opacity;
  pen.drawImage(scratch, 0, 0);
  pen.restore();
}

// --- a training, as it goes ------------------------------------------------------------------------------------------

const CURVES = { similarity: "#0072B2", regularity: "#009E73", anatomy: "#D55E00", supervised: "#CC79A7",
  "validation Dice": "#E69F00" };

/** Curves of every loss term and of validation Dice, and one pair as the networks see it now: all small messages. */
class TrainingView {
  constructor(model, el) {
    this.model = model;
    this.meta = model.get("meta");
    this.curves = element("div", { class: "views" });
    this.pictures = element("div", { class: "views" });
    this.status = element("div", { class: "status", role: "status" });
    el.replaceChildren(element("style", {}, STYLE), element("div", { class: "deepatlas", role: "group",
      "aria-label": this.meta.title, "data-lm-suppress-shortcuts": "true" }, this.status, this.curves, this.pictures));
    this.changed = () => { // curves and frame come together: one drawing
      if (this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => { this.waiting = false; this.draw(); });
    };
    for (const name of ["curves", "frame"]) model.on(`change:${name}`, this.changed);
    this.draw();
  }

  remove() { for (const name of ["curves", "frame"]) this.model.off(`change:${name}`, this.changed); }

  draw() {
    this.meta = this.model.get("meta");
    const curves = this.model.get("curves");
    const steps = Object.values(curves).map(({ x }) => x.at(-1));
    this.status.textContent = steps.length ? `step ${Math.max(...steps)}` : "waiting for the first step";
    this.curves.replaceChildren(...Object.entries(curves).map(([name, points]) => this.curve(name, points)));
    const frame = this.model.get("frame");
    if (frame?.byteLength) this.drawPair(unpack(this.meta, frame));
    this.status.parentElement.dataset.draws = Number(this.status.parentElement.dataset.draws ?? 0) + 1;
  }

  curve(name, { x, y }) {
    const ratio = globalThis.devicePixelRatio || 1;
    const [width, height] = [230, 90];
    const canvas = element("canvas", { width: width * ratio, height: height * ratio, role: "img",
      style: `width:${width}px;height:${height}px`, "aria-label": `${name}: now ${y.at(-1).toPrecision(3)}` });
    const [low, high] = [Math.min(...y), Math.max(...y)];
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const path = new Path2D();
    const at = (n) => [4 + (width - 8) * (x[n] - x[0]) / Math.max(x.at(-1) - x[0], 1),
      height - 4 - (height - 8) * (y[n] - low) / Math.max(high - low, 1e-12)];
    path.moveTo(...at(0));
    for (let n = 1; n < x.length; n++) path.lineTo(...at(n));
    stroke(pen, path, CURVES[name.split(" (")[0]], 1.6);
    const range = `${low.toPrecision(3)} to ${high.toPrecision(3)}`;
    return element("figure", {}, element("figcaption", {}, `${name}: ${y.at(-1).toPrecision(3)}`), canvas,
      element("div", { class: "note" }, range));
  }

  drawPair(arrays) {
    const [width, height] = arrays.fixed.shape;
    const plane = { width, height };
    const zoom = Math.max(1, Math.floor(280 / Math.max(width, height)));
    const turned = ({ values }) => { // (I, J) in C order -> row by row from the bottom
      const out = new values.constructor(width * height);
      for (let x = 0, n = 0; x < width; x++) for (let y = 0; y < height; y++) out[x + y * width] = values[n++];
      return out;
    };
    const titles = { fixed: "fixed, as segmented now", warped: "warped, as registered now" };
    const views = Object.keys(titles).filter((name) => arrays[name]).map((name) => {
      const canvas = element("canvas", { width: width * zoom, height: height * zoom, "data-source": name, role: "img",
        "aria-label": titles[name] });
      const pen = canvas.getContext("2d");
      const grey = turned(arrays[name]);
      tint(pen, plane, zoom, (n) => 0xff000000 | (grey[n] * 0x010101), 1);
      pen.setTransform(zoom, 0, 0, -zoom, zoom / 2, (height - 0.5) * zoom);
      if (name === "fixed" && arrays.labels) {
        drawOutlines(pen, turned(arrays.labels), plane, this.meta.colours, 1.6 / zoom);
      } else if (name === "warped" && arrays.u0) {
        stroke(pen, levelLines(turned(arrays.u0), 1 / 64, false, plane), "#D55E00", 1.2 / zoom);
        stroke(pen, levelLines(turned(arrays.u1), 1 / 64, true, plane), "#D55E00", 1.2 / zoom);
      }
      return element("figure", {}, element("figcaption", {}, titles[name]), canvas);
    });
    this.pictures.replaceChildren(...views);
  }
}

// --- finished runs ---------------------------------------------------------------------------------------------------

/** Points (x, y, name), one for each run; a click or an arrow key chooses one, and Python shows its warp. */
class SweepView {
  constructor(model, el) {
    Object.assign(this, { model, meta: model.get("meta") });
    this.ends = [0, 1].map((axis) => [Math.min, Math.max].map((end) => end(...this.meta.points.map((p) => p[axis]))));
    this.canvas = element("canvas", { tabindex: "0", role: "slider", "aria-label": this.meta.title,
      "aria-valuemin": 1, "aria-valuemax": this.meta.points.length,
      style: "width:420px;height:280px", width: 840, height: 560 });
    this.status = element("div", { class: "status", role: "status" });
    this.canvas.addEventListener("click", (event) => this.choose(this.nearest(event)));
    this.canvas.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!by) return;
      this.choose(clamp(model.get("chosen") + by, 0, this.meta.points.length - 1));
      event.preventDefault();
      event.stopPropagation();
    });
    el.replaceChildren(element("style", {}, STYLE), element("div", { class: "deepatlas",
      "data-lm-suppress-shortcuts": "true" }, this.canvas, this.status));
    this.changed = () => this.draw();
    model.on("change:chosen", this.changed);
    requestAnimationFrame(this.changed); // the theme's colour is known once this is on the page
  }

  remove() { this.model.off("change:chosen", this.changed); }

  choose(chosen) {
    this.model.set("chosen", chosen);
    this.model.save_changes();
  }

  /** Where a point lies on the canvas, 840 x 560. */
  place(point) {
    const [x, y] = this.ends.map(([low, high], axis) => (point[axis] - low) / (high - low || 1));
    return [120 + 670 * x, 470 - 410 * y];
  }

  nearest(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width * 840, (event.clientY - box.top) / box.height * 560];
    const far = this.meta.points.map((point) => Math.hypot(this.place(point)[0] - x, this.place(point)[1] - y));
    return far.indexOf(Math.min(...far));
  }

  draw() {
    const pen = this.canvas.getContext("2d");
    const chosen = this.model.get("chosen");
    pen.clearRect(0, 0, 840, 560);
    pen.fillStyle = pen.strokeStyle = getComputedStyle(this.canvas).color;
    pen.font = "24px system-ui";
    pen.textAlign = "center";
    pen.strokeRect(90, 30, 730, 470);
    pen.fillText(this.meta.axes[0], 455, 548);
    pen.setTransform(0, -1, 1, 0, 30, 265); // upwards
    pen.fillText(this.meta.axes[1], 0, 0);
    pen.resetTransform();
    pen.font = "20px system-ui";
    this.ends[0].forEach((x, n) => pen.fillText(x.toFixed(2), 120 + 670 * n, 526));
    this.ends[1].forEach((y, n) => pen.fillText(y.toFixed(1), 60, 477 - 410 * n));
    this.meta.points.forEach((point, n) => {
      const [x, y] = this.place(point);
      pen.textAlign = x < 455 ? "left" : "right"; // so that a name stays in the frame
      pen.fillStyle = pen.strokeStyle;
      pen.fillText(point[2], x + (x < 455 ? 16 : -16), y - 10);
      pen.beginPath();
      pen.arc(x, y, n === chosen ? 13 : 9, 0, 7);
      pen.fillStyle = n === chosen ? "#D55E00" : "#0072B2";
      pen.fill();
    });
    const [x, y, name] = this.meta.points[chosen];
    this.status.textContent = `${name}: ${this.meta.axes[1]} ${y.toFixed(1)}, ${this.meta.axes[0]} ${x.toFixed(2)}`;
    this.canvas.setAttribute("aria-valuenow", chosen + 1);
    this.canvas.setAttribute("aria-valuetext", this.status.textContent);
  }
}

const KINDS = { training: TrainingView, sweep: SweepView, scan: Viewer, registration: Viewer };

export default {
  render({ model, el }) {
    const view = new KINDS[model.get("meta").kind](model, el);
    return () => view.remove();
  },
};
