"""`pipeline predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ConfigArgument, JsonOption, SetOption, WeightsOption
from pipeline.errors import ExitCode, UsageError
from pipeline.output import stdout_kept_clean, to_jsonable, write_result
from pipeline.progress import ProgressReporter


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
    from pipeline.datasets.image_lists import list_images
    from pipeline.runs.manifest import write_atomically

    if not weights.is_file():
        raise UsageError(f"checkpoint {weights} does not exist")
    with stdout_kept_clean():
        files = list_images(images, coco)
        config = load_config(config_name, assignments or [])
        from segtrain.use.prediction import predict_images

        failures: list[dict[str, str]] = []
        with ProgressReporter("predict", "images") as bar:
            results = predict_images(
                config,
                weights,
                files,
                relative_to=images if images.is_dir() else None,
                image_ids=_image_ids(coco),
                on_progress=bar.update,
                on_failure=lambda path, reason: failures.append(
                    {"path": str(path), "reason": reason}
                ),
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(to_jsonable(results)))
    lines = [f"{len(results)} instances in {len(files) - len(failures)} images → {out}"]
    lines += [f"failed: {failure['path']}: {failure['reason']}" for failure in failures]
    result = {
        "ok": not failures,
        "out": out,
        "num_images": len(files),
        "num_instances": len(results),
        "failures": failures,
    }
    write_result("predict", result, "\n".join(lines), as_json=as_json)
    if failures:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def _image_ids(coco: Path | None) -> dict[str, int] | None:
    """Image id by file name of a COCO file."""
    if coco is None:
        return None
    from pipeline.datasets.dataset_check import load_coco_document

    return {image["file_name"]: image["id"] for image in load_coco_document(coco)["images"]}
