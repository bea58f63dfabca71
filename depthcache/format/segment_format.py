"""Bytes of segment objects (docs/cache-format.md), without any I/O."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.blosc import Blosc

from depthcache.errors import CacheCorruptError
from depthcache.format.quantisation import stored_dtype

FORMAT_VERSION = 1
SEALED = "sealed.json"
FINGERPRINT = "fingerprint.json"
SEGMENTS = "segments"
STAGING = ".staging"  # in a root: what is received or sent, not yet part of a cache
_ABSENT = 2**64 - 1
_CRC_OF_CHECKED = 0x48674BC7  # crc32c of any bytes with their own crc32c behind them
# Chosen by benchmarks/depth_encodings.py; one block for most maps is smaller and faster to decode
# than blosc's own choice. Decoding reads the settings from the chunk.
_BLOCK_BYTES = 2**19
_LEVEL = 4
_BLOSC = Blosc(cname="zstd", clevel=_LEVEL, shuffle=Blosc.SHUFFLE, blocksize=_BLOCK_BYTES)
_IMAGE_KEY = re.compile(r"[0-9a-f]{64}")
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}


def canonical_json(document: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal documents give equal bytes."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def fingerprint_folder(fingerprint: dict[str, Any]) -> str:
    """Folder name of a fingerprint: <slug of the model>-<16 hex digits>."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(fingerprint.get("model", "")).lower()).strip("-")
    return f"{slug[:60] or 'model'}-{hashlib.sha256(canonical_json(fingerprint)).hexdigest()[:16]}"


def bucket_name(shape: tuple[int, int]) -> str:
    """Name of the arrays of maps of one shape."""
    return f"{shape[0]}x{shape[1]}"


def parse_bucket_name(name: str) -> tuple[int, int]:
    """Invert `bucket_name`."""
    height, width = name.split("x")
    return int(height), int(width)


def maps_object(bucket: str, number: int) -> str:
    """Path of a shard of maps inside its segment; its presence says that the shard is done."""
    return f"maps/{bucket}/c/{number}/0/0"


def ranges_object(bucket: str, number: int) -> str:
    """Path of the (minimum, maximum) of a shard's maps inside its segment."""
    return f"ranges/{bucket}/c/{number}/0"


def segment_prefix(folder: str, segment_id: str) -> str:
    """Path of a segment below the root."""
    return f"{folder}/{SEGMENTS}/{segment_id}"


def parse_image_key(key: object) -> bytes:
    """The 32-byte digest of an image key; another spelling of it would be another name.

    Raises:
        ValueError: it is not 64 lower-case hexadecimal digits.
    """
    if not isinstance(key, str) or _IMAGE_KEY.fullmatch(key) is None:
        raise ValueError(f"{key!r} is not an image key (64 hexadecimal digits, lower case)")
    return bytes.fromhex(key)


