"""Rows of the table: what the masks learn from.

Shape legend: I crops, H×W the mask grid, 8 neighbours.
"""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional as F

from benchmarks.mask_lab.crops import STRIDE
from segtrain.losses.colour import rgb_to_lab
from segtrain.losses.consistency import DepthLinks
from segtrain.losses.depth import depth_loss
from segtrain.losses.pairwise import edges_from_similarity, pairwise_losses
from segtrain.losses.projection import dice_distance, projection_loss
from segtrain.mask_grid.neighbours import neighbour_similarity

COLOUR_THRESHOLD = 0.3
DEPTH_THRESHOLD = 0.5


@dataclasses.dataclass(kw_only=True, frozen=True)
class Supervision:
    """One row.

    Attributes:
        title: in the table.
        masks: learn from masks instead of from boxes: the true ones (a ceiling), unless
        masks_of: … those that the network of another row draws on the training crops.
        colour_in_box: weight of the colour term with the centre pixel in the box.
        colour: weight of the colour term over the whole crop.
        consistency: weight of the depth consistency term.
        consistency_in_box: its edges have the centre pixel in the box.
        consistency_start: share of the run before it begins to grow.
        links: `equal` for |d_p − d_q|, `planar` for the second difference of inverse depth, which
            vanishes on every plane; both at most −2 ln τ of 255 levels.
        threshold: τ.
        colour_cut: colour links are dropped where depth is not planar.
        gate: the depth layer: off, multiply (Eq. 1), multiply_open (its bias starts at +3), add.
        source: one of `scenes.SOURCES`.
        depth_input: the network reads the depth.
    """

    title: str
    masks: bool = False
    masks_of: str = ""
    colour_in_box: float = 0.0
    colour: float = 0.0
    consistency: float = 0.0
    consistency_in_box: bool = False
    consistency_start: float = 0.0
    links: str = "equal"
    threshold: float = DEPTH_THRESHOLD
    colour_cut: bool = False
    gate: str = "off"
    source: str = "sensed"
    depth_input: bool = False


@dataclasses.dataclass(kw_only=True, frozen=True)
class Targets:
    """What a batch may learn from.

    Attributes:
        colour_links_I8HW: bool, see `colour_links`.
        inverse_depth_255_ISS: float32, of one source.
        masks_IHW: bool; only ceilings read them.
        extents_I4: cells that each box fills.
    """

    colour_links_I8HW: torch.Tensor
    inverse_depth_255_ISS: torch.Tensor
    masks_IHW: torch.Tensor
    extents_I4: torch.Tensor


def _row(title: str, **settings: object) -> Supervision:
    """Colour over the whole crop is what all rows but the first share."""
    return Supervision(**{"title": title, "colour": 1.0, **settings})  # type: ignore[arg-type]


def _paper(title: str, **settings: object) -> Supervision:
    """The paper's terms, or one of them changed: Tables 2(a) and (b) of arXiv 2403.01214."""
    terms = {"colour": 0.0, "colour_in_box": 1.0, "consistency": 1.0, "gate": "multiply"}
    return _row(title, **{**terms, **settings})


# What won on the scenes for choosing: slant-invariant links at four times the weight of colour,
# and colour links dropped where depth is not planar.
_CHOSEN = {"consistency": 4.0, "links": "planar", "colour_cut": True}

ROWS = {
    "boxinst": Supervision(title="BoxInst: colour, centre in the box", colour_in_box=1.0),
    "colour": _row("colour over the whole crop"),
    "control": _row("**control**: colour over the whole crop, twice", colour=2.0),
    "control_5": _row("control of equal weight: colour five times", colour=5.0),
    "masks": _row("ceiling: true masks", masks=True),
    "masks_input": _row("ceiling: true masks, sensed depth as input", masks=True, depth_input=True),
    "loss": _row("sensed depth as a loss, the paper's links", consistency=1.0),
    "loss_in_box": _row(
        "sensed depth as a loss, in the box only", consistency=1.0, consistency_in_box=True
    ),
    "loss_delayed": _row(
        "sensed depth as a loss, from half the run", consistency=1.0, consistency_start=0.5
    ),
    "loss_planar": _row(
        "sensed depth as a loss, slant-invariant links", consistency=1.0, links="planar"
    ),
    "loss_chosen": _row(
        "sensed depth as a loss, slant-invariant links that also cut colour, weight 4", **_CHOSEN
    ),
    "input": _row("sensed depth as input, colour twice", colour=2.0, depth_input=True),
    "both": _row(
        "sensed depth as loss (the paper's links) and input", consistency=1.0, depth_input=True
    ),
    "ours": _row("**sensed depth as loss and input**, those links", depth_input=True, **_CHOSEN),
    "second_phase": _row(
        "**picture only**, from the masks of that row", masks=True, masks_of="ours"
    ),
    "second_phase_control": _row(
        "picture only, from the masks of the control", masks=True, masks_of="control"
    ),
    "predicted": _row(
        "predicted depth as loss and input", depth_input=True, source="predicted", **_CHOSEN
    ),
    "predicted_loss": _row("predicted depth as a loss", source="predicted", **_CHOSEN),
    "predicted_input": _row(
        "predicted depth as input, colour twice", colour=2.0, source="predicted", depth_input=True
    ),
    "other_scene": _row(
        "depth of **another scene** as loss and input",
        depth_input=True,
        source="other_scene",
        **_CHOSEN,
    ),
    "noise_2": _row(
        "sensed depth with noise of 2 of 255 levels", depth_input=True, source="noise_2", **_CHOSEN
    ),
    "noise_4": _row(
        "sensed depth with noise of 4 levels", depth_input=True, source="noise_4", **_CHOSEN
    ),
    "noise_8": _row(
        "sensed depth with noise of 8 levels", depth_input=True, source="noise_8", **_CHOSEN
    ),
    "inverted": _row(
        "sensed depth with farther as larger", depth_input=True, source="inverted", **_CHOSEN
    ),
    "paper": _paper("the paper's terms: colour in the box, depth layer, consistency; sensed"),
    "gate_off": _paper("… without the depth layer", gate="off"),
    "layer": _paper("… without consistency", consistency=0.0),
    "gate_open": _paper("… the depth layer opened by a bias of 3", gate="multiply_open"),
    "gate_add": _paper("… the depth layer adds", gate="add"),
    "tau_03": _paper("… links from τ = 0.3", threshold=0.3),
    "tau_07": _paper("… links from τ = 0.7", threshold=0.7),
    "lambda_025": _paper("… consistency at a weight of 0.25", consistency=0.25),
    "lambda_05": _paper("… at 0.5", consistency=0.5),
    "lambda_2": _paper("… at 2", consistency=2.0),
    "lambda_4": _paper("… at 4", consistency=4.0),
}


