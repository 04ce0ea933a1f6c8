"""`methods`: what can be trained."""

from __future__ import annotations

from typing import Any

from labelwise.methods import all_cards

__all__ = ["methods"]


def methods() -> list[dict[str, Any]]:
    """One row for each method that can be used, from its card."""
    rows = []
    for name, card in all_cards().items():
        rows.append(
            {
                "name": name,
                "title": card.title,
                "paper": card.paper,
                "idea": card.idea,
                "learns_from": [kind for kind in ("full", "partial", "none") if kind in card.learns_from],
                "dims": " ".join(f"{dims}D" for dims in sorted(card.dims)),
                "independent_maps": card.independent_maps,
                "nets": sorted(card.nets) if card.nets else None,
            }
        )
    return rows
