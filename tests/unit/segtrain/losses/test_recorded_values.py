"""Every recorded value, reproduced by the functions that training calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segtrain.distillation.teaching import reliable_dice_loss
from segtrain.losses.colour import color_similarity, rgb_to_lab
from segtrain.losses.depth import depth_loss
from segtrain.losses.detector import fcos_losses, offset_ious
from segtrain.losses.pairwise import (
    count_edges,
    edges_from_similarity,
    pairwise_losses,
)
from segtrain.losses.projection import projection_distances, projection_loss
from segtrain.mask_grid.bitmasks import draw_extents, filled_pixels, mask_grid_extents
from segtrain.mask_grid.neighbours import neighbour_similarity
from segtrain.mask_grid.upsampling import aligned_bilinear
from segtrain.mask_grid.validity import downsample_to_mask_grid, image_validity
from segtrain.modeling.dynamic_mask_head import (
    SIZES_OF_INTEREST,
    num_mask_parameters,
    run_dynamic_head,
)
from segtrain.modeling.fcos_targets import assign_targets, level_locations

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


def run_recorded_head(r: Recording, form: str | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The recording's masks and depth from its features and parameters, which get gradients."""
    return run_dynamic_head(
        r["mask_feats"].requires_grad_(),
        r["params"].requires_grad_(),
        r["locations"],
        torch.tensor(SIZES_OF_INTEREST)[r["fpn_levels"].long()],
        r["im_inds"].long(),
        depth_form=form,
    )


def recorded_boxes(r: Recording) -> torch.Tensor:
    """Extents of two images' boxes on the mask grid, checked against the recorded bitmaps."""
    boxes = torch.cat((r["gt_boxes_im0"], r["gt_boxes_im1"]))
    extents = mask_grid_extents(filled_pixels(boxes, (192, 256)))
    assert torch.equal(draw_extents(extents, (48, 64)), r["gt_bitmasks_s4"].bool())
    return extents


def test_aligned_bilinear(recorded: Callable[[str], Recording]) -> None:
    r = recorded("aligned_bilinear")
    for factor in (1, 2, 4, 8):
        assert_value(aligned_bilinear(r["input"], factor), r[f"out_f{factor}"])


def test_color_similarity(recorded: Callable[[str], Recording]) -> None:
    r = recorded("color_similarity")
    size, original_height = (192, 256), int(r["orig_height"])
    small = downsample_to_mask_grid(r["image_bgr_u8"], size).flip(0).to(torch.uint8)
    padded = downsample_to_mask_grid(r["padded_image_bgr_u8"], size).flip(0).to(torch.uint8)
    assert torch.equal(small, padded)
    assert torch.equal(small.permute(1, 2, 0), r["downsampled_rgb_u8"])
    assert_value(rgb_to_lab(small).permute(1, 2, 0), r["lab"], atol=1e-5)
    mask = image_validity((186, 248), original_height, size)
    assert torch.equal(mask, r["image_mask_full"].float())
    assert torch.equal(mask[2::4, 2::4], r["mask_s4"])
    similarity = color_similarity([r["image_bgr_u8"]], [original_height], size)
    assert_value(similarity, r["similarity"])
    # The sets of edges, which is what the loss uses, are equal.
    assert torch.equal(similarity >= 0.3, r["similarity"] >= 0.3)


def test_box_bitmasks(recorded: Callable[[str], Recording]) -> None:
    r = recorded("boxinst_bitmasks")
    size = tuple(r["padded_hw"].tolist())
    for image in (0, 1):
        pixels = filled_pixels(r[f"boxes{image}"], size)
        assert torch.equal(draw_extents(pixels, size), r[f"gt_bitmasks_full{image}"].bool())
        cells = draw_extents(mask_grid_extents(pixels), (32, 40))
        assert torch.equal(cells, r[f"gt_bitmasks{image}"].bool())
        height, width = r[f"image_size{image}"].tolist()
        mask = image_validity((height, width), int(r[f"orig_height{image}"]), size)
        assert torch.equal(mask, r["image_masks_full"][image].float())
        assert torch.equal(mask[2::4, 2::4], r["image_masks_s4"][image].float())


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


def test_projection_loss_of_scores(recorded: Callable[[str], Recording]) -> None:
    """Training passes logits; with scores as the leaf, the chain rule gives their gradient."""
    r = recorded("projection_loss")
    logits = r["mask_logits"].double().requires_grad_()
    scores = logits.sigmoid()
    scores.retain_grad()
    assert_value(scores, r["mask_scores"])
    loss = projection_loss(torch.logit(scores)[:, 0], extents_of(r["box_bitmasks"]))
    loss.backward()
    assert_value(loss, r["loss_f64"], atol=0)
    assert_gradient(scores.grad, r["grad_scores"])
    assert_gradient(logits.grad, r["grad_logits_f64"])


