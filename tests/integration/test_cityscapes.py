"""Cityscapes, on generated scenes: from its own tree to boxes, a step, and its own AP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.cli import invoke
from segtrain.data.coco_boxes import read_coco_boxes
from segtrain.errors import DatasetError
from segtrain.use.cityscapes_evaluation import measure_cityscapes_precision

HEIGHT, WIDTH = 64, 128
LABELS = ("car", "person", "truck", "bicycle", "cargroup", "license plate", "building", "rider")


def _official_picture(polygons: Path) -> np.ndarray:
    annotation = Annotation()
    annotation.fromJsonFile(str(polygons))
    return np.asarray(createInstanceImage(annotation, "ids"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of train and val each: overlapping polygons, groups, deleted and hidden ones."""
    root = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    for split, city in (("train", "aachen"), ("val", "lindau")):
        for number in range(2):
            name = f"{city}/{city}_{number:06d}_000019"
            image = root / "leftImg8bit" / split / f"{name}_leftImg8bit.png"
            polygons = root / "gtFine" / split / f"{name}_gtFine_polygons.json"
            for path in (image, polygons):
                path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image)
            objects = [{"label": "road", "polygon": [[0, 0], [127, 0], [127, 63], [0, 63]]}]
            for index in range(10):
                centre = rng.integers(8, (WIDTH - 8, HEIGHT - 8))
                angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
                radius = rng.uniform(8, 24, len(angles))
                points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
                points = points.round().clip(0, (WIDTH - 1, HEIGHT - 1)).astype(int)
                label = LABELS[int(rng.integers(len(LABELS)))]
                entry: dict[str, Any] = {"label": label, "polygon": points.tolist()}
                objects.append(entry | ({"deleted": 1} if index == 4 else {}))
            document = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
            polygons.write_text(json.dumps(document))
            # 16 bits, as in the data set; the official writer needs an older Pillow.
            truth = str(polygons).replace("_polygons.json", "_instanceIds.png")
            Image.fromarray(_official_picture(polygons).astype(np.uint16)).save(truth)
    assert invoke(["data", "prepare", "cityscapes", str(root)]) == 0
    return root


def test_masks_are_those_of_the_official_instance_pictures(tree: Path) -> None:
    for split in ("train", "val"):
        document = json.loads((tree / f"annotations/cityscapes_{split}_masks.json").read_text())
        for image in document["images"]:
            base = image["file_name"].removesuffix("_leftImg8bit.png")
            official = _official_picture(tree / "gtFine" / split / f"{base}_gtFine_polygons.json")
            # Instances have ids of 1000 · class + number, groups the class's own id.
            counted = {24, 25, 26, 27, 28, 31, 32, 33}
            wanted = {
                value: official == value
                for value in np.unique(official).tolist()
                if (value // 1000 if value >= 1000 else value) in counted
            }
            own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
            masks = [coco_mask.decode(a["segmentation"]).astype(bool) for a in own]
            # Groups of one class share an id in the official picture.
            for value, mask in wanted.items():
                same = [
                    found
                    for found, a in zip(masks, own, strict=True)
                    if a["category_id"] == (value // 1000 if value >= 1000 else value)
                    and bool(a["iscrowd"]) == (value < 1000)
                    and (found & mask).any()
                ]
                assert same
                np.testing.assert_array_equal(np.logical_or.reduce(same), mask)
            assert len([a for a in own if not a["iscrowd"]]) == sum(v >= 1000 for v in wanted)


def _true_results(tree: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    annotations = tree / "annotations/cityscapes_val_masks.json"
    dataset = read_coco_boxes(annotations, tree / "leftImg8bit/val", keep_images_without_boxes=True)
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": 0.9}
        for a in json.loads(annotations.read_text())["annotations"]
        if not a["iscrowd"] and a["area"] >= 100
    ]
    return results, dataset.records


def test_true_masks_have_full_ap_and_shifted_ones_do_not(tree: Path, tmp_path: Path) -> None:
    results, records = _true_results(tree)
    truth = tree / "gtFine/val"
    perfect = measure_cityscapes_precision(records, results, truth, tmp_path / "a")
    assert perfect["AP"] == pytest.approx(100)
    assert set(perfect["per_category"]) == {
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    }
    assert perfect["per_category"]["bus"] is None  # there is none
    for result in results:
        mask = np.roll(coco_mask.decode(result["segmentation"]), 6, axis=1)
        result["segmentation"] = coco_mask.encode(np.asfortranarray(mask))
    moved = measure_cityscapes_precision(records, results, truth, tmp_path / "b")
    assert moved["AP"] < 60
    assert measure_cityscapes_precision(records, [], truth, tmp_path / "c")["AP"] == 0
    with pytest.raises(DatasetError, match=r"gtFine_trainvaltest\.zip"):
        measure_cityscapes_precision(records, results, tmp_path, tmp_path / "d")


@pytest.mark.slow
def test_config_trains_and_evaluates_on_the_prepared_tree(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paper's Cityscapes config with a small backbone, a step, and no depth."""
    settings = {
        "data.train_json": tree / "annotations/cityscapes_train_boxes.json",
        "data.train_images": tree / "leftImg8bit/train",
        "data.test_json": tree / "annotations/cityscapes_val_masks.json",
        "data.test_images": tree / "leftImg8bit/val",
        "data.test_cityscapes_truth": tree / "gtFine/val",
        "depth.enabled": False,
        "model.depth_layer": False,
        "model.consistency": False,
        "model.distillation": "null",
        "train.distill_from": "null",
        "train.init_checkpoint": "null",
        "train.max_iter": 1,
        "train.batch_size": 1,
        "train.device": "cpu",
        "train.tensorboard": False,
        "dataloader.train.num_workers": 0,
        "dataloader.train.augmentation.short_sides": "[64]",
        "dataloader.test.short_side": 64,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    config = "configs/cityscapes/full_r50.py"
    run = tmp_path / "run"
    assert invoke(["train", config, "--output", str(run), *words]) == 0, capsys.readouterr().err
    capsys.readouterr()
    weights = ["--weights", str(run / "model_final.pth"), "--output", str(tmp_path / "eval")]
    assert invoke(["eval", config, *weights, *words, "--json"]) == 0, capsys.readouterr().err
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["num_images"] == 2
    assert 0 <= metrics["cityscapes"]["AP"] <= 100
    # Weights after one step detect nothing, which the tool must take as well.
    names = sorted(path.name for path in (tmp_path / "eval/cityscapes").glob("*.txt"))
    assert names == [f"lindau_00000{n}_000019_leftImg8bit.txt" for n in range(2)]
