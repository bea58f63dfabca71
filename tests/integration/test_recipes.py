"""The pages of docs/recipes, run as they stand: every `bash` and `python` block, in order.

A page finds a working folder in which its names mean something small: `photos/` are generated
scenes, `Intel/dpt-large` a folder with a tiny model, `configs/coco/full_r50_1x.py` a tiny config
(both are found in the working folder first). Commands of `pipeline` run in this process; a line
that ends with `&` runs in one of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from depthcache import DepthCache, image_key
from depthcache.cache_reader import list_caches
from pipeline.cli import invoke
from pipeline.synth import generate_dataset, scene_chunks, scene_scores
from segtrain import labeller
from tests.conftest import load_script

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "docs" / "recipes"
NUM_PHOTOS = 4
# Ports that the pages name; tests that run beside each other need others.
PORTS = ("8786", "8787")

pytestmark = [
    pytest.mark.slow,
    # distributed and uvicorn end in processes of their own, whose sockets close late.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # detectron2's anchors call meshgrid in the way that torch asks to change.
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
]


@pytest.fixture(scope="module")
def material(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder to copy: photos, boxes, truth, tiny models and configs."""
    folder = tmp_path_factory.mktemp("recipes")
    scenes = generate_dataset(
        folder / "scenes", num_images=NUM_PHOTOS, size=(96, 96), seed=3, workers=1
    )
    shutil.copytree(scenes / "images", folder / "photos")
    document = json.loads((scenes / "annotations.json").read_text())
    _write_yolo_and_voc(folder, document)
    (folder / "truth.json").write_text(json.dumps(document))
    _write_annotations(folder / "boxes.json", document, lambda number: False)
    _write_annotations(folder / "some-masks.json", document, lambda number: number % 2 == 0)
    shutil.copytree(model, folder / "Intel" / "dpt-large")
    _write_depth_anything(folder / "depth-anything" / "Depth-Anything-V2-Small-hf")
    detectors = ("boxinst_r50", "condinst_r50", "mask_rcnn_r50")
    names = ("coco/full_r50_1x", "cityscapes/full_r50", *(f"baselines/{n}" for n in detectors))
    for name in names:
        assert (REPOSITORY / "configs" / f"{name}.py").is_file(), "a recipe must name what ships"
        _write_tiny_config(folder / "configs" / f"{name}.py")
    return folder


