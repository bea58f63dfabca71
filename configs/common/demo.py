"""256×256 synthetic scenes, minutes on two cores: everything but the model.

The pictures are enlarged to 384 pixels: on the mask grid, neighbours are 8 input pixels apart,
the width of a tiny object at 256.
"""

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
train.max_iter = 120
train.batch_size = 4
train.init_checkpoint = None
train.checkpoint_period = 40
train.teacher_short_side = 384
train.teacher_momentum = 0.99
optimizer.kind = "adamw"
optimizer.learning_rate = 0.001
optimizer.reference_batch_size = 4
optimizer.gradient_clip_norm = 10.0
schedule.warmup = 0.05
dataloader.train.num_workers = 1
dataloader.train.augmentation.short_sides = [320, 352, 384]
dataloader.train.augmentation.max_size = 384
dataloader.test.short_side = 384
dataloader.test.max_size = 384

__all__ = ["data", "dataloader", "depth", "optimizer", "schedule", "train"]
