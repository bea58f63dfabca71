"""Settings that must stand before the interpreter starts: glibc's allocator.

glibc gives every large tensor its own mmap and returns it to the kernel when it is freed, so each
training step pays page faults for memory it had a moment ago. Keeping that memory halves the time
of a CPU training step (docs/performance.md). glibc reads the settings once, at process start, so
the command starts itself again with them. `PIPELINE_NO_REEXEC=1` opts out; an allocator setting
that is already in the environment, or a preloaded allocator, is left alone.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence

MALLOC_SETTINGS: Mapping[str, str] = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
COMMANDS_WITH_TENSORS = frozenset(
    {"demo", "depth", "train", "eval", "predict", "label", "masks", "run", "resume"}
)


def restart_with_malloc_settings(arguments: Sequence[str]) -> None:
    """Replace this process by itself with the allocator settings, if that would change anything.

    Args:
        arguments: the command's arguments, without the program name.
    """
    if not needs_restart(arguments, os.environ, libc=platform.libc_ver()[0]):
        return
    environment = {**os.environ, **MALLOC_SETTINGS}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606 - the same command again


def needs_restart(arguments: Sequence[str], environment: Mapping[str, str], *, libc: str) -> bool:
    """Whether the command computes with tensors and the allocator is still at its defaults.

    Args:
        arguments: the command's arguments, without the program name.
        environment: environment variables of this process.
        libc: name of the C library, `glibc` where the settings mean something.
    """
    if libc != "glibc" or environment.get("PIPELINE_NO_REEXEC", "0") not in ("", "0"):
        return False
    if any(name in environment for name in MALLOC_SETTINGS) or "LD_PRELOAD" in environment:
        return False
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    return verb in COMMANDS_WITH_TENSORS and "--help" not in arguments