@pytest.fixture
def folder(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own copy of the material as working folder."""
    shutil.copytree(material, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "work"


@pytest.fixture
def run_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Run the blocks of a page in the working folder."""
    background: list[subprocess.Popen[bytes]] = []

    def run(name: str, changes: dict[str, str] | None = None) -> None:
        text = (RECIPES / f"{name}.md").read_text()
        for written, small in (changes or {}).items():
            assert written in text
            text = text.replace(written, small)
        for port in PORTS:
            text = re.sub(rf"\b{port}\b", str(_free_port()), text)
        variables: dict[str, Any] = {}
        for language, block in _blocks(text):
            if language == "python":
                exec(compile(block, f"{name}.md", "exec"), variables)
                continue
            for line in _lines(block):
                _run_line(line, background, monkeypatch)

    yield run
    for process in background:
        process.terminate()
    for process in background:
        process.wait(timeout=60)


def test_depth_only(run_recipe: Callable[..., None], folder: Path) -> None:
    run_recipe("depth-only")
    assert len(list(DepthCache.open("depth").keys())) == NUM_PHOTOS
    assert len(list(Path("depth-png").glob("*.png"))) == NUM_PHOTOS
    assert np.isfinite(np.load("first.npy")).all()


def test_sensed_depth(run_recipe: Callable[..., None], folder: Path) -> None:
    Path("sensor").mkdir()
    true_metres = {}
    for path in sorted((folder / "scenes" / "depth").glob("*.npy")):
        metres = np.load(path)
        true_metres[path.stem] = metres
        millimetres = np.rint(metres * 1000).clip(1, 65535).astype(np.uint16)
        millimetres[10:20, 30:50] = 0
        Image.fromarray(millimetres).save(Path("sensor") / f"{path.stem}.png")
    run_recipe("sensed-depth")
    cache = DepthCache.open("depth")
    inverse_depth = cache.read(image_key(Path("photos/000001.png").read_bytes()))
    expected = 1000 / np.rint(true_metres["000001"] * 1000)
    measured = np.ones((96, 96), dtype=bool)
    measured[10:20, 30:50] = False
    # Both are up to scale: the maps' unit was the millimetre.
    np.testing.assert_allclose(
        inverse_depth[measured] / inverse_depth[measured].max(),
        expected[measured] / expected[measured].max(),
        atol=2e-3,
    )
    lidar = DepthCache.open("lidar-depth").read(image_key(Path("photos/000000.png").read_bytes()))
    assert lidar.shape == (96, 96)
    assert 1 / 9 <= lidar.min() < lidar.max() <= 1


def test_another_depth_model(run_recipe: Callable[..., None], folder: Path) -> None:
    run_recipe("another-depth-model")
    assert sorted(cache["num_maps"] for cache in list_caches("depth")) == [NUM_PHOTOS] * 2


def test_bucket(
    run_recipe: Callable[..., None], bucket: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.client.create_bucket(Bucket="team-depth")
    run_recipe("bucket")
    assert f"{NUM_PHOTOS} of {NUM_PHOTOS} images have depth" in capsys.readouterr().out
    objects = bucket.client.list_objects_v2(Bucket="team-depth", Prefix="maps/")["Contents"]
    assert any(item["Key"].endswith("sealed.json") for item in objects)


def test_shared_service(run_recipe: Callable[..., None], folder: Path) -> None:
    run_recipe("shared-service")
    for root in ("shared-depth", "depth"):
        assert len(list(DepthCache.open(root).keys())) == NUM_PHOTOS


def test_cluster(run_recipe: Callable[..., None], folder: Path) -> None:
    run_recipe("cluster")
    assert len(list(DepthCache.open("depth").keys())) == NUM_PHOTOS


def test_train_a_detector(run_recipe: Callable[..., None], folder: Path) -> None:
    run_recipe("train-a-detector")
    boxes = json.loads(Path("boxes.json").read_text())["annotations"]
    masks = json.loads(Path("masks.json").read_text())["annotations"]
    assert [item["id"] for item in masks] == [item["id"] for item in boxes]
    assert all("segmentation" in item and 0 <= item["score"] <= 1 for item in masks)
    assert isinstance(json.loads(Path("detections.json").read_text()), list)


def test_own_boxes(run_recipe: Callable[..., None], folder: Path) -> None:
    boxes = json.loads(Path("boxes.json").read_text())["annotations"]
    # What the review page downloads after one mark.
    Path("masks-to-redo.json").write_text(json.dumps({"annotation_ids": [boxes[0]["id"]]}))
    # Minutes are a user's; one iteration tells as much about the page.
    run_recipe("own-boxes", {"--minutes 10": "--minutes 0"})
    kept = json.loads(Path("good.json").read_text())["annotations"]
    assert [item["id"] for item in kept] == [item["id"] for item in boxes[1:]]
    for name in ("masks", "masks-yolo", "masks-voc", "masks-depth"):
        masks = json.loads(Path(f"{name}.json").read_text())["annotations"]
        assert len(masks) == len(boxes), name
        assert all("segmentation" in item for item in masks), name
    assert len(json.loads(Path("from-voc.json").read_text())["annotations"]) == len(boxes)
    assert Path("runs/masks/review.html").is_file()
    assert len(list(Path("masks-png").rglob("*.png"))) >= NUM_PHOTOS
    assert len(list(Path("masks-yolo-seg").rglob("*.txt"))) >= NUM_PHOTOS


def test_mixed_supervision(run_recipe: Callable[..., None], folder: Path) -> None:
    run_recipe("mixed-supervision")
    assert Path("runs/mixed/model_final.pth").is_file()


def test_second_phase(run_recipe: Callable[..., None], folder: Path) -> None:
    run_recipe("second-phase", {"--minutes 10": "--minutes 0"})
    boxes = json.loads(Path("boxes.json").read_text())["annotations"]
    masks = json.loads(Path("masks.json").read_text())["annotations"]
    assert [item["id"] for item in masks] == [item["id"] for item in boxes]
    assert all("segmentation" in item for item in masks)
    for name in ("second-phase", "second-phase-mask-rcnn", "mixed-phase"):
        assert Path(f"runs/{name}/model_final.pth").is_file()
    assert len(list(Path("runs/masks").glob("labels-*.jsonl"))) == 1, "labelled once"


def test_boxcaseg(
    run_recipe: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"crop_size": 64, "batch_size": 4, "warmup_iterations": 1, "max_iterations": 2}
    settings = functools.partial(labeller.choose_settings, **small)
    monkeypatch.setattr(labeller, "choose_settings", settings)
    salient = generate_dataset(folder / "more", num_images=2, size=(96, 96), seed=9, workers=1)
    shutil.copytree(salient / "images", folder / "salient")
    shutil.copy(salient / "annotations.json", folder / "salient.json")
    run_recipe("boxcaseg")
    boxes = json.loads(Path("boxes.json").read_text())["annotations"]
    masks = json.loads(Path("proxy-masks.json").read_text())["annotations"]
    assert [item["id"] for item in masks] == [item["id"] for item in boxes]
    assert 0 < sum("segmentation" in item for item in masks) <= len(boxes)
    assert Path("runs/boxcaseg/model_final.pth").is_file()


def test_another_encoder(
    run_recipe: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script(REPOSITORY / "data" / "labeller" / "train_labeller.py")
    monkeypatch.setattr(script, "_LEAST_SCENES", 1)
    monkeypatch.setattr(script, "_SCORED_SCENES", (10, 1))
    monkeypatch.setattr(script, "scene_drawers", _draw_few_scenes)
    for module in (scene_chunks, scene_scores):
        monkeypatch.setattr(module, "NUM_TILES", 8)
    monkeypatch.setattr(scene_chunks, "SCENES_PER_CHUNK", 2)
    small = {
        "convnext_tiny.fb_in22k": "test_convnext",
        "pretrained=True": "pretrained=False",
        "--minutes 120 --batch 32 --drawers 12 --kept-scenes 12000": (
            "--minutes 0.02 --batch 2 --drawers 1 --kept-scenes 4"
        ),
        "--images photos/ --out masks.json": "--images photos/ --out masks.json --minutes 0",
    }
    run_recipe("another-encoder", small)
    (trained,) = json.loads(Path("runs/convnext/training.json").read_text())
    assert trained["encoder"] == "test_convnext"
    assert trained["steps"] > 0
    assert json.loads(Path("runs/convnext/metrics.json").read_text())["without_depth"]["objects"]
    masks = json.loads(Path("masks.json").read_text())
    assert len(masks["annotations"]) == len(
        json.loads(Path("boxes.json").read_text())["annotations"]
    )


def test_several_processes(run_recipe: Callable[..., None], folder: Path) -> None:
    run_recipe("several-processes")
    assert Path("runs/mine/model_final.pth").is_file()


def test_published_checkpoint(run_recipe: Callable[..., None], folder: Path) -> None:
    import torch
    from detectron2.config import instantiate

    from pipeline.config import load_config

    # Published checkpoints fit the configs that ship, not the small ones of the other recipes.
    for name in ("baselines/boxinst_r50", "coco/full_r50_1x"):
        Path(f"configs/{name}.py").unlink()
    model = instantiate(load_config(REPOSITORY / "configs/baselines/boxinst_r50.py").model)
    torch.save({"model": model.state_dict()}, "boxinst_r50.pth")
    train = (
        "train.max_iter=2 train.batch_size=2 train.device=cpu train.teacher_short_side=64"
        " dataloader.train.augmentation.short_sides=[64] dataloader.train.num_workers=0"
    )
    small = {
        "--out detections.json": "--out detections.json --set dataloader.test.short_side=96",
        "depth.cache=depth/": f"depth.cache=depth/ {train}",
    }
    run_recipe("published-checkpoint", small)
    assert isinstance(json.loads(Path("detections.json").read_text()), list)
    converted = torch.load("converted.pth", weights_only=True)["model"]
    trained = torch.load("runs/from-boxinst/model_final.pth", weights_only=True)["model"]
    # The stem is frozen, so it tells where training began; the depth layer came on the way.
    stem = "backbone.bottom_up.stem.conv1.weight"
    torch.testing.assert_close(trained[stem], converted[stem], rtol=0, atol=0)
    new = {key for key in converted if trained[key].shape != converted[key].shape}
    assert any("controller" in key for key in new)


def test_coco(run_recipe: Callable[..., None], folder: Path) -> None:
    root = Path("data/coco")
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        shutil.copytree("photos", root / split)
        shutil.copy("truth.json", root / "annotations" / f"instances_{split}.json")
    run_recipe("coco")
    boxes = json.loads((root / "annotations" / "instances_train2017_boxes.json").read_text())
    assert boxes["annotations"]
    assert not any("segmentation" in item for item in boxes["annotations"])
    assert len(list(DepthCache.open("depth").keys())) == NUM_PHOTOS
    assert not Path("runs/boxinst/depth-cache").exists()
    page = Path("report.html").read_text()
    assert all(f"<th scope=row>{name}</th>" in page for name in ("boxinst", "full", "condinst"))
    assert "IoU given the box" in page


def test_cityscapes(run_recipe: Callable[..., None], folder: Path) -> None:
    root = Path("data/cityscapes")
    for split in ("train", "val"):
        for number, photo in enumerate(sorted(Path("photos").iterdir())[:2]):
            name = f"{split}/aachen/aachen_{number:06d}_000019"
            places = {
                kind: root / kind / f"{name}_{ending}"
                for kind, ending in (
                    ("leftImg8bit", "leftImg8bit.png"),
                    ("gtFine", "gtFine_polygons.json"),
                    ("disparity", "disparity.png"),
                )
            }
            for path in places.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            # Photos of the two splits must differ: depth belongs to bytes.
            picture = Image.open(photo).convert("RGB")
            picture.rotate(180 if split == "val" else 0).save(places["leftImg8bit"])
            corner = [[20, 20], [60, 20], [60, 70], [20, 70]]
            objects = [{"label": "car", "polygon": corner}]
            places["gtFine"].write_text(
                json.dumps({"imgHeight": 96, "imgWidth": 96, "objects": objects})
            )
            codes = np.arange(96 * 96, dtype=np.uint16).reshape(96, 96)
            codes[40:50, 40:50] = 0
            Image.fromarray(codes).save(places["disparity"])
    run_recipe("cityscapes")
    assert len(list(DepthCache.open(root / "depth-cache").keys())) == 4
    assert Path("runs/cityscapes/model_final.pth").is_file()


def test_every_recipe_is_run_and_listed() -> None:
    names = {path.stem for path in RECIPES.glob("*.md")} - {"README"}
    tests = {name.removeprefix("test_").replace("_", "-") for name in globals() if "test_" in name}
    assert names <= tests
    assert set(re.findall(r"\((\S+)\.md\)", (RECIPES / "README.md").read_text())) == names


def _blocks(page: str) -> Iterator[tuple[str, str]]:
    for found in re.finditer(r"^```(bash|python)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        yield found[1], found[2]


def _lines(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def _run_line(
    line: str, background: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "export":
        name, _, value = words[1].partition("=")
        monkeypatch.setenv(name, value)
    elif words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[1:])
        load_script(REPOSITORY / words[1]).main()
    elif words[-1] == "&":
        background.append(_start(words[:-1]))
    else:
        assert words[0] == "pipeline", f"no way to run {line!r}"
        # Two iterations teach no masks: boxes that stay filled are failed items, as the page says.
        allowed = (0, 3) if words[1] in {"label", "masks"} else (0,)
        assert invoke(words[1:]) in allowed, line


@contextlib.contextmanager
def _draw_few_scenes(folder: Path, *, seed: int, num_processes: int) -> Iterator[None]:
    """What drawers do, once and in this process."""
    scene_chunks.draw_chunks(folder, seed, num_processes - 1, 1)
    yield


def _start(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a program of the page and wait until the port that it serves is open."""
    module = {"pipeline": "pipeline", "dask": "dask"}[words[0]]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", module, *words[1:]],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if "--port" in words:
        port = int(words[words.index("--port") + 1])
        deadline = time.monotonic() + 120
        while not _is_open(port):
            assert process.poll() is None, f"{words} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{words} does not answer"
            time.sleep(0.1)
    return process


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_annotations(
    path: Path, document: dict[str, Any], keeps_mask: Callable[[int], bool]
) -> None:
    annotations = [
        item if keeps_mask(number) else {k: v for k, v in item.items() if k != "segmentation"}
        for number, item in enumerate(document["annotations"])
    ]
    path.write_text(json.dumps(document | {"annotations": annotations}))


def _write_yolo_and_voc(folder: Path, document: dict[str, Any]) -> None:
    """The same boxes as these tools write them."""
    names = {item["id"]: item["name"] for item in document["categories"]}
    numbers = {identity: number for number, identity in enumerate(names)}
    (folder / "yolo").mkdir()
    (folder / "voc").mkdir()
    (folder / "yolo" / "classes.txt").write_text("\n".join(names.values()) + "\n")
    for image in document["images"]:
        own = [item for item in document["annotations"] if item["image_id"] == image["id"]]
        width, height = image["width"], image["height"]
        lines, objects = [], []
        for item in own:
            x, y, w, h = item["bbox"]
            shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join(map(str, (numbers[item["category_id"]], *shares))))
            objects.append(
                f"<object><name>{names[item['category_id']]}</name><bndbox><xmin>{x + 1}</xmin>"
                f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            )
        stem = Path(image["file_name"]).stem
        (folder / "yolo" / f"{stem}.txt").write_text("\n".join(lines))
        (folder / "voc" / f"{stem}.xml").write_text(
            f"<annotation><filename>{image['file_name']}</filename><size><width>{width}</width>"
            f"<height>{height}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
        )


def _write_depth_anything(folder: Path) -> None:
    """A tiny Depth Anything: another architecture than DPT, in HuggingFace format."""
    import torch
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=1, image_size=28,
        patch_size=14, out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14).save_pretrained(
        folder
    )


def _write_tiny_config(path: Path) -> None:
    """The method of the name on a tiny backbone, two iterations; data as each recipe names them."""
    cityscapes = "cityscapes" in str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    method = next((m for m in ("full", "mask_rcnn") if m in path.stem), "boxinst")
    path.write_text(
        f"""
from detectron2.config import LazyCall, LazyConfig
from segtrain.modeling.backbones import build_timm_fpn

_full = LazyConfig.load({str(REPOSITORY / f"configs/demo/{method}.py")!r})
data, depth, optimizer = _full.data, _full.depth, _full.optimizer
schedule, dataloader, train, model = _full.schedule, _full.dataloader, _full.train, _full.model
model.backbone = LazyCall(build_timm_fpn)(
    name="test_efficientnet_gn", out_channels=32, finest_level={2 if method == "mask_rcnn" else 3}
)
if {method != "mask_rcnn"}:
    model.feature_channels = 32
    model.tower_depth = 1
model.pixel_mean = [103.53, 116.28, 123.675]
model.pixel_std = [58.0, 57.0, 57.0]
data.num_classes = {8 if cityscapes else 6}
if {cityscapes}:
    data.train_json = data.test_json = "data/cityscapes/annotations/cityscapes_train_boxes.json"
    data.train_images = data.test_images = "data/cityscapes/leftImg8bit/train"
else:
    data.train_json = "data/coco/annotations/instances_train2017.json"
    data.train_images = "data/coco/train2017"
    data.test_json = "data/coco/annotations/instances_val2017.json"
    data.test_images = "data/coco/val2017"
train.max_iter = 2
train.batch_size = 2
train.device = "cpu"
train.distill_from = {0.5 if method == "full" else None}
train.teacher_short_side = 64
train.tensorboard = False
dataloader.train.num_workers = 0
dataloader.train.augmentation.short_sides = [64]
dataloader.test.short_side = 64
dataloader.test.max_size = 96
"""
        + (
            "data.use_masks = True\nmodel.supervision = 'masks'\n"
            if "condinst" in str(path)
            else ""
        )
    )
