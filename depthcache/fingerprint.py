"""What decides whether two depth maps of one image are the same: the fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from depthcache.errors import CacheCorruptError, CacheMismatchError

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that changes the numbers, and nothing else.

    Args:
        model_id: hub id, or the folder's name for a local model.
        revision: hub revision, "" for a local folder.
        weights_sha256: of the weight files, in the order of their names.
        processor: settings of the image processor that reach the network.
        precision: fp32, bf16 or fp16.
        quantity: "inverse_depth" (relative) or "depth_metres".
        larger_is: "nearer" or "farther", of the stored values.
        output: "raw" or "post_processed", which of the model's outputs is stored.
        licence: of the model, as its card says, "" if unknown.
        encoding: name in `quantisation.ENCODINGS`.
        format_version: of the cache format.
    """

    model_id: str
    revision: str = ""
    weights_sha256: str
    processor: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    quantity: str = "inverse_depth"
    larger_is: str = "nearer"
    output: str = "raw"
    licence: str = ""
    encoding: str = "linear-u12"
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, ASCII."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def folder_name(self) -> str:
        """<slug>-<16 hex digits>: the slug for people, the digits for identity."""
        slug = re.sub(r"[^a-z0-9._]+", "-", self.model_id.lower()).strip("-._")[:60] or "model"
        return f"{slug}-{hashlib.sha256(self.to_json().encode()).hexdigest()[:16]}"

    @classmethod
    def from_json(cls, text: bytes, *, place: str) -> Fingerprint:
        """Read a `fingerprint.json`.

        Args:
            text: the file's bytes.
            place: where it was read, for messages.

        Raises:
            CacheMismatchError: written by a newer version of the format.
            CacheCorruptError: not a fingerprint.
        """
        try:
            document = json.loads(text)
            version = document["format_version"]
            if version != FORMAT_VERSION:
                raise CacheMismatchError(
                    f"{place} has cache format {version}, this version reads {FORMAT_VERSION}: "
                    "upgrade, or choose another cache root"
                )
            return cls(**document)
        except (ValueError, TypeError, KeyError) as error:
            raise CacheCorruptError(f"{place} is not a fingerprint: {error}") from error
