"""Published CondInst and BoxInst checkpoints, key for key, and weights for a new depth layer."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segtrain.errors import CheckpointError, describe_load_failure
from segtrain.modeling.condinst import CondInst
from segtrain.modeling.dynamic_mask_head import HIDDEN, DepthForm, num_mask_parameters

_DDP_PREFIX = "module."
# Buffers that old versions did not save, or that the model recomputes.
_OPTIONAL = ("num_batches_tracked", "mask_head._iter", "mask_head.sizes_of_interest")
# Constants that published files carry and this model does not.
_IGNORED = ("pixel_mean", "pixel_std")


# Numbers of numpy, which checkpointers keep beside the weights; torch refuses them by default.
_SCALAR = import_module("numpy._core.multiarray").scalar
_NUMPY_VALUES: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
]


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """How a checkpoint's entries relate to a model's."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every entry found its place."""
        return not (self.missing or self.unknown or self.misshapen)

    def describe(self) -> str:
        """One line per kind of difference, every key named."""
        kinds = (("missing", self.missing), ("unknown", self.unknown), ("shape", self.misshapen))
        return "\n".join(f"{kind}: {', '.join(keys)}" for kind, keys in kinds if keys)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running code from the file.

    Takes plain state dicts and {"model": …} or {"state_dict": …}, DDP's prefix, torch's zip and
    legacy formats, and detectron2's pickles of numpy arrays. A pickle that asks for anything but
    tensors and arrays is refused.

    Raises:
        CheckpointError: not a checkpoint, or not a harmless one.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            # detectron2's pickles use a newer protocol; `_read_array_pickle` is there for them.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            with torch.serialization.safe_globals(_NUMPY_VALUES):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        content = read_array_pickle(path, describe_load_failure(error))
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict")
    state = {}
    for key, value in content.items():
        if not hasattr(value, "shape"):
            raise CheckpointError(f"{path}: entry {key!r} is {type(value).__name__}, not a tensor")
        state[strip_ddp_prefix(str(key))] = torch.as_tensor(value).detach().clone()
    return state


def strip_ddp_prefix(name: str) -> str:
    """The name of an entry in the model itself, which DDP saves under `module.`."""
    while name.startswith(_DDP_PREFIX):
        name = name[len(_DDP_PREFIX) :]
    return name


def convert_adelaidet(source: str | Path, target: str | Path) -> dict[str, torch.Tensor]:
    """Write a published CondInst or BoxInst checkpoint as {"model": state dict} of this project.

    The names are the same; what changes is the wrapping and what only the original system needs.

    Returns:
        The converted state dict.

    Raises:
        CheckpointError: the file is not such a checkpoint.
    """
    state = {k: v for k, v in read_checkpoint(source).items() if k not in _IGNORED}
    for key in ("controller.weight", "mask_branch.tower.4.weight"):
        if key not in state:
            raise CheckpointError(
                f"{source} has no {key}: it is not an AdelaiDet CondInst or BoxInst checkpoint"
            )
    channels = state["mask_branch.tower.4.weight"].shape[0]
    expected = num_mask_parameters(channels, depth_layer=False)
    if state["controller.weight"].shape[0] != expected:
        raise CheckpointError(
            f"{source}: the controller predicts {state['controller.weight'].shape[0]} parameters, "
            f"{channels} mask channels need {expected}"
        )
    torch.save({"model": state}, target)
    return state


def add_depth_layer(
    state: Mapping[str, torch.Tensor],
    depth_form: DepthForm = "multiply",
    depth_bias: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Give a controller without depth the nine parameters of a depth layer, keeping its masks.

    The controller's new rows are zero but for the depth layer's bias, so depth starts at
    sigmoid(bias) everywhere: by default at 1/2, in the middle of its range where its gradient is
    largest. In the "multiply" form the rows of the mask layer are divided by it, so that
    (2 m) · 1/2 = m exactly; in the "add" form the mask's bias gives what depth adds.
    """
    result = dict(state)
    channels = state["mask_branch.tower.4.weight"].shape[0]
    before_last = HIDDEN * (channels + 2) + HIDDEN * HIDDEN
    factor = 1.0 + math.exp(-depth_bias) if depth_form == "multiply" else 1.0
    for name in ("controller.weight", "controller.bias"):
        rows = state[name]
        if rows.shape[0] != num_mask_parameters(channels, depth_layer=False):
            raise CheckpointError(f"{name} has {rows.shape[0]} rows: it already predicts depth")
        first, mask_weight, biases, mask_bias = rows.split(
            (before_last, HIDDEN, 2 * HIDDEN, 1), dim=0
        )
        start = depth_bias if name == "controller.bias" else 0.0
        result[name] = torch.cat(
            (
                first,
                torch.zeros_like(mask_weight),
                mask_weight * factor,
                biases,
                torch.full_like(mask_bias, start),
                mask_bias * factor - (start if depth_form == "add" else 0.0),
            )
        )
    return result


def match_depth_layer(
    model: nn.Module, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state as it is, or with the depth layer that the model has and it lacks."""
    controller = state.get("controller.weight")
    last = state.get("mask_branch.tower.4.weight")
    if (
        isinstance(model, CondInst)
        and model.depth_form is not None
        and controller is not None
        and last is not None
        and controller.shape[0] == num_mask_parameters(last.shape[0], depth_layer=False)
    ):
        return add_depth_layer(state, model.depth_form, model.mask_settings.depth_bias)
    return dict(state)


def compare_keys(model: nn.Module, state: Mapping[str, torch.Tensor]) -> KeyReport:
    """Compare a checkpoint with a model without loading it."""
    own = model.state_dict()
    return KeyReport(
        loaded=tuple(k for k in own if k in state and state[k].shape == own[k].shape),
        missing=tuple(k for k in own if k not in state and not k.endswith(_OPTIONAL)),
        unknown=tuple(k for k in state if k not in own and k not in _IGNORED),
        misshapen=tuple(
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ),
    )


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Any], *, allow_differences: bool = False
) -> KeyReport:
    """Load a checkpoint into a model; a depth layer that the checkpoint lacks is added on the way.

    Args:
        model: what to load into.
        source: a path, or a state dict.
        allow_differences: load what fits and report the rest, instead of refusing.

    Raises:
        CheckpointError: keys are missing, unknown or of another shape.
    """
    state = dict(source) if isinstance(source, Mapping) else read_checkpoint(source)
    state = match_depth_layer(model, state)
    report = compare_keys(model, state)
    if not report.is_complete and not allow_differences:
        raise CheckpointError(
            f"the checkpoint does not belong to this model; allow differences to load the rest\n"
            f"{report.describe()}"
        )
    model.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    return report


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts of numpy arrays and nothing else."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}")
        return super().find_class(module, name)


def read_array_pickle(path: Path, cause: str = "no checkpoint of its own") -> Any:
    """Read a pickle of dicts of numpy arrays, as detectron2's backbones are, and of nothing else.

    Args:
        path: the file.
        cause: what torch says of it, for the message.

    Raises:
        CheckpointError: it asks for anything else, or is no pickle.
    """
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read safely ({error}; torch says: {cause})"
        ) from error
