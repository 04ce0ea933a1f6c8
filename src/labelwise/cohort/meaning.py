"""What the integers of one label file mean: by the names in it, by the record beside it, by the table of its data set.

Programs number structures in the order in which somebody drew them, so the same number may be the liver in one file
and the spleen in the next. Names decide; the table is for files without names. What cannot be reconciled is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from labelwise import anatomy
from labelwise.cohort.data_set import DATA_SETS_KEY, FILE_NAME, IGNORE_NAME, DataSet
from labelwise.errors import DataError
from labelwise.formats import Tally, value_names
from labelwise.types import BACKGROUND


def data_set_of_file(data_set: DataSet, file: Path) -> DataSet:
    """The data set with the value table that holds for one of its label files.

    Errors
        DataError   a damaged file; its names contradict the table, or the record beside the file
    """
    if data_set.layout.segments or data_set.layout.file_names == "ignored":
        return data_set
    named = value_names(file)
    return replace(data_set, values=_reconciled(data_set, file, named)) if named else data_set


def shown_structures(data_set: DataSet, file: Path, tally: Tally) -> frozenset[str]:
    """The structures about which a label file says something: those that it names, and of which something was drawn.

    A mask in a folder of masks, and a value of a file without names, says that a structure is absent where it has no
    voxel. The segments of clinical programs do not: templates list structures that nobody drew.

    Parameters
        data_set  resolved for this file
        tally   what was read of it
    """
    structures = data_set.structures
    if (
        data_set.layout.file_names == "believed"
        and not data_set.layout.segments
        and (named := value_names(file))
    ):
        structures = (
            frozenset(data_set.values[value] for value in named if value in data_set.values) & structures
        )
    # Which of the combinations a case knows, the import has found out.
    if file.is_dir() or not tally.counted or data_set.layout.overlap == "kept":
        return structures
    whole = frozenset(
        name for value, name in data_set.values.items() if tally.drawn[value] and value not in tally.dropped
    )
    broken = frozenset(data_set.values[value] for value in tally.dropped)
    return structures & (whole - broken)


def _reconciled(data_set: DataSet, file: Path, named: Mapping[int, str]) -> dict[int, str]:
    """Value -> class, by the names of a file where they are names of classes, else by the table of its data set."""
    values: dict[int, str] = {0: data_set.values.get(0, BACKGROUND)}
    strange: dict[int, str] = {}
    for value, name in named.items():
        if (found := _class_of(name, data_set.values.get(value), data_set)) is None:
            strange[value] = name
        else:
            values[value] = found
    by_name = frozenset(values.values()) - {BACKGROUND, IGNORE_NAME}
    for value, name in strange.items():
        told = data_set.values.get(value)
        if told is None:
            continue  # without a meaning: an error where it occurs, or one of the `others`
        joined = sum(other == told for other in data_set.values.values()) > 1  # under a name of its own
        if told not in (BACKGROUND, IGNORE_NAME) and not joined:
            raise DataError(
                "the names in a label file contradict the value table of its data set",
                file=file,
                found=f"value {value} is '{name}' by the file",
                expected=f"value {value} is '{told}' by data set '{data_set.name}' in {FILE_NAME}",
                do=f"correct --classes, or [{DATA_SETS_KEY}.{data_set.name}.values], to the names of the file; or give "
                f"file_names = 'ignored' in the layout of the data set (--file-names ignored at import) if its "
                "numbers are right and its names are wrong",
                code="names-contradict",
            )
        values[value] = told
    # Numbers without a name are known by the table, if no name has taken their class.
    for value, told in data_set.values.items():
        if value not in values and told not in by_name:
            values[value] = told
    return values


def _class_of(name: str, told: str | None, data_set: DataSet) -> str | None:
    """The class of a data set that a name means: its own, or the joint one of both sides."""
    known = (*sorted(data_set.structures), BACKGROUND, IGNORE_NAME)
    found = next((each for each in known if anatomy.same(each, name)), None)
    structure = anatomy.find(name)
    if found is None and structure and structure.whole and told not in (BACKGROUND, IGNORE_NAME):
        found = next((each for each in known if anatomy.same(each, structure.whole)), None)
    return found


def losses(data_set: DataSet, tally: Tally) -> list[str]:
    """A sentence for each pair of classes that overlap in a label file."""
    return tally.losses(data_set.values)


def refuse_hidden(data_set: DataSet, tally: Tally, annotated: Iterable[str]) -> None:
    """Raise a DataError if nothing is left of an annotated structure that was drawn, because others cover it."""
    for structure in sorted(annotated):
        own = [value for value, name in data_set.values.items() if name == structure]
        drawn = sum(tally.drawn[value] for value in own)
        if drawn and not any(tally.left(value) for value in own):
            raise DataError(
                f"a structure vanishes: '{structure}' lies wholly beneath other structures",
                found="; ".join(losses(data_set, tally)),
                do=f"let the smaller structure count where two overlap: overlap = 'smaller' in the layout of data set "
                f"'{data_set.name}' in {FILE_NAME} (--overlap smaller at import)",
                code="structure-hidden",
            )
