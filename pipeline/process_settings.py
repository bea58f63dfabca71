"""Settings that must stand before the interpreter starts: glibc's allocator, waiting threads.

glibc gives every large tensor its own mmap and returns it to the kernel when it is freed, so each
training step pays page faults for memory it had a moment ago. Keeping that memory halves the time
of a CPU training step. OpenMP's threads wait for each other by spinning, long enough that on a
machine with other work they take the core from the very thread that is waited for; here they soon
sleep (docs/notes/training-speed.md has both measured). Both are read once, at process start, so
the command starts itself again with them. `PIPELINE_NO_REEXEC=1` opts out; a setting that is
already in the environment, or a preloaded allocator, is left alone.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence

MALLOC_SETTINGS: Mapping[str, str] = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
# Turns of a waiting loop before a thread sleeps, tens of microseconds; GNU waits for 300,000.
THREAD_SETTINGS: Mapping[str, str] = {"GOMP_SPINCOUNT": "10000"}
# Whoever sets one of these has chosen.
THREAD_CHOICES = (*THREAD_SETTINGS, "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
COMMANDS_WITH_TENSORS = frozenset(
    {"demo", "depth", "train", "eval", "predict", "label", "masks", "run", "resume"}
)


def restart_with_settings(arguments: Sequence[str]) -> None:
    """Replace this process by itself with the settings, if that would change anything.

    Args:
        arguments: the command's arguments, without the program name.
    """
    missing = missing_settings(arguments, os.environ, libc=platform.libc_ver()[0])
    if not missing:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # Until the new process can answer them; the kernel hands what is held back over to it.
    held = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        # The same command again.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})  # noqa: S606
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


def missing_settings(
    arguments: Sequence[str], environment: Mapping[str, str], *, libc: str
) -> dict[str, str]:
    """What a command that computes with tensors wants and its environment lacks.

    Args:
        arguments: the command's arguments, without the program name.
        environment: environment variables of this process.
        libc: name of the C library, `glibc` where the allocator's settings mean something.
    """
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    if verb not in COMMANDS_WITH_TENSORS or "--help" in arguments:
        return {}
    if environment.get("PIPELINE_NO_REEXEC", "0") not in ("", "0"):
        return {}
    missing: dict[str, str] = {}
    if not any(name in environment for name in THREAD_CHOICES):
        missing |= THREAD_SETTINGS
    is_chosen = "LD_PRELOAD" in environment or any(name in environment for name in MALLOC_SETTINGS)
    if libc == "glibc" and not is_chosen:
        missing |= MALLOC_SETTINGS
    return missing
