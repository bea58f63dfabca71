"""Build step that puts configs/ and the demo depth model inside the wheel.

Both live at the top of the repository, where people look for them; an installed `pipeline` finds
the copies as resources of the package (`pipeline/resources.py`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

REPOSITORY = Path(__file__).parent
RESOURCES = {"configs": "configs", "data/demo-dpt": "demo-dpt", "data/labeller": "labeller"}


class BuildWithResources(build_py):
    """Copy the resource folders into `pipeline/_resources` of the build."""

    def run(self) -> None:
        """Build the packages, then add the resources (not in editable installs)."""
        super().run()
        if self.editable_mode:
            return
        for source, name in RESOURCES.items():
            target = Path(self.build_lib) / "pipeline" / "_resources" / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                REPOSITORY / source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pt")
            )


setup(cmdclass={"build_py": BuildWithResources})
