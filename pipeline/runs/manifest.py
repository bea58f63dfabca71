"""The run manifest: what a run is made of, what each stage did, and what is left to do.

`runs/<name>/manifest.json` is replaced atomically (temporary file, fsync, rename, fsync of the
folder) at every change of state, so a killed run leaves a manifest that says how far it came.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from depthcache.storage.durable_files import write_durably
from pipeline.config import describe_changes
from pipeline.errors import PipelineError, UsageError, exit_code_of
from pipeline.output import to_jsonable

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
_PROGRESS_NAME = "progress.json"
_LOCK_NAME = ".lock"
# Beside the lock, which is never written: a start with nothing to do leaves every file as it is.
_HOLDER_NAME = ".lock-holder"
State = Literal["pending", "running", "done", "failed", "interrupted"]
_RECORDED_PACKAGES = (
    "boxdepth",
    "torch",
    "torchvision",
    "transformers",
    "detectron2",
    "sal-detectron2",
    "timm",
    "zarr",
    "numpy",
)
MAX_RECORDED_FAILURES = 1000


class ConfigRecord(TypedDict, total=False):
    """The config of a run; empty for a run without one.

    Attributes:
        path: as given on the command line.
        assignments: `--set` texts.
        resolved: what they say, as plain values.
    """

    path: str
    assignments: list[str]
    resolved: dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class StageRecord:
    """State of one stage of a run.

    Attributes:
        state: how far it is.
        inputs: what the stage depends on; a stage whose inputs changed runs again.
        outputs: paths and values it made.
        counts: how many items of which kind.
        failures: items that failed, with a reason each (at most 1000 are kept).
        error: message that ended it, when failed.
        exit_code: of the command that it ended, when failed.
        started: UTC time, ISO 8601.
        finished: UTC time, ISO 8601.
        process_id: the process that ran it last.
    """

    state: State = "pending"
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    error: str | None = None
    exit_code: int | None = None
    started: str | None = None
    finished: str | None = None
    process_id: int | None = None


@dataclasses.dataclass(kw_only=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        folder: run folder.
        home: folder that is moved as a whole, the run's own or the demo's around it. The file names
            both, so that paths in it are found again after a move.
        command: arguments that started the run, for `resume`.
        config: see there.
        environment: versions and machine.
        fingerprints: short name → fingerprint or digest.
        stages: stage name → record, in the order of the run.
        created: UTC time, ISO 8601.
        updated: UTC time, ISO 8601.
        changes: fields that the last start found changed, `before → now`.
    """

    folder: Path
    home: Path
    command: list[str] = dataclasses.field(default_factory=list)
    config: ConfigRecord = dataclasses.field(default_factory=ConfigRecord)
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)
    stages: dict[str, StageRecord] = dataclasses.field(default_factory=dict)
    created: str = ""
    updated: str = ""
    changes: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def progress_file(self) -> Path:
        """Where the stage that runs, or that was stopped, keeps how far it is; else absent."""
        return self.folder / _PROGRESS_NAME

    def save(self) -> None:
        """Replace the file atomically; after return it survives a crash of the machine."""
        self.updated = utc_now()
        places = {"folder": str(self.folder), "home": str(self.home)}
        document = {"schema_version": SCHEMA_VERSION, **places, **self.to_document()}
        write_atomically(self.folder / FILE_NAME, json.dumps(document, indent=2) + "\n")

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values of everything but the folders."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("folder", "home")
        }
        document = to_jsonable(fields)
        assert isinstance(document, dict)
        return document

    @contextlib.contextmanager
    def running(self, stage: str, inputs: Mapping[str, Any]) -> Iterator[StageRecord]:
        """Run a stage: record its start, its end, and how it ended.

        Args:
            stage: stage name.
            inputs: what the stage depends on.

        Yields:
            The record, into which the caller writes outputs, counts and failures.
        """
        plain_inputs = to_jsonable(dict(inputs))
        assert isinstance(plain_inputs, dict)
        record = self.stages.setdefault(stage, StageRecord())
        record.state, record.inputs = "running", plain_inputs
        record.error, record.exit_code = None, None
        record.started, record.finished, record.process_id = utc_now(), None, os.getpid()
        self.progress_file.unlink(missing_ok=True)
        self.save()
        try:
            yield record
        except KeyboardInterrupt:
            record.state = "interrupted"
            raise
        except BaseException as error:
            record.state, record.error = "failed", str(error) or type(error).__name__
            record.exit_code = int(exit_code_of(error))
            raise
        else:
            record.state = "done"
            self.progress_file.unlink(missing_ok=True)
        finally:
            record.finished = utc_now()
            record.failures = record.failures[:MAX_RECORDED_FAILURES]
            self.save()

    @contextlib.contextmanager
    def repeating(self, stage: str, inputs: Mapping[str, Any]) -> Iterator[StageRecord]:
        """As `running`; but a stage that is done with these inputs keeps its record."""
        if self.is_done(stage, inputs):
            yield StageRecord()
            return
        with self.running(stage, inputs) as record:
            yield record

    @contextlib.contextmanager
    def rechecking(self, stage: str, inputs: Mapping[str, Any]) -> Iterator[StageRecord]:
        """As `running`, for a stage that every start repeats, to see whether all is as it was.

        One that was done with these inputs keeps its record when it finds the same again, or when
        it refuses to go on.
        """
        if not self.is_done(stage, inputs):
            with self.running(stage, inputs) as record:
                yield record
            return
        found, kept = StageRecord(), self.stages[stage]
        yield found
        if (found.outputs, found.counts, found.failures) != (
            kept.outputs, kept.counts, kept.failures,
        ):  # fmt: skip
            with self.running(stage, inputs) as record:
                record.outputs, record.counts = found.outputs, found.counts
                record.failures = found.failures

    def is_done(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a stage finished with exactly these inputs."""
        record = self.stages.get(stage)
        return record is not None and record.state == "done" and not self.changed(stage, inputs)

    def changed(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, str]:
        """Inputs that differ from those of the stage's last run, named field by field."""
        record = self.stages.get(stage)
        if record is None or not record.inputs:
            return {}
        plain_inputs = to_jsonable(dict(inputs))
        assert isinstance(plain_inputs, dict)
        return describe_changes(record.inputs, plain_inputs)


def load_manifest(folder: Path, home: Path | None = None) -> Manifest:
    """Read a run's manifest; paths in it are those of where the run lies now.

    Args:
        folder: run folder.
        home: folder around it that was moved as a whole; by default as deep as it was.

    Raises:
        UsageError: the folder is no run, or a newer version of the program wrote it.
        PipelineError: the file is not readable as a manifest.
    """
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} is not a run: it has no {FILE_NAME}") from error
    except ValueError as error:
        raise PipelineError(f"{path} is damaged: {error}; delete it and run again") from error
    version = document.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; "
            "update the program or choose another output folder"
        )
    try:
        old_folder = Path(document.pop("folder", folder))
        old_home = Path(document.pop("home", old_folder))
        if home is None:
            depth = len(old_folder.relative_to(old_home).parts)
            spelled = folder if len(folder.parts) > depth else folder.resolve()
            home = [spelled, *spelled.parents][depth]
        document = _move_paths(document, str(old_home), str(home))
        stages = {name: StageRecord(**record) for name, record in document.pop("stages").items()}
        return Manifest(folder=folder, home=home, stages=stages, **document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PipelineError(f"{path} is not a run manifest: {error}") from error


def _move_paths(value: Any, old: str, new: str) -> Any:
    """A document with every path in the folder `old` as one in `new`."""
    if isinstance(value, dict):
        return {key: _move_paths(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_move_paths(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value


def open_manifest(
    folder: Path,
    *,
    command: Sequence[str],
    config: ConfigRecord,
    stages: Sequence[str],
    home: Path | None = None,
) -> Manifest:
    """Start a run, or take up the one that is already in the folder.

    Args:
        folder: run folder; made if absent.
        command: arguments that `resume` repeats.
        config: see there.
        stages: names of the stages this command has, in order.
        home: folder around it that is moved as a whole; by default its own.

    Returns:
        The manifest. Its `changes` name what differs from the run's last start. It is saved when a
        stage starts, so that a command that is refused, or has nothing to do, leaves the record as
        it is, and none where there was none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain_config = cast("ConfigRecord", to_jsonable(dict(config)))
    if not (folder / FILE_NAME).is_file():
        manifest = Manifest(folder=folder, home=home or folder, created=utc_now())
    else:
        manifest = load_manifest(folder, home)
        manifest.changes = describe_changes(
            manifest.config.get("resolved", {}), plain_config.get("resolved", {})
        )
    manifest.command = list(command)
    manifest.config = plain_config
    manifest.environment = describe_environment()
    for stage in stages:
        manifest.stages.setdefault(stage, StageRecord())
    return manifest


@contextlib.contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the lock ends with the process.

    Raises:
        UsageError: another process is working in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / _HOLDER_NAME
    with (folder / _LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder} is in use by {name_holder(folder)}; wait for it, "
                "or choose another --output"
            ) from error
        holder.write_text(str(os.getpid()))
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def name_holder(folder: Path) -> str:
    """`process 123`, which holds the run folder; `?` while it does not say."""
    holder = folder / _HOLDER_NAME
    return f"process {holder.read_text() if holder.is_file() else '?'}"


def is_in_use(folder: Path) -> bool:
    """Whether a live process holds the run folder."""
    if not (folder / _LOCK_NAME).is_file():
        return False
    with (folder / _LOCK_NAME).open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(lock, fcntl.LOCK_UN)
    return False


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new text, also after a power cut."""
    write_durably(path, text.encode())


def write_if_changed(path: Path, text: str) -> None:
    """`write_atomically`, unless the file holds the text already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)


def describe_environment() -> dict[str, Any]:
    """Versions, machine and Python of this process."""
    packages = {}
    for name in _RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "executable": sys.executable,
        "packages": packages,
    }


def utc_now() -> str:
    """Current UTC time, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
