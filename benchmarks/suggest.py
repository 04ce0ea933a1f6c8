"""Which masks to draw next: `suggest` beside draws and entropy, at the same number of structure masks.

    python benchmarks/suggest.py --source ACDC_FOLDER --work runs/suggest

Every seed begins with the same masks and the same network for all strategies. In each round a strategy names masks of
training scans, which are then annotated, and the network before learns on. Test scans are scored after every round and
choose nothing. Finished rounds are skipped, and the result file is written after every seed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from long_rows import ONE_COMPONENT, THEIR_DICE
from metadata import metadata, write_result
from sweep import MEAN, spread, summarise_scores

from labelwise import load_config, run
from labelwise.atomic import write_json
from labelwise.cohort.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from labelwise.cohort.split import groups_of
from labelwise.cohort.suggest import By, Candidate, open_masks, suggest_masks
from labelwise.formats import record_of
from labelwise.run.trial import Trial, score_trial, train_trial
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from synthetic import ORGANS, SITES

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "long_128.toml"
ROUNDS = 2
MASKS_OF_A_CLASS = 2  # drawn at the start, and in each round times the classes
FIRST_STEPS, MORE_STEPS = 300, 120
PATIENTS = 30  # of ACDC, to draw masks in: the first of its list
SETTINGS: Mapping[str, Any] = {
    "method.name": "supervised",
    **THEIR_DICE,
    "prepare.shape": [64, 64, 0],
    "sampling.patch_size": [64, 64, 1],
    "sampling.labelled_cases": 8,
    "sampling.unlabelled_cases": 0,
    "net.settings.width": 8,
    "augment.on_side": 0.0,
}

PROTOCOL = {
    "data": "synthetic CT: 20 training scans of four sites, 8 test scans. ACDC, h5 volumes: the first "
    f"{PATIENTS} training patients of train.list in two phases, tested on the 10 patients of val.list",
    "start": f"{MASKS_OF_A_CLASS} masks of each class, as `suggest` draws them without a model; for all strategies",
    "rounds": f"{ROUNDS}; each adds {MASKS_OF_A_CLASS} masks for each class there is",
    "random": "any open mask is as likely as any other",
    "stratified random": "the class with the fewest masks, and of it a mask where the network sees the class",
    "entropy": "the masks whose voxels, as the network draws them, have the highest mean entropy",
    "suggest": "as stratified random; patients and data sets that the list has not drawn from come first",
    "suggest --by doubt": "as suggest, with the lowest expected Dice in place of the draw",
    "budget": f"{FIRST_STEPS} optimiser steps of 8 slices, and {MORE_STEPS} in each round, from the weights before",
    "base": "labels alone; residual U-Net of width 8, preset 'strong', slices of 64x64; the same for both data sets",
    "prediction": "the largest component of each structure",
    "checkpoint": "last iteration; nothing selected on test scans",
}

# Manifest with proposals, how many masks, seed -> the masks to draw.
Strategy = Callable[[Manifest, int, int], Sequence[Candidate]]


def suggested(
    manifest: Manifest, number: int, seed: int, *, by: By = "random", apart: bool = True
) -> Sequence[Candidate]:
    """As `labelwise suggest` does; not `apart`: without its care for patients and data sets."""
    cases = manifest.split("train")
    masks = open_masks(cases, manifest.label_space)
    if not apart:
        masks = [replace(one, group=one.case, data_set="") for one in masks]
    annotated = Counter(name for case in cases for name in case.annotated)
    return suggest_masks(masks, annotated, number, by=by, seed=seed)


def drawn(manifest: Manifest, number: int, seed: int) -> Sequence[Candidate]:
    """Any open mask is as likely as any other."""
    masks = open_masks(manifest.split("train"), manifest.label_space)
    chosen = np.random.default_rng(seed).choice(len(masks), number, replace=False)
    return [masks[index] for index in chosen.tolist()]


def of_highest_entropy(manifest: Manifest, number: int, seed: int) -> Sequence[Candidate]:
    """The masks whose voxels, as the network draws them, have the highest mean entropy."""
    entropy: dict[tuple[str, str], float] = {}
    for case in manifest.split("train"):
        for proposal in case.proposals:
            facts = json.loads(record_of(proposal.file).read_text(encoding="utf-8"))["certainty"]
            entropy |= {(case.id, name): fact["entropy"] or 0.0 for name, fact in facts.items()}
    masks = open_masks(manifest.split("train"), manifest.label_space)
    return sorted(masks, key=lambda one: -entropy[one.case, one.class_name])[:number]


STRATEGIES: Mapping[str, Strategy] = {
    "random": drawn,
    "stratified random": partial(suggested, apart=False),
    "entropy": of_highest_entropy,
    "suggest": suggested,
    "suggest --by doubt": partial(suggested, by="doubt"),
}


def synthetic(source: Path, folder: Path) -> None:
    """20 training scans of four sites, 8 test scans."""
    make_cohort(folder, SyntheticConfig(sites=dict.fromkeys(SITES, ORGANS), cases_per_site=5, unlabelled=0))


def acdc(source: Path, folder: Path) -> None:
    """The first training patients, in two phases each, and 10 test patients."""
    manifest = run.import_data([source], folder.with_name("all"), split="ssl4mis")
    taken = list(groups_of(manifest.split("train")))[:PATIENTS]
    cases = [case for case in manifest.cases if case.split == "test" or case.group in taken]
    write_manifest(manifest.replace_cases(cases), folder)


DATA: Mapping[str, Callable[[Path, Path], None]] = {"synthetic CT": synthetic, "ACDC": acdc}


def with_annotated(manifest: Manifest, annotated: Mapping[str, frozenset[str]]) -> Manifest:
    """The manifest with these classes annotated in its training scans, and no others."""
    return manifest.replace_cases(
        replace(case, annotated=annotated.get(case.id, frozenset())) if case.split == "train" else case
        for case in manifest.cases
    )


@dataclass(frozen=True)
class Round:
    """One network of a strategy: what it learns from, and where it lies."""

    folder: Path
    complete: Manifest
    seed: int
    before: Round | None = None

    @property
    def number(self) -> int:
        """0 for the network that all strategies begin with."""
        return self.before.number + 1 if self.before else 0

    @property
    def draw(self) -> int:
        """A seed of its own for each round, the same for all strategies."""
        return 100 * self.seed + self.number

    @property
    def data(self) -> Path:
        """The manifest that it learns from, which holds its proposals later."""
        return self.folder / "data"

    def finish(self, strategy: Strategy) -> dict[str, Any]:
        """Choose masks, train, score; what is done already is not done again."""
        file = self.folder / "result.json"
        if file.exists():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        number = MASKS_OF_A_CLASS * len(self.complete.label_space.structures)
        if not (self.data / MANIFEST_NAME).exists():
            asked = self.before.asked() if self.before else with_annotated(self.complete, {})
            annotated = {case.id: case.annotated for case in asked.cases}
            for one in strategy(asked, number, self.draw):
                annotated[one.case] |= {one.class_name}
            write_manifest(with_annotated(self.complete, annotated), self.data)
        steps = MORE_STEPS if self.before else FIRST_STEPS
        start = {"warm_start": str(self.before.folder)} if self.before else {}
        config = load_config(
            RECIPE,
            {**SETTINGS, "train.steps": [steps], "prepare.store": str(self.folder.parent / "store")},
            data=str(self.data),
            seed=self.draw,
            **start,
        )
        trial = Trial(self.folder.name, config, self.folder, self.data)
        seconds = train_trial(trial)
        if seconds is None:
            raise KeyboardInterrupt
        table = self.folder / "predictions" / "scores.csv"
        scores = score_trial(
            trial,
            table.parent,
            {table: {"unit": "voxels", "workers": 1}},
            settings=ONE_COMPONENT,
            overwrite=True,
        )[table]
        cases = read_manifest(self.data).split("train")
        facts = {
            "masks": dict(Counter(name for case in cases for name in sorted(case.annotated))),
            "scans": sum(bool(case.annotated) for case in cases),
            "dice": summarise_scores(scores)["dice"],
            "seconds": round(seconds, 1),
            "metadata": metadata(),
        }
        write_json(file, facts)
        return facts

    def asked(self) -> Manifest:
        """The manifest with what its network says of the training scans."""
        found = run.propose(self.folder, self.data)
        if found.failed:
            raise SystemExit(found.to_text())
        return read_manifest(self.data)


def follow(folder: Path, complete: Manifest, seed: int) -> dict[str, list[dict[str, Any]]]:
    """All strategies of one seed: strategy -> what was found in each round."""
    start = Round(folder / f"seed{seed}_start", complete, seed)
    first = start.finish(suggested)
    curves = {}
    for name, strategy in STRATEGIES.items():
        curve, before = [first], start
        for number in range(1, ROUNDS + 1):
            before = Round(folder / f"seed{seed}_{name.replace(' ', '_')}_{number}", complete, seed, before)
            curve.append(before.finish(strategy))
        curves[name] = curve
        print(
            folder.name,
            seed,
            name,
            *(f"{100 * (each['dice'][MEAN] or math.nan):.1f}" for each in curve),
            flush=True,
        )
    return curves


def summary(curves: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Strategy -> for each round the masks, the mean Dice over seeds, and what it is above `stratified random`."""
    rows: dict[str, Any] = {}
    for name in STRATEGIES:
        rows[name] = []
        for number in range(ROUNDS + 1):
            dice = [curve[name][number]["dice"][MEAN] or 0.0 for curve in curves]
            yardstick = [curve["stratified random"][number]["dice"][MEAN] or 0.0 for curve in curves]
            rows[name].append(
                {
                    "masks": sum(curves[0][name][number]["masks"].values()),
                    "dice": spread(dice),
                    "above_stratified": spread(
                        [one - other for one, other in zip(dice, yardstick, strict=True)]
                    ),
                }
            )
    return rows


def main() -> None:
    """Read the command line, follow every strategy, write the result."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of ACDC, as downloaded")
    parser.add_argument("--work", type=Path, required=True, help="folder for manifests and networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    found: dict[str, dict[int, Any]] = {name: {} for name in DATA}
    for seed in options.seeds:
        for name, make in DATA.items():
            folder = options.work / name.replace(" ", "_")
            if not (folder / "complete" / MANIFEST_NAME).exists():
                make(options.source, folder / "complete")
            found[name][seed] = follow(folder, read_manifest(folder / "complete"), seed)
        write_result(
            "suggest",
            {
                "protocol": PROTOCOL,
                "data": {
                    name: {"rows": summary(list(seeds.values())), "seeds": seeds}
                    for name, seeds in found.items()
                },
            },
        )


if __name__ == "__main__":
    main()
