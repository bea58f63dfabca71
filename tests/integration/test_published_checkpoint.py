"""A published-style BoxInst R-50, converted and run as typed, gives what its own system gives.

The oracle below is written from the papers and the recorded conventions alone: from file bytes to
full-size masks by plain convolutions, loops over locations and instances, and greedy NMS. It shares
no code with the package.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from pipeline.cli import invoke

State = dict[str, torch.Tensor]
STRIDES = (8, 16, 32, 64, 128)
SIZES_OF_INTEREST = (64.0, 128.0, 256.0, 512.0, 1024.0)


def make_published_state(golden_dir: Path, depth: int, mask_channels: int) -> State:
    """Keys and shapes of a published checkpoint; weights that detect a lot of everything."""
    generator = torch.Generator().manual_seed(7)
    state: State = {}
    for key, shape, dtype in _published_entries(golden_dir, depth, mask_channels):
        if dtype != "torch.float32":
            state[key] = torch.zeros(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        elif len(shape) == 4:
            fan_in = shape[1] * shape[2] * shape[3]
            state[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        elif key.endswith("running_var"):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        elif key.endswith(("weight", "scale")):
            state[key] = torch.rand(shape, generator=generator) * 0.4 + 0.8
        else:
            state[key] = torch.randn(shape, generator=generator) * 0.1
    state["mask_head.sizes_of_interest"] = torch.tensor(SIZES_OF_INTEREST).long()
    state["backbone.bottom_up.stem.conv1.weight"] *= 0.02  # pixels are not divided by a deviation
    for key in state:
        if key.endswith("conv3.norm.weight"):
            state[key] *= 0.2
    head = "proposal_generator.fcos_head."
    state[head + "cls_logits.weight"] *= 1.2
    state[head + "cls_logits.bias"] -= 6.5
    state[head + "bbox_pred.bias"] += 2.0
    state["controller.weight"] *= 0.5
    return state


def _published_entries(
    golden_dir: Path, depth: int, mask_channels: int
) -> list[tuple[str, tuple[int, ...], str]]:
    """The recorded key list; R-101 has 17 more blocks in res4, CondInst 8 mask channels."""
    lines = (golden_dir / "fixtures/boxinst_r50_state_dict_keys.txt").read_text().splitlines()
    entries = []
    for line in lines:
        if line.startswith("#"):
            continue
        key, shape_text, dtype = line.split("\t")
        shape = tuple(int(side) for side in shape_text.strip("()").split(",") if side.strip())
        if key.startswith("controller."):
            shape = (8 * (mask_channels + 2) + 64 + 8 + 17, *shape[1:])
        if key.startswith("mask_branch.tower.4."):
            shape = (mask_channels, *shape[1:])
        entries.append((key, shape, dtype))
        if depth == 101 and ".res4.5." in key:
            entries += [(key.replace(".5.", f".{n}.", 1), shape, dtype) for n in range(6, 23)]
    return entries


@pytest.mark.parametrize(
    ("config", "depth", "mask_channels", "short_side", "max_size"),
    [("boxinst_r50", 50, 16, 480, 800), ("condinst_r101", 101, 8, 224, 384)],
)
def test_predict_gives_what_the_published_system_gives(
    golden_dir: Path,
    coco_mini: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
    depth: int,
    mask_channels: int,
    short_side: int,
    max_size: int,
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    first, second, *_ = sorted((coco_mini / "val").glob("*.jpg"))
    shutil.copy(first, images / "a.jpg")
    # So wide that the bound on the longer side acts.
    Image.open(second).convert("RGB").resize((500, 230)).save(images / "b.png")
    state = make_published_state(golden_dir, depth, mask_channels)
    weights = {f"module.{key}": value for key, value in state.items()}
    torch.save({"model": weights, "iteration": 89999}, tmp_path / "in.pth")
    source, converted, out = (str(tmp_path / n) for n in ("in.pth", "out.pth", "out.json"))
    assert invoke(["convert-checkpoint", "--from", "adelaidet", source, converted]) == 0
    assert f"for configs/baselines/{config}.py" in capsys.readouterr().out
    command = ["predict", f"configs/baselines/{config}.py", "--weights", converted]
    command += ["--images", str(images), "--out", out]
    command += ["--set", f"dataloader.test.short_side={short_side}"]
    command += ["--set", f"dataloader.test.max_size={max_size}"]
    assert invoke(command) == 0, capsys.readouterr().err
    results = json.loads(Path(out).read_text())
    for name in ("a.jpg", "b.png"):
        found = [result for result in results if result["file_name"] == name]
        pixels = np.asarray(Image.open(images / name).convert("RGB"))
        expected = predict_naively(state, pixels, short_side, max_size)
        assert len(expected) == len(found)
        assert len(expected) > 40
        assert len({item["class"] for item in expected}) > 5
        _assert_same_detections(found, expected)


def _assert_same_detections(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Each expected detection is found once; near-equal scores may stand in another order."""
    ids = _coco_ids()
    left = list(found)
    num_part_masks = 0
    for item in expected:
        x1, y1, x2, y2 = item["box"]
        wanted = np.array([x1, y1, x2 - x1, y2 - y1])
        differences = [
            np.abs(np.array(other["bbox"]) - wanted).max()
            if other["category_id"] == ids[item["class"]]
            else np.inf
            for other in left
        ]
        index = int(np.argmin(differences))
        assert differences[index] < 2e-3  # pixels
        other = left.pop(index)
        assert other["score"] == pytest.approx(item["score"], abs=1e-3)
        mask = coco_mask.decode(other["segmentation"]).astype(bool)
        union = (mask | item["mask"]).sum()
        assert union == 0 or (mask & item["mask"]).sum() / union > 0.99
        num_part_masks += 0 < item["mask"].mean() < 1
    assert num_part_masks > len(expected) / 3
    assert left == []


