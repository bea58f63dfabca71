"""One parser of a segment's manifest: what it lets through is safe to use, all else is named."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthcache.errors import CacheCorruptError, CacheMismatchError, DepthCacheError
from depthcache.format.seal import is_safe_object_path, make_seal, parse_seal, summarise_object
from depthcache.format.segment_format import canonical_json

_OBJECTS = {name: summarise_object(name.encode()) for name in ("zarr.json", "maps/2x3/c/0/0/0")}
_DOCUMENT = json.loads(make_seal(_OBJECTS, {"host": "h"}))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def _reseal(document):
    """The bytes of a manifest that somebody wrote on purpose: its checksum is right."""
    return make_seal(document["objects"], document["provenance"])


def test_what_is_written_is_read():
    assert parse_seal(make_seal(_OBJECTS, {"host": "h"})) == _DOCUMENT


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a//b", "a/./b", "a\\b", "é", "a\nb", "", "sealed.json", "a/" * 300, "x" * 129],
)
def test_object_paths_that_leave_the_segment_are_refused(name):
    assert not is_safe_object_path(name)
    with pytest.raises(CacheCorruptError, match="unusable object path"):
        parse_seal(make_seal({**_OBJECTS, name: summarise_object(b"")}, {}))


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"size": -1, "sha256": "0" * 64}, "size -1"),
        ({"size": True, "sha256": "0" * 64}, "size True"),
        ({"size": 2**41, "sha256": "0" * 64}, "size"),
        ({"size": 1, "sha256": "A" * 64}, "sha256 'AAAA"),
        ({"size": 1}, "sha256 None"),
    ],
)
def test_entries_that_say_nothing_usable_are_refused(entry, named):
    with pytest.raises(CacheCorruptError, match=named):
        parse_seal(make_seal({**_OBJECTS, "x": entry}, {}))


def test_an_object_that_is_also_a_folder_is_refused():
    clash = {**_OBJECTS, "maps/2x3": summarise_object(b"")}
    with pytest.raises(CacheCorruptError, match="as an object and as a folder"):
        parse_seal(make_seal(clash, {}))


def test_another_version_is_told_from_damage(monkeypatch):
    monkeypatch.setattr("depthcache.format.segment_format.FORMAT_VERSION", 2)
    newer = make_seal(_OBJECTS, {})
    monkeypatch.undo()
    with pytest.raises(CacheMismatchError, match="version 2"):
        parse_seal(newer)


@settings(max_examples=300)
@given(data=st.data())
def test_damage_is_always_named(data):
    text = bytearray(canonical_json(_DOCUMENT))
    position = data.draw(st.integers(0, len(text) - 1))
    text[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DepthCacheError):
        parse_seal(bytes(text))


@settings(max_examples=200)
@given(value=_JSON, where=st.sampled_from(["objects", "object", "size", "sha256"]))
def test_documents_made_to_mislead_are_refused_or_safe(value, where):
    document = copy.deepcopy(_DOCUMENT)
    if where == "objects":
        text = canonical_json({**document, "objects": value})
    else:
        if where == "object":
            document["objects"]["zarr.json"] = value if isinstance(value, dict) else {}
        else:
            document["objects"]["zarr.json"][where] = value
        text = _reseal(document)
    try:
        parsed = parse_seal(text)
    except DepthCacheError:
        return
    assert all(is_safe_object_path(name) for name in parsed["objects"])
    assert all(type(entry["size"]) is int for entry in parsed["objects"].values())


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"\xff", b'{"a":NaN}', b"[" * 100_000])
def test_what_is_no_document_is_damage(text):
    with pytest.raises(CacheCorruptError, match="damaged"):
        parse_seal(text)
