"""Depth maps predicted once per image, stored in checksummed zarr segments, and read back.

Reading needs numpy, numcodecs and google-crc32c; torch and transformers are imported only by
`depth_models` and `precompute`.
"""

from __future__ import annotations

from depthcache.cache_reader import DepthCache
from depthcache.errors import DepthCacheError
from depthcache.image_decoding import decode_image, image_key

__all__ = ["DepthCache", "DepthCacheError", "decode_image", "image_key"]
