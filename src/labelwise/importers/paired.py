"""Images and labels that an id pairs: cases from them, and the splits that papers published by id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labelwise.errors import DataError, warn_about
from labelwise.formats import stem
from labelwise.importers.listing import files_below
from labelwise.types import BACKGROUND, Case, LabelSpace

SPLITS_OF_FOLDERS = {"tr": "train", "va": "validation", "val": "validation", "ts": "test"}


@dataclass
class Pairs:
    """Files by case id."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)

    def add(self, kind: str, name: str, file: Path) -> None:
        """Take in a file; `kind` is images or labels.

        Errors
            DataError   another file has the same id
        """
        files = self.images if kind == "images" else self.labels
        if name in files:
            raise DataError(
                "two files hold the same scan" if kind == "images" else "two files hold the same labels",
                case=name,
                file=file,
                found=files[name],
                do="remove one of them, or name the folder that holds one copy of the data set",
            )
        files[name] = file

    def cases(
        self, structures: Iterable[str], data_set: str, split: str, *, unlabelled_split: str | None = None
    ) -> list[Case]:
        """The cases in the order of their ids; what has no partner is reported.

        Parameters
            structures             what labelled cases are annotated for
            unlabelled_split   split of images without labels, if not that of the others. Unlabelled validation
                               scans never take part: there is nothing to score them with.
        """
        if unlabelled_split is None:
            unlabelled_split = "" if split == "validation" else split
        warn_about(
            "label files without an image are left out",
            sorted(name for name in self.labels if name not in self.images),
        )
        what = {"train": "are unlabelled cases", "": "take no part"}.get(
            unlabelled_split, "can be predicted, not scored"
        )
        warn_about(
            f"{split or 'other'} images without labels {what}",
            sorted(name for name in self.images if name not in self.labels),
        )
        known = frozenset(structures)
        return [
            Case(
                name,
                (image,),
                labels=self.labels.get(name),
                annotated=known if name in self.labels else frozenset(),
                data_set=data_set,
                split=split if name in self.labels else unlabelled_split,
            )
            for name, image in sorted(self.images.items())
        ]


def label_space(*tables: Mapping[int, str]) -> LabelSpace:
    """The classes of value tables in the order of their values, background first."""
    names = (name for table in tables for _, name in sorted(table.items()))
    return LabelSpace(tuple(dict.fromkeys((BACKGROUND, *names))))


def kind_and_split(file: Path) -> tuple[str, str] | None:
    """images or labels, and the split, of a file in imagesTr, labelsTr, imagesVa, labelsVal, imagesTs, ..."""
    for folder in file.parents:
        if match := re.fullmatch(r"(images|labels)(tr|val?|ts)", folder.name.lower()):
            return match[1], SPLITS_OF_FOLDERS[match[2]]
    return None


def files_by_place(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, str, Path]]:
    """images or labels, split, and file, of all NIfTI files in such folders whose name matches."""
    for file in files_below(folder, (".nii.gz", ".nii")):
        place = kind_and_split(file)
        if place and pattern.fullmatch(stem(file)):
            yield *place, file


def by_published_lists(
    lists: Mapping[str, Sequence[str]], names_of: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Case name -> split, in the order of published lists; cases that no list names come last, without a split.

    Parameters
        lists       split -> what the list calls its cases, in published order
        names_of    what a list may call a case, or several cases -> names of the cases that are there

    Errors
        DataError   none of the listed cases is there
    """
    split_of: dict[str, str] = {}
    for split, entries in lists.items():
        warn_about(
            f"cases of the published {split} list are missing",
            [entry for entry in entries if entry not in names_of],
        )
        split_of |= {name: split for entry in entries for name in names_of.get(entry, ())}
    names = {name for names in names_of.values() for name in names}
    if not split_of:
        raise DataError(
            "none of the cases of the published lists is there", found=", ".join(sorted(names)[:3])
        )
    others = sorted(names - set(split_of))
    warn_about("cases that the published lists do not name take no part", others)
    return split_of | dict.fromkeys(others, "")
