"""The full method on a few hundred photos, 300 iterations at short side 320."""

from __future__ import annotations

from ..common.coco_1x import data, dataloader, depth, optimizer, schedule, train
from ..common.small_full_method import model

data.name = "coco-mini"
data.train_json = "data/coco-mini/annotations/instances_train.json"
data.train_images = "data/coco-mini/train"
data.test_json = "data/coco-mini/annotations/instances_val.json"
data.test_images = "data/coco-mini/val"
depth.cache = "data/coco-mini/depth-cache"
model.feature_channels = 128
train.max_iter = 300
train.batch_size = 4
train.init_checkpoint = None
train.checkpoint_period = 100
train.distill_from = 65 / 90
train.teacher_short_side = 480
train.teacher_max_size = 800
train.teacher_momentum = 0.99
optimizer.learning_rate = 0.02
optimizer.reference_batch_size = 4
optimizer.gradient_clip_norm = 10.0
schedule.warmup = 0.1
dataloader.train.num_workers = 1
dataloader.train.augmentation.short_sides = [320]
dataloader.train.augmentation.max_size = 533
dataloader.test.short_side = 320
dataloader.test.max_size = 533

__all__ = ["data", "dataloader", "depth", "model", "optimizer", "schedule", "train"]
