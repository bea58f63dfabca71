"""BoxInst as a textbook would write it: the baseline of the trainer's benchmarks.

Every formula stands as the papers print it: neighbours by unfold in all eight directions, features,
similarities and box bitmaps copied per instance, every prediction at every location, frozen batch
norms as layers of their own, autograd for all of it. Sources: FCOS, arXiv 1904.01355; CondInst,
arXiv 2003.05664; BoxInst, arXiv 2012.02310. What is no subject of a comparison is shared with
`segtrain`: target assignment, the choice of detections, CIELAB conversion. The module names are
those of the trainer's model, so that one state dict serves both.

    python benchmarks/textbook_boxinst.py   # checks it against the recorded values
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling.backbone import FPN, BottleneckBlock, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.structures import ImageList
from torch import nn
from torch.nn import functional as F

from segtrain.losses.colour import rgb_to_lab
from segtrain.modeling.fcos import FCOSSettings, detect
from segtrain.modeling.fcos_targets import FCOSTargets, assign_targets, level_locations

LEVELS = ("p3", "p4", "p5", "p6", "p7")
SIZES_OF_INTEREST = (64.0, 128.0, 256.0, 512.0, 1024.0)
FIXTURES = Path(__file__).parents[1] / "tests" / "golden" / "fixtures"


# --- Losses of the masks ---------------------------------------------------------------------


def unfold_neighbours(maps_NCHW: torch.Tensor) -> torch.Tensor:
    """The eight neighbours at dilation 2, zero outside: (N, C, 8, H, W)."""
    num_maps, channels, height, width = maps_NCHW.shape
    windows = F.unfold(maps_NCHW, kernel_size=3, dilation=2, padding=2)
    windows = windows.reshape(num_maps, channels, 9, height, width)
    return torch.cat((windows[:, :, :4], windows[:, :, 5:]), dim=2)


def similarity_of_neighbours(features_CHW: torch.Tensor, mask_HW: torch.Tensor) -> torch.Tensor:
    """exp(−‖f_p − f_q‖ / 2), 0 where the neighbour is masked: (8, H, W)."""
    difference = features_CHW[None, :, None] - unfold_neighbours(features_CHW[None])
    similarity = torch.exp(-0.5 * torch.linalg.vector_norm(difference, dim=1))
    return (similarity * unfold_neighbours(mask_HW[None, None])[:, 0])[0]


def pairwise_map(mask_logits_I1HW: torch.Tensor) -> torch.Tensor:
    """−log(m_p m_q + (1 − m_p)(1 − m_q)) in log space: (I, 8, H, W)."""
    log_inside = F.logsigmoid(mask_logits_I1HW)
    log_outside = F.logsigmoid(-mask_logits_I1HW)
    both_inside = log_inside[:, :, None] + unfold_neighbours(log_inside)
    both_outside = log_outside[:, :, None] + unfold_neighbours(log_outside)
    largest = torch.maximum(both_inside, both_outside)
    total = torch.exp(both_inside - largest) + torch.exp(both_outside - largest)
    return -(torch.log(total) + largest)[:, 0]


def pairwise_loss(
    mask_logits_I1HW: torch.Tensor,
    similarity_I8HW: torch.Tensor,
    bitmasks_I1HW: torch.Tensor,
    threshold: float = 0.3,
) -> torch.Tensor:
    """Mean of the map over the edges inside the boxes."""
    weights = (similarity_I8HW >= threshold).float() * bitmasks_I1HW
    return (pairwise_map(mask_logits_I1HW) * weights).sum() / weights.sum().clamp(min=1.0)


def dice_distance(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − 2 Σxt / (Σx² + Σt² + 1e-5) per instance."""
    x, target = x.flatten(1), target.flatten(1)
    return 1 - 2 * (x * target).sum(1) / ((x**2).sum(1) + (target**2).sum(1) + 1e-5)


def projection_loss(mask_scores_I1HW: torch.Tensor, bitmasks_I1HW: torch.Tensor) -> torch.Tensor:
    """Dice distance of the maxima over rows and over columns."""
    over_rows, over_columns = (
        dice_distance(
            mask_scores_I1HW.max(dim=axis, keepdim=True).values,
            bitmasks_I1HW.max(dim=axis, keepdim=True).values,
        )
        for axis in (2, 3)
    )
    return (over_rows + over_columns).mean()


