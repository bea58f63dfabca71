"""The detector with its dynamic mask head as an ONNX graph, checked against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from segtrain.modeling.aligned_bilinear import aligned_bilinear
from segtrain.modeling.condinst import LEVELS, CondInst
from segtrain.modeling.dynamic_mask_head import HIDDEN
from segtrain.modeling.fcos_targets import STRIDES, level_locations


class ExportableCondInst(nn.Module):
    """Fixed-size graph: one image in, the best candidates with mask logits out, NMS left outside.

    Args:
        model: in eval mode.
        image_size: height and width, multiples of 32.
        num_candidates: rows of the output.
    """

    locations: torch.Tensor
    strides: torch.Tensor
    sizes_of_interest: torch.Tensor
    grid: torch.Tensor

    def __init__(
        self, model: CondInst, image_size: tuple[int, int], num_candidates: int = 100
    ) -> None:
        super().__init__()
        height, width = image_size
        if height % 32 or width % 32:
            raise ValueError(f"image_size must be multiples of 32, got {image_size}")
        self.model = model
        self.num_candidates = num_candidates
        sizes = []
        rows, columns = height, width
        for stride in STRIDES:
            rows, columns = -(-height // stride), -(-width // stride)
            sizes.append((rows, columns))
        places = [level_locations(h, w, s) for (h, w), s in zip(sizes, STRIDES, strict=True)]
        self.register_buffer("locations", torch.cat(places), False)
        levels = torch.cat([torch.full((len(p),), i) for i, p in enumerate(places)])
        self.register_buffer("strides", torch.tensor(STRIDES)[levels].float(), False)
        soi = model.mask_head.sizes_of_interest.cpu()[levels].float()
        self.register_buffer("sizes_of_interest", soi, False)
        self.register_buffer("grid", level_locations(height // 8, width // 8, 8), False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Candidates of one BGR image (1, 3, H, W) in 0..255.

        Returns:
            boxes (N, 4), scores (N,), classes (N,), mask logits at stride 4 (N, H / 4, W / 4).
        """
        model = self.model
        features = model.backbone((image - model.pixel_mean) / model.pixel_std)
        levels = [features[name] for name in LEVELS]
        head = model.proposal_generator.fcos_head
        towers = head.box_features(levels)
        offsets, quality = head.box_predictions(towers)
        logits = torch.cat([level[0].flatten(1) for level in head.class_logits(levels)], 1)
        flat_quality = torch.cat([level[0].flatten() for level in quality])
        scores = (logits.sigmoid() * flat_quality.sigmoid()).sqrt()
        best, classes = scores.max(dim=0)
        values, places = best.topk(self.num_candidates)
        flat_offsets = torch.cat([level[0].flatten(1) for level in offsets], 1).T[places]
        locations = self.locations[places]
        distances = flat_offsets * self.strides[places][:, None]
        boxes = torch.cat((locations - distances[:, :2], locations + distances[:, 2:]), 1)
        dense = [
            F.conv2d(tower, model.controller.weight, model.controller.bias, padding=1)
            for tower in towers
        ]
        parameters = torch.cat([level[0].flatten(1) for level in dense], 1).T[places]
        masks = self._masks(
            model.mask_branch(features), parameters, locations, self.sizes_of_interest[places]
        )
        return boxes, values, classes[places], masks

    def _masks(
        self,
        features: torch.Tensor,
        parameters: torch.Tensor,
        locations: torch.Tensor,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        _, channels, height, width = features.shape
        n, outputs = self.num_candidates, 1 if self.model.depth_form is None else 2
        w0, w1, w2, b0, b1, b2 = parameters.split(
            (HIDDEN * (channels + 2), HIDDEN**2, HIDDEN * outputs, HIDDEN, HIDDEN, outputs), dim=1
        )
        relative = (locations[:, None] - self.grid[None]) / sizes[:, None, None]
        flat = features.flatten(2).expand(n, channels, height * width)
        inputs = torch.cat((relative.transpose(1, 2), flat), dim=1)
        x = torch.relu(w0.reshape(n, HIDDEN, channels + 2) @ inputs + b0[:, :, None])
        x = torch.relu(w1.reshape(n, HIDDEN, HIDDEN) @ x + b1[:, :, None])
        out = (w2.reshape(n, outputs, HIDDEN) @ x + b2[:, :, None]).reshape(
            n, outputs, height, width
        )
        if self.model.depth_form == "multiply":
            out = out[:, 1:] * out[:, :1].sigmoid()
        elif self.model.depth_form == "add":
            out = out[:, 1:] + out[:, :1]
        return aligned_bilinear(out, 2)[:, 0]


def export_onnx(
    model: CondInst, path: str | Path, image_size: tuple[int, int], num_candidates: int = 100
) -> float:
    """Write the graph and run it in onnxruntime on noise.

    Returns:
        Largest absolute difference of any output to PyTorch.

    Raises:
        ValueError: the sizes do not fit, or the written graph computes something else.
    """
    import onnxruntime

    model = model.eval()
    graph = ExportableCondInst(model, image_size, num_candidates).eval()
    image = torch.randint(0, 256, (1, 3, *image_size), device=model.device).float()
    with torch.no_grad():
        expected = graph(image)
        torch.onnx.export(
            graph,
            (image,),
            str(path),
            input_names=["image"],
            output_names=["boxes", "scores", "classes", "mask_logits"],
            opset_version=18,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"image": image.cpu().numpy()})
    # Near-equal scores may swap rows, so values are compared in the order of their scores.
    difference = float(np.abs(np.sort(outputs[1]) - np.sort(expected[1].cpu().numpy())).max())
    if difference > 1e-3:
        raise ValueError(f"the ONNX graph differs from PyTorch by {difference:.2e} in its scores")
    return difference
