"""The card of a model: what it is for, what it has learnt from, how well it does, and where it ends.

`card.md` lies in the model folder, for people. It is written with the model; `evaluate` fills in the scores, between
two marks, so that what people add elsewhere stays. Needs no torch.

Source
    Mitchell et al., Model Cards for Model Reporting, FAT* 2019.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labelwise.atomic import write_text
from labelwise.cohort.data_set import forbids_commercial_use
from labelwise.evaluate.scores import Score, summarise

CARD = "card.md"
FEW = 10  # annotated training cases; with fewer a structure is called little known
_BEGIN, _END = "<!-- scores: written by labelwise evaluate -->", "<!-- end of scores -->"
_SHOWN = ("dice", "hd95")


def card_text(info: Mapping[str, Any]) -> str:
    """The card of a model from the contents of its model.json; without scores."""
    training = info["training"]
    structures = info["classes"][1:]
    dims = 2 if info["patch_size"][2] == 1 else 3
    annotated = training.get("annotated_cases", {})
    parts = [
        f"# Model card: {info['name']}",
        "## Intended use",
        f"Segments {_listed(structures)} in scans of the kind "
        f"{_listed(_scans(name) for name in info['intensities'])}, "
        f"{'slice by slice (2D)' if dims == 2 else 'in 3D'}. Made by labelwise, for research; not a medical device. A "
        "person looks at every result before anything follows from it.",
        "## Data",
        f"{training.get('cases', 'An unknown number of')} training cases{_from_data_sets(training)}.",
        *_licences(training),
        _table(
            ("structure", "annotated in cases"),
            [(structure, str(annotated.get(structure, "–"))) for structure in structures],
        ),
        "## Training",
        _training(info, training),
        licence_of_weights(training),
        "## Scores",
        f"{_BEGIN}\n{_validation(training)}\nNot evaluated on test cases yet.\n{_END}",
        "## Limits",
        *_limits(info, training, annotated),
    ]
    return "\n\n".join(parts) + "\n"


def with_licence(text: str, training: Mapping[str, Any]) -> str:
    """A card with the licence of the weights that its training states; if it states none, as it is."""
    if not training.get("licence"):
        return text
    return re.sub(
        "^Licence of the weights: .*$", lambda _: licence_of_weights(training), text, flags=re.MULTILINE
    )


def add_scores(model: Path, scores: Iterable[Score], split: str) -> bool:
    """Put the scores of a split into the card of a model folder. False if it has no card, or none with the marks."""
    file = model / CARD
    if not file.exists():
        return False
    text = file.read_text(encoding="utf-8")
    before, mark, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not mark or not end:
        return False
    write_text(file, f"{before}{_BEGIN}\n{_scores(list(scores), split)}\n{_END}{after}")
    return True


def _scores(scores: list[Score], split: str) -> str:
    rows: dict[str, dict[str, str]] = {}
    units: dict[str, str] = {}
    for row in summarise(score for score in scores if score.metric in _SHOWN).classes:
        share = row.metric == "dice"
        shown = "–" if math.isnan(row.mean) else f"{100 * row.mean:.1f}" if share else f"{row.mean:.2f}"
        if math.isfinite(row.sd):
            shown += f" ± {100 * row.sd:.1f}" if share else f" ± {row.sd:.2f}"
        failed = f", {row.failures} missed or invented" if row.failures and share else ""
        rows.setdefault(row.class_name, {})[row.metric] = f"{shown} (n {row.n}{failed})"
        units[row.metric] = "%" if share else row.unit
    titles = {"dice": "Dice", "hd95": "HD95"}
    columns = [metric for metric in _SHOWN if metric in units]
    header = ("structure", *(f"{titles[metric]} [{units[metric]}]" for metric in columns))
    body = [(name, *(values.get(metric, "–") for metric in columns)) for name, values in rows.items()]
    cases = {score.case: score.patient for score in scores}
    told = f"{len(cases)} cases of {len(set(cases.values()))} patients, split '{split}'. Mean ± spread over the cases."
    seen = sorted({score.case for score in scores if score.seen})
    warning = (
        f"\n\n**{len(seen)} of these cases, or their patients, were part of the training or of choices in it: this is "
        "no test.**"
        if seen
        else ""
    )
    return f"{told}{warning}\n\n{_table(header, body)}"


def _validation(training: Mapping[str, Any]) -> str:
    score = training.get("best_validation_dice")
    return "" if score is None else f"Best mean Dice of the validation while training: {100 * score:.1f} %."


def _from_data_sets(training: Mapping[str, Any]) -> str:
    data_sets = training.get("data_sets") or {}
    return (
        f" of the data sets {_listed(f'{name} ({count})' for name, count in data_sets.items())}"
        if data_sets
        else ""
    )


def _licences(training: Mapping[str, Any]) -> list[str]:
    """The terms of each data set, and what follows from them."""
    licences: Mapping[str, str] = training.get("licences") or {}
    told = [
        _table(("data set", "licence"), [(name, text or "not stated") for name, text in licences.items()])
    ]
    bound = [name for name, text in licences.items() if forbids_commercial_use(text)]
    if bound:
        told.append(
            f"**The terms of {_listed(bound)} forbid commercial use, of models too as many read them.**"
        )
    if not licences or not all(licences.values()):
        told.append(
            "Where no licence is stated, find it out before the model is passed on: many data sets forbid other than "
            "research use, of models too."
        )
    return told if licences else told[1:]


def licence_of_weights(training: Mapping[str, Any]) -> str:
    """The terms of the weights, as whoever trained them stated them."""
    terms = training.get("licence")
    return (
        f"Licence of the weights: {terms}"
        if terms
        else "Licence of the weights: decided by whoever trained them, within the terms of the data. State it here, or "
        "with `licence` in the recipe."
    )


def _training(info: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    facts = {
        "method": info["method"],
        "network": info["net"].get("name"),
        "steps": training.get("steps"),
        "weights": {"last": "of the last step", "best": "of the best validation"}.get(
            str(training.get("selected"))
        ),
        "seed": training.get("seed"),
        "date": training.get("date"),
        "began with the weights of": training.get("began_with"),
        "kept from it": ", ".join(training.get("kept_classes", ())) or None,
        "labelwise": (training.get("environment") or {}).get("versions", {}).get("labelwise"),
    }
    return _table(
        ("training", "value"), [(name, str(value)) for name, value in facts.items() if value is not None]
    )


def _limits(info: Mapping[str, Any], training: Mapping[str, Any], annotated: Mapping[str, int]) -> list[str]:
    limits = []
    scans = training.get("scans") or {}
    if scans:
        spacing, extent = (_range(scans[name]) for name in ("spacing_mm", "extent_mm"))
        limits.append(
            f"It has seen voxels of {spacing} mm and scans of {extent} mm (x, y, z). Of scans far from that `labelwise "
            "predict` warns; results on them may be wrong."
        )
    if few := [
        f"{structure} ({annotated[structure]})"
        for structure in info["classes"][1:]
        if annotated.get(structure, FEW) < FEW
    ]:
        limits.append(f"Little is known of {_listed(few)}: fewer than {FEW} training cases annotate it.")
    limits.append(
        "Scores above, if there are any, hold for scans like those that were scored: on other scanners, protocols, "
        "diseases and ages it may do worse. Structures that are not in the list are background to it."
    )
    return [f"- {limit}" for limit in limits]


def _range(values: Mapping[str, Any]) -> str:
    pairs = zip(values["low"], values["high"], strict=True)
    return " x ".join(f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}" for low, high in pairs)


def _scans(name: str) -> str:
    return {"ct": "CT", "mr": "MR", "normalised": "the training, normalised alike"}.get(name, name)


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
