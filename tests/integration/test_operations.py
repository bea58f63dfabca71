"""What docs/operations.md tells an operator to deploy: the container's commands and the unit."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "operations.md").read_text()


def test_the_containers_entry_point_serves_and_its_health_check_sees_it(
    page: str, repository: Path, tmp_path: Path
) -> None:
    container = re.search(r"```dockerfile\n(.*?)```", page, re.DOTALL)[1]
    words = json.loads(re.search(r"^ENTRYPOINT (.*)$", container, re.MULTILINE)[1])
    check = re.search(r'^HEALTHCHECK CMD python -c "(.*)"$', container, re.MULTILINE)[1]
    port = re.search(r"^EXPOSE (\d+)$", container, re.MULTILINE)[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = str(probe.getsockname()[1])
    assert port in check
    assert words[0] == "pipeline"
    (tmp_path / "cache").mkdir()
    words = [word.replace("/cache", str(tmp_path / "cache")) for word in words[1:]]
    environment = os.environ | {"PYTHONPATH": str(repository), "HOME": "/nonexistent"}
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "pipeline", *words, "--port", free],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        healthy = False
        while not healthy and time.monotonic() < deadline:
            assert server.poll() is None, "the server ended"
            healthy = (
                subprocess.run(
                    [sys.executable, "-c", check.replace(port, free)],
                    stderr=subprocess.DEVNULL,
                    check=False,
                ).returncode
                == 0
            )
        assert healthy
        server.terminate()
        # Interrupted, as every command says it; the unit must not take that for a failure.
        assert server.wait(timeout=40) == 130
        assert "SuccessExitStatus=130" in page
    finally:
        server.kill()
        server.wait()


def test_the_unit_is_one_that_systemd_takes(page: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (Debian: apt-get install systemd)")
    unit = re.search(r"```ini\n(.*?)```", page, re.DOTALL)[1]
    program = re.search(r"^ExecStart=(\S+)", unit, re.MULTILINE)[1]
    path = tmp_path / "depthcache.service"
    path.write_text(unit.replace(program, sys.executable))  # verify wants an existing program
    finished = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, "")
