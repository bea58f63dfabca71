"""Write and read checkpoints: a file is whole or it is not there."""

from __future__ import annotations

import logging
import random
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from depthcache.storage.durable_files import replaced_file
from segtrain.errors import CheckpointError, describe_load_failure
from segtrain.exchange.published_checkpoints import (
    match_depth_layer,
    read_array_pickle,
    read_checkpoint,
    strip_ddp_prefix,
)
from segtrain.run.starting_weights import absent_weights, unfetched_weights

logger = logging.getLogger(__name__)

# Where weights may belong: the whole model, its pyramid, its backbone, timm's model in that.
_BACKBONE_PREFIXES = ("", "backbone.", "backbone.bottom_up.", "backbone.bottom_up.model.")
_NAME = re.compile(r"iteration_(\d{8})\.pth")


def checkpoint_path(run_dir: Path, iteration: int) -> Path:
    """Where the state after `iteration` finished iterations is kept."""
    return run_dir / "checkpoints" / f"iteration_{iteration:08d}.pth"


def list_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(iteration, file) of a run's checkpoints, oldest first."""
    found = []
    for path in (run_dir / "checkpoints").glob("iteration_*.pth"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a crash leaves the old file or the new one, never a part.

    Args:
        state: tensors and plain Python values.
        path: the file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        torch.save(state, file)


def remove_old_checkpoints(run_dir: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints of a run."""
    for _, path in list_checkpoints(run_dir)[:-keep]:
        path.unlink(missing_ok=True)


def remove_partial_files(run_dir: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a run's folder.

    Nobody else may be writing there.
    """
    for folder in (run_dir, run_dir / "checkpoints"):
        for path in folder.glob("*.tmp-*"):
            path.unlink(missing_ok=True)


def load_state(path: Path, content: BinaryIO | None = None) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without running code from it.

    Args:
        path: the file.
        content: read instead of the file, which is elsewhere.

    Raises:
        CheckpointError: no such file, or not a readable checkpoint.
    """
    try:
        state = torch.load(content or path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is no readable checkpoint: {describe_load_failure(error)}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def load_weights(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load a model's weights for inference; every key must fit.

    A depth layer that the weights lack is added so that their masks stay.

    Args:
        model: changed in place.
        path: a checkpoint of this project, or a converted one.

    Returns:
        What else the file holds, without the weights (`categories`, `iteration`, …).

    Raises:
        CheckpointError: unreadable, or keys or shapes differ from the model's.
    """
    state = load_state(path)
    content = {strip_ddp_prefix(k): v for k, v in state.get("model", state).items()}
    weights = match_depth_layer(model, content)
    problems = _describe_differences(model, weights)
    if problems:
        raise CheckpointError(
            f"{path} does not fit the config's model: {'; '.join(problems[:6])}"
            f"{f' and {len(problems) - 6} more' if len(problems) > 6 else ''}. "
            "Use the config that the weights were trained with"
        )
    model.load_state_dict(weights)
    return (
        {key: value for key, value in state.items() if key != "model"} if "model" in state else {}
    )


def initialise_weights(model: nn.Module, source: str) -> None:
    """Start a model from weights that may fit it in part only (other classes, a backbone alone).

    A depth layer that a CondInst or BoxInst checkpoint lacks is added so that its masks stay.

    Args:
        model: changed in place.
        source: a `.pth` file of a whole model or of a backbone, or a detectron2 backbone (`.pkl`,
            or an address of its model zoo).

    Raises:
        CheckpointError: absent, unreadable, or nothing fits.
    """
    own = model.state_dict()
    if source.endswith(".pkl") or "://" in source:
        weights = _read_zoo_backbone(model, source)
    else:
        try:
            weights = match_depth_layer(model, read_checkpoint(source))
        except FileNotFoundError as error:
            raise absent_weights(source) from error
    # Weights of a backbone alone do not know where it stands in the detector.
    fitting: dict[str, torch.Tensor] = max(
        (
            {
                prefix + key: value
                for key, value in weights.items()
                if prefix + key in own and own[prefix + key].shape == value.shape
            }
            for prefix in _BACKBONE_PREFIXES
        ),
        key=len,
    )
    if not fitting:
        raise CheckpointError(
            f"train.init_checkpoint={source}: none of its {len(weights)} entries fits the model"
        )
    model.load_state_dict(fitting, strict=False)
    skipped = sorted(own.keys() - fitting.keys())
    logger.info(
        "started from %s: %d of %d entries; freshly initialised: %s",
        source,
        len(fitting),
        len(own),
        ", ".join(skipped[:8]) + (" …" if len(skipped) > 8 else "") if skipped else "none",
    )


def seed_all(seed: int) -> None:
    """Seed every random generator that code of a run may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(seed)


def capture_random_state() -> dict[str, Any]:
    """State of all random generators of this process, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - libraries draw from it
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo everything that drew random numbers since `capture_random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _read_zoo_backbone(model: Any, source: str) -> dict[str, torch.Tensor]:
    """A detectron2 or Caffe2 backbone under the names that the model's own has."""
    from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
    from detectron2.utils.file_io import PathManager

    try:
        path = Path(PathManager.get_local_path(source))
        content = read_array_pickle(path)
    except OSError as error:
        raise unfetched_weights(source, error) from error
    is_caffe2 = not ("model" in content and "__author__" in content)
    arrays = content.get("blobs", content) if is_caffe2 else content["model"]
    weights = {
        key: torch.as_tensor(value)
        for key, value in arrays.items()
        if not key.endswith("_momentum") and hasattr(value, "shape")
    }
    body = model.backbone.bottom_up
    if is_caffe2 or content.get("matching_heuristics", False):
        weights = align_and_update_state_dicts(body.state_dict(), weights, c2_conversion=is_caffe2)
    return weights


def _describe_differences(model: nn.Module, weights: dict[str, Any]) -> list[str]:
    own = model.state_dict()
    problems = [f"{key} is missing" for key in sorted(own.keys() - weights.keys())]
    problems += [f"{key} is unknown" for key in sorted(weights.keys() - own.keys())]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)}, the model's is {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    return problems
