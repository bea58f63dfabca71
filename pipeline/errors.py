"""What can go wrong in the command, grouped by what the caller does next.

PipelineError                    exit code 1
├── UsageError                   2    the command line, a setting or an input file is wrong
├── FailedItemsError             3    finished, but some items failed; the report names them
└── ServiceUnreachableError      5    a cache service or a model hub did not answer

`exit_code_of` maps these, and the errors of the packages below, to exit codes. It is the only place
where an exit code is chosen.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What the `pipeline` process returns."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    FAILED_ITEMS = 3
    INTEGRITY = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


class PipelineError(Exception):
    """Base of the command's own errors."""

    exit_code = ExitCode.FAILED


class UsageError(PipelineError):
    """The command line, a setting or an input file is wrong; correct it and run again."""

    exit_code = ExitCode.USAGE


class FailedItemsError(PipelineError):
    """The work is finished but some items failed."""

    exit_code = ExitCode.FAILED_ITEMS


class ServiceUnreachableError(PipelineError):
    """A cache service or a model hub did not answer."""

    exit_code = ExitCode.UNREACHABLE


def exit_code_of(error: BaseException) -> ExitCode:
    """Exit code for an error that ended a command.

    Args:
        error: any exception, of this package or of a package below.

    Returns:
        The code of the most specific known class; `ExitCode.FAILED` for an unknown one.
    """
    if isinstance(error, PipelineError):
        return error.exit_code
    codes = exit_codes()
    return next((codes[cls] for cls in type(error).__mro__ if cls in codes), ExitCode.FAILED)


def exit_codes() -> dict[type[BaseException], ExitCode]:
    """Exit code of every error of the packages below and of the system's that users cause."""
    # Only a command that fails pays for these imports.
    import depthcache.errors as cache
    import segtrain.errors as training

    return {
        cache.DepthCacheError: ExitCode.FAILED,
        cache.CacheNotFoundError: ExitCode.USAGE,
        cache.CacheMissError: ExitCode.FAILED,
        cache.CacheMismatchError: ExitCode.USAGE,
        cache.CacheCorruptError: ExitCode.INTEGRITY,
        cache.CacheIncompleteError: ExitCode.FAILED_ITEMS,
        cache.CacheUnreachableError: ExitCode.UNREACHABLE,
        cache.ImageDecodeError: ExitCode.USAGE,
        training.SegtrainError: ExitCode.FAILED,
        training.DatasetError: ExitCode.USAGE,
        training.ImageSizeMismatchError: ExitCode.USAGE,
        training.MissingDepthError: ExitCode.FAILED,
        training.TrainingConfigError: ExitCode.USAGE,
        training.CheckpointError: ExitCode.USAGE,
        training.NonFiniteLossError: ExitCode.FAILED,
        FileNotFoundError: ExitCode.USAGE,
        NotADirectoryError: ExitCode.USAGE,
        IsADirectoryError: ExitCode.USAGE,
        PermissionError: ExitCode.USAGE,
        FileExistsError: ExitCode.USAGE,
        KeyboardInterrupt: ExitCode.INTERRUPTED,
    }


def describe_error(error: BaseException) -> str:
    """One readable text for an error: its message, or its class when it has none."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # str(KeyError) would add quotes around the message
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        remedy = next((text for cls, text in _REMEDIES.items() if isinstance(error, cls)), None)
        text = f"{error.filename}: {error.strerror.lower()}"
        return f"{text}; {remedy}" if remedy else text
    return str(error) or type(error).__name__


_REMEDIES: dict[type[OSError], str] = {
    PermissionError: "name another path, or change its owner or mode",
    NotADirectoryError: "a part of this path is a file; name another path",
    FileExistsError: "a file is where a folder should be; name another path",
    IsADirectoryError: "this is a folder; name a file in it",
    FileNotFoundError: "check the spelling and the folder that the command runs in",
}
