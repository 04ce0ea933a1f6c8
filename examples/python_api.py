"""From scans to scores in Python: make a cohort, hide labels, train, predict, evaluate.

    python examples/python_api.py runs/python_api

Every function of `labelwise.run` is also a command: `labelwise simulate`, `train`, `predict`, `evaluate`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelwise import load_config, run
from labelwise.synthetic import SyntheticConfig, make_cohort

SETTINGS = {
    "base": "fixed",  # nothing is planned: seconds on any machine
    "net": {"name": "unet", "settings": {"width": 8}},
    "sampling.patch_size": [48, 48, 32],
    "train.steps": [100],
    "train.optimizer": {"name": "adamw", "rate": 3e-3},
}
SCANS = SyntheticConfig(cases_per_site=3, unlabelled=0, validation=0, test=2, full=True)


def main(folder: Path, scans: SyntheticConfig = SCANS, changes: Mapping[str, Any] = {}) -> float:
    """Train on scans in which one structure each is annotated; returns the mean Dice on the test scans."""
    complete, scarce, trained = folder / "complete", folder / "scarce", folder / "run"

    make_cohort(complete, scans)  # your own scans: run.import_data, see own_data.py
    run.simulate(complete, scarce, "one_structure_per_case", seed=0)

    config = load_config(None, {**SETTINGS, **changes}, data=str(scarce), method={"name": "supervised"})
    run.prepare(config, workers=1)
    result = run.train(config, trained)
    print(f"{result.steps} steps, model in {result.folder / 'model'}")

    run.predict(trained, scarce, trained / "predictions", split="test")
    evaluation = run.evaluate(trained, scarce, workers=1)
    print(evaluation.to_text())
    dice = next(row for row in evaluation.summary.overall if row.metric == "dice")
    return dice.mean


# The guard lets worker processes import this file without running it again.
if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/python_api"))
