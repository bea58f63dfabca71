"""Published checkpoints load key for key, safely, and keep their masks under a depth layer."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segtrain.errors import CheckpointError
from segtrain.exchange.published_checkpoints import (
    convert_adelaidet,
    load_weights,
    read_checkpoint,
)
from segtrain.modeling.backbones import build_resnet_fpn
from segtrain.modeling.build import build_condinst
from segtrain.modeling.condinst import CondInst
from segtrain.run.checkpoints import initialise_weights


def test_resnet_keys_and_shapes_are_those_of_published_checkpoints(golden_dir: Path) -> None:
    lines = (golden_dir / "fixtures" / "boxinst_r50_state_dict_keys.txt").read_text().splitlines()
    published = dict(line.split("\t")[:2] for line in lines if not line.startswith("#"))
    state = build_condinst(backbone=build_resnet_fpn(50), num_classes=80).state_dict()
    assert {key: str(tuple(value.shape)) for key, value in state.items()} == published


@pytest.mark.parametrize("legacy", [False, True])
def test_wrapped_and_prefixed_files_load(
    make_model: Callable[..., CondInst], tmp_path: Path, legacy: bool
) -> None:
    model = make_model()
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "in.pth", _use_new_zipfile_serialization=not legacy)
    convert_adelaidet(tmp_path / "in.pth", tmp_path / "out.pth")
    other = make_model()
    torch.nn.init.ones_(other.controller.weight)
    assert load_weights(other, tmp_path / "out.pth").is_complete
    assert torch.equal(other.controller.weight, model.controller.weight)


def test_what_a_checkpointer_keeps_beside_the_weights_does_not_matter(
    make_model: Callable[..., CondInst], tmp_path: Path
) -> None:
    model = make_model()
    content = {
        "model": model.state_dict(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1).state_dict(),
        "scheduler": {"milestones": Counter([6, 8]), "gamma": np.float64(0.1)},
        "iteration": np.int64(89_999),
        "__author__": "someone",
    }
    for legacy in (False, True):
        torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=not legacy)
        state = read_checkpoint(tmp_path / "in.pth")
        assert state.keys() == model.state_dict().keys()


@pytest.mark.parametrize("form", ["multiply", "add"])
def test_a_new_depth_layer_keeps_the_masks(
    make_model: Callable[..., CondInst],
    make_batch: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    form: str,
) -> None:
    plain = make_model(score_threshold=0.0, num_detections=20).eval()
    torch.nn.init.normal_(plain.controller.weight, std=0.1)
    guided = make_model(
        score_threshold=0.0, num_detections=20, depth_layer=True, depth_form=form
    ).eval()
    # The way of train.init_checkpoint, on a file as training leaves it.
    torch.save({"model": plain.state_dict(), "iteration": 7}, tmp_path / "plain.pth")
    initialise_weights(guided, str(tmp_path / "plain.pth"))
    # In float64, because how a product of matrices rounds depends on their widths and on the CPU.
    image = [make_batch()[0]["image"]]
    (_, before), (_, after) = (
        plain.double().predict_soft_masks(image)[0],
        guided.double().predict_soft_masks(image)[0],
    )
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_a_start_that_fits_nothing_is_refused(
    make_model: Callable[..., CondInst], tmp_path: Path
) -> None:
    torch.save({"model": {"surprise": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="none of its 1 entries"):
        initialise_weights(make_model(), str(tmp_path / "other.pth"))
    with pytest.raises(CheckpointError, match="there is no such file"):
        initialise_weights(make_model(), str(tmp_path / "absent.pth"))


def test_differences_are_named_and_refused(make_model: Callable[..., CondInst]) -> None:
    model = make_model()
    state = dict(model.state_dict())
    del state["controller.bias"]
    state["surprise"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"(?s)controller\.bias.*surprise"):
        load_weights(model, state)
    report = load_weights(model, state, allow_differences=True)
    assert report.missing == ("controller.bias",)


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"model": _Harmful()}))
    with pytest.raises(CheckpointError, match="safely"):
        read_checkpoint(tmp_path / "bad.pkl")
    assert "executed" not in capsys.readouterr().out
