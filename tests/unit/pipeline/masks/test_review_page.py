"""The review page: what is on it, how large it may be, and how it works in a real browser."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.masks.review_page import WrittenReview, picture_side, write_review_page
from tests.conftest import open_browser

HEIGHT, WIDTH = 60, 80
NUM_MANY = 5000


def _annotation(identity: int, score: float, source: str = "labeller") -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[20:40, 30:50] = 1
    mask[28:32, 36:44] = 0
    encoded = mask_api.encode(mask)
    return {
        "id": identity, "image_id": 1, "category_id": 4 + identity % 2, "bbox": [28, 18, 24, 24],
        "iscrowd": 0, "score": score, "mask_source": source,
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()},
    }  # fmt: skip


def _document(num_objects: int) -> dict[str, Any]:
    annotations = [_annotation(k, 1 - k / num_objects) for k in range(num_objects)]
    annotations[0] |= {"score": 0.0, "mask_source": "filled_box"}
    annotations.append(_annotation(num_objects, 0.5) | {"iscrowd": 1})
    return {
        "images": [{"id": 1, "file_name": "</script><b>.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "cup & <saucer>"}, {"id": 5, "name": "dog"}],
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    # The name has a slash: the folder of that name holds the photo.
    path = folder / "</script><b>.png"
    path.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return folder


def _data(page: Path) -> dict[str, Any]:
    (text,) = re.findall(
        r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL
    )
    return dict(json.loads(text))


def _write(photos: Path, num_objects: int, **options: Any) -> Any:
    return write_review_page(
        photos.parent / "review.html", _document(num_objects), photos,
        title="Masks of <boxes>", facts={"depth": "none used"}, **options,
    )  # fmt: skip


def test_objects_stand_worst_first_and_crowds_are_none(photos: Path) -> None:
    written = _write(photos, 4)
    objects = _data(written.path)["objects"]
    assert [item["id"] for item in objects] == [0, 3, 2, 1]
    assert written.num_objects == 4
    assert written.num_bytes == written.path.stat().st_size
    assert "outline" not in objects[0]
    assert objects[0]["source"] == "filled_box"


def test_pictures_show_the_crop_and_outlines_lie_on_it(photos: Path) -> None:
    item = _data(_write(photos, 2).path)["objects"][1]
    picture = Image.open(io.BytesIO(base64.b64decode(item["photo"])))
    assert list(picture.size) == item["size"] == [36, 36]
    assert item["box"] == [24, 24, 120, 120]  # quarters of a pixel, six from the crop's corner
    first = item["outline"].removeprefix("M").split("L")[0]
    assert first in {"32,32", "112,32", "32,112", "112,112"}
    assert item["outline"].count("M") == 1  # the hole hangs on a bridge


def test_the_page_holds_all_it_needs_and_escapes_what_it_is_given(photos: Path) -> None:
    text = _write(photos, 2).path.read_text()
    assert "Masks of &lt;boxes&gt;" in text
    assert "</script><b>" not in text
    assert not re.search(r'(src|href)="?(https?:)?//', text)
    assert not re.search(r"@import|url\(", text)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ([], "pipeline masks … --redo masks-to-redo.json"),
        (
            ["masks", "--coco", "a b.json", "--redo", "old.json", "--polygons"],
            "pipeline masks --coco 'a b.json' --polygons --redo masks-to-redo.json",
        ),
    ],
)
def test_the_page_names_the_command_that_draws_the_marked_masks_anew(
    photos: Path, command: list[str], shown: str
) -> None:
    text = _write(photos, 2, command=command).path.read_text()
    (redo, *others) = map(html.unescape, re.findall(r"<code>(.*?)</code>", text, re.DOTALL))
    assert redo == shown
    assert "--ids masks-to-redo.json" in others[0]
    assert others[1] == "--without-ids masks-to-redo.json"


def test_depth_stands_beside_the_photo_where_there_is_some(photos: Path) -> None:
    asked: list[tuple[int, int]] = []

    def read_depth(data: bytes, height: int, width: int) -> Any:
        asked.append((height, width))
        return np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)

    written = _write(photos, 3, read_depth=read_depth)
    data = _data(written.path)
    assert data["has_depth"]
    assert all("depth" in item for item in data["objects"])
    assert asked == [(HEIGHT, WIDTH)]  # once for the photo, not for each object
    assert not _data(_write(photos, 3).path)["has_depth"]


def test_an_unreadable_photo_leaves_its_objects_without_picture(photos: Path) -> None:
    next(photos.rglob("*.png")).write_bytes(b"no image")
    objects = _data(_write(photos, 2).path)["objects"]
    assert len(objects) == 2
    assert all("photo" not in item for item in objects)


def test_the_file_stays_below_its_bound_and_says_what_is_left_out(photos: Path) -> None:
    written = _write(photos, 12, max_picture_bytes=6000)
    assert (written.num_objects, written.num_left_out) == (4, 8)
    pictures = sum(len(item["photo"]) * 3 / 4 for item in _data(written.path)["objects"])
    assert pictures <= 6000
    assert "The 8 objects with the best scores are not on this page" in written.path.read_text()


def test_pictures_shrink_as_their_number_grows() -> None:
    sides = [picture_side(n, 24_000_000, has_depth=False) for n in (10, 2000, 5000, 16_000)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 320
    assert 120 < sides[2] < 200
    assert picture_side(5000, 24_000_000, has_depth=True) < sides[2]


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> WrittenReview:
    """The page of 5,000 objects of 12 to 40 pixels on ten photos of noise, which packs worst."""
    folder, size = tmp_path_factory.mktemp("large"), (240, 320)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(10):
        name = f"{image_id}.png"
        images.append({"id": image_id, "file_name": name, "width": size[1], "height": size[0]})
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    for identity in range(NUM_MANY):
        width, height = (int(side) for side in rng.integers(12, 41, 2))
        x, y = int(rng.integers(size[1] - width)), int(rng.integers(size[0] - height))
        mask = np.zeros(size, np.uint8)
        cv2.ellipse(mask, ((x + width / 2, y + height / 2), (width - 2, height - 2), 0), 1, -1)
        counts = mask_api.encode(np.asfortranarray(mask))["counts"].decode()
        annotations.append(
            {"id": identity, "image_id": identity % 10, "category_id": 1, "iscrowd": 0,
             "bbox": [x, y, width, height], "score": float(rng.random()),
             "mask_source": "labeller", "segmentation": {"size": list(size), "counts": counts}}
        )  # fmt: skip
    document = {
        "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "seed"}],
    }  # fmt: skip
    return write_review_page(folder / "review.html", document, folder, title="Many", facts={})


def test_five_thousand_objects_are_all_on_a_page_that_a_browser_can_load(
    large_page: WrittenReview,
) -> None:
    assert (large_page.num_objects, large_page.num_left_out) == (NUM_MANY, 0)
    assert large_page.num_bytes == large_page.path.stat().st_size < 40_000_000
    objects = _data(large_page.path)["objects"]
    assert sorted(item["id"] for item in objects) == list(range(NUM_MANY))
    assert [item["score"] for item in objects] == sorted(item["score"] for item in objects)
    assert all(item["photo"] and item["outline"] for item in objects)


@pytest.fixture
def browser(photos: Path) -> Iterator[Any]:
    """That of the other pages, with a folder for what it downloads."""
    with open_browser({"download.default_directory": str(photos.parent / "downloads")}) as driver:
        driver.set_window_size(1200, 800)
        yield driver


def test_in_a_browser_few_cards_exist_keys_mark_and_the_download_names_the_marked(
    browser: Any, photos: Path
) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    written = _write(photos, 400)
    browser.get(f"file://{written.path}")

    def count() -> str:
        return str(browser.find_element("id", "count").text)

    def wait_for(beginning: str) -> None:
        WebDriverWait(browser, 20).until(lambda _: count().startswith(beginning), beginning)

    assert count() == "400 of 400 objects shown, 0 marked"
    assert len(browser.find_elements("class name", "cell")) < 60
    body = browser.find_element("tag name", "body")
    body.send_keys("d")  # the worst: the filled box
    body.send_keys("jjd")
    body.send_keys("jdd")
    assert count() == "400 of 400 objects shown, 2 marked"
    browser.refresh()
    assert count().endswith("2 marked"), "marks are kept in the browser"
    browser.find_element("id", "download").click()
    file = photos.parent / "downloads" / "masks-to-redo.json"
    WebDriverWait(browser, 20).until(lambda _: file.is_file())
    assert json.loads(file.read_text())["annotation_ids"] == [0, 398]

    Select(browser.find_element("id", "source")).select_by_value("filled_box")
    wait_for("1 of 400")
    assert "filled box" in browser.find_element("id", "detail").text
    Select(browser.find_element("id", "source")).select_by_value("")
    high = browser.find_element("id", "high")
    high.clear()
    high.send_keys("0.1")
    wait_for("41 of 400")
    high.clear()
    browser.find_element("id", "search").send_keys("17")
    wait_for("1 of 400")
    assert browser.get_log("browser") == []


def test_in_a_browser_five_thousand_objects_are_walked_with_few_cards(
    browser: Any, large_page: WrittenReview
) -> None:
    browser.get(f"file://{large_page.path}")
    count = browser.find_element("id", "count")
    assert count.text == f"{NUM_MANY} of {NUM_MANY} objects shown, 0 marked"
    assert len(browser.find_elements("class name", "cell")) < 60
    browser.find_element("tag name", "body").send_keys("jjd")
    assert count.text.endswith("1 marked")
    assert browser.get_log("browser") == []
