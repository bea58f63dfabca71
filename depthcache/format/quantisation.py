"""Depth maps as 16-bit codes: a linear scale between each map's extremes; code 0 is no value.

Or kept as they are: 32 bits stand for the float32 values themselves, NaN for no value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DEFAULT_BITS = 12
LOSSLESS_BITS = 32
ALL_BITS = (*range(2, 17), LOSSLESS_BITS)


def check_bits(bits: int) -> None:
    """Refuse a number of bits that no encoding has.

    Raises:
        ValueError: bits are neither 2 to 16 nor 32.
    """
    if bits not in ALL_BITS:
        raise ValueError(f"bits={bits} must lie in 2..16, or be {LOSSLESS_BITS} for float32")


def stored_dtype(bits: int) -> str:
    """Type name, for numpy, of what a map is stored as."""
    return "<f4" if bits == LOSSLESS_BITS else "<u2"


def describe_encoding(bits: int) -> dict[str, Any]:
    """The fingerprint's `encoding`.

    Raises:
        ValueError: bits are neither 2 to 16 nor 32.
    """
    check_bits(bits)
    if bits == LOSSLESS_BITS:
        return {"dtype": "float32", "bits": bits, "no_value": "NaN"}
    return {"dtype": "uint16", "bits": bits, "no_value": 0}


def quantise(
    inverse_depth: npt.NDArray[np.float32], bits: int = DEFAULT_BITS
) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Round a map to codes.

    code = 2^(16−bits) · (1 + round((x − min) / (max − min) · (2^bits − 2)))

    Unused low bits are zero, so that compression makes them free.

    Args:
        inverse_depth: (H, W) finite.
        bits: significant bits, 2 to 16; 32 keeps the float32 values.

    Returns:
        (H, W) codes, never 0, or values, and the map's (minimum, maximum).

    Raises:
        ValueError: a value is not finite, the map is empty, or bits are out of range.
    """
    check_bits(bits)
    low, high = (
        (float(inverse_depth.min()), float(inverse_depth.max()))
        if inverse_depth.size
        else (np.nan, np.nan)
    )
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN anywhere makes both NaN
        raise ValueError("the depth map is empty or has values that are not finite")
    if bits == LOSSLESS_BITS:
        return inverse_depth.astype(np.float32), (low, high)
    step, levels = 1 << (16 - bits), (1 << bits) - 2
    if high > low:
        scaled = inverse_depth.astype(np.float64)
        scaled -= low
        scaled *= levels / (high - low)
    else:
        scaled = np.zeros(inverse_depth.shape)
    # In place: these maps are large, and memory costs more than arithmetic.
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, levels, out=scaled)
    scaled += 1
    scaled *= step
    return scaled.astype(np.uint16), (low, high)


def dequantise(
    codes: npt.NDArray[Any], value_range: tuple[float, float], bits: int = DEFAULT_BITS
) -> npt.NDArray[np.float32]:
    """Invert `quantise`; the error is at most (max − min) / (2^bits − 2) / 2 and float32 rounding.

    Raises:
        ValueError: a code is 0, or a value NaN, which is no value.
    """
    if bits == LOSSLESS_BITS:
        if not np.isfinite(codes).all():
            raise ValueError("the map has cells without a value (NaN)")
        return codes.astype(np.float32)
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
