"""Fixtures that every test area shares."""

from __future__ import annotations

import os
from pathlib import Path

# Two cores: more threads than that in one test process only fight each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait must not spin: beside other processes, spinning makes a step ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

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


@pytest.fixture(scope="session")
def coco_mini(shared_dir: Path) -> Path:
    """288 real COCO photos with boxes and masks: {train,val}/ and annotations/."""
    folder = shared_dir / "data" / "coco-mini"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/coco-mini")
    return folder
