"""The pages of runs and of the documentation, narrow and in both colour schemes, in a browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.masks.review_page import write_review_page
from pipeline.report.page import render_page
from pipeline.report.panels import Panel

_NARROW = 360
_SITE_PAGES = ["index", "results", "labeller", "method", "recipes/own-boxes"]
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
# Headings of tables that are wider than the screen and do not scroll by themselves.
_CUT_OFF_TABLES = """
const scrolls = (e) => e && (/auto|scroll/.test(getComputedStyle(e).overflowX)
  || scrolls(e.parentElement));
return [...document.querySelectorAll('table')].filter((table) =>
  table.getBoundingClientRect().right > innerWidth && !scrolls(table)
).map((table) => table.rows[0].innerText);
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


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the documentation, built as `make docs` does, less the parts that take long."""
    folder = tmp_path_factory.mktemp("site")
    pages, scripts = folder / "pages", repository / "scripts" / "site"
    subprocess.run([sys.executable, scripts / "stage_pages.py", pages], cwd=repository, check=True)
    left_out = ",".join(f"{part}/**" for part in ("adr", "api", "notes", "repository", "source"))
    command = [sys.executable, "-m", "sphinx", "-Q", "-D", f"exclude_patterns={left_out}"]
    subprocess.run([*command, "-c", scripts, pages, folder / "html"], cwd=repository, check=True)
    return folder / "html"


@pytest.fixture(params=["report", "review", *_SITE_PAGES])
def page(request: pytest.FixtureRequest) -> str:
    """Address of a page."""
    name = str(request.param)
    if name in _SITE_PAGES:
        return f"file://{request.getfixturevalue('site')}/{name}.html"
    return f"file://{request.getfixturevalue(name)}"


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Any, page: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": _NARROW, "height": 700, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(page)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    cut_off = browser.execute_script(_CUT_OFF_TABLES)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= _NARROW
    assert cut_off == []
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable_in_both_colour_schemes(browser: Any, page: str, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get(page)
    texts = browser.execute_script(_CONTRASTS)
    assert len(texts) > 10
    assert [(text, ratio) for text, ratio in texts if ratio < _LEAST_CONTRAST] == []


@pytest.mark.parametrize("name", _SITE_PAGES)
def test_the_sites_pages_have_their_pictures_contents_and_search(
    browser: Any, site: Path, name: str
) -> None:
    browser.get(f"file://{site}/{name}.html")
    widths = browser.execute_script(
        "return [...document.images].map((image) => [image.src, image.naturalWidth])"
    )
    assert [source for source, width in widths if not width] == []
    assert len(widths) > 0 or name != "index", "the start page shows masks"
    linked = browser.execute_script(
        "return [...document.querySelectorAll('.sidebar-tree a')].map((link) => link.href)"
    )
    assert {f"file://{site}/{page}.html" for page in ("recipes/README", "method")} <= {
        link.removesuffix("#") for link in linked
    }
    assert browser.execute_script("return !!document.querySelector('form input[name=q]')")


def test_formulas_of_the_method_are_drawn(browser: Any, site: Path) -> None:
    browser.get(f"file://{site}/method.html")
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('math')].map((m) => m.getBoundingClientRect())"
        ".map((r) => Math.min(r.width, r.height))"
    )
    assert len(sizes) > 20
    assert min(sizes) > 1
    # A fraction is as high as two lines: it is drawn, not written in a row.
    assert browser.execute_script(
        "const high = (e) => e.getBoundingClientRect().height;"
        "const fraction = document.querySelector('math mfrac');"
        "return high(fraction) > 1.5 * high(fraction.firstElementChild);"
    )
    text = browser.execute_script("return document.querySelector('article').innerText")
    assert not any(raw in text for raw in ("$", "\\frac", "\\sum"))
