"""From a table of settings (TOML, JSON, command line) to the frozen dataclass of their owner, and to TOML.

Settings are checked by the rules of JSON: lists stand for tuples, strings for paths, and nothing is
converted silently (``true`` is not 1, ``"16"`` is not 16).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import tomlkit
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from labelwise.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings")

CHOICES = ("net", "method")  # tables that choose something by name, with the settings of that
# What files of before call what has another name now: settings, columns, tables, ways to hide labels.
OLDER_NAMES: Mapping[str, str] = {
    "by_source": "by_data_set",
    "incomplete_cases": "unlabelled_cases",
    "modalities": "intensities",
    "one_organ_per_case": "one_structure_per_case",
    "organ_chunk": "structure_chunk",
    "organ_prior": "structure_prior",
    "organs_per_case": "structures_per_case",
    "source": "data_set",
    "sources": "data_sets",
    "tidy": "postprocess",
}
# Settings that files of before do not have, and the value that does what was done then.
ADDED: Mapping[str, object] = {"accumulate": 1, "floor": 0.01, "patience": 4, "slices": "all"}
# Settings whose values were called otherwise: setting -> older value -> the present one.
OLDER_VALUES: Mapping[str, Mapping[str, str]] = {
    "cut_among": {"incomplete": "unlabelled"},
    "consistency_on": {"incomplete": "unlabelled"},
}

# What pydantic expects -> the words of TOML.
_IN_TOML: Mapping[str, str] = {
    "a valid array": "a list in square brackets",
    "a valid boolean": "true or false",
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid string": "a text in quotes",
    "an object": "a table",
}


def build_settings(cls: type[Settings], values: Mapping[str, Any] | Settings, where: str) -> Settings:
    """An instance of the dataclass `cls`, of pydantic or of Python, with `values` in place of its defaults.

    `where` says in error messages which table the values stand in, for example ``"[net.settings] of vnet"``.
    An instance of `cls` is returned as it is. Settings may have the names of before (`OLDER_NAMES`).

    Errors
        ConfigError     a setting is unknown, missing, of a wrong type or out of range
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: settings must be a table", found=values, expected=_known(cls))
    named = _by_new_names(cls, values)
    try:
        # The settings of other packages are as strict as ours, whatever their dataclass allows.
        return TypeAdapter(cls).validate_json(
            to_json(named, inf_nan_mode="constants"), strict=True, extra="forbid"
        )
    except ValidationError as error:
        raise _as_config_error(cls, error, named, where) from None
    except PydanticSerializationError as error:
        raise ConfigError(f"{where}: a setting is not a plain value", found=error) from None


def present_name(dotted: str) -> str:
    """``"sampling.incomplete_cases"`` -> ``"sampling.unlabelled_cases"``; what follows ``settings`` is its owner's."""
    ours, settings, theirs = dotted.partition(".settings.")
    return ".".join(OLDER_NAMES.get(part, part) for part in ours.split(".")) + settings + theirs


def by_present_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, also dotted ones and tables of tables, under the names that they have now.

    Those of a method or network keep theirs: only `build_settings` knows whose they are.
    """
    return {
        present_name(key): by_present_names(value)
        if isinstance(value, Mapping) and key != "settings"
        else value
        for key, value in tree.items()
    }


def _by_new_names(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the names that they have now, also in tables of tables; keys that people chose stay."""
    hints = get_type_hints(cls) if is_dataclass(cls) else {}
    named = dict(values)
    for old in [key for key in values if key not in hints and OLDER_NAMES.get(key) in hints]:
        new = OLDER_NAMES[old]
        value, known = named.pop(old), named.get(new)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            value = {**known, **value}
        elif known is not None:
            raise ConfigError(
                f"'{old}' is the older name of '{new}', and both are set", do=f"set {new} alone"
            )
        named[new] = value
    for name, renamed in OLDER_VALUES.items():
        if name in hints and isinstance(named.get(name), str):
            named[name] = renamed.get(named[name], named[name])
    for name, value in named.items():
        if isinstance(value, Mapping):
            kinds = (hints.get(name), *get_args(hints.get(name)))
            owner = next((kind for kind in kinds if is_dataclass(kind)), None)
            named[name] = _by_new_names(owner, value) if owner else value
    return named


def to_toml(table: Mapping[str, Any]) -> str:
    """A table of settings, with tables in it, as TOML. None is left out: it means the default."""
    return tomlkit.dumps(_plain(table))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value


def _as_config_error(cls: type, error: ValidationError, values: Mapping[str, Any], where: str) -> ConfigError:
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda p: p["type"] != "unexpected_keyword_argument")
    location = problem["loc"]
    name = ".".join(str(part) for part in location)
    if problem["type"] == "unexpected_keyword_argument":
        owner = _owner(cls, location)
        near = did_you_mean(str(location[-1]), [field.name for field in fields(owner)])
        return ConfigError(f"{where}: unknown setting '{name}'{near}", expected=_known(owner))
    if problem["type"] == "missing" and isinstance(location[-1], str):
        return ConfigError(f"{where}: setting '{name}' is missing", expected=_known(_owner(cls, location)))
    name = ".".join(str(part) for part in _stated(values, location))
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = _IN_TOML.get(expected, expected)
    if problem["type"] == "dataclass_type" and location:
        expected = _known(_owner(cls, (*location, "")))
    if not location:
        return ConfigError(f"{where}: the settings do not fit together", expected=expected)
    return ConfigError(f"{where}: setting '{name}' is wrong", found=repr(problem["input"]), expected=expected)


def _stated(values: Any, location: Sequence[int | str]) -> Iterator[int | str]:
    """The parts of a location that lead through the values; others name a type that was tried, of several."""
    for part in location:
        try:
            values = values[part]
        except (IndexError, KeyError, TypeError):
            continue
        yield part


def _owner(cls: type, location: Sequence[int | str]) -> Any:
    """The dataclass, `cls` or one nested in it, whose field the last part of `location` names."""
    owner = cls
    for part in location[:-1]:
        annotation = get_type_hints(owner).get(str(part))
        owner = next((t for t in (annotation, *get_args(annotation)) if is_dataclass(t)), owner)  # type: ignore[assignment]
    return owner


def _known(cls: Any) -> str:
    return "a table of " + ", ".join(field.name for field in fields(cls)) if fields(cls) else "no settings"


def put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``"train.steps"`` in a table of tables; ConfigError if ``train`` is a value."""
    *tables, name = dotted.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"'{dotted}': '{table}' is a value, not a table")
    both = isinstance(value, Mapping) and isinstance(tree.get(name), Mapping)
    tree[name] = merged(tree[name], value) if both else value


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """``{"train": {"steps": [4]}}`` -> ``{"train.steps": [4]}``: what `put` undoes."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return found


def merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested tables as one; where both have a value, that of `top`."""
    together = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(together.get(key), Mapping)
        # Settings belong to one method or network: under another name the base's settings mean nothing.
        name = together[key].get("name") if both else None
        renamed = key in CHOICES and both and value.get("name", name) != name
        together[key] = merged(together[key], value) if both and not renamed else value
    return together
