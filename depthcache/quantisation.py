"""Depth maps as 16-bit codes: a linear scale between each map's extremes; code 0 is no value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DEFAULT_BITS = 12


def quantise(
    inverse_depth: npt.NDArray[np.float32], bits: int = DEFAULT_BITS
) -> tuple[npt.NDArray[np.uint16], tuple[float, float]]:
    """Round a map to codes.

    code = 2^(16−bits) · (1 + round((x − min) / (max − min) · (2^bits − 2)))

    Unused low bits are zero, so that bit shuffling makes them free.

    Args:
        inverse_depth: (H, W) finite.
        bits: significant bits, 2 to 16.

    Returns:
        (H, W) codes, never 0, and the map's (minimum, maximum).

    Raises:
        ValueError: a value is not finite, the map is empty, or bits are out of range.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits={bits} must lie in 2..16")
    if inverse_depth.size == 0 or not np.isfinite(inverse_depth).all():
        raise ValueError("the depth map is empty or has values that are not finite")
    low, high = float(inverse_depth.min()), float(inverse_depth.max())
    step, levels = 1 << (16 - bits), (1 << bits) - 2
    if high > low:
        scaled = (inverse_depth.astype(np.float64) - low) * (levels / (high - low))
    else:
        scaled = np.zeros(inverse_depth.shape)
    codes = (np.rint(scaled).astype(np.int64).clip(0, levels) + 1) * step
    return codes.astype(np.uint16), (low, high)


def dequantise(
    codes: npt.NDArray[np.uint16], value_range: tuple[float, float], bits: int = DEFAULT_BITS
) -> npt.NDArray[np.float32]:
    """Invert `quantise`; the error is at most (max − min) / (2^bits − 2) / 2 and float32 rounding.

    Raises:
        ValueError: a code is 0, which is no value.
    """
    if codes.size and codes.min() == 0:
        raise ValueError("the map has cells without a value (code 0)")
    step, levels = 1 << (16 - bits), (1 << bits) - 2
    low, high = value_range
    scale = (high - low) / (levels * step)
    values = codes.astype(np.float32)
    values -= np.float32(step)
    values *= np.float32(scale)
    values += np.float32(low)
    return values
