"""The pages that a run writes, on a narrow screen and in both colour schemes, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.masks.review_page import write_review_page
from pipeline.report.page import render_page
from pipeline.report.panels import Panel

_NARROW = 360
_LEAST_CONTRAST = 4.5  # WCAG 2, level AA
# Every shown text with the WCAG contrast of its colour to the first opaque ground behind it.
_CONTRASTS = """
const parse = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const luminance = (c) =>
  [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0);
const groundOf = (e) => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c;
  }
  return [255, 255, 255];
};
return [...document.body.querySelectorAll('*')].filter((e) =>
  e.checkVisibility() && !e.disabled
  && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
).map((e) => {
  const style = getComputedStyle(e);
  const ink = luminance(parse(e instanceof SVGElement ? style.fill : style.color));
  const ground = luminance(groundOf(e));
  const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  return [e.textContent.trim().slice(0, 40), ratio];
});
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with long names, their curves, tables and pictures."""
    picture = np.zeros((192, 256, 3), np.uint8)
    runs = ("runs/boxinst-resnet50-on-photos", "runs/boxinst-with-depth-on-photos")
    page = render_page(
        title="runs/boxinst-resnet50-on-photos against runs/boxinst-with-depth-on-photos",
        metrics_by_run={run: {"bbox": {"AP": 12.34}, "segm": {"AP": 9.0}} for run in runs},
        curves_by_run={run: {"total_loss": [(1, 2.0), (900, 1.0)]} for run in runs},
        coverage={"images": "3", "cache": "/data/depth/dpt-swinv2-large-384-0123456789abcdef"},
        panels=[Panel(title="x.png", pictures=dict.fromkeys(("image", *runs), picture))],
        environment={"packages": {"torch": "2.4"}, "executable": "/opt/boxdepth/bin/python3.11"},
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page)
    return path


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo with twelve objects."""
    folder = tmp_path_factory.mktemp("review")
    Image.new("RGB", (80, 60), (90, 120, 60)).save(folder / "photo-of-the-garden.png")
    objects = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": [28, 18, 24, 24], "iscrowd": 0,
         "score": k / 12, "mask_source": "labeller" if k else "filled_box",
         "segmentation": [[28, 18, 52, 18, 52, 42, 28, 42]]}
        for k in range(12)
    ]  # fmt: skip
    image = {"id": 1, "file_name": "photo-of-the-garden.png", "width": 80, "height": 60}
    document = {
        "images": [image],
        "annotations": objects,
        "categories": [{"id": 1, "name": "watering can"}],
    }
    facts = {"masks": "12 of 12 boxes", "depth": "none used (--cache or --model gives it some)"}
    title = "Masks for boxes-of-the-garden-in-summer.json"
    path = folder / "review.html"
    write_review_page(path, document, folder, title=title, facts=facts)
    return path


@pytest.mark.parametrize("page", ["report", "review"])
def test_a_narrow_screen_needs_no_sideways_scrolling(
    browser: Any, page: str, request: pytest.FixtureRequest
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": _NARROW, "height": 700, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(f"file://{request.getfixturevalue(page)}")
    width = browser.execute_script("return document.documentElement.scrollWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= _NARROW
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("page", ["report", "review"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable_in_both_colour_schemes(
    browser: Any, page: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get(f"file://{request.getfixturevalue(page)}")
    texts = browser.execute_script(_CONTRASTS)
    assert len(texts) > 10
    assert [(text, ratio) for text, ratio in texts if ratio < _LEAST_CONTRAST] == []