def mask_losses(
    mask_logits_I1HW: torch.Tensor, similarity_I8HW: torch.Tensor, bitmasks_I1HW: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Projection and colour."""
    return {
        "loss_proj": projection_loss(mask_logits_I1HW.sigmoid(), bitmasks_I1HW),
        "loss_color": pairwise_loss(mask_logits_I1HW, similarity_I8HW, bitmasks_I1HW),
    }


# --- Losses of the detector ------------------------------------------------------------------


def focal_loss(logits_NK: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Sigmoid focal loss with α 0.25 and γ 2, summed."""
    targets = F.one_hot(labels_N, logits_NK.shape[1] + 1)[:, :-1].float()
    probability = logits_NK.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits_NK, targets, reduction="none")
    p_true = probability * targets + (1 - probability) * (1 - targets)
    alpha = 0.25 * targets + 0.75 * (1 - targets)
    return (alpha * (1 - p_true) ** 2 * entropy).sum()


def giou_of_offsets(predicted_P4: torch.Tensor, target_P4: torch.Tensor) -> torch.Tensor:
    """GIoU of boxes given as l, t, r, b of a common location, IoU smoothed by 1."""
    smaller = torch.minimum(predicted_P4, target_P4)
    larger = torch.maximum(predicted_P4, target_P4)

    def area(offsets: torch.Tensor) -> torch.Tensor:
        return (offsets[:, 0] + offsets[:, 2]) * (offsets[:, 1] + offsets[:, 3])

    intersection, hull = area(smaller), area(larger)
    union = area(predicted_P4) + area(target_P4) - intersection
    return (intersection + 1) / (union + 1) - (hull - union) / hull


def fcos_losses(
    logits_NK: torch.Tensor,
    offsets_N4: torch.Tensor,
    centerness_N: torch.Tensor,
    targets: FCOSTargets,
) -> dict[str, torch.Tensor]:
    """Focal, GIoU weighted by centerness, and centerness loss."""
    num_positives = max(len(targets.positives), 1)
    giou = giou_of_offsets(offsets_N4[targets.positives], targets.offsets)
    return {
        "loss_fcos_cls": focal_loss(logits_NK, targets.labels) / num_positives,
        "loss_fcos_loc": ((1 - giou) * targets.centerness).sum()
        / targets.centerness.sum().clamp(min=1e-6),
        "loss_fcos_ctr": F.binary_cross_entropy_with_logits(
            centerness_N[targets.positives], targets.centerness, reduction="sum"
        )
        / num_positives,
    }


# --- The network -----------------------------------------------------------------------------


def aligned_bilinear(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """Up-sampling that keeps cell s // 2 of a stride where it is."""
    if factor == 1:
        return maps
    height, width = maps.shape[2:]
    maps = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    maps = F.pad(maps, (factor // 2, 0, factor // 2, 0), mode="replicate")
    return maps[:, :, : size[0] - 1, : size[1] - 1]


def dynamic_mask_head(
    features_BCHW: torch.Tensor,
    parameters_IP: torch.Tensor,
    locations_I2: torch.Tensor,
    sizes_of_interest_I: torch.Tensor,
    image_indices_I: torch.Tensor,
) -> torch.Tensor:
    """Mask logits at stride 4, (I, 1, 2H, 2W): one grouped convolution per layer."""
    num_instances = len(parameters_IP)
    _, channels, height, width = features_BCHW.shape
    pixels = level_locations(height, width, 8, features_BCHW.device)
    relative = (locations_I2[:, None] - pixels[None]) / sizes_of_interest_I[:, None, None]
    relative = relative.permute(0, 2, 1).reshape(num_instances, 2, height, width)
    x = torch.cat((relative, features_BCHW[image_indices_I]), dim=1)
    x = x.reshape(1, num_instances * (channels + 2), height, width)
    w0, w1, w2, b0, b1, b2 = parameters_IP.split((8 * (channels + 2), 64, 8, 8, 8, 1), dim=1)
    for weight, bias, inputs in ((w0, b0, channels + 2), (w1, b1, 8), (w2, b2, 8)):
        x = F.conv2d(x, weight.reshape(-1, inputs, 1, 1), bias.reshape(-1), groups=num_instances)
        if weight is not w2:
            x = F.relu(x)
    return aligned_bilinear(x.reshape(num_instances, 1, height, width), 2)


def build_backbone(depth: tuple[int, ...] = (3, 4, 6, 3)) -> FPN:
    """detectron2's R-50 with frozen batch norm layers and its pyramid."""
    stages, channels, output = [], 64, 256
    for index, blocks in enumerate(depth):
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                blocks,
                in_channels=channels,
                out_channels=output,
                bottleneck_channels=output // 4,
                stride_per_block=[1 if index == 0 else 2] + [1] * (blocks - 1),
                norm="FrozenBN",
                stride_in_1x1=True,
            )
        )
        channels, output = output, output * 2
    names = ["res3", "res4", "res5"]
    body = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=names, freeze_at=2)
    return FPN(body, names, 256, top_block=LastLevelP6P7(256, 256, in_feature="p5"))


