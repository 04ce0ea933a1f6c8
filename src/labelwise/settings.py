"""From a table of settings (TOML, JSON, command line) to the frozen dataclass of their owner, and to TOML.

Settings are checked by the rules of JSON: lists stand for tuples, strings for paths, and nothing is
converted silently (``true`` is not 1, ``"16"`` is not 16).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import tomlkit
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from labelwise.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings")

CHOICES = ("net", "method")  # tables that choose something by name, with the settings of that


def build_settings(cls: type[Settings], values: Mapping[str, Any] | Settings, where: str) -> Settings:
    """An instance of the dataclass `cls`, of pydantic or of Python, with `values` in place of its defaults.

    `where` says in error messages which table the values stand in, for example ``"[net.settings] of vnet"``.
    An instance of `cls` is returned as it is. A dataclass may say in a class variable `RENAMED` which of its settings
    had other names in older files: {"old": "new"}.

    Errors
        ConfigError     a setting is unknown, missing, of a wrong type or out of range
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: settings must be a table", found=values, expected=_known(cls))
    try:
        # The settings of other packages are as strict as ours, whatever their dataclass allows.
        return TypeAdapter(cls).validate_json(
            to_json(_by_new_names(cls, values), inf_nan_mode="constants"), strict=True, extra="forbid"
        )
    except ValidationError as error:
        raise _as_config_error(cls, error, where) from None
    except PydanticSerializationError as error:
        raise ConfigError(f"{where}: a setting is not a plain value", found=error) from None


def _by_new_names(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the names that they have now, also in tables of tables."""
    named = dict(values)
    for old, new in getattr(cls, "RENAMED", {}).items():
        if old in named:
            value, known = named.pop(old), named.get(new)
            if isinstance(value, Mapping) and isinstance(known, Mapping):
                value = {**known, **value}
            named[new] = value
    hints = get_type_hints(cls) if is_dataclass(cls) else {}
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


def _as_config_error(cls: type, error: ValidationError, where: str) -> ConfigError:
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
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if problem["type"] == "dataclass_type" and location:
        expected = _known(_owner(cls, (*location, "")))
    if not location:
        return ConfigError(f"{where}: the settings do not fit together", expected=expected)
    return ConfigError(f"{where}: setting '{name}' is wrong", found=repr(problem["input"]), expected=expected)


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
