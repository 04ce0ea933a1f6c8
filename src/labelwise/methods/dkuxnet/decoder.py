"""The k-means mask transformer: queries are cluster centres, and attention assigns each voxel to one of them.

    for every map x, coarse to fine, and every layer of it:
        p, s = projections of the voxels x and of the queries c
        R    = normalised similarity of s and of an embedding of p             (N queries x voxels)
        c   += projected sum of the values of the voxels that are nearest to each query      (k-means step)
        c    = c + self-attention of s,   c = c + two-layer perceptron
    masks R of the last queries with the embedding of the finest map

The assignment is hard and passes no gradient, so the masks R of a layer learn from a loss on themselves only:
`Clusters.layers` holds them.

Source
    Yu et al., ECCV 2022 (kMaX-DeepLab), https://arxiv.org/abs/2207.04044, carried to 3D for DKUXNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.nets.parts import brick

KMaxNorm = Literal["group", "batch"]
Update = Literal["sum", "mean"]

WIDTH_MULTIPLE = 16  # of the queries: 8 heads, whose keys have half the depth of their values
HEADS = 8
GROUPS = 8
EPSILON = 1e-3
MOMENTUM = 0.01
MASK_SCALE = 0.1  # first scale of the masks
LAST_STD = 0.01  # of the last layer of the embedding


class Clusters(NamedTuple):
    """What the queries found."""

    queries: Tensor  # (B, width, N)
    masks: Tensor  # (B, N, *S) logits, float32: which query a voxel belongs to
    layers: tuple[Tensor, ...]  # (B, N, *S / stride) each: the same in every layer, at the size of its map


class KMaxDecoder(nn.Module):
    """Learned queries, `layers` layers for each map, and the masks of the last queries.

    `channels` are those of the maps that the layers read, coarse to fine; `embedding_channels` those of the map on
    which the last masks are drawn. The width must be divisible by 16.

    Shapes
        forward     [(B, channels[i], *S / stride)], (B, embedding_channels, *S) -> Clusters
    """

    def __init__(
        self,
        dims: int,
        channels: Sequence[int],
        embedding_channels: int,
        *,
        queries: int,
        width: int,
        layers: int = 2,
        norm: KMaxNorm = "group",
        update: Update = "sum",
    ):
        super().__init__()
        self.centres = nn.Parameter(torch.empty(width, queries))
        nn.init.trunc_normal_(self.centres, std=1.0)
        self.levels = nn.ModuleList(
            nn.ModuleList(KMaxLayer(dims, before, width, norm=norm, update=update) for _ in range(layers))
            for before in channels
        )
        self.last_query = _unit(1, width, width, norm)
        self.mask_head = MaskHead(dims, embedding_channels, width, norm)

    def forward(self, maps: Sequence[Tensor], embedding: Tensor) -> Clusters:
        queries = self.centres.expand(len(embedding), -1, -1)
        masks = []
        for features, level in zip(maps, self.levels, strict=True):
            for layer in cast(nn.ModuleList, level):
                queries, layer_masks = layer(features, queries)
                masks.append(layer_masks)
        last = self.mask_head(F.gelu(self.last_query(queries)), embedding)
        return Clusters(queries, last, tuple(masks))


class KMaxLayer(nn.Module):
    """One k-means step, self-attention and a perceptron for the queries.

    Shapes
        forward     voxels (B, channels, *S), queries (B, width, N) -> queries (B, width, N), masks (B, N, *S)
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        width: int,
        *,
        norm: KMaxNorm = "group",
        update: Update = "sum",
        heads: int = HEADS,
        expansion: int = 8,
    ):
        super().__init__()
        self.kind: Update = update
        self.pixel_in = _unit(dims, channels, width, norm)
        self.query_in = _unit(1, width, width, norm)
        self.value = _unit(dims, width, width, norm, std=width**-0.5)
        self.mask_head = MaskHead(dims, width, width, norm)
        # What ends in a scale of 0 leaves the queries alone at first.
        self.update = nn.Sequential(_norm(1, width, norm), *_unit(1, width, width, norm, scale=0.0))
        self.attention = QueryAttention(width, norm, heads)
        self.perceptron = nn.Sequential(
            *_unit(1, width, expansion * width, norm),
            nn.GELU(),
            *_unit(1, expansion * width, width, norm, scale=0.0),
        )

    def forward(self, features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        pixels = F.gelu(self.pixel_in(F.gelu(features)))
        before = F.gelu(self.query_in(queries))
        masks = self.mask_head(before, pixels)
        found = gather(self.value(pixels).flatten(2), assignment(masks.flatten(2)), self.kind)
        queries = queries + self.update(found)
        queries = F.gelu(queries + self.attention(before))
        return F.gelu(queries + self.perceptron(queries)), masks


class MaskHead(nn.Module):
    """Similarity of every query with every voxel, normalised by one mean and variance for all of them.

    Shapes
        forward     queries (B, width, N), voxels (B, channels, *S) -> (B, N, *S) float32
    """

    def __init__(self, dims: int, channels: int, width: int, norm: KMaxNorm):
        super().__init__()
        depthwise = brick("convolution", dims)(channels, channels, 5, padding=2, groups=channels, bias=False)
        nn.init.xavier_uniform_(depthwise.weight)
        self.embedding = nn.Sequential(
            depthwise,
            _norm(dims, channels, norm),
            nn.GELU(),
            *_unit(dims, channels, width, norm),
            nn.GELU(),
            *_unit(dims, width, width // 2, norm, bias=True, std=LAST_STD),
        )
        self.key = _unit(1, width, width // 2, norm)
        self.norm = _norm(2, 1, norm, MASK_SCALE)

    def forward(self, queries: Tensor, pixels: Tensor) -> Tensor:
        keys, embedding = self.key(queries), self.embedding(pixels)
        similarity = cosine_to_pixels(keys, embedding.flatten(2))
        masks = cast(Tensor, self.norm(similarity.unsqueeze(1)))
        return masks.view(*similarity.shape[:2], *pixels.shape[2:])


class QueryAttention(nn.Module):
    """Self-attention of the queries; the similarities are normalised per head instead of divided by a root.

    Shapes
        forward     (B, width, N) -> (B, width, N)
    """

    def __init__(self, width: int, norm: KMaxNorm, heads: int):
        super().__init__()
        self.heads = heads
        self.sizes = (width // 2, width // 2, width)  # of queries, keys and values
        self.project = _unit(1, width, 2 * width, norm, std=width**-0.5)
        self.similarity_norm = _norm(2, heads, norm)
        self.out = nn.Sequential(_norm(1, width, norm), nn.GELU(), *_unit(1, width, width, norm, scale=0.0))

    def forward(self, queries: Tensor) -> Tensor:
        parts = self.project(queries).split(self.sizes, dim=1)
        asked, keys, values = (part.reshape(len(part), self.heads, -1, part.shape[2]) for part in parts)
        similarity = self.similarity_norm(asked.transpose(2, 3) @ keys)  # (B, heads, N, N)
        found = values @ similarity.float().softmax(dim=-1).to(values.dtype).transpose(2, 3)
        return cast(Tensor, self.out(found.flatten(1, 2)))


def cosine_to_pixels(keys: Tensor, pixels: Tensor) -> Tensor:
    """Inner product of every key with every voxel's embedding of length 1, in float32.

    Shapes
        keys        (B, F, N)
        pixels      (B, F, V)   of any length
        returns     (B, N, V)
    """
    with torch.autocast(device_type=pixels.device.type, enabled=False):
        keys, pixels = _full(keys), _full(pixels)
        lengths = pixels.square().sum(dim=1, keepdim=True).clamp_min(1e-24).sqrt()
        return keys.transpose(1, 2) @ pixels / lengths


def assignment(masks: Tensor) -> Tensor:
    """1 where a query is the nearest one of a voxel, else 0; without a gradient.

    Shapes
        masks       (B, N, V) float
        returns     (B, N, V) of the same type
    """
    nearest = masks.detach().argmax(dim=1, keepdim=True)
    return torch.zeros_like(masks).scatter_(1, nearest, 1.0)


def gather(values: Tensor, assigned: Tensor, kind: Update) -> Tensor:
    """The sum, or the mean, of the values of each query's voxels, in float32; 0 for a query without a voxel.

    Shapes
        values      (B, F, V)
        assigned    (B, N, V)
        returns     (B, F, N)
    """
    with torch.autocast(device_type=values.device.type, enabled=False):
        sums = _full(values) @ assigned.transpose(1, 2)
    if kind == "sum":
        return sums
    return sums / assigned.sum(dim=2).unsqueeze(1).clamp_min(1)


def _full(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _unit(
    dims: int,
    before: int,
    after: int,
    norm: KMaxNorm,
    *,
    bias: bool = False,
    scale: float = 1.0,
    std: float | None = None,
) -> nn.Sequential:
    """A 1x1 convolution and its norm; `dims` is 1 for queries."""
    convolution: type[nn.Module] = nn.Conv1d if dims == 1 else brick("convolution", dims)
    layer = convolution(before, after, 1, bias=bias)
    nn.init.trunc_normal_(cast(Tensor, layer.weight), std=std or (2 / before) ** 0.5)
    return nn.Sequential(layer, _norm(dims, after, norm, scale))


def _norm(dims: int, channels: int, kind: KMaxNorm, scale: float = 1.0) -> nn.Module:
    """The published batch norm, or a group norm, which does not mix the cases of a batch."""
    layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm
    if kind == "group":
        layer = nn.GroupNorm(gcd(GROUPS, channels), channels, eps=EPSILON)
    else:
        batch_norm = nn.BatchNorm1d if dims == 1 else brick("batch", dims)
        layer = batch_norm(channels, eps=EPSILON, momentum=MOMENTUM)
    nn.init.constant_(layer.weight, scale)
    return layer
