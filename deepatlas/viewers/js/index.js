// The one module that anywidget calls: a view for each kind of model.

import { SliceView } from "./slices.js";
import { SweepView } from "./sweep.js";
import { TrainingView } from "./training.js";

const KINDS = {
  scan: SliceView,
  registration: SliceView,
  training: TrainingView,
  sweep: SweepView,
};

export default {
  render({ model, el }) {
    const View = KINDS[model.get("meta").kind];
    const view = new View(model, el);
    return () => view.remove();
  },
};
