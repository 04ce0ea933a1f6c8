"""Batch normalisation of a fixed number of rows of which only some count."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are those of the rows that count.

    How many rows are chosen on the device is not known to the host without waiting, so tables have room for all, and
    a mask says which are filled. The other rows are normalised too; nobody should read them.
    """

    running_mean: Tensor
    running_var: Tensor

    def forward(self, rows: Tensor, where: Tensor | None = None) -> Tensor:
        """Rows (N, F), mask (N,) bool -> (N, F) float32; without a mask, or not in training, by running statistics.

        Fewer than two rows leave the running statistics as they are.
        """
        if where is None or not self.training:
            mean, variance = self.running_mean, self.running_var
        else:
            mean, variance = self._statistics(rows, where)
        return (rows - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias

    def _statistics(self, rows: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        weights = where.to(rows.dtype).unsqueeze(1)
        count = weights.sum().clamp_min(1)
        mean = (rows * weights).sum(dim=0) / count
        variance = ((rows - mean).square() * weights).sum(dim=0) / count
        with torch.no_grad():
            momentum = torch.where(count > 1, self.momentum or 0.0, 0.0)
            unbiased = variance * count / (count - 1).clamp_min(1)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased, momentum)
        return mean, variance
