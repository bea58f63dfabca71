"""The error bound of the stored codes, for any map and any number of bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from depthcache.format.quantisation import dequantise, quantise

_maps = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)


@settings(max_examples=200)
@given(inverse_depth=_maps, bits=st.integers(2, 16))
@example(inverse_depth=np.array([[np.finfo(np.float32).tiny, 0.0]], np.float32), bits=9)
def test_error_is_at_most_half_a_step(inverse_depth, bits):
    codes, (low, high) = quantise(inverse_depth, bits)
    read = dequantise(codes, (low, high), bits)
    half_step = (high - low) / (2**bits - 2) / 2
    float32 = np.finfo(np.float32)
    rounding = 4 * float32.eps * max(abs(low), abs(high), high - low)
    # What a code is worth is a float32 as well, of which there are none finer than this.
    rounding += 2**16 * float(float32.smallest_subnormal)
    assert codes.min() > 0
    assert (codes % (1 << (16 - bits)) == 0).all()
    assert np.abs(read.astype(np.float64) - inverse_depth).max() <= half_step + rounding


def test_codes_of_a_small_map():
    codes, value_range = quantise(np.array([[0.0, 0.5, 1.0]], np.float32), bits=2)
    assert codes.tolist() == [[16384, 32768, 49152]]
    assert value_range == (0.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        quantise(np.array([[0.0, bad]], np.float32))


def test_empty_maps_and_wrong_bits_are_refused():
    with pytest.raises(ValueError, match="empty"):
        quantise(np.zeros((0, 3), np.float32))
    for bits in (1, 17):
        with pytest.raises(ValueError, match="bits"):
            quantise(np.zeros((1, 1), np.float32), bits)


@given(inverse_depth=_maps)
def test_32_bits_keep_every_bit(inverse_depth):
    values, value_range = quantise(inverse_depth, 32)
    assert dequantise(values, value_range, 32).tobytes() == inverse_depth.tobytes()


def test_code_zero_and_nan_are_no_value():
    with pytest.raises(ValueError, match="NaN"):
        dequantise(np.array([[1.0, np.nan]], np.float32), (0.0, 1.0), 32)
    with pytest.raises(ValueError, match="code 0"):
        dequantise(np.array([[16, 0]], np.uint16), (0.0, 1.0))
