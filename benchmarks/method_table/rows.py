"""Rows of the table, the most telling first: a bundled config and what the table adds to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(kw_only=True, frozen=True)
class Row:
    """One row.

    Attributes:
        title: in the table.
        config: bundled config whose model and whose use of masks, depth and a teacher this is.
        changes: settings on top of it, by their names in the config.
        depth: `sensed`, `predicted`, or empty where the config reads none.
        masks: what annotated masks are where the config reads them: `true`, `filled` boxes,
            `labels` of the labeller, `labels-with-depth`, `labels-salient`, or `cut-by-depth`.
        tier: all seeds of a lower tier come first.
    """

    title: str
    config: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    depth: str = ""
    masks: str = "true"
    tier: int = 0


_BOXINST, _CONDINST = "baselines/boxinst_r50", "baselines/condinst_r50"
_LAYER_AND_CONSISTENCY, _FULL = "ablation/depth_layer_consistency", "coco/full_r50_1x"

# What won in the laboratory (docs/notes/supervisions.md), on top of the control: links are cut
# where depth is not planar, and slant-invariant consistency has four times the weight; no gate. Its
# crops are three times as large as the object; of a whole map colour inside the box is what sees
# the object.
CHOSEN = {
    "model.color_everywhere": True,
    "model.color_cut_by_depth": True,
    "model.consistency": True,
    "model.consistency_weight": 4.0,
    "model.slant_invariant": True,
}
# In the laboratory's crops the object fills a third; of a whole map it is a few per cent, and edges
# at its border hardly count. So both look around the box as far as those crops do.
NEAR = {"model.surroundings": 0.4}


def _ablation(title: str, config: str = _LAYER_AND_CONSISTENCY, **changes: Any) -> Row:
    """A row about the paper's method, with sensed depth; `a__b` stands for the setting `a.b`."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return Row(title=title, config=config, changes=named, depth="sensed", tier=2)


def _level_set_reading(depth: str) -> Row:
    return Row(
        title=f"BoxLevelSet, its energy on {depth} depth too",
        config="baselines/level_set_r50",
        changes={"model.supervision.depth_weight": 1.0},
        depth=depth,
        tier=1,
    )


