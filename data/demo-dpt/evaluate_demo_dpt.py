"""Measure the demo depth model on held-out scenes and write the numbers into its model card.

Run it from the checkout::

    python data/demo-dpt/evaluate_demo_dpt.py

It goes the way that users go (`AutoModelForDepthEstimation`, `AutoImageProcessor`), on scenes of a
seed that neither training nor the demo uses, of the demo's kind and of the miniature's, and writes
`metrics.json` and the table of `README.md`, both as measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import binary_erosion, gaussian_filter
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from benchmarks.supervision_links import count_links, link_by_depth
from pipeline.synth import APPEARANCES, PRESETS, Scene, render_scene

HELD_OUT_SEED = 900002
_REACH = 2  # pixels to either side of a border within which the predicted step must happen
_MIN_STEP = 0.02  # of the picture's range of inverse depth
_LINK_SIZE = 384  # pixels of a picture's side, of whose mask grid the links are counted
_SUPPORTS = ("standing", "floating")
_PARTS = ("true borders, predicted heights", "predicted borders, true heights")
_CORE = 3  # pixels that an object's core is away from its border
_SMOOTHING = 8.0  # pixels; of the background's error, carried on to its borders
_TABLE_START, _TABLE_END = "<!-- measured: start -->", "<!-- measured: end -->"


@dataclasses.dataclass(kw_only=True)
class Measured:
    """What held-out scenes of one kind show; means over pictures unless said otherwise.

    Attributes:
        num_scenes: pictures measured.
        abs_rel: mean |d' - d| / d, d depth in metres, d' its aligned prediction.
        delta_125: share of pixels with max(d'/d, d/d') < 1.25.
        boundary_recall: share of the true border's pixel pairs where the prediction steps too,
            over all pictures.
        boundary_recall_by_appearance: the same per way of painting.
        boundary_recall_by_support: the same of objects on the floor, whose place in the picture
            says how far they are, and of those in the air, whose place and size do not.
        boundary_recall_by_part: the same of `recombine`'s two maps: true borders with heights as
            predicted, and borders as predicted with true heights.
        num_boundary_pairs: how many pairs that is.
        false_step_share: share of pixel pairs far from borders where the prediction steps though
            the truth does not.
        border_link_share: of the pairs of mask-grid neighbours in a box of which one is on the
            object and one is not, the share that depth consistency links (`supervision_links`).
        border_link_share_by_appearance: the same per way of painting.
        inner_link_share: of the other pairs in the box, the share that it links: noise alone cuts
            the links across borders, and these too.
    """

    num_scenes: int
    abs_rel: float
    delta_125: float
    boundary_recall: float
    boundary_recall_by_appearance: dict[str, float]
    boundary_recall_by_support: dict[str, float]
    boundary_recall_by_part: dict[str, float]
    num_boundary_pairs: int
    false_step_share: float
    border_link_share: float
    border_link_share_by_appearance: dict[str, float]
    inner_link_share: float


def main() -> None:
    """Measure, print, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parent)
    parser.add_argument("--num-scenes", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured = {
        preset: evaluate(arguments.model, arguments.num_scenes, preset=preset) for preset in PRESETS
    }
    text = json.dumps({name: dataclasses.asdict(part) for name, part in measured.items()}, indent=2)
    print(text)
    (arguments.model / "metrics.json").write_text(text + "\n")
    card = arguments.model / "README.md"
    if card.is_file():
        card.write_text(fill_card(card.read_text(), measured))


def evaluate(model_folder: Path, num_scenes: int, *, preset: str = "rooms") -> Measured:
    """Predict `num_scenes` held-out scenes of 256 × 256 pixels and compare with the truth."""
    processor = AutoImageProcessor.from_pretrained(model_folder)
    model = AutoModelForDepthEstimation.from_pretrained(model_folder, dtype=torch.float32).eval()
    abs_rel, delta = [], []
    recovered: dict[str, list[npt.NDArray[np.bool_]]] = defaultdict(list)
    links: dict[str, Any] = defaultdict(lambda: torch.zeros(5))
    false_steps, flat_pairs = 0, 0
    for index in range(num_scenes):
        scene = render_scene(HELD_OUT_SEED, (256, 256), index=index, settings=PRESETS[preset])
        inputs = processor(images=scene.image, return_tensors="pt")
        with torch.inference_mode():
            predicted = model(**inputs).predicted_depth
        resized = functional.interpolate(
            predicted[:, None], size=scene.image.shape[:2], mode="bilinear", align_corners=False
        )
        aligned = align_scale_and_shift(resized[0, 0].numpy(), scene.inverse_depth)
        # A prediction at or behind infinity counts as twice the farthest true depth.
        depth = 1 / np.maximum(aligned, 0.5 * scene.inverse_depth.min())
        abs_rel.append(float(np.mean(np.abs(depth - scene.depth_metres) / scene.depth_metres)))
        ratio = np.maximum(depth / scene.depth_metres, scene.depth_metres / depth)
        delta.append(float((ratio < 1.25).mean()))
        linked = link_by_depth(predicted[0].numpy(), _LINK_SIZE)
        parts = dict(zip(_PARTS, recombine(scene, aligned), strict=True))
        for number, name in enumerate(scene.appearances):
            solid, found = scene.solids[number], recovered_border(scene, aligned, number)
            is_floating = float(solid.centre[1]) > solid.half_height + 0.01
            recovered[name].append(found)
            recovered[_SUPPORTS[is_floating]].append(found)
            for name_of_part, part in parts.items():
                recovered[name_of_part].append(recovered_border(scene, part, number))
            links[name] += count_links(scene.masks[number], linked, _LINK_SIZE)
        num_false, num_flat = count_false_steps(scene, aligned)
        false_steps, flat_pairs = false_steps + num_false, flat_pairs + num_flat
    together = np.concatenate([part for name in _SUPPORTS for part in recovered[name]])
    recalls = {
        name: round(float(np.concatenate(parts).mean()), 4)
        for name, parts in sorted(recovered.items())
        if parts
    }
    links["all"] = torch.stack(list(links.values())).sum(0)
    link_shares = {
        name: round(float(crossed / crossing.clamp(min=1)), 4)
        for name, (_, _, _, crossing, crossed) in sorted(links.items())
    }
    pairs, _, right, crossing, _ = links["all"]
    return Measured(
        num_scenes=num_scenes,
        abs_rel=round(float(np.mean(abs_rel)), 4),
        delta_125=round(float(np.mean(delta)), 4),
        boundary_recall=round(float(together.mean()), 4),
        boundary_recall_by_appearance={k: v for k, v in recalls.items() if k in APPEARANCES},
        boundary_recall_by_support={k: v for k, v in recalls.items() if k in _SUPPORTS},
        boundary_recall_by_part={k: recalls[k] for k in _PARTS},
        num_boundary_pairs=int(together.size),
        false_step_share=round(false_steps / flat_pairs, 4),
        border_link_share=link_shares.pop("all"),
        border_link_share_by_appearance=link_shares,
        inner_link_share=round(float(right / (pairs - crossing)), 4),
    )


def align_scale_and_shift(
    predicted: npt.NDArray[np.float32], target: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Least-squares scale and shift of (H, W) `predicted` onto `target`, both inverse depth."""
    p, t = predicted.astype(np.float64), target.astype(np.float64)
    variance = ((p - p.mean()) ** 2).mean()
    scale = ((p - p.mean()) * (t - t.mean())).mean() / max(variance, 1e-12)
    return (p - p.mean()) * scale + t.mean()


def recovered_border(
    scene: Scene, aligned: npt.NDArray[np.float64], number: int
) -> npt.NDArray[np.bool_]:
    """For each pixel pair across an object's border where depth truly steps: is the step found?

    Found means that over the pair and `_REACH` more pixels to either side the prediction changes
    in the same direction by at least half of the true step. Pairs where the truth steps by less
    than 2 % of the picture's range (an object meeting the floor) do not count.
    """
    mask, found = scene.masks[number], []
    least = _MIN_STEP * float(np.ptp(scene.inverse_depth))
    for turned in (False, True):
        m, truth, guess = (
            part.T if turned else part for part in (mask, scene.inverse_depth, aligned)
        )
        width = m.shape[1]
        inner = slice(_REACH, width - 1 - _REACH)
        step = truth[:, 1:] - truth[:, :-1]
        counts = (m[:, 1:] ^ m[:, :-1]) & (np.abs(step) >= least)
        span = guess[:, 1 + 2 * _REACH :] - guess[:, : width - 1 - 2 * _REACH]
        counts, step = counts[:, inner], step[:, inner]
        found.append((span[counts] * np.sign(step[counts])) >= 0.5 * np.abs(step[counts]))
    return np.concatenate(found)


def recombine(
    scene: Scene, aligned: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What the prediction would be if only its heights, or only its borders, were wrong.

    An object's height is the median error in its core; the background's error varies, so it is
    carried on from the background's core by smoothing.

    Returns:
        True borders with heights as predicted, and borders as predicted with true heights.
    """
    error = aligned - scene.inverse_depth
    background = ~np.any(scene.masks, axis=0)
    core = _core(background).astype(np.float64)
    carried = gaussian_filter(core * error, _SMOOTHING)
    carried /= np.maximum(gaussian_filter(core, _SMOOTHING), 1e-6)
    of_heights, of_borders = scene.inverse_depth + carried, aligned.copy()
    for mask in scene.masks:
        if mask.any():
            height = float(np.median(error[_core(mask)]))
            of_heights[mask] = scene.inverse_depth[mask] + height
            of_borders[mask] -= height
    return of_heights, of_borders


def _core(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels further than `_CORE` from the border; all of a mask that has none."""
    core: npt.NDArray[np.bool_] = binary_erosion(mask, iterations=_CORE)
    return core if core.any() else mask


def count_false_steps(scene: Scene, aligned: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Pairs at least 6 pixels from any border: (those with a step the truth has not, all)."""
    owner = np.zeros(scene.depth_metres.shape, np.int64)
    for number, mask in enumerate(scene.masks):
        owner[mask] = number + 1
    least = _MIN_STEP * float(np.ptp(scene.inverse_depth))
    num_false = num_flat = 0
    span = 1 + 2 * _REACH
    for turned in (False, True):
        o, truth, guess = (
            part.T if turned else part for part in (owner, scene.inverse_depth, aligned)
        )
        border = np.zeros(o.shape, np.bool_)
        border[:, 1:] |= o[:, 1:] != o[:, :-1]
        border[1:] |= o[1:] != o[:-1]
        near = functional.max_pool2d(torch.from_numpy(border.astype(np.float32))[None], 13, 1, 6)
        far = ~near[0].numpy().astype(bool)
        pairs = far[:, span:] & far[:, :-span]
        difference = (guess[:, span:] - guess[:, :-span]) - (truth[:, span:] - truth[:, :-span])
        num_false += int((np.abs(difference)[pairs] >= least).sum())
        num_flat += int(pairs.sum())
    return num_false, num_flat


def fill_card(card: str, measured: Mapping[str, Measured]) -> str:
    """The model card with its table replaced by what was measured, one column per kind of scene.

    Raises:
        ValueError: the card has lost the markers of the table.
    """
    if _TABLE_START not in card or _TABLE_END not in card:
        raise ValueError(f"the model card needs the lines {_TABLE_START} and {_TABLE_END}")
    parts = list(measured.values())
    rows = [
        ("abs-rel", [f"{part.abs_rel:.3f}" for part in parts], "at most 0.07"),
        ("δ < 1.25", [f"{part.delta_125:.3f}" for part in parts], "at least 0.90"),
        (
            "true borders recovered",
            [f"{part.boundary_recall:.1%}" for part in parts],
            "70%, 40% of camouflaged",
        ),
    ]
    rows += _rows_by_group([part.boundary_recall_by_appearance for part in parts], APPEARANCES)
    rows += _rows_by_group([part.boundary_recall_by_support for part in parts], _SUPPORTS)
    rows += [
        (f"… if it had {name}", [f"{part.boundary_recall_by_part[name]:.1%}" for part in parts], "")
        for name in _PARTS
    ]
    false_steps = [f"{part.false_step_share:.2%}" for part in parts]
    rows.append(("false steps away from borders", false_steps, ""))
    link_shares = [f"{part.border_link_share:.1%}" for part in parts]
    rows.append(("neighbours linked across borders", link_shares, "at most 8%"))
    rows += _rows_by_group([part.border_link_share_by_appearance for part in parts], APPEARANCES)
    inner_shares = [f"{part.inner_link_share:.1%}" for part in parts]
    rows.append(("neighbours linked elsewhere in the box", inner_shares, ""))
    table = [f"| measure | {' | '.join(measured)} | goal |", "| --- " * (len(parts) + 2) + "|"]
    table += [f"| {name} | {' | '.join(values)} | {goal} |" for name, values, goal in rows]
    intro = (
        f"On {parts[0].num_scenes} held-out scenes of each kind (seed {HELD_OUT_SEED}, 256 × 256 "
        "pixels; `pipeline data synth --preset`):"
    )
    before, rest = card.split(_TABLE_START)
    after = rest.split(_TABLE_END)[1]
    return "\n".join([before + _TABLE_START, intro, "", *table, _TABLE_END + after])


def _rows_by_group(
    shares: list[dict[str, float]], groups: Sequence[str]
) -> list[tuple[str, list[str], str]]:
    return [
        (f"… of {name} objects", [f"{part[name]:.1%}" for part in shares], "")
        for name in groups
        if all(name in part for part in shares)
    ]


if __name__ == "__main__":
    main()
