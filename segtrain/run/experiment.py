"""An experiment: a config file read once, its settings checked, its references resolved."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segtrain.data.settings import DataSettings, InferenceSizeSettings, TrainLoaderSettings
from segtrain.depth_source import DepthSettings
from segtrain.errors import TrainingConfigError
from segtrain.run.optimizer import OptimizerSettings
from segtrain.run.schedule import ScheduleSettings
from segtrain.run.train_settings import TrainSettings, read_settings


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a config file asks for. Change it with the methods, or `dataclasses.replace`.

    Attributes:
        model: lazy call that builds the network, for `detectron2.config.instantiate`.
        train: length, precision and bookkeeping.
        data: data sets.
        depth: model and cache of the depth maps.
        optimizer: what updates the weights.
        schedule: learning rate over the run.
        train_loader: how training batches are made.
        test_size: how images are resized for everything but training.
    """

    model: dict[str, Any]
    train: TrainSettings
    data: DataSettings
    depth: DepthSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    train_loader: TrainLoaderSettings
    test_size: InferenceSizeSettings

    def with_depth_cache(self, url: str) -> Experiment:
        """The same experiment reading depth elsewhere: a cache folder, or a root."""
        return replace(self, depth=replace(self.depth, cache=url))

    def with_dataset(self, split: str, annotations: Path, images: Path) -> Experiment:
        """The same experiment with other files as its `train` or `test` split."""
        paths: dict[str, Any] = {f"{split}_json": str(annotations), f"{split}_images": str(images)}
        return replace(self, data=replace(self.data, **paths))

    def with_train(self, **changes: Any) -> Experiment:
        """The same experiment with other fields of `TrainSettings`."""
        return replace(self, train=replace(self.train, **changes))

    def with_num_classes(self, num_classes: int) -> Experiment:
        """The same experiment with as many classes, unless its config says how many."""
        if self.data.num_classes is not None:
            return self
        model = self.model | {"num_classes": num_classes}
        return replace(self, model=model, data=replace(self.data, num_classes=num_classes))

    def to_plain(self) -> dict[str, Any]:
        """The settings under their names in the config file; classes and functions by path."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        loaders = {"train": parts.pop("train_loader"), "test": parts.pop("test_size")}
        plain: dict[str, Any] = {"model": _plain_value(parts.pop("model"))}
        plain |= {name: asdict(settings) for name, settings in parts.items()}
        plain["dataloader"] = {name: asdict(settings) for name, settings in loaders.items()}
        return plain


def read_experiment(cfg: Any) -> Experiment:
    """Read a loaded config file; an experiment stays as it is.

    Args:
        cfg: an OmegaConf node with model, data, dataloader, optimizer, schedule, depth and train.

    Raises:
        TrainingConfigError: a part is absent, a field unknown, or a value out of range.
    """
    if isinstance(cfg, Experiment):
        return cfg
    return Experiment(
        model=_resolve(_select(cfg, "model"), "model"),
        train=read_settings(_select(cfg, "train"), TrainSettings),
        data=read_settings(_select(cfg, "data"), DataSettings),
        depth=read_settings(_select(cfg, "depth"), DepthSettings),
        optimizer=read_settings(_select(cfg, "optimizer"), OptimizerSettings),
        schedule=read_settings(_select(cfg, "schedule"), ScheduleSettings),
        train_loader=read_settings(_select(cfg, "dataloader.train"), TrainLoaderSettings),
        test_size=read_settings(_select(cfg, "dataloader.test"), InferenceSizeSettings),
    )


def _select(cfg: Any, name: str) -> Any:
    node = OmegaConf.select(cfg, name)
    if node is None:
        raise TrainingConfigError(
            f"the config has no {name!r}; start from a bundled config, they have all parts"
        )
    return node


def _resolve(node: Any, name: str) -> Any:
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise TrainingConfigError(f"{name}: {str(error).splitlines()[0]}") from error


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else str(value)
