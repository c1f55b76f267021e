// Volumes and the planes through them: geometry alone, without a page.
//
// Conventions are those of the Python module: volumes (I, J, K) in C order; phi(x) = x + u(x), in
// voxels, leads from the fixed to the moving image, so that warping pulls: warped(x) =
// moving(phi(x)). On a picture the first axis of the plane grows to the right, the second upwards.

import { clamp } from "./page.js";

export const AXES = ["i", "j", "k"];

/** Of each plane, the axes that are its normal, lead to the right, and lead upwards. */
export const PLANES = { sagittal: [0, 1, 2], coronal: [1, 0, 2], axial: [2, 0, 1] };

const TYPES = { uint8: Uint8Array, int16: Int16Array };

const STEPS = 64; // of a displacement that travels, in a voxel

const TIE = 1e-4; // voxels: rounding noise that does not decide which of two voxels is nearer

/** The sides of a voxel (mm along i, j, k) in units of the shortest that is seen. */
export function proportions(spacing, shape) {
  const flat = shape[2] === 1; // its third side is never seen
  const shortest = Math.min(...(flat ? spacing.slice(0, 2) : spacing));
  return spacing.map((side) => side / shortest);
}

/** {name: {values, shape}} from the one block of bytes that Python sent. */
export function unpack(meta, data) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const arrays = {};
  for (const [name, { type, offset, shape }] of Object.entries(meta.arrays)) {
    const Type = TYPES[type];
    const count = shape.reduce((a, b) => a * b, 1);
    // A copy, so that it is aligned.
    const part = bytes.slice(offset, offset + count * Type.BYTES_PER_ELEMENT);
    arrays[name] = { values: new Type(part.buffer), shape };
  }
  return arrays;
}

/**
 * One plane of a volume, row by row from the bottom: value (x, y) stands at x + width * y. `sides`
 * are those of a voxel along its width and its height, from the `proportions` of the volume.
 */
export class Plane {
  constructor(name, shape, index, voxel = [1, 1, 1]) {
    const [normal, right, up] = PLANES[name];
    const strides = [shape[1] * shape[2], shape[2], 1];
    Object.assign(this, { name, shape, index, normal, right, up });
    this.sides = [voxel[right], voxel[up]];
    this.width = shape[right];
    this.height = shape[up];
    this.size = this.width * this.height;
    this.start = index * strides[normal];
    this.dx = strides[right];
    this.dy = strides[up];
  }

  /** The values of a volume on this plane, written into `out`. */
  read(values, out) {
    // Column by column, since up is the faster axis of the volume.
    for (let x = 0; x < this.width; x++) {
      let at = this.start + x * this.dx;
      for (let n = x; n < this.size; n += this.width) {
        out[n] = values[at];
        at += this.dy;
      }
    }
    return out;
  }

  /** Voxel (i, j, k) of the picture's (x, y). */
  voxel(x, y) {
    const voxel = [0, 0, 0];
    voxel[this.normal] = this.index;
    voxel[this.right] = x;
    voxel[this.up] = y;
    return voxel;
  }

  /** Calls look(n, voxel) for every pixel n; `voxel` is one array, changed from call to call. */
  visit(look) {
    const voxel = this.voxel(0, 0);
    let n = 0;
    for (let y = 0; y < this.height; y++) {
      voxel[this.up] = y;
      for (let x = 0; x < this.width; x++) {
        voxel[this.right] = x;
        look(n, voxel);
        n += 1;
      }
    }
  }
}

/** Where voxel v of the full grid lies on a grid of 1/scale of the resolution. */
export const coarse = (v, scale) => (v - (scale - 1) / 2) / scale;

/** `values` at the point (a, b, c) of a volume, by linear interpolation; outside, at the border. */
export function linear(values, a, b, c, [I, J, K], offset = 0) {
  const x = clamp(a, 0, I - 1);
  const y = clamp(b, 0, J - 1);
  const z = clamp(c, 0, K - 1);

  // The voxel below the point, and the steps to its neighbours; at the far border there are none.
  const i = Math.floor(x);
  const j = Math.floor(y);
  const k = Math.floor(z);
  const toI = i < I - 1 ? J * K : 0;
  const toJ = j < J - 1 ? K : 0;
  const toK = k < K - 1 ? 1 : 0;

  // Along k between two voxels, along j between two such lines, along i between two such faces.
  const line = (at) => values[at] + (values[at + toK] - values[at]) * (z - k);
  const face = (at) => line(at) + (line(at + toJ) - line(at)) * (y - j);
  const at = offset + (i * J + j) * K + k;
  return face(at) + (face(at + toI) - face(at)) * (x - i);
}

/** Channel c of u (1/64 voxel, at 1/scale of the resolution) at a voxel, in voxels. */
function component({ values, shape: [, I, J, K] }, c, scale, [i, j, k]) {
  const offset = c * I * J * K;
  const [a, b, d] = [coarse(i, scale), coarse(j, scale), coarse(k, scale)];
  return linear(values, a, b, d, [I, J, K], offset) / STEPS;
}

/** u at a voxel, in voxels: as many components as it has channels. */
export function displacementAt(voxel, volume, scale) {
  const channels = volume.shape[0];
  return AXES.slice(0, channels).map((_, c) => component(volume, c, scale, voxel));
}

/** u (2 or 3 channels, 1/64 voxel, at full or half resolution) on a plane: i, j, k, in voxels. */
export function displacementOn(plane, volume, scale) {
  const field = AXES.map(() => new Float32Array(plane.size));
  const [channels, I, J, K] = volume.shape;
  for (let c = 0; c < channels; c++) {
    if (scale === 1) {
      const channel = volume.values.subarray(c * I * J * K, (c + 1) * I * J * K);
      plane.read(channel, field[c]);
      for (let n = 0; n < plane.size; n++) field[c][n] /= STEPS;
    } else {
      plane.visit((n, voxel) => { field[c][n] = component(volume, c, scale, voxel); });
    }
  }
  return field;
}

/** The voxel nearest to v + shift; a half goes up, as in `warp_labels`, the same for every v. */
export const nearestVoxel = (v, shift) => v + Math.floor(shift + 0.5 + TIE);

/** A volume pulled through x + t u(x) onto a plane: linearly, or (labels) from the nearest. */
export function pull(plane, { values, shape }, [u, v, w], t, nearest, out) {
  plane.visit((n, [i, j, k]) => {
    const [a, b, c] = [t * u[n], t * v[n], t * w[n]];
    out[n] = nearest
      ? linear(values, nearestVoxel(i, a), nearestVoxel(j, b), nearestVoxel(k, c), shape)
      : Math.round(linear(values, i + a, j + b, k + c, shape));
  });
  return out;
}
