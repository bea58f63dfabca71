"""The laboratory of the labeller runs every kind of trial at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[3]


def write_discs(folder: Path) -> None:
    """Two photos of two discs per split, as COCO."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).mkdir()
        images, annotations = [], []
        for k in range(2):
            picture = np.full((96, 128, 3), (90, 60, 40), np.uint8)
            images.append({"id": k, "file_name": f"{k}.png", "width": 128, "height": 96})
            for x, radius in ((32, 20 + k), (92, 24)):
                cv2.circle(picture, (x, 48), radius, (40, 180, 220), -1)
                t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
                outline = np.stack((x + radius * np.cos(t), 48 + radius * np.sin(t)), 1)
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": k, "category_id": 1, "iscrowd": 0,
                        "bbox": [x - radius, 48 - radius, 2 * radius, 2 * radius],
                        "area": 3.14 * radius**2, "segmentation": [outline.ravel().tolist()],
                    }
                )  # fmt: skip
            cv2.imwrite(str(folder / split / f"{k}.png"), picture)
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(document), encoding="utf-8")


def test_every_kind_of_trial_gives_a_row(tmp_path: Path) -> None:
    write_discs(tmp_path / "coco")
    subprocess.run(
        [sys.executable, "-m", "benchmarks.labeller_trials", str(tmp_path / "coco"),
         "--output", str(tmp_path / "out"), "--seconds", "280", "--pretrain-seconds", "4",
         "--workers", "1", "--early-workers", "0", "--drawers", "1", "--batch", "2",
         "--encoders", "tf_efficientnet_lite0", "--steps", "2", "--crop-size", "64",
         "--every", "1", "--most-trials", "8"],
        cwd=ROOT, check=True,
    )  # fmt: skip
    lines = (tmp_path / "out" / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert not [row["error"] for row in rows if "error" in row]
    assert {row["kind"] for row in rows} == {"pretrain", "zero_shot", "adapt", "supervised"}
    shipped = next(r for r in rows if r["kind"] == "zero_shot" and r["start"] == "shipped")
    assert shipped["val"]["objects"] == 4
    assert shipped["val"]["mean_iou"] > 0.8
    with tarfile.open(tmp_path / "out" / "weights-1.tar") as tar:
        assert "tf_efficientnet_lite0-mean.safetensors" in tar.getnames()
