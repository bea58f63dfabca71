"""The files that an experiment names: its data sets and its depth model."""

from __future__ import annotations

import dataclasses
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

# A bundled config names the bundled depth model by this.
DEMO_MODEL_NAME = "demo-dpt"
SPLITS = ("train", "test")
# Reading a larger file takes as long as importing torch, and the work itself reads it.
_MAX_BYTES_READ_TWICE = 2**23
# A zip archive, or a pickle.
_BEGINNINGS_OF_CHECKPOINTS = (b"PK", b"\x80")
# Where a file's header in a zip archive says how long its name and its extra field are.
_LENGTHS_IN_ZIP_HEADER = 26
_GIVE_TRAINED_WEIGHTS = "give a file such as RUN/model_final.pth"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetPaths:
    """Where one split of a data set lies.

    Attributes:
        annotations: COCO JSON.
        images: image folder.
    """

    annotations: Path
    images: Path


def dataset_paths(experiment: Experiment, split: str) -> DatasetPaths:
    """Paths of a split, `train` or `test`.

    Raises:
        UsageError: the config does not name the split's files.
    """
    annotations = getattr(experiment.data, f"{split}_json")
    images = getattr(experiment.data, f"{split}_images")
    if not annotations or not images:
        raise UsageError(
            f"the config names no {split} data; "
            f"use --set data.{split}_json=ANN.json data.{split}_images=DIR"
        )
    return DatasetPaths(annotations=Path(annotations), images=Path(images))


def existing_dataset_paths(experiment: Experiment, split: str) -> DatasetPaths:
    """Paths of a split whose file and folder are there.

    Raises:
        UsageError: names what is missing and how to name another.
    """
    existing_annotations(experiment, split)
    paths = dataset_paths(experiment, split)
    if not paths.images.is_dir():
        raise _missing(f"data.{split}_images", paths.images, "image folder")
    return paths


def existing_annotations(experiment: Experiment, split: str) -> Path:
    """The COCO file of a split, which is there.

    Raises:
        UsageError: it is not; says how to name another.
    """
    annotations = dataset_paths(experiment, split).annotations
    if not annotations.is_file():
        raise _missing(f"data.{split}_json", annotations, "COCO file")
    return annotations


def existing_checkpoint(path: Path, remedy: str = _GIVE_TRAINED_WEIGHTS) -> Path:
    """A checkpoint that is there and looks like one; told before torch takes seconds to load.

    Args:
        path: the file.
        remedy: what to do when it is none.

    Raises:
        UsageError: it is not.
    """
    if not path.is_file():
        raise UsageError(f"checkpoint {path} does not exist")
    with path.open("rb") as file:
        begins = file.read(2)
        if not begins:
            damage = "it is empty"
        elif not begins.startswith(_BEGINNINGS_OF_CHECKPOINTS):
            damage = f"it begins with {begins!r}, which torch.save does not write"
        elif begins == b"PK":
            damage = _find_damage(file)
        else:
            damage = ""
    if damage:
        raise UsageError(f"{path} is no readable checkpoint: {damage}; {remedy}")
    return path


def refuse_small_file(annotations: str | Path, read: Callable[[], object]) -> None:
    """Let a small annotation file be read, and refused, before torch takes seconds to load.

    Args:
        annotations: the file.
        read: reads it as the work will, and raises what the work would.
    """
    if Path(annotations).stat().st_size <= _MAX_BYTES_READ_TWICE:
        read()


def refuse_absent_files(assignments: Sequence[str], splits: Sequence[str]) -> None:
    """Refuse `--set` texts that name absent files, before the config takes seconds to load.

    Args:
        assignments: `key=value` texts.
        splits: whose files the command needs.

    Raises:
        UsageError: names the setting and the path.
    """
    for text in assignments:
        key, _, value = text.partition("=")
        part, _, name = key.partition(".")
        split, _, kind = name.rpartition("_")
        if part != "data" or split not in splits or value == "null":
            continue
        if kind == "json" and not Path(value).is_file():
            raise _missing(key, Path(value), "COCO file")
        if kind == "images" and not Path(value).is_dir():
            raise _missing(key, Path(value), "image folder")


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


def _find_damage(file: BinaryIO) -> str:
    """Why torch cannot read an archive: its list of contents and its pickle; empty if it may.

    Checksums are not looked at: torch.save may be told to write none, and torch.load reads none.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [i for i in archive.infolist() if i.filename.endswith("/data.pkl")]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return "its list of contents is missing or damaged, as of a file that was cut off"
    if len(pickles) != 1:
        return "it holds no data.pkl, which torch.save writes"
    file.seek(pickles[0].header_offset + _LENGTHS_IN_ZIP_HEADER)
    file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
    try:
        for _ in pickletools.genops(file.read(pickles[0].file_size)):
            pass
    except (ValueError, IndexError, struct.error) as error:
        return f"its data.pkl is damaged ({error})"
    return ""


def _missing(setting: str, path: Path, kind: str) -> UsageError:
    return UsageError(
        f"{setting} is {path}, and there is no such {kind}; name yours with "
        f"--set {setting}=PATH (the demo's scenes come from `pipeline run` or `pipeline demo`)"
    )
