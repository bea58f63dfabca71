"""Procedural textures: colours as functions of position, no image from elsewhere.

Most are piecewise constant, so that a picture is full of colour edges that are not object borders:
that is what box-supervised losses on colour stumble over.
"""

from __future__ import annotations

import colorsys
import dataclasses
import math

import numpy as np

from pipeline.synth.shapes import FloatArray

PATTERNS = ("plain", "checks", "stripes", "blobs", "marble", "bricks", "dots")


@dataclasses.dataclass(kw_only=True, frozen=True)
class Texture:
    """A colour for every point of a surface.

    Attributes:
        pattern: a name out of `PATTERNS`.
        palette: (K, 3) linear RGB in 0..1, K >= 2.
        cell_metres: size of one patch of the pattern.
        waves: (6, 3) wave vectors of the blobs and the marble, in radians per cell.
        phases: (6,) radians.
        grain: relative strength of the fine mottling, 0 for none.
    """

    pattern: str
    palette: FloatArray
    cell_metres: float
    waves: FloatArray
    phases: FloatArray
    grain: float


def draw_texture(
    rng: np.random.Generator, *, pattern: str, cell_metres: float, palette: FloatArray
) -> Texture:
    """Throw the dice for a texture of the given pattern, patch size and colours."""
    directions = rng.normal(size=(6, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    frequencies = 2 * math.pi * np.array([0.28, 0.36, 0.47, 0.6, 0.75, 0.9])
    return Texture(
        pattern=pattern,
        palette=palette,
        cell_metres=cell_metres,
        waves=(directions * frequencies[:, None]).astype(np.float32),
        phases=rng.uniform(0, 2 * math.pi, 6).astype(np.float32),
        grain=float(rng.uniform(0.0, 0.05)),
    )


def draw_palette(rng: np.random.Generator, *, num_colours: int, vivid: bool) -> FloatArray:
    """Related colours, (num_colours, 3) linear RGB: one base hue with steps of hue and lightness.

    Vivid palettes are saturated; the others are the muted ones of walls, floors and cloth.
    """
    hue = rng.uniform()
    saturation = rng.uniform(0.6, 0.95) if vivid else rng.uniform(0.12, 0.55)
    lightness = rng.uniform(0.55, 0.9) if vivid else rng.uniform(0.4, 0.85)
    colours = []
    for step in range(num_colours):
        turned = (hue + rng.normal(0, 0.04 if step else 0.0)) % 1.0
        value = lightness * (1.0 if step == 0 else rng.uniform(0.55, 0.9))
        colours.append(colorsys.hsv_to_rgb(turned, saturation * rng.uniform(0.7, 1.0), value))
    return np.asarray(np.asarray(colours) ** 2.2, np.float32)


def paint(texture: Texture, points: FloatArray) -> FloatArray:
    """Colours of surface points.

    Args:
        texture: what to paint with.
        points: (N, 3) metres in the surface's own frame; flat surfaces pass (u, v, 0).

    Returns:
        (N, 3) linear RGB albedo, 0..1.
    """
    q = points / np.float32(texture.cell_metres)
    palette = texture.palette
    num_colours = palette.shape[0]
    waves = np.sin(q @ texture.waves.T + texture.phases)
    if texture.pattern == "plain":
        colours = np.broadcast_to(palette[0], q.shape).copy()
    elif texture.pattern == "checks":
        # The small offset keeps flat faces away from a cell border, where parity would flicker.
        parity = np.floor(q + np.float32(0.137)).astype(np.int32).sum(axis=1) % 2
        colours = palette[parity]
    elif texture.pattern == "stripes":
        along = q @ texture.waves[0] / np.linalg.norm(texture.waves[0])
        colours = palette[np.floor(along * 1.4).astype(np.int32) % num_colours]
    elif texture.pattern == "blobs":
        level = waves.sum(axis=1) / 3.0
        index = np.clip(np.floor((level * 0.5 + 0.5) * num_colours), 0, num_colours - 1)
        colours = palette[index.astype(np.int32)]
    elif texture.pattern == "marble":
        vein = 0.5 + 0.5 * np.sin(3.0 * (q[:, 0] + q[:, 1]) + 1.4 * waves.sum(axis=1))
        colours = palette[0] + (palette[1] - palette[0]) * (vein**2)[:, None]
    elif texture.pattern == "bricks":
        row = np.floor(q[:, 1] * 1.6)
        shifted = q[:, 0] * 0.8 + 0.5 * (row % 2)
        column = np.floor(shifted)
        mortar = (shifted - column < 0.06) | (q[:, 1] * 1.6 - row < 0.1)
        tint = np.sin(column * 12.9898 + row * 78.233) * 43758.547
        pick = ((tint - np.floor(tint)) * (num_colours - 1)).astype(np.int32)
        colours = palette[pick]
        colours[mortar] = palette[num_colours - 1]
    else:
        offset = q - np.round(q)
        inside = offset[:, 0] ** 2 + offset[:, 1] ** 2 + offset[:, 2] ** 2 < 0.11
        colours = palette[inside.astype(np.int32)]
    if texture.grain > 0:
        fine = np.sin(q @ (texture.waves.T * 5.3) + texture.phases[::-1]).sum(axis=1) / 2.0
        colours = colours * (1 + texture.grain * fine)[:, None]
    return np.asarray(np.clip(colours, 0.0, 1.0), np.float32)
