"""`pipeline export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ConfigArgument, JsonOption, SetOption, WeightsOption
from pipeline.errors import UsageError
from pipeline.output import stdout_kept_clean, write_result

_SIZE_DIVISOR = 32


def export(
    config_name: ConfigArgument,
    weights: WeightsOption,
    out: Annotated[Path, typer.Option("--out", help="Model file to write.")],
    model_format: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH of the input; default the config's test size."),
    ] = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export the detector with its dynamic mask head; the graph is run once and compared."""
    if model_format != "onnx":
        raise UsageError(f"--format knows onnx, got {model_format!r}")
    if not weights.is_file():
        raise UsageError(f"checkpoint {weights} does not exist")
    from pipeline.config import load_config

    with stdout_kept_clean():
        config = load_config(config_name, assignments or [])
        from segtrain.inference import load_trained_model
        from segtrain.modeling.onnx_export import export_onnx

        model = load_trained_model(config, weights)
        image_size = _parse_size(size) or (
            _round_up(model.test.short_side),
            _round_up(model.test.max_size),
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        difference = export_onnx(model.network, out, image_size)
    result = {
        "out": out,
        "format": model_format,
        "height": image_size[0],
        "width": image_size[1],
        "largest_difference": difference,
    }
    text = f"{out}, input {image_size[0]}×{image_size[1]}, within {difference:.1e} of PyTorch"
    write_result("export", result, text, as_json=as_json)


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
