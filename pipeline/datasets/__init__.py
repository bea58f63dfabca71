"""Image lists and COCO files: find, check, prepare."""