def _coco_ids() -> list[int]:
    missing = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    return [number for number in range(1, 91) if number not in missing]


@torch.no_grad()
def predict_naively(
    state: State, image_rgb: np.ndarray, short_side: int, max_size: int
) -> list[dict[str, Any]]:
    """Detections of an RGB picture: box, class, score, full-size mask."""
    height, width = image_rgb.shape[:2]
    scale = short_side / min(height, width)
    if max(height, width) * scale > max_size:
        scale = max_size / max(height, width)
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    resized = Image.fromarray(image_rgb).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    bgr = torch.tensor(np.asarray(resized)[:, :, ::-1].copy()).permute(2, 0, 1).float()
    bgr = bgr - torch.tensor([103.53, 116.28, 123.675])[:, None, None]
    padded = F.pad(bgr, (0, -size[1] % 32, 0, -size[0] % 32))[None]

    pyramid = _pyramid(state, _resnet(state, padded))
    candidates = []
    controllers = []
    for level, feature in enumerate(pyramid):
        found, controller = _level_candidates(state, feature, level)
        candidates += found
        controllers.append(controller)
    detections = _suppress(candidates)[:100]
    mask_features = _mask_features(state, pyramid[:3])
    results = []
    for item in detections:
        level, row, column = item["place"]
        logits = _dynamic_mask(
            mask_features, controllers[level][:, row, column], item["location"], level
        )
        probabilities = _upsample(_upsample(logits, 2).sigmoid(), 4)[: size[0], : size[1]]
        full = F.interpolate(
            probabilities[None, None], size=(height, width), mode="bilinear", align_corners=False
        )[0, 0]
        x1, y1, x2, y2 = item["box"]
        ratio_x, ratio_y = width / size[1], height / size[0]
        box = (
            min(max(x1 * ratio_x, 0.0), width),
            min(max(y1 * ratio_y, 0.0), height),
            min(max(x2 * ratio_x, 0.0), width),
            min(max(y2 * ratio_y, 0.0), height),
        )
        if box[2] > box[0] and box[3] > box[1]:
            results.append(item | {"box": box, "mask": (full > 0.5).numpy()})
    return results


