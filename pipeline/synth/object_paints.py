"""Paints of generated objects: grey patterns, coloured by random palettes at each use."""

from __future__ import annotations

import colorsys
import dataclasses
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
ByteArray = npt.NDArray[np.uint8]
TILE = 192


def draw_pattern_tiles(rng: np.random.Generator, count: int) -> ByteArray:
    """Grey patterns, (count, TILE, TILE) uint8: noise, stripes, cells, checks, leaves, lines."""
    kinds = (_noise, _noise, _noise, _ridges, _stripes, _checks, _cells, _spots, _leaves, _lines)
    return np.stack([kinds[k % len(kinds)](rng) for k in range(count)])


@dataclasses.dataclass(frozen=True)
class Paint:
    """A pattern and its colours.

    Attributes:
        tile: index of the pattern, −1 for one colour.
        colours: (256, 3) uint8 RGB by grey value.
        scale: tile pixels per picture pixel.
        grain: index of the pattern that varies the brightness: nothing in a photo is flat.
        grain_strength: share of the brightness that it varies by; 0 for none.
    """

    tile: int
    colours: ByteArray
    scale: float
    grain: int = 0
    grain_strength: float = 0.0

    def fill(
        self, rng: np.random.Generator, tiles: ByteArray, height: int, width: int
    ) -> FloatArray:
        """(height, width, 3) float32 in 0..255."""
        if self.tile < 0:
            plain = self.colours[128].astype(np.float32)
            if not self.grain_strength:
                return np.broadcast_to(plain, (height, width, 3))
            rgb = np.full((height, width, 3), plain, np.float32)
        else:
            rgb = self.colours[_cut(rng, tiles[self.tile], self.scale, height, width)].astype(
                np.float32
            )
        if self.grain_strength:
            grain = _cut(rng, tiles[self.grain], self.scale * 1.7, height, width)
            rgb *= (1 + self.grain_strength * (grain / np.float32(127.5) - 1))[..., None]
        return rgb


def _cut(
    rng: np.random.Generator, tile: ByteArray, scale: float, height: int, width: int
) -> ByteArray:
    """A random window of a pattern, enlarged to (height, width)."""
    h = int(np.clip(height * scale, 4, TILE))
    w = int(np.clip(width * scale, 4, TILE))
    y, x = rng.integers(0, TILE - h + 1), rng.integers(0, TILE - w + 1)
    window = tile[y : y + h, x : x + w]
    return np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


# How often a role has one colour only.
_PLAIN_SHARES = {"skin": 0.7, "dark": 0.6, "glass": 0.45, "stuff": 0.15}


def draw_paint(rng: np.random.Generator, num_tiles: int, role: str = "a") -> Paint:
    """Throw the dice for a paint that suits a role."""
    colour = _role_colour(rng, role)
    is_plain = rng.uniform() < _PLAIN_SHARES.get(role, 0.4)
    tile = -1 if is_plain else int(rng.integers(num_tiles))
    if role == "screen":
        tile, spread, stops = int(rng.integers(num_tiles)), 1.0, int(rng.integers(2, 6))
    else:
        spread = float(rng.choice((0.05, 0.12, 0.25, 0.5, 1.0), p=(0.25, 0.3, 0.2, 0.15, 0.1)))
        stops = int(rng.integers(2, 5))
    if role in ("skin", "hair", "dark"):
        spread = min(spread, 0.15)
    palette = [np.array(colour)]
    for _ in range(stops - 1):
        other = np.array(_natural_colour(rng))
        near = np.clip(palette[0] * rng.uniform(0.45, 1.45) + rng.normal(0, 8, 3), 0, 255)
        palette.append(near + (other - near) * spread * rng.uniform())
    strength = float(np.exp(rng.uniform(-3.5, -0.9))) if rng.uniform() < 0.7 else 0.0
    return Paint(
        tile=tile,
        colours=_ramp(rng, np.array(palette)),
        scale=float(np.exp(rng.uniform(-1.2, 0.9))),
        grain=int(rng.integers(num_tiles)),
        grain_strength=strength,
    )


def _ramp(rng: np.random.Generator, palette: FloatArray) -> ByteArray:
    t = np.linspace(0, len(palette) - 1, 256)
    if rng.uniform() < 0.4:
        t = np.round(t)
    stops = np.arange(len(palette))
    channels = [np.interp(t, stops, palette[:, c]) for c in range(3)]
    return np.stack(channels, 1).clip(0, 255).astype(np.uint8)


def _natural_colour(rng: np.random.Generator) -> FloatArray:
    saturation = rng.beta(1.2, 2.6)
    warm = rng.normal(0.09, 0.06) if rng.uniform() < 0.45 else rng.uniform()
    return 255 * np.array(
        colorsys.hsv_to_rgb(warm % 1.0, saturation, rng.uniform(0.08, 1.0) ** 0.8)
    )


