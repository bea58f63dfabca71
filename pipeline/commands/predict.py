"""`pipeline predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ConfigArgument, JsonOption, SetOption, WeightsOption
from pipeline.output import stdout_kept_clean, to_jsonable, write_result


def predict(
    config_name: ConfigArgument,
    weights: WeightsOption,
    images: Annotated[Path, typer.Option("--images", help="Image folder, or folder of --coco.")],
    out: Annotated[Path, typer.Option("--out", help="COCO result list to write.")],
    coco: Annotated[
        Path | None, typer.Option("--coco", help="COCO JSON that names images and gives their ids.")
    ] = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Boxes, classes, scores and masks of images, as a COCO result list."""
    from pipeline.config import load_config
    from pipeline.errors import UsageError
    from pipeline.image_lists import list_images
    from pipeline.manifest import write_atomically

    if not weights.is_file():
        raise UsageError(f"checkpoint {weights} does not exist")
    with stdout_kept_clean():
        files = list_images(images, coco)
        config = load_config(config_name, assignments or [])
        from segtrain.prediction import predict_images

        results = predict_images(config, weights, files)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(to_jsonable(results)))
    text = f"{len(results)} instances in {len(files)} images → {out}"
    result = {"out": out, "num_images": len(files), "num_instances": len(results)}
    write_result("predict", result, text, as_json=as_json)
