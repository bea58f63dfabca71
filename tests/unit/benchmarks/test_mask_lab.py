"""The laboratory at a tiny size: it learns, repeats itself, resumes and counts right."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.mask_lab.__main__ import main
from benchmarks.mask_lab.crops import (
    GRID,
    box_extents,
    cut_images,
    cut_inverse_depth,
    cut_masks,
    draw_views,
)
from benchmarks.mask_lab.experiment import (
    BASELINES,
    Laboratory,
    Schedule,
    measure,
    true_mask_in_box,
)
from benchmarks.mask_lab.links import count_links
from benchmarks.mask_lab.picture import draw_gain
from benchmarks.mask_lab.scenes import SOURCES, Scenes, load_scenes
from benchmarks.mask_lab.supervision import (
    ROWS,
    Targets,
    colour_links,
    depth_links,
    gate_masks,
    mask_losses,
)
from benchmarks.mask_lab.table import draw_table
from segtrain.mask_grid.neighbours import NEIGHBOUR_OFFSETS

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Schedule(iterations=4, batch=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def scenes(folder: Path) -> Scenes:
    return load_scenes(folder / "scenes", "choose", 3)


@pytest.fixture(scope="module")
def targets(scenes: Scenes) -> Targets:
    views = draw_views(np.random.default_rng(0), scenes, 1)
    return Targets(
        colour_links_I8HW=colour_links(cut_images(scenes, views)),
        inverse_depth_255_ISS=cut_inverse_depth(scenes.sensed_SHW, views),
        masks_IHW=cut_masks(scenes, views),
        extents_I4=box_extents(views),
    )


def test_crops_hold_the_box_where_the_extents_say(scenes: Scenes) -> None:
    plain = draw_views(np.random.default_rng(0), scenes, 2)
    plain = dataclasses.replace(plain, flips_I=np.zeros(len(plain), bool))
    flipped = dataclasses.replace(plain, flips_I=np.ones(len(plain), bool))
    masks, extents = cut_masks(scenes, plain), box_extents(plain)
    for mask, (r0, r1, c0, c1) in zip(masks, extents.tolist(), strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert abs(int(rows.min()) - r0) <= 1
        assert abs(int(rows.max()) + 1 - r1) <= 1
        assert abs(int(columns.min()) - c0) <= 1
        assert abs(int(columns.max()) + 1 - c1) <= 1
    assert torch.equal(cut_masks(scenes, flipped), masks.flip(2))
    assert torch.equal(
        cut_inverse_depth(scenes.sensed_SHW, flipped),
        cut_inverse_depth(scenes.sensed_SHW, plain).flip(2),
    )
    assert (box_extents(flipped)[:, 2] - (GRID - extents[:, 3])).abs().max() <= 1


def test_scenes_are_kept_and_every_source_is_a_map(folder: Path, scenes: Scenes) -> None:
    again = load_scenes(folder / "scenes", "choose", 3)
    for field in dataclasses.fields(Scenes):
        assert np.array_equal(getattr(again, field.name), getattr(scenes, field.name))
    maps = {source: scenes.inverse_depth_255(source) for source in SOURCES}
    assert np.allclose(maps["inverted"] + maps["sensed"], 255)
    noise = [np.std(maps[f"noise_{level}"] - maps["sensed"]) / level for level in (2, 4, 8)]
    assert 0.5 < min(noise) <= max(noise) < 1
    with pytest.raises(ValueError, match="radar"):
        scenes.inverse_depth_255("radar")


def test_planar_links_hold_on_planes_and_break_at_steps() -> None:
    rows = torch.arange(96.0)[:, None]
    depth = (2 * rows).repeat(1, 96)
    depth[:, 48:] += 40
    depth = depth[None]
    planar, equal = depth_links(depth, "planar")[0], depth_links(depth, "equal")[0]
    down, right = NEIGHBOUR_OFFSETS.index((2, 0)), NEIGHBOUR_OFFSETS.index((0, 2))
    assert planar[down, 4:40].all()
    assert not equal[down, 4:40].any()
    for links in (planar, equal):
        assert not links[right, :, 22:24].any()
        assert links[right, 4:40, 4:20].all()
        assert not links[down, 46:].any()
        assert not links[right, :, 46:].any()
    with pytest.raises(ValueError, match="round"):
        depth_links(depth, "round")


@pytest.mark.parametrize("name", list(ROWS))
def test_every_row_has_finite_losses_and_reaches_the_masks(name: str, targets: Targets) -> None:
    torch.manual_seed(0)
    logits = torch.randn(targets.masks_IHW.shape, requires_grad=True)
    depth_logits = torch.randn(targets.masks_IHW.shape, requires_grad=True)
    gated = gate_masks(logits, depth_logits, ROWS[name].gate)
    losses = mask_losses(gated, depth_logits, targets, ROWS[name], progress=1.0, warmup=0.4)
    sum(losses.values()).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0
    assert (depth_logits.grad is not None) == (ROWS[name].gate != "off")
    if ROWS[name].masks:
        assert set(losses) == {"dice", "cross_entropy"}
    else:
        assert "projection" in losses


def test_depth_does_not_reach_a_row_without_it_and_masks_not_a_row_of_boxes(
    targets: Targets,
) -> None:
    logits = torch.randn(targets.masks_IHW.shape)

    def losses_of(name: str, **changes: torch.Tensor) -> float:
        changed = dataclasses.replace(targets, **changes)
        return float(
            sum(mask_losses(logits, logits, changed, ROWS[name], progress=1, warmup=1).values())
        )

    other_depth = {"inverse_depth_255_ISS": torch.rand_like(targets.inverse_depth_255_ISS) * 255}
    other_masks = {"masks_IHW": ~targets.masks_IHW}
    assert losses_of("control") == losses_of("control", **other_depth)
    assert losses_of("loss") != losses_of("loss", **other_depth)
    assert losses_of("loss") == losses_of("loss", **other_masks)
    assert losses_of("masks") != losses_of("masks", **other_masks)


def test_links_are_counted_as_a_loop_counts_them() -> None:
    rng = np.random.default_rng(0)
    links = torch.from_numpy(rng.uniform(size=(1, 8, 5, 6)) < 0.5)
    masks = torch.from_numpy(rng.uniform(size=(1, 5, 6)) < 0.5)
    expected = np.zeros((3, 2), int)
    for direction in (4, 5, 6, 7):
        dy, dx = NEIGHBOUR_OFFSETS[direction]
        for y in range(5):
            for x in range(6):
                if 0 <= y + dy < 5 and 0 <= x + dx < 6:
                    both = (bool(masks[0, y, x]), bool(masks[0, y + dy, x + dx]))
                    kind = {(True, True): 0, (False, False): 2}.get(both, 1)
                    expected[kind] += (1, int(links[0, direction, y, x]))
    assert np.array_equal(count_links(masks, links)[0].numpy(), expected)


def test_the_truth_has_iou_one_and_the_filled_box_its_fill(scenes: Scenes) -> None:
    truth = [true_mask_in_box(scenes, item) for item in scenes.objects]
    assert set(measure(scenes, truth).values()) == {1.0}
    filled = measure(scenes, BASELINES["filled_box"](scenes))
    assert filled["all"] == pytest.approx(np.mean([mask.mean() for mask in truth]))


def test_a_run_repeats_itself_and_its_network_is_drawn(scenes: Scenes, tmp_path: Path) -> None:
    laboratory = Laboratory(scenes, scenes, num_views=1)
    rows = ("both", "both", "masks", "second_phase_control")
    weights = [tmp_path / f"{number}.pt" for number in range(len(rows))]
    results = [
        laboratory.run(ROWS[row], TINY, 0, file) for row, file in zip(rows, weights, strict=True)
    ]
    assert results[0]["iou"] == results[1]["iou"]
    assert results[0]["iou"] != results[2]["iou"]
    assert results[2]["losses"] != results[3]["losses"]  # the true masks, and a network's
    drawn = draw_gain(
        scenes,
        {"both": weights[0], "masks": weights[2]},
        {"both": "a", "masks": "b"},
        quantiles=(0.0, 1.0),
    )
    assert drawn.shape == (24 + 2 * 256 + 4, 5 * 256 + 4 * 4, 3)


def test_the_command_resumes_and_the_table_pairs_seeds(
    folder: Path, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_NO_REEXEC", "1")
    shutil.copy(folder / "scenes" / "choose-3.npz", folder / "scenes" / "train-3.npz")
    common = ["--output", str(folder), "--num-scenes", "3", "--split", "choose"]
    run = ["run", *common, "--rows", "filled_box", "control", "--seeds", "0"]
    for _ in range(2):
        main([*run, "--iterations", "2", "--batch", "2"])
    file = folder / "results.jsonl"
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    assert [run["row"] for run in runs] == ["filled_box", "control"]
    better = {
        **runs[1],
        "row": "loss",
        "iou": {**runs[1]["iou"], "all": runs[1]["iou"]["all"] + 0.1},
    }
    table = draw_table([*runs, better]).splitlines()
    assert ["+" in line for line in table[2:]] == [False, False, True]
    assert table[-1].endswith("| **+.100** (+.100) |")
