"""COCO, 90,000 iterations of 16 images: everything but the model. Source: method.md's schedule."""

from __future__ import annotations

from omegaconf import OmegaConf

from segtrain.data.settings import DataSettings, InferenceSizeSettings, TrainLoaderSettings
from segtrain.depth_source import DepthSettings
from segtrain.run.optimizer import OptimizerSettings
from segtrain.run.schedule import ScheduleSettings
from segtrain.run.train_settings import TrainSettings

data = OmegaConf.structured(DataSettings())
depth = OmegaConf.structured(DepthSettings())
optimizer = OmegaConf.structured(OptimizerSettings())
schedule = OmegaConf.structured(ScheduleSettings())
dataloader = OmegaConf.create(
    {
        "train": OmegaConf.structured(TrainLoaderSettings(num_workers=4)),
        "test": OmegaConf.structured(InferenceSizeSettings()),
    }
)
train = OmegaConf.structured(
    TrainSettings(init_checkpoint="detectron2://ImageNetPretrained/MSRA/R-50.pkl")
)
