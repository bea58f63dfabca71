"""HuggingFace depth models: load, check the family, fingerprint, and predict inverse depth."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache.errors import CacheMismatchError
from depthcache.format import segment_format as fmt
from depthcache.format.quantisation import DEFAULT_BITS, describe_encoding
from depthcache.stage_one.cpu_attention import use_bf16_attention
from depthcache.stage_one.settings import StageOneSettings

_NEARER = ("dpt", "depth_anything", "depth_pro")
_METRIC = ("zoedepth", "glpn")
_BY_SETTING = ("depth_anything", "prompt_depth_anything")
_SMALLEST_METRES = 1e-3


@dataclass(kw_only=True)
class DepthModel:
    """A loaded depth model.

    Attributes:
        network: the torch module, in evaluation mode.
        processor: its image processor.
        device: torch device name.
        precision: fp32, bf16 or fp16.
        gives_metric_depth: the output is metres, larger = farther; else larger = nearer.
        fingerprint: the document whose hash names the cache folder.
    """

    network: Any
    processor: Any
    device: str
    precision: str
    gives_metric_depth: bool
    fingerprint: dict[str, Any]
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def preprocess(self, image: npt.NDArray[np.uint8]) -> Any:
        """(3, h, w) float32 tensor of an (H, W, 3) RGB image."""
        # Told, not inferred: an image one or three pixels high looks like channels first.
        inputs = self.processor(
            images=image, return_tensors="pt", input_data_format="channels_last"
        )
        return inputs["pixel_values"][0]

    def predict(self, pixels: Sequence[Any]) -> list[npt.NDArray[np.float32]]:
        """Relative inverse depth, larger = nearer, at the network's own resolution.

        Args:
            pixels: tensors of `preprocess`, all of one shape.
        """
        return self.fetch(self.forward(pixels))

    def forward(self, pixels: Sequence[Any]) -> Any:
        """(N, H, W) relative inverse depth on the device, of which a GPU may still be computing.

        Args:
            pixels: tensors of `preprocess`, all of one shape.
        """
        import torch

        batch = torch.stack(list(pixels))
        if self.device.startswith("cuda"):
            batch = batch.pin_memory()  # so that the transfer runs beside the pass before
        # Of several threads, one at a time: two passes at once only take each other's cores.
        with self._lock, torch.inference_mode():
            batch = batch.to(self.device, _dtype(self.precision), non_blocking=True)
            predicted = _forward(self.network, batch).float()
            if self.gives_metric_depth:
                predicted = 1.0 / predicted.clamp(min=_SMALLEST_METRES)
        return predicted

    def fetch(self, predicted: Any) -> list[npt.NDArray[np.float32]]:
        """The maps of a `forward`, (H, W) each; waits for the device."""
        return list(predicted.cpu().numpy())


def load_depth_model(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    bits: int = DEFAULT_BITS,
) -> DepthModel:
    """Load a model from the hub or a local folder.

    Args:
        model: hub id or folder.
        revision: of a hub model.
        device: torch device.
        precision: fp32, bf16 or fp16.
        bits: significant bits of a stored map, 2 to 16, or 32 for float32.

    Raises:
        CacheMismatchError: the model does not predict depth, or the family is unknown.
        ValueError: precision is not fp32, bf16 or fp16, or bits are out of range.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

    dtype = _dtype(precision)
    encoding = describe_encoding(bits)
    name = str(model)
    config = AutoConfig.from_pretrained(name, revision=revision)
    gives_metric_depth = output_is_metric(config)
    processor = AutoImageProcessor.from_pretrained(name, revision=revision)
    if config.model_type == "zoedepth":
        processor.do_pad = False  # the prediction of a padded image does not lie on the image
    network = AutoModelForDepthEstimation.from_pretrained(name, revision=revision)
    network = network.float().eval()
    folder = Path(name)
    settings = {k: v for k, v in processor.to_dict().items() if not k.startswith("_")}
    fingerprint = {
        "format_version": fmt.FORMAT_VERSION,
        "model": str(config.model_type) if folder.is_dir() else name,
        "revision": None
        if folder.is_dir()
        else (revision or getattr(config, "_commit_hash", None)),
        "weights_sha256": hash_weights(network),
        "processor": json.loads(json.dumps(settings, default=str)),
        "precision": precision,
        "convention": {
            "model_output": "metric depth, metres, larger = farther"
            if gives_metric_depth
            else "relative inverse depth, larger = nearer",
            "post_processed": False,
            "stored": "relative inverse depth, larger = nearer",
        },
        "encoding": encoding,
    }
    network = network.to(device, dtype)
    if precision == "bf16" and device == "cpu":
        use_bf16_attention(network)
    return DepthModel(
        network=network,
        processor=processor,
        device=device,
        precision=precision,
        gives_metric_depth=gives_metric_depth,
        fingerprint=fingerprint,
    )


