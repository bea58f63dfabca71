"""`pipeline data prepare|check|synth|import|export`."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.data_formats import export_masks, import_boxes
from pipeline.commands.options import JsonOption
from pipeline.errors import ExitCode, UsageError
from pipeline.output import stdout_kept_clean, to_jsonable, write_result
from pipeline.progress import ProgressReporter

app = typer.Typer(help="Prepare, check, make or convert data sets.", no_args_is_help=True)
app.command("import")(import_boxes)
app.command("export")(export_masks)

_MAX_SHOWN_PER_KIND = 5


@app.command("prepare")
def prepare(
    dataset: Annotated[str, typer.Argument(help="coco or cityscapes.")],
    root: Annotated[Path, typer.Argument(help="The data set as downloaded and unpacked.")],
    output: Annotated[
        Path | None, typer.Option(help="Where annotation files go; default ROOT/annotations.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a downloaded data set; write boxes-only annotations, masks apart for evaluation."""
    if dataset not in ("coco", "cityscapes"):
        raise UsageError(f"data prepare knows coco and cityscapes, got {dataset!r}")
    if not root.is_dir():
        raise UsageError(f"data set folder {root} does not exist")
    target = output or root / "annotations"
    with stdout_kept_clean():
        if dataset == "coco":
            from pipeline.datasets.coco_preparation import prepare_coco

            splits = prepare_coco(root, target)
        else:
            from pipeline.datasets.cityscapes_preparation import prepare_cityscapes

            with ProgressReporter("cityscapes", "images") as progress:
                splits = prepare_cityscapes(root, target, progress=progress.update)
    lines = []
    for split in splits:
        lines.append(
            f"{split.split}: {split.num_images} images, {split.num_boxes} boxes → {split.boxes}"
        )
        if split.missing:
            shown = ", ".join(split.missing[:_MAX_SHOWN_PER_KIND])
            lines.append(f"  {len(split.missing)} image files are missing: {shown} …")
    write_result(
        "data prepare",
        {"dataset": dataset, "splits": to_jsonable(splits)},
        "\n".join(lines),
        as_json=as_json,
    )
    if any(split.missing for split in splits):
        raise typer.Exit(ExitCode.FAILED_ITEMS)


@app.command("check")
def check(
    annotations: Annotated[Path | None, typer.Argument(help="COCO JSON.")] = None,
    coco: Annotated[Path | None, typer.Option(help="COCO JSON, by its name elsewhere.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Image folder; without, files are not checked.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Depth cache; images that it lacks are named.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Which model's maps of the cache; needed if several.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read image headers only.")] = False,
    all_items: Annotated[bool, typer.Option("--all", help="List every item in the text.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Count and name what training handles, leaves out or refuses; exit code 3 for the latter two.

    With --cache, images without depth are named as well.
    """
    from pipeline.datasets.dataset_check import check_dataset
    from segtrain.data.coco_findings import FINDING_KINDS

    file = annotations or coco
    if file is None or (annotations and coco):
        raise UsageError("data check takes one COCO JSON, as its argument or with --coco")
    if cache is not None and images is None:
        raise UsageError("--cache needs --images: depth is found by the bytes of the image files")
    with stdout_kept_clean(), ProgressReporter("data check", "images") as progress:
        report = check_dataset(
            file,
            images,
            cache=cache,
            fingerprint=fingerprint,
            decodes=not quick,
            progress=progress.update,
        )
    by_kind = collections.defaultdict(list)
    for finding in report.findings:
        by_kind[finding.kind].append(finding)
    lines = [
        f"{report.num_images} images, {report.num_boxes} boxes, {report.num_categories} categories"
    ]
    for name, count in report.count_kinds().items():
        kind = FINDING_KINDS[name]
        lines.append(f"{kind.treatment:8} {count:6} × {name}: {kind.meaning}")
        shown = by_kind[name] if all_items else by_kind[name][:_MAX_SHOWN_PER_KIND]
        for finding in shown:
            where = f"{finding.where}: " if finding.where else ""
            lines.append(f"           {where}{finding.detail}")
        if count > len(shown):
            lines.append(f"           … and {count - len(shown)} more (--all lists them)")
        if kind.remedy:
            lines.append(f"           → {kind.remedy}")
    num_bad = report.num_left_out + report.num_refused
    lines.append(
        f"{report.num_refused} to correct, {report.num_left_out} left out unless corrected"
        if num_bad
        else "nothing to correct"
    )
    write_result(
        "data check",
        {
            "ok": num_bad == 0,
            "num_images": report.num_images,
            "num_boxes": report.num_boxes,
            "num_categories": report.num_categories,
            "num_left_out": report.num_left_out,
            "num_refused": report.num_refused,
            "counts": report.count_kinds(),
            "problems": [
                {
                    **vars(finding),
                    "treatment": finding.treatment,
                    "remedy": FINDING_KINDS[finding.kind].remedy,
                }
                for finding in report.findings
            ],
        },
        "\n".join(lines),
        as_json=as_json,
    )
    if num_bad:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


@app.command("synth")
def synth(
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    num_images: Annotated[
        int, typer.Option("--num-images", "--count", min=1, help="How many scenes.")
    ] = 100,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "256x256",
    seed: Annotated[int, typer.Option(help="Same seed, same scenes.")] = 0,
    preset: Annotated[
        str, typer.Option(help="rooms, or miniature: open shapes for which colour is not enough.")
    ] = "rooms",
    camouflaged_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Objects textured like what is behind them."),
    ] = None,
    easy_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Objects in one colour; the rest carries patterns."),
    ] = None,
    num_objects: Annotated[
        str | None, typer.Option(help="MIN-MAX objects in a scene, for example 1-5.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make ray-cast scenes with boxes, masks (for evaluation) and true depth."""
    from pipeline.synth import PRESETS, generate_dataset

    if preset not in PRESETS:
        raise UsageError(f"--preset knows {', '.join(PRESETS)}, got {preset!r}")
    changes: dict[str, Any] = {"camouflaged_share": camouflaged_share, "easy_share": easy_share}
    if num_objects is not None:
        least, separator, most = num_objects.partition("-")
        if not (separator and least.isdigit() and most.isdigit()):
            raise UsageError(f"--num-objects takes MIN-MAX, for example 1-5, got {num_objects!r}")
        changes |= {"num_objects_min": int(least), "num_objects_max": int(most)}
    try:
        settings = dataclasses.replace(
            PRESETS[preset], **{name: value for name, value in changes.items() if value is not None}
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    height, separator, width = size.partition("x")
    if not (separator and height.isdigit() and width.isdigit()):
        raise UsageError(f"--size takes HEIGHTxWIDTH, for example 256x256, got {size!r}")
    with stdout_kept_clean(), ProgressReporter("data synth", "scenes") as progress:
        folder = generate_dataset(
            output,
            num_images=num_images,
            size=(int(height), int(width)),
            seed=seed,
            settings=settings,
            progress=progress.update,
        )
    write_result(
        "data synth",
        {
            "output": folder,
            "num_images": num_images,
            "seed": seed,
            "annotations": Path(folder) / "annotations.json",
            "images": Path(folder) / "images",
            "contact_sheet": Path(folder) / "contact_sheet.png",
        },
        f"{num_images} scenes in {folder}",
        as_json=as_json,
    )
