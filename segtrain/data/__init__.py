"""From a COCO file, its images and a depth cache to batches of the model."""
