"""Train box-supervised instance segmentation with pseudo depth, on detectron2's structures."""
