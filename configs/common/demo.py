"""256×256 synthetic scenes, minutes on two cores: everything but the model."""

from __future__ import annotations

from .coco_1x import data, dataloader, depth, optimizer, schedule, train

data.name = "synthetic scenes"
data.train_json = "data/demo/train/annotations.json"
data.train_images = "data/demo/train/images"
data.test_json = "data/demo/test/annotations.json"
data.test_images = "data/demo/test/images"
data.num_classes = 6
depth.model = "demo-dpt"
depth.cache = "data/demo/depth-cache"
depth.batch_size = 8
train.max_iter = 600
train.batch_size = 4
train.init_checkpoint = None
train.checkpoint_period = 200
train.teacher_short_side = 256
train.teacher_momentum = 0.99
optimizer.kind = "adamw"
optimizer.learning_rate = 0.001
optimizer.reference_batch_size = 4
optimizer.gradient_clip_norm = 10.0
schedule.warmup = 0.05
dataloader.train.num_workers = 1
dataloader.train.augmentation.short_sides = [192, 224, 256]
dataloader.train.augmentation.max_size = 256
dataloader.test.short_side = 256
dataloader.test.max_size = 256

__all__ = ["data", "dataloader", "depth", "optimizer", "schedule", "train"]
