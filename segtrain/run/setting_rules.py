"""Which settings of an experiment's parts go together, told from the config as far as it says.

Torch takes seconds to load and depth maps hours to compute, so what the config alone tells is
refused before either. The rules are the same once the model is built, which knows all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segtrain.errors import TrainingConfigError
from segtrain.run.experiment import Experiment

if TYPE_CHECKING:
    from segtrain.modeling.trainable import TrainableModel

_CONDINST = "segtrain.modeling.build.build_condinst"
# Words that `model.supervision` takes; `LossSettings`, which needs torch, has the same.
SUPERVISIONS = ("boxes", "masks", "mixed")
# What learns from annotated masks only, and its name for messages.
_OF_MASKS = {
    "segtrain.modeling.mask_rcnn.build_mask_rcnn": "Mask R-CNN",
    "segtrain.modeling.solov2.model.SOLOv2": "SOLOv2",
}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model asks of the other settings; None where its config does not tell.

    Attributes:
        supervision: its name.
        reads_masks: whether annotated masks teach.
        reads_depth: whether training reads depth.
        teacher: class of `model.distillation`; None without.
        is_the_method: whether a run without the teacher would be another method.
    """

    supervision: str
    reads_masks: bool | None
    reads_depth: bool | None
    teacher: str | None
    is_the_method: bool | None


def facts_of_model(model: TrainableModel) -> ModelFacts:
    """What a built model asks for; all of it is told."""
    teacher = model.distillation
    return ModelFacts(
        supervision=model.supervision.name,
        reads_masks=model.supervision.reads_masks,
        reads_depth=model.needs_depth,
        teacher=None if teacher is None else type(teacher).__name__,
        is_the_method=teacher is not None and teacher.is_the_method,
    )


def facts_of_config(model: Mapping[str, Any]) -> ModelFacts | None:
    """What a config's call of the model tells; None for a model that is not one of segtrain's.

    Raises:
        TrainingConfigError: `model.supervision` is a word that names none.
    """
    target = model.get("_target_")
    if target in _OF_MASKS:
        return ModelFacts(
            supervision=_OF_MASKS[target],
            reads_masks=True,
            reads_depth=False,
            teacher=None,
            is_the_method=False,
        )
    if target != _CONDINST:
        return None
    supervision, teacher = model.get("supervision", "boxes"), model.get("distillation")
    is_plain = isinstance(supervision, str)
    if is_plain and supervision not in SUPERVISIONS:
        raise TrainingConfigError(
            f"model.supervision={supervision!r}: choose one of {', '.join(SUPERVISIONS)}; "
            "`pipeline configs` lists configs of other methods"
        )
    return ModelFacts(
        supervision=supervision if is_plain else _class_name(supervision),
        reads_masks=supervision != "boxes" if is_plain else None,
        reads_depth=_tell_depth_reading(model, supervision, teacher),
        teacher=None if teacher is None else _class_name(teacher),
        is_the_method=False if teacher is None else None,
    )


def _class_name(node: Any) -> str:
    """Of the object that a lazy call makes, or of an object."""
    target = node.get("_target_") if isinstance(node, Mapping) else type(node)
    return str(getattr(target, "__name__", target)).rpartition(".")[2]


def _tell_depth_reading(model: Mapping[str, Any], supervision: Any, teacher: Any) -> bool | None:
    """Whether the supervision or the teacher reads depth; None if neither surely does."""
    readings: list[bool | None] = []
    if supervision not in ("boxes", "mixed"):
        readings.append(False if supervision == "masks" else None)
    elif model.get("consistency") or model.get("color_cut_by_depth"):
        readings.append(True)
    else:
        # A depth layer has a loss unless that has no weight.
        readings.append(None if model.get("depth_layer") else False)
    if teacher is not None:
        settings = teacher if isinstance(teacher, Mapping) else {}
        asks = settings.get("depth_matching") or settings.get("reads_depth")
        readings.append(True if asks else None)
    return next((reads for reads in (True, None) if reads in readings), False)


def refuse_contradictions(experiment: Experiment) -> None:
    """Refuse what the config alone shows to contradict itself.

    Raises:
        TrainingConfigError: names the settings.
    """
    facts = facts_of_config(experiment.model)
    if facts is not None:
        require_consistent_settings(facts, experiment)


def require_consistent_settings(facts: ModelFacts, experiment: Experiment) -> None:
    """Refuse settings of which one asks for what another leaves out, before hours are spent.

    Raises:
        TrainingConfigError: names both settings.
    """
    _require_masks(facts, use_masks=experiment.data.use_masks)
    _require_depth(facts, is_enabled=experiment.depth.enabled)
    _require_teacher(facts, distill_from=experiment.train.distill_from)


def _require_masks(facts: ModelFacts, *, use_masks: bool) -> None:
    if facts.reads_masks in (use_masks, None):
        return
    remedy = (
        "annotated masks would be read in vain; set data.use_masks=False, or "
        "model.supervision=mixed to learn from them"
        if use_masks
        else "it needs annotated masks; set data.use_masks=True"
    )
    raise TrainingConfigError(
        f"model.supervision={facts.supervision!r} with data.use_masks={use_masks}: {remedy}"
    )


def _require_depth(facts: ModelFacts, *, is_enabled: bool) -> None:
    if facts.reads_depth and not is_enabled:
        raise TrainingConfigError(
            "depth.enabled=False, but the model's losses read depth; set depth.enabled=True, or "
            "switch off model.depth_layer, model.consistency and what reads depth in "
            "model.distillation (depth_matching, reads_depth) and in model.supervision"
        )
    if facts.reads_depth is False and is_enabled:
        raise TrainingConfigError(
            "depth.enabled=True, but nothing in the model reads depth: maps would be computed and "
            "read in vain; set depth.enabled=False, or switch on what reads it where the method "
            "has that (model.depth_layer, model.consistency)"
        )


def _require_teacher(facts: ModelFacts, *, distill_from: float | None) -> None:
    if facts.supervision == "masks" and facts.teacher is not None:
        raise TrainingConfigError(
            "model.supervision=masks needs no teacher, but model.distillation is "
            f"{facts.teacher}; set model.distillation=null train.distill_from=null, or "
            "model.supervision=mixed"
        )
    if distill_from is not None and facts.teacher is None:
        raise TrainingConfigError(
            f"train.distill_from={distill_from} needs model.distillation, which is null; "
            "set train.distill_from=null, or start from a config with distillation"
        )
    if distill_from is None and facts.is_the_method:
        raise TrainingConfigError(
            f"train.distill_from=null, but {facts.teacher} teaches by its teacher alone; set "
            "train.distill_from=0.0, or model.distillation=null"
        )
