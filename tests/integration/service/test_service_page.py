"""The web page in a real browser."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, make_cache: Callable[..., Path]) -> Path:
    return make_cache(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def page_service(start_service: Callable[..., Any], cache: Path) -> Any:
    return start_service(cache.parent)


def _wait(browser: Any, condition: Callable[[Any], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60, poll_frequency=0.05).until(condition)


def _text(browser: Any, identifier: str) -> str:
    return str(browser.find_element("id", identifier).text)


def test_the_page_shows_caches_finds_images_and_draws_depth(
    browser: Any,
    page_service: Any,
    cache: Path,
    image_files: Callable[[Path], list[Path]],
    tmp_path: Path,
) -> None:
    service = page_service
    browser.get(service.url)
    _wait(browser, lambda b: "depth maps" in _text(b, "summary"))
    assert cache.name in _text(browser, "caches")
    assert f"{service.url}/{cache.name}" in _text(browser, "commands")
    stranger = tmp_path / "stranger.png"
    stranger.write_bytes(b"not in the cache")
    files = [*image_files(cache)[:2], stranger]
    browser.find_element("id", "files").send_keys("\n".join(map(str, files)))
    _wait(browser, lambda b: "2 of 3 images present" in _text(b, "coverage"))
    browser.execute_script("document.getElementById('results').scrollIntoView()")
    _wait(browser, lambda b: _num(b, "#results img") == 2)
    shown = _text(browser, "results")
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in shown
    _wait(browser, lambda b: b.execute_script(
        "return [...document.querySelectorAll('#results img')].every((i) => i.naturalWidth > 1)"
    ))  # fmt: skip
    assert "farther" in _text(browser, "legend")
    assert "nearer" in _text(browser, "legend")
    assert browser.get_log("browser") == []


def test_the_gallery_draws_what_is_seen_and_finds_maps_by_the_beginning_of_a_key(
    browser: Any, start_service: Callable[..., Any], make_cache: Callable[..., Path],
    digests: Callable[[Path], list[str]], secrets: dict[str, str], tmp_path: Path,
) -> None:  # fmt: skip
    keys = digests(make_cache(tmp_path, num_segments=4))
    service = start_service(tmp_path, read="token")  # thumbnails carry the token, too
    browser.set_window_size(500, 600)
    browser.get(service.url)
    browser.execute_script("sessionStorage.clear()")
    browser.get(service.url)
    _wait(browser, lambda b: b.find_element("id", "token").is_displayed())
    browser.find_element("id", "token").send_keys(secrets["reader"] + "\n")
    _wait(browser, lambda b: "48 maps, 24 shown" in _text(b, "listed"))
    browser.execute_script("document.getElementById('maps').scrollIntoView()")
    _wait(browser, lambda b: _num(b, "#gallery img"))
    assert _num(browser, "#gallery img") < _num(browser, "#gallery li") == 24
    browser.execute_script("document.getElementById('more').scrollIntoView({block: 'center'})")
    browser.find_element("id", "more").click()
    _wait(browser, lambda b: "48 maps, 48 shown" in _text(b, "listed"))
    assert not browser.find_element("id", "more").is_displayed()
    shown = {e.get_attribute("title") for e in browser.find_elements("css selector", ".digest")}
    assert shown == set(keys)
    for item in browser.find_elements("css selector", "#gallery li"):
        browser.execute_script("arguments[0].scrollIntoView()", item)
        _wait(browser, lambda _, item=item: item.find_elements("tag name", "img"))
    field = browser.find_element("id", "key")
    for text, words in (
        (keys[7], f"1 maps whose key begins with {keys[7]}, 1 shown"),
        (keys[7][:3].upper(), f"whose key begins with {keys[7][:3]}"),
        ("xyz", "64 hexadecimal"),
    ):
        field.clear()
        field.send_keys(text + "\n")
        _wait(browser, lambda b, words=words: words in _text(b, "listed"))
    browser.execute_script("sessionStorage.clear()")
    refused = [entry for entry in browser.get_log("browser") if "401" not in entry["message"]]
    assert refused == []


def test_caches_are_found_by_name_model_data_set_and_licence(
    browser: Any, start_service: Callable[..., Any], make_cache: Callable[..., Path], tmp_path: Path
) -> None:
    names = {
        model: make_cache(tmp_path, model=model, dataset=dataset).name
        for model, dataset in (("dpt-one", "coco/train2017"), ("dpt-two", "city/leftImg8bit"))
    }
    browser.get(start_service(tmp_path).url)
    _wait(browser, lambda b: _num(b, "#caches tr") == 2)
    field = browser.find_element("id", "words")
    for text, found in (
        ("DPT-two", ["dpt-two"]), ("coco/", ["dpt-one"]), (names["dpt-two"], ["dpt-two"]),
        ("apache", ["dpt-one", "dpt-two"]), ("city apache", ["dpt-two"]), ("nothing", []),
    ):  # fmt: skip
        field.clear()
        field.send_keys(text)
        told = f"{len(found)} of 2 caches"
        _wait(browser, lambda b, told=told: told in _text(b, "found"))
        assert [model for model in names if names[model] in _text(browser, "caches")] == found
        if found:  # the gallery shows a cache that was found
            assert browser.find_element("id", "cache").get_attribute("value") in [
                names[model] for model in found
            ]


@pytest.mark.parametrize("width", [360, 1000])
def test_tables_scroll_by_themselves_on_narrow_screens(
    browser: Any, page_service: Any, width: int
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(page_service.url)
    _wait(browser, lambda b: _num(b, "#gallery li") == 24)
    outer, tables = browser.execute_script(
        "return [document.documentElement.scrollWidth, [...document.querySelectorAll('.wide')]"
        ".map((e) => [e.scrollWidth, e.clientWidth])]"
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert outer <= width
    assert all((inner > own) is (width == 360) for inner, own in tables), tables


def test_both_colour_schemes_keep_text_readable_and_every_control_has_the_keyboard(
    browser: Any, page_service: Any
) -> None:
    browser.get(page_service.url)
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        ink, paper = browser.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
        assert _contrast(ink, paper) >= 7, scheme
    from selenium.webdriver.common.action_chains import ActionChains

    reached = set()
    browser.execute_script("document.activeElement.blur()")
    for _ in range(20):
        ActionChains(browser).send_keys("\ue004").perform()  # Tab
        reached.add(browser.switch_to.active_element.get_attribute("id"))
    assert {"words", "cache", "key", "files", "copy"} <= reached


def test_the_scripts_own_sha256_is_sha256(browser: Any) -> None:
    for data in (b"", b"abc", bytes(range(256)) * 3, b"x" * 55, b"x" * 56, b"x" * 64):
        script = f"return sha256Hex(new Uint8Array({list(data)}))"
        assert browser.execute_script(script) == hashlib.sha256(data).hexdigest()


def test_a_service_that_asks_for_tokens_gets_one_from_the_page(
    browser: Any,
    start_service: Callable[..., Any],
    tmp_path: Path,
    secrets: dict[str, str],
) -> None:
    service = start_service(tmp_path, read="token")
    browser.get(service.url)
    _wait(browser, lambda b: b.find_element("id", "token").is_displayed())
    browser.find_element("id", "token").send_keys(secrets["reader"] + "\n")
    _wait(browser, lambda b: "0 caches" in _text(b, "summary"))
    assert _text(browser, "listed") == ""


def _num(browser: Any, selector: str) -> int:
    return len(browser.find_elements("css selector", selector))


def _contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two CSS rgb() colours."""

    def luminance(colour: str) -> float:
        channels = [int(c) / 255 for c in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
