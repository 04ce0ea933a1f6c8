"""Prototypes: every class is a few directions among pixel embeddings, found by clustering as the training goes.

G banks of prototypes share one embedding and one scale of scores. Each bank has its own owners: for every pixel the
class whose prototypes it may move in that bank, or IGNORE. K classes, background included; M prototypes per class;
D features; N pixels of all cases. Everything after the projection is computed in float32.

Source
    Zhou et al., CVPR 2022 (prototypes by online clustering), https://arxiv.org/abs/2203.15102, with the two banks of
    Jiang et al., Medical Image Analysis 2025 (LTUDA), https://arxiv.org/abs/2409.03228.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelwise.components.batches import as_pixels, sum_over_ranks
from labelwise.losses.partial import members
from labelwise.types import IGNORE

Assign = Literal["argmax", "gumbel_prob"]

EPSILON = 0.05  # temperature of the clustering
ROUNDS = 3  # of the clustering


class Clusters(NamedTuple):
    """What the pixels of one view say about G banks."""

    own: Tensor  # (N, G, M) similarity to the prototypes of the owning class; of class 0 where nobody owns the pixel
    owners: Tensor  # (N, G) int64 in [0, K), 0 where nobody owns the pixel
    owned: Tensor  # (N, G) bool
    shares: (
        Tensor  # (N, G, M) how much each prototype takes of the pixel; sums to one over M, without a gradient
    )


class PrototypeLosses(NamedTuple):
    """Means over the pixels of a view, one number for each bank: (G,) float32 each; 0 where there is no pixel."""

    cross_entropy: Tensor  # of the scores and the label
    contrast: Tensor  # -log softmax over all K * M prototypes at the pixel's own one
    distance: Tensor  # (1 - similarity to the pixel's own prototype)^2


class Prototypes(nn.Module):
    """The embedding of pixels, the banks, and the classifier that they make.

    `banks` (G, K * M, D) is a buffer without gradient: `learn` returns what the banks become, and the caller writes
    it with `remember` after the optimiser's step.
    """

    banks: Tensor

    def __init__(self, features: int, num_classes: int, *, banks: int = 2, per_class: int = 5):
        super().__init__()
        self.num_classes = num_classes
        self.per_class = per_class
        # Of single pixels, in the layout (N, D) of all that follows: 1x1 convolutions in two and three dimensions.
        self.first = nn.Linear(features, features)
        self.norm = nn.BatchNorm1d(features)
        self.second = nn.Linear(features, features)
        self.embedding_norm = nn.LayerNorm(features)
        self.score_norm = nn.LayerNorm(num_classes)
        drawn = nn.init.trunc_normal_(torch.empty(banks, num_classes * per_class, features), std=0.02)
        self.register_buffer("banks", F.normalize(drawn, dim=2))

    def embed(self, features: Tensor) -> Tensor:
        """Features of pixels (N, D) -> embeddings (N, D) of length one, float32."""
        projected = self.second(F.relu(self.norm(self.first(features)), inplace=True))
        return unit(self.embedding_norm(unit(projected.float())).float())

    def similarities(self, embeddings: Tensor, banks: Tensor) -> Tensor:
        """Cosines (N, G, K * M) of embeddings (N, D) and prototypes (G, K * M, D): one product for all banks."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return (embeddings @ banks.flatten(0, 1).T).view(len(embeddings), *banks.shape[:2])

    def scores(self, similarities: Tensor) -> Tensor:
        """Logits (N, G, K): the nearest prototype of each class, normalised over the classes."""
        best = self._by_class(similarities).amax(dim=3)
        return cast(Tensor, self.score_norm(best)).float()

    def _by_class(self, similarities: Tensor) -> Tensor:
        """(N, G, K * M) -> (N, G, K, M)."""
        return similarities.view(*similarities.shape[:2], self.num_classes, self.per_class)

    def learn(
        self,
        embeddings: Tensor,
        banks: Tensor,
        labels: Tensor,
        owners: Tensor,
        momentum: float,
        assign: Assign,
    ) -> tuple[PrototypeLosses, Tensor]:
        """The losses of one view, and the banks after it.

        Shapes
            embeddings      (N, D)          float32
            banks           (G, K * M, D)   of length one; not changed
            labels          (N,)            int64 in [0, K) or IGNORE: target of the scores
            owners          (N, G)          int64 in [0, K) or IGNORE
            returns         losses, banks (G, K * M, D) of length one, without a gradient
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            similarities = self.similarities(embeddings, banks)
            scores = self.scores(similarities)
            clusters = self.cluster(similarities, owners)
            losses = self._losses(similarities, scores, labels, clusters)
            with torch.no_grad():
                right = scores.argmax(dim=2) == clusters.owners
                place = clusters.owners * self.per_class + self._assigned(clusters.shares, assign)
                moved = _move(banks, embeddings, place, clusters.owned & right, momentum)
        return losses, moved

    def cluster(self, similarities: Tensor, owners: Tensor) -> Clusters:
        """Share the pixels of each class among its prototypes, about evenly (Sinkhorn, without a gradient)."""
        owned = owners != IGNORE
        classes = owners.masked_fill(~owned, 0)
        index = classes[:, :, None, None].expand(-1, -1, 1, self.per_class)
        own = self._by_class(similarities).gather(2, index).squeeze(2)
        # members() treats the pixels as spatial: (G, K, N)
        membership = members(owners.T, self.num_classes).to(own.dtype)
        return Clusters(own, classes, owned, share_evenly(own.detach(), classes, membership))

    def _assigned(self, shares: Tensor, assign: Assign) -> Tensor:
        """(N, G) number of the prototype that takes the pixel in the update."""
        if assign == "gumbel_prob":
            shares = shares - torch.empty_like(shares).exponential_().log()
        return shares.argmax(dim=2)

    def _losses(
        self, similarities: Tensor, scores: Tensor, labels: Tensor, clusters: Clusters
    ) -> PrototypeLosses:
        own = clusters.own.gather(2, clusters.shares.argmax(dim=2, keepdim=True)).squeeze(2)
        labelled = (labels != IGNORE).unsqueeze(1).expand_as(own)
        target = labels.masked_fill(labels == IGNORE, 0)[:, None, None].expand(-1, own.shape[1], 1)
        likelihood = scores.log_softmax(dim=2).gather(2, target).squeeze(2)
        return PrototypeLosses(
            cross_entropy=_mean_over_pixels(-likelihood, labelled),
            contrast=_mean_over_pixels(similarities.logsumexp(dim=2) - own, clusters.owned),
            distance=_mean_over_pixels((1 - own).square(), clusters.owned),
        )

    def classify(self, features: Tensor, bank: int) -> Tensor:
        """Features (B, D, *S) -> logits (B, K, *S) of one bank."""
        embeddings = self.embed(as_pixels(features))
        banks = F.normalize(self.banks[bank : bank + 1], dim=2)
        scores = self.scores(self.similarities(embeddings, banks))
        return scores.view(len(features), *features.shape[2:], self.num_classes).movedim(-1, 1)

    @torch.no_grad()
    def remember(self, banks: Tensor) -> None:
        """Make `banks` the prototypes; directions of any length."""
        self.banks.copy_(F.normalize(banks, dim=2))


class _Unit(torch.autograd.Function):
    """Rows divided by their length. Half the passes over memory of `F.normalize`, and half of what it keeps."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12).reciprocal()
        directions: Tensor = rows * scale
        context.save_for_backward(directions, scale)
        return directions

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        directions, scale = context.saved_tensors
        along = (directions * gradients[0]).sum(dim=1, keepdim=True)
        return torch.addcmul(gradients[0], directions, along, value=-1).mul_(scale)


