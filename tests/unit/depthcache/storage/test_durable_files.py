"""A file is replaced whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from depthcache.storage.durable_files import (
    make_folder_durably,
    read_json_lines,
    replaced_file,
    write_durably,
)

_KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from depthcache.storage.durable_files import replaced_file
with replaced_file(Path(sys.argv[1])) as file:
    file.write(b"new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path):
    path = tmp_path / "file"
    for content in (b"old", b"newer"):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_durable", [False, True])
def test_an_error_keeps_the_old_content(tmp_path, is_durable):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_half_way():
        with replaced_file(path, is_durable=is_durable) as file:
            file.write(b"ne")
            raise RuntimeError("half written")

    with pytest.raises(RuntimeError, match="half"):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_keeps_the_old_content_and_leaves_what_garbage_collection_knows(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", _KILLED_WHILE_WRITING, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert [p.read_bytes() for p in tmp_path.glob("*.tmp-*")] == [b"new"]


def test_the_names_of_new_folders_are_synced_in_their_parents(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("depthcache.storage.durable_files.sync_folder", synced.append)
    make_folder_durably(tmp_path / "a/b")
    assert sorted(synced) == [tmp_path, tmp_path / "a"]
    make_folder_durably(tmp_path / "a/b")
    assert len(synced) == 2


def test_lines_that_a_crash_left_half_written_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    assert list(read_json_lines(path)) == []
    path.write_bytes(b'{"a": 1}\n{"a": \x00\x00\n{"a": 2}\n{"a": 3}')
    assert list(read_json_lines(path)) == [{"a": 1}, {"a": 2}]
