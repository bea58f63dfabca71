"""Pins, last use, and eviction under a size cap.

State lies in the root's `.service/`: `pins.json` (written at once) and `last_used.json` (written
every minute and at shutdown: losing a minute of it only makes the order of eviction a bit worse).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from depthcache.service.catalogue import Catalogue, SealedSegment
from depthcache.service.metrics import ServiceMetrics
from depthcache.service.refusals import RequestRefusedError
from depthcache.service.roots import STATE_NAME, ServedRoot

_PINS = "pins.json"
_LAST_USED = "last_used.json"

log = logging.getLogger("depthcache.service")
_Document = TypeVar("_Document", list[str], dict[str, float])


@dataclass(frozen=True, kw_only=True)
class EvictionCandidate:
    """What the choice of victims needs to know of a segment."""

    key: str
    num_bytes: int
    last_used: float
    is_pinned: bool


def choose_victims(candidates: Sequence[EvictionCandidate], num_bytes_to_free: int) -> list[str]:
    """Least recently used unpinned segments that free enough.

    Args:
        candidates: every stored segment.
        num_bytes_to_free: 0 or less frees nothing.

    Returns:
        Keys in the order of eviction; all unpinned ones when even those are not enough.
    """
    victims = []
    for candidate in sorted(candidates, key=lambda c: (c.last_used, c.key)):
        if num_bytes_to_free <= 0:
            break
        if not candidate.is_pinned:
            victims.append(candidate.key)
            num_bytes_to_free -= candidate.num_bytes
    return victims


class LifeCycle:
    """Keeps a root under its size cap.

    Args:
        catalogue: what is stored.
        metrics: counters.
        size_cap_bytes: most bytes of sealed segments; None = no cap.
    """

    def __init__(
        self, catalogue: Catalogue, metrics: ServiceMetrics, size_cap_bytes: int | None
    ) -> None:
        self.size_cap_bytes = size_cap_bytes
        self._catalogue = catalogue
        self._metrics = metrics
        self._root = catalogue.root
        self._lock = threading.Lock()
        self._pins: set[str] = set(_read_json(self._root, _PINS, list))
        self._last_used: dict[str, float] = dict(_read_json(self._root, _LAST_USED, dict))

    def touch(self, cache: str, segment_id: str) -> None:
        """Record that a segment was read."""
        self._last_used[f"{cache}/{segment_id}"] = time.time()

    def last_used(self, segment: SealedSegment) -> float:
        """Seconds since the epoch; the time of sealing for a segment that was never read."""
        return self._last_used.get(_key(segment), segment.sealed_time)

    def is_pinned(self, segment: SealedSegment) -> bool:
        """Whether eviction leaves it alone."""
        return _key(segment) in self._pins

    def pin(self, segment: SealedSegment, *, pinned: bool) -> None:
        """Pin or unpin a segment; durable when it returns."""
        with self._lock:
            pins = self._pins | {_key(segment)} if pinned else self._pins - {_key(segment)}
            self._root.write_state(_PINS, json.dumps(sorted(pins)).encode())
            self._pins = pins

    def save_last_used(self) -> None:
        """Write the times of use, without those of segments that are gone."""
        stored = {_key(segment) for segment in self._catalogue.all_segments()}
        times = {key: at for key, at in list(self._last_used.items()) if key in stored}
        self._root.write_state(_LAST_USED, json.dumps(times).encode())

    def make_room(self, num_bytes: int, *, keep: Collection[str] = ()) -> list[str]:
        """Evict until `num_bytes` more fit under the cap.

        Args:
            num_bytes: what is about to be published; 0 to come back under the cap.
            keep: keys "cache/segment" that must stay, besides pinned ones.

        Returns:
            Keys of the evicted segments.

        Raises:
            RequestRefusedError: 507 when they cannot fit even so; nothing is evicted then.
        """
        if self.size_cap_bytes is None:
            return []
        with self._lock:
            segments = {_key(segment): segment for segment in self._catalogue.all_segments()}
            candidates = [
                EvictionCandidate(
                    key=key,
                    num_bytes=segment.num_bytes,
                    last_used=self.last_used(segment),
                    is_pinned=key in self._pins or key in keep,
                )
                for key, segment in segments.items()
            ]
            excess = sum(c.num_bytes for c in candidates) + num_bytes - self.size_cap_bytes
            victims = choose_victims(candidates, excess)
            if num_bytes and sum(segments[key].num_bytes for key in victims) < excess:
                raise RequestRefusedError(
                    507,
                    "size-cap",
                    f"{num_bytes} bytes do not fit under the cap of {self.size_cap_bytes} bytes "
                    "beside what is pinned; unpin segments or raise the cap",
                )
            for key in victims:
                self._root.remove(segments[key].prefix)
            if victims:
                self._catalogue.refresh(force=True)
                self._metrics.evicted.inc(len(victims))
                log.info("evicted %s", ", ".join(victims))
            return victims

    def delete(self, segment: SealedSegment) -> None:
        """Remove one segment on request.

        Raises:
            RequestRefusedError: 409 for a pinned one.
        """
        with self._lock:
            if _key(segment) in self._pins:
                raise RequestRefusedError(409, "pinned", "the segment is pinned; unpin it first")
            self._root.remove(segment.prefix)
            self._catalogue.refresh(force=True)


def _key(segment: SealedSegment) -> str:
    return f"{segment.cache}/{segment.segment_id}"


def _read_json(root: ServedRoot, name: str, kind: type[_Document]) -> _Document:
    text = root.read_state(name)
    if text is None:
        return kind()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{STATE_NAME}/{name} is no JSON; restore or delete it") from error
    if not isinstance(document, kind):
        raise ValueError(f"{STATE_NAME}/{name} must hold a {kind.__name__}; restore or delete it")
    return document
