"""A checkout stays small enough to be carried to a bare machine, such as one with a GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

LIMIT_MIB = 64


def test_tracked_files_stay_small(repository: Path) -> None:
    if shutil.which("git") is None or not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, check=True, capture_output=True
    ).stdout
    paths = [repository / name.decode() for name in listed.split(b"\0") if name]
    sizes = {path: path.lstat().st_size for path in paths if path.is_symlink() or path.exists()}
    largest = sorted(sizes, key=sizes.__getitem__)[-3:]
    assert sizes
    assert sum(sizes.values()) < LIMIT_MIB * 2**20, f"the largest: {[str(p) for p in largest]}"
