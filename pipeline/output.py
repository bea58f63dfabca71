"""What a command writes: one document or a text to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1


def configure_logging(*, verbose: bool = False) -> None:
    """Send log records of all packages to stderr, one line each.

    Args:
        verbose: also debug records, and what libraries warn their own developers of.
    """
    if not verbose and not sys.warnoptions:
        # fvcore and detectron2 script functions as they are imported, which torch 2.14 deprecates.
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit", category)
        os.environ["PYTHONWARNINGS"] = ",".join(  # for the processes that this one starts
            f"ignore::{name}:torch.jit._script" for name in ("FutureWarning", "DeprecationWarning")
        )
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars; ours are lines there
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    # torch counts its cache of fake tensors at the exit, where its import was interrupted.
    for chatty in (
        "httpx", "httpcore", "PIL", "matplotlib", "asyncio", "fsspec", "numcodecs", "torch",
    ):  # fmt: skip
        logging.getLogger(chatty).setLevel(logging.WARNING)


def require_writable(path: Path, *, is_folder: bool = False) -> None:
    """Try an output path before the work that it is for; makes its folder, and says so.

    Args:
        path: file to write, or folder to write files in.
        is_folder: which of the two.

    Raises:
        UsageError: a file cannot be written there.
    """
    folder = path if is_folder else path.parent
    try:
        if path.is_dir() and not is_folder:
            raise IsADirectoryError("it is a folder")
        if path.is_file() and is_folder:
            raise NotADirectoryError("it is a file")
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            logger.info("made the folder %s", folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = "folder" if is_folder else "file"
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}; choose another {what}"
        ) from error


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Send what libraries print to stdout to stderr, at the level of file descriptors.

    pycocotools and detectron2 print to stdout; the one document a command writes there must stay
    parseable, so all work runs inside this and the document is written after it.
    """
    sys.stdout.flush()
    original = sys.stdout
    saved_descriptor = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = original
        os.dup2(saved_descriptor, 1)
        os.close(saved_descriptor)


def write_result(kind: str, result: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Write a command's result to stdout.

    Args:
        kind: name of the document, the command's words, for example `cache verify`.
        result: fields of the document.
        text: what a person reads instead; may be empty.
        as_json: write the document rather than the text.
    """
    if as_json:
        sys.stdout.write(render_document(kind, result) + "\n")
    elif text:
        sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def render_document(kind: str, result: Mapping[str, Any]) -> str:
    """JSON text of a result with `schema_version` and `kind` in front."""
    document = {"schema_version": SCHEMA_VERSION, "kind": kind, **result}
    return json.dumps(to_jsonable(document), indent=2, ensure_ascii=False, allow_nan=False)


def to_jsonable(value: object) -> object:  # noqa: PLR0911 - one return per kind of value
    """Reduce a value to what JSON knows; NaN and infinities become null.

    Args:
        value: nested mappings and sequences of scalars, paths, numpy scalars, dataclasses and
            callables (written by their import path).
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: to_jsonable(getattr(value, name)) for name in value.__dataclass_fields__}
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        return to_jsonable(value.item())
    if hasattr(value, "tolist"):
        return to_jsonable(value.tolist())
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return str(value)


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text table, first column to the left, the others to the right."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = []
    for line in [header, ["-" * width for width in widths], *rows]:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_bytes(num_bytes: float) -> str:
    """Bytes with a binary unit, for example `1.5 MiB`."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Seconds as `4 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
