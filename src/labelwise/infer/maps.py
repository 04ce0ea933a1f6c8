"""Maps of how sure a model is, beside its labels and on the grid of the scan.

    probabilities/CASE/CLASS.nii.gz     chance of each class, background included; they sum to one
    entropy/CASE.nii.gz                 0 sure, 1 all classes alike

NIfTI of 32 bit floats in steps of 1/4096, which compress well. Scores become chances by the temperature of the model
(`labelwise.infer.calibration`). Writing them takes C times the memory of a float32 scan, and a second sweep.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from labelwise.formats import write_image
from labelwise.infer.doubt import as_chances, entropy_of
from labelwise.infer.model import Model
from labelwise.infer.record import ENTROPY, MAPS, PROBABILITIES, map_paths
from labelwise.infer.scans import Scan
from labelwise.preprocess.pipeline import Prepared, undo_scores
from labelwise.types import Array, Volume

__all__ = ["ENTROPY", "MAPS", "PROBABILITIES", "map_paths", "write_maps"]

_STEPS = 4096


def write_maps(folder: Path, scan: Scan, model: Model, prepared: Prepared, maps: Collection[str]) -> None:
    """Write maps of the kinds that are asked for.

    Errors
        ResourceError   not enough memory; a file cannot be written
    """
    chances = as_chances(model.scores_of(prepared), model.temperature)
    on_scan = undo_scores(chances.cpu().numpy(), prepared.undo)
    names = model.label_space.names
    if PROBABILITIES in maps:
        for path, chance in zip(map_paths(folder, scan.id, PROBABILITIES, names), on_scan.data, strict=True):
            _write(path, chance, on_scan, scan)
    if ENTROPY in maps:
        entropy = entropy_of(torch.from_numpy(on_scan.data)).numpy()
        _write(map_paths(folder, scan.id, ENTROPY, names)[0], entropy, on_scan, scan)


def _write(path: Path, values: Array, place: Volume, scan: Scan) -> None:
    rounded = np.round(values * _STEPS) / np.float32(_STEPS)
    write_image(path, Volume(rounded[None], place.affine), like=scan.images[0], layout=scan.layout)
