"""The records of an experiment's files. Without torch: what is wrong with them is told at once."""

from __future__ import annotations

from segtrain.data.coco_boxes import BoxDataset, read_coco_boxes, require_image_files
from segtrain.data.coco_findings import require_usable
from segtrain.data.coco_reader import CocoReading, read_coco_file
from segtrain.errors import DatasetError, TrainingConfigError
from segtrain.run.experiment import Experiment
from segtrain.run.train_settings import require_num_classes


def read_training_data(experiment: Experiment) -> BoxDataset:
    """The records of the training file.

    Raises:
        DatasetError: it cannot be used.
        TrainingConfigError: the settings do not fit it.
    """
    data = experiment.data
    if data.bad_boxes not in ("drop", "refuse"):
        raise TrainingConfigError(f"data.bad_boxes={data.bad_boxes!r} is not drop or refuse")
    dataset = read_coco_boxes(
        data.train_json,
        data.train_images,
        keep_masks=data.use_masks,
        keep_images_without_boxes=data.keep_images_without_boxes,
        bad_boxes="refuse" if data.bad_boxes == "refuse" else "drop",
    )
    if data.use_masks and all(
        item.segmentation is None for record in dataset.records for item in record.annotations
    ):
        raise DatasetError(
            f"{data.train_json}: no object has a mask, and data.use_masks=True; name a file with "
            "masks (`pipeline masks` makes one from boxes), or set data.use_masks=False and a "
            "supervision that learns from boxes"
        )
    require_image_files(dataset.records, data.train_json)
    require_num_classes(dataset.categories, data.num_classes, data.train_json)
    return dataset


def read_test_data(experiment: Experiment) -> CocoReading:
    """The test file with its masks.

    Raises:
        DatasetError: it cannot be used.
        TrainingConfigError: the settings do not fit it.
    """
    data = experiment.data
    reading = read_coco_file(
        data.test_json,
        data.test_images,
        masks=True,
        needs_annotations=False,  # COCO's test-dev lists images and categories only
    )
    require_usable(reading.findings, data.test_json, bad_boxes=data.bad_boxes)
    require_image_files(reading.records, data.test_json)
    require_num_classes(reading.categories, data.num_classes, data.test_json)
    return reading
