"""The largest connected part of a structure in pseudo-labels, found on the host while the device goes on working."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import ndimage
from torch import Tensor

from labelwise.components.connected import keep_largest_component


class LabelsOnHost:
    """Label maps on their way to the host, and back without the smaller parts of structures.

    The parts of a mask are counted one after the other, which a GPU does badly. The copy is only begun here: queue
    the work that needs no labels (the student's forward pass) before asking for `largest_parts`. The host then waits
    for the copy alone, and counts while the device is busy.

    Shapes
        labels      (B, *S)  integers in [0, 255]
    """

    def __init__(self, labels: Tensor):
        self.device = labels.device
        self.arrived: torch.cuda.Event | None = None
        small = labels.to(torch.uint8, copy=True)
        if labels.is_cuda:
            self.copy = torch.empty(small.shape, dtype=torch.uint8, pin_memory=True)
            self.copy.copy_(small, non_blocking=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record(torch.cuda.current_stream(labels.device))
        else:
            self.copy = small.cpu()

    def largest_parts(self, classes: Sequence[Sequence[int]]) -> Tensor:
        """The labels (B, *S) int64 on their device again; `classes` names those to clean in each case. Call it once."""
        if self.arrived is not None:
            self.arrived.synchronize()
        for case, chosen in zip(self.copy.numpy(), classes, strict=True):
            for index, box in enumerate(ndimage.find_objects(case), start=1):
                if box is not None and index in chosen:
                    keep_largest_component(case[box], index)
        return self.copy.to(self.device, non_blocking=True).long()
