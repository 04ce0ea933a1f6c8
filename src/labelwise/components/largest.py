"""The largest connected part of an organ in pseudo-labels, found on the host while the device goes on working."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from labelwise.types import Array


class LabelsOnHost:
    """Label maps on their way to the host, and back without the smaller parts of organs.

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
            self.arrived = torch.cuda.Event()
            self.arrived.record(torch.cuda.current_stream(labels.device))
        else:
            self.copy = small.cpu()

    def largest_parts(self, classes: Sequence[Sequence[int]]) -> Tensor:
        """The labels (B, *S) int64 on their device again; `classes` names those to clean in each case. Call it once."""
        if self.arrived is not None:
            self.arrived.synchronize()
        for case, chosen in zip(self.copy.numpy(), classes, strict=True):
            keep_largest(case, chosen)
        return self.copy.to(self.device, non_blocking=True).long()


def keep_largest(labels: Array, classes: Sequence[int]) -> None:
    """Turn into background, in place, all parts of a class but the largest; of equal parts the first one stays.

    Voxels that touch by a corner are connected (26 neighbours in 3D, 8 in 2D). A class without a voxel stays so.

    Shapes
        labels      (*S)  unsigned integers
    """
    neighbours = ndimage.generate_binary_structure(labels.ndim, labels.ndim)
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or index not in classes:
            continue
        mask = labels[box] == index
        parts, count = ndimage.label(mask, neighbours)
        if count < 2:
            continue
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        largest = sizes == sizes.max()
        kept = parts.flat[largest[parts].argmax()]  # whatever order the parts are numbered in
        labels[box][mask & (parts != kept)] = 0
