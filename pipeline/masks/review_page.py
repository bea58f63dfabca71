"""The review page: every mask over its photo, worst first, in one HTML file without other files.

Pictures are crops around the boxes, made so small that the file stays below a bound however many
there are; what does not fit even so, the best masks, is left out and said.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depthcache import decode_image
from pipeline.datasets.mask_formats import decode_mask
from pipeline.datasets.mask_polygons import mask_polygons
from pipeline.runs.manifest import write_atomically

RGBImage = npt.NDArray[np.uint8]
# Given a file's bytes, its height and its width: inverse depth (H, W), larger = nearer, or None.
ReadDepth = Callable[[bytes, int, int], npt.NDArray[np.float32] | None]

MAX_PICTURE_BYTES = 24_000_000
_MIN_BYTES_PER_OBJECT = 1_500
_SIDE_RANGE = (96, 320)
_BYTES_PER_PIXEL = 0.2  # WebP at quality 70, crops of photos; base64 comes on top
_DEPTH_SHARE = 0.25
_MARGIN = 0.25
_OUTLINE_UNITS = 4  # outlines count in quarters of a picture's pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenReview:
    """What `write_review_page` wrote.

    Attributes:
        path: the page.
        num_objects: objects on it.
        num_left_out: objects with the best scores that did not fit.
        num_bytes: size of the file.
    """

    path: Path
    num_objects: int
    num_left_out: int
    num_bytes: int


def write_review_page(
    path: Path,
    document: Mapping[str, Any],
    images: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    command: Sequence[str] = (),
    read_depth: ReadDepth | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    max_picture_bytes: int = MAX_PICTURE_BYTES,
) -> WrittenReview:
    """Write the page.

    Args:
        path: HTML file.
        document: COCO document with masks, `score` and `mask_source`.
        images: folder of the photos; one that cannot be read is said on the page.
        title: heading.
        facts: what was done, name → text.
        command: arguments of `pipeline` that made the masks; empty when they are not known.
        read_depth: of a photo; without it the page has no depth.
        on_progress: called with photos done and in all.
        max_picture_bytes: bound on all pictures together, before base64.
    """
    from jinja2 import Environment, PackageLoader

    objects = [item for item in document["annotations"] if not item.get("iscrowd")]
    objects.sort(key=lambda item: float(item.get("score") or 0))
    num_fitting = min(len(objects), max_picture_bytes // _MIN_BYTES_PER_OBJECT)
    chosen = objects[:num_fitting]
    items = _make_items(document, chosen, images, read_depth, max_picture_bytes, on_progress)
    data = {
        "key": _review_key(document),
        "has_depth": any("depth" in item for item in items),
        "classes": [str(category["name"]) for category in document["categories"]],
        "objects": items,
    }
    here = resources.files("pipeline.masks")
    environment = Environment(loader=PackageLoader("pipeline.masks", "."), autoescape=True)
    text = environment.get_template("review_page.html.j2").render(
        title=title,
        facts=facts,
        redo_command=_redo_command(command),
        num_left_out=len(objects) - len(chosen),
        style=here.joinpath("review_page.css").read_text(encoding="utf-8"),
        script=here.joinpath("review_page.js").read_text(encoding="utf-8"),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    write_atomically(path, text)
    return WrittenReview(
        path=path,
        num_objects=len(chosen),
        num_left_out=len(objects) - len(chosen),
        num_bytes=path.stat().st_size,
    )


def picture_side(num_objects: int, max_picture_bytes: int, *, has_depth: bool) -> int:
    """Longer side of a crop's picture, in pixels, at which all of them fit the bound."""
    share = 1 - _DEPTH_SHARE if has_depth else 1.0
    side = math.sqrt(share * max_picture_bytes / max(num_objects, 1) / _BYTES_PER_PIXEL)
    return round(min(max(side, _SIDE_RANGE[0]), _SIDE_RANGE[1]))


def _redo_command(command: Sequence[str]) -> str:
    """The command that draws marked masks anew: the one that drew them, with the file of marks."""
    redo = ["--redo", "masks-to-redo.json"]
    if not command:
        return f"pipeline masks … {shlex.join(redo)}"
    words = list(command)
    if "--redo" in words:  # of marks that this run has dealt with
        del words[(place := words.index("--redo")) : place + 2]
    return shlex.join(["pipeline", *words, *redo])


def _review_key(document: Mapping[str, Any]) -> str:
    """Names these masks, so that marks in a browser belong to them and not to other ones."""
    names = [(item["id"], item.get("score")) for item in document["annotations"]]
    return hashlib.sha256(repr(names).encode()).hexdigest()[:16]


