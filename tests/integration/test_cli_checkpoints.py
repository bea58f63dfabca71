"""`pipeline convert-checkpoint` and `pipeline export` as typed."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.cli import invoke


@pytest.fixture(scope="module")
def published(tmp_path_factory, repository):
    """A checkpoint with the names and shapes of a published BoxInst R-50, random values."""
    from detectron2.config import instantiate

    from pipeline.config import load_config

    torch.manual_seed(0)
    model = instantiate(load_config("configs/baselines/boxinst_r50.py").model)
    path = tmp_path_factory.mktemp("published") / "in.pth"
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    return path


def test_published_checkpoint_is_converted_key_for_key(capsys, published, tmp_path):
    out = tmp_path / "out.pth"
    words = ["convert-checkpoint", "--from", "adelaidet", str(published), str(out), "--json"]
    assert invoke(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"] == "configs/baselines/boxinst_r50.py"
    assert (document["missing"], document["unknown"]) == ([], [])
    before = torch.load(published, weights_only=True)["model"]
    after = torch.load(out, weights_only=True)["model"]
    assert all(torch.equal(value, before[f"module.{key}"]) for key, value in after.items())


def test_missing_keys_are_listed_and_refused_unless_allowed(capsys, published, tmp_path):
    state = torch.load(published, weights_only=True)["model"]
    key = "proposal_generator.fcos_head.cls_logits.weight"
    del state[f"module.{key}"]
    torch.save(state, tmp_path / "in.pth")
    words = ["convert-checkpoint", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")]
    assert invoke(words) != 0
    assert key in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth"]
    assert invoke([*words, "--allow-differences"]) == 0
    assert (tmp_path / "out.pth").is_file()


def test_wrong_requests_are_usage_errors(published, tmp_path):
    absent, out = str(tmp_path / "absent.pth"), str(tmp_path / "out")
    assert invoke(["convert-checkpoint", absent, out]) == 2
    assert invoke(["convert-checkpoint", "--from", "mmdet", str(published), out]) == 2
    weights = ["--weights", str(published), "--out", out]
    assert invoke(["export", "configs/demo/boxinst.py", *weights, "--format", "tflite"]) == 2
