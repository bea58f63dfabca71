"""What `pipeline masks` is asked for; light, so that a wrong option is refused at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

# What depth is used for.
DEPTH_MODES = ("off", "loss", "input", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MasksRequest:
    """What is asked for.

    Attributes:
        coco: COCO JSON with boxes; None when `boxes` is given.
        boxes: export of an annotation tool.
        boxes_format: of `boxes`, see `pipeline.datasets.box_formats`.
        images: folder of the photos.
        out: file or folder to write.
        mask_format: see `pipeline.datasets.mask_formats`.
        run: run folder.
        review: review page to write.
        cache: depth cache, read, and filled when a model is given.
        depth_model: hub id or local folder of a depth model.
        depth: auto, or one of `DEPTH_MODES`.
        minutes: budget of the adaptation; 0 labels with the starting weights.
        start: weights to start from; None is those that ship.
        salient: COCO JSON or folder of mask pictures to learn from beside the boxes.
        salient_images: folder of its photos.
        disjoint: give a pixel that several masks claim to the smallest of them.
        min_score: masks with a lower score are left out.
        polygons: write polygons where the form has both.
        seed: of the adaptation.
        redo: ids of masks that a reviewer marked; they are drawn anew.
        processes: that adapt and label together.
    """

    coco: Path | None
    boxes: Path | None = None
    boxes_format: str = "auto"
    images: Path
    out: Path
    mask_format: str
    run: Path
    review: Path
    cache: str | None = None
    depth_model: str | None = None
    depth: str = "auto"
    minutes: float = 10.0
    start: Path | None = None
    salient: Path | None = None
    salient_images: Path | None = None
    disjoint: bool = False
    min_score: float = 0.0
    polygons: bool = False
    seed: int = 0
    redo: Path | None = None
    processes: int = 1

    @property
    def depth_mode(self) -> str:
        """What depth is used for: by itself, both ways where there is some."""
        if self.depth != "auto":
            return self.depth
        return "both" if self.cache or self.depth_model else "off"
