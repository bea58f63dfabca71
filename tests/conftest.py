"""Fixtures that every test area shares."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# `make test` has a test process on each of two cores: more threads would only fight each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait must not spin: beside other processes, spinning makes a step ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest

# A busy machine is no failure of an example.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout under test."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Recorded values and caches, `tests/golden`."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Material that is too large or not licensed to be committed; found beside the checkout."""
    shared = REPOSITORY.parent / "shared"
    if not shared.is_dir():
        pytest.skip("needs ../shared (recorded fixtures and photos)")
    return shared


@functools.cache
def load_script(path: Path) -> ModuleType:
    """A script of the checkout that is no package's, to run and to set small."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def file_states() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    """Takes a folder: path in it → time of the last change in ns and content, of every file."""

    def look(folder: Path) -> dict[str, tuple[int, bytes]]:
        return {
            path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob("*")
            if path.is_file()
        }

    return look


def _with_threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small networks, which threads only slow down."""
    yield from _with_threads(1)


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """As runs have them: equal bits must not need a single thread.

    Their number must be the same in all runs that are compared: sums depend on it.
    """
    yield from _with_threads(2)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty bucket of a real S3 server.

    Attributes:
        name: of the bucket.
        endpoint: http address of the server.
        client: boto3's, to look at it past our own code.
    """

    name: str
    endpoint: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of moto's HTTP server."""
    pytest.importorskip("obstore")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> Iterator[Bucket]:
    """A bucket of the module's own, which the environment leads to."""
    boto3 = pytest.importorskip("boto3")
    settings = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=s3_endpoint)
        name = f"depth-{uuid.uuid4().hex[:12]}"
        client.create_bucket(Bucket=name)
        yield Bucket(name=name, endpoint=s3_endpoint, client=client)
        client.close()


@pytest.fixture(scope="session")
def coco_mini(shared_dir: Path) -> Path:
    """288 real COCO photos with boxes and masks: {train,val}/ and annotations/."""
    folder = shared_dir / "data" / "coco-mini"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/coco-mini")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, which logs what its console says."""
    with open_browser() as driver:
        yield driver


@contextlib.contextmanager
def open_browser(preferences: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """Start it, with preferences of the browser's own if asked; skip where it is absent."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if preferences:
        options.add_experimental_option("prefs", dict(preferences))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()
