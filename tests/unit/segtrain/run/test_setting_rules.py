"""What a config alone tells of its model; test_configs.py asks every bundled one."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from segtrain.errors import TrainingConfigError
from segtrain.losses.mask_supervision import LossSettings, MaskSupervision
from segtrain.modeling.dynamic_mask_head import MaskSettings
from segtrain.run.setting_rules import SUPERVISIONS, facts_of_config

CONDINST = {"_target_": "segtrain.modeling.build.build_condinst"}
TEACHER = {"_target_": "segtrain.distillation.teacher.DistillationSettings"}


@pytest.mark.parametrize(
    ("settings", "reads_depth"),
    [
        ({}, False),
        ({"consistency": True}, True),
        ({"color_cut_by_depth": True}, True),
        ({"depth_layer": True}, None),  # not with depth_weight=0
        ({"depth_layer": True, "consistency": True}, True),
        ({"supervision": "masks", "consistency": True}, False),
        ({"supervision": {"_target_": "segtrain.losses.bbtp.BBTP"}}, None),
        ({"distillation": TEACHER}, None),
        ({"distillation": TEACHER | {"depth_matching": True}}, True),
        ({"distillation": TEACHER | {"depth_matching": False}, "consistency": True}, True),
    ],
)
def test_depth_is_said_to_be_read_where_that_is_sure(
    settings: dict[str, Any], reads_depth: bool | None
) -> None:
    facts = facts_of_config(CONDINST | settings)
    assert facts is not None
    assert facts.reads_depth is reads_depth


def test_what_a_config_leaves_out_is_taken_for_the_default() -> None:
    facts = facts_of_config(CONDINST)
    supervision = MaskSupervision(LossSettings())
    assert facts is not None
    assert facts.supervision == supervision.name
    assert facts.reads_masks is supervision.reads_masks
    assert facts.reads_depth is supervision.needs_depth(predicts_depth=MaskSettings().depth_layer)


def test_the_words_for_supervision_are_those_of_the_losses() -> None:
    assert get_args(get_type_hints(LossSettings)["supervision"]) == SUPERVISIONS
    with pytest.raises(TrainingConfigError, match="'bogus': choose one of boxes, masks, mixed"):
        facts_of_config(CONDINST | {"supervision": "bogus"})


def test_nothing_is_told_of_a_model_from_elsewhere() -> None:
    assert facts_of_config({"_target_": "elsewhere.build"}) is None
