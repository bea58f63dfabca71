"""Pictures full of objects, fast: layers of painted parts from far to near, with masks and depth.

A generator for the labeller's starting weights: outlines (`object_outlines`) and paints
(`object_paints`) are drawn over a painted background, shaded by their rounded relief, occlude each
other, throw shadows, and pass a camera (focus, haze, light, noise, JPEG). Ray-cast scenes
(`scene_rendering`) are truer and a hundred times slower; what transfers to photos is variety.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.synth.object_outlines import Part, draw_outline
from pipeline.synth.object_paints import ByteArray, FloatArray, Paint, draw_paint

_BACKGROUND = -1


@dataclasses.dataclass(frozen=True)
class ObjectScene:
    """One picture and what is known of it.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        owners: (S, S) int16, index of the object that is seen in a pixel, −1 for none.
        inverse_depth: (S, S) float32 in 0..1, larger = nearer.
        full_areas: (N,) pixels that each object would show if nothing hid it.
        camouflaged: (N,) bool: painted like what is behind it.
    """

    image: ByteArray
    owners: npt.NDArray[np.int16]
    inverse_depth: FloatArray
    full_areas: FloatArray
    camouflaged: npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """An object of a scene that is seen well enough to be asked for.

    Attributes:
        index: as in `ObjectScene.owners`.
        box: x1, y1, x2, y2 around its visible pixels.
    """

    index: int
    box: tuple[int, int, int, int]


@dataclasses.dataclass
class _Canvas:
    rgb: FloatArray
    owners: npt.NDArray[np.int16]
    depth: FloatArray


@dataclasses.dataclass(frozen=True)
class _Sprite:
    rgb: FloatArray
    alpha: FloatArray
    relief: FloatArray


def draw_scene(
    rng: np.random.Generator,
    tiles: ByteArray,
    *,
    size: int = 256,
    camouflage: float = 0.08,
    backdrop: ObjectScene | None = None,
) -> ObjectScene:
    """Throw the dice for one picture.

    Args:
        rng: source of everything.
        tiles: of `object_paints.draw_pattern_tiles`.
        size: pixels of a side.
        camouflage: share of objects that are painted like what is behind them.
        backdrop: an earlier scene that may stand behind this one, so that objects are surrounded by
            things, as they are in photos, and not by patterns.
    """
    light = _unit(np.array((rng.normal(0, 0.7), rng.normal(-0.7, 0.5), rng.uniform(0.4, 1.2))))
    canvas, stuff = _draw_background(rng, tiles, size)
    if backdrop is not None and rng.uniform() < 0.6:
        _hang(rng, canvas, backdrop)
    if rng.uniform() < 0.4:  # the background is out of focus
        canvas.rgb = cv2.GaussianBlur(canvas.rgb, (0, 0), float(np.exp(rng.uniform(-0.3, 1.6))))
    count = int(rng.integers(1, 9) if rng.uniform() < 0.45 else rng.integers(8, 22))
    full_areas, camouflaged = np.zeros(0, np.float32), []
    placements = _place(rng, count, size, is_crowded=rng.uniform() < 0.35)
    outline = draw_outline(rng)
    paints: dict[str, Paint] = {}
    is_group = rng.uniform() < 0.3
    for index, (x, y, extent, near) in enumerate(placements):
        if not (is_group and rng.uniform() < 0.8):
            outline, paints = draw_outline(rng), {}
        elif rng.uniform() < 0.5:
            paints = {}
        hidden = rng.uniform() < camouflage
        if hidden:
            paints = {role: stuff[int(rng.integers(len(stuff)))] for role in "abc"}
        elif rng.uniform() < 0.2:  # one part looks like something behind
            paints[str(rng.choice(["a", "b"]))] = stuff[int(rng.integers(len(stuff)))]
        sprite = _draw_sprite(rng, tiles, outline, paints, extent, light)
        if hidden:
            paints = {}
        area = _lay(rng, canvas, sprite, int(x), int(y), index, near)
        full_areas = np.append(full_areas, area)
        camouflaged.append(hidden)
    if rng.uniform() < 0.12:
        _draw_bars(rng, canvas, stuff)
    if rng.uniform() < 0.3:
        _dapple(rng, tiles, canvas)
    depth = canvas.depth
    return ObjectScene(
        image=_photograph(rng, canvas.rgb, depth),
        owners=canvas.owners,
        inverse_depth=((depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)).astype(np.float32),
        full_areas=full_areas,
        camouflaged=np.array(camouflaged, np.bool_),
    )


def list_objects(
    scene: ObjectScene, *, least_visible: float = 0.2, least_side: int = 6, least_area: int = 40
) -> list[SceneObject]:
    """Objects of which enough is seen.

    Args:
        scene: where.
        least_visible: share of the whole object.
        least_side: pixels of the box's shorter side.
        least_area: visible pixels.
    """
    found = []
    for index, full_area in enumerate(scene.full_areas):
        mask = scene.owners == index
        area = int(mask.sum())
        if area < max(least_area, least_visible * full_area):
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        if min(box[2] - box[0], box[3] - box[1]) >= least_side:
            found.append(SceneObject(index, box))
    return found


def _place(
    rng: np.random.Generator, count: int, size: int, *, is_crowded: bool
) -> list[tuple[float, float, float, float]]:
    """x, y of the middle, extent in pixels and nearness, from far to near."""
    least = 60 if is_crowded else 22  # large and many: every object touches others
    scale = float(np.exp(rng.uniform(math.log(least), math.log(190)))) * size / 256
    centre = rng.uniform(0.2, 0.8, 2) * size
    spread = rng.choice((0.12, 0.3, 0.6)) * size
    placed = []
    for _ in range(count):
        if rng.uniform() < 0.6:
            x, y = centre + rng.normal(0, spread, 2)
        else:
            x, y = rng.uniform(0, size, 2)
        extent = float(np.clip(scale * np.exp(rng.normal(0, 0.5)), 12, size * 1.15))
        x, y = np.clip((x, y), 0.02 * size, 0.98 * size)
        near = 0.35 + 0.5 * y / size + 0.1 * extent / size + rng.normal(0, 0.06)
        placed.append((float(x), float(y), extent, near))
    return sorted(placed, key=lambda item: item[3])


def _draw_background(
    rng: np.random.Generator, tiles: ByteArray, size: int
) -> tuple[_Canvas, list[Paint]]:
    paints = [draw_paint(rng, len(tiles), "stuff") for _ in range(int(rng.integers(2, 6)))]
    rgb = np.array(paints[0].fill(rng, tiles, size, size))
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    depth = np.broadcast_to(0.1 + 0.02 * y, (size, size)).copy()
    if rng.uniform() < 0.65:  # floor
        horizon = int(rng.uniform(0.15, 0.85) * size)
        rgb[horizon:] = paints[1].fill(rng, tiles, size - horizon, size)
        depth[horizon:] = 0.12 + 0.75 * np.linspace(0, 1, size - horizon, dtype=np.float32)[:, None]
    for _ in range(int(rng.choice((0, 1, 3, 8)))):  # walls, windows, shelves, trunks, patches
        paint = paints[int(rng.integers(len(paints)))]
        mask = np.zeros((size, size), np.uint8)
        x, y0 = rng.uniform(-0.1, 1, 2) * size
        w, h = np.exp(rng.uniform(1.5, 5.2, 2)) * size / 256
        if rng.uniform() < 0.55:
            corners = np.array([(x, y0), (x + w, y0), (x + w, y0 + h), (x, y0 + h)])
            corners += rng.normal(0, 0.04 * size, (4, 2)) * (rng.uniform() < 0.5)
        else:
            t = np.linspace(0, 2 * math.pi, 40)
            wobble = 1 + 0.25 * np.sin(t * rng.integers(2, 6) + rng.uniform(0, 6)) * rng.uniform()
            corners = np.stack((x + w * np.cos(t) * wobble, y0 + h * np.sin(t) * wobble), 1)
        cv2.fillPoly(mask, [(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        alpha = (mask / np.float32(255))[..., None]
        rgb = rgb + (paint.fill(rng, tiles, size, size) - rgb) * alpha
        depth += 0.03 * rng.uniform() * alpha[..., 0]
    ramp = cv2.resize(rng.uniform(0.65, 1.25, (2, 2)).astype(np.float32), (size, size))
    return _Canvas(
        (rgb * ramp[..., None]).astype(np.float32),
        np.full((size, size), _BACKGROUND, np.int16),
        depth,
    ), paints


def _hang(rng: np.random.Generator, canvas: _Canvas, backdrop: ObjectScene) -> None:
    """Put a part of an earlier scene behind everything; its objects are nobody's here."""
    size = canvas.rgb.shape[0]
    side = int(rng.uniform(0.4, 1.0) * len(backdrop.image))
    y, x = rng.integers(0, len(backdrop.image) - side + 1, 2)
    window = (slice(y, y + side), slice(x, x + side))
    picture = cv2.resize(backdrop.image[window], (size, size), interpolation=cv2.INTER_LINEAR)
    depth = cv2.resize(backdrop.inverse_depth[window], (size, size))
    if rng.uniform() < 0.5:
        picture, depth = picture[:, ::-1], depth[:, ::-1]
    cast = picture.mean((0, 1)) + 1  # taken off, or casts add up from scene to scene
    canvas.rgb[:] = picture * ((cast.mean() / cast) ** 0.8 * np.exp(rng.normal(0, 0.2)))
    canvas.depth[:] = 0.1 + rng.uniform(0.1, 0.4) * depth


