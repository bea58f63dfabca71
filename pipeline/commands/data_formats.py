"""`pipeline data import|export`: boxes from annotation tools, masks to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import (
    BoxesFormatOption,
    JsonOption,
    MaskFormatOption,
    PolygonsOption,
)
from pipeline.errors import ExitCode, UsageError
from pipeline.output import stdout_kept_clean, to_jsonable, write_result

_MAX_SHOWN = 5


def import_boxes(
    boxes: Annotated[Path, typer.Argument(help="File or folder that the tool exported.")],
    images: Annotated[Path, typer.Option("--images", help="Image folder.")],
    out: Annotated[Path, typer.Option("--out", help="COCO JSON to write.")],
    boxes_format: BoxesFormatOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Read boxes as an annotation tool exports them; write a COCO file.

    Exit code 3 when entries could not be taken; they are named.
    """
    from pipeline.datasets.box_formats import read_boxes
    from pipeline.runs.manifest import write_atomically

    with stdout_kept_clean():
        imported = read_boxes(boxes, images, boxes_format)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(imported.document()))
    lines = [
        f"{imported.box_format}: {len(imported.images)} images, {len(imported.annotations)} boxes, "
        f"{len(imported.names)} classes → {out}",
        *describe_import(imported),
    ]
    result = {
        "out": out,
        "format": imported.box_format,
        "num_images": len(imported.images),
        "num_boxes": len(imported.annotations),
        "categories": imported.names,
        "notes": dict(+imported.notes),
        "skipped": imported.skipped,
    }
    write_result("data import", result, "\n".join(lines), as_json=as_json)
    if imported.skipped:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def export_masks(
    masks: Annotated[Path, typer.Argument(help="COCO JSON with masks.")],
    out: Annotated[Path, typer.Option("--out", help="File or folder to write.")],
    images: Annotated[Path, typer.Option("--images", help="Image folder.")] = Path(),
    mask_format: MaskFormatOption = None,
    polygons: PolygonsOption = False,
    ids: Annotated[
        Path | None, typer.Option("--ids", help="JSON of the review page: write only these.")
    ] = None,
    without_ids: Annotated[
        Path | None, typer.Option("--without-ids", help="JSON of the review page: leave these out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a COCO file's masks in the form of another tool."""
    from pipeline.datasets.mask_formats import guess_mask_format, write_masks
    from pipeline.masks.reviewed_ids import read_reviewed_ids
    from segtrain.data.coco_document import load_coco_document

    if ids is not None and without_ids is not None:
        raise UsageError("give --ids or --without-ids, not both")
    if out.resolve() == masks.resolve():
        raise UsageError(f"--out {out} would overwrite the masks; choose another file")
    chosen_format = mask_format or guess_mask_format(out)
    with stdout_kept_clean():
        document = load_coco_document(masks)
        listed = ids or without_ids
        if listed is not None:
            document = _select(document, read_reviewed_ids(listed), keeps=ids is not None)
        written = write_masks(document, out, chosen_format, polygons=polygons, images=images)
    text = f"{written.num_masks} masks as {chosen_format} → {out}"
    if written.num_boxes:
        text += f"\n{written.num_boxes} objects have no mask and are written as boxes"
    if written.num_left_out:
        text += f"\n{written.num_left_out} objects have no mask and are left out"
    fields = to_jsonable(written)
    assert isinstance(fields, dict)
    write_result("data export", fields, text, as_json=as_json)


def describe_import(imported: Any) -> list[str]:
    """Lines on what of an export was taken otherwise than written, and what could not be taken.

    Args:
        imported: `pipeline.datasets.imported_boxes.ImportedBoxes`.
    """
    lines = [f"note: {count} × {note}" for note, count in (+imported.notes).items()]
    lines += [
        f"skipped: {item['where']}: {item['reason']}" for item in imported.skipped[:_MAX_SHOWN]
    ]
    if len(imported.skipped) > _MAX_SHOWN:
        lines.append(f"skipped: … and {len(imported.skipped) - _MAX_SHOWN} more (--json has all)")
    return lines


def _select(document: dict[str, Any], ids: set[Any], *, keeps: bool) -> dict[str, Any]:
    """The document with only these annotations and their images, or without these."""
    known = {annotation["id"] for annotation in document["annotations"]}
    if absent := ids - known:
        raise UsageError(f"ids that the file has no annotation of: {sorted(map(str, absent))[:5]}")
    annotations = [item for item in document["annotations"] if (item["id"] in ids) is keeps]
    images = document["images"]
    if keeps:
        named = {item["image_id"] for item in annotations}
        images = [image for image in images if image["id"] in named]
    return {**document, "annotations": annotations, "images": images}
