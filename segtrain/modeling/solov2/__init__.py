"""SOLOv2: masks from the cells of a grid, without boxes (arXiv 2003.10152)."""

from __future__ import annotations
