"""`pipeline masks` from boxes to masks and review page, on a few generated scenes."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from depthcache.stage_one import precompute
from pipeline.cli import invoke
from pipeline.errors import ExitCode
from pipeline.masks import masks_run
from pipeline.runs.manifest import load_manifest
from pipeline.synth import generate_dataset
from segtrain import labeller
from segtrain.run.metrics_log import read_metrics

NUM_PHOTOS = 4
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(
        generate_dataset(
            tmp_path_factory.mktemp("scenes"), num_images=NUM_PHOTOS, size=(96, 128), seed=3
        )
    )


@pytest.fixture
def work(scenes: Path, tmp_path: Path) -> Path:
    """Photos of its own, and boxes without masks."""
    document = json.loads((scenes / "annotations.json").read_text())
    for item in document["annotations"]:
        item.pop("segmentation", None)
    document["annotations"].append(
        {"id": 9999, "image_id": document["images"][0]["id"], "category_id": 1, "iscrowd": 1,
         "bbox": [0, 0, 9, 9], "segmentation": {"size": [96, 128], "counts": "0"}, "note": "kept"}
    )  # fmt: skip
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    (tmp_path / "photos").mkdir()
    for path in (scenes / "images").iterdir():
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def run(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,
) -> Run:
    """The command with an adaptation of three small steps; exit code and document."""
    small = functools.partial(
        labeller.choose_settings,
        crop_size=64, batch_size=2, warmup_iterations=1, max_iterations=3,
    )  # fmt: skip
    monkeypatch.setattr(labeller, "choose_settings", small)

    def call(*options: str, boxes: tuple[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        given = boxes or ("--coco", str(work / "boxes.json"))
        code = invoke(
            ["masks", *given, "--images", str(work / "photos"), "--out", str(work / "masks.json"),
             "--output", str(work / "run"), "--minutes", "1", "--json", *options]
        )  # fmt: skip
        return code, json.loads(capsys.readouterr().out)

    return call


def test_boxes_become_masks_with_scores_sources_and_a_review_page(
    run: Run, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = run()
    before = json.loads((work / "boxes.json").read_text())
    after = json.loads((work / "masks.json").read_text())
    assert [item["id"] for item in after["annotations"]] == [
        item["id"] for item in before["annotations"]
    ]
    assert after["annotations"][-1] == before["annotations"][-1], "crowds are not touched"
    coco = COCO(work / "masks.json")
    for item in after["annotations"][:-1]:
        mask = coco.annToMask(item)
        x, y, width, height = item["bbox"]
        ys, xs = np.nonzero(mask)
        assert item["area"] == mask.sum()
        assert x - 1 <= xs.min() <= xs.max() <= x + width + 1
        assert y - 1 <= ys.min() <= ys.max() <= y + height + 1
        assert item["mask_source"] in ("labeller", "refined", "filled_box")
        assert (item["score"] == 0) == (item["mask_source"] == "filled_box")
    num_filled = sum(i.get("mask_source") == "filled_box" for i in after["annotations"])
    assert result["num_filled_boxes"] == num_filled
    assert result["num_masks"] == len(after["annotations"]) - 1 - num_filled
    assert code == (ExitCode.FAILED_ITEMS if num_filled else ExitCode.DONE)
    assert result["depth"].startswith("none used")
    assert "none used" in after["info"]["masks"]["depth"]
    assert (work / "run" / "review.html").stat().st_size > 10_000
    page = (work / "run" / "review.html").read_text()
    assert f"<code>pipeline masks --coco {work}/boxes.json" in page
    assert "--redo masks-to-redo.json</code>" in page
    assert invoke(["report", str(work / "run")]) == ExitCode.USAGE
    assert "is a run of `pipeline masks`; its page is" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_the_same_command_again_does_nothing(
    kind: str,
    run: Run,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    file_states: Callable[[Path], dict[str, Any]],
) -> None:
    boxes = None
    if kind == "yolo":
        _write_yolo_labels(work)
        boxes = ("--boxes", str(work / "labels"))
    run(boxes=boxes)
    first = file_states(work)
    for name in ("adapt_labeller", "label_boxes"):
        monkeypatch.setattr(labeller, name, None)
    for name in ("write_masks", "write_review_page"):
        monkeypatch.setattr(masks_run, name, None)
    _, again = run(boxes=boxes)
    assert again["is_news"] is False
    assert file_states(work) == first


def test_a_check_that_finds_another_thing_is_recorded_anew(run: Run, work: Path) -> None:
    _, first = run("--minutes", "0")
    assert first["findings"] == {"crowd_box": 1}
    document = json.loads((work / "boxes.json").read_text())
    document["annotations"].append({**document["annotations"][-1], "id": 10_000})
    (work / "boxes.json").write_text(json.dumps(document))
    _, second = run("--minutes", "0")
    assert second["findings"] == {"crowd_box": 2}
    assert load_manifest(work / "run").stages["check"].counts == {"crowd_box": 2}


def test_another_form_is_written_without_labelling_again(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    for name in ("adapt_labeller", "label_boxes"):
        monkeypatch.setattr(labeller, name, None)
    monkeypatch.setattr(masks_run, "write_review_page", None)
    _, result = run("--polygons")
    assert result["is_news"] is True
    document = json.loads((work / "masks.json").read_text())
    assert isinstance(document["annotations"][0]["segmentation"], list)


def test_an_interruption_while_labelling_keeps_the_photos_done(
    run: Run,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    label_boxes = labeller.label_boxes
    seen: list[int] = []

    def stop_at_third(*arguments: Any, **options: Any) -> Any:
        seen.append(len(seen))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return label_boxes(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(labeller, "label_boxes", stop_at_third)
        with pytest.raises(json.JSONDecodeError):
            run()
    assert "stopped during labelling, 2 of 4 photos, which are kept" in caplog.text
    capsys.readouterr()
    assert invoke(["status", str(work / "run")]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "\nlabel: 2/4 photos, " in shown
    assert " photos/s, " in shown
    assert " left\nnext: pipeline resume" in shown
    assert not (work / "masks.json").exists()
    (journal,) = (work / "run").glob("labels-*.jsonl")
    with journal.open("a") as file:
        file.write('{"photo": 2, "obj')  # what a killed process may leave
    monkeypatch.setattr(labeller, "label_boxes", stop_at_third)
    code, result = run()
    assert len(seen) == 5, "two photos were left"
    assert not (work / "run" / "progress.json").exists(), "done: nothing is under way"
    assert result["num_photos"] == NUM_PHOTOS
    assert code in (ExitCode.DONE, ExitCode.FAILED_ITEMS)


def test_a_run_that_goes_on_keeps_the_schedule_that_it_began_with(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded() -> list[int]:
        manifest = json.loads((work / "run" / "manifest.json").read_text())
        settings = manifest["stages"]["adapt"]["inputs"]["settings"]
        return [settings[name] for name in ("crop_size", "batch_size", "max_iterations")]

    run()
    # As on a machine for which another schedule would be chosen.
    other = {"crop_size": 96, "batch_size": 4, "max_iterations": 5}
    monkeypatch.setattr(
        labeller, "choose_settings", functools.partial(labeller.choose_settings, **other)
    )
    assert run()[1]["is_news"] is False
    assert recorded() == [64, 2, 3]
    assert run("--minutes", "2")[1]["is_news"] is True
    assert recorded() == [96, 4, 5]


@pytest.mark.slow
def test_processes_label_what_one_labels(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = sorted((work / "photos").iterdir())[1]
    broken.write_bytes(b"no photo")
    alone = run()
    expected = (work / "masks.json").read_bytes()
    (journal,) = (work / "run").glob("labels-*.jsonl")
    lines = journal.read_text()
    assert len(lines.splitlines()) == NUM_PHOTOS - 1
    # As if it had been interrupted after the first photo.
    journal.write_text(lines.splitlines(keepends=True)[0])
    for path in (work / "run" / "manifest.json", work / "masks.json"):
        path.unlink()
    asked: list[int] = []
    adapt_labeller = labeller.adapt_labeller

    def adapt(*arguments: Any, num_processes: int, **options: Any) -> Path:
        asked.append(num_processes)  # what several learn has a test of its own
        return adapt_labeller(*arguments, **options)

    monkeypatch.setattr(labeller, "adapt_labeller", adapt)
    assert run("--processes", "2") == alone
    assert asked == [2]
    assert journal.read_text() == lines
    assert (work / "masks.json").read_bytes() == expected


def test_an_unreadable_photo_is_named_and_the_others_are_labelled(run: Run, work: Path) -> None:
    broken, missing, *_ = sorted((work / "photos").iterdir())
    broken.write_bytes(b"no photo")
    missing.unlink()
    code, result = run()
    assert code == ExitCode.FAILED_ITEMS
    assert [failure["item"] for failure in result["failures"]] == [broken.name, missing.name]
    document = json.loads((work / "masks.json").read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    for item in document["annotations"][:-1]:
        failed = names[item["image_id"]] in (broken.name, missing.name)
        assert (item["mask_source"] == "none") is failed
        assert ("segmentation" not in item) is failed
    assert result["num_without_mask"] > 0
    again, _ = run()
    assert again == ExitCode.FAILED_ITEMS, "done before, and still not whole"


def test_depth_is_computed_used_and_named(run: Run, work: Path) -> None:
    _, result = run("--model", "demo-dpt", "--minutes", "0")
    (cache,) = (work / "run" / "depth-cache").glob("dpt-*")
    assert result["depth"] == f"{cache.name} as a loss and an input, 4 of 4 photos"
    page = (work / "run" / "review.html").read_text()
    assert '"has_depth":true' in page
    _, off = run("--cache", str(work / "run" / "depth-cache"), "--depth", "off", "--minutes", "0")
    assert off["depth"].startswith("none used")


def test_status_says_how_many_maps_an_interrupted_run_has(
    run: Run,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    precompute_depth = precompute.precompute_depth

    def stop_at_first(
        *arguments: Any, progress: Callable[[int, int, int], None], **given: Any
    ) -> Any:
        def tell_and_stop(num_done: int, num_total: int, num_failed: int) -> None:
            progress(num_done, num_total, num_failed)
            if num_done:
                raise KeyboardInterrupt

        return precompute_depth(*arguments, progress=tell_and_stop, **given)

    monkeypatch.setattr(precompute, "precompute_depth", stop_at_first)
    with pytest.raises(json.JSONDecodeError):
        run("--model", "demo-dpt", "--minutes", "0")
    assert "stopped during the depth maps, which are kept" in caplog.text
    capsys.readouterr()
    assert invoke(["status", str(work / "run"), "--json"]) == ExitCode.DONE
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["stages"]["depth"]["state"] == "interrupted"
    progress = found["progress"]
    assert (progress["doing"], progress["unit"]) == ("depth", "images")
    assert 0 < progress["num_done"] <= progress["num_total"] == NUM_PHOTOS


def test_scores_below_the_least_lose_their_mask_and_are_counted(run: Run, work: Path) -> None:
    _, result = run("--minutes", "0", "--min-score", "1")
    document = json.loads((work / "masks.json").read_text())
    assert result["num_masks"] == 0
    assert result["num_below_score"] > 0
    assert not any("segmentation" in item for item in document["annotations"][:-1])


def _write_yolo_labels(work: Path) -> int:
    """The boxes without the crowd as a YOLO export in `labels`; how many they are."""
    document = json.loads((work / "boxes.json").read_text())
    (work / "labels").mkdir()
    for image in document["images"]:
        lines = []
        for item in document["annotations"][:-1]:
            if item["image_id"] == image["id"]:
                x, y, w, h = item["bbox"]
                lines.append(f"0 {(x + w / 2) / 128} {(y + h / 2) / 96} {w / 128} {h / 96}\n")
        (work / "labels" / f"{Path(image['file_name']).stem}.txt").write_text("".join(lines))
    return len(document["annotations"]) - 1


def test_an_export_of_another_tool_is_taken_and_given_back(run: Run, work: Path) -> None:
    num_boxes = _write_yolo_labels(work)
    options = ("--minutes", "0", "--format", "yolo-seg", "--out", str(work / "yolo"))
    _, result = run(*options, boxes=("--boxes", str(work / "labels")))
    assert result["num_boxes"] == num_boxes

    def count_written() -> int:
        texts = [path.read_text() for path in (work / "yolo" / "labels").iterdir()]
        return len("".join(texts).splitlines())

    assert count_written() == result["num_masks"]
    shutil.rmtree(work / "yolo")
    assert run(*options, boxes=("--boxes", str(work / "labels")))[1]["is_news"]
    assert count_written() == result["num_masks"], "a folder that is gone is written again"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depth", "both"], "needs depth: give --cache"),
        (["--depth", "deep"], "choose one of auto, off"),
        (["--format", "gif"], "unknown --format 'gif'"),
        (["--boxes", "x"], "say where the boxes are"),
        (["--start", "none.safetensors"], "does not exist"),
        (["--out", "{0}/boxes.json"], "would overwrite"),
        (["--redo", "{0}/boxes.json"], "is no list of annotation ids"),
        (["--out", "/proc/none/masks.json"], "cannot be written"),
        (["--out", "/proc/none/masks", "--format", "yolo-seg"], "choose another folder"),
        (["--out", "/proc/none/masks", "--format", "labelme"], "choose another folder"),
        (["--out", "/proc/none/masks", "--format", "png"], "choose another folder"),
        (["--out", "{0}/photos", "--format", "cvat"], "is a folder; cvat is one .xml file"),
        (["--out", "{0}/boxes.txt", "--format", "png"], "is a file; png needs a folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    run: Run, work: Path, options: list[str], message: str
) -> None:
    (work / "boxes.txt").write_text("a file")
    code, result = run(*(option.format(work) for option in options))
    assert code == ExitCode.USAGE
    assert message in result["error"]["message"]
    assert not (work / "run").exists()


@pytest.mark.parametrize(
    "option",
    ["--coco", "--boxes", "--images", "--start", "--salient", "--salient-images", "--redo"],
)
def test_a_mistyped_path_leaves_no_run_that_status_would_show(
    run: Run, work: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    absent = str(work / "absent")
    whole = {
        "--salient": ("--salient-images", str(work / "photos")),
        "--salient-images": ("--salient", str(work / "boxes.json")),
    }
    if option in ("--coco", "--boxes"):
        code, result = run(boxes=(option, absent))
    else:
        code, result = run(option, absent, *whole.get(option, ()))
    assert code == ExitCode.USAGE
    assert f"{absent} does not exist" in result["error"]["message"]
    assert not (work / "run").exists()
    invoke(["status", str(work), "--json"])
    assert json.loads(capsys.readouterr().out)["runs"] == []


def test_a_cache_that_is_not_there_leaves_no_run_either(run: Run, work: Path) -> None:
    for options in ((), ("--dry-run",)):
        code, result = run("--cache", str(work / "absent"), *options)
        assert code == ExitCode.USAGE
        assert f"no depth cache in {work / 'absent'}" in result["error"]["message"]
    assert not (work / "run").exists()


def test_a_folder_without_any_of_the_photos_is_refused_before_the_adaptation(
    run: Run, work: Path
) -> None:
    (work / "photos").rename(work / "elsewhere")
    (work / "photos").mkdir()
    code, result = run()
    assert code == ExitCode.USAGE
    assert f"none of the {NUM_PHOTOS} photos is in" in result["error"]["message"]


def test_the_plan_computes_nothing(run: Run, work: Path) -> None:
    code, plan = run("--dry-run")
    assert code == ExitCode.DONE
    assert plan["num_photos"] == NUM_PHOTOS
    assert plan["num_boxes"] > 0
    assert not (work / "run").exists()


def test_masks_that_collapse_are_announced_while_they_do(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Background outside the box is all that is taught, and the box is not shown: all turns empty.
    usual = labeller.choose_settings
    ruinous = functools.partial(
        usual,
        projection_weight=0.0, colour_weight=0.0, teacher_weight=0.0, outside_weight=5.0,
        paste_share=0.0,
        box_hint_share=0.0, start_share=0.0, learning_rate=5e-3, max_iterations=80,
    )  # fmt: skip
    monkeypatch.setattr(labeller, "choose_settings", ruinous)
    run("--minutes", "10")  # all 80 steps on a busy machine, too
    assert caplog.text.count("they have collapsed to nothing") == 1
    assert "pipeline data check" in caplog.text


def test_marked_masks_are_drawn_anew_and_the_others_stay(
    run: Run, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    before = {i["id"]: i for i in json.loads((work / "masks.json").read_text())["annotations"]}
    marked = [item["id"] for item in before.values() if not item["iscrowd"]][:2]
    page = {"schema_version": 1, "kind": "masks review", "annotation_ids": marked}
    (work / "redo.json").write_text(json.dumps(page))
    code, result = run("--redo", str(work / "redo.json"))
    assert code in (ExitCode.DONE, ExitCode.FAILED_ITEMS)
    assert result["is_news"]
    after = {i["id"]: i for i in json.loads((work / "masks.json").read_text())["annotations"]}
    assert before.keys() == after.keys()
    kept = before.keys() - set(marked)
    assert all(before[k] == after[k] for k in kept)
    assert any(before[k]["score"] != after[k]["score"] for k in marked)
    folders = list((work / "run").glob("labeller-*/metrics.jsonl"))
    taught = [path for path in folders if all("known" in row for row in read_metrics(path))]
    assert len(folders) == 2
    assert taught, "the masks that were left teach"
    assert not run("--redo", str(work / "redo.json"))[1]["is_news"]
    further = next(k for k in kept if not before[k]["iscrowd"])
    (work / "redo.json").write_text(json.dumps([further]))
    assert run("--redo", str(work / "redo.json"))[1]["is_news"]
    last = {i["id"]: i for i in json.loads((work / "masks.json").read_text())["annotations"]}
    assert all(last[k] == after[k] for k in after.keys() - {further}), "the first redo stays"
    assert last[further]["score"] != after[further]["score"]
    assert not run("--redo", str(work / "redo.json"))[1]["is_news"]
    (work / "redo.json").write_text(json.dumps([12345678]))
    assert run("--redo", str(work / "redo.json"))[0] == ExitCode.USAGE


def test_salient_objects_are_learned_from_as_coco_file_or_as_pictures(
    run: Run,
    work: Path,
    scenes: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No other crops of known masks.
    without_pasting = functools.partial(labeller.choose_settings, paste_share=0.0)
    monkeypatch.setattr(labeller, "choose_settings", without_pasting)
    photos = ("--salient-images", str(scenes / "images"))
    code, _ = run("--salient", str(scenes / "annotations.json"), *photos, "--disjoint")
    assert code in (0, ExitCode.FAILED_ITEMS)
    (row,) = [
        json.loads(line)
        for path in (work / "run").glob("labeller-*/metrics.jsonl")
        for line in path.read_text().splitlines()[-1:]
    ]
    assert row["known"] > 0
    claims = np.zeros((NUM_PHOTOS + 1, 96, 128), dtype=int)
    coco = COCO(work / "masks.json")
    for item in coco.anns.values():
        if "segmentation" in item and item.get("mask_source") == "labeller":
            claims[item["image_id"]] += coco.annToMask(item)
    assert claims.max() == 1

    pictures = work / "pictures"
    pictures.mkdir()
    document = COCO(scenes / "annotations.json")
    for image in document.imgs.values():
        own = document.imgToAnns[image["id"]]
        whole = np.max([document.annToMask(item) for item in own], axis=0)
        Image.fromarray(whole * 255).save(pictures / f"{Path(image['file_name']).stem}.png")
    capsys.readouterr()  # pycocotools prints
    run("--salient", str(pictures), *photos)
    assert len(list((work / "run").glob("labeller-*"))) == 2, "other masks, another labeller"
    for options, message in (
        (("--salient", str(pictures)), "go together"),
        (("--salient", str(work / "none"), *photos), "does not exist"),
        (("--salient", str(pictures), *photos, "--minutes", "0"), "minutes above 0"),
        (("--salient", str(pictures), "--salient-images", str(work / "run")), "mask of no photo"),
    ):
        assert invoke(
            ["masks", "--coco", str(work / "boxes.json"), "--images", str(work / "photos"),
             "--out", str(work / "more.json"), "--output", str(work / "other"), *options]
        ) == ExitCode.USAGE  # fmt: skip
        assert message in capsys.readouterr().err
