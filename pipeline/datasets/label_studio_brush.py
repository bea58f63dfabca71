"""Label Studio's brush masks: the bit-packed run lengths of an RGBA picture.

The form is that of thi.ng's rle-pack, which the tool uses: 32 bits number of values, 5 bits word
size − 1, four times 4 bits size of a run's length − 1; then runs: 1 bit whether the run repeats one
value, 2 bits which of the four sizes, the length − 1, and the value, or the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_WORD_BITS = 8
_LENGTH_BITS = (3, 8, 12, 16)
_LONGEST_RUN = 1 << _LENGTH_BITS[-1]


def encode_brush(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Bytes of a mask: each pixel is four values of 255 where the object is, else of 0.

    Args:
        mask: (H, W).
    """
    values = mask.ravel()
    bits = [_bits(values.size * 4, 32), _bits(_WORD_BITS - 1, 5)]
    bits += [_bits(size - 1, 4) for size in _LENGTH_BITS]
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    for start, end in zip(starts, [*starts[1:], values.size], strict=True):
        left = int(end - start) * 4
        while left > 0:
            length = min(left, _LONGEST_RUN)
            kind = next(k for k, size in enumerate(_LENGTH_BITS) if length <= 1 << size)
            value = 255 if values[start] else 0
            bits += ["1", _bits(kind, 2), _bits(length - 1, _LENGTH_BITS[kind])]
            bits.append(_bits(value, _WORD_BITS))
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(data: Sequence[int], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Mask out of a brush's bytes, as `encode_brush` or the tool wrote them.

    Args:
        data: bytes.
        shape: height and width.

    Raises:
        ValueError: the bytes are not a picture of that size.
    """
    text = "".join(_bits(value, 8) for value in data)
    position = 0

    def read(size: int) -> int:
        nonlocal position
        if position + size > len(text):
            raise ValueError(f"brush ends after {len(data)} bytes, within a run")
        position += size
        return int(text[position - size : position], 2)

    num_values, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    height, width = shape
    if word != _WORD_BITS:
        raise ValueError(f"brush has values of {word} bits, expected {_WORD_BITS}")
    if num_values != height * width * 4:
        raise ValueError(f"brush has {num_values} values, expected {height}×{width}×4")
    values = np.zeros(num_values, dtype=np.uint8)
    done = 0
    while done < num_values:
        repeats, length = read(1), read(sizes[read(2)]) + 1
        end = done + length
        values[done:end] = read(word) if repeats else [read(word) for _ in range(length)]
        done = end
    # The tool draws with alpha: a pixel counts where its fourth value is not 0.
    return values.reshape(height, width, 4)[..., 3] > 127


def _bits(value: int, size: int) -> str:
    return format(value, f"0{size}b")
