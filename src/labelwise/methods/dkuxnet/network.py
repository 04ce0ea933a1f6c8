"""The network of DKUXNet: a 3D UX-Net whose voxels are gathered by queries, each of which stands for classes.

e5, d3, d2, d1, d0 = 3D UX-Net                      coarse to fine
queries, masks     = k-means transformer on the first of them, its last masks on d0
a = softmax over the queries of the masks
S = sum over queries of (class logits of a query) * a                   logits
Q = sum over the queries of each group of a                             a distribution over groups
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from labelwise.methods.base import NetFactory
from labelwise.methods.dkuxnet.decoder import WIDTH_MULTIPLE, KMaxDecoder, KMaxNorm, Update
from labelwise.methods.dkuxnet.uxnet import UXDecoder

ClusterHead = Literal["per_query", "joint"]
SegmentationHead = Literal["query", "cnn", "both"]

JOINT_HIDDEN = 64


class Seen(NamedTuple):
    """What the network makes of images; every field has one entry or several, all with B cases."""

    logits: tuple[
        Tensor, ...
    ]  # (B, C, *S): those that decide; with both heads then those of the convolutions
    groups: tuple[Tensor, ...]  # (B, G, *S): Q; then that of each layer, on its own coarser map
    assignment: tuple[Tensor, ...]  # (B, N, *S): a

    @staticmethod
    def joined(parts: Sequence[Seen]) -> Seen:
        """The cases of all parts, one part after the other."""
        return Seen(
            *(
                tuple(torch.cat(same) for same in zip(*field, strict=True))
                for field in zip(*parts, strict=True)
            )
        )


class KMaxUXNet(nn.Module):
    """A 3D UX-Net, and queries that gather its voxels.

    `width` None is the published ratio: 16 for every 3 channels of the network. `groups` counts the background.
    """

    members: Tensor

    def __init__(
        self,
        nets: NetFactory,
        *,
        queries: int,
        width: int | None,
        groups: int,
        levels: int = 3,
        layers: int = 2,
        norm: KMaxNorm = "group",
        update: Update = "sum",
        cluster_head: ClusterHead = "per_query",
        head: SegmentationHead = "query",
    ):
        super().__init__()
        self.encoder = nets.encoder()
        self.decoder = cast(UXDecoder, nets.decoder())
        refine, self.decoder.refine = self.decoder.refine, nn.Identity()  # the queries need no last block
        channels = (self.encoder.channels[-1], *self.decoder.channels)
        width = width or max(WIDTH_MULTIPLE, channels[-1] // 3 * WIDTH_MULTIPLE)
        self.levels = levels
        self.kmax = KMaxDecoder(
            nets.dims,
            channels[:levels],
            channels[-1],
            queries=queries,
            width=width,
            layers=layers,
            norm=norm,
            update=update,
        )
        self.cluster_head: nn.Module | None = None
        self.cnn_head: nn.Module | None = None
        if head != "cnn":
            self.cluster_head = CLUSTER_HEADS[cluster_head](queries, width, nets.num_classes)
        if head != "query":
            self.cnn_head = nn.Sequential(refine, nets.head(channels[-1], nets.num_classes))
        self.register_buffer("members", membership(query_groups(queries, groups)).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, M, *S) -> logits (B, C, *S), float32."""
        features = self.encoder(images)
        scales = self.decoder(features)
        if self.cluster_head is None:
            assert self.cnn_head is not None
            return cast(Tensor, self.cnn_head(scales[-1]))
        clusters = self.kmax([features[-1], *scales][: self.levels], scales[-1])
        return mixture(self.cluster_head(clusters.queries), clusters.masks.softmax(dim=1))

    def look(self, images: Tensor) -> Seen:
        """Images (B, M, *S) -> all that is trained."""
        features = self.encoder(images)
        scales = self.decoder(features)
        clusters = self.kmax([features[-1], *scales][: self.levels], scales[-1])
        assignment = clusters.masks.softmax(dim=1)
        logits = []
        if self.cluster_head is not None:
            logits.append(mixture(self.cluster_head(clusters.queries), assignment))
        if self.cnn_head is not None:
            logits.append(self.cnn_head(scales[-1]))
        layers = (masks.softmax(dim=1) for masks in clusters.layers)
        groups = tuple(mixture(self.members, masks) for masks in (assignment, *layers))
        return Seen(tuple(logits), groups, (assignment,))


class PerQuery(nn.Module):
    """Class logits of each query by the same perceptron.

    Shapes
        forward     (B, width, N) -> (B, C, N)
    """

    def __init__(self, queries: int, width: int, num_classes: int):
        super().__init__()
        self.perceptron = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_classes))

    def forward(self, queries: Tensor) -> Tensor:
        return cast(Tensor, self.perceptron(queries.transpose(1, 2))).transpose(1, 2)


class Joint(nn.Module):
    """Class logits of all queries by one perceptron that sees them together, as in the official code.

    Shapes
        forward     (B, width, N) -> (B, C, N)
    """

    def __init__(self, queries: int, width: int, num_classes: int):
        super().__init__()
        self.perceptron = nn.Sequential(
            nn.Linear(queries * width, JOINT_HIDDEN),
            nn.ReLU(),
            nn.Linear(JOINT_HIDDEN, queries * num_classes),
        )

    def forward(self, queries: Tensor) -> Tensor:
        flat = cast(Tensor, self.perceptron(queries.transpose(1, 2).flatten(1)))
        return flat.view(len(queries), queries.shape[2], -1).transpose(1, 2)


CLUSTER_HEADS: dict[ClusterHead, type[PerQuery] | type[Joint]] = {"per_query": PerQuery, "joint": Joint}


def mixture(weights: Tensor, assignment: Tensor) -> Tensor:
    """The sum over the queries of their weights, as far as a voxel is theirs; in float32.

    Shapes
        weights     (B, K, N) or (K, N)
        assignment  (B, N, *S)
        returns     (B, K, *S)
    """
    with torch.autocast(device_type=assignment.device.type, enabled=False):
        mixed = weights.to(assignment.dtype) @ assignment.flatten(2)
    return mixed.view(*mixed.shape[:2], *assignment.shape[2:])


def query_groups(queries: int, groups: int) -> list[int]:
    """The group of each query: half of them stand for the background, the others share the rest evenly."""
    rest = queries // 2
    return [0] * (queries - rest) + [1 + number * (groups - 1) // rest for number in range(rest)]


def membership(groups: Sequence[int]) -> Tensor:
    """(G, number of members) bool: which member is in which group."""
    return torch.tensor(groups) == torch.arange(max(groups) + 1).unsqueeze(1)
