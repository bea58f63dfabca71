"""`scripts/setup` does nothing when all is there, and notices a checkout that was moved."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PINS = ("pyproject.toml", "constraints.txt", "requirements-detectron2.txt")
# Passes for Python, but makes no environment, which would be filled from the network.
STUB = '#!/bin/sh\n[ "$1" = - ] || { echo "$@"; exit 7; }\n'


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A checkout whose `.venv` was set up."""
    folder = tmp_path / "my checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in (*PINS, "scripts/setup"):
        shutil.copy(repository / name, folder / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    files = [folder / name for name in (*PINS, "scripts/setup")]
    pins = b"".join(path.read_bytes() for path in files)
    stamp = subprocess.run(["cksum"], input=pins, capture_output=True, check=True).stdout
    (folder / ".venv" / ".setup-stamp").write_bytes(stamp.rstrip(b"\n"))
    return folder


def _set_up(folder: Path) -> subprocess.CompletedProcess[str]:
    python = folder.parent / "python"
    python.write_text(STUB)
    python.chmod(0o755)
    return subprocess.run(
        [folder / "scripts" / "setup"],
        env={"PYTHON": str(python), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_is_done_again(checkout: Path) -> None:
    link = checkout.parent / "link"
    link.symlink_to(checkout)
    for folder in (checkout, link):
        done = _set_up(folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("change", [shutil.move, shutil.copytree])
def test_the_environment_of_a_moved_or_copied_checkout_is_made_anew(
    checkout: Path, change: object
) -> None:
    other = checkout.parent / "elsewhere"
    change(checkout, other)
    done = _set_up(other)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (7, "-m venv .venv")
    assert f".venv was made as {checkout}/.venv" in done.stdout
    assert not (other / ".venv").exists()
    assert not checkout.exists() or (checkout / ".venv").is_dir()


def test_new_pins_are_installed_into_the_environment_that_is_there(checkout: Path) -> None:
    with (checkout / "constraints.txt").open("a") as file:
        file.write("added==1\n")
    done = _set_up(checkout)
    assert done.returncode != 0  # there is no pip in it
    assert "made anew" not in done.stdout
    assert (checkout / ".venv" / ".setup-stamp").is_file()
