"""What stands where: the dice behind a scene, before any ray is cast."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pipeline.synth.shapes import OPEN_SHAPES, SHAPES, FloatArray, Solid
from pipeline.synth.textures import Texture, draw_palette, draw_texture

APPEARANCES = ("camouflaged", "easy", "textured")
"""How an object is painted: like what is behind it, in a colour of its own, or with a pattern."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class SceneSettings:
    """What may be chosen about a scene.

    Attributes:
        num_objects_min: fewest objects aimed at.
        num_objects_max: most objects.
        camouflaged_share: probability that an object shows the texture of what is behind it.
        easy_share: probability that it has one colour far from what is behind it; the rest
            carries patterns of its own.
        tiny_share: probability of an object only 4 to 8 % of the picture in diameter.
        border_share: probability that an object is placed across the picture's border.
        floating_share: probability that it hangs in the air instead of standing on the floor.
        camouflage_shading: 0..1, how much of its own light and shade a camouflaged object shows;
            at 0 only its shadow and the bent texture give it away.
        patchwork_share: probability that the patches of a textured object have unrelated colours,
            so that colour breaks inside it as hard as at its border.
        shapes: names out of `SHAPES` and `OPEN_SHAPES`, all equally likely.
        one_class: annotations call every shape `object`.
        diameter_min: least diameter of an object that is not tiny, as a share of the picture.
        diameter_max: largest diameter, likewise.
        box_side_min: objects whose visible part has a box with a longer side below this share of
            the picture are left out.
        visible_share_min: objects of which less can be seen are left out.

    Raises:
        ValueError: a share outside 0..1, shares that add up to more than 1, object counts that
            are not 1 <= min <= max, diameters that are not 0 < min <= max, or an unknown shape.
    """

    num_objects_min: int = 3
    num_objects_max: int = 10
    camouflaged_share: float = 0.5
    easy_share: float = 0.25
    tiny_share: float = 0.12
    border_share: float = 0.15
    floating_share: float = 0.35
    camouflage_shading: float = 0.6
    patchwork_share: float = 0.0
    shapes: tuple[str, ...] = SHAPES
    one_class: bool = False
    diameter_min: float = 0.11
    diameter_max: float = 0.42
    box_side_min: float = 0.0
    visible_share_min: float = 0.3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not 0.0 <= value <= 1.0:
                raise ValueError(f"{field.name} is {value}; expected a number from 0 to 1")
        if self.camouflaged_share + self.easy_share > 1.0 + 1e-9:
            raise ValueError(
                f"camouflaged_share {self.camouflaged_share} and easy_share {self.easy_share} "
                "add up to more than 1; lower one of them"
            )
        if not 1 <= self.num_objects_min <= self.num_objects_max:
            raise ValueError(
                f"num_objects_min {self.num_objects_min} and num_objects_max "
                f"{self.num_objects_max}: expected 1 <= min <= max"
            )
        if not 0 < self.diameter_min <= self.diameter_max:
            raise ValueError(
                f"diameter_min {self.diameter_min} and diameter_max {self.diameter_max}: "
                "expected 0 < min <= max"
            )
        unknown = set(self.shapes) - {*SHAPES, *OPEN_SHAPES}
        if unknown or not self.shapes:
            raise ValueError(
                f"shapes {sorted(unknown)} are unknown; expected some of {(*SHAPES, *OPEN_SHAPES)}"
            )


PRESETS = {
    "rooms": SceneSettings(),
    "miniature": SceneSettings(
        num_objects_min=1,
        num_objects_max=5,
        camouflaged_share=0.4,
        easy_share=0.15,
        tiny_share=0.0,
        border_share=0.0,
        floating_share=0.5,
        camouflage_shading=0.5,
        patchwork_share=1.0,
        shapes=OPEN_SHAPES,
        one_class=True,
        diameter_min=0.32,
        diameter_max=0.62,
        box_side_min=0.25,
        visible_share_min=0.6,
    ),
}
"""rooms: the demo's scenes. miniature: scenes in which masks differ from boxes and colour is not
enough; at 384 pixels, the longer side of every box is at least 12 neighbour steps of 8 pixels."""


