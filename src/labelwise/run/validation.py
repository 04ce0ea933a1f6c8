"""The score that a training watches: Dice on prepared validation cases, only where they are annotated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from labelwise import report
from labelwise.evaluate.overlap import dice_per_class
from labelwise.formats.stored import tells_sides
from labelwise.infer.sliding_window import InferenceConfig, predict_labels
from labelwise.loading.known import references
from labelwise.loading.store import Store, annotated_table
from labelwise.types import Array, Case, LabelSpace, Volume


class Validation:
    """predictor -> mean Dice over the validation cases of each structure, then over the structures; NaN without any.

    Completely and partly annotated cases count alike: each structure's mean is over the cases that annotate it.
    Scans stay on the prepared grid, so the score costs no resampling.
    """

    def __init__(
        self,
        store: Store,
        cases: Sequence[Case],
        label_space: LabelSpace,
        patch_size: tuple[int, int, int],
        config: InferenceConfig,
        device: torch.device,
        shown: int = 0,
    ):
        self.store, self.cases, self.label_space = store, cases, label_space
        self.patch_size, self.config, self.device = patch_size, config, device
        self.shown = tuple(cases[:shown])
        self._last: dict[str, tuple[Array, Array]] = {}  # of the shown cases: prediction and Dice

    def __call__(self, predictor: nn.Module) -> float:
        per_case = np.stack([self._dice(predictor, case) for case in self.cases])
        defined = ~np.isnan(per_case)
        structures = np.where(defined, per_case, 0).sum(0) / np.maximum(defined.sum(0), 1)
        scored = defined.any(0)
        return float(structures[scored].mean()) if scored.any() else float("nan")

    def pictures(self) -> dict[str, bytes]:
        """The shown cases as the last validation saw them: reference, prediction, what differs (WebP)."""
        return {case.id: self._picture(case) for case in self.shown}

    def _picture(self, case: Case) -> bytes:
        stored = self.store.case(case.id)
        prediction, dice = self._last[case.id]
        image = Volume(stored.image(), np.diag([*stored.spacing_mm, 1.0]))
        annotated = self.label_space.annotated_row(case.annotated)
        return report.case_picture(
            case.id, image, stored.labels(annotated_table(annotated)), prediction, label_space=self.label_space,
            dice=dict(zip(self.label_space.structures, dice.tolist(), strict=True)), annotated=case.annotated,
            oriented=tells_sides(case.images[0]),
        ).picture.data  # fmt: skip

    def _dice(self, predictor: nn.Module, case: Case) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """(C - 1,) Dice per structure; NaN if the structure is not annotated, or absent from both maps."""
        stored = self.store.case(case.id)
        prediction = predict_labels(
            predictor,
            torch.from_numpy(stored.image()),
            self.patch_size,
            num_classes=self.label_space.num_classes,
            config=self.config,
            device=self.device,
        )
        found = np.full(len(self.label_space.structures), np.nan)
        for annotated, reference in references(case, self.label_space, stored):
            dice = dice_per_class(reference, prediction, self.label_space.num_classes)
            found = np.where(annotated[1:], dice[1:], found)
        if case in self.shown:
            self._last[case.id] = prediction, found
        return found
