"""What the stages read from a config file, in one place: data sets, cache, output."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError

# A bundled config names the bundled depth model by this.
DEMO_MODEL_NAME = "demo-dpt"
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetPaths:
    """Where one split of a data set lies.

    Attributes:
        annotations: COCO JSON.
        images: image folder.
    """

    annotations: Path
    images: Path


def dataset_paths(config: Any, split: str) -> DatasetPaths:
    """Paths of a split.

    Args:
        config: loaded config.
        split: `train` or `test`.

    Raises:
        UsageError: the config does not name the split's files.
    """
    data = config.get("data") or {}
    annotations, images = data.get(f"{split}_json"), data.get(f"{split}_images")
    if not annotations or not images:
        raise UsageError(
            f"the config names no {split} data; "
            f"use --set data.{split}_json=ANN.json data.{split}_images=DIR"
        )
    return DatasetPaths(annotations=Path(annotations), images=Path(images))


def existing_dataset_paths(config: Any, split: str) -> DatasetPaths:
    """Paths of a split whose file and folder are there.

    Raises:
        UsageError: names what is missing and how to name another.
    """
    existing_annotations(config, split)
    paths = dataset_paths(config, split)
    if not paths.images.is_dir():
        raise _missing(f"data.{split}_images", paths.images, "image folder")
    return paths


def existing_annotations(config: Any, split: str) -> Path:
    """The COCO file of a split, which is there.

    Raises:
        UsageError: it is not; says how to name another.
    """
    annotations = dataset_paths(config, split).annotations
    if not annotations.is_file():
        raise _missing(f"data.{split}_json", annotations, "COCO file")
    return annotations


def _missing(setting: str, path: Path, kind: str) -> UsageError:
    return UsageError(
        f"{setting} is {path}, and there is no such {kind}; name yours with "
        f"--set {setting}=PATH (the demo's scenes come from `pipeline run` or `pipeline demo`)"
    )


def set_dataset_paths(config: Any, split: str, paths: DatasetPaths) -> None:
    """Point a split of a config at other files; changes the config."""
    config.data[f"{split}_json"] = str(paths.annotations)
    config.data[f"{split}_images"] = str(paths.images)


def set_depth_cache(config: Any, url: str) -> None:
    """Point a config at a depth cache; changes the config.

    Args:
        config: loaded config.
        url: a cache folder, or a root.
    """
    config.depth.cache = url


def depth_model(config: Any) -> str:
    """Model that a config computes depth with: a hub id or a local folder."""
    return resolve_model(str(config.depth.model))


def resolve_model(name: str) -> str:
    """Turn the bundled model's name into its folder; other names stay as they are."""
    from pipeline.resources import demo_dpt_path

    path = Path(name)
    if name == DEMO_MODEL_NAME or (path.name == DEMO_MODEL_NAME and not path.is_dir()):
        return str(demo_dpt_path())
    return name


def is_demo_config(config_path: Path) -> bool:
    """Whether a config is one of configs/demo, whose data can be made on the spot."""
    return config_path.parent.name == "demo" and config_path.parent.parent.name == "configs"
