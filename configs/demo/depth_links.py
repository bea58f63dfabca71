"""BoxInst and depth as docs/results.md found it best, on synthetic scenes; not the paper's method.

Colour a second time over the whole map, as in control.py, but only between neighbours that depth
links too, and slant-invariant consistency of four times the weight. No depth layer, no teacher.
"""

from __future__ import annotations

from .control import data, dataloader, depth, model, optimizer, schedule, train

depth.enabled = True
model.color_cut_by_depth = True
model.consistency = True
model.consistency_weight = 4.0
model.slant_invariant = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
