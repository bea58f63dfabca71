"""The switches of the mask head and of its supervision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segtrain.modeling.dynamic_mask_head import DepthForm


@dataclass(kw_only=True)
class MaskSettings:
    """The mask head's switches.

    Attributes:
        channels: of the mask branch; 16 for BoxInst, 8 for CondInst.
        depth_layer: whether the head predicts depth too.
        depth_form: how depth guides the mask; Eq. 1 of arXiv 2403.01214 multiplies.
        masks_per_image: most positive locations of an image that are trained on masks; each box
            keeps its best ones.
        norm: of the mask branch, a name of detectron2's `get_norm`.
    """

    channels: int = 16
    depth_layer: bool = False
    depth_form: DepthForm = "multiply"
    masks_per_image: int = 64
    norm: str = "BN"


@dataclass(kw_only=True)
class LossSettings:
    """What supervises the masks.

    Attributes:
        supervision: "boxes"; "masks" (CondInst, the ceiling); "mixed" uses a mask where
            `gt_has_mask` says that the box has one.
        color: whether the colour term of BoxInst takes part.
        color_threshold: least colour similarity of an edge.
        depth_weight: λ_depth, with the depth layer.
        depth_warmup: whether λ_depth grows as the pairwise terms do. Eq. 6 holds it constant, which
            a long learning-rate warm-up forgives; in a short schedule the depth loss then closes
            the gate before the masks exist, and they stay empty (docs/training.md).
        consistency: whether the depth consistency term takes part.
        depth_threshold: τ, least depth similarity of an edge.
        consistency_inside_box_only: whether only edges whose centre is in the box count.
        warmup_iterations: the pairwise terms grow linearly until then.
        bottom_pixels_removed: rows of the original photo that colour ignores.
    """

    supervision: Literal["boxes", "masks", "mixed"] = "boxes"
    color: bool = True
    color_threshold: float = 0.3
    depth_weight: float = 1.0
    depth_warmup: bool = False
    consistency: bool = False
    depth_threshold: float = 0.5
    consistency_inside_box_only: bool = True
    warmup_iterations: int = 10_000
    bottom_pixels_removed: int = 10

    def __post_init__(self) -> None:
        for name in ("color_threshold", "depth_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
