"""What the JSON files of data sets say: classes and channels, in the words of nnU-Net, the Decathlon and MONAI."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from labelwise.cohort.data_set import Modality
from labelwise.cohort.text import read_text
from labelwise.errors import DataError, LabelwiseError
from labelwise.importers.listing import class_names, logger
from labelwise.types import LabelSpace

CLASSES_EXAMPLE = '"labels": {"background": 0, "liver": 1}'


@contextmanager
def about(file: object) -> Iterator[None]:
    """Errors that name no file get this one."""
    try:
        yield
    except LabelwiseError as error:
        if error.file is not None:
            raise
        raise error.but(file=file) from error


def read_json(file: Path, looks_for: str) -> Any:
    """The content of a JSON file.

    Errors
        DataError   the file is missing, is not UTF-8 text or not JSON
    """
    text = read_text(file, missing=f"{file.name} is missing", do=f"this importer looks for {looks_for}")
    try:
        return json.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # also a number of thousands of digits, lists in lists in lists
        raise DataError(
            f"{file.name} cannot be read: {error}", file=file, expected="JSON", code="unreadable"
        ) from error


def label_space(
    classes: Iterable[str], file: Path, regions: Mapping[str, Sequence[str]] | None = None
) -> LabelSpace:
    """The label space of classes as a file names them, and of its regions, which are made of classes.

    Errors
        DataError   a name cannot be one of a class, or none is a structure
    """
    names = class_names(classes)
    if len(names) < 2:
        raise DataError("the classes need at least one structure", file=file, found=", ".join(names))
    for name in names:
        if not name.isprintable():
            raise DataError(
                "a class name holds characters that cannot be printed", file=file, found=ascii(name)
            )
    try:
        return LabelSpace(names, tuple((name, tuple(parts)) for name, parts in (regions or {}).items()))
    except LabelwiseError as error:
        raise DataError(error.what, file=file, found=error.found, expected=error.expected) from error


def classes_by_name(labels: Any, file: Path) -> dict[str, list[int]]:
    """Class name -> values, from name -> value or values (nnU-Net) or value -> name (the Decathlon).

    Errors
        DataError   it is neither, or a value is not an integer
    """
    named: dict[str, list[Any]] = {}
    if isinstance(labels, dict) and all(isinstance(name, str) for name in labels.values()):
        for value, name in labels.items():
            named.setdefault(name, []).append(int(value) if _is_number(value) else value)
    elif isinstance(labels, dict):
        named = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
    if not named:
        raise DataError(f"{file.name} names no labels", file=file, expected=CLASSES_EXAMPLE)
    if wrong := {
        name: values for name, values in named.items() if not values or not all(map(_is_integer, values))
    }:
        raise DataError("a label is not an integer", file=file, found=wrong, expected=CLASSES_EXAMPLE)
    return named


def channel_names(named: Any) -> list[str]:
    """Names of channels in order, from number -> name, or name -> number, which people write as well.

    Example
        >>> channel_names({"0": "CT"}), channel_names({"T1": 0, "FLAIR": 1}), channel_names(["CT"])
        (['CT'], ['T1', 'FLAIR'], ['CT'])
    """
    if isinstance(named, str):
        return [named]
    if isinstance(named, list):
        return [str(name) for name in named]
    if not isinstance(named, dict):
        return []
    numbers = [_number(key) for key in named], [_number(value) for value in named.values()]
    if None in numbers[0] and None not in numbers[1]:
        return [
            str(key) for _, key in sorted(zip(numbers[1], named, strict=True), key=lambda pair: pair[0] or 0)
        ]
    if None not in numbers[0]:
        ordered = sorted(zip(numbers[0], named.values(), strict=True), key=lambda pair: pair[0] or 0)
        return [str(name) for _, name in ordered]
    return [str(name) for name in named.values()]


class Kind(NamedTuple):
    """What the names of its channels say of a scan."""

    modality: Modality
    normalised: bool = False


def kind_of(channels: Sequence[str]) -> Kind:
    """CT -> ct; T1, LGE and the like -> mr; noNorm -> normalised; everything else -> other.

    What is no CT is scaled channel by channel and scan by scan, unless it is normalised.

    A channel is a CT if a word of its name says so: "CTA", "CT_arterial". What is neither known as CT nor as MR is
    reported.
    """
    kinds = [_kind(name) for name in channels]
    if set(kinds) == {"ct"}:
        return Kind("ct")
    if set(kinds) == {"nonorm"}:
        return Kind("other", normalised=True)
    if "ct" in kinds:
        logger.warning("the channels %s are not all CT: each is normalised by itself", ", ".join(channels))
    elif "" in kinds:
        logger.warning(
            "the modality is not known from the channel name%s %s: each scan is scaled by itself "
            "(--modality ct, for example, says otherwise)",
            "s" if len(channels) > 1 else "",
            ", ".join(f"'{name}'" for name in channels),
        )
    return Kind("mr" if set(kinds) == {"mr"} else "other")


_CT = re.compile(r"(?:c?e?|ld|hr|nc|cb|pet|spect)?cta?|cect|ncct|computed|tomography|hu")
_MR = re.compile(
    r"mri?|mra|t[12].*|flair|adc|dwi|pd|pdw|swi|dce|dixon|lge|cine|gre|epi|bold|stir|space|vibe|haste|.*mri"
)


def _kind(name: str) -> str:
    """ct, mr, nonorm, or nothing for a name that says nothing."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[^a-z0-9]+", apart.lower()) if word]
    if "".join(words) == "nonorm":
        return "nonorm"
    if any(_CT.fullmatch(word) for word in words):
        return "ct"
    return "mr" if any(_MR.fullmatch(word) for word in words) else ""


def _number(value: Any) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and _is_number(value.strip()) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _is_integer(value: Any) -> bool:
    return type(value) is int  # True and False are integers, too, but no label
