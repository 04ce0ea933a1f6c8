"""Does a model that is asked for an organ look at the question, or at the style of the scan's site?

    python benchmarks/site_shortcut.py --work runs/synthetic

Reads models that `benchmarks/synthetic.py` has trained. Every site of that cohort annotates one organ, and every site
has a style of its own: a network that is asked for an organ could answer with the one that the site annotates.
For each training scan and each organ that its site does not annotate: Dice of the answer with the organ that was asked
for, and with the organ that the site annotates.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from metadata import write_result

from labelwise.cohort.manifest import Manifest, read_case_image, read_case_labels, read_manifest
from labelwise.infer.model import Model, load_model
from labelwise.infer.sliding_window import predict_scores
from labelwise.preprocess.pipeline import apply
from labelwise.types import Array, Case

METHODS = ("dodnet", "conemos", "multi_talent", "ltuda_cda")


def main() -> None:
    """Read the command line, ask every model, write the result."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    complete, scarce = (read_manifest(options.work / name) for name in ("complete", "one_organ"))
    runs = {method: options.work / f"{method}_seed{options.seed}" for method in METHODS}
    rows = {
        method: asked(load_model(run), complete, scarce)
        for method, run in runs.items()
        if (run / "model").is_dir()
    }
    for method, row in rows.items():
        print(method, row)
    write_result("site_shortcut", {"seed": options.seed, "rows": rows})


def asked(model: Model, complete: Manifest, scarce: Manifest) -> Mapping[str, float]:
    """Means over training scans and organs that their site does not annotate."""
    annotated = {case.id: case.annotated for case in scarce.split("train")}
    found = [
        pair
        for case in complete.split("train")
        for pair in answers(model, case, complete, annotated[case.id])
    ]
    return {
        "answers": len(found),
        "dice_with_the_organ_asked_for": mean(pair[0] for pair in found),
        "dice_with_the_organ_of_the_site": mean(pair[1] for pair in found),
    }


def answers(
    model: Model, case: Case, complete: Manifest, annotated: frozenset[str]
) -> Iterable[tuple[float, float]]:
    """(Dice with the organ asked for, Dice with the organ of the site), for each other organ of the scan."""
    labels = read_case_labels(case, complete)
    prepared = apply(read_case_image(case, complete), model.plan, intensity="ct", labels=labels)
    assert prepared.labels is not None
    names = model.label_space.names
    scores = predict_scores(
        model.predictor,
        torch.from_numpy(prepared.image.data),
        model.info.patch_size,
        num_classes=len(names),
        config=model.config,
        device="cpu",
    ).numpy()
    (site,) = annotated
    for organ in model.label_space.structures:
        if organ != site:
            answer = scores[names.index(organ)] > 0.5
            yield (
                dice(answer, prepared.labels.data == names.index(organ)),
                dice(answer, prepared.labels.data == names.index(site)),
            )


def dice(first: Array, second: Array) -> float:
    """Of two masks; 0 if both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int(np.logical_and(first, second).sum()) / total if total else 0.0


if __name__ == "__main__":
    main()
