// What every view needs of the page: its style, its elements, its frames.

// As MARKS of plots.py.
export const ORANGE = "#D55E00"; // of the grid, of what has the focus, of what is chosen
export const ARROWS = "#40E0FF";
export const FOLDS = "#FF1FC7";

export const STYLE = `
.deepatlas {
  font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-ui-font-color1, CanvasText); background: var(--jp-layout-color1, Canvas);
  padding: 6px; box-sizing: border-box; max-width: 100%;
}
.deepatlas .bar {
  display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; margin: 2px 0 6px;
}
.deepatlas button, .deepatlas select {
  font: inherit; color: inherit; background: var(--jp-layout-color2, ButtonFace);
  border: 1px solid var(--jp-border-color1, GrayText); border-radius: 3px; padding: 1px 7px;
  cursor: pointer;
}
.deepatlas button[aria-pressed=true] { background: var(--jp-brand-color1, #0b57d0); color: #fff; }
.deepatlas label, .deepatlas .legend { display: inline-flex; gap: 5px; align-items: center; }
.deepatlas input[type=range] { width: 110px; }
.deepatlas .views { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-end; }
.deepatlas figure { margin: 0; }
.deepatlas figcaption { font-weight: 600; width: 0; min-width: 100%; }
.deepatlas .stack {
  position: relative; background: #000; line-height: 0; touch-action: none; cursor: crosshair;
}
.deepatlas .base { image-rendering: pixelated; }
.deepatlas .top { position: absolute; inset: 0; }
.deepatlas .stack:focus-visible, .deepatlas button:focus-visible, .deepatlas select:focus-visible,
.deepatlas input:focus-visible { outline: 3px solid ${ORANGE}; outline-offset: 1px; }
.deepatlas .letter {
  position: absolute; font: 600 12px system-ui; color: #fff; text-shadow: 0 0 3px #000;
  pointer-events: none; line-height: 1;
}
.deepatlas .status { min-height: 1.4em; font-variant-numeric: tabular-nums; margin-top: 4px; }
.deepatlas .note { opacity: .85; max-width: 75ch; margin-top: 2px; }
.deepatlas .note.wrong { color: ${ORANGE}; opacity: 1; font-weight: 600; }
.deepatlas .legend canvas { width: 90px; height: 10px; }
`;

/** `x`, or the end of the interval from `low` to `high` that it lies beyond. */
export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** An element with its attributes and children; "onclick" and the like are listeners. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** A function that has `work` done in the next frame, once, however often it is called before. */
export function oncePerFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}
