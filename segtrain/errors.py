"""Errors of the trainer, grouped by what the caller does next.

SegtrainError
├── DatasetError            fix the annotation file or the image folder
│   └── ImageSizeMismatchError
├── MissingDepthError       run `pipeline depth` for the images it names
├── TrainingConfigError     change the setting it names (also a ValueError)
├── CheckpointError         give other weights, or start a fresh run
└── NonFiniteLossError      lower the learning rate or look at the images it names
"""

from __future__ import annotations

import re


class SegtrainError(Exception):
    """Base of all errors that this package raises on purpose."""


class DatasetError(SegtrainError):
    """The annotations or the images cannot be used as they are."""


class ImageSizeMismatchError(DatasetError):
    """An image's pixels do not have the size that the annotation file states."""


class MissingDepthError(SegtrainError):
    """The depth cache holds no map for an image of the training set."""


class TrainingConfigError(SegtrainError, ValueError):
    """A setting, or two settings together, make no sense."""


class CheckpointError(SegtrainError):
    """A checkpoint is absent, unreadable, or belongs to another model or schedule."""


class NonFiniteLossError(SegtrainError):
    """A loss is NaN or infinite; the weights were not touched by this step."""


def describe_load_failure(error: Exception) -> str:
    """Why torch did not read a file, without its advice to run what the file may hold."""
    text = str(error)
    if "Weights only load failed" not in text:
        return text.splitlines()[0] if text else type(error).__name__
    found = re.search(r"GLOBAL ([\w.]+)", text)
    what = f"Python objects ({found[1]})" if found else "more than tensors and plain values"
    return f"it holds {what}, which could run code when loaded; save its state dict alone"
