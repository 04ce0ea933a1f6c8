"""Write deploy/constraints.txt: the versions of all packages of the image, as they are installed here.

    pip install '.[dicom,mesh,monai,onnx,serve]' && python deploy/lock.py

torch is left out, and what only it needs: the image names its version and takes it from an index of its own.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

DEPLOY = Path(__file__).parent
OWN_INDEX = "torch"


def extras() -> set[str]:
    """Those of the image."""
    (found,) = re.findall(r'"\.\[(.+)\]"', (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    return set(found.split(","))


def needed(name: str, wanted: set[str], known: dict[str, str]) -> dict[str, str]:
    """Package -> version of all that a package needs with some extras, and what these need; added to `known`."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
            continue
        package = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if package not in known and package != OWN_INDEX:
            known[package] = metadata.version(package)
            needed(package, set(requirement.extras), known)
    return known


def main() -> None:
    """Write the file."""
    lines = sorted(f"{name}=={version}" for name, version in needed("labelwise", extras(), {}).items())
    (DEPLOY / "constraints.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
