"""AP of detections in COCO form, for code that brings a detector of its own.

The public face of `segtrain.use.evaluation`, as `segtrain.losses` is that of the losses.
"""

from __future__ import annotations

from segtrain.use.evaluation import measure_average_precision

__all__ = ["measure_average_precision"]
