"""An example for the help text of every command, in one place and tested to parse."""

from __future__ import annotations

import typer

EXAMPLES = {
    "demo": "pipeline demo --output demo-output",
    "doctor": "pipeline doctor --offline",
    "configs": "pipeline configs",
    "masks": "pipeline masks --coco boxes.json --images photos/ --out masks.json",
    "depth": "pipeline depth --images photos/ --model Intel/dpt-large --cache depth-cache",
    "train": "pipeline train configs/coco/full_r50_1x.py --output runs/a --set train.batch_size=8",
    "eval": "pipeline eval configs/coco/full_r50_1x.py --weights runs/full/model_final.pth",
    "predict": "pipeline predict configs/coco/full_r50_1x.py --weights model.pth --images photos/ "
    "--out found.json",
    "label": "pipeline label configs/coco/full_r50_1x.py --weights model.pth --coco boxes.json "
    "--images photos/ --out masks.json",
    "run": "pipeline run configs/demo/full.py --output runs/demo",
    "status": "pipeline status runs/",
    "resume": "pipeline resume runs/demo",
    "report": "pipeline report runs/first runs/second --out report.html",
    "convert-checkpoint": "pipeline convert-checkpoint BoxInst_MS_R_50_1x.pth boxinst.pth",
    "export": "pipeline export configs/coco/full_r50_1x.py --weights model.pth --out model.onnx",
    "data prepare": "pipeline data prepare coco data/coco",
    "data synth": "pipeline data synth --output scenes --num-images 100 --size 256x256",
    "data check": "pipeline data check boxes.json --images photos/",
    "data import": "pipeline data import yolo/ --images photos/ --out boxes.json",
    "data export": "pipeline data export masks.json --images photos/ --out masks.xml",
    "cache ls": "pipeline cache ls depth-cache",
    "cache info": "pipeline cache info depth-cache",
    "cache coverage": "pipeline cache coverage depth-cache --images photos/",
    "cache verify": "pipeline cache verify depth-cache",
    "cache read": "pipeline cache read depth-cache --image photo.jpg --out depth.png",
    "cache import": "pipeline cache import depth-cache --source maps/ --images photos/ "
    "--format png16 --convention metric",
    "cache export": "pipeline cache export depth-cache --out maps/ --format npy",
    "cache push": "pipeline cache push depth-cache http://depth.example:8787",
    "cache pull": "pipeline cache pull http://depth.example:8787 depth-cache",
    "cache gc": "pipeline cache gc depth-cache --dry-run",
    "cache serve": "pipeline cache serve depth-cache --port 8787",
}


def add_examples(app: typer.Typer, prefix: str = "") -> None:
    """Put the example of each command below its help text; groups are entered.

    Args:
        app: with all its commands.
        prefix: words that lead to it.
    """
    for command in app.registered_commands:
        words = f"{prefix}{command.name}"
        if command.epilog is None and words in EXAMPLES:
            command.epilog = f"Example: {EXAMPLES[words]}"
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_examples(group.typer_instance, f"{prefix}{group.name} ")
