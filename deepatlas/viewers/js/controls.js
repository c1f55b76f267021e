// What the reader moves: the bar above the pictures, and pointer, keys and wheel on them.

import { clamp, element } from "./page.js";
import { AXES, PLANES } from "./volume.js";

const MODES = ["side by side", "checkerboard", "flicker", "difference"];

/** A row of controls, each of which sets a trait and follows it. */
export class Bar {
  constructor(traits) {
    this.traits = traits;
    this.followers = [];
    this.root = element("div", {
      class: "bar", role: "toolbar", "aria-label": "viewer controls",
    });
  }

  /** Every control shows what its trait says now. */
  follow() {
    for (const follower of this.followers) follower();
  }

  add(node, follower) {
    this.root.append(node);
    this.followers.push(follower);
  }

  choice(text, name, options) {
    const choose = () => this.traits.set({ [name]: select.value });
    const select = element("select", { "aria-label": text, onchange: choose },
      ...options.map((option) => element("option", { value: option }, option)));
    this.add(element("label", {}, text, select), () => { select.value = this.traits.get(name); });
  }

  slider(text, name, min, max, step) {
    const slide = () => this.traits.set({ [name]: Number(input.value) });
    const input = element("input", {
      type: "range", min, max, step, "aria-label": text, "data-trait": name, oninput: slide,
    });
    this.add(element("label", {}, text, input), () => { input.value = this.traits.get(name); });
  }

  /** A button that shows and hides a layer, as the key of its number does. */
  toggle(layer, number) {
    const button = element("button", {
      type: "button", title: `key ${number}`, "data-layer": layer,
      onclick: () => this.traits.toggleLayer(layer),
    }, layer);
    this.add(button, () => {
      button.setAttribute("aria-pressed", this.traits.get("layers").includes(layer));
    });
  }

  /** A button that is pressed while its trait is true. */
  pressed(text, name) {
    const button = element("button", {
      type: "button", "data-trait": name,
      onclick: () => this.traits.set({ [name]: !this.traits.get(name) }),
    }, text);
    this.add(button, () => button.setAttribute("aria-pressed", this.traits.get(name)));
  }
}

/** The bar of a viewer of this scene. */
export function buildBar(scene, traits) {
  const bar = new Bar(traits);
  const { layers } = scene.meta;
  if (scene.registration && !scene.flat) bar.choice("plane", "plane", Object.keys(PLANES));
  if (scene.registration) {
    bar.choice("third picture", "mode", MODES);
    bar.slider("warp strength", "strength", 0, 1, 0.01);
  }
  layers.forEach((layer, n) => bar.toggle(layer, n + 1));
  if (layers.includes("labels")) {
    bar.pressed("outline", "outline");
    bar.slider("opacity", "opacity", 0, 1, 0.05);
  }
  if (scene.registration) bar.pressed("draw u as a push", "push");
  bar.slider("window", "window", 0.05, 1, 0.01);
  bar.slider("level", "level", 0, 1, 0.01);
  return bar;
}

/** The voxel under the pointer. */
function pointed({ stack, plane }, event) {
  const { width, height } = plane;
  const box = stack.getBoundingClientRect();
  const right = Math.floor((event.clientX - box.left) / box.width * width);
  const down = Math.floor((event.clientY - box.top) / box.height * height);
  return plane.voxel(clamp(right, 0, width - 1), clamp(height - 1 - down, 0, height - 1));
}

/** A drag moves the cursor; with shift or the right button, window and level. */
function drag(view, traits, event, from) {
  if (event.buttons === 2 || event.shiftKey) {
    traits.set({
      window: clamp(from.window + (event.clientX - from.x) / 300, 0.05, 1),
      level: clamp(from.level + (from.y - event.clientY) / 300, 0, 1),
    });
  } else {
    const [i, j, k] = pointed(view, event);
    traits.set({ i, j, k });
  }
}

/** Moves the cursor by so many voxels along "right", "up" or "normal" of the view's plane. */
function move({ plane }, traits, direction, by) {
  const axis = plane[direction];
  traits.set({ [AXES[axis]]: clamp(traits.cursor[axis] + by, 0, plane.shape[axis] - 1) });
}

/** A key moves the cursor, or toggles the layer of its number; others are left to the page. */
function press(view, traits, event) {
  const slices = view.plane.shape[view.plane.normal];
  const moves = {
    ArrowLeft: ["right", -1], ArrowRight: ["right", 1],
    ArrowDown: ["up", -1], ArrowUp: ["up", 1],
    PageDown: ["normal", -1], PageUp: ["normal", 1],
    Home: ["normal", -slices], End: ["normal", slices],
  };
  const layer = traits.get("meta").layers[Number(event.key) - 1];
  const ours = moves[event.key] || layer;
  if (event.ctrlKey || event.metaKey || event.altKey || !ours) return;
  if (layer) traits.toggleLayer(layer);
  else move(view, traits, ...moves[event.key]);
  event.preventDefault();
  event.stopPropagation();
}

/** Listens on a view within `root`; `hover` is told the voxel under the pointer, or null. */
export function listen(view, root, traits, hover) {
  const { stack } = view;
  let from = null;
  stack.addEventListener("pointerdown", (event) => {
    stack.focus({ preventScroll: true });
    stack.setPointerCapture(event.pointerId);
    from = {
      x: event.clientX, y: event.clientY,
      window: traits.get("window"), level: traits.get("level"),
    };
    drag(view, traits, event, from);
    event.preventDefault();
  });
  stack.addEventListener("pointermove", (event) => {
    if (stack.hasPointerCapture(event.pointerId)) drag(view, traits, event, from);
    else if (!event.buttons) hover(pointed(view, event));
  });
  stack.addEventListener("pointerleave", () => hover(null));
  stack.addEventListener("contextmenu", (event) => event.preventDefault());
  stack.addEventListener("keydown", (event) => press(view, traits, event));
  stack.addEventListener("wheel", (event) => {
    // The page scrolls unless the viewer has the focus.
    if (!root.contains(document.activeElement)) return;
    event.preventDefault();
    move(view, traits, "normal", -Math.sign(event.deltaY));
  }, { passive: false });
}
