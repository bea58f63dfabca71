"""`pipeline predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ConfigArgument, JsonOption, SetOption, WeightsOption
from pipeline.errors import ExitCode
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
    from pipeline.config import load_experiment
    from pipeline.datasets.image_lists import (
        list_folder_images,
        read_coco_images,
        require_some_photos,
    )
    from pipeline.output import require_writable
    from pipeline.runs.experiment_files import existing_checkpoint
    from pipeline.runs.manifest import write_atomically
    from segtrain.data.image_files import find_image_file
    from segtrain.run.devices import require_device

    existing_checkpoint(weights)
    with stdout_kept_clean():
        ids: list[int | str]
        if coco is None:
            files = list_folder_images(images)
            folder = images if images.is_dir() else images.parent
            names = [path.relative_to(folder).as_posix() for path in files]
            ids = list(range(1, len(files) + 1))
        else:
            records = read_coco_images(coco, images)
            require_some_photos(records, images)
            files = [find_image_file(record.path) for record in records]
            names = [record.file_name for record in records]
            ids = [record.image_id for record in records]
        experiment = load_experiment(config_name, assignments or [], has_weights=True)
        require_device(experiment.train.device)
        require_writable(out)
        from segtrain.use.prediction import predict_images

        failures: list[dict[str, str]] = []
        with ProgressReporter("predict", "images") as bar:
            results = predict_images(
                experiment,
                weights,
                files,
                file_names=names,
                image_ids=ids,
                on_progress=bar.update,
                on_failure=lambda path, reason: failures.append(
                    {"path": str(path), "reason": reason}
                ),
            )
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
