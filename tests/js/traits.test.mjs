// The state of a viewer, with a model and frames that are made up.

import assert from "node:assert/strict";
import test from "node:test";

import { clamp, oncePerFrame } from "../../deepatlas/viewers/js/page.js";
import { Traits } from "../../deepatlas/viewers/js/traits.js";

let frames = [];
globalThis.requestAnimationFrame = (work) => frames.push(work);
const nextFrame = () => {
  const due = frames;
  frames = [];
  for (const work of due) work();
};

function fakeModel(values) {
  const state = { meta: { shape: [10, 20, 30] }, layers: [], strength: 1, ...values };
  const heard = new Map();
  return {
    heard,
    saved: 0,
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; },
    save_changes() { this.saved += 1; },
    on: (event, call) => heard.set(event, call),
    off: (event, call) => { if (heard.get(event) === call) heard.delete(event); },
  };
}

test("clamp keeps within an interval", () => {
  assert.deepEqual([-1, 0.5, 3].map((x) => clamp(x, 0, 2)), [0, 0.5, 2]);
});

test("work is done once a frame, and again in the next", () => {
  let done = 0;
  const ask = oncePerFrame(() => { done += 1; });
  ask();
  ask();
  assert.equal(done, 0);
  nextFrame();
  assert.equal(done, 1);
  nextFrame();
  assert.equal(done, 1);
  ask();
  nextFrame();
  assert.equal(done, 2);
});

test("what is read is within the volume", () => {
  const model = fakeModel({ i: -3, j: 5, k: 99, strength: 1.5, mode: "flicker" });
  const state = new Traits(model, () => {}, () => {}).read();
  assert.deepEqual([state.cursor, state.strength, state.mode], [[0, 5, 29], 1, "flicker"]);
});

test("however much is set, one message a frame goes to Python, and the drawing follows", () => {
  const model = fakeModel({ i: 1, j: 2, k: 3 });
  const order = [];
  const traits = new Traits(model, () => order.push("changed"), () => order.push("touched"));
  traits.set({ i: 4, j: 5 });
  traits.set({ k: 6 });
  assert.deepEqual(traits.cursor, [4, 5, 6]);
  assert.deepEqual(order, ["touched", "changed", "touched", "changed"]);
  assert.equal(model.saved, 0);
  nextFrame();
  assert.equal(model.saved, 1);
});

test("a layer is toggled, the others stay", () => {
  const traits = new Traits(fakeModel({ layers: ["grid"] }), () => {}, () => {});
  traits.toggleLayer("folds");
  assert.deepEqual(traits.get("layers"), ["grid", "folds"]);
  traits.toggleLayer("grid");
  assert.deepEqual(traits.get("layers"), ["folds"]);
});

test("a viewer that is gone hears nothing more", () => {
  const model = fakeModel({});
  const traits = new Traits(model, () => {}, () => {});
  assert.ok(model.heard.has("change:i") && model.heard.has("change:push"));
  traits.remove();
  assert.equal(model.heard.size, 0);
});
