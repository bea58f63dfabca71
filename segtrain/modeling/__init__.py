"""The network, its losses and its targets: detector, mask branch, depth-guided head, distillation."""

from __future__ import annotations
