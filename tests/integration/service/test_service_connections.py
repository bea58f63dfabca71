"""Slow, stalled, encrypted and ending connections, and memory under made-up requests."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from depthcache.exchange.transfer import push_cache

QUICK = """
import depthcache.service.connections as connections
connections.HEAD_SECONDS = 1.0
connections.STALLED_READER_SECONDS = 1.0
import depthcache.service.gate as gate
limits = gate.RequestLimits
def quick(**settings):
    return limits(**{**settings, "body_timeout_seconds": 1.0})
import depthcache.service.server as server
server.RequestLimits = quick
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, make_cache: Callable[..., Path]) -> Path:
    return make_cache(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def quick_service(start_service: Callable[..., Any], cache: Path) -> Any:
    """A service whose time limits are one second."""
    return start_service(cache.parent, QUICK)


def _drip(port: int, data: bytes, seconds: float) -> bytes:
    """Send a byte every 0.2 seconds; returns what came back until the server hung up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        stop = time.monotonic() + seconds
        for number in range(len(data)):
            try:
                connection.sendall(data[number : number + 1])
                connection.settimeout(0.2)
                answer = connection.recv(4096)
            except TimeoutError:
                if time.monotonic() > stop:
                    raise AssertionError("the server still listens") from None
                continue
            except (ConnectionResetError, BrokenPipeError):
                return b""
            return answer
    raise AssertionError("all was sent")


def test_a_head_that_trickles_in_is_cut_off(quick_service: Any) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"x" * 200
    assert _drip(quick_service.port, head, 20) == b""


def test_the_next_head_on_a_kept_connection_has_the_same_limit(quick_service: Any) -> None:
    with socket.create_connection(("127.0.0.1", quick_service.port), timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /hea")
        rest = b""
        try:
            while piece := connection.recv(4096):
                rest += piece
        except ConnectionResetError:
            pass
        assert not rest.removeprefix(b'{"status":"ok"}')


def test_a_body_that_trickles_in_is_refused(quick_service: Any, cache: Path) -> None:
    head = f"POST /api/v1/caches/{cache.name}/lookup HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n"
    with socket.create_connection(("127.0.0.1", quick_service.port), timeout=20) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n")
        connection.settimeout(0.3)
        answer = b""
        for _ in range(60):  # far more often than once in the second that a piece may take
            try:
                connection.sendall(b" ")
                answer = connection.recv(4096)
            except TimeoutError:
                continue
            break
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_reader_that_stops_reading_is_let_go(
    start_service: Callable[..., Any], tmp_path: Path, make_cache: Callable[..., Path]
) -> None:
    import hashlib

    from depthcache.format.seal import make_seal, summarise_object

    folder = make_cache(tmp_path)
    segment = min(p.parent for p in folder.glob("segments/*/sealed.json"))
    large = os.urandom(2**20) * 24
    (segment / "large").write_bytes(large)
    objects = {
        p.relative_to(segment).as_posix(): summarise_object(p.read_bytes())
        for p in segment.rglob("*")
        if p.is_file() and p.name != "sealed.json"
    }
    (segment / "sealed.json").write_bytes(make_seal(objects, {}))
    service = start_service(tmp_path, QUICK)
    path = f"/{(segment / 'large').relative_to(tmp_path)}"
    with service.client() as client:  # by the kernel's copy, in full
        answer = client.get(path)
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(large).digest()
    descriptors = Path(f"/proc/{service.process.pid}/fd")

    def is_open() -> bool:
        targets = []
        for descriptor in descriptors.iterdir():
            try:
                targets.append(str(descriptor.readlink()))
            except FileNotFoundError:
                continue
        return str(segment / "large") in targets

    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
        assert is_open()
        deadline = time.monotonic() + 30
        while is_open():
            assert time.monotonic() < deadline, "the object is still open"
            time.sleep(0.1)


def test_pieces_of_an_upload_beyond_the_limit_are_refused_and_the_client_sends_smaller_ones(
    start_service: Callable[..., Any], cache: Path, tmp_path: Path, secrets: dict[str, str]
) -> None:
    service = start_service(tmp_path, max_bytes=2**16)
    with service.client("writer") as client:
        path = f"/api/v1/uploads/{'0' * 32}/objects/x"
        assert client.put(path, content=b"x" * (2**16 + 1)).status_code == 413
    assert push_cache(cache.parent, service.url, secrets["writer"]).num_segments == 2


def test_uploads_at_once_are_limited(
    start_service: Callable[..., Any], cache: Path, tmp_path: Path, secrets: dict[str, str]
) -> None:
    service = start_service(tmp_path, max_concurrent_uploads=1)
    head = (
        f"PUT /api/v1/uploads/{'0' * 32}/objects/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        f"Authorization: Bearer {secrets['writer']}\r\n\r\n"
    )
    segment = min(p.parent for p in cache.glob("segments/*/sealed.json"))
    body = {
        "fingerprint": (cache / "fingerprint.json").read_text(),
        "sealed": (segment / "sealed.json").read_text(),
    }
    with service.client("writer") as client:
        begin = f"/api/v1/caches/{cache.name}/segments/{segment.name}/upload"
        upload = client.post(begin, json=body).json()
        shard = max(upload["missing"], key=lambda missing: missing["size"])
        head = head.replace("0" * 32, upload["upload"]).replace("/x ", f"/{shard['path']} ")
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(head.encode() + b"12345")
            refused = None
            for _ in range(50):
                metrics = client.get("/metrics").text
                if "depthcache_open_uploads 1.0" in metrics:
                    refused = client.put(f"/api/v1/uploads/{upload['upload']}/objects/zarr.json")
                    break
                time.sleep(0.05)
    assert refused is not None
    assert (refused.status_code, refused.json()["error"]) == (429, "too-many-uploads")
    assert refused.headers["Retry-After"] == "1"
    # The client waits as it is told, and comes through.
    assert push_cache(cache.parent, service.url, secrets["writer"]).num_segments == 2


def test_guessing_tokens_counts_against_the_rate(
    start_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = start_service(tmp_path, request_rate=2.0)
    with service.client() as client:
        client.headers["Authorization"] = "Bearer wrong-secret-0123456789"
        statuses = [client.get("/metrics").status_code for _ in range(20)]
    assert set(statuses) == {401, 429}


def _make_certificate(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "depth cache test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


def test_tls_clients_verify_the_certificate_and_get_the_same_bytes(
    start_service: Callable[..., Any], cache: Path, tmp_path: Path, secrets: dict[str, str]
) -> None:
    certificate, key = _make_certificate(tmp_path)
    remote = tmp_path / "remote"
    remote.mkdir()
    service = start_service(remote, tls_cert=str(certificate), tls_key=str(key))
    assert service.url.startswith("https://")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{service.url}/healthz")
    # The commands take the authority from the environment, as OpenSSL does.
    environment = {
        **os.environ,
        "SSL_CERT_FILE": str(certificate),
        "PIPELINE_CACHE_TOKEN": secrets["writer"],
    }
    commands = [
        ["push", str(cache.parent), service.url],
        ["pull", service.url, str(tmp_path / "copy")],
        ["info", service.url],
    ]
    for command in commands:
        words = [sys.executable, "-m", "pipeline.cli", "cache", *command]
        done = subprocess.run(words, check=False, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for path in cache.rglob("*"):
        if path.is_file():
            copied = tmp_path / "copy" / path.relative_to(cache.parent)
            assert copied.read_bytes() == path.read_bytes()
    assert "without TLS" not in service.log.read_text()


def test_a_stopping_server_finishes_the_request_under_way(
    start_service: Callable[..., Any], cache: Path, tmp_path: Path, secrets: dict[str, str]
) -> None:
    service = start_service(tmp_path)
    segment = min(p.parent for p in cache.glob("segments/*/sealed.json"))
    shard = max((p for p in segment.glob("maps/**/*") if p.is_file()), key=os.path.getsize)
    name, data = shard.relative_to(segment).as_posix(), shard.read_bytes()
    body = {
        "fingerprint": (cache / "fingerprint.json").read_text(),
        "sealed": (segment / "sealed.json").read_text(),
    }
    half = len(data) // 2
    began, answers = threading.Event(), []

    def pieces() -> Any:
        yield data[:half]
        began.set()
        time.sleep(1.0)
        yield data[half:]

    with service.client("writer") as client:
        begin = f"/api/v1/caches/{cache.name}/segments/{segment.name}/upload"
        upload = client.post(begin, json=body).json()["upload"]

        def put() -> None:
            path = f"/api/v1/uploads/{upload}/objects/{name}"
            answers.append(client.put(path, content=pieces()))

        sender = threading.Thread(target=put)
        sender.start()
        assert began.wait(20)
        status = service.stop()
        sender.join(timeout=60)
    assert answers[0].json()["complete"]
    assert status in (0, -15)
    assert (tmp_path / ".staging" / f"upload-{upload}" / "segment" / name).read_bytes() == data
    service.start()
    assert push_cache(cache.parent, service.url, secrets["writer"]).num_segments == 2


def test_memory_stays_flat_under_thousands_of_requests(
    start_service: Callable[..., Any], cache: Path, secrets: dict[str, str]
) -> None:
    service = start_service(cache.parent.parent / "empty")
    status = Path(f"/proc/{service.process.pid}/status")

    def resident_kib() -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found.group(1))

    def bother(num_rounds: int) -> None:
        with service.client("admin") as client:
            for number in range(num_rounds):
                client.get(f"/{number}/absent")
                client.get(f"/api/v1/caches/{number}/maps/{number:064x}.npy")
                client.post(
                    f"/api/v1/caches/c{number}/lookup", json={"digests": [f"{number:064x}"]}
                )
                client.post(
                    f"/api/v1/caches/{cache.name}/segments/s{number}/upload",
                    json={"fingerprint": "x" * 10_000, "sealed": "[" * 10_000},
                )
                client.put(f"/api/v1/uploads/{number:032x}/objects/x", content=b"x" * 50_000)

    bother(100)
    before = resident_kib()
    bother(400)
    assert resident_kib() - before < 16 * 1024
