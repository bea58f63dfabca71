"""What a step shows to whatever supervises its masks, and what the network asks of those.

A supervision or a teacher is an ordinary object that a config names with `L(Class)(...)`. It sees a
`MaskBatch` and returns weighted losses by name; nothing else has to know it.

Shape legend: B images, G boxes of the batch, I mask instances, H×W the mask grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch

from segtrain.losses.consistency import DepthLinks
from segtrain.losses.pairwise import pairwise_losses
from segtrain.mask_grid.bitmasks import filled_pixels, mask_grid_extents
from segtrain.mask_grid.validity import (
    MASK_STRIDE,
    downsample_to_mask_grid,
    image_validity,
    sample_mask_grid,
)

Entries = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class BatchBoxes:
    """The boxes of a batch; tensors over G are concatenated over its images."""

    boxes: list[torch.Tensor]  # (g, 4) x1, y1, x2, y2 in pixels of each image
    classes: list[torch.Tensor]  # (g,) of each image
    extents: torch.Tensor  # (G, 4) filled cells on the mask grid
    image_indices: torch.Tensor  # (G,)

    @classmethod
    def of(cls, entries: Entries, padded_size: tuple[int, int], device: torch.device) -> BatchBoxes:
        """The boxes of the entries' `instances`."""
        instances = [entry["instances"].to(device) for entry in entries]
        boxes = [image.gt_boxes.tensor.float() for image in instances]
        counts = torch.tensor([len(image) for image in instances])
        return cls(
            boxes=boxes,
            classes=[image.gt_classes for image in instances],
            extents=mask_grid_extents(filled_pixels(torch.cat(boxes), padded_size), MASK_STRIDE),
            image_indices=torch.arange(len(instances)).repeat_interleave(counts).to(device),
        )


@dataclass(frozen=True, kw_only=True)
class MaskBatch:
    """The masks of a training step and what is known about them.

    Attributes:
        entries: the images as the data loader gives them.
        padded_size: height and width of the padded batch in pixels.
        truth: boxes of the batch.
        box_indices: (I,) box of each mask, into the boxes of the batch.
        mask_logits: (I, H, W) log-odds.
        depth: (I, H, W) predicted inverse depth in [0, 1]; None without a depth layer.
        mask_features: (B, C, H / 2, W / 2) of the mask branch.
        links: which neighbours depth links.
        iteration: 0-based.
        metrics: statistics that the step logs; whoever looks at the masks may add some.
    """

    entries: Entries
    padded_size: tuple[int, int]
    truth: BatchBoxes
    box_indices: torch.Tensor
    mask_logits: torch.Tensor
    depth: torch.Tensor | None = None
    mask_features: torch.Tensor | None = None
    links: DepthLinks = field(default_factory=DepthLinks)
    iteration: int = 0
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)

    def select(self, indices: torch.Tensor) -> MaskBatch:
        """Some of the masks."""
        return replace(
            self,
            box_indices=self.box_indices[indices],
            mask_logits=self.mask_logits[indices],
            depth=None if self.depth is None else self.depth[indices],
        )

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.mask_logits.device

    @cached_property
    def image_indices(self) -> torch.Tensor:
        """Image of each mask, (I,)."""
        return self.truth.image_indices[self.box_indices]

    @cached_property
    def extents(self) -> torch.Tensor:
        """Filled cells of each mask's box, (I, 4)."""
        return self.truth.extents[self.box_indices]

    @cached_property
    def whole_extents(self) -> torch.Tensor:
        """The whole map as extents, for each mask, (I, 4)."""
        height, width = self.mask_logits.shape[1:]
        whole = torch.tensor([0, height, 0, width], device=self.device)
        return whole.expand(len(self.mask_logits), 4)

    def extents_around(self, share: float | None) -> torch.Tensor:
        """Each mask's box with a margin of a share of its sides, (I, 4); None: the whole map."""
        if share is None:
            return self.whole_extents
        height, width = self.mask_logits.shape[1:]
        starts, stops = self.extents[:, ::2], self.extents[:, 1::2]
        margins = ((stops - starts) * share).round().to(starts.dtype)
        limits = torch.tensor([height, width], device=self.device)
        is_filled = stops > starts
        starts = torch.where(is_filled, (starts - margins).clamp(min=0), starts)
        stops = torch.where(is_filled, torch.minimum(stops + margins, limits), stops)
        return torch.stack((starts, stops), dim=2).flatten(1)

    @cached_property
    def inverse_depth_255(self) -> torch.Tensor:
        """Pseudo depth in 0..255, (B, H, W).

        Raises:
            ValueError: an image has none.
        """
        missing = [e.get("file_name", "?") for e in self.entries if "inverse_depth_255" not in e]
        if missing:
            raise ValueError(
                f"no inverse_depth_255 for {missing[:3]}; compute it with `pipeline depth`, or "
                "switch off the depth layer, consistency and depth matching"
            )
        maps = [torch.as_tensor(e["inverse_depth_255"])[None] for e in self.entries]
        return torch.cat(
            [downsample_to_mask_grid(m.to(self.device), self.padded_size) for m in maps]
        )

    @cached_property
    def depth_edges(self) -> torch.Tensor:
        """(B, 8, H, W): the consistency map, which losses and matching share."""
        return self.depth_edges_of(self.links)

    def depth_edges_of(self, links: DepthLinks) -> torch.Tensor:
        """(B, 8, H, W): neighbours that depth links in a given way."""
        return links.edges(self.inverse_depth_255, self.validity)

    @cached_property
    def validity(self) -> torch.Tensor:
        """(B, H, W): 1 in the image, 0 in its padding."""
        validity = []
        for entry in self.entries:
            size = (int(entry["image"].shape[-2]), int(entry["image"].shape[-1]))
            full = image_validity(size, size[0], self.padded_size, 0, self.device)
            validity.append(sample_mask_grid(full))
        return torch.stack(validity)


