"""The method's supervision of masks: annotated masks, or boxes with colour and depth.

Shape legend: I mask instances, H×W the mask grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from segtrain.losses.annotated_masks import annotated_mask_loss
from segtrain.losses.colour import color_similarity
from segtrain.losses.consistency import DepthLinks
from segtrain.losses.depth import DepthPooling, depth_loss
from segtrain.losses.pairwise import edges_from_similarity, pairwise_losses
from segtrain.losses.projection import projection_loss
from segtrain.losses.supervision import MaskBatch, Supervision, clean_image, warm_up


@dataclass(kw_only=True)
class LossSettings:
    """What supervises the masks.

    Attributes:
        supervision: "boxes"; "masks" (CondInst, the ceiling); "mixed" uses a mask where
            `gt_has_mask` says that the box has one.
        color: whether the colour term of BoxInst takes part.
        color_threshold: least colour similarity of an edge.
        color_everywhere: colour a second time, over the whole map: the control that a claim about
            depth has to beat, since consistency links the background too.
        color_everywhere_weight: its weight beside w(t).
        color_cut_by_depth: whether colour links only neighbours that slant-invariant depth links
            too: what the laboratory of docs/notes/supervisions.md chose.
        depth_weight: λ_depth, with the depth layer.
        depth_warmup: whether λ_depth grows as the pairwise terms do. Eq. 6 holds it constant, which
            a long learning-rate warm-up forgives; in a short schedule the depth loss then closes
            the gate before the masks exist, and they stay empty (docs/training.md).
        depth_pooling: whether the depth loss is a mean over "pixel"s, or over "instance"s.
        consistency: whether the depth consistency term takes part.
        consistency_weight: its weight beside w(t).
        consistency_start: share of the run after which the consistency term's warm-up begins.
        consistency_inside_box_only: whether only edges whose centre is in the box count. Eq. 4
            names no box; inside one the term only ever grows the foreground of a confident mask.
        surroundings: how far around each box `color_everywhere` and consistency look, as a share of
            its sides; None is the whole map, of which an object is often a small part, so that the
            edges at its border hardly count.
        depth_threshold: τ, least depth similarity of an edge.
        slant_invariant: link along second differences of depth (`losses/consistency.py`).
        warmup_iterations: the pairwise terms grow linearly until then.
        total_iterations: of the run, for `consistency_start`.
        bottom_pixels_removed: rows of the original photo that colour ignores.
    """

    supervision: Literal["boxes", "masks", "mixed"] = "boxes"
    color: bool = True
    color_threshold: float = 0.3
    color_everywhere: bool = False
    color_everywhere_weight: float = 1.0
    color_cut_by_depth: bool = False
    depth_weight: float = 1.0
    depth_warmup: bool = False
    depth_pooling: DepthPooling = "pixel"
    consistency: bool = False
    consistency_weight: float = 1.0
    consistency_start: float = 0.0
    consistency_inside_box_only: bool = False
    surroundings: float | None = None
    depth_threshold: float = 0.5
    slant_invariant: bool = False
    warmup_iterations: int = 10_000
    total_iterations: int = 90_000
    bottom_pixels_removed: int = 10

    def __post_init__(self) -> None:
        for name in ("color_threshold", "depth_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if self.surroundings is not None and self.surroundings < 0:
            raise ValueError(
                f"surroundings must be null or a share of the box's sides, got {self.surroundings}"
            )
        if not 0 <= self.consistency_start <= 1:
            raise ValueError(
                f"consistency_start must be a share of the run in [0, 1], not iterations, got "
                f"{self.consistency_start}"
            )
        for name, allowed in (
            ("supervision", ("boxes", "masks", "mixed")),
            ("depth_pooling", ("pixel", "instance")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )


class MaskSupervision(Supervision):
    """Projection, colour, depth and consistency of boxes, and Dice where masks are annotated.

    Source: Eq. 6 of arXiv 2403.01214: L_proj + w(t)·L_color + λ_depth·L_depth +
    w(t)·L_consistency.
    """

    def __init__(self, settings: LossSettings) -> None:
        super().__init__(
            name=settings.supervision,
            reads_masks=settings.supervision != "boxes",
            links=DepthLinks(
                threshold=settings.depth_threshold, slant_invariant=settings.slant_invariant
            ),
        )
        self.settings = settings

    def needs_depth(self, *, predicts_depth: bool) -> bool:
        """With the depth loss, consistency or colour that depth cuts; not for masks alone."""
        settings = self.settings
        return settings.supervision != "masks" and (
            (predicts_depth and settings.depth_weight > 0)
            or settings.consistency
            or settings.color_cut_by_depth
        )

    def losses(self, masks: MaskBatch) -> dict[str, torch.Tensor]:
        """The terms that the settings switch on."""
        settings = self.settings
        losses: dict[str, torch.Tensor] = {}
        boxed = masks
        if settings.supervision != "boxes":
            losses["loss_mask"], boxed = annotated_mask_loss(masks, settings.supervision)
        if settings.supervision != "masks":
            losses["loss_proj"] = projection_loss(boxed.mask_logits, boxed.extents)
            losses |= self._pairwise_terms(boxed)
        if masks.depth is not None:
            losses["loss_depth"] = self._depth_term(masks, masks.depth)
        return losses

    def _pairwise_terms(self, masks: MaskBatch) -> dict[str, torch.Tensor]:
        """Colour and consistency terms, in one pass over the boxes."""
        settings = self.settings
        warmup = settings.warmup_iterations
        weight = warm_up(masks.iteration, warmup)
        around = masks.extents_around(settings.surroundings)
        terms: dict[str, tuple[float, torch.Tensor, torch.Tensor]] = {}
        if settings.color or settings.color_everywhere:
            similarity = color_similarity(
                [clean_image(entry).to(masks.device) for entry in masks.entries],
                [int(e.get("height", e["image"].shape[-2])) for e in masks.entries],
                masks.padded_size,
                settings.bottom_pixels_removed,
            )
            edges = edges_from_similarity(similarity, settings.color_threshold)
            if settings.color_cut_by_depth:
                planar = DepthLinks(threshold=settings.depth_threshold, slant_invariant=True)
                edges = edges & masks.depth_edges_of(planar)
            if settings.color:
                terms["loss_color"] = (weight, edges, masks.extents)
            if settings.color_everywhere:
                everywhere = settings.color_everywhere_weight * weight
                terms["loss_color_everywhere"] = (everywhere, edges, around)
        if settings.consistency:
            start = settings.consistency_start * settings.total_iterations
            terms["loss_consistency"] = (
                settings.consistency_weight * warm_up(masks.iteration, warmup, start),
                masks.depth_edges,
                masks.extents if settings.consistency_inside_box_only else around,
            )
        if not terms:
            return {}
        weights, all_edges, extents = zip(*terms.values(), strict=True)
        values = pairwise_losses(
            masks.mask_logits,
            all_edges,
            masks.image_indices,
            extents,
        )
        return {n: value * w for n, value, w in zip(terms, values, weights, strict=True)}

    def _depth_term(self, masks: MaskBatch, depth_IHW: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        if settings.supervision == "masks" or settings.depth_weight <= 0:
            return depth_IHW.sum() * 0.0
        weight = settings.depth_weight
        if settings.depth_warmup:
            weight *= warm_up(masks.iteration, settings.warmup_iterations)
        return weight * depth_loss(
            depth_IHW,
            masks.inverse_depth_255,
            masks.image_indices,
            masks.extents,
            settings.depth_pooling,
        )
