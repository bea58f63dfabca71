"""Options that several commands share, so that one spelling means one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="Config file, or a bundled one: configs/demo/full.py"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; several may follow."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Write one JSON document to stdout; logs go to stderr.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the plan; do nothing.")]
WeightsOption = Annotated[Path, typer.Option("--weights", help="Checkpoint, .pth.")]
FingerprintOption = Annotated[
    str | None,
    typer.Option("--fingerprint", help="Folder name of one cache under the root, or a prefix."),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="PIPELINE_CACHE_TOKEN", help="Access token of a cache service."),
]
BitsOption = Annotated[
    int | None,
    typer.Option(
        "--bits", help="Significant bits of a stored map, 2 to 16; 32: float32; default 12."
    ),
]
BoxesFormatOption = Annotated[
    str,
    typer.Option(
        "--boxes-format", help="auto, yolo, voc, labelme, cvat, label-studio or openimages."
    ),
]
MaskFormatOption = Annotated[
    str | None,
    typer.Option(
        "--format", help="coco, yolo-seg, labelme, cvat, label-studio or png; default by --out."
    ),
]
PolygonsOption = Annotated[
    bool, typer.Option("--polygons", help="Write polygons where the form has exact masks too.")
]
MinScoreOption = Annotated[
    float,
    typer.Option(
        "--min-score", min=0, max=1, help="Leave out masks with a lower score; their boxes stay."
    ),
]
RootArgument = Annotated[
    str, typer.Argument(metavar="ROOT", help="Cache root: folder, s3://, gs:// or http(s)://")
]
