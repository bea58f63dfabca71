"""Every verb under its name: the command line that `pipeline` reads."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from pipeline.commands import (
    cache,
    configs,
    convert_checkpoint,
    data,
    demo,
    depth,
    doctor,
    evaluate,
    export,
    label,
    masks,
    predict,
    report,
    run,
    status,
    train,
)
from pipeline.commands.examples import add_examples

app = typer.Typer(
    name="pipeline",
    help="Instance masks from boxes and pseudo depth: compute depth once, then train on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.run_demo)
app.command("doctor")(doctor.run_doctor)
app.command("configs")(configs.list_configs)
app.add_typer(data.app, name="data")
app.command("masks")(masks.make_masks)
app.command("depth")(depth.compute_depth)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("label")(label.label)
app.command("run")(run.run)
app.command("status")(status.show_status)
app.command("resume")(run.resume)
app.command("report")(report.write_run_report)
app.command("convert-checkpoint")(convert_checkpoint.convert)
app.command("export")(export.export)
app.add_typer(cache.app, name="cache")
add_examples(app)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        sys.stdout.write(f"boxdepth {metadata.version('boxdepth')}\n")
        raise typer.Exit


@app.callback()
def _take_global_options(
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
    _verbose: Annotated[
        bool, typer.Option("--verbose", help="Log what libraries do, too; stands anywhere.")
    ] = False,
) -> None:
    pass
