"""Every depth family, tiny and random, from a local folder: loads, predicts, right direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from depthcache.errors import CacheMismatchError, DepthCacheError
from depthcache.format.segment_format import fingerprint_folder
from depthcache.stage_one.depth_models import MapShapes, load_depth_model
from depthcache.stage_one.precompute import plan_depth, precompute_depth

_NECK = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
_DINO = {
    "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "image_size": 56, "patch_size": 14, "out_indices": [1, 2, 3, 4], "mlp_ratio": 2,
    "reshape_hidden_states": False,
}  # fmt: skip
_BEIT = {
    "model_type": "beit", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "intermediate_size": 16, "image_size": 64, "patch_size": 16, "reshape_hidden_states": False,
    "out_features": ["stage1", "stage2", "stage3", "stage4"], "use_relative_position_bias": True,
}  # fmt: skip
_PRO = {
    "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4, "mlp_ratio": 2,
}  # fmt: skip


def _processor(side, multiple):
    size = {"height": side, "width": side}
    return tf.DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=multiple)


def _plain_dpt():
    config = tf.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3], **_NECK,
    )  # fmt: skip
    return tf.DPTForDepthEstimation(config), _processor(64, 32)


def _depth_anything(kind):
    config = tf.DepthAnythingConfig(
        backbone_config=dict(_DINO), reassemble_hidden_size=16, head_hidden_size=4,
        depth_estimation_type=kind, max_depth=20 if kind == "metric" else 1, **_NECK,
    )  # fmt: skip
    return tf.DepthAnythingForDepthEstimation(config), _processor(56, 14)


def _zoe():
    config = tf.ZoeDepthConfig(
        backbone_config=dict(_BEIT), bottleneck_features=8, bin_embedding_dim=8,
        num_relative_features=4, num_attractors=[4, 2, 2, 1], **_NECK,
    )  # fmt: skip
    return tf.ZoeDepthForDepthEstimation(config), tf.ZoeDepthImageProcessor(
        size={"height": 64, "width": 64}
    )


def _glpn():
    config = tf.GLPNConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )  # fmt: skip
    return tf.GLPNForDepthEstimation(config), tf.GLPNImageProcessor()


def _depth_pro():
    config = tf.DepthProConfig(
        fusion_hidden_size=16, patch_size=16, intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8], scaled_images_ratios=[0.25, 0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.5, 0.25], scaled_images_feature_dims=[16, 16, 8],
        image_model_config=dict(_PRO), patch_model_config=dict(_PRO), fov_model_config=dict(_PRO),
    )  # fmt: skip
    size = {"height": 64, "width": 64}
    return tf.DepthProForDepthEstimation(config), tf.DepthProImageProcessor(size=size)


# Family → how to build it, and whether its raw output is distance (larger = farther).
FAMILIES = {
    "dpt": (_plain_dpt, False),
    "depth-anything": (lambda: _depth_anything("relative"), False),
    "depth-anything-metric": (lambda: _depth_anything("metric"), True),
    "zoedepth": (_zoe, True),
    "glpn": (_glpn, True),
    "depth-pro": (_depth_pro, False),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    folders = {}

    def build(family):
        if family not in folders:
            torch.manual_seed(0)
            network, processor = FAMILIES[family][0]()
            folders[family] = tmp_path_factory.mktemp("models") / family
            network.save_pretrained(folders[family])
            processor.save_pretrained(folders[family])
        return folders[family]

    return build


def _image(height, width):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_loads_and_gives_larger_for_nearer(family, folder_of):
    model = load_depth_model(folder_of(family))
    assert model.gives_metric_depth is FAMILIES[family][1]
    pixels = model.preprocess(_image(64, 96))
    (inverse_depth,) = model.predict([pixels])
    assert inverse_depth.ndim == 2
    assert np.isfinite(inverse_depth).all()
    with torch.inference_mode():
        try:
            raw = model.network(pixel_values=pixels[None]).predicted_depth[0].numpy()
        except RuntimeError:
            assert family == "dpt"  # transformers' own forward takes only squares
            return
    if FAMILIES[family][1]:
        np.testing.assert_allclose(inverse_depth, 1 / raw, rtol=1e-6)
    else:
        np.testing.assert_array_equal(inverse_depth, raw)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_on_a_cpu_stays_near_fp32(family, folder_of):
    exact, rounded = (
        load_depth_model(folder_of(family)),
        load_depth_model(folder_of(family), precision="bf16"),
    )
    pixels = [exact.preprocess(_image(64, 96))]
    (expected,), (actual,) = exact.predict(pixels), rounded.predict(pixels)
    assert actual.dtype == np.float32
    assert (
        np.abs(actual - expected).max() <= 0.15 * np.ptp(expected) + 0.02 * np.abs(expected).max()
    )


def test_plain_dpt_detour_equals_the_models_own_forward_on_squares(folder_of):
    from depthcache.stage_one.depth_models import _forward

    model = load_depth_model(folder_of("dpt"))
    square = model.preprocess(_image(64, 64))[None]
    assert square.shape[-2:] == (64, 64)
    wide = torch.cat([square, square], dim=-1)
    with torch.inference_mode():
        own = model.network(pixel_values=square).predicted_depth
        outputs = model.network.dpt(square, output_hidden_states=True)
        hidden = list(outputs.hidden_states[1:])
        detour = model.network.head(model.network.neck(hidden, 4, 4))
        assert _forward(model.network, wide).shape == (1, 64, 128)
    assert own.std() > 0
    torch.testing.assert_close(detour, own, rtol=0, atol=0)


def test_zoedepth_map_covers_the_image_without_its_padding(folder_of):
    """The processor pads by default; a padded map would not lie on its image."""
    model = load_depth_model(folder_of("zoedepth"))
    flat = np.zeros((64, 64, 3), np.uint8)
    flat[0] = 255
    pixels = model.preprocess(flat)
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, 0].min() > pixels[:, 1].max()
    assert model.fingerprint["processor"]["do_pad"] is False


def test_families_differ_in_fingerprint(folder_of):
    """Relative and metric Depth Anything too, which have the same random weights here."""
    folders = {fingerprint_folder(load_depth_model(folder_of(f)).fingerprint) for f in FAMILIES}
    assert len(folders) == len(FAMILIES)


def test_classifier_is_refused_by_name(tmp_path):
    config = tf.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32,
    )  # fmt: skip
    tf.ViTForImageClassification(config).save_pretrained(tmp_path)
    tf.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(CacheMismatchError, match="'vit' is not a supported depth model") as caught:
        load_depth_model(tmp_path)
    assert isinstance(caught.value, DepthCacheError)


def test_canopy_heights_are_refused(tmp_path):
    """CHMv2 answers under predicted_depth, with tree heights."""
    tf.CHMv2Config().save_pretrained(tmp_path)
    with pytest.raises(CacheMismatchError, match="chmv2"):
        load_depth_model(tmp_path)


def test_a_size_that_the_model_cannot_take_is_that_images_failure(tmp_path):
    for part in _depth_anything("relative"):
        part.save_pretrained(tmp_path / "model")
    shape_of = MapShapes(load_depth_model(tmp_path / "model"))
    assert isinstance(shape_of((90, 120)), tuple)
    assert "pad or crop" in shape_of((12, 2600))
    images = []
    for name, size in [("a", (120, 90)), ("strip", (2600, 12)), ("tall", (1, 900)), ("b", (9, 9))]:
        images.append(tmp_path / f"{name}.png")
        Image.new("RGB", size, "teal").save(images[-1])
    plan = plan_depth(images, tmp_path / "model", str(tmp_path / "root"))
    assert (plan.num_to_compute, plan.num_failed) == (2, 2)
    summary = precompute_depth(images, tmp_path / "model", str(tmp_path / "root"))
    assert (summary.num_computed, summary.num_failed) == (2, 2)
    failed = {failure["path"]: failure["reason"] for failure in summary.failures}
    assert set(failed) == {str(images[1]), str(images[2])}
    assert "2600×12" in failed[str(images[1])]
