"""Which label file is compared with which reference, and what the integers of both mean.

Classes are joined by name. A file names its values in its header or in the record beside it; a file that does not is
read by the classes that the user states, or by the value table of the reference's data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelwise import anatomy
from labelwise.cohort.manifest import MANIFEST_NAME, Manifest, absolute, manifest_file, read_manifest
from labelwise.errors import DataError
from labelwise.formats import Layout, case_of, is_dicom, segment_names, suffix, value_names
from labelwise.types import BACKGROUND, IGNORE, Array, LabelSpace

PREDICTIONS, SCORES = "predictions", "scores.csv"  # names in the folder of a run
_DO = "state what the values of these files mean: --classes liver=1,spleen=2"


@dataclass(frozen=True)
class Labels:
    """A label file, and what its values mean."""

    file: Path
    values: Mapping[int, str]  # label value -> class name
    layout: Layout = Layout()  # noqa: RUF009 - frozen
    names_them: bool = False  # whether the file itself says what its values mean

    def knows(self, structure: str) -> bool:
        """Whether a class of this name is among its own."""
        return any(anatomy.same(name, structure) for name in self.values.values())


@dataclass(frozen=True)
class Pair:
    """A prediction and what it is compared with."""

    case: str
    prediction: Labels
    reference: Labels | None  # None: the manifest's label file of this case
    annotated: tuple[str, ...]
    image: Path | None = None  # of the case, for labels that lie on its grid
    group: str = ""  # patient of the case, if a manifest says so
    split: str = ""  # of the case, if a manifest says so
    seen: str = ""  # "train" or "validation" if the model has seen this patient


def find_pairs(
    folder: Path, reference: Path, split: str, classes: Mapping[int, str] | None = None
) -> tuple[Manifest | None, LabelSpace, list[Pair]]:
    """The pairs to score: the annotated cases of a split, or all label files of a reference folder.

    Arguments
        classes     value -> class name in label files that do not name them

    Errors
        DataError   nothing to evaluate, no reference, a case without prediction, two predictions of one case, files
                    whose values mean nothing that is known, or an annotated class that a prediction does not know
    """
    for place in (folder, reference):
        if not place.exists():
            raise DataError(
                "there is no such file or folder", file=place, do="correct its path", code="not-found"
            )
    found = _label_files(folder)
    if not found:
        raise DataError(
            "no label file to evaluate",
            file=folder,
            found=", ".join(sorted(entry.name for entry in folder.iterdir())[:5])
            if folder.is_dir()
            else None,
            expected="label files named after the cases: CASE.nii.gz, CASE.seg.nrrd, CASE.seg.dcm",
            do="run `labelwise predict` first",
        )
    file = manifest_file(reference)
    if file.name == MANIFEST_NAME and file.exists():
        return _in_manifest(folder, found, file, split, classes)
    references = _label_files(reference)
    if not references:
        raise DataError("no reference found", file=reference, expected="manifest.csv, or label files")
    _require(list(references), found, folder)
    return _in_folder(found, references, classes)


def in_space(labels: Array, values: Mapping[int, str], space: LabelSpace) -> Array:
    """Values of a file -> indices of `space`, joined by name; what `space` lacks is background there.

    Shapes
        labels      (*S)  integers; those without a class become IGNORE, which no prediction may hold
        returns     (*S)  the same map if both agree, else uint8
    """
    if all(space.names[value : value + 1] == (name,) for value, name in values.items()) and len(
        values
    ) == len(space.names):
        return labels
    highest = max(0, *values)
    table = np.full(highest + 2, IGNORE, np.uint8)
    for value, name in ({0: BACKGROUND} | dict(values)).items():
        if value >= 0:
            table[value] = next((n for n, each in enumerate(space.names) if anatomy.same(each, name)), 0)
    known = (labels >= 0) & (labels <= highest)
    return np.asarray(table[np.where(known, labels, highest + 1)])


def region_values(labels: Labels, region: str, space: LabelSpace) -> list[int]:
    """The values of a label file that lie in a region: those of its classes, and its own."""
    inside = (region, *space.classes_of(region))
    return [
        value for value, name in labels.values.items() if any(anatomy.same(name, each) for each in inside)
    ]


def _in_manifest(
    folder: Path, found: Mapping[str, Path], file: Path, split: str, classes: Mapping[int, str] | None
) -> tuple[Manifest, LabelSpace, list[Pair]]:
    manifest = read_manifest(file)
    cases = [case for case in manifest.split(split) if case.annotated]
    if not cases:
        raise DataError(f"no annotated case is in the split '{split}'", file=file, code="no-case")
    _require([case.id for case in cases], found, folder)
    pairs = []
    for case in cases:
        prediction = _labels(found[case.id], classes) or Labels(
            found[case.id], _table(manifest, found[case.id], case.id)
        )
        structures = tuple(sorted(case.annotated))
        pairs.append(Pair(case.id, prediction, None, structures, case.images[0], case.group, case.split))
    _check_stated(pairs, classes)
    for pair in pairs:
        _check_known(pair, manifest.label_space)
    return manifest, manifest.label_space, pairs


def _table(manifest: Manifest, file: Path, case: str) -> Mapping[int, str]:
    """What the values of a file of another program mean: those of the data set, if there is one answer.

    Errors
        DataError   the tables of the data sets contradict each other
    """
    values: dict[int, str] = {}
    for data_set in manifest.data_sets.values():
        for value, name in data_set.values.items():
            if values.setdefault(value, name) != name or data_set.layout.segments:
                raise DataError(
                    "what the values of this label file mean is not known",
                    case=case,
                    file=file,
                    found="no names in its header, no record beside it, and data sets with different values",
                    do=f"{_DO}; or keep the .json records that `labelwise predict` writes",
                )
    return values


def _in_folder(
    found: Mapping[str, Path], references: Mapping[str, Path], classes: Mapping[int, str] | None
) -> tuple[None, LabelSpace, list[Pair]]:
    pairs = []
    for case, path in references.items():
        prediction, reference = _labels(found[case], classes), _labels(path, classes)
        if prediction is None or reference is None:
            raise DataError(
                "what the values of these label files mean is not known",
                case=case,
                file=path if reference is None else found[case],
                found="no names in its header, and no readable record beside it",
                do=f"{_DO}; or give a manifest as reference",
            )
        structures = tuple(
            name for name in dict.fromkeys(reference.values.values()) if name not in _NO_STRUCTURES
        )
        pairs.append(Pair(case, prediction, reference, structures))
    _check_stated(pairs, classes)
    for pair in pairs:
        _check_known(pair)
    names = dict.fromkeys(name for pair in pairs for name in pair.annotated)
    if not names:
        raise DataError("the reference names no class", file=next(iter(references.values())))
    return None, LabelSpace((BACKGROUND, *names)), pairs


_NO_STRUCTURES = (BACKGROUND, "ignore")


def _labels(file: Path, classes: Mapping[int, str] | None) -> Labels | None:
    """A label file with the classes that it names, or that the user states; None if neither says anything."""
    named, segments = value_names(file), () if suffix(file) else segment_names(file)
    if segments:
        named = dict(enumerate(segments, start=1))
    values = named or classes
    if not values:
        return None
    return Labels(file, {0: BACKGROUND, **values}, Layout(segments=segments), names_them=bool(named))


def _check_stated(pairs: Sequence[Pair], classes: Mapping[int, str] | None) -> None:
    """Stated classes are for files that do not name their values; where all do, they must say the same."""
    files = [(pair.case, file) for pair in pairs for file in (pair.prediction, pair.reference) if file]
    if not classes or not all(file.names_them for _, file in files):
        return
    for case, file in files:
        for value, name in file.values.items():
            if value and value in classes and not anatomy.same(classes[value], name):
                raise DataError(
                    "--classes contradict the names in a label file",
                    case=case,
                    file=file.file,
                    found=f"value {value} is '{name}' by the file, '{classes[value]}' by --classes",
                    do="leave out --classes: files that name their values are read by these names",
                )


def _check_known(pair: Pair, space: LabelSpace | None = None) -> None:
    """Refuse a prediction that does not know a class that is annotated, or a region neither by name nor by classes."""

    def knows(structure: str) -> bool:
        names = space.classes_of(structure) if space else {structure}
        return pair.prediction.knows(structure) or all(map(pair.prediction.knows, names))

    if unknown := [structure for structure in pair.annotated if not knows(structure)]:
        raise DataError(
            f"the model of this prediction does not know {', '.join(unknown)}",
            case=pair.case,
            file=pair.prediction.file,
            found=", ".join(name for name in pair.prediction.values.values() if name != BACKGROUND),
            expected=", ".join(pair.annotated),
            do="evaluate with a manifest that annotates only what the model knows, by the same names",
        )


def _label_files(folder: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for file in _candidates(folder):
        if (other := named.setdefault(case_of(file), file)) is not file:
            raise DataError(
                "two label files of one case", case=case_of(file), file=f"{other} and {file}", do="remove one"
            )
    return named


def _candidates(folder: Path) -> Iterator[Path]:
    for file in sorted(absolute(folder).iterdir()) if folder.is_dir() else []:  # others may stand elsewhere
        known = suffix(file) or (file.name.lower().endswith(".dcm") and is_dicom(file))
        if known and not file.name.startswith("."):
            yield file


def _require(names: Sequence[str], found: Mapping[str, Path], folder: Path) -> None:
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{len(missing)} of {len(names)} cases have no prediction",
            file=folder,
            found=", ".join(missing[:5]) + (" ..." if len(missing) > 5 else ""),
            expected=f"label files named after the cases; there are {', '.join(list(found)[:3])}",
            do="repeat `labelwise predict`; finished scans are kept",
        )
