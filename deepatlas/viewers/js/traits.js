// The synced traits of a slice viewer, which Python and ipywidgets' controls read and write, too.

import { clamp, oncePerFrame } from "./page.js";
import { AXES } from "./volume.js";

const STATE = [
  ...AXES, "plane", "layers", "outline", "opacity", "window", "level", "mode", "strength", "push",
];

/** The state of a viewer: read all at once, written in one message a frame. */
export class Traits {
  /** `changed` is called whoever changed a trait, `touched` before, if it was the reader here. */
  constructor(model, changed, touched) {
    Object.assign(this, { model, changed, touched });
    this.save = oncePerFrame(() => model.save_changes());
    for (const name of STATE) model.on(`change:${name}`, changed);
  }

  remove() {
    for (const name of STATE) this.model.off(`change:${name}`, this.changed);
  }

  get(name) {
    return this.model.get(name);
  }

  /** All of them as they are now; the cursor is within the volume, the strength from 0 to 1. */
  read() {
    const state = Object.fromEntries(STATE.map((name) => [name, this.get(name)]));
    state.cursor = this.cursor;
    state.strength = clamp(state.strength, 0, 1);
    return state;
  }

  get cursor() {
    const { shape } = this.get("meta");
    return AXES.map((axis, n) => clamp(this.get(axis), 0, shape[n] - 1));
  }

  set(values) {
    this.touched();
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.save();
    this.changed();
  }

  /** Shows a layer, or hides it if it shows. */
  toggleLayer(layer) {
    const layers = this.get("layers");
    const others = layers.filter((name) => name !== layer);
    this.set({ layers: layers.includes(layer) ? others : [...layers, layer] });
  }
}
