"""Regions: names for several classes together, such as the whole heart for its chambers, or a tumour for its parts.

known      a case knows a region if it is annotated for it as one, or for the classes and regions that it consists of
as one     within the region a voxel is one of its classes, nobody knows which; beyond it, it is none of them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from labelwise.anatomy import canonical
from labelwise.cohort.data_set import IGNORE_NAME
from labelwise.cohort.manifest import Manifest, resolved
from labelwise.cohort.parts import annotated_everywhere
from labelwise.errors import ConfigError, did_you_mean
from labelwise.types import BACKGROUND, LabelSpace


def with_regions(manifest: Manifest, stated: Mapping[str, Sequence[str]]) -> Manifest:
    """The manifest with further regions; a class of the name of one is no class any more, but annotated as one region.

    Parameters
        stated      name -> its classes and regions, in any spelling that `labelwise.anatomy` knows

    Errors
        ConfigError     an unknown class; a region has no class, has the name of another one, or holds itself
    """
    space = manifest.label_space
    names = tuple(name for name in space.names if name not in stated)
    spelt = {canonical(name): name for name in (*names, *space.region_names, *stated)}
    regions = [*space.regions]
    for region, members in stated.items():
        found = []
        for member in members:
            if (name := spelt.get(canonical(member))) is None:
                raise ConfigError(
                    f"the region '{region}' holds the unknown class '{member}'{did_you_mean(member, spelt.values())}",
                    expected=", ".join(name for name in spelt.values() if name not in (names[0], region)),
                    code="unknown-name",
                )
            found.append(name)
        regions.append((region, tuple(dict.fromkeys(found))))
    return replace(manifest, label_space=LabelSpace(names, tuple(regions)))


def as_one(single: Manifest, region: str) -> Manifest | None:
    """A manifest of one case in which a region is the only class; None if the case does not know the region.

    The classes of which it consists must be annotated all over the scan.

    Errors
        DataError   the names in the label file contradict the value table
    """
    case, space = single.cases[0], single.label_space
    if not space.covers(annotated_everywhere(case), region):
        return None
    data_set = resolved(single).data_set_of(case)
    classes = space.classes_of(region)
    inside = {name for name in data_set.structures if space.classes_of(name) <= classes}
    values = {
        value: region if name in inside else IGNORE_NAME if name == IGNORE_NAME else BACKGROUND
        for value, name in data_set.values.items()
    }
    # The names in the file are told already.
    layout = replace(data_set.layout, file_names="ignored")
    return Manifest(
        LabelSpace((BACKGROUND, region)),
        {data_set.name: replace(data_set, values=values, layout=layout)},
        (replace(case, annotated=frozenset({region}), parts=(), proposals=()),),
    )
