"""Synthetic scenes with exact masks and depth: the demo's images, and the demo depth model's.

The way of a scene: `scene_layout` throws the dice (camera, room, objects), `shapes` casts rays,
`textures` paints, `scene_rendering` puts the picture together, `scene_dataset` writes many of them
as a COCO data set, `contact_sheet` draws an overview.
"""

from __future__ import annotations

from pipeline.synth.contact_sheet import draw_contact_sheet
from pipeline.synth.scene_dataset import generate_dataset, read_depth
from pipeline.synth.scene_layout import APPEARANCES, PRESETS, SceneSettings
from pipeline.synth.scene_rendering import Scene, render_scene
from pipeline.synth.shapes import OPEN_SHAPES, SHAPES

__all__ = [
    "APPEARANCES",
    "OPEN_SHAPES",
    "PRESETS",
    "SHAPES",
    "Scene",
    "SceneSettings",
    "draw_contact_sheet",
    "generate_dataset",
    "read_depth",
    "render_scene",
]