def mask_losses(
    mask_logits_IHW: torch.Tensor,
    depth_logits_IHW: torch.Tensor,
    targets: Targets,
    row: Supervision,
    *,
    progress: float,
    warmup: float,
) -> dict[str, torch.Tensor]:
    """The row's losses.

    Args:
        mask_logits_IHW: log-odds, gated if the row says so.
        depth_logits_IHW: of the depth layer.
        targets: what they may learn from.
        row: which losses.
        progress: share of the run that is done, 0..1.
        warmup: share of the run over which pairwise terms grow to full weight.
    """
    if row.masks:
        target = targets.masks_IHW.to(mask_logits_IHW.dtype)
        return {
            "dice": dice_distance(mask_logits_IHW.sigmoid(), target).mean(),
            "cross_entropy": F.binary_cross_entropy_with_logits(mask_logits_IHW, target),
        }
    losses = {"projection": projection_loss(mask_logits_IHW, targets.extents_I4)}
    box, whole = targets.extents_I4, _whole_extents(mask_logits_IHW)
    colour = targets.colour_links_I8HW
    if row.colour_cut:
        colour = colour & depth_links(targets.inverse_depth_255_ISS, "planar")
    depth = depth_links(targets.inverse_depth_255_ISS, row.links, row.threshold)
    ramp = min(progress / warmup, 1.0)
    late = max(progress - row.consistency_start, 0.0)
    terms = [
        ("colour_in_box", row.colour_in_box * ramp, colour, box),
        ("colour", row.colour * ramp, colour, whole),
        (
            "consistency",
            row.consistency * min(late / warmup, 1.0),
            depth,
            box if row.consistency_in_box else whole,
        ),
    ]
    terms = [term for term in terms if term[1] > 0]
    if terms:
        names, weights, edges, extents = zip(*terms, strict=True)
        indices = torch.arange(len(mask_logits_IHW))
        values = pairwise_losses(mask_logits_IHW, edges, indices, extents)
        losses |= {n: w * v for n, w, v in zip(names, weights, values, strict=True)}
    if row.gate != "off":
        target = _on_mask_grid(targets.inverse_depth_255_ISS[:, None])[:, 0]
        indices = torch.arange(len(mask_logits_IHW))
        losses["depth"] = ramp * depth_loss(depth_logits_IHW.sigmoid(), target, indices, box)
    return losses


def gate_masks(
    mask_logits_IHW: torch.Tensor, depth_logits_IHW: torch.Tensor, gate: str
) -> torch.Tensor:
    """Mask logits after the depth layer; `multiply` is Eq. 1 of arXiv 2403.01214.

    Raises:
        ValueError: an unknown gate.
    """
    if gate == "off":
        return mask_logits_IHW
    if gate == "multiply":
        return mask_logits_IHW * depth_logits_IHW.sigmoid()
    if gate == "multiply_open":
        return mask_logits_IHW * (depth_logits_IHW + 3).sigmoid()
    if gate == "add":
        return mask_logits_IHW + depth_logits_IHW.sigmoid()
    raise ValueError(f"gate is {gate!r}; expected off, multiply, multiply_open or add")


def colour_links(images_I3SS: torch.Tensor) -> torch.Tensor:
    """(I, 8, H, W) bool: neighbours of similar colour, as in BoxInst; RGB in 0..255."""
    lab = rgb_to_lab(_on_mask_grid(images_I3SS).to(torch.uint8))
    return edges_from_similarity(
        neighbour_similarity(lab, torch.ones_like(lab[:, 0])), COLOUR_THRESHOLD
    )


def depth_links(
    inverse_depth_255_ISS: torch.Tensor, kind: str, threshold: float = DEPTH_THRESHOLD
) -> torch.Tensor:
    """(I, 8, H, W) bool: neighbours that are equally near, or that go on in one plane.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in ("equal", "planar"):
        raise ValueError(f"links is {kind!r}; expected equal or planar")
    depth = _on_mask_grid(inverse_depth_255_ISS[:, None])[:, 0]
    links = DepthLinks(threshold=threshold, slant_invariant=kind == "planar")
    return links.edges(depth, torch.ones_like(depth))


def _on_mask_grid(maps_ICSS: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(maps_ICSS, STRIDE)


def _whole_extents(logits_IHW: torch.Tensor) -> torch.Tensor:
    count, height, width = logits_IHW.shape
    return torch.tensor([[0, height, 0, width]]).repeat(count, 1)
