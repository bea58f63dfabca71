"""Cityscapes' 8 thing classes as COCO boxes, 24,000 iterations of 8 images."""

from __future__ import annotations

from .coco_1x import data, dataloader, depth, optimizer, schedule, train

data.name = "cityscapes"
data.train_json = "data/cityscapes/annotations/cityscapes_train_boxes.json"
data.train_images = "data/cityscapes/leftImg8bit/train"
data.test_json = "data/cityscapes/annotations/cityscapes_val_masks.json"
data.test_images = "data/cityscapes/leftImg8bit/val"
data.test_cityscapes_truth = "data/cityscapes/gtFine/val"
data.num_classes = 8
train.max_iter = 24_000
train.batch_size = 8
train.distill_from = 19 / 24
# At least as large as the student's largest.
train.teacher_short_side = 1024
train.teacher_max_size = 2048
# The paper's learning rate is given for its batch of 8.
optimizer.reference_batch_size = 8
# Both warm-ups, of the learning rate and of w(t), keep their share of a COCO run: **choice**.
schedule.drops = [18 / 24]
dataloader.train.augmentation.short_sides = [800, 832, 864, 896, 928, 960, 992, 1024]
dataloader.train.augmentation.max_size = 2048
dataloader.test.short_side = 1024
dataloader.test.max_size = 2048

__all__ = ["data", "dataloader", "depth", "optimizer", "schedule", "train"]
