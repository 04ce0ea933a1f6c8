"""The thresholds of a finished training, for methods that ask for each structure by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from labelwise.infer.sliding_window import InferenceConfig, predict_scores
from labelwise.infer.thresholds import Chosen, ThresholdSearch
from labelwise.loading.known import references
from labelwise.loading.store import Store
from labelwise.methods.base import IndependentMaps
from labelwise.types import Case, LabelSpace

MOST_CASES = 16  # of a split: more say nearly the same


class Thresholds:
    """Chooses them on annotated cases: those of the validation, and training cases for structures that these lack.

    Scans stay on the prepared grid. Of many cases some are taken, evenly.
    """

    def __init__(
        self,
        store: Store,
        label_space: LabelSpace,
        patch_size: tuple[int, int, int],
        config: InferenceConfig,
        device: torch.device,
    ):
        self.store, self.label_space = store, label_space
        self.patch_size, self.config, self.device = patch_size, config, device

    def choose(
        self, predictor: nn.Module, validation: Sequence[Case], training: Sequence[Case]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The threshold of each structure, and how each was found; nothing if the predictor has none to choose.

        Arguments
            predictor   on `device`
        """
        if not isinstance(predictor, IndependentMaps) or predictor.fixed:
            return {}, {}
        predictor.thresholds = ()  # one half for all: scores are then the probabilities
        thresholds: dict[str, float] = {}
        facts: dict[str, Any] = {}
        for split, cases in (("validation", validation), ("train", training)):
            missing = [structure for structure in self.label_space.structures if structure not in thresholds]
            useful = [case for case in cases if case.annotated & set(missing)]
            for index, found in self._search(predictor, useful).items():
                if (structure := self.label_space.names[index]) in missing:
                    thresholds[structure] = found.threshold
                    facts[structure] = {"split": split, **asdict(found)}
        return thresholds, facts

    def _search(self, predictor: nn.Module, cases: Sequence[Case]) -> dict[int, Chosen]:
        search = ThresholdSearch(len(self.label_space.structures))
        for case in cases[:: max(1, -(-len(cases) // MOST_CASES))]:
            stored = self.store.case(case.id)
            scores = predict_scores(
                predictor,
                torch.from_numpy(stored.image()),
                self.patch_size,
                num_classes=self.label_space.num_classes,
                config=self.config,
                device=self.device,
            )
            for annotated, labels in references(case, self.label_space, stored):
                search.add(scores, labels, annotated)
        return search.chosen()