@dataclasses.dataclass(kw_only=True, frozen=True)
class Camera:
    """A pinhole camera; x right, y up, z away from the viewer.

    Attributes:
        position: (3,) metres.
        axes: (3, 3), rows are right, up and forward in the world.
        focal_px: focal length in pixels.
        size: (height, width) in pixels.
    """

    position: FloatArray
    axes: FloatArray
    focal_px: float
    size: tuple[int, int]

    def pixel_rays(self) -> FloatArray:
        """(H·W, 3) directions through pixel centres, of length 1 along the optical axis.

        So the t of a ray is the depth in metres.
        """
        height, width = self.size
        x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / self.focal_px
        y = -(np.arange(height, dtype=np.float32) + 0.5 - height / 2) / self.focal_px
        grid = np.empty((height, width, 3), np.float32)
        grid[..., 0], grid[..., 1], grid[..., 2] = x[None, :], y[:, None], 1.0
        return np.asarray(grid.reshape(-1, 3) @ self.axes, np.float32)

    def ray_through(self, column: float, row: float) -> FloatArray:
        """(3,) direction through a picture position, of length 1 along the optical axis."""
        height, width = self.size
        local = np.asarray(
            ((column - width / 2) / self.focal_px, -(row - height / 2) / self.focal_px, 1.0),
            np.float32,
        )
        return np.asarray(local @ self.axes, np.float32)

    def bounding_rectangle(self, solid: Solid) -> tuple[int, int, int, int]:
        """Rows and columns (top, bottom, left, right; ends exclusive) a solid can cover."""
        height, width = self.size
        right, up, forward = (solid.centre - self.position) @ self.axes.T
        radius = solid.bounding_radius
        if forward <= radius * 1.05:
            return 0, height, 0, width
        reach = self.focal_px * radius / math.sqrt(forward**2 - radius**2)
        # A sphere off the axis projects to an ellipse, longer away from the centre.
        stretch = math.sqrt(1 + (right**2 + up**2) / forward**2)
        reach = reach * stretch * (forward / math.sqrt(forward**2 - radius**2)) + 2
        column = width / 2 + self.focal_px * right / forward
        row = height / 2 - self.focal_px * up / forward
        return (
            int(np.clip(math.floor(row - reach), 0, height)),
            int(np.clip(math.ceil(row + reach), 0, height)),
            int(np.clip(math.floor(column - reach), 0, width)),
            int(np.clip(math.ceil(column + reach), 0, width)),
        )


@dataclasses.dataclass(kw_only=True, frozen=True)
class Room:
    """Floor at y = 0, a back wall at z = `length`, side walls at x = ± `half_width`."""

    length: float
    half_width: float
    textures: tuple[Texture, Texture, Texture]  # floor, back wall, side walls
    light_position: FloatArray
    light_radius: float
    light_colour: FloatArray
    ambient: float


@dataclasses.dataclass(kw_only=True, frozen=True)
class Proposal:
    """An object that may go into the scene, if it can be seen there."""

    solid: Solid
    appearance: str
    texture: Texture
    candidate_colours: FloatArray  # (12, 3); an easy object takes the one farthest from behind
    gloss: float
    bend_px: float  # how far a camouflaged surface bends the texture behind it


