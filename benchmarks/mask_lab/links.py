"""How often links are right: the chain between a depth map and a mask, before any learning."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.mask_lab.crops import centred_views, cut_images, cut_inverse_depth, cut_masks
from benchmarks.mask_lab.scenes import SOURCES, Scenes
from benchmarks.mask_lab.supervision import colour_links, depth_links
from pipeline.synth import APPEARANCES
from segtrain.mask_grid.neighbours import HALF_DIRECTIONS, pair_slices


def draw_link_table(scenes: Scenes) -> str:
    """Markdown: share of pairs that are linked, both ends on the object, and across its border."""
    views = centred_views(scenes, 0.3)
    masks = cut_masks(scenes, views)
    lines = [
        "| links by | on objects: all | "
        + " | ".join(APPEARANCES)
        + " | across borders: all | "
        + " | ".join(APPEARANCES)
        + " | in the background |",
        "|---" * (4 + 2 * len(APPEARANCES)) + "|",
    ]
    groups = [np.ones(len(scenes.objects), bool)]
    groups += [scenes.objects[:, 6] == index for index in range(len(APPEARANCES))]
    for source in ("colour", *SOURCES):
        for kind in ("",) if source == "colour" else ("equal", "planar"):
            if kind:
                depth = cut_inverse_depth(scenes.inverse_depth_255(source), views)
                linked = depth_links(depth, kind)
            else:
                linked = colour_links(cut_images(scenes, views))
            counts = count_links(masks, linked).numpy()
            inside, across = (
                [counts[group, pair].sum(axis=0) for group in groups] for pair in (0, 1)
            )
            background = counts[:, 2].sum(axis=0)
            cells = [f"{kept / every:.0%}" for every, kept in [*inside, *across, background]]
            lines.append(f"| {source} {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def count_links(masks_IHW: torch.Tensor, links_I8HW: torch.Tensor) -> torch.Tensor:
    """(I, 3, 2): pairs on the object, across its border and outside; of these, the linked ones."""
    counts = torch.zeros(len(masks_IHW), 3, 2, dtype=torch.int64)
    for direction in HALF_DIRECTIONS:
        p, q = pair_slices(*masks_IHW.shape[1:], direction)
        first, second = masks_IHW[:, *p], masks_IHW[:, *q]
        linked = links_I8HW[:, direction, *p]
        for index, pairs in enumerate((first & second, first ^ second, ~first & ~second)):
            counts[:, index, 0] += pairs.sum((1, 2))
            counts[:, index, 1] += (pairs & linked).sum((1, 2))
    return counts