def load_with_settings(model: str | Path, settings: StageOneSettings) -> DepthModel:
    """`load_depth_model` as stage one's settings say; without a device on cuda if there is one."""
    import torch

    return load_depth_model(
        model,
        revision=settings.revision,
        device=settings.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        precision=settings.precision,
        bits=settings.bits,
    )


class MapShapes:
    """Shape of the map of an image of a given size, found out once per network input shape."""

    def __init__(self, model: DepthModel) -> None:
        self._model = model
        self._inputs: dict[tuple[int, int], tuple[int, int] | str] = {}
        self._outputs: dict[tuple[int, ...], tuple[int, int]] = {}

    def __call__(self, size: tuple[int, int]) -> tuple[int, int] | str:
        """(H, W) of the map of an (H, W) image, or why the model cannot take one."""
        if size not in self._inputs:
            self._inputs[size] = self._try(size)
        return self._inputs[size]

    def _try(self, size: tuple[int, int]) -> tuple[int, int] | str:
        import torch

        try:
            pixels = self._model.preprocess(np.zeros((*size, 3), np.uint8))
            shape = tuple(pixels.shape)
            if shape not in self._outputs:
                height, width = self._model.predict([pixels])[0].shape
                self._outputs[shape] = (height, width)
            return self._outputs[shape]
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError, ArithmeticError) as error:
            return (
                f"the model cannot take an image of {size[1]}×{size[0]}: pad or crop it to a less "
                f"extreme shape, or leave it out ({str(error)[:80]})"
            )


def output_is_metric(config: Any) -> bool:
    """Whether `predicted_depth` is metres (larger = farther) rather than inverse depth.

    Depth Pro's raw output is inverse depth; only its post-processing makes metres of it.

    Raises:
        CacheMismatchError: the family does not predict depth or is unknown.
    """
    family = str(config.model_type)
    if family in _BY_SETTING:
        return str(getattr(config, "depth_estimation_type", "relative")) == "metric"
    if family in _METRIC:
        return True
    if family in _NEARER:
        return False
    raise CacheMismatchError(
        f"model family {family!r} is not a supported depth model; "
        f"supported: {', '.join(sorted({*_NEARER, *_METRIC, *_BY_SETTING}))}"
    )


def hash_weights(network: Any) -> str:
    """sha256 over names, shapes, types and bytes of all weights, in the order of their names."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(memoryview(flat.view(torch.uint8).numpy()))
    return total.hexdigest()


def _forward(network: Any, batch: Any) -> Any:
    """`predicted_depth` (N, H, W); plain-ViT DPT fails on non-square input without this detour."""
    config = network.config
    is_plain_dpt = (
        config.model_type == "dpt"
        and getattr(config, "backbone_config", None) is None
        and not getattr(config, "is_hybrid", False)
    )
    if not is_plain_dpt or batch.shape[-1] == batch.shape[-2]:
        return network(pixel_values=batch).predicted_depth
    outputs = network.dpt(batch, output_hidden_states=True)
    hidden = outputs.hidden_states[1:]
    chosen = [state for i, state in enumerate(hidden) if i in config.backbone_out_indices]
    size = config.patch_size
    states = network.neck(chosen, batch.shape[-2] // size, batch.shape[-1] // size)
    return network.head(states)


def _dtype(precision: str) -> Any:
    import torch

    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in known:
        raise ValueError(f"precision={precision!r} is not one of {', '.join(known)}")
    return known[precision]