def _resnet(state: State, x: torch.Tensor) -> list[torch.Tensor]:
    def convolve(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        norm = {
            part: state[f"{name}.norm.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        deviation = (norm["running_var"] + 1e-5).sqrt()
        return (x - norm["running_mean"]) / deviation * norm["weight"] + norm["bias"]

    prefix = "backbone.bottom_up."
    x = F.max_pool2d(convolve(prefix + "stem.conv1", x, 2).relu(), 3, 2, 1)
    outputs = []
    for stage in (2, 3, 4, 5):
        block = 0
        while f"{(name := f'{prefix}res{stage}.{block}')}.conv1.weight" in state:
            stride = 2 if block == 0 and stage > 2 else 1
            y = convolve(f"{name}.conv1", x, stride).relu()
            y = convolve(f"{name}.conv3", convolve(f"{name}.conv2", y).relu())
            x = (y + (convolve(f"{name}.shortcut", x, stride) if block == 0 else x)).relu()
            block += 1
        outputs.append(x)
    return outputs[1:]


def _convolve(state: State, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride=stride, padding=padding)


def _pyramid(state: State, stages: list[torch.Tensor]) -> list[torch.Tensor]:
    above = None
    levels = []
    for number, stage in zip((5, 4, 3), reversed(stages), strict=True):
        x = _convolve(state, f"backbone.fpn_lateral{number}", stage)
        if above is not None:
            x = x + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
        above = x
        levels.insert(0, _convolve(state, f"backbone.fpn_output{number}", x))
    levels.append(_convolve(state, "backbone.top_block.p6", levels[-1], 2))
    levels.append(_convolve(state, "backbone.top_block.p7", levels[-1].relu(), 2))
    return levels


def _level_candidates(
    state: State, feature: torch.Tensor, level: int
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    head = "proposal_generator.fcos_head."

    def run_tower(name: str) -> torch.Tensor:
        x = feature
        for layer in range(4):
            x = _convolve(state, f"{head}{name}.{3 * layer}", x)
            norm = f"{head}{name}.{3 * layer + 1}"
            x = F.group_norm(x, 32, state[f"{norm}.weight"], state[f"{norm}.bias"]).relu()
        return x

    class_tower, box_tower = run_tower("cls_tower"), run_tower("bbox_tower")
    probabilities = _convolve(state, head + "cls_logits", class_tower)[0].sigmoid().numpy()
    scale = state[f"{head}scales.{level}.scale"]
    distances = (_convolve(state, head + "bbox_pred", box_tower)[0] * scale).relu().numpy()
    quality = _convolve(state, head + "ctrness", box_tower)[0, 0].sigmoid().numpy()
    stride = STRIDES[level]
    candidates = []
    for label, row, column in np.argwhere(probabilities > 0.05):
        x, y = column * stride + stride // 2, row * stride + stride // 2
        left, top, right, bottom = distances[:, row, column] * stride
        candidates.append(
            {
                "class": int(label),
                "score": float(np.sqrt(probabilities[label, row, column] * quality[row, column])),
                "box": (x - left, y - top, x + right, y + bottom),
                "place": (level, row, column),
                "location": (x, y),
            }
        )
    candidates.sort(key=lambda item: -item["score"])
    return candidates[:1000], _convolve(state, "controller", box_tower)[0]


def _suppress(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    boxes = np.zeros((0, 4))
    labels = np.zeros(0)
    for item in sorted(candidates, key=lambda item: -item["score"]):
        x1, y1, x2, y2 = item["box"]
        width = np.minimum(boxes[:, 2], x2) - np.maximum(boxes[:, 0], x1)
        height = np.minimum(boxes[:, 3], y2) - np.maximum(boxes[:, 1], y1)
        common = width.clip(0) * height.clip(0)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        union = areas + (x2 - x1) * (y2 - y1) - common
        if np.any((labels == item["class"]) & (common > 0.6 * union)):
            continue
        kept.append(item)
        boxes = np.vstack((boxes, item["box"]))
        labels = np.append(labels, item["class"])
    return kept


def _mask_features(state: State, levels: list[torch.Tensor]) -> torch.Tensor:
    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        norm = {
            part: state[f"{name}.1.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        }
        return F.batch_norm(_convolve(state, f"{name}.0", x), **norm).relu()

    merged = block("mask_branch.refine.0", levels[0])[0]
    for index in (1, 2):
        level = block(f"mask_branch.refine.{index}", levels[index])[0]
        merged = merged + torch.stack([_upsample(channel, 2**index) for channel in level])
    x = merged[None]
    for layer in range(4):
        x = block(f"mask_branch.tower.{layer}", x)
    return _convolve(state, "mask_branch.tower.4", x)[0]


def _dynamic_mask(
    features: torch.Tensor, parameters: torch.Tensor, location: tuple[int, int], level: int
) -> torch.Tensor:
    channels, height, width = features.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    relative_x = (location[0] - (columns * 8 + 4)) / SIZES_OF_INTEREST[level]
    relative_y = (location[1] - (rows * 8 + 4)) / SIZES_OF_INTEREST[level]
    x = torch.cat((relative_x[None], relative_y[None], features))
    w0, w1, w2, b0, b1, b2 = parameters.split((8 * (channels + 2), 64, 8, 8, 8, 1))
    x = (torch.einsum("oc,chw->ohw", w0.reshape(8, -1), x) + b0[:, None, None]).relu()
    x = (torch.einsum("oc,chw->ohw", w1.reshape(8, 8), x) + b1[:, None, None]).relu()
    return torch.einsum("c,chw->hw", w2, x) + b2


def _upsample(values: torch.Tensor, factor: int) -> torch.Tensor:
    """Output row y samples the input at max(y − factor // 2, 0) / factor, clamped at the end."""

    def along_rows(values: torch.Tensor) -> torch.Tensor:
        size = len(values)
        places = (torch.arange(factor * size) - factor // 2).clamp(min=0) / factor
        low = places.floor().long()
        share = (places - low)[:, None]
        high = (low + 1).clamp(max=size - 1)
        return values[low] * (1 - share) + values[high] * share

    return along_rows(along_rows(values).T).T
