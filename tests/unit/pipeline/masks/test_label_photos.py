"""A process that is killed while it labels ends the labelling with a remedy."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.masks.label_photos import label_photos
from pipeline.masks.photo_depth import PhotoDepth
from pipeline.resources import labeller_path
from segtrain.data.coco_reader import BoxAnnotation, ImageRecord


class _DeadlyDepth(PhotoDepth):
    def read(self, key: str, height: int, width: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_is_told_with_what_to_do(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    box = BoxAnnotation(box_xyxy=(4.0, 4.0, 40.0, 40.0), category=0)
    record = ImageRecord(
        image_id=1, path=str(tmp_path / "a.png"), file_name="a.png", height=48, width=64,
        annotations=(box,),
    )  # fmt: skip
    with pytest.raises(PipelineError, match=r"one of 2 processes .* Take fewer --processes"):
        list(label_photos([record] * 3, labeller_path(), _DeadlyDepth(), num_processes=2))
