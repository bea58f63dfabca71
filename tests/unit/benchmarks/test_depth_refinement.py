"""The measurement of masks that depth cuts anew, on a few scenes."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.depth_refinement import main


@pytest.mark.usefixtures("one_thread")
def test_true_depth_mends_masks_and_predicted_depth_leaves_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["depth_refinement", "--num-scenes", "5", "--kinds", "true", "predicted"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    true, predicted = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert true["objects"] == predicted["objects"] > 4
    assert true["with"]["all"] > true["without"]["all"] + 0.03
    assert true["refined"] > 0.5
    assert predicted["refined"] < 0.2
    assert abs(predicted["with"]["all"] - predicted["without"]["all"]) < 0.02
