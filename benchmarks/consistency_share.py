"""How much of the gradient the consistency of DKUXNet has, beside the cross-entropy, by form and temperature.

    python benchmarks/consistency_share.py

Made-up logits of two views of the same scans, of a network that is unsure and of one that is sure, with two and five
classes: the length of the gradient of each form, with weight 1, divided by that of the cross-entropy of both views.
"""

from __future__ import annotations

from typing import Any

import torch
from metadata import write_result
from torch import Tensor
from torch.nn import functional as F

from labelwise.losses.partial import squared_difference
from labelwise.methods.dkuxnet.view_contrast import channel_contrast

SIDE, CASES = 24, 2
ORGAN_SHARE = 0.1  # of the voxels, each
NOISE, VIEW_NOISE = 1.0, 0.3  # of the logits: what both views share, and what they do not
SHARPNESS = {"unsure": 1.0, "sure": 4.0}  # logit of the right class
TEMPERATURES = (0.07, 0.1, 0.2, 0.5, 1.0, 2.0)


def two_views(classes: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """Logits (2 * CASES, classes, *S), the strong views first, and the labels of both."""
    generator = torch.Generator().manual_seed(0)
    voxels = SIDE**3
    organ = torch.arange(voxels) // int(ORGAN_SHARE * voxels) + 1
    labels = torch.where(organ < classes, organ, 0).expand(CASES, -1)
    shape = (CASES, classes, voxels)
    weak = F.one_hot(labels, classes).movedim(-1, 1) * sharpness
    weak = weak + NOISE * torch.randn(shape, generator=generator, dtype=torch.float64)
    strong = weak + VIEW_NOISE * torch.randn(shape, generator=generator, dtype=torch.float64)
    sides = (SIDE,) * 3
    return torch.cat([strong, weak]).view(-1, classes, *sides), labels.repeat(2, 1).view(-1, *sides)


def shares(classes: int, sharpness: float) -> dict[str, float]:
    """Length of the gradient of each form, divided by that of the cross-entropy."""
    logits, labels = two_views(classes, sharpness)
    logits.requires_grad_()
    strong, weak = logits.softmax(dim=1).chunk(2)
    forms = {f"channel, {t}": channel_contrast(strong, weak, temperature=t) for t in TEMPERATURES}
    forms["mse"] = squared_difference(strong, weak)

    def length(loss: Tensor) -> float:
        return float(torch.autograd.grad(loss, logits, retain_graph=True)[0].norm())

    base = length(F.cross_entropy(logits, labels))
    return {form: round(length(loss) / base, 4) for form, loss in forms.items()}


def main() -> None:
    rows: list[dict[str, Any]] = [
        {"classes": classes, "network": name, "share": shares(classes, sharpness)}
        for classes in (2, 5)
        for name, sharpness in SHARPNESS.items()
    ]
    print(write_result("consistency_share", {"rows": rows}))


if __name__ == "__main__":
    main()
