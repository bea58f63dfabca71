"""The ONNX graph detects on real photos what PyTorch detects."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from depthcache import decode_image
from pipeline.cli import invoke
from pipeline.config import load_config
from segtrain.data.mapper import make_test_input
from segtrain.exchange.onnx_export import export_onnx, pad_with_mean
from segtrain.modeling.condinst import CondInst
from segtrain.modeling.mask_postprocessing import full_size_masks

# What 480×640 photos of short side 144 are padded to.
SIZE = (160, 192)


@pytest.fixture
def make_detector() -> Callable[..., CondInst]:
    """The demo's model with weights that detect a lot of everything."""

    def make(**changes: Any) -> CondInst:
        torch.manual_seed(3)
        cfg = load_config("configs/demo/full.py", [f"model.{k}={v}" for k, v in changes.items()])
        model: CondInst = instantiate(cfg.model).eval()
        head = model.proposal_generator.fcos_head
        torch.nn.init.normal_(head.cls_logits.weight, std=0.1)
        torch.nn.init.constant_(head.cls_logits.bias, -3.0)
        torch.nn.init.normal_(head.bbox_pred.weight, std=0.05)
        torch.nn.init.constant_(head.bbox_pred.bias, 2.0)
        torch.nn.init.normal_(model.controller.weight, std=0.015)
        return model

    return make


@pytest.mark.parametrize(
    "changes",
    [{}, {"depth_form": "add"}, {"depth_layer": False, "consistency": False}],
    ids=["multiply", "add", "without"],
)
def test_graph_agrees_with_pytorch_on_photos(
    make_detector: Callable[..., CondInst],
    coco_mini: Path,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    import onnxruntime

    model = make_detector(**changes)
    pictures = [decode_image(p.read_bytes()) for p in sorted((coco_mini / "val").glob("*.jpg"))]
    wide = [picture for picture in pictures if picture.shape[:2] == (480, 640)][:2]
    samples = [make_test_input(p, short_side=144, max_size=224) for p in wide]
    photos = [sample["image"] for sample in samples]
    difference, num_compared = export_onnx(model, tmp_path / "model.onnx", SIZE, photos)
    assert difference < 1e-3
    assert num_compared > 50

    # From the file alone, with the finishing that the caller does, against the model's own way.
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for sample in samples:
        image = pad_with_mean(model, sample["image"], SIZE)
        boxes, scores, classes, logits = session.run(None, {"image": image.numpy()})
        own = model([sample])[0]["instances"]
        size = (sample["height"], sample["width"])
        masks = full_size_masks(torch.from_numpy(logits), tuple(sample["image"].shape[1:]), size)
        ratio = size[1] / sample["image"].shape[2], size[0] / sample["image"].shape[1]
        boxes = (boxes * np.array([*ratio, *ratio])).clip(0, [size[1], size[0]] * 2)
        seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        order = np.argsort(-scores[seen], kind="stable")
        assert len(own) == seen.sum() > 20
        np.testing.assert_allclose(scores[seen][order], own.scores.numpy(), atol=1e-3)
        for box, mask, label in zip(
            own.pred_boxes.tensor, own.pred_masks, own.pred_classes, strict=True
        ):
            distance = np.abs(boxes - box.numpy()).max(axis=1)
            distance[classes != int(label)] = np.inf
            nearest = int(distance.argmin())
            assert distance[nearest] < 1e-3 * max(size)
            union = (mask | masks[nearest]).sum()
            assert union == 0 or (mask & masks[nearest]).sum() / union > 0.99


def test_export_as_typed(
    make_detector: Callable[..., CondInst],
    coco_mini: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, out = tmp_path / "weights.pth", tmp_path / "model.onnx"
    torch.save({"model": make_detector().state_dict()}, weights)
    command = ["export", "configs/demo/full.py", "--weights", str(weights), "--out", str(out)]
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((coco_mini / "val").glob("*.jpg"))[:6]:
        shutil.copy(path, images)
    command += ["--size", "256x320", "--images", str(images), "--json"]
    assert invoke(command) == 0, capsys.readouterr().err
    document = json.loads(capsys.readouterr().out)
    assert (document["height"], document["width"]) == (256, 320)
    assert document["num_photos"] >= 2
    assert document["num_detections"] > 100
    assert document["largest_difference"] < 1e-3


def test_other_sizes_are_refused(make_detector: Callable[..., CondInst], tmp_path: Path) -> None:
    model = make_detector()
    with pytest.raises(ValueError, match="multiples of 32"):
        export_onnx(model, tmp_path / "a.onnx", (100, 128))
    with pytest.raises(ValueError, match=r"200x100 pixels, .* only 160x192"):
        pad_with_mean(model, torch.zeros(3, 200, 100), SIZE)