def _make_items(
    document: Mapping[str, Any],
    objects: Sequence[Mapping[str, Any]],
    folder: Path,
    read_depth: ReadDepth | None,
    max_bytes: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Entries of the page in the order of `objects`; every photo is read once."""
    images = {image["id"]: image for image in document["images"]}
    class_index = {category["id"]: k for k, category in enumerate(document["categories"])}
    side = picture_side(len(objects), max_bytes, has_depth=read_depth is not None)
    bytes_each = max_bytes // max(len(objects), 1)
    by_image: dict[Any, list[int]] = defaultdict(list)
    for position, item in enumerate(objects):
        by_image[item["image_id"]].append(position)
    entries: list[dict[str, Any]] = [{} for _ in objects]
    for done, (image_id, positions) in enumerate(by_image.items(), 1):
        image = images[image_id]
        photo, depth = _read_photo(folder / image["file_name"], read_depth)
        for position in positions:
            item = objects[position]
            entries[position] = {
                "id": item["id"],
                "file": str(image["file_name"]),
                "class": class_index[item["category_id"]],
                "score": round(float(item.get("score") or 0), 4),
                "source": str(
                    item.get("mask_source") or ("labeller" if item.get("segmentation") else "none")
                ),
            }
            if photo is not None:
                entries[position] |= _make_pictures(item, photo, depth, side, bytes_each)
        if on_progress is not None:
            on_progress(done, len(by_image))
    return entries


def _read_photo(
    path: Path, read_depth: ReadDepth | None
) -> tuple[RGBImage | None, npt.NDArray[np.float32] | None]:
    try:
        data = path.read_bytes()
        photo = decode_image(data)
    except (OSError, ValueError):
        return None, None  # the run's summary names it; the page shows the object without picture
    return photo, read_depth(data, *photo.shape[:2]) if read_depth else None


def _make_pictures(
    item: Mapping[str, Any],
    photo: RGBImage,
    depth: npt.NDArray[np.float32] | None,
    side: int,
    max_bytes: int,
) -> dict[str, Any]:
    """Crop, its size, box and outline in units of the crop, and depth."""
    height, width = photo.shape[:2]
    x, y, w, h = (float(value) for value in item["bbox"])
    left, top = max(int(x - _MARGIN * w), 0), max(int(y - _MARGIN * h), 0)
    right = min(math.ceil(x + (1 + _MARGIN) * w), width)
    bottom = min(math.ceil(y + (1 + _MARGIN) * h), height)
    if right <= left or bottom <= top:
        return {}
    crop = photo[top:bottom, left:right]
    scale = min(side / max(crop.shape[:2]), 1.0)  # the browser enlarges small ones
    size = (max(round(crop.shape[1] * scale), 1), max(round(crop.shape[0] * scale), 1))
    depth_bytes = int(max_bytes * _DEPTH_SHARE) if depth is not None else 0
    units = np.array([scale * _OUTLINE_UNITS] * 2)
    corners = (np.array([[x, y], [x + w, y + h]]) - (left, top)) * units
    made: dict[str, Any] = {
        "size": size,
        "photo": _encode_picture(crop, size, max_bytes - depth_bytes),
        "box": corners.round().astype(int).ravel().tolist(),
    }
    mask = decode_mask(item, height, width)
    if mask is not None:
        outlines = mask_polygons(mask[top:bottom, left:right], tolerance=0.6 / scale)
        made["outline"] = "".join(_path_of(points * units) for points in outlines)
    if depth is not None:
        halved = (max(size[0] // 2, 1), max(size[1] // 2, 1))  # depth is smooth
        made["depth"] = _encode_picture(
            _shade_depth(depth[top:bottom, left:right]), halved, depth_bytes
        )
    return made


def _path_of(points: npt.NDArray[np.float64]) -> str:
    """An SVG path's closed polygon, to whole units."""
    return "M" + "L".join(f"{x},{y}" for x, y in points.round().astype(int)) + "Z"


def _shade_depth(inverse_depth: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(H, W) grey picture, nearer = brighter, scaled within the crop."""
    low, high = np.nanpercentile(inverse_depth, [1, 99])
    grey = (np.nan_to_num(inverse_depth, nan=low) - low) / max(high - low, 1e-6) * 255
    return grey.clip(0, 255).astype(np.uint8)


def _encode_picture(pixels: npt.NDArray[np.uint8], size: tuple[int, int], max_bytes: int) -> str:
    """WebP as base64, of at most `max_bytes` before it."""
    from PIL import Image

    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    for quality in (70, 45, 25):
        stream = io.BytesIO()
        picture.save(stream, format="WEBP", quality=quality, method=0)
        if stream.tell() <= max_bytes:
            break
    else:
        half = (max(size[0] // 2, 1), max(size[1] // 2, 1))
        if half != size:
            return _encode_picture(pixels, half, max_bytes)
    return base64.b64encode(stream.getvalue()).decode()