def parse_document(text: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object in canonical form that may come from anybody.

    Raises:
        CacheCorruptError: it is not JSON, not UTF-8, nested too deeply, no object, or another text
            than the canonical one.
    """
    try:
        document = json.loads(text)
        is_canonical = text == canonical_json(document)
    except (ValueError, RecursionError) as error:
        raise CacheCorruptError(f"{what} is damaged: {error!r}") from error
    if not isinstance(document, dict) or not is_canonical:
        raise CacheCorruptError(f"{what} is damaged: not a JSON object in canonical form")
    return document


def add_crc(data: bytes) -> bytes:
    """Append the little-endian crc32c, as zarr's codec does."""
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def strip_crc(data: bytes, what: str) -> memoryview:
    """Check and remove the crc32c, without a copy.

    Raises:
        CacheCorruptError: the bytes differ from what was written; names `what`.
    """
    if google_crc32c.value(data) != _CRC_OF_CHECKED:
        raise CacheCorruptError(f"{what}: checksum mismatch; run `pipeline cache verify --repair`")
    return memoryview(data)[:-4]


def encode_map(codes: npt.NDArray[Any], bits: int) -> bytes:
    """One inner chunk: blosc zstd with byte shuffle, then crc32c."""
    return add_crc(bytes(_BLOSC.encode(np.ascontiguousarray(codes, dtype=stored_dtype(bits)))))


def decode_map(data: bytes, shape: tuple[int, int], bits: int, what: str) -> npt.NDArray[Any]:
    """Check and decode one inner chunk.

    Args:
        data: the chunk with its crc32c.
        shape: (H, W).
        bits: of the segment.
        what: named in errors.

    Raises:
        CacheCorruptError: the chunk is damaged or has another size.
    """
    return decode_checked(strip_crc(data, what), shape, bits, what)


def decode_checked(
    payload: bytes | memoryview, shape: tuple[int, int], bits: int, what: str
) -> npt.NDArray[Any]:
    """Decode an inner chunk whose crc32c was found right and removed.

    Raises:
        CacheCorruptError: the chunk is of another size or no chunk.
    """
    try:
        plain = _BLOSC.decode(payload)
        return np.frombuffer(plain, dtype=stored_dtype(bits)).reshape(shape)
    except (RuntimeError, ValueError) as error:
        raise CacheCorruptError(f"{what}: cannot be decoded: {error}") from error


def encode_shard(chunks: list[bytes | None], shard_rows: int) -> bytes:
    """A whole shard: chunks in row order, then the index with its crc32c.

    Args:
        chunks: encoded maps, None for a row without one; at most shard_rows.
        shard_rows: rows of a full shard.
    """
    index = np.full((shard_rows, 2), _ABSENT, dtype="<u8")
    position = 0
    for row, chunk in enumerate(chunks):
        if chunk is not None:
            index[row] = (position, len(chunk))
            position += len(chunk)
    return b"".join(chunk for chunk in chunks if chunk is not None) + add_crc(index.tobytes())


def shard_index_bytes(shard_rows: int) -> int:
    """Size of the index at a shard's end."""
    return 16 * shard_rows + 4


def decode_shard_index(data: bytes, shard_rows: int, what: str) -> npt.NDArray[np.uint64]:
    """Check a shard's index: (shard_rows, 2) offsets and lengths; absent rows have 2^64 − 1.

    Raises:
        CacheCorruptError: the index is damaged.
    """
    payload = strip_crc(data, what)
    if len(payload) != 16 * shard_rows:
        raise CacheCorruptError(f"{what}: index has {len(payload)} bytes")
    return np.frombuffer(payload, dtype="<u8").reshape(shard_rows, 2)


def is_absent(entry: npt.NDArray[np.uint64]) -> bool:
    """Whether a shard's index has no chunk for this row."""
    return int(entry[0]) == _ABSENT


def maps_metadata(
    num_rows: int, shape: tuple[int, int], shard_rows: int, bits: int
) -> dict[str, Any]:
    """zarr.json of the codes, or float32 values, of one bucket."""
    dtype = np.dtype(stored_dtype(bits))
    blosc = {
        "name": "blosc",
        "configuration": {
            "typesize": dtype.itemsize,
            "cname": "zstd",
            "clevel": _LEVEL,
            "shuffle": "shuffle",
            "blocksize": _BLOCK_BYTES,
        },
    }
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, *shape],
            "codecs": [_BYTES, blosc, _CRC],
            "index_codecs": [_BYTES, _CRC],
            "index_location": "end",
        },
    }
    fill = "NaN" if dtype.kind == "f" else 0
    return _array([num_rows, *shape], dtype.name, [shard_rows, *shape], [sharding], fill)


def plain_metadata(shape: list[int], dtype: str, chunk_shape: list[int]) -> dict[str, Any]:
    """zarr.json of an uncompressed, checksummed array."""
    codecs = [{"name": "bytes"} if dtype == "uint8" else _BYTES, _CRC]
    return _array(shape, dtype, chunk_shape, codecs, 0.0 if dtype == "float32" else 0)


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """zarr.json of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array(
    shape: list[int], dtype: str, chunks: list[int], codecs: list[Any], fill: int | float | str
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
    }
