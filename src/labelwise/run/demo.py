"""`demo`: everything once, on synthetic scans, in minutes on a laptop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.cohort.manifest import MANIFEST_NAME, read_manifest
from labelwise.config import RunConfig, load_config
from labelwise.console import ShowProgress, silent
from labelwise.errors import LabelwiseError
from labelwise.plan.choose import LABELS_ALONE
from labelwise.report.comparison import Comparison
from labelwise.run.compare import compare
from labelwise.run.evaluate import evaluate
from labelwise.run.predict import predict
from labelwise.run.report import report
from labelwise.run.train import train
from labelwise.synthetic.generate import SyntheticConfig, make_cohort

__all__ = ["DemoResult", "demo"]

METHODS = ("naive", "supervised", "self_training")
STEPS = 800

# A small network, and patches of nearly the whole scan: a minute or two for each method on two cores. Chosen on
# the validation scans; the test scans took no part.
SETTINGS: dict[str, Any] = {
    "base": "fixed",
    "prepare.spacing_mm": [5.0, 5.0, 6.0],
    "net": {"name": "residual_unet", "settings": {"width": 8, "blocks": [1, 1, 2, 2]}},
    "sampling.patch_size": [48, 48, 32],
    "sampling.labelled_cases": 2,
    "sampling.unlabelled_cases": 1,
    "augment.preset": "default",
    "train.optimizer.name": "adamw",
    "train.optimizer.rate": 4e-3,
    "train.schedule.warmup_steps": 30,
    "train.clip_gradient": 12.0,
    "train.log_every": 20,
    "inference.overlap": 0.25,
}


@dataclass(frozen=True)
class DemoResult:
    """The comparison of the methods, and the page about it."""

    comparison: Comparison
    report: Path

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"comparison": json.loads(self.comparison.to_json()), "report": str(self.report)}


def demo(
    output: Path | str = "runs/demo",
    *,
    seed: int = 0,
    steps: int | None = None,
    overwrite: bool = False,
    progress: ShowProgress = silent,
) -> DemoResult:
    """Make a cohort of four sites that each annotate one structure, train three methods on it, and compare them.

    Repeating the call continues where it was interrupted. Test scans are annotated completely and take no part
    in the training.
    """
    folder = Path(output)
    data = _cohort(folder / "data", seed, progress)
    runs = [folder / name for name in METHODS]
    for run in runs:
        result = train(
            _config(run.name, data, seed, steps or STEPS), run, overwrite=overwrite, progress=progress
        )
        if result.interrupted:
            raise KeyboardInterrupt
        predicted = predict(run, data, run / "predictions", overwrite=overwrite, progress=progress)
        if predicted.failed:
            raise LabelwiseError("a scan of the demo could not be segmented:\n" + predicted.to_text())
        evaluate(run, data, progress=progress)
    page = report(
        runs, folder / "report.html", title="Four sites, one structure each",
    )  # fmt: skip
    return DemoResult(compare(runs), page)


def _cohort(folder: Path, seed: int, progress: ShowProgress) -> Path:
    if not (folder / MANIFEST_NAME).exists():
        progress("make scans", 0, 1)
        make_cohort(folder, SyntheticConfig(seed=seed))
        progress("make scans", 1, 1, f"{len(read_manifest(folder).cases)} synthetic CT scans")
    return folder


def _config(method: str, data: Path, seed: int, steps: int) -> RunConfig:
    changes = {**SETTINGS, "train.steps": [steps], "train.validate_every": max(1, steps // 4), "seed": seed}
    # The same loss on the labels for all: what differs between the rows is the method.
    return load_config(None, changes, data=str(data), method={"name": method, "settings": LABELS_ALONE})
