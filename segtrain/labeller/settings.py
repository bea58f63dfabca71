"""What the labeller is made of and how it adapts to boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segtrain.errors import TrainingConfigError

Depth = Literal["off", "loss", "input", "both"]


@dataclass(frozen=True, kw_only=True)
class LabellerSettings:
    """Adaptation of the labeller to boxes.

    Attributes:
        depth: what depth is used for: nothing, the consistency term, a hint to the network, both.
        crop_size: S, pixels of a crop's side; a multiple of 32.
        batch_size: crops per step.
        max_iterations: most steps, however long the budget.
        learning_rate: of the decoder, at the full schedule.
        encoder_rate: factor on it for the encoder.
        weight_decay: of AdamW.
        warmup_iterations: of the learning rate; a time budget is planned when they are done.
        frozen: beginnings of encoder parameters' names that keep their values.
        margin_low: least margin of a crop's side as a share of the box.
        margin_high: largest margin.
        projection_weight: of the projection term.
        colour_weight: of the pairwise term on colour.
        colour_threshold: least similarity of a colour edge.
        consistency_weight: of the pairwise term on depth.
        consistency_threshold: τ, least similarity of a depth edge.
        outside_weight: of the cross-entropy to background outside the box.
        teacher_weight: of the dice distance to the teacher's masks.
        teacher_agreement: power of the teacher's agreement with itself (IoU of its two views) by
            which a crop counts in that term; 0 counts all alike.
        teacher_decay: of the exponential moving average of the student.
        start_share: weight of the starting weights in the result; what was learned has the rest.
        paste_share: composites per crop (`pasted_objects`) that are learned beside the crops.
        salient_share: crops of salient objects per crop of a box, where there is a salient set.
        known_weight: of cross-entropy and dice on crops whose masks are known.
        light_strength: factor on the changes of brightness and colour that the student sees.
        box_hint_share: share of crops of which the student sees the box; the teacher always does.
        depth_hint_share: share of crops of which the student sees the depth.
        seed: of order, margins and brightness.
        checkpoint_seconds: time between checkpoints.
        photo_cache_bytes: memory for decoded photos.
    """

    depth: Depth = "off"
    crop_size: int = 128
    batch_size: int = 16
    max_iterations: int = 1200
    learning_rate: float = 1e-3
    encoder_rate: float = 0.3
    weight_decay: float = 0.01
    warmup_iterations: int = 20
    frozen: tuple[str, ...] = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
    margin_low: float = 0.05
    margin_high: float = 0.55
    projection_weight: float = 1.0
    colour_weight: float = 1.0
    colour_threshold: float = 0.3
    consistency_weight: float = 1.0
    consistency_threshold: float = 0.5
    outside_weight: float = 0.0
    teacher_weight: float = 1.0
    teacher_agreement: float = 0.0
    teacher_decay: float = 0.99
    start_share: float = 0.3
    paste_share: float = 0.5
    salient_share: float = 0.5
    known_weight: float = 1.0
    light_strength: float = 1.0
    box_hint_share: float = 0.5
    depth_hint_share: float = 0.7
    seed: int = 0
    checkpoint_seconds: float = 60.0
    photo_cache_bytes: int = 1_000_000_000

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.depth not in ("off", "loss", "input", "both"):
            raise TrainingConfigError(f"depth={self.depth!r} is not off, loss, input or both")
        if self.crop_size % 32 or self.crop_size < 32:
            raise TrainingConfigError(
                f"crop_size={self.crop_size} must be a positive multiple of 32"
            )
        if not 0 <= self.margin_low < self.margin_high:
            raise TrainingConfigError(
                f"margin_low={self.margin_low} must be at least 0 and below "
                f"margin_high={self.margin_high}: with a constant margin the network learns where "
                "the box is and fills it"
            )
        if not 0 <= self.start_share < 1:
            raise TrainingConfigError(f"start_share={self.start_share} must be in [0, 1)")
        if self.batch_size < 1 or self.max_iterations < 1:
            raise TrainingConfigError(
                f"batch_size={self.batch_size} and max_iterations={self.max_iterations} must be "
                "at least 1"
            )

    @property
    def has_depth_loss(self) -> bool:
        """Whether the consistency term takes part."""
        return self.depth in ("loss", "both")

    @property
    def has_depth_hint(self) -> bool:
        """Whether the network may see depth."""
        return self.depth in ("input", "both")
