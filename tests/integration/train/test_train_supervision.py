"""What may and may not reach the weights, and what stops a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyCall
from detectron2.engine import launch

from depthcache.storage.bucket import BucketStore
from segtrain.distillation.box_teacher import BoxTeacherSettings
from segtrain.distillation.disco_box import DiscoBoxSettings
from segtrain.errors import ImageSizeMismatchError, NonFiniteLossError, TrainingConfigError
from segtrain.losses.bbtp import BBTP
from segtrain.run import trainer as training
from segtrain.run.checkpoints import list_checkpoints, load_state, save_atomically
from segtrain.run.train_settings import TrainSettings
from segtrain.run.trainer import Trainer, train_model

ONE_STEP: dict[str, Any] = {
    "train.max_iter": 1,
    "train.distill_from": None,
    "schedule.warmup": 0.0,
    "dataloader.train.num_workers": 0,
}


def _weights(run_dir: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_state(run_dir / "model_final.pth")["model"]
    return weights


@pytest.mark.usefixtures("two_threads")
def test_corrupt_masks_change_nothing(
    tmp_path: Path, load_tiny: Callable[..., Any], change_annotations: Callable[..., Path]
) -> None:
    def corrupt(document: dict[str, Any]) -> None:
        wrong = ([[0, 0, 5, 5, 0, 5]], {"size": [1, 1], "counts": "~~"}, "nonsense", None)
        for index, annotation in enumerate(document["annotations"]):
            annotation["segmentation"] = wrong[index % len(wrong)]
            annotation["area"] = -1

    # Two steps, the second one with a teacher whose masks teach.
    base = ONE_STEP | {
        "train.max_iter": 2,
        "train.distill_from": 0.5,
        "model.score_threshold": 0.001,
        "model.distillation.score_threshold": 0.0,
    }
    changes = base | {"data.train_json": str(change_annotations(corrupt))}
    summary = train_model(load_tiny(base), tmp_path / "a", resume=False)
    assert "loss_dice" in summary.last_metrics
    train_model(load_tiny(changes), tmp_path / "b", resume=False)
    first, second = _weights(tmp_path / "a"), _weights(tmp_path / "b")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_masks_teach_where_the_config_says_so(
    tmp_path: Path, load_tiny: Callable[..., Any], change_annotations: Callable[..., Path]
) -> None:
    def drop_every_second_mask(document: dict[str, Any]) -> None:
        for annotation in document["annotations"][::2]:
            del annotation["segmentation"]

    base = ONE_STEP | {"data.train_json": str(change_annotations(drop_every_second_mask))}
    mixed = base | {"data.use_masks": True, "model.supervision": "mixed"}
    summary = train_model(load_tiny(mixed), tmp_path / "mixed", resume=False)
    assert summary.last_metrics["loss_mask"] > 0
    assert summary.last_metrics["loss_proj"] > 0
    summary = train_model(load_tiny(base), tmp_path / "boxes", resume=False)
    assert "loss_mask" not in summary.last_metrics


def test_non_finite_loss_stops_before_the_step(
    tmp_path: Path, load_tiny: Callable[..., Any]
) -> None:
    trainer = Trainer(load_tiny(ONE_STEP), tmp_path / "a", resume=False)
    state = trainer.model.state_dict()
    state["proposal_generator.fcos_head.cls_logits.bias"].fill_(float("nan"))
    save_atomically({"model": state}, tmp_path / "broken.pth")
    changes = ONE_STEP | {"train.init_checkpoint": str(tmp_path / "broken.pth")}
    trainer = Trainer(load_tiny(changes), tmp_path / "b", resume=False)
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=r"loss_fcos_cls = nan.*images: .*\.png"):
        trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before)


def test_non_finite_gradient_of_a_finite_loss_stops_before_the_step(
    tmp_path: Path, load_tiny: Callable[..., Any], joint_work: Any
) -> None:
    # Clipping must not hide it: infinity times a factor of zero is no number.
    changes = ONE_STEP | {"train.accumulation": 2, "optimizer.gradient_clip_norm": 1.0}
    trainer = Trainer(load_tiny(changes), tmp_path, resume=False)
    joint_work.break_gradient(trainer)
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=r"iteration 0: gradient norm = inf; ") as caught:
        trainer.train()
    assert "loss_" not in str(caught.value)
    # Both accumulated parts went into the gradient.
    assert len(trainer.step_images) == 2
    assert f"images: {', '.join(trainer.step_images)}." in str(caught.value)
    for key, value in trainer.model.named_parameters():
        assert torch.equal(before[key], value), key
    assert not list_checkpoints(tmp_path)
    assert not (tmp_path / "model_final.pth").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_workers_read_depth_from_a_bucket(
    tmp_path: Path, load_tiny: Callable[..., Any], scenes: Path, bucket: Any
) -> None:
    root = scenes / "cache"
    store = BucketStore(f"{bucket.url}/cache")
    for path in root.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(root).as_posix(), path.read_bytes())
    # This process has read the bucket: forked workers would wait for threads that it has alone.
    remote = {"depth.cache": store.url, "dataloader.train.num_workers": 1}
    train_model(load_tiny(ONE_STEP | remote), tmp_path / "bucket", resume=False)
    train_model(load_tiny(ONE_STEP), tmp_path / "folder", resume=False)
    first, second = _weights(tmp_path / "bucket"), _weights(tmp_path / "folder")
    assert all(torch.equal(first[key], second[key]) for key in second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.num_classes": 4}, "data.num_classes=6"),
        ({"train.batch_size": 3, "train.accumulation": 2}, "train.batch_size=3"),
        ({"train.precision": "fp17"}, "train.precision"),
        ({"train.precision": "fp16"}, "needs a GPU"),
        ({"optimizer.kind": "lion"}, "optimizer.kind"),
        ({"schedule.drops": [60000]}, "shares of the run"),
        ({"model.supervision": "mixed"}, "set data.use_masks=True"),
        ({"data.use_masks": True}, "read in vain"),
        ({"depth.enabled": False}, "losses read depth"),
        (
            {"model.depth_weight": 0.0, "model.consistency": False, "model.distillation": None},
            "nothing in the model reads depth.*set depth.enabled=False",
        ),
        (
            {"train.distill_from": 0.5, "model.distillation": None},
            "train.distill_from=0.5 needs model.distillation",
        ),
        (
            {"model.distillation": LazyCall(BoxTeacherSettings)()},
            r"BoxTeacherSettings.*set train.distill_from=0.0",
        ),
        (
            {
                "model.distillation": LazyCall(DiscoBoxSettings)(reads_depth=True),
                "model.depth_layer": False,
                "model.consistency": False,
                "depth.enabled": False,
            },
            r"depth.enabled=True.*reads_depth",
        ),
        (
            {"model.supervision": "masks", "data.use_masks": True},
            r"set model.distillation=null train.distill_from=null",
        ),
        (
            {"model.supervision": LazyCall(BBTP)()},
            r"^model: model.color, .*model.consistency.*: nothing reads them.*supervision=BBTP",
        ),
        (
            {"model.supervision": LazyCall(BBTP)(consistency_weight=-1.0)},
            r"^model\.supervision: consistency_weight must be at least 0, got -1",
        ),
        (
            {"model.distillation": LazyCall(BoxTeacherSettings)(min_iou=1.5)},
            r"^model\.distillation: min_iou must be in .* got 1\.5",
        ),
        ({"model.depth_threshold": 0.0}, r"^model: depth_threshold must be in \(0, 1\], got 0"),
    ],
)
def test_contradicting_settings_are_refused(
    tmp_path: Path, load_tiny: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingConfigError, match=message):
        train_model(load_tiny(ONE_STEP | changes), tmp_path, resume=False)


def test_fp16_is_refused_without_a_gpu_that_was_hoped_for(
    tmp_path: Path, load_tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changes = ONE_STEP | {"train.precision": "fp16", "train.device": "auto"}
    with pytest.raises(TrainingConfigError, match="needs a GPU"):
        train_model(load_tiny(changes), tmp_path, resume=False)


def test_fp16_scales_losses_and_skips_a_step_that_overflows(
    tmp_path: Path, load_tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a GPU it is slow, and the way is the same.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training, "require_precision", lambda *_: None)
    changes = ONE_STEP | {"train.device": "auto", "train.max_iter": 2, "train.checkpoint_period": 1}
    full = train_model(load_tiny(changes), tmp_path / "fp32", resume=False).last_metrics
    half_changes = changes | {"train.precision": "fp16"}
    half = train_model(load_tiny(half_changes), tmp_path / "fp16", resume=False).last_metrics
    for name in ("loss_fcos_cls", "loss_fcos_loc", "loss_proj", "gradient_norm"):
        assert half[name] == pytest.approx(full[name], rel=0.05), name
        assert half[name] != full[name]

    # The loss scale is part of a checkpoint, as the optimizer is.
    (tmp_path / "fp16" / "checkpoints" / "iteration_00000002.pth").unlink()
    trainer = Trainer(load_tiny(half_changes), tmp_path / "fp16", resume=True)
    assert trainer.iteration == 1
    assert trainer.scaler.get_scale() == 65536
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 2.0**100})
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    summary = trainer.train()
    assert summary.num_iterations == 2
    assert trainer.scaler.get_scale() == 2.0**99
    assert all(torch.equal(before[key], value) for key, value in trainer.model.named_parameters())


def test_bf16_trains_as_fp32_does(tmp_path: Path, load_tiny: Callable[..., Any]) -> None:
    changes = ONE_STEP | {"train.channels_last": True, "train.precision": "bf16"}
    half = train_model(load_tiny(changes), tmp_path / "bf16", resume=False).last_metrics
    full = train_model(load_tiny(ONE_STEP), tmp_path / "fp32", resume=False).last_metrics
    for name, value in full.items():
        if name.startswith("loss_"):
            assert half[name] == pytest.approx(value, rel=0.1, abs=0.02), name
    assert half["total_loss"] != full["total_loss"]
    weights = _weights(tmp_path / "bf16")
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float32}


# One plain SGD step of learning rate 1 from the same start: the weights differ by the gradient.
GRADIENT_STEP = ONE_STEP | {
    "optimizer.kind": "sgd",
    "optimizer.learning_rate": 1.0,
    "optimizer.reference_batch_size": 2,
    "optimizer.weight_decay": 0.0,
    "optimizer.gradient_clip_norm": 0.0,
    # Images of one size, so that no padding tells a joint batch from its parts.
    "dataloader.train.augmentation.short_sides": [64],
}


def _gradient(cfg: Any, run_dir: Path) -> dict[str, torch.Tensor]:
    """What one step of GRADIENT_STEP subtracts from the weights."""
    start = Trainer(cfg, run_dir / "start", resume=False).model.state_dict()
    train_model(cfg, run_dir, resume=False)
    end = _weights(run_dir)
    return {key: start[key] - end[key] for key in end if end[key].is_floating_point()}


def _assert_same_gradients(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], num_moved: int = 60
) -> None:
    scale = max(float(value.abs().max()) for value in one.values())
    for key, value in one.items():
        # Relative to the tensor's own gradient; differences of large weights are rounded, too.
        own = 1e-4 * float(value.abs().max()) + 1e-6 * scale + 1e-6
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=own, msg=key)
    assert sum(float(value.abs().max()) > 1e-7 for value in one.values()) >= num_moved


def test_clipped_gradient_has_the_norm_of_the_config(
    tmp_path: Path, load_tiny: Callable[..., Any]
) -> None:
    whole = _gradient(load_tiny(GRADIENT_STEP), tmp_path / "whole")
    clipped = _gradient(
        load_tiny(GRADIENT_STEP | {"optimizer.gradient_clip_norm": 0.25}), tmp_path / "clipped"
    )
    trained = [key for key in whole if not key.endswith(("running_mean", "running_var", "_iter"))]
    norm = torch.cat([whole[key].flatten() for key in trained]).norm()
    assert norm > 0.5
    for key in trained:
        torch.testing.assert_close(clipped[key], whole[key] * (0.25 / norm), rtol=1e-2, atol=1e-5)


def test_accumulated_parts_take_the_step_of_the_joint_batch(
    tmp_path: Path, load_tiny: Callable[..., Any], change_annotations: Callable[..., Path]
) -> None:
    def keep_one_image(document: dict[str, Any]) -> None:
        document["images"] = document["images"][:1]
        kept = document["images"][0]["id"]
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] == kept]

    # Losses are normalised by each part's own counts, so equal parts are the joint batch.
    changes = GRADIENT_STEP | {
        "data.train_json": str(change_annotations(keep_one_image)),
        "dataloader.train.augmentation.flip_probability": 0.0,
        # A batch norm of two equal images is that of one, but for its running variance.
        "model.norm": "GN",
    }
    joint = _gradient(load_tiny(changes), tmp_path / "joint")
    parts = _gradient(load_tiny(changes | {"train.accumulation": 2}), tmp_path / "parts")
    _assert_same_gradients(joint, parts)


def test_log_tells_of_masks_that_are_empty(
    tmp_path: Path, load_tiny: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    state = Trainer(load_tiny(ONE_STEP), tmp_path / "a", resume=False).model.state_dict()
    state["controller.bias"][-1] = -50.0
    save_atomically({"model": state}, tmp_path / "empty.pth")
    changes = ONE_STEP | {"train.init_checkpoint": str(tmp_path / "empty.pth")}
    train_model(load_tiny(changes), tmp_path / "b", resume=False)
    assert "masks fill 0.0% of their boxes: they are empty" in caplog.text
    assert "model.depth_warmup=True" in caplog.text


def test_log_tells_the_scaled_learning_rate_and_masks_that_are_boxes(
    tmp_path: Path, load_tiny: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    state = Trainer(load_tiny(ONE_STEP), tmp_path / "a", resume=False).model.state_dict()
    state["controller.bias"][-1] = 50.0  # the mask layer's bias: every pixel is mask
    save_atomically({"model": state}, tmp_path / "full.pth")
    changes = ONE_STEP | {
        "train.init_checkpoint": str(tmp_path / "full.pth"),
        "optimizer.reference_batch_size": 16,
    }
    with caplog.at_level(logging.INFO):
        summary = train_model(load_tiny(changes), tmp_path / "b", resume=False)
    assert summary.learning_rate == pytest.approx(0.001 * 2 / 16)
    assert "learning rate 0.000125 = 0.001 for a batch of 16, scaled to a batch of 2" in caplog.text
    assert summary.last_metrics["mask_box_fill_ratio"] == 1.0
    assert "they are turning into boxes" in caplog.text


def test_the_teacher_is_delivered_where_the_config_says_so(
    tmp_path: Path, load_tiny: Callable[..., Any]
) -> None:
    changes = ONE_STEP | {"train.distill_from": 0.0, "train.deliver": "teacher"}
    trainer = Trainer(load_tiny(changes), tmp_path, resume=False)
    trainer.train()
    final = load_state(tmp_path / "model_final.pth")["model"]
    assert trainer.teacher is not None
    taught, learnt = trainer.teacher.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(value, taught[name]) for name, value in final.items())
    assert not torch.equal(final["controller.weight"], learnt["controller.weight"])
    with pytest.raises(TrainingConfigError, match=r"train.deliver=teacher.*train.distill_from"):
        TrainSettings(deliver="teacher")


@pytest.mark.slow
def test_two_processes_take_the_step_of_the_joint_batch(
    tmp_path: Path,
    load_tiny: Callable[..., Any],
    change_annotations: Callable[..., Path],
    joint_work: Any,
) -> None:
    def keep_two_images(document: dict[str, Any]) -> None:
        document["images"] = document["images"][:2]
        kept = [image["id"] for image in document["images"][:num_with_boxes]]
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]

    full = GRADIENT_STEP | {
        "data.keep_images_without_boxes": True,
        "model.norm": "GN",
        "train.distill_from": 0.0,
        "model.score_threshold": 0.001,
        "model.distillation.score_threshold": 0.0,
    }
    # One process without boxes, and a depth layer that no loss reads.
    half_empty = full | {"model.depth_weight": 0.0, "model.consistency": False}
    cases = []
    for num_with_boxes, changes in ((2, full), (1, half_empty)):
        annotations = tmp_path / f"{num_with_boxes}.json"
        change_annotations(keep_two_images).rename(annotations)
        cases.append(changes | {"data.train_json": str(annotations)})
    joint = [_gradient(load_tiny(case), tmp_path / f"one{n}") for n, case in enumerate(cases)]

    folders = [tmp_path / f"two{n}" for n in range(len(cases))]
    configs = [load_tiny(case | {"train.num_processes": 2}) for case in cases]
    cases_by_folder = list(zip(configs, folders, strict=True))
    launch(joint_work.train_all, 2, dist_url="auto", args=(cases_by_folder,))
    for case, folder, expected in zip(cases, folders, joint, strict=True):
        start = Trainer(load_tiny(case), folder / "start", resume=False).model.state_dict()
        end = _weights(folder)
        _assert_same_gradients(expected, {key: start[key] - end[key] for key in expected})


@pytest.mark.slow
def test_error_of_one_of_several_processes_comes_in_its_own_words(
    tmp_path: Path, load_tiny: Callable[..., Any], change_annotations: Callable[..., Path]
) -> None:
    def misstate_one_size(document: dict[str, Any]) -> None:
        document["images"] = document["images"][:2]
        kept = [image["id"] for image in document["images"]]
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
        document["images"][0]["width"] = 97

    changes = ONE_STEP | {
        "data.train_json": str(change_annotations(misstate_one_size)),
        "train.num_processes": 2,
    }
    with pytest.raises(ImageSizeMismatchError, match=r"96x96 pixels.*states 97x96"):
        train_model(load_tiny(changes), tmp_path, resume=False)
