"""What a model may start from, and what it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segtrain.errors import CheckpointError
from segtrain.exchange.published_checkpoints import read_checkpoint
from segtrain.modeling.backbones import build_resnet_fpn, build_timm_fpn
from segtrain.modeling.build import build_condinst
from segtrain.modeling.condinst import CondInst
from segtrain.run.checkpoints import initialise_weights, load_state, load_weights, save_atomically


@pytest.fixture
def make_model() -> Callable[..., CondInst]:
    def make(**settings: Any) -> CondInst:
        torch.manual_seed(0)
        backbone = build_timm_fpn("test_efficientnet_gn", out_channels=32)
        settings = {"num_classes": 3, "tower_depth": 1, "score_threshold": 0.0} | settings
        return build_condinst(backbone=backbone, feature_channels=32, **settings).eval()

    return make


def _masks(model: CondInst) -> torch.Tensor:
    image = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(1)).byte()
    ((_, masks),) = model.predict_soft_masks([image])
    return masks


def test_weights_that_ddp_saved_are_loaded(
    make_model: Callable[..., CondInst], tmp_path: Path
) -> None:
    model = make_model()
    torch.nn.init.normal_(model.controller.weight, std=0.1)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    save_atomically({"model": state, "categories": ["x"]}, tmp_path / "ddp.pth")
    started, loaded = make_model(), make_model()
    initialise_weights(started, str(tmp_path / "ddp.pth"))
    assert load_weights(loaded, tmp_path / "ddp.pth") == {"categories": ["x"]}
    for other in (started, loaded):
        assert torch.equal(other.controller.weight, model.controller.weight)


@pytest.mark.parametrize("form", ["multiply", "add"])
def test_boxinst_weights_keep_their_masks_under_a_new_depth_layer(
    make_model: Callable[..., CondInst], tmp_path: Path, form: str
) -> None:
    plain = make_model()
    torch.nn.init.normal_(plain.controller.weight, std=0.1)
    save_atomically({"model": plain.state_dict()}, tmp_path / "boxinst.pth")
    before = _masks(plain)
    assert before.std() > 0.05
    started = make_model(depth_layer=True, depth_form=form)
    initialise_weights(started, str(tmp_path / "boxinst.pth"))
    loaded = make_model(depth_layer=True, depth_form=form)
    load_weights(loaded, tmp_path / "boxinst.pth")
    for model in (started, loaded):
        torch.testing.assert_close(_masks(model), before, rtol=1e-5, atol=1e-6)
    # Depth starts at 1/2 everywhere, and its parameters get a gradient.
    image = {"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}
    torch.testing.assert_close(
        started.predict_depth([image])[0], torch.full((16, 24), 0.5), rtol=1e-5, atol=1e-5
    )


def test_other_classes_start_anew_and_the_rest_is_kept(
    make_model: Callable[..., CondInst], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = make_model(), make_model(num_classes=8)
    torch.nn.init.normal_(source.controller.weight)
    save_atomically({"model": source.state_dict()}, tmp_path / "coco.pth")
    with caplog.at_level("INFO"):
        initialise_weights(target, str(tmp_path / "coco.pth"))
    assert torch.equal(target.controller.weight, source.controller.weight)
    assert "freshly initialised: proposal_generator.fcos_head.cls_logits" in caplog.text


def test_a_backbone_alone_finds_its_place(
    make_model: Callable[..., CondInst], tmp_path: Path
) -> None:
    model = make_model()
    body = {k: torch.rand_like(v) for k, v in model.backbone.bottom_up.model.state_dict().items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in body.items()}}, tmp_path / "timm.pth")
    initialise_weights(model, str(tmp_path / "timm.pth"))
    for key, value in model.backbone.bottom_up.model.state_dict().items():
        assert torch.equal(value, body[key])


def test_caffe2_backbones_are_read_without_running_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "conv1_w": rng.random((64, 3, 7, 7), dtype=np.float32),
        "res_conv1_bn_s": rng.random(64, dtype=np.float32),
        "res_conv1_bn_b": rng.random(64, dtype=np.float32),
        "res4_5_branch2b_w": rng.random((256, 256, 3, 3), dtype=np.float32),
        "res4_5_branch2b_w_momentum": np.zeros(1, dtype=np.float32),
        "fc1000_w": rng.random((10, 4), dtype=np.float32),
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    model = build_condinst(backbone=build_resnet_fpn(50), num_classes=3)
    initialise_weights(model, str(tmp_path / "R-50.pkl"))
    body = model.backbone.bottom_up
    np.testing.assert_array_equal(body.stem.conv1.weight.detach(), arrays["conv1_w"])
    np.testing.assert_array_equal(body.stem.conv1.norm.weight, arrays["res_conv1_bn_s"])
    np.testing.assert_array_equal(body.res4[5].conv2.weight.detach(), arrays["res4_5_branch2b_w"])

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": _Harmful()}))
    with pytest.raises(CheckpointError, match="safely"):
        initialise_weights(model, str(tmp_path / "bad.pkl"))
    assert "executed" not in capsys.readouterr().out


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.pth", "there is no such file"),
        ("absent.pkl", "cannot be fetched"),
        ("http://127.0.0.1:9/R-50.pkl", "cannot be fetched"),
        ("stranger.pth", "none of its 1 entries fits"),
        ("half.pth", "cannot be read|read safely"),
    ],
)
def test_useless_sources_are_refused(
    make_model: Callable[..., CondInst],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"unknown": torch.zeros(3)}, "stranger.pth")
    Path("half.pth").write_bytes(Path("stranger.pth").read_bytes()[:300])
    with pytest.raises(CheckpointError, match=message):
        initialise_weights(make_model(), source)


def test_a_file_that_holds_code_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"model": Fraction(1, 3)}, tmp_path / "w.pth")
    backbone = partial(build_timm_fpn, "tf_efficientnet_lite0", out_channels=8)
    for read in (load_state, read_checkpoint, lambda path: backbone(pretrained=path)):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path / "w.pth")
        assert "weights_only" not in str(caught.value)
        assert "two options" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"Python objects \(fractions\.Fraction\)"):
        load_state(tmp_path / "w.pth")