ROWS: dict[str, Row] = {
    "boxinst": Row(title="BoxInst", config=_BOXINST),
    "control": Row(
        title="**control**: BoxInst, colour a second time, over the whole map",
        config="ablation/color_everywhere",
    ),
    "control_heavy": Row(
        title="control of the weight of colour and depth together",
        config="ablation/color_everywhere",
        changes={"model.color_everywhere_weight": 5.0},
        tier=1,
    ),
    "ours": Row(
        title="**sensed depth, the laboratory's links**",
        config=_BOXINST,
        changes=CHOSEN,
        depth="sensed",
    ),
    "masks": Row(title="ceiling: CondInst on true masks", config=_CONDINST),
    "paper": Row(title="the paper's method, sensed depth", config=_FULL, depth="sensed"),
    "labelled_with_depth": Row(
        title="**CondInst on the labeller's masks**, which read sensed depth",
        config=_CONDINST,
        masks="labels-with-depth",
    ),
    "labelled": Row(
        title="CondInst on the labeller's masks, pictures only", config=_CONDINST, masks="labels"
    ),
    "cut_by_depth": Row(
        title="CondInst on masks cut out of sensed depth, nothing learned",
        config=_CONDINST,
        masks="cut-by-depth",
        tier=1,
    ),
    "filled": Row(title="CondInst on filled boxes", config=_CONDINST, masks="filled", tier=1),
    "bbtp": Row(title="BBTP", config="baselines/bbtp_r50", tier=1),
    "level_set": Row(title="BoxLevelSet", config="baselines/level_set_r50", tier=1),
    "level_set_control": Row(
        title="control of BoxLevelSet: its energy on the picture twice",
        config="baselines/level_set_r50",
        changes={"model.supervision.image_weight": 2.0},
        tier=1,
    ),
    "level_set_depth": _level_set_reading("sensed"),
    "level_set_predicted": _level_set_reading("predicted"),
    "box_teacher": Row(
        title="BoxTeacher",
        config="baselines/box_teacher_r50",
        changes={"train.teacher_short_side": None},
        tier=1,
    ),
    "disco_box": Row(title="DiscoBox", config="baselines/disco_box_r50", tier=1),
    "solov2": Row(title="SOLOv2 on true masks", config="demo/solov2", tier=1),
    "mask_rcnn": Row(title="Mask R-CNN on true masks", config="demo/mask_rcnn", tier=1),
    "mask_rcnn_labelled": Row(
        title="Mask R-CNN on the labeller's masks, which read sensed depth",
        config="demo/mask_rcnn",
        masks="labels-with-depth",
        tier=1,
    ),
    "box_caseg": Row(
        title="BoxCaseg: Mask R-CNN on masks from boxes and salient (painted) objects",
        config="demo/mask_rcnn",
        masks="labels-salient",
        tier=1,
    ),
    "layer": _ablation("BoxInst + depth layer", "ablation/depth_layer"),
    "consistency": _ablation("BoxInst + consistency", "ablation/consistency"),
    "layer_consistency": _ablation("BoxInst + both"),
    "predicted": Row(
        title="predicted depth, the laboratory's links",
        config=_BOXINST,
        changes=CHOSEN,
        depth="predicted",
        tier=1,
    ),
    "paper_predicted": Row(
        title="the paper's method, predicted depth", config=_FULL, depth="predicted", tier=1
    ),
    "box_teacher_depth": _ablation(
        "BoxTeacher + consistency",
        "baselines/box_teacher_r50",
        train__teacher_short_side=None,
        model__consistency=True,
    ),
    "disco_box_depth": _ablation(
        "DiscoBox, depth in the mean field",
        "baselines/disco_box_r50",
        model__distillation__reads_depth=True,
    ),
    "bbtp_depth": _ablation(
        "BBTP, smooth where depth links",
        "baselines/bbtp_r50",
        model__supervision__smooth_along_depth=True,
    ),
    "control_near": Row(
        title="control, around the box",
        config=_BOXINST,
        changes={"model.color_everywhere": True, **NEAR},
        tier=2,
    ),
    "ours_near": Row(
        title="sensed depth, the laboratory's links, around the box",
        config=_BOXINST,
        changes={**CHOSEN, **NEAR},
        depth="sensed",
        tier=2,
    ),
    "ours_outside": Row(
        title="sensed depth, the laboratory's links, no colour term of the box's own",
        config=_BOXINST,
        changes={**CHOSEN, "model.color": False},
        depth="sensed",
        tier=2,
    ),
    "in_box": _ablation("both, consistency inside the box", "ablation/consistency_inside_box"),
    "delayed": _ablation("both, consistency from half the run", model__consistency_start=0.5),
    "slant": _ablation("both, slant-invariant links", model__slant_invariant=True),
    "gate_open": _ablation("both, the gate opened by a bias of 3", model__depth_bias=3.0),
    "gate_add": _ablation("both, the layer adds", model__depth_form="add"),
    "gate_beside": _ablation("both, the layer beside the masks", model__depth_form="off"),
    "teacher_equal": _ablation(
        "the paper's method, teacher at the student's size, no depth matching",
        "ablation/distillation_equal_size",
    ),
    "teacher_large": _ablation(
        "the paper's method, larger teacher, no depth matching", "ablation/teacher_at_800"
    ),
    "threshold": _ablation(
        "the paper's method, matches from 0.6 teach",
        _FULL,
        model__distillation__score_threshold=0.6,
    ),
    "nms": _ablation(
        "the paper's method, the teacher's NMS at 0.9",
        _FULL,
        model__distillation__teacher_nms_threshold=0.9,
    ),
    "teacher": _ablation(
        "the paper's method, the teacher delivered", _FULL, train__deliver="teacher"
    ),
    "lambda_025": _ablation("both, consistency at 0.25", model__consistency_weight=0.25),
    "lambda_05": _ablation("both, consistency at 0.5", model__consistency_weight=0.5),
    "lambda_2": _ablation("both, consistency at 2", model__consistency_weight=2.0),
}
"""λ of the consistency term is 1 in `layer_consistency`; distillation with depth matching from
0.8 is `paper`."""
