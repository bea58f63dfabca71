"""The run manifest survives every way a stage can end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.errors import PipelineError, UsageError
from pipeline.runs.manifest import is_in_use, load_manifest, locked_run, open_manifest


def _open(folder, resolved=None):
    return open_manifest(
        folder,
        command=["run", "x"],
        config={"path": "x", "assignments": [], "resolved": resolved or {}},
        stages=["depth", "train"],
    )


def test_done_stage_is_done_for_the_same_inputs_only(tmp_path):
    manifest = _open(tmp_path)
    with manifest.running("depth", {"model": "a"}) as record:
        record.counts = {"images": 3}
    again = load_manifest(tmp_path)
    assert again.is_done("depth", {"model": "a"})
    assert not again.is_done("depth", {"model": "b"})
    assert again.changed("depth", {"model": "b"}) == {"model": "a → b"}
    assert again.stages["depth"].counts == {"images": 3}
    assert again.stages["train"].state == "pending"


@pytest.mark.parametrize(
    ("error", "state"),
    [(KeyboardInterrupt(), "interrupted"), (ValueError("no disk"), "failed")],
)
def test_how_a_stage_ended_is_on_disk(tmp_path, error, state):
    manifest = _open(tmp_path)

    def run_stage():
        with manifest.running("train", {"a": 1}):
            assert load_manifest(tmp_path).stages["train"].state == "running"
            manifest.progress_file.write_text("{}")
            raise error

    with pytest.raises(type(error)):
        run_stage()
    assert load_manifest(tmp_path).stages["train"].state == state
    assert manifest.progress_file.is_file(), "how far it came"
    with manifest.running("train", {"a": 1}):
        assert not manifest.progress_file.exists(), "that of another start"
        manifest.progress_file.write_text("{}")
    assert not manifest.progress_file.exists(), "done"


def test_a_stage_that_is_seen_to_again_keeps_its_record_while_it_finds_the_same(tmp_path):
    def recheck(inputs, counts, error=None):
        with _open(tmp_path).rechecking("depth", inputs) as record:
            record.counts = counts
            if error:
                raise error

    file = tmp_path / "manifest.json"
    recheck({"a": 1}, {"boxes": 3})
    before = (file.stat().st_mtime_ns, file.read_bytes())
    recheck({"a": 1}, {"boxes": 3})
    with pytest.raises(UsageError):
        recheck({"a": 1}, {}, UsageError("refused"))
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    recheck({"a": 1}, {"boxes": 4})
    assert load_manifest(tmp_path).stages["depth"].counts == {"boxes": 4}
    with pytest.raises(UsageError):
        recheck({"a": 2}, {}, UsageError("refused"))
    assert load_manifest(tmp_path).stages["depth"].state == "failed"


def test_second_start_names_what_changed(tmp_path):
    _open(tmp_path, {"train": {"seed": 1}}).save()
    assert _open(tmp_path, {"train": {"seed": 2}}).changes == {"train.seed": "1 → 2"}


def test_no_partial_file_stays(tmp_path):
    _open(tmp_path).save()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_newer_schema_and_damage_are_refused(tmp_path):
    with pytest.raises(UsageError, match="not a run"):
        load_manifest(tmp_path)
    _open(tmp_path).save()
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "schema_version": 99}))
    with pytest.raises(UsageError, match="schema version 99"):
        load_manifest(tmp_path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(PipelineError, match="damaged"):
        load_manifest(tmp_path)


def test_a_folder_has_one_process_at_a_time(tmp_path):
    program = (
        "import sys; from pathlib import Path; from pipeline.runs.manifest import locked_run\n"
        f"with locked_run(Path({str(tmp_path)!r})): pass"
    )
    assert not is_in_use(tmp_path)
    with locked_run(tmp_path):
        assert is_in_use(tmp_path)
        other = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
    assert other.returncode != 0
    assert f"is in use by process {os.getpid()};" in other.stderr
    assert not is_in_use(tmp_path)
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
