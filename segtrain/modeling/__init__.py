"""The network, its losses and targets: detector, mask branch, depth-guided head, teacher."""

from __future__ import annotations
