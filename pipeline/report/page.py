"""`report.html`: one self-contained file with curves, AP table, cache coverage and panels.

No script, no font and no picture comes from elsewhere; colours follow the reader's light or dark
setting.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.report.tables import ap_header, ap_rows
from pipeline.runs.manifest import write_atomically

if TYPE_CHECKING:
    from depthcache import DepthCache
    from segtrain.data.coco_reader import ImageRecord
    from segtrain.run.experiment import Experiment

logger = logging.getLogger(__name__)

RGBImage = npt.NDArray[np.uint8]

NUM_PANELS = 6
_MAX_PANEL_SIDE = 220
_MIN_PANEL_SCORE = 0.3
_DEPTH_STRIDE = 4  # input pixels per cell of the depth layer
_MAX_CURVE_POINTS = 400
_NUM_SERIES_COLOURS = 6
# Distinguishable without red against green; the same instance keeps its place in the list.
_INSTANCE_COLOURS: RGBImage = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
        (148, 103, 189),
    ],
    dtype=np.uint8,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """One trained model in a report.

    Attributes:
        name: row title.
        folder: run folder; `metrics.jsonl` in it gives the curves.
        experiment: for the panels.
        weights: checkpoint, for the panels.
        metrics: COCO metrics in per cent.
    """

    name: str
    folder: Path
    experiment: Experiment
    weights: Path | None
    metrics: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One row of pictures.

    Attributes:
        title: image name.
        pictures: caption → (H, W, 3) uint8 RGB.
    """

    title: str
    pictures: Mapping[str, RGBImage]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says about one image.

    Attributes:
        masks: (H, W) booleans, highest score first.
        inverse_depth: (h, w) of the depth layer, in [0, 1]; None without the layer.
    """

    masks: list[npt.NDArray[np.bool_]]
    inverse_depth: npt.NDArray[np.float32] | None


def write_report(
    path: Path,
    results: Sequence[RunResult],
    *,
    coverage: Mapping[str, str],
    environment: Mapping[str, Any],
) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        path: file to write.
        results: at least one; the last one is captioned as the run's own method.
        coverage: facts on the depth cache, label → text.
        environment: versions, as the manifest has them.

    Returns:
        `path`.
    """
    panels = make_panels(results)
    page = render_page(
        title=f"Run report: {', '.join(result.name for result in results)}",
        metrics_by_run={result.name: result.metrics for result in results},
        curves_by_run={
            result.name: read_curves(result.folder / "metrics.jsonl") for result in results
        },
        coverage=coverage,
        panels=panels,
        environment=environment,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Losses over iterations from `metrics.jsonl`.

    Args:
        path: one JSON object a line; unreadable lines (a killed run's last) are left out. A resumed
            run repeats iterations: the last value counts.

    Returns:
        Loss name → (iteration, value), by iteration; `total_loss` first.
    """
    if not path.is_file():
        return {}
    values: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        iteration = record.get("iteration") if isinstance(record, dict) else None
        if not isinstance(iteration, int):
            continue
        for name, value in record.items():
            is_loss = name == "total_loss" or name.startswith("loss_")
            if is_loss and isinstance(value, (int, float)) and math.isfinite(value):
                values.setdefault(name, {})[iteration] = float(value)
    names = sorted(values, key=lambda name: (name != "total_loss", name))
    return {name: sorted(values[name].items()) for name in names}


def render_page(
    *,
    title: str,
    metrics_by_run: Mapping[str, Mapping[str, Any]],
    curves_by_run: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    coverage: Mapping[str, str],
    panels: Sequence[Panel],
    environment: Mapping[str, Any],
) -> str:
    """The page as one HTML text."""
    losses = list(dict.fromkeys(name for curves in curves_by_run.values() for name in curves))
    charts = "".join(
        # Every run, also one without this loss: its place among them is its colour.
        render_chart(name, {run: curves.get(name, []) for run, curves in curves_by_run.items()})
        for name in losses
    )
    packages = environment.get("packages", {})
    footer = ", ".join(f"{name} {version}" for name, version in packages.items())
    sections = [
        f"<h1>{_escape(title)}</h1>",
        "<h2>Average precision on held-out images</h2>",
        _render_table(ap_header(), ap_rows(metrics_by_run)),
        "<p class=note>COCO AP in per cent; – means that there was nothing to measure.</p>",
    ]
    if panels:
        sections += ["<h2>Held-out images</h2>", *(_render_panel(panel) for panel in panels)]
    if charts:
        sections += ["<h2>Losses</h2>", _render_legend(list(curves_by_run)), _wrap_charts(charts)]
    if coverage:
        rows = "".join(
            f"<tr><th scope=row>{_escape(key)}</th><td>{_escape(value)}</td></tr>"
            for key, value in coverage.items()
        )
        sections += ["<h2>Depth cache</h2>", f"<table class=facts>{rows}</table>"]
    sections.append(f"<footer>{_escape(footer)}</footer>")
    body = "\n".join(sections)
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def render_chart(title: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """One line chart as inline SVG.

    Args:
        title: name of the loss.
        series: run name → (iteration, value), empty where a run has none; drawn from 0 to the
            highest value, in the colour that the legend gives the run.
    """
    width, height, left, bottom, top = 340, 190, 44, 24, 10
    points = [point for line in series.values() for point in line]
    last_iteration = max((iteration for iteration, _ in points), default=1) or 1
    highest = nice_ceiling(max((value for _, value in points), default=1.0))
    plot_width, plot_height = width - left - 8, height - bottom - top

    def place(iteration: float, value: float) -> str:
        x = left + plot_width * iteration / last_iteration
        y = top + plot_height * (1 - value / highest)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for step in range(5):
        value = highest * step / 4
        y = top + plot_height * (1 - step / 4)
        parts.append(f'<line class=grid x1={left} x2={width - 8} y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f'<text x={left - 6} y="{y + 4:.1f}" text-anchor=end>{value:.3g}</text>'
        parts.append(label)
    for step in range(3):
        iteration = last_iteration * step // 2
        x = left + plot_width * step / 2
        anchor = ("start", "middle", "end")[step]
        text = f'<text x="{x:.1f}" y={height - 6} text-anchor={anchor}>{iteration}</text>'
        parts.append(text)
    for index, line in enumerate(series.values()):
        if not line:
            continue
        stride = max(1, len(line) // _MAX_CURVE_POINTS)
        drawn = " ".join(place(iteration, max(value, 0.0)) for iteration, value in line[::stride])
        parts.append(f'<polyline class="s{index % _NUM_SERIES_COLOURS}" points="{drawn}"/>')
    return (
        f"<figure><figcaption>{_escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role=img'
        f' aria-label="{_escape(title)} over iterations">'
        f"{''.join(parts)}</svg></figure>"
    )


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 2.5, 5 × 10^k that is not below `value`; 1 for zero."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0):
        if value <= factor * power * (1 + 1e-9):
            return float(factor * power)
    return 10.0 * power


def make_panels(results: Sequence[RunResult]) -> list[Panel]:
    """Pictures of held-out images: image, depths, each run's masks, truth.

    Args:
        results: runs with the same test data; the last one's cache gives the pseudo depth.

    Returns:
        At most `NUM_PANELS` panels; none when no run has weights.
    """
    from depthcache import decode_image, image_key
    from segtrain.data.coco_reader import read_coco_file
    from segtrain.data.image_files import read_image_bytes

    trained = [result for result in results if result.weights is not None]
    if not trained:
        return []
    files = trained[-1].experiment.data
    reading = read_coco_file(Path(files.test_json), Path(files.test_images), masks=True)
    records = [r for r in reading.records if r.annotations or r.crowds][:NUM_PANELS]
    contents = [read_image_bytes(record.path) for record in records]
    images = [decode_image(data) for data in contents]
    predictions = {result.name: _predict(result, images) for result in trained}
    cache = _open_cache(trained)
    panels = []
    for index, (record, data, image) in enumerate(zip(records, contents, images, strict=True)):
        height, width = image.shape[:2]
        pictures = {"image": image}
        key = image_key(data)
        if cache is not None and key in cache:
            pictures["pseudo depth"] = colour_depth(cache.read(key, size=(height, width)))
        inverse_depth = predictions[trained[-1].name][index].inverse_depth
        if inverse_depth is not None:
            pictures["predicted depth"] = colour_depth(inverse_depth)
        for name, predicted in predictions.items():
            pictures[name] = draw_masks(image, predicted[index].masks)
        truth = _truth_masks(record)
        if truth:
            pictures["truth"] = draw_masks(image, truth)
        panels.append(Panel(title=Path(record.file_name).name, pictures=pictures))
    return panels


def _open_cache(results: Sequence[RunResult]) -> DepthCache | None:
    """The depth cache of the last run that has one."""
    from depthcache import DepthCache
    from depthcache.errors import CacheNotFoundError

    for result in reversed(results):
        try:
            return DepthCache.open(str(result.experiment.depth.cache))
        except CacheNotFoundError:
            logger.info("report: no pseudo depth, %s holds no cache", result.experiment.depth.cache)
    return None


def _predict(result: RunResult, images: Sequence[RGBImage]) -> list[Prediction]:
    """Confident masks of each image, highest score first, and the depth layer's depth."""
    from segtrain.data.segmentations import decode_segmentation
    from segtrain.use.inference import load_trained_model

    assert result.weights is not None
    model = load_trained_model(result.experiment, result.weights)
    has_depth_layer = model.network.depth_form is not None
    predictions = []
    for image in images:
        instances = model.detect(image)
        scores = instances.scores.numpy()
        if instances.has("pred_masks_rle"):
            masks = [
                decode_segmentation(encoded, *image.shape[:2]).astype(bool)
                for encoded in instances.pred_masks_rle
            ]
        else:
            masks = list(instances.pred_masks.numpy())
        order = np.argsort(-scores, kind="stable")
        inverse_depth = None
        if has_depth_layer:
            entry = model.make_input(image)
            height, width = (-(-side // _DEPTH_STRIDE) for side in entry["image"].shape[-2:])
            padded = model.network.predict_depth([entry])[0].float().cpu().numpy()
            inverse_depth = padded[:height, :width]
        predictions.append(
            Prediction(
                masks=[masks[index] for index in order if scores[index] >= _MIN_PANEL_SCORE],
                inverse_depth=inverse_depth,
            )
        )
    return predictions


def _truth_masks(record: ImageRecord) -> list[npt.NDArray[np.bool_]]:
    from segtrain.data.segmentations import decode_segmentation

    return [
        decode_segmentation(item.segmentation, record.height, record.width).astype(bool)
        for item in record.annotations
        if item.segmentation is not None
    ]


def colour_depth(inverse_depth: npt.NDArray[np.float32]) -> RGBImage:
    """Depth as a picture: near is bright yellow, far is dark blue; NaN is grey.

    Args:
        inverse_depth: (H, W), larger = nearer, any unit.
    """
    finite = np.isfinite(inverse_depth)
    low, high = (
        (float(inverse_depth[finite].min()), float(inverse_depth[finite].max()))
        if finite.any()
        else (0.0, 1.0)
    )
    scaled = np.where(finite, (inverse_depth - low) / max(high - low, 1e-12), 0.0)
    stops = np.array(
        [(13, 8, 60), (90, 20, 130), (190, 55, 110), (248, 140, 60), (250, 240, 120)],
        dtype=np.float32,
    )
    positions = np.linspace(0.0, 1.0, len(stops))
    channels = [np.interp(scaled, positions, stops[:, channel]) for channel in range(3)]
    picture = np.stack(channels, axis=-1).round().astype(np.uint8)
    picture[~finite] = 128
    return picture


def draw_masks(image: RGBImage, masks: Sequence[npt.NDArray[np.bool_]]) -> RGBImage:
    """Tint each mask over the image and draw its outline.

    Args:
        image: (H, W, 3) RGB.
        masks: (H, W) booleans; earlier ones lie on top.
    """
    picture = image.astype(np.float32)
    for index in reversed(range(len(masks))):
        colour = _INSTANCE_COLOURS[index % len(_INSTANCE_COLOURS)].astype(np.float32)
        mask = masks[index]
        picture[mask] = 0.45 * picture[mask] + 0.55 * colour
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        picture[mask & ~inner] = colour
    return picture.round().astype(np.uint8)


def _render_panel(panel: Panel) -> str:
    figures = "".join(
        f"<figure><img alt={_quote(f'{caption} of {panel.title}')}"
        f" src={_quote(_data_url(picture))}>"
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
        for caption, picture in panel.pictures.items()
    )
    return f"<section><h3>{_escape(panel.title)}</h3><div class=panel>{figures}</div></section>"


def _data_url(picture: RGBImage) -> str:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((_MAX_PANEL_SIDE, _MAX_PANEL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope=col>{_escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th scope=row>{_escape(row[0])}</th>"
        + "".join(f"<td>{_escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _render_legend(names: Sequence[str]) -> str:
    items = "".join(
        f'<span><svg viewBox="0 0 20 8" width=20 height=8>'
        f'<polyline class="s{index % _NUM_SERIES_COLOURS}" points="0,4 20,4"/></svg>'
        f" {_escape(name)}</span>"
        for index, name in enumerate(names)
    )
    return f"<p class=legend>{items}</p>"


def _wrap_charts(charts: str) -> str:
    return f"<div class=charts>{charts}</div>"


def _escape(text: str) -> str:
    return html.escape(str(text))


def _quote(text: str) -> str:
    return f'"{_escape(text)}"'


_STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1c1e21;--soft:#5b6168;--line:#d9dce0;
--card:#f6f7f8;--c0:#0b62a4;--c1:#c4500c;--c2:#1b7f5c;--c3:#8a3fa0;--c4:#8a6d00;--c5:#555}
@media (prefers-color-scheme:dark){:root{--back:#15171a;--text:#e8eaed;--soft:#a3a9b1;
--line:#363b42;--card:#1e2125;--c0:#66b3f0;--c1:#f59a5c;--c2:#5fcfa4;--c3:#cf95e0;--c4:#e0c050;--c5:#bbb}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1200px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 8px}h2{font-size:18px;margin:32px 0 8px}
h3{font-size:13px;margin:12px 0 4px;color:var(--soft);font-weight:600}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:5px 12px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child{text-align:left}.facts th,.facts td{text-align:left}
.facts td{white-space:normal;overflow-wrap:anywhere}
.note,footer{color:var(--soft);font-size:13px}
footer{margin-top:40px;border-top:1px solid var(--line);padding-top:8px}
figure{margin:0}figcaption{font-size:13px;color:var(--soft)}
.panel{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:8px}
.panel img{width:100%;display:block;border-radius:4px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px}
.charts figure{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:10px}
.charts figcaption{font-weight:600;color:var(--text)}
.legend{display:flex;flex-wrap:wrap;gap:16px;margin:0 0 8px}
svg text{font-size:10px;fill:var(--soft)}svg .grid{stroke:var(--line)}
polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}
.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}
"""
