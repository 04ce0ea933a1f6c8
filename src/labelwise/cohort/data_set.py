"""The class table: the classes of a project, and the integers that stand for them in each data set's files.

dataset.toml                              read by people, by tomllib and by nobody else
    schema = 1
    classes = ["background", "liver", "spleen"]
    [regions]                             names for several classes together; without this table there are none
    abdomen = ["liver", "spleen"]
    [sources.lits]                        one table for each data set
    modality = "ct"                       ct, mr or other
    normalised = true                     whoever made the files has normalised the intensities; else left out
    licence = "CC BY-NC-ND 4.0"           what its terms are; without this line nobody stated them
    others = "ignore"                     what values without a class are; without this line they are an error
    [sources.lits.values]
    background = [0]
    liver = [1, 2]                        structure and tumour
    ignore = [255]                        voxels about which nothing is known
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tomlkit
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from labelwise.atomic import write_text
from labelwise.cohort.text import read_text
from labelwise.documents import parse_toml
from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.formats import Layout
from labelwise.preprocess.intensity import Intensity
from labelwise.settings import build_settings, to_toml
from labelwise.types import BACKGROUND, IGNORE, Array, LabelSpace

SCHEMA = 1
FILE_NAME = "dataset.toml"
IGNORE_NAME = "ignore"
# The key of the data sets in the file stays as the first version wrote it, since programs of others read it.
# Versions in between wrote `data_sets`, which is read as well.
DATA_SETS_KEY = "sources"
_KEY_IN_BETWEEN = "data_sets"

Modality = Literal["ct", "mr", "other"]
Others = Literal["", "background", "ignore"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
_PLAIN = Layout()
MOST_STRANGE_VALUES = 300  # of a label map; more are intensities
LOWEST_LABEL = -100
_NOT_COMMERCIAL = re.compile(r"\bNC\b|non-?\s?commercial|\bresearch\b.*\bonly\b", re.IGNORECASE)


@dataclass(frozen=True)
class DataSet:
    """One data set: how its files are to be read and what their integers mean."""

    name: str
    values: Mapping[int, str]  # label value in the files -> class or region, "background" or "ignore"
    modality: Modality
    layout: Layout = _PLAIN
    others: Others = ""  # what values without a class are: an error, background, or unknown
    licence: str = ""  # terms of the scans and labels; "" if nobody stated them
    normalised: bool = (
        False  # whoever made the files has normalised the intensities: they are taken as they are
    )

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ConfigError(
                f"unknown modality '{self.modality}'{did_you_mean(self.modality, MODALITIES)}",
                expected=", ".join(MODALITIES),
                do="for intensities that must stay as they are: --normalised all",
                code="unknown-name",
            )

    @property
    def intensity(self) -> Intensity:
        """What its intensities are: each kind has a rule in the plan; what is no CT has numbers of its own, like MR."""
        return "normalised" if self.normalised else "ct" if self.modality == "ct" else "mr"

    @property
    def structures(self) -> frozenset[str]:
        """The structures that a label file of this data set can show; none if nothing of it is labelled."""
        return frozenset(self.values.values()) - {BACKGROUND, IGNORE_NAME}


def region_index(label_space: LabelSpace, name: str) -> int:
    """The number of a region in stored labels: from the last below IGNORE downwards, so that classes keep theirs."""
    return IGNORE - 1 - label_space.region_names.index(name)


def numbers_in(label_space: LabelSpace, region: str) -> list[int]:
    """The numbers in stored labels of all that lies in a region: its classes, itself, and the regions in it."""
    classes = label_space.classes_of(region)
    regions = [name for name in label_space.region_names if label_space.classes_of(name) <= classes]
    return [*map(label_space.index, classes), *(region_index(label_space, name) for name in regions)]


def forbids_commercial_use(licence: str) -> bool:
    """Whether the words of a licence forbid commercial use, as "NC" of Creative Commons and "research only" do."""
    return bool(_NOT_COMMERCIAL.search(licence))


def not_commercial(data_sets: Iterable[DataSet]) -> list[str]:
    """The data sets that forbid commercial use, each with its licence."""
    return [f"{one.name} ({one.licence})" for one in data_sets if forbids_commercial_use(one.licence)]


@dataclass(frozen=True)
class LookupTable:
    """Label values of files -> class indices, for one set of annotated structures."""

    codes: Array  # int16 by value, then one for all others, negative values from the end; -1: without meaning
    low: int
    high: int

    @classmethod
    def of(
        cls,
        data_set: DataSet,
        label_space: LabelSpace,
        annotated: Iterable[str],
        *,
        with_regions: bool = False,
    ) -> LookupTable:
        """Structures that are not annotated become 0: what the file says about them must not be believed.

        So do regions, in which no class is annotated by itself; or, `with_regions`, their `region_index`.
        """
        named = frozenset(annotated)
        index = {IGNORE_NAME: IGNORE} | {
            name: label_space.index(name) for name in label_space.told_apart(named)
        }
        if with_regions:
            index |= {name: region_index(label_space, name) for name in named & {*label_space.region_names}}
        low, high = min(0, *data_set.values), max(0, *data_set.values)
        rest = {BACKGROUND: 0, IGNORE_NAME: IGNORE}.get(data_set.others, -1)
        codes = np.full(high - low + 2, rest, dtype=np.int16)
        for value, name in data_set.values.items():
            codes[value] = index.get(name, 0)
        return cls(codes, low, high)

    def __call__(self, values: Array) -> Array | None:
        """uint8 class indices of the same shape, or None if some value has no meaning."""
        if values.min() < self.low or values.max() > self.high:
            if self.codes[self.high + 1] < 0:
                return None
            values = np.where((values < self.low) | (values > self.high), self.high + 1, values)
        # Fancy indexing: np.take copies its indices to 64 bits and is ten times slower.
        found = self.codes[values]
        return found.astype(np.uint8) if found.min() >= 0 else None


def unknown_values(data_set: DataSet, stored: Array, case: str, file: Path) -> DataError:
    """The error for a label map with values that the table of its data set does not know."""
    numbers, counts = np.unique(stored, return_counts=True)
    found = {
        int(number): int(count)
        for number, count in zip(numbers, counts, strict=True)
        if int(number) not in data_set.values
    }
    if len(found) > MOST_STRANGE_VALUES or min(found) < LOWEST_LABEL:
        return DataError(
            "this label file looks like a scan: it holds intensities",
            case=case,
            file=file,
            found=f"{len(numbers):,} different values, {numbers[0]} to {numbers[-1]}",
            expected=", ".join(f"{number} {name}" for number, name in sorted(data_set.values.items())[:8]),
            do="put the label map in its place: the file may be a copy of the image",
        )
    shown = list(found)[:8]
    listed = ", ".join(map(str, shown)) + (", ..." if len(found) > len(shown) else "")
    table = tomlkit.key(data_set.name).as_string()
    return DataError(
        f"label map contains value{'s' if len(found) > 1 else ''} {listed}, "
        f"but the table of data set '{data_set.name}' has no class for {'them' if len(found) > 1 else 'it'}",
        case=case,
        file=file,
        found="; ".join(_voxels(found[number], number, stored.size) for number in shown),
        expected=", ".join(f"{number} {name}" for number, name in sorted(data_set.values.items())),
        do=f'in {FILE_NAME}, add  "<class>" = [{shown[0]}]  to [{DATA_SETS_KEY}.{table}.values], '
        f"or  {IGNORE_NAME} = [{shown[0]}]  to leave those voxels out; for all of them others = 'background' or "
        "'ignore' (--others at import)",
        code="unknown-label-value",
    )


def _voxels(count: int, value: int, total: int) -> str:
    return f"{count:,} voxel{'s' if count > 1 else ''} of value {value} ({100 * count / total:.2g} %)"


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _DataSetTable:
    modality: Modality | Literal["normalised"]  # the last as older versions wrote it: nobody said of what
    values: dict[str, list[int]]
    layout: Layout = _PLAIN
    others: Others = ""
    licence: str = ""
    normalised: bool = False


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Document:
    schema: int
    classes: list[str]
    sources: dict[str, _DataSetTable]
    regions: dict[str, list[str]] = field(default_factory=dict)


def read_class_table(file: Path) -> tuple[LabelSpace, dict[str, DataSet]]:
    """Read dataset.toml.

    Errors
        DataError   the file is missing or garbled, a key is unknown, a class of a data set is not in `classes`,
                    a value means two things, regions go round in a circle, or the file was written by a newer
                    labelwise
    """
    document = _read_toml(file)
    schema = document.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise DataError(
            "this manifest was written by a newer version of labelwise",
            file=file,
            found=f"schema = {schema}",
            expected=f"schema = {SCHEMA} or older",
            do="pip install --upgrade labelwise",
            code="newer-version",
        )
    try:
        checked = build_settings(_Document, document, FILE_NAME)
        regions = tuple((name, tuple(members)) for name, members in checked.regions.items())
        label_space = LabelSpace(tuple(checked.classes), regions)
    except ConfigError as error:
        raise DataError(
            error.what, file=file, found=error.found, expected=error.expected, do=error.do
        ) from error
    return label_space, {
        name: _data_set(name, table, label_space, file) for name, table in checked.sources.items()
    }


def write_class_table(file: Path, label_space: LabelSpace, data_sets: Mapping[str, DataSet]) -> None:
    """Write dataset.toml, whole or not at all."""
    write_text(
        file,
        to_toml(
            {
                "schema": SCHEMA,
                "classes": label_space.names,
                **({"regions": dict(label_space.regions)} if label_space.regions else {}),
                DATA_SETS_KEY: {data_set.name: _table(data_set) for data_set in data_sets.values()},
            }
        ),
    )


def _table(data_set: DataSet) -> dict[str, Any]:
    layout = {
        each.name: getattr(data_set.layout, each.name)
        for each in fields(data_set.layout)
        if getattr(data_set.layout, each.name) != each.default
    }
    table: dict[str, Any] = {"modality": data_set.modality}
    table |= {"normalised": True} if data_set.normalised else {}
    table |= {"licence": data_set.licence} if data_set.licence else {}
    table |= {"others": data_set.others} if data_set.others else {}
    table |= {"values": _by_name(data_set)}
    return table | {"layout": layout} if layout else table


def check_data_set(data_set: DataSet, label_space: LabelSpace, file: Path | None = None) -> None:
    """Raise a DataError unless every value of a data set means a class of the label space."""
    known = {*label_space.names, *label_space.region_names, IGNORE_NAME}
    for value, name in data_set.values.items():
        if name not in known:
            raise DataError(
                f"data set '{data_set.name}': value {value} stands for the unknown class '{name}'"
                f"{did_you_mean(name, known)}",
                file=file,
                expected=", ".join([*label_space.names, *label_space.region_names, IGNORE_NAME]),
                do=f"correct the name, or add '{name}' to classes",
            )
        if not -(2**15) <= value < 2**16:
            raise DataError(
                f"data set '{data_set.name}': {value} cannot be a label value",
                file=file,
                expected="-32768 to 65535",
            )


def value_table(classes: Mapping[str, int | Sequence[int]]) -> dict[int, str]:
    """Label value -> class name, from class name -> value or values; value 0 is the background if unnamed.

    Errors
        ConfigError   a value stands for two classes, or no value is the background
    """
    values: dict[int, str] = {}
    for name, numbers in classes.items():
        for number in [numbers] if isinstance(numbers, int) else numbers:
            if values.setdefault(number, name) != name:
                raise ConfigError(
                    f"the value {number} stands for two classes", found=f"{values[number]}, {name}"
                )
    values.setdefault(0, BACKGROUND)
    if BACKGROUND not in values.values():
        raise ConfigError("no value stands for the background", found=dict(classes), do=f"add {BACKGROUND}")
    return dict(sorted(values.items()))


def _data_set(name: str, table: _DataSetTable, label_space: LabelSpace, file: Path) -> DataSet:
    values: dict[int, str] = {}
    for class_name, numbers in table.values.items():
        for number in numbers:
            if values.setdefault(number, class_name) != class_name:
                raise DataError(
                    f"data set '{name}': the value {number} stands for two classes",
                    file=file,
                    found=f"{values[number]}, {class_name}",
                    do="keep one of them",
                )
    modality: Modality = "other" if table.modality == "normalised" else table.modality
    normalised = table.normalised or table.modality == "normalised"
    data_set = DataSet(name, values, modality, table.layout, table.others, table.licence, normalised)
    check_data_set(data_set, label_space, file)
    return data_set


def _read_toml(file: Path) -> dict[str, Any]:
    text = read_text(
        file,
        missing="the class table is missing: it lies beside manifest.csv",
        do="copy it from where the manifest was made, or import the data set again",
    )
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise DataError(
            f"the class table cannot be read: {error}", file=file, expected="TOML", code="unreadable"
        ) from error
    if _KEY_IN_BETWEEN in document:
        if DATA_SETS_KEY in document:
            raise DataError(
                "the data sets stand under two keys",
                file=file,
                found=f"[{DATA_SETS_KEY}] and [{_KEY_IN_BETWEEN}]",
                do=f"move all of them to [{DATA_SETS_KEY}]",
            )
        document[DATA_SETS_KEY] = document.pop(_KEY_IN_BETWEEN)
    return document


def _by_name(data_set: DataSet) -> dict[str, list[int]]:
    names: dict[str, list[int]] = {}
    for value, name in sorted(data_set.values.items()):
        names.setdefault(name, []).append(value)
    return names
