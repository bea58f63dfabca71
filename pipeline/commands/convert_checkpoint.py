"""`pipeline convert-checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import JsonOption
from pipeline.errors import UsageError
from pipeline.output import stdout_kept_clean, to_jsonable, write_result


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Published checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Checkpoint to write.")],
    origin: Annotated[str, typer.Option("--from", help="System that wrote it.")] = "adelaidet",
    allow_missing: Annotated[bool, typer.Option("--allow-missing")] = False,
    allow_unknown: Annotated[bool, typer.Option("--allow-unknown")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a published CondInst or BoxInst checkpoint, key for key."""
    if origin != "adelaidet":
        raise UsageError(f"--from knows adelaidet, got {origin!r}")
    if not source.is_file():
        raise UsageError(f"checkpoint {source} does not exist")
    with stdout_kept_clean():
        from segtrain.checkpoint_conversion import convert_checkpoint

        summary = convert_checkpoint(
            source, target, allow_missing=allow_missing, allow_unknown=allow_unknown
        )
    fields = to_jsonable(summary)
    result = {"out": target, **(fields if isinstance(fields, dict) else {})}
    write_result("convert-checkpoint", result, f"wrote {target}", as_json=as_json)
