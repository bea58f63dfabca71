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
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from depthcache.service.server import DEFAULT_PORT


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "operations.md").read_text()


@pytest.fixture(scope="module")
def container(page: str) -> str:
    """The container file."""
    return re.search(r"```dockerfile\n(.*?)```", page, re.DOTALL)[1]


def test_the_containers_steps_fit_the_project_and_each_other(
    container: str, repository: Path
) -> None:
    steps = dict(re.findall(r"^([A-Z]+) (.*)$", container.replace("\\\n", ""), re.MULTILINE))
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    python = re.fullmatch(r"python:([\d.]+)-slim", steps["FROM"])[1]
    assert python in SpecifierSet(project["requires-python"])
    wheels, target = steps["COPY"].split()
    assert f"--out-dir {Path(wheels).parent}\n" in (repository / "Makefile").read_text()
    assert f"{target}{Path(wheels).name}" in steps["RUN"]
    (extra,) = re.findall(r'\)\[(\w+)\]"', steps["RUN"])
    assert extra in project["optional-dependencies"]
    entry = json.loads(steps["ENTRYPOINT"])
    assert entry[0] in project["scripts"]
    assert steps["VOLUME"] == entry[3]
    assert f"useradd --uid {steps['USER']} " in steps["RUN"]
    # A new volume takes its owner from the image's folder; root's could not be written.
    assert f"install --directory --owner {steps['USER']} {steps['VOLUME']}" in steps["RUN"]
    assert int(steps["EXPOSE"]) == DEFAULT_PORT


@pytest.fixture
def image(container: str, repository: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A container runtime that answers, and the image that it built."""
    runtime = next((name for name in ("docker", "podman") if _succeeds(name, "info")), None)
    if runtime is None:
        pytest.skip("needs Docker or Podman: neither `docker info` nor `podman info` succeeds")
    base = re.search(r"^FROM (.*)$", container, re.MULTILINE)[1]
    if not _succeeds(runtime, "image", "inspect", base):
        pytest.skip(f"needs the base image, which tests do not fetch: {runtime} pull {base}")
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"needs pypi.org, where the build installs from: {error}")
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "build", "--wheel", "--python", sys.executable, "--out-dir", tmp_path / "dist"]
    subprocess.run(command, cwd=repository, check=True)
    (tmp_path / "Dockerfile").write_text(container)
    name = f"depthcache-test-{os.getpid()}"
    file = str(tmp_path / "Dockerfile")
    subprocess.run([runtime, "build", "--tag", name, "--file", file, str(tmp_path)], check=True)
    yield runtime, name
    subprocess.run([runtime, "rmi", "--force", name], check=True)


@pytest.mark.slow
def test_the_container_is_built_starts_and_is_healthy(image: tuple[str, str]) -> None:
    runtime, name = image
    options = ["--rm", "--detach", "--name", name, "--publish", f"127.0.0.1::{DEFAULT_PORT}"]
    subprocess.run([runtime, "run", *options, name], check=True)
    try:
        shown = subprocess.run(
            [runtime, "port", name, str(DEFAULT_PORT)], capture_output=True, text=True, check=True
        )
        address = shown.stdout.split()[-1]
        deadline = time.monotonic() + 60
        while not _answers(f"http://{address}/readyz"):
            assert time.monotonic() < deadline, "not ready after 60 seconds"
            time.sleep(0.2)
    finally:
        subprocess.run([runtime, "stop", name], check=True)


def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_the_containers_entry_point_serves_and_its_health_check_sees_it(
    page: str, container: str, repository: Path, tmp_path: Path
) -> None:
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
