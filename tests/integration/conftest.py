"""Fixtures of the tests that run whole commands and stages."""

from __future__ import annotations

import contextlib

import pytest

from depthcache.stage_one import precompute


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Folder of a randomly initialised DPT that takes milliseconds, in HuggingFace format."""
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny-dpt"
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False,
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5],
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def depth_stopped_after_a_batch():
    """Stage one as Ctrl-C after its first batch leaves it."""
    whole = precompute.precompute_depth

    def stop_at_first(*arguments, progress, **given):
        def tell_and_stop(*counts):
            progress(*counts)
            if counts[0]:
                raise KeyboardInterrupt

        return whole(*arguments, progress=tell_and_stop, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompute, "precompute_depth", stop_at_first)
        yield