class Supervision:
    """What teaches the masks of a step.

    Attributes:
        name: for messages about settings.
        reads_masks: whether it learns from annotated masks.
        links: how depth links neighbours, for its own terms and for a teacher's matching.
        consistency_weight: of depth consistency over the whole map (Eq. 4 of arXiv 2403.01214);
            0 reads no depth for it.
        warmup_iterations: over which that weight grows.
    """

    def __init__(
        self,
        *,
        name: str,
        reads_masks: bool = False,
        links: DepthLinks | None = None,
        consistency_weight: float = 0.0,
        warmup_iterations: int = 10_000,
    ) -> None:
        if consistency_weight < 0:
            raise ValueError(f"consistency_weight must be at least 0, got {consistency_weight}")
        self.name, self.reads_masks = name, reads_masks
        self.links = links or DepthLinks()
        self.consistency_weight = consistency_weight
        self.warmup_iterations = warmup_iterations

    def needs_depth(self, *, predicts_depth: bool) -> bool:  # noqa: ARG002 - for subclasses
        """Whether a loss reads `inverse_depth_255`, for a model with or without a depth layer."""
        return self.consistency_weight > 0

    def losses(self, masks: MaskBatch) -> dict[str, torch.Tensor]:
        """Weighted losses by name, each connected to the graph; all are added."""
        raise NotImplementedError

    def depth_terms(self, masks: MaskBatch) -> dict[str, torch.Tensor]:
        """Depth consistency where it has a weight; a depth layer's own output is not supervised."""
        losses = {}
        if self.consistency_weight > 0:
            (consistency,) = pairwise_losses(
                masks.mask_logits, [masks.depth_edges], masks.image_indices, [masks.whole_extents]
            )
            weight = self.consistency_weight * warm_up(masks.iteration, self.warmup_iterations)
            losses["loss_consistency"] = weight * consistency
        if masks.depth is not None:
            losses["loss_depth"] = masks.depth.sum() * 0.0
        return losses


class MaskTeacher(Protocol):
    """What a step asks of a teacher; the trainer owns it and moves it."""

    def predict(self, entries: Entries, truth: BatchBoxes, iteration: int) -> Any:
        """What the teacher sees in the images; outside of the student's float32 part."""

    def losses(self, masks: MaskBatch, predictions: Any) -> dict[str, torch.Tensor]:
        """Weighted losses by name of the student's masks, from what `predict` returned."""

    def update(self, student: Any, momentum: float) -> None:
        """Follow the student after its step."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of a model of the student's form."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state_dict`."""


class Distillation(Protocol):
    """Settings that make a teacher when the trainer asks for one.

    Attributes:
        is_the_method: whether a run without the teacher would be another method.
    """

    is_the_method: ClassVar[bool]

    @property
    def needs_depth(self) -> bool:
        """Whether the teacher reads depth."""

    def make_teacher(self, student: Any) -> MaskTeacher:
        """A teacher that starts as a copy of the student."""


def clean_image(entry: dict[str, Any]) -> torch.Tensor:
    """(3, H, W): the photo in its own colours, where the student sees them perturbed."""
    image: torch.Tensor = entry.get("clean_image", entry["image"])
    return image


def warm_up(iteration: int, num_iterations: int, start: float = 0.0) -> float:
    """w(t) of Eq. 6: 0 until `start`, then linear up to 1 within `num_iterations`."""
    return min(max((iteration + 1 - start) / max(num_iterations, 1), 0.0), 1.0)
