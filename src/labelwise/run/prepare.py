"""`prepare`: every scan of a manifest becomes a prepared scan in a store that all runs share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from labelwise.cohort.join import with_classes
from labelwise.cohort.manifest import Manifest, read_manifest
from labelwise.config import RunConfig
from labelwise.console import ShowProgress, silent
from labelwise.errors import ConfigError, DataError, ResourceError
from labelwise.loading import prepare as preparation
from labelwise.loading.prepare import Jobs, Prepared
from labelwise.loading.store import Store
from labelwise.preprocess.fingerprint import make_plan
from labelwise.preprocess.pipeline import Plan
from labelwise.run.learnable import learnable
from labelwise.run.warm_start import kept_model

__all__ = ["prepare", "prepare_manifest", "read_data"]


def prepare(
    config: RunConfig, *, workers: int | None = None, engine: str = "local", progress: ShowProgress = silent
) -> Prepared:
    """Prepare all cases of the manifest ``config.data`` that take part; what is there already is skipped.

    Errors
        ConfigError     no manifest is named
        DataError       the manifest is wrong; scans that cannot be prepared are in the result's `failures`
    """
    return prepare_manifest(read_data(config), config, workers=workers, engine=engine, progress=progress)


def read_data(config: RunConfig) -> Manifest:
    """The manifest that the settings name, annotated for what may teach, in the classes that the training has.

    Errors
        ConfigError         no manifest is named; classes that do not fit those of a model that is to keep its own
        CheckpointError     a model that is to keep its classes is none
        DataError           the manifest is wrong or names no structure, or a proposal that may teach cannot be read
    """
    if not config.data:
        raise ConfigError(
            "no data named", do="name the folder of a manifest: --data FOLDER, or data = ... in the recipe"
        )
    manifest = read_manifest(config.data)
    if not manifest.label_space.structures:
        raise DataError(
            "nothing can be learnt from this data set alone: it names no structure, and nothing in it is labelled",
            file=config.data,
            do="import its folder together with that of labelled scans: labelwise import LABELLED UNLABELLED "
            "--output DATA",
            code="nothing-annotated",
        )
    manifest = learnable(manifest, config.learn_from, store_folder(config).parent / "labels")
    kept = kept_model(config)
    return with_classes(manifest, kept.classes) if kept else manifest


def prepare_manifest(
    manifest: Manifest,
    config: RunConfig,
    *,
    workers: int | None = None,
    engine: str = "local",
    progress: ShowProgress = silent,
) -> Prepared:
    """The same for a manifest that was read already."""
    folder = store_folder(config)
    try:
        if not (folder / "plan.json").exists():
            Store(folder).begin(_plan(manifest, config, Jobs(workers, engine, progress)))
        return preparation.prepare(manifest, folder, workers=workers, engine=engine, progress=progress)
    except ResourceError as error:
        if error.file is None or not Path(str(error.file)).absolute().is_relative_to(
            folder.parent.absolute()
        ):
            raise
        raise ResourceError(
            f"the prepared scans have no place: {error.what}",
            file=error.file,
            found=error.found,
            do="name a folder with room that can be written to: --set prepare.store=FOLDER",
        ) from error


def store_folder(config: RunConfig) -> Path:
    """Where the prepared scans lie: one folder for each choice of settings, so that runs never share a wrong plan."""
    manifest = Path(config.data)  # the file, or its folder
    beside = (manifest.parent if manifest.is_file() else manifest) / "store"
    root = Path(config.prepare.store) if config.prepare.store else beside
    chosen = {
        key: value for key, value in asdict(config.prepare).items() if key != "store" and value is not None
    }
    if kept := kept_model(config):
        chosen["plan"] = kept.plan
    name = (
        hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8] if chosen else "automatic"
    )
    return root / name


def fingerprint_file(config: RunConfig) -> Path:
    """Where the fingerprint of the training scans is kept, for all choices of settings."""
    return store_folder(config).parent / "fingerprint.json"


def _plan(manifest: Manifest, config: RunConfig, jobs: Jobs) -> Plan:
    """The plan that these settings and the fingerprint of the training scans give together, or that of a model."""
    settings = config.prepare
    x, y, z = settings.shape or (0, 0, 0)
    shape = (x or None, y or None, z or None) if settings.shape else None
    given = settings.intensity or {}
    if kept := kept_model(config):
        plan = Plan.from_json(kept.plan)
        asked = {
            "spacing_mm": settings.spacing_mm or plan.spacing_mm,
            "shape": shape or plan.shape,
            "crop": settings.crop or plan.crop,
            "intensity": plan.intensity | given,
        }
        for name, value in asked.items():
            if value != getattr(plan, name):
                raise ConfigError(
                    "a model that is to keep its classes must see scans as those that it knows",
                    found=f"prepare.{name} = {getattr(settings, name)}",
                    expected=str(getattr(plan, name)),
                    do=f"leave prepare.{name} out",
                )
        return plan
    statistics = preparation.training_statistics(manifest, jobs, memo=fingerprint_file(config))
    plan = make_plan(statistics, spacing_mm=settings.spacing_mm, shape=shape, crop=settings.crop)
    if unknown := sorted(set(given) - set(plan.intensity)):
        raise ConfigError(
            "no training scan has such intensities",
            found=f"prepare.intensity.{unknown[0]}",
            expected=", ".join(plan.intensity),
        )
    return replace(plan, intensity=plan.intensity | given)