def test_pairwise_loss(recorded: Callable[[str], Recording]) -> None:
    r = recorded("pairwise_loss")
    logits = r["mask_logits"].clone().requires_grad_()
    edges = edges_from_similarity(r["similarity"], float(r["color_thresh"]))
    extents = extents_of(r["box_bitmasks"])
    image = torch.zeros(4, dtype=torch.int64)
    weights = edges & draw_extents(extents, (48, 64))[:, None]
    assert torch.equal(weights, r["weights"].bool())
    assert int(count_edges(edges, image, extents).sum()) == int(r["weights_sum"])
    (loss,) = pairwise_losses(logits[:, 0], [edges], image, [extents])
    loss.backward()
    assert_value(loss, r["loss"])
    assert_value(loss, r["loss_f64"])
    assert_gradient(logits.grad, r["grad_logits"])
    assert_gradient(logits.grad, r["grad_logits_f64"])


def test_pairwise_map(recorded: Callable[[str], Recording]) -> None:
    """Training keeps no map, so it is compared by its mean over tiles, in each direction."""
    r = recorded("pairwise_loss")
    logits, image = r["mask_logits"][:, 0], torch.zeros(1, dtype=torch.int64)
    for direction in range(8):
        edges = torch.zeros(1, 8, 48, 64, dtype=torch.bool)
        edges[:, direction] = True
        for instance, row, column in np.ndindex(4, 4, 4):
            r0, c0 = 12 * row, 16 * column
            tile = torch.tensor([[r0, r0 + 12, c0, c0 + 16]])
            (mean,) = pairwise_losses(logits[instance : instance + 1], [edges], image, [tile])
            recorded_tile = r["pairwise_map"][instance, direction, r0 : r0 + 12, c0 : c0 + 16]
            assert_value(mean, recorded_tile.double().mean())


@pytest.mark.parametrize("channels", [8, 16])
def test_dynamic_mask_head(recorded: Callable[[str], Recording], channels: int) -> None:
    r = {
        k.split("_", 1)[1]: v
        for k, v in recorded("dynamic_mask_head").items()
        if k.startswith(f"c{channels}_")
    }
    assert r["sizes_of_interest"].tolist() == list(SIZES_OF_INTEREST)
    num_parameters = int(r["weight_nums"].sum() + r["bias_nums"].sum())
    assert num_mask_parameters(channels, depth_layer=False) == num_parameters
    logits, depth = run_recorded_head(r, None)
    assert depth is None
    logits.backward(r["grad_out"][:, 0])
    assert_value(logits[:, None], r["logits_stride4"], atol=1e-5)
    assert_gradient(r["mask_feats"].grad, r["grad_mask_feats"])
    assert_gradient(r["params"].grad, r["grad_params"])


@pytest.mark.parametrize("form", ["multiply", "add"])
def test_depth_guided_head(recorded: Callable[[str], Recording], form: str) -> None:
    r = recorded("dg_mask_head")
    assert r["sizes_of_interest"].tolist() == list(SIZES_OF_INTEREST)
    num_parameters = int(r["weight_nums"].sum() + r["bias_nums"].sum())
    assert num_mask_parameters(16, depth_layer=True) == num_parameters
    logits, depth = run_recorded_head(r, form)
    assert depth is not None
    (
        (logits * r["grad_out_mask"][:, 0]).sum() + (depth * r["grad_out_depth"][:, 0]).sum()
    ).backward()
    assert_value(logits[:, None], r[f"{form}_mask_logits_stride4"], atol=1e-5)
    assert_value(depth[:, None], r[f"{form}_depth_stride4"])
    assert_gradient(r["mask_feats"].grad, r[f"{form}_grad_mask_feats"])
    assert_gradient(r["params"].grad, r[f"{form}_grad_params"])


