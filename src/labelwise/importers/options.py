"""What users set for the importers of several folders: which option belongs to which data set, and is it one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from labelwise.cohort.manifest import Manifest
from labelwise.errors import ConfigError, did_you_mean
from labelwise.formats import Layout
from labelwise.importers import detect, load
from labelwise.importers.described import about
from labelwise.settings import build_settings

NOT_OPTIONS = {"folder", "data_set", "annotated", "without"}  # of the import, whatever the importer


class Job(NamedTuple):
    """One folder, and how it is going to be imported."""

    name: str  # of the data set; empty: the importer chooses it
    folder: Path
    importer: str
    options: Mapping[str, Any]

    def scan(self) -> tuple[Manifest, ...]:
        """The manifest of the folder; one for each kind of files if there are several."""
        named = {"data_set": self.name} if self.name else {}
        with about(self.folder):
            found: Manifest | tuple[Manifest, ...] = load(self.importer).scan(
                self.folder, **named, **self.options
            )
        parts = (found,) if isinstance(found, Manifest) else found
        if not isinstance(parts, tuple) or not all(isinstance(part, Manifest) for part in parts):
            raise ConfigError(
                f"the importer '{self.importer}' gives no manifest",
                found=type(found).__name__,
                expected="a Manifest, or a tuple of several",
            )
        return parts


def plan(
    folders: Mapping[str, Path | str], importer: str | None, options: Mapping[str, Any]
) -> tuple[Job, ...]:
    """The importer of each folder with its options; nothing is scanned yet.

    An option ``key`` is for every importer that has it, ``source.key`` for one data set and stronger. Options that
    are None are not set.

    Parameters
        folders    name of the data set -> folder; "" lets the importer choose the name
        importer   how all folders are laid out; found out from their contents if not given

    Errors
        ConfigError   an option is for an unknown data set, no importer has it, or its value is of a wrong kind
        DataError     a folder is missing or empty, or no importer knows its layout
    """
    chosen = {name: importer or detect(folder) for name, folder in folders.items()}
    hints = {name: options_of(load(kind).scan) for name, kind in chosen.items()}
    given: dict[str, dict[str, Any]] = {name: {} for name in folders}
    known = {key: value for key, value in options.items() if value is not None}
    for key, value in sorted(known.items(), key=lambda item: "." in item[0]):  # those of one data set last
        data_set, dot, option = key.rpartition(".")
        if dot and data_set not in folders:
            raise _unknown_data_set(data_set, folders)
        targets = [data_set] if dot else [name for name in folders if option in hints[name]]
        if not targets or option not in hints[targets[0]]:
            at = targets or list(folders)
            raise _unknown_option(option, {chosen[name]: hints[name] for name in at}, folders[at[0]])
        for name in targets:
            given[name][option] = _checked(option, value, hints[name][option], chosen[name])
    return tuple(Job(name, Path(folder), chosen[name], given[name]) for name, folder in folders.items())


def options_of(scan: Callable[..., Manifest]) -> dict[str, Any]:
    """Name -> type of the options that an importer declares."""
    hints = get_type_hints(scan)
    return {
        name: hints.get(name, Any) for name in inspect.signature(scan).parameters if name not in NOT_OPTIONS
    }


def _checked(option: str, value: Any, hint: Any, importer: str) -> Any:
    """The value, if it is of a kind that the importer reads; words that are no choice it refuses by itself."""
    if Layout in (hint, *get_args(hint)):
        return build_settings(Layout, value, option)
    if isinstance(value, str) and _has_choices(hint):
        return value
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        wanted = dict.fromkeys(
            problem["msg"].removeprefix("Input should be ") for problem in error.errors(include_url=False)
        )
        raise ConfigError(
            f"the option '{option}' of the importer '{importer}' is wrong",
            found=repr(value),
            expected=" or ".join(word for word in wanted if word != "None"),
        ) from None
    return value


def _has_choices(hint: Any) -> bool:
    return get_origin(hint) is Literal or any(map(_has_choices, get_args(hint)))


def _unknown_data_set(data_set: str, folders: Mapping[str, Any]) -> ConfigError:
    names = [name for name in folders if name]
    return ConfigError(
        f"an option is for the unknown data set '{data_set}'{did_you_mean(data_set, names)}",
        expected=", ".join(names) or "no name, because there is one data set without a name",
    )


def _unknown_option(option: str, known: Mapping[str, Mapping[str, Any]], folder: object) -> ConfigError:
    accepted = sorted({name for options in known.values() for name in options})
    importers = " or ".join(f"'{name}'" for name in known)
    return ConfigError(
        f"the importer {importers} has no option '{option}'{did_you_mean(option, accepted)}",
        file=folder,
        expected=", ".join(accepted) or "no options",
    )
