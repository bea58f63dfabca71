"""`pipeline doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import JsonOption
from pipeline.errors import ExitCode
from pipeline.output import stdout_kept_clean, to_jsonable, write_result

_MARKS = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


def run_doctor(
    output: Annotated[Path, typer.Option(help="Folder whose disk is looked at.")] = Path(),
    offline: Annotated[bool, typer.Option("--offline", help="Do not try the model hub.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check versions, device, detectron2, hub, disk and allocator; name a remedy for each fault."""
    from pipeline.doctor import diagnose

    with stdout_kept_clean():
        findings = diagnose(output, asks_hub=not offline)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]}  {finding.name}: {finding.value}")
        if finding.remedy:
            lines.append(f"         → {finding.remedy}")
    num_errors = sum(finding.status == "error" for finding in findings)
    write_result(
        "doctor",
        {"ok": num_errors == 0, "findings": to_jsonable(findings)},
        "\n".join(lines),
        as_json=as_json,
    )
    if num_errors:
        raise typer.Exit(ExitCode.FAILED)
