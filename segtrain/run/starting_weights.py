"""Whether the weights of `train.init_checkpoint` can be had, told without torch."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from segtrain.errors import CheckpointError

# As detectron2's handler of this prefix, which cannot be imported without torch.
_MODEL_ZOO = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")
_PORTS = {"http": 80, "https": 443}
_SECONDS_TO_CONNECT = 2.0


def require_starting_weights(source: str | None) -> None:
    """Refuse weights that are not on this machine and cannot be fetched.

    Args:
        source: a file, an address, or None.

    Raises:
        CheckpointError: there is no such file, or nobody answers at the address within 2 seconds.
    """
    if not source:
        return
    if "://" not in source:
        if not Path(source).is_file():
            raise absent_weights(source)
        return
    prefix, zoo = _MODEL_ZOO
    address = zoo + source.removeprefix(prefix) if source.startswith(prefix) else source
    if urlsplit(address).scheme not in _PORTS or _downloaded_file(address).is_file():
        return
    if problem := _find_connection_problem(address):
        raise unfetched_weights(source, problem)


def absent_weights(source: str) -> CheckpointError:
    """The refusal of a file that is not there."""
    return CheckpointError(
        f"train.init_checkpoint={source}: there is no such file; put it there or set "
        "another (docs/training.md says which), or null to start from random weights"
    )


def unfetched_weights(source: str, reason: object) -> CheckpointError:
    """The refusal of an address from which nothing comes."""
    return CheckpointError(
        f"train.init_checkpoint={source} cannot be fetched: {reason}. Set it to a file on this "
        "machine, or to null to start from random weights"
    )


def _downloaded_file(address: str) -> Path:
    """Where iopath keeps what it fetched from an address."""
    from iopath.common.file_io import get_cache_dir

    return Path(get_cache_dir()) / urlsplit(address).path.lstrip("/")


def _find_connection_problem(address: str) -> str | None:
    """Why the server, or the proxy in front of it, is not reached; None when it is."""
    server = urlsplit(address)
    proxy = urllib.request.getproxies().get(server.scheme)
    if proxy and not urllib.request.proxy_bypass(server.netloc):
        server = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host, port = server.hostname, server.port or _PORTS.get(server.scheme)
    if host is None or port is None:
        return None
    try:
        asyncio.run(asyncio.wait_for(_connect(host, port), _SECONDS_TO_CONNECT))
    except TimeoutError:
        return f"{host} does not answer within {_SECONDS_TO_CONNECT:.0f} seconds"
    except OSError as error:
        return f"{host} is not reached: {error.strerror or error}"
    return None


async def _connect(host: str, port: int) -> None:
    # Several addresses are tried side by side: one that is not reached need not mean the others.
    _, writer = await asyncio.open_connection(host, port, happy_eyeballs_delay=0.25)
    writer.close()
