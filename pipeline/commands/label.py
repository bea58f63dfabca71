"""`pipeline label`: boxes in, masks out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import (
    ConfigArgument,
    JsonOption,
    MinScoreOption,
    SetOption,
    WeightsOption,
)
from pipeline.output import stdout_kept_clean, to_jsonable, write_result
from pipeline.progress import ProgressReporter


def label(
    config_name: ConfigArgument,
    weights: WeightsOption,
    coco: Annotated[Path, typer.Option("--coco", help="COCO JSON with boxes.")],
    images: Annotated[Path, typer.Option("--images", help="Image folder.")],
    out: Annotated[Path, typer.Option("--out", help="COCO JSON with masks to write.")],
    min_score: MinScoreOption = 0.0,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give every box of a COCO file a mask and a score; exit code 3 if some have none."""
    from pipeline.config import load_experiment
    from pipeline.datasets.image_lists import require_some_photos
    from pipeline.errors import ExitCode, UsageError
    from pipeline.masks.masks_document import count_masks, leave_out_poor_mask
    from pipeline.output import require_writable
    from pipeline.runs.experiment_files import existing_checkpoint
    from pipeline.runs.manifest import write_atomically
    from segtrain.data.coco_reader import read_usable_boxes
    from segtrain.run.devices import require_device

    existing_checkpoint(weights)
    if not coco.is_file():
        raise UsageError(f"annotation file {coco} does not exist")
    if not images.is_dir():
        raise UsageError(f"image folder {images} does not exist")
    if out.resolve() == coco.resolve():
        raise UsageError(f"--out {out} would overwrite the boxes; choose another file")
    failures: list[dict[str, str]] = []
    with stdout_kept_clean():
        experiment = load_experiment(config_name, assignments or [], has_weights=True)
        require_device(experiment.train.device)
        records = read_usable_boxes(coco, images).records
        require_some_photos([record for record in records if record.annotations], images)
        require_writable(out)
        from segtrain.use.labelling import label_dataset

        with ProgressReporter("label", "images") as bar:
            document = label_dataset(
                experiment,
                weights,
                coco,
                images,
                on_progress=bar.update,
                on_failure=lambda name, reason: failures.append({"file": name, "reason": reason}),
            )
        for annotation in document["annotations"]:
            if "mask_source" in annotation and not annotation.get("iscrowd"):
                leave_out_poor_mask(annotation, min_score)
        write_atomically(out, json.dumps(to_jsonable(document)))
    counts = count_masks(document)
    lines = [f"{counts.num_masks} masks → {out}"]
    if counts.num_filled_boxes:
        fate = "keep no mask" if min_score else "are filled"
        lines.append(f"{counts.num_filled_boxes} boxes without a mask in them {fate} (score 0)")
    if counts.num_without_mask:
        lines.append(
            f"{counts.num_without_mask} boxes have no mask: bad boxes, or of images that failed"
        )
    if counts.num_below_score:
        lines.append(f"{counts.num_below_score} masks are left out by --min-score")
    lines += [f"failed: {failure['file']}: {failure['reason']}" for failure in failures]
    result = {
        "ok": not (failures or counts.num_filled_boxes or counts.num_without_mask),
        "out": out,
        "num_images": len(document["images"]),
        "num_masks": counts.num_masks,
        "num_filled_boxes": counts.num_filled_boxes,
        "num_without_mask": counts.num_without_mask,
        "num_below_score": counts.num_below_score,
        "failures": failures,
    }
    write_result("label", result, "\n".join(lines), as_json=as_json)
    if not result["ok"]:
        raise typer.Exit(ExitCode.FAILED_ITEMS)
