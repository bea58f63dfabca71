"""Depth consistency as an option of supervisions that have none of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from segtrain.losses.bbtp import BBTP
from segtrain.losses.level_set import LevelSet
from segtrain.losses.mask_supervision import LossSettings, MaskSupervision
from segtrain.losses.supervision import BatchBoxes, MaskBatch

SIZE = (96, 128)


@pytest.mark.parametrize("kind", [BBTP, LevelSet])
def test_consistency_is_the_methods_own_and_off_by_default(
    make_batch: Callable[..., list[dict[str, Any]]], kind: Any
) -> None:
    torch.manual_seed(0)
    batch = make_batch(2)
    plain = kind()
    assert not plain.needs_depth(predicts_depth=True)
    option = kind(consistency_weight=2.0, warmup_iterations=10)
    assert option.needs_depth(predicts_depth=False)
    own = MaskSupervision(
        LossSettings(color=False, consistency=True, consistency_weight=2.0, warmup_iterations=10)
    )
    masks = MaskBatch(
        entries=batch,
        padded_size=SIZE,
        truth=BatchBoxes.of(batch, SIZE, torch.device("cpu")),
        box_indices=torch.tensor([0, 3, 3]),
        mask_logits=torch.randn(3, 24, 32),
        mask_features=torch.randn(2, 4, 12, 16),
        iteration=3,
    )
    expected = own.losses(masks)["loss_consistency"]
    assert expected > 0
    assert option.losses(masks)["loss_consistency"].item() == pytest.approx(expected.item())
    assert set(option.losses(masks)) - set(plain.losses(masks)) == {"loss_consistency"}


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="consistency_weight must be at least 0"):
        BBTP(consistency_weight=-1.0)
