"""A run's config as the file config.yaml."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf


def printable_config(cfg: Any) -> Any:
    """The config without Python objects, which YAML cannot hold."""
    return OmegaConf.create(_to_plain(OmegaConf.to_container(cfg, resolve=True)))


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)
