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
import errno


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
        The code of the most specific known class; `ExitCode.FAILED` for an unknown one, and for a
        full disk: nothing is wrong with the command, which goes on when there is space.
    """
    if isinstance(error, PipelineError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return ExitCode.USAGE  # as PermissionError; Python has no class for it
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
        training.MissingDepthError: ExitCode.USAGE,
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
    if isinstance(error, OSError) and error.strerror:
        path, what = error.filename, error.strerror.lower()
        remedy = _REMEDIES.get(error.errno or 0)
        if path is not None:
            return f"{path}: {what}; {remedy}" if remedy else f"{path}: {what}"
        if error.errno in _DISK_FULL:  # of a write, which does not know the path
            return f"{what}; {remedy}"
    return str(error) or type(error).__name__


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_MAKE_SPACE = "free some space there and run the same command again, or name a path on another disk"
_CHANGE_MODE = "name another path, or change its owner or mode"
_REMEDIES = {
    errno.EACCES: _CHANGE_MODE,
    errno.EPERM: _CHANGE_MODE,
    errno.ENOTDIR: "a part of this path is a file; name another path",
    errno.EEXIST: "a file is where a folder should be; name another path",
    errno.EISDIR: "this is a folder; name a file in it",
    errno.ENOENT: "check the spelling and the folder that the command runs in",
    errno.EROFS: "name a path on a disk that may be written, or mount this one writable",
    **dict.fromkeys(_DISK_FULL, _MAKE_SPACE),
}
