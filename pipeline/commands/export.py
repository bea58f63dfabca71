"""`pipeline export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import ConfigArgument, JsonOption, SetOption, WeightsOption
from pipeline.errors import UsageError
from pipeline.output import require_writable, stdout_kept_clean, write_result

_SIZE_DIVISOR = 32
_MAX_PHOTOS = 20


def export(
    config_name: ConfigArgument,
    weights: WeightsOption,
    out: Annotated[Path, typer.Option("--out", help="Model file to write.")],
    model_format: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH of the input; default the config's test size."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Photos to compare the graph on; default noise.")
    ] = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export the detector with NMS and dynamic mask head; the graph is run and compared."""
    if model_format != "onnx":
        raise UsageError(f"--format knows onnx, got {model_format!r}")
    from pipeline.config import load_experiment
    from pipeline.runs.experiment_files import existing_checkpoint
    from segtrain.run.devices import require_device

    existing_checkpoint(weights)
    with stdout_kept_clean():
        experiment = load_experiment(config_name, assignments or [])
        require_device(experiment.train.device)
        chosen_size = _parse_size(size)
        require_writable(out)
        from segtrain.exchange.onnx_export import export_onnx
        from segtrain.use.inference import load_trained_model

        model = load_trained_model(experiment, weights)
        image_size = chosen_size or (
            _round_up(model.test.short_side),
            _round_up(model.test.max_size),
        )
        photos = _read_photos(model, images, image_size) if images is not None else []
        try:
            difference, num_compared = export_onnx(model.network, out, image_size, photos)
        except ValueError as error:
            raise UsageError(str(error)) from error
    result = {
        "out": out,
        "format": model_format,
        "height": image_size[0],
        "width": image_size[1],
        "num_photos": len(photos),
        "num_detections": num_compared,
        "largest_difference": difference,
    }
    text = (
        f"{out}, input {image_size[0]}×{image_size[1]}, within {difference:.1e} of PyTorch on "
        f"{num_compared} detections in {len(photos)} photos"
    )
    write_result("export", result, text, as_json=as_json)


def _read_photos(model: Any, folder: Path, image_size: tuple[int, int]) -> list[Any]:
    """The folder's first photos, resized as the model is shown them and as fits the input."""
    from depthcache import decode_image
    from pipeline.datasets.image_lists import list_images
    from segtrain.data.mapper import make_test_input

    short_side, longer_side = sorted(image_size)
    photos = []
    for path in list_images(folder, None)[:_MAX_PHOTOS]:
        sample = make_test_input(
            decode_image(path.read_bytes()),
            short_side=min(model.test.short_side, short_side),
            max_size=min(model.test.max_size, longer_side),
        )
        height, width = sample["image"].shape[1:]
        if height <= image_size[0] and width <= image_size[1]:
            photos.append(sample["image"])
    if not photos:
        raise UsageError(
            f"no image in {folder} fits an input of {image_size[0]}×{image_size[1]}; "
            "portraits need an input that is higher than wide, see --size"
        )
    return photos


def _round_up(side: int) -> int:
    return -(-side // _SIZE_DIVISOR) * _SIZE_DIVISOR


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, separator, width = text.partition("x")
    is_size = separator and height.isdigit() and width.isdigit()
    if not is_size or int(height) % _SIZE_DIVISOR or int(width) % _SIZE_DIVISOR:
        raise UsageError(f"--size takes HEIGHTxWIDTH in multiples of {_SIZE_DIVISOR}, got {text!r}")
    return int(height), int(width)
