"""What a label says when only the liver was annotated: label sets, loss and pseudo-label of four voxels.

    python examples/partial_labels.py

Read docs/explanation/partial-labels.md beside it.
"""

from __future__ import annotations

import torch

from labelwise import IGNORE, LabelSpace
from labelwise.losses import complete, marginal_cross_entropy, open_voxels, possible_classes

SPACE = LabelSpace(("background", "liver", "spleen"))


def main() -> dict[str, torch.Tensor]:
    """Print what is known about the voxels of one case, and return it by name."""
    labels = torch.tensor([[1, 0, 0, IGNORE]])  # liver, not liver, not liver, nothing known
    annotated = SPACE.annotated(["liver"]).unsqueeze(0)  # (B, C): one case that knows the liver only
    scores = [[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 2.0], [0.0, 1.0, 3.0, 1.0]]  # class by voxel
    logits = torch.tensor([scores])

    possible = possible_classes(labels, annotated)
    for voxel, label in enumerate(labels[0].tolist()):
        names = [name for name, may in zip(SPACE.names, possible[0, :, voxel], strict=True) if may]
        print(f"voxel {voxel}, label {label:3}: {' or '.join(names)}")

    teacher = logits.softmax(dim=1)
    known = {
        "possible": possible,
        "open": open_voxels(labels, annotated),
        "loss": marginal_cross_entropy(logits, labels, annotated),
        "teacher": teacher,
        "pseudo_label": complete(teacher, labels, annotated),
    }
    print(f"marginal cross-entropy: {known['loss']:.4f}")
    print(f"teacher at voxel 1:     {known['teacher'][0, :, 1].numpy().round(3)}")
    print(f"restricted to the rest: {known['pseudo_label'][0, :, 1].numpy().round(3)}")
    return known


if __name__ == "__main__":
    main()
