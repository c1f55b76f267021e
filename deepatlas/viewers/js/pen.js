// Drawing with a canvas's pen. Paths are in voxels: the centre of voxel (x, y) is the point (x, y).
// The pen is in units of a voxel's shortest side, so that lines are as thick in every direction.

const LATTICE = 4; // voxels between lines of the deformation grid

/** Edges between pixels of different labels, {label: path}; of two that touch, the smaller's. */
export function outlines(labels, { width: w, height: h }) {
  const paths = new Map();
  const edge = (a, b, x0, y0, x1, y1) => {
    const owner = a === 0 || b === 0 ? a + b : Math.min(a, b);
    if (!paths.has(owner)) paths.set(owner, new Path2D());
    paths.get(owner).moveTo(x0, y0);
    paths.get(owner).lineTo(x1, y1);
  };
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const n = x + w * y;
      const [here, right, above] = [labels[n], labels[n + 1], labels[n + w]];
      if (x + 1 < w && here !== right) edge(here, right, x + 0.5, y - 0.5, x + 0.5, y + 0.5);
      if (y + 1 < h && here !== above) edge(here, above, x - 0.5, y + 0.5, x + 0.5, y + 0.5);
    }
  }
  return paths;
}

/** Draws the outlines of labels, each in its colour. */
export function drawOutlines(pen, labels, plane, colours, width, dashed = false) {
  pen.setLineDash(dashed ? [0.5, 0.5] : []);
  for (const [label, path] of outlines(labels, plane)) {
    stroke(pen, stretched(path, plane), `rgb(${colours[label]})`, width);
  }
  pen.setLineDash([]);
}

/** The lines where x + t u, or (up) y + t u, passes a multiple of LATTICE (marching squares). */
export function levelLines(u, t, up, { width: w, height: h }) {
  const path = new Path2D();
  const band = (value) => Math.floor(value / LATTICE);
  for (let y = 0; y + 1 < h; y++) {
    for (let x = 0; x + 1 < w; x++) {
      // phi at the corners of a square of four voxels, anticlockwise from (x, y).
      const n = x + w * y;
      const a = (up ? y : x) + t * u[n];
      const b = (up ? y : x + 1) + t * u[n + 1];
      const c = (up ? y + 1 : x + 1) + t * u[n + w + 1];
      const d = (up ? y + 1 : x) + t * u[n + w];

      // Most squares lie between two levels; each level that passes is a piece of its line.
      const low = band(a);
      if (band(b) === low && band(c) === low && band(d) === low) continue;
      const most = Math.max(a, b, c, d);
      const least = Math.ceil(Math.min(a, b, c, d) / LATTICE) * LATTICE;
      for (let level = least; level <= most; level += LATTICE) {
        crossing(path, [a, b, c, d], level, x, y);
      }
    }
  }
  return path;
}

/** Adds the piece of a level line within the square whose corners, from (x, y), are a, b, c, d. */
function crossing(path, [a, b, c, d], level, x, y) {
  const points = [];
  const side = (p, q, x0, y0, x1, y1) => {
    if ((p < level) === (q < level)) return;
    const share = (level - p) / (q - p);
    points.push([x0 + share * (x1 - x0), y0 + share * (y1 - y0)]);
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

/** The lattice of the plane, each node where x + t u(x) leads; motion through it is projected. */
export function movedLattice(plane, field, t) {
  const path = new Path2D();
  const { width: w, height: h, right, up } = plane;
  const node = (x, y) => [x + t * field[right][x + y * w], y + t * field[up][x + y * w]];
  // Voxels from point to point; without a warp, lines are straight.
  const every = t === 0 ? Infinity : LATTICE / 2;
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
export function arrows(plane, field, t) {
  const path = new Path2D();
  const { width: w, height: h, right, up, sides = [1, 1] } = plane;
  for (let y = LATTICE / 2; y < h; y += LATTICE) {
    for (let x = LATTICE / 2; x < w; x += LATTICE) {
      const dx = t * field[right][x + y * w];
      const dy = t * field[up][x + y * w];
      const length = Math.hypot(dx * sides[0], dy * sides[1]); // in shortest sides
      const head = Math.min(1.2, 0.45 * length) / length;
      if (length >= 0.1) arrow(path, [x, y], [dx, dy], head, sides[1] / sides[0]);
    }
  }
  return path;
}

/**
 * An arrow from (x, y) by (dx, dy); its head is that share of its length, and symmetric as a voxel
 * is drawn, `tall` times as high as wide.
 */
function arrow(path, [x, y], [dx, dy], head, tall) {
  const [endX, endY] = [x + dx, y + dy];
  const [sideX, sideY] = [0.6 * dy * tall, 0.6 * dx / tall]; // across the arrow
  path.moveTo(x, y);
  path.lineTo(endX, endY);
  path.moveTo(endX - head * (dx - sideX), endY - head * (dy + sideY));
  path.lineTo(endX, endY);
  path.lineTo(endX - head * (dx + sideX), endY - head * (dy - sideY));
}

/** A path in voxels of a plane as its pen draws it, in units of a voxel's shortest side. */
export function stretched(path, { sides: [wide, tall] = [1, 1] }) {
  if (wide === 1 && tall === 1) return path;
  const drawn = new Path2D();
  drawn.addPath(path, new DOMMatrix([wide, 0, 0, tall, 0, 0]));
  return drawn;
}

/** Draws a path in one colour, as wide as that. */
export function stroke(pen, path, colour, width) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke(path);
}

/** Bytes of red, green and blue as one opaque pixel, a word. */
export const pixelOf = (r, g, b) => 0xff000000 | (b << 16) | (g << 8) | r;

/** A picture of the plane, one pixel a voxel, in the words that `colour(n)` gives. */
export function imageOf({ width: w, height: h }, colour) {
  const image = new ImageData(w, h);
  const pixels = new Uint32Array(image.data.buffer);
  let n = 0;
  for (let y = 0; y < h; y++) {
    let at = (h - 1 - y) * w; // the top row comes first
    for (let x = 0; x < w; x++) {
      pixels[at] = colour(n);
      at += 1;
      n += 1;
    }
  }
  return image;
}

/** Gives a canvas a size; one that it has already stays, for setting it would clear the canvas. */
export function resize(canvas, wide, tall) {
  const [width, height] = [wide, tall].map((side) => Math.max(1, Math.round(side)));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
}

let scratch = null; // one canvas for every tint: making them takes longer than filling them

/**
 * Whole voxels in the colour (a word) that `colour(n)` gives; 0 leaves a voxel alone. `scale` is in
 * pixels per shortest side.
 */
export function tint(pen, plane, scale, colour, opacity) {
  scratch ??= new OffscreenCanvas(1, 1);
  resize(scratch, plane.width, plane.height);
  scratch.getContext("2d").putImageData(imageOf(plane, colour), 0, 0);
  pen.save();
  const [wide, tall] = plane.sides ?? [1, 1];
  pen.setTransform(scale * wide, 0, 0, scale * tall, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.globalAlpha = opacity;
  pen.drawImage(scratch, 0, 0);
  pen.restore();
}
