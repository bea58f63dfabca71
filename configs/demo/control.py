"""BoxInst with colour a second time, over the whole map: what a claim about depth has to beat."""

from __future__ import annotations

from .boxinst import data, dataloader, depth, model, optimizer, schedule, train

model.color_everywhere = True

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