def _draw_sprite(
    rng: np.random.Generator,
    tiles: ByteArray,
    outline: list[Part],
    paints: dict[str, Paint],
    extent: float,
    light: FloatArray,
) -> _Sprite:
    pad = 2
    span = np.concatenate([part.points for part in outline]).max(0)
    width, height = (math.ceil(v * extent) + 2 * pad + 1 for v in span)
    rgb = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width), np.float32)
    relief = np.zeros((height, width), np.float32)
    bump = rng.uniform(0.0, 1.0)
    for part in outline:
        points = part.points * extent + pad
        x0, y0 = np.floor(points.min(0)).astype(int) - 1
        x1, y1 = np.ceil(points.max(0)).astype(int) + 2
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if x1 - x0 < 2 or y1 - y0 < 2:
            continue
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        shifted = np.round((points - (x0, y0)) * 16).astype(np.int32)
        cv2.fillPoly(mask, [shifted], 255, cv2.LINE_AA, 4)
        cover = mask / np.float32(255)
        window = (slice(y0, y1), slice(x0, x1))
        if part.role == "hole":
            alpha[window] *= 1 - cover
            continue
        if part.role not in paints:
            paints[part.role] = draw_paint(rng, len(tiles), part.role)
        colour = paints[part.role].fill(rng, tiles, y1 - y0, x1 - x0)
        thickness = max(min(x1 - x0, y1 - y0), 3)
        dome, shade = _shade(cover, thickness, bump, light)
        colour = colour * shade[..., None]
        rgb[window] += (colour - rgb[window]) * cover[..., None]
        alpha[window] = np.maximum(alpha[window], cover)
        relief[window] = np.maximum(relief[window], dome * cover * thickness / max(extent, 1))
    if rng.uniform() < 0.15:  # outlined, as in drawings or against the light
        edge = cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        rgb *= 1 - 0.6 * edge[..., None] * rng.choice((-0.5, 1.0))
    if extent > 30 and rng.uniform() < 0.22:
        grown = cv2.dilate(rgb, np.ones((5, 5), np.uint8))
        rgb = np.where(alpha[..., None] > 0.05, rgb, grown)
        alpha = _roughen(rng, alpha)
    if rng.uniform() < 0.25:  # a gleam
        x, y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.1, 0.7) * height
        axes = (
            max(1, int(extent * rng.uniform(0.01, 0.15))),
            max(1, int(extent * rng.uniform(0.01, 0.06))),
        )
        gleam = np.zeros((height, width), np.uint8)
        cv2.ellipse(gleam, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
        soft = cv2.GaussianBlur(gleam, (0, 0), 0.5 + 0.02 * extent) / np.float32(255)
        rgb += rng.uniform(0.3, 1.0) * (255 - rgb) * soft[..., None]
    if rng.uniform() < 0.3:  # light falls off over the object
        ramp = cv2.resize(rng.uniform(0.5, 1.4, (2, 2)).astype(np.float32), (width, height))
        rgb *= ramp[..., None]
    return _Sprite(rgb, alpha, relief)


def _shade(
    cover: FloatArray, thickness: int, bump: float, light: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Rounded relief of a part, and its brightness under the light."""
    dome = cv2.GaussianBlur(cover, (0, 0), 0.18 * thickness + 0.4)
    gx, gy = np.gradient(dome, axis=1), np.gradient(dome, axis=0)
    slope = bump * thickness * 0.55
    facing = light[2] - slope * (gx * light[0] + gy * light[1])
    facing = facing / np.sqrt(1 + slope**2 * (gx**2 + gy**2))
    return dome, 0.55 + 0.6 * np.clip(facing, 0, 1.4)


def _lay(
    rng: np.random.Generator,
    canvas: _Canvas,
    sprite: _Sprite,
    x: int,
    y: int,
    index: int,
    near: float,
) -> float:
    """Put a sprite with its shadow onto the canvas; returns its whole area."""
    size = canvas.rgb.shape[0]
    height, width = sprite.alpha.shape
    top, left = y - height // 2, x - width // 2
    if rng.uniform() < 0.55:
        _cast_shadow(rng, canvas, sprite, top, left)
    r0, r1, c0, c1 = max(top, 0), min(top + height, size), max(left, 0), min(left + width, size)
    if r1 <= r0 or c1 <= c0:
        return 0.0
    own = (slice(r0 - top, r1 - top), slice(c0 - left, c1 - left))
    there = (slice(r0, r1), slice(c0, c1))
    alpha = sprite.alpha[own]
    rgb = sprite.rgb[own]
    if rng.uniform() < 0.2:
        blurred = cv2.GaussianBlur(sprite.alpha, (0, 0), rng.uniform(0.5, 1.5))[own]
        canvas.rgb[there] += (rgb - canvas.rgb[there]) * np.minimum(blurred, alpha)[..., None]
    else:
        canvas.rgb[there] += (rgb - canvas.rgb[there]) * alpha[..., None]
    seen = alpha > 0.5
    canvas.owners[there][seen] = index
    depth = near + 0.12 * sprite.relief[own]
    canvas.depth[there][seen] = depth[seen]
    return float((sprite.alpha > 0.5).sum())


def _draw_bars(rng: np.random.Generator, canvas: _Canvas, stuff: list[Paint]) -> None:
    """Fences, poles, wires and twigs before everything else; they are nobody's."""
    size = canvas.rgb.shape[0]
    colour = stuff[int(rng.integers(len(stuff)))].colours[int(rng.integers(256))]
    mask = np.zeros((size, size), np.uint8)
    count, thickness = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    angle, step = rng.uniform(0, math.pi), size / count
    across = np.array((math.cos(angle), math.sin(angle)))
    for k in range(count):
        middle = size / 2 + across * ((k - count / 2) * step + rng.normal(0, 4))
        along = np.array((-across[1], across[0])) * size + rng.normal(0, 6, 2)
        ends = [tuple(int(v) for v in middle + sign * along) for sign in (-1, 1)]
        cv2.line(mask, ends[0], ends[1], 255, thickness, cv2.LINE_AA)
    alpha = (mask / np.float32(255))[..., None]
    canvas.rgb += (colour * np.float32(rng.uniform(0.4, 1.1)) - canvas.rgb) * alpha
    canvas.owners[mask > 127] = _BACKGROUND
    canvas.depth[mask > 127] = canvas.depth.max() + 0.05


def _dapple(rng: np.random.Generator, tiles: ByteArray, canvas: _Canvas) -> None:
    """Light through leaves, or from a window: a pattern of shade over everything."""
    size = canvas.rgb.shape[0]
    zoom = int(rng.integers(24, 190))
    y, x = rng.integers(0, tiles.shape[1] - zoom + 1, 2)
    shade = tiles[int(rng.integers(len(tiles))), y : y + zoom, x : x + zoom]
    shade = cv2.resize(shade, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    shade = cv2.GaussianBlur(shade, (0, 0), float(rng.uniform(0.8, 6))) / 255
    canvas.rgb *= 1 + rng.uniform(0.2, 0.7) * (shade[..., None] - 0.5)


def _roughen(rng: np.random.Generator, sprite_alpha: FloatArray) -> FloatArray:
    """Fur, leaves, ragged cloth: an edge that wanders by a few pixels."""
    height, width = sprite_alpha.shape
    strength = float(rng.uniform(0.5, 2.5)) * min(1.0, max(height, width) / 90)
    moved = cv2.GaussianBlur(
        rng.standard_normal((height, width, 2), np.float32), (0, 0), float(rng.uniform(0.7, 2.2))
    )
    moved *= strength / max(float(moved.std()), 1e-6)
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    return cv2.remap(sprite_alpha, columns + moved[..., 0], rows + moved[..., 1], cv2.INTER_LINEAR)


def _cast_shadow(
    rng: np.random.Generator, canvas: _Canvas, sprite: _Sprite, top: int, left: int
) -> None:
    size = canvas.rgb.shape[0]
    height, width = sprite.alpha.shape
    if rng.uniform() < 0.5:  # on the floor, below
        flat = float(rng.uniform(0.08, 0.35))
        matrix = np.array(
            [[1, rng.normal(0, 0.5), left], [0, flat, top + height * (0.97 - flat)]], np.float32
        )
        matrix[0, 2] -= matrix[0, 1] * height
    else:
        matrix = np.array(
            [
                [1, 0, left + rng.normal(0, 0.08) * width],
                [0, 1, top + rng.uniform(0, 0.1) * height],
            ],
            np.float32,
        )
    shadow = cv2.warpAffine(sprite.alpha, matrix, (size, size), flags=cv2.INTER_LINEAR)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.5 + rng.uniform(0, 0.06) * max(height, width))
    canvas.rgb *= 1 - rng.uniform(0.15, 0.65) * shadow[..., None]


def _photograph(rng: np.random.Generator, rgb: FloatArray, depth: FloatArray) -> ByteArray:
    """Light, haze, lens, sensor and file."""
    rgb = rgb * np.exp(rng.normal(0, 0.12, 3) + rng.normal(0, 0.15)).astype(np.float32)
    if rng.uniform() < 0.15:
        haze = np.exp(-rng.uniform(0.5, 2.5) * np.clip(depth, 0, 1))[..., None]
        rgb = rgb + (rng.uniform(120, 240) - rgb) * haze.astype(np.float32) * rng.uniform(0.2, 0.8)
    rgb = 255 * np.power(np.clip(rgb / 255, 0, 1), np.exp(rng.normal(0, 0.2)), dtype=np.float32)
    if rng.uniform() < 0.5:
        rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.3, 1.4))
    if rng.uniform() < 0.06:
        length = int(rng.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        cv2.line(
            kernel, (0, int(rng.integers(length))), (length - 1, int(rng.integers(length))), 1.0
        )
        rgb = cv2.filter2D(rgb, -1, kernel / kernel.sum())
    grey = rgb.mean(2, keepdims=True)
    rgb = grey + (rgb - grey) * np.float32(0 if rng.uniform() < 0.04 else rng.uniform(0.4, 1.1))
    strength = float(np.exp(rng.uniform(-1, 2.5)))
    noise = rng.standard_normal(rgb.shape[:2], np.float32)[..., None] * 0.7
    noise = noise + rng.standard_normal(rgb.shape, np.float32) * 0.7
    image = np.clip(rgb + strength * noise, 0, 255).astype(np.uint8)
    if rng.uniform() < 0.8:
        quality = int(rng.integers(35, 96))
        _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return image


def _unit(v: FloatArray) -> FloatArray:
    return v / np.linalg.norm(v)
