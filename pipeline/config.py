"""Config files and `--set`: load a LazyConfig file, apply checked overrides, take snapshots.

A config file is Python and runs when it is loaded: never load one that came over the network.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.output import to_jsonable
from pipeline.resources import resolve_config

if TYPE_CHECKING:
    from segtrain.run.experiment import Experiment

_ENVIRONMENT_MODULE = "detectron2.utils.env"
_ASSIGNMENT = re.compile(r"[A-Za-z_][\w.\[\]-]*=")


def load_config(
    path: str | Path, assignments: Sequence[str] = (), *, has_weights: bool = False
) -> Any:
    """Load a LazyConfig file and apply `key=value` overrides.

    Overrides that name data but no `data.num_classes` leave the number to the data.

    Args:
        path: config file, or the name of a bundled one.
        assignments: `key=value` texts; later ones win.
        has_weights: the number of classes is that of weights, unless an override names it.

    Returns:
        The config, an `omegaconf.DictConfig`.

    Raises:
        UsageError: no such file, the file does not load, or an override is refused.
    """
    file = resolve_config(path)
    with _detectron2_without_torch():
        from detectron2.config import LazyConfig

        try:
            config = LazyConfig.load(str(file))
        except Exception as error:
            name = type(error).__name__
            raise UsageError(f"config {file} does not load: {name}: {error}") from error
    for assignment in assignments:
        apply_assignment(config, assignment)
    keys = {assignment.partition("=")[0] for assignment in assignments}
    if (has_weights or "data.train_json" in keys) and "data.num_classes" not in keys:
        config.data.num_classes = None
    return config


def load_experiment(
    path: str | Path, assignments: Sequence[str] = (), *, has_weights: bool = False
) -> Experiment:
    """Load a config file with overrides, and read it.

    Args:
        path: config file, or the name of a bundled one.
        assignments: `key=value` texts; later ones win.
        has_weights: the number of classes is that of weights, unless an override names it.

    Raises:
        UsageError: as `load_config`.
        TrainingConfigError: a setting is out of range, or does not go with another.
    """
    config = load_config(path, assignments, has_weights=has_weights)
    from segtrain.run.experiment import read_experiment

    return read_experiment(config)


@contextlib.contextmanager
def _detectron2_without_torch() -> Iterator[None]:
    """Let `detectron2.config` be imported without torch, which takes seconds and serves no config.

    detectron2's package imports `detectron2.utils.env` first, and that imports torch to set up the
    process. Inside, a module without content stands in for it. Afterwards the real one takes over:
    at once where a config imported what computes, else when detectron2 is next imported.
    """
    if "detectron2" in sys.modules or "torch" in sys.modules:
        yield
        return
    stand_in = types.ModuleType(_ENVIRONMENT_MODULE)
    stand_in.__getattr__ = _environment_attribute  # type: ignore[method-assign]
    sys.modules[_ENVIRONMENT_MODULE] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_ENVIRONMENT_MODULE) is stand_in:
            del sys.modules[_ENVIRONMENT_MODULE]
        if "torch" in sys.modules:
            importlib.import_module(_ENVIRONMENT_MODULE).setup_environment()
        else:
            for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
                del sys.modules[name]


def _environment_attribute(name: str) -> Any:
    """An attribute of the stand-in: what the packages ask for at their start, else the real one."""
    if name in ("setup_environment", "fixup_module_metadata"):
        return lambda *_: None
    if name.startswith("__"):
        raise AttributeError(name)
    sys.modules.pop(_ENVIRONMENT_MODULE, None)
    return getattr(importlib.import_module(_ENVIRONMENT_MODULE), name)


def split_assignments(arguments: Sequence[str]) -> list[str]:
    """Rewrite `--set a=1 b=2` as `--set a=1 --set b=2`, wherever it stands.

    Args:
        arguments: command-line arguments.

    Returns:
        Arguments in which each `--set` has exactly one value.
    """
    rewritten: list[str] = []
    inside_set = False
    for argument in arguments:
        if argument == "--set":
            rewritten.append(argument)
            inside_set = True
        elif inside_set and _ASSIGNMENT.match(argument):
            if rewritten[-1] != "--set":
                rewritten.append("--set")
            rewritten.append(argument)
        else:
            inside_set = False
            rewritten.append(argument)
    return rewritten


def apply_assignment(config: Any, assignment: str) -> None:
    """Set one existing key of a config.

    Args:
        config: an `omegaconf.DictConfig`; changed in place.
        assignment: `key=value`. Where the config holds text, the value is taken as it is typed
            (`0012`, `12:30`, `no`), but for `null`, quotes around all of it, and `~` for the home
            folder; elsewhere it is read as YAML.

    Raises:
        UsageError: not of that form, no such key (with suggestions), or a value of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise UsageError(f"--set takes key=value, got {assignment!r}")
    if not _key_exists(config, key):
        raise UsageError(_unknown_key_message(config, key))
    if _holds_text(config, key) and text != "null":
        value: Any = _typed_text(text)
    else:
        try:
            value = OmegaConf.from_dotlist([f"value={text}"]).get("value")
        except Exception as error:
            raise UsageError(f"--set {key}: cannot read the value {text!r}: {error}") from error
    try:
        OmegaConf.update(config, key, value, merge=OmegaConf.is_dict(value))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--set {key}: the value {text!r} is refused: {reason}") from error


