"""Every recorded value, reproduced by the functions that training calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segtrain.modeling.aligned_bilinear import aligned_bilinear
from segtrain.modeling.box_bitmasks import draw_extents, filled_pixels, mask_grid_extents
from segtrain.modeling.color_similarity import (
    color_similarity,
    downsample_to_mask_grid,
    image_validity,
    rgb_to_lab,
)
from segtrain.modeling.depth_loss import depth_loss
from segtrain.modeling.distillation import reliable_dice_loss
from segtrain.modeling.dynamic_mask_head import SIZES_OF_INTEREST, run_dynamic_head
from segtrain.modeling.fcos_losses import fcos_losses, offset_ious
from segtrain.modeling.fcos_targets import assign_targets, level_locations
from segtrain.modeling.pairwise_affinity import edges_from_similarity, pairwise_losses
from segtrain.modeling.pixel_neighbours import neighbour_similarity
from segtrain.modeling.projection_loss import projection_distances, projection_loss

Recording = dict[str, torch.Tensor]
STRIDES = (8, 16, 32, 64, 128)


@pytest.fixture
def recorded(golden_dir: Path) -> Callable[[str], Recording]:
    def load(name: str) -> Recording:
        with np.load(golden_dir / "fixtures" / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}

    return load


def assert_value(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=1e-5, atol=atol, check_dtype=False
    )


def assert_gradient(actual: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert actual is not None
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-4, atol=1e-5 * scale)


def extents_of(bitmasks: torch.Tensor) -> torch.Tensor:
    """Rectangles of recorded bitmaps, checked to be filled."""
    bitmasks = bitmasks.reshape(-1, *bitmasks.shape[-2:]).bool()
    result = []
    for bitmask in bitmasks:
        rows, columns = torch.nonzero(bitmask, as_tuple=True)
        result.append(
            [int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1]
            if len(rows)
            else [0, 0, 0, 0]
        )
    extents = torch.tensor(result)
    assert torch.equal(draw_extents(extents, tuple(bitmasks.shape[1:])), bitmasks)
    return extents


def test_aligned_bilinear(recorded: Callable[[str], Recording]) -> None:
    r = recorded("aligned_bilinear")
    for factor in (1, 2, 4, 8):
        assert_value(aligned_bilinear(r["input"], factor), r[f"out_f{factor}"])


def test_color_similarity(recorded: Callable[[str], Recording]) -> None:
    r = recorded("color_similarity")
    size = (192, 256)
    small = downsample_to_mask_grid(r["image_bgr_u8"], size).flip(0).to(torch.uint8)
    assert torch.equal(small.permute(1, 2, 0), r["downsampled_rgb_u8"])
    assert_value(rgb_to_lab(small).permute(1, 2, 0), r["lab"], atol=1e-5)
    assert torch.equal(image_validity((186, 248), 480, size), r["image_mask_full"].float())
    similarity = color_similarity([r["image_bgr_u8"]], [480], size)
    assert_value(similarity, r["similarity"])
    # The sets of edges, which is what the loss uses, are equal.
    assert torch.equal(similarity >= 0.3, r["similarity"] >= 0.3)


def test_box_bitmasks(recorded: Callable[[str], Recording]) -> None:
    r = recorded("boxinst_bitmasks")
    size = (128, 160)
    for image in (0, 1):
        pixels = filled_pixels(r[f"boxes{image}"], size)
        assert torch.equal(draw_extents(pixels, size), r[f"gt_bitmasks_full{image}"].bool())
        cells = draw_extents(mask_grid_extents(pixels), (32, 40))
        assert torch.equal(cells, r[f"gt_bitmasks{image}"].bool())
        height, width = r[f"image_size{image}"].tolist()
        mask = image_validity((height, width), int(r[f"orig_height{image}"]), size)
        assert torch.equal(mask, r["image_masks_full"][image].float())


def test_projection_loss(recorded: Callable[[str], Recording]) -> None:
    r = recorded("projection_loss")
    logits = r["mask_logits"].clone().requires_grad_()
    extents = extents_of(r["box_bitmasks"])
    loss = projection_loss(logits[:, 0], extents)
    loss.backward()
    assert_value(loss, r["loss"])
    assert_gradient(logits.grad, r["grad_logits"])
    over_rows, over_columns = projection_distances(r["mask_logits"][:, 0], extents)
    assert_value(over_rows, r["dice_reduce_h_per_inst"])
    assert_value(over_columns, r["dice_reduce_w_per_inst"])


def test_pairwise_loss(recorded: Callable[[str], Recording]) -> None:
    r = recorded("pairwise_loss")
    logits = r["mask_logits"].clone().requires_grad_()
    edges = edges_from_similarity(r["similarity"], 0.3)
    extents = extents_of(r["box_bitmasks"])
    (loss,) = pairwise_losses(logits[:, 0], [edges], torch.zeros(4, dtype=torch.int64), [extents])
    loss.backward()
    assert_value(loss, r["loss"])
    assert_value(loss, r["loss_f64"])
    assert_gradient(logits.grad, r["grad_logits"])


@pytest.mark.parametrize("channels", [8, 16])
def test_dynamic_mask_head(recorded: Callable[[str], Recording], channels: int) -> None:
    r = {
        k.split("_", 1)[1]: v
        for k, v in recorded("dynamic_mask_head").items()
        if k.startswith(f"c{channels}_")
    }
    features, params = r["mask_feats"].requires_grad_(), r["params"].requires_grad_()
    soi = torch.tensor(SIZES_OF_INTEREST)[r["fpn_levels"].long()]
    logits, depth = run_dynamic_head(
        features, params, r["locations"], soi, r["im_inds"].long(), depth_form=None
    )
    assert depth is None
    logits.backward(r["grad_out"][:, 0])
    assert_value(logits[:, None], r["logits_stride4"], atol=1e-5)
    assert_gradient(features.grad, r["grad_mask_feats"])
    assert_gradient(params.grad, r["grad_params"])


@pytest.mark.parametrize("form", ["multiply", "add"])
def test_depth_guided_head(recorded: Callable[[str], Recording], form: str) -> None:
    r = recorded("dg_mask_head")
    features, params = r["mask_feats"].requires_grad_(), r["params"].requires_grad_()
    soi = torch.tensor(SIZES_OF_INTEREST)[r["fpn_levels"].long()]
    logits, depth = run_dynamic_head(
        features, params, r["locations"], soi, r["im_inds"].long(), depth_form=form
    )
    assert depth is not None
    (
        (logits * r["grad_out_mask"][:, 0]).sum() + (depth * r["grad_out_depth"][:, 0]).sum()
    ).backward()
    assert_value(logits[:, None], r[f"{form}_mask_logits_stride4"], atol=1e-5)
    assert_value(depth[:, None], r[f"{form}_depth_stride4"])
    assert_gradient(features.grad, r[f"{form}_grad_mask_feats"])
    assert_gradient(params.grad, r[f"{form}_grad_params"])


@pytest.mark.parametrize("centre", ["box_center", "bitmask_center"])
def test_fcos_targets(recorded: Callable[[str], Recording], centre: str) -> None:
    r = recorded("fcos_targets")
    sizes = [(60, 84), (30, 42), (15, 21), (8, 11), (4, 6)]
    locations = [level_locations(h, w, s) for (h, w), s in zip(sizes, STRIDES, strict=True)]
    assert torch.equal(torch.cat(locations), r["locations"])
    targets = assign_targets(
        sizes,
        [r["gt_boxes0"], r["gt_boxes1"], torch.zeros(0, 4)],
        [r["gt_classes0"], r["gt_classes1"], torch.zeros(0, dtype=torch.int64)],
        num_classes=80,
        padded_size=(480, 672),
        centre_on_bitmask=centre == "bitmask_center",
    )
    assert torch.equal(targets.labels, r[f"{centre}_labels"].long())
    positives = r[f"{centre}_pos_inds"].long()
    assert torch.equal(targets.positives, positives)
    recorded_indices = r[f"{centre}_target_inds"].long()[positives]
    assert torch.equal(targets.box_indices[positives], recorded_indices)
    assert_value(targets.offsets, r[f"{centre}_reg_targets_pos"])
    assert_value(targets.centerness, r[f"{centre}_ctrness_targets_pos"])
    assert torch.equal(targets.image_indices, r["im_inds"].long()[positives])
    assert torch.equal(targets.levels, r["fpn_levels"].long()[positives])


@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_fcos_losses(recorded: Callable[[str], Recording], quality: str) -> None:
    r = recorded("fcos_losses")
    mode = {"centerness": "ctrness", "iou": "iou"}[quality]
    maps = {
        kind: [r[f"{kind}_p{level}"].clone().requires_grad_() for level in range(3, 8)]
        for kind in ("logits", "reg", "ctrness")
    }
    targets = assign_targets(
        [tuple(m.shape[-2:]) for m in maps["logits"]],
        [r["gt_boxes0"], r["gt_boxes1"]],
        [r["gt_classes0"], r["gt_classes1"]],
        num_classes=80,
        padded_size=(128, 192),
        centre_on_bitmask=False,
    )
    assert torch.equal(targets.positives, r["pos_inds"])
    flat = {
        kind: torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in levels])
        for kind, levels in maps.items()
    }
    offsets = flat["reg"][targets.positives]
    losses = fcos_losses(
        flat["logits"],
        targets.labels,
        offsets,
        flat["ctrness"][targets.positives, 0],
        targets.offsets,
        targets.centerness,
        quality=quality,
    )
    sum(losses.values()).backward()
    for name, value in losses.items():
        assert_value(value, r[f"{mode}_{name}"])
    iou, giou = offset_ious(offsets, targets.offsets)
    assert_value(iou, r["pos_iou"])
    assert_value(giou, r["pos_giou"])
    for index, level in enumerate(range(3, 8)):
        assert_gradient(maps["logits"][index].grad, r[f"ctrness_grad_logits_p{level}"])
        assert_gradient(maps["reg"][index].grad, r[f"{mode}_grad_reg_p{level}"])
        assert_gradient(maps["ctrness"][index].grad, r[f"{mode}_grad_ctrness_p{level}"])


def test_depth_similarity(recorded: Callable[[str], Recording]) -> None:
    r = recorded("depth_similarity")
    depth = downsample_to_mask_grid(r["depth_u8"][None], (192, 256))
    assert_value(depth, r["depth_stride4"])
    assert_value(neighbour_similarity(depth[None], r["image_mask_s4"][None]), r["similarity"])


def test_depth_loss(recorded: Callable[[str], Recording]) -> None:
    r = recorded("depth_loss")
    depth = r["pred_depth_stride4"].clone().requires_grad_()
    extents = extents_of(r["gt_bitmasks_s4"])[r["gt_inds"]]
    loss = depth_loss(depth[:, 0], r["depth_stride4"][:, 0], r["im_inds"], extents)
    loss.backward()
    assert_value(loss, r["loss_ins_depth"])
    assert_gradient(depth.grad, r["grad_pred_depth"])


def test_depth_and_color_pairwise_in_one_pass(recorded: Callable[[str], Recording]) -> None:
    r = recorded("depth_pairwise")
    logits = r["mask_logits_s4"][:, 0]
    extents = extents_of(r["gt_bitmasks_s4"])[r["gt_inds"]]
    everywhere = torch.tensor([0, 48, 0, 64]).expand(8, 4)
    color = edges_from_similarity(r["color_similarity"], 0.3)
    depth = edges_from_similarity(r["depth_similarity"], 0.8)
    colored, inside, outside = pairwise_losses(
        logits, [color, depth, depth], r["im_inds"], [extents, extents, everywhere]
    )
    # The recording's warm-ups: colour min(t / 1000, 1), depth min((t − 1000) / 1000, 1).
    assert_value(colored * 0.5, r["loss_pairwise_iter500"])
    assert_value(colored, r["loss_pairwise_iter1500"])
    assert_value(inside * 0.5, r["loss_depth_pairwise_withbox_iter1500"])
    assert_value(outside * 0.5, r["loss_depth_pairwise_iter1500"])
    assert_value(outside, r["loss_depth_pairwise_iter3000"])
    assert_value(projection_loss(logits, extents), r["loss_prj"])


def test_reliable_dice(recorded: Callable[[str], Recording]) -> None:
    r = recorded("pseudo_dice")
    logits = r["mask_logits_s4"].clone().requires_grad_()
    boxes = extents_of(r["gt_bitmasks_s4"])
    loss = reliable_dice_loss(
        logits[:, 0],
        r["gt_inds"],
        r["pseudo_masks_s4"],
        r["pseudo_scores"],
        boxes,
        threshold=float(r["score_threshold"]),
    )
    loss.backward()
    assert_value(loss, r["loss_pseudo_masks"])
    assert_gradient(logits.grad, r["grad_mask_logits"])