@pytest.mark.parametrize("centre", ["box_center", "bitmask_center"])
def test_fcos_targets(recorded: Callable[[str], Recording], centre: str) -> None:
    r = recorded("fcos_targets")
    sizes = [(60, 84), (30, 42), (15, 21), (8, 11), (4, 6)]
    assert [height * width for height, width in sizes] == r["level_sizes"].tolist()
    locations = [level_locations(h, w, s) for (h, w), s in zip(sizes, STRIDES, strict=True)]
    assert torch.equal(torch.cat(locations), r["locations"])
    targets = assign_targets(
        sizes,
        [r["gt_boxes0"], r["gt_boxes1"], torch.zeros(0, 4)],
        [r["gt_classes0"], r["gt_classes1"], torch.zeros(0, dtype=torch.int64)],
        num_classes=80,
        padded_size=tuple(r["padded_hw"].tolist()),
        centre_on_bitmask=centre == "bitmask_center",
    )
    assert len(targets.labels) == int(r["num_images"]) * len(r["locations"])
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
        padded_size=tuple(r["padded_hw"].tolist()),
        centre_on_bitmask=False,
    )
    assert torch.equal(targets.positives, r["pos_inds"])
    assert torch.equal(targets.labels[targets.positives], r["pos_labels"])
    assert torch.equal(targets.box_indices[targets.positives], r["pos_gt_inds"])
    assert torch.equal(targets.image_indices, r["pos_im_inds"])
    assert torch.equal(targets.levels, r["pos_fpn_levels"])
    assert torch.equal(targets.locations, r["pos_locations"])
    assert_value(targets.offsets, r["pos_reg_targets"])
    assert_value(targets.centerness, r["pos_ctrness_targets"])
    assert_value(targets.centerness.sum(), r["loss_denorm"])
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
    padded = downsample_to_mask_grid(r["depth_padded_u8"][None], (192, 256))
    assert torch.equal(padded, depth)
    assert_value(neighbour_similarity(depth[None], r["image_mask_s4"][None]), r["similarity"])


def test_depth_loss(recorded: Callable[[str], Recording]) -> None:
    r = recorded("depth_loss")
    pseudo = torch.stack(
        [downsample_to_mask_grid(r[f"depth_u8_im{image}"][None], (192, 256)) for image in (0, 1)]
    )
    assert_value(pseudo, r["depth_stride4"])
    _, depth = run_recorded_head(r, "multiply")
    assert depth is not None
    depth.retain_grad()
    assert_value(depth[:, None], r["pred_depth_stride4"])
    extents = recorded_boxes(r)[r["gt_inds"]]
    loss = depth_loss(depth, r["depth_stride4"][:, 0], r["im_inds"], extents)
    loss.backward()
    assert_value(loss, r["loss_ins_depth"])
    assert depth.grad is not None
    assert_gradient(depth.grad[:, None], r["grad_pred_depth"])
    assert_gradient(r["mask_feats"].grad, r["grad_mask_feats"])
    assert_gradient(r["params"].grad, r["grad_params"])


def test_depth_and_color_pairwise_in_one_pass(recorded: Callable[[str], Recording]) -> None:
    r = recorded("depth_pairwise")
    with torch.no_grad():
        logits, _ = run_recorded_head(r, "multiply")
    assert_value(logits[:, None], r["mask_logits_s4"], atol=1e-5)
    extents = recorded_boxes(r)[r["gt_inds"]]
    everywhere = torch.tensor([0, 48, 0, 64]).expand(8, 4)
    color = edges_from_similarity(r["color_similarity"], float(r["color_thresh"]))
    depth = edges_from_similarity(r["depth_similarity"], float(r["depth_sim_thresh"]))
    colored, inside, outside = pairwise_losses(
        logits, [color, depth, depth], r["im_inds"], [extents, extents, everywhere]
    )
    assert int(r["warmup_iters"]) == 1000
    # The recording's warm-ups: colour min(t / 1000, 1), depth min((t − 1000) / 1000, 1).
    assert_value(colored * 0.5, r["loss_pairwise_iter500"])
    assert_value(colored, r["loss_pairwise_iter1500"])
    assert_value(inside * 0.5, r["loss_depth_pairwise_withbox_iter1500"])
    assert_value(outside * 0.5, r["loss_depth_pairwise_iter1500"])
    assert_value(outside, r["loss_depth_pairwise_iter3000"])
    assert_value(projection_loss(logits, extents), r["loss_prj"])


def test_reliable_dice(recorded: Callable[[str], Recording]) -> None:
    r = recorded("pseudo_dice")
    logits, _ = run_recorded_head(r, "multiply")
    assert_value(logits[:, None], r["mask_logits_s4"], atol=1e-5)
    logits.retain_grad()
    boxes = recorded_boxes(r)
    loss = reliable_dice_loss(
        logits,
        r["gt_inds"],
        r["pseudo_masks_s4"],
        r["pseudo_scores"],
        boxes,
        threshold=float(r["score_threshold"]),
    )
    loss.backward()
    assert_value(loss, r["loss_pseudo_masks"])
    assert logits.grad is not None
    assert_gradient(logits.grad[:, None], r["grad_mask_logits"])
    for index, expected in enumerate(r["dice_per_pred"]):
        one = slice(index, index + 1)
        every_score = reliable_dice_loss(
            logits[one], r["gt_inds"][one], r["pseudo_masks_s4"], r["pseudo_scores"], boxes,
            threshold=0.0,
        )  # fmt: skip
        assert_value(every_score, expected)
