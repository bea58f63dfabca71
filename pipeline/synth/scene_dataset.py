"""Write scenes as a COCO data set: pictures, boxes, masks for evaluation, and true depth."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.synth.contact_sheet import draw_contact_sheet
from pipeline.synth.scene_layout import APPEARANCES, PRESETS, SceneSettings
from pipeline.synth.scene_rendering import Scene, render_scene
from pipeline.synth.shapes import FloatArray
from segtrain.data.segmentations import encode_mask

_SHEET_SCENES = 12
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_VERSION = 1  # of the scenes: raise it when the same seed gives other pictures


@dataclasses.dataclass(kw_only=True, frozen=True)
class _Job:
    """What a worker process needs to know to write any picture of the data set."""

    output: Path
    seed: int
    size: tuple[int, int]
    settings: SceneSettings
    with_depth: bool


def generate_dataset(
    output: Path,
    *,
    num_images: int,
    size: tuple[int, int] = (256, 256),
    seed: int,
    settings: SceneSettings = PRESETS["rooms"],
    workers: int | None = None,
    with_depth: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set of synthetic scenes.

    Picture i depends on `(seed, i)`, `size` and the settings alone: neither on the number of
    pictures nor on the number of workers. A folder that already holds exactly what is asked for
    is left as it is.

    Args:
        output: folder to write: `images/000000.png`, …, `annotations.json` (COCO; boxes,
            RLE masks; per annotation also `appearance`), `depth/000000.npy` (float32 metres, see
            `read_depth`) and `contact_sheet.png`.
        num_images: how many, >= 1.
        size: (height, width) in pixels.
        seed: >= 0; other seeds give other scenes.
        settings: what is in the scenes.
        workers: processes; None for one per core, 1 for this process alone.
        with_depth: also write the true depth.
        progress: called with (pictures done, pictures in all) after each picture.

    Returns:
        `output`.

    Raises:
        ValueError: a number out of range; the message names it.
    """
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; expected at least 1")
    job = _Job(output=output, seed=seed, size=size, settings=settings, with_depth=with_depth)
    info = _describe(job, num_images)
    if _is_written(job, num_images, info):
        if progress is not None:
            progress(num_images, num_images)
        return output

    (output / "images").mkdir(parents=True, exist_ok=True)
    if with_depth:
        (output / "depth").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, objects in _write_all(job, num_images, workers):
        images.append(image)
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, **entry})
        if progress is not None:
            progress(len(images), num_images)

    num_on_sheet = min(num_images, _SHEET_SCENES)
    sheet = [
        render_scene(seed, size, index=index, settings=settings) for index in range(num_on_sheet)
    ]
    Image.fromarray(draw_contact_sheet(sheet)).save(output / "contact_sheet.png")
    document = {
        "info": info,
        "licenses": [],
        "categories": [
            {"id": number + 1, "name": name, "supercategory": "solid"}
            for number, name in enumerate(("object",) if settings.one_class else settings.shapes)
        ],
        "images": images,
        "annotations": annotations,
    }
    # Last and in one step: its presence says that all pictures are there.
    unfinished = output / "annotations.json.tmp"
    unfinished.write_text(json.dumps(document))
    unfinished.replace(output / "annotations.json")
    return output


def read_depth(dataset: Path, file_name: str) -> FloatArray:
    """True depth of one picture of a data set: (H, W) float32 metres along the optical axis.

    Raises:
        FileNotFoundError: the data set was written without depth, or has no such picture.
    """
    return np.asarray(np.load(dataset / "depth" / f"{Path(file_name).stem}.npy"), np.float32)


def _describe(job: _Job, num_images: int) -> dict[str, Any]:
    return {
        "description": "Synthetic scenes, ray cast by pipeline.synth; masks are for evaluation",
        "scenes_version": _VERSION,
        "seed": job.seed,
        "num_images": num_images,
        "size": list(job.size),
        "settings": {**dataclasses.asdict(job.settings), "shapes": list(job.settings.shapes)},
        "appearances": list(APPEARANCES),
    }


def _is_written(job: _Job, num_images: int, info: dict[str, Any]) -> bool:
    path = job.output / "annotations.json"
    if not path.is_file() or not (job.output / "contact_sheet.png").is_file():
        return False
    try:
        if json.loads(path.read_text()).get("info") != info:
            return False
    except (json.JSONDecodeError, AttributeError):
        return False
    names = [_file_name(index) for index in range(num_images)]
    return all(
        (job.output / "images" / name).is_file()
        and (not job.with_depth or (job.output / "depth" / f"{Path(name).stem}.npy").is_file())
        for name in names
    )


def _write_all(
    job: _Job, num_images: int, workers: int | None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    num_workers = min(workers or os.cpu_count() or 1, num_images)
    tasks = ((job, index) for index in range(num_images))
    if num_workers <= 1:
        yield from map(_write_one, tasks)
        return
    # Spawned, not forked: the caller may have threads of torch or OpenMP running.
    with _single_threaded_children():
        pool = multiprocessing.get_context("spawn").Pool(num_workers)
    with pool:
        yield from pool.imap(_write_one, tasks, chunksize=4)


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Let processes started meanwhile use one BLAS thread each: more would fight for the cores."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _write_one(task: tuple[_Job, int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    job, index = task
    scene = render_scene(job.seed, job.size, index=index, settings=job.settings)
    name = _file_name(index)
    Image.fromarray(scene.image).save(job.output / "images" / name, compress_level=3)
    if job.with_depth:
        np.save(job.output / "depth" / f"{Path(name).stem}.npy", scene.depth_metres)
    height, width = job.size
    image = {"id": index + 1, "file_name": name, "height": height, "width": width}
    return image, _annotate(scene, image_id=index + 1, one_class=job.settings.one_class)


def _annotate(scene: Scene, *, image_id: int, one_class: bool) -> list[dict[str, Any]]:
    entries = []
    for number, box in enumerate(scene.boxes_xywh):
        entries.append(
            {
                "image_id": image_id,
                "category_id": 1 if one_class else int(scene.classes[number]) + 1,
                "bbox": [float(value) for value in box],
                "area": int(scene.masks[number].sum()),
                "iscrowd": 0,
                "segmentation": encode_mask(scene.masks[number]),
                "appearance": scene.appearances[number],
                "cut_by_border": bool(scene.cut_by_border[number]),
            }
        )
    return entries


def _file_name(index: int) -> str:
    return f"{index:06d}.png"
