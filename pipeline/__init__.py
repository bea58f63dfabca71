"""The `pipeline` command: configs, run manifests, stages, data sets and reports."""

from __future__ import annotations
