"""Under which terms the public data sets are given, as far as they are known; the pages in docs/data say more.

Copies of one data set may come with other terms: what the user states counts, then what a description file beside the
scans says, then this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from labelwise.cohort.manifest import Manifest

LICENCES: Mapping[str, str] = {
    "abdomenct1k": "those of LiTS, KiTS19, the Decathlon and NIH Pancreas-CT, in part CC BY-NC",
    "acdc": "CC BY-NC-SA 4.0",
    "amos22": "CC BY 4.0 or CC BY-NC, by the copy",
    "btcv": "CC BY 4.0, as often listed; registration at Synapse",
    "flare22": "CC BY-NC-SA 4.0, as listed",
    "kits": "CC BY-NC-SA 4.0",
    "la2018": "terms of the challenge: for research only",
    "lits": "CC BY-NC-ND 4.0, as listed for the challenge",
    "msd": "CC BY-SA 4.0",
    "nih_pancreas": "CC BY 3.0",
    "totalsegmentator": "CC BY 4.0 (CT)",
    "word": "by the authors: for academic research only",
}


def licensed(manifest: Manifest, importer: str, stated: str | None) -> Manifest:
    """The manifest whose data sets have the licence that was stated, else their own, else the known one."""
    known = LICENCES.get(importer, "")
    data_sets = {
        name: replace(data_set, licence=stated or data_set.licence or known)
        for name, data_set in manifest.data_sets.items()
    }
    return replace(manifest, data_sets=data_sets)


def licence_in(description: Mapping[str, object]) -> str:
    """The licence that a description file beside the scans names, such as dataset.json; "" without one."""
    for key in ("licence", "license", "License", "Licence"):
        if isinstance(found := description.get(key), str):
            return " ".join(found.split())
    return ""
