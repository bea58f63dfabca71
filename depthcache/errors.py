"""Errors of the depth cache, grouped by what the caller does next.

DepthCacheError
├── CacheNotFoundError      check the address
├── CacheMissError          compute the missing depth (also a KeyError)
├── CacheMismatchError      choose another fingerprint, model or version
├── CacheCorruptError       run `pipeline cache verify ROOT --repair`
├── CacheIncompleteError    run stage one again, it resumes
├── CacheUnreachableError   try again, or go on without the service
└── ImageDecodeError        replace the image (also a ValueError)
"""

from __future__ import annotations


class DepthCacheError(Exception):
    """Base of every error of this package."""


class CacheNotFoundError(DepthCacheError):
    """No cache, segment or object lies at the address."""


class CacheMissError(DepthCacheError, KeyError):
    """The cache has no depth of this image."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CacheMismatchError(DepthCacheError):
    """The cache belongs to another model, version or choice than the caller's."""


class CacheCorruptError(DepthCacheError):
    """Stored bytes differ from what was written."""


class CacheIncompleteError(DepthCacheError):
    """A run that fills the cache has not finished."""


class CacheUnreachableError(DepthCacheError):
    """The service or the object store does not answer."""


class ImageDecodeError(DepthCacheError, ValueError):
    """The bytes are not an image that can be decoded."""
