"""PIPO-FAN: a pyramid of images goes in, a pyramid of predictions comes out, and the case decides how they mix.

Paper      Fang & Yan, IEEE Transactions on Medical Imaging 39(11), 2020, https://arxiv.org/abs/2001.00208
Spec       docs/methods/pipo_fan.md: where paper and official code differ, and what we follow

    for every batch (x, y, A) of cases with annotated structures A:
        f_s = features of scale s, from the image at all sizes                   s = coarse .. fine
        a_s = enlarge(head_s(blocks_s(f_s)))                                     logits of scale s, at full size
              blocks_s make every scale pass equally many convolutions
        g_s = mean + max over the voxels of attention(a_s)                       one number per case and scale
        z   = sum over s of softmax_s(g) a_s
        q(z): un-annotated structures hide in the background;   TAL(z) = mean of -log q_y
        minimise  TAL(z) + deep_supervision * mean over s of TAL(a_s)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.losses.partial import target_adaptive_loss
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.methods.pipo_fan.network import PipoFanSettings, residual_chain
from labelwise.nets.parts import Interpolate, brick
from labelwise.types import Batch, Progress


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PipoFanConfig:
    deep_supervision: NonNegativeFloat = (
        0.5  # weight of the loss of the single scales; stands for the first stage
    )
    dice_weight: NonNegativeFloat = 0.0  # of the Dice of the annotated structures, beside each cross-entropy


class PyramidInPyramidOut(Method):
    card = Card(
        title="PIPO-FAN",
        paper="https://arxiv.org/abs/2001.00208",
        idea="Image and prediction are pyramids; cases weight the scales, un-annotated structures may be background.",
        learns_from=frozenset({"full", "partial"}),
        nets=frozenset({"pipofan"}),
    )
    Config = PipoFanConfig

    def __init__(self, nets: NetFactory, config: PipoFanConfig):
        super().__init__()
        self.config = config
        self.network = ScaleFusion(nets)

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        maps = self.network.maps(batch.images)
        return {
            "supervised": self.loss(self.network.weighting(maps), batch),
            "deep_supervision": self.config.deep_supervision * self.loss_of_scales(maps, batch),
        }

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The target adaptive loss of one map of logits (B, C, *S)."""
        return target_adaptive_loss(
            logits, batch.labels, batch.annotated, dice_weight=self.config.dice_weight
        )

    def loss_of_scales(self, maps: Sequence[Tensor], batch: Batch) -> Tensor:
        """Its mean over the scales; 0 without work where its weight is 0."""
        if not self.config.deep_supervision:
            return maps[-1].sum() * 0
        return torch.stack([self.loss(logits, batch) for logits in maps]).mean()

    def predictor(self) -> nn.Module:
        return Softmax(self.network)


class ScaleFusion(nn.Module):
    """The whole network: one map of logits for each scale, and their weighted sum.

    Shapes
        forward     (B, M, *S) -> (B, C, *S) float32
    """

    def __init__(self, nets: NetFactory):
        super().__init__()
        settings = cast(PipoFanSettings, nets.settings)
        self.encoder = nets.encoder()
        self.decoder = nets.decoder()
        # The decoder's stages between a scale and the finest one are made up for by residual blocks of their widths.
        channels = (self.encoder.channels[-1], *self.decoder.channels)
        enlarge = Interpolate(nets.dims, linear=True, align_corners=True)
        self.outputs = nn.ModuleList(
            nn.Sequential(
                residual_chain(channels[scale:], nets.dims, settings.norm),
                nets.head(channels[-1], nets.num_classes),
                *(enlarge for _ in channels[scale + 1 :]),
            )
            for scale in range(len(channels))
        )
        self.weighting = ScaleWeighting(nets.dims, nets.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.weighting(self.maps(images)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Images (B, M, *S) -> logits (B, C, *S) of each scale, coarse to fine."""
        features = self.encoder(images)
        scales = [features[-1], *self.decoder(features)]
        return [output(scale) for output, scale in zip(self.outputs, scales, strict=True)]


class ScaleWeighting(nn.Module):
    """Sums the scales' logits with weights that follow from the logits themselves.

    One small network judges all scales, in one call: its batch norms see them as one batch.

    Shapes
        forward     scales x (B, C, *S) -> (B, C, *S)
        scores      (scales * B, C, *S) -> (scales * B,)
    """

    def __init__(self, dims: int, num_classes: int):
        super().__init__()
        convolution, batch_norm = brick("convolution", dims), brick("batch", dims)
        self.attention = nn.Sequential(
            batch_norm(num_classes),
            nn.ReLU(inplace=True),
            convolution(num_classes, 1, 1),
            batch_norm(1),
            nn.ReLU(inplace=True),
            convolution(1, 1, 3, padding=1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(maps))
        weights = self.scores(stacked.flatten(0, 1)).view(stacked.shape[:2]).softmax(dim=0)
        return (weights.view(*weights.shape, *(1 for _ in stacked.shape[2:])) * stacked).sum(dim=0)

    def scores(self, logits: Tensor) -> Tensor:
        """How much each map counts, in float32: the mean of its attention over all voxels, plus the largest."""
        with torch.autocast(device_type=logits.device.type, enabled=False):
            attention = cast(Tensor, self.attention(logits)).flatten(1)
            return attention.mean(dim=1) + attention.amax(dim=1)
