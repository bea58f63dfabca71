"""Crop size, crops a step and steps of an adaptation: by device, weights and number of boxes.

Which of the numbers was measured and which is a choice stands in docs/labeller.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from segtrain.labeller.crop_network import (
    NetworkDescription,
    default_device,
    load_crop_network,
)
from segtrain.labeller.settings import LabellerSettings

_USUAL_STEPS, _LEAST_STEPS, _MOST_STEPS = 300, 40, 5000
_MOST_VIEWS = 16
_GPU_BATCH = 32
# The most that a crop of 512 pixels takes, with an encoder of up to 22 million parameters, of the
# half of a GPU's memory that is planned with.
_BYTES_PER_CROP, _MEASURED_SIDE, _MEASURED_PARAMETERS = 2**29, 512, 22e6


def choose_settings(
    num_boxes: int, start: Path, *, device: torch.device | None = None, **explicit: Any
) -> LabellerSettings:
    """Settings for an adaptation on this machine.

    Args:
        num_boxes: that are adapted to.
        start: weights to start from; they know which crops they were trained for.
        device: where it will run; None takes a GPU where there is one.
        **explicit: settings that are given; they win over what would be chosen.

    Raises:
        CheckpointError: `start` is no labeller.
        TrainingConfigError: a given setting makes no sense.
    """
    device = device or default_device()
    network, facts = load_crop_network(start)
    memory = 0
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    num_parameters = sum(p.numel() for p in network.parameters())
    chosen = dict(explicit)
    crop_size = chosen.setdefault("crop_size", choose_crop_size(network.description, facts, memory))
    batch_size = chosen.setdefault(
        "batch_size", choose_batch_size(memory, crop_size, num_parameters)
    )
    chosen.setdefault("max_iterations", choose_steps(num_boxes, batch_size))
    return LabellerSettings(**chosen)


def choose_crop_size(
    description: NetworkDescription, facts: Mapping[str, Any], gpu_bytes: int
) -> int:
    """Side of crops in pixels.

    An encoder that takes one size gets that. Else the usual size, but on a GPU the largest that the
    weights' file names: crops larger than weights know cost accuracy.

    Args:
        description: of the network.
        facts: of the weights' file; `crop_sizes` are those to adapt them with.
        gpu_bytes: memory of the GPU; 0 for a CPU.
    """
    if description.only_size is not None:
        return description.only_size
    usual = LabellerSettings.crop_size
    return max(facts.get("crop_sizes", (usual,))) if gpu_bytes else usual


def choose_batch_size(gpu_bytes: int, crop_size: int, num_parameters: int) -> int:
    """Crops a step: the usual number, on a GPU the power of two up to twice it that fits.

    Args:
        gpu_bytes: memory of the GPU; 0 for a CPU.
        crop_size: in pixels.
        num_parameters: of the network.
    """
    if not gpu_bytes:
        return LabellerSettings.batch_size
    per_crop = _BYTES_PER_CROP * (crop_size / _MEASURED_SIDE) ** 2
    per_crop *= max(num_parameters / _MEASURED_PARAMETERS, 1.0)
    fitting = max(gpu_bytes / 2 / per_crop, 1.0)
    return int(min(_GPU_BATCH, 2 ** int(math.log2(fitting))))


def choose_steps(num_boxes: int, batch_size: int) -> int:
    """Steps of a run: 300, which is enough for hundreds to thousands of boxes.

    More where that would not show every box once. Fewer where it would show each more than 16
    times: few boxes have little to teach, and what is repeated is learned by heart. At least 40,
    of which half are the warm-up. A budget in minutes may end it before.

    Args:
        num_boxes: at least 1.
        batch_size: crops a step.
    """
    once = num_boxes / batch_size
    steps = min(max(_USUAL_STEPS, once), _MOST_VIEWS * once)
    return math.ceil(min(max(steps, _LEAST_STEPS), _MOST_STEPS))
