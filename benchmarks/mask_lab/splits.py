"""Which scenes of the miniature belong to which split, for the laboratory and the table."""

from __future__ import annotations

SEEDS = {"train": 910001, "choose": 910002, "test": 910003}
"""Settings are chosen on `choose`; nothing but tables is made from `test`."""
NUM_SCENES = {"train": 300, "choose": 80, "test": 150}
