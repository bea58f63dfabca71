"""AdamW as Swin's own detectors train; **choice**, the paper names no optimizer for Swin."""

from __future__ import annotations

from omegaconf import OmegaConf

from segtrain.run.optimizer import OptimizerSettings

optimizer = OmegaConf.structured(
    OptimizerSettings(kind="adamw", learning_rate=1e-4, weight_decay=0.05)
)
