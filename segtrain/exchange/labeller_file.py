"""What a labeller's file says of itself, read without torch, which takes seconds to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from segtrain.errors import CheckpointError

KEY = "labeller"


def read_labeller_facts(path: Path) -> dict[str, Any]:
    """The network's description and further facts, as `save_crop_network` wrote them.

    Raises:
        CheckpointError: no such file, or no labeller.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(json.loads((file.metadata() or {})[KEY]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise not_a_labeller(path, error) from error


def not_a_labeller(path: Path, error: Exception) -> CheckpointError:
    """Why a file cannot be used, with what is expected."""
    return CheckpointError(
        f"{path} is no labeller: {error!r}; expected a .safetensors file that the adaptation "
        "or data/labeller/train_labeller.py wrote"
    )
