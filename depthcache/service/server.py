"""Run the service: sockets, TLS, signals, one server per root."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from depthcache.service.access import Scope, load_tokens
from depthcache.service.gate import RequestLimits
from depthcache.service.roots import STATE_NAME, BucketRoot, LocalRoot, ServedRoot

DEFAULT_PORT = 8787
_SHUTDOWN_SECONDS = 30
_LOCK_NAME = "lock"

log = logging.getLogger("depthcache.service")


def serve(
    root: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    tokens_file: str | Path | None = None,
    read: Literal["anonymous", "token"] = "anonymous",
    max_bytes: int = 64 * 2**20,
    size_cap_bytes: int | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    request_rate: float = 0.0,
    max_concurrent_uploads: int = 8,
    work: str | Path | None = None,
) -> None:
    """Serve a cache root until SIGTERM or SIGINT; requests under way are finished first.

    Args:
        root: a local folder, made when absent, or an s3:// or gs:// address.
        host: address to listen on; only this machine can reach the default.
        port: TCP port; 0 lets the system choose (the log names it).
        tokens_file: TOML file of tokens, see `access.py`; DEPTHCACHE_TOKENS adds more.
        read: whether reading needs a token; writing always does.
        max_bytes: largest body of one upload request (a segment's objects go in several).
        size_cap_bytes: evict the least recently used unpinned segments beyond this size.
        tls_cert: certificate chain, PEM; with tls_key.
        tls_key: its private key, PEM.
        request_rate: requests a second for each client, 0 = no limit.
        max_concurrent_uploads: object bodies received at a time.
        work: folder for uploads to a bucket while they are under way; None chooses one in the
            user's cache folder. Keep it: it lets uploads go on after a restart.

    Raises:
        ValueError: a setting is not usable; the message names it.
        OSError: the root is not writable, the port is taken, or another server has the root.
    """
    import uvicorn

    from depthcache.service.app import ServiceSettings, build_service
    from depthcache.service.connections import GuardedProtocol

    if read not in ("anonymous", "token"):
        raise ValueError(f"read must be 'anonymous' or 'token', got {read!r}")
    if (tls_cert is None) != (tls_key is None):
        raise ValueError("tls_cert and tls_key must be given together")
    if max_bytes < 2**16:
        raise ValueError(f"max_bytes must be at least 65536, got {max_bytes}")
    tokens = load_tokens(Path(tokens_file) if tokens_file else None, os.environ)
    if read == "token" and not tokens:
        raise ValueError("read='token' needs tokens: give tokens_file or set DEPTHCACHE_TOKENS")
    configure_logging()
    if not any(Scope.WRITE in token.scopes for token in tokens):
        log.warning("no token may write: uploads are refused")
    if tls_cert is None and tokens and not _is_loopback(host):
        log.warning("listening on %s without TLS: tokens cross the network in clear", host)
    settings = ServiceSettings(
        tokens=tokens,
        anonymous_read=read == "anonymous",
        limits=RequestLimits(
            max_bytes=max_bytes,
            request_rate=request_rate,
            max_concurrent_uploads=max_concurrent_uploads,
        ),
        size_cap_bytes=size_cap_bytes,
    )
    served, lock_folder = _open_root(root, work)
    with _exclusive(lock_folder, root):
        config = uvicorn.Config(
            build_service(served, settings),
            host=host,
            port=port,
            loop="asyncio",  # uvloop saves nothing here, and lacks sendfile
            http=GuardedProtocol,
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            timeout_keep_alive=15,
            limit_concurrency=1000,
            ssl_certfile=tls_cert,
            ssl_keyfile=tls_key,
        )
        uvicorn.Server(config).run()


def configure_logging() -> None:
    """Log lines, and one JSON document for each request, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    for name in ("depthcache.service", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(message)s"))
    access = logging.getLogger("depthcache.service.access")
    access.handlers = [lines]
    access.propagate = False


def _open_root(root: str | Path, work: str | Path | None) -> tuple[ServedRoot, Path]:
    """The root, and the local folder whose lock keeps a second server away."""
    text = str(root)
    if text.startswith(("s3://", "gs://")):
        if work is None:
            caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            work = caches / "depthcache-service" / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = Path(work)
        folder.mkdir(parents=True, exist_ok=True)
        return BucketRoot(text, folder), folder
    if "://" in text and not text.startswith("file://"):
        raise ValueError(f"a folder, s3:// or gs:// address can be served, not {text}")
    folder = Path(text.removeprefix("file://"))
    if not folder.is_dir():
        # A service may begin with nothing; but a mistyped root looks the same to its readers.
        folder.mkdir(parents=True, exist_ok=True)
        log.warning(
            "new, empty cache root %s: there was no such folder; if it should hold maps, stop and "
            "check the spelling",
            folder.resolve(),
        )
    folder = folder.resolve()
    return LocalRoot(folder), folder / STATE_NAME


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _exclusive(folder: Path, root: str | Path) -> Iterator[None]:
    """Keep a second server from the same root: both would evict and publish."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, f"another server serves the root {root}") from None
        yield
    finally:
        os.close(descriptor)