def unit(rows: Tensor) -> Tensor:
    """Rows (N, D) -> rows of length one; a row of zeros stays one."""
    return cast(Tensor, _Unit.apply(rows))  # type: ignore[no-untyped-call]


def share_evenly(similarities: Tensor, classes: Tensor, membership: Tensor) -> Tensor:
    """Share pixels among the prototypes of their own class so that each prototype takes about as many.

    exp(similarity / 0.05), then three rounds: each prototype is normalised over the pixels of its class, then each
    pixel over its prototypes; for all classes and banks at once.

    Shapes
        similarities    (N, G, M)   float32 in [-1, 1], to the prototypes of the pixel's own class
        classes         (N, G)      int64 in [0, K); any class where the pixel has no owner
        membership      (G, K, N)   float32: 1 where the class owns the pixel
        returns         (N, G, M)   sums to one over M

    Source
        Zhou et al., CVPR 2022, after Cuturi, NeurIPS 2013.
    """
    banks = torch.arange(classes.shape[1], device=classes.device)
    shares = ((similarities - 1) / EPSILON).exp()  # between exp(-40) and 1: neither overflows nor vanishes
    for _ in range(ROUNDS):
        taken = torch.einsum("gkn,ngm->gkm", membership, shares)
        shares = shares / taken.clamp_min(1e-30)[banks, classes]
        shares = shares / shares.sum(dim=2, keepdim=True)
    return shares


def _move(banks: Tensor, embeddings: Tensor, place: Tensor, counted: Tensor, momentum: float) -> Tensor:
    """Turn each prototype a little towards the mean of its pixels, of all ranks; unused ones stay as they are.

    Shapes
        banks       (G, K * M, D)
        embeddings  (N, D)
        place       (N, G) int64 in [0, K * M): the prototype that takes the pixel
        counted     (N, G) bool: whether the pixel counts
    """
    taken = embeddings.new_zeros(*place.shape, banks.shape[1])
    taken.scatter_(2, place.unsqueeze(2), counted.unsqueeze(2).to(taken.dtype))
    # A product with zeros and ones: sums without a race, in the same order in every run.
    sums = torch.einsum("ngj,nd->gjd", taken, embeddings)
    pooled = sum_over_ranks(torch.cat([sums, taken.sum(dim=0).unsqueeze(2)], dim=2))
    moved = momentum * banks + (1 - momentum) * F.normalize(pooled[..., :-1], dim=2)
    return F.normalize(torch.where(pooled[..., -1:] > 0, moved, banks), dim=2)


def _mean_over_pixels(values: Tensor, where: Tensor) -> Tensor:
    """(N, G) -> (G,): the mean where the mask is true; 0 with a zero gradient where it nowhere is."""
    return torch.where(where, values, 0).sum(dim=0) / where.sum(dim=0).clamp_min(1)
