"""A memory of objects, and what a new object of the same class corresponds to in it.

Source: DiscoBox, arXiv 2105.06464: dense correspondence between objects of a class tells the mask
of one from those of others, and pairs of corresponding places teach the features. What could not be
checked against the paper is marked **choice** in docs/method.md.

Shape legend: G objects, K classes, M entries of a class, C channels, R×R bins of a box, P = R·R.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.utils import comm
from torch.nn import functional as F

from segtrain.process_group import joint_normaliser


class ObjectMemory:
    """The last objects of each class: features and soft masks of the bins of their boxes.

    Args:
        num_classes: K.
        num_entries: M, kept of each class.
        temperature: of the softmax over corresponding bins.
    """

    def __init__(self, num_classes: int, num_entries: int, temperature: float) -> None:
        self.num_classes, self.num_entries = num_classes, num_entries
        self.temperature = temperature
        self._features = torch.zeros(0)  # (K, M, C, P) from the first objects on
        self._masks = torch.zeros(0)  # (K, M, P)
        self._counts = torch.zeros(num_classes, dtype=torch.int64)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a resumed run needs."""
        return {"features": self._features, "masks": self._masks, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state_dict`."""
        self._features, self._masks, self._counts = (
            state[name].clone() for name in ("features", "masks", "counts")
        )

    @torch.no_grad()
    def add(
        self, features_GCP: torch.Tensor, masks_GP: torch.Tensor, classes_G: torch.Tensor
    ) -> None:
        """Remember objects, of all processes; the oldest of their classes are forgotten."""
        if comm.get_world_size() > 1:
            own = tuple(values.cpu() for values in (features_GCP, masks_GP, classes_G))
            device = features_GCP.device
            features_GCP, masks_GP, classes_G = (
                torch.cat(parts).to(device) for parts in zip(*comm.all_gather(own), strict=True)
            )
        if len(classes_G) == 0:
            return
        if self._features.numel() == 0:
            shape = (self.num_classes, self.num_entries)
            self._features = features_GCP.new_zeros(*shape, *features_GCP.shape[1:])
            self._masks = masks_GP.new_zeros(*shape, masks_GP.shape[1])
            self._counts = self._counts.to(classes_G.device)
        is_of_GK = F.one_hot(classes_G, self.num_classes)
        ranks_G = (is_of_GK.cumsum(0) * is_of_GK).sum(1) - 1
        in_class_K = is_of_GK.sum(0)
        # No two objects may fall on one place.
        is_kept_G = ranks_G >= in_class_K[classes_G] - self.num_entries
        places_G = (self._counts[classes_G] + ranks_G) % self.num_entries
        kept = classes_G[is_kept_G], places_G[is_kept_G]
        self._features[kept] = F.normalize(features_GCP[is_kept_G], dim=1)
        self._masks[kept] = masks_GP[is_kept_G]
        self._counts += in_class_K

    @torch.no_grad()
    def transfer(self, features_GCP: torch.Tensor, classes_G: torch.Tensor) -> torch.Tensor:
        """What the masks of corresponding bins say of each bin, in −1 (background) to 1; (G, P).

        For an entry, T_pq = softmax_q(cos(f_p, f_q) / temperature) and the bin's say is
        max(max_q cos, 0) · Σ_q T_pq (2 m_q − 1); it is averaged over the entries of the class. 0
        for a class without any.
        """
        said_GP = features_GCP.new_zeros(len(classes_G), features_GCP.shape[2])
        if self._features.numel() == 0:
            return said_GP
        num_G = self._counts[classes_G].clamp(max=self.num_entries)
        features_GCP = F.normalize(features_GCP, dim=1)
        for entry in range(self.num_entries):
            cosines_GPP = features_GCP.mT @ self._features[classes_G, entry]
            shares_GPP = (cosines_GPP / self.temperature).softmax(2)
            labels_GP1 = 2 * self._masks[classes_G, entry, :, None] - 1
            trust_GP = cosines_GPP.amax(2).clamp(min=0)
            said_GP += trust_GP * (shares_GPP @ labels_GP1)[..., 0] * (entry < num_G)[:, None]
        return said_GP / num_G.clamp(min=1)[:, None]

    def contrast(
        self,
        student_GCP: torch.Tensor,
        teacher_GCP: torch.Tensor,
        masks_GP: torch.Tensor,
        classes_G: torch.Tensor,
    ) -> torch.Tensor:
        """Dense contrastive loss: a bin of the object is like the bin that it corresponds to.

        −log softmax_q(cos(f_p, f_q) / temperature) over the bins q of the class's newest entry, at
        the one that the teacher's features choose; for bins p whose choice is mutual and where both
        masks are object.

        Returns:
            Scalar: mean over such bins; graph-connected zero without any.
        """
        if self._features.numel() == 0:
            return student_GCP.sum() * 0.0
        newest_G = (self._counts[classes_G] - 1) % self.num_entries
        keys_GCP = self._features[classes_G, newest_G]
        with torch.no_grad():
            cosines_GPP = F.normalize(teacher_GCP, dim=1).mT @ keys_GCP
            there_GP, back_GP = cosines_GPP.argmax(2), cosines_GPP.argmax(1)
            bins_P = torch.arange(there_GP.shape[1], device=there_GP.device)
            is_mutual_GP = back_GP.gather(1, there_GP) == bins_P
            is_object_GP = self._masks[classes_G, newest_G].gather(1, there_GP) > 0.5
            counts_GP = (
                is_mutual_GP
                & is_object_GP
                & (masks_GP > 0.5)
                & (self._counts[classes_G] > 0)[:, None]
            )
        logits_GPP = F.normalize(student_GCP, dim=1).mT @ keys_GCP / self.temperature
        losses_GP = -logits_GPP.log_softmax(2).gather(2, there_GP[..., None])[..., 0]
        return (losses_GP * counts_GP).sum() / joint_normaliser(counts_GP.sum())


class BoxBins:
    """Boxes split into R×R bins: reading maps at the bins, and drawing bins on the mask grid.

    Bilinear in either direction, as two small matrices for each box, so that gradients are sums in
    a fixed order.

    Args:
        boxes_G4: x1, y1, x2, y2 in pixels.
        num_bins: R.
    """

    def __init__(self, boxes_G4: torch.Tensor, num_bins: int) -> None:
        self.num_bins = num_bins
        x1, y1, x2, y2 = boxes_G4.unbind(1)
        self._spans = ((y1, (y2 - y1).clamp(min=1)), (x1, (x2 - x1).clamp(min=1)))

    def read(self, maps_GCHW: torch.Tensor, stride: int) -> torch.Tensor:
        """(G, C, P): each box's map, whose cells stand for the middle of `stride` pixels."""
        rows, columns = self._readers(tuple(maps_GCHW.shape[2:]), stride)
        return (rows[:, None] @ maps_GCHW @ columns[:, None].mT).flatten(2)

    def draw(self, bins_GP: torch.Tensor, size: tuple[int, int], stride: int) -> torch.Tensor:
        """(G, H, W): bins on a grid; beyond the box as at its border."""
        weights = []
        for (start, length), cells in zip(self._spans, size, strict=True):
            pixels = (torch.arange(cells, device=start.device) + 0.5) * stride
            places = (pixels - start[:, None]) / length[:, None] * self.num_bins - 0.5
            weights.append(_interpolation(places, self.num_bins))
        rows, columns = weights
        return rows @ bins_GP.unflatten(1, (self.num_bins, self.num_bins)) @ columns.mT

    def _readers(self, size: tuple[int, ...], stride: int) -> list[torch.Tensor]:
        weights = []
        for (start, length), cells in zip(self._spans, size, strict=True):
            shares = (torch.arange(self.num_bins, device=start.device) + 0.5) / self.num_bins
            pixels = start[:, None] + shares * length[:, None]
            weights.append(_interpolation(pixels / stride - 0.5, cells))
        return weights


def _interpolation(places_GN: torch.Tensor, size: int) -> torch.Tensor:
    """(G, N, size): linear interpolation at places between cells; the border is repeated."""
    cells = torch.arange(size, device=places_GN.device)
    return (1 - (places_GN.clamp(0, size - 1)[..., None] - cells).abs()).clamp(min=0)
