"""`simulate`: from a manifest to one with fewer annotations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from labelwise.cohort.coverage import never_annotated
from labelwise.cohort.hide import Mode, hide
from labelwise.cohort.manifest import Manifest, read_manifest, write_new_manifest
from labelwise.cohort.published import PUBLISHED
from labelwise.cohort.split import hold_out
from labelwise.errors import ConfigError

logger = logging.getLogger("labelwise")

__all__ = ["simulate"]


def simulate(
    data: Path | str, output: Path | str, mode: str | Mode, /, *, held_out: int = 0, **settings: Any
) -> Manifest:
    """Make labels scarce: the same scans, fewer annotations. Label files are never rewritten.

    Arguments
        data        the manifest to begin with
        output      folder for the new manifest; another manifest there is not replaced
        mode        keep_labelled, one_structure_per_case, structures_per_case, equal_cost or by_data_set (see
                    `labelwise.cohort.hide`), ltuda_toy or ltuda_union (see `labelwise.cohort.published`); or one of
                    your own
        held_out    training patients (the last of the list) that become validation before labels are hidden
        settings    of the mode, e.g. n=8, or k=2, seed=1

    Errors
        ConfigError     a setting is wrong, or patients are to be held out from a published list
        DataError       a published list names cases that are not there
    """
    manifest = scarce(data, mode, held_out=held_out, **settings)
    if missing := never_annotated(manifest):
        logger.warning("no training case annotates %s: training will refuse to begin", ", ".join(missing))
    write_new_manifest(manifest, Path(output))
    return manifest


def scarce(data: Path | str, mode: str | Mode, /, *, held_out: int = 0, **settings: Any) -> Manifest:
    """The manifest of `simulate`, which is written nowhere."""
    if held_out and mode in PUBLISHED:
        raise ConfigError(f"the lists of {mode} decide the splits", do="set 'validation' of the mode instead")
    return hide(hold_out(read_manifest(data), held_out), mode, **settings)
