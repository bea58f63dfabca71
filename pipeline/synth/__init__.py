"""Synthetic scenes with exact masks and depth: the demo's images, and the demo depth model's.

The way of a scene: `scene_layout` throws the dice (camera, room, objects), `shapes` casts rays,
`textures` paints, `scene_rendering` puts the picture together, `scene_dataset` writes many of them
as a COCO data set, `contact_sheet` draws an overview.

Beside them, flat and a hundred times faster, for the labeller: `object_outlines`, `object_paints`,
`object_scenes`; `scene_chunks` and `scene_crops` turn them into training batches.
"""

from __future__ import annotations

from pipeline.synth.contact_sheet import draw_contact_sheet
from pipeline.synth.object_paints import draw_pattern_tiles
from pipeline.synth.object_scenes import ObjectScene, draw_scene, list_objects
from pipeline.synth.scene_dataset import generate_dataset, read_depth
from pipeline.synth.scene_layout import APPEARANCES, PRESETS, SceneSettings
from pipeline.synth.scene_rendering import Scene, render_scene
from pipeline.synth.shapes import OPEN_SHAPES, SHAPES

__all__ = [
    "APPEARANCES",
    "OPEN_SHAPES",
    "PRESETS",
    "SHAPES",
    "ObjectScene",
    "Scene",
    "SceneSettings",
    "draw_contact_sheet",
    "draw_pattern_tiles",
    "draw_scene",
    "generate_dataset",
    "list_objects",
    "read_depth",
    "render_scene",
]
