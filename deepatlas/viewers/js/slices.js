// The viewer of a scan or of a registration: everything it shows it slices, warps and paints here,
// in the browser, so that it needs no answer from the kernel.

import { buildBar, listen } from "./controls.js";
import { STYLE, element, oncePerFrame } from "./page.js";
import { Scene, paintBase, paintTop } from "./scene.js";
import { Traits } from "./traits.js";
import { PLANES, Plane } from "./volume.js";
import { Legend, announce, describe } from "./words.js";

const GAP = 10; // pixels between two pictures
const TALLEST = 400; // pixels of a picture

/** Pictures with one linked cursor, the bar above them and the words below. */
export class SliceView {
  constructor(model, el) {
    this.model = model;
    this.draws = 0;
    this.phase = 0; // of the flicker: 0 shows warped, 1 fixed
    this.hovered = null; // the voxel that the line below describes; null: the cursor's
    this.scene = new Scene(model.get("meta"), model.get("data"));
    this.schedule = oncePerFrame(() => this.draw());
    this.traits = new Traits(model, this.schedule, () => { this.hovered = null; });
    this.build(el);
    this.watch();
    this.draw();
  }

  build(el) {
    const { scene, traits } = this;
    this.root = element("div", {
      class: "deepatlas", role: "group", "aria-label": scene.meta.title,
      "data-lm-suppress-shortcuts": "true",
    });
    this.bar = buildBar(scene, traits);
    this.views = viewsOf(scene);
    this.status = element("div", { class: "status", role: "status" });
    this.legend = new Legend();
    const hover = (voxel) => {
      this.hovered = voxel;
      this.describe(traits.read());
    };
    for (const view of this.views) listen(view, this.root, traits, hover);
    const figures = element("div", { class: "views" }, ...this.views.map((view) => view.figure));
    const { bars, note } = this.legend;
    this.root.append(this.bar.root, figures, this.status, bars, note);
    el.replaceChildren(element("style", {}, STYLE), this.root);
  }

  /** Draws again when the room changes, for each picture of a flicker, and for other volumes. */
  watch() {
    this.resizes = new ResizeObserver(() => this.schedule());
    this.resizes.observe(this.root);
    this.clock = setInterval(() => this.tick(), 500);
    this.renewed = () => { // another registration of the same pair
      this.scene = new Scene(this.model.get("meta"), this.model.get("data"));
      this.schedule();
    };
    this.model.on("change:data", this.renewed);
  }

  remove() {
    this.traits.remove();
    this.model.off("change:data", this.renewed);
    this.resizes.disconnect();
    clearInterval(this.clock);
  }

  tick() {
    if (!this.scene.registration || this.traits.get("mode") !== "flicker") return;
    this.phase = 1 - this.phase;
    this.schedule();
  }

  draw() {
    const begun = performance.now();
    const { scene, views } = this;
    const state = { ...this.traits.read(), phase: this.phase };
    this.bar.follow();
    for (const view of views) {
      const name = scene.registration && !scene.flat ? state.plane : view.only;
      const index = state.cursor[PLANES[name][0]];
      view.plane = new Plane(name, scene.meta.shape, index, scene.voxel);
    }
    const zoom = fit(views.map((view) => view.plane), this.root.clientWidth);
    for (const view of views) {
      paintBase(scene, view, state, zoom);
      paintTop(scene, view, state, zoom);
      announce(view, scene, state);
    }
    this.describe(state);
    this.legend.show(scene, state);
    this.draws += 1;
    this.root.dataset.draws = this.draws;
    this.root.dataset.drawMs = (performance.now() - begun).toFixed(2);
  }

  describe(state) {
    const text = describe(this.scene, state, this.hovered ?? state.cursor);
    // The same text again would be announced again.
    if (this.status.textContent !== text) this.status.textContent = text;
  }
}

/** The pictures of a viewer: a registration's three, or one for each plane of a scan. */
function viewsOf({ registration, flat }) {
  if (registration) return ["moving", "fixed", "warped"].map((source) => frame(source, "axial"));
  const planes = flat ? ["axial"] : Object.keys(PLANES);
  return planes.map((only) => frame("image", only));
}

/** An empty picture: two canvases, letters at the four sides, a caption above. */
function frame(source, only) {
  const base = element("canvas", { class: "base", "data-source": source });
  const top = element("canvas", { class: "top" });
  const letters = ["left", "right", "bottom", "top"].map(sideLetter);
  const stack = element("div", {
    class: "stack", tabindex: "0", role: "slider", "aria-orientation": "vertical",
  }, base, top, ...letters);
  const caption = element("figcaption");
  const figure = element("figure", {}, caption, stack);
  return { source, only, base, top, letters, stack, caption, figure, plane: null };
}

function sideLetter(side) {
  const beside = side === "left" || side === "right";
  const middle = beside ? "top: calc(50% - 6px)" : "left: calc(50% - 4px)";
  return element("span", { class: "letter", style: `${side}: 3px; ${middle}` });
}

/**
 * Screen pixels per shortest side of a voxel: all planes side by side, or, in a narrow place, one
 * below the other.
 */
function fit(planes, clientWidth) {
  const room = Math.max(clientWidth - 14, 100);
  const widths = planes.map(({ width, sides }) => width * sides[0]);
  const tallest = Math.max(...planes.map(({ height, sides }) => height * sides[1]));
  const beside = (room - GAP * (widths.length - 1)) / widths.reduce((a, b) => a + b);
  const zoom = room < 500 ? room / Math.max(...widths) : beside;
  return Math.min(zoom, TALLEST / tallest);
}
