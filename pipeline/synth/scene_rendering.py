"""From the dice to a picture with exact masks and depth."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from pipeline.synth.scene_layout import (
    Camera,
    Proposal,
    Room,
    SceneSettings,
    draw_camera,
    draw_proposal,
    draw_room,
)
from pipeline.synth.shapes import (
    BoolArray,
    FloatArray,
    Solid,
    cast_rays,
    dot_rows,
    surface_normals,
    world_to_local,
)
from pipeline.synth.textures import paint

_NUM_LIGHT_SAMPLES = 5
_MIN_VISIBLE_AREA = 24 / 256**2  # of the picture
_MAX_PROPOSALS = 120


@dataclasses.dataclass(kw_only=True, frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: (H, W, 3) uint8 sRGB.
        depth_metres: (H, W) float32, distance along the optical axis, finite everywhere.
        masks: (N, H, W) bool, the visible part of each object; disjoint.
        classes: (N,) int64, index into the settings' `shapes`.
        appearances: N names out of `scene_layout.APPEARANCES`.
        solids: the N solids themselves.
        cut_by_border: (N,) bool, the mask touches the picture's border.
    """

    image: npt.NDArray[np.uint8]
    depth_metres: FloatArray
    masks: BoolArray
    classes: npt.NDArray[np.int64]
    appearances: tuple[str, ...]
    solids: tuple[Solid, ...]
    cut_by_border: BoolArray

    @property
    def inverse_depth(self) -> FloatArray:
        """(H, W) float32 in 1/metres, larger = nearer."""
        return np.asarray(1.0 / self.depth_metres, np.float32)

    @property
    def boxes_xywh(self) -> npt.NDArray[np.int64]:
        """(N, 4) tight boxes around the visible masks: left, top, width, height in pixels."""
        boxes = np.zeros((len(self.masks), 4), np.int64)
        for index, mask in enumerate(self.masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes[index] = (
                columns[0],
                rows[0],
                columns[-1] - columns[0] + 1,
                rows[-1] - rows[0] + 1,
            )
        return boxes


@dataclasses.dataclass(kw_only=True)
class _Placed:
    """A proposal with where its rays hit: `t` over the flat pixel indices `pixels`."""

    proposal: Proposal
    pixels: npt.NDArray[np.int64]
    t: FloatArray


def render_scene(
    seed: int,
    size: tuple[int, int] = (256, 256),
    *,
    index: int = 0,
    settings: SceneSettings | None = None,
) -> Scene:
    """Render one scene.

    Args:
        seed: the data set's seed, >= 0.
        size: (height, width) in pixels, each >= 32.
        index: number of the picture in its data set; the scene depends on `(seed, index)`,
            `size` and `settings` alone.
        settings: shares and counts; None for the defaults.

    Raises:
        ValueError: a negative seed or index, or a size below 32 pixels.
    """
    if min(size) < 32:
        raise ValueError(f"size is {size}; expected (height, width) of at least 32 pixels each")
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative")
    settings = settings or SceneSettings()
    rng = np.random.default_rng([seed, index])
    camera = draw_camera(rng, size)
    room = draw_room(rng)
    rays = camera.pixel_rays()
    room_t, surface = _cast_room(camera, room, rays)
    placed = _place_objects(rng, camera=camera, room=room, rays=rays, settings=settings)

    depth, owner = _resolve_visibility(placed, room_t)
    points = camera.position + depth[:, None] * rays
    normals = _room_normals(surface)
    for number, item in enumerate(placed):
        seen = np.flatnonzero(owner == number)
        normals[seen] = surface_normals(item.proposal.solid, points[seen])

    albedo, lambert, gloss = _paint_back_to_front(
        camera=camera,
        room=room,
        rays=rays,
        room_t=room_t,
        surface=surface,
        placed=placed,
        owner=owner,
        normals=normals,
        points=points,
        camouflage_shading=settings.camouflage_shading,
    )
    light_share = _unshadowed_share(room, points, normals, [item.proposal.solid for item in placed])
    radiance = _light(
        room=room,
        camera=camera,
        albedo=albedo,
        lambert=lambert,
        gloss=gloss,
        light_share=light_share,
        points=points,
        normals=normals,
    )
    image = _develop(rng, radiance.reshape(*size, 3))

    masks = np.stack([(owner == number).reshape(size) for number in range(len(placed))])
    frame = np.ones(size, np.bool_)
    frame[1:-1, 1:-1] = False
    return Scene(
        image=image,
        depth_metres=depth.reshape(size),
        masks=masks,
        classes=np.array(
            [settings.shapes.index(item.proposal.solid.shape) for item in placed], np.int64
        ),
        appearances=tuple(item.proposal.appearance for item in placed),
        solids=tuple(item.proposal.solid for item in placed),
        cut_by_border=np.asarray(masks[:, frame].any(axis=1), np.bool_),
    )


def _cast_room(
    camera: Camera, room: Room, rays: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Depth of the empty room and which surface: 0 floor, 1 back wall, 2 left, 3 right."""
    x, y, z = (float(value) for value in camera.position)
    candidates = np.full((4, rays.shape[0]), np.inf, np.float32)
    with np.errstate(divide="ignore"):
        candidates[0] = np.where(rays[:, 1] < 0, -y / rays[:, 1], np.inf)
        candidates[1] = np.where(rays[:, 2] > 0, (room.length - z) / rays[:, 2], np.inf)
        candidates[2] = np.where(rays[:, 0] < 0, (-room.half_width - x) / rays[:, 0], np.inf)
        candidates[3] = np.where(rays[:, 0] > 0, (room.half_width - x) / rays[:, 0], np.inf)
    surface = np.argmin(candidates, axis=0)
    return np.take_along_axis(candidates, surface[None], axis=0)[0], surface


def _room_normals(surface: npt.NDArray[np.int64]) -> FloatArray:
    return np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0], [-1, 0, 0]], np.float32)[surface]


def _paint_room(room: Room, points: FloatArray, surface: npt.NDArray[np.int64]) -> FloatArray:
    albedo = np.empty_like(points)
    for number, (texture, u, v) in enumerate(
        zip((0, 1, 2, 2), (0, 0, 2, 2), (2, 1, 1, 1), strict=True)
    ):
        chosen = np.flatnonzero(surface == number)
        flat = np.zeros((chosen.size, 3), np.float32)
        flat[:, 0], flat[:, 1] = points[chosen, u], points[chosen, v]
        albedo[chosen] = paint(room.textures[texture], flat)
    return albedo


def _place_objects(
    rng: np.random.Generator,
    *,
    camera: Camera,
    room: Room,
    rays: FloatArray,
    settings: SceneSettings,
) -> list[_Placed]:
    """Add objects one by one; each must be seen, and leave the others to be seen."""
    wanted = int(rng.integers(settings.num_objects_min, settings.num_objects_max + 1))
    min_area = max(12, math.ceil(_MIN_VISIBLE_AREA * camera.size[0] * camera.size[1]))
    placed: list[_Placed] = []
    for attempt in range(_MAX_PROPOSALS * 4):
        done = len(placed) >= wanted
        if done or (attempt >= _MAX_PROPOSALS and len(placed) >= settings.num_objects_min):
            break
        proposal = draw_proposal(
            rng,
            camera=camera,
            room=room,
            settings=settings,
            placed=[item.proposal.solid for item in placed],
        )
        if proposal is None:
            continue
        candidate = _cast_object(camera, rays, proposal)
        if candidate.pixels.size < min_area:
            continue
        together = [*placed, candidate]
        _, owner = _resolve_visibility(together, np.full(rays.shape[0], np.inf, np.float32))
        areas = np.bincount(owner[owner >= 0], minlength=len(together))
        whole = np.array([item.pixels.size for item in together])
        if not (areas >= np.maximum(min_area, settings.visible_share_min * whole)).all():
            continue
        if settings.box_side_min > 0:
            sides = [
                _longer_side(np.flatnonzero(owner == i), camera.size) for i in range(len(areas))
            ]
            if min(sides) < settings.box_side_min * min(camera.size):
                continue
        placed = together
    return placed


def _longer_side(pixels: npt.NDArray[np.int64], size: tuple[int, int]) -> int:
    """Longer side in pixels of the tight box around flat pixel indices."""
    rows, columns = pixels // size[1], pixels % size[1]
    return int(max(np.ptp(rows), np.ptp(columns))) + 1


def _cast_object(camera: Camera, rays: FloatArray, proposal: Proposal) -> _Placed:
    """Cast only the rays of the solid's bounding rectangle."""
    top, bottom, left, right = camera.bounding_rectangle(proposal.solid)
    width = camera.size[1]
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    pixels = (rows[:, None] * width + columns[None, :]).ravel()
    t = cast_rays(proposal.solid, camera.position[None], rays[pixels])
    hit = np.isfinite(t)
    return _Placed(proposal=proposal, pixels=pixels[hit], t=t[hit])


def _resolve_visibility(
    placed: list[_Placed], background_t: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Nearest depth per pixel, and the number of the object it belongs to (-1: none)."""
    depth = background_t.copy()
    owner = np.full(depth.shape, -1, np.int64)
    for number, item in enumerate(placed):
        nearer = item.t < depth[item.pixels]
        depth[item.pixels[nearer]] = item.t[nearer]
        owner[item.pixels[nearer]] = number
    return depth, owner


def _paint_back_to_front(
    *,
    camera: Camera,
    room: Room,
    rays: FloatArray,
    room_t: FloatArray,
    surface: npt.NDArray[np.int64],
    placed: list[_Placed],
    owner: npt.NDArray[np.int64],
    normals: FloatArray,
    points: FloatArray,
    camouflage_shading: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Albedo (P, 3), Lambert factor (P,) and gloss (P,) of every pixel.

    Objects are painted from far to near, so that a camouflaged one can take over the picture
    behind it: what it covers, bent a few pixels by its surface as thick glass would.
    """
    height, width = camera.size
    room_points = camera.position + room_t[:, None] * rays
    albedo = _paint_room(room, room_points, surface)
    lambert = _lambert(room, room_points, _room_normals(surface))
    gloss = np.zeros(owner.shape, np.float32)
    own_lambert = _lambert(room, points, normals)
    order = sorted(range(len(placed)), key=lambda number: -float(np.median(placed[number].t)))
    for number in order:
        proposal = placed[number].proposal
        seen = np.flatnonzero(owner == number)
        if proposal.appearance == "camouflaged":
            in_view = normals[seen] @ camera.axes.T
            columns = np.rint(seen % width + proposal.bend_px * in_view[:, 0]).astype(np.int64)
            rows = np.rint(seen // width - proposal.bend_px * in_view[:, 1]).astype(np.int64)
            behind = np.clip(rows, 0, height - 1) * width + np.clip(columns, 0, width - 1)
            albedo[seen], behind_lambert = albedo[behind], lambert[behind]
            lambert[seen] = behind_lambert + camouflage_shading * (
                own_lambert[seen] - behind_lambert
            )
            gloss[seen] = 0.0
            continue
        lambert[seen] = own_lambert[seen]
        gloss[seen] = proposal.gloss
        if proposal.appearance == "easy":
            behind_colour = albedo[seen].mean(axis=0)
            contrast = np.abs(np.sqrt(proposal.candidate_colours) - np.sqrt(behind_colour)).sum(
                axis=1
            )
            albedo[seen] = proposal.candidate_colours[int(np.argmax(contrast))]
        else:
            local = world_to_local(proposal.solid, points[seen])
            albedo[seen] = paint(proposal.texture, local)
    return albedo, lambert, gloss


def _lambert(room: Room, points: FloatArray, normals: FloatArray) -> FloatArray:
    """Cosine to the lamp with its fall-off, 1 for a surface that faces it at 5 metres."""
    to_light = room.light_position - points
    distance = np.sqrt(dot_rows(to_light, to_light))
    cosine = np.maximum(dot_rows(normals, to_light) / distance, 0)
    return np.asarray(cosine * np.minimum(2.0, (5.0 / distance) ** 1.2), np.float32)


def _unshadowed_share(
    room: Room, points: FloatArray, normals: FloatArray, solids: list[Solid]
) -> FloatArray:
    """Share of the lamp's disc that each point sees, (P,) in 0..1: soft shadows."""
    to_light = room.light_position - points
    lit = np.flatnonzero(dot_rows(to_light, normals) > 0)
    starts, to_light = points[lit] + np.float32(2e-3) * normals[lit], to_light[lit]
    squared_length = dot_rows(to_light, to_light)
    angles = 2 * math.pi * np.arange(_NUM_LIGHT_SAMPLES) / _NUM_LIGHT_SAMPLES + 0.4
    offsets = room.light_radius * np.stack([np.cos(angles), np.zeros_like(angles), np.sin(angles)])
    blocked = np.zeros((_NUM_LIGHT_SAMPLES, lit.size), np.bool_)
    for solid in solids:
        # Only points whose cone of rays to the lamp comes near the solid are worth casting from.
        to_solid = solid.centre - starts
        along = np.clip(dot_rows(to_solid, to_light) / squared_length, 0, 1)
        miss = to_solid - along[:, None] * to_light
        reach = solid.bounding_radius + room.light_radius
        near = np.flatnonzero(dot_rows(miss, miss) < np.float32(reach**2))
        for sample, offset in enumerate(offsets.T.astype(np.float32)):
            hits = cast_rays(solid, starts[near], to_light[near] + offset) < 1.0
            blocked[sample, near] |= hits
    share = np.zeros(points.shape[0], np.float32)
    share[lit] = 1 - blocked.mean(axis=0)
    return share


def _light(
    *,
    room: Room,
    camera: Camera,
    albedo: FloatArray,
    lambert: FloatArray,
    gloss: FloatArray,
    light_share: FloatArray,
    points: FloatArray,
    normals: FloatArray,
) -> FloatArray:
    """Linear radiance (P, 3): ambient light, diffuse lamp light, and the lamp's reflection."""
    to_camera = camera.position - points
    to_camera /= np.sqrt(dot_rows(to_camera, to_camera))[:, None]
    ambient = room.ambient * (0.7 + 0.15 * normals[:, 1] + 0.2 * dot_rows(normals, to_camera))
    direct = 0.85 * lambert * light_share
    radiance = albedo * (ambient[:, None] + direct[:, None] * room.light_colour)
    glossy = np.flatnonzero(gloss > 0)
    to_light = room.light_position - points[glossy]
    half = to_light / np.linalg.norm(to_light, axis=1, keepdims=True)
    half += to_camera[glossy]
    half /= np.linalg.norm(half, axis=1, keepdims=True) + 1e-9
    shine = np.maximum(dot_rows(half, normals[glossy]), 0) ** 40
    radiance[glossy] += (gloss[glossy] * shine * light_share[glossy])[:, None]
    return np.asarray(radiance, np.float32)


def _develop(rng: np.random.Generator, radiance: FloatArray) -> npt.NDArray[np.uint8]:
    """Lens blur of about half a pixel, sensor noise, gamma, 8 bits."""
    height, width = radiance.shape[:2]
    side, middle = np.float32(0.18), np.float32(0.64)
    padded = np.pad(radiance, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = side * padded[:height] + middle * padded[1 : height + 1] + side * padded[2:]
    blurred = side * rows[:, :width] + middle * rows[:, 1 : width + 1] + side * rows[:, 2:]
    encoded = np.clip(blurred, 0, 1) ** (1 / 2.2)
    noise = rng.standard_normal(encoded.shape[:2], np.float32)[..., None] * 0.008
    return np.asarray(np.clip(encoded + noise, 0, 1) * 255 + 0.5, np.uint8)
