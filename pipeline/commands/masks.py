"""`pipeline masks`: boxes in, masks and a review page out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import (
    BoxesFormatOption,
    DryRunOption,
    JsonOption,
    MaskFormatOption,
    MinScoreOption,
    PolygonsOption,
)
from pipeline.errors import ExitCode, UsageError
from pipeline.output import require_writable, stdout_kept_clean, to_jsonable, write_result

_MAX_SHOWN = 5


def make_masks(
    images: Annotated[Path, typer.Option("--images", help="Folder of the photos.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, or folder, by --format.")],
    coco: Annotated[Path | None, typer.Option("--coco", help="COCO JSON with boxes.")] = None,
    boxes: Annotated[
        Path | None, typer.Option("--boxes", help="Boxes as an annotation tool exports them.")
    ] = None,
    boxes_format: BoxesFormatOption = "auto",
    cache: Annotated[
        str | None, typer.Option("--cache", help="Depth cache to use, or to fill with --model.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Depth model: hub id, local folder or demo-dpt.")
    ] = None,
    depth: Annotated[
        str,
        typer.Option(help="auto, off, loss, input or both; auto is both where there is depth."),
    ] = "auto",
    minutes: Annotated[
        float, typer.Option(min=0, help="Time for adapting the labeller to these boxes; 0: none.")
    ] = 10.0,
    start: Annotated[
        Path | None, typer.Option(help="Labeller to start from; default the one that ships.")
    ] = None,
    salient: Annotated[
        Path | None,
        typer.Option(help="Masks to learn from as well: COCO JSON, or folder of mask PNG."),
    ] = None,
    salient_images: Annotated[
        Path | None, typer.Option(help="Folder of the photos of --salient.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Run folder; default runs/masks….")
    ] = None,
    mask_format: MaskFormatOption = None,
    polygons: PolygonsOption = False,
    disjoint: Annotated[
        bool, typer.Option("--disjoint", help="Give pixels of several masks to the smallest.")
    ] = False,
    min_score: MinScoreOption = 0.0,
    review: Annotated[
        Path | None, typer.Option("--review", help="Review page; default in the run folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the adaptation.")] = 0,
    redo: Annotated[
        Path | None,
        typer.Option(
            "--redo", help="What the review page downloads: draw these anew, learn from the others."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="That adapt and label together; on GPUs one each.")
    ] = 1,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn boxes into masks, with a score each and a page to review them.

    Exit code 3 when some boxes got no mask of their own or photos failed; they are named. The
    same command again resumes, and does nothing when all is done.
    """
    request = _read_request(
        coco=coco, boxes=boxes, boxes_format=boxes_format, images=images, out=out,
        mask_format=mask_format, output=output, review=review, cache=cache, depth_model=model,
        depth=depth, minutes=minutes, start=start, min_score=min_score, polygons=polygons,
        seed=seed, redo=redo, salient=salient, salient_images=salient_images,
        disjoint=disjoint, processes=processes,
    )  # fmt: skip
    from pipeline.masks.photo_depth import require_cache

    require_cache(request)
    if dry_run:
        _write_plan(request, as_json=as_json)
        return
    from pipeline.datasets.mask_formats import require_mask_output
    from pipeline.masks.masks_run import run_masks

    require_mask_output(request.out, request.mask_format)
    require_writable(request.review)
    with stdout_kept_clean():
        summary = run_masks(request, _repeat_command(request))
    lines = summary.counts.lines()
    lines.append(f"depth: {summary.depth}")
    lines += [f"failed: {f['item']}: {f['reason']}" for f in summary.failures[:_MAX_SHOWN]]
    if len(summary.failures) > _MAX_SHOWN:
        lines.append(f"failed: … and {len(summary.failures) - _MAX_SHOWN} more (--json has all)")
    lines += [f"masks:  {summary.out}", f"review: {summary.review}"]
    if not summary.is_news:
        lines.insert(0, f"nothing to do: all is done in {request.run}")
    fields = to_jsonable(summary)
    assert isinstance(fields, dict)
    result = {"ok": summary.ok, "run": request.run, **fields.pop("counts"), **fields}
    write_result("masks", result, "\n".join(lines), as_json=as_json)
    if not summary.ok:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def _read_request(
    *, output: Path | None, review: Path | None, mask_format: str | None, **given: Any
) -> Any:
    """Check what can be told from the command line alone.

    Raises:
        UsageError: names the option and what it takes.
        CheckpointError: --start is no labeller.
    """
    from pipeline.datasets.mask_formats import MASK_FORMATS, guess_mask_format
    from pipeline.masks.masks_request import DEPTH_MODES, MasksRequest
    from pipeline.masks.reviewed_ids import read_reviewed_ids
    from segtrain.exchange.labeller_file import read_labeller_facts

    out, depth = given["out"], given["depth"]
    if (given["coco"] is None) == (given["boxes"] is None):
        raise UsageError("say where the boxes are: --coco BOXES.json, or --boxes EXPORT")
    _refuse_absent_inputs(given)
    for source, what in ((given["coco"], "annotation file"), (given["boxes"], "export of boxes"),
                         (given["start"], "labeller")):  # fmt: skip
        if source is not None and source.resolve() == out.resolve():
            raise UsageError(f"--out {out} would overwrite the {what}; choose another file")
    if given["start"] is not None:
        read_labeller_facts(given["start"])
    if given["redo"] is not None:
        read_reviewed_ids(given["redo"])
    if depth not in ("auto", *DEPTH_MODES):
        raise UsageError(f"--depth {depth!r}: choose one of auto, {', '.join(DEPTH_MODES)}")
    if (given["salient"] is None) != (given["salient_images"] is None):
        raise UsageError("--salient MASKS and --salient-images PHOTOS go together")
    if given["salient"] is not None and given["minutes"] <= 0:
        raise UsageError("--salient is learned from in the adaptation; give it --minutes above 0")
    has_depth = given["cache"] is not None or given["depth_model"] is not None
    if depth in ("loss", "input", "both") and not has_depth:
        raise UsageError(f"--depth {depth} needs depth: give --cache CACHE or --model MODEL")
    chosen = mask_format or guess_mask_format(out)
    if chosen not in MASK_FORMATS:
        raise UsageError(f"unknown --format {chosen!r}; known: {', '.join(MASK_FORMATS)}")
    name = out.stem if out.stem.startswith("masks") else f"masks-{out.stem}"
    run = output or Path("runs") / name
    return MasksRequest(run=run, review=review or run / "review.html", mask_format=chosen, **given)


