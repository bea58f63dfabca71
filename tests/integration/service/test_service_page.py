"""The web page in a real browser."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, make_cache: Callable[..., Path]) -> Path:
    return make_cache(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def page_service(start_service: Callable[..., Any], cache: Path) -> Any:
    return start_service(cache.parent)


def _wait(browser: Any, condition: Callable[[Any], Any]) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(condition)


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
    _wait(browser, lambda b: len(b.find_elements("css selector", "#results img")) == 2)
    shown = _text(browser, "results")
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() in shown
    _wait(browser, lambda b: b.execute_script(
        "return [...document.querySelectorAll('#results img')].every((i) => i.naturalWidth > 1)"
    ))  # fmt: skip
    assert "farther" in _text(browser, "legend")
    assert "nearer" in _text(browser, "legend")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    field = browser.find_element("id", "digest")
    field.send_keys(digest + "\n")
    _wait(browser, lambda b: "1 of 1 image present" in _text(b, "coverage"))
    field.clear()
    field.send_keys("abc\n")
    _wait(browser, lambda b: "64 hexadecimal" in _text(b, "coverage"))
    assert browser.get_log("browser") == []


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
    assert {"cache", "digest", "files", "copy"} <= reached


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


def _contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two CSS rgb() colours."""

    def luminance(colour: str) -> float:
        channels = [int(c) / 255 for c in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
