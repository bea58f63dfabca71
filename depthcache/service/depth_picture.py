"""A depth map as a picture to look at. Never an input of training: 8 bits are too few for that."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

# Anchors of a perceptually even ramp (matplotlib's viridis sampled at ninths, CC0), darkest first.
# web/page.css draws the legend from the same nine colours.
RAMP = (
    (0x44, 0x01, 0x54),
    (0x47, 0x2D, 0x7B),
    (0x3B, 0x52, 0x8B),
    (0x2C, 0x72, 0x8E),
    (0x21, 0x91, 0x8C),
    (0x28, 0xAE, 0x80),
    (0x5E, 0xC9, 0x62),
    (0xAD, 0xDC, 0x30),
    (0xFD, 0xE7, 0x25),
)


def render_png(inverse_depth: npt.NDArray[np.float32], longest_side: int | None = None) -> bytes:
    """Draw relative inverse depth with dark = farther and bright = nearer.

    Args:
        inverse_depth: (H, W), finite, larger = nearer; scaled by its own minimum and maximum.
        longest_side: pixels that the longer side is reduced to; a smaller map stays as it is.

    Returns:
        A PNG file, RGB, H×W or less.
    """
    if longest_side is not None and longest_side < max(inverse_depth.shape):
        scale = longest_side / max(inverse_depth.shape)
        height, width = (max(1, round(side * scale)) for side in inverse_depth.shape)
        reduced = Image.fromarray(inverse_depth).resize((width, height), Image.Resampling.BOX)
        inverse_depth = np.asarray(reduced)
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    unit = (inverse_depth - low) / (high - low) if high > low else np.zeros_like(inverse_depth)
    table = np.stack(
        [
            np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(RAMP)), channel)
            for channel in np.array(RAMP, dtype=np.float64).T
        ],
        axis=-1,
    )
    rgb = np.rint(table).astype(np.uint8)[np.rint(unit * 255).astype(np.uint8)]
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    return buffer.getvalue()


def npy_bytes(inverse_depth: npt.NDArray[np.float32]) -> bytes:
    """The map as an .npy file: float32, (H, W), larger = nearer."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(inverse_depth, dtype=np.float32), allow_pickle=False)
    return buffer.getvalue()
