"""One process at a time in a local folder. The kernel lets go when the process dies."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder that exists; waits as long as another process holds it.

    On file systems without locks this does nothing.

    Raises:
        FileNotFoundError: the holder that was waited for removed the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another run is writing %s; waiting for its end", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start one run at a time", folder, error)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise FileNotFoundError(f"{folder} was replaced")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def hold_if_free(folder: Path) -> Iterator[bool]:
    """Hold a folder unless another process does; gives whether it is held now."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except BlockingIOError:
            is_free = False
        except OSError:
            is_free = True  # no locks here, so nobody holds one
        yield is_free
    finally:
        os.close(descriptor)
