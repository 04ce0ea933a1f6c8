"""LA2018: the left atrium in late-gadolinium MR, in the h5 form that all semi-supervised papers use.

    2018LA_Seg_Training Set/<id>/mri_norm2.h5       image float32 (X, Y, 88), label uint8 {0, 1}
    train.list, test.list                           80 and 20 ids, one level above or beside the scans

The manifest keeps the order of train.list: the papers' "n labelled scans" are its first n, which
`hide(manifest, "keep_labelled", n=n)` reproduces. There is no validation set; `split.hold_out` carves one
out. The files store no spacing; it is 0.625 mm along each axis. Intensities were normalised over the whole
scan before it was cropped around the true left atrium, test scans included: scores do not transfer to
uncropped scans.

Source
    2018 Atrial Segmentation Challenge; files and lists of Yu et al., MICCAI 2019 (UA-MT).
"""

from __future__ import annotations

from pathlib import Path

from labelwise.data.importers.listing import existing_folder, files_below, listed
from labelwise.data.manifest import Manifest, Source
from labelwise.errors import DataError
from labelwise.formats import Layout
from labelwise.types import BACKGROUND, Case, LabelSpace

LOOKS_FOR = "<id>/mri_norm2.h5, with train.list and test.list beside or above"
FILE_NAME = "mri_norm2.h5"
ORGAN = "left atrium"
LAYOUT = Layout(axes="xyz", spacing_mm=(0.625, 0.625, 0.625))
LISTS = {"train.list": "train", "test.list": "test"}


def matches(folder: Path) -> bool:
    """Whether a folder holds scans of this data set."""
    return bool(files_below(folder, [FILE_NAME]))


def scan(folder: Path | str, *, source: str = "la2018") -> Manifest:
    """The manifest of the data set: train.list as training cases, test.list as test cases, in list order.

    Errors
        DataError   the folder is missing or empty, has no scan, or a list is missing or names no scan in it
    """
    folder = existing_folder(folder)
    files = {file.parent.name: file for file in files_below(folder, [FILE_NAME])}
    if not files:
        raise DataError("no scan of LA2018 here", file=folder, expected=LOOKS_FOR)
    split_of = listed(folder, LISTS, {name: [name] for name in files})
    cases = [
        Case(name, (files[name],), files[name], frozenset({ORGAN}), source=source, split=split)
        for name, split in split_of.items()
    ]
    table = Source(source, {0: BACKGROUND, 1: ORGAN}, "normalised", LAYOUT)
    return Manifest(LabelSpace((BACKGROUND, ORGAN)), {source: table}, tuple(cases))
