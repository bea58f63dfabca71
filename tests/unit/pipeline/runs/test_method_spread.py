"""What the demo says of its methods follows from numbers, also when ours is behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.report.tables import ap_header, ap_rows, describe_outcome
from pipeline.runs.method_spread import add_spreads


def _metrics(masks: float, boxes: float = 40.0) -> dict[str, Any]:
    return {"bbox": {"AP": boxes}, "segm": {"AP": masks}, "num_images": 3}


def _compare(ours: float, noise: float) -> dict[str, dict[str, Any]]:
    """BoxInst at 30, ours as given; both vary alike with the images, by `noise` apart."""
    metrics = {"BoxInst": _metrics(30.0), "ours": _metrics(ours)}
    common, own = np.random.default_rng(0).normal(0, [[5.0], [noise]], (2, 200))
    draws = {
        name: dict.fromkeys(("bbox", "segm", "given_boxes"), values)
        for name, values in (("BoxInst", 30 + common), ("ours", ours + common + own))
    }
    add_spreads(metrics, {"BoxInst": [[0.5], [0.7, 0.6]], "ours": [[0.5], [0.7, 0.9]]}, draws)
    return metrics


def test_spreads_are_of_each_and_differences_are_paired() -> None:
    metrics = _compare(ours=28.0, noise=0.5)
    assert metrics["BoxInst"]["given_boxes"]["IoU"] == pytest.approx(60)
    assert metrics["ours"]["spread"]["segm"] == pytest.approx(5, rel=0.2)
    found = metrics["ours"]["differences"]["BoxInst"]
    assert found["segm"] == {"mean": pytest.approx(-2), "spread": pytest.approx(0.5, rel=0.2)}
    assert found["given_boxes"]["mean"] == pytest.approx(10)
    assert ap_header(metrics)[1] == "IoU given the box"
    assert ap_rows(metrics)[0][1].startswith("60.0 ± ")


def test_the_sentence_says_when_ours_is_behind_and_when_nothing_is_clear() -> None:
    behind = describe_outcome(_compare(ours=28.0, noise=0.5))
    assert "28.0 mask AP" in behind
    assert "2.0 ± 0.5 mask AP less" in behind.replace("0.6", "0.5").replace("0.4", "0.5")
    assert "than BoxInst" in behind
    assert "all of these" not in behind
    unclear = describe_outcome(_compare(ours=30.5, noise=20.0))
    assert "mask AP more" in unclear
    assert unclear.endswith("as all of these are).")