def list_keys(config: Any) -> list[str]:
    """All keys of a config that `--set` can name, for example `train.max_iter`."""
    return list(_walk_keys(config, ""))


def take_snapshot(config: Any) -> dict[str, Any]:
    """A config as plain JSON values: classes and functions by import path.

    Args:
        config: an `omegaconf.DictConfig`.
    """
    from omegaconf import OmegaConf

    snapshot = to_jsonable(OmegaConf.to_container(config, resolve=False))
    if not isinstance(snapshot, dict):
        raise UsageError(f"a config is a mapping, got {type(snapshot).__name__}")
    return snapshot


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Name every field that differs between two snapshots.

    Args:
        old: nested mapping, before.
        new: nested mapping, now.

    Returns:
        Dotted field name → `before → now`.
    """
    before, now = dict(flatten(old)), dict(flatten(new))
    changes = {}
    for key in sorted(before.keys() | now.keys()):
        if before.get(key, "absent") != now.get(key, "absent"):
            changes[key] = f"{before.get(key, 'absent')} → {now.get(key, 'absent')}"
    return changes


def flatten(value: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with their dotted names; lists count as leaves."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _walk_keys(node: Any, prefix: str) -> Iterator[str]:
    from omegaconf import OmegaConf

    for key in node:
        if str(key) == "_target_":
            continue
        name = f"{prefix}.{key}" if prefix else str(key)
        yield name
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if child is not None and OmegaConf.is_dict(child) and not child._is_none():
            yield from _walk_keys(child, name)


def _key_exists(config: Any, key: str) -> bool:
    from omegaconf import OmegaConf

    node = config
    parts = [part for part in re.split(r"[.\[\]]+", key) if part]
    for position, part in enumerate(parts):
        is_last = position == len(parts) - 1
        if OmegaConf.is_list(node):
            if not part.isdigit() or int(part) >= len(node):
                return False
            node = node[int(part)]
        elif OmegaConf.is_dict(node):
            if part not in node and not OmegaConf.is_missing(node, part):
                return is_last and _is_parameter_of_target(node, part)
            if is_last:
                return True
            node = node[part]
        else:
            return False
    return bool(parts)


def _holds_text(config: Any, key: str) -> bool:
    """Whether a key's values are text: by its settings class, else by its value or its default."""
    from omegaconf import OmegaConf

    parts = [part for part in re.split(r"[.\[\]]+", key) if part]
    node = OmegaConf.select(config, ".".join(parts[:-1])) if len(parts) > 1 else config
    if OmegaConf.is_list(node):
        return isinstance(node[int(parts[-1])], str)
    leaf = node._get_node(parts[-1])
    if leaf is None:
        return isinstance(_parameters_of_target(node).get(parts[-1]), str)
    declared = leaf._metadata.ref_type
    if declared is not Any:
        return declared is str
    return isinstance(leaf._value(), str) and not OmegaConf.is_interpolation(node, parts[-1])


def _typed_text(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text  # noqa: PTH111 - Path would drop a trailing slash


def _is_parameter_of_target(node: Any, name: str) -> bool:
    """Whether `name` is an argument of the lazy call's target that the config leaves out."""
    from segtrain.run.target_parameters import may_be_parameter

    if name.startswith("_") or not may_be_parameter(node.get("_target_"), name):
        return False
    return name in _parameters_of_target(node)


def _parameters_of_target(node: Any) -> dict[str, Any]:
    """Arguments of a lazy call's target with their defaults."""
    target = node.get("_target_") if "_target_" in node else None
    if isinstance(target, str):
        from detectron2.utils.registry import locate

        target = locate(target)
    if target is None:
        return {}
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}
    # What stands for any further argument is the name of none.
    given = (p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return {parameter.name: parameter.default for parameter in given}


def _unknown_key_message(config: Any, key: str) -> str:
    """Where a key leaves the config, and what there is there, or is spelled alike."""
    from omegaconf import OmegaConf

    node, path, parts = config, "", [part for part in re.split(r"[.\[\]]+", key) if part]
    while OmegaConf.is_dict(node) and parts and parts[0] in node:
        part = parts.pop(0)
        node, path = node[part], f"{path}.{part}" if path else part
    if node is None:
        return f"--set {key}: {path} is null in this config; start from one that has it"
    target: Any = to_jsonable(node.get("_target_")) if OmegaConf.is_dict(node) else None
    fact = f"{target.rpartition('.')[2]} takes no {parts[0]}" if target else "there is no such key"
    similar = _find_similar_keys(config, key)
    if similar:
        return f"--set {key}: {fact}; did you mean {', '.join(similar)}?"
    if not OmegaConf.is_dict(node):
        return f"--set {key}: {fact}; {path} is {node}"
    names = ", ".join(str(name) for name in node if name != "_target_")
    return f"--set {key}: {fact}; {path or 'the config'} has {names}"


def _find_similar_keys(config: Any, key: str) -> list[str]:
    """At most three keys whose last part is that of a key or nearly so, the most similar first."""
    tails = {name: name.rpartition(".")[2] for name in list_keys(config)}
    tail = key.rpartition(".")[2]
    alike = difflib.get_close_matches(tail, list(set(tails.values())), n=9, cutoff=0.7)
    names = [name for name in tails if tails[name] in alike]
    return difflib.get_close_matches(key, names, n=3, cutoff=0.5)
