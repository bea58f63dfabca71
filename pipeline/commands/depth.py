"""`pipeline depth`: stage one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import BitsOption, DryRunOption, JsonOption, SetOption
from pipeline.errors import ExitCode, ServiceUnreachableError, UsageError
from pipeline.output import (
    format_seconds,
    stdout_kept_clean,
    to_jsonable,
    write_result,
)

if TYPE_CHECKING:
    from depthcache.stage_one.precompute import PrecomputeSummary


def compute_depth(
    config_name: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="Config whose images to compute.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Image folder, or folder of --coco's files.")
    ] = None,
    coco: Annotated[
        Path | None, typer.Option("--coco", help="COCO JSON naming the images.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Hub id, local folder in HuggingFace format, or demo-dpt."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache", help="Cache root: folder, bucket, or the URL of a service to share with."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per forward pass; default 4.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default the best.")] = None,
    bits: BitsOption = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that read images; with --scheduler local, processes."),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler, or local.")
    ] = None,
    upstream: Annotated[
        list[str] | None, typer.Option("--upstream", help="Cache asked before computing.")
    ] = None,
    allow_failures: Annotated[
        bool, typer.Option("--allow-failures", help="Exit 0 although images failed.")
    ] = False,
    assignments: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compute the depth of images once and keep it in a cache. The same command again resumes."""
    from pipeline.model_hub import require_model
    from pipeline.runs.experiment_files import resolve_model
    from pipeline.runs.stages import require_writable_root

    with stdout_kept_clean():
        files, settings = _gather(config_name, images, coco, assignments or [])
        chosen_model = resolve_model(str(model or settings.get("model") or ""))
        root = str(cache or settings.get("cache") or "")
        if not chosen_model or not root:
            raise UsageError("say which model and where: --model MODEL --cache ROOT")
        options: dict[str, Any] = {
            "revision": revision or settings.get("revision"),
            "precision": precision or settings.get("precision"),
            "batch_size": batch_size or settings.get("batch_size"),
            "device": device or settings.get("device"),
            "bits": bits,
            "workers": workers or settings.get("workers"),
            "shard_rows": settings.get("shard_rows"),
            "scheduler": scheduler or settings.get("scheduler"),
            "upstreams": tuple(upstream) if upstream else None,
        }
        try:
            require_model(chosen_model, options["revision"])
        except ServiceUnreachableError:
            if not dry_run:
                require_writable_root(root)  # the nearer fault is told first
            raise
        if dry_run:
            plan = _plan(files, chosen_model, root, options)
        else:
            from pipeline.runs.depth_record import compute_recorded_maps

            identity = _words(
                config_name, images=images, coco=coco, set=assignments,
                model=Path(model) if model and Path(model).is_dir() else model, revision=revision,
                precision=precision, bits=bits,
            )  # fmt: skip
            how = _words(
                batch_size=batch_size, device=device, workers=workers, scheduler=scheduler,
                upstream=upstream, allow_failures=allow_failures,
                cache=root if "://" in root else Path(root),
            )  # fmt: skip
            summary = compute_recorded_maps(
                files, chosen_model, root,
                command=["depth", *identity, *how], identity=identity, options=options,
            )  # fmt: skip
    if dry_run:
        text = "\n".join(f"{name}: {value}" for name, value in plan.items())
        write_result("depth plan", {"dry_run": True, **plan}, text, as_json=as_json)
        return
    _write_summary(summary, as_json=as_json)
    if summary.num_failed and not allow_failures:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def _gather(
    config_name: str | None, images: Path | None, coco: Path | None, assignments: list[str]
) -> tuple[list[Path], dict[str, Any]]:
    """Images to compute, and the config's depth settings (empty without a config)."""
    from pipeline.datasets.image_lists import list_coco_images, list_images, merge_image_lists

    if config_name is None:
        if assignments:
            raise UsageError("--set changes a config, but no CONFIG is given")
        return list_images(images, coco), {}
    from pipeline.config import load_experiment
    from pipeline.runs.experiment_files import (
        SPLITS,
        existing_dataset_paths,
        refuse_absent_files,
    )

    if images is None:
        refuse_absent_files(assignments, SPLITS)
    experiment = load_experiment(config_name, assignments)
    settings = dataclasses.asdict(experiment.depth)
    if images is not None:
        return list_images(images, coco), settings
    paths = [existing_dataset_paths(experiment, split) for split in SPLITS]
    return merge_image_lists(
        [list_coco_images(split.annotations, split.images) for split in paths]
    ), settings


def _plan(files: list[Path], model: str, root: str, options: dict[str, Any]) -> dict[str, Any]:
    from pipeline.runs.service_cache import is_service, local_root_of
    from pipeline.runs.stages import stage_one_settings

    given = {key: value for key, value in options.items() if value is not None}
    if is_service(root):
        given["upstreams"] = (root, *given.get("upstreams", ()))
        root = local_root_of(root.rstrip("/"))
    settings = stage_one_settings(given)
    from depthcache.stage_one.precompute import plan_depth

    plan = to_jsonable(plan_depth(files, model, root, settings))
    assert isinstance(plan, dict)
    return plan


def _words(*arguments: str | None, **options: Any) -> list[str]:
    """Arguments and options as typed again, from wherever that is; None and False are left out."""
    words = [argument for argument in arguments if argument is not None]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(option)
            elif one is not None and one is not False:
                words += [option, str(one.absolute() if isinstance(one, Path) else one)]
    return words


def _write_summary(summary: PrecomputeSummary, *, as_json: bool) -> None:
    fields = to_jsonable(summary)
    assert isinstance(fields, dict)
    lines = [
        f"{summary.num_images} images ({summary.num_unique} different): "
        f"{summary.num_present} present, {summary.num_computed} computed, "
        f"{summary.num_failed} failed in {format_seconds(summary.seconds)}",
        f"cache: {summary.cache_url}",
    ]
    if summary.num_computed and summary.seconds > 0:
        lines[0] += f" ({summary.num_computed / summary.seconds:.1f} images/s)"
    if summary.num_present and not summary.num_computed:
        could = " that can be made" if summary.num_failed else ""
        lines.insert(0, f"nothing to do: every map{could} was there before")
    lines += [f"failed: {item['path']}: {item['reason']}" for item in summary.failures]
    result = {"ok": summary.num_failed == 0, **fields}
    write_result("depth", result, "\n".join(lines), as_json=as_json)
