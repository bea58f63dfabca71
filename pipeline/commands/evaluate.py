"""`pipeline eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import ConfigArgument, JsonOption, SetOption, WeightsOption
from pipeline.output import require_writable, stdout_kept_clean, to_jsonable, write_result
from pipeline.progress import ProgressReporter


def evaluate(
    config_name: ConfigArgument,
    weights: WeightsOption,
    output: Annotated[Path, typer.Option(help="Folder for results.")] = Path("output/eval"),
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Box and mask AP of a checkpoint on the config's test data."""
    from pipeline.config import load_experiment
    from pipeline.report.tables import format_ap_table
    from pipeline.runs.experiment_files import (
        existing_checkpoint,
        existing_dataset_paths,
        refuse_absent_files,
        refuse_small_file,
    )
    from segtrain.run.devices import require_device

    refuse_absent_files(assignments or [], ["test"])
    existing_checkpoint(weights)
    with stdout_kept_clean():
        experiment = load_experiment(config_name, assignments or [], has_weights=True)
        require_device(experiment.train.device)
        annotations = existing_dataset_paths(experiment, "test").annotations
        from segtrain.run.dataset_records import read_test_data

        refuse_small_file(annotations, lambda: read_test_data(experiment))
        require_writable(output, is_folder=True)
        from segtrain.use.evaluation import evaluate_model

        with ProgressReporter("eval", "images") as bar:
            metrics = dict(evaluate_model(experiment, weights, output, on_progress=bar.update))
    text = format_ap_table({weights.stem: metrics})
    if "cityscapes" in metrics:
        values = metrics["cityscapes"]
        text += f"\nCityscapes' tool: mask AP {values['AP']:.1f}, AP50 {values['AP50']:.1f}"
    result = {"weights": weights, "output": output, "metrics": to_jsonable(metrics)}
    write_result("eval", result, text, as_json=as_json)
