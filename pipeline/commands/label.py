"""`pipeline label`: boxes in, masks out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ConfigArgument, JsonOption, SetOption, WeightsOption
from pipeline.output import stdout_kept_clean, to_jsonable, write_result
from pipeline.progress import ProgressReporter


def label(
    config_name: ConfigArgument,
    weights: WeightsOption,
    coco: Annotated[Path, typer.Option("--coco", help="COCO JSON with boxes.")],
    images: Annotated[Path, typer.Option("--images", help="Image folder.")],
    out: Annotated[Path, typer.Option("--out", help="COCO JSON with masks to write.")],
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give every box of a COCO file a mask and a score."""
    from pipeline.config import load_config
    from pipeline.errors import UsageError
    from pipeline.runs.manifest import write_atomically

    for path, what in ((weights, "checkpoint"), (coco, "annotation file")):
        if not path.is_file():
            raise UsageError(f"{what} {path} does not exist")
    if out.resolve() == coco.resolve():
        raise UsageError(f"--out {out} would overwrite the boxes; choose another file")
    with stdout_kept_clean():
        config = load_config(config_name, assignments or [])
        from segtrain.use.labelling import label_dataset

        with ProgressReporter("label", "images") as bar:
            document = label_dataset(config, weights, coco, images, on_progress=bar.update)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(to_jsonable(document)))
    num_masks = sum("segmentation" in item for item in document["annotations"])
    result = {"out": out, "num_images": len(document["images"]), "num_masks": num_masks}
    write_result("label", result, f"{num_masks} masks → {out}", as_json=as_json)
