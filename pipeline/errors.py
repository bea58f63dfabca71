"""What can go wrong in the command, grouped by what the caller does next.

PipelineError                    exit code 1
├── UsageError                   2    the command line, a setting or an input file is wrong
├── FailedItemsError             3    finished, but some items failed; the report names them
├── IntegrityError               4    stored data is damaged
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


class IntegrityError(PipelineError):
    """Stored data is damaged."""

    exit_code = ExitCode.INTEGRITY


class ServiceUnreachableError(PipelineError):
    """A cache service or a model hub did not answer."""

    exit_code = ExitCode.UNREACHABLE


# Errors of the packages below, by name, because importing them would load the package: nearest
# class of the error's MRO wins, so a subclass may be more specific than its base.
_EXIT_CODES_BY_CLASS_NAME = {
    "CacheNotFoundError": ExitCode.USAGE,
    "CacheMissError": ExitCode.FAILED,
    "CacheMismatchError": ExitCode.USAGE,
    "CacheCorruptError": ExitCode.INTEGRITY,
    "CacheIncompleteError": ExitCode.FAILED_ITEMS,
    "DepthModelError": ExitCode.USAGE,
    "CacheUnreachableError": ExitCode.UNREACHABLE,
    "DatasetError": ExitCode.USAGE,
    "TrainingConfigError": ExitCode.USAGE,
    "CheckpointError": ExitCode.USAGE,
    "MissingDepthError": ExitCode.FAILED,
    "NonFiniteLossError": ExitCode.FAILED,
    "FileNotFoundError": ExitCode.USAGE,
    "NotADirectoryError": ExitCode.USAGE,
    "IsADirectoryError": ExitCode.USAGE,
    "KeyboardInterrupt": ExitCode.INTERRUPTED,
}


def exit_code_of(error: BaseException) -> ExitCode:
    """Exit code for an error that ended a command.

    Args:
        error: any exception, of this package or of a package below.

    Returns:
        The code of the most specific known class; `ExitCode.FAILED` for an unknown one.
    """
    if isinstance(error, PipelineError):
        return error.exit_code
    for cls in type(error).__mro__:
        if cls.__name__ in _EXIT_CODES_BY_CLASS_NAME:
            return _EXIT_CODES_BY_CLASS_NAME[cls.__name__]
    return ExitCode.FAILED


def describe_error(error: BaseException) -> str:
    """One readable text for an error: its message, or its class when it has none."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # str(KeyError) would add quotes around the message
    return str(error) or type(error).__name__