def draw_camera(rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """A camera at a seated or standing eye height that looks slightly down into the room."""
    yaw = rng.uniform(-0.22, 0.22)
    pitch = rng.uniform(0.02, 0.2)
    field_of_view = rng.uniform(math.radians(52), math.radians(66))
    forward = np.array(
        [math.sin(yaw) * math.cos(pitch), -math.sin(pitch), math.cos(yaw) * math.cos(pitch)]
    )
    right = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    up = np.cross(forward, right)
    return Camera(
        position=np.array([rng.uniform(-0.8, 0.8), rng.uniform(0.75, 1.5), 0.0], np.float32),
        axes=np.stack([right, up, forward]).astype(np.float32),
        focal_px=0.5 * max(size) / math.tan(field_of_view / 2),
        size=size,
    )


def draw_room(rng: np.random.Generator) -> Room:
    """A room with its textures and its lamp."""
    choices = (
        ("checks", "blobs", "bricks", "stripes", "marble", "plain"),
        ("blobs", "blobs", "bricks", "stripes", "checks", "dots", "marble", "plain"),
        ("blobs", "bricks", "stripes", "plain"),
    )
    textures = [
        draw_texture(
            rng,
            pattern=str(rng.choice(patterns)),
            cell_metres=float(rng.uniform(0.55, 1.3)),
            palette=draw_palette(rng, num_colours=int(rng.integers(2, 5)), vivid=False),
        )
        for patterns in choices
    ]
    if rng.uniform() < 0.3:  # one material all over, as in a cave or a tiled bath
        textures = [textures[0]] * 3
    length = float(rng.uniform(6.5, 10.0))
    half_width = float(rng.uniform(3.2, 5.5))
    warmth = rng.uniform(-0.08, 0.08)
    return Room(
        length=length,
        half_width=half_width,
        textures=(textures[0], textures[1], textures[2]),
        light_position=np.array(
            [
                rng.uniform(-0.8, 0.8) * half_width,
                rng.uniform(4.0, 6.5),
                rng.uniform(-1.0, 0.6 * length),
            ],
            np.float32,
        ),
        light_radius=float(rng.uniform(0.15, 0.45)),
        light_colour=np.array([1 + warmth, 1.0, 1 - warmth], np.float32),
        ambient=float(rng.uniform(0.3, 0.5)),
    )


def draw_proposal(
    rng: np.random.Generator,
    *,
    camera: Camera,
    room: Room,
    settings: SceneSettings,
    placed: list[Solid],
) -> Proposal | None:
    """Throw the dice for one more object; None where it would leave the room or touch another."""
    height, width = camera.size
    shape = settings.shapes[int(rng.integers(len(settings.shapes)))]
    tiny = rng.uniform() < settings.tiny_share
    at_border = rng.uniform() < settings.border_share
    floating = rng.uniform() < settings.floating_share
    relative = (
        math.exp(rng.uniform(math.log(0.04), math.log(0.08)))
        if tiny
        else math.exp(rng.uniform(math.log(settings.diameter_min), math.log(settings.diameter_max)))
    )
    distance = float(rng.uniform(2.0, room.length - 0.8))
    radius = 0.5 * relative * min(height, width) * distance / camera.focal_px
    extents = _draw_extents(rng, shape, min(radius, 1.3))
    rotation = _draw_rotation(rng, shape)

    column = rng.uniform(0.08, 0.92) * width
    if at_border:
        column = rng.choice([0.0, 1.0]) * width + rng.normal(0, 0.25) * relative * width
    elif placed and rng.uniform() < 0.4:  # next to, before or behind another one
        other = (placed[int(rng.integers(len(placed)))].centre - camera.position) @ camera.axes.T
        other_column = width / 2 + camera.focal_px * other[0] / max(float(other[2]), 0.5)
        column = other_column + rng.normal(0, 0.5) * relative * width
    row = rng.uniform(0.08, 0.75) * height
    centre = camera.position + camera.ray_through(float(column), float(row)) * distance
    solid = Solid(shape=shape, extents=extents, rotation=rotation, centre=centre)
    if not floating or centre[1] < solid.half_height:
        centre = centre.copy()
        centre[1] = solid.half_height
        solid = dataclasses.replace(solid, centre=centre)

    texture = draw_texture(
        rng,
        pattern=str(rng.choice(["checks", "stripes", "blobs", "dots", "marble", "bricks"])),
        cell_metres=float(rng.uniform(0.35, 0.9)) * solid.bounding_radius,
        palette=draw_palette(rng, num_colours=int(rng.integers(2, 4)), vivid=rng.uniform() < 0.5),
    )
    if settings.patchwork_share > 0 and rng.uniform() < settings.patchwork_share:
        texture = _draw_patchwork(rng, solid.bounding_radius)
    pick = rng.uniform()
    appearance = "textured"
    if pick < settings.camouflaged_share:
        appearance = "camouflaged"
    elif pick < settings.camouflaged_share + settings.easy_share:
        appearance = "easy"
    proposal = Proposal(
        solid=solid,
        appearance=appearance,
        texture=texture,
        candidate_colours=np.concatenate(
            [draw_palette(rng, num_colours=1, vivid=True) for _ in range(12)]
        ),
        gloss=float(rng.uniform(0.0, 0.5)),
        bend_px=float(rng.uniform(3.0, 8.0)) * min(height, width) / 256,
    )
    return proposal if _has_room(solid, camera=camera, room=room, placed=placed) else None


def _draw_patchwork(rng: np.random.Generator, radius: float) -> Texture:
    """Patches of a quarter to half the object's radius, in colours that have nothing in common."""
    vivid = rng.uniform(size=4) < 0.5
    return draw_texture(
        rng,
        pattern=str(rng.choice(["checks", "stripes", "blobs"])),
        cell_metres=float(rng.uniform(0.25, 0.5)) * radius,
        palette=np.concatenate([draw_palette(rng, num_colours=1, vivid=bool(v)) for v in vivid]),
    )


def _has_room(solid: Solid, *, camera: Camera, room: Room, placed: list[Solid]) -> bool:
    radius = solid.bounding_radius
    x, _, z = (float(value) for value in solid.centre)
    if abs(x) + radius > room.half_width or z + radius > room.length:
        return False
    if np.linalg.norm(solid.centre - camera.position) < radius + 0.6:
        return False
    if np.linalg.norm(solid.centre - room.light_position) < radius + room.light_radius + 0.3:
        return False
    return all(
        np.linalg.norm(solid.centre - other.centre) > radius + other.bounding_radius
        for other in placed
    )


def _draw_extents(rng: np.random.Generator, shape: str, radius: float) -> tuple[float, ...]:
    """Proportions of a shape whose size on average fits a sphere of `radius` metres."""
    if shape == "sphere":
        return (radius,)
    if shape == "box":
        sides = rng.uniform(0.5, 1.0, 3)
        return tuple(float(side) * radius * 0.95 for side in sides)
    if shape == "torus":
        return (radius * 0.72, radius * float(rng.uniform(0.2, 0.34)))
    if shape == "capsule":
        thickness = radius * float(rng.uniform(0.38, 0.55))
        return (thickness, radius * 1.15 - thickness)
    if shape in OPEN_SHAPES:
        return _draw_open_extents(rng, shape, radius)
    aspect = float(rng.uniform(0.55, 1.0))
    return (radius * aspect * 0.9, radius * float(rng.uniform(0.7, 1.1)))


def _draw_open_extents(rng: np.random.Generator, shape: str, radius: float) -> tuple[float, ...]:
    if shape == "ring":
        tube = radius * float(rng.uniform(0.12, 0.2))
        return (radius - tube, tube)
    if shape == "rod":
        thickness = radius * float(rng.uniform(0.14, 0.24))
        return (thickness, radius * 1.15 - thickness)
    sides = rng.uniform(0.55, 0.85, 2)
    length = 0.6 if shape == "chair" else float(rng.uniform(0.1, 0.25))
    thickness = float(rng.uniform(0.15, 0.22) if shape == "chair" else rng.uniform(0.25, 0.4))
    return tuple(float(side) * radius for side in (*sides, length, thickness))


def _draw_rotation(rng: np.random.Generator, shape: str) -> FloatArray:
    """Upright, lying or tilted at random; always turned about the vertical.

    Open shapes show the viewer their open side, give or take 45 degrees.
    """
    if shape in OPEN_SHAPES:
        return _draw_facing_rotation(rng, shape)
    turn = rng.uniform(0, 2 * math.pi)
    lean = {0: 0.0, 1: math.pi / 2, 2: rng.uniform(0.2, 1.2)}[
        int(rng.choice(3, p=[0.55, 0.2, 0.25] if shape != "torus" else [0.25, 0.35, 0.4]))
    ]
    about_y = np.array(
        [[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]]
    )
    about_x = np.array(
        [[1, 0, 0], [0, math.cos(lean), -math.sin(lean)], [0, math.sin(lean), math.cos(lean)]]
    )
    return np.asarray(about_y @ about_x, np.float32)


def _draw_facing_rotation(rng: np.random.Generator, shape: str) -> FloatArray:
    turn = rng.uniform(-0.8, 0.8) + math.pi * rng.integers(2)
    roll = {
        "bracket": 0.5 * math.pi * rng.integers(4) + rng.normal(0, 0.2),
        "cross": rng.uniform(-0.8, 0.8),
        "ring": 0.0,
        "chair": 0.0,
        "rod": rng.choice([-1.0, 1.0]) * rng.uniform(0.45, 1.1),
    }[shape]
    about_y = np.array(
        [[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]]
    )
    about_z = np.array(
        [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]]
    )
    axis_forward = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]) if shape == "ring" else np.eye(3)
    return np.asarray(about_y @ about_z @ axis_forward, np.float32)
