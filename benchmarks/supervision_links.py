"""How often colour and depth are right about which neighbouring pixels belong together.

The pairwise terms of the method trust links: colour similarity of at least 0.3 (BoxInst), depth
similarity of at least τ = 0.5. On synthetic scenes the truth is known, so this counts, inside the
boxes, which share of pixel pairs is linked, which share of the links is right (both pixels on the
object or neither), and which share of the pairs across an object's border is linked wrongly; for
colour, for the demo depth model's depth and for true depth::

    python benchmarks/supervision_links.py --scenes 60 --size 384
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import cv2
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from pipeline.resources import demo_dpt_path
from pipeline.synth import Scene, render_scene
from segtrain.losses.colour import color_similarity
from segtrain.mask_grid.neighbours import (
    HALF_DIRECTIONS,
    neighbour_similarity,
    pair_slices,
)
from segtrain.mask_grid.validity import downsample_to_mask_grid

SEED = 900003  # neither the demo's scenes nor the depth model's
SCENE_SIZE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--size", type=int, default=384, help="pixels that pictures train at")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = AutoImageProcessor.from_pretrained(demo_dpt_path())
    model = AutoModelForDepthEstimation.from_pretrained(demo_dpt_path()).eval()
    counts: dict[tuple[str, str], torch.Tensor] = defaultdict(lambda: torch.zeros(5))
    for index in range(arguments.scenes):
        scene = render_scene(SEED, (SCENE_SIZE, SCENE_SIZE), index=index)
        with torch.inference_mode():
            predicted = model(**processor(images=scene.image, return_tensors="pt")).predicted_depth
        links = {
            "colour": link_by_colour(scene, arguments.size),
            "demo depth": link_by_depth(predicted[0].numpy(), arguments.size),
            "true depth": link_by_depth(scene.inverse_depth, arguments.size),
        }
        for mask, appearance in zip(scene.masks, scene.appearances, strict=True):
            for name, linked in links.items():
                found = count_links(mask, linked, arguments.size)
                counts[name, appearance] += found
                counts[name, "all"] += found
    print(f"{'links by':12} {'objects':12} linked  right  borders crossed")
    for (name, appearance), (pairs, kept, right, crossing, crossed) in sorted(counts.items()):
        print(
            f"{name:12} {appearance:12} {kept / pairs:6.1%} {right / kept:6.1%} "
            f"{crossed / crossing:8.1%}"
        )


def link_by_colour(scene: Scene, size: int) -> torch.Tensor:
    """(8, h, w) bool on the mask grid."""
    image = cv2.resize(scene.image[:, :, ::-1], (size, size), interpolation=cv2.INTER_LINEAR)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return color_similarity([pixels], [SCENE_SIZE], (size, size))[0] >= 0.3


def link_by_depth(inverse_depth: np.ndarray, size: int) -> torch.Tensor:
    """(8, h, w) bool on the mask grid, of the depth scaled to 0..255."""
    low, high = inverse_depth.min(), inverse_depth.max()
    scaled = ((inverse_depth - low) / (high - low) * 255).astype(np.float32)
    resized = cv2.resize(scaled, (size, size), interpolation=cv2.INTER_LINEAR)
    grid = downsample_to_mask_grid(torch.from_numpy(resized)[None], (size, size))
    return neighbour_similarity(grid[None], torch.ones(1, *grid.shape[1:]))[0] >= 0.5


def count_links(mask: np.ndarray, linked: torch.Tensor, size: int) -> torch.Tensor:
    """Pairs with their centre in the box, linked ones, right ones, pairs across the border, linked.

    Every unordered pair is seen from one of its ends.
    """
    enlarged = cv2.resize(mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)
    on_object = torch.from_numpy(enlarged[2::4, 2::4] > 0)
    if not on_object.any():
        return torch.zeros(5)
    rows, columns = torch.nonzero(on_object, as_tuple=True)
    in_box = torch.zeros_like(on_object)
    in_box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    total = torch.zeros(5)
    for direction in HALF_DIRECTIONS:
        p, q = pair_slices(*on_object.shape, direction)
        counted, is_linked = in_box[p], linked[direction][p]
        is_same = on_object[p] == on_object[q]
        total += torch.stack(
            [
                counted.sum(),
                (counted & is_linked).sum(),
                (counted & is_linked & is_same).sum(),
                (counted & ~is_same).sum(),
                (counted & ~is_same & is_linked).sum(),
            ]
        )
    return total


if __name__ == "__main__":
    main()
