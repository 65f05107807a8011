"""Makes ``torchvision`` importable, which both loaders of PyTorch import.

PyPI's build of it is for GPUs. Beside a build of PyTorch without them, its operators do not load, and the import ends
at the first one. Nothing that is measured uses an operator, so declaring the two that are asked for will do.
"""

from __future__ import annotations

import sys

import torch

try:
    import torchvision
except RuntimeError:
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    for operator in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
        )
    import torchvision

__all__ = ["torchvision"]
