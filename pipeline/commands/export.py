"""`pipeline export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ConfigArgument, JsonOption, SetOption, WeightsOption
from pipeline.errors import UsageError
from pipeline.output import stdout_kept_clean, write_result


def export(
    config_name: ConfigArgument,
    weights: WeightsOption,
    out: Annotated[Path, typer.Option("--out", help="Model file to write.")],
    model_format: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export the detector with its dynamic mask head."""
    if model_format != "onnx":
        raise UsageError(f"--format knows onnx, got {model_format!r}")
    if not weights.is_file():
        raise UsageError(f"checkpoint {weights} does not exist")
    from pipeline.config import load_config

    with stdout_kept_clean():
        config = load_config(config_name, assignments or [])
        from segtrain.onnx_export import export_onnx

        out.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(config, weights, out)
    write_result("export", {"out": out, "format": model_format}, f"wrote {out}", as_json=as_json)
