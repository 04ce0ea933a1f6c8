"""A manifest in the raw layout of nnU-Net v2: the other direction of `labelwise.importers.nnunet`.

    DatasetNNN_NAME/dataset.json              channel_names, labels, numTraining, file_ending
    DatasetNNN_NAME/imagesTr/ID_0000.nii.gz   one file per channel, RAS+
    DatasetNNN_NAME/labelsTr/ID.nii.gz        class indices, on the grid of the images
    DatasetNNN_NAME/imagesTs/, labelsTs/      test cases; label files of those that are annotated
    DatasetNNN_NAME/splits_final.json         one fold, if there are validation cases

nnU-Net takes a 0 for background. In a case in which a structure is not annotated, 0 may be that structure too: such
voxels get the label ``ignore``, or, where that is asked for, stay background. Cases without any annotation are left
out: nnU-Net does not learn from them.

Source
    nnU-Net, documentation/dataset_format.md, ignore_label.md (the highest label, after consecutive ones) and
    manual_data_splits.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from labelwise.cohort.data_set import IGNORE_NAME
from labelwise.cohort.manifest import Manifest, check_same_grid, read_case_image, read_case_labels
from labelwise.errors import ConfigError, DataError, naming
from labelwise.formats import write_image, write_labels
from labelwise.preprocess.intensity import Intensity
from labelwise.types import IGNORE, Case, Volume

Unknown = Literal["ignore", "background"]
ENDING = ".nii.gz"
# By the name of a channel nnU-Net chooses how it normalises.
CHANNELS: Mapping[Intensity, str] = {"ct": "CT", "mr": "MR", "normalised": "noNorm"}
FOLDERS = {
    "train": ("imagesTr", "labelsTr"),
    "validation": ("imagesTr", "labelsTr"),
    "test": ("imagesTs", "labelsTs"),
}


@dataclass(frozen=True)
class Layout:
    """How one manifest is written."""

    manifest: Manifest
    unknown: Unknown  # what a voxel becomes of which only un-annotated structures could say more

    def __post_init__(self) -> None:
        if self.unknown not in ("ignore", "background"):
            raise ConfigError(
                "unknown voxels cannot become this", found=self.unknown, expected="ignore or background"
            )
        kinds = sorted({self.manifest.data_set_of(case).intensity for case in self.cases})
        if len(kinds) > 1:
            raise DataError(
                "nnU-Net normalises every case of a data set alike",
                found=f"cases of {', '.join(kinds)}",
                do="export each kind of intensities by itself",
            )
        if not self.manifest.split("train") or not any(
            self._teaches(case) for case in self.manifest.split("train")
        ):
            raise DataError("no training case is annotated, so nnU-Net has nothing to learn from")
        if lacking := [case for case in self.cases if case.missing]:
            raise DataError(
                "every case of nnU-Net has all channels",
                case=lacking[0].id,
                found=f"{len(lacking)} cases lack one",
                do="leave them out: an empty column 'split'",
            )
        counts = {len(case.images): case for case in self.cases}
        if len(counts) > 1:
            raise DataError(
                "every case of nnU-Net has the same channels",
                case=counts[max(counts)].id,
                found=f"{max(counts)} images; {min(counts)} in '{counts[min(counts)].id}'",
            )

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases that are written: annotated ones to train and validate, all that test."""
        return tuple(
            case
            for case in self.manifest.cases
            if case.split in FOLDERS and (self._teaches(case) or case.split == "test")
        )

    @property
    def left_out(self) -> tuple[Case, ...]:
        """Training and validation cases in which no class is annotated, or only regions as one."""
        return tuple(
            case
            for case in self.manifest.cases
            if case.split in ("train", "validation") and not self._teaches(case)
        )

    def _teaches(self, case: Case) -> bool:
        return not case.annotated.isdisjoint(self.manifest.label_space.structures)

    @property
    def ignore_value(self) -> int:
        """The label of voxels of which nothing is known."""
        return self.manifest.label_space.num_classes

    def dataset(self, *, ignores: bool) -> dict[str, Any]:
        """The content of dataset.json; with the label ``ignore`` if some label file holds it."""
        first = self.cases[0]
        channel = CHANNELS[self.manifest.data_set_of(first).intensity]
        labels = {name: index for index, name in enumerate(self.manifest.label_space.names)}
        number = sum(case.split != "test" for case in self.cases)
        return {
            "channel_names": {str(place): channel for place in range(len(first.images))},
            "labels": {**labels, **({IGNORE_NAME: self.ignore_value} if ignores else {})},
            "numTraining": number,
            "file_ending": ENDING,
        }

    def splits(self) -> list[dict[str, list[str]]] | None:
        """The content of splits_final.json: one fold that validates as the manifest says; None without validation."""
        names = {
            key: [case.id for case in self.cases if case.split == split]
            for key, split in (("train", "train"), ("val", "validation"))
        }
        return [names] if names["val"] else None

    def without_cases(self) -> Layout:
        """The same with one case only: what a job needs beside its own."""
        one = next(case for case in self.manifest.cases if case.split == "train" and self._teaches(case))
        return Layout(self.manifest.replace_cases([one]), self.unknown)


def write_case(case: Case, layout: Layout, folder: Path) -> bool:
    """Write the files of one case into the folder of the data set; whether its labels hold the label ``ignore``.

    Errors
        DataError       a file is missing, damaged, or on another grid
    """
    images, labels = FOLDERS[case.split]
    with _naming(case):
        image = read_case_image(case, layout.manifest)
        for place, channel in enumerate(image.data):
            write_image(
                folder / images / f"{case.id}_{place:04d}{ENDING}",
                Volume(_compact(channel)[None], image.affine),
            )
        if not case.annotated:
            return False
        read = read_case_labels(case, layout.manifest)
        check_same_grid(case, image, read)
        known = nnunet_labels(read, layout, complete=bool(layout.manifest.annotated(case)[0]))
        # The affine of the image: nnU-Net compares them without tolerance for the last digits.
        write_labels(folder / labels / f"{case.id}{ENDING}", Volume(known, image.affine))
        return bool((known == layout.ignore_value).any())


def nnunet_labels(
    labels: Volume, layout: Layout, *, complete: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(X, Y, Z) values for nnU-Net: class indices; the 0 of a case that is not `complete` as the layout says."""
    known = np.where(labels.data == IGNORE, layout.ignore_value, labels.data)
    if not complete and layout.unknown == "ignore":
        known = np.where(labels.data == 0, layout.ignore_value, known)
    return known.astype(np.uint8)


def dataset_name(number: int, name: str) -> str:
    """The name of a folder that nnU-Net accepts: ``Dataset007_my_data``."""
    if not 1 <= number <= 999:
        raise ConfigError(
            "the number of a data set of nnU-Net has three digits", found=number, expected="1 to 999"
        )
    return f"Dataset{number:03d}_{re.sub('[^A-Za-z0-9]+', '_', name).strip('_') or 'data'}"


def _compact(channel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """16 bit integers if nothing is lost, which CT never does."""
    low, high = float(channel.min()), float(channel.max())
    if low >= -(2**15) and high < 2**15:
        whole = channel.astype(np.int16)
        if np.array_equal(whole, channel):
            return whole
    return channel


@contextmanager
def _naming(case: Case) -> Iterator[None]:
    try:
        with naming(case.id, case.images[0]):
            yield
    except FileNotFoundError as error:
        raise DataError("a file of the case is missing", case=case.id, file=error.filename) from error
