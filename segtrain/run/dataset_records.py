"""The records of an experiment's files. Without torch: what is wrong with them is told at once."""

from __future__ import annotations

from collections.abc import Sequence

from depthcache import DepthCache, image_key
from depthcache.errors import CacheUnreachableError
from segtrain.data.coco_boxes import BoxDataset, ImageRecord, read_coco_boxes, require_image_files
from segtrain.data.coco_findings import require_usable
from segtrain.data.coco_reader import CocoReading, read_coco_file
from segtrain.data.image_files import read_image_bytes
from segtrain.depth_source import describe_fill_command
from segtrain.errors import DatasetError, MissingDepthError, TrainingConfigError
from segtrain.run.experiment import Experiment
from segtrain.run.train_settings import require_num_classes

# Maps are named by the bytes of their photos. Of a large set only the first photos are read here.
_MAX_BYTES_OF_PHOTOS = 2**26


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


def require_depth_maps(
    experiment: Experiment, cache: DepthCache, records: Sequence[ImageRecord]
) -> None:
    """Refuse a cache that lacks maps of the first photos, up to 64 MiB of them.

    A map that is missing later ends the training when its photo's turn comes.

    Raises:
        MissingDepthError: says how many, names one, and the command that computes them.
        DatasetError: a photo cannot be read.
    """
    paths: dict[str, str] = {}
    num_photos, num_bytes = 0, 0
    for record in records:
        data = read_image_bytes(record.path)
        paths.setdefault(image_key(data), record.path)
        num_photos, num_bytes = num_photos + 1, num_bytes + len(data)
        if num_bytes > _MAX_BYTES_OF_PHOTOS:
            break
    try:
        missing = cache.missing(paths)
    except CacheUnreachableError:
        return  # training goes on with what its local tier keeps
    if missing:
        data_settings = experiment.data
        command = describe_fill_command(
            experiment.depth, data_settings.train_json, data_settings.train_images
        )
        which = "the" if num_photos == len(records) else "the first"
        raise MissingDepthError(
            f"the depth cache {cache.url} has no map for {len(missing)} of {which} {num_photos} "
            f"photos, for example {paths[missing[0]]} (sha256 {missing[0]}); "
            f"fill it with: {command}"
        )


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
