"""What the integers of one label file mean: by the names in it, by the record beside it, by the table of its source.

Programs number structures in the order in which somebody drew them, so the same number may be the liver in one file
and the spleen in the next. Names decide; the table is for files without names. What cannot be reconciled is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from labelwise import anatomy
from labelwise.cohort.source import FILE_NAME, IGNORE_NAME, Source
from labelwise.errors import DataError
from labelwise.formats import Tally, value_names
from labelwise.types import BACKGROUND


def source_of_file(source: Source, file: Path) -> Source:
    """The data set with the value table that holds for one of its label files.

    Errors
        DataError   a damaged file; its names contradict the table, or the record beside the file
    """
    if source.layout.segments or source.layout.file_names == "ignored":
        return source
    named = value_names(file)
    return replace(source, values=_reconciled(source, file, named)) if named else source


def shown_organs(source: Source, file: Path, tally: Tally) -> frozenset[str]:
    """The organs about which a label file says something: those that it names, and of which something was drawn.

    A mask in a folder of masks, and a value of a file without names, says that an organ is absent where it has no
    voxel. The segments of clinical programs do not: templates list structures that nobody drew.

    Parameters
        source  resolved for this file
        tally   what was read of it
    """
    organs = source.organs
    if source.layout.file_names == "believed" and not source.layout.segments and (named := value_names(file)):
        organs = frozenset(source.values[value] for value in named if value in source.values) & organs
    if file.is_dir() or not tally.counted:
        return organs
    whole = frozenset(
        name for value, name in source.values.items() if tally.drawn[value] and value not in tally.dropped
    )
    broken = frozenset(source.values[value] for value in tally.dropped)
    return organs & (whole - broken)


def _reconciled(source: Source, file: Path, named: Mapping[int, str]) -> dict[int, str]:
    """Value -> class, by the names of a file where they are names of classes, else by the table of its source."""
    values: dict[int, str] = {0: source.values.get(0, BACKGROUND)}
    strange: dict[int, str] = {}
    for value, name in named.items():
        if (found := _class_of(name, source.values.get(value), source)) is None:
            strange[value] = name
        else:
            values[value] = found
    by_name = frozenset(values.values()) - {BACKGROUND, IGNORE_NAME}
    for value, name in strange.items():
        told = source.values.get(value)
        if told is None:
            continue  # without a meaning: an error where it occurs, or one of the `others`
        joined = sum(other == told for other in source.values.values()) > 1  # under a name of its own
        if told not in (BACKGROUND, IGNORE_NAME) and not joined:
            raise DataError(
                "the names in a label file contradict the value table of its data set",
                file=file,
                found=f"value {value} is '{name}' by the file",
                expected=f"value {value} is '{told}' by data set '{source.name}' in {FILE_NAME}",
                do=f"correct --classes, or [sources.{source.name}.values], to the names of the file; or give "
                f"file_names = 'ignored' in the layout of the data set (--file-names ignored at import) if its "
                "numbers are right and its names are wrong",
                code="names-contradict",
            )
        values[value] = told
    # Numbers without a name are known by the table, if no name has taken their class.
    for value, told in source.values.items():
        if value not in values and told not in by_name:
            values[value] = told
    return values


def _class_of(name: str, told: str | None, source: Source) -> str | None:
    """The class of a data set that a name means: its own, or the joint one of both sides."""
    known = (*sorted(source.organs), BACKGROUND, IGNORE_NAME)
    found = next((each for each in known if anatomy.same(each, name)), None)
    structure = anatomy.find(name)
    if found is None and structure and structure.whole and told not in (BACKGROUND, IGNORE_NAME):
        found = next((each for each in known if anatomy.same(each, structure.whole)), None)
    return found


def losses(source: Source, tally: Tally) -> list[str]:
    """A sentence for each pair of classes that overlap in a label file."""
    return tally.losses(source.values)


def refuse_hidden(source: Source, tally: Tally, annotated: Iterable[str]) -> None:
    """Raise a DataError if nothing is left of an annotated organ that was drawn, because others cover it."""
    for organ in sorted(annotated):
        own = [value for value, name in source.values.items() if name == organ]
        drawn = sum(tally.drawn[value] for value in own)
        if drawn and not any(tally.left(value) for value in own):
            raise DataError(
                f"a structure vanishes: '{organ}' lies wholly beneath other structures",
                found="; ".join(losses(source, tally)),
                do=f"let the smaller structure count where two overlap: overlap = 'smaller' in the layout of data set "
                f"'{source.name}' in {FILE_NAME} (--overlap smaller at import)",
                code="structure-hidden",
            )
