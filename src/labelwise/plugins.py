"""Ours and others': the parts of one kind by name, among them those of other packages.

A package names its part in its own pyproject.toml, and no line of this package changes:

    [project.entry-points."labelwise.methods"]
    my_method = "my_package.my_method:MyMethod"

A part that takes the name of one of ours is refused. A part that cannot be used is passed over, with a warning that
names its package and its entry point; only whoever asks for it by name gets an error.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from labelwise.errors import ConfigError, LabelwiseError, ResourceError, did_you_mean

Part = TypeVar("Part")

logger = logging.getLogger("labelwise")


@dataclass(frozen=True)
class Parts(Generic[Part]):
    """All parts of one kind. Nothing is imported before it is asked for.

    Example
        >>> numbers = Parts("number", "labelwise.numbers", {"pi": "math:pi"}, "a float", lambda part: part > 0)
        >>> numbers.names(), numbers.find("pi") > 3
        (('pi',), True)
    """

    what: str  # what one is called: "method"
    group: str  # of entry points: "labelwise.methods"
    ours: Mapping[str, str]  # name -> "module:attribute", or "module"
    expected: str  # what a part must be, for the message about one that is not
    fits: Callable[[Any], bool]

    def names(self) -> tuple[str, ...]:
        """All names that `find` knows, ours first. Others' parts are not imported for this."""
        return (*self.ours, *self._others())

    def find(self, name: str) -> Part:
        """The part of a name.

        Errors
            ConfigError     no part has this name, or another package brings one that cannot be used
        """
        others = self._others()
        if name in self.ours:
            return cast(Part, _imported(self.ours[name]))
        if name not in others:
            known = (*self.ours, *others)
            raise ConfigError(
                f"unknown {self.what} '{name}'{did_you_mean(name, known)}",
                expected=", ".join(known),
                code="unknown-name",
            )
        return self._load(others[name])

    def theirs(self) -> dict[str, Part]:
        """Every part of other packages that can be used, by name."""
        found = {}
        for name, point in self._others().items():
            try:
                found[name] = self._load(point)
            except ConfigError as error:
                _warn_once(f"{error.what}; it is passed over")
        return found

    def name_of(self, part: Any) -> str:
        """The name of a class or function among the parts; that which it has itself, if it is none of them."""
        place = f"{part.__module__}:{part.__qualname__}"
        places = {point.value: name for name, point in self._others().items()}
        places |= {ours: name for name, ours in self.ours.items()}
        return places.get(place, str(part.__name__))

    def _others(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            owner = "labelwise" if point.name in self.ours else _package(found.get(point.name))
            if owner:
                described = _described(point, self.what)
                _warn_once(f"{described} is refused: {owner} has a {self.what} of this name")
            else:
                found[point.name] = point
        return found

    def _load(self, point: EntryPoint) -> Part:
        try:
            part = point.load()
        except LabelwiseError as error:
            raise self._unusable(point, str(error.what)) from error
        except (Exception, SystemExit) as error:  # a script that is imported may end the program
            raise self._unusable(point, f"{type(error).__name__}: {error}") from error
        if not self._is_fit(part):
            raise self._unusable(point, f"it is no {self.what}", found=repr(part), expected=self.expected)
        return cast(Part, part)

    def _is_fit(self, part: Any) -> bool:
        try:
            return self.fits(part)
        except (AttributeError, TypeError):
            return False

    def _unusable(self, point: EntryPoint, why: str, **facts: str) -> ConfigError:
        return ConfigError(
            f"{_described(point, self.what)} cannot be used: {why}",
            do="repair or remove this package",
            **facts,
        )


def import_extra(module: str, extra: str, why: str) -> Any:
    """A library of an optional extra of this package, imported when it is needed.

    Errors
        ResourceError   it is not installed: says `why` it is needed, and what to install
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(
            why, found=str(error), do=f"pip install 'labelwise[{extra}]'", code="extra-missing"
        ) from error


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def _described(point: EntryPoint, what: str) -> str:
    return f"the {what} '{point.name}' of {_package(point)} (entry point {point.name} = {point.value} in {point.group})"


def _package(point: EntryPoint | None) -> str:
    if point is None:
        return ""
    return f"the package {point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)
