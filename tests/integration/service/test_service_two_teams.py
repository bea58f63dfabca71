"""Two teams share the depth of real photos, and train from the service."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthcache import DepthCache, image_key
from pipeline.cli import invoke

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Teams:
    """What both teams did: the service, their own roots, and what `pipeline depth` said."""

    service: Any
    photos: Path
    root_a: Path
    root_b: Path
    depth_a: dict[str, Any]
    depth_b: dict[str, Any]


@pytest.fixture(scope="module")
def teams(
    coco_mini: Path,
    start_service: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
    secrets: dict[str, str],
) -> Any:
    folder = tmp_path_factory.mktemp("teams")
    service = start_service(folder / "served")
    root_a, photos = folder / "team-a", folder / "photos-b"
    photos.mkdir()
    for path in [*coco_mini.glob("train/*.jpg"), *coco_mini.glob("val/*.jpg")]:
        (photos / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_CACHE_TOKEN", secrets["writer"])
        patch.setenv("XDG_CACHE_HOME", str(folder / "home-b"))
        depth_a = _run(
            "depth", "--images", coco_mini / "train", "--model", "demo-dpt", "--cache", root_a
        )
        _run("cache", "push", root_a, service.url)
        depth_b = _run("depth", "--images", photos, "--model", "demo-dpt", "--cache", service.url)
        (root_b,) = (folder / "home-b" / "boxdepth").iterdir()
        yield Teams(
            service=service,
            photos=photos,
            root_a=root_a,
            root_b=root_b,
            depth_a=depth_a,
            depth_b=depth_b,
        )


def _run(*words: object) -> dict[str, Any]:
    """A command as typed; its JSON document."""
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert invoke([*map(str, words), "--json"]) == 0
    return dict(json.loads(output.getvalue()))


def test_the_second_team_computes_only_what_the_first_did_not_share(teams: Teams) -> None:
    assert teams.depth_a["num_computed"] == 208
    assert teams.depth_b["num_images"] == 288
    assert teams.depth_b["num_present"] == 208
    assert teams.depth_b["num_computed"] == 80
    again = _run(
        "depth", "--images", teams.photos, "--model", "demo-dpt", "--cache", teams.service.url
    )
    assert (again["num_present"], again["num_computed"]) == (288, 0)
    (found,) = _run("status", teams.service.url)["runs"]
    assert found["stages"]["depth"]["counts"]["images"] == 288


def test_the_service_holds_and_hands_out_the_very_bytes_of_both(teams: Teams) -> None:
    def maps(*roots: Path) -> dict[Path, bytes]:
        return {
            p.relative_to(root): p.read_bytes()
            for root in roots
            for p in root.glob("[!.]*/**/*")
            if p.is_file()
        }

    assert maps(teams.root_a, teams.root_b) == maps(teams.service.root)
    keys = [image_key(path.read_bytes()) for path in sorted(teams.photos.iterdir())]
    remote = DepthCache.open(teams.service.url)
    assert remote.missing(keys) == []
    local = [DepthCache.open(root) for root in (teams.root_a, teams.root_b)]
    for start in range(0, len(keys), 32):
        some = keys[start : start + 32]
        for key, inverse_depth in zip(some, remote.read_batch(some), strict=True):
            owner = local[0] if key in local[0] else local[1]
            np.testing.assert_array_equal(inverse_depth, owner.read(key))


def test_a_service_that_is_down_only_costs_computing(
    teams: Teams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("depthcache.storage.http_retries.FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(teams.photos.iterdir())[:3]:
        (photos / path.name).symlink_to(path)
    words = ("depth", "--images", photos, "--model", "demo-dpt")
    alone = _run(*words, "--cache", tmp_path / "own", "--upstream", "http://127.0.0.1:9")
    assert (alone["num_computed"], alone["num_failed"]) == (3, 0)
    assert any("computed here instead" in record.message for record in caplog.records)
    shared = _run(*words, "--cache", "http://127.0.0.1:9")
    assert shared["num_computed"] == 3
    assert shared["cache_url"].startswith(str(tmp_path / "home"))
    assert any("pipeline cache push" in record.message for record in caplog.records)


def _train(teams: Teams, coco_mini: Path, output: Path, cache: object, **settings: object) -> int:
    chosen = {
        "data.train_json": coco_mini / "annotations" / "instances_train.json",
        "data.train_images": coco_mini / "train",
        "depth.cache": cache,
        "train.max_iter": 4,
        "train.batch_size": 2,
        "train.teacher_short_side": 96,
        "train.teacher_max_size": 160,
        "dataloader.train.augmentation.short_sides": "[64]",
        "dataloader.train.augmentation.max_size": 107,
        "train.log_period": 1,
        **settings,
    }
    words = [f"{name}={value}" for name, value in chosen.items()]
    return invoke(
        ["train", "configs/coco_mini/effnet_lite0.py", "--output", str(output), "--set", *words]
    )


def _weights(output: Path) -> dict[str, Any]:
    import torch

    (path,) = output.glob("*final*.pth")
    return dict(torch.load(path, weights_only=False)["model"])


def test_training_from_the_service_equals_training_from_the_folder_and_outlives_it(
    teams: Teams, coco_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, tier = teams.service.url, tmp_path / "tier"
    assert _train(teams, coco_mini, tmp_path / "local", teams.root_a) == 0
    with_tier = {"depth.local_tier": tier}
    assert _train(teams, coco_mini, tmp_path / "remote", url, **with_tier) == 0
    local, remote = _weights(tmp_path / "local"), _weights(tmp_path / "remote")
    assert local.keys() == remote.keys()
    for name, value in local.items():
        assert np.array_equal(np.asarray(value), np.asarray(remote[name])), name

    monkeypatch.setattr("depthcache.storage.http_retries.FIRST_WAIT_SECONDS", 0.01)
    assert _train_and_kill(teams, coco_mini, tmp_path / "tiered", **with_tier) == 0
    again = _weights(tmp_path / "tiered")
    assert all(np.array_equal(np.asarray(v), np.asarray(again[n])) for n, v in remote.items())
    assert _train_and_kill(teams, coco_mini, tmp_path / "bare") == 5


def _train_and_kill(teams: Teams, coco_mini: Path, output: Path, **settings: object) -> int:
    """Train from the service, which dies after the first iteration."""
    if teams.service.process.poll() is not None:
        teams.service.start()

    def kill() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if any(p.stat().st_size for p in output.glob("metrics.jsonl")):
                break
            time.sleep(0.01)
        teams.service.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        return _train(teams, coco_mini, output, teams.service.url, **settings)
    finally:
        killer.join()
