"""One call that builds the model, for configs and tests."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from torch import nn

from segtrain.losses.mask_supervision import LossSettings, MaskSupervision
from segtrain.losses.supervision import Distillation, Supervision
from segtrain.modeling.condinst import CondInst
from segtrain.modeling.condinst_network import CondInstNetwork
from segtrain.modeling.dynamic_mask_head import MaskSettings
from segtrain.modeling.fcos import FCOSSettings

_SETTINGS: tuple[Any, ...] = (FCOSSettings, MaskSettings, LossSettings)


def build_condinst(
    *,
    backbone: nn.Module,
    num_classes: int,
    supervision: str | Supervision = "boxes",
    distillation: Distillation | None = None,
    **settings: Any,
) -> CondInst:
    """Build CondInst; BoxInst is the default.

    The full method is depth_layer=True, consistency=True and distillation settings.

    Args:
        backbone: maps an image batch to a dict with p3 to p7.
        num_classes: without background.
        supervision: "boxes", "masks" or "mixed" of `LossSettings`, or an object that supervises.
        distillation: what makes a teacher; None without.
        **settings: fields of `FCOSSettings`, `MaskSettings` and, unless `supervision` is an object,
            `LossSettings`; further arguments of `CondInst` and `CondInstNetwork`.

    Raises:
        TypeError: an argument that nothing reads.
        ValueError: settings of losses beside a supervision that has its own.
    """
    fcos, mask, losses = (
        {f.name: settings.pop(f.name) for f in dataclasses.fields(kind) if f.name in settings}
        for kind in _SETTINGS
    )
    if not isinstance(supervision, Supervision):
        supervision = MaskSupervision(LossSettings(supervision=supervision, **losses))  # type: ignore[arg-type]
    elif losses:
        named = ", ".join(f"model.{name}" for name in losses)
        raise ValueError(
            f"{named}: nothing reads them with model.supervision={supervision.name}, which has "
            "settings of its own; start from a config without them, as that of another method is"
        )
    return CondInst(
        backbone=backbone,
        num_classes=num_classes,
        fcos=FCOSSettings(**fcos),
        mask=MaskSettings(**mask),
        supervision=supervision,
        distillation=distillation,
        **settings,
    )


def _flat_signature() -> inspect.Signature:
    """What `build_condinst` takes, spelled out for `--set` and for readers of `help`."""
    taken: dict[str, inspect.Parameter] = {}
    for source in (build_condinst, *_SETTINGS, CondInst, CondInstNetwork):
        for name, parameter in inspect.signature(source).parameters.items():
            if name not in ("settings", "network", "fcos", "mask"):
                taken.setdefault(name, parameter)
    return inspect.Signature(list(taken.values()), return_annotation=CondInst)


build_condinst.__signature__ = _flat_signature()  # type: ignore[attr-defined]
