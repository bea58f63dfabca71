"""Depth maps to store and read: made up, or the demo model's of photos."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from depthcache import image_key
from depthcache.image_decoding import decode_image

FloatMap = npt.NDArray[np.float32]
MODEL = Path(__file__).parent.parent / "data/demo-dpt"


def get_maps(images: Path | None, num_images: int, side: int) -> dict[str, FloatMap]:
    """Key → (side, side) relative inverse depth: of the first photos of a folder, or made up."""
    if images is None:
        return {image_key(b"%d" % n): make_up_map(n, side) for n in range(num_images)}
    from depthcache.stage_one.depth_models import load_depth_model

    with tempfile.TemporaryDirectory() as folder:
        model = load_depth_model(MODEL if side == 192 else enlarge_model(side, Path(folder)))
    maps = {}
    for path in sorted(images.glob("*.jpg"))[:num_images]:
        data = path.read_bytes()
        maps[image_key(data)] = model.predict([model.preprocess(decode_image(data))])[0]
    return maps


def make_up_map(seed: int, side: int) -> FloatMap:
    """Smooth ground with steps, and the fine grain that networks leave."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(
        rng.random((6, 6), dtype=np.float32), (side, side), interpolation=cv2.INTER_CUBIC
    )
    for _ in range(8):
        x, y, width, height = rng.integers(0, side, 4)
        ground[y : y + height // 3, x : x + width // 3] += rng.random()
    return cv2.GaussianBlur(ground, (0, 0), 1.0) + rng.normal(0, 1e-3, ground.shape).astype("f4")


def enlarge_model(side: int, folder: Path) -> Path:
    """The demo model for larger squares: its position embeddings are interpolated."""
    import torch
    from torch.nn import functional as F
    from transformers import AutoImageProcessor, DPTForDepthEstimation

    network = DPTForDepthEstimation.from_pretrained(MODEL)
    weights = network.state_dict()
    name = "dpt.embeddings.position_embeddings"
    first, rest = weights[name][:, :1], weights[name][:, 1:]
    old, new = int(rest.shape[1] ** 0.5), side // 16
    grid = rest.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic")
    weights[name] = torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
    config = network.config
    config.image_size = side
    config.backbone_featmap_shape = [*config.backbone_featmap_shape[:2], new, new]
    larger = DPTForDepthEstimation(config)
    larger.load_state_dict(weights)
    larger.save_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(MODEL)
    processor.size = {"height": side, "width": side}
    processor.save_pretrained(folder)
    return folder
