"""`pipeline depth` and `pipeline cache …` as typed, on a tiny random DPT."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from depthcache.stage_one import image_contents, precompute
from depthcache.stage_one.image_contents import read_contents
from pipeline.cli import invoke
from pipeline.commands.status import describe_run
from pipeline.runs.manifest import locked_run
from tests.integration.conftest import depth_stopped_after_a_batch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def root(model, images, tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    words = ["--images", str(images), "--model", str(model), "--cache", str(root)]
    assert invoke(["depth", *words]) == 0
    return root


def _run(capsys, *arguments):
    code = invoke([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_same_command_again_computes_nothing(capsys, model, images, root):
    code, document = _run(capsys, "depth", "--images", images, "--model", model, "--cache", root)
    assert code == 0
    assert document["schema_version"] == 1
    assert (document["num_images"], document["num_present"]) == (5, 5)
    assert document["num_computed"] == 0


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_call_with_nothing_to_do_leaves_every_file_as_it_is(
    is_readable, capsys, model, images, tmp_path, monkeypatch, file_states
):
    folder, root = shutil.copytree(images, tmp_path / "images"), tmp_path / "cache"
    if not is_readable:
        (folder / "bad.png").write_bytes(b"no image")
    words = ["depth", "--images", str(folder), "--model", str(model), "--cache", str(root)]
    code = 0 if is_readable else 3
    assert invoke(words) == code
    assert "nothing to do" not in capsys.readouterr().out
    before = file_states(root)
    monkeypatch.chdir(tmp_path)
    nearby = ["depth", "--images", "images", "--model", str(model), "--cache", "cache"]
    assert invoke(nearby) == invoke([*words, "--batch-size", "1"]) == code
    could = "" if is_readable else " that can be made"
    assert f"nothing to do: every map{could} was there before\n" in capsys.readouterr().out
    assert file_states(root) == before
    (manifest,) = root.glob(".runs/*/manifest.json")
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    assert invoke(words) == code  # its map is there, but the record does not count it
    counts = json.loads(manifest.read_text())["stages"]["depth"]["counts"]
    assert (counts["images"], counts["computed"]) == (6 if is_readable else 7, 0)
    Image.new("RGB", (9, 9)).save(folder / "new.png")
    assert invoke(words) == code
    counts = json.loads(manifest.read_text())["stages"]["depth"]["counts"]
    assert (counts["present"], counts["computed"]) == (5, 1)


def test_a_refused_call_leaves_the_record_of_the_one_before(model, images, tmp_path, file_states):
    copy, root = shutil.copytree(model, tmp_path / "model"), tmp_path / "cache"
    words = ["depth", "--images", str(images), "--model", str(copy), "--cache", str(root)]
    assert invoke(words) == 0
    before = file_states(root)
    (copy / "model.safetensors").write_bytes(b"cut")
    assert invoke(words) not in (0, 3)
    assert file_states(root) == before


def test_unreadable_images_end_with_3_and_are_named(capsys, model, images, tmp_path):
    (tmp_path / "images").mkdir()
    good = (images / "0.png").read_bytes()
    (tmp_path / "images/good.png").write_bytes(good)
    (tmp_path / "images/bad.png").write_bytes(b"no image")
    words = ["--images", tmp_path / "images", "--model", model, "--cache", tmp_path / "cache"]
    code, document = _run(capsys, "depth", *words)
    assert code == 3
    assert (document["num_computed"], document["num_failed"]) == (1, 1)
    (failure,) = document["failures"]
    assert failure["path"].endswith("bad.png")
    assert failure["reason"]
    assert invoke(["depth", *map(str, words), "--allow-failures"]) == 0


def test_coco_file_names_the_images(capsys, model, images, tmp_path):
    names = [{"id": index, "file_name": f"{index}.png"} for index in range(2)]
    annotations = tmp_path / "ann.json"
    annotations.write_text(json.dumps({"images": names, "annotations": [], "categories": []}))
    code, document = _run(
        capsys, "depth", "--coco", annotations, "--images", images, "--model", model,
        "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert (code, document["num_images"]) == (0, 2)


def test_dry_run_writes_nothing(capsys, model, images, tmp_path):
    code, document = _run(
        capsys, "depth", "--images", images, "--model", model, "--cache", tmp_path / "cache",
        "--dry-run",
    )  # fmt: skip
    assert (code, document["num_to_compute"]) == (0, 5)
    assert not list(tmp_path.rglob("*.json"))


def test_status_of_a_cache_says_how_far_an_interrupted_call_came(
    capsys, model, images, tmp_path, monkeypatch
):
    folder, root = tmp_path / "images", tmp_path / "cache"
    shutil.copytree(images, folder)
    (folder / "bad.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    words = ["--images", "images", "--model", str(model), "--cache", "cache", "--allow-failures"]
    with depth_stopped_after_a_batch():
        assert invoke(["depth", *words, "--batch-size", "1"]) == 130
    monkeypatch.chdir("/")
    code, document = _run(capsys, "status", root)
    (found,) = document["runs"]
    assert (code, found["stages"]["depth"]["state"]) == (0, "interrupted")
    progress = found["progress"]
    assert (progress["num_total"], progress["num_failed"]) == (5, 1)
    assert 0 < progress["num_done"] < 5
    code, gone_on = _run(capsys, *shlex.split(found["next"])[1:])
    assert (code, gone_on["num_failed"]) == (0, 1)
    assert invoke(["depth", "--batch-size", "2", *_absolute(words, tmp_path)]) == 0
    capsys.readouterr()
    _, document = _run(capsys, "status", root)
    (found,) = document["runs"]  # other speed, same maps: the same record
    assert (found["done"], found["progress"]) == (True, None)
    assert found["stages"]["depth"]["counts"]["failed"] == 1
    _, listing = _run(capsys, "cache", "ls", root)
    assert [cache["num_maps"] for cache in listing["caches"]] == [5]
    assert invoke(["cache", "verify", str(root)]) == 0


@pytest.mark.parametrize("is_done_before", [False, True])
def test_status_says_how_many_images_are_hashed_and_what_an_interruption_left(
    is_done_before, capsys, model, images, tmp_path, monkeypatch
):
    def look_and_stop(paths, *, progress):
        def tell(*counts):
            progress(*counts)
            (folder,) = root.glob(".runs/*")
            seen.append(describe_run(folder))
            if counts[0] == 3:
                raise KeyboardInterrupt

        return read_contents(paths, progress=tell)

    root, seen = tmp_path / "cache", []
    words = ["depth", "--images", str(images), "--model", str(model), "--cache", str(root)]
    if is_done_before:
        assert invoke(words) == 0
    with monkeypatch.context() as patch:
        patch.setattr(image_contents, "_SECONDS_BETWEEN_COUNTS", 0.0)
        patch.setattr(precompute, "read_contents", look_and_stop)
        assert invoke(words) == 130
    during = seen[0]
    assert (during["running"], during["stages"]["depth"]["state"]) == (True, "running")
    progress = during["progress"]
    assert (progress["doing"], progress["num_done"], progress["num_total"]) == ("reading", 1, 5)
    capsys.readouterr()
    assert invoke(["status", str(root)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^depth +(stopped|interrupted)$", shown, re.MULTILINE), (
        "no counts from before"
    )
    assert "\nreading: 3/5 images" in shown
    resume = shlex.split(re.search(r"^next: pipeline (resume .*)$", shown, re.MULTILINE)[1])
    assert invoke(resume) == 0
    capsys.readouterr()
    (after,) = _run(capsys, "status", root)[1]["runs"]
    assert (after["done"], after["progress"]) == (True, None)
    assert after["stages"]["depth"]["counts"]["computed"] == 5


def _absolute(words, folder):
    return [str(folder / word) if word in ("images", "cache") else word for word in words]


def test_depth_is_computed_where_its_record_is_held_by_another(model, images, tmp_path, caplog):
    words = ["depth", "--images", str(images), "--model", str(model), "--cache", str(tmp_path)]
    assert invoke(words) == 0
    (record,) = tmp_path.glob(".runs/*")
    before = (record / "manifest.json").read_bytes()
    with caplog.at_level("INFO"), locked_run(record):
        assert invoke(words) == 0
    assert "no record of this call" in caplog.text
    assert (record / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(("options", "code"), [(["--bits", "99"], 2), (["--batch-size", "0"], 2)])
def test_what_is_refused_leaves_no_record(model, images, tmp_path, options, code):
    words = ["depth", "--images", str(images), "--model", str(model), "--cache", str(tmp_path)]
    assert invoke([*words, *options]) == code
    assert not list(tmp_path.iterdir())


def test_coverage_names_the_gap_and_the_command_that_fills_it(capsys, images, root, tmp_path):
    assert invoke(["cache", "coverage", str(root), "--images", str(images)]) == 0
    capsys.readouterr()
    Image.new("RGB", (9, 9)).save(tmp_path / "new.png")
    code, document = _run(capsys, "cache", "coverage", root, "--images", tmp_path)
    assert (code, document["num_missing"]) == (3, 1)
    words = shlex.split(document["command"])
    assert words[:3] == ["pipeline", "depth", "--images"]
    # The command fills the gap, so it is run as printed; in a copy, since others share this root.
    copy = shutil.copytree(root, tmp_path / "copy")
    assert invoke([str(copy) if word == str(root) else word for word in words[1:]]) == 0
    assert invoke(["cache", "coverage", str(copy), "--images", str(tmp_path / "new.png")]) == 0


def test_coverage_of_a_cache_with_settings_of_its_own(capsys, model, images, tmp_path):
    root = tmp_path / "cache"
    words = ["--model", model, "--cache", root, "--precision", "bf16", "--bits", "32"]
    assert invoke(["depth", "--images", str(images / "0.png"), *map(str, words)]) == 0
    capsys.readouterr()
    code, document = _run(capsys, "cache", "coverage", root, "--images", images)
    assert (code, document["num_missing"]) == (3, 4)
    assert invoke(shlex.split(document["command"])[1:]) == 0
    assert invoke(["cache", "coverage", str(root), "--images", str(images)]) == 0


def test_repair_and_gc_as_typed(capsys, model, images, root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    (segment,) = copy.glob("*/segments/*")
    next(segment.glob("maps/*/c/0/0/0")).unlink()
    (segment / "zarr.json.tmp-1").write_bytes(b"left by a kill")
    assert invoke(["cache", "gc", str(copy), "--min-age-seconds", "0"]) == 0
    assert invoke(["cache", "verify", str(copy), "--repair"]) == 2
    assert invoke(["cache", "verify", str(copy)]) == 4
    capsys.readouterr()
    words = ["--repair", "--images", images, "--model", model]
    code, document = _run(capsys, "cache", "verify", copy, *words)
    assert (code, document["repaired"]["num_computed"]) == (0, 5)
    assert not list(copy.rglob("*.tmp-*"))


def test_read_gives_the_map_at_any_size(capsys, images, root, tmp_path):
    out = tmp_path / "depth.npy"
    code, document = _run(
        capsys, "cache", "read", root, "--image", images / "0.png", "--out", out, "--size", "24x30"
    )
    assert (code, document["height"], document["width"]) == (0, 24, 30)
    inverse_depth = np.load(out)
    assert inverse_depth.dtype == np.float32
    assert np.isfinite(inverse_depth).all()
    assert invoke(["cache", "read", str(root), "--image", "absent.png", "--out", str(out)]) == 2


def test_info_and_listing(capsys, root):
    code, info = _run(capsys, "cache", "info", root)
    assert (code, info["num_maps"]) == (0, 5)
    code, listing = _run(capsys, "cache", "ls", root)
    assert (code, len(listing["caches"])) == (0, 1)


def test_a_listing_tells_an_empty_root_from_a_folder_of_other_things(capsys, root, tmp_path):
    (tmp_path / ".service").mkdir()  # a root that was served before anything was put in it
    code, listing = _run(capsys, "cache", "ls", tmp_path)
    assert (code, listing["caches"]) == (0, [])
    (tmp_path / "notes.txt").write_text("not a cache")
    code, refusal = _run(capsys, "cache", "ls", tmp_path)
    assert code == 2
    assert "is no cache root" in refusal["error"]["message"]
    assert "pipeline depth --cache ROOT" in refusal["error"]["message"]
    (cache,) = (file.parent for file in root.glob("*/fingerprint.json"))
    code, refusal = _run(capsys, "cache", "ls", cache)
    assert code == 2
    assert f"pipeline cache info {cache}" in refusal["error"]["message"]


def test_damage_ends_with_4_and_is_named(capsys, root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    code, document = _run(capsys, "cache", "verify", copy)
    assert (code, document["problems"]) == (0, [])
    shard = max(copy.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    code, document = _run(capsys, "cache", "verify", copy)
    assert code == 4
    assert document["ok"] is False
    assert any(problem["object"] in str(shard) for problem in document["problems"])


def test_wrong_roots_are_usage_errors(tmp_path):
    assert invoke(["cache", "verify", str(tmp_path / "absent")]) == 2
    assert invoke(["cache", "info", str(tmp_path)]) == 2
    assert invoke(["depth", "--images", str(tmp_path)]) == 2


def test_import_with_failed_maps_ends_with_3_and_names_them(capsys, images, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    for index in range(5):
        np.save(maps / f"{index}.npy", np.arange(80.0).reshape(8, 10) + index)
    words = ["--source", maps, "--images", images, "--format", "npy"]
    assert _run(capsys, "cache", "import", tmp_path / "good", *words)[0] == 0
    np.save(maps / "3.npy", np.full((8, 10), np.nan))
    code, document = _run(capsys, "cache", "import", tmp_path / "bad", *words)
    assert code == 3
    assert (document["num_imported"], document["num_failed"]) == (4, 1)
    assert document["failures"][0]["path"] == "3"