# RGB between two colours, and how much of the range lies near the first.
_ROLE_COLOURS = {
    "skin": ((235, 190, 160), (85, 55, 40), 1.0),
    "hair": ((25, 20, 18), (200, 160, 100), 1.8),
    "dark": ((12, 12, 13), (72, 72, 76), 1.0),
    "glass": ((27, 33, 38), (180, 220, 250), 1.0),
    "metal": ((90, 90, 90), (220, 220, 220), 1.0),
    "white": ((200, 200, 200), (255, 255, 255), 1.0),
}


def _role_colour(rng: np.random.Generator, role: str) -> FloatArray:
    if role in _ROLE_COLOURS:
        first, last, bias = _ROLE_COLOURS[role]
        share = rng.uniform() ** bias
        return np.array(first) * (1 - share) + np.array(last) * share + rng.normal(0, 6, 3)
    if role == "leaf":
        hue, saturation, value = (
            rng.normal(0.28, 0.05),
            rng.uniform(0.3, 0.9),
            rng.uniform(0.2, 0.8),
        )
        return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    return _natural_colour(rng)


def _to_bytes(values: FloatArray) -> ByteArray:
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def _octaves(rng: np.random.Generator, decay: float, first: int = 1) -> FloatArray:
    total = np.zeros((TILE, TILE), np.float32)
    for octave in range(first, 7):
        cells = 2**octave + 1
        stretch = rng.choice((1, 1, 1, 3))
        grid = rng.normal(size=(max(cells // stretch, 2), cells)).astype(np.float32)
        total += cv2.resize(grid, (TILE, TILE), interpolation=cv2.INTER_CUBIC) * decay**octave
    return total


def _noise(rng: np.random.Generator) -> ByteArray:
    return _to_bytes(_octaves(rng, rng.uniform(0.45, 0.95), int(rng.integers(1, 4))))


def _ridges(rng: np.random.Generator) -> ByteArray:
    return _to_bytes(np.abs(_octaves(rng, rng.uniform(0.4, 0.7))) ** rng.uniform(0.4, 1.0))


def _wave(rng: np.random.Generator, bend: float) -> FloatArray:
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 60)
    phase = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
    return np.sin(phase + bend * _octaves(rng, 0.5))


def _stripes(rng: np.random.Generator) -> ByteArray:
    wave = _wave(rng, rng.choice((0.0, 0.5, 3.0)))
    return _to_bytes(np.sign(wave - rng.uniform(-0.7, 0.7)) if rng.uniform() < 0.6 else wave)


def _checks(rng: np.random.Generator) -> ByteArray:
    a, b = _wave(rng, 0.0), _wave(rng, 0.0)
    values = np.sign(a) * np.sign(b) if rng.uniform() < 0.5 else np.sign(a) + np.sign(b)
    return _to_bytes(values + 0.15 * _octaves(rng, 0.8))


def _cells(rng: np.random.Generator) -> ByteArray:
    num = int(rng.integers(8, 90))
    points = rng.uniform(0, TILE, (num, 2)).astype(np.float32)
    y, x = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
    distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    if rng.uniform() < 0.6:
        return _to_bytes(rng.uniform(size=num).astype(np.float32)[distance.argmin(-1)])
    two = np.partition(distance, 1, axis=-1)[..., :2]
    return _to_bytes(np.minimum(np.sqrt(two[..., 1]) - np.sqrt(two[..., 0]), rng.uniform(3, 30)))


def _spots(rng: np.random.Generator) -> ByteArray:
    canvas = np.zeros((TILE, TILE), np.uint8)
    size = rng.uniform(2, 16)
    for x, y in rng.uniform(0, TILE, (int(1200 / size), 2)):
        cv2.circle(
            canvas,
            (int(x), int(y)),
            int(size * rng.uniform(0.5, 1.2)),
            int(rng.integers(60, 256)),
            -1,
        )
    return canvas


def _leaves(rng: np.random.Generator) -> ByteArray:
    canvas = np.full((TILE, TILE), 40, np.uint8)
    size, spread = rng.uniform(4, 26), rng.uniform(20, 180)
    for x, y in rng.uniform(0, TILE, (int(4200 / size), 2)):
        axes = (int(size), max(1, int(size * rng.uniform(0.2, 0.7))))
        angle = 90 + rng.uniform(-spread, spread)
        cv2.ellipse(canvas, (int(x), int(y)), axes, angle, 0, 360, int(rng.integers(30, 256)), -1)
    return canvas


def _lines(rng: np.random.Generator) -> ByteArray:
    canvas = np.full((TILE, TILE), int(rng.integers(256)), np.uint8)
    vertical = rng.uniform() < 0.5
    for _ in range(int(rng.integers(10, 90))):
        x, y = (int(v) for v in rng.integers(0, TILE, 2))
        if rng.uniform() < 0.3:
            w, h = (int(v) for v in rng.integers(4, 60, 2))
            cv2.rectangle(
                canvas, (x, y), (x + w, y + h), int(rng.integers(256)), int(rng.choice((-1, 1, 2)))
            )
        else:
            dx, dy = (int(v) for v in rng.normal(0, 60, 2))
            end = (x, y + dy) if vertical else (x + dx, y + dy)
            cv2.line(canvas, (x, y), end, int(rng.integers(256)), int(rng.integers(1, 5)))
    return canvas
