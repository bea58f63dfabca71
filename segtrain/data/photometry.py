"""Photometric augmentation: other colours and less sharpness, nothing moves."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import functional as colours

from segtrain.data.settings import PhotometricSettings


def perturb_colours(
    image_bgr: torch.Tensor, settings: PhotometricSettings, random: np.random.Generator
) -> torch.Tensor:
    """Jitter, grey and blur an image, each with its chance.

    Brightness, contrast and saturation are scaled by a factor of 1 ± their strength and hue is
    turned by up to its strength, in a drawn order.

    Args:
        image_bgr: (3, H, W) uint8; not changed.
        settings: chances and strengths.
        random: the only source of randomness.

    Returns:
        Same shape and type; the image itself where nothing was drawn.
    """
    image = image_bgr.flip(0)
    drawn = random.random(3) < settings.probabilities
    if drawn[0]:
        jitters = (
            (colours.adjust_brightness, 1.0, settings.brightness),
            (colours.adjust_contrast, 1.0, settings.contrast),
            (colours.adjust_saturation, 1.0, settings.saturation),
            (colours.adjust_hue, 0.0, settings.hue),
        )
        for index in random.permutation(len(jitters)):
            adjust, middle, strength = jitters[index]
            image = adjust(image, random.uniform(middle - strength, middle + strength))
    if drawn[1]:
        image = colours.rgb_to_grayscale(image, num_output_channels=3)
    if drawn[2]:
        least, largest = settings.blur_sigma
        sigma = random.uniform(least, largest)
        # Three deviations to either side; the border is mirrored, which needs as many pixels.
        reach = min(int(np.ceil(3 * sigma)), min(image.shape[1:]) - 1)
        image = colours.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)
    return image.flip(0) if drawn.any() else image_bgr
