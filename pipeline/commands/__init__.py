"""One file per verb or group of verbs. They parse, call the packages, and write one result."""

from __future__ import annotations