def _refuse_absent_inputs(given: dict[str, Any]) -> None:
    """Refuse a path that is not there before a run folder is made, so that none is left behind.

    Raises:
        UsageError: names the first.
    """
    for option, what, is_there in (
        ("coco", "annotation file", Path.is_file), ("boxes", "export of boxes", Path.exists),
        ("images", "image folder", Path.is_dir), ("start", "labeller", Path.is_file),
        ("salient", "masks to learn from", Path.exists),
        ("salient_images", "image folder of --salient", Path.is_dir),
    ):  # fmt: skip
        path = given[option]
        if path is not None and not is_there(path):
            raise UsageError(
                f"{what} {path} does not exist; correct --{option.replace('_', '-')}, or check "
                "the folder that the command runs in"
            )


def _repeat_command(request: Any) -> list[str]:
    """Arguments that `pipeline resume` repeats, from wherever it is called."""
    words = ["masks"]
    for option, value in (
        ("--coco", request.coco), ("--boxes", request.boxes), ("--images", request.images),
        ("--out", request.out), ("--review", request.review), ("--start", request.start),
        ("--redo", request.redo),
        ("--salient", request.salient), ("--salient-images", request.salient_images),
    ):  # fmt: skip
        if value is not None:
            words += [option, str(value.resolve())]
    cache = request.cache
    if cache is not None and "://" not in cache:
        cache = str(Path(cache).resolve())
    for option, value in (
        ("--boxes-format", request.boxes_format), ("--cache", cache),
        ("--model", request.depth_model), ("--depth", request.depth),
        ("--minutes", request.minutes), ("--format", request.mask_format),
        ("--min-score", request.min_score), ("--seed", request.seed),
        ("--processes", request.processes), ("--output", request.run),
    ):  # fmt: skip
        if value is not None:
            words += [option, str(value)]
    flags = (("--polygons", request.polygons), ("--disjoint", request.disjoint))
    return [*words, *(flag for flag, is_set in flags if is_set)]


def _write_plan(request: Any, *, as_json: bool) -> None:
    from pipeline.masks.masks_run import plan_masks

    with stdout_kept_clean():
        plan = plan_masks(request)
    text = "\n".join(f"{name}: {value}" for name, value in plan.items())
    write_result("masks plan", plan, text, as_json=as_json)
