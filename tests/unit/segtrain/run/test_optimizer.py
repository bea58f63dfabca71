"""What decays and what does not."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.backbone.swin import WindowAttention

from segtrain.run.optimizer import OptimizerSettings, build_optimizer


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_tables_of_positions_do_not_decay(kind: str) -> None:
    attention = WindowAttention(dim=8, window_size=(2, 2), num_heads=2)
    settings = OptimizerSettings(kind=kind, weight_decay=0.05)
    groups = build_optimizer(attention, settings, 0.1).param_groups
    decays = {
        name: group["weight_decay"]
        for name, parameter in attention.named_parameters()
        for group in groups
        if any(parameter is own for own in group["params"])
    }
    assert decays["relative_position_bias_table"] == 0
    assert decays["qkv.weight"] == 0.05
    assert (decays["qkv.bias"] == 0) == (kind == "adamw")
    assert isinstance(attention.relative_position_bias_table, torch.nn.Parameter)
