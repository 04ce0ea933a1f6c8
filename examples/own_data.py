"""Two hospitals, two structures: describe folders of scans by one manifest, and check them.

    python examples/own_data.py runs/own_data

The first half writes folders as a hospital might have them. Yours exist already.
"""

from __future__ import annotations

import sys
from pathlib import Path

from labelwise import Manifest, Volume, merge, run, write_manifest
from labelwise.formats import write_image, write_labels
from labelwise.synthetic import LABEL_SPACE, SyntheticConfig, make_scan

STRUCTURES = {"north": "liver", "south": "spleen"}


def write_hospital(folder: Path, structure: str, shape: tuple[int, int, int], seed: int) -> None:
    """images/case_N.nii.gz, and labels/case_N.nii.gz with 1 for the structure; the last scan has no label."""
    for number in range(3):
        image, labels = make_scan([seed, number], SyntheticConfig(shape=shape))
        path = folder / "images" / f"{folder.name}_{number}.nii.gz"
        write_image(path, image)
        if number < 2:
            mask = (labels.data == LABEL_SPACE.index(structure)).astype("uint8")
            write_labels(folder / "labels" / path.name, Volume(mask, labels.affine), like=path)


def main(folder: Path, shape: tuple[int, int, int] = (64, 52, 40)) -> Manifest:
    """Import both hospitals into one label space, and list what is wrong with the cohort."""
    manifests = []
    for seed, (hospital, structure) in enumerate(STRUCTURES.items()):
        write_hospital(folder / hospital, structure, shape, seed)
        # The same value means another structure in every hospital, so each is imported by itself ...
        options = {"classes": {structure: 1}, "modality": "ct"}
        manifests.append(run.import_data([folder / hospital], folder / f"{hospital}_data", **options))
    # ... and joined by the names of the classes.
    manifest = merge(manifests)
    write_manifest(manifest, folder / "data")
    report = run.check(folder / "data", workers=1)
    print(report.to_text())
    return manifest


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_data"))