def _tower() -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(256, 256, 3, padding=1), nn.GroupNorm(32, 256), nn.ReLU()]
    return nn.Sequential(*layers)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Scale(nn.Module):
    """One learnt factor per level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class DenseHead(nn.Module):
    """Towers and predictions of FCOS."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cls_tower, self.bbox_tower = _tower(), _tower()
        self.cls_logits = nn.Conv2d(256, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(256, 4, 3, padding=1)
        self.ctrness = nn.Conv2d(256, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in LEVELS)
        nn.init.constant_(self.cls_logits.bias, -math.log(99.0))


class MaskBranch(nn.Module):
    """p3, p4 and p5 become one map at stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.refine = nn.ModuleList(_block(256, 128) for _ in range(3))
        self.tower = nn.Sequential(*(_block(128, 128) for _ in range(4)), nn.Conv2d(128, 16, 1))

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = self.refine[0](features["p3"])
        x = x + aligned_bilinear(self.refine[1](features["p4"]), 2)
        x = x + aligned_bilinear(self.refine[2](features["p5"]), 4)
        return self.tower(x)


class TextbookBoxInst(nn.Module):
    """BoxInst R-50.

    Args:
        num_classes: without background.
        masks_per_image: most positives of an image that are trained on masks.
        score_threshold: of detections.
    """

    def __init__(
        self, num_classes: int = 80, masks_per_image: int = 64, score_threshold: float = 0.05
    ) -> None:
        super().__init__()
        self.backbone = build_backbone()
        self.proposal_generator = nn.Module()
        self.proposal_generator.fcos_head = DenseHead(num_classes)
        self.mask_branch = MaskBranch()
        self.mask_head = nn.Module()
        self.mask_head.register_buffer("sizes_of_interest", torch.tensor(SIZES_OF_INTEREST))
        self.mask_head.register_buffer("_iter", torch.zeros(1))
        self.controller = nn.Conv2d(256, 233, 3, padding=1)
        nn.init.normal_(self.controller.weight, std=0.01)
        self.num_classes, self.masks_per_image = num_classes, masks_per_image
        self.settings = FCOSSettings(score_threshold=score_threshold)
        self.register_buffer(
            "pixel_mean", torch.tensor([103.53, 116.28, 123.675])[:, None, None], False
        )

    def forward(self, batch: Sequence[dict[str, Any]]) -> Any:
        """Losses in training; per image boxes, scores, classes and masks otherwise."""
        images = ImageList.from_tensors([entry["image"] - self.pixel_mean for entry in batch], 32)
        features = self.backbone(images.tensor)
        head = self.proposal_generator.fcos_head
        logits, offsets, quality, parameters = [], [], [], []
        for name, scale in zip(LEVELS, head.scales, strict=True):
            logits.append(head.cls_logits(head.cls_tower(features[name])))
            tower = head.bbox_tower(features[name])
            offsets.append(F.relu(scale.scale * head.bbox_pred(tower)))
            quality.append(head.ctrness(tower))
            parameters.append(self.controller(tower))
        mask_features = self.mask_branch(features)
        if self.training:
            return self._losses(batch, images, logits, offsets, quality, parameters, mask_features)
        return self._detect(batch, images, logits, offsets, quality, parameters, mask_features)

    def _losses(
        self,
        batch: Sequence[dict[str, Any]],
        images: ImageList,
        logits: list[torch.Tensor],
        offsets: list[torch.Tensor],
        quality: list[torch.Tensor],
        parameters: list[torch.Tensor],
        mask_features: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        padded_size = (images.tensor.shape[2], images.tensor.shape[3])
        boxes = [entry["instances"].gt_boxes.tensor for entry in batch]
        targets = assign_targets(
            [(level.shape[2], level.shape[3]) for level in logits],
            boxes,
            [entry["instances"].gt_classes for entry in batch],
            num_classes=self.num_classes,
            padded_size=padded_size,
            centre_on_bitmask=True,
        )
        flat_logits, flat_quality = _flatten(logits), _flatten(quality)[:, 0]
        losses = fcos_losses(flat_logits, _flatten(offsets), flat_quality, targets)
        with torch.no_grad():
            scores = (
                flat_logits[targets.positives].sigmoid().max(1).values
                * flat_quality[targets.positives].sigmoid()
            )
        chosen = self._choose(targets, scores, len(batch))
        mask_logits = dynamic_mask_head(
            mask_features,
            _flatten(parameters)[targets.positives][chosen],
            targets.locations[chosen],
            self.mask_head.sizes_of_interest[targets.levels[chosen]],
            targets.image_indices[chosen],
        )
        bitmasks = torch.cat([draw_boxes(image, padded_size) for image in boxes])[:, 2::4, 2::4]
        similarity = torch.stack([_color_similarity(entry, padded_size) for entry in batch])
        box_indices = targets.box_indices[targets.positives][chosen]
        losses |= mask_losses(
            mask_logits,
            similarity[targets.image_indices[chosen]],
            bitmasks[box_indices][:, None].float(),
        )
        return losses

    def _choose(self, targets: FCOSTargets, scores: torch.Tensor, num_images: int) -> torch.Tensor:
        """Positives that are trained on masks: the best of each box, `masks_per_image` in all."""
        boxes, kept = targets.box_indices[targets.positives], []
        for image in range(num_images):
            own = torch.nonzero(targets.image_indices == image)[:, 0]
            if len(own) > self.masks_per_image:
                labels = boxes[own].unique()
                share = max(self.masks_per_image // len(labels), 1)
                best = []
                for label in labels:
                    of_box = own[boxes[own] == label]
                    order = scores[of_box].argsort(descending=True, stable=True)
                    best.append(of_box[order[:share]])
                own = torch.cat(best)
            kept.append(own)
        return torch.cat(kept)

    def _detect(
        self,
        batch: Sequence[dict[str, Any]],
        images: ImageList,
        logits: list[torch.Tensor],
        offsets: list[torch.Tensor],
        quality: list[torch.Tensor],
        parameters: list[torch.Tensor],
        mask_features: torch.Tensor,
    ) -> list[dict[str, torch.Tensor]]:
        results = []
        for image, found in enumerate(detect(logits, offsets, quality, self.settings)):
            height, width = images.image_sizes[image]
            output = (batch[image]["height"], batch[image]["width"])
            rows, columns = found.cells.unbind(1)
            chosen = torch.stack(
                [
                    parameters[level][image, :, row, column]
                    for level, row, column in zip(
                        found.levels.tolist(), rows.tolist(), columns.tolist(), strict=True
                    )
                ]
            )
            masks = dynamic_mask_head(
                mask_features,
                chosen,
                found.locations,
                self.mask_head.sizes_of_interest[found.levels],
                torch.full_like(found.levels, image),
            ).sigmoid()
            masks = aligned_bilinear(masks, 4)[:, :, :height, :width]
            masks = F.interpolate(masks, size=output, mode="bilinear", align_corners=False)
            scale = torch.tensor([output[1] / width, output[0] / height] * 2)
            limits = torch.tensor([width, height] * 2)
            results.append(
                {
                    "boxes": torch.minimum(found.boxes.clamp(min=0), limits) * scale,
                    "scores": found.scores,
                    "classes": found.classes,
                    "masks": masks[:, 0] > 0.5,
                }
            )
        return results


def draw_boxes(boxes_I4: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Full-resolution bitmaps, (I, height, width)."""
    bitmasks = torch.zeros(len(boxes_I4), *size, dtype=torch.uint8)
    for bitmask, (x1, y1, x2, y2) in zip(bitmasks, boxes_I4.tolist(), strict=True):
        bitmask[int(y1) : int(y2 + 1), int(x1) : int(x2 + 1)] = 1
    return bitmasks


def _color_similarity(entry: dict[str, Any], padded_size: tuple[int, int]) -> torch.Tensor:
    image = entry["image"]
    height, width = image.shape[1:]
    mask = torch.zeros(padded_size)
    mask[: height - int(10 * height / entry["height"]), :width] = 1
    padding = (0, padded_size[1] - width, 0, padded_size[0] - height)
    blocks = F.avg_pool2d(F.pad(image.float(), padding)[None], 4)[0]
    lab = rgb_to_lab(blocks.flip(0).to(torch.uint8))
    return similarity_of_neighbours(lab, mask[2::4, 2::4])


def _flatten(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows in the order level, image, location."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in levels])


# --- Against the recorded values -------------------------------------------------------------


def check_against_fixtures(folder: Path = FIXTURES) -> list[str]:
    """Compare every function with its recording; raises where one differs.

    Returns:
        Names of the recordings that were reproduced.
    """
    checked = []

    def load(name: str) -> dict[str, torch.Tensor]:
        checked.append(name)
        with np.load(folder / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}

    def same(actual: torch.Tensor | None, expected: torch.Tensor, rtol: float = 1e-5) -> None:
        atol = 1e-6 if rtol == 1e-5 else 1e-5 * float(expected.abs().max())
        assert actual is not None
        torch.testing.assert_close(
            actual.double(), expected.double(), rtol=rtol, atol=atol, check_dtype=False
        )

    r = load("projection_loss")
    logits = r["mask_logits"].clone().requires_grad_()
    loss = projection_loss(logits.sigmoid(), r["box_bitmasks"].float())
    loss.backward()
    same(loss, r["loss"])
    same(logits.grad, r["grad_logits"], 1e-4)

    r = load("pairwise_loss")
    logits = r["mask_logits"].clone().requires_grad_()
    loss = pairwise_loss(logits, r["similarity"].expand(4, -1, -1, -1), r["box_bitmasks"].float())
    loss.backward()
    same(pairwise_map(logits.detach()), r["pairwise_map"])
    same(loss, r["loss"])
    same(logits.grad, r["grad_logits"], 1e-4)

    r = load("color_similarity")
    entry = {"image": r["image_bgr_u8"], "height": 480}
    same(_color_similarity(entry, (192, 256)), r["similarity"][0])

    r = {k[4:]: v for k, v in load("dynamic_mask_head").items() if k.startswith("c16_")}
    features, parameters = r["mask_feats"].requires_grad_(), r["params"].requires_grad_()
    sizes = torch.tensor(SIZES_OF_INTEREST)[r["fpn_levels"].long()]
    out = dynamic_mask_head(features, parameters, r["locations"], sizes, r["im_inds"].long())
    out.backward(r["grad_out"])
    same(out, r["logits_stride4"])
    same(features.grad, r["grad_mask_feats"], 1e-4)
    same(parameters.grad, r["grad_params"], 1e-4)

    r = load("fcos_losses")
    maps = {
        kind: [r[f"{kind}_p{level}"].clone().requires_grad_() for level in range(3, 8)]
        for kind in ("logits", "reg", "ctrness")
    }
    targets = assign_targets(
        [(level.shape[2], level.shape[3]) for level in maps["logits"]],
        [r["gt_boxes0"], r["gt_boxes1"]],
        [r["gt_classes0"], r["gt_classes1"]],
        num_classes=80,
        padded_size=(128, 192),
        centre_on_bitmask=False,
    )
    flat = {kind: _flatten(levels) for kind, levels in maps.items()}
    losses = fcos_losses(flat["logits"], flat["reg"], flat["ctrness"][:, 0], targets)
    sum(losses.values()).backward()
    for name, value in losses.items():
        same(value, r[f"ctrness_{name}"])
    for index, level in enumerate(range(3, 8)):
        same(maps["logits"][index].grad, r[f"ctrness_grad_logits_p{level}"], 1e-4)
        same(maps["reg"][index].grad, r[f"ctrness_grad_reg_p{level}"], 1e-4)

    r = load("boxinst_bitmasks")
    for image in (0, 1):
        same(draw_boxes(r[f"boxes{image}"], (128, 160)), r[f"gt_bitmasks_full{image}"])

    names = (folder / "boxinst_r50_state_dict_keys.txt").read_text().splitlines()
    published = dict(line.split("\t")[:2] for line in names if not line.startswith("#"))
    state = TextbookBoxInst().state_dict()
    assert {key: str(tuple(value.shape)) for key, value in state.items()} == published
    checked.append("boxinst_r50_state_dict_keys")
    return checked


if __name__ == "__main__":
    print("reproduced:", ", ".join(check_against_fixtures()))
