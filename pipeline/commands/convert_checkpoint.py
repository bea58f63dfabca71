"""`pipeline convert-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import JsonOption
from pipeline.errors import UsageError
from pipeline.output import require_writable, stdout_kept_clean, write_result


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Published checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Checkpoint to write.")],
    origin: Annotated[str, typer.Option("--from", help="System that wrote it.")] = "adelaidet",
    config_name: Annotated[
        str | None,
        typer.Option("--config", help="Model it must fit; default the baseline of its shape."),
    ] = None,
    allow_differences: Annotated[
        bool, typer.Option("--allow-differences", help="Write despite missing or unknown keys.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a published CondInst or BoxInst checkpoint, key for key."""
    if origin != "adelaidet":
        raise UsageError(f"--from knows adelaidet, got {origin!r}")
    from pipeline.runs.experiment_files import existing_checkpoint

    existing_checkpoint(source, "give the file that AdelaiDet publishes, downloaded whole")
    require_writable(target)
    with stdout_kept_clean():
        from segtrain.exchange.published_checkpoints import convert_adelaidet

        partial = target.with_name(f".{target.name}.partial")
        try:
            state = convert_adelaidet(source, partial)
            chosen = config_name or _baseline_config(state)
            report = _compare(chosen, partial, allow_differences=allow_differences)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    result = {
        "out": target,
        "config": chosen,
        "num_loaded": len(report.loaded),
        "missing": report.missing,
        "unknown": report.unknown,
        "misshapen": report.misshapen,
    }
    text = f"{len(report.loaded)} tensors → {target}, for {chosen}"
    write_result("convert-checkpoint", result, text, as_json=as_json)


def _baseline_config(state: Any) -> str:
    """The baseline config whose depth and mask channels a checkpoint has."""
    depth = 101 if "backbone.bottom_up.res4.22.conv1.weight" in state else 50
    # BoxInst checkpoints have 16 mask-branch channels, CondInst ones 8.
    name = "boxinst" if state["mask_branch.tower.4.weight"].shape[0] == 16 else "condinst"
    return f"configs/baselines/{name}_r{depth}.py"


def _compare(config_name: str, weights: Path, *, allow_differences: bool) -> Any:
    from pipeline.config import load_experiment
    from segtrain.exchange.published_checkpoints import load_weights
    from segtrain.run.model_building import build_model

    model = build_model(load_experiment(config_name))
    return load_weights(model, weights, allow_differences=allow_differences)
