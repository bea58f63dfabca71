"""A trained model and the images it is shown, for evaluation, prediction and labelling."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segtrain.cpu_kernels.acceleration import accelerate
from segtrain.data.category_matching import numbered_categories
from segtrain.data.mapper import make_test_input
from segtrain.data.segmentations import encode_mask
from segtrain.data.settings import InferenceSizeSettings
from segtrain.errors import CheckpointError
from segtrain.precision import autocast_to, choose_device
from segtrain.run.checkpoints import load_state, load_weights
from segtrain.run.experiment import read_experiment
from segtrain.run.model_building import build_model


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its weights, ready for images.

    Attributes:
        network: in evaluation mode, on its device.
        categories: `{"id", "name"}` by contiguous class index.
        test: how images are resized.
        precision: of the forward pass.
    """

    network: Any
    device: torch.device
    categories: list[dict[str, Any]]
    test: InferenceSizeSettings
    precision: str

    def make_input(self, image_rgb: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """An image, (height, width, 3) uint8 RGB, as the network takes it."""
        return make_test_input(
            image_rgb, short_side=self.test.short_side, max_size=self.test.max_size
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Forward passes run in the configured precision inside this context."""
        return autocast_to(self.precision, self.device)

    @torch.inference_mode()
    def detect(self, image_rgb: npt.NDArray[np.uint8]) -> Any:
        """Detections of one image.

        Returns:
            detectron2 Instances on the CPU: pred_boxes (original pixels), scores, pred_classes,
            pred_masks_rle COCO codes of the original size (pred_masks of models without them).
        """
        with self.autocast():
            outputs = self.network([self.make_input(image_rgb)])
        return outputs[0]["instances"].to("cpu")


def load_trained_model(
    cfg: Any, weights: Path, *, categories: list[dict[str, Any]] | None = None
) -> TrainedModel:
    """Build a config's model and load its weights.

    Args:
        cfg: an experiment, or a loaded config file that is one.
        weights: checkpoint of a run, or a converted one.
        categories: used when the checkpoint does not name its classes.

    Raises:
        CheckpointError: the weights do not fit.
        TrainingConfigError: a part of the model refuses its settings.
    """
    experiment = read_experiment(cfg)
    if experiment.data.num_classes is None:
        experiment = experiment.with_num_classes(count_classes_of_weights(weights))
    settings, num_classes = experiment.train, experiment.data.num_classes
    assert num_classes is not None
    device = choose_device(settings.device)
    network: Any = build_model(experiment)
    extra = load_weights(network, weights)
    accelerate(network)
    # Maps are channels-last, and else every convolution would turn its weights again.
    network.to(device=device, memory_format=torch.channels_last).eval()
    # Each mask becomes RLE as soon as it has its full size, so memory does not grow with them.
    network.encode_masks = True
    # Without names in the weights, COCO's 80 are known, also for a file that lists a few of them.
    unnamed = categories or []
    if len(unnamed) != num_classes:
        unnamed = default_categories(num_classes)
    known: list[dict[str, Any]] = extra.get("categories") or unnamed
    if len(known) != num_classes:
        raise CheckpointError(
            f"{weights} names {len(known)} classes, the config's model has {num_classes}; "
            f"set data.num_classes={len(known)}"
        )
    return TrainedModel(
        network=network,
        device=device,
        categories=known,
        test=experiment.test_size,
        # What was trained in fp16 on a GPU is also looked at elsewhere; a CPU emulates fp16.
        precision="fp32"
        if (settings.precision, device.type) == ("fp16", "cpu")
        else settings.precision,
    )


def count_classes_of_weights(path: Path) -> int:
    """Number of classes of a checkpoint: of its categories, else of its classifier's rows.

    Raises:
        CheckpointError: it is unreadable, or has neither.
    """
    state = load_state(path)
    if state.get("categories"):
        return len(state["categories"])
    for name, value in state.get("model", state).items():
        if name.endswith("cls_logits.weight"):
            return len(value)
    raise CheckpointError(f"{path} does not tell its number of classes; set data.num_classes")


def default_categories(num_classes: int) -> list[dict[str, Any]]:
    """Classes of weights that do not name them: COCO's for 80 classes, else numbered from 1."""
    if num_classes == 80:
        from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

        return [
            {"id": item["id"], "name": item["name"]} for item in COCO_CATEGORIES if item["isthing"]
        ]
    return numbered_categories(num_classes)


def list_segmentations(instances: Any) -> list[dict[str, Any]]:
    """Masks of an image's instances as COCO RLE; empty for a model without masks."""
    if instances.has("pred_masks_rle"):
        return list(instances.pred_masks_rle)
    if instances.has("pred_masks"):
        return [encode_mask(mask.numpy()) for mask in instances.pred_masks]
    return []


def instances_to_results(
    instances: Any,
    *,
    image_id: int | str,
    categories: list[dict[str, Any]],
    file_name: str | None = None,
) -> list[dict[str, Any]]:
    """Detections of one image as COCO results; masks become RLE at once.

    Args:
        instances: as `TrainedModel.detect` gives them.
        image_id: written into each result.
        categories: by contiguous class index.
        file_name: written into each result; None leaves it out, as COCO's result files do.

    Returns:
        One dict per detection: image_id, [file_name,] category_id, bbox (x, y, width, height in
        pixels of the original image), score, segmentation.
    """
    boxes = instances.pred_boxes.tensor.tolist()
    scores = instances.scores.tolist()
    classes = instances.pred_classes.tolist()
    segmentations = list_segmentations(instances)
    results = []
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        result: dict[str, Any] = {
            "image_id": image_id,
            **({} if file_name is None else {"file_name": file_name}),
            "category_id": categories[classes[index]]["id"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": scores[index],
        }
        if segmentations:
            result["segmentation"] = segmentations[index]
        results.append(result)
    return results
