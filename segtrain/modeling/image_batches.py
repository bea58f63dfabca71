"""Images of several sizes as one normalised batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import ImageList


def batch_images(
    images: Sequence[torch.Tensor], pixel_mean: torch.Tensor, pixel_std: torch.Tensor
) -> ImageList:
    """Normalise, then pad with zeros to a multiple of 32, on the device of the statistics.

    On a CPU in channels-last memory, which all convolutions keep: oneDNN then reorders no maps.

    Args:
        images: (3, H, W) BGR each.
        pixel_mean: (3, 1, 1).
        pixel_std: (3, 1, 1).
    """
    device = pixel_mean.device
    batch = ImageList.from_tensors(
        [(image.to(device) - pixel_mean) / pixel_std for image in images], 32
    )
    if device.type == "cpu":
        batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
    return batch


def original_size(entry: dict[str, object], size: Sequence[int]) -> tuple[int, int]:
    """Height and width of an entry's original image; of the resized one where it says none."""
    return int(entry.get("height", size[0])), int(entry.get("width", size[1]))  # type: ignore[call-overload]
