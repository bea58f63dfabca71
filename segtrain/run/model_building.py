"""Build a config's model, and name the part that refuses its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detectron2.config import instantiate

from segtrain.errors import TrainingConfigError

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment


def build_model(experiment: Experiment) -> Any:
    """Build the network that an experiment's config describes.

    Raises:
        TrainingConfigError: a part refuses its settings; names the part, `model.distillation`.
    """
    return _build_part(experiment.model, "model")


def _build_part(node: Any, name: str) -> Any:
    if not isinstance(node, dict) or "_target_" not in node:
        return instantiate(node)
    built = {key: _build_part(value, f"{name}.{key}") for key, value in node.items()}
    try:
        return instantiate(built)
    except ValueError as error:
        raise TrainingConfigError(f"{name}: {error}") from error
