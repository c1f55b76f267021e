// Finished runs: points (x, y, name), one for each run; Python shows the warp of the chosen one.

import { ORANGE, STYLE, clamp, element } from "./page.js";

const SIZE = [840, 560]; // of the canvas, in pixels; on the screen, half as large
const FRAME = [90, 30, 730, 470]; // left, top, width, height
const MIDDLE = FRAME[0] + FRAME[2] / 2;
const DOT = "#0072B2";
const BY_KEY = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };

/** Points in a frame with axes; a click or an arrow key chooses one. */
export class SweepView {
  constructor(model, el) {
    this.model = model;
    this.meta = model.get("meta");
    this.ends = [0, 1].map((axis) => {
      const values = this.meta.points.map((point) => point[axis]);
      return [Math.min(...values), Math.max(...values)];
    });
    this.canvas = element("canvas", {
      tabindex: "0", role: "slider", "aria-label": this.meta.title,
      "aria-valuemin": 1, "aria-valuemax": this.meta.points.length,
      style: "width:420px;height:280px", width: SIZE[0], height: SIZE[1],
    });
    this.status = element("div", { class: "status", role: "status" });
    this.canvas.addEventListener("click", (event) => this.choose(this.nearest(event)));
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    const root = element("div", {
      class: "deepatlas", "data-lm-suppress-shortcuts": "true",
    }, this.canvas, this.status);
    el.replaceChildren(element("style", {}, STYLE), root);
    this.changed = () => this.draw();
    model.on("change:chosen", this.changed);
    requestAnimationFrame(this.changed); // the theme's colour is known once this is on the page
  }

  remove() {
    this.model.off("change:chosen", this.changed);
  }

  choose(chosen) {
    this.model.set("chosen", chosen);
    this.model.save_changes();
  }

  press(event) {
    const by = BY_KEY[event.key];
    if (!by) return;
    this.choose(clamp(this.model.get("chosen") + by, 0, this.meta.points.length - 1));
    event.preventDefault();
    event.stopPropagation();
  }

  /** Where a point lies on the canvas. */
  place(point) {
    const [x, y] = this.ends.map(
      ([low, high], axis) => (point[axis] - low) / (high - low || 1));
    return [120 + 670 * x, 470 - 410 * y];
  }

  /** The number of the point nearest to the pointer. */
  nearest(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * SIZE[0];
    const y = (event.clientY - box.top) / box.height * SIZE[1];
    const far = this.meta.points.map((point) => {
      const [pointX, pointY] = this.place(point);
      return Math.hypot(pointX - x, pointY - y);
    });
    return far.indexOf(Math.min(...far));
  }

  draw() {
    const pen = this.canvas.getContext("2d");
    const chosen = this.model.get("chosen");
    const ink = getComputedStyle(this.canvas).color;
    pen.clearRect(0, 0, ...SIZE);
    this.drawFrame(pen, ink);
    this.meta.points.forEach((point, n) => this.drawPoint(pen, ink, point, n === chosen));
    const [x, y, name] = this.meta.points[chosen];
    const [across, upwards] = this.meta.axes;
    this.status.textContent = `${name}: ${upwards} ${y.toFixed(1)}, ${across} ${x.toFixed(2)}`;
    this.canvas.setAttribute("aria-valuenow", chosen + 1);
    this.canvas.setAttribute("aria-valuetext", this.status.textContent);
  }

  /** The frame, what its axes are, and where they begin and end. */
  drawFrame(pen, ink) {
    pen.fillStyle = ink;
    pen.strokeStyle = ink;
    pen.font = "24px system-ui";
    pen.textAlign = "center";
    pen.strokeRect(...FRAME);
    pen.fillText(this.meta.axes[0], MIDDLE, 548);
    pen.setTransform(0, -1, 1, 0, 30, 265); // upwards
    pen.fillText(this.meta.axes[1], 0, 0);
    pen.resetTransform();
    pen.font = "20px system-ui";
    this.ends[0].forEach((x, n) => pen.fillText(x.toFixed(2), 120 + 670 * n, 526));
    this.ends[1].forEach((y, n) => pen.fillText(y.toFixed(1), 60, 477 - 410 * n));
  }

  drawPoint(pen, ink, point, chosen) {
    const [x, y] = this.place(point);
    const inLeftHalf = x < MIDDLE; // its name stands where there is room for it
    pen.textAlign = inLeftHalf ? "left" : "right";
    pen.fillStyle = ink;
    pen.fillText(point[2], x + (inLeftHalf ? 16 : -16), y - 10);
    pen.beginPath();
    pen.arc(x, y, chosen ? 13 : 9, 0, 7);
    pen.fillStyle = chosen ? ORANGE : DOT;
    pen.fill();
  }
}
